"""Take a run's curve to a tracker: `metrics.jsonl` replayed as TensorBoard events or into an MLflow store.

The run folder stays the one record. A sink is made from it afterwards, so that training needs no tracker, and what a
tracker shows cannot differ from the folder.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from unittest import mock

from upright.contract import InputError
from upright.experiment.folders import read_json
from upright.experiment.places import require_folder

__all__ = ["SINKS", "replay"]

#: sink, which is its package too, and the folder inside the run that it fills unless told otherwise
SINKS = {"tensorboard": "tensorboard", "mlflow": "mlruns"}
Curves = dict[str, list[tuple[int, int, str, float]]]  # of an arm: place in the log, step, name, value


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
    curves = _curves(folder)
    target = require_folder(target or folder / SINKS[sink])
    try:
        (_tensorboard if sink == "tensorboard" else _mlflow)(folder, curves, target)
    except ImportError as error:
        raise InputError(
            f"export to {sink} without the package {sink} ({error})",
            f"{sink} installed",
            "pip install 'upright[tracking]'",
        ) from None
    return target


def _curves(folder: Path) -> Curves:
    """Return the points of each arm; what is undefined (null) has none."""
    file = folder / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        kind = "no metrics.jsonl" if isinstance(error, OSError) else f"metrics.jsonl: {error}"
        raise InputError(
            f"{folder.name} has {kind}", "the folder of one run", "name the folder of a run, not of a comparison"
        ) from None
    curves: Curves = {}
    for place, line in enumerate(lines):
        arm, step = line.pop("arm"), line.pop("step")
        values = {key: float(value) for key, value in line.items() if isinstance(value, int | float)}
        curves.setdefault(arm, []).extend((place, step, key, value) for key, value in values.items())
    return curves


def _taken(folder: Path, target: Path) -> InputError:
    return InputError(
        f"{target.name} holds run {folder.name} already",
        "a target without this run, so that no point stands twice",
        "delete it there, or choose another --out",
    )


def _tensorboard(folder: Path, curves: Curves, target: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of protobuf, while it is imported
        from torch.utils.tensorboard import SummaryWriter

    if (target / folder.name).exists():
        raise _taken(folder, target)
    for arm, points in curves.items():
        with SummaryWriter(str(target / folder.name / arm)) as writer:
            for _, step, key, value in points:
                writer.add_scalar(key, value, step)


def _mlflow(folder: Path, curves: Curves, target: Path) -> None:
    # the file store is the only local one of `mlflow-skinny`: a database needs SQLAlchemy
    switches = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with mock.patch.dict(os.environ, switches), warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
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
        for arm, points in curves.items():
            child = client.create_run(experiment, run_name=f"{folder.name}/{arm}").info.run_id
            client.log_batch(child, tags=[RunTag("mlflow.parentRunId", parent), RunTag("upright.arm", arm)])
            # the order of lines stands in for their time, which the folder does not keep
            metrics = [
                Metric(re.sub(r"[^\w./ -]", "_at_", key), value, place, step) for place, step, key, value in points
            ]
            for start in range(0, len(metrics), 1000):  # MLflow's largest batch
                client.log_batch(child, metrics=metrics[start : start + 1000])
            client.set_terminated(child)
        client.set_terminated(parent)
