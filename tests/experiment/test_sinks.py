"""Trackers show what the folder holds, point for point."""

from __future__ import annotations

import json
import os
import sys
import warnings

import pytest

from upright.contract import InputError
from upright.experiment.folders import write_json
from upright.experiment.sinks import replay

LINES = [
    {"arm": "none", "step": 1, "loss": 0.7},
    {"arm": "none", "step": 2, "loss": 0.5, "valid/ndcg@10": 0.25},
    {"arm": "in_ucds", "step": 1, "loss": None, "pull": 0.125},
    {"arm": "in_ucds", "step": 2, "loss": 0.25, "valid/ndcg@10": 0.5},
]


def switches() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith("MLFLOW")}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "2026-01-31-in_ucds-ml100k-s0"
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    write_json(path / "config.json", {"resolved": {"method": {"lam": 0.03}, "task": {"data": "ml100k"}}})
    return path


def test_tensorboard_gets_one_sub_run_an_arm(folder):
    # catches arms that are drawn as one curve, shifted steps, and an undefined value drawn as a number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    target = replay(folder, "tensorboard")
    assert target == folder / "tensorboard"
    found = {}
    for arm in ("none", "in_ucds"):
        events = EventAccumulator(str(target / folder.name / arm))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[arm, tag] = [(e.step, e.value) for e in events.Scalars(tag)]
    assert found == {
        ("none", "loss"): [(1, pytest.approx(0.7)), (2, 0.5)],
        ("none", "valid/ndcg@10"): [(2, 0.25)],
        ("in_ucds", "loss"): [(2, 0.25)],
        ("in_ucds", "pull"): [(1, 0.125)],
        ("in_ucds", "valid/ndcg@10"): [(2, 0.5)],
    }


def test_mlflow_gets_one_run_an_arm_below_a_parent(folder, tmp_path, monkeypatch):
    # catches a lost parent, settings that are not kept, and a switch that leaks into the caller's environment
    before = switches()
    target = replay(folder, "mlflow", tmp_path / "store")
    assert switches() == before
    assert target == tmp_path / "store"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=target.as_uri())
        experiment = client.get_experiment_by_name("upright").experiment_id
        runs = {r.info.run_name: r for r in client.search_runs([experiment])}
        none = runs[f"{folder.name}/none"]
        history = {
            key: [(m.step, m.value) for m in client.get_metric_history(none.info.run_id, key)]
            for key in none.data.metrics
        }
    parent = runs[folder.name]
    assert len(runs) == 3
    assert parent.data.params == {"lam": "0.03", "data": "ml100k"}
    assert none.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert history == {"loss": [(1, 0.7), (2, 0.5)], "valid/ndcg_at_10": [(2, 0.25)]}
    assert runs[f"{folder.name}/in_ucds"].data.metrics["pull"] == 0.125
    assert {r.info.status for r in runs.values()} == {"FINISHED"}


@pytest.mark.parametrize("sink", ["tensorboard", "mlflow"])
def test_the_same_run_is_not_replayed_twice(folder, sink):
    # catches points that stand twice on a curve
    replay(folder, sink)
    with pytest.raises(InputError, match=f"holds run {folder.name} already"):
        replay(folder, sink)


@pytest.mark.parametrize(
    ("sink", "package", "module"),
    [("tensorboard", "tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow", "mlflow.tracking")],
)
def test_a_missing_package_is_named_with_its_install_line(folder, monkeypatch, sink, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        replay(folder, sink)
    assert f"export to {sink}" in caught.value.got
    assert package in caught.value.got
    assert caught.value.todo == "pip install 'upright[tracking]'"


def test_other_sinks_and_folders_without_curves_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="tensorboard or mlflow"):
        replay(folder, "wandb")
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        replay(tmp_path, "mlflow")
    (folder / "metrics.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.jsonl: "):
        replay(folder, "tensorboard")
