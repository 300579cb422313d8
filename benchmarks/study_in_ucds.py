"""The published study of In-UCDS: BPR-MF on three data sets, LightGCN and NeuMF on one.

    python benchmarks/study_in_ucds.py WORK_FOLDER [NAME ...]

Two processes with one thread each; about an hour of CPU time for the first two. It goes on where it was interrupted.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from studies import Study, publish, run_study

PLAIN = ("second_model", "ease", "ease_all")  # they are added to the baseline, and choose their own strength
RIVALS = ("user_weights", *PLAIN, "item_knn", "stranger")
ARMS = ("none", "in_ucds", "top_k", "random", *RIVALS)
SELECT = {"learning_rate": [3e-3], "weight_decay": [1e-2, 3e-2]}
TUNE = {"lam": [0.0003, 0.003, 0.03]}


def _study(data: str, backbone: str, batch: int, preset: str = "full") -> Study:
    # EASE has no seed: another split at each, where the split is not published
    settings: dict[str, Any] = {"data": data, "backbone": backbone, "batch_size": batch, "split_seed": "seed"}
    settings |= {"epochs": 1500} if preset == "full" else {}  # 400 end before the curve does
    more: dict[str, Any] = {"raised": "disadvantaged", "plain": PLAIN, "preset": preset, "cells": ("activity",)}
    return Study(f"in_ucds-{backbone}-{data}", "in_ucds", settings, SELECT, TUNE, ARMS, **more)


STUDIES = [
    _study("ml100k", "bprmf", 4096),
    _study("gowalla", "bprmf", 4096),
    _study("epinions", "bprmf", 4096),
    _study("ml100k", "lightgcn", 8192),
    _study("ml100k", "neumf", 4096, "quick"),
]


def main() -> None:
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for study in STUDIES:
            if names and study.name not in names:
                continue
            run_study(study, work / study.name, lambda f, jobs: pool.map(f, jobs, chunksize=1))
            print("published", publish(study, work / study.name, Path("results"), "python benchmarks/study_in_ucds.py"))


if __name__ == "__main__":
    main()
