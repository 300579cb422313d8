r"""Leakage of a private attribute: what one attack says, as numbers, and how it grows with what the attacker knows.

==========  ===========================================================================================
``AUC_c``   ``P(score_c(i) > score_c(j)) + P(score_c(i) = score_c(j)) / 2``, i in class c, j in another
            class, both scored by the same attacker
``macro``   ``mean_c |AUC_c - 1/2|``; for two classes ``|AUC - 1/2|``
``worst``   ``max_c |AUC_c - 1/2|``
==========  ===========================================================================================

An attacker with AUC 0.2 flips its answer and has 0.8: leakage is the same. Both lie in [0, 1/2], 0 for guessing.

`cross` counts pairs inside a fold only, because scores of different attackers are not comparable, and divides by the
number of these pairs: an average of folds weighted by pairs.

*Intervals and chance* are those of the statistic ``leakage`` (`upright.evidence.statistics`) over `rank_values`. It
changes labels against fixed scores, under which a pair of users from different folds of `cross` counts once. But it
counts twice: i trains the attacker that scores j, and j the one that scores i. Where there is no signal the two counts
agree, and the variance of the AUC is up to twice what the changed labels see. So their deviations are widened by
``sqrt(2)``. Without that, a level of 5 % rejects in 9 to 18 % of cases (120 and 300 users, 2 to 32 dimensions, three
attackers); with it, in 2 to 6 %. `transfer` needs no correction and is exact for one seed; over S seeds with a hold-out
h drawn anew, two users may train the attacker on each other at different seeds, and the factor is
``sqrt(1 + q / (q + 1))``, ``q = (S - 1) h (1 - h)``. Intervals of 150 studies of 200 users held their mean AUC in 94 %
of cases up to an AUC of 0.52, in 97 % at 0.60, and always from 0.74, where they are up to twice as wide as need be.

No guarantee follows from a low value. Balanced accuracy B of any attacker on two classes obeys
``B <= 1/2 + TV(P_1, P_2) / 2``, so ``2 B - 1`` of the strongest attacker is a lower bound of the distance of the two
classes, never an upper one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, stream
from upright.maths import ranks
from upright.metrics.attacks import (
    AttackScores,
    Coded,
    Surface,
    check_attackers,
    check_counts,
    check_mask,
    check_surface,
    code_labels,
    fit_score,
)

__all__ = ["attack_curve", "balanced_accuracy", "leakage", "rank_values"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


def _scored(one: AttackScores, labels: Iterable[Any]) -> tuple[Coded, Codes]:
    """Return coded labels and the rows that an attack scored, checked against each other."""
    coded = code_labels(labels)
    wanted = (coded.code.size, len(coded.classes))
    if one.scores.shape != wanted:
        raise InputError(
            f"scores of shape {one.scores.shape}", f"shape {wanted}, users x classes", "pass the labels of the attack"
        )
    rows = np.flatnonzero(one.fold >= 0)
    if (coded.code[rows] < 0).any():
        raise InputError("scored users without a label", "the labels of the attack", "pass the same labels again")
    return coded, rows


def leakage(scores: AttackScores, labels: Iterable[Any]) -> dict[str, Any]:
    """AUC of each class against the rest, and ``|AUC - 1/2|``: its mean and its maximum over classes.

    Lower is more private. It is a lower bound from the attackers that were tried; a linear one alone is no evidence,
    since a defence that matches the means of the classes fools it and nobody else.

    >>> m = np.array([1.0, 4.0, 2.0, 4.0, 5.0])  # scores of class m: 1.5 of 6 pairs are in order
    >>> one = AttackScores("example", "by hand", "cross", np.stack([-m, m], axis=1), np.zeros(5, dtype=int), True)
    >>> leakage(one, ["m", "m", "f", "f", "f"])
    {'auc': {'f': 0.25, 'm': 0.25}, 'macro': 0.25, 'worst': 0.25}

    Parameters
    ----------
    scores : AttackScores
        From `upright.metrics.attacks.attack`.
    labels : sequence, shape (U,)
        The labels that were attacked.

    Returns
    -------
    dict
        ``auc`` (class to float in [0, 1]), ``macro`` and ``worst`` in [0, 1/2].

    Raises
    ------
    InputError
        When the labels do not fit the scores, or no fold holds a class together with another.
    """
    coded, rows = _scored(scores, labels)
    # of two classes, the second one's scores are the first one's upside down
    some = range(1 if len(coded.classes) == 2 else len(coded.classes))
    weights, code, fold = np.ones(rows.size), coded.code[rows], scores.fold[rows]
    each = np.array([ranks.auc(scores.scores[rows, c], weights, code == c, fold) for c in some])
    if np.isnan(each).any():
        raise InputError(
            f"no fold with users of class {coded.classes[int(np.isnan(each).argmax())]!r} and of another",
            "scored users of every class",
            "use fewer folds, or score more users",
        )
    gap = np.abs(each - 0.5)
    found = dict(zip(coded.classes, np.resize(each, len(coded.classes)).tolist(), strict=True))
    return {"auc": found, "macro": float(gap.mean()), "worst": float(gap.max())}


def balanced_accuracy(scores: AttackScores, labels: Iterable[Any]) -> float:
    """``mean_c P(argmax score = c | class c)``, in [0, 1]; arguments and errors as those of `leakage`.

    Of C classes, guessing and naming the largest class both give 1 / C. It depends on a threshold and is not flip-safe
    (0.2 is as bad as 0.8), so leakage comes first.

    >>> m = np.array([0.0] * 6 + [1.0, 1.0, 1.0, 0.0])  # names six of seven f and two of three m
    >>> one = AttackScores("example", "by hand", "cross", np.stack([1 - m, m], axis=1), np.zeros(10, dtype=int), True)
    >>> round(balanced_accuracy(one, ["f"] * 7 + ["m"] * 3), 4)
    0.7619
    """
    coded, rows = _scored(scores, labels)
    code, counts = coded.code[rows], np.bincount(coded.code[rows], minlength=len(coded.classes))
    right = scores.scores[rows].argmax(axis=1) == code
    return float((np.bincount(code, weights=right, minlength=counts.size) / counts).mean())


def rank_values(found: Sequence[AttackScores], classes: Sequence[Any]) -> dict[str, Array]:
    """Return mid-ranks of each attack's scores of each class inside a fold, in (0, 1), as metrics of a unit table.

    Ranks of different folds may stand in one column, as scores may not: folds are stratified.

    Parameters
    ----------
    found : sequence of AttackScores
    classes : sequence, length C
        In the order of the scores' columns.

    Returns
    -------
    dict of str to ndarray, shape (U,)
        ``attack/<surface>/<attacker>/<protocol>/<class>``, of two classes the second, which says all; NaN for users
        that are not scored.
    """
    from scipy.stats import rankdata  # half a second, which a typo need not wait for

    values = {}
    for one in found:
        table = np.full(one.scores.shape, np.nan)
        for f in np.unique(one.fold[one.fold >= 0]):
            rows = np.flatnonzero(one.fold == f)
            table[rows] = (rankdata(one.scores[rows], axis=0) - 0.5) / len(rows)
        for c in range(1 if len(classes) == 2 else 0, len(classes)):
            values[f"attack/{one.surface}/{one.attacker}/{one.protocol}/{classes[c]}"] = table[:, c]
    return values


def _halves(code: Codes, users: Codes, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """Split each class at random; the larger half comes first."""
    mixed = [rng.permutation(users[code[users] == c]) for c in np.unique(code[users])]
    first = [members[: (members.size + 1) // 2] for members in mixed]
    second = [members[(members.size + 1) // 2 :] for members in mixed]
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _prefixes(code: Codes, rng: np.random.Generator) -> Codes:
    """Return places in an order whose every prefix is nearly stratified and begins with two of each class."""
    key = np.empty(code.size)
    for c in np.unique(code):
        members = rng.permutation(np.flatnonzero(code == c))
        key[members] = (np.arange(members.size) + 0.5) / members.size
        key[members[:2]] = -1.0
    return np.lexsort((rng.random(code.size), key))


def attack_curve(
    surface: Surface,
    labels: Iterable[Any],
    *,
    attacker: str = "logistic",
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    held_out: Any = None,
    seed: int = 0,
    threads: int = 1,
) -> list[dict[str, Any]]:
    """Leakage against the number of users whose attribute the attacker knows.

    Each repeat splits the labelled held-out users into a stratified half to score and a half to know, and trains on the
    first n of the latter: the users of a smaller n are among those of a larger one.

    Parameters
    ----------
    surface : array or sparse matrix, shape (U, d)
    labels : sequence, shape (U,)
    attacker : str
        A key of `upright.metrics.attacks.ATTACKERS`.
    sizes : sequence of int, optional
        Numbers of known users, each from 2 C to half of the users. By default 25, 50, 100, ... and that half.
    repeats : int
        At least 2, for the spread.
    held_out : mask, shape (U,), optional
        Users that the defence was not fitted on; all by default.
    seed, threads : int
        As in `upright.metrics.attacks.attack`.

    Returns
    -------
    list of dict
        ``n``, ``auc`` (mean macro AUC over repeats), ``sd`` and ``low``, ``high`` (smallest and largest repeat),
        ``leakage`` (mean over repeats of the mean of ``|AUC_c - 1/2|``), ``repeats``, ``converged``.

    Raises
    ------
    InputError
        For bad labels, surfaces and masks as in `upright.metrics.attacks.attack`, a class of fewer than 8 users, sizes
        or repeats out of range.
    """
    from threadpoolctl import threadpool_limits

    (attacker,) = check_attackers(attacker)
    coded = code_labels(labels)
    n_classes = len(coded.classes)
    table = check_surface("surface", surface, coded.code.size)
    mask = coded.code >= 0
    if held_out is not None:
        mask = mask & check_mask(held_out, mask.size)
    check_counts(coded, mask, 8, "held-out" if held_out is not None else "labelled")
    users = np.flatnonzero(mask)
    most = users.size // 2
    if repeats < 2:
        raise InputError(f"repeats = {repeats}", "an integer of at least 2", "set repeats to 2 or more")
    if sizes is None:
        smaller = [25 * 2**i for i in range(20) if 2 * n_classes <= 25 * 2**i < most]
        sizes = [*smaller, most]
    bad = [size for size in sizes if not 2 * n_classes <= size <= most]
    if bad or not len(sizes):
        got = f"sizes = {list(sizes)}"
        raise InputError(got, f"numbers from {2 * n_classes} to {most}, half of the users", f"leave out {bad}")
    values: dict[int, list[tuple[float, float, bool]]] = {int(size): [] for size in sizes}
    with threadpool_limits(limits=threads):
        for repeat in range(repeats):
            rng = np.random.default_rng(stream(seed, "curve", repeat))
            known, scored = _halves(coded.code, users, rng)
            known = known[_prefixes(coded.code[known], rng)]
            for size in values:
                own = stream(seed, "curve", repeat, size)
                scores, fine = fit_score(attacker, own, table, coded.code, known[:size], scored, n_classes)
                part = AttackScores("surface", attacker, "curve", scores, np.zeros(scored.size, np.int64), fine)
                each = leakage(part, [coded.classes[c] for c in coded.code[scored]])
                values[size].append((float(np.mean([*each["auc"].values()])), each["macro"], fine))
    out = []
    for size, found in values.items():
        aucs = np.array([value for value, _, _ in found])
        out.append(
            {
                "n": size,
                "auc": float(aucs.mean()),
                "sd": float(aucs.std(ddof=1)),
                "low": float(aucs.min()),
                "high": float(aucs.max()),
                "leakage": float(np.mean([leak for _, leak, _ in found])),
                "repeats": repeats,
                "converged": all(fine for _, _, fine in found),
            }
        )
    return out
