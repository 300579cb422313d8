"""What a page is made of: blocks that one template draws, for every kind of page.

A block is data; the template draws it by the name of its class. Text in it is plain text that the template escapes;
only `Figure.svg` is markup, and it comes from `upright.report.plots`, where text is escaped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from upright.evidence.verdict import TAGS
from upright.report.plots import colour_of, marker_of
from upright.report.text import interval, number

__all__ = [
    "DASH",
    "Block",
    "Cell",
    "Code",
    "Column",
    "Details",
    "Facts",
    "Figure",
    "Grid",
    "Image",
    "Key",
    "Link",
    "Notes",
    "Page",
    "Prose",
    "Section",
    "Table",
    "Tag",
    "Verdict",
    "cell",
    "count",
    "ends",
    "given",
    "numeric",
    "tag",
]


@dataclasses.dataclass(frozen=True)
class Tag:
    """A verdict's word with its icon; never colour alone."""

    word: str
    tone: str
    meaning: str = ""


def tag(word: str, colour: str = "") -> Tag:
    """Return the tag of a verdict word, in its own colour or another; an unknown word is shown as it is."""
    own, meaning = TAGS.get(word, ("neutral", ""))
    return Tag(word, {"neutral": "same"}.get(colour or own, colour or own), meaning)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell: text, a second line, what it sorts by, a verdict."""

    text: str
    small: str = ""
    order: float | str | None = None
    tag: Tag | None = None
    key: Key | None = None
    numeric: bool = False
    code: bool = False


def cell(
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    *,
    small: str = "",
    sign: bool = False,
    verdict: str | None = None,
) -> Cell:
    """Return a cell that holds a number, its interval or another small line, and sorts by the number, NaN last."""
    small = interval(low, high, sign=sign) if math.isfinite(low) else small
    order = None if math.isnan(value) else value
    return Cell(number(value, sign=sign), small, order, tag(verdict) if verdict else None, numeric=True)


DASH = Cell("–", numeric=True)  # what does not apply, or is not stored


def given(value: float) -> Cell:
    """Return a cell for a setting that a folder may leave out, without needless zeros."""
    return DASH if math.isnan(value) else Cell(number(value, plain=True), order=value, numeric=True)


def count(n: int | None) -> Cell:
    """Return a cell for how many; empty when that is not known."""
    return Cell("" if n is None else number(n), order=n, numeric=True)


def ends(low: float, high: float) -> Cell:
    """Return a cell for an interval, which sorts by its lower end."""
    return Cell(interval(low, high), order=low if math.isfinite(low) else None, numeric=True)


@dataclasses.dataclass(frozen=True)
class Key:
    """How an arm looks in plots: colour and marker, with its title."""

    title: str
    index: int
    shape: str | None = None
    hollow: bool = False

    @property
    def colour(self) -> str:
        """CSS variable without dashes."""
        return colour_of(self.index)

    @property
    def marker(self) -> str:
        """Marker letter, as matplotlib names it; `shape` where a plot gives every arm the same."""
        return self.shape or marker_of(self.index)


@dataclasses.dataclass(frozen=True)
class Column:
    """A table column."""

    title: str
    small: str = ""
    numeric: bool = False
    key: Key | None = None


def numeric(*titles: str, small: str = "") -> list[Column]:
    """Return columns of numbers."""
    return [Column(title, small, True) for title in titles]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that scrolls in its own container."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = True
    reading: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Prose:
    """Paragraphs."""

    paragraphs: Sequence[str]
    muted: bool = False
    lead: bool = False


@dataclasses.dataclass(frozen=True)
class Facts:
    """Terms with their values; long terms take a line each."""

    items: Sequence[tuple[str, str]]
    long: bool = False
    title: str = ""
    reading: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Notes:
    """A list of remarks."""

    items: Sequence[str]
    tone: str = "same"
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Code:
    """A command, with a button that copies it."""

    text: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot, what it says in words, and the table behind it."""

    title: str
    svg: str
    alt: str
    table: Table
    keys: Sequence[Key] = ()
    reading: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture inside the page, with its size in bytes, and its first frame where it moves."""

    title: str
    source: str
    size: int
    reading: Sequence[str] = ()
    still: str = ""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Figures side by side where there is room; `beside`: a table and a figure, two columns of one row."""

    figures: Sequence[Block]
    beside: bool = False


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks that are folded."""

    summary: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Link:
    """A relative link to another report."""

    href: str
    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The card: one word, one sentence, its lines, and what to do next."""

    tag: Tag
    sentence: str
    facts: Sequence[tuple[str, str]] = ()
    steps: Sequence[str] = ()
    name: str = ""


Block = Table | Prose | Facts | Notes | Code | Figure | Image | Grid | Details | Link | Verdict


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of a page."""

    id: str
    title: str
    blocks: Sequence[Block]
    nav: str = ""
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole page."""

    kind: str
    title: str
    over: str
    sections: Sequence[Section]
