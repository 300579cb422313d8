"""MRD: does the score predict effort, what it is made of, how it drifts, what unlearning cost, and whom it served."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.evidence import arm_key
from upright.report.panels.fedfact_notes import mean, noted, over, records, value
from upright.report.panels.mrd_scores import effort, facts, scores
from upright.report.panels.mrd_units import THIRDS, forgotten
from upright.report.parts import DASH, Block, Cell, Column, Figure, Grid, Key, Notes, Prose, Table, cell, count, numeric
from upright.report.plots import Canvas, Mark, Point, Row, Series
from upright.report.read import ArmView, View
from upright.report.text import interval, lower, number, percent, plural

__all__ = ["LIMITS", "panel"]

SERVED = ("original", "reference")  # arms whose model was not unlearned
LIMITS = (
    "Approximate unlearning gives no guarantee. A gap of 0 to a model that never saw the records, in probability, is "
    "no proof that nothing is left: run the membership attacks and the robustness pack.",
    "A score says which records were to be forgotten. This page has no score with a name; keep units.parquet as you "
    "keep the records.",
    "The score is a property of record and model. It drifts as the model changes, and whoever writes records can write "
    "ones with a chosen score.",
    "What effort means depends on the learning rate and on the level that counts as forgotten; one record alone is not "
    "a batch.",
)


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return the blocks of the method's section; what the folder lacks is left out or named."""
    remedy = next((arm for arm in view.arms if arm.role == "remedy"), None) or next(iter(view.arms), None)
    if remedy is None:
        return []
    every = forgotten(view)
    own = [one for one in every if one.arm == remedy.name]
    blocks = [*effort(view, canvas, remedy, own), *scores(view, canvas, remedy, own), *facts(view, remedy)]
    blocks += [*_drift(view, canvas, remedy), *_path(view, canvas), *_thirds(view, canvas)]
    if not every:
        lacking = "This folder has no table of records (units.parquet), nor have runs beside it"
        blocks.append(Notes([f"{lacking}: plots of single records are left out."]))
    return blocks


def _served(arm: ArmView) -> bool:
    return arm.settings.get("serve") in SERVED


# -- drift ------------------------------------------------------------------------------------------------------------


DRIFT = {
    "rank": (
        "Ranking over the scorings",
        "rank correlation with the first scoring",
        "At 1 the records stand in the order of the first scoring. Where the line falls, weights of the first scoring "
        "would have drawn by an old ranking.",
    ),
    "share": (
        "Concentration of the draws",
        "effective sample size / records",
        "At 1 every record is drawn alike. The fewer records get the draws, the lower the line.",
    ),
}


def _drift(view: View, canvas: Canvas, arm: ArmView) -> list[Block]:
    """How the ranking and the concentration of draws moved over the scorings."""
    notes = [records(n, "weights", "epoch") for n in noted(view, arm.name, "weights")]
    by_epoch: dict[int, dict[str, list[float]]] = {}
    for rows in notes:
        for row in rows:
            own = by_epoch.setdefault(int(row["epoch"]), {"rank": [], "size": [], "share": []})
            own["rank"].append(value(row, "rank_correlation"))
            own["size"].append(value(row, "effective_sample_size"))
            n = value(row, "records")
            own["share"].append(own["size"][-1] / n if n > 0 else math.nan)
    if not by_epoch:
        return []
    epochs = sorted(by_epoch)
    lead = Prose(["How the ranking moved while the model forgot"], lead=True)
    if len(epochs) == 1:
        share = mean(by_epoch[epochs[0]]["share"])
        text = "Records were scored once, before unlearning, so that the ranking could not move."
        if math.isfinite(share):
            text += f" The effective sample size of the draws is {percent(share)} of the records."
        return [lead, Prose([text])]
    body = [
        (
            count(e),
            *(over(by_epoch[e][key], digits=digits) for key, digits in (("rank", 3), ("size", 1), ("share", 3))),
        )
        for e in epochs
    ]
    several = len(notes) > 1
    names = ("Rank correlation with the first scoring", "Effective sample size", "of the records")
    columns = [*numeric("Epoch"), *numeric(*names, small="mean and range" if several else "")]
    figures = []
    for key, (title, ylabel, words) in DRIFT.items():
        known = [e for e in epochs if math.isfinite(mean(by_epoch[e][key]))]
        if len(known) < 2:
            continue
        finite_ = [[v for v in by_epoch[e][key] if math.isfinite(v)] for e in known]
        ends = (list(map(min, finite_)), list(map(max, finite_))) if several else ((), ())
        series = Series([float(e) for e in known], list(map(mean, finite_)), arm.index, False, *ends)
        svg = canvas.curves([series], "epochs of unlearning before the scoring", ylabel)
        alt = f"{title}. " + "; ".join(
            f"after epoch {e}: {number(mean(v))}" for e, v in zip(known, finite_, strict=True)
        )
        reading = [words, *(["The line is the mean over seeds, the shade their range."] if several else [])]
        figures.append(Figure(title, svg, alt, Table(title, columns, body), (), reading))
    return [lead, Grid(figures)] if figures else []


# -- path -------------------------------------------------------------------------------------------------------------


def _path(view: View, canvas: Canvas) -> list[Block]:
    """Kept against forgotten answers by epoch, one line an arm, and where it starts and should end."""
    points, lines, body, keys, ends = [], [], [], [], []
    for arm in view.arms:
        notes = [records(n, "path", "epoch", "forget", "retain") for n in noted(view, arm.name, "path")]
        along = _means(notes)
        if not along:
            continue
        lines.append(Series([x for _, x, _ in along], [y for *_, y in along], arm.index))
        points += [_point(x, y, arm.index, small=i < len(along) - 1) for i, (_, x, y) in enumerate(along)]
        keys.append(arm_key(arm))
        body += [(Cell(arm.title, key=arm_key(arm)), count(e), cell(y), cell(x)) for e, x, y in along]
        ends.append(
            f"{arm.title}: kept {number(along[-1][1])}, forgotten {number(along[-1][2])} after epoch {along[-1][0]}"
        )
    if not lines:
        return []
    for arm in (arm for arm in view.arms if _served(arm)):
        rows = (view.find(f"mean:{side}_probability") for side in ("retain", "forget"))
        x, y = (next((r.value for r in found if r.arm == arm.name), math.nan) for found in rows)
        if math.isfinite(x) and math.isfinite(y):
            points.append(_point(x, y, arm.index))
            keys.append(arm_key(arm))
            body.append((Cell(arm.title, "test records", key=arm_key(arm)), DASH, cell(y), cell(x)))
            ends.append(f"{arm.title}, test records: kept {number(x)}, forgotten {number(y)}")
    title = "What is forgotten against what is kept, by epoch"
    xlabel = "probability of kept answers (better →)"
    svg = canvas.front(points, xlabel, "probability of forgotten answers", lines=lines)
    columns = [Column("Arm"), *numeric("Epoch", "Forgotten answers", "Kept answers")]
    seeds = ", means over seeds" if len(view.seeds) > 1 else ""
    reading = [f"Small marks are epochs, the large one ends the line. Lines are validation records{seeds}."]
    if any(_served(arm) for arm in view.arms):
        reading.append(
            "Single marks are models that were not unlearned, on test records. The aim is the model that never saw the "
            "records: lower than it is not better."
        )
    lead = Prose(["What unlearning took from the kept records"], lead=True)
    return [lead, Grid([Figure(title, svg, f"{title}. {'; '.join(ends)}", Table(title, columns, body), keys, reading)])]


def _point(x: float, y: float, index: int, *, small: bool = False) -> Point:
    return Point(x, y, (math.nan, math.nan), (math.nan, math.nan), index, small=small)


def _means(notes: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[int, float, float]]:
    """Return epoch, kept and forgotten, mean over seeds, of the epochs that every seed has."""
    tables = [{int(row["epoch"]): row for row in rows} for rows in notes if rows]
    shared = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    kept, lost = ({e: mean([value(t[e], side) for t in tables]) for e in shared} for side in ("retain", "forget"))
    return [(e, kept[e], lost[e]) for e in shared if math.isfinite(kept[e]) and math.isfinite(lost[e])]


# -- thirds -----------------------------------------------------------------------------------------------------------

_SHADES = {"hard": 2, "middle": 3, "easy": 4}  # colours


def _thirds(view: View, canvas: Canvas) -> list[Block]:
    """The mean gap of each arm in each third of the scores."""
    statistic = "mean:forget_gap:difficulty"
    at = {(row.arm, row.group): row for row in view.levels if row.statistic == statistic}
    shown = [third for third in THIRDS if any(group == third for _, group in at)]
    arms = [arm for arm in view.arms if any((arm.name, third) in at for third in shown)]
    if not arms:
        return []
    drawn, body = [], []
    for arm in arms:
        own = {third: at[arm.name, third] for third in shown if (arm.name, third) in at}
        cells = [cell(own[t].value, interval(own[t].low, own[t].high)) if t in own else DASH for t in shown]
        body.append((Cell(arm.title, key=arm_key(arm)), *cells))
        if not _served(arm):
            marks = tuple(Mark(row.value, row.low, row.high, _SHADES[third]) for third, row in own.items())
            drawn.append(Row(arm.title, marks, " · ".join(number(row.value) for row in own.values())))
    columns = [Column("Arm")]
    for third in shown:
        n = max(row.n_units or 0 for (_, group), row in at.items() if group == third)
        columns += numeric(third.capitalize(), small=plural(n, view.unit_kind))
    title = "Distance from the model that never saw them, by third"
    alt = f"{title}. " + "; ".join(
        f"{r[0].text}: " + ", ".join(f"{t} {c.text}" for t, c in zip(shown, r[1:], strict=True)) for r in body
    )
    reading = [
        f"Thirds of the scores within each seed; a small score is read as hard. Means with {percent(view.confidence)} "
        "intervals; 0 is the aim."
    ]
    away = [lower(arm.title) for arm in arms if _served(arm)]
    if away:
        reading.append(f"In the table alone: {', '.join(away)}.")
    lead = Prose(["Who was served: hard, middle and easy records"], lead=True)
    table = Table(title, columns, body)
    if not drawn:
        return [lead, table]
    svg = canvas.rows(drawn, "mean distance in probability (← better)", zero=True)
    keys = [Key(t.capitalize(), _SHADES[t]) for t in shown]
    return [lead, Grid([Figure(title, svg, alt, table, keys, reading)])]
