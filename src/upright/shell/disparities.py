"""Largest differences of rates between groups: of all rows, and inside every client.

With ``r_{g,c}`` the mean of metric ``predicted/<c>`` over the rows of group g at one seed:

=========================  ========================================================================================
``disparity``              ``max over classes c and pairs (g, g') of |r_{g,c} - r_{g',c}|``, averaged over seeds
``client_disparity``       the same inside every client, the maximum over clients
``mean_client_disparity``  the same inside every client, the mean over clients of each client's maximum
=========================  ========================================================================================

Prefixes joined by ``+`` are pooled before the maximum: ``true_positive+false_positive`` is equalised odds. A group that
has no value of a metric is not compared in it. A client in which no metric has two groups is left out and counted.

*Draws.* The value of a seed is the plain maximum: what a user reads and what papers print. For the interval the place
of the maximum (metric, pair, client) and its sign are fixed at each seed on the data and kept in every draw, so a draw
is the average of signed differences and can be negative. A maximum taken anew in each draw would grow with the noise
of the draw, on top of that of the data. The value itself is still biased upwards near 0, by the noise of the data: that
is why the null stands beside it.

*Null.* Group labels are permuted within each set of metrics that are defined (which for true and false positives is:
within each label): over all rows for ``disparity``, within each client for the other two. Predictions, clients and the
size of every cell stay. Were labels permuted within clients for the gap of all rows too, a gap that comes from groups
living at different clients would pass for chance. A unit that stands at several seeds tends to the same group at all of
them; with labels permuted anew at each seed, the average over seeds would vary too little. Where seeds share no unit,
0/1 values are drawn as counts, which has the same law and is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from upright.contract import stream
from upright.maths import intervals
from upright.shell.units import Units

__all__ = ["CLIENT", "CLIENT_NAMES", "NAMES", "Disparities", "Draws", "metrics_of", "spread"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
CLIENT = "client"
CLIENT_NAMES = ("client_disparity", "mean_client_disparity")
NAMES = ("disparity", *CLIENT_NAMES)
PERMUTATIONS = 500


class Draws(Protocol):
    """What disparities need of the bootstrap."""

    units: Units
    seed: int
    bucket: Codes  # (units,): what each unit is drawn with

    def times(self, columns: Array) -> Array:
        """Return weights times columns (buckets, C): shape (1 + draws, C); row 0 is the data."""

    def average(self, per_seed: list[Array]) -> Array:
        """Return the average of arrays (1 + draws,) by the multiplicity of their seeds."""


def metrics_of(names: list[str], prefixes: str) -> dict[str, list[str]]:
    """Return the metrics of each class below all of the prefixes; empty when a prefix has none."""
    found: dict[str, list[str]] = {}
    for prefix in prefixes.split("+"):
        own = [name for name in names if name.startswith(prefix + "/")]
        if not own:
            return {}
        for name in own:
            found.setdefault(name[len(prefix) + 1 :], []).append(name)
    return found


def spread(top: Array, bottom: Array) -> Array:
    """Return ``max over pairs (g, g') of |r_g - r_g'|`` with ``r = top / bottom``.

    Parameters
    ----------
    top, bottom : ndarray, shape (..., G, M)
        Sums and numbers of values of G groups and M metrics.

    Returns
    -------
    ndarray, shape (..., M)
        Not negative; NaN where fewer than two groups have a value.
    """
    high, low = _ends(top, bottom)
    shape = top.shape[:-2] + top.shape[-1:]
    two = np.broadcast_to((bottom > 0).sum(-2) >= 2, shape)
    return np.asarray(np.subtract(high.max(-2), low.min(-2), out=np.full(shape, np.nan), where=two))


def _ends(top: Array, bottom: Array) -> tuple[Array, Array]:
    """Return rates that can only lose a maximum, and a minimum, where there is no value."""
    some = np.broadcast_to(bottom > 0, top.shape)
    return (np.divide(top, bottom, out=np.full(top.shape, -np.inf), where=some),
            np.divide(top, bottom, out=np.full(top.shape, np.inf), where=some))  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """Rows of one arm at one seed that have a group and a value of one metric at least."""

    unit: Codes  # (n,)
    client: Codes  # (n,), below `clients`
    group: Codes  # (n,), below `groups`
    values: Array  # (M, n)
    clients: int
    groups: int

    def sums(self) -> tuple[Array, Array]:
        """Return sums and numbers of values, shape (clients, groups, M)."""
        code, n = self.client * self.groups + self.group, self.clients * self.groups
        shape = (self.clients, self.groups, len(self.values))
        ok = ~np.isnan(self.values)
        top = [
            np.asarray(np.bincount(code[o], v[o], n), dtype=np.float64) for v, o in zip(self.values, ok, strict=True)
        ]
        bottom = [np.bincount(code[o], minlength=n).astype(np.float64) for o in ok]
        return np.stack(top, -1).reshape(shape), np.stack(bottom, -1).reshape(shape)  # (clients, groups, M)


class Disparities:
    """Disparities of every arm on the data (row 0) and on each draw, and under permuted labels."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.units = draws, draws.units
        self._known: dict[tuple[str, ...], Array] = {}
        self._nulls: dict[tuple[str, str], dict[tuple[str, str, str | None], Array]] = {}

    def cells(self, name: str, prefixes: str) -> list[str | None]:
        """None for the whole, and one cell a class; clients differ from seed to seed, so they are no cells."""
        classes = metrics_of(self.units.metrics, prefixes)
        return [None, *classes] if name == "disparity" and len(classes) > 1 else [None]

    def of(self, name: str, prefixes: str, grouping: str, arm: str, cell: str | None) -> Array:
        """Return the value and its draws, shape (1 + draws,)."""
        key = (name, prefixes, grouping, arm, str(cell))
        if key not in self._known:
            seeds = range(len(self.units.seeds))
            parts = [self._columns(name, self._rows(name, prefixes, grouping, arm, cell, s)) for s in seeds]
            both = self.draws.times(np.hstack([part for pair in parts for part in pair]))
            ends = np.cumsum([2 * top.shape[1] for top, _ in parts])[:-1]
            self._known[key] = self.draws.average([_signed(one) for one in np.split(both, ends, axis=1)])
        return self._known[key]

    def defined(self, name: str, prefixes: str, grouping: str, arm: str, cell: str | None) -> tuple[int, int]:
        """Return how many labelled units have a value at one seed at least, and how many have none."""
        labelled = self.units.codes(grouping)[1] >= 0
        if name in CLIENT_NAMES:
            labelled = labelled & (self.units.codes(CLIENT)[1] >= 0)
        have = np.zeros(labelled.shape, dtype=bool)
        for metric in self._metrics(prefixes, cell):
            have |= ~np.isnan(self.units.values(arm, metric))
        found = int((have & labelled).any(0).sum())
        return found, int(labelled.any(0).sum()) - found

    def clients(self, prefixes: str, grouping: str, arm: str) -> tuple[int, int]:
        """Return how many clients there are, counted at every seed, and how many of them are left out."""
        present = left = 0
        for s in range(len(self.units.seeds)):
            code = self.units.codes(CLIENT)[1][s]
            rows = self._rows("client_disparity", prefixes, grouping, arm, None, s)
            total = len(np.unique(code[code >= 0]))
            present += total
            left += total - int((~np.isnan(spread(*rows.sums())).all(-1)).sum())
        return present, left

    def null(self, name: str, prefixes: str, grouping: str, arm: str, cell: str | None) -> Array:
        """Return the same value under permuted group labels, shape (PERMUTATIONS,)."""
        if (prefixes, grouping) not in self._nulls:
            self._nulls[prefixes, grouping] = self._permute(prefixes, grouping)
        return self._nulls[prefixes, grouping][name, arm, cell]

    # -- the data -------------------------------------------------------------------------------------------------

    def _metrics(self, prefixes: str, cell: str | None) -> list[str]:
        classes = metrics_of(self.units.metrics, prefixes)
        return [m for own in classes.values() for m in own] if cell is None else classes[cell]

    def _rows(self, name: str, prefixes: str, grouping: str, arm: str, cell: str | None, s: int) -> _Rows:
        """Rows that a statistic counts at one seed; clients are numbered anew at each seed."""
        names, group = self.units.codes(grouping)
        values = np.stack([self.units.values(arm, m)[s] for m in self._metrics(prefixes, cell)])
        keep = (group[s] >= 0) & ~np.isnan(values).all(0)
        client = np.zeros_like(group[s])
        if name in CLIENT_NAMES:
            client = self.units.codes(CLIENT)[1][s]
            keep &= client >= 0
        unit = np.flatnonzero(keep)
        found, code = np.unique(client[unit], return_inverse=True)
        return _Rows(unit, code.astype(np.int64), group[s, unit], values[:, unit], len(found), len(names))

    def _columns(self, name: str, rows: _Rows) -> tuple[Array, Array]:
        """Return sums and numbers of values in each bucket of the two ends of each place, shape (B, 2 places)."""
        client, metric, high, low = _places(name, *rows.sums())
        n = 2 * len(client)
        column = np.full((rows.clients, rows.groups), -1, dtype=np.int64)
        column[client, high], column[client, low] = np.arange(0, n, 2), np.arange(1, n, 2)
        chosen = np.zeros(rows.clients, dtype=np.int64)
        chosen[client] = metric
        at, v = column[rows.client, rows.group], rows.values[chosen[rows.client], np.arange(len(rows.unit))]
        use = (at >= 0) & ~np.isnan(v)
        buckets = int(self.draws.bucket.max()) + 1
        code = self.draws.bucket[rows.unit[use]] * n + at[use]
        top, bottom = np.bincount(code, v[use], buckets * n), np.bincount(code, minlength=buckets * n)
        shape = (buckets, n)
        return top.astype(np.float64).reshape(shape), bottom.astype(np.float64).reshape(shape)  # (B, 2 places)

    # -- permuted labels ------------------------------------------------------------------------------------------

    def _permute(self, prefixes: str, grouping: str) -> dict[tuple[str, str, str | None], Array]:
        inside = CLIENT in self.units.by
        names = [name for name in NAMES if inside or name not in CLIENT_NAMES]
        keys = [(name, arm, cell) for name in names for cell in self.cells(name, prefixes) for arm in self.units.arms]
        total = {key: np.zeros((2, PERMUTATIONS)) for key in keys}  # sum over seeds, and number of seeds
        classes = metrics_of(self.units.metrics, prefixes)
        column = {m: i for i, m in enumerate(self._metrics(prefixes, None))}
        of_class = {cell: [column[m] for m in own] for cell, own in classes.items()}
        for s, apart in [(s, apart) for s in range(len(self.units.seeds)) for apart in (False, *([True] * inside))]:
            for arm, named, top, bottom in self._permuted(prefixes, grouping, s, apart):
                sizes = spread(top[:, named], bottom[None, named])  # (P, clients, M)
                for name in [n for n in names if (n in CLIENT_NAMES) == apart]:
                    for cell in self.cells(name, prefixes):
                        size = _largest(name, sizes if cell is None else sizes[..., of_class[cell]])
                        total[name, arm, cell] += np.where(np.isnan(size), 0.0, [size, np.ones_like(size)])
        return {key: np.divide(up, n, out=np.full(PERMUTATIONS, np.nan), where=n > 0) for key, (up, n) in total.items()}

    def _permuted(
        self, prefixes: str, grouping: str, s: int, apart: bool
    ) -> Iterator[tuple[str, NDArray[np.bool_], Array, Array]]:  # fmt: skip
        """Yield of each arm: which clients have a name, sums (P, clients, groups, M), numbers (clients, groups, M).

        ``apart`` permutes inside each client; otherwise all rows are those of one.

        Every arm meets the same random numbers, so that an arm's null does not depend on the others.
        """
        alone = (self.units.codes(grouping)[1] >= 0).sum(0).max(initial=0) <= 1  # no unit at two seeds
        shared: dict[tuple[bytes, ...], list[tuple[str, _Rows, NDArray[np.bool_]]]] = {}
        name = (self.draws.seed, "evidence", "null", "disparity")
        for arm in self.units.arms:
            rows = self._rows("disparity", prefixes, grouping, arm, None, s)
            client = self.units.codes(CLIENT)[1][s][rows.unit] if apart else rows.client
            found, code = np.unique(client, return_inverse=True)  # rows without a client are a stratum of their own
            rows = _Rows(rows.unit, code.astype(np.int64), rows.group, rows.values, len(found), rows.groups)
            if alone and np.isin(rows.values[~np.isnan(rows.values)], (0.0, 1.0)).all():
                rng = np.random.default_rng(stream(*name, self.units.seeds[s]))
                top = intervals.null_counts(_strata(rows), rows.client, rows.group, rows.values, rows.groups,
                                            PERMUTATIONS, rng)  # fmt: skip
                yield arm, found >= 0, top, rows.sums()[1]
            else:
                key = tuple(x.tobytes() for x in (_strata(rows), rows.client, rows.group, rows.unit))
                shared.setdefault(key, []).append((arm, rows, found >= 0))
        for same in shared.values():  # permuting rows is slow, so arms with the same rows share it
            rows, m = same[0][1], len(same[0][1].values)
            keys = intervals.unit_keys(len(self.units.units), PERMUTATIONS, np.random.default_rng(stream(*name)))
            values = np.concatenate([r.values for _, r, _ in same])
            top = intervals.null_sums(_strata(rows), rows.client, rows.group, values, rows.groups, rows.unit, keys)
            for i, (arm, own, named) in enumerate(same):
                yield arm, named, top[..., i * m : (i + 1) * m], own.sums()[1]


def _strata(rows: _Rows) -> Codes:
    """Number the sets of rows inside which labels change places: one client, the same metrics defined."""
    return intervals.combine([rows.client, *np.isnan(rows.values)])


def _places(name: str, top: Array, bottom: Array) -> tuple[Codes, Codes, Codes, Codes]:
    """Return client, metric, highest and lowest group where a maximum is taken: one place, or one a client.

    Ties go to the first client, metric and highest group and to the last lowest group, so that two ends differ.
    """
    sizes = spread(top, bottom)  # (clients, M)
    sizes = np.where(np.isnan(sizes), -1.0, sizes)
    client = np.flatnonzero((sizes >= 0).any(-1))
    if len(client) and name != "mean_client_disparity":
        client = client[[int(sizes[client].max(-1).argmax())]]
    metric = sizes[client].argmax(-1)
    high, low = _ends(top, bottom)
    first = high[client, :, metric].argmax(-1)
    last = low.shape[1] - 1 - low[client, ::-1, metric].argmin(-1)
    return client, metric, first, last


def _largest(name: str, sizes: Array) -> Array:
    """Reduce sizes (P, clients, M) to (P,): the maximum, or the mean over clients of each one's maximum."""
    if not sizes.shape[1]:
        return np.full(len(sizes), np.nan)
    own = np.where(np.isnan(sizes), -1.0, sizes).max(-1)  # (P, clients); -1 where nothing is compared
    if name == "mean_client_disparity":
        some = own >= 0
        up, n = np.where(some, own, 0.0).sum(-1), some.sum(-1)
        return np.asarray(np.divide(up, n, out=np.full(len(own), np.nan), where=n > 0))
    top = own.max(-1)
    return np.where(top >= 0, top, np.nan)


def _signed(both: Array) -> Array:
    """Return the mean over places of the first end minus the second; (1 + draws, 2 x 2 places) to (1 + draws,)."""
    top, bottom = np.split(both, 2, axis=1)
    rate = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
    change = rate[:, ::2] - rate[:, 1::2]
    some = ~np.isnan(change)  # a draw may hold no row of an end
    up, n = np.where(some, change, 0.0).sum(1), some.sum(1)
    return np.asarray(np.divide(up, n, out=np.full(len(up), np.nan), where=n > 0))
