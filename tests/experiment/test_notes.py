"""Notes: what rests on few people is gone when it is noted, and seeds are merged into median and range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.experiment.folders import ArmRun
from upright.experiment.notes import merge_curves, merge_notes, suppress_few

counts = st.integers(0, 12)
tree = st.recursive(
    st.one_of(st.none(), st.text(max_size=3), counts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.fixed_dictionaries({"n": counts, "share": st.floats(0, 1), "group": st.text(max_size=3)}),
        st.fixed_dictionaries({"edges": st.just([0, 1, 2]), "counts": st.lists(counts, max_size=4)}),
    ),
    max_leaves=8,
)


def few(value) -> bool:
    """Whether a note still holds a number of one to four people, or what was measured on them."""
    if isinstance(value, dict):
        size = value.get("n")
        own = [n for n in value.get("counts", []) if isinstance(n, int) and 0 < n < 5]
        return bool(own) or (isinstance(size, int) and 0 < size < 5) or any(map(few, value.values()))
    return isinstance(value, list) and any(map(few, value))


@given(tree)
def test_no_note_holds_a_number_about_one_to_four_people(note):
    # catches: a nested record passed over, a bin of three, numbers beside a count that was taken out
    assert not few(suppress_few(note))


def test_a_small_record_keeps_what_it_is_called_by_and_a_large_one_everything():
    note = [{"client": 3, "group": "f", "n": 3, "share": 0.5}, {"client": 4, "group": "m", "n": 5, "share": 0.2}]
    assert suppress_few(note) == [{"client": 3, "group": "f", "n": None, "share": None}, note[1]]
    run = ArmRun(None, 0, "none")
    run.note("flips", note)
    assert run.notes["flips"][0]["share"] is None


@pytest.mark.parametrize(
    ("seeds", "merged"),
    [
        ([0.5, 0.5], 0.5),
        ([1, 3, 8], {"median": 3, "low": 1, "high": 8}),
        ([True, False, True], {"held": 2, "of": 3}),
        ([True], True),
        ([{"a": 1.0}, {"a": 2.0, "b": 5.0}], {"a": {"median": 1.5, "low": 1.0, "high": 2.0}, "b": 5.0}),
        ([None, 2.0], 2.0),
        (["x", "y"], "x"),
        ([{"edges": [0, 1], "counts": [7]}, {"edges": [0, 2], "counts": [9]}], {"edges": [0, 1], "counts": [7]}),
    ],
)
def test_seeds_are_merged_into_median_and_range(seeds, merged):
    # catches: the first seed passed off as all, a condition averaged, bins of other edges added up
    assert merge_notes(seeds) == merged


def test_records_are_merged_by_what_they_are_called_and_their_place():
    # catches: records of one group merged with another's where a seed lacks one, epochs by place in the wrong list
    one = [{"group": "f", "share": 0.1}, {"group": "m", "share": 0.2}]
    assert merge_notes([one, [{"group": "m", "share": 0.4}]]) == [
        {"group": "f", "share": 0.1},
        {"group": "m", "share": {"median": pytest.approx(0.3), "low": 0.2, "high": 0.4}},
    ]
    path = [[{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 1.0}], [{"epoch": 1, "loss": 5.0}]]
    assert merge_notes(path) == [{"epoch": 1, "loss": {"median": 4.0, "low": 3.0, "high": 5.0}}, path[0][1]]
    clients = [[{"client": "0", "price": 1.0}], [{"client": "0", "price": 9.0}]]
    assert merge_notes(clients) == clients[0]  # another seed's client 0 is another client


def test_a_number_that_a_seed_lacks_makes_no_second_record():
    # catches: a cell that was suppressed at one seed standing beside itself
    seeds = [[{"group": "a", "n": 9, "rate": 0.2}], [{"group": "a", "n": None, "rate": None}]]
    assert merge_notes(seeds) == [{"group": "a", "n": 9, "rate": 0.2}]


def test_curves_keep_at_most_200_steps_and_the_last():
    # catches: the end cut off, steps of arms mixed
    logs = [[{"arm": arm, "step": i, "loss": i + seed} for i in range(1, 1002) for arm in "ab"] for seed in (0, 2)]
    found = merge_curves(logs)
    assert set(found) == {"a", "b"}
    assert len(found["a"]) <= 200
    assert found["a"][-1] == {"step": 1001, "loss": {"median": 1002.0, "low": 1001, "high": 1003}}
