"""Rates and contrasts against counting in plain Python, and the identities that every criterion obeys."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from upright.contract import InputError
from upright.maths.parity import rates as r

SEEDS = st.integers(0, 2**32 - 1)
CRITERIA = st.sampled_from(r.CRITERIA)
GAPS = st.sampled_from(["pairwise", "average"])


def draw(seed, n=30, m=3, g=3):
    """Labels, groups, integer weights and decisions of a small population."""
    rng = np.random.default_rng(seed)
    return rng.integers(m, size=n), rng.integers(g, size=n), rng.integers(1, 5, size=n), rng.integers(m, size=n)


def counted(criterion, y, a, w, h, stratum, group, j):
    """The rate by counting rows, None for an empty cell."""
    belongs = {
        "demographic_parity": lambda label: True,
        "equal_opportunity": lambda label: label == j,
        "equalized_odds": lambda label: (label == j) == (stratum == 0),
        "equalized_odds_cells": lambda label: label == stratum,
    }[criterion]
    rows = [i for i in range(len(y)) if a[i] == group and belongs(y[i])]
    if not rows:
        return None
    return Fraction(sum(int(w[i]) for i in rows if h[i] == j), sum(int(w[i]) for i in rows))


@settings(max_examples=120, deadline=None)
@given(SEEDS, CRITERIA, st.integers(2, 5), st.integers(1, 4), st.integers(1, 40))
def test_rates_are_the_counted_frequencies(seed, criterion, m, g, n):
    # catches a swapped stratum, a transposed table, an unweighted count, 0 / 0 that passes for 0
    y, a, w, h = draw(seed, n, m, g)
    f = r.strata(criterion, np.eye(m)[y])
    found = r.rates(f, np.eye(g)[a], w / w.sum(), np.eye(m)[h])
    assert found.shape == (len(f), g, m)
    for s, group, j in itertools.product(range(len(f)), range(g), range(m)):
        true = counted(criterion, y, a, w, h, s, group, j)
        if true is None:
            assert np.isnan(found[s, group, j])
        else:
            assert found[s, group, j] == pytest.approx(float(true), abs=1e-12)


@pytest.mark.parametrize("criterion", r.CRITERIA)
def test_every_stratum_has_a_name(criterion):
    # catches a report that names strata in another order or leaves one out
    assert len(r.names_of_strata(criterion, ("a", "b", "c"))) == len(r.strata(criterion, np.eye(3)))


@settings(max_examples=80, deadline=None)
@given(SEEDS, CRITERIA, st.integers(2, 4), st.integers(1, 4))
def test_law_of_total_probability(seed, criterion, m, clients):
    # spec 2.12.5: catches masses that do not add over clients or over groups
    rng = np.random.default_rng(seed)
    n, g = 40, 3
    y, q = rng.dirichlet(np.ones(m), n), rng.dirichlet(np.ones(g), n)  # soft labels, soft memberships
    w, h, k = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m), n), rng.integers(clients, size=n)
    f = r.strata(criterion, y)
    rate, mass = r.rates(f, q, w, h), r.masses(f, q, w, m)
    parts = [k == c for c in range(clients) if (k == c).any()]
    mass_at = [r.masses(r.strata(criterion, y[on]), q[on], w[on], m) for on in parts]
    rate_at = [r.rates(r.strata(criterion, y[on]), q[on], w[on], h[on]) for on in parts]
    np.testing.assert_allclose(sum(mass_at), mass, atol=1e-14)
    np.testing.assert_allclose(sum(p * v for p, v in zip(mass_at, rate_at, strict=True)), mass * rate, atol=1e-14)
    whole = r.rates(f, np.ones((n, 1)), w, h)
    np.testing.assert_allclose((mass * rate).sum(1, keepdims=True), whole * mass.sum(1, keepdims=True), atol=1e-14)


def test_cells_of_one_label_sum_to_one_and_two_classes_mirror_each_other():
    # catches strata of cells that vary with the decided class; of two classes D_0 = -D_1 under demographic parity
    y, a, w, h = draw(3, 200, 2, 2)
    cells = r.rates(r.strata("equalized_odds_cells", np.eye(2)[y]), np.eye(2)[a], w, np.eye(2)[h])
    np.testing.assert_allclose(cells.sum(2), 1.0)
    both = r.rates(r.strata("equalized_odds", np.eye(2)[y]), np.eye(2)[a], w, np.eye(2)[h])
    np.testing.assert_allclose(both[1, :, 1], cells[0, :, 1])  # false positive rate of the last class
    np.testing.assert_allclose(both[0, :, 1], cells[1, :, 1])


@settings(max_examples=100, deadline=None)
@given(SEEDS, CRITERIA, GAPS, st.integers(2, 4), st.integers(1, 5))
def test_identities_of_contrasts(seed, criterion, gap, m, g):
    # spec 2.12.5: sum over classes and over groups by mass is zero, and a constant decision has no gap
    rng = np.random.default_rng(seed)
    n = 60
    y, q, w = rng.dirichlet(np.ones(m), n), rng.dirichlet(np.ones(g), n), rng.dirichlet(np.ones(n))
    f = r.strata(criterion, y)
    mass = r.masses(f, q, w, m)
    t = r.contrasts(gap, mass, mass > 0)
    assert t.shape == (len(f), g * (g - 1) // 2 if gap == "pairwise" else g, g, m)
    constant = np.tile(rng.dirichlet(np.ones(m)), (n, 1))
    np.testing.assert_allclose(np.einsum("srgj,sgj->srj", t, r.rates(f, q, w, constant)), 0.0, atol=1e-13)
    rate = r.rates(f, q, w, rng.dirichlet(np.ones(m), n))
    d = np.einsum("srgj,sgj->srj", t, rate)
    if criterion in ("demographic_parity", "equalized_odds_cells"):  # there rates of a group sum to 1
        np.testing.assert_allclose(d.sum(2), 0.0, atol=1e-13)
    if gap == "average" and g > 1:
        np.testing.assert_allclose((mass * d).sum(1), 0.0, atol=1e-14)
        whole = (mass * rate).sum(1) / mass.sum(1)
        np.testing.assert_allclose(d, rate - whole[:, None], atol=1e-13)
    if g == 1:
        assert not t.any()
    if gap == "pairwise":
        for row, (a, b) in enumerate(itertools.combinations(range(g), 2)):
            np.testing.assert_allclose(d[:, row], rate[:, a] - rate[:, b], atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(SEEDS, GAPS)
def test_contrasts_never_touch_a_group_that_is_not_counted(seed, gap):
    # catches a NaN or an empty group that enters the average, and a lone group compared with itself
    rng = np.random.default_rng(seed)
    counted = rng.random((2, 4, 3)) < 0.6
    mass = rng.random((2, 4, 3))
    t = r.contrasts(gap, mass, counted)
    assert not t[np.broadcast_to(~counted[:, None], t.shape)].any()
    np.testing.assert_allclose(t.sum(2), 0.0, atol=1e-14)  # equal rates have no gap
    several = counted.sum(1) >= 2
    assert (np.abs(t).sum((1, 2)) > 0).tolist() == several.tolist()


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.permutations(range(4)), st.permutations(range(3)))
def test_contrasts_follow_a_relabelling(seed, groups, classes):
    # spec 2.12.9: catches an order of groups or of classes that matters
    rng = np.random.default_rng(seed)
    mass, rate = rng.random((2, 4, 3)), rng.random((2, 4, 3))

    def gaps(gap, p, v):
        return np.einsum("srgj,sgj->srj", r.contrasts(gap, p, p > 0), v)

    old, new = (gaps("average", p, v) for p, v in ((mass, rate), (mass[:, groups][..., classes],
                                                                 rate[:, groups][..., classes])))  # fmt: skip
    np.testing.assert_allclose(new, old[:, groups][..., classes], atol=1e-14)
    new = gaps("pairwise", mass[:, groups][..., classes], rate[:, groups][..., classes])
    old = np.abs(gaps("pairwise", mass, rate)[..., classes])
    np.testing.assert_allclose(np.sort(np.abs(new), 1), np.sort(old, 1), atol=1e-14)


def test_needed_by_hand():
    # 2 x 10 / 0.5 + ln 20 / (2 x 0.25) = 40 + 5.99
    assert r.needed(0.5, 10, 0.05) == 46
    assert r.needed(1.0, 1, 0.5) == math.ceil(2.0 + math.log(2.0) / 2.0)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("observations", [1, 5, 30, 100])
@pytest.mark.parametrize("delta", [0.3, 0.05, 0.001])
def test_needed_is_sufficient_by_the_exact_binomial(share, observations, delta):
    # spec 2.12.12: catches p for p^2, a missing factor 2, and ln delta for ln(1 / delta)
    n = r.needed(share, observations, delta)
    assert binom.sf(observations, n, share) >= 1.0 - delta - 1e-12
    assert n <= 2.0 * observations / share + math.log(1.0 / delta) / (2.0 * share**2) + 1.0


@pytest.mark.parametrize("bad", [(0.0, 1, 0.1), (1.1, 1, 0.1), (math.nan, 1, 0.1), (0.5, 0, 0.1), (0.5, 1, 0.0),
                                 (0.5, 1, 1.0), (0.5, 1, math.nan)])  # fmt: skip
def test_needed_refuses_what_is_outside_its_range(bad):
    # catches a division by zero, and a NaN that becomes a number of samples
    with pytest.raises(InputError, match=r"share in \(0, 1\]"):
        r.needed(*bad)


def test_unknown_words_are_refused():
    # catches a misspelt criterion that constrains nothing
    with pytest.raises(InputError, match="demographic_parity"):
        r.strata("parity", np.eye(2))
    with pytest.raises(InputError, match="pairwise"):
        r.contrasts("mean", np.ones((1, 2, 2)), np.ones((1, 2, 2), dtype=bool))
