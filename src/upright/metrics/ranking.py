r"""Ranking metrics per user, over the full catalogue, with ties by expectation.

Symbols: user u has candidates C_u (all items but the seen ones) and relevant items R_u inside C_u, ``n_u = |R_u|``.
Positions p = 0, 1, ... run from the best score down, ``d_p = 1 / log2(p + 2)`` and ``rel_p`` is 1 when the item at p is
relevant.

===============  ==================================================================================
``ndcg@k``       ``sum_{p<k} rel_p d_p / sum_{p<min(k, n_u)} d_p``
``recall@k``     ``sum_{p<k} rel_p / n_u``, at most ``k / n_u``: a lower ceiling for active users
``precision@k``  ``sum_{p<k} rel_p / k``, at most ``n_u / k``: a lower ceiling for inactive users
``hit@k``        ``1`` when some ``rel_p = 1`` with p < k, else ``0``; saturates for active users
``mrr@k``        ``1 / (1 + p)`` of the first relevant item when p < k, else ``0``
===============  ==================================================================================

Ties: items with equal scores stand in uniformly random order, and every metric is its expectation over these
orders, exactly. Nobody gains from an item's place in the file, and a constant score is worth what guessing is worth.

A score of ``-inf`` means that the model never recommends the item. NaN is refused. All results are float64 and
in [0, 1], higher is better; NaN stands for a user without a relevant item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError

__all__ = [
    "coverage",
    "evaluate_full",
    "gini",
    "list_quality",
    "matched_positives",
    "ranks_by_expectation",
    "sampled_protocol",
    "topk",
]

Csr = Any  # a scipy.sparse.csr_array; scipy ships no types
Scores = Callable[[NDArray[np.int64]], NDArray[Any]]  # user codes (B,) in, scores of every item (B, I) out

_CHUNK_ELEMENTS = 1 << 25  # most scores held at once, whatever `chunk` asks for: 256 MB in float64


def topk(scores: NDArray[Any], k: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    r"""Return the k best items of each row, best first, equal scores by smaller item.

    The k-th largest of the maxima of disjoint groups of items cannot exceed the k-th largest score, so only the few
    items that reach it are sorted.

    Parameters
    ----------
    scores : ndarray of float, shape (B, I)
        Without NaN; ``-inf`` is never returned.
    k : int
        Length of a list, at least 1.

    Returns
    -------
    items, values : ndarray, shape (B, k)
        Items and their scores; -1 and ``-inf`` where fewer than k items have a score above ``-inf``.
    """
    n_rows, n_items = scores.shape
    groups = max(64, 4 * k)
    if n_items >= 2 * groups:
        whole = n_items - n_items % groups
        maxima = scores[:, :whole].reshape(n_rows, -1, groups).max(axis=1)  # (B, groups)
        bound = np.partition(maxima, groups - k, axis=1)[:, groups - k]
        keep = np.flatnonzero(scores >= np.maximum(bound, np.finfo(scores.dtype).min)[:, None])
    else:
        keep = np.flatnonzero(scores > -np.inf)
    row, item = np.divmod(keep, n_items)
    count = np.bincount(row, minlength=n_rows)
    place = np.arange(keep.size) - np.repeat(np.cumsum(count) - count, count)
    width = max(k, int(count.max(initial=0)))
    values = np.full((n_rows, width), -np.inf, dtype=scores.dtype)
    items = np.full((n_rows, width), -1, dtype=np.int64)
    values[row, place] = scores.reshape(-1)[keep]
    items[row, place] = item
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(items, order, axis=1), np.take_along_axis(values, order, axis=1)


def ranks_by_expectation(
    scores: NDArray[Any], relevant: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[Any]]:
    r"""Return how likely each of the first k positions holds a relevant item.

    In a group of g tied items with r relevant ones, at the group's offset t::

        chance = r / g                         whatever stands elsewhere
        first  = r / (g - t), at most 1        given that the group's earlier positions held none

    Linear metrics need `chance` alone; the first relevant item is at p with probability
    ``first_p * prod_{q<p} (1 - first_q)``. Without ties both are 0 or 1.

    Parameters
    ----------
    scores, relevant : ndarray of float and of bool, shape (B, I)
        Scores without NaN, ``-inf`` for what is no candidate, and whether an item is relevant.
    k : int
        Number of positions, at least 1.

    Returns
    -------
    chance, first : ndarray of float64, shape (B, k)
        In [0, 1]; 0 beyond the last candidate.
    items, values : ndarray, shape (B, k + 1)
        The k + 1 best items and their scores, as `topk` gives them.
    """
    items, values = topk(scores, k + 1)
    hit = np.take_along_axis(relevant, np.maximum(items[:, :k], 0), axis=1) & (items[:, :k] >= 0)
    chance = hit.astype(np.float64)
    tied = np.flatnonzero(((values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -np.inf)).any(axis=1))
    if not tied.size:
        return chance, chance, items, values
    first = chance.copy()
    best = values[tied, :k]  # (T, k)
    starts = np.ones(best.shape, dtype=bool)
    starts[:, 1:] = best[:, 1:] != best[:, :-1]
    position = np.broadcast_to(np.arange(k), best.shape)
    offset = position - np.maximum.accumulate(np.where(starts, position, 0), axis=1)
    group = np.cumsum(starts, axis=1) - 1 + k * np.arange(tied.size)[:, None]
    size = np.bincount(group.ravel(), minlength=tied.size * k)
    wanted = np.bincount(group.ravel(), weights=hit[tied].ravel(), minlength=tied.size * k)
    # The last group may reach beyond position k: count it over the whole catalogue.
    last = scores[tied] == best[:, -1:]
    size[group[:, -1]] = np.maximum(last.sum(axis=1), 1)  # 0 where a list ends before k
    wanted[group[:, -1]] = (last & relevant[tied]).sum(axis=1)
    real = best > -np.inf
    chance[tied] = np.where(real, wanted[group] / size[group], 0.0)
    left = np.maximum(size[group] - offset, 1)
    first[tied] = np.where(real, np.minimum(wanted[group] / left, 1.0), 0.0)
    return chance, first, items, values


def list_quality(
    chance: NDArray[np.float64], first: NDArray[np.float64], count: NDArray[np.int64], k: int
) -> dict[str, NDArray[np.float64]]:
    """Return each metric of the first k places by name, shape (B,); of a user without a relevant item it says nothing.

    Parameters
    ----------
    chance, first : ndarray of float64, shape (B, k) or wider
        As `ranks_by_expectation` gives them.
    count : ndarray of int64, shape (B,)
        Relevant items.
    """
    discount, n = _discounts(k), np.maximum(count, 1)
    survive = np.cumprod(1.0 - first, axis=1)  # probability of no relevant item up to and with p
    found = np.diff(1.0 - survive, axis=1, prepend=0.0)  # probability that the first one is at p
    hits = chance[:, :k].sum(axis=1)
    values = {
        "ndcg": chance[:, :k] @ discount / np.cumsum(discount)[np.minimum(n, k) - 1],
        "recall": hits / n,
        "mrr": found[:, :k] @ (1.0 / np.arange(1, k + 1)),
        "hit": 1.0 - survive[:, k - 1],
        "precision": hits / k,
    }
    return {name: np.clip(value, 0.0, 1.0) for name, value in values.items()}


def _discounts(k: int) -> NDArray[np.float64]:
    """``1 / log2(p + 2)`` for p = 0..k-1."""
    return 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))


def _entries(matrix: Csr, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Stored entries of some rows: (row within `users`, item) of each entry, and the number per row."""
    start = matrix.indptr[users].astype(np.int64)
    count = matrix.indptr[users + 1] - start
    row = np.repeat(np.arange(users.size), count)
    place = np.arange(row.size) - np.repeat(np.cumsum(count) - count, count) + start[row]
    return row, matrix.indices[place].astype(np.int64), count


def _check(users: ArrayLike, seen: Csr, relevant: Csr, **sizes: int) -> tuple[NDArray[np.int64], Csr, Csr]:
    """Check what all protocols take; matrices come back with sorted indices and no duplicates."""
    from scipy import sparse

    for name, size in {"number of items": seen.shape[1], **sizes}.items():
        if size < 1:
            raise InputError(f"{name} = {size}", "an integer of at least 1", f"set {name} to at least 1")
    if tuple(seen.shape) != tuple(relevant.shape):
        shapes = f"seen of shape {tuple(seen.shape)} and relevant of shape {tuple(relevant.shape)}"
        raise InputError(shapes, "two matrices of one shape (U, I)", "build both from splits of one log")
    who = np.asarray(users)
    n_users = seen.shape[0]
    whole = who.ndim == 1 and (np.issubdtype(who.dtype, np.integer) or not who.size)
    if not whole or (who.size and not 0 <= who.min() <= who.max() < n_users):
        got = f"users of shape {who.shape} and type {who.dtype}, {who.ravel()[:3].tolist()} ..."
        raise InputError(got, f"integer codes from 0 to {n_users - 1}, shape (N,)", "use the codes of the same log")
    seen, relevant = sparse.csr_array(seen, copy=True), sparse.csr_array(relevant, copy=True)
    for matrix in (seen, relevant):
        matrix.sum_duplicates()
    return who.astype(np.int64), seen, relevant


def _chunks(
    scores_of: Scores, users: NDArray[np.int64], seen: Csr, relevant: Csr, chunk: int
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[Any], NDArray[np.bool_], NDArray[np.int64]]]:
    """Yield (place, users, scores with seen items at -inf, relevant items, number of them) chunk by chunk."""
    n_items = seen.shape[1]
    step = max(1, min(chunk, _CHUNK_ELEMENTS // max(1, n_items)))
    for begin in range(0, users.size, step):
        some = users[begin : begin + step]
        raw = np.asarray(scores_of(some))
        if raw.shape != (some.size, n_items):
            raise InputError(f"scores of shape {raw.shape}", f"shape {(some.size, n_items)}", "score every item")
        # A copy: the caller's table must not be masked.
        scores = np.array(raw, dtype=raw.dtype if raw.dtype in (np.float32, np.float64) else np.float64, order="C")
        if scores.size and np.isnan(scores.min()):
            got = f"NaN among the scores of user {some[np.isnan(scores).any(axis=1)][0]}"
            raise InputError(got, "numbers, or -inf for what is never recommended", "find where the model diverged")
        row, item, _ = _entries(seen, some)
        scores[row, item] = -np.inf
        wanted = np.zeros(scores.shape, dtype=bool)
        want_row, want_item, count = _entries(relevant, some)
        wanted[want_row, want_item] = True
        if wanted[row, item].any():
            both = np.flatnonzero(wanted[row, item])[0]
            got = f"item {item[both]} is both seen and relevant for user {some[row[both]]}"
            raise InputError(got, "disjoint seen and relevant items", "take seen items out of the relevant ones")
        yield slice(begin, begin + some.size), some, scores, wanted, count


def evaluate_full(
    scores_of: Scores, users: ArrayLike, seen: Csr, relevant: Csr, ks: Sequence[int] = (10,), chunk: int = 512
) -> dict[str, NDArray[np.float64]]:
    """Rank the whole catalogue for each user, without the seen items.

    >>> from scipy.sparse import csr_array
    >>> seen, relevant = csr_array([[1, 0, 0, 0, 0]]), csr_array([[0, 1, 0, 1, 0]])
    >>> scores = np.array([[9.0, 4.0, 7.0, 5.0, 1.0]])  # the list is 2, 3, 1, 4: hits at p = 1 and p = 2
    >>> found = evaluate_full(lambda users: scores[users], [0], seen, relevant, ks=[2])
    >>> {name: round(float(value[0]), 4) for name, value in found.items()}  # exposure of item 0, which was seen
    {'ndcg@2': 0.3869, 'recall@2': 0.5, 'mrr@2': 0.5, 'hit@2': 1.0, 'precision@2': 0.5, 'exposure@2': 0.0}
    >>> tied = np.array([[9.0, 7.0, 7.0, 7.0, 1.0]])  # the first hit is at p = 0 in 2 of 3 orders, else at p = 1
    >>> round(float(evaluate_full(lambda users: tied[users], [0], seen, relevant, ks=[3])["mrr@3"][0]), 4)
    0.8333

    Parameters
    ----------
    scores_of : callable
        User codes of shape (B,) to scores of shape (B, I). Called once per chunk; its arrays are not changed.
    users : array_like of int, shape (N,)
        Users to evaluate.
    seen : scipy.sparse.csr_array, shape (U, I)
        Every stored entry is left out of the candidates: train for validation, train and validation for test.
    relevant : scipy.sparse.csr_array, shape (U, I)
        Every stored entry is relevant; disjoint from `seen`.
    ks : sequence of int
        List lengths, each at least 1. A list longer than the candidates ends with them; precision still divides by k.
    chunk : int
        Users scored at once, fewer when the catalogue is large.

    Returns
    -------
    dict of str to ndarray of float64
        ``ndcg@k``, ``recall@k``, ``mrr@k``, ``hit@k`` and ``precision@k`` for each k, shape (N,), NaN for a user
        without a relevant item; and ``exposure@k``, shape (I,): expected number of lists that hold an item, over
        all N users, those without a relevant item too.

    Raises
    ------
    InputError
        When a score is NaN, an item is both seen and relevant, a shape or a user code does not fit, a size is below 1.
    """
    ks = [int(k) for k in ks]
    if not ks:
        raise InputError("ks = ()", "at least one list length", "pass for example ks=(10,)")
    who, seen, relevant = _check(users, seen, relevant, chunk=chunk, smallest_k=min(ks))
    names = [f"{name}@{k}" for k in ks for name in ("ndcg", "recall", "mrr", "hit", "precision")]
    out = {name: np.full(who.size, np.nan) for name in names} | {f"exposure@{k}": np.zeros(seen.shape[1]) for k in ks}
    for place, _, scores, wanted, count in _chunks(scores_of, who, seen, relevant, chunk):
        chance, first, items, values = ranks_by_expectation(scores, wanted, max(ks))
        for k in ks:
            for name, value in list_quality(chance, first, count, k).items():
                out[f"{name}@{k}"][place] = np.where(count > 0, value, np.nan)
            out[f"exposure@{k}"] += _exposure(scores, items, values, k)
    return out


def _exposure(scores: NDArray[Any], items: NDArray[np.int64], values: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Expected number of top-k lists that hold each item; `items` and `values` are at least k + 1 long."""
    edge = values[:, k - 1]
    cut = (edge == values[:, k]) & (edge > -np.inf)  # the k-th place is drawn among tied items
    shown = items[~cut, :k]
    total: NDArray[np.float64] = np.bincount(shown[shown >= 0], minlength=scores.shape[1]).astype(np.float64)
    if cut.any():
        above, level = scores[cut] > edge[cut, None], scores[cut] == edge[cut, None]
        share = (k - above.sum(axis=1)) / level.sum(axis=1)
        total += above.sum(axis=0) + share @ level
    return total


def _mean_gain(above: NDArray[Any], tied: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Mean discount over the positions above .. above + tied - 1, those from k on being worth 0."""
    total = np.concatenate([[0.0], np.cumsum(_discounts(k))])
    gain: NDArray[np.float64] = (total[np.minimum(above + tied, k)] - total[np.minimum(above, k)]) / tied
    return gain


def matched_positives(
    scores_of: Scores,
    users: ArrayLike,
    seen: Csr,
    relevant: Csr,
    *,
    n: int = 5,
    draws: int = 20,
    rng: np.random.Generator,
    k: int = 10,
    chunk: int = 512,
) -> NDArray[np.float64]:
    r"""NDCG@k when every user has the same number of relevant items.

    ``mean over draws of NDCG@k( C_u without R_u \ S )``, S a uniformly random subset of R_u of size n. A user with
    more relevant items finds one more easily; with n for everybody, groups that differ in activity compare. Errors are
    those of `evaluate_full`.

    Parameters
    ----------
    scores_of, users, seen, relevant, chunk
        As for `evaluate_full`.
    n : int
        Relevant items that each user keeps; the other relevant ones leave the candidates.
    draws : int
        Subsets per user.
    rng : numpy.random.Generator
        Source of randomness; what it gives does not depend on the scores or on `chunk`.
    k : int
        List length.

    Returns
    -------
    ndarray of float64, shape (N,)
        NaN for a user with fewer than n relevant items.
    """
    who, seen, relevant = _check(users, seen, relevant, chunk=chunk, n=n, draws=draws, k=k)
    out = np.full(who.size, np.nan)
    ideal = _discounts(min(n, k)).sum()
    for place, some, scores, wanted, count in _chunks(scores_of, who, seen, relevant, chunk):
        row, item, _ = _entries(relevant, some)
        own = scores[row, item]  # (P,) one per relevant item
        others = np.where(wanted, scores.dtype.type(-np.inf), scores)
        _, best = topk(others, k)  # (B, k): more than k better ones are as good as k
        above = (best[row] > own[:, None]).sum(axis=1)
        tied = (best[row] == own[:, None]).sum(axis=1)
        edge = np.flatnonzero((best[row, -1] == own) & (own > -np.inf))  # ties may go on beyond the k-th
        tied[edge] = (others[row[edge]] == own[edge, None]).sum(axis=1)
        # Random order of each user's relevant items, once per draw; pair by pair, so that chunks do not matter.
        order = np.argsort(row[:, None] + rng.random((row.size, draws)), axis=0)  # (P, draws)
        enough = np.flatnonzero(count >= n)
        start = (np.cumsum(count) - count)[enough]
        kept = order[start[:, None] + np.arange(n)]  # (E, n, draws)
        mine = own[kept]
        rival_above = (mine[:, None] > mine[:, :, None]).sum(axis=2)  # (E, n, draws)
        rival_tied = (mine[:, None] == mine[:, :, None]).sum(axis=2)  # itself included
        gain = _mean_gain(above[kept] + rival_above, tied[kept] + rival_tied, k)
        gain[mine == -np.inf] = 0.0
        out[place.start + enough] = np.minimum(gain.sum(axis=1).mean(axis=1) / ideal, 1.0)
    return out


def sampled_protocol(
    scores_of: Scores,
    users: ArrayLike,
    seen: Csr,
    relevant: Csr,
    *,
    rng: np.random.Generator,
    negatives: int = 99,
    positive: Literal["first", "random"] = "random",
    first_item: NDArray[np.int64] | None = None,
    k: int = 10,
    chunk: int = 512,
) -> NDArray[np.float64]:
    r"""NDCG@k of one relevant item among sampled ones; only for comparison with papers that report it.

    ``1 / log2(p + 2)`` when the positive stands at p < k among itself and `negatives` distinct items, drawn
    uniformly from those that are neither seen nor relevant; 0 otherwise.

    Parameters
    ----------
    scores_of, users, seen, relevant, chunk
        As for `evaluate_full`. For negatives that were never interacted with, `seen` and `relevant` together must hold
        train, validation and test.
    rng : numpy.random.Generator
        Source of randomness; what it gives depends neither on the scores nor on `positive` nor on `chunk`.
    negatives : int
        Sampled items per user.
    positive : {"first", "random"}
        ``first`` takes `first_item`, as the published code of In-UCDS does (it is more popular than the average
        test item); ``random`` draws one relevant item.
    first_item : ndarray of int64, shape (U,)
        First relevant item of each user in the order of the file, -1 for none; needed by ``first``.
    k : int
        List length.

    Returns
    -------
    ndarray of float64, shape (N,)
        NaN for a user without a relevant item or with fewer than `negatives` items left to sample.

    Raises
    ------
    InputError
        As for `evaluate_full`; also when ``first`` lacks `first_item` or it names an item that is not relevant.
    """
    who, seen, relevant = _check(users, seen, relevant, chunk=chunk, negatives=negatives, k=k)
    if positive not in ("first", "random"):
        raise InputError(f"positive = {positive!r}", "'first' or 'random'", "choose one of the two")
    if positive == "first" and (first_item is None or np.shape(first_item) != (seen.shape[0],)):
        got = "no first_item" if first_item is None else f"first_item of shape {np.shape(first_item)}"
        raise InputError(got, f"one item per user, shape ({seen.shape[0]},)", "pass it, or positive='random'")
    chosen = rng.random(who.size)  # drawn in any case, so that both kinds of positive meet the same negatives
    out = np.full(who.size, np.nan)
    for place, some, scores, wanted, count in _chunks(scores_of, who, seen, relevant, chunk):
        _, item, _ = _entries(relevant, some)
        rows = np.flatnonzero(count > 0)
        if positive == "first" and first_item is not None:
            mine = np.asarray(first_item, dtype=np.int64)[some[rows]]
            wrong = (mine < 0) | (mine >= scores.shape[1])
            wrong[~wrong] = ~wanted[rows[~wrong], mine[~wrong]]
            if wrong.any():
                got = f"first_item[{some[rows][wrong][0]}] = {mine[wrong][0]}, not relevant for this user"
                raise InputError(got, "a relevant item of each user", "build it from the same split as relevant")
        else:
            rank = (chosen[place][rows] * count[rows]).astype(np.int64)
            mine = item[(np.cumsum(count) - count)[rows] + rank]
        lots = rng.random(scores.shape)
        row, item, _ = _entries(seen, some)
        lots[row, item] = -np.inf
        lots[wanted] = -np.inf
        drawn, _ = topk(lots, negatives)  # (B, negatives); the largest lots are a uniform sample without replacement
        full = drawn[rows, -1] >= 0
        rows, mine = rows[full], mine[full]
        own = scores[rows, mine][:, None]
        other = scores[rows[:, None], drawn[rows]]
        gain = _mean_gain((other > own).sum(axis=1), 1 + (other == own).sum(axis=1), k)
        out[place.start + rows] = np.where(own[:, 0] > -np.inf, gain, 0.0)
    return out


def gini(x: ArrayLike) -> float:
    r"""Gini coefficient, ``sum_i (2 i - n - 1) x_(i) / (n sum_i x_i)`` with ``x_(1) <= ... <= x_(n)``.

    Half the mean absolute difference of two random entries, divided by the mean. Lower is more even; it falls when
    everybody gets equally bad lists too, so read it beside the mean.

    >>> round(gini([0, 0, 1, 3]), 4), round(gini([0, 0, 0, 4]), 4)
    (0.625, 0.75)

    Parameters
    ----------
    x : array_like of float, shape (n,)
        Not negative; for exposure, one entry per item of the catalogue, those never shown included.

    Returns
    -------
    float
        In [0, 1 - 1 / n]: 0 when all entries are equal (all 0 too), 1 - 1 / n when one entry has everything.

    Raises
    ------
    InputError
        When an entry is negative or not finite, or there is none.
    """
    values = np.sort(np.asarray(x, dtype=np.float64).ravel())
    if not values.size or not np.isfinite(values).all() or values[0] < 0:
        got = f"entries from {values[0]:g} to {values[-1]:g}" if values.size else "no entry"
        raise InputError(got, "finite numbers, none below 0", "leave out undefined entries and say how many")
    if values[-1] == values[0]:
        return 0.0
    n = values.size
    share = values / values[-1]  # so that sums neither overflow nor vanish
    return float((2 * np.arange(1, n + 1) - n - 1) @ share / (n * share.sum()))


def coverage(exposure: ArrayLike) -> float:
    """Share of the catalogue that can appear, ``#{i : exposure_i > 0} / I``, in [0, 1], higher is better.

    An item that is shown once counts like one shown to everybody, and random lists have a high coverage.

    >>> coverage([2.0, 1.0, 0.0, 1.0])
    0.75

    Parameters
    ----------
    exposure : array_like of float, shape (I,)
        ``exposure@k`` of `evaluate_full`.

    Raises
    ------
    InputError
        When there is no item, or an entry is NaN or below 0.
    """
    values = np.asarray(exposure, dtype=np.float64).ravel()
    if not values.size or np.isnan(values).any() or values.min() < 0:
        raise InputError(
            "exposure that is empty, NaN or negative", "one number per item, at least 0", "pass exposure@k"
        )
    return float((values > 0).mean())
