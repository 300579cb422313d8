r"""Draw a text as the picture of a printed page.

    text -> lines that fit a column -> one or two columns, a notice in small print below -> grey picture -> PNG

A page shows what a model that looks at pictures is given, with the fonts, sizes, contrasts and slight turns of scans.
Fonts are found by file name in the usual folders of the system; without them Pillow's own scalable font is taken, so
a page looks different on another system, and its text does not.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from upright.contract import Config, InputError, Range, stream

__all__ = ["Look", "draw_page", "encode_page", "to_grey", "vary"]

_FILES = {
    "serif": ("DejaVuSerif.ttf", "LiberationSerif-Regular.ttf"),
    "sans": ("DejaVuSans.ttf", "LiberationSans-Regular.ttf"),
    "mono": ("DejaVuSansMono.ttf", "LiberationMono-Regular.ttf"),
}
_PIXELS = 1 << 25  # most pixels of a page: what its reader accepts
_GREYS = 16

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Grey = Annotated[int, Range(ge=0, le=255)]


class Look(Config):
    """How a page is drawn; an `InputError` for a value outside its range."""

    font: Literal["serif", "sans", "mono"] = "serif"
    """DejaVu, else Liberation, else Pillow's own font."""
    size: Annotated[int, Range(ge=9, le=40)] = 18
    """Height of the text's font, in px."""
    width: Annotated[int, Range(ge=300, le=2000)] = 760
    """Width of the page before it is turned, in px."""
    ink: _Grey = 20
    """Grey of the letters, from 0 (black) to 255 (white)."""
    paper: _Grey = 250
    """Grey of the ground."""
    angle: Annotated[float, Range(ge=-2.0, le=2.0)] = 0.0
    """Turn against the clock, in degrees."""
    columns: Literal[1, 2] = 1
    """Columns of the text; the notice always goes over the whole width."""
    notice_size: Annotated[int, Range(ge=6, le=40)] = 11
    """Height of the notice's font, in px."""


def draw_page(text: str, notice: str = "", look: Look = Look()) -> Image.Image:  # noqa: B008 - it is frozen
    """Draw a text, and a notice below it, as a page.

    Line breaks of the text stay (verse); longer lines are wrapped between words; a word wider than its column is cut.
    Of two columns the left one is filled first, with half of the lines.

    Parameters
    ----------
    text, notice : str
        What the page says; white space within a line counts as one space, an empty line stays.
    look : Look
        How it is drawn.

    Returns
    -------
    PIL.Image.Image
        Mode ``"L"``; as wide as `look.width`, a little more where it is turned, and as high as the text needs.

    Raises
    ------
    InputError
        When the page would have more than 2^25 pixels.
    """
    margin = max(16, look.width // 25)
    inner = look.width - 2 * margin
    column = (inner - (look.columns - 1) * margin) // look.columns
    lines, small = _wrap(text, look.font, look.size, column), _wrap(notice, look.font, look.notice_size, inner)
    rows = -(-len(lines) // look.columns)
    step, small_step = _line_height(look.size), _line_height(look.notice_size)
    gap = step if small else 0
    height = 2 * margin + rows * step + gap + len(small) * small_step
    if look.width * height > _PIXELS:
        got = f"a text that needs a page of {look.width:,} x {height:,} pixels"
        raise InputError(got, f"at most {_PIXELS:,} pixels", "draw it as several pages")
    image = Image.new("L", (look.width, height), look.paper)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        place = (margin + i // rows * (column + margin), margin + i % rows * step)
        draw.text(place, line, fill=look.ink, font=_find_font(look.font, look.size))
    for i, line in enumerate(small):
        place = (margin, margin + rows * step + gap + i * small_step)
        draw.text(place, line, fill=look.ink, font=_find_font(look.font, look.notice_size))
    if look.angle:
        image = image.rotate(look.angle, Image.Resampling.BICUBIC, expand=True, fillcolor=look.paper)
    return image


def encode_page(image: Image.Image) -> bytes:
    """Return a page as PNG of 16 greys, evenly spaced from its darkest to its lightest.

    No pixel moves by more than a thirtieth of that distance (and half a grey of 256); any other picture becomes grey
    first.
    """
    pixels = np.asarray(to_grey(image))
    low, high = int(pixels.min()), int(pixels.max())
    greys = np.rint(np.linspace(low, high, _GREYS)).astype(np.uint8)
    nearest = np.rint((np.arange(256) - low) * (_GREYS - 1) / max(high - low, 1)).clip(0, _GREYS - 1)
    small = Image.fromarray(nearest.astype(np.uint8)[pixels]).convert("P")
    small.putpalette(np.repeat(greys, 3).tobytes())
    written = io.BytesIO()
    small.save(written, "PNG")  # four bits a pixel, by its palette
    return written.getvalue()


def to_grey(image: Image.Image) -> Image.Image:
    """Return a picture in mode ``"L"``, on a ground where its letters can be seen.

    What is transparent becomes white around dark letters and black around light ones; 16 bits are scaled to 8.
    """
    if image.mode.startswith("I"):  # Pillow cuts 16 bits off instead of scaling them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("L")
    grey, alpha = image.convert("RGBA").convert("LA").split()
    seen = grey.histogram(alpha)
    ground = Image.new("L", grey.size, 255 if sum(seen[:128]) >= sum(seen[128:]) else 0)
    ground.paste(grey, mask=alpha)
    return ground


def vary(seed: int, name: str) -> Look:
    """Draw a look at random, a function of the seed and the name alone.

    Font, size 13 to 24 px, width 600 to 1,000 px, ink 0 to 110, paper 225 to 255, up to 2 degrees either way, one
    column in three of four, a notice of 10 to 14 px: all of it is read by people without effort.
    """
    rng = np.random.default_rng(stream(seed, "page look", name))
    return Look(
        font=("serif", "sans", "mono")[rng.integers(3)],
        size=int(rng.integers(13, 25)),
        width=int(rng.integers(600, 1001)),
        ink=int(rng.integers(0, 111)),
        paper=int(rng.integers(225, 256)),
        angle=float(rng.uniform(-2.0, 2.0)),
        columns=2 if rng.random() < 0.25 else 1,
        notice_size=int(rng.integers(10, 15)),
    )


# -- letters --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=128)
def _find_font(name: str, size: int) -> _Font:
    """Return a font by its kind, the first one that is installed."""
    for file in _FILES[name]:
        try:
            # the basic layout is everywhere; the other one comes with some builds of Pillow only
            return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
        except OSError:
            continue
    return ImageFont.load_default(size)


@lru_cache(maxsize=1 << 16)
def _text_width(name: str, size: int, text: str) -> float:
    """Return how wide a text is in a font, in px; words come again and again, so it is kept."""
    return _find_font(name, size).getlength(text)


def _line_height(size: int) -> int:
    """Return the distance between lines, in px."""
    return size + max(3, size // 3)


def _wrap(text: str, name: str, size: int, width: int) -> list[str]:
    """Break a text into lines of at most a width, between words where that can be."""
    space, lines = _text_width(name, size, " "), list[str]()
    for given in text.splitlines():
        line, used = list[str](), 0.0
        for word in (part for whole in given.split() for part in _cut(whole, name, size, width)):
            wide = _text_width(name, size, word)
            if line and used + space + wide > width:
                lines.append(" ".join(line))
                line, used = [], 0.0
            used += wide + (space if line else 0.0)
            line.append(word)
        lines.append(" ".join(line))
    return lines


def _cut(word: str, name: str, size: int, width: int) -> list[str]:
    """Cut a word that is wider than a column into parts that are not, of one letter at least."""
    if len(word) == 1 or _text_width(name, size, word) <= width:
        return [word]
    parts, used = [""], 0.0
    for letter in word:
        wide = _text_width(name, size, letter)
        if parts[-1] and used + wide > width:
            parts.append("")
            used = 0.0
        parts[-1] += letter
        used += wide
    return parts
