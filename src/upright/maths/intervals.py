"""Statistics of weighted units, multiplicities of a resampling, percentile intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fill_multiplicities", "gini", "mean", "percentile", "worst_decile"]

Array = NDArray[np.float64]


def mean(values: Array, weights: Array) -> Any:
    """Return ``sum w v / sum w`` over defined values; values (n,), weights (..., n), result (...,)."""
    ok = ~np.isnan(values)
    w = weights[..., ok]
    return _ratio(w @ values[ok], w.sum(-1))


def worst_decile(values: Array, weights: Array) -> Any:
    """Return the mean of the lowest tenth of the weight; the unit at the border counts in part; shapes as `mean`.

    It needs no groups, so it sees badly served users whom no grouping names. Of a ranking metric with many zeros it is
    often 0 in every arm: then it says nothing. Range and direction are those of the metric.

    >>> values = np.array([0.0, 0.3] + [0.8] * 13)  # a tenth of 15 users: the lowest, and half of the next
    >>> float(worst_decile(values, np.ones(15)).round(4))
    0.1
    """
    ok = ~np.isnan(values)
    v, w = values[ok], weights[..., ok]
    order, limit = np.argsort(v, kind="stable"), 0.1 * w.sum(-1)
    some = len(v) // 6 + 1  # the tenth mostly lies among these
    while True:
        first = w[..., order[:some]]
        up_to = np.cumsum(first, -1)
        if some >= len(v) or (up_to[..., -1] >= limit).all():
            break
        some *= 2
    share = np.clip(limit[..., None] - (up_to - first), 0.0, first)
    return _ratio(share @ v[order[:some]], limit)


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


def _ratio(top: Any, bottom: Any) -> Any:
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)[()]


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
