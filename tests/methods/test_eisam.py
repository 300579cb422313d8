"""EISAM in its method: controls are settings, both passes meet, what is noted, what is refused, the native door."""

from __future__ import annotations

import pytest
import torch

from upright.contract import InputError, spec_of
from upright.experiment.folders import ArmRun
from upright.maths import sharpness
from upright.methods import eisam
from upright.methods.eisam import EISAMConfig
from upright.tasks.sequence import NextInSequence

TINY = dict(spec_of(eisam.run).tiny) | {"epochs": 2, "check_every": 1}


def train(task=None, arm="eisam", seed=0, **settings):
    run = ArmRun(None, seed, arm)
    return eisam.run(task or NextInSequence.tiny(), EISAMConfig(**(TINY | settings)), run), run


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_controls_without_strength_are_the_baseline():
    # catches: weights that act at 0, an offset that is left in, windows that are drawn all the same
    plain = weights(train(remedy="none")[0])
    for remedy in ("reweight", "logit_adjust", "resample"):
        assert remedy == "resample" or torch.equal(weights(train(remedy=remedy, lam=0.0)[0]), plain)
        assert not torch.equal(weights(train(remedy=remedy, lam=0.5)[0]), plain)


def test_a_step_of_reweighting_is_the_gradient_of_the_weighted_mean():
    task, run = NextInSequence.tiny(dropout=0.0), ArmRun(None, 0, "x")
    config = EISAMConfig(**(TINY | {"remedy": "reweight", "lam": 0.7}))
    f, lam = eisam.weights_of(task, config, run)
    model, (batch, *_) = task.model(run), task.batches(run, 0, 16)
    _, extra, _ = eisam._optimiser(model, task, config, run)
    losses, items = model.target_losses(*batch[:2], masks=0)
    wanted = torch.autograd.grad((losses * ((1 - lam) + lam * torch.from_numpy(f))[items]).mean(), model.item)[0]
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.item.detach().clone()
    eisam._step(model, optimiser, config, batch, extra)
    assert torch.allclose(before - model.item.detach(), wanted, atol=1e-12)


def test_the_second_pass_of_a_subset_sees_the_rarest_items_alone():
    task, run = NextInSequence.tiny(dropout=0.0), ArmRun(None, 0, "x")
    config = EISAMConfig(**(TINY | {"mode": "subset"}))
    model = task.model(run)
    optimiser, *_ = eisam._optimiser(model, task, config, run)
    seen, real = [], model.target_losses

    def watched(history, target, **more):
        seen.append(target[target >= 0])
        return real(history, target, **more)

    model.target_losses = watched
    for batch in task.batches(run, 0, 16):
        eisam._step(model, optimiser, config, batch, None)
    first, second = torch.cat(seen[::2]), torch.cat(seen[1::2])
    count = torch.from_numpy(task.item_count)
    assert len(second) < 0.7 * len(first)
    assert count[second].max() < count[first].max()


@pytest.mark.parametrize("arm", ["sam", "tail_only", "focal", "shuffled", "random"])
def test_rivals_and_placebos_are_settings_that_change_the_weights(arm):
    settings = dict(next(a.settings for a in spec_of(eisam.run).arms if a.name == arm))
    assert not torch.equal(weights(train(arm=arm, **settings)[0]), weights(train()[0]))


def test_imbsam_gives_the_tail_the_whole_second_pass_and_the_head_none():
    # catches: lam = 1, which weights of mean 1 make too strong
    task, run = NextInSequence.tiny(), ArmRun(None, 0, "x")
    config = EISAMConfig(**(TINY | {"weight": "tail_only", "lam": "tail_share"}))
    f, lam = eisam.weights_of(task, config, run)
    head = sharpness.head_items(task.item_count)
    assert (lam * f)[~head] == pytest.approx(1.0)
    assert (lam * f)[head].tolist() == [0.0] * int(head.sum())


def test_weights_that_hardly_differ_are_said():
    _, run = train(weight="focal", gamma=0.01)
    assert any("nearly plain SAM" in w for w in run.warnings)


def test_what_a_run_notes():
    model, run = train()
    low, high = sorted(run.notes["sharpness"], key=lambda row: row["items"])
    assert (low["items"], high["items"]) == ("head", "tail")
    assert low["low"] < low["value"] < low["high"]
    assert run.notes["weights"]["tail"] > 1.0 > run.notes["weights"]["head"]
    assert run.notes["realised"] == [1.0, 1.0]
    assert not model.training


@pytest.mark.parametrize("remedy", ["reweight", "resample"])
def test_a_strength_that_makes_weights_negative_is_refused(remedy):
    with pytest.raises(InputError, match="lam = 4 for"):
        train(remedy=remedy, lam=4.0)


def test_the_native_door_is_there():
    assert eisam.EISAM.__name__ == "EISAM"
    assert callable(eisam.check_sharpness)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eisam.nothing
