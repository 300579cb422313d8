"""From settings to a folder, from folders to a comparison, and through a kill."""

from __future__ import annotations

import json
import math
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from upright import api
from upright.contract import InputError
from upright.evidence.units import read_units, write_units
from upright.experiment.folders import read_json, write_json
from upright.experiment.registry import load_method
from upright.experiment.runner import (
    Ask,
    Stopped,
    compare_runs,
    deviations,
    execute,
    resolve,
    resume_all,
    run_seeds,
)

SMALL = {"epochs": 2, "check_every": 1, "dim": 4, "batch_size": 512, "draws": 2}
FILES = {"config.json", "metrics.jsonl", "run.json", "summary.json", "units.parquet"}


def small(folder, **options):
    settings = SMALL | options.pop("settings", {})
    return execute(Ask("in_ucds", data="synthetic", settings=settings, **options), folder=folder)


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
    assert [a["role"] for a in summary["arms"]] == [a.role for a in load_method("in_ucds").arms]
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
    for changes, name in (
        ({"settings": {"lam": 0.5}}, "lam"),
        ({"seed": 1}, "seed"),
        ({"arms": ["none"]}, "arms"),
    ):
        with pytest.raises(InputError, match=f"other settings: .*{name}"):
            small(done, **changes)


def test_a_default_that_has_changed_since_is_named_and_an_infinite_setting_is_kept(tmp_path):
    # catches a resume that goes on with today's defaults, and infinity written as null
    ask = Ask("in_ucds", data="synthetic", settings={"lam": math.inf})
    config, task = resolve(load_method("in_ucds"), ask.settings, "full", "synthetic")
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "config.json", ask.row(config, task))
    again = Ask.read(tmp_path / "a")
    assert resolve(load_method("in_ucds"), again.settings, "full", "synthetic") == (config, task)
    stored = read_json(tmp_path / "a" / "config.json")
    stored["resolved"]["method"]["epochs"] = -1
    write_json(tmp_path / "a" / "config.json", stored)
    with pytest.raises(InputError, match=r"other settings: epochs\n"):
        execute(again, folder=tmp_path / "a")


def test_a_failed_run_keeps_its_folder_and_traceback(tmp_path, monkeypatch):
    # catches a folder swept away together with what it says about the defect
    def broken(*_):
        raise RuntimeError("out of paper")

    monkeypatch.setattr("upright.experiment.runner.write_units", broken)
    with pytest.raises(RuntimeError):
        small(tmp_path / "f")
    found = read_json(tmp_path / "f" / "run.json")
    assert found["status"] == "failed"
    assert "out of paper" in found["traceback"]


# -- bad input leaves nothing behind --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"data": "no_such.csv"},
        {"data": "ml100"},
        {"data": "broken.csv"},
        {"data": "synthetic", "arms": ["nonee"]},
        {"data": "synthetic", "settings": {"epochs": 0}},
        {"data": "synthetic", "settings": {"group_share": 0.001}},
        {"data": "synthetic", "settings": {"user_column": "uid"}},
        # the method alone can tell, after the folder was made
        {"data": "synthetic", "settings": {**SMALL, "mode": "official", "alpha": 2.0}, "arms": ["in_ucds"]},
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_bad_input_leaves_no_folder(tmp_path, monkeypatch, options, named):
    # catches a run folder without a run, which a person takes for a result, and which keeps its name taken
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.csv").write_text("user,item,rating\n1,2,three\n")
    where = {"folder": tmp_path / "out" / "one"} if named else {"out": tmp_path / "out"}
    with pytest.raises(InputError):
        execute(Ask("in_ucds", preset="quick", **options), **where)
    assert not list(tmp_path.glob("out/*"))


def test_bad_input_in_a_folder_that_was_there_leaves_it(tmp_path):
    # catches a sweep that takes a person's files with it
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    with pytest.raises(InputError):
        small(folder, settings={"mode": "official", "alpha": 2.0}, arms=["in_ucds"])
    assert (folder / "notes.txt").read_text() == "keep"
    assert read_json(folder / "run.json")["status"] == "failed"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        small(tmp_path / "empty", settings={"mode": "official", "alpha": 2.0}, arms=["in_ucds"])
    assert (tmp_path / "empty" / "run.json").exists()


def test_bad_input_after_an_arm_was_trained_keeps_the_folder(tmp_path):
    # catches hours of training thrown away because a later arm was refused
    folder = tmp_path / "f"
    with pytest.raises(InputError, match="mode='official'"):
        small(folder, arms=["none", "in_ucds"], arm_settings={"in_ucds": {"mode": "official", "alpha": 2.0}})
    found = read_json(folder / "run.json")
    assert (found["status"], "mode='official'" in found["traceback"]) == ("failed", True)
    assert (folder / "checkpoints" / "none.last.pt").exists()
    with pytest.raises(InputError, match="mode='official'"):
        resume_all([folder])
    assert (folder / "checkpoints" / "none.last.pt").exists()


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, below):
    # catches FileExistsError, which reads like a defect of ours
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is a file"):
        execute(Ask("in_ucds", data="synthetic", settings=SMALL), out=tmp_path / "taken" / below)


# -- several seeds, stopped and resumed -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three seeds as one command runs them, and their comparison."""
    out = tmp_path_factory.mktemp("seeds")
    folders, comparison = run_seeds(Ask("in_ucds", data="synthetic", settings=SMALL), range(3), out=out)
    return folders, comparison


def test_a_comparison_says_first_who_was_still_improving(seeds):
    # catches advice from the notes of one seed, or of none
    told = read_json(seeds[1] / "comparison.json")
    ended = {arm["name"]: arm["notes"]["converged"] for arm in told["arms"]}
    assert ended["none"]["held"] < ended["none"]["of"] == 3
    assert told["evidence"]["verdict"]["next_steps"][0].startswith("Train longer: ")


def test_a_stopped_set_of_seeds_is_finished_and_compared(tmp_path, seeds, monkeypatch):
    # catches a resume that knows one folder alone, so that a stopped set never becomes a comparison
    folders, comparison = seeds
    calls = []

    def interrupt(*_, **options):
        calls.append(options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write_units(*_, **options)

    monkeypatch.setattr("upright.experiment.runner.write_units", interrupt)
    with pytest.raises(Stopped) as stopped:
        run_seeds(Ask("in_ucds", data="synthetic", settings=SMALL), range(3), out=tmp_path)
    begun = stopped.value.folders
    assert [f.name for f in begun] == [f.name for f in folders[:2]]
    assert [read_json(f / "run.json")["status"] for f in begun] == ["done", "killed"]
    before = (begun[0] / "summary.json").stat().st_mtime_ns
    last = execute(Ask("in_ucds", data="synthetic", settings=SMALL, seed=2), out=tmp_path)
    done, target = resume_all([*begun, last])
    assert done == [*begun, last]
    assert (begun[0] / "summary.json").stat().st_mtime_ns == before
    assert target.name == comparison.name
    assert (target / "comparison.json").read_bytes() == (comparison / "comparison.json").read_bytes()


def test_one_resumed_folder_makes_no_comparison(done):
    assert resume_all([done]) == ([done], None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1, "settings": {"lam": 0.5}}, "differs from a in settings"),
        ({"seed": 1, "arms": ["none", "in_ucds"]}, "differs from a in arms"),
        ({"seed": 0}, "both have seed 0"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_before_training(tmp_path, done, changes, said, monkeypatch):
    # catches a comparison that fails only after the last seed was trained
    other = small(tmp_path / "b", **changes)
    record = read_json(other / "run.json")
    write_json(other / "run.json", record | {"status": "killed"})
    monkeypatch.setattr("upright.experiment.runner.run_task", lambda *_, **__: pytest.fail("something was trained"))
    with pytest.raises(InputError, match=said):
        resume_all([done, other])


def test_an_audit_or_an_empty_folder_cannot_be_resumed(tmp_path):
    # catches a KeyError for the wrong folder
    with pytest.raises(InputError, match="the folder of a run"):
        resume_all([tmp_path])
    write_json(tmp_path / "config.json", {"passed": {}, "method": "audit_ranking", "seed": 0})
    with pytest.raises(InputError, match="made again, not resumed"):
        resume_all([tmp_path])


def test_a_command_can_be_pasted(tmp_path):
    # catches a setting with a blank, or a path with one, that the shell tears apart
    rows = "".join(f"u{u},{(u + i) % 20},3\n" for u in range(30) for i in range(8))
    (tmp_path / "my log.csv").write_text("user id,item,rating\n" + rows)
    path = execute(
        Ask(
            "in_ucds",
            data=str(tmp_path / "my log.csv"),
            arms=["none"],
            settings={**SMALL, "user_column": "user id", "group_share": 0.5},
        ),
        folder=tmp_path / "a",
    )
    words = shlex.split(read_json(path / "run.json")["command"])
    assert words[words.index("--data") + 1] == str(tmp_path / "my log.csv")
    assert "user_column=user id" in words
    config = read_json(path / "config.json")
    assert config["passed"]["user_column"] == config["resolved"]["task"]["user_column"] == "user id"
    assert config["resolved"]["task"]["min_user"] is None


def test_seeds_are_compared_and_arms_stay_paired(tmp_path, done):
    # catches a comparison that averages on disk or that forgets a seed
    other = small(tmp_path / "b", seed=1)
    found = read_json(compare_runs([done, other], tmp_path / "c") / "comparison.json")
    assert found["seeds"] == [0, 1]
    assert found["evidence"]["n_seeds"] == 2
    values = [
        np.nanmean(b.scores.values["ndcg@10"])
        for f in (done, other)
        for b in read_units(f / "units.parquet")
        if b.arm == "in_ucds"
    ]
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
        ({"margins": {"": 0.2}}, "margins"),
        ({"budget": 0.2}, "budget"),
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
from upright.experiment.runner import Ask, execute
settings = {"epochs": 25, "check_every": 1, "patience": 99, "draws": 2}
execute(Ask("in_ucds", data="synthetic", settings=settings), folder=Path(sys.argv[1]))
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


def test_the_command_of_a_run_can_be_typed():
    # catches a list written as Python writes it, which the command line does not read, and data that are named twice
    from upright.experiment.runner import _command

    settings = {"data": "ml100k", "surfaces": ("embedding", "lists")}
    ask = Ask("raid", settings=settings, arms=["none"], seed=3)
    wanted = "upright run raid --preset full --data ml100k --set surfaces=embedding,lists --arms none --seed 3"
    assert _command(ask, resolve(load_method("raid"), settings)[1]) == wanted


def test_python_gives_margin_and_budget_as_the_command_line_does(tmp_path):
    # catches: a margin that Python drops, and one given before the run that is marked as given after it
    more = {"settings": SMALL, "arms": ["none", "in_ucds"], "out": tmp_path, "margins": {"": 0.3}, "budget": 0.2}
    found = api.run("in_ucds", data="synthetic", **more).evidence["verdict"]
    assert (found["margin"], found["budget"]) == (0.3, 0.2)
    assert (found["declared_margin"], found["declared_budget"]) == (0.3, 0.2)
    assert "given after" not in found["sentence"]
