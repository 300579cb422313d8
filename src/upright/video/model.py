r"""Flow models of clips, their rollouts, and the log-probabilities of steps that were taken.

A model predicts the velocity ``v = e - x_0`` of latents ``x_t = (1 - t) x_0 + t e``. Each latent frame has its own
time. The leading ``context`` frames are given: they stay clean, their time is 0, and they take no part in a loss or in
a log-probability.

    loss      mean over generated elements of (v(x_t, t) - (e - x_0))^2,   t ~ U(0, 1) a clip
    rollout   from noise at t = 1; stochastic steps (`upright.maths.policy`) in the window, ODE steps elsewhere

References: Lipman et al., Flow matching, arXiv 2210.02747; Peebles and Xie, DiT, arXiv 2212.09748; Li and He, Back to
basics (predict the data), arXiv 2511.13720; Wan, arXiv 2503.20314; Zhang et al., PhysRVG, arXiv 2601.11087.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from upright.contract import InputError
from upright.maths.policy import Kind, log_prob, ode_step, sde_step, times
from upright.video.render import draw

__all__ = ["PixelDiT", "Policy", "Taken", "TinyWan", "Trajectory", "flow_matching_loss", "log_probs", "rollout"]

Scale = Literal["small", "medium"]
_WIDTHS = {"small": 64, "medium": 112}  # 0.13 and 0.40 million weights
_FREQUENCIES = torch.exp(torch.linspace(0.0, 5.0, 16))  # of times in [0, 1]
_COLOUR = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]])
_BACKDROP = torch.tensor([0.85, 0.85, 0.8])
_TEXT = 16  # numbers of an embedded word for TinyWan


class Policy(Protocol):
    """A flow model; ``shape`` of one latent is (T, ...), of which the first ``context`` frames are given."""

    shape: tuple[int, ...]
    context: int

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the velocity, of the shape and type of x (B, T, ...), at the times t (B, T)."""

    def encode(self, clips: Tensor) -> Tensor:
        """Return latents (B, T, ...)."""

    def decode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Return clips (B, T, H, W, 3) in [0, 1]."""


class Taken(NamedTuple):
    """A stochastic step of a rollout: its number, latents before and after it (B, T, ...), log-probability (B,)."""

    step: int
    x: Tensor
    next: Tensor
    log_prob: Tensor

    def select(self, index: Tensor | slice) -> Taken:
        """Return the step of some of the clips."""
        return Taken(self.step, self.x[index], self.next[index], self.log_prob[index])


def flow_matching_loss(
    policy: Policy, x0: Tensor, condition: Tensor | None, generator: torch.Generator | None = None
) -> Tensor:
    """Return the loss of each clip, shape (B,), at a time and with noise drawn from the generator.

    Raises
    ------
    InputError
        For latents x0 (B, T, ...) of another shape than the policy's, and ones that are not finite.
    """
    _refuse_latents(policy, x0, x0, x0, condition)
    mask = _mask(policy, x0)
    time = torch.rand(len(x0), *mask.shape[2:], generator=generator, dtype=mask.dtype, device=x0.device)
    noise = torch.randn(x0.shape, generator=generator, dtype=mask.dtype, device=x0.device)
    t = time[:, None] * mask
    velocity = policy.velocity(((1 - t) * x0 + t * noise).to(x0.dtype), t.view(x0.shape[:2]), condition)
    return ((velocity - (noise - x0)) ** 2)[:, policy.context :].flatten(1).mean(1)


def rollout(
    policy: Policy,
    x0: Tensor,
    condition: Tensor | None,
    noise: Tensor,
    *,
    steps: int,
    eta: float = 0.0,
    window: Sequence[int] = (),
    generator: torch.Generator | None = None,
    kind: Kind = "constant",
    whole: bool = False,
) -> tuple[Tensor, list[Taken]]:
    """Return latents that continue a context, and the stochastic steps on the way to them.

    Parameters
    ----------
    policy : Policy
    x0 : Tensor, shape (B, T, ...)
        Its first frames are the context; the others are not read.
    condition : Tensor, optional
        As the policy takes it.
    noise : Tensor, shape of x0
        Where the rollouts start; clips of a group share theirs.
    steps : int
    eta : float
        Size of the noise of a stochastic step.
    window : sequence of int
        Which steps are stochastic, from 0; never the last, where the noise ends.
    generator : torch.Generator, optional
        Of the noise of these steps.
    kind : {"constant", "flow", "cps"}
    whole : bool
        Whether frames of the context stand in log-probabilities too: as in published code, and of no use.

    Raises
    ------
    InputError
        For latents of another shape, a context that is not finite, a window with the last step or one outside.

    Guarantee
    ---------
    `log_probs` of an unchanged policy gives the log-probabilities that are kept here, because latents are rounded to
    the type of x0 before they are taken; with weights in 16 bits in batches of the same size. In inference mode too,
    they can be used with gradients afterwards.
    """
    _refuse_latents(policy, x0, noise, x0[:, : policy.context], condition)
    _refuse_steps(window, steps)
    taken = []
    with torch.inference_mode(False), torch.no_grad():
        mask = _mask(policy, x0)
        x = torch.where(mask > 0, noise, x0)
        for step, (t, until) in enumerate(itertools.pairwise(times(steps).tolist())):
            velocity = policy.velocity(x, (t * mask.view(1, -1)).expand(x.shape[:2]), condition)
            if step not in window:
                x = ode_step(x, velocity, t, until, mask)
                continue
            fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            new = sde_step(x, velocity, t, until, eta=eta, kind=kind, noise=fresh, mask=mask)
            after = new.x.to(x.dtype)
            same = after.dtype == new.x.dtype and not whole
            value = new.log_prob if same else log_prob(after, new.mean, new.std, None if whole else mask)
            taken.append(Taken(step, x, after, value))
            x = after
    return x, taken


def log_probs(
    policy: Policy,
    taken: Taken,
    condition: Tensor | None,
    *,
    steps: int,
    eta: float,
    kind: Kind = "constant",
    whole: bool = False,
) -> Tensor:
    """Return the log-probability of a taken step under the weights as they are, in nats an element, shape (B,).

    Steps, eta, kind and whole are those of the `rollout`, the condition that of the same clips.

    Raises
    ------
    InputError
        For a step that no rollout of so many steps takes, and latents of another shape than the policy's.
    """
    _refuse_latents(policy, taken.x, taken.next, taken.next, condition)
    _refuse_steps([taken.step], steps)
    mask = _mask(policy, taken.x)
    t, until = times(steps)[taken.step : taken.step + 2].tolist()
    velocity = policy.velocity(taken.x, (t * mask.view(1, -1)).expand(taken.x.shape[:2]), condition)
    used = None if whole else mask
    return sde_step(taken.x, velocity, t, until, eta=eta, kind=kind, taken=taken.next, mask=used).log_prob


def _mask(policy: Policy, x: Tensor) -> Tensor:
    """Return 0 for frames of the context and 1 for others, shape (1, T, 1, ...), in float32 at least, as times are."""
    generated = torch.arange(x.shape[1], device=x.device) >= policy.context
    return generated.to(torch.promote_types(x.dtype, torch.float32)).view(1, -1, *(1,) * (x.ndim - 2))


def _refuse_latents(policy: Policy, x0: Tensor, noise: Tensor, read: Tensor, condition: Tensor | None) -> None:
    if x0.shape[1:] != policy.shape or not len(x0) or noise.shape != x0.shape:
        got = f"latents of shape {tuple(x0.shape)} and noise of shape {tuple(noise.shape)}"
        raise InputError(got, f"both (B, {', '.join(map(str, policy.shape))})", "encode the clips with this policy")
    if condition is not None and len(condition) != len(x0):
        raise InputError(f"{len(condition)} conditions of {len(x0)} clips", "one a clip", "repeat them with the clips")
    if not bool(torch.isfinite(read).all()):
        raise InputError("latents that are not finite", "finite ones", "leave out clips whose states are not known")


def _refuse_steps(window: Sequence[int], steps: int) -> None:
    if not all(0 <= step < steps - 1 for step in window):
        got, accepted = f"stochastic steps {list(window)} of {steps}", f"steps from 0 to {steps - 2}"
        raise InputError(got, accepted, "leave out the last step, where the noise ends")


def _refuse_clips(size: tuple[int, int], frames: int, context: int, block: int = 1, tubelet: int = 1) -> None:
    if not 0 <= context < frames or frames % tubelet or min(size) < 1 or size[0] % block or size[1] % block:
        got = f"{frames} frames of {size[0]} x {size[1]} px, {context} of them context"
        accepted = f"fewer frames of context than frames, frames in {tubelet}s, sides in {block}s of pixels"
        raise InputError(got, accepted, "cut or resize the clips")


class _Block(nn.Module):
    """Attention and a feed-forward layer behind norms; with shift, scale and gate of both where change (B, N, 6d)."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor, change: Tensor | None = None) -> Tensor:
        if change is None:
            x = x + self._attend(self.norm(x))
            return x + self.feed(self.norm_2(x))  # type: ignore[no-any-return]
        shift, scale, gate, shift_2, scale_2, gate_2 = change.chunk(6, 2)
        x = x + gate * self._attend(self.norm(x) * (1 + scale) + shift)
        return x + gate_2 * self.feed(self.norm_2(x) * (1 + scale_2) + shift_2)  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Time(nn.Module):
    """Embed times (B, T), so many frames a token, by their sines and cosines."""

    def __init__(self, width: int, frames: int = 1) -> None:
        super().__init__()
        self.frames, self.into, self.out = frames, nn.Linear(32 * frames, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        angle = t.reshape(len(t), -1, self.frames, 1) * _FREQUENCIES.to(t)
        waves = torch.cat([angle.sin(), angle.cos()], -1).flatten(2)
        return self.out(functional.silu(self.into(waves.to(self.out.weight.dtype))))  # type: ignore[no-any-return]


def _zeroed(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Trajectory(nn.Module):
    """A transformer over the places of two discs, a token a frame of 4 numbers; decoded by drawing the discs.

    Latents are places from the middle of the picture in quarters of its shorter side. The condition is the radii of
    the discs, px, and what else a scene has, of about that size: shape (B, features).

    Parameters
    ----------
    scale : {"small", "medium"}
        0.13 or 0.40 million weights, in 3 layers.
    size : tuple of int
        Height and width of the picture, px.
    frames, context : int
        Of a clip, and how many of them are given.
    features : int
        Numbers of a condition.
    seed : int
        Of the weights; the global generator is left as it was.
    """

    def __init__(
        self,
        scale: Scale = "small",
        *,
        size: tuple[int, int] = (32, 32),
        frames: int = 16,
        context: int = 5,
        features: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _refuse_clips(size, frames, context)
        if scale not in _WIDTHS:
            raise InputError(f"a trajectory model of scale {scale!r}", " or ".join(_WIDTHS), "name one of them")
        self.shape, self.context, self.size, width = (frames, 4), context, size, _WIDTHS[scale]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.into, self.radius, self.time = nn.Linear(4, width), nn.Linear(features, width), _Time(width)
            self.place = nn.Parameter(torch.randn(frames, width))
            self.blocks = nn.ModuleList([_Block(width) for _ in range(3)])
            self.norm, self.out = nn.LayerNorm(width), _zeroed(width, 4)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the velocity, shape of x (B, T, 4), at the times t (B, T)."""
        tokens = self.into(x.to(self.place.dtype)) + self.place + self.time(t)
        if condition is not None:  # radii are about a tenth of the side
            tokens = tokens + self.radius((32.0 / min(self.size) * condition - 3.2).to(self.place.dtype))[:, None]
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.norm(tokens)).to(x.dtype)  # type: ignore[no-any-return]

    def encode(self, clips: Tensor) -> Tensor:
        """Return latents (B, T, 4) of places (B, T, 2, 2), px."""
        return ((clips - self._middle(clips)) * (4.0 / min(self.size))).flatten(2)

    def positions(self, x: Tensor) -> Tensor:
        """Return places (B, T, 2, 2), px, of latents (B, T, 4)."""
        return x.reshape(*x.shape[:2], 2, 2) * (min(self.size) / 4.0) + self._middle(x)

    def decode(
        self, x: Tensor, condition: Tensor | None, colour: Tensor = _COLOUR, backdrop: Tensor = _BACKDROP
    ) -> Tensor:
        """Return clips of discs with these radii and colours (B, 2, 3) before a backdrop (B, H, W, 3)."""
        if condition is None:
            raise InputError("discs without radii", "radii of shape (B, 2), px", "pass them as the condition")
        picture = (colour.expand(len(x), 2, 3), backdrop.expand(len(x), *self.size, 3))
        return draw(self.positions(x.float()), condition[:, :2].float(), *picture)

    def _middle(self, like: Tensor) -> Tensor:
        return torch.tensor([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2], dtype=like.dtype, device=like.device)


class _Pixels(nn.Module):
    """Latents (B, T, 3 b b, H / b, W / b) in [-1, 1]: frames in blocks of b x b px as channels, an exact code."""

    def __init__(self, block: int, size: tuple[int, int], frames: int, context: int, tubelet: int = 1) -> None:
        super().__init__()
        _refuse_clips(size, frames, context, 8, tubelet)
        self.block, self.context = block, context
        self.shape = (frames, 3 * block**2, size[0] // block, size[1] // block)

    def encode(self, clips: Tensor) -> Tensor:
        """Return latents of clips (B, T, H, W, 3) in [0, 1] or uint8."""
        clips = clips / 255 if clips.dtype == torch.uint8 else clips
        return functional.pixel_unshuffle((2.0 * clips - 1.0).movedim(-1, 2), self.block)

    def decode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Return clips (B, T, H, W, 3) in [0, 1]; the condition is not used."""
        return (0.5 * functional.pixel_shuffle(x.float(), self.block).movedim(2, -1) + 0.5).clamp(0.0, 1.0)


class PixelDiT(_Pixels):
    """A diffusion transformer; a token is 2 frames of 8 x 8 px, shifted, scaled and gated by the times of both.

    A token has more numbers than the model is wide, so noise cannot pass: the data x_0 is predicted, and
    ``v = (x - x_0) / max(t, 0.05)``. The condition is not used. Sides are multiples of 8 px, frames even.
    """

    def __init__(
        self,
        width: int = 128,
        layers: int = 4,
        *,
        size: tuple[int, int] = (32, 32),
        frames: int = 16,
        context: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__(8, size, frames, context, tubelet=2)
        self.spots, numbers = self.shape[2] * self.shape[3], 2 * self.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.into, self.time = nn.Linear(numbers, width), _Time(width, 2)
            self.place = nn.Parameter(torch.randn(frames // 2 * self.spots, width))
            self.blocks = nn.ModuleList([_Block(width) for _ in range(layers)])
            self.changes = nn.ModuleList([_zeroed(width, 6 * width) for _ in range(layers)])
            self.norm, self.out = nn.LayerNorm(width), _zeroed(width, numbers)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the velocity, shape of x (B, T, 192, H / 8, W / 8), at the times t (B, T)."""
        pairs = x.reshape(len(x), x.shape[1] // 2, -1, self.spots).transpose(2, 3)
        tokens = self.into(pairs.flatten(1, 2).to(self.place.dtype)) + self.place
        time = functional.silu(self.time(t))
        for block, change in zip(self.blocks, self.changes, strict=True):
            tokens = block(tokens, change(time).repeat_interleave(self.spots, 1))
        x0 = self.out(self.norm(tokens)).view(pairs.shape).transpose(2, 3).reshape(x.shape)
        return ((x - x0) / t.clamp(min=0.05)[..., None, None, None]).to(x.dtype)  # type: ignore[no-any-return]


class TinyWan(_Pixels):
    """The transformer of Wan 2.2 of the package diffusers with 0.1 million weights at random and a time of each token.

    A latent frame is a frame in blocks of 4 x 4 px, a token 2 x 2 of these. The condition is an embedded text, shape
    (B, L, 16); one word of zeros where there is none. Sides are multiples of 8 px.

    Raises
    ------
    InputError
        When diffusers is not installed.
    """

    def __init__(self, *, size: tuple[int, int] = (32, 32), frames: int = 16, context: int = 5, seed: int = 0) -> None:
        super().__init__(4, size, frames, context)
        try:
            model = importlib.import_module("diffusers").WanTransformer3DModel
        except ImportError:
            todo = "pip install 'upright[video-diffusers]'"
            raise InputError("TinyWan without the package diffusers", "the extra video-diffusers", todo) from None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = {"in_channels": 48, "out_channels": 48, "text_dim": _TEXT, "freq_dim": 32, "ffn_dim": 96}
            self.transformer: Any = model(num_attention_heads=2, attention_head_dim=24, num_layers=2, **widths)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the velocity, shape of x (B, T, 48, H / 4, W / 4), at the times t (B, T), which Wan takes x 1000."""
        tokens = (1000.0 * t).repeat_interleave(x.shape[3] * x.shape[4] // 4, 1)
        text = x.new_zeros(len(x), 1, _TEXT) if condition is None else condition
        velocity: Tensor = self.transformer(x.transpose(1, 2), tokens, text, return_dict=False)[0]
        return velocity.transpose(1, 2)
