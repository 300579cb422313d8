"""Sequences of a log: the last interaction of each user is held out, the rest becomes padded histories with targets.

With the interactions of a user in order, ``i_1, ..., i_n``, the item ``i_n`` is test, ``i_{n-1}`` validation, the rest
train. Times are coarse: in MovieLens 100K half of the neighbouring ratings of a user share one second. Ties are put in
random order by the stream ``ties``, never by item: where small codes mean popular items, codes tell popularity.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, stream
from upright.data.interactions import Interactions, Split

__all__ = ["PAD", "joined", "last_histories", "leave_last", "tie_shares", "windows"]

Ints = NDArray[np.int64]

PAD = -1
"""What stands in a history or a target where there is no item."""


def joined(*logs: Interactions) -> Interactions:
    """Return the rows of parts one after the other, without times where one part has none."""
    times = [log.time for log in logs if log.time is not None]
    return dataclasses.replace(
        logs[0],
        user=np.concatenate([log.user for log in logs]),
        item=np.concatenate([log.item for log in logs]),
        value=np.concatenate([log.value for log in logs]),
        time=np.concatenate(times) if len(times) == len(logs) else None,
    )


def leave_last(split: Split, *, seed: int, without_times: Literal["refuse", "draw"] = "refuse") -> Split:
    """Join the parts of a split again and hold out the last interaction of each user, and the one before.

    Parameters
    ----------
    split : Split
        As `load_split` returns it.
    seed : int
        Of the streams ``ties`` and, without times, ``order``.
    without_times : {"refuse", "draw"}
        ``draw`` puts the interactions of a log without times in random order, so that the held-out ones are drawn.

    Returns
    -------
    Split
        Train by user, in the order of the sequence; validation and test one row a user, by user. `notes` says how
        many interactions are ties.

    Raises
    ------
    InputError
        For a log without times, and a user with fewer than three interactions.

    Guarantee
    ---------
    A function of rows and seed: neither `split_seed` nor the order of the file matters. Ties do not depend on items.
    """
    log = joined(split.train, split.valid, split.test)
    if log.time is None and without_times != "draw":
        raise InputError(
            f"{split.name}, a log without times",
            "interactions with times: nothing else says which one is the last",
            "take ml100k, ml-latest-small, amazon-video or a file with a column of times (--set time_column=NAME)",
        )
    counts = log.counts("user")
    short = np.flatnonzero((counts > 0) & (counts < 3))
    if len(short):
        raise InputError(
            f"{len(short)} users of {split.name} with fewer than three interactions, such as {log.user_ids[short[0]]}",
            "three interactions a user: for training, validation and test",
            "drop these users: min_user=3 (--set min_user=3)",
        )
    time = np.zeros_like(log.item) if log.time is None else log.time
    # First an order that the rows alone decide, so that row and random number belong together in every file.
    log = log.take(np.lexsort((log.value, time, log.item, log.user)))
    chance = np.random.default_rng(stream(seed, "order" if log.time is None else "ties")).permutation(len(log))
    log = log.take(np.lexsort((chance, chance if log.time is None else log.time, log.user)))
    last = np.cumsum(counts)[counts > 0] - 1
    before = np.ones(len(log), dtype=np.bool_)
    before[last] = before[last - 1] = False
    note = "no times: the order of each user's interactions is drawn, and so are the held-out ones"
    if log.time is not None:
        neighbours, final = tie_shares(log)
        note = (
            f"the last interaction of each user is test, the one before validation; {neighbours:.0%} of neighbouring "
            f"interactions of a user share one time, for {final:.0%} of users the last one does; ties in random order"
        )
    train, valid, test = log.take(before), log.take(last - 1), log.take(last)
    return dataclasses.replace(split, train=train, valid=valid, test=test, notes=(*split.notes, note))


def tie_shares(log: Interactions) -> tuple[float, float]:
    """Return how much of the order of a log is chance.

    Returns
    -------
    neighbours, last : float
        Share of pairs of neighbouring interactions of a user that have one time, and the same of the last pair of each
        user; NaN without times or pairs.
    """
    if log.time is None:
        return float("nan"), float("nan")
    order = np.lexsort((log.time, log.user))
    user, time = log.user[order], log.time[order]
    same = user[1:] == user[:-1]  # (N - 1,), whether a row and the next one are a pair
    if not same.any():
        return float("nan"), float("nan")
    tie = time[1:] == time[:-1]
    return float(tie[same].mean()), float(tie[same & np.r_[~same[1:], True]].mean())


def windows(log: Interactions, length: int) -> tuple[Ints, Ints, Ints]:
    """Cut the sequence of each user into padded histories with the next item at every place.

    The last window of a user is full and ends with the last item; what is left stands at the right of the first one.

    Parameters
    ----------
    log : Interactions
        The rows of a user in the order of the sequence, as `leave_last` returns them.
    length : int
        T, at least 1.

    Returns
    -------
    user : ndarray of int64, shape (W,)
        In rising order; users with fewer than two rows have no window.
    history, target : ndarray of int64, shape (W, T)
        ``target[w, t]`` is the item after ``history[w, t]``; both are -1 at the left where a window is not full.

    Guarantee
    ---------
    Every interaction but the first of each user is a target exactly once.
    """
    item, counts = _by_user(log, length)
    pairs = np.maximum(counts - 1, 0)  # a pair: an item and the one after it
    cut = -(-pairs // length)  # windows of each user
    user = np.repeat(np.arange(log.n_users), cut)
    ahead = np.cumsum(cut)[user] - 1 - np.arange(len(user))  # windows of the same user that follow
    place = (pairs[user] - ahead * length - length)[:, None] + np.arange(length)  # (W, T), the pair at each place
    there = place >= 0
    row = np.where(there, (np.cumsum(counts) - counts)[user][:, None] + place, 0)
    return user, np.where(there, item[row], PAD), np.where(there, item[row + there], PAD)


def last_histories(*logs: Interactions, length: int) -> Ints:
    """Return the last items of each user, oldest first, shape (n_users, length), -1 at the left.

    Parameters
    ----------
    *logs : Interactions
        Parts that follow one another: train to score validation, train and validation to score test.
    length : int
        At least 1.
    """
    item, counts = _by_user(joined(*logs), length)
    there = np.arange(length) >= length - counts[:, None]
    row = np.cumsum(counts)[:, None] - length + np.arange(length)
    return np.where(there, item[np.where(there, row, 0)], PAD)


def _by_user(log: Interactions, length: int) -> tuple[Ints, Ints]:
    """Return the items of user after user, each in the order of the log, and how many each user has."""
    if length < 1:
        raise InputError(f"length = {length}", "a whole number from 1", "raise it")
    return log.item[np.argsort(log.user, kind="stable")], log.counts("user")
