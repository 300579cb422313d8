r"""Several comparisons at once: which of them chance explains, and intervals that hold for all of them together.

A comparison k has a value ``d_k`` (a gap between two groups, an AUC minus 1/2), the exact standard error ``s0_k`` that
it has when labels change places, and its own standard error ``s_k``.

=====================  ===========================================================================================
``T_k``                ``|d_k| / s0_k``
c                      95 % quantile of ``max_k T_k`` when labels change places, at least 1.96
adjusted p             ``P(max T >= T_k)``
adjusted interval      means and AUCs: ``d_k +- c max(s0_k, s_k)``; rates: Newcombe's, from two Wilson intervals at
                       z = c; where p is not below 0.05 it is widened to reach 0
smallest detectable    ``(c + 0.84) max(s0_k, s_k)``: what four of five such tables would have shown
=====================  ===========================================================================================

A comparison is *shown* when its p is below 0.05 and its interval lies beyond 0. Each is divided by its own error before
the maximum is taken, so that the noise of a small group hides nothing that a large one shows.

*Labels* that belong to the cluster change places with it (a permutation, exact). Where they vary inside clusters, the
contributions of clusters under one common rate change sign at random, together in all comparisons (wild clusters).
Labels are never permuted inside a cluster: that would take copies for evidence. More than `MOST` clusters change signs
in `BUCKETS` random groups, which leaves the variance of every sum as it is.

References: Westfall and Young, *Resampling-based multiple testing*, 1993; Newcombe, Statistics in Medicine 17 (1998)
873 and 25 (2006) 559; Cameron, Gelbach and Miller, Review of Economics and Statistics 90 (2008) 414.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

__all__ = [
    "BUCKETS",
    "CROSS_FITTED",
    "FEWEST",
    "LEVEL",
    "MOST",
    "PERMUTATIONS",
    "POWER",
    "Comparisons",
    "Z",
    "auc_bound",
    "compare_aucs",
    "compare_groups",
    "dense_codes",
    "kish_count",
    "newcombe",
    "random_signs",
    "rate_bounds",
    "reach_zero",
    "stretch",
    "wilson",
]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
LEVEL = 0.05
PERMUTATIONS = 1_999
MOST, BUCKETS = 5_000, 2_000
TIE, ROUNDING = 1e-5, 1e-9  # differences of T that float32 makes, and of values, beside the largest, that float64 makes
FEWEST = 6  # clusters of a group, below which changing signs cannot judge it
Z = float(ndtri(1 - LEVEL / 2))
POWER = float(ndtri(0.8))
#: two units of different folds train the attacker that scores the other, so that each pair counts twice
CROSS_FITTED = 2.0**0.5


def stretch(n: Any) -> Any:
    """Return ``sqrt(n / (n - 1)) t(n - 1) / z``: by how much few things understate their spread; 1 for a single one."""
    n = np.asarray(n, dtype=np.float64)
    m = np.maximum(n, 1.0 + 1e-9)
    return np.where(n > 1, np.sqrt(m / (m - 1)) * stdtrit(m - 1, 1 - LEVEL / 2) / Z, 1.0)[()]


def kish_count(n: Array) -> Any:
    """Return ``(sum n)^2 / sum n^2`` over the first axis: how many equal clusters unequal ones are worth."""
    total = n.sum(0)
    return np.divide(total**2, (n**2).sum(0), out=np.zeros(np.shape(total)), where=total > 0)[()]


def dense_codes(codes: Codes) -> tuple[Codes, Codes]:
    """Return the distinct codes, ascending, and the place of each among them; linear in their number and their largest.

    Parameters
    ----------
    codes : ndarray of int64, shape (n,)
        At least 0.
    """
    seen = np.zeros(int(codes.max(initial=-1)) + 1, dtype=bool)
    seen[codes] = True
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[codes]


def wilson(rate: Any, n: Any, z: float) -> tuple[Any, Any]:
    """Return Wilson's interval of a rate of n units; it keeps a width at 0 and 1."""
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(np.maximum(rate * (1 - rate), 0.0) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def _ratio(up: Any, down: Any) -> Array:
    return np.asarray(np.divide(up, down, out=np.full(np.shape(up), np.nan), where=down > 0))


def rate_bounds(values: Array, cell: Codes, cluster: Codes, cells: int) -> Array:
    """Return rows, rate and 95 % interval of cells, each by itself.

    Wilson's interval where all values are 0 or 1, else the normal one, from the variance of the rows. Where a
    cluster has several rows of a cell, n is what the variance between clusters is worth, at a rate of 0 or 1 their
    number.

    Parameters
    ----------
    values : ndarray, shape (n,)
        In [0, 1]; NaN for a row that is not counted.
    cell, cluster : ndarray of int, shape (n,)
        A cell below 0 is none.

    Returns
    -------
    ndarray, shape (4, cells)
        Rows, rate, low and high; NaN in a cell without rows.
    """
    ok = ~np.isnan(values) & (cell >= 0)
    x, at = values[ok], cell[ok]
    n = np.bincount(at, minlength=cells)
    rate = _ratio(np.bincount(at, x, cells), n)
    clusters, own = dense_codes(cluster[ok])
    alone, plain = len(clusters) == len(own), bool(((x == 0) | (x == 1)).all())
    if alone and plain:
        return np.stack([n, rate, *wilson(rate, np.where(n > 0, n, np.nan), Z)])
    first = own = np.arange(len(own)) if alone else own
    if not alone:
        _, first, own = np.unique(at * len(clusters) + own, return_index=True, return_inverse=True)
    size, at = np.bincount(own), at[first]  # of each cluster in each cell
    part = np.bincount(own, x) - rate[at] * size
    worth = _ratio(np.square(n), np.bincount(at, np.square(size), cells))
    error = stretch(np.maximum(worth, 2.0)) * _ratio(np.sqrt(np.bincount(at, np.square(part), cells)), n)
    if not plain:
        return np.stack([n, rate, np.maximum(rate - Z * error, 0.0), np.minimum(rate + Z * error, 1.0)])
    spread = rate * (1 - rate)
    together = np.where((spread > 0) & (error > 0), spread / np.maximum(error, 1e-12) ** 2, worth)
    count = np.where(np.bincount(at, minlength=cells) < n, together, np.where(n > 0, n, np.nan))
    return np.stack([n, rate, *wilson(rate, count, Z)])


def newcombe(r1: Any, n1: Any, r2: Any, n2: Any, z: float, phi: Any = 0.0) -> tuple[Any, Any]:
    """Return the interval of ``r1 - r2`` from two Wilson intervals; phi is the correlation of shared clusters."""
    (l1, u1), (l2, u2), d = wilson(r1, n1, z), wilson(r2, n2, z), r1 - r2

    def root(a: Any, b: Any) -> Any:
        return np.sqrt(np.maximum(a * a - 2 * phi * a * b + b * b, 0.0))

    return d - root(r1 - l1, u2 - r2), d + root(u1 - r1, r2 - l2)


def auc_bound(auc: Any, n1: float, n0: float, z: float) -> tuple[Any, Any]:
    """Return the score interval of an AUC (Newcombe 2006, method 5); it keeps a width at 0 and 1."""
    half, t = (n1 + n0) / 2 - 1, np.linspace(0.0, 1.0, 20_001)
    variance = t * (1 - t) * (1 + half * (1 - t) / (2 - t) + half * t / (1 + t)) / (n1 * n0)
    inside = np.abs(np.asarray(auc)[..., None] - t) <= z * np.sqrt(variance) + 1e-9
    return t[inside.argmax(-1)], t[len(t) - 1 - inside[..., ::-1].argmax(-1)]


def random_signs(clusters: int, draws: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], Codes]:
    """Return signs (draws, B), and the column of each cluster, shape (clusters,): its own, or that of its bucket."""
    column = np.arange(clusters) if clusters <= MOST else rng.permutation(clusters) % BUCKETS
    size = (draws, min(clusters, BUCKETS) if clusters > MOST else clusters)
    return np.where(rng.integers(0, 2, size, dtype=np.int8) > 0, np.float32(1), np.float32(-1)), column


def _permuted(label: Codes, block: Codes, draws: int, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return labels of clusters (C,) that change places inside blocks, shape (draws, C)."""
    out = np.empty((draws, len(label)), dtype=np.int16)
    for one in np.unique(block):
        own = np.flatnonzero(block == one)
        out[:, own] = rng.permuted(np.broadcast_to(label[own].astype(np.int16), (draws, len(own))), axis=1)
    return out


@dataclass(frozen=True, eq=False)
class Comparisons:
    """What K comparisons show.

    Parameters
    ----------
    of : sequence of tuple of int, length K
        What each compares: ``(stratum, metric, first, second)`` of groups, stratum -1 for the average over strata;
        ``(column, class)`` of AUCs.
    value, low, high, p : ndarray, shape (K,)
        Adjusted for each other.
    score, detectable : ndarray, shape (K,)
        T, and the smallest that four of five such tables would have shown; infinite where nothing can be judged.
    critical : float
        c.
    sizes : ndarray, shape (P, strata, M)
        Largest size in each stratum and metric when labels change places; NaN where nothing is compared.
    averaged : ndarray, shape (P, M)
        Largest size of the average over strata.
    """

    of: Sequence[tuple[int, ...]]
    value: Array
    low: Array
    high: Array
    p: Array
    score: Array
    detectable: Array
    critical: float
    sizes: NDArray[np.float32]
    averaged: NDArray[np.float32]

    @property
    def shown(self) -> NDArray[np.bool_]:
        """Which are more than chance, shape (K,)."""
        return np.asarray((self.p < LEVEL) & ((self.low > 1e-12) | (self.high < -1e-12)))

    def numbers(self, k: int, turn: bool = True) -> dict[str, Any]:
        """Return what one comparison shows, by the names of a level; turned, its value is not negative."""
        sign = -1.0 if turn and self.value[k] < 0 else 1.0
        low, high = sorted((sign * self.low[k], sign * self.high[k]))
        found = {"value": sign * self.value[k], "low": low, "high": high, "p": self.p[k]}
        return {name: float(x) for name, x in (found | {"smallest_detectable": self.detectable[k]}).items()}

    def small_groups(self) -> dict[int, float]:
        """Return groups that are too small to judge, each with the smallest gap that could have been seen.

        A group of no shown pair whose smallest detectable gap is infinite, or exceeds the largest gap shown or, where
        none is, twice that of the best measured pair.
        """
        known = np.isfinite(self.value)
        if not known.any():
            return {}
        shown = self.shown & known
        least = np.min(self.detectable[known])
        bar = np.abs(self.value[shown]).max() if shown.any() else 2 * least
        sides = np.array([one[-2:] for one in self.of])
        found = {}
        for g in np.unique(sides[known]).tolist():
            own = (sides == g).any(1) & known
            seen = float(self.detectable[own].min())
            if not (shown & own).any() and (seen > bar or seen == np.inf):
                found[g] = seen
        return found


def _adjust(score: Array, top: Array) -> tuple[float, Array]:
    """Return c and the p-values of scores (K,) against the largest score of each draw (P,)."""
    critical = max(float(np.quantile(top, 1 - LEVEL, method="higher")), Z)
    p = (1 + len(top) - np.searchsorted(np.sort(top), score - TIE)) / (len(top) + 1)
    return critical, np.asarray(p)


def reach_zero(low: Any, high: Any, p: Any) -> tuple[Array, Array]:
    """Widen intervals to 0 where p does not tell the value from chance, so that the two cannot say different things."""
    return np.where(p < LEVEL, low, np.minimum(low, 0.0)), np.where(p < LEVEL, high, np.maximum(high, 0.0))


def _score(value: Any, error: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.abs(value) / error, nan=0.0, posinf=0.0)


class _Stratum:
    """Sums of one stratum: clusters c, groups g, metrics m; and what follows from them."""

    def __init__(self, x: Array, group: Codes, cluster: Codes, groups: int) -> None:
        self.ids, at = dense_codes(cluster)
        code, size = at * groups + group, len(self.ids) * groups
        self.count = np.bincount(code, minlength=size).reshape(-1, groups).astype(np.float64)  # (C, G)
        sums = [np.bincount(code, v, size) for v in x.T]
        self.sum = np.stack(sums, -1).reshape(len(self.ids), groups, x.shape[1])  # (C, G, M)
        self.n = self.count.sum(0)  # (G,)
        self.scale = np.abs(x).max(0, initial=0.0)  # (M,)
        self.binary = ((x == 0) | (x == 1)).all(0)  # (M,): rates
        some = self.n[:, None] > 0
        self.rate = np.divide(self.sum.sum(0), self.n[:, None], out=np.full((groups, x.shape[1]), np.nan), where=some)
        self.common = self.sum.sum((0, 1)) / self.n.sum()  # (M,)
        self.share = np.where(some, 1.0, np.nan) / np.maximum(self.n[:, None], 1.0)  # (G, 1)

    def beyond_rounding(self, change: Array, n: Any = 1.0) -> Array:
        """Return what sums of n values (..., M) differ by, and 0 for what their rounding explains."""
        return np.where(np.abs(change) <= ROUNDING * self.scale * n, 0.0, change)

    def own_errors(self) -> tuple[Array, Array]:
        """Return variances and covariances of the rates, (G, G, M), and Kish's number of clusters, (G,)."""
        worth = kish_count(self.count)
        rate = np.nan_to_num(self.rate)
        e = self.beyond_rounding(self.sum - rate * self.count[..., None], self.count[..., None])
        e = e * np.nan_to_num(self.share) * stretch(np.maximum(worth, 2.0))[:, None]
        return np.einsum("cgm,chm->ghm", e, e), worth

    def contributions(self) -> Array:
        """Return what each cluster adds to each rate under one common rate, (C, G, M); signs of it change."""
        n = self.count[..., None]
        return np.asarray(self.beyond_rounding(self.sum - self.common * n, n) * np.nan_to_num(self.share))

    def whole(self) -> tuple[Array, Array]:
        """Return what each cluster adds to the common rate, and its number, (C, M + 1); and in mean clusters (C, M)."""
        n = self.count.sum(1)[:, None]
        part = self.beyond_rounding(self.sum.sum(1) - self.common * n, n)
        return np.hstack([part, n]), part / n.mean()


def _alike(ok: NDArray[np.bool_]) -> list[list[int]]:
    """Return the metrics (last axis) that are defined in the same places, together."""
    found: dict[bytes, list[int]] = {}
    for m in range(ok.shape[-1]):
        found.setdefault(np.packbits(ok[..., m]).tobytes(), []).append(m)
    return list(found.values())


class _Moves:
    """How labels change places among some rows: whole clusters exchange them, or what clusters add changes sign."""

    def __init__(
        self, group: Codes, home: Codes, cluster: Codes, groups: int, inside: bool, draws: int, rng: np.random.Generator
    ) -> None:
        names, code = dense_codes(cluster)
        label, block = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
        label[code], block[code] = group, (home if inside else 0)
        self.groups, self.label, self.names = groups, label, names
        alone = bool((label[code] == group).all()) and (not inside or bool((block[code] == home).all()))
        self.whole = alone and len(names) <= MOST  # labels belong to the cluster, which stands in one place alone
        self.labels, self.signs, self.column = (
            np.zeros((0, 0), dtype=np.int16),
            np.zeros((0, 0), dtype=np.float32),
            code,
        )
        if self.whole:
            self.labels = _permuted(label, block, draws, rng)
        else:
            self.signs, self.column = random_signs(len(names), draws, rng)
        self.size = np.bincount(label, minlength=groups)[:, None]

    def null(self, t: _Stratum, i: Codes, j: Codes) -> tuple[Any, Array, Array, Array, NDArray[np.bool_]]:
        """Return what moves show in one stratum.

        Gaps (P, K, M), their exact error (K, M), that of each rate (G, M), what clusters or their buckets add to them
        (B, ...), and which groups can be judged (G,).
        """
        at = np.searchsorted(self.names, t.ids)
        if self.whole:
            columns, part = t.whole()
            moved = self.labels[:, at]
            sums = [(moved == g).astype(np.float32) @ columns.astype(np.float32) for g in range(self.groups - 1)]
            q = np.stack([*sums, columns.sum(0).astype(np.float32) - sum(sums)], 1)  # the last group has the rest
            with np.errstate(invalid="ignore", divide="ignore"):
                rate = np.where(q[..., -1:] > 0, q[..., :-1] / q[..., -1:], np.nan)  # (P, G, M)
                spread = (part * part).sum(0) / max(len(part) - 1, 1)
                alone = np.sqrt(spread / np.bincount(self.label[at], minlength=self.groups)[:, None])
            parts = np.zeros((len(self.label), part.shape[1]))
            parts[at] = part * (len(self.names) / len(t.ids))  # a seed has some of the units
            error = np.hypot(alone[i], alone[j])
            return np.nan_to_num(rate[:, i] - rate[:, j]), error, alone, parts, np.ones(self.groups, dtype=bool)
        e = t.contributions()
        pair = e[:, i] - e[:, j]  # (C, K, M)
        parts = np.zeros((self.signs.shape[1], *pair.shape[1:]))
        np.add.at(parts, self.column[at], pair)
        null = (self.signs @ parts.reshape(len(parts), -1).astype(np.float32)).reshape(-1, *pair.shape[1:])
        error, alone = np.sqrt((parts * parts).sum(0)), np.sqrt((e * e).sum(0))
        return null, error, alone, parts, np.asarray((t.count > 0).sum(0) >= FEWEST)

    def average_error(self, parts: Array, i: Codes, j: Codes) -> Array:
        """Return the exact error (K, M) of a mean over strata, of what clusters add to it."""
        square = (parts * parts).sum(0)  # (K, M)
        if not self.whole:
            return np.asarray(np.sqrt(square))
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = 1 / self.size[i] + 1 / self.size[j]  # infinite for a group that is not here, also of equal values
            return np.sqrt(np.where(np.isinf(apart), np.inf, apart * square / max(len(self.label) - 1, 1)))


def compare_groups(
    values: Array,
    group: Codes,
    cluster: Codes,
    groups: int,
    *,
    rng: np.random.Generator,
    place: Codes | None = None,
    draws: int = PERMUTATIONS,
) -> Comparisons:
    """Compare every pair of groups in every metric: of all rows, averaged over seeds, or inside every place.

    Parameters
    ----------
    values : ndarray, shape (S, U, M)
        NaN where a metric is not defined; labels change places among the rows where it is.
    group : ndarray of int, shape (S, U)
        Below `groups`; negative for a row that takes no part.
    cluster : ndarray of int, shape (U,)
        What units are drawn and moved with.
    place : ndarray of int, shape (S, U), optional
        Clients: gaps are taken and labels change places inside each, at each seed; negative for none.
    draws : int
        P.

    Returns
    -------
    Comparisons
        Strata are seeds, or ``seed * places + place``.
    """
    seeds, _, metrics = values.shape
    inside = place is not None
    home = np.zeros_like(group) if place is None else place
    there, places = (group >= 0) & (home >= 0), int(home.max(initial=0)) + 1
    home = home + np.arange(seeds)[:, None] * places
    i, j = np.array(list(itertools.combinations(range(groups), 2)), dtype=np.int64).reshape(-1, 2).T
    shape = (seeds * places, metrics, len(i))
    value, own, s0 = (np.full(shape, np.nan) for _ in range(3))
    average0, averaged = np.full(shape[1:], np.nan), np.zeros((draws, *shape[1:]), dtype=np.float32)
    sizes, top = np.full((draws, *shape[:2]), np.nan, dtype=np.float32), np.zeros(draws)
    judged, pieces = np.ones(shape, dtype=bool), list[tuple[Any, ...]]()
    ok = there[..., None] & ~np.isnan(values)
    for some in _alike(ok):
        s, u = np.nonzero(ok[..., some[0]])
        moves = _Moves(group[s, u], home[s, u] % places, cluster[u], groups, inside, draws, rng) if len(s) else None
        strata, total, n = np.unique(home[s, u]), np.zeros(1), np.zeros((len(i), len(some)))
        for one in strata if moves else ():
            rows = home[s, u] == one
            t = _Stratum(values[s[rows], u[rows]][:, some], group[s[rows], u[rows]], cluster[u[rows]], groups)
            if (t.n > 0).sum() < 2:
                continue
            null, error, alone, parts, enough = moves.null(t, i, j)  # type: ignore[union-attr]
            gap, (v, worth) = t.beyond_rounding(t.rate[i] - t.rate[j]), t.own_errors()
            null = np.where(np.isnan(gap), np.nan, null)
            value[one, some], s0[one, some] = gap.T, error.T
            own[one, some] = np.sqrt(np.maximum(v[i, i] + v[j, j] - 2 * v[i, j], 0.0)).T
            judged[one, some] = (enough[i] & enough[j])[None]
            known = ~np.isnan(gap)
            n += known
            total = total + known * (parts if parts.ndim > 2 else parts[:, None])  # (B, K, M)
            averaged[:, some] += np.nan_to_num(null).transpose(0, 2, 1)
            sizes[:, one, some] = np.fmax.reduce(np.abs(null), axis=1)
            if inside:
                top = np.maximum(top, (_score(null, error) * judged[one, some].T).max((1, 2)))
            pieces.append((one, some, t, v, worth, alone, bool(len(t.ids) < rows.sum())))
        if moves is not None and total.ndim > 1:
            average0[some] = moves.average_error(total / np.maximum(n, 1), i, j).T
            averaged[:, some] /= np.maximum(n, 1).T
    if not inside:
        judged = np.asarray(judged.all(0))
        top = (_score(averaged, average0) * judged).reshape(draws, -1).max(1, initial=0.0)
    score = _score(value, s0) * judged if inside else _score(_mean(value), average0) * judged
    critical, p = _adjust(score.ravel(), top)
    error, (low, high) = np.fmax(own, s0), np.full((2, *shape), np.nan)
    for one, some, *facts in pieces:
        low[one, some], high[one, some] = _bounds(value[one, some], error[one, some], critical, i, j, *facts)
    if not inside:
        error, s0 = (np.where(np.isnan(value), np.nan, a) for a in (error, s0))  # a seed without a side has no error
        value, low, high, error, each = (_mean(a) for a in (value, low, high, error, s0))
        if seeds > 1:  # the average of what is not one noise is surer than each
            less = np.divide(average0, each, out=np.ones_like(each), where=(each > 0) & (average0 > 0))
            low, high, error = value + less * (low - value), value + less * (high - value), less * error
    of = [
        (h, m, int(a), int(b))
        for h in (range(shape[0]) if inside else (-1,))
        for m in range(metrics)
        for a, b in zip(i, j, strict=True)
    ]
    p = np.where(judged.ravel(), p, 1.0)
    ends = reach_zero(low.ravel(), high.ravel(), p)
    # where all rates are 0 or 1 no error is seen, and the interval alone says how far one may reach
    reach = np.where(error < ROUNDING, (high - low) / 2 / critical, error)
    detectable = np.where(judged, (critical + POWER) * reach, np.inf).ravel()
    most = np.abs(averaged).max(2, initial=0.0)
    return Comparisons(of, value.ravel(), *ends, p, score.ravel(), detectable, critical, sizes, most)


def _mean(a: Array) -> Array:
    """Return the mean over the first axis of what is defined."""
    some = ~np.isnan(a)
    n = some.sum(0)
    return np.asarray(np.divide(np.where(some, a, 0.0).sum(0), n, out=np.full(a.shape[1:], np.nan), where=n > 0))


def _bounds(
    d: Array,
    wide: Array,
    c: float,
    i: Codes,
    j: Codes,
    t: _Stratum,
    v: Array,
    worth: Array,
    alone: Array,
    clustered: bool,
) -> tuple[Array, Array]:
    """Return adjusted intervals (M, K): ``d +- c wide``, for rates Newcombe's, with clusters the wider of the two."""
    low, high = d - c * wide, d + c * wide
    if not t.binary.any():
        return low, high
    r, common, v, alone = (a[..., t.binary] for a in (t.rate, t.common, v, alone))  # no other has a Wilson interval
    pool = common * (1 - common)
    n = np.broadcast_to(np.where(t.n > 0, t.n, np.nan)[:, None], r.shape)
    error = np.sqrt(np.einsum("ggm->gm", v))
    if clustered:
        q = r * (1 - r)
        n = np.where((q > 0) & (error > 0), q / np.maximum(error, 1e-12) ** 2, worth[:, None])
        n = np.minimum(n, np.divide(pool, alone**2, out=np.full(r.shape, np.inf), where=alone > 0))
    both = error[i] * error[j]
    phi = np.divide(v[i, j], both, out=np.zeros_like(both), where=both > 0)
    a, b = (end.T for end in newcombe(r[i], n[i], r[j], n[j], c, phi))
    if clustered:
        a, b = np.maximum(np.fmin(a, low[t.binary]), -1.0), np.minimum(np.fmax(b, high[t.binary]), 1.0)
    low[t.binary], high[t.binary] = a, b
    return low, high


def compare_aucs(
    scores: Array,
    label: Codes,
    classes: Codes,
    cluster: Codes,
    *,
    rng: np.random.Generator,
    stratum: Codes | None = None,
    spread: Array | float = 1.0,
    draws: int = PERMUTATIONS,
) -> Comparisons:
    """Compare AUCs with 1/2: of each column of scores, a class against all others, averaged over seeds.

    Parameters
    ----------
    scores : ndarray, shape (S, U, K)
        NaN where a unit is not scored.
    label : ndarray of int, shape (S, U)
        Class of each unit; negative for none.
    classes : ndarray of int, shape (K,)
        The class that each column scores.
    cluster : ndarray of int, shape (U,)
    stratum : ndarray of int, shape (S, U, K), optional
        AUCs compare units of one stratum (the fold whose attacker scored them) alone.
    spread : float or ndarray, shape (K,)
        By how much changing labels understates the deviations without signal; `CROSS_FITTED` for cross-fitted scores.

    Returns
    -------
    Comparisons
        Values are ``AUC - 1/2``, NaN for a column without both sides at some seed; ``sizes`` has shape (P, 1, K).
    """
    from scipy.stats import rankdata  # half a second, which a typo need not wait for

    seeds, units, k = scores.shape
    # of the AUC under moved labels, under changed signs, and of its own error
    part, signed, errors = np.zeros((3, units, k))
    value, sides = np.zeros(k), np.zeros((2, k))
    for s, a in itertools.product(range(seeds), range(k)):
        ok = (label[s] >= 0) & ~np.isnan(scores[s, :, a])
        home = np.zeros(units, dtype=np.int64) if stratum is None else stratum[s, :, a]
        rows = [np.flatnonzero(ok & (home == f)) for f in np.unique(home[ok])]
        own = [label[s, r] == classes[a] for r in rows]
        total = float(sum(o.sum() * (~o).sum() for o in own)) * seeds
        if not total:
            value[a] = np.nan
            continue
        scored = np.concatenate(rows)
        both = [scored[label[s, scored] == classes[a]], scored[label[s, scored] != classes[a]]]
        worth = [float(kish_count(np.bincount(cluster[side]).astype(np.float64))) for side in both]
        sides[:, a] += np.array(worth) / seeds
        few = [stretch(max(n, 2.0)) for n in worth]
        for r, o in zip(rows, own, strict=True):
            x = scores[s, r, a]
            rank = rankdata(x)
            added = (rank - (len(r) + 1) / 2) / total
            part[r, a] += added
            signed[r, a] += added * (o - len(both[0]) / len(scored))
            value[a] += (rank[o].sum() - o.sum() * (len(r) + 1) / 2) / total
            for side, sign in ((o, few[0]), (~o, -few[1])):
                if side.any():
                    placed = sign * (rank[side] - rankdata(x[side]))  # how many of the other side lie below
                    errors[r[side], a] += (placed - placed.mean()) / total
    taking = np.flatnonzero(((label >= 0) & ~np.isnan(scores).all(-1)).any(0))
    taking = taking if len(taking) else np.arange(units)  # nobody is scored: every value is NaN
    ids, at = dense_codes(cluster[taking])
    sums, own_sums = np.zeros((2, len(ids), k))
    np.add.at(sums, at, part[taking])
    np.add.at(own_sums, at, errors[taking])
    own_error = np.sqrt((own_sums * own_sums).sum(0))
    seed, unit = np.nonzero(label[:, taking] >= 0)
    first, known = np.zeros(len(ids), dtype=np.int64), label[seed, taking[unit]]
    first[at[unit]] = known
    often = np.bincount(unit, minlength=len(taking))  # who is forgotten once is no match for who is held out each time
    if len(ids) <= MOST and bool((first[at[unit]] == known).all()) and often.min() == often.max():
        moved = _permuted(first, np.zeros_like(first), draws, rng)
        centred = sums - sums.mean(0)
        null = np.empty((draws, k), dtype=np.float32)
        for c in np.unique(classes):
            null[:, classes == c] = (moved == c).astype(np.float32) @ centred[:, classes == c].astype(np.float32)
        up = (first[:, None] == classes).sum(0)
        s0 = np.sqrt((centred * centred).sum(0) / max(len(ids) - 1, 1) * up * (len(ids) - up) / len(ids))
    else:
        signs, column = random_signs(len(ids), draws, rng)
        into = np.zeros((signs.shape[1], k))
        np.add.at(into, column[at], signed[taking])
        null, s0 = signs @ into.astype(np.float32), np.sqrt((into * into).sum(0))
    s0, null = s0 * spread, null * np.float32(1) * np.asarray(spread, dtype=np.float32)
    score = _score(value, s0)
    critical, p = _adjust(score, _score(null, s0).max(1, initial=0.0))
    reach = np.fmax(s0, own_error)
    low, high = np.maximum(value - critical * reach, -0.5), np.minimum(value + critical * reach, 0.5)
    sure = np.isclose(np.abs(value), 0.5) | (np.isfinite(value) & (reach < ROUNDING))  # no error is seen
    for a in np.flatnonzero(sure).tolist():
        low[a], high[a] = (end - 0.5 for end in auc_bound(value[a] + 0.5, sides[0, a], sides[1, a], critical))
        reach[a] = max(reach[a], (high[a] - low[a]) / 2 / critical)
    ends, detectable = reach_zero(low, high, p), (critical + POWER) * reach
    of = [(a, int(c)) for a, c in enumerate(classes)]
    sizes = np.where(np.isnan(value), np.nan, np.abs(null))[:, None]
    return Comparisons(of, value, *ends, p, score, detectable, critical, sizes, sizes[:, 0])
