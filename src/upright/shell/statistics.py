"""Named statistics of the unit table, on the data and on every draw of the bootstrap.

A statistic is written ``name:metric[:grouping]``.

===================  ==============================================================================================
``mean``             weighted mean over seeds and units, of each group when a grouping is named
``worst_decile``     mean of the lowest tenth of the units at a seed, averaged over seeds
``gini``             Gini over the units at a seed, averaged over seeds
``gap``              mean of the first group minus the second
``abs_gap``          its size
``leakage``          of an attack, mean over classes c of ``|AUC_c - 1/2|``; of several, the strongest
``worst_leakage``    the same with the worst class instead of the mean
===================  ==============================================================================================

``disparity``, ``client_disparity`` and ``mean_client_disparity`` stand in `upright.shell.disparities`; ``utility``,
``ks_distance``, ``memory_gap``, ``membership`` and ``forget_quality`` in `upright.shell.forgetting`;
``rank_correlation`` of two metrics, ``x~y``, in `upright.shell.correlations`.

For leakage, ``metric`` is the first part of names such as ``attack/embedding/mlp/cross/F``: what was attacked, by
whom, how users were held out, and the class whose score it is. ``AUC_c`` compares users of class c with all other
labelled users at one seed and is averaged over seeds before its distance from chance is taken. The strongest attack is
picked on the data and keeps its place in every draw: a maximum taken anew in each draw would grow with the noise.

Units in buckets
----------------
Above 5,000 units, ratios of sums (`mean`, gaps, disparities) draw 2,000 random groups of units, equal in size to within
one, instead of single units; a unit is in one bucket with all its seeds. With U units in B random buckets the bootstrap
variance of a sum is on average ``(1 - 1/B) / (1 - 1/U)`` times that of drawing units: unbiased to within 0.05 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, Metric, stream
from upright.maths import intervals
from upright.metrics.leakage import SPREAD
from upright.shell import correlations, disparities, forgetting
from upright.shell.units import Units

__all__ = ["CONFIDENCE", "CORRELATIONS", "DISPARITIES", "FORGETTING", "LEAKS", "NAMES", "Samples", "Statistic",
           "computable", "parse"]  # fmt: skip

Array = NDArray[np.float64]
CONFIDENCE = 0.95
GAPS = ("gap", "abs_gap")
LEAKS = ("leakage", "worst_leakage")
DISPARITIES = disparities.NAMES
FORGETTING = forgetting.NAMES
CORRELATIONS = correlations.NAMES
NAMES = (*intervals.STATISTICS, *GAPS, *LEAKS, *DISPARITIES, *FORGETTING, *CORRELATIONS)
PERMUTATIONS = 500
WHOLE = 5_000  # up to so many units each is drawn by itself
BUCKETS = 2_000
_CHUNK_ELEMENTS = 1 << 22  # weights held at once in float64: 32 MB


@dataclass(frozen=True)
class Statistic:
    """One entry of a method's ``statistics``, taken apart."""

    text: str
    name: str
    metric: str
    grouping: str | None
    title: str = ""  # of statistics whose label depends on the table

    def direction(self, about: Metric) -> str:
        """Which way is better."""
        if self.name in FORGETTING:
            return "higher" if self.name in forgetting.HIGHER else "lower"
        return "lower" if self.name in ("abs_gap", "gini", *LEAKS, *DISPARITIES) else about.direction

    def label(self, about: Metric, groups: list[str], cell: str | None) -> str:
        """How a report writes the value of one cell."""
        if self.name in FORGETTING:
            whole = forgetting.label(self.name, about, self.title)
            return whole if cell is None else f"{whole}, {cell}"
        title = about.title or about.name
        if self.name == "gap":
            return f"{title}: {groups[0]} minus {groups[1]}"
        if self.name == "abs_gap":
            return f"{title}: size of the gap between {groups[0]} and {groups[1]}"
        if self.name in LEAKS:
            worst = ", worst class" if self.name == "worst_leakage" else ""
            return f"{title} of {self.grouping}{worst}, {'strongest attack' if cell is None else cell}"
        if self.name in DISPARITIES:
            inside = {"disparity": "", "client_disparity": " inside a client, the worst client",
                      "mean_client_disparity": " inside a client, mean over clients"}[self.name]  # fmt: skip
            of = "" if self.grouping == "group" else f" of {self.grouping}"
            whole = f"{title}: largest difference between groups{of}{inside}"
            return whole if cell is None else f"{whole}, {cell}"
        words = {"mean": "", "worst_decile": ", worst tenth", "gini": ", Gini over units"}[self.name]
        return f"{title}{words}{'' if cell is None else f', {cell}'}"


def parse(text: str, units: Units) -> Statistic:
    """Take a statistic apart.

    Raises
    ------
    InputError
        When a part of it is not in the table.
    """
    name, metric, grouping = [*text.split(":"), None, None][:3]
    known = _known(str(name), str(metric), units)
    needs = name in (*LEAKS, *DISPARITIES) and grouping is None
    inside = name in disparities.CLIENT_NAMES and (disparities.CLIENT not in units.by or grouping == disparities.CLIENT)
    lost = grouping is not None and grouping not in units.by
    if name not in NAMES or not known or needs or inside or lost:
        raise InputError(
            f"statistic {text!r}",
            f"name:metric[:grouping] with name in {list(NAMES)}, metric in {units.metrics} or what stands before their "
            f"last /, grouping in {sorted(units.by)}; inside clients, a grouping 'client' and another one",
            "correct the part that is not in its list",
        )
    own = forgetting.parts_in_words(str(metric), units) if name == "utility" else ""
    return Statistic(text, str(name), str(metric), grouping, own)


def computable(text: str, units: Units) -> bool:
    """Whether the table holds what a statistic is made of."""
    name, metric, grouping = [*text.split(":"), "", ""][:3]
    if name in DISPARITIES and not {grouping, *([disparities.CLIENT] * (name != "disparity"))} <= set(units.by):
        return False
    return _known(name, metric, units)


def _known(name: str, metric: str, units: Units) -> bool:
    if name in DISPARITIES:
        return bool(disparities.metrics_of(units.metrics, metric))
    if name in FORGETTING:
        return forgetting.known(name, metric, units)
    if name in CORRELATIONS:
        return correlations.known(metric, units)
    return bool(_attacks(units, metric)) if name in LEAKS else metric in units.metrics


def _attacks(units: Units, prefix: str) -> dict[str, list[tuple[str, str]]]:
    """Metrics of each attack below a prefix, with the class that each one scores."""
    found: dict[str, list[tuple[str, str]]] = {}
    for metric in units.metrics:
        if metric.startswith(prefix + "/"):
            attack, _, cls = metric.rpartition("/")
            found.setdefault(attack, []).append((metric, cls))
    return found


class Samples:
    """Statistics of every arm on the data itself (row 0) and on each draw, shape (1 + draws,)."""

    def __init__(self, units: Units, draws: int, seed: int) -> None:
        self.units, self.seed = units, seed
        rng = np.random.default_rng(stream(seed, "evidence"))
        n = len(units.units)
        self.bucket = np.arange(n)
        if n > WHOLE:
            self.bucket = np.random.default_rng(stream(seed, "evidence", "buckets")).permutation(n) % BUCKETS
        buckets = min(n, BUCKETS) if n > WHOLE else n
        self.seed_weight = np.ones((1 + draws, len(units.seeds)))  # row 0: the data itself
        self.weight = np.ones((1 + draws, buckets), dtype=np.float32)  # of buckets; counts, so exact
        for weight in (self.seed_weight, self.weight):
            intervals.fill_multiplicities(weight[1:], rng)
        self._known: dict[tuple[str, ...], Array] = {}
        self.disparities = disparities.Disparities(self)
        self.forgetting = forgetting.Forgetting(self)
        self.correlations = correlations.Correlations(self)

    def comparable(self, statistic: Statistic) -> bool:
        """Whether there are the groups that a statistic compares: two for a gap, two or more for others.

        With two classes the worst one leaks what both do, so it needs three.
        """
        if statistic.name not in (*GAPS, *LEAKS, *DISPARITIES):
            return True
        n = len(self.units.groups(str(statistic.grouping))) if statistic.grouping else 0
        return n == 2 if statistic.name in GAPS else n >= (3 if statistic.name == "worst_leakage" else 2)

    def cells(self, statistic: Statistic) -> list[str | None]:
        """Cells of a statistic: groups, attacks, classes, or None for the whole."""
        if statistic.name in DISPARITIES:
            return self.disparities.cells(statistic.name, statistic.metric)
        if statistic.name in LEAKS:
            attacks = _attacks(self.units, statistic.metric)
            return [None, *(a.removeprefix(statistic.metric + "/") for a in attacks)] if len(attacks) > 1 else [None]
        if statistic.grouping and statistic.name not in GAPS:
            return [*self.units.groups(statistic.grouping)]
        return [None]

    def of(self, statistic: Statistic, arm: str, cell: str | None) -> Array:
        """Return one cell of one arm."""
        if statistic.name in DISPARITIES:
            return self.disparities.of(statistic.name, statistic.metric, str(statistic.grouping), arm, cell)
        if statistic.name in FORGETTING:
            return self.forgetting.of(statistic.name, statistic.metric, statistic.grouping, arm, cell)
        if statistic.name in CORRELATIONS:
            return self.correlations.of(statistic.metric, statistic.grouping, arm, cell)
        if statistic.name in LEAKS:
            return self._leakage(statistic, arm, cell)
        if statistic.name in GAPS:
            groups = self.units.groups(str(statistic.grouping))
            plain = Statistic(statistic.text, "mean", statistic.metric, statistic.grouping)
            first, second = (self.of(plain, arm, group) for group in groups)
            return first - second if statistic.name == "gap" else np.abs(first - second)
        key = (statistic.name, arm, statistic.metric, str(statistic.grouping if cell else None), str(cell))
        if key not in self._known:
            values = self.units.values(arm, statistic.metric)
            if cell is not None:
                values = np.where(self.units.by[str(statistic.grouping)] == cell, values, np.nan)
            self._known[key] = self._mean(values) if statistic.name == "mean" else self.average(
                [self._each(statistic.name, v) for v in values]
            )  # fmt: skip
        return self._known[key]

    def defined(self, statistic: Statistic, arm: str, cell: str | None) -> tuple[int, int]:
        """Return how many units have a value at one seed at least, and how many of the cell have none."""
        if statistic.name in DISPARITIES:
            return self.disparities.defined(statistic.name, statistic.metric, str(statistic.grouping), arm, cell)
        if statistic.name in FORGETTING:
            return self.forgetting.defined(statistic.name, statistic.metric, statistic.grouping, arm, cell)
        if statistic.name in CORRELATIONS:
            return self.correlations.defined(statistic.metric, statistic.grouping, arm, cell)
        metric, mask = statistic.metric, None
        if statistic.name in LEAKS:
            metric = next(iter(_attacks(self.units, metric).values()))[0][0]
            mask = self.units.by[str(statistic.grouping)] != ""
        elif cell is not None:
            mask = self.units.by[str(statistic.grouping)] == cell
        data = self.units.values(arm, metric)
        counted = np.ones_like(data, dtype=bool) if mask is None else mask
        if forgetting.SET in self.units.by:  # a record of a set that the metric is not of misses nothing
            sets = self.units.by[forgetting.SET]
            some = [~np.isnan(self.units.values(a, metric)) for a in self.units.arms]
            counted = counted & np.isin(sets, np.unique(sets[np.any(some, axis=0)]))
        have = int((~np.isnan(data) & counted).any(0).sum())
        return have, int(counted.any(0).sum()) - have

    def null(self, statistic: Statistic, arm: str, cell: str | None) -> dict[str, float] | None:
        """Return what shuffled labels would show: mean size and 95 % band; None for statistics without groups."""
        sizes: Array | None = None
        if statistic.name in LEAKS:
            sizes = self._null_leakage(statistic, arm, cell)
        elif statistic.name in DISPARITIES:
            sizes = self.disparities.null(statistic.name, statistic.metric, str(statistic.grouping), arm, cell)
        elif statistic.name in FORGETTING:
            sizes = self.forgetting.null(statistic.name, statistic.metric, statistic.grouping, arm, cell)
        if sizes is not None:
            top = float(np.percentile(sizes, 100.0 * CONFIDENCE))
            return {"expected_abs": float(sizes.mean()), "low": 0.0, "high": top}
        if statistic.name not in (*GAPS, *CORRELATIONS):
            return None
        gaps = (
            self._null_gap(statistic, arm) if statistic.name in GAPS else
            self.correlations.null(statistic.metric, statistic.grouping, arm, cell)
        )  # fmt: skip
        low, high = intervals.percentile(gaps, CONFIDENCE)
        return {"expected_abs": float(np.abs(gaps).mean()), "low": low, "high": high}

    def _null_gap(self, statistic: Statistic, arm: str) -> Array:
        """Gaps under permuted labels; a unit keeps one label over its seeds, if it has one label at all of them."""
        rng = np.random.default_rng(stream(self.seed, "evidence", "null"))
        labels, data = self.units.codes(str(statistic.grouping))[1], self.units.values(arm, statistic.metric)
        ok = ~np.isnan(data)
        label = labels.max(0)
        if not (ok & (labels >= 0) & (labels != label)).any():
            counted = ok & (labels >= 0)  # a unit without a label is in neither group
            value = np.where(counted, data, 0.0).sum(0) / np.maximum(counted.sum(0), 1)  # over seeds, as the level is
            value[~counted.any(0)] = np.nan
            return intervals.null_gap(value, label == 0, PERMUTATIONS, rng)
        rows = (labels >= 0) & ok  # groups that change with the seed: labels are permuted at each seed
        seed, unit = np.nonzero(rows)
        keys = intervals.unit_keys(data.shape[1], PERMUTATIONS, rng)
        sums = intervals.null_sums(
            intervals.combine([seed]), np.zeros_like(seed), labels[rows], data[rows][None], 2, unit, keys
        )
        size = np.bincount(labels[rows], minlength=2)
        if not size.all():
            return np.full(PERMUTATIONS, np.nan)
        rate = sums[:, 0, :, 0] / size  # (P, 2)
        return np.asarray(rate[:, 0] - rate[:, 1])

    def per_seed(self, statistic: Statistic, arm: str) -> float:
        """Leakage of the strongest attack at each seed by itself, averaged: signs that alternate do not cancel."""
        classes = _attacks(self.units, statistic.metric)[self.strongest(statistic, arm)]
        labels = self.units.by[str(statistic.grouping)]
        sizes = []
        for metric, c in classes:
            values = np.where(labels == "", np.nan, self.units.values(arm, metric))
            one = np.ones(values.shape[1])
            sizes.append([abs(intervals.auc(v, one, own) - 0.5) for v, own in zip(values, labels == c, strict=True)])
        over = np.mean(sizes, 0) if statistic.name == "leakage" else np.max(sizes, 0)
        return float(np.nanmean(over)) if np.isfinite(over).any() else float("nan")

    def strongest(self, statistic: Statistic, arm: str) -> str:
        """Return the attack that leaks most on the data."""
        attacks = list(_attacks(self.units, statistic.metric))
        size = [self._attack(statistic, arm, attack)[0] for attack in attacks]
        return attacks[int(np.nanargmax(size))] if np.isfinite(size).any() else attacks[0]

    # -- seeds and draws ------------------------------------------------------------------------------------------

    def _chunks(self) -> list[NDArray[np.float32]]:
        """Weights of buckets, some draws at a time."""
        step = max(1, _CHUNK_ELEMENTS // max(1, self.weight.shape[1]))
        return [self.weight[i : i + step] for i in range(0, len(self.weight), step)]

    def _unit_chunks(self) -> Iterator[NDArray[np.float32]]:
        """Weights of single units, some draws at a time; of many units they are drawn again rather than kept."""
        n = len(self.bucket)
        if n <= WHOLE:
            yield from self._chunks()
            return
        rng = np.random.default_rng(stream(self.seed, "evidence", "units"))
        step = max(1, _CHUNK_ELEMENTS // n)
        for i in range(0, len(self.weight), step):
            part = np.ones((min(step, len(self.weight) - i), n), dtype=np.float32)
            intervals.fill_multiplicities(part[i == 0 :], rng)  # row 0: the data itself
            yield part

    def times(self, columns: Array) -> Array:
        """Return weights times columns (buckets, C): shape (1 + draws, C)."""
        return np.concatenate([w.astype(np.float64) @ columns for w in self._chunks()])

    def _each(self, name: str, values: Array) -> Array:
        """A statistic of one seed's values (U,) under every draw of units, shape (1 + draws,)."""
        ok = ~np.isnan(values)
        return np.concatenate(
            [intervals.STATISTICS[name](values[ok], w[:, ok].astype(np.float64)) for w in self._unit_chunks()]
        )

    def _mean(self, values: Array) -> Array:
        ok = ~np.isnan(values)
        top, bottom = np.where(ok, values, 0.0).T, ok.T.astype(np.float64)  # (U, S)
        columns = np.hstack([top, bottom])
        if len(self.bucket) > WHOLE:
            columns = np.stack([np.bincount(self.bucket, c) for c in columns.T], axis=1)  # (B, 2 S)
        both = self.times(columns)
        s = self.seed_weight.shape[1]
        up, down = (both[:, :s] * self.seed_weight).sum(1), (both[:, s:] * self.seed_weight).sum(1)
        return np.asarray(np.divide(up, down, out=np.full(len(up), np.nan), where=down > 0))

    def average(self, per_seed: list[Array]) -> Array:
        """Average over seeds by their multiplicity; a seed without a value is left out."""
        values = np.stack(per_seed, axis=1)  # (1 + draws, S)
        weight = np.where(np.isnan(values), 0.0, self.seed_weight)
        total = weight.sum(1)
        up = (np.where(np.isnan(values), 0.0, values) * weight).sum(1)
        return np.asarray(np.divide(up, total, out=np.full(len(up), np.nan), where=total > 0))

    def each(self, units: NDArray[np.int64]) -> Array:
        """Return how often each of some units is drawn, shape (1 + draws, U); row 0 is the data."""
        return np.concatenate([w[:, units].astype(np.float64) for w in self._unit_chunks()])

    def auc(self, values: Array, positive: NDArray[np.bool_]) -> Array:
        """Return the AUC of values (S, U) at each seed, averaged over seeds, shape (1 + draws,); NaN is left out."""
        per_seed = []
        for v, own in zip(values, positive, strict=True):
            ok = ~np.isnan(v)
            parts = [intervals.auc(v[ok], w[:, ok].astype(np.float64), own[ok]) for w in self._unit_chunks()]
            per_seed.append(np.concatenate(parts))
        return self.average(per_seed)

    # -- attacks ----------------------------------------------------------------------------------------------------

    def _leakage(self, statistic: Statistic, arm: str, cell: str | None) -> Array:
        attack = self.strongest(statistic, arm) if cell is None else f"{statistic.metric}/{cell}"
        return self._attack(statistic, arm, attack)

    def _attack(self, statistic: Statistic, arm: str, attack: str) -> Array:
        classes = _attacks(self.units, attack)[attack]
        sizes = np.stack([np.abs(self._auc(arm, m, str(statistic.grouping), c) - 0.5) for m, c in classes])
        return np.asarray(sizes.mean(0) if statistic.name == "leakage" else sizes.max(0))

    def _auc(self, arm: str, metric: str, grouping: str, cls: str) -> Array:
        key = ("auc", arm, metric, grouping, cls)
        if key not in self._known:
            values, labels = self.units.values(arm, metric), self.units.by[grouping]
            self._known[key] = self.auc(np.where(labels == "", np.nan, values), labels == cls)
        return self._known[key]

    def _null_leakage(self, statistic: Statistic, arm: str, cell: str | None) -> Array:
        """Leakage under permuted labels and fixed predictions, the maximum over attacks when there are several."""
        attacks = _attacks(self.units, statistic.metric)
        chosen = list(attacks) if cell is None else [f"{statistic.metric}/{cell}"]
        rng = np.random.default_rng(stream(self.seed, "evidence", "null", "leakage"))
        labels = self.units.by[str(statistic.grouping)][0]
        labelled = np.flatnonzero(labels != "")
        shuffled = np.stack([rng.permutation(labels[labelled]) for _ in range(PERMUTATIONS)])  # a user keeps its label
        sizes = []
        for attack in chosen:
            wide = self._spread(arm, attack)
            classes = [wide * np.abs(self._permuted_auc(arm, metric, labelled, shuffled == c) - 0.5)
                       for metric, c in attacks[attack]]  # fmt: skip
            sizes.append(np.mean(classes, 0) if statistic.name == "leakage" else np.max(classes, 0))
        defined = [size for size in sizes if np.isfinite(size).all()]  # an arm may not expose what others do
        return np.asarray(np.max(defined, axis=0)) if defined else np.full(PERMUTATIONS, np.nan)

    def _spread(self, arm: str, attack: str) -> float:
        """By how much a permutation understates the deviations without signal; see `upright.metrics.leakage`.

        Two users of whom each trains the attacker that scores the other count twice: across folds, or, with an
        attacker trained on fitted users, at two seeds with their places changed. With the share h held out at S seeds
        the latter happens to ``p = h (1 - h)`` of the pairs a seed.
        """
        protocol = attack.rpartition("/")[2]
        if protocol != "transfer":
            return float(SPREAD["cross"])
        values = self.units.values(arm, _attacks(self.units, attack)[attack][0][0])
        seen = ~np.isnan(values)
        ever = seen.any(0)
        h = float(seen[:, ever].mean()) if ever.any() else 0.0
        again = (len(values) - 1) * h * (1.0 - h)
        return float(np.sqrt(1.0 + again / (again + 1.0)))

    def _permuted_auc(self, arm: str, metric: str, labelled: NDArray[np.int64], positive: NDArray[np.bool_]) -> Array:
        """AUC of each permutation averaged over seeds, by sums of ranks; positive (P, L)."""
        from scipy.stats import rankdata

        values = self.units.values(arm, metric)[:, labelled]
        total, seen = np.zeros(len(positive)), np.zeros(len(positive))
        for v in values:
            ok = ~np.isnan(v)
            own, n = positive[:, ok].astype(np.float64), int(ok.sum())
            up = own.sum(1)
            pairs = up * (n - up)
            above = own @ rankdata(v[ok]) - up * (up + 1) / 2 if n else np.zeros(len(own))
            total += np.divide(above, pairs, out=np.zeros(len(own)), where=pairs > 0)
            seen += pairs > 0
        return np.asarray(np.divide(total, seen, out=np.full(len(total), np.nan), where=seen > 0))
