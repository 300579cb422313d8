"""Flow models of clips: context that stays, log-probabilities that repeat, losses and rollouts against closed forms."""

from __future__ import annotations

import importlib.util
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths.policy import advantages, surrogate
from upright.video.model import PixelDiT, Taken, TinyWan, Trajectory, flow_matching_loss, log_probs, rollout
from upright.video.render import draw

needs_diffusers = pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="diffusers is not installed")
WAN = pytest.param(TinyWan, marks=needs_diffusers)


class Formula:
    """A policy by a formula of x and t that keeps what it was asked."""

    def __init__(self, formula, shape=(6, 4), context=2):
        self.formula, self.shape, self.context, self.asked = formula, shape, context, []

    def velocity(self, x, t, condition):
        self.asked.append((x, t))
        return self.formula(x, t[..., None])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def drawn(n, seed, shape=(16, 4)):
    """Latents, noise, and radii."""
    generator = seeded(seed)
    x0, noise = torch.randn(2, n, *shape, generator=generator)
    return x0, noise, 2.5 + torch.rand(n, 2, generator=generator)


def random_weights(policy, seed=0):
    """Give a policy outputs that are not zero."""
    with torch.no_grad():
        for one in policy.parameters():
            one.add_(0.1 * torch.randn(one.shape, generator=seeded(seed)))
    return policy


SMALL = random_weights(Trajectory())
WEIGHTS = {kind: random_weights(Trajectory()).to(kind) for kind in (torch.float32, torch.bfloat16, torch.float64)}


@settings(max_examples=25, deadline=None)
@given(
    of_latents=st.sampled_from([torch.float32, torch.bfloat16]),
    of_weights=st.sampled_from(list(WEIGHTS)),
    kind=st.sampled_from(["constant", "flow", "cps"]),
    first=st.integers(0, 5),
    part=st.integers(1, 10),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_ratio_of_an_unchanged_model_is_one_in_any_split(of_latents, of_weights, kind, first, part, whole, seed):
    # catches: latents that are kept in another type than evaluated, times that are rounded, a step of another grid
    policy, setting = WEIGHTS[of_weights], {"steps": 8, "eta": 0.7, "kind": kind, "whole": whole}
    x0, noise, radii = drawn(10, seed)
    x0, noise = x0.to(of_latents), noise.to(of_latents)
    _, steps = rollout(policy, x0, radii, noise, window=(first, first + 1), generator=seeded(seed), **setting)
    assert [one.step for one in steps] == [first, first + 1]
    assert torch.equal(steps[0].next, steps[1].x)
    for one in steps:
        assert one.x.dtype == one.next.dtype == of_latents
        # products of 16-bit weights are rounded by the size of the batch, which then has to be that of the rollout
        size = 10 if of_weights is torch.bfloat16 else part
        parts = [slice(i, i + size) for i in range(0, 10, size)]
        new = torch.cat([log_probs(policy, one.select(i), radii[i], **setting) for i in parts])
        assert new.requires_grad
        assert float((new.detach().double() - one.log_prob).exp().sub(1).abs().max()) <= 1e-6


def test_context_stays_has_time_zero_and_changes_nothing_of_the_log_probability():
    # catches: context in the log-probability, noise or a time above 0 in the context, a future that is read
    def formula(x, t):
        return torch.where(t > 0, 0.3 * x, 1e6)

    policy = Formula(formula)
    x0, noise, _ = drawn(5, 1, (6, 4))
    hidden = torch.cat([x0[:, :2], torch.full((5, 4, 4), math.nan)], 1)
    setting = {"steps": 4, "eta": 0.7}
    end, steps = rollout(policy, hidden, None, noise, window=(0, 2), generator=seeded(0), **setting)
    assert torch.isfinite(end).all()
    assert torch.equal(end[:, :2], x0[:, :2])
    assert len(policy.asked) == 4  # catches: a second evaluation in a stochastic step
    for (x, t), time in zip(policy.asked, (1.0, 0.75, 0.5, 0.25), strict=True):
        assert torch.equal(x[:, :2], x0[:, :2])
        assert torch.equal(t, torch.tensor([0, 0, time, time, time, time]).expand(5, 6))
    one = steps[1]
    other = Taken(one.step, *(torch.cat([x[:, :2] + 7, x[:, 2:]], 1) for x in (one.x, one.next)), one.log_prob)
    assert torch.equal(log_probs(policy, other, None, **setting), one.log_prob)
    mean = one.x - 0.25 * (0.3 * one.x + 0.49 / (2 * 0.5) * (one.x + 0.5 * 0.3 * one.x))
    wanted = torch.distributions.Normal(mean, 0.7 * 0.5).log_prob(one.next)[:, 2:].mean((1, 2))
    assert torch.allclose(one.log_prob, wanted, atol=1e-6)
    assert float((log_probs(policy, one, None, whole=True, **setting) - one.log_prob).abs().min()) > 1


@pytest.mark.parametrize("window", [(), range(99)])
def test_rollouts_of_the_exact_velocity_end_in_the_distribution_of_the_data(window):
    # catches: a grid in another order, stochastic steps elsewhere than in the window
    def formula(x, t):  # data of N(1.5, 0.4^2)
        gap = (x - (1 - t) * 1.5) / ((1 - t) ** 2 * 0.16 + t**2)
        return t * gap - (1.5 + (1 - t) * 0.16 * gap)

    x0, noise, _ = drawn(50_000, 2, (2, 1))
    policy = Formula(formula, (2, 1), 1)
    end, _ = rollout(policy, x0, None, noise, steps=100, eta=0.7, window=window, generator=seeded(1))
    assert float(end[:, 1].mean()) == pytest.approx(1.5, abs=0.01)
    assert float(end[:, 1].std()) == pytest.approx(0.400 if window else 0.394, abs=0.004)


def test_clips_of_a_group_are_alike_until_the_window_opens():
    # catches: noise of its own in an ODE step, one noise for all in a stochastic one
    x0, noise, radii = (one[:2].repeat_interleave(6, 0) for one in drawn(2, 3))
    _, steps = rollout(SMALL, x0, radii, noise, steps=8, eta=0.7, window=(2, 3), generator=seeded(0))
    before, after = (one.view(2, 6, 16, 4) for one in steps[0][1:3])
    assert float((before - before[:, :1]).abs().max()) < 1e-5
    assert float((after - after[:, :1])[:, 1:, 5:].abs().amax((2, 3)).min()) > 0.1


def test_the_loss_is_that_of_generated_frames_at_times_of_their_own():
    # catches: context in the loss, one time for the batch, noise that is added to the context, a sum, rounded times
    x0, _, _ = drawn(4000, 5, (6, 4))
    policy = Formula(lambda x, t: torch.where(t > 0, (x - x0) / t + 0.5, 1e6))
    assert torch.allclose(flow_matching_loss(policy, x0, None, seeded(0)), torch.tensor(0.25), atol=1e-2)
    x, t = policy.asked[0]
    assert torch.equal(x[:, :2], x0[:, :2])
    assert not t[:, :2].any()
    assert torch.equal(t[:, 2:], t[:, 2:3].expand(-1, 4))
    assert torch.allclose(t[:, 2].quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]), atol=0.03)
    flow_matching_loss(policy, x0.bfloat16(), None, seeded(0))
    assert [one.dtype for one in policy.asked[1]] == [torch.bfloat16, torch.float32]
    zero = flow_matching_loss(Formula(lambda x, t: 0 * x), x0, None, seeded(1))
    assert float(zero.mean()) == pytest.approx(2.0, abs=0.05)  # of e - x_0, both of variance 1


def test_places_are_coded_exactly_and_decoded_by_drawing():
    # catches: x and y exchanged, the middle of the picture half a pixel off, radii in other units
    policy = Trajectory(size=(24, 40))
    places = torch.rand(3, 16, 2, 2, generator=seeded(0)) * torch.tensor([39.0, 23.0])
    assert torch.allclose(policy.positions(policy.encode(places)), places, atol=1e-5)
    assert torch.equal(policy.encode(torch.tensor([19.5, 11.5]).expand(1, 16, 2, 2)), torch.zeros(1, 16, 4))
    assert policy.encode(torch.tensor([25.5, 11.5]).expand(1, 16, 2, 2))[0, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
    radii, colour, backdrop = torch.full((3, 2), 2.5), torch.rand(3, 2, 3), torch.rand(3, 24, 40, 3)
    clips = policy.decode(policy.encode(places), radii, colour, backdrop)
    assert torch.allclose(clips, draw(places, radii, colour, backdrop), atol=1e-4)
    assert policy.decode(policy.encode(places), radii).shape == (3, 16, 24, 40, 3)


@pytest.mark.parametrize("policy", [PixelDiT, WAN])
def test_pixels_are_coded_exactly_frame_by_frame(policy):
    # catches: rows and columns exchanged, a frame that is read in another's latent, bytes that overflow
    policy = policy(size=(16, 32), frames=4, context=2)
    clips = torch.randint(0, 256, (2, 4, 16, 32, 3), generator=seeded(0)).to(torch.uint8)
    x = policy.encode(clips)
    assert x.shape[1:] == policy.shape
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert torch.allclose(policy.decode(x, None), clips / 255, atol=1e-6)
    assert torch.equal(policy.encode(clips.flip(1)), x.flip(1))


@pytest.mark.parametrize("policy", [Trajectory, PixelDiT, WAN])
def test_each_frame_has_its_time_and_a_seed_its_weights(policy):
    # catches: one time for all frames, a global generator that is moved
    state = torch.random.get_rng_state()
    one, same, other = (random_weights(policy(frames=4, context=2, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    x, t = torch.randn(1, *one.shape, generator=seeded(0)), torch.tensor([[0.0, 0.0, 0.6, 0.6]])
    assert torch.equal(one.velocity(x, t, None), same.velocity(x, t, None))
    assert not torch.allclose(one.velocity(x, t, None), other.velocity(x, t, None))
    for frame in range(4):
        changed = t.clone()
        changed[0, frame] += 0.2
        assert not torch.allclose(one.velocity(x, changed, None)[:, 2:], one.velocity(x, t, None)[:, 2:], atol=1e-5)


def test_trajectories_are_of_two_scales_see_the_radii_and_keep_doubles():
    # catches: a condition that is dropped, a model that outgrows its name, a cast to float32 on the way
    sizes = [sum(one.numel() for one in Trajectory(scale).parameters()) for scale in ("small", "medium")]
    assert sizes == [133_380, 400_068]
    (x, _, radii), t = drawn(2, 6), torch.full((2, 16), 0.5)
    velocity = SMALL.velocity(x, t, radii).detach()
    assert not torch.allclose(velocity, SMALL.velocity(x, t, radii + 1), atol=1e-3)
    double = [WEIGHTS[torch.float64].velocity(x.double() + small, t.double(), radii.double()) for small in (0, 1e-13)]
    assert not torch.equal(*double)
    assert torch.allclose(double[0].detach().float(), velocity, atol=1e-4)


def test_pixel_dit_over_fits_four_clips():
    # catches: patches that are put back elsewhere, a data prediction that is taken for a velocity
    generator = seeded(11)  # tuned with seed 3
    places = 4 + 8 * torch.rand(4, 1, 2, 2, generator=generator)
    places = places + (torch.rand(4, 1, 2, 2, generator=generator) - 0.5) * 1.3 * torch.arange(8.0).view(1, 8, 1, 1)
    colour = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]]).expand(4, 2, 3)
    clips = draw(places, torch.full((4, 2), 1.9), colour, torch.full((4, 16, 16, 3), 0.85))
    policy = PixelDiT(64, 2, size=(16, 16), frames=8, context=3)
    x0, optimiser = policy.encode(clips), torch.optim.AdamW(policy.parameters(), 3e-3, betas=(0.9, 0.98))
    for step in range(400):
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 20, (400 - step) / 100)
        loss = flow_matching_loss(policy, x0.repeat(4, 1, 1, 1, 1), None, generator).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
    end, _ = rollout(policy, x0, None, torch.randn(x0.shape, generator=generator), steps=8)
    error, still = (
        float((one - clips)[:, 3:].square().mean().sqrt()) for one in (policy.decode(end, None), clips[:, 2:3])
    )
    assert error < still / 3


@needs_diffusers
def test_tiny_wan_takes_a_step_of_mimicry_and_discovery():
    # catches: a timestep a clip, context that is noised, weights without a gradient, inference tensors that are kept
    policy = TinyWan(size=(16, 16), frames=4, context=2)
    clips = torch.rand(4, 4, 16, 16, 3, generator=seeded(0))
    x0, setting = policy.encode(clips), {"steps": 4, "eta": 0.7}
    noise = torch.randn(x0[:1].shape, generator=seeded(1)).expand(x0.shape)
    with torch.inference_mode():
        end, steps = rollout(policy, x0, None, noise, window=(0, 1), generator=seeded(2), **setting)
    for x in (end, *(one.x for one in steps), *(one.next for one in steps)):
        assert torch.equal(x[:, :2], x0[:, :2])
    advantage = advantages(-(policy.decode(end, None) - clips).abs().mean((1, 2, 3, 4))[None])[0][0]
    old = {name: one.detach().clone() for name, one in policy.named_parameters()}
    optimiser, loss = (
        torch.optim.AdamW(policy.parameters(), 1e-4),
        flow_matching_loss(policy, x0, None, seeded(3)).mean(),
    )
    for one in steps:
        new = log_probs(policy, one, None, **setting)
        assert torch.allclose(new.detach(), one.log_prob, rtol=0, atol=1e-6)
        loss = loss + surrogate(new, one.log_prob, advantage, 0.005).mean()
    loss.backward()
    optimiser.step()
    for name, one in policy.named_parameters():
        assert torch.isfinite(one.grad).all()
        assert not torch.equal(one, old[name]), name


X, R = torch.zeros(2, 16, 4), torch.ones(2, 2)
LAST = "steps from 0 to 6 | leave out the last step, where the noise ends"
BAD = [
    (lambda: rollout(SMALL, X, R, X, steps=8, eta=0.7, window=(6, 7)), f"stochastic steps [6, 7] of 8 | {LAST}"),
    (lambda: log_probs(SMALL, Taken(7, X, X, R), R, steps=8, eta=0.7), f"stochastic steps [7] of 8 | {LAST}"),
    (
        lambda: rollout(SMALL, X, R, X[1:], steps=8),
        "latents of shape (2, 16, 4) and noise of shape (1, 16, 4) | both (B, 16, 4) | encode the clips with this "
        "policy",
    ),
    (
        lambda: flow_matching_loss(SMALL, X, R[:1]),
        "1 conditions of 2 clips | one a clip | repeat them with the clips",
    ),
    (
        lambda: rollout(SMALL, X + math.nan, R, X, steps=8),
        "latents that are not finite | finite ones | leave out clips whose states are not known",
    ),
    (
        lambda: SMALL.decode(X, None),
        "discs without radii | radii of shape (B, 2), px | pass them as the condition",
    ),
    (lambda: Trajectory("large"), "a trajectory model of scale 'large' | small or medium | name one of them"),
    (
        lambda: PixelDiT(size=(20, 32), frames=5, context=5),
        "5 frames of 20 x 32 px, 5 of them context | fewer frames of context than frames, frames in 2s, sides in 8s of "
        "pixels | cut or resize the clips",
    ),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_told_in_three_parts(call, words):
    # catches: a window with the last step, a broadcast over clips, a bare traceback
    with pytest.raises(InputError) as error:
        call()
    assert " | ".join(error.value.args) == words


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    # catches: a bare ImportError
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError) as error:
        TinyWan()
    wanted = ("TinyWan without the package diffusers", "the extra video-diffusers")
    assert error.value.args == (*wanted, "pip install 'upright[video-diffusers]'")
