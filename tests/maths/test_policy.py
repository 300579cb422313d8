"""Stochastic steps of flow models against closed forms, and the loss of a policy."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.distributions import Normal

from upright.contract import InputError
from upright.maths.policy import (
    advantages,
    extremes,
    gate,
    kl_of_step,
    log_prob,
    ode_step,
    sde_step,
    surrogate,
    times,
)

MEAN, STD = 1.5, 0.4


def velocity(x, t):
    """The exact velocity for data of N(1.5, 0.4^2): E[e - x_0 | x_t]."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    gap = (x - (1 - t) * MEAN) / variance
    return t * gap - (MEAN + (1 - t) * STD**2 * gap)


def sampled(steps, kind=None, eta=0.7, n=200_000):
    generator = torch.Generator().manual_seed(0)
    x, grid = torch.randn(n, 1, generator=generator, dtype=torch.float64), times(steps).tolist()
    for t, until in itertools.pairwise(grid):
        v = velocity(x, t)
        if kind is None or (kind == "cps" and until == 0):
            x = ode_step(x, v, t, until)
        else:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = sde_step(x, v, t, until, eta=eta, kind=kind, noise=noise).x
    return x


@pytest.mark.parametrize(("kind", "eta"), [("flow", 0.7), ("constant", 0.7), ("constant", 0.3)])
def test_both_sdes_end_in_the_distribution_of_the_data(kind, eta):
    # catches: a drift of the wrong sign or without its factor, noise of another scale
    x = sampled(100, kind, eta)
    assert abs(float(x.std()) - STD) < 0.01
    assert abs(float(x.mean()) - MEAN) < 0.01


def test_cps_is_another_sampler():
    # catches: a claim that all three have the marginals of the ODE
    assert float(sampled(100, "cps").std()) < 0.36
    assert float(sampled(100).std()) == pytest.approx(0.394, abs=0.003)


@pytest.mark.parametrize("kind", ["constant", "flow", "cps"])
def test_the_log_probability_of_an_own_step_is_the_closed_form(kind):
    # catches: a sum for a mean, constants that are left out, a std of another step
    generator = torch.Generator().manual_seed(1)
    x, v, noise = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    step = sde_step(x, v, 0.8, 0.6, eta=0.7, kind=kind, noise=noise)
    wanted = Normal(step.mean, step.std).log_prob(step.x).mean((1, 2))
    assert torch.allclose(step.log_prob, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(step.x, step.mean + step.std * noise)
    assert torch.allclose(step.log_prob, -(noise**2).mean((1, 2)) / 2 - math.log(step.std * math.sqrt(2 * math.pi)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_of_an_unchanged_model_is_one(dtype):
    # catches: a log-probability of rounded places, or one that depends on the gradient
    generator = torch.Generator().manual_seed(2)
    x, v, noise = (torch.randn(6, 8, 4, generator=generator).to(dtype) for _ in range(3))
    old = sde_step(x, v, 0.9, 0.75, eta=0.7, noise=noise)
    new = sde_step(x, v.clone().requires_grad_(), 0.9, 0.75, eta=0.7, taken=old.x)
    assert new.log_prob.requires_grad
    assert float(((new.log_prob.detach() - old.log_prob).exp() - 1).abs().max()) <= 1e-6


def test_context_changes_nothing_and_is_not_changed():
    # catches: context in the log-probability, noise that is put into it
    generator = torch.Generator().manual_seed(3)
    x, v, noise = (torch.randn(2, 6, 4, generator=generator) for _ in range(3))
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])[None, :, None]
    step = sde_step(x, v, 0.7, 0.5, eta=0.7, noise=noise, mask=mask)
    assert torch.equal(step.x[:, :2], x[:, :2])
    other = torch.where(mask > 0, v, v + 100.0)
    assert torch.equal(sde_step(x, other, 0.7, 0.5, eta=0.7, taken=step.x, mask=mask).log_prob, step.log_prob)
    alone = sde_step(x[:, 2:], v[:, 2:], 0.7, 0.5, eta=0.7, noise=noise[:, 2:])
    assert torch.allclose(step.log_prob, alone.log_prob, atol=1e-6)
    assert torch.equal(ode_step(x, v, 0.7, 0.5, mask)[:, :2], x[:, :2])


def test_the_divergence_of_two_steps_is_that_of_their_gaussians():
    # catches: a factor of the drift that was forgotten
    generator = torch.Generator().manual_seed(4)
    x, v, w = (torch.randn(3, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    one, two = (sde_step(x, u, 0.6, 0.4, eta=0.5, noise=torch.zeros_like(x)) for u in (v, w))
    wanted = torch.distributions.kl_divergence(Normal(one.mean, one.std), Normal(two.mean, two.std)).mean(1)
    assert torch.allclose(kl_of_step(v, w, 0.6, 0.4, 0.5), wanted, rtol=1e-9)


def test_advantages_are_those_of_the_group_and_flat_groups_have_none():
    # catches: a standard deviation of the batch, a biased one, 0 / 1e-8 that is taken for a lesson
    rewards = torch.tensor([[1.0, 2.0, 4.0], [7.0, 7.0, 7.0], [1e6, 1e6, 1e6 + 0.5]], dtype=torch.float64)
    found, flat = advantages(rewards)
    assert flat.tolist() == [False, True, True]
    assert torch.allclose(found[0], (rewards[0] - 7 / 3) / rewards[0].std(unbiased=True), atol=1e-6)
    assert not found[1:].any()
    assert float(advantages(torch.eye(64)[:1] * 1e3)[0].max()) == 5.0


def test_the_loss_pushes_towards_better_samples_and_stops_at_the_clip():
    # catches: a sign, a minimum for a maximum, a clip that also stops what makes the loss worse
    old = torch.zeros(4)
    new = torch.tensor([0.0, 0.5, 0.0, 0.5], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = surrogate(new, old, advantage, 0.2)
    assert torch.allclose(loss, torch.tensor([-1.0, -1.2, 1.0, math.exp(0.5)]))
    loss.sum().backward()
    assert torch.allclose(new.grad, torch.tensor([-1.0, 0.0, 1.0, math.exp(0.5)]))


def test_extremes_and_the_gate():
    # catches: the middle of a group, a gate that is inverted or open at tau itself
    assert extremes(torch.tensor([[3.0, -1.0, 0.0, 9.0, 2.0]]), 4).tolist() == [[3, 0, 2, 1]]
    assert gate(torch.tensor([[1.0, 3.0], [2.0, 2.1], [0.0, 1.0]]), 2.0).tolist() == [False, True, False]


def test_times_are_those_of_the_shift():
    # catches: a grid that begins or ends elsewhere
    assert times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [round(t, 3) for t in times(8, shift=5.0).tolist()] == [
        1.0,
        0.972,
        0.938,
        0.893,
        0.833,
        0.75,
        0.625,
        0.417,
        0.0,
    ]


X = torch.zeros(1, 2)
BAD = {
    "no steps": (lambda: times(0), "steps = 0 and shift = 1.0", "steps from 1 on, shift above 0"),
    "backwards": (lambda: ode_step(X, X, 0.2, 0.4), "a step from 0.2 to 0.4", "1 >= t > until >= 0"),
    "no noise": (
        lambda: sde_step(X, X, 0.4, 0.2, eta=0.0, noise=X),
        "kind 'constant' with eta = 0.0 until 0.2",
        "eta above 0; of cps at most 1, and until above 0",
    ),
    "both": (
        lambda: sde_step(X, X, 0.4, 0.2, eta=1.0, noise=X, taken=X),
        "a step with both or none of noise and taken",
        "one of them",
    ),
    "all context": (
        lambda: log_prob(X, X, 1.0, torch.zeros(1, 2)),
        "a mask without an element of some sample",
        "1 where something is generated",
    ),
    "nan": (
        lambda: advantages(torch.tensor([[1.0, math.nan]])),
        "rewards of shape (1, 2), 1 not finite",
        "finite ones of shape (P, G), G from 2 on",
    ),
    "odd": (lambda: extremes(X, 1), "n = 1 of 2 samples", "an even number from 2 to all of them"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_three_parts(name):
    # catches: a NaN that goes on into the weights
    call, got, accepted = BAD[name]
    with pytest.raises(InputError) as error:
        call()
    assert error.value.args[:2] == (got, accepted)
