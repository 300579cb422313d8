"""The table behind every number: nothing is lost on the way to disk, and arms are paired or refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from upright.contract import InputError, UnitScores
from upright.shell.units import Block, Units, read_units, write_units

NAN = float("nan")


def block(arm: str, seed: int, values, *, unit=("u1", "u2", "u3"), by=None) -> Block:
    return Block("r", arm, seed, UnitScores("user", unit, {"m": values}, by or {}))


def test_what_is_written_is_read(tmp_path):
    # catches rounding, reordering, and an undefined value that is dropped or turned into 0
    values = {"ndcg": [0.1, NAN, 1 / 3], "hit": [1.0, 0.0, NAN]}
    scores = UnitScores("user", [10, 2, 33], values, {"activity": ["low", "high", "low"], "age": ["a", "b", "c"]})
    blocks = [Block("r", arm, seed, scores) for arm in ("none", "x") for seed in (0, 1)]
    write_units(tmp_path / "u.parquet", blocks, "test")
    back = read_units(tmp_path / "u.parquet")
    assert [(b.run, b.arm, b.seed) for b in back] == [(b.run, b.arm, b.seed) for b in blocks]
    for b in back:
        assert b.scores.unit == ["10", "2", "33"]
        assert b.scores.unit_kind == "user"
        assert b.scores.by == scores.by
        for name, expected in values.items():
            np.testing.assert_array_equal(b.scores.values[name], expected)
    columns = pq.read_schema(tmp_path / "u.parquet").names
    assert columns == ["run", "arm", "seed", "split", "unit_kind", "unit", "metric", "value", "weight",
                       "by_activity", "by_age"]  # fmt: skip


def test_a_grouping_that_some_blocks_lack_stays_with_its_rows(tmp_path):
    # catches labels that slip to the rows of another block
    blocks = [
        block("a", 0, [1.0, 2.0, 3.0], by={"g": ["x", "y", "x"]}),
        block("b", 0, [4.0, 5.0, 6.0]),
        block("c", 0, [7.0, 8.0, 9.0], by={"g": ["y", "y", "x"]}),
    ]
    write_units(tmp_path / "u.parquet", blocks, "test")
    assert [b.scores.by for b in read_units(tmp_path / "u.parquet")] == [b.scores.by for b in blocks]


def test_a_file_that_is_missing_or_of_another_schema_is_refused(tmp_path):
    with pytest.raises(InputError, match="finish the run first"):
        read_units(tmp_path / "no.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet"):
        read_units(tmp_path / "broken.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"units schema \?"):
        read_units(tmp_path / "other.parquet")


def test_values_stand_at_their_seed_and_unit():
    units = Units([block("a", 1, [1.0, NAN, 3.0]), block("a", 0, [6.0, 5.0, 4.0], unit=("u3", "u2", "u1"))])
    assert units.seeds == [0, 1]
    assert units.units == ["u1", "u2", "u3"]
    np.testing.assert_array_equal(units.values("a", "m"), [[4.0, 5.0, 6.0], [1.0, NAN, 3.0]])


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        (
            [block("a", 0, [1, 2, 3]), block("a", 1, [1, 2, 3]), block("b", 0, [1, 2, 3])],
            r"without a seed: \[\('b', 1\)",
        ),
        ([block("a", 0, [1, 2, 3]), block("a", 0, [1, 2, 3])], "the same seed twice"),
        ([block("a", 0, [1, 2, 3]), block("b", 0, [1, 2], unit=("u1", "u2"))], "'b' at seed 0 scores other units"),
        ([block("a", 0, [1, 2, 3], unit=("u1", "u1", "u2"))], "or one twice"),
        ([], "no scores"),
    ],
)
def test_arms_that_are_not_paired_are_refused(blocks, why):
    # catches a difference of means over different users, which is no paired difference
    with pytest.raises(InputError, match=why):
        Units(blocks)
