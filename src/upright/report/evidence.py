"""Sections that show who gets what: bars by group, worst tenth, the front, and every number in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from upright.report.parts import Block, Cell, Column, Details, Figure, Grid, Key, Prose, Section, Table, cell, tag
from upright.report.plots import Canvas, Mark, Point, Row
from upright.report.read import ArmView, Difference, Level, View
from upright.report.text import ROLES, interval, lower, metric_title, number, percent, plural, shorten

__all__ = ["arm_key", "bars_by_group", "finite", "front", "given", "levels_figure", "units"]

MOST_FIGURES = 6


def arm_key(arm: ArmView) -> Key:
    """Return an arm's entry in a legend."""
    return Key(arm.title, arm.index)


# -- units --------------------------------------------------------------------------------------------------------


def units(view: View, canvas: Canvas, *, plane: bool = True) -> Section:
    """Return who gets what: bars by group, worst decile, the front unless a panel drew it, every number in tables."""
    pairs: dict[tuple[str, str | None], None] = {}
    for row in view.levels:
        if row.name == "mean" and row.group is not None:
            pairs.setdefault((row.metric, row.grouping))
    # without differences the first of these already stands beside the verdict
    shown = list(pairs)[0 if view.differences else 1 :]
    figures = [bars_by_group(view, canvas, metric, grouping) for metric, grouping in shown[:MOST_FIGURES]]
    for name in dict.fromkeys(row.statistic for row in view.levels if row.name == "worst_decile"):
        rows = view.find(name)
        note = (
            f"The tenth of {view.unit_kind}s with the lowest values, averaged: who is served worst, whatever the group."
        )
        figures.append(levels_figure(view, canvas, rows, rows[0].label, note))
    drawn = [figure for figure in (*figures, front(view, canvas) if plane else None) if figure]
    n = view.evidence.get("n_units")
    blocks: list[Block] = [Prose([_resampling(view)])]
    if drawn:
        blocks.append(Grid(drawn))
    if len(shown) > MOST_FIGURES:
        blocks.append(Prose([f"{len(shown) - MOST_FIGURES} more groupings stand in the table only."], muted=True))
    if view.levels:
        blocks.append(level_table(view))
    if view.differences:
        blocks += [
            difference_table(view),
            Details("Every difference with its margin and corrected p", [_long_table(view)], False),
        ]
    totals = _totals(view)
    if totals:
        blocks.append(totals)
    title = f"{number(n)} {view.unit_kind}s" if isinstance(n, int) else f"By {view.unit_kind}"
    return Section("units", f"Who gets what: {title}", blocks, "Who gets what")


def _resampling(view: View) -> str:
    e = view.evidence
    text = f"Every interval covers {percent(view.confidence)}."
    how = str(e.get("resampling") or "").strip().rstrip(".")
    if how:
        return f"{text} {how[:1].upper()}{how[1:]}."
    return text + (f" It comes from {number(e['draws'])} bootstrap draws." if e.get("draws") else "")


def bars_by_group(view: View, canvas: Canvas, metric: str, grouping: str | None) -> Figure:
    """Return the mean of a metric by group and arm."""
    rows = [
        r
        for r in view.levels
        if r.name == "mean" and r.metric == metric and r.grouping == grouping and r.group is not None
    ]
    order = {arm.name: i for i, arm in enumerate(view.arms)}
    drawn: list[Row] = []
    for group in dict.fromkeys(row.group for row in rows):
        here = sorted((r for r in rows if r.group == group), key=lambda r: order.get(r.arm, len(order)))
        count = next((r.n_units for r in here if r.n_units is not None), None)
        drawn.append(Row(f"{group}" + (f" ({plural(count, view.unit_kind)})" if count is not None else "")))
        drawn += [_row(view, r) for r in here]
    title = view.metric_title(metric) + (f" by {grouping}" if grouping else "")
    svg = canvas.rows(drawn, view.metric_title(metric), bars=True)
    return Figure(title, svg, _alt(title, view, rows), _level_rows(title, view, rows), (), ())


def levels_figure(view: View, canvas: Canvas, rows: Sequence[Level], title: str, note: str = "") -> Figure:
    """Return one statistic of every arm as bars."""
    svg = canvas.rows([_row(view, row) for row in rows], title, bars=True)
    return Figure(title, svg, _alt(title, view, rows), _level_rows(title, view, rows), (), (note,) if note else ())


def _row(view: View, row: Level) -> Row:
    arm = view.arm(row.arm)
    mark = Mark(row.value, row.low, row.high, arm.index if arm else 0)
    return Row(shorten(view.arm_title(row.arm), 34), (mark,), number(row.value))


def _alt(title: str, view: View, rows: Sequence[Level]) -> str:
    said = (
        f"{view.arm_title(row.arm)}{f', {row.group}' if row.group else ''}: {number(row.value)}, "
        f"interval {interval(row.low, row.high)}"
        for row in rows
    )
    return f"{title}. " + "; ".join(said)


def _level_rows(title: str, view: View, rows: Sequence[Level]) -> Table:
    columns = (
        Column("Group"),
        Column("Arm"),
        Column("Value", numeric=True),
        Column("Interval", numeric=True),
        Column("n", numeric=True),
    )
    body = [
        (Cell(row.group or "all"), Cell(view.arm_title(row.arm)), cell(row.value),
         Cell(interval(row.low, row.high), order=finite(row.low), numeric=True), _count(row.n_units))
        for row in rows
    ]  # fmt: skip
    return Table(title, columns, body)


def finite(value: float) -> float | None:
    """Return a number to sort by; None, which sorts last, for what is undefined."""
    return value if math.isfinite(value) else None


def _count(n: int | None) -> Cell:
    return Cell("" if n is None else number(n), order=n, numeric=True)


def front(view: View, canvas: Canvas) -> Figure | None:
    """Return overall quality against the gap of the same metric, one cross an arm."""
    gaps = [row for row in view.levels if row.name == "abs_gap"]
    if not gaps or len(view.arms) < 2:
        return None
    first = next((row for row in gaps if row.statistic == view.primary), gaps[0])
    gap_of = {row.arm: row for row in view.find(first.statistic)}
    overall = [row for row in view.find(f"mean:{first.metric}") if row.arm in gap_of]
    if not overall:
        return None
    points, keys, body = [], [], []
    for row in overall:
        gap, arm = gap_of[row.arm], view.arm(row.arm)
        index = arm.index if arm else 0
        points.append(Point(row.value, gap.value, (row.low, row.high), (gap.low, gap.high), index))
        keys.append(Key(view.arm_title(row.arm), index))
        body.append((Cell(view.arm_title(row.arm)), cell(row.value, interval(row.low, row.high)),
                     cell(gap.value, interval(gap.low, gap.high))))  # fmt: skip
    metric = view.metric_title(first.metric)
    better = [
        lower(view.arm_title(a.arm))
        for a in overall
        if not any(
            b.value >= a.value and gap_of[b.arm].value <= gap_of[a.arm].value
            and (b.value > a.value or gap_of[b.arm].value < gap_of[a.arm].value)
            for b in overall
        )
    ]  # fmt: skip
    title = f"Quality against gap: {metric}"
    svg = canvas.front(
        points,
        f"{shorten(metric, 36)}, all {view.unit_kind}s (better →)",
        "size of the gap (better ↓)",
        y_from_zero=True,
    )
    table = Table(title, (Column("Arm"), Column(metric, numeric=True), Column(first.label, numeric=True)), body)
    alt = f"{title}. " + "; ".join(f"{c[0].text}: {metric} {c[1].text}, gap {c[2].text}" for c in body)
    verb = "is" if len(better) == 1 else "are"
    best = " and ".join(filter(None, [", ".join(better[:-1]), better[-1]]))
    reading = (
        f"Down and to the right is better. By point estimates {best} {verb} on the front; "
        "where crosses overlap, the order is not established.",
    )
    return Figure(title, svg, alt, table, tuple(keys), reading)


# -- tables -------------------------------------------------------------------------------------------------------


def level_table(view: View) -> Table:
    """Return every level: a row for each statistic and group, a column for each arm."""
    keyed: dict[tuple[str, str | None], dict[str, Level]] = {}
    for row in view.levels:
        keyed.setdefault((row.statistic, row.group), {})[row.arm] = row
    arms = [arm for arm in view.arms if any(arm.name in found for found in keyed.values())]
    columns = [Column("Statistic"), *(Column(arm.title, numeric=True, key=arm_key(arm)) for arm in arms)]
    body = []
    for found in keyed.values():
        rows = list(found.values())
        line = [Cell(rows[0].label, _n(rows))]
        line += [
            cell(found[arm.name].value, interval(found[arm.name].low, found[arm.name].high)) if arm.name in found
            else Cell("", numeric=True)
            for arm in arms
        ]  # fmt: skip
        body.append(line)
    return Table(f"Levels with {percent(view.confidence)} intervals", columns, body)


def _n(rows: Sequence[Level]) -> str:
    counts = sorted({row.n_units for row in rows if row.n_units is not None})
    lost = max((row.n_undefined or 0 for row in rows), default=0)
    text = f"n = {number(counts[-1])}" if counts else ""
    text += f", undefined for {number(lost)}" if lost else ""
    expected = [row.null.expected_abs for row in rows if row.null]
    return text + (f"; {number(max(expected))} expected by chance" if expected else "")


def difference_table(view: View) -> Table:
    """Return every difference: a row for each statistic, a column for each control."""
    keyed: dict[tuple[str, str, str], dict[str, Difference]] = {}
    for row in view.differences:
        keyed.setdefault((row.statistic, row.label, row.arm), {})[row.against] = row
    against = [arm for arm in view.arms if any(arm.name in found for found in keyed.values())]
    columns = [Column("Statistic")]
    columns += [
        Column(f"minus {lower(arm.title)}", ROLES.get(arm.role, arm.role), True, arm_key(arm)) for arm in against
    ]
    body = []
    for (_, label, _), found in keyed.items():
        direction = next(iter(found.values())).direction
        line = [Cell(label, f"{direction} is better")]
        for arm in against:
            there = found.get(arm.name)
            shown = Cell("", numeric=True)
            if there:
                ends = interval(there.low, there.high, sign=True)
                shown = cell(there.value, ends, sign=True, verdict=there.verdict)
            line.append(shown)
        body.append(line)
    name = view.arm_title(view.differences[0].arm)
    return Table(f"Paired differences: {name} minus each control", columns, body)


def _long_table(view: View) -> Table:
    numeric = ("Difference", "Interval", "Margin", "Smallest detectable", "p, Holm-corrected")
    columns = [
        Column("Statistic"),
        Column("Control"),
        *(Column(name, numeric=True) for name in numeric),
        Column("Verdict"),
    ]
    body = [
        (Cell(row.label), Cell(view.arm_title(row.against), ROLES.get(row.role, row.role)), cell(row.value, sign=True),
         Cell(interval(row.low, row.high), order=finite(row.low), numeric=True), given(row.margin),
         given(row.smallest_detectable), given(row.holm_p), Cell("", order=row.verdict, tag=tag(row.verdict)))
        for row in view.differences
    ]  # fmt: skip
    return Table("Every difference", columns, body)


def given(value: float) -> Cell:
    """Return a cell for a number that a folder may leave out."""
    return Cell("–", numeric=True) if math.isnan(value) else cell(value)


def _totals(view: View) -> Table | None:
    names = list(dict.fromkeys(name for arm in view.arms for name in arm.totals))
    if not names:
        return None
    arms = [arm for arm in view.arms if arm.totals]
    body = [[Cell(metric_title(name)), *(_total(view, arm, name) for arm in arms)] for name in names]
    columns = [Column("Quantity"), *(Column(arm.title, numeric=True, key=arm_key(arm)) for arm in arms)]
    seeds = " (mean and range over seeds)" if len(view.runs) > 1 else ""
    return Table(f"Quantities of the whole result, without interval{seeds}", columns, body)


def _total(view: View, arm: ArmView, name: str) -> Cell:
    found = [run.totals.get(arm.name, {}).get(name) for run in view.runs] or [arm.totals.get(name)]
    values = [float(v) for v in found if isinstance(v, int | float)]
    if not values:
        return Cell("", numeric=True)
    return cell(sum(values) / len(values), interval(min(values), max(values)) if len(values) > 1 else "")
