"""A table in memory, and the names of its columns: rows with a label and sensitive columns, cuts such as ``age<25``."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["Table", "cut_of", "known"]

_CUT = re.compile(r"\s*(.*?[^\s<>])\s*(<=|>=|<|>)\s*([-+]?[0-9]+(?:\.[0-9]*)?)\s*")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows with a label and sensitive columns.

    Parameters
    ----------
    name : str
        Name in the catalogue, or of the file.
    columns : mapping of column name to ndarray, shape (n,)
        Every column, float64 or str objects. NaN only in numbers that are neither features nor sensitive.
    features : tuple of str
        Columns that may be features.
    sensitive : tuple of str
        Names of the sensitive columns, the first is the default.
    label : ndarray of int64, shape (n,)
        Index into `classes`.
    classes : tuple of str
        In order; of two, the last is the positive one.
    facts : mapping
        Rows read, rows dropped and why, columns left out of the features and why, licence; JSON-able.

    Attributes
    ----------
    fingerprint : str
        SHA-256 over everything but name and facts; computed, not passed.

    Raises
    ------
    InputError
        When a column has another length than the label, a named column is absent, or a label is no class.
    """

    name: str
    columns: Mapping[str, NDArray[Any]]
    features: tuple[str, ...]
    sensitive: tuple[str, ...]
    label: NDArray[np.int64]
    classes: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if np.shape(column) != (len(self.label),):
                raise InputError(
                    f"column {name!r} of shape {np.shape(column)}", f"shape ({len(self.label)},) as the label",
                    "give one value a row",
                )  # fmt: skip
        for name in (*self.features, *self.sensitive):
            known(self.columns, name)
        if len(self.label) and not 0 <= self.label.min() <= self.label.max() < len(self.classes):
            raise InputError(
                f"labels from {self.label.min()} to {self.label.max()}", f"0 to {len(self.classes) - 1}",
                "give the index of a class in each row",
            )  # fmt: skip
        object.__setattr__(self, "fingerprint", _fingerprint(self))

    def __len__(self) -> int:
        return len(self.label)


def _fingerprint(table: Table) -> str:
    """SHA-256 of columns, choice of features, labels and classes, in their order."""
    digest = hashlib.sha256(repr((table.features, table.sensitive, table.classes)).encode())
    digest.update(np.ascontiguousarray(table.label, dtype="<i8").tobytes())
    for name, column in table.columns.items():
        digest.update(f";{name}:{len(column)}:{column.dtype.kind};".encode())
        if column.dtype.kind == "f":
            digest.update(np.ascontiguousarray(column, dtype="<f8").tobytes())
        else:
            texts = column.tolist()
            # lengths too, so that ("ab", "c") and ("a", "bc") differ
            digest.update(np.fromiter(map(len, texts), dtype="<i8", count=len(texts)).tobytes())
            digest.update("".join(texts).encode())
    return digest.hexdigest()


def known(columns: Mapping[str, Any], name: str) -> str:
    """Return the name of a column that is there."""
    if name not in columns:
        close = difflib.get_close_matches(name, list(columns), n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise InputError(f"no column {name!r}{hint}", ", ".join(map(repr, columns)), "name one of these columns")
    return name


def cut_of(name: str) -> tuple[str, str, float] | None:
    """Return column, sign and number of a cut such as ``age<25``, None for a plain name."""
    found = _CUT.fullmatch(name)
    return (found[1], found[2], float(found[3])) if found else None
