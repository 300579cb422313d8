"""In-UCDS: clusters against a dense slow version, the pull against loops, controls, leaks, deviations, bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse

from replicator import replicator
from upright.contract import InputError, spec_of
from upright.data.interactions import Interactions, synthetic
from upright.experiment.folders import ArmRun
from upright.maths import dominant_sets as ds
from upright.methods import in_ucds
from upright.methods.in_ucds import (
    ConstrainedDominantSets,
    InUCDSConfig,
    UserPullLoss,
    official_neighbours,
    similarities,
)
from upright.recommendation import pairs
from upright.tasks.next_item import NextItem, NextItemConfig, activity_groups, activity_score

TINY = dict(spec_of(in_ucds.run).tiny) | {"epochs": 2, "check_every": 1}


def world(seed=0, users=20, items=30, share=0.25, common=False):
    rng = np.random.default_rng(seed)
    seen = rng.random((users, items)) < share
    seen[:, 0] |= common  # an item that everybody has makes every affinity positive
    order = rng.permutation(users)
    return sparse.csr_array(seen.astype(np.float64)), order[: users // 2], order[users // 2 :]


def slow_similarity(seen, a, b, kind, shrinkage):
    mine, yours = set(np.flatnonzero(seen[a])), set(np.flatnonzero(seen[b]))
    both = len(mine & yours)
    if not both or kind == "count":
        return float(both)
    size = (len(mine) * len(yours)) ** 0.5 if kind == "cosine" else len(mine | yours)
    return both / (size + shrinkage)


def train(task, arm="in_ucds", **settings):
    return in_ucds.run(task, InUCDSConfig(**(TINY | settings)), ArmRun(None, 0, arm))


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# -- similarities and sets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "jaccard", "count"])
def test_fit_equals_a_dense_slow_version(kind):
    # loops over sets for the similarity, replicator dynamics for the set: catches a wrong denominator, a mixed-up
    # side, a missing zero diagonal, and rows written to the wrong user
    seen, targets, pool = world(share=0.3)
    dense = seen.toarray()
    sets = ConstrainedDominantSets(kind, 1.5, shrinkage=2.0).fit(seen, targets, pool)
    inside = np.array([[slow_similarity(dense, a, b, kind, 2.0) if a != b else 0.0 for b in pool] for a in pool])
    alpha = 1.5 * np.linalg.eigvalsh(inside)[-1]
    expected = np.zeros((20, 20))
    for t in targets:
        s = np.array([slow_similarity(dense, t, v, kind, 2.0) for v in pool])
        _, weights = replicator(inside, s, alpha, tol=1e-14)
        expected[t, pool] = weights / weights.sum()
    np.testing.assert_allclose(sets.weights_.toarray(), expected, atol=1e-7)
    assert sets.diagnostics_["alpha"] == pytest.approx(alpha)
    assert sets.diagnostics_["kkt_residual"] <= 1e-12
    assert sets.diagnostics_["condition_holds"]
    assert sets.diagnostics_["x_t_min"] >= 0.5


def test_repeated_and_weighted_interactions_count_once():
    seen, targets, pool = world()
    plain = ConstrainedDominantSets().fit(seen, targets, pool).weights_.toarray()
    scaled = seen.copy()
    scaled.data *= 7.0
    np.testing.assert_array_equal(ConstrainedDominantSets().fit(scaled, targets, pool).weights_.toarray(), plain)
    assert scaled.data.max() == 7.0  # the caller's matrix is left alone


def test_lists_longer_than_the_pool_give_the_shared_answer():
    # with every affinity positive a list holds the whole pool, so that alpha agrees
    seen, targets, pool = world(common=True)
    shared = ConstrainedDominantSets().fit(seen, targets, pool)
    capped = ConstrainedDominantSets(candidates=999).fit(seen, targets, pool)
    np.testing.assert_allclose(capped.weights_.toarray(), shared.weights_.toarray(), atol=1e-12)
    assert capped.diagnostics_["x_t_min"] == pytest.approx(shared.diagnostics_["x_t_min"])


def test_lists_hold_the_most_similar_users():
    seen, targets, pool = world(common=True)
    weights = ConstrainedDominantSets(candidates=3).fit(seen, targets, pool).weights_
    to_pool = similarities(seen[targets], seen[pool]).toarray()
    assert np.diff(weights.indptr).max() <= 3
    for t, s in zip(targets, to_pool, strict=True):
        chosen = np.flatnonzero(np.isin(pool, weights.indices[weights.indptr[t] : weights.indptr[t + 1]]))
        assert s[chosen].min() >= np.sort(s)[-3] - 1e-15


def test_rows_sum_to_one_and_strangers_get_nobody():
    seen, targets, pool = world()
    lonely = seen.toarray()
    lonely[targets[0]] = 0.0
    sets = ConstrainedDominantSets().fit(sparse.csr_array(lonely), targets, pool)
    total = sets.weights_.sum(1)
    np.testing.assert_allclose(total[targets[1:]], 1.0, atol=1e-12)
    assert total[targets[0]] == 0.0
    assert not total[pool].any()
    assert np.isfinite(sets.weights_.data).all()
    assert sets.diagnostics_["targets_without_neighbours"] == 1


def test_a_pool_without_links_and_an_empty_pool():
    seen, targets = sparse.csr_array(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])), np.array([0])
    alone = ConstrainedDominantSets().fit(seen, targets, np.array([1, 2])).weights_.toarray()
    np.testing.assert_allclose(alone[0], [0.0, 0.5, 0.5])
    for options in ({}, {"candidates": 4}):
        assert ConstrainedDominantSets(**options).fit(seen, targets, np.array([], dtype=int)).weights_.nnz == 0


@pytest.mark.parametrize(
    ("targets", "pool"),
    [([0, 1], [1, 2]), ([0, 0], [1]), ([0], [99]), ([-1], [1])],
    ids=["both", "twice", "high", "low"],
)
def test_users_out_of_range_or_on_both_sides_are_refused(targets, pool):
    with pytest.raises(InputError, match="repeated or out of range"):
        ConstrainedDominantSets().fit(world()[0], np.array(targets), np.array(pool))


def test_alpha_not_above_the_eigenvalue_is_refused():
    with pytest.raises(InputError, match="x the largest eigenvalue"):
        ConstrainedDominantSets(alpha=1.0).fit(*world())


# -- the pull -------------------------------------------------------------------------------------------------------


def slow_pull(weights, table, users, lam):
    """The formula of the docstring with loops."""
    own = [t for t in sorted(set(users)) if weights[t].sum() > 0]
    total = sum(w * ((table[t] - table[v]) ** 2).sum() for t in own for v, w in enumerate(weights[t]))
    return lam * total / len(own) if own else 0.0


def random_weights(seed, users=12, nnz=3):
    rng = np.random.default_rng(seed)
    weights = np.zeros((users, users))
    for t in range(users // 2):
        weights[t, rng.choice(np.arange(users // 2, users), nnz, replace=False)] = rng.random(nnz)
    return weights


@pytest.mark.parametrize("dense", [True, False])
def test_pull_and_its_gradient_equal_the_loops(dense, monkeypatch):
    # repeats count once, users without a row not at all; the gradient of a target is 2 lam / b sum_v W_tv (e_t - e_v)
    weights = random_weights(0)
    pull = UserPullLoss(sparse.csr_array(weights), 0.7)
    if not dense:
        pull._dense = None  # the sparse product of large pools
    table = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    users = torch.tensor([3, 0, 3, 3, 9, 0, 5])
    loss = pull(table, users)
    values = table.detach().numpy()
    assert loss.item() == pytest.approx(slow_pull(weights, values, users.tolist(), 0.7), rel=1e-12)
    loss.backward()
    expected = np.zeros((12, 5))
    for t in (0, 3, 5):
        expected[t] = 2 * 0.7 / 3 * (weights[t][:, None] * (values[t] - values)).sum(0)
    np.testing.assert_allclose(table.grad.numpy(), expected, atol=1e-13)
    assert not table.grad[6:].any()  # neighbours do not move


def test_neighbours_move_when_the_gradient_is_not_stopped():
    table = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    UserPullLoss(sparse.csr_array(random_weights(0)), stop_grad=False)(table, torch.arange(6)).backward()
    np.testing.assert_allclose(table.grad.sum(0).numpy(), 0.0, atol=1e-12)  # a pull between two moves no centre
    assert table.grad[6:].any()


def test_pull_to_zero_is_the_squared_norm_and_needs_no_neighbours():
    table = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    pull = UserPullLoss(sparse.csr_array((6, 6)), 0.5, zero_targets=np.array([1, 2]))
    loss = pull(table, torch.tensor([0, 1, 1, 2, 5]))
    assert loss.item() == pytest.approx(0.5 * table[1:3].square().sum().item() / 2)
    loss.backward()
    np.testing.assert_allclose(table.grad[1:3].numpy(), 0.5 * table[1:3].detach().numpy(), atol=1e-14)
    assert not table.grad[[0, 3, 4, 5]].any()


def test_no_target_or_no_weight_of_the_pull_is_exactly_zero():
    table = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weights = sparse.csr_array(random_weights(0))
    for pull, users in ((UserPullLoss(weights, 1.0), [7, 8]), (UserPullLoss(weights, 0.0), [0, 1])):
        table.grad = None
        loss = pull(table, torch.tensor(users))
        loss.backward()
        assert loss.item() == 0.0
        assert not table.grad.any()


# -- the method -----------------------------------------------------------------------------------------------------


def test_lam_zero_is_the_backbone_bit_by_bit_and_a_positive_one_is_not():
    # the baseline arm must not depend on the clusters; the pull must act at all
    plain = train(NextItem.tiny(), lam=0.0, neighbours="zero")
    assert same_weights(train(NextItem.tiny(), lam=0.0), plain)
    assert not same_weights(train(NextItem.tiny(), lam=0.1), plain)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_everybody_in_one_group_warns_and_equals_the_baseline(share):
    run = ArmRun(None, 0, "in_ucds")
    task = NextItem.tiny(group_share=share)
    model = in_ucds.run(task, InUCDSConfig(**TINY), run)
    assert len(run.warnings) == 1
    assert "every user is in one group" in run.warnings[0]
    assert all(line["pull"] == 0.0 for line in run.metrics)
    assert same_weights(model, train(task, lam=0.0))


def test_pull_brings_targets_closer_to_their_neighbours():
    # catches a flipped sign
    task = NextItem.tiny()
    targets, pool = np.flatnonzero(task.groups != "advantaged"), np.flatnonzero(task.groups == "advantaged")
    weights = ConstrainedDominantSets().fit(task.seen, targets, pool).weights_
    distance = {}
    for lam in (0.0, 1.0):
        table = train(task, lam=lam, epochs=6).tables()[0].detach()
        distance[lam] = UserPullLoss(weights)(table, torch.from_numpy(targets)).item()
    assert distance[1.0] < 0.8 * distance[0.0]


@pytest.mark.parametrize("neighbours", ["dominant_set", "top_k", "similarity", "random", "zero"])
def test_every_kind_of_neighbours_pulls_targets_to_advantaged_users_with_one_mass(neighbours):
    # controls must differ from the remedy in whom they pull to, and in nothing else
    task, run = NextItem.tiny(), ArmRun(None, 0, "x")
    weights, zero = in_ucds.neighbour_weights(task, InUCDSConfig(neighbours=neighbours, neighbour_mass=2.5), run)
    targets = np.flatnonzero(task.groups != "advantaged")
    if neighbours == "zero":
        assert weights.nnz == 0
        assert zero.tolist() == targets.tolist()
        return
    assert zero is None
    assert set(task.groups[weights.indices]) == {"advantaged"}
    np.testing.assert_allclose(weights.sum(1)[targets], 2.5, atol=1e-12)
    assert weights.sum() == pytest.approx(2.5 * len(targets))


@pytest.mark.parametrize("neighbours", ["random", "zero"])
def test_placebos_leave_out_who_has_no_neighbours(neighbours):
    # catches a placebo that moves users whom the remedy leaves alone
    task = NextItem.tiny()
    lonely = np.flatnonzero(task.groups != "advantaged")[0]
    seen = task.seen.toarray()
    seen[lonely] = 0.0
    task.seen = sparse.csr_array(seen)
    weights, zero = in_ucds.neighbour_weights(task, InUCDSConfig(neighbours=neighbours), ArmRun(None, 0, "x"))
    assert weights.sum(1)[lonely] == 0
    assert zero is None or lonely not in zero


def test_random_neighbours_take_over_the_weights_of_the_set_and_follow_the_seed():
    # catches a placebo that is harder or lighter than the remedy, and one whose picks never change
    task, config = NextItem.tiny(), InUCDSConfig(neighbours="random")
    own = in_ucds.neighbour_weights(task, InUCDSConfig(), ArmRun(None, 0, "in_ucds"))[0]
    first, again, other = (
        in_ucds.neighbour_weights(task, config, ArmRun(None, seed, "random"))[0].toarray() for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()
    assert (first != own.toarray()).any()
    np.testing.assert_allclose(np.sort(first, axis=1), np.sort(own.toarray(), axis=1), atol=1e-15)


def test_top_k_is_most_similar_and_soft_similarity_is_in_proportion():
    task = NextItem.tiny()
    pool = np.flatnonzero(task.groups == "advantaged")
    hard, soft = (
        in_ucds.neighbour_weights(task, InUCDSConfig(neighbours=kind, top_k=2), ArmRun(None, 0, kind))[0]
        for kind in ("top_k", "similarity")
    )
    for t in np.flatnonzero(task.groups != "advantaged"):
        s = similarities(task.seen[[t]], task.seen[pool]).toarray()[0]
        chosen = np.isin(pool, hard.indices[hard.indptr[t] : hard.indptr[t + 1]])
        assert chosen.sum() == 2
        assert s[chosen].min() >= s[~chosen].max()
        np.testing.assert_allclose(soft.toarray()[t, pool], s / s.sum(), atol=1e-14)


def test_official_mode_says_what_it_ignores():
    # catches a setting that is dropped in silence
    task = NextItem.tiny()
    with pytest.raises(InputError, match="mode='official' with alpha"):
        in_ucds.neighbour_weights(task, InUCDSConfig(mode="official", alpha=2.0), ArmRun(None, 0, "in_ucds"))
    run = ArmRun(None, 0, "in_ucds")
    in_ucds.neighbour_weights(task, InUCDSConfig(mode="official", top_k=5, shrinkage=1.0), run)
    assert "shrinkage, top_k shape the controls alone" in run.warnings[0]


def permuted_test(split, seed=0):
    """The same split with other test items: drawn among items outside each user's training and validation rows."""
    rng = np.random.default_rng(seed)
    taken = {(u, i) for part in (split.train, split.valid) for u, i in zip(part.user, part.item, strict=True)}
    item = split.test.item.copy()
    for row, u in enumerate(split.test.user):
        free = [i for i in range(split.train.n_items) if (u, i) not in taken]
        item[row] = rng.choice(free)
        taken.add((u, item[row]))
    return dataclasses.replace(split, test=dataclasses.replace(split.test, item=item))


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_no_test_item_reaches_clusters_or_training(mode):
    # D2: the published code feeds test interactions into the similarity
    split = synthetic(seed=0)
    config = NextItem.tiny().config
    tasks = [NextItem(s, config) for s in (split, permuted_test(split))]
    assert (tasks[0]._test.item != tasks[1]._test.item).any()
    first, second = (in_ucds.neighbour_weights(t, InUCDSConfig(mode=mode), ArmRun(None, 0, "x"))[0] for t in tasks)
    assert (first.toarray() == second.toarray()).all()
    assert same_weights(*(train(t, mode=mode) for t in tasks))


def test_test_split_stays_closed_inside_a_method():
    task = NextItem.tiny()
    model = train(task)
    with pytest.raises(InputError, match="test split inside a method"):
        task.score(model, "test", ArmRun(None, 0, "x"))
    task.open_test()
    assert np.nanmean(task.score(model, "test", ArmRun(None, 0, "x")).values["ndcg@10"]) > 0


# -- deviations -----------------------------------------------------------------------------------------------------


def slow_official(s, pool):
    """The published five steps, with loops."""
    n = len(s)
    b = np.zeros((n + 1, n + 1))
    for i in range(n):
        b[0, i + 1] = b[i + 1, 0] = s[i]
        for j in range(n):
            b[i + 1, j + 1] = pool[i, j]
    b /= b.max()
    for i in range(1, n + 1):
        b[i, i] = -1.1 * max(0.0, 1e-3)
    x = np.array([1.0, *[1e-6] * n])
    for _ in range(5):
        x = np.array([x[i] * sum(b[i, j] * x[j] for j in range(n + 1)) for i in range(n + 1)])
        x = x / np.sqrt((x**2).sum())
    return set(np.argsort(-x[1:], kind="stable")[:3].tolist())


def counts():
    task = NextItem.tiny()
    targets, pool = np.flatnonzero(task.groups != "advantaged"), np.flatnonzero(task.groups == "advantaged")
    inside = similarities(task.seen[pool], task.seen[pool], "count").toarray()
    np.fill_diagonal(inside, 0.0)
    return similarities(task.seen[targets], task.seen[pool], "count").toarray(), inside


def test_d1_official_neighbours_follow_the_published_steps_and_not_the_theorem():
    to_pool, inside = counts()
    picks = official_neighbours(to_pool, inside)
    assert [set(p) for p in picks.tolist()] == [slow_official(s, inside) for s in to_pool]
    alpha = 1.05 * ds.row_sum_bound(inside)
    exact = np.argsort(-ds.solve_pool(ds.PoolFactor(inside, alpha), to_pool).weights, axis=1)[:, :3]
    assert any(set(a) != set(b) for a, b in zip(picks.tolist(), exact.tolist(), strict=True))
    run = ArmRun(None, 0, "x")
    in_ucds.neighbour_weights(NextItem.tiny(), InUCDSConfig(mode="official"), run)
    assert run.notes["condition_holds"] is False
    in_ucds.neighbour_weights(NextItem.tiny(), InUCDSConfig(), run)
    assert run.notes["condition_holds"] is True


def test_d3_the_similarity_matters():
    task = NextItem.tiny()
    weights = {
        kind: in_ucds.neighbour_weights(task, InUCDSConfig(similarity=kind), ArmRun(None, 0, "x"))[0].toarray()
        for kind in ("cosine", "jaccard", "count")
    }
    assert np.abs(weights["cosine"] - weights["count"]).max() > 1e-3
    assert np.abs(weights["cosine"] - weights["jaccard"]).max() > 1e-3


def test_d4_soft_sets_three_largest_and_three_hard_ones():
    task = NextItem.tiny()
    soft, three, hard = (
        in_ucds.neighbour_weights(task, InUCDSConfig(**c), ArmRun(None, 0, "x"))[0]
        for c in ({}, {"top_k": 3}, {"mode": "official"})
    )
    targets = np.flatnonzero(task.groups != "advantaged")
    assert np.diff(soft.indptr)[targets].max() > 3
    for weights in (three, hard):
        assert set(np.diff(weights.indptr)[targets]) == {3}
        np.testing.assert_allclose(weights.sum(1)[targets], 1.0, atol=1e-12)
    np.testing.assert_allclose(hard.data, 1 / 3)
    assert np.ptp(three.data) > 0.01
    dense = soft.toarray()
    for t in targets:  # the three largest of the whole set
        kept = three.indices[three.indptr[t] : three.indptr[t + 1]]
        assert dense[t, kept].min() >= np.sort(dense[t])[-3]


def test_d5_the_pull_is_a_mean_over_the_batch():
    # twice the users with the same distances: the published sum doubles, the mean does not
    weights = np.zeros((4, 4))
    weights[[0, 1], 2] = 1.0
    table = torch.tensor([[1.0], [1.0], [0.0], [5.0]], dtype=torch.float64)
    pull = UserPullLoss(sparse.csr_array(weights))
    assert pull(table, torch.tensor([0])).item() == pull(table, torch.tensor([0, 1])).item() == 1.0


def test_d6_negatives_are_fresh_each_epoch_and_training_stops_on_validation(monkeypatch):
    drawn, real = [], pairs.draw_negatives

    def spy(*args):
        drawn.append(real(*args))
        return drawn[-1]

    monkeypatch.setattr(pairs, "draw_negatives", spy)
    task, run = NextItem.tiny(), ArmRun(None, 0, "x")
    # a step too small to improve: the first check is the best one, and patience ends the run after two more
    in_ucds.run(task, InUCDSConfig(**TINY | {"epochs": 50, "patience": 2, "learning_rate": 1e-12}), run)
    assert len(drawn) == 3
    assert (drawn[0] != drawn[1]).any()
    assert not task.seen.toarray()[task.train.user, drawn[0][:, 0]].any()
    assert run.notes["converged"]
    assert run.notes["best_epoch"] == 1


# -- groups ---------------------------------------------------------------------------------------------------------


def log(user, value, time=None, n_users=4):
    user = np.array(user)
    ids = tuple(str(i) for i in range(n_users)), tuple(str(i) for i in range(len(user)))
    when = None if time is None else np.array(time)
    return Interactions(user, np.arange(len(user)), np.array(value, dtype=float), when, n_users, len(user), *ids)


def test_activity_is_continuous_and_follows_its_rule():
    rows = log([0, 0, 1, 2, 2, 2], [1.5, 2.25, 9.0, 1, 1, 1], [5, 7, 1, 2, 3, 30])
    assert activity_score(rows, "value_sum").tolist() == [3.75, 9.0, 3.0, 0.0]
    assert activity_score(rows, "spend").tolist() == [3.75, 9.0, 3.0, 0.0]
    assert activity_score(rows, "count").tolist() == [2.0, 1.0, 3.0, 0.0]
    assert activity_score(rows, "recency").tolist() == [7.0, 1.0, 30.0, -np.inf]
    with pytest.raises(InputError, match="without a time column"):
        activity_score(log([0], [1.0]), "recency")


@pytest.mark.parametrize(("share", "top"), [(0.0, []), (0.25, [1]), (0.5, [1, 0]), (1.0, [0, 1, 2, 3])])
def test_groups_are_the_most_active_share_with_ties_to_the_lower_id(share, top):
    label = activity_groups(np.array([3.0, 9.0, 3.0, 0.0]), share)
    assert np.flatnonzero(label == "advantaged").tolist() == sorted(top)
    assert set(label) <= {"advantaged", "disadvantaged"}


@pytest.mark.parametrize("settings", [{"group_share": 1.5}, {"group_share": -0.1}, {"group_rule": "age"}])
def test_bad_group_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NextItemConfig(**settings)


@pytest.mark.parametrize("settings", [{"lam": -1.0}, {"alpha": 1.0}, {"neighbours": "best"}])
def test_bad_method_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        InUCDSConfig(**settings)


def test_trimmed_sets_are_rescaled() -> None:
    # catches: keeping k weights without rescaling, which weakens the pull in silence
    rng = np.random.default_rng(3)
    seen = sparse.csr_array((rng.random((40, 60)) < 0.3).astype(np.float32))
    sets = ConstrainedDominantSets(k=3).fit(seen, np.arange(10, 40), np.arange(10))
    total = sets.weights_.sum(1)
    assert np.diff(sets.weights_.indptr).max() == 3
    np.testing.assert_allclose(total[total > 0], 1.0, rtol=1e-12)


def test_candidates_refuse_an_alpha_that_is_not_above_one() -> None:
    # catches: clamping a bad alpha in silence
    seen = sparse.csr_array(np.ones((6, 4), dtype=np.float32))
    with pytest.raises(InputError, match="alpha"):
        ConstrainedDominantSets(alpha=0.5, candidates=2).fit(seen, np.arange(3, 6), np.arange(3))


def test_zero_targets_ignore_their_weights_and_take_the_mass() -> None:
    # catches: the weights of a user that is pulled to the origin leaking into its loss
    weights = sparse.csr_array(np.array([[0.0, 2.0], [0.0, 0.0]]))
    table = torch.tensor([[1.0, 0.0], [5.0, 5.0]], dtype=torch.float64)
    pull = UserPullLoss(weights, 1.0, zero_targets=np.array([0]), zero_mass=3.0)
    assert float(pull(table, torch.tensor([0]))) == pytest.approx(3.0)
