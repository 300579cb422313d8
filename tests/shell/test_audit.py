"""What audits share: groups, gaps among them, resampling, bins of items."""

from __future__ import annotations

import numpy as np

from upright.shell.audit import gaps_among, suppress_small, user_draws
from upright.shell.audit_lists import popularity_bins


def test_bins_by_count():
    """Catches wrong borders, and equal counts torn apart."""
    bins = popularity_bins(np.arange(10.0, 0, -1))
    assert bins == ["head"] * 2 + ["mid"] * 3 + ["tail"] * 5
    tied = popularity_bins(np.array([9.0, 9, 5, 5, 5, 1, 1, 1, 1, 1]))
    assert tied == ["head"] * 2 + ["mid"] * 3 + ["tail"] * 5
    assert set(popularity_bins(np.ones(10))) == {"tail"}


def test_no_gap_is_not_found():
    """Catches intervals that are too narrow: random groups show a gap in about 5 % of cases."""
    rng = np.random.default_rng(1)
    found = 0
    for trial in range(100):
        v = rng.random(80)
        (row,) = gaps_among(v, ["a", "b"] * 40, draws=200, seed=trial)["rows"]
        found += not row["low"] <= 0 <= row["high"]
    assert found <= 15


def test_suppression_keeps_five():
    """Catches a border off by one."""
    labels = ["a"] * 5 + ["b"] * 4
    assert suppress_small(labels, np.ones(9, dtype=bool)) == (["a"] * 5 + [""] * 4, ["b"])


def test_draws_do_not_depend_on_chunks(monkeypatch):
    """Catches an interval that changes with the amount of memory; only the stream's order matters."""
    columns = np.random.default_rng(0).random((50, 2))
    whole = user_draws(columns, 40, 0, "t")
    monkeypatch.setattr("upright.shell.audit._CHUNK_ELEMENTS", 50 * 7)
    np.testing.assert_allclose(user_draws(columns, 40, 0, "t"), whole)
    np.testing.assert_allclose(whole[0], columns.sum(axis=0))
