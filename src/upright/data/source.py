"""A file with a header, and the way from one of its rows to the line a person sees in an editor."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["Source", "check_header", "diagnose", "open_source", "unreadable"]

_TEXT = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")
_SHOWN = 5  # line numbers named in an error before "and n more"


@dataclass(frozen=True)
class Source:
    """A file and the way from a data row to the line a person sees in an editor."""

    path: Path
    separator: str | None

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the first line (1-based) and the fields of each record, header included, leading blanks skipped."""
        with self.path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, delimiter=self.separator or ",")
            start, begun = 1, False
            for fields in reader:
                begun = begun or bool(fields)
                if begun:
                    yield start, fields
                start = reader.line_num + 1

    def lines(self, rows: Sequence[int] | NDArray[Any]) -> dict[int, int]:
        """Map 0-based data rows to 1-based lines (the header is line 1); in Parquet to 1-based rows."""
        wanted = {int(row) for row in rows}
        if self.separator is None:
            return {row: row + 1 for row in wanted}
        found: dict[int, int] = {}
        for record, (line, _) in enumerate(self.records(), start=-1):
            if record in wanted:
                found[record] = line
                if len(found) == len(wanted):
                    break
        return found

    def where(self, rows: Sequence[int] | NDArray[Any]) -> str:
        """Say in words where rows stand: ``lines 3, 7 and 12``."""
        lines = sorted(self.lines(rows[:_SHOWN]).values())
        word = ("row" if self.separator is None else "line") + ("s" if len(rows) > 1 else "")
        more = len(rows) - len(lines)
        text = ", ".join(str(line) for line in lines)
        if more:
            return f"{word} {text} and {more} more"
        return f"{word} {' and '.join(text.rsplit(', ', 1))}"

    def refuse(self, rows: Sequence[int] | NDArray[Any], got: str, accepted: str, todo: str) -> InputError:
        """Return the error about some data rows, their lines in front."""
        return InputError(f"{self.path.name} {self.where(rows)}: {got}", accepted, todo)

    def header(self) -> list[str]:
        """Return the column names as they stand in the file; empty when there is no line with text."""
        if self.separator is None:
            return list(pl.read_parquet_schema(self.path))
        return next((fields for _, fields in self.records()), [])


def open_source(path: Path) -> Source:
    """Return the source of an existing CSV, TSV or Parquet file that is not empty, told by its ending."""
    if not path.is_file():
        raise InputError(f"no file {path}", "a CSV, TSV or Parquet file", "check the path")
    suffix = path.suffix.lower()
    if suffix not in _TEXT and suffix not in _PARQUET:
        raise InputError(
            f"{path.name} ends in {suffix or 'nothing'!r}",
            f"{', '.join((*_TEXT, *_PARQUET))} (by its ending)",
            "convert or rename the file",
        )
    if not path.stat().st_size:
        raise InputError(
            f"{path.name} is empty", "a header line and one interaction a row", "check how it was exported"
        )
    return Source(path, _TEXT.get(suffix))


def check_header(source: Source, wanted: list[str]) -> None:
    """Refuse headers that lack or repeat a wanted column."""
    try:
        header = source.header()
    except UnicodeDecodeError as error:
        raise _not_utf8(source) from error
    except (pl.exceptions.PolarsError, OSError, csv.Error) as error:
        raise unreadable(source, error) from error
    name = source.path.name
    if not any(header):
        raise InputError(f"{name} is empty", "a header line and one interaction a row", "check how it was exported")
    if len(set(wanted)) < len(wanted):
        raise InputError(
            f"one column for two purposes: {wanted}", "a column of its own for each", "name another column"
        )
    repeated = [column for column in wanted if header.count(column) > 1]
    if repeated:
        raise InputError(f"{name} line 1 names {repeated[0]!r} twice", "each column once", "rename one of them")
    missing = [column for column in wanted if column not in header]
    if not missing:
        return
    other = [mark for mark in (",", "\t", ";", "|") if len(header) == 1 and mark in header[0]]
    if other:
        raise InputError(
            f"{name} line 1 is one field: {header[0]!r}",
            f"fields separated by {source.separator!r}, as the ending says",
            f"it seems to be separated by {other[0]!r}: rename it to .tsv for tabs, or export it again with commas",
        )
    hints = []
    for column in missing:
        folded = {found.lower(): found for found in header}
        close = [folded[match] for match in difflib.get_close_matches(column.lower(), folded, n=3, cutoff=0.5)]
        close = close or [found for found in header if column.lower() in found.lower()]
        hints.append(
            f"for {column!r} the closest is {' or '.join(map(repr, close))}" if close else f"none like {column!r}"
        )
    todo = (
        "name the columns with user=, item=, value= and time= "
        "(--set user_column=, item_column=, value_column= and time_column=)"
    )
    raise InputError(
        f"{name} line 1 has no column {' and no column '.join(map(repr, missing))} ({'; '.join(hints)})",
        f"its columns are {', '.join(map(repr, header))}",
        f"{todo}; value=None (--set value_column=none) reads a log without ratings",
    )


def unreadable(source: Source, error: Exception) -> InputError:
    """Return the error for a file that its reader refuses, with the reader's first line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(f"{source.path.name} cannot be read: {first}", "a whole file of its kind", "export it again")


def _not_utf8(source: Source) -> InputError:
    with source.path.open("rb") as handle:
        for line, text in enumerate(handle, start=1):
            try:
                text.decode("utf-8")
            except UnicodeDecodeError:
                return InputError(f"{source.path.name} line {line} is not UTF-8", "UTF-8 text", "save it as UTF-8")
    return InputError(f"{source.path.name} is not UTF-8", "UTF-8 text", "save it as UTF-8")


def diagnose(source: Source, error: Exception) -> InputError:
    """Find the line that polars stumbled over."""
    try:
        records = source.records()
        _, header = next(records)
        long = [line for line, fields in records if len(fields) > len(header)]
    except UnicodeDecodeError:
        return _not_utf8(source)
    except csv.Error:
        # A stray quote swallows the rest of the file; what polars says is then as good as it gets.
        return unreadable(source, error)
    if long:
        shown = ", ".join(map(str, long[:_SHOWN])) + (f" and {len(long) - _SHOWN} more" if len(long) > _SHOWN else "")
        return InputError(
            f"{source.path.name} has more fields than its header in line{'s' if len(long) > 1 else ''} {shown}",
            f"{len(header)} fields, as in line 1",
            "put fields that hold the separator in double quotes",
        )
    return unreadable(source, error)
