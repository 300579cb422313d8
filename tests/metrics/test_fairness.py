"""Metrics of group fairness: against loops over rows and fairlearn, identities, intervals, what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths.parity import rates as parity
from upright.metrics.fairness import fairness_of, gap_of, group_fairness, tabulate


def world(n=400, groups="abc", m=3, clients=3, seed=0, signal=0.3):
    rng = np.random.default_rng(seed)
    g = rng.choice(list(groups), n)
    y = rng.integers(0, m, n)
    d = np.where(rng.random(n) < signal + 0.2 * (g == groups[0]), y, rng.integers(0, m, n))
    return d, g, y, rng.integers(0, clients, n)


def reference(d, g, y, criterion, m):
    """Rates by loops over rows: {(stratum, class, group): (rate, n)}."""
    strata = {
        "demographic_parity": {"decided": lambda label, j: True},
        "equal_opportunity": {"true positive": lambda label, j: label == j},
        "equalized_odds": {"true positive": lambda label, j: label == j, "false positive": lambda label, j: label != j},
        "equalized_odds_cells": {f"label {c}": (lambda label, j, c=c: label == c) for c in range(m)},
    }[criterion]
    out = {}
    for (name, inside), j, group in itertools.product(strata.items(), range(m), sorted(set(g))):
        rows = [i for i in range(len(d)) if g[i] == group and inside(y[i], j)]
        hits = sum(d[i] == j for i in rows)
        out[name, j, group] = (hits / len(rows) if rows else math.nan, len(rows))
    return out


def pairwise(found):
    """Largest difference in a reference, by loops over pairs."""
    sizes = [0.0]
    for (s, j, a), (t, k, b) in itertools.product(found, found):
        if (s, j) == (t, k) and not math.isnan(found[s, j, a][0] - found[t, k, b][0]):
            sizes.append(found[s, j, a][0] - found[t, k, b][0])
    return max(sizes)


# -- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", parity.CRITERIA)
@pytest.mark.parametrize("m", [2, 3])
def test_rates_and_gaps_equal_loops_over_rows(criterion, m):
    # catches a wrong denominator, strata mixed up, a class or group in another's place, a level of other rows
    d, g, y, k = world(m=m)
    found = group_fairness(d, g, labels=y, clients=k, criterion=criterion, classes=range(m), draws=20)
    for client in (None, 0, 1, 2):
        own = np.ones(len(d), bool) if client is None else k == client
        expected = reference(d[own], g[own], y[own], criterion, m)
        rows = {(r["stratum"], r["class"], r["group"]): r for r in found.by_group if r["client"] == client}
        assert set(rows) == set(expected)
        for key, (rate, n) in expected.items():
            assert rows[key]["rate"] == pytest.approx(rate, nan_ok=True)
            assert rows[key]["n"] == n
        (gap,) = [r for r in found.gaps if r["client"] == client and r["gap"] == "pairwise"]
        assert gap["value"] == pytest.approx(pairwise(expected))
        first, second = (rows[gap["stratum"], gap["class"], gap[side]] for side in ("first", "second"))
        assert gap["value"] == pytest.approx(first["rate"] - second["rate"])
        assert gap["smallest"] == min(first["n"], second["n"])


@pytest.mark.parametrize("criterion", parity.CRITERIA)
@pytest.mark.parametrize("random", [False, True])
def test_equal_to_rates_and_contrasts_of_the_methods(criterion, random):
    # catches a metric that measures something else than what the methods constrain, with decisions of both kinds
    d, g, y, _ = world(m=3)
    h = np.random.default_rng(1).dirichlet(np.ones(3), len(d)) if random else np.eye(3)[d]
    found = group_fairness(h if random else d, g, labels=y, criterion=criterion, draws=20)
    f = parity.strata(criterion, np.eye(3)[y])
    member, weight = np.eye(3)[np.searchsorted(list("abc"), g)], np.ones(len(d))
    rate, mass = parity.rates(f, member, weight, h), parity.masses(f, member, weight, 3)
    flat = [r["rate"] for r in found.by_group]
    assert flat == pytest.approx(np.moveaxis(rate, 1, 2).ravel().tolist())  # (S, m, G)
    for gap, row in zip(("pairwise", "average"), found.gaps, strict=True):
        t = parity.contrasts(gap, mass, mass > 0)
        size = np.abs(np.einsum("srgj,sgj->srj", t, rate)).max()
        assert abs(row["value"]) == pytest.approx(size)
        assert found.summary[gap]["global"]["value"] == pytest.approx(size)
        assert gap_of(rate, mass, gap=gap) == pytest.approx(size)


@pytest.mark.golden
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_fairlearn(seed):
    # catches a definition that departs from the field's: another positive class, odds averaged instead of maximised
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn or its pandas is not installed")
    d, g, y, _ = world(m=2, seed=seed)
    options = {"labels": y, "draws": 20}
    parity_gap = metrics.demographic_parity_difference(y, d, sensitive_features=g)
    odds = metrics.equalized_odds_difference(y, d, sensitive_features=g)
    frame = metrics.MetricFrame(metrics=metrics.true_positive_rate, y_true=y, y_pred=d, sensitive_features=g)
    found = group_fairness(d, g, criterion="demographic_parity", **options)
    assert found.summary["pairwise"]["global"]["value"] == pytest.approx(parity_gap)
    found = group_fairness(d, g, criterion="equalized_odds", **options)
    assert found.summary["pairwise"]["global"]["value"] == pytest.approx(odds)
    found = group_fairness(d, g, criterion="equal_opportunity", **options)
    assert found.summary["pairwise"]["global"]["value"] == pytest.approx(frame.difference())
    assert [r["rate"] for r in found.by_group] == pytest.approx(frame.by_group.tolist())
    assert found.overall[0]["rate"] == pytest.approx(frame.overall)


def test_a_hand_computed_example():
    # catches a gap read off the wrong class: TPR of b is 1/2 of two, of a 2/2; FPR of a 1/2, of b 0/2
    d, y, g = list("1110" + "1000"), list("1100" + "1100"), list("aaaabbbb")
    found = group_fairness(d, g, labels=y, criterion="equalized_odds", draws=20)
    assert {(r["stratum"], r["group"]): (r["rate"], r["n"]) for r in found.by_group} == {
        ("true positive", "a"): (1.0, 2), ("true positive", "b"): (0.5, 2),
        ("false positive", "a"): (0.5, 2), ("false positive", "b"): (0.0, 2),
    }  # fmt: skip
    assert found.summary["pairwise"]["global"]["value"] == 0.5
    assert found.summary["average"]["global"]["value"] == 0.25
    assert found.compared == ("1",)


# -- identities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", parity.CRITERIA)
def test_clients_pool_to_the_global_rates(criterion):
    # catches clients that lose or double rows: R_g = sum_k P(k | g, stratum) R_gk (law of total probability)
    d, g, y, k = world(clients=4)
    found = group_fairness(d, g, labels=y, clients=k, criterion=criterion, draws=20)
    for row in (r for r in found.by_group if r["client"] is None):
        key = [row[name] for name in ("stratum", "class", "group")]
        local = [r for r in found.by_group if r["client"] is not None and [r[n] for n in ("stratum", "class", "group")]
                 == key and r["n"]]  # fmt: skip
        assert sum(r["n"] for r in local) == row["n"]
        assert sum(r["n"] * r["rate"] for r in local) / row["n"] == pytest.approx(row["rate"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(2, 4))
def test_demographic_parity_identities(seed, groups, m):
    # catches an average over groups that is not the population's: sum_j D_gj = 0 and sum_g p_g D_gj = 0
    rng = np.random.default_rng(seed)
    h, g = rng.dirichlet(np.ones(m), 60), rng.integers(0, groups, 60)
    g[:groups] = range(groups)
    found = group_fairness(h, g, draws=2, classes=range(m))
    rate = np.array([r["rate"] for r in found.by_group]).reshape(m, groups)
    away = rate - np.array([r["rate"] for r in found.overall])[:, None]  # D, shape (m, groups)
    share = np.bincount(g, minlength=groups) / 60
    assert np.abs(away.sum(0)).max() < 1e-12
    assert np.abs(away @ share).max() < 1e-12
    assert found.summary["average"]["global"]["value"] == pytest.approx(np.abs(away).max())
    assert np.abs(away).max() <= found.summary["pairwise"]["global"]["value"] + 1e-12  # an average lies between


@pytest.mark.parametrize("criterion", parity.CRITERIA)
def test_a_constant_decision_has_no_gap(criterion):
    # catches a gap made of the labels: whoever is decided alike has every rate alike
    _, g, y, k = world()
    for d in (np.ones(len(g), int), np.tile([0.2, 0.3, 0.5], (len(g), 1))):
        found = group_fairness(d, g, labels=y, clients=k, criterion=criterion, draws=20)
        assert all(abs(r["value"]) < 1e-12 for r in found.gaps)
        assert found.conflicts == ()


def numbers(found):
    """What may not depend on names: gaps and summaries."""
    gaps = [(r["gap"], abs(r["value"]), r["smallest"]) for r in found.gaps]
    sizes = [s["value"] for kind in found.summary.values() for s in kind.values()]
    return [x for row in gaps for x in row[1:]] + sizes


@pytest.mark.parametrize("criterion", parity.CRITERIA)
@pytest.mark.parametrize("random", [False, True])
def test_the_order_of_rows_changes_nothing_at_all(criterion, random):
    # catches resampling that depends on where a row stands, although rows are exchangeable
    d, g, y, k = world()
    d = np.random.default_rng(5).dirichlet(np.ones(3), len(d)) if random else d
    order = np.random.default_rng(3).permutation(len(d))
    one = group_fairness(d, g, labels=y, clients=k, criterion=criterion, draws=20)
    two = group_fairness(d[order], g[order], labels=y[order], clients=k[order], criterion=criterion, draws=20)
    for name in ("by_group", "gaps", "small", "conflicts"):
        assert getattr(one, name) == getattr(two, name)


@pytest.mark.parametrize("criterion", parity.CRITERIA)
def test_other_names_for_groups_and_classes_change_no_gap(criterion):
    # catches a result that depends on the order of names: all of three classes are compared, so order means nothing
    d, g, y, k = world()
    renamed, swap = np.array([{"a": "z", "b": "q", "c": "a"}[one] for one in g]), np.array([2, 0, 1])
    one = group_fairness(d, g, labels=y, clients=k, criterion=criterion, draws=2)
    two = group_fairness(swap[d], renamed, labels=swap[y], clients=9 - k, criterion=criterion, draws=2)
    old = {r["client"]: r["value"] for r in one.gaps if r["gap"] == "pairwise"}
    new = {None if r["client"] is None else 9 - r["client"]: r["value"] for r in two.gaps if r["gap"] == "pairwise"}
    assert new == pytest.approx(old)
    for kind, sizes in one.summary.items():
        for name, size in sizes.items():
            assert two.summary[kind][name]["value"] == pytest.approx(size["value"])


def test_one_client_is_everybody():
    # catches global and local gaps computed in two ways
    d, g, y, _ = world()
    found = group_fairness(d, g, labels=y, clients=["x"] * len(d), criterion="equalized_odds", draws=50)
    everybody, local = found.gaps[:2], found.gaps[2:]
    for a, b in zip(everybody, local, strict=True):
        assert {**a, "client": "x"} == b


def test_certain_probabilities_are_decisions():
    # catches a second definition for (n, m): probabilities of 0 and 1 must give the same numbers
    d, g, y, k = world()
    one = group_fairness(d, g, labels=y, clients=k, criterion="equalized_odds", draws=2)
    two = group_fairness(np.eye(3)[d], g, labels=y, clients=k, criterion="equalized_odds", draws=2)
    assert numbers(one) == pytest.approx(numbers(two))


def test_the_last_of_two_classes_is_the_positive_one():
    # catches the other class compared, and a choice of classes or names that is ignored
    d, g, y, _ = world(m=2)
    options = {"labels": y, "criterion": "equal_opportunity", "draws": 2}
    last = group_fairness(d, g, **options)
    assert last.compared == (1,)
    expected = reference(d, g, y, "equal_opportunity", 2)
    for cls, more in ((1, {}), (0, {"classes": [0]}), (0, {"names": [1, 0]})):
        found = group_fairness(d, g, **options, **more)
        assert found.compared == (cls,)
        own = {key: value for key, value in expected.items() if key[1] == cls}
        assert found.summary["pairwise"]["global"]["value"] == pytest.approx(pairwise(own))


def test_gap_of_leaves_out_groups_without_a_rate():
    # catches NaN spread over the whole, and a lone group compared with nobody
    rate = np.array([[[0.5, 0.5], [math.nan, 0.9]]])  # (S, G, m)
    assert gap_of(rate) == pytest.approx(0.4)
    assert gap_of(rate, np.array([[[3, 3], [0, 1]]]), gap="average") == pytest.approx(0.3)
    assert math.isnan(gap_of(rate[..., :1]))
    assert gap_of(np.stack([rate, rate])).shape == (2,)


# -- clients, cells, conflicts ------------------------------------------------------------------------------------


def test_summaries_are_those_of_clients():
    # catches the maximum and the mean swapped, everybody counted as a client, a client without two groups as zero
    d, g, y, k = world(clients=3)
    k = np.where(k == 2, np.where(g == "a", 2, 1), k)  # client 2 has one group alone
    found = group_fairness(d, g, labels=y, clients=k, draws=50)
    local = {r["client"]: r["value"] for r in found.gaps if r["client"] is not None and r["gap"] == "pairwise"}
    assert math.isnan(local[2])
    sizes = found.summary["pairwise"]
    assert sizes["max"]["value"] == pytest.approx(max(local[0], local[1]))
    assert sizes["max"]["client"] == max((0, 1), key=local.get)
    assert sizes["mean"]["value"] == pytest.approx((local[0] + local[1]) / 2)
    assert group_fairness(d, g, draws=2).summary["pairwise"]["max"] is None


def test_small_and_empty_cells_are_named():
    # catches a rule on the wrong share, and a division by zero where a client lacks a group
    g = ["a"] * 90 + ["b"] * 10 + ["a"] * 50
    k = ["x"] * 100 + ["y"] * 50
    found = group_fairness([0, 1] * 75, g, clients=k, observations=5, draws=20)
    rows = {(r["client"], r["group"]): (r["n"], r["have"], r["need"]) for r in found.small}
    assert rows == {
        (None, "b"): (10, 150, parity.needed(10 / 150, 5)), ("x", "b"): (10, 100, parity.needed(0.1, 5)),
        ("y", "b"): (0, 50, None),
    }  # fmt: skip
    (empty,) = [r for r in found.by_group if r["client"] == "y" and r["group"] == "b"]
    assert empty["n"] == 0
    assert math.isnan(empty["rate"])
    lost = [r for r in found.gaps if r["client"] == "y"]
    assert all(math.isnan(r["value"]) and r["first"] is None and r["smallest"] == 0 for r in lost)


def test_small_cells_of_equal_opportunity_are_of_group_and_class():
    # catches cells of the group alone: 60 rows of a group are enough, 3 of one label are not
    y = [0] * 57 + [1] * 3 + [0] * 30 + [1] * 30
    found = group_fairness(y, ["a"] * 60 + ["b"] * 60, labels=y, criterion="equal_opportunity", classes=[0, 1],
                           observations=2, delta=0.5, draws=20)  # fmt: skip
    assert [(r["group"], r["class"], r["n"]) for r in found.small] == [("a", 1, 3)]


def test_a_conflict_is_found_and_only_where_both_are_shown():
    # catches a conflict that is missed, one of noise or of tiny cells: client x favours b, both others favour a
    def rows(client, group, positive, n):
        return [(client, group, int(i < positive)) for i in range(n)]

    data = [*rows("x", "a", 20, 100), *rows("x", "b", 60, 100), *rows("y", "a", 500, 800), *rows("y", "b", 100, 800),
            *rows("z", "a", 50, 100), *rows("z", "b", 51, 100), *rows("w", "a", 0, 3), *rows("w", "b", 3, 3),
            ]  # fmt: skip
    k, g, d = map(list, zip(*data, strict=True))
    found = group_fairness(d, g, clients=k)
    (one,) = found.conflicts
    assert (one["client"], one["first"], one["second"], one["class"]) == ("x", "a", "b", 1)
    assert one["local"]["value"] == pytest.approx(-0.4)
    assert one["local"]["high"] < 0 < one["global"]["low"]


# -- intervals ----------------------------------------------------------------------------------------------------


def coverage(gap, random, times, n=300):
    """Share of intervals that hold the true gap of two groups: P(1 | a) - P(1 | b) = 0.3, or half of it to the mean."""
    held = 0
    for seed in range(times):
        rng = np.random.default_rng(seed)
        g = rng.integers(0, 2, n)
        p = np.where(g == 0, 0.6, 0.3)
        if random:
            p = np.clip(p + rng.uniform(-0.2, 0.2, n), 0, 1)
            d = np.stack([1 - p, p], 1)
        else:
            d = (rng.random(n) < p).astype(int)
        found = group_fairness(d, g, draws=200, seed=seed)
        row = found.gaps[gap == "average"]
        size = found.summary[gap]["global"]
        truth = 0.3 if gap == "pairwise" else 0.15
        held += size["low"] <= truth <= size["high"]
        assert row["low"] <= row["value"] <= row["high"]
    return held / times


@pytest.mark.parametrize(("gap", "random"), [("pairwise", False), ("average", False), ("pairwise", True)])
def test_intervals_hold_the_truth(gap, random):
    # catches a variance of the wrong rows, groups resampled together, the wrong tail; 400 named seeds, at 5 standard
    # errors of 95 %
    times = 400
    assert abs(coverage(gap, random, times) - 0.95) < 5 * math.sqrt(0.95 * 0.05 / times)


def test_the_interval_is_that_of_resampled_rows():
    # catches cells drawn with another law than rows with replacement: standard errors of both, and of clients' mean
    d, g, y, k = world(n=500, groups="ab", m=2, clients=2)
    draws = 4000
    found = group_fairness(d, g, labels=y, clients=k, criterion="equal_opportunity", draws=draws)
    size, row = found.summary["pairwise"], found.gaps[0]
    rng, sign = np.random.default_rng(7), {"a": 1.0, "b": -1.0}[row["first"]]
    local = {r["client"]: {"a": 1.0, "b": -1.0}[r["first"]] for r in found.gaps[2:] if r["gap"] == "pairwise"}
    whole, mean = [], []
    for _ in range(draws):
        i = rng.integers(0, len(d), len(d))

        def gap(rows):
            a, b = (rows[(y[rows] == 1) & (g[rows] == name)] for name in "ab")
            return d[a].mean() - d[b].mean()

        whole.append(sign * gap(i))
        mean.append(np.mean([s * gap(i[k[i] == c]) for c, s in local.items()]))
    for ours, theirs in ((size["global"], whole), (size["mean"], mean)):
        # two estimates of one standard error, each with a relative error of 1 / sqrt(2 draws)
        assert ours["standard_error"] == pytest.approx(np.std(theirs), rel=5 / math.sqrt(draws))
        assert ours["low"] == pytest.approx(np.percentile(theirs, 2.5), abs=5 * 3.8 * np.std(theirs) / math.sqrt(draws))


def test_the_size_of_clients_is_resampled_too():
    # catches clients held fixed: here a client is a decision, so the rate of everybody would have no interval at all
    d, g, *_ = world(n=400, m=2)
    draws = 4000
    (row,) = [r for r in group_fairness(d, g, clients=d, draws=draws).overall if r["client"] is None]
    error = math.sqrt(d.mean() * (1 - d.mean()) / len(d))
    # the width is 2 * 1.96 errors; each end is a quantile of `draws` draws, and steps by 1 / n
    assert row["high"] - row["low"] == pytest.approx(
        2 * 1.96 * error, abs=5 * 3.8 * error / math.sqrt(draws) + 2 / len(d)
    )


def test_the_gap_keeps_its_sign_in_every_draw():
    # catches a maximum taken anew in each draw, whose interval never reaches below zero
    rng = np.random.default_rng(0)
    found = group_fairness(rng.integers(0, 2, 400), rng.choice(list("abcd"), 400))
    assert found.gaps[0]["low"] < 0 < found.gaps[0]["value"]


def test_the_seed_fixes_the_interval_and_confidence_widens_it():
    # catches a global random state, a seed or a confidence that is not passed on
    d, g, *_ = world()
    one, again, other = (group_fairness(d, g, draws=100, seed=s).gaps[0] for s in (1, 1, 2))
    assert one == again
    assert one["low"] != other["low"]
    wide = group_fairness(d, g, draws=100, seed=1, confidence=0.99).gaps[0]
    assert wide["low"] < one["low"] < one["high"] < wide["high"]


# -- bad input ----------------------------------------------------------------------------------------------------


def refused(*args, **options):
    with pytest.raises(InputError) as caught:
        group_fairness(*args, **options)
    return caught.value.got, caught.value.accepted, caught.value.todo


def test_bad_input_is_refused_in_three_parts():
    # catches bad input that becomes a number, and messages that do not say where
    h, g = np.array([[0.5, 0.5], [0.2, 0.8]]), ["a", "b"]
    rows = "probabilities of at least 0 that sum to 1 in each row"
    todo = "normalise each row, leave out what diverged, or pass the decided classes"
    assert refused(np.array([[0.5, 0.5], [math.nan, 0.8]]), g) == (
        "row 1 of decisions sums to nan, its smallest entry is nan", rows, todo
    )  # fmt: skip
    assert refused(np.array([[0.5, 0.6], [0.2, 0.8]]), g) == (
        "row 0 of decisions sums to 1.1, its smallest entry is 0.5", rows, todo
    )  # fmt: skip
    assert refused(np.array([[0.5, 0.5], [-0.5, 1.5]]), g) == (
        "row 1 of decisions sums to 1, its smallest entry is -0.5", rows, todo
    )  # fmt: skip
    assert refused(h, ["a"] * 3) == (
        "2 decisions and 3 sensitive_features", "arrays of one length", "build all of them from the same rows"
    )  # fmt: skip
    assert refused(h, ["a", "a"]) == (
        "one group, 'a'", "at least 2 sensitive_features", "pass one that divides the rows"
    )  # fmt: skip
    assert refused(h, ["a", None]) == (
        "sensitive_features with 1 missing, the first in row 1", "a value in every row",
        "leave these rows out of all arrays, or give them a value"
    )  # fmt: skip
    assert refused([0, math.nan], g)[0] == "decisions with 1 missing, the first in row 1"
    assert refused(h, g, criterion="parity") == (
        "criterion 'parity'", "demographic_parity, equal_opportunity, equalized_odds, equalized_odds_cells",
        "name one of them"
    )  # fmt: skip
    assert refused(h, g, criterion="equalized_odds") == (
        "criterion 'equalized_odds' without labels", "labels, one for each decision",
        "pass labels, or take demographic_parity, which needs none"
    )  # fmt: skip
    assert refused(h, g, classes=[2]) == ("class 2", "0, 1", "name classes that occur")
    assert refused(h, g, labels=[0, 5]) == ("labels with 5", "0, 1", "correct it, or add it to names")
    assert refused([0, 1], g, labels=["0", "1"]) == (
        "decisions such as 0 and labels such as '0'", "classes written alike in both", "convert one of the two"
    )  # fmt: skip
    assert refused([], []) == (
        "decisions of shape (0,)", "classes (n,) or probabilities (n, m), m of at least 2, with m names if any",
        "pass one decision a row and one name a column"
    )  # fmt: skip
    assert refused(h, g, names=["no"])[0] == "decisions of shape (2, 2) and 1 names"
    assert refused(h, g, draws=1)[0] == "draws = 1, confidence = 0.95"
    assert refused(h, g, observations=0)[1] == "share in (0, 1], observations of at least 1, delta in (0, 1)"
    with pytest.raises(InputError, match="gap = 'average' without masses"):
        gap_of(np.zeros((1, 2, 2)), gap="average")


def test_counts_are_the_whole_story():
    # catches a table that loses rows, and a second way from the table to the result
    d, g, y, k = world()
    table = tabulate(d, g, labels=y, clients=k)
    assert table.count.sum() == len(d)
    assert table.count.shape == (3, 3, 3, 3)
    one, two = fairness_of(table, "equalized_odds", draws=20), group_fairness(d, g, labels=y, clients=k, draws=20,
                                                                             criterion="equalized_odds")  # fmt: skip
    assert one.gaps == two.gaps
