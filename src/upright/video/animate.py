"""Clips side by side in one moving picture, small enough for a page that allows no other media.

Every clip of a row is enlarged by whole pixels, the rows stand under one another, and a clip that ends early stays on
its last frame. The picture is an animated WebP. Where it is too large it loses every other frame, each shown twice as
long, until at most eight are left, and then a quarter of its width and height at a time.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from upright.contract import InputError

__all__ = ["animate", "still"]

_GAP, _HEAD = 4, 16  # pixels between clips, and of a row of labels
_SIDE = 144  # pixels that a clip is enlarged to
_FEWEST = 8  # frames
_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_MOST_PIXELS = 16_000_000  # of a picture that is read


def animate(
    rows: Sequence[Sequence[Any]],
    *,
    labels: Sequence[str] = (),
    fps: float = 8.0,
    zoom: int | None = None,
    most: int = 300_000,
) -> bytes:
    """Return clips as one animated WebP that repeats for ever.

    Parameters
    ----------
    rows : sequence of sequences of arrays, shape (T, H, W, 3)
        uint8, or floats in [0, 1], which are cut to it. Lengths and sizes may differ.
    labels : sequence of str
        Of the columns, above the first row; what does not fit is cut.
    fps : float
        Frames a second.
    zoom : int, optional
        Times that a clip is enlarged; by default until its longer side has 144 pixels or nearly so.
    most : int
        Bytes.

    Raises
    ------
    InputError
        For no clip, another shape, values that are not finite, and where no size of `most` bytes is enough.
    """
    clips = [[_pixels(clip) for clip in row] for row in rows if len(row)]
    if not clips or not fps > 0:
        raise InputError(f"{len(clips)} rows of clips at {fps} frames a second", "at least one, above 0", "pass clips")
    if zoom is None:
        zoom = max(1, _SIDE // max(n for row in clips for clip in row for n in clip.shape[1:3]))
    frames = _sheets([[clip.repeat(zoom, 1).repeat(zoom, 2) for clip in row] for row in clips], labels)
    pause = 1000.0 / fps
    while len(data := _written(frames, pause)) > most:
        if len(frames) > _FEWEST:
            frames, pause = frames[::2], 2.0 * pause
            continue
        size = frames[0].width * 3 // 4, frames[0].height * 3 // 4
        if min(size) < 16:
            raise InputError(f"a picture of {len(data)} bytes", f"at most {most}", "show fewer clips")
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    return data


def _pixels(clip: Any) -> NDArray[np.uint8]:
    found = np.asarray(clip)
    if found.ndim != 4 or found.shape[3] != 3 or not found.size or not np.isfinite(found).all():
        raise InputError(f"a clip of shape {found.shape}", "finite values of shape (T, H, W, 3)", "correct it")
    return found if found.dtype == np.uint8 else np.round(255 * found.clip(0, 1)).astype(np.uint8)


def _sheets(clips: list[list[NDArray[np.uint8]]], labels: Sequence[str]) -> list[Image.Image]:
    """Return one picture a frame: the clips in a grid whose columns are as wide as their widest clip."""
    columns = range(max(map(len, clips)))
    widths = [_GAP + max(row[i].shape[2] for row in clips if i < len(row)) for i in columns]
    heights = [_GAP + max(clip.shape[1] for clip in row) for row in clips]
    head = _HEAD if labels else 0
    blank = Image.new("RGB", (sum(widths) + _GAP, head + sum(heights) + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(blank), ImageFont.load_default()
    for i, label in zip(columns, labels, strict=False):
        while label and draw.textlength(label, font) > widths[i]:
            label = label[:-1]
        draw.text((_GAP + sum(widths[:i]), 2), label, _INK, font)
    frames = []
    for t in range(max(len(clip) for row in clips for clip in row)):
        sheet = blank.copy()
        for y, row in enumerate(clips):
            for x, clip in enumerate(row):
                place = _GAP + sum(widths[:x]), head + _GAP + sum(heights[:y])
                sheet.paste(Image.fromarray(clip[min(t, len(clip) - 1)]), place)
        frames.append(sheet)
    return frames


def _written(frames: Sequence[Image.Image], pause: float) -> bytes:
    held = io.BytesIO()
    frames[0].save(held, "WEBP", save_all=True, append_images=frames[1:], duration=round(pause), loop=0, quality=80)
    return held.getvalue()


def still(data: bytes) -> bytes:
    """Return the first frame of a moving picture as WebP; nothing where it does not move, or is not read."""
    held = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as picture:
            if getattr(picture, "n_frames", 1) > 1 and picture.width * picture.height <= _MOST_PIXELS:
                picture.convert("RGB").save(held, "WEBP", quality=80)
    except Exception:  # whatever a decoder raises: the page shows what a browser makes of it
        return b""
    return held.getvalue()
