"""Functions of ranks against brute force over pairs, repeated rows and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from upright.maths import ranks
from upright.maths.simultaneous import stretch


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans(), st.integers(0, 2)), max_size=20))
def test_auc_is_the_weighted_share_of_pairs_inside_strata(rows):
    # catches: ties that count for one side, weights that enter once, a mirrored direction, pairs of two strata, each
    # stratum with the same say, NaN as a score
    v, w, first, home = np.array([*rows, (0, 1, True, 0)], dtype=float).T
    first, home = first > 0, home.astype(int)
    v[-1] = np.nan

    def slow(strata):
        own = [(i, j) for i in np.flatnonzero(first)[:-1] for j in np.flatnonzero(~first) if strata[i] == strata[j]]
        total = sum(w[i] * w[j] for i, j in own)
        return sum(w[i] * w[j] * ((v[i] > v[j]) + 0.5 * (v[i] == v[j])) for i, j in own) / total if total else np.nan

    found = ranks.auc(v, np.stack([w, 0 * w, 3 * w]), first, home)  # one draw after the other
    assert found == pytest.approx([slow(home), np.nan, slow(home)], abs=1e-12, nan_ok=True)
    assert ranks.auc(v, w, first) == pytest.approx(slow(0 * home), abs=1e-12, nan_ok=True)


def test_rank_correlations_are_spearmans_of_repeated_rows():
    # catches: weights left out of the ranks or of the ties, which changes the draws and leaves the value
    rng = np.random.default_rng(0)
    z = rng.integers(0, 9, 40).astype(float)
    x, y = rng.integers(0, 6, 40) + z, rng.normal(size=40) + z
    weights = np.vstack([np.ones(40), rng.integers(0, 4, (5, 40))])
    plain, partial = (ranks.weighted_rank_correlation(x, weights, y, given) for given in (None, z))
    for w, rho, left in zip(weights.astype(int), plain, partial, strict=True):
        a, b, c = (rankdata(np.repeat(v, w)) for v in (x, y, z))
        assert rho == pytest.approx(spearmanr(a, b).statistic)
        rest = [v - np.polyval(np.polyfit(c, v, 1), c) for v in (a, b)]
        assert left == pytest.approx(np.corrcoef(*rest)[0, 1])
    for third, rho in ((None, plain[0]), (z, partial[0])):
        assert ranks.rank_sides(x, y, third)[0].mean() == pytest.approx(0.0)
        assert ranks.rank_correlation(x, y, third) == pytest.approx(rho)
    constant = ((np.ones(40), None), (x, x), (y, y))  # or explained: a division of rounding by rounding
    assert np.isnan([ranks.weighted_rank_correlation(v, weights, y, third) for v, third in constant]).all()
    assert np.isnan(ranks.rank_sides(x, y, x)).any()


def ecdf_distance(v, u):
    return max(abs(np.mean(v <= x) - np.mean(u <= x)) for x in [*v, *u])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_distances_are_those_of_distribution_functions(rows):
    # catches: a supremum between equal values, a lost last value, NaN that is kept, other values than a record's own
    v, u, coin = np.array(rows, dtype=float).T
    x, first, second = ranks.widest(np.r_[v, np.nan, 9.0], np.r_[u, 9.0, np.nan])
    assert (first, second) == ((v <= x).mean(), (u <= x).mean())
    assert abs(first - second) == pytest.approx(ecdf_distance(v, u), abs=1e-12)
    flips = np.where(coin, -1, 1).astype(np.int8)
    moved = ecdf_distance(np.where(flips < 0, u, v), np.where(flips < 0, v, u))
    found = ranks.ks_null(v, u, np.stack([np.ones_like(flips), -np.ones_like(flips), flips]))
    assert found == pytest.approx([ecdf_distance(v, u)] * 2 + [moved], abs=1e-12)


def test_distance_and_p_are_those_of_scipy():
    v, u = np.random.default_rng(0).normal([[0.5], [0.0]], size=(2, 40))
    test, (_, first, second) = ks_2samp(v, u), ranks.widest(v, u)
    assert (abs(first - second), ranks.ks_p(v, u)) == pytest.approx((test.statistic, test.pvalue))
    assert ranks.ks_p(v, v) == 1.0


def test_values_of_an_area_have_its_mean_and_the_error_of_delong():
    # catches ties that count whole, sides exchanged, and rows of another group that are ranked along
    rng = np.random.default_rng(3)
    group, y = rng.integers(-1, 2, 300), rng.random(300) < 0.3
    score = np.round(rng.normal(size=300) + y, 1)
    found = ranks.auc_values(score, y, group)
    assert np.isnan(found[group < 0]).all()
    for g in (0, 1):
        own = group == g
        up, down = score[own & y], score[own & ~y]
        wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
        area = roc_auc_score(y[own], score[own])
        sides = (wins.mean(1), wins.mean(0))
        errors = sum(((v - area) ** 2).sum() * stretch(len(v)) ** 2 / len(v) ** 2 for v in sides)
        assert found[own].mean() == pytest.approx(area, abs=1e-12)
        assert ((found[own] - area) ** 2).sum() / own.sum() ** 2 == pytest.approx(errors, rel=1e-9)


def test_an_area_of_few_rows_of_a_class_is_not_measured():
    # catches an area that rests on four people
    y = np.arange(40) < 4
    assert np.isnan(ranks.auc_values(np.arange(40.0), y, np.zeros(40, dtype=int))).all()
    assert np.isfinite(ranks.auc_values(np.arange(40.0), y, np.zeros(40, dtype=int), fewest=4)).all()


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_bins_are_those_of_the_trees_of_scikit_learn(decimals):
    # catches: an edge on a value, weights that count as one, a last bin that is lost
    pytest.importorskip("sklearn", "1.9")  # before, bins knew no weights
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(decimals)
    x, y = np.round(rng.normal(size=(500, 1)), decimals), (rng.random(500) < 0.2).astype(int)
    weights = np.where(y, 2.5, 0.625)  # balanced, powers of 2: sums are exact
    model = HistGradientBoostingClassifier(
        max_bins=64, max_iter=1, class_weight={0: 0.625, 1: 2.5}, early_stopping=False
    )
    model.fit(x, y)
    assert ranks.bin_edges(x[:, 0], weights, 64) == pytest.approx(model._bin_mapper.bin_thresholds_[0])
