"""Two-level resampling: its parts, how they are stretched, and differences draw by draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from upright.contract import InputError
from upright.maths.resampling import Draws, average, jackknife, mean_of_ratios, ratio_of_sums, two_level
from upright.maths.simultaneous import kish_count, stretch


@pytest.mark.parametrize(("n", "factor"), [(1, 1.0), (2, 9.16817), (6, 1.43673), (30, 1.06134), (1e9, 1.0)])
def test_stretch_is_that_of_tables_of_t(n, factor):
    # sqrt(n / (n - 1)) t / 1.95996 with t(1) = 12.7062, t(5) = 2.57058, t(29) = 2.04523
    assert stretch(np.array([n, n])).tolist() == [stretch(n)] * 2 == [pytest.approx(factor, abs=1e-5)] * 2


def test_sums_and_counts_leave_out_what_is_undefined():
    # catches: a seed without a value that counts as 0, a ratio of means where a mean of ratios is asked
    pieces, a = np.array([[[1.0, 2.0, 0.0]], [[2.0, 8.0, 0.0]]]), np.array([[1.0, 2.0, 3.0]])
    assert ratio_of_sums(pieces, a) == pytest.approx([5 / 18])
    assert mean_of_ratios(pieces, a) == pytest.approx([(0.5 + 2 * 0.25) / 3])
    assert average(np.array([[4.0, np.nan, 1.0], [np.nan] * 3]), a) == pytest.approx([7 / 4, np.nan], nan_ok=True)
    assert kish_count(np.array([[8.0, 3.0, 0.0], [1.0, 3.0, 0.0], [1.0, 3.0, 0.0]])).tolist() == [100 / 66, 3, 0]


@pytest.mark.parametrize("seeds", [1, 4])
def test_parts_add_up_to_the_plain_crossed_bootstrap(seeds):
    # catches: seeds drawn with other clusters than the joint draw, a part that is left out or taken twice, one seed
    # that is drawn
    rng = np.random.default_rng(0)
    table = rng.normal(size=(seeds, 12))
    a, b = (rng.multinomial(n, np.full(n, 1 / n), 300).astype(float) for n in table.shape)
    top = np.vstack([np.ones(12), b]) @ table.T
    found = two_level(ratio_of_sums, np.stack([top, np.full_like(top, 12)]), a, [np.ones(12)])
    assert found.value == pytest.approx(table.mean())
    assert found.plain() == pytest.approx(np.einsum("ds,sc,dc->d", a, table, b) / (seeds * 12))
    assert found.value + found.seeds == pytest.approx(a @ table.mean(1) / seeds)
    assert found.value + found.units == pytest.approx(b @ table.mean(0) / 12)
    assert found.each == pytest.approx(table.mean(1))
    if seeds == 1:
        assert (found.seeds.any(), found.seed_share()) == (False, 0.0)
        assert found.samples() == pytest.approx(found.value + stretch(12) * found.units)


@pytest.mark.parametrize(("noise", "against"), [(0.0, 0.0), (0.2, 0.0), (9.0, 0.0), (0.0, 0.5)])
def test_what_both_parts_hold_is_taken_off_once_and_never_more(noise, against):
    # catches: g above 1 (parts that go against each other), a variance that falls below the larger part, no stretch
    s, u, i = np.random.default_rng(0).normal(size=(3, 500))
    found = Draws(2.0, s, 0.4 * u - against * s, noise * i, 6, 30.0, np.zeros(6))
    ks, ku = stretch(6) * found.seeds, stretch(30) * found.units
    share = max((ks + ku).var() - 6 / 5 * found.both.var(), ks.var(), ku.var()) / (ks + ku).var()
    assert (share > 1 + 1e-9) == (against > 0)
    assert found.samples() == pytest.approx(2.0 + np.sqrt(min(share, 1)) * (ks + ku))
    assert found.standard_error() == pytest.approx(found.samples().std())
    assert found.seed_share() == pytest.approx(ks.var() / (ks.var() + ku.var()))


def test_differences_are_taken_draw_by_draw_and_rounding_is_none():
    rng = np.random.default_rng(0)
    one, two = (Draws(v, *rng.normal(size=(3, 200)), 6, n, rng.random(6)) for v, n in ((0.3, 30.0), (0.1 + 0.2, 20.0)))
    change, (low, high) = one - two, one.interval()
    assert (change.value, change.worth) == (0.0, 20.0)  # not 5.6e-17
    assert change.each == pytest.approx(one.each - two.each)
    assert change.plain() == pytest.approx(one.plain() - two.plain())
    assert (one - one).interval() == (one - one * (1 + 1e-13)).interval() == (0.0, 0.0)
    assert (one * -2.0).interval() == pytest.approx((-2 * high, -2 * low))
    assert one.interval(2 * 1.959964) == pytest.approx((2 * low - 0.3, 2 * high - 0.3), rel=1e-6)
    nothing = Draws(np.nan, *np.full((3, 9), np.nan), 6, 2.0, np.zeros(6))
    assert np.isnan([*nothing.interval(), nothing.standard_error()]).all()


def test_differences_are_of_seeds_where_both_have_a_value_and_one_cluster_says_nothing():
    # catches: seeds without a value that count as seeds, other seeds that are compared, copies of one cluster
    rng = np.random.default_rng(0)
    a, b = (rng.multinomial(n, np.full(n, 1 / n), 300).astype(float) for n in (6, 12))

    def drawn(mean, seeds, worth=12):
        known = np.isin(np.arange(6), seeds) * 12.0
        top = np.vstack([np.ones(12), b]) @ np.full((12, 6), 1.0) * mean * (known > 0)
        return two_level(ratio_of_sums, np.stack([top, known + 0 * top]), a, [np.ones(worth)])

    mean = np.array([0.0, 0.0, 0.3, 0.0, 0.0, 0.0])
    change = drawn(mean, range(6)) - drawn(mean, [2])  # the same model, whose rival has a value at seed 2 alone
    assert (change.value, change.n_seeds, drawn(mean, [2]).n_seeds) == (0.0, 1, 1)
    half = (drawn(mean, [0, 2, 3]) - 0.25) * -1.0
    assert (half - (drawn(mean, range(6)) - 0.25) * -1.0).value == 0.0
    assert half.value == pytest.approx(0.15)
    assert np.isnan(drawn(mean, range(6), worth=1).interval()).all()


def test_the_jackknife_leaves_out_each_block_once():
    # catches: equal weights for unequal blocks, a variance without h - 1, z in place of t
    rng = np.random.default_rng(0)
    table, size = rng.normal(size=(5, 4)), np.array([2.0, 3.0, 3.0, 8.0])
    found, whole, n = jackknife(table, size), size.sum(), len(size)
    mean = table @ size / whole
    without = np.array([(table @ size - size[k] * table[:, k]) / (whole - size[k]) for k in range(n)]).T
    h = whole / size
    pseudo = h * mean[:, None] - (h - 1) * without
    error = np.sqrt(((pseudo - (n * mean - ((1 - 1 / h) * without).sum(1))[:, None]) ** 2 / (h - 1)).mean(1))
    assert found.score == pytest.approx(mean)
    assert found.high - found.score == pytest.approx(3.182446 * error)  # t(3) at 0.975
    assert found.score - found.low == pytest.approx(3.182446 * error)
    equal = jackknife(table, np.ones(4))
    assert equal.high - equal.score == pytest.approx(3.182446 * table.std(1, ddof=1) / 2)


def test_signs_are_certain_of_what_is_there_and_of_nothing_else():
    # of 300 pools without any effect 5 % may be given a sign (8 % is four errors above); without Benjamini and
    # Hochberg's step nearly every pool has one. Effects of the least size are found in four of five
    rng = np.random.default_rng(0)
    null = [jackknife(rng.normal(size=(50, 8)), np.ones(8)).certain.any() for _ in range(300)]
    assert np.mean(null) < 0.1

    def pools(*effects: float) -> list[Any]:
        moved = np.repeat(effects, [20, 5, 25])[:, None]
        return [jackknife(rng.normal(size=(50, 8)) + moved, np.ones(8)) for _ in range(40)]

    found = pools(3.0, -3.0, 0.0)
    signs = np.array([one.certain for one in found])
    assert (signs[:, :20] == 1).mean() > 0.95 < (signs[:, 20:25] == -1).mean()
    assert (signs[:, 25:] != 0).sum() / (signs != 0).sum() < 0.05
    least = float(np.median([one.least.mean() for one in found]))
    assert 0.65 < np.mean([one.certain[:25] for one in pools(least, least, 0.0)]) < 0.95


def test_what_the_jackknife_refuses():
    assert jackknife(np.zeros((2, 3)), [1, 1, 1]).certain.tolist() == [0, 0]
    assert jackknife(np.ones((2, 3)), [1, 1, 1]).certain.tolist() == [1, 1]
    for scores, sizes in (([[1.0]], [1]), ([[1.0, 2.0]], [1]), ([[1.0, 2.0]], [1, 0]), ([[1.0, np.inf]], [1, 1])):
        with pytest.raises(InputError, match="m >= 2 blocks"):
            jackknife(scores, sizes)
