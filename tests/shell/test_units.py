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


def by_rows(blocks: list[Block], split: str) -> pa.Table:
    """The same table, one Python row after the other."""
    rows = [
        {"run": b.run, "arm": b.arm, "seed": b.seed, "split": split, "unit_kind": b.scores.unit_kind, "unit": str(unit),
         "metric": metric, "value": float(value), "weight": 1.0,
         **{f"by_{g}": labels[i] for g, labels in b.scores.by.items()}}
        for b in blocks for metric, values in b.scores.values.items()
        for i, (unit, value) in enumerate(zip(b.scores.unit, values, strict=True))
    ]  # fmt: skip
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    for name in names:
        if name not in ("seed", "unit", "value", "weight"):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, name, table[name].dictionary_encode())
    return table.replace_schema_metadata({"upright.units": "1"})


def mixed() -> list[Block]:
    """Blocks that differ in units, metrics and groupings."""
    return [
        block("a", 3, [1.0, 2.0, 3.0], by={"g": ["x", "", "x"], "h": ["é", "f", "f"]}),
        Block("q", "b", 1, UnitScores("user", [7, 5], {"n": [0.5, 0.25], "m": [1.0, -1.0]}, {"h": ["f", "e"]})),
        block("a", 1, [4.0, 5.0, 6.0], unit=("u2", "u3", "u1"), by={"g": ["y", "y", "x"]}),
    ]


def test_columns_types_and_rows_are_those_of_a_table_made_row_by_row(tmp_path):
    # catches: another type or order of columns, an empty label that becomes null, values beside another unit
    write_units(tmp_path / "u.parquet", mixed(), "test")
    found, expected = pq.read_table(tmp_path / "u.parquet"), by_rows(mixed(), "test")
    assert found.schema.equals(expected.schema, check_metadata=True)
    assert found.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("shuffled", [False, True])
def test_files_in_pieces_and_in_any_order_of_rows_are_read(tmp_path, shuffled):
    # catches: a dictionary of the first piece used for the others, and blocks taken to be whole stretches of the file
    table = by_rows(mixed(), "test")
    if shuffled:  # blocks between each other; units of a metric stay in their order
        key = np.random.default_rng(0).random(table.num_rows)
        group = [
            f"{a}{s}{m}" for a, s, m in zip(*(table[n].to_pylist() for n in ("arm", "seed", "metric")), strict=True)
        ]
        for g in set(group):
            own = [i for i, x in enumerate(group) if x == g]
            key[own] = np.sort(key[own])
        table = table.take(np.argsort(key))
    pq.write_table(table, tmp_path / "u.parquet", row_group_size=2)
    found = {(b.run, b.arm, b.seed): b.scores for b in read_units(tmp_path / "u.parquet")}
    wanted = [(b.run, b.arm, b.seed) for b in mixed()]
    assert set(found) == set(wanted)
    if not shuffled:  # arms and metrics in the order of the file, not of their names
        assert list(found) == wanted
        assert list(found["q", "b", 1].values) == ["n", "m"]
    for b in mixed():
        own = found[b.run, b.arm, b.seed]
        assert own.unit == [str(u) for u in b.scores.unit]
        assert own.by == b.scores.by
        assert {m: list(v) for m, v in own.values.items()} == b.scores.values


def test_a_column_of_another_length_than_the_units_is_refused(tmp_path):
    # catches: two mistakes that cancel in the number of rows and shift every value after them
    odd = Block("r", "a", 0, UnitScores("user", ["u1", "u2"], {"m": [1.0], "n": [1.0, 2.0, 3.0]}))
    with pytest.raises(InputError, match=r"\['m', 'n'\] of arm 'a' at seed 0 has another length than its 2 units"):
        write_units(tmp_path / "u.parquet", [odd], "test")


def test_groups_have_codes():
    units = Units([block("a", 0, [1.0, 2.0, 3.0], by={"g": ["y", "", "x"]})])
    names, codes = units.codes("g")
    assert (names, codes.tolist()) == (["x", "y"], [[1, -1, 0]])
    assert units.groups("g") == ["x", "y"]


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
