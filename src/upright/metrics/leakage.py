r"""Leakage of a private attribute: AUC, flip-safe leakage, intervals, nulls.

=====================  ===========================================================================================
``AUC_c``              ``P(score_c(i) > score_c(j)) + P(score_c(i) = score_c(j)) / 2``, i in class c, j in another
                       class, both scored by the same attacker
``leakage`` (macro)    ``mean_c |AUC_c - 1/2|``; for two classes ``|AUC - 1/2|``
``worst``              ``max_c |AUC_c - 1/2|``
``balanced_accuracy``  ``mean_c P(argmax score = c | class c)``
=====================  ===========================================================================================

An attacker with AUC 0.2 flips its answer and has 0.8: leakage is the same. Both lie in [0, 1/2], 0 for guessing.

`cross` counts pairs inside a fold only, because scores of different attackers are not comparable, and divides by the
number of these pairs: an average of folds weighted by pairs. The count is exact, from one sort and cumulative weights.

Nulls and intervals
-------------------
*Null*: labels permuted against fixed scores, the maximum over all attacks. Each pair of users from different folds
counts twice under `cross`: i trains the attacker that scores j, and j the one that scores i. Where there is no signal
the two counts agree, and the variance of the AUC is up to twice what the permutation sees. So the permuted deviations
of `cross` are widened by ``sqrt(2)``. Without that, a level of 5 % rejects in 9 to 18 % of cases (120 and 300 users,
2 to 32 dimensions, three attackers); with it, in 2 to 6 %. `transfer` needs no correction and is exact for one seed;
over S seeds with a hold-out h drawn anew, two users may train the attacker on each other at different seeds, and the
factor is ``sqrt(1 + q / (q + 1))``, ``q = (S - 1) h (1 - h)``.

*Interval*: percentile bootstrap over scored users with fixed attackers. It does not hold the variation of training
again on other users, so with `cross` it is too narrow near AUC 1/2: measured coverage of the mean of repeated studies
with 200 users is 80 to 85 % up to an AUC of 0.54, 90 % at 0.63 and 94 % at 0.78, for a nominal 95 %. Whether there is
any leakage is a question for ``p``. The interval of the leakage never reaches below 0.

No guarantee follows from a low value. Balanced accuracy B of any attacker on two classes obeys
``B <= 1/2 + TV(P_1, P_2) / 2``, so ``2 B - 1`` of the strongest attacker is a lower bound of the distance of the two
classes, never an upper one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError
from upright.maths.intervals import draw_weights
from upright.metrics.attacks import AttackScores, Coded, code_labels

__all__ = ["auc", "balanced_accuracy", "class_aucs", "leakage", "p_value", "permuted", "resampled", "scored_rows"]

Array = NDArray[np.float64]
SPREAD = {"cross": 2.0**0.5, "transfer": 1.0}  # by which a permutation understates the deviations without signal
_CHUNK = 1 << 22  # weights held at once


def _pair_auc(scores: Array, positive: NDArray[np.bool_], fold: NDArray[np.int64], weights: Array) -> Array:
    """Weighted share of (positive, other) pairs of one fold in the right order, ties 1/2.

    ``sum_f sum_{i in P_f, j in N_f} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / sum_f sum_{i, j} w_i w_j``

    Parameters
    ----------
    scores, positive, fold : arrays, shape (n,)
    weights : array, shape (n, D)
        One column a draw.

    Returns
    -------
    array, shape (D,)
        NaN where no pair has weight.
    """
    order = np.lexsort((scores, fold))
    s, p, f, w = scores[order], positive[order], fold[order], weights[order]
    others = np.concatenate([[0], np.cumsum(~p)])  # number of others before each place
    mass = np.concatenate([np.zeros((1, w.shape[1])), np.cumsum(w[~p], axis=0)])  # their weight, (others + 1, D)

    def ends(new: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Others before the start and before the end of each place's block, at the positive places."""
        start = np.flatnonzero(np.concatenate([[True], new]))
        block = np.cumsum(np.concatenate([[True], new])) - 1
        stop = np.append(start[1:], s.size)
        return others[start[block[p]]], others[stop[block[p]]]

    new_fold = f[1:] != f[:-1]
    low, high = ends(new_fold | (s[1:] != s[:-1]))
    base, top = ends(new_fold)
    won = (w[p] * ((mass[low] + mass[high]) / 2.0 - mass[base])).sum(axis=0)
    pairs = (w[p] * (mass[top] - mass[base])).sum(axis=0)
    out: Array = np.divide(won, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)
    return out


def auc(scores: ArrayLike, positive: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: ``P(s_i > s_j) + P(s_i = s_j) / 2``, i positive, j not, drawn by weight.

    Parameters
    ----------
    scores : array_like, shape (n,)
        Without NaN.
    positive : array_like of bool, shape (n,)
    weights : array_like, shape (n,), optional
        Non-negative; 1 by default.

    Returns
    -------
    float
        In [0, 1]; 0.5 for guessing.

    Raises
    ------
    InputError
        When shapes differ, a score is NaN, a weight is negative, or one side has no weight.
    """
    s, p = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    w = np.ones(s.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if s.ndim != 1 or s.shape != p.shape or s.shape != w.shape or np.isnan(s).any():
        got = f"scores {s.shape}, positive {p.shape}, weights {w.shape}, {int(np.isnan(s).sum())} NaN scores"
        raise InputError(got, "three arrays of one shape (n,), scores without NaN", "drop users that are not scored")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise InputError("a weight that is negative or not finite", "weights of at least 0", "pass counts or shares")
    value = float(_pair_auc(s, p, np.zeros(s.size, dtype=np.int64), w[:, None])[0]) if s.size else float("nan")
    if np.isnan(value):
        sides = f"{w[p].sum():g} positive and {w[~p].sum():g} other weight"
        raise InputError(sides, "some of both", "an AUC needs users of the class and users outside it")
    return min(max(value, 0.0), 1.0)


def scored_rows(one: AttackScores, coded: Coded) -> NDArray[np.int64]:
    """Rows that an attack scored, checked against the labels."""
    wanted = (coded.code.size, len(coded.classes))
    if one.scores.shape != wanted:
        raise InputError(
            f"scores of shape {one.scores.shape}", f"shape {wanted}, users x classes", "pass the labels of the attack"
        )
    rows = np.flatnonzero(one.fold >= 0)
    if (coded.code[rows] < 0).any():
        raise InputError("scored users without a label", "the labels of the attack", "pass the same labels again")
    return rows


def leakage(scores: AttackScores, labels: Iterable[Any], weights: ArrayLike | None = None) -> dict[str, Any]:
    """AUC of each class against the rest, and ``|AUC - 1/2|``: its mean and its maximum over classes.

    Parameters
    ----------
    scores : AttackScores
        From `attack`.
    labels : sequence, shape (U,)
        The labels that were attacked.
    weights : array_like, shape (U,), optional
        Of users; 1 by default.

    Returns
    -------
    dict
        ``auc`` (class to float in [0, 1]), ``macro`` and ``worst`` in [0, 1/2].

    Raises
    ------
    InputError
        When the labels do not fit the scores or a class has no weight.
    """
    coded = code_labels(labels)
    rows = scored_rows(scores, coded)
    w = np.ones(coded.code.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != coded.code.shape or not (np.isfinite(w) & (w >= 0)).all():
        raise InputError(f"weights of shape {w.shape}", f"{coded.code.shape}, all at least 0", "one weight a user")
    each = class_aucs(scores, coded, rows, w[rows, None])[:, 0]
    if np.isnan(each).any():
        raise InputError(
            f"class {coded.classes[int(np.isnan(each).argmax())]!r} has no pair with weight",
            "weight on both sides of every class", "give weight to some scored users of every class",
        )  # fmt: skip
    gap = np.abs(each - 0.5)
    found = dict(zip(coded.classes, each.tolist(), strict=True))
    return {"auc": found, "macro": float(gap.mean()), "worst": float(gap.max())}


def class_aucs(one: AttackScores, coded: Coded, rows: NDArray[np.int64], weights: Array) -> Array:
    """AUC of each class under each column of weights (len(rows), D), shape (C, D)."""
    fold, code = one.fold[rows], coded.code[rows]
    # of two classes, the second one's scores are the first one's upside down
    some = range(1 if len(coded.classes) == 2 else len(coded.classes))
    out = np.stack([_pair_auc(one.scores[rows, c], code == c, fold, weights) for c in some])
    return np.repeat(out, 2, axis=0) if len(coded.classes) == 2 else out


def resampled(
    found: Sequence[AttackScores], coded: Coded, rows: NDArray[np.int64], draws: int, seed: int
) -> tuple[Array, Array]:
    """Macro AUC and macro leakage of each attack under resampled users, each of shape (attacks, draws)."""
    rng = np.random.default_rng(seed)
    step = max(1, min(draws, _CHUNK // rows.size))
    aucs, leaks = [], []
    for begin in range(0, draws, step):
        weights = np.ascontiguousarray(draw_weights(1, rows.size, min(step, draws - begin), rng)[1].T)
        each = np.stack([class_aucs(one, coded, rows, weights) for one in found])  # (attacks, C, D)
        aucs.append(each.mean(axis=1))
        leaks.append(np.abs(each - 0.5).mean(axis=1))
    return np.concatenate(aucs, axis=1), np.concatenate(leaks, axis=1)


def _ranks(one: AttackScores, rows: NDArray[np.int64]) -> Array:
    """Mid-ranks from 1 of every class's score inside each fold, shape (len(rows), C)."""
    from scipy.stats import rankdata

    out = np.empty((rows.size, one.scores.shape[1]))
    for f in np.unique(one.fold[rows]):
        some = one.fold[rows] == f
        out[some] = rankdata(one.scores[rows[some]], axis=0)
    return out


def permuted(
    found: Sequence[AttackScores], coded: Coded, rows: NDArray[np.int64], permutations: int, seed: int
) -> Array:
    """Macro leakage of each attack under labels permuted inside the cross folds, shape (attacks, permutations).

    Scores stay as they are. A permutation inside the folds leaves the number of users of a class in a fold as it is, so
    ``AUC_c = (sum of its users' ranks - constant) / constant``: one matrix product for all attacks.
    """
    rng = np.random.default_rng(seed)
    code = coded.code[rows]
    strata = next((one.fold[rows] for one in found if one.protocol == "cross"), found[0].fold[rows])
    home = np.argsort(strata, kind="stable")
    ranks = np.stack([_ranks(one, rows) for one in found], axis=2)  # (n, C, attacks)
    n_classes = len(coded.classes)
    lowest, pairs = np.zeros((n_classes, len(found))), np.zeros((n_classes, len(found)))
    for a, one in enumerate(found):
        for f in np.unique(one.fold[rows]):
            here = np.bincount(code[one.fold[rows] == f], minlength=n_classes)
            lowest[:, a] += here * (here + 1) / 2.0
            pairs[:, a] += here * (here.sum() - here)
    spread = np.array([SPREAD[one.protocol] for one in found])
    out = np.empty((len(found), permutations))
    step = max(1, min(permutations, _CHUNK // rows.size))
    for begin in range(0, permutations, step):
        some = min(step, permutations - begin)
        shuffled = np.argsort(rng.random((some, rows.size)) + strata, axis=1)  # inside the folds
        moved = np.empty((some, rows.size), dtype=np.int64)
        np.put_along_axis(moved, shuffled, np.broadcast_to(code[home], moved.shape), axis=1)
        gaps = np.zeros((some, len(found)))
        for c in range(n_classes):
            gaps += np.abs(((moved == c) @ ranks[:, c] - lowest[c]) / pairs[c] - 0.5)
        out[:, begin : begin + some] = (spread * gaps / n_classes).T
    return out


def balanced_accuracy(one: AttackScores, coded: Coded, rows: NDArray[np.int64]) -> float:
    """Mean recall of the most probable class."""
    right = one.scores[rows].argmax(axis=1) == coded.code[rows]
    counts = np.bincount(coded.code[rows], minlength=len(coded.classes))
    return float((np.bincount(coded.code[rows], weights=right, minlength=counts.size) / counts).mean())


def p_value(null: Array, value: float) -> float:
    """``(1 + #{null >= value}) / (1 + #null)``; a rounding error is no difference."""
    return float((1 + (null >= value - 1e-12).sum()) / (1 + null.size))
