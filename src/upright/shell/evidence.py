"""One function for every interval, table, front and verdict: statistics of the unit table, resampled.

What a statistic is stands in `upright.shell.statistics`; here are levels, paired differences and the verdict.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, Metric
from upright.maths import intervals
from upright.shell import correlations
from upright.shell.disparities import CLIENT_NAMES
from upright.shell.statistics import BUCKETS, CONFIDENCE, CORRELATIONS, FORGETTING, LEAKS, WHOLE, Samples, parse
from upright.shell.units import Units

__all__ = ["CONFIDENCE", "DRAWS", "evidence", "verdict_of"]

Array = NDArray[np.float64]
DRAWS = 2_000


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
    complete = all(arm.name in units.arms for arm in arms if arm.role not in ("rival", "anchor", "sweep"))
    arms = [arm for arm in arms if arm.name in units.arms]
    samples = Samples(units, draws, seed)
    remedy = next((a for a in arms if a.role == "remedy"), None)
    levels: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for text in statistics:
        statistic = parse(text, units)
        if not samples.comparable(statistic):
            continue  # a gap needs two groups; with one there is nothing to compare
        groups = units.groups(statistic.grouping) if statistic.grouping else []
        about = metrics.get(statistic.metric, Metric(statistic.metric))
        for cell in samples.cells(statistic):
            if statistic.name in CORRELATIONS:
                of = [metrics.get(m, Metric(m)) for m in correlations.parts(statistic.metric)]
                label = correlations.label(*of) + ("" if cell is None else f", {cell}")
            else:
                label = statistic.label(about, groups, cell)
            # a correlation of scores is one of records, not of what an arm made of them: one arm says it
            shown = [remedy or arms[0]] if statistic.name in CORRELATIONS else arms
            per_arm = {arm.name: samples.of(statistic, arm.name, cell) for arm in shown}
            for arm in shown:
                own = per_arm[arm.name]
                low, high = intervals.percentile(own[1:], confidence)
                n, undefined = samples.defined(statistic, arm.name, cell)
                levels.append({
                    "statistic": text, "label": label, "metric": statistic.metric, "grouping": statistic.grouping,
                    "group": cell, "arm": arm.name, "value": float(own[0]), "low": low, "high": high, "n_units": n,
                    "n_undefined": undefined, "null": samples.null(statistic, arm.name, cell),
                })  # fmt: skip
                if statistic.name in LEAKS and cell is None:
                    attack = samples.strongest(statistic, arm.name)
                    levels[-1] |= {"attack": attack.removeprefix(statistic.metric + "/"),
                                   "per_seed": samples.per_seed(statistic, arm.name)}  # fmt: skip
                if statistic.name in CLIENT_NAMES:
                    clients, out = samples.disparities.clients(statistic.metric, str(statistic.grouping), arm.name)
                    levels[-1] |= {"n_clients": clients, "n_clients_left_out": out}
                if statistic.name in FORGETTING:
                    levels[-1] |= samples.forgetting.details(statistic.name, statistic.metric, statistic.grouping,
                                                             arm.name, cell, confidence)  # fmt: skip
            if remedy is None or statistic.name in ("gap", "forget_quality", *CORRELATIONS):
                continue  # no better direction, or no draws
            direction = statistic.direction(about)
            for arm in arms:
                if arm is remedy or arm.role in ("anchor", "sweep"):
                    continue
                change = per_arm[remedy.name] - per_arm[arm.name]
                low, high = intervals.percentile(change[1:], confidence)
                spread = float(np.nanstd(change[1:])) if np.isfinite(change[1:]).any() else float("nan")
                differences.append({
                    "statistic": text if cell is None else f"{text}={cell}", "label": label, "arm": remedy.name,
                    "against": arm.name, "role": arm.role, "value": float(change[0]), "low": low, "high": high,
                    "direction": direction, "margin": about.margin,
                    "verdict": verdict_of(low, high, direction, about.margin),
                    "smallest_detectable": 2.8 * spread, "p": _two_sided(change[1:]), "holm_p": None,
                })  # fmt: skip
    _adjust(differences)
    grouped = f" in {BUCKETS} random groups" if len(units.units) > WHOLE else ""
    return {
        "n_seeds": len(units.seeds), "n_units": len(units.units), "unit_kind": units.unit_kind, "draws": draws,
        "confidence": confidence,
        "resampling": f"paired bootstrap, {draws} draws, percentile: {len(units.seeds)} "
        f"seed{'s' * (len(units.seeds) != 1)}, then {len(units.units)} {units.unit_kind}s{grouped}, each "
        "with all its seeds",
        "levels": levels, "differences": differences,
        "verdict": _verdict(levels, differences, arms, primary, cost, title, len(units.seeds), complete),
    }  # fmt: skip


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
    everybody = [d for d in differences if d["statistic"] == primary]
    main = [d for d in everybody if d["role"] != "rival"]  # another remedy may be as good; a control may not
    paid = [d for d in differences if d["statistic"] == cost and d["role"] == "baseline"]
    notes: list[str] = []
    if not main:
        shown = any(x["statistic"] == primary for x in levels)
        why = "the run has no other arm to compare with" if shown else "there are not two groups"
        return {
            "works": False, "word": "inconclusive", "cost": "", "not_significant": [],
            "sentence": f"{title}: there is nothing to compare, because {why}.", "notes": notes,
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
        gain = "closes the gap" if str(primary).startswith("abs_gap") else "is better than every control"
        sentence = f"{title} {gain} but {state}: {change}."
    else:
        lack = f"{seeds} seed{'s' * (seeds != 1)}" if seeds < 6 else "a missing control"
        over = ", ".join(named[b] for b in beaten)
        sentence = f"{title} is better than {over}, but not shown to work with {lack}: {change}."
    if seeds < 6:
        notes.append(f"{seeds} seed{'s' * (seeds != 1)}: at least 6 paired seeds are needed before anything is shown.")
    notes += [f"Against the rival {named[d['against']]}: {d['label']} {_interval(d)} ({d['verdict']})."
              for d in everybody if d["role"] == "rival"]  # fmt: skip
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
