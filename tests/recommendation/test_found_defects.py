"""Defects of RAID that were found by trying it, each with the smallest case in which it showed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upright.contract import InputError, spec_of
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.statistics import parse
from upright.evidence.units import Units
from upright.experiment.folders import ArmRun
from upright.experiment.runner import Ask, run_task
from upright.methods import raid
from upright.metrics.attacks import attack
from upright.metrics.leakage import leakage
from upright.recommendation.defence import BarycenterDefense, codes_of
from upright.tasks.private_next_item import PrivateNextItem


def world(sizes):
    """Gaussian classes with unlike means; (sum of sizes, 3) and labels."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return torch.from_numpy(rng.normal(size=(len(labels), 3)) + 2.0 * labels[:, None]), labels


def test_more_than_ten_classes_keep_their_numbers():
    labels = np.repeat(np.arange(12), 4)
    one = BarycenterDefense(labels, fit=np.tile([True, True, True, False], 12))
    known = one.fitted >= 0
    assert (one.fitted[known] == one.codes[known]).all()


def test_loss_of_a_float64_table_is_exact_for_any_batch():
    table, labels = world((12, 9))
    one = BarycenterDefense(labels, method="mean")
    one.refresh(table)
    scale = (table - table.mean(0)).square().sum(1).mean()
    expected = (table - one.state_dict()["target"])[:3].square().sum(1).mean() / scale
    assert one.loss(torch.arange(3), table).item() == pytest.approx(expected.item(), rel=1e-12)


def test_negative_floats_are_missing():
    assert codes_of(np.array([0.0, 0.0, -1.0, 1.0, 1.0, -1.0]))[0].tolist() == [0, 0, -1, 1, 1, -1]


def test_a_class_of_equal_vectors_can_be_moved():
    table, labels = world((12, 9))
    table[:12] = 1.0
    BarycenterDefense(labels, method="bures").refresh(table)


def test_a_class_with_one_user_in_fit_is_named():
    with pytest.raises(InputError, match="class 'y'"):
        BarycenterDefense(["x", "x", "y", "y"], fit=[True, True, True, False])


@pytest.mark.parametrize("options", [{"fit": [True]}, {"weights": "equal"}, {"method": "fre"}, {"refresh_every": 0}])
def test_bad_options_are_refused_at_once(options):
    with pytest.raises(InputError):
        BarycenterDefense([0, 0, 1, 1], **options)


def test_relabelling_changes_nothing_with_a_small_support():
    table, labels = world((40, 30))
    first, second = (
        BarycenterDefense(some, method="free", support=10).transport(table)
        for some in (labels, np.array(["z", "a"])[labels])
    )
    np.testing.assert_allclose(first.numpy(), second.numpy(), atol=2e-3)


# -- the method and its task ----------------------------------------------------------------------------------------


def test_users_of_unknown_class_are_harder_to_read_after_they_moved():
    # D2; the classifier learns from users who are aligned already, so moving again and again does not help either
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.29).astype(int)
    table = torch.from_numpy(rng.normal(size=(2000, 8)) + 0.35 * labels[:, None])
    silent = np.arange(2000) % 2 == 1
    hidden = labels.astype(object)
    hidden[silent] = None
    one = BarycenterDefense(hidden, method="mean")
    before, after = (
        leakage(attack({"x": x[silent].numpy()}, labels[silent], attackers=["logistic"])[0], labels[silent])["auc"][1]
        for x in (table, one.transport(table))
    )
    assert before > 0.7
    assert after < before - 0.05


def train(task, **settings):
    run = ArmRun(None, 0, "x")
    return raid.run(task, raid.RAIDConfig(**(dict(spec_of(raid.run).tiny) | settings)), run), run


def test_a_coupled_run_has_all_its_arms():
    train(PrivateNextItem.tiny(), variant="free", constraint="coupled", defence="mean")


def test_noise_notes_the_utility_that_it_has():
    task = PrivateNextItem.tiny()
    model, run = train(task, defence="noise", alpha=1.0)  # transport costs more here than any noise does
    reached = float(np.nanmean(task.score(model, "valid", run).values["ndcg@10"]))
    assert run.notes["valid"] == pytest.approx(reached, rel=1e-6)


def test_every_arm_of_lightgcn_has_a_null():
    spec, task = spec_of(raid.run), PrivateNextItem.tiny(backbone="lightgcn")
    blocks, _, _ = run_task(spec, task, spec.config(**spec.tiny), None, Ask("raid", arms=["none", "after"]))
    units = Units(blocks)
    statistic = parse("leakage:attack:attribute", Bootstrap(units, 2), {})
    nulls = {arm: statistic.chance(arm, None)["null"].high for arm in ("none", "after")}
    assert nulls["none"] > 0.02
    assert nulls["after"] > 0.02


def test_classes_too_small_to_tune_on_are_refused_before_training():
    with pytest.raises(InputError, match="class"):
        PrivateNextItem.tiny(attacked="tuning", folds=6)


def test_an_empty_attribute_is_refused():
    with pytest.raises(InputError):
        PrivateNextItem.tiny(attribute="")


def test_a_sum_of_products_keeps_its_products():
    assert len(PrivateNextItem.tiny(attribute="community*community+community").terms) == 2
