"""What every audit shares: groups, gaps among them, and the folder that a report reads.

An audit scores what a user already has. It has one arm, trains nothing and gives levels, gaps with intervals and with
what random groups would show, and the smallest gap that it could have detected.

Notation: units u = 1..U with values ``v_u`` and groups ``g_u``; ``m_g`` is the mean of the defined values of group g.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, InputError, Metric, UnitScores, stream
from upright.maths import intervals
from upright.shell.evidence import CONFIDENCE, DRAWS, evidence
from upright.shell.places import require_folder
from upright.shell.runner import _new_folder
from upright.shell.runs import RunFolder, write_json
from upright.shell.units import Block, Units, write_units

__all__ = ["AUDITS", "MIN_GROUP", "YOURS", "Audit", "gaps_among", "suppress_small", "user_draws", "write_audit"]

Array = NDArray[np.float64]
#: kind of audit -> where its function lives
AUDITS: Mapping[str, str] = {
    "ranking": "upright.shell.audit_ranking:audit_ranking",
    "embeddings": "upright.shell.audit_embeddings:audit_embeddings",
    "predictions": "upright.shell.audit_predictions:audit_predictions",
    "forgetting": "upright.shell.audit_forgetting:audit_forgetting",
}
MIN_GROUP = 5  # units; the mean of fewer says too much about each
DETECTABLE = 2.8  # standard errors: 1.96 for 5 % two-sided, 0.84 for 80 % power
YOURS = "yours"
_NULL_DRAWS = 500
_CHUNK_ELEMENTS = 1 << 23  # multiplicities held at once: 64 MB


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything about one audit but its evidence.

    Parameters
    ----------
    kind : str
        Key of `AUDITS`.
    title, asks : str
        What was audited, and what it asks about.
    arm_title : str
        How a report writes the only arm.
    data : mapping
        Name, sizes and fingerprint of what was handed in.
    passed, resolved : mapping
        Settings as given and with defaults.
    scores : UnitScores
        Values per unit. The first grouping is the one whose gaps are reported.
    metrics : mapping of name to Metric
        Of every metric in `scores`.
    statistics : sequence of str
        Besides those of the groups, as ``name:metric``.
    compared : sequence of str
        Metrics whose groups are compared; the first decides the verdict.
    facts : mapping
        Stored as ``audit`` in ``summary.json``, after the gaps.
    more : mapping
        Further top-level blocks of ``summary.json``.
    warnings : sequence of str
    command : str
        Repeats the audit.
    evidence : mapping, optional
        Levels and verdict of an audit that is not decided by a gap; by default those of the unit table.
    others : sequence of (str, str, UnitScores)
        Name, title and scores of what is compared with, on the same units.
    """

    kind: str
    title: str
    asks: str
    arm_title: str
    data: Mapping[str, Any]
    passed: Mapping[str, Any]
    resolved: Mapping[str, Any]
    scores: UnitScores
    metrics: Mapping[str, Metric]
    statistics: Sequence[str]
    compared: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    command: str = ""
    evidence: Mapping[str, Any] | None = None
    others: Sequence[tuple[str, str, UnitScores]] = ()


def suppress_small(labels: Sequence[str], counted: NDArray[np.bool_]) -> tuple[list[str], list[str]]:
    """Take the label from units of small groups.

    Parameters
    ----------
    labels : sequence of str, shape (U,)
    counted : ndarray of bool, shape (U,)
        Units with a defined value; the others do not make a group larger.

    Returns
    -------
    labels : list of str, shape (U,)
        Empty for units of a group with fewer than `MIN_GROUP` counted units.
    suppressed : list of str
        Names of these groups.
    """
    all_labels = np.asarray(labels, dtype=str)
    names, place = np.unique(all_labels, return_inverse=True)
    size = np.bincount(place, weights=counted, minlength=len(names))
    small = [str(name) for name in names[size < MIN_GROUP] if name]
    return ["" if label in small else str(label) for label in all_labels], small


def user_draws(columns: Array, draws: int, seed: int, *name: str) -> Array:
    """Return sums of columns over resampled units, shape (1 + draws, C); row 0 is the data itself.

    ``row_d = sum_u w_du columns_u`` with multiplicities ``w_d`` of U units drawn with replacement.
    """
    rng = np.random.default_rng(stream(seed, "audit", *name))
    step = max(1, _CHUNK_ELEMENTS // max(1, len(columns)))
    parts = [columns.sum(axis=0, keepdims=True)]
    for begin in range(0, draws, step):
        _, weight = intervals.draw_weights(1, len(columns), min(step, draws - begin), rng)
        parts.append(weight @ columns)
    return np.vstack(parts)


def _ratio(top: Array, bottom: Array) -> Array:
    found: Array = np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
    return found


def _spread(samples: Array) -> float:
    """Standard error from bootstrap samples."""
    defined = samples[~np.isnan(samples)]
    return float(defined.std()) if len(defined) else math.nan


def gaps_among(
    values: Array, labels: Sequence[str], *, draws: int = DRAWS, confidence: float = CONFIDENCE, seed: int = 0
) -> dict[str, Any]:
    """Compare groups of units in one metric.

    With two groups ``gap = m_first - m_second``, in the order of their names. With more, each group against all
    others, ``m_g - m_(not g)``, and the largest ``m_a - m_b`` over pairs. The largest of several gaps is large by
    selection, so its null is the largest gap of permuted labels, and its interval is that of the pair as picked.

    Parameters
    ----------
    values : ndarray of float64, shape (U,)
        NaN where undefined.
    labels : sequence of str, shape (U,)
        Empty for units without a group, which take no part.
    draws, confidence, seed
        Of the bootstrap over units.

    Returns
    -------
    dict
        ``groups``: names. ``rows``: one comparison each with ``first``, ``second`` (None for all others), ``value``,
        ``low``, ``high``, ``standard_error``, ``smallest_detectable`` (2.8 standard errors, 80 % power at 5 %), and
        ``null`` (``expected_abs``, ``low``, ``high`` of random groups of the same sizes). ``largest``: the largest
        pair, whose null is ``expected`` and ``high`` (95th percentile); None with two groups or fewer.
    """
    group = np.asarray(labels, dtype=str)
    use = (group != "") & ~np.isnan(values)
    names, place = np.unique(group[use], return_inverse=True)
    found: dict[str, Any] = {"groups": [str(n) for n in names], "rows": [], "largest": None}
    if len(names) < 2:
        return found
    v, g = values[use], len(names)
    member = np.zeros((len(v), g))
    member[np.arange(len(v)), place] = 1.0
    sums = user_draws(np.hstack([member * v[:, None], member]), draws, seed, "gaps")
    top, bottom = sums[:, :g], sums[:, g:]
    rng = np.random.default_rng(stream(seed, "audit", "null"))
    mean = _ratio(top, bottom)

    def row(samples: Array, first: str, second: str | None) -> dict[str, Any]:
        low, high = intervals.percentile(samples[1:], confidence)
        error = _spread(samples[1:])
        return {"first": first, "second": second, "value": float(samples[0]), "low": low, "high": high,
                "standard_error": error, "smallest_detectable": DETECTABLE * error}  # fmt: skip

    for i in range(1 if g == 2 else g):
        rest = _ratio(top.sum(1) - top[:, i], bottom.sum(1) - bottom[:, i])
        null = intervals.null_gap(v, place == i, _NULL_DRAWS, rng)
        low, high = intervals.percentile(null, confidence)
        comparison = row(mean[:, i] - rest, str(names[i]), str(names[1]) if g == 2 else None)
        comparison["null"] = {"expected_abs": float(np.abs(null).mean()), "low": low, "high": high}
        found["rows"].append(comparison)
    if g > 2:
        a, b = max(itertools.permutations(range(g), 2), key=lambda pair: mean[0, pair[0]] - mean[0, pair[1]])
        size = np.bincount(place, minlength=g)
        shuffled = [np.bincount(place, weights=rng.permutation(v), minlength=g) / size for _ in range(_NULL_DRAWS)]
        ranges = np.ptp(np.array(shuffled), axis=1)
        found["largest"] = row(mean[:, a] - mean[:, b], str(names[a]), str(names[b])) | {
            "null": {"expected": float(ranges.mean()), "high": float(np.percentile(ranges, 95.0))}
        }
    return found


def write_audit(audit: Audit, out: Path, *, seed: int = 0, draws: int = DRAWS, folder: Path | None = None) -> Path:
    """Compute the evidence of an audit and write its folder.

    Parameters
    ----------
    audit : Audit
    out : Path
        Where the folder is made, as ``<date>-audit-<kind>-<data>-s<seed>``.
    seed, draws : int
        Of the bootstrap.
    folder : Path, optional
        The folder itself, instead of a new one in `out`.

    Returns
    -------
    Path
        Holds ``run.json``, ``config.json``, ``units.parquet`` and ``summary.json`` with ``kind`` ``audit``.

    Raises
    ------
    InputError
        When `folder` holds something already.
    """
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder.name} is not empty", "a new folder for an audit", "choose another folder")
    require_folder(out if folder is None else folder)
    stem = Path(str(audit.data["name"])).stem
    path = folder or _new_folder(out, f"audit-{audit.kind}", stem, seed)
    run = RunFolder(path)
    method = f"audit_{audit.kind}"
    with run.running(method=method, seed=seed, command=audit.command):
        write_json(path / "config.json", {
            "passed": audit.passed, "resolved": {"audit": audit.resolved}, "method": method, "seed": seed,
            "arms": [YOURS, *(name for name, _, _ in audit.others)],
        })  # fmt: skip
        block = Block(method, YOURS, seed, audit.scores)
        others = [Block(method, name, seed, scores) for name, _, scores in audit.others]
        write_units(path / "units.parquet", [block, *others], "test")
        found, gaps = _evidence(audit, Units([block]), draws, seed)
        arms = [{"name": name, "role": role, "title": title, "settings": {}, "notes": {}, "totals": dict(scores.totals)}
                for name, role, title, scores in ((YOURS, "baseline", audit.arm_title, audit.scores),
                                                  *((n, "reference", t, s) for n, t, s in audit.others))]  # fmt: skip
        write_json(path / "summary.json", {
            "schema": 1, "kind": "audit", "method": method, "title": audit.title, "mends": audit.asks, "seed": seed,
            "data": audit.data, "arms": arms, "warnings": list(audit.warnings), "deviations": [],
            "evidence": found, "audit": {**gaps, **audit.facts}, **audit.more,
        })  # fmt: skip
    return path


def _evidence(audit: Audit, units: Units, draws: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Levels and gaps, and the same gaps as a block of their own."""
    grouping = next(iter(audit.scores.by), None)
    labels = list(audit.scores.by[grouping]) if grouping else []
    groups = sorted(set(labels) - {""})
    if audit.evidence is not None:
        return dict(audit.evidence), {"grouping": grouping, "groups": groups, "gaps": {}}
    statistics = list(audit.statistics)
    if len(groups) > 1:
        statistics += [f"mean:{metric}:{grouping}" for metric in audit.compared]
    if len(groups) == 2:
        statistics += [f"{name}:{metric}:{grouping}" for metric in audit.compared for name in ("gap", "abs_gap")]
    arms = [Arm(YOURS, "baseline", title=audit.arm_title)]
    found = evidence(units, arms=arms, statistics=statistics, metrics=audit.metrics, draws=draws, seed=seed)
    gaps: dict[str, Any] = {"grouping": grouping, "groups": groups, "gaps": {}}
    for metric in audit.compared if len(groups) > 1 else ():
        values = np.asarray(audit.scores.values[metric], dtype=np.float64)
        one = gaps_among(values, labels, draws=draws, seed=seed)
        gaps["gaps"][metric] = {"rows": one["rows"], "largest": one["largest"]}
        if len(groups) == 2 and one["rows"]:
            for level in found["levels"]:
                if level["metric"] == metric and level["statistic"].startswith(("gap:", "abs_gap:")):
                    level["smallest_detectable"] = one["rows"][0]["smallest_detectable"]
                    level["null"] = one["rows"][0]["null"]  # of the labelled units alone
        elif len(groups) > 2:
            found["levels"] += [_versus_rest(row, metric, audit.metrics[metric], grouping, values, labels)
                                for row in one["rows"]]  # fmt: skip
    found["verdict"] |= _verdict(audit, found["levels"], groups, gaps["gaps"])
    return found, gaps


def _versus_rest(
    row: Mapping[str, Any], metric: str, about: Metric, grouping: str | None, values: Array, labels: Sequence[str]
) -> dict[str, Any]:
    """Write one group against all others as a level."""
    labelled = np.asarray(labels, dtype=str) != ""
    undefined = int((np.isnan(values) & labelled).sum())
    return {
        "statistic": f"gap:{metric}:{grouping}", "label": f"{about.title or metric}: {row['first']} minus all others",
        "metric": metric, "grouping": grouping, "group": row["first"], "arm": YOURS, "value": row["value"],
        "low": row["low"], "high": row["high"], "n_units": int(labelled.sum()) - undefined, "n_undefined": undefined,
        "null": row["null"], "smallest_detectable": row["smallest_detectable"],
    }  # fmt: skip


def _verdict(
    audit: Audit, levels: Sequence[Mapping[str, Any]], groups: Sequence[str], gaps: Mapping[str, Any]
) -> dict[str, Any]:
    """Return sentence and notes for the number of groups that there are."""
    metric = audit.compared[0]
    title = audit.metrics[metric].title or metric
    if len(groups) < 2:
        mean = next(x for x in levels if x["statistic"] == f"mean:{metric}")
        what = "No groups were given" if not audit.scores.by else "Fewer than two groups can be compared"
        if math.isnan(mean["value"]):
            sentence = f"{title} is undefined for every {audit.scores.unit_kind}."
            return {"sentence": sentence, "not_significant": [], "notes": []}
        sentence = (
            f"{title} is {mean['value']:.4f} [{mean['low']:.4f}, {mean['high']:.4f}]. {what}, so no gap is stated."
        )
        least = DETECTABLE * (mean["high"] - mean["low"]) / (2 * 1.96)  # from the width of the interval
        note = f"The smallest distance of {title} from a fixed value that could have been shown is about {least:.4f}"
        return {"sentence": sentence, "not_significant": [], "notes": [f"{note} (80 % power, 5 % two-sided)."]}
    rows = gaps[metric]["rows"]
    if not rows:
        sentence = f"{title} is defined in fewer than two groups, so no gap is stated."
        return {"sentence": sentence, "not_significant": [], "notes": []}
    if len(groups) == 2:
        note = f"The smallest gap in {title} that these groups could have shown is {rows[0]['smallest_detectable']:.4f}"
        return {"notes": [f"{note} (80 % power, 5 % two-sided)."]}
    top = gaps[metric]["largest"]
    if top is None:
        return {"sentence": f"{title} is defined in two of {len(groups)} groups.", "notes": [], "not_significant": []}
    side = "outside" if top["value"] > top["null"]["high"] else "inside"
    quiet = [f"{x['label']}: {x['value']:+.4f} [{x['low']:+.4f}, {x['high']:+.4f}]" for x in levels
             if x["statistic"].startswith("gap:") and x["low"] <= 0 <= x["high"]]  # fmt: skip
    return {
        "sentence": f"Largest of the gaps in {title} among {len(groups)} groups: {top['first']} minus {top['second']}, "
        f"{top['value']:+.4f} [{top['low']:+.4f}, {top['high']:+.4f}]; that is {side} what random groups of these "
        f"sizes show (on average {top['null']['expected']:.4f}, in 95 % of cases below {top['null']['high']:.4f}).",
        "not_significant": quiet,
        "notes": [f"The smallest gap in {title} between these two groups that could have been shown is "
                  f"{top['smallest_detectable']:.4f} (80 % power, 5 % two-sided)."],
    }  # fmt: skip
