r"""Audit of ranked lists: quality per user, gaps between groups of users, exposure of groups of items.

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

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.audits.folder import MIN_GROUP, YOURS, Audit, suppress_small, write_audit
from upright.audits.lists import (
    BINS,
    Catalogue,
    Lists,
    plural,
    read_groups,
    read_items,
    read_lists,
    read_pairs,
    some,
    users_without_list,
)
from upright.contract import InputError, Metric, UnitScores, audit
from upright.declare import Intervals, Noted, Signed
from upright.evidence.bootstrap import DRAWS, Bootstrap
from upright.evidence.units import Block, Units
from upright.experiment.places import require_folder
from upright.maths.resampling import ratio_of_sums
from upright.metrics.ranking import coverage, gini, ranks_by_expectation

__all__ = ["audit_ranking"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


# -- numbers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Shown:
    """Lists seen down to place k."""

    chance: Array  # (U, k) probability that the place holds a relevant item
    first: Array  # (U, k) the same given that no earlier place did
    weight: Array  # (N,) probability that a row is within the first k places


def _show(lists: Lists, relevant: NDArray[np.bool_], n_users: int, k: int) -> _Shown:
    user = lists.log.user
    if lists.rank is not None:
        inside = lists.rank <= k
        chance = np.zeros((n_users, k))
        chance[user[inside], lists.rank[inside] - 1] = relevant[inside]
        return _Shown(chance, chance, inside.astype(np.float64))
    length = np.bincount(user, minlength=n_users)
    order = np.argsort(user, kind="stable")
    column = np.empty(len(user), dtype=np.int64)
    column[order] = np.arange(len(user)) - np.repeat(np.cumsum(length) - length, length)
    scores = np.full((n_users, int(length.max())), -np.inf)
    wanted = np.zeros(scores.shape, dtype=bool)
    scores[user, column] = lists.score
    wanted[user, column] = relevant
    chance, first, _, best = ranks_by_expectation(scores, wanted, k)
    edge = best[:, k - 1][user]  # -inf when the list ends before k: then everything is inside
    above, level = np.zeros(n_users), np.zeros(n_users)
    np.add.at(above, user, lists.score > edge)
    np.add.at(level, user, lists.score == edge)
    share = np.minimum(1.0, (k - above) / np.maximum(level, 1.0))
    weight = np.where(lists.score > edge, 1.0, np.where(lists.score == edge, share[user], 0.0))
    return _Shown(chance, first, weight)


def _quality(shown: _Shown, n: Ints, k: int) -> dict[str, Array]:
    """Per-user metrics of users with n relevant items, shape (U,)."""
    discount = 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal = np.cumsum(discount)[np.clip(n, 1, k) - 1]
    none_yet = np.cumprod(1.0 - shown.first, axis=1)
    found = np.diff(1.0 - none_yet, axis=1, prepend=0.0)
    some = n > 0
    values = {
        f"ndcg@{k}": np.where(some, shown.chance @ discount / ideal, np.nan),
        f"recall@{k}": np.where(some, shown.chance.sum(axis=1) / np.maximum(n, 1), np.nan),
        f"mrr@{k}": found @ (1.0 / np.arange(1, k + 1)),
        f"hit@{k}": 1.0 - none_yet[:, -1],
    }
    return {name: np.clip(value, 0.0, 1.0) for name, value in values.items()}


def _exposure(
    expo: Array, names: Sequence[str], of_item: Array, item_bin: Ints, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Share of list places per bin with an interval over users; `expo` (U, B) places, `of_item` (I,) appearances."""
    boot = Bootstrap(Units([Block("", YOURS, seed, UnitScores("user", range(len(expo)), {}))]), draws, seed)
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


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of lists and of held-out items in codes common to all files."""

    user: Ints
    item: Ints
    weight: Array
    relevant: NDArray[np.bool_]
    want_user: Ints
    want_item: Ints
    n_users: int


@dataclass(frozen=True, eq=False)
class _ByItems:
    """What the popularity file adds."""

    values: dict[str, Array]
    metrics: dict[str, Metric]
    totals: dict[str, float]
    exposure: list[dict[str, Any]]
    warnings: list[str]


def _by_items(catalogue: Catalogue, rows: _Rows, k: int, draws: int, seed: int) -> _ByItems:
    """Recall of the items of each bin, exposure of each bin, popularity of what each user is shown."""
    bins = [name for name, _ in BINS if name in catalogue.bin]
    bins += sorted(set(catalogue.bin) - set(bins))
    item_bin = np.array([bins.index(name) for name in catalogue.bin], dtype=np.int64)
    known, shape = len(item_bin), (rows.n_users, len(bins))
    warnings = []
    empty = [name for name, _ in BINS if name not in bins] if catalogue.by_count else []
    if empty:
        warnings.append(f"No item is in {' and '.join(empty)}, because many items have the same count.")
    place = (rows.user, item_bin[rows.item])
    expo, got, have = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    np.add.at(expo, place, rows.weight)
    np.add.at(got, place, rows.weight * rows.relevant)
    inside = rows.want_item < known
    np.add.at(have, (rows.want_user[inside], item_bin[rows.want_item[inside]]), 1.0)
    if not inside.all():
        warnings.append(
            f"{plural(int((~inside).sum()), 'held-out row')} of items that the file of items lacks are in no bin's "
            "recall."
        )
    values: dict[str, Array] = {}
    metrics: dict[str, Metric] = {}
    for b, name in enumerate(bins):
        metric = f"recall@{k}/{name.replace(':', '_')}"
        values[metric] = np.divide(got[:, b], have[:, b], out=np.full(rows.n_users, np.nan), where=have[:, b] > 0)
        metrics[metric] = Metric(metric, title=f"Recall@{k} of {name} items")
    of_item = np.bincount(rows.item, weights=rows.weight, minlength=known).astype(np.float64)
    totals = {f"coverage@{k}": coverage(of_item), f"gini_exposure@{k}": gini(of_item)}
    if catalogue.count is not None:
        metric, places = f"popularity@{k}", expo.sum(axis=1)
        mass = np.bincount(rows.user, weights=rows.weight * catalogue.count[rows.item], minlength=rows.n_users)
        values[metric] = np.divide(mass, places, out=np.full(rows.n_users, np.nan), where=places > 0)
        top = float(catalogue.count.max())
        metrics[metric] = Metric(metric, "lower", 0.0, top, 0.01 * top, f"Average popularity of the first {k} items")
        totals[metric] = float(mass.sum() / places.sum())
    return _ByItems(values, metrics, totals, _exposure(expo, bins, of_item, item_bin, draws, seed), warnings)


# -- the audit ----------------------------------------------------------------------------------------------------


@audit(
    "ranking",
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
    ],
    limits=[
        "Exposure counts places in the lists, not what people looked at.",
        "A user without held-out items has no quality here.",
    ],
)
def audit_ranking(
    lists: Path,
    *,
    held_out: Path | None = None,
    users: Path | None = None,
    items: Path | None = None,
    k: int = 10,
    out: Path,
    group: str | None = None,
    seed: int = 0,
    missing: Literal["error", "zero"] = "error",
    draws: int = DRAWS,
    command: str | None = None,
    margins: Mapping[str, float] | None = None,
) -> Path:
    """Audit ranked lists and return the folder of the audit.

    Parameters
    ----------
    lists : Path
        CSV, TSV or Parquet with the columns ``user``, ``item`` and ``rank`` (1 is the top) or ``score`` (higher is
        better), and ``relevant`` (0 or 1) when there is no held-out file.
    held_out : Path, optional
        Columns ``user`` and ``item``: what each user turned out to want.
    users : Path, optional
        Columns ``user`` and ``group``.
    items : Path, optional
        Columns ``item`` and ``count`` (interactions in training) or ``bin``, for the whole catalogue.
    k : int
        Places of a list that count, at least 1.
    out : Path
        Folder in which the audit's folder is made.
    group : str, optional
        Column of `users` that holds the group; ``group`` when not given.
    seed : int
        Of the bootstrap.
    missing : {"error", "zero"}
        What a user with held-out items and without a list is: an error, or a user to whom nothing was shown.
    draws : int
        Bootstrap draws.
    command : str, optional
        What the report says to repeat it.
    margins : mapping of metric to float, optional
        Smallest gaps that matter; '' for all metrics but popularity, whose scale is another.

    Returns
    -------
    Path
        ``summary.json`` (``kind`` is ``audit``), ``units.parquet``, ``config.json``, ``run.json``.

    Raises
    ------
    InputError
        For everything that is wrong with the files, with the lines where it is wrong; no folder is made then.
    """
    for name, number, least in (("k", k, 1), ("draws", draws, 2)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InputError(
                f"{name} = {number!r}", f"a whole number of at least {least}", f"set {name} to at least {least}"
            )
    if missing not in ("error", "zero"):
        raise InputError(f"missing = {missing!r}", "'error' or 'zero'", "choose one of the two")
    if group is not None and users is None:
        raise InputError(f"group {group!r} without a file of users", "both or none", "pass --users FILE")
    require_folder(Path(out))
    paths = {
        name: Path(path)
        for name, path in (("lists", lists), ("held_out", held_out), ("users", users), ("items", items))
        if path is not None
    }
    given = read_lists(paths["lists"], held_out is not None)
    warnings = list(given.warnings)
    log = given.log
    who = list(log.user_ids)
    wanted = read_pairs(paths["held_out"], "user", "item") if held_out is not None else None
    absent: list[str] = []
    if wanted is not None:
        absent = users_without_list(wanted, who, log.source.path.name, missing)
        if absent:
            warnings.append(
                f"{plural(len(absent), 'user')} with held-out items but without a list count as zero (missing='zero')."
            )
    who += absent
    labels: list[str] | None = None
    grouping = re.sub("[:=]", "_", group or "group")
    if users is not None:
        labels, said = read_groups(paths["users"], group or "group", who)
        warnings += said
    catalogue = read_items(paths["items"]) if items is not None else None
    n_users = len(who)

    # one code for each item over all files
    item_code = {one: i for i, one in enumerate(catalogue.ids if catalogue else ())}
    n_known = len(item_code)
    for one in (*log.item_ids, *(wanted.item_ids if wanted else ())):
        item_code.setdefault(one, len(item_code))
    item = np.array([item_code[one] for one in log.item_ids], dtype=np.int64)[log.item]
    if catalogue is not None and (item >= n_known).any():
        bad = np.flatnonzero(item >= n_known)
        unknown = sorted({log.item_ids[i] for i in log.item[bad]})
        raise log.source.refuse(
            log.row[bad],
            f"{plural(len(unknown), 'item')} not in {paths['items'].name}: {some(unknown)}",
            "listed items that are all in the file of items",
            "add them there, with count 0 when they are new",
        )
    if wanted is not None:
        user_code = {one: i for i, one in enumerate(who)}
        want_user = np.array([user_code[one] for one in wanted.user_ids], dtype=np.int64)[wanted.user]
        want_item = np.array([item_code[one] for one in wanted.item_ids], dtype=np.int64)[wanted.item]
        size = len(item_code)
        relevant = np.isin(log.user * size + item, want_user * size + want_item)
        if not relevant.any():
            warnings.append(
                "No list holds any held-out item of its user: check that ids are written alike in both files."
            )
    else:
        relevant = given.relevant if given.relevant is not None else np.zeros(len(item), dtype=bool)
        want_user, want_item = log.user[relevant], item[relevant]
    n = np.bincount(want_user, minlength=n_users)
    judged = int((n > 0).sum()) if wanted is not None else n_users
    if judged < 2:
        where = f"with a held-out item in {paths['held_out'].name}" if n_users > 1 else f"in {paths['lists'].name}"
        raise InputError(
            f"{plural(judged, 'user')} {where}",
            "at least 2 users, so that there are others to compare with",
            "give the lists and held-out items of more users",
        )

    shown = _show(given, relevant, n_users, k)
    values = _quality(shown, n, k)
    if wanted is not None:
        for value in values.values():
            value[n == 0] = np.nan
    metrics = {
        f"{name}@{k}": Metric(f"{name}@{k}", "higher", 0.0, 1.0, 0.01, f"{title}@{k}")
        for name, title in (("ndcg", "NDCG"), ("recall", "Recall"), ("mrr", "MRR"), ("hit", "Hit rate"))
    }
    compared = list(metrics)
    undefined = int((n == 0).sum())
    if undefined:
        what = "held-out item" if wanted is not None else "relevant item in the list"
        warnings.append(
            f"{plural(undefined, 'user')} of {n_users} without a {what}: "
            + ("quality is not" if wanted is not None else "NDCG and recall are not")
            + " defined there."
        )
    length = np.bincount(log.user, minlength=n_users)[: len(log.user_ids)]
    short = int((length < k).sum())
    if short:
        warnings.append(
            f"k = {k}, but {short} of {len(length)} lists are shorter (the shortest has "
            f"{plural(int(length.min()), 'item')}); the places that they lack count as misses."
        )

    exposure: list[dict[str, Any]] = []
    totals: dict[str, float] = {}
    if catalogue is not None:
        rows = _Rows(log.user, item, shown.weight, relevant, want_user, want_item, n_users)
        extra = _by_items(catalogue, rows, k, draws, seed)
        values, metrics, totals = values | extra.values, metrics | extra.metrics, extra.totals
        compared += [name for name in extra.metrics if name.startswith("popularity@")]
        exposure = extra.exposure
        warnings += extra.warnings
    by: dict[str, Sequence[str]] = {}
    suppressed: list[str] = []
    if labels is not None:
        defined = ~np.isnan(np.sum([values[metric] for metric in compared], axis=0))
        kept, suppressed = suppress_small(labels, defined)
        by = {grouping: kept}
        if suppressed and not any(kept):
            raise InputError(
                f"every group of {paths['users'].name} has fewer than {MIN_GROUP} users with a defined value: "
                f"{some(suppressed)}",
                f"at least one group of {MIN_GROUP} such users, two to compare",
                "join small groups or give more users; without --users the audit has no groups",
            )
        if suppressed:
            warnings.append(
                f"Left out of tables by group, having fewer than {MIN_GROUP} users with a defined value: "
                f"{some(suppressed)}."
            )
        if len(set(kept) - {""}) < 2:
            warnings.append(f"{plural(len(set(kept) - {''}), 'group')} to compare; a gap needs two.")
    name, passed = paths["lists"].name, {key: path.name for key, path in paths.items()} | {"k": k}
    said_margins = [f"{metric}={margin}".lstrip("=") for metric, margin in (margins or {}).items()]
    return write_audit(
        Audit(
            kind="ranking",
            title=f"Audit of the ranked lists in {name}",
            arm_title="your lists",
            asks="how well the lists serve each user and each group, and which items they show",
            data={
                "name": name,
                "users": n_users,
                "items": len(item_code),
                "test": len(want_user),
                "fingerprint": _fingerprint(paths),
            },
            passed=passed | ({"margin": said_margins} if said_margins else {}),
            resolved={"k": k, "group": grouping if labels is not None else None, "missing": missing, "draws": draws},
            scores=UnitScores("user", who, values, by, totals),
            metrics=metrics,
            compared=compared,
            statistics=[f"mean:{m}" for m in metrics] + [f"worst_decile:ndcg@{k}"],
            facts={
                "exposure": exposure,
                "k": k,
                "lists": len(length),
                "rows": len(item),
                "order": "score" if given.rank is None else "rank",
                "users_without_held_out": undefined,
                "users_without_list": len(absent),
                "lists_shorter_than_k": short,
                "suppressed_groups": suppressed,
                "bins": catalogue.words if catalogue else None,
            },
            warnings=warnings,
            margins=margins or {},
            command=command or _command(paths, k, group, missing, said_margins, seed),
        ),
        Path(out),
        seed=seed,
        draws=draws,
    )


def _fingerprint(paths: dict[str, Path]) -> str:
    """SHA-256 over the files in a fixed order of purpose."""
    digest = hashlib.sha256()
    for name, path in paths.items():
        digest.update(f"{name}:".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _command(paths: dict[str, Path], k: int, group: str | None, missing: str, margins: Sequence[str], seed: int) -> str:
    words = ["upright", "audit", "ranking", paths["lists"].name]
    for name, path in paths.items():
        words += [f"--{name.replace('_', '-')}", path.name] if name != "lists" else []
    words += ["--k", str(k), *(["--group", group] if group else []), *(["--missing", "zero"] * (missing == "zero"))]
    for margin in margins:
        words += ["--margin", margin]
    return shlex.join([*words, "--seed", str(seed)])
