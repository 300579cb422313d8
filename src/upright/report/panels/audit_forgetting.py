"""Audit of a language model: what is still known, who can tell, how far it is from never having seen, what it cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.parts import Block, Cell, Column, Details, Facts, Figure, Grid, Key, Table, cell, tag
from upright.report.plots import Canvas, Mark, Row, Series
from upright.report.read import Level, View
from upright.report.text import interval, number, percent, plural

__all__ = ["LIMITS", "panel"]

LIMITS = (
    "Good is the level of a model that never saw the records. A lower number is not better: what is pushed below that "
    "level stands out as well.",
    "No audit proves that a model has forgotten. Knowledge that these questions do not reach may come back with a few "
    "steps of training, other words or rounded weights.",
    "Intervals resample records with the models as they are. Two models trained alike differ too; how much, one pair "
    "does not tell.",
    "Membership compares forgotten with held-out records. Where the two kinds differ in what they say, the AUC of a "
    "model that saw neither is not one half: that of the reference tells.",
    "Values of single records say which ones were to be forgotten. This page has means alone; keep units.parquet as "
    "you keep the records.",
)
MOST_ROWS = 10  # of authors, before they are folded
_YOURS, _REFERENCE = "yours", "retrain"
_D = 5  # colour of the largest distance


def panel(view: View, canvas: Canvas) -> list[Block]:
    """Return figures and tables; nothing of what the folder lacks."""
    audit = view.summary.get("audit")
    if not isinstance(audit, Mapping):
        return []
    scores, truth = _attacks(view), audit.get("truth")
    made = (
        _bars(view, canvas, "Probability of answers", "What is still known: the probability of answers", _PROBABILITY),
        _auc(view, scores, canvas),
        _bars(view, canvas, "share of the answer", "What is still known: by heart and in its own words", _BY_HEART),
        _curves(view, truth, canvas) if isinstance(truth, Mapping) else None,
        _kept(view, canvas),
    )
    figures = [figure for figure in made if figure]
    blocks: list[Block] = [Grid(figures)] if figures else []
    distances = _distances(view)
    blocks += [Facts(distances, long=True)] if distances else []
    blocks += [_scores(scores)] if scores else []
    changes = [row for row in view.levels if row.name == "beyond" and not row.metric.startswith("mia_")]
    blocks += [_changes(view, changes)] if changes else []
    authors = audit.get("authors")
    return [*blocks, *(_authors(view, authors) if isinstance(authors, Mapping) else [])]


_PROBABILITY = {
    "forget_probability": "Forgotten answers",
    "holdout_probability": "Held-out answers, never seen",
    "retain_probability": "Retained answers",
}
_BY_HEART = {
    "forget_rouge_l": "Forgotten answers written, ROUGE-L recall",
    "exact_memorisation": "Exact memorisation",
    "extraction_strength": "Extraction strength",
}
_KEPT = {"retain_probability": "Probability", "retain_rouge_l": "ROUGE-L recall", "retain_truth_ratio": "Truth ratio"}


def _value(row: Mapping[str, Any], key: str) -> float:
    found = row.get(key)
    return float(found) if isinstance(found, int | float) else math.nan


@dataclasses.dataclass(frozen=True)
class _Attack:
    """One membership score: the model, what it shows beyond the reference or 1/2, and the reference."""

    own: Level
    beyond: Level
    other: Level | None

    @property
    def title(self) -> str:
        return self.own.label.partition(":")[0].removeprefix("Membership by ")

    @property
    def state(self) -> str:
        return str(self.beyond.more.get("state"))


def _attacks(view: View) -> list[_Attack]:
    """Return the membership scores that were judged."""
    found = []
    for row in view.levels:
        beyond = view.find(f"beyond:{row.metric}")
        if row.name == "membership" and row.arm == _YOURS and row.null and beyond:
            others = [x for x in view.find(row.statistic) if x.arm == _REFERENCE]
            found.append(_Attack(row, beyond[0], next(iter(others), None)))
    return found


def _ends(row: Level) -> tuple[float, float, float]:
    """Return an AUC with its interval."""
    return _value(row.more, "auc"), _value(row.more, "auc_low"), _value(row.more, "auc_high")


def _chance_of(row: Level) -> tuple[float, float]:
    """Return the band of an AUC under chance."""
    high = row.null.high if row.null else math.nan
    return 0.5 - high, 0.5 + high


def _small(title: str) -> str:
    return title[:1].lower() + title[1:]


def _index(view: View, name: str) -> int:
    arm = view.arm(name)
    return arm.index if arm else 0


def _keys(view: View) -> list[Key]:
    return [Key(arm.title, arm.index) for arm in view.arms]


def _bars(view: View, canvas: Canvas, says: str, title: str, metrics: Mapping[str, str]) -> Figure | None:
    """Bars of some means, the arms under one another."""
    rows = [(words, row) for metric, words in metrics.items() for row in view.find(f"mean:{metric}")]
    return _drawn(view, canvas, says, title, rows) if rows else None


def _kept(view: View, canvas: Canvas) -> Figure | None:
    whole = view.find("utility:retain")
    rows = [("Utility, the harmonic mean of what is below", row) for row in whole]
    rows += [(words, row) for metric, words in _KEPT.items() for row in view.find(f"mean:{metric}")]
    if not whole:
        return None
    reading = ["A utility of 0 is a model of no use. Compare it with the same numbers of the model before unlearning."]
    return _drawn(view, canvas, "on retained records", "What is left of the retained records", rows, reading)


def _drawn(
    view: View, canvas: Canvas, says: str, title: str, rows: Sequence[tuple[str, Level]], reading: Sequence[str] = ()
) -> Figure:
    drawn, body, last = [], [], None
    for words, row in rows:
        if words != last:
            drawn.append(Row(words))
        last = words
        mark = Mark(row.value, row.low, row.high, _index(view, row.arm))
        drawn.append(Row(view.arm_title(row.arm), (mark,), number(row.value)))
        n = Cell("" if row.n_units is None else number(row.n_units), order=row.n_units, numeric=True)
        ends = Cell(interval(row.low, row.high), numeric=True)
        body.append((Cell(words), Cell(view.arm_title(row.arm)), cell(row.value), ends, n))
    columns = (
        Column("Of"),
        Column("Model"),
        Column("Value", numeric=True),
        Column("Interval", numeric=True),
        Column("Records", numeric=True),
    )
    said = "; ".join(f"{a.text}, {_small(b.text)}: {c.text}, interval {d.text}" for a, b, c, d, _ in body)
    svg = canvas.rows(drawn, says, bars=True, limits=(0.0, 1.0))
    return Figure(title, svg, f"{title}. {said}", Table(title, columns, body), (), reading)


def _auc(view: View, rows: Sequence[_Attack], canvas: Canvas) -> Figure | None:
    """AUC of each membership score around one half, with what permuted labels show."""
    if not rows:
        return None
    drawn, body, ends = [], [], [0.05]
    for row in rows:
        band, (auc, low, high) = _chance_of(row.own), _ends(row.own)
        marks = [Mark(auc, low, high, _index(view, _YOURS))]
        if row.other is not None:
            marks.append(Mark(*_ends(row.other), _index(view, _REFERENCE)))
        text = number(auc) + (f", {row.state}" if row.state == "over-unlearned" else "")
        drawn.append(Row(row.title[:1].upper() + row.title[1:], tuple(marks), text, band))
        ends += [abs(e - 0.5) for m in marks for e in (m.value, m.low, m.high) if math.isfinite(e)]
        ends += [abs(e - 0.5) for e in band if math.isfinite(e)]
        shown = (interval(low, high), interval(*band))
        body.append((Cell(row.title), cell(auc), *(Cell(x, numeric=True) for x in shown), Cell(row.state)))
    title = "Who can tell a forgotten record from an unseen one"
    columns = (
        Column("Score"),
        Column("AUC", numeric=True),
        Column("Interval", numeric=True),
        Column("By chance", numeric=True),
        Column("State"),
    )
    said = "; ".join(f"{a.text}: AUC {b.text}, interval {c.text}, {e.text}" for a, b, c, _, e in body)
    half = 1.05 * max(ends)
    svg = canvas.rows(drawn, "AUC: 0.5 is guessing", limits=(0.5 - half, 0.5 + half))
    reading = [
        f"The grey bands hold the AUCs of all scores in {percent(view.confidence)} of permutations of the labels. "
        "Above them records are still known; below them they were pushed under the level of unseen ones, which gives "
        "them away as well."
    ]
    return Figure(title, svg, f"{title}. {said}", Table(title, columns, body), _keys(view), reading)


def _curves(view: View, truth: Mapping[str, Any], canvas: Canvas) -> Figure | None:
    """Distribution functions of the share of the true answer, the largest distance marked."""
    x = [float(v) for v in truth.get("x") or []]
    own, other = ([float(v) for v in truth.get(name) or []] for name in ("yours", "reference"))
    if not x or len(own) != len(x):
        return None
    series, keys = [Series(x, own, _index(view, _YOURS))], [Key(view.arm_title(_YOURS), _index(view, _YOURS))]
    reading = ["How many records have at most this share: left of one half the false answers are the likelier ones."]
    columns = [Column("Share up to", numeric=True), Column(view.arm_title(_YOURS), numeric=True)]
    body = [[cell(x[i], digits=2), cell(own[i])] for i in range(0, len(x), 10)]
    title = "Does the true answer stand out among false ones"
    if len(other) == len(x):
        index = _index(view, _REFERENCE)
        series.append(Series(x, other, index))
        keys.append(Key(view.arm_title(_REFERENCE), index))
        at, ends = _value(truth, "at"), [float(v) for v in truth.get("ends") or []]
        series.append(Series([at] * len(ends), ends, _D))
        distance = next((row for row in view.levels if row.name == "ks_distance"), Level(statistic="", arm=""))
        keys.append(Key(f"largest distance, D = {number(distance.value)}", _D))
        reading.append(_chance(distance))
        columns.append(Column(view.arm_title(_REFERENCE), numeric=True))
        body = [[*row, cell(other[10 * i])] for i, row in enumerate(body)]
    svg = canvas.curves(series, "share of the true answer, 1 / (1 + truth ratio)", "share of forgotten records")
    said = "; ".join(", ".join(f"{c.title} {v.text}" for c, v in zip(columns, row, strict=True)) for row in body)
    return Figure(title, svg, f"{title}. {said}", Table(title, columns, body), keys, reading)


def _chance(distance: Level) -> str:
    high = distance.null.high if distance.null else math.nan
    return (
        f"D = {number(distance.value)}, interval {interval(distance.low, distance.high)}. Where two models that are "
        f"alike on every record are compared in all ways at once, D stays below {number(high)}: this one is "
        f"{'beyond' if distance.shown else 'not told from'} chance."
    )


def _distances(view: View) -> list[tuple[str, str]]:
    """Terms and values of the distance from a model that never saw the records."""
    found = []
    for row in view.levels:
        ends = f"{number(row.value)}, interval {interval(row.low, row.high)}"
        if row.name == "memory_gap":
            found.append(("Mean distance in probability, record by record", ends))
        if row.name == "ks_distance" and row.null:
            found.append(("Distance D of the truth ratios", f"{ends}, by chance up to {number(row.null.high)}"))
        if row.name == "forget_quality":
            n = plural(row.n_units, "record") if row.n_units else "no record"
            found.append(("Forget quality", f"p = {row.value:.2g}, from {n}"))
    return found


def _scores(rows: Sequence[_Attack]) -> Table:
    beside = any(row.other is not None for row in rows)
    numbers = ["ROC-AUC", "By chance", *(["Reference", "Difference", "PrivLeak"] if beside else [])]
    columns = [Column("Membership score"), Column("Verdict"), *(Column(name, numeric=True) for name in numbers)]
    body = []
    for row in rows:
        auc, low, high = _ends(row.own)
        line = [Cell(row.title[:1].upper() + row.title[1:]), Cell("", tag=tag(row.state))]
        line += [cell(auc, interval(low, high)), Cell(interval(*_chance_of(row.own)), numeric=True)]
        if beside:
            leak = cell(_value(row.beyond.more, "privleak"), digits=1, sign=True)
            own = [] if row.other is None else [cell(_ends(row.other)[0]), _difference(row.beyond), leak]
            # against a reference, that reference itself is no score
            line += own or [Cell("–", numeric=True)] * 3
        body.append(line)
    return Table("Membership: forgotten against held-out records", columns, body)


def _difference(row: Level) -> Cell:
    small = "" if math.isnan(row.value) else interval(row.low, row.high, sign=True)
    return cell(row.value, small, sign=True)


def _changes(view: View, rows: Sequence[Level]) -> Table:
    numbers = ("Your model", "Reference", "Difference", "Smallest detectable")
    columns = (Column("Beyond the reference"), *(Column(name, numeric=True) for name in numbers), Column("Verdict"))
    body = []
    for row in rows:
        levels = view.find(f"mean:{row.metric}") or view.find(f"utility:{row.metric}")
        value = {level.arm: level.value for level in levels}
        apart = row.low > 0 or row.high < 0  # reaches 0 where an adjusted p tells nothing
        ends = [cell(value.get(arm, math.nan)) for arm in (_YOURS, _REFERENCE)]
        last = [_difference(row), cell(row.smallest_detectable), Cell("apart" if apart else "not told apart")]
        body.append((Cell(row.label.rpartition(",")[0]), *ends, *last))
    return Table("Against a model that never saw the records", columns, body)


def _authors(view: View, authors: Mapping[str, Any]) -> list[Block]:
    rows = [row for row in authors.get("rows") or [] if isinstance(row, Mapping)]
    if not rows:
        return []
    columns = [Column("Author"), Column("Records", numeric=True)]
    kinds = [
        (key, arm)
        for key in ("forget_probability", "extraction_strength")
        for arm in (_YOURS, _REFERENCE)
        if any(isinstance((row.get(key) or {}).get(arm), Mapping) for row in rows)
    ]
    words = {"forget_probability": "Probability", "extraction_strength": "Extraction strength"}
    columns += [Column(words[key], _small(view.arm_title(arm)), numeric=True) for key, arm in kinds]
    body = []
    for row in rows:
        found = [(row.get(key) or {}).get(arm) or {} for key, arm in kinds]
        shown = [cell(_value(f, "value"), interval(_value(f, "low"), _value(f, "high"))) for f in found]
        n = row.get("n")
        body.append([Cell(f"author {row.get('author')}"), Cell(str(n), order=n, numeric=True), *shown])
    total = authors.get("authors")
    more = f" of {total}" if isinstance(total, int) and total > len(rows) else ""
    title = f"By author, numbered in the order of the file: {len(rows)}{more}"
    table = Table(title, columns, body)
    return [Details(title, [table])] if len(rows) > MOST_ROWS else [table]
