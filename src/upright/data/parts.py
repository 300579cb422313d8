"""How the files of each catalogued data set become a split. Files are verified before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.data.columns import Column, read_columns
from upright.data.interactions import Interactions, Split, core_filter, random_split, read_interactions

if TYPE_CHECKING:
    from upright.data.catalogue import Entry

__all__ = ["READERS"]

_MIN_ITEM = 5


def _movies(path: Path) -> tuple[Interactions, tuple[str, ...]]:
    """Read user, item, rating, time and keep the items with enough interactions."""
    whole = read_interactions(path, time="timestamp", min_user=1)
    log = core_filter(whole, min_item=_MIN_ITEM, min_user=0)
    note = (
        f"{whole.n_items - log.n_items} of {whole.n_items} items with fewer than {_MIN_ITEM} interactions left out, "
        f"with {len(whole) - len(log)} of {len(whole)} rows and {whole.n_users - log.n_users} users"
    )
    return log, (note,)


def _about(path: Path, key: str, ids: tuple[str, ...], names: tuple[str, ...]) -> list[list[str]]:
    """Return columns of a file that describes users or items, in the order of ids."""
    table = read_columns(path, {key: Column("id"), **{name: Column("any") for name in names}})
    place = {one: row for row, one in enumerate(table[key])}
    rows = [place[one] for one in ids]
    return [table[name].gather(rows).to_list() for name in names]


def _ml100k(entry: Entry, folder: Path, seed: int) -> Split:
    log, notes = _movies(folder / "ml-100k.inter")
    gender, age, occupation = _about(folder / "ml-100k.user", "user_id", log.user_ids, ("gender", "age", "occupation"))
    (titles,) = _about(folder / "ml-100k.item", "item_id", log.item_ids, ("movie_title",))
    columns: dict[str, NDArray[Any]] = {
        "gender": np.array(gender),
        "age": np.array(age, dtype=np.int64),
        "occupation": np.array(occupation),
    }
    train, valid, test = random_split(log, seed=seed)
    return Split(train, valid, test, entry.name, entry.licence, columns, tuple(titles), notes)


def _ml_latest_small(entry: Entry, folder: Path, seed: int) -> Split:
    log, notes = _movies(folder / "ratings.csv")
    (titles,) = _about(folder / "movies.csv", "movieId", log.item_ids, ("title",))
    train, valid, test = random_split(log, seed=seed)
    return Split(train, valid, test, entry.name, entry.licence, item_titles=tuple(titles), notes=notes)


def _given_parts(entry: Entry, folder: Path, seed: int) -> Split:
    """Read ``user item value`` in train, tune, test order, every row in the order of its file.

    The order of the test rows matters: the published sampled protocol takes the first test item of a user.
    """
    tables = [np.loadtxt(folder / file, dtype=np.int64, ndmin=2) for file in entry.files]  # each (N, 3)
    # Ids are 0-based and dense over the three files together, so they are the codes.
    n_users, n_items = (1 + max(int(table[:, column].max()) for table in tables) for column in (0, 1))
    size = (n_users, n_items, tuple(map(str, range(n_users))), tuple(map(str, range(n_items))))
    train, valid, test = (
        Interactions(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].astype(np.float64), None, *size)
        for table in tables
    )
    return Split(train, valid, test, entry.name, entry.licence, notes=("published train, validation and test parts",))


def _plain_log(entry: Entry, folder: Path, seed: int) -> Split:
    """Read one file of ``user,item,value,time`` without a header, or of three columns between blanks without times."""
    (file,) = entry.files
    with (folder / file).open(encoding="utf-8") as handle:
        separator = "," if "," in handle.readline() else " "
    frame = pl.read_csv(folder / file, has_header=False, separator=separator)
    frame.columns = ["user", "item", "value", "time"][: frame.width]
    # without times as it was published: users with five rows or more, the last of equal pairs
    options = {"time": "time", "min_user": 1} if frame.width > 3 else {"min_user": 5, "duplicates": "last"}
    train, valid, test = random_split(read_interactions(frame, **options), seed=seed)  # type: ignore[arg-type]
    return Split(train, valid, test, entry.name, entry.licence)


READERS: Mapping[str, Callable[[Entry, Path, int], Split]] = {
    "ml100k": _ml100k,
    "ml_latest_small": _ml_latest_small,
    "given_parts": _given_parts,
    "plain_log": _plain_log,
}
"""Reader by the name that an entry of the catalogue carries; takes entry, folder and split seed."""
