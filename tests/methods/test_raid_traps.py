"""Traps of measuring privacy, on made-up vectors: what fools one attacker, and what only looks safe.

Attackers are those of `upright.metrics.attacks`. Classes are 71 % and 29 % of the users, worlds and seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upright.metrics.attacks import attack
from upright.metrics.leakage import leakage
from upright.recommendation.defence import BarycenterDefense
from upright.tasks.embeddings import judge_attacks


def world(n, d, difference):
    """Vectors (n, d) and labels; the classes differ in their mean, and in covariance or number of modes."""
    rng = np.random.default_rng(0)
    labels = (np.arange(n) < 0.29 * n).astype(int)
    rng.shuffle(labels)
    x, one = rng.normal(size=(n, d)), labels == 1
    if difference == "covariance":
        x[one] *= np.where(np.arange(d) % 4 == 0, 1.8, 0.8)
    elif difference == "modes":  # the majority sits at two places, the minority spreads over both: one covariance
        x[~one, :2] = 3.0 * rng.choice([-1, 1], size=((~one).sum(), 2)) + 0.5 * x[~one, :2]
        x[one, :2] *= 9.25**0.5
    x[one] += 0.35
    return torch.from_numpy(x), labels


def halves(n):
    """Every second user is one whom the defence is fitted on."""
    return np.arange(n) % 2 == 0


def attacked(table, labels, attackers, **options):
    """AUC of each attacker for the minority under cross-fitting, and the smallest leakage that would be seen."""
    found = attack({"x": table.numpy()}, labels, attackers=attackers, **options)
    strongest = judge_attacks(found, range(len(labels)), labels, "class", draws=20).evidence["levels"][0]
    aucs = {one.attacker: leakage(one, labels)["auc"][1] for one in found if one.protocol == "cross"}
    return aucs, strongest["smallest_detectable"]


@pytest.fixture(scope="module", params=["covariance", "modes"])
def moved(request):
    """Held-out users of one world under several defences; 4,000 of 5,000 users are fitted, so that means are known."""
    table, labels = world(5000, 4, request.param)
    fit = np.arange(5000) % 5 != 0
    tables = {"none": table}
    for method in ("mean", "bures"):
        tables[method] = BarycenterDefense(labels, fit=fit, method=method).transport(table)
    # directions are drawn anew each time, as at each refresh of a training
    for seed in range(3):
        one = BarycenterDefense(labels, fit=fit, method="sliced", seed=seed)
        tables[f"sliced {seed}"] = one.transport(table, rounds=1)
    tables["sliced, 20 times"] = BarycenterDefense(labels, fit=fit, method="sliced").transport(table)
    return request.param, tables, labels, ~fit


def test_matched_means_fool_the_linear_attacker_alone(moved):
    # trap 1; catches an audit by a linear attacker, and a trivial remedy that does more than it says
    difference, tables, labels, out = moved
    before, _ = attacked(tables["none"], labels, ["logistic"], held_out=out)
    linear, least = attacked(tables["mean"], labels, ["logistic"], held_out=out)
    assert before["logistic"] > 0.5 + least
    assert abs(linear["logistic"] - 0.5) < least
    others, least = attacked(tables["mean"], labels, ["mlp", "gbdt"], held_out=out)
    assert others["gbdt"] > {"covariance": 0.7, "modes": 0.9}[difference]
    assert others["mlp"] > 0.5 + least


def test_gaussian_maps_see_the_covariance_and_not_the_modes(moved):
    difference, tables, labels, out = moved
    found, least = attacked(tables["bures"], labels, ["mlp", "gbdt"], held_out=out)
    if difference == "covariance":
        assert max(abs(value - 0.5) for value in found.values()) < least
    else:
        assert found["gbdt"] > 0.9


def test_one_set_of_directions_leaves_much_and_many_leave_nothing(moved):
    # catches directions that are the same at every refresh: then 20 times would be no better than once
    _, tables, labels, out = moved
    once = [attacked(tables[f"sliced {seed}"], labels, ["gbdt"], held_out=out)[0]["gbdt"] for seed in range(3)]
    often, least = attacked(tables["sliced, 20 times"], labels, ["logistic", "mlp", "gbdt"], held_out=out)
    assert max(once) > 0.65  # one basis may happen to see what another misses
    assert max(abs(value - 0.5) for value in often.values()) < least


def test_half_a_step_leaks_nearly_all():
    table, labels = world(1000, 16, "mean")
    fit = halves(1000)
    one = BarycenterDefense(labels, fit=fit, method="mean")
    raw, half, whole = (attacked(one.transport(table, s), labels, ["logistic"], held_out=~fit)[0]["logistic"]
                        for s in (0.0, 0.5, 1.0))  # fmt: skip
    assert raw > 0.8
    assert half > 0.7
    assert whole < 0.65


def test_few_support_points_leave_classes_separable_by_trees():
    # trap 2, on the users that the plans were made for: classes keep own, slightly shifted copies of few points. With
    # as many points as the smaller class the AUC falls, here far below 1/2: no evidence either, see trap 3
    table, labels = world(700, 32, "covariance")
    trees = {}
    for support in (20, int(labels.sum())):
        moved = BarycenterDefense(labels, method="free", support=support, sweeps=10).transport(table)
        trees[support] = attacked(moved, labels, ["gbdt"])[0]["gbdt"]
    few, enough = trees.values()
    assert few > 0.65
    assert enough < 0.2


def test_plans_between_points_do_not_carry_over_to_other_users():
    # D1: where users were not fitted, more points make it worse, not better
    table, labels = world(1400, 32, "mean")
    fit, trees = halves(1400), {}
    for support in (20, int(labels[fit].sum())):
        moved = BarycenterDefense(labels, fit=fit, method="free", support=support, sweeps=10).transport(table)
        trees[support] = attacked(moved, labels, ["gbdt"], held_out=~fit)[0]["gbdt"]
    few, many = trees.values()
    assert few < 0.65
    assert many > 0.75


@pytest.mark.parametrize("method", ["mean", "bures", "sliced"])
def test_users_that_a_map_was_fitted_on_look_safer_than_they_are(method):
    # trap 3: an AUC far below 1/2 is an artefact of the fit and would be exploited by a flipped answer
    table, labels = world(1000, 32, "mean")
    fit = halves(1000)
    moved = BarycenterDefense(labels, fit=fit, method=method).transport(table)
    same = attacked(moved[fit], labels[fit], ["logistic"])[0]["logistic"]
    out = attacked(moved, labels, ["logistic"], held_out=~fit)[0]["logistic"]
    assert same < 0.4
    assert out > 0.5


def test_users_of_unknown_class_keep_their_class_when_known_ones_alone_are_aligned():
    # the pitfall behind D2: half of the users never said; an attacker who asks some of them reads the others
    table, labels = world(2000, 8, "mean")
    silent = ~halves(2000)
    moved = BarycenterDefense(labels, fit=~silent, method="mean").transport(table)
    alone = torch.where(torch.from_numpy(silent)[:, None], table, moved)
    left, all_known = (attacked(x[silent], labels[silent], ["logistic"])[0]["logistic"] for x in (alone, moved))
    assert left > 0.7
    assert all_known < left - 0.1
