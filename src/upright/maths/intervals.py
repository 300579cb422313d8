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

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "STATISTICS", "auc", "draw_weights", "fill_multiplicities", "gini", "holm", "mean", "null_gap", "percentile",
    "worst_decile",
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


def holm(p: Array) -> Array:
    """Return Holm's step-down adjusted p-values."""
    order = np.argsort(p)
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted
