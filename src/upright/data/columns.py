"""The one reader of a person's tables: named columns of a file or a data frame, checked, with the lines that are wrong.

`upright.data.formats` says which files are understood. Names of columns are found under the usual spellings, a decimal
comma where commas part no fields, dates as microseconds. What was understood is told to the logger ``upright.data``.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.formats import Columns, number_of, open_columns, some

__all__ = [
    "ALIASES",
    "MISSING",
    "RENAME",
    "Column",
    "code_ids",
    "known_names",
    "names_ids",
    "read_columns",
    "sort_names",
]

Ints = NDArray[np.int64]
MISSING = ("", "nan", "null")
RENAME = "rename"  # the option of a column that nothing on the command line names
ALIASES: Mapping[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "user": "user uid customer member account visitor query qid",
        "item": "item movie product article book document doc docno track artist song sku asin",
        "value": "value rating stars score count plays weight",
        "time": "time timestamp datetime date ts",
        "rank": "rank position pos",
        "score": "score prediction predicted estimate",
        "relevant": "relevant relevance rel label",
        "grade": "relevant relevance rel label grade rating stars value",
        "count": "count popularity interactions frequency",
    }.items()
}
_FOLDED = {name: [w + end for w in words for end in ("", "id", "s")] for name, words in ALIASES.items()}
_LISTS = {f"{word}{end}" for word in ALIASES["item"] for end in ("s", "ids", "list", "idlist")}
_LISTS |= {"recommendations", "recommended", "recs", "list"}  # folded names of columns that hold a list of items
_NUMBERED = re.compile(r"(?:item|rank|top|pos|rec|#)?[_ -]?(\d+)")
_MILLISECONDS = 10**11  # seconds of the year 5138; in milliseconds, of 1973
_TRUTH = {"true": "1", "false": "0"}

_log = logging.getLogger("upright.data")


@dataclass(frozen=True)
class Column:
    """What a column must hold.

    Parameters
    ----------
    kind : str
        ``id``: text, where whole numbers that were stored as fractions lose their ``.0``. ``text``: the same, for
        classes. ``number``: finite. ``flag``: 0 or 1, true or false. ``time``: whole numbers, or dates, which become
        microseconds since 1970. ``any``: numbers of a typed file as they are, all else stripped text.
    optional : bool
        Whether the file may lack the column.
    missing : bool
        Whether cells may be empty, "" then.
    unique : bool
        Whether each value may stand there once.
    never : bool
        Whether -inf may stand among numbers: a score of what is never recommended.
    option : str
        What names another column on the command line; ``--NAME`` by default.
    """

    kind: Literal["id", "text", "number", "flag", "time", "any"] = "text"
    optional: bool = False
    missing: bool = False
    unique: bool = False
    never: bool = False
    option: str = ""


# -- names ----------------------------------------------------------------------------------------------------------


def _fold(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _match(table: Columns, wanted: Mapping[str, Column], names: Mapping[str, str | None]) -> dict[str, str]:
    """Return the column of the file for each wanted name that is there."""
    found: dict[str, str] = {}
    for name, column in wanted.items():
        given = names.get(name)
        if given is not None:
            if given in table.header:
                found[name] = given
        elif name in table.header:
            found[name] = name
        elif name not in names:
            words = _FOLDED.get(name, [name])
            close = [own for own in table.header if _fold(own) in words and own not in (*wanted, *names.values())]
            close.sort(key=lambda own: words.index(_fold(own)))
            if len(close) > 1 and not column.optional:
                todo = f"say which: {column.option or f'--{name}'} {close[0]}"
                raise table.refuse_header(f"has {some(close)} for {name!r}", f"one column of {name}s", todo)
            found |= {name: close[0]} if close else {}
    lacking = [n for n, c in wanted.items() if n not in found and (names.get(n) is not None or not c.optional)]
    if lacking:
        raise _lacking(table, lacking, wanted, names, set(found.values()))
    used = list(found.values())
    twice = [own for i, own in enumerate(used) if own in used[:i]]
    if twice:
        both = " and ".join(n for n, own in found.items() if own == twice[0])
        raise InputError(f"{table.name}: {twice[0]!r} as {both}", "a column of its own for each", "name another column")
    return found


def known_names(header: Sequence[str]) -> set[str]:
    """Return which usual names a header has: ``user``, ``item``, ``rank`` ..., and ``items`` for a column of lists."""
    folded = {_fold(own) for own in header}
    found = {name for name, words in _FOLDED.items() if folded & {*words}}
    return found | ({"item", "items"} if folded & _LISTS else set())


def names_ids(name: str) -> bool:
    """Whether a name says that ids are meant: ``id``, ``user_ids``, ``customer``."""
    known = _fold(name).removesuffix("s") in ("id", "index", *_FOLDED["user"])
    return known or bool(re.search(r"[\W_]ids?$", name, re.IGNORECASE))


def _lacking(
    table: Columns,
    lacking: Sequence[str],
    wanted: Mapping[str, Column],
    names: Mapping[str, str | None],
    used: set[str],
) -> InputError:
    left = {_fold(own): own for own in reversed(table.header) if own not in used}
    paste = []
    for name in lacking:
        asked = _fold(names.get(name) or name)
        near = difflib.get_close_matches(asked, left, n=1, cutoff=0.6)
        inside = [own for own in left if asked and asked in own]
        close = left[(near or inside)[0]] if near or inside else "COLUMN"
        option = wanted[name].option or f"--{name}"
        paste.append(f"{option}{'' if option.endswith('=') else ' '}{shlex.quote(close)}")
    todo = f"name them: {' '.join(paste)}"
    if all(wanted[name].option == RENAME for name in lacking):
        todo = f"rename columns to {' and '.join(lacking)}"
    what = " and no column ".join(repr(names.get(name) or name) for name in lacking)
    columns = ", ".join(map(repr, table.header[:40])) + (" ..." if len(table.header) > 40 else "")
    return table.refuse_header(f"has no column {what}", f"its columns are {columns}", todo)


def _no_header(table: Columns, wanted: Iterable[str]) -> InputError:
    line, width = table.unnamed.join(table.header), len(table.header)
    usual = [name for name in wanted if name != "rank" or not re.search(r"\d[.,]\d", line)]  # ranks have no fractions
    names = [*usual, *(f"column_{i}" for i in range(len(usual) + 1, width + 1))][:width]
    todo = f"write the names of the columns above it, such as {table.unnamed.join(names)}"
    return InputError(f"{table.name} has no header: line 1 is {line[:80]!r}", "names of columns in line 1", todo)


# -- lists ----------------------------------------------------------------------------------------------------------


def _unfold(table: Columns, names: Mapping[str, str | None]) -> Columns:
    """Return one row an item of a table that holds a list a row: in a column, or in a column a place."""
    structs = [s.name for s in table.frame if isinstance(s.dtype, pl.List) and isinstance(s.dtype.inner, pl.Struct)]
    if structs:
        table = _exploded(table, structs[:1], ranked=False)
        frame = table.frame.unnest(structs[0])
        table = dataclasses.replace(table, frame=frame, header=frame.columns)
    known = {*_FOLDED["item"], *_LISTS}
    item = names.get("item") or next((own for own in table.header if _fold(own) in known), None)
    if item is None:
        return _narrow(table)
    if item in table.header and isinstance(table.frame[item].dtype, pl.String):
        text = table.frame[item].fill_null("").str.strip_chars()
        inner = text.str.replace_all(r"^\[|\]$|['\"]", "")
        brackets = bool((text.str.starts_with("[") & text.str.ends_with("]")).any())
        mark = next((m for m in (",", "|", ";", " ") if inner.str.contains(m, literal=True).any()), ",")
        user = names.get("user") or next((own for own in table.header if _fold(own) in _FOLDED["user"]), None)
        once = user in table.header and bool(table.frame[user].is_unique().all())  # a row a user is no row an item
        if brackets or (once and _fold(item) in _LISTS):
            split = inner.str.replace_all(r"\s*,\s*", ",").str.split(mark)
            table = dataclasses.replace(table, frame=table.frame.with_columns(split.alias(item)))
    if item not in table.header or not isinstance(table.frame[item].dtype, pl.List | pl.Array):
        return table
    if "item" not in names:
        table = dataclasses.replace(table, frame=table.frame.rename({item: "item"}))
        item = "item"
    arrays = [s.name for s in table.frame if isinstance(s.dtype, pl.Array)]
    table = dataclasses.replace(table, frame=table.frame.with_columns(pl.col(n).arr.to_list() for n in arrays))
    lists = [s.name for s in table.frame if isinstance(s.dtype, pl.List)]
    scored = {_fold(name) for name in table.header} & {*_FOLDED["rank"], *_FOLDED["score"]} or "score" in names
    return _exploded(table, [item, *(name for name in lists if name != item)], ranked=not scored)


def _exploded(table: Columns, lists: Sequence[str], ranked: bool) -> Columns:
    size = table.frame[lists[0]].list.len().fill_null(0).to_numpy().astype(np.int64)
    for other in lists[1:]:
        odd = np.flatnonzero(table.frame[other].list.len().fill_null(0).to_numpy() != size)
        if len(odd):
            got = f"{other!r} and {lists[0]!r} hold lists of different lengths"
            raise table.refuse(odd, got, "lists of one length in a row", "correct or delete those rows")
    kept = np.flatnonzero(size)
    frame, whole = table.frame[kept], [*lists, *(["rank"] if ranked else [])]
    if ranked:
        frame = frame.with_columns(rank=pl.int_ranges(1, pl.col(lists[0]).list.len() + 1))
    frame = frame.explode(whole)
    said = [*table.said, f"a list a row in {lists[0]!r}"]
    return dataclasses.replace(
        table, frame=frame, header=frame.columns, row=np.repeat(table.row[kept], size[kept]), said=said
    )


def _narrow(table: Columns) -> Columns:
    """Return one row an item where each place of the list has a column: ``1, 2, 3`` or ``item_1, item_2``."""
    numbered = {own: int(m[1]) for own in table.header if (m := _NUMBERED.fullmatch(own.lower().strip()))}
    wide = sorted(numbered, key=lambda own: numbered[own])
    places = [numbered[own] for own in wide]
    if len(wide) < 2 or places not in ([*range(len(wide))], [*range(1, len(wide) + 1)]):
        return table
    frame = table.frame.select(pl.exclude(wide), item=pl.concat_list(pl.col(wide).cast(pl.String)))
    found = _exploded(dataclasses.replace(table, frame=frame), ["item"], ranked=True)
    there = ~found["item"].fill_null("").str.strip_chars().str.to_lowercase().is_in(MISSING)
    said = [*table.said, f"a column a place, {wide[0]!r} the first"]
    return dataclasses.replace(found.take(np.flatnonzero(there.to_numpy())), said=said)


# -- reading --------------------------------------------------------------------------------------------------------


def read_columns(
    source: Any,
    wanted: Mapping[str, Column],
    names: Mapping[str, str | None] = {},
    *,
    encoding: str = "utf-8",
    argument: str = "",
    lists: bool = False,
) -> Columns:
    """Read the wanted columns and check every cell.

    Parameters
    ----------
    source : path, data frame, or Columns
        What `open_columns` opens, or has opened.
    wanted : mapping of name to Column
    names : mapping of name to str or None
        The column of the file for a name. A name that is no key is looked for as it is, then under the usual ones
        (``user_id``, ``userId``, ``customer`` ...); None takes no other name than the own one.
    encoding, argument : str
        As in `open_columns`.
    lists : bool
        Whether a row may hold a list: in a column, or in a column a place. It becomes a row an item, with ``rank``.

    Returns
    -------
    Columns
        With the wanted columns that are there under their own names.

    Raises
    ------
    InputError
        As `open_columns`, and with the lines for every cell that does not fit. A column that is not there is refused
        with the words to paste.
    """
    table = source if isinstance(source, Columns) else open_columns(source, encoding, argument=argument)
    if table.unnamed and not (known_names(table.header) or {*table.header} & {*wanted, *names.values()}):
        raise _no_header(table, wanted)
    table = _unfold(table, names) if lists else table
    found = _match(table, wanted, names)
    said = [*table.said, ", ".join(name if name == own else f"{name} = {own}" for name, own in found.items())]
    columns = []
    for name, own in found.items():
        series, more = _READ[wanted[name].kind](table, own, wanted[name])
        columns.append(series.alias(name))
        said += more
    _log.info("%s: %s", table.name, "; ".join([f"{len(table):,} rows", *said]))
    done = dataclasses.replace(table, frame=pl.DataFrame(columns), header=[*found], said=said, names=found)
    for name, own in found.items():
        if wanted[name].unique and len(again := done.repeats(name)):
            got, todo = f"{own} {done[name][int(again[0])]!r} again", f"keep one row of each {name}"
            raise done.refuse(again, got, f"each {name} once", todo)
    return done


_Read = tuple[pl.Series, list[str]]


def _missing(table: Columns, own: str, rows: Ints, accepted: str, todo: str) -> InputError:
    return table.refuse(rows, f"{len(rows)} missing {own!r}", accepted, todo)


def _texts(table: Columns, own: str, column: Column) -> _Read:
    """Return stripped text, "" where a cell is empty; whole numbers lose ``.0``."""
    series, said = table.frame[own], list[str]()
    if series.dtype.is_float():
        values = series.cast(pl.Float64).to_numpy()
        whole = np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2.0**53)
        odd = np.flatnonzero(np.isfinite(values) & ~whole)
        if column.kind == "id" and len(odd):  # from 2**53 on, neighbouring integers share one float: ids are spoilt
            got, todo = f"{own!r} is {values[odd[0]]:.17g}", "store the ids as integers or strings"
            raise table.refuse(odd, got, "whole numbers or text as ids", todo)
        if not len(odd):
            plain = np.where(whole, values, 0).astype(np.int64).astype(str)
            series = pl.Series(own, np.where(whole, plain, ""))
    try:
        text = series.cast(pl.String).fill_null("").str.strip_chars()
    except pl.exceptions.PolarsError:
        what, todo = "numbers or text" + " as ids" * (column.kind == "id"), "name another column"
        raise InputError(f"{table.name}: {own!r} has type {series.dtype}", what, todo) from None
    text = text.set(text.str.to_lowercase().is_in(MISSING), "")
    if series.dtype == pl.String and table.frame[own].dtype == pl.String:
        fractions = sorted(text.filter(text.str.contains(r"^[+-]?\d+\.0+$")).unique().to_list())
        plain_of = {one: one.partition(".")[0] for one in fractions}
        merged = text.is_in([*plain_of.values()]).any() or len({*plain_of.values()}) < len(plain_of)
        if plain_of and not (column.kind == "id" and merged):  # two ids stay two; two spellings of a class are one
            text, said = text.replace(plain_of), [f"{fractions[0]} of {own!r} is {plain_of[fractions[0]]}"]
    if not column.missing:
        empty = np.flatnonzero((text == "").to_numpy())
        if len(empty):
            accepted = "an id in every row" if column.kind == "id" else "a value in every row"
            raise _missing(table, own, empty, accepted, "fill in or delete those rows")
    return text, said


def _pointed(text: pl.Series) -> _Read:
    """Return numbers with decimal points where they all have commas."""
    comma = text.str.contains(r"^[+-]?\d+,\d+$")
    if not comma.any() or text.filter(~comma).str.contains(".", literal=True).any():
        return text, []
    return text.str.replace(r"^([+-]?\d+),(\d+)$", "$1.$2"), [f"decimal comma in {text.name!r}"]


def _numbers(table: Columns, own: str, column: Column) -> _Read:
    """Return finite float64, NaN where a cell may be empty."""
    series, said = table.frame[own], list[str]()
    if series.dtype == pl.String:
        text = series.fill_null("").str.strip_chars()
        pointed, said = _pointed(text)
        numbers = pointed.cast(pl.Float64, strict=False)
    elif series.dtype.is_numeric() or series.dtype == pl.Boolean:
        numbers, text = series.cast(pl.Float64), series.cast(pl.String).fill_null("")
    else:
        got = f"{table.name}: {own!r} has type {series.dtype}"
        raise InputError(got, "a column of numbers", "convert it, or name another")
    accepted, todo = "a finite number in every row", "correct or delete those rows"
    blank = (text.str.to_lowercase().is_in(MISSING) if column.missing else text == "").to_numpy()
    if blank.any() and not column.missing:
        raise _missing(table, own, np.flatnonzero(blank), accepted, todo)
    values = np.where(blank, math.nan, numbers.to_numpy().astype(np.float64))
    bad = np.flatnonzero(numbers.is_null().to_numpy() & ~blank)
    if len(bad):
        raise table.refuse(bad, f"{own!r} is {text[int(bad[0])]!r}, not a number", accepted, todo)
    wild = np.flatnonzero(~np.isfinite(values) & ~blank & ~(column.never & np.isneginf(values)))
    if len(wild):
        raise table.refuse(wild, f"{own!r} is {text[int(wild[0])]!r}, not finite", accepted, todo)
    return pl.Series(own, values), said


def _flags(table: Columns, own: str, column: Column) -> _Read:
    """Return booleans."""
    series = table.frame[own].cast(pl.String).fill_null("").str.strip_chars()
    lower = series.str.to_lowercase()
    flag = lower.replace(_TRUTH).cast(pl.Float64, strict=False)
    odd = np.flatnonzero((~flag.is_in([0.0, 1.0])).fill_null(True).to_numpy())
    if len(odd):
        got = f"{own!r} is {series[int(odd[0])]!r}"
        raise table.refuse(odd, got, "0 or 1 in every row (or false, true)", "correct those rows")
    return flag == 1.0, [f"true and false of {own!r} as 1 and 0"] if lower.is_in([*_TRUTH]).any() else []


def _times(table: Columns, own: str, column: Column) -> _Read:
    """Return times as int64; dates become microseconds since 1970."""
    series, said = table.frame[own], list[str]()
    if series.dtype in (pl.Datetime, pl.Date):
        series, said = series.dt.epoch("us"), [f"{own!r} in microseconds since 1970"]
    if series.dtype == pl.String:
        text = series.str.strip_chars()
        whole = text.cast(pl.Int64, strict=False)
        if whole.null_count():
            dates = _dates(text)
            if dates is not None:
                whole, said = dates, [f"{own!r} holds dates, in microseconds since 1970"]
        if not whole.null_count():
            return whole, said or _epoch(own, whole)  # not by way of float64, which rounds nanoseconds
    elif series.dtype.is_integer() and not series.null_count():
        whole = series.cast(pl.Int64)
        return whole, said or _epoch(own, whole)
    values = _numbers(dataclasses.replace(table, frame=table.frame.with_columns(series)), own, column)[0].to_numpy()
    odd = np.flatnonzero((values != np.floor(values)) | (np.abs(values) >= 2.0**53))
    if len(odd):
        got = f"{own!r} is {values[odd[0]]:.17g}, not a whole number that fits"
        raise table.refuse(odd, got, "whole numbers, for example seconds since 1970", "round the times")
    return pl.Series(own, values.astype(np.int64)), said


def _dates(text: pl.Series) -> pl.Series | None:
    """Return microseconds since 1970 of ISO dates and times, None where not every cell is one."""
    if not text.str.contains(r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?\s*(Z|[+-]\d{2}:?\d{2})?)?$").all():
        return None
    iso = text.str.replace("T", " ", literal=True).str.replace(r"^(\d{4}-\d{2}-\d{2})$", "$1 00:00")
    iso = iso.str.replace(r"^(.{16})(\s*(?:Z|[+-].*)?)$", "$1:00$2").str.replace(r"\s*Z$", "+00:00")
    zoned = iso.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%z", strict=False, time_unit="us", time_zone="UTC")
    plain = iso.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us")
    found = zoned.dt.epoch("us").fill_null(plain.dt.epoch("us"))
    return None if found.null_count() else found


def _epoch(own: str, whole: pl.Series) -> list[str]:
    top = abs(int(whole.max() or 0))  # type: ignore[arg-type]
    unit = "seconds" if 10**8 <= top < _MILLISECONDS else "milliseconds" if _MILLISECONDS <= top < 10**14 else ""
    return [f"{own!r} in {unit} since 1970"] if unit else []


def _as_is(table: Columns, own: str, column: Column) -> _Read:
    series = table.frame[own]
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        got = f"{table.name}: {own!r} has type {series.dtype}"
        raise InputError(got, "numbers, text, booleans or dates", "leave the column out")
    if series.dtype.is_numeric():
        return series, []
    return _pointed(series.cast(pl.String).str.strip_chars().fill_null(""))


_READ: Mapping[str, Callable[[Columns, str, Column], _Read]] = {
    "id": _texts,
    "text": _texts,
    "number": _numbers,
    "flag": _flags,
    "time": _times,
    "any": _as_is,
}


# -- order ----------------------------------------------------------------------------------------------------------


def code_ids(text: pl.Series) -> tuple[Ints, tuple[str, ...]]:
    """Code ids densely in sorted order: by number when all are whole numbers, else by text.

    The order of rows can change no code.
    """
    distinct = text.unique().to_list()
    whole = bool(text.str.contains(r"^[+-]?[0-9]+$").all())
    distinct.sort(key=(lambda one: (int(one), one)) if whole else None)
    codes = text.replace_strict(distinct, np.arange(len(distinct)), return_dtype=pl.Int64)
    return codes.to_numpy().astype(np.int64), tuple(distinct)


def sort_names(names: Iterable[str]) -> list[str]:
    """Sort names by number where all are numbers, else as text."""
    numbers = {name: number_of(name) for name in names}
    return sorted(numbers) if any(map(math.isnan, numbers.values())) else sorted(numbers, key=lambda n: (numbers[n], n))
