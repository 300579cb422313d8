"""`upright check` passes what is sound, and names what is not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from upright.contract import InputError
from upright.experiment.checks import CHECKS, Check, conformance
from upright.experiment.folders import read_json
from upright.experiment.runner import Ask, compare_runs, execute

PLUGIN = Path(__file__).parent.parent / "plugin"


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] == "upright_example"]:
        del sys.modules[name]


def failed(checks: list[Check]) -> dict[str, str]:
    return {c.name: c.detail for c in checks if not c.passed}


def test_in_ucds_passes_every_check_in_time():
    # catches any broken promise of the method, and a suite too slow to be run on each push
    start = time.process_time()
    checks = conformance("in_ucds")
    assert failed(checks) == {}
    assert [c.name for c in checks] == list(CHECKS)
    assert time.process_time() - start < 20


def test_in_ucds_passes_with_another_seed():
    # catches a check that holds for one lucky world
    assert failed(conformance("in_ucds", seed=5)) == {}


def test_a_plugin_with_its_own_task_passes_every_check():
    # catches checks that lean on what only our own tasks and modules have
    assert failed(conformance("upright_example")) == {}


@pytest.mark.parametrize(
    ("name", "check", "says"),
    [
        ("shifted", "neutral = baseline", "differs from its baseline"),
        ("mutating", "nothing mutated", "changes train"),
        ("seedless", "other seed, other result", "the seed is not used"),
        ("idle", "remedy acts", "a setting is ignored"),
        ("leaking", "test split refused", "open_test()"),
        ("forgetful", "kill and resume", "differs from the uninterrupted run"),
        ("undefined", "arms finite", "arm random: error is undefined for every unit"),
    ],
)
def test_a_planted_defect_fails_exactly_its_own_check(name, check, says):
    # catches a check that can not fail, and one that fails for another's reason
    found = failed(conformance(f"upright_example_{name}"))
    assert list(found) == [check]
    assert says in found[check]


def test_noise_without_a_seed_fails_where_runs_are_compared_exactly():
    # catches a tolerance in the comparison of equal seeds, which would hide an unseeded generator
    found = failed(conformance("upright_example_random"))
    assert "same seed, same result" in found
    assert set(found) <= {"same seed, same result", "kill and resume"}


def test_missing_sections_and_docstrings_are_named():
    # catches a section that counts although nothing stands below its title
    found = failed(conformance("upright_example_bare"))
    assert list(found) == ["config fields documented", "module docstring"]
    assert found["module docstring"] == "docstring of upright_example.bare lacks Shapes, Cost"
    assert "weights" in found["config fields documented"]
    assert "strength" not in found["config fields documented"]


def test_an_unknown_method_is_refused_before_any_check():
    with pytest.raises(InputError, match="did you mean 'in_ucds'"):
        conformance("in_ucd")


def test_a_plugin_runs_and_is_compared_like_ours(tmp_path):
    # catches a runner that needs what only our tasks have, and a finding on planted groups that is lost on the way
    seeds = range(6)
    folders = [execute(Ask("upright_example", seed=s), folder=tmp_path / f"s{s}") for s in seeds]
    found = read_json(compare_runs(folders, tmp_path / "all") / "comparison.json")
    (row,) = [d for d in found["evidence"]["differences"] if d["statistic"] == "abs_gap:error:group"
              and d["role"] == "baseline"]  # fmt: skip
    assert row["verdict"] in ("clear", "present")
    assert found["deviations"] == ["D1. No paper, so none."]
    assert found["evidence"]["unit_kind"] == "row"
