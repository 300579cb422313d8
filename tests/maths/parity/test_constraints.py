"""Which constraints exist, what their matrix computes, and which are left out by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths.parity.constraints import Constraint, levels_of
from upright.maths.parity.rates import CRITERIA, contrasts, masses, masses_fit, rates, strata
from upright.maths.parity.site import Site, table_size

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(CRITERIA), st.sampled_from(["pairwise", "average"]), st.integers(2, 4),
       st.floats(0.1, 1.0))  # fmt: skip
def test_matrix_turns_sums_into_gaps_times_the_weight(seed, criterion, gap, m, share):
    # catches a matrix that is divided twice by the client's weight, or not at all, and a wrong place of a price
    rng = np.random.default_rng(seed)
    n = 40
    site = Site(rng.dirichlet(np.ones(m), n), (np.eye(3)[np.arange(n) % 3], rng.dirichlet(np.ones(2), n)),
                share * rng.dirichlet(np.ones(n)), (criterion, "demographic_parity"))  # fmt: skip
    both = [Constraint(criterion, 0.1, gap=gap), Constraint("demographic_parity", 0.2)]
    level = levels_of(both, site.masses(), [0.1, 0.2], share)
    table = [rng.normal(0, 0.1, s) for s in table_size(site.criteria, [3, 2], m)]
    h = site.decide(table, 0.2)
    found = level.matrix.T @ site.evaluate(table, 0.2)[1]
    for u, (c, s, row, j) in enumerate(level.place):
        f = strata(site.criteria[c], site.p)
        mass = site.masses()[c]
        rate = rates(f, site.members[c], site.weight, h)
        d = np.einsum("srgj,sgj->srj", contrasts(both[c].gap, mass, mass > 0), rate)
        assert found[u] == pytest.approx(share * d[s, row, j], abs=1e-12)
        assert level.tol[u] == (0.1, 0.2)[c]
    assert len({tuple(p) for p in level.place.tolist()}) == len(level.place)


def test_empty_groups_are_left_out_and_named():
    # spec 2.12.5: catches a division by zero and a constraint that goes missing without a word
    q = np.eye(3)[[0, 0, 1, 1]]  # nobody in group 2
    site = Site(np.full((4, 2), 0.5), (q,), np.full(4, 0.25), ("demographic_parity",))
    pairs = levels_of([Constraint(global_tol=0.1, classes=(0, 1))], site.masses(), [0.1], 1.0)
    assert pairs.place.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]  # 0 with 1
    assert pairs.masked.tolist() == [[0, 0, r, j] for r in (1, 2) for j in (0, 1)]  # 0 with 2, 1 with 2
    means = levels_of([Constraint(global_tol=0.1, gap="average", classes=(0, 1))], site.masses(), [0.1], 1.0)
    assert means.place[:, 2].tolist() == [0, 0, 1, 1]
    assert means.masked.tolist() == [[0, 0, 2, 0], [0, 0, 2, 1]]
    assert np.isfinite(means.matrix).all()


def test_a_label_that_a_group_never_has_is_left_out_in_its_stratum_only():
    # catches a mask over whole groups: the other label can still be compared
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])  # group 0 never has label 1
    site = Site(p, (np.eye(2)[[0, 0, 1, 1]],), np.full(4, 0.25), ("equalized_odds_cells",))
    cells = Constraint("equalized_odds_cells", 0.1, classes=(0, 1))
    level = levels_of([cells], site.masses(), [0.1], 1.0)
    assert level.place.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert level.masked.tolist() == [[0, 1, 0, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_a_mass_below_rounding_is_empty(share):
    # catches a stratum of mass 1e-13: the objective does not resolve it, and prices of 1e12 stop all other steps
    for tiny, prices in ((1e-13, 0), (1e-6, 2)):
        q = np.array([[1.0 - tiny, tiny], [1.0, 0.0]])
        site = Site(np.full((2, 2), 0.5), (q,), np.full(2, share / 2), ("demographic_parity",))
        level = levels_of([Constraint(global_tol=0.1, classes=(0, 1))], site.masses(), [0.1], share)
        assert (len(level.place), len(level.masked)) == (prices, 2 - prices)


@pytest.mark.parametrize("gap", ["pairwise", "average"])
def test_one_group_and_no_samples_have_no_constraints(gap):
    # catches a group compared with itself, and 0 / 0 at a client without samples
    for n in (3, 0):
        site = Site(np.full((n, 2), 0.5), (np.ones((n, 1)), np.eye(2)[np.zeros(n, dtype=int)]), np.full(n, 0.1),
                    ("demographic_parity", "equal_opportunity"))  # fmt: skip
        both = [Constraint(gap=gap), Constraint("equal_opportunity", gap=gap)]
        level = levels_of(both, site.masses(), [0.1, 0.1], 0.1 * n)
        assert level.matrix.shape == (6, 0)
        assert set(level.masked[:, 0]) == {1}  # of the second family one group is empty, so all its contrasts


def test_infinite_tolerances_leave_no_price():
    # spec 2.12.7
    site = Site(np.full((4, 2), 0.5), (np.eye(2)[[0, 0, 1, 1]],), np.full(4, 0.25), ("demographic_parity",))
    level = levels_of([Constraint()], site.masses(), [math.inf], 1.0)
    assert level.matrix.shape == (2 * 2, 0)
    assert level.masked.shape == level.place.shape == (0, 4)


def test_classes_by_default_and_by_choice():
    # catches a price that is shared between two classes of which one says all
    assert Constraint("equal_opportunity").chosen(2) == (1,)
    assert Constraint("equal_opportunity").chosen(3) == (0, 1, 2)
    assert Constraint().chosen(2) == (1,)
    assert Constraint().chosen(3) == (0, 1, 2)
    assert Constraint(classes=(0, 1)).chosen(2) == (0, 1)
    assert Constraint(classes=(2,)).chosen(3) == (2,)
    np.testing.assert_array_equal(Constraint(local_tol=0.1).local(3), [0.1] * 3)
    np.testing.assert_array_equal(Constraint(local_tol=[0.1, math.inf]).local(2), [0.1, math.inf])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"criterion": "parity"}, "demographic_parity"), ({"gap": "mean"}, "pairwise"),
     ({"global_tol": -0.1}, "at least 0"), ({"global_tol": math.nan}, "at least 0"),
     ({"local_tol": [0.1, -1.0]}, "at least 0"),
     ({"local_tol": [[0.1]]}, "at least 0")],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong, said):
    # catches a misspelt word, and a negative tolerance that nothing can meet
    with pytest.raises(InputError, match=said):
        Constraint(**wrong)


def test_classes_and_tolerances_must_fit_the_data():
    # catches a class that does not exist, and one tolerance too few
    for classes in ((), (2,), (-1,)):
        with pytest.raises(InputError, match="some of 0 to 1"):
            Constraint(classes=classes).chosen(2)
    with pytest.raises(InputError, match="one number, or 3"):
        Constraint(local_tol=[0.1, 0.2]).local(3)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("soft", [False, True])
def test_masses_fit_their_own_number_of_rows_and_no_other(criterion, soft):
    # catches a count that is not that of the rows, whatever the criterion counts them as
    rng = np.random.default_rng(3)
    n, m, groups = 57, 3, 4
    y, member = np.eye(m)[rng.integers(0, m, n)], np.eye(groups)[rng.integers(0, groups, n)]
    if soft:
        y, member = rng.dirichlet(np.ones(m), n), rng.dirichlet(np.ones(groups), n)
    mass = masses(strata(criterion, y), member, np.ones(n), m)
    assert masses_fit([criterion], [mass], n)
    for rows in (n - 1, n + 1, n + 1e-7, 1e9, float("inf")):
        assert not masses_fit([criterion], [mass], rows)
    assert not masses_fit([criterion], [mass + 1.0], n)
    turned = mass.copy()
    turned[0, 0, 0], turned[0, 1, 0] = -1.0, turned[0, 1, 0] + turned[0, 0, 0] + 1.0
    assert not masses_fit([criterion], [turned], n)
