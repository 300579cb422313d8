"""The demonstration: every method that declares a part in it, in its quick preset, on real data."""

from __future__ import annotations

from pathlib import Path

from upright.data.catalogue import CATALOGUE, fetch
from upright.experiment.places import require_folder
from upright.experiment.registry import find, load_method
from upright.experiment.runner import Ask, compare_runs, execute

__all__ = ["run_demo"]


def run_demo(out: Path, data_dir: str | None = None, seeds: int = 1) -> list[Path]:
    """Run what is missing below ``out`` and return one folder a method; a second call computes nothing.

    Fewer than six seeds cannot show that a remedy works, and the words say so.
    """
    require_folder(out)
    folders = []
    for method, declared in ((name, load_method(name).demo) for name in find()):
        if not declared:
            continue
        data = str(declared["data"])
        if data in CATALOGUE:  # others are drawn from a seed
            fetch(data, data_dir)
        runs = []
        for seed in range(seeds):
            ask = Ask(
                method, data=data, settings=declared["settings"], preset="quick", seed=seed, arms=declared.get("arms")
            )
            runs.append(execute(ask, data_dir=data_dir, folder=out / f"{method}-{data}-s{seed}", quiet=False))
        target = out / f"{method}-{data}" if seeds > 1 else runs[0]
        done = seeds == 1 or (target / "comparison.json").exists()
        folders.append(target if done else compare_runs(runs, target))
    return folders
