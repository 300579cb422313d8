"""Projections against brute force, dual steps against their own program, and the bound of two experts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from upright.contract import InputError
from upright.maths.parity.steps import dual_step, l1_ball, soft_threshold, two_experts

VECTORS = st.lists(st.floats(-10, 10), min_size=1, max_size=6).map(np.array)


def prox_by_brute_force(x, by, radius):
    """argmin |v - x|^2 / 2 + sum by |v| on the L1 ball: try every support with the signs of x, at most 64 of them."""
    best, found = math.inf, None
    sign, d = np.sign(x), len(x)
    for on in itertools.product([False, True], repeat=d):
        on = np.array(on)
        free = np.where(on, x - sign * by, 0.0)
        tied = [free]
        if on.any():  # or on the surface of the ball
            tied.append(np.where(on, free - sign * ((sign * free)[on].sum() - radius) / on.sum(), 0.0))
        for v in tied:
            if (v * sign >= -1e-12).all() and np.abs(v).sum() <= radius + 1e-9:
                cost = 0.5 * ((v - x) ** 2).sum() + (by * np.abs(v)).sum()
                if cost < best:
                    best, found = cost, v
    return found


@settings(max_examples=150, deadline=None)
@given(VECTORS, st.floats(0.01, 20))
def test_l1_ball_is_the_nearest_point_of_brute_force(x, radius):
    # spec 2.12.11: catches a cut by the wrong index, a lost sign, a projection of points that are inside
    found = l1_ball(x, radius)
    assert np.abs(found).sum() <= radius * (1 + 1e-12) + 1e-12
    np.testing.assert_allclose(found, prox_by_brute_force(x, 0.0, radius), atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.floats(-5, 5), st.floats(0, 3))
def test_soft_threshold_minimises_its_objective(x, by):
    # spec 2.12.11: catches a threshold of the wrong sign and values that pass through zero
    best = minimize_scalar(lambda v: 0.5 * (v - x) ** 2 + by * abs(v), bounds=(-6, 6), method="bounded",
                           options={"xatol": 1e-9})  # fmt: skip
    assert float(soft_threshold(np.array([x]), by)[0]) == pytest.approx(best.x, abs=1e-5)


@settings(max_examples=150, deadline=None)
@given(VECTORS, st.integers(0, 2**32 - 1), st.floats(0.05, 2), st.floats(0.1, 10))
def test_dual_step_is_the_proximal_step_for_tolerances_that_differ(price, seed, step, radius):
    # catches projection before thresholding, tol without the step size, and one tolerance for all
    rng = np.random.default_rng(seed)
    gap, tol = rng.uniform(-1, 1, len(price)), rng.uniform(0, 0.5, len(price))
    found = dual_step(price, gap, tol, step, radius)
    np.testing.assert_allclose(found, prox_by_brute_force(price + step * gap, step * tol, radius), atol=1e-7)
    assert np.abs(found).sum() <= radius * (1 + 1e-12) + 1e-12


def test_dual_step_equals_the_pair_of_signed_updates():
    # catches a signed price that is not the difference of the two non-negative ones from zero
    gap, tol, step = np.array([0.3, -0.2, 0.04, -0.05]), 0.05, 0.5
    up, down = np.maximum(step * (gap - tol), 0.0), np.maximum(step * (-gap - tol), 0.0)
    np.testing.assert_allclose(dual_step(np.zeros(4), gap, tol, step, 5.0), up - down, atol=1e-15)


def test_a_gap_that_is_not_known_leaves_its_price():
    # catches NaN in a price, and a price that shrinks by its tolerance although nothing was seen
    found = dual_step(np.array([0.4, -0.3]), np.array([np.nan, 0.2]), np.array([0.1, 0.1]), 0.5, 5.0)
    np.testing.assert_allclose(found, [0.4, -0.15])  # -0.3 + 0.1, less 0.05


def test_average_gap_of_the_saddle_point_falls_as_theory_says():
    # spec 2.12.12: with step B / sqrt(T) the gap of averages is at most B (1 + G^2) / (2 sqrt T), G >= |D|_2
    rng = np.random.default_rng(5)
    n, rounds, radius, tol = 40, 900, 2.0, 0.02
    gain, group = rng.uniform(-1, 1, n), np.arange(n) % 3
    gain += 0.4 * (group - 1)
    share = np.array([[(group == g) / (group == g).sum() for g in range(3)]])[0]  # (3, n)
    features = np.array([share[a] - share[b] for a, b in ((0, 1), (0, 2), (1, 2))])  # D = features @ h
    step, price = radius / math.sqrt(rounds), np.zeros(3)
    mean_h, mean_price = np.zeros(n), np.zeros(3)
    for _ in range(rounds):
        h = (gain / n - price @ features > 0).astype(float)  # the best response
        mean_h, mean_price = mean_h + h / rounds, mean_price + price / rounds
        price = dual_step(price, features @ h, tol, step, radius)
    worst = max(0.0, float((np.abs(features @ mean_h) - tol).max()))
    primal = mean_h @ gain / n - radius * worst
    dual = np.maximum(gain / n - mean_price @ features, 0.0).sum() + tol * np.abs(mean_price).sum()
    assert -1e-12 <= dual - primal <= radius * (1.0 + 3.0) / (2.0 * math.sqrt(rounds))


@example(np.array([1e20, -3.0]), 5.0)  # there x - radius rounds to x
@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=6).map(np.array), st.floats(1e-6, 1e6))
def test_l1_ball_of_numbers_that_dwarf_the_radius(x, radius):
    # catches an empty list of candidates, where the largest entry minus the radius rounds to the entry
    found = l1_ball(x, radius)
    assert np.isfinite(found).all()
    assert np.abs(found).sum() <= radius + 1e-13 * len(x) * np.abs(x).sum()


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan])
def test_radius_must_be_positive(radius):
    # catches a radius of zero that silences every constraint
    with pytest.raises(InputError, match="positive"):
        l1_ball(np.ones(2), radius)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_prices_must_be_finite(bad):
    # catches NaN that spreads to all prices
    with pytest.raises(InputError, match="finite"):
        l1_ball(np.array([1.0, bad]), 5.0)


# -- two experts ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0, 5), st.floats(0, 5), st.floats(0.01, 3))
def test_weight_is_the_exponentiated_gradient(w, a, b, eta):
    # spec 2.12.10: catches swapped experts and a sign
    up, down = w * math.exp(-eta * a), (1 - w) * math.exp(-eta * b)
    assert two_experts(w, a, b, eta) == pytest.approx(up / (up + down), abs=1e-12)


def regret(losses, eta):
    w, paid = 0.5, 0.0
    for a, b in losses:
        paid += w * a + (1 - w) * b
        w = two_experts(w, a, b, eta)
    return paid - min(losses.sum(0))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.floats(0.01, 4), st.floats(0.1, 5), st.booleans())
def test_regret_is_within_the_bound(seed, rounds, eta, bound, blocks):
    # spec 2.12.10, also for losses that come in long blocks
    rng = np.random.default_rng(seed)
    losses = bound * rng.random((rounds, 2))
    if blocks:
        first = (np.arange(rounds) < rng.integers(rounds + 1)).astype(float)
        losses = bound * np.column_stack([first, 1 - first])
    assert regret(losses, eta) <= math.log(2) / eta + eta * rounds * bound**2 / 8 + 1e-9


@pytest.mark.parametrize("turned", [False, True])
def test_an_expert_that_was_bad_for_long_can_come_back(turned):
    # catches a weight that rounds to 0 or 1 and stays: regret 4900 where the bound is 501
    losses = np.repeat([[0.0, 1.0], [1.0, 0.0]], [100, 5000], axis=0)[:, :: -1 if turned else 1]
    assert regret(losses, 0.78) <= math.log(2) / 0.78 + 0.78 * 5100 / 8
    assert regret(losses, 0.78) <= 120.0


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_weights_of_zero_and_one_stay(w):
    # catches a prior of zero that is overruled
    assert two_experts(w, 3.0, 0.0, 1.0) == w


def test_losses_of_any_size_give_a_weight_without_overflow():
    # catches exp of large numbers: warnings are errors here
    assert 0.0 < two_experts(1e-12, 1e6, 0.0, 10.0) < 1e-9
    assert two_experts(0.5, 0.0, 1e300, 1.0) > 1 - 1e-9


@pytest.mark.parametrize("bad", [(math.nan, 0, 0, 1), (1.5, 0, 0, 1), (0.5, math.nan, 0, 1), (0.5, 0, math.inf, 1)])
def test_a_loss_that_diverged_is_refused(bad):
    # catches a NaN that becomes the weight of the ensemble
    with pytest.raises(InputError, match="finite"):
        two_experts(*bad)
