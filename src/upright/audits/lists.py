"""Files of an audit of ranked lists, checked: lists, held-out items, groups of users, popularity of items.

The data layer reads them, all ids as text, and says on which line something is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.readers import RawLog, read_log
from upright.data.source import check_header, open_source

__all__ = [
    "BINS",
    "Catalogue",
    "Lists",
    "plural",
    "popularity_bins",
    "read_groups",
    "read_items",
    "read_lists",
    "read_pairs",
    "some",
    "users_without_list",
]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = (("head", 0.2), ("mid", 0.3), ("tail", 0.5))  # name and share of the items
_SHOWN = 5  # ids named in a message before "and n more"


def read_pairs(path: Path, user: str, item: str, value: str | None = None) -> RawLog:
    """Read one file with the data layer's checks; advice meant for Python callers is said in words of files.

    Raises
    ------
    InputError
        As `upright.data.readers.read_log`.
    """
    try:
        return read_log(path, user=user, item=item, value=value, time=None, duplicates="error", ids="text")
    except InputError as error:
        todo = {"name the columns": "rename the columns of the file", "pass duplicates": "keep one row of each pair"}
        better = next((words for start, words in todo.items() if error.todo.startswith(start)), None)
        if better is None:
            raise
        got = error.got.replace("pair of user and item", f"pair of {user} and {item}")
        raise InputError(got, error.accepted, better) from None


def _header(path: Path, wanted: list[str]) -> list[str]:
    source = open_source(path)
    try:
        check_header(source, wanted)
    except InputError as error:
        if not error.todo.startswith("name the columns"):
            raise
        raise InputError(error.got, error.accepted, "rename the columns of the file") from None
    return source.header()


def _either(path: Path, header: Sequence[str], one: str, other: str, words: str) -> None:
    """Refuse a header with neither of two columns."""
    if one in header or other in header:
        return
    folded = {name.lower().strip(): name for name in header}
    close = [(folded[m], w) for w in (one, other) for m in difflib.get_close_matches(w, folded, n=1, cutoff=0.5)]
    todo = f"rename {close[0][0]!r} to {close[0][1]!r}" if close else f"add a column {one!r} or {other!r}"
    columns = ", ".join(map(repr, header))
    raise InputError(
        f"{path.name} line 1 has neither {one!r} nor {other!r}", f"{words}; its columns are {columns}", todo
    )


def some(ids: Sequence[str]) -> str:
    """Write the first ids and how many more there are."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(repr, ids[:_SHOWN])) + more


def plural(n: int, word: str) -> str:
    """Write a number with its noun."""
    return f"{n} {word}{'' if n == 1 else 's'}"


@dataclass(frozen=True, eq=False)
class Lists:
    """Rows of the lists; `rank` holds positions from 1 on, or None when `score` orders the rows."""

    log: RawLog
    rank: Ints | None
    score: Array
    relevant: NDArray[np.bool_] | None
    warnings: tuple[str, ...]


def read_lists(path: Path, judged: bool) -> Lists:
    """Read lists; `judged` says that a held-out file tells what is relevant.

    Raises
    ------
    InputError
        For missing columns, a rank that is taken or below 1, a pair given twice, a number that is none.
    """
    header = _header(path, ["user", "item"])
    _either(path, header, "rank", "score", "rank (1 is the top) or score (higher is better) besides user and item")
    if not judged and "relevant" not in header:
        raise InputError(
            f"{path.name} has no column 'relevant', and no held-out file was given",
            "a held-out file with user and item, or a column 'relevant' of 0 and 1",
            "pass --held-out FILE, or add the column",
        )
    warnings = []
    by_rank = "rank" in header
    log = read_pairs(path, "user", "item", "rank" if by_rank else "score")
    rank: Ints | None = None
    if by_rank:
        if "score" in header:
            warnings.append(f"{path.name} has rank and score; rank orders the lists and score is not read.")
        rank = _ranks(log)
        if _gaps_in(log.user, rank):
            warnings.append(
                f"{plural(_gaps_in(log.user, rank), 'list')} skip a rank; the places skipped count as misses."
            )
    relevant = None
    if "relevant" in header and judged:
        warnings.append(f"{path.name} has a column 'relevant'; the held-out file decides and the column is not read.")
    elif "relevant" in header:
        flag = read_pairs(path, "user", "item", "relevant")
        odd = np.flatnonzero((flag.value != 0) & (flag.value != 1))
        if len(odd):
            raise flag.source.refuse(
                flag.row[odd], f"'relevant' is {flag.value[odd[0]]:g}", "0 or 1 in every row", "correct those rows"
            )
        relevant = flag.value == 1
        warnings.append(
            "Relevance comes from the lists themselves: relevant items that a list lacks are unknown, so NDCG and "
            "recall are relative to the items listed, and undefined for a list without a relevant one."
        )
    return Lists(log, rank, log.value, relevant, tuple(warnings))


def _ranks(log: RawLog) -> Ints:
    """Return checked ranks."""
    value, source = log.value, log.source
    bad = np.flatnonzero((value < 1) | (value != np.floor(value)) | (value >= 2.0**31))
    if len(bad):
        todo = "add 1 to every rank" if (value[bad] == 0).any() else "correct those rows"
        raise source.refuse(
            log.row[bad], f"'rank' is {value[bad[0]]:g}", "whole numbers from 1 on, 1 being the top", todo
        )
    rank = value.astype(np.int64)
    order = np.lexsort((log.row, rank, log.user))
    same = np.append(False, (np.diff(log.user[order]) == 0) & (np.diff(rank[order]) == 0))
    if same.any():
        again = np.sort(order[same])
        user, which = log.user_ids[log.user[again[0]]], rank[again[0]]
        raise source.refuse(
            log.row[again],
            f"rank {which} of user {user!r} is taken already",
            "each rank once in a list",
            "number each list 1, 2, 3 ..., or give scores, where ties are allowed",
        )
    return rank


def _gaps_in(user: Ints, rank: Ints) -> int:
    """Number of lists whose ranks are not 1..length."""
    last = np.zeros(int(user.max()) + 1, dtype=np.int64)
    np.maximum.at(last, user, rank)
    return int((last != np.bincount(user)).sum())


def read_groups(path: Path, column: str, users: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the group of each user, and warnings.

    Raises
    ------
    InputError
        For a user with two groups, or one of `users` with none.
    """
    log = read_pairs(path, "user", column)
    first: dict[int, int] = {}
    twice = [i for i, u in enumerate(log.user.tolist()) if first.setdefault(u, i) != i]
    if twice:
        who = log.user_ids[log.user[twice[0]]]
        raise log.source.refuse(log.row[twice], f"user {who!r} has two groups", "one group a user", "keep one of them")
    group = {log.user_ids[u]: log.item_ids[log.item[i]] for u, i in first.items()}
    lacking = [user for user in users if user not in group]
    if lacking:
        raise InputError(
            f"{path.name} has no group for {len(lacking)} of {len(users)} users: {some(lacking)}",
            "a group for every user with a list",
            "add them, under a group of their own such as 'unknown' when theirs is not known",
        )
    extra = len(group) - len(users)
    said = [f"{path.name} names {plural(extra, 'user')} that the lists do not; ignored."] if extra else []
    return [group[user] for user in users], said


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Bin and count of each item of the popularity file."""

    ids: tuple[str, ...]
    bin: tuple[str, ...]
    count: Array | None
    by_count: bool
    words: str


def popularity_bins(count: Array) -> list[str]:
    """Return head, mid or tail for each item.

    The place of an item is ``(#{j : c_j > c_i} + #{j : c_j = c_i} / 2) / I``: below 0.2 it is head, below 0.5 mid, else
    tail. Items with equal counts are in the same bin, so sizes are 20, 30 and 50 % but for ties.

    Parameters
    ----------
    count : ndarray of float64, shape (I,)
        Interactions of each item.
    """
    _, place, number = np.unique(-count, return_inverse=True, return_counts=True)
    middle = (np.cumsum(number) - number / 2) / len(count)
    bounds = np.cumsum([share for _, share in BINS])[:-1]
    names = np.array([name for name, _ in BINS])[np.searchsorted(bounds, middle, side="right")]
    return [str(name) for name in names[place]]


def read_items(path: Path) -> Catalogue:
    """Return the items of a popularity file; a column ``bin`` takes the place of the bins by count.

    Raises
    ------
    InputError
        For a count that is no number of at least 0, or an item with two rows.
    """
    header = _header(path, ["item"])
    _either(path, header, "count", "bin", "count (interactions in training) or bin besides item")
    count: Array | None = None
    if "count" in header:
        log = read_pairs(path, "item", "count")
        count = np.empty(len(log.user_ids))
        numbers = np.array([_number(text) for text in log.item_ids])
        own = numbers[log.item]
        bad = np.flatnonzero(~(np.isfinite(own) & (own >= 0)))
        if len(bad):
            raise log.source.refuse(
                log.row[bad],
                f"'count' is {log.item_ids[log.item[bad[0]]]!r}",
                "a number of at least 0 in every row",
                "correct those rows",
            )
        _once(log)
        count[log.user] = own
        ids, names = log.user_ids, popularity_bins(count)
        words = "head, mid, tail: 20, 30 and 50 % of the items by count, equal counts in one bin"
    if "bin" in header:
        log = read_pairs(path, "item", "bin")
        _once(log)
        named = np.empty(len(log.user_ids), dtype=object)
        named[log.user] = np.asarray(log.item_ids, dtype=object)[log.item]
        ids, names, words = log.user_ids, [str(name) for name in named], f"column 'bin' of {path.name}"
    return Catalogue(ids, tuple(names), count, "bin" not in header, words)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _once(log: RawLog) -> None:
    order = np.lexsort((log.row, log.user))
    again = np.sort(order[np.append(False, np.diff(log.user[order]) == 0)])
    if len(again):
        item = log.user_ids[log.user[again[0]]]
        raise log.source.refuse(log.row[again], f"item {item!r} again", "each item once", "keep one row of each item")


def users_without_list(wanted: RawLog, who: Sequence[str], lists: str, missing: str) -> list[str]:
    """Return users with held-out items and without a list.

    Raises
    ------
    InputError
        When there is one, unless `missing` is ``zero``, and when no user has a list.
    """
    there = set(who)
    absent = [user for user in wanted.user_ids if user not in there]
    name = wanted.source.path.name
    if len(absent) == len(wanted.user_ids):
        raise InputError(
            f"no user of {name} is in {lists}: {some(absent)}",
            "the same users in both files",
            "write ids alike in both files (text is compared, so '1' is not '01')",
        )
    if absent and missing == "error":
        raise InputError(
            f"{len(absent)} of {len(wanted.user_ids)} users in {name} have no list in {lists}: {some(absent)}",
            "a list for every user with held-out items",
            "add their lists, or pass missing='zero' to count them as users who were shown nothing",
        )
    return absent
