"""Known-bad files, each with the exact error, and what good files become."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.data.interactions import read_interactions

GOOD = "user,item,rating\na,x,5\na,y,4\nb,x,3\nb,y,1\n"


def write(folder: Path, text: str | bytes, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path, **options) -> tuple[str, str, str]:
    with pytest.raises(InputError) as error:
        read_interactions(path, **options)
    return error.value.got, error.value.accepted, error.value.todo


BAD = {
    "text among numbers": (
        "user,item,rating\n1,2,3\n1,3,3\n2,2,4\nalice,3,1\n2,3,5\n", {},
        ("log.csv line 5: 'user' is 'alice', yet a number in 4 of 5 rows", "ids that are all numbers, or mostly text",
         "correct those rows, or pass ids='text' (--set ids=text) when the mixture is right"),
    ),
    "duplicates": (
        "user,item,rating\n" + "1,2,3\n" * 4 + "1,3,3\n2,2,4\n" + "1,2,3\n" * 4 + "2,3,3\n", {},
        ("log.csv lines 3, 4, 5, 8, 9 and 2 more: 7 rows repeat an earlier pair of user and item", "each pair once",
         "pass duplicates='last' (--set duplicates=last) to keep the latest row of each pair, or duplicates='sum' "
         "(--set duplicates=sum) to add their values"),
    ),
    "lonely users": (
        "user,item,rating\n1,2,3\n2,2,3\n1,3,3\n3,2,4\n", {},
        ("log.csv lines 3 and 5: 2 of 3 users have one interaction and cannot be split",
         "at least two interactions a user",
         "pass min_user=2 (or more) to drop them, or min_user=1 to keep them in train only "
         "(--set min_user=2 or 1)"),
    ),
    "lonely after the item filter": (
        "user,item,rating\n1,2,3\n2,2,3\n1,3,3\n2,4,3\n1,5,1\n2,5,1\n3,2,1\n3,6,1\n", {"min_item": 2},
        ("log.csv line 8: 1 of 3 users have one interaction and cannot be split", "at least two interactions a user",
         "pass min_user=2 (or more) to drop them, or min_user=1 to keep them in train only "
         "(--set min_user=2 or 1)"),
    ),
    "nothing left": (
        GOOD, {"min_user": 9},
        ("log.csv: nothing is left of 4 rows with min_item = 1 and min_user = 9",
         "bounds that leave some users and items", "lower the bounds"),
    ),
    "unknown duplicates": (
        GOOD, {"duplicates": "first"}, ("duplicates = 'first'", "'error' | 'last' | 'sum'", "pass one of them"),
    ),
    "unknown ids": (GOOD, {"ids": "int"}, ("ids = 'int'", "'auto' | 'text'", "pass one of them")),
    "min_user": (GOOD, {"min_user": 0}, ("min_user = 0", "a whole number from 1, or None", "raise it")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_file(tmp_path, case):
    """Catches a bad cell read as something, a row dropped, and a line number that is not the editor's."""
    text, options, expected = BAD[case]
    assert refused(write(tmp_path, text), **options) == expected


def test_an_open_quote(tmp_path):
    """Catches the rest of a file swallowed as one cell."""
    got, _, _ = refused(write(tmp_path, 'user,item,rating\n1,"2,3\n1,3,4\n2,2,2\n2,3,3\n'))
    assert got.startswith("log.csv")


@pytest.mark.parametrize(("name", "separator"), [("log.csv", ","), ("log.tsv", "\t"), ("log.TAB", "\t")])
def test_good_text(tmp_path, name, separator):
    """Catches codes by order of appearance, blanks kept in ids, a byte order mark in the first column's name."""
    text = "﻿item,user,rating,when\r\n x,b ,4.5,20\r\ny,b,1,10\r\nx,a,2,30\r\ny,a,-1,5\r\n\r\n"
    log = read_interactions(write(tmp_path, text.replace(",", separator), name), time="when")
    assert (log.user_ids, log.item_ids) == (("a", "b"), ("x", "y"))
    assert log.user.tolist() == [1, 1, 0, 0]
    assert log.item.tolist() == [0, 1, 0, 1]
    assert log.value.tolist() == [4.5, 1.0, 2.0, -1.0]
    assert log.time.tolist() == [20, 10, 30, 5]
    assert (log.user.dtype, log.value.dtype, log.time.dtype) == (np.int64, np.float64, np.int64)


def test_numeric_ids_sort_as_numbers(tmp_path):
    """Catches "10" before "9", and "007" merged with "7"."""
    log = read_interactions(write(tmp_path, "user,item\n10,7\n10,007\n9,7\n9,007\n"), value=None)
    assert log.user_ids == ("9", "10")
    assert log.item_ids == ("007", "7")
    assert log.value.tolist() == [1.0] * 4
    assert log.time is None


def test_mixed_ids_on_demand(tmp_path):
    """Catches ids='text' that is ignored."""
    log = read_interactions(write(tmp_path, "user,item\n1,2\n1,3\n2,2\n2,3\nx,2\nx,3\n"), value=None, ids="text")
    assert log.user_ids == ("1", "2", "x")


def test_mostly_text_ids_need_no_switch(tmp_path):
    """Catches the mixture rule striking at text ids that happen to hold a number."""
    log = read_interactions(write(tmp_path, "user,item\na,2\na,3\nb,2\nb,3\n7,2\n7,3\n"), value=None)
    assert log.user_ids == ("7", "a", "b")


def test_duplicates_on_demand(tmp_path):
    """Catches the first row kept for the last, time ignored, and sums over the wrong pair."""
    path = write(tmp_path, "user,item,rating,t\n1,1,1,9\n1,2,2,1\n1,1,4,3\n2,1,8,1\n2,2,16,1\n1,2,32,1\n")
    by_file = read_interactions(path, duplicates="last")
    assert list(zip(by_file.user, by_file.item, by_file.value, strict=True)) == [
        (0, 0, 4), (1, 0, 8), (1, 1, 16), (0, 1, 32),
    ]  # fmt: skip
    by_time = read_interactions(path, duplicates="last", time="t")
    assert list(zip(by_time.user, by_time.item, by_time.value, by_time.time, strict=True)) == [
        (0, 0, 1, 9), (1, 0, 8, 1), (1, 1, 16, 1), (0, 1, 32, 1),
    ]  # fmt: skip
    summed = read_interactions(path, duplicates="sum", time="t")
    assert summed.value.tolist() == [5, 8, 16, 34]
    assert summed.time.tolist() == [9, 1, 1, 1]


def test_lonely_users_on_demand(tmp_path):
    """Catches min_user that is ignored, and codes that keep holes after the filter."""
    path = write(tmp_path, "user,item\n1,2\n2,9\n1,3\n3,2\n3,3\n")
    dropped = read_interactions(path, value=None, min_user=2)
    assert (dropped.user_ids, dropped.item_ids, len(dropped)) == (("1", "3"), ("2", "3"), 4)
    kept = read_interactions(path, value=None, min_user=1)
    assert (kept.n_users, len(kept)) == (3, 5)


def test_nanoseconds_survive(tmp_path):
    """Catches times that pass through float64."""
    when = 1_700_000_000_123_456_789
    log = read_interactions(write(tmp_path, f"user,item,t\n1,2,{when}\n1,3,{when + 1}\n"), value=None, time="t")
    assert log.time.tolist() == [when, when + 1]


def test_parquet_equals_csv(tmp_path):
    """Catches a Parquet path that differs from the text path, among them ids that a null made floats."""
    text = read_interactions(write(tmp_path, "user,item,rating,t\n10,x,1.5,5\n9,x,2,6\n10,y,3,7\n9,y,4,8\n"), time="t")
    frame = pl.DataFrame(
        {"user": [10.0, 9.0, 10.0, 9.0], "item": ["x", "x", "y", "y"], "rating": [1.5, 2, 3, 4], "t": [5, 6, 7, 8]}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    table = read_interactions(tmp_path / "log.parquet", time="t")
    assert (table.user_ids, table.item_ids) == (text.user_ids, text.item_ids)
    for name in ("user", "item", "value", "time"):
        np.testing.assert_array_equal(getattr(table, name), getattr(text, name))


def test_parquet_date_times(tmp_path):
    """Catches a unit that depends on how the column was stored."""
    path = tmp_path / "log.parquet"
    day = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
    for unit in ("ms", "us", "ns"):
        frame = pl.DataFrame({"user": [1, 1], "item": [1, 2], "t": [day, day]})
        frame.with_columns(pl.col("t").dt.cast_time_unit(unit)).write_parquet(path)
        assert read_interactions(path, value=None, time="t").time.tolist() == [86_400_000_000] * 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_row_order_changes_no_code(tmp_path, data):
    """Catches codes by order of appearance: a permuted file must be the permuted log, code for code."""
    pairs = [(u, i) for u in ("7", "10", "8") for i in ("b", "a", "c")]
    order = data.draw(st.permutations(range(len(pairs))))
    plain = read_interactions(write(tmp_path, "user,item\n" + "".join(f"{u},{i}\n" for u, i in pairs)), value=None)
    text = "user,item\n" + "".join(f"{u},{i}\n" for u, i in (pairs[k] for k in order))
    mixed = read_interactions(write(tmp_path, text), value=None)
    assert (mixed.user_ids, mixed.item_ids) == (plain.user_ids, plain.item_ids)
    np.testing.assert_array_equal(mixed.user, plain.user[list(order)])
    np.testing.assert_array_equal(mixed.item, plain.item[list(order)])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["row", "blank", "quoted"]), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_line_numbers_are_those_of_an_editor(tmp_path, before, end):
    """Catches any drift between rows and lines over blank lines and line breaks inside quotes."""
    text = "user,note,item,rating" + end
    for number, kind in enumerate(before):
        text += {"row": f"1,,{number},3{end}", "blank": end, "quoted": f'1,"a{end}b",{number},3{end}'}[kind]
    line = text.count("\n") + 1
    got, _, _ = refused(write(tmp_path, text + f"1,,99,bad{end}"))
    assert got == f"log.csv line {line}: 'rating' is 'bad', not a number"
