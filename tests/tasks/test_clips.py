"""The task of clips: what a method sees, what is scored, and what the true futures are worth."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pymunk")

import torch

from upright.contract import InputError
from upright.experiment.folders import ArmRun
from upright.methods.physrvg import Futures
from upright.tasks.clips import Clips, ClipsConfig


@pytest.fixture
def run():
    return ArmRun(None, 0, "x")


def test_a_method_sees_no_test_scene(run):
    # catches: selection on the test
    task = Clips.tiny(0)
    with pytest.raises(InputError) as error:
        task.score(None, "test", run)
    assert (error.value.got, error.value.accepted) == ("the test scenes inside a method", "'post' or 'valid'")
    task.open_test()
    assert len(task.score(None, "test", run).unit) == 2 * task.config.test


def test_the_true_futures_have_no_offset_and_break_nothing(run):
    # catches: a floor that is not 0, positions and truth of different scenes
    task = Clips.tiny(0, valid=24)
    values = task.score(None, "valid", run).values
    for name in ("offset", "penetrates", "momentum", "lost", "spread"):
        assert np.nanmax(values[name]) < (1.0 if name == "momentum" else 1e-9), name
    assert np.nanmin(values["iou"]) == pytest.approx(1.0)
    assert np.mean(values["newton"] > 0) <= 0.05


def test_futures_of_a_scene_are_one_cluster_and_its_spread_stands_once(run):
    # catches: two futures of one context counted as two scenes
    task = Clips.tiny(0)
    found = task.score(Futures(task.policy(run), 6), "valid", run)
    assert list(found.cluster)[::2] == list(found.cluster)[1::2]
    assert len(set(found.cluster)) == task.config.valid
    assert [one.rsplit("/", 1) for one in found.unit[:2]] == [[found.cluster[0], "0"], [found.cluster[0], "1"]]
    assert np.isfinite(found.values["spread"]).tolist() == [True, False] * task.config.valid


def test_no_future_reaches_a_model_that_is_scored(run):
    # catches: an answer that leaks into the contexts
    task = Clips.tiny(0)

    class Looks(Futures):
        def futures(self, latents, condition, noise, meta):
            assert bool(latents[:, 5:].isnan().all())
            return super().futures(latents, condition, noise, meta)

    task.score(Looks(task.policy(run), 6), "valid", run)


def test_noise_is_the_same_for_all_arms_and_another_for_each_seed():
    # catches: arms that differ by their luck
    task = Clips.tiny(0)
    one, other, third = (
        task.score(Futures(task.policy(ArmRun(None, 0, "a")), 6), "valid", ArmRun(None, seed, arm)).values["offset"]
        for arm, seed in (("a", 0), ("b", 0), ("a", 1))
    )
    assert np.array_equal(one, other)
    assert not np.array_equal(one, third)


def test_unseen_motions_are_kept_apart(run):
    # catches: pendulums in the mean of collisions
    task = Clips.tiny(0, unseen=3, test=4)
    task.open_test()
    found = task.score(Futures(task.policy(run), 6), "test", run)
    seen = np.array(found.by["motion"]) == "collision"
    assert (seen.sum(), (~seen).sum()) == (2 * 4, 2 * 6)
    assert np.isfinite(found.values["offset"]).tolist() == seen.tolist()
    assert np.isfinite(found.values["unseen_offset"]).tolist() == (~seen).tolist()
    assert task.policy(run).radius.in_features == 3


def test_a_start_is_shared_by_seeds_only_where_that_is_said():
    # catches: intervals over seeds that hide one start
    for shared in (False, True):
        task = Clips.tiny(0, shared=shared)
        one, other = (task.policy(ArmRun(None, seed, "x")).out.bias for seed in (0, 1))
        assert torch.equal(one, other) == shared


def test_a_bundled_start_is_small_and_of_collisions():
    # catches: weights of another shape loaded with a traceback
    with pytest.raises(InputError) as error:
        ClipsConfig(start="bundled")
    assert error.value.got == "start = 'bundled' with model = 'medium' and unseen = 0"


def test_the_bundled_start_knows_collisions(run):
    # catches: a file that was made with other settings
    task = Clips(ClipsConfig(start="bundled", model="small", valid=64))
    values = task.score(Futures(task.policy(run), 16), "valid", run).values
    assert np.mean(values["offset"]) < 3.5
    assert 0.2 < np.mean(values["penetrates"]) < 0.7
