"""The barycenter defence: exact cases, its gradient, who determines the maps, state, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression

from upright.contract import InputError, stream
from upright.maths import transport as ot
from upright.recommendation.defence import BarycenterDefense, codes_of
from upright.recommendation.maps import Eraser, pooled_gaussians

MAPS = ["free", "bures", "sliced", "mean"]
ALL = [*MAPS, "mmd"]


def points(seed, n, d):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def translates(n=40, d=4, far=3.0):
    """One cloud and its copy moved along the first axis, users mixed; (2 n, d), labels, which point, and half way."""
    cloud, shift = points(0, n, d), torch.zeros(d, dtype=torch.float64)
    shift[0] = far
    order = torch.from_numpy(np.random.default_rng(0).permutation(2 * n))
    table = torch.cat([cloud, cloud + shift])[order]
    labels, place = (order >= n).long().numpy(), (order % n).numpy()
    return table, labels, place, cloud + 0.5 * shift


def gaussians(sizes=(150, 90), d=3, seed=1):
    """Classes with unlike means and covariances; (sum of sizes, d) and labels."""
    parts = []
    for c, n in enumerate(sizes):
        mix = points(seed + 10 * c, d, d) + 0.5 * torch.eye(d, dtype=torch.float64)
        parts.append(points(seed + c, n, d) @ mix + 2.0 * c)
    return torch.cat(parts), np.repeat(np.arange(len(sizes)), sizes)


def defence(labels, method="mean", **options):
    return BarycenterDefense(labels, method=method, **({"sweeps": 20} if method == "free" else {}) | options)


def target_of(one):
    return one.state_dict()["target"]


# -- exact cases ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "slack"), [("mean", 1e-12), ("sliced", 1e-12), ("bures", 1e-7)])
def test_translates_of_one_cloud_are_moved_onto_each_other_exactly(method, slack):
    # catches a shift of the wrong sign or length, and a centre that is not half way
    table, labels, place, middle = translates()
    moved = defence(labels, method).transport(table)
    np.testing.assert_allclose(moved.numpy(), middle[place].numpy(), atol=slack)


def test_translates_meet_approximately_under_entropic_plans():
    # plans blur, so the two classes are compared with each other: catches potentials of one class used for another
    table, labels, place, middle = translates()
    moved = defence(labels, "free").transport(table)
    a, b = moved[labels == 0], moved[labels == 1]
    assert (a.mean(0) - b.mean(0)).norm() < 1e-3 * 3.0
    assert (moved.mean(0) - middle.mean(0)).norm() < 1e-3
    twin = a[np.argsort(place[labels == 0])] - b[np.argsort(place[labels == 1])]
    assert twin.square().sum(1).mean() < 0.02 * middle.var(0).sum()
    assert ((moved - middle[place]).square().sum(1).mean()) < 0.5 * middle.var(0).sum()  # no collapse to the mean


@pytest.mark.parametrize(("weights", "centre"), [("uniform", 1.0), ("proportional", 0.5)])
def test_uniform_weights_put_the_centre_half_way_whatever_the_sizes(weights, centre):
    # catches proportional weights as the default: the minority would pay the whole move
    table = torch.cat([points(0, 30, 2), points(1, 10, 2)])
    table[:30] -= table[:30].mean(0)
    table[30:] += torch.tensor([2.0, 0.0]) - table[30:].mean(0)
    moved = BarycenterDefense([0] * 30 + [1] * 10, method="mean", weights=weights).transport(table)
    np.testing.assert_allclose(moved[:30].mean(0).numpy(), [centre, 0.0], atol=1e-12)
    np.testing.assert_allclose(moved[30:].mean(0).numpy(), [centre, 0.0], atol=1e-12)
    assert BarycenterDefense([0, 0, 1, 1]).weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("method", MAPS)
def test_relabelling_classes_changes_nothing(method):
    # catches a map that is looked up by the name of the class; `free` starts from all points, so only their order turns
    table, labels = gaussians((40, 30, 20))
    names = np.array(["m", "z", "a"])[labels]
    first, second = (defence(some, method).transport(table) for some in (labels, names))
    slack = 2e-3 if method == "free" else 1e-8  # other order of sums, and of the inner iteration
    np.testing.assert_allclose(first.numpy(), second.numpy(), atol=slack)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("labels", [["a"] * 6, [None] * 6, ["a"] * 4 + [""] * 2])
def test_one_class_or_no_label_is_exactly_zero(method, labels):
    # catches a defence that pulls users to their own mean
    table = points(0, 6, 3).requires_grad_()
    one = BarycenterDefense(labels, method=method)
    loss = one.step(table, torch.arange(6))
    loss.backward()
    assert not one.active
    assert loss.item() == 0.0
    assert not table.grad.any()
    assert one.history == []
    assert torch.equal(one.transport(table), table.detach())


@pytest.mark.parametrize("method", MAPS)
def test_no_step_is_the_identity_and_a_whole_one_closes_the_distance_of_class_means(method):
    table, labels = gaussians()
    one = defence(labels, method)
    assert torch.equal(one.transport(table, step=0.0), table)
    before, after = ((t[labels == 0].mean(0) - t[labels == 1].mean(0)).norm() for t in (table, one.transport(table)))
    assert after < (5e-3 if method == "free" else 0.02 if method == "sliced" else 1e-10) * before


def test_half_a_step_is_half_way_and_the_type_of_the_table_is_kept():
    table, labels = gaussians()
    one = defence(labels)
    whole = one.transport(table)
    np.testing.assert_allclose(one.transport(table, 0.5).numpy(), 0.5 * (table + whole).numpy(), atol=1e-12)
    assert one.transport(table.float()).dtype == torch.float32
    assert not one.transport(table.clone().requires_grad_()).requires_grad


# -- the barycenter (2.7.6, 2.7.8) ----------------------------------------------------------------------------------


def sliced_w2(x, y, directions):
    """Mean squared distance of the step quantile functions along the directions, exact at the common levels."""
    levels = (np.arange(np.lcm(len(x), len(y))) + 0.5) / np.lcm(len(x), len(y))
    one, other = (np.quantile((z @ directions.T).numpy(), levels, axis=0, method="inverted_cdf") for z in (x, y))
    return float(np.square(one - other).mean())


@pytest.mark.parametrize(("method", "share"), [("bures", 0.02), ("sliced", 0.05), ("free", 0.02)])
def test_full_transport_makes_the_classes_alike_on_fitted_users(method, share):
    # catches a map to the wrong target and a target that differs by class; a translation alone leaves 0.2 and more
    table, labels = gaussians((200, 140))
    along = ot.random_directions(50, 3, torch.Generator().manual_seed(5), torch.float64)
    width = ot.median_bandwidths(table[labels == 0], table[labels == 1])

    def apart(x):
        a, b = x[labels == 0], x[labels == 1]
        return np.array([float(ot.mmd2(a, b, width)), sliced_w2(a, b, along)])

    moved = apart(defence(labels, method).transport(table)) / apart(table)
    assert (moved < share).all(), moved
    centred = table - torch.stack([table[labels == c].mean(0) for c in (0, 1)])[labels]
    assert apart(centred)[1] / apart(table)[1] > 0.1  # so the bound above tells maps from translations


def test_sliced_makes_the_distributions_along_its_own_directions_equal():
    # catches quantiles of one class read at the levels of another: sizes differ, so levels do
    table, labels = gaussians((300, 120))
    one = BarycenterDefense(labels, method="sliced", seed=3)
    moved = one.transport(table)
    axes = ot.random_directions(3, 3, torch.Generator().manual_seed(stream(3, "directions", 0)), torch.float64)
    before, after = (sliced_w2(x[labels == 0], x[labels == 1], axes) for x in (table, moved))
    assert after < 2e-3 * before


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 4), st.sampled_from([2, 5]))
def test_barycenter_costs_no_more_than_any_class_as_the_target(seed, classes, d):
    # 2.7.8; catches a fixed point that is not one, and an objective that is not the cost
    table, labels = gaussians(tuple(20 + 7 * c for c in range(classes)), d, seed)
    one = defence(labels, "bures")
    one.refresh(table)
    (fact,) = one.history
    fits = pooled_gaussians([table[labels == c] for c in range(classes)])
    costs = [np.mean([float(ot.gaussian_w2(s, to)) for s in fits]) for to in fits]
    assert fact["converged"]
    assert 0 < fact["objective"] <= min(costs) * (1 + 1e-9)


def test_objective_of_free_points_lies_below_a_class_as_the_target():
    # against exact plans: an entropic plan costs more, yet not the double that one class as the target costs
    table, labels = gaussians((60, 60))
    one = defence(labels, "free")
    one.refresh(table)
    a, b = table[labels == 0], table[labels == 1]
    cost = ot.squared_distances(a, b).numpy()
    rows, columns = linear_sum_assignment(cost)  # of two equal numbers of points the exact plan is an assignment
    to_other = 0.5 * cost[rows, columns].mean()
    assert 0.4 * to_other < one.history[-1]["objective"] < 0.7 * to_other


# -- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MAPS)
def test_gradient_is_the_formula_and_stops_at_targets(method):
    # loss = mean over pairs of |e_u - T_u|^2 / scale; catches users that count once, a wrong scale, and a gradient that
    # runs through the barycenter (then other users' rows would get one)
    table, labels = gaussians((12, 9))
    table = table.requires_grad_()
    one = defence(labels, method)
    one.refresh(table)
    goal, scale = target_of(one), (table - table.mean(0)).square().sum(1).mean().item()
    users = torch.tensor([3, 3, 0, 3, 20, 0, 20, 3])
    loss = one.loss(users, table)
    loss.backward()
    gap = table.detach() - goal
    assert loss.item() == pytest.approx(gap[users].square().sum(1).mean().item() / scale, rel=1e-12)
    expected = torch.zeros_like(gap)
    for u in users.tolist():
        expected[u] += 2 * gap[u] / len(users) / scale
    np.testing.assert_allclose(table.grad.numpy(), expected.numpy(), atol=1e-14)
    assert not goal.requires_grad


def test_target_and_scale_stay_as_the_refresh_left_them():
    # catches targets that follow the table between refreshes: the pull would never arrive
    table, labels = gaussians((12, 9))
    one = defence(labels)
    assert one.loss(torch.arange(21), table).item() == 0.0  # nothing was found yet
    one.refresh(table)
    means = torch.stack([table[labels == c].mean(0) for c in (0, 1)])
    goal = table - means[labels] + means.mean(0)
    scale = (table - table.mean(0)).square().sum(1).mean()
    later = table + points(9, 21, 3)
    expected = (later - goal)[:16].square().sum(1).mean() / scale
    assert one.loss(torch.arange(16), later).item() == pytest.approx(expected.item(), rel=1e-12)


def test_following_the_loss_brings_the_class_means_together():
    # 2.7.6 for any step: catches a flipped sign
    table, labels = gaussians((30, 20))
    one, x = defence(labels, "sliced", refresh_every=5), table.clone().requires_grad_()
    solver = torch.optim.SGD([x], lr=20.0)
    for _ in range(60):
        solver.zero_grad()
        one.step(x, torch.arange(50)).backward()
        solver.step()
    before, after = ((t[labels == 0].mean(0) - t[labels == 1].mean(0)).norm() for t in (table, x.detach()))
    assert after < 0.02 * before


def test_kernel_loss_is_the_sum_over_classes_and_moves_only_known_users_of_the_batch():
    # catches a class compared with itself, the unknown users among the others, and weights left out
    table, labels = gaussians((30, 20, 25))
    hidden = labels.astype(object)
    hidden[:5] = None
    table = table.requires_grad_()
    one = BarycenterDefense(hidden, method="mmd")
    users = torch.cat([torch.arange(0, 40), torch.arange(50, 70), torch.tensor([0, 7, 7])])
    loss = one.step(table, users)
    loss.backward()
    batch = [u for u in sorted(set(users.tolist())) if hidden[u] is not None]
    expected = 0.0
    for c in range(3):
        own, rest = ([u for u in batch if (hidden[u] == c) == same] for same in (True, False))
        expected += float(ot.mmd2(table.detach()[own], table.detach()[rest])) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    moved = np.flatnonzero(table.grad.abs().sum(1).numpy())
    assert set(moved) == set(batch)
    stepped = (table - 0.5 * table.grad / table.grad.abs().max()).detach()
    assert one.loss(users, stepped).item() < loss.item()
    with pytest.raises(InputError, match="MMD has no map"):
        one.transport(table)


# -- who determines the maps, and who is moved by them --------------------------------------------------------------


def mixed_world():
    """Fitted, other known, and unknown users in turn; (90, 3), labels, fit."""
    table, labels = gaussians((50, 40))
    labels = labels.astype(object)
    labels[::9] = None
    fit = np.arange(90) % 3 != 0
    return table, labels, fit


@pytest.mark.parametrize("method", MAPS)
def test_users_outside_fit_change_no_map(method):
    # catches a hold-out that leaks into barycenter, maps or classifier: measured privacy would be too good
    table, labels, fit = mixed_world()
    outside = ~fit | np.array([v is None for v in labels])
    other = table.clone()
    other[outside] = 7.0 + 3.0 * points(8, int(outside.sum()), 3)
    other[0], other[3] = table[0], table[3]  # an unknown and a known user outside who stay
    first, second = (defence(labels, method, fit=fit).transport(x) for x in (table, other))
    assert torch.equal(first[~outside], second[~outside])
    assert torch.equal(first[[0, 3]], second[[0, 3]])


@pytest.mark.parametrize("method", MAPS)
def test_known_users_outside_fit_are_moved_by_the_map_of_their_class(method):
    # an outside user who stands where a fitted one stands goes where it goes; catches users left where they are, and
    # users moved by the map of another class
    table, labels = gaussians((60, 60))
    fit = np.ones(120, dtype=bool)
    fit[[0, 119]] = False
    table[0], table[119] = table[5], table[6]  # user 119 is of class 1, user 6 of class 0
    one = defence(labels, method, fit=fit)
    moved = one.transport(table)
    assert (moved[0] - moved[5]).norm() < (0.05 if method == "free" else 1e-10)  # a plan is not solved to the end
    assert (moved[119] - moved[6]).norm() > 0.3


def test_unknown_users_move_to_where_the_first_classifier_cannot_tell():
    # the classifier is scikit-learn's, fitted to the fitted users alone; every move runs along S W'. D2
    table, labels, fit = mixed_world()
    known = fit & np.array([v is not None for v in labels])
    z = (table - table[known].mean(0)) / table[known].std(0)
    sk = LogisticRegression(C=2 / 10, tol=1e-10, max_iter=1000).fit(z[known].numpy(), labels[known].astype(int))
    unknown = np.array([v is None for v in labels])
    one = defence(labels, fit=fit)
    moved = one.transport(table)
    after = ((moved - table[known].mean(0)) / table[known].std(0)).numpy()[unknown]
    share = labels[known].astype(int).mean()
    np.testing.assert_allclose(sk.predict_proba(after)[:, 1], share, atol=2e-4)
    cov = torch.cov(table[known].T).numpy()
    way = cov @ (sk.coef_[0] / table[known].std(0).numpy())
    step = (moved - table).numpy()[unknown]
    across = step - np.outer(step @ way, way) / (way @ way)
    assert np.abs(across).max() < 2e-3 * np.abs(step).max()
    # known users are aligned by now and would teach a new classifier nothing: the first one stays
    kept = [x.clone() for x in one.state_dict()["eraser"]]
    one.transport(moved)
    assert all(torch.equal(x, y) for x, y in zip(kept, one.state_dict()["eraser"], strict=True))


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [0.5, 10.0])
def test_the_classifier_is_the_penalised_logistic_regression(classes, strength):
    # two classes have two rows of weights here and one in scikit-learn, so the penalty counts half there
    table, labels = gaussians(tuple(25 + 5 * c for c in range(classes)), 4, seed=classes)
    table = table + points(77, len(table), 4) * 2
    codes = labels.copy()
    codes[::4] = -1
    known = codes >= 0
    shares = torch.bincount(torch.from_numpy(codes[known]), minlength=classes).double().log()
    found = torch.softmax(Eraser.fit(table, codes, classes, strength=strength).logits(table) + shares, 1).numpy()
    z = ((table - table[known].mean(0)) / table[known].std(0)).numpy()
    sk = LogisticRegression(C=(2 if classes == 2 else 1) / strength, tol=1e-10, max_iter=5000).fit(
        z[known], codes[known]
    )
    np.testing.assert_allclose(found, sk.predict_proba(z), atol=2e-4)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-12)


# -- refreshes and state --------------------------------------------------------------------------------------------


def test_the_barycenter_is_found_anew_every_so_many_steps():
    table, labels = gaussians((12, 9))
    one = defence(labels, "sliced", refresh_every=3)
    when = []
    for _ in range(8):
        one.step(table, torch.arange(21))
        when.append(one.fresh)
    assert when == [True, False, False, True, False, False, True, False]
    assert len(one.history) == 3


@pytest.mark.parametrize("method", ALL)
def test_a_resumed_defence_goes_on_bit_by_bit(method):
    # through a file: catches state that is forgotten (steps, directions, support, potentials) or cannot be stored
    table, labels = gaussians((20, 15))
    hidden = labels.astype(object)
    hidden[::5] = None
    walk = [table + 0.05 * k * points(k, 35, 3) for k in range(10)]

    def make():
        return BarycenterDefense(hidden, method=method, refresh_every=2, sweeps=2, support=16)

    whole = make()
    losses = [whole.step(x, torch.arange(35)).item() for x in walk]
    cut, file = make(), io.BytesIO()
    for x in walk[:5]:  # between two refreshes
        cut.step(x, torch.arange(35))
    torch.save(cut.state_dict(), file)
    file.seek(0)
    again = make()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert [again.step(x, torch.arange(35)).item() for x in walk[5:]] == losses[5:]
    assert again.history == whole.history
    assert len(set(losses)) > 3


def test_state_is_a_copy():
    # catches a checkpoint that goes on changing after it was taken
    table, labels = gaussians((20, 15))
    one = defence(labels, "free", sweeps=1)
    one.refresh(table)
    kept = one.state_dict()
    support = kept["support"].clone()
    one.refresh(table + 1.0)
    assert torch.equal(kept["support"], support)
    assert len(kept["history"]) == 1


# -- `free`: support and coupling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "kept"), [(512, 21), (8, 8)])
def test_support_is_never_larger_than_the_labelled_users(asked, kept):
    table, labels = gaussians((12, 9))
    one = BarycenterDefense([*labels.tolist(), None, None], method="free", support=asked)
    one.refresh(torch.cat([table, points(3, 2, 3)]))
    assert one.state_dict()["support"].shape == (kept, 3)
    shares = one.state_dict()["shares"].sum(1).numpy()
    np.testing.assert_allclose(shares[:21], 1.0, atol=1e-12)
    assert not shares[21:].any()  # users of unknown class do not move to the support


def test_coupling_moves_the_support_down_the_gradient_by_its_rate():
    # z <- z - rate r grad / rms(grad), r the spread per dimension; all images lie on the moved support
    table, labels = gaussians((30, 20))
    one = defence(labels, "free")
    one.refresh(table)
    before, goal = one.state_dict(), points(4, 3, 1)
    one.couple(lambda images: (images @ goal).square().sum(), rate=0.2)
    after = one.state_dict()
    z = before["support"].clone().requires_grad_()
    ((before["shares"] @ z) @ goal).square().sum().backward()
    spread = (before["scale"] / 3).sqrt()
    step = 0.2 * spread * z.grad / z.grad.square().mean().sqrt()
    np.testing.assert_allclose(after["support"].numpy(), (before["support"] - step).numpy(), atol=1e-12)
    np.testing.assert_allclose(after["target"].numpy(), (after["shares"] @ after["support"]).numpy(), atol=1e-12)
    assert (after["target"] @ goal).square().sum() < (before["target"] @ goal).square().sum()
    one.couple(lambda images: 0.0 * images.sum())
    assert torch.equal(one.state_dict()["support"], after["support"])  # no gradient, no step


@pytest.mark.parametrize("method", ["bures", "sliced", "mean", "mmd"])
def test_coupling_without_a_support_is_refused(method):
    table, labels = gaussians((12, 9))
    one = defence(labels, method)
    one.refresh(table)
    with pytest.raises(InputError, match=f"constraint='coupled' with variant '{method}'") as caught:
        one.couple(lambda images: images.sum())
    assert "variant='free'" in caught.value.accepted
    assert "lagrange" in caught.value.todo


# -- covariances ----------------------------------------------------------------------------------------------------


def test_many_users_keep_the_covariance_of_their_class_and_few_take_the_pooled_one():
    # catches a shrinkage that is always on (it would leave a covariance difference in place) or never
    mixes = [torch.diag(torch.tensor(s, dtype=torch.float64)) for s in ([3.0, 1.0, 1.0], [1.0, 1.0, 3.0])]
    many = [points(c, 600, 3) @ m for c, m in enumerate(mixes)]
    for own, fit in zip(many, pooled_gaussians(many), strict=True):
        np.testing.assert_allclose(fit.cov.numpy(), ot.Gaussian.of(own).cov.numpy(), atol=1e-12)
    few = [points(10 + c, 14, 12) for c in range(2)]
    fits = pooled_gaussians(few)
    pooled = sum(ot.Gaussian.of(p).cov for p in few) / 2
    for own, fit in zip(few, fits, strict=True):
        np.testing.assert_allclose(fit.mean.numpy(), own.mean(0).numpy(), atol=1e-12)
        assert (fit.cov - pooled).norm() < 0.3 * (ot.Gaussian.of(own).cov - pooled).norm()


def test_three_users_a_class_take_the_pooled_covariance_outright():
    parts = [points(0, 3, 2), points(1, 30, 2)]
    covs = [ot.Gaussian.of(p).cov for p in parts]
    pooled = (3 * covs[0] + 30 * covs[1]) / 33
    for fit in pooled_gaussians(parts):
        np.testing.assert_allclose(fit.cov.numpy(), pooled.numpy(), atol=1e-12)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ALL)
def test_a_table_that_is_not_finite_is_refused(method, bad):
    table, labels = gaussians((12, 9))
    table[[2, 4], 1] = bad
    with pytest.raises(InputError, match="2 users with NaN or infinite") as caught:
        defence(labels, method).step(table, torch.arange(21))
    assert "learning rate" in caught.value.todo


def test_a_table_of_other_length_is_refused():
    with pytest.raises(InputError, match="a table of 5 users and 4 labels"):
        defence([0, 0, 1, 1]).refresh(points(0, 5, 2))


def test_a_class_with_one_user_is_refused_and_named():
    with pytest.raises(InputError, match="class 'x' with 1 labelled user") as caught:
        BarycenterDefense(["x", "y", "y", None])
    assert "two labelled users" in caught.value.accepted
    assert "merge it" in caught.value.todo


def test_a_class_without_a_user_in_fit_is_refused():
    with pytest.raises(InputError, match="class 'y' with 0 users in `fit`") as caught:
        BarycenterDefense(["x", "x", "y", "y"], fit=[True, True, False, False])
    assert "hold-out inside each class" in caught.value.todo


def test_codes_know_every_way_to_say_missing():
    codes, names = codes_of(["b", None, "a", "", float("nan"), "b", "a"])
    assert codes.tolist() == [1, -1, 0, -1, -1, 1, 0]
    assert names == ("a", "b")
    assert codes_of(np.array([0, -1, 0, 3, 3]))[0].tolist() == [0, -1, 0, 1, 1]
    assert codes_of(torch.tensor([1, 1]))[1] == ("1",)


def test_equal_vectors_move_as_their_middle_rank():
    # catches a map that sends users with one vector to one end of their places: a mirrored world must move mirrored
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(60, 2)))
    x[5:20] = 0.0  # fifteen users alike
    labels = np.repeat([0, 1], 30)
    one, other = (BarycenterDefense(labels, method="sliced").transport(s * x, rounds=1) for s in (1.0, -1.0))
    np.testing.assert_allclose(other.numpy(), -one.numpy(), atol=1e-9)


@pytest.mark.parametrize("table", [np.zeros((21, 3)), torch.zeros(21), [[0.0]]])
def test_a_table_that_is_no_matrix_of_torch_is_refused(table):
    # catches a bare AttributeError for somebody whose vectors are an array
    one = defence(gaussians((12, 9))[1])
    with pytest.raises(InputError, match="dimensions"):
        one.transport(table)
    with pytest.raises(InputError, match="dimensions"):
        one.refresh(table)
