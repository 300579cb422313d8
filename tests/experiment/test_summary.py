"""The one record of what was found: what is written is read again, and an older one says how to make it anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from upright.contract import InputError
from upright.evidence.records import Difference, Level, Null
from upright.experiment.folders import plain, read_json, write_json
from upright.experiment.summary import SCHEMA, ArmFacts, Evidence, Summary, read_summary, write_summary

RESULTS = sorted((Path(__file__).parents[2] / "results").glob("*/summary.json"))
LEVEL = Level(
    statistic="gap:a:g", arm="m", value=0.1, low=0.0, high=0.2, null=Null(0.0, -0.1, 0.1), p=0.5, more={"x": 1}
)
CHANGE = Difference(statistic="gap:a:g", arm="m", against="n", role="baseline", value=-0.1, low=-0.2, high=0.0)
FOUND = Summary(
    method="m",
    seeds=(0, 1),
    arms=(ArmFacts(name="m", role="remedy", notes={"a": {"median": 1, "low": 0, "high": 2}}),),
    evidence=Evidence(levels=(LEVEL,), differences=(CHANGE,), alone=(CHANGE,), headline=LEVEL, facts={"n_seeds": 2}),
)


@pytest.mark.parametrize("kind", ["run", "comparison", "audit"])
def test_what_is_written_is_read_again(tmp_path, kind):
    # catches: a field that is dropped, a tuple that becomes a list, NaN that becomes 0
    found = dataclasses.replace(FOUND, kind=kind)
    write_summary(tmp_path, found)
    again = read_summary(tmp_path)
    assert again.row() == found.row()
    assert (again.seeds, again.arms, again.evidence.headline) == (found.seeds, found.arms, LEVEL)
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.json" if kind == "comparison" else "summary.json"]


@pytest.mark.parametrize("file", RESULTS, ids=[f.parent.name for f in RESULTS])
def test_a_published_summary_round_trips_through_its_types(file):
    assert plain(read_summary(file.parent).row()) == read_json(file)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"schema": 1}, "upright run in_ucds --seed 0"),
        ({"schema": SCHEMA}, "repair the file"),
    ],
)
def test_an_older_summary_says_how_to_make_it_again(tmp_path, row, wanted):
    # catches: a KeyError, an answer that does not say what to type
    write_json(tmp_path / "summary.json", row)
    write_json(tmp_path / "run.json", {"command": "upright run in_ucds --seed 0"})
    with pytest.raises(InputError) as caught:
        read_summary(tmp_path)
    assert wanted in caught.value.todo


def test_an_older_comparison_names_the_runs_to_resume(tmp_path):
    write_json(tmp_path / "comparison.json", {"schema": 1, "runs": ["a s0", "b"]})
    with pytest.raises(InputError) as caught:
        read_summary(tmp_path)
    assert caught.value.todo.endswith("upright run --resume 'a s0' --resume b")
