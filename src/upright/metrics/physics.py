r"""What rigid bodies in a clip do, against the truth and against mechanics, one value a clip.

Positions are in pixels, shape (..., T, K, 2), frames in time, bodies in order; discs have radii r and masses m of
(..., K).

==============  =====================================================================================================
``offset``      ``mean |p - q|`` over generated frames and bodies, q the true positions: trajectory offset
``iou``         mean over generated frames and bodies of ``|A n B| / |A u B|``, A and B the discs at p and q
``penetrates``  1 where two bodies overlap by more than a pixel in a generated frame, or on the straight way to it
``momentum``    ``mean_t |sum_k m_k a_k - g sum_k m_k| / sum_k m_k``, a the second difference: px/frame^2
``newton``      what exceeds the tolerances of the checks of `upright.video.verifiers`, in multiples of them
``energy_gain`` largest gain of energy by mass over its least so far, by the rms speed: px/frame
``lost``        share of generated frames and bodies in which a body is not found
``background``  mean absolute change of the picture outside of all bodies, of 1
``spread``      ``mean |p - p'|`` between two futures of one context; neither side is better by itself
==============  =====================================================================================================

``penetrates`` and ``momentum`` are of the positions that a model gives, where it gives positions: no reward sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, Metric

__all__ = ["METRICS", "disc_iou", "momentum_change", "penetration", "trajectory_offset"]

Array = NDArray[np.float64]
_INF = float("inf")
METRICS: Mapping[str, Metric] = {
    "offset": Metric("offset", "lower", high=_INF, margin=0.1, title="Offset from the true future, px"),
    "unseen_offset": Metric("unseen_offset", "lower", high=_INF, margin=0.1, title="Offset in unseen motions, px"),
    "iou": Metric("iou", "higher", margin=0.02, title="Overlap with the true bodies (IoU)"),
    "penetrates": Metric("penetrates", "lower", margin=0.02, title="Clips in which bodies pass into each other"),
    "momentum": Metric("momentum", "lower", high=_INF, margin=0.01, title="Momentum from nowhere, px/frame^2"),
    "newton": Metric("newton", "lower", high=_INF, margin=0.1, title="Breaks of mechanics, in tolerances"),
    "energy_gain": Metric("energy_gain", "lower", high=_INF, margin=0.02, title="Energy from nowhere, px/frame"),
    "lost": Metric("lost", "lower", margin=0.01, title="Bodies lost, share of frames"),
    "background": Metric("background", "lower", margin=0.002, title="Change of the background"),
    "spread": Metric("spread", "higher", high=_INF, margin=0.1, title="Distance of two futures, px"),
}
"""Direction, bounds, margin and title of each value."""


def trajectory_offset(found: Any, true: Any, context: int) -> Array:
    """Return the mean distance over generated frames and bodies, shape (...), of positions (..., T, K, 2).

    >>> true = np.zeros((3, 1, 2))
    >>> float(trajectory_offset(true + [3.0, 4.0], true, context=1))
    5.0

    Raises
    ------
    InputError
        For shapes that differ, and a context that leaves no frame.
    """
    p, q = _positions(found, context), _positions(true, context)
    if p.shape != q.shape:
        raise InputError(f"positions of shapes {p.shape} and {q.shape}", "the same", "give the truth of these clips")
    return np.asarray(np.linalg.norm(p - q, axis=-1)[..., context:, :].mean((-2, -1)))


def penetration(position: Any, radius: Any, context: int) -> Array:
    """Return the largest overlap of two bodies in a generated frame or on the straight way to it, at least 0.

    In px, shape (...), of positions (..., T, K, 2) and radii (..., K). Between frames bodies could change places.
    """
    p, r = _positions(position, context)[..., max(context - 1, 0) :, :, :], np.asarray(radius, np.float64)
    one, other = np.triu_indices(p.shape[-2], 1)
    at = p[..., one, :] - p[..., other, :]
    way, start = np.diff(at, axis=-3), at[..., :-1, :, :]
    when = -(start * way).sum(-1) / np.maximum((way * way).sum(-1), 1e-12)
    near = np.linalg.norm(start + when[..., None] * way, axis=-1)
    ends = np.linalg.norm(at[..., 1:, :, :], axis=-1)
    apart = np.where((when > 0.0) & (when < 1.0), np.minimum(near, ends), ends)
    depth = (r[..., one] + r[..., other])[..., None, :] - apart
    return np.asarray(depth.max((-2, -1), initial=0.0))


def momentum_change(position: Any, mass: Any, gravity: Any, context: int) -> Array:
    """Return the mean size of the acceleration of the centre of mass beyond gravity, shape (...), px/frame^2.

    Parameters
    ----------
    position : array, shape (..., T, K, 2)
    mass : array, shape (..., K)
    gravity : array, shape (..., 2)
        Acceleration of a free body.
    """
    p, m = _positions(position, context), np.asarray(mass, np.float64)
    centre = (p * m[..., None, :, None]).sum(-2) / m.sum(-1)[..., None, None]
    change = np.diff(centre[..., max(context - 2, 0) :, :], n=2, axis=-2)
    return np.asarray(np.linalg.norm(change - np.asarray(gravity, np.float64)[..., None, :], axis=-1).mean(-1))


def disc_iou(found: Any, true: Any, radius: Any, context: int) -> Array:
    """Return the mean over generated frames and bodies of the IoU of two discs of one radius, shape (...).

    Two discs of radius r whose centres are d apart share ``2 r^2 acos(d / 2r) - d sqrt(4 r^2 - d^2) / 2``.
    """
    p, q = _positions(found, context), _positions(true, context)
    r = np.asarray(radius, np.float64)[..., None, :]
    d = np.minimum(np.linalg.norm(p - q, axis=-1)[..., context:, :], 2.0 * r)
    shared = 2.0 * r**2 * np.arccos(d / (2.0 * r)) - 0.5 * d * np.sqrt(np.maximum(4.0 * r**2 - d**2, 0.0))
    return np.asarray((shared / (2.0 * np.pi * r**2 - shared)).mean((-2, -1)))


def _positions(position: Any, context: int) -> Array:
    p = np.asarray(position, np.float64)
    if p.ndim < 3 or p.shape[-1] != 2 or not 0 <= context < p.shape[-3]:
        got = f"positions of shape {p.shape} with {context} frames of context"
        raise InputError(got, "(..., T, K, 2), and fewer frames of context than T", "check the shape")
    return p
