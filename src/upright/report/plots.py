"""Plots as SVG text that follows the page: its fonts, its colours in light and dark, its width.

A figure is drawn 360 units wide, which is a phone; on a wide page several stand side by side instead of one being
stretched, so its letters stay between 11 and 13 pixels everywhere. Colours are drawn as sentinels and replaced by
CSS variables. Equal input gives equal bytes.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from upright.report.text import hundredths, number, shorten, two_lines

__all__ = ["COLOURS", "MARKERS", "Canvas", "Mark", "Point", "Row", "Series", "Shade", "colour_of", "marker_of"]

WIDTH = 360
FONT = 11.0
PAD = 3.0

Numbers = Sequence[float] | NDArray[np.float64]

# name of a CSS variable -> what matplotlib draws; the values mean nothing and occur nowhere else
COLOURS = {
    name: f"#{0x0A0B01 + i:06x}"
    for i, name in enumerate(
        ("ink", "soft", "line", "paper", "band", "arm-0", "arm-1", "arm-2", "arm-3", "arm-4", "arm-5", "arm-6")
    )
}
ARM_COLOURS = 7
MARKERS = ("o", "D", "s", "^", "v", "P", "X")


def colour_of(index: int) -> str:
    """Return the colour name of an arm; past the palette, colours repeat with other markers."""
    return f"arm-{index}" if index < ARM_COLOURS else f"arm-{2 + (index - 2) % (ARM_COLOURS - 2)}"


def marker_of(index: int) -> str:
    """Return the marker of an arm."""
    return MARKERS[index % len(MARKERS)]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A value with its interval on a row; NaN is not drawn."""

    value: float
    low: float
    high: float
    index: int = 0
    hollow: bool = False
    shape: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a row plot: label above on the left, text above on the right, marks below; no marks: a heading."""

    label: str
    marks: tuple[Mark, ...] = ()
    text: str = ""
    band: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """One arm on a front, with its interval on both axes; a small one has no interval."""

    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    index: int
    small: bool = False


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve, with a shaded range where `low` and `high` are given."""

    x: Numbers
    y: Numbers
    index: int
    low: Numbers = ()
    high: Numbers = ()


@dataclasses.dataclass(frozen=True)
class Shade:
    """One cell of a heat map: how far it is from its row, NaN where it has no mean, and the line below."""

    away: float
    text: str


class Canvas:
    """Draws figures whose ids differ from one another, so that any number of them share a page."""

    def __init__(self) -> None:
        self.count = 0

    def rows(
        self, rows: Sequence[Row], xlabel: str, *, bars: bool = False, zero: bool = False, margin: float = 0.0
    ) -> str:
        """Draw intervals (or bars from zero) under one another.

        Parameters
        ----------
        bars : bool
            Bars from zero instead of points; a row with two marks of points is joined by a line (a dumbbell).
        zero : bool
            Draw the line at zero.
        margin : float
            Half-width of the band around zero that counts as equal.
        """
        step, head, top, bottom = 36.0, 26.0, 2.0, 40.0
        span = sum(step if row.marks else head for row in rows)
        fig, ax = _axes(top + span + bottom, left=8, right=12, top=top, bottom=bottom)
        low, high = _limits(rows, zero or bars, margin)
        ax.set_ylim(span, 0)
        ax.set_xlim(low, high)
        across, y = ax.get_yaxis_transform(), 0.0
        for row in rows:
            if not row.marks:
                _text(ax, 0, y + head - 9, row.label, transform=across, fontweight="bold")
                y += head
                continue
            _text(ax, 0, y + 11, row.label, transform=across)
            _text(ax, 1, y + 11, row.text, "soft", transform=across, ha="right")
            # band and zero are drawn beside the marks only: behind the labels they would be clutter
            if margin > 0:
                ends = max(-margin, low), min(margin, high)
                ax.fill_between(ends, y + 17, y + 31, color=COLOURS["band"], linewidth=0)
            if zero or (bars and low < 0):
                ax.plot([0, 0], [y + 17, y + 31], color=COLOURS["soft"], linewidth=1, solid_capstyle="butt")
            if row.band is not None:
                ax.fill_between(row.band, y + 18, y + 30, color=COLOURS["band"], linewidth=0)
            marks = [mark for mark in row.marks if math.isfinite(mark.value)]
            (_bars if bars else _marks)(ax, marks, y + 24)
            y += step
        _finish(ax, xlabel)
        ax.yaxis.set_visible(False)
        ax.spines["left"].set_visible(False)
        return self._svg(fig)

    def front(
        self,
        points: Sequence[Point],
        xlabel: str,
        ylabel: str,
        *,
        y_from_zero: bool = False,
        lines: Sequence[Series] = (),
        strip: float = math.nan,
    ) -> str:
        """Draw arms in a plane with a cross of intervals each.

        Parameters
        ----------
        y_from_zero : bool
            Never show what lies below zero.
        lines : sequence of Series
            Drawn thin below the points, to join those that belong together.
        strip : float
            Shade heights from 0 to this one; NaN shades none.
        """
        fig, ax = _frame(300.0, xlabel, ylabel)
        if strip > 0:
            ax.axhspan(0.0, strip, color=COLOURS["band"], linewidth=0, zorder=0)
        for line in lines:
            ax.plot(line.x, line.y, color=COLOURS[colour_of(line.index)], linewidth=1.0, alpha=0.7, zorder=3)
        for point in points:
            if math.isfinite(point.x) and math.isfinite(point.y):
                _cross(ax, point)
        ax.margins(0.08)
        if strip > 0 or (y_from_zero and ax.get_ylim()[0] < 0):
            ax.set_ylim(bottom=0)
        return self._svg(fig)

    def curves(self, series: Sequence[Series], xlabel: str, ylabel: str) -> str:
        """Draw curves by step, each with its arm's marker at the end."""
        fig, ax = _frame(260.0, xlabel, ylabel)
        for one in series:
            # the remedy is drawn over the others; a marker at the end names the arm without colour
            colour, above = COLOURS[colour_of(one.index)], 4 if one.index == 1 else 3
            if len(one.low):
                ax.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
            ax.plot(one.x, one.y, color=colour, linewidth=1.8, zorder=above)
            ax.plot(one.x[-1:], one.y[-1:], marker_of(one.index), markersize=7, color=colour, zorder=above)
        ax.margins(x=0.03, y=0.06)
        return self._svg(fig)

    def histogram(self, edges: Sequence[float], heights: Sequence[float], index: int, xlabel: str, ylabel: str) -> str:
        """Draw a filled histogram of n + 1 edges and n heights."""
        fig, ax = _frame(240.0, xlabel, ylabel)
        colour, paper = COLOURS[colour_of(index)], COLOURS["paper"]
        ax.stairs(heights, edges, fill=True, facecolor=colour, edgecolor=paper, linewidth=1)
        ax.margins(x=0.02, y=0.06)
        ax.set_ylim(bottom=0)
        return self._svg(fig)

    def dots(self, points: Sequence[Sequence[float]], xlabel: str, ylabel: str, *, index: int = 1) -> str:
        """Draw points (P, 2) in [0, 1] x [0, 1]."""
        fig, ax = _frame(300.0, xlabel, ylabel)
        x, y = zip(*points, strict=True)
        size, colour = 5.5 if len(points) <= 150 else 4.0, COLOURS[colour_of(index)]
        ax.plot(x, y, "o", markersize=size, color=colour, alpha=0.5, markeredgewidth=0)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        return self._svg(fig)

    def heat(self, rows: Sequence[tuple[str, Sequence[Shade]]], columns: Sequence[str], steps: Sequence[float]) -> str:
        """Draw rows of cells, shaded by the sign of the distance and by how many of the steps it reaches."""
        left, head, step = 76.0, 34.0, 34.0
        height, wide = head + step * len(rows) + 4.0, (WIDTH - left - 4.0) / max(len(columns), 1)
        fig, ax = _axes(height, left=0, right=0, top=0, bottom=0)
        ax.set_axis_off()
        ax.set_xlim(0, WIDTH)
        ax.set_ylim(height, 0)
        middle = {"ha": "center", "va": "center"}
        for j, name in enumerate(columns):
            lines = two_lines(name, max(int(wide / 7.6), 4))
            for k, line in enumerate(lines):
                _text(ax, left + (j + 0.5) * wide, head - 9 - 13 * (len(lines) - 1 - k), line, **middle)
        for i, (name, cells) in enumerate(rows):
            y = head + i * step
            _text(ax, 4, y + step / 2, shorten(name, 12), va="center")
            for j, one in enumerate(cells):
                x = left + j * wide
                shade = sum(abs(one.away) >= size for size in steps) if math.isfinite(one.away) else 0
                colour = COLOURS[colour_of(1 if one.away > 0 else 2)]
                box = (x + 1, y + 1), wide - 2, step - 2
                ax.add_patch(Rectangle(*box, facecolor=colour, alpha=0.13 * shade, linewidth=0))
                ax.add_patch(Rectangle(*box, fill=False, edgecolor=COLOURS["line"], linewidth=0.8))
                _text(ax, x + wide / 2, y + 11, hundredths(one.away), **middle)
                _text(ax, x + wide / 2, y + 24, one.text, "soft", **middle)
        return self._svg(fig)

    def _svg(self, fig: Figure) -> str:
        self.count += 1
        return _render(fig, f"g{self.count}-")


def _bars(ax: Axes, marks: Sequence[Mark], y: float) -> None:
    """Draw bars from zero with their intervals."""
    for mark in marks:
        ax.barh(y, mark.value, height=9, color=COLOURS[colour_of(mark.index)], linewidth=0)
        ends = [mark.low, mark.high]
        if all(map(math.isfinite, ends)):
            ink: dict[str, Any] = {"color": COLOURS["ink"], "linewidth": 1.2, "solid_capstyle": "butt"}
            ax.plot(ends, [y, y], **ink)
            for end in ends:
                ax.plot([end, end], [y - 3, y + 3], **ink)


def _marks(ax: Axes, marks: Sequence[Mark], y: float) -> None:
    """Draw marks with their intervals, those of one row above one another; two are joined by a line."""
    if len(marks) == 2:
        ax.plot([mark.value for mark in marks], [y, y], color=COLOURS["line"], linewidth=3, solid_capstyle="round")
    for k, mark in enumerate(marks):
        at, colour = y + (k - (len(marks) - 1) / 2) * 5.0, COLOURS[colour_of(mark.index)]
        if math.isfinite(mark.low) and math.isfinite(mark.high):
            ax.plot([mark.low, mark.high], [at, at], color=colour, linewidth=1.6, solid_capstyle="butt")
        shape, face = mark.shape or marker_of(mark.index), COLOURS["paper"] if mark.hollow else colour
        ax.plot([mark.value], [at], shape, markersize=7, color=face, markeredgecolor=colour, markeredgewidth=1.5)


def _cross(ax: Axes, point: Point) -> None:
    """Draw a point with its intervals on both axes; a small one has none."""
    colour = COLOURS[colour_of(point.index)]
    # the remedy is drawn over an arm that coincides with it, and a diamond leaves a square's corners free
    above = (4 if point.small else 5) + 0.5 * (point.index == 1)
    whole = ((point.x_range, (point.y, point.y)), ((point.x, point.x), point.y_range))
    for xs, ys in () if point.small else whole:
        if all(map(math.isfinite, (*xs, *ys))):
            ax.plot(xs, ys, color=colour, linewidth=1.4, solid_capstyle="butt")
    size = 4 if point.small else 8
    ax.plot([point.x], [point.y], marker_of(point.index), markersize=size, color=colour, zorder=above)


def _axes(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    # 72 dots an inch: one point is one unit of the SVG
    fig = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    fig.patch.set_visible(False)
    place = (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height)
    ax = fig.add_axes(place)
    ax.patch.set_visible(False)
    return fig, ax


def _frame(height: float, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return axes with a grid, and their titles beside their ends."""
    fig, ax = _axes(height, left=46, right=12, top=26, bottom=40)
    _finish(ax, xlabel)
    ax.grid(True, color=COLOURS["line"], linewidth=0.6)
    # upright letters above the axis read better than turned ones beside it
    fig.text(8 / WIDTH, 1 - 12 / height, ylabel, fontsize=FONT, color=COLOURS["ink"], parse_math=False)
    return fig, ax


def _text(ax: Axes, x: float, y: float, text: str, colour: str = "ink", **more: Any) -> None:
    if text:
        ax.text(x, y, text, fontsize=FONT, color=COLOURS[colour], parse_math=False, **more)


def _finish(ax: Axes, xlabel: str) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(COLOURS["line"])
        ax.spines[side].set_linewidth(1)
    ax.tick_params(labelsize=FONT, labelcolor=COLOURS["soft"], color=COLOURS["line"], length=4, width=1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 6, plain=True)))
    # the label is set at the axis' left end, where a narrow page has room for a long one
    ax.set_xlabel(xlabel, loc="left", fontsize=FONT, color=COLOURS["ink"], labelpad=4, parse_math=False)
    ax.set_axisbelow(True)


def _limits(rows: Sequence[Row], zero: bool, margin: float) -> tuple[float, float]:
    ends = [end for row in rows for mark in row.marks for end in (mark.value, mark.low, mark.high)]
    ends += [end for row in rows if row.band for end in row.band]
    ends = [end for end in ends if math.isfinite(end)] + ([0.0] if zero else []) + ([-margin, margin] if margin else [])
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    pad = 0.04 * (high - low) or 0.05
    # bars and differences end at zero, not beside it, unless all there is lies at zero
    left = low if zero and low == 0 < high else low - pad
    return left, high if zero and low < 0 == high else high + pad


def _render(fig: Figure, prefix: str) -> str:
    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "upright"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # letters that matplotlib's own font lacks are drawn by the browser, so their absence here means nothing
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(buffer.getvalue())
    variables = {value: f"var(--{name})" for name, value in COLOURS.items()}
    wanted = set(_references(root))
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        for key in list(node.attrib):
            value = node.attrib.pop(key)
            local = key.rpartition("}")[2]
            if local == "style":
                value = re.sub(r"font-family: [^;]*(; )?", "", value)
                value = re.sub(r"#[0-9a-f]{6}", lambda found: variables.get(found.group(), found.group()), value)
            elif local == "id":
                if value not in wanted:
                    continue
                value = prefix + value
            elif local == "clip-path":
                value = value.replace("url(#", f"url(#{prefix}")
            elif local == "href":
                value = f"#{prefix}{value[1:]}"
            elif local == "transform" and value.startswith("rotate(-0 "):
                continue
            elif local == "d":
                value = re.sub(r"\s+", " ", value).strip()
            node.set(local, value)
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's own style sheet would rule over the whole page
            if child.tag in {"style", "metadata"} or (child.tag in {"defs", "g"} and _empty(child)):
                parent.remove(child)
    root.attrib.clear()
    root.set("viewBox", f"0 0 {WIDTH} {72 * fig.get_figheight():g}")
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    for node in root.iter():
        if node.tag != "text":
            node.text = None
        node.tail = None
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _empty(node: ET.Element) -> bool:
    return not any(child.tag not in {"g", "defs", "style"} for child in node.iter() if child is not node)


def _references(root: ET.Element) -> Iterator[str]:
    for node in root.iter():
        for key, value in node.attrib.items():
            if key.endswith("href"):
                yield value[1:]
            elif key == "clip-path":
                yield value[len("url(#") : -1]
