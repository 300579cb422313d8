"""Sections that judge: the verdict with the plot it rests on, and what is not significant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.evidence import attacks, bars_by_group, finite, given, is_leak, is_single, label_of, levels_figure
from upright.report.parts import (
    Block,
    Cell,
    Column,
    Details,
    Figure,
    Grid,
    Key,
    Notes,
    Prose,
    Section,
    Table,
    Tag,
    Verdict,
    cell,
    tag,
)
from upright.report.plots import Canvas, Mark, Row
from upright.report.read import Difference, Level, View
from upright.report.text import ROLES, attack_title, interval, lower, number, percent, plural, shorten

__all__ = ["forest", "headline", "not_significant", "sentence", "verdict", "verdict_tag"]

MOST_NOTES = 3


def verdict_tag(view: View) -> Tag:
    """Return the banner's word; an audit is judged by whether its first gap or leakage is beyond zero and chance."""
    stored = view.verdict
    if stored.get("works") is True:
        return tag("works")
    word = str(stored.get("word") or "inconclusive")
    if view.kind == "audit" and word in {"audit", "inconclusive"}:
        return tag(_gap_word(view))
    if word == "helps" and stored.get("works") is False:
        # better than nothing is not better than every control; a green tick would say more than was shown
        return Tag("helps against the baseline, not shown to work", "open", tag("inconclusive").meaning)
    return tag(word)


def _gap_word(view: View) -> str:
    leak = _first_leak(view)
    if leak is not None:
        return "measured" if leak.null is None else "leak shown" if leak.value > leak.null.high else "no leak shown"
    first = _first_gap(view)
    if first is None or math.isnan(first.low):
        return "measured"
    audit: Any = view.summary.get("audit")
    largest = audit.get("gaps", {}).get(first.metric, {}).get("largest") if isinstance(audit, Mapping) else None
    if largest:
        # of several gaps the largest is large by selection: only its own null tells
        return "gap shown" if largest["value"] > largest["null"]["high"] else "no gap shown"
    apart = first.low > 0 or first.high < 0
    chance = first.null is not None and first.null.low <= first.value <= first.null.high
    return "gap shown" if apart and not chance else "no gap shown"


def _first_gap(view: View) -> Level | None:
    # a signed gap can straddle zero; an absolute one cannot, so only the signed one can show that nothing is there
    return next((row for row in view.levels if row.name == "gap"), None)


def _first_leak(view: View) -> Level | None:
    """Return the level that decides where leakage does: the strongest attack on the first arm."""
    rows = view.find(view.primary or "") if is_leak(view.primary) else []
    return next(iter(rows), None)


def sentence(view: View) -> str:
    """Return the stored sentence of the verdict; an audit without one states its first gap or leak, or first level."""
    stored = view.verdict.get("sentence")
    if stored:
        return str(stored)
    at = f"{percent(view.confidence)} interval"
    leak = _first_leak(view)
    if leak is not None:
        ends = f"({at} {interval(leak.low, leak.high)})"
        return f"{leak.label} is {number(leak.value)} {ends}. " + _leak_chance(view, leak)
    gap = _first_gap(view)
    if gap is not None:
        rows = [r for r in view.levels if r.name == "mean" and r.metric == gap.metric and r.group and r.arm == gap.arm]
        sides = [r for r in rows if r.grouping == gap.grouping]
        if len(sides) == 2:
            a, b = sides
            title = view.metric_title(gap.metric)
            return (
                f"{title} is {number(a.value)} for {a.group} and {number(b.value)} for {b.group} "
                f"{view.unit_kind}s: a gap of {number(gap.value, sign=True)} ({at} {interval(gap.low, gap.high)})."
            )
        return f"{gap.label} is {number(gap.value, sign=True)} ({at} {interval(gap.low, gap.high)})."
    if view.levels:
        row = view.levels[0]
        return f"{row.label} is {number(row.value)} ({at} {interval(row.low, row.high)})."
    return "This folder stores no level and no verdict."


def verdict(view: View, canvas: Canvas) -> Section:
    """Return the banner and the plot that it rests on."""
    deciding = [row for row in view.differences if row.statistic == view.primary]
    controls = []
    for row in deciding:
        arm = view.arm(row.against)
        key = Key(lower(arm.title), arm.index) if arm else Key(row.against, 0)
        shown = f"{number(row.value, sign=True)} ({interval(row.low, row.high, sign=True)})"
        controls.append((key, ROLES.get(row.role, row.role), shown, tag(row.verdict)))
    cost = str(view.verdict.get("cost") or "")
    notes = [str(note) for note in view.verdict.get("notes", [])]
    blocks: list[Block] = [
        Verdict(verdict_tag(view), sentence(view), cost, tuple(controls), tuple(notes)),
    ]
    figure = headline(view, canvas)
    if figure:
        blocks.append(Grid((figure,)))
    return Section("verdict", "Verdict", blocks)


def headline(view: View, canvas: Canvas) -> Figure | None:
    """Return the one plot that carries the verdict: the forest of the deciding statistic, else leak, gap or levels."""
    name = view.primary
    if view.differences:
        return forest([row for row in view.differences if row.statistic == name], view, canvas)
    if is_leak(name):
        return attacks(view, canvas)
    groups = [row for row in view.levels if row.name == "mean" and row.group is not None]
    if groups:
        figure = bars_by_group(view, canvas, groups[0].metric, groups[0].grouping)
        return dataclasses.replace(figure, reading=_chance(view, groups[0].metric, groups[0].grouping))
    rows = view.find(name) if name else []
    return levels_figure(view, canvas, rows, rows[0].label) if rows else None


def _chance(view: View, metric: str, grouping: str | None) -> list[str]:
    """Say how large a gap random groups of the same sizes would show."""
    gap = next(
        (
            r
            for r in view.levels
            if r.name == "gap" and r.metric == metric and r.grouping == grouping and r.group is None
        ),
        None,
    )
    if gap is None or gap.null is None:
        return []
    null = gap.null
    return [
        f"The gap is {number(gap.value, sign=True)}. Were the same {view.unit_kind}s put into groups of these sizes at "
        f"random, a gap of size {number(null.expected_abs)} would be expected, and {percent(view.confidence)} of such "
        f"gaps would lie between {number(null.low)} and {number(null.high)}."
    ]


def _leak_chance(view: View, leak: Level) -> str:
    """Say which attack leaks most, and how much permuted labels would show."""
    name = lower(view.arm_title(leak.arm))
    text = f"The strongest attack on {name}: {attack_title(leak.attack)}." if leak.attack else ""
    if leak.null is None:
        return text
    side = "above" if leak.value > leak.null.high else "not above"
    return (
        f"{text} With permuted labels the strongest attack would stay below {number(leak.null.high)} in "
        f"{percent(view.confidence)} of cases: {number(leak.value)} is {side} that."
    ).strip()


def forest(rows: Sequence[Difference], view: View, canvas: Canvas, label: str = "") -> Figure | None:
    """Return the differences of one statistic against every control, with zero and the margin drawn."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return None
    side = "Left" if rows[0].direction == "lower" else "Right"
    first, remedy = rows[0], view.arm(rows[0].arm)
    title, better = label or first.label, "← better" if first.direction == "lower" else "better →"
    index = remedy.index if remedy else 1
    drawn: list[Row] = []
    sides = [[row for row in rows if (row.role == "rival") == rival] for rival in (False, True)]
    for heading, part in zip(("Controls, which decide", "Rivals, which do not"), sides, strict=True):
        if part and all(sides):
            drawn.append(Row(heading))
        drawn += [
            Row(
                shorten(f"minus {lower(view.arm_title(row.against))}", 34),
                (Mark(row.value, row.low, row.high, index),),
                f"{number(row.value, sign=True)}",
            )
            for row in part
        ]
    margin = first.margin if math.isfinite(first.margin) else 0.0
    svg = canvas.rows(drawn, f"difference ({better})", zero=True, margin=margin)
    table = Table(
        f"Differences in {title}: {view.arm_title(first.arm)} minus each control",
        (Column("Control"), Column("Difference", numeric=True), Column("Interval", numeric=True), Column("Verdict")),
        [
            (Cell(view.arm_title(row.against), ROLES.get(row.role, row.role)), cell(row.value, sign=True),
             Cell(interval(row.low, row.high, sign=True), order=row.low, numeric=True), Cell("", tag=tag(row.verdict)))
            for row in rows
        ],
    )  # fmt: skip
    reading = [
        f"Each line is {view.arm_title(first.arm)} minus one control, with the paired "
        f"{percent(view.confidence)} interval of the difference. {side} of zero is better.",
        f"A remedy is said to work only if all of these intervals{' against controls' * bool(sides[1])} lie on the "
        "better side and its cost stays within its margin."
        + (f" The shaded band, {number(margin)} to either side, counts as no change." if margin else ""),
    ]
    if is_leak(first.statistic):
        leak = next((row for row in view.find(first.statistic) if row.arm == first.arm), None)
        reading.append(
            "Leakage is the distance of an attacker's AUC from guessing, averaged over classes: 0 is guessing, 0.5 is "
            "certainty." + (f" {_leak_chance(view, leak)}" if leak else "")
        )
    alt = f"{title}, {view.arm_title(first.arm)} minus control. " + "; ".join(
        f"{view.arm_title(r.against)}: {number(r.value, sign=True)}, interval {interval(r.low, r.high)}" for r in rows
    )
    return Figure(title, svg, alt, table, (), reading)


# -- what is not significant -----------------------------------------------------------------------------------------


def not_significant(view: View) -> Section:
    """Return what could not be shown, and how large an effect would have had to be."""
    blocks: list[Block] = []
    stored = [str(item) for item in view.verdict.get("not_significant", [])]
    if 0 < len(stored) <= MOST_NOTES:
        blocks.append(Notes(stored, "open"))
    elif stored:
        # the table below has them with their numbers
        blocks.append(Details(f"In words: {plural(len(stored), 'statement')}", [Notes(stored, "open")], False))
    if view.differences:
        blocks += _open_differences(view)
    else:
        blocks += _open_levels(view)
    return Section("not-significant", "What is not significant", blocks)


def _open_differences(view: View) -> list[Block]:
    rows = [row for row in view.differences if row.verdict == "inconclusive"]
    equal = [row for row in view.differences if row.verdict == "equal"]
    total = len(view.differences)
    are, same = ("is" if len(rows) == 1 else "are"), ("is" if len(equal) == 1 else "are")
    text = (
        f"Of {plural(total, 'difference')}, {number(len(rows))} {are} inconclusive: the data are compatible with no "
        f"change and with one that matters. {number(len(equal))} {same} equal within the margin. "
        "An inconclusive difference is not evidence of equality."
    )
    blocks: list[Block] = [Prose([text])]
    for single in (False, True):
        columns = (Column("Inconclusive"), Column("Control"), Column("Difference", numeric=True),
                   Column("Interval", numeric=True), Column("Smallest detectable effect", numeric=True))  # fmt: skip
        body = [
            (Cell(label_of(row)), Cell(view.arm_title(row.against)), cell(row.value, sign=True),
             Cell(interval(row.low, row.high), order=finite(row.low), numeric=True), given(row.smallest_detectable))
            for row in rows
            if is_single(row) == single
        ]  # fmt: skip
        which = " of single attacks" if single else ""
        title = f"Inconclusive differences{which} and the smallest effect that could have been detected"
        if body:
            table = Table(title, columns, body)
            blocks.append(Details(f"The same for single attacks: {number(len(body))}", [table]) if single else table)
    return blocks


_COMPARED = ("gap", "abs_gap", "disparity", "client_disparity", "mean_client_disparity")


def _open_levels(view: View) -> list[Block]:
    if is_leak(view.primary):
        return _open_leaks(view)
    if any(row.name in _FORGETTING for row in view.levels):
        return _open_forgetting(view)
    gaps = [row for row in view.levels if row.name in _COMPARED and math.isfinite(row.low)]
    if not gaps:
        return [Prose(["One result was measured and nothing was compared, so no difference is claimed."])]
    halves = all(math.isnan(row.smallest_detectable) for row in gaps)
    body = []
    for row in gaps:
        least = (row.high - row.low) / 2 if halves else row.smallest_detectable
        inside = row.null is not None and row.null.low <= row.value <= row.null.high  # the low of a size is 0
        word = "not told from random groups" if inside else "beyond random groups" if row.null else ""
        body.append((Cell(row.label), cell(row.value, interval(row.low, row.high)), given(least), Cell(word)))
    columns = (
        Column("Gap"),
        Column("Value", numeric=True),
        Column("Smallest detectable gap", numeric=True),
        Column("Against random groups"),
    )
    means = "whose interval would just exclude zero" if halves else "that four of five such audits would have found"
    text = (
        f"The smallest detectable gap is the one {means}, with as many {view.unit_kind}s in these groups. "
        "A smaller gap may be there and was not seen."
    )
    return [Prose([text]), Table("Gaps and the smallest that could have been detected", columns, body)]


_FORGETTING = {"membership": "permuted labels", "ks_distance": "two equal models", "memory_gap": "", "utility": ""}


def _open_forgetting(view: View) -> list[Block]:
    rows = [row for row in view.levels if row.name in _FORGETTING and row.null and math.isfinite(row.value)]
    rows = (
        [row for row in rows if row.arm == view.arms[0].name] if view.arms else rows
    )  # not of what it is compared with
    if not rows:
        return [Prose(["The model was compared with no other model and no unseen records, so no trace is excluded."])]
    body = []
    for row in rows:
        high = row.null.high if row.null else math.nan
        word = f"{'beyond' if row.value > high else 'not told from'} {_FORGETTING[row.name]}"
        body.append((Cell(row.label, view.arm_title(row.arm)), cell(row.value, interval(row.low, row.high)),
                     given(high), given(row.smallest_detectable), Cell(word)))  # fmt: skip
    columns = (Column("Distance"), Column("Value", numeric=True), Column("By chance, up to", numeric=True),
               Column("Smallest detectable", numeric=True), Column("Against chance"))  # fmt: skip
    text = (
        "The smallest detectable distance is the one that four of five such audits would have found, with as many "
        f"{view.unit_kind}s. A smaller trace may be there, and an attack that was not tried may find it."
    )
    return [Prose([text]), Table("Distances and what chance shows", columns, body)]


def _open_leaks(view: View) -> list[Block]:
    rows = [row for row in view.levels if row.statistic == view.primary and row.null]
    if not rows:
        return [Prose(["Leakage was measured without permuted labels, so nothing is said about chance."])]
    body = []
    for row in rows:
        high = row.null.high if row.null else math.nan
        word = "beyond permuted labels" if row.value > high else "not told from permuted labels"
        body.append((Cell(attack_title(row.group) if row.group else "strongest attack", view.arm_title(row.arm)),
                     cell(row.value, interval(row.low, row.high)), given(high), Cell(word)))  # fmt: skip
    columns = (
        Column("Attack"),
        Column("Leakage", numeric=True),
        Column("By chance, up to", numeric=True),
        Column("Against permuted labels"),
    )
    text = (
        "An attack below what permuted labels show has read nothing that could be told from chance, with as many "
        f"{view.unit_kind}s attacked. A smaller leakage may be there, and an attacker that was not tried may do better."
    )
    return [Prose([text]), Table("Leakage and what permuted labels show", columns, body)]
