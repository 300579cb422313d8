r"""MRD: a score that is read as how hard each record is to forget, and unlearning that draws by it.

Paper
-----
Feng, Li, Wang, Liu, Zhang, Chen: *A Neuro-inspired Interpretation of Unlearning in LLMs through Sample-level Unlearning
Difficulty*, arXiv 2504.06658 (2025). Its formulas were not at hand beyond abstract, reviews and one re-implementation
on top of OpenUnlearning: the ratio below is rebuilt from these, and no number of the paper is claimed.

Problem
-------
With P_t(theta) = log p_theta(x_t | x_<t) and weight noise delta,

    MRD(x; theta) = | E_{delta ~ N(0, sigma^2 I)} sum_t (P_t(theta) - P_t(theta + delta)) / P_t(theta) |

is small where a memory survives noise, which is read as hard to remove. Records to forget are drawn with
``p_i = MRD_i^tau / sum_j MRD_j^tau`` while any unlearning loss is minimised:

    gamma * loss_forget(theta; i ~ p) + alpha * loss_retain(theta; uniform)

Algorithm
---------
1. score every record to forget at the current weights (`upright.language.difficulty`)
2. turn scores into sampling weights (`upright.language.sampling`)
3. one epoch of the base loss: as many draws with replacement as there are records, each with a retain record beside it
   (`upright.language.trainer`)
4. score again every ``refresh`` epochs, and go on until the epochs are over

Shapes
------
N records to forget, T tokens, K pairs of probes, P parameters; scores and weights have shape (N,).

Deviations
----------
D1. ``mode="recommended"`` (default) estimates by antithetic pairs with noise in proportion to each tensor's size, and
    adds pairs until two halves rank alike. ``mode="paper"`` is the plain mean of eight draws with the absolute value
    outside; ``mode="official"`` is the re-implementation's mean of absolute values at sigma = 1e-5, K = 8 (there is no
    official code): that measures the gradient's norm, not curvature.
D2. Scores sum over answer tokens by default (``scope``); the re-implementation went over to those of the prompt too.
D3. ``tau``, ``floor``, ``per_token`` and hard records more often (``tau`` below 0) are ours; published is tau = 1
    without a floor. Weights change little while records are forgotten, so easy records are drawn more often throughout
    rather than first.
D4. Weights are refreshed inside one training run: optimiser and schedule go on. The re-implementation starts a new
    process, and with it a new optimiser, after each epoch.
D5. The stream of drawn indices is a function of seed, epoch and weights alone, so a resumed run draws what an
    uninterrupted one does. The re-implementation draws from a generator without a seed.
D6. sigma, K and the refresh of the paper are not known. Our sigma is the largest at which the second-order law holds on
    small models, some of which were taught records of TOFU; K follows from the ranking; the refresh is a guess.
D7. The tiny model's utility has the three retain parts alone: it knows no real authors and no facts about the world.
D8. A mode changes the estimator alone. The re-implementation also sums over all tokens, refreshes every epoch of 5,
    holds |P| at 1e-6 from 0, and trains without clipping on a model of three billion weights; ``mode="paper"`` keeps
    noise in proportion to each tensor, where the definition has one sigma.

Cost
----
2 K passes over the records a scoring with two draws of noise each, against two passes (forget and retain) forward and
backward an epoch; memory: the model and one copy of it (in place), or a tenth more than the model (by hooks).
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import (
    Arm,
    Config,
    InputError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Run,
    Task,
    method,
    stream,
)
from upright.declare import Curve, Front, Histogram, Intervals, Noted, Path, Scatter, Signed
from upright.lazy import LazyModule

if TYPE_CHECKING:
    import torch

    from upright.language import difficulty as difficulties
    from upright.language import effort as efforts
    from upright.language import sampling as samplers
    from upright.language.difficulty import Difficulty, mrd, score_difficulty
    from upright.language.encoding import Encoded
    from upright.language.sampling import MRDSampler
else:
    torch = LazyModule("torch")
    difficulties = LazyModule("upright.language.difficulty")
    efforts = LazyModule("upright.language.effort")
    samplers = LazyModule("upright.language.sampling")

__all__ = ["Difficulty", "MRDConfig", "MRDSampler", "Unlearned", "mrd", "run", "score_difficulty"]

Array = NDArray[np.float64]
THIRDS = ("hard", "middle", "easy")
_CHOSEN_BY = ("forget_gap", "forget_probability", "retain_probability", "retain_rouge_l", "retain_truth_ratio")


class MRDConfig(Config):
    """Scoring, sampling and the base loss."""

    loss: Literal["ga", "grad_diff", "npo", "jensun", "pdu", "simnpo", "wga", "satimp", "ce_u"] = "npo"
    """Base loss of the records to forget; `ga` has no retain loss, `grad_diff` is gradient ascent with one."""
    beta: PositiveFloat | None = None
    """Factor inside `npo` (0.1), `simnpo` (4.5) and `wga` (1); none takes the published one."""
    gamma: NonNegativeFloat = 1.0
    """Weight of the forget loss."""
    alpha: NonNegativeFloat = 1.0
    """Weight of the retain loss, the ordinary training loss of kept records."""
    sampling: Literal["mrd", "loss", "length", "random", "shuffle"] = "mrd"
    """What a record's chance of being drawn is proportional to: MRD, its loss per token, its length, the MRD of another
    record at random; or ordinary shuffling, each record once an epoch."""
    tau: float = 1.0
    """Power of that quantity: 0 draws uniformly, below 0 draws hard records more often."""
    floor: Annotated[float, Range(ge=0, le=1)] = 0.0
    """Share of draws that are uniform whatever the scores say."""
    per_token: bool = False
    """Whether MRD is divided by the number of tokens: a sum grows with length."""
    mode: Literal["recommended", "paper", "official"] = "recommended"
    """Estimator: antithetic pairs, the plain mean, or the mean of absolute values."""
    scope: Literal["answer", "sequence"] = "answer"
    """Tokens that a score sums over."""
    most_probes: PositiveInt = 16
    """Most pairs of noise a scoring."""
    refresh: NonNegativeInt = 2
    """Epochs after which records are scored again; 0 scores once."""
    epochs: PositiveInt = 10
    """Passes of as many draws as there are records to forget."""
    batch_size: PositiveInt = 8
    """Records to forget an update; as many kept ones beside them."""
    learning_rate: PositiveFloat = 3e-4
    """Of AdamW, after a warm-up over the first epoch, then linear to 0."""
    weight_decay: NonNegativeFloat = 0.01
    """Of AdamW."""
    lora: NonNegativeInt = 0
    """Rank of an adapter that is trained in the place of the weights and then joined with them; 0 trains these."""
    effort: bool = False
    """Whether to count updates until each record alone is forgotten, by the loss per token and by that of the whole
    answer: the check whether MRD predicts effort."""
    effort_rate: PositiveFloat = 0.003
    """Learning rate of those updates, plain gradient steps; divided by the mean number of tokens for whole answers."""
    serve: Literal["unlearned", "original", "reference"] = "unlearned"
    """Which model an arm returns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.tau):  # before a model is taught, not after
            raise InputError(f"tau = {self.tau}", "a finite number", "0 is uniform, 1 is proportional")
        if self.lora and self.refresh and self.sampling in ("mrd", "random"):
            got = f"lora = {self.lora} with refresh = {self.refresh}"
            raise InputError(got, "refresh = 0: noise on an adapter is not noise on the weights", "set refresh to 0")
        if self.beta is not None and self.loss not in ("npo", "simnpo", "wga"):
            raise InputError(f"beta with loss = {self.loss!r}", "beta with npo, simnpo or wga", "leave beta out")


@dataclasses.dataclass(frozen=True, eq=False)
class Unlearned:
    """A model after unlearning, and what is known of the forgotten records.

    Parameters
    ----------
    model : PreTrainedModel
    difficulty : mapping of record id to str
        Third of the scores: hard, middle, easy.
    values : mapping of metric to mapping of record id to float
    """

    model: Any
    difficulty: Mapping[str, str]
    values: Mapping[str, Mapping[str, float]]


def scoring(config: MRDConfig, seed: int) -> dict[str, Any]:
    """Return the options of `score_difficulty` that a mode stands for."""
    common = {"scope": config.scope, "seed": stream(seed, "probes"), "engine": "inplace", "batch_size": 32}
    if config.mode == "official":
        return {**common, "estimator": "mean_abs", "sigma": 1e-5, "probes": 8, "check_scaling": False}
    if config.mode == "paper":
        return {**common, "estimator": "plain", "probes": 8, "check_scaling": False}
    return {**common, "estimator": "antithetic", "probes": "auto", "most_probes": config.most_probes}


def thirds(scores: Array) -> list[str]:
    """Return hard, middle or easy for each score: the lowest third is hard, ties go by place."""
    place = np.empty(len(scores), dtype=np.int64)
    place[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return [THIRDS[3 * p // len(scores)] for p in place]


def _before(t: Any, config: MRDConfig, run: Run, forget: list[Encoded]) -> dict[str, Any]:
    """Score the records at the original weights, once for all arms."""

    def make() -> dict[str, Any]:
        model, _ = t.model(run, "original")
        found = difficulties.score_difficulty(model, forget, **scoring(config, run.seed))
        return {
            "mrd": torch.from_numpy(found.mrd),
            "nll": torch.from_numpy(found.nll),
            "tokens": torch.from_numpy(np.asarray(found.tokens, dtype=np.int64)),
            "standard_error": torch.from_numpy(found.standard_error),
            "facts": found.as_dict(),
            "warnings": list(found.warnings),
        }

    key = {k: config.as_dict()[k] for k in ("mode", "scope", "most_probes")}
    return run.shared("difficulty", key, make)


def _effort(t: Any, config: MRDConfig, run: Run, forget: list[Encoded]) -> dict[str, Array]:
    """Count updates of each record alone, once for all arms; NaN where the level of the reference was not reached."""
    per_token = float(np.mean([one.answer_length for one in forget]))
    rates = {"effort": config.effort_rate, "effort_sum": config.effort_rate / per_token}  # equal for a mean answer

    def make() -> dict[str, Any]:
        model, _ = t.model(run, "original")
        levels = score_nll(t, run, "reference")
        with run.progress(2 * len(forget), "effort of each record") as advance:
            return {
                name: torch.from_numpy(
                    efforts.updates_to_forget(
                        model,
                        forget,
                        levels,
                        learning_rate=rate,
                        reduce="sum" if name == "effort_sum" else "mean",
                        advance=advance,
                    )
                )
                for name, rate in rates.items()
            }

    found = run.shared("effort", {"rate": config.effort_rate}, make)
    return {name: np.asarray(found[name].numpy()) for name in rates}


def score_nll(t: Any, run: Run, which: Literal["original", "reference"]) -> Array:
    """Return the loss per token of every record to forget under one of the task's models."""
    return np.asarray(t.speaker(t.model(run, which)[0], run).losses(t.sets(run).forget))


def sizes(config: MRDConfig, run: Run, mrd: Array, nll: Array, tokens: NDArray[np.int64]) -> Array:
    """Return what a record's chance of being drawn is a power of (step 2), by the arm's ``sampling``."""
    own = mrd / tokens if config.per_token else mrd
    if config.sampling == "loss":
        return nll
    if config.sampling == "length":
        return np.asarray(tokens, dtype=np.float64)
    if config.sampling == "random":  # the same concentration as MRD's, on other records, at every refresh
        return np.asarray(own[run.rng("placebo", "difficulty").permutation(len(own))])
    return own


def unlearn(t: Any, config: MRDConfig, run: Run, forget: list[Encoded], before: Mapping[str, Any]) -> Any:
    """Train the original model until it forgets (steps 2 to 4), and return it."""
    from upright.language.remedies import with_adapter
    from upright.language.trainer import UnlearnTrainer, quiet_arguments, train_quietly

    model, tokenizer = t.model(run, "original")
    model = with_adapter(model, config.lora, stream(run.seed, "unlearn") % 2**31)
    tokens = before["tokens"].numpy()

    def rescored(now: Any) -> Array:
        if config.sampling == "length":
            return sizes(config, run, np.ones(len(tokens)), np.ones(len(tokens)), tokens)
        found = difficulties.score_difficulty(now, forget, **scoring(config, run.seed))
        return sizes(config, run, found.mrd, found.nll, tokens)

    weighted: dict[str, Any] = (
        {}
        if config.sampling == "shuffle"
        else {
            "scoring": rescored,
            "difficulty": sizes(config, run, before["mrd"].numpy(), before["nll"].numpy(), tokens),
        }
    )
    with tempfile.TemporaryDirectory() as folder, run.progress(config.epochs, run.arm) as advance:
        arguments = quiet_arguments(
            folder,
            loss=config.loss,
            gamma=config.gamma,
            alpha=config.alpha,
            loss_options={} if config.beta is None else {"beta": config.beta},
            sampling="shuffle" if config.sampling == "shuffle" else "mrd",
            tau=config.tau,
            floor=config.floor,
            refresh=0 if config.sampling == "shuffle" else config.refresh,
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=-(-len(forget) // config.batch_size),
            seed=stream(run.seed, "unlearn"),
        )
        trainer = UnlearnTrainer(
            model,
            forget,
            t.encoded(run, "retain"),
            args=arguments,
            processing_class=tokenizer,
            callbacks=[_path(t, run, advance)],
            **weighted,
        )
        train_quietly(trainer)
    _notes(run, config, trainer)
    return (model.merge_and_unload() if config.lora else model).eval()


def _path(t: Any, run: Run, advance: Any) -> Any:
    """Return a callback that notes, after each epoch, what is forgotten and what is kept, on validation records."""
    from transformers import TrainerCallback

    noted: list[dict[str, float]] = []
    scored = t.scored(run, "valid")
    chosen = (scored.forget, scored.retain)

    class Path(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            speaker = t.speaker(model, run)
            forget, retain = (float(np.exp(-speaker.losses(part)).mean()) for part in chosen)
            noted.append({"epoch": len(noted) + 1, "updates": state.global_step, "forget": forget, "retain": retain})
            run.log(state.global_step, **{"valid/forget_probability": forget, "valid/retain_probability": retain})
            run.note("path", noted)
            advance(1)

    return Path()


def _notes(run: Run, config: MRDConfig, trainer: Any) -> None:
    """Note how weights moved over the scorings: drift of the ranking and effective sample size."""
    from scipy.stats import spearmanr

    rows, history = [], trainer.schedule.history
    for epoch, score in history:
        p = samplers.sampling_weights(score, tau=config.tau, floor=config.floor)
        constant = np.ptp(score) == 0 or np.ptp(history[0][1]) == 0
        size = samplers.effective_sample_size(p)
        rows.append(
            {
                "epoch": int(epoch),
                "effective_sample_size": size,
                "share": size / len(p),
                "records": len(p),
                "rank_correlation": None if constant else float(spearmanr(history[0][1], score).statistic),
            }
        )
    run.note("weights", rows)
    for text in (trainer.stopped, trainer.unmoved):
        if text:
            run.warn(f"arm {run.arm}: {text}")


def _has_reference(t: Any) -> str:
    return "" if t.has_reference else "there is no model that never saw the records: set task.reference"


_ONLY = ("remedy",)
_REPORT = [
    Front("What is forgotten against what is kept"),
    Signed(
        "Rank correlation with updates until forgotten, ascending the loss per token",
        "rank_correlation:*~effort rank_correlation:*~effort|answer_tokens",
        ["A score that predicts effort lies left of zero and outside the grey band: a small score is read as hard."],
        arms=_ONLY,
    ),
    Signed(
        "The same, ascending the loss of the whole answer",
        "rank_correlation:*~effort_sum rank_correlation:*~effort_sum|answer_tokens",
        arms=_ONLY,
    ),
    Scatter(
        "MRD and updates until forgotten, record by record",
        names={"mrd": "MRD", "effort": "updates until forgotten"},
    ),
    Histogram("MRD of the forgotten records", "mrd", x="MRD before unlearning"),
    Signed(
        "Rank correlation of MRD with what is at hand",
        "rank_correlation:mrd~answer_tokens rank_correlation:mrd~nll_before",
        arms=_ONLY,
    ),
    Noted(
        "How records were scored",
        "scores",
        [
            "Where two halves of the draws agree by less than 0.9, part of the ranking is noise. Scores at twice the "
            "noise are four times as large where the expansion holds; two times for the mean of absolute values."
        ],
        names={
            "estimator": "estimator",
            "sigma": "noise",
            "probes": "pairs of draws",
            "passes": "passes over the records, one scoring",
            "reliability": "reliability, two halves of the draws",
            "scaling": "scores at twice the noise",
            "clamped": "tokens clamped, too close to certain",
        },
        arms=_ONLY,
    ),
    Curve(
        "Ranking over the scorings",
        "weights",
        [
            "At 1 the records stand in the order of the first scoring. Where the line falls, weights of the first "
            "scoring would have drawn by an old ranking."
        ],
        y="rank_correlation",
        arms=_ONLY,
    ),
    Curve(
        "Concentration of the draws",
        "weights",
        [
            "Effective sample size over records. At 1 every record is drawn alike; the fewer records get the draws, "
            "the lower the line."
        ],
        y="share",
        arms=_ONLY,
    ),
    Path(
        "What is forgotten against what is kept, by epoch",
        "path",
        [
            "Probabilities of answers of validation records. The aim is the model that never saw the records: lower "
            "than it is not better."
        ],
        x="retain",
        y="forget",
    ),
    Intervals(
        "Distance from the model that never saw them, by third",
        "mean:forget_gap:difficulty=*",
        ["Thirds of the scores within each seed; a small score is read as hard. 0 is the aim."],
        join="group",
    ),
]
_LIMITS = [
    "Approximate unlearning gives no guarantee. A gap of 0 to a model that never saw the records, in probability, is "
    "no proof that nothing is left: run the membership attacks and the robustness pack.",
    "A score says which records were to be forgotten. This page has no score with a name; keep units.parquet as you "
    "keep the records.",
    "The score is a property of record and model. It drifts as the model changes, and whoever writes records can write "
    "ones with a chosen score.",
    "What effort means depends on the learning rate and on the level that counts as forgotten; one record alone is not "
    "a batch.",
]


@method(
    "mrd",
    task="upright.tasks.forget:Forget",
    config=MRDConfig,
    title="MRD",
    mends="unlearning that is blind to how hard each record is",
    neutral=[{"tau": 0.0}],
    arms=[
        Arm("uniform", "baseline", {"tau": 0.0, "refresh": 0}, "uniform draws"),
        Arm("mrd", "remedy", {}, "draws by MRD"),
        Arm("loss", "trivial", {"sampling": "loss"}, "draws by the loss"),
        Arm("length", "trivial", {"sampling": "length", "refresh": 0}, "draws by length"),
        Arm("random", "placebo", {"sampling": "random"}, "draws by the MRD of another record"),
        Arm("squared", "rival", {"tau": 2.0}, "draws by the square of MRD"),
        Arm("hard_first", "rival", {"tau": -1.0}, "draws by 1 / MRD"),
        Arm("shuffle", "rival", {"sampling": "shuffle", "refresh": 0}, "ordinary shuffling"),
        Arm("original", "anchor", {"serve": "original"}, "no unlearning"),
        Arm("retrain", "anchor", {"serve": "reference"}, "taught the kept records alone", unfit=_has_reference),
    ],
    statistics=[
        "mean:forget_gap",
        "mean:forget_loss_gap",
        "mean:forget_gap:difficulty",
        "ks_distance:forget_truth_probability",
        "forget_quality:forget_truth_probability",
        "utility:retain",
        "mean:forget_probability",
        "mean:forget_rouge_l",
        "mean:exact_memorisation",
        "mean:extraction_strength",
        "mean:retain_probability",
        "mean:general_loss",
        "mean:retain_rouge_l",
        "mean:retain_truth_ratio",
        "membership:mia_loss",
        "membership:mia_min_k_plus_plus",
        *(
            f"rank_correlation:{x}~{y}"
            for y in ("effort", "effort_sum")
            for x in ("mrd", "mrd_per_token", "answer_tokens", "nll_before")
        ),
        *(f"rank_correlation:{x}~{y}|answer_tokens" for y in ("effort", "effort_sum") for x in ("mrd", "nll_before")),
        "rank_correlation:mrd~answer_tokens",
        "rank_correlation:mrd~nll_before",
    ],
    primary="mean:forget_gap",
    cost="utility:retain",
    presets={
        "quick": {
            "method": {"epochs": 6, "learning_rate": 1e-3},
            "task": {
                "authors": 8,
                "forget_authors": 2,
                "epochs": 25,
                "learning_rate": 6e-3,
                "hidden": 64,
                "layers": 2,
                "vocabulary": 1024,
                "scored_retain": 40,
                "scored_holdout": 40,
            },
        },
        "full": {"method": {}, "task": {}},
    },
    tune={"learning_rate": [1e-4, 3e-4, 1e-3]},
    report=_REPORT,
    limits=_LIMITS,
    demo={
        "data": "tofu",
        "settings": {"effort": True},
        "arms": ["uniform", "mrd", "loss", "random", "original", "retrain"],
        "study": "mrd-tofu-npo",
    },
    tiny={"epochs": 2, "most_probes": 2, "learning_rate": 1e-3, "refresh": 1, "effort": True, "effort_rate": 0.3},
)
def run(task: Task, config: MRDConfig, run: Run) -> Unlearned:
    """Score the records, and return the model that an arm's sampling unlearns."""
    t: Any = task
    if config.serve == "reference" and not t.has_reference:
        raise InputError("arm retrain without a reference model", "task.reference = FOLDER", "leave the arm out")
    forget, ids = t.encoded(run, "forget"), t.ids(run)
    before = _before(t, config, run, forget)  # step 1
    run.note("scores", before["facts"])
    for text in before["warnings"]:
        run.warn(text)
    tokens = before["tokens"].numpy()
    columns = {
        "mrd": before["mrd"].numpy(),
        "mrd_per_token": before["mrd"].numpy() / tokens,
        "answer_tokens": np.array([float(one.answer_length) for one in forget]),
        "nll_before": before["nll"].numpy(),
    }
    if config.effort and t.has_reference:
        columns |= _effort(t, config, run, forget)
    own = config.serve == "unlearned"
    model = unlearn(t, config, run, forget, before) if own else t.model(run, config.serve)[0]
    found = Unlearned(
        model,
        dict(zip(ids, thirds(columns["mrd"]), strict=True)),
        {name: dict(zip(ids, map(float, column), strict=True)) for name, column in columns.items()},
    )
    seen = t.score(found, "valid", run).values
    known = [k for k in _CHOSEN_BY if k in seen and np.isfinite(seen[k]).any()]
    run.note("valid", {k: float(np.nanmean(seen[k])) for k in known})
    return found


def __getattr__(name: str) -> Any:
    """Return what a native door is made of, loaded when it is asked for."""
    home = {
        "Difficulty": difficulties,
        "mrd": difficulties,
        "score_difficulty": difficulties,
        "MRDSampler": samplers,
    }.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)
