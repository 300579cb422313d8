r"""Policy gradients for flow models: stochastic steps with log-probabilities, advantages of groups, the clipped loss.

Time t goes from 1 (noise) to 0 (data), ``x_t = (1 - t) x_0 + t e``, and a model predicts the velocity ``v = e - x_0``.
A step goes from t to t' with ``D = t' - t < 0``:

    ODE     x' = x + D v
    SDE     x' = mu + s z,   mu = x + D (v + g^2 (x + (1 - t) v) / (2 t)),   s = g sqrt(-D),   z ~ N(0, I)
            constant: g = eta;    flow: g = eta sqrt(t / (1 - t)), at t = 1 with the t' of that step in the denominator
    CPS     x' = (1 - t') x_0 + sqrt(t'^2 - s^2) e + s z,   s = t' sin(pi eta / 2)

Both SDEs have the marginals of the ODE in the limit of small steps. CPS does not: the share of noise that it renews a
step does not shrink with the step, so it is another sampler and no exploration of this one.

The log-probability of a step is a *mean* over the elements that are generated, so that clips of another size keep
their scale; a clip range of r on the mean of n elements is one of n r on their sum. Elements where the mask is 0
(context) stay as they are and take no part.

With rewards R of the G samples of a group, advantage ``A = (R - mean R) / (std R + 1e-8)``, std unbiased, clamped to
+-5; with ``rho = exp(log p - log p_old)`` the loss is ``mean max(-A rho, -A clip(rho, 1 - r, 1 + r))``.

References: Liu et al., Flow-GRPO, arXiv 2505.05470; Xue et al., DanceGRPO, arXiv 2505.07818; Li et al., MixGRPO, arXiv
2507.21802; Wang and Yu, Coefficients-preserving sampling, arXiv 2509.05952; Zhang et al., PhysRVG, arXiv 2601.11087.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from upright.contract import InputError

__all__ = [
    "Step",
    "advantages",
    "extremes",
    "gate",
    "kl_of_step",
    "log_prob",
    "ode_step",
    "sde_step",
    "surrogate",
    "times",
]

Kind = Literal["constant", "flow", "cps"]
_MOST = 5.0  # of an advantage
_FLAT = 1e-6  # standard deviation of a group below which its rewards are all alike


class Step(NamedTuple):
    """A stochastic step.

    Parameters
    ----------
    x : Tensor
        Where it went.
    mean : Tensor
        Of the step, of the shape of x.
    std : float
        Of each element.
    log_prob : Tensor, shape (B,)
        Of x, in nats an element.
    """

    x: Tensor
    mean: Tensor
    std: float
    log_prob: Tensor


def times(steps: int, *, shift: float = 1.0) -> Tensor:
    """Return the times of a sampler from 1 to 0, shape (steps + 1,): ``t = shift u / (1 + (shift - 1) u)``, u even.

    Raises
    ------
    InputError
        For no step, and a shift that is not above 0.
    """
    if steps < 1 or not shift > 0:
        raise InputError(f"steps = {steps} and shift = {shift}", "steps from 1 on, shift above 0", "correct them")
    even = torch.linspace(1.0, 0.0, steps + 1)
    return shift * even / (1.0 + (shift - 1.0) * even)


def ode_step(x: Tensor, velocity: Tensor, t: float, until: float, mask: Tensor | None = None) -> Tensor:
    """Return ``x + (until - t) v`` where the mask is 1, and x elsewhere.

    Parameters
    ----------
    x, velocity : Tensor, shape (B, ...)
    t, until : float
        ``1 >= t > until >= 0``.
    mask : Tensor, optional
        Of 0 and 1, broadcast to x.
    """
    _refuse_times(t, until)
    moved = x + (until - t) * velocity
    return moved if mask is None else torch.where(mask > 0, moved, x)


def sde_step(
    x: Tensor,
    velocity: Tensor,
    t: float,
    until: float,
    *,
    eta: float,
    kind: Kind = "constant",
    noise: Tensor | None = None,
    taken: Tensor | None = None,
    mask: Tensor | None = None,
) -> Step:
    """Return a stochastic step with noise z, or the log-probability of one that was taken.

    Parameters
    ----------
    x, velocity : Tensor, shape (B, ...)
    t, until : float
        ``1 >= t > until >= 0``; until 0 has no CPS step, whose noise ends there.
    eta : float
        Size of the noise, above 0; of CPS at most 1.
    noise, taken : Tensor, shape of x
        One of both: z of a new step, or where an old one went.
    mask : Tensor, optional
        Of 0 and 1, broadcast to x.

    Raises
    ------
    InputError
        For times out of order, an eta that is not above 0, and both or none of noise and taken.

    Guarantee
    ---------
    The same x, velocity and step give the same log-probability, so the ratio of an unchanged model is 1.
    """
    _refuse_times(t, until)
    if not eta > 0 or (kind == "cps" and (eta > 1 or until <= 0)):
        accepted = "eta above 0; of cps at most 1, and until above 0"
        raise InputError(f"kind {kind!r} with eta = {eta} until {until}", accepted, "correct eta, or take an ODE step")
    if (noise is None) == (taken is None):
        raise InputError("a step with both or none of noise and taken", "one of them", "pass noise for a new step")
    mean, std = _moments(x, velocity, t, until, eta, kind)
    if taken is None:
        assert noise is not None
        taken = mean.detach() + std * noise
        taken = taken if mask is None else torch.where(mask > 0, taken, x)
    return Step(taken, mean, std, log_prob(taken, mean, std, mask))


def _moments(x: Tensor, velocity: Tensor, t: float, until: float, eta: float, kind: Kind) -> tuple[Tensor, float]:
    x, velocity = (one.float() if one.dtype in (torch.bfloat16, torch.float16) else one for one in (x, velocity))
    if kind == "cps":
        std = until * math.sin(0.5 * math.pi * eta)
        data, noise = x - t * velocity, x + (1.0 - t) * velocity
        return (1.0 - until) * data + math.sqrt(until**2 - std**2) * noise, std
    g = eta if kind == "constant" else eta * math.sqrt(t / (1.0 - (t if t < 1.0 else until)))
    drift = velocity + g * g / (2.0 * t) * (x + (1.0 - t) * velocity)
    return x + (until - t) * drift, g * math.sqrt(t - until)


def log_prob(x: Tensor, mean: Tensor, std: float, mask: Tensor | None = None) -> Tensor:
    """Return the mean over generated elements of ``log N(x; mean, std^2)``, shape (B,).

    Raises
    ------
    InputError
        Where the mask leaves no element of a sample.
    """
    value = -((x.detach() - mean) ** 2) / (2.0 * std**2) - math.log(std) - 0.5 * math.log(2.0 * math.pi)
    if mask is None:
        return value.flatten(1).mean(1)
    weight = torch.broadcast_to(mask, value.shape).to(value.dtype).flatten(1)
    if not bool((weight.sum(1) > 0).all()):
        raise InputError(
            "a mask without an element of some sample", "1 where something is generated", "see to the mask"
        )
    return (value.flatten(1) * weight).sum(1) / weight.sum(1)


def kl_of_step(velocity: Tensor, reference: Tensor, t: float, until: float, eta: float) -> Tensor:
    """Return the mean divergence an element of two constant-noise steps from one x, shape (B,).

    ``|mu - mu_ref|^2 / (2 s^2) = |D| / 2 (1 / eta + eta (1 - t) / (2 t))^2 |v - v_ref|^2``.
    """
    _refuse_times(t, until)
    factor = 0.5 * (t - until) * (1.0 / eta + eta * (1.0 - t) / (2.0 * t)) ** 2
    return factor * ((velocity - reference) ** 2).flatten(1).mean(1)


def advantages(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Return the advantages of each sample of a group, shape (P, G), and which groups have none, shape (P,).

    A group whose rewards are all alike has nothing to learn from: its advantages are 0, not noise over 1e-8.

    Parameters
    ----------
    rewards : Tensor, shape (P, G)
        Higher is better; G of at least 2.

    Raises
    ------
    InputError
        For another shape, and rewards that are not finite.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2 or not bool(torch.isfinite(rewards).all()):
        got = f"rewards of shape {tuple(rewards.shape)}, {int((~torch.isfinite(rewards)).sum())} not finite"
        raise InputError(got, "finite ones of shape (P, G), G from 2 on", "check the reward")
    spread = rewards.std(1, keepdim=True)
    flat = spread[:, 0] <= _FLAT * (1.0 + rewards.abs().amax(1))
    found = ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-8)).clamp(-_MOST, _MOST)
    return torch.where(flat[:, None], torch.zeros_like(found), found), flat


def extremes(advantage: Tensor, n: int) -> Tensor:
    """Return the places of the n / 2 best and the n / 2 worst samples of each group, shape (P, n).

    Raises
    ------
    InputError
        For an n that is odd, below 2, or larger than the group.
    """
    if n % 2 or not 2 <= n <= advantage.shape[1]:
        got = f"n = {n} of {advantage.shape[1]} samples"
        raise InputError(got, "an even number from 2 to all of them", "correct n")
    order = torch.argsort(advantage, dim=1, descending=True, stable=True)
    return torch.cat([order[:, : n // 2], order[:, -(n // 2) :]], 1)


def surrogate(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return the clipped loss of each sample, ``max(-A rho, -A clip(rho, 1 - clip, 1 + clip))``, shape of A."""
    ratio = (log_prob - old).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1.0 - clip, 1.0 + clip))


def gate(offset: Tensor, tau: float) -> Tensor:
    """Return which groups are to mimic: those whose mean offset is above tau, shape (P,), of offsets (P, G)."""
    return offset.mean(1) > tau


def _refuse_times(t: float, until: float) -> None:
    if not 1.0 >= t > until >= 0.0:
        raise InputError(f"a step from {t} to {until}", "1 >= t > until >= 0", "go from noise to data")
