"""The smoothed penalty, the arrow of curvature, and the steps that minimise the dual."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from upright.maths.parity.constraints import Constraint, Level, levels_of
from upright.maths.parity.newton import Dual, newton, slopes, smooth_abs
from upright.maths.parity.site import Site, table_size

SEEDS = st.integers(0, 2**32 - 1)


def make(seed, clients=3, n=20, m=3, tol=(0.02, 0.05)):
    """A dual of demographic parity between three groups, its prices at random."""
    rng = np.random.default_rng(seed)
    one = Constraint("demographic_parity", *tol)
    sites = []
    for share in rng.dirichlet(np.full(clients, 3.0)):
        sites.append(Site(rng.dirichlet(np.ones(m), n), (np.eye(3)[np.arange(n) % 3],), np.full(n, share / n),
                          ("demographic_parity",)))  # fmt: skip
    mass = [s.masses() for s in sites]
    levels = [levels_of([one], [sum(p[0] for p in mass)], [tol[0]], 1.0)]
    levels += [levels_of([one], p, [tol[1]], float(s.weight.sum())) for p, s in zip(mass, sites, strict=True)]
    dual = Dual(sites, levels, table_size(["demographic_parity"], [3], m))
    return dual, [rng.normal(0, 0.05, len(level.tol)) for level in levels]


@settings(max_examples=60, deadline=None)
@given(st.floats(-2, 2), st.floats(0.01, 2), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_smooth_abs_is_its_program(x, t, mu):
    # catches a closed form that is off by more than a constant, and a slope that reaches t
    def program(at):
        lowest = minimize_scalar(
            lambda u: t * (abs(at) + np.exp(u)) - mu * np.log((abs(at) + np.exp(u)) ** 2 - at * at),
            bounds=(-40, 8), method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        return lowest.fun

    value, slope, bend = (float(v) for v in smooth_abs(np.float64(x), np.float64(t), mu))
    zero = float(smooth_abs(np.float64(0.0), np.float64(t), mu)[0])
    assert value - zero == pytest.approx(program(x) - program(0.0), abs=1e-7)
    assert abs(slope) <= t
    assert bend > 0
    step = 1e-5 * mu / t
    ahead, back = (smooth_abs(np.float64(x + s * step), np.float64(t), mu) for s in (1, -1))
    assert float(ahead[1] - back[1]) / (2 * step) == pytest.approx(bend, rel=1e-3, abs=1e-4 * t * t / mu)
    assert slope * (x if abs(x) > 1e-12 else 1.0) >= 0 or abs(x) <= 1e-12


def test_smooth_abs_tends_to_the_absolute_value():
    # catches a smoothing that does not vanish with mu
    x, t = np.array([-2.0, -0.1, 0.3]), np.array([0.5, 1.0, 2.0])
    found = smooth_abs(x, t, 1e-12)
    zero = smooth_abs(np.zeros(3), t, 1e-12)
    np.testing.assert_allclose(found[0] - zero[0], t * np.abs(x), atol=1e-9)
    np.testing.assert_allclose(found[1], t * np.sign(x), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_gradient_of_the_dual_against_finite_differences(seed):
    # spec 2.12.2: minus the gradient is D less what the tolerance allows; catches levels in each other's weight
    dual, x = make(seed)
    rng = np.random.default_rng(seed)
    direction = [rng.normal(size=v.shape) for v in x]
    gradient = dual.evaluate(x, 0.2, 1e-3, True)[1]
    step = 1e-6
    ahead, back = (dual.evaluate([v + s * step * d for v, d in zip(x, direction, strict=True)], 0.2, 1e-3, False)[0]
                   for s in (1, -1))  # fmt: skip
    slope = sum(float(g @ d) for g, d in zip(gradient, direction, strict=True))
    assert (ahead - back) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_arrow_solves_the_dense_system(seed, clients):
    # catches an elimination with a sign or a block lost
    dual, x = make(seed, clients)
    _, gradient, second, _ = dual.evaluate(x, 0.2, 1e-2, True)
    d = slopes(dual.levels, x)
    bend = dual.bend(x, d, 1e-2)
    step = np.concatenate(dual.direction(gradient, second, bend))
    ends = np.r_[0, np.cumsum([len(v) for v in x])]
    dense = np.diag(np.concatenate(bend))
    for k, h in enumerate(second, start=1):
        rows = np.zeros((len(h), len(step)))
        rows[:, : ends[1]] = dual.levels[0].matrix
        rows[:, ends[k] : ends[k + 1]] = dual.levels[k].matrix
        dense += rows.T @ h @ rows
    np.testing.assert_allclose(dense @ step, -np.concatenate(gradient), atol=1e-8)


def test_prices_that_do_not_bind_do_not_stop_the_others():
    # catches a ridge relative to the largest curvature: 1e9 of a loose price would hold the other at 1e-5 of its step
    level = Level(np.eye(2), np.full(2, 0.1), 1.0, np.zeros((2, 4), dtype=int), np.zeros((0, 4), dtype=int))
    dual = Dual([], [level], [(1, 1, 2)])
    step = dual.direction([np.array([1.0, 1e-4])], [], [np.array([1e9, 1e-6])])[0]
    np.testing.assert_allclose(step, [-1e-9, -100.0], rtol=1e-6)


def test_singular_curvature_still_gives_a_direction_downhill():
    # catches a factorisation that fails on three pairs of three groups, where no tolerance adds curvature
    dual, x = make(3, tol=(0.0, 0.0))
    _, gradient, second, _ = dual.evaluate(x, 0.2, 1e-3, True)
    step = dual.direction(gradient, second, dual.bend(x, slopes(dual.levels, x), 1e-3))
    assert sum(float(g @ s) for g, s in zip(gradient, step, strict=True)) < 0
    assert max(float(np.abs(s).max()) for s in step) < 1e3


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([1e-2, 1e-5, 1e-9]))
def test_length_minimises_quadratic_and_penalty(seed, mu):
    # catches a bisection that returns the wrong end, and a length above 1
    dual, x = make(seed, tol=(0.1, 0.1))
    _, gradient, second, gaps = dual.evaluate(x, 0.2, mu, True)
    step = dual.direction(gradient, second, dual.bend(x, slopes(dual.levels, x), mu))
    step = [3.0 * s for s in step]
    curve = sum(float(v @ h @ v) for v, h in zip(dual.flat(step), second, strict=True))
    slope = -sum(float(d @ s) for d, s in zip(gaps, step, strict=True))

    def model(u):
        there = [a + u * s for a, s in zip(x, step, strict=True)]
        return slope * u + 0.5 * curve * u * u + dual.penalty(there, mu)[0]

    found = dual.length(x, step, gaps, second, mu)
    assert 0 < found <= 1
    best = minimize_scalar(model, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    assert abs(found - best.x) <= 2.0**-11 or model(found) <= best.fun + 1e-12  # twelve halvings


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.5, 0.05, 0.005]), st.sampled_from([1e-3, 1e-8, 1e-13]))
def test_newton_ends_at_a_stationary_point(seed, beta, mu):
    # catches a direction that does not descend, and slopes that leave [-t, t]
    dual, x = make(seed)
    before = dual.evaluate(x, beta, mu, False)[0]
    found, d, steps, size = newton(dual, x, slopes(dual.levels, x), beta, mu, 1e-9, 200)
    value, gradient, _, gaps = dual.evaluate(found, beta, mu, False)
    assert size == pytest.approx(dual.size(gradient), abs=1e-12)
    assert size <= 1e-8
    assert steps < 200
    assert value <= before
    for own, v, level in zip(d, gaps, dual.levels, strict=True):
        assert (np.abs(own) <= level.share * level.tol + 1e-15).all()
        assert (np.abs(v) <= level.share * (level.tol + 1e-8)).all()  # each stationary point meets each constraint
