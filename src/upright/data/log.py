"""What an interaction log and a split of one are: dense codes, original ids, a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["Interactions", "Split", "fingerprint"]

# Without `eq=False` a comparison of two logs would compare arrays and raise.


@dataclass(frozen=True, eq=False)
class Interactions:
    """One log of who met what, ids as dense 0-based codes.

    Parameters
    ----------
    user, item : ndarray of int64, shape (N,)
        Codes, ``0 <= user < n_users`` and ``0 <= item < n_items``.
    value : ndarray of float64, shape (N,)
        Rating, count or spend; 1.0 where a log has none. Finite.
    time : ndarray of int64, shape (N,), or None
        Whole numbers in the log's own unit.
    n_users, n_items : int
        Number of codes; parts of a split share them, so a code may be absent from one part.
    user_ids, item_ids : tuple of str, length n_users and n_items
        Original id of each code.

    Raises
    ------
    InputError
        When lengths disagree, a code lies outside its range or a value is not finite.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    value: NDArray[np.float64]
    time: NDArray[np.int64] | None
    n_users: int
    n_items: int
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.user), len(self.item), len(self.value), len(self.user if self.time is None else self.time)}
        if len(lengths) != 1:
            raise InputError(
                f"columns of lengths {sorted(lengths)}",
                "user, item, value and time of one length",
                "pass one entry per interaction in each of them",
            )
        for word, codes, count, ids in (
            ("user", self.user, self.n_users, self.user_ids),
            ("item", self.item, self.n_items, self.item_ids),
        ):
            if len(ids) != count:
                raise InputError(f"{len(ids)} {word}_ids for n_{word}s = {count}", "one id per code", "make them agree")
            if len(codes) and (codes.min() < 0 or codes.max() >= count):
                raise InputError(
                    f"{word} codes from {codes.min()} to {codes.max()}",
                    f"whole numbers from 0 to {count - 1}",
                    f"raise n_{word}s, or code the ids densely (read_interactions does)",
                )
        if not np.isfinite(self.value).all():
            raise InputError(
                f"{int((~np.isfinite(self.value)).sum())} values that are NaN or infinite",
                "finite numbers",
                "repair or remove those rows first",
            )

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: NDArray[Any]) -> Interactions:
        """Return the log of some rows, in the order given; codes and ids stay.

        Parameters
        ----------
        rows : ndarray of int64, shape (M,), or of bool, shape (N,)
            Row numbers or a mask.

        Returns
        -------
        Interactions
            M rows.
        """
        return Interactions(
            self.user[rows], self.item[rows], self.value[rows], None if self.time is None else self.time[rows],
            self.n_users, self.n_items, self.user_ids, self.item_ids,
        )  # fmt: skip

    def csr(self) -> scipy.sparse.csr_array:
        """Return ``R[u, i] = 1 if u met i, else 0`` as a sparse matrix.

        Returns
        -------
        scipy.sparse.csr_array of float32, shape (n_users, n_items)
            Column indices sorted; repeated pairs collapse to one 1.0.
        """
        matrix = scipy.sparse.coo_array(
            (np.ones(len(self), dtype=np.float32), (self.user, self.item)), shape=(self.n_users, self.n_items)
        ).tocsr()
        matrix.sum_duplicates()
        matrix.data.fill(1.0)
        return matrix

    def counts(self, axis: Literal["user", "item"]) -> NDArray[np.int64]:
        """Return the number of rows of each user or item.

        Parameters
        ----------
        axis : {"user", "item"}
            What is counted.

        Returns
        -------
        ndarray of int64, shape (n_users,) or (n_items,)
            Repeated pairs count each time.
        """
        if axis not in ("user", "item"):
            raise InputError(f"axis = {axis!r}", "'user' or 'item'", "pass one of them")
        codes, size = (self.user, self.n_users) if axis == "user" else (self.item, self.n_items)
        return np.bincount(codes, minlength=size).astype(np.int64)


def fingerprint(train: Interactions, valid: Interactions) -> str:
    """SHA-256 over the arrays of train and valid; the test part is no argument, so it cannot matter.

    Each array enters as its name, its length and its little-endian bytes, in the order of the log: reordering
    the rows of train changes the fingerprint.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part, log in (("train", train), ("valid", valid)):
        for name, array, kind in (
            ("user", log.user, "<i8"),
            ("item", log.item, "<i8"),
            ("value", log.value, "<f8"),
            ("time", log.time, "<i8"),
        ):
            digest.update(f"{part}.{name}:{'none' if array is None else len(array)};".encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Split:
    """Train, validation and test part of one log, with what is known about its users and items.

    Parameters
    ----------
    train, valid, test : Interactions
        Parts that share codes and ids, each in the row order of the log.
    name, licence : str
        Name of the data and its terms in words.
    user_columns : mapping of column name to ndarray, shape (n_users,)
        Attributes of each user code, for example ``gender``.
    item_titles : tuple of str, length n_items, or None
        Title of each item code.
    notes : tuple of str
        What was left out between the file and the split, in words.

    Attributes
    ----------
    fingerprint : str
        See `fingerprint`; computed, not passed.

    Raises
    ------
    InputError
        When the parts do not share one coding, or a column has the wrong length.
    """

    train: Interactions
    valid: Interactions
    test: Interactions
    name: str
    licence: str
    user_columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    item_titles: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        sizes = {(part.n_users, part.n_items) for part in (self.train, self.valid, self.test)}
        if len(sizes) != 1:
            raise InputError(f"parts of sizes {sorted(sizes)} (users, items)", "one size", "code the parts together")
        for name, column in self.user_columns.items():
            if len(column) != self.n_users:
                raise InputError(
                    f"user column {name!r} of length {len(column)}", f"length {self.n_users}", "give one entry per user"
                )
        if self.item_titles is not None and len(self.item_titles) != self.n_items:
            raise InputError(f"{len(self.item_titles)} item titles", f"{self.n_items}", "give one title per item")
        object.__setattr__(self, "fingerprint", fingerprint(self.train, self.valid))

    @property
    def n_users(self) -> int:
        """Number of user codes."""
        return self.train.n_users

    @property
    def n_items(self) -> int:
        """Number of item codes."""
        return self.train.n_items
