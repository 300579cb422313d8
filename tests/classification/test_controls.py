"""Controls: Fairlearn's remedies, the linear program, and FairPost beside them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from upright.classification import controls
from upright.classification.gaps import gaps
from upright.classification.post import FairPost
from upright.contract import InputError
from upright.maths.parity.constraints import Constraint
from upright.maths.parity.oracle import linear_program
from upright.maths.parity.site import Site

# small worlds have tolerances below the standard error of their gaps; what is said of that is tested by FairPost
pytestmark = pytest.mark.filterwarnings("ignore::upright.classification.post.ToleranceWarning")


def world(seed=0, n=4000, m=2, groups=2):
    """Features, probabilities that are true, labels and groups."""
    rng = np.random.default_rng(seed)
    g = rng.integers(0, groups, n)
    x = rng.normal(size=(n, 3))
    x[:, 0] += 0.8 * g
    z = 1.3 * x[:, :m] if m < 4 else x
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return x, p, (p.cumsum(1) < rng.random((n, 1))).sum(1), g


# -- Fairlearn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["demographic_parity", "equal_opportunity"])
def test_fairpost_at_zero_is_as_good_as_the_threshold_optimizer(criterion):
    # catches a remedy that pays more than it must. Fairlearn maximises accuracy by labels over pairs of thresholds,
    # FairPost by probabilities: on the rows that both see they differ by the noise of a threshold, in both directions
    _, p, y, g = world(1, n=20_000)
    decide = controls.thresholds(p, y, g, criterion)
    theirs = decide(p, g)
    post = FairPost(criterion, global_tol=0.0, randomised=True).fit(p, y, sensitive_features=g)
    ours = post.decide(p, sensitive_features=g)
    accuracy = [h[np.arange(len(y)), y].mean() for h in (theirs, ours)]
    assert abs(accuracy[0] - accuracy[1]) < 5 * np.sqrt(0.25 / len(y))
    expected = [(p * h).sum(1).mean() for h in (theirs, ours)]  # p is the truth here
    assert expected[1] > expected[0] - 0.002 * np.log(2) - 5 * np.sqrt(0.25 / len(y)) * 0.1
    se = 5 * np.sqrt(0.25 / np.bincount(g[y == 1]).min() * 2)
    for h in (theirs, ours):
        assert gaps(h, g, np.zeros(len(y)), criterion, y)["global"] < se
    plain = gaps(np.eye(2)[p.argmax(1)], g, np.zeros(len(y)), criterion, y)["global"]
    assert plain > 1.5 * se
    assert ((theirs > 0) & (theirs < 1)).any()  # expectations, not one draw: a draw would add noise in small cells


def test_reductions_meet_their_bound():
    # catches a criterion of another name, and a bound that is not handed over
    x, p, y, g = world(2, n=3000)
    draw = controls.reductions(x, y, g, "demographic_parity", 0.02, LogisticRegression())
    found = gaps(draw(x), g, np.zeros(len(y)))["global"]
    assert found < 0.02 + 5 * np.sqrt(0.25 / 1500 * 2)
    assert gaps(np.eye(2)[p.argmax(1)], g, np.zeros(len(y)))["global"] > 0.15
    free = controls.reductions(x, y, g, "demographic_parity", float("inf"), LogisticRegression())
    plain = LogisticRegression().fit(x, y).predict(x)
    assert (free(x).argmax(1) != plain).mean() < 0.1  # a mixture, of models that are nearly this one
    assert gaps(free(x), g, np.zeros(len(y)))["global"] > 0.15


def test_the_bound_of_reductions_is_that_of_the_gap_between_two_groups():
    # catches a rival that is asked for another limit: Fairlearn bounds the gap to the average
    group, label = np.repeat([0, 1], [300, 100]), np.tile([0, 1], 200)
    h = np.where(group == 0, 0.5, 0.52)
    average = max(abs(h[group == g].mean() - h.mean()) for g in (0, 1))
    bound = controls.average_bound(group, label, "demographic_parity", 0.02)
    assert bound == pytest.approx(average)
    assert controls.average_bound(np.arange(400) % 3, label, "demographic_parity", 0.02) == 0.01


@pytest.mark.parametrize(("m", "criterion"), [(3, "demographic_parity"), (2, "equalized_odds_cells")])
def test_what_fairlearn_has_no_remedy_for_is_refused(m, criterion):
    x, p, y, g = world(3, n=200, m=m)
    accepted = "two classes, and one of demographic_parity, equal_opportunity, equalized_odds"
    todo = "leave these arms out with --arms: Fairlearn has no such remedy"
    with pytest.raises(InputError) as caught:
        controls.thresholds(p, y, g, criterion)
    assert caught.value.args == (f"Fairlearn's ThresholdOptimizer for {m} classes and {criterion}", accepted, todo)
    with pytest.raises(InputError) as caught:
        controls.reductions(x, y, g, criterion, 0.01, LogisticRegression())
    assert caught.value.args == (f"Fairlearn's ExponentiatedGradient for {m} classes and {criterion}", accepted, todo)


def test_a_missing_fairlearn_is_told_in_three_parts(monkeypatch):
    # catches a bare ImportError in the middle of a run
    x, p, y, g = world(4, n=200)
    monkeypatch.setitem(sys.modules, "fairlearn", None)
    for call in (
        lambda: controls.thresholds(p, y, g, "demographic_parity"),
        lambda: controls.reductions(x, y, g, "demographic_parity", 0.01, LogisticRegression()),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.args == (
            "fairlearn is not installed", "fairlearn for the arms 'thresholds' and 'reductions'",
            "pip install 'upright[fairness]', or leave these arms out with --arms",
        )  # fmt: skip


# -- the linear program ----------------------------------------------------------------------------------------------


def test_the_linear_programs_table_decides_within_the_temperature_of_fairpost():
    # catches prices of another sign or scale: both solve one program, one of them exactly
    _, p, _, g = world(5, n=1500, m=3, groups=3)
    site = Site(p, (np.eye(3)[g],), np.full(len(p), 1 / len(p)), ("demographic_parity",))
    ((table,),) = linear_program([site], [Constraint(global_tol=0.02)])[2]
    exact = np.eye(3)[(p - table[0][g]).argmax(1)]
    post = FairPost(global_tol=0.02, temperature=1e-3).fit(p, sensitive_features=g)
    ours = np.eye(3)[post.predict(p, sensitive_features=g)]
    assert (exact != ours).any(1).mean() < 0.01
    assert (p * exact).sum(1).mean() == pytest.approx((p * ours).sum(1).mean(), abs=1e-3 * np.log(3) + 3 / 1500)
    assert (exact != np.eye(3)[p.argmax(1)]).any(1).mean() > 0.05
