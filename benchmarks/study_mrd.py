"""The published studies of MRD: GradDiff, NPO and SimNPO on 40 authors of TOFU, with a model taught from scratch.

    python benchmarks/study_mrd.py WORK_FOLDER [NAME ...]

1. *models*: for each seed the authors to forget, a model taught all 800 questions and one taught the kept 90 %
2. *choose*: the learning rate of each loss, with uniform draws, on two seeds of their own and validation questions: of
   the rates that keep 95 % of the original model's utility on kept questions, the one whose forgotten answers come
   closest to the reference. Every arm of the loss then has that rate, and the same number of updates.
3. *run*: six seeds, every arm scored once on test questions

Two processes with one thread each; it goes on where it was interrupted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from studies import publish_runs
from upright.experiment.folders import ArmRun
from upright.experiment.registry import load_method
from upright.experiment.runner import Ask, compare_runs, execute
from upright.tasks.forget import Forget, ForgetConfig

SEEDS = range(6)
CHOICE_SEEDS = (100, 101)
KEEP = 0.95  # of the original's utility on validation
SHARED: dict[str, Any] = {"effort": True}
FEW = ["uniform", "mrd", "loss", "random", "original", "retrain"]
#: name, settings, arms (None: all), learning rates to choose from: finer where a loss goes over the edge at once
LOSSES: dict[str, tuple[dict[str, Any], list[str] | None, tuple[float, ...]]] = {
    "mrd-tofu-npo": ({"loss": "npo"}, None, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)),
    "mrd-tofu-grad_diff": ({"loss": "grad_diff"}, FEW, (2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 8e-5, 1e-4)),
    "mrd-tofu-simnpo": ({"loss": "simnpo", "gamma": 0.125}, FEW, (1e-4, 3e-4, 5e-4, 7e-4, 1e-3, 3e-3)),
}


def _valid_utility(values: dict[str, Any]) -> float:
    parts = [float(np.nanmean(values[f"retain_{p}"])) for p in ("probability", "rouge_l", "truth_ratio")]
    return len(parts) / sum(1 / max(p, 1e-12) for p in parts)


def _try(job: tuple[dict[str, Any], int, float | None]) -> dict[str, float]:
    """Score uniform draws at one learning rate on validation; None is the original model."""
    settings, seed, rate = job
    spec, task = load_method("mrd"), Forget.load(ForgetConfig(scored_retain=80, scored_holdout=0))
    arm = next(a for a in spec.arms if a.name == ("original" if rate is None else "uniform"))
    config: Any = spec.config(**settings, **({} if rate is None else {"learning_rate": rate})).replace(**arm.settings)
    run = ArmRun(None, seed, arm.name)
    values = dict(task.score(spec.run(task, config, run), "valid", run).values)
    return {"seed": seed, "gap": float(np.nanmean(values["forget_gap"])), "utility": _valid_utility(values)}


def choose(pool: Any, settings: dict[str, Any], rates: tuple[float, ...], file: Path) -> dict[str, Any]:
    """Return the learning rate of a loss and how it was chosen; read from its file when it is there."""
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    jobs = [(settings, seed, rate) for rate in (None, *rates) for seed in CHOICE_SEEDS]
    found = pool.map(_try, jobs, chunksize=1)
    table: dict[float | None, dict[str, float]] = {}
    for rate in (None, *rates):
        own = [f for (_, _, r), f in zip(jobs, found, strict=True) if r == rate]
        table[rate] = {k: float(np.mean([f[k] for f in own])) for k in ("gap", "utility")}
    least = KEEP * table[None]["utility"]
    able = [r for r in rates if table[r]["utility"] >= least] or [max(rates, key=lambda r: table[r]["utility"])]
    chosen = {
        "learning_rate": min(able, key=lambda r: table[r]["gap"]), "seeds": list(CHOICE_SEEDS), "least_utility": least,
        "tried": [{"learning_rate": r, **v} for r, v in table.items()],
        "rule": f"of the rates that keep {KEEP:.0%} of the original's utility on validation, the smallest gap; uniform "
        "draws; every arm has the same rate",
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(chosen, indent=1), encoding="utf-8")
    return chosen


def _run(job: tuple[str, dict[str, Any], list[str] | None, int]) -> str:
    folder, settings, arms, seed = job
    execute(Ask("mrd", settings=settings, arms=arms, seed=seed), folder=Path(folder))
    return folder


def main() -> None:
    """Choose, run, and publish below ``results/``; UPRIGHT_PUBLISH=0 stops before the last."""
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    work.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, (own, arms, rates) in LOSSES.items():
            if names and name not in names:
                continue
            chosen = choose(pool, own, rates, work / name / "choice.json")
            settings = {**SHARED, **own, "learning_rate": chosen["learning_rate"]}
            runs = [Path(f) for f in pool.map(
                _run, [(str(work / name / f"s{s}"), settings, arms, s) for s in SEEDS], chunksize=1)]  # fmt: skip
            comparison = compare_runs(runs, work / name / "comparison")
            about = {"choice": chosen, "command": f"python benchmarks/study_mrd.py WORK_FOLDER {name}"}
            if os.environ.get("UPRIGHT_PUBLISH", "1") == "1":
                print("published", publish_runs(name, runs, comparison, Path("results"), about), flush=True)


if __name__ == "__main__":
    main()
