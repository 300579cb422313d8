"""Logs, splits and the synthetic world: properties that hold by construction."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.data.interactions import (
    Interactions,
    Split,
    core_filter,
    fingerprint,
    random_split,
    synthetic,
)


def make(user, item, value=None, time=None, n_users=None, n_items=None) -> Interactions:
    user, item = np.asarray(user, dtype=np.int64), np.asarray(item, dtype=np.int64)
    n_users = int(user.max()) + 1 if n_users is None else n_users
    n_items = int(item.max()) + 1 if n_items is None else n_items
    return Interactions(
        user, item,
        np.ones(len(user)) if value is None else np.asarray(value, dtype=np.float64),
        None if time is None else np.asarray(time, dtype=np.int64),
        n_users, n_items, tuple(f"u{u}" for u in range(n_users)), tuple(f"i{i}" for i in range(n_items)),
    )  # fmt: skip


@st.composite
def logs(draw) -> Interactions:
    """Logs in which each row is known by its time, users have at least one row and N >= 10 * users / 3 at most."""
    n_users = draw(st.integers(1, 12))
    extra = draw(st.lists(st.integers(0, n_users - 1), min_size=2 * n_users + 2, max_size=60))
    user = draw(st.permutations([*range(n_users), *extra]))
    item = draw(st.lists(st.integers(0, 9), min_size=len(user), max_size=len(user)))
    return make(user, item, time=range(len(user)), n_users=n_users, n_items=10)


# -- random_split -------------------------------------------------------------------------------------------------


@given(logs(), st.integers(0, 2**31))
def test_split_parts_are_the_log_in_order(log, seed):
    """Catches a lost or doubled row, and parts that come in the order of the permutation."""
    parts = random_split(log, seed=seed)
    rows = [part.time for part in parts]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(log)))
    for part, kept in zip(parts, rows, strict=True):
        assert (np.diff(kept) > 0).all()
        np.testing.assert_array_equal(part.user, log.user[kept])
        np.testing.assert_array_equal(part.item, log.item[kept])
        assert (part.n_users, part.n_items, part.user_ids) == (log.n_users, log.n_items, log.user_ids)


@given(logs(), st.integers(0, 2**31))
def test_every_user_keeps_a_training_row(log, seed):
    """Catches a plain shuffle, which leaves small users without any training row, and an exchange that starves
    the donor."""
    train, _, _ = random_split(log, seed=seed)
    assert (train.counts("user") >= 1).all()


@given(logs(), st.integers(0, 2**31))
def test_exchange_keeps_the_sizes(log, seed):
    """Catches a repair that moves a row into train without giving one back."""
    rows = len(log)
    test = math.ceil(rows / 5)
    valid = math.ceil((rows - test) / 8)
    assert [len(part) for part in random_split(log, seed=seed)] == [rows - test - valid, valid, test]


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (103_567, (72_496, 10_357, 20_714)),
        (66_245, (46_371, 6_625, 13_249)),
        (99_287, (69_500, 9_929, 19_858)),
        (62_376, (43_662, 6_238, 12_476)),
    ],
)
def test_split_sizes_are_the_published_ones(rows, sizes):
    """Catches rounding in place of the published ceilings (recsys.md 3.6)."""
    log = make(np.zeros(rows), np.arange(rows))
    assert tuple(len(part) for part in random_split(log)) == sizes


def test_split_is_a_function_of_the_seed():
    """Catches a global or unseeded generator, and a seed that is ignored."""
    log = make(np.arange(200) % 10, np.arange(200), time=np.arange(200))
    first, again, other = (random_split(log, seed=seed)[2].time.tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_split_is_random_within_users():
    """Catches a split by position: early and late rows must reach the test part alike (5 standard errors)."""
    log = make(np.arange(20_000) % 50, np.arange(20_000), time=np.arange(20_000))
    test = random_split(log)[2]
    early = int((test.time < 10_000).sum())
    assert abs(early - 2_000) < 5 * math.sqrt(20_000 * 0.2 * 0.8 / 4)


def test_a_user_without_training_row_gets_one_from_a_user_with_several():
    """Catches the exchange being left out: 30 users with one row each beside one with 100."""
    user = np.r_[np.zeros(100), np.arange(1, 31)]
    for seed in range(20):
        train, _, _ = random_split(make(user, np.arange(130)), seed=seed)
        assert set(range(31)) <= set(train.user.tolist())


@pytest.mark.parametrize(
    "fractions", [(0.7, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5), (math.nan, 0, 1)]
)
def test_wrong_fractions(fractions):
    """Catches fractions that are renormalised in silence."""
    with pytest.raises(InputError) as error:
        random_split(make([0, 0], [0, 1]), fractions=fractions)
    assert str(error.value) == (
        f"fractions = {fractions!r}\n"
        "  accepted: three shares of at least 0 that sum to 1, train above 0\n"
        "  to do:    use (0.7, 0.1, 0.2)"
    )


def test_a_log_too_small_to_split():
    """Catches a split that returns users without training rows because there are too few rows."""
    with pytest.raises(InputError) as error:
        random_split(make([0, 1, 2], [0, 0, 0]))
    assert str(error.value) == (
        "1 training rows for 3 users in a log of 3 rows\n"
        "  accepted: at least one training row a user\n"
        "  to do:    raise the training fraction, or drop users with few rows by core_filter or min_user "
        "(--set min_user=5)"
    )


# -- core_filter --------------------------------------------------------------------------------------------------


@given(logs(), st.integers(0, 6), st.integers(0, 6))
def test_core_is_the_largest_fixed_point(log, min_item, min_user):
    """Catches a single pass (a removed user may pull an item below its bound) and one that removes too much:
    the core is compared with removal one row at a time."""
    rows = set(range(len(log)))
    while True:
        bad = next(
            (
                r
                for r in sorted(rows)
                if sum(log.item[q] == log.item[r] for q in rows) < min_item
                or sum(log.user[q] == log.user[r] for q in rows) < min_user
            ),
            None,
        )
        if bad is None:
            break
        rows.remove(bad)
    if not rows:
        with pytest.raises(InputError, match="nothing is left"):
            core_filter(log, min_item=min_item, min_user=min_user)
        return
    core = core_filter(log, min_item=min_item, min_user=min_user)
    assert core.time.tolist() == sorted(rows)
    assert [core.user_ids[u] for u in core.user] == [log.user_ids[log.user[r]] for r in sorted(rows)]
    assert [core.item_ids[i] for i in core.item] == [log.item_ids[log.item[r]] for r in sorted(rows)]
    assert core.counts("user").min() >= 1  # codes are dense
    assert core.counts("item").min() >= 1


def test_core_leaves_nothing():
    """Catches an empty log that goes on into training."""
    with pytest.raises(InputError) as error:
        core_filter(make([0, 0, 1], [0, 1, 0]))
    assert str(error.value) == (
        "nothing is left of 3 rows with min_item = 5 and min_user = 5\n"
        "  accepted: bounds that leave some users and items\n"
        "  to do:    lower the bounds"
    )


# -- Interactions, Split, fingerprint -----------------------------------------------------------------------------


def test_csr_collapses_duplicates_and_has_every_row():
    """Catches a pair counted as 2.0, float64, and a matrix cut to the codes that occur."""
    matrix = make([0, 0, 2], [1, 1, 0], n_users=4, n_items=3).csr()
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix.toarray(), [[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert matrix.has_sorted_indices


def test_counts_keep_absent_codes():
    """Catches a count array that stops at the largest code present, and a swapped axis."""
    log = make([0, 0, 2], [1, 1, 0], n_users=4, n_items=3)
    assert log.counts("user").tolist() == [2, 0, 1, 0]
    assert log.counts("item").tolist() == [1, 2, 0]
    with pytest.raises(InputError, match="axis = 'users'"):
        log.counts("users")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": np.array([0])}, "columns of lengths [1, 2]"),
        ({"user": np.array([0, 5])}, "user codes from 0 to 5"),
        ({"item": np.array([-1, 0])}, "item codes from -1 to 0"),
        ({"value": np.array([1.0, np.nan])}, "1 values that are NaN or infinite"),
        ({"user_ids": ("a",)}, "1 user_ids for n_users = 2"),
    ],
)
def test_a_log_that_does_not_fit_itself(change, message):
    """Catches codes that would index another user's row, and NaN that would reach a mean."""
    with pytest.raises(InputError) as error:
        dataclasses.replace(make([0, 1], [0, 1]), **change)
    assert error.value.got == message


def permuted(part: Interactions, seed: int) -> Interactions:
    return part.take(np.random.default_rng(seed).permutation(len(part)))


def test_fingerprint_ignores_test_and_sees_everything_else():
    """Catches a test row leaking into the fingerprint, and an array left out of it."""
    world = synthetic()
    same = dataclasses.replace(world, test=permuted(world.test, 1))
    assert same.fingerprint == world.fingerprint
    assert len(world.fingerprint) == 64
    for name in ("user", "item", "value", "time"):
        for part in ("train", "valid"):
            log = getattr(world, part)
            array = getattr(log, name).copy()
            array[0] = (array[0] + 1) % 2
            changed = dataclasses.replace(log, **{name: array})
            other = dataclasses.replace(world, **{part: changed})
            assert other.fingerprint != world.fingerprint, (part, name)
    assert fingerprint(world.train, world.valid) != fingerprint(world.valid, world.train)
    assert fingerprint(world.train, world.valid) != fingerprint(
        dataclasses.replace(world.train, time=None), world.valid
    )


def test_fingerprint_is_stable():
    """Catches a fingerprint that depends on platform, process or memory layout."""
    log = make([0, 1], [1, 0], value=[1.0, 2.5])
    strided = dataclasses.replace(log, user=np.array([0, 9, 1, 9])[::2])
    assert fingerprint(log, log) == fingerprint(strided, log)
    assert fingerprint(log, log) == "2ac3e56d481e1ff4d8ac7eaf3a63eb30079feccc4da573846c23092ce00e9285"


def test_split_refuses_parts_and_columns_that_do_not_fit():
    """Catches attributes aligned to another coding."""
    log = make([0, 1], [0, 1])
    for change, message in (
        ({"test": make([0], [0])}, "parts of sizes [(1, 1), (2, 2)] (users, items)"),
        ({"user_columns": {"gender": np.array(["M"])}}, "user column 'gender' of length 1"),
        ({"item_titles": ("one",)}, "1 item titles"),
    ):
        with pytest.raises(InputError) as error:
            dataclasses.replace(Split(log, log, log, "x", "none"), **change)
        assert error.value.got == message


# -- synthetic ----------------------------------------------------------------------------------------------------


def whole(world: Split) -> np.ndarray:
    return world.train.csr().toarray() + world.valid.csr().toarray() + world.test.csr().toarray()


def test_synthetic_is_a_function_of_its_seed():
    """Catches an unseeded draw."""
    assert synthetic(seed=5).fingerprint == synthetic(seed=5).fingerprint != synthetic(seed=6).fingerprint


def test_synthetic_pairs_are_unique_and_activity_is_as_declared():
    """Catches draws with replacement and an activity law that is not the declared one."""
    world = synthetic(n_users=60, n_items=50, min_items=4)
    seen = whole(world)
    assert seen.max() == 1
    expected = np.clip(np.round(0.5 * 50 * (1.0 + np.arange(60)) ** -0.4), 4, 50)
    np.testing.assert_array_equal(np.sort(seen.sum(1))[::-1], expected)
    assert sorted(np.bincount(world.user_columns["community"]).tolist()) == [20, 20, 20]


@pytest.mark.parametrize("seed", range(6))
def test_synthetic_plants_communities(seed):
    """Catches an affinity with the wrong sign or axis: overlap inside a community must exceed twice that outside,
    and vanish as a difference at affinity 1."""

    def ratio(affinity: float) -> float:
        world = synthetic(seed=seed, affinity=affinity)
        seen, community = whole(world), world.user_columns["community"]
        overlap = seen @ seen.T / np.sqrt(np.outer(seen.sum(1), seen.sum(1)))
        same = community[:, None] == community[None, :]
        np.fill_diagonal(overlap, np.nan)
        return float(np.nanmean(overlap[same]) / np.nanmean(overlap[~same]))

    assert ratio(30.0) > 2
    assert 0.9 < ratio(1.0) < 1.1


@pytest.mark.parametrize("seed", range(6))
def test_synthetic_communities_can_be_found_in_train(seed):
    """Catches a signal too weak to be a control: the most similar of the 5 % most active users shares a user's
    community nearly always, by chance one time in three where nothing is planted."""

    def found(affinity: float) -> float:
        world = synthetic(seed=seed, affinity=affinity)
        train, community = world.train, world.user_columns["community"]
        total = np.bincount(train.user, weights=train.value, minlength=train.n_users)
        active, rest = np.split(np.argsort(-total, kind="stable"), [6])
        assert affinity == 1 or set(community[active]) == {0, 1, 2}
        seen = train.csr().toarray()
        similar = seen[rest] @ seen[active].T / np.sqrt(np.outer(seen[rest].sum(1), seen[active].sum(1)))
        return float(np.mean(community[active[similar.argmax(1)]] == community[rest]))

    assert found(30.0) > 0.85
    assert found(1.0) < 0.55


def test_synthetic_items_follow_the_popularity_law():
    """Catches a reversed or forgotten Zipf weight."""
    world = synthetic(n_users=400, affinity=1.0, activity_exponent=0.0, max_share=0.1)
    rank = np.array([int(title.split()[1]) for title in world.item_titles])
    count = whole(world).sum(0)
    assert np.corrcoef(np.log1p(rank), np.log(count))[0, 1] < -0.9
    flat = synthetic(n_users=400, affinity=1.0, activity_exponent=0.0, max_share=0.1, item_exponent=0.0)
    assert whole(flat).sum(0).std() < count.std() / 2


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_users", 1),
        ("n_communities", 0),
        ("min_items", 1),
        ("max_share", 0.0),
        ("affinity", -1.0),
        ("item_exponent", -1),
    ],
)
def test_synthetic_refuses(argument, value):
    """Catches a world that is silently another one than asked for."""
    with pytest.raises(InputError, match=f"synthetic: {argument} = "):
        synthetic(**{argument: value})


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(8, 40), st.integers(0, 1000))
def test_synthetic_of_any_size_is_a_split(n_users, n_items, seed):
    """Catches sizes that break the draw: fewer users than communities do not exist here."""
    world = synthetic(n_users, n_items, seed, n_communities=min(2, n_users))
    assert (world.n_users, world.n_items) == (n_users, n_items)
    assert (world.train.counts("user") >= 1).all()
