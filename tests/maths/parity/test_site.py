"""A client's share of the program: value, gradient, curvature, convexity, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from upright.contract import InputError
from upright.maths.parity import site as module
from upright.maths.parity.rates import CRITERIA, rates, strata
from upright.maths.parity.site import Site, adjusted, table_size

SEEDS = st.integers(0, 2**32 - 1)
ALL = (*CRITERIA, "demographic_parity")  # five families at once, each with its own groups
GROUPS = (2, 3, 1, 2, 4)


def make(seed, n=25, m=3, soft=True):
    """A client with five families of constraints, and a table of adjustments."""
    rng = np.random.default_rng(seed)
    members = tuple(rng.dirichlet(np.ones(g), n) if soft else np.eye(g)[rng.integers(g, size=n)] for g in GROUPS)
    site = Site(rng.dirichlet(np.ones(m), n), members, rng.dirichlet(np.ones(n)), ALL)
    return site, [rng.normal(0, 0.3, shape) for shape in table_size(ALL, GROUPS, m)]


def flat(table):
    return np.concatenate([v.ravel() for v in table])


def moved(table, direction, by):
    cuts = np.cumsum([v.size for v in table])[:-1]
    return [v + by * d.reshape(v.shape) for v, d in zip(table, np.split(direction, cuts), strict=True)]


def scores_by_loops(site, table):
    """z_ij by its definition."""
    n, m = site.p.shape
    z = site.p.copy()
    for q, criterion, v in zip(site.members, site.criteria, table, strict=True):
        for s, f in enumerate(strata(criterion, site.p)):
            full = np.broadcast_to(f, (n, m))
            for i in range(n):
                for j in range(m):
                    z[i, j] -= full[i, j] * sum(q[i, g] * v[s, g, j] for g in range(q.shape[1]))
    return z


@pytest.mark.parametrize("m", [2, 3, 5])
def test_value_and_scores_are_their_definition(m):
    # catches a sign, a transposed table, and beta in the wrong place
    site, table = make(m, n=12, m=m)
    before = site.p.copy()
    z = scores_by_loops(site, table)
    np.testing.assert_allclose(adjusted(site.p, site.members, site.criteria, table), z, atol=1e-14)
    np.testing.assert_array_equal(site.p, before)  # the probabilities are not written to
    for beta in (1.0, 0.05):
        value = float(site.weight @ (beta * logsumexp(z / beta, axis=1)))
        assert site.evaluate(table, beta)[0] == pytest.approx(value, abs=1e-13)
        h = np.exp(z / beta - logsumexp(z / beta, axis=1, keepdims=True))
        np.testing.assert_allclose(site.decide(table, beta), h, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([2, 3, 4]), st.sampled_from([0.05, 0.3, 1.0]), st.booleans())
def test_gradient_and_curvature_against_finite_differences(seed, m, beta, soft):
    # spec 2.12.2: catches a wrong stratum in the gradient and cross terms missing between families
    site, table = make(seed, n=10, m=m, soft=soft)
    direction = np.random.default_rng(seed + 1).normal(size=flat(table).size)
    _, minus, second = site.evaluate(table, beta)
    step = 1e-5
    ahead, back = (site.evaluate(moved(table, direction, s * step), beta) for s in (1, -1))
    assert (ahead[0] - back[0]) / (2 * step) == pytest.approx(-float(minus @ direction), rel=1e-5, abs=1e-8)
    np.testing.assert_allclose(-(ahead[1] - back[1]) / (2 * step), second @ direction, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(second, second.T, atol=1e-12)
    assert np.linalg.eigvalsh(second).min() >= -1e-10 * max(1.0, np.abs(second).max())


def test_value_alone_is_the_same_value():
    # catches two branches that drift apart
    site, table = make(4)
    with_it, without = (site.evaluate(table, 0.1, c) for c in (True, False))
    assert with_it[0] == without[0]
    np.testing.assert_allclose(with_it[1], without[1], atol=1e-15)
    assert without[2].shape == (0, 0)


@pytest.mark.parametrize("c", range(len(ALL)))
def test_gradient_holds_the_rates_of_the_randomised_decision(c):
    # spec 2.4: minus the gradient over the mass is R; catches a gradient in another order than the table
    site, table = make(6)
    parts = np.split(site.evaluate(table, 0.1)[1], np.cumsum([v.size for v in table])[:-1])
    found = parts[c].reshape(table[c].shape) / site.masses()[c]
    truth = rates(strata(ALL[c], site.p), site.members[c], site.weight, site.decide(table, 0.1))
    np.testing.assert_allclose(found, truth, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([1e-3, 0.1, 1.0]), st.floats(0.05, 0.95))
def test_value_is_convex_along_random_segments(seed, beta, at):
    # spec 2.12.3
    site, a = make(seed, n=8)
    b = moved(a, np.random.default_rng(seed + 1).normal(size=flat(a).size), 1.0)
    between = moved(a, flat(b) - flat(a), at)
    chord = (1 - at) * site.evaluate(a, beta, False)[0] + at * site.evaluate(b, beta, False)[0]
    assert site.evaluate(between, beta, False)[0] <= chord + 1e-13


def test_the_softmax_weighted_mean_is_not_convex_where_this_value_is():
    # spec 2.12.3: the paper's operator bends by -0.37 at z = (0.34, 0), beta 0.1; catches its use in place of ours
    site = Site(np.array([[0.5, 0.5]]), (np.ones((1, 1)),), np.ones(1), ("demographic_parity",))

    def bend(f, t, step=1e-3):
        return (f(t + step) - 2 * f(t) + f(t - step)) / step**2

    def ours(t):
        return site.evaluate([np.array([[[0.5 - t, 0.5]]])], 0.1, False)[0]  # z = (t, 0)

    def mean(t):
        h = site.decide([np.array([[[0.5 - t, 0.5]]])], 0.1)[0]
        return h[0] * t

    assert ours(0.34) == pytest.approx(0.1 * math.log(1 + math.exp(3.4)))
    assert bend(mean, 0.34) == pytest.approx(-0.37, abs=0.01)
    assert min(bend(ours, t) for t in np.linspace(-1, 1, 41)) >= -1e-8


def test_pieces_of_the_data_give_the_whole(monkeypatch):
    # catches a row lost or counted twice at the edge of a piece
    site, table = make(8, n=37)
    whole = site.evaluate(table, 0.1)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 5 * flat(table).size)
    for a, b in zip(whole, site.evaluate(table, 0.1), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.parametrize("m", [2, 3])
def test_rows_of_the_same_groups_taken_together_give_the_whole(m):
    # catches: a block of curvature or an entry of the table of other groups, and rows of a group that are left out
    site, table = make(18, n=6000, m=m, soft=False)
    assert len(site._alike) == math.prod(GROUPS)
    few = [Site(site.p[i], tuple(q[i] for q in site.members), site.weight[i], ALL)
           for i in np.split(np.arange(6000), 3)]  # fmt: skip
    assert not any(part._alike for part in few)
    for curvature in (True, False):
        parts = zip(*(part.evaluate(table, 0.1, curvature) for part in few), strict=True)
        for a, b in zip(site.evaluate(table, 0.1, curvature), parts, strict=True):
            np.testing.assert_allclose(a, sum(b), atol=1e-12)
    assert make(18, n=6000, m=m)[0]._alike == []  # of estimated groups no two rows are alike


def test_sum_over_clients_is_the_pooled_value_and_order_does_not_matter():
    # spec 2.12.9: the federated gradient is the centralised one, and rows may come in any order
    site, table = make(9, n=30)
    whole = site.evaluate(table, 0.1)
    order = np.random.default_rng(0).permutation(30)
    parts = [Site(site.p[i], tuple(q[i] for q in site.members), site.weight[i], ALL).evaluate(table, 0.1)
             for i in np.split(order, [7, 8, 20])]  # fmt: skip
    for a, b in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(a, sum(b), atol=1e-13)


def test_weight_two_is_a_row_twice():
    # catches a value that counts rows
    site, table = make(10, n=6)
    twice = np.r_[0:6, 2]
    weight = site.weight.copy()
    weight[2] *= 2
    heavy = Site(site.p, site.members, weight, ALL)
    doubled = Site(site.p[twice], tuple(q[twice] for q in site.members), site.weight[twice], ALL)
    for a, b in zip(heavy.evaluate(table, 0.1), doubled.evaluate(table, 0.1), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


def test_small_temperatures_and_large_adjustments_do_not_overflow():
    # catches exp of large numbers: warnings are errors here
    site, table = make(11)
    value, minus, second = site.evaluate([1e6 * v for v in table], 1e-6)
    assert math.isfinite(value)
    assert np.isfinite(minus).all()
    assert np.isfinite(second).all()
    h = site.decide([1e6 * v for v in table], 1e-6)
    np.testing.assert_allclose(h.sum(1), 1.0)


def test_curvature_of_a_decision_near_one_is_not_rounded_away():
    # catches h - h^2, which is 0 where h rounds to 1 while the entries beside it are not: an indefinite matrix
    site = Site(np.array([[1.0, 0.0]]), (np.ones((1, 1)),), np.ones(1), ("demographic_parity",))
    second = site.evaluate([np.zeros((1, 1, 2))], 0.02)[2]
    np.testing.assert_allclose(second, math.exp(-50) / 0.02 * np.array([[1, -1], [-1, 1]]), rtol=1e-10)


def test_a_client_without_samples_adds_nothing():
    # catches a sum over an empty client that is NaN
    site = Site(np.zeros((0, 2)), (np.zeros((0, 2)),), np.zeros(0), ("equalized_odds",))
    value, minus, second = site.evaluate([np.zeros((2, 2, 2))], 0.1)
    assert (value, np.abs(minus).max(), np.abs(second).max()) == (0.0, 0.0, 0.0)
    assert not site.masses()[0].any()


P, Q, W = np.full((3, 2), 0.5), np.ones((3, 1)), np.full(3, 1 / 3)
NAN = np.array([0.5, np.nan, 0.5])


@pytest.mark.parametrize(
    ("p", "q", "w", "said"),
    [(np.full((3, 1), 1.0), Q, W, "m of at least 2"), (P[0], Q, W, "p \\(n, m\\)"), (P, Q[:2], W, "shapes"),
     (P, Q, W[:2], "shapes"), (P, Q[:, 0], W, "shapes"), (np.column_stack([NAN, NAN]), Q, W, "p with 2 entries"),
     (P, NAN[:, None], W, r"members\[0\] with 1"), (P, Q, NAN, "weight with 1"), (P, Q, -W, "weight with 3"),
     (P, np.full((3, 1), np.inf), W, r"members\[0\] with 3")],
)  # fmt: skip
def test_bad_arrays_are_refused(p, q, w, said):
    # catches a NaN that the solver took for convergence: no comparison with NaN is true
    with pytest.raises(InputError, match=said):
        Site(p, (q,), w, ("demographic_parity",))


def test_as_many_memberships_as_criteria():
    # catches a family of constraints that is dropped in silence
    with pytest.raises(InputError, match="one \\(n, groups\\) a criterion"):
        Site(P, (Q, Q), W, ("demographic_parity",))
