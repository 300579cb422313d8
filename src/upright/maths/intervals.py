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

import numpy as np
from numpy.typing import NDArray

__all__ = ["STATISTICS", "draw_weights", "gini", "holm", "mean", "null_gap", "percentile", "worst_decile"]

Array = NDArray[np.float64]
#: (values (n,), weights (n,)) -> number; NaN when no weight is left
WeightedStatistic = Callable[[Array, Array], float]


def mean(values: Array, weights: Array) -> float:
    """Return ``sum w v / sum w`` over defined values."""
    ok = ~np.isnan(values)
    total = weights[ok].sum()
    return float((weights[ok] * values[ok]).sum() / total) if total > 0 else float("nan")


def worst_decile(values: Array, weights: Array) -> float:
    """Return the mean of the lowest tenth of the weight; the unit at the border counts in part."""
    ok = ~np.isnan(values) & (weights > 0)
    v, w = values[ok], weights[ok]
    if not len(v):
        return float("nan")
    order = np.argsort(v, kind="stable")
    v, w = v[order], w[order]
    limit = 0.1 * w.sum()
    before = np.cumsum(w) - w
    share = np.clip(limit - before, 0.0, w)
    return float((share * v).sum() / limit)


def gini(values: Array, weights: Array) -> float:
    """Return the Gini coefficient of non-negative values: 0 equal, towards 1 concentrated; 0 when all are 0."""
    ok = ~np.isnan(values) & (weights > 0)
    v, w = values[ok], weights[ok]
    if not len(v):
        return float("nan")
    order = np.argsort(v, kind="stable")
    v, w = v[order], w[order]
    mass = (v * w).sum()
    if mass <= 0:
        return 0.0
    lorenz = np.cumsum(v * w) / mass
    return float(1.0 - (w / w.sum() * (2.0 * lorenz - v * w / mass)).sum())


STATISTICS: Mapping[str, WeightedStatistic] = {"mean": mean, "worst_decile": worst_decile, "gini": gini}


def draw_weights(seeds: int, units: int, draws: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return multiplicities of seeds (draws, seeds) and of units (draws, units) under resampling."""
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=draws).astype(np.float64)
    of_units = rng.multinomial(units, np.full(units, 1.0 / units), size=draws).astype(np.float64)
    return of_seeds, of_units


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
