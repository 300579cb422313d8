"""The published studies of FedRecGEL: does a radius help a federated recommender, against controls at matched tuning.

    python benchmarks/study_fedrecgel.py WORK_FOLDER [NAME ...]

Two processes with one thread each. It goes on where it was interrupted. Rates of server and clients are chosen on one
grid for every arm, the strength (of radii, of weight decay) on two seeds of its own: the best validation NDCG of all.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from studies import Study, main

ARMS = ("none", "fedrecgel", "decay", "random", "shared", "private")
RATES = {"server_rate": [0.01, 0.03], "client_rate": [0.03, 0.1]}
TUNE = {"strength": [0.2, 2.0, 10.0]}
LONG = {"rounds": 400, "check_every": 20, "patience": 4}


def _study(name: str, arms: tuple[str, ...], settings: dict[str, Any]) -> Study:
    cells = ("size",) if settings["data"] == "amazon-video" else ()  # 8,072 clients
    return Study(
        f"fedrecgel-{name}", "fedrecgel", settings, RATES, TUNE, arms, grouping="size", raised="mean", cells=cells
    )


def studies(given: argparse.Namespace) -> list[Study]:
    paper = {"backbone": "neumf-paper", "rounds": 20, "check_every": 10, "patience": 4}
    return [
        _study("dot-ml100k", (*ARMS, "small_rate", "local", "central"), {"data": "ml100k", **LONG}),
        _study("dot-filmtrust", ARMS, {"data": "filmtrust", **LONG}),
        _study("dot-lastfm", ARMS, {"data": "lastfm", **LONG}),
        _study("dot-amazon-video", ARMS, {"data": "amazon-video", **LONG}),
        _study("neumf-amazon-video", ("none", "fedrecgel", "random"), {"data": "amazon-video", **paper}),
    ]


if __name__ == "__main__":
    main(__doc__ or "", __file__, studies)
