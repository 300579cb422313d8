"""Rank correlations of the unit table."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.shell.correlations import weighted_rank_correlation
from upright.shell.evidence import evidence
from upright.shell.statistics import parse
from upright.shell.units import Block, Units


def _units(pairs, **more):
    blocks = []
    for seed, (x, y) in enumerate(pairs):
        unit = [f"{seed}/{i}" for i in range(len(x))]
        blocks.append(Block("r", "yours", seed, UnitScores("record", unit, {"x": x, "y": y}, more.get("by", {}))))
    return Units(blocks)


def _level(units, statistic="rank_correlation:x~y", draws=400):
    metrics = {"x": Metric("x", title="Score"), "y": Metric("y", title="Effort")}
    found = evidence(units, arms=[Arm("yours", "baseline")], statistics=[statistic], metrics=metrics, draws=draws)
    return found["levels"]


def test_weights_count_as_repetitions():
    # weights that are left out of the ranks, or of the ties, change the draws and leave the value
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    found = weighted_rank_correlation(x, y, np.vstack([np.ones(40), weights]))
    assert found[0] == pytest.approx(spearmanr(x, y).statistic)
    for w, rho in zip(weights.astype(int), found[1:], strict=True):
        assert rho == pytest.approx(spearmanr(np.repeat(x, w), np.repeat(y, w)).statistic)


def test_constant_values_have_no_correlation():
    assert np.isnan(weighted_rank_correlation(np.ones(4), np.arange(4.0), np.ones((1, 4))))[0]


def test_partial_correlation_takes_out_what_a_third_value_explains():
    # x and y that go together through z alone must come out near 0, and what is left must come out
    rng = np.random.default_rng(3)
    z = rng.normal(size=400)
    x, y = z + 0.3 * rng.normal(size=400), z + 0.3 * rng.normal(size=400)
    one = np.ones((1, 400))
    assert weighted_rank_correlation(x, y, one)[0] > 0.8
    assert abs(weighted_rank_correlation(x, y, one, z)[0]) < 0.15
    left = weighted_rank_correlation(x, x - z, one, z)[0]
    ranks = [np.argsort(np.argsort(v)).astype(float) for v in (x, x - z, z)]
    line = np.column_stack([np.ones(400), ranks[2]])
    rest = [r - line @ np.linalg.lstsq(line, r, rcond=None)[0] for r in ranks[:2]]
    assert left == pytest.approx(np.corrcoef(*rest)[0, 1])
    assert np.isnan(weighted_rank_correlation(z, y, one, z))[0]


def test_partial_draws_weigh_like_repetitions():
    rng = np.random.default_rng(4)
    x, y, z = rng.normal(size=(3, 30))
    w = rng.integers(0, 4, 30)
    found = weighted_rank_correlation(x, y, w[None].astype(float), z)[0]
    again = weighted_rank_correlation(*(np.repeat(v, w) for v in (x, y)), np.ones((1, w.sum())), np.repeat(z, w))[0]
    assert found == pytest.approx(again)


def test_value_is_the_mean_over_seeds_and_not_of_pooled_units():
    # seeds on different levels would make a correlation of their own when pooled
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=30) + 10 * s, rng.normal(size=30) + 10 * s) for s in range(4)]
    level = _level(_units(pairs))[0]
    assert level["value"] == pytest.approx(np.mean([spearmanr(x, y).statistic for x, y in pairs]))
    assert level["low"] < level["value"] < level["high"]
    assert level["label"] == "Rank correlation: Score with Effort"
    assert level["n_units"] == 120


def test_null_holds_what_chance_shows_and_a_real_correlation_lies_outside():
    rng = np.random.default_rng(2)
    noise = [(rng.normal(size=50), rng.normal(size=50)) for _ in range(4)]
    real = [(x, x + 0.5 * rng.normal(size=50)) for x, _ in noise]
    chance, found = _level(_units(noise))[0], _level(_units(real))[0]
    for level in (chance, found):
        assert -0.25 < level["null"]["low"] < 0 < level["null"]["high"] < 0.25
    assert chance["null"]["low"] < chance["value"] < chance["null"]["high"]
    assert found["low"] > found["null"]["high"]


def test_units_without_both_values_are_left_out_and_counted():
    x, y = np.arange(10.0), np.arange(10.0)
    y[:4] = np.nan
    level = _level(_units([(x, y)]))[0]
    assert (level["value"], level["n_units"], level["n_undefined"]) == (pytest.approx(1.0), 6, 4)


def test_a_grouping_gives_a_cell_a_group():
    x = np.arange(12.0)
    y = np.r_[x[:6], -x[6:]]
    levels = _level(_units([(x, y)], by={"half": ["a"] * 6 + ["b"] * 6}), "rank_correlation:x~y:half")
    assert [(one["group"], round(one["value"], 6)) for one in levels] == [("a", 1.0), ("b", -1.0)]


def test_a_metric_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="x~z"):
        parse("rank_correlation:x~z", _units([(np.arange(3.0), np.arange(3.0))]))
