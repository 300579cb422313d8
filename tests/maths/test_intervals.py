"""Weighted statistics against repeated rows and slow definitions; the bootstrap and the null gap in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.maths import intervals

VALUES = st.lists(st.floats(0.0, 5.0).map(lambda x: round(x, 3)), min_size=1, max_size=30)


def slow_worst_decile(values):
    """Mean of the lowest tenth, found by cutting every value into ten equal pieces."""
    pieces = np.sort(np.repeat(values, 10))
    return pieces[: len(values)].mean()


def slow_gini(values):
    """Mean absolute difference over all ordered pairs, by twice the mean."""
    mean = np.mean(values)
    return np.abs(np.subtract.outer(values, values)).mean() / (2 * mean) if mean > 0 else 0.0


SLOW = {"mean": np.mean, "worst_decile": slow_worst_decile, "gini": slow_gini}


@pytest.mark.parametrize("name", intervals.STATISTICS)
@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_statistics_equal_their_slow_definitions(name, values):
    v = np.array(values)
    assert intervals.STATISTICS[name](v, np.ones(len(v))) == pytest.approx(SLOW[name](v), abs=1e-12)


@pytest.mark.parametrize("name", intervals.STATISTICS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 4)), min_size=1, max_size=20), st.randoms())
def test_integer_weights_are_repeated_rows_in_any_order(name, rows, random):
    # catches a weight that enters once where it should enter twice; a bootstrap draw is such a weight
    statistic = intervals.STATISTICS[name]
    v, w = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    if w.sum() == 0:
        assert np.isnan(statistic(v, w))
        return
    repeated = np.repeat(v, w.astype(int))
    assert statistic(v, w) == pytest.approx(statistic(repeated, np.ones(len(repeated))), abs=1e-9)
    random.shuffle(rows)
    shuffled = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    assert statistic(*shuffled) == pytest.approx(statistic(v, w), abs=1e-9)
    assert statistic(v, 7.0 * w) == pytest.approx(statistic(v, w), abs=1e-9)


@pytest.mark.parametrize("name", intervals.STATISTICS)
def test_undefined_units_are_left_out_with_their_weight(name):
    statistic, v = intervals.STATISTICS[name], np.array([1.0, np.nan, 3.0, 7.0])
    assert statistic(v, np.array([1.0, 9.0, 2.0, 1.0])) == statistic(v[[0, 2, 3]], np.array([1.0, 2.0, 1.0]))
    assert np.isnan(statistic(np.array([np.nan]), np.ones(1)))


def test_known_values():
    assert intervals.gini(np.array([0.0, 0.0, 0.0, 1.0]), np.ones(4)) == pytest.approx(0.75)
    assert intervals.gini(np.ones(5), np.ones(5)) == pytest.approx(0.0, abs=1e-15)
    assert intervals.gini(np.zeros(5), np.ones(5)) == 0.0
    # 15 units: the lowest 1.5 units are 0 and half of the unit worth 1
    assert intervals.worst_decile(np.arange(15.0), np.ones(15)) == pytest.approx(0.5 / 1.5)


def test_draws_keep_the_number_of_seeds_and_units_and_are_multinomial():
    seeds, units = intervals.draw_weights(6, 50, 4000, np.random.default_rng(0))
    assert (seeds.sum(1) == 6).all()
    assert (units.sum(1) == 50).all()
    # a multiplicity has mean 1 and variance 1 - 1/n; 5 standard errors of 200,000 counts
    assert units.mean() == 1.0
    assert units.var() == pytest.approx(1 - 1 / 50, abs=0.02)


def test_bootstrap_interval_covers_a_mean():
    # 400 worlds of 80 skewed units: the percentile interval covers a little less than 95 % (about 93.5 % here). The
    # bounds are 4 standard errors of a share around it, so a correct bootstrap fails once in 10,000 seeds.
    rng = np.random.default_rng(1)
    worlds, units, covered = 400, 80, 0
    for _ in range(worlds):
        values = rng.exponential(size=units)
        _, weights = intervals.draw_weights(1, units, 400, rng)
        low, high = intervals.percentile(weights @ values / units, 0.95)
        covered += low <= 1.0 <= high
    assert 0.885 <= covered / worlds <= 0.985


def test_percentile_ignores_undefined_draws_and_takes_both_tails():
    samples = np.r_[np.arange(101.0), np.full(50, np.nan)]
    assert intervals.percentile(samples, 0.9) == pytest.approx((5.0, 95.0))
    assert np.isnan(intervals.percentile(np.full(3, np.nan), 0.9)).all()


def test_expected_gap_of_random_groups_is_four_fifths_of_its_standard_error():
    # sqrt(2 / pi) = 0.798 for a normal gap; 4,000 draws give that share to within 4 x 0.0095
    rng = np.random.default_rng(2)
    values, first = rng.normal(size=900), np.arange(900) < 45
    gaps = intervals.null_gap(values, first, 4000, rng)
    error = values.std(ddof=1) * np.sqrt(1 / 45 + 1 / 855)
    assert np.abs(gaps).mean() / error == pytest.approx(0.798, abs=0.038)
    assert gaps.mean() == pytest.approx(0.0, abs=4 * error / np.sqrt(4000))
    assert gaps.std() == pytest.approx(error, rel=0.05)


def test_null_gap_keeps_group_sizes_and_undefined_units_out():
    values = np.array([1.0, np.nan, 1.0, 4.0, np.nan])
    gaps = intervals.null_gap(values, np.array([True, True, False, False, False]), 300, np.random.default_rng(0))
    # one defined unit in the first group: 1 - (1 + 4) / 2 or 4 - 1
    assert set(gaps.tolist()) == {-1.5, 3.0}
    assert np.isnan(intervals.null_gap(values, np.ones(5, dtype=bool), 4, np.random.default_rng(0))).all()


def test_holm_on_a_hand_example():
    # sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1: 0.04, 0.06, 0.06, then 0.04 is lifted to 0.06
    np.testing.assert_allclose(intervals.holm(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(intervals.holm(np.array([0.5, 0.9])), [1.0, 1.0])
    assert intervals.holm(np.array([])).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), min_size=2, max_size=25))
def test_auc_equals_all_pairs_and_scikit_learn(rows):
    # catches ties that count for one side, weights that enter once, and a mirrored direction
    v, w, first = (
        np.array([r[0] for r in rows], float),
        np.array([float(r[1]) for r in rows]),
        np.array([r[2] for r in rows]),
    )
    found = intervals.auc(v, w, first)
    pairs = [(v[i], v[j], w[i] * w[j]) for i in np.flatnonzero(first) for j in np.flatnonzero(~first)]
    total = sum(p[2] for p in pairs)
    if not total:
        assert np.isnan(found)
        return
    slow = sum(p * ((a > b) + 0.5 * (a == b)) for a, b, p in pairs) / total
    assert found == pytest.approx(slow, abs=1e-12)
    from sklearn.metrics import roc_auc_score

    assert found == pytest.approx(roc_auc_score(first, v, sample_weight=w), abs=1e-9)


@pytest.mark.parametrize("name", intervals.STATISTICS)
def test_many_draws_at_once_equal_one_at_a_time(name):
    # catches a statistic whose rows of weights influence each other
    rng = np.random.default_rng(0)
    v, w = rng.random(30), rng.integers(0, 4, size=(7, 30)).astype(float)
    v[3] = np.nan
    together = intervals.STATISTICS[name](v, w)
    np.testing.assert_allclose(together, [intervals.STATISTICS[name](v, one) for one in w], atol=1e-13)
    first = rng.random(30) < 0.4
    np.testing.assert_allclose(intervals.auc(v, w, first), [intervals.auc(v, one, first) for one in w], atol=1e-13)


def test_multiplicities_are_those_of_drawing_with_replacement():
    # catches rows that do not sum to the number of units, and unequal chances: mean 1, variance 1 - 1/n
    seeds, units = intervals.draw_weights(6, 50, 4000, np.random.default_rng(0))
    assert (seeds.sum(1) == 6).all()
    assert (units.sum(1) == 50).all()
    assert np.abs(units.mean(0) - 1).max() < 5 / np.sqrt(4000)
    assert units.var() == pytest.approx(1 - 1 / 50, abs=0.02)
