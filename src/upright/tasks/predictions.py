"""Decisions in a file: are groups decided alike, over all rows and at every client.

===================  =============================  ================================================================
criterion            statistics of                  the groups' rates that are compared
===================  =============================  ================================================================
demographic parity   ``predicted``                  ``P(decided c | g)``
equal opportunity    ``true_positive``              ``P(decided c | g, label c)``
equalized odds       ``true_positive+false_         the same, and ``P(decided c | g, label not c)``
                     positive``
===================  =============================  ================================================================

``disparity`` is the largest difference between two groups, over classes; ``client_disparity`` and
``mean_client_disparity`` are its maximum and mean inside clients. ``gap`` is one pair of groups in one rate, adjusted
for all pairs and rates: the largest beyond chance decides. `docs/audit-predictions.md` has files and errors.

With labels and scores of one class, the groups of the first grouping are compared in accuracy and ROC AUC as well and,
where the scores lie in [0, 1], in calibration (mean of score minus label) and Brier score; adjusted together, beside
the criterion that decides.

Classes, groups and clients are compared as text; whole numbers lose ``.0``, so that 1 and 1.0 are one class.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import Arm, Config, File, InputError, Metric, Range, UnitScores, audit, stream
from upright.data.columns import Column, read_columns, sort_names
from upright.data.formats import Columns, open_columns, some
from upright.data.tabular import cut_of
from upright.declare import Heat, Intervals, Noted, Signed
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.compute import evidence, margins_of, pair_levels
from upright.evidence.records import Level
from upright.evidence.statistics import parse
from upright.evidence.units import FEWEST, Block, Units
from upright.evidence.verdict import Verdict, audit_verdict
from upright.maths.parity.rates import Criterion
from upright.maths.ranks import auc_values
from upright.maths.simultaneous import compare_groups
from upright.metrics.fairness import GroupFairness, Table, fairness_of, rates_of
from upright.tasks.answers import YOURS, Answer, plural, read_groups, suppress_small

__all__ = ["CRITERIA_OF", "PredictionsConfig", "metrics_of", "pairs_and_verdict", "read_predictions"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Row = dict[str, Any]
CRITERIA_OF: Mapping[Criterion, tuple[str, str]] = {
    "demographic_parity": ("predicted", "Demographic parity"),
    "equal_opportunity": ("true_positive", "Equal opportunity"),
    "equalized_odds": ("true_positive+false_positive", "Equalized odds"),
}
MOST_CLIENTS = 50  # in tables of rates, those with the largest gaps
MOST_CLASSES = 50  # more different values are a quantity or an id
MOST_ROWS = 100_000  # of a unit table of rows; above, it holds cells
_QUALITY = {
    "accuracy": Metric("accuracy", title="Accuracy"),
    "roc_auc": Metric("roc_auc", title="ROC AUC"),
    "brier": Metric("brier", "lower", title="Brier score"),
    "calibration": Metric("calibration", low=-1.0, title="Score minus label"),
}
_TITLES = {"predicted": "Decided", "true_positive": "True positive rate of", "false_positive": "False positive rate of"}
_PLAUSIBLE = 4  # copies a row, above which a table of few columns and values is the likelier cause
_SUM = 1e-3  # by how much rounded probabilities of a row may miss 1
_TRUTH = {"false": "0", "true": "1"}
_POSITIVE = ("1", "yes", "true", "y", "t", "positive", "pos")
_NEGATIVE = ("0", "-1", "no", "false", "n", "f", "negative", "neg")


class PredictionsConfig(Config):
    """A table of cases, and what its columns are."""

    file: File
    """A row a case."""
    group: str
    """Columns of groups: `A`, `A,B` each by itself, `A*B` their product too; `age<25` and `age:25,45,65` cut numbers.
    The first one decides the verdict."""
    client: str | None = None
    """Column of clients: every gap inside each of them too."""
    label: str | None = None
    """Column of true classes; without them demographic parity only."""
    person: str | None = None
    """Column of persons; rows of one count together."""
    prediction: str | None = None
    """Column of decided classes."""
    proba: str | None = None
    """Columns of probabilities, all classes in order: `p_no,p_yes` or `no=a,yes=b`."""
    score: str | None = None
    """Column of scores; at least the threshold decides for the positive class."""
    threshold: float | None = None
    """Of the scores: 0.5 where they lie in [0, 1]; of others it must be given."""
    criterion: Literal["demographic_parity", "equal_opportunity", "equalized_odds"] = "demographic_parity"
    """Decides the verdict; the others are computed when there are labels."""
    positive: str | None = None
    """Class to compare; the last of two, all of more."""
    randomised: bool = False
    """Decisions are drawn by the probabilities."""
    least: Annotated[int, Range(ge=5)] = 30
    """Rows that a group should have at a client: cells of which lemma B.7 promises fewer are listed."""
    id: str | None = None
    """Column of ids; row numbers otherwise."""
    missing: Literal["refuse", "drop"] = "refuse"
    """What becomes of rows without a label, decision, client or person."""
    encoding: str = "utf-8"
    """Of a text file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"--{name}" for name in ("prediction", "proba", "score") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "neither --prediction nor --proba nor --score"
            raise InputError(got, "decided classes, probabilities of every class, or scores", "give one of them")
        if self.randomised and self.proba is None:
            raise InputError(f"--randomised with {given[0]}", "--randomised with --proba", "give the probabilities")
        if self.label is None and self.criterion != "demographic_parity":
            todo = "pass --label, or take demographic_parity, which needs none"
            raise InputError(f"criterion {self.criterion!r} without --label", "a column of true classes", todo)


# -- the file -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cases:
    """Checked rows.

    Parameters
    ----------
    name : str
        Of the file.
    ids : sequence of str, shape (n,)
        Of a column, or row numbers from 1.
    groups : mapping of grouping to sequence of str, shape (n,)
        Empty where a row has no group.
    client : sequence of str, shape (n,), optional
    person : sequence of str, shape (n,)
        Whose row it is; empty when each is of another.
    label : ndarray of int, shape (n,), optional
        Places in `classes`.
    classes : tuple of str
    h : ndarray, shape (n, m)
        Decisions: one-hot, or probabilities when they are randomised.
    score : ndarray, shape (n,), optional
        Of one class, `scored`: its place in `classes`.
    warnings : tuple of str
    """

    name: str
    ids: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    client: Sequence[str] | None
    person: Sequence[str]
    label: Codes | None
    classes: tuple[str, ...]
    h: Array
    score: Array | None
    scored: int
    warnings: tuple[str, ...]


def named_columns(text: str | None) -> list[str]:
    """Take ``A,B`` apart, blanks around names removed; numbers go on with a cut, ``age:25,45``."""
    parts: list[str] = []
    for part in (one.strip() for one in (text or "").split(",")):
        if parts and ":" in parts[-1] and re.fullmatch(r"[-+]?\d+(\.\d+)?(\*.*)?", part):
            parts[-1] += f",{part}"
        elif part and part not in parts:
            parts.append(part)
    return parts


def groupings_of(group: str) -> dict[str, tuple[str, ...]]:
    """Return groupings in order, each with the columns that make it; one column alone is called ``group``."""
    found: dict[str, tuple[str, ...]] = {}
    for one in named_columns(group):
        columns = tuple(part for part in dict.fromkeys(p.strip() for p in one.split("*")) if part)
        found["*".join(columns)] = columns
        found |= {column: (column,) for column in columns if column not in found}
    if not found:
        raise InputError(f"group {group!r}", "one column or several: A, 'A,B' or 'A*B'", "name the column of groups")
    if len(found) == 1:
        return {"group": next(iter(found.values()))}
    # a statistic is written name:metric:grouping=group, and these two groupings are there anyway
    safe = {name: re.sub("[:=]", "_", name) for name in found}
    return {f"group_{s}" if s in ("client", "label") else s: found[name] for name, s in safe.items()}


def _few(file: str, column: str, text: pl.Series, todo: str) -> list[str]:
    """Return the values of a column in order, by number where all are numbers; refuse a quantity."""
    found = [one for one in text.unique().to_list() if one]
    if len(found) > MOST_CLASSES:
        got = f"{file}: {column!r} has {len(found)} different values"
        raise InputError(got, f"at most {MOST_CLASSES}", todo)
    return sort_names(found)


def _code(table: Columns, column: str, text: pl.Series, classes: Sequence[str]) -> Codes:
    strangers = np.flatnonzero((~text.is_in(list(classes))).to_numpy())
    if len(strangers):
        got = f"{column!r} is {text[int(strangers[0])]!r}"
        raise table.refuse(strangers, got, ", ".join(map(repr, classes)), "write classes alike in both columns")
    return text.replace_strict(list(classes), list(range(len(classes))), return_dtype=pl.Int64).to_numpy()


def _proba_columns(proba: Sequence[str], labels: Sequence[str] | None) -> dict[str, str]:
    """Return class -> column, in the order given."""
    found: dict[str, str] = {}
    for one in proba:
        name, equals, column = one.partition("=")
        column = column.strip() if equals else one
        short = re.sub(r"^(p|prob|proba)_", "", one)
        chosen = name.strip() if equals else one if labels is not None and one in labels else short
        if chosen in found:
            raise InputError(f"class {chosen!r} twice in --proba", "one column a class", "leave one of them out")
        found[chosen] = column
    if len(found) < 2:
        got, todo = f"--proba with {plural(len(found), 'column')}", "name the columns of all classes, or use --score"
        raise InputError(got, "one column a class, such as p_no,p_yes", todo)
    lost = [one for one in labels or () if one not in found]
    if lost:
        raise InputError(
            f"--proba names the classes {some(list(found))}, the labels hold {some(lost)}",
            "a column for every class of the labels",
            "write CLASS=COLUMN, such as yes=p1",
        )
    return found


def _probabilities(table: Columns, columns: Sequence[str]) -> Array:
    found = read_columns(table, {c: Column("number", option="--proba") for c in columns}, {c: c for c in columns})
    h = np.stack([found.array(c) for c in columns], axis=1)
    total = h.sum(axis=1)
    texts = table.frame.select(pl.col(list(columns)).cast(pl.String).str.extract(r"[.,](\d+)$").str.len_chars().max())
    digits = max((d for d in texts.row(0) if d is not None), default=0)
    room = max(_SUM, 0.5 * len(columns) * 10.0**-digits) + 1e-9  # each may be rounded by half of its last digit
    wrong = np.flatnonzero((h < 0).any(axis=1) | (np.abs(total - 1.0) > room))
    if len(wrong):
        got = f"probabilities {', '.join(f'{v:g}' for v in h[wrong[0]])} sum to {total[wrong[0]]:.6g}"
        todo = "export them again, or name the columns of all classes"
        raise table.refuse(wrong, got, "numbers of at least 0 that sum to 1", todo)
    return np.asarray(h / total[:, None])


def _dropped(table: Columns, config: PredictionsConfig, columns: Sequence[str], warnings: list[str]) -> Columns:
    """Leave out rows without a value in one of the columns, and say how many of each group."""
    cells = {c: Column("text", missing=True) for c in columns}
    found = read_columns(table, cells, {c: c for c in cells})
    empty = np.any([(found[c] == "").to_numpy() for c in cells], axis=0)
    if empty.any():
        first = next(iter(groupings_of(config.group).values()))[0]
        lost = read_groups(table, first, missing=True).filter(pl.Series(empty))
        parts = [f"{lost.eq(g).sum()} of {g or 'no group'}" for g in lost.unique().sort().to_list()]
        what = " or ".join(repr(c) for c in cells)
        warnings.append(f"{plural(int(empty.sum()), 'row')} without {what} dropped: {', '.join(parts)}.")
    return table.take(np.flatnonzero(~empty))


def read_cases(config: PredictionsConfig, groupings: Mapping[str, tuple[str, ...]]) -> Cases:
    """Read and check the file.

    Raises
    ------
    InputError
        For a file that cannot be read, a column that is not there, a missing client, person, label or decision, an id
        twice, classes or groups of more than 50 values, probabilities that are none; with the lines where it is wrong.
    """
    plain = {name: getattr(config, name) for name in ("client", "label", "person", "prediction", "score")}
    plain = {name: column for name, column in plain.items() if column is not None}
    every = dict.fromkeys(part for columns in groupings.values() for part in columns)
    named = {*every, *plain.values(), config.id, *(cut.column for p in every if (cut := cut_of(p)))}
    named |= {name for one in named_columns(config.proba) for name in (one, one.partition("=")[2].strip())}
    table, warnings = open_columns(config.file, config.encoding, keep=named.__contains__), list[str]()
    if config.missing == "drop":
        table = _dropped(table, config, [*plain.values()], warnings)
    parts = {part: read_groups(table, part, missing=True) for part in every}
    for part, text in parts.items():
        _few(table.name, part, text, "name another column with --group, or join groups")
    groups: dict[str, list[str]] = {}
    for name, columns in groupings.items():
        own = [parts[column].to_list() for column in columns]
        groups[name] = [" and ".join(part) if all(part) else "" for part in zip(*own, strict=True)]
        without = groups[name].count("")
        if without:
            what = f"{plural(without, 'row')} without a group of {' and '.join(map(repr, columns))}"
            warnings.append(f"{what} took no part in its comparisons.")
    try:
        cells = read_columns(table, {name: Column("number" if name == "score" else "text") for name in plain}, plain)
    except InputError as error:
        if " missing " not in error.got or config.missing == "drop":
            raise
        raise InputError(error.got, error.accepted, f"{error.todo}, or pass --missing drop") from None
    decided = cells["prediction"] if config.prediction else None
    truth = _booleans(cells["label"], decided) if config.label else None
    todo = "classes of labels and predictions, not numbers; probabilities go into --proba, scores into --score"
    known = _few(table.name, str(config.label), truth, todo) if truth is not None else None
    score: Array | None = None
    up = -1
    if config.proba is not None:
        of_class = _proba_columns(named_columns(config.proba), known)
        classes, h = list(of_class), _probabilities(table, list(of_class.values()))
        if config.positive in classes or len(classes) == 2:
            up = classes.index(config.positive) if config.positive in classes else 1
            score = h[:, up]
        if not config.randomised:
            ties = int(((h == h.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
            if ties:
                warnings.append(
                    f"In {plural(ties, 'row')} several classes are the most probable; the first one counts."
                )
            h = np.eye(len(classes))[h.argmax(axis=1)]
    elif config.score is not None:
        classes = known or ["0", "1"]
        if len(classes) != 2:
            raise InputError(f"{len(classes)} classes with --score", "two classes", "give --prediction or --proba")
        up = _class_of_high_scores(table.name, classes, config.positive)
        score = cells.array("score")
        if config.threshold is None and not (score.min() >= 0.0 and score.max() <= 1.0):
            got = f"{table.name}: {config.score!r} runs from {score.min():g} to {score.max():g}, without --threshold"
            raise InputError(got, "scores in [0, 1], or a threshold", "pass --threshold X: from X on it is decided so")
        threshold = 0.5 if config.threshold is None else config.threshold
        above = score >= threshold
        if above.all() or not above.any():
            which = "Every" if above.all() else "No"
            warnings.append(f"{which} score reaches the threshold of {threshold:g}, so all are decided alike.")
        h = np.eye(2)[np.where(above, up, 1 - up)]
    elif decided is not None:
        decided = _booleans(decided, truth)
        classes = sort_names({*_few(table.name, str(config.prediction), decided, todo), *(known or ())})
        h = np.eye(len(classes))[_code(table, str(config.prediction), decided, classes)]
        if known is not None and not set(known) & set(decided.unique().to_list()):
            raise InputError(
                f"{table.name}: predictions such as {decided[0]!r} and labels such as {known[0]!r} share no class",
                "classes written alike in both columns",
                "correct one of the two",
            )
    if len(classes) < 2:
        raise InputError(
            f"{table.name}: one class, {classes[0]!r}", "at least 2 classes", "there is nothing to compare"
        )
    client = cells["client"].to_list() if "client" in cells else None
    person = cells["person"].to_list() if "person" in cells else ()
    ids = [str(i + 1) for i in table.row.tolist()]
    if config.id is not None:  # which may be the column of persons as well
        ids = read_columns(table, {"id": Column("id", unique=True)}, {"id": config.id})["id"].to_list()
    code = _code(table, str(config.label), truth, classes) if truth is not None else None
    copies = 0 if config.id or config.person else len(table) - table.frame.hash_rows().n_unique()
    if 0 < copies <= _PLAUSIBLE * (len(table) - copies):
        warnings.append(
            f"{copies} of {len(table)} rows are exact copies of an earlier one. Unless they are other cases, intervals "
            "are too narrow: delete them, or name the column of persons with --person."
        )
    return Cases(table.name, ids, groups, client, person, code, tuple(classes), h, score, up, tuple(warnings))


def _class_of_high_scores(file: str, classes: Sequence[str], positive: str | None) -> int:
    """Return the place of the class that high scores decide for; only usual pairs of words tell it by themselves."""
    told = [positive] if positive in classes else [name for name in classes if name.lower() in _POSITIVE]
    usual = all(name.lower() in (*_POSITIVE, *_NEGATIVE) for name in classes)
    if len(told) != 1 or not (usual or positive in classes):
        got = f"{file}: scores, and the classes {some(classes)}"
        todo = ", or ".join(f"--positive {shlex.quote(name)}" for name in reversed(classes))
        raise InputError(got, "the class that high scores decide for", f"write {todo}")
    return classes.index(told[0])


def _booleans(text: pl.Series, other: pl.Series | None) -> pl.Series:
    """Return true and false as 1 and 0 where the other column holds numbers."""
    if other is None or not text.str.to_lowercase().is_in([*_TRUTH]).all() or not other.is_in(["0", "1"]).all():
        return text
    return text.str.to_lowercase().replace(_TRUTH)


def scores_of(cases: Cases, compared: Sequence[str]) -> dict[str, Array]:
    """Return one value a row of each metric, NaN where it is not defined.

    ``predicted/c``: the probability of deciding c. ``true_positive/c``: the same where the label is c, and
    ``false_positive/c`` where it is not. ``accuracy``: the probability of deciding the label.
    """
    found = rates_of("demographic_parity", cases.h, cases.classes, compared)
    values = {f"{stratum}/{one}": own for (stratum, one), own in found.items()}
    if cases.label is not None:
        values["accuracy"] = cases.h[np.arange(len(cases.h)), cases.label]
        found = rates_of("equalized_odds", cases.h, cases.classes, compared, cases.label)
        values |= {f"{stratum}/{one}": own for (stratum, one), own in found.items()}
    return values


def quality_of(cases: Cases, group: Sequence[str]) -> dict[str, Array]:
    """Return one value a row of ROC AUC, calibration and Brier score; the mean over a group is the group's."""
    if cases.score is None or cases.label is None:
        return {}
    truth, score = cases.label == cases.scored, cases.score
    groups = {name: i for i, name in enumerate(sorted({*group} - {""}))}
    found = {"roc_auc": auc_values(score, truth, np.array([groups.get(name, -1) for name in group]), fewest=FEWEST)}
    if score.min() >= 0.0 and score.max() <= 1.0:
        found |= {"calibration": score - truth, "brier": (score - truth) ** 2}
    return found if np.isfinite(found["roc_auc"]).any() else {k: v for k, v in found.items() if k != "roc_auc"}


def unit_table(cases: Cases, by: Mapping[str, Sequence[str]], values: Mapping[str, Array]) -> UnitScores:
    """Return what ``units.parquet`` holds: every row, or of more than `MOST_ROWS` one unit a cell.

    A cell is a combination of groups, client and label; ``rows`` is how many rows it has, and every other value is the
    mean over those where it is defined. Means weighted by rows are means over rows: nothing of the rates is lost.
    """
    if len(cases.h) <= MOST_ROWS:
        return UnitScores("row", cases.ids, values, by, cluster=cases.person)
    keys, metrics = {f"by_{name}": list(own) for name, own in by.items()}, list(values)
    rows = pl.DataFrame(keys | dict(values)).with_columns(pl.col(metrics).fill_nan(None))
    cells = rows.group_by(list(keys)).agg(pl.len().cast(pl.Float64).alias("rows"), pl.col(metrics).mean())
    cells = cells.sort(list(keys)).with_columns(pl.col(metrics).fill_null(math.nan))
    found = {name: cells[name].to_numpy() for name in ("rows", *metrics)}
    return UnitScores("cell", range(1, len(cells) + 1), found, {name: cells[f"by_{name}"].to_list() for name in by})


# -- the audit ------------------------------------------------------------------------------------------------------


@audit(
    "predictions",
    config=PredictionsConfig,
    report=[
        Intervals(
            "Rates by group",
            "mean:*/*:*=*",
            [
                "Share of a group's rows that are decided so; the rates of the criterion that decides stand first. The "
                "criterion asks that they are equal."
            ],
        ),
        Signed("Gaps between groups, the one that decides first", "gap:*/*:*=*"),
        Intervals("Errors and scores by group", " ".join(f"mean:{name}:*=*" for name in _QUALITY)),
        Signed("Gaps in errors and scores, adjusted together", " ".join(f"gap:{name}:*=*" for name in _QUALITY)),
        Heat("Share decided so", "fairness.0.by_group", split=("stratum", "class")),
        Noted(
            "Largest gap over all rows, and inside clients",
            "fairness.0.gaps",
            by={"client": "Client", "stratum": "Rate", "class": "Decided", "first": "Higher", "second": "Lower"},
            names={"value": "gap", "low": "from", "high": "to", "smallest": "smaller cell", "shown": "beyond chance"},
        ),
        Noted(
            "Clients whose gap goes the other way than that over all rows",
            "fairness.0.conflicts",
            by={"client": "Client"},
            names={
                "global.first": "higher over all rows",
                "global.value": "gap",
                "local.first": "higher inside",
                "local.value": "gap inside",
            },
        ),
        Noted(
            "Cells that may hold too few rows",
            "fairness.0.small",
            by={"client": "Client", "group": "Group"},
            names={"n": "rows", "need": "rows of the client needed"},
        ),
    ],
    limits=[
        "Equal rates are no proof of fair treatment: the labels themselves may be unfair, and groups may differ in "
        "what decisions cost them.",
        "Only the groups in the file are compared. A group that is not named, or a mixture, may be worse off.",
        "The largest of many gaps is large by selection, most of all among small clients: read its adjusted interval, "
        "and whether it is beyond chance. The interval of a single rate is not adjusted.",
        "Intervals describe other rows of the same kind, with the classifier as it is.",
    ],
)
def read_predictions(config: PredictionsConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit decisions of any classifier: are groups decided alike, over all rows and at every client.

    Raises
    ------
    InputError
        For everything that is wrong with the file.
    """
    groupings, criterion, least, positive = groupings_of(config.group), config.criterion, config.least, config.positive
    cases = read_cases(config, groupings)
    warnings = list(cases.warnings)
    by = _groups(cases, warnings, groupings)
    left = {name: list(groupings[name]) for name in by}
    if positive is not None and positive not in cases.classes:
        raise InputError(f"--positive {positive!r}", ", ".join(map(repr, cases.classes)), "name one of the classes")
    last = [cases.classes[-1]] if len(cases.classes) == 2 else list(cases.classes)
    compared = [positive] if positive is not None else last
    scored, quality = quality_of(cases, by[next(iter(by))]), list[Level]()
    values = scores_of(cases, compared) | scored
    if "roc_auc" in scored and np.nanmean(scored["roc_auc"]) < 0.5:
        warnings.append(
            f"Scores rank worse than chance (ROC AUC below 0.5): are they of another class than "
            f"{cases.classes[cases.scored]!r}? --positive names it."
        )
    if cases.client is not None:
        by["client"] = cases.client
    if cases.label is not None:
        by["label"] = [cases.classes[c] for c in cases.label]
    criteria = list(dict.fromkeys([criterion, *(CRITERIA_OF if cases.label is not None else ())]))
    scores, metrics = UnitScores("row", cases.ids, values, by, cluster=cases.person), metrics_of([*values])
    units = Units([Block("", YOURS, seed, scores)])
    grouping = next(iter(left))
    statistics = _statistics([*left], criteria, compared, units)
    arms = [Arm(YOURS, "baseline", title="your decisions")]
    boot = Bootstrap(units, draws, seed)
    found = evidence(units, arms=arms, statistics=statistics, metrics=metrics, draws=draws, boot=boot)
    made: Any = {text: parse(text, boot, metrics) for text in statistics}  # which keep what they have compared
    tables = {}
    for name, c in itertools.product(left, criteria):
        known = [made[f"{one}:{CRITERIA_OF[c][0]}:{name}"].compared(YOURS) for one in _names(units)[:2]]
        tables[name, c] = fairness_of(_table(units, name, c, compared), observations=least, known=known)
    few = {
        f"disparity:{CRITERIA_OF[c][0]}:{name}" for (name, c), one in tables.items() if _is_few(one.gaps[0]["smallest"])
    }
    found["levels"] = [
        row for row in found["levels"] if row["statistic"] not in few and not (row["group"] and _is_few(row["n_units"]))
    ]
    own = {name: margin for name, margin in margins.items() if name in scored or (scored and name == "accuracy")}
    rest = {name: margin for name, margin in margins.items() if name not in own}
    pairs, said = pairs_and_verdict(tables[grouping, criterion], grouping, metrics, rest)
    beside = {key: pairs_and_verdict(one, key[0], metrics, {})[1] for key, one in tables.items()}
    others = []
    for (name, c), one in beside.items():
        top = one.headline
        if (name, c) != (grouping, criterion) and top:
            asked = f"{c.replace('_', ' ')} of {_named(groupings[name])}"
            others.append(f"{asked}: {one.title}, {top.label} {top.value:.3f}")
    if scored:
        quality, how = _compare_quality(units, grouping, metrics, found["levels"], own, seed)
        others.append(f"errors and scores: {how}")
    said = dataclasses.replace(said, lines={**said.lines, **({"also asked": "; ".join(others)} if others else {})})
    if said.word != "gap shown" and (elsewhere := [one.partition(":")[0] for one in others if ": gap shown" in one]):
        step = f"Read what else was asked: a gap is shown in {', '.join(elsewhere)}."
        said = dataclasses.replace(said, next_steps=(step, *said.next_steps))
    for row in found["levels"]:  # more decisions, or higher scores than labels, are neither better nor worse
        row["better"] = "none" if row["metric"].startswith(("predicted/", "calibration")) else row["better"]
    found["levels"] += [level.row() for level in [*pairs, *quality]]
    found["headline"] = said.headline.row() if pairs and said.headline else None
    found["verdict"] = said.row() | ({} if pairs else {"primary": statistics[0]})
    if len(cases.h) > MOST_ROWS:
        warnings.append(
            f"With more than {MOST_ROWS} rows, units.parquet holds one unit a cell with its number of rows."
        )
    data = {"name": cases.name, "rows": len(cases.h), "classes": list(cases.classes)}
    data |= {"clients": len(set(cases.client or ())), "persons": len(set(cases.person))}
    data |= {"groups": {name: len(set(by[name]) - {""}) for name in left}}
    shared = {"groupings": left, "criterion": criterion, "compared": compared, "least": least}
    return Answer(
        title=f"Audit of the decisions in {cases.name}",
        arm_title="your decisions",
        asks=f"whether groups of {_named(groupings[grouping])} are decided alike",
        data=data,
        resolved={**shared, "classes": list(cases.classes)},
        scores=unit_table(cases, by, values),
        metrics=metrics,
        facts={**shared, "fairness": [_facts(*names, one) for names, one in tables.items()]},
        warnings=warnings,
        evidence=found,
    )


def _groups(cases: Cases, warnings: list[str], groupings: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return groupings that can be compared, without groups of fewer than five rows."""
    by: dict[str, Sequence[str]] = {}
    for name, labels in cases.groups.items():
        clean, small = suppress_small(labels)
        if small:
            what = f"Groups of {_named(groupings[name])} with fewer than {FEWEST} rows take no part: {some(small)}."
            warnings.append(what)
        groups = sorted(set(clean) - {""})
        if len(groups) > 1:
            by[name] = clean
        elif name == next(iter(cases.groups)):
            which = f"one group, {groups[0]!r}," if groups else "no group"
            raise InputError(
                f"{cases.name}: {_named(groupings[name])} has {which} of at least {FEWEST} rows",
                f"at least 2 groups of {FEWEST} rows",
                "name another column with --group, or merge small groups",
            )
        else:
            warnings.append(f"{_named(groupings[name])} has fewer than two groups, so nothing was compared there.")
    return by


def _named(columns: Sequence[str]) -> str:
    return " and ".join(map(repr, columns))


def _names(units: Units) -> list[str]:
    return ["disparity", *(["client_disparity", "mean_client_disparity"] if "client" in units.by else [])]


def _statistics(left: Sequence[str], criteria: Sequence[Criterion], compared: Sequence[str], units: Units) -> list[str]:
    """Return what the evidence holds: rates by group of the deciding criterion first, for that is drawn beside it."""
    kinds = dict.fromkeys(kind for c in criteria for kind in CRITERIA_OF[c][0].split("+"))
    rates = [f"{kind}/{one}" for kind in kinds for one in compared]
    rates += [m for m in _QUALITY if m in units.metrics and m != "roc_auc"]
    found = [f"{name}:{CRITERIA_OF[c][0]}:{g}" for g in left for c in criteria for name in _names(units)]
    found += [f"mean:{m}:{g}" for g in left for m in rates] + [f"mean:{m}" for m in rates]
    return found + [f"mean:roc_auc:{left[0]}"] * ("roc_auc" in units.metrics)  # areas are those of its groups


def metrics_of(names: Sequence[str]) -> dict[str, Metric]:
    """Return titles of rates, accuracy and criteria."""
    found = {prefix: Metric(prefix, "lower", title=title) for prefix, title in CRITERIA_OF.values()}
    for name in names:
        kind, _, one = name.partition("/")
        side: Literal["higher", "lower"] = "lower" if kind == "false_positive" else "higher"
        found[name] = Metric(name, side, title=f"{_TITLES[kind]} {one!r}") if one else _QUALITY[name]
    return found


def _table(units: Units, grouping: str, criterion: Criterion, compared: Sequence[str]) -> Table:
    rates = [(kind, one) for one in compared for kind in CRITERIA_OF[criterion][0].split("+")]
    values = np.stack([units.values(YOURS, f"{kind}/{one}")[0] for kind, one in rates], axis=-1)
    groups, group = units.codes(grouping)
    clients, client = units.codes("client") if "client" in units.by else ([], np.zeros_like(group))
    return Table(values, rates, group[0], client[0], units.cluster, groups, clients)


# -- what is shown --------------------------------------------------------------------------------------------------


def pairs_and_verdict(
    found: GroupFairness, grouping: str, metrics: Mapping[str, Metric], margins: Mapping[str, float]
) -> tuple[list[Level], Verdict]:
    """Return every pair of groups over all rows, the largest T first, and the verdict.

    Rates of a group in fewer than `FEWEST` rows are not measured. Who is too small to judge takes no part in the
    ratio of rates.
    """
    groups, n = found.table.groups, found.cells[0, :, 0, :-1].astype(np.int64)  # (M, G)
    names = [f"{kind}/{one}" for kind, one in found.table.rates]
    few = [n[m, [a, b]].min() < FEWEST for _, m, a, b in found.pairs.of]
    pairs = dataclasses.replace(found.pairs, value=np.where(few, np.nan, found.pairs.value))
    levels = pair_levels(
        pairs,
        arm=YOURS,
        groups=groups,
        metrics=[metrics[name] for name in names],
        grouping=grouping,
        sizes={(name, g): int(n[m, k]) for m, name in enumerate(names) for k, g in enumerate(groups)},
    )
    small, metric = pairs.small_groups(), levels[0].metric if levels else names[0]
    m = names.index(metric)
    judged = [g for g in range(len(groups)) if n[m, g] >= FEWEST and g not in small]
    rates = {groups[g]: float(found.cells[1, m, 0, g]) for g in judged}
    said = audit_verdict(
        "gap shown",
        levels,
        margin=margins_of({name: metrics[name].margin for name in names}, margins),
        ratio=_ratio(rates),
        too_small=[(groups[g], least) for g, least in small.items()],
        unit="row",
        unmeasured=[f"{metrics[names[m]].title} for {groups[g]}" for m, g in np.argwhere(n < FEWEST)],
    )
    clients = {"clients": _inside(found)} if found.inside else {}
    return levels, dataclasses.replace(said, lines={**said.lines, **clients})


def _compare_quality(
    units: Units,
    grouping: str,
    metrics: Mapping[str, Metric],
    rows: Sequence[Mapping[str, Any]],
    margins: Mapping[str, float],
    seed: int,
) -> tuple[list[Level], str]:
    """Return every pair of groups in errors and scores, adjusted for all of them, and what they show."""
    names = [name for name in _QUALITY if name in units.metrics]
    groups, group = units.codes(grouping)
    values = np.stack([units.values(YOURS, name) for name in names], axis=-1)
    rng = np.random.default_rng(stream(seed, "evidence", "null", "quality"))
    seen = compare_groups(values, group, units.cluster, len(groups), rng=rng)
    sizes = {(row["metric"], row["group"]): row["n_units"] for row in rows if row["grouping"] == grouping}
    about = [metrics[name] for name in names]
    levels = pair_levels(seen, arm=YOURS, groups=groups, metrics=about, grouping=grouping, sizes=sizes)
    margin = margins_of({name: metrics[name].margin for name in names}, margins)
    said = audit_verdict("gap shown", levels, margin=margin, unit="row")
    shown = {row.metric: row for row in reversed(levels) if row.shown} or {"": levels[0]}
    return levels, f"{said.title}, {', '.join(f'{row.label} {row.value:.3f}' for row in reversed(shown.values()))}"


def _ratio(rates: Mapping[str, float]) -> tuple[float, str] | None:
    """Return the smallest over the largest rate, and whose they are: two groups, also where all are equal."""
    if len(rates) < 2 or max(rates.values()) <= 0:
        return None
    low, high = min(rates, key=rates.__getitem__), max(reversed([*rates]), key=rates.__getitem__)
    return rates[low] / rates[high], f"{low} over {high}"


def _inside(found: GroupFairness) -> str:
    """Say at which clients a gap is shown, adjusted for all of them, and how many of their cells are small."""
    inside: Any = found.inside
    if not np.isfinite(inside.value).any():
        return "not measured: no client has two groups to compare"
    shown = [one for one, shown in zip(inside.of, inside.shown, strict=True) if shown]
    homes = dict.fromkeys(h for h, m, *pair in shown if found.cells[0, m, h + 1, pair].min() >= FEWEST)
    words = [f"gap shown at {some([found.table.clients[h] for h in homes])}" if homes else "no gap shown"]
    rest = len(found.table.clients) - len(homes)
    words += [f"not shown, nor excluded, at {plural(rest, 'other')}"] * bool(homes and rest)
    against = len({row["client"] for row in found.conflicts})
    words += [f"at {plural(against, 'client')} the other way than over all rows"] * bool(against)
    small = sum(row["client"] is not None for row in found.small)
    if small:
        words.append(f"{plural(small, 'cell')} may be too small to judge ({found.observations} rows are asked for)")
    return "; ".join(words)


def _facts(grouping: str, criterion: Criterion, found: GroupFairness) -> Row:
    """Return the tables of one grouping and criterion, numbers of cells under five rows left out."""
    gaps, rates = found.gaps, found.by_group
    wide = sorted(gaps[1:], key=lambda r: -r["value"] if math.isfinite(r["value"]) else math.inf)
    shown = {None, *(row["client"] for row in wide[:MOST_CLIENTS])}
    rates = [_cells(row, row["n"], "n", "rate", "low", "high") for row in rates if row["client"] in shown]
    return {
        "grouping": grouping,
        "criterion": criterion,
        "groups": found.table.groups,
        "clients": len(found.table.clients),
        "gaps": [_cells(row, row["smallest"], "value", "low", "high", "p", "smallest") for row in gaps],
        "by_group": [row for row in rates if row["group"] is not None],
        "overall": [row for row in rates if row["group"] is None],
        "small": [_cells(row, row["n"], "n", "rate", "low", "high", "need") for row in found.small],
        "conflicts": found.conflicts,
    }


def _is_few(n: int) -> bool:
    """Whether a number rests on one to four rows, which says too much about each."""
    return 0 < n < FEWEST


def _cells(row: Row, n: int, *keys: str) -> Row:
    """Return a row without the numbers that rest on few rows."""
    return {**row, **dict.fromkeys(keys if _is_few(n) else ()), "few": _is_few(n)}
