"""Sections that judge: the stored verdict with the plot it rests on, and what is not significant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from upright.report.evidence import (
    attacks,
    bars_by_group,
    difference_list,
    forest,
    is_leak,
    is_single,
    label_of,
    levels_figure,
)
from upright.report.parts import (
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
    Tag,
    Verdict,
    cell,
    given,
    numeric,
    tag,
)
from upright.report.plots import Canvas
from upright.report.read import Difference, View
from upright.report.text import ROLES, interval, lower, number, percent, plural

__all__ = ["banner", "headline", "not_significant", "verdict", "verdict_tag"]

LINES = {"effect": "Effect", "due": "Due to the method", "rivals": "Rivals"}


def verdict_tag(view: View) -> Tag:
    """Return what the verdict is called, in its colour."""
    said = view.verdict
    word = str(said.get("word") or "measured")
    colour = str(said.get("colour") or ("open" if said.get("answer") == "not known yet" else ""))
    return dataclasses.replace(tag(word, colour), word=str(said.get("title") or word))


def banner(view: View, controls: Sequence[tuple[Key, str, str, Tag]] = (), name: str = "") -> Verdict:
    """Return the stored verdict as it is; nothing is judged here."""
    said = view.verdict
    # an audit has one line, which is its sentence
    lines = {} if view.kind == "audit" else said.get("lines") or {}
    notes = [f"{title}: {lines[key]}." for key, title in LINES.items() if lines.get(key)]
    notes += [f"Next: {step}" for step in said.get("next_steps") or ()]
    sentence = str(said.get("sentence") or "This folder stores no verdict.")
    return Verdict(verdict_tag(view), sentence, str(lines.get("price") or ""), controls, notes, name)


def verdict(view: View, canvas: Canvas) -> Section:
    """Return the banner and the plot that it rests on."""
    controls = []
    for row in view.differences:
        if row.statistic == view.primary and row.role != "rival":  # the line on rivals judges both axes at once
            arm = view.arm(row.against)
            key = Key(lower(arm.title), arm.index) if arm else Key(row.against, 0)
            shown = f"{number(row.value, sign=True)} ({interval(row.low, row.high, sign=True)})"
            controls.append((key, ROLES.get(row.role, row.role), shown, tag(row.verdict)))
    figure = headline(view, canvas)
    blocks: list[Block] = [banner(view, controls), *([Grid((figure,))] if figure else [])]
    return Section("verdict", "Verdict", blocks)


def headline(view: View, canvas: Canvas) -> Figure | None:
    """Return the one plot that carries the verdict: the forest of the deciding statistic, else leak, gap or levels."""
    if view.differences:
        return _forest(view, canvas)
    rows = view.find(view.primary)
    levels = levels_figure(view, canvas, rows, rows[0].label) if rows else None
    return attacks(view, canvas) or bars_by_group(view, canvas) or levels


def _forest(view: View, canvas: Canvas) -> Figure | None:
    rows = [row for row in view.differences if row.statistic == view.primary and math.isfinite(row.value)]
    if not rows:
        return None
    first, remedy = rows[0], view.arm(rows[0].arm)
    rivals = [row for row in rows if row.role == "rival"]
    name, index = view.arm_title(first.arm), remedy.index if remedy else 1
    reading = [
        f"Each line is {name} minus another arm, with the paired {percent(view.confidence)} interval of the "
        f"difference. {'Left' if first.direction == 'lower' else 'Right'} of zero is better."
    ]
    if rivals:
        reading.append("Rivals stand here one by one; the verdict sets them beside it on effect and price at once.")
    if is_leak(first.statistic):
        reading.append(
            "Leakage is the distance of an attacker's AUC from guessing, averaged over classes: 0 is guessing, 0.5 is "
            "certainty."
        )
    parts = [("Controls", view, [row for row in rows if row not in rivals], index), ("Rivals", view, rivals, index)]
    return forest(canvas, f"{first.label}: {name} minus the others", parts, reading)


# -- what is not significant -----------------------------------------------------------------------------------------


def not_significant(view: View) -> Section:
    """Return what could not be shown, and how large an effect would have had to be."""
    blocks = _open_differences(view) if view.differences else _open_levels(view)
    return Section("not-significant", "What is not significant", blocks)


def _open_differences(view: View) -> list[Block]:
    """Return every difference with its margin, the undecided ones in the open."""
    first, rest, words = list[Difference](), list[Difference](), [row.verdict for row in view.differences]
    for row in view.differences:
        (first if row.verdict == "undecided" and not is_single(row) else rest).append(row)
    text = (
        f"Of {plural(len(words), 'difference')}, {number(words.count('undecided'))} undecided and "
        f"{number(words.count('none'))} none that matters. An undecided difference is not evidence of equality."
    )
    blocks: list[Block] = [Prose([text])]
    if first:
        blocks.append(difference_list(view, "Undecided differences", first))
    if rest:
        table = difference_list(view, "The other differences", rest)
        blocks.append(Details(f"The other {plural(len(rest), 'difference')}, with margins", [table], False))
    return blocks


def _open_levels(view: View) -> list[Block]:
    """Return what an audit compared with chance, shown or not."""
    rows = [row for row in view.levels if math.isfinite(row.p)]
    if not rows:
        return [Prose(["One result was measured and nothing was compared, so no difference is claimed."])]
    text = (
        "The smallest detectable size is what four of five such tables would have shown, adjusted for everything that "
        "was compared. A smaller one may be there and was not seen."
    )
    body = [
        (
            Cell(label_of(row)),
            cell(row.value, interval(row.low, row.high)),
            cell(row.p),
            given(row.smallest_detectable),
            Cell("beyond chance" if row.shown else "not told from chance"),
        )
        for row in rows
    ]
    columns = [
        Column("Compared"),
        *numeric("Value", "p, adjusted", "Smallest detectable"),
        Column("Against chance"),
    ]
    return [Prose([text]), Table("What was compared with chance", columns, body)]
