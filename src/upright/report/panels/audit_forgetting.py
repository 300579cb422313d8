"""Audit of a language model: what is still known, who can tell, how far it is from never having seen, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.parts import Block, Cell, Column, Details, Facts, Figure, Grid, Key, Table, Tag, cell, tag
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
    scores = [row for row in audit.get("membership") or [] if isinstance(row, Mapping)]
    truth = audit.get("truth")
    made = (
        _bars(view, canvas, "Probability of answers", "What is still known: the probability of answers", _PROBABILITY),
        _auc(view, scores, canvas),
        _bars(view, canvas, "share of the answer", "What is still known: by heart and in its own words", _BY_HEART),
        _curves(view, truth, canvas) if isinstance(truth, Mapping) else None,
        _kept(view, canvas),
    )
    figures = [figure for figure in made if figure]
    blocks: list[Block] = [Grid(figures)] if figures else []
    distances = _distances(view, truth if isinstance(truth, Mapping) else {})
    blocks += [Facts(distances, long=True)] if distances else []
    blocks += [_scores(scores)] if scores else []
    changes = [row for row in audit.get("changes") or [] if isinstance(row, Mapping)]
    blocks += [_changes(changes)] if changes else []
    authors = audit.get("authors")
    return [*blocks, *(_authors(view, authors) if isinstance(authors, Mapping) else [])]


_PROBABILITY = {"forget_probability": "Forgotten answers", "holdout_probability": "Held-out answers, never seen",
                "retain_probability": "Retained answers"}  # fmt: skip
_BY_HEART = {"forget_rouge_l": "Forgotten answers written, ROUGE-L recall", "exact_memorisation": "Exact memorisation",
             "extraction_strength": "Extraction strength"}  # fmt: skip
_KEPT = {"retain_probability": "Probability", "retain_rouge_l": "ROUGE-L recall", "retain_truth_ratio": "Truth ratio"}


def _value(row: Mapping[str, Any], key: str) -> float:
    found = row.get(key)
    return float(found) if isinstance(found, int | float) else math.nan


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
    columns = (Column("Of"), Column("Model"), Column("Value", numeric=True), Column("Interval", numeric=True),
               Column("Records", numeric=True))  # fmt: skip
    said = "; ".join(f"{a.text}, {_small(b.text)}: {c.text}, interval {d.text}" for a, b, c, d, _ in body)
    svg = canvas.rows(drawn, says, bars=True, limits=(0.0, 1.0))
    return Figure(title, svg, f"{title}. {said}", Table(title, columns, body), (), reading)


def _auc(view: View, rows: Sequence[Mapping[str, Any]], canvas: Canvas) -> Figure | None:
    """AUC of each membership score around one half, with what permuted labels show."""
    if not rows:
        return None
    drawn, body, ends = [], [], [0.05]
    for row in rows:
        band = (_value(row, "chance_low"), _value(row, "chance_high"))
        marks = [Mark(_value(row, "auc"), _value(row, "low"), _value(row, "high"), _index(view, _YOURS))]
        other = row.get("reference")
        if isinstance(other, Mapping):
            ends_of = [_value(other, key) for key in ("auc", "low", "high")]
            marks.append(Mark(ends_of[0], ends_of[1], ends_of[2], _index(view, _REFERENCE)))
        state, title = str(row.get("state")), str(row.get("title"))
        text = number(_value(row, "auc")) + (f", {state}" if state == "over-unlearned" else "")
        drawn.append(Row(title[:1].upper() + title[1:], tuple(marks), text, band))
        ends += [abs(e - 0.5) for m in marks for e in (m.value, m.low, m.high) if math.isfinite(e)]
        ends += [abs(e - 0.5) for e in band if math.isfinite(e)]
        body.append((Cell(title), cell(_value(row, "auc")), Cell(interval(_value(row, "low"), _value(row, "high")),
                     numeric=True), Cell(interval(*band), numeric=True), Cell(state)))  # fmt: skip
    title = "Who can tell a forgotten record from an unseen one"
    columns = (Column("Score"), Column("AUC", numeric=True), Column("Interval", numeric=True),
               Column("By chance", numeric=True), Column("State"))  # fmt: skip
    said = "; ".join(f"{a.text}: AUC {b.text}, interval {c.text}, {e.text}" for a, b, c, _, e in body)
    half = 1.05 * max(ends)
    svg = canvas.rows(drawn, "AUC: 0.5 is guessing", limits=(0.5 - half, 0.5 + half))
    reading = [
        f"The grey band holds the AUC in {percent(view.confidence)} of permutations of the labels. Above it records "
        "are still known; below it they were pushed under the level of unseen ones, which gives them away as well."
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
        keys.append(Key(f"largest distance, D = {number(_value(truth, 'distance'))}", _D))
        reading.append(_chance(truth))
        columns.append(Column(view.arm_title(_REFERENCE), numeric=True))
        body = [[*row, cell(other[10 * i])] for i, row in enumerate(body)]
    svg = canvas.curves(series, "share of the true answer, 1 / (1 + truth ratio)", "share of forgotten records")
    said = "; ".join(", ".join(f"{c.title} {v.text}" for c, v in zip(columns, row, strict=True)) for row in body)
    return Figure(title, svg, f"{title}. {said}", Table(title, columns, body), keys, reading)


def _chance(truth: Mapping[str, Any]) -> str:
    d, high = _value(truth, "distance"), _value(truth, "chance")
    side = "beyond that" if d > high else "not beyond that"
    return (
        f"D = {number(d)}, interval {interval(_value(truth, 'low'), _value(truth, 'high'))}. Two models alike on every "
        f"record would be at most {number(high)} apart in 95 % of cases: it is {side}."
    )


def _distances(view: View, truth: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Terms and values of the distance from a model that never saw the records."""
    found = []
    for row in view.levels:
        if row.name == "memory_gap":
            found.append(("Mean distance in probability, record by record",
                          f"{number(row.value)}, interval {interval(row.low, row.high)}"))  # fmt: skip
    if "distance" in truth:
        p, n = _value(truth, "p"), truth.get("n")
        found.append(("Distance D of the truth ratios", f"{number(_value(truth, 'distance'))}, by chance up to "
                      f"{number(_value(truth, 'chance'))}"))  # fmt: skip
        found.append(("Forget quality", f"p = {p:.2g}, from {plural(int(n), 'record') if n else 'no record'}"))
    return found


_TONES = {"not told apart": "open"}


def _state(word: str) -> Tag:
    return Tag(word, _TONES[word]) if word in _TONES else tag(word)


def _scores(rows: Sequence[Mapping[str, Any]]) -> Table:
    beside = any(isinstance(row.get("reference"), Mapping) for row in rows)
    columns = [Column("Membership score"), Column("Verdict"), Column("ROC-AUC", numeric=True),
               Column("By chance", numeric=True)]  # fmt: skip
    if beside:
        columns += [Column("Reference", numeric=True), Column("Difference", numeric=True),
                    Column("PrivLeak", numeric=True)]  # fmt: skip
    body = []
    for row in rows:
        title = str(row.get("title"))
        line = [Cell(title[:1].upper() + title[1:]), Cell("", tag=_state(str(row.get("state")))),
                cell(_value(row, "auc"), interval(_value(row, "low"), _value(row, "high"))),
                Cell(interval(_value(row, "chance_low"), _value(row, "chance_high")), numeric=True)]  # fmt: skip
        if beside:
            own = [cell(_value(_part(row, "reference"), "auc")), _difference(_part(row, "change")),
                   cell(_value(row, "privleak"), digits=1, sign=True)]  # fmt: skip
            # against a reference, that reference itself is no score
            line += own if _part(row, "reference") else [Cell("–", numeric=True)] * len(own)
        body.append(line)
    return Table("Membership: forgotten against held-out records", columns, body)


def _part(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = row.get(key)
    return found if isinstance(found, Mapping) else {}


def _difference(row: Mapping[str, Any]) -> Cell:
    value = _value(row, "value")
    small = "" if math.isnan(value) else interval(_value(row, "low"), _value(row, "high"), sign=True)
    return cell(value, small, sign=True)


def _changes(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = (Column("Your model minus the reference"), Column("Your model", numeric=True),
               Column("Reference", numeric=True), Column("Difference", numeric=True),
               Column("Smallest detectable", numeric=True), Column("Verdict"))  # fmt: skip
    body = []
    for row in rows:
        quiet = not (_value(row, "low") > 0 or _value(row, "high") < 0)
        body.append((Cell(str(row.get("label"))), cell(_value(row, "yours")), cell(_value(row, "reference")),
                     _difference(row), cell(_value(row, "smallest_detectable")),
                     Cell("not told apart" if quiet else "apart")))  # fmt: skip
    return Table("Against a model that never saw the records", columns, body)


def _authors(view: View, authors: Mapping[str, Any]) -> list[Block]:
    rows = [row for row in authors.get("rows") or [] if isinstance(row, Mapping)]
    if not rows:
        return []
    columns = [Column("Author"), Column("Records", numeric=True)]
    kinds = [(key, arm) for key in ("forget_probability", "extraction_strength") for arm in (_YOURS, _REFERENCE)
             if any(isinstance((row.get(key) or {}).get(arm), Mapping) for row in rows)]  # fmt: skip
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
