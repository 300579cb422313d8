"""Take results elsewhere: a model card in Hugging Face's format, or the unit table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.experiment.folders import read_json
from upright.experiment.places import require_file

__all__ = ["export_run", "model_card"]

#: what is counted -> the hub's name of the task
TASKS = {
    "user": "recommendation",
    "row": "tabular-classification",
    "record": "text-generation",
    "clip": "text-to-video",
}


def model_card(summary: dict[str, Any]) -> str:
    """Return a model card (YAML front matter with ``model-index`` results, then the verdict in words)."""
    rows = [x for x in summary["evidence"]["levels"] if x["value"] is not None]
    best = next((a["name"] for a in summary["arms"] if a["role"] == "remedy"), summary["arms"][0]["name"])
    results = []
    kind = TASKS.get(summary["evidence"]["unit_kind"], "other")
    for row in rows:
        if row["arm"] == best:
            metric = {"type": row["statistic"] + (f"={row['group']}" if row["group"] else ""), "name": row["label"],
                      "value": row["value"], "args": {"low": row["low"], "high": row["high"]}}  # fmt: skip
            data = {"type": summary["data"]["name"], "name": summary["data"]["name"], "split": "test"}
            results.append({"task": {"type": kind}, "dataset": data, "metrics": [metric]})
    # JSON is YAML, so no YAML writer is needed and nothing has to be quoted by hand
    head = {"library_name": "upright", "tags": [summary["method"]],
            "model-index": [{"name": summary["title"], "results": results}]}  # fmt: skip
    verdict = summary["evidence"]["verdict"]
    lines = [f"# {summary['title']} on {summary['data']['name']}", "", f"Mends: {summary['mends']}.", "",
             f"**{verdict['title']}**", "", verdict["sentence"], "",
             *[f"* {name}: {text}" for name, text in verdict["lines"].items()], "", "## What to do next", "",
             *[f"* {x}" for x in verdict["next_steps"]], "", "## Deviations from the paper", "",
             *[f"* {x}" for x in summary["deviations"]]]  # fmt: skip
    return "---\n" + json.dumps(head, indent=1, ensure_ascii=False) + "\n---\n\n" + "\n".join(lines) + "\n"


def export_run(folder: Path, kind: str, out: Path | None = None) -> Path:
    """Write ``card`` or ``parquet`` of a finished run and return the file.

    Raises
    ------
    InputError
        For another kind, a folder without a finished run, or a target that is no place for a file.
    """
    if kind == "card":
        name = "comparison.json" if (folder / "comparison.json").exists() else "summary.json"
        summary = read_json(folder / name)
        target = require_file(out or folder / "card.md")
        target.write_text(model_card(summary), encoding="utf-8")
        return target
    if kind == "parquet":
        source = folder / "units.parquet"
        if not source.exists():
            raise InputError(f"{folder.name} has no units.parquet", "a finished run", "export one run of a comparison")
        target = require_file(out or Path(f"{folder.name}.parquet"))
        shutil.copyfile(source, target)
        return target
    raise InputError(f"export kind {kind!r}", "card, parquet", "take one of them")
