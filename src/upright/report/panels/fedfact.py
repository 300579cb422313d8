"""FedFACT: what a tolerance costs, who is treated alike where, which constraints are dear, whose decision changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from upright.report.evidence import Spot, arm_key, spots_of, strength_of
from upright.report.panels.fedfact_maps import (
    ABOVE,
    BELOW,
    FEWEST,
    STEPS,
    Count,
    Rates,
    draw_front,
    draw_map,
    groups_of,
    rates_of,
    said_count,
)
from upright.report.panels.fedfact_notes import (
    client_title,
    mean,
    noted,
    one_seed,
    over,
    records,
    setting,
    tolerance_of,
    value,
)
from upright.report.panels.fedfact_prices import cells, flips, partition, prices
from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Column,
    Figure,
    Grid,
    Key,
    Notes,
    Prose,
    Table,
    cell,
    count,
    given,
    numeric,
)
from upright.report.plots import Canvas, Series
from upright.report.read import ArmView, View
from upright.report.record import thin
from upright.report.text import interval, lower, number, percent, plural

__all__ = ["LIMITS", "SHOWS_FRONT", "panel"]

SHOWS_FRONT = True
MOST_CLIENTS = 12  # rows of a heat map
MOST_GROUPS = 5  # columns of a heat map, so that two lines of numbers fit into 360 units
MOST_RATES = 4
NO_TOLERANCE = ("thresholds", "fairfed", "fedfb")  # remedies that have no such setting
FEW = f"fewer than {FEWEST}"
LIMITS = (
    "Tolerances are fitted on calibration rows. On other rows gaps differ from them by chance, most at small clients "
    "and in small groups.",
    "The largest of many gaps is large by selection: compare it with what random groups show.",
    "Deciding after training needs a person's group at the time of the decision. Whether that is lawful differs by "
    "place and purpose.",
    "Equal rates are no proof of fair treatment: labels may be unfair, and decisions may cost groups unlike much.",
    "Only the groups that the data name are compared. A group that is not named may be worse off.",
)


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return the blocks of the method's section; what the folder lacks is left out."""
    remedy = next((arm for arm in view.arms if arm.role == "remedy"), None)
    blocks: list[Block] = [*_fronts(view, canvas), *_kept(view, remedy), *_gaps(view)]
    if remedy is not None:
        blocks += _maps(view, canvas, remedy) + prices(view, canvas, remedy) + flips(view, canvas, remedy)
        blocks += cells(view, remedy)
    return [*blocks, *partition(view), *_curves(view, canvas)]


# -- fronts ---------------------------------------------------------------------------------------------------------


def _fronts(view: View, canvas: Canvas) -> list[Block]:
    """Accuracy against the global gap and against that of the worst client."""
    primary, cost = view.primary, view.cost_statistic
    if not primary.startswith("disparity:"):
        return []
    words = (
        (primary, "global", "the gap of all rows", False),
        (f"client_{primary}", "local_max", "the gap of the worst client", True),
    )
    figures = []
    for statistic, key, what, local in words:
        spots = spots_of(view, cost, statistic)
        if spots and any(not s.swept for s in spots):
            figures.append(_front(view, canvas, spots, key, what, local))
    return [Grid(figures)] if figures else []


def _name(spot: Spot) -> str:
    return f"{spot.arm.name}@{spot.strength:g}" if spot.swept else spot.arm.name


def _front(view: View, canvas: Canvas, spots: Sequence[Spot], key: str, what: str, local: bool) -> Figure:
    notes = [noted(view, _name(spot), "calibration") for spot in spots]
    fitted = [[mean([value(n, k) for n in own]) for k in ("accuracy", key)] for own in notes]
    open_ = [(a, b) if math.isfinite(a) and math.isfinite(b) else None for a, b in fitted]
    swept = any(spot.swept for spot in spots)
    remedy = next((arm for arm in view.arms if arm.role == "remedy"), None)
    asked = tolerance_of(view, remedy, local) if remedy and not swept else math.nan
    title = f"Accuracy against {what}"
    svg = draw_front(spots, open_, "accuracy (better →)", f"{what} (better ↓)", asked, canvas)
    columns = [Column("Arm"), *numeric(*["Tolerance"] * swept)]
    columns += [*numeric("Accuracy", "Gap", small="test"), *numeric("Accuracy", "Gap", small="calibration")]
    body = [
        (
            Cell(s.arm.title, key=arm_key(s.arm)),
            *[_strength(s)] * swept,
            cell(s.x.value, interval(s.x.low, s.x.high)),
            cell(s.y.value, interval(s.y.low, s.y.high)),
            *map(given, c),
        )
        for s, c in zip(spots, fitted, strict=True)
    ]
    alt = f"{title}. " + "; ".join(
        f"{s.arm.title}{strength_of(s, 'tolerance')}: accuracy {number(s.x.value)}, gap {number(s.y.value)} on test, "
        f"{number(c[1])} on calibration rows"
        for s, c in zip(spots, fitted, strict=True)
    )
    reading = [
        "A client's own gap; of all clients the largest."
        if local
        else f"Down and to the right is better. Filled marks are test rows with {percent(view.confidence)} intervals, "
        "open ones calibration rows, on which decisions after training are fitted. How far they lie apart is what does "
        "not carry over."
    ]
    if swept and not local:
        reading.append("A line joins the tolerances of an arm; the large mark is the tolerance of the verdict.")
    if math.isfinite(asked):
        reading.append(f"The dashed line is the tolerance, {number(asked, plain=True)}.")
    if len(view.seeds) > 1 and not local:
        reading.append("Means over seeds.")
    keys = [arm_key(spot.arm) for spot in spots if not spot.swept]
    if any(open_):
        keys.append(Key("Open: calibration rows", 0, "o", True))
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)


def _strength(spot: Spot) -> Cell:
    if spot.arm.settings.get("remedy") in NO_TOLERANCE:
        return DASH
    if math.isnan(spot.strength) or spot.strength >= 1:
        return Cell("none", numeric=True)
    return given(spot.strength, plain=True)


def _kept(view: View, remedy: ArmView | None) -> list[Block]:
    """Say whether the tolerances hold on the calibration rows of every seed."""
    notes = noted(view, remedy.name, "calibration") if remedy else []
    if remedy is None or not notes:
        return []
    parts, broken = [], set[int]()
    for key, what, local in (("global", "for everybody", False), ("local_max", "inside a client", True)):
        asked, found = tolerance_of(view, remedy, local), [value(n, key) for n in notes]
        if math.isfinite(asked) and any(map(math.isfinite, found)):
            broken |= {i for i, gap in enumerate(found) if gap > asked + 1e-6}
            most = max(gap for gap in found if math.isfinite(gap))
            parts.append(f"{number(most, 4)} {what} (tolerance {number(asked, plain=True)})")
    if not parts:
        return []
    seeds = f" of {len(notes)} seeds" if len(notes) > 1 else ""
    text = f"{remedy.title}: the largest gap on calibration rows{seeds} is {' and '.join(parts)}."
    if not broken:
        return [Notes([text], "good")]
    if len(notes) > 1:
        text += f" In {plural(len(broken), 'seed')} a gap is above its tolerance."
    text += _why(view, remedy)
    return [Notes([text], "warn")]


def _why(view: View, remedy: ArmView) -> str:
    """Say what lets a gap on calibration rows exceed the tolerance that the program was given for them."""
    text = ""
    if view.data.get("criterion", "demographic_parity") != "demographic_parity":
        text += " The program takes rates from the model's probabilities; these gaps count labels."
    if setting(view, remedy, "gap") == "average":
        text += " The tolerance bounds a group's gap to the average; these gaps are between two groups."
    if setting(view, remedy, "randomised") is not True:
        text += f" Decisions without chance need not meet a tolerance exactly.{_few(view, remedy)}"
    return text


def _few(view: View, remedy: ArmView) -> str:
    """Say how few rows there are where a tolerance inside a client is exceeded most."""
    worst, client, at = 1e-6, None, 0
    for i, note in enumerate(noted(view, remedy.name, "prices")):
        for row in records(note, "prices", "client", "tolerance"):
            excess = abs(value(row, "gap_deterministic")) - value(row, "tolerance")
            if row["client"] is not None and excess > worst:
                worst, client, at = excess, row["client"], i
    small = noted(view, remedy.name, "small")
    cells = [row for row in (small[at] if at < len(small) else ()) if row.get("client") == client]
    sizes = [int(value(row, "samples")) for row in cells if value(row, "samples") > 0]
    if not sizes:
        return ""
    n = min(sizes)
    steps = f"{plural(n, 'row')}, so that its rate moves in steps of 1/{n}" if n >= FEWEST else f"{FEW} rows"
    return f" The largest excess is inside a client where a group has {steps}."


def _gaps(view: View) -> list[Block]:
    """Calibration rows beside test, for every arm and each of the three gaps."""
    kinds = (
        ("Accuracy", view.cost_statistic, "accuracy"),
        ("Gap of all rows", view.primary, "global"),
        ("Gap, worst client", f"client_{view.primary}", "local_max"),
        ("Gap, mean over clients", f"mean_client_{view.primary}", "local_mean"),
    )
    body = []
    for arm in view.arms:
        notes = noted(view, arm.name, "calibration")
        if not notes:
            continue
        test, fitted = ([Cell(arm.title, key=arm_key(arm)), Cell(word)] for word in ("test", "calibration"))
        for _, statistic, key in kinds:
            row = next((row for row in view.find(statistic) if row.arm == arm.name), None)
            test.append(cell(row.value, interval(row.low, row.high)) if row else DASH)
            fitted.append(over([value(n, key) for n in notes]))
        body += [test, fitted]
    columns = [Column("Arm"), Column("Rows"), *numeric(*(title for title, *_ in kinds))]
    several = "; of calibration rows mean and range over seeds" if len(view.seeds) > 1 else ""
    return [Table(f"Test and calibration rows{several}", columns, body)] if body else []


# -- heat maps ------------------------------------------------------------------------------------------------------


def _maps(view: View, canvas: Canvas, remedy: ArmView) -> list[Block]:
    """The gap of every client and group in each rate, before and after."""
    before = next((arm for arm in view.arms if arm.role == "baseline"), None)
    shown = [arm for arm in (before, remedy) if arm is not None]
    tables = rates_of(view, [arm.name for arm in shown], view.seeds[0] if view.seeds else None)
    rates = list(dict.fromkeys(metric for _, metric in tables))
    blocks: list[Block] = []
    for n, metric in enumerate(rates[:MOST_RATES]):
        own = [arm for arm in shown if (arm.name, metric) in tables]
        figures = [_map(view, canvas, arm, metric, tables, own[0], explain=not n and arm is own[0]) for arm in own]
        blocks.append(Grid(figures))
    if blocks:
        words = f"{one_seed(view)}Test rows of every client, before and after."
        rest = len(rates) - MOST_RATES
        if rest > 0:
            words += f" {rest} more rates are not drawn."
        blocks.insert(0, Prose([words], lead=True))
    return blocks


def _map(
    view: View,
    canvas: Canvas,
    arm: ArmView,
    metric: str,
    tables: Mapping[tuple[str, str], Rates],
    first: ArmView,
    *,
    explain: bool,
) -> Figure:
    cells = tables[arm.name, metric]
    clients, groups = _clients(tables[first.name, metric]), groups_of(cells)
    whole = {("", g): _sum([one for (_, own), one in cells.items() if own == g]) for g in groups}
    known: dict[tuple[str, str], Count | None] = {**whole, **cells}
    away = {key: _away(known, key) for key in known}
    levels = ["", *clients]
    name = metric.removeprefix("rate/")
    if view.data.get("criterion") == "equal_opportunity":
        name += " where it is the label"
    title = f"Decided {name}, by client and group: {lower(arm.title)}"
    drawn = []
    for c in levels[: MOST_CLIENTS + 1]:
        row = [(away.get((c, g), math.nan), said_count(known.get((c, g)), (c, g) in known)) for g in groups]
        drawn.append((client_title(c), row[:MOST_GROUPS]))
    body = []
    for c in levels:
        for g in groups:
            one, there = known.get((c, g)), (c, g) in known
            size = count(one.n) if one else Cell(FEW if there else "no row")
            rate = [cell(one.rate), cell(away[c, g], sign=True)] if one else [DASH] * 2
            body.append((Cell(client_title(c)), Cell(g), size, *rate))
    largest = {c: _spread(known, c) for c in levels}
    inside = [v for c, v in largest.items() if c and math.isfinite(v)]
    alt = f"{title}. " + "; ".join(f"{r[0].text}, {r[1].text}: {r[4].text} of {r[2].text} rows" for r in body)
    few = any(one is None for one in cells.values())
    said = f"Between two groups{' that are shown' * few} the largest gap is {number(largest[''])} over all rows"
    reading = [
        said + (f" and {number(max(inside))} inside a client." if inside else "."),
    ]
    if explain:
        reading.append(
            "A cell holds a group's share minus that of all groups of its client, and its rows. Blue is more often "
            f"than all groups, orange less often; the shade deepens at {', '.join(f'{s:g}' for s in STEPS)}."
        )
    if few:
        reading.append(f"Cells of {FEW} rows are not shown, and count in no other cell.")
    if len(clients) > MOST_CLIENTS or len(groups) > MOST_GROUPS:
        reading.append(
            f"Drawn: {min(len(clients), MOST_CLIENTS)} of {plural(len(clients), 'client')}, those with the largest "
            f"gaps before, and {min(len(groups), MOST_GROUPS)} of {plural(len(groups), 'group')}. The table has all."
        )
    columns = [Column("Client"), Column("Group"), *numeric("Rows", "Share", "Minus all groups")]
    keys = [Key("more often than all groups", ABOVE, "s"), Key("less often", BELOW, "s")]
    svg = draw_map(drawn, groups[:MOST_GROUPS], canvas)
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)


def _clients(cells: Rates) -> list[str]:
    """Return the clients: by name where all are drawn, else those with the largest gap first."""
    names = sorted({client for client, _ in cells}, key=lambda c: (len(c), c))
    if len(names) <= MOST_CLIENTS:
        return names
    gap = {c: _spread(cells, c) for c in names}
    return sorted(names, key=lambda c: -gap[c] if math.isfinite(gap[c]) else math.inf)


def _sum(parts: Sequence[Count | None]) -> Count | None:
    shown = [one for one in parts if one]
    return Count(sum(one.n for one in shown), sum(one.total for one in shown)) if shown else None


def _away(cells: Rates, key: tuple[str, str]) -> float:
    """Return a group's rate minus that of all groups that are shown at the same client."""
    one, pooled = cells[key], _sum([other for (client, _), other in cells.items() if client == key[0]])
    return one.rate - pooled.rate if one and pooled else math.nan


def _spread(cells: Rates, client: str) -> float:
    rates = [one.rate for (own, _), one in cells.items() if own == client and one]
    return max(rates) - min(rates) if len(rates) > 1 else math.nan


# -- training under constraints -------------------------------------------------------------------------------------


CURVES = {
    "global_gap": ("Gap of all rows by round", "The largest gap between two groups over all training rows."),
    "local_gap": (
        "Gap of the worst client by round",
        "The largest gap between two groups inside a client, the client where it is largest.",
    ),
    "objective": (
        "Objective by round",
        "Share of wrong decisions plus what prices charge for gaps beyond their tolerance: prices rise while a gap is "
        "too large, so this need not fall.",
    ),
}


def _curves(view: View, canvas: Canvas) -> list[Block]:
    """Gap of all rows, gap of the worst client and objective by round, of every arm that trains under constraints."""
    figures = [figure for key in CURVES if (figure := _curve(view, canvas, key))]
    return [Prose(["In training, on training rows"], lead=True), Grid(figures)] if figures else []


def _curve(view: View, canvas: Canvas, key: str) -> Figure | None:
    series, body, keys, most = [], [], [], 1
    title, what = CURVES[key]
    for arm in view.arms:
        seeds = [records(note, "history") for note in noted(view, arm.name, "history")]
        rounds: dict[float, list[float]] = {}
        for row in (row for history in seeds for row in history):
            at, found = value(row, "round"), value(row, key)
            if math.isfinite(at) and math.isfinite(found):
                rounds.setdefault(at, []).append(found)
        if len(rounds) < 2:
            continue
        x = thin(sorted(rounds))
        middle, low, high = ([f(rounds[at]) for at in x] for f in (mean, min, max))
        several = len(seeds) > 1
        series.append(Series(x, middle, arm.index, False, low if several else (), high if several else ()))
        keys.append(arm_key(arm))
        most = max(most, len(seeds))
        last = cell(middle[-1], interval(low[-1], high[-1]) if several else "")
        body.append((Cell(arm.title), given(x[-1], plain=True), cell(middle[0]), cell(min(middle)), last))
    if not series:
        return None
    columns = [Column("Arm"), *numeric("Rounds", "First", "Lowest", "Last")]
    alt = f"{title}. " + "; ".join(
        f"{r[0].text}: first {r[2].text}, lowest {r[3].text}, last {r[4].text} after {r[1].text} rounds" for r in body
    )
    reading = [what]
    if most > 1:
        reading.append(f"Mean over {most} seeds; the shaded range holds all of them.")
    svg = canvas.curves(series, "round", title.removesuffix(" by round").lower())
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)
