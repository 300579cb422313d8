"""The published studies of U2A: planted negatives, HH-RLHF with a small model, and scores on SmolLM2.

    python benchmarks/study_u2a.py WORK_FOLDER [NAME ...]

1. *choose*, on seeds 100 and 101 and validation, what is kept being the mean probability of retained answers, at most
   a margin of that metric below the model that nothing was done to:
   the learning rate: the largest of the grid at which uniform weights keep it; every arm that unlearns has this one;
   the epochs of a round: the most at which uniform weights still keep it at that rate;
   DPO's learning rate: the one with the best ranking accuracy among those at which DPO keeps it, at as many updates.
   No choice looks at U2A, which stands in the published sweep at every learning rate beside them.
2. *run*: six seeds, every arm scored once on test pairs; one comparison
3. *u2a-smollm2-hh-rlhf*: trains nothing. Six splits without a common prompt, each of 24 pairs, 36 rejected answers and
   36 chosen ones that pose as negatives; the AUC with which a score tells them apart, beside loss and length.
4. *u2a-smollm2-hh-rlhf-npo*: a pilot with the same sizes, an adapter of rank 8 on SmolLM2-135M-Instruct as it is, 40
   updates without a retain loss; two learning rates, one seed to choose and three to report: all that two cores do in
   20 minutes.

Two processes with one thread each; it goes on where it was interrupted. No text is published.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from studies import publish_runs
from upright.experiment.config import resolve
from upright.experiment.folders import ArmRun, environment, read_json, write_json
from upright.experiment.registry import load_method
from upright.experiment.runner import Ask, compare_runs, execute
from upright.metrics.alignment import METRICS

SEEDS, CHOICE_SEEDS, SPLITS = range(6), (100, 101), range(6)
MARGIN = METRICS["retain_probability"].margin
SCORES = "u2a-smollm2-hh-rlhf"
PAIRS, SIDE, WORDS = 24, 36, 30


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked of one loss.

    Parameters
    ----------
    settings : mapping
        Of method and task, for every arm, as for `upright run --set`.
    arms : sequence of str, optional
        All where it is left out.
    rates, epochs : sequence
        To choose from.
    seeds, choice_seeds : sequence of int
        Disjoint.
    """

    settings: Mapping[str, Any]
    arms: Sequence[str] | None = None
    rates: Sequence[float] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    epochs: Sequence[int] = (4, 8, 16)
    seeds: Sequence[int] = SEEDS
    choice_seeds: Sequence[int] = CHOICE_SEEDS


_FEW = ("uniform", "u2a", "gated", "permuted", "flipped", "dpo", "original")
# until it gives the answers that it was taught a probability of 0.98 a token: the retain loss has nothing to teach it
_TAUGHT = {"hidden": 96, "layers": 3, "vocabulary": 2048, "task.epochs": 30, "task.learning_rate": 3e-3}
_LARGE = {
    "data": "hh-rlhf", "model": "smollm2", "lora": 8, "task.epochs": 0, "objective": PAIRS, "negatives": SIDE,
    "mislabelled": SIDE, "elsewhere": 1, "loss": "npo", "alpha": 0.0, "rounds": 1, "groups": 0, "batch_size": 9,
}  # fmt: skip
STUDIES = {
    "u2a-planted-npo": Study({"data": "planted", "loss": "npo"}),
    "u2a-planted-grad_diff": Study({"data": "planted", "loss": "grad_diff"}),
    "u2a-hh-rlhf-npo": Study({"data": "hh-rlhf", "loss": "npo", **_TAUGHT}, _FEW),
    f"{SCORES}-npo": Study(_LARGE, ("uniform", "u2a", "permuted", "original"), (1e-4, 5e-4), (5,), range(3), (100,)),
}

Point = tuple[str, float, int]  # arm, learning rate, epochs of a round


def _try(job: tuple[str, Mapping[str, Any], Point, int]) -> dict[str, float]:
    """Score an arm on the validation of a seed; kept on disk."""
    from upright.tasks.align import Align

    folder, settings, (name, rate, epochs), seed = job
    file = Path(folder) / f"{name}-{rate:g}-{epochs}-s{seed}.json"
    if file.exists():
        return dict(read_json(file))
    spec = load_method("u2a")
    own: Any
    own, task_config = resolve(spec, {**settings, "learning_rate": rate, "epochs": epochs})
    arm = next(a for a in spec.arms if a.name == name)
    task, run = Align.load(task_config), ArmRun(None, seed, name)
    values = task.score(spec.run(task, own.replace(**arm.settings), run), "valid", run).values
    names = ("ranking_accuracy", "implicit_accuracy", "retain_probability")
    found = {name: float(np.nanmean(values[name])) for name in names}
    write_json(file, found)
    return found


def choose(pool: Any, study: Study, work: Path) -> dict[str, Any]:
    """Return learning rates and epochs, and all that was tried."""
    table: dict[Point, dict[str, float]] = {}
    rates, few, arms = study.rates, study.epochs[0], study.arms

    def sweep(*points: Point) -> None:
        jobs = [(str(work / "choice"), study.settings, point, seed) for point in points for seed in study.choice_seeds]
        found = pool.map(_try, jobs, chunksize=1)
        n = len(study.choice_seeds)
        for i, point in enumerate(points):
            own = found[n * i : n * (i + 1)]
            table[point] = {name: float(np.mean([one[name] for one in own])) for name in own[0]}

    def keeps(*points: Point) -> list[Point]:
        return [point for point in points if table[point]["retain_probability"] >= least]

    nothing = ("original", rates[0], few)
    uniform: list[Point] = [("uniform", rate, few) for rate in rates]
    sweep(nothing, *uniform)
    least = table[nothing]["retain_probability"] - MARGIN
    rate = max((rate for _, rate, _ in keeps(*uniform)), default=rates[0])
    longer: list[Point] = [("uniform", rate, epochs) for epochs in study.epochs[1:]]
    sweep(*longer)
    found = {"learning_rate": rate, "epochs": max((epochs for _, _, epochs in keeps(*longer)), default=few)}
    rule = "the largest learning rate, then the most epochs, at which uniform weights keep the retained answers"
    if arms is None or "dpo" in arms:
        others: list[list[Point]] = [[(arm, r, found["epochs"]) for r in rates] for arm in ("dpo", "u2a")]
        sweep(*others[0], *others[1])
        rival = max(keeps(*others[0]) or others[0][:1], key=lambda point: table[point]["ranking_accuracy"])
        found["dpo_learning_rate"] = rival[1]
        rule += "; DPO: the best ranking accuracy among rates that keep them"
    return {
        **found, "seeds": list(study.choice_seeds), "least_retain_probability": least,
        "rule": f"{rule}; all on validation",
        "tried": [{"arm": arm, "learning_rate": r, "epochs": e, **own} for (arm, r, e), own in table.items()],
    }  # fmt: skip


def _run(job: tuple[str, Mapping[str, Any], Sequence[str] | None, dict[str, Any], int]) -> str:
    folder, settings, arms, own, seed = job
    execute(Ask("u2a", settings=settings, arms=arms, arm_settings=own, seed=seed), folder=Path(folder))
    return folder


# -- scores on SmolLM2 ------------------------------------------------------------------------------------------------


def _split(job: tuple[str, int]) -> dict[str, Any]:
    """Score one split; kept on disk."""
    from peft import LoraConfig

    from upright.data.catalogue import entry_of, locate
    from upright.data.preferences import Pair, read_preferences, records_of
    from upright.language.adapters import adapted
    from upright.language.evaluation import Speaker
    from upright.maths.ranks import auc
    from upright.methods.u2a import u2a_weights
    from upright.models.hub import load_language_model, smollm2

    folder, split = job
    file = Path(folder) / f"split-{split}.json"
    if file.exists():
        return dict(read_json(file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        known = read_preferences(locate("hh-rlhf") / next(iter(entry_of("hh-rlhf").files)))
    by_prompt = {p.prompt.strip(): Pair(p.id, p.prompt, p.chosen, p.rejected, kind="question") for p in known}
    short = [p for p in by_prompt.values() if max(len(t.split()) for t in (p.prompt, p.chosen, p.rejected)) <= WORDS]
    size = PAIRS + 2 * SIDE
    own = [short[i] for i in np.random.default_rng(0).permutation(len(short))[split * size : (split + 1) * size]]
    pool = [*records_of(own[PAIRS:-SIDE], "rejected"), *records_of(own[-SIDE:], "chosen")]
    model, tokenizer = load_language_model(smollm2())
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = adapted(model, lora, seed=split, checkpointing=False).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = u2a_weights(model, tokenizer, pool, own[:PAIRS], seed=split, batch_size=8)
    speaker = Speaker(model, tokenizer, batch_size=8)
    length = np.array([float(one.answer_length) for one in speaker.encode(pool)])
    bad = np.arange(len(pool)) < SIDE
    told = {"score": found.score, "loss": speaker.losses(pool), "length": length}
    row: dict[str, Any] = {"split": split}
    row |= {name: float(auc(value, np.ones(len(pool)), bad)) for name, value in told.items()}
    row |= {"certain_to_help": int((found.certain > 0).sum()), "certain_to_hurt": int((found.certain < 0).sum())}
    write_json(file, row)
    return row


def publish_scores(rows: list[dict[str, Any]], target: Path) -> Path:
    """Write the AUCs of all splits, with the interval of each mean and of the score's lead: t, splits - 1 degrees."""
    from scipy.stats import t

    of = {name: np.array([row[name] for row in rows]) for name in ("score", "loss", "length")}
    of |= {f"score - {name}": of["score"] - of[name] for name in ("loss", "length")}
    means, told = {}, {}
    for name, own in of.items():
        half = float(t.ppf(0.975, len(own) - 1) * own.std(ddof=1) / np.sqrt(len(own)))
        mean = float(own.mean())
        means[name] = {"value": mean, "low": mean - half, "high": mean + half}
        told[name] = f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"
    shown = "tell" if means["score"]["low"] > 0.5 else "are not shown to tell"
    sentence = (
        f"scores of U2A {shown} rejected answers of HH-RLHF from chosen ones that pose as negatives: AUC "
        f"{told['score']}; by the loss {told['loss']}, by length {told['length']}; {len(rows)} splits of {PAIRS} pairs "
        f"and {2 * SIDE} negatives, SmolLM2-135M-Instruct with LoRA, nothing trained"
    )
    about = {
        "sentence": sentence, "model": "SmolLM2-135M-Instruct with LoRA of rank 8, not trained", "pairs": PAIRS,
        "negatives": 2 * SIDE, "splits": rows, "mean": means,
        "command": f"python benchmarks/study_u2a.py WORK_FOLDER {SCORES}",
    }  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "finding.json", about, compact=True)
    write_json(target / "environment.json", {**environment(), "threads": int(os.environ["OMP_NUM_THREADS"])})
    return target


def main() -> None:
    """Choose, run, and publish below ``results/``; UPRIGHT_PUBLISH=0 stops before the last."""
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    publish = os.environ.get("UPRIGHT_PUBLISH", "1") == "1"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, study in STUDIES.items():
            if names and name not in names:
                continue
            (work / name / "choice").mkdir(parents=True, exist_ok=True)
            chosen = choose(pool, study, work / name)
            print(name, json.dumps({k: v for k, v in chosen.items() if k != "tried"}), flush=True)
            own = {k: chosen[k] for k in ("learning_rate", "epochs")}
            rival = {"dpo": {"learning_rate": chosen["dpo_learning_rate"]}} if "dpo_learning_rate" in chosen else {}
            settings = {**study.settings, **own}
            jobs = [(str(work / name / f"s{s}"), settings, study.arms, rival, s) for s in study.seeds]
            runs = [Path(f) for f in pool.map(_run, jobs, chunksize=1)]
            comparison = compare_runs(runs, work / name / "comparison")
            about = {"choice": chosen, "command": f"python benchmarks/study_u2a.py WORK_FOLDER {name}"}
            if publish:
                cells = ("set", "source") if study.settings["data"] == "planted" else ("set",)
                done = publish_runs(name, runs, comparison, Path("results"), about, cells=cells)
                print("published", done, flush=True)
        if not names or SCORES in names:
            (work / SCORES).mkdir(parents=True, exist_ok=True)
            rows = pool.map(_split, [(str(work / SCORES), split) for split in SPLITS], chunksize=1)
            print("published", publish_scores(rows, (Path("results") if publish else work) / SCORES), flush=True)


if __name__ == "__main__":
    main()
