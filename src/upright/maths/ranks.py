"""Functions of ranks, under weights: areas under ROC curves, rank correlations, distances of distributions.

Weights are multiplicities of a resampling; a midrank grows with them: ``rank_i = sum_{x_j < x_i} w_j + (1/2) sum_{x_j =
x_i} w_j``.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "auc",
    "auc_values",
    "bin_edges",
    "head_items",
    "ks_null",
    "ks_p",
    "rank_correlation",
    "rank_sides",
    "weighted_rank_correlation",
    "widest",
]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
HEAD = 0.2  # share of the items that are head


def auc(values: Array, weights: Array, positive: Bools, stratum: NDArray[np.int64] | None = None) -> Any:
    """Return ``P(v_i > v_j) + P(v_i = v_j) / 2`` for i positive and j not, drawn by weight among pairs of one stratum.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Scores; NaN is left out.
    weights : ndarray, shape (..., n)
        Non-negative.
    positive : ndarray of bool, shape (n,)
    stratum : ndarray of int, shape (n,), optional
        Such as the fold whose attacker scored a unit: scores of different ones are not compared.

    Returns
    -------
    float or ndarray, shape (...,)
        In [0, 1]; NaN where no pair has weight.
    """
    top, bottom = np.zeros((2, *weights.shape[:-1]))
    home = np.zeros(len(values), dtype=np.int64) if stratum is None else stratum
    for one in np.unique(home):
        own = np.flatnonzero(~np.isnan(values) & (home == one))
        own = own[np.argsort(values[own], kind="stable")]
        first, second = own[positive[own]], own[~positive[own]]
        up, down = weights[..., first], np.zeros((*weights.shape[:-1], len(second) + 1))
        np.cumsum(weights[..., second], -1, out=down[..., 1:])
        below, upto = (np.searchsorted(values[second], values[first], side) for side in ("left", "right"))
        top = top + np.einsum("...i,...i->...", up, down[..., below] + down[..., upto]) / 2  # equal scores count half
        bottom = bottom + up.sum(-1) * down[..., -1]
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)[()]


def auc_values(score: Array, positive: Bools, group: NDArray[np.int64], *, fewest: int = 5) -> Array:
    """Return one value a row, whose mean over a group is the group's ROC AUC and whose error is DeLong's, stretched.

    ``x_i = A + (n / n_i) s(n_i) (V_i - A)``: ``V_i`` is the share of the group's rows of the other class that are
    ranked on the right side of row i, ties half, A the group's AUC, n its rows, ``n_i`` those of the class of i and
    ``s(m) = sqrt(m / (m - 1)) t(m - 1) / z`` for few rows of a class. The mean of x is A, and ``sum (x_i - A)^2 / n^2 =
    s(n_1)^2 S_1 / n_1 + s(n_0)^2 S_0 / n_0``, without s the variance of DeLong, DeLong and Clarke-Pearson (1988).

    Parameters
    ----------
    score : ndarray, shape (n,)
        Higher for the positive class.
    positive : ndarray of bool, shape (n,)
    group : ndarray of int, shape (n,)
        Below 0 for a row that takes no part.
    fewest : int
        Rows of each class that a group needs.

    Returns
    -------
    ndarray, shape (n,)
        NaN in groups with fewer rows of a class.
    """
    from upright.maths.simultaneous import stretch

    found = np.full(len(score), np.nan)
    for one in np.unique(group[group >= 0]):
        rows = np.flatnonzero(group == one)
        own, value = positive[rows], score[rows]
        size = np.where(own, own.sum(), (~own).sum())
        if len(np.unique(own)) < 2 or size.min() < fewest:
            continue
        all_of, inside = _midranks(value, np.ones((1, len(rows))))[0], np.empty(len(rows))
        for side in (own, ~own):
            inside[side] = _midranks(value[side], np.ones((1, side.sum())))[0]
        below = (all_of - inside) / (len(rows) - size)
        right = np.where(own, below, 1.0 - below)
        area = right[own].mean()
        found[rows] = area + len(rows) / size * stretch(size) * (right - area)
    return found


def bin_edges(x: Array, weights: Array, bins: int) -> Array:
    """Return edges of at most `bins` bins of equal weight, halfway between neighbouring values.

    Parameters
    ----------
    x, weights : ndarray, shape (n,)
        Finite values, and weights above 0.
    bins : int
        At least 2. Where there are no more values than that, every value has a bin.

    Returns
    -------
    ndarray, shape (at most bins - 1,)
        Ascending; a value at an edge lies below it.
    """
    order = np.argsort(x)
    value, total = x[order], np.cumsum(weights[order])
    distinct = np.unique(value)
    if len(distinct) <= bins:
        return np.asarray(distinct[1:] / 2 + distinct[:-1] / 2)
    wanted, last = np.arange(1, bins) / bins * total[-1], len(x) - 1
    at = np.minimum(np.searchsorted(total, wanted), last)
    above = np.where(total[at] - wanted > np.finfo(np.float64).eps, at, np.minimum(at + 1, last))
    return np.unique((value[at] + value[above]) / 2)


def head_items(size: Array) -> Bools:
    """Return the fifth of the items (rounded up) that are largest, bool of shape (I,); ties at its end are tail.

    Parameters
    ----------
    size : ndarray, shape (I,)
        Such as counts, or prior scores.
    """
    return np.asarray(size > np.append(np.sort(size)[::-1], -np.inf)[int(np.ceil(HEAD * len(size)))])


def weighted_rank_correlation(x: Array, weights: Array, y: Array, given: Array | None = None) -> Array:
    """Return Spearman's rho of two vectors under each row of weights; NaN where one of them is constant.

    Parameters
    ----------
    x, y : ndarray, shape (U,)
    weights : ndarray, shape (D, U)
        Not negative.
    given : ndarray, shape (U,), optional
        For the partial correlation: residuals of midranks on its midranks. NaN where nothing of x or y is left.

    Returns
    -------
    ndarray, shape (D,)
    """
    a, b, norm = _centred(x, weights, y, given)
    both, least = (weights * a * b).sum(1), 1e-9 * weights.sum(1) ** 3  # ranks run up to the total weight
    return np.asarray(np.divide(both, norm, out=np.full(len(both), np.nan), where=norm > least))


def rank_sides(x: Array, y: Array, given: Array | None = None) -> tuple[Array, Array]:
    """Return centred midranks of x and y (U,) whose products sum to rho; NaN where it is undefined."""
    a, b, norm = _centred(x, np.ones((1, len(x))), y, given)
    scale = np.sqrt(norm[0]) if norm[0] > 1e-9 * len(x) ** 3 else np.nan
    return np.asarray(a[0] / scale), np.asarray(b[0] / scale)


def rank_correlation(x: ArrayLike, y: ArrayLike, given: ArrayLike | None = None) -> float:
    """Return Spearman's rho of two vectors (U,), without what a third explains of both; NaN where it is undefined."""
    a, b = rank_sides(np.asarray(x), np.asarray(y), None if given is None else np.asarray(given))
    return float(a @ b)


def _centred(x: Array, weights: Array, y: Array, given: Array | None) -> tuple[Array, Array, Array]:
    """Return centred midranks of x and y, without what is linear in those of `given`, (D, U), and their norm (D,)."""
    total = np.maximum(weights.sum(1, keepdims=True), 1e-300)

    def ranks(v: Array) -> Array:
        r = _midranks(v, weights)
        return np.asarray(r - (weights * r).sum(1, keepdims=True) / total)

    a, b = ranks(x), ranks(y)
    if given is not None:
        c = ranks(given)
        own = np.maximum((weights * c * c).sum(1, keepdims=True), 1e-300)
        a, b = (r - (weights * r * c).sum(1, keepdims=True) / own * c for r in (a, b))
    return a, b, np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))


def _midranks(x: Array, weights: Array) -> Array:
    """Return weighted midranks, shape (D, U)."""
    order = np.argsort(x, kind="stable")
    _, group = np.unique(x[order], return_inverse=True)
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    size = np.add.reduceat(weights[:, order], first, axis=1)  # (D, values)
    middle = np.cumsum(size, axis=1) - size / 2
    out = np.empty_like(weights)
    out[:, order] = middle[:, group]
    return out


def widest(one: Array, two: Array) -> tuple[float, float, float]:
    """Return x where two distribution functions differ most, the smallest of them, and their values there.

    Parameters
    ----------
    one, two : ndarray, shape (U,)
        Of the same records; those with a NaN in one of them are left out. One pair at least is defined.
    """
    ok = ~np.isnan(one) & ~np.isnan(two)
    a, b = np.sort(one[ok]), np.sort(two[ok])
    grid = np.unique(np.r_[a, b])
    gap = np.searchsorted(a, grid, side="right") - np.searchsorted(b, grid, side="right")
    x = grid[int(np.abs(gap).argmax())]
    return float(x), float((a <= x).mean()), float((b <= x).mean())


def ks_null(one: Array, two: Array, flips: NDArray[np.int8]) -> Array:
    """Return the distances of two distributions (n,) after the values of some records changed places.

    Parameters
    ----------
    flips : ndarray of int, shape (P, n)
        -1 where the two values of a record change places, else 1.

    Returns
    -------
    ndarray, shape (P,)
    """
    n, pooled = len(one), np.concatenate([one, two])
    order = np.argsort(pooled, kind="stable")
    step = np.where(order < n, 1, -1).astype(np.int8)
    last = np.flatnonzero(np.r_[np.diff(pooled[order]) != 0, True])  # of equal values
    walk = np.cumsum(flips[:, order % n] * step, axis=1, dtype=np.int32)
    return np.asarray(np.abs(walk[:, last]).max(1) / n)


def ks_p(one: Array, two: Array) -> float:
    """Return the p of the two-sample Kolmogorov-Smirnov test, exact up to 10,000 values where scipy can compute it."""
    from scipy.stats import ks_2samp  # half a second, which a typo need not wait for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it goes over to the asymptotic p by itself
        return min(float(ks_2samp(one, two, method="auto").pvalue), 1.0)
