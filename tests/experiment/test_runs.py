"""The run folder: status that is true, streams that are independent, checkpoints that resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from upright.contract import InputError
from upright.experiment.folders import ArmRun, RunFolder, read_json, write_json

HOLD = """
import sys, time
from pathlib import Path
from upright.experiment.folders import RunFolder
with RunFolder(Path(sys.argv[1])).running(method="m", seed=0, command="c"):
    print("held", flush=True)
    time.sleep(60)
"""


def status(folder: RunFolder) -> dict:
    return read_json(folder.path / "run.json")


def test_status_is_running_inside_and_done_after(tmp_path):
    folder = RunFolder(tmp_path / "r")
    assert not (folder.path / "run.json").exists()
    with folder.running(method="m", seed=3, command="upright run m"):
        assert (status(folder)["status"], status(folder)["pid"]) == ("running", os.getpid())
    found = status(folder)
    assert (found["status"], found["traceback"], found["seed"]) == ("done", None, 3)
    assert found["finished"] >= found["started"]


@pytest.mark.parametrize(
    ("error", "word"), [(ValueError("planted"), "failed"), (KeyboardInterrupt(), "killed"), (SystemExit(3), "killed")]
)
def test_a_run_that_ends_badly_keeps_its_folder_and_says_why(tmp_path, error, word):
    # catches a status left at `running`, a lost traceback, and paths of the machine in it
    folder = RunFolder(tmp_path / "r")
    (folder.path / "artifacts" / "kept").touch()
    with pytest.raises(type(error)), folder.running(method="m", seed=0, command="c"):
        raise error
    found = status(folder)
    assert found["status"] == word
    assert found["traceback"].splitlines()[-1].startswith(type(error).__name__)
    assert "test_runs.py:" in found["traceback"]
    assert str(tmp_path.parent) not in found["traceback"]
    assert os.sep + "tests" not in found["traceback"]
    assert (folder.path / "artifacts" / "kept").exists()


def test_a_second_start_counts_as_resumed_and_clears_the_old_traceback(tmp_path):
    folder = RunFolder(tmp_path / "r")
    with pytest.raises(ValueError), folder.running(method="m", seed=0, command="c"):
        raise ValueError
    first = status(folder)
    with folder.running(method="m", seed=0, command="c"):
        pass
    second = status(folder)
    assert (first["resumed"], second["resumed"]) == (0, 1)
    assert second["started"] == first["started"]
    assert second["traceback"] is None


def test_a_folder_is_held_by_one_process(tmp_path):
    # catches two processes that write one folder, and a lock that outlives a killed process
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        pid = status(RunFolder(tmp_path))["pid"]
        with (
            pytest.raises(InputError, match="held by another process"),
            RunFolder(tmp_path).running(method="m", seed=0, command="c"),
        ):
            pass
        assert status(RunFolder(tmp_path))["pid"] == pid == holder.pid
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert status(RunFolder(tmp_path))["status"] == "running"  # nobody could write after SIGKILL
    with RunFolder(tmp_path).running(method="m", seed=0, command="c"):
        pass
    assert status(RunFolder(tmp_path))["status"] == "done"


def test_json_is_replaced_whole_and_undefined_numbers_are_null(tmp_path):
    # catches NaN in JSON (no other language reads it), NumPy types, and half-written files
    file = tmp_path / "x.json"
    write_json(file, {"a": float("nan"), "b": [np.float64("inf"), np.int64(3)], "c": {1: np.array([1.0, np.nan])}})
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, 3],
        "c": {"1": [1, None]},
    }
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_json(file)["b"] == [None, 3]
    with pytest.raises(InputError, match=r"missing\.json"):
        read_json(tmp_path / "missing.json")


def test_skipping_one_stream_changes_nobody_elses():
    # catches one generator that is shared, where leaving out a client shifts all that come after
    def draws(skip: int | None) -> dict[int, list[float]]:
        run = ArmRun(None, 7, "arm")
        return {c: run.rng("client", c).normal(size=3).tolist() for c in range(5) if c != skip}

    every, without = draws(None), draws(2)
    assert without == {c: v for c, v in every.items() if c != 2}
    assert len({tuple(v) for v in every.values()}) == 5


def test_streams_are_shared_by_arms_and_differ_between_seeds():
    # catches unpaired arms: data order and initialisation must be the same in all of them
    a, b, other = ArmRun(None, 0, "a"), ArmRun(None, 0, "b"), ArmRun(None, 1, "a")
    assert torch.equal(torch.randn(4, generator=a.torch_rng("init")), torch.randn(4, generator=b.torch_rng("init")))
    assert a.rng("order", 1).random() == b.rng("order", 1).random() != other.rng("order", 1).random()


def log_lines(folder: RunFolder) -> list[tuple[str, int]]:
    text = (folder.path / "metrics.jsonl").read_text()
    return [(line["arm"], line["step"]) for line in map(json.loads, text.splitlines())]


def test_lines_after_the_last_checkpoint_are_dropped_on_resume(tmp_path):
    # catches a curve that holds the repeated steps twice
    folder = RunFolder(tmp_path)
    run = ArmRun(folder, 0, "a")
    run.log(1, loss=float("nan"))
    run.save(1, {"w": torch.ones(2)})
    run.log(2, loss=0.5)
    with (folder.path / "metrics.jsonl").open("a") as f:
        f.write('{"arm": "a", "st')  # killed in the middle of a line
    again = ArmRun(folder, 0, "a")
    assert log_lines(folder) == [("a", 1)]
    assert json.loads((folder.path / "metrics.jsonl").read_text())["loss"] is None
    assert torch.equal(again.restore()["w"], torch.ones(2))
    again.log(2, loss=0.5)
    again.save(2, {"w": torch.ones(2)})
    again.log(3, loss=0.5)
    ArmRun(folder, 0, "a")
    assert log_lines(folder) == [("a", 1), ("a", 2)]  # the second resume counts the lines of the first


def test_resuming_a_finished_arm_keeps_the_lines_of_later_arms(tmp_path):
    # catches truncation by size: the first arm's resume would cut the log of the arm that was killed
    folder = RunFolder(tmp_path)
    for arm in ("a", "b"):
        run = ArmRun(folder, 0, arm)
        run.log(1, loss=1.0)
        run.save(1, {})
    run.log(2, loss=1.0)  # b, lost with the kill
    ArmRun(folder, 0, "a")
    ArmRun(folder, 0, "b")
    assert log_lines(folder) == [("a", 1), ("b", 1)]


def test_an_arm_killed_before_its_first_checkpoint_starts_with_a_clean_log(tmp_path):
    folder = RunFolder(tmp_path)
    ArmRun(folder, 0, "a").log(1, loss=1.0)
    ArmRun(folder, 0, "a").log(1, loss=1.0)
    assert log_lines(folder) == [("a", 1)]


def test_best_and_last_checkpoints_are_kept_apart(tmp_path):
    for folder in (RunFolder(tmp_path), None):  # on disk and in memory
        run = ArmRun(folder, 0, "a")
        assert run.restore() is None
        state = {"w": torch.zeros(1)}
        for step, best in ((1, False), (2, True), (3, False)):
            state["w"] += 1  # in place: a checkpoint must be a copy
            run.save(step, state, best=best)
        assert (run.restore("last")["w"].item(), run.restore("best")["w"].item()) == (3.0, 2.0)
        assert ArmRun(folder, 0, "other").restore() is None


def test_notes_and_warnings_come_back_with_their_checkpoint(tmp_path):
    # catches diagnostics of the first half that a resumed run forgets, and NumPy numbers that no safe reader loads
    folder = RunFolder(tmp_path)
    run = ArmRun(folder, 0, "a")
    run.note("alpha", np.float64(1.5))
    run.note("sizes", np.array([1, 2]))
    run.warn("probably a mistake")
    run.warn("probably a mistake")
    run.save(1, {"epoch": 1})
    run.note("later", 1)
    again = ArmRun(folder, 0, "a")
    assert again.notes == {"alpha": 1.5, "sizes": [1, 2]}
    assert again.warnings == ["probably a mistake"]
