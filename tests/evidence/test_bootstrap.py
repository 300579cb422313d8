"""The one bootstrap: which draws units, clusters, seeds and arms meet."""

from __future__ import annotations

import numpy as np
import pytest

from upright.contract import UnitScores
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.statistics import parse
from upright.evidence.units import Block, Units
from upright.maths.simultaneous import BUCKETS


def table(values, cluster=(), by=None) -> Units:
    """Arms with values (seeds, units)."""
    unit, blocks = [f"{i:05}" for i in range(next(iter(values.values())).shape[1])], []
    for arm, seeds in values.items():
        for seed, v in enumerate(seeds):
            blocks.append(Block("r", arm, seed, UnitScores("user", unit, {"m": v}, by or {}, cluster=cluster)))
    return Units(blocks)


def test_clusters_are_drawn_whole_and_the_first_row_is_the_data():
    # catches: units of a cluster that are drawn apart, or at each seed anew; seeds and clusters drawn by one number
    cluster = np.repeat(np.arange(30), 2).astype(str)
    boot = Bootstrap(table({"a": np.zeros((4, 60))}, cluster), 3_000)
    drawn = boot.sums(np.eye(60)[:, None])[:, :, 0].T  # sums of columns that are 1 for one unit alone
    assert (drawn[0] == 1).all()
    assert (drawn[:, ::2] == drawn[:, 1::2]).all()
    assert (drawn.sum(1) == 60).all()
    assert drawn[1:].var() == pytest.approx(1 - 1 / 30, abs=0.02)  # of a multiplicity
    assert np.abs(drawn[1:].mean(0) - 1).max() < 5 / np.sqrt(3_000)
    assert (boot.seed_weight.sum(1) == 4).all()
    assert boot.seed_weight.var() == pytest.approx(1 - 1 / 4, abs=0.03)
    assert abs(np.corrcoef(boot.seed_weight[:, 0], drawn[1:, 0])[0, 1]) < 5 / np.sqrt(3_000)
    assert boot.per_seed(lambda v, w: w[:, 7], np.zeros((1, 60)))[0, :, 0].tolist() == drawn[:, 7].tolist()


@pytest.mark.parametrize("n", [50, 6_000])
@pytest.mark.parametrize("text", ["mean:m", "worst_decile:m"])
def test_arms_meet_the_same_draws(text, n):
    # catches: arms that meet other draws; then equal arms differ, and a shift has an error
    v = np.random.default_rng(0).random((2, n))
    units = table({"a": v, "b": v.copy(), "c": v + 0.5})
    one, again, other = (parse(text, Bootstrap(units, 100, seed), {}) for seed in (0, 0, 1))
    same, shifted = (one.draws("a", None) - one.draws(arm, None) for arm in "bc")
    assert (same.value, *same.interval()) == (0.0, 0.0, 0.0)
    assert [shifted.value, *shifted.interval()] == pytest.approx([-0.5] * 3, abs=1e-9)
    assert one.draws("a", None).interval() == again.draws("a", None).interval()
    assert one.draws("a", None).interval() != other.draws("a", None).interval()


@pytest.mark.parametrize("text", ["mean:m", "gap:m:g", "gini:m", "worst_decile:m"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_copies_inside_clusters_leave_intervals_as_they_are(seeds, text):
    # catches: clusters counted by their units, units that are drawn beside their cluster
    v, group = np.random.default_rng(0).integers(0, 64, (seeds, 40)).astype(float), ["x", "y"] * 20
    once, names = table({"a": v}, (), {"g": group}), np.repeat([f"{i:05}" for i in range(40)], 2)
    twice = table({"a": np.repeat(v, 2, 1)}, names, {"g": np.repeat(group, 2).tolist()})
    one, two = (parse(text, Bootstrap(units, 300), {}).draws("a", None) for units in (once, twice))
    exact = text in ("mean:m", "gap:m:g")  # sums of whole numbers: the same to the last digit
    assert one.interval() == (two.interval() if exact else pytest.approx(two.interval(), rel=1e-12))


@pytest.mark.parametrize(("text", "tables"), [("mean:m", 20), ("worst_decile:m", 1)])
def test_many_units_keep_the_standard_error(text, tables):
    # catches: units of a bucket that differ from seed to seed, a bucket that counts as one, weights of buckets given to
    # units; by the influence function the mean of the lowest tenth has variance (1/12 + 0.9 / 4) / 10 / n
    n, errors = 6_000, []
    for seed in range(tables):
        v = np.repeat(np.random.default_rng(seed).random((1, n)), 3, 0)
        boot = Bootstrap(table({"a": v}), 500)
        drawn = parse(text, boot, {}).draws("a", None)
        errors.append(drawn.plain().std())
        assert drawn.value == pytest.approx(np.sort(v[0])[: n if text == "mean:m" else n // 10].mean())
    expected = np.sqrt((1 / 12 if text == "mean:m" else (1 / 12 + 0.9 / 4) / 10) / n)
    # each has a relative error of sqrt(1 / 1,000) from draws and sqrt(1 / 4,000) from buckets; the mean of 20: 4 %
    assert np.mean(errors) / expected == pytest.approx(1.0, abs=5 * np.sqrt((1 / 1_000 + 1 / 4_000) / tables))
    size = np.bincount(boot.bucket)
    assert (len(size), size.min(), size.max()) == (BUCKETS, 3, 3)
    assert abs(np.corrcoef(boot.bucket, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
