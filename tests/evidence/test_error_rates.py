"""How often evidence errs: coverage of intervals, words on tables of chance, remedies without effect, power.

Stream k of a test is ``np.random.default_rng(k)``, k = 0 to 399, none of them chosen; the fast version takes the first
tenth. A bootstrap has 400 draws here: ends of intervals then stray by 0.13 standard errors, which costs 0.2 points of
coverage. Labels of audits move 499 times: a test at 0.05 is as exact with them as with 1,999.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from upright.contract import Arm, Metric, UnitScores
from upright.evidence.compute import evidence, pair_levels
from upright.evidence.records import Level
from upright.evidence.units import Block, Units
from upright.evidence.verdict import audit_verdict
from upright.maths.simultaneous import Comparisons, compare_aucs, compare_groups

Array = NDArray[Any]
Rng = np.random.Generator
Trial = Callable[[Rng], bool]
FAST, SLOW, DRAWS, MOVES = 40, 400, 400, 499
ARMS = (Arm("none", "baseline"), Arm("mine", "remedy"), Arm("easy", "trivial"), Arm("sham", "placebo"))
fast_and_slow = pytest.mark.parametrize("trials", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])


def count(name: str, trial: Trial, trials: int, first: int = 0) -> int:
    """Return in how many streams something holds, and print it."""
    found = sum(bool(trial(np.random.default_rng(k))) for k in range(first, first + trials))
    print(f"{name}: {found} of {trials}, streams from {first}")
    return found


def measure(
    rng: Rng, statistics: Sequence[str], values: Mapping[str, Array], group: Any = (), cluster: Any = (), **more: Any
) -> dict[str, Any]:
    """Return the evidence of metrics of shape (arms, seeds, units), whose margins are 0."""
    arms, seeds, n = next(iter(values.values())).shape
    unit, by = [f"{u:05d}" for u in range(n)], {"g": group} if len(group) else {}
    units = Units(
        Block("run", ARMS[a].name, s, UnitScores("row", unit, {m: x[a, s] for m, x in values.items()}, by, {}, cluster))
        for a, s in itertools.product(range(arms), range(seeds))
    )
    metrics, seed = {m: Metric(m, margin=0.0) for m in values}, int(rng.integers(1 << 31))
    return evidence(units, arms=ARMS, statistics=statistics, metrics=metrics, draws=DRAWS, seed=seed, **more)


def compare(rng: Rng, x: Array, label: Array, cluster: Array | None = None) -> Comparisons:
    """Compare groups in metrics (U,) or (U, M) at one seed."""
    alone, groups = np.arange(len(label)), int(label.max()) + 1
    x = x.reshape(1, len(label), -1).astype(float)
    return compare_groups(x, label[None], alone if cluster is None else cluster, groups, rng=rng, draws=MOVES)


def pairs_of(found: Comparisons) -> list[Level]:
    """Return what an audit reads, the headline first; groups are named by their number."""
    named = {"groups": list("01234567"), "metrics": [Metric(f"m{m}") for m in range(4)], "grouping": "g"}
    return pair_levels(found, arm="yours", sizes=defaultdict(int), **named)


def gap_shown(found: Comparisons) -> bool:
    """Return whether an audit of groups says anything but none shown."""
    small = [(str(g), least) for g, least in found.small_groups().items()]
    return audit_verdict("gap shown", pairs_of(found), too_small=small).word != "none shown"


def leak_shown(rng: Rng, scores: Array, label: Array, cluster: Array) -> bool:
    """Return whether an audit of attacks with scores (U, K) says anything but none shown."""
    found = compare_aucs(scores[None], label[None], np.ones(scores.shape[1], dtype=int), cluster, rng=rng, draws=MOVES)
    rows = zip(found.value, found.low, found.high, found.p, strict=True)
    levels = [Level(statistic="auc", arm="yours", value=v, low=low, high=high, p=p) for v, low, high, p in rows]
    return audit_verdict("leak shown", levels).word != "none shown"


def clusters(rng: Rng, n: int, spread: float) -> Array:
    """Return the clusters of units, 40 in each without spread; shape (U,)."""
    return np.repeat(np.arange(n), np.ceil(40 * rng.lognormal(0, spread, n)).astype(int))


def in_clusters(rng: Rng, n: int, alone: float, effect: float) -> tuple[Array, Array, Array]:
    """Return values of 0 and 1 (U,), labels of two groups, whose rates differ by `effect`, and clusters.

    A share `alone` of the clusters holds one label; in the others labels vary, and the effect varies between clusters.
    """
    cluster = clusters(rng, n, spread=1.0)
    label = np.where((rng.random(n) < alone)[cluster], (np.arange(n) % 2)[cluster], rng.integers(0, 2, len(cluster)))
    own = effect + rng.choice([-0.1, 0.1], n)
    rate = 0.1 + 0.5 * rng.beta(0.6, 0.6, n)[cluster] + np.where(label == 0, own[cluster], 0.0)
    return (rng.random(len(cluster)) < rate).astype(float), label, cluster


# -- coverage ---------------------------------------------------------------------------------------------------------


def covers(row: Mapping[str, Any], truth: float) -> bool:
    return bool(row["low"] <= truth <= row["high"])


def mean(rng: Rng, seeds: int, of_unit: float, of_seed: float, noise: float) -> bool:
    """A mean of 200 skewed units, from the deviations of its parts."""
    x = of_unit * rng.gamma(2.0, 2**-0.5, 200) + rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, noise, (seeds, 200))
    return covers(measure(rng, ["mean:x"], {"x": x[None]})["levels"][0], of_unit * 2**0.5)


def mean_of_clusters(rng: Rng, n: int, spread: float) -> bool:
    cluster = clusters(rng, n, spread)
    x = (rng.random(len(cluster)) < rng.beta(0.6, 0.6, n)[cluster]).astype(float)
    return covers(measure(rng, ["mean:x"], {"x": x[None, None]}, cluster=cluster.astype(str))["levels"][0], 0.5)


def gap(rng: Rng, sizes: tuple[int, int], rates: bool = False, seeds: int = 1, of_seed: float = 0.0) -> bool:
    """A gap of rates, or of means of which that of the smaller group varies more."""
    first = np.repeat([True, False], sizes)
    if rates:
        x, truth = (rng.random((seeds, sum(sizes))) < np.where(first, 0.4, 0.2)).astype(float), 0.2
    else:
        x, truth = rng.normal(first, np.where(first, 2.0, 1.0)) + rng.normal(0, 0.5, (seeds, sum(sizes))), 1.0
    x = x + rng.normal(0, of_seed, (seeds, 1)) * first
    return covers(measure(rng, ["gap:x:g"], {"x": x[None]}, np.where(first, "a", "b"))["levels"][0], truth)


def gap_of_clusters(rng: Rng, alone: float) -> bool:
    x, label, cluster = in_clusters(rng, 80, alone, effect=0.2)
    found = measure(rng, ["gap:x:g"], {"x": x[None, None]}, label.astype(str), cluster.astype(str))
    return covers(found["levels"][0], 0.2)


def change_of_gap(rng: Rng) -> bool:
    """A remedy that halves a gap, at six seeds that differ."""
    first = np.arange(200) < 100
    unit = rng.normal(first, 1.0)
    x = np.stack([unit, unit - 0.5 * first + rng.normal(0, 0.5, 200)])[:, None]
    x = x + rng.normal(0, 0.1, (2, 6, 1)) * first + rng.normal(0, 0.5, (2, 6, 200))
    return covers(measure(rng, ["abs_gap:x:g"], {"x": x}, np.where(first, "a", "b"))["differences"][0], -0.5)


def largest(rng: Rng, truth: Sequence[float], rates: bool) -> bool:
    label = np.repeat(np.arange(4), (150, 150, 100, 60))  # the headline is picked from their six gaps
    level = np.array(truth)[label]
    top = pairs_of(compare(rng, rng.random(len(label)) < level if rates else rng.normal(level), label))[0]
    first, second = (truth[int(g)] for g in str(top.group).split(" minus "))
    return top.low <= first - second <= top.high


COVERAGE: Mapping[str, tuple[Trial, int]] = {  # and the most of 400 that may be covered
    "mean, no seed effects": (partial(mean, seeds=1, of_unit=1, of_seed=0, noise=0), 400),
    "mean, six seeds, no effects": (partial(mean, seeds=6, of_unit=1, of_seed=0, noise=0.3), 400),
    "mean, six seeds that hold 90 %": (partial(mean, seeds=6, of_unit=1, of_seed=0.52, noise=0), 400),
    "mean, noise of a unit at a seed": (partial(mean, seeds=6, of_unit=0, of_seed=0, noise=1), 396),
    "mean, two seeds": (partial(mean, seeds=2, of_unit=0, of_seed=1, noise=0), 400),
    "mean of 100 clusters of 40": (partial(mean_of_clusters, n=100, spread=0), 392),
    "mean of 30 clusters of lognormal size": (partial(mean_of_clusters, n=30, spread=1), 392),
    "gap of means, 100 and 150 units": (partial(gap, sizes=(100, 150)), 392),
    "gap of rates, 100 and 150 units": (partial(gap, sizes=(100, 150), rates=True), 392),
    "gap of means, 20 and 200 units": (partial(gap, sizes=(20, 200)), 400),
    "gap of rates, 20 and 200 units": (partial(gap, sizes=(20, 200), rates=True), 400),
    "gap, six seeds with effects": (partial(gap, sizes=(100, 150), seeds=6, of_seed=0.5), 392),
    # no upper bound: the error under the null, which holds the gap itself, is the larger one (98.5 % of 2,000)
    "gap, labels vary inside clusters": (partial(gap_of_clusters, alone=0.3), 400),
    "gap, labels belong to clusters": (partial(gap_of_clusters, alone=1.0), 392),
    "change of a gap, six seeds": (change_of_gap, 392),
    "largest of six equal gaps of means": (partial(largest, truth=(0, 0, 0, 0), rates=False), 400),
    "largest of six equal gaps of rates": (partial(largest, truth=(0.3, 0.3, 0.3, 0.3), rates=True), 400),
    "largest of four equal gaps of means": (partial(largest, truth=(0, 0, 0.5, 0.5), rates=False), 400),
    "largest of four equal gaps of rates": (partial(largest, truth=(0.2, 0.2, 0.4, 0.4), rates=True), 400),
}


@fast_and_slow
@pytest.mark.parametrize("name", COVERAGE)
def test_intervals_cover_the_truth(name: str, trials: int) -> None:
    trial, most = COVERAGE[name]
    found = count(name, trial, trials)
    assert found >= {FAST: 33, SLOW: 368}[trials]
    assert trials == FAST or found <= most


# -- words on tables of chance ----------------------------------------------------------------------------------------


def predictions(rng: Rng, sizes: Sequence[int]) -> bool:
    decided, true = rng.random(sum(sizes)) < 0.3, rng.random(sum(sizes)) < 0.4
    rates = np.stack([np.where(true, decided, np.nan), np.where(true, np.nan, decided)], axis=-1)  # TPR, FPR
    return gap_shown(compare(rng, rates, np.repeat(np.arange(len(sizes)), sizes)))


def ranking(rng: Rng, sizes: Sequence[int]) -> bool:
    rank = np.ceil(np.exp(rng.exponential(2.0, sum(sizes))))  # of a user, from which all four metrics come
    metrics = [rank <= 10, rank <= 50, (rank <= 10) / np.log2(rank + 1), 1 / rank]
    return gap_shown(compare(rng, np.stack(metrics, axis=-1), np.repeat(np.arange(len(sizes)), sizes)))


def unequal_spread(rng: Rng) -> bool:
    label = np.repeat([0, 1, 2], (20, 200, 200))  # p alone names two of five such tables
    return gap_shown(compare(rng, rng.normal(0, np.where(label == 0, 4.0, 1.0)), label))


def membership(rng: Rng, records: int) -> bool:
    """Three scores of 100 forgotten and 100 held-out records, so many of a work."""
    work = np.arange(200) // records
    scores = (rng.normal(0, 1, 200)[work] + rng.normal(0, 1, 200))[:, None] + rng.normal(0, 0.5, (200, 3))
    return leak_shown(rng, scores, work % 2, work)


def groups_in_clusters(rng: Rng, alone: float) -> bool:
    return gap_shown(compare(rng, *in_clusters(rng, 60, alone, effect=0.0)))


CHANCE: Mapping[str, Trial] = {
    "predictions, two groups": partial(predictions, sizes=(600, 300)),
    "predictions, three groups": partial(predictions, sizes=(400, 400, 20)),
    "predictions, eight groups": partial(predictions, sizes=(300, 200, 150, 100, 80, 50, 30, 12)),
    "ranking, 400 and 400 users": partial(ranking, sizes=(400, 400)),
    "ranking, 400, 400 and 6 users": partial(ranking, sizes=(400, 400, 6)),
    "ranking, four groups": partial(ranking, sizes=(400, 200, 100, 100)),
    "groups of unequal spread": unequal_spread,
    "membership": partial(membership, records=1),
    "membership, five records a work": partial(membership, records=5),
    "labels belong to clusters": partial(groups_in_clusters, alone=1.0),
    "labels vary inside clusters": partial(groups_in_clusters, alone=0.0),
    "labels vary inside some clusters": partial(groups_in_clusters, alone=0.3),
}


@fast_and_slow
@pytest.mark.parametrize("name", CHANCE)
def test_chance_is_seldom_called_shown(name: str, trials: int) -> None:
    found = count(name, CHANCE[name], trials)
    if found > {FAST: 6, SLOW: 28}[trials]:  # 400 streams may be followed once by 400 others
        assert trials == SLOW
        assert found + count(name, CHANCE[name], trials, first=SLOW) <= 50


# -- remedies without effect ------------------------------------------------------------------------------------------


def judge_no_effect(rng: Rng, primary: str, seeds: int) -> dict[str, Any]:
    """Return the verdict of a remedy without effect, whose controls do harm, so that it beats them."""
    first, of_gap = np.arange(200) < 100, primary.startswith("abs_gap")
    # units move by 0.05 between arms, and an arm between seeds by as much as the standard error of that
    side, error = (first, 0.1 / 200**0.5) if of_gap else (np.ones(200), 0.05 / 200**0.5)
    harm = np.array([0, 0, 6, 6])[:, None, None] * (error if of_gap else -error)
    unit = 0.5 + 0.2 * first + rng.normal(0, 0.2, (2, 1, 1, 200)) + rng.normal(0, 0.05, (2, 4, 1, 200))
    y, x = unit + rng.normal(0, error, (2, 4, seeds, 1)) * side
    texts = dict.fromkeys([primary, "mean:x:g", "mean:y"])
    group, about = np.where(first, "a", "b"), {"primary": primary, "cost": "mean:y"}
    return dict(measure(rng, list(texts), {"x": x + harm * side, "y": y}, group, **about)["verdict"])


@fast_and_slow
@pytest.mark.parametrize("seeds", [1, 6])
@pytest.mark.parametrize("primary", ["abs_gap:x:g", "mean:x"])
def test_no_effect_is_seldom_praised_or_blamed(primary: str, seeds: int, trials: int) -> None:
    said = [judge_no_effect(np.random.default_rng(k), primary, seeds) for k in range(trials)]
    words = Counter("incomplete" if one["incomplete"] else one["word"] for one in said)
    print(f"{primary}, {seeds} seeds: {dict(words)}")
    for word in ("works", "works, at a price", "levels down", "backfires"):
        assert words[word] <= {FAST: 4, SLOW: 18}[trials]
    assert words["incomplete"] == (trials if seeds == 1 else 0)


# -- power ------------------------------------------------------------------------------------------------------------


def third_group(rng: Rng) -> bool:
    """40 % of 2,000 men, 32 % of 2,000 women, 25 others: is the gap between men and women named?"""
    label = np.repeat([0, 1, 2], (2_000, 2_000, 25))
    pairs = pairs_of(compare(rng, rng.random(4_025) < np.array([0.4, 0.32, 0.36])[label], label))
    return any(row.shown and row.group == "0 minus 1" for row in pairs)


def auc_of_65(rng: Rng) -> bool:
    label = np.repeat([1, 0], 100)  # Phi(0.545 / sqrt 2) = 0.65
    return leak_shown(rng, rng.normal(0.545 * label)[:, None], label, np.arange(200))


def five_units(rng: Rng) -> bool:
    label = np.repeat([1, 0], (5, 55))
    return gap_shown(compare(rng, rng.normal(1.5 * label), label))


POWER: Mapping[str, tuple[Trial, dict[int, int]]] = {  # with the fewest, of 40 three deviations below those of 400
    "40 % of men, 32 % of women, 25 others": (third_group, {FAST: 34, SLOW: 380}),
    "AUC of 0.65 in 100 and 100 records": (auc_of_65, {FAST: 24, SLOW: 320}),
    "1.5 deviations between 5 and 55 units": (five_units, {FAST: 15, SLOW: 240}),
}


@fast_and_slow
@pytest.mark.parametrize("name", POWER)
def test_what_is_there_is_shown(name: str, trials: int) -> None:
    trial, least = POWER[name]
    assert count(name, trial, trials) >= least[trials]
