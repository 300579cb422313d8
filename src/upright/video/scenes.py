r"""Clips of two rigid bodies, simulated: collisions, pendulums, falls with bounces, and rolling down a slope.

Pixels: the centre of the pixel in row i and column j is the point (x = j, y = i), y down. Times are in frames.

    collision   no gravity; v_1' - v_2' = -e (v_1 - v_2) along the normal n of the contact, momentum is kept,
                impulse J = (1 + e) m_1 m_2 / (m_1 + m_2) (v_1 - v_2) n
    fall        x(t) = x_0 + v t + g t^2 / 2 until the ground, which returns -e of the speed that comes in
    rolling     acceleration 2/3 g sin(slope) of a disc, its moment being m r^2 / 2, and speed = r angle'
    pendulum    sin(a / 2) = k sn(w t + u | k^2), a' = 2 k w cn(w t + u | k^2), k = sin(amplitude / 2),
                w^2 = g / length, period 4 K(k^2) / w

The first three are steps of pymunk. Its step is ``x += v h; v += g h``, so velocities live half a step later than
positions, and flight is exact when they start half a step late. It finds a contact at the end of a step; there the
bodies are put back to where they touched, hit, and moved on for the rest of the step. The pendulum is the closed form:
with pymunk's pin joint the energy drifts by 1 % at 20 steps a frame and by 0.3 % at 60.

References: NIST Digital Library of Mathematical Functions, 22.19(i), for the pendulum; pymunk 7.3, ``Space.step``.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pymunk
from numpy.typing import NDArray
from scipy.special import ellipj, ellipk

from upright.contract import InputError, stream

__all__ = ["KINDS", "Contact", "Scenes", "bench", "join", "simulate"]

Array = NDArray[np.float64]
KINDS = ("collision", "pendulum", "fall", "rolling")
_MARK, _MARK_AT = 0.3, 0.55  # radius and distance from the centre of the mark on a rolling disc, in radii of the disc
_M, _ROUNDS = 64, 60  # starts drawn at a time, of which the first that fits is taken, and how often
_BENCH_SEED, _BENCH = 2026, {"collision": 13, "pendulum": 13, "fall": 12, "rolling": 12}  # held out, of 175 each


class Contact(NamedTuple):
    """A hit, at a time in frames, of one thing and another (-1: the ground); impulse in mass times px a frame."""

    time: float
    one: int
    other: int
    impulse: float


@dataclass(frozen=True, eq=False)
class Scenes:
    """N clips of T frames with two things each, as they truly move.

    Parameters
    ----------
    kind, ghost : array of str and of bool, shape (N,)
        Which, and whether the two pass through each other.
    position, velocity : array, shape (N, T, 2, 2)
        (x, y) of each thing at each frame, in px and px a frame.
    angle : array, shape (N, T, 2)
        In radians, from x towards y.
    energy : array, shape (N, T)
        Kinetic, with rotation, and potential, counted from the lowest point that each thing reaches in the clip.
    radius, mass : array, shape (N, 2)
        In px and px^2, density 1. The mark on a rolling disc has mass 0.
    gravity : array, shape (N, 2)
        Acceleration of a free body.
    ground : array, shape (N, 3)
        (a, b, c): where ``a x + b y >= c`` is solid, (a, b) of length 1. NaN where there is none.
    colour, background, ground_colour : array, shape (N, 2, 3), (N, 3), (N, 3)
        Whole multiples of 1 / 255, in [0, 1].
    camera : array, shape (N, T, 2)
        Added to every point that is drawn; 0 in a true scene.
    contacts : tuple of tuples of Contact
        Hits of each clip in order. The lasting contact of rolling is none.
    seed, number : array of int, shape (N,)
        What the clip was drawn from, with its kind.
    size : (int, int)
        Height and width.
    substeps, context : int
        Steps of the simulation a frame; leading frames that are given.
    fps : float
        Frames a second.
    """

    kind: NDArray[np.str_]
    position: Array
    velocity: Array
    angle: Array
    energy: Array
    radius: Array
    mass: Array
    gravity: Array
    ground: Array
    colour: Array
    background: Array
    ground_colour: Array
    camera: Array
    contacts: tuple[tuple[Contact, ...], ...]
    ghost: NDArray[np.bool_]
    seed: NDArray[np.int64]
    number: NDArray[np.int64]
    size: tuple[int, int]
    substeps: int = 20
    context: int = 5
    fps: float = 15.0

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: Any) -> Scenes:
        """Return the clips of an index: a whole number, a slice, a list, an array or a mask."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        taken = {name: one[rows] for name, one in vars(self).items() if isinstance(one, np.ndarray)}
        return replace(self, **taken, contacts=tuple(self.contacts[i] for i in rows))

    def names(self) -> list[str]:
        """Return a name for each: kind, number, and 8 hex digits of SHA-256 of all that the clip was made from."""
        shape = [*self.size, self.position.shape[1], self.context, self.substeps, self.fps]
        columns = (self.kind, self.number, self.seed, self.ghost)
        made = ([*row, *shape] for row in zip(*(column.tolist() for column in columns), strict=True))
        return [f"{row[0]}-{row[1]:06d}-{hashlib.sha256(json.dumps(row).encode()).hexdigest()[:8]}" for row in made]


class _Box(NamedTuple):
    height: int
    width: int
    frames: int
    context: int
    substeps: int
    ghost: bool

    def inside(self, point: Array, radius: Array) -> NDArray[np.bool_]:
        """Whether discs at (..., 2) keep clear of the pixels of the border."""
        room = radius[..., None] + 1.0
        return np.asarray(((point >= room) & (point <= [self.width - 1, self.height - 1] - room)).all(-1))


class _Start(NamedTuple):
    fits: NDArray[np.bool_]
    position: Array
    velocity: Array
    radius: Array
    gravity: Array
    ground: Array
    extra: Array  # restitution; of a pendulum length, amplitude and phase; of rolling the angle of the mark


def _polar(length: Any, angle: Any) -> Array:
    return np.stack([length * np.cos(angle), length * np.sin(angle)], -1)


def _draw_collision(rng: np.random.Generator, box: _Box) -> _Start:
    """Draw time, place and normal of the contact and the velocities before it; the start follows."""
    side = min(box.height, box.width)
    pace, radius = side / box.frames, side * rng.uniform(0.08, 0.12, (_M, 2))
    restitution = np.where(rng.random(_M) < 0.5, 1.0, rng.uniform(0.7, 1.0, _M))
    time = rng.uniform(box.context, box.frames - 3, _M)[:, None, None]
    normal = _polar(1.0, rng.uniform(0, 2 * np.pi, _M))[:, None]
    touch = rng.uniform(0.35, 0.65, (_M, 1, 2)) * [box.width, box.height] + normal * radius[..., None] * [[-1], [1]]
    velocity = pace * rng.uniform(-0.6, 0.6, (_M, 2, 2))
    closing = ((velocity[:, 0] - velocity[:, 1]) * normal[:, 0]).sum(-1)
    share = radius[:, ::-1] ** 2 / (radius**2).sum(1, keepdims=True) * [-1, 1]  # of the change of their difference
    after = velocity + (0 if box.ghost else ((1 + restitution) * closing * share.T).T[..., None] * normal)
    start, end = touch - velocity * time, touch + after * (box.frames - 1 - time)
    given = start + velocity * (box.context - 1)
    gap = np.linalg.norm(given[:, 0] - given[:, 1], axis=-1) - radius.sum(1)
    fits = (closing > 0.3 * pace) & (gap > 1.0) & (box.inside(start, radius) & box.inside(end, radius)).all(1)
    return _Start(fits, start, velocity, radius, np.zeros((_M, 2)), np.full((_M, 3), np.nan), restitution[:, None])


def _draw_pendulum(rng: np.random.Generator, box: _Box) -> _Start:
    """Draw pivot, length, amplitude, period and phase; gravity follows."""
    side = min(box.height, box.width)
    radius, length = side * rng.uniform(0.08, 0.12, (_M, 2)), side * rng.uniform(0.4, 0.65, _M)
    pivot = rng.uniform([0.4, 0.15], [0.6, 0.25], (_M, 2)) * [box.width, box.height]
    amplitude, phase = np.radians(rng.uniform(20.0, 60.0, _M)), rng.uniform(0.0, 4.0, _M)
    period = box.frames * rng.uniform(0.8, 1.3, _M)
    g = length * (4 * ellipk(np.sin(amplitude / 2) ** 2) / period) ** 2
    fits = box.inside(pivot, radius[:, 1]) & (length > radius.sum(1) + 1.0)
    for angle in (-amplitude, 0.0, amplitude):
        fits &= box.inside(pivot + _polar(length, np.pi / 2 - angle), radius[:, 0])
    position, extra = np.stack([pivot, pivot], 1), np.stack([length, amplitude, phase], -1)
    return _Start(fits, position, 0 * position, radius, g[:, None] * [0, 1], np.full((_M, 3), np.nan), extra)


def _draw_fall(rng: np.random.Generator, box: _Box) -> _Start:
    """Draw when each disc first meets the ground, and its speeds; where it starts follows."""
    side, last = min(box.height, box.width), box.frames - 1
    radius, restitution = side * rng.uniform(0.08, 0.12, (_M, 2)), rng.uniform(0.5, 0.9, (_M, 1))
    floor = box.height * (1 - rng.uniform(0.05, 0.15, (_M, 1))) - 1
    time = rng.uniform(box.context, box.frames - 3, (_M, 2))
    g = box.height * rng.uniform(0.8, 1.6, (_M, 1)) / time.mean(1, keepdims=True) ** 2
    velocity = side / box.frames * rng.uniform(-0.5, 0.5, (_M, 2, 2))
    across, down = velocity[..., 0], velocity[..., 1]
    x, y = box.width * rng.uniform(0.1, 0.9, (_M, 2)), floor - radius - down * time - g * time**2 / 2
    apex = y - np.minimum(down, 0.0) ** 2 / (2 * g)
    start, end, top = (np.stack(at, -1) for at in ((x, y), (x + across * last, y), (x, apex)))
    fits = (box.inside(start, radius) & box.inside(end, radius) & box.inside(top, radius)).all(1)
    fits &= (y < floor - radius - 1.0).all(1)
    apart = np.stack([start[:, 1, 0] - start[:, 0, 0], end[:, 1, 0] - end[:, 0, 0]], -1)
    fits &= (np.abs(apart) > radius.sum(1, keepdims=True) + 1.0).all(1) & (apart[:, 0] * apart[:, 1] > 0)
    bounce = 2 * restitution * (time + down / g)  # frames until it comes down again
    for _ in range(3):
        fits &= ((bounce > 3.0) | (time > last)).all(1)
        time, bounce = time + bounce, bounce * restitution
    ground = np.concatenate([np.zeros((_M, 1)), np.ones((_M, 1)), floor], 1)
    return _Start(fits & (time > last).all(1), start, velocity, radius, g * [0, 1], ground, restitution)


def _draw_rolling(rng: np.random.Generator, box: _Box) -> _Start:
    """Draw the slope, the way that is rolled, and the share of it that the first speed makes; gravity follows."""
    side, last = min(box.height, box.width), box.frames - 1
    radius, sign = side * rng.uniform(0.12, 0.17, (_M, 1)) * [1.0, _MARK], np.where(rng.random(_M) < 0.5, -1.0, 1.0)
    slope = sign * np.radians(rng.uniform(8.0, 25.0, _M))
    along, normal = _polar(sign, slope), _polar(1.0, slope + np.pi / 2)
    way, share = side * rng.uniform(0.35, 0.6, (_M, 1)), rng.uniform(0.0, 0.4, (_M, 1))
    middle = rng.uniform([0.4, 0.35], [0.6, 0.6], (_M, 2)) * [box.width, box.height]
    start, end = middle - along * way / 2, middle + along * way / 2
    gravity = 3 * (1 - share) * way / (last**2 * np.abs(np.sin(slope))[:, None]) * [0, 1]
    ground = np.hstack([normal, (normal * middle).sum(1, keepdims=True) + radius[:, :1]])
    fits = box.inside(start, radius[:, 0]) & box.inside(end, radius[:, 0])
    position, velocity = (np.stack([one, one], 1) for one in (start, along * share * way / last))
    return _Start(fits, position, velocity, radius, gravity, ground, rng.uniform(0, 2 * np.pi, (_M, 1)))


_DRAW = dict(zip(KINDS, (_draw_collision, _draw_pendulum, _draw_fall, _draw_rolling), strict=True))


class _Motion(NamedTuple):
    position: Array
    velocity: Array
    angle: Array
    spin: Array
    contacts: tuple[Contact, ...]


def _swing(start: _Start, box: _Box) -> _Motion:
    """Return the motion of a pendulum; its bob does not turn."""
    length, amplitude, phase = start.extra
    k, w = math.sin(amplitude / 2), math.sqrt(start.gravity[1] / length)
    sn, cn, _, _ = ellipj(w * np.arange(box.frames) + phase * ellipk(k**2), k**2)
    angle = 2 * np.arcsin(k * sn)
    bob = np.stack([_polar(length, np.pi / 2 - angle), np.zeros((box.frames, 2))], 1)
    velocity = np.stack([_polar(2 * k * w * cn * length, -angle), np.zeros((box.frames, 2))], 1)
    return _Motion(start.position + bob, velocity, np.zeros((box.frames, 2)), np.zeros((box.frames, 2)), ())


def _mark(start: _Start, motion: _Motion) -> _Motion:
    """Return the motion with the mark on the first thing in the place of the second."""
    angle, spin = motion.angle[:, :1] + start.extra[0], motion.spin[:, :1]
    arm = _polar(_MARK_AT * start.radius[0], angle[:, 0])
    position = motion.position[:, :1] + np.stack([0 * arm, arm], 1)
    velocity = motion.velocity[:, :1] + spin[:, None] * np.stack([0 * arm, arm[:, ::-1] * [-1, 1]], 1)
    return _Motion(position, velocity, angle.repeat(2, 1), spin.repeat(2, 1), ())


def _step(start: _Start, mass: Array, box: _Box, rolls: bool) -> _Motion:
    """Return the motion that pymunk gives: of two discs that fly and hit, or of the first alone, which rolls."""
    h, g, space = 1.0 / box.substeps, pymunk.Vec2d(*start.gravity.tolist()), pymunk.Space()
    space.gravity, space.collision_slop, space.collision_bias = g, 0.0, 1.0  # nothing pushes bodies apart
    a, b, c = start.ground.tolist()
    along = np.asarray([b, -a])  # turned by spin / radius times this, a disc rolls on the ground
    pull = along * (along @ start.gravity) * 2 / 3 if rolls else start.gravity
    bodies: list[pymunk.Body] = []
    shapes: list[pymunk.Shape] = []
    for k in range(1 if rolls else 2):
        body = pymunk.Body(mass[k], mass[k] * start.radius[k] ** 2 / 2)
        body.position, speed = tuple(start.position[k].tolist()), start.velocity[k] + pull * h / 2
        body.velocity = tuple(speed.tolist())
        body.angular_velocity = float(along @ speed) / start.radius[k] if rolls else 0.0
        bodies.append(body)
        shapes.append(pymunk.Circle(body, start.radius[k]))
    if not math.isnan(c):  # thick, and 1e-9 px too high for a disc that rolls, which so touches from the start
        foot, far, thick = pymunk.Vec2d(a, b) * (c + 100.0 - 1e-9 * rolls), pymunk.Vec2d(b, -a) * 1e4, 100.0
        shapes.append(pymunk.Segment(space.static_body, foot - far, foot + far, thick))
    for k, shape in enumerate(shapes):
        shape.elasticity, shape.friction = (0.0, 1.0) if rolls else (math.sqrt(start.extra[0]), 0.0)
        shape.filter = pymunk.ShapeFilter(group=int(box.ghost))
        shape.collision_type = k
    space.add(*bodies, *shapes)
    contacts: list[Contact] = []
    late: dict[tuple[int, ...], float] = {}  # time from a contact to the end of its step

    def things(arbiter: pymunk.Arbiter) -> tuple[int, ...]:
        return tuple(sorted(shape.collision_type for shape in arbiter.shapes if shape.collision_type < len(bodies)))

    def touch(arbiter: pymunk.Arbiter, _space: pymunk.Space, _data: Any) -> None:
        one, other = arbiter.bodies
        closing, points = (one.velocity - other.velocity).dot(arbiter.normal), arbiter.contact_point_set
        if closing <= 0:
            arbiter.process_collision = False
            return
        late[things(arbiter)] = back = -points.points[0].distance / closing
        for k in things(arbiter):
            bodies[k].position -= back * bodies[k].velocity
            bodies[k].velocity += (h / 2 - back) * g
        if len(things(arbiter)) == 2:
            points.normal, point = (other.position - one.position).normalized(), points.points[0]
            point.point_a = point.point_b = one.position + points.normal * start.radius[bodies.index(one)]
            arbiter.contact_point_set = points

    def rebound(arbiter: pymunk.Arbiter, _space: pymunk.Space, _data: Any) -> None:
        hit = things(arbiter)
        back = late.pop(hit)
        for k in hit:
            bodies[k].position += back * (bodies[k].velocity + back / 2 * g)
            bodies[k].velocity += (back + h / 2) * g
        # what the ground gave against gravity in this step is no part of the hit
        impulse = arbiter.total_impulse.length - (mass[hit[0]] * g.length * h if len(hit) == 1 else 0.0)
        contacts.append(Contact(step * h - back, hit[0], hit[1] if len(hit) == 2 else -1, float(impulse)))

    if not rolls:
        space.on_collision(pre_solve=touch, post_solve=rebound)
    states = np.zeros((box.frames, 2, 6))
    for step in range((box.frames - 1) * box.substeps + 1):
        if step:
            space.step(h)
        if step % box.substeps == 0:
            for k, body in enumerate(bodies):
                states[step // box.substeps, k] = *body.position, *body.velocity, body.angle, body.angular_velocity
    velocity, spin = states[..., 2:4] - pull * h / 2, states[..., 5]
    if rolls:
        spin[:, 0] = velocity[:, 0] @ along / start.radius[0]
    return _Motion(states[..., :2], velocity, states[..., 4], spin, tuple(sorted(contacts)))


def _colours(rng: np.random.Generator) -> dict[str, Array]:
    """Draw two vivid colours of distant hues, and a pale or a dark background with a ground that differs."""
    hue, apart = rng.random(), rng.uniform(0.3, 0.7)
    light, shift = (rng.uniform(0.8, 0.95), -0.25) if rng.random() < 0.5 else (rng.uniform(0.05, 0.2), 0.2)
    vivid = [(h % 1.0, *rng.uniform(0.8, 1.0, 2)) for h in (hue, hue + apart)]
    grey = [(rng.random(), 0.1, value) for value in (light, light + shift)]
    drawn = np.round(np.asarray([colorsys.hsv_to_rgb(*one) for one in (*vivid, *grey)]) * 255) / 255
    return {"colour": drawn[:2], "background": drawn[2], "ground_colour": drawn[3]}


def _clip(kind: str, seed: int, number: int, box: _Box, ghost: float) -> dict[str, Any]:
    """Return one clip, by the names of `Scenes`."""
    rng = np.random.default_rng(stream(seed, kind, number))
    box, colours = box._replace(ghost=kind == "collision" and bool(rng.random() < ghost)), _colours(rng)
    for _ in range(_ROUNDS):
        drawn = _DRAW[kind](rng, box)
        if drawn.fits.any():
            break
    else:
        got = f"no {kind} that fits {box.height} x {box.width} px and {box.frames} frames, {box.context} of them given"
        raise InputError(got, "a size and frames with room for the motion", "ask for a squarer picture or more frames")
    start = _Start(*(field[drawn.fits.argmax()] for field in drawn))
    mass = np.pi * start.radius**2 * ([1.0, 0.0] if kind == "rolling" else [1.0, 1.0])
    motion = _swing(start, box) if kind == "pendulum" else _step(start, mass, box, kind == "rolling")
    motion = _mark(start, motion) if kind == "rolling" else motion
    fallen = (motion.position.max(0) - motion.position) @ start.gravity
    energy = mass * ((motion.velocity**2).sum(-1) / 2 + (start.radius * motion.spin) ** 2 / 4 + fallen)
    given = {"kind": kind, "seed": seed, "number": number, "ghost": box.ghost, "mass": mass, "energy": energy.sum(-1)}
    moved = {name: getattr(motion, name) for name in ("position", "velocity", "angle", "contacts")}
    return {**given, **colours, **moved, **{name: getattr(start, name) for name in ("radius", "gravity", "ground")}}


def simulate(
    kind: str,
    n: int,
    seed: int,
    *,
    size: tuple[int, int] = (32, 32),
    frames: int = 16,
    context: int = 5,
    substeps: int = 20,
    ghost: float = 0.0,
) -> Scenes:
    """Simulate n clips of one kind; clip i is drawn from ``stream(seed, kind, i)`` alone.

    Parameters
    ----------
    kind : {"collision", "pendulum", "fall", "rolling"}
    n, seed : int
    size : (int, int)
        Height and width in px, from 16 on.
    frames : int
        More than context + 3.
    context : int
        Leading frames that are given. Discs first hit after them and before the frame T - 3.
    substeps : int
        Steps a frame.
    ghost : float
        Share of collisions, in [0, 1], in which the two pass through each other.

    Raises
    ------
    InputError
        For other values, and a size and number of frames for which no clip was found.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}", ", ".join(KINDS), "name one of them")
    asked = {"n": n, "height": size[0], "width": size[1], "context": context, "frames": frames, "substeps": substeps}
    least = {"height": 16, "width": 16, "frames": context + 4}
    for name, value in asked.items():
        if not isinstance(value, int | np.integer) or value < least.get(name, 1):
            raise InputError(f"{name} = {value}", f"a whole number from {least.get(name, 1)} on", "correct it")
    if not 0.0 <= ghost <= 1.0:
        raise InputError(f"ghost = {ghost}", "a share in [0, 1]", "correct it")
    clips = [_clip(kind, seed, i, _Box(*size, frames, context, substeps, False), ghost) for i in range(n)]
    made: dict[str, Any] = {name: np.stack([clip[name] for clip in clips]) for name in clips[0] if name != "contacts"}
    contacts, camera = tuple(clip["contacts"] for clip in clips), np.zeros((n, frames, 2))
    return Scenes(**made, camera=camera, contacts=contacts, size=size, substeps=substeps, context=context)


def join(parts: Sequence[Scenes]) -> Scenes:
    """Join scenes of one size, number of frames and context.

    Raises
    ------
    InputError
        For none, and for scenes that differ in them.
    """
    shapes = {(*one.size, one.position.shape[1], one.context, one.substeps, one.fps) for one in parts}
    if len(shapes) != 1:
        got = f"{len(parts)} parts of {len(shapes)} shapes"
        raise InputError(got, "parts of one size, frames and context", "join them apart")
    arrays = [name for name, value in vars(parts[0]).items() if isinstance(value, np.ndarray)]
    joined: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in parts]) for name in arrays}
    return replace(parts[0], contacts=tuple(clip for one in parts for clip in one.contacts), **joined)


def bench(split: Literal["train", "test"], *, size: tuple[int, int] = (64, 64), frames: int = 24) -> Scenes:
    """Return a split of 700 clips, 175 of each kind and always the same: 650 to train, 50 to test.

    Raises
    ------
    InputError
        For another split.
    """
    if split not in ("train", "test"):
        raise InputError(f"split {split!r}", "train or test", "name one of them")
    cut = {kind: slice(held) if split == "test" else slice(held, 175) for kind, held in _BENCH.items()}
    return join([simulate(kind, one.stop, _BENCH_SEED, size=size, frames=frames)[one] for kind, one in cut.items()])
