"""Statistics of forgetting: what is still known, against held-out records and against a model that never saw them.

With v the values of an arm and u those of the arm `RETRAIN` on the same forgotten records at one seed, F their
distribution functions, and ``m_j`` the weighted mean of part j:

===================  ============================================================================================
``utility``          ``k / sum_j 1 / m_j`` over the k parts ``<metric>_probability``, ``<metric>_rouge_l``,
                     ``<metric>_truth_ratio``; 0 when a part is 0
``ks_distance``      ``D = sup_x |F_v(x) - F_u(x)|``
``memory_gap``       mean of ``|v_i - u_i|``
``membership``       ``|AUC - 1/2|`` with ``AUC = P(v_forget > v_holdout) + P(v_forget = v_holdout) / 2``
``forget_quality``   p of the two-sample Kolmogorov-Smirnov test of v against u, the median over seeds
===================  ============================================================================================

All but the last are averaged over seeds; of ``membership`` it is the AUC that is averaged, before its distance from 1/2
is taken. Forgotten, held-out and retained records are told apart by the grouping `SET`; a table without it holds
forgotten ones only. Only records with a value in both arms are compared. A grouping, such as ``difficulty``, gives one
cell a group; of held-out records it leaves all in.

Why three distances: ``ks_distance`` is what is published, and does not see which record has which value. ``memory_gap``
does, and grows when a record is pushed below the level of a model that never saw it as it does when the record is still
known. ``membership`` needs no such model, but records that nobody saw.

*Draws.* As in `upright.shell.disparities`: the place x of the supremum and its sign, and the sign of ``AUC - 1/2``, are
fixed on the data (at each seed, for the supremum) and kept in every draw, so that a draw can be negative. A record is
drawn with its values in both arms. Intervals of ``ks_distance`` still lie too high, never too low, because the value is
a maximum: with 40 and 200 records and D = 0.37 they cover in 84 and 90 % of cases, with 200 records and D = 0.04 in
70 % (a supremum taken anew in each draw: 37, 66 and 0 %). So they do not reach 0 when nothing is there: whether there
is any distance is a question for the null. ``forget_quality`` has no draws: a p-value on a resample has another law.

*Null.* ``ks_distance``: each record's two values change arms or not, by a fair coin, the same at all seeds: two models
that are alike on every record. ``membership``: the labels forgotten and held out are permuted over records. Both keep
the models as they are, so a difference that any two training runs have is not in them; ``memory_gap`` says in
``between_retrains`` how far two runs of `RETRAIN` are from each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, Metric, stream
from upright.metrics.forgetting import forget_quality
from upright.shell.units import Units

__all__ = ["HIGHER", "NAMES", "PAIRED", "PARTS", "RETRAIN", "SET", "Draws", "Forgetting", "known", "label",
           "p_value", "parts_in_words", "parts_of", "widest"]  # fmt: skip

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
RETRAIN = "retrain"
SET = "set"
FORGET, HOLDOUT, RETAIN = "forget", "holdout", "retain"
PARTS: Mapping[str, str] = {"probability": "probability", "rouge_l": "ROUGE-L", "truth_ratio": "truth ratio"}
PAIRED = ("ks_distance", "memory_gap", "forget_quality")
NAMES = ("utility", "membership", *PAIRED)
HIGHER = ("utility", "forget_quality")
PERMUTATIONS = 500
EXACT = 10_000  # up to so many records the p-value is exact
_CHUNK_ELEMENTS = 1 << 22  # numbers held at once: 32 MB


class Draws(Protocol):
    """What these statistics need of the bootstrap."""

    units: Units
    seed: int
    bucket: NDArray[np.int64]  # (units,): what each unit is drawn with

    def times(self, columns: Array) -> Array:
        """Return weights times columns (buckets, C): shape (1 + draws, C); row 0 is the data."""

    def average(self, per_seed: list[Array]) -> Array:
        """Return the average of arrays (1 + draws,) by the multiplicity of their seeds."""

    def auc(self, values: Array, positive: Bools) -> Array:
        """Return the AUC of values (seeds, units), averaged over seeds, shape (1 + draws,)."""


def parts_of(units: Units, prefix: str) -> list[str]:
    """Return the parts of a utility that have a value in some arm."""
    names = [f"{prefix}_{part}" for part in PARTS]
    return [m for m in names if m in units.metrics and any(np.isfinite(units.values(a, m)).any() for a in units.arms)]


def known(name: str, metric: str, units: Units) -> bool:
    """Whether the table holds what a statistic is made of."""
    if name == "utility":
        return bool(parts_of(units, metric))
    if metric not in units.metrics:
        return False
    if name == "membership":
        return SET in units.by and {FORGET, HOLDOUT} <= set(units.groups(SET))
    return RETRAIN in units.arms


def parts_in_words(metric: str, units: Units) -> str:
    """Return the parts of a utility, and those that the table lacks."""
    have = parts_of(units, metric)
    own = [words for part, words in PARTS.items() if f"{metric}_{part}" in have]
    lost = [words for part, words in PARTS.items() if f"{metric}_{part}" not in have]
    return f"of {_and(own)}" + (f", without {_and(lost)}" if lost else "")


def label(name: str, about: Metric, parts: str) -> str:
    """Return how a report names a statistic."""
    what = (about.title or about.name).removeprefix("Membership score: ")
    if name == "utility":
        return f"Utility on {'retained records' if what == RETAIN else what}, {parts}"
    return {
        "ks_distance": f"{what}: KS distance to the retain-only model",
        "memory_gap": f"{what}: mean distance to the retain-only model",
        "forget_quality": f"{what}: forget quality (p-value)",
        "membership": f"Membership by {what}: |AUC - 1/2| against held-out records",
    }[name]


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def p_value(one: Array, two: Array) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test, exact where scipy can compute it.

    The exact algorithm gives up above some size, and where rounding lifts a p near 1 above 1.
    """
    if max(len(one), len(two)) <= EXACT:
        try:
            return forget_quality(one, two).p
        except InputError:
            pass
    return forget_quality(one, two, method="asymptotic").p


class Forgetting:
    """Statistics of forgetting of every arm on the data (row 0) and on each draw, and their nulls."""

    def __init__(self, draws: Draws) -> None:
        self.draws, self.units = draws, draws.units
        self._known: dict[tuple[str, ...], Array] = {}

    def of(self, name: str, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """Return the value and its draws, shape (1 + draws,)."""
        key = (name, metric, str(grouping), arm, str(cell))
        if key not in self._known:
            self._known[key] = self._compute(name, metric, grouping, arm, cell)
        return self._known[key]

    def defined(self, name: str, metric: str, grouping: str | None, arm: str, cell: str | None) -> tuple[int, int]:
        """Return how many records of the compared sets have a value at one seed at least, and how many have none."""
        counted = self._counted(name, grouping, cell)
        if name == "utility":
            have = np.zeros_like(counted)
            for part in parts_of(self.units, metric):
                have |= ~np.isnan(self.units.values(arm, part))
        else:
            have = ~np.isnan(self.units.values(arm, metric))
        if name in PAIRED:
            have &= ~np.isnan(self.units.values(RETRAIN, metric))
        found = int((have & counted).any(0).sum())
        return found, int(counted.any(0).sum()) - found

    def null(self, name: str, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array | None:
        """Return the same value under chance, shape (PERMUTATIONS,); None for statistics without a null."""
        if name == "ks_distance":
            return self._null_distance(metric, grouping, arm, cell)
        return self._null_membership(metric, grouping, arm, cell) if name == "membership" else None

    def details(
        self, name: str, metric: str, grouping: str | None, arm: str, cell: str | None, confidence: float
    ) -> dict[str, Any]:  # fmt: skip
        """Return what a level says beside its value: the AUC itself, p-values of seeds, parts of a utility."""
        if name == "membership":
            auc = self.auc(metric, arm, grouping, cell)
            defined = auc[1:][~np.isnan(auc[1:])]
            tail = 50.0 * (1.0 - confidence)
            low, high = np.percentile(defined, [tail, 100.0 - tail]) if len(defined) else (np.nan, np.nan)
            return {"auc": float(auc[0]), "auc_low": float(low), "auc_high": float(high)}
        if name == "forget_quality":
            return {"p_values": self._p_values(metric, grouping, arm, cell).tolist()}
        if name == "memory_gap":
            return {"between_retrains": self._between(metric, grouping, cell)}
        if name == "utility":
            return {"parts": self._parts(metric, grouping, arm, cell)}
        return {}

    # -- values -------------------------------------------------------------------------------------------------------

    def _compute(self, name: str, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        if name == "membership":
            auc = self.auc(metric, arm, grouping, cell)
            return auc - 0.5 if auc[0] >= 0.5 else 0.5 - auc
        if name == "forget_quality":
            p = self._p_values(metric, grouping, arm, cell)
            out = np.full(len(self.draws.times(np.zeros((int(self.draws.bucket.max()) + 1, 1)))), np.nan)
            out[0] = np.nanmedian(p) if np.isfinite(p).any() else np.nan
            return out
        if name == "utility":
            counted = self._counted(name, grouping, cell)
            parts = [
                self._per_seed(np.where(counted, self.units.values(arm, part), np.nan))
                for part in parts_of(self.units, metric)
            ]
            return self.draws.average([_harmonic(np.stack(own)) for own in zip(*parts, strict=True)])
        one, two = self._pairs(metric, grouping, arm, cell)
        if name == "memory_gap":
            return self.draws.average(self._per_seed(np.abs(one - two)))
        return self.draws.average(self._per_seed(np.stack([_contrast(v, u) for v, u in zip(one, two, strict=True)])))

    def _counted(self, name: str, grouping: str | None, cell: str | None) -> Bools:
        """Which values take part, shape (seeds, units): those of the statistic's sets and of the cell."""
        shape = (len(self.units.seeds), len(self.units.units))
        sets = self.units.by.get(SET)
        inside = np.ones(shape, dtype=bool) if cell is None else self.units.by[str(grouping)] == cell
        if sets is None or (name == "utility" and RETAIN not in self.units.groups(SET)):
            return np.asarray(inside)
        if name == "utility":
            return np.asarray(inside & (sets == RETAIN))
        forget = inside & (sets == FORGET)
        return np.asarray(forget | (sets == HOLDOUT) if name == "membership" else forget)

    def _pairs(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> tuple[Array, Array]:
        """Return values of an arm and of `RETRAIN`, shape (seeds, units); NaN where one of them is not defined."""
        one, two = self.units.values(arm, metric), self.units.values(RETRAIN, metric)
        ok = self._counted("ks_distance", grouping, cell) & ~np.isnan(one) & ~np.isnan(two)
        return np.where(ok, one, np.nan), np.where(ok, two, np.nan)

    def _per_seed(self, values: Array) -> list[Array]:
        """Return the mean of values (seeds, units) at each seed under every draw, arrays of shape (1 + draws,)."""
        ok = ~np.isnan(values)
        columns = np.concatenate([np.where(ok, values, 0.0), ok.astype(np.float64)])  # (2 S, U)
        buckets = int(self.draws.bucket.max()) + 1
        if buckets < columns.shape[1]:
            columns = np.stack([np.bincount(self.draws.bucket, c, buckets) for c in columns])  # (2 S, B)
        top, bottom = np.split(self.draws.times(columns.T).T, 2)  # (S, 1 + draws)
        means = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        return [*means]

    def auc(self, metric: str, arm: str, grouping: str | None = None, cell: str | None = None) -> Array:
        """Return the AUC of forgotten against held-out records, averaged over seeds, shape (1 + draws,)."""
        key = ("auc", metric, str(grouping), arm, str(cell))
        if key not in self._known:
            values = np.where(self._counted("membership", grouping, cell), self.units.values(arm, metric), np.nan)
            self._known[key] = self.draws.auc(values, self.units.by[SET] == FORGET)
        return self._known[key]

    def _p_values(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """Return the p-value of each seed, shape (seeds,)."""
        found = []
        for v, u in zip(*self._pairs(metric, grouping, arm, cell), strict=True):
            ok = ~np.isnan(v)
            found.append(p_value(v[ok], u[ok]) if ok.any() else np.nan)
        return np.array(found, dtype=np.float64)

    def _between(self, metric: str, grouping: str | None, cell: str | None) -> float | None:
        """Return the mean distance of two runs of `RETRAIN` over pairs of seeds; None with one seed."""
        values, _ = self._pairs(metric, grouping, RETRAIN, cell)
        sizes = [np.abs(a - b) for a, b in itertools.combinations(values, 2)]
        means = [float(size[~np.isnan(size)].mean()) for size in sizes if not np.isnan(size).all()]
        return float(np.mean(means)) if means else None

    def _parts(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> dict[str, float | None]:
        """Return the mean of each part over seeds, None where it has no value."""
        counted, found = self._counted("utility", grouping, cell), {}
        for part in parts_of(self.units, metric):
            mean = float(self.draws.average(self._per_seed(np.where(counted, self.units.values(arm, part), np.nan)))[0])
            found[part.removeprefix(f"{metric}_")] = None if np.isnan(mean) else mean
        return found

    # -- chance -------------------------------------------------------------------------------------------------------

    def _null_distance(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """KS distances when each record's two values change arms at random, averaged over seeds."""
        one, two = self._pairs(metric, grouping, arm, cell)
        seeds = [_Steps(v, u) for v, u in zip(one, two, strict=True)]
        seeds = [s for s in seeds if s.n]
        if not seeds:
            return np.full(PERMUTATIONS, np.nan)
        rng = np.random.default_rng(stream(self.draws.seed, "evidence", "null", "ks_distance"))
        return np.concatenate(
            [np.mean([s.distance(flips) for s in seeds], axis=0) for flips in _coins(one.shape[1], rng)]
        )

    def _null_membership(self, metric: str, grouping: str | None, arm: str, cell: str | None) -> Array:
        """``|AUC - 1/2|`` when forgotten and held-out records change labels, by sums of ranks."""
        from scipy.stats import rankdata

        counted = self._counted("membership", grouping, cell)
        values, forget = np.where(counted, self.units.values(arm, metric), np.nan), self.units.by[SET] == FORGET
        rng = np.random.default_rng(stream(self.draws.seed, "evidence", "null", "membership"))
        total, seen = np.zeros(PERMUTATIONS), 0
        keys = rng.random((PERMUTATIONS, values.shape[1]), dtype=np.float32)  # one of a record: the same at all seeds
        for v, own in zip(values, forget, strict=True):
            ok = ~np.isnan(v)
            up, n = int((own & ok).sum()), int(ok.sum())
            if up in (0, n):
                continue
            ranks = rankdata(v[ok])
            first = np.argpartition(keys[:, ok], up - 1, axis=1)[:, :up]  # the smallest keys are the forgotten ones
            total += (ranks[first].sum(1) - up * (up + 1) / 2) / (up * (n - up))
            seen += 1
        return np.abs(total / seen - 0.5) if seen else np.full(PERMUTATIONS, np.nan)


def _harmonic(parts: Array) -> Array:
    """Return ``k / sum 1 / m`` of means (k, draws): 0 where one is 0, NaN where one is undefined."""
    zero = (parts <= 0).any(0)
    with np.errstate(divide="ignore"):
        return np.where(np.isnan(parts).any(0), np.nan, np.where(zero, 0.0, len(parts) / (1.0 / parts).sum(0)))


class _Steps:
    """Both distribution functions of one seed as steps over the pooled values."""

    def __init__(self, one: Array, two: Array) -> None:
        self.unit = np.flatnonzero(~np.isnan(one))  # defined in both, as `_pairs` gives them
        self.n = len(self.unit)
        pooled = np.concatenate([one[self.unit], two[self.unit]])
        order = np.argsort(pooled, kind="stable")
        self.at = np.concatenate([self.unit, self.unit])[order]  # (2 n,): whose value stands at each place
        self.step = np.where(order < self.n, 1.0, -1.0)
        self.values = pooled[order]
        self.last = np.flatnonzero(np.r_[self.values[1:] != self.values[:-1], [True] * (self.n > 0)])  # of equal ones

    def distance(self, flips: Array) -> Array:
        """Return D after the values of some records changed arms, flips (P, U) of 1 and -1; shape (P,)."""
        return np.asarray(np.abs(np.cumsum(flips[:, self.at] * self.step, axis=1)[:, self.last]).max(1) / self.n)


def widest(one: Array, two: Array) -> tuple[float, float, float]:
    """Return x where two distribution functions differ most, the smallest of them, and their values there.

    Parameters
    ----------
    one, two : ndarray, shape (U,)
        Of the same records; those with a NaN in one of them are left out. One pair at least is defined.
    """
    ok = ~np.isnan(one) & ~np.isnan(two)
    steps = _Steps(np.where(ok, one, np.nan), two)
    x = float(steps.values[steps.last[int(np.abs(np.cumsum(steps.step)[steps.last]).argmax())]])
    return x, float((one[ok] <= x).mean()), float((two[ok] <= x).mean())


def _contrast(one: Array, two: Array) -> Array:
    """Return ``s (1[v_i <= x] - 1[u_i <= x])`` of each record, x of `widest` and s the sign; its mean is D.

    Shape (U,); NaN where a record has no pair.
    """
    out, i = np.full(len(one), np.nan), np.flatnonzero(~np.isnan(one))
    if len(i):
        x, first, second = widest(one, two)
        out[i] = (1.0 if first >= second else -1.0) * ((one[i] <= x).astype(np.float64) - (two[i] <= x))
    return out


def _coins(units: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield 1 or -1 for every unit in every permutation, some permutations at a time: shapes (some, units)."""
    step = max(1, _CHUNK_ELEMENTS // max(1, 2 * units))
    for begin in range(0, PERMUTATIONS, step):
        yield rng.choice(np.array([-1.0, 1.0]), (min(step, PERMUTATIONS - begin), units))
