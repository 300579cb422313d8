"""Largest gaps against Fairlearn's metrics and against the definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fairlearn import metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.classification.gaps import gaps
from upright.contract import InputError

SEEDS = st.integers(0, 2**31)


def world(seed, n=400, m=2, groups=3, clients=3):
    rng = np.random.default_rng(seed)
    g, k = rng.integers(0, groups, n), rng.integers(0, clients, n)
    y = (rng.random(n) * m).astype(np.int64)
    return (y + (rng.random(n) < 0.3 + 0.1 * g)) % m, y, g, k


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(2, 4))
def test_two_classes_agree_with_fairlearn(seed, groups):
    # catches a rate over the wrong rows: Fairlearn counts independently
    h, y, g, k = world(seed, groups=groups)
    theirs = {
        "demographic_parity": metrics.demographic_parity_difference,
        "equal_opportunity": metrics.equal_opportunity_difference,
        "equalized_odds": metrics.equalized_odds_difference,
        "equalized_odds_cells": metrics.equalized_odds_difference,
    }
    for criterion, count in theirs.items():
        own = gaps(np.eye(2)[h], g, k, criterion, y)
        local = [count(y[k == i], h[k == i], sensitive_features=g[k == i]) for i in range(3)]
        assert own["global"] == pytest.approx(count(y, h, sensitive_features=g), abs=1e-12)
        assert own["local_max"] == pytest.approx(max(local), abs=1e-12)
        assert own["local_mean"] == pytest.approx(np.mean(local), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_more_classes_agree_with_the_definition(seed):
    # catches strata and classes that are mixed up: with two classes they are each other's complement
    h, y, g, k = world(seed, m=3)
    pairs = list(itertools.combinations(range(3), 2))

    def largest(rows):
        rate = lambda a, at, j: (h[rows & at & (g == a)] == j).mean()  # noqa: E731
        rows_of = {
            "demographic_parity": [(np.ones(len(y), bool), j) for j in range(3)],
            "equal_opportunity": [(y == j, j) for j in range(3)],
            "equalized_odds": [(at, j) for j in range(3) for at in (y == j, y != j)],
            "equalized_odds_cells": [(y == c, j) for c in range(3) for j in range(3)],
        }
        return {c: max(abs(rate(a, at, j) - rate(b, at, j)) for at, j in v for a, b in pairs)
                for c, v in rows_of.items()}  # fmt: skip

    everybody, own = largest(np.ones(len(y), bool)), [largest(k == i) for i in range(3)]
    for criterion, wanted in everybody.items():
        found = gaps(np.eye(3)[h], g, k, criterion, y)
        assert found["global"] == pytest.approx(wanted, abs=1e-12)
        assert found["local_max"] == pytest.approx(max(v[criterion] for v in own), abs=1e-12)
        assert found["local_mean"] == pytest.approx(np.mean([v[criterion] for v in own]), abs=1e-12)


def test_by_hand():
    # 2 of 4 and 1 of 2 decided positive at client 0: equal; 1 of 1 and 0 of 1 at client 1
    h = np.eye(2)[[1, 1, 0, 0, 1, 0, 1, 0]]
    g = np.array(list("aaaabb" + "ab"))
    k = np.array([0] * 6 + [1] * 2)
    found = gaps(h, g, k)
    assert found == {"global": pytest.approx(3 / 5 - 1 / 3), "local_max": 1.0, "local_mean": 0.5}


def test_randomised_decisions_count_by_their_probability():
    h = np.array([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]])
    assert gaps(h, np.array([0, 0, 1]), np.zeros(3))["global"] == pytest.approx(0.7)


def test_whom_there_is_nobody_to_compare_with_is_left_out():
    # catches a client of one group that counts as fair
    h, g = np.eye(2)[[1, 0, 1, 1, 1]], np.array([0, 1, 0, 0, 0])
    found = gaps(h, g, np.array([0, 0, 0, 1, 1]))
    assert found["local_max"] == found["local_mean"] == 1.0
    alone = gaps(h, np.zeros(5), np.zeros(5))
    assert all(np.isnan(v) for v in alone.values())
    apart = gaps(h, g, np.array([0, 1, 0, 0, 0]))
    assert apart["global"] == 1.0
    assert np.isnan(apart["local_max"])
    assert np.isnan(apart["local_mean"])


def test_a_criterion_of_the_label_asks_for_labels():
    # catches decisions that stand in for labels: every gap of true positives would be 0
    with pytest.raises(InputError) as caught:
        gaps(np.eye(2)[[0, 1]], np.array([0, 1]), np.zeros(2), "equal_opportunity")
    assert caught.value.args == ("equal_opportunity without labels", "the label of each sample", "pass labels=")
