"""Group rates of classifiers, what is compared between groups, and how many samples that takes.

Every criterion of group fairness used here is linear in the decisions. With decisions ``h_ij`` (probability of deciding
class j for sample i), membership ``q_ig`` in groups, sample weights ``w_i`` and a *stratum* ``F_ij``,

    P_gj = sum_i w_i q_ig F_ij          R_gj = sum_i w_i q_ig F_ij h_ij / P_gj

is the rate at which group g is decided as j within the stratum.

=========================  ==========================================  ================================================
criterion                  strata (y: one-hot labels, or class          rate
                           probabilities where labels are not known)
=========================  ==========================================  ================================================
``demographic_parity``     ``1``                                        P(decided j | g)
``equal_opportunity``      ``y_j``                                      P(decided j | g, label j)
``equalized_odds``         ``y_j`` and ``1 - y_j``                      the same, and P(decided j | g, label not j)
``equalized_odds_cells``   ``y_c`` for every class c                    P(decided j | g, label c)
=========================  ==========================================  ================================================

Arrays over constraints have the shape (S, R, m): strata, contrasts between groups, classes.

Source: Agarwal et al., *A Reductions Approach to Fair Classification* (2018), for linear constraints on decisions;
Zhang et al., *FedFACT* (2025), arXiv 2506.03777, table 1 and lemma B.7.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["CRITERIA", "Criterion", "Gap", "contrasts", "masses", "masses_fit", "names_of_strata", "needed", "rates",
           "strata"]  # fmt: skip

Array = NDArray[np.float64]
Criterion = Literal["demographic_parity", "equal_opportunity", "equalized_odds", "equalized_odds_cells"]
Gap = Literal["pairwise", "average"]
CRITERIA: tuple[Criterion, ...] = (
    "demographic_parity", "equal_opportunity", "equalized_odds", "equalized_odds_cells",
)  # fmt: skip


def strata(criterion: Criterion, y: Array) -> list[Array]:
    """Return the strata of a criterion, each of shape (n, m) or (n, 1) or (1, 1), by broadcasting (n, m).

    Parameters
    ----------
    criterion : str
        Of `CRITERIA`.
    y : ndarray, shape (n, m)
        One-hot labels or class probabilities.

    Raises
    ------
    InputError
        For an unknown criterion.
    """
    if criterion == "demographic_parity":
        return [np.ones((1, 1))]
    if criterion == "equal_opportunity":
        return [y]
    if criterion == "equalized_odds":
        return [y, 1.0 - y]
    if criterion == "equalized_odds_cells":
        return [y[:, c : c + 1] for c in range(y.shape[1])]
    raise InputError(f"criterion {criterion!r}", ", ".join(CRITERIA), "name one of them")


def names_of_strata(criterion: Criterion, classes: tuple[str, ...]) -> list[str]:
    """Return what each stratum of `strata` is called, in its order."""
    return {
        "demographic_parity": ["decided"],
        "equal_opportunity": ["true positive"],
        "equalized_odds": ["true positive", "false positive"],
        "equalized_odds_cells": [f"label {c}" for c in classes],
    }[criterion]


def masses(f: list[Array], member: Array, weight: Array, m: int) -> Array:
    """Return ``P_sgj = sum_i w_i q_ig F_sij``, shape (S, G, m).

    Parameters
    ----------
    f : list of ndarray
        Of `strata`.
    member : ndarray, shape (n, G)
        Membership in groups; one-hot, or probabilities where the group is not known.
    weight : ndarray, shape (n,)
    m : int
        Number of classes.
    """
    weighted = (member * weight[:, None]).T  # (G, n)
    return np.stack([weighted @ np.broadcast_to(one, (len(weight), m)) for one in f])


def masses_fit(criteria: Sequence[Criterion], mass: Sequence[Array], rows: float) -> bool:
    """Return whether masses can be those of so many rows: none negative or above, and together all rows.

    ``sum_sgj P_sgj = k rows``, with k = 1 for ``equal_opportunity`` and k = m for the others, to 1e-6 of it: each row
    is in one group, or its memberships and probabilities sum to 1.

    Parameters
    ----------
    criteria : sequence of str
    mass : sequence of ndarray, shape (S_c, G_c, m)
        Of rows of weight 1, for each criterion.
    rows : float
        Any number, as it was claimed.
    """
    fit = rows >= 1 and rows % 1 == 0
    for criterion, own in zip(criteria, mass, strict=True):
        total = rows * (1 if criterion == "equal_opportunity" else own.shape[2])
        fit = fit and bool((own >= 0).all() and (own <= rows * (1 + 1e-9)).all())
        fit = fit and abs(float(own.sum()) - total) <= 1e-6 * total
    return fit


def rates(f: list[Array], member: Array, weight: Array, h: Array) -> Array:
    """Return ``R_sgj``, shape (S, G, m); NaN where the group has no mass in the stratum.

    Parameters
    ----------
    h : ndarray, shape (n, m)
        Decisions: one-hot, or probabilities of a randomised decision.
    """
    weighted = (member * weight[:, None]).T  # (G, n)
    up = np.stack([weighted @ (one * h) for one in f])
    down = masses(f, member, weight, h.shape[1])
    return np.asarray(np.divide(up, down, out=np.full(up.shape, np.nan), where=down > 0))


def contrasts(gap: Gap, mass: Array, counted: NDArray[np.bool_]) -> Array:
    """Return T with ``D_srj = sum_g T_srgj R_sgj``, shape (S, R, G, m).

    ``pairwise``: one row a pair ``g < g'``, ``R_g - R_g'``. ``average``: one row a group, ``R_g`` minus the mean over
    counted groups by their mass in the stratum. Rows that touch a group that is not counted are zero.

    Parameters
    ----------
    mass : ndarray, shape (S, G, m)
    counted : ndarray of bool, shape (S, G, m)
        Which rates exist and are constrained.

    Returns
    -------
    ndarray
        For one group all zero: there is nobody to compare it with.
    """
    s, g, m = mass.shape
    if gap == "pairwise":
        pairs = list(itertools.combinations(range(g), 2))
        t = np.zeros((s, len(pairs), g, m))
        for row, (a, b) in enumerate(pairs):
            both = counted[:, a] & counted[:, b]  # (S, m)
            t[:, row, a], t[:, row, b] = both, -1.0 * both
        return t
    if gap != "average":
        raise InputError(f"gap = {gap!r}", "'pairwise' or 'average'", "choose one of the two")
    own = np.where(counted, mass, 0.0)
    total = own.sum(1, keepdims=True)
    share = np.divide(own, total, out=np.zeros_like(own), where=total > 0)  # (S, G, m)
    several = counted.sum(1, keepdims=True) >= 2
    eye = np.eye(g)[None, :, :, None]
    return np.asarray(np.where((counted & several)[:, :, None, :], eye - share[:, None, :, :], 0.0))


def needed(share: float, observations: int, delta: float = 0.05) -> int:
    """Return how many samples a client needs for more than M of a group of a given share, with probability 1 - delta.

    ``n >= 2 M / p + ln(1 / delta) / (2 p^2)``: lemma B.7 of the paper, from Hoeffding's inequality. A rule for
    warnings: it is sufficient, not necessary.

    Parameters
    ----------
    share : float
        p, the group's share at the client, in (0, 1].
    observations : int
        M, positive.
    delta : float
        In (0, 1).
    """
    if not 0.0 < share <= 1.0 or observations < 1 or not 0.0 < delta < 1.0:
        raise InputError(
            f"share = {share}, observations = {observations}, delta = {delta}",
            "share in (0, 1], observations of at least 1, delta in (0, 1)", "correct the one outside its range",
        )  # fmt: skip
    return math.ceil(2.0 * observations / share + math.log(1.0 / delta) / (2.0 * share**2))
