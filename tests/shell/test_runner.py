"""From settings to a folder, from folders to a comparison, and through a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from upright.contract import InputError
from upright.shell.registry import load_method
from upright.shell.runner import compare_runs, deviations, execute, resolve
from upright.shell.runs import read_json, write_json
from upright.shell.units import read_units

SMALL = {"epochs": 2, "check_every": 1, "dim": 4, "batch_size": 512, "draws": 2}
FILES = {"config.json", "metrics.jsonl", "run.json", "summary.json", "units.parquet"}


def small(folder, **options):
    settings = SMALL | options.pop("settings", {})
    return execute("in_ucds", data="synthetic", settings=settings, folder=folder, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return small(tmp_path_factory.mktemp("run") / "a")


def test_keys_go_to_the_method_or_to_the_task_and_the_passed_one_wins():
    # catches a preset that overrides what a person asked for
    spec = load_method("in_ucds")
    config, task = resolve(spec, {"lam": "0.5", "dim": 7, "task.group_share": "0.2"}, "quick", "synthetic")
    assert (config.lam, task.dim, task.group_share, task.data) == (0.5, 7, 0.2, "synthetic")
    assert config.epochs == spec.presets["quick"]["method"]["epochs"]
    assert resolve(spec, {"epochs": 3}, "quick")[0].epochs == 3
    assert resolve(spec, {"data": "ml100k"}, "quick", "synthetic")[1].data == "ml100k"


@pytest.mark.parametrize(
    ("passed", "preset", "got", "todo"),
    [
        ({}, "quik", "preset 'quik'", "did you mean 'quick'?"),
        ({"epoch": 1}, "quick", "unknown key 'epoch'", "did you mean 'epochs'?"),
        ({"backbon": 1}, "quick", "unknown key 'backbon'", "did you mean 'backbone'?"),
        ({"task.epochs": 1}, "quick", "unknown key 'task.epochs'", "take one of"),
        ({"task.dimm": 1}, "quick", "unknown key 'task.dimm'", "did you mean 'dim'?"),
        ({"dim": "many"}, "quick", "NextItemConfig.dim = 'many'", "set dim"),
    ],
)
def test_a_bad_preset_key_or_value_is_refused_with_a_suggestion(passed, preset, got, todo):
    with pytest.raises(InputError) as caught:
        resolve(load_method("in_ucds"), passed, preset)
    assert got in caught.value.got
    assert todo in caught.value.todo


def test_a_run_leaves_its_whole_folder(done):
    assert {p.name for p in done.iterdir()} >= FILES
    config, summary = read_json(done / "config.json"), read_json(done / "summary.json")
    assert config["passed"] == SMALL
    assert config["resolved"]["method"]["epochs"] == 2
    assert config["resolved"]["task"]["dim"] == 4
    assert [a["role"] for a in summary["arms"]] == ["baseline", "remedy", "trivial", "placebo", "placebo"]
    assert {b.arm for b in read_units(done / "units.parquet")} == {a["name"] for a in summary["arms"]}
    assert summary["evidence"]["verdict"]["works"] is False
    assert len(summary["deviations"]) == len(deviations(load_method("in_ucds"))) == 8
    assert "--data synthetic" in read_json(done / "run.json")["command"]


def test_a_summary_holds_no_path_time_or_folder_name(done):
    # catches whatever would keep a resumed summary from being equal byte for byte
    text = (done / "summary.json").read_text()
    assert str(done.parent) not in text
    assert not {"started", "finished", "wall_s", "cpu_s", "pid"} & set(json.loads(text))


def test_a_finished_folder_is_returned_as_it_is_and_refuses_other_settings(done):
    before = (done / "summary.json").stat().st_mtime_ns
    assert small(done) == done
    assert (done / "summary.json").stat().st_mtime_ns == before
    for changes in ({"settings": {"lam": 0.5}}, {"seed": 1}, {"arms": ["none"]}):
        with pytest.raises(InputError, match="other settings"):
            small(done, **changes)


def test_a_failed_run_keeps_its_folder_and_traceback(tmp_path):
    with pytest.raises(InputError, match="did you mean 'none'"):
        small(tmp_path / "f", arms=["nonee"])
    found = read_json(tmp_path / "f" / "run.json")
    assert found["status"] == "failed"
    assert "nonee" in found["traceback"]


def test_seeds_are_compared_and_arms_stay_paired(tmp_path, done):
    # catches a comparison that averages on disk or that forgets a seed
    other = small(tmp_path / "b", seed=1)
    found = read_json(compare_runs([done, other], tmp_path / "c") / "comparison.json")
    assert found["seeds"] == [0, 1]
    assert found["evidence"]["n_seeds"] == 2
    values = [np.nanmean(b.scores.values["ndcg@10"]) for f in (done, other) for b in read_units(f / "units.parquet")
              if b.arm == "in_ucds"]  # fmt: skip
    (row,) = [r for r in found["evidence"]["levels"] if r["statistic"] == "mean:ndcg@10" and r["arm"] == "in_ucds"]
    assert row["value"] == pytest.approx(np.mean(values))
    assert read_json(other / "summary.json")["data"] == read_json(done / "summary.json")["data"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"settings": {"lam": 0.7}}, "settings"),
        ({"settings": {"group_share": 0.3}}, "settings"),
        ({"arms": ["none", "in_ucds"]}, "arms"),
        ({"arm_settings": {"in_ucds": {"lam": 0.7}}}, "arm_settings"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_joined(tmp_path, done, options, field):
    # catches seeds with unlike settings in one interval
    other = small(tmp_path / "b", seed=1, **options)
    with pytest.raises(InputError, match=rf"b differs from a in {field}\b"):
        compare_runs([done, other], tmp_path / "c")


def test_runs_on_other_data_are_not_joined(tmp_path, done):
    other = small(tmp_path / "b", seed=1)
    summary = read_json(other / "summary.json")
    write_json(other / "summary.json", summary | {"data": summary["data"] | {"fingerprint": "another"}})
    with pytest.raises(InputError, match="in data"):
        compare_runs([done, other], tmp_path / "c")


def test_a_run_without_its_summary_is_not_compared(tmp_path, done):
    with pytest.raises(InputError, match=r"summary\.json"):
        compare_runs([done, tmp_path], tmp_path / "c")


RUN = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from upright.shell.runner import execute
execute("in_ucds", data="synthetic", settings={"epochs": 25, "check_every": 1, "patience": 99, "draws": 2},
        folder=Path(sys.argv[1]))
"""


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path):
    # catches state outside the checkpoint, streams drawn in order instead of by name, and a log that repeats or loses
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    subprocess.run([sys.executable, "-c", RUN, str(whole)], check=True, timeout=240)
    process = subprocess.Popen([sys.executable, "-c", RUN, str(cut)])
    try:
        deadline = time.monotonic() + 120
        while not (cut / "checkpoints" / "in_ucds.last.pt").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert read_json(cut / "run.json")["status"] == "running"
    assert not (cut / "summary.json").exists()
    assert not (cut / "checkpoints" / "zero.last.pt").exists()
    subprocess.run([sys.executable, "-c", RUN, str(cut)], check=True, timeout=240)
    record = read_json(cut / "run.json")
    assert (record["status"], record["resumed"]) == ("done", 1)
    for name in ("summary.json", "metrics.jsonl", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    for a, b in zip(read_units(cut / "units.parquet"), read_units(whole / "units.parquet"), strict=True):
        assert (a.run, a.arm, a.seed, a.scores.unit, a.scores.by) == (b.run, b.arm, b.seed, b.scores.unit, b.scores.by)
        for metric, values in a.scores.values.items():
            np.testing.assert_array_equal(values, b.scores.values[metric])
