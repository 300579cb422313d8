"""Sequences against loops over users, ties against the law that they promise."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.contract import InputError
from upright.data.catalogue import load_split
from upright.data.interactions import Interactions, Split
from upright.data.sequences import PAD, last_histories, leave_last, tie_shares, windows


def log_of(user, item, time=None, n_items=None):
    user, item = np.asarray(user, dtype=np.int64), np.asarray(item, dtype=np.int64)
    n_users, n_items = int(user.max()) + 1, n_items or int(item.max()) + 1
    time = None if time is None else np.asarray(time, dtype=np.int64)
    ids = (tuple(f"u{u}" for u in range(n_users)), tuple(f"i{i}" for i in range(n_items)))
    return Interactions(user, item, np.ones(len(user)), time, n_users, n_items, *ids)


def split_of(log, seed=0):
    """Parts that hold the rows of a log in any order."""
    order = np.random.default_rng(seed).permutation(len(log))
    return Split(*(log.take(rows) for rows in np.array_split(order, 3)), name="mine.csv", licence="none")


def random_log(ties: bool, n_users=30, n_items=40, seed=0):
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(n_users) for i in rng.permutation(n_items)[: rng.integers(3, 12)]]
    user, item = np.array(pairs).T
    return log_of(user, item, rng.integers(0, 4, len(user)) if ties else rng.permutation(len(user)), n_items)


def rows_of(*logs):
    return sorted((u, i, t) for log in logs for u, i, t in zip(log.user, log.item, log.time, strict=True))


def test_the_last_is_test_and_the_one_before_validation():
    # Catches: the first item held out, an order by row, a part that was not joined, train in another order.
    log = random_log(ties=False)
    found = leave_last(split_of(log), seed=0)
    for user in range(log.n_users):
        mine = log.user == user
        expected = log.item[mine][np.argsort(log.time[mine])].tolist()
        assert found.train.item[found.train.user == user].tolist() == expected[:-2]
        assert found.valid.item[user] == expected[-2]
        assert found.test.item[user] == expected[-1]
    assert found.valid.user.tolist() == found.test.user.tolist() == list(range(log.n_users))


def test_only_the_rows_and_the_seed_decide():
    # Catches: random numbers that belong to places of rows, so that the random split or the file's order decides.
    log = random_log(ties=True)
    found = [leave_last(split_of(log, seed=k), seed=3) for k in (0, 1)]
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].test.item.tolist() == found[1].test.item.tolist()
    assert rows_of(found[0].train, found[0].valid, found[0].test) == rows_of(log)
    assert leave_last(split_of(log), seed=4).fingerprint != found[0].fingerprint


def test_ties_and_draws_are_fair_whatever_the_item():
    # Catches: any rule that looks at items or rows. Of 2,000 users, two tied items are last for half of them each, four
    # without times for a quarter each: 0.056 and 0.049 are five standard errors, once in 1.7 million runs.
    user = np.repeat(np.arange(2_000), 4)
    log = log_of(user, np.tile([2, 3, 0, 1], 2_000), np.tile([0, 1, 2, 2], 2_000))
    found = leave_last(split_of(log), seed=0)
    assert abs((found.test.item == 0).mean() - 0.5) < 0.056
    assert set(zip(found.valid.item.tolist(), found.test.item.tolist(), strict=True)) == {(0, 1), (1, 0)}
    drawn = leave_last(split_of(log_of(user, log.item)), seed=0, without_times="draw").test.item
    assert np.abs(np.bincount(drawn, minlength=4) / 2_000 - 0.25).max() < 0.049


def test_the_share_of_ties():
    # Catches: pairs across users, a share of rows in place of pairs, the first pair taken for the last.
    log = log_of([0, 0, 0, 0, 1, 1, 1, 2], [0, 1, 2, 3, 0, 1, 2, 0], [5, 5, 6, 7, 9, 8, 9, 9])
    assert tie_shares(log) == (2 / 5, 1 / 2)
    assert np.isnan(tie_shares(log_of([0, 1], [0, 1], [3, 3]))).all()


def test_without_times():
    # Catches: an order by row taken for time, and held-out items that are no draw.
    log = random_log(ties=True)
    bare = log_of(log.user, log.item, n_items=log.n_items)
    with pytest.raises(InputError) as error:
        leave_last(split_of(bare), seed=0)
    assert error.value.got == "mine.csv, a log without times"
    assert "ml100k" in error.value.todo
    assert np.isnan(tie_shares(bare)).all()
    drawn = [
        leave_last(split_of(bare, seed=k), seed=seed, without_times="draw") for k, seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert drawn[0].test.item.tolist() == drawn[1].test.item.tolist() != drawn[2].test.item.tolist()
    assert drawn[0].test.time is None


def test_a_user_with_two_interactions():
    log = log_of([0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 1, 0, 1], range(7))
    with pytest.raises(InputError) as error:
        leave_last(split_of(log), seed=0)
    assert error.value.got == "2 users of mine.csv with fewer than three interactions, such as u1"
    assert "min_user=3" in error.value.todo


def test_what_is_known_of_users_and_items_stays():
    # A user without any row keeps its code, and is in no part.
    log = random_log(ties=False, n_users=4)
    log = log.take(log.user != 2)
    columns, titles = {"age": np.arange(4)}, tuple(f"Film {i}" for i in range(log.n_items))
    split = Split(log, log.take([]), log.take([]), "x", "y", columns, titles, ("a note",))
    found = leave_last(split, seed=0)
    assert (found.user_columns, found.item_titles, found.notes[0]) == (columns, titles, "a note")
    assert found.test.user.tolist() == [0, 1, 3]


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), length=st.integers(1, 5))
def test_windows_and_last_histories_equal_loops(counts, length):
    # Catches: a target twice or never, neighbours across users, padding at the right, users that must stand together.
    user = np.repeat(np.arange(len(counts)), counts)
    item = np.arange(len(user))
    place = np.concatenate([np.arange(count) for count in counts])
    log = log_of(user, item)
    who, history, target = windows(log.take(np.lexsort((user, place))), length)
    expected = []
    for u in range(log.n_users):
        mine = item[user == u].tolist()
        pairs = list(pairwise(mine))
        blocks = []
        while pairs:
            block, pairs = pairs[-length:], pairs[:-length]
            blocks.insert(0, (u, [(PAD, PAD)] * (length - len(block)) + block))
        expected += blocks
    found = zip(who.tolist(), history.tolist(), target.tolist(), strict=True)
    assert [(u, list(zip(h, t, strict=True))) for u, h, t in found] == expected
    last = last_histories(log, length=length)
    for u in range(log.n_users):
        mine = item[user == u].tolist()[-length:]
        assert last[u].tolist() == [PAD] * (length - len(mine)) + mine


def test_parts_follow_one_another():
    log = random_log(ties=False)
    split = leave_last(split_of(log), seed=0)
    both = last_histories(split.train, split.valid, length=3)
    assert both[:, -1].tolist() == split.valid.item.tolist()
    assert both[:, :-1].tolist() == last_histories(split.train, length=3)[:, 1:].tolist()
    for call in (lambda: windows(log, 0), lambda: last_histories(log, length=0)):
        with pytest.raises(InputError, match="length = 0"):
            call()


@pytest.mark.realdata
@pytest.mark.skipif(not os.environ.get("UPRIGHT_DATA"), reason="UPRIGHT_DATA is not set")
def test_amazon_video():
    # Catches: the first row taken for a header, days read as another unit. The counts are those of its SOURCE.txt.
    split = load_split("amazon-video")
    assert (split.n_users, split.n_items) == (8_072, 11_830)
    assert sum(map(len, (split.train, split.valid, split.test))) == 63_836
    assert split.train.user_ids[0].startswith("A")
    assert set(np.unique(split.train.value)) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert (split.train.time % 86_400 == 0).all()
    assert len(leave_last(split, seed=0).test) == split.n_users


@pytest.mark.realdata
@pytest.mark.skipif(not os.environ.get("UPRIGHT_DATA"), reason="UPRIGHT_DATA is not set")
def test_filmtrust():
    # Catches: blanks read as one column, a filter of items, doubled pairs. The counts are those of the published split.
    split = load_split("filmtrust")
    assert (split.n_users, split.n_items) == (1_227, 2_059)
    assert sum(map(len, (split.train, split.valid, split.test))) == 34_886  # 34,889 rows, of which 3 repeat a pair
    assert split.train.time is None
    with pytest.raises(InputError, match="without times"):
        leave_last(split, seed=0)
    assert len(leave_last(split, seed=0, without_times="draw").test) == split.n_users
