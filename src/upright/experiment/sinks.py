"""Take a run's curve to a tracker: `metrics.jsonl` replayed as TensorBoard events or into an MLflow store.

The run folder stays the one record. A sink is made from it afterwards, so that training needs no tracker, and what a
tracker shows cannot differ from the folder.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.experiment.folders import read_json
from upright.experiment.places import require_folder

__all__ = ["SINKS", "replay"]

#: sink, its package, and the folder inside the run that it fills unless told otherwise
SINKS = {"tensorboard": ("tensorboard", "tensorboard"), "mlflow": ("mlflow", "mlruns")}


def replay(folder: Path, sink: str, target: Path | None = None) -> Path:
    """Replay the curves of a run.

    Parameters
    ----------
    folder : Path
        Run folder with ``metrics.jsonl``.
    sink : {"tensorboard", "mlflow"}
        TensorBoard gets one sub-run an arm (``target/<run>/<arm>``), MLflow one run an arm below one parent run, in
        the experiment ``upright``. ``@`` is no character of an MLflow metric: ``ndcg@10`` becomes ``ndcg_at_10``.
    target : Path, optional
        Folder of events or of the store. By default inside the run folder.

    Returns
    -------
    Path
        ``tensorboard --logdir PATH`` or ``mlflow ui --backend-store-uri PATH`` shows it.

    Raises
    ------
    InputError
        For another sink, a folder without curves, a target that is a file, a run that stands in the target already, or
        a missing package.
    """
    if sink not in SINKS:
        raise InputError(f"sink {sink!r}", " or ".join(SINKS), "take one of them")
    package, name = SINKS[sink]
    lines = _lines(folder)
    target = require_folder(target or folder / name)
    try:
        (_tensorboard if sink == "tensorboard" else _mlflow)(folder, lines, target)
    except ImportError as error:
        raise InputError(
            f"export to {sink} without the package {package} ({error})",
            f"{package} installed",
            "pip install 'upright[tracking]'",
        ) from None
    return target


def _lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        kind = "no metrics.jsonl" if isinstance(error, OSError) else f"metrics.jsonl: {error}"
        raise InputError(
            f"{folder.name} has {kind}", "the folder of one run", "name the folder of a run, not of a comparison"
        ) from None


def _points(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Named values of a line; undefined ones (null) have no point on a curve."""
    for key, value in line.items():
        if key not in ("arm", "step") and isinstance(value, int | float):
            yield key, float(value)


def _taken(folder: Path, target: Path) -> InputError:
    return InputError(
        f"{target.name} holds run {folder.name} already",
        "a target without this run, so that no point stands twice",
        "delete it there, or choose another --out",
    )


def _tensorboard(folder: Path, lines: list[dict[str, Any]], target: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of protobuf, while it is imported
        from torch.utils.tensorboard import SummaryWriter

    if (target / folder.name).exists():
        raise _taken(folder, target)
    writers: dict[str, Any] = {}
    try:
        for line in lines:
            arm = line["arm"]
            if arm not in writers:
                writers[arm] = SummaryWriter(str(target / folder.name / arm))
            for key, value in _points(line):
                writers[arm].add_scalar(key, value, line["step"])
    finally:
        for writer in writers.values():
            writer.close()


@contextmanager
def _file_store() -> Iterator[None]:
    """Let MLflow open its file store, the only local store of `mlflow-skinny` (a database needs SQLAlchemy)."""
    switches = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    before = {key: os.environ.get(key) for key in switches}
    os.environ.update(switches)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category)
            yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _mlflow(folder: Path, lines: list[dict[str, Any]], target: Path) -> None:
    with _file_store():
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=target.resolve().as_uri())
        known = client.get_experiment_by_name("upright")
        experiment = known.experiment_id if known else client.create_experiment("upright")
        asked = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        settings = {k: v for part in asked.get("resolved", {}).values() for k, v in part.items()}
        if client.search_runs([experiment], f"tags.mlflow.runName = '{folder.name}'"):
            raise _taken(folder, target)
        parent = client.create_run(experiment, run_name=folder.name).info.run_id
        client.log_batch(parent, params=[Param(k, str(v)) for k, v in settings.items()])
        for arm in dict.fromkeys(line["arm"] for line in lines):
            child = client.create_run(experiment, run_name=f"{folder.name}/{arm}").info.run_id
            client.log_batch(child, tags=[RunTag("mlflow.parentRunId", parent), RunTag("upright.arm", arm)])
            # the order of lines stands in for their time, which the folder does not keep
            points = [
                Metric(re.sub(r"[^\w./ -]", "_at_", key), value, at, line["step"])
                for at, line in enumerate(lines)
                if line["arm"] == arm
                for key, value in _points(line)
            ]
            for start in range(0, len(points), 1000):  # MLflow's largest batch
                client.log_batch(child, metrics=points[start : start + 1000])
            client.set_terminated(child)
        client.set_terminated(parent)
