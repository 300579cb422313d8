"""Weighted statistics against repeated rows and slow definitions, and percentiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.maths import intervals

SLOW = {
    "mean": np.mean,
    "worst_decile": lambda v: np.sort(np.repeat(v, 10))[: len(v)].mean(),  # every value in ten equal pieces
    "gini": lambda v: np.abs(np.subtract.outer(v, v)).mean() / (2 * v.mean()) if v.any() else 0.0,
}
ROWS = st.lists(st.tuples(st.floats(0.0, 5.0).map(lambda x: round(x, 3)), st.integers(0, 4)), min_size=1, max_size=20)


@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms())
def test_integer_weights_are_repeated_rows_in_any_order(name, rows, random):
    # catches a wrong definition, and a weight that enters once where it should enter twice, as in a bootstrap draw
    v, w = np.array(rows, dtype=float).T
    repeated = np.repeat(v, w.astype(int))
    expected = pytest.approx(SLOW[name](repeated) if len(repeated) else np.nan, abs=1e-9, nan_ok=True)
    assert getattr(intervals, name)(v, w) == expected
    random.shuffle(rows)
    v, w = np.array(rows, dtype=float).T
    assert getattr(intervals, name)(v, 7.0 * w) == expected


@pytest.mark.parametrize("name", SLOW)
def test_undefined_units_are_left_out_and_draws_do_not_touch_each_other(name):
    # catches NaN counted as 0, its weight left in the sum, and rows of weights that influence each other
    statistic, rng = getattr(intervals, name), np.random.default_rng(0)
    v, w = rng.random(30), rng.integers(0, 4, size=(7, 30)).astype(float)
    v[3] = np.nan
    ok = ~np.isnan(v)
    np.testing.assert_allclose(statistic(v, w), [statistic(v[ok], one[ok]) for one in w], atol=1e-13)
    assert np.isnan(statistic(np.array([np.nan]), np.ones(1)))


def test_percentiles_ignore_undefined_draws_and_take_both_tails():
    samples = np.r_[np.arange(101.0), np.full(50, np.nan)]
    assert intervals.percentile(samples, 0.9) == pytest.approx((5.0, 95.0))
    assert np.isnan(intervals.percentile(np.full(3, np.nan), 0.9)).all()
