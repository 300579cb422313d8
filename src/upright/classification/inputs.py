"""What people hand over, checked: probabilities, sensitive features, clients, labels.

Whatever does not fit is an `InputError`: another length, a missing value, and what a function names besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["as_codes", "as_column", "as_features", "as_labels", "as_probabilities", "as_seed", "as_text", "classes_in",
           "one_hot", "places", "require_one_index", "some"]  # fmt: skip

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def some(names: Sequence[Any], most: int = 5) -> str:
    """Name the first few."""
    words = ", ".join(map(repr, names[:most]))
    return words if len(names) <= most else f"{words} and {len(names) - most} more"


def _rows(bad: Any) -> str:
    at = np.flatnonzero(bad)
    return f"row {at[0]}" if len(at) == 1 else f"{len(at)} rows, the first of them {some(at[:3].tolist())}"


def _missing(values: Any) -> NDArray[np.bool_]:
    # the NA of a data frame is neither true nor false
    def absent(v: Any) -> bool:
        try:
            return v is None or not bool(v == v)
        except TypeError:
            return True

    return np.array([absent(v) for v in values.tolist()], dtype=bool)


def places(values: NDArray[Any], known: Sequence[Any]) -> tuple[Ints, list[str]]:
    """Return the place of each value among known ones, shape (n,) and -1 for the others, and the others' names."""
    at = {v: i for i, v in enumerate(known)}
    codes = np.array([at.get(v, -1) for v in values.tolist()], dtype=np.int64)
    return codes, sorted({str(v) for v in values[codes < 0].tolist()})


def as_text(values: NDArray[Any]) -> NDArray[np.str_]:
    """Return the names of values, shape of values: a number that is whole has one name, so that 1.0 is 1."""

    def name(v: Any) -> str:
        return str(int(v)) if isinstance(v, float | np.floating) and v.is_integer() else str(v)

    return np.array([name(v) for v in values.tolist()], dtype=str)


def as_column(given: Any, n: int, what: str, one: str = "one for each sample") -> NDArray[Any]:
    """Return one value a sample, shape (n,)."""
    values = np.asarray(given, dtype=None if hasattr(given, "dtype") else object)  # a NaN among texts stays one
    if values.shape != (n,):
        raise InputError(f"{what} of shape {values.shape} for {n} samples", f"shape ({n},)", "give one to each sample")
    if values.dtype.kind not in "biuU":
        missing = _missing(values)
        if missing.any():
            raise InputError(f"{what} missing at {_rows(missing)}", one, "leave these samples out")
    return values


def as_seed(given: Any) -> int:
    """Return a seed, a whole number."""
    if not isinstance(given, int | np.integer):
        raise InputError(f"random_state = {given!r}", "a whole number, or None", "pass a seed, for example 0")
    return int(given)


def require_one_index(**given: Any) -> None:
    """Refuse pandas objects of different indices: their rows would be matched by position."""
    indexed = {name: value.index for name, value in given.items() if hasattr(getattr(value, "index", None), "equals")}
    first = next(iter(indexed), "")
    for name, index in indexed.items():
        if not index.equals(indexed[first]):
            got = f"{name} has another index than {first}, so that their rows may not be the same"
            raise InputError(got, "objects with one index, or arrays", f"pass {name}.loc[{first}.index]")


def as_probabilities(given: Any, classes: int | None = None) -> Array:
    """Return class probabilities as float64, shape (n, m): finite, of at least 0, rows that sum to 1 within 1e-4."""
    try:
        p = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("probabilities that are not numbers", "shape (n, classes)", "pass predict_proba(X)") from None
    if p.ndim != 2 or p.shape[1] < 2 or not len(p) or (classes is not None and p.shape[1] != classes):
        width = "two columns or more" if classes is None else f"{classes} columns"
        raise InputError(
            f"probabilities of shape {p.shape}", f"one row a sample and {width}, one a class",
            "pass predict_proba(X); for two classes both columns",
        )  # fmt: skip
    bad = ~np.isfinite(p).all(1)
    if bad.any():
        raise InputError(
            f"NaN or infinity in probabilities: {_rows(bad)}", "finite numbers", "find out where the model failed"
        )
    bad = (p < -1e-9).any(1) | (np.abs(p.sum(1) - 1.0) > 1e-4)
    if bad.any():
        raise InputError(
            f"probabilities that are no distribution: {_rows(bad)} (sum {p[np.flatnonzero(bad)[0]].sum():.4g})",
            "numbers of at least 0 that sum to 1 in each row", "pass probabilities, not logits or scores",
        )  # fmt: skip
    p = np.clip(p, 0.0, None)
    return np.asarray(p / p.sum(1, keepdims=True))


def as_features(given: Any, n: int) -> dict[str, NDArray[np.str_]]:
    """Return sensitive features by name, each of shape (n,) as text.

    A vector, a matrix, a series, a data frame of any library, or a mapping of name to vector. Columns are families of
    groups; the groups of different families may overlap. No column, and two of one name, are refused.
    """
    if isinstance(given, Mapping):
        columns = {str(k): np.asarray(v, dtype=object) for k, v in given.items()}
    else:
        names = getattr(given, "columns", None)
        values = np.asarray(given, dtype=object)
        if values.ndim == 1:
            columns = {str(getattr(given, "name", None) or "group"): values}
        elif values.ndim == 2 and values.shape[1]:
            several = [f"group{i}" for i in range(values.shape[1])] if values.shape[1] > 1 else ["group"]
            title = several if names is None else [str(c) for c in names]
            if len(set(title)) < len(title):
                raise InputError(
                    f"sensitive features {some(title)}", "one name a column", "rename the columns that share a name"
                )
            columns = {t: values[:, i] for i, t in enumerate(title)}
        else:
            raise InputError(
                f"sensitive_features of shape {values.shape}", "one value a sample, or one column a family of groups",
                "pass a vector, a data frame, or a mapping of name to vector",
            )  # fmt: skip
    if not columns:
        raise InputError("sensitive_features without a column", "one family of groups or more", "pass a vector")
    for name, column in columns.items():
        if column.shape != (n,):
            raise InputError(
                f"sensitive feature {name!r} of shape {column.shape} for {n} samples", f"shape ({n},)",
                "give one value to each sample",
            )  # fmt: skip
        missing = _missing(column)
        if missing.any():
            raise InputError(
                f"sensitive feature {name!r} is missing at {_rows(missing)}", "a group for each sample",
                "leave these samples out, or name their group, for example 'unknown'",
            )  # fmt: skip
    return {name: as_text(column) for name, column in columns.items()}


def as_codes(given: Any, n: int, known: Sequence[str] | None) -> tuple[Ints, list[str]]:
    """Return the place of each client among known ones (-1: not known), and those; None takes them from here."""
    if given is None:
        return np.zeros(n, dtype=np.int64), list(known or ["all"])
    text = as_text(as_column(given, n, "clients"))
    names = sorted(set(text.tolist()), key=lambda v: (len(v), v)) if known is None else list(known)
    return places(text, names)[0], names


def classes_in(given: Any, n: int) -> list[Any]:
    """Return the sorted classes of labels, shape (n,), which are of one kind."""
    values = as_column(given, n, "labels", "a label for each sample")
    try:
        return list(np.unique(values).tolist())
    except TypeError:
        kinds = sorted({type(v).__name__ for v in values.tolist()})
        raise InputError(
            f"labels of the kinds {', '.join(kinds)}", "labels of one kind", "make all text, or all numbers"
        ) from None


def as_labels(given: Any, n: int, classes: Sequence[Any]) -> Ints:
    """Return the place of each label among the classes, shape (n,); a label that is no class is refused."""
    known = np.asarray(classes).tolist()
    codes, strangers = places(as_column(given, n, "labels", "a label for each sample"), known)
    if strangers:
        accepted = f"classes {some(known, 10)}"
        raise InputError(f"labels {some(strangers)}", accepted, "pass `classes` in the order of the columns")
    return codes


def one_hot(codes: Ints, size: int) -> Array:
    """Return one-hot rows, shape (n, size); a negative code gives a row of zeros."""
    return np.where(codes[:, None] < 0, 0.0, np.eye(size)[codes])
