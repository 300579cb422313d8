"""The formats that people's tables come in: opened whole, with the way back from each row to its line.

===================  ================================================================================================
text with a header   separated by ``,`` ``;`` tab or ``|``, whatever the ending; quotes, a byte order mark, blank lines;
                     UTF-8, or another ``encoding``; ``.gz`` and ``.zst``
RecBole              typed headers (``user_id:token``); no quotes
MovieLens            ``u.data``: user, item, value, time by tabs, without a header
TREC                 runs (``query Q0 document rank score tag``; the score orders) and qrels (``query 0 document rel``)
Parquet              also LensKit's lists of items in one column
JSON                 lines, split at line feeds alone, or one array of objects
data frames          of polars, pandas or Arrow
===================  ================================================================================================

Every cell of a text file is read as text, so that a bad one can be shown as it stands in the file. No row is dropped in
silence; only wholly blank lines are passed over. `upright.data.columns` names and checks the columns.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["Columns", "json_rows", "number_of", "open_columns", "some"]

Ints = NDArray[np.int64]
_MARKS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
_ENDINGS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t", ".user": "\t", ".item": "\t"}
_COMPRESSED = (".gz", ".zst", ".bz2")
_TYPED = re.compile(r"(.+):(token|token_seq|float|float_seq)")
LARGE = 1 << 26  # bytes of a text file, above which only the columns that are asked for are held
_HEAD = 1 << 16  # bytes that are looked at before a file is read
_SHOWN = 5  # line numbers or names in a message before "and n more"


def some(names: Sequence[Any]) -> str:
    """Write the first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def number_of(text: str) -> float:
    """Return the number that a text says, NaN where it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


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
    unnamed : str
        Separator of a text file whose first line looks like a row and not like names; "" otherwise.
    """

    name: str
    header: list[str]
    frame: pl.DataFrame
    row: Ints
    said: list[str] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)
    unnamed: str = ""
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

    def repeats(self, *names: str) -> Ints:
        """Return the rows whose values in some columns stand together in an earlier row."""
        return np.flatnonzero(~self.frame.select(pl.struct(names).is_first_distinct()).to_series().to_numpy())

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
        text = f"{text} and {more} more" if more else " and ".join(text.rsplit(", ", 1))
        return f"{word} {text}" + (" (the first is 0)" if self._lines is None and not self._first else "")

    def refuse(self, rows: Sequence[int] | Ints, got: str, accepted: str, todo: str) -> InputError:
        """Return the error about some rows, with their lines in front."""
        return InputError(f"{self.name} {self.where(rows)}: {got}", accepted, todo)

    def refuse_header(self, got: str, accepted: str, todo: str) -> InputError:
        """Return the error about the names of columns."""
        return InputError(f"{self.name}{'' if self._lines is None else ' line 1'} {got}", accepted, todo)


# -- files ----------------------------------------------------------------------------------------------------------


def open_columns(
    source: Any,
    encoding: str = "utf-8",
    *,
    argument: str = "",
    header: Sequence[str] | None = None,
    keep: Callable[[str], Any] = bool,
) -> Columns:
    """Read a table whole: the columns of text files as text, null where a cell is empty.

    Parameters
    ----------
    source : path, or a data frame of polars, pandas or Arrow
    encoding : str
        Of a text file.
    argument : str
        What a data frame was passed as, which is how messages call it.
    header : sequence of str, optional
        Names for the columns of a text file that has none in its first line.
    keep : callable of str
        Whether a column is held of a text file above 64 MiB; the others are parsed and forgotten. All by default.

    Raises
    ------
    InputError
        For a file that is not there, empty, of another kind, in another encoding, or that has rows with more fields
        than its header, a column twice, no row.
    """
    if isinstance(source, str | Path):
        table = _file(Path(source).expanduser(), encoding, header, keep)
    else:
        table = _frame(source, f"{argument} (data frame)" if argument else "the data frame")
    if not any(table.header):
        raise _empty(table.name)
    twice = [name for i, name in enumerate(table.header) if name in table.header[:i]]
    if twice:
        todo = "write the names of the columns above it, such as user,item" if table.unnamed else "rename one of them"
        raise table.refuse_header(f"names {twice[0]!r} twice", "each column once", todo)
    if not len(table):
        todo = "check how the file was exported"
        raise InputError(f"{table.name} has a header and no rows", "one row at least", todo)
    return table


def _empty(name: str) -> InputError:
    return InputError(f"{name} is empty", "a header line and one row a line", "check how it was exported")


def _unreadable(name: str, error: Exception) -> InputError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(f"{name} cannot be read: {first}", "a whole file of its kind", "export it again")


def _frame(source: Any, name: str) -> Columns:
    try:
        frame = source if isinstance(source, pl.DataFrame) else pl.DataFrame(source)
    except Exception as error:  # whatever a foreign object raises
        got = f"{type(source).__name__}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise InputError(got, "a path, or a data frame of polars, pandas or Arrow", "pass one of these") from None
    return Columns(name, frame.columns, frame, np.arange(len(frame)), _first=0)


def _file(path: Path, encoding: str, header: Sequence[str] | None, keep: Callable[[str], Any]) -> Columns:
    if not path.is_file():
        got = f"{path} is a folder" if path.is_dir() else f"no file {path}"
        raise InputError(got, "a table: CSV, TSV, Parquet, JSON lines and others", "check the path")
    data = _unpacked(path)
    start = data[:_HEAD]
    if not start.strip():
        raise _empty(path.name)
    if start[:4] == b"PAR1":
        try:
            frame = pl.read_parquet(data)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(path.name, error) from None
        return Columns(path.name, frame.columns, frame, np.arange(len(frame)))
    if start[:2] == b"PK" or (b"\0" in start and not re.match(r"utf-?(16|32)", encoding, re.IGNORECASE)):
        todo = "save it as CSV or Parquet"
        raise InputError(f"{path.name} is no text and no Parquet", "CSV, TSV, Parquet, JSON lines", todo)
    if not re.fullmatch(r"utf-?8(-sig)?", encoding, re.IGNORECASE):
        data = _in_utf8(path.name, data, encoding)
    text = data[:_HEAD].decode("utf-8", errors="ignore").removeprefix("\ufeff")
    return _json(path.name, data) if text.lstrip()[:1] in ("{", "[") else _delimited(path, data, text, header, keep)


def _unpacked(path: Path) -> bytes:
    if path.suffix.lower() not in _COMPRESSED:
        return path.read_bytes()
    import pyarrow as pa

    try:
        return bytes(pa.input_stream(path, compression="detect").read())
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path.name, error) from None


def _in_utf8(name: str, data: bytes, encoding: str) -> bytes:
    try:
        return data.decode(encoding).removeprefix("\ufeff").encode()
    except LookupError:
        todo = "write for example latin-1, cp1252 or utf-16"
        raise InputError(f"encoding {encoding!r}", "an encoding that Python knows", todo) from None
    except UnicodeError:
        accepted = "text in the encoding that was named"
        raise InputError(f"{name} is not {encoding}", accepted, "name another encoding") from None


# -- JSON -----------------------------------------------------------------------------------------------------------


def json_rows(path: Path) -> Iterator[tuple[str, int, Any]]:
    r"""Yield ``line``, its number and its value of JSON lines; ``row`` and its number of the elements of one array.

    Lines end at ``\n`` alone: other characters that break lines may stand inside a text.

    Raises
    ------
    InputError
        With the line, for what is no JSON, no UTF-8, or holds half of a surrogate pair.
    """
    if not path.is_file():
        got = f"{path.name} cannot be read: no such file"
        raise InputError(got, "JSON lines, or one array of objects", "check the path")
    return _json_rows(path.name, _unpacked(path))


def _json_rows(name: str, data: bytes) -> Iterator[tuple[str, int, Any]]:
    if data.lstrip()[:1] == b"[":
        yield from (("row", i, value) for i, value in enumerate(_loaded(name, data, ""), start=1))
        return
    for line, text in enumerate(data.split(b"\n"), start=1):
        if text.strip():
            yield "line", line, _loaded(name, text, f" line {line}")


def _loaded(name: str, raw: bytes, where: str) -> Any:
    try:
        text = raw.decode("utf-8-sig")
        found = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise InputError(f"{name}{where} is not UTF-8", "UTF-8 text", "save it as UTF-8") from None
    except UnicodeEncodeError:
        got = f"{name}{where} holds half of a surrogate pair"
        raise InputError(got, "characters of Unicode", "correct that text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        line = where or f" line {getattr(error, 'lineno', 1)}"
        got = f"{name}{line}: {getattr(error, 'msg', 'nested too deeply')}"
        raise InputError(got, "one JSON object a line, or one array of objects", "correct that line") from None
    return found


def _json(name: str, data: bytes) -> Columns:
    words, lines, rows = set[str](), list[int](), list[dict[str, Any]]()
    for word, line, value in _json_rows(name, data):
        if not isinstance(value, dict):
            got = f"{name} {word} {line}: {type(value).__name__}"
            raise InputError(got, "one JSON object a line, or one array of objects", "correct that line")
        words.add(word)
        lines.append(line)
        rows.append(value)
    try:
        frame = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise _unreadable(name, error) from None
    places = None if "row" in words else lambda: iter(lines)
    return Columns(name, frame.columns, frame, np.arange(len(frame)), _lines=places)


# -- delimited text -------------------------------------------------------------------------------------------------


def _delimited(path: Path, data: bytes, head: str, given: Sequence[str] | None, keep: Callable[[str], Any]) -> Columns:
    lines = [line for line in re.split(r"\r?\n", head) if line.strip()]
    lines = lines[:-1] if len(data) > _HEAD and len(lines) > 1 else lines  # the last one may be cut
    names, mark, quote, said = _dialect(path, lines)
    names, unnamed = list(given) if given else names, ""
    said += ["no header: line 1 is a row too"] if given else []
    if mark == " ":
        data, mark = re.sub(rb"[ \t]+", b"\t", data), "\t"

    def records() -> Iterator[tuple[int, list[str]]]:
        return _records(data, mark, quote)

    header = names or []
    try:
        first = next(records(), (1, list[str]()))[1]
        header = names or [typed[1] if (typed := _TYPED.fullmatch(name)) else name for name in first]
        unnamed = mark if names is None and _is_row(*csv.reader(lines[:20], delimiter=mark)) else ""
        frame, empty = pl.DataFrame(), pl.Series(dtype=pl.Boolean)
        if len(set(header)) == len(header):
            held = [name for name in header if len(data) <= LARGE or keep(name)] or header[:1]
            scan = pl.scan_csv(
                data,
                has_header=names is None,
                new_columns=header,
                separator=mark,
                quote_char='"' if quote else None,
                infer_schema=False,
            )
            # that all cells are looked at finds lines with too many fields, too
            blank = pl.all_horizontal(pl.all().is_null()).alias("blank")
            both = scan.select(pl.struct(held).alias("held"), blank).collect()
            frame, empty = both["held"].struct.unnest(), both["blank"]
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=dict.fromkeys(header, pl.String))
    except (UnicodeDecodeError, csv.Error, pl.exceptions.PolarsError) as error:
        raise _refusal(path.name, data, records, error) from None

    def places() -> Iterator[int]:
        return (line for i, (line, _) in enumerate(records()) if i or names is not None)

    table = Columns(path.name, header, frame, np.arange(len(frame)), said, unnamed=unnamed, _lines=places)
    if len(header) > 1 and len(frame):  # in a file of one column a blank line is a row whose value is missing
        suspects, begin = set(np.flatnonzero(empty.to_numpy()).tolist()), -1 if names is None else 0
        if suspects:
            gaps = [i for i, (_, fields) in enumerate(records(), start=begin) if i in suspects and not fields]
            table = table.take(np.setdiff1d(table.row, gaps))
    return table


def _dialect(path: Path, lines: Sequence[str]) -> tuple[list[str] | None, str, bool, list[str]]:
    """Return names where there is no header, the separator (a blank: any white space), whether there are quotes."""
    parts = [line.split() for line in lines]
    if all(len(p) == 6 and p[1].upper() == "Q0" for p in parts):
        return ["user", "Q0", "item", "place", "score", "tag"], " ", False, ["a TREC run, in the order of its scores"]
    if all(len(p) == 4 and p[1] in ("0", "Q0") and math.isfinite(number_of(p[3])) for p in parts):
        return ["user", "iteration", "item", "relevant"], " ", False, ["TREC qrels"]
    first = lines[0].split("\t") if lines else []
    if len(first) == 4 and all(math.isfinite(number_of(one)) for one in first):
        return ["user", "item", "value", "time"], "\t", False, ["no header: user, item, value and time, as in u.data"]
    suffix = next((s for s in reversed(path.suffixes) if s.lower() not in _COMPRESSED), "").lower()
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


def _is_row(first: Sequence[str] = (), *below: Sequence[str]) -> bool:
    """Whether a first line reads like the lines below it: numbers over numbers, and a text that comes again."""

    def is_number(cell: str) -> bool:
        return math.isfinite(number_of(cell.strip().replace(",", ".")))

    columns = [{row[i] for row in below if i < len(row) and row[i].strip()} for i in range(len(first))]
    numbers, texts = (
        [cell for cell in first if is_number(cell)],
        [i for i, cell in enumerate(first) if not is_number(cell)],
    )
    places = len(numbers) > 1 and numbers in ([str(i + start) for i in range(len(numbers))] for start in (0, 1))
    if any(columns[i] and all(map(is_number, columns[i])) for i in texts) or (places and texts):
        return False  # names over numbers; the places of a list, or the dimensions of a vector
    again = any(first[i] in columns[i] for i in texts)
    return not texts or again or not all(number_of(cell).is_integer() for cell in numbers)


def _records(data: bytes, mark: str, quote: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line (1-based) and the fields of each record, header included, leading blank lines skipped."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=mark, quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE)
    start, begun = 1, False
    for fields in reader:
        begun = begun or bool(fields)
        if begun:
            yield start, fields
        start = reader.line_num + 1


def _refusal(
    name: str, data: bytes, records: Callable[[], Iterator[tuple[int, list[str]]]], error: Exception
) -> InputError:
    """Say what is wrong with text that could not be read."""
    try:
        rows = records()
        width = len(next(rows)[1])
        long = [line for line, fields in rows if len(fields) > width]
    except UnicodeDecodeError:
        return _not_utf8(name, data)
    except csv.Error:  # a stray quote swallows the rest of the file; what polars says is then as good as it gets
        return _unreadable(name, error)
    if not long:
        return _unreadable(name, error)
    return InputError(
        f"{name} has more fields than its header in line{'s' if len(long) > 1 else ''} {some(long)}",
        f"{width} fields, as in line 1",
        "put fields that hold the separator in double quotes",
    )


def _not_utf8(name: str, data: bytes) -> InputError:
    where = ""
    for line, text in enumerate(data.split(b"\n"), start=1):
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            where = f" line {line}"
            break
    todo = "save it as UTF-8, or name its encoding: --encoding latin-1"
    return InputError(f"{name}{where} is not UTF-8", "UTF-8 text", todo)
