"""One function for every interval, table, front and verdict: statistics of the unit table, resampled.

A statistic is written ``name:metric[:grouping]``: ``mean``, ``worst_decile`` and ``gini`` of a metric (of each group
when a grouping is named), ``gap`` (first group minus second, signed) and ``abs_gap`` (its size).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, InputError, Metric, stream
from upright.maths import intervals
from upright.shell.units import Units

__all__ = ["evidence", "verdict_of"]

Array = NDArray[np.float64]
DRAWS, CONFIDENCE = 2_000, 0.95


class _Samples:
    """A statistic of every arm on the data itself (row 0) and on each draw, shape (1 + draws,)."""

    def __init__(self, units: Units, draws: int, seed: int) -> None:
        self.units = units
        rng = np.random.default_rng(stream(seed, "evidence"))
        s, u = intervals.draw_weights(len(units.seeds), len(units.units), draws, rng)
        self.seed_weight = np.vstack([np.ones((1, s.shape[1])), s])  # (1 + draws, S)
        self.unit_weight = np.vstack([np.ones((1, u.shape[1])), u])  # (1 + draws, U)

    def of(self, name: str, arm: str, metric: str, mask: NDArray[np.bool_] | None) -> Array:
        values = self.units.values(arm, metric)  # (S, U)
        if mask is not None:
            values = np.where(mask, values, np.nan)
        if name == "mean":
            ok = ~np.isnan(values)
            top = self.unit_weight @ np.where(ok, values, 0.0).T  # (1 + draws, S)
            bottom = self.unit_weight @ ok.T.astype(np.float64)
            top, bottom = (top * self.seed_weight).sum(1), (bottom * self.seed_weight).sum(1)
            return np.asarray(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0))
        statistic, flat = intervals.STATISTICS[name], values.ravel()
        return np.array(
            [statistic(flat, np.outer(a, b).ravel()) for a, b in zip(self.seed_weight, self.unit_weight, strict=True)]
        )


def _parse(statistic: str, units: Units) -> tuple[str, str, str | None]:
    name, metric, grouping = [*statistic.split(":"), None, None][:3]
    names = [*intervals.STATISTICS, "gap", "abs_gap"]
    if name not in names or metric not in units.metrics or (grouping is not None and grouping not in units.by):
        raise InputError(
            f"statistic {statistic!r}",
            f"name:metric[:grouping] with name in {names}, metric in {units.metrics}, grouping in {sorted(units.by)}",
            "correct the part that is not in its list",
        )
    return str(name), str(metric), grouping


def evidence(
    units: Units,
    *,
    arms: Sequence[Arm],
    statistics: Sequence[str],
    metrics: Mapping[str, Metric],
    primary: str | None = None,
    cost: str | None = None,
    title: str = "",
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> dict[str, Any]:
    """Return levels, paired differences and a verdict in words, as plain values.

    Parameters
    ----------
    units : Units
        Values of every arm, seed and unit.
    arms : sequence of Arm
        Roles; arms that are not in the table are left out.
    statistics : sequence of str
        What to compute.
    metrics : mapping of name to Metric
        Direction, margin and title.
    primary, cost : str, optional
        Statistics of the verdict.
    title : str
        The remedy's name in sentences.

    Returns
    -------
    dict
        See `docs/design/evidence.md`.
    """
    complete = all(arm.name in units.arms for arm in arms)
    arms = [arm for arm in arms if arm.name in units.arms]
    known: dict[tuple[str, str, str, str | None], Array] = {}
    samples = _Samples(units, draws, seed)
    remedy = next((a for a in arms if a.role == "remedy"), None)
    levels: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for statistic in statistics:
        name, metric, grouping = _parse(statistic, units)
        groups = units.groups(grouping) if grouping else []
        about = metrics.get(metric, Metric(metric))
        if name in ("gap", "abs_gap") and len(groups) != 2:
            continue  # a gap needs two groups; with one there is nothing to compare
        cells: list[str | None] = [*groups] if grouping and name not in ("gap", "abs_gap") else [None]
        for cell in cells:
            per_arm: dict[str, Array] = {}
            for arm in arms:
                per_arm[arm.name] = _cell(samples, known, name, arm.name, metric, grouping, groups, cell)
                own = per_arm[arm.name]
                low, high = intervals.percentile(own[1:], confidence)
                mask = None if cell is None else units.by[grouping or ""] == cell
                data = units.values(arm.name, metric)
                counted = np.ones_like(data, dtype=bool) if mask is None else mask
                defined = (~np.isnan(data) & counted).any(0)
                levels.append({
                    "statistic": statistic, "label": _label(name, about, groups, cell), "metric": metric,
                    "grouping": grouping, "group": cell, "arm": arm.name, "value": float(own[0]), "low": low,
                    "high": high, "n_units": int(defined.sum()),
                    "n_undefined": int(counted.any(0).sum() - defined.sum()),
                    "null": _null(units, data, grouping, groups, seed) if name in ("gap", "abs_gap") else None,
                })  # fmt: skip
            if remedy is None or name == "gap":
                continue
            direction = "lower" if name in ("abs_gap", "gini") else about.direction
            for arm in arms:
                if arm is remedy:
                    continue
                change = per_arm[remedy.name] - per_arm[arm.name]
                low, high = intervals.percentile(change[1:], confidence)
                spread = float(np.nanstd(change[1:])) if np.isfinite(change[1:]).any() else float("nan")
                differences.append({
                    "statistic": statistic if cell is None else f"{statistic}={cell}",
                    "label": _label(name, about, groups, cell), "arm": remedy.name, "against": arm.name,
                    "role": arm.role, "value": float(change[0]), "low": low, "high": high, "direction": direction,
                    "margin": about.margin, "verdict": verdict_of(low, high, direction, about.margin),
                    "smallest_detectable": 2.8 * spread, "p": _two_sided(change[1:]), "holm_p": None,
                })  # fmt: skip
    _adjust(differences)
    return {
        "n_seeds": len(units.seeds), "n_units": len(units.units), "unit_kind": units.unit_kind, "draws": draws,
        "confidence": confidence,
        "resampling": f"paired bootstrap, {draws} draws, percentile: {len(units.seeds)} seeds, then "
        f"{len(units.units)} {units.unit_kind}s, each with all its seeds",
        "levels": levels, "differences": differences,
        "verdict": _verdict(levels, differences, arms, primary, cost, title, len(units.seeds), complete),
    }  # fmt: skip


def _cell(
    samples: _Samples, known: dict[Any, Array], name: str, arm: str, metric: str, grouping: str | None,
    groups: list[str], cell: str | None,
) -> Array:  # fmt: skip
    if name in ("gap", "abs_gap"):
        first, second = (_cell(samples, known, "mean", arm, metric, grouping, groups, group) for group in groups)
        return first - second if name == "gap" else np.abs(first - second)
    key = (name, arm, metric, cell)
    if key not in known:
        mask = None if cell is None else samples.units.by[grouping or ""] == cell
        known[key] = samples.of(name, arm, metric, mask)
    return known[key]


def _label(name: str, about: Metric, groups: list[str], cell: str | None) -> str:
    title = about.title or about.name
    if name == "gap":
        return f"{title}: {groups[0]} minus {groups[1]}"
    if name == "abs_gap":
        return f"{title}: size of the gap between {groups[0]} and {groups[1]}"
    words = {"mean": "", "worst_decile": ", worst tenth", "gini": ", Gini over units"}[name]
    return f"{title}{words}{'' if cell is None else f', {cell}'}"


def _null(units: Units, data: Array, grouping: str | None, groups: list[str], seed: int) -> dict[str, float]:
    """Gap that random groups of the same sizes would show: mean size and 95 % band."""
    rng = np.random.default_rng(stream(seed, "evidence", "null"))
    labels = units.by[grouping or ""]
    ok = ~np.isnan(data)
    value = np.where(ok, data, 0.0).sum(0) / np.maximum(ok.sum(0), 1)  # mean over seeds, as the level is
    value[~ok.any(0) | (labels[0] == "")] = np.nan  # a unit without a label is in neither group
    gaps = intervals.null_gap(value, labels[0] == groups[0], 500, rng)
    low, high = intervals.percentile(gaps, CONFIDENCE)
    return {"expected_abs": float(np.abs(gaps).mean()), "low": low, "high": high}


def verdict_of(low: float, high: float, direction: str, margin: float) -> str:
    """Return helps, harms, equal (the whole interval inside the margin) or inconclusive."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "inconclusive"
    better, worse = (low > 0, high < 0) if direction == "higher" else (high < 0, low > 0)
    if better:
        return "helps"
    if worse:
        return "harms"
    return "equal" if -margin <= low and high <= margin else "inconclusive"


def _two_sided(change: Array) -> float:
    """Share of draws on the far side of zero, doubled, at least one draw."""
    defined = change[~np.isnan(change)]
    if not len(defined):
        return 1.0
    below, above = (defined <= 0).sum(), (defined >= 0).sum()
    return float(min(1.0, 2.0 * (min(below, above) + 1) / (len(defined) + 1)))


def _adjust(differences: list[dict[str, Any]]) -> None:
    for _, same in itertools.groupby(sorted(differences, key=lambda d: d["against"]), key=lambda d: d["against"]):
        rows = list(same)
        for row, p in zip(rows, intervals.holm(np.array([r.pop("p") for r in rows])), strict=True):
            row["holm_p"] = float(p)


def _gain(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the worst end and the value of a change, with the sign that makes more better."""
    return (row["low"], row["value"]) if row["direction"] == "higher" else (-row["high"], -row["value"])


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['value']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def _verdict(
    levels: list[dict[str, Any]], differences: list[dict[str, Any]], arms: Sequence[Arm], primary: str | None,
    cost: str | None, title: str, seeds: int, complete: bool,
) -> dict[str, Any]:  # fmt: skip
    named = {arm.name: arm.title or arm.name for arm in arms}
    if all(arm.role != "remedy" for arm in arms):
        gaps = [x for x in levels if x["statistic"].startswith("gap:")]
        found = [x for x in gaps if x["low"] > 0 or x["high"] < 0]
        sentence = (
            " ".join(f"{x['label']}: {_interval(x)}, outside what random groups show." if not x["null"]
                     or not x["null"]["low"] <= x["value"] <= x["null"]["high"] else
                     f"{x['label']}: {_interval(x)}, inside what random groups show." for x in found)
            or "No gap between groups is distinguishable from zero."
        )  # fmt: skip
        quiet = [f"{x['label']}: {_interval(x)}" for x in gaps if x not in found]
        return {"works": None, "word": "audit", "sentence": sentence, "cost": "", "not_significant": quiet, "notes": []}
    main = [d for d in differences if d["statistic"] == primary]
    paid = [d for d in differences if d["statistic"] == cost and d["role"] == "baseline"]
    notes: list[str] = []
    if not main:
        shown = any(x["statistic"] == primary for x in levels)
        why = "the run has no other arm to compare with" if shown else "there are not two groups"
        return {
            "works": False, "word": "inconclusive", "cost": "", "not_significant": [],
            "sentence": f"{title}: there is no gap to compare, because {why}.", "notes": notes,
        }  # fmt: skip
    words = {d["verdict"] for d in main}
    gained = [_gain(d) for d in paid]  # (worst end, value) with more being better
    affordable = bool(paid) and not (paid[0]["verdict"] == "harms" and gained[0][1] < -paid[0]["margin"])
    within = bool(paid) and (gained[0][0] >= -paid[0]["margin"] or paid[0]["verdict"] == "helps")
    roles = {d["role"] for d in main}
    enough = seeds >= 6 and complete and {"baseline", "trivial", "placebo"} <= roles
    works = words == {"helps"} and within and enough
    against_none = next((d for d in main if d["role"] == "baseline"), main[0])
    word = "works" if works else against_none["verdict"]
    beaten = [d["against"] for d in main if d["verdict"] == "helps"]
    rest = [d["against"] for d in main if d["verdict"] != "helps"]
    change = f"{against_none['label']} changes by {_interval(against_none)} against {named[against_none['against']]}"
    if works:
        sentence = f"{title} works here: {change}, and it is better than every control."
    elif rest:
        over = ", ".join(named[r] for r in rest)
        sentence = f"{title} is not shown to work: {change}; it is not shown to be better than {over}."
    elif paid and not within:
        state = "costs more than its margin" if not affordable else "may cost more than its margin"
        sentence = f"{title} closes the gap but {state}: {change}."
    else:
        lack = f"{seeds} seed{'s' * (seeds != 1)}" if seeds < 6 else "a missing control"
        over = ", ".join(named[b] for b in beaten)
        sentence = f"{title} is better than {over}, but not shown to work with {lack}: {change}."
    if seeds < 6:
        notes.append(f"{seeds} seed{'s' * (seeds != 1)}: at least 6 paired seeds are needed before anything is shown.")
    groups = [d for d in differences if d["role"] == "baseline" and primary and d["statistic"].startswith(
        "mean:" + primary.split(":", 1)[1] + "=")]  # fmt: skip
    if against_none["verdict"] == "helps" and groups and all(_gain(d)[1] <= 0 for d in groups):
        notes.append("Levelling down: the gap is smaller although no group's mean rose.")
    quiet = [
        f"{d['label']} against {named[d['against']]}: {_interval(d)} ({d['verdict']})"
        for d in differences
        if d["verdict"] in ("inconclusive", "equal") and np.isfinite(d["value"])
    ]
    return {
        "works": works, "word": word, "sentence": sentence, "notes": notes, "not_significant": quiet,
        "primary": primary, "cost_statistic": cost,
        "cost": "".join(f"{d['label']} changes by {_interval(d)} against {named[d['against']]}." for d in paid[:1]),
    }  # fmt: skip
