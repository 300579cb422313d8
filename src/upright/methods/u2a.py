r"""U2A: which negative examples to unlearn, how strongly, and which to leave alone, by what each does to alignment.

Paper
-----
*Unlearning to align*, bi-level weighting of negatives. Formulas were read from the authors' code and from reviews; its
tables were not at hand, and no number of the paper is claimed.

Problem
-------
N negatives (prompt, bad answer) with unlearning losses l_i, and a few preference pairs (prompt, chosen, rejected) that
only measure::

    inner   theta*(w) = argmin_theta  1/N sum_i w_i l_i(theta) + retain(theta)
    outer   min_w J(theta*(w)),   J = mean over pairs of -log sigmoid(beta margin),
            margin = log p/p_0 (chosen) - log p/p_0 (rejected),   p_0 the model at the start

Algorithm
---------
1. gradients of J, one a block of whole prompts                         `upright.language.alignment`
2. v_k = H^-1 grad J_k, H the Hessian of the inner loss or 1            `upright.maths.bilevel.solve`
3. s_ik = <v_k, grad l_i>, for all negatives and blocks in one pass     `upright.language.directions`
4. s_i = -dJ/dw_i: above 0, unlearning i lowers J; the jackknife over blocks gives its interval
5. once: negatives with s_i at or below 0 are left alone. Then w_i exp(eta s_i / sd s), mean 1
                                                                        `upright.language.negatives`
6. unlearning with these weights                                        `upright.language.trainer`
7. a round is kept where neither the implicit nor the plain ranking accuracy of validation pairs fell; then again from 1

Shapes
------
N negatives, M pairs, K blocks, P trainable parameters; scores (N, K), weights (N,).

Deviations
----------
D1. Weights grow with s_i. The published step multiplies by ``exp(-eta s_i)``, the wrong sign: it gives weight to what
    it should leave alone (``mode="official"``).
D2. Weights act, record by record, in every loss and every split into micro-batches. There, GradDiff is trained without
    them, and NPO is a function of the mean over a batch (``mode="official"``).
D3. The retain loss stands in place of ``lambda / T sum ||theta_t - theta_0,t||^2``; scores have no such term either.
D4. eta counts standard deviations of the scores, so that it means the same for every loss and model.
D5. A round is undone when either accuracy falls: J alone may fall while held-out pairs rank worse.
D6. Where no score can be told from 0 at a false discovery rate of 5 %, or all have one sign, the weights are uniform.
D7. Selection is by sign or by the k largest, not greedy and without a random first record.

Cost
----
A round of scoring: a forward and a backward pass over the pairs, and one over the pool, whatever K is; the weights of
the model once more for each block.

Guarantee
---------
To first order in a plain gradient step, and where H is exact, one with weights w lowers J by ``sum_i w_i s_i`` in
proportion. It says nothing of larger steps: `run` notes what was predicted and what came of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
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
from upright.declare import Front, Intervals, Noted, Signed
from upright.lazy import LazyModule

if TYPE_CHECKING:
    import torch

    from upright.language import alignment, directions, negatives, objectives, sampling
    from upright.language.negatives import U2AWeights, u2a_weights
    from upright.maths import bilevel
else:
    torch = LazyModule("torch")
    alignment = LazyModule("upright.language.alignment")
    directions = LazyModule("upright.language.directions")
    negatives = LazyModule("upright.language.negatives")
    objectives = LazyModule("upright.language.objectives")
    sampling = LazyModule("upright.language.sampling")
    bilevel = LazyModule("upright.maths.bilevel")

__all__ = ["Aligned", "U2AConfig", "U2AWeights", "run", "u2a_weights"]

Array = NDArray[np.float64]


class U2AConfig(Config):
    """Scores, weights and training."""

    loss: Literal["ga", "grad_diff", "npo", "simnpo", "wga"] = "npo"
    """Unlearning loss of the negatives; `ga` has no retain loss."""
    beta: PositiveFloat | None = None
    """Factor inside `npo` (0.1), `simnpo` (4.5) and `wga` (1); none takes the published one."""
    gamma: NonNegativeFloat = 1.0
    """Weight of the forget loss."""
    alpha: NonNegativeFloat = 1.0
    """Weight of the retain loss, the ordinary training loss of kept text."""
    weighting: Literal["u2a", "loss", "length", "uniform"] = "u2a"
    """What a weight is made of: the score; or, for as many negatives as U2A takes, the largest loss or length, each
    counting alike; or nothing."""
    change: Literal["none", "permuted", "flipped"] = "none"
    """Whether U2A's weights are given to other records, drawn at random, or made of scores of the other sign."""
    how: Literal["products", "forwards", "backward"] = "products"
    """How scores are computed, see `upright.language.directions`."""
    solve: Literal["identity", "neumann", "cg"] = "identity"
    """What stands for the inverse Hessian of the inner loss, see `upright.maths.bilevel.solve`."""
    damping: NonNegativeFloat = 1.0
    """Added to that Hessian; unlearning losses have directions of negative curvature."""
    steps: PositiveInt = 10
    """Products with that Hessian."""
    keep: Literal["positive", "all"] | PositiveInt = "positive"
    """Negatives that are unlearnt: those with a score above 0, that many with the largest, or all."""
    eta: NonNegativeFloat = 1.0
    """Step of the weights, in standard deviations of the scores; 0 weighs what is kept alike."""
    blocks: Annotated[int, Range(ge=2)] = 8
    """Blocks of prompts that the intervals of scores are drawn from."""
    mode: Literal["recommended", "official"] = "recommended"
    """`official` repeats the published code: its sign, its unweighted GradDiff and its mean NPO."""
    train: Literal["unlearn", "dpo", "none"] = "unlearn"
    """Whether negatives are unlearnt, the pairs are trained on by DPO, or the model stays as it is."""
    rounds: PositiveInt = 3
    """Of scoring and training."""
    gate: bool = True
    """Whether a round after which validation pairs rank worse is undone, and the last."""
    epochs: PositiveInt = 8
    """Passes over the negatives a round."""
    batch_size: PositiveInt = 16
    """Negatives an update; as many kept records beside them."""
    learning_rate: PositiveFloat = 3e-5
    """Of AdamW, with a warm-up over a tenth of a round, then linear to 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    groups: NonNegativeInt = 0
    """Groups of 16 negatives that are also unlearnt alone, from the largest scores to the smallest: what was predicted
    of each against what came of it. 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and self.loss not in ("npo", "simnpo", "wga"):
            raise InputError(f"beta with loss = {self.loss!r}", "beta with npo, simnpo or wga", "leave beta out")


@dataclasses.dataclass(frozen=True, eq=False)
class Aligned:
    """The model that an arm returns.

    Parameters
    ----------
    model : PreTrainedModel
    """

    model: Any


# -- scores and weights -----------------------------------------------------------------------------------------------


def _options(config: U2AConfig) -> dict[str, Any]:
    return {} if config.beta is None else {"beta": config.beta}


def _scored(t: Any, config: U2AConfig, run: Run, model: Any, start: Any, own: Array | None) -> U2AWeights:
    """Return scores and weights at a model (steps 1 to 5); those of the start model once for all arms."""
    names = ("loss", "how", "solve", "damping", "steps", "gamma", "alpha", "keep", "eta", "blocks")
    given = {name: getattr(config, name) for name in names} | {"options": _options(config)}

    def make() -> U2AWeights:
        return negatives.u2a_weights(
            model,
            t.speaker(model, run).tokenizer,
            t.pool(run),
            t.pairs(run, "objective"),
            **given,
            retain=t.retain(run),
            seed=stream(run.seed, "blocks"),
            reference=start,
            weight=own,
            batch_size=32,
        )

    def held() -> dict[str, Any]:
        found = vars(make())
        tensors = {name: torch.from_numpy(x) for name, x in found.items() if isinstance(x, np.ndarray)}
        return {**tensors, "residual": found["residual"], "warnings": list(found["warnings"])}

    if own is not None:
        return make()
    kept: dict[str, Any] = run.shared("scores", given, held)
    kept |= {name: x.numpy() for name, x in kept.items() if isinstance(x, torch.Tensor)}
    return negatives.U2AWeights(tuple(r.id for r in t.pool(run)), **(kept | {"warnings": tuple(kept["warnings"])}))


def _weighed(t: Any, config: U2AConfig, run: Run, start: Any, found: U2AWeights, own: Array | None) -> Array:
    """Return the weights of an arm in a round, from scores and from its weights of the round before."""
    n, score = len(found.score), found.score
    if config.weighting in ("loss", "length"):
        if own is not None:
            return own
        by_loss = config.weighting == "loss"
        size = _losses(t, run, start) if by_loss else np.array([one.answer_length for one in t.encoded(run, "pool")])
        order = np.argsort(-size, kind="stable")
        return sampling.mean_one(np.isin(np.arange(n), order[: found.keep.sum()]), n)
    if config.mode == "official":  # selects by the right sign, then weighs by the wrong one
        if own is not None:
            return sampling.mean_one(bilevel.exponentiated_gradient(own, score / score.std(), config.eta), n)
        chosen = negatives.select_negatives(score, config.keep)
        return sampling.mean_one(chosen if chosen.any() else found.keep, n)
    if config.change == "flipped":
        return negatives.weigh_scores(-score, -found.certain, config.keep, config.eta, own)[0]
    return found.weight


def _losses(t: Any, run: Run, model: Any) -> Array:
    """Return the loss per token of every negative."""
    return np.asarray(t.speaker(model, run).losses(t.pool(run)))


# -- rounds -----------------------------------------------------------------------------------------------------------


def _ranked(t: Any, model: Any, run: Run) -> dict[str, float]:
    """Return both accuracies of validation pairs."""
    values = t.score(Aligned(model), "valid", run).values
    return {name: float(np.nanmean(values[name])) for name in ("ranking_accuracy", "implicit_accuracy")}


def _objective(t: Any, model: Any, run: Run) -> float:
    """Return J over the pairs that are steered by."""
    return alignment.objective(t.read(model, run, "objective"), t.at_start(run, "objective"))


def _slope(t: Any, model: Any, run: Run) -> dict[str, torch.Tensor]:
    """Return the gradient of J over all pairs that are steered by."""
    (chosen, rejected), start = t.encoded_pairs(run, "objective"), t.at_start(run, "objective")
    every, pad = [np.arange(len(chosen))], t.speaker(model, run).pad
    found = alignment.block_gradients(model, chosen, rejected, start, blocks=every, batch_size=32, pad=pad).directions
    return {name: v[0] for name, v in found.items()}


def _unlearn(t: Any, config: U2AConfig, run: Run) -> Any:
    """Unlearn in rounds (steps 1 to 7) and return the model of the last one that was kept."""
    model, start = t.model(run)[0], t.model(run)[0]
    held, was, rows = _ranked(t, model, run), _objective(t, model, run), []
    found, first, weight = None, None, None
    order = run.rng("placebo", "weights").permutation(len(t.pool(run)))
    for turn in range(config.rounds):
        if config.weighting == "u2a" or (config.weighting != "uniform" and not turn):
            found = _scored(t, config, run, model, start, weight)
            first = first or found
        if found is not None:
            weight = _weighed(t, config, run, start, found, weight)
        before = {name: p.detach().clone() for name, p in directions.trainable(model).items()}
        slope = _slope(t, model, run)
        mixed = weight[order] if weight is not None and config.change == "permuted" else weight
        _train(t, config, run, model, start, turn, mixed)  # step 6
        moved = {name: p.detach() - before[name].to(p) for name, p in directions.trainable(model).items()}
        predicted = sum(float((moved[name] * v.to(moved[name])).sum(dtype=torch.float64)) for name, v in slope.items())
        now, value = _ranked(t, model, run), _objective(t, model, run)
        kept = not config.gate or all(now[name] >= held[name] for name in held)  # step 7
        rows.append({"round": turn + 1, "predicted": predicted, "realised": value - was, **now, "kept": float(kept)})
        if not kept:
            with torch.no_grad():
                for name, p in directions.trainable(model).items():
                    p.copy_(before[name])
            break
        held, was = now, value
    run.note("rounds", rows)
    run.note("gate", {"rounds_kept": float(sum(row["kept"] for row in rows)), **held})
    if first is not None and config.mode == "recommended" and (config.weighting, config.change) == ("u2a", "none"):
        _note_scores(run, first, _losses(t, run, model) - _losses(t, run, start))
        if config.groups:
            _note_groups(t, config, run, start)
    return model.eval()


def _note_scores(run: Run, found: U2AWeights, rose: Array) -> None:
    """Note scores in order with their intervals, what is certain of them, and what quartiles of the weights hold."""
    order, n = np.lexsort((-found.score, -found.weight)), len(found.score)
    by_score = np.argsort(-found.score, kind="stable")
    places = np.unique(np.linspace(0, n - 1, 24).astype(int)).tolist()
    rows = [(k + 1, found.score[i], *found.interval[i]) for k, i in ((k, by_score[k]) for k in places)]
    run.note("scores", [dict(zip(("place", "score", "low", "high"), row, strict=True)) for row in rows])
    columns = {"weight": found.weight, "score": found.score, "certain": found.certain != 0, "rose": rose}
    parts = [own for own in np.array_split(order, 4) if len(own)]
    quartiles = [{name: float(x[own].mean()) for name, x in columns.items()} for own in parts]
    run.note("quartiles", [{"quartile": k + 1, **row} for k, row in enumerate(quartiles)])
    facts = {
        "negatives": n,
        "kept": int(found.keep.sum()),
        "certain_to_help": float((found.certain > 0).mean()),
        "certain_to_hurt": float(found.veto.mean()),
        "undecided": float((found.certain == 0).mean()),
        "effective_share": found.effective_sample_size / n,
    }
    run.note("weights", facts | ({} if np.isnan(found.residual) else {"residual": found.residual}))
    for text in found.warnings:
        run.warn(f"arm {run.arm}: {text}")


def _note_groups(t: Any, config: U2AConfig, run: Run, start: Any) -> None:
    """Unlearn groups of 16 negatives alone, from the start, and note what was predicted of J and what came of it."""
    score, rows = _scored(t, config, run, start, start, None).score, []
    parts = np.array_split(np.argsort(-score, kind="stable"), max(1, len(score) // 16))
    was, one = _objective(t, start, run), config.replace(epochs=1, mode="recommended")
    for k in np.unique(np.linspace(0, len(parts) - 1, config.groups).astype(int)).tolist():
        model = t.model(run)[0]
        _train(t, one, run, model, start, 0, np.isin(np.arange(len(score)), parts[k]).astype(np.float64))
        change = _objective(t, model, run) - was
        rows.append({"group": k + 1, "predicted": -float(score[parts[k]].mean()), "realised": change})
    run.note("groups", rows)


def _train(t: Any, config: U2AConfig, run: Run, model: Any, start: Any, turn: int, weight: Array | None) -> None:
    """Unlearn the pool in place for one round, or train on the pairs by DPO with as many updates as all rounds have."""
    from upright.language.trainer import UnlearnTrainer, quiet_arguments, train_quietly

    kind: type[UnlearnTrainer] = UnlearnTrainer
    more: dict[str, Any] = {"weights": weight}
    forget, loss, options = t.encoded(run, "pool"), str(config.loss), _options(config)
    updates = config.epochs * -(-len(forget) // config.batch_size)
    if config.train == "dpo":
        chosen, forget = t.encoded_pairs(run, "objective")
        updates, loss, options = config.rounds * updates, "idk_dpo", {"beta": alignment.BETA}
        more = {"alternatives": chosen}
    elif config.mode == "official" and loss == "npo":
        kind = _mean_npo()
    elif config.mode == "official" and loss == "grad_diff" and weight is not None:
        more = {"weights": weight > 0}
    with tempfile.TemporaryDirectory() as folder:
        arguments = quiet_arguments(
            folder,
            loss=loss,
            loss_options=options,
            gamma=config.gamma,
            alpha=config.alpha,
            max_steps=updates,
            warmup_steps=updates // 10,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=stream(run.seed, "unlearn", turn),
        )
        trainer = kind(
            model,
            forget,
            t.encoded(run, "retain"),
            args=arguments,
            processing_class=t.speaker(model, run).tokenizer,
            reference=start,
            **more,
        )
        train_quietly(trainer)
    model.eval()


def _mean_npo() -> Any:
    """Return a trainer whose NPO is of the mean loss per token over the batch, times the mean weight, as published."""
    from upright.language.trainer import UnlearnTrainer

    class MeanNPO(UnlearnTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            plain, counts = objectives.objective_of("grad_diff"), inputs["counts"]
            said, kept = objectives.record_losses(plain, model, inputs, sums={}, speaking=contextlib.nullcontext)
            weight = inputs.get("weights", torch.ones_like(said))
            tokens = (inputs["forget"]["labels"] != -100).sum(1) * counts * (weight > 0)  # others are in no batch there
            then = self.reference.sums["forget"].to(said.device)[inputs["index"]]
            gap = ((said * tokens).sum() - (then * (tokens > 0)).sum()) / tokens.sum().clamp(min=1)
            beta = self.objective.options["beta"]
            whole = (weight * counts).sum() / counts.sum() * 2 / beta * torch.nn.functional.softplus(beta * gap)
            _, v = objectives.step_weights(plain, inputs)
            held = 0.0 if kept is None else (kept * v).sum() / v.sum()
            return self.objective.gamma * whole.to(said.dtype) + self.alpha * held

    return MeanNPO


# -- declaration ------------------------------------------------------------------------------------------------------

_REPORT = [
    Front("How held-out pairs rank, against what is kept"),
    Signed(
        "Scores of negatives with intervals of each by itself, from the largest down",
        "scores",
        ["Right of 0, unlearning the record lowers the objective, to first order. Intervals that cross 0 are a guess."],
        by=("place",),
        value="score",
        arms=("remedy",),
    ),
    Noted(
        "What is known of the negatives",
        "weights",
        [
            "Certain: the sign of the score holds at a false discovery rate of 5 % over the pool. At an effective "
            "share of 1 every negative counts alike."
        ],
        names={
            "negatives": "negatives",
            "kept": "unlearnt",
            "certain_to_help": "share certain to help",
            "certain_to_hurt": "share certain to hurt",
            "undecided": "share undecided",
            "effective_share": "effective share of the pool",
            "residual": "residual of the solution with the Hessian",
        },
        arms=("remedy",),
    ),
    Noted(
        "Quartiles of the weights",
        "quartiles",
        ["From the largest weights to the smallest; what has no weight should keep its loss."],
        by={"quartile": "quartile"},
        names={
            "weight": "weight",
            "score": "score",
            "certain": "share with a certain sign",
            "rose": "rise of the loss per token",
        },
        arms=("remedy",),
    ),
    Noted(
        "Rounds",
        "rounds",
        [
            "Predicted: the gradient of the objective times the move of the weights. Where the realised change is far "
            "from it, steps are too long for scores to mean much. A round that was not kept was undone."
        ],
        by={"round": "round"},
        names={
            "predicted": "change of the objective, predicted",
            "realised": "realised",
            "ranking_accuracy": "ranking accuracy of validation pairs",
            "implicit_accuracy": "implicit accuracy",
            "kept": "kept",
        },
    ),
    Noted(
        "Groups of 16 negatives unlearnt alone",
        "groups",
        ["From the largest scores to the smallest: the mean score with its sign turned, and what the objective did."],
        by={"group": "group"},
        names={"predicted": "predicted, in units of the score", "realised": "change of the objective"},
        arms=("remedy",),
    ),
    Intervals("Ranking accuracy, by what it is read from", "mean:*accuracy*"),
]
_LIMITS = [
    "Scores hold to first order, at the model where they were taken. How far a step may go they do not say.",
    "Pairs say what is preferred. Few of them, or pairs of another kind than what the model will be asked, choose "
    "other negatives.",
    "Unlearning makes an answer improbable. What the model says instead was not read here: write answers and look.",
    "Ranking accuracy by sums favours short answers; compare it with that of the shorter answer.",
]


@method(
    "u2a",
    task="upright.tasks.align:Align",
    config=U2AConfig,
    title="U2A",
    mends="alignment with negatives only, some of which hurt",
    neutral=[{"eta": 0.0, "keep": "all", "gate": False}],
    arms=[
        Arm("uniform", "baseline", {"weighting": "uniform", "gate": False}, "uniform weights"),
        Arm("u2a", "remedy", {}, "U2A's weights"),
        Arm("gated", "trivial", {"weighting": "uniform"}, "uniform weights, bad rounds undone", simpler=True),
        Arm("loss", "trivial", {"weighting": "loss"}, "largest losses", simpler=True),
        Arm("length", "trivial", {"weighting": "length"}, "longest answers", simpler=True),
        Arm("permuted", "placebo", {"change": "permuted"}, "permuted weights"),
        Arm("flipped", "rival", {"change": "flipped"}, "weights of flipped sign"),
        Arm("dpo", "rival", {"train": "dpo"}, "DPO on the pairs"),
        Arm("official", "rival", {"mode": "official", "gate": False}, "the published code"),
        Arm("original", "anchor", {"train": "none"}, "no unlearning"),
    ],
    statistics=[
        "mean:ranking_accuracy",
        "mean:ranking_accuracy_mean",
        "mean:implicit_accuracy",
        "mean:implicit_margin",
        "mean:length_accuracy",
        "mean:beyond_length",
        "mean:retain_probability",
    ],
    primary="mean:ranking_accuracy",
    cost="mean:retain_probability",
    presets={"quick": {"method": {}, "task": {}}, "full": {"method": {"groups": 6}, "task": {}}},
    tune={"learning_rate": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]},
    report=_REPORT,
    limits=_LIMITS,
    demo={"data": "planted", "settings": {}, "arms": ["uniform", "u2a", "gated", "permuted", "original"]},
    tiny={"rounds": 1, "epochs": 1},
)
def run(task: Task, config: U2AConfig, run: Run) -> Aligned:
    """Return the model that an arm's weights unlearn."""
    t: Any = task
    if config.train == "unlearn":
        model = _unlearn(t, config, run)
    else:
        model = t.model(run)[0]
        if config.train == "dpo":
            _train(t, config, run, model, t.model(run)[0], 0, None)
    run.note("valid", _ranked(t, model, run))
    return Aligned(model)


def __getattr__(name: str) -> Any:
    """Return what the native door is made of, loaded when it is asked for."""
    if name in ("U2AWeights", "u2a_weights"):
        return getattr(negatives, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
