"""Planted defects of PhysRVG: each check passes on the real code and is red with the defect."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("pymunk")

import torch

from upright.experiment.folders import ArmRun
from upright.maths import policy as grpo
from upright.methods import physrvg
from upright.tasks.clips import Clips
from upright.video import model as models
from upright.video import rewards, scenes, tracks, violations

TASK, RUN, HOW = Clips.tiny(0), ArmRun(None, 0, "x"), {"steps": 6, "eta": 0.7}


def rolled():
    """A rollout of the contexts of post-training whose futures are hidden, with its stochastic steps."""
    part, policy = TASK.part("post", RUN), TASK.policy(RUN)
    hidden = part.latents.clone()
    hidden[:, policy.context :] = math.nan
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0), dtype=hidden.dtype)
    draw = torch.Generator().manual_seed(1)
    x, taken = models.rollout(policy, hidden, part.condition, noise, window=(0, 1), generator=draw, **HOW)
    return part, policy, x, taken


# -- checks -----------------------------------------------------------------------------------------------------------


def no_context_in_the_log_probability():
    part, policy, _, taken = rolled()
    one = taken[0]
    other = one.next.clone()
    other[:, : policy.context] += 1.0
    now = [models.log_probs(policy, one._replace(next=x), part.condition, **HOW) for x in (one.next, other)]
    assert torch.equal(*now)


def rewarded_futures_become_likelier():
    part, policy, _, taken = rolled()
    advantage = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64)
    optimiser = torch.optim.SGD(policy.parameters(), 1e-3)
    loss, _ = physrvg.cycle_loss(policy, taken, part.condition, advantage, clip=1.0, **HOW)
    optimiser.zero_grad()
    loss.mean().backward()
    optimiser.step()
    rose = sum(models.log_probs(policy, one, part.condition, **HOW).detach() - one.log_prob for one in taken)
    assert float((rose * advantage).sum()) > 0


def groups_mimic_above_tau():
    cycle = physrvg._Cycle(TASK, physrvg.PhysRVGConfig(prompts=2, group=3, steps=6), RUN, TASK.policy(RUN))
    assert (cycle.iteration(0, 0.0)["gate"], cycle.iteration(1, math.inf)["gate"]) == (1.0, 0.0)


def a_body_that_vanishes_costs_more_than_one_that_stays():
    true = scenes.simulate("collision", 12, 40)
    gone, rows = violations.VIOLATIONS["vanish"].make(true, 3, 0)
    meta, film = tracks.meta_of(true[rows]), violations.film(true[rows])
    known = tracks.track_colours(film, meta)
    honest, lost = (rewards.fixed().score(one, known, meta).value for one in (film, gone))
    assert bool((lost > honest + 0.3).all())


def the_first_generated_frame_is_generated_and_the_context_is_not():
    part, policy, x, _ = rolled()
    k = policy.context
    assert bool(x.isfinite().all())
    assert torch.equal(x[:, :k], part.latents[:, :k])


# -- defects ----------------------------------------------------------------------------------------------------------


def context_in_the_log_probability(patch):
    real = models.log_probs
    patch.setattr(models, "log_probs", lambda *args, **options: real(*args, **options | {"whole": True}))


def the_sign_of_the_advantage(patch):
    real = grpo.surrogate
    patch.setattr(grpo, "surrogate", lambda now, old, advantage, clip: real(now, old, -advantage, clip))


def a_gate_that_is_inverted(patch):
    patch.setattr(grpo, "gate", lambda offset, tau: offset.mean(1) < tau)


def lost_frames_that_are_skipped(patch):
    real = rewards._offset
    patch.setattr(rewards, "_offset", lambda style, *rest: real(style._replace(counts_lost=False), *rest))


def a_mask_that_is_off_by_one(patch):
    real = models._mask
    patch.setattr(models, "_mask", lambda policy, x: real(policy, x).roll(1, 1).index_fill(1, torch.tensor([0]), 0.0))


PAIRS = [
    (no_context_in_the_log_probability, context_in_the_log_probability),
    (rewarded_futures_become_likelier, the_sign_of_the_advantage),
    (groups_mimic_above_tau, a_gate_that_is_inverted),
    (a_body_that_vanishes_costs_more_than_one_that_stays, lost_frames_that_are_skipped),
    (the_first_generated_frame_is_generated_and_the_context_is_not, a_mask_that_is_off_by_one),
]


def test_a_defect_turns_its_check_red(pair, turns_red):
    turns_red(*pair)
