"""Sections that show who gets what: bars by group, worst tenth, the front, and every number in tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Column,
    Details,
    Figure,
    Grid,
    Key,
    Prose,
    Section,
    Table,
    cell,
    count,
    ends,
    given,
    numeric,
    tag,
)
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
    "FRONT",
    "Spot",
    "arm_key",
    "attacks",
    "bars_by_group",
    "difference_list",
    "draw_plane",
    "forest",
    "front",
    "is_leak",
    "is_single",
    "label_of",
    "levels_figure",
    "spots_of",
    "strength_of",
    "units",
]

MOST_FIGURES = 6
NO_BREAK = "\N{NO-BREAK SPACE}"  # an attack's name in a narrow column would make rows of seven lines
LEAKS = ("leakage", "worst_leakage")
FRONT = "What is mended, and what is paid for it"


def is_leak(statistic: str) -> bool:
    """Return whether a statistic says how much attackers read, which is no gap between groups."""
    return statistic.split(":", 1)[0] in LEAKS


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
    grouped = _grouped(view)
    shown = grouped if view.differences else grouped[1:]  # the first already stands beside the verdict
    drawn = [figure for statistic in shown[:MOST_FIGURES] if (figure := bars_by_group(view, canvas, statistic))]
    for name in dict.fromkeys(row.statistic for row in view.levels if row.name == "worst_decile"):
        rows = view.find(name)
        note = (
            f"The tenth of {view.unit_kind}s with the lowest values, averaged: who is served worst, whatever the group."
        )
        drawn.append(levels_figure(view, canvas, rows, rows[0].label, note))
    if plane and (figure := front(view, canvas)):
        drawn.append(figure)
    blocks: list[Block] = [Prose([_resampling(view)])]
    if drawn:
        blocks.append(Grid(drawn))
    if len(shown) > MOST_FIGURES:
        blocks.append(Prose([f"{len(shown) - MOST_FIGURES} more groupings stand in the table only."], muted=True))
    deciding, singles = (
        [table for table in (level_table(view, single), difference_table(view, single)) if table]
        for single in (False, True)
    )
    blocks += deciding
    if singles:
        # a dozen attacks of two statistics would bury the handful of rows that decide
        blocks.append(Details("Every attack by itself", singles))
    if totals := _totals(view):
        blocks.append(totals)
    n = view.evidence.get("n_units")
    title = f"{number(n)} {view.unit_kind}s" if isinstance(n, int) else f"By {view.unit_kind}"
    return Section("units", f"Who gets what: {title}", blocks, "Who gets what")


def _grouped(view: View) -> list[str]:
    """Return means by group, the one that the deciding gap is of first."""
    found = dict.fromkeys(row.statistic for row in view.levels if row.name == "mean" and row.group is not None)
    deciding = f"mean:{view.primary.partition(':')[2]}"
    return sorted(found, key=lambda statistic: statistic != deciding)


def _resampling(view: View) -> str:
    e = view.evidence
    text = f"Every interval covers {percent(view.confidence)}."
    how = str(e.get("resampling") or "").strip().rstrip(".")
    if how:
        return f"{text} {how[:1].upper()}{how[1:]}."
    return text + (f" It comes from {number(e['draws'])} bootstrap draws." if e.get("draws") else "")


def bars_by_group(view: View, canvas: Canvas, statistic: str = "") -> Figure | None:
    """Return a mean by group and arm: what the deciding gap is of, by default, or the first."""
    statistic = statistic or next(iter(_grouped(view)), "")
    groups = dict.fromkeys(row.group for row in view.levels if row.statistic == statistic)
    rows = [row for group in groups for row in view.find(statistic, group)]
    if not rows:
        return None
    title = view.metric_title(rows[0].metric) + (f" by {rows[0].grouping}" if rows[0].grouping else "")
    return levels_figure(view, canvas, rows, title)


def levels_figure(view: View, canvas: Canvas, rows: Sequence[Level], title: str, note: str = "") -> Figure:
    """Return levels of one statistic as bars, under a heading for each group."""
    drawn, said, body, last = list[Row](), list[str](), list[Sequence[Cell]](), None
    for row in rows:
        arm, name = view.arm(row.arm), view.arm_title(row.arm)
        if row.group is not None and row.group != last:
            drawn.append(Row(row.group + (f" ({plural(row.n_units, view.unit_kind)})" if row.n_units else "")))
        last = row.group
        mark = Mark(row.value, row.low, row.high, arm.index if arm else 0)
        drawn.append(Row(shorten(name, 34), (mark,), number(row.value)))
        where = f"{name}, {row.group}" if row.group else name
        said.append(f"{where}: {number(row.value)}, interval {interval(row.low, row.high)}")
        place = (Cell(row.group or "all"), Cell(name))
        body.append((*place, cell(row.value), ends(row.low, row.high), count(row.n_units)))
    table = Table(title, [Column("Group"), Column("Arm"), *numeric("Value", "Interval", "n")], body)
    svg = canvas.rows(drawn, title, bars=True)
    return Figure(title, svg, f"{title}. {'; '.join(said)}", table, (), (note,) if note else ())


# -- what is mended against what is paid ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spot:
    """One arm at one strength on the front; NaN where no strength is known."""

    arm: ArmView
    strength: float
    x: Level
    y: Level
    swept: bool


def front(view: View, canvas: Canvas) -> Figure | None:
    """Return what decides against what it costs: a cross for each arm, small points at its other strengths."""
    spots = spots_of(view, view.cost_statistic, view.primary)
    own = [spot for spot in spots if not spot.swept]
    if len(own) < 2:
        return None
    x, y = own[0].x, own[0].y
    chance = next((s.y.null for s in own if s.arm.role == "remedy" and s.y.better == "lower"), None)
    points = [
        Point(s.x.value, s.y.value, (s.x.low, s.x.high), (s.y.low, s.y.high), s.arm.index, small=s.swept) for s in spots
    ]
    svg = draw_plane(canvas, points, x, y, lines=_lines(spots), strip=chance.high if chance else math.nan)
    several, attacked = len(spots) > len(own), any(spot.y.attack for spot in spots)
    columns = [Column("Arm"), *numeric("Strength"), *numeric(x.label, y.label), Column("Strongest attack")]
    body = [
        (
            Cell(s.arm.title, "another strength" if s.swept else ""),
            given(s.strength, plain=True),
            cell(s.x.value, interval(s.x.low, s.x.high)),
            cell(s.y.value, interval(s.y.low, s.y.high)),
            Cell(attack_title(s.y.attack).replace(" ", NO_BREAK)),
        )
        for s in spots
    ]
    kept = [i for i in range(len(columns)) if (several or i != 1) and (attacked or i != 4)]
    table = Table(FRONT, [columns[i] for i in kept], [[row[i] for i in kept] for row in body])
    alt = f"{FRONT}. " + "; ".join(
        f"{s.arm.title}{strength_of(s)}: {x.label} {number(s.x.value)}, {y.label} {number(s.y.value)}" for s in spots
    )
    reading = ["Where crosses overlap, the order is not established."]
    if several:
        reading.append("Thin lines join an arm's strengths; the large mark is the strength of the verdict.")
    if chance:
        reading.append(
            f"The shaded strip is what chance shows in {percent(view.confidence)} of cases: up to "
            f"{number(chance.high)}."
        )
    return Figure(FRONT, svg, alt, table, tuple(arm_key(spot.arm) for spot in own), reading)


def draw_plane(canvas: Canvas, points: Sequence[Point], x: Level, y: Level, **more: Any) -> str:
    """Draw points in a plane whose axes are called as the levels x and y are."""
    across = "← better" if x.better == "lower" else "better →"
    up = {"lower": " (better ↓)", "higher": " (better ↑)"}.get(y.better, "")
    xlabel, ylabel = f"{shorten(x.label, 36)} ({across})", shorten(y.label, 40) + up
    return canvas.front(points, xlabel, ylabel, y_from_zero=y.better == "lower", **more)


def strength_of(spot: Spot, word: str = "strength") -> str:
    """Say the strength of a spot that is not the arm's own."""
    return f" at {word} {number(spot.strength, plain=True)}" if spot.swept else ""


def spots_of(view: View, cost: str, effect: str) -> list[Spot]:
    """Return every arm at every strength, arms in their order and strengths from weak to strong."""
    at = {(row.arm, row.statistic): row for row in (*view.levels, *view.swept) if row.group is None}
    field, other = _sweep_of(view)
    found = []
    for arm in view.arms:
        names = {arm.name: _own_strength(view, arm, field)} | {
            n: v for n, v in other.items() if n.partition("@")[0] == arm.name
        }
        for name, strength in sorted(names.items(), key=lambda item: (math.isnan(item[1]), item[1])):
            x, y = at.get((name, cost)), at.get((name, effect))
            if x and y:
                found.append(Spot(arm, strength, x, y, name != arm.name))
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


def _lines(spots: Sequence[Spot]) -> list[Series]:
    lines = []
    for index in dict.fromkeys(spot.arm.index for spot in spots):
        along = [s for s in spots if s.arm.index == index and not math.isnan(s.strength)]
        along = [s for s in along if math.isfinite(s.x.value) and math.isfinite(s.y.value)]
        if len(along) > 1:
            lines.append(Series([s.x.value for s in along], [s.y.value for s in along], index))
    return lines


# -- attacks --------------------------------------------------------------------------------------------------------


def attacks(view: View, canvas: Canvas) -> Figure | None:
    """Return leakage by attacker and surface: baseline and remedy in the plot, every arm in the table."""
    leaks = [view.primary, *(row.statistic for row in view.levels)]
    rows = [row for row in view.levels if row.statistic == next(filter(is_leak, leaks), "")]
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
        found = [(arm, at[group, arm.name]) for arm in shown if (group, arm.name) in at]
        null = found[-1][1].null if found else None
        label = ", ".join(filter(None, (attacker, protocol))) or surface
        label = label[:1].upper() + label[1:]
        marks = tuple(Mark(row.value, row.low, row.high, arm.index) for arm, row in found)
        values = " → ".join(number(row.value) for _, row in found)
        drawn.append(Row(shorten(label, 36), marks, values, (0.0, null.high) if null else None))
        cells = [at.get((group, arm.name)) for arm in view.arms]
        body.append(
            (
                Cell(label, f"on {surface}"),
                *(cell(r.value, interval(r.low, r.high)) if r else DASH for r in cells),
                given(null.high if null else math.nan),
            )
        )
    title = "Leakage by attacker and surface"
    columns = [Column("Attacker"), *_by_arm(view.arms), *numeric("By chance, up to")]
    alt = f"{title}. " + "; ".join(
        f"{attack_title(group)}: "
        + ", ".join(f"{arm.title} {number(at[group, arm.name].value)}" for arm in shown if (group, arm.name) in at)
        for group in groups
    )
    svg = canvas.rows(drawn, "leakage: 0 is guessing, 0.5 is certainty (← better)", zero=True)
    reading = [
        f"Grey bands reach to what the attacker shows with permuted labels in {percent(view.confidence)} of cases.",
        f"A cross-fitted attacker learns from other attacked {view.unit_kind}s, a transfer attacker from those whom "
        "the defence knew.",
        *(
            f"{arm.title}: the strongest is {attack_title(row.attack)}."
            for arm in shown
            for row in rows
            if row.arm == arm.name and row.group is None and row.attack
        ),
    ]
    return Figure(title, svg, alt, Table(title, columns, body), tuple(map(arm_key, shown)), reading)


def _by_arm(arms: Sequence[ArmView]) -> list[Column]:
    return [Column(arm.title, numeric=True, key=arm_key(arm)) for arm in arms]


# -- differences ----------------------------------------------------------------------------------------------------

Part = tuple[str, View, Sequence[Difference], int]  # heading, whose rows, and their colour
DIFFERENCES = (
    Column("Of"),
    Column("Minus"),
    *numeric("Difference", "Interval", "Margin", "Smallest detectable"),
    Column("Verdict"),
)


def forest(
    canvas: Canvas,
    title: str,
    parts: Sequence[Part],
    reading: Sequence[str] = (),
    *,
    only: str = "",
    named: bool = False,
) -> Figure:
    """Return differences of one quantity, with zero and the margin drawn.

    Parameters
    ----------
    parts : sequence of (heading, view, rows, colour)
        A part without a row is left out; headings are drawn where there are several.
    only : str
        The role of what is drawn, where the table alone has room for all.
    named : bool
        Whether the table calls rows by their heading instead of their label.
    """
    parts = [part for part in parts if part[2]]
    first, drawn, said, body = parts[0][2][0], list[Row](), list[str](), list[Sequence[Cell]]()
    for heading, view, rows, index in parts:
        drawn += [Row(shorten(heading, 48))] if len(parts) > 1 else []
        body += difference_list(view, title, rows, heading if named else "").rows
        for row in rows:
            name, mark = lower(view.arm_title(row.against)), Mark(row.value, row.low, row.high, index)
            value = number(row.value, sign=True)
            if not only or row.role == only:
                drawn.append(Row(shorten(f"minus {name}", 34), (mark,), value))
            where = f"{heading}, " if len(parts) > 1 else ""
            said.append(f"{where}minus {name}: {value}, interval {interval(row.low, row.high)}")
    margin = first.margin if math.isfinite(first.margin) else 0.0
    better = "← better" if first.direction == "lower" else "better →"
    svg = canvas.rows(drawn, f"difference ({better})", zero=True, margin=margin)
    if margin:
        reading = [*reading, f"The shaded band is the margin, {number(margin)}: a smaller change does not matter."]
    return Figure(title, svg, f"{title}. {'; '.join(said)}", Table(title, DIFFERENCES, body), (), reading)


def difference_list(view: View, caption: str, rows: Sequence[Difference], name: str = "") -> Table:
    """Return a row for each difference, called by its own label or a name for all of them."""
    body = [
        (
            Cell(name or label_of(row)),
            Cell(view.arm_title(row.against), ROLES.get(row.role, row.role)),
            cell(row.value, sign=True),
            ends(row.low, row.high, sign=True),
            given(row.margin),
            given(row.smallest_detectable),
            Cell("", order=row.verdict, tag=tag(row.verdict)),
        )
        for row in rows
    ]
    return Table(caption, DIFFERENCES, body)


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
    body = []
    for found in keyed.values():
        line = [Cell(label_of(next(iter(found.values()))), _n(list(found.values())))]
        for arm in arms:
            there = found.get(arm.name)
            line.append(cell(there.value, _ends(there)) if there else Cell("", numeric=True))
        body.append(line)
    which = " of single attacks" if single else ""
    return Table(
        f"Levels{which} with {percent(view.confidence)} intervals", [Column("Statistic"), *_by_arm(arms)], body
    )


def _ends(row: Level) -> str:
    """Return the interval; a p-value has none."""
    return "" if row.name == "forget_quality" else interval(row.low, row.high)


def _n(rows: Sequence[Level]) -> str:
    n, clusters, lost = (
        max((getattr(row, key) or 0 for row in rows), default=0) for key in ("n_units", "n_clusters", "n_undefined")
    )
    said = [f"n = {number(n)}"] * bool(n) + [f"{number(clusters)} clusters"] * bool(clusters)
    # who is not attacked has no score by design, so nothing is undefined
    said += [f"undefined for {number(lost)}"] * (lost and not is_leak(rows[0].statistic))
    tops = [row.null.high for row in rows if row.null]
    return ", ".join(said) + (f"; up to {number(max(tops))} by chance" if tops else "")


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


def _totals(view: View) -> Table | None:
    names = list(dict.fromkeys(name for arm in view.arms for name in arm.totals))
    if not names:
        return None
    arms = [arm for arm in view.arms if arm.totals]
    body = [[Cell(metric_title(name)), *(_total(view, arm, name) for arm in arms)] for name in names]
    columns = [Column("Quantity"), *_by_arm(arms)]
    seeds = " (mean and range over seeds)" if len(view.runs) > 1 else ""
    return Table(f"Quantities of the whole result, without interval{seeds}", columns, body)


def _total(view: View, arm: ArmView, name: str) -> Cell:
    found = [run.totals.get(arm.name, {}).get(name) for run in view.runs] or [arm.totals.get(name)]
    values = [float(v) for v in found if isinstance(v, int | float)]
    if not values:
        return Cell("", numeric=True)
    return cell(sum(values) / len(values), interval(min(values), max(values)) if len(values) > 1 else "")
