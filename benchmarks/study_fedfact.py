"""The published studies of FedFACT: Adult, COMPAS (two and three classes) and the census of the KDD archive.

    python benchmarks/study_fedfact.py WORK_FOLDER [NAME ...]

Six seeds; each draws its own clients, test rows and calibration rows. Tolerances are stated and all other settings are
the defaults; two of the arm in training were once chosen on calibration rows of seed 0 of Adult and COMPAS. Two
processes with one thread each; it goes on where it was interrupted.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from studies import publish_runs
from upright.experiment.runner import Ask, compare_runs, execute

SEEDS = range(6)
BASE: dict[str, Any] = {"global_tol": 0.01}  # and the same inside clients; stated, so that a default cannot change it
NO_FAIRLEARN = ["none", "fedfact", "majority", "random", "train", "oracle"]
#: what the paper prints (table 2, Dirichlet 0.5): accuracy, global and largest local gap
PAPER_ADULT = {
    "none": {"accuracy": 0.8452, "global": 0.1765, "local": 0.2310},
    "fedfact": {"accuracy": 0.8274, "global": 0.0134, "local": 0.0274},
    "train": {"accuracy": 0.8204, "global": 0.0014, "local": 0.0401},
    "fairfed": {"accuracy": 0.8073, "global": 0.0983, "local": 0.1434},
    "fedfb": {"accuracy": 0.8185, "global": 0.0751, "local": 0.1165},
}
PAPER_COMPAS = {
    "none": {"accuracy": 0.6973, "global": 0.2766, "local": 0.3590},
    "fedfact": {"accuracy": 0.6733, "global": 0.0139, "local": 0.0641},
    "train": {"accuracy": 0.6117, "global": 0.0407, "local": 0.0732},
    "fairfed": {"accuracy": 0.5939, "global": 0.1008, "local": 0.1022},
    "fedfb": {"accuracy": 0.5809, "global": 0.0879, "local": 0.0983},
}
#: name, settings, arms (None: all), whether every tolerance is run, published values
STUDIES: list[tuple[str, dict[str, Any], list[str] | None, bool, dict[str, Any]]] = [
    ("fedfact-adult-sex", {"data": "adult", "group": "sex"}, None, True, PAPER_ADULT),
    ("fedfact-compas-race", {"data": "compas", "group": "race", "clients": 2}, None, True, PAPER_COMPAS),
    ("fedfact-compas-score", {"data": "compas", "group": "race", "clients": 2, "label": "score_text"}, NO_FAIRLEARN,
     True, {}),
    ("fedfact-adult-odds",
     {"data": "adult", "group": "sex", "criterion": "equalized_odds", "randomised": True},
     ["none", "fedfact", "majority", "random", "train", "thresholds", "reductions"], False, {}),
    ("fedfact-census-sex", {"data": "census-kdd", "group": "sex", "clients": 10, "most_rows": 60_000}, NO_FAIRLEARN,
     False, {}),
]  # fmt: skip


def _run(job: tuple[str, dict[str, Any], list[str] | None, bool, int]) -> str:
    folder, settings, arms, sweep, seed = job
    execute(Ask("fedfact", settings={**BASE, **settings}, seed=seed, arms=arms, sweep=sweep), folder=Path(folder))
    return folder


def main() -> None:
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    work.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, settings, arms, sweep, paper in STUDIES:
            if names and name not in names:
                continue
            jobs = [(str(work / name / f"s{s}"), settings, arms, sweep, s) for s in SEEDS]
            runs = [Path(f) for f in pool.map(_run, jobs, chunksize=1)]
            comparison = compare_runs(runs, work / name / "comparison")
            about = {"published": paper, "command": f"python benchmarks/study_fedfact.py WORK_FOLDER {name}"}
            print("published", publish_runs(name, runs, comparison, Path("results"), about,
                                            cells=("client", "group")), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
