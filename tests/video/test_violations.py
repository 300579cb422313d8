"""Scripted violations against the simulation, edits that are none, cheats, and the bench of rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upright.contract import InputError
from upright.video.render import film
from upright.video.rewards import Scores, fixed, newton, official, pixel_l1
from upright.video.scenes import KINDS, join, simulate
from upright.video.tracks import meta_of, track_colours
from upright.video.verifiers import TOLERANCES, verify
from upright.video.violations import CHEATS, HARMLESS, VIOLATIONS, bench_rewards


@pytest.fixture(scope="module")
def scenes():
    return join([simulate(kind, 8, 51, size=(64, 64), frames=24) for kind in KINDS])


@pytest.fixture(scope="module")
def made(scenes):
    return {name: one.make(scenes, one.bench, 3) for name, one in VIOLATIONS.items()}


def test_there_are_twelve_and_each_verifier_has_one():
    # catches: a verifier that nothing breaks, a size of the bench that is none of the sizes
    assert len(VIOLATIONS) == 12
    assert {name for one in VIOLATIONS.values() for name in one.verifiers} == set(TOLERANCES)
    for name, one in VIOLATIONS.items():
        assert name == one.name
        assert one.bench in one.sizes
        assert list(one.sizes) == sorted(set(one.sizes))
        assert set(one.kinds) <= set(KINDS)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_context_stays_and_the_rest_does_not(scenes, made, name):
    # catches: a violation that begins in what is given, that changes nothing, or that is made for another kind
    clips, index = made[name]
    true = film(scenes[index])
    assert len(index) >= 3
    assert set(scenes.kind[index]) <= set(VIOLATIONS[name].kinds)
    assert torch.equal(clips[:, :5], true[:, :5])
    assert bool(((clips - true).abs().amax((1, 2, 3, 4)) > 0.1).all())


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_breaks_the_check_that_it_belongs_to(scenes, made, name):
    # catches: another wrong than the name says
    clips, index = made[name]
    meta = meta_of(scenes[index])
    broken, true = (verify(track_colours(some, meta), meta) for some in (clips, film(scenes[index])))
    own = [(broken[check], true[check]) for check in VIOLATIONS[name].verifiers]
    seen = torch.stack([bad.decided & good.decided for bad, good in own])
    more = torch.stack([bad.series.amax(1) > good.series.amax(1) for bad, good in own])
    assert bool(seen.any(0).float().mean() > 0.7)
    assert float((seen & more).any(0)[seen.any(0)].float().mean()) >= 0.9


def test_collisions_keep_what_they_do_not_break(scenes):
    # catches: a late bounce that loses momentum, an energy gain that is another one than it says
    two = simulate("collision", 20, 52, size=(64, 64), frames=24)
    mass = two.mass[:, None, :, None]
    for name, gain in (("penetration", 0.0), ("early bounce", 0.0), ("energy gain", 0.25)):
        size = 0.25
        states = VIOLATIONS[name].change(two, size, np.random.default_rng(0))
        speed = np.diff(states.position, axis=1)
        momentum = (mass * speed).sum(2)
        energy = (mass * speed**2).sum((2, 3)) / 2
        fits = states.possible
        assert fits.sum() >= 10
        assert np.abs(momentum[fits, -1] - momentum[fits, 0]).max() < 1e-6
        true = (two.mass * (two.velocity**2).sum(-1)[:, -1]).sum(1) / 2
        wanted = energy[:, 0] * (1 + gain) if gain else true
        assert np.allclose(energy[fits, -1], wanted[fits])
        apart = (
            np.linalg.norm(states.position[:, :, 0] - states.position[:, :, 1], axis=-1) - two.radius.sum(1)[:, None]
        )
        depth = -apart.min(1) / two.radius.min(1)
        if name == "penetration":
            assert np.all(depth[fits] <= size + 1e-6)
            assert np.median(depth[fits]) > 0.5 * size
        if name == "early bounce":
            assert np.all(depth[fits] < 0)


def test_wrong_gravity_falls_as_it_says(scenes):
    # catches: a factor that acts on speeds, a flight that forgets the bounce
    falls = simulate("fall", 10, 53, size=(64, 64), frames=24)
    for size in (0.0, 0.5):
        states = VIOLATIONS["wrong gravity"].change(falls, size, np.random.default_rng(0))
        if size == 0.0:
            assert np.allclose(states.position, falls.position, atol=1e-3)
        bend = np.diff(states.position[:, 4:, :, 1], n=2, axis=1)
        assert np.allclose(np.median(bend, 1), (1 - size) * falls.gravity[:, 1:], atol=1e-6)


def test_harmless_edits_move_nothing_but_the_shift(scenes):
    # catches: an edit that is none, a codec that changes the number of frames
    true, meta = film(scenes), meta_of(scenes)
    place = track_colours(true, meta).position
    for name, edit in HARMLESS.items():
        edited = edit(true, 0)
        assert edited.shape == true.shape
        assert 0 < float((edited - true).abs().mean()) < 0.12, name
        away = (track_colours(edited, meta).position - place).norm(dim=-1).nanmedian()
        assert 0.9 < float(away) < 1.1 if name == "shift" else float(away) < 0.35, name


@pytest.fixture(scope="module")
def bench():
    return bench_rewards([fixed(), newton(), official(), pixel_l1()], clips=16, seed=5, size=(32, 32), frames=16)


def rows_of(bench, reward, what):
    return {
        row["name"]: row
        for row in bench.rows
        if row["reward"] == reward and row["what"] == what and row.get("bench", True)
    }


def test_no_cheat_earns_what_a_true_clip_does(bench):
    # catches: a reward for doing nothing, for vanishing, for a camera that shakes
    for reward in ("fixed", "newton"):
        earned = rows_of(bench, reward, "cheat")
        assert set(earned) == set(CHEATS)
        assert all(row["earns"] < -1.0 for row in earned.values()), (reward, earned)


def test_the_bench_separates_rewards(bench):
    # catches: an area of the wrong side, a vanishing thing that official minds, costs that are not those of the clips
    for name, row in rows_of(bench, "fixed", "violation").items():
        assert row["auc"] >= 0.95, name
    assert rows_of(bench, "official", "violation")["vanish"]["auc"] < 0.8
    assert rows_of(bench, "newton", "violation")["teleport"]["auc"] >= 0.95
    assert rows_of(bench, "fixed", "violation")["teleport"]["monotone"] > 0.9
    assert rows_of(bench, "fixed", "edit")["shift"]["shift"] > 1.0
    violated, cost = np.array(bench.violated), np.array(bench.cost["fixed"])
    own = np.array(bench.violation) == "rod"
    assert cost[own & violated].min() > cost[own & ~violated].max()
    assert len(bench.scene) == len(violated) == len(cost) == 2 * violated.sum()
    assert all(row["ms"] > 0 for row in rows_of(bench, "fixed", "reward").values())


class _Random:
    """A reward that knows nothing, and is climbed."""

    name, needs_truth, lower_is_better = "random", False, False

    def score(self, clips, truth=None, meta=None):
        value = torch.rand(len(clips), generator=torch.Generator().manual_seed(len(clips)))
        return Scores(value, value[:, None], {}, torch.zeros(len(clips), 1, 0, dtype=torch.bool))


def test_a_reward_that_knows_nothing_separates_nothing():
    # catches: an area that is that of the sizes, a gain that is taken for a cost
    rows = bench_rewards([_Random()], clips=16, seed=6, size=(32, 32), frames=16).rows
    areas = [row["auc"] for row in rows if row["what"] == "violation"]
    assert 0.35 < np.mean(areas) < 0.65
    assert len(rows) == len(areas) + 9


@pytest.mark.parametrize(
    ("rewards", "clips", "got"),
    [([], 8, "8 clips, rewards none"), ([_Random(), _Random()], 4, "4 clips, rewards random, random")],
)
def test_a_bench_of_nothing_is_refused(rewards, clips, got):
    # catches: rows of one reward under the name of another
    with pytest.raises(InputError) as error:
        bench_rewards(rewards, clips=clips)
    assert error.value.args[:2] == (got, "8 clips at least, a reward, each name once")
