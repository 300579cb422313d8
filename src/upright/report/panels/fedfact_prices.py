"""FedFACT's constraints and decisions: prices, whose decision changed, cells too small, and who is where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.evidence import arm_key
from upright.report.panels.fedfact_maps import FEWEST
from upright.report.panels.fedfact_notes import (
    classes_of,
    client_title,
    mean,
    noted,
    one_seed,
    over,
    records,
    setting,
    value,
)
from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Column,
    Details,
    Figure,
    Grid,
    Notes,
    Prose,
    Table,
    cell,
    count,
    given,
    numeric,
)
from upright.report.plots import Canvas, Mark, Row
from upright.report.read import ArmView, View
from upright.report.text import MINUS, number, percent, plural, shorten

__all__ = ["bars_of", "cells", "flips", "partition", "prices"]

MOST_BARS = 24
MOST_LINES = 40
FEW = f"fewer than {FEWEST}"


# -- prices ---------------------------------------------------------------------------------------------------------

_Bar = tuple[str, str, str, float, float, float]  # client ("" for everybody), contrast, rate, price, gap, tolerance


def bars_of(view: View, note: Any, randomised: bool) -> list[_Bar]:
    """Return each constraint once: of two classes both say the same, so their prices are added."""
    rows = records(note, "prices", "level", "class", "between", "tolerance", "price")
    classes, found = classes_of(view), dict[tuple[str, str, str], list[Mapping[str, Any]]]()
    for row in rows:
        if row["tolerance"] is None:
            continue
        stratum, name = int(row.get("stratum") or 0), str(row["class"])
        if len(classes) == 2 and name == classes[0]:
            # a true positive of one class is no false positive of the other
            stratum = 1 - stratum if row.get("criterion") == "equalized_odds" else stratum
            name = classes[1]
        client = "" if row["level"] == "global" else str(row.get("client"))
        rate = name + _stratum(str(row.get("criterion")), stratum, classes)
        found.setdefault((client, _between(row), rate), []).append(row)
    key = "gap_randomised" if randomised else "gap_deterministic"
    bars = []
    for place, own in found.items():
        price, gap = math.fsum(abs(value(r, "price")) for r in own), max(abs(value(r, key)) for r in own)
        bars.append((*place, price, gap, value(own[0], "tolerance")))
    return bars


def _stratum(criterion: str, stratum: int, classes: Sequence[str]) -> str:
    if criterion == "equalized_odds_cells":
        return f", label {classes[stratum] if stratum < len(classes) else stratum}"
    names = {"equal_opportunity": ("true positive",), "equalized_odds": ("true positive", "false positive")}
    own = names.get(criterion, ())
    return f", {own[stratum]}" if stratum < len(own) else ""


def prices(view: View, canvas: Canvas, remedy: ArmView) -> list[Block]:
    """Return what each constraint costs, and how well the program was solved."""
    notes = noted(view, remedy.name, "prices")
    randomised = setting(view, remedy, "randomised") is True
    every = [bars_of(view, note, randomised) for note in notes]
    blocks: list[Block] = []
    if every and every[0]:
        blocks.append(Grid((_price_figure(view, canvas, every[0], remedy),)))
    if len(every) > 1:
        blocks += _price_table(every)
    return blocks + _solver(view, remedy)


def _price_figure(view: View, canvas: Canvas, bars: Sequence[_Bar], remedy: ArmView) -> Figure:
    binding = sorted((bar for bar in bars if bar[3] > 1e-9), key=lambda bar: -bar[3])[:MOST_BARS]
    drawn: list[Row] = []
    for client, rate in dict.fromkeys((bar[0], bar[2]) for bar in bars):
        own = [bar for bar in binding if (bar[0], bar[2]) == (client, rate)]
        if own:
            where = f"Inside client {shorten(client, 14)}" if client else "Everybody"
            drawn.append(Row(shorten(f"{where}: decided {rate}", 52)))
        for _, between, _, price, gap, tolerance in own:
            said = f"{number(price)} · gap {number(gap)} of {number(tolerance, plain=True)}"
            mark = Mark(price, math.nan, math.nan, remedy.index)
            drawn.append(Row(_pair(between, 54 - len(said)), (mark,), said))
    title = "Prices of the constraints"
    columns = [
        *(Column(title) for title in ("For", "Between", "Decided")),
        *numeric("Price", "Gap, calibration", "Tolerance"),
    ]
    body = [
        (
            Cell(client_title(client, "Everybody")),
            Cell(between),
            Cell(rate),
            cell(price),
            cell(gap, digits=4),
            given(tolerance, plain=True),
        )
        for client, between, rate, price, gap, tolerance in bars
    ]
    alt = f"{title}. " + "; ".join(
        f"{r[0].text}, {r[1].text}, {r[2].text}: {r[3].text}, gap {r[4].text} of {r[5].text}" for r in body
    )
    free = sum(bar[3] <= 1e-9 for bar in bars)
    reading = [
        f"{one_seed(view)}A price is the accuracy lost per unit of tolerance, by the model's own probabilities: at a "
        "price of 0.2, a tolerance smaller by 0.01 costs 0.002. That of a client counts in accuracy of its own rows.",
        f"Of {plural(len(bars), 'constraint')} {number(free)} {'costs' if free == 1 else 'cost'} nothing: there the "
        "gap stays within the tolerance once the others do.",
    ]
    if len(classes_of(view)) == 2:
        reading.append("Of two classes one says what the other does, so each constraint stands once.")
    if sum(bar[3] > 1e-9 for bar in bars) > MOST_BARS:
        reading.append(f"The {MOST_BARS} dearest are drawn; the table has all.")
    if not drawn:
        drawn = [Row("No constraint costs accuracy", (Mark(0.0, math.nan, math.nan, remedy.index),), "0")]
    svg = canvas.rows(drawn, "accuracy lost per unit of tolerance", bars=True)
    return Figure(title, svg, alt, Table(title, columns, body), (), reading)


def _pair(between: str, size: int) -> str:
    """Cut a pair of groups so that a part of both is left."""
    parts = between.split(f" {MINUS} ")
    if len(between) <= size or len(parts) != 2:
        return shorten(between, size)
    half = (size - 3) // 2
    rest = max(half, size - 3 - min(map(len, parts)))  # what a short name leaves goes to the long one
    return f" {MINUS} ".join(shorten(part, rest if len(part) > half else half) for part in parts)


def _price_table(every: Sequence[Sequence[_Bar]]) -> list[Block]:
    """Prices of the constraints on everybody, which every seed has."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for bars in every:
        for client, between, rate, price, gap, _ in bars:
            if not client:
                found.setdefault((between, rate), []).append((price, gap))
    body = [
        (Cell(between), Cell(rate), over([p for p, _ in own]), over([g for _, g in own], digits=4))
        for (between, rate), own in found.items()
    ]
    columns = [Column("Between"), Column("Decided"), *numeric("Price", "Gap, calibration")]
    title = f"Prices of the constraints on everybody, mean and range over {len(every)} seeds"
    return [Table(title, columns, body)] if body else []


def _solver(view: View, remedy: ArmView) -> list[Block]:
    notes = [n for n in noted(view, remedy.name, "solver") if value(n, "steps") > 0]  # none without a constraint
    if not notes:
        return []
    stuck = sum(isinstance(n, Mapping) and n.get("converged") is False for n in notes)
    kkt, gap = (max((abs(value(n, k)) for n in notes), default=math.nan) for k in ("kkt", "duality_gap"))
    where = f" over {len(notes)} seeds" if len(notes) > 1 else ""
    text = (
        f"The program ended with a duality gap of {number(gap)} and a largest violation of the optimality (KKT) "
        f"conditions of {number(kkt)}{where}, after {_steps(notes)} Newton steps."
    )
    if not stuck:
        return [Notes([f"{text} It converged."], "good")]
    of = f" in {stuck} of {len(notes)} runs" if len(notes) > 1 else ""
    return [Notes([f"{text} It did not converge{of}: tolerances may be exceeded and prices are approximate."], "bad")]


def _steps(notes: Sequence[Any]) -> str:
    steps = sorted(int(value(n, "steps")) for n in notes if math.isfinite(value(n, "steps")))
    if not steps:
        return "unknown"
    return number(steps[0]) if steps[0] == steps[-1] else f"{number(steps[0])} to {number(steps[-1])}"


# -- whose decision changed -----------------------------------------------------------------------------------------


def flips(view: View, canvas: Canvas, remedy: ArmView) -> list[Block]:
    """Return the share of each group that is decided otherwise than without a remedy, and to which class."""
    found: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}
    for arm in view.arms:
        for note in noted(view, arm.name, "flips"):
            for row in records(note, "flips", "group", "to", "share", "rows"):
                key = (str(row["group"]), str(row["to"]))
                found.setdefault(arm.name, {}).setdefault(key, []).append((value(row, "share"), value(row, "rows")))
    own = found.get(remedy.name)
    if not own:
        return []
    drawn: list[Row] = []
    for group in dict.fromkeys(g for g, _ in own):
        n = min(r for (g, _), seeds in own.items() if g == group for _, r in seeds)
        if n < FEWEST:
            continue
        drawn.append(Row(shorten(group, 48)))
        for (g, to), seeds in own.items():
            share = mean([s for s, _ in seeds])
            if g == group:
                mark = Mark(share, math.nan, math.nan, remedy.index)
                drawn.append(Row(shorten(f"to {to}", 40), (mark,), percent(share)))
    if not drawn:
        return []
    body = []
    for arm in view.arms:
        # without a remedy nothing changes
        for (group, to), seeds in found.get(arm.name, {}).items() if arm.role != "baseline" else ():
            least = min(r for _, r in seeds)
            shown = over([s for s, _ in seeds]) if least >= FEWEST else DASH
            size = over([r for _, r in seeds], digits=0) if least >= FEWEST else Cell(FEW, numeric=True)
            body.append((Cell(arm.title, key=arm_key(arm)), Cell(group), Cell(to), shown, size))
    title = "Decisions that changed, by group"
    columns = [Column("Arm"), Column("Group"), Column("Changed to"), *numeric("Share of the group", "Rows")]
    alt = f"{title}, {remedy.title}. " + "; ".join(
        f"{r[1].text} to {r[2].text}: {r[3].text}" for r in body if r[0].text == remedy.title and r[3].text != "–"
    )
    several = " Mean over seeds." if len(view.seeds) > 1 else ""
    reading = [
        "Share of a group's calibration rows that is decided otherwise than by the model without a remedy, and to "
        f"which class.{several}",
        "Closing a gap moves decisions in both directions: some people gain a class and others lose it.",
    ]
    svg = canvas.rows(drawn, "share of the group", bars=True)
    return [Grid((Figure(title, svg, alt, Table(title, columns, body), (arm_key(remedy),), reading),))]


# -- cells and constraints that deserve a warning -------------------------------------------------------------------


def cells(view: View, remedy: ArmView) -> list[Block]:
    """Return cells too small to certify, local constraints against global ones, and constraints left out."""
    return [*_small(view, remedy), *_conflicts(view, remedy), *_masked(view, remedy)]


def _seeds_said(notes: Sequence[Sequence[Any]], word: str) -> str:
    sizes = sorted(len(note) for note in notes)
    if len(sizes) < 2:
        return ""
    ends = f"{sizes[0]} to {sizes[-1]}" if sizes[0] < sizes[-1] else str(sizes[0])
    return f" Over {len(sizes)} seeds there are {ends} such {word}."


def _listed(title: str, said: str, text: str, columns: Sequence[Column], body: Sequence[Sequence[Cell]]) -> Details:
    """Fold the first lines of a table with what they mean."""
    table: list[Block] = [Table(title, columns, body[:MOST_LINES])] if body else []
    rest = len(body) - MOST_LINES
    more: list[Block] = [Prose([f"{number(rest)} more are not listed."], muted=True)] if rest > 0 else []
    return Details(said, [Prose([text]), *table, *more])


def _small(view: View, remedy: ArmView) -> list[Block]:
    notes = [records(n, "small", "client", "group", "samples", "of") for n in noted(view, remedy.name, "small")]
    if not any(notes):
        return []
    body = []
    for row in notes[0]:
        n, need = int(row["samples"]), row.get("needed")
        size = Cell("no row" if not n else FEW if n < FEWEST else number(n), order=max(n, FEWEST - 1), numeric=True)
        # what a cell of few rows needs would give its number away
        needed = DASH if need is None or n < FEWEST else count(need)
        body.append((Cell(f"Client {row['client']}"), Cell(str(row["group"])), size, count(row["of"]), needed))
    columns = [Column("Client"), Column("Group")]
    columns += numeric("Rows of the group", "Rows of the client", "Rows needed")
    text = (
        f"{one_seed(view)}A gap inside a client is certified where the client has so many calibration rows that the "
        "group is sure to have more than 30 of them in 95 % of samples: with share p, n of at least 60 / p + ln(20) / "
        "(2 p²). The rule suffices and is not necessary. These cells are below it: their tolerance holds on the "
        f"calibration rows and may not on others.{_seeds_said(notes, 'cells')}"
    )
    title = "Cells too small to certify"
    return [_listed(title, f"{title}: {plural(len(body), 'cell')}", text, columns, body)]


def _conflicts(view: View, remedy: ArmView) -> list[Block]:
    keys = ("client", "class", "between", "global_price", "local_price")
    notes = [records(n, "conflicts", *keys) for n in noted(view, remedy.name, "conflicts")]
    classes = classes_of(view)
    if len(classes) == 2:  # both classes of a cell say the same; equal opportunity has one of them
        notes = [list({(r["client"], r.get("stratum"), r["between"]): r for r in note}.values()) for note in notes]
    if not any(notes):
        return []
    body = []
    for row in notes[0]:
        rate = str(row["class"]) + _stratum(str(row.get("criterion")), int(row.get("stratum") or 0), classes)
        prices = (cell(value(row, key), sign=True) for key in ("global_price", "local_price"))
        body.append((Cell(f"Client {row['client']}"), Cell(_between(row)), Cell(rate), *prices))
    columns = [Column("Client"), Column("Between"), Column("Decided"), *numeric("Price for everybody", "Price inside")]
    text = (
        f"{one_seed(view)}At these clients the constraint inside the client pulls against the one for everybody: what "
        "closes the gap of all rows would open one there, so the client's own adjustment takes part of it back."
        f"{_seeds_said(notes, 'pairs')}"
    )
    title = "Local constraints against global ones"
    return [_listed(title, f"{title}: {number(len(body))}", text, columns, body)]


def _masked(view: View, remedy: ArmView) -> list[Block]:
    keys = ("level", "client", "between", "class", "tolerance")
    every = [records(note, "prices", *keys) for note in noted(view, remedy.name, "prices")]
    notes = [[row for row in rows if row["tolerance"] is None] for rows in every]
    if not any(notes):
        return []
    counted: dict[tuple[str, str], int] = {}
    for row in notes[0]:
        pair = ("Everybody" if row["level"] == "global" else f"Client {row['client']}", _between(row))
        counted[pair] = counted.get(pair, 0) + 1
    body = [(Cell(where), Cell(pair), count(n)) for (where, pair), n in counted.items()]
    columns = [Column("Where"), Column("Between"), *numeric("Constraints left out")]
    text = (
        f"{one_seed(view)}Nothing is promised here: one of the two groups has no calibration row that the rate counts."
        f"{_seeds_said(notes, 'constraints')}"
    )
    said = f"{plural(len(notes[0]), 'constraint')} could not be stated, since a group is empty there."
    title = "Constraints left out"
    return [Notes([said], "warn"), _listed(title, title, text, columns, body)]


def _between(row: Mapping[str, Any]) -> str:
    return str(row["between"]).replace(" - ", f" {MINUS} ")


def partition(view: View) -> list[Block]:
    """Return how many rows of each group and class every client has."""
    note = next((n for arm in view.arms for n in noted(view, arm.name, "counts")), None)
    if note is None:
        return []
    rows = records(note, "counts", "client", "group", "n")
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith("y=")))
    body, hidden = [], False
    for row in rows:
        parts = {name: int(value(row, name)) for name in names if math.isfinite(value(row, name))}
        few = any(0 < n < FEWEST for n in parts.values())  # the total and the other classes would give it away
        hidden |= few
        n = int(row["n"])
        total = Cell(FEW if 0 < n < FEWEST else number(n), order=n if n == 0 or n >= FEWEST else 1, numeric=True)
        line = [Cell(f"Client {row['client']}"), Cell(str(row["group"])), total]
        line += [DASH if few or name not in parts else count(parts[name]) for name in names]
        body.append(line)
    columns = [Column("Client"), Column("Group"), *numeric("Rows")]
    columns += numeric(*(name.removeprefix("y=") for name in names), small="label")
    text = f"{one_seed(view)}Rows of training, calibration and test together."
    if hidden:
        text += f" Where one class has {FEW} rows, no class of that group is shown."
    clients = len({row["client"] for row in rows})
    table = Table("Rows by client, group and label", columns, body)
    return [Details(f"How rows are spread over {plural(clients, 'client')}", [Prose([text]), table])]
