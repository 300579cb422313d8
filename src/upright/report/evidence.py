"""Sections that show who gets what: bars by group, worst tenth, the front, and every number in tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.parts import Block, Cell, Column, Details, Figure, Grid, Key, Prose, Section, Table, cell, tag
from upright.report.plots import Canvas, Mark, Point, Row, Series
from upright.report.read import ArmView, Difference, Level, View
from upright.report.text import (
    ROLES,
    attack_parts,
    attack_title,
    interval,
    lower,
    metric_title,
    number,
    percent,
    plural,
    shorten,
)

__all__ = [
    "arm_key", "attacks", "bars_by_group", "finite", "front", "given", "is_leak", "is_single", "label_of",
    "levels_figure", "units",
]  # fmt: skip

MOST_FIGURES = 6
NO_BREAK = "\N{NO-BREAK SPACE}"  # an attack's name in a narrow column would make rows of seven lines
LEAKS = ("leakage", "worst_leakage")


def is_leak(statistic: str | None) -> bool:
    """Return whether a statistic says how much attackers read, which is no gap between groups."""
    return (statistic or "").split(":", 1)[0] in LEAKS


def is_single(row: Level | Difference) -> bool:
    """Return whether a row is one attack of several, not the strongest of them."""
    return is_leak(row.statistic) and (row.group is not None if isinstance(row, Level) else "=" in row.statistic)


def arm_key(arm: ArmView) -> Key:
    """Return an arm's entry in a legend."""
    return Key(arm.title, arm.index)


def label_of(row: Level | Difference) -> str:
    """Return a row's label with an attack in words, which break between words on a phone."""
    attack = (row.group or "") if isinstance(row, Level) else row.statistic.partition("=")[2]
    plain = row.label.removesuffix(attack)
    return plain + attack_title(attack) if is_single(row) and plain != row.label else row.label


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
    levels = [level_table(view, single) for single in (False, True)]
    pairs_of = [difference_table(view, single) for single in (False, True)]
    blocks += [table for table in (levels[0], pairs_of[0]) if table]
    singles: list[Block] = [table for table in (levels[1], pairs_of[1]) if table]
    if singles:
        # a dozen attacks of two statistics would bury the handful of rows that decide
        blocks.append(Details("Every attack by itself", singles))
    if view.differences:
        blocks.append(Details("Every difference with its margin and corrected p", [_long_table(view)], False))
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


@dataclasses.dataclass(frozen=True)
class _Spot:
    """One arm at one strength on the front; NaN where no strength is known."""

    arm: ArmView
    strength: float
    x: Level
    y: Level
    swept: bool


def front(view: View, canvas: Canvas) -> Figure | None:
    """Return overall quality against gap or leakage: a cross for each arm, small points at its other strengths."""
    leaks = is_leak(view.primary)
    rows = [row for row in view.levels if row.group is None]
    harms = [row for row in rows if (row.statistic == view.primary if leaks else row.name == "abs_gap")]
    if not harms or len(view.arms) < 2:
        return None
    harm = next((row for row in harms if row.statistic == view.primary), harms[0])
    spots = _spots(view, (view.cost_statistic or "") if leaks else f"mean:{harm.metric}", harm.statistic)
    own = [spot for spot in spots if not spot.swept]
    if not own:
        return None
    metric, word = own[0].x.label, "leakage" if leaks else "gap"
    null = next((row.null for row in harms if row.arm == _remedy(view) and row.null), None) if leaks else None
    title = f"Utility against leakage: {metric}" if leaks else f"Quality against gap: {metric}"
    svg = canvas.front(
        [Point(s.x.value, s.y.value, (s.x.low, s.x.high), (s.y.low, s.y.high), s.arm.index, small=s.swept)
         for s in spots],
        f"{shorten(metric, 36)}, all {view.unit_kind}s (better →)",
        "leakage, strongest attack (better ↓)" if leaks else "size of the gap (better ↓)",
        y_from_zero=True,
        lines=_lines(spots),
        strip=null.high if null else math.nan,
    )  # fmt: skip
    several = len(spots) > len(own)
    columns = [Column("Arm"), *([Column("Strength", numeric=True)] if several else []), Column(metric, numeric=True),
               Column(harm.label, numeric=True), *([Column("Strongest attack")] if leaks else [])]  # fmt: skip
    body = [
        (Cell(s.arm.title, "another strength" if s.swept else ""),
         *([_strength(s)] if several else []),
         cell(s.x.value, interval(s.x.low, s.x.high)), cell(s.y.value, interval(s.y.low, s.y.high)),
         *([Cell(attack_title(s.y.attack).replace(" ", NO_BREAK))] if leaks else []))
        for s in spots
    ]  # fmt: skip
    alt = f"{title}. " + "; ".join(
        f"{s.arm.title}{f' at strength {number(s.strength, plain=True)}' if s.swept else ''}: "
        f"{metric} {number(s.x.value)}, {word} {number(s.y.value)}"
        for s in spots
    )
    reading = [_best(view, own)]
    if several:
        reading.append("Thin lines join an arm's strengths; the large mark is the strength of the verdict.")
    if null:
        reading.append(_strip(view, null.high))
    keys = tuple(arm_key(spot.arm) for spot in own)
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)


def _remedy(view: View) -> str | None:
    return next((arm.name for arm in view.arms if arm.role == "remedy"), None)


def _strip(view: View, high: float) -> str:
    name = view.arm_title(_remedy(view) or "")
    return (
        f"The shaded strip ends at {number(high)}. With permuted labels the strongest attack on {name} stays below it "
        f"in {percent(view.confidence)} of cases, so inside it no leakage is shown."
    )


def _best(view: View, own: Sequence[_Spot]) -> str:
    """Say which arms no other one beats on both axes."""
    best = [
        lower(a.arm.title)
        for a in own
        if not any(
            b.x.value >= a.x.value and b.y.value <= a.y.value and (b.x.value > a.x.value or b.y.value < a.y.value)
            for b in own
        )
    ]
    named = " and ".join(filter(None, [", ".join(best[:-1]), *best[-1:]]))
    return (
        f"Down and to the right is better. By point estimates {named} {'is' if len(best) == 1 else 'are'} on the "
        "front; where crosses overlap, the order is not established."
    )


def _spots(view: View, quality: str, harm: str) -> list[_Spot]:
    """Return every arm at every strength, arms in their order and strengths from weak to strong."""
    at = {(row.arm, row.statistic): row for row in (*view.levels, *view.swept) if row.group is None}
    field, other = _sweep_of(view)
    found = []
    for arm in view.arms:
        names = {arm.name: _own_strength(view, arm, field)} | {
            n: v for n, v in other.items() if n.partition("@")[0] == arm.name
        }
        for name, strength in sorted(names.items(), key=lambda item: (math.isnan(item[1]), item[1])):
            x, y = at.get((name, quality)), at.get((name, harm))
            if x and y:
                found.append(_Spot(arm, strength, x, y, name != arm.name))
    return found


def _sweep_of(view: View) -> tuple[str, dict[str, float]]:
    """Return the setting that a sweep varies and its value in each sweep arm."""
    field, found = "", {}
    for row in view.summary.get("arms", []):
        if isinstance(row, Mapping) and row.get("role") == "sweep":
            settings, name = row.get("settings"), str(row.get("name"))
            for key, value in settings.items() if isinstance(settings, Mapping) else ():
                if isinstance(value, int | float) and f"{value:g}" == name.partition("@")[2]:
                    field, found[name] = str(key), float(value)
    return field, found


def _own_strength(view: View, arm: ArmView, field: str) -> float:
    """Return an arm's own value of the swept setting, else the configured one; NaN when neither is stored."""
    config: Any = next((run.config for run in view.runs if run.config), {})
    method = (config.get("resolved") or {}).get("method") or {}
    value = arm.settings.get(field, method.get(field))
    return float(value) if isinstance(value, int | float) else math.nan


def _strength(spot: _Spot) -> Cell:
    if math.isnan(spot.strength):
        return Cell("–", numeric=True)
    return Cell(number(spot.strength, plain=True), order=spot.strength, numeric=True)


def _lines(spots: Sequence[_Spot]) -> list[Series]:
    lines = []
    for index in dict.fromkeys(spot.arm.index for spot in spots):
        along = [s for s in spots if s.arm.index == index and not math.isnan(s.strength)
                 and math.isfinite(s.x.value) and math.isfinite(s.y.value)]  # fmt: skip
        if len(along) > 1:
            lines.append(Series([s.x.value for s in along], [s.y.value for s in along], index))
    return lines


# -- attacks --------------------------------------------------------------------------------------------------------


def attacks(view: View, canvas: Canvas) -> Figure | None:
    """Return leakage by attacker and surface: baseline and remedy in the plot, every arm in the table."""
    name = (
        view.primary
        if is_leak(view.primary)
        else next((r.statistic for r in view.levels if is_leak(r.statistic)), None)
    )
    rows = [row for row in view.levels if row.statistic == name]
    # of one attack alone there is no maximum, and its row names it
    singles = [row for row in rows if row.group is not None] or [dataclasses.replace(r, group=r.attack) for r in rows]
    shown = [arm for arm in view.arms if arm.role in {"baseline", "remedy"}] or list(view.arms)[:1]
    at = {(row.group, row.arm): row for row in singles}
    if not at or not shown:
        return None
    drawn, body, last = [], [], None
    groups = sorted(dict.fromkeys(str(row.group) for row in singles), key=lambda group: group.split("/")[0])
    for group in groups:
        surface, attacker, protocol = attack_parts(group)
        if surface != last:
            drawn.append(Row(f"On {surface}"))
        last = surface
        found = [at[group, arm.name] for arm in shown if (group, arm.name) in at]
        null = found[-1].null if found else None
        marks = tuple(Mark(r.value, r.low, r.high, a.index) for a in shown if (r := at.get((group, a.name))))
        label = ", ".join(filter(None, (attacker, protocol))) or surface
        label = label[:1].upper() + label[1:]
        values = " → ".join(number(row.value) for row in found)
        drawn.append(Row(shorten(label, 36), marks, values, (0.0, null.high) if null else None))
        cells = [at.get((group, arm.name)) for arm in view.arms]
        body.append(
            (
                Cell(label, f"on {surface}"),
                *(cell(r.value, interval(r.low, r.high)) if r else Cell("–", numeric=True) for r in cells),
                given(null.high if null else math.nan),
            )
        )
    title = "Leakage by attacker and surface"
    columns = [
        Column("Attacker"),
        *(Column(arm.title, numeric=True, key=arm_key(arm)) for arm in view.arms),
        Column("By chance, up to", numeric=True),
    ]
    alt = f"{title}. " + "; ".join(
        f"{attack_title(group)}: "
        + ", ".join(f"{arm.title} {number(at[group, arm.name].value)}" for arm in shown if (group, arm.name) in at)
        for group in groups
    )
    svg = canvas.rows(drawn, "leakage: 0 is guessing, 0.5 is certainty (← better)", zero=True)
    keys = tuple(arm_key(arm) for arm in shown)
    return Figure(title, svg, alt, Table(title, columns, body), keys, _attack_words(view, rows, shown))


def _attack_words(view: View, rows: Sequence[Level], shown: Sequence[ArmView]) -> list[str]:
    words = [
        f"Grey bands reach to what the attacker shows with permuted labels in {percent(view.confidence)} of cases. A "
        "mark inside its band is not told from guessing.",
        f"A cross-fitted attacker learns from other attacked {view.unit_kind}s, a transfer attacker from those whom "
        "the defence knew.",
    ]
    tops = [(arm, row.attack) for arm in shown for row in rows
            if row.arm == arm.name and row.group is None and row.attack]  # fmt: skip
    if tops:
        said = "; ".join(f"against {lower(arm.title)}, {attack_title(attack)}" for arm, attack in tops)
        words.append(f"The strongest attack is picked on these data: {said}.")
    return words


# -- tables -------------------------------------------------------------------------------------------------------


def level_table(view: View, single: bool = False) -> Table | None:
    """Return levels: a row for each statistic and group, a column for each arm; single attacks apart from the rest."""
    keyed: dict[tuple[str, str | None], dict[str, Level]] = {}
    for row in view.levels:
        if is_single(row) == single:
            keyed.setdefault((row.statistic, row.group), {})[row.arm] = row
    if not keyed:
        return None
    arms = [arm for arm in view.arms if any(arm.name in found for found in keyed.values())]
    columns = [Column("Statistic"), *(Column(arm.title, numeric=True, key=arm_key(arm)) for arm in arms)]
    body = []
    for found in keyed.values():
        rows = list(found.values())
        line = [Cell(label_of(rows[0]), _n(rows))]
        line += [
            cell(found[arm.name].value, _ends(found[arm.name])) if arm.name in found
            else Cell("", numeric=True)
            for arm in arms
        ]  # fmt: skip
        body.append(line)
    which = " of single attacks" if single else ""
    return Table(f"Levels{which} with {percent(view.confidence)} intervals", columns, body)


def _ends(row: Level) -> str:
    """Return the interval; a p-value has none."""
    return "" if row.name == "forget_quality" else interval(row.low, row.high)


def _n(rows: Sequence[Level]) -> str:
    counts = sorted({row.n_units for row in rows if row.n_units is not None})
    lost = max((row.n_undefined or 0 for row in rows), default=0)
    if is_leak(rows[0].statistic):
        # who is not attacked has no score by design, so nothing is undefined
        text = f"n = {number(counts[-1])} attacked" if counts else ""
        tops = [row.null.high for row in rows if row.null]
        return text + (f"; up to {number(max(tops))} by chance" if tops else "")
    text = f"n = {number(counts[-1])}" if counts else ""
    text += f", undefined for {number(lost)}" if lost else ""
    expected = [row.null.expected_abs for row in rows if row.null]
    return text + (f"; {number(max(expected))} expected by chance" if expected else "")


def difference_table(view: View, single: bool = False) -> Table | None:
    """Return differences: a row for each statistic, a column for each control; single attacks apart from the rest."""
    keyed: dict[tuple[str, str, str], dict[str, Difference]] = {}
    for row in view.differences:
        if is_single(row) == single:
            keyed.setdefault((row.statistic, row.label, row.arm), {})[row.against] = row
    if not keyed:
        return None
    against = [arm for arm in view.arms if any(arm.name in found for found in keyed.values())]
    columns = [Column("Statistic")]
    columns += [
        Column(f"minus {lower(arm.title)}", ROLES.get(arm.role, arm.role), True, arm_key(arm)) for arm in against
    ]
    body = []
    for found in keyed.values():
        first = next(iter(found.values()))
        line = [Cell(label_of(first), f"{first.direction} is better")]
        for arm in against:
            there = found.get(arm.name)
            shown = Cell("", numeric=True)
            if there:
                ends = interval(there.low, there.high, sign=True)
                shown = cell(there.value, ends, sign=True, verdict=there.verdict)
            line.append(shown)
        body.append(line)
    name = view.arm_title(view.differences[0].arm)
    which = " of single attacks" if single else ""
    return Table(f"Paired differences{which}: {name} minus each other arm", columns, body)


def _long_table(view: View) -> Table:
    numeric = ("Difference", "Interval", "Margin", "Smallest detectable", "p, Holm-corrected")
    columns = [
        Column("Statistic"),
        Column("Control"),
        *(Column(name, numeric=True) for name in numeric),
        Column("Verdict"),
    ]
    body = [
        (Cell(label_of(row)), Cell(view.arm_title(row.against), ROLES.get(row.role, row.role)),
         cell(row.value, sign=True), Cell(interval(row.low, row.high), order=finite(row.low), numeric=True),
         given(row.margin), given(row.smallest_detectable), given(row.holm_p),
         Cell("", order=row.verdict, tag=tag(row.verdict)))
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
