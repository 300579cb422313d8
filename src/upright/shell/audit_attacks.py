r"""Numbers and words of an audit by attacks: leakage with intervals, what permuted labels show, the verdict.

`assess` equals `upright.metrics.privacy.attribute_inference` on scores that are kept, and adds:

====================  =============================================================================================
``worst``             attack with the largest ``max_c |AUC_c - 1/2|``, with its interval
``detectable``        ``q + 0.84 s``: q the 95 % quantile of the strongest attack under permuted labels, s the root
                      mean square of that attack's leakage under them, for two classes the standard error of its AUC
====================  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from upright.contract import stream
from upright.maths.intervals import draw_weights, percentile
from upright.metrics.attacks import AttackScores, Coded
from upright.metrics.leakage import balanced_accuracy, class_aucs, p_value, permuted, resampled
from upright.metrics.privacy import AttackRow, AttributeInference
from upright.shell.audit import YOURS
from upright.shell.evidence import CONFIDENCE

__all__ = [
    "GROUPING",
    "LEVEL",
    "Found",
    "assess",
    "attacks_of",
    "cell_of",
    "levels_of",
    "values_of",
    "verdict_of",
    "words",
]

Array = NDArray[np.float64]
GROUPING = "attribute"
LEVEL = 0.05  # of the null of the strongest attack
WHO = {"logistic": "logistic regression", "mlp": "a neural network", "gbdt": "boosted trees"}
HOW = {"cross": "cross-fitted", "transfer": "trained on aligned users"}
_POWER = 0.84  # standard errors above the threshold, for 80 % power
_CHUNK = 1 << 22  # weights held at once


# -- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """What attacks say, and what they say under permuted labels."""

    inference: AttributeInference
    null: Array  # (attacks, permutations)
    detectable: float
    worst: AttackRow  # largest leakage of one class
    worst_low: float
    worst_high: float


def assess(found: Sequence[AttackScores], coded: Coded, draws: int, permutations: int, seed: int) -> Found:
    """Return what `attribute_inference` returns, from scores that are kept, and what a verdict needs besides."""
    rows = np.flatnonzero(found[0].fold >= 0)
    aucs, leaks = resampled(found, coded, rows, draws, stream(seed, "attack", "bootstrap"))
    null = permuted(found, coded, rows, permutations, stream(seed, "attack", "permutations"))
    table = []
    for a, one in enumerate(found):
        each = class_aucs(one, coded, rows, np.ones((rows.size, 1)))[:, 0]
        gap = np.abs(each - 0.5)
        table.append(AttackRow(
            one.surface, one.attacker, one.protocol, dict(zip(coded.classes, each.tolist(), strict=True)),
            float(each.mean()), float(gap.mean()), float(gap.max()), balanced_accuracy(one, coded, rows),
            *percentile(aucs[a], CONFIDENCE), *percentile(leaks[a], CONFIDENCE), p_value(null[a], float(gap.mean())),
            one.converged, rows.size,
        ))  # fmt: skip
    counts = np.bincount(coded.code[rows], minlength=len(coded.classes))
    highest = null.max(axis=0)
    inference = AttributeInference(
        tuple(table), float(counts.max() / counts.sum()), coded.classes, tuple(counts.tolist()), rows.size,
        int((coded.code >= 0).sum()) - rows.size,
        {"expected": float(highest.mean()), "high": float(np.quantile(highest, 1 - LEVEL))},
        p_value(highest, max(row.leakage for row in table)),
    )  # fmt: skip
    strongest = max(range(len(table)), key=lambda a: table[a].leakage)
    alone = float(np.sqrt(np.mean(null[strongest] ** 2)))  # for two classes the standard error of the AUC
    worst = max(range(len(table)), key=lambda a: table[a].worst)
    ends = percentile(_worst(found[worst], coded, rows, draws, stream(seed, "attack", "bootstrap")), CONFIDENCE)
    return Found(inference, null, inference.null["high"] + _POWER * alone, table[worst], *ends)


def _worst(one: AttackScores, coded: Coded, rows: NDArray[np.int64], draws: int, seed: int) -> Array:
    """Leakage of the worst class of one attack under resampled users, shape (draws,)."""
    rng, step = np.random.default_rng(seed), max(1, _CHUNK // rows.size)
    parts = []
    for begin in range(0, draws, step):
        weights = np.ascontiguousarray(draw_weights(1, rows.size, min(step, draws - begin), rng)[1].T)
        parts.append(np.abs(class_aucs(one, coded, rows, weights) - 0.5).max(axis=0))
    return np.concatenate(parts)


def _ranks_in_fold(one: AttackScores) -> Array:
    """Mid-ranks of each class's scores inside a fold, scaled to (0, 1); NaN for users that are not scored; (U, C)."""
    found = np.full(one.scores.shape, np.nan)
    for f in np.unique(one.fold[one.fold >= 0]):
        rows = np.flatnonzero(one.fold == f)
        found[rows] = (rankdata(one.scores[rows], axis=0) - 0.5) / len(rows)
    return found


def values_of(found: Sequence[AttackScores], classes: Sequence[str]) -> dict[str, Array]:
    """Return one metric for each attack and class; of two classes the second says all."""
    kept = range(1 if len(classes) == 2 else 0, len(classes))
    ranks = {f"attack/{a.surface}/{a.attacker}/{a.protocol}": _ranks_in_fold(a) for a in found}
    return {f"{name}/{classes[c]}": table[:, c] for name, table in ranks.items() for c in kept}


# -- words ----------------------------------------------------------------------------------------------------------


def cell_of(row: AttackRow) -> str:
    """Return the name of an attack in statistics and metrics."""
    return f"{row.surface}/{row.attacker}/{row.protocol}"


def words(row: AttackRow) -> str:
    """Return the name of an attack in sentences."""
    return f"{WHO.get(row.attacker, row.attacker)} on {row.surface} ({HOW[row.protocol]})"


def levels_of(found: Found, attribute: str, n_aligned: int) -> list[dict[str, Any]]:
    """Leakage of the strongest attack and of each attack, then of the worst class, as a report reads them."""
    inference = found.inference
    top = inference.worst()

    def level(name: str, group: str | None, row: AttackRow, *numbers: float, null: Any, least: float | None) -> Any:
        value, low, high = numbers
        what = "strongest attack" if group is None else group
        return {
            "statistic": f"{name}:attack:{GROUPING}",
            "label": f"Leakage of {attribute}{', worst class' if name == 'worst_leakage' else ''}, {what}",
            "metric": "attack", "grouping": GROUPING, "group": group, "arm": YOURS, "value": value, "low": low,
            "high": high, "n_units": row.n, "n_undefined": n_aligned, "null": null, "smallest_detectable": least,
            "attack": cell_of(row),
        }  # fmt: skip

    def band(expected: float, high: float) -> dict[str, float]:
        return {"expected_abs": expected, "low": 0.0, "high": high}

    whole = band(inference.null["expected"], inference.null["high"])
    levels = [level("leakage", None, top, top.leakage, top.leakage_low, top.leakage_high, null=whole,
                    least=found.detectable)]  # fmt: skip
    for row, null in zip(inference.rows, found.null, strict=True) if len(inference.rows) > 1 else ():
        own = band(float(null.mean()), float(np.quantile(null, 1 - LEVEL)))
        numbers = (row.leakage, row.leakage_low, row.leakage_high)
        levels.append(level("leakage", cell_of(row), row, *numbers, null=own, least=None))
    numbers = (found.worst.worst, found.worst_low, found.worst_high)
    # the null is that of the macro leakage, which is another number when there are more than two classes
    two = len(inference.classes) == 2
    levels.append(level("worst_leakage", None, found.worst, *numbers, null=whole if two else None,
                        least=found.detectable if two else None))  # fmt: skip
    return levels


def verdict_of(found: Found, attribute: str, notes: Sequence[str]) -> dict[str, Any]:
    """Return word, sentence and notes: the strongest attack against what permuted labels show."""
    inference = found.inference
    top, shown = inference.worst(), inference.worst().leakage > inference.null["high"]
    n = len(inference.classes)
    over = "" if n == 2 else f" on average over {n} classes"
    side = "outside" if shown else "inside"
    sentence = (
        f"The strongest attack on {attribute}, {words(top)}, has an AUC of {top.macro_auc:.3f}{over}: leakage "
        f"{top.leakage:.3f} [{top.leakage_low:.3f}, {top.leakage_high:.3f}] of at most 0.5. That is {side} what "
        f"permuted labels show (p = {inference.p_max:.3f}; with permuted labels the strongest attack stays below "
        f"{inference.null['high']:.3f} in 95 % of cases)."
    )
    if n > 2:
        worst = found.worst
        name = max(worst.auc, key=lambda c: abs(worst.auc[c] - 0.5))
        sentence += (
            f" The worst class is {name!r}: {worst.worst:.3f} [{found.worst_low:.3f}, {found.worst_high:.3f}], by "
            f"{words(worst)}."
        )
    if not shown:
        sentence += " That is no proof of privacy."
    said = [
        f"The smallest leakage that four of five audits of this size would have found is {found.detectable:.3f}.",
        f"Always naming the largest class is right for {100 * inference.majority:.1f} % of the users; its balanced "
        f"accuracy is {1 / n:.3f}, that of the strongest attack {top.balanced_accuracy:.3f}.",
        *notes,
    ]
    quiet = [
        f"{words(row)}: leakage {row.leakage:.3f} [{row.leakage_low:.3f}, {row.leakage_high:.3f}], p = {row.p:.3f}"
        for row in inference.rows if row.p > LEVEL
    ]  # fmt: skip
    return {
        "works": None, "word": "leak shown" if shown else "no leak shown", "sentence": sentence, "cost": "",
        "not_significant": quiet, "notes": said, "primary": f"leakage:attack:{GROUPING}", "cost_statistic": None,
    }  # fmt: skip


def attacks_of(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the attacks of a summary as a terminal shows them, the strongest first."""
    rows = sorted(summary["audit"]["rows"], key=lambda row: -row["leakage"])
    return [
        {"surface": row["surface"], "attacker": row["attacker"], "protocol": row["protocol"],
         "leakage": f"{row['leakage']:.3f} [{row['leakage_low']:.3f}, {row['leakage_high']:.3f}]",
         "AUC": f"{row['macro_auc']:.3f}", "p": f"{row['p']:.3f}", "n": str(row["n"])}
        for row in rows
    ]  # fmt: skip
