r"""Discs and polygons drawn with soft edges, for a batch of clips in one tensor program.

The centre of the pixel in row i and column j is the point (x = j, y = i), y down. With d the distance of a pixel from
the centre of a disc of radius r, and e its distance from the nearest edge of a convex polygon, positive inside:

    disc       alpha = clamp(sqrt(r^2 - 1/12) + 1/2 - d, 0, 1)
    polygon    alpha = clamp(e + 1/2, 0, 1)

An edge that is a pixel wide adds pi / 12 to the area of a disc; the 1/12 takes it away, so that alpha sums to pi r^2.
Things lie one over another, the later in front: ``picture += alpha (colour - picture)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from upright.contract import InputError
from upright.video.scenes import Scenes

__all__ = ["backdrop", "draw", "film", "masks", "polygon"]

_CHUNK = 1 << 17  # pixels drawn at a time, so that they stay in the cache


def masks(position: Tensor, radius: Tensor, size: tuple[int, int], *, camera: Tensor | None = None) -> Tensor:
    """Return how far each thing by itself covers each pixel, shape (B, T, K, H, W), in [0, 1].

    Parameters
    ----------
    position : Tensor, shape (B, T, K, 2)
        (x, y) in px.
    radius : Tensor, shape (B, K) or (B, T, K)
        In px; a thing of radius 0 is not there.
    size : (int, int)
        Height and width.
    camera : Tensor, shape (B, T, 2), optional
        Added to every position.

    Raises
    ------
    InputError
        For a position that is not finite, and a radius below 0.
    """
    position = position if camera is None else position + camera[:, :, None]
    if not bool(torch.isfinite(position).all() & (radius >= 0).all()):
        raise InputError("positions or radii that cannot be drawn", "finite positions, radii from 0", "correct them")
    radius = radius[:, None] if radius.ndim == 2 else radius
    edge = torch.where(radius > 0, (radius**2 - 1 / 12).clamp(min=0).sqrt() + 0.5, -1.0)[..., None, None]
    across, down = (torch.arange(side, dtype=position.dtype) for side in (size[1], size[0]))
    x, y = (across - position[..., :1]).square(), (down - position[..., 1:]).square()
    return (x[..., None, :] + y[..., None]).sqrt_().neg_().add_(edge).clamp_(0, 1)


def draw(position: Tensor, radius: Tensor, colour: Tensor, backdrop: Tensor, *, camera: Tensor | None = None) -> Tensor:
    """Draw discs on a backdrop: clips of shape (B, T, H, W, 3).

    Parameters
    ----------
    position : Tensor, shape (B, T, K, 2)
    radius : Tensor, shape (B, K) or (B, T, K)
    colour : Tensor, shape (B, K, 3) or (B, T, K, 3)
        In [0, 1].
    backdrop : Tensor, shape (B, H, W, 3)
    camera : Tensor, shape (B, T, 2), optional
        Added to every point that is drawn, those of the backdrop as well; what comes in is as the border is.

    Raises
    ------
    InputError
        As of `masks`.
    """
    (b, t, k, _), size = position.shape, (backdrop.shape[1], backdrop.shape[2])
    at = position if camera is None else position + camera[:, :, None]
    reach = radius[:, None].expand(b, t, k) if radius.ndim == 2 else radius
    paint = colour[:, None].expand(b, t, k, 3) if colour.ndim == 3 else colour
    at, reach, paint = at.flatten(0, 1), reach.flatten(0, 1), paint.flatten(0, 1)[..., None, None]
    clips = backdrop[:, None].repeat(1, t, 1, 1, 1) if camera is None else _moved(backdrop, camera)
    for first in range(0, b * t, step := max(1, _CHUNK // (size[0] * size[1]))):
        part = slice(first, first + step)
        alpha, frames = masks(at[None, part], reach[None, part], size)[0, :, :, None], clips.flatten(0, 1)[part]
        picture = frames.permute(0, 3, 1, 2).contiguous()  # whole planes are three times as fast
        for one in range(k):
            picture.lerp_(paint[part, one].to(picture), alpha[:, one].to(picture))
        frames.copy_(picture.permute(0, 2, 3, 1))
    return clips


def _moved(backdrop: Tensor, camera: Tensor) -> Tensor:
    """Move each picture by each (x, y) of its camera: (B, H, W, 3) and (B, T, 2) to (B, T, H, W, 3)."""
    (b, h, w, _), t = backdrop.shape, camera.shape[1]
    x = (torch.arange(w) - camera[..., :1]) * 2 / (w - 1) - 1
    y = (torch.arange(h) - camera[..., 1:]) * 2 / (h - 1) - 1
    grid = torch.stack([x[:, :, None].expand(b, t, h, w), y[..., None].expand(b, t, h, w)], -1).flatten(1, 2)
    pictures = backdrop.permute(0, 3, 1, 2)
    moved: Tensor = grid_sample(pictures, grid.to(backdrop), padding_mode="border", align_corners=True)
    return moved.reshape(b, 3, t, h, w).permute(0, 2, 3, 4, 1).contiguous()


def polygon(vertices: Tensor, size: tuple[int, int]) -> Tensor:
    """Return how far convex polygons cover each pixel, shape (B, H, W), in [0, 1].

    Parameters
    ----------
    vertices : Tensor, shape (B, V, 2)
        (x, y) of each in order, either way round.
    size : (int, int)
        Height and width.
    """
    edge, (x, y) = vertices.roll(-1, 1) - vertices, vertices.unbind(-1)
    turn = (x * edge[..., 1] - y * edge[..., 0]).sum(1).sign()  # of twice the area
    inward = torch.stack([-edge[..., 1], edge[..., 0]], -1) * turn[:, None, None] / edge.norm(dim=-1, keepdim=True)
    across, down = (torch.arange(side, dtype=vertices.dtype) for side in (size[1], size[0]))
    far = (inward * vertices).sum(-1)[..., None, None]
    inside = inward[..., :1, None] * across + inward[..., 1:, None] * down[:, None] - far
    return torch.clamp(inside.amin(1) + 0.5, 0, 1)


def backdrop(scenes: Scenes) -> Tensor:
    """Return background and ground without the things, shape (N, H, W, 3), in [0, 1]."""
    behind, above = (torch.as_tensor(one).float() for one in (scenes.background, scenes.ground_colour))
    picture = behind[:, None, None].repeat(1, *scenes.size, 1)
    solid = torch.as_tensor(np.flatnonzero(~np.isnan(scenes.ground).any(1)))
    ground = torch.as_tensor(scenes.ground)[solid]
    down, far = ground[:, :2], 4 * sum(scenes.size)  # a square that ends outside of the picture but for its top
    along, foot = torch.stack([-down[:, 1], down[:, 0]], -1) * far, down * ground[:, 2:]
    corners = [foot - along, foot + along, foot + along + down * far, foot - along + down * far]
    alpha = polygon(torch.stack(corners, 1), scenes.size).float()[..., None]
    picture[solid] += alpha * (above[solid, None, None] - picture[solid])
    return picture


def film(scenes: Scenes, index: Any = None) -> Tensor:
    """Draw scenes, or those of an index: clips of shape (n, T, H, W, 3), float32 in [0, 1]."""
    chosen = scenes if index is None else scenes[index]
    given = (chosen.position, chosen.radius, chosen.colour, chosen.camera)
    position, radius, colour, camera = (torch.as_tensor(one).float() for one in given)
    return draw(position, radius, colour, backdrop(chosen), camera=camera if bool(camera.any()) else None)
