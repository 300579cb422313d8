"""The demonstration: every method that is built, in its quick preset, on real data."""

from __future__ import annotations

from pathlib import Path

from upright.data.catalogue import fetch
from upright.shell.places import require_folder
from upright.shell.runner import compare_runs, execute

__all__ = ["DEMOS", "run_demo"]

#: method -> (data set, settings, seeds, arms); sizes such that the whole takes minutes on two cores
DEMOS: dict[str, tuple[str, dict[str, object], int, list[str] | None]] = {
    "in_ucds": ("ml100k", {"batch_size": 4096}, 6, None),
    "raid": ("ml100k", {"batch_size": 4096, "attribute": "gender"}, 6, ["none", "raid", "mean", "random"]),
    "fedfact": ("adult", {"group": "sex"}, 6, ["none", "fedfact", "majority", "random", "train"]),
    "mrd": ("tofu", {"effort": True}, 6, ["uniform", "mrd", "loss", "random", "original", "retrain"]),
}


def run_demo(out: Path, data_dir: str | None = None) -> list[Path]:
    """Run what is missing below ``out`` and return one folder a method; a second call computes nothing."""
    require_folder(out)
    folders = []
    for method, (data, settings, seeds, arms) in DEMOS.items():
        fetch(data, data_dir)
        runs = [
            execute(method, data=data, data_dir=data_dir, settings=settings, preset="quick", seed=seed, arms=arms,
                    folder=out / f"{method}-{data}-s{seed}", quiet=False)
            for seed in range(seeds)
        ]  # fmt: skip
        target = out / f"{method}-{data}"
        folders.append(target if (target / "comparison.json").exists() else compare_runs(runs, target))
    return folders
