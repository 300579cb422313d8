"""Metrics of group fairness: against loops over rows, fairlearn and scipy; persons, cells, conflicts, refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from upright.contract import InputError, stream
from upright.maths.parity import rates as parity
from upright.maths.simultaneous import rate_bounds
from upright.metrics.fairness import gap_of, group_fairness

STRATA = {"true_positive": lambda y, j: y == j, "false_positive": lambda y, j: y != j, "predicted": lambda y, j: True}


def world(n=400, groups="abc", m=3, clients=3, seed=0):
    rng = np.random.default_rng(seed)
    g, y = rng.choice(list(groups), n), rng.integers(0, m, n)
    d = np.where(rng.random(n) < 0.3 + 0.2 * (g == groups[0]), y, rng.integers(0, m, n))
    return d, g, y, rng.integers(0, clients, n)


def reference(d, g, y, criterion, m):
    """Rates by loops over rows: {(stratum, class, group): (rate, n)}."""
    kinds = {
        "demographic_parity": ["predicted"],
        "equal_opportunity": ["true_positive"],
        "equalized_odds": ["true_positive", "false_positive"],
        "equalized_odds_cells": [f"label_{c}" for c in range(m)],
    }[criterion]
    out = {}
    for name, j, group in itertools.product(kinds, range(m), sorted(set(g))):
        inside = STRATA.get(name, lambda y, j, name=name: f"label_{y}" == name)
        rows = [i for i in range(len(d)) if g[i] == group and inside(y[i], j)]
        out[name, j, group] = (sum(d[i] == j for i in rows) / len(rows) if rows else math.nan, len(rows))
    return out


def pairwise(found):
    """Largest difference in a reference, by loops over pairs."""
    pairs = [(found[a], found[b]) for a, b in itertools.product(found, found) if a[:2] == b[:2]]
    return max(0.0, *(a[0] - b[0] for a, b in pairs if not math.isnan(a[0] - b[0])))


def by_key(found, client=None):
    return {(r["stratum"], r["class"], r["group"]): r for r in found.by_group if r["client"] == client}


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", parity.CRITERIA)
@pytest.mark.parametrize("m", [2, 3])
def test_rates_and_gaps_equal_loops_over_rows(criterion, m):
    # catches a wrong denominator, strata mixed up, a class or group in another's place, a level of other rows
    d, g, y, k = world(m=m)
    found = group_fairness(d, g, labels=y, clients=k, criterion=criterion, classes=range(m))
    for client, gap in zip((None, 0, 1, 2), found.gaps, strict=True):
        own = np.ones(len(d), bool) if client is None else k == client
        expected, rows = reference(d[own], g[own], y[own], criterion, m), by_key(found, client)
        assert {key for key in rows if key[2] is not None} == set(expected)
        for key, (rate, n) in expected.items():
            assert rows[key]["rate"] == pytest.approx(rate, nan_ok=True)
            assert rows[key]["n"] == n
        assert gap["client"] == client
        assert gap["value"] == pytest.approx(pairwise(expected))
        first, second = (rows[gap["stratum"], gap["class"], gap[side]] for side in ("first", "second"))
        assert gap["value"] == pytest.approx(first["rate"] - second["rate"])
        assert gap["smallest"] == min(first["n"], second["n"])
        assert gap["low"] <= gap["value"] <= gap["high"]


@pytest.mark.parametrize("criterion", parity.CRITERIA)
@pytest.mark.parametrize("random", [False, True])
def test_equal_to_rates_and_contrasts_of_the_methods(criterion, random):
    # catches a metric that measures something else than what the methods constrain, with decisions of both kinds
    d, g, y, _ = world(m=3)
    h = np.random.default_rng(1).dirichlet(np.ones(3), len(d)) if random else np.eye(3)[d]
    found = group_fairness(h if random else d, g, labels=y, criterion=criterion)
    f = parity.strata(criterion, np.eye(3)[y])
    member, weight = np.eye(3)[np.searchsorted(list("abc"), g)], np.ones(len(d))
    rate, mass = parity.rates(f, member, weight, h), parity.masses(f, member, weight, 3)
    own = [r["rate"] for r in found.by_group if r["group"] is not None]
    assert own == pytest.approx(rate.transpose(2, 0, 1).ravel().tolist())  # (m, S, G)
    for gap in ("pairwise", "average"):
        t = parity.contrasts(gap, mass, mass > 0)
        size = np.abs(np.einsum("srgj,sgj->srj", t, rate)).max()
        assert gap_of(rate, mass, gap=gap) == pytest.approx(size)
        assert gap == "average" or found.gaps[0]["value"] == pytest.approx(size)


@pytest.mark.golden
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_fairlearn(seed):
    # catches a definition that departs from the field's: another positive class, odds averaged instead of maximised
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn or its pandas is not installed")
    d, g, y, _ = world(m=2, seed=seed)
    frame = metrics.MetricFrame(metrics=metrics.true_positive_rate, y_true=y, y_pred=d, sensitive_features=g)
    gaps = {
        "demographic_parity": metrics.demographic_parity_difference(y, d, sensitive_features=g),
        "equalized_odds": metrics.equalized_odds_difference(y, d, sensitive_features=g),
        "equal_opportunity": frame.difference(),
    }
    for criterion, expected in gaps.items():
        found = group_fairness(d, g, labels=y, criterion=criterion)
        assert found.gaps[0]["value"] == pytest.approx(expected)
    assert [r["rate"] for r in found.by_group] == pytest.approx([*frame.by_group, frame.overall])


@pytest.mark.parametrize("criterion", parity.CRITERIA)
def test_a_constant_decision_has_no_gap_and_favours_nobody(criterion):
    # catches a gap made of the labels, and a group that is named as favoured by a gap of 0
    _, g, y, k = world()
    for d in (np.ones(len(g), int), np.tile([0.2, 0.3, 0.5], (len(g), 1))):
        found = group_fairness(d, g, labels=y, clients=k, criterion=criterion)
        assert all(r["value"] < 1e-12 and r["first"] is None and not r["shown"] for r in found.gaps)
        assert found.conflicts == []


def test_other_names_and_another_order_of_rows_change_no_gap():
    # catches a result that depends on the order of names or rows: all of three classes are compared
    d, g, y, k = world()
    order, swap = np.random.default_rng(3).permutation(len(d)), np.array([2, 0, 1])
    renamed = np.array([{"a": "z", "b": "q", "c": "a"}[one] for one in g])
    one = group_fairness(d, g, labels=y, clients=k, criterion="equalized_odds")
    two = group_fairness(
        swap[d][order], renamed[order], labels=swap[y][order], clients=9 - k[order], criterion="equalized_odds"
    )
    old, new = ({r["client"]: r["value"] for r in found.gaps} for found in (one, two))
    assert {None if c is None else 9 - c: value for c, value in new.items()} == pytest.approx(old)


def test_certain_probabilities_are_decisions():
    # catches a second definition for (n, m): probabilities of 0 and 1 must give the same numbers
    d, g, y, k = world()
    one, two = (group_fairness(x, g, labels=y, clients=k, criterion="equalized_odds") for x in (d, np.eye(3)[d]))
    assert one.gaps == two.gaps
    assert one.by_group == two.by_group


def test_the_last_of_two_classes_is_the_positive_one():
    # catches the other class compared, and a choice of classes or names that is ignored
    d, g, y, _ = world(m=2)
    expected = reference(d, g, y, "equal_opportunity", 2)
    for cls, more in ((1, {}), (0, {"classes": [0]}), (0, {"names": [1, 0]})):
        found = group_fairness(d, g, labels=y, criterion="equal_opportunity", **more)
        assert found.table.rates == [("true_positive", cls)]
        assert found.gaps[0]["value"] == pytest.approx(pairwise({k: v for k, v in expected.items() if k[1] == cls}))


def test_gap_of_leaves_out_groups_without_a_rate():
    # catches NaN spread over the whole, and a lone group compared with nobody
    rate = np.array([[[0.5, 0.5], [math.nan, 0.9]]])  # (S, G, m)
    assert gap_of(rate) == pytest.approx(0.4)
    assert gap_of(rate, np.array([[[3, 3], [0, 1]]]), gap="average") == pytest.approx(0.3)
    assert math.isnan(gap_of(rate[..., :1]))
    assert gap_of(np.stack([rate, rate])).shape == (2,)


# -- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hits", [0, 7, 40])
def test_a_rate_has_wilsons_interval_and_a_randomised_one_the_normal_one(hits):
    # catches an interval without width at 0 and 1, and a variance of the wrong rows
    x, one = np.r_[np.ones(hits), np.zeros(40 - hits)], np.zeros(40, dtype=np.int64)
    n, rate, low, high = rate_bounds(x, one, np.arange(40), 1)[:, 0]
    expected = stats.binomtest(hits, 40).proportion_ci(method="wilson")
    assert (n, rate, low, high) == pytest.approx((40, hits / 40, expected.low, expected.high), abs=1e-12)
    assert low < high
    p = np.random.default_rng(0).random(40)
    ends = stats.t.interval(0.95, 39, p.mean(), p.std(ddof=1) / 40**0.5)
    assert rate_bounds(p, one, np.arange(40), 1)[2:, 0] == pytest.approx(ends)


def test_intervals_of_rates_count_persons():
    # catches rows of a person that count singly: persons decide alike; 400 named streams, 5 standard errors of 95 %
    held = 0
    for k in range(400):
        rng = np.random.default_rng(stream(k, "fairness", "persons"))
        person = np.repeat(np.arange(60), rng.integers(1, 8, 60))
        x = (rng.random(60) < 0.3).astype(float)[person]
        _, _, low, high = rate_bounds(x, np.zeros(len(x), dtype=np.int64), person, 1)[:, 0]
        held += low <= 0.3 <= high
    assert abs(held / 400 - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize("inside", [False, True])
def test_rows_doubled_inside_their_person_change_nothing(inside):
    # catches copies taken for evidence: a group belongs to the person, or varies inside (then signs change)
    rng = np.random.default_rng(5)
    person = np.repeat(np.arange(80), 2)
    g, d = rng.choice(["a", "b"], 160 if inside else 80), (rng.random(160) < 0.4).astype(int)
    g = g if inside else g[person]
    one = group_fairness(d, g, persons=person)
    two = group_fairness(np.repeat(d, 2), np.repeat(g, 2), persons=np.repeat(person, 2))
    ends = [[found.gaps[0][key] for key in ("value", "low", "high", "p")] for found in (one, two)]
    assert ends[0] == (pytest.approx(ends[1], abs=1e-12) if inside else ends[1])
    assert group_fairness(d, g).gaps[0]["p"] != one.gaps[0]["p"]


# -- clients, cells, conflicts ------------------------------------------------------------------------------------


def test_small_and_empty_cells_are_named():
    # catches a rule on the wrong share, and a division by zero where a client lacks a group
    g = ["a"] * 90 + ["b"] * 10 + ["a"] * 50
    k = ["x"] * 100 + ["y"] * 50
    found = group_fairness([0, 1] * 75, g, clients=k, observations=5)
    rows = {(r["client"], r["group"]): (r["n"], r["have"], r["need"]) for r in found.small}
    assert rows == {
        (None, "b"): (10, 150, parity.needed(10 / 150, 5)),
        ("x", "b"): (10, 100, parity.needed(0.1, 5)),
        ("y", "b"): (0, 50, None),
    }
    lost = found.gaps[2]
    assert (lost["client"], lost["first"], lost["smallest"], lost["shown"]) == ("y", None, 0, False)
    assert math.isnan(lost["value"])


def test_small_cells_of_equal_opportunity_are_of_group_and_class():
    # catches cells of the group alone: 240 rows of a group are enough, 3 of one label are not
    y = [0] * 237 + [1] * 3 + [0] * 120 + [1] * 120
    found = group_fairness(
        y, ["a"] * 240 + ["b"] * 240, labels=y, criterion="equal_opportunity", classes=[0, 1], observations=2
    )
    assert [(r["group"], r["class"], r["n"]) for r in found.small] == [("a", 1, 3)]


def test_a_conflict_is_found_and_only_where_both_are_shown():
    # catches a conflict that is missed, one of noise or of tiny cells: client x favours b, both others favour a
    data = [
        (k, g, int(i < positive))
        for k, g, positive, n in (
            ("x", "a", 20, 100),
            ("x", "b", 60, 100),
            ("y", "a", 500, 800),
            ("y", "b", 100, 800),
            ("z", "a", 50, 100),
            ("z", "b", 51, 100),
            ("w", "a", 0, 20),
            ("w", "b", 20, 20),
        )
        for i in range(n)
    ]
    k, g, d = map(list, zip(*data, strict=True))
    (one,) = group_fairness(d, g, clients=k).conflicts
    assert (one["client"], one["global"]["first"], one["local"]["first"], one["local"]["class"]) == ("x", "a", "b", 1)
    assert one["local"]["value"] == pytest.approx(0.4)
    assert one["local"]["low"] > 0 < one["global"]["low"]


# -- bad input ----------------------------------------------------------------------------------------------------


def refused(*args, **options):
    with pytest.raises(InputError) as caught:
        group_fairness(*args, **options)
    return caught.value.got, caught.value.accepted, caught.value.todo


def test_bad_input_is_refused_in_three_parts():
    # catches bad input that becomes a number, and messages that do not say where
    h, g = np.array([[0.5, 0.5], [0.2, 0.8]]), ["a", "b"]
    assert refused(np.array([[0.5, 0.5], [math.nan, 0.8]]), g) == (
        "row 1 of decisions sums to nan, its smallest entry is nan",
        "probabilities of at least 0 that sum to 1 in each row",
        "normalise each row, leave out what diverged, or pass the decided classes",
    )
    assert refused(np.array([[0.5, 0.6], [0.2, 0.8]]), g)[0].startswith("row 0 of decisions sums to 1.1")
    assert refused(np.array([[0.5, 0.5], [-0.5, 1.5]]), g)[0].endswith("its smallest entry is -0.5")
    assert refused(h, ["a"] * 3)[0] == "2 decisions and 3 sensitive_features"
    assert refused(h, ["a", "a"])[0] == "one group, 'a'"
    assert refused(h, ["a", None])[0] == "sensitive_features with 1 missing, the first in row 1"
    assert refused([0, math.nan], g)[0] == "decisions with 1 missing, the first in row 1"
    assert refused(h, g, criterion="parity")[1] == ", ".join(parity.CRITERIA)
    assert refused(h, g, criterion="equalized_odds")[0] == "criterion 'equalized_odds' without labels"
    assert refused(h, g, classes=[2]) == ("class 2", "0, 1", "name classes that occur")
    assert refused(h, g, labels=[0, 5]) == ("labels with 5", "0, 1", "correct it, or add it to names")
    assert refused([0, 1], g, labels=["0", "1"])[0] == "decisions such as 0 and labels such as '0'"
    assert refused([], [])[0] == "decisions of shape (0,)"
    assert refused(h, g, names=["no"])[0] == "decisions of shape (2, 2) and 1 names"
    assert refused(h, g, observations=0)[1] == "share in (0, 1], observations of at least 1, delta in (0, 1)"
    with pytest.raises(InputError, match="gap = 'average' without masses"):
        gap_of(np.zeros((1, 2, 2)), gap="average")
