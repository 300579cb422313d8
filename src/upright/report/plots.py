"""Plots as SVG text that follows the page: its fonts, its colours in light and dark, its width.

A figure is drawn 360 units wide, which is a phone; on a wide page several stand side by side instead of one being
stretched, so its letters stay between 11 and 13 pixels everywhere. Colours are drawn as sentinels and replaced by
CSS variables. Equal input gives equal bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from upright.evidence.records import Level
from upright.report.text import hundredths, number, shorten, two_lines

__all__ = ["COLOURS", "MARKERS", "Canvas", "Mark", "Point", "Row", "Series", "Shade", "colour_of", "marker_of"]

WIDTH = 360
FONT = 11.0
PAD = 3.0

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

    @property
    def heading(self) -> bool:
        """Whether this row only names those below it."""
        return not self.marks


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

    x: Sequence[float]
    y: Sequence[float]
    index: int
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class Shade:
    """One cell of a heat map: how far it is from its row, NaN where it has no mean, and the line below."""

    away: float
    text: str


@dataclasses.dataclass
class _Frame:
    """Axes that are drawn into, and the plot that they became."""

    ax: Axes
    svg: str = ""


class Canvas:
    """Draws figures whose ids differ from one another, so that any number of them share a page."""

    def __init__(self, prefix: str = "g") -> None:
        self.prefix, self.count = prefix, 0

    def rows(
        self,
        rows: Sequence[Row],
        xlabel: str,
        *,
        bars: bool = False,
        zero: bool = False,
        margin: float = 0.0,
        limits: tuple[float, float] | None = None,
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
        limits : pair of float, optional
            Of the x axis; by default they hold every interval.
        """
        step, head, top, bottom = 36.0, 26.0, 2.0, 40.0
        height = top + bottom + sum(head if row.heading else step for row in rows)
        fig, ax = _axes(height, left=8, right=12, top=top, bottom=bottom)
        span = height - top - bottom
        ax.set_ylim(span, 0)
        ax.set_xlim(*(limits or _limits(rows, zero or bars, margin)))
        low, high = ax.get_xlim()
        y = 0.0
        for row in rows:
            if row.heading:
                _text(ax, 0, y + head - 9, row.label, weight="bold")
                y += head
                continue
            _text(ax, 0, y + 11, row.label)
            _text(ax, 1, y + 11, row.text, align="right", colour="soft")
            # band and zero are drawn beside the marks only: behind the labels they would be clutter
            if margin > 0:
                ax.fill_between(
                    (max(-margin, low), min(margin, high)), y + 17, y + 31, color=COLOURS["band"], linewidth=0
                )
            if zero or (bars and low < 0):
                ax.plot([0, 0], [y + 17, y + 31], color=COLOURS["soft"], linewidth=1, solid_capstyle="butt")
            self._row(ax, row, y + 24, bars)
            y += step
        _finish(ax, xlabel)
        ax.yaxis.set_visible(False)
        ax.spines["left"].set_visible(False)
        return self._svg(fig, height)

    @staticmethod
    def _row(ax: Axes, row: Row, y: float, bars: bool) -> None:
        if row.band is not None:
            ax.fill_between(row.band, y - 6, y + 6, color=COLOURS["band"], linewidth=0)
        seen = [mark for mark in row.marks if math.isfinite(mark.value)]
        if len(seen) == 2 and not bars:
            ax.plot([mark.value for mark in seen], [y, y], color=COLOURS["line"], linewidth=3, solid_capstyle="round")
        for k, mark in enumerate(seen):
            at = y + (k - (len(seen) - 1) / 2) * 5.0 if len(seen) > 1 and not bars else y
            colour = COLOURS[colour_of(mark.index)]
            if bars:
                ax.barh(y, mark.value, height=9, color=colour, linewidth=0)
            if math.isfinite(mark.low) and math.isfinite(mark.high):
                ink = COLOURS["ink"] if bars else colour
                ax.plot(
                    [mark.low, mark.high],
                    [at, at],
                    color=ink,
                    linewidth=1.6 if not bars else 1.2,
                    solid_capstyle="butt",
                )
                if bars:
                    for end in (mark.low, mark.high):
                        ax.plot([end, end], [y - 3, y + 3], color=ink, linewidth=1.2, solid_capstyle="butt")
            if not bars:
                face = COLOURS["paper"] if mark.hollow else colour
                ax.plot(
                    [mark.value],
                    [at],
                    marker=mark.shape or marker_of(mark.index),
                    markersize=7,
                    color=face,
                    markeredgecolor=colour,
                    markeredgewidth=1.5,
                    linestyle="none",
                )

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
        with self._frame(300.0, xlabel, ylabel) as frame:
            ax = frame.ax
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
        return frame.svg

    def curves(self, series: Sequence[Series], xlabel: str, ylabel: str) -> str:
        """Draw curves by step, each with its arm's marker at the end."""
        with self._frame(260.0, xlabel, ylabel) as frame:
            for one in series:
                # the remedy is drawn over the others; a marker at the end names the arm without colour
                colour, above = COLOURS[colour_of(one.index)], 4 if one.index == 1 else 3
                if one.low:
                    frame.ax.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
                frame.ax.plot(one.x, one.y, color=colour, linewidth=1.8, zorder=above)
                end = (one.x[-1:], one.y[-1:], marker_of(one.index))
                frame.ax.plot(*end, markersize=7, color=colour, zorder=above)
            frame.ax.margins(x=0.03, y=0.06)
        return frame.svg

    def histogram(self, edges: Sequence[float], heights: Sequence[float], index: int, xlabel: str, ylabel: str) -> str:
        """Draw a filled histogram of n + 1 edges and n heights."""
        with self._frame(240.0, xlabel, ylabel) as frame:
            colour, paper = COLOURS[colour_of(index)], COLOURS["paper"]
            frame.ax.stairs(list(heights), list(edges), fill=True, facecolor=colour, edgecolor=paper, linewidth=1)
            frame.ax.margins(x=0.02, y=0.06)
            frame.ax.set_ylim(bottom=0)
        return frame.svg

    def plane(self, points: Sequence[Point], x: Level, y: Level, **more: Any) -> str:
        """Draw points in a plane whose axes are called as the levels x and y are."""
        across = "← better" if x.better == "lower" else "better →"
        up = {"lower": " (better ↓)", "higher": " (better ↑)"}.get(y.better, "")
        xlabel, ylabel = f"{shorten(x.label, 36)} ({across})", shorten(y.label, 40) + up
        return self.front(points, xlabel, ylabel, y_from_zero=y.better == "lower", **more)

    def dots(self, points: Sequence[Sequence[float]], xlabel: str, ylabel: str, *, index: int = 1) -> str:
        """Draw points (P, 2) in [0, 1] x [0, 1]."""
        with self._frame(300.0, xlabel, ylabel) as frame:
            x, y = zip(*points, strict=True)
            size, colour = 5.5 if len(points) <= 150 else 4.0, COLOURS[colour_of(index)]
            frame.ax.plot(x, y, "o", markersize=size, color=colour, alpha=0.5, markeredgewidth=0)
            frame.ax.set_xlim(-0.02, 1.02)
            frame.ax.set_ylim(-0.02, 1.02)
        return frame.svg

    def heat(self, rows: Sequence[tuple[str, Sequence[Shade]]], columns: Sequence[str], steps: Sequence[float]) -> str:
        """Draw rows of cells, shaded by the sign of the distance and by how many of the steps it reaches."""
        left, head, step = 76.0, 34.0, 34.0
        height, wide = head + step * len(rows) + 4.0, (WIDTH - left - 4.0) / max(len(columns), 1)
        fig, ax = _axes(height, left=0, right=0, top=0, bottom=0)
        ax.set_axis_off()
        ax.set_xlim(0, WIDTH)
        ax.set_ylim(height, 0)

        def say(x: float, y: float, text: str, ink: str = "ink", align: str = "center") -> None:
            ax.text(x, y, text, ha=align, va="center", fontsize=FONT, color=COLOURS[ink], parse_math=False)

        for j, name in enumerate(columns):
            lines = two_lines(name, max(int(wide / 7.6), 4))
            for k, line in enumerate(lines):
                say(left + (j + 0.5) * wide, head - 9 - 13 * (len(lines) - 1 - k), line)
        for i, (name, cells) in enumerate(rows):
            y = head + i * step
            say(4, y + step / 2, shorten(name, 12), align="left")
            for j, one in enumerate(cells):
                x = left + j * wide
                shade = sum(abs(one.away) >= size for size in steps) if math.isfinite(one.away) else 0
                colour = COLOURS[colour_of(1 if one.away > 0 else 2)]
                box = Rectangle((x + 1, y + 1), wide - 2, step - 2, facecolor=colour, alpha=0.13 * shade, linewidth=0)
                ax.add_patch(box)
                edge = Rectangle((x + 1, y + 1), wide - 2, step - 2, fill=False, edgecolor=COLOURS["line"])
                edge.set_linewidth(0.8)
                ax.add_patch(edge)
                say(x + wide / 2, y + 11, hundredths(one.away))
                say(x + wide / 2, y + 24, one.text, "soft")
        return self._svg(fig, height)

    @contextlib.contextmanager
    def _frame(self, height: float, xlabel: str, ylabel: str) -> Iterator[_Frame]:
        fig, ax = _axes(height, left=46, right=12, top=26, bottom=40)
        frame = _Frame(ax)
        yield frame
        _finish(ax, xlabel)
        _vertical(ax, ylabel, height)
        frame.svg = self._svg(fig, height)

    def _svg(self, fig: Figure, height: float) -> str:
        self.count += 1
        return _render(fig, height, f"{self.prefix}{self.count}-")


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


def _text(
    ax: Axes, x: float, y: float, text: str, *, align: str = "left", weight: str = "normal", colour: str = "ink"
) -> None:
    if text:
        ax.text(
            x,
            y,
            text,
            transform=ax.get_yaxis_transform(),
            horizontalalignment=align,
            verticalalignment="baseline",
            fontsize=FONT,
            fontweight=weight,
            color=COLOURS[colour],
            parse_math=False,
        )


def _finish(ax: Axes, xlabel: str) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(COLOURS["line"])
        ax.spines[side].set_linewidth(1)
    ax.tick_params(labelsize=FONT, labelcolor=COLOURS["soft"], color=COLOURS["line"], length=4, width=1)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    # the label is set at the axis' left end, where a narrow page has room for a long one
    ax.set_xlabel(xlabel, loc="left", fontsize=FONT, color=COLOURS["ink"], labelpad=4, parse_math=False)
    ax.set_axisbelow(True)


def _vertical(ax: Axes, ylabel: str, height: float) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    ax.grid(True, color=COLOURS["line"], linewidth=0.6)
    # upright letters above the axis read better than turned ones beside it
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.text(8 / WIDTH, 1 - 12 / height, ylabel, fontsize=FONT, color=COLOURS["ink"], parse_math=False)


def _tick(value: float) -> str:
    return number(value, 6, plain=True)


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


def _render(fig: Figure, height: float, prefix: str) -> str:
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
    root.set("viewBox", f"0 0 {WIDTH} {height:g}")
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
