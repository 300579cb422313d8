"""How the files of each catalogued data set, or a person's file, become a split. Files are verified before."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.interactions import Interactions, Split, core_filter, random_split, read_interactions

if TYPE_CHECKING:
    from upright.data.catalogue import Entry

__all__ = ["READERS", "from_file"]

_MIN_ITEM = 5


def _coded(users: list[str], items: list[str], value: NDArray[np.float64], time: NDArray[np.int64]) -> Interactions:
    """Code ids that are whole numbers in the order of the numbers."""
    user_ids, item_ids = sorted(set(users), key=int), sorted(set(items), key=int)
    user_code = {one: code for code, one in enumerate(user_ids)}
    item_code = {one: code for code, one in enumerate(item_ids)}
    return Interactions(
        np.array([user_code[one] for one in users], dtype=np.int64),
        np.array([item_code[one] for one in items], dtype=np.int64),
        value, time, len(user_ids), len(item_ids), tuple(user_ids), tuple(item_ids),
    )  # fmt: skip


def _rows(path: Path, separator: str) -> list[list[str]]:
    """Return the records below the header; tab-separated files of this kind know no quotes."""
    with path.open(newline="", encoding="utf-8") as handle:
        if separator == "\t":
            return [line.rstrip("\r\n").split("\t") for line in handle][1:]
        return list(csv.reader(handle))[1:]


def _movies(path: Path, separator: str) -> tuple[Interactions, tuple[str, ...]]:
    """Read user, item, rating, time and keep the items with enough interactions."""
    users, items, ratings, times = zip(*_rows(path, separator), strict=True)
    whole = _coded(list(users), list(items), np.array(ratings, dtype=np.float64), np.array(times, dtype=np.int64))
    log = core_filter(whole, min_item=_MIN_ITEM, min_user=0)
    note = (
        f"{whole.n_items - log.n_items} of {whole.n_items} items with fewer than {_MIN_ITEM} interactions left out, "
        f"with {len(whole) - len(log)} of {len(whole)} rows and {whole.n_users - log.n_users} users"
    )
    return log, (note,)


def _ml100k(entry: Entry, folder: Path, seed: int) -> Split:
    log, notes = _movies(folder / "ml-100k.inter", "\t")
    about = {row[0]: row for row in _rows(folder / "ml-100k.user", "\t")}
    title = {row[0]: row[1] for row in _rows(folder / "ml-100k.item", "\t")}
    people = [about[one] for one in log.user_ids]  # user, age, gender, occupation, zip code
    columns: dict[str, NDArray[Any]] = {
        "gender": np.array([row[2] for row in people]),
        "age": np.array([int(row[1]) for row in people], dtype=np.int64),
        "occupation": np.array([row[3] for row in people]),
    }
    train, valid, test = random_split(log, seed=seed)
    titles = tuple(title[one] for one in log.item_ids)
    return Split(train, valid, test, entry.name, entry.licence, columns, titles, notes)


def _ml_latest_small(entry: Entry, folder: Path, seed: int) -> Split:
    log, notes = _movies(folder / "ratings.csv", ",")
    title = {row[0]: row[1] for row in _rows(folder / "movies.csv", ",")}
    train, valid, test = random_split(log, seed=seed)
    titles = tuple(title[one] for one in log.item_ids)
    return Split(train, valid, test, entry.name, entry.licence, item_titles=titles, notes=notes)


def _given_parts(entry: Entry, folder: Path, seed: int) -> Split:
    """Read ``user item value`` in train, tune, test order, every row in the order of its file.

    The order of the test rows matters: the published sampled protocol takes the first test item of a user.
    """
    tables = [np.loadtxt(folder / file, dtype=np.int64, ndmin=2) for file in entry.files]  # each (N, 3)
    # Ids are 0-based and dense over the three files together, so they are the codes.
    n_users, n_items = (1 + max(int(table[:, column].max()) for table in tables) for column in (0, 1))
    user_ids, item_ids = tuple(map(str, range(n_users))), tuple(map(str, range(n_items)))
    train, valid, test = (
        Interactions(
            table[:, 0].copy(),
            table[:, 1].copy(),
            table[:, 2].astype(np.float64),
            None,
            n_users,
            n_items,
            user_ids,
            item_ids,
        )
        for table in tables
    )
    return Split(train, valid, test, entry.name, entry.licence, notes=("published train, validation and test parts",))


READERS: Mapping[str, Callable[[Entry, Path, int], Split]] = {
    "ml100k": _ml100k,
    "ml_latest_small": _ml_latest_small,
    "given_parts": _given_parts,
}
"""Reader by the name that an entry of the catalogue carries; takes entry, folder and split seed."""


def from_file(path: Path, seed: int, options: Mapping[str, Any]) -> Split:
    """Read a person's file and split it 70/10/20.

    Raises
    ------
    InputError
        For an option that `read_interactions` does not have, and for everything it refuses.
    """
    known = [name for name in inspect.signature(read_interactions).parameters if name != "source"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f"reader option {', '.join(map(repr, unknown))}", ", ".join(known), "use one of these names")
    log = read_interactions(path, **options)
    train, valid, test = random_split(log, seed=seed)
    return Split(train, valid, test, name=path.name, licence="the file's own")
