"""Draws that belong to a person: one number from a seed and an id, the same in any call, order, process and version.

Draw
----
    u = mix(id XOR mix(seed)) / 2^64,        mix the last step of splitmix64

An id that is a whole number is itself, modulo 2^64, whether it comes as 7, 7.0 or "7"; other text is the first eight
bytes of BLAKE2b of its UTF-8. Nothing here rests on the hash of a library, which may change with its version.

Source: Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators* (2014), for the mixing.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from upright.classification.inputs import as_column

__all__ = ["mix", "row_ids", "uniforms", "words"]

Words = NDArray[np.uint64]
_ALL = (1 << 64) - 1


def mix(x: Words) -> Words:
    """Return the outputs of splitmix64 at the states x, shape of x."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _word(value: Any) -> int:
    if isinstance(value, float | np.floating):
        return int(words(np.array([value], dtype=np.float64))[0])
    text = str(int(value)) if isinstance(value, bool | np.bool_) else str(value)
    if text.isascii() and text.removeprefix("-").isdigit() and str(int(text[:20])) == text:
        return int(text) & _ALL
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def words(values: NDArray[Any]) -> Words:
    """Return the 64 bits of each value, shape (n,): whole numbers as they are, others by their bits, text hashed."""
    if values.dtype.kind in "biu":
        return values.astype(np.uint64 if values.dtype.kind == "u" else np.int64).view(np.uint64)
    if values.dtype.kind == "f":
        own = values.astype(np.float64)
        whole = (np.abs(own) < 2.0**63) & (own == np.floor(own))
        out = np.where(np.isnan(own), np.nan, own).view(np.uint64)
        out[whole] = own[whole].astype(np.int64).view(np.uint64)
        return np.asarray(out)
    return np.fromiter(map(_word, values.tolist()), dtype=np.uint64, count=len(values))


def row_ids(*tables: Any) -> Words:
    """Return an id of each row from its values and its number among equal rows, shape (n,).

    Tables are arrays of shape (n,) or (n, d), sparse matrices or data frames. Zeros and the kind of table make no
    difference, the place of a column does. Where more than half of the rows equal another one a `UserWarning` says so:
    which of them a draw is for is then a matter of order.
    """
    total, place = np.zeros(tables[0].shape[0], dtype=np.uint64), 0
    for table in tables:
        if issparse(table):
            entries = table.tocoo()
            at = mix(place + entries.col.astype(np.uint64))
            np.add.at(total, entries.row, np.where(entries.data != 0, mix(words(entries.data) ^ at), np.uint64(0)))
            place += table.shape[1]
            continue
        for column in _columns(table):
            own, at = words(column), mix(np.array([place], dtype=np.uint64))
            total += np.where(own != 0, mix(own ^ at), np.uint64(0))
            place += 1
    order = np.argsort(total, kind="stable")
    first = np.r_[True, np.diff(total[order]) != 0]
    rows = np.arange(len(total), dtype=np.uint64)
    number = np.empty_like(total)
    number[order] = rows - np.maximum.accumulate(np.where(first, rows, np.uint64(0)))
    if 2 * first.sum() < len(total):
        warnings.warn(
            f"{len(total) - first.sum()} of {len(total)} rows equal another row of this call: their draws follow their "
            "order, and equal rows that come one a call all share one draw; pass ids=",
            UserWarning, stacklevel=3,
        )  # fmt: skip
    return mix(total ^ mix(number))


def _columns(table: Any) -> list[NDArray[Any]]:
    if hasattr(table, "iloc"):
        return [np.asarray(table.iloc[:, j]) for j in range(table.shape[1])]
    if hasattr(table, "columns"):
        return [np.asarray(table[name]) for name in table.columns]
    return list(table.T) if table.ndim == 2 else [table]


def uniforms(ids: Any, seed: int, n: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each id, shape (n,): numbers or text; equal ids have equal draws.

    Another length and missing ids are refused.
    """
    own = words(as_column(ids, n, "ids"))
    key = mix(np.array([seed & _ALL], dtype=np.uint64))
    return np.asarray((mix(own ^ key) >> np.uint64(11)) * 2.0**-53)
