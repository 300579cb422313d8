"""Vectors in files: one row of numbers a unit, from arrays of numpy and torch, safetensors, or the columns of a table.

==================  =================================================================================================
``.npy`` ``.npz``   read without pickle; ``FILE::NAME`` names one array of several; ids in an array such as ``user_ids``
``.safetensors``    the only 2-D tensor, or ``FILE::NAME``
``.pt`` ``.pth``    a tensor, or ``FILE::NAME`` of a checkpoint, ``layer.weight`` at any depth, under ``weights_only``
tables              as `upright.data.formats` opens them: ids and one column a dimension, or one column of lists
==================  =================================================================================================
"""

from __future__ import annotations

import difflib
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.columns import Column, known_names, names_ids, read_columns
from upright.data.formats import Columns, open_columns, some

__all__ = ["ARRAYS", "file_and_name", "read_ids", "read_vectors"]

Array = NDArray[np.float64]
ARRAYS = (".npy", ".npz", ".safetensors", ".pt", ".pth")


def file_and_name(given: str | Path) -> tuple[Path, str]:
    """Part ``FILE::NAME``; the name is empty where none is given."""
    file, _, name = str(given).partition("::")
    return Path(file).expanduser(), name


def read_ids(source: Any, encoding: str = "utf-8", *, argument: str = "") -> tuple[tuple[str, ...], list[str]]:
    """Return the ids in the column of users of a table, or in its only one, with a header or without, and remarks."""
    if isinstance(source, list | tuple | pl.Series | np.ndarray):
        source = pl.DataFrame({"user": list(source)}, strict=False)
    table = open_columns(source, encoding, argument=argument)
    if len(table.header) == 1 and not (names_ids(table.header[0]) or known_names(table.header)):
        table = open_columns(source, encoding, argument=argument, header=["user"])
    names = {"user": table.header[0]} if len(table.header) == 1 else {}
    ids = read_columns(table, {"user": Column("id", unique=True)}, names)["user"].to_list()
    return tuple(ids), [f"{table.name}: {one}." for one in table.said]


def read_vectors(
    source: Any, *, user: str | None = None, encoding: str = "utf-8", argument: str = ""
) -> tuple[Array, tuple[str, ...] | None]:
    """Read one table of vectors.

    Parameters
    ----------
    source : path, ``FILE::NAME``, array or data frame
    user : str, optional
        Column of ids, where there are columns; one of the usual names otherwise.

    Returns
    -------
    values : ndarray of float64, shape (U, d)
        Finite.
    ids : tuple of str, length U, or None
        None where the file has none.

    Raises
    ------
    InputError
        For a file that cannot be read, values that are missing or not finite, ids that are there twice.
    """
    if isinstance(source, str | Path):
        path, name = file_and_name(source)
        if path.suffix.lower() not in ARRAYS:
            return _columns(path, user, encoding, argument)
        if not path.is_file():
            raise InputError(f"no file {path}", f"{', '.join(ARRAYS)}, or a table", "check the path")
        values = _checked(_READ[path.suffix.lower()](path, name), path.name)
        return values, _ids_beside(path, len(values)) if path.suffix.lower() == ".npz" else None
    if hasattr(source, "columns") or hasattr(source, "column_names"):
        return _columns(source, user, encoding, argument)
    return _checked(np.asarray(source), "the array"), None


def _checked(raw: NDArray[Any], name: str) -> Array:
    if raw.ndim != 2 or not raw.size or raw.dtype.kind not in "biuf":
        got = f"{name} holds {raw.dtype} of shape {raw.shape}"
        raise InputError(got, "real numbers of shape (users, dimensions)", "save one row of numbers for each user")
    values = raw.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        first = values[bad[0]][~np.isfinite(values[bad[0]])][0]
        raise InputError(
            f"{name} holds {first} in row{'s' * (len(bad) > 1)} {some(bad.tolist())} (the first row is 0)",
            "finite numbers in every row",
            "find where the model diverged, or leave those users out",
        )
    return values


# -- tables ---------------------------------------------------------------------------------------------------------


def _columns(source: Any, user: str | None, encoding: str, argument: str) -> tuple[Array, tuple[str, ...]]:
    table = open_columns(source, encoding, argument=argument)
    wanted = {"user": Column("id", unique=True, option="--ids")}
    ids = read_columns(table, wanted, {"user": user} if user is not None else {})
    column = ids.names["user"]
    rest = [name for name in table.header if name != column]
    if not rest:
        got = f"{table.name} has no column besides {column!r}"
        raise InputError(got, "one column for each dimension, or one column of lists", "export the vectors with it")
    users = tuple(ids["user"].to_list())
    if len(rest) == 1 and isinstance(table.frame[rest[0]].dtype, pl.List | pl.Array):
        return _lists(table, table.frame[rest[0]]), users
    found = read_columns(table, {name: Column("number") for name in rest}, dict(zip(rest, rest, strict=True)))
    return np.column_stack([found.array(name) for name in rest]), users


def _lists(table: Columns, column: pl.Series) -> Array:
    """Return lists of equal length as an array, shape (U, d)."""
    inner = column.dtype.inner  # type: ignore[attr-defined]
    accepted, todo = "lists of finite numbers, all of one length", "correct or delete those rows"
    if not inner.is_numeric():
        got = f"{table.name}: {column.name!r} has type {column.dtype}"
        raise InputError(got, accepted, "store one list of numbers for each user")
    lists = column.cast(pl.List(pl.Float64))
    size = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    usual = int(np.bincount(size).argmax())
    odd = np.flatnonzero((size != usual) | (size == 0))
    if len(odd):
        got = f"{column.name!r} has {size[odd[0]]} number{'' if size[odd[0]] == 1 else 's'}, most rows have {usual}"
        raise table.refuse(odd, got, accepted, todo)
    values: Array = lists.explode().fill_null(np.nan).to_numpy().reshape(-1, usual).astype(np.float64)  # (U, d)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        first = values[bad[0]][~np.isfinite(values[bad[0]])][0]
        raise table.refuse(bad, f"{column.name!r} holds {first}, not finite", accepted, todo)
    return values


# -- arrays ---------------------------------------------------------------------------------------------------------


def _choose_array(path: Path, shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    """Return the name of the array that was named, by its whole name or the end of it, or of the only one of 2-D."""
    flat = [one for one, shape in shapes.items() if len(shape) == 2]
    named = [name] if name in shapes else [one for one in shapes if one.endswith(f".{name}")] if name else flat
    if len(named) != 1:
        got = f"{len(named) or 'no'} array{'s' * (len(named) > 1)} {repr(name) if name else 'of two dimensions'}"
        shown = named or flat or [*shapes]
        names = ", ".join(f"{one!r} {shapes[one]}" for one in shown[:12]) + " ..." * (len(shown) > 12)
        close = difflib.get_close_matches(name, shown, 1) or [one for one in shown if "user" in one.lower()]
        todo = f"name it: {shlex.quote(f'{path}::')}{shlex.quote([*close, *shown, 'NAME'][0])}"
        raise InputError(f"{path.name} holds {got}", f"one of its arrays: {names or 'nothing'}", todo)
    return named[0]


def _numpy(path: Path, name: str) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        try:
            found = np.load(path, allow_pickle=False)
            arrays = {} if isinstance(found, np.ndarray) else {one: found[one] for one in found.files}
        except Exception as error:  # a damaged header ends in a dozen kinds, from TokenError to OverflowError
            with path.open("rb") as handle:
                pickled = "allow_pickle" in str(error) or handle.read(1) == b"\x80"
            raise InputError(
                f"{path.name} holds {'pickled Python objects' if pickled else 'no whole array'}",
                "arrays of numbers, read without pickle",
                "save it with numpy.save as an array of floats, ids as text: ids.astype(str)",
            ) from None
    if isinstance(found, np.ndarray):
        return found
    return np.asarray(arrays[_choose_array(path, {one: array.shape for one, array in arrays.items()}, name)])


def _ids_beside(path: Path, n: int) -> tuple[str, ...] | None:
    """Return n ids that lie beside the vectors, in an array with a usual name."""
    with np.load(path, allow_pickle=False) as found:
        for name in filter(names_ids, found.files):
            ids = found[name].astype(str)
            if ids.shape == (n,):
                wanted, frame = {"user": Column("id", unique=True)}, pl.DataFrame({name: ids})
                return tuple(read_columns(frame, wanted, {"user": name}, argument=path.name)["user"].to_list())
    return None


def _safetensors(path: Path, name: str) -> NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as handle:
            shapes = {one: tuple(handle.get_slice(one).get_shape()) for one in handle.keys()}  # noqa: SIM118
            chosen = _choose_array(path, shapes, name)
            if handle.get_slice(chosen).get_dtype() == "BF16":  # numpy has none
                from safetensors.torch import load_file

                return np.asarray(load_file(path)[chosen].float().numpy())
            return np.asarray(handle.get_tensor(chosen))
    except InputError:
        raise
    except (SafetensorError, OSError, TypeError, ValueError):
        got = f"{path.name} is no whole safetensors file"
        raise InputError(got, "a .safetensors file of numbers", "export it again") from None


def _torch(path: Path, name: str) -> NDArray[Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of an unpickler: anything
        got = f"{path.name} cannot be read under weights_only ({str(error).splitlines()[0][:80] if str(error) else ''})"
        raise InputError(got, "a tensor, or a dictionary of tensors", "save the tensor alone with torch.save") from None
    arrays: dict[str, Any] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            arrays[place] = value
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                if not str(key).startswith("optim"):  # its moments have the shapes of the weights and are no vectors
                    walk(f"{place}.{key}".lstrip("."), inner)

    walk("", found)
    chosen = _choose_array(path, {one: tuple(tensor.shape) for one, tensor in arrays.items()}, name)
    return np.asarray(arrays[chosen].detach().float().numpy())


_READ = {".npy": _numpy, ".npz": _numpy, ".safetensors": _safetensors, ".pt": _torch, ".pth": _torch}
