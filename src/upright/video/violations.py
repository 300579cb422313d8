r"""Clips that break mechanics on purpose, edits that do not, cheats, and what a reward makes of them.

A violation changes the states of simulated clips after the context and draws them anew:

===============  ==============================================================  ==========================
violation        what is wrong                                                   size
===============  ==============================================================  ==========================
teleport         a thing goes on somewhere else                                  radii
freeze           all things stop and go on later                                 frames
penetration      two collide as deep in each other                               radii of the smaller
early bounce     two turn round so far from each other                           radii of the smaller
momentum break   one of two leaves a collision with too small a change           share of the change
energy gain      more energy after a contact than before                         share of the energy
wrong gravity    things fall more slowly than in the context                     share of gravity
rod              the length of a pendulum shrinks                                share of the length
slip             a rolling disc turns too slowly                                 share of the turn
shrink           a thing grows smaller                                           share of the radius
vanish           a thing is not there for a while                                frames
duplicate        a copy of a thing goes along with it                            radius of the copy in radii
===============  ==============================================================  ==========================

A reward is judged by the area under the ROC curve, how often a true clip costs less than a violated one; by Spearman's
correlation of cost and size within a scene; by how far edits that change no motion shift the cost, in *noise floors*
(the standard deviation of the cost of true clips under pixel noise, at least 1 % of what a violation costs on average);
and by what cheats earn: the cost of the true clip less that of the cheat, in noise floors, below 0 where it is no use.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from upright.contract import InputError, stream
from upright.maths.ranks import auc, rank_correlation
from upright.video.files import read_clip, write_clip
from upright.video.render import backdrop, draw, film
from upright.video.rewards import Reward
from upright.video.scenes import KINDS, Scenes, join, simulate
from upright.video.tracks import Tracks, meta_of, track_colours

__all__ = ["CHEATS", "HARMLESS", "VIOLATIONS", "Bench", "Violation", "bench_rewards"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]


class _States(NamedTuple):
    """What is drawn of N clips, and which of them the change was possible for."""

    position: Array  # (N, T, K, 2)
    radius: Array  # (N, T, K)
    possible: Bools  # (N,)


@dataclass(frozen=True)
class Violation:
    """One way to break mechanics.

    Parameters
    ----------
    name, unit : str
        What it is called, and what its size is measured in.
    verifiers : tuple of str
        Checks of `upright.video.verifiers` that it belongs to.
    kinds : tuple of str
        Of the scenes that it can be made for.
    sizes : tuple of float
        Ascending.
    bench : float
        The one of them at which rewards and verifiers are compared.
    change : callable
        ``change(scenes, size, rng)``.
    """

    name: str
    unit: str
    verifiers: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[float, ...]
    bench: float
    change: Callable[[Scenes, float, np.random.Generator], _States]

    def make(self, scenes: Scenes, size: float, seed: int) -> tuple[Tensor, NDArray[np.int64]]:
        """Return clips (n, T, H, W, 3) and the scenes that they were made of (n,): those where it is possible.

        The same seed gives a scene the same moment, thing and direction at each size.
        """
        rows = np.flatnonzero(np.isin(scenes.kind, self.kinds) & ~scenes.ghost)
        own = scenes[rows]
        found = self.change(own, size, np.random.default_rng(stream(seed, self.name)))
        fits = found.possible & _inside(found.position, found.radius, scenes.size)
        more = found.position.shape[2] - 2  # copies look like the first thing
        colour = np.concatenate([own.colour, np.repeat(own.colour[:, :1], more, 1)], 1)
        return _drawn(own[fits], found.position[fits], found.radius[fits], colour[fits]), rows[fits]


def _drawn(scenes: Scenes, position: Array, radius: Array, colour: Any = None, camera: Any = None) -> Tensor:
    each = (position, radius, scenes.colour if colour is None else colour, scenes.camera if camera is None else camera)
    where, size, how, seen = (torch.as_tensor(one, dtype=torch.float32) for one in each)
    return draw(where, size, how, backdrop(scenes), camera=None if camera is None else seen)


def _inside(position: Array, radius: Array, size: tuple[int, int]) -> Bools:
    """Which clips keep all that is drawn clear of the border, shape (N,)."""
    room = np.array([size[1], size[0]]) - 1.5 - radius[..., None]
    clear = ((position > radius[..., None] + 0.5) & (position < room)).all(-1)
    return np.asarray((clear | (radius == 0)).all((1, 2)))


def _radii(scenes: Scenes) -> Array:
    return np.repeat(scenes.radius[:, None], scenes.position.shape[1], 1)


def _moment(scenes: Scenes, rng: np.random.Generator) -> tuple[NDArray[np.int64], Bools]:
    """Draw a frame of each clip, 3 frames from contacts and before the last three, and say where there is one."""
    frames = np.arange(scenes.position.shape[1])
    free = np.tile((frames > scenes.context) & (frames < len(frames) - 3), (len(scenes), 1))
    for row, contacts in zip(free, scenes.contacts, strict=True):
        for one in contacts:
            row &= np.abs(frames - one.time) > 3.0
    rank = rng.random(free.shape) * free
    return rank.argmax(1), np.asarray(free.any(1))


def _thing(scenes: Scenes, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw one of the two things; the bob of a pendulum."""
    return np.where(scenes.kind == "pendulum", 0, rng.integers(0, 2, len(scenes)))


def _direction(scenes: Scenes, k: Any, size: float, since: Any, rng: np.random.Generator) -> tuple[Array, Bools]:
    """Draw a step of so many radii for thing k from a frame on, clear of border, ground and the other thing, (N, 2)."""
    own, angle = np.arange(len(scenes)), rng.uniform(0, 2 * np.pi, (len(scenes), 1)) + np.arange(16) * np.pi / 8
    r, other = scenes.radius[own, k][:, None, None], scenes.radius[own, 1 - k][:, None, None]
    step = size * r * np.stack([np.cos(angle), np.sin(angle)], -1)  # (N, 16, 2)
    path = scenes.position[own, :, k][:, None] + step[:, :, None]  # (N, 16, T, 2)
    way, level = scenes.ground[:, None, None, :2], scenes.ground[:, None, None, 2]
    sunk = (way * path).sum(-1) + r > level  # False without ground
    met = np.linalg.norm(path - scenes.position[own, :, 1 - k][:, None], axis=-1) < r + other + 1.0
    room = np.array([scenes.size[1], scenes.size[0]]) - 2.0
    out = ((path < r[..., None] + 1.0) | (path > room - r[..., None])).any(-1)
    late = np.arange(path.shape[2]) >= np.reshape(since, (-1, 1, 1))
    fits = ~((sunk | met | out) & late).any(-1)
    return step[own, fits.argmax(1)], fits.any(1)


def _teleport(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    since, possible = _moment(scenes, rng)
    k, position, own = _thing(scenes, rng), scenes.position.copy(), np.arange(len(scenes))
    step, fits = _direction(scenes, k, size, since, rng)
    late = np.arange(position.shape[1]) >= since[:, None]
    position[own, :, k] += late[..., None] * step[:, None]
    return _States(position, _radii(scenes), possible & fits)


def _freeze(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    since, possible = _moment(scenes, rng)
    frames = np.arange(scenes.position.shape[1])
    then = np.where(frames < since[:, None], frames, np.maximum(since[:, None], frames - round(size)))
    return _States(scenes.position[np.arange(len(scenes))[:, None], then], _radii(scenes), possible)


def _vanish(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    k, frames = _thing(scenes, rng), np.arange(scenes.position.shape[1])
    since = rng.integers(scenes.context, len(frames) - 1, len(scenes))[:, None]
    radius = _radii(scenes)
    gone = (frames >= since) & (frames < since + size)
    radius[np.arange(len(scenes)), :, k] *= ~gone
    return _States(scenes.position, radius, np.ones(len(scenes), dtype=bool))


def _duplicate(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    first = np.zeros(len(scenes), dtype=np.int64)
    step, possible = _direction(scenes, first, 2.5, first + scenes.context, rng)
    position = np.concatenate([scenes.position, scenes.position[:, :, :1] + step[:, None, None]], 2)
    late = np.arange(position.shape[1]) >= scenes.context
    radius = np.concatenate([_radii(scenes), size * late[:, None] * scenes.radius[:, None, :1]], 2)
    return _States(position, radius, possible)


def _shrink(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    radius = _radii(scenes)
    radius[np.arange(len(scenes)), :, _thing(scenes, rng)] *= 1.0 - size * _ramp(scenes)
    return _States(scenes.position, radius, np.ones(len(scenes), dtype=bool))


def _ramp(scenes: Scenes) -> Array:
    """Return 0 in the context and up to 1 in the last frame, shape (T,)."""
    last, end = scenes.context - 1, scenes.position.shape[1] - 1
    return np.asarray(np.clip((np.arange(end + 1) - last) / (end - last), 0.0, 1.0))


def _rod(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    position, pivot = scenes.position.copy(), scenes.position[:, :, 1]
    position[:, :, 0] = pivot + (position[:, :, 0] - pivot) * (1.0 - size * _ramp(scenes))[:, None]
    clear = np.linalg.norm(position[:, :, 0] - pivot, axis=-1).min(1) > scenes.radius.sum(1) + 0.5
    return _States(position, _radii(scenes), clear)


def _slip(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    position = scenes.position.copy()
    late = np.arange(position.shape[1]) >= scenes.context
    turned = -size * late * (scenes.angle[:, :, 0] - scenes.angle[:, scenes.context - 1, :1])
    x, y = np.moveaxis(position[:, :, 1] - position[:, :, 0], -1, 0)
    cos, sin = np.cos(turned), np.sin(turned)
    position[:, :, 1] = position[:, :, 0] + np.stack([cos * x - sin * y, sin * x + cos * y], -1)
    return _States(position, _radii(scenes), np.ones(len(scenes), dtype=bool))


class _Collision(NamedTuple):
    """Two discs that move straight, meet, and move straight: time (N,), place and speeds (N, 2, 2)."""

    time: Array
    place: Array
    before: Array
    after: Array


def _collision_of(scenes: Scenes) -> _Collision:
    time = np.array([contacts[0].time if contacts else np.inf for contacts in scenes.contacts])
    before, after = scenes.velocity[:, 0], scenes.velocity[:, -1]
    finite = np.where(np.isfinite(time), time, 0.0)
    return _Collision(time, scenes.position[:, 0] + before * finite[:, None, None], before, after)


def _straight(scenes: Scenes, hit: _Collision, delay: Any = 0.0) -> Array:
    """Return the positions of a collision that comes later by a delay (N,), wherever the discs are then."""
    since = np.arange(scenes.position.shape[1]) - hit.time[:, None]
    early, late = np.minimum(since, np.reshape(delay, (-1, 1))), np.maximum(since - np.reshape(delay, (-1, 1)), 0.0)
    return (
        hit.place[:, None] + early[..., None, None] * hit.before[:, None] + late[..., None, None] * hit.after[:, None]
    )


def _delayed(sign: float) -> Callable[[Scenes, float, np.random.Generator], _States]:
    """Return the change that makes two turn round that deep in each other, or with sign -1 so far from each other."""

    def change(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
        hit = _collision_of(scenes)
        apart, closing = (one[:, 0] - one[:, 1] for one in (hit.place, hit.before))
        reach = scenes.radius.sum(1)
        wanted = reach - sign * size * scenes.radius.min(1)
        # |apart + closing t| = wanted, the earlier root
        a, b, c = (closing**2).sum(1), (apart * closing).sum(1), reach**2 - wanted**2
        root = b**2 - a * c
        delay = (-b - np.sqrt(np.maximum(root, 0.0))) / a
        possible = (root > 0) & (hit.time + delay > scenes.context) & (hit.time + delay < scenes.position.shape[1] - 3)
        return _States(_straight(scenes, hit, delay), _radii(scenes), possible)

    return change


def _momentum_break(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    hit, k, own = _collision_of(scenes), _thing(scenes, rng), np.arange(len(scenes))
    after = hit.after.copy()
    after[own, k] -= size * (hit.after - hit.before)[own, k]
    return _States(_straight(scenes, hit._replace(after=after)), _radii(scenes), np.isfinite(hit.time))


def _energy_gain(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    """Two part faster than they met, with the same momentum; or the ground returns more than comes in."""
    bounced = _bounced(scenes, gravity=1.0, restitution=np.full(len(scenes), np.sqrt(1.0 + size)))
    hit, mass = _collision_of(scenes), scenes.mass[..., None]
    centre = (mass * hit.after).sum(1, keepdims=True) / mass.sum(1, keepdims=True)
    energy = [(scenes.mass * (v**2).sum(-1)).sum(1) for v in (hit.before, hit.after - centre)]
    moved = scenes.mass.sum(1) * (centre[:, 0] ** 2).sum(-1)
    scale = np.sqrt(((1.0 + size) * energy[0] - moved).clip(0.0) / energy[1].clip(1e-9))[:, None, None]
    parted = _straight(scenes, hit._replace(after=centre + scale * (hit.after - centre)))
    falls = (scenes.kind == "fall")[:, None, None, None]
    return _States(np.where(falls, bounced, parted), _radii(scenes), np.isfinite(hit.time))


def _wrong_gravity(scenes: Scenes, size: float, rng: np.random.Generator) -> _States:
    position = _bounced(scenes, gravity=1.0 - size, restitution=None)
    return _States(position, _radii(scenes), np.ones(len(scenes), dtype=bool))


def _bounced(scenes: Scenes, *, gravity: float, restitution: Array | None) -> Array:
    """Return falls with so much of their gravity after the context, and another restitution; others as they are."""
    position = scenes.position.copy()
    frames, start = position.shape[1], scenes.context - 1
    for i in np.flatnonzero(scenes.kind == "fall"):
        g, floor = scenes.gravity[i, 1], scenes.ground[i, 2] - scenes.radius[i]
        for k in range(2):
            y, v = position[i, start, k, 1], scenes.velocity[i, start, k, 1]
            impulse = next((one.impulse for one in scenes.contacts[i] if one.one == k), 0.0) / scenes.mass[i, k]
            speed = np.sqrt(v**2 + 2 * g * (floor[k] - y))  # with which it comes to the ground
            back = impulse / speed - 1.0 if restitution is None else restitution[i]
            position[i, start:, k, 1] = _flight(y, v, g * gravity, max(back, 0.0), floor[k], frames - start)
    return position


def _flight(y: float, v: float, g: float, restitution: float, floor: float, frames: int) -> Array:
    """Return heights at frames 0, 1, ... of a body that falls and bounces."""
    out, begin = np.full(frames, floor), 0.0
    while begin < frames:
        hit = begin + (np.sqrt(v**2 + 2 * g * max(floor - y, 0.0)) - v) / g
        t = np.arange(frames)
        own = (t >= begin) & (t <= hit)
        out[own] = y + v * (t[own] - begin) + g * (t[own] - begin) ** 2 / 2
        y, v, begin = floor, -restitution * (v + g * (hit - begin)), hit
        if -2 * v < g:  # less than a frame in the air: it lies
            break
    return out


_PAIR, _FREE = ("collision",), ("collision", "fall")
_PART = 16  # clips that are scored at a time
_FRAMES, _SHARES = (1.0, 2.0, 4.0, 8.0), (0.1, 0.25, 0.5)
_ALL = [
    Violation("teleport", "radii", ("acceleration",), _FREE, (0.25, 0.5, 1.0, 2.0), 1.0, _teleport),
    Violation("freeze", "frames", ("acceleration",), _FREE, _FRAMES, 4.0, _freeze),
    Violation("penetration", "radii of the smaller", ("overlap",), _PAIR, (0.25, 0.5, 1.0), 0.5, _delayed(1.0)),
    Violation("early bounce", "radii of the smaller", ("contact_time",), _PAIR, (0.25, 0.5, 1.0), 0.5, _delayed(-1.0)),
    Violation("momentum break", "share of the change", ("momentum",), _PAIR, _SHARES, 0.5, _momentum_break),
    Violation("energy gain", "share of the energy", ("energy", "restitution"), _FREE, _SHARES, 0.5, _energy_gain),
    Violation("wrong gravity", "share of gravity", ("free_fall",), ("fall",), _SHARES, 0.5, _wrong_gravity),
    Violation("rod", "share of the length", ("pendulum",), ("pendulum",), (0.02, 0.05, 0.1, 0.2), 0.1, _rod),
    Violation("slip", "share of the turn", ("rolling",), ("rolling",), (0.1, 0.25, 0.5, 1.0), 0.5, _slip),
    Violation("shrink", "share of the radius", ("rigidity",), KINDS[:3], (0.05, 0.1, 0.2, 0.4), 0.2, _shrink),
    Violation("vanish", "frames", ("permanence",), KINDS[:3], _FRAMES, 4.0, _vanish),
    Violation(
        "duplicate", "radius of the copy in radii", ("permanence",), KINDS[:3], (0.25, 0.5, 1.0), 1.0, _duplicate
    ),
]
VIOLATIONS: Mapping[str, Violation] = {one.name: one for one in _ALL}


# -- what breaks no mechanics ---------------------------------------------------------------------------------------


def _codec(clips: Tensor, seed: int) -> Tensor:
    """Write as H.264 at crf 28 and read again."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "clip.mp4", []
        for clip in (clips * 255.0).round().to(torch.uint8).numpy():
            write_clip(file, clip, crf=28)
            out.append(read_clip(file).frames)
    return torch.from_numpy(np.stack(out)).float() / 255.0


def _blur(clips: Tensor, seed: int) -> Tensor:
    """Blur by a Gaussian of 0.7 px."""
    flat = clips.numpy().reshape(-1, *clips.shape[2:])
    return torch.from_numpy(np.stack([cv2.GaussianBlur(one, (0, 0), 0.7) for one in flat]).reshape(clips.shape))


def _brightness(clips: Tensor, seed: int) -> Tensor:
    """Take a tenth of the light away."""
    return clips * 0.9


def _shift(clips: Tensor, seed: int) -> Tensor:
    """Move the picture by a pixel to one of four sides."""
    axis, step = divmod(int(np.random.default_rng(stream(seed, "shift")).integers(4)), 2)
    moved = clips.roll(2 * step - 1, 2 + axis)
    side = 0 if step else -1
    moved.select(2 + axis, side).copy_(clips.select(2 + axis, side))
    return moved


HARMLESS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "codec": _codec,
    "blur": _blur,
    "brightness": _brightness,
    "shift": _shift,
}


def _noise(clips: Tensor, seed: int) -> Tensor:
    """Add pixel noise of 2 / 255, rounded as pictures are; it is what noise floors are measured with."""
    generator = torch.Generator().manual_seed(stream(seed, "noise"))
    noisy = clips + torch.randn(clips.shape, generator=generator) * (2.0 / 255.0)
    return (noisy * 255.0).round().clamp(0.0, 255.0) / 255.0


# -- cheats ---------------------------------------------------------------------------------------------------------


def _do_nothing(scenes: Scenes) -> Tensor:
    last, frames = scenes.context - 1, np.arange(scenes.position.shape[1])
    late = np.maximum(frames - last, 0)[:, None, None]
    held = scenes.position[:, np.minimum(frames, last)]
    return _drawn(scenes, held + late * scenes.velocity[:, last][:, None], _radii(scenes))


def _copy_last(scenes: Scenes) -> Tensor:
    frames = np.minimum(np.arange(scenes.position.shape[1]), scenes.context - 1)
    return _drawn(scenes, scenes.position[:, frames], _radii(scenes))


def _gone(scenes: Scenes) -> Tensor:
    radius = _radii(scenes)
    radius[:, scenes.context :] = 0.0
    return _drawn(scenes, scenes.position, radius)


def _shake(scenes: Scenes) -> Tensor:
    rng = np.random.default_rng(stream(0, "shake"))
    camera = rng.normal(0.0, 0.03 * min(scenes.size), scenes.camera.shape)
    camera[:, : scenes.context] = 0.0
    return _drawn(scenes, scenes.position, _radii(scenes), camera=camera)


#: straight on as in the context; its last frame again and again; nothing at all; the truth from a hand-held camera
CHEATS: Mapping[str, Callable[[Scenes], Tensor]] = {
    "do_nothing": _do_nothing,
    "copy_last": _copy_last,
    "vanish": _gone,
    "shake": _shake,
}


# -- the bench ------------------------------------------------------------------------------------------------------


class Bench(NamedTuple):
    """What a bench found.

    Parameters
    ----------
    rows : list of dict
        By ``reward``, ``what`` and ``name``. Of a *violation*: ``size``, ``unit``, ``bench``, ``clips``, ``auc``, the
        share ``undecided``, ``monotone``, and ``harm``; of an *edit* ``shift``, of a *cheat* ``earns``, these three in
        noise floors; of a *reward* ``floor``, ``honest``, the mean cost of a true clip, and ``ms``, milliseconds of one
        CPU a clip.
    scene, violation : list of str
    violated : list of bool
        Of each clip that was violated at the size of the bench, and of each true one that it is compared with.
    cost : mapping of reward to list of float
        Of the same; NaN where it could not be measured.
    """

    rows: list[dict[str, Any]]
    scene: list[str]
    violation: list[str]
    violated: list[bool]
    cost: dict[str, list[float]]


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # of small clips threads wait for each other
def bench_rewards(
    rewards: Sequence[Reward], *, clips: int = 80, seed: int = 0, size: tuple[int, int] = (64, 64), frames: int = 24
) -> Bench:
    """Judge rewards by violations, harmless edits and cheats: the same clips for all, made once.

    All clips, true ones too, bear pixel noise of 2 / 255.

    Parameters
    ----------
    rewards : sequence of Reward
        With names of their own.
    clips : int
        True ones, a quarter of each kind of scene, at least 8.
    seed, size, frames
        Of the scenes.

    Raises
    ------
    InputError
        For fewer clips, two rewards of one name, and whatever a reward refuses.
    """
    names = [one.name for one in rewards]
    if clips < 8 or not names or len(set(names)) < len(names):
        got = f"{clips} clips, rewards {', '.join(names) or 'none'}"
        raise InputError(got, "8 clips at least, a reward, each name once", "correct them")
    scenes = join(
        [simulate(kind, clips // len(KINDS), stream(seed, "bench"), size=size, frames=frames) for kind in KINDS]
    )
    every, true, judge = np.arange(len(scenes)), film(scenes), _Judge(rewards, scenes)
    honest = judge.costs(_noise(true, seed), every)
    for name, cost in honest.items():
        if np.isnan(cost).all():
            got = f"reward {name!r}, which measures none of {len(every)} true clips"
            raise InputError(got, "a number for most of them", "mend the reward")
    found, harm = Bench([], [], [], [], {name: [] for name in names}), {name: list[float]() for name in names}
    for one in VIOLATIONS.values():
        paths = {name: np.full((len(scenes), len(one.sizes)), np.nan) for name in names}
        for j, amount in enumerate(one.sizes):
            made, index = one.make(scenes, amount, seed)
            costs = judge.costs(_noise(made, seed + 1), index)
            for name in names:
                paths[name][index, j] = costs[name]
                both, violated = (
                    np.concatenate([honest[name][index], costs[name]]),
                    np.repeat([False, True], len(index)),
                )
                row: dict[str, Any] = {
                    "reward": name,
                    "what": "violation",
                    "name": one.name,
                    "size": amount,
                    "unit": one.unit,
                }
                lost = float(np.isnan(costs[name]).mean())
                row |= {"bench": amount == one.bench, "clips": len(index), "undecided": lost}
                row["harm"] = float(np.nanmean(costs[name] - honest[name][index])) if len(index) else math.nan
                found.rows.append(row | {"auc": float(auc(both, np.ones(len(both)), violated))})
                if amount == one.bench:
                    harm[name].append(float(np.nanmean(costs[name] - honest[name][index])))
                    found.cost[name].extend(both.tolist())
            if amount == one.bench:
                found.scene.extend(scenes[index].names() * 2)
                found.violation.extend([one.name] * 2 * len(index))
                found.violated.extend(violated.tolist())
        for row in found.rows[-len(names) * len(one.sizes) :]:
            row["monotone"] = _monotone(np.array(one.sizes), paths[row["reward"]])
    floor = {name: max(float(np.nanstd(honest[name])), 0.01 * float(np.nanmean(harm[name])), 1e-9) for name in names}
    for row in found.rows:
        row["harm"] /= floor[row["reward"]]
    made_of = {("edit", name): edit(_noise(true, seed), seed) for name, edit in HARMLESS.items()}
    made_of |= {("cheat", name): _noise(cheat(scenes), seed + 1) for name, cheat in CHEATS.items()}
    for (what, name), made in made_of.items():
        for own, cost in judge.costs(made, every).items():
            change = float(np.nanmean(cost - honest[own])) / floor[own]
            value = {"shift": change} if what == "edit" else {"earns": -change}
            found.rows.append({"reward": own, "what": what, "name": name, **value})
    for name, reward in zip(names, rewards, strict=True):
        facts = {"floor": floor[name], "honest": float(np.nanmean(honest[name])), "ms": judge.ms(reward)}
        found.rows.append({"reward": name, "what": "reward", "name": name, **facts})
    return found


def _monotone(sizes: Array, cost: Array) -> float:
    """Return the mean over scenes of the rank correlation of cost and size; 0 of a scene whose costs are all alike."""
    each = [rank_correlation(sizes[ok], row[ok]) for row in cost if (ok := np.isfinite(row)).sum() > 2]
    return float(np.nan_to_num(each).mean()) if each else float("nan")


class _Judge:
    """Scores clips with all rewards, some at a time, tracked once, and keeps the time that each takes."""

    def __init__(self, rewards: Sequence[Reward], scenes: Scenes) -> None:
        self.rewards, self.scenes, self.meta = rewards, scenes, meta_of(scenes)
        self.seconds, self.count, self.tracking = {one.name: 0.0 for one in rewards}, 0, 0.0
        parts = np.array_split(np.arange(len(scenes)), -(-len(scenes) // _PART))
        tracks = [track_colours(film(scenes[part]), self.meta[part]) for part in parts]
        names = [field.name for field in fields(Tracks)]
        self.truth = Tracks(**{name: torch.cat([getattr(one, name) for one in tracks]) for name in names})

    def costs(self, clips: Tensor, index: NDArray[np.int64]) -> dict[str, Array]:
        """Return costs, lower is better, of clips (n, T, H, W, 3) of some scenes (n,)."""
        out = {one.name: np.full(len(index), np.nan) for one in self.rewards}
        for part in (slice(i, i + _PART) for i in range(0, len(index), _PART)):
            rows = torch.as_tensor(index[part])
            meta, since = self.meta[rows], time.process_time()
            tracks = track_colours(clips[part], meta)
            self.tracking += time.process_time() - since
            for one in self.rewards:
                tracked, since = getattr(one, "tracked", False), time.process_time()
                truth = None if not one.needs_truth else self.truth[rows] if tracked else film(self.scenes[index[part]])
                try:
                    value = np.asarray(one.score(tracks if tracked else clips[part], truth, meta).value, np.float64)
                except InputError:
                    raise
                except Exception as error:  # whatever a stranger's reward raises
                    got = f"reward {one.name!r} fails: {type(error).__name__}: {error}"
                    raise InputError(got, "score(clips, truth, meta) -> Scores", "mend the reward") from error
                out[one.name][part] = value if one.lower_is_better else -value
                self.seconds[one.name] += time.process_time() - since
        self.count += len(index)
        return out

    def ms(self, reward: Reward) -> float:
        """Return milliseconds of CPU a clip, with those of tracking it."""
        return 1e3 * (self.seconds[reward.name] + self.tracking * getattr(reward, "tracked", False)) / self.count
