"""The published studies of MRD: GradDiff, NPO and SimNPO on 40 authors of TOFU, with a model taught from scratch.

    python benchmarks/study_mrd.py WORK_FOLDER [NAME ...]

1. *models*: for each seed the authors to forget, a model taught all 800 questions and one taught the kept 90 %
2. *choose*: the learning rate of each loss, with uniform draws, on two seeds of their own and validation questions: of
   the rates that keep 95 % of the original model's utility on kept questions, the one whose forgotten answers come
   closest to the reference. Every arm of the loss then has that rate, and the same number of updates.
3. *run*: six seeds, every arm scored once on test questions

Two processes with one thread each; every job has its file, so it goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from studies import publish_runs
from upright.experiment.config import resolve
from upright.experiment.folders import ArmRun, read_json, write_json
from upright.experiment.registry import load_method
from upright.experiment.runner import Ask, compare_runs, execute
from upright.experiment.summary import read_summary, write_summary
from upright.metrics.membership import membership_auc
from upright.tasks.forget import Forget

__all__ = ["Found", "Point", "Study", "main"]

SEEDS = range(6)
CHOICE_SEEDS = (100, 101)
KEEP = 0.95  # of the original's utility on validation
Point = Mapping[str, Any]
Found = Mapping[str, float]


def nearest(start: Found, tried: Sequence[Found]) -> tuple[int, dict[str, Any]]:
    """Return the point with the smallest gap of those that keep the original's utility, and the rule in words."""
    least = KEEP * start["utility"]
    able = [i for i, row in enumerate(tried) if row["utility"] >= least]
    best = (
        min(able, key=lambda i: tried[i]["gap"]) if able else max(range(len(tried)), key=lambda i: tried[i]["utility"])
    )
    rule = f"of the rates that keep {KEEP:.0%} of the original's utility on validation, the smallest gap; uniform "
    return best, {"least_utility": least, "rule": f"{rule}draws; every arm has the same rate"}


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked of one base loss.

    Parameters
    ----------
    settings : mapping
        Of method and task, for every arm, as for `upright run --set`.
    points : sequence of mapping
        Settings to choose from: of uniform draws, for every arm.
    arms : sequence of str, optional
        All where it is left out.
    choosing : mapping
        Settings while choosing.
    choose : callable
        From what was found of the original model and at each point to the number of the best, and words on how.
    seeds, choice_seeds : sequence of int
        Disjoint, unless a pilot chooses on the validation questions of its own seeds.
    statistics : sequence of str
        That are published, with counts and means in place of units; none publishes all.
    """

    settings: Mapping[str, Any]
    points: Sequence[Point]
    arms: Sequence[str] | None = None
    choosing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    choose: Callable[[Found, Sequence[Found]], tuple[int, dict[str, Any]]] = nearest
    seeds: Sequence[int] = SEEDS
    choice_seeds: Sequence[int] = CHOICE_SEEDS
    statistics: Sequence[str] = ()


def _rates(*rates: float) -> list[Point]:
    return [{"learning_rate": rate} for rate in rates]


FEW = ("uniform", "mrd", "loss", "random", "original", "retrain")
_CHOOSING = {"scored_retain": 80, "scored_holdout": 0}
#: rates are finer where a loss goes over the edge at once
STUDIES = {
    "mrd-tofu-npo": Study({"effort": True, "loss": "npo"}, _rates(3e-5, 1e-4, 3e-4, 1e-3, 3e-3), choosing=_CHOOSING),
    "mrd-tofu-grad_diff": Study(
        {"effort": True, "loss": "grad_diff"}, _rates(2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 8e-5, 1e-4), FEW, _CHOOSING
    ),
    "mrd-tofu-simnpo": Study(
        {"effort": True, "loss": "simnpo", "gamma": 0.125}, _rates(1e-4, 3e-4, 5e-4, 7e-4, 1e-3, 3e-3), FEW, _CHOOSING
    ),
}


def _valid_utility(values: Mapping[str, Any]) -> float:
    names = [f"retain_{p}" for p in ("probability", "rouge_l", "truth_ratio") if f"retain_{p}" in values]
    parts = [float(np.nanmean(values[name])) for name in names]
    return len(parts) / sum(1 / max(p, 1e-12) for p in parts)


def _try(job: tuple[str, Mapping[str, Any], int, Point | None]) -> dict[str, float]:
    """Score uniform draws at one point on validation, once; None is the original model."""
    folder, settings, seed, point = job
    words = json.dumps([settings, seed, point], sort_keys=True)
    file = Path(folder) / f"tried-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
    if file.exists():
        return dict(read_json(file))
    spec = load_method("mrd")
    own: Any
    own, task_config = resolve(spec, {**settings, "effort": False, **(point or {})})
    arm = next(a for a in spec.arms if a.name == ("original" if point is None else "uniform"))
    task, run = Forget.load(task_config), ArmRun(None, seed, arm.name)
    scores = task.score(spec.run(task, own.replace(**arm.settings), run), "valid", run)
    values, sets = scores.values, np.array(scores.by["set"])
    found = {"seed": seed, "gap": float(np.nanmean(values["forget_gap"])), "utility": _valid_utility(values)}
    if "holdout" in sets:
        found["auc"] = membership_auc(*(values["mia_loss"][sets == name] for name in ("forget", "holdout"))).auc
    if "general_loss" in values:
        found["general_loss"] = float(np.nanmean(values["general_loss"]))
    write_json(file, found)
    return found


def choose(pool: Any, study: Study, folder: Path) -> dict[str, Any]:
    """Return the settings of a loss and how they were chosen."""
    settings = {**study.settings, **study.choosing}
    pairs = [(point, seed) for point in (None, *study.points) for seed in study.choice_seeds]
    found = pool.map(_try, [(str(folder), settings, seed, point) for point, seed in pairs], chunksize=1)
    rows = []
    for point in (None, *study.points):
        own = [one for (other, _), one in zip(pairs, found, strict=True) if other == point]
        rows.append({k: float(np.mean([one[k] for one in own])) for k in own[0] if k != "seed"})
    best, words = study.choose(rows[0], rows[1:])
    names = list(study.points[0])
    points: list[Point] = [dict.fromkeys(names), *study.points]
    tried = [{**point, **row} for point, row in zip(points, rows, strict=True)]
    return {**study.points[best], "seeds": list(study.choice_seeds), **words, "tried": tried}


def _run(job: tuple[str, Mapping[str, Any], Sequence[str] | None, int]) -> str:
    folder, settings, arms, seed = job
    execute(Ask("mrd", settings=settings, arms=arms, seed=seed), folder=Path(folder))
    return folder


def _thinned(comparison: Path, statistics: Sequence[str], out: Path) -> Path:
    """Write a comparison with some statistics, and of the notes those on validation and on the draws."""
    whole, chosen = read_summary(comparison), set(statistics)
    rows = {k: tuple(r for r in getattr(whole.evidence, k) if r.statistic in chosen) for k in ("levels", "differences")}
    arms = [
        dataclasses.replace(arm, notes={k: arm.notes[k] for k in ("valid", "weights") if k in arm.notes})
        for arm in whole.arms
    ]
    evidence = dataclasses.replace(whole.evidence, **rows)
    out.mkdir(parents=True, exist_ok=True)
    write_summary(out, dataclasses.replace(whole, arms=tuple(arms), evidence=evidence))
    return out


def main(studies: Mapping[str, Study], script: str) -> None:
    """Choose, run, and publish below ``results/``; UPRIGHT_PUBLISH=0 stops before the last."""
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, study in studies.items():
            if names and name not in names:
                continue
            folder = work / name
            folder.mkdir(parents=True, exist_ok=True)
            chosen = choose(pool, study, folder)
            write_json(folder / "choice.json", chosen)
            settings = {**study.settings, **{k: chosen[k] for k in study.points[0]}}
            jobs = [(str(folder / f"s{seed}"), settings, study.arms, seed) for seed in study.seeds]
            runs = [Path(f) for f in pool.map(_run, jobs, chunksize=1)]
            comparison = compare_runs(runs, folder / "comparison")
            cells: list[str] = []
            if study.statistics:
                comparison, cells = _thinned(comparison, study.statistics, folder / "thin"), ["set"]
            about = {"choice": chosen, "command": f"python benchmarks/{script} WORK_FOLDER {name}"}
            if os.environ.get("UPRIGHT_PUBLISH", "1") == "1":
                target = publish_runs(name, runs, comparison, Path("results"), about, cells=cells)
                print("published", target, flush=True)


if __name__ == "__main__":
    main(STUDIES, "study_mrd.py")
