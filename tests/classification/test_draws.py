"""Draws by id: the hash against published numbers, one name for one number, and rows in any kind of table."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse, stats

from upright.classification.draws import mix, row_ids, uniforms, words
from upright.contract import InputError


def test_the_mixing_is_that_of_splitmix64():
    # catches: a constant or a shift that is off. The first outputs of splitmix64 from the state 1234567, as published
    state = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_stay_as_they_are():
    # catches: a change of the hash, by which everybody in a deployed system would draw again
    wanted = [0.7215081806049702, 0.23928447285727472, 0.8345306607014518]
    assert uniforms(np.array([0, 1, "a"], dtype=object), 7, 3).tolist() == wanted
    digest = int.from_bytes(hashlib.blake2b("Müller".encode(), digest_size=8).digest(), "little")
    assert words(np.array(["Müller"])).tolist() == [digest]


def test_a_number_is_one_id_whatever_it_comes_as():
    # catches: an id that draws again because a file made it 7.0 or "7"
    kinds = [np.array([7, -3]), np.array([7.0, -3.0]), np.array(["7", "-3"]), np.array([7, "-3"], dtype=object),
             np.array([7.0, -3], dtype=object), pl.Series([7, -3]), pd.Series(["7", "-3"])]  # fmt: skip
    for kind in kinds:
        np.testing.assert_array_equal(uniforms(kind, 0, 2), uniforms([7, -3], 0, 2))
    assert len(set(uniforms(["7", "07", "7.0", "7 ", "+7"], 0, 5))) == 5  # other texts are other ids
    big = np.array([2**62, 2**62 + 1])
    assert len(set(uniforms(big, 0, 2))) == 2  # as floats they are one number


@pytest.mark.parametrize("ids", [np.arange(20_000), [f"person {i}" for i in range(20_000)], np.arange(20_000) * 4096])
def test_draws_are_uniform_and_of_their_own_seed(ids):
    # catches: numbers in a row that draw in a row, and seeds that shift all draws alike. Five tests at 1e-4
    a, b = uniforms(ids, 0, 20_000), uniforms(ids, 1, 20_000)
    for found in (a, b, (a - b) % 1.0, np.diff(a) % 1.0, np.diff(b) % 1.0):
        assert stats.kstest(found, "uniform").pvalue > 1e-4


def test_rows_have_one_id_in_every_kind_of_table():
    # catches: zeros, kinds of numbers, or column names that change who draws what
    x = np.round(np.random.default_rng(0).normal(size=(50, 4)), 2) * (np.arange(200).reshape(50, 4) % 3 > 0)
    x[:, 0] = np.arange(50)
    tables = [x, sparse.csr_matrix(x), sparse.csc_array(x), pd.DataFrame(x).astype({0: int}), x.astype(object),
              pl.DataFrame(x, schema=list("abcd"))]  # fmt: skip
    for table in tables:
        np.testing.assert_array_equal(row_ids(table), row_ids(x))
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(row_ids(x[order]), row_ids(x)[order])
    np.testing.assert_array_equal(np.concatenate([row_ids(x[i : i + 1]) for i in range(50)]), row_ids(x))
    assert len({*row_ids(x), *row_ids(x[:, ::-1]), *row_ids(x, np.ones(50))}) == 150  # a column's place counts


def test_equal_rows_have_draws_of_their_own_and_many_of_them_are_told():
    # catches: one draw for all people whose features are equal, and silence about what a lone row would get
    with pytest.warns(UserWarning, match="48 of 50 rows equal another row of this call.*pass ids="):
        found = row_ids(np.arange(50) % 2)
    assert len(set(found.tolist())) == 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row_ids(np.arange(50) % 25)  # half of them is not most
        assert row_ids(np.array([1]))[0] == found[1]


def test_missing_and_too_few_ids_are_told_in_three_parts():
    # catches: a missing id that is an id, so that all who lack one share a draw
    for ids, said in (
        (["a", None], ("ids missing at row 1", "one for each sample", "leave these samples out")),
        ([1.0, np.nan], ("ids missing at row 1", "one for each sample", "leave these samples out")),
        (["a"], ("ids of shape (1,) for 2 samples", "shape (2,)", "give one to each sample")),
    ):
        with pytest.raises(InputError) as caught:
            uniforms(ids, 0, 2)
        assert caught.value.args == said
