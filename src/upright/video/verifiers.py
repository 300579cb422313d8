r"""Whether things in a clip keep the laws of mechanics, judged from their tracks alone: no true future is needed.

Problem: given tracks (`tracks.Tracks`) and what is known of the clips (`tracks.Meta`), how far does each clip break
each law, in multiples of what true clips show through camera, codec and tracker? With positions p(f) of things of
radius r and mass m, gravity g, and ``D_h(f) = p(f + h) - 2 p(f) + p(f - h)``:

    acceleration   |D_h(f) - h^2 g| of a body that nothing touches from f - h to f + h, h = 1, 2, 4           px
    momentum       change of the velocity of the centre of mass against the context, over the mean speed      relative
    energy         rise of sum m (v^2 / 2 - g p) over its least so far, by mass and rms speed                 px/frame
    free_fall      |g' / g - 1|, g' = sum h^2 D_h / sum h^4 over the flights                                  relative
    restitution    v_out / v_in - 1 along the normal of a contact                                             relative
    contact_time   distance from touching when the velocity changes, over the closing speed                   frames
    pendulum       ``|length - length of the context|``; L |D_h(angle) + h^2 g / L sin(angle)|, h = 1, 2      px
    rolling        r (turned angle) - way; height over the slope; |D_h - h^2 (2/3) g sin(slope)|              px
    rigidity       change of radius and semi-axes against the context                                         px
    permanence     things that are lost and pieces that are too many                                          things
    overlap        depth of a disc in another or in the ground                                                px

A check gives a series over the frames; its value is the largest of those that are judged, from the end of the context
on. Between frames where a contact may have happened (extrapolated from both sides, discs come within 0.5 px) nobody is
called free. A check that does not apply, or that the tracks cannot decide, is undecided: its value is NaN.

What is not known of a clip is found from its context. Without ``kind`` things count as free bodies only where all of
them move, none overlap, and they have one acceleration in common, which is then gravity; a pendulum, a rolling disc
with its mark, and a thing at rest are undecided; a lone thing is judged by its acceleration alone, where 12 frames and
half of the clip are context and show one. Where gravity was found so and no ground is named, a push against gravity may
come from a ground. From when a thing reaches the border, or what came in over it, no law of motion is judged of it.

`newton` is the reward without a future: mean over its checks of the mean over frames of what exceeds the tolerance, in
tolerances, at most 50; a frame in which a thing is lost counts 50 in each check, so that nothing is gained by
vanishing. With known colours, what is decided rests on the context alone, so
that no future can evade a check; a backdrop that is found from a whole clip can be spoilt by its future.

References: Morpheus, arXiv 2504.02918 (scores from conservation laws); NewtonRewards, arXiv 2512.00425 (constant
acceleration as a reward). Numerov's weights (1, 10, 1) / 12 for the pendulum: Hairer, Norsett, Wanner, Solving
ordinary differential equations I, section III.10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from upright.contract import InputError
from upright.video.tracks import Meta, Tracks

__all__ = ["FOUND", "NEWTON", "TOLERANCES", "Check", "newton", "verify"]

NEWTON = ("acceleration", "momentum", "energy", "overlap", "permanence", "pendulum", "rolling")
# Three times the floor: the 90th percentile of the value over true clips (`benchmarks/physics_floors.py`: 60 of
# each kind, seed 7301, the worst of 32 px x 16 and 64 px x 24 frames, as drawn and after H.264 at crf 28).
# Relative ones are in px: momentum over 4 frames, free_fall over sqrt(sum h^4), contacts over the speed in.
TOLERANCES: Mapping[str, float] = {
    "acceleration": 0.35,
    "momentum": 0.16,
    "energy": 0.08,
    "free_fall": 0.18,
    "restitution": 0.05,
    "contact_time": 0.21,
    "pendulum": 0.27,
    "rolling": 0.47,
    "rigidity": 0.47,
    "permanence": 0.05,
    "overlap": 0.15,
}
# Things that were found, in clips of which nothing is known, are tracked less well: three times their floor over these
# (the same script and seed: 40 collisions and 40 falls, H.264 at crf 28 and 256 px, found at 64 px x 24 frames).
FOUND: Mapping[str, float] = {
    "acceleration": 3.0,
    "momentum": 3.9,
    "energy": 4.9,
    "restitution": 2.1,
    "contact_time": 2.5,
    "rigidity": 2.4,
}
_MOST = 50.0  # tolerances that a frame can exceed one by
_MERGED = 2.5  # px between found things below which their masks may be one
_NEAR = 0.5  # px between discs below which they may touch
_KINK = 0.4  # px in D_1 from which a velocity has changed
_WAY = 4  # frames over which the velocity of the centre of mass is measured
_ALIKE, _STILL = 0.1, 0.25  # px/frame^2 between accelerations that are one; way of a thing at rest, in radii
# A lone thing may be bound: frames of context from which it is judged, and px that it may be off a parabola there.
# Of 40 slow pendulums (H.264, 24 frames) 12 were called broken with 8 frames of context, of 420 with 12 frames none.
_LONE, _BENT = 12, 0.06
_SURE = 0.3  # mean confidence in the context frames below which nothing is decided


@dataclass(frozen=True, eq=False)
class Check:
    """What one verifier says of B clips.

    Parameters
    ----------
    name : str
    series : Tensor, shape (B, T)
        In the unit of the check; 0 in frames that are not judged.
    tolerance : Tensor, shape (B,)
        In the same unit: three times what true clips show.
    decided : bool Tensor, shape (B,)
        Whether the check applies and could be made.
    lost : bool Tensor, shape (B, T)
        Judged frames in which a thing is lost.
    context : int
        Frames that are not judged.
    """

    name: str
    series: Tensor
    tolerance: Tensor
    decided: Tensor
    lost: Tensor
    context: int

    @property
    def value(self) -> Tensor:
        """Return the largest of the series, shape (B,); NaN where undecided."""
        return torch.where(self.decided, self.series.amax(1), torch.nan)

    @property
    def excess(self) -> Tensor:
        """Return ``max(value / tolerance - 1, 0)``, shape (B,); 0 where undecided."""
        return torch.where(self.decided, (self.series.amax(1) / self.tolerance - 1).clamp(min=0), 0.0)

    @property
    def per_frame(self) -> Tensor:
        """Return what each frame exceeds, in tolerances, at most 50, 50 where a thing is lost, shape (B, T)."""
        over = (self.series / self.tolerance[:, None] - 1).clamp(0, _MOST)
        return torch.where(self.decided[:, None], torch.where(self.lost, _MOST, over), 0.0)


class _Motion(NamedTuple):
    """What the verifiers share: Q pairs of K things; intervals run from a frame to the next."""

    tracks: Tracks
    context: int
    kind: dict[str, Tensor]  # (B,) each; "" where it is not known
    radius: Tensor  # (B, K)
    mass: Tensor  # (B, K)
    gravity: Tensor  # (B, 2)
    falling: Tensor  # (B,): gravity is not 0
    found: Tensor  # (B,): gravity was found from the context
    unseen: Tensor  # (B,): things fall, to a ground that nobody named, or one is alone, and what binds it is not seen
    grounded: Tensor  # (B,): there is a ground
    free: Tensor  # (B,): things are free bodies between contacts
    sure: Tensor  # (B,)
    normal: Tensor  # (B, 1, 1, 2), NaN without ground
    height: Tensor  # (B, T, K) of discs over the ground, NaN without
    loose: Tensor  # (B, T, K): reached the border of a clip of which nothing is known, so that it is cut or has left
    pair: Tensor  # (2, Q)
    apart: Tensor  # (B, T, Q): distance less radii
    cut: Tensor  # (B, T, Q): by how much it may be less, as one is loose
    split: Tensor  # (B, Q): apart in the context
    second: dict[int, Tensor]  # D_h of each thing (B, T, K, 2), at its last frame f + h; 0 before frame 2 h
    clear: dict[int, Tensor]  # whether nothing touches it meanwhile (B, T, K)
    untouched: Tensor  # whether nothing touches it in an interval (B, T - 1, K)


def _prepare(tracks: Tracks, meta: Meta) -> _Motion:
    p, c = tracks.position, meta.context
    n, frames, things, _ = p.shape
    if not 3 <= c < frames:
        raise InputError(f"{frames} frames, {c} of them context", "3 context frames and one more", "set context")
    names = list(meta.kind) or [""] * n
    if len(names) != n:
        raise InputError(f"{n} tracks and {len(names)} kinds", "one kind for each", "index the meta as the tracks")
    kind = {name: torch.tensor([one == name for one in names]) for name in ("collision", "pendulum", "fall", "rolling")}
    kind[""] = ~torch.stack(list(kind.values())).any(0)
    area = tracks.area[:, :c].median(1).values
    radius = (area / torch.pi).sqrt() if meta.radius is None else meta.radius.to(p.dtype)
    mass = radius**2 if meta.mass is None else meta.mass.to(p.dtype)
    pair = torch.combinations(torch.arange(things)).T if things > 1 else torch.zeros(2, 0, dtype=torch.int64)
    between = p[:, :, pair[1]] - p[:, :, pair[0]]
    radii = radius[:, pair].sum(1)[:, None]
    apart = between.norm(dim=-1) - radii
    loose = kind[""][:, None, None] & (tracks.border.cumsum(1) > 0)
    cut = (loose * radius[:, None])[:, :, pair].sum(2)
    split = ~(apart[:, :c] < 0).any(1) & ~kind["rolling"][:, None]
    tracks = replace(tracks, position=torch.where(loose[..., None], torch.nan, p))
    p = tracks.position
    ground = torch.full((n, 3), torch.nan) if meta.ground is None else meta.ground.to(p.dtype)
    normal = ground[:, None, None, :2]
    height = ground[:, None, 2:] - (p * normal).sum(-1) - radius[:, None]
    sure = tracks.confidence[:, :c].mean(1).amin(1) > _SURE if things else torch.zeros(n, dtype=torch.bool)
    gravity, found, alike = _find_gravity(p[:, :c], radius, meta)
    moves = ((p[:, c - 1] - p[:, 0]).norm(dim=-1) > _STILL * radius).all(1)
    stands = (height[:, :c] < _NEAR).any(2).any(1)
    lone = things == 1 and max(_LONE, frames / 2) <= c
    shared = alike & (_parabolic(p[:, :c, 0]) if lone else torch.tensor(things > 1))
    guess = kind[""] & shared & moves & split.all(1) & ~stands
    free = kind["collision"] | kind["fall"] | guess
    second = {h: _second(p, h) for h in (1, 2, 4)}
    falling = gravity.norm(dim=1) > 0
    grounded = ~ground.isnan().any(1)
    unseen = kind[""] & found & ~grounded & (falling | (things == 1))
    fall = -(gravity[:, None, None] * normal).sum(-1)  # second difference of the height of a free body
    hit = _hits(between, radii + cut, split, pair, height, fall)
    if bool(unseen.any()):
        push = (second[1][:, 2:] * gravity[:, None, None]).sum(-1) < -_KINK * gravity.norm(dim=1)[:, None, None]
        push &= unseen[:, None, None]
        hit[:, 1:] |= push
        hit[:, :-1] |= push
    before = torch.cat([torch.zeros(n, 1, things), hit.cumsum(1).to(p.dtype)], 1)
    clear = {h: torch.zeros(n, frames, things, dtype=torch.bool) for h in second}
    for h in second:
        clear[h][:, 2 * h :] = before[:, 2 * h :] == before[:, : max(frames - 2 * h, 0)]
    return _Motion(
        tracks=tracks,
        context=c,
        kind=kind,
        radius=radius,
        mass=mass,
        gravity=gravity,
        falling=falling,
        found=found,
        unseen=unseen,
        grounded=grounded,
        free=free,
        sure=sure,
        normal=normal,
        height=height,
        loose=loose,
        pair=pair,
        apart=apart,
        cut=cut,
        split=split,
        second=second,
        clear=clear,
        untouched=~hit,
    )


def _second(p: Tensor, h: int) -> Tensor:
    """Return D_h at its last frame, 0 in the first 2 h."""
    wide = torch.zeros_like(p)
    if len(p[0]) > 2 * h:
        wide[:, 2 * h :] = p[:, 2 * h :] - 2 * p[:, h:-h] + p[:, : -2 * h]
    return wide


def _find_gravity(p: Tensor, radius: Tensor, meta: Meta) -> tuple[Tensor, Tensor, Tensor]:
    """Return gravity (B, 2), whether it was found here, and whether all things have it for their acceleration."""
    steps = torch.arange(p.shape[1], dtype=p.dtype) - (p.shape[1] - 1) / 2
    curve = steps**2 - (steps**2).mean()
    each = 2 * torch.einsum("t,btkx->bkx", curve / (curve**2).sum(), p)  # of a parabola through the context
    if meta.gravity is None:
        mean = each.mean(1)
        gravity = torch.where(mean.norm(dim=1, keepdim=True) > _ALIKE / 2, mean, 0.0)
    else:
        gravity = meta.gravity.to(p.dtype)
    alike: Tensor = ((each - gravity[:, None]).norm(dim=-1) < _ALIKE).all(1)
    return gravity, torch.full(alike.shape, meta.gravity is None), alike


def _parabolic(p: Tensor) -> Tensor:
    """Return whether a thing keeps one acceleration through the context, (B, C, 2), as a pendulum does not, (B,)."""
    powers = torch.linspace(-1, 1, p.shape[1])[:, None] ** torch.arange(3)
    off: Tensor = (p - powers @ (torch.linalg.pinv(powers) @ p)).abs().amax((1, 2))
    return off < _BENT


def _hits(between: Tensor, radii: Tensor, split: Tensor, pair: Tensor, height: Tensor, fall: Tensor) -> Tensor:
    """Return in which intervals (B, T - 1, K) something may touch a thing, seen from both sides and from the frames."""

    def meets(at: Tensor, move: Tensor) -> Tensor:
        when = (-(at * move).sum(-1) / (move * move).sum(-1).clamp(min=1e-9)).clamp(0, 1)
        closest: Tensor = (at + when[..., None] * move).norm(dim=-1)
        return closest < radii[:, 1:-1] + _NEAR

    step, change = between[:, 1:] - between[:, :-1], height[:, 1:] - height[:, :-1]
    near = between.norm(dim=-1) < radii + _NEAR
    near = near[:, 1:] | near[:, :-1]
    near[:, 1:] |= meets(between[:, 1:-1], step[:, :-1])
    near[:, :-1] |= meets(between[:, 1:-1], -step[:, 1:])
    near &= split[:, None]
    hit = (height[:, 1:] < _NEAR) | (height[:, :-1] < _NEAR)
    hit[:, 1:] |= height[:, 1:-1] + change[:, :-1] + fall < _NEAR
    hit[:, :-1] |= height[:, 1:-1] - change[:, 1:] + fall < _NEAR
    for one, ends in zip(near.unbind(2), pair.T.tolist(), strict=True):
        hit[:, :, ends] |= one[..., None]
    return hit


def _series(x: Tensor) -> Tensor:
    """Return the largest over things of (B, T, K), 0 for NaN, shape (B, T)."""
    x = x.nan_to_num(0.0, 0.0, 0.0)
    return x.amax(2) if x.shape[2] else x.new_zeros(x.shape[:2])


def _check(motion: _Motion, name: str, series: Tensor, decided: Tensor, scale: Tensor | float = 1.0) -> Check:
    """Return a check, with the series judged from the context on; its unit is that of the tolerance times the scale."""
    lost = (~motion.tracks.visible & ~motion.loose).any(2)
    lost[:, : motion.context] = False
    judged = series.clone()
    judged[:, : motion.context] = 0.0
    tolerance = TOLERANCES[name] * torch.as_tensor(scale).expand(len(series))
    tolerance = torch.where(motion.kind[""], FOUND.get(name, 1.0), 1.0) * tolerance
    return Check(name, judged, tolerance, decided & motion.sure, lost, motion.context)


def _acceleration(motion: _Motion) -> Check:
    pull, worst = motion.gravity[:, None, None], torch.zeros_like(motion.tracks.background)
    for h, second in motion.second.items():
        clear = motion.clear[h] if h < 4 else motion.clear[h] & ~motion.unseen[:, None, None]
        off = (second - h * h * pull).norm(dim=-1)
        worst = torch.maximum(worst, _series(torch.where(clear, off, 0.0)))
    return _check(motion, "acceleration", worst, motion.free)


def _momentum(motion: _Motion) -> Check:
    p, c = motion.tracks.position, motion.context
    frames = torch.arange(p.shape[1], dtype=p.dtype)
    share = (motion.mass / motion.mass.sum(1, keepdim=True).clamp(min=1e-9))[:, None, :, None]
    middle = (share * p).sum(2) - 0.5 * frames[:, None] ** 2 * motion.gravity[:, None]
    seen = frames[:c] - frames[:c].mean()
    before = torch.einsum("t,btx->bx", seen / (seen**2).sum(), middle[:, :c])
    way = min(_WAY, c - 1)
    series = torch.zeros_like(motion.tracks.background)
    series[:, way:] = ((middle[:, way:] - middle[:, :-way]) / way - before[:, None]).norm(dim=-1).nan_to_num(0.0)
    pace = (share[..., 0] * (p[:, c - 1] - p[:, 0]).norm(dim=-1)[:, None]).sum((1, 2)) / (c - 1)
    pace = pace.nan_to_num(1.0).clamp(min=0.05)
    return _check(
        motion, "momentum", series / pace[:, None], motion.free & ~motion.grounded & ~motion.unseen, 1 / (way * pace)
    )


def _energy(motion: _Motion) -> Check:
    p, pull = motion.tracks.position, motion.gravity[:, None, None]
    share = (motion.mass / motion.mass.sum(1, keepdim=True).clamp(min=1e-9))[:, None]
    velocity, between = p[:, 1:] - p[:, :-1], (p[:, 1:] + p[:, :-1] - pull / 4) / 2  # both at half a frame
    speed = (velocity**2).sum(-1)
    each = speed / 2 - (between * pull).sum(-1)

    def level(whole: Tensor) -> Tensor:
        total, count = torch.where(whole, (share * each).nan_to_num(0.0).sum(2), 0.0), whole.to(p.dtype)
        mean, held = total.clone(), count.clone()
        for k in (1, 2):  # over three intervals, in which the noise of the positions telescopes
            mean[:, k:] += total[:, :-k]
            held[:, k:] += count[:, :-k]
        return torch.where(whole, mean / held.clamp(min=1), torch.inf)

    # the least is that of flights; what rises is looked for at contacts too, where a chord is no faster than its path
    # but not of found things, whose masks join there
    seen, whole = (~each.isnan()).all(2), (motion.untouched & ~each.isnan()).all(2)
    rise = level(torch.where(motion.kind[""][:, None], whole, seen))[:, 3:] - level(whole).cummin(1).values[:, :-3]
    rise, held = rise.nan_to_num(0.0, 0.0, 0.0).clamp(min=0), whole.to(p.dtype)
    rms = (((share * speed.nan_to_num(0.0)).sum(2) * held).sum(1) / held.sum(1).clamp(min=1)).sqrt()
    series = torch.zeros_like(motion.tracks.background)
    series[:, 4:] = rise / rms.clamp(min=0.1)[:, None]
    return _check(motion, "energy", series, motion.free & ~motion.unseen)


def _free_fall(motion: _Motion) -> Check:
    pull = motion.gravity.norm(dim=1).clamp(min=1e-6)
    total = torch.zeros_like(motion.tracks.position[:, 0, :, :])
    weight = torch.zeros_like(total[..., 0])
    for h, second in motion.second.items():
        use = motion.clear[h] & ~second[..., 0].isnan()
        use[:, : motion.context + h - 1] = False  # the middle is the last frame of the context, or later
        total += (h * h * torch.where(use[..., None], second, 0.0)).sum(1)
        weight += h**4 * use.sum(1)
    weight = weight.sum(1)
    off = (total.sum(1) / weight.clamp(min=1)[:, None] - motion.gravity).norm(dim=1) / pull
    series = torch.zeros_like(motion.tracks.background)
    series[:, motion.context :] = off[:, None]
    decided = motion.free & motion.falling & ~motion.found & (weight >= 48)
    return _check(motion, "free_fall", series, decided, 1 / (pull * weight.clamp(min=1).sqrt()))


class _Kink(NamedTuple):
    """The strongest change of a relative velocity: (B, M) each, vectors (B, M, 2)."""

    size: Tensor  # px in D_1
    time: Tensor  # frames
    at: Tensor  # where, by the way in
    before: Tensor  # velocity
    after: Tensor


def _kink(at: Tensor, context: int, touch: Tensor) -> _Kink:
    """Find it in relative positions (B, T, M, 2) without gravity, from lines through three frames on either side."""
    frames = at.shape[1]
    change = _second(at, 1)[:, 2:].norm(dim=-1).nan_to_num(0.0)  # at frames 1 .. T - 2
    change[:, : max(context - 2, 2)] = 0.0
    change[:, frames - 4 :] = 0.0
    size, middle = change.max(1)
    middle = middle + 1

    def pick(shift: int) -> Tensor:
        index = (middle + shift).clamp(0, frames - 1)
        return at.gather(1, index[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]

    after_by = (frames - 1 - (middle + 1)).clamp(1, 3).to(at.dtype)
    before = (pick(-1) - pick(-4)) / 3
    after = torch.where((after_by >= 3)[..., None], (pick(4) - pick(1)) / 3, (pick(2) - pick(1)))
    gap, turn = pick(1) - after - (pick(-1) + before), after - before  # both lines at the middle frame
    when = -(gap * turn).sum(-1) / (turn * turn).sum(-1).clamp(min=1e-6)
    when = when.clamp(-2, 2)
    return _Kink(size, middle + when, pick(-1) + (1 + when)[..., None] * before, before, after)


def _contacts(motion: _Motion) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of pairs and of things on the ground (B, M): distance from touching, speeds in and out, and whether."""
    p, c = motion.tracks.position, motion.context
    frames = torch.arange(p.shape[1], dtype=p.dtype)[:, None, None]
    pair = motion.pair
    between = p[:, :, pair[1]] - p[:, :, pair[0]]
    hit = _kink(between, c, between)
    way = hit.at / hit.at.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    radii = motion.radius[:, pair].sum(1)
    gap = hit.at.norm(dim=-1) - radii
    inwards, outwards = -(hit.before * way).sum(-1), (hit.after * way).sum(-1)
    there = (hit.size > _KINK) & motion.free[:, None] & (inwards > 0.1)
    pull = motion.gravity[:, None, None]
    down = _kink(p - 0.5 * frames**2 * pull, c, p)
    normal, fall = motion.normal[:, 0], motion.gravity[:, None]
    at = down.at + 0.5 * down.time[..., None] ** 2 * fall
    level = motion.height[:, 0] + ((p[:, 0] - at) * normal).sum(-1)
    sink = ((down.before + down.time[..., None] * fall) * normal).sum(-1)
    leap = -((down.after + down.time[..., None] * fall) * normal).sum(-1)
    bounce = (down.size > _KINK) & motion.free[:, None] & (sink > 0.1)
    return (
        torch.cat([gap, level], 1).nan_to_num(0.0),
        torch.cat([inwards, sink], 1).nan_to_num(0.0),
        torch.cat([outwards, leap], 1).nan_to_num(0.0),
        torch.cat([there & ~(motion.grounded | motion.unseen)[:, None], bounce], 1),
    )


def _restitution(motion: _Motion) -> Check:
    _, inwards, outwards, there = _contacts(motion)
    speed = torch.where(there, inwards, 1.0).clamp(min=0.1)
    gain = torch.where(there, (outwards / speed - 1).clamp(min=0), 0.0)
    return _worst_contact(motion, "restitution", gain, speed, there)


def _contact_time(motion: _Motion) -> Check:
    gap, inwards, _, there = _contacts(motion)
    speed = torch.where(there, inwards, 1.0).clamp(min=0.1)
    return _worst_contact(motion, "contact_time", torch.where(there, gap.abs() / speed, 0.0), speed, there)


def _worst_contact(motion: _Motion, name: str, each: Tensor, speed: Tensor, there: Tensor) -> Check:
    """Return the check of the contact that exceeds most, whose tolerance is in units of the speed."""
    if not each.shape[1]:
        return _check(motion, name, torch.zeros_like(motion.tracks.background), torch.zeros_like(motion.free))
    index = (each * speed).argmax(1, keepdim=True)
    series = torch.zeros_like(motion.tracks.background)
    series[:, motion.context :] = each.gather(1, index)
    return _check(motion, name, series, there.any(1), 1 / speed.gather(1, index)[:, 0])


def _pendulum(motion: _Motion) -> Check:
    p, c = motion.tracks.position, motion.context
    if p.shape[2] < 2 or not bool(motion.kind["pendulum"].any()):
        return _check(motion, "pendulum", torch.zeros_like(motion.tracks.background), torch.zeros_like(motion.free))
    pivot = p[:, :c, 1].mean(1, keepdim=True)
    arm, pull = p[:, :, 0] - pivot, motion.gravity.norm(dim=1).clamp(min=1e-6)
    down = motion.gravity / pull[:, None]
    length = arm.norm(dim=-1)
    mean = length[:, :c].mean(1)
    angle = torch.atan2(down[:, None, 0] * arm[..., 1] - down[:, None, 1] * arm[..., 0], (arm * down[:, None]).sum(-1))
    series = torch.maximum((length - mean[:, None]).abs(), (p[:, :, 1] - pivot).norm(dim=-1)).nan_to_num(0.0)
    for h in (1, 2):
        force = angle.sin() * (pull / mean.clamp(min=1e-6))[:, None]
        mixed = (force[:, 2 * h :] + 10 * force[:, h:-h] + force[:, : -2 * h]) / 12
        second = angle[:, 2 * h :] - 2 * angle[:, h:-h] + angle[:, : -2 * h]
        off = (second + h * h * mixed).abs() * mean[:, None]
        series[:, 2 * h :] = torch.maximum(series[:, 2 * h :], off.nan_to_num(0.0))
    return _check(motion, "pendulum", series, motion.kind["pendulum"] & ~motion.found)


def _rolling(motion: _Motion) -> Check:
    p = motion.tracks.position
    if p.shape[2] < 2 or not bool(motion.kind["rolling"].any()):
        return _check(motion, "rolling", torch.zeros_like(motion.tracks.background), torch.zeros_like(motion.free))
    mark = p[:, :, 1] - p[:, :, 0]
    turn = torch.atan2(
        mark[:, :-1, 0] * mark[:, 1:, 1] - mark[:, :-1, 1] * mark[:, 1:, 0], (mark[:, :-1] * mark[:, 1:]).sum(-1)
    )
    normal = motion.normal[:, 0]
    along = torch.stack([-normal[..., 1], normal[..., 0]], -1)  # where a positive turn rolls to is -along
    way = ((p[:, 1:, 0] - p[:, :1, 0]) * along).sum(-1)
    slip = motion.radius[:, :1] * turn.nan_to_num(0.0).cumsum(1) + way
    series = motion.height[..., 0].abs().clone()
    series[:, 1:] = torch.maximum(series[:, 1:].nan_to_num(0.0), slip.abs().nan_to_num(0.0))
    pull = (motion.gravity[:, None] * along).sum(-1, keepdim=True) * along * (2 / 3)
    for h, second in motion.second.items():
        off = (second[:, :, 0] - h * h * pull).norm(dim=-1).nan_to_num(0.0)
        off[:, : 2 * h] = 0.0
        series = torch.maximum(series.nan_to_num(0.0), off)
    decided = motion.kind["rolling"] & ~motion.found & motion.grounded
    return _check(motion, "rolling", series, decided)


def _rigidity(motion: _Motion) -> Check:
    tracks, c = motion.tracks, motion.context
    size = torch.cat([(tracks.area / torch.pi).clamp(min=0).sqrt()[..., None], tracks.axes], -1)
    whole = tracks.visible & ~tracks.border
    own = torch.where(whole[..., None], size, torch.nan)[:, :c].nanmedian(1, keepdim=True).values
    off = torch.where(whole, (size - own).abs().amax(-1), 0.0)
    off[:, :, 1:] *= ~motion.kind["rolling"][:, None, None]  # a mark is too small
    near = torch.where(motion.kind[""], _MERGED, -_NEAR)[:, None, None]  # of found things the masks join before
    behind = (motion.apart - motion.cut < near) & (motion.split[:, None] | (motion.cut > 0))
    for one, ends in zip(behind.unbind(2), motion.pair.T.tolist(), strict=True):
        off[:, :, ends] = torch.where(one[..., None], 0.0, off[:, :, ends])
    return _check(motion, "rigidity", _series(off), whole[:, :c].any(1).any(1))


def _permanence(motion: _Motion) -> Check:
    tracks = motion.tracks
    series = ((~tracks.visible & ~motion.loose).float() + (tracks.pieces - 1).clamp(min=0)).sum(2)
    return _check(motion, "permanence", series, torch.ones_like(motion.free))


def _overlap(motion: _Motion) -> Check:
    whole = motion.split[:, None] & (motion.cut == 0)
    depth = torch.where(whole, -motion.apart, 0.0)
    ground = -motion.height
    if ground.shape[2] > 1:
        ground = torch.where(motion.kind["rolling"][:, None, None] & (torch.arange(ground.shape[2]) > 0), 0.0, ground)
    series = torch.maximum(_series(depth), _series(ground)).clamp(min=0)
    decided = whole[:, motion.context].any(1) | motion.grounded
    return _check(motion, "overlap", series, decided)


_CHECKS: Mapping[str, Callable[[_Motion], Check]] = {
    "acceleration": _acceleration,
    "momentum": _momentum,
    "energy": _energy,
    "free_fall": _free_fall,
    "restitution": _restitution,
    "contact_time": _contact_time,
    "pendulum": _pendulum,
    "rolling": _rolling,
    "rigidity": _rigidity,
    "permanence": _permanence,
    "overlap": _overlap,
}


def verify(tracks: Tracks, meta: Meta) -> dict[str, Check]:
    """Return every check of a batch of clips.

    Parameters
    ----------
    tracks : Tracks
        Of B clips.
    meta : Meta
        What is known of them; what is not is found from the context, or leaves checks undecided.

    Raises
    ------
    InputError
        For fewer than three context frames or none after them, and kinds that are not one for each clip.
    """
    motion = _prepare(tracks, meta)
    return {name: check(motion) for name, check in _CHECKS.items()}


def newton(checks: Mapping[str, Check]) -> Tensor:
    """Return the reward without a future, shape (B,), lower is better: 0 where all is kept.

    Equation: mean over the decided checks of `NEWTON` of the mean of ``per_frame`` over the frames after the context.
    NaN where no check of motion is decided: that nothing overlaps or vanishes is no motion.
    """
    parts = [checks[name] for name in NEWTON]
    over = torch.stack([one.per_frame[:, one.context :].mean(1) for one in parts])
    moving = torch.stack([checks[name].decided for name in NEWTON if name not in ("overlap", "permanence")]).any(0)
    return torch.where(moving, over.sum(0) / torch.stack([one.decided for one in parts]).sum(0), torch.nan)
