r"""Ranked lists in files: quality per user, gaps between groups of users, exposure of groups of items.

For user u, ``R_u`` are the held-out items, ``n_u = |R_u|``, ``rel_p`` is 1 when the item at position p = 1, 2, ... of
the list is in ``R_u``, and ``d_p = 1 / log2(p + 1)``.

=============  ===================================================================================================
``ndcg@k``     ``sum_{p<=k} rel_p d_p / sum_{p<=min(k, n_u)} d_p``
``recall@k``   ``sum_{p<=k} rel_p / n_u``; ``recall@k/BIN`` counts the held-out items of one bin alone
``mrr@k``      ``1 / p`` of the first relevant item when p <= k, else 0
``hit@k``      1 when some ``rel_p = 1`` with p <= k, else 0
=============  ===================================================================================================

A list that ends before k misses there. Equal scores of one user stand in random order and every value is its
expectation over these orders. `docs/audit-ranking.md` describes files, columns and errors.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import Config, File, InputError, Metric, PositiveInt, UnitScores, audit
from upright.data.catalogue import cache_dir
from upright.data.columns import Column, code_ids, known_names, read_columns
from upright.data.formats import Columns, open_columns, some
from upright.data.tabular import cut_of
from upright.declare import Intervals, Noted, Signed
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.units import FEWEST, Block, Units
from upright.lazy import LazyModule
from upright.maths.ranks import head_items, rank_correlation
from upright.maths.resampling import ratio_of_sums
from upright.metrics.ranking import coverage, gini, list_quality
from upright.tasks.answers import MIN_AGREEMENT, YOURS, Answer, opaque_codes, plural, read_groups, suppress_small
from upright.tasks.next_item import QUALITY

if TYPE_CHECKING:
    from upright.language import titles
    from upright.models import hub
else:
    titles = LazyModule("upright.language.titles")
    hub = LazyModule("upright.models.hub")

__all__ = ["BINS", "RankingConfig", "popularity_bins", "read_ranking"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Names = Mapping[str, str]  # the column of a file for user, item and value
_TREC = {"run": "a TREC run, in the order of its scores", "qrels": "TREC qrels"}  # what the reader says of them
BINS = (("head", 0.2), ("mid", 0.3), ("tail", 0.5))  # name and share of the items
BY_COUNT = "head, mid, tail: 20, 30 and 50 % of the items by count, equal counts in one bin"


class RankingConfig(Config):
    """Lists, what users turned out to want, groups of users, popularity of items."""

    lists: File
    """Your lists: user, item, and rank (1 is the top) or score (higher is better); or a list a row."""
    held_out: File | None = None
    """What each user turned out to want: user, item. Without it, a column `relevant` of the lists tells."""
    train: File | None = None
    """What users had in training: user, item. Lists that hold such an item are named: no held-out item is there."""
    users: File | None = None
    """Groups of users: user, group."""
    items: File | None = None
    """The whole catalogue: item, and count (interactions in training) or bin; with count, `prior` or title as well."""
    model: File | None = None
    """Folder of a language model that gives prior scores to the titles, where the file of items has no `prior`."""
    k: PositiveInt = 10
    """Places of a list that count."""
    group: str | None = None
    """Column of the groups; `group`, or the only other one, otherwise. `age<25` and `age:25,45,65` cut numbers."""
    missing: Literal["error", "zero"] = "error"
    """What a user with held-out items and without a list is: an error, or a user to whom nothing was shown."""
    relevant_from: float | None = None
    """Held-out rows with at least this relevance, or rating, count; needed where the file has other values than 0
    and 1."""
    user: str | None = None
    """Column of users, in the files that have it; one of the usual names otherwise."""
    item: str | None = None
    """Column of items."""
    value: str | None = None
    """Column of scores in the lists, or of relevance in the held-out file."""
    encoding: str = "utf-8"
    """Of text files."""


# -- files ----------------------------------------------------------------------------------------------------------


def _open_files(config: RankingConfig) -> dict[str, tuple[Columns, Names]]:
    """Return the table of each file that was given, and which of the named columns it has."""
    given = {name: getattr(config, name) for name in ("lists", "held_out", "train", "users", "items")}
    named = {name: own for name in ("user", "item", "value") if (own := getattr(config, name)) is not None}

    def keep(column: str) -> bool:  # of users and items any column may be meant
        return column in named.values() or column[-1:].isdigit() or bool(known_names([column]))

    keeps: Any = {"lists": keep, "held_out": keep, "train": keep}
    tables = {
        name: open_columns(file, config.encoding, argument=name, keep=keeps.get(name, bool))
        for name, file in given.items()
        if file is not None
    }
    kinds = {n: kind for n in ("lists", "held_out") for kind in _TREC if n in tables and _TREC[kind] in tables[n].said}
    if kinds.get("lists") == "qrels" or kinds.get("held_out") == "run":
        of = {kind: str(given[name]) for name, kind in reversed(kinds.items())}
        words = ["upright", "audit", "ranking", of.get("run", "RUN"), "--held-out", of.get("qrels", "QRELS")]
        got = " and ".join(f"{kind} as {name.replace('_', '-')}" for name, kind in kinds.items())
        raise InputError(got, "lists: a run, six columns; held-out: qrels, four columns", shlex.join(words))
    for option, own in named.items():
        if not any(own in table.header for table in tables.values()):
            columns = "; ".join(f"{table.name}: {', '.join(map(repr, table.header))}" for table in tables.values())
            raise InputError(f"no column {own!r} (--{option})", columns, "name a column of one of the files")
    return {n: (table, {k: own for k, own in named.items() if own in table.header}) for n, table in tables.items()}


def _pairs_once(table: Columns) -> None:
    again = table.repeats("user", "item")
    if len(again):
        got = f"{len(again)} rows repeat an earlier pair of user and item"
        raise table.refuse(again, got, "each pair once", "keep one row of each pair")


def _places(ids: pl.Series, known: pl.Series) -> Ints:
    return ids.replace_strict(known, np.arange(len(known)), return_dtype=pl.Int64).to_numpy()


def _calling_value(name: str, names: Names) -> Names:
    return {name if one == "value" else one: own for one, own in names.items()}


def _read_lists(opened: Columns, names: Names, judged: bool, warnings: list[str]) -> Columns:
    """Return the rows of the lists; `rank` holds positions from 1 on, where there is none `score` orders the rows."""
    wanted = {"user": Column("id"), "item": Column("id"), "rank": Column("number", optional=True)}
    wanted |= {"score": Column("number", optional=True, never=True, option="--value")}
    wanted |= {} if judged else {"relevant": Column("flag", optional=True)}
    table = read_columns(opened, wanted, _calling_value("score", names), lists=True)
    if not judged and "relevant" not in table:
        raise InputError(
            f"{table.name} has no column 'relevant', and no held-out file was given",
            "a held-out file with user and item, or a column 'relevant' of 0 and 1",
            "pass --held-out FILE, or add the column",
        )
    _pairs_once(table)
    if "score" in table and "rank" not in table:
        shown = np.flatnonzero(table.array("score") > -np.inf)
        if len(shown) < len(table):
            warnings.append(f"{plural(len(table) - len(shown), 'row')} with a score of -inf: never recommended.")
            table = table.take(shown)
    if "rank" in table:
        if "score" in table:
            warnings.append(f"{table.name} has rank and score; rank orders the lists and score is not read.")
        table = _ranked(table, warnings)
    elif "score" not in table:
        warnings.append(f"{table.name} has no rank and no score: the rows of a user stand in the order of the list.")
        table = _with_rank(table, pl.int_range(1, pl.len() + 1).over("user"))
    if judged and "relevant" in opened.header:
        warnings.append(f"{table.name} has a column 'relevant'; the held-out file decides and the column is not read.")
    elif not judged:
        warnings.append(
            "Relevance comes from the lists themselves: relevant items that a list lacks are unknown, so NDCG and "
            "recall are relative to the items listed, and undefined for a list without a relevant one."
        )
    return table


def _name_trained(lists: Columns, opened: Columns, names: Names, warnings: list[str]) -> None:
    """Say which lists hold an item that their user had in training."""
    own = {name: column for name, column in names.items() if name != "value"}
    had = read_columns(opened, {"user": Column("id"), "item": Column("id")}, own)
    held = lists.frame.join(had.frame.select("user", "item"), ["user", "item"], "semi")["user"]
    if len(held):
        who = held.unique(maintain_order=True).to_list()
        what = f"{plural(len(who), 'list')} hold {plural(len(held), 'item')} that the user had in {opened.name}"
        warnings.append(f"{what}: {some(who)}. No held-out item can be there: mask them, or quality is understated.")


def _with_rank(table: Columns, rank: pl.Expr) -> Columns:
    return dataclasses.replace(table, frame=table.frame.with_columns(rank=rank.cast(pl.Int64)))


def _ranked(table: Columns, warnings: list[str]) -> Columns:
    """Return the lists with checked ranks from 1 on; the smallest may be 0."""
    value = table.array("rank").astype(np.float64)
    low = 0.0 if value.min() == 0 else 1.0
    bad = np.flatnonzero((value < low) | (value != np.floor(value)) | (value >= 2.0**31))
    if len(bad):
        accepted, todo = "whole numbers from 1 (or 0) on, the smallest being the top", "correct those rows"
        raise table.refuse(bad, f"'rank' is {value[bad[0]]:g}", accepted, todo)
    if low == 0:
        warnings.append(f"{table.name} counts ranks from 0; 0 is taken for the top.")
        begins = table.frame.select(pl.col("rank").min().over("user")).to_series().to_numpy()
        first = table.frame.group_by("user").agg(pl.col("rank").min())["rank"]
        mixed = np.flatnonzero((begins == 1) & (value == 1))
        if len(mixed) and (first == 1).sum() * 10 > len(first):
            got = f"{(first == 1).sum()} lists begin with rank 1, {(first == 0).sum()} with 0"
            raise table.refuse(mixed, got, "ranks that begin alike", "number all lists from 1, or all from 0")
    again = table.repeats("user", "rank")
    if len(again):
        raise table.refuse(
            again,
            f"rank {value[again[0]]:g} of user {table['user'][int(again[0])]!r} is taken already",
            "each rank once in a list",
            "number each list 1, 2, 3 ..., or give scores, where ties are allowed",
        )
    table = _with_rank(table, pl.col("rank") + int(low == 0))
    gaps = len(table.frame.group_by("user").agg(pl.col("rank").max() - pl.len()).filter(pl.col("rank") != 0))
    if gaps:
        warnings.append(f"{plural(gaps, 'list')} skip a rank; the places skipped count as misses.")
    return table


def _read_held_out(opened: Columns, names: Names, least: float | None) -> Columns:
    """Return the relevant pairs; relevance of several degrees is refused unless it is said what counts."""
    wanted = {"user": Column("id"), "item": Column("id"), "grade": Column("number", optional=True, option="--value")}
    table = read_columns(opened, wanted, _calling_value("grade", names))
    if "grade" in table:
        value = table.array("grade").astype(np.float64)
        graded = np.flatnonzero((value != 0) & (value != 1))
        if least is None and len(graded):
            got = f"relevance is {value[graded[0]]:g}, and which rows count is not said"
            todo = "pass --relevant-from X: rows of at least X are wanted; 0 takes all"
            raise table.refuse(graded, got, "0 and 1", todo)
        table = table.take(np.flatnonzero(value >= (1.0 if least is None else least)))
        if not len(table):
            got = f"{table.name} has no row with a relevance of at least {least or 1:g}"
            raise InputError(got, "some relevant items", "lower --relevant-from")
    _pairs_once(table)
    return table


def _read_groups(
    opened: Columns, names: Names, group: str | None, users: Sequence[str], warnings: list[str]
) -> list[str]:
    """Return the group of each user."""
    own = {name: column for name, column in names.items() if name == "user"}
    table = read_columns(opened, {"user": Column("id")}, own)
    rest = [name for name in opened.header if name != table.names["user"]]
    column = group or (rest[0] if len(rest) == 1 else "group")
    label = read_groups(opened, column, missing=True).to_list()
    again = table.repeats("user")
    if len(again):
        got = f"user {table['user'][int(again[0])]!r} has two groups"
        raise table.refuse(again, got, "one group a user", "keep one of them")
    group_of = dict(zip(table["user"].to_list(), label, strict=True))
    lacking = [user for user in users if user not in group_of]
    if lacking:
        got = f"{table.name} has no group for {len(lacking)} of {len(users)} users: {some(lacking)}"
        todo = "add them; a group that is not known stays empty"
        if len(lacking) == len(users):
            got, todo = f"{got}; it names {some(list(group_of))}", "write ids alike in both files"
        raise InputError(got, "a group for every user with a list", todo)
    if without := [group_of[user] for user in users].count(""):
        warnings.append(f"{plural(without, 'user')} without a group of {column!r} took no part in its comparisons.")
    extra = len(group_of) - len(users)
    if extra:
        warnings.append(f"{table.name} names {plural(extra, 'user')} that the lists do not; ignored.")
    return [group_of[user] for user in users]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Bin, count and prior score of each item of the file of items; `words` say what the bins are.

    `scored` holds what a model said of the titles, agreed or not.
    """

    ids: pl.Series
    bin: list[str]
    count: Array | None
    words: str
    prior: Array | None = None
    about_prior: Mapping[str, float] = field(default_factory=dict)
    scored: Array | None = None


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


def _read_items(opened: Columns, names: Names, model: Any, warnings: list[str]) -> Catalogue:
    """Return the items of a popularity file; a column ``bin`` takes the place of the bins by count."""
    wanted = {"item": Column("id", unique=True), "count": Column("number", optional=True)}
    wanted |= {"bin": Column("text", optional=True), "prior": Column("number", optional=True)}
    wanted |= {"title": Column("text", optional=True)} if model is not None else {}
    table = read_columns(opened, wanted, {name: own for name, own in names.items() if name == "item"})
    if "count" not in table and "bin" not in table:
        accepted = "count (interactions in training) or bin besides item"
        raise table.refuse_header("has neither 'count' nor 'bin'", accepted, "add one of them, or rename a column")
    if "count" in table and len(bad := np.flatnonzero(table.array("count") < 0)):
        got = f"'count' is {table['count'][int(bad[0])]:g}"
        raise table.refuse(bad, got, "a number of at least 0 in every row", "correct those rows")
    table = table.take(np.argsort(code_ids(table["item"])[0]))
    count = table.array("count").astype(np.float64) if "count" in table else None
    bins = table["bin"].to_list() if "bin" in table else popularity_bins(table.array("count").astype(np.float64))
    words = f"column 'bin' of {table.name}" if "bin" in table else BY_COUNT
    if count is None and ("prior" in table or model is not None):
        warnings.append(
            f"{table.name} has no 'count', so head and tail of the data are not told from those of the prior."
        )
    if count is None or ("prior" not in table and model is None):
        return Catalogue(table["item"], bins, count, words)
    prior, said, scored = _prior_of(table, count, model, warnings)
    return Catalogue(table["item"], bins, count, words, prior, said, scored)


def _prior_of(
    table: Columns, count: Array, model: Any, warnings: list[str]
) -> tuple[Array | None, dict[str, float], Array | None]:
    """Return how well each item was known before there were interactions, how that goes with them, and new scores.

    Scores of titles whose templates agree too little are withheld from tables, not from the file of scores.
    """
    if "prior" in table:
        if model is not None:
            warnings.append(f"{table.name} has a column 'prior', so the model was not asked.")
        prior = table.array("prior").astype(np.float64)
        return prior, {"with_counts": rank_correlation(prior, count)}, None
    if "title" not in table:
        raise table.refuse_header("has neither 'prior' nor 'title', beside a model", "title besides item", "add one")
    language = hub.load_language_model(model)
    found = titles.prior_table(*language, table["title"].to_list(), folder=cache_dir() / "sequences")
    prior, agreement = found.scores.mean(axis=0), found.agreement()
    said = {"templates": agreement, "with_counts": rank_correlation(prior, count)}
    said |= {"with_counts_given_length": rank_correlation(prior, count, found.tokens)}
    if not agreement >= MIN_AGREEMENT:
        warnings.append(
            f"Prior scores of two templates have a rank correlation of {agreement:.2f}, below {MIN_AGREEMENT}: the "
            "table of two by two is withheld."
        )
        return None, said, prior
    return prior, said, prior


def _absent(wanted: Columns, who: Sequence[str], lists: str, missing: str) -> list[str]:
    """Return users with held-out items and without a list."""
    users, there = code_ids(wanted["user"])[1], set(who)
    absent = [user for user in users if user not in there]
    if len(absent) == len(users):
        raise InputError(
            f"no user of {wanted.name} is in {lists}: {some(absent)}",
            "the same users in both files",
            "write ids alike in both files (text is compared, so '1' is not '01')",
        )
    if absent and missing == "error":
        raise InputError(
            f"{len(absent)} of {len(users)} users in {wanted.name} have no list in {lists}: {some(absent)}",
            "a list for every user with held-out items",
            "add their lists, or pass --missing zero, which counts them as users who were shown nothing",
        )
    return absent


# -- numbers --------------------------------------------------------------------------------------------------------


def _show(lists: Columns, user: Ints, relevant: Bools, n_users: int, k: int) -> tuple[Array, Array, Array]:
    """Look at the first k places; items of one score stand in each order of a block with the same probability.

    Returns
    -------
    chance, first : ndarray, shape (U, k)
        Probability that the place holds a relevant item; the same given that no earlier place did.
    weight : ndarray, shape (N,)
        Probability that a row is within the first k places.
    """
    chance = np.zeros((n_users, k))
    if "rank" in lists:
        rank = lists.array("rank")
        inside = rank <= k
        chance[user[inside], rank[inside] - 1] = relevant[inside]
        return chance, chance, inside.astype(np.float64)
    score = lists.array("score").astype(np.float64)
    order = np.lexsort((-score, user))
    new_user = np.append(True, np.diff(user[order]) != 0)
    begins = np.flatnonzero(new_user | np.append(True, np.diff(score[order]) != 0))  # of blocks of equal scores
    size = np.diff(np.append(begins, len(user)))  # (B,)
    hits = np.add.reduceat(relevant[order].astype(np.int64), begins)
    start = begins - np.flatnonzero(new_user)[np.cumsum(new_user)[begins] - 1]  # places above the block
    seen = np.clip(k - start, 0, size)  # places of the block within k
    weight = np.empty(len(user))
    weight[order] = np.repeat(seen / size, size)
    block = np.repeat(np.arange(len(begins)), seen)
    step = np.arange(len(block)) - np.repeat(np.cumsum(seen) - seen, seen)  # place within the block
    at = (user[order][begins][block], start[block] + step)
    chance[at] = (hits / size)[block]
    first = np.zeros((n_users, k))
    first[at] = np.minimum(1.0, hits[block] / (size[block] - step))
    return chance, first, weight


def _exposure(
    boot: Bootstrap, expo: Array, names: Sequence[str], of_item: Array, item_bin: Ints
) -> list[dict[str, Any]]:
    """Share of list places per bin with an interval over users; `expo` (U, B) places, `of_item` (I,) appearances."""
    sums = boot.sums(np.stack([*expo.T, expo.sum(axis=1)])[:, None])  # (B + 1, 1 + draws, 1)
    rows = []
    for b, name in enumerate(names):
        share = boot.draws(ratio_of_sums, sums[[b, -1]], np.ones((1, len(expo)), dtype=bool))
        low, high = np.clip(share.interval(), 0.0, 1.0).tolist()
        own = of_item[item_bin == b]
        row = {"bin": name, "items": len(own), "share_of_items": len(own) / len(of_item)}
        row |= {"share_of_exposure": share.value, "low": low, "high": high}
        rows.append(row | {"coverage": coverage(own), "gini": gini(own)})
    return rows


def _by_items(
    catalogue: Catalogue, listed: pl.DataFrame, wanted: pl.DataFrame, k: int, boot: Bootstrap, warnings: list[str]
) -> tuple[dict[str, tuple[Metric, Array]], dict[str, float], list[dict[str, Any]]]:
    """Return recall of the items of each bin and popularity of what each user is shown; totals; exposure of each bin.

    Rows of the lists have user, item, weight, relevant; wanted ones have user and item. Codes of items begin with those
    of the catalogue.
    """
    bins = [name for name, _ in BINS if name in catalogue.bin]
    bins += sorted(set(catalogue.bin) - set(bins))
    place_of = {name: b for b, name in enumerate(bins)}
    item_bin = np.array([place_of[name] for name in catalogue.bin], dtype=np.int64)
    n_users = len(boot.units.units)
    empty = [name for name, _ in BINS if name not in bins] if catalogue.words == BY_COUNT else []
    if empty:
        warnings.append(f"No item is in {' and '.join(empty)}, because many items have the same count.")
    inside = wanted.filter(pl.col("item") < len(item_bin))
    if len(inside) < len(wanted):
        what = plural(len(wanted) - len(inside), "held-out row")
        warnings.append(f"{what} of items that the file of items lacks are in no bin's recall.")

    def in_bins(user: Ints, item: Ints, weight: Array | None = None) -> Array:  # (U, B)
        cells = np.bincount(user * len(bins) + item_bin[item], weight, n_users * len(bins))
        return cells.astype(np.float64).reshape(n_users, -1)

    user, item, weight, relevant = (column.to_numpy() for column in listed)
    expo, got, have = in_bins(user, item, weight), in_bins(user, item, weight * relevant), in_bins(*inside.to_numpy().T)
    recall = np.divide(got, have, out=np.full(have.shape, np.nan), where=have > 0)
    found = {}
    for b, name in enumerate(bins):
        metric = f"recall@{k}/{name.replace(':', '_')}"
        found[metric] = Metric(metric, title=f"Recall@{k} of {name} items"), recall[:, b]
    of_item = np.bincount(item, weights=weight, minlength=len(item_bin)).astype(np.float64)
    totals = {f"coverage@{k}": coverage(of_item), f"gini_exposure@{k}": gini(of_item)}
    if catalogue.count is not None:
        metric, places, top = f"popularity@{k}", expo.sum(axis=1), float(catalogue.count.max())
        mass = np.bincount(user, weights=weight * catalogue.count[item], minlength=n_users)
        about = Metric(metric, "lower", 0.0, top, 0.01 * top, f"Average popularity of the first {k} items")
        found[metric] = about, np.divide(mass, places, out=np.full(n_users, np.nan), where=places > 0)
        totals[metric] = float(mass.sum() / places.sum())
    return found, totals, _exposure(boot, expo, bins, of_item, item_bin)


def _two_by_two(
    catalogue: Catalogue, listed: pl.DataFrame, wanted: pl.DataFrame, k: int, boot: Bootstrap, warnings: list[str]
) -> tuple[tuple[UnitScores, list[str]] | None, list[dict[str, Any]]]:
    """Return recall of each held-out pair of known items with its statistics, and exposure of the four cells.

    Head and tail, of the data by count and of the prior, are labels of items: the cluster of a pair is its item, by a
    code that tells nothing of it.
    """
    count, prior = catalogue.count, catalogue.prior
    if count is None or prior is None:
        return None, []
    sides = [np.where(head_items(size), "head", "tail") for size in (count, prior)]
    names = [f"{a} of data, {b} of prior" for a in ("head", "tail") for b in ("head", "tail")]
    cell = np.array([names.index(f"{a} of data, {b} of prior") for a, b in zip(*sides, strict=True)])
    user, item, weight = (listed[name].to_numpy() for name in ("user", "item", "weight"))
    n_users = len(boot.units.units)
    expo = np.bincount(user * 4 + cell[item], weight, n_users * 4).astype(np.float64).reshape(n_users, 4)
    of_item = np.bincount(item, weights=weight, minlength=len(cell)).astype(np.float64)
    shown = _exposure(boot, expo, names, of_item, cell)
    pairs = wanted.filter(pl.col("item") < len(cell))
    pairs = pairs.join(listed.select("user", "item", "weight"), ["user", "item"], "left", maintain_order="left")
    own, hit = pairs["item"].to_numpy(), pairs["weight"].fill_null(0.0).to_numpy()
    size = pairs.select("user", cell=pl.Series(cell[own])).unique()["cell"].value_counts()
    few = {names[c] for c, n in size.rows() if n < FEWEST} | {names[c] for c in {*range(4)} - {*size["cell"]}}
    labels = [name if (name := names[c]) not in few else "" for c in cell[own]]
    by = {"popularity": sides[0][own].tolist(), "prior": sides[1][own].tolist(), "cell": labels}
    metric, statistics = f"pair_recall@{k}", [f"mean:pair_recall@{k}:cell"]
    if few:
        why = f"under {FEWEST} users have a held-out item that is {some(sorted(few))}"
        warnings.append(f"No effects of data and prior: {why} (items tied with the first of the tail are tail).")
    else:
        pair = ("popularity~prior", "prior~popularity")
        statistics += [f"effect:{metric}:{one}" for one in pair] + [f"dominance:{metric}:{pair[0]}"]
    scores = UnitScores("held-out pair", range(len(own)), {metric: hit}, by, cluster=opaque_codes(own))
    return (scores, statistics), shown


# -- the audit ----------------------------------------------------------------------------------------------------


@audit(
    "ranking",
    config=RankingConfig,
    report=[
        Signed("Gaps between groups, the one that decides first", "gap:*=*"),
        Intervals(
            "Which items the lists show",
            "exposure",
            ["A bin whose share of places is far from its share of items is shown more, or less, than its size."],
            by=("bin",),
            value="share_of_exposure",
            bars=True,
        ),
        Noted(
            "Items by popularity",
            "exposure",
            by={"bin": "Bin"},
            names={
                "items": "items",
                "share_of_items": "share of items",
                "share_of_exposure": "share of places",
                "coverage": "shown at least once",
                "gini": "Gini of places",
            },
        ),
        Intervals(
            "Recall of a held-out item, by head and tail of the data and of the prior", "mean:pair_recall@*:cell=*"
        ),
        Signed(
            "Effect of being head, of the data and of the prior, and which is larger",
            "effect:* dominance:*",
            ["An effect is the mean over the groups of the other side. Dominance is the first size minus the second."],
        ),
        Intervals("Share of places, by the same", "cells", by=("bin",), value="share_of_exposure", bars=True),
        Noted(
            "The prior score",
            "prior",
            names={
                "templates": "smallest rank correlation of two templates",
                "with_counts": "rank correlation with the counts",
                "with_counts_given_length": "the same, given the tokens of the title",
            },
        ),
    ],
    limits=[
        "Exposure counts places in the lists, not what people looked at.",
        "A user without held-out items has no quality here.",
    ],
)
def read_ranking(config: RankingConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit top-K lists by user group and item popularity.

    Raises
    ------
    InputError
        For everything that is wrong with the files, with the lines where it is wrong.
    """
    k = config.k
    if config.group is not None and config.users is None:
        raise InputError(f"group {config.group!r} without a file of users", "both or none", "pass --users FILE")
    opened = _open_files(config)
    warnings: list[str] = []
    given = _read_lists(*opened["lists"], config.held_out is not None, warnings)
    user, lists = code_ids(given["user"])
    if config.train is not None:
        _name_trained(given, *opened["train"], warnings)
    wanted = _read_held_out(*opened["held_out"], config.relevant_from) if config.held_out is not None else None
    absent = _absent(wanted, lists, given.name, config.missing) if wanted is not None else []
    if absent:
        warnings.append(f"{plural(len(absent), 'user')} with held-out items but without a list count as zero.")
    who = [*lists, *absent]
    n_users = len(who)
    grouping = "group" if cut_of(config.group or "") else re.sub("[:=]", "_", config.group or "group")
    labels = _read_groups(*opened["users"], config.group, who, warnings) if config.users is not None else None
    catalogue = _read_items(*opened["items"], config.model, warnings) if config.items is not None else None

    # one code for each item over all files, the catalogue's first
    known = catalogue.ids if catalogue is not None else pl.Series("item", [], dtype=pl.String)
    tables = [given["item"], wanted["item"] if wanted is not None else known[:0]]
    every = pl.concat([known, *tables]).unique(maintain_order=True)
    item, want_item = (_places(table, every) for table in tables)
    if catalogue is not None and (item >= len(known)).any():
        bad = np.flatnonzero(item >= len(known))
        unknown = sorted(set(given["item"].gather(bad).to_list()))
        raise given.refuse(
            bad,
            f"{plural(len(unknown), 'item')} not in {opened['items'][0].name}: {some(unknown)}",
            "listed items that are all in the file of items",
            "add them there, with count 0 when they are new",
        )
    if wanted is not None:
        want_user = _places(wanted["user"], pl.Series(who))
        relevant = np.isin(user * len(every) + item, want_user * len(every) + want_item)
        if not np.isin(want_item, item).any():
            raise InputError(
                f"no item of {wanted.name} is in {given.name}: {some(wanted['item'].head(3).to_list())} against "
                f"{some(given['item'].head(3).to_list())}",
                "items written alike in both files",
                "write ids alike; a list in one cell needs brackets, [a, b], or a separator",
            )
        if not relevant.any():
            warnings.append(
                "No list holds any held-out item of its user: check that ids are written alike in both files."
            )
    else:
        relevant = given.array("relevant").astype(bool)
        want_user, want_item = user[relevant], item[relevant]
    n = np.bincount(want_user, minlength=n_users)
    judged = int((n > 0).sum()) if wanted is not None else n_users
    if judged < 2:
        where = f"with a held-out item in {opened['held_out'][0].name}" if n_users > 1 else f"in {given.name}"
        raise InputError(
            f"{plural(judged, 'user')} {where}",
            "at least 2 users, so that there are others to compare with",
            "give the lists and held-out items of more users",
        )

    chance, first, weight = _show(given, user, relevant, n_users, k)
    quality = list_quality(chance, first, n, k)
    metrics = {f"{name}@{k}": Metric(f"{name}@{k}", title=f"{title}@{k}") for name, title in QUALITY.items()}
    values = {f"{name}@{k}": quality[name] for name in QUALITY}
    for name in metrics if wanted is not None else (f"ndcg@{k}", f"recall@{k}"):
        values[name][n == 0] = np.nan
    compared = list(metrics)
    undefined = int((n == 0).sum())
    if undefined:
        what = "held-out item: quality is" if wanted is not None else "relevant item in the list: NDCG and recall are"
        warnings.append(f"{plural(undefined, 'user')} of {n_users} without a {what} not defined there.")
    length = np.bincount(user)  # of those who have a list
    short = int((length < k).sum())
    if short:
        warnings.append(
            f"k = {k}, but {short} of {len(length)} lists are shorter (the shortest has "
            f"{plural(int(length.min()), 'item')}); the places that they lack count as misses."
        )

    exposure, cells, beside = list[dict[str, Any]](), list[dict[str, Any]](), None
    totals: dict[str, float] = {}
    if catalogue is not None:
        boot = Bootstrap(Units([Block("", YOURS, seed, UnitScores("user", range(n_users), {}))]), draws, seed)
        listed = pl.DataFrame({"user": user, "item": item, "weight": weight, "relevant": relevant})
        pairs = pl.DataFrame({"user": want_user, "item": want_item})
        found, totals, exposure = _by_items(catalogue, listed, pairs, k, boot, warnings)
        metrics |= {name: about for name, (about, _) in found.items()}
        values |= {name: value for name, (_, value) in found.items()}
        compared += [name for name in found if name.startswith("popularity@")]
        beside, cells = _two_by_two(catalogue, listed, pairs, k, boot, warnings)
        if beside:
            metrics[f"pair_recall@{k}"] = Metric(f"pair_recall@{k}", title=f"Recall@{k} of a held-out item")
    by: dict[str, Sequence[str]] = {}
    suppressed: list[str] = []
    if labels is not None:
        defined = ~np.isnan(np.sum([values[metric] for metric in compared], axis=0))
        kept, suppressed = suppress_small(labels, defined)
        by = {grouping: kept}
        if suppressed and not any(kept):
            raise InputError(
                f"every group of {opened['users'][0].name} has fewer than {FEWEST} users with a defined value: "
                f"{some(suppressed)}",
                f"at least one group of {FEWEST} such users, two to compare",
                "join small groups or give more users; without --users the audit has no groups",
            )
        if suppressed:
            warnings.append(
                f"Left out of tables by group, having fewer than {FEWEST} users with a defined value: "
                f"{some(suppressed)}."
            )
        if len(set(kept) - {""}) < 2:
            warnings.append(f"{plural(len(set(kept) - {''}), 'group')} to compare; a gap needs two.")
    return Answer(
        title=f"Audit of the ranked lists in {given.name}",
        arm_title="your lists",
        asks="how well the lists serve each user and each group, and which items they show",
        data={"name": given.name, "users": n_users, "items": len(every), "test": len(want_user)},
        resolved={"group": grouping if labels is not None else None},
        scores=UnitScores("user", who, values, by, totals),
        metrics=metrics,
        compared=compared,
        statistics=[f"mean:{m}" for m in metrics if m in values] + [f"worst_decile:ndcg@{k}"],
        beside=beside,
        facts={
            "exposure": exposure,
            **({"cells": cells, "prior": dict(catalogue.about_prior)} if catalogue and catalogue.about_prior else {}),
            "k": k,
            "lists": len(length),
            "rows": len(item),
            "order": "rank" if "rank" in given else "score",
            "users_without_held_out": undefined,
            "users_without_list": len(absent),
            "lists_shorter_than_k": short,
            "suppressed_groups": suppressed,
            "bins": catalogue.words if catalogue else None,
        },
        warnings=warnings,
        tables={"prior": {"item": catalogue.ids, "prior": catalogue.scored}}
        if catalogue and catalogue.scored is not None
        else {},
    )
