"""Maps of FedFACT's panel: gaps of every client and group, and accuracy against gap at every tolerance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from upright.report.evidence import Spot
from upright.report.plots import COLOURS, FONT, WIDTH, Canvas, _axes, _finish, _vertical, colour_of, marker_of
from upright.report.read import View
from upright.report.text import MINUS, number, shorten

__all__ = ["FEWEST", "STEPS", "Count", "Rates", "draw_front", "draw_map", "groups_of", "rates_of"]

FEWEST = 5  # a cell of fewer rows is not shown
STEPS = (0.02, 0.05, 0.1, 0.2)  # sizes of gaps at which the shade changes
_SHADE = 0.13  # opacity of one step: letters stay readable over four
ABOVE, BELOW = 1, 2  # colours


@dataclasses.dataclass(frozen=True)
class Count:
    """Rows of a cell and the sum of their decisions; a cell of fewer than five rows has neither."""

    n: int
    total: float

    @property
    def rate(self) -> float:
        """Share decided so; NaN without rows."""
        return self.total / self.n if self.n else math.nan


#: (client, group) -> rows; None where there are fewer than five
Rates = Mapping[tuple[str, str], Count | None]


# -- what was decided, by cell --------------------------------------------------------------------------------------


def rates_of(view: View, arms: Sequence[str], seed: int | None) -> dict[tuple[str, str], Rates]:
    """Return the cells of each (arm, rate) at one seed, from the unit table or from published cells.

    Parameters
    ----------
    arms : sequence of str
    seed : int or None
        None takes every seed that the table has.

    Returns
    -------
    dict
        Empty where the folder has neither table. Cells without any row are not listed.
    """
    names = [run.name for run in view.runs if run.seed == seed] or [run.name for run in view.runs][:1]
    places = [view.folder, *(parent / name for name in names for parent in (view.folder.parent, view.folder))]
    for place in places:
        for file, read in (("units.parquet", _from_units), ("cells.parquet", _from_cells)):
            if (place / file).is_file():
                return read(place / file, arms, seed)
    return {}


def _from_units(path: Path, arms: Sequence[str], seed: int | None) -> dict[tuple[str, str], Rates]:
    from upright.evidence.units import read_units

    found: dict[tuple[str, str], Rates] = {}
    for block in read_units(path):
        by = block.scores.by
        if block.arm not in arms or seed not in (None, block.seed) or not {"client", "group"} <= set(by):
            continue
        clients, client = np.unique(np.asarray(by["client"], dtype=str), return_inverse=True)
        groups, group = np.unique(np.asarray(by["group"], dtype=str), return_inverse=True)
        code, size = client * len(groups) + group, len(clients) * len(groups)
        for metric, given in block.scores.values.items():
            if not metric.startswith("rate/"):
                continue
            values = np.asarray(given, dtype=np.float64)
            ok = ~np.isnan(values)
            n, total = np.bincount(code[ok], minlength=size), np.bincount(code[ok], values[ok], size)
            found[block.arm, metric] = {
                (str(clients[i // len(groups)]), str(groups[i % len(groups)])): _count(int(n[i]), float(total[i]))
                for i in np.flatnonzero(n)
            }
    return found


def _from_cells(path: Path, arms: Sequence[str], seed: int | None) -> dict[tuple[str, str], Rates]:
    import pyarrow.parquet as pq

    found: dict[tuple[str, str], dict[tuple[str, str], Count | None]] = {}
    for row in pq.read_table(path).to_pylist():
        if row["arm"] in arms and seed in (None, row["seed"]) and row["metric"].startswith("rate/") and row["n"] != 0:
            n, mean = row["n"], row["mean"]
            own = found.setdefault((row["arm"], row["metric"]), {})
            own[str(row["client"]), str(row["group"])] = None if n is None else _count(n, n * mean)
    return dict(found)


def _count(n: int, total: float) -> Count | None:
    return Count(n, total) if n >= FEWEST else None


def groups_of(cells: Rates) -> list[str]:
    """Return the groups, the largest first, so that what is cut from a map is the smallest."""
    size: dict[str, int] = {}
    for (_, group), one in cells.items():
        size[group] = size.get(group, 0) + (one.n if one else 0)
    return sorted(size, key=lambda g: (-size[g], g))


# -- drawing --------------------------------------------------------------------------------------------------------


def draw_map(rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], groups: Sequence[str], canvas: Canvas) -> str:
    """Draw a row for each client and a column for each group, shaded by the size and the sign of the gap.

    Parameters
    ----------
    rows : sequence of (name, cells)
        A cell is a gap, NaN where there is none, and the line below it.
    """
    left, head, step = 76.0, 34.0, 34.0
    height, wide = head + step * len(rows) + 4.0, (WIDTH - left - 4.0) / max(len(groups), 1)
    fig, ax = _axes(height, left=0, right=0, top=0, bottom=0)
    ax.set_axis_off()
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(height, 0)
    for j, group in enumerate(groups):
        lines = _two_lines(group, max(int(wide / 7.6), 4))
        for k, line in enumerate(lines):
            _say(ax, left + (j + 0.5) * wide, head - 9 - 13 * (len(lines) - 1 - k), line, weight="bold")
    for i, (name, cells) in enumerate(rows):
        y = head + i * step
        _say(ax, 4, y + step / 2, shorten(name, 12), align="left", weight="normal" if i else "bold")
        for j, (gap, below) in enumerate(cells):
            x = left + j * wide
            shade = sum(abs(gap) >= size for size in STEPS) if math.isfinite(gap) else 0
            if shade:
                colour = COLOURS[colour_of(ABOVE if gap > 0 else BELOW)]
                ax.add_patch(
                    Rectangle((x + 1, y + 1), wide - 2, step - 2, facecolor=colour, alpha=_SHADE * shade, linewidth=0)
                )
            ax.add_patch(
                Rectangle((x + 1, y + 1), wide - 2, step - 2, fill=False, edgecolor=COLOURS["line"], linewidth=0.8)
            )
            _say(ax, x + wide / 2, y + 11, _hundredths(gap) if math.isfinite(gap) else "–")
            _say(ax, x + wide / 2, y + 24, below, "soft")
    return canvas._svg(fig, height)


def _say(
    ax: Axes, x: float, y: float, text: str, colour: str = "ink", align: str = "center", weight: str = "normal"
) -> None:
    found = ax.text(x, y, text, ha=align, va="center", fontsize=FONT, color=COLOURS[colour], parse_math=False)
    found.set_fontweight(weight)


def _two_lines(name: str, size: int) -> list[str]:
    """Break a name at a space or hyphen where its halves are most alike, each cut to a size; the table holds it."""
    if len(name) <= size:
        return [name]
    cuts = [i + 1 for i, letter in enumerate(name) if letter in " -" and 0 < i < len(name) - 1]
    if not cuts:
        return [shorten(name, size)]
    at = min(cuts, key=lambda i: max(i, len(name) - i))
    return [shorten(half.strip(), size) for half in (name[:at], name[at:])]


def _hundredths(gap: float) -> str:
    """Write two decimals and no more: a cell has no room for the digits of a tiny gap."""
    return f"{gap:+.2f}".replace("-", MINUS) if abs(gap) >= 0.005 else "0.00"


def draw_front(
    spots: Sequence[Spot],
    calibration: Sequence[tuple[float, float] | None],
    xlabel: str,
    ylabel: str,
    tolerance: float,
    canvas: Canvas,
) -> str:
    """Draw every arm at every tolerance: filled with intervals on test, open on calibration rows, one line an arm.

    Parameters
    ----------
    spots : sequence of Spot
    calibration : sequence of (accuracy, gap) or None
        Of each spot.
    tolerance : float
        Drawn as a line across; NaN draws none.
    """
    height = 300.0
    fig, ax = _axes(height, left=46, right=12, top=26, bottom=40)
    if math.isfinite(tolerance):
        ax.axhline(tolerance, color=COLOURS["soft"], linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    for index in dict.fromkeys(spot.arm.index for spot in spots):
        own = [(s, c) for s, c in zip(spots, calibration, strict=True) if s.arm.index == index]
        colour, marker = COLOURS[colour_of(index)], marker_of(index)
        test = [(s.x.value, s.y.value) for s, _ in own]
        fitted = [c for _, c in own if c]
        for points, style in ((test, "-"), (fitted, (0, (1, 2)))):
            if len(points) > 1:
                ax.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, linestyle=style, zorder=3)
        for spot, _ in own:
            x, y, large = spot.x, spot.y, not spot.swept
            for xs, ys in (((x.low, x.high), (y.value, y.value)), ((x.value, x.value), (y.low, y.high))):
                if all(map(math.isfinite, (*xs, *ys))):
                    wide, alpha = (1.4, None) if large else (0.8, 0.6)
                    ax.plot(xs, ys, color=colour, linewidth=wide, alpha=alpha, solid_capstyle="butt", zorder=3)
            if math.isfinite(x.value) and math.isfinite(y.value):
                size, above = 8 if large else 4.5, 5 + 0.5 * (index == 1)
                ax.plot([x.value], [y.value], marker, markersize=size, color=colour, clip_on=False, zorder=above)
        for a, b in fitted:
            ax.plot([a], [b], marker, ms=6, color=COLOURS["paper"], mec=colour, mew=1.4, clip_on=False, zorder=4)
    ax.margins(0.08)
    if ax.get_ylim()[0] < 0:
        ax.set_ylim(bottom=0)
    _finish(ax, xlabel)
    _vertical(ax, ylabel, height)
    return canvas._svg(fig, height)


def said_count(one: Count | None, known: bool) -> str:
    """Return how many rows a cell has, for the second line of a map."""
    if one is None:
        return f"< {FEWEST}" if known else "no row"
    return number(one.n)
