"""Ranking metrics against enumeration of every order of tied items, scikit-learn, and what must not change them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import ndcg_score

from upright.contract import InputError
from upright.metrics.ranking import (
    coverage,
    evaluate_full,
    gini,
    matched_positives,
    ranks_by_expectation,
    sampled_protocol,
    topk,
)

NAMES = ("ndcg", "recall", "mrr", "hit", "precision")


def csr(mask):
    return sparse.csr_array(np.asarray(mask, dtype=np.float32))


def evaluate(scores, seen, relevant, ks=(3,), **options):
    scores = np.asarray(scores)
    users = np.arange(len(scores))
    return evaluate_full(lambda u: scores[u], users, csr(seen), csr(relevant), ks, **options)


def one_order(order, relevant, k):
    """Textbook metrics of one ranked list, written with loops and sets."""
    wanted = {i for i, flag in enumerate(relevant) if flag}
    top = list(order)[:k]
    hits = [item in wanted for item in top]
    dcg = sum(1 / math.log2(p + 2) for p, hit in enumerate(hits) if hit)
    ideal = sum(1 / math.log2(p + 2) for p in range(min(k, len(wanted))))
    return {
        "ndcg": dcg / ideal,
        "recall": sum(hits) / len(wanted),
        "precision": sum(hits) / k,
        "hit": float(any(hits)),
        "mrr": next((1 / (p + 1) for p, hit in enumerate(hits) if hit), 0.0),
    }


def all_orders(scores, candidates):
    """Every order of the candidates that their scores allow."""
    levels = sorted({scores[i] for i in candidates}, reverse=True)
    groups = [[i for i in candidates if scores[i] == level] for level in levels]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield tuple(itertools.chain(*parts))


@st.composite
def tied_user(draw):
    n_items = draw(st.integers(2, 7))
    scores = draw(st.lists(st.integers(0, 2), min_size=n_items, max_size=n_items))
    kind = draw(st.lists(st.sampled_from(["seen", "relevant", "other", "other"]), min_size=n_items, max_size=n_items))
    kind[draw(st.integers(0, n_items - 1))] = "relevant"
    return scores, [k == "seen" for k in kind], [k == "relevant" for k in kind], draw(st.integers(1, n_items + 2))


@settings(max_examples=150, deadline=None)
@given(tied_user())
def test_ties_equal_the_mean_over_every_order_of_the_tied_items(case):
    # Catches: ties by item number, r / g used for the first relevant item (should be r / (g - t)), a tie group
    # cut at k, precision divided by the number of candidates, IDCG over k instead of min(k, n).
    scores, seen, relevant, k = case
    candidates = [i for i, flag in enumerate(seen) if not flag]
    orders = list(all_orders(scores, candidates))
    got = evaluate([scores], [seen], [relevant], (k,))
    for name in NAMES:
        slow = np.mean([one_order(order, relevant, k)[name] for order in orders])
        assert got[f"{name}@{k}"][0] == pytest.approx(slow, abs=1e-12), name
    shown = np.zeros(len(scores))
    for order in orders:
        shown[list(order[:k])] += 1 / len(orders)
    np.testing.assert_allclose(got[f"exposure@{k}"], shown, atol=1e-12)


@pytest.mark.parametrize("levels", [4, 30, None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ndcg_equals_scikit_learn_with_and_without_ties(levels, dtype):
    # Catches: natural logarithm discount, p + 1 in place of p + 2, the group-maximum shortcut losing a tied item.
    rng = np.random.default_rng(0)
    scores = (rng.random((40, 400)) if levels is None else rng.integers(0, levels, (40, 400))).astype(dtype)
    relevant = rng.random((40, 400)) < 0.05
    got = evaluate(scores, np.zeros_like(relevant), relevant, (1, 10, 50))
    for k in (1, 10, 50):
        peer = [ndcg_score(relevant[u : u + 1], scores[u : u + 1], k=k) for u in range(40)]
        np.testing.assert_allclose(got[f"ndcg@{k}"], peer, atol=1e-9)


@pytest.mark.parametrize("n_items", [9, 130, 1349])
def test_many_users_equal_a_loop_over_sorted_lists(n_items):
    # Catches: off-by-one between chunks, masking of the wrong row, a relevance flag read from another user.
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((60, n_items)).astype(np.float32)
    seen = rng.random((60, n_items)) < 0.3
    relevant = ~seen & (rng.random((60, n_items)) < 0.1)
    ks = (1, 5, 10, 20)
    got = evaluate(scores, seen, relevant, ks, chunk=7)
    shown = {k: np.zeros(n_items) for k in ks}
    for user in range(60):
        order = [i for i in np.argsort(-scores[user]) if not seen[user, i]]
        for k in ks:
            shown[k][order[:k]] += 1
            for name in NAMES:
                value = got[f"{name}@{k}"][user]
                if relevant[user].any():
                    assert value == pytest.approx(one_order(order, relevant[user], k)[name], abs=1e-12)
                else:
                    assert np.isnan(value)
    for k in ks:
        np.testing.assert_array_equal(got[f"exposure@{k}"], shown[k])


@pytest.mark.parametrize("levels", [1, 3, 50, None])
@pytest.mark.parametrize("k", [1, 11, 60])
def test_topk_equals_a_stable_sort(levels, k):
    # Catches: a bound from the k - 1 best groups, leftover items beyond the last whole group forgotten.
    rng = np.random.default_rng(2)
    scores = rng.random((30, 517)) if levels is None else rng.integers(0, levels, (30, 517)).astype(float)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    scores[0] = -np.inf
    scores[1, 516] = np.inf
    items, values = topk(scores, k)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(values, best)
    np.testing.assert_array_equal(items, np.where(best > -np.inf, order, -1))


@st.composite
def small_problem(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(3, 200))
    levels = draw(st.sampled_from([2, 5, 40]))
    scores = rng.integers(-levels, levels, (n_users, n_items)).astype(float)
    seen = rng.random(scores.shape) < 0.3
    relevant = ~seen & (rng.random(scores.shape) < 0.2)
    return rng, scores, seen, relevant


@settings(max_examples=60, deadline=None)
@given(small_problem())
def test_relabelling_items_changes_nothing(problem):
    # Catches: ties broken by item number; exposure returned in another order than the items.
    rng, scores, seen, relevant = problem
    order = rng.permutation(scores.shape[1])
    before, after = evaluate(scores, seen, relevant), evaluate(scores[:, order], seen[:, order], relevant[:, order])
    for key, value in before.items():
        expected = value[order] if key.startswith("exposure") else value
        np.testing.assert_allclose(after[key], expected, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(small_problem(), st.sampled_from([np.exp, np.arctan, lambda x: 3 * x - 7, lambda x: x**3]))
def test_a_strictly_increasing_transform_of_scores_changes_nothing(problem, transform):
    # Catches: scores used as gains; masking with a number such as 0 or -1e3 in place of -inf.
    _, scores, seen, relevant = problem
    for key, value in evaluate(scores, seen, relevant).items():
        np.testing.assert_allclose(evaluate(transform(scores), seen, relevant)[key], value, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(small_problem())
def test_bounds_and_bookkeeping(problem):
    # Catches: values outside their declared range; seen items recommended; exposure that loses list places.
    _, scores, seen, relevant = problem
    got = evaluate(scores, seen, relevant, (10,))
    for name in NAMES:
        values = got[f"{name}@10"]
        assert np.array_equal(np.isnan(values), ~relevant.any(axis=1))
        defined = values[~np.isnan(values)]
        assert ((defined >= 0) & (defined <= 1)).all()
    assert got["exposure@10"].sum() == pytest.approx(np.minimum(10, (~seen).sum(axis=1)).sum())
    assert (got["exposure@10"][seen.all(axis=0)] == 0).all()
    assert (got["exposure@10"] <= (~seen).sum(axis=0) + 1e-9).all()


def test_seen_items_are_never_recommended_even_with_the_best_scores():
    # Planted defect: leave out `scores[row, item] = -np.inf` and this turns red.
    scores = np.tile(np.arange(20.0), (5, 1))
    seen = np.zeros((5, 20), dtype=bool)
    seen[:, 10:] = True
    relevant = np.zeros_like(seen)
    relevant[:, 9] = True
    got = evaluate(scores, seen, relevant, (4,))
    np.testing.assert_array_equal(got["exposure@4"], [0] * 6 + [5] * 4 + [0] * 10)
    np.testing.assert_array_equal(got["mrr@4"], np.ones(5))


def test_a_constant_score_is_worth_guessing():
    # Catches: any order of the file leaking into a model that knows nothing.
    relevant = np.zeros((3, 50), dtype=bool)
    relevant[:, :5] = True
    got = evaluate(np.ones((3, 50)), np.zeros_like(relevant), relevant, (10,))
    np.testing.assert_allclose(got["recall@10"], 10 / 50)
    np.testing.assert_allclose(got["precision@10"], 5 / 50)
    np.testing.assert_allclose(got["hit@10"], 1 - math.comb(45, 10) / math.comb(50, 10))
    np.testing.assert_allclose(got["exposure@10"], 3 * 10 / 50)


def test_an_item_at_minus_infinity_is_never_recommended():
    # Catches: padding of short lists counted as items; ties among -inf counted as ties.
    got = evaluate([[-np.inf, 1.0, -np.inf, 0.0]], np.zeros((1, 4)), [[1, 0, 0, 1]], (4,))
    np.testing.assert_array_equal(got["exposure@4"], [0, 1, 0, 1])
    assert got["recall@4"][0] == 0.5
    assert got["mrr@4"][0] == 0.5


def test_users_are_scored_in_the_order_asked_for_and_scores_are_not_touched():
    # Catches: rows of `seen` taken by position instead of by user; masking written into the caller's table.
    rng = np.random.default_rng(3)
    table = rng.standard_normal((8, 30))
    kept = table.copy()
    seen = rng.random((8, 30)) < 0.4
    relevant = ~seen & (rng.random((8, 30)) < 0.3)
    whole = evaluate(table, seen, relevant)
    some = np.array([5, 2, 5])
    part = evaluate_full(lambda u: table[u], some, csr(seen), csr(relevant), (3,), chunk=2)
    for name in NAMES:
        np.testing.assert_array_equal(part[f"{name}@3"], whole[f"{name}@3"][some])
    itself = evaluate_full(lambda u: table, np.arange(8), csr(seen), csr(relevant), (3,))
    np.testing.assert_array_equal(itself["ndcg@3"], whole["ndcg@3"])
    np.testing.assert_array_equal(table, kept)


def test_integer_scores_and_repeated_entries_are_fine():
    # Catches: an integer table that cannot hold -inf; a repeated entry counted as two relevant items.
    relevant = sparse.csr_array((np.ones(3), ([0, 0, 0], [2, 2, 0])), shape=(1, 4))
    got = evaluate_full(lambda u: np.array([[1, 2, 3, 4]]), [0], csr([[0, 0, 0, 1]]), relevant, (3,))
    assert got["recall@3"][0] == 1.0
    assert got["precision@3"][0] == pytest.approx(2 / 3)


def test_nobody_to_evaluate_gives_empty_vectors():
    got = evaluate_full(lambda u: np.zeros((len(u), 3)), [], csr(np.zeros((2, 3))), csr(np.eye(2, 3)), (2,))
    assert got["ndcg@2"].shape == (0,)
    np.testing.assert_array_equal(got["exposure@2"], np.zeros(3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": [[0.0, np.nan, 1.0]]}, "NaN among the scores of user 0"),
        ({"scores": [[np.nan, 0.0, 1.0]]}, "NaN among the scores of user 0"),  # under the mask: still an error
        ({"scores": [[0.0, 1.0]]}, "scores of shape (1, 2)"),
        ({"relevant": [[1, 1, 0]]}, "item 0 is both seen and relevant for user 0"),
        ({"relevant": [[1, 1]]}, "seen of shape (1, 3) and relevant of shape (1, 2)"),
        ({"users": [1]}, "users of shape (1,)"),
        ({"users": [-1]}, "users of shape (1,)"),
        ({"users": [0.5]}, "type float64"),
        ({"users": [[0]]}, "users of shape (1, 1)"),
        ({"ks": (0,)}, "smallest_k = 0"),
        ({"ks": ()}, "ks = ()"),
        ({"chunk": 0}, "chunk = 0"),
    ],
)
def test_bad_input_is_refused_with_the_reason(change, says):
    case = {
        "scores": [[0.0, 1.0, 2.0]],
        "users": [0],
        "seen": [[1, 0, 0]],
        "relevant": [[0, 1, 0]],
        "ks": (2,),
    } | change
    scores = np.asarray(case.pop("scores"))
    with pytest.raises(InputError) as caught:
        evaluate_full(lambda u: scores, **case | {key: csr(case[key]) for key in ("seen", "relevant")})
    assert says in caught.value.got


def test_ranks_by_expectation_on_a_worked_example():
    # Group at positions 1..3 with one relevant item: 1/3 each; first given none before: 1/3, 1/2, 1.
    chance, first, _, _ = ranks_by_expectation(np.array([[9.0, 5, 5, 5]]), np.array([[False, True, False, False]]), 4)
    np.testing.assert_allclose(chance, [[0, 1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(first, [[0, 1 / 3, 1 / 2, 1]])


# -- same number of relevant items for everybody -----------------------------------------------------------------


def slow_matched(scores, seen, relevant, n, k):
    """NDCG@k over every subset of n relevant items and every order of tied items."""
    wanted = np.flatnonzero(relevant)
    values = []
    for kept in itertools.combinations(wanted, n):
        candidates = [i for i in range(len(scores)) if not seen[i] and (i in kept or i not in wanted)]
        flags = [i in kept for i in range(len(scores))]
        values.append(np.mean([one_order(order, flags, k)["ndcg"] for order in all_orders(scores, candidates)]))
    return values


def matched(scores, seen, relevant, **options):
    scores = np.asarray(scores)
    return matched_positives(lambda u: scores[u], np.arange(len(scores)), csr(seen), csr(relevant), **options)


@settings(max_examples=60, deadline=None)
@given(tied_user())
def test_matched_equals_enumeration_when_all_relevant_items_are_kept(case):
    # Catches: a rival relevant item not counted, a tie group beyond the k-th place cut, IDCG of n above k.
    scores, seen, relevant, k = case
    n = sum(relevant)
    got = matched([scores], [seen], [relevant], n=n, draws=2, k=k, rng=np.random.default_rng(0))
    assert got[0] == pytest.approx(slow_matched(scores, seen, relevant, n, k)[0], abs=1e-12)


def test_matched_is_the_mean_over_uniform_subsets():
    # Catches: the first n items of the file taken each time; relevant items that were not kept left as competitors.
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 5, (1, 8))
    relevant = np.array([[1, 1, 0, 1, 1, 0, 0, 0]], dtype=bool)
    seen = np.zeros_like(relevant)
    expected = slow_matched(scores[0], seen[0], relevant[0], 2, 3)
    got = matched(scores, seen, relevant, n=2, draws=20_000, k=3, rng=rng)
    # Five standard errors: a false alarm in less than one run in a million.
    assert abs(got[0] - np.mean(expected)) < 5 * np.std(expected) / math.sqrt(20_000)
    assert np.std(expected) > 0.05


def test_matched_does_not_depend_on_chunks_and_leaves_small_users_undefined():
    # Catches: random numbers that move when the batch size does; a user with 4 items scored as if with 5.
    rng = np.random.default_rng(5)
    scores = rng.standard_normal((30, 300))
    relevant = rng.random((30, 300)) < 0.02
    none = np.zeros_like(relevant)
    one, two = (matched(scores, none, relevant, rng=np.random.default_rng(0), chunk=c) for c in (30, 4))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(np.isnan(one), relevant.sum(axis=1) < 5)
    assert 0 < np.isnan(one).sum() < 30


def test_matched_ignores_how_many_relevant_items_a_user_has():
    # A random score is worth the same to active and inactive users. Catches: unkept relevant items counted as gains.
    rng, n_users = np.random.default_rng(6), 3000
    relevant = np.zeros((n_users, 60), dtype=bool)
    relevant[:, :5] = True
    relevant[n_users // 2 :, :25] = True
    scores = rng.random((n_users, 60))
    seen = np.zeros_like(relevant)
    seen[: n_users // 2, 5:25] = True  # the same 35 other candidates for everybody
    got = matched(scores, seen, relevant, rng=rng)
    few, many = got[: n_users // 2], got[n_users // 2 :]
    error = math.hypot(few.std() / math.sqrt(few.size), many.std() / math.sqrt(many.size))
    assert abs(few.mean() - many.mean()) < 5 * error
    plain = evaluate(scores, seen, relevant, (10,))["ndcg@10"]
    assert plain[n_users // 2 :].mean() - plain[: n_users // 2].mean() > 0.2


def test_matched_gives_nothing_for_a_relevant_item_that_is_never_recommended():
    got = matched([[-np.inf, -np.inf, 1.0]], np.zeros((1, 3)), [[1, 1, 0]], n=2, k=3, rng=np.random.default_rng(0))
    assert got[0] == 0


# -- one relevant item among sampled ones ------------------------------------------------------------------------


def sampled(scores, seen, relevant, **options):
    scores = np.asarray(scores)
    options.setdefault("rng", np.random.default_rng(0))
    return sampled_protocol(lambda u: scores[u], np.arange(len(scores)), csr(seen), csr(relevant), **options)


@settings(max_examples=60, deadline=None)
@given(tied_user())
def test_sampled_equals_enumeration_when_every_free_item_is_a_negative(case):
    # Catches: another relevant or a seen item among the negatives, a tie won by the positive.
    scores, seen, relevant, k = case
    free = [i for i in range(len(scores)) if not seen[i] and not relevant[i]]
    if not free:
        return
    for target in np.flatnonzero(relevant):
        flags = [i == target for i in range(len(scores))]
        orders = list(all_orders(scores, [*free, target]))
        slow = np.mean([one_order(order, flags, k)["ndcg"] for order in orders])
        first = np.array([target])
        got = sampled([scores], [seen], [relevant], negatives=len(free), positive="first", first_item=first, k=k)
        assert got[0] == pytest.approx(slow, abs=1e-12)


def test_sampled_negatives_are_uniform_and_distinct():
    # With k = 1 and n negatives of which `better` beat the positive the value is hypergeometric.
    # Catches: sampling with replacement, the first items of the catalogue preferred.
    n_users, free, better, n = 4000, 20, 4, 5
    scores = np.tile(np.r_[0.0, np.ones(better), -np.ones(free - better)], (n_users, 1))
    relevant = np.zeros_like(scores, dtype=bool)
    relevant[:, 0] = True
    got = sampled(scores, np.zeros_like(relevant), relevant, negatives=n, k=1)
    p = math.comb(free - better, n) / math.comb(free, n)
    assert abs(got.mean() - p) < 5 * math.sqrt(p * (1 - p) / n_users)
    with_replacement = ((free - better) / free) ** n
    assert abs(with_replacement - p) > 5 * math.sqrt(p * (1 - p) / n_users)


def test_sampled_positive_random_is_uniform_over_relevant_items():
    # Catches: "random" that always takes the first, or never the last, relevant item.
    scores = np.tile([2.0, 2.0, 0.0, 1.0], (4000, 1))
    relevant = np.tile([True, True, True, False], (4000, 1))
    got = sampled(scores, np.zeros_like(relevant), relevant, negatives=1, k=1)
    assert abs(got.mean() - 2 / 3) < 5 * math.sqrt(2 / 9 / 4000)


def test_sampled_first_and_random_meet_the_same_negatives_whatever_the_chunk():
    # Catches: a comparison of protocols, or of batch sizes, that also changes the candidates.
    rng = np.random.default_rng(7)
    scores = rng.standard_normal((50, 300))
    relevant = rng.random((50, 300)) < 0.02
    relevant[:, 0] |= ~relevant.any(axis=1)
    scores[relevant] = 1.5  # all relevant items alike: the choice among them cannot matter
    seen = ~relevant & (rng.random(relevant.shape) < 0.2)
    first = relevant.argmax(axis=1)
    one = sampled(scores, seen, relevant, positive="first", first_item=first)
    two = sampled(scores, seen, relevant, positive="random", chunk=9)
    np.testing.assert_array_equal(one, two)
    assert np.unique(one).size > 3


def test_sampled_is_undefined_without_enough_candidates_or_relevant_items():
    # Catches: a shorter candidate list passed off as 99 negatives.
    scores = np.zeros((2, 100))
    relevant = np.zeros((2, 100), dtype=bool)
    relevant[0, :2] = True
    assert np.isnan(sampled(scores, np.zeros_like(relevant), relevant)).all()
    relevant[0, 1] = False
    np.testing.assert_array_equal(np.isnan(sampled(scores, np.zeros_like(relevant), relevant)), [False, True])


def test_sampled_gives_nothing_for_a_positive_that_is_never_recommended():
    # Catches: a short candidate list whose last place counts as a hit.
    assert sampled([[-np.inf, 1.0, 2.0]], np.zeros((1, 3)), [[1, 0, 0]], negatives=2, k=10)[0] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"positive": "last"}, "positive = 'last'"),
        ({"positive": "first"}, "no first_item"),
        ({"positive": "first", "first_item": np.array([0])}, "first_item of shape (1,)"),
        ({"positive": "first", "first_item": np.array([2, 1])}, "first_item[0] = 2, not relevant"),
        ({"positive": "first", "first_item": np.array([0, -1])}, "first_item[1] = -1, not relevant"),
        ({"negatives": 0}, "negatives = 0"),
    ],
)
def test_sampled_refuses_bad_input(options, says):
    with pytest.raises(InputError) as caught:
        sampled(np.zeros((2, 4)), np.zeros((2, 4)), np.eye(2, 4), **{"negatives": 2} | options)
    assert says in caught.value.got


# -- concentration -----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_gini_is_half_the_relative_mean_difference(x):
    # Catches: 1-based ranks mixed with 0-based ones, descending order (sign).
    x = np.asarray(x)
    total = x.sum()
    slow = 0.0 if total == 0 else np.abs(x[:, None] - x).sum() / (2 * x.size * total)
    assert gini(x) == pytest.approx(slow, abs=1e-9)
    assert 0 <= gini(x) <= 1 - 1 / x.size + 1e-12


def test_gini_and_coverage_at_their_ends():
    assert gini([3, 3, 3]) == 0
    assert gini([0, 0, 0]) == 0
    assert gini([0, 0, 0, 8]) == pytest.approx(0.75)
    assert gini([0, 0, 0, 1e308]) == pytest.approx(0.75)
    assert coverage([0, 2, 0.5, 0]) == 0.5


@pytest.mark.parametrize("bad", [[], [1, -1], [1, np.nan], [-1e-9, 1]])
@pytest.mark.parametrize("function", [gini, coverage])
def test_gini_and_coverage_refuse_what_has_no_answer(function, bad):
    with pytest.raises(InputError):
        function(bad)
