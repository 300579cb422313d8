"""Several comparisons at once: published intervals, exact errors and p-values by enumeration, copies, small groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from upright.maths import ranks
from upright.maths.simultaneous import Z, auc_bound, compare_aucs, compare_groups, newcombe, stretch, wilson


def compare(x, group, cluster=None, **more):
    """Compare groups of values (U,), (U, M) or (S, U, M); a row of NaN takes no part."""
    x = np.asarray(x, dtype=float)
    x = x.reshape(1, len(x), -1) if x.ndim < 3 else x
    cluster = np.arange(x.shape[1]) if cluster is None else cluster
    label = np.where(np.isnan(x).all(-1), -1, group)
    return compare_groups(x, label, cluster, int(np.max(group)) + 1, rng=np.random.default_rng(0), **more)


def aucs(scores, label, cluster=None, **more):
    """Compare AUCs of columns of scores (U,) or (U, K)."""
    scores = np.asarray(scores, dtype=float).reshape(1, len(label), -1)
    cluster, classes = np.arange(len(label)) if cluster is None else cluster, np.ones(scores.shape[2], dtype=int)
    return compare_aucs(scores, np.array([label]), classes, cluster, rng=np.random.default_rng(0), **more)


def agrees(found, null, value, draws=20_000):
    """Check errors, p-values and critical value against every equally likely move (N, K)."""
    s0 = np.sqrt((null**2).mean(0))
    top = (np.abs(null) / s0).max(1)
    np.testing.assert_allclose(found.value, value, atol=1e-12)
    np.testing.assert_allclose(np.abs(value) / found.score, s0)  # catches: the deviation of the draws instead of s0
    exact = (top[:, None] >= np.abs(value) / s0 - 1e-9).mean(0)
    np.testing.assert_allclose(found.p, exact, atol=5 * np.sqrt(0.25 / draws))
    assert found.critical == pytest.approx(max(np.quantile(top, 0.95, method="higher"), Z))


def gaps(x, labels):
    """Differences of means (K,) of all pairs in each metric of x (S, U, M), averaged over seeds."""
    means = np.stack([x[:, labels == g].mean((0, 1)) for g in range(max(labels) + 1)], -1)  # (M, G)
    return np.array([m[a] - m[b] for m in means for a, b in itertools.combinations(range(len(m)), 2)])


def test_wilsons_and_newcombes_intervals_are_the_published_ones():
    # Newcombe, Statistics in Medicine 17 (1998): 857, table I, method 3; and 873, table II, method 10
    for a, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]:
        assert wilson(a / n, n, Z) == pytest.approx((low, high), abs=5e-5)
    examples = [(56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (10, 10, 0, 20, 0.6791, 1.0)]
    for a, n, b, m, low, high in examples:
        assert newcombe(a / n, n, b / m, m, Z) == pytest.approx((low, high), abs=5e-5)
    alone, shared = (newcombe(0.5, 40, 0.5, 40, Z, phi)[1] for phi in (0.0, 0.9))  # of equal errors: sqrt(1 - phi)
    assert shared == pytest.approx(alone * 0.1**0.5)
    low, high = auc_bound(np.array([0.0, 1.0]), 30, 40, Z)  # Statistics in Medicine 25 (2006) 559, method 5
    t, (_, width) = low[1], high - low
    assert (low[0], high[1], high[0]) == (0, 1, pytest.approx(width))
    assert width == pytest.approx(Z * np.sqrt(t * width * (1 + 34 * (width / (2 - t) + t / (1 + t))) / 1200), abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "group"),
    [((1, 6, 1), [0, 0, 0, 0, 1, 1]), ((1, 6, 2), [0, 0, 1, 1, 2, 2]), ((2, 6, 1), [0, 0, 0, 1, 1, 1])],
)
def test_labels_that_change_places_are_every_permutation(shape, group):
    # catches: metrics or seeds that are permuted apart, a maximum of raw sizes, n for n - 1, ties that rounding loses
    x = np.random.default_rng(5).normal(size=shape)
    null = np.array([gaps(x, np.array(p)) for p in itertools.permutations(group)])
    agrees(compare(x, np.array(group), draws=20_000), null, gaps(x, np.array(group)))


def test_labels_stay_inside_places():
    # catches: clients that exchange labels, and a maximum over the pairs of one client alone
    x, group, place = np.random.default_rng(0).normal(size=8), np.array([0, 0, 1, 1, 0, 1, 1, 1]), np.repeat([0, 1], 4)
    moves = itertools.product(*map(itertools.permutations, (group[:4], group[4:])))  # the first of all is the data
    null = [[gaps(x[None, place == i, None], np.array(own))[0] for i, own in enumerate(both)] for both in moves]
    found = compare(x, group, place=place[None], draws=20_000)
    assert found.of == [(0, 0, 0, 1), (1, 0, 0, 1)]
    agrees(found, np.array(null), np.array(null[0]))
    apart = compare(place, np.array([0, 0, 0, 1, 0, 1, 1, 1]), place=place[None])  # who lives where is no gap
    assert (apart.value.tolist(), apart.p.tolist()) == ([0, 0], [1, 1])


def test_contributions_of_clusters_change_sign_where_labels_vary_inside():
    # catches: labels that are permuted inside clusters, signs drawn for rows or for each pair by itself
    cluster, group, rng = np.repeat(np.arange(8), 4), np.tile([0, 1, 2, 0], 8), np.random.default_rng(0)
    x = rng.normal(size=32) + rng.normal(size=8)[cluster]
    rate = np.stack([(x - x.mean()) * (group == g) / (group == g).sum() for g in range(3)], -1)
    part = np.stack([rate[cluster == c].sum(0) for c in range(8)])
    pair = np.stack([part[:, a] - part[:, b] for a, b in ((0, 1), (0, 2), (1, 2))], -1)
    null = np.array(list(itertools.product([-1, 1], repeat=8))) @ pair
    agrees(compare(x, group, cluster, draws=20_000), null, gaps(x[None, :, None], group))


def test_aucs_under_moved_labels_are_every_permutation():
    # catches: ties that count for one side, columns that are permuted apart
    rng, label = np.random.default_rng(0), np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])
    x = np.column_stack([rng.integers(0, 4, 9), rng.normal(size=9)])

    def auc(own):
        return [ranks.auc(v, np.ones(9), own) - 0.5 for v in x.T]

    null = np.array([auc(np.isin(np.arange(9), c)) for c in itertools.combinations(range(9), 4)])
    agrees(aucs(x, label, draws=20_000), null, auc(label == 1))


def test_seeds_without_a_group_change_no_error():
    # catches: a mean over all seeds beside one over those at which a group stands, so that T grows with their number
    x, group = np.random.default_rng(0).normal(size=(3, 90, 1)), np.arange(90) % 3
    x[1:, group == 2] = np.nan
    assert compare(x, group).score[1:] == pytest.approx(compare(x[:1], group).score[1:])


def test_other_units_at_each_seed_change_no_error():
    # catches: an exact error for units that stand at all seeds: c makes up for it, and widens every interval
    x, home = np.random.default_rng(0).normal(size=90), np.arange(90) // 30
    own = [compare(x[home == s], np.arange(30) % 2) for s in range(3)]
    found = compare(np.where(np.arange(3)[:, None] == home, x, np.nan)[..., None], np.arange(90) % 2)
    error = np.sqrt(sum((one.value[0] / one.score[0]) ** 2 for one in own)) / 3
    assert abs(found.value[0]) / found.score[0] == pytest.approx(error, rel=0.05)
    assert found.critical == pytest.approx(Z, abs=0.25)


def test_means_get_the_larger_of_both_errors_and_rates_newcombes_interval():
    # catches: an error of the null or of the pair alone, few units that are not stretched, 1.96 where c is larger
    group = np.repeat([0, 1, 2], [40, 8, 60])
    x = np.random.default_rng(0).normal(np.array([5.0, 0.0, 2.0])[group], np.array([0.0, 3.0, 0.1])[group])
    found = compare(x, group)
    assert found.critical > Z
    own = [v.std() / np.sqrt(len(v)) * stretch(len(v)) for v in (x[group == g] for g in range(3))]
    for k, (*_, a, b) in enumerate(found.of):
        error = max(abs(found.value[k]) / found.score[k], np.hypot(own[a], own[b]))
        low, high = found.value[k] + np.array([-1, 1]) * found.critical * error
        assert (found.low[k], found.high[k]) == pytest.approx((low, high))
        assert found.detectable[k] == pytest.approx((found.critical + 0.8416) * error, rel=1e-4)
        assert found.shown[k] == (found.p[k] < 0.05 and not low <= 0 <= high)
    rates = compare(np.r_[np.arange(30) < 30, np.arange(50) < 11], np.repeat([0, 1], [30, 50]))
    assert (rates.low[0], rates.high[0]) == pytest.approx(newcombe(1.0, 30, 0.22, 50, rates.critical))
    rates = compare(np.r_[np.arange(12) < 10, np.arange(10) < 4], np.repeat([0, 1], [12, 10]))  # p is 0.074, to the tie
    assert (rates.low[0], rates.high[0]) == pytest.approx((0, newcombe(10 / 12, 12, 0.4, 10, rates.critical)[1]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("pair", [True, False])
def test_a_mean_whose_squares_sum_to_it_is_no_rate(pair):
    # catches: Newcombe's interval for what is not 0 or 1, and its root of what is below 0 where a rate stands beside
    rng, n = np.random.default_rng(5), 60
    cluster = np.tile(np.arange(n), 2) if pair else np.arange(2 * n)
    group = np.repeat([0, 1], n)[None]
    odd = np.tile([0.5, (1 + 2**0.5) / 2], n)  # 0.25 + 1.4571 = 0.5 + 1.2071
    rate, wide = rng.integers(0, 2, 2 * n).astype(float), rng.exponential(np.where(group[0], 3.5, 0.2))
    table = np.stack([odd, 1e-9 * wide, rate, wide], -1)
    one, two = (
        compare_groups(values[None], group, cluster, 2, rng=np.random.default_rng(1))
        for values in (table, table * [100, 100, 1, 100])
    )
    for end in ("low", "high"):
        assert getattr(two, end) == pytest.approx(getattr(one, end) * [100, 100, 1, 100], rel=1e-6)


def test_aucs_get_the_larger_of_the_nulls_and_delongs_error():
    # catches: an error of the null or of the AUC alone, a spread that the interval forgets, an AUC of 1 without a width
    label = np.repeat([1, 0], [8, 60])
    x = np.random.default_rng(2).normal(0, 1 + 5 * label)
    found, wide = aucs(x, label), aucs(x, label, spread=3.0)
    placed = [(x[:8, None] > x[8:]).mean(i) for i in (0, 1)]  # of each unit among the other side
    own = np.hypot(*(v.std() / np.sqrt(len(v)) * stretch(len(v)) for v in placed))
    assert own > (s0 := abs(found.value[0] / found.score[0]))
    assert [found.low[0], found.high[0]] == pytest.approx(found.value + np.array([-1, 1]) * found.critical * own)
    assert wide.score[0] == pytest.approx(found.score[0] / 3)  # cross-fitted: a wider null, and so a wider interval
    assert wide.detectable[0] == pytest.approx((wide.critical + 0.8416) * 3 * s0, rel=1e-4)
    apart = aucs(np.arange(68.0), 1 - label)  # told apart without fail: no error of its own
    assert (apart.low[0], apart.high[0]) == pytest.approx((auc_bound(1.0, 60, 8, apart.critical)[0] - 0.5, 0.5))


def test_scores_of_different_folds_are_not_compared():
    rng, fold = np.random.default_rng(0), np.repeat([0, 1, 2], 20)
    x, label = rng.normal(size=60) + 100 * fold, rng.integers(0, 2, 60)
    found, near = (aucs(v, label, stratum=fold[None, :, None]) for v in (x, x - 50 * fold))
    assert found.value[0] == pytest.approx(ranks.auc(x, np.ones(60), label == 1, fold) - 0.5)
    assert found.score[0] == pytest.approx(near.score[0])


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("how", "levels"), [(compare, 64), (compare, 2), (aucs, 64)])
def test_copies_inside_clusters_are_no_evidence(how, levels, inside):
    # catches: labels that change places inside clusters, and rows that count where clusters should
    cluster = np.repeat(np.arange(40), 2)
    label = np.tile([0, 1], 40) if inside else np.repeat(np.arange(40) % 2, 2)
    x = np.random.default_rng(0).integers(0, levels, 80)
    once, twice = how(x, label, cluster), how(*(np.repeat(v, 2) for v in (x, label, cluster)))
    for name in ("value", "low", "high", "p", "score", "detectable"):
        assert getattr(once, name) == pytest.approx(getattr(twice, name), rel=1e-9), name
    if not inside:  # nor against single rows
        assert how(x[::2], label[::2]).p == how(*(np.repeat(v[::2], 2) for v in (x, label, cluster))).p


def test_a_small_group_hides_nothing_and_is_named():
    # catches: a maximum of raw gaps, in which the noise of 20 rows hides 8 points between 2 x 2,000
    group = np.repeat([0, 1, 2], [2_000, 2_000, 20])
    for seed in range(6):
        rng = np.random.default_rng(seed)
        found = compare(rng.random(4_020) < np.array([0.54, 0.46, 0.5])[group], group, draws=399)
        assert found.shown.tolist() == [True, False, False]
        assert found.small_groups() == {2: pytest.approx(min(found.detectable[1:]))}
    for n, names in ((100, []), (5, [2])):
        assert list(compare(rng.random(200 + n), np.repeat([0, 1, 2], [100, 100, n])).small_groups()) == names


def test_fewer_than_six_clusters_cannot_be_judged_by_signs():
    cluster, group = np.repeat(np.arange(12), 4), np.tile([0, 0, 1, 1], 12)
    noise = np.random.default_rng(0).normal(size=48)
    for clusters in (5, 6):
        group[: 4 * clusters : 4] = 2
        found = compare(10.0 * (group == 2) + noise, group, cluster)
        assert found.shown.tolist() == [False, clusters == 6, clusters == 6]
        assert np.isinf(found.detectable[1:]).all() == (found.p[1:] == 1).all() == (clusters == 5)
        assert list(found.small_groups()) == [2] * (clusters == 5)


def test_groups_of_too_few_clusters_are_named_also_where_all_are():
    rng = np.random.default_rng(0)
    group, cluster = np.arange(100) % 2, np.arange(100) % 5
    found = compare(rng.random(100) < 0.1 + 0.8 * group, group, cluster)
    assert found.small_groups() == {0: np.inf, 1: np.inf}


def test_an_auc_without_an_error_has_the_width_of_its_clusters():
    # catches: copies taken for evidence at an AUC of 1, "none" up to 0.000 for an attack that scores all alike
    label, own = np.repeat([0, 1], 6), np.arange(12)
    one, many = aucs(label, label), aucs(np.repeat(label, 20), np.repeat(label, 20), np.repeat(own, 20))
    assert one.low == pytest.approx(many.low)
    assert 0.1 < one.low[0] < 0.3 < one.high[0] == 0.5
    assert np.isnan(aucs(np.full(12, np.nan), label).value).all()  # nobody is scored
    flat = aucs(np.zeros(100), np.arange(100) % 2)
    assert flat.low[0] < -0.05 < 0.05 < flat.high[0]
    assert flat.detectable[0] > 0.1


def test_what_groups_share_inside_clusters_does_not_blur_their_gap():
    # catches: covariances of two groups of the same clusters that are added instead of taken off
    rng = np.random.default_rng(0)
    cluster, group = np.repeat(np.arange(40), 4), np.tile([0, 0, 1, 1], 40)
    x = 10 * rng.normal(size=40)[cluster] + rng.normal(size=160) + group
    found = compare(x, group, cluster)
    assert found.low[0] < -1 < found.high[0] < 0
    assert found.high[0] - found.low[0] == pytest.approx(2 * 1.96 * np.sqrt(2 / 80), rel=0.5)


@pytest.mark.parametrize("often", ["forgotten once, held out always", "sets anew at each seed"])
def test_labels_of_other_seeds_give_no_false_alarms(often):
    # catches: who stands at one seed changing places with who stands at six; labels averaged over seeds before signs
    found = []
    for stream in range(120):
        rng = np.random.default_rng(stream)
        label = np.full((6, 160), -1)
        for one in label:
            who = rng.permutation(120)
            one[who[:20]] = 1
            one[np.arange(120, 140) if often.startswith("forgotten") else who[20:40]] = 0
        scores, more = rng.normal(size=(6, 160, 1)), {"rng": np.random.default_rng(stream), "draws": 299}
        found.append(compare_aucs(scores, label, np.array([1]), np.arange(160), **more).p[0])
    assert np.mean(np.array(found) < 0.05) < 0.12  # 0.05 and three standard errors; 0.17 and more before


def test_an_average_over_seeds_is_surer_than_each():
    # catches: the error of one seed for that of six whose noise is their own, in what could have been seen
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    x = rng.normal(size=(6, 200)) + 0.25 * (label == 0)
    found = compare(x[..., None], np.tile(label, (6, 1)))
    assert found.detectable[0] == pytest.approx(2.8 * np.sqrt(2 / 100 / 6), rel=0.15)
    assert found.high[0] - found.low[0] == pytest.approx(3.92 * np.sqrt(2 / 100 / 6), rel=0.15)
    same = compare(np.tile(x[:1], (6, 1))[..., None], np.tile(label, (6, 1)))
    alone = compare(x[:1, :, None], label[None])
    for name in ("low", "high", "detectable"):
        assert getattr(same, name) == pytest.approx(getattr(alone, name), rel=0.02)


def test_a_client_at_two_seeds_is_one_client():
    # catches: signs in place of moves because a seed was taken for another place
    label, rng = np.repeat([0, 1], [5, 60]), np.random.default_rng(0)
    x = np.tile(np.r_[np.ones(5), rng.random(60) < 0.2].astype(float), (2, 1))
    found = compare(x[..., None], np.tile(label, (2, 1)), place=np.zeros((2, 65), dtype=np.int64))
    assert (found.p < 0.01).all()
    assert np.isfinite(found.detectable).all()


def test_a_place_without_a_group_is_compared_in_silence():
    # catches: a division by the rows of a group that a client does not have
    rng = np.random.default_rng(0)
    group, place = np.arange(300) % 3, np.arange(300) // 150
    place[(group < 2) & (np.arange(300) % 20 == 0)] = 2  # two groups alone
    hits = (rng.random(300) < 0.4).astype(float)[None, :, None]
    found = compare_groups(hits, group[None], np.arange(300), 3, rng=rng, place=place[None], draws=99)
    assert [np.isnan(found.low[k]) for k, one in enumerate(found.of) if one[0] == 2] == [False, True, True]


def test_where_all_rates_are_one_a_gap_of_nothing_is_not_detectable():
    # catches: "smallest detectable 0.000" beside an interval of plus and minus a third
    value, group = np.ones((1, 16, 1)), np.repeat([0, 1], 8)[None]
    found = compare_groups(value, group, np.arange(16), 2, rng=np.random.default_rng(0))
    assert found.detectable[0] > found.high[0] > 0.1


def test_a_group_without_a_value_of_a_metric_that_is_equal_for_all_is_not_judged():
    # catches: nothing divided by nobody, a NaN error that turns a whole comparison into none
    group = np.repeat(np.arange(3), 8)
    values = np.zeros((1, 24, 2))
    values[0, :, 0] = np.arange(24) % 2
    values[0, group == 2, 1] = np.nan
    found = compare_groups(values, group[None], np.arange(24), 3, rng=np.random.default_rng(0), draws=200)
    assert np.isfinite(found.value[np.isfinite(found.detectable)]).all()
    assert not (found.p < 1).any()
