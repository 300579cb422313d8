"""Planted defects of In-UCDS and of its evaluation: each check passes on the real code and is red with the defect."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import linalg, sparse

from replicator import replicator
from upright.data.interactions import synthetic
from upright.experiment.folders import ArmRun
from upright.maths import dominant_sets as ds
from upright.methods import in_ucds
from upright.metrics import ranking
from upright.models import linear
from upright.tasks.next_item import NextItem


def random_pool(seed, n=16, targets=8):
    rng = np.random.default_rng(seed)
    pool = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.5), 1)
    return pool + pool.T, rng.random((targets, n)) ** 2 * 0.3


# -- checks ---------------------------------------------------------------------------------------------------------


def sets_hold_their_target():
    for seed in range(3):
        pool, s = random_pool(seed)
        alpha = in_ucds.ConstrainedDominantSets()._alpha(ds.largest_eigenvalue(pool), ds.row_sum_bound(pool))
        for row in s:
            assert replicator(pool, row, alpha, max_iter=3_000)[0] >= 0.5 - 1e-6


def conditions_hold():
    for seed in range(20):
        pool, s = random_pool(seed)
        alpha = 1.02 * ds.largest_eigenvalue(pool)
        found = ds.solve_pool(ds.PoolFactor(pool, alpha), s)
        assert ds.kkt_residual(pool, alpha, s, found).max() <= 1e-12


def no_test_item_reaches_the_clusters():
    split = synthetic(seed=0)
    other = dataclasses.replace(split.test, item=split.test.item[::-1].copy())
    clusters = []
    for part in (split.test, other):
        task = NextItem(dataclasses.replace(split, test=part), NextItem.tiny().config)
        clusters.append(in_ucds.neighbour_weights(task, in_ucds.InUCDSConfig(), ArmRun(None, 0, "x"))[0].toarray())
    assert (clusters[0] == clusters[1]).all()


def a_step_of_the_pull_brings_users_closer():
    weights = sparse.csr_array(np.array([[0.0, 0.0, 0.7, 0.3], [0.0, 0.0, 0.5, 0.5], [0.0] * 4, [0.0] * 4]))
    table = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    in_ucds.UserPullLoss(weights)(table, torch.arange(4)).backward()
    values = table.detach().numpy()
    new = values - 0.1 * table.grad.numpy()
    centre = weights.toarray()[:2] @ values
    assert (np.linalg.norm(new[:2] - centre, axis=1) < np.linalg.norm(values[:2] - centre, axis=1)).all()


def a_model_that_ranks_test_items_next_to_training_items_is_perfect():
    seen, relevant = np.zeros((4, 20)), np.zeros((4, 20))
    seen[:, :5], relevant[:, 5:8] = 1.0, 1.0
    scores = 2.0 * seen + relevant
    values = ranking.evaluate_full(
        lambda users: scores[users], np.arange(4), sparse.csr_array(seen), sparse.csr_array(relevant), ks=(5,)
    )
    assert values["ndcg@5"].tolist() == pytest.approx([1.0] * 4)


def a_model_without_opinion_is_worth_a_random_list():
    relevant = np.zeros((3, 40))
    relevant[:, [3, 17]] = 1.0
    values = ranking.evaluate_full(
        lambda users: np.zeros((len(users), 40)),
        np.arange(3),
        sparse.csr_array((3, 40)),
        sparse.csr_array(relevant),
        ks=(10,),
    )
    assert values["recall@10"].tolist() == pytest.approx([10 / 40] * 3)


def ease_does_not_recommend_an_item_for_itself():
    # an item that only its own users have says nothing of another
    seen = sparse.csr_array(np.kron(np.eye(2), np.ones((6, 2))))
    for weights in (None, np.full(12, 3.0)):
        found = linear.ease(seen, 1.0, weights)
        assert not np.diag(found).any()
        assert found[0, 1] > 0.5
        assert abs(found[0, 2]) < 1e-6


def no_test_item_reaches_the_second_model():
    split = synthetic(seed=0)
    other = dataclasses.replace(split.test, item=split.test.item[::-1].copy())
    scores = []
    for part in (split.test, other):
        task, run = NextItem(dataclasses.replace(split, test=part), NextItem.tiny().config), ArmRun(None, 0, "x")
        model = linear.second_model(task, task.model(run), "weighted", run)
        scores.append(model.scores(np.arange(task.n_users)))
    assert (scores[0] == scores[1]).all()


# -- defects --------------------------------------------------------------------------------------------------------


def alpha_below_the_largest_eigenvalue(patch):
    patch.setattr(in_ucds.ConstrainedDominantSets, "_alpha", lambda self, top, bound: 0.5 * top)


def drops_are_final(patch):
    def without_admission(factor, s, u, c, support, tol, max_rounds, patience=10):
        on = np.ones(len(s), dtype=bool)
        while True:
            both = linalg.solve(factor.matrix[np.ix_(on, on)], np.c_[s[on], np.ones(on.sum())])
            c = s[on] @ both[:, 0] / (1 + s[on] @ both[:, 1])
            v = np.zeros(len(s))
            v[on] = both[:, 0] - c * both[:, 1]
            if (v >= -tol).all():
                return v, c, 2
            on &= v >= 0

    patch.setattr(ds, "_active_set", without_admission)


def items_of_the_test_part_in_the_similarity(patch):
    real = in_ucds.neighbour_weights

    def leaking(task, config, run):
        task.seen = (task.seen + task._test.csr()).tocsr()
        return real(task, config, run)

    patch.setattr(in_ucds, "neighbour_weights", leaking)


def push_instead_of_pull(patch):
    real = in_ucds.UserPullLoss.forward
    patch.setattr(in_ucds.UserPullLoss, "forward", lambda self, table, users: -real(self, table, users))


def training_items_in_the_lists(patch):
    real = ranking._chunks

    def unmasked(scores_of, users, seen, relevant, chunk):
        return real(scores_of, users, sparse.csr_array(seen.shape), relevant, chunk)

    patch.setattr(ranking, "_chunks", unmasked)


def ties_in_favour_of_the_model(patch):
    real = ranking.ranks_by_expectation
    patch.setattr(ranking, "ranks_by_expectation", lambda scores, wanted, k: real(scores + 1e-9 * wanted, wanted, k))


def an_item_predicts_itself(patch):
    real = linear.ease
    patch.setattr(linear, "ease", lambda *own: real(*own) + np.eye(own[0].shape[1], dtype=np.float32))


def items_of_the_test_part_in_ease(patch):
    real = linear.second_model

    def leaking(task, base, kind, run):
        test, valid = task._test.csr(), task.valid.csr()
        task.seen = (task.seen + test - test.multiply(valid)).sign().tocsr()
        task.seen.eliminate_zeros()
        return real(task, base, kind, run)

    patch.setattr(linear, "second_model", leaking)


PAIRS = [
    (ease_does_not_recommend_an_item_for_itself, an_item_predicts_itself),
    (no_test_item_reaches_the_second_model, items_of_the_test_part_in_ease),
    (sets_hold_their_target, alpha_below_the_largest_eigenvalue),
    (conditions_hold, drops_are_final),
    (no_test_item_reaches_the_clusters, items_of_the_test_part_in_the_similarity),
    (a_step_of_the_pull_brings_users_closer, push_instead_of_pull),
    (a_model_that_ranks_test_items_next_to_training_items_is_perfect, training_items_in_the_lists),
    (a_model_without_opinion_is_worth_a_random_list, ties_in_favour_of_the_model),
]


def test_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
