"""Files of an audit of embeddings, checked: vectors of users, their labels, ids.

=======================  ==========================================================================================
``.npy``                 a 2-D array, read without pickle
``.safetensors``         the only 2-D tensor, or ``NAME.safetensors:tensor``
``.csv .tsv .parquet``   a column of ids and one column a dimension, or (Parquet) one column of lists
=======================  ==========================================================================================

Every error says in which rows something is wrong: lines of a text file, rows of Parquet from 1, of arrays from 0.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.audits.lists import plural, some
from upright.contract import InputError
from upright.data.readers import _blank_rows, _numbers, _read, _text
from upright.data.source import Source, check_header, open_source

__all__ = [
    "FRAMES",
    "Labels",
    "Tables",
    "Vectors",
    "name_tables",
    "parts_of",
    "read_ids",
    "read_labels",
    "read_vectors",
]

Array = NDArray[np.float64]
FRAMES = (".csv", ".tsv", ".tab", ".parquet", ".pq")
ARRAYS = (".npy", ".safetensors")
MOST_VALUES = 10  # of a numeric attribute; more is a quantity, not classes
_MISSING = ("", "nan", "null")  # as in the data layer
_SHOWN = 5  # rows named in a message
_LONGEST_HEADER = 100_000_000  # bytes, as the format's own reader has it
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
}


@dataclass(frozen=True, eq=False)
class Vectors:
    """One row of numbers a user, shape (U, d); `users` is None where the file has no ids."""

    path: Path
    values: Array
    users: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Labels:
    """Attribute of each row, "" where it is not known; `users` is None in a file without ids."""

    path: Path
    attribute: str
    label: tuple[str, ...]
    users: tuple[str, ...] | None
    aligned: NDArray[np.bool_] | None


# -- names --------------------------------------------------------------------------------------------------------


Tables = Path | str | Sequence[Path | str] | Mapping[str, Path | str]


def name_tables(tables: Tables, name: str | None = None) -> dict[str, Path]:
    """Return the file of each surface.

    Parameters
    ----------
    tables : path, ``name=path``, sequence of them, or mapping of name to path
        Without a name, the tensor where one is named, else the stem of the file.
    name : str, optional
        Of the surface, when there is one table.

    Raises
    ------
    InputError
        Without a table, for a name given twice, with a slash, or for several tables.
    """
    if isinstance(tables, Mapping):
        named = [(str(key), Path(path)) for key, path in tables.items()]
    else:
        given = [tables] if isinstance(tables, str | Path) else list(tables)
        named = [_name_table(str(one)) for one in given]
    if not named:
        raise InputError("no table of vectors", "at least one", "name a .npy, .safetensors, .parquet or .csv file")
    if name is not None:
        if len(named) > 1:
            got = f"one name {name!r} for {len(named)} tables"
            raise InputError(got, "a name for one table", "write name=path for each table")
        named = [(name, named[0][1])]
    names = [surface for surface, _ in named]
    for surface in names:
        if not surface or "/" in surface or names.count(surface) > 1:
            got = f"surface {surface!r}" + (" twice" if names.count(surface) > 1 else "")
            raise InputError(got, "names without a slash, each once", "write name=path for each table")
    return dict(named)


def _name_table(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists() and "/" not in name:
        return name, Path(path)
    file, tensor = parts_of(Path(text))
    return tensor or file.stem, Path(text)


def parts_of(path: Path) -> tuple[Path, str]:
    """Part ``NAME.safetensors:tensor``; the tensor is empty for every other file."""
    file, colon, tensor = str(path).rpartition(":")
    inside = colon and not path.exists() and file.lower().endswith(".safetensors")
    return (Path(file), tensor) if inside else (path, "")


# -- tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Frame:
    source: Source
    frame: pl.DataFrame
    row: NDArray[np.int64]  # 0-based data row of the file

    def refuse(self, rows: NDArray[np.int64], got: str, accepted: str, todo: str) -> InputError:
        return self.source.refuse(self.row[rows], got, accepted, todo)


def _there(path: Path, kinds: Sequence[str], what: str) -> None:
    """Refuse a file that is not there, has another ending, or is empty."""
    if not path.is_file():
        raise InputError(f"no file {path}", f"a file that ends in {', '.join(kinds)}", "check the path")
    if path.suffix.lower() not in kinds:
        got = f"{path.name} ends in {path.suffix or 'nothing'!r}"
        raise InputError(got, f"{', '.join(kinds)} (by its ending)", "convert or rename the file")
    if not path.stat().st_size:
        raise InputError(f"{path.name} is empty", what, "check how it was exported")


def _header(path: Path, what: str) -> tuple[Source, list[str]]:
    _there(path, FRAMES, what)
    source = open_source(path)
    try:
        check_header(source, [])
    except InputError as error:  # its words for an empty file are those of a log of interactions
        raise InputError(error.got, what if "is empty" in error.got else error.accepted, error.todo) from None
    header = source.header()
    twice = [name for i, name in enumerate(header) if name in header[:i]]
    if twice:
        raise InputError(f"{path.name} line 1 names {twice[0]!r} twice", "each column once", "rename one of them")
    return source, header


def _need(path: Path, header: Sequence[str], column: str, todo: str) -> None:
    """Refuse a header without a column, and name the closest one."""
    if column in header:
        return
    folded = {name.lower().strip(): name for name in header}
    close = difflib.get_close_matches(column.lower(), folded, n=1, cutoff=0.5)
    columns = ", ".join(map(repr, header))
    hint = f"did you mean {folded[close[0]]!r}? Else {todo}" if close else todo
    raise InputError(f"{path.name} has no column {column!r}", f"its columns are {columns}", hint)


def _load(source: Source, columns: list[str], what: str) -> _Frame:
    frame = _read(source, columns)
    row = np.arange(len(frame), dtype=np.int64)
    # in a file of one column a blank line is a row whose value is missing
    if source.separator is not None and len(source.header()) > 1 and len(blank := _blank_rows(source, frame)):
        row = np.setdiff1d(row, blank)
        frame = frame[row]
    if not len(frame):
        raise InputError(f"{source.path.name} has a header and no rows", what, "check how the file was exported")
    return _Frame(source, frame, row)


def _ids(table: _Frame, column: str) -> tuple[str, ...]:
    """Return ids as text, each once."""
    text = _text(table.frame[column], table.source, table.row)
    missing = np.flatnonzero(text.str.to_lowercase().is_in(_MISSING).to_numpy())
    if len(missing):
        got, todo = f"{len(missing)} missing {column!r}", "fill in or delete those rows"
        raise table.refuse(missing, got, "an id in every row", todo)
    again = np.flatnonzero((~text.is_first_distinct()).to_numpy())
    if len(again):
        got = f"user {text[int(again[0])]!r} again"
        raise table.refuse(again, got, "each user once", "keep one row of each user")
    return tuple(text.to_list())


def read_ids(path: Path) -> tuple[str, ...]:
    """Return the ids in the column ``user`` of a file, or in its only column.

    Raises
    ------
    InputError
        For a file that cannot be read, or an id that is missing or there twice.
    """
    what = "a header line 'user' and one id a row"
    source, header = _header(path, what)
    if len(header) > 1:
        _need(path, header, "user", "rename the column of ids to 'user'")
    column = "user" if len(header) > 1 else header[0]
    return _ids(_load(source, [column], what), column)


# -- vectors ------------------------------------------------------------------------------------------------------


def read_vectors(path: Path, *, user: str = "user", ids: Path | None = None) -> Vectors:
    """Read one table of user vectors.

    Parameters
    ----------
    path : Path
        See the table above.
    user : str
        Column of ids, where there are columns.
    ids : Path, optional
        File of ids for a table without them, in the order of its rows.

    Raises
    ------
    InputError
        For a file that cannot be read, values that are missing or not finite, users that are there twice.
    """
    path, tensor = parts_of(path)
    what = "one row of numbers for each user"
    _there(path, (*ARRAYS, *FRAMES), what)
    if path.suffix.lower() in FRAMES:
        return _columns(path, user, what)
    raw = _npy(path) if path.suffix.lower() == ".npy" else _safetensors(path, tensor)
    if raw.ndim != 2 or not raw.size or raw.dtype.kind not in "biuf":
        got = f"{path.name} holds {raw.dtype} of shape {raw.shape}"
        raise InputError(got, "real numbers of shape (users, dimensions)", "save one row of numbers for each user")
    values = raw.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        rows = ", ".join(map(str, bad[:_SHOWN])) + (f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")
        first = values[bad[0]][~np.isfinite(values[bad[0]])][0]
        raise InputError(
            f"{path.name} holds {first} in row{'s' * (len(bad) > 1)} {rows} (the first row is 0)",
            "finite numbers in every row",
            "find where the model diverged, or leave those users out",
        )
    if ids is None:
        return Vectors(path, values, None)
    users = read_ids(ids)
    if len(users) != len(values):
        raise InputError(
            f"{ids.name} has {plural(len(users), 'id')}, {path.name} has {plural(len(values), 'row')}",
            "one id for each row, in the same order",
            "export both from the same table",
        )
    return Vectors(path, values, users)


def _columns(path: Path, user: str, what: str) -> Vectors:
    source, header = _header(path, what)
    _need(path, header, user, "name the column of ids with --ids COLUMN")
    rest = [name for name in header if name != user]
    if not rest:
        got = f"{path.name} has no column besides {user!r}"
        raise InputError(got, "one column for each dimension, or one column of lists", "export the vectors with it")
    table = _load(source, [user, *rest], what)
    users = _ids(table, user)
    first = table.frame[rest[0]]
    if len(rest) == 1 and isinstance(first.dtype, pl.List | pl.Array):
        return Vectors(path, _lists(table, first), users)
    return Vectors(path, np.column_stack([_numbers(table.frame[n], source, table.row) for n in rest]), users)


def _lists(table: _Frame, column: pl.Series) -> Array:
    """Return lists of equal length as an array, shape (U, d)."""
    inner = column.dtype.inner  # type: ignore[attr-defined]
    accepted = "lists of finite numbers, all of one length"
    if not inner.is_numeric():
        got = f"{table.source.path.name}: {column.name!r} has type {column.dtype}"
        raise InputError(got, accepted, "store one list of numbers for each user")
    lists = column.cast(pl.List(pl.Float64))
    size = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    usual = int(np.bincount(size).argmax())
    odd = np.flatnonzero((size != usual) | (size == 0))
    if len(odd):
        got = f"{column.name!r} has {plural(int(size[odd[0]]), 'number')}, most rows have {usual}"
        raise table.refuse(odd, got, accepted, "correct or delete those rows")
    values: Array = lists.explode().fill_null(math.nan).to_numpy().reshape(-1, usual).astype(np.float64)  # (U, d)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        first = values[bad[0]][~np.isfinite(values[bad[0]])][0]
        got = f"{column.name!r} holds {first}, not finite"
        raise table.refuse(bad, got, accepted, "correct or delete those rows")
    return values


def _npy(path: Path) -> NDArray[Any]:
    with path.open("rb") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        try:
            found: NDArray[Any] = np.lib.format.read_array(handle, allow_pickle=False)
        except Exception as error:  # a damaged header ends in a dozen kinds, from TokenError to OverflowError
            pickled = "allow_pickle" in str(error) or _is_pickle(path)
            why = "pickled Python objects" if pickled else "no whole array"
            raise InputError(
                f"{path.name} holds {why}",
                "a .npy array of numbers, read without pickle",
                "save it with numpy.save as an array of floats",
            ) from None
    return found


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(1) == b"\x80"


class _Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _tensors(text: bytes) -> dict[str, _Tensor]:
    """Return what the header of a safetensors file lists."""
    return {
        name: _Tensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), *map(int, entry["data_offsets"]))
        for name, entry in json.loads(text).items()
        if name != "__metadata__"
    }


def _safetensors(path: Path, wanted: str) -> NDArray[Any]:
    """Read one tensor: 8 bytes of header length, a JSON header of types, shapes and offsets, then the numbers."""
    broken = InputError(f"{path.name} is no whole safetensors file", "a .safetensors file", "export it again")
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise broken
        try:
            tensors = _tensors(handle.read(length))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise broken from None
    flat = [name for name, tensor in tensors.items() if len(tensor.shape) == 2]
    names = ", ".join(f"{name!r} {tensor.shape}" for name, tensor in tensors.items()) or "nothing"
    if wanted not in tensors and (wanted or len(flat) != 1):
        got = f"no tensor {wanted!r}" if wanted else f"{plural(len(flat), 'tensor')} of two dimensions"
        raise InputError(f"{path.name} holds {got}", f"one of its tensors: {names}", f"name it: {path.name}:TENSOR")
    tensor = tensors[wanted or flat[0]]
    if tensor.dtype not in _DTYPES:
        raise InputError(f"{path.name}: tensor of type {tensor.dtype}", ", ".join(_DTYPES), "save it as F32")
    kind, count, start = np.dtype(_DTYPES[tensor.dtype]), math.prod(tensor.shape), 8 + length
    whole = tensor.end - tensor.begin == count * kind.itemsize and start + tensor.end <= size
    if not whole or min(tensor.begin, *tensor.shape, 0) < 0:
        raise broken
    values: NDArray[Any] = np.fromfile(path, dtype=kind, count=count, offset=start + tensor.begin)
    if tensor.dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(tensor.shape)


# -- labels -------------------------------------------------------------------------------------------------------


def read_labels(path: Path, attribute: str | None, aligned: str | None = None, user: str = "user") -> Labels:
    """Read the attribute of each user, and who was aligned when that is a column.

    Parameters
    ----------
    path : Path
        CSV, TSV or Parquet with a column `user` and the attribute.
    attribute : str, optional
        Its column; by default the only one besides `user` and `aligned`.
    aligned : str, optional
        Column of 0 and 1.

    Raises
    ------
    InputError
        For a file that cannot be read, a column that is not there, a user who is there twice, numbers of more than
        ten values, a class whose name holds a slash.
    """
    what = "a header line, then one user and one attribute a row"
    source, header = _header(path, what)
    if aligned is not None:
        _need(path, header, aligned, "name a column or a file of ids with --aligned")
    rest = [name for name in header if name not in (user, aligned)]
    if attribute is None:
        if len(rest) != 1:
            columns = ", ".join(map(repr, rest)) or "no column"
            got = f"{path.name} has {columns} besides {user!r}"
            raise InputError(got, "one attribute, or its name", "name the column with --attribute COLUMN")
        attribute = rest[0]
    elif attribute not in rest:
        if attribute in header:
            got = f"column {attribute!r} as the attribute"
            raise InputError(got, "a column of its own", "name another column with --attribute")
        _need(path, header, attribute, "name the column with --attribute COLUMN")
    wanted = [name for name in (user, attribute, aligned) if name in header]
    table = _load(source, wanted, what)
    users = _ids(table, user) if user in header else None
    label = _classes(table, attribute)
    mask = None
    if aligned is not None:
        flag = _numbers(table.frame[aligned], source, table.row)
        odd = np.flatnonzero((flag != 0) & (flag != 1))
        if len(odd):
            got = f"{aligned!r} is {flag[odd[0]]:g}"
            raise table.refuse(odd, got, "1 for users that a defence was fitted on, else 0", "correct those rows")
        mask = flag == 1
    return Labels(path, attribute, label, users, mask)


def _classes(table: _Frame, attribute: str) -> tuple[str, ...]:
    """Return classes as text; whole numbers lose ``.0``, numbers of many values are refused."""
    column, name = table.frame[attribute], table.source.path.name
    try:
        text = column.cast(pl.String).fill_null("").str.strip_chars()
    except pl.exceptions.PolarsError:
        got = f"{name}: {attribute!r} has type {column.dtype}"
        raise InputError(got, "text or numbers as classes", "name another column with --attribute") from None
    text = text.set(text.str.to_lowercase().is_in(_MISSING), "")
    known = [one for one in text.unique().to_list() if one]
    numbers = {one: _number(one) for one in known}
    if known and all(map(math.isfinite, numbers.values())):
        if len(set(numbers.values())) > MOST_VALUES:
            raise InputError(
                f"{name}: {attribute!r} has {len(set(numbers.values()))} different numbers",
                f"classes; numbers of at most {MOST_VALUES} values",
                "cut them into ranges, such as <25, 25-45, >=45",
            )
        shown = {one: str(int(value)) if value.is_integer() else repr(value) for one, value in numbers.items()}
        text = text.replace(shown)
    slash = sorted(one for one in known if "/" in one)
    if slash:
        got = f"{name}: {attribute!r} has the class {some(slash)}"
        raise InputError(got, "classes without a slash, which parts the names of attacks", "rename those classes")
    return tuple(text.to_list())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
