r"""What a forgetting desk says about a model: means with intervals, attacks, and guards. Aggregates only.

    mean_i x_i over records, percentile interval of 2,000 bootstrap draws of records

Every model meets the same draws, so differences are paired by record. The interval says how far the number would move
with other records of the same kind, not with another training run: a desk trains once.

A side with fewer than `LEAST` records is not reported: the mean of one record is the score of that record. For the same
reason there are no minima, maxima or quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import stream
from upright.data.forget import Record
from upright.language.evaluation import Reading, Speaker, score_records, utility, utility_parts
from upright.maths import intervals
from upright.metrics import forgetting, membership

__all__ = [
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


def _estimate(value: float, samples: Array, n: int) -> dict[str, Any]:
    low, high = intervals.percentile(samples, 0.95)
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
        the harmonic mean of the retain side, with ratios. ``membership``: AUC of every attack by model.
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
        values, positive = np.concatenate(sides), np.repeat([True, False], [n, m])
        first = _resampled(lambda w: w.T, n, seed, "forget").T  # (draws, n)
        second = _resampled(lambda w: w.T, m, seed, "holdout").T
        found = membership.membership_auc(*sides)
        samples = np.asarray(intervals.auc(values, np.concatenate([first, second], axis=1), positive))
        out[name] = {**_estimate(found.auc, samples, found.n_forget), "n_holdout": found.n_holdout}
        if reference is not None and reference is not one and name in reference.holdout:
            base = membership.membership_auc(reference.forget[name], reference.holdout[name])
            out[name]["privleak"] = membership.privleak(found.auc, base.auc)
    return out or None


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
    return {
        **aggregate(tables, seed=seed, name="difficulty"), "records": len(found.mrd), "clamped": found.clamped,
        "reliability": found.reliability, "scaling": found.scaling, "probes": found.probes, "passes": found.passes,
        "warnings": list(found.warnings),
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
    shown = f"AUC {found.auc:.4f}" if min(found.n_forget, found.n_holdout) >= LEAST else "AUC of too few to show"
    detail = f"{shown} of the loss attack against {what}, s.e. {found.standard_error:.4f}; far below 0.5 it fails"
    return Guard(name, "failed" if membership.over_unlearned(found) else "passed", detail)


def verdict(metrics: Mapping[str, Any], model: str) -> str:
    """Say in one sentence whether the attacks that were tried still find the records."""
    rows = (metrics.get("membership") or {}).get(model)
    if not rows:
        return f"not measured: no attack without {LEAST} held-out records, or none possible"
    known = len(still_known(metrics, model))
    return (
        f"no: {known} of {len(rows)} attacks still find the records"
        if known
        else f"none of {len(rows)} attacks finds the records"
    )


def still_known(metrics: Mapping[str, Any], model: str) -> list[str]:
    """Say which attacks tell forgotten records from held-out ones: their interval does not hold 0.5.

    Above, the records are still known. Below, they stand out as less likely, and the attack turned round finds them.
    """
    rows = (metrics.get("membership") or {}).get(model) or {}
    said = {True: "not forgotten by the attack {}", False: "less likely than unseen records by the attack {}"}
    return [
        f"{said[row['low'] > 0.5].format(name)}: AUC {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        for name, row in rows.items() if row["low"] > 0.5 or row["high"] < 0.5
    ]  # fmt: skip
