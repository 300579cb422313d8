"""The solver against brute force over supports, replicator dynamics, and the properties of the program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from replicator import replicator
from upright.contract import InputError
from upright.maths import dominant_sets as ds

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 24)
DENSITIES = st.sampled_from([0.15, 0.5, 1.0])
RATIOS = st.sampled_from([1.02, 1.2, 2.0, 10.0])


def instance(seed, n, density=1.0, ratio=1.3, targets=1):
    """A random pool (n, n), affinities (targets, n), and alpha = ratio x the largest eigenvalue."""
    rng = np.random.default_rng(seed)
    pool = np.triu(rng.random((n, n)) * (rng.random((n, n)) < density), 1)
    pool = pool + pool.T
    s = rng.random((targets, n)) ** 2 * (rng.random((targets, n)) < 0.8)
    return pool, s, ratio * ds.largest_eigenvalue(pool) or 1.0


def solve(pool, s, alpha):
    return ds.solve_pool(ds.PoolFactor(pool, alpha), np.atleast_2d(s))


def program(pool, s, alpha):
    """The matrix M - alpha I_C of the target's program, target first."""
    n = len(s)
    matrix = np.zeros((n + 1, n + 1))
    matrix[0, 1:] = matrix[1:, 0] = s
    matrix[1:, 1:] = pool - alpha * np.eye(n)
    return matrix


def all_stationary_points(pool, s, alpha):
    """Every point with the target in its support that meets the conditions, found by trying each support."""
    n, matrix, found = len(s), program(pool, s, alpha), []
    for size in range(n + 1):
        for some in itertools.combinations(range(1, n + 1), size):
            on = [0, *some]
            system = np.zeros((size + 2, size + 2))  # payoffs equal to c on the support, masses sum to 1
            system[:-1, :-1], system[:-1, -1], system[-1, :-1] = matrix[np.ix_(on, on)], -1.0, 1.0
            if abs(np.linalg.det(system)) < 1e-14:
                continue
            *mass, c = np.linalg.solve(system, [*[0.0] * (size + 1), 1.0])
            x = np.zeros(n + 1)
            x[on] = mass
            if x[on].min() > 1e-11 and (matrix @ x - c).max() < 1e-11:
                found.append(x)
    return found


# -- the exact solver -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 8), DENSITIES, RATIOS)
def test_brute_force_over_supports_finds_one_point_and_it_is_the_solvers(seed, n, density, ratio):
    # catches a wrong closed form, a wrong support, and an instance with two stationary points
    pool, s, alpha = instance(seed, n, density, ratio)
    points = all_stationary_points(pool, s[0], alpha)
    assert len(points) == 1
    found = solve(pool, s, alpha)
    np.testing.assert_allclose(np.r_[found.target_mass, found.weights[0]], points[0], atol=1e-10)


@settings(max_examples=150, deadline=None)
@given(SEEDS, SIZES, DENSITIES, RATIOS)
def test_conditions_hold_and_the_target_has_half_of_the_mass(seed, n, density, ratio):
    # catches dropping without re-admission (residuals up to 0.1) and a pool that outweighs its target
    pool, s, alpha = instance(seed, n, density, ratio, targets=5)
    found = solve(pool, s, alpha)
    assert ds.kkt_residual(pool, alpha, s, found).max() <= 1e-12
    assert (found.target_mass >= 0.5).all()
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.target_mass + found.weights.sum(1), 1.0, atol=1e-14)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.integers(2, 24), DENSITIES, RATIOS)
def test_the_nested_iteration_ends_at_the_same_point(seed, n, density, ratio):
    # the path that is proven to end is rarely taken: with no patience it is taken at once, from a random support
    pool, s, alpha = instance(seed, n, density, ratio)
    s[0, 0] += 0.1
    factor = ds.PoolFactor(pool, alpha)
    start = np.random.default_rng(seed).random(n) < 0.5
    v, c, _ = ds._active_set(factor, s[0], factor.inverse @ s[0], 0.0, start, 1e-12 * s.max(), (n + 2) ** 2, patience=0)
    found = ds.solve_pool(factor, s)
    np.testing.assert_allclose(np.maximum(v, 0.0) * found.target_mass, found.weights[0], atol=1e-12)
    np.testing.assert_allclose(c * found.target_mass, found.payoff, atol=1e-12)


def test_closed_form_on_full_support_is_the_written_one():
    # x_t = (1 + p) / ((1 + p)^2 - q r) for a pool whose members all stay: catches a slip in the rescaled form
    pool, s, _ = instance(3, 6)
    s = s + 1.0
    alpha = 20.0
    inverse = np.linalg.inv(alpha * np.eye(6) - pool)
    u, w = inverse @ s[0], inverse.sum(1)
    p, q, r = s[0] @ w, s[0] @ u, w.sum()
    x = (1 + p) / ((1 + p) ** 2 - q * r)
    y = x * u - x * q / (1 + p) * w
    assert (y > 0).all()
    found = solve(pool, s, alpha)
    np.testing.assert_allclose(np.r_[found.target_mass, found.weights[0]], np.r_[x, y], atol=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_replicator_reaches_the_same_point_from_any_start(seed):
    # catches an error that solver and brute force share (the program itself), and a second maximiser
    pool, s, alpha = instance(seed, 12, density=0.6, ratio=1.2)
    found = solve(pool, s, alpha)
    rng = np.random.default_rng(seed)
    for start in [None, *rng.dirichlet(np.ones(13), size=3)]:
        mass, weights = replicator(pool, s[0], alpha, start=start, tol=1e-14)
        assert abs(mass - found.target_mass[0]) + np.abs(weights - found.weights[0]).sum() < 1e-8


@settings(max_examples=40, deadline=None)
@given(SEEDS, SIZES)
def test_order_and_scale_of_the_pool_do_not_matter(seed, n):
    # catches an index slip between pool and affinities, and a tolerance that is not relative
    pool, s, alpha = instance(seed, n, targets=3)
    order = np.random.default_rng(seed).permutation(n)
    plain = solve(pool, s, alpha)
    moved = solve(pool[np.ix_(order, order)], s[:, order], alpha)
    np.testing.assert_allclose(moved.weights, plain.weights[:, order], atol=1e-13)
    for scale in (1e-6, 1e6):
        np.testing.assert_allclose(solve(scale * pool, scale * s, scale * alpha).weights, plain.weights, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, SIZES, st.sampled_from([0.0, 0.1, 0.9]))
def test_a_duplicated_member_shares_its_weight(seed, n, mutual):
    # twins get the same weight, and twins act as one member with half the self-penalty: catches order dependence
    pool, s, _ = instance(seed, n)
    twin = np.block([[pool, pool[:, :1]], [pool[:1], np.zeros((1, 1))]])
    twin[0, n] = twin[n, 0] = mutual
    alpha = 1.1 * ds.largest_eigenvalue(twin) or 1.0
    both = solve(twin, np.c_[s, s[:, :1]], alpha)
    np.testing.assert_allclose(both.weights[:, 0], both.weights[:, n], atol=1e-13)
    merged = np.r_[both.target_mass, both.weights[0, :n]]
    merged[1] *= 2.0
    matrix = program(pool, s[0], alpha)
    matrix[1, 1] = -(alpha - mutual) / 2.0
    payoff = matrix @ merged
    assert merged.sum() == pytest.approx(1.0, abs=1e-13)
    assert np.abs((payoff - payoff[0])[merged > 0]).max() < 1e-11
    assert (payoff - payoff[0]).max() < 1e-11


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_a_target_without_affinity_gets_nobody_and_no_nan(alpha):
    pool = np.zeros((3, 3)) if alpha < 1 else np.ones((3, 3)) - np.eye(3)
    found = solve(pool, np.zeros((2, 3)), alpha)
    assert found.target_mass.tolist() == [1.0, 1.0]
    assert not found.weights.any()
    assert found.payoff.tolist() == [0.0, 0.0]
    empty = ds.solve_pool(ds.PoolFactor(np.zeros((0, 0)), 1.0), np.zeros((2, 0)))
    assert empty.target_mass.tolist() == [1.0, 1.0]


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 8), st.integers(1, 8))
def test_members_of_another_component_get_nothing(seed, n, m):
    # K^-1 1 is positive everywhere, so the closed form alone gives strangers negative mass: they must be dropped
    (first, s, _), (second, _, _) = instance(seed, n), instance(seed + 1, m)
    pool = np.block([[first, np.zeros((n, m))], [np.zeros((m, n)), second]])
    alpha = 1.2 * ds.largest_eigenvalue(pool) or 1.0
    found = solve(pool, np.c_[s, np.zeros((1, m))], alpha)
    assert not found.weights[:, n:].any()
    np.testing.assert_allclose(found.weights[:, :n], solve(first, s, alpha).weights, atol=1e-13)


def test_limit_of_a_large_alpha_is_the_raw_similarity():
    pool, s, top = instance(0, 9, ratio=1.0)
    far = solve(pool, s, top * 1e7)
    assert far.target_mass[0] == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(far.weights[0] / far.weights.sum(), s[0] / s.sum(), atol=1e-5)


@pytest.mark.parametrize(("strength", "tol"), [(1e-2, 2e-2), (1e-4, 2e-4)])
def test_limit_of_alpha_at_the_eigenvalue_is_the_perron_vector_for_weak_affinities(strength, tol):
    # x_t -> 1/2 and y ~ Perron only as the affinities are weak beside the pool's spectral gap: see the next test
    pool, s, top = instance(0, 9, ratio=1.0)
    perron = np.abs(np.linalg.eigh(pool)[1][:, -1])
    near = solve(pool, strength * (s + 0.1), top * (1 + 1e-10))
    assert near.target_mass[0] == pytest.approx(0.5, abs=tol)
    np.testing.assert_allclose(near.weights[0] / near.weights.sum(), perron / perron.sum(), atol=tol)


def test_limit_of_alpha_at_the_eigenvalue_in_general():
    # v -> g p + G (s - c 1), p the Perron vector, G the pseudo-inverse of K, c = p's / p'1, g from s'v = c
    pool, s, top = instance(0, 9, ratio=1.0)
    s = 0.2 * (s + 0.5)
    values, vectors = np.linalg.eigh(pool)
    perron = np.abs(vectors[:, -1])
    c = perron @ s[0] / perron.sum()
    rest = (vectors[:, :-1] / (top - values[:-1])) @ vectors[:, :-1].T @ (s[0] - c)
    v = (c - s[0] @ rest) / (perron @ s[0]) * perron + rest
    assert (v > 0).all()
    near = solve(pool, s, top * (1 + 1e-8))
    np.testing.assert_allclose(near.weights[0] / near.target_mass[0], v, atol=1e-6)
    assert near.target_mass[0] > 0.501


def test_alpha_just_below_the_eigenvalue_loses_the_target_and_is_refused():
    pool, s = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0.01, 0.01])  # largest eigenvalue 1
    assert replicator(pool, s, 0.95)[0] < 1e-9
    assert solve(pool, s, 1.05).target_mass[0] >= 0.5
    for alpha in (0.95, 1.0):
        with pytest.raises(InputError, match="largest eigenvalue 1"):
            ds.PoolFactor(pool, alpha)


@settings(max_examples=40, deadline=None)
@given(SEEDS, SIZES, DENSITIES)
def test_the_row_sum_bounds_the_eigenvalue(seed, n, density):
    pool, _, _ = instance(seed, n, density)
    assert ds.row_sum_bound(pool) >= ds.largest_eigenvalue(pool) * (1 - 1e-12)


# -- replicator dynamics --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS, SIZES, RATIOS)
def test_replicator_stays_on_the_simplex_and_never_descends(seed, n, ratio):
    # catches a missing shift (negative payoffs) and the L2 normalisation of the published code
    pool, s, alpha = instance(seed, n, ratio=ratio)
    matrix = program(pool, s[0], alpha)
    x = np.random.default_rng(seed).dirichlet(np.ones(n + 1))
    for _ in range(30):
        mass, weights = replicator(pool, s[0], alpha, start=x, max_iter=1)
        new = np.r_[mass, weights]
        assert (new >= 0).all()
        assert new.sum() == pytest.approx(1.0, abs=1e-12)
        assert new @ matrix @ new >= x @ matrix @ x - 1e-12 * alpha
        x = new


@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (3.0, 1.0), (1.0, 2.5)])
def test_shift_and_scale_of_the_payoffs_do_not_move_the_fixed_point(shift, scale):
    pool, s, alpha = instance(5, 8)
    matrix = scale * (program(pool, s[0], alpha) + shift * alpha)
    x = np.full(9, 1 / 9)
    for _ in range(40_000):
        x = x * (matrix @ x)
        x /= x.sum()
    found = solve(pool, s, alpha)
    np.testing.assert_allclose(x, np.r_[found.target_mass, found.weights[0]], atol=1e-9)


# -- candidate lists ------------------------------------------------------------------------------------------------


def lists(seed, targets=37, size=60, m=9, density=0.3):
    """A sparse pool and padded candidate lists; padding carries an affinity that must be ignored."""
    rng = np.random.default_rng(seed)
    pool, _, _ = instance(seed, size, density)
    cand = np.stack([rng.permutation(size)[:m] for _ in range(targets)])
    s = rng.random((targets, m)) ** 3
    cand[rng.random(cand.shape) < 0.2] = -1
    s[0] = 0.0
    return s, cand, sparse.csr_array(pool), pool


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m", [1, 9, 40])
@pytest.mark.parametrize("alpha_factor", [1.0001, 1.05, 4.0])
def test_candidate_lists_give_the_answer_of_their_block(seed, m, alpha_factor):
    # catches entries scattered to the wrong place, padding that takes mass, and a guess that is not corrected
    s, cand, rows, pool = lists(seed, m=m)
    mass, weights = ds.solve_candidates(s, cand, rows, alpha_factor=alpha_factor, chunk=8)
    for t in range(len(cand)):
        real = cand[t] >= 0
        block = pool[np.ix_(cand[t, real], cand[t, real])]
        alpha = alpha_factor * ds.row_sum_bound(block) or max(1.0, s[t, real].max(initial=0.0))
        one = solve(block, s[t : t + 1, real], alpha)
        np.testing.assert_allclose(weights[t, real], one.weights[0], atol=1e-10)
        assert mass[t] == pytest.approx(one.target_mass[0], abs=1e-10)
        assert not weights[t, ~real].any()
        payoff = (s[t : t + 1, real] * weights[t : t + 1, real]).sum(1)
        found = ds.Solution(mass[t : t + 1], weights[t : t + 1, real], payoff, 0)
        assert ds.kkt_residual(block, alpha, s[t : t + 1, real], found).max(initial=0.0) <= 1e-10


def test_chunks_workers_and_the_fallback_do_not_change_candidate_answers(monkeypatch):
    s, cand, rows, _ = lists(1, m=30)
    mass, weights = ds.solve_candidates(s, cand, rows)
    for options in ({"chunk": 5}, {"chunk": 4, "workers": 3}):
        again = ds.solve_candidates(s, cand, rows, **options)
        np.testing.assert_allclose(again[1], weights, atol=1e-14)
        np.testing.assert_allclose(again[0], mass, atol=1e-14)
    monkeypatch.setattr(ds, "_ROUNDS", 0)  # every target goes to the solver with the proof
    np.testing.assert_allclose(ds.solve_candidates(s, cand, rows)[1], weights, atol=1e-12)


def test_a_wrong_guess_costs_rounds_but_not_the_answer(monkeypatch):
    s, cand, rows, _ = lists(2, m=30)
    weights = ds.solve_candidates(s, cand, rows)[1]
    for bad in (np.zeros, np.ones):
        monkeypatch.setattr(ds, "_guess", lambda block, s, alpha, bad=bad: bad(s.shape, dtype=bool))
        np.testing.assert_allclose(ds.solve_candidates(s, cand, rows)[1], weights, atol=1e-12)


def test_long_lists_and_no_lists():
    # from 128 candidates on, positions no longer fit one byte
    s, cand, rows, pool = lists(3, targets=3, size=200, m=150)
    weights = ds.solve_candidates(s, cand, rows)[1]
    real = cand[2] >= 0
    block = pool[np.ix_(cand[2, real], cand[2, real])]
    one = solve(block, s[2:, real], 1.05 * ds.row_sum_bound(block))
    np.testing.assert_allclose(weights[2, real], one.weights[0], atol=1e-12)
    mass, none = ds.solve_candidates(np.zeros((4, 0)), np.zeros((4, 0), dtype=int), rows)
    assert mass.tolist() == [1.0] * 4
    assert none.shape == (4, 0)
    assert ds.solve_candidates(np.zeros((0, 3)), np.zeros((0, 3), dtype=int), rows)[0].shape == (0,)


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool",
    [
        [[0.0, 1.0], [0.5, 0.0]],
        [[0.0, -1.0], [-1.0, 0.0]],
        [[1.0, 0.0], [0.0, 0.0]],
        [[0.0, np.nan], [np.nan, 0.0]],
        [[0.0, 1.0]],
    ],
    ids=["asymmetric", "negative", "diagonal", "nan", "not square"],
)
def test_a_pool_that_is_no_affinity_is_refused(pool):
    with pytest.raises(InputError, match="pool affinity"):
        ds.PoolFactor(np.array(pool), 5.0)


@pytest.mark.parametrize("s", [[[1.0, -0.1]], [[1.0, np.inf]], [[1.0]], [1.0, 1.0]])
def test_bad_affinities_are_refused(s):
    with pytest.raises(InputError, match="target affinities"):
        ds.solve_pool(ds.PoolFactor(np.array([[0.0, 1.0], [1.0, 0.0]]), 2.0), np.array(s))


@pytest.mark.parametrize(
    ("s", "cand", "options", "words"),
    [
        ([[1.0]], [[0, 1]], {}, "candidates of shape"),
        ([[1.0, 1.0]], [[0, 2]], {}, "candidates of shape"),
        ([[1.0, 1.0]], [[0, -2]], {}, "candidates of shape"),
        ([[1.0, 1.0]], [[1, 1]], {}, "names a pool member twice"),
        ([[1.0, np.nan]], [[0, 1]], {}, "target affinities"),
        ([[1.0, 1.0]], [[0, 1]], {"alpha_factor": 1.0}, "alpha_factor = 1.0"),
        ([[1.0, 1.0]], [[0, 1]], {"alpha_factor": float("nan")}, "alpha_factor = nan"),
        ([[1.0, 1.0]], [[0, 1]], {"workers": 0}, "workers = 0"),
    ],
)
def test_bad_candidate_lists_are_refused(s, cand, options, words):
    pool = sparse.csr_array(np.array([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(InputError, match=words):
        ds.solve_candidates(np.array(s), np.array(cand), pool, **options)
