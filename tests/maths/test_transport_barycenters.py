"""Free-support and Gaussian barycenters, and affine maps: the theory's properties and POT."""

from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths import transport as tp
from upright.maths.transport import barycenters, scaling

ot = pytest.importorskip("ot")

SEEDS = st.integers(0, 2**32 - 1)
F64 = torch.float64


def points(seed, n, d=3, shift=0.0, dtype=F64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)) + shift).to(dtype)


def mixture(seed, n, d=4):
    """Points that are not Gaussian: two lumps of unlike width."""
    rng = np.random.default_rng(seed)
    lump = rng.random(n) < 0.3
    spread = np.where(lump, 0.2, 1.0)[:, None] * rng.normal(size=(n, d))
    return torch.from_numpy(spread + 3.0 * lump[:, None] * np.arange(d) / d)


def covariance(seed, d=4):
    matrix = np.random.default_rng(seed).normal(size=(d, d))
    return torch.from_numpy(matrix @ matrix.T / d + 0.05 * np.eye(d))


def gaussian(seed, d=4):
    return tp.Gaussian(points(seed, 1, d)[0], covariance(seed + 1, d))


def uniform(n):
    return torch.full((n,), 1.0 / n, dtype=F64)


def exact_objective(classes, support, weights=None):
    """sum_c w_c W_2^2(P_c, Q), by POT on its own distances."""
    w = [1.0 / len(classes)] * len(classes) if weights is None else weights
    b = uniform(len(support)).numpy()
    return sum(
        float(v) * ot.emd2(uniform(len(x)).numpy(), b, ot.dist(x.numpy(), support.numpy()))
        for v, x in zip(w, classes, strict=True)
    )


def exact_barycenter(classes, support, **options):
    """The same sweeps with POT's exact plans in place of entropic ones, for which theory gives guarantees."""

    def exact(cost, a, b, reg, g, max_iter, tol):
        one = torch.from_numpy(ot.emd(a[0].numpy(), b[0].numpy(), cost[0].numpy()))[None]
        return scaling.Scaled(one, torch.ones_like(a), torch.ones_like(b), b, torch.zeros(1), 0)

    with mock.patch.object(barycenters, "scale", exact):
        return tp.free_barycenter(classes, support, **{"reg": 1.0} | options)


# -- free support ---------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sampled_from([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]), st.integers(1, 12))
def test_exact_sweeps_never_raise_the_objective_and_end_at_the_fixed_point(seed, weights, m):
    # property 4; catches weights on the wrong class and a support that is not the mean of what it receives
    classes = [points(seed, 15), points(seed + 1, 9, shift=1.0)]
    found = exact_barycenter(classes, points(seed + 2, m), weights=weights, sweeps=200, tol=1e-12)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found.objective))
    assert found.convergence.converged
    mean = sum(w * m * plan.T @ x for w, plan, x in zip(weights, found.plans, classes, strict=True))
    torch.testing.assert_close(found.support, mean)
    for plan, x in zip(found.plans, classes, strict=True):
        torch.testing.assert_close(plan.sum(1), uniform(len(x)))
        torch.testing.assert_close(plan.sum(0), uniform(m))
    assert found.objective[-1] == pytest.approx(exact_objective(classes, found.support, weights), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("barycenter", [exact_barycenter, tp.free_barycenter])
def test_the_objective_is_that_of_the_returned_plans_and_support(barycenter):
    # catches an objective of the support before the move, which is what the loop has at hand
    classes = [points(0, 30), points(1, 20, shift=1.0)]
    for sweeps in (1, 3):
        found = barycenter(classes, points(2, 10), weights=[0.3, 0.7], sweeps=sweeps, tol=1e-12, inner_tol=1e-10)
        cost = [tp.squared_distances(x, found.support) for x in classes]
        right = sum(w * float((p * c).sum()) for w, p, c in zip((0.3, 0.7), found.plans, cost, strict=True))
        assert found.objective[-1] == pytest.approx(right, rel=1e-9)
        assert len(found.objective) == found.convergence.iterations == sweeps
        assert not found.convergence.converged


def test_exact_sweeps_are_those_of_pot():
    # catches a step towards the barycentric image instead of onto it, and uneven masses of the support
    classes = [mixture(0, 60), mixture(1, 40) + 1.0]
    start, weights = mixture(2, 25), [0.4, 0.6]
    found = exact_barycenter(classes, start, weights=weights, sweeps=4, tol=1e-15)
    right = ot.lp.free_support_barycenter(
        [x.numpy() for x in classes],
        [uniform(len(x)).numpy() for x in classes],
        start.numpy(),
        weights=np.array(weights),
        numItermax=4,
        stopThr=0,
    )
    np.testing.assert_allclose(found.support.numpy(), right, atol=1e-9)


def test_entropic_sweeps_reach_the_exact_objective():
    # the default regularisation costs at most 1 %, measured by exact transport; catches reg in the wrong units
    classes = [mixture(0, 400), mixture(1, 170) + 1.0]
    start = torch.cat(classes)[::10]
    for scale in (1.0, 100.0):
        some = [scale * x for x in classes]
        entropic = tp.free_barycenter(some, scale * start, sweeps=10, tol=1e-12)
        exact = exact_barycenter(some, scale * start, sweeps=10, tol=1e-12)
        assert entropic.inner.converged
        assert exact_objective(some, entropic.support) <= 1.01 * exact_objective(some, exact.support)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(2, 4))
def test_barycenter_of_translates_is_the_mean_translate(seed, count):
    # property 2, with the cost sum_c w_c ||t_c - mean||^2; catches a support drawn to the heavy class
    base, rng = points(seed, 10), np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(count))
    moves = torch.from_numpy(rng.normal(size=(count, 3)))
    mean = torch.from_numpy(weights) @ moves
    found = exact_barycenter([base + t for t in moves], base + mean, weights=list(weights), tol=1e-9)
    torch.testing.assert_close(found.support, base + mean, rtol=0, atol=1e-9)
    right = sum(w * float((t - mean).square().sum()) for w, t in zip(weights, moves, strict=True))
    assert found.objective[-1] == pytest.approx(right, rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_no_class_is_a_better_common_target(seed):
    # property 8: started at any class's own points, the barycenter costs at most what that class costs as target
    classes = [points(seed, 12), points(seed + 1, 12, shift=1.0), points(seed + 2, 7, shift=-1.0)]
    for target in classes:
        found = exact_barycenter(classes, target, sweeps=50)
        assert exact_objective(classes, found.support) <= exact_objective(classes, target) + 1e-12


@pytest.mark.parametrize("barycenter", [exact_barycenter, tp.free_barycenter])
def test_order_of_classes_and_of_points_does_not_matter(barycenter):
    # property 7; catches plans or weights that stay with a position
    classes, weights, start = [points(0, 14), points(1, 9, shift=1.0)], [0.3, 0.7], points(2, 8)
    options = {"sweeps": 5, "tol": 1e-12, "reg": 0.5, "inner_tol": 1e-10, "inner_iter": 20_000}
    found = barycenter(classes, start, weights=weights, **options)
    assert found.inner.converged
    mixed = torch.from_numpy(np.random.default_rng(0).permutation(14))
    other = barycenter([classes[1], classes[0][mixed]], start, weights=weights[::-1], **options)
    torch.testing.assert_close(other.support, found.support, rtol=0, atol=1e-7)
    torch.testing.assert_close(other.plans[1], found.plans[0][mixed], rtol=0, atol=1e-7)


def test_one_class_is_its_own_barycenter():
    # property 7: with C = 1 the defence loss is 0 at the fixed point
    x = points(0, 20)
    found = exact_barycenter([x], x)
    torch.testing.assert_close(found.support, x, rtol=0, atol=1e-12)
    assert found.objective[-1] <= 1e-12


def test_a_warm_refresh_needs_fewer_iterations_and_agrees():
    # catches potentials that are lost or swapped between classes
    classes = [mixture(0, 200), mixture(1, 90) + 1.0]
    cold = tp.free_barycenter(classes, torch.cat(classes)[::6], sweeps=30, tol=1e-3)
    assert cold.convergence.converged
    near = [x + 0.01 * points(7 + c, len(x), 4) for c, x in enumerate(classes)]
    options = {"sweeps": 1, "reg": cold.reg, "inner_tol": 1e-6, "inner_iter": 5_000}
    again = tp.free_barycenter(near, cold.support, **options)
    warm = tp.free_barycenter(near, cold.support, start=cold, **options)
    torch.testing.assert_close(warm.support, again.support, rtol=0, atol=1e-3)
    assert warm.inner.converged
    assert warm.inner.iterations < 0.7 * again.inner.iterations


def test_plans_that_did_not_converge_are_reported():
    # catches an outer flag that looks at the move of the support alone
    classes = [points(0, 40), points(1, 30, shift=1.0)]
    found = tp.free_barycenter(classes, points(2, 20), inner_iter=1, tol=0.9, sweeps=10)
    assert not found.inner.converged
    assert not found.convergence.converged
    assert torch.isfinite(found.support).all()


def test_the_type_of_the_support_is_kept_and_gradients_are_not():
    x = points(0, 20, dtype=torch.float32).requires_grad_()
    found = tp.free_barycenter([x, points(1, 10, dtype=torch.float32)], points(2, 5, dtype=torch.float32), sweeps=2)
    assert found.support.dtype == found.plans[0].dtype == torch.float32
    assert not found.support.requires_grad
    assert not found.plans[0].requires_grad


# -- Gaussians ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_bures_distance_is_that_of_pot_and_of_the_map(seed, d):
    # catches a missing factor 2, a root that is not taken; the second form is E ||T(x) - x||^2
    p, q = gaussian(seed, d), gaussian(seed + 5, d)
    found = tp.gaussian_w2(p, q)
    right = ot.gaussian.bures_wasserstein_distance(*(t.numpy() for t in (p.mean, q.mean, p.cov, q.cov))) ** 2
    assert float(found) == pytest.approx(right, rel=1e-7, abs=1e-9)
    matrix = tp.affine_map(p, q).matrix
    gap = matrix - torch.eye(d, dtype=F64)
    moved = float((p.mean - q.mean).square().sum() + (gap @ p.cov @ gap).trace())
    assert float(found) == pytest.approx(moved, rel=1e-7, abs=1e-9)
    assert float(tp.gaussian_w2(p, p)) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4))
def test_bures_barycenter_is_a_fixed_point_and_that_of_pot(seed, d, count):
    # property 3; catches an iteration that stops after a fixed number of steps and the mean of the covariances
    classes = [gaussian(seed + 10 * c, d) for c in range(count)]
    weights = np.random.default_rng(seed).dirichlet(np.ones(count))
    found = tp.bures_barycenter(classes, list(weights), tol=1e-11)
    assert found.convergence.converged
    s = found.gaussian.cov
    root = ot.backend.get_backend(s.numpy()).sqrtm(s.numpy())
    image = sum(
        w * ot.backend.get_backend(root).sqrtm(root @ g.cov.numpy() @ root)
        for w, g in zip(weights, classes, strict=True)
    )
    np.testing.assert_allclose(s.numpy(), image, atol=1e-9 * float(s.norm()))
    mean, cov = ot.gaussian.bures_wasserstein_barycenter(
        np.stack([g.mean.numpy() for g in classes]),
        np.stack([g.cov.numpy() for g in classes]),
        weights=weights,
        num_iter=500,
        eps=1e-12,
    )
    np.testing.assert_allclose(found.gaussian.mean.numpy(), mean, atol=1e-10)
    np.testing.assert_allclose(s.numpy(), cov, atol=1e-6)


def test_commuting_covariances_average_in_square_root_and_equal_ones_cost_the_means():
    # properties 2 and 3
    deviations = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=F64)
    classes = [tp.Gaussian(torch.zeros(2, dtype=F64), torch.diag(s**2)) for s in deviations]
    found = tp.bures_barycenter(classes, [0.25, 0.75], tol=1e-12).gaussian
    torch.testing.assert_close(found.cov, torch.diag((torch.tensor([0.25, 0.75], dtype=F64) @ deviations) ** 2))
    cov, gap = covariance(0), torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=F64)
    pair = [tp.Gaussian(torch.zeros(4, dtype=F64), cov), tp.Gaussian(gap, cov)]
    middle = tp.bures_barycenter(pair, [0.3, 0.7]).gaussian
    cost = 0.3 * tp.gaussian_w2(pair[0], middle) + 0.7 * tp.gaussian_w2(pair[1], middle)
    assert float(cost) == pytest.approx(0.3 * 0.7 * float(gap.square().sum()), rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_no_gaussian_class_is_a_better_common_target(seed):
    # property 8 for Gaussians, where the barycenter is global
    classes = [gaussian(seed + 10 * c) for c in range(3)]
    centre = tp.bures_barycenter(classes).gaussian
    cost = sum(float(tp.gaussian_w2(g, centre)) for g in classes)
    assert all(cost <= sum(float(tp.gaussian_w2(g, h)) for g in classes) + 1e-9 for h in classes)


def test_one_bures_iteration_is_reported_as_not_converged():
    classes = [gaussian(0), gaussian(5)]
    found = tp.bures_barycenter(classes, max_iter=1).convergence
    assert not found.converged
    assert found.iterations == 1
    assert found.residual > found.tolerance


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_affine_map_is_positive_definite_and_carries_the_moments(seed, d):
    # property 3; catches P^1/2 and P^-1/2 mixed up, which still maps commuting covariances rightly
    p, q = gaussian(seed, d), gaussian(seed + 5, d)
    found = tp.affine_map(p, q)
    torch.testing.assert_close(found.matrix, found.matrix.T)
    assert torch.linalg.eigvalsh(found.matrix)[0] > 0
    torch.testing.assert_close(found.matrix @ p.cov @ found.matrix, q.cov, rtol=0, atol=1e-8)
    torch.testing.assert_close(found(p.mean), q.mean)
    assert found(torch.zeros(2, 3, d, dtype=F64)).shape == (2, 3, d)


def test_moved_classes_have_equal_moments_and_keep_them_on_new_users():
    # property 6; the out-of-sample map must not need the points it was fitted on
    classes = [mixture(0, 4_000), mixture(1, 1_500) * 0.5 + 1.0]
    fitted = [tp.Gaussian.of(x[::2], 0.0) for x in classes]
    centre = tp.bures_barycenter(fitted, tol=1e-12).gaussian
    maps = [tp.affine_map(g, centre) for g in fitted]
    inside = [tp.Gaussian.of(t(x[::2]), 0.0) for t, x in zip(maps, classes, strict=True)]
    torch.testing.assert_close(inside[0].mean, inside[1].mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(inside[0].cov, inside[1].cov, rtol=0, atol=1e-9)
    outside = [tp.Gaussian.of(t(x[1::2]), 0.0) for t, x in zip(maps, classes, strict=True)]
    assert float(tp.gaussian_w2(*outside)) < 0.05 * float(tp.gaussian_w2(*fitted))


def test_moments_of_few_points_are_usable_and_the_ridge_is_the_documented_one():
    # n < d: catches a singular covariance that reaches an inverse
    x, y = points(0, 5, 12), points(1, 8, 12, shift=1.0)
    raw = np.cov(x.numpy().T, bias=True)
    right = 0.99 * raw + 0.01 * np.trace(raw) / 12 * np.eye(12)
    np.testing.assert_allclose(tp.Gaussian.of(x, 0.01).cov.numpy(), right, atol=1e-12)
    maps = tp.affine_map(tp.Gaussian.of(x), tp.Gaussian.of(y))
    assert torch.isfinite(maps(x)).all()
    assert torch.isfinite(tp.gaussian_w2(tp.Gaussian.of(x, 0.0), tp.Gaussian.of(y, 0.0)))
    flat = tp.bures_barycenter([tp.Gaussian.of(x, 0.0), tp.Gaussian.of(y, 0.0)])
    assert torch.isfinite(flat.gaussian.cov).all()


def test_moments_in_chunks(monkeypatch):
    # catches a mean or a divisor of the last chunk alone
    x = points(0, 23, 3, shift=5.0, dtype=torch.float32)
    whole = tp.Gaussian.of(x)
    monkeypatch.setattr(tp.gaussian, "_CHUNK", 7)
    part = tp.Gaussian.of(x)
    assert part.cov.dtype == part.mean.dtype == torch.float32
    torch.testing.assert_close(part.cov, whole.cov)
    torch.testing.assert_close(part.mean, whole.mean)


# -- bad input ------------------------------------------------------------------------------------------------------

X = points(0, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tp.free_barycenter([], X), "no class"),
        (lambda: tp.free_barycenter([X, X[:0]], X), r"class 1 with 0 point"),
        (lambda: tp.free_barycenter([X], X[:0]), r"the support with 0 point"),
        (lambda: tp.free_barycenter([X, X[:, :2]], X), "class 1 of shape"),
        (lambda: tp.free_barycenter([X], X[:, :2]), "the support of shape"),
        (lambda: tp.free_barycenter([X * torch.nan], X), "class 0 with NaN"),
        (lambda: tp.free_barycenter([X, X], X, weights=[0.5, 0.6]), "weights of shape"),
        (lambda: tp.free_barycenter([X], X, reg=-1.0), "reg = -1.0"),
        (lambda: tp.free_barycenter([X], X, reg=float("nan")), "reg = nan"),
        (lambda: tp.free_barycenter([X], X, inner_tol=0.0), "tol = 0.0"),
        (lambda: tp.free_barycenter([X], X, inner_iter=0), "max_iter = 0"),
        (lambda: tp.free_barycenter([X], X, sweeps=0), "sweeps = 0"),
        (lambda: tp.free_barycenter([0 * X], 0 * X), "none is positive"),
        (
            lambda: tp.free_barycenter([X], X[:2], start=tp.free_barycenter([X], X[:3], sweeps=1)),
            "a start with 1 classes and 3",
        ),
        (lambda: tp.Gaussian.of(X[:1]), "1 point"),
        (lambda: tp.Gaussian.of(X, 1.5), "shrinkage = 1.5"),
        (lambda: tp.Gaussian(X[0], -torch.eye(3, dtype=F64)), "do not fit"),
        (lambda: tp.Gaussian(X[0], torch.eye(2, dtype=F64)), "do not fit"),
        (lambda: tp.gaussian_w2(gaussian(0, 2), gaussian(0, 3)), "2 and 3 dimensions"),
        (lambda: tp.bures_barycenter([]), "no Gaussian"),
        (lambda: tp.bures_barycenter([gaussian(0)], tol=0.0), "tol = 0.0"),
        (lambda: tp.bures_barycenter([gaussian(0)], [0.5]), "weights of shape"),
        (lambda: tp.affine_map(tp.Gaussian.of(X[:2], 0.0), gaussian(0, 3)), "a source covariance"),
        (lambda: tp.affine_map(gaussian(0, 3), gaussian(1, 3))(torch.zeros(4, 2)), "points of shape"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
