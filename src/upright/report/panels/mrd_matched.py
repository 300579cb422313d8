"""Arms at equal difficulty: how far a result rests on which records a seed drew, and what is left without that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from upright.report.evidence import arm_key
from upright.report.panels.fedfact_notes import over
from upright.report.panels.mrd_units import Forgotten, Standard, standardise, swapped
from upright.report.parts import Block, Cell, Column, Figure, Grid, Key, Prose, Table, cell
from upright.report.plots import Canvas, Mark, Point, Row
from upright.report.read import ArmView, View
from upright.report.text import lower, number, percent, plural

__all__ = ["matched"]

MOST_PAIRS = 3


def matched(view: View, canvas: Canvas, every: Sequence[Forgotten]) -> list[Block]:
    """Return each seed's difficulty beside its gap, and gaps standardised to one distribution of difficulty."""
    found = standardise(every) if every else None
    arms = [arm for arm in view.arms if found and arm.name in found.raw]
    if found is None or not arms:
        return []
    lead = Prose(["Arms at equal difficulty"], lead=True)
    if len(found.seeds) < 2:
        return [lead, Prose(["One seed drew one set of records, the same for every arm: there is nothing to match. "
                             "Several seeds show how much a result rests on which records were drawn."])]  # fmt: skip
    figures = [_drawn(view, canvas, arms, found, every), _standard(view, canvas, arms, found)]
    return [lead, Prose([_order(view, arms, found)]), Grid([figure for figure in figures if figure])]


def _drawn(
    view: View, canvas: Canvas, arms: Sequence[ArmView], found: Standard, every: Sequence[Forgotten]
) -> Figure | None:
    """Mean score and mean gap of each seed, of the baseline."""
    base = next((arm for arm in arms if arm.role == "baseline"), arms[0])
    remedy = next((arm for arm in arms if arm.role == "remedy" and arm is not base), None)
    own = {one.seed: one.values["mrd"] for one in every if one.arm == base.name}
    scores = {s: own[s][np.isfinite(own[s])] for s in found.seeds}
    if any(len(x) == 0 for x in scores.values()):
        return None
    nowhere = (math.nan, math.nan)
    points, body = [], []
    for i, seed in enumerate(found.seeds):
        x, y = float(scores[seed].mean()), float(found.raw[base.name][i])
        points.append(Point(x, y, nowhere, nowhere, base.index, text=number(seed)))
        other = [] if remedy is None else [cell(float(found.raw[remedy.name][i]))]
        body.append((Cell(number(seed), order=seed), cell(x), cell(float(np.median(scores[seed]))),
                     *(Cell(percent(float(p)), order=float(p), numeric=True) for p in found.drawn[i]),
                     cell(y), *other))  # fmt: skip
    title = f"Difficulty that a seed drew, and its gap: {lower(base.title)}"
    svg = canvas.front(points, "mean MRD of the records (left: hard)", "mean distance (better ↓)", y_from_zero=True)
    columns = [Column("Seed"), Column("Mean MRD", numeric=True), Column("Median MRD", numeric=True),
               *(Column(f"{t}", "pooled third", True) for t in ("Hard", "Middle", "Easy")),
               *(Column("Mean distance", lower(arm.title), True) for arm in (base, remedy) if arm)]  # fmt: skip
    alt = f"{title}. " + "; ".join(f"seed {r[0].text}: mean MRD {r[1].text}, distance {r[6].text}" for r in body)
    reading = [
        "A mark is a seed, with its number: the records that it drew and what the baseline makes of them. Were results "
        "a matter of which records were drawn, marks would lie on a line.",
        f"{plural(len(found.seeds), 'seed')} cannot carry a correlation, so none is given. Each seed has weights of "
        "its own as well: MRD differs between seeds for both reasons.",
    ]
    return Figure(title, svg, alt, Table(title, columns, body), (), reading)


def _means(
    side: Mapping[str, NDArray[np.float64]], arms: Sequence[ArmView], seeds: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the mean of each arm over some seeds."""
    return {arm.name: float(side[arm.name][seeds].mean()) for arm in arms}


def _standard(view: View, canvas: Canvas, arms: Sequence[ArmView], found: Standard) -> Figure | None:
    """Gaps as drawn, and as if every seed had drawn the pooled distribution over thirds."""
    ok = found.usable
    if not ok.any():
        return None
    raw, standard = (_means(side, arms, ok) for side in (found.raw, found.standard))
    drawn = [
        Row(arm.title, (Mark(raw[arm.name], math.nan, math.nan, arm.index, True, "o"),
                        Mark(standard[arm.name], math.nan, math.nan, arm.index, False, "o")),
            f"{number(raw[arm.name])} → {number(standard[arm.name])}")
        for arm in arms if arm.settings.get("serve") not in ("original", "reference")
    ]  # fmt: skip
    body = [
        (Cell(arm.title, key=arm_key(arm)), *(over(list(side[arm.name][ok])) for side in (found.raw, found.standard)),
         cell(standard[arm.name] - raw[arm.name], sign=True))
        for arm in arms
    ]  # fmt: skip
    title = "Distance as drawn and standardised"
    columns = (Column("Arm"), Column("As drawn", "mean and range over seeds", True),
               Column("Standardised", "mean and range over seeds", True), Column("Change", numeric=True))  # fmt: skip
    alt = f"{title}. " + "; ".join(f"{r[0].text}: {r[1].text} as drawn, {r[2].text} standardised" for r in body)
    cuts = " and ".join(number(float(c)) for c in found.cuts)
    reading = [
        f"Open marks are means as drawn, filled ones as if every seed had drawn {_shares(found)} hard, middle and easy "
        f"records, parted at MRD {cuts} for all seeds. No interval: this is a description.",
    ]
    if not ok.all():
        reading.append(f"{plural(int((~ok).sum()), 'seed')} without a record in one of these thirds "
                       f"{'is' if (~ok).sum() == 1 else 'are'} left out of both.")  # fmt: skip
    index = drawn[0].marks[0].index if drawn else 0
    keys = [Key("As drawn", index, "o", True), Key("Standardised", index, "o")]
    svg = canvas.rows(drawn, "mean distance in probability (← better)", zero=True)
    return Figure(title, svg, alt, Table(title, columns, body), keys, reading)


def _shares(found: Standard) -> str:
    first, second, third = (percent(round(float(s), 3)) for s in found.share)
    return f"{first}, {second} and {third}"


def _order(view: View, arms: Sequence[ArmView], found: Standard) -> str:
    """Say in a sentence whether standardising changes the order of the arms."""
    ok = found.usable
    if not ok.any():
        return (
            "Seeds drew records of such different difficulty that none has records in all pooled thirds: gaps cannot "
            "be standardised."
        )
    raw, standard = (_means(side, arms, ok) for side in (found.raw, found.standard))
    pairs = [(lower(view.arm_title(a)), lower(view.arm_title(b))) for a, b in swapped(raw, standard)]
    if not pairs:
        return "Standardising by difficulty does not change the order of the arms, by point estimates."
    said = "; ".join(f"{a} and {b}" for a, b in pairs[:MOST_PAIRS])
    more = f", and {plural(len(pairs) - MOST_PAIRS, 'more pair')}" if len(pairs) > MOST_PAIRS else ""
    return (
        f"Standardising by difficulty changes the order of the arms, by point estimates: {said}{more} change places. "
        "Whether arms differ at all is for the paired intervals to say."
    )
