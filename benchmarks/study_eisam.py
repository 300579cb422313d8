"""The published studies of EISAM: SASRec and SmolLM2 on last items, against the weights alone and placebos.

    python benchmarks/study_eisam.py WORK_FOLDER [NAME ...] [--prior FILE]

Two processes with one thread each. It goes on where it was interrupted. Every arm has the learning rate of one grid,
and its strength is the one with the best validation NDCG of the tail among those that keep the mean within the margin
of the baseline's. ``--prior`` names a file of prior scores of ML-100K's items for the table of two by two.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from studies import Study, main

ARMS = ("none", "eisam", "reweight", "logit_adjust", "shuffled")
FEW = ("none", "eisam", "reweight", "shuffled")
RATES = [1e-3, 3e-3, 1e-2]
TUNE = {"lam": [0.3, 0.6, 0.9]}
LONG = {"epochs": 80, "check_every": 2, "patience": 4}
SHORT = {"epochs": 1, "check_every": 1, "batch_size": 8}  # 40 CPU-s in one pass: too dear to converge


def _study(name: str, arms: tuple[str, ...], settings: dict[str, Any], rates: list[float]) -> Study:
    select, named = {"learning_rate": rates}, {"grouping": "popularity", "raised": "tail"}
    return Study(f"eisam-{name}", "eisam", settings, select, TUNE, arms, **named)  # type: ignore[arg-type]


def studies(given: argparse.Namespace) -> list[Study]:
    prior = {"prior": given.prior} if given.prior else {}
    model = {"backbone": "llm", "model_folder": "smollm2"}
    return [
        _study("sasrec-ml100k", ARMS, {"data": "ml100k", **LONG, **prior}, RATES),
        _study("smollm2-ml100k", FEW, {"data": "ml100k", **model, **SHORT, **prior}, [3e-4, 1e-3, 3e-3]),
        _study("sasrec-ml-latest-small", FEW, {"data": "ml-latest-small", **LONG}, RATES),
    ]


if __name__ == "__main__":
    main(__doc__ or "", __file__, studies, "--prior")
