"""Named statistics of the unit table: one small class each, written ``name:metric[:grouping[=group]]``.

==========================  ========================================================================================
``mean``                    weighted mean over seeds and units, of each group when a grouping is named
``worst_decile``            mean of the lowest tenth of the units at a seed, averaged over seeds
``gini``                    Gini over the units at a seed, averaged over seeds
``gap``, ``abs_gap``        mean of the first group minus the second, by name, of exactly two; its size
``effect``                  written ``a~b`` for two groupings of two groups: mean over the groups of b of the gap in a
``dominance``               likewise: size of the effect of a over b minus that of b over a, signs kept from the data
``leakage``                 of an attack, mean over classes c of ``|AUC_c - 1/2|``; of several, the strongest
``worst_leakage``           the same with the worst class instead of the mean
``disparity``               ``max over metrics and pairs (g, g') of |r_g - r_g'|`` at a seed, averaged over seeds;
                            ``metric`` is what stands before the ``/`` of their names, or several joined by ``+``
``client_disparity``        the same inside every client with two groups, the maximum over clients; others are counted
``mean_client_disparity``   the same inside every client, the mean over clients
``utility``                 ``k / sum_j 1 / m_j`` over ``<metric>_probability``, ``_rouge_l``, ``_truth_ratio``
``ks_distance``             ``sup_x |F_v(x) - F_u(x)|`` of an arm and the arm `RETRAIN` on forgotten records
``memory_gap``              mean of ``|v_i - u_i|``
``membership``              ``|AUC - 1/2|`` of forgotten against held-out records
``forget_quality``          p of the Kolmogorov-Smirnov test of v against u, the median over seeds; without draws
``rank_correlation``        Spearman's, written ``x~y``, or ``x~y|z`` for what is left of it given z
==========================  ========================================================================================

What is a maximum (strongest attack, widest pair, place of a supremum) is picked on the data and kept, with its sign, in
every draw: a maximum taken anew would grow with the noise. The sizes of ``abs_gap`` and ``leakage`` are taken in each
draw, so that intervals of their differences are short near 0. AUCs are averaged over seeds before their distance from
1/2 is taken. Undefined values (NaN) are left out and counted. Clients are told apart at each seed alone. Groups are
told apart by records' `SET` for forgetting: a table without it holds forgotten ones only.

*Nulls.* Gaps, disparities, leakage, membership: labels change places with their clusters, or the contributions of
clusters change sign (`upright.maths.simultaneous`). ``ks_distance``: the two values of each cluster's records change
arms by a coin, the same at all seeds. ``rank_correlation``: what each cluster adds to it changes sign.

A plugin registers its own class with `statistic`; a report needs no class, since a stored level says all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, Metric
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.records import Better, Null
from upright.evidence.units import Units
from upright.maths import intervals, ranks
from upright.maths.resampling import Draws, average, mean_of_ratios, ratio_of_sums
from upright.maths.simultaneous import (
    CROSS_FITTED,
    FEWEST,
    LEVEL,
    PERMUTATIONS,
    Comparisons,
    Z,
    compare_aucs,
    compare_groups,
    dense_codes,
    random_signs,
    rate_bounds,
)

__all__ = ["CLIENT", "RETRAIN", "SET", "STATISTICS", "Statistic", "computable", "parse", "statistic"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Moved = tuple[NDArray[np.floating[Any]], Comparisons | None, list[int]]
CLIENT, RETRAIN, SET = "client", "retrain", "set"
FORGET, HOLDOUT, RETAIN = "forget", "holdout", "retain"
PARTS: Mapping[str, str] = {"probability": "probability", "rouge_l": "ROUGE-L", "truth_ratio": "truth ratio"}
STATISTICS: dict[str, type[Statistic]] = {}
S = TypeVar("S", bound="type[Statistic]")


def statistic(name: str, better: Better | None = None, **attributes: Any) -> Callable[[S], S]:
    """Register a class under a name; `better` is the metric's own direction by default; attributes make variants."""

    def mark(cls: S) -> S:
        own = {"name": name, "fixed": better, "__doc__": cls.__doc__, **attributes}
        STATISTICS[name] = type(cls.__name__, (cls,), own)
        return cls

    return mark


class Statistic(ABC):
    """One statistic of one metric.

    Parameters
    ----------
    boot : Bootstrap
    text : str
        ``name:metric[:grouping]``.
    metrics : mapping of name to Metric
        Titles, directions and margins.
    """

    name: ClassVar[str]
    fixed: ClassVar[Better | None]
    words: ClassVar[str] = "{title}"  # of a label
    paired: ClassVar[bool] = True  # whether differences of arms are taken
    signed: ClassVar[bool] = False  # whether it has a sign, so that chance shows a band around 0
    sets: ClassVar[tuple[str, ...]] = ()  # of records, that it is of
    fewest: ClassVar[int] = 0  # groups

    def __init__(self, boot: Bootstrap, text: str, metrics: Mapping[str, Metric]) -> None:
        self.boot, self.units, self.text, self.metrics = boot, boot.units, text, metrics
        _, self.metric, grouping = [*text.split(":", 2), ""][:3]
        grouping, _, self.only = grouping.partition("=")  # the one group that it is of
        self.grouping = grouping or None
        self.about = metrics.get(self.metric, Metric(self.metric))
        self.title = self.about.title or self.about.name
        self.groups, self.label_of = self.units.codes(grouping) if grouping else ([], np.zeros((1, 1), dtype=np.int64))

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        """Whether the table holds what it is made of."""
        return metric in units.metrics and (not grouping or grouping in units.by)

    @property
    def better(self) -> Better:
        """Which way is better."""
        return self.fixed or self.about.direction

    def comparable(self) -> bool:
        """Whether there are the groups that it compares."""
        return len(self.groups) >= self.fewest and (not self.only or self.only in self.groups)

    def cells(self) -> list[str | None]:
        """Return groups, attacks or classes, None for the whole."""
        return [*self.groups] if self.grouping and not self.only else [None]

    def label(self, cell: str | None) -> str:
        """Return how a report writes the value of a cell."""
        cell, what = cell or self.only, self.title.removeprefix("Membership score: ")
        whole = self.words.format(title=self.title, what=what, by=self.grouping)
        return whole + (f", {cell}" if cell else "")

    def inside(self, cell: str | None) -> Bools:
        """Return which units it is of, shape (S, U)."""
        found, cell = np.ones((len(self.units.seeds), len(self.units.units)), dtype=bool), cell or self.only
        if cell:
            names, codes = self.units.codes(str(self.grouping))
            found = codes == (names.index(cell) if cell in names else len(names))
        return found & np.isin(self.units.by[SET], self.sets) if self.sets and SET in self.units.by else found

    def values(self, arm: str, cell: str | None = None) -> Array:
        """Return values of a cell, shape (S, U)."""
        return np.where(self.inside(cell), self.units.values(arm, self.metric), np.nan)

    def draws(self, arm: str, cell: str | None) -> Draws:
        """Return the value and its draws."""
        return self.boot.keep((self.text, arm, cell), lambda: self.drawn(arm, cell))  # type: ignore[no-any-return]

    @abstractmethod
    def drawn(self, arm: str, cell: str | None) -> Draws:
        """Compute what `draws` keeps."""

    def count(self, arm: str, cell: str | None) -> tuple[Bools, Bools]:
        """Return which units have a value, and which should have one, shapes (S, U)."""
        inside = self.inside(cell)
        if SET in self.units.by and not self.sets:  # a record of a set that the metric is not of misses nothing
            sets = self.units.by[SET]
            some = np.any([~np.isnan(self.units.values(a, self.metric)) for a in self.units.arms], axis=0)
            inside = inside & np.isin(sets, np.unique(sets[some]))
        return ~np.isnan(self.values(arm, cell)) & inside, inside

    def null(self, arm: str, cell: str | None) -> Moved | None:
        """Return sizes under chance (P,), comparisons and which of them the cell is picked from."""
        return None

    def chance(self, arm: str, cell: str | None) -> dict[str, Any]:
        """Return null, adjusted p, smallest detectable size and adjusted interval of a level."""
        drawn, null = self.draws(arm, cell), self.null(arm, cell)
        if null is None:
            return dict(zip(("low", "high"), drawn.interval(), strict=True))
        sizes, found, chosen = null
        known, value = sizes[np.isfinite(sizes)].astype(np.float64), abs(drawn.value)
        band = Null(*[float("nan")] * 3)
        if len(known):
            top = float(np.quantile(known, 1 - LEVEL))
            band = Null(float(known.mean()), -top if self.signed else 0.0, top)

        def apart(one: Any) -> float:
            return float(abs(abs(one) - value))

        critical, p, least = Z, (1 + (known >= value - 1e-6).sum()) / (1 + len(known)), float("nan")
        low, high = drawn.interval()
        if found is not None and chosen:
            best, near = (max(chosen, key=lambda k: found.score[k]), min(chosen, key=lambda k: apart(found.value[k])))
            once = len(self.units.seeds) == 1 or low == high  # no draw of seeds that are all alike has a width
            alone = once and apart(found.value[near]) < 1e-9  # the value is one comparison
            best = near if alone else best
            p, least, critical = found.p[best], float(found.detectable[best]), found.critical
            low, high = drawn.interval(critical if len(found.of) > 1 else Z)
            if alone:
                turn = np.sign(drawn.value) * np.sign(found.value[near]) or 1.0
                low, high = sorted((turn * found.low[near], turn * found.high[near]))
        elif len(known):
            least = band.high + 0.84 * drawn.standard_error()
        p = float(p) if np.isfinite(drawn.value) and (len(known) or found) else float("nan")
        if not p < LEVEL:  # so that no two words can differ
            low, high = min(low, 0.0), max(high, 0.0)
        return {"null": band, "p": p, "smallest_detectable": least, "low": float(low), "high": float(high)}

    def facts(self, arm: str, cell: str | None) -> dict[str, Any]:
        """Return what a level says beside its value."""
        return {}


class Means(Statistic):
    """Made of weighted means over seeds and units."""

    def sums(self, arm: str, cell: str | None) -> Array:
        """Return sums and numbers of values under every draw, shape (2, 1 + D, S)."""
        cell = cell or self.only
        key = ("sums", type(self).values, arm, self.metric, self.grouping if cell else "", cell)
        return np.asarray(self.boot.keep(key, lambda: self.boot.mean_sums(self.values(arm, cell))))


@statistic("mean")
class Mean(Means):
    """Weighted mean over seeds and units; a rate at one seed has Wilson's interval, which keeps a width at 0 and 1."""

    def drawn(self, arm: str, cell: str | None) -> Draws:
        return self.boot.draws(ratio_of_sums, self.sums(arm, cell), ~np.isnan(self.values(arm, cell)))

    def chance(self, arm: str, cell: str | None) -> dict[str, Any]:
        values, found = self.values(arm, cell), super().chance(arm, cell)
        own = values[0, known := np.flatnonzero(~np.isnan(values[0]))]
        is_rate = (self.about.low, self.about.high) == (0, 1) and bool(((own == 0) | (own == 1)).all())
        if len(values) > 1 or not len(own) or not is_rate:
            return found
        _, _, low, high = rate_bounds(own, np.zeros_like(known), self.units.cluster[known], 1)[:, 0]
        return {**found, "low": float(low), "high": float(high)}


@statistic("gap", "none", paired=False, signed=True, words="{title}: {first} minus {second}")
@statistic("abs_gap", "lower", words="{title}: size of the gap between {first} and {second}")
class Gap(Means):
    """Mean of the first group minus the second, or its size."""

    def comparable(self) -> bool:
        return len(self.groups) == 2

    def cells(self) -> list[str | None]:
        return [None]

    def label(self, cell: str | None) -> str:
        first, second = self.groups
        return self.words.format(title=self.title, first=first, second=second)

    def drawn(self, arm: str, cell: str | None, signed: bool = False) -> Draws:
        def gap(p: Array, w: Array) -> Array:
            found = ratio_of_sums(p[:2], w) - ratio_of_sums(p[2:], w)
            return found if signed or self.signed else np.abs(found)

        sides = [~np.isnan(self.values(arm, g)) for g in self.groups]
        return self.boot.draws(gap, np.concatenate([self.sums(arm, g) for g in self.groups]), *sides)

    def null(self, arm: str, cell: str | None) -> Moved:
        values = self.units.values(arm, self.metric)[..., None]
        found: Comparisons = self.boot.keep(
            ("gap", arm, self.metric, self.grouping),
            lambda: compare_groups(values, self.label_of, self.units.cluster, 2, rng=self.boot.null_rng("gap")),
        )
        return found.averaged[:, 0], found, [0]

    def chance(self, arm: str, cell: str | None) -> dict[str, Any]:
        found = super().chance(arm, cell)
        low, high = self.drawn(arm, cell, signed=True).interval()
        return found if self.signed or not low <= 0 <= high else {**found, "low": min(found["low"], 0.0)}


@statistic("effect", "none", paired=False, signed=True, words="{title}: effect of {a}, {first} minus {second}")
class Effect(Means):
    """Mean over the groups of b of the first group of a minus the second: one margin of a table of two by two."""

    def __init__(self, boot: Bootstrap, text: str, metrics: Mapping[str, Metric]) -> None:
        super().__init__(boot, text.rpartition(":")[0], metrics)
        self.text, self.grouping = text, text.rpartition(":")[2]
        self.sides = {name: self.units.codes(name) for name in self.grouping.split("~")}

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        names = grouping.split("~")
        two = len(names) == 2 and all(name in units.by and len(units.groups(name)) == 2 for name in names)
        return two and metric in units.metrics

    def cells(self) -> list[str | None]:
        return [None]

    def inside(self, cell: str | None) -> Bools:
        return np.asarray(np.all([codes >= 0 for _, codes in self.sides.values()], axis=0))

    def label(self, cell: str | None) -> str:
        a, b = self.sides
        first, second = self.sides[a][0]
        return self.words.format(title=self.title, a=a, b=b, first=first, second=second)

    def table(self, arm: str) -> tuple[Array, list[Bools]]:
        """Return sums and counts of the four cells under every draw, shape (8, 1 + D, S), and who is in each."""
        values, (a, b) = self.values(arm), (codes for _, codes in self.sides.values())
        cells = [np.where((a == i) & (b == j), values, np.nan) for i in (0, 1) for j in (0, 1)]
        return np.concatenate([self.boot.mean_sums(x) for x in cells]), [~np.isnan(x) for x in cells]

    def drawn(self, arm: str, cell: str | None) -> Draws:
        pieces, sides = self.table(arm)
        return self.boot.draws(lambda p, w: _effects(p, w)[0], pieces, *sides)

    def null(self, arm: str, cell: str | None) -> Moved | None:
        """Labels of a change places inside the groups of b, whole clusters at once."""
        (_, a), (_, b) = self.sides.values()
        values, rng = self.values(arm)[..., None], self.boot.null_rng("effect")
        return compare_groups(values, a, self.units.cluster, 2, rng=rng, place=b).averaged[:, 0], None, []


@statistic("dominance", "none", paired=False, signed=True, words="{title}: effect of {a} minus that of {b}, sizes")
class Dominance(Effect):
    """Size of the effect of a minus the size of that of b; judged by its interval alone."""

    def drawn(self, arm: str, cell: str | None) -> Draws:
        pieces, sides = self.table(arm)
        a, b = np.sign(_effects(pieces[:, :1], np.ones((1, pieces.shape[-1]))))[:, 0]
        return self.boot.draws(lambda p, w: np.asarray([a, -b] @ _effects(p, w)), pieces, *sides)

    def null(self, arm: str, cell: str | None) -> Moved | None:
        return None


def _effects(pieces: Array, weights: Array) -> Array:
    """Return the effects of a and of b under each draw, shape (2, d), of sums of their four cells (8, d, S)."""
    mean = np.array([ratio_of_sums(pieces[k : k + 2], weights) for k in (0, 2, 4, 6)]).reshape(2, 2, -1)
    return np.array([(mean[0] - mean[1]).mean(0), (mean[:, 0] - mean[:, 1]).mean(0)])


@statistic("worst_decile", words="{title}, worst tenth", function=staticmethod(intervals.worst_decile))
@statistic("gini", "lower", words="{title}, Gini over units", function=staticmethod(intervals.gini))
class OverUnits(Statistic):
    """A function of the units at a seed, averaged over seeds."""

    function: ClassVar[Callable[..., Any]]

    def drawn(self, arm: str, cell: str | None) -> Draws:
        values = self.values(arm, cell)
        return self.boot.draws(_average, self.boot.per_seed(self.function, values), ~np.isnan(values))


def _average(pieces: Array, weights: Array) -> Array:
    return average(pieces[0], weights)


@statistic("leakage", "lower", over=staticmethod(np.mean), fewest=2)
@statistic("worst_leakage", "lower", over=staticmethod(np.max), fewest=3, worst=", worst class")
class Leakage(Statistic):
    """``|AUC_c - 1/2|`` over classes, of the strongest attack or of each; of two classes both leak the same."""

    over: ClassVar[Callable[..., Any]]
    worst: ClassVar[str] = ""

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        return grouping in units.by and any(m.startswith(metric + "/") for m in units.metrics)

    def attacks(self) -> dict[str, list[str]]:
        """Return metrics of each attack below the prefix, one a class, which their names end in."""
        found: dict[str, list[str]] = {}
        for m in self.units.metrics:
            if m.startswith(self.metric + "/"):
                found.setdefault(m.rpartition("/")[0].removeprefix(self.metric + "/"), []).append(m)
        return found

    def cells(self) -> list[str | None]:
        return [None, *self.attacks()] if len(self.attacks()) > 1 else [None]

    def label(self, cell: str | None) -> str:
        return f"{self.title} of {self.grouping}{self.worst}, {'strongest attack' if cell is None else cell}"

    def auc(self, arm: str, metric: str) -> Array:
        """Return the AUC of a class at each seed, inside folds where the table has them, shape (1 + D, S)."""
        values = np.where(self.label_of < 0, np.nan, self.units.values(arm, metric))
        own = self.label_of == (self.groups.index(c) if (c := metric.rpartition("/")[2]) in self.groups else -2)
        key = ("auc", arm, metric, self.grouping)
        folds = self.folds(metric)
        return np.asarray(self.boot.keep(key, lambda: self.boot.per_seed(ranks.auc, values, own, folds)[0]))

    def folds(self, metric: str) -> NDArray[np.int64]:
        """Return the fold whose attacker scored each unit: the grouping ``fold_<protocol>``, else one; shape (S, U)."""
        name = f"fold_{metric.split('/')[-2]}"
        return self.units.codes(name)[1] if name in self.units.by else np.zeros_like(self.label_of)

    def strongest(self, arm: str) -> str:
        """Return the attack that leaks most on the data."""
        one, found = np.ones((1, 1)), self.attacks()
        size = [self.over([abs(average(self.auc(arm, m)[:1], one)[0] - 0.5) for m in own]) for own in found.values()]
        return list(found)[int(np.nanargmax(size))] if np.isfinite(size).any() else next(iter(found))

    def drawn(self, arm: str, cell: str | None) -> Draws:
        own = self.attacks()[cell or self.strongest(arm)]

        def leak(p: Array, w: Array) -> Array:
            return np.asarray(self.over([np.abs(average(one, w) - 0.5) for one in p], axis=0))

        scored = ~np.isnan(self.units.values(arm, own[0]))
        sides = [scored & (self.label_of == g) for g in range(len(self.groups))]
        return self.boot.draws(
            leak, np.stack([self.auc(arm, m) for m in own]), *[s for s in sides if s.any()] or [scored]
        )

    def count(self, arm: str, cell: str | None) -> tuple[Bools, Bools]:
        first = next(iter(self.attacks().values()))[0]
        return ~np.isnan(self.units.values(arm, first)) & (self.label_of >= 0), self.label_of >= 0

    def null(self, arm: str, cell: str | None) -> Moved:
        """Labels change places, predictions stay; the largest over attacks when there are several."""
        attacks = self.attacks()
        columns = [(a, m) for a, own in attacks.items() for m in own]
        found: Comparisons = self.boot.keep(
            ("aucs", arm, self.metric, self.grouping),
            lambda: compare_aucs(
                np.stack([self.units.values(arm, m) for _, m in columns], axis=-1),
                self.label_of,
                np.array([self.groups.index(m.rpartition("/")[2]) for _, m in columns]),
                self.units.cluster,
                rng=self.boot.null_rng("leakage"),
                stratum=np.stack([self.folds(m) for _, m in columns], axis=-1),
                spread=np.array([self._spread(arm, a, m) for a, m in columns]),
            ),
        )
        own = {a: [k for k, (b, _) in enumerate(columns) if a == b] for a in attacks}
        chosen = [cell] if cell is not None else list(attacks)
        sizes = [s for s in (self.over(found.sizes[:, 0, own[a]], axis=1) for a in chosen) if np.isfinite(s).all()]
        nothing = np.full(PERMUTATIONS, np.nan)  # an arm may not expose what others do
        top = own[cell or self.strongest(arm)]  # p and interval are those of the attack whose value is shown
        known = [k for k in top if np.isfinite(found.value[k])]
        return np.max(sizes, axis=0) if sizes else nothing, found, known

    def chance(self, arm: str, cell: str | None) -> dict[str, Any]:
        found = super().chance(arm, cell)
        return {**found, "low": max(found["low"], 0.0)}  # a distance from 1/2

    def _spread(self, arm: str, attack: str, metric: str) -> float:
        """By how much moved labels understate the deviations without signal; see `upright.metrics.leakage`.

        Two users of whom each trains the attacker that scores the other count twice: across folds, or, with an
        attacker trained on fitted users, at two seeds with their places changed. With the share h held out at S seeds
        the latter happens to ``p = h (1 - h)`` of the pairs a seed.
        """
        if attack.rpartition("/")[2] != "transfer":
            return CROSS_FITTED
        seen = ~np.isnan(self.units.values(arm, metric))
        ever = seen.any(0)
        h = float(seen[:, ever].mean()) if ever.any() else 0.0
        again = (len(seen) - 1) * h * (1.0 - h)
        return float(np.sqrt(1.0 + again / (again + 1.0)))

    def facts(self, arm: str, cell: str | None) -> dict[str, Any]:
        if cell is not None:
            return {}
        attack = self.strongest(arm)
        sizes = self.over([np.abs(self.auc(arm, m)[0] - 0.5) for m in self.attacks()[attack]], axis=0)
        # each seed by itself: signs that alternate do not cancel
        return {"attack": attack, "per_seed": float(np.nanmean(sizes)) if np.isfinite(sizes).any() else float("nan")}


@statistic("disparity", "lower", fewest=2)
@statistic("client_disparity", "lower", fewest=2, clients=True, where=" inside a client, the worst client")
@statistic(
    "mean_client_disparity", "lower", fewest=2, clients=True, several=True, where=" inside a client, mean over clients"
)
class Disparity(Statistic):
    """Largest difference of rates between groups, of all rows or inside every client."""

    clients: ClassVar[bool] = False
    several: ClassVar[bool] = False
    where: ClassVar[str] = ""

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        inside = not cls.clients or (CLIENT in units.by and grouping != CLIENT)
        return grouping in units.by and inside and bool(_rates(units, metric))

    def cells(self) -> list[str | None]:
        """None for the whole, and one cell a class; clients differ from seed to seed, so they are no cells."""
        classes = _rates(self.units, self.metric)
        return [None, *classes] if not self.clients and len(classes) > 1 else [None]

    def label(self, cell: str | None) -> str:
        of = "" if self.grouping == "group" else f" of {self.grouping}"
        whole = f"{self.title}: largest difference between groups{of}{self.where}"
        return whole if cell is None else f"{whole}, {cell}"

    def inside(self, cell: str | None) -> Bools:
        return np.asarray(self.home >= 0)

    @property
    def home(self) -> NDArray[np.int64]:
        """The client of each row, or one for all; negative for a row that takes no part; shape (S, U)."""
        home = self.units.codes(CLIENT)[1] if self.clients else np.zeros_like(self.label_of)
        return np.where(self.label_of >= 0, home, -1)

    def rates(self, cell: str | None) -> list[str]:
        """Return the metrics that are compared, of one class or of all."""
        classes = _rates(self.units, self.metric)
        return [m for own in classes.values() for m in own] if cell is None else classes[cell]

    def table(self, arm: str, cell: str | None) -> Array:
        """Return values of the compared metrics, shape (S, U, M)."""
        table = np.stack([self.units.values(arm, m) for m in self.rates(cell)], axis=-1)
        return np.where(self.inside(cell)[..., None], table, np.nan)

    def count(self, arm: str, cell: str | None) -> tuple[Bools, Bools]:
        return np.asarray((~np.isnan(self.table(arm, cell))).any(-1)), self.inside(cell)

    def drawn(self, arm: str, cell: str | None) -> Draws:
        values, home, n = self.table(arm, cell), self.home, len(self.groups)
        known, ends = ~np.isnan(values), []  # of each seed: rows and metric of both ends of each place
        for s, (v, k) in enumerate(zip(values, known, strict=True)):
            code, size = home[s] * n + self.label_of[s], (int(home.max()) + 1) * n
            sums = [[np.bincount(code[o], w, size) for w in (x[o], None)] for x, o in zip(v.T, k.T, strict=True)]
            top, bottom = np.array(sums, dtype=np.float64).reshape(len(sums), 2, -1, n).transpose(1, 2, 3, 0)
            ends.append(
                [
                    (k[:, m] & (home[s] == c) & (self.label_of[s] == g), v[:, m])
                    for c, m, *pair in _places(top, bottom, self.several)
                    for g in pair
                ]
            )
        columns = np.zeros((2 * max(map(len, ends)), *values.shape[:2]))
        for s, own in enumerate(ends):
            for i, (rows, v) in enumerate(own):
                columns[2 * i, s], columns[2 * i + 1, s] = np.where(rows, v, 0.0), rows
        if not len(columns):
            nothing = np.full(len(self.boot.seed_weight), np.nan)
            return Draws(float("nan"), nothing, nothing, nothing, len(values), 2.0, np.full(len(values), np.nan))

        def gaps(p: Array, w: Array) -> Array:
            rate = np.divide(p[0::2], p[1::2], out=np.full(p[0::2].shape, np.nan), where=p[1::2] > 0)
            gap = (rate[0::2] - rate[1::2]).transpose(1, 2, 0)  # (d, S, places); a draw may hold no row of an end
            return average(average(gap, np.ones(1)), w)

        sides = [np.asarray(known.any(-1))] if self.clients else list(columns[1::2].astype(bool))
        return self.boot.draws(gaps, self.boot.sums(columns), *sides)

    def compared(self, arm: str) -> Comparisons:
        """Return every pair of groups in every metric, inside clients where they are told apart."""
        key = ("groups", arm, self.metric, self.grouping, self.clients)
        found: Comparisons = self.boot.keep(
            key,
            lambda: compare_groups(
                self.table(arm, None),
                self.label_of,
                self.units.cluster,
                len(self.groups),
                rng=self.boot.null_rng("disparity"),
                place=self.units.codes(CLIENT)[1] if self.clients else None,
            ),
        )
        return found

    def null(self, arm: str, cell: str | None) -> Moved:
        found, every = self.compared(arm), self.rates(None)
        own = [every.index(m) for m in self.rates(cell)]
        sizes = np.fmax.reduce(found.sizes[..., own], axis=-1)  # (P, strata)
        sizes = sizes.reshape(len(sizes), len(self.units.seeds), -1)
        some = ~np.isnan(sizes)
        over = average(sizes, np.ones(1)) if self.several else np.where(some, sizes, -1.0).max(-1)
        chosen = [k for k, one in enumerate(found.of) if one[1] in own and np.isfinite(found.value[k])]
        mean = average(np.where(some.any(-1), over, np.nan), np.ones(1))
        return mean, None if self.several else found, chosen

    def facts(self, arm: str, cell: str | None) -> dict[str, Any]:
        if not self.clients:
            return {}
        found = self.compared(arm)
        client = self.units.codes(CLIENT)[1]
        present = sum(len(np.unique(c[c >= 0])) for c in client)
        kept = len({one[0] for one, v in zip(found.of, found.value, strict=True) if np.isfinite(v)})
        return {"n_clients": present, "n_clients_left_out": present - kept}


def _rates(units: Units, prefixes: str) -> dict[str, list[str]]:
    """Return the metrics of each class below all of the prefixes; empty when a prefix has none."""
    found: dict[str, list[str]] = {}
    for prefix in prefixes.split("+"):
        own = [name for name in units.metrics if name.startswith(prefix + "/")]
        if not own:
            return {}
        for name in own:
            found.setdefault(name[len(prefix) + 1 :], []).append(name)
    return found


def _places(top: Array, bottom: Array, several: bool) -> list[tuple[int, int, int, int]]:
    """Return place, metric, highest and lowest group of the largest gap of sums (places, G, M), or one a place.

    Ties go to the first place, metric and highest group and to the last lowest group, so that two ends differ.
    """
    some = bottom > 0
    high = np.divide(top, bottom, out=np.full(top.shape, -np.inf), where=some)
    low = np.where(some, high, np.inf)
    sizes = np.where(some.sum(1) >= 2, high.max(1) - low.min(1), -1.0)  # (places, M)
    places = np.flatnonzero((sizes >= 0).any(-1))
    if len(places) and not several:
        places = places[[int(sizes[places].max(-1).argmax())]]
    found = []
    for c in places.tolist():
        m = int(sizes[c].argmax())
        found.append((c, m, int(high[c, :, m].argmax()), low.shape[1] - 1 - int(low[c, ::-1, m].argmin())))
    return found


class Paired(Statistic):
    """Forgotten records of an arm beside those of the arm `RETRAIN`, which never saw them."""

    sets = (FORGET,)

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        return super().known(units, metric, grouping) and RETRAIN in units.arms

    def pair(self, arm: str, cell: str | None) -> tuple[Array, Array]:
        """Return values of an arm and of `RETRAIN`, shape (S, U); NaN where one of them is not defined."""
        one, two = self.values(arm, cell), self.values(RETRAIN, cell)
        ok = ~np.isnan(one) & ~np.isnan(two)
        return np.where(ok, one, np.nan), np.where(ok, two, np.nan)

    def count(self, arm: str, cell: str | None) -> tuple[Bools, Bools]:
        return ~np.isnan(self.pair(arm, cell)[0]), self.inside(cell)

    def per_record(self, one: Array, two: Array) -> Array:
        """Return the value of each record at one seed, shape (U,)."""
        return np.abs(one - two)

    def drawn(self, arm: str, cell: str | None) -> Draws:
        values = np.stack([self.per_record(v, u) for v, u in zip(*self.pair(arm, cell), strict=True)])
        return self.boot.draws(mean_of_ratios, self.boot.mean_sums(values), ~np.isnan(values))


@statistic("memory_gap", "lower", words="{what}: mean distance to the retain-only model")
class MemoryGap(Paired):
    """Mean distance of each forgotten record's value from that of a model that never saw it."""

    def facts(self, arm: str, cell: str | None) -> dict[str, Any]:
        v = self.values(RETRAIN, cell)
        gaps = [np.abs(v[a] - v[b]) for a in range(len(v)) for b in range(a)]  # of two runs that never saw it
        known = [g[~np.isnan(g)].mean() for g in gaps if (~np.isnan(g)).any()]
        return {"between_retrains": float(np.mean(known)) if known else None}


@statistic("ks_distance", "lower", words="{what}: KS distance to the retain-only model")
class KSDistance(Paired):
    """Largest distance of two distribution functions; as a maximum it is biased upwards near 0."""

    def per_record(self, one: Array, two: Array) -> Array:
        """Return ``s (1[v_i <= x] - 1[u_i <= x])``, x and the sign s where the two differ most; its mean is D."""
        if np.isnan(one).all():
            return one
        x, first, second = ranks.widest(one, two)
        sign = 1.0 if first >= second else -1.0
        return np.where(np.isnan(one), np.nan, sign * ((one <= x).astype(np.float64) - (two <= x)))

    def null(self, arm: str, cell: str | None) -> Moved:
        signs, column = random_signs(self.units.n_clusters, PERMUTATIONS, self.boot.null_rng("ks_distance"))
        flips, found = signs.astype(np.int8), []
        for v, u in zip(*self.pair(arm, cell), strict=True):
            ok = np.flatnonzero(~np.isnan(v))
            if len(ok):
                found.append(ranks.ks_null(v[ok], u[ok], flips[:, column[self.units.cluster[ok]]]))
        return np.mean(found, axis=0) if found else np.full(PERMUTATIONS, np.nan), None, []


@statistic("forget_quality", "higher", paired=False, words="{what}: forget quality (p-value)")
class ForgetQuality(Paired):
    """p of the Kolmogorov-Smirnov test: without draws, since a p-value on a resample has another law."""

    def facts(self, arm: str, cell: str | None) -> dict[str, Any]:
        pairs = [(v[~np.isnan(v)], u[~np.isnan(v)]) for v, u in zip(*self.pair(arm, cell), strict=True)]
        return {"p_values": [ranks.ks_p(v, u) if len(v) else float("nan") for v, u in pairs]}

    def drawn(self, arm: str, cell: str | None) -> Draws:
        p, none = self.facts(arm, cell)["p_values"], np.full(len(self.boot.seed_weight), np.nan)
        return Draws(
            float(np.nanmedian(p)) if np.isfinite(p).any() else np.nan, none, none, none, len(p), 2.0, np.array(p)
        )


@statistic("membership", "lower", words="Membership by {what}: |AUC - 1/2| against held-out records")
class Membership(Statistic):
    """Distance of the AUC of forgotten against held-out records from 1/2; a cell leaves all held-out records in."""

    sets = (FORGET, HOLDOUT)

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        both = SET in units.by and {FORGET, HOLDOUT} <= set(units.groups(SET))
        return both and super().known(units, metric, grouping)

    def inside(self, cell: str | None) -> Bools:
        return np.asarray(super().inside(cell) | (self.units.by[SET] == HOLDOUT))

    def auc(self, arm: str, cell: str | None = None) -> Draws:
        """Return the AUC itself."""
        values, own = self.values(arm, cell), self.units.by[SET] == FORGET
        key = ("membership", arm, self.metric, self.grouping if cell else "", cell)
        pieces, known = self.boot.keep(key, lambda: self.boot.per_seed(ranks.auc, values, own)), ~np.isnan(values)
        return self.boot.draws(_average, pieces, known & own, known & ~own)

    def drawn(self, arm: str, cell: str | None) -> Draws:
        auc = self.auc(arm, cell)
        return (auc - 0.5) * (-1.0 if auc.value < 0.5 else 1.0)

    def null(self, arm: str, cell: str | None) -> Moved:
        label = np.where(self.inside(cell), (self.units.by[SET] == FORGET).astype(np.int64), -1)
        values, rng = self.values(arm, cell)[..., None], self.boot.null_rng("membership")
        found = compare_aucs(values, label, np.array([1]), self.units.cluster, rng=rng)
        return found.sizes[:, 0, 0], found, [0] if np.isfinite(found.value[0]) else []

    def facts(self, arm: str, cell: str | None) -> dict[str, Any]:
        auc, least = self.auc(arm, cell), self.chance(arm, cell)["low"]
        ends = {0.0: (0.0, 0.5 - least), 1.0: (0.5 + least, 1.0)}.get(auc.value, auc.interval())
        return dict(zip(("auc", "auc_low", "auc_high"), (auc.value, *ends), strict=True))


@statistic("utility", "higher")
class Utility(Statistic):
    """Harmonic mean of what is left on retained records; 0 when a part is 0."""

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        return bool(_parts(units, metric)) and (not grouping or grouping in units.by)

    @property
    def sets(self) -> tuple[str, ...]:  # type: ignore[override]
        """The retained records, or all where none is."""
        return (RETAIN,) if SET in self.units.by and RETAIN in self.units.groups(SET) else ()

    def label(self, cell: str | None) -> str:
        have, what = _parts(self.units, self.metric), self.title
        own, lost = ([w for p, w in PARTS.items() if (f"{self.metric}_{p}" in have) == one] for one in (True, False))
        parts = f"of {_and(own)}" + (f", without {_and(lost)}" if lost else "")
        whole = f"Utility on {'retained records' if what == RETAIN else what}, {parts}"
        return whole if cell is None else f"{whole}, {cell}"

    def tables(self, arm: str, cell: str | None) -> Array:
        """Return values of each part, shape (k, S, U)."""
        tables = np.stack([self.units.values(arm, m) for m in _parts(self.units, self.metric)])
        return np.where(self.inside(cell), tables, np.nan)

    def drawn(self, arm: str, cell: str | None) -> Draws:
        def harmonic(p: Array, w: Array) -> Array:
            m = np.divide(p[0::2], p[1::2], out=np.full(p[0::2].shape, np.nan), where=p[1::2] > 0)
            with np.errstate(divide="ignore"):
                mean = np.where((m <= 0).any(0), 0.0, len(m) / (1.0 / m).sum(0))
            return average(np.where(np.isnan(m).any(0), np.nan, mean), w)

        pieces = np.concatenate([self.boot.mean_sums(t) for t in self.tables(arm, cell)])
        return self.boot.draws(harmonic, pieces, self.count(arm, cell)[0])

    def count(self, arm: str, cell: str | None) -> tuple[Bools, Bools]:
        return np.asarray((~np.isnan(self.tables(arm, cell))).any(0)), self.inside(cell)

    def facts(self, arm: str, cell: str | None) -> dict[str, Any]:
        means = average(average(self.tables(arm, cell), np.ones(1)), np.ones(1))
        parts = zip(_parts(self.units, self.metric), means, strict=True)
        return {"parts": {m: None if np.isnan(v) else float(v) for m, v in parts}}


def _parts(units: Units, prefix: str) -> list[str]:
    """Return the parts of a utility that have a value in some arm."""
    names = [f"{prefix}_{part}" for part in PARTS]
    return [m for m in names if m in units.metrics and any(np.isfinite(units.values(a, m)).any() for a in units.arms)]


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


@statistic("rank_correlation", "none", paired=False, signed=True)
class RankCorrelation(Statistic):
    """Whether a score predicts what it is said to predict; units without all values are left out."""

    @classmethod
    def known(cls, units: Units, metric: str, grouping: str) -> bool:
        return set(metric.replace("|", "~").split("~")) <= set(units.metrics) and (not grouping or grouping in units.by)

    def label(self, cell: str | None) -> str:
        of = [self.metrics.get(m, Metric(m)) for m in self.metric.replace("|", "~").split("~")]
        x, y, *z = [m.title or m.name for m in of]
        return f"Rank correlation: {x} with {y}{f', given {z[0]}' if z else ''}{'' if cell is None else f', {cell}'}"

    def tables(self, arm: str, cell: str | None) -> Array:
        """Return x, y and z, shape (2 or 3, S, U)."""
        tables = np.stack([self.units.values(arm, m) for m in self.metric.replace("|", "~").split("~")])
        return np.where(self.inside(cell), tables, np.nan)

    def complete(self, arm: str, cell: str | None) -> Array:
        """Return the same where all are defined."""
        tables = self.tables(arm, cell)
        return np.where(np.isnan(tables).any(0), np.nan, tables)

    def drawn(self, arm: str, cell: str | None) -> Draws:
        x, *others = self.complete(arm, cell)
        return self.boot.draws(_average, self.boot.per_seed(ranks.weighted_rank_correlation, x, *others), ~np.isnan(x))

    def count(self, arm: str, cell: str | None) -> tuple[Bools, Bools]:
        have = ~np.isnan(self.tables(arm, cell))
        return np.asarray(have.all(0)), np.asarray(have.any(0))

    def null(self, arm: str, cell: str | None) -> Moved:
        rng, found = self.boot.null_rng("rank_correlation"), list[Array]()
        signs, column = random_signs(self.units.n_clusters, PERMUTATIONS, rng)
        keys = rng.random((PERMUTATIONS, len(self.units.units)), dtype=np.float32)  # the same moves at all seeds
        for v in self.complete(arm, cell).transpose(1, 0, 2):
            ok = np.flatnonzero(~np.isnan(v[0]))
            ids, at = dense_codes(self.units.cluster[ok])
            if len(ids) < FEWEST:  # nothing can be judged
                continue
            a, b = ranks.rank_sides(*v[:, ok])
            if self.units.clustered:
                found.append(np.asarray(signs[:, column[ids]] @ np.bincount(at, a * b)))
            else:
                found.append(b[np.argsort(keys[:, ok], axis=1)] @ a)
        known = [one for one in found if np.isfinite(one).all()]
        return np.abs(np.mean(known, axis=0)) if known else np.full(PERMUTATIONS, np.nan), None, []


def computable(text: str, units: Units) -> bool:
    """Whether the table holds what a statistic is made of."""
    name, metric, grouping = [*text.split(":", 2), "", ""][:3]
    return name in STATISTICS and STATISTICS[name].known(units, metric, grouping.partition("=")[0])


def parse(text: str, boot: Bootstrap, metrics: Mapping[str, Metric]) -> Statistic:
    """Return a statistic by its text.

    Raises
    ------
    InputError
        When a part of it is not in the table.
    """
    units = boot.units
    if not computable(text, units):
        raise InputError(
            f"statistic {text!r}",
            f"name:metric[:grouping[=group]] with name in {list(STATISTICS)}, metric in {units.metrics} or what stands "
            f"before their last /, grouping in {sorted(units.by)}; inside clients, a grouping 'client' and another one",
            "correct the part that is not in its list",
        )
    return STATISTICS[text.partition(":")[0]](boot, text, metrics)
