"""The solver against the conditions of optimality, computed here from their definition, and against HiGHS."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, logsumexp

from upright.contract import InputError
from upright.maths.parity.oracle import linear_program
from upright.maths.parity.program import Constraint, solve
from upright.maths.parity.rates import CRITERIA
from upright.maths.parity.site import Site, adjusted

SEEDS = st.integers(0, 2**32 - 1)
DP, EOP, EO, CELLS = CRITERIA
INF = math.inf


def world(seed, clients=3, n=60, m=3, groups=(2,), criteria=(DP,), soft=False):
    """Clients of different sizes whose groups differ in their probabilities, with different groups for each family."""
    rng = np.random.default_rng(seed)
    pull = [rng.normal(0, 0.8, (g, m)) for g in groups]
    sites = []
    for size in rng.integers(n // 2, n + 1, size=clients):
        score, members = rng.normal(0, 1, (size, m)), []
        for g, own in zip(groups, pull, strict=True):
            a = np.r_[0:g, rng.integers(g, size=size - g)]
            q = np.eye(g)[a]
            members.append(0.7 * q + 0.3 * rng.dirichlet(np.ones(g), size) if soft else q)
            score += own[a]
        p = np.exp(score)
        sites.append(Site(p / p.sum(1, keepdims=True), tuple(members), rng.uniform(0.5, 1.5, size), tuple(criteria)))
    total = sum(s.weight.sum() for s in sites)
    return [Site(s.p, s.members, s.weight / total, s.criteria) for s in sites]


def pool(sites):
    members = tuple(np.concatenate(q) for q in zip(*(s.members for s in sites), strict=True))
    p, weight = (np.concatenate(v) for v in ([s.p for s in sites], [s.weight for s in sites]))
    return Site(p, members, weight, sites[0].criteria)


def gaps(site, constraint, c, h):
    """|D| of one population by definition: stratum by stratum, class by class, group against group or average."""
    p, q, w, m = site.p, site.members[c], site.weight, site.p.shape[1]
    found = []
    for j in constraint.chosen(m):
        within = {DP: [np.ones(len(p))], EOP: [p[:, j]], EO: [p[:, j], 1 - p[:, j]], CELLS: list(p.T)}[site.criteria[c]]
        for f in within:
            mass = np.array([(w * f * q[:, g]).sum() for g in range(q.shape[1])])
            there = mass > 1e-9 * w.sum()  # less is empty, and said to be masked
            rate = np.array([(w * f * q[:, g] * h[:, j]).sum() for g in np.flatnonzero(there)]) / mass[there]
            if constraint.gap == "pairwise":
                found += [abs(a - b) for a, b in itertools.combinations(rate, 2)]
            elif len(rate) > 1:
                found += list(np.abs(rate - (mass[there] * rate).sum() / mass[there].sum()))
    return np.array(found)


def decisions(sites, solution):
    """softmax(z / beta), not by the site's own method."""
    z = [adjusted(s.p, s.members, s.criteria, t) / solution.beta for s, t in zip(sites, solution.tables, strict=True)]
    return [np.exp(v - logsumexp(v, axis=1, keepdims=True)) for v in z]


def accuracy(sites, h):
    return sum(float(s.weight @ (s.p * own).sum(1)) for s, own in zip(sites, h, strict=True))


def objective(sites, h, beta):
    return accuracy(sites, h) + beta * sum(float(s.weight @ entr(own).sum(1)) for s, own in zip(sites, h, strict=True))


def dual_value(sites, solution):
    dual = 0.0
    for s, t in zip(sites, solution.tables, strict=True):
        z = adjusted(s.p, s.members, s.criteria, t) / solution.beta
        dual += float(s.weight @ (solution.beta * logsumexp(z, axis=1)))
    for price, level in zip([solution.prices, *solution.local_prices], solution.levels, strict=True):
        dual += level.share * float(level.tol @ np.abs(price))
    return dual


def check(sites, constraints, solution, tol=1e-6):
    """A certificate: feasible, and the dual value equals the primal one. Weak duality makes both optimal."""
    h = decisions(sites, solution)
    whole, local = pool(sites), [c.local(len(sites)) for c in constraints]
    for c, one in enumerate(constraints):
        worst = gaps(whole, one, c, np.concatenate(h)).max(initial=0.0) - one.global_tol
        assert worst <= tol, ("global", c, worst)
        for k, site in enumerate(sites):
            worst = gaps(site, one, c, h[k]).max(initial=0.0) - local[c][k]
            assert worst <= tol, ("local", c, k, worst)
    dual = dual_value(sites, solution)
    size = 1 + sum(float(np.abs(v).sum()) for v in [solution.prices, *solution.local_prices])
    assert abs(dual - objective(sites, h, solution.beta)) <= tol * size
    assert abs(solution.duality_gap) <= 1e-6
    assert solution.kkt <= 1e-6
    assert solution.converged
    for price, d, level in zip([solution.prices, *solution.local_prices], [solution.values, *solution.local_values],
                               solution.levels, strict=True):  # fmt: skip
        np.testing.assert_allclose(d[price != 0], (level.tol * np.sign(price))[price != 0], atol=tol)
    return h


# -- optimality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("gap", ["pairwise", "average"])
@pytest.mark.parametrize("tol", [(0.0, 0.0), (0.0, INF), (INF, 0.01), (0.02, [0.0, INF, 0.1]), (1e-9, 0.05)])
def test_conditions_of_optimality(criterion, gap, tol):
    # spec 2.12.1: catches every wrong sign, scale and mask, for the check shares nothing with the solver's matrices
    for seed, m, g in ((1, 2, 2), (2, 3, 3)):
        sites = world(seed, m=m, groups=(g,), criteria=(criterion,))
        constraints = [Constraint(criterion, *tol, gap)]
        check(sites, constraints, solve(sites, constraints))


@settings(max_examples=12, deadline=None)
@given(SEEDS, st.booleans(), st.sampled_from([1e-3, 0.01, 0.3]))
def test_several_families_with_their_own_groups(seed, soft, beta):
    # spec 2.12.1: race and sex at once, hard or attribute-blind; catches a family read with another's membership
    sites = world(seed, m=3, groups=(2, 3, 2), criteria=(DP, EO, DP), soft=soft)
    constraints = [Constraint(DP, 0.01, 0.05), Constraint(EO, 0.05, INF, "average", (0, 2)), Constraint(DP, INF, 0.1)]
    check(sites, constraints, solve(sites, constraints, beta))


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from(CRITERIA), st.sampled_from([0.002, 0.02]), st.sampled_from([(0.0, 0.1), (0.05, 0.02)]))
def test_accuracy_is_within_beta_log_m_of_the_linear_program(seed, criterion, beta, tol):
    # theory: LP - beta log m <= accuracy <= LP, for the randomised decision is feasible in the linear program; up to
    # what kkt violations are worth at the solver's prices
    sites = world(seed, clients=2, n=30, m=3, criteria=(criterion,))
    constraints = [Constraint(criterion, *tol)]
    solution = solve(sites, constraints, beta)
    best, *_ = linear_program(sites, constraints)
    found = accuracy(sites, check(sites, constraints, solution))
    assert found >= best - beta * math.log(3) - 1e-6
    assert found <= best + 1e-6


@pytest.mark.parametrize("tol", [0.1, 0.2, 0.45])
def test_four_samples_by_hand(tol):
    # p(1) is .9 .8 in group A and .4 .1 in B. Equal rates of 1/2 cost least: .6. A tolerance t lets B's first sample or
    # A's second follow its probability; the second is worth .6 2t / 4, so accuracy is .6 + .3 t until t = 1/2. That
    # sample is decided 1 with probability 2t; its log-odds (.6 - 2 price) / beta give the price
    p = np.array([0.9, 0.8, 0.4, 0.1])
    site = Site(np.column_stack([1 - p, p]), (np.eye(2)[[0, 0, 1, 1]],), np.full(4, 0.25), (DP,))
    one = [Constraint(DP, tol, classes=(1,))]
    solution = solve([site], one, 0.005)
    h = check([site], one, solution)[0]
    # rate of B is 1/2 (its first sample is decided 1), of A 1/2 + t
    np.testing.assert_allclose(h[:, 1], [1.0, 2 * tol, 1.0, 0.0], atol=1e-6)
    assert accuracy([site], [h]) == pytest.approx(0.6 + 0.3 * tol, abs=1e-6)
    price = 0.3 - 0.0025 * math.log(2 * tol / (1 - 2 * tol))
    assert solution.prices.tolist() == pytest.approx([price], abs=1e-6)
    assert linear_program([site], one)[0] == pytest.approx(0.6 + 0.3 * tol, abs=1e-9)


def test_prices_are_what_a_unit_of_tolerance_costs():
    # the envelope theorem; catches prices of another scale, as mu in place of nu for small clients
    sites = world(7, clients=2, m=2, criteria=(EO,))

    def value(a, b):
        solution = solve(sites, [Constraint(EO, a, [b, 0.1])], 0.02)
        return objective(sites, decisions(sites, solution), 0.02), solution

    _, at = value(0.03, 0.02)
    for up, down, price in (
        (value(0.0301, 0.02), value(0.0299, 0.02), np.abs(at.prices).sum()),
        (value(0.03, 0.0201), value(0.03, 0.0199), at.levels[1].share * np.abs(at.local_prices[0]).sum()),
    ):
        assert price > 1e-3
        assert (up[0] - down[0]) / 2e-4 == pytest.approx(price, rel=2e-2)


def test_argmax_violation_tends_to_the_tolerance():
    # spec 2.12.4: only samples that are split between classes can differ, and they become few as beta falls
    sites = world(8, clients=2, n=1500, m=2)
    constraints = [Constraint(DP, 0.02, 0.05)]
    over = []
    for beta in (0.1, 0.02, 0.002, 2e-4):
        solution = solve(sites, constraints, beta)
        hard = [np.eye(2)[h.argmax(1)] for h in check(sites, constraints, solution)]
        over.append(gaps(pool(sites), constraints[0], 0, np.concatenate(hard)).max() - 0.02)
    # two samples of the pooled population at most carry 3 prices in part: 1.5 weights over the mass of a group
    heaviest = max(float(s.weight.max()) for s in sites) / min(float(v.min()) for v in pool(sites).masses())
    assert over[-1] <= 4 * heaviest
    assert max(over[0], over[1]) > 4 * max(over[-1], 0.0)


# -- tolerances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_infinite_and_large_tolerances_constrain_nothing(criterion):
    # spec 2.12.7: catches a price left over by the smoothing
    sites = world(9, criteria=(criterion,))
    for constraints in ([Constraint(criterion)], [Constraint(criterion, 1.5, 1.5)]):
        solution = solve(sites, constraints)
        assert not any(np.any(v) for v in [solution.prices, *solution.local_prices])
        for s, h in zip(sites, check(sites, constraints, solution), strict=True):
            plain = np.exp((s.p - s.p.max(1, keepdims=True)) / 0.002)
            np.testing.assert_allclose(h, plain / plain.sum(1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("level", ["global", "local"])
def test_objective_does_not_fall_as_a_tolerance_grows_and_warm_equals_cold(level):
    # spec 2.12.7; also catches a warm start that stops early or carries prices to the wrong places
    sites = world(10, m=3, groups=(3,), criteria=(EO,))
    last, start = -INF, None
    for tol in (0.0, 0.005, 0.02, 0.1, INF, 0.05, 0.3, 0.0):  # infinity drops prices on the way
        one = [Constraint(EO, *((tol, 0.2) if level == "global" else (0.2, tol)))]
        cold = solve(sites, one, 0.01)
        start = solve(sites, one, 0.01, start=start)
        for a, b in zip(check(sites, one, cold), check(sites, one, start), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        value = objective(sites, decisions(sites, cold), 0.01)
        if tol in (0.0, 0.005, 0.02, 0.1, INF) and not (tol == 0.0 and last > -INF):
            assert value >= last - 1e-7
            last = value


def test_a_start_of_other_clients_is_not_used():
    # catches prices of one client given to another
    sites = world(11)
    other = solve(world(12, clients=2), [Constraint(DP, 0.0)])
    check(sites, [Constraint(DP, 0.0)], solve(sites, [Constraint(DP, 0.0)], start=other))


# -- symmetries -----------------------------------------------------------------------------------------------------


def test_one_client_has_one_level():
    # spec 2.12.8: global and local constraints are the same, alone or together
    sites = world(13, clients=1, criteria=(EO,))
    both = [decisions(sites, solve(sites, [Constraint(EO, *t)])) for t in ((0.02, INF), (INF, 0.02), (0.02, 0.02))]
    for other in both[1:]:
        np.testing.assert_allclose(other[0], both[0][0], atol=1e-5)


def test_identical_clients_need_no_local_prices_of_their_own():
    # spec 2.12.8: the local optimum is the global one
    one = world(14, clients=1)[0]
    sites = [Site(one.p, one.members, one.weight * share, one.criteria) for share in (0.5, 0.3, 0.2)]
    by = [decisions(sites, solve(sites, [Constraint(DP, *t)])) for t in ((0.01, INF), (INF, 0.01))]
    for h in (*by[0], *by[1]):
        np.testing.assert_allclose(h, by[0][0], atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.permutations(range(3)), st.permutations(range(3)), st.permutations(range(3)))
def test_order_of_clients_samples_groups_and_classes_does_not_matter(seed, clients, groups, classes):
    # spec 2.12.9: catches anything tied to a position
    sites = world(seed, m=3, groups=(3,), criteria=(EOP,))
    constraints = [Constraint(EOP, 0.02, [0.05, 0.1, INF])]
    h = decisions(sites, solve(sites, constraints, 0.01))
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(len(s.p)) for s in sites]
    mixed = [Site(sites[k].p[rows[k]][:, classes], (sites[k].members[0][rows[k]][:, groups],), sites[k].weight[rows[k]],
                  sites[k].criteria) for k in clients]  # fmt: skip
    local = [(0.05, 0.1, INF)[k] for k in clients]
    again = decisions(mixed, solve(mixed, [Constraint(EOP, 0.02, local)], 0.01))
    for k, own in zip(clients, again, strict=True):
        np.testing.assert_allclose(own, h[k][rows[k]][:, classes], atol=1e-5)


def test_constraints_stated_twice_change_nothing():
    # catches a factorisation that needs independent constraints
    sites = world(15, m=3, groups=(3,))
    doubled = [Site(s.p, s.members * 2, s.weight, (DP, DP)) for s in sites]
    once, twice = [Constraint(DP, 0.01, 0.03)], [Constraint(DP, 0.01, 0.03)] * 2
    a = check(sites, once, solve(sites, once))
    b = check(doubled, twice, solve(doubled, twice))
    implied = [Constraint(DP, 0.0, 0.0, classes=(0, 1))]  # the gap of the third class is minus the sum of the others
    c, d = (check(sites, x, solve(sites, x)) for x in (implied, [Constraint(DP, 0.0, 0.0)]))
    for left, right in ((a, b), (c, d)):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_weight_two_is_a_row_twice():
    # catches masses that count rows
    sites = world(16, clients=2)
    first = sites[0]
    weight = first.weight.copy()
    weight[3] *= 2
    twice = np.r_[0 : len(first.p), 3]
    total = 1 + first.weight[3]
    rest = Site(sites[1].p, sites[1].members, sites[1].weight / total, sites[1].criteria)
    heavy = [Site(first.p, first.members, weight / total, first.criteria), rest]
    doubled = [Site(first.p[twice], (first.members[0][twice],), first.weight[twice] / total, first.criteria), rest]
    one = [Constraint(DP, 0.01, 0.02)]
    a, b = (check(s, one, solve(s, one)) for s in (heavy, doubled))
    np.testing.assert_allclose(a[0], b[0][:-1], atol=1e-6)
    np.testing.assert_allclose(b[0][-1], b[0][3], atol=1e-12)


# -- degenerate input -----------------------------------------------------------------------------------------------


def degenerate(name):
    a = np.eye(2)[np.arange(12) % 2]
    onehot, third = np.eye(3)[np.arange(12) % 3], np.eye(3)[np.r_[0:6, 0:6] // 2]
    flat = np.tile([0.5, 0.3, 0.2], (12, 1))
    never = np.random.default_rng(0).dirichlet([2, 2], 12) @ np.array([[1.0, 0, 0], [0, 1.0, 0]])
    nearly = flat + 1e-12 * np.arange(12)[:, None] * np.array([1, 0, -1])
    p = {"one-hot": onehot, "one-hot by group": third, "all rows equal": flat, "ties": np.full((12, 3), 1 / 3),
         "a class never": never, "nearly equal": nearly}  # fmt: skip
    return p[name], a


@pytest.mark.parametrize("name", ["one-hot", "one-hot by group", "all rows equal", "ties", "a class never",
                                  "nearly equal"])  # fmt: skip
@pytest.mark.parametrize("beta", [1e-4, 0.002, 1.0])
def test_degenerate_probabilities(name, beta):
    # catches steps without curvature, overflow, and strata without mass
    p, a = degenerate(name)
    for criterion in CRITERIA:
        for tol in ((0.0, INF), (1e-9, 1e-9), (0.1, 0.0)):
            sites = [Site(p[i], (a[i],), np.full(6, 1 / 12), (criterion,)) for i in (slice(0, 6), slice(6, 12))]
            one = [Constraint(criterion, *tol)]
            check(sites, one, solve(sites, one, beta))


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_small_clients_lone_groups_and_no_samples(m):
    # catches a client of one group, of one sample, or of none, that breaks the others
    sites = world(m, clients=1, n=20, m=m, groups=(3,), criteria=(CELLS,))
    rng = np.random.default_rng(m)
    one = Site(rng.dirichlet(np.ones(m), 1), (np.eye(3)[[1]],), np.array([0.02]), (CELLS,))
    lone = Site(rng.dirichlet(np.ones(m), 5), (np.eye(3)[np.zeros(5, dtype=int)],), np.full(5, 0.02), (CELLS,))
    none = Site(np.zeros((0, m)), (np.zeros((0, 3)),), np.zeros(0), (CELLS,))
    big = Site(sites[0].p, sites[0].members, sites[0].weight * 0.88, (CELLS,))
    for constraints in ([Constraint(CELLS, 0.01, 0.0)], [Constraint(CELLS, 0.05, 0.02, "average")]):
        every = [big, one, lone, none]
        solution = solve(every, constraints)
        check(every, constraints, solution)
        assert [len(v) for v in solution.local_prices][1:] == [0, 0, 0]
        assert len(solution.levels[2].masked) > 0  # named, not dropped in silence


def test_a_single_sample():
    # catches a program without constraints whose matrices have no columns
    site = Site(np.array([[0.3, 0.7]]), (np.eye(2)[[0]],), np.ones(1), (DP,))
    solution = solve([site], [Constraint(DP, 0.0, 0.0)], 0.1)
    assert solution.prices.shape == (0,)
    assert decisions([site], solution)[0][0, 1] == pytest.approx(1 / (1 + math.exp(-4)))


@pytest.mark.parametrize("beta", [1e-4, 1e-3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_hard_programs_converge_at_any_temperature(beta, seed):
    # catches prices near zero that are cut off without solving for the rest: violations of 1e-4 at beta 1e-4
    sites = world(seed, clients=4, n=200, m=3, groups=(3,), criteria=(CELLS,))
    for tol in ((0.01, 0.02), (1e-9, 0.02)):
        one = [Constraint(CELLS, *tol)]
        check(sites, one, solve(sites, one, beta))


def test_clients_of_few_samples_with_extreme_probabilities():
    # catches dependent constraints whose curvature rounds to an indefinite matrix, prices that drift along directions
    # that move nothing, and strata of mass 1e-13: each stopped the solver, or made prices of 1e14
    rng = np.random.default_rng(3)
    for trial in range(40):
        m, g = int(rng.integers(2, 6)), int(rng.integers(2, 4))
        criterion, sizes = CRITERIA[trial % 4], rng.choice([1, 2, 5, 20], size=3)
        sites = []
        for n in sizes:
            p = rng.dirichlet(np.full(m, 0.05 if trial % 2 else 1.0), n)
            q = rng.dirichlet(np.ones(g), n) if trial % 3 else np.eye(g)[rng.integers(g, size=n)]
            sites.append(Site(p, (q,), np.full(n, 1 / sizes.sum()), (criterion,)))
        tol, gap = rng.choice([0.0, 1e-9, 0.01, 0.2], 2), ("pairwise", "average")[trial % 2]
        one = [Constraint(criterion, tol[0], tol[1], gap)]
        solution = solve(sites, one, (1e-4, 0.002, 0.1)[trial % 3])
        assert solution.converged
        largest = max(float(np.abs(v).max(initial=0.0)) for v in [solution.prices, *solution.local_prices])
        assert abs(solution.duality_gap) <= 1e-6 * max(1.0, largest)
        h = decisions(sites, solution)
        assert gaps(pool(sites), one[0], 0, np.concatenate(h)).max(initial=0.0) <= tol[0] + 1e-6
        for site, own in zip(sites, h, strict=True):
            assert gaps(site, one[0], 0, own).max(initial=0.0) <= tol[1] + 1e-6


def test_too_few_steps_are_said():
    # catches a solution that claims to have converged
    sites = world(17, criteria=(EO,))
    short = solve(sites, [Constraint(EO, 0.0, 0.01)], most=2)
    assert not short.converged
    assert short.kkt > 1e-3
    truth = dual_value(sites, short) - objective(sites, decisions(sites, short), short.beta)
    assert short.duality_gap == pytest.approx(truth, abs=1e-12)  # far from 0 here, so that levels' weights show
    full = solve(sites, [Constraint(EO, 0.0, 0.01)])
    assert full.converged
    assert (
        solve(sites, [Constraint(EO, 0.0, 0.01)], start=full).iterations < full.iterations / 2
    )  # starts where it ended
    assert full.iterations >= sum(h["steps"] for h in full.history) > short.iterations


@pytest.mark.parametrize(("wrong", "said"), [({"beta": 0.0}, "beta = 0"), ({"beta": math.nan}, "beta = nan"),
                                             ({"tol": -1.0}, "tol = -1"), ({"most": 0}, "most = 0")])  # fmt: skip
def test_settings_must_be_positive(wrong, said):
    # catches a division by a temperature of zero
    with pytest.raises(InputError, match=said):
        solve(world(1), [Constraint()], **wrong)


def test_weights_must_sum_to_one():
    # catches tolerances that mean something else: the global level divides by 1, not by the sum
    site = world(1, clients=1)[0]
    with pytest.raises(InputError, match="sum to 1"):
        solve([Site(site.p, site.members, 2 * site.weight, site.criteria)], [Constraint(DP, 0.1)])
    with pytest.raises(InputError, match="0 clients"):
        solve([], [Constraint()])
