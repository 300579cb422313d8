"""Rank correlation of two values of the same units, for asking whether a score predicts what it is said to predict.

    rho = Pearson correlation of midranks of x and y, at each seed, averaged over seeds

written ``rank_correlation:x~y``. With ``x~y|z`` it is the partial correlation: midranks of x and y without what is
linear in those of z. Units without all values are left out: a censored count is no count. A draw weighs
units by their multiplicity, and midranks with it: ``rank_i = sum_{x_j < x_i} w_j + (1/2) sum_{x_j = x_i} w_j``.

*Null.* Values of y change places among the units of a seed; the band holds 95 % of the averages over seeds.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upright.contract import Metric, stream
from upright.shell.units import Units

__all__ = ["NAMES", "Correlations", "Draws", "known", "label", "parts", "weighted_rank_correlation"]

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


def parts(metric: str) -> tuple[str, ...]:
    """Return x and y of ``x~y``, and z of ``x~y|z``."""
    x, _, rest = metric.partition("~")
    y, _, z = rest.partition("|")
    return (x, y, z) if z else (x, y)


def known(metric: str, units: Units) -> bool:
    """Whether the table holds both values."""
    return all(one in units.metrics for one in parts(metric))


def label(x: Metric, y: Metric, z: Metric | None = None) -> str:
    """Return how a report names a correlation."""
    given = f", given {z.title or z.name}" if z else ""
    return f"Rank correlation: {x.title or x.name} with {y.title or y.name}{given}"


def weighted_rank_correlation(x: Array, y: Array, weights: Array, given: Array | None = None) -> Array:
    """Return Spearman's rho of two vectors under each row of weights; NaN where one of them is constant.

    Parameters
    ----------
    x, y : ndarray, shape (U,)
    given : ndarray, shape (U,), optional
        For the partial correlation: residuals of midranks on its midranks. NaN where nothing of x or y is left.
    weights : ndarray, shape (D, U)
        Not negative.

    Returns
    -------
    ndarray, shape (D,)
    """
    total = np.maximum(weights.sum(1, keepdims=True), 1e-300)
    a, b = (_midranks(v, weights) for v in (x, y))
    a, b = (r - (weights * r).sum(1, keepdims=True) / total for r in (a, b))
    if given is not None:
        c = _midranks(given, weights)
        c = c - (weights * c).sum(1, keepdims=True) / total
        own = np.maximum((weights * c * c).sum(1, keepdims=True), 1e-300)
        a, b = (r - (weights * r * c).sum(1, keepdims=True) / own * c for r in (a, b))
    spread = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
    both = (weights * a * b).sum(1)
    least = 1e-9 * total[:, 0] ** 3  # ranks run up to the total weight; below is rounding
    return np.asarray(np.divide(both, spread, out=np.full(len(both), np.nan), where=spread > least))


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

    def _values(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> list[tuple[Any, ...]]:
        """Return x, y and z of each seed where all are defined, and the places of these units, shape (u,) each."""
        tables = [self.units.values(arm, one) for one in parts(metric)]
        ok = ~np.any([np.isnan(table) for table in tables], axis=0)
        if cell is not None:
            ok &= self.units.by[str(grouping)] == cell
        return [(*(table[s][ok[s]] for table in tables), np.flatnonzero(ok[s])) for s in range(len(ok))]

    def of(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """Return the value and its draws, shape (1 + draws,)."""
        per_seed = []
        for x, y, *z, at in self._values(metric, grouping, arm, cell):
            per_seed.append(weighted_rank_correlation(x, y, self.draws.each(at), *z))
        return self.draws.average(per_seed)

    def defined(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> tuple[int, int]:
        """Return how many units have all values at one seed at least, and how many have some of them alone."""
        have = np.array([~np.isnan(self.units.values(arm, one)) for one in parts(metric)])
        inside = np.ones_like(have[0]) if cell is None else self.units.by[str(grouping)] == cell
        every = (have.all(0) & inside).any(0)
        return int(every.sum()), int((have.any(0) & inside).any(0).sum() - every.sum())

    def null(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """Return the average over seeds with y permuted among the units of each, shape (PERMUTATIONS,)."""
        rng = np.random.default_rng(stream(self.draws.seed, "evidence", "null", "rank_correlation"))
        found = []
        for x, y, *z, at in self._values(metric, grouping, arm, cell):
            one = np.ones((1, len(at)))
            if len(at) > 2 and np.isfinite(weighted_rank_correlation(x, y, one, *z))[0]:
                shuffled = [weighted_rank_correlation(x, rng.permutation(y), one, *z)[0] for _ in range(PERMUTATIONS)]
                found.append(np.array(shuffled))
        return np.asarray(np.mean(found, axis=0)) if found else np.full(PERMUTATIONS, np.nan)
