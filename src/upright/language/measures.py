r"""What a forgetting desk says about a model: means with intervals, attacks, and guards. Aggregates only.

    mean_i x_i over records, percentile interval of 2,000 bootstrap draws of records

Every model meets the same draws, so differences are paired by record. The interval says how far the number would move
with other records of the same kind, not with another training run: a desk trains once.

A side with fewer than `LEAST` records is not reported: the mean of one record is the score of that record. For the same
reason there are no minima, maxima or quantiles.

Attacks are judged together: each of `k` intervals has the level ``1 - 0.05 / k`` (Bonferroni). With a reference the
judge is the difference of the two AUC over the same draws: held-out records are seldom of quite the same kind as the
forgotten ones, and then a model that was retrained without the records has an AUC off 1/2 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import stream
from upright.data.forget import Record
from upright.language.evaluation import Reading, Speaker, score_records, utility, utility_parts
from upright.maths import intervals
from upright.metrics import forgetting, membership

__all__ = [
    "ENOUGH",
    "LEAST",
    "Guard",
    "Look",
    "aggregate",
    "compared",
    "difficulty_of",
    "guards",
    "look",
    "still_known",
    "verdict",
]

Array = NDArray[np.float64]
LEAST = 5
"""Fewest records whose aggregate is reported."""
ENOUGH = 10
"""Fewest forgotten and fewest held-out records for a verdict of attacks."""
_ALPHA, _POWER = 0.05, 0.8
_ERRORS = 3.0  # standard errors below 1/2 that count as over-unlearned
_DRAWS = 2000
_BLOCK = 1 << 22  # numbers of one block of weights


@dataclass(frozen=True)
class Look:
    """Scores of one model, one a record; stays inside the process.

    Parameters
    ----------
    forget, retain, holdout : dict of str to ndarray, shape (n,)
        Of `score_records`; empty where no such records were given.
    reading : Reading
        Of the forget records.
    """

    forget: Mapping[str, Array]
    reading: Reading
    retain: Mapping[str, Array] = field(default_factory=dict)
    holdout: Mapping[str, Array] = field(default_factory=dict)


def look(
    speaker: Speaker, forget: Sequence[Record], *, retain: Sequence[Record] = (), holdout: Sequence[Record] = (),
    reference: Reading | None = None, rouge: bool = True,
) -> Look:  # fmt: skip
    """Score a model on what it should forget, on what it should keep, and on what it never saw.

    Raises
    ------
    InputError
        As for `score_records`.
    """
    reading = speaker.read(forget)
    own = score_records(speaker, forget, side="forget", reading=reading, reference=reference, rouge=rouge)
    kept = score_records(speaker, retain, side="retain", rouge=rouge) if retain else {}
    unseen = score_records(speaker, holdout, side="holdout") if holdout else {}
    return Look(own, reading, kept, unseen)


# -- intervals ------------------------------------------------------------------------------------------------------


def _resampled(statistic: Callable[[Array], Array], n: int, seed: int, name: str) -> Array:
    """Apply ``statistic(weights (d, n)) -> (..., d)`` to resampled records, a block at a time; shape (..., draws)."""
    rng = np.random.default_rng(stream(seed, "desk", name))
    step, parts = max(1, _BLOCK // n), []
    for begin in range(0, _DRAWS, step):
        weights = np.empty((min(step, _DRAWS - begin), n))
        intervals.fill_multiplicities(weights, rng)
        parts.append(statistic(weights))
    return np.concatenate(parts, axis=-1)


def _estimate(value: float, samples: Array, n: int, confidence: float = 1 - _ALPHA) -> dict[str, Any]:
    low, high = intervals.percentile(samples, confidence)
    return {"value": float(value), "low": low, "high": high, "n": n}


def aggregate(values: Mapping[str, Array], *, seed: int, name: str) -> dict[str, Any]:
    """Return the mean of each named table (n,) with its interval, None where fewer than `LEAST` values are defined."""
    out: dict[str, Any] = {}
    for key, table in values.items():
        known = forgetting.mean_of(table)
        if known.n < LEAST:
            out[key] = None
            continue
        samples = _resampled(lambda w, v=table: np.asarray(intervals.mean(v, w)), len(table), seed, name)  # type: ignore[misc]
        out[key] = _estimate(known.value, samples, known.n)
    return out


def compared(looks: Mapping[str, Look], *, seed: int) -> dict[str, Any]:
    """Return aggregates of several models, and of differences of the last one of them that is not the reference.

    Parameters
    ----------
    looks : mapping of str to Look
        In order, for example ``before``, ``after`` and ``reference``.

    Returns
    -------
    dict
        ``forget`` and ``retain``: by metric, by model and difference, value, low, high and n. ``utility``: the same of
        the harmonic mean of the retain side, with ratios. ``membership``: AUC of every attack by model, with ``gap``,
        the difference to the reference, and ``smallest``, the distance from 1/2 or from the reference that so many
        records show in four of five cases.
        ``forget_quality``: p and distance to the reference. None where it cannot be had.
    """
    own = [name for name in looks if name != "reference"][-1]
    pairs = [(own, other) for other in looks if other != own]
    out: dict[str, Any] = {}
    for side in ("forget", "retain"):
        tables = {
            name: {m: v for m, v in getattr(one, side).items() if not m.startswith("mia_")}
            for name, one in looks.items()
        }
        tables |= {
            f"{a} - {b}": {m: tables[a][m] - tables[b][m] for m in tables[a] if m in tables[b]} for a, b in pairs
        }
        found = {name: aggregate(values, seed=seed, name=side) for name, values in tables.items()}
        out[side] = {metric: {name: found[name].get(metric) for name in found} for metric in tables[own]}
    out["utility"] = _utilities(looks, pairs, seed)
    out["membership"] = {name: _attacks(one, looks.get("reference"), seed) for name, one in looks.items()}
    out["forget_quality"] = _quality(looks[own], looks.get("reference"))
    return out


def _utilities(looks: Mapping[str, Look], pairs: Sequence[tuple[str, str]], seed: int) -> dict[str, Any] | None:
    """Harmonic mean of the retain-side means that are defined, and its ratios; None without enough retained records."""
    first = next(iter(looks.values()))
    parts = utility_parts(first.retain)
    if not parts or len(first.retain[parts[0]]) < LEAST:
        return None
    n = len(first.retain[parts[0]])

    def harmonic(values: Mapping[str, Array]) -> Callable[[Array], Array]:
        def statistic(weights: Array) -> Array:
            means = np.stack([np.asarray(intervals.mean(values[p], weights)) for p in parts])  # (parts, draws)
            with np.errstate(divide="ignore"):
                return np.asarray(len(parts) / (1.0 / means).sum(axis=0))

        return statistic

    points = {name: utility({p: one.retain[p] for p in parts}) for name, one in looks.items()}
    draws = {name: _resampled(harmonic(one.retain), n, seed, "retain") for name, one in looks.items()}
    out: dict[str, Any] = {name: _estimate(points[name], draws[name], n) for name in looks}
    for a, b in pairs:
        if points[b] > 0 and (draws[b] > 0).all():
            out[f"{a} / {b}"] = _estimate(points[a] / points[b], draws[a] / draws[b], n)
    return {"parts": list(parts), **out}


def _attacks(one: Look, reference: Look | None, seed: int) -> dict[str, Any] | None:
    """AUC of every attack, forgotten against held-out records; None where either side has fewer than `LEAST`."""
    names = [name for name in one.holdout if name in one.forget]
    out: dict[str, Any] = {}
    for name in names:
        sides = one.forget[name], one.holdout[name]
        n, m = (len(side) for side in sides)
        if min(n, m) < LEAST:
            return None
        weights = np.concatenate(
            [_resampled(lambda w: w.T, size, seed, side).T for size, side in ((n, "forget"), (m, "holdout"))], axis=1
        )  # (draws, n + m)
        positive, level = np.repeat([True, False], [n, m]), 1 - _ALPHA / len(names)
        found = membership.membership_auc(*sides)
        samples = np.asarray(intervals.auc(np.concatenate(sides), weights, positive))
        row = {**_estimate(found.auc, samples, found.n_forget, level), "n_holdout": found.n_holdout,
               "smallest": _smallest(found.standard_error, len(names))}  # fmt: skip
        if reference is not None and reference is not one and name in reference.holdout:
            other = reference.forget[name], reference.holdout[name]
            base = membership.membership_auc(*other)
            row["privleak"] = membership.privleak(found.auc, base.auc)
            gaps = samples - np.asarray(intervals.auc(np.concatenate(other), weights, positive))
            row["gap"] = _estimate(found.auc - base.auc, gaps, found.n_forget, level)
        out[name] = row
    return out or None


def _smallest(standard_error: float, attacks: int) -> float:
    """Distance of an AUC that one of so many attacks finds in four of five cases; 2.8 standard errors for one attack.

    The standard error is that of an AUC of 1/2; a difference to another model over the same records has about the same.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - _ALPHA / (2 * attacks)) + normal.inv_cdf(_POWER)) * standard_error


def _quality(own: Look, reference: Look | None) -> dict[str, Any] | None:
    """Kolmogorov-Smirnov test of the truth ratios against the reference; None where there are too few."""
    key = "forget_truth_probability"  # 1 / (1 + r): the test reads ranks alone, so it is that of r
    if reference is None or key not in own.forget or key not in reference.forget:
        return None
    tables = own.forget[key], reference.forget[key]
    if min(forgetting.mean_of(one).n for one in tables) < LEAST:
        return None
    found = forgetting.forget_quality(*tables)
    return {"p": found.p, "distance": found.distance, "n": found.n_model}


def difficulty_of(found: Any, *, seed: int) -> dict[str, Any]:
    """Return what of a `Difficulty` says nothing about one record."""
    tables = {"mrd": found.mrd, "mrd_per_token": found.mrd / found.tokens, "tokens": found.tokens.astype(np.float64),
              "nll": found.nll}  # fmt: skip
    few = len(found.mrd) < LEAST  # of one record these are its own
    rest = {"clamped": found.clamped, "reliability": found.reliability, "scaling": found.scaling,
            "warnings": list(found.warnings)}  # fmt: skip
    return {
        **aggregate(tables, seed=seed, name="difficulty"), "records": len(found.mrd), "probes": found.probes,
        "passes": found.passes, **(dict.fromkeys(rest) if few else rest),
    }  # fmt: skip


# -- guards ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guard:
    """One condition that a request must meet.

    Parameters
    ----------
    name : str
    state : {"passed", "failed", "not checked"}
    detail : str
        The numbers, or why it was not checked.
    """

    name: str
    state: str
    detail: str


def guards(before: Look, after: Look, reference: Look | None, *, utility_floor: float) -> list[Guard]:
    """Check utility and over-unlearning.

    ``utility_after >= utility_floor * utility_before``, and not `over_unlearned`: forgotten records that are *less*
    likely than unseen ones are as conspicuous as records that are still known. Unseen are held-out records under the
    new model or, where there are none, the forgotten records under a model that never saw them.

    Parameters
    ----------
    utility_floor : float
        In [0, 1].
    """
    return [_floor(before, after, utility_floor), _over(after, reference)]


def _floor(before: Look, after: Look, floor: float) -> Guard:
    name = "utility floor"
    if not utility_parts(before.retain):
        return Guard(name, "not checked", "no retained records")
    parts = utility_parts(before.retain)
    old, new = (utility({p: one.retain[p] for p in parts}) for one in (before, after))
    numbers = f"utility {old:.4f} before, {new:.4f} after, " if len(before.retain[parts[0]]) >= LEAST else ""
    return Guard(name, "passed" if new >= floor * old else "failed", f"{numbers}floor {floor:g} of it")


def _over(after: Look, reference: Look | None) -> Guard:
    name, own = "over-unlearning", after.forget["mia_loss"]
    if "mia_loss" in after.holdout:
        other, what = after.holdout["mia_loss"], "held-out records"
    elif reference is not None:
        other, what = reference.forget["mia_loss"], "the same records under the reference"
    else:
        return Guard(name, "not checked", "neither held-out records nor a reference model: pass one of them")
    found = membership.membership_auc(own, other)
    if _ERRORS * found.standard_error >= 0.5:  # no AUC is so far below 1/2
        return Guard(name, "not checked", f"too few records: with {found.n_forget} forgotten and {found.n_holdout} of "
                     f"{what} no AUC could fail")  # fmt: skip
    shown = f"AUC {found.auc:.4f}" if min(found.n_forget, found.n_holdout) >= LEAST else "AUC of too few to show"
    low = membership.over_unlearned(found, z=_ERRORS)
    said = f"{'far' if low else 'not'} below the level of unseen records: {shown} of the loss attack against {what}"
    return Guard(name, "failed" if low else "passed", f"{said}, s.e. {found.standard_error:.4f}")


def verdict(metrics: Mapping[str, Any], model: str) -> str:
    """Say in one sentence whether the attacks find the records and what they could have found; not with too few."""
    rows = (metrics.get("membership") or {}).get(model)
    if not rows:
        return f"not measured: no attack without {LEAST} held-out records, or none possible"
    judged = _judged(metrics, model)
    if not judged:
        return f"not measured: too few records, {ENOUGH} forgotten and {ENOUGH} held-out ones are needed"
    known, k, least = len(still_known(metrics, model)), len(judged), max(r["smallest"] for r in judged.values())
    said = f"no: {known} of {k} attacks still find the records" if known else f"none of {k} attacks finds the records"
    paired = any(row.get("gap") for row in judged.values())
    what = f"difference in AUC to the reference of {least:.2f}" if paired else f"AUC of {min(0.5 + least, 1.0):.2f}"
    return f"{said}; the smallest that so many records could have shown: about {what}"


def _judged(metrics: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Attacks on a model with enough records for a verdict."""
    rows = (metrics.get("membership") or {}).get(model) or {}
    return {name: row for name, row in rows.items() if min(row["n"], row["n_holdout"]) >= ENOUGH}


def still_known(metrics: Mapping[str, Any], model: str) -> list[str]:
    """Say which attacks tell forgotten records from held-out ones.

    The interval of the difference to the AUC of the reference does not hold 0; without a reference, that of the AUC
    does not hold 1/2. Above, the records are still known. Below, they stand out: the attack turned round finds them.
    """
    out = []
    for name, row in _judged(metrics, model).items():
        gap, middle = (row["gap"], 0.0) if row.get("gap") else (row, 0.5)
        said = "not forgotten by the attack" if gap["low"] > middle else "less likely than unseen records by the attack"
        if gap["low"] > middle or gap["high"] < middle:
            against = f", {_short(gap)} against the reference" if row.get("gap") else ""
            out.append(f"{said} {name}: AUC {_short(row)}{against}")
    return out


def _short(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
