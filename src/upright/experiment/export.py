"""Take results elsewhere: a model card in Hugging Face's format, the unit table, or what a method declares."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from upright.contract import InputError
from upright.experiment.config import resolve
from upright.experiment.folders import plain, run_status
from upright.experiment.places import require_file, require_folder
from upright.experiment.registry import load_method, load_object
from upright.experiment.runner import Ask
from upright.experiment.summary import Summary, read_summary

__all__ = ["export_run", "model_card"]

#: what is counted -> the hub's name of the task
TASKS = {
    "user": "recommendation",
    "row": "tabular-classification",
    "record": "text-generation",
    "clip": "text-to-video",
}


def model_card(found: Summary) -> str:
    """Return a model card (YAML front matter with ``model-index`` results, then the verdict in words)."""
    best = next((arm.name for arm in found.arms if arm.role == "remedy"), found.arms[0].name)
    name, verdict = str(found.data["name"]), found.evidence.verdict
    kind = TASKS.get(str(found.evidence.facts.get("unit_kind")), "other")
    results = []
    for row in found.evidence.levels:
        if row.arm == best and math.isfinite(row.value):
            text = "=".join(filter(None, (row.statistic, row.group)))
            ends = {"low": row.low, "high": row.high}
            metric = {"type": text, "name": row.label, "value": row.value, "args": plain(ends)}
            data = {"type": name, "name": name, "split": "test"}
            results.append({"task": {"type": kind}, "dataset": data, "metrics": [metric]})
    # JSON is YAML, so no YAML writer is needed and nothing has to be quoted by hand
    index = [{"name": found.title, "results": results}]
    head = {"library_name": "upright", "tags": [found.method], "model-index": index}
    lines = [f"# {found.title} on {name}", f"Mends: {found.mends}.", f"**{verdict['title']}**", verdict["sentence"]]
    lines.append("\n".join(f"* {key}: {text}" for key, text in verdict["lines"].items()))
    for title, items in (("What to do next", verdict["next_steps"]), ("Deviations from the paper", found.deviations)):
        lines += [f"## {title}", "\n".join(f"* {x}" for x in items)]
    return "---\n" + json.dumps(head, indent=1, ensure_ascii=False) + "\n---\n\n" + "\n\n".join(lines) + "\n"


def export_run(folder: Path, kind: str, out: Path | None = None) -> Path:
    """Write ``card`` or ``parquet`` of a finished run, or a kind that its method declares, and return the place.

    Raises
    ------
    InputError
        For another kind, a folder without a finished run, or a target that is no place for it; of a method's kind, for
        a run whose checkpoints were deleted or whose data are others now.
    """
    if kind == "card":
        found = read_summary(folder)
        target = require_file(out or folder / "card.md")
        target.write_text(model_card(found), encoding="utf-8")
        return target
    if kind == "parquet":
        source = folder / "units.parquet"
        if not source.exists():
            raise InputError(f"{folder.name} has no units.parquet", "a finished run", "export one run of a comparison")
        target = require_file(out or Path(f"{folder.name}.parquet"))
        shutil.copyfile(source, target)
        return target
    return _export_model(folder, kind, out)


def _export_model(folder: Path, kind: str, out: Path | None) -> Path:
    """Hand what training kept of the remedy to the method."""
    import torch

    ask = Ask.read(folder)
    spec = load_method(ask.method)
    if kind not in spec.export:
        raise InputError(f"export kind {kind!r}", ", ".join(["card", "parquet", *spec.export]), "take one of them")
    arm = spec.arm("remedy")
    file = folder / "checkpoints" / f"{arm.name}.best.pt"
    if run_status(folder) != "done" or not file.exists():
        got = f"{folder.name} without a checkpoint of {arm.name}, or not finished"
        raise InputError(got, "a finished run whose checkpoints were not deleted", "finish it, or run it again")
    target = require_folder(out or folder / kind)
    config, task_config = resolve(spec, ask.settings, ask.preset, ask.data)
    task = load_object(spec.task).load(task_config)
    if task.facts["fingerprint"] != read_summary(folder).data["fingerprint"]:
        got = f"data of fingerprint {task.facts['fingerprint']}"
        raise InputError(got, "the data of the run", "bring them back, or run it again on these")
    config = config.replace(**{**ask.arm_settings.get(arm.name, {}), **arm.settings})
    kept = torch.load(file, weights_only=True)["state"]["parts"]
    spec.export[kind](task, config, kept, ask.seed, target)
    return target
