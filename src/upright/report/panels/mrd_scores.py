"""MRD's scores: whether they predict effort, how they are spread, what they go with, how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.report.panels.fedfact_notes import noted, value
from upright.report.panels.mrd_plots import bins_of, draw_ranks, draw_scores, ranks_within
from upright.report.panels.mrd_units import THIRDS, Forgotten, pooled_cuts
from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Grid,
    Notes,
    Prose,
    Table,
    cell,
    count,
    ends,
    numeric,
)
from upright.report.plots import Canvas, Mark, Row
from upright.report.read import ArmView, Level, View
from upright.report.text import interval, lower, number, percent, plural

__all__ = ["effort", "facts", "scores"]

Array = NDArray[np.float64]
RELIABLE = 0.9
APART = 0.1  # of the ratio 4, beyond which the expansion does not hold

# -- does MRD predict effort ------------------------------------------------------------------------------------------

EFFORT = {
    "mrd": "MRD",
    "mrd|": "MRD, given answer tokens",
    "mrd_per_token": "MRD per token",
    "answer_tokens": "Answer tokens",
    "nll_before": "Loss per token before",
    "nll_before|": "Loss per token before, given answer tokens",
}
MEASURES = {"effort": "ascending the loss per token", "effort_sum": "ascending the loss of the whole answer"}
BESIDE = {"answer_tokens": "Answer tokens", "nll_before": "Loss per token before"}


def _level(view: View, arm: ArmView, statistic: str) -> Level | None:
    """Return a level of an arm, else of any: what is known before training is alike in all of them."""
    rows = [row for row in view.find(statistic) if math.isfinite(row.value)]
    return next((row for row in rows if row.arm == arm.name), rows[0] if rows else None)


def effort(view: View, canvas: Canvas, arm: ArmView, own: Sequence[Forgotten]) -> list[Block]:
    """MRD against updates until forgotten, by both ways to ascend, beside what is known without it."""
    blocks: list[Block] = [Prose(["Does MRD predict how long a record takes to forget?"], lead=True)]
    for measure, words in MEASURES.items():
        rows: dict[str, Level] = {}
        for name in EFFORT:
            x, given, _ = name.partition("|")
            row = _level(view, arm, f"rank_correlation:{x}~{measure}" + ("|answer_tokens" if given else ""))
            rows |= {name: row} if row else {}
        if not rows:
            continue
        blocks.append(Prose([f"{words.capitalize()}, one record at a time:", *_effort_words(view, rows, own, measure)]))
        points = ranks_within([(one.values["mrd"], one.values[measure]) for one in own])
        figures = [_ranks(view, canvas, arm, points, own, measure)] if len(points) else []
        title = f"Rank correlation with updates until forgotten, {words}"
        figures.append(_correlations(view, canvas, rows, EFFORT, title, arm.index))
        blocks.append(Grid(figures))
    return blocks if len(blocks) > 1 else [*blocks, Notes([_no_effort(view)], "warn")]


def _no_effort(view: View) -> str:
    text = "Whether MRD predicts effort is not known here: updates until forgotten were not counted. "
    if not any(arm.settings.get("serve") == "reference" for arm in view.arms):
        text += "They are counted up to the level of a model that never saw the records, and this run has none. "
    return text + "A run with effort = true and a reference counts them."


def _effort_words(view: View, rows: Mapping[str, Level], own: Sequence[Forgotten], measure: str) -> list[str]:
    words = []
    row = rows.get("mrd")
    if row is not None:
        text = f"Rank correlation of MRD with effort: {_said(row)}"
        text += f", {percent(view.confidence)} interval {interval(row.low, row.high, sign=True)}"
        text += f"; permuted efforts reach {interval(row.null.low, row.null.high, sign=True)}. " if row.null else ". "
        if not row.shown:
            text += "That is not told from chance: here MRD does not predict effort."
        elif row.value < 0:
            text += "Records with a small score needed more updates, as the score claims."
        else:
            text += (
                "The sign is the opposite of what the score claims: records with a small score, read as hard, needed "
                "fewer updates."
            )
        words.append(text)
    largest = max(rows, key=lambda name: abs(rows[name].value))
    if len(rows) > 1:
        words.append(
            f"Of {number(len(rows))} predictors, {lower(EFFORT[largest])} has the largest correlation in size "
            f"({_said(rows[largest])}). Differences between predictors are not tested."
        )
    counted = [np.isfinite(one.values["mrd"]) for one in own]
    lost = sum(int((ok & ~np.isfinite(one.values[measure])).sum()) for ok, one in zip(counted, own, strict=True))
    total = sum(int(ok.sum()) for ok in counted)
    if total:
        seeds = ", counted at each seed," if len(own) > 1 else ""
        reached = "the level of the model that never saw them"
        text = f"All {plural(total, 'record')}{seeds} reached {reached}."
        if lost:
            text = (
                f"{number(lost)} of {plural(total, 'record')}{seeds} did not reach {reached} within the updates "
                "allowed. They are censored and stand in no correlation."
            )
        words.append(text)
    return words


def _said(row: Level) -> str:
    return number(row.value, sign=True)


def _ranks(view: View, canvas: Canvas, arm: ArmView, points: Array, own: Sequence[Forgotten], measure: str) -> Figure:
    title = f"MRD against updates until forgotten, {MEASURES[measure]}"
    xlabel, ylabel = "rank of MRD (left: small, read as hard)", "rank of updates until forgotten"
    svg = draw_ranks(points, xlabel, ylabel, canvas, arm.index)
    body = []
    for third in THIRDS:
        chosen = [one.third == third for one in own]
        mrd = np.concatenate([one.values["mrd"][at] for one, at in zip(own, chosen, strict=True)])
        updates = np.concatenate([one.values[measure][at] for one, at in zip(own, chosen, strict=True)])
        if len(mrd):
            known = updates[np.isfinite(updates)]
            low, middle, high = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else [math.nan] * 3
            typical = (cell(float(np.nanmedian(mrd))), cell(float(middle), interval(low, high)))
            body.append((Cell(third.capitalize()), count(len(mrd)), *typical, count(len(mrd) - len(known))))
    columns = [Column("Third by MRD"), *numeric("Records"), *numeric("MRD", small="median")]
    columns += [*numeric("Updates until forgotten", small="median, quartiles"), *numeric("Not reached")]
    alt = f"{title}, {plural(len(points), 'record')}: " + "; ".join(
        f"{r[0].text.lower()} third, median MRD {r[2].text}, median updates {r[3].text}" for r in body
    )
    seeds = " of all seeds, ranked within their seed" if len(own) > 1 else ""
    reading = [
        f"One dot a record{seeds}. If the score predicts effort, dots lie from the upper left to the lower right.",
        "Ranks run from 0 to 1, as the correlation takes them. The table has the values.",
    ]
    return Figure(title, svg, alt, Table(title, columns, body), (), reading)


def _correlations(
    view: View, canvas: Canvas, rows: Mapping[str, Level], names: Mapping[str, str], title: str, index: int
) -> Figure:
    drawn, body = [], []
    for name, r in rows.items():
        band = (r.null.low, r.null.high) if r.null else None
        drawn.append(Row(names[name], (Mark(r.value, r.low, r.high, index),), _said(r), band))
        body.append(
            (
                Cell(names[name]),
                cell(r.value, sign=True),
                ends(r.low, r.high, sign=True),
                ends(*band, sign=True) if band else DASH,
                count(r.n_units),
                Cell("beyond chance" if r.shown else "not told from chance"),
            )
        )
    svg = canvas.rows(drawn, "rank correlation", zero=True)
    columns = [Column("Predictor"), *numeric("Correlation", "Interval")]
    columns += [*numeric("Permuted", small=percent(view.confidence)), *numeric("Records"), Column("Against chance")]
    alt = f"{title}. " + "; ".join(f"{r[0].text}: {r[1].text}, interval {r[2].text}, {r[5].text}" for r in body)
    reading = [f"Grey bands hold {percent(view.confidence)} of the correlations of permuted values."]
    return Figure(title, svg, alt, Table(title, columns, body), (), reading)


# -- scores -----------------------------------------------------------------------------------------------------------


def scores(view: View, canvas: Canvas, arm: ArmView, own: Sequence[Forgotten]) -> list[Block]:
    """How scores are spread, and what else they go with."""
    figures = []
    known = [one.values["mrd"][np.isfinite(one.values["mrd"])] for one in own]
    if sum(map(len, known)) >= 2:
        figures.append(_histogram(canvas, arm, np.concatenate(known), len(own)))
    rows = {name: row for name in BESIDE if (row := _level(view, arm, f"rank_correlation:mrd~{name}"))}
    if rows:
        figure = _correlations(view, canvas, rows, BESIDE, "Rank correlation of MRD with what is at hand", arm.index)
        figures.append(figure)
    return [Prose(["What the score looks like, and what it goes with"], lead=True), Grid(figures)] if figures else []


def _histogram(canvas: Canvas, arm: ArmView, scores: Array, seeds: int) -> Figure:
    title = "MRD of the forgotten records"
    edges, counts, powers = bins_of(scores)
    cuts = pooled_cuts(scores)
    svg = draw_scores(edges, counts, powers, cuts, THIRDS, "MRD before unlearning", "records", canvas, arm.index)
    body = [(ends(a, b), count(int(n))) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)]
    parted = " and ".join(number(float(c)) for c in cuts)
    alt = f"{title}: {number(len(scores))} scores from {number(float(scores.min()))} to {number(float(scores.max()))}, "
    alt += f"thirds part at {parted}"
    pooled = f", pooled over {plural(seeds, 'seed')}" * (seeds > 1)
    reading = [f"Dashed lines part the {plural(len(scores), 'score')} into thirds, at {parted}{pooled}."]
    if powers:
        reading.append("The axis runs in powers.")
    return Figure(title, svg, alt, Table(title, numeric("MRD", "Records"), body), (), reading)


# -- how records were scored -------------------------------------------------------------------------------------------

ESTIMATORS = {
    "antithetic": "mean over pairs of opposite draws of noise",
    "plain": "plain mean of draws",
    "mean_abs": "mean of absolute values of draws, which measures the size of the gradient",
}


def facts(view: View, arm: ArmView) -> list[Block]:
    """Estimator, draws, reliability, scaling and clamped tokens, in words."""
    notes = [n for n in noted(view, arm.name, "scores") if isinstance(n, Mapping)]
    if not notes:
        return []
    first = notes[0]
    kind = str(first.get("estimator", "not recorded"))
    law = f", {first['noise']} noise" if first.get("noise") else ""
    sigma = str(first.get("sigma", ""))
    size = f" of {sigma.removeprefix('rel:')} of each tensor's root mean square" if sigma.startswith("rel:") else ""
    said = ESTIMATORS.get(kind, kind) + law + size
    items = []
    for term, key, digits in (
        ("Pairs of draws" if kind == "antithetic" else "Draws", "probes", 0),
        ("Passes over the records, one scoring", "passes", 0),
        ("Reliability, two halves of the draws", "reliability", 3),
        (f"Scores at twice the noise{', 4 expected' if kind != 'mean_abs' else ', 2 expected'}", "scaling", 2),
        ("Tokens clamped, too close to certain", "clamped", 3),
    ):
        found = _range([value(n, key) for n in notes], digits, share=key == "clamped")
        if found:
            items.append((term, found))
    lead = Prose(["How records were scored" + (", range over seeds" if len(notes) > 1 else "")], lead=True)
    blocks: list[Block] = [lead, Prose([f"Estimator: {said}."])]
    return [*blocks, *([Facts(items, long=True)] if items else []), *_doubts(notes, kind)]


def _range(values: Sequence[float], digits: int, *, share: bool = False) -> str:
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return ""
    ends = [percent(v) if share else number(round(v) if digits == 0 else v, digits) for v in (min(known), max(known))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _doubts(notes: Sequence[Mapping[str, Any]], kind: str) -> list[Block]:
    """Name the seeds whose ranking is noise or whose expansion does not hold."""
    found = []
    of = f" in {{}} of {plural(len(notes), 'seed')}" if len(notes) > 1 else ""
    weak = sum(value(n, "reliability") < RELIABLE for n in notes)
    if weak:
        found.append(
            f"Two halves of the draws agree on the ranking by less than {number(RELIABLE, plain=True)}"
            f"{of.format(weak)}: part of the ranking is noise."
        )
    bent = sum(abs(value(n, "scaling") / 4 - 1) > APART for n in notes)
    if bent and kind == "antithetic":
        found.append(
            f"The ratio of scores is away from 4 by more than a tenth{of.format(bent)}: the noise is so large that "
            "more than curvature is measured."
        )
    return [Notes(found, "warn")] if found else []
