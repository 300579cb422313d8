r"""Where the things of a clip are: positions, areas and axes over time, from pixels.

Problem: given frames ``(T, H, W, 3)``, find K things in each. Two answers.

*Colours known* (`track_colours`). A pixel is a mixture of the backdrop b and the colours c_k of the things,
``x = b + sum_k w_k (c_k - b)``, so the weights are ``w = pinv([c_1 - b, ..., c_K - b]) (x - b)``, one pseudo-inverse a
pixel of the backdrop. A later thing lies in front: ``w_k = a_k prod_{j > k} (1 - a_j)`` gives the coverage a_k of each
thing by itself. Coverage is stretched, ``clip((a - t) / (1 - 2 t), 0, 1)``, which takes noise away and leaves the area
of an antialiased edge as it was. Area, centroid and second moments are sums over it, first with t = 0.4 over the
picture, which finds a thing, then with t = 0.05 in a square around it. The semi-axes are ``2 sqrt(eigenvalues of the
covariance)``, so that a disc of radius r has (r, r).

*Colours unknown* (`find_objects`). Components of the difference to a backdrop that is found from the clip itself are
assigned to things by distance, colour and area (the Hungarian method), and a Kalman filter of constant velocity says
where each is expected. Things are born in the context frames only.

Points are (x, y), x to the right and y down, the centre of pixel (row i, column j) at (j, i); times are frames.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from upright.contract import InputError
from upright.video.render import backdrop
from upright.video.scenes import Scenes

__all__ = ["Meta", "Tracks", "as_clips", "find_objects", "meta_of", "ring", "track_colours"]

Pixels = NDArray[np.float32]
_COARSE, _FINE = 0.4, 0.05  # coverage below it is noise, above 1 less it is whole: to find a thing, to measure it
_LOST, _LEAST = 0.1, 1.0  # share of its own area, and px, below which a thing is lost
_HIDDEN = 0.3  # least visible share of a pixel from which the coverage behind is still computed
_LONG = 1.3  # times the radius it should have, and 1 px: a longer mask is looked at for pieces
_CHUNK = 1 << 20  # numbers of clips that are unmixed at a time, so that they stay in the cache


@dataclass(frozen=True, eq=False)
class Meta:
    """What is known of a batch of clips beside its pixels; None (or no kind) is not known.

    Parameters
    ----------
    context : int
        Leading frames that are given; from there on they are judged.
    kind : sequence of str
        Of each clip, see `scenes.KINDS`. Thing 1 of a ``rolling`` clip is a mark on thing 0, thing 1 of a
        ``pendulum`` the pivot.
    colour : Tensor, shape (B, K, 3)
        In [0, 1].
    backdrop : Tensor, shape (B, H, W, 3)
        The picture without things.
    radius, mass : Tensor, shape (B, K)
        In px, and in any one unit.
    gravity : Tensor, shape (B, 2)
        Acceleration (x, y) of a free body in px/frame^2.
    ground : Tensor, shape (B, 3)
        ``a x + b y >= c`` is solid, (a, b) a unit vector; NaN where there is none.
    """

    context: int = 5
    kind: Sequence[str] = ()
    colour: Tensor | None = None
    backdrop: Tensor | None = None
    radius: Tensor | None = None
    mass: Tensor | None = None
    gravity: Tensor | None = None
    ground: Tensor | None = None

    def __getitem__(self, index: Any) -> Meta:
        """Return the clips of an index tensor, slice or mask."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        cut: dict[str, Any] = {name: value[index] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, kind=tuple(np.array(self.kind)[_as_numpy(index)]) if len(self.kind) else (), **cut)


def meta_of(scenes: Scenes) -> Meta:
    """Return what simulated scenes say of their clips."""
    names = ("colour", "radius", "mass", "gravity", "ground")
    known = {name: torch.as_tensor(getattr(scenes, name), dtype=torch.float32) for name in names}
    return Meta(context=scenes.context, kind=tuple(map(str, scenes.kind)), backdrop=backdrop(scenes), **known)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Things of B clips over T frames.

    Parameters
    ----------
    position : Tensor, shape (B, T, K, 2)
        Centroids (x, y) in px; NaN where lost.
    area : Tensor, shape (B, T, K)
        In px.
    axes : Tensor, shape (B, T, K, 2)
        Semi-axes in px, the longer first; 0 where lost.
    visible, border : bool Tensor, shape (B, T, K)
        Whether it was found, and whether its mask touches the border of the picture (or one that is no thing here).
    confidence : Tensor, shape (B, T, K)
        In [0, 1]: how like itself it looks (area and roundness against its own); half at the border, 0 where lost.
    pieces : int Tensor, shape (B, T, K)
        Connected parts of a mask that is too long; 1 for the others, which are not counted.
    background : Tensor, shape (B, T)
        Mean absolute difference to the backdrop that the things do not explain, in [0, 1].
    """

    position: Tensor
    area: Tensor
    axes: Tensor
    visible: Tensor
    border: Tensor
    confidence: Tensor
    pieces: Tensor
    background: Tensor

    def __getitem__(self, index: Any) -> Tracks:
        """Return the clips of an index tensor, slice or mask."""
        return Tracks(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def track_colours(clips: ArrayLike | Tensor, meta: Meta) -> Tracks:
    """Track things of known colours against a known backdrop, sub-pixel, all clips at once.

    Parameters
    ----------
    clips : array or Tensor, shape (B, T, H, W, 3)
        float in [0, 1], or uint8.
    meta : Meta
        With ``colour`` and ``backdrop``; ``radius`` where known (else the median of the context frames says how large
        a thing is).

    Raises
    ------
    InputError
        For another shape, values beyond [0, 1] or NaN, and a meta without colours or backdrop, or of another shape.
    """
    x = as_clips(clips)
    n, _, height, width, _ = x.shape
    if meta.colour is None or meta.backdrop is None:
        raise InputError("a meta without colours or backdrop", "both", "pass them, or use find_objects")
    if meta.backdrop.shape != (n, height, width, 3) or len(meta.colour) != n:
        got = f"{n} clips of {height} x {width} with a backdrop of shape {tuple(meta.backdrop.shape)}"
        raise InputError(got, "colours and a backdrop for each clip", "index the meta as the clips")
    size = max(1, _CHUNK // x[0].numel())
    parts = [_track(x[i : i + size], meta[i : i + size]) for i in range(0, n, size)]
    return Tracks(**{f.name: torch.cat([getattr(one, f.name) for one in parts]) for f in fields(Tracks)})


def _track(x: Tensor, meta: Meta) -> Tracks:
    n, frames, height, width, _ = x.shape
    assert meta.colour is not None
    assert meta.backdrop is not None
    back = meta.backdrop.to(torch.float32).movedim(-1, 1).reshape(n, 3, 1, -1)
    planes = x.movedim(-1, 1).reshape(n, 3, frames, -1)
    change = torch.sub(planes, back, out=torch.empty(planes.shape))  # planes of pixels: (B, 3, T, P)
    cover = _unmix(change, meta.colour.to(torch.float32), back)
    _uncover(cover)
    fine = _stretched(cover, _FINE)
    change = change.abs_().sum(1).reshape(n, frames, height, width).mul_(1 / 3)
    marked = torch.tensor([kind == "rolling" for kind in meta.kind] or [False] * n)  # thing 1 is a mark on thing 0
    if marked.any():
        fine[marked, 0] = (fine[marked, 0] + fine[marked, 1]).clamp_(max=1)
    area, centre, axes, rim = _moments(_stretched(fine, _COARSE), height, width)
    border = rim > 0.5
    own = _own_radius(area, meta)
    long = axes[..., 0] > _LONG * own + 1
    centre, pieces = _count_pieces(fine, (height, width), centre, own, long)
    half = torch.where(pieces > 1, own, torch.minimum(axes[..., 0], 2 * own)) + 2
    near = _near_moments(fine, centre, half, height, width)
    area = torch.where(pieces > 1, area, near[0])
    axes = torch.where((pieces > 1)[..., None], axes, near[2])
    visible = area > (_LOST * torch.pi * own**2).clamp(min=_LEAST)
    ratio = area / (torch.pi * own**2)
    confidence = torch.minimum(ratio, 1 / ratio) * (axes[..., 1] + 1) / (axes[..., 0] + 1) / pieces
    confidence = torch.where(visible, confidence * torch.where(border, 0.5, 1.0), 0.0)
    position = torch.where(visible[..., None], near[1], torch.nan)
    axes = torch.where(visible[..., None], axes, 0.0)
    background = _outside(change, near[1], half * visible)
    return Tracks(position, area, axes, visible, border, confidence, pieces, background)


def as_clips(clips: Any, *, frames: int = 1) -> Tensor:
    """Return clips (B, T, H, W, 3) of at least so many frames, uint8 or float in [0, 1], as float32.

    Raises
    ------
    InputError
        For another shape or type, fewer frames, and values that are not finite or lie outside [0, 1].
    """
    array = isinstance(clips, Tensor | np.ndarray)
    x = torch.as_tensor(clips if array else np.zeros(0)).detach()
    if x.ndim != 5 or x.shape[-1] != 3 or x.shape[1] < frames or 0 in x.shape:
        got = f"clips of shape {tuple(x.shape)}" if array else f"a {type(clips).__name__}"
        raise InputError(got, f"(B, T, H, W, 3) with at least {frames} frames", "add the axes, put colours last")
    if x.dtype == torch.uint8:
        return x.float() / 255.0
    if not (x.is_floating_point() and -0.01 < float(x.min()) <= float(x.max()) < 1.01):  # NaN is in no range
        got = f"clips of {str(x.dtype).removeprefix('torch.')} with values outside [0, 1] or not finite"
        raise InputError(got, "float in [0, 1] or uint8", "scale them")
    return x.float()


def _as_numpy(index: Any) -> Any:
    return index.numpy() if isinstance(index, Tensor) else index


def _unmix(change: Tensor, colour: Tensor, back: Tensor) -> Tensor:
    """Return the weights of each thing, (B, K, T, P)."""
    if bool((back == back[..., :1]).all()):
        back = back[..., :1]  # one colour a clip
    apart = colour[..., None, None] - back[:, None]  # (B, K, 3, 1, P or 1)
    gram = (apart[:, :, None] * apart[:, None]).sum(3)[..., 0, :].movedim(-1, 1)
    inverse = torch.linalg.inv(gram + 1e-9 * torch.eye(gram.shape[-1])).movedim(1, -1)  # (B, K, K, P or 1)
    rows = (inverse[:, :, :, None, None] * apart[:, None]).sum(2)  # of the pseudo-inverse: (B, K, 3, 1, P or 1)
    weights = torch.empty(len(change), colour.shape[1], *change.shape[2:])
    for k in range(colour.shape[1]):
        torch.mul(change[:, 0], rows[:, k, 0], out=weights[:, k])
        weights[:, k].addcmul_(change[:, 1], rows[:, k, 1]).addcmul_(change[:, 2], rows[:, k, 2])
    return weights


def _uncover(weights: Tensor) -> None:
    """Divide the weights of each thing, in place, by what the things before it leave to be seen: its coverage."""
    seen: Tensor | None = None
    for k in range(weights.shape[1] - 2, -1, -1):
        left = (1 - weights[:, k + 1]).clamp_(_HIDDEN, 1)
        seen = left if seen is None else (seen * left).clamp_(min=_HIDDEN)
        weights[:, k] /= seen


def _stretched(cover: Tensor, end: float) -> Tensor:
    return torch.add(torch.tensor(-end / (1 - 2 * end)), cover, alpha=1 / (1 - 2 * end)).clamp_(0, 1)


def _moments(cover: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return areas (B, T, K), centroids and semi-axes (B, T, K, 2), and what lies on the border pixels (B, T, K)."""
    middle = torch.tensor([width - 1.0, height - 1.0]) / 2
    y, x = torch.meshgrid(torch.arange(height) - middle[1], torch.arange(width) - middle[0], indexing="ij")
    rim = ((y.abs() == middle[1]) | (x.abs() == middle[0])).float()
    basis = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y, rim], -1).reshape(-1, 7)
    sums = (cover @ basis).transpose(1, 2)
    return *_ellipse(sums, middle), sums[..., 6]


def _near_moments(
    cover: Tensor, centre: Tensor, half: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same inside squares around centres (B, T, K, 2), half a side wide (B, T, K)."""
    at, reach, powers = centre.transpose(1, 2), half.transpose(1, 2)[..., None], []
    for axis, length in ((0, width), (1, height)):
        off = torch.arange(float(length)) - at[..., axis, None]
        inside = (off.abs() <= reach).float()
        powers.append(torch.stack([inside, inside * off, inside * off * off], -1).reshape(-1, length, 3))
    sums = powers[1].mT @ (cover.reshape(-1, height, width) @ powers[0])  # [power of y, power of x]
    wanted = sums.reshape(*at.shape[:3], 9)[..., [0, 1, 3, 2, 4, 6]].transpose(1, 2)
    return _ellipse(wanted, centre)


def _outside(change: Tensor, centre: Tensor, half: Tensor) -> Tensor:
    """Return the mean of changes (B, T, H, W) outside of squares, shape (B, T)."""
    free = torch.ones_like(change, dtype=torch.bool)
    for k in range(half.shape[2]):
        x = (torch.arange(change.shape[3]) - centre[:, :, k, :1]).abs() <= half[:, :, k, None]
        y = (torch.arange(change.shape[2]) - centre[:, :, k, 1:]).abs() <= half[:, :, k, None]
        free &= ~(x[:, :, None] & y[..., None])
    return (change * free).sum((2, 3)) / free.sum((2, 3)).clamp(min=1)


def _ellipse(sums: Tensor, origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return area, centroid and semi-axes from the sums of 1, x, y, x x, x y and y y over a mask."""
    area, (mx, my, xx, xy, yy) = sums[..., 0], (sums[..., 1:6] / sums[..., :1].clamp(min=1e-6)).unbind(-1)
    xx, xy, yy = xx - mx * mx, xy - mx * my, yy - my * my
    middle, spread = (xx + yy) / 2, ((xx - yy) ** 2 / 4 + xy**2).sqrt()
    axes = 2 * torch.stack([middle + spread, middle - spread], -1).clamp(min=0).sqrt()
    return area, origin + torch.stack([mx, my], -1), axes


def _own_radius(area: Tensor, meta: Meta) -> Tensor:
    """Return the radius that each thing should have, (B, 1, K): known, or from its area in the context frames."""
    if meta.radius is not None:
        return meta.radius[:, None].to(torch.float32)
    return (area[:, : meta.context].median(1, keepdim=True).values / torch.pi).clamp(min=0.25).sqrt()


def _count_pieces(
    cover: Tensor, size: tuple[int, int], centre: Tensor, own: Tensor, long: Tensor
) -> tuple[Tensor, Tensor]:
    """Return centres, of long masks that of their largest part, and the number of parts of at least a quarter."""
    centre, pieces = centre.clone(), torch.ones_like(long, dtype=torch.int64)
    for b, t, k in long.nonzero().tolist():
        mask = (cover[b, k, t] > 0.5).view(size).to(torch.uint8).numpy()
        _, _, stats, middles = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if len(stats) > 1:
            area = stats[1:, cv2.CC_STAT_AREA]
            centre[b, t, k] = torch.as_tensor(middles[1 + area.argmax()])
            pieces[b, t, k] = max(1, int((area >= 0.25 * torch.pi * float(own[b, 0, k]) ** 2).sum()))
    return centre, pieces


_GROUND, _COMMON = 0.7, 0.08  # share of a picture that a few colours must fill to be its backdrop; of each of them
_CHANGE, _UNLIKE = 0.06, 0.35  # least change of a pixel that is seen; distance between colours that are not one
_FLOOD = 0.4  # share of changed pixels from which a frame is a cut, or the camera moved


def find_objects(clip: ArrayLike | Tensor, *, context: int = 5, most: int = 4) -> Tracks:
    """Find and track the moving things of one clip whose colours are not known.

    Parameters
    ----------
    clip : array or Tensor, shape (T, H, W, 3)
        float in [0, 1], or uint8.
    context : int
        Leading frames in which things are born: what is seen in all but one of them. What comes in over the border
        later is followed and not returned; a thing that it may touch counts as one at the border from then on.
    most : int
        Number of things that are kept, the largest first.

    Returns
    -------
    Tracks
        Of B = 1 clip and K things, 0 <= K <= most. A later part that looks like a thing counts as a piece of it. In a
        frame where 40 % of the picture changed (a cut, a camera that moves) nothing is visible.

    Raises
    ------
    InputError
        For another shape, values beyond [0, 1] or NaN, and a clip that is not longer than its context.
    """
    x = as_clips(torch.as_tensor(np.asarray(clip))[None])[0].numpy()
    if not 2 <= context < len(x):
        raise InputError(f"{len(x)} frames, {context} of them context", "2 context frames and one more", "set context")
    back = _find_backdrop(x)
    change = _apart(x, back)
    least = max(_CHANGE, 6 * 1.4826 * float(np.median(change)))
    things: list[_Thing] = []
    for t in range(len(x)):
        for one in things:
            one.predict()
        mask = (change[t] > least).astype(np.uint8)
        parts = [] if mask.mean() > _FLOOD else _parts(x[t], change[t], mask, things)
        costs = np.array([[one.cost(part) for part in parts] for one in things]).reshape(len(things), len(parts))
        taken = linear_sum_assignment(costs)
        pairs = {i: j for i, j in zip(*map(np.ndarray.tolist, taken), strict=True) if costs[i, j] < _FAR}
        for i, one in enumerate(things):
            one.step(t, parts[pairs[i]] if i in pairs else None)
        for j in sorted(set(range(len(parts))) - set(pairs.values())):
            if t < context or parts[j].border:
                things.append(_Thing(len(x), t, parts[j]))
            elif like := [one for one in things if one.resembles(parts[j])]:
                like[0].seen[t, _PIECES] += 1
    given = [one for one in things if (one.seen[:context, _SURE] > 0).sum() >= context - 1]
    given = sorted(given, key=lambda one: -one.part.area)[:most]
    for one, other in itertools.product(given, (one for one in things if one not in given)):
        one.seen[one.near(other), _BORDER] = 1
    seen = np.stack([one.seen for one in given], 1) if given else np.zeros((len(x), 0, _PIECES + 1))
    table = torch.as_tensor(seen, dtype=torch.float32)[None]
    visible = table[..., _SURE] > 0
    position = torch.where(visible[..., None], table[..., :2], torch.nan)
    border, pieces = table[..., _BORDER] > 0, table[..., _PIECES].to(torch.int64).clamp(min=1)
    grey = np.abs(x - back) @ np.full(3, 1 / 3, np.float32)
    shade = _outside(torch.as_tensor(grey)[None], table[..., :2], (table[..., 3] + 2) * visible)
    return Tracks(position, table[..., 2], table[..., 3:5], visible, border, table[..., _SURE], pieces, shade)


def ring(frames: NDArray[np.uint8], tracks: Tracks, red: Sequence[bool], scale: float) -> NDArray[np.uint8]:
    """Return frames (T, H, W, 3) with rings around the things of one clip, tracked at 1 / scale of their size."""
    out = frames.copy()
    place, radius = (tracks.position[0] + 0.5) * scale - 0.5, (tracks.area[0] / torch.pi).sqrt() * scale + 3
    for t, k in tracks.visible[0].nonzero().tolist():
        at, size = place[t, k].round().int().tolist(), round(float(radius[t, k]))
        for width, colour in ((4, (0, 0, 0)), (2, (255, 60, 60) if red[t] else (255, 255, 255))):
            cv2.circle(out[t], at, size, colour, width, cv2.LINE_AA)
    return out


_BORDER, _SURE, _PIECES = 5, 6, 7  # columns of what is seen of a thing, after x, y, area and two axes
_FAR, _REACH = 1e6, 1.5  # cost of what may not be assigned; radii within which two may touch before the next frame
_EYE, _MOVE = np.eye(4), np.eye(4) + np.eye(4, k=2)


class _Part(NamedTuple):
    """Connected pixels that differ from the backdrop, or those of them that are nearest to the thing that owns them."""

    centre: NDArray[np.float64]
    area: float
    axes: NDArray[np.float64]
    border: bool
    colour: NDArray[np.float64]
    owner: _Thing | None

    @property
    def radius(self) -> float:
        return float(np.sqrt(self.area / np.pi))


class _Thing:
    """A Kalman filter of constant velocity; a bounce must stay inside its gate, so the noise grows with the speed."""

    def __init__(self, frames: int, t: int, part: _Part) -> None:
        self.part = part
        self.state, self.spread = np.r_[part.centre, 0.0, 0.0], np.diag([0.1, 0.1, part.radius**2, part.radius**2])
        self.seen = np.zeros((frames, _PIECES + 1))
        self._write(t, part)

    def predict(self) -> None:
        noise = (0.3 + math.hypot(*self.state[2:])) ** 2
        self.state, self.spread = _MOVE @ self.state, _MOVE @ self.spread @ _MOVE.T + _EYE * [0.1, 0.1, noise, noise]

    def resembles(self, part: _Part) -> bool:
        alike = math.dist(self.part.colour, part.colour) < _UNLIKE
        return alike and 0.25 < part.area / self.part.area < 4

    def cost(self, part: _Part) -> float:
        """Return distance in deviations, of which 4 are allowed, and how unlike colour and area are."""
        if (part.owner is not None and part.owner is not self) or not self.resembles(part):
            return _FAR
        x, y = (part.centre - self.state[:2]).tolist()
        (a, b), (_, c) = (self.spread[:2, :2] + 0.1 * _EYE[:2, :2]).tolist()
        far = math.sqrt((c * x * x - 2 * b * x * y + a * y * y) / (a * c - b * b))
        unlike = math.dist(self.part.colour, part.colour) / _UNLIKE
        return _FAR if far > 4 else far + unlike + abs(math.log(part.area / self.part.area))

    def near(self, other: _Thing) -> NDArray[np.bool_]:
        """Return in which frames both are seen and may touch before the next, shape (T,)."""
        apart = np.hypot(*(self.seen[:, :2] - other.seen[:, :2]).T)
        reach = _REACH * (self.seen[:, 3] + other.seen[:, 3])
        return np.asarray((apart < reach) & (self.seen[:, _SURE] > 0) & (other.seen[:, _SURE] > 0))

    def step(self, t: int, part: _Part | None) -> None:
        if part is None:
            return
        self.part = part if self.part.border else self.part  # what comes in is larger than it seemed
        (a, b), (_, c) = (self.spread[:2, :2] + 0.01 * _EYE[:2, :2]).tolist()
        gain = self.spread[:, :2] @ np.array([[c, -b], [-b, a]]) / (a * c - b * b)
        self.state = self.state + gain @ (part.centre - self.state[:2])
        self.spread = self.spread - gain @ self.spread[:2]
        self._write(t, part)

    def _write(self, t: int, part: _Part) -> None:
        ratio = part.area / self.part.area
        unlike = math.dist(self.part.colour, part.colour) / _UNLIKE
        sure = min(ratio, 1 / ratio) * (1 - unlike) * (0.5 if part.border else 1.0)
        self.seen[t] = *part.centre, part.area, *part.axes, part.border, max(sure, 1e-3), 1


def _find_backdrop(x: Pixels) -> Pixels:
    """Return the median over time; where a few colours fill the picture, without what stands still or is slow.

    There a pixel of another colour is taken from the frame that is nearest to one of them, and compact parts that are
    never free and do not touch the border are filled in.
    """
    back: Pixels = np.ascontiguousarray(_middle(x))
    bins = (back * 15.99).astype(np.int64) @ [256, 16, 1]
    common = [_middle(back[bins == v]) for v in np.flatnonzero(np.bincount(bins.ravel()) > _COMMON * bins.size)]
    if not common:
        return back
    strange = np.min([_apart(back, one) for one in common], 0) > _CHANGE
    if strange.mean() > 1 - _GROUND:
        return back
    pixels = x[:, strange]
    off = np.min([_apart(pixels, one) for one in common], 0)
    best, free = np.take_along_axis(pixels, off.argmin(0)[None, :, None], 0)[0], off.min(0) < _CHANGE
    back[strange] = np.where(free[:, None], best, back[strange])
    held = np.zeros(strange.shape, np.uint8)
    held[strange] = ~free
    _, labels = cv2.connectedComponents(cv2.morphologyEx(held, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    still = cv2.dilate((~np.isin(labels, [0, *edge])).astype(np.uint8), np.ones((5, 5), np.uint8))
    filled = cv2.inpaint((back * 255).round().astype(np.uint8), still, 3, cv2.INPAINT_TELEA)
    return np.where(still[..., None] > 0, filled.astype(np.float32) / 255, back)


def _parts(frame: Pixels, change: Pixels, mask: NDArray[np.uint8], things: Sequence[_Thing]) -> list[_Part]:
    """Return the parts of a frame; one in which several things are expected is divided by colour and distance."""
    parts: list[_Part] = []
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    for label in range(1, count):
        left, top, wide, high, _ = boxes[label].tolist()
        left, top, right, bottom = max(left - 2, 0), max(top - 2, 0), left + wide + 2, top + high + 2
        box = slice(top, bottom), slice(left, right)  # at least 3 wide: OpenCV takes two columns for points
        region = labels[box] == label
        x, y = np.arange(left, left + region.shape[1])[None], np.arange(top, top + region.shape[0])[:, None]
        owners = [one for one in things if np.hypot(x - one.state[0], y - one.state[1])[region].min() < 1.5]
        around = frame[box], change[box], mask[box], (left, top)
        if len(owners) < 2:
            parts.append(_measure(region, *around, None))
            continue
        unlike = [
            (np.linalg.norm(frame[box] - one.part.colour, axis=-1) / 0.15) ** 2
            + ((x - one.state[0]) ** 2 + (y - one.state[1]) ** 2) / one.part.radius**2
            for one in owners
        ]
        best = np.argmin(unlike, 0)
        parts += [_measure(region & (best == k), *around, one) for k, one in enumerate(owners)]
    return [part for part in parts if part.area > max(4.0, 0.003 * mask.size)]


def _measure(
    region: NDArray[np.bool_], frame: Pixels, change: Pixels, mask: NDArray[np.uint8], at: Any, owner: _Thing | None
) -> _Part:
    """Measure a region with the pixels around it: whole inside, at its edge by their change against that inside.

    All are cut to a box around it, two pixels wider where the picture is, whose corner is at (x, y).
    """
    if not region.any():
        return _Part(np.zeros(2), 0.0, np.zeros(2), False, np.zeros(3), owner)
    own, square = region.astype(np.uint8), np.ones((3, 3), np.uint8)
    inner = cv2.erode(own, square, borderValue=0) > 0
    inner = inner if inner.any() else region
    rim = (cv2.dilate(own, square) > 0) & ((mask == 0) | region)
    cover = np.where(inner, 1.0, np.where(rim, change / _middle(change[inner]), 0.0))
    cover = np.clip((cover - _FINE) / (1 - 2 * _FINE), 0, 1)
    sums = cv2.moments(cover.astype(np.float32))
    area, (xx, xy, yy) = sums["m00"], (sums[name] / sums["m00"] for name in ("mu20", "mu11", "mu02"))
    middle, spread = (xx + yy) / 2, math.hypot((xx - yy) / 2, xy)
    axes = 2 * np.sqrt(np.array([middle + spread, middle - spread]).clip(min=0))
    border = max(cover[[0, -1]].max(), cover[:, [0, -1]].max()) > 0.5  # a codec smears colours farther
    centre = np.array([sums["m10"], sums["m01"]]) / area + at
    return _Part(centre, area, axes, bool(border), _middle(frame[inner]), owner)


def _middle(x: Pixels) -> Any:
    """Return the median of the first axis; numpy's own takes longer to be called than these few numbers to sort."""
    n, ordered = len(x), np.sort(np.ascontiguousarray(x.T))
    return ((ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2).T


def _apart(x: Pixels, y: Pixels) -> Pixels:
    """Return the largest difference of three colours, shape (...)."""
    off = np.abs(x - y)
    largest: Pixels = np.maximum(np.maximum(off[..., 0], off[..., 1]), off[..., 2])
    return largest
