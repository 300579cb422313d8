"""The one bootstrap: paired, in two levels, seeds and then clusters of units; every arm meets the same draws.

*Why clusters are drawn whole, with all their seeds.* The questions of one author share a cause, and a user at six seeds
is one user, not six: drawn singly they would count as independent. Units without a cluster are their own.

*Buckets.* Above 5,000 clusters, ratios of sums draw 2,000 random groups of clusters, equal in size to within one. With
B groups of C clusters the variance of a sum is on average ``(1 - 1/B) / (1 - 1/C)`` times that of drawing clusters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import stream
from upright.evidence.units import Units
from upright.maths import intervals
from upright.maths.resampling import Combine, Draws, two_level
from upright.maths.simultaneous import BUCKETS, MOST

__all__ = ["DRAWS", "Bootstrap"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
DRAWS = 2_000
_CHUNK_ELEMENTS = 1 << 22  # weights held at once in float64: 32 MB


class Bootstrap:
    """The draws of one unit table, and what statistics are made from.

    Parameters
    ----------
    units : Units
    draws : int
        D.
    seed : int
        Of the named streams.
    """

    def __init__(self, units: Units, draws: int = DRAWS, seed: int = 0) -> None:
        self.units, self.seed, n = units, seed, units.n_clusters
        rng, place = np.random.default_rng(stream(seed, "evidence")), np.arange(n)
        if n > MOST:
            place = np.random.default_rng(stream(seed, "evidence", "buckets")).permutation(n) % BUCKETS
        self.bucket = place[units.cluster]  # (U,): what each unit is drawn with
        self.seed_weight = np.ones((draws, len(units.seeds)))
        self._weight = np.ones((1 + draws, BUCKETS if n > MOST else n), dtype=np.float32)  # row 0: the data
        for weight in (self.seed_weight, self._weight[1:]):
            intervals.fill_multiplicities(weight, rng)
        self._kept: dict[Any, Any] = {}

    def of(self, units: Units) -> Bootstrap:
        """Return the same draws of a table with the same units and seeds."""
        found = copy.copy(self)
        found.units, found._kept = units, {}
        return found

    def keep(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return what ``make()`` gives, made once for all statistics that ask with the same key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def null_rng(self, name: str) -> np.random.Generator:
        """Return the generator of a null; the same for every arm, so that arms meet the same moves."""
        return np.random.default_rng(stream(self.seed, "evidence", "null", name))

    def sums(self, columns: Array) -> Array:
        """Return sums over drawn units of columns (k, S, U), shape (k, 1 + D, S); the first row is the data."""
        k, s, _ = columns.shape
        flat, n = columns.reshape(k * s, -1), self._weight.shape[1]
        if n < flat.shape[1]:
            flat = np.stack([np.bincount(self.bucket, c, n) for c in flat])
        step = max(1, _CHUNK_ELEMENTS // max(1, n))
        parts = [self._weight[i : i + step].astype(np.float64) @ flat.T for i in range(0, len(self._weight), step)]
        return np.concatenate(parts).reshape(-1, k, s).transpose(1, 0, 2)

    def mean_sums(self, values: Array) -> Array:
        """Return sums and numbers of defined values (S, U), shape (2, 1 + D, S)."""
        known = ~np.isnan(values)
        return self.sums(np.stack([np.where(known, values, 0.0), known.astype(np.float64)]))

    def per_seed(self, f: Callable[..., Any], values: Array, *others: NDArray[Any]) -> Array:
        """Return ``f(values (n,), weights (d, n), *others)`` of the defined units at each seed, shape (1, 1 + D, S)."""
        found = []
        for s, v in enumerate(values):
            ok = np.flatnonzero(~np.isnan(v))
            own, cluster = [o[s, ok] for o in others], self.units.cluster[ok]
            found.append(np.concatenate([f(v[ok], w[:, cluster].astype(np.float64), *own) for w in self._chunks()]))
        return np.stack(found, axis=-1)[None]

    def _chunks(self) -> Iterator[NDArray[np.float32]]:
        """Yield weights of single clusters, some draws at a time; of many they are drawn again rather than kept."""
        n = self.units.n_clusters
        step, rng = max(1, _CHUNK_ELEMENTS // max(1, n)), np.random.default_rng(stream(self.seed, "evidence", "units"))
        for i in range(0, len(self._weight), step):
            if n <= MOST:
                yield self._weight[i : i + step]
                continue
            part = np.ones((min(step, len(self._weight) - i), n), dtype=np.float32)
            intervals.fill_multiplicities(part[i == 0 :], rng)
            yield part

    def draws(self, combine: Combine, pieces: Array, *sides: Bools) -> Draws:
        """Return the draws of pieces (k, 1 + D, S); `sides` are the units (S, U) that each compared side rests on."""
        sizes, own = [side.sum(0) for side in sides], self.units
        sizes = [np.bincount(own.cluster, size, own.n_clusters) for size in sizes] if own.clustered else sizes
        return two_level(combine, pieces, self.seed_weight, sizes)
