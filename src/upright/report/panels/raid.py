"""RAID: what recommendation paid for privacy, who still reads the attribute, who pays, and how the users were moved."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from upright.contract import InputError
from upright.report.evidence import arm_key, attacks, finite, front
from upright.report.parts import Block, Cell, Column, Figure, Grid, Key, Notes, Table, cell, tag
from upright.report.plots import Bars, Canvas, Map, Mark, Row, Series
from upright.report.read import ArmView, Difference, View
from upright.report.text import ROLES, interval, lower, number, plural, shorten

__all__ = ["LIMITS", "SHOWS_FRONT", "panel"]

SHOWS_FRONT = True
FEWEST = 5  # a bin of fewer users is not shown
MOST_MAPS = 4
MOST_ROWS = 30
MOST_POINTS = 200
LIMITS = (
    "There is no formal guarantee, such as differential privacy gives. Leakage is what the attackers named here read.",
    "An attacker that was not tried may do better.",
    "The attribute can still be inferred from behaviour. Hiding a user's vector does not hide what the user clicked.",
    "Where classes go with taste, hiding the class takes taste away, and those classes lose recommendation quality.",
    "Users whose class the platform does not know are not protected by maps of known classes. They are moved by a "
    "guess of their class.",
    "Intervals resample users with fixed attackers. For cross-fitted attackers they are too narrow near guessing: read "
    "the permutation band there.",
)


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return the blocks of the method's section; what the folder lacks is left out."""
    remedy = next((arm for arm in view.arms if arm.role == "remedy"), None)
    # without differences the attacks already stand beside the verdict
    tall = [front(view, canvas), attacks(view, canvas) if view.differences else None, _classes(view, canvas)]
    blocks: list[Block] = [Grid((figure,)) for figure in tall if figure]
    if remedy is None:
        return blocks
    for group in ([_movement, _projection], [_convergence]):
        figures = [figure for draw in group if (figure := draw(view, canvas, remedy))]
        if figures:
            blocks.append(Grid(figures))
    bad, open_ = _not_converged(view), _reference(view)
    blocks += [Notes(found, tone) for found, tone in ((bad, "bad"), (open_, "warn")) if found]
    ended = _ended(view)
    return [*blocks, ended] if ended else blocks


def _noted(view: View, arm: ArmView, name: str) -> list[Any]:
    """Return one note of an arm at every seed: of the runs, else those that the comparison kept, else the arm's own."""
    rows = [row for row in view.summary.get("arms", []) if isinstance(row, Mapping) and row.get("name") == arm.name]
    kept = next((row["notes_per_seed"] for row in rows if row.get("notes_per_seed")), [arm.notes])
    sources = [run.notes[arm.name] for run in view.runs if arm.name in run.notes] or kept
    return [source[name] for source in sources if isinstance(source, Mapping) and source.get(name) is not None]


# -- who pays -------------------------------------------------------------------------------------------------------


def _classes(view: View, canvas: Canvas) -> Figure | None:
    """Change of the cost in each class, remedy minus every arm; the baseline alone where classes are many."""
    grouping = (view.primary or "").partition(":")[2].partition(":")[2]
    prefix = f"{view.cost_statistic}:{grouping}="
    rows = [row for row in view.differences if row.statistic.startswith(prefix) and math.isfinite(row.value)]
    if not rows or not grouping:
        return None
    by_class: dict[str, list[Difference]] = {}
    for row in rows:
        by_class.setdefault(row.statistic.removeprefix(prefix), []).append(row)
    first, remedy = rows[0], view.arm(rows[0].arm)
    some = len(rows) > MOST_ROWS
    drawn: list[Row] = []
    for name, own in by_class.items():
        size = next((r.n_units for r in view.levels if f"{r.statistic}={r.group}" == own[0].statistic), None)
        drawn.append(Row(shorten(name + (f" ({plural(size, view.unit_kind)})" if size else ""), 48)))
        drawn += [
            Row(shorten(f"minus {lower(view.arm_title(row.against))}", 34),
                (Mark(row.value, row.low, row.high, remedy.index if remedy else 1),), number(row.value, sign=True))
            for row in own
            if row.role == "baseline" or not some
        ]  # fmt: skip
    metric = first.label.removesuffix(f", {next(iter(by_class))}")
    title = f"{metric} by class: {view.arm_title(first.arm)} minus every arm"
    margin = first.margin if math.isfinite(first.margin) else 0.0
    lowers = first.direction == "lower"
    svg = canvas.rows(drawn, f"difference ({'← better' if lowers else 'better →'})", zero=True, margin=margin)
    body = [
        (Cell(name), Cell(view.arm_title(row.against), ROLES.get(row.role, row.role)), cell(row.value, sign=True),
         Cell(interval(row.low, row.high, sign=True), order=finite(row.low), numeric=True),
         Cell("", order=row.verdict, tag=tag(row.verdict)))
        for name, own in by_class.items()
        for row in own
    ]  # fmt: skip
    columns = (Column("Class"), Column("Minus"), Column("Difference", numeric=True), Column("Interval", numeric=True),
               Column("Verdict"))  # fmt: skip
    alt = f"{title}. " + "; ".join(f"{r[0].text} minus {r[1].text}: {r[2].text}, interval {r[3].text}" for r in body)
    reading = [
        f"{'Right' if lowers else 'Left'} of zero a class gets worse lists than under the arm that is subtracted."
    ]
    if margin:
        reading.append(f"The shaded band, {number(margin)} to either side, counts as no change.")
    if some:
        reading.append("With so many classes the plot shows the baseline alone; the table has every arm.")
    return Figure(title, svg, alt, Table(title, columns, body), (), reading)


# -- how users were moved ---------------------------------------------------------------------------------------------


def _movement(view: View, canvas: Canvas, remedy: ArmView) -> Figure | None:
    found = {arm.name: pooled for arm in view.arms if (pooled := _pooled(view, arm))}
    if remedy.name not in found:
        return None
    shown = [arm for arm in view.arms if arm.name in found]
    edges = found[remedy.name][0]
    # shares of bins compare only where the bins are the same
    beside = [arm for arm in shown if arm.role == "trivial" and found[arm.name][0] == edges]
    bars, body = [], []
    for arm in (remedy, *beside):
        bars.append(Bars(edges, _shares(found[arm.name][1]), arm.index, arm is not remedy))
    for arm in shown:
        own, counts, _ = found[arm.name]
        for (low, high), count, share in zip(itertools.pairwise(own), counts, _shares(counts), strict=True):
            users = cell(share, plural(count, view.unit_kind)) if count else _few()
            body.append((Cell(arm.title, key=arm_key(arm)), Cell(interval(low, high), order=low, numeric=True), users))
    title = "How far users moved"
    svg = canvas.histogram(bars, "distance moved, in spreads of the table", f"share of {view.unit_kind}s")
    columns = (Column("Arm"), Column("Distance", numeric=True), Column(f"Share of {view.unit_kind}s", numeric=True))
    alt = f"{title}, {remedy.title}. " + "; ".join(
        f"{r[1].text}: {r[2].text}" for r in body if r[0].text == remedy.title
    )
    seeds = found[remedy.name][2]
    reading = [
        f"A distance of 1 is the spread of all {view.unit_kind}s around their centre. A long way means that much of "
        "what told them apart, taste included, was changed.",
        f"Bins of fewer than {FEWEST} are left out."
        + (f" {view.unit_kind.capitalize()}s are counted once a seed, {seeds} seeds." if seeds > 1 else ""),
    ]
    keys = [arm_key(arm) for arm in (remedy, *beside)]
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)


def _pooled(view: View, arm: ArmView) -> tuple[list[float], list[int], int] | None:
    """Return edges, counts over the seeds that have the first one's edges, and how many seeds those are."""
    notes = [_histogram(note, f"{arm.name}: movement") for note in _noted(view, arm, "movement")]
    if not notes:
        return None
    same = [counts for edges, counts in notes if edges == notes[0][0]]
    return notes[0][0], [sum(column) for column in zip(*same, strict=True)], len(same)


def _histogram(note: Any, where: str) -> tuple[list[float], list[int]]:
    """Return edges and counts of a note, bins of fewer than `FEWEST` users emptied."""
    edges, counts = (note.get(key) if isinstance(note, Mapping) else None for key in ("edges", "counts"))
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1 or not counts:
        raise InputError(f"note {where}", "n + 1 edges and n counts", "run again, or repair the file")
    return [float(edge) for edge in edges], [_kept(count) for count in counts]


def _kept(count: Any) -> int:
    return int(count) if count >= FEWEST else 0


def _few() -> Cell:
    return Cell(f"fewer than {FEWEST}", numeric=True)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _projection(view: View, canvas: Canvas, remedy: ArmView) -> Figure | None:
    notes = _noted(view, remedy, "projection")
    if not notes:
        return None
    sides = {when: _plane(notes[0], when) for when in ("before", "after")}
    shown = list(sides["before"][2])
    shown.sort(key=lambda name: -sum(map(sum, sides["before"][2][name])))
    rest, shown = shown[MOST_MAPS:], sorted(shown[:MOST_MAPS])
    rows, body = [], []
    for name in shown:
        row, line = [], [Cell(name)]
        for when, (x, y, classes) in sides.items():
            counts = classes.get(name, [])
            row.append(Map(shorten(f"{name}, {when}", 26), x, y, counts))
            line += [Cell(number(n), order=n, numeric=True)
                     for n in (sum(map(sum, counts)), sum(c > 0 for column in counts for c in column))]  # fmt: skip
        rows.append(row)
        body.append(line)
    title = "Illustration: user vectors in two dimensions, before and after"
    columns = [Column("Class")]
    columns += [Column(f"{what}, {when}", numeric=True) for when in sides for what in ("Users shown", "bins shown")]
    alt = f"{title}. " + "; ".join(
        f"{r[0].text}: {r[1].text} {view.unit_kind}s in {r[2].text} bins before, {r[3].text} in {r[4].text} after"
        for r in body
    )
    seed = next((run.seed for run in view.runs if run.notes.get(remedy.name, {}).get("projection")), None)
    reading = [
        "An illustration: attackers decide, not the eye. Two dimensions can look mixed while an attacker tells classes "
        "apart in the others.",
        f"Stronger colour means more {view.unit_kind}s of the class; bins of fewer than {FEWEST} are left empty."
        + (f" Seed {seed}." if seed is not None and len(view.seeds) > 1 else ""),
    ]
    if rest:
        reading.append(f"The {MOST_MAPS} largest of {MOST_MAPS + len(rest)} classes are drawn.")
    return Figure(title, canvas.maps(rows), alt, Table(title, columns, body), (), reading)


def _plane(note: Any, when: str) -> tuple[list[float], list[float], dict[str, list[list[int]]]]:
    """Return edges and counts (n, m) of each class; bins of fewer than `FEWEST` users emptied."""
    try:
        x, y = list(map(float, note[when]["x"])), list(map(float, note[when]["y"]))
        kept = {str(name): [[_kept(count) for count in column] for column in counts]
                for name, counts in note[when]["classes"].items()}  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        x, y, kept = [], [], {"": []}
    shape = (len(x) - 1, {len(y) - 1})
    if any((len(counts), set(map(len, counts))) != shape for counts in kept.values()):
        raise InputError(
            f"note projection.{when}",
            "edges x (n + 1) and y (m + 1), and counts (n, m) for each class",
            "run again, or repair the file",
        )
    return x, y, kept


# -- convergence ------------------------------------------------------------------------------------------------------


def _terms(view: View) -> int:
    """Return how many attributes are defended each for itself: their refreshes are noted one after another."""
    return str(view.data.get("attribute", "")).count("+") + 1


def _convergence(view: View, canvas: Canvas, remedy: ArmView) -> Figure | None:
    histories = [note for note in _noted(view, remedy, "barycenter") if note]
    parts = _terms(view) if all(len(history) % _terms(view) == 0 for history in histories) else 1
    series, body, ends, keys = [], [], [], []
    for part in range(parts):
        cut = [history[part * len(history) // parts : (part + 1) * len(history) // parts] for history in histories]
        rows = _objective(cut)
        if len(rows) < 2:
            continue
        every = max(1, math.ceil(len(rows) / MOST_POINTS))
        kept = [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1]
        x, middle, low, high = (list(column) for column in zip(*kept, strict=True))
        series.append(Series(x, middle, remedy.index + part, False, low, high))
        term = str(view.data.get("attribute")).split("+")[part] if parts > 1 else ""
        if term:
            keys.append(Key(term, remedy.index + part))
        lines = [
            (Cell(term), Cell(number(int(n)), order=n, numeric=True), cell(m, interval(a, b))) for n, m, a, b in kept
        ]
        ends += [f"{term} {line[2].text} at refresh {line[1].text}".strip() for line in (lines[0], lines[-1])]
        body += lines
    if not series:
        return None
    title = "Objective of the barycenter by refresh"
    seeds = "median and range over seeds" if len(histories) > 1 else "one seed"
    columns = [Column("Attribute"), Column("Refresh", numeric=True), Column("Objective", seeds, numeric=True)]
    drop = 0 if parts > 1 else 1
    table = Table(title, columns[drop:], [line[drop:] for line in body])
    alt = f"{title}. {seeds[:1].upper()}{seeds[1:]}: " + "; ".join(ends)
    svg = canvas.curves(series, "refresh", "mean squared way to the barycenter")
    reading = (
        "How far the classes are from their common centre, in squared distance. It should fall while users are pulled "
        "and then level off. "
        + ("The line is the median over seeds, the shade their range." if len(histories) > 1 else ""),
    )
    return Figure(title, svg, alt, table, keys, tuple(text.strip() for text in reading))


def _objective(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[float, float, float, float]]:
    """Return number, median, lowest and highest objective over the seeds of each refresh."""
    found = []
    for n, refreshes in enumerate(itertools.zip_longest(*histories), start=1):
        values = [float(r["objective"]) for r in refreshes if r and isinstance(r.get("objective"), int | float)]
        if values:
            found.append((float(n), statistics.median(values), min(values), max(values)))
    return found


def _not_converged(view: View) -> list[str]:
    """Name how many refreshes of each arm ended before the barycenter had converged."""
    found = []
    for arm in view.arms:
        if arm.role == "baseline":
            continue  # at strength zero nothing rests on the barycenter
        histories = _noted(view, arm, "barycenter")
        stuck = [sum(refresh.get("converged") is False for refresh in history) for history in histories]
        if sum(stuck):
            seeds = f", in {sum(s > 0 for s in stuck)} of {len(stuck)} runs" if len(stuck) > 1 else ""
            found.append(
                f"{arm.title}: {number(sum(stuck))} of {number(sum(map(len, histories)))} refreshes of the barycenter "
                f"did not converge{seeds}. Users moved to an approximate centre there."
            )
    return found


def _reference(view: View) -> list[str]:
    """Say in how many runs the backbone that every arm starts from was still improving."""
    for arm in view.arms:
        notes = [note for note in _noted(view, arm, "reference") if isinstance(note, Mapping)]
        stopped = sum(note.get("converged") is False for note in notes)
        if stopped:
            where = f" in {stopped} of {len(notes)} runs" if len(notes) > 1 else ""
            return [f"The plain backbone reached its last epoch{where} while validation could still improve: the arms "
                    "start from a reference that is not converged."]  # fmt: skip
    return []


def _ended(view: View) -> Table | None:
    """Validation quality, strength and noise of each arm when training ended, median and range over seeds."""
    words = ("Validation quality", "of the reference", "Strength at the end", "Noise added")
    found = {}
    for arm in view.arms:
        reference = [note.get("valid") for note in _noted(view, arm, "reference") if isinstance(note, Mapping)]
        notes = (_noted(view, arm, "valid"), reference, _noted(view, arm, "alpha_end"), _noted(view, arm, "noise"))
        found[arm.name] = [[float(v) for v in values if isinstance(v, int | float)] for values in notes]
    some = [i for i in range(len(words)) if any(values[i] for values in found.values())]
    if not some:
        return None
    body = [(Cell(arm.title, key=arm_key(arm)), *(_median(found[arm.name][i]) for i in some)) for arm in view.arms]
    several = ", median and range over seeds" if len(view.runs) > 1 else ""
    columns = [Column("Arm"), *(Column(words[i], numeric=True) for i in some)]
    return Table(f"How training ended{several}", columns, body)


def _median(values: Sequence[float]) -> Cell:
    if not values:
        return Cell("–", numeric=True)
    return cell(statistics.median(values), interval(min(values), max(values)) if min(values) < max(values) else "")
