"""Audit of decisions: gaps of every client and group as a heat map, rates by group, small cells, conflicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import Rectangle

from upright.report.parts import Block, Cell, Column, Details, Figure, Grid, Key, Notes, Prose, Table, cell
from upright.report.plots import COLOURS, FONT, WIDTH, Canvas, Mark, Row, _axes
from upright.report.read import View
from upright.report.text import MINUS, interval, number, percent, plural, shorten

__all__ = ["LIMITS", "panel"]

LIMITS = (
    "Equal rates are no proof of fair treatment: the labels themselves may be unfair, and groups may differ in what "
    "decisions cost them.",
    "Only the groups in the file are compared. A group that is not named, or a mixture of several, may be worse off.",
    "The largest of many gaps is large by selection, most of all among small clients: read its adjusted interval, and "
    "whether it is beyond chance. The interval of a single rate is not adjusted.",
    "Intervals describe other rows of the same kind, with the classifier as it is.",
)
MOST_CLIENTS = 12  # rows of a heat map
MOST_GROUPS = 5  # columns of a heat map, so that two lines of numbers fit into 360 units
MOST_MAPS = 4
MOST_LINES = 40  # of a table of small cells
FEW = "fewer than 5"
TITLES = {
    "demographic_parity": "demographic parity",
    "equal_opportunity": "equal opportunity",
    "equalized_odds": "equalized odds",
}
STRATA = {
    "predicted": "decided {}",
    "true_positive": "decided {} where it is the label",
    "false_positive": "decided {} where it is not the label",
}
_STEPS = (0.02, 0.05, 0.1, 0.2)  # sizes of gaps at which the shade changes
_SHADE = 0.13  # opacity of one step: letters stay readable over four
ABOVE, BELOW = 1, 2  # colours


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return figures and tables of the deciding criterion, the others folded; nothing of what the folder lacks."""
    audit = view.summary.get("audit")
    if not isinstance(audit, Mapping):
        return []
    tables = [one for one in audit.get("fairness") or () if isinstance(one, Mapping) and one.get("by_group")]
    if not tables:
        return []
    first, columns = tables[0], _columns(audit)
    figures = [_rates(view, first, columns, canvas), *_maps(first, columns, canvas)]
    said = (view.verdict.get("lines") or {}).get("clients")
    blocks: list[Block] = [
        Grid(figures),
        *([Prose([f"Inside clients: {said}."])] if said else []),
        _gaps(first, columns),
    ]
    blocks += _conflicts(first, columns) + _small(first, columns, audit)
    for one in tables[1:]:
        rest: list[Block] = [_gaps(one, columns), _rate_table(one, columns)]
        title = f"{_title(one)} by {_named(one, columns)}"
        blocks.append(Details(title, [*rest, *_conflicts(one, columns), *_small(one, columns, audit)]))
    return blocks


def _columns(audit: Any) -> Mapping[str, Any]:
    found = audit.get("groupings")
    return found if isinstance(found, Mapping) else {}


def _named(one: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    """Return the columns of a grouping in words."""
    own = columns.get(str(one.get("grouping")))
    return " and ".join(map(str, own)) if isinstance(own, list) else str(one.get("grouping"))


def _title(one: Mapping[str, Any]) -> str:
    text = TITLES.get(str(one.get("criterion")), str(one.get("criterion")))
    return text[:1].upper() + text[1:]


def _what(row: Mapping[str, Any]) -> str:
    """Return stratum and class of a rate in words."""
    return STRATA.get(str(row.get("stratum")), "{}").format(row.get("class"))


def _value(row: Mapping[str, Any], key: str) -> float:
    found = row.get(key)
    return float(found) if isinstance(found, int | float) else math.nan


def _rows(one: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [row for row in one.get(key) or () if isinstance(row, Mapping)]


def _count(row: Mapping[str, Any], key: str = "n") -> Cell:
    if row.get("few"):
        return Cell(FEW, numeric=True)
    n = row.get(key)
    return Cell("–", numeric=True) if n is None else Cell(number(n), order=n, numeric=True)


def _client(row: Mapping[str, Any]) -> str:
    return "all rows" if row.get("client") is None else str(row.get("client"))


# -- rates --------------------------------------------------------------------------------------------------------


def _rates(view: View, one: Mapping[str, Any], columns: Mapping[str, Any], canvas: Canvas) -> Figure:
    """Rates of every group over all rows, with intervals: dots and whiskers."""
    rows = [row for row in _rows(one, "by_group") if row.get("client") is None]
    drawn, last = [], ""
    for row in rows:
        if _what(row) != last:
            last = _what(row)
            pooled = next((r for r in _rows(one, "overall") if r.get("client") is None and _what(r) == last), {})
            drawn.append(Row(shorten(last[:1].upper() + last[1:], 52)))
            whole = Mark(_value(pooled, "rate"), _value(pooled, "low"), _value(pooled, "high"), 0)
            drawn.append(Row("All groups", (whole,), number(whole.value)))
        mark = Mark(_value(row, "rate"), _value(row, "low"), _value(row, "high"), ABOVE)
        n = FEW if row.get("few") else number(row.get("n"))
        drawn.append(Row(shorten(f"{row.get('group')} ({n})", 40), (mark,), number(mark.value)))
    title = f"Rates by {_named(one, columns)}"
    table = _rate_table(one, columns)
    alt = f"{title}. " + "; ".join(
        f"{row.get('group')}, {_what(row)}: {number(_value(row, 'rate'))}, interval "
        f"{interval(_value(row, 'low'), _value(row, 'high'))}"
        for row in rows
    )
    reading = [
        f"Share of a group's {view.unit_kind}s that are decided so, with its {percent(view.confidence)} interval. In "
        "brackets: how many there are.",
        f"{_title(one)} asks that the dots of a block lie on one line.",
    ]
    keys = [Key("all groups together", 0), Key("one group", ABOVE)]
    return Figure(title, canvas.rows(drawn, "share decided so"), alt, table, keys, reading)


def _rate_table(one: Mapping[str, Any], columns: Mapping[str, Any]) -> Table:
    body = [
        (
            Cell(str(row.get("group"))),
            Cell(_what(row)),
            _count(row),
            cell(_value(row, "rate"), interval(_value(row, "low"), _value(row, "high"))),
        )
        for row in _rows(one, "by_group")
        if row.get("client") is None
    ]
    heads = [Column("Group"), Column("Rate"), Column("Rows", numeric=True), Column("Share", numeric=True)]
    return Table(f"{_title(one)}: rates by {_named(one, columns)}, all rows", heads, body)


# -- heat maps ----------------------------------------------------------------------------------------------------


def _maps(one: Mapping[str, Any], columns: Mapping[str, Any], canvas: Canvas) -> list[Figure]:
    """One map for each stratum and class: a client a row, a group a column, the group's rate minus that of all."""
    clients = _largest_clients(one)
    if not clients:
        return []
    kinds = list(dict.fromkeys((row.get("stratum"), row.get("class")) for row in _rows(one, "by_group")))
    return [_map(one, columns, kind, clients, canvas) for kind in kinds[:MOST_MAPS]]


def _largest_clients(one: Mapping[str, Any]) -> list[Any]:
    rows = [r for r in _rows(one, "gaps") if r.get("client") is not None]
    there = {r.get("client") for r in _rows(one, "by_group")}
    rows = [r for r in rows if r.get("client") in there]
    rows.sort(key=lambda r: -_value(r, "value") if math.isfinite(_value(r, "value")) else math.inf)
    return [r.get("client") for r in rows[:MOST_CLIENTS]]


def _map(
    one: Mapping[str, Any], columns: Mapping[str, Any], kind: tuple[Any, Any], clients: Sequence[Any], canvas: Canvas
) -> Figure:
    def own(key: str) -> list[Mapping[str, Any]]:
        return [row for row in _rows(one, key) if (row.get("stratum"), row.get("class")) == kind]

    cells = {(row.get("client"), row.get("group")): row for row in own("by_group")}
    pooled = {row.get("client"): _value(row, "rate") for row in own("overall")}
    sizes = {g: _value(cells.get((None, g), {}), "n") for g in one.get("groups") or ()}
    largest = sorted(sizes, key=lambda g: -sizes[g] if math.isfinite(sizes[g]) else 0.0)[:MOST_GROUPS]
    groups = [g for g in sizes if g in largest]  # the same order in every map
    levels = [None, *clients]
    away = {(c, g): _value(cells.get((c, g), {}), "rate") - pooled.get(c, math.nan) for c in levels for g in sizes}
    what = _what({"stratum": kind[0], "class": kind[1]})
    title = f"By client and {_named(one, columns)}: {what}"
    body = []
    for c in levels:
        for g in sizes:
            row = cells.get((c, g), {})
            body.append(
                (
                    Cell(_client({"client": c})),
                    Cell(str(g)),
                    _count(row),
                    cell(_value(row, "rate")),
                    cell(away[c, g], sign=True),
                )
            )
    heads = [
        Column("Client"),
        Column("Group"),
        Column("Rows", numeric=True),
        Column("Share", numeric=True),
        Column("Minus all groups", numeric=True),
    ]
    alt = f"{title}, minus all groups of the client. " + "; ".join(
        f"{r[0].text}, {r[1].text}: {r[4].text} of {r[2].text} rows" for r in body
    )
    reading = [
        "A group's share minus that of all groups of the same client, and the rows it rests on. Blue is more often "
        "than all groups, orange less often; the shade deepens at "
        f"{', '.join(number(step, plain=True) for step in _STEPS)}.",
    ]
    total = int(_value(one, "clients")) if math.isfinite(_value(one, "clients")) else len(clients)
    if total > len(clients):
        reading.append(f"The {len(clients)} clients with the largest gaps, of {total}.")
    if len(sizes) > len(groups):
        reading.append(f"The {len(groups)} largest groups, of {len(sizes)}; the table has all.")
    keys = [Key("more often than all groups", ABOVE, "s"), Key("less often", BELOW, "s")]
    return Figure(title, _draw(levels, groups, away, cells, canvas), alt, Table(title, heads, body), keys, reading)


def _draw(
    levels: Sequence[Any],
    groups: Sequence[Any],
    away: Mapping[Any, float],
    cells: Mapping[Any, Mapping[str, Any]],
    canvas: Canvas,
) -> str:
    left, head, step = 92.0, 34.0, 34.0
    height, wide = head + step * len(levels) + 4.0, (WIDTH - left - 4.0) / len(groups)
    fig, ax = _axes(height, left=0, right=0, top=0, bottom=0)
    ax.set_axis_off()
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(height, 0)

    def say(x: float, y: float, text: str, colour: str = "ink", align: str = "center", weight: str = "normal") -> None:
        ax.text(
            x,
            y,
            text,
            horizontalalignment=align,
            verticalalignment="center",
            fontsize=FONT,
            fontweight=weight,
            color=COLOURS[colour],
            parse_math=False,
        )

    for j, g in enumerate(groups):
        lines = _two_lines(str(g), int(wide / 7.6))
        for k, line in enumerate(lines):
            say(left + (j + 0.5) * wide, head - 9 - 13 * (len(lines) - 1 - k), line, weight="bold")
    for i, c in enumerate(levels):
        y = head + i * step
        name = shorten(_client({"client": c}), 14)
        say(4, y + step / 2, name, align="left", weight="bold" if c is None else "normal")
        for j, g in enumerate(groups):
            x, gap, row = left + j * wide, away[c, g], cells.get((c, g), {})
            shade = sum(abs(gap) >= s for s in _STEPS) if math.isfinite(gap) else 0
            if shade:
                colour = COLOURS[f"arm-{ABOVE if gap > 0 else BELOW}"]
                ax.add_patch(
                    Rectangle((x + 1, y + 1), wide - 2, step - 2, facecolor=colour, alpha=_SHADE * shade, linewidth=0)
                )
            ax.add_patch(
                Rectangle((x + 1, y + 1), wide - 2, step - 2, fill=False, edgecolor=COLOURS["line"], linewidth=0.8)
            )
            shown = _hundredths(gap) if math.isfinite(gap) else "few" if row.get("few") else "none"
            say(x + wide / 2, y + 11, shown)
            say(x + wide / 2, y + 24, "< 5" if row.get("few") else number(row.get("n") or 0), "soft")
    return canvas._svg(fig, height)


def _two_lines(name: str, size: int) -> list[str]:
    """Break a name where its halves are most alike, each cut to a size; the table holds it whole."""
    words = name.split(" ")
    if len(name) <= size or len(words) < 2:
        return [shorten(name, size)]
    halves = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return [shorten(half, size) for half in min(halves, key=lambda pair: max(map(len, pair)))]


def _hundredths(gap: float) -> str:
    """Write two decimals and no more: a cell has no room for the digits of a tiny gap."""
    return f"{gap:+.2f}".replace("-", MINUS) if abs(gap) >= 0.005 else "0.00"


# -- tables -------------------------------------------------------------------------------------------------------


def _gaps(one: Mapping[str, Any], columns: Mapping[str, Any]) -> Table:
    """The largest gap of all rows, and of the clients where it is largest."""
    levels = [None, *_largest_clients(one)]
    body = [_gap(row) for row in _rows(one, "gaps") if row.get("client") in levels]
    heads = [Column("Of"), Column("Largest gap"), Column("Size", numeric=True), Column("Beyond chance")]
    return Table(f"{_title(one)} by {_named(one, columns)}: gaps", heads, body)


def _gap(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Return a gap with its place and interval; neither when it rests on fewer than five rows."""
    if row.get("few"):
        return Cell(_client(row)), Cell(f"a cell of {FEW} rows"), Cell("not given", numeric=True), Cell("")
    pair = "none" if row.get("first") is None else f"{row['first']} minus {row.get('second')}"
    small = (
        "" if row.get("first") is None else f"{_what(row)}; smaller cell {plural(int(_value(row, 'smallest')), 'row')}"
    )
    size = cell(_value(row, "value"), interval(_value(row, "low"), _value(row, "high")))
    return Cell(_client(row)), Cell(pair, small), size, Cell("yes" if row.get("shown") else "no")


def _conflicts(one: Mapping[str, Any], columns: Mapping[str, Any]) -> list[Block]:
    rows = _rows(one, "conflicts")
    if not rows:
        return []
    body = []
    for row in rows[:MOST_LINES]:
        sides = [side for key in ("global", "local") if isinstance(side := row.get(key), Mapping)]
        body.append((Cell(_client(row), _what(sides[0])), *(found for side in sides for found in _gap(side)[1:3])))
    heads = [Column("Client"), Column("All rows"), Column("Size", numeric=True), Column("This client")]
    text = (
        "At these clients a gap beyond chance points the other way than over all rows. Closing the gap of all rows by "
        "one rule for everybody would widen it there."
    )
    table = Table(f"Clients against the whole, {_named(one, columns)}", [*heads, Column("Size", numeric=True)], body)
    blocks: list[Block] = [Prose([text]), table]
    return blocks + _more(len(rows))


def _small(one: Mapping[str, Any], columns: Mapping[str, Any], audit: Mapping[str, Any]) -> list[Block]:
    rows = _rows(one, "small")
    if not rows:
        return []
    body: list[tuple[Cell, ...]] = []
    for row in rows[:MOST_LINES]:
        empty = row.get("n") == 0
        body.append(
            (
                Cell(_client(row)),
                Cell(str(row.get("group"))),
                Cell("" if row.get("class") is None else _what(row)),
                _count(row),
                _count({**row, "few": False}, "have"),
                Cell(
                    "no such row" if empty else FEW if row.get("few") else number(row.get("need")),
                    order=row.get("need"),
                    numeric=True,
                ),
            )
        )
    heads = [
        Column("Client"),
        Column("Group"),
        Column("Rate"),
        Column("Rows of the cell", numeric=True),
        Column("Rows of the client", numeric=True),
        Column("Rows needed", numeric=True),
    ]
    if all(row.get("class") is None for row in rows):
        del heads[2]
        body = [line[:2] + line[3:] for line in body]
    text = (
        f"A gap is certified where a cell is sure to hold more than {audit.get('least', 30)} rows: with share p of the "
        "client's rows it takes n of at least 2 M / p + ln(20) / (2 p²), M rows, in 95 % of samples. Here are cells of "
        "clients with fewer. Their gaps are shown and may be chance."
    )
    title = f"Cells too small to certify, {_named(one, columns)}"
    blocks: list[Block] = [Prose([text]), Table(title, heads, body), *_more(len(rows))]
    return [Details(f"{title}: {plural(len(rows), 'cell')}", blocks, False)]


def _more(total: int) -> list[Block]:
    rest = total - MOST_LINES
    return [Notes([f"{plural(rest, 'more line')} in summary.json."])] if rest > 0 else []
