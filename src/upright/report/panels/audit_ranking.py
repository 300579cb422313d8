"""Audit of ranked lists: which items the lists show, by popularity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upright.report.parts import Block, Cell, Column, Figure, Grid, Table, cell
from upright.report.plots import Canvas, Mark, Row
from upright.report.read import View
from upright.report.text import interval, number, percent

__all__ = ["LIMITS", "panel"]

LIMITS = (
    "Exposure counts places in the lists, not what people looked at.",
    "A user without held-out items has no quality here.",
)


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return exposure by popularity bin; nothing when the audit was given no popularity."""
    found = view.summary.get("exposure")
    rows: list[Mapping[str, Any]] = (
        [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    )
    if not rows:
        return []
    drawn = [
        Row(
            f"{row['bin']}: {percent(row['share_of_items'])} of the items",
            (Mark(row["share_of_exposure"], row["low"], row["high"], 1),),
            percent(row["share_of_exposure"]),
        )
        for row in rows
    ]
    body = [
        (
            Cell(str(row["bin"])),
            Cell(number(row["items"]), order=row["items"], numeric=True),
            cell(row["share_of_items"]),
            cell(row["share_of_exposure"], interval(row["low"], row["high"])),
            cell(row["coverage"]),
            cell(row["gini"]),
        )
        for row in rows
    ]
    columns = [Column("Bin")]
    columns += [
        Column(title, numeric=True)
        for title in ("Items", "Share of items", "Share of places", "Shown at least once", "Gini of places")
    ]
    title = "Which items the lists show"
    alt = f"{title}. " + "; ".join(
        f"{row['bin']}: {percent(row['share_of_items'])} of the items and {percent(row['share_of_exposure'])} of places"
        for row in rows
    )
    reading = ("A bin whose share of places is far from its share of items is shown more, or less, than its size.",)
    svg = canvas.rows(drawn, "share of the places in all lists", bars=True)
    return [Grid((Figure(title, svg, alt, Table(title, columns, body), (), reading),))]
