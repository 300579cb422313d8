"""Partitions over clients: every row once, the stated parameter, the bounds, and an independent fit of the odds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.data import partition as module
from upright.data.partition import counts_of, partition

SEEDS = st.integers(0, 2**32 - 1)


def people(seed, n, groups=2, classes=2):
    """Groups and labels of n rows, correlated, no group empty."""
    rng = np.random.default_rng(seed)
    group = np.r_[np.arange(groups), rng.integers(groups, size=n - groups)]
    label = np.where(rng.random(n) < 0.6, rng.integers(classes, size=n), group % classes)
    return group, label


def split(kind, group, label, n_clients, seed=0, **options):
    rng = np.random.default_rng(seed)
    return partition(kind, group=group, label=label, n_clients=n_clients, rng=rng, **options)


def cells(*codes):
    return Counter(zip(*(np.asarray(code).tolist() for code in codes), strict=True))


# -- all kinds ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    SEEDS, st.sampled_from(["dirichlet", "correlation", "iid"]), st.integers(1, 7), st.integers(1, 4), st.integers(2, 4)
)
def test_every_row_has_one_client_and_the_generator_alone_decides(seed, kind, n_clients, groups, classes):
    # catches rows left over by rounding, a client beyond the last, and a global source of chance
    group, label = people(seed, 200, groups, classes)
    client = split(kind, group, label, n_clients, seed, least=0)
    assert client.shape == (200,)
    assert client.dtype == np.int64
    assert client.min() >= 0
    assert client.max() < n_clients
    np.testing.assert_array_equal(client, split(kind, group, label, n_clients, seed, least=0))
    if n_clients > 1:
        assert not np.array_equal(client, split(kind, group, label, n_clients, seed + 1, least=0))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 6), st.integers(2, 4), st.integers(2, 3))
def test_the_order_of_rows_moves_no_count(seed, n_clients, groups, classes):
    # catches a partition that follows the order of the file: counts depend on group sizes and chance alone
    group, label = people(seed, 300, groups, classes)
    order = np.random.default_rng(seed + 1).permutation(300)
    one = split("dirichlet", group, label, n_clients, seed, least=0)
    two = split("dirichlet", group[order], label[order], n_clients, seed, least=0)
    assert cells(one, group) == cells(two, group[order])
    one = split("correlation", group, label, n_clients, seed)
    two = split("correlation", group[order], label[order], n_clients, seed)
    assert cells(one, group, label) == cells(two, group[order], label[order])


def test_names_of_groups_do_not_matter():
    # catches codes taken from the values in place of their order
    group, label = people(3, 400)
    for kind in ("dirichlet", "correlation"):
        np.testing.assert_array_equal(
            split(kind, group, label, 4), split(kind, np.array(["F", "M"])[group], np.array(["no", "yes"])[label], 4)
        )


@pytest.mark.parametrize("kind", ["dirichlet", "correlation", "iid"])
def test_chance_picks_the_rows_of_a_cell(kind):
    # catches slices of the file in place of a random choice: the first half of a cell would sit at the first clients
    group, label = np.repeat([0, 1], 2_000), np.tile([0, 1], 2_000)
    client = split(kind, group, label, 2, seed=5)
    for a in (0, 1):
        for y in (0, 1):
            mine = client[(group == a) & (label == y)]
            half, share = len(mine) // 2, mine.mean()
            error = np.sqrt(share * (1 - share) / len(mine) * 4)
            assert abs(mine[:half].mean() - mine[half:].mean()) < 5 * error + 1e-12


# -- dirichlet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_shares_follow_dir_of_gamma_itself(gamma):
    # catches Dir(2 gamma), Dir(gamma / K), and one draw used for every group: their variances differ by far more
    n_clients, draws = 4, 3_000
    group = np.repeat([0, 1], 1_000)
    rng = np.random.default_rng(11)
    shares = np.empty((draws, 2, n_clients))
    for draw in range(draws):
        client = partition(
            "dirichlet", group=group, label=group, n_clients=n_clients, rng=rng, gamma=gamma, least=0
        )  # fmt: skip
        shares[draw] = [np.bincount(client[group == a], minlength=n_clients) / 1_000 for a in (0, 1)]
    squares = (shares - 1 / n_clients) ** 2
    expected = (1 / n_clients) * (1 - 1 / n_clients) / (n_clients * gamma + 1)
    per_draw = squares.mean((1, 2))
    assert abs(per_draw.mean() - expected) < 5 * per_draw.std() / np.sqrt(draws) + 1e-5
    product = ((shares[:, 0] - 1 / n_clients) * (shares[:, 1] - 1 / n_clients)).mean(1)
    assert abs(product.mean()) < 5 * product.std() / np.sqrt(draws)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(0, 20), st.sampled_from([0.5, 1.0, 5.0]))
def test_least_is_honoured(seed, n_clients, least, gamma):
    # catches a bound on clients in place of cells, and one checked for the last group only
    group = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2], [250, 400, 900]))
    client = split("dirichlet", group, group, n_clients, seed, gamma=gamma, least=least)
    found = cells(client, group)
    assert min(found[k, a] for k in range(n_clients) for a in range(3)) >= least


def test_redrawing_one_group_gives_the_law_of_redrawing_all():
    # catches a condition that distorts the shares, such as moving rows to fill small cells
    group, draws, least = np.repeat([0, 1], [60, 90]), 3_000, 10
    rng = np.random.default_rng(2)
    ours, theirs = [], []
    for _ in range(draws):
        client = partition("dirichlet", group=group, label=group, n_clients=3, rng=rng, gamma=1.0, least=least)
        ours.append(np.bincount(client[group == 0], minlength=3).max() / 60)
        while True:  # reject whole tables
            tables = [module._largest_remainder(rng.dirichlet(np.ones(3)), size) for size in (60, 90)]
            if min(table.min() for table in tables) >= least:
                break
        theirs.append(tables[0].max() / 60)
    error = np.sqrt((np.var(ours) + np.var(theirs)) / draws)
    assert abs(np.mean(ours) - np.mean(theirs)) < 5 * error


def test_large_gamma_gives_every_client_the_same_mixture():
    # catches gamma used upside down, and overflow of its sum
    group = np.repeat([0, 1], [3_000, 1_000])
    for gamma in (1e9, 1e300):
        client = split("dirichlet", group, group, 4, gamma=gamma)
        for a, size in ((0, 3_000), (1, 1_000)):
            assert np.abs(np.bincount(client[group == a], minlength=4) - size / 4).max() <= 1


def test_small_gamma_puts_a_group_at_one_client():
    # catches shares that are not a number when gamma is tiny
    client = split("dirichlet", np.repeat([0, 1], 500), np.repeat([0, 1], 500), 4, gamma=1e-12, least=0)
    assert np.bincount(client[:500], minlength=4).max() == 500


def test_a_cell_that_cannot_be_filled_is_named():
    # catches an endless loop, and an error that does not say where and what to change
    group = np.array(["many"] * 500 + ["few"] * 60)
    with pytest.raises(InputError) as error:
        split("dirichlet", group, group, 5)
    assert (error.value.got, error.value.accepted) == (
        "group 'few' has 60 rows for 5 clients",
        "at least 100: 20 at each client",
    )
    assert error.value.todo == "take at most 3 clients, lower least, or merge small groups"
    with pytest.raises(InputError) as error:
        split("dirichlet", group, group, 3)  # exactly 20 each: one draw in thousands
    assert "rows of group 'few' in the last of 1000 draws; no draw gave every client 20" in error.value.got
    assert error.value.got.startswith("client ")
    assert error.value.todo == "raise gamma (now 0.5), lower least, take fewer clients, or merge small groups"


# -- correlation ----------------------------------------------------------------------------------------------------


def fitted(gammas, n_diagonal, n):
    """Diagonal and other rows at each client by iterative proportional fitting: columns n_d and n - n_d, rows n / K."""
    table = np.c_[gammas, 1 - gammas]
    for _ in range(5_000):
        table = table / table.sum(0) * np.array([n_diagonal, n - n_diagonal])
        table = table / table.sum(1, keepdims=True) * n / len(gammas)
    return table


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 8), st.integers(2, 4), st.integers(2, 4))
def test_correlation_equals_proportional_fitting(seed, n_clients, groups, classes):
    # catches a wrong diagonal for more than two groups or classes, swapped weights, and unequal clients
    n = 600
    group, label = people(seed, n, groups, classes)
    client = split("correlation", group, label, n_clients, seed)
    gammas = np.random.default_rng(seed).uniform(0.2, 0.8, n_clients)
    diagonal = np.isin(group, [0, 2]) == np.isin(label, [0, 2])
    table = fitted(gammas, diagonal.sum(), n)
    found = np.array([[(diagonal & (client == k)).sum(), (~diagonal & (client == k)).sum()] for k in range(n_clients)])
    n_cells = len(set(zip(group.tolist(), label.tolist(), strict=True)))
    assert np.abs(found - table).max() < n_cells
    assert np.abs(found.sum(1) - n / n_clients).max() < n_cells


def test_each_cell_is_spread_in_the_same_way():
    # catches shares fitted cell by cell: within the diagonal every cell goes to clients in one proportion
    group, label = (
        np.repeat([0, 0, 1, 1], [9_000, 3_000, 2_000, 6_000]),
        np.repeat([0, 1, 0, 1], [9_000, 3_000, 2_000, 6_000]),
    )
    client = split("correlation", group, label, 5, seed=4)
    share = {
        (a, y): np.bincount(client[(group == a) & (label == y)], minlength=5) / ((group == a) & (label == y)).sum()
        for a in (0, 1) for y in (0, 1)
    }  # fmt: skip
    np.testing.assert_allclose(share[0, 0], share[1, 1], atol=1 / 6_000)
    np.testing.assert_allclose(share[0, 1], share[1, 0], atol=1 / 2_000)
    odds = np.log(share[0, 0] / share[0, 1])
    gammas = np.random.default_rng(4).uniform(0.2, 0.8, 5)
    np.testing.assert_allclose(np.diff(odds), np.diff(np.log(gammas / (1 - gammas))), atol=0.02)


def test_correlation_without_one_side():
    # catches a division by zero when all rows lie on the diagonal
    group = np.repeat([0, 1], 50)
    assert np.bincount(split("correlation", group, group, 4)).tolist() == [26, 26, 24, 24]


# -- column, iid, rounding ------------------------------------------------------------------------------------------


def test_a_column_gives_the_clients():
    # catches clients in order of appearance, and numbers sorted as text
    zeros = np.zeros(5, dtype=int)
    column = np.array(["b", "a", "b", "c", "a"], dtype=object)
    assert split("column", zeros, zeros, None, column=column).tolist() == [1, 0, 1, 2, 0]
    assert split("column", zeros, zeros, 3, column=[10.0, 9.0, 10.0, 80.0, 9.0]).tolist() == [1, 0, 1, 2, 0]


def test_iid_sizes_and_mixture():
    # catches uneven slices, and slices of the file
    group, label = people(0, 1_003)
    assert sorted(np.bincount(split("iid", group, label, 4)).tolist()) == [250, 251, 251, 251]
    placed = np.array([split("iid", group, label, 4, seed)[:20] for seed in range(2_000)])  # (draws, rows)
    share = (placed[:, :, None] == np.arange(4)).mean(0)
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2_000)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda some: sum(some) > 1e-6), st.integers(0, 10_000))
def test_largest_remainder(weights, total):
    # catches a sum that is off, and a count further than 1 from its share
    shares = np.array(weights) / sum(weights)
    counts = module._largest_remainder(shares, total)
    assert counts.sum() == total
    assert np.abs(counts - shares * total).max() < 1 + 1e-9
    up = counts > shares * total + 1e-9
    if up.any() and not up.all():
        remainder = shares * total - np.floor(shares * total)
        assert remainder[up].min() >= remainder[~up & (counts <= shares * total - 1e-9)].max(initial=0.0) - 1e-9


# -- counts, errors -------------------------------------------------------------------------------------------------


def test_counts_of():
    # catches empty cells left out, groups in another order, and classes under the wrong name
    client, group, label = [0, 0, 1, 0, 1], ["M", "F", "M", "M", "M"], np.array([1, 0, 1, 0, 1])
    found = counts_of(client, group, label, clients=("north", "south"), classes=("no", "yes"))
    assert [tuple(row.values()) for row in found] == [
        ("north", "F", "no", 1),
        ("north", "F", "yes", 0),
        ("north", "M", "no", 1),
        ("north", "M", "yes", 1),
        ("south", "F", "no", 0),
        ("south", "F", "yes", 0),
        ("south", "M", "no", 0),
        ("south", "M", "yes", 2),
    ]
    assert counts_of(client, group, label)[7] == {"client": "1", "group": "M", "label": "1", "n": 2}
    with pytest.raises(InputError, match="class from 0 to 1"):
        counts_of(client, group, label, classes=("no",))
    with pytest.raises(InputError, match="5 clients, 5 groups and 4 labels"):
        counts_of(client, group, label[:4])


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"kind": "dirichlett"}, "kind = 'dirichlett'"),
        ({"label": [0, 1]}, "4 groups and 2 labels"),
        ({"n_clients": 0}, "n_clients = 0"),
        ({"n_clients": 5}, "n_clients = 5"),
        ({"n_clients": None}, "n_clients = None"),
        ({"gamma": 0.0}, "gamma = 0.0"),
        ({"gamma": float("nan")}, "gamma = nan"),
        ({"gamma": float("inf")}, "gamma = inf"),
        ({"least": -1}, "least = -1"),
        ({"kind": "column"}, "kind = 'column' without a column"),
        ({"column": [1, 1, 2, 2]}, "kind = 'dirichlet' with a column"),
        ({"kind": "column", "column": [1, 1, 2, 2], "n_clients": 3}, "n_clients = 3 and a column with 2 values"),
        ({"kind": "column", "column": ["a", "", "b", "b"]}, "a column with 1 empty values"),
        ({"kind": "column", "column": [1.0, np.nan, 2.0, 2.0]}, "column with 1 missing values"),
        ({"kind": "column", "column": [1, 2]}, "a column of 2 values for 4 rows"),
        ({"group": [[0, 1], [1, 0]]}, "group of shape (2, 2)"),
    ],
)
def test_known_bad_arguments(options, got):
    # catches arguments that are taken and ignored, and a message of numpy in place of an answer
    usual = {"kind": "dirichlet", "group": [0, 0, 1, 1], "label": [0, 1, 0, 1], "n_clients": 2, "least": 0}
    settings_ = usual | options
    with pytest.raises(InputError) as error:
        partition(settings_.pop("kind"), rng=np.random.default_rng(0), **settings_)
    assert error.value.got == got
    assert error.value.accepted
    assert error.value.todo
