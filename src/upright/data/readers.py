"""A person's CSV, TSV or Parquet file, read with polars and refused with line numbers.

Every cell is first read as text, so that a bad one can be shown as it stands in the file. Nothing is guessed
and no row is dropped in silence; only wholly blank lines are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.source import Source, check_header, diagnose, open_source, unreadable

__all__ = ["RawLog", "read_log", "read_user_columns"]

_MISSING = ("", "nan", "null")


@dataclass(frozen=True, eq=False)
class RawLog:
    """Columns of a checked file.

    Parameters
    ----------
    user, item : ndarray of int64, shape (N,)
        Codes in the sorted order of the ids, so that the order of rows cannot change them.
    value : ndarray of float64, shape (N,)
    time : ndarray of int64, shape (N,), or None
    user_ids, item_ids : tuple of str
        Id of each code.
    row : ndarray of int64, shape (N,)
        0-based data row of the file each entry comes from.
    source : Source
        Says where rows stand.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]
    time: NDArray[np.int64] | None
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    row: NDArray[np.int64]
    source: Source


def read_log(
    path: str | Path,
    *,
    user: str,
    item: str,
    value: str | None,
    time: str | None,
    duplicates: Literal["error", "last", "sum"],
    ids: Literal["auto", "text"],
) -> RawLog:
    """Read, check and code one file; `upright.data.interactions.read_interactions` documents the arguments.

    Raises
    ------
    InputError
        For everything that is wrong with the file, with the lines where it is wrong.
    """
    for option, given, choices in (
        ("duplicates", duplicates, ("error", "last", "sum")),
        ("ids", ids, ("auto", "text")),
    ):
        if given not in choices:
            raise InputError(f"{option} = {given!r}", " | ".join(map(repr, choices)), "pass one of them")
    source = open_source(Path(path))
    wanted = [name for name in (user, item, value, time) if name is not None]
    check_header(source, wanted)
    frame = _read(source, wanted)
    row = np.arange(len(frame), dtype=np.int64)
    if source.separator is not None:
        blank = _blank_rows(source, frame)
        if len(blank):
            row = np.setdiff1d(row, blank)
            frame = frame[row]
    if not len(frame):
        raise InputError(
            f"{source.path.name} has a header and no rows", "one interaction a row", "check how the file was exported"
        )
    users, user_ids = _codes(frame[user], source, row, ids)
    items, item_ids = _codes(frame[item], source, row, ids)
    values = np.ones(len(frame)) if value is None else _numbers(frame[value], source, row)
    times = None if time is None else _whole_numbers(frame[time], source, row)
    keep, values = _merge_duplicates(users, items, values, times, source, row, duplicates)
    return RawLog(
        users[keep], items[keep], values, None if times is None else times[keep], user_ids, item_ids, row[keep], source
    )


def _read(source: Source, wanted: list[str]) -> pl.DataFrame:
    """Read the wanted columns; text files come as text."""
    try:
        if source.separator is None:
            return pl.read_parquet(source.path, columns=wanted)
        return pl.read_csv(source.path, separator=source.separator, infer_schema=False, columns=wanted)
    except pl.exceptions.NoDataError:
        return pl.DataFrame({name: pl.Series([], dtype=pl.String) for name in wanted})
    except (pl.exceptions.PolarsError, OSError) as error:
        if source.separator is None:
            raise unreadable(source, error) from error
        raise diagnose(source, error) from error


def _blank_rows(source: Source, frame: pl.DataFrame) -> NDArray[np.int64]:
    """Return the rows that are blank lines; a line of separators alone is no blank line but a row without ids."""
    empty = np.flatnonzero(frame.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy())
    if not len(empty):
        return empty
    candidates = set(empty.tolist())
    blank = [row for row, (_, fields) in enumerate(source.records(), start=-1) if row in candidates and not fields]
    return np.array(blank, dtype=np.int64)


def _text(column: pl.Series, source: Source, row: NDArray[np.int64]) -> pl.Series:
    """Return ids as stripped text; whole numbers that a file stores as floats lose their ``.0``."""
    if column.dtype.is_float():
        values = column.cast(pl.Float64).to_numpy()
        # From 2**53 on, neighbouring integers share one float: such ids are already spoilt.
        odd = np.flatnonzero(np.isfinite(values) & ((values != np.floor(values)) | (np.abs(values) >= 2.0**53)))
        if len(odd):
            raise source.refuse(
                row[odd], f"{column.name!r} is {values[odd[0]]:.17g}", "whole numbers or text as ids",
                "store the ids as integers or strings",
            )  # fmt: skip
        whole = np.where(np.isfinite(values), values, 0).astype(np.int64)
        return pl.Series(column.name, np.where(np.isfinite(values), whole.astype(str), ""))
    try:
        return column.cast(pl.String).fill_null("").str.strip_chars()
    except pl.exceptions.PolarsError as error:
        raise InputError(
            f"{source.path.name}: {column.name!r} has type {column.dtype}",
            "numbers or text as ids",
            "name another column",
        ) from error


def _codes(
    column: pl.Series, source: Source, row: NDArray[np.int64], ids: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Code ids densely in sorted order: by number when all are whole numbers, else by text."""
    text = _text(column, source, row)
    missing = np.flatnonzero(text.str.to_lowercase().is_in(_MISSING).to_numpy())
    if len(missing):
        raise source.refuse(
            row[missing], f"{len(missing)} missing {column.name!r}", "an id in every row",
            "fill in or delete those rows",
        )  # fmt: skip
    numeric = text.str.contains(r"^[+-]?[0-9]+$").to_numpy()
    odd = np.flatnonzero(~numeric)
    if ids == "auto" and 0 < len(odd) < len(text) / 2:
        raise source.refuse(
            row[odd], f"{column.name!r} is {text[int(odd[0])]!r}, yet a number in {int(numeric.sum())} of "
            f"{len(text)} rows", "ids that are all numbers, or mostly text",
            "correct those rows, or pass ids='text' (--set ids=text) when the mixture is right",
        )  # fmt: skip
    distinct = text.unique().to_list()
    if len(odd):
        distinct.sort()
    else:
        distinct.sort(key=lambda one: (int(one), one))
    codes = text.replace_strict(distinct, np.arange(len(distinct)), return_dtype=pl.Int64)
    return codes.to_numpy().astype(np.int64), tuple(distinct)


def _numbers(column: pl.Series, source: Source, row: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a column of finite numbers."""
    name = column.name
    if column.dtype == pl.String:
        text = column.fill_null("").str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
    elif column.dtype.is_numeric() or column.dtype == pl.Boolean:
        numbers = column.cast(pl.Float64)
        text = column.cast(pl.String).fill_null("")
    else:
        raise InputError(
            f"{source.path.name}: {name!r} has type {column.dtype}",
            "a column of numbers",
            "convert it, or name another",
        )
    accepted, todo = "a finite number in every row", "correct or delete those rows"
    blank = np.flatnonzero((text == "").to_numpy())
    if len(blank):
        raise source.refuse(row[blank], f"{len(blank)} missing {name!r}", accepted, todo)
    bad = np.flatnonzero(numbers.is_null().to_numpy())
    if len(bad):
        raise source.refuse(row[bad], f"{name!r} is {text[int(bad[0])]!r}, not a number", accepted, todo)
    values: NDArray[np.float64] = numbers.to_numpy().astype(np.float64)
    wild = np.flatnonzero(~np.isfinite(values))
    if len(wild):
        raise source.refuse(row[wild], f"{name!r} is {text[int(wild[0])]!r}, not finite", accepted, todo)
    return values


def _whole_numbers(column: pl.Series, source: Source, row: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return times as int64; a date-time column becomes microseconds since 1970."""
    if column.dtype == pl.Datetime or column.dtype == pl.Date:
        column = column.dt.epoch("us")
    if column.dtype == pl.String:
        whole = column.str.strip_chars().cast(pl.Int64, strict=False)
        if not whole.null_count():
            # Not by way of float64, which rounds nanoseconds.
            return whole.to_numpy().astype(np.int64)
    elif column.dtype.is_integer() and not column.null_count():
        return column.cast(pl.Int64).to_numpy().astype(np.int64)
    values = _numbers(column, source, row)
    odd = np.flatnonzero((values != np.floor(values)) | (np.abs(values) >= 2.0**53))
    if len(odd):
        raise source.refuse(
            row[odd], f"{column.name!r} is {values[odd[0]]:.17g}, not a whole number that fits",
            "whole numbers, for example seconds since 1970", "round the times",
        )  # fmt: skip
    return values.astype(np.int64)


def _merge_duplicates(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    value: NDArray[np.float64],
    time: NDArray[np.int64] | None,
    source: Source,
    row: NDArray[np.int64],
    how: str,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the entries to keep, in order, and their values."""
    when = np.arange(len(user)) if time is None else time
    order = np.lexsort((np.arange(len(user)), when, item, user))
    # Within a run of one pair the last entry is the latest in time, ties by file order.
    last = np.append((np.diff(user[order]) != 0) | (np.diff(item[order]) != 0), True)
    if last.all():
        return np.arange(len(user)), value
    if how == "error":
        by_row = np.lexsort((np.arange(len(user)), item, user))
        again = np.append(False, (np.diff(user[by_row]) == 0) & (np.diff(item[by_row]) == 0))
        repeats = np.sort(by_row[again])
        raise source.refuse(
            row[repeats], f"{len(repeats)} rows repeat an earlier pair of user and item", "each pair once",
            "pass duplicates='last' (--set duplicates=last) to keep the latest row of each pair, or duplicates='sum' "
            "(--set duplicates=sum) to add their values",
        )  # fmt: skip
    keep = order[last]
    starts = np.append(0, np.flatnonzero(last)[:-1] + 1)
    merged = np.add.reduceat(value[order], starts) if how == "sum" else value[keep]
    back = np.argsort(keep)
    return keep[back], merged[back]


def read_user_columns(path: str | Path, columns: Sequence[str], user: str = "user") -> dict[str, dict[str, str]]:
    """Read attributes of users: one row a user, "" where an attribute is missing.

    Returns
    -------
    dict of column name to (id of a user to its value as text)

    Raises
    ------
    InputError
        For a file that cannot be read, missing columns, a row without a user, a user with two rows.
    """
    source = open_source(Path(path))
    check_header(source, [user, *columns])
    frame = _read(source, [user, *columns])
    row = np.arange(len(frame), dtype=np.int64)
    if source.separator is not None:
        blank = _blank_rows(source, frame)
        row = np.setdiff1d(row, blank)
        frame = frame[row]
    ids = [str(v).strip() if v is not None else "" for v in frame[user].to_list()]
    empty = np.flatnonzero([not v for v in ids])
    if len(empty):
        raise source.refuse(row[empty], f"{len(empty)} rows without a {user}", "a user in every row", "remove them")
    first: dict[str, int] = {}
    again = [i for i, v in enumerate(ids) if first.setdefault(v, i) != i]
    if again:
        raise source.refuse(
            row[again], f"{len(again)} users with more than one row, the first is {ids[again[0]]!r}", "one row a user",
            "keep one row of each",
        )  # fmt: skip
    return {name: dict(zip(ids, [_plain(v) for v in frame[name].to_list()], strict=True)) for name in columns}


def _plain(value: Any) -> str:
    """Text of a cell; "" where a program wrote that nothing is there."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("nan", "null", "none", "na") else text
