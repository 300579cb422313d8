"""Interaction logs: dense codes and original ids, a person's file, k-core, the 70/10/20 split, a planted world.

Sizes of the split (as in the published splits of Epinions, Gowalla and MovieLens-100K, reproduced exactly)::

    n_test  = ceil(f_test * N)
    n_valid = ceil(f_valid / (f_train + f_valid) * (N - n_test))
    n_train = N - n_test - n_valid
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from upright.contract import InputError, stream

if TYPE_CHECKING:
    from upright.data.formats import Columns

__all__ = [
    "Interactions",
    "Split",
    "core_filter",
    "fingerprint",
    "random_split",
    "read_interactions",
    "read_user_columns",
    "synthetic",
]

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
        time = None if self.time is None else self.time[rows]
        return dataclasses.replace(self, user=self.user[rows], item=self.item[rows], value=self.value[rows], time=time)

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


def random_split(
    log: Interactions, *, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> tuple[Interactions, Interactions, Interactions]:
    """Split the whole log at random, not user by user.

    A user whom chance left without a training row gets one in exchange for a row of a user who has several, so
    the sizes stay as the module's formulas give them.

    Parameters
    ----------
    log : Interactions
        N rows.
    fractions : tuple of three float
        Train, validation and test share; each at least 0, train above 0, sum 1.
    seed : int
        Seed of the stream ``split``.

    Returns
    -------
    train, valid, test : Interactions
        Disjoint, together the log; each in the row order of the log, with the codes of the log.

    Raises
    ------
    InputError
        When the fractions do not fit, or train would have fewer rows than there are users.

    Guarantee
    ---------
    Every user of the log has at least one row in train. A pure function of log, fractions and seed.
    """
    if len(fractions) != 3 or not fractions[0] > 0 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise InputError(
            f"fractions = {fractions!r}",
            "three shares of at least 0 that sum to 1, train above 0",
            "use (0.7, 0.1, 0.2)",
        )
    rows = len(log)
    # The small subtraction keeps 0.2 * 5 = 1.0000000000000002 from becoming 2.
    n_test = math.ceil(fractions[2] * rows - 1e-9)
    n_valid = math.ceil(fractions[1] / (fractions[0] + fractions[1]) * (rows - n_test) - 1e-9)
    n_train = rows - n_test - n_valid
    counts = log.counts("user")
    present = int((counts > 0).sum())
    if n_train < max(present, 1):
        raise InputError(
            f"{n_train} training rows for {present} users in a log of {rows} rows",
            "at least one training row a user",
            "raise the training fraction, or drop users with few rows by core_filter or min_user (--set min_user=5)",
        )
    order = np.random.default_rng(stream(seed, "split")).permutation(rows)
    in_train = np.bincount(log.user[order[:n_train]], minlength=log.n_users)
    donor = n_train - 1
    for position in range(n_train, rows):
        user = log.user[order[position]]
        if in_train[user]:
            continue
        # One way is enough: a user passed over holds one row, and nobody's count rises but from 0 to 1.
        while in_train[log.user[order[donor]]] < 2:
            donor -= 1
        in_train[log.user[order[donor]]] -= 1
        in_train[user] += 1
        order[position], order[donor] = order[donor], order[position]
    train, valid, test = np.split(order, [n_train, n_train + n_valid])
    return log.take(np.sort(train)), log.take(np.sort(valid)), log.take(np.sort(test))


def _core_rows(log: Interactions, min_item: int, min_user: int, where: str = "") -> NDArray[np.int64]:
    """Return the rows of the largest sub-log in which every item and user has enough rows; refuse none."""
    rows = np.arange(len(log))
    while True:
        items = np.bincount(log.item[rows], minlength=log.n_items)
        kept = rows[items[log.item[rows]] >= min_item]
        users = np.bincount(log.user[kept], minlength=log.n_users)
        kept = kept[users[log.user[kept]] >= min_user]
        if not len(kept):
            got = f"{where}nothing is left of {len(log)} rows with min_item = {min_item} and min_user = {min_user}"
            raise InputError(got, "bounds that leave some users and items", "lower the bounds")
        if len(kept) == len(rows):
            return rows
        rows = kept


def _compact(log: Interactions, rows: NDArray[np.int64]) -> Interactions:
    """Take rows and give the users and items that are left new dense codes in the old order."""
    users, user = np.unique(log.user[rows], return_inverse=True)
    items, item = np.unique(log.item[rows], return_inverse=True)
    return dataclasses.replace(
        log.take(rows),
        user=user.astype(np.int64),
        item=item.astype(np.int64),
        n_users=len(users),
        n_items=len(items),
        user_ids=tuple(log.user_ids[u] for u in users),
        item_ids=tuple(log.item_ids[i] for i in items),
    )


def core_filter(log: Interactions, *, min_item: int = 5, min_user: int = 5) -> Interactions:
    """Return the largest sub-log with ``count(item) >= min_item`` and ``count(user) >= min_user``.

    Items and users are removed in turn until nothing changes; the fixed point does not depend on the order.
    The rest gets new dense codes; `user_ids` and `item_ids` keep the original ids.

    Parameters
    ----------
    log : Interactions
        N rows.
    min_item, min_user : int
        At least 0; 0 or 1 leaves that side alone.

    Returns
    -------
    Interactions
        In the row order of the log.

    Raises
    ------
    InputError
        When a bound is negative or nothing is left.
    """
    if min_item < 0 or min_user < 0:
        raise InputError(
            f"min_item = {min_item}, min_user = {min_user}", "whole numbers from 0", "raise the negative one"
        )
    return _compact(log, _core_rows(log, min_item, min_user))


def read_interactions(
    source: Any,
    *,
    user: str | None = None,
    item: str | None = None,
    value: str | None = "auto",
    time: str | None = None,
    duplicates: Literal["error", "last", "sum"] = "error",
    ids: Literal["auto", "text"] = "auto",
    min_user: int | None = None,
    min_item: int | None = None,
    encoding: str = "utf-8",
) -> Interactions:
    """Read a person's log from a file or a data frame; `upright.data.formats` says which.

    Parameters
    ----------
    source : path or data frame
    user, item : str, optional
        Columns of ids: whole numbers or text. By default one of the usual names. Blanks around an id are no part of it.
    value : str or None
        Column of ratings, counts or spend. ``auto`` takes one with a usual name, if there is one; without a column, or
        with None, every row counts 1.0.
    time : str or None
        Column of whole numbers, for example seconds since 1970, or of dates, which become microseconds.
    duplicates : {"error", "last", "sum"}
        What happens to rows with the same user and item: refuse them, keep the latest (by `time` where given,
        ties and files without time by order in the file), or keep the latest with the sum of the values.
    ids : {"auto", "text"}
        ``auto`` refuses a column in which most ids are numbers and some are not; ``text`` accepts any mixture.
    min_user, min_item : int or None
        Drop users and items with fewer rows (see `core_filter`). With None for `min_user` nobody is dropped and
        users with a single row, who cannot be split, are refused; 1 accepts them (their row goes to train).
    encoding : str
        Of a text file.

    Returns
    -------
    Interactions
        In the order of the file; codes follow the sorted ids (as numbers where all are numbers), so reordering
        the file changes no code.

    Raises
    ------
    InputError
        With the lines concerned (1-based, the header is line 1; rows in Parquet): unreadable or empty file,
        missing columns, missing or mixed ids, values or times that are no finite numbers, repeated pairs, users
        with one row.
    """
    from upright.data.columns import Column, read_columns

    for name, bound in (("min_user", min_user), ("min_item", min_item)):
        if bound is not None and bound < 1:
            raise InputError(f"{name} = {bound}", "a whole number from 1, or None", "raise it")
    for option, given, choices in (
        ("duplicates", duplicates, ("error", "last", "sum")),
        ("ids", ids, ("auto", "text")),
    ):
        if given not in choices:
            raise InputError(f"{option} = {given!r}", " | ".join(map(repr, choices)), "pass one of them")
    wanted = {"user": Column("id"), "item": Column("id")}
    wanted |= {"value": Column("number", optional=True)} if value is not None else {}
    wanted |= {"time": Column("time")} if time is not None else {}
    wanted = {name: dataclasses.replace(c, option=f"--set {name}_column=") for name, c in wanted.items()}
    names = {"user": user, "item": item, "value": None if value == "auto" else value, "time": time}
    table = read_columns(source, wanted, {n: own for n, own in names.items() if own is not None}, encoding=encoding)
    users, user_ids = _codes(table, "user", ids)
    items, item_ids = _codes(table, "item", ids)
    values = table.array("value").astype(np.float64) if "value" in table else np.ones(len(table))
    times = table.array("time").astype(np.int64) if "time" in table else None
    log = Interactions(users, items, values, times, len(user_ids), len(item_ids), user_ids, item_ids)
    keep, values = _merge_duplicates(table, log, duplicates)
    table, log = table.take(keep), dataclasses.replace(log.take(keep), value=values)
    rows = _core_rows(log, min_item or 1, min_user or 1, f"{table.name}: ")
    if min_user is None:
        counts = np.bincount(log.user[rows], minlength=log.n_users)
        lonely = rows[counts[log.user[rows]] == 1]
        if len(lonely):
            raise table.refuse(
                lonely,
                f"{len(lonely)} of {int((counts > 0).sum())} users have one interaction and cannot be split",
                "at least two interactions a user",
                "pass min_user=2 (or more) to drop them, or min_user=1 to keep them in train only "
                "(--set min_user=2 or 1)",
            )
    return log if len(rows) == len(log) else _compact(log, rows)


def _codes(table: Columns, name: str, ids: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Code ids in sorted order; a mixture of numbers and text is refused unless it was asked for."""
    from upright.data.columns import code_ids

    numeric = table[name].str.contains(r"^[+-]?[0-9]+$").to_numpy()
    odd = np.flatnonzero(~numeric)
    if ids == "auto" and 0 < len(odd) < len(numeric) / 2:
        raise table.refuse(
            odd,
            f"{name!r} is {table[name][int(odd[0])]!r}, yet a number in {int(numeric.sum())} of {len(numeric)} rows",
            "ids that are all numbers, or mostly text",
            "correct those rows, or pass ids='text' (--set ids=text) when the mixture is right",
        )
    return code_ids(table[name])


def _merge_duplicates(table: Columns, log: Interactions, how: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows to keep, in order, and their values."""
    user, item, value = log.user, log.item, log.value
    when = np.arange(len(log)) if log.time is None else log.time
    order = np.lexsort((when, item, user))
    # Within a run of one pair the last entry is the latest in time, ties by file order.
    last = np.append((np.diff(user[order]) != 0) | (np.diff(item[order]) != 0), True)
    if last.all():
        return np.arange(len(user)), value
    if how == "error":
        again = table.repeats("user", "item")
        todo = (
            "pass duplicates='last' (--set duplicates=last) to keep the latest row of each pair, or duplicates='sum' "
            "(--set duplicates=sum) to add their values"
        )
        got = f"{len(again)} rows repeat an earlier pair of user and item"
        raise table.refuse(again, got, "each pair once", todo)
    keep = order[last]
    starts = np.append(0, np.flatnonzero(last)[:-1] + 1)
    merged = np.add.reduceat(value[order], starts) if how == "sum" else value[keep]
    back = np.argsort(keep)
    return keep[back], merged[back]


def read_user_columns(source: Any, columns: Sequence[str], user: str | None = None) -> dict[str, dict[str, str]]:
    """Read attributes of users: one row a user, "" where an attribute is missing.

    Returns
    -------
    dict of column name to (id of a user to its value as text)

    Raises
    ------
    InputError
        For a file that cannot be read, missing columns, a row without a user, a user with two rows.
    """
    from upright.data.columns import Column, read_columns

    wanted = {"user": Column("id", unique=True, option="--set users_id=")}
    wanted |= {name: Column("text", missing=True, option="--set attribute=") for name in columns}
    table = read_columns(source, wanted, {"user": user} if user is not None else {})
    ids = table["user"].to_list()
    return {
        n: {u: "" if v.lower() in ("none", "na") else v for u, v in zip(ids, table[n], strict=True)} for n in columns
    }


def synthetic(
    n_users: int = 120,
    n_items: int = 80,
    seed: int = 0,
    *,
    n_communities: int = 3,
    item_exponent: float = 0.8,
    activity_exponent: float = 0.4,
    min_items: int = 8,
    max_share: float = 0.5,
    affinity: float = 30.0,
) -> Split:
    """Draw a small world with a Zipf item law, an activity law and planted communities.

    ``P(u picks i) ∝ (1 + rank_i)^-item_exponent * (affinity if community(u) = community(i) else 1)``, without
    replacement, ``n_u = clip(max_share * n_items * (1 + rank_u)^-activity_exponent)`` picks a user. Communities go
    round the ranks of both users and items, so each holds active users and popular items. Ratings are 4 or 5
    inside the own community and 2 or 3 outside; times are positions in a shuffled log.

    Parameters
    ----------
    n_users, n_items : int
        At least 2.
    seed : int
        Seed of the streams ``synthetic`` and ``split``.
    n_communities : int
        From 1 to the smaller of n_users and n_items.
    item_exponent, activity_exponent : float
        At least 0; 0 makes items equally popular, users equally active.
    min_items : int
        Fewest picks of a user, from 2.
    max_share : float
        Share of the catalogue that the most active user picks, above 0, at most 1.
    affinity : float
        Preference for the own community, above 0; 1 plants nothing.

    Returns
    -------
    Split
        70/10/20 by `random_split`; ``user_columns["community"]`` is int64, shape (n_users,), and community of
        item ``i`` stands in ``item_titles[i]`` as ``item <rank> (community <c>)``.

    Raises
    ------
    InputError
        When an argument lies outside its range.
    """
    for name, number, fits, words in (
        ("n_users", n_users, n_users >= 2, "a whole number from 2"),
        ("n_items", n_items, n_items >= 2, "a whole number from 2"),
        (
            "n_communities",
            n_communities,
            1 <= n_communities <= min(n_users, n_items),
            "from 1 to min(n_users, n_items)",
        ),
        ("min_items", min_items, 2 <= min_items <= n_items, "from 2 to n_items"),
        ("max_share", max_share, 0 < max_share <= 1, "above 0, at most 1"),
        ("item_exponent", item_exponent, 0 <= item_exponent < math.inf, "a number from 0"),
        ("activity_exponent", activity_exponent, 0 <= activity_exponent < math.inf, "a number from 0"),
        ("affinity", affinity, 0 < affinity < math.inf, "a number above 0"),
    ):
        if not fits:
            raise InputError(f"synthetic: {name} = {number!r}", words, f"set {name} inside that range")
    rng = np.random.default_rng(stream(seed, "synthetic"))
    # Codes are shuffled ranks: nothing may be learnt from the number of a user or an item.
    user_rank, item_rank = rng.permutation(n_users), rng.permutation(n_items)
    community, shelf = user_rank % n_communities, item_rank % n_communities
    log_weight = -item_exponent * np.log1p(item_rank)[None, :]  # (1, I)
    log_weight = log_weight + math.log(affinity) * (community[:, None] == shelf[None, :])  # (U, I)
    picks = np.round(max_share * n_items * (1.0 + user_rank) ** -activity_exponent).astype(np.int64)
    picks = np.clip(picks, min_items, n_items)
    # The n largest of log-weight plus Gumbel noise are n draws without replacement.
    ranking = np.argsort(-(log_weight + rng.gumbel(size=(n_users, n_items))), axis=1)
    chosen = np.arange(n_items)[None, :] < picks[:, None]
    user = np.repeat(np.arange(n_users), picks)
    item = ranking[chosen]
    value = 2.0 + rng.integers(0, 2, size=len(user)) + 2.0 * (community[user] == shelf[item])
    shuffled = rng.permutation(len(user))
    columns = user[shuffled], item[shuffled], value[shuffled], np.arange(len(user), dtype=np.int64)
    ids = tuple(f"u{u}" for u in range(n_users)), tuple(f"i{i}" for i in range(n_items))
    log = Interactions(*columns, n_users, n_items, *ids)
    return Split(
        *random_split(log, seed=seed),
        name="synthetic",
        licence="none: drawn by upright.data.interactions.synthetic",
        user_columns={"community": community.astype(np.int64)},
        item_titles=tuple(f"item {rank} (community {c})" for rank, c in zip(item_rank, shelf, strict=True)),
    )
