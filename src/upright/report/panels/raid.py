"""RAID: what recommendation paid for privacy, who still reads the attribute, who pays, and how the users were moved."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from upright.contract import InputError
from upright.report.evidence import Part, arm_key, attacks, forest, front
from upright.report.panels.fedfact_notes import noted, over, value
from upright.report.parts import Block, Cell, Column, Figure, Grid, Key, Notes, Table, cell, count, ends, numeric
from upright.report.plots import Bars, Canvas, Map, Series
from upright.report.read import ArmView, Difference, View
from upright.report.record import thin
from upright.report.text import interval, number, plural, shorten

__all__ = ["LIMITS", "SHOWS_FRONT", "panel"]

SHOWS_FRONT = True
FEWEST = 5  # a bin of fewer users is not shown
MOST_MAPS = 4
MOST_ROWS = 30
LIMITS = (
    "There is no formal guarantee, such as differential privacy gives. Leakage is what the attackers named here read.",
    "An attacker that was not tried may do better.",
    "The attribute can still be inferred from behaviour. Hiding a user's vector does not hide what the user clicked.",
    "Where classes go with taste, hiding the class takes taste away, and those classes lose recommendation quality.",
    "Users whose class the platform does not know are not protected by maps of known classes. They are moved by a "
    "guess of their class.",
    "Intervals are those of these attackers: trained again on other users, they would read a little more or less.",
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


# -- who pays -------------------------------------------------------------------------------------------------------


def _classes(view: View, canvas: Canvas) -> Figure | None:
    """Change of the cost in each class, remedy minus every arm; the baseline alone where classes are many."""
    prefix = f"{view.cost_statistic}:{view.primary.rpartition(':')[2]}="
    rows = [row for row in view.differences if row.statistic.startswith(prefix) and math.isfinite(row.value)]
    by_class: dict[str, list[Difference]] = {}
    for row in rows:
        by_class.setdefault(row.statistic.removeprefix(prefix), []).append(row)
    if not rows:
        return None
    first, remedy = rows[0], view.arm(rows[0].arm)
    parts: list[Part] = []
    for name, own in by_class.items():
        size = next((r.n_units for r in view.levels if f"{r.statistic}={r.group}" == own[0].statistic), None)
        heading = name + (f" ({plural(size, view.unit_kind)})" if size else "")
        parts.append((heading, view, own, remedy.index if remedy else 1))
    side, some = "Right" if first.direction == "lower" else "Left", len(rows) > MOST_ROWS
    reading = [f"{side} of zero a class gets worse lists than under the arm that is subtracted."]
    if some:
        reading.append("With so many classes the plot shows the baseline alone; the table has every arm.")
    metric = first.label.removesuffix(f", {next(iter(by_class))}")
    title = f"{metric} by class: {view.arm_title(first.arm)} minus every arm"
    return forest(canvas, title, parts, reading, only="baseline" if some else "")


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
        for (low, high), n, share in zip(itertools.pairwise(own), counts, _shares(counts), strict=True):
            users = cell(share, plural(n, view.unit_kind)) if n else Cell(f"fewer than {FEWEST}", numeric=True)
            body.append((Cell(arm.title, key=arm_key(arm)), ends(low, high), users))
    title = "How far users moved"
    svg = canvas.histogram(bars, "distance moved, in spreads of the table", f"share of {view.unit_kind}s")
    columns = [Column("Arm"), *numeric("Distance", f"Share of {view.unit_kind}s")]
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
    notes = [_histogram(note, f"{arm.name}: movement") for note in noted(view, arm.name, "movement")]
    if not notes:
        return None
    same = [counts for edges, counts in notes if edges == notes[0][0]]
    return notes[0][0], [sum(column) for column in zip(*same, strict=True)], len(same)


def _histogram(note: Any, where: str) -> tuple[list[float], list[int]]:
    """Return edges and counts of a note, bins of fewer than `FEWEST` users emptied."""
    edges, counts = (note.get(key) if isinstance(note, Mapping) else None for key in ("edges", "counts"))
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1 or not counts:
        raise InputError(f"note {where}", "n + 1 edges and n counts", "run again, or repair the file")
    return [float(edge) for edge in edges], [_kept(n) for n in counts]


def _kept(n: Any) -> int:
    return int(n) if n >= FEWEST else 0


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _projection(view: View, canvas: Canvas, remedy: ArmView) -> Figure | None:
    notes = noted(view, remedy.name, "projection")
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
            line += [count(sum(map(sum, counts))), count(sum(c > 0 for column in counts for c in column))]
        rows.append(row)
        body.append(line)
    title = "Illustration: user vectors in two dimensions, before and after"
    columns = [
        Column("Class"),
        *numeric(*(f"{what}, {when}" for when in sides for what in ("Users shown", "bins shown"))),
    ]
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
        classes = note[when]["classes"].items()
        kept = {str(name): [[_kept(n) for n in column] for column in counts] for name, counts in classes}
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
    histories = [note for note in noted(view, remedy.name, "barycenter") if note]
    parts = _terms(view) if all(len(history) % _terms(view) == 0 for history in histories) else 1
    series, body, said, keys = [], [], [], []
    for part in range(parts):
        cut = [history[part * len(history) // parts : (part + 1) * len(history) // parts] for history in histories]
        rows = _objective(cut)
        if len(rows) < 2:
            continue
        kept = thin(rows)
        x, middle, low, high = (list(column) for column in zip(*kept, strict=True))
        series.append(Series(x, middle, remedy.index + part, False, low, high))
        term = str(view.data.get("attribute")).split("+")[part] if parts > 1 else ""
        if term:
            keys.append(Key(term, remedy.index + part))
        lines = [(Cell(term), count(int(n)), cell(m, interval(a, b))) for n, m, a, b in kept]
        said += [f"{term} {line[2].text} at refresh {line[1].text}".strip() for line in (lines[0], lines[-1])]
        body += lines
    if not series:
        return None
    title = "Objective of the barycenter by refresh"
    seeds = "median and range over seeds" if len(histories) > 1 else "one seed"
    columns = [Column("Attribute"), *numeric("Refresh"), *numeric("Objective", small=seeds)]
    drop = 0 if parts > 1 else 1
    table = Table(title, columns[drop:], [line[drop:] for line in body])
    alt = f"{title}. {seeds[:1].upper()}{seeds[1:]}: " + "; ".join(said)
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
        histories = noted(view, arm.name, "barycenter")
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
        notes = [note for note in noted(view, arm.name, "reference") if isinstance(note, Mapping)]
        stopped = sum(note.get("converged") is False for note in notes)
        if stopped:
            where = f" in {stopped} of {len(notes)} runs" if len(notes) > 1 else ""
            return [
                f"The plain backbone reached its last epoch{where} while validation could still improve: the arms "
                "start from a reference that is not converged."
            ]
    return []


def _ended(view: View) -> Table | None:
    """Validation quality, strength and noise of each arm when training ended, mean and range over seeds."""
    words = {
        "valid": "Validation quality",
        "": "of the reference",
        "alpha_end": "Strength at the end",
        "noise": "Noise added",
    }
    found: dict[tuple[str, str], list[float]] = {}
    for arm in view.arms:
        for key in words:
            own = noted(view, arm.name, key) if key else [value(n, "valid") for n in noted(view, arm.name, "reference")]
            found[arm.name, key] = [float(v) for v in own if isinstance(v, int | float)]
    some = [key for key in words if any(found[arm.name, key] for arm in view.arms)]
    if not some:
        return None
    body = [(Cell(arm.title, key=arm_key(arm)), *(over(found[arm.name, key]) for key in some)) for arm in view.arms]
    several = ", mean and range over seeds" if len(view.runs) > 1 else ""
    return Table(f"How training ended{several}", [Column("Arm"), *numeric(*(words[key] for key in some))], body)
