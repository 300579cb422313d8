"""How far a clip is from one that obeys mechanics: rewards of one shape, and doors to the trainers that use them.

A reward has ``score(clips, truth=None, meta=None) -> Scores``. Clips are ``(B, T, H, W, 3)``, float in [0, 1] or uint8,
numpy or torch. Ours are costs, lower is better; a door turns them over, for every trainer climbs. The *weighted offset*
of a thing from its true track is the mean of ``w_i |p_i - true p_i|`` over the frames i that count, in pixels of the
clip; that of a clip is the mean over its things. Lengths are those of pictures 832 px wide, scaled by W / 832:

============  ==========================  ==============================  ===========================================
preset        w at a contact, beside it   contacts of the true track      a frame in which a thing is lost
============  ==========================  ==============================  ===========================================
``official``  5, 1                        `official_contacts`             does not count: the penalty is never reached
``paper``     3, 2                        `official_contacts`             costs 200 px
``fixed``     3, 2                        `contacts`                      costs 200 px, and no frame costs more
============  ==========================  ==============================  ===========================================

``newton`` needs no true clip: the mean excess of the checks of `upright.video.verifiers`. ``pixel_l1`` is the mean
absolute difference of the pictures.

References
----------
Zhang et al., "PhysRVG", arXiv 2601.11087 (2026), and its code as released in June 2026: weights 1, 2, 3, the detector
of ``official``, three increments that all land on the centre, and a penalty behind a ``continue``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.signal import find_peaks
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from upright.contract import InputError
from upright.lazy import find, package_of
from upright.video.tracks import Meta, Tracks, as_clips, find_objects, track_colours
from upright.video.verifiers import NEWTON, verify
from upright.video.verifiers import newton as mean_excess

__all__ = [
    "Best",
    "Reward",
    "Scores",
    "best_of",
    "compose",
    "contacts",
    "fixed",
    "flow_factory",
    "flow_grpo",
    "load_reward",
    "newton",
    "official",
    "official_contacts",
    "paper",
    "pixel_l1",
    "reward_names",
    "trl",
]

WIDTH = 832  # px, the width for which lengths are given
_LOST, _PIXELS, _PROMINENCE, _APART = 200.0, 10.0, 2.0, 3  # px, px^2, px a frame^2, frames: as released
_HALF, _THRESHOLD, _QUIET = 2, 5.5, 0.01  # frames either side; noise levels, and px, set on seeds 1 and 2 of the tests


class Scores(NamedTuple):
    """What a reward says of B clips.

    Parameters
    ----------
    value : Tensor, shape (B,)
        NaN where nothing could be measured.
    per_frame : Tensor, shape (B, T)
        What each frame adds; 0 in the context.
    parts : mapping of name to Tensor, shape (B,)
    lost : Tensor of bool, shape (B, T, K)
        Frames after the context in which a thing was not found.
    """

    value: Tensor
    per_frame: Tensor
    parts: dict[str, Tensor]
    lost: Tensor


@runtime_checkable
class Reward(Protocol):
    """What a reward is; a plug-in registers a callable without arguments that returns one, in ``upright.rewards``."""

    @property
    def name(self) -> str:
        """Return what it is called."""

    @property
    def needs_truth(self) -> bool:
        """Return whether it needs the true clips."""

    @property
    def lower_is_better(self) -> bool:
        """Return whether it is a cost."""

    def score(self, clips: Any, truth: Any = None, meta: Meta | None = None) -> Scores:
        """Score clips, with the true ones or their tracks, and what is known of them."""


# -- contacts -------------------------------------------------------------------------------------------------------


def official_contacts(position: Tensor, *, px: float = 1.0) -> Tensor:
    """Return contact frames of each track as the released reward finds them, bool of shape (B, T, K).

    Peaks of ``s_j = |p_{j+2} - 2 p_{j+1} + p_j|`` with a prominence of 2 px, at least 3 frames apart, called j + 2. Of
    truncated centroids this lies at the noise: kept to compare with, and for no other use.

    Parameters
    ----------
    position : Tensor, shape (B, T, K, 2)
        Truncated, as `official` does; a thing that is lost stands at (-1, -1) there.
    px : float
        Pixels of the clip in one of a picture 832 px wide.
    """
    bend = position.diff(n=2, dim=1).norm(dim=-1).double().cpu().numpy()
    found = np.zeros(position.shape[:3], dtype=bool)
    for b, k in np.ndindex(len(bend), bend.shape[2]):
        peaks = find_peaks(bend[b, :, k], prominence=_PROMINENCE * px, distance=_APART)[0]
        found[b, peaks + 2, k] = True
    return torch.from_numpy(found)


def contacts(position: Tensor, border: Tensor | None = None) -> Tensor:
    """Return frames in which the velocities of the things jump together, bool of shape (B, T).

    The jump at a frame is what a kink there explains of the 5 positions around it, less its median over the clip, so
    that gravity is none. It is divided by its noise: the larger of what the third differences of the track, and the
    jumps themselves, show of it by their median absolute value. A contact is a peak, over 5 frames, of the root of the
    sum of squares over things that is above 5.5.

    Parameters
    ----------
    position : Tensor, shape (B, T, K, 2)
        Sub-pixel; NaN where lost.
    border : Tensor of bool, shape (B, T, K), optional
        Frames that are left out: a thing that is cut off by the border seems to brake.
    """
    size = 2 * _HALF + 1
    if position.shape[1] < size + 3 or not position.shape[2]:
        return torch.zeros(position.shape[:2], dtype=torch.bool)
    if border is not None:
        position = torch.where(border[..., None], torch.nan, position)
    kink = torch.arange(-_HALF, _HALF + 1).abs().to(position)
    kink = kink - kink.mean()
    jump = (position.unfold(1, size, 1) * kink).sum(-1) * (2.0 / (kink**2).sum())
    jump = jump - jump.nanmedian(1, keepdim=True).values
    third = position.diff(n=3, dim=1)
    third = third - third.nanmedian(1, keepdim=True).values
    # of unit noise: a third difference has variance 20, a jump 4 / sum kink^2; a median is 0.6745 deviations
    noise = torch.maximum(_median(third) * (0.2 / (kink**2).sum()).sqrt(), _median(jump)) / 0.6745
    level = (jump / noise.nan_to_num(torch.inf).clamp(min=_QUIET)[:, None, :, None]).nan_to_num(0.0)
    level = pad((level**2).sum((2, 3)).sqrt(), (_HALF, _HALF))
    return (level == max_pool1d(level[:, None], size, 1, _HALF)[:, 0]) & (level > _THRESHOLD)


def _median(series: Tensor) -> Tensor:
    """Return the median absolute value of each thing, over time and both axes, shape (B, K)."""
    return series.abs().transpose(1, 2).flatten(2).nanmedian(-1).values


# -- rewards --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
    """A reward of which lower is better; one that is `tracked` also takes Tracks in place of clips."""

    name: str
    needs_truth: bool
    tracked: bool
    body: Callable[[Any, Any, Meta], Scores]
    lower_is_better: bool = True

    def score(self, clips: Any, truth: Any = None, meta: Meta | None = None) -> Scores:
        meta = meta or Meta()
        if self.needs_truth and truth is None:
            got = f"{self.name} without truth"
            raise InputError(got, "true clips, or tracks of them", "pass truth, or take newton")
        own, true = (
            one if one is None or (self.tracked and isinstance(one, Tracks)) else as_clips(one, frames=meta.context + 1)
            for one in (clips, truth if self.needs_truth else None)
        )
        shapes = [
            tuple((one.visible if isinstance(one, Tracks) else one).shape[:2]) for one in (own, true) if one is not None
        ]
        if len(set(shapes)) > 1:
            got = f"{shapes[1][0]} true clips of {shapes[1][1]} frames for {shapes[0][0]} of {shapes[0][1]}"
            raise InputError(got, "the true clip of each, as long", "pair them")
        return self.body(own, true, meta)


class _Style(NamedTuple):
    """A row of the table above."""

    centre: float
    beside: float
    released: bool  # truncated centroids and their contacts, and no bound of an offset
    counts_lost: bool


def paper() -> Reward:
    """Return the weighted offset of the paper: 3 at a contact, 2 beside it, 200 px for a lost frame."""
    return _Cost("paper", True, True, partial(_tracked, partial(_offset, _Style(3.0, 2.0, True, True))))


def official() -> Reward:
    """Return the weighted offset as it was released, errors included: a thing that vanishes costs nothing."""
    return _Cost("official", True, True, partial(_tracked, partial(_offset, _Style(5.0, 1.0, True, False))))


def fixed() -> Reward:
    """Return the weighted offset of sub-pixel centroids, contacts above the noise, and lost frames that cost most."""
    return _Cost("fixed", True, True, partial(_tracked, partial(_offset, _Style(3.0, 2.0, False, True))))


def newton() -> Reward:
    """Return the reward that needs no true clip: by how many tolerances mechanics is broken, 0 where it is kept."""
    return _Cost("newton", False, True, partial(_tracked, _broken))


def pixel_l1() -> Reward:
    """Return the mean absolute difference of the pictures after the context."""
    return _Cost("pixel_l1", True, False, _pixels)


def _tracked(score: Callable[[Tracks, Tracks, Meta, float], Scores], clips: Any, truth: Any, meta: Meta) -> Scores:
    """Score tracks: all clips at once where colours are known, else each by itself, by the things that it shows."""
    if isinstance(clips, Tracks) and meta.backdrop is None:
        raise InputError("tracks without a backdrop in meta", "one, or clips", "pass clips: their width is the scale")
    px = (meta.backdrop.shape[2] if isinstance(clips, Tracks) and meta.backdrop is not None else clips.shape[3]) / WIDTH
    if meta.colour is not None or isinstance(clips, Tracks):
        own, true = (track_colours(one, meta) if isinstance(one, Tensor) else one for one in (clips, truth))
        return score(own, true or own, meta, px)
    each = list[Scores]()
    for i, clip in enumerate(clips):
        own = true = find_objects(clip, context=meta.context)
        if truth is not None:
            true = truth[[i]] if isinstance(truth, Tracks) else find_objects(truth[i], context=meta.context)
            own = _matched(own, true, meta.context)
        each.append(score(own, true, meta[[i]], px))
    most = max(one.lost.shape[2] for one in each)
    lost = torch.cat([pad(one.lost, (0, most - one.lost.shape[2])) for one in each])
    parts = {name: torch.cat([one.parts[name] for one in each]) for name in each[0].parts}
    return Scores(torch.cat([one.value for one in each]), torch.cat([one.per_frame for one in each]), parts, lost)


def _matched(own: Tracks, true: Tracks, context: int) -> Tracks:
    """Return the tracks of one clip in the order of the true things, by where they are in the context they share."""
    here, there = (one.position[0, :context].nanmean(0) for one in (own, true))
    rows, columns = linear_sum_assignment(torch.cdist(there, here).nan_to_num(1e9).numpy())
    order = torch.full((there.shape[0],), here.shape[0])
    order[torch.as_tensor(rows)] = torch.as_tensor(columns)  # the others are a thing that is never there, put last
    new = {}
    for name in ("position", "area", "axes", "visible", "border", "confidence", "pieces"):
        value = getattr(own, name)
        none = value.new_full((*value.shape[:2], 1, *value.shape[3:]), torch.nan if name == "position" else 0)
        new[name] = torch.cat([value, none], 2)[:, :, order]
    return replace(own, **new)


def _offset(style: _Style, own: Tracks, true: Tracks, meta: Meta, px: float) -> Scores:
    """Return the weighted offset; px are those of the clip in one of a picture of 832."""
    seen, lost, here, there = true.visible, ~own.visible, own.position, true.position
    if style.released:
        lost = lost | (own.area < _PIXELS * px**2)
        here, there = ((p / px).trunc() * px for p in (here, there))
        there = torch.where(seen[..., None], there, -px)  # where the released reward puts what it does not find
        hit = official_contacts(there, px=px).float()
    else:
        hit = contacts(there, true.border)[..., None].expand_as(seen).float()
    near = pad(hit, (0, 0, 1, 1))
    weight = 1.0 + (style.centre - 1.0) * hit + (style.beside - 1.0) * (near[:, 2:] + near[:, :-2])
    away, most = (here - there).norm(dim=-1), _LOST * px
    away = torch.where(lost, most, away if style.released else away.clamp(max=most))  # far off, it had better vanish
    after = _after(seen, meta)
    counted = after & (~lost | style.counts_lost) & (seen | style.released)
    cost = torch.where(counted, weight * away, 0.0)
    judged = (seen & after).any(1)
    if not bool(judged.any(1).all()):
        got = f"{int((~judged.any(1)).sum())} true clips in which nothing is seen after the context"
        raise InputError(got, "things that stay in the picture", "leave those clips out")
    each = torch.where(counted.any(1), cost.sum(1) / counted.sum(1).clamp(min=1), most)
    things, found, gone = judged.sum(1), counted & ~lost, lost & after & seen
    parts = {
        "offset": torch.where(found, away, 0.0).sum((1, 2)) / found.sum((1, 2)).clamp(min=1),
        "lost": gone.sum((1, 2)) / (after & seen).sum((1, 2)),
    }
    return Scores(torch.where(judged, each, 0.0).sum(1) / things, cost.sum(2) / things[:, None], parts, gone)


def _after(seen: Tensor, meta: Meta) -> Tensor:
    """Return which entries (B, T, K) are judged."""
    return (torch.arange(seen.shape[1]) >= meta.context)[:, None].expand_as(seen)


def _broken(own: Tracks, true: Tracks, meta: Meta, px: float) -> Scores:
    """Return the mean excess of the checks that need no true clip."""
    checks = verify(own, meta)
    judged = torch.stack([checks[name].decided for name in NEWTON]).sum(0).clamp(min=1)
    frames = torch.stack([checks[name].per_frame for name in NEWTON]).sum(0) / judged[:, None]
    parts = {name: torch.where(one.decided, one.excess, torch.nan) for name, one in checks.items()}
    return Scores(mean_excess(checks), frames, parts, ~own.visible & _after(own.visible, meta))


def _pixels(clips: Tensor, truth: Tensor, meta: Meta) -> Scores:
    """Return the mean absolute difference of the pictures."""
    each = (clips - truth).abs().mean((2, 3, 4)) * (torch.arange(clips.shape[1]) >= meta.context)
    return Scores(each[:, meta.context :].mean(1), each, {}, torch.zeros((*each.shape, 0), dtype=torch.bool))


@dataclass(frozen=True)
class _Composed:
    """A weighted sum of rewards, each divided by its standard deviation among the clips that are compared."""

    name: str
    rewards: tuple[tuple[Reward, float], ...]
    group: int | None
    lower_is_better: bool = True

    @property
    def needs_truth(self) -> bool:
        return any(one.needs_truth for one, _ in self.rewards)

    def score(self, clips: Any, truth: Any = None, meta: Meta | None = None) -> Scores:
        total, frames, parts = torch.zeros(()), torch.zeros(()), dict[str, Tensor]()
        for reward, weight in self.rewards:
            one = reward.score(clips, truth, meta)
            if len(one.value) % (self.group or len(one.value)) or (self.group or len(one.value)) < 2:
                got = f"{len(one.value)} clips in groups of {self.group or len(one.value)}"
                raise InputError(got, "whole groups of at least 2", "score the clips of a group together")
            grouped = one.value.reshape(-1, self.group or len(one.value))
            spread = grouped.std(1, keepdim=True)
            scale = torch.where(spread > 1e-6 * (1.0 + grouped.abs()), 1.0 / spread, 0.0).reshape(-1)
            scale = scale * (weight if reward.lower_is_better else -weight)
            parts[reward.name] = one.value
            total, frames = total + scale * one.value, frames + scale[:, None] * one.per_frame
        return Scores(total, frames, parts, one.lost)


def compose(weights: Mapping[str, float], *, group: int | None = None) -> Reward:
    """Return the weighted sum of rewards, each divided by its standard deviation, so that a weight is a share.

    A reward that is alike for all clips of a group adds nothing. Lower is better, whatever it is of the parts.

    Parameters
    ----------
    weights : mapping of name to float
        Above 0.
    group : int, optional
        Clips of one context, one after another, that are compared; by default all that are scored together.

    Raises
    ------
    InputError
        For an unknown name, no weight above 0, and when scoring a group of fewer than 2 clips.
    """
    if not weights or not all(weight > 0 for weight in weights.values()):
        raise InputError(f"weights {dict(weights)}", "at least one name, weights above 0", "correct them")
    name = " + ".join(f"{weight:g} {one}" for one, weight in weights.items())
    return _Composed(name, tuple((load_reward(one), float(weight)) for one, weight in weights.items()), group)


# -- by name --------------------------------------------------------------------------------------------------------

_BUNDLED: Mapping[str, Callable[[], Reward]] = {
    "fixed": fixed,
    "newton": newton,
    "official": official,
    "paper": paper,
    "pixel_l1": pixel_l1,
}


def reward_names() -> list[str]:
    """List the bundled rewards and those of other packages, importing none."""
    return [*_BUNDLED, *find("rewards", _BUNDLED)]


def load_reward(name: str) -> Reward:
    """Return a reward by name.

    Raises
    ------
    InputError
        For an unknown name, and a plug-in that does not load or gives no reward.
    """
    if name in _BUNDLED:
        return _BUNDLED[name]()
    plugins = find("rewards", _BUNDLED)
    if name not in plugins:
        known = [*_BUNDLED, *plugins]
        near = get_close_matches(name, known, 1)
        todo = f"did you mean {near[0]!r}?" if near else "name one of these"
        raise InputError(f"{name!r} is no reward", ", ".join(known), todo)
    try:
        found = plugins[name].load()()
    except Exception as error:  # whatever a stranger's module raises
        got = f"reward {name!r} of package {package_of(plugins[name])} does not load: {type(error).__name__}: {error}"
        todo = f"repair or uninstall {package_of(plugins[name])}"
        raise InputError(got, "a callable without arguments that returns a reward", todo) from error
    if not isinstance(found, Reward):
        got = f"reward {name!r} of package {package_of(plugins[name])}, a {type(found).__name__}"
        raise InputError(got, "name, needs_truth, lower_is_better and score(clips, truth, meta)", "add what it lacks")
    return found


# -- doors ----------------------------------------------------------------------------------------------------------


def _frames(videos: Any) -> Tensor:
    """Return clips as trainers and pipelines hand them on: a batch or a list, of pictures, channels first or last."""
    each = [_frames_of(video) for video in videos]
    if len({one.shape for one in each}) != 1:
        got = f"videos of shapes {sorted({tuple(one.shape) for one in each})}"
        raise InputError(got, "at least one, all of one length and size", "bring them to one")
    return as_clips(torch.stack(each), frames=2)


def _frames_of(video: Any) -> Tensor:
    """Return one clip (T, H, W, 3), whatever its frames are."""
    if isinstance(video, Sequence):  # pictures, or an array a frame
        video = np.stack([np.asarray(one.convert("RGB") if hasattr(one, "convert") else one) for one in video])
    found = torch.as_tensor(video).detach().cpu()
    found = found.float() if found.is_floating_point() else found
    return found.movedim(1, -1) if found.ndim == 4 and found.shape[1] == 3 and found.shape[-1] != 3 else found


def _climbed(reward: Reward, videos: Any, given: Any, context: int) -> tuple[list[float], dict[str, Any]]:
    """Return scores of which higher is better, and what else is known; the worst score where nothing was measured."""
    clips, truth = _frames(videos), None
    if reward.needs_truth:
        if not isinstance(given, Tensor | np.ndarray) and any(one is None for one in given):
            got = f"{reward.name} without truth"
            raise InputError(got, "the true clip of each, or its file", "add a field 'truth'")
        truth = _frames([_read(one, clips) if isinstance(one, str | Path) else one for one in given])
    found = reward.score(clips, truth, Meta(context=context))
    value = -found.value if reward.lower_is_better else found.value
    undecided = value.isnan()
    if bool(undecided.all()):
        got = f"{len(value)} clips that {reward.name} cannot measure"
        raise InputError(got, "clips of moving things", "look at one")
    value = torch.where(undecided, value[~undecided].min(), value)
    parts = {name: one.tolist() for name, one in found.parts.items()}
    return value.tolist(), {"undecided": undecided.tolist(), **parts}


def _read(path: str | Path, clips: Tensor) -> Any:
    from upright.video.files import read_clip  # PyAV, which the other doors need not have

    return read_clip(path, size=(clips.shape[2], clips.shape[3])).frames[: clips.shape[1]]


def flow_grpo(reward: Reward, *, context: int = 5) -> Callable[..., tuple[list[float], dict[str, Any]]]:
    """Return a score function of Flow-GRPO, ``fn(images, prompts, metadata) -> (scores, info)``, for its `multi_score`.

    `images` are (B, T, 3, H, W) in [0, 1]; a reward that needs the true clip finds it, or its file, as ``truth`` in the
    metadata of each prompt. A clip that cannot be measured gets the worst score of the batch and stands in
    ``info["undecided"]``.
    """

    def fn(images: Any, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        return _climbed(reward, images, [(one or {}).get("truth") for one in metadata], context)

    return fn


def flow_factory(reward: Reward, *, context: int = 5) -> type:
    """Return a `PointwiseRewardModel` of Flow-Factory, called with ``prompt, video=..., **fields``, for its YAML.

    A reward that needs the true clip asks for a field ``truth``. Else as `flow_grpo`. Where Flow-Factory is not
    installed the class has no base, and what it returns has ``rewards`` and ``extra_info`` alone.
    """
    try:
        host = import_module("flow_factory.rewards")
    except ImportError:
        host = SimpleNamespace(PointwiseRewardModel=object, RewardModelOutput=SimpleNamespace)  # type: ignore[assignment]
    base: Any = host.PointwiseRewardModel

    class UprightReward(base):  # type: ignore[misc]
        required_fields = ("prompt", "video", "truth") if reward.needs_truth else ("prompt", "video")
        use_tensor_inputs = True

        def __call__(self, prompt: Sequence[str], video: Any = None, truth: Any = None, **fields: Any) -> Any:
            scores, info = _climbed(reward, video, [None] if truth is None else truth, context)
            return host.RewardModelOutput(rewards=torch.tensor(scores), extra_info=info)

    return UprightReward


def trl(reward: Reward, *, context: int = 5) -> Callable[..., list[float]]:
    """Return a reward function of TRL, ``fn(prompts, completions, **columns) -> list[float]``; completions are clips.

    The true clips are a column ``truth``. Else as `flow_grpo`.
    """

    def fn(prompts: Sequence[Any], completions: Any, **columns: Any) -> list[float]:
        return _climbed(reward, completions, columns.get("truth", [None]), context)[0]

    fn.__name__ = reward.name  # which the trainer logs by
    return fn


class Best(NamedTuple):
    """The best of several clips, float32 of shape (T, H, W, 3), its place among them, and scores, higher is better."""

    clip: Tensor
    place: int
    scores: list[float]


def best_of(pipeline: Any, n: int, reward: Reward, *, truth: Any = None, context: int = 5, **call: Any) -> Best:
    """Call a diffusers pipeline n times and return the clip that the reward likes best.

    Parameters
    ----------
    pipeline : callable
        Returns videos as ``frames``, as pictures, numpy or torch, or first of a tuple. A `generator` goes on from call
        to call.
    n : int
        Calls; each may give several videos (``num_videos_per_prompt``).
    truth : array, shape (T, H, W, 3), or a file, optional
        For a reward that needs it.
    **call
        For the pipeline.

    Raises
    ------
    InputError
        For an n below 1, an output without videos, and clips of which none can be measured.
    """
    if n < 1:
        raise InputError(f"n = {n}", "at least 1", "name the number of calls")
    videos = list[Tensor]()
    for _ in range(n):
        output = pipeline(**call)
        frames = output[0] if isinstance(output, tuple) else getattr(output, "frames", None)
        if frames is None:
            raise InputError(f"a {type(output).__name__} without frames", "a pipeline of videos", "take another")
        videos += list(_frames(frames))
    scores, _ = _climbed(reward, videos, [truth] * len(videos), context)
    best = int(np.argmax(scores))
    return Best(videos[best], best, scores)
