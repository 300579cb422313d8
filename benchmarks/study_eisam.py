"""The published study of EISAM: SASRec on the last items of MovieLens 100K, against the weights alone and placebos.

    python benchmarks/study_eisam.py WORK_FOLDER [NAME ...] [--prior FILE]

Two processes with one thread each. It goes on where it was interrupted. Every arm has the learning rate of one grid,
and its strength is the one with the best validation NDCG of the tail among those that keep the mean within the margin
of the baseline's. ``--prior`` names a file of prior scores of ML-100K's items for the table of two by two.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from studies import Study, publish, run_study

ARMS = ("none", "eisam", "reweight", "logit_adjust", "shuffled")
FEW = ("none", "eisam", "reweight", "shuffled")
SELECT = {"learning_rate": [1e-3, 3e-3, 1e-2]}
TUNE = {"lam": [0.3, 0.6, 0.9]}


def _study(data: str, arms: tuple[str, ...], more: dict[str, str]) -> Study:
    settings = {"data": data, "epochs": 80, "check_every": 2, "patience": 4, **more}
    named = {"grouping": "popularity", "raised": "tail"}
    return Study(f"eisam-sasrec-{data}", "eisam", settings, SELECT, TUNE, arms, **named)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--prior")
    given = parser.parse_args()
    prior = {"prior": given.prior} if given.prior else {}
    studies = [_study("ml100k", ARMS, prior), _study("ml-latest-small", FEW, {})]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for study in studies:
            if given.names and study.name not in given.names:
                continue
            run_study(study, given.work / study.name, lambda f, jobs: pool.map(f, jobs, chunksize=1))
            command = "python benchmarks/study_eisam.py"
            print("published", publish(study, given.work / study.name, Path("results"), command))


if __name__ == "__main__":
    main()
