"""EASE and item neighbours against slow versions, and whom a second model serves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from upright.contract import InputError
from upright.experiment.folders import ArmRun
from upright.models import linear
from upright.models.linear import TwoModels, ease, inverse_root, item_neighbours, second_model
from upright.tasks.next_item import NextItem


def world(seed=0, users=30, items=8, share=0.4):
    return sparse.csr_array((np.random.default_rng(seed).random((users, items)) < share).astype(np.float64))


def slow_ease(dense, lam, weights):
    """A ridge regression of each item on the others: the diagonal is zero because the item is not among them."""
    found = np.zeros((dense.shape[1],) * 2)
    for j in range(dense.shape[1]):
        rest = np.delete(np.arange(dense.shape[1]), j)
        x, w = dense[:, rest], np.diag(weights)
        found[rest, j] = np.linalg.solve(x.T @ w @ x + lam * np.eye(len(rest)), x.T @ w @ dense[:, j])
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_ease_is_a_ridge_regression_of_each_item_on_the_others(weighted):
    # catches: a diagonal that is not zero, rows and columns mixed up, weights on one side only
    seen = world()
    weights = np.random.default_rng(1).random(30) if weighted else None
    expected = slow_ease(seen.toarray(), 3.0, np.ones(30) if weights is None else weights)
    found = ease(seen, 3.0, weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert not np.diag(found).any()


def test_a_weight_of_three_is_three_users():
    # catches: weights that are squared, or a lambda whose meaning changes with them
    seen, times = world(), np.random.default_rng(2).integers(0, 4, 30)
    repeated = sparse.csr_array(np.repeat(seen.toarray(), times, axis=0))
    np.testing.assert_allclose(ease(seen, 2.0, times), ease(repeated, 2.0), atol=1e-6)


def test_too_many_items_are_refused_before_memory_is_taken():
    # catches: a killed process
    wide = sparse.csr_array((2, linear.MOST_ITEMS + 1))
    for build in (lambda: ease(wide, 1.0), lambda: item_neighbours(wide, 5)):
        with pytest.raises(InputError, match="GB"):
            build()


def test_item_neighbours_are_cosines_of_the_most_similar():
    # catches: neighbours by rows for columns, an item that recommends itself
    seen = world(users=40, items=6)
    dense, found = seen.toarray(), item_neighbours(seen, 2, shrinkage=1.5)
    for j in range(6):
        size = dense.sum(0)
        cosine = dense.T @ dense[:, j] / (np.sqrt(size * size[j]) + 1.5)
        cosine[j] = 0.0
        cosine[cosine < np.sort(cosine)[-2]] = 0.0
        np.testing.assert_allclose(found[:, j], cosine, atol=1e-6)
    assert (item_neighbours(seen, 99) > 0).sum() == (dense.T @ dense > 0).sum() - 6


def test_inverse_roots_keep_the_number_of_interactions():
    # catches: a lambda that means something else with weights
    count = np.array([0, 1, 4, 100])
    found = inverse_root(count)
    assert found @ count == pytest.approx(105)
    assert found[0] == 0
    assert found[1:] / found[3] == pytest.approx([10, 5, 1])


def test_each_user_is_served_by_one_model():
    def base(users):
        return np.stack([users, users], 1).astype(np.float64)

    def other(users):
        return -np.stack([users, users], 1).astype(np.float64)

    model = TwoModels(base, other, np.array([True, False, True, False]))
    assert model.scores(np.array([3, 0, 1, 2]))[:, 0].tolist() == [3, 0, 1, -2]
    assert model.scores(np.array([1]))[:, 0].tolist() == [1]


def served(kind, seed=0, **changes):
    task, run = NextItem.tiny(**changes), ArmRun(None, seed, kind)
    base = task.model(run)
    return task, run, base, second_model(task, base, kind, run)


def test_the_strength_is_the_best_on_validation_of_whom_it_serves():
    # catches: a strength chosen on everybody, or on test
    task, run, base, _ = served("weighted")
    inactive, value = task.groups != "advantaged", {}
    for lam in (30, 100, 300, 1000, 3000):
        items = ease(task.seen, lam, inverse_root(task.seen.sum(1)))
        tried = TwoModels(task.scores_of(base), lambda users, b=items: task.seen[users] @ b, inactive)
        value[lam] = np.nanmean(task.score(tried, "valid", run).values["ndcg@10"][inactive])
    assert run.notes["strength"] == max(value, key=value.__getitem__)
    assert min(value.values()) < max(value.values())


@pytest.mark.parametrize("kind", ["weighted", "plain", "item_knn", "stranger", "everybody"])
def test_active_users_keep_the_lists_of_the_base_model(kind):
    # catches: a second model that pays for inactive users with active ones, or that changes nobody
    task, _, base, model = served(kind)
    users = np.arange(task.n_users)
    same = (model.scores(users) == task.scores_of(base)(users)).all(1)
    active = task.groups == "advantaged"
    assert same[active].all() != (kind == "everybody")
    assert not same[~active].any()


def test_a_stranger_is_another_inactive_user_and_follows_the_seed():
    # catches: a placebo that leaves some users their own list, or hands out an active user's
    task, _, _, own = served("weighted")
    inactive = np.flatnonzero(task.groups != "advantaged")
    lists = own.scores(inactive)
    picks = []
    for seed in (0, 1):
        strange = served("stranger", seed)[3].scores(inactive)
        near = np.abs(strange[:, None] - lists[None]).max(2)  # (T, T)
        assert (near.min(1) < 1e-6).all()
        assert (np.diag(near) > 1e-6).all()
        picks.append(near.argmin(1).tolist())
    assert picks[0] != picks[1]


def test_nobody_to_serve_is_said():
    # catches: a rival that is the baseline in silence
    task, run, base, model = served("weighted", group_share=1.0)
    assert "the second model serves nobody" in run.warnings[0]
    users = np.arange(task.n_users)
    assert (model.scores(users) == task.scores_of(base)(users)).all()
