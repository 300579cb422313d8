"""Whether two values hold the same numbers: largest difference, and a hash of everything inside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["digest", "gap_of"]


def gap_of(x: Any, y: Any) -> float:
    """Return the largest absolute difference; infinite when one is missing, or shapes or undefined places differ."""
    if x is None or y is None:
        return float("inf")
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or not np.array_equal(np.isnan(x), np.isnan(y)):
        return float("inf")
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.where(x == y, 0.0, x - y))
    return float(apart[~np.isnan(apart)].max(initial=0.0))


def digest(value: Any) -> str:
    """Return the SHA-256 of all that a value holds: arrays, tensors, sparse matrices, containers, attributes."""
    sha = hashlib.sha256()
    _feed(sha, value, set())
    return sha.hexdigest()


def _feed(sha: Any, value: Any, above: set[int]) -> None:
    """Add a value's whole content to a hash; a reference to something above it counts once."""
    if id(value) in above:
        return
    if value is None or isinstance(value, str | bytes | int | float | complex | type):
        sha.update(f"{type(value).__name__}:{value!r};".encode())
        return
    above = above | {id(value)}
    parts: Any
    if isinstance(value, np.ndarray) and value.dtype != object:
        sha.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        return
    if isinstance(value, Mapping):
        parts = sorted(((repr(k), v) for k, v in value.items()), key=lambda kv: kv[0])
    elif isinstance(value, set | frozenset):
        parts = sorted(map(repr, value))
    elif isinstance(value, np.ndarray | list | tuple):
        parts = list(value)
    elif hasattr(value, "detach"):
        parts = [str(value.dtype), value.detach().cpu().to_dense().double().numpy()]
    elif hasattr(value, "tocoo"):
        coo = value.tocoo()
        parts = [coo.shape, coo.row, coo.col, coo.data]
    elif hasattr(value, "__dict__"):
        parts = [type(value).__name__, vars(value)]
    else:
        parts = [repr(value)]
    sha.update(f"{type(value).__name__}({len(parts)})".encode())
    for part in parts:
        _feed(sha, part, above)
