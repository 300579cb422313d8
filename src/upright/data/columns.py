"""The one reader of a person's tables: named columns of a file or a data frame, checked, with the lines that are wrong.

===================  ================================================================================================
text with a header   separated by ``,`` ``;`` tab or ``|``, whatever the ending; quotes, a byte order mark, blank lines;
                     UTF-8, or another ``encoding``; ``.gz`` and ``.zst``; a decimal comma where commas part no fields
RecBole              typed headers (``user_id:token``); no quotes
MovieLens            ``u.data``: user, item, value, time by tabs, without a header
TREC                 runs (``query Q0 document rank score tag``; the score orders) and qrels (``query 0 document rel``)
Parquet              also LensKit's lists of items in one column
JSON                 lines, split at line feeds alone, or one array of objects
data frames          of polars, pandas or Arrow
===================  ================================================================================================

Every cell is first read as text, so that a bad one can be shown as it stands in the file. No row is dropped in silence;
only wholly blank lines are passed over. What was understood is told to the logger ``upright.data``.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import json
import logging
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = [
    "MISSING",
    "Column",
    "Columns",
    "code_ids",
    "json_rows",
    "known_names",
    "open_columns",
    "read_columns",
    "some",
]

Ints = NDArray[np.int64]
MISSING = ("", "nan", "null")
ITEM = (
    "item",
    "movie",
    "product",
    "article",
    "book",
    "document",
    "doc",
    "docno",
    "track",
    "artist",
    "song",
    "sku",
    "asin",
)
ALIASES: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "uid", "customer", "member", "account", "visitor", "query", "qid"),
    "item": ITEM,
    "value": ("value", "rating", "stars", "score", "count", "plays", "weight"),
    "time": ("time", "timestamp", "datetime", "date", "ts"),
    "rank": ("rank", "position", "pos"),
    "score": ("score", "prediction", "predicted", "estimate"),
    "relevant": ("relevant", "relevance", "rel", "label"),
    "grade": ("relevant", "relevance", "rel", "label", "grade", "rating", "stars", "value"),
    "count": ("count", "popularity", "interactions", "frequency"),
}
_FOLDED = {name: [w + end for w in words for end in ("", "id", "s")] for name, words in ALIASES.items()}
_MARKS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
_ENDINGS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t", ".user": "\t", ".item": "\t"}
_TYPED = re.compile(r"(.+):(token|token_seq|float|float_seq)")
_NUMBERED = re.compile(r"(?:item|rank|top|pos|rec|#)?[_ -]?(\d+)")
_PATH = "check the path"
_HEAD = 1 << 16  # bytes that are looked at before a file is read
_SHOWN = 5  # line numbers or names in a message before "and n more"
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
    option : str
        What names another column on the command line; ``--NAME`` by default.
    """

    kind: Literal["id", "text", "number", "flag", "time", "any"] = "text"
    optional: bool = False
    missing: bool = False
    unique: bool = False
    option: str = ""


def some(names: Sequence[Any]) -> str:
    """Write the first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _and(text: str) -> str:
    return " and ".join(text.rsplit(", ", 1))


@dataclass(frozen=True, eq=False)
class Columns:
    """A table that was opened, and the way from its rows to the lines that a person sees in an editor.

    Parameters
    ----------
    name : str
        Of the file.
    header : list of str
        Names of its columns, without types.
    frame : polars.DataFrame
        N rows; once read, the wanted columns alone.
    row : ndarray of int64, shape (N,)
        0-based data row of the source each row comes from.
    said : list of str
        What was understood beyond the usual.
    names : mapping of str to str
        Column of the source for each name that was wanted and is there.
    """

    name: str
    header: list[str]
    frame: pl.DataFrame
    row: Ints
    said: list[str] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)
    _lines: Callable[[], Iterator[int]] | None = None  # the line of each data row; None counts rows
    _first: int = 1  # number of the first row where rows are counted

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, name: str) -> pl.Series:
        return self.frame[name]

    def __contains__(self, name: object) -> bool:
        return name in self.frame.columns

    def array(self, name: str) -> NDArray[Any]:
        """Return a column as an array, text as objects."""
        return self.frame[name].to_numpy()

    def take(self, rows: Ints) -> Columns:
        """Return some rows, in the order given."""
        return dataclasses.replace(self, frame=self.frame[rows], row=self.row[rows])

    def where(self, rows: Sequence[int] | Ints) -> str:
        """Say in words where rows stand: ``lines 3, 7 and 12``."""
        wanted = {int(self.row[r]): None for r in rows}
        places = list(wanted)[:_SHOWN]
        if self._lines is None:
            lines = sorted(p + self._first for p in places)
        else:
            left, lines = set(places), []
            for place, line in enumerate(self._lines()):
                if place in left:
                    lines.append(line)
                    left.discard(place)
                    if not left:
                        break
        word = ("row" if self._lines is None else "line") + ("s" if len(wanted) > 1 else "")
        text, more = ", ".join(map(str, lines)), len(wanted) - len(lines)
        counted = " (the first is 0)" if self._lines is None and not self._first else ""
        return (
            f"{word} {text} and {more} more{counted}"
            if more
            else f"{word} {' and '.join(text.rsplit(', ', 1))}{counted}"
        )

    def refuse(self, rows: Sequence[int] | Ints, got: str, accepted: str, todo: str) -> InputError:
        """Return the error about some rows, with their lines in front."""
        return InputError(f"{self.name} {self.where(rows)}: {got}", accepted, todo)

    def refuse_header(self, got: str, accepted: str, todo: str) -> InputError:
        """Return the error about the names of columns."""
        return InputError(f"{self.name}{'' if self._lines is None else ' line 1'} {got}", accepted, todo)


# -- opening --------------------------------------------------------------------------------------------------------


def open_columns(source: Any, encoding: str = "utf-8") -> Columns:
    """Read a table whole: the columns of text files as text, null where a cell is empty.

    Parameters
    ----------
    source : path, or a data frame of polars, pandas or Arrow
    encoding : str
        Of a text file.

    Raises
    ------
    InputError
        For a file that is not there, empty, of another kind, in another encoding, or that has rows with more fields
        than its header, a column twice, no row.
    """
    table = _file(Path(source).expanduser(), encoding) if isinstance(source, str | Path) else _frame(source)
    if not any(table.header):
        raise _empty(table.name)
    twice = [name for i, name in enumerate(table.header) if name in table.header[:i]]
    if twice:
        raise table.refuse_header(f"names {twice[0]!r} twice", "each column once", "rename one of them")
    if not len(table):
        todo = "check how the file was exported"
        raise InputError(f"{table.name} has a header and no rows", "one row at least", todo)
    return table


def _empty(name: str) -> InputError:
    return InputError(f"{name} is empty", "a header line and one row a line", "check how it was exported")


def _frame(source: Any) -> Columns:
    try:
        frame = source if isinstance(source, pl.DataFrame) else pl.DataFrame(source)
    except Exception as error:  # whatever a foreign object raises
        got = f"{type(source).__name__}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise InputError(got, "a path, or a data frame of polars, pandas or Arrow", "pass one of these") from None
    return Columns("the data frame", frame.columns, frame, np.arange(len(frame)), _first=0)


def _file(path: Path, encoding: str) -> Columns:
    if not path.is_file():
        got = f"{path} is a folder" if path.is_dir() else f"no file {path}"
        raise InputError(got, "a table: CSV, TSV, Parquet, JSON lines and others", "check the path")
    data, start = _start(path)
    if not start.strip():
        raise _empty(path.name)
    if start[:4] == b"PAR1":
        return _parquet(path)
    if start[:2] == b"PK" or (
        b"\0" in start and not encoding.lower().startswith(("utf-16", "utf-32", "utf16", "utf32"))
    ):
        todo = "save it as CSV or Parquet"
        raise InputError(f"{path.name} is no text and no Parquet", "CSV, TSV, Parquet, JSON lines", todo)
    if not re.fullmatch(r"utf-?8(-sig)?", encoding, re.IGNORECASE):
        data = _decoded(path, path.read_bytes() if data is None else data, encoding)
        start = data[:_HEAD]
    text = start.decode("utf-8", errors="ignore").removeprefix("﻿")
    if text.lstrip()[:1] in ("{", "["):
        return _json(path, data, array=text.lstrip()[0] == "[")
    return _delimited(path, data, text, cut=len(start) >= _HEAD)


def _start(path: Path) -> tuple[bytes | None, bytes]:
    """Return the bytes of a compressed file, and the first ones of any."""
    if path.suffix.lower() not in (".gz", ".zst", ".bz2"):
        with path.open("rb") as handle:
            return None, handle.read(_HEAD)
    import pyarrow as pa

    try:
        data = pa.input_stream(path, compression="detect").read()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    return data, data[:_HEAD]


def _decoded(path: Path, data: bytes, encoding: str) -> bytes:
    try:
        return data.decode(encoding).removeprefix("﻿").encode()
    except LookupError:
        todo = "write for example latin-1, cp1252 or utf-16"
        raise InputError(f"encoding {encoding!r}", "an encoding that Python knows", todo) from None
    except UnicodeError:
        got = f"{path.name} is not {encoding}"
        raise InputError(got, "text in the encoding that was named", "name another encoding") from None


def _unreadable(path: Path, error: Exception) -> InputError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(f"{path.name} cannot be read: {first}", "a whole file of its kind", "export it again")


def _parquet(path: Path) -> Columns:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from None
    return Columns(path.name, frame.columns, frame, np.arange(len(frame)))


# -- JSON -----------------------------------------------------------------------------------------------------------


def json_rows(path: Path, data: bytes | None = None) -> Iterator[tuple[str, int, Any]]:
    r"""Yield ``line``, its number and its value of JSON lines; ``row`` and its number of the elements of one array.

    Lines end at ``\n`` alone: other characters that break lines may stand inside a text.

    Raises
    ------
    InputError
        With the line, for what is no JSON, no UTF-8, or holds half of a surrogate pair.
    """
    if not path.is_file():
        raise InputError(f"{path.name} cannot be read: no such file", "JSON lines, or one array of objects", _PATH)
    raw = data if data is not None else (_start(path)[0] or path.read_bytes())
    if raw.lstrip()[:1] == b"[":
        yield from (("row", i, value) for i, value in enumerate(_loaded(path, raw, ""), start=1))
        return
    for line, text in enumerate(raw.split(b"\n"), start=1):
        if text.strip():
            yield "line", line, _loaded(path, text, f" line {line}")


def _loaded(path: Path, raw: bytes, where: str) -> Any:
    try:
        text = raw.decode("utf-8-sig")
        found = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise InputError(f"{path.name}{where} is not UTF-8", "UTF-8 text", "save it as UTF-8") from None
    except UnicodeEncodeError:
        got = f"{path.name}{where} holds half of a surrogate pair"
        raise InputError(got, "characters of Unicode", "correct that text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        line = where or f" line {getattr(error, 'lineno', 1)}"
        got = f"{path.name}{line}: {getattr(error, 'msg', 'nested too deeply')}"
        raise InputError(got, "one JSON object a line, or one array of objects", "correct that line") from None
    return found


def _json(path: Path, data: bytes | None, array: bool) -> Columns:
    lines, rows = list[int](), list[dict[str, Any]]()
    for word, line, value in json_rows(path, data):
        if not isinstance(value, dict):
            got = f"{path.name} {word} {line}: {type(value).__name__}"
            raise InputError(got, "one JSON object a line, or one array of objects", "correct that line")
        lines.append(line)
        rows.append(value)
    try:
        frame = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise _unreadable(path, error) from None
    return Columns(
        path.name, frame.columns, frame, np.arange(len(frame)), _lines=None if array else lambda: iter(lines)
    )


# -- delimited text -------------------------------------------------------------------------------------------------


def _delimited(path: Path, data: bytes | None, head: str, cut: bool) -> Columns:
    lines = [line for line in re.split(r"\r?\n", head) if line.strip()]
    lines = lines[:-1] if cut and len(lines) > 1 else lines
    names, mark, quote, said = _dialect(path, lines)
    if mark == " ":
        data = re.sub(rb"[ \t]+", b"\t", path.read_bytes() if data is None else data)
        mark = "\t"

    def records() -> Iterator[tuple[int, list[str]]]:
        return _records(path, data, mark, quote)

    try:
        first = next(records(), (1, []))[1]
    except UnicodeDecodeError:
        raise _not_utf8(path, data) from None
    except csv.Error as error:
        raise _unreadable(path, error) from None
    header = names or [typed[1] if (typed := _TYPED.fullmatch(name)) else name for name in first]

    def places() -> Iterator[int]:
        return (line for i, (line, _) in enumerate(records()) if i or names is not None)

    twice = len(set(header)) < len(header)
    frame = pl.DataFrame() if twice else _read(path, data, mark, quote, header, names is None, records)
    table = Columns(path.name, header, frame, np.arange(len(frame)), said, _lines=places)
    if len(header) > 1 and len(frame):  # in a file of one column a blank line is a row whose value is missing
        empty = np.flatnonzero(frame.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy())
        if len(empty):
            suspects, begin = set(empty.tolist()), -1 if names is None else 0
            blank = [i for i, (_, fields) in enumerate(records(), start=begin) if i in suspects and not fields]
            table = table.take(np.setdiff1d(table.row, blank))
    return table


def _dialect(path: Path, lines: Sequence[str]) -> tuple[list[str] | None, str, bool, list[str]]:
    """Return names where there is no header, the separator (a blank: any white space), whether there are quotes."""
    parts = [line.split() for line in lines]
    if all(len(p) == 6 and p[1].upper() == "Q0" for p in parts):
        return ["user", "Q0", "item", "place", "score", "tag"], " ", False, ["a TREC run, in the order of its scores"]
    if all(len(p) == 4 and p[1] in ("0", "Q0") and _is_number(p[3]) for p in parts):
        return ["user", "iteration", "item", "relevant"], " ", False, ["TREC qrels"]
    first = lines[0].split("\t") if lines else []
    if len(first) == 4 and all(map(_is_number, first)):
        return ["user", "item", "value", "time"], "\t", False, ["no header: user, item, value and time, as in u.data"]
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in (".gz", ".zst", ".bz2")), "").lower()
    usual = _ENDINGS.get(suffix, ",")
    if any(_TYPED.fullmatch(name) for name in first):
        return None, "\t", False, []

    def fit(mark: str) -> tuple[float, int, bool]:
        try:
            counts = [len(fields) for fields in csv.reader(lines[:20], delimiter=mark)]
        except csv.Error:
            counts = [1]
        share = sum(c == counts[0] for c in counts) / len(counts)
        return (share, counts[0], mark == usual) if counts[0] > 1 else (0.0, 0, mark == usual)

    best = max(_MARKS, key=fit)
    return None, best, True, [] if best == usual else [f"separator {_MARKS[best]}"]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _records(path: Path, data: bytes | None, mark: str, quote: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line (1-based) and the fields of each record, header included, leading blank lines skipped."""
    raw = path.open("rb") if data is None else io.BytesIO(data)
    with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, delimiter=mark, quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE)
        start, begun = 1, False
        for fields in reader:
            begun = begun or bool(fields)
            if begun:
                yield start, fields
            start = reader.line_num + 1


def _read(
    path: Path,
    data: bytes | None,
    mark: str,
    quote: bool,
    header: list[str],
    named: bool,
    records: Callable[[], Iterator[tuple[int, list[str]]]],
) -> pl.DataFrame:
    try:
        return pl.read_csv(
            path if data is None else data,
            has_header=named,
            new_columns=header,
            separator=mark,
            quote_char='"' if quote else None,
            infer_schema=False,
        )
    except pl.exceptions.NoDataError:
        return pl.DataFrame({name: pl.Series([], dtype=pl.String) for name in header})
    except (pl.exceptions.PolarsError, OSError) as error:
        try:
            long = [line for line, fields in records() if len(fields) > len(header)]
        except UnicodeDecodeError:
            raise _not_utf8(path, data) from None
        except csv.Error:  # a stray quote swallows the rest of the file; what polars says is then as good as it gets
            raise _unreadable(path, error) from None
        if not long:
            raise _unreadable(path, error) from None
        shown = ", ".join(map(str, long[:_SHOWN])) + (f" and {len(long) - _SHOWN} more" if len(long) > _SHOWN else "")
        raise InputError(
            f"{path.name} has more fields than its header in line{'s' if len(long) > 1 else ''} {shown}",
            f"{len(header)} fields, as in line 1",
            "put fields that hold the separator in double quotes",
        ) from None


def _not_utf8(path: Path, data: bytes | None) -> InputError:
    todo = "save it as UTF-8, or name its encoding: --encoding latin-1"
    with path.open("rb") if data is None else io.BytesIO(data) as handle:
        for line, text in enumerate(handle, start=1):
            try:
                text.decode("utf-8")
            except UnicodeDecodeError:
                return InputError(f"{path.name} line {line} is not UTF-8", "UTF-8 text", todo)
    return InputError(f"{path.name} is not UTF-8", "UTF-8 text", todo)


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
    return found | ({"item", "items"} if folded & _list_names() else set())


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
    what = " and no column ".join(repr(names.get(name) or name) for name in lacking)
    columns = ", ".join(map(repr, table.header[:40])) + (" ..." if len(table.header) > 40 else "")
    return table.refuse_header(f"has no column {what}", f"its columns are {columns}", f"name them: {' '.join(paste)}")


# -- lists ----------------------------------------------------------------------------------------------------------


def _unfold(table: Columns, names: Mapping[str, str | None]) -> Columns:
    """Return one row an item of a table that holds a list a row: in a column, or in a column a place."""
    structs = [s.name for s in table.frame if isinstance(s.dtype, pl.List) and isinstance(s.dtype.inner, pl.Struct)]
    if structs:
        table = _exploded(table, structs[:1], ranked=False)
        frame = table.frame.unnest(structs[0])
        table = dataclasses.replace(table, frame=frame, header=frame.columns)
    item = names.get("item") or next(
        (own for own in table.header if _fold(own) in {*_FOLDED["item"], *_list_names()}), None
    )
    if item is None:
        return _narrow(table)
    if item in table.header and isinstance(table.frame[item].dtype, pl.String):
        text = table.frame[item].fill_null("").str.strip_chars()
        inner = text.str.replace_all(r"^\[|\]$|['\"]", "")
        brackets = bool((text.str.starts_with("[") & text.str.ends_with("]")).any())
        mark = next((m for m in (",", "|", ";", " ") if inner.str.contains(m, literal=True).any()), ",")
        user = names.get("user") or next((own for own in table.header if _fold(own) in _FOLDED["user"]), None)
        once = user in table.header and bool(table.frame[user].is_unique().all())  # a row a user is no row an item
        if brackets or (once and _fold(item) in _list_names()):
            split = inner.str.replace_all(r"\s*,\s*", ",").str.split(mark)
            table = dataclasses.replace(table, frame=table.frame.with_columns(split.alias(item)))
    if item not in table.header or not isinstance(table.frame[item].dtype, pl.List | pl.Array):
        return table
    if "item" not in names:
        table = dataclasses.replace(table, frame=table.frame.rename({item: "item"}))
        item = "item"
    lists = [s.name for s in table.frame if isinstance(s.dtype, pl.List | pl.Array)]
    scored = {_fold(name) for name in table.header} & {*_FOLDED["rank"], *_FOLDED["score"]} or "score" in names
    return _exploded(table, [item, *(name for name in lists if name != item)], ranked=not scored)


def _list_names() -> set[str]:
    """Return folded names of columns that hold a list of items."""
    words = {f"{word}{end}" for word in ITEM for end in ("s", "ids", "list", "idlist")}
    return {*words, "recommendations", "recommended", "recs", "list"}


def _exploded(table: Columns, lists: Sequence[str], ranked: bool) -> Columns:
    size = table.frame[lists[0]].list.len().fill_null(0).to_numpy().astype(np.int64)
    for other in lists[1:]:
        odd = np.flatnonzero(table.frame[other].list.len().fill_null(0).to_numpy() != size)
        if len(odd):
            got = f"{other!r} and {lists[0]!r} hold lists of different lengths"
            raise table.refuse(odd, got, "lists of one length in a row", "correct or delete those rows")
    kept = np.flatnonzero(size)
    frame = table.frame[kept].explode(list(lists))
    place = np.concatenate([np.arange(1, n + 1) for n in size[kept]]) if len(kept) else np.zeros(0, dtype=np.int64)
    if ranked:
        frame = frame.with_columns(pl.Series("rank", place))
    said = [*table.said, f"a list a row in {lists[0]!r}"]
    return dataclasses.replace(
        table, frame=frame, header=frame.columns, row=np.repeat(table.row[kept], size[kept]), said=said
    )


def _narrow(table: Columns) -> Columns:
    """Return one row an item where each place of the list has a column: ``1, 2, 3`` or ``item_1, item_2``."""
    numbered = {own: int(m[1]) for own in table.header if (m := _NUMBERED.fullmatch(own.lower().strip()))}
    wide = sorted(numbered, key=lambda own: numbered[own])
    if len(wide) < 2 or [numbered[own] for own in wide] not in (
        [*range(len(wide))],
        [*range(1, len(wide) + 1)],
    ):
        return table
    frame = table.frame.with_row_index("_row").with_columns(pl.col(wide).cast(pl.String))
    frame = frame.unpivot(
        wide, index=[n for n in frame.columns if n not in wide], variable_name="_of", value_name="item"
    )
    frame = frame.filter(~pl.col("item").fill_null("").str.strip_chars().str.to_lowercase().is_in(MISSING))
    place = pl.col("_of").replace_strict({own: i + 1 for i, own in enumerate(wide)}, return_dtype=pl.Int64)
    frame = frame.with_columns(place.alias("rank")).sort("_row", "rank")
    row = table.row[frame["_row"].to_numpy()]
    frame = frame.drop("_row", "_of")
    said = [*table.said, f"a column a place, {wide[0]!r} the first"]
    return dataclasses.replace(table, frame=frame, header=frame.columns, row=row, said=said)


# -- reading --------------------------------------------------------------------------------------------------------


def code_ids(text: pl.Series) -> tuple[Ints, tuple[str, ...]]:
    """Code ids densely in sorted order: by number when all are whole numbers, else by text.

    The order of rows can change no code.
    """
    distinct = text.unique().to_list()
    whole = bool(text.str.contains(r"^[+-]?[0-9]+$").all())
    distinct.sort(key=(lambda one: (int(one), one)) if whole else None)
    codes = text.replace_strict(distinct, np.arange(len(distinct)), return_dtype=pl.Int64)
    return codes.to_numpy().astype(np.int64), tuple(distinct)


def read_columns(
    source: Any,
    wanted: Mapping[str, Column],
    names: Mapping[str, str | None] = {},
    *,
    encoding: str = "utf-8",
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
    encoding : str
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
    table = source if isinstance(source, Columns) else open_columns(source, encoding)
    table = _unfold(table, names) if lists else table
    found = _match(table, wanted, names)
    said = [*table.said, *(f"{name} = {own}" for name, own in found.items() if name != own)]
    columns = []
    for name, own in found.items():
        series, more = _READ[wanted[name].kind](table, own, wanted[name])
        columns.append(series.alias(name))
        said += more
        if wanted[name].unique:
            again = np.flatnonzero((~series.is_first_distinct()).to_numpy())
            if len(again):
                got, todo = f"{own} {series[int(again[0])]!r} again", f"keep one row of each {name}"
                raise table.refuse(again, got, f"each {name} once", todo)
    _log.info("%s: %s", table.name, "; ".join([f"{len(table):,} rows", *said]))
    return dataclasses.replace(table, frame=pl.DataFrame(columns), header=[*found], said=said, names=found)


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


def _numbers(table: Columns, own: str, column: Column) -> _Read:
    """Return finite float64, NaN where a cell may be empty."""
    series, said = table.frame[own], list[str]()
    if series.dtype == pl.String:
        text = series.fill_null("").str.strip_chars()
        numbers = text.cast(pl.Float64, strict=False)
        comma = text.str.contains(r"^[+-]?\d+,\d+$") & numbers.is_null()
        if comma.any():
            point = np.flatnonzero((text.str.contains(".", literal=True) & ~comma).to_numpy())
            if not len(point):
                numbers = text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
                said = [f"decimal comma in {own!r}"]
    elif series.dtype.is_numeric() or series.dtype == pl.Boolean:
        numbers, text = series.cast(pl.Float64), series.cast(pl.String).fill_null("")
    else:
        got = f"{table.name}: {own!r} has type {series.dtype}"
        raise InputError(got, "a column of numbers", "convert it, or name another")
    accepted, todo = "a finite number in every row", "correct or delete those rows"
    blank = (text == "").to_numpy()
    if blank.any() and not column.missing:
        raise _missing(table, own, np.flatnonzero(blank), accepted, todo)
    values = numbers.to_numpy().astype(np.float64)
    bad = np.flatnonzero(numbers.is_null().to_numpy() & ~blank)
    if len(bad):
        raise table.refuse(bad, f"{own!r} is {text[int(bad[0])]!r}, not a number", accepted, todo)
    wild = np.flatnonzero(~np.isfinite(values) & ~blank)
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
    zone = r"(Z|[+-]\d{2}:?\d{2})$"
    iso = text.str.replace("T", " ", literal=True)
    if not iso.str.contains(r"^\d{4}-\d{2}-\d{2}( \d{2}:\d{2}(:\d{2}(\.\d+)?)?\s*(Z|[+-]\d{2}:?\d{2})?)?$").all():
        return None
    sign = iso.str.extract(r"([+-])\d{2}:?\d{2}$").replace({"+": "1", "-": "-1"}).cast(pl.Int64)
    hours, minutes = (iso.str.extract(rf"[+-]{p}$").cast(pl.Int64) for p in (r"(\d{2}):?\d{2}", r"\d{2}:?(\d{2})"))
    has = iso.str.contains(r" .*" + zone)
    shift = pl.select(pl.when(has).then(sign * (hours * 60 + minutes)).otherwise(0)).to_series().fill_null(0)
    plain = pl.select(pl.when(has).then(iso.str.replace(zone, "")).otherwise(iso)).to_series().str.strip_chars()
    plain = plain.str.replace(r"^(\d{4}-\d{2}-\d{2})$", "$1 00:00").str.replace(r"^(.{16})$", "$1:00")
    found = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us").dt.epoch("us")
    return None if found.null_count() else found - shift * 60_000_000


def _epoch(own: str, whole: pl.Series) -> list[str]:
    top = abs(int(whole.max() or 0))  # type: ignore[arg-type]
    unit = "seconds" if 10**8 <= top < _MILLISECONDS else "milliseconds" if _MILLISECONDS <= top < 10**14 else ""
    return [f"{own!r} in {unit} since 1970"] if unit else []


def _as_is(table: Columns, own: str, column: Column) -> _Read:
    series = table.frame[own]
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        got = f"{table.name}: {own!r} has type {series.dtype}"
        raise InputError(got, "numbers, text, booleans or dates", "leave the column out")
    return (series if series.dtype.is_numeric() else series.cast(pl.String).str.strip_chars().fill_null("")), []


_READ: Mapping[str, Callable[[Columns, str, Column], _Read]] = {
    "id": _texts,
    "text": _texts,
    "number": _numbers,
    "flag": _flags,
    "time": _times,
    "any": _as_is,
}
