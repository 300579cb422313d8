"""Plans against POT, the linear program's properties, and the limits of the regularisation."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths import transport as tp
from upright.maths.transport import scaling

ot = pytest.importorskip("ot")

SEEDS = st.integers(0, 2**32 - 1)
F64 = torch.float64


def points(seed, n, d=3, dtype=F64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).to(dtype)


def masses(seed, n, holes=0):
    """Random masses of sum 1, the first `holes` of them zero."""
    mass = np.random.default_rng(seed).random(n) + 0.1
    mass[:holes] = 0.0
    return torch.from_numpy(mass / mass.sum())


def problem(seed, n=9, m=7, holes=0):
    cost = tp.squared_distances(points(seed, n), points(seed + 1, m) + 0.5)
    return cost, masses(seed + 2, n, holes), masses(seed + 3, m, holes)


def random_plan(seed, a, b):
    """A feasible plan that is not optimal: the corner rule on shuffled rows and columns."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(a)), rng.permutation(len(b))
    left, right, plan, i, j = a.numpy().copy(), b.numpy().copy(), torch.zeros(len(a), len(b), dtype=F64), 0, 0
    while i < len(a) and j < len(b):
        some = min(left[rows[i]], right[columns[j]])
        plan[rows[i], columns[j]] += some
        left[rows[i]] -= some
        right[columns[j]] -= some
        i, j = (i + 1, j) if left[rows[i]] <= right[columns[j]] else (i, j + 1)
    return plan


class Entropic(NamedTuple):
    plan: torch.Tensor
    cost: float
    g: torch.Tensor
    converged: bool
    iterations: int
    residual: float


def sinkhorn(cost, a, b, *, reg, max_iter=5_000, tol=1e-6, g=None):
    """One problem, as `free_barycenter` solves it."""
    found = scaling.scale(cost[None], a[None], b[None], reg, None if g is None else g[None], max_iter, tol)
    plan, residual = found.plan()[0], float(found.residual)
    return Entropic(plan, float((plan * cost).sum()), found.g[0], residual <= tol, found.iterations, residual)


# -- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_distances_are_those_of_the_definition_and_equal_points_are_at_zero(dtype, shift):
    # catches the cancellation of |x|^2 + |z|^2 - 2xz far from the origin, negative values, and a non-zero diagonal
    x = points(0, 40, 6, dtype) + shift
    z = torch.cat([x[5:20], points(1, 10, 6, dtype) + shift])
    found = tp.squared_distances(x, z)
    right = (x[:, None] - z[None]).to(F64).square().sum(-1)
    assert found.dtype == dtype
    assert (found >= 0).all()
    assert (found[5:20].diagonal() == 0).all()
    torch.testing.assert_close(found.to(F64), right, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-12)


def test_distances_of_a_batch_and_their_gradient():
    # catches wrong indices where a doubtful entry of a batch is computed again, and a lost gradient there
    x, z = points(0, 2 * 3 * 4, 2).reshape(2, 3, 4, 2), points(1, 3 * 5, 2).reshape(3, 5, 2)
    z[1, 2] = x[1, 1, 3]
    found = tp.squared_distances(x, z)
    torch.testing.assert_close(found, (x.unsqueeze(-2) - z.unsqueeze(-3)).square().sum(-1))
    assert found[1, 1, 3, 2] == 0
    z[1, 2] += 1e-9
    assert torch.autograd.gradcheck(tp.squared_distances, (x.clone().requires_grad_(), z.clone().requires_grad_()))


def test_relative_reg_is_a_multiple_of_the_median_positive_cost():
    # catches a median over zeros, which makes reg 0 for sparse costs
    assert tp.relative_reg(torch.tensor([[0.0, 0.0, 0.0], [2.0, 4.0, 6.0]]), 0.5) == 2.0


# -- entropic plans -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.2, 3.0, 100.0]))
def test_entropic_plan_is_that_of_pot(seed, n, m, reg):
    # catches a wrong sign or scale of reg, swapped marginals, and an accelerated step that changes the fixed point
    cost, a, b = problem(seed, n, m)
    found = sinkhorn(cost, a, b, reg=reg, tol=1e-11, max_iter=20_000)
    assert found.converged
    plan = found.plan
    torch.testing.assert_close(plan.sum(1), a, rtol=0, atol=1e-10)
    torch.testing.assert_close(plan.sum(0), b, rtol=0, atol=1e-10)
    right = ot.bregman.sinkhorn_log(a.numpy(), b.numpy(), cost.numpy(), reg, numItermax=20_000, stopThr=1e-12)
    np.testing.assert_allclose(plan.numpy(), right, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 8), st.integers(1, 8))
def test_terms_of_one_side_do_not_move_the_plan(seed, n, m):
    # G depends on C only up to u_i + v_j; catches an update that reads the costs' level, and negative costs breaking
    cost, a, b = problem(seed, n, m)
    rng = np.random.default_rng(seed)
    other = cost + torch.from_numpy(rng.normal(size=(n, 1)) * 5) + torch.from_numpy(rng.normal(size=(1, m)) * 5)
    plans = [sinkhorn(c, a, b, reg=0.3, tol=1e-11, max_iter=20_000).plan for c in (cost, other)]
    torch.testing.assert_close(plans[0], plans[1], rtol=0, atol=1e-8)


def test_limits_of_the_regularisation():
    # property 5: reg -> 0 gives the exact cost, from above and monotonically; reg -> infinity gives a b'
    cost, a, b = problem(4, 30, 20)
    exact = ot.emd2(a.numpy(), b.numpy(), cost.numpy())
    values = [sinkhorn(cost, a, b, reg=reg, tol=1e-9, max_iter=50_000).cost for reg in (3.0, 0.3, 0.03, 0.003)]
    assert all(high > low for high, low in itertools.pairwise(values))
    assert values[-1] >= exact - 1e-7
    assert values[-1] == pytest.approx(exact, rel=1e-3)
    flat = sinkhorn(cost, a, b, reg=1e7).plan
    torch.testing.assert_close(flat, torch.outer(a, b), rtol=1e-5, atol=0)


@pytest.mark.parametrize("reg", [1e-3, 1.0, 1e5])
def test_bins_without_mass_get_zero_rows(reg):
    # catches 0/0 in a scaling step and 0 * infinity in the plan
    cost, a, b = problem(7, 12, 10, holes=3)
    cost[0] *= 1e6  # a massless point that is far away must not matter
    found = sinkhorn(cost, a, b, reg=reg, max_iter=50_000)
    plan = found.plan
    assert found.converged
    assert not plan[:3].any()
    assert not plan[:, :3].any()
    assert torch.isfinite(plan).all()
    small = sinkhorn(cost[3:, 3:], a[3:], b[3:], reg=reg, max_iter=50_000).plan
    torch.testing.assert_close(plan[3:, 3:], small, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reg", [0.1, 0.01])
def test_outlying_target_and_tiny_reg_do_not_underflow(reg):
    # a support point at a cost of 10^4: exp(-C / reg) is 0 in its whole column
    x, z = points(0, 40), points(1, 8)
    z[3] += 100.0
    cost, a, b = tp.squared_distances(x, z), masses(2, 40), masses(3, 8)
    found = sinkhorn(cost, a, b, reg=reg)
    assert found.converged
    assert found.cost == pytest.approx(ot.emd2(a.numpy(), b.numpy(), cost.numpy()), rel=1e-3)
    # from zero potentials and without annealing the way is too long, which is said and is no NaN
    early = sinkhorn(cost, a, b, reg=reg, g=torch.zeros(8, dtype=F64), max_iter=300)
    assert not early.converged
    torch.testing.assert_close(early.plan.sum(1), a)


def test_a_batch_is_its_members():
    # catches members that influence each other through the acceleration
    costs = torch.stack([problem(s, 9, 7)[0] * scale for s, scale in ((0, 1.0), (1, 9.0), (2, 0.1))])
    a, b = masses(3, 9, holes=1), torch.stack([masses(s, 7) for s in (4, 5, 6)])
    plans = scaling.scale(costs, a.expand(3, 9), b, 0.2, None, 20_000, 1e-11).plan()
    for i in range(3):
        one = sinkhorn(costs[i], a, b[i], reg=0.2, tol=1e-11, max_iter=20_000)
        torch.testing.assert_close(plans[i], one.plan, rtol=0, atol=1e-9)


def test_a_warm_start_gives_the_same_plan_in_fewer_iterations():
    # catches potentials that are dropped, of the wrong sign, or scaled by reg
    cost, a, b = problem(3, 60, 40)
    cold = sinkhorn(cost, a, b, reg=0.05, tol=1e-9)
    near = cost + 0.01 * torch.from_numpy(np.random.default_rng(0).random(cost.shape))
    right = sinkhorn(near, a, b, reg=0.05, tol=1e-9)
    warm = sinkhorn(near, a, b, reg=0.05, tol=1e-9, g=cold.g)
    torch.testing.assert_close(warm.plan, right.plan, rtol=0, atol=1e-8)
    assert warm.iterations < 0.7 * right.iterations
    again = sinkhorn(cost, a, b, reg=0.05, tol=1e-8, g=cold.g)
    assert again.iterations == 1


def test_one_iteration_is_reported_as_not_converged():
    # catches a result that claims success whatever the residual, and annealing that ignores the limit
    cost, a, b = problem(3, 30, 20)
    for limit in (1, 2, 5):
        found = sinkhorn(cost, a, b, reg=0.01, max_iter=limit)
        assert not found.converged
        assert found.iterations == limit
        wrong = float((found.plan.sum(0) - b).abs().sum())
        assert found.residual == pytest.approx(wrong, rel=1e-6)
        torch.testing.assert_close(found.plan.sum(1), a)


def test_acceleration_does_not_change_the_answer_and_saves_iterations(monkeypatch):
    # catches a safeguard that always refuses, and a mix that converges to something else
    cost, a, b = problem(8, 80, 40)
    fast = sinkhorn(cost, a, b, reg=0.05, tol=1e-7)
    monkeypatch.setattr(scaling, "_MEMORY", 1)
    monkeypatch.setattr(scaling, "_anderson", lambda history, root_b: history[-1][0])
    slow = sinkhorn(cost, a, b, reg=0.05, tol=1e-7, max_iter=100_000)
    assert slow.converged
    torch.testing.assert_close(fast.plan, slow.plan, rtol=0, atol=1e-6)
    assert fast.iterations < 0.5 * slow.iterations


def test_acceleration_does_not_stray_on_a_plateau():
    # two points, far costs: the residual stands still for 500 plain steps; catches a safeguard by the residual alone
    cost, a, b = problem(2112, 2, 11)
    found = sinkhorn(cost, a, b, reg=0.02, tol=1e-9, max_iter=500)
    assert found.converged


def test_bad_accelerated_steps_are_refused(monkeypatch):
    # a broken accelerator (noise, then NaN) may cost time but not the answer
    cost, a, b = problem(9, 20, 15)
    right = sinkhorn(cost, a, b, reg=0.2, tol=1e-9).plan
    generator = torch.Generator().manual_seed(0)

    def broken(history, root_b):
        image = history[-1][0]
        if len(history) % 3 == 0:
            return torch.full_like(image, torch.nan)
        return image + torch.randn(image.shape, generator=generator, dtype=F64)

    monkeypatch.setattr(scaling, "_anderson", broken)
    found = sinkhorn(cost, a, b, reg=0.2, tol=1e-9, max_iter=100_000)
    assert found.converged
    torch.testing.assert_close(found.plan, right, rtol=0, atol=1e-7)


# -- bad input ------------------------------------------------------------------------------------------------------


ONE = torch.ones(2, dtype=F64) / 2
COST = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tp.relative_reg(0 * COST, 0.1), "none is positive"),
        (lambda: tp.relative_reg(COST, 0.0), "eps = 0.0"),
        (lambda: tp.relative_reg(COST * torch.nan, 0.1), "NaN"),
        (lambda: tp.squared_distances(COST, COST[:, :1]), "points of shapes"),
    ],
)
def test_bad_input_is_refused_in_three_parts(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "accepted:" in str(caught.value)
    assert "to do:" in str(caught.value)


def test_one_point_is_a_class():
    cost = tp.squared_distances(points(0, 1), points(1, 4))
    b = masses(2, 4)
    one = torch.ones(1, dtype=F64)
    torch.testing.assert_close(sinkhorn(cost, one, b, reg=0.1).plan, b[None])
