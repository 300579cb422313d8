"""In-UCDS: was the theorem's condition held, who gained under which protocol, and whom was everybody pulled to."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.evidence import arm_key, front
from upright.report.panels.fedfact_notes import noted, over, value
from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Grid,
    Key,
    Notes,
    Prose,
    Table,
    cell,
    ends,
    numeric,
)
from upright.report.plots import Canvas, Mark, Row
from upright.report.read import ArmView, Level, View
from upright.report.text import interval, number, percent, shorten

__all__ = ["LIMITS", "SHOWS_FRONT", "panel"]

SHOWS_FRONT = True
ADVANTAGED, DISADVANTAGED = "advantaged", "disadvantaged"
HELD = {
    "row_sum_bound": "Largest row sum, an upper bound of λ_max",
    "x_t_min": "Smallest share of a set that its own user holds",
    "x_t_mean": "Mean share of a set that its own user holds",
    "kkt_residual": "Largest violation of the optimality conditions",
}
PULLED = {
    "targets": "Users to be pulled",
    "targets_without_neighbours": "of them without any neighbour",
    "picks_gini": "Gini of picks (0: all picked alike, 1: one picked always)",
    "picks_top5_share": "Share of all picks on the five most picked users",
    "official_overlap": "Overlap with the neighbours that the published code picks",
}
SHARES = ("picks_top5_share", "official_overlap")
LIMITS = (
    "Advantaged and disadvantaged are read off training activity, not off who people are. A gap in activity is no gap "
    "between protected groups.",
    "A gap shrinks as well when the advantaged get worse lists. Read it beside the levels of both groups.",
    "The sign of the gap depends on the protocol: users with more test items score higher under a full ranking. No "
    "single protocol is the right one.",
)


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return the blocks of the method's section."""
    remedy = next((arm for arm in view.arms if arm.role == "remedy"), None)
    blocks: list[Block] = []
    if remedy is not None:
        blocks += _condition(view, remedy)
    figures = [figure for figure in (_levels(view, canvas), front(view, canvas)) if figure]
    protocols = _protocols(view, canvas)
    # the tall one stands alone, with its reading beside it
    blocks += [Grid(group) for group in (figures, [protocols] if protocols else []) if group]
    if remedy is not None:
        facts = _concentration(view, remedy)
        if facts:
            blocks += [Prose(["Whom the disadvantaged users are pulled to"], lead=True), Facts(facts, long=True)]
    norms = _norms(view)
    if norms:
        blocks.append(norms)
    return blocks


# -- diagnostics ----------------------------------------------------------------------------------------------------


def _said(values: Sequence[Any], *, share: bool = False) -> str:
    """Write one value, or median and range over seeds."""
    write = percent if share else _number
    numbers = [float(value) for value in values]
    if min(numbers) == max(numbers):
        return write(numbers[0])
    return f"{write(statistics.median(numbers))} (median; {write(min(numbers))} to {write(max(numbers))} over seeds)"


def _number(value: float) -> str:
    # four digits, wherever the point stands: alpha may be 14.22 or 0.0011
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value and abs(value) < 1000 else 3
    return number(value, min(digits, 6), plain=True)


def _condition(view: View, arm: ArmView) -> list[Block]:
    held = noted(view, arm.name, "condition_holds")
    if not held:
        return []
    alpha, top = noted(view, arm.name, "alpha"), noted(view, arm.name, "lambda_max")
    sizes = f" α = {_said(alpha)}, λ_max = {_said(top)}." if alpha and top else ""
    if all(held):
        where = " in every run" if len(held) > 1 else ""
        text = f"The theorem's condition α > λ_max holds{where}.{sizes} Every set holds the user it was built for."
        blocks: list[Block] = [Notes([text], "good")]
    else:
        where = f" in {sum(not h for h in held)} of {len(held)} runs" if len(held) > 1 else ""
        text = (
            f"The theorem's condition α > λ_max does not hold{where}.{sizes} A set need not hold the user it was built "
            "for, so these neighbours are no constrained dominant sets."
        )
        blocks = [Notes([text], "bad")]
    facts = _facts(view, arm, HELD)
    return [*blocks, Facts(facts, long=True)] if facts else blocks


def _facts(view: View, arm: ArmView, words: Mapping[str, str]) -> list[tuple[str, str]]:
    found = {key: values for key in words if (values := noted(view, arm.name, key))}
    return [(words[key], _said(values, share=key in SHARES)) for key, values in found.items()]


def _concentration(view: View, arm: ArmView) -> list[tuple[str, str]]:
    facts, notes = _facts(view, arm, PULLED), noted(view, arm.name, "cluster_size")
    if notes:
        sizes = (_said([value(note, key) for note in notes]) for key in ("p10", "median", "p90"))
        facts.append(("Users in a set: 10th percentile, median, 90th", ", ".join(sizes)))
    return facts


def _norms(view: View) -> Table | None:
    body = []
    for arm in view.arms:
        if notes := noted(view, arm.name, "embedding_norm"):
            pair = (over([value(note, group) for note in notes]) for group in (ADVANTAGED, DISADVANTAGED))
            body.append([Cell(arm.title, key=arm_key(arm)), *pair])
    if not body:
        return None
    caption = "Mean length of the user embeddings: a pull that only shrinks shows here"
    return Table(caption, [Column("Arm"), *numeric("Advantaged", "Disadvantaged")], body)


# -- plots ----------------------------------------------------------------------------------------------------------


def _gaps(view: View) -> list[Level]:
    """One row for each signed gap of NDCG: full ranking, then matched positives, then sampled candidates."""
    found: dict[str, Level] = {}
    for row in view.levels:
        if row.name == "gap" and row.metric.startswith("ndcg@"):
            found.setdefault(row.metric, row)
    return sorted(found.values(), key=lambda row: ("sampled" in row.metric, "matched" in row.metric))


def _protocol(metric: str) -> str:
    matched = re.search(r"_matched(\d+)$", metric)
    if matched:
        return f"Full ranking, {matched[1]} test items a user"
    return "One test item among sampled ones" if metric.endswith("_sampled") else "Full ranking, all test items"


def _protocols(view: View, canvas: Canvas) -> Figure | None:
    kinds = _gaps(view)
    if not kinds:
        return None
    drawn: list[Row] = []
    body = []
    for kind in kinds:
        drawn.append(Row(_protocol(kind.metric)))
        for row in view.find(kind.statistic):
            arm = view.arm(row.arm)
            band = (row.null.low, row.null.high) if row.null else None
            mark = Mark(row.value, row.low, row.high, arm.index if arm else 0)
            drawn.append(Row(shorten(view.arm_title(row.arm), 34), (mark,), number(row.value, sign=True), band))
            body.append(
                (
                    Cell(_protocol(row.metric)),
                    Cell(view.arm_title(row.arm)),
                    cell(row.value, interval(row.low, row.high), sign=True),
                    ends(*band) if band else DASH,
                )
            )
    title = "The gap under three protocols" if len(kinds) == 3 else "The gap by protocol"
    svg = canvas.rows(drawn, "advantaged minus disadvantaged, NDCG", zero=True)
    columns = [Column("Protocol"), Column("Arm"), *numeric("Gap", "With random groups")]
    alt = f"{title}. " + "; ".join(f"{r[0].text}, {r[1].text}: {r[2].text}, interval {r[2].small}" for r in body)
    reading = ["Right of zero, advantaged users get the better lists."]
    if any(row.null for kind in kinds for row in view.find(kind.statistic)):
        reading.append("Grey bands show where the gap falls if users are put into groups of these sizes at random.")
    return Figure(title, svg, alt, Table(title, columns, body), (), reading)


def _levels(view: View, canvas: Canvas) -> Figure | None:
    kinds = _gaps(view)
    rows = [row for row in view.levels if row.name == "mean" and row.group in {ADVANTAGED, DISADVANTAGED}]
    if not rows:
        return None
    metric = kinds[0].metric if kinds else rows[0].metric
    pairs = {(row.arm, row.group): row for row in rows if row.metric == metric}
    drawn, body = [], []
    for arm in view.arms:
        both = [pairs.get((arm.name, group)) for group in (ADVANTAGED, DISADVANTAGED)]
        high, low = both
        if high is None or low is None:
            continue
        marks = tuple(
            Mark(row.value, row.low, row.high, arm.index, hollow, "o") for row, hollow in ((high, False), (low, True))
        )
        drawn.append(Row(shorten(arm.title, 30), marks, f"{number(low.value)} · {number(high.value)}"))
        body.append(
            (
                Cell(arm.title),
                cell(high.value, interval(high.low, high.high)),
                cell(low.value, interval(low.low, low.high)),
            )
        )
    if not drawn:
        return None
    title = f"Levels of both groups: {view.metric_title(metric)}"
    svg = canvas.rows(drawn, view.metric_title(metric))
    columns = [Column("Arm"), *numeric("Advantaged", "Disadvantaged")]
    alt = f"{title}. " + "; ".join(f"{r[0].text}: advantaged {r[1].text}, disadvantaged {r[2].text}" for r in body)
    keys = (Key("Advantaged users", 0, "o"), Key("Disadvantaged users", 0, "o", True))
    reading = ("A remedy should lift the hollow ring.",)
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)
