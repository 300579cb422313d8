"""The table behind every number: nothing is lost on the way to disk, and arms are paired or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from upright.contract import InputError, UnitScores
from upright.evidence.units import Block, Units, read_units, write_units


def block(arm, seed, values=(1.0, 2.0, 3.0), *, unit=("u1", "u2", "u3"), by=None, cluster=(), run="r") -> Block:
    values = values if isinstance(values, dict) else {"m": list(values)}
    return Block(run, arm, seed, UnitScores("user", unit, values, by or {}, cluster=cluster))


MIXED = [  # units, metrics, groupings and clusters of their own
    block("a", 3, {"m": [1 / 3, np.nan, 3.0], "n": [0.1, 1e-300, np.nan]}, by={"g": ["x", "", "x"], "h": [*"éff"]}),
    block("b", 1, {"n": [0.5, 0.25], "m": [1.0, -1.0]}, unit=(7, 5), by={"h": ["f", "e"]}, run="q"),
    block("a", 1, unit=("u2", "u3", "u1"), by={"g": ["y", "y", "x"]}, cluster=["k", "k", "l"]),
]


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_written_is_read(tmp_path, shuffled):
    # catches: rounding, an undefined value that is dropped or turned into 0, an empty label that becomes null, values,
    # labels or clusters of another block or unit, a dictionary of the first piece of a file used for the others
    write_units(tmp_path / "u.parquet", MIXED, "test")
    table = pq.read_table(tmp_path / "u.parquet")
    columns = "run arm seed split unit_kind unit cluster metric value weight by_g by_h"
    assert (table.column_names, table.schema.metadata) == (columns.split(), {b"upright.units": b"2"})
    if shuffled:  # blocks and metrics between each other, units in another order
        table = table.take(np.argsort([str(u) for u in table["unit"].to_pylist()], kind="stable"))
    pq.write_table(table, tmp_path / "u.parquet", row_group_size=2)
    found = {(b.run, b.arm, b.seed): b.scores for b in read_units(tmp_path / "u.parquet")}
    assert shuffled or list(found) == [(b.run, b.arm, b.seed) for b in MIXED]
    for b in MIXED:
        own, order = found.pop((b.run, b.arm, b.seed)), [str(u) for u in b.scores.unit]
        at = [own.unit.index(u) for u in order]
        assert (own.unit_kind, sorted(own.unit)) == ("user", sorted(order))
        assert {g: [v[i] for i in at] for g, v in own.by.items()} == b.scores.by
        assert [own.cluster[i] for i in at if own.cluster] == list(b.scores.cluster)
        for m, values in b.scores.values.items():
            np.testing.assert_array_equal(own.values[m][at], values)  # identical floats
    assert not found


def test_files_of_the_first_schema_are_read_without_clusters():
    path = Path(__file__).parents[1] / "golden" / "in_ucds.parquet"
    assert pq.read_schema(path).metadata[b"upright.units"] == b"1"
    units = Units(read_units(path))
    assert (units.n_clusters, units.clustered) == (len(units.units), False)


def test_files_that_are_missing_broken_or_of_another_schema_are_refused(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name, metadata in (("plain", None), ("new", {"upright.units": "3"})):
        pq.write_table(pa.table({"x": [1]}).replace_schema_metadata(metadata), tmp_path / f"{name}.parquet")
    for name, why in (("no", "finish the run first"), ("broken", r"broken\.parquet"), ("plain", r"\?"), ("new", "3")):
        with pytest.raises(InputError, match=why):
            read_units(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize("odd", [{"values": {"m": [1.0], "n": [1.0] * 5}}, {"by": {"m": ["x"]}}, {"cluster": ["k"]}])
def test_a_column_of_another_length_than_the_units_is_refused(tmp_path, odd):
    # catches: two mistakes that cancel in the number of rows and shift every value after them
    with pytest.raises(InputError, match="of arm 'a' at seed 0 has another length than its 3 units"):
        write_units(tmp_path / "u.parquet", [block("a", 0, **odd)], "test")


def test_values_codes_and_clusters_stand_at_their_seed_and_unit():
    # catches: pairing by position instead of by name, a missing label that becomes a group, one cluster of all without
    first = block("a", 1, [1.0, np.nan, 3.0], by={"g": ["y", "", "x"]}, cluster=["k", "k", "l"])
    second = block("a", 0, [6.0, 5.0], unit=("u3", "u1"), by={"g": ["x", "x"]}, cluster=["l", "k"])
    units = Units([first, second, block("a", 2, unit=("u5", "u2", "u4"))])
    assert (units.seeds, units.units) == ([0, 1, 2], ["u1", "u2", "u3", "u4", "u5"])
    np.testing.assert_array_equal(units.values("a", "m")[:2, :3], [[5.0, np.nan, 6.0], [1.0, np.nan, 3.0]])
    assert (units.groups("g"), units.codes("g")[1][:2, :3].tolist()) == (["x", "y"], [[0, -1, 0], [1, -1, 0]])
    assert units.cluster[0] == units.cluster[1]
    assert (len({*units.cluster.tolist()}), units.n_clusters, units.clustered) == (4, 4, True)
    lost = Units([block("a", 0, cluster=["", "", "k"])])
    assert (lost.n_clusters, lost.clustered) == (3, False)  # '' is a cluster of its own
    plain = Units([block("a", 0)])
    assert (plain.cluster.tolist(), plain.n_clusters, plain.clustered) == ([0, 1, 2], 3, False)


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([block("a", 0), block("a", 1), block("b", 0)], r"without a seed: \[\('b', 1\)"),
        ([block("a", 0), block("a", 0)], "the same seed twice"),
        ([block("a", 0), block("b", 0, [1, 2], unit=("u1", "u2"))], "'b' at seed 0 scores other units"),
        ([block("a", 0, unit=("u1", "u1", "u2"))], "or one twice"),
        ([block("a", 0, cluster="kkl"), block("a", 1, cluster="kll")], "'u2' in the clusters 'k' and 'l'"),
        ([block("a", 0, cluster="kkl"), block("b", 0, cluster="kll")], "'u2' in the clusters 'k' and 'l'"),
        ([], "no scores"),
    ],
)
def test_arms_that_are_not_paired_are_refused(blocks, why):
    # catches a difference of means over different users, which is no paired difference, and a cluster that is torn
    with pytest.raises(InputError, match=why):
        Units(blocks)


def test_a_mixed_arm_is_each_of_two_with_a_share_at_each_seed():
    # catches: shares that change places, a value where one of the two has none
    units = Units([block(a, s, v) for a, v in (("a", [1.0, 2.0, np.nan]), ("b", [5.0, np.nan, 6.0])) for s in (0, 1)])
    units.mix("hull", "a", "b", np.array([0.25, 1.0]))
    np.testing.assert_array_equal(units.values("hull", "m"), [[4.0, np.nan, np.nan], [1.0, np.nan, np.nan]])
    assert units.arms == ["a", "b", "hull"]
