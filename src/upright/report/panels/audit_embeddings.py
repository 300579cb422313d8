"""Audit of user vectors: the learning curve, every attack in numbers, the classes; the verdict draws the attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.parts import Block, Cell, Column, Figure, Grid, Prose, Table, cell
from upright.report.plots import Canvas, Mark, Row
from upright.report.read import View
from upright.report.text import attack_parts, attack_title, interval, number, percent, plural

__all__ = ["LIMITS", "panel"]

LIMITS = (
    "There is no formal guarantee, such as differential privacy gives. Leakage is a lower bound: what the attackers "
    "named here read. An attacker that was not tried may do better.",
    "Intervals are those of these attackers: trained again on other users, they would read a little more or less.",
    "If a defence was fitted on the users that are scored, a low value is no evidence of privacy.",
    "It judges the vectors that were handed in, not the lists or scores made from them.",
)
FEWEST = 5  # a class of fewer users is not shown
_INDEX = 1  # colour of the only arm


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return learning curve and tables; nothing of what the folder lacks."""
    audit = view.summary.get("audit")
    if not isinstance(audit, Mapping):
        return []
    rows = [row for row in audit.get("rows") or [] if isinstance(row, Mapping)]
    curve = _curve(audit, canvas)
    blocks: list[Block] = [Grid([curve])] if curve else []
    if rows:
        blocks += [_table(view, audit, rows), *_classes(audit, rows)]
    return blocks


def _value(row: Mapping[str, Any], key: str) -> float:
    found = row.get(key)
    return float(found) if isinstance(found, int | float) else math.nan


def _name(row: Mapping[str, Any]) -> str:
    return f"{row.get('surface')}/{row.get('attacker')}/{row.get('protocol')}"


def _curve(audit: Mapping[str, Any], canvas: Canvas) -> Figure | None:
    points = [row for row in audit.get("curve") or [] if isinstance(row, Mapping)]
    if not points:
        return None
    drawn = [
        Row(
            f"{plural(int(row['n']), 'known user')}",
            (Mark(_value(row, "auc"), _value(row, "low"), _value(row, "high"), _INDEX),),
            number(_value(row, "auc")),
        )
        for row in points
    ]
    title = "What the strongest attacker learns from so many users"
    body = [
        (
            Cell(number(row["n"]), order=row["n"], numeric=True),
            cell(_value(row, "auc"), interval(_value(row, "low"), _value(row, "high"))),
            cell(_value(row, "sd")),
            cell(_value(row, "leakage")),
        )
        for row in points
    ]
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


def _table(view: View, audit: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    numbers = ("Leakage", "AUC", "Balanced accuracy", "p, adjusted", f"{view.unit_kind.capitalize()}s")
    columns = [Column("Attack"), *(Column(name, numeric=True) for name in numbers), Column("Remark")]
    several = len(audit.get("counts") or {}) > 2
    body = [
        (
            Cell(attack_title(_name(row)), f"AUC of class {row.get('class')}" if several else ""),
            cell(_value(row, "leakage"), interval(_value(row, "leakage_low"), _value(row, "leakage_high"))),
            cell(_value(row, "auc"), interval(_value(row, "auc_low"), _value(row, "auc_high"))),
            cell(_value(row, "balanced_accuracy")),
            cell(_value(row, "p")),
            Cell(number(row.get("n")), order=row.get("n"), numeric=True),
            Cell("" if row.get("converged") else "did not converge"),
        )
        for row in rows
    ]
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
        (
            Cell(str(name)),
            _count(sides, "scored"),
            *([_count(sides, "aligned")] if aligned else []),
            cell(_value(top, f"auc[{name}]")),
        )
        for name, sides in counts.items()
    ]
    said = f"Always naming the largest class is right for {percent(_value(audit, 'majority'))} of the scored users."
    return [Table("Classes: users, and how well one class is told from the others", columns, body), Prose([said], True)]


def _count(sides: Mapping[str, Any], key: str) -> Cell:
    value = _value(sides, key)
    if 0 < value < FEWEST:
        return Cell(f"fewer than {FEWEST}", numeric=True)
    return Cell("–", numeric=True) if math.isnan(value) else Cell(number(int(value)), order=value, numeric=True)
