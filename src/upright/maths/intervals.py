"""Statistics of weighted units and paired bootstrap intervals in two levels.

Resampling
----------
Seeds are drawn with replacement, then units with replacement; a unit that appears at several seeds is drawn as a
whole with all its seeds (the design is crossed: the same users are scored at every seed), so that between-unit
variance is not divided by the number of seeds. Every arm meets the same draws, which pairs differences.

Reference: Davison and Hinkley, *Bootstrap Methods and their Application*, chapter 3; Owen, *The pigeonhole
bootstrap*, Annals of Applied Statistics 1 (2007).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "STATISTICS", "auc", "combine", "draw_weights", "fill_multiplicities", "gini", "holm", "mean", "null_counts",
    "null_gap", "null_sums", "percentile", "unit_keys", "worst_decile",
]  # fmt: skip

Array = NDArray[np.float64]
#: (values (n,), weights (..., n)) -> numbers (...,); NaN where no weight is left
WeightedStatistic = Callable[[Array, Array], Any]


def mean(values: Array, weights: Array) -> Any:
    """Return ``sum w v / sum w`` over defined values; values (n,), weights (..., n), result (...,)."""
    ok = ~np.isnan(values)
    w = weights[..., ok]
    return _ratio(w @ values[ok], w.sum(-1))


def worst_decile(values: Array, weights: Array) -> Any:
    """Return the mean of the lowest tenth of the weight; the unit at the border counts in part; shapes as `mean`."""
    ok = ~np.isnan(values)
    v, w = values[ok], weights[..., ok]
    order = np.argsort(v, kind="stable")
    v, w = v[order], w[..., order]
    limit = 0.1 * w.sum(-1)
    before = np.cumsum(w, -1) - w
    share = np.clip(limit[..., None] - before, 0.0, w)
    return _ratio(share @ v, limit)


def gini(values: Array, weights: Array) -> Any:
    """Return the Gini coefficient of non-negative values: 0 equal, towards 1 concentrated; 0 when all are 0."""
    ok = ~np.isnan(values)
    v, w = values[ok], weights[..., ok]
    order = np.argsort(v, kind="stable")
    v, w = v[order], w[..., order]
    total, mass = w.sum(-1), w @ v
    own = w * v
    lorenz = (w * (2.0 * np.cumsum(own, -1) - own)).sum(-1)  # twice the area below the Lorenz curve, times both sums
    even = np.where(total > 0, 0.0, np.nan)  # nobody has anything: all are equal
    return np.where(mass > 0, 1.0 - lorenz / np.where(mass > 0, mass * total, 1.0), even)[()]


def auc(values: Array, weights: Array, positive: NDArray[np.bool_]) -> Any:
    """Return ``P(v_i > v_j) + P(v_i = v_j) / 2`` for i positive and j not, drawn by weight.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Scores; NaN is left out.
    weights : ndarray, shape (..., n)
        Non-negative.
    positive : ndarray of bool, shape (n,)

    Returns
    -------
    float or ndarray, shape (...,)
        In [0, 1]; NaN where a side has no weight.
    """
    ok = ~np.isnan(values)
    order = np.flatnonzero(ok)[np.argsort(values[ok], kind="stable")]
    if not len(order):
        return np.full(weights.shape[:-1], np.nan)[()]
    v, w, first = values[order], weights[..., order], positive[order]
    start = np.flatnonzero(np.r_[True, v[1:] != v[:-1]])  # first place of each level of equal scores
    up = np.add.reduceat(np.where(first, w, 0.0), start, -1)
    down = np.add.reduceat(np.where(first, 0.0, w), start, -1)
    below = np.cumsum(down, -1) - 0.5 * down  # equal scores count half
    return _ratio((up * below).sum(-1), up.sum(-1) * down.sum(-1))


def _ratio(top: Any, bottom: Any) -> Any:
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)[()]


STATISTICS: Mapping[str, WeightedStatistic] = {"mean": mean, "worst_decile": worst_decile, "gini": gini}


def draw_weights(seeds: int, units: int, draws: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return multiplicities of seeds (draws, seeds) and of units (draws, units) under resampling."""
    found = np.empty((draws, seeds)), np.empty((draws, units))
    for one in found:
        fill_multiplicities(one, rng)
    return found


def fill_multiplicities(out: NDArray[Any], rng: np.random.Generator) -> None:
    """Fill rows (..., n) with how often each of n things is drawn when n are drawn with replacement."""
    size = out.shape[-1]
    for row in out:
        row[:] = np.bincount(rng.integers(0, size, size), minlength=size)


def percentile(samples: Array, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of bootstrap samples, ignoring draws where the statistic was undefined."""
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return float("nan"), float("nan")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return float(low), float(high)


def null_gap(values: Array, first: NDArray[np.bool_], draws: int, rng: np.random.Generator) -> Array:
    """Return gaps of the mean under random grouping: group sizes kept, labels permuted, shape (draws,).

    About ``0.8 x`` the standard error is the mean of their absolute value when there is no difference at all.
    """
    ok = ~np.isnan(values)
    v, size = values[ok], int(first[ok].sum())
    n = len(v)
    if size in (0, n):
        return np.full(draws, np.nan)
    total = v.sum()
    gaps = np.empty(draws)
    for d in range(draws):
        top = v[rng.permutation(n)[:size]].sum()
        gaps[d] = top / size - (total - top) / (n - size)
    return gaps


def combine(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Number the distinct rows of some columns (n,) in their sorted order, the first column first; shape (n,)."""
    code = np.unique(columns[0], return_inverse=True)[1].astype(np.int64)
    for column in columns[1:]:
        own = np.unique(column, return_inverse=True)[1]
        code = np.unique(code * (int(own.max(initial=0)) + 1) + own, return_inverse=True)[1].astype(np.int64)
    return code


def null_counts(
    stratum: NDArray[np.int64], into: NDArray[np.int64], group: NDArray[np.int64], values: Array, groups: int,
    draws: int, rng: np.random.Generator,
) -> Array:  # fmt: skip
    """Return sums of 0/1 values by group when group labels are permuted inside each stratum.

    Rows of a stratum with the same values are alike, so a permutation is a draw of how many of each kind go to each
    group: multivariate hypergeometric, one group after the other. That is the law of a permutation, not close to it.

    Parameters
    ----------
    stratum : ndarray of int, shape (n,)
        Labels change places inside a stratum only; a metric is defined for all of its rows or for none.
    into : ndarray of int, shape (n,)
        Place K of the result that a row is added to; the same in a whole stratum.
    group : ndarray of int, shape (n,)
        In [0, groups).
    values : ndarray, shape (M, n)
        0, 1 or NaN.

    Returns
    -------
    ndarray, shape (draws, K, groups, M)
        K is one more than the largest of `into`.
    """
    out = np.zeros((draws, int(into.max(initial=-1)) + 1, groups, len(values)))
    if not len(stratum):
        return out
    pair = combine([stratum, *np.where(np.isnan(values), 2.0, values)])
    first = np.unique(pair, return_index=True)[1]  # one row of every kind
    own = stratum[first]
    kind = np.arange(len(first)) - np.searchsorted(own, own)  # numbered inside the stratum
    strata, kinds = int(own[-1]) + 1, int(kind.max()) + 1
    left = np.zeros((draws, strata, kinds), dtype=np.int64)
    left[:, own, kind] = np.bincount(pair)
    worth = np.zeros((strata, kinds, len(values)))
    worth[own, kind] = np.nan_to_num(values[:, first]).T
    size = np.bincount(stratum * groups + group, minlength=strata * groups).reshape(strata, groups)  # (strata, groups)
    place = np.zeros(strata, dtype=np.int64)
    place[own] = into[first]
    for g in range(groups):
        taken = left if g == groups - 1 else _draw_without_return(left, size[:, g], rng)
        sums = np.matmul(taken.transpose(1, 0, 2).astype(np.float64), worth)  # (strata, draws, M)
        for h, k in enumerate(place):
            out[:, k, g] += sums[h]
        left = left - taken
    return out


def _draw_without_return(left: NDArray[np.int64], size: NDArray[np.int64], rng: np.random.Generator) -> Any:
    """Draw ``size`` (H,) rows from what is left (draws, H, kinds) and return how many of each kind."""
    taken = np.zeros_like(left)
    need = np.broadcast_to(size, left.shape[:2]).copy()
    rest = left.sum(-1)
    for t in range(left.shape[2]):
        rest = rest - left[..., t]
        taken[..., t] = rng.hypergeometric(left[..., t], rest, need)
        need -= taken[..., t]
    return taken


def unit_keys(units: int, draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield a random number for every unit in every draw, some draws at a time: shapes (some draws, units)."""
    step = max(1, (1 << 22) // max(1, units))  # 32 MB at once
    for begin in range(0, draws, step):
        yield rng.random((min(step, draws - begin), units))


def null_sums(
    stratum: NDArray[np.int64], into: NDArray[np.int64], group: NDArray[np.int64], values: Array, groups: int,
    unit: NDArray[np.int64], keys: Iterable[Array],
) -> Array:  # fmt: skip
    """Return the same sums as `null_counts` of any values, by permuting labels row by row.

    In each stratum the rows with the smallest keys get the first group, the next ones the second, and so on: with
    independent keys a permutation of the labels. A unit has one key a draw. Where it stands in several strata (at
    several seeds) it so tends to the same group in all of them, as it would if its label itself were permuted.

    Parameters
    ----------
    stratum, into, group, values, groups
        As of `null_counts`, `values` of any size.
    unit : ndarray of int, shape (n,)
        Unit of each row; at most once in a stratum.
    keys : iterable of ndarray, shape (some draws, units)
        As of `unit_keys`.

    Returns
    -------
    ndarray, shape (draws, K, groups, M)
    """
    order = np.argsort(stratum, kind="stable")
    worth, label, place = np.nan_to_num(values).T[order], group[order], into[order]  # (n, M), (n,), (n,)
    ends = [*(np.flatnonzero(np.diff(stratum[order])) + 1), len(order)] if len(order) else []
    parts = []
    for some in keys:
        own = some[:, unit[order]]  # (some draws, n)
        out = np.zeros((len(own), int(into.max(initial=-1)) + 1, groups, len(values)))
        for begin, end in itertools.pairwise([0, *ends]):
            z, v = own[:, begin:end], worth[begin:end]
            to = np.cumsum(np.bincount(label[begin:end], minlength=groups))
            inner = np.unique(to[(to > 0) & (to < end - begin)])  # where one group ends and another begins
            edge = np.partition(z, inner, axis=1)[:, inner] if len(inner) else z[:, :0]
            cumulative = [np.zeros((len(z), len(values)))]  # sums of all groups up to one
            for i in range(len(inner)):
                cumulative.append((z < edge[:, [i]]).astype(np.float64) @ v)
            cumulative.append(np.broadcast_to(v.sum(0), cumulative[0].shape))
            at = np.where(to > 0, 1 + np.searchsorted(inner, to), 0)
            for g in range(groups):
                out[:, place[begin], g] += cumulative[at[g]] - (cumulative[at[g - 1]] if g else 0.0)
        parts.append(out)
    return np.concatenate(parts)


def holm(p: Array) -> Array:
    """Return Holm's step-down adjusted p-values."""
    order = np.argsort(p)
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted
