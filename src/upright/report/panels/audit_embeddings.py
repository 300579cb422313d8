"""Audit of user vectors: every attack against the band of the strongest, the learning curve, the classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.parts import Block, Cell, Column, Figure, Grid, Key, Prose, Table, cell
from upright.report.plots import Canvas, Mark, Row
from upright.report.read import View
from upright.report.text import attack_parts, attack_title, interval, number, percent, plural, shorten

__all__ = ["LIMITS", "panel"]

LIMITS = (
    "There is no formal guarantee, such as differential privacy gives. Leakage is a lower bound: what the attackers "
    "named here read. An attacker that was not tried may do better.",
    "Intervals resample users with fixed attackers. For cross-fitted attackers they are too narrow near guessing, and "
    "that of the leakage never reaches below 0: whether there is any leakage is a question for the permuted labels.",
    "If a defence was fitted on the users that are scored, a low value is no evidence of privacy.",
    "It judges the vectors that were handed in, not the lists or scores made from them.",
)
FEWEST = 5  # a class of fewer users is not shown
_INDEX = 1  # colour of the only arm


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return attacks, learning curve and tables; nothing of what the folder lacks."""
    audit = view.summary.get("audit")
    if not isinstance(audit, Mapping):
        return []
    rows = [row for row in audit.get("rows") or [] if isinstance(row, Mapping)]
    figures = [figure for figure in (_attacks(view, audit, rows, canvas), _curve(audit, canvas)) if figure]
    blocks: list[Block] = [Grid(figures)] if figures else []
    if rows:
        blocks += [_table(view, rows), *_classes(audit, rows)]
    return blocks


def _value(row: Mapping[str, Any], key: str) -> float:
    found = row.get(key)
    return float(found) if isinstance(found, int | float) else math.nan


def _name(row: Mapping[str, Any]) -> str:
    return f"{row.get('surface')}/{row.get('attacker')}/{row.get('protocol')}"


def _attacks(view: View, audit: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], canvas: Canvas) -> Figure | None:
    """Every attack against the band of the strongest: its AUC, or the leakage where classes would cancel in a mean."""
    if not rows:
        return None
    several, high = len(audit.get("counts") or {}) > 2, _value(audit.get("null") or {}, "high")
    fields = ("leakage", "leakage_low", "leakage_high") if several else ("macro_auc", "low", "high")
    centre = 0.0 if several else 0.5
    band = None if math.isnan(high) else (max(0.0, centre - high), centre + high)
    drawn, body, last = [], [], None
    for row in rows:
        surface, attacker, protocol = attack_parts(_name(row))
        if surface != last:
            drawn.append(Row(shorten(f"On {surface}", 48)))
        last = surface
        value, low, end = (_value(row, key) for key in fields)
        mark = Mark(value, low, end, _INDEX, row.get("protocol") != "cross")
        label = f"{attacker}, {protocol}"
        drawn.append(Row(shorten(label[:1].upper() + label[1:], 36), (mark,), number(value), band))
        body.append((Cell(attack_title(_name(row))), cell(value), Cell(interval(low, end), numeric=True)))
    what = "Leakage" if several else "AUC"
    title = f"{what} of every attack against the strongest by chance"
    says = "leakage: 0 is guessing, 0.5 is certainty" if several else "AUC: 0.5 is guessing, 0 and 1 are certainty"
    # around one half an AUC has two sides: both are drawn
    svg = canvas.rows(drawn, says, zero=several, limits=None if several else _sides(rows, high))
    columns = (Column("Attack"), Column(what, numeric=True), Column("Interval", numeric=True))
    alt = f"{title}. " + "; ".join(f"{line[0].text}: {line[1].text}, interval {line[2].text}" for line in body)
    keys = [Key("cross-fitted: learnt from other scored users", _INDEX)]
    if any(row.get("protocol") != "cross" for row in rows):
        keys.append(Key("transfer: learnt from aligned users", _INDEX, hollow=True))
    reading = [_band(view, audit, band)] if band else []
    if not several:
        reading.append("An attacker whose AUC is below one half flips its answer: 0.2 leaks as much as 0.8.")
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)


def _sides(rows: Sequence[Mapping[str, Any]], high: float) -> tuple[float, float]:
    """Return an axis of AUCs that reaches as far below one half as above."""
    far = [abs(end - 0.5) for row in rows for key in ("low", "high") if math.isfinite(end := _value(row, key))]
    far += [high] if math.isfinite(high) else []
    half = 1.05 * max(far, default=0.5)
    return 0.5 - half, 0.5 + half


def _band(view: View, audit: Mapping[str, Any], band: tuple[float, float]) -> str:
    p = _value(audit, "p_max")
    text = (
        f"The grey band, {interval(*band)}, holds the strongest of all attacks in {percent(view.confidence)} of "
        "permutations of the labels."
    )
    return text if math.isnan(p) else f"{text} The strongest attack here has p = {number(p)}."


def _curve(audit: Mapping[str, Any], canvas: Canvas) -> Figure | None:
    points = [row for row in audit.get("curve") or [] if isinstance(row, Mapping)]
    if not points:
        return None
    drawn = [
        Row(f"{plural(int(row['n']), 'known user')}",
            (Mark(_value(row, "auc"), _value(row, "low"), _value(row, "high"), _INDEX),), number(_value(row, "auc")))
        for row in points
    ]  # fmt: skip
    title = "What the strongest attacker learns from so many users"
    body = [
        (Cell(number(row["n"]), order=row["n"], numeric=True),
         cell(_value(row, "auc"), interval(_value(row, "low"), _value(row, "high"))), cell(_value(row, "sd")),
         cell(_value(row, "leakage")))
        for row in points
    ]  # fmt: skip
    columns = [Column(name, numeric=True) for name in ("Users known", "AUC", "Standard deviation", "Leakage")]
    alt = f"{title}. " + "; ".join(f"{line[0].text} users: AUC {line[1].text}, {line[1].small}" for line in body)
    surface, attacker, _ = attack_parts(str(audit.get("strongest") or ""))
    repeats = points[0].get("repeats")
    reading = [
        f"{attacker[:1].upper()}{attacker[1:]} on {surface}. The label of so many users is known to the attacker; half "
        f"of the users are scored. Mark: mean of {repeats} splits; line: the smallest and the largest of them.",
        "A curve that still rises says that an attacker with more known users would read more.",
    ]
    svg = canvas.rows(drawn, "AUC on users whose label is not known", limits=_limits(points))
    return Figure(title, svg, alt, Table(title, columns, body), (), reading)


def _limits(points: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return an axis that always holds one half."""
    ends = [e for row in points for key in ("low", "high") if math.isfinite(e := _value(row, key))]
    return min(0.45, *(end - 0.02 for end in ends)), max(0.55, *(end + 0.02 for end in ends))


def _table(view: View, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("Attack")]
    columns += [
        Column(name, numeric=True)
        for name in (
            "Leakage",
            "Worst class",
            "AUC",
            "Balanced accuracy",
            "p, this attack alone",
            f"{view.unit_kind.capitalize()}s",
        )
    ]
    columns += [Column("Remark")]  # fmt: skip
    body = [
        (Cell(attack_title(_name(row))),
         cell(_value(row, "leakage"), interval(_value(row, "leakage_low"), _value(row, "leakage_high"))),
         cell(_value(row, "worst")), cell(_value(row, "macro_auc"), interval(_value(row, "low"), _value(row, "high"))),
         cell(_value(row, "balanced_accuracy")), cell(_value(row, "p")),
         Cell(number(row.get("n")), order=row.get("n"), numeric=True),
         Cell("" if row.get("converged") else "did not converge"))
        for row in rows
    ]  # fmt: skip
    return Table("Every attack", columns, body)


def _classes(audit: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    counts = audit.get("counts")
    if not isinstance(counts, Mapping) or not counts:
        return []
    top = next((row for row in rows if _name(row) == audit.get("strongest")), {})
    aligned = any(_value(sides, "aligned") > 0 for sides in counts.values())
    columns = [Column(str(audit.get("attribute") or "Class")), Column("Scored", numeric=True)]
    columns += [Column("Aligned", numeric=True)] if aligned else []
    columns += [Column("AUC of the strongest attack", numeric=True)]
    body = [
        (Cell(str(name)), _count(sides, "scored"), *([_count(sides, "aligned")] if aligned else []),
         cell(_value(top, f"auc[{name}]")))
        for name, sides in counts.items()
    ]  # fmt: skip
    said = f"Always naming the largest class is right for {percent(_value(audit, 'majority'))} of the scored users."
    return [Table("Classes: users, and how well one class is told from the others", columns, body), Prose([said], True)]


def _count(sides: Mapping[str, Any], key: str) -> Cell:
    value = _value(sides, key)
    if 0 < value < FEWEST:
        return Cell(f"fewer than {FEWEST}", numeric=True)
    return Cell("–", numeric=True) if math.isnan(value) else Cell(number(int(value)), order=value, numeric=True)
