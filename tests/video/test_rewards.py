"""Rewards of clips: contacts under noise, what a thing that vanishes earns, names, and the doors of other trainers."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from upright.contract import InputError
from upright.video.render import film
from upright.video.rewards import (
    Scores,
    best_of,
    compose,
    contacts,
    fixed,
    flow_factory,
    flow_grpo,
    load_reward,
    newton,
    official,
    official_contacts,
    paper,
    pixel_l1,
    reward_names,
    trl,
)
from upright.video.scenes import join, simulate
from upright.video.tracks import Meta, Tracks, meta_of, track_colours
from upright.video.violations import CHEATS

W, H, T = 832, 480, 49
OFFSETS = {"paper": paper, "official": official, "fixed": fixed}


def uniform(n, seed):
    """Two bodies that move straight from anywhere to anywhere, with 0.3 px of jitter, (n, T, 2, 2)."""
    rng = np.random.default_rng(seed)
    one, two = (rng.uniform(50, [W - 50, H - 50], (n, 1, 2, 2)) for _ in range(2))
    way = np.linspace(0, 1, T)[:, None, None]
    return torch.tensor(one + (two - one) * way + 0.3 * rng.standard_normal((n, T, 2, 2))).float()


@pytest.fixture(scope="module")
def collisions():
    return simulate("collision", 8, 31)


@pytest.fixture(scope="module")
def clips(collisions):
    return film(collisions)


# seeds 1 and 2 set the threshold of `contacts`; these are others


def test_the_fixed_detector_finds_no_contact_in_uniform_motion_where_the_official_one_does():
    # catches: truncated centroids, a threshold that does not know the noise
    still = uniform(200, 41)
    assert int(contacts(still).any(1).sum()) <= 4
    assert int(official_contacts(still.trunc()).any((1, 2)).sum()) > 180


def test_true_contacts_are_found_within_a_frame():
    # catches: an index that is one off at each end, a noise scale that the contact itself blows up
    scenes = simulate("collision", 200, 42, size=(H, W), frames=T)
    rng = np.random.default_rng(43)
    seen = torch.tensor(scenes.position + 0.3 * rng.standard_normal(scenes.position.shape)).float()
    time = torch.tensor([one[0].time for one in scenes.contacts])[:, None]
    found = contacts(seen)
    assert int((found & ((torch.arange(T) - time).abs() <= 1)).any(1).sum()) >= 190
    assert float(found.sum(1).float().mean()) < 1.1


def test_gravity_a_pendulum_and_the_border_are_no_contacts():
    # catches: acceleration that is taken for a jump, a thing that is cut off by the border and seems to brake
    rng, t = np.random.default_rng(44), torch.arange(T).float()
    fall = torch.stack([100 + 2 * t, 20 + 0.15 * t**2], -1)[None, :, None].expand(50, T, 2, 2)
    swing = torch.stack([400 + 200 * torch.sin(0.2 * t), 300 + 20 * torch.cos(0.4 * t)], -1)[None, :, None]
    for smooth in (fall, swing.expand(50, T, 2, 2)):
        noisy = smooth + 0.3 * torch.tensor(rng.standard_normal(smooth.shape)).float()
        assert int(contacts(noisy).any(1).sum()) <= 1
    brake = uniform(20, 45)
    brake[:, 40:, 0] = brake[:, 40:41, 0] + 0.3 * torch.tensor(rng.standard_normal((20, 9, 2))).float()
    border = (torch.arange(T) >= 38)[:, None].expand(20, T, 2)
    assert int(contacts(brake).any(1).sum()) >= 15
    assert not contacts(brake, border).any()


def made_tracks(position, visible=None):
    """Tracks of things of radius 5 at positions (T, K, 2)."""
    p = position[None]
    seen = torch.ones(p.shape[:3], dtype=torch.bool) if visible is None else visible[None]
    one = torch.ones(p.shape[:3])
    gone = torch.where(seen[..., None], p, torch.nan)
    return Tracks(gone, 78.0 * one * seen, 5 * torch.ones_like(p), seen, ~seen & False, one, one.long(), one[:, :, 0])


META = Meta(context=5, backdrop=torch.zeros(1, H, W, 3))


def bent():
    """A track of whole pixels that turns round at frame 20, beside one at rest, (T, 2, 2)."""
    t = torch.arange(T).float()
    moving = torch.stack([100 + 10 * torch.minimum(t, 40 - t), torch.full((T,), 200.0)], -1)
    return torch.stack([moving, torch.full((T, 2), 300.0)], 1)


@pytest.mark.parametrize(("name", "weights"), [("paper", 1 + 2 + 2 + 3), ("official", 5), ("fixed", 1 + 2 + 2 + 3)])
def test_weights_stand_where_the_table_says(name, weights):
    # catches: increments that all land on the centre in `paper`, a mean over the sum of weights, context that counts
    true, there = made_tracks(bent()), bent()
    there[:, 0, 1] += 3.0
    there[:5, 0, 1] += 50.0
    found = OFFSETS[name]().score(made_tracks(there), true, META)
    after = T - 5
    sum_of = after + (weights - 1 if name == "official" else weights - 4)
    assert float(found.value) == pytest.approx(3.0 * sum_of / after / 2, rel=1e-4)
    assert not found.per_frame[:, :5].any()
    assert float(found.per_frame.sum() / after) == pytest.approx(float(found.value), rel=1e-4)
    at = 21 if name == "official" or name == "paper" else 20  # the released detector calls the peak j + 2
    assert int(found.per_frame[0].argmax()) == at
    assert float(found.parts["offset"]) == pytest.approx(1.5, rel=1e-4)


def test_official_rewards_a_thing_that_vanishes_after_a_bad_bounce_and_fixed_does_not():
    # catches: the penalty that is never reached, a mean over found frames alone
    true, bad = made_tracks(bent()), bent()
    bad[20:, 0] = bad[20, 0] + torch.arange(T - 20)[:, None] * torch.tensor([10.0, 0.0])
    seen = torch.ones(T, 2, dtype=torch.bool)
    seen[21:, 0] = False
    value = {
        name: [float(make().score(made_tracks(bad, visible), true, META).value) for visible in (None, seen)]
        for name, make in OFFSETS.items()
    }
    assert value["official"][1] < 0.1 < 50 < value["official"][0]
    assert value["paper"][1] > 50
    assert value["fixed"][1] >= value["fixed"][0] > 50


def test_a_lost_frame_costs_200_px_and_no_frame_costs_more():
    # catches: a thing far off that had better vanish, a penalty that does not scale with the picture
    true, far = made_tracks(bent()), bent() + 400.0
    gone = torch.zeros(T, 2, dtype=torch.bool)
    lost = fixed().score(made_tracks(far, gone), true, META)
    away = fixed().score(made_tracks(far), true, META)
    assert float(lost.value) == float(away.value) >= 200.0
    assert lost.lost[:, 5:].all()
    assert not lost.lost[:, :5].any()
    assert float(lost.parts["lost"]) == 1.0
    small = Meta(context=5, backdrop=torch.zeros(1, H // 2, W // 2, 3))
    assert float(fixed().score(made_tracks(far / 2, gone), made_tracks(bent() / 2), small).value) == pytest.approx(
        float(lost.value) / 2
    )
    assert float(official().score(made_tracks(far, gone), true, META).value) == 200.0


def test_the_truth_costs_nothing_and_tracks_may_stand_for_clips(collisions, clips):
    # catches: clips that are tracked otherwise than their truth, a width that is forgotten with the pixels
    meta = meta_of(collisions)
    tracks, other = track_colours(clips, meta), CHEATS["do_nothing"](collisions)
    for name in reward_names():
        reward = load_reward(name)
        exact = reward.score(clips, clips if reward.needs_truth else None, meta).value
        assert float(exact.abs().max()) == 0.0, name
        bytes_of = (other * 255).round().to(torch.uint8).numpy()
        cheat = reward.score(bytes_of, clips, meta)
        assert bool((cheat.value > 0).all()), name
        assert cheat.value.shape == (8,)
        assert cheat.per_frame.shape == (8, 16)
        if name != "pixel_l1":
            own = track_colours(bytes_of, meta)
            assert torch.equal(reward.score(own, tracks, meta).value, cheat.value)


def test_unknown_colours_are_matched_by_the_context(clips, collisions):
    # catches: things that change places between a clip and its truth, a value for a clip in which none is found
    known = fixed().score(CHEATS["do_nothing"](collisions), clips, meta_of(collisions)).value
    found = fixed().score(CHEATS["do_nothing"](collisions), clips, Meta()).value
    assert float(((known - found).abs() / known).median()) < 0.1
    with pytest.raises(InputError) as error:
        fixed().score(clips * 0, clips * 0, Meta())
    assert error.value.got == "1 true clips in which nothing is seen after the context"


def test_a_sum_weighs_spreads_inside_groups_and_turns_gains_over(clips, collisions, monkeypatch):
    # catches: raw sums in which the larger unit wins, a spread of the whole batch, a gain that is added to costs
    rewards = {
        "small": (torch.tensor([1.0, 2.0, 5.0, 9.0]), True),
        "large": (torch.tensor([3e4, 1e4, 7.0, 7.0]), False),
    }

    def loaded(name):
        value, lower = rewards[name]
        score = Scores(value, value[:, None], {}, torch.zeros(4, 1, 0, dtype=torch.bool))
        return SimpleNamespace(name=name, needs_truth=False, lower_is_better=lower, score=lambda *rest: score)

    monkeypatch.setattr("upright.video.rewards.load_reward", loaded)
    both = compose({"small": 1.0, "large": 0.5}, group=2)
    value = both.score(clips).value
    assert float(value[1] - value[0]) == pytest.approx(math.sqrt(2) * 1.5, rel=1e-5)
    assert float(value[3] - value[2]) == pytest.approx(math.sqrt(2), rel=1e-5)
    assert both.name == "1 small + 0.5 large"
    assert not both.needs_truth
    with pytest.raises(InputError) as error:
        compose({"small": 1.0}, group=3).score(clips)
    assert error.value.args[:2] == ("4 clips in groups of 3", "whole groups of at least 2")


# -- plug-ins -------------------------------------------------------------------------------------------------------


def test_a_plug_in_of_another_package_is_a_reward(bright, clips):
    # catches: names that are imported when they are listed, plug-ins that are called otherwise
    assert {"fixed", "bright"} <= set(reward_names())
    assert "bright_things" not in sys.modules
    value = load_reward("bright").score(clips).value
    assert torch.allclose(value, clips.mean((1, 2, 3, 4)))


def test_a_plug_in_cannot_take_the_name_of_a_reward_of_ours(install):
    # catches: a stranger's reward under a known name, without a word
    install("late-things", "rewards", ["fixed = builtins:dict"])
    with pytest.warns(UserWarning, match="late-things registers 'fixed', which is one of the rewards of upright"):
        assert reward_names().count("fixed") == 1
    assert load_reward("fixed").name == "fixed"


@pytest.mark.parametrize(
    ("name", "got", "accepted"),
    [
        ("fxed", "'fxed' is no reward", "fixed, newton, official, paper, pixel_l1, bright, gone, empty"),
        (
            "gone",
            "reward 'gone' of package bright-things does not load: "
            "ModuleNotFoundError: No module named 'no_such_module'",
            "a callable without arguments that returns a reward",
        ),
        (
            "empty",
            "reward 'empty' of package bright-things, a dict",
            "name, needs_truth, lower_is_better and score(clips, truth, meta)",
        ),
    ],
)
def test_a_reward_that_is_none_is_named(bright, name, got, accepted):
    # catches: a stranger's traceback, a missing attribute that is found in the middle of a run
    with pytest.raises(InputError) as error:
        load_reward(name)
    assert error.value.args[:2] == (got, accepted)


# -- doors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(collisions, clips):
    """Two clips, true and still, as trainers hand them on: (B, T, 3, H, W)."""
    return torch.stack([clips[0], CHEATS["copy_last"](collisions)[0]]).movedim(-1, 2)


def test_flow_grpo_calls_it_among_its_scores(samples, clips):
    # Flow-GRPO's multi_score: ``scores, rewards = score_fns[name](images, prompts, metadata)``, then
    # ``[weight * score for score in scores]``; images of videos are (B, T, C, H, W) in [0, 1], metadata one dict each.
    # catches: a cost that is climbed, channels that are taken for columns, a tensor that cannot be weighted
    for reward in (fixed(), newton()):
        fn = flow_grpo(reward)
        assert list(inspect.signature(fn).parameters) == ["images", "prompts", "metadata"]
        metadata = [{"truth": clips[0]}, {"truth": clips[0].numpy()}]
        scores, info = fn(samples, ["a", "b"], metadata)
        assert [0.5 * score for score in scores] == [scores[0] / 2, scores[1] / 2]
        assert scores[0] > scores[1] + 0.5
        assert info["undecided"] == [False, False]


def test_flow_factory_makes_it_a_pointwise_model(samples, clips, monkeypatch):
    # Flow-Factory, rewards/abc.py: PointwiseRewardModel(config, accelerator), required_fields, use_tensor_inputs,
    # ``__call__(prompt, image=None, video=None, audio=None, condition_images=None, condition_videos=None, **kwargs)``
    # -> RewardModelOutput(rewards (B,), extra_info); with use_tensor_inputs video is a list of (T, C, H, W).
    # catches: a class that the host does not know, fields that it is not given, rewards of another type
    @dataclass
    class RewardModelOutput:
        rewards: torch.Tensor
        extra_info: dict | None = None

    class PointwiseRewardModel:
        required_fields: tuple[str, ...] = ("image", "prompt")

        def __init__(self, config, accelerator):
            self.config, self.accelerator = config, accelerator

    host = ModuleType("flow_factory.rewards")
    host.PointwiseRewardModel, host.RewardModelOutput = PointwiseRewardModel, RewardModelOutput
    plain = flow_factory(newton())()(prompt=["a", "b"], video=list(samples))
    monkeypatch.setitem(sys.modules, "flow_factory", ModuleType("flow_factory"))
    monkeypatch.setitem(sys.modules, "flow_factory.rewards", host)
    model = flow_factory(fixed())
    assert issubclass(model, PointwiseRewardModel)
    assert model.required_fields == ("prompt", "video", "truth")
    assert model.use_tensor_inputs
    given = {"image": None, "condition_videos": None, "truth": [clips[0], clips[0]]}
    output = model("config", "accelerator")(prompt=["a", "b"], video=list(samples), **given)
    assert isinstance(output, RewardModelOutput)
    assert output.rewards[0] > output.rewards[1] + 0.5
    assert plain.rewards[0] > plain.rewards[1]


def test_trl_calls_it_as_a_reward_function(samples, clips, tmp_path):
    # TRL, GRPOTrainer: ``reward_func(prompts=..., completions=..., completion_ids=..., **columns)`` -> list of float,
    # logged by ``__name__``.
    # catches: a column of files that is not read, a tensor where a list is wanted
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", (clips[0] * 255).round().to(torch.uint8).numpy())
    fn = trl(fixed())
    completions = [video.movedim(1, -1).numpy() for video in samples]
    files = [str(tmp_path / f"{i}.npy") for i in range(2)]
    scores = fn(prompts=["a", "b"], completions=completions, completion_ids=None, truth=files)
    assert [type(score) for score in scores] == [float, float]
    assert scores[0] > scores[1] + 0.5
    assert fn.__name__ == "fixed"


def test_the_best_of_several_calls_of_a_pipeline_is_found(samples):
    # catches: the worst for the best, one call that is repeated, an output type that is not read
    diffusers = pytest.importorskip("diffusers")

    class Clips(diffusers.DiffusionPipeline):
        """Gives the still clip, but the true one at the third call."""

        def __call__(self, prompt, generator, num_videos_per_prompt=1, output_type="np"):
            calls.append(float(torch.rand((), generator=generator)))
            video = samples[0 if len(calls) == 3 else 1]
            frames = torch.stack([video] * num_videos_per_prompt)
            if output_type == "np":
                frames = frames.movedim(2, -1).numpy()
            elif output_type == "pil":
                bytes_of = (frames.movedim(2, -1) * 255).round().to(torch.uint8).numpy()
                frames = [[Image.fromarray(one) for one in clip] for clip in bytes_of]
            return SimpleNamespace(frames=frames)

    for output_type in ("np", "pt", "pil"):
        pipeline, calls = Clips(), []
        call = {"prompt": "two discs", "generator": torch.Generator().manual_seed(0), "output_type": output_type}
        best = best_of(pipeline, 4, newton(), num_videos_per_prompt=2, **call)
        assert len(set(calls)) == 4
        assert best.place == 4
        assert len(best.scores) == 8
        assert best.scores[4] == max(best.scores)
        assert torch.allclose(best.clip, samples[0].movedim(1, -1), atol=0.5 / 255)
    calls = []
    best = best_of(Clips(), 3, fixed(), truth=samples[0].movedim(1, -1), **call)
    assert best.place == 2


def test_a_clip_that_cannot_be_measured_gets_the_worst_score_and_is_named(samples):
    # catches: a NaN in the advantages, 0 for a picture of nothing, which would be the best of all
    empty = torch.cat([samples, samples[:1] * 0 + 0.5])
    scores, info = flow_grpo(newton())(empty, ["", "", ""], [{}, {}, {}])
    assert info["undecided"] == [False, False, True]
    assert scores[2] == min(scores)
    with pytest.raises(InputError) as error:
        flow_grpo(newton())(empty[2:], [""], [{}])
    assert error.value.args[:2] == ("1 clips that newton cannot measure", "clips of moving things")


def test_the_wing_needs_no_host_and_lists_in_a_fresh_process():
    # catches: an import of a trainer, of PyAV or of diffusers at the head of the file
    code = (
        "import sys; from upright.video.rewards import reward_names; reward_names(); "
        "print([m for m in ('av', 'diffusers', 'trl', 'flow_factory', 'polars') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


CLIP = torch.zeros(1, 8, 16, 16, 3)
BAD = {
    "axes": (
        lambda: fixed().score(CLIP[0], CLIP),
        "clips of shape (8, 16, 16, 3)",
        "(B, T, H, W, 3) with at least 6 frames",
    ),
    "a path": (lambda: newton().score("clip.mp4"), "a str", "(B, T, H, W, 3) with at least 6 frames"),
    "nan": (
        lambda: newton().score(CLIP * math.nan),
        "clips of float32 with values outside [0, 1] or not finite",
        "float in [0, 1] or uint8",
    ),
    "no truth": (lambda: official().score(CLIP), "official without truth", "true clips, or tracks of them"),
    "another truth": (
        lambda: pixel_l1().score(CLIP, CLIP.repeat(2, 1, 1, 1, 1)),
        "2 true clips of 8 frames for 1 of 8",
        "the true clip of each, as long",
    ),
    "no width": (
        lambda: fixed().score(made_tracks(bent()), made_tracks(bent())),
        "tracks without a backdrop in meta",
        "one, or clips",
    ),
    "no weights": (lambda: compose({}), "weights {}", "at least one name, weights above 0"),
    "no calls": (lambda: best_of(lambda: None, 0, newton()), "n = 0", "at least 1"),
    "no frames": (lambda: best_of(lambda: None, 1, newton()), "a NoneType without frames", "a pipeline of videos"),
    "no field": (
        lambda: flow_grpo(fixed())(CLIP, [""], [{}]),
        "fixed without truth",
        "the true clip of each, or its file",
    ),
    "two sizes": (
        lambda: trl(newton())([], [CLIP[0], CLIP[0, :7]]),
        "videos of shapes [(7, 16, 16, 3), (8, 16, 16, 3)]",
        "at least one, all of one length and size",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_three_parts(name):
    # catches: a score of what is no clip
    call, got, accepted = BAD[name]
    with pytest.raises(InputError) as error:
        call()
    assert error.value.args[:2] == (got, accepted)


def test_rewards_see_every_kind_of_scene():
    # catches: a kind of which a mask or the ground is taken for something else
    scenes = join([simulate(kind, 6, 32, size=(64, 64), frames=24) for kind in ("pendulum", "fall", "rolling")])
    clips, meta = film(scenes), meta_of(scenes)
    assert float(newton().score(clips, None, meta).value.max()) < 0.2
    assert bool((newton().score(CHEATS["copy_last"](scenes), None, meta).value > 0.2).all())
