"""What a forgetting desk says about a model: means with intervals, attacks, and guards. Aggregates only.

Intervals are those of `upright.evidence`: records are drawn, those of one author together, and every model meets the
same draws, so differences are paired by record. An interval says how far a number would move with other records of the
same kind, not with another training run: a desk trains once.

A side with fewer than `LEAST` records is not reported: the mean of one record is the score of that record. For the same
reason there are no minima, maxima or quantiles.

Attacks are judged together (`upright.metrics.membership`), with a reference by what goes beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import UnitScores
from upright.data.forget import Record
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.statistics import SET, computable, parse
from upright.evidence.units import Block, Units
from upright.language.evaluation import Reading, Speaker, score_records, utility, utility_parts
from upright.maths.resampling import Draws
from upright.maths.simultaneous import Comparisons
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
    "limits_of",
    "look",
    "still_known",
    "verdict",
]

Array = NDArray[np.float64]
LEAST = 5
"""Fewest records whose aggregate is reported."""
ENOUGH = 10
"""Fewest forgotten and fewest held-out records for a verdict of attacks."""
_ERRORS = 3.0  # standard errors below 1/2 that count as over-unlearned
_SIDES = ("forget", "retain", "holdout")


@dataclass(frozen=True)
class Look:
    """Scores of one model, one a record; stays inside the process.

    Parameters
    ----------
    forget, retain, holdout : dict of str to ndarray, shape (n,)
        Of `score_records`; empty where no such records were given.
    reading : Reading
        Of the forget records.
    authors : dict of side to sequence of str
        Whom each record is about; a side that is not there has none.
    """

    forget: Mapping[str, Array]
    reading: Reading
    retain: Mapping[str, Array] = field(default_factory=dict)
    holdout: Mapping[str, Array] = field(default_factory=dict)
    authors: Mapping[str, Sequence[str]] = field(default_factory=dict)


def look(
    speaker: Speaker,
    forget: Sequence[Record],
    *,
    retain: Sequence[Record] = (),
    holdout: Sequence[Record] = (),
    reference: Reading | None = None,
    rouge: bool = True,
    more: Mapping[str, Mapping[str, Array]] | None = None,
) -> Look:
    """Score a model on what it should forget, on what it should keep, and on what it never saw.

    Parameters
    ----------
    more : mapping of side to mapping of str to ndarray, shape (n,), optional
        Scores of other attacks on the same model, named ``mia_``: they are judged together with the rest.

    Raises
    ------
    InputError
        As for `score_records`.
    """
    reading = speaker.read(forget)
    own = score_records(speaker, forget, side="forget", reading=reading, reference=reference, rouge=rouge)
    kept = score_records(speaker, retain, side="retain", rouge=rouge) if retain else {}
    unseen = score_records(speaker, holdout, side="holdout") if holdout else {}
    sides = zip(_SIDES, (forget, retain, holdout), strict=True)
    own, kept, unseen = (
        {**scores, **(more or {}).get(side, {})} for side, scores in zip(_SIDES, (own, kept, unseen), strict=True)
    )
    return Look(own, reading, kept, unseen, {side: [r.author for r in records] for side, records in sides})


def limits_of(one: Look) -> list[str]:
    """Say of which sides the authors are too few to stand for others."""
    _, few = membership.author_clusters(one.authors)
    sides = " and ".join(f"the {side} records" for side in few)
    return [f"{sides} are of fewer than 6 authors: intervals are of other records of these authors"] if few else []


# -- intervals ------------------------------------------------------------------------------------------------------


def _unit_table(models: Mapping[str, Mapping[str, Mapping[str, Array]]], authors: Mapping[str, Sequence[str]]) -> Units:
    """Return the table of models, of each the scores of each side, and what records are drawn with."""
    sizes = {side: len(next(iter(scores.values()), ())) for side, scores in next(iter(models.values())).items()}
    sets = [side for side, n in sizes.items() for _ in range(n)]
    cluster, _ = membership.author_clusters({side: authors.get(side) or [""] * n for side, n in sizes.items()})
    blocks = []
    for name, own in models.items():
        metrics = dict.fromkeys(m for scores in own.values() for m in scores)
        parts = {m: [own[side].get(m, np.full(n, np.nan)) for side, n in sizes.items()] for m in metrics}
        values = {m: np.concatenate(part) for m, part in parts.items()}
        scores = UnitScores("record", range(len(sets)), values, {SET: sets}, cluster=cluster)
        blocks.append(Block("desk", name, 0, scores))
    return Units(blocks)


def _estimate(drawn: Draws, n: int) -> dict[str, Any] | None:
    low, high = drawn.interval()
    return {"value": drawn.value, "low": low, "high": high, "n": n} if n >= LEAST else None


def _means(boot: Bootstrap, metric: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the mean of every model and of every pair of models, None where fewer than `LEAST` values are defined."""
    one, arms = parse(f"mean:{metric}", boot, {}), boot.units.arms
    known = {name: one.count(name, None)[0] for name in arms}
    drawn = {name: one.draws(name, None) for name in arms}
    found = {name: _estimate(drawn[name], int(known[name].sum())) for name in arms}
    for a, b in pairs:
        found[f"{a} - {b}"] = _estimate(drawn[a] - drawn[b], int((known[a] & known[b]).sum()))
    return found


def aggregate(values: Mapping[str, Array], *, seed: int, authors: Sequence[str] = ()) -> dict[str, Any]:
    """Return the mean of each named table (n,) with its interval, None where fewer than `LEAST` values are defined."""
    if not values:
        return {}
    boot = Bootstrap(_unit_table({"own": {"forget": values}}, {"forget": authors}), seed=seed)
    return {name: _means(boot, name, [])["own"] for name in values}


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
    scores = {name: {side: getattr(one, side) for side in _SIDES} for name, one in looks.items()}
    boot = Bootstrap(_unit_table(scores, looks[own].authors), seed=seed)
    out: dict[str, Any] = {}
    for side in ("forget", "retain"):
        metrics = [m for m in getattr(looks[own], side) if not m.startswith("mia_")]
        out[side] = {metric: _means(boot, metric, pairs) for metric in metrics}
    out["utility"] = _utilities(boot, pairs)
    out["membership"] = {name: _attacks(looks[name], name, boot) for name in looks}
    out["forget_quality"] = _quality(looks[own], looks.get("reference"))
    return out


def _utilities(boot: Bootstrap, pairs: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """Harmonic mean of the retain-side means that are defined, and its ratios; None without enough retained records."""
    arms = boot.units.arms
    if not computable("utility:retain", boot.units):
        return None
    one = parse("utility:retain", boot, {})
    drawn, n = {name: one.draws(name, None) for name in arms}, int(one.count(arms[0], None)[0].sum())
    out: dict[str, Any] = {name: _estimate(drawn[name], n) for name in arms}
    for a, b in pairs:
        (top, up), (bottom, down) = ((d.value, d.value + d.units) for d in (drawn[a], drawn[b]))
        if bottom > 0 and np.nanmin(down) > 0:  # one seed: all draws are of records
            out[f"{a} / {b}"] = _estimate(replace(drawn[a], value=top / bottom, units=up / down - top / bottom), n)
    return {"parts": list(one.facts(arms[0], None)["parts"]), **out} if n >= LEAST else None


def _attacks(one: Look, arm: str, boot: Bootstrap) -> dict[str, Any] | None:
    """AUC of every attack, forgotten against held-out records; None where either side has fewer than `LEAST`."""
    names = [name for name in one.holdout if name in one.forget]
    sides = [(np.isfinite(one.forget[name]).sum(), np.isfinite(one.holdout[name]).sum()) for name in names]
    if not names or min(map(min, sides)) < LEAST:
        return None

    def rows(found: Comparisons, middle: float = 0.0) -> list[dict[str, Any]]:
        ends = np.clip(np.stack([found.value, found.low, found.high], axis=1) + middle, middle - 1, 1).tolist()
        return [{"value": v, "low": a, "high": b, "n": int(n)} for (v, a, b), (n, _) in zip(ends, sides, strict=True)]

    found = membership.compare_attacks(boot.units, names, arm, rng=boot.null_rng("membership"))
    out = dict(zip(names, rows(found, 0.5), strict=True))
    for name, (_, m), least in zip(names, sides, found.detectable.tolist(), strict=True):
        out[name] |= {"n_holdout": int(m), "smallest": least}
    if "reference" in boot.units.arms and arm != "reference":
        found = membership.compare_models(boot.units, names, arm, "reference", rng=boot.null_rng("models"))
        for name, gap, least in zip(names, rows(found), found.detectable.tolist(), strict=True):
            base = float(np.clip(out[name]["value"] - gap["value"], 0.0, 1.0))
            leak = membership.privleak(out[name]["value"], base)
            out[name] |= {"smallest": least, "privleak": leak, "gap": gap}
    return out


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


def difficulty_of(found: Any, *, seed: int, authors: Sequence[str] = ()) -> dict[str, Any]:
    """Return what of a `Difficulty` says nothing about one record."""
    tables = {
        "mrd": found.mrd,
        "mrd_per_token": found.mrd / found.tokens,
        "tokens": found.tokens.astype(np.float64),
        "nll": found.nll,
    }
    few = len(found.mrd) < LEAST  # of one record these are its own
    rest = {
        "clamped": found.clamped,
        "reliability": found.reliability,
        "scaling": found.scaling,
        "warnings": list(found.warnings),
    }
    return {
        **aggregate(tables, seed=seed, authors=authors),
        "records": len(found.mrd),
        "probes": found.probes,
        "passes": found.passes,
        **(dict.fromkeys(rest) if few else rest),
    }


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
        return Guard(
            name,
            "not checked",
            f"too few records: with {found.n_forget} forgotten and {found.n_holdout} of {what} no AUC could fail",
        )
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

    The adjusted interval of the difference to the AUC of the reference does not hold 0; without a reference, that of
    the AUC does not hold 1/2. It does hold them where the adjusted p is not below 0.05. Above, the records are still
    known. Below, they stand out: the attack turned round finds them.
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
