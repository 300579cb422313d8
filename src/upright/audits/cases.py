"""The file of an audit of predictions, checked: groups, clients, labels and decisions, a row a case.

==================  =================================================================================================
decisions           a column of classes, or columns of probabilities, ``p_no,p_yes`` or ``no=a,yes=b``
groups              columns; ``A,B`` each by itself, ``A*B`` their product and then each by itself
==================  =================================================================================================

Classes, groups and clients are compared as text; whole numbers lose ``.0``, so that 1 and 1.0 are one class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.audits.lists import plural, some
from upright.audits.tables import _Frame, _header, _load, _need
from upright.contract import InputError, UnitScores
from upright.data.readers import _numbers, _text
from upright.metrics.fairness import rates_of

__all__ = ["MOST_ROWS", "Cases", "named_columns", "read_cases", "scores_of", "unit_table"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
MOST_CLASSES = 50  # more different values are a quantity or an id
MOST_ROWS = 100_000  # of a unit table of rows; above, it holds cells
_MISSING = ("", "nan", "null")
_SUM = 1e-3  # by how much rounded probabilities of a row may miss 1
_WHAT = "a header line, then one case a row"


@dataclass(frozen=True, eq=False)
class Cases:
    """Checked rows.

    Parameters
    ----------
    path : Path
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
    randomised : bool
    warnings : tuple of str
    """

    path: Path
    ids: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    client: Sequence[str] | None
    person: Sequence[str]
    label: Codes | None
    classes: tuple[str, ...]
    h: Array
    randomised: bool
    warnings: tuple[str, ...]


def named_columns(text: str | Sequence[str]) -> list[str]:
    """Take ``A,B`` apart, blanks around names removed."""
    parts = text.split(",") if isinstance(text, str) else list(text)
    return [part for part in dict.fromkeys(one.strip() for one in parts) if part]


def groupings_of(group: str | Sequence[str]) -> dict[str, tuple[str, ...]]:
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


def _words(table: _Frame, column: str) -> pl.Series:
    """Return a column as text, empty where it is missing; whole numbers lose ``.0``."""
    series = table.frame[column]
    try:
        text = series.cast(pl.String).fill_null("").str.strip_chars()
    except pl.exceptions.PolarsError:
        got = f"{table.source.path.name}: {column!r} has type {series.dtype}"
        raise InputError(got, "text or numbers", "name another column") from None
    text = text.set(text.str.to_lowercase().is_in(_MISSING), "")
    whole = {one: str(int(float(one))) for one in text.unique().to_list() if re.fullmatch(r"[+-]?\d+\.0*", one)}
    return text.replace(whole) if whole else text


def _full(table: _Frame, column: str, what: str) -> pl.Series:
    """Return text without a missing cell."""
    text = _words(table, column)
    missing = np.flatnonzero((text == "").to_numpy())
    if len(missing):
        todo = "fill in those rows, or leave them out of the file and say so"
        raise table.refuse(missing, f"{len(missing)} missing {column!r}", f"{what} in every row", todo)
    return text


def _few(table: _Frame, column: str, text: pl.Series, todo: str) -> list[str]:
    """Return the values of a column in order, by number where all are numbers; refuse a quantity."""
    found = [one for one in text.unique().to_list() if one]
    if len(found) > MOST_CLASSES:
        got = f"{table.source.path.name}: {column!r} has {len(found)} different values"
        raise InputError(got, f"at most {MOST_CLASSES}", todo)
    return _ordered(found)


def _ordered(names: Sequence[str]) -> list[str]:
    def number(one: str) -> float:
        try:
            return float(one)
        except ValueError:
            return math.nan

    plain = [number(one) for one in names]
    return sorted(names, key=number) if all(math.isfinite(v) for v in plain) else sorted(names)


def _codes(table: _Frame, column: str, text: pl.Series, classes: Sequence[str]) -> Codes:
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
        got = f"--proba with {plural(len(found), 'column')}"
        raise InputError(got, "one column a class, such as p_no,p_yes", "name the columns of all classes")
    lost = [one for one in labels or () if one not in found]
    if lost:
        raise InputError(
            f"--proba names the classes {some(list(found))}, the labels hold {some(lost)}",
            "a column for every class of the labels",
            "write CLASS=COLUMN, such as yes=p1",
        )
    return found


def _probabilities(table: _Frame, columns: Sequence[str]) -> Array:
    h = np.stack([_numbers(table.frame[c], table.source, table.row) for c in columns], axis=1)
    total = h.sum(axis=1)
    wrong = np.flatnonzero((h < 0).any(axis=1) | (np.abs(total - 1.0) > _SUM))
    if len(wrong):
        got = f"probabilities {', '.join(f'{v:g}' for v in h[wrong[0]])} sum to {total[wrong[0]]:.6g}"
        todo = "export them again, or name the columns of all classes"
        raise table.refuse(wrong, got, "numbers of at least 0 that sum to 1", todo)
    return np.asarray(h / total[:, None])


def read_cases(
    path: Path,
    *,
    groupings: Mapping[str, tuple[str, ...]],
    client: str | None = None,
    label: str | None = None,
    person: str | None = None,
    prediction: str | None = None,
    proba: Sequence[str] = (),
    randomised: bool = False,
    ids: str | None = None,
) -> Cases:
    """Read and check the file.

    Raises
    ------
    InputError
        For a file that cannot be read, a column that is not there, a missing client, person, label or decision, an id
        twice, classes or groups of more than 50 values, probabilities that are none; with the lines where it is wrong.
    """
    source, header = _header(path, _WHAT)
    plain = list(dict.fromkeys(c for columns in groupings.values() for c in columns))
    sides = [one.partition("=")[2].strip() or one for one in proba]
    options = {**dict.fromkeys(plain, "--group"), **dict.fromkeys(sides, "--proba")}
    named = {"--client": client, "--label": label, "--person": person, "--prediction": prediction, "--id": ids}
    options |= {column: option for option, column in named.items() if column is not None}
    for column, option in options.items():
        _need(path, header, column, f"name the column with {option}")
    table = _load(source, list(options), _WHAT)
    warnings = []
    words = {column: _words(table, column) for column in plain}
    groups: dict[str, list[str]] = {}
    for name, columns in groupings.items():
        for column in columns:
            _few(table, column, words[column], "cut it into ranges, such as <25, 25-45, >=45")
        parts = [words[column].to_list() for column in columns]
        joined = [" and ".join(part) if all(part) else "" for part in zip(*parts, strict=True)]
        groups[name] = joined if len(columns) > 1 else parts[0]
        without = groups[name].count("")
        if without:
            what = f"{plural(without, 'row')} without a group of {' and '.join(map(repr, columns))}"
            warnings.append(f"{what} took no part in its comparisons.")
    clients = _full(table, client, "a client").to_list() if client is not None else None
    persons = _full(table, person, "a person").to_list() if person is not None else ()
    truth = _full(table, label, "a label") if label is not None else None
    todo = "classes of labels and predictions, not numbers; probabilities go into --proba"
    known = _few(table, str(label), truth, todo) if truth is not None else None
    if proba:
        of_class = _proba_columns(proba, known)
        classes, h = list(of_class), _probabilities(table, list(of_class.values()))
        if not randomised:
            ties = int(((h == h.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
            if ties:
                warnings.append(
                    f"In {plural(ties, 'row')} several classes are the most probable; the first one counts."
                )
            h = np.eye(len(classes))[h.argmax(axis=1)]
    else:
        decided = _full(table, str(prediction), "a prediction")
        classes = _ordered(list({*_few(table, str(prediction), decided, todo), *(known or ())}))
        h = np.eye(len(classes))[_codes(table, str(prediction), decided, classes)]
        if known is not None and not set(known) & set(decided.unique().to_list()):
            raise InputError(
                f"{path.name}: predictions such as {decided[0]!r} and labels such as {known[0]!r} share no class",
                "classes written alike in both columns",
                "correct one of the two",
            )
    if len(classes) < 2:
        raise InputError(f"{path.name}: one class, {classes[0]!r}", "at least 2 classes", "there is nothing to compare")
    names: Sequence[str] = [str(i + 1) for i in range(len(table.frame))]
    if ids is not None:
        text = _text(table.frame[ids], source, table.row)
        again = np.flatnonzero((~text.is_first_distinct()).to_numpy() | (text == "").to_numpy())
        if len(again):
            todo = "keep one row of each, or leave out --id"
            raise table.refuse(again, f"id {text[int(again[0])]!r} again or missing", "each id once", todo)
        names = text.to_list()
    code = _codes(table, str(label), truth, classes) if truth is not None else None
    return Cases(path, names, groups, clients, persons, code, tuple(classes), h, randomised, tuple(warnings))


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
