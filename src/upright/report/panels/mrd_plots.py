"""Plots of MRD's panel that the shared canvas has no form for: ranks against ranks, and scores with their thirds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from upright.report.plots import COLOURS, FONT, Canvas, _axes, _finish, _vertical, colour_of
from upright.report.text import number

__all__ = ["bins_of", "draw_ranks", "draw_scores", "ranks_within"]

Array = NDArray[np.float64]
WIDE = 20.0  # scores that differ by more than this factor get an axis of powers
MOST_BINS = 16


def ranks_within(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """Return midranks from 0 to 1 of both values within each seed, pooled, shape (P, 2); NaN is left out.

    Parameters
    ----------
    pairs : sequence of two ndarrays of shape (U,)
        One pair a seed; units without both values are left out, as the rank correlation leaves them out.
    """
    from scipy.stats import rankdata

    found = [np.zeros((0, 2))]
    for x, y in pairs:
        ok = ~np.isnan(x) & ~np.isnan(y)
        if ok.any():
            found.append(np.column_stack([(rankdata(v[ok]) - 0.5) / ok.sum() for v in (x, y)]))
    return np.concatenate(found)


def draw_ranks(points: Array, xlabel: str, ylabel: str, canvas: Canvas, index: int = 1) -> str:
    """Draw one dot a record in a plane of ranks, points (P, 2) in 0 to 1."""
    height = 300.0
    fig, ax = _axes(height, left=46, right=12, top=26, bottom=40)
    colour, size = COLOURS[colour_of(index)], 5.5 if len(points) <= 150 else 4.0
    ax.plot(points[:, 0], points[:, 1], "o", markersize=size, color=colour, alpha=0.5, markeredgewidth=0)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    _finish(ax, xlabel)
    _vertical(ax, ylabel, height)
    return canvas._svg(fig, height)


def bins_of(scores: Array) -> tuple[Array, NDArray[np.int64], bool]:
    """Return edges (n + 1), counts (n) of scores, and whether the edges are even in powers of ten.

    Parameters
    ----------
    scores : ndarray, shape (U,)
        Without NaN, at least one.
    """
    low, high = float(scores.min()), float(scores.max())
    powers = low > 0 and high / low > WIDE
    n = min(MOST_BINS, max(4, math.ceil(math.sqrt(len(scores)))))
    counts, edges = np.histogram(np.log10(scores) if powers else scores, bins=n)
    if not powers:
        return edges, counts, False
    edges = 10.0**edges
    edges[[0, -1]] = low, high
    return edges, counts, True


def draw_scores(
    edges: Array,
    counts: NDArray[np.int64],
    powers: bool,
    cuts: Array,
    names: Sequence[str],
    xlabel: str,
    ylabel: str,
    canvas: Canvas,
    index: int = 1,
) -> str:
    """Draw a histogram with lines at the cuts and the name of each part above it.

    Parameters
    ----------
    edges, counts : ndarray, shapes (n + 1,) and (n,)
    powers : bool
        Whether the axis runs in powers.
    cuts : ndarray, shape (k,)
    names : sequence of str, length k + 1
    """
    height = 260.0
    fig, ax = _axes(height, left=46, right=12, top=26, bottom=40)
    place = np.log10 if powers else np.asarray
    at, marks = place(edges), place(np.maximum(cuts, edges[0]))
    ax.stairs(counts, at, fill=True, facecolor=COLOURS[colour_of(index)], edgecolor=COLOURS["paper"], linewidth=1)
    ax.margins(x=0.02)
    top = 1.16 * max(int(counts.max()), 1)  # room for the names
    ax.set_ylim(0, top)
    for mark in marks:
        ax.plot([mark, mark], [0, top], color=COLOURS["soft"], linewidth=1.0, linestyle=(0, (4, 3)))
    low, high = ax.get_xlim()
    ends = np.concatenate([[low], marks, [high]])
    for name, a, b in zip(names, ends[:-1], ends[1:], strict=True):
        if (b - a) / (high - low) * 300 > 7 * len(name):  # a name that its part has no room for is in the words alone
            where, ink = ((a + b) / 2, 0.97 * top), COLOURS["ink"]
            ax.text(*where, name, ha="center", va="top", fontsize=FONT, color=ink, parse_math=False)
    _finish(ax, xlabel)
    if powers:
        ax.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(10.0**value, 3, plain=True)))
    _vertical(ax, ylabel, height)
    return canvas._svg(fig, height)


def _ticks(low: float, high: float) -> list[float]:
    """Return logarithms of 1, 2, 5, 10 ... between two logarithms; of 1, 10 ... alone where those are many."""
    span = range(math.floor(low), math.ceil(high) + 1)
    every = [k + math.log10(d) for k in span for d in (1, 2, 5)]
    inside = [t for t in every if low <= t <= high]
    return inside if len(inside) <= 7 else [float(k) for k in span if low <= k <= high]
