"""PhysRVG as a method: what each arm rewards, when it mimics, and when it stops."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("pymunk")

import torch

from upright.contract import InputError
from upright.experiment.folders import ArmRun, RunFolder
from upright.experiment.registry import load_method
from upright.methods import physrvg
from upright.methods.physrvg import Futures, PhysRVGConfig, cycle_loss
from upright.tasks.clips import Clips
from upright.video import model as models

SPEC = load_method("physrvg")


@pytest.fixture(scope="module")
def task():
    return Clips.tiny(0)


@pytest.fixture(scope="module")
def withheld():
    return Clips.tiny(0, future="withheld")


def config(**changes):
    return PhysRVGConfig(**{**SPEC.tiny, **changes})


def trained(task, run=None, **changes):
    """The weights of an arm after its iterations."""
    result = SPEC.run(task, config(**changes), run or ArmRun(None, 0, "x"))
    return {name: x.numpy() for name, x in result.policy.state_dict().items()}


def alike(one, other, tolerance=1e-12):
    return all(np.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


def test_the_gate_at_its_ends_is_both_or_discovery(task):
    # catches: a gate that is inverted, or a mimicry that is weighed by tau
    assert alike(trained(task, tau=0.0), trained(task, gate=False))
    assert alike(trained(task, tau=math.inf), trained(task, mimicry=0.0))
    assert not alike(trained(task, tau=0.0), trained(task, mimicry=0.0))


def test_without_weights_nothing_is_learnt(task):
    # catches: weight decay, or an update that a loss of 0 makes
    start = {name: x.numpy() for name, x in task.policy(ArmRun(None, 0, "x")).state_dict().items()}
    assert alike(trained(task, discovery=0.0, mimicry=0.0), start, 0.0)


def test_modes_differ(task):
    # catches: a mode that is read and not used
    found = [trained(task, mode=mode, tau=1.0) for mode in ("recommended", "paper", "official")]
    assert not any(alike(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_each_mode_has_its_tau(task):
    # catches: thresholds of 832 px used on 32
    run = ArmRun(None, 0, "x")
    for mode, wanted in (("paper", 8.0 * 32 / 832), ("official", 10.0 * 32 / 832)):
        assert physrvg._Cycle(task, config(mode=mode), run, task.policy(run)).tau() == pytest.approx(wanted)
    cycle = physrvg._Cycle(task, config(), run, task.policy(run))
    part = task.part("valid", run)
    noise = torch.randn(part.latents.shape, generator=run.torch_rng("tau"), dtype=part.latents.dtype)
    places = models.rollout(cycle.policy, part.latents, part.condition, noise, steps=config().steps)[0]
    film = task.film(cycle.policy.positions(places), part.meta)
    start = float(cycle.offset.score(film, part.truth, part.meta).value.mean())
    assert cycle.tau() == pytest.approx(0.6 * start)


def test_a_group_mimics_exactly_where_its_mean_offset_is_above_tau(task, monkeypatch):
    # catches: a gate on the best sample, on the whole batch, or on the reward
    run, seen = ArmRun(None, 0, "x"), []
    real = physrvg.models.flow_matching_loss
    monkeypatch.setattr(
        physrvg.models, "flow_matching_loss", lambda p, x, c, g: seen.append(len(x)) or real(p, x, c, g)
    )
    cycle = physrvg._Cycle(task, config(prompts=4), run, task.policy(run))
    offsets = []
    judged = cycle._judged
    monkeypatch.setattr(cycle, "_judged", lambda *a: offsets.append(judged(*a)) or offsets[-1])
    cycle.iteration(0, math.inf)
    means = offsets[-1][1].view(4, 3).mean(1).sort().values
    assert seen == []
    tau = float((means[1] + means[2]) / 2)
    cycle = physrvg._Cycle(task, config(prompts=4), run, task.policy(run))  # the same start and the same draws
    assert cycle.iteration(0, tau)["gate"] == 0.5
    assert seen == [2 * 3]


def test_a_placebo_has_the_advantages_of_its_groups_in_another_order(task, monkeypatch):
    # catches: advantages that cross groups, which would tell one context from another
    seen = {}
    for shuffle in (False, True):
        real = physrvg.cycle_loss

        def spy(policy, taken, condition, advantage, shuffle=shuffle, real=real, **options):
            seen.setdefault(shuffle, advantage.view(2, 3))
            return real(policy, taken, condition, advantage, **options)

        with monkeypatch.context() as patch:
            patch.setattr(physrvg, "cycle_loss", spy)
            trained(task, shuffle=shuffle)
    assert torch.allclose(seen[False].sort(1).values, seen[True].sort(1).values)
    assert not torch.allclose(seen[False], seen[True])


def test_a_run_that_was_killed_goes_on_to_the_same_weights(task, tmp_path, monkeypatch):
    # catches: a stream that depends on how often it was asked, a gate's record or an optimiser that is not kept
    changes = {"iterations": 4, "check_every": 2}
    whole = trained(task, ArmRun(RunFolder(tmp_path / "a"), 0, "cycle"), **changes)
    real = physrvg._Cycle.iteration

    def dies(self, step, tau):
        if step == 3:
            raise KeyboardInterrupt
        return real(self, step, tau)

    again = RunFolder(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(physrvg._Cycle, "iteration", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(task, ArmRun(again, 0, "cycle"), **changes)
    run = ArmRun(again, 0, "cycle")
    assert alike(trained(task, run, **changes), whole, 0.0)
    assert run.restore()["epoch"] == 4


def test_a_rollout_of_another_model_is_refused(task, monkeypatch):
    # catches: dropout, or another type of numbers, between rollout and update
    real = models.rollout

    def other(policy, *args, **options):
        x, taken = real(policy, *args, **options)
        return x, [one._replace(log_prob=one.log_prob + 1e-3) for one in taken]

    monkeypatch.setattr(physrvg.models, "rollout", other)
    with pytest.raises(InputError) as error:
        trained(task, tau=1.0)
    assert error.value.got == "a ratio 1.0e-03 off 1 before the update of iteration 1"
    assert error.value.accepted == "1 within 1e-06"


def test_a_run_without_any_spread_of_rewards_ends(task, monkeypatch):
    # catches: hours of updates on noise over 1e-8
    run = ArmRun(None, 0, "x")
    real = physrvg._Cycle._judged

    def flat(self, *args):
        found, offset = real(self, *args)
        return found._replace(value=torch.ones_like(found.value)), offset

    monkeypatch.setattr(physrvg._Cycle, "_judged", flat)
    trained(task, run, iterations=30, check_every=30)
    assert run.warnings == ["arm x: ended after 10 iterations: no spread of rewards 10 times in a row"]


@pytest.mark.parametrize(
    ("now", "word"),
    [
        (
            {"offset": 1.0, "spread": 0.1, "background": 0.0, "momentum": 0.2},
            "two futures of one context differ by 0.10 px, 2.00 at",
        ),
        (
            {"offset": 1.0, "spread": 2.0, "background": 0.2, "momentum": 0.2},
            "the background changes by 0.200, 0.000 at the start",
        ),
        (
            {"offset": 1.0, "spread": 2.0, "background": 0.0, "momentum": 0.5},
            "momentum from nowhere is 0.50 px/frame^2",
        ),
        ({"offset": 1.0, "spread": 1.9, "background": 0.0, "momentum": 0.2}, ""),
        ({"offset": 3.0, "spread": 0.1, "background": 0.2, "momentum": 0.9}, ""),
    ],
)
def test_a_reward_that_rises_while_something_else_breaks_is_told(now, word):
    # catches: a policy that forgets that the future is open, and is paid for it
    start = {"offset": 2.0, "spread": 2.0, "background": 0.0, "momentum": 0.2}
    assert physrvg._health(start, now, "offset").startswith(word)
    assert bool(physrvg._health(start, now, "offset")) == bool(word)


def test_where_the_future_is_withheld_no_arm_sees_it(withheld):
    # catches: a truth that reaches a reward, a loss or a threshold
    run = ArmRun(None, 0, "x")
    part = withheld.part("post", run)
    assert part.truth is None
    assert bool(part.latents[:, 5:].isnan().all())
    assert bool(part.latents[:, :5].isfinite().all())
    with pytest.raises(InputError) as error:
        SPEC.run(withheld, config(), run)
    assert error.value.got == "reward = 'offset' and mimicry = 1 where the future is withheld"
    assert error.value.todo == "set them, or future = 'known'"
    assert SPEC.run(withheld, config(reward="newton", mimicry=0.0), run) is not None


def test_a_withheld_future_asks_another_question():
    # catches: a reward that is its own judge
    spec = SPEC.under({"future": "withheld"})
    assert spec.primary == "mean:penetrates"
    assert spec.arm("remedy").settings["reward"] == "newton"
    assert {arm.name for arm in spec.arms} == {"start", "verifiers", "best_of_n", "shuffled", "truth"}
    assert SPEC.under({"future": "known"}).primary == "mean:offset"


def test_the_best_of_several_is_the_one_with_the_least_cost(task):
    # catches: the largest cost taken, a candidate of another context, or a NaN that wins
    run = ArmRun(None, 0, "x")
    part, policy = task.part("valid", run), task.policy(run)
    noise = torch.randn(part.latents.shape, dtype=part.latents.dtype, generator=run.torch_rng("n"))
    kept = []

    def judge(places, meta):
        cost = places[:, -1, 0, 0].clone()
        kept.append(places)
        cost[0] = math.nan if len(kept) == 1 else cost[0]
        return cost

    found = Futures(policy, 6, 4, judge).futures(part.latents, part.condition, noise, part.meta)
    every = torch.stack(kept)[:, :, -1, 0, 0]
    assert torch.equal(found[1:, -1, 0, 0], every[:, 1:].amin(0))
    assert torch.equal(found[0, -1, 0, 0], every[1:, 0].amin())
    assert torch.equal(kept[0], Futures(policy, 6).futures(part.latents, part.condition, noise, part.meta))


def test_the_loss_is_that_of_summed_log_probabilities(task):
    # catches: a weight of discovery that depends on the size of the latents
    run = ArmRun(None, 0, "x")
    part, policy = task.part("post", run), task.policy(run)
    how = {"steps": 6, "eta": 0.7}
    noise = torch.randn(part.latents.shape, dtype=part.latents.dtype)
    _, taken = models.rollout(policy, part.latents, part.condition, noise, window=(0, 1), **how)
    advantage = torch.linspace(-1, 1, len(noise), dtype=noise.dtype)
    loss, ratio = cycle_loss(policy, taken, part.condition, advantage, clip=0.1, **how)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-9)
    torch.testing.assert_close(loss, -44 * advantage)


def test_keep_takes_an_even_number_of_a_group():
    # catches: extremes that overlap
    with pytest.raises(InputError) as error:
        PhysRVGConfig(keep=5)
    assert error.value.got == "keep = 5 of group = 12"


def test_only_the_best_and_the_worst_are_trained_on(task, monkeypatch):
    # catches: best-of-n that keeps the middle
    seen = []
    real = physrvg.cycle_loss

    def spy(policy, taken, condition, advantage, **options):
        seen.append((len(condition), advantage.view(2, 2)))
        return real(policy, taken, condition, advantage, **options)

    monkeypatch.setattr(physrvg, "cycle_loss", spy)
    trained(task, keep=2)
    assert all(n == 4 and bool((pair[:, 0] >= 0).all() and (pair[:, 1] <= 0).all()) for n, pair in seen)
