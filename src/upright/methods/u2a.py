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
5. negatives with s_i at or below 0 are left alone; w_i exp(eta s_i / sd s), mean 1
6. unlearning with these weights                                        `upright.language.trainer`
7. a round is kept where neither the implicit nor the plain ranking accuracy of validation pairs fell; then again from 1

Shapes
------
N negatives, M pairs, K blocks, P trainable parameters; scores (N, K), weights (N,).

Deviations
----------
D1. Weights grow with s_i. The published step multiplies by ``exp(-eta s_i)``, the wrong sign: it gives weight to what it
    should leave alone (``mode="official"``).
D2. Weights act, record by record, in every loss and every split into micro-batches. There, GradDiff is trained without
    them, and NPO is a function of the mean over a batch (``mode="official"``).
D3. The retain loss stands in place of ``lambda / T sum ||theta_t - theta_0,t||^2``; scores have no such term either.
D4. eta counts standard deviations of the scores, so that it means the same for every loss and model.
D5. A round is undone when either accuracy falls: J alone may fall while held-out pairs rank worse.
D6. Where no score can be told from 0 at a false discovery rate of 5 %, or all have one sign, the weights are uniform.
D7. Selection is once, by sign or by the k largest, not greedy.

Cost
----
A round of scoring: a forward and a backward pass over the pairs, and one over the pool, whatever K is; the weights of
the model once more for each block.

Guarantee
---------
To first order in the step, and where H is exact, a step with weights w lowers J by ``sum_i w_i s_i`` in proportion. It
says nothing of larger steps: `run` notes what was predicted and what came of it.
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import (
    Arm,
    Config,
    InputError,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Run,
    Task,
    method,
    stream,
)
from upright.declare import Curve, Front, Intervals, Noted
from upright.lazy import LazyModule

if TYPE_CHECKING:
    import torch

    from upright.data import preferences
    from upright.language import alignment, directions, encoding, evaluation, reader, sampling
    from upright.maths import bilevel, resampling
else:
    torch = LazyModule("torch")
    preferences = LazyModule("upright.data.preferences")
    alignment = LazyModule("upright.language.alignment")
    directions = LazyModule("upright.language.directions")
    encoding = LazyModule("upright.language.encoding")
    evaluation = LazyModule("upright.language.evaluation")
    reader = LazyModule("upright.language.reader")
    sampling = LazyModule("upright.language.sampling")
    bilevel = LazyModule("upright.maths.bilevel")
    resampling = LazyModule("upright.maths.resampling")

__all__ = ["U2AConfig", "U2AWeights", "run", "u2a_weights"]

Array = NDArray[np.float64]
Loss = Literal["ga", "grad_diff", "npo", "simnpo", "wga"]
How = Literal["products", "forwards", "backward"]
Solve = Literal["identity", "neumann", "cg"]
Keep = Literal["positive", "all"] | PositiveInt


class U2AConfig(Config):
    """Scores, weights and training."""

    loss: Loss = "npo"
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
    how: How = "products"
    """How scores are computed, see `upright.language.directions`."""
    solve: Solve = "identity"
    """What stands for the inverse Hessian of the inner loss, see `upright.maths.bilevel.solve`."""
    damping: NonNegativeFloat = 1.0
    """Added to that Hessian; unlearning losses have directions of negative curvature."""
    steps: PositiveInt = 10
    """Products with that Hessian."""
    keep: Keep = "positive"
    """Negatives that are unlearnt: those with a score above 0, that many with the largest, or all."""
    eta: NonNegativeFloat = 1.0
    """Step of the weights, in standard deviations of the scores; 0 weighs what is kept alike."""
    blocks: PositiveInt = 8
    """Blocks of prompts that the intervals of scores are drawn from."""
    mode: Literal["recommended", "official"] = "recommended"
    """`official` repeats the published code: its sign, its unweighted GradDiff and its mean NPO, and no gate."""
    train: Literal["unlearn", "dpo", "none"] = "unlearn"
    """Whether negatives are unlearnt, the pairs are trained on by DPO, or the model stays as it is."""
    rounds: PositiveInt = 3
    """Of scoring and training."""
    gate: bool = True
    """Whether a round after which validation pairs rank worse is undone, and the last."""
    epochs: PositiveInt = 4
    """Passes over the negatives a round."""
    batch_size: PositiveInt = 16
    """Negatives an update; as many kept records beside them."""
    learning_rate: PositiveFloat = 3e-4
    """Of AdamW, with a warm-up over a tenth of a round, then linear to 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    groups: int = 0
    """Groups of 16 negatives that are also unlearnt alone, in order of their scores: what was predicted of each against
    what came of it. 0 leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and self.loss not in ("npo", "simnpo", "wga"):
            raise InputError(f"beta with loss = {self.loss!r}", "beta with npo, simnpo or wga", "leave beta out")
        if self.blocks < 2:
            raise InputError(f"blocks = {self.blocks}", "at least 2", "8 give intervals with 7 degrees of freedom")


# -- weights ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class U2AWeights:
    """Scores and weights of a pool of negatives.

    Parameters
    ----------
    id : tuple of str, length n
    weight : ndarray, shape (n,)
        At least 0, with mean 1.
    score : ndarray, shape (n,)
        ``<H^-1 grad J, grad l_i>``: above 0, unlearning the record lowers J.
    interval : ndarray, shape (n, 2)
        Of the score, at 95 %, one record at a time: jackknife over blocks of whole prompts, t with K - 1 degrees.
    certain : ndarray of int, shape (n,)
        Sign of the score where it differs from 0 at a false discovery rate of 5 % over the pool, else 0.
    keep : ndarray of bool, shape (n,)
        Whether the record is unlearnt at all.
    residual : float
        Of the solution with H, the largest over blocks; NaN with ``identity``.
    warnings : tuple of str
        Why weights are uniform, where they are.
    """

    id: tuple[str, ...]
    weight: Array
    score: Array
    interval: Array
    certain: NDArray[np.int8]
    keep: NDArray[np.bool_]
    residual: float
    warnings: tuple[str, ...]

    @property
    def veto(self) -> NDArray[np.bool_]:
        """Records whose unlearning certainly raises J, shape (n,)."""
        return self.certain < 0

    @property
    def effective_sample_size(self) -> float:
        """``(sum w)^2 / sum w^2``."""
        return sampling.effective_sample_size(self.weight / self.weight.sum())

    def to_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return rows of a data set, one a negative, with ``weight``, ``score`` and ``keep`` added.

        Raises
        ------
        InputError
            For another number of rows, and rows that have one of these columns.
        """
        if len(rows) != len(self.weight):
            raise InputError(
                f"{len(rows)} rows for {len(self.weight)} negatives", "one a negative", "pass the same rows"
            )
        new = ("weight", "score", "keep")
        if taken := sorted({c for row in rows for c in new if c in row}):
            raise InputError(f"rows that have a column {taken[0]!r}", "rows without", "rename that column")
        values = zip(self.weight.tolist(), self.score.tolist(), self.keep.tolist(), strict=True)
        return [{**row, **dict(zip(new, own, strict=True))} for row, own in zip(rows, values, strict=True)]

    def sampler(self, seed: int = 0, num_samples: int | None = None) -> sampling.MRDSampler:
        """Return a sampler that draws by weight, for trainers that take no weights of losses.

        A `transformers.Trainer`, and so TRL's, takes it from an overridden ``_get_train_sampler``.
        """
        return sampling.MRDSampler(self.weight / self.weight.sum(), seed=seed, num_samples=num_samples)


def u2a_weights(
    model: Any,
    processing_class: Any,
    negatives: Sequence[Any],
    pairs: Sequence[Any],
    *,
    loss: Loss = "npo",
    options: Mapping[str, Any] | None = None,
    how: How = "products",
    hessian: Callable[[torch.Tensor], torch.Tensor] | None = None,
    solve: Solve = "identity",
    damping: float = 1.0,
    steps: int = 10,
    keep: Keep = "positive",
    eta: float = 1.0,
    blocks: int = 8,
    seed: int = 0,
    reference: Any = None,
    weight: Array | None = None,
    batch_size: int = 16,
) -> U2AWeights:
    """Score negatives by what unlearning each does to preference pairs, and weigh them by it.

    ``s_i = <v, grad l_i>`` with ``(H + damping) v = grad J``; ``w_i`` in proportion to ``exp(eta s_i / sd s)`` over what
    is kept. No weight of the model is changed.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        In float32 or float64; the parameters that ask for a gradient are those that will be trained.
    processing_class : PreTrainedTokenizerBase
    negatives : sequence of Record, length n
        Of `upright.data.preferences.read_unpaired`, or of `upright.data.forget.read_records`.
    pairs : sequence of Pair
        Of `upright.data.preferences.read_preferences`. They are measured, not trained on; rank other pairs to judge.
    loss, options
        Unlearning loss and its factors, see `upright.language.losses`.
    how : {"products", "forwards", "backward"}
        See `upright.language.directions`.
    solve : {"identity", "neumann", "cg"}
        See `upright.maths.bilevel.solve`; others than the first need `hessian`.
    hessian : callable, optional
        ``hessian(x) -> H x`` over all trainable parameters in order, flattened.
    damping, steps
        As for `solve`.
    keep : {"positive", "all"} or int
        Which negatives are unlearnt: with a score above 0, all, or that many with the largest scores.
    eta : float
        At least 0, in standard deviations of the scores.
    blocks : int
        At least 2 blocks of whole prompts.
    seed : int
        Of the blocks.
    reference : PreTrainedModel, optional
        Start of J's margins and of ``npo``; by default the model itself.
    weight : ndarray, shape (n,), optional
        Weights of an earlier round: they are moved, and what had none keeps none.
    batch_size : int

    Returns
    -------
    U2AWeights

    Raises
    ------
    InputError
        For fewer prompts than blocks, pairs of one prompt alone, pairs with equal answers, a negative that is a chosen
        answer, records longer than the context, scores that are not finite, and what `directional` refuses.
    """
    if not len(negatives):
        raise InputError("no negatives", "one at least", "check the file")
    pool = preferences.merge_copies(negatives)
    n = len(pool.records)
    if isinstance(keep, int) and not 1 <= keep <= n:
        raise InputError(f"keep = {keep} of {n} negatives", f"1 to {n}", "change keep")
    preferences.refuse_leaks(pairs, negatives=pool.records)
    split = preferences.prompt_blocks(pairs, blocks, seed=seed)
    speaker = evaluation.Speaker(model, processing_class, batch_size=batch_size)
    encoded = speaker.encode(pool.records)
    base = model if reference is None else reference
    reading: dict[str, Any] = {"batch_size": batch_size, "pad": speaker.pad}
    slopes = alignment.block_gradients(
        model,
        *(speaker.encode(preferences.records_of(pairs, side)) for side in ("chosen", "rejected")),
        alignment.read_pairs(base, processing_class, pairs, batch_size=batch_size),
        blocks=split,
        **reading,
    )
    towards, residual = _solved(slopes.directions, hessian, solve, damping, steps)
    sums = None
    if loss == "npo":
        sums = [one.sum() for one in reader.read_answers(base, encoded, **reading)]
    scored = directions.directional(
        model, encoded, towards, loss=loss, options=options, how=how, reference=sums, **reading
    )
    judged = resampling.jackknife(scored.score, [len(own) for own in split])
    own = np.ones(n) if weight is None else np.bincount(pool.place, np.asarray(weight, dtype=np.float64), n)
    kept, new, told = _weights(judged.score, judged.certain, own, keep, eta)
    given = pool.shared(new)
    interval = np.stack([judged.low, judged.high], axis=1)
    return U2AWeights(
        tuple(r.id for r in negatives),
        given * (len(given) / given.sum()),
        *(of[pool.place] for of in (judged.score, interval, judged.certain, kept)),
        residual,
        told,
    )


def _solved(
    slopes: Mapping[str, torch.Tensor],
    hessian: Callable[[torch.Tensor], torch.Tensor] | None,
    solve: Solve,
    damping: float,
    steps: int,
) -> tuple[Mapping[str, torch.Tensor], float]:
    """Return ``(H + damping)^-1`` times each direction, and the largest residual (step 2)."""
    if solve == "identity":
        return slopes, float("nan")
    found = [
        bilevel.solve(hessian, torch.cat(rows), how=solve, damping=damping, steps=steps)
        for rows in zip(*(v.flatten(1) for v in slopes.values()), strict=True)
    ]
    parts = torch.stack([one.v for one in found]).split([v[0].numel() for v in slopes.values()], dim=1)
    shaped = {name: part.reshape(v.shape) for (name, v), part in zip(slopes.items(), parts, strict=True)}
    return shaped, max(one.residual for one in found)


def _weights(
    score: Array, certain: NDArray[np.int8], own: Array, keep: Keep, eta: float
) -> tuple[NDArray[np.bool_], Array, tuple[str, ...]]:
    """Return which records are kept, the weights, and why they are uniform where they are."""
    every = np.ones(len(score), dtype=bool)
    if keep == "all" and eta == 0.0:
        return every, own, ()
    why = ""
    if (score > 0).all() or (score <= 0).all():
        does = "lowers" if score[0] > 0 else "does not lower"
        why = f"unlearning any of the {len(score)} negatives {does} the objective"
    elif not certain.any():
        why = f"none of the {len(score)} scores can be told from 0"
    if why:
        return every, own, (f"{why}: weights would be noise, uniform ones are returned; give more pairs",)
    if keep == "positive":
        kept = score > 0
    elif keep == "all":
        kept = every
    else:
        kept = np.isin(np.arange(len(score)), np.argsort(-score, kind="stable")[: int(keep)])
    kept = kept & (own > 0)
    if not kept.any():
        return own > 0, own, ("nothing that had weight would lower the objective: weights stay as they were",)
    moved = bilevel.exponentiated_gradient(np.where(kept, own, 0.0), -score / score.std(), eta)
    return kept, moved * (len(moved) / moved.sum()), ()


# -- rounds of scoring and training -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Aligned:
    """The model that an arm returns.

    Parameters
    ----------
    model : PreTrainedModel
    """

    model: Any


def _options(config: U2AConfig) -> dict[str, Any]:
    return {} if config.beta is None else {"beta": config.beta}


def _scored(t: Any, config: U2AConfig, run: Run, models: tuple[Any, Any, Any], weight: Array | None) -> U2AWeights:
    """Return scores and weights at a model, those of the start model once for all arms."""
    model, start, tokenizer = models
    names = ("loss", "how", "solve", "damping", "steps", "keep", "eta", "blocks")
    given = {name: getattr(config, name) for name in names}
    hessian = None if config.solve == "identity" else _hessian(t, config, run, model, start, tokenizer)

    def make() -> U2AWeights:
        seed = stream(run.seed, "blocks")
        return u2a_weights(
            model, tokenizer, t.pool(run), t.pairs(run, "objective"), **given, options=_options(config), seed=seed,
            hessian=hessian, reference=start, weight=weight, batch_size=32,
        )  # fmt: skip

    if weight is not None:
        return make()
    tables = ("weight", "score", "interval", "certain", "keep")

    def held() -> dict[str, Any]:
        found = make()
        rest = {"residual": found.residual, "warnings": list(found.warnings)}
        return {name: torch.from_numpy(getattr(found, name)) for name in tables} | rest

    found = run.shared("scores", {**given, "options": _options(config)}, held)
    own = {name: found[name].numpy() for name in tables}
    return U2AWeights(
        tuple(r.id for r in t.pool(run)), **own, residual=found["residual"], warnings=tuple(found["warnings"])
    )


def _weighed(t: Any, config: U2AConfig, run: Run, found: U2AWeights, own: Array | None, turn: int) -> Array | None:
    """Return the weights with which an arm trains in a round; none where every negative counts alike."""
    n = len(found.weight)
    before = np.ones(n) if own is None else own
    if config.mode == "official":  # selects by the right sign, then weighs by the wrong one
        new = np.where(found.keep, before, 0.0)
        if turn and not found.warnings:
            new = bilevel.exponentiated_gradient(new, found.score / found.score.std(), config.eta)
        return new * (n / new.sum())
    if config.change == "flipped":
        new = _weights(-found.score, -found.certain, before, config.keep, config.eta)[1]
    elif config.weighting in ("loss", "length"):
        new = np.zeros(n)
        new[np.argsort(-_size(t, run, config.weighting), kind="stable")[: int(found.keep.sum())]] = 1.0
    else:
        new = found.weight
    return None if config.weighting == "uniform" else new * (n / new.sum())


def _size(t: Any, run: Run, by: str) -> Array:
    """Return the loss per token of every negative under the start model, or its length in tokens."""
    encoded = t.encoded(run, "pool")
    if by == "length":
        return np.array([float(one.answer_length) for one in encoded])
    model, tokenizer = t.model(run)
    found = reader.read_answers(model, encoded, pad=encoding.pad_of(tokenizer), batch_size=32)
    return np.array([-one.mean() for one in found])


def _ranked(t: Any, model: Any, run: Run) -> dict[str, float]:
    """Return both accuracies of validation pairs."""
    values = t.score(Aligned(model), "valid", run).values
    return {name: float(np.nanmean(values[name])) for name in ("ranking_accuracy", "implicit_accuracy")}


def _unlearn(t: Any, config: U2AConfig, run: Run) -> Any:
    """Unlearn in rounds (steps 1 to 7) and return the model of the last one that was kept."""
    (model, tokenizer), (start, _) = t.model(run), t.model(run)
    held, own, rows = _ranked(t, model, run), None, []
    scores = config.weighting != "uniform" or config.groups > 0
    order = run.rng("placebo", "weights").permutation(len(t.pool(run)))
    for turn in range(config.rounds):
        found = _scored(t, config, run, (model, start, tokenizer), own) if scores else None
        weight = None if found is None else _weighed(t, config, run, found, own, turn)
        if found is not None and turn == 0:
            _note_scores(run, config, found)
        train = weight[order] if weight is not None and config.change == "permuted" else weight
        before = {name: p.detach().clone() for name, p in directions.trainable(model).items()}
        slope, was = _slope(t, run, model, start, tokenizer)
        _train(t, config, run, model, tokenizer, turn, train)
        with torch.no_grad():
            moved = {name: p.detach() - before[name] for name, p in directions.trainable(model).items()}
        predicted = sum(float((moved[name] * v[0]).sum(dtype=torch.float64)) for name, v in slope.items())
        now, value = _ranked(t, model, run), _slope(t, run, model, start, tokenizer)[1]
        kept = not config.gate or all(now[name] >= held[name] for name in held)
        rows.append({"round": turn + 1, "predicted": predicted, "realised": value - was, **now, "kept": float(kept)})
        if not kept:
            with torch.no_grad():
                for name, p in directions.trainable(model).items():
                    p.copy_(before[name])
            break
        held, own = now, weight
    run.note("rounds", rows)
    run.note("gate", {"rounds_kept": float(sum(row["kept"] for row in rows)), **held})
    if config.groups:
        _groups(t, config, run, start, tokenizer)
    return model.eval()


def _slope(t: Any, run: Run, model: Any, start: Any, tokenizer: Any) -> tuple[dict[str, torch.Tensor], float]:
    """Return the gradient of J over all pairs of the objective, and J."""
    pairs, sides = t.pairs(run, "objective"), t.encoded_pairs(run, "objective")
    read = alignment.read_pairs(start, tokenizer, pairs, batch_size=32)
    found = alignment.block_gradients(
        model, *sides, read, blocks=[np.arange(len(pairs))], batch_size=32, pad=encoding.pad_of(tokenizer)
    )
    return found.directions, float(found.values[0])


def _note_scores(run: Run, config: U2AConfig, found: U2AWeights) -> None:
    """Note scores in order with their intervals, what is certain of them, and how unequal the weights are."""
    place = np.argsort(-found.score, kind="stable")
    table = [
        {"place": i + 1, "score": found.score[k], "low": found.interval[k, 0], "high": found.interval[k, 1],
         "weight": found.weight[k]}
        for i, k in enumerate(place.tolist())
    ]  # fmt: skip
    run.note("scores", table)
    n = len(place)
    run.note(
        "weights",
        {
            "negatives": n, "kept": int(found.keep.sum()), "certain_to_help": float((found.certain > 0).mean()),
            "certain_to_hurt": float(found.veto.mean()), "undecided": float((found.certain == 0).mean()),
            "effective_share": found.effective_sample_size / n,
            **({} if np.isnan(found.residual) else {"residual": found.residual}),
        },
    )  # fmt: skip
    for text in found.warnings:
        run.warn(f"arm {run.arm}: {text}")


def _groups(t: Any, config: U2AConfig, run: Run, start: Any, tokenizer: Any) -> None:
    """Unlearn groups of 16 negatives alone, from the start, and note what was predicted of J and what came of it."""
    found = _scored(t, config, run, (start, start, tokenizer), None)
    order, rows = np.argsort(-found.score, kind="stable"), []
    for own in np.array_split(order, max(1, len(order) // 16))[:: max(1, len(order) // 16 // config.groups)]:
        model, _ = t.model(run)
        weight = np.zeros(len(order))
        weight[own] = len(order) / len(own)
        was = _slope(t, run, model, start, tokenizer)[1]
        _train(t, config.replace(epochs=1, mode="recommended"), run, model, tokenizer, 0, weight)
        now = _slope(t, run, model, start, tokenizer)[1]
        rows.append({"group": len(rows) + 1, "predicted": -float(found.score[own].mean()), "realised": now - was})
    run.note("groups", rows)


def _train(t: Any, config: U2AConfig, run: Run, model: Any, tokenizer: Any, turn: int, weight: Array | None) -> None:
    """Unlearn the pool in place for one round, or train on the pairs by DPO with as many updates."""
    from transformers import PrinterCallback

    from upright.language.trainer import UnlearnArguments, UnlearnTrainer

    updates = config.epochs * -(-len(t.pool(run)) // config.batch_size)
    fields: dict[str, Any] = {"loss": config.loss, "loss_options": _options(config), "max_steps": updates}
    forget, more = t.encoded(run, "pool"), {"weights": weight}
    kind: type[UnlearnTrainer] = UnlearnTrainer
    if config.train == "dpo":
        chosen, forget = t.encoded_pairs(run, "objective")
        more = {"alternatives": chosen}
        fields |= {"loss": "idk_dpo", "loss_options": {"beta": alignment.BETA}, "max_steps": config.rounds * updates}
    elif config.mode == "official" and config.loss == "npo":
        kind = _mean_npo()
    elif config.mode == "official" and config.loss == "grad_diff":
        more = {"weights": None if weight is None else (weight > 0).astype(np.float64)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing is forgotten", UserWarning)  # where weights leave nothing
        arguments = UnlearnArguments(
            output_dir=folder,
            **fields,
            gamma=config.gamma,
            alpha=config.alpha,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=32,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type="linear",
            warmup_steps=-(-fields["max_steps"] // 10),
            max_grad_norm=1.0,
            seed=stream(run.seed, "unlearn", turn) % 2**31,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = kind(
            model, forget, t.encoded(run, "retain"), args=arguments, processing_class=tokenizer, reference=t.model(run)[0],
            **more,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if trainer.stopped:
        run.warn(f"arm {run.arm}: {trainer.stopped}")
    model.eval()


def _mean_npo() -> Any:
    """Return a trainer whose NPO is of the mean loss per token over the batch, times the mean weight, as published."""
    from upright.language.objectives import objective_of, record_losses
    from upright.language.trainer import UnlearnTrainer

    class MeanNPO(UnlearnTrainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            plain = objective_of("grad_diff")
            forget, retain = record_losses(
                plain, model, inputs, sums={}, speaking=lambda: self.reference.speaking(model)
            )
            tokens = (inputs["forget"]["labels"] != -100).sum(1) * inputs["counts"]
            then = self.reference.sums["forget"].to(forget.device)[inputs["index"]] * inputs["counts"]
            gap = ((forget * tokens).sum() - then.sum()) / tokens.sum()
            beta = self.objective.options["beta"]
            weight = inputs["weights"].mean() if "weights" in inputs else 1.0
            loss = weight * 2 / beta * torch.nn.functional.softplus(beta * gap)
            kept = torch.zeros(()) if retain is None else retain.mean()
            return self.objective.gamma * loss.to(forget.dtype) + self.alpha * kept

    return MeanNPO


def _put(own: Sequence[torch.Tensor], flat: torch.Tensor) -> None:
    with torch.no_grad():
        for p, part in zip(own, flat.split([p.numel() for p in own]), strict=True):
            p.copy_(part.view_as(p))


def _hessian(t: Any, config: U2AConfig, run: Run, model: Any, start: Any, tokenizer: Any) -> Any:
    """Return products with the Hessian of the inner loss over 32 negatives, by central differences of its gradient."""
    from upright.language.objectives import objective_of, record_losses
    from upright.language.trainer import PairCollator

    pool, retain, pad = t.encoded(run, "pool"), t.encoded(run, "retain"), encoding.pad_of(tokenizer)
    own = list(directions.trainable(model).values())
    chosen = run.rng("hessian").permutation(len(pool))[:32].tolist()
    task = objective_of(
        config.loss, has_retain=bool(retain), gamma=config.gamma, alpha=config.alpha, options=_options(config)
    )
    batch = PairCollator(pool, retain, (), pad)([(i, k % max(len(retain), 1), True) for k, i in enumerate(chosen)])
    read = [one.sum() for one in reader.read_answers(start, pool, pad=pad, batch_size=32)]
    sums = {"forget": torch.tensor(read, dtype=torch.float64)}

    def gradient() -> torch.Tensor:
        with reader.evaluating(model), torch.enable_grad():
            forget, kept = record_losses(task, model, batch, sums=sums, speaking=lambda: None)  # type: ignore[arg-type, return-value]
            loss = task.gamma * forget.mean() + (0.0 if kept is None else task.alpha * kept.mean())
            found = torch.autograd.grad(loss, own, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(own, found, strict=True)])

    def product(x: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([p.detach().flatten() for p in own])
        step = 1e-3 * float(whole.norm() / x.norm().clamp(min=1e-30))
        ends = []
        for sign in (1.0, -1.0):
            _put(own, whole + sign * step * x)
            ends.append(gradient())
        _put(own, whole)
        return (ends[0] - ends[1]) / (2 * step)

    return product


# -- declaration ------------------------------------------------------------------------------------------------------

_REPORT = [
    Front("How held-out pairs rank, against what is kept"),
    Curve(
        "Scores of the negatives, in order",
        "scores",
        [
            "Above 0, unlearning the record lowers the objective, to first order. Records whose interval crosses 0 are a "
            "guess."
        ],
        x="place",
        y="score",
        arms=("remedy",),
    ),
    Noted(
        "What is known of the negatives",
        "weights",
        [
            "Certain: the sign of the score holds at a false discovery rate of 5 % over the pool. At an effective share "
            "of 1 every negative counts alike."
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
    "Pairs say what is preferred. Few of them, or pairs of another kind than what the model will be asked, choose other "
    "negatives.",
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
        Arm("uniform", "baseline", {"weighting": "uniform", "gate": False}, "every negative alike"),
        Arm("u2a", "remedy", {}, "weights by U2A"),
        Arm("gated", "trivial", {"weighting": "uniform"}, "every negative alike, bad rounds undone", simpler=True),
        Arm("loss", "trivial", {"weighting": "loss"}, "those with the largest loss", simpler=True),
        Arm("length", "trivial", {"weighting": "length"}, "the longest", simpler=True),
        Arm("permuted", "placebo", {"change": "permuted"}, "U2A's weights on other negatives"),
        Arm("flipped", "rival", {"change": "flipped"}, "weights by scores of the other sign"),
        Arm("dpo", "rival", {"train": "dpo"}, "DPO on the pairs"),
        Arm("official", "rival", {"mode": "official", "gate": False}, "as the published code does it"),
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
    tune={"learning_rate": [1e-4, 3e-4, 1e-3]},
    report=_REPORT,
    limits=_LIMITS,
    demo={"data": "planted", "settings": {}, "arms": ["uniform", "u2a", "gated", "loss", "permuted", "original"]},
    tiny={"rounds": 1, "epochs": 1, "blocks": 2},
)
def run(task: Task, config: U2AConfig, run: Run) -> Aligned:
    """Return the model that an arm's weights unlearn."""
    t: Any = task
    if config.train == "unlearn":
        model = _unlearn(t, config, run)
    else:
        model, tokenizer = t.model(run)
        if config.train == "dpo":
            _train(t, config, run, model, tokenizer, 0, None)
    found = Aligned(model)
    run.note("valid", _ranked(t, model, run))
    return found
