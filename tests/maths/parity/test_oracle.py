"""The linear program against one written out row by row, and its prices."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from upright.contract import InputError
from upright.maths.parity import oracle
from upright.maths.parity.constraints import Constraint
from upright.maths.parity.oracle import linear_program
from upright.maths.parity.rates import CRITERIA, rates, strata
from upright.maths.parity.site import Site, adjusted

SEEDS = st.integers(0, 2**32 - 1)


def world(seed, criterion, clients=2, n=9, m=3, g=2):
    rng = np.random.default_rng(seed)
    sites = []
    for _ in range(clients):
        a = np.r_[0:g, rng.integers(g, size=n - g)]
        p = rng.dirichlet(np.ones(m), n) + 0.5 * np.eye(m)[a % m]
        sites.append(Site(p / p.sum(1, keepdims=True), (np.eye(g)[a],), rng.random(n), (criterion,)))
    total = sum(s.weight.sum() for s in sites)
    return [Site(s.p, s.members, s.weight / total, s.criteria) for s in sites]


def gaps(criterion, p, q, w, h):
    """All pairwise differences of rates, in a list."""
    r = rates(strata(criterion, p), q, w, h)
    return np.array([(r[:, a] - r[:, b]).ravel() for a, b in itertools.combinations(range(q.shape[1]), 2)]).ravel()


def by_hand(sites, criterion, global_tol, local_tol):
    """Gaps are linear in the decisions: their coefficients are the gaps of decisions with a single 1."""
    p, q, w = (np.concatenate(v) for v in zip(*((s.p, s.members[0], s.weight) for s in sites), strict=True))
    n, m = p.shape
    at = np.repeat(np.arange(len(sites)), [len(s.p) for s in sites])
    rows, tol = [], []
    units = np.eye(n * m).reshape(n * m, n, m)
    rows.append(np.array([gaps(criterion, p, q, w, h) for h in units]).T)
    tol.append(np.full(len(rows[-1]), global_tol))
    for k in range(len(sites)):
        on = at == k
        rows.append(np.array([gaps(criterion, p[on], q[on], w[on], h[on]) for h in units]).T)
        tol.append(np.full(len(rows[-1]), local_tol))
    a, b = np.concatenate(rows), np.concatenate(tol)
    found = linprog(-(w[:, None] * p).ravel(), A_ub=np.concatenate([a, -a]), b_ub=np.concatenate([b, b]),
                    A_eq=np.kron(np.eye(n), np.ones((1, m))), b_eq=np.ones(n))  # fmt: skip
    return -found.fun


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from(CRITERIA), st.sampled_from([(0.0, 0.5), (0.05, 0.1), (0.2, 0.0)]))
def test_value_equals_a_program_written_out_by_hand(seed, criterion, tol):
    # catches blocks of clients in the wrong columns, a lost sign, a tolerance without the client's weight
    sites = world(seed, criterion)
    constraint = Constraint(criterion, *tol, classes=(0, 1, 2))
    found, decisions, tables = linear_program(sites, [constraint])
    assert found == pytest.approx(by_hand(sites, criterion, *tol), abs=1e-8)
    value = 0.0
    for s, h, t in zip(sites, decisions, tables, strict=True):
        np.testing.assert_allclose(h.sum(1), 1.0, atol=1e-9)
        assert h.min() >= -1e-12
        value += float(s.weight @ (s.p * h).sum(1))
        assert np.abs(gaps(criterion, s.p, s.members[0], s.weight, h)).max() <= tol[1] + 1e-7
        z = adjusted(s.p, s.members, s.criteria, t)  # complementary slackness: mass only where the score is largest
        assert (z.max(1, keepdims=True) - z)[h > 1e-6].max() <= 1e-6
    assert value == pytest.approx(found, abs=1e-9)


def test_several_families_hold_at_once():
    # catches a second family with the first one's groups
    rng = np.random.default_rng(2)
    sites = [Site(rng.dirichlet(np.ones(2), 12), (np.eye(2)[np.arange(12) % 2], rng.dirichlet(np.ones(3), 12)),
                  np.full(12, 1 / 24), ("demographic_parity", "equalized_odds")) for _ in range(2)]  # fmt: skip
    both = [Constraint("demographic_parity", 0.0, 0.1), Constraint("equalized_odds", 0.02)]
    _, decisions, _ = linear_program(sites, both)
    p, w, h = (np.concatenate(v) for v in ([s.p for s in sites], [s.weight for s in sites], decisions))
    for c, limit in ((0, 0.0), (1, 0.02)):
        q = np.concatenate([s.members[c] for s in sites])
        assert np.abs(gaps(both[c].criterion, p, q, w, h)).max() <= limit + 1e-7


def test_without_constraints_the_largest_probability_decides():
    # spec 2.12.7: catches prices that are not zero, and an empty program that fails
    sites = world(3, "demographic_parity")
    for constraints in ([Constraint()], [Constraint(global_tol=1.0, local_tol=1.0)]):
        value, decisions, tables = linear_program(sites, constraints)
        assert value == pytest.approx(sum(float(s.weight @ s.p.max(1)) for s in sites), abs=1e-12)
        assert all((h.argmax(1) == s.p.argmax(1)).all() for s, h in zip(sites, decisions, strict=True))
        assert all(np.abs(t[0]).max() <= 1e-12 for t in tables)


def test_accuracy_does_not_fall_as_a_tolerance_grows():
    # spec 2.12.7, exact for the linear program
    sites = world(4, "equalized_odds")
    for kind in (lambda t: Constraint("equalized_odds", t, 0.3), lambda t: Constraint("equalized_odds", 0.3, t)):
        values = [linear_program(sites, [kind(t)])[0] for t in (0.0, 0.01, 0.05, 0.2, 0.6)]
        assert np.diff(values).min() >= -1e-9
        assert values[-1] - values[0] > 1e-3


def test_no_optimum_is_an_error(monkeypatch):
    # catches the decisions of a run that was cut short
    monkeypatch.setattr(oracle, "linprog", lambda *a, **k: SimpleNamespace(status=1, message="time limit"))
    with pytest.raises(InputError, match="time limit"):
        linear_program(world(5, "demographic_parity"), [Constraint(global_tol=0.1)])
