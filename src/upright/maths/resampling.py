r"""Two-level resampling: seeds and clusters of units, drawn apart and put together with the right width.

A statistic is a function ``f(a, b)`` of the multiplicities a of seeds and b of clusters. On draw d

    s = f(a, 1) - f,   u = f(1, b) - f,   i = f(a, b) - f - s - u

so that ``f + s + u + i`` is the plain bootstrap of a crossed design. Seeds and clusters are few, so the parts are
stretched, never the weights (no weight is negative, so ratios and other functions bear it):

    draw = f + g (k_n s + k_C u),   k_m = sqrt(m / (m - 1)) t(m - 1) / z
    g^2  = max(V - n / (n - 1) var(i), the larger part) / V,   V = var(k_n s + k_C u)

with n seeds and C clusters, counted as ``(sum n)^2 / sum n^2``. Both parts hold the noise of a unit at a seed; g <= 1
takes one of them off. One seed is not drawn, seeds without a value are not counted, and differences are of seeds where
both have one. One cluster says nothing of others: no draw is defined then.

References: Davison and Hinkley, *Bootstrap Methods and their Application*, chapter 3; Owen, *The pigeonhole bootstrap*,
Annals of Applied Statistics 1 (2007).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from upright.contract import InputError
from upright.maths.intervals import percentile
from upright.maths.simultaneous import LEVEL, Z, kish_count, stretch

__all__ = [
    "Draws",
    "Jackknife",
    "average",
    "front_distance",
    "jackknife",
    "mean_of_ratios",
    "ratio_of_sums",
    "two_level",
]

Array = NDArray[np.float64]
#: (pieces (k, d, S), weights of seeds (d or 1, S)) -> values (d,)
Combine = Callable[[Array, Array], Array]


def average(values: Array, weights: Array) -> Array:
    """Average values (d, S) by the multiplicity of their seeds; a seed without a value is left out; shape (d,)."""
    known = ~np.isnan(values)
    w = np.where(known, weights, 0.0)
    up, total = (np.where(known, values, 0.0) * w).sum(-1), w.sum(-1)
    return np.asarray(np.divide(up, total, out=np.full(up.shape, np.nan), where=total > 0))


def ratio_of_sums(pieces: Array, weights: Array) -> Array:
    """Return ``sum_s a_s top_s / sum_s a_s bottom_s`` of sums (2, d, S), shape (d,); NaN without weight."""
    top, bottom = (pieces * weights).sum(-1)
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))


def mean_of_ratios(pieces: Array, weights: Array) -> Array:
    """Average over seeds the ratios of sums (2, d, S), shape (d,)."""
    top, bottom = pieces
    return average(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0), weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """A statistic on the data and the parts of its draws; differences of two are taken draw by draw.

    Parameters
    ----------
    value : float
    seeds, units, both : ndarray, shape (D,)
        s, u and i.
    n_seeds : int
        With a value.
    worth : float
        C.
    each : ndarray, shape (S,)
        The value at each seed by itself.
    over : callable, optional
        Of some seeds (S,): the same of them alone.
    """

    value: float
    seeds: Array
    units: Array
    both: Array
    n_seeds: int
    worth: float
    each: Array
    over: Callable[[NDArray[np.bool_]], Draws] | None = None

    def __sub__(self, other: Draws | float) -> Draws:
        own, its = self.over, other.over if isinstance(other, Draws) else None
        if not isinstance(other, Draws):
            least = own and (lambda some: own(some) - other)
            return dataclasses.replace(self, value=self.value - other, each=self.each - other, over=least)
        both = np.isfinite(self.each) & np.isfinite(other.each)
        if own and its and max(self.n_seeds, other.n_seeds) > both.sum() > 0:
            return own(both) - its(both)
        value = self.value - other.value
        value = 0.0 if abs(value) < 1e-12 else value  # rounding is no difference
        s, u, i = self.seeds - other.seeds, self.units - other.units, self.both - other.both
        return Draws(value, s, u, i, int(both.sum()), min(self.worth, other.worth), self.each - other.each)

    def __mul__(self, factor: float) -> Draws:
        own, (s, u, i) = self.over, (part * factor for part in (self.seeds, self.units, self.both))
        some = own and (lambda some: own(some) * factor)
        return Draws(self.value * factor, s, u, i, self.n_seeds, self.worth, self.each * factor, some)

    def plain(self) -> Array:
        """Return the plain crossed bootstrap, shape (D,)."""
        return self.value + self.seeds + self.units + self.both

    def samples(self) -> Array:
        """Return the stretched draws, shape (D,)."""
        s, u = self._stretched()
        total, least = _variance(s + u), max(_variance(s), _variance(u))
        noise = self.n_seeds / (self.n_seeds - 1) * _variance(self.both) if self.n_seeds > 1 else 0.0
        g = min(np.sqrt(max(total - noise, least) / total), 1.0) if total > 0 else 1.0
        return np.asarray(self.value + g * (s + u))

    def interval(self, critical: float = Z) -> tuple[float, float]:
        """Return the percentile interval, wider where it must hold for one that was picked of several."""
        low, high = (self.value + critical / Z * (end - self.value) for end in percentile(self.samples(), 1 - LEVEL))
        return (0.0 if abs(low) < 1e-12 else low), (0.0 if abs(high) < 1e-12 else high)

    def standard_error(self) -> float:
        """Return the deviation of the stretched draws; NaN where none is defined."""
        samples = self.samples()
        return float(np.sqrt(_variance(samples))) if np.isfinite(samples).any() else float("nan")

    def seed_share(self) -> float:
        """Return the share of the variance that lies between seeds, in [0, 1]."""
        s, u = map(_variance, self._stretched())
        return s / (s + u) if s + u > 0 else 0.0

    def _stretched(self) -> tuple[Array, Array]:
        few = stretch(max(self.worth, 2.0)) if self.worth > 1 + 1e-9 else np.nan
        return self.seeds * stretch(self.n_seeds), self.units * few


def _variance(a: Array) -> float:
    known = a[np.isfinite(a)]
    return float(known.var()) if len(known) else 0.0


def front_distance(first: Sequence[Array], second: Sequence[Array], points: int = 33) -> Array | None:
    """Return how much more the first of two fronts costs, on average over the harms that both reach.

    Parameters
    ----------
    first, second : (harm, cost), ndarrays of shape (K, 1 + D)
        Of K strengths, on the data and on each draw.
    points : int
        Of the grid of harms, which is fixed on the data.

    Returns
    -------
    ndarray, shape (1 + D,), or None
        Mean difference of the costs, interpolated between strengths; None where no harm is reached by both.
    """
    low = max(first[0][:, 0].min(), second[0][:, 0].min())
    high = min(first[0][:, 0].max(), second[0][:, 0].max())
    if not low < high:
        return None
    grid = np.linspace(low, high, points)

    def along(front: Sequence[Array]) -> Array:
        order = np.argsort(front[0], axis=0)
        x, y = (np.take_along_axis(axis, order, 0) for axis in front)
        return np.array([np.interp(grid, a, b).mean() for a, b in zip(x.T, y.T, strict=True)])

    return along(first) - along(second)


def two_level(combine: Combine, pieces: Array, weights: Array, sizes: Sequence[NDArray[Any]]) -> Draws:
    """Return the draws of a statistic.

    Parameters
    ----------
    combine : callable
        Of pieces and weights of seeds; on the data its weights are 1.
    pieces : ndarray, shape (k, 1 + D, S)
        What it is made of at each seed: on the data, then under each draw of clusters.
    weights : ndarray, shape (D, S)
        Multiplicities of seeds.
    sizes : sequence of ndarray, shape (C,)
        Units that each cluster gives to each side that is compared; the side of fewest clusters counts.
    """
    each, worth = combine(pieces[:, :1], np.eye(pieces.shape[-1])), float(min(map(kish_count, sizes)))

    def over(some: NDArray[np.bool_]) -> Draws:
        data, drawn, w = pieces[:, :1, some], pieces[:, 1:, some], weights[:, some]
        own, one = np.where(some, each, np.nan), np.ones((1, some.sum()))
        value, n = float(combine(data, one)[0]), int(np.isfinite(own).sum())
        units = combine(drawn, one) - value
        if some.sum() < 2:
            return Draws(value, np.zeros_like(units), units, np.zeros_like(units), n, worth, own, over)
        seeds = combine(data, w) - value
        return Draws(value, seeds, units, combine(drawn, w) - value - seeds - units, n, worth, own, over)

    return over(np.ones(len(each), dtype=bool))


class Jackknife(NamedTuple):
    """Scores of n things with what is certain of them, shape (n,) each.

    Parameters
    ----------
    score : ndarray of float64
        Mean over the blocks, weighted by their sizes.
    low, high : ndarray of float64
        95 % interval of each by itself.
    certain : ndarray of int8
        Sign where the score is told from 0 among all n, else 0.
    least : ndarray of float64
        The smallest size that four of five such studies would be certain of.
    """

    score: Array
    low: Array
    high: Array
    certain: NDArray[np.int8]
    least: Array


def jackknife(scores: ArrayLike, sizes: ArrayLike) -> Jackknife:
    """Return means over blocks with intervals and certain signs, by the jackknife of blocks of unequal size.

    ``s_i = sum_k n_k s_ik / N`` of blocks k of ``n_k`` of N things. With ``h_k = N / n_k`` its variance is
    ``(1 / m) sum_k (s_ik - s_i)^2 / (h_k - 1)``, which for equal blocks is their variance over m. Intervals and p take
    quantiles of t with m - 1 degrees. Signs are certain after Benjamini and Hochberg's step at 5 % over the n, so that
    of those that are called certain 5 % at most are expected to be wrong.

    Parameters
    ----------
    scores : array_like, shape (n, m)
        Of n things by m blocks.
    sizes : array_like, shape (m,)
        Above 0.

    Returns
    -------
    Jackknife

    Raises
    ------
    InputError
        With fewer than two blocks, sizes that do not fit, or scores that are not finite.

    References
    ----------
    Busing, Meijer and van der Leeden, Statistics and Computing 9 (1999) 3; Benjamini and Hochberg, Journal of the
    Royal Statistical Society B 57 (1995) 289.
    """
    from scipy.stats import false_discovery_control  # half a second, which a typo need not wait for

    table, size = np.asarray(scores, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    n, m = table.shape if table.ndim == 2 else (0, 0)
    if m < 2 or size.shape != (m,) or not (size > 0).all() or not np.isfinite(table).all():
        got = f"scores of shape {table.shape}, {(~np.isfinite(table)).sum()} not finite, and {size.size} sizes"
        raise InputError(got, "finite scores (n, m) of m >= 2 blocks and as many sizes above 0", "correct them")
    score = table @ size / size.sum()
    error = np.sqrt(((table - score[:, None]) ** 2 / (size.sum() / size - 1)).mean(axis=1))
    t = np.divide(np.abs(score), error, out=np.where(score == 0, 0.0, np.inf), where=error > 0)
    found = false_discovery_control(2 * stdtr(m - 1, -t)) < LEVEL if n else np.zeros(0, dtype=bool)
    half = stdtrit(m - 1, 1 - LEVEL / 2) * error
    level = LEVEL * max(int(found.sum()), 1) / max(n, 1)  # at which the step ended
    least = (stdtrit(m - 1, 1 - level / 2) + stdtrit(m - 1, 0.8)) * error
    return Jackknife(score, score - half, score + half, (found * np.sign(score)).astype(np.int8), least)
