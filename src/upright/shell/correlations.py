"""Rank correlation of two values of the same units, for asking whether a score predicts what it is said to predict.

    rho = Pearson correlation of midranks of x and y, at each seed, averaged over seeds

written ``rank_correlation:x~y``. Units without both values are left out: a censored count is no count. A draw weighs
units by their multiplicity, and midranks with it: ``rank_i = sum_{x_j < x_i} w_j + (1/2) sum_{x_j = x_i} w_j``.

*Null.* Values of y change places among the units of a seed; the band holds 95 % of the averages over seeds.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from upright.contract import Metric, stream
from upright.shell.units import Units

__all__ = ["NAMES", "Correlations", "Draws", "known", "label", "pair", "weighted_rank_correlation"]

Array = NDArray[np.float64]
NAMES = ("rank_correlation",)
PERMUTATIONS = 500


class Draws(Protocol):
    """What a correlation needs of the bootstrap."""

    units: Units
    seed: int

    def each(self, units: NDArray[np.int64]) -> Array:
        """Return how often each of some units is drawn, shape (1 + draws, U); row 0 is the data."""

    def average(self, per_seed: list[Array]) -> Array:
        """Return the average of arrays (1 + draws,) by the multiplicity of their seeds."""


def pair(metric: str) -> tuple[str, str]:
    """Return x and y of ``x~y``."""
    x, _, y = metric.partition("~")
    return x, y


def known(metric: str, units: Units) -> bool:
    """Whether the table holds both values."""
    return all(one in units.metrics for one in pair(metric))


def label(x: Metric, y: Metric) -> str:
    """Return how a report names a correlation."""
    return f"Rank correlation: {x.title or x.name} with {y.title or y.name}"


def weighted_rank_correlation(x: Array, y: Array, weights: Array) -> Array:
    """Return Spearman's rho of two vectors under each row of weights; NaN where one of them is constant.

    Parameters
    ----------
    x, y : ndarray, shape (U,)
    weights : ndarray, shape (D, U)
        Not negative.

    Returns
    -------
    ndarray, shape (D,)
    """
    total = np.maximum(weights.sum(1, keepdims=True), 1e-300)
    a, b = (_midranks(v, weights) for v in (x, y))
    a, b = (r - (weights * r).sum(1, keepdims=True) / total for r in (a, b))
    spread = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
    both = (weights * a * b).sum(1)
    return np.asarray(np.divide(both, spread, out=np.full(len(both), np.nan), where=spread > 1e-12))


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


class Correlations:
    """Rank correlations of every arm on the data (row 0) and on each draw, and under permuted values."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.units = draws, draws.units

    def _pairs(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> list[tuple[Array, Array]]:
        """Return x and y of each seed, shape (units,), NaN in both where one is not defined or outside the cell."""
        x, y = (self.units.values(arm, one) for one in pair(metric))
        ok = ~np.isnan(x) & ~np.isnan(y)
        if cell is not None:
            ok &= self.units.by[str(grouping)] == cell
        return [(np.where(o, a, np.nan), np.where(o, b, np.nan)) for a, b, o in zip(x, y, ok, strict=True)]

    def of(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """Return the value and its draws, shape (1 + draws,)."""
        per_seed = []
        for x, y in self._pairs(metric, grouping, arm, cell):
            ok = np.flatnonzero(~np.isnan(x))
            per_seed.append(weighted_rank_correlation(x[ok], y[ok], self.draws.each(ok)))
        return self.draws.average(per_seed)

    def defined(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> tuple[int, int]:
        """Return how many units have both values at one seed at least, and how many have one of them alone."""
        x, y = (~np.isnan(self.units.values(arm, one)) for one in pair(metric))
        inside = np.ones_like(x) if cell is None else self.units.by[str(grouping)] == cell
        both = (x & y & inside).any(0)
        return int(both.sum()), int(((x | y) & inside).any(0).sum() - both.sum())

    def null(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """Return the average over seeds with y permuted among the units of each, shape (PERMUTATIONS,)."""
        from scipy.stats import rankdata

        rng = np.random.default_rng(stream(self.draws.seed, "evidence", "null", "rank_correlation"))
        found = []
        for x, y in self._pairs(metric, grouping, arm, cell):
            ok = ~np.isnan(x)
            a, b = (rankdata(v[ok]) - (ok.sum() + 1) / 2 for v in (x, y))
            spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
            if spread > 0:
                found.append(np.array([float(a @ rng.permutation(b)) / spread for _ in range(PERMUTATIONS)]))
        return np.asarray(np.mean(found, axis=0)) if found else np.full(PERMUTATIONS, np.nan)
