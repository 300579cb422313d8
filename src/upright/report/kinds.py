"""Drawing declared blocks: levels, differences, notes or the unit table become plot, words and numbers."""

from __future__ import annotations

import base64
import dataclasses
import fnmatch
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright import declare
from upright.contract import InputError
from upright.evidence.records import Difference, Level
from upright.evidence.units import FEWEST
from upright.experiment.summary import ArmFacts
from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Grid,
    Image,
    Key,
    Notes,
    Prose,
    Table,
    cell,
    count,
    ends,
    given,
    numeric,
    tag,
)
from upright.report.plots import Canvas, Mark, Point, Row, Series, Shade
from upright.report.read import ArmView, View
from upright.report.table import Means
from upright.report.text import ROLES, attack_title, interval, lower, number, percent, plural, shorten, title_of
from upright.video.animate import still

__all__ = [
    "arm_cell",
    "arm_key",
    "changes_of",
    "draw",
    "intervals_figure",
    "levels_of",
    "panel",
    "spread",
    "spread_cell",
]

MOST_ROWS = 36  # of a plot; its table has all
MOST_STEPS = 200  # of a curve: more are not seen and make the file large
MOST_HEATS, MOST_CLIENTS, MOST_GROUPS = 4, 12, 5
MOST_BYTES = 300_000  # of a picture
STEPS = (0.02, 0.05, 0.1, 0.2)  # distances at which the shade of a heat map changes
Spread = tuple[float, float, float]  # median, lowest, highest over seeds
Records = NDArray[np.float64]  # shape (R, K, 3): records, fields, median and ends
NONE: Spread = (math.nan, math.nan, math.nan)


def panel(view: View, canvas: Canvas, declared: Sequence[declare.Block]) -> list[Block]:
    """Return the blocks that this folder has something for; neighbouring figures stand side by side."""
    found = [drawn for block in declared if (drawn := draw(block, view, canvas))]
    blocks: list[Block] = []
    for side_by_side, some in itertools.groupby(found, key=lambda one: isinstance(one, Figure)):
        group = list(some)
        blocks += [Grid(group)] if side_by_side else group
    return blocks


@singledispatch
def draw(block: declare.Block, view: View, canvas: Canvas) -> Block | None:
    """Return a block as parts of a page; None where the folder has nothing for it.

    Raises
    ------
    InputError
        When a note has not the shape that the block names.
    """
    raise InputError(f"block {type(block).__name__}", "a kind of upright.declare", "declare one of these kinds")


# -- levels and differences as rows -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One value of one arm, from a level, a difference or a note."""

    arm: ArmView
    of: str
    group: str = ""
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None
    null: tuple[float, float] | None = None
    better: str = "none"
    change: Difference | None = None


def _arms(view: View, block: declare.Block) -> list[ArmView]:
    some = [arm for arm in view.arms if not block.arms or arm.role in block.arms]
    return some or list(view.arms) * (view.kind == "audit")  # what was audited has no role


def _matches(row: Level | Difference, pattern: str) -> bool:
    text = row.statistic if isinstance(row, Difference) else row.text
    return any(fnmatch.fnmatchcase(text, one) for one in pattern.split())


def levels_of(view: View, pattern: str, arms: Sequence[ArmView] | None = None) -> list[Line]:
    """Return levels as lines, arms in their order within a group."""
    shown, found = {arm.name: arm for arm in (view.arms if arms is None else arms)}, list[Line]()
    for row in view.levels:
        if row.arm in shown and _matches(row, pattern):
            found.append(
                Line(
                    arm=shown[row.arm],
                    of=title_of(row.label, row.group),
                    group=row.group or "",
                    value=row.value,
                    low=row.low,
                    high=row.high,
                    n=row.n_units,
                    null=(row.null.low, row.null.high) if row.null else None,
                    better=row.better,
                )
            )
    return found


def changes_of(view: View, pattern: str, arms: Sequence[ArmView] | None = None) -> list[Line]:
    """Return differences as lines of the arm that is subtracted."""
    shown = {arm.name: arm for arm in (view.arms if arms is None else arms)}
    sizes = {row.text: row.n_units for row in view.levels}
    found = []
    for row in view.differences:
        if row.against in shown and _matches(row, pattern) and math.isfinite(row.value):
            group, n = row.statistic.partition("=")[2], sizes.get(row.statistic)
            own: dict[str, Any] = {"value": row.value, "low": row.low, "high": row.high, "better": row.direction}
            of = title_of(row.label, group)
            found.append(Line(arm=shown[row.against], of=of, group=group, n=n, change=row, **own))
    return found


def _figure(
    block: declare.Block,
    svg: str,
    aloud: Iterable[str],
    columns: Sequence[Column],
    body: Sequence[Sequence[Cell]],
    *,
    keys: Sequence[Key] = (),
    reading: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Return a plot with its words and its table, under the title of its block or one of its own."""
    title = title or block.title
    alt = f"{title}. " + "; ".join(aloud)
    return Figure(title, svg, alt, Table(title, columns, body), keys, [*block.reading, *reading])


@draw.register
def _(block: declare.Intervals, view: View, canvas: Canvas) -> Block | None:
    lines = levels_of(view, block.of, _arms(view, block)) if not block.by else _records(view, block)
    return intervals_figure(view, canvas, lines, block) if lines else None


def _records(view: View, block: declare.Intervals) -> list[Line]:
    """Return records of a note as lines: their interval, or the range over seeds where they have none."""
    found = []
    for arm in _arms(view, block):
        for row in records(arm, block.of, *block.by):
            value, low, high = spread(row.get(block.value))
            low, high = (
                spread(row.get(key))[0] if key in row else x for key, x in ((block.low, low), (block.high, high))
            )
            n = spread(row.get(block.n))[0]
            group = " · ".join(said(row.get(key)) for key in block.by)
            size = int(n) if math.isfinite(n) else None
            found.append(Line(arm=arm, of="", group=group, value=value, low=low, high=high, n=size))
    return [line for line in found if math.isfinite(line.value)]


@draw.register
def _(block: declare.Changes, view: View, canvas: Canvas) -> Block | None:
    lines = changes_of(view, block.of, _arms(view, block))
    return intervals_figure(view, canvas, lines, block) if lines else None


def intervals_figure(view: View, canvas: Canvas, lines: Sequence[Line], block: declare.Block) -> Figure:
    """Return lines as a plot of rows with their table: a heading a group, a row an arm, or joined as the block says."""
    join, bars = getattr(block, "join", ""), getattr(block, "bars", False)
    signed = isinstance(block, declare.Changes) or getattr(block, "zero", False)
    changes = [line.change for line in lines if line.change]
    stem, kept = _stem([line.of for line in lines]), lines
    if len(lines) > MOST_ROWS:
        kept = ([line for line in lines if line.arm.role in ("baseline", "remedy")] or lines)[:MOST_ROWS]
    kept = [dataclasses.replace(line, of=line.of.removeprefix(stem)) for line in kept]
    drawn = list[Row]()
    several = len({line.arm.name for line in lines}) > 1 or bool(changes)
    heads = {""}
    for head, name, own in _rows_of(kept, join, several):
        if head not in heads:
            heads.add(head)
            n = own[0].n if several and not join and own[0].group else None
            drawn.append(Row(shorten(head + (f" ({plural(n, view.unit_kind)})" if n else ""), 52)))
        marks = tuple(
            Mark(
                line.value,
                line.low,
                line.high,
                view.arm(line.change.arm).index if line.change else line.arm.index,
                hollow=join == "group" and i > 0,
                shape=_shape(i) if join == "group" else None,
            )
            for i, line in enumerate(own)
        )
        text = " · ".join(number(line.value, sign=signed) for line in own)
        drawn.append(Row(shorten(name, 44), marks, text, own[-1].null))
    margin = next((x.margin for x in changes if math.isfinite(x.margin)), 0.0)
    of = list(dict.fromkeys(line.of for line in lines if line.of))
    what = "difference" if changes else of[0] if len(of) == 1 else stem.removesuffix(": ")
    # a rate that was audited has no better side
    arrow = {"lower": "(← better)", "higher": "(better →)"}.get(lines[0].better, "") if view.kind != "audit" else ""
    svg = canvas.rows(drawn, f"{shorten(what, 44)} {arrow}".strip(), zero=signed, bars=bars, margin=margin)
    groups = list(dict.fromkeys(line.group for line in lines))
    keys = (
        [Key(group, 0, _shape(i), i > 0) for i, group in enumerate(groups)]
        if join == "group" and len(groups) > 1
        else []
    )
    keys = [arm_key(arm) for arm in {x.arm.name: x.arm for x in kept}.values()] if join == "arm" and several else keys
    reading = []
    if changes:
        reading.append(f"Each line is {view.arm(changes[0].arm).title} minus another arm.")
    if margin:
        reading.append(f"The shaded band is the margin, {number(margin, plain=True)}: less does not matter.")
    if any(line.null for line in kept):
        reading.append(f"Grey bands hold what chance alone shows in {percent(view.confidence)} of cases.")
    if len(kept) < len(lines):
        reading.append("The table has the rows that are not drawn.")
    return _figure(block, svg, map(_aloud, kept), *_columns_of(view, lines), keys=keys, reading=reading)


def _shape(i: int) -> str:
    """Return the marker of a group: filled for the first, hollow for the others."""
    return ("o", "o", "s", "^")[min(i, 3)]


def _stem(names: Sequence[str]) -> str:
    """Return what all of several names begin with, up to a colon."""
    first = names[0]
    ends = [i + 2 for i in range(len(first)) if first.startswith(": ", i)] if len(set(names)) > 1 else []
    return next((first[:i] for i in reversed(ends) if all(name.startswith(first[:i]) for name in names)), "")


def _rows_of(lines: Sequence[Line], join: str, several: bool) -> Iterable[tuple[str, str, list[Line]]]:
    """Yield heading, name and lines of each row."""
    many = len({line.of for line in lines}) > 1

    def place(line: Line) -> tuple[str, str]:
        group, of = attack_title(line.group), line.of if many else ""
        if line.change or (several and not join):
            name = f"minus {lower(line.arm.title)}" if line.change else line.arm.title
            return ", ".join(filter(None, (of, group))), name
        if join == "group":
            return of, line.arm.title
        size = f" ({number(line.n)})" if line.n and not several else ""
        return (of, group + size) if group else ("", of or line.of or line.arm.title)

    places = dict.fromkeys(map(place, lines))
    heads = list(dict.fromkeys(head for head, _ in places))
    for head, name in sorted(places, key=lambda one: heads.index(one[0])):  # no heading stands twice
        yield head, name, [line for line in lines if place(line) == (head, name)]


def _aloud(line: Line) -> str:
    minus = "minus " if line.change else ""
    where = ", ".join(filter(None, (line.of, attack_title(line.group), f"{minus}{lower(line.arm.title)}")))
    ends = f", interval {interval(line.low, line.high)}" if math.isfinite(line.low) else ""
    return f"{where}: {number(line.value)}{ends}"


def _columns_of(view: View, lines: Sequence[Line]) -> tuple[list[Column], list[list[Cell]]]:
    """Return lines as columns and rows of a table, without columns that would be empty."""
    changes = any(line.change for line in lines)

    def verdict(line: Line) -> Cell:
        return Cell("", order=line.change.verdict, tag=tag(line.change.verdict)) if line.change else DASH

    made: list[tuple[bool, Column, Callable[[Line], Cell]]] = [
        (any(line.of != lines[0].of for line in lines), Column("Of"), lambda x: Cell(x.of)),
        (any(line.group for line in lines), Column("Group"), lambda x: Cell(attack_title(x.group) or "all")),
        (changes or len(view.arms) > 1, Column("Minus" if changes else "Arm"), lambda x: arm_cell(x.arm, role=True)),
        (True, Column("Value", "", True), lambda x: cell(x.value, x.low, x.high, sign=changes)),
        (any(line.null for line in lines), Column("By chance", "", True), lambda x: ends(*x.null) if x.null else DASH),
        (changes, Column("Margin", "", True), lambda x: given(x.change.margin) if x.change else DASH),
        (any(line.n for line in lines), Column("n", "", True), lambda x: count(x.n)),
        (changes, Column("Verdict"), verdict),
    ]
    kept = [(column, make) for some, column, make in made if some]
    return [column for column, _ in kept], [[make(line) for _, make in kept] for line in lines]


def arm_cell(arm: ArmView, small: str = "", *, role: bool = False) -> Cell:
    """Return an arm's title beside its mark, with its role or another small line."""
    return Cell(arm.title, ROLES.get(arm.role, arm.role) if role else small, key=arm_key(arm))


def arm_key(arm: ArmView) -> Key:
    """Return an arm's entry in a legend."""
    return Key(arm.title, arm.index)


# -- what is mended against what is paid ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spot:
    """One arm at one strength on the front; NaN where no strength is known."""

    arm: ArmView
    strength: float
    x: Level
    y: Level
    swept: bool


def spots_of(view: View, cost: str, effect: str) -> list[Spot]:
    """Return every arm at every strength, arms in their order and strengths from weak to strong."""
    field, strengths = _swept(view.swept)
    method = (view.config.get("resolved") or {}).get("method") or {}
    found = []
    for arm in view.arms:
        own = arm.settings.get(field, method.get(field))
        names = {arm.name: float(own) if isinstance(own, int | float) else math.nan}
        names |= {name: value for name, value in strengths.items() if name.partition("@")[0] == arm.name}
        for name, strength in sorted(names.items(), key=lambda item: (math.isnan(item[1]), item[1])):
            x, y = view.level(name, cost), view.level(name, effect)
            if x and y and math.isfinite(x.value) and math.isfinite(y.value):
                found.append(Spot(arm, strength, x, y, name != arm.name))
    return found


def _swept(arms: Sequence[ArmFacts]) -> tuple[str, dict[str, float]]:
    """Return the setting that a sweep varies and its value in each sweep arm."""
    field, found = "", {}
    for arm in arms:
        for key, value in arm.settings.items():
            if isinstance(value, int | float) and f"{value:g}" == arm.name.partition("@")[2]:
                field, found[arm.name] = str(key), float(value)
    return field, found


@draw.register
def _(block: declare.Front, view: View, canvas: Canvas) -> Block | None:
    spots = spots_of(view, block.cost or view.cost_statistic, block.of or view.primary)
    own = [spot for spot in spots if not spot.swept]
    if len(own) < 2:
        return None
    x, y, swept = own[0].x, own[0].y, len(spots) > len(own)
    chance = next((s.y.null for s in own if s.arm.role == "remedy" and s.y.better == "lower"), None)
    points = [
        Point(s.x.value, s.y.value, (s.x.low, s.x.high), (s.y.low, s.y.high), s.arm.index, small=s.swept) for s in spots
    ]
    lines = []
    for index in dict.fromkeys(spot.arm.index for spot in spots):
        along = [s for s in spots if s.arm.index == index and not math.isnan(s.strength)]
        if len(along) > 1:
            lines.append(Series([s.x.value for s in along], [s.y.value for s in along], index))
    across = "← better" if x.better == "lower" else "better →"
    up = {"lower": " (better ↓)", "higher": " (better ↑)"}.get(y.better, "")
    svg = canvas.front(
        points,
        f"{shorten(x.label, 36)} ({across})",
        shorten(y.label, 40) + up,
        y_from_zero=y.better == "lower",
        lines=lines,
        strip=chance.high if chance else math.nan,
    )
    columns = [Column("Arm"), *numeric(*["Strength"] * swept), *numeric(x.label, y.label)]
    body = [
        (
            arm_cell(s.arm, s.y.attack and attack_title(s.y.attack)),
            *[given(s.strength)] * swept,
            cell(s.x.value, s.x.low, s.x.high),
            cell(s.y.value, s.y.low, s.y.high),
        )
        for s in spots
    ]
    aloud = (
        f"{s.arm.title}{f' at strength {number(s.strength, plain=True)}' if s.swept else ''}: {x.label} "
        f"{number(s.x.value)}, {y.label} {number(s.y.value)}"
        for s in spots
    )
    reading = ["Where crosses overlap, the order is not established."]
    reading += ["Thin lines join an arm's strengths; the large mark is that of the verdict."] * swept
    if chance:
        least = f"chance alone shows up to {number(chance.high)} in {percent(view.confidence)} of cases"
        reading.append(f"The shaded strip: {least}.")
    return _figure(block, svg, aloud, columns, body, keys=[arm_key(spot.arm) for spot in own], reading=reading)


# -- notes ------------------------------------------------------------------------------------------------------------


def spread(value: Any) -> Spread:
    """Return median, lowest and highest over seeds of a noted number; NaN where there is none."""
    if isinstance(value, Mapping):
        found = [value.get(key) for key in ("median", "low", "high")]
        return (float(found[0]), float(found[1]), float(found[2])) if None not in found else NONE  # type: ignore[arg-type]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value), float(value), float(value)
    return NONE


def spread_cell(value: Spread) -> Cell:
    """Return a cell for a number with its range over seeds, if it has one."""
    return cell(*value) if value[1] < value[2] else cell(value[0])


def said(value: Any) -> str:
    """Write what a record is called by."""
    return "all" if value is None else value if isinstance(value, str) else number(spread(value)[0], plain=True)


def noted(found: Any, path: str) -> Any:
    """Return a note or a part of it, None where there is none; a number in the path counts in a list."""
    for part in path.split(".") if path else ():
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def records(arm: ArmView, path: str, *keys: str) -> list[Mapping[str, Any]]:
    """Return a note's list of records.

    Raises
    ------
    InputError
        When it is no list of objects, or one lacks a key.
    """
    found = noted(arm.notes, path)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(r, Mapping) and set(keys) <= set(r) for r in found):
        wanted = f"a list of objects with {', '.join(keys) or 'names'}"
        raise InputError(f"note {path} of {arm.name}", wanted, "run again, or repair the file")
    return list(found)


def _shown(value: Any) -> Cell:
    """Return a cell for a noted value: text, yes or no, or a number with its range over seeds."""
    if isinstance(value, str):
        return Cell(value)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, Mapping) and "held" in value:
        return Cell(f"in {value['held']} of {value['of']} runs")
    middle, low, high = spread(value)
    if math.isnan(middle):
        return DASH
    if isinstance(value, int) or (isinstance(value, Mapping) and isinstance(value["low"], int)):
        low, high = int(low), int(high)
        middle = int(middle) if middle.is_integer() else middle
    return dataclasses.replace(spread_cell((middle, low, high)), order=float(middle))


@draw.register
def _(block: declare.Noted, view: View, canvas: Canvas) -> Block | None:
    body, arms = [], []
    for arm in _arms(view, block):
        rows = records(arm, block.of, *block.by) if block.by else [noted(arm.notes, block.of)]
        for row in rows:
            values = [noted(row, key) for key in block.names]
            if any(value is not None for value in values):
                body.append([*(Cell(said(row[key])) for key in block.by), *map(_shown, values)])
                arms.append(arm)
    if not body:
        empty = [arm for arm in _arms(view, block) if noted(arm.notes, block.of) == []]
        return Prose([f"{block.title}: none."], muted=True) if empty and block.by else None
    kept = [i for i in range(len(block.by), len(body[0])) if any(row[i] is not DASH for row in body)]
    words = dict(enumerate(block.names.values(), start=len(block.by)))
    if len(body) == 1 and not block.by:
        found = [(words[i], body[0][i]) for i in kept]
        items = [(word, f"{x.text} (median; {x.small} over seeds)" if x.small else x.text) for word, x in found]
        return Facts(items, long=True, title=block.title, reading=block.reading)
    named = len({arm.name for arm in arms}) > 1 or not block.by
    columns = [
        *[Column("Arm")] * named,
        *map(Column, block.by.values()),
        *numeric(*(words[i][:1].upper() + words[i][1:] for i in kept)),
    ]
    lines = [
        [*[arm_cell(arm)] * named, *row[: len(block.by)], *(row[i] for i in kept)]
        for arm, row in zip(arms, body, strict=True)
    ]
    return Table(block.title, columns, lines, reading=block.reading)


@draw.register
def _(block: declare.Holds, view: View, canvas: Canvas) -> Block | None:
    held = of = 0
    for arm in _arms(view, block):
        value = noted(arm.notes, block.of)
        if isinstance(value, bool):
            held, of = held + value, of + 1
        elif isinstance(value, Mapping) and "held" in value:
            held, of = held + int(value["held"]), of + int(value["of"])
    if not of:
        return None
    if held == of:
        return Notes([block.title, *block.reading], "good")
    return Notes([block.bad + (f" In {of - held} of {of} runs." if of > 1 else ""), *block.reading], "bad")


def _along(view: View, block: declare.Curve, *keys: str) -> list[tuple[ArmView, Records]]:
    """Return, of each arm, the named fields of a note's records, or of what was logged."""
    found = []
    for arm in _arms(view, block):
        rows = records(arm, block.of) if block.of else arm.curves
        values = np.array([[spread(row.get(key)) for key in keys] for row in rows]).reshape(-1, len(keys), 3)
        known = values[np.isfinite(values[..., 0]).all(axis=1)]
        if len(known):
            every = math.ceil(len(known) / MOST_STEPS)
            found.append((arm, known[np.unique([*range(0, len(known), every), len(known) - 1])]))
    return found


@draw.register
def _(block: declare.Curve, view: View, canvas: Canvas) -> Block | None:
    found = _along(view, block, block.x, block.y)
    lines = [(arm, rows[:, 0, 0].tolist(), rows[:, 1]) for arm, rows in found if len(rows) > 1]
    if not lines:
        return None
    ranged = any((y[:, 1] < y[:, 2]).any() for _, _, y in lines)
    series = [Series(x, y[:, 0], arm.index, *(y[:, 1:].T if ranged else ())) for arm, x, y in lines]
    small = "median and range over seeds" if ranged else ""
    x_title, y_title = (name.rpartition("/")[2].replace("_", " ") for name in (block.x, block.y))
    columns = [Column("Arm"), *numeric(x_title.capitalize()), *numeric(y_title.capitalize(), small=small)]
    body = [
        (arm_cell(arm), _shown(at), spread_cell(value))
        for arm, x, y in lines
        for at, value in zip(x, y.tolist(), strict=True)
    ]
    aloud = (
        f"{arm.title}: from {number(y[0, 0])} at {x_title} {number(x[0], plain=True)} to "
        f"{number(y[-1, 0])} at {number(x[-1], plain=True)}"
        for arm, x, y in lines
    )
    reading = ["The line is the median over seeds, the shade their range."] * ranged
    keys = [arm_key(arm) for arm, *_ in lines] if len(lines) > 1 else []
    return _figure(block, canvas.curves(series, x_title, y_title), aloud, columns, body, keys=keys, reading=reading)


@draw.register
def _(block: declare.Path, view: View, canvas: Canvas) -> Block | None:
    lines = [(arm, rows[..., 0].tolist()) for arm, rows in _along(view, block, block.by, block.x, block.y)]
    if not lines:
        return None
    points = [
        Point(x, y, NONE[:2], NONE[:2], arm.index, small=i < len(rows) - 1)
        for arm, rows in lines
        for i, (_, x, y) in enumerate(rows)
    ]
    series = [Series([x for _, x, _ in rows], [y for *_, y in rows], arm.index) for arm, rows in lines]
    by, x_title, y_title = (name.replace("_", " ") for name in (block.by, block.x, block.y))
    body = [(arm_cell(arm), _shown(at), cell(x), cell(y)) for arm, rows in lines for at, x, y in rows]
    aloud = (
        f"{arm.title} ends at {x_title} {number(rows[-1][1])}, {y_title} {number(rows[-1][2])}" for arm, rows in lines
    )
    columns = [Column("Arm"), *numeric(by.capitalize(), x_title.capitalize(), y_title.capitalize())]
    svg = canvas.front(points, x_title, y_title, lines=series)
    reading = [f"Small marks are one {by} each, the large one ends the line."]
    keys = [arm_key(arm) for arm, _ in lines]
    return _figure(block, svg, aloud, columns, body, keys=keys, reading=reading)


# -- distributions and the unit table ---------------------------------------------------------------------------------


@draw.register
def _(block: declare.Histogram, view: View, canvas: Canvas) -> Block | None:
    arm = view.remedy
    if arm is None:
        return None
    note = noted(arm.notes, block.of)
    if note is not None:
        edges, counts = noted(note, "edges"), noted(note, "counts")
        if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1:
            raise InputError(f"note {block.of} of {arm.name}", "n + 1 edges and n counts", "run again")
        n, seeds = sum(counts), " Of the first seed." if len(view.seeds) > 1 else ""
    else:
        values = view.table.values(arm.name, block.of)[block.of]
        if len(values) < 2:
            return None
        found, cut = np.histogram(values, bins=min(16, max(4, math.ceil(math.sqrt(len(values))))))
        edges, counts, n, seeds = cut.tolist(), found.tolist(), len(values), " Of all seeds." * (len(view.seeds) > 1)
    shares = [count_ / n if n else 0.0 for count_ in counts]
    body = [
        (ends(a, b), cell(share, small=plural(int(c), view.unit_kind)) if c else DASH)
        for (a, b), c, share in zip(itertools.pairwise(edges), counts, shares, strict=True)
    ]
    what, share = (block.x or block.title).capitalize(), f"share of {view.unit_kind}s"
    alt = f"{block.title}, {arm.title}. " + "; ".join(f"{a.text}: {b.text}" for a, b in body if b is not DASH)
    svg = canvas.histogram(edges, shares, arm.index, block.x, share)
    table = Table(block.title, numeric(what, share.capitalize()), body)
    return Figure(block.title, svg, alt, table, (), [*block.reading, f"{plural(n, view.unit_kind)}.{seeds}"])


@draw.register
def _(block: declare.Scatter, view: View, canvas: Canvas) -> Block | None:
    import polars as pl

    arm, metrics = view.remedy, tuple(block.names)
    if arm is None:
        return None
    ranks = ((pl.col(metrics).rank() - 0.5) / pl.col(metrics).count()).over("seed")
    points = view.table.values(arm.name, *metrics).select(ranks).to_numpy()
    if len(points) < 2:
        return None
    titles = [f"rank of {name}" for name in block.names.values()]
    body = []
    for low, high in itertools.pairwise((0.0, 0.2, 0.4, 0.6, 0.8, 1.0)):
        own = points[(points[:, 0] >= low) & (points[:, 0] < high), 1]
        if len(own):
            middle = np.quantile(own, [0.5, 0.25, 0.75]).tolist()
            body.append((ends(low, high), count(len(own)), cell(*middle)))
    columns = [*numeric(titles[0].capitalize()), *numeric(f"{view.unit_kind.capitalize()}s")]
    columns += numeric(titles[1].capitalize(), small="median, quartiles")
    aloud = (f"{a.text}: median {c.text}" for a, _, c in body)
    reading = [f"One dot a {view.unit_kind}, ranked from 0 to 1 within its seed."]
    svg = canvas.dots(points.tolist(), *titles, index=arm.index)
    return _figure(block, svg, aloud, columns, body, reading=reading)


@draw.register
def _(block: declare.Heat, view: View, canvas: Canvas) -> Block | None:
    maps = _maps_of_notes(view, block) or _maps_of_units(view, block)
    figures = [_heat(block, name, cells, view, canvas) for name, cells in maps[: 2 * MOST_HEATS]]
    return Grid(figures) if figures else None


def _maps_of_notes(view: View, block: declare.Heat) -> list[tuple[str, Means]]:
    found: dict[str, Means] = {}
    for row in records(view.remedy, block.of, block.rows, block.columns) if view.remedy else ():
        if row[block.rows] is not None:  # else all rows together
            name = ", ".join(str(row.get(key)) for key in block.split)
            value, n = spread(row.get(block.value))[0], spread(row.get(block.n))[0]
            place = str(row[block.rows]), str(row[block.columns])
            found.setdefault(name, {})[place] = (value, n) if math.isfinite(value) else None
    return list(found.items())


def _maps_of_units(view: View, block: declare.Heat) -> list[tuple[str, Means]]:
    shown = [arm for arm in view.arms if arm.role in ("baseline", "remedy")]
    tables = view.table.means([arm.name for arm in shown], block.of, (block.rows, block.columns))
    return [
        (f"{metric.rpartition('/')[2]}: {lower(arm.title)}", cells)
        for metric in dict.fromkeys(metric for _, metric in tables)
        for arm in shown
        if (cells := tables.get((arm.name, metric)))
    ]


def _heat(block: declare.Heat, name: str, means: Means, view: View, canvas: Canvas) -> Figure:
    size: dict[str, float] = {}
    for (_, column), known in means.items():
        size[column] = size.get(column, 0.0) + (known[1] if known else 0.0)
    columns, rows = sorted(size, key=lambda c: (-size[c], c)), list(dict.fromkeys(r for r, _ in means))
    rows.sort(key=lambda r: (len(r), r))
    whole = {}
    for r in rows:
        own = [k for (row, _), k in means.items() if row == r and k]
        whole[r] = sum(value * n for value, n in own) / (sum(n for _, n in own) or math.nan)
    away = {key: known[0] - whole[key[0]] if known else math.nan for key, known in means.items()}
    apart = {r: _width([away.get((r, c), math.nan) for c in columns]) for r in rows}
    if len(rows) > MOST_CLIENTS:  # those with the largest gaps first
        rows.sort(key=lambda r: -apart[r] if math.isfinite(apart[r]) else math.inf)
    shades, body = [], []
    for r in rows:
        line = []
        for c in columns:
            known = means.get((r, c))
            n = number(int(known[1])) if known else f"< {FEWEST}" if (r, c) in means else "none"
            line.append(Shade(away.get((r, c), math.nan), n))
            few = f"fewer than {FEWEST}" if (r, c) in means else "none"
            texts = [cell(known[0]), cell(away[r, c], sign=True)] if known else [DASH] * 2
            body.append((Cell(r), Cell(c), count(int(known[1])) if known else Cell(few, numeric=True), *texts))
        shades.append((r, line[:MOST_GROUPS]))
    svg = canvas.heat(shades[:MOST_CLIENTS], columns[:MOST_GROUPS], STEPS)
    names = [Column(block.rows.capitalize()), Column(block.columns.capitalize())]
    names += numeric(f"{view.unit_kind.capitalize()}s", "Share", "Minus all of the row")
    aloud = (f"{a.text}, {b.text}: {e.text} of {n.text}" for a, b, n, _, e in body)
    seed = f"Seed {view.seeds[0]} of {len(view.seeds)}. " if len(view.seeds) > 1 else ""
    widest = max((w for w in apart.values() if math.isfinite(w)), default=math.nan)
    reading = [f"{seed}The largest gap inside a {block.rows} is {number(widest)}."]
    if len(rows) > MOST_CLIENTS or len(columns) > MOST_GROUPS:
        drawn = (
            f"{min(len(rows), MOST_CLIENTS)} of {len(rows)} rows and {min(len(columns), MOST_GROUPS)} of {len(columns)}"
        )
        reading.append(f"Drawn: {drawn} columns; the table has all.")
    keys = [Key(f"more than all of the {block.rows}", 1, "s"), Key("less", 2, "s")]
    title = f"{block.title}: {name}" if name else block.title
    return _figure(block, svg, aloud, names, body, keys=keys, reading=reading, title=title)


def _width(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return max(known) - min(known) if len(known) > 1 else math.nan


@draw.register
def _(block: declare.Picture, view: View, canvas: Canvas) -> Block | None:
    arm = view.remedy
    name = noted(arm.notes, block.of) if arm else None
    file = next((p for p in (place / "artifacts" / str(name) for place in view.places) if p.is_file()), None)
    if not isinstance(name, str) or file is None:
        return None
    data, kind = file.read_bytes(), {".png": "png", ".apng": "apng", ".webp": "webp"}.get(file.suffix)
    if kind is None or len(data) > MOST_BYTES:
        got = f"picture {name} of {len(data)} bytes"
        raise InputError(got, f"PNG, APNG or WebP of at most {MOST_BYTES} bytes", "keep a smaller one")
    quiet = still(data)
    source, first = (
        f"data:image/{of};base64,{base64.b64encode(x).decode()}" for of, x in ((kind, data), ("webp", quiet))
    )
    return Image(block.title, source, len(data) + len(quiet), tuple(block.reading), first if quiet else "")
