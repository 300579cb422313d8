"""What a report shows of a method or an audit, as data: blocks that `upright.report.kinds` draws.

A block names what it draws in ``of``:

* a pattern of statistics, as a gate writes them: ``gap:ndcg@10*:activity``, ``mean:ndcg@10:activity=*`` for the groups;
* a note: ``scores`` or a part of it, ``scores.mean``, as `Run.note` was given it; numbers become median and range over
  seeds.

What a folder does not hold is left out, so that one declaration serves every preset and data set. Standard library
only: a method file declares without loading what draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

__all__ = [
    "Block",
    "Changes",
    "Curve",
    "Dumbbell",
    "Front",
    "Heat",
    "Histogram",
    "Holds",
    "Intervals",
    "Noted",
    "Path",
    "Picture",
    "Scatter",
    "Signed",
]


@dataclasses.dataclass(frozen=True)
class Block:
    """What every kind has.

    Parameters
    ----------
    title : str
        What is to be seen.
    of : str
        Pattern of statistics, or name of a note.
    reading : sequence of str
        How to read it, and what it does not say.
    arms : sequence of str
        Roles that are shown; empty for all.
    """

    title: str
    of: str = ""
    reading: Sequence[str] = ()
    arms: Sequence[str] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True)
class Intervals(Block):
    """Values with intervals under one another: levels of statistics, or records of a note.

    Parameters
    ----------
    join : {"", "group", "arm"}
        Marks that share a row, joined by a line: the groups of an arm, or the arms of a group.
    zero : bool
        Draw the line at zero.
    bars : bool
        Bars from zero instead of marks.
    by, value, low, high, n : str
        Of a note: what its records are called by, and which of their fields are drawn.
    """

    join: Literal["", "group", "arm"] = dataclasses.field(default="", kw_only=True)
    zero: bool = dataclasses.field(default=False, kw_only=True)
    bars: bool = dataclasses.field(default=False, kw_only=True)
    by: Sequence[str] = dataclasses.field(default=(), kw_only=True)
    value: str = dataclasses.field(default="value", kw_only=True)
    low: str = dataclasses.field(default="low", kw_only=True)
    high: str = dataclasses.field(default="high", kw_only=True)
    n: str = dataclasses.field(default="n", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Dumbbell(Intervals):
    """Levels of two groups or more as joined marks, a row an arm."""

    join: Literal["", "group", "arm"] = dataclasses.field(default="group", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Signed(Intervals):
    """Levels around zero."""

    zero: bool = dataclasses.field(default=True, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Changes(Block):
    """Differences, the remedy minus every other arm, with the margin as a band around zero."""


@dataclasses.dataclass(frozen=True)
class Front(Block):
    """One statistic against another, a cross of intervals for each arm; strengths of a sweep as lines.

    Parameters
    ----------
    of, cost : str
        On the vertical and on the horizontal axis; the primary statistic and the cost by default.
    """

    cost: str = dataclasses.field(default="", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Curve(Block):
    """One field of a note's records, or of what was logged, along another.

    Parameters
    ----------
    of : str
        A note; empty for what `Run.log` wrote.
    x, y : str
        Fields; of what was logged, ``step`` and a name, such as ``valid/ndcg@10``.
    """

    x: str = dataclasses.field(default="epoch", kw_only=True)
    y: str = dataclasses.field(default="value", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Path(Curve):
    """Two fields of a note's records against each other, along a third one."""

    by: str = dataclasses.field(default="epoch", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Noted(Block):
    """Numbers that were noted, in a table.

    Parameters
    ----------
    names : mapping of str to str
        Fields below `of`, with how they are called.
    by : mapping of str to str
        What records of a list are called by, with how that is called; empty where the note is one record.
    """

    names: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    by: Mapping[str, str] = dataclasses.field(default_factory=dict, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Holds(Block):
    """A noted condition: `title` where it held in every run, `bad` where it did not, with the number of runs."""

    bad: str = dataclasses.field(default="", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Histogram(Block):
    """A note with ``edges`` (n + 1) and ``counts`` (n), or a metric of the unit table; the remedy is filled.

    Parameters
    ----------
    x : str
        What lies along the axis.
    """

    x: str = dataclasses.field(default="", kw_only=True)


@dataclasses.dataclass(frozen=True)
class Heat(Block):
    """Means by two groupings, shaded by how far each is from that of its row.

    Parameters
    ----------
    of : str
        Pattern of metrics of the unit table, or a note with a list of records.
    rows, columns : str
        Groupings, or fields of the records.
    value, n : str
        Of a note: the mean and what it rests on.
    split : sequence of str
        Of a note: fields of which each combination has a map of its own.
    """

    rows: str = dataclasses.field(default="client", kw_only=True)
    columns: str = dataclasses.field(default="group", kw_only=True)
    value: str = dataclasses.field(default="rate", kw_only=True)
    n: str = dataclasses.field(default="n", kw_only=True)
    split: Sequence[str] = dataclasses.field(default=(), kw_only=True)


@dataclasses.dataclass(frozen=True)
class Scatter(Block):
    """Two metrics of the unit table against each other as ranks within a seed, one dot a unit of the remedy.

    Parameters
    ----------
    names : mapping of str to str
        The metric along each axis, horizontal first, with how it is called.
    """

    names: Mapping[str, str] = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Picture(Block):
    """A picture that `Run.picture` kept: PNG, animated PNG or WebP, at most 300 kB."""
