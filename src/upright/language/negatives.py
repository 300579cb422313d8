r"""Which negatives to unlearn, and how strongly, by what unlearning each would do to preference pairs (U2A).

    s_i = <v, n_i grad l_i> / mean n,   (H + damping) v = grad J,   w_i in proportion to exp(eta s_i / sd s)

J is the loss of preference pairs (`upright.language.alignment`), ``l_i`` the unlearning loss of negative i, H the
Hessian of the whole training loss. ``n_i`` is the number of tokens where a loss averages tokens over a batch, else 1:
the factor with which `UnlearnTrainer` counts ``l_i``. So ``s_i = -dJ / dw_i``, up to one factor above 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.contract import InputError, PositiveInt, stream
from upright.data.forget import Record
from upright.data.preferences import Pair, merge_copies, prompt_blocks, records_of, refuse_leaks
from upright.language.alignment import block_gradients, read_pairs
from upright.language.directions import Directions, directional, trainable
from upright.language.encoding import Encoded, collate
from upright.language.evaluation import Speaker
from upright.language.losses import LOSSES, PAIRS
from upright.language.objectives import Objective, objective_of, record_losses, step_totals, step_weights
from upright.language.reader import Array, evaluating, read_answers
from upright.language.sampling import MRDSampler, effective_sample_size, mean_one
from upright.maths.bilevel import exponentiated_gradient, solve
from upright.maths.resampling import jackknife

__all__ = ["U2AWeights", "hessian_products", "select_negatives", "u2a_weights", "weigh_scores"]

Keep = Literal["positive", "all"] | PositiveInt
_STEP = 1e-3  # of the norm of the weights
_FIXED = 32  # negatives whose loss has the Hessian


@dataclasses.dataclass(frozen=True, eq=False)
class U2AWeights:
    """Scores and weights of a pool of N negatives.

    Parameters
    ----------
    id : tuple of str, length N
    weight : ndarray, shape (N,)
        At least 0, with mean 1; 0 leaves a negative alone.
    score : ndarray, shape (N,)
        Above 0, unlearning the record lowers J.
    interval : ndarray, shape (N, 2)
        Of the score, at 95 %, one record at a time: jackknife over blocks of whole prompts, t with K - 1 degrees.
    certain : ndarray of int8, shape (N,)
        Sign of the score where it is told from 0 at a false discovery rate of 5 % over the pool, else 0.
    residual : float
        Of the solution with H, the largest over blocks; NaN with ``identity``.
    warnings : tuple of str
        Why weights were not moved, and how many negatives are copies.
    """

    id: tuple[str, ...]
    weight: Array
    score: Array
    interval: Array
    certain: NDArray[np.int8]
    residual: float
    warnings: tuple[str, ...]

    @property
    def keep(self) -> NDArray[np.bool_]:
        """Records that are unlearnt at all, shape (N,)."""
        return self.weight > 0

    @property
    def veto(self) -> NDArray[np.bool_]:
        """Records whose unlearning certainly raises J, shape (N,)."""
        return self.certain < 0

    @property
    def effective_sample_size(self) -> float:
        """``(sum w)^2 / sum w^2``."""
        return effective_sample_size(self.weight)

    def to_rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return rows of a data set, one a negative, with ``weight``, ``score`` and ``keep`` added.

        Raises
        ------
        InputError
            For another number of rows, and rows that have one of these columns.
        """
        if len(rows) != len(self.weight):
            got = f"{len(rows)} rows for {len(self.weight)} negatives"
            raise InputError(got, "one a negative", "pass the rows that the negatives were read from")
        new = ("weight", "score", "keep")
        if taken := sorted({name for row in rows for name in new if name in row}):
            raise InputError(f"rows that have a column {taken[0]!r}", "rows without", "rename that column")
        values = zip(self.weight.tolist(), self.score.tolist(), self.keep.tolist(), strict=True)
        return [{**row, **dict(zip(new, own, strict=True))} for row, own in zip(rows, values, strict=True)]

    def sampler(self, seed: int = 0, num_samples: int | None = None) -> MRDSampler:
        """Return a sampler that draws by weight, for trainers that take no weights of losses.

        A `transformers.Trainer`, and so TRL's, takes it from an overridden ``_get_train_sampler``.
        """
        return MRDSampler(self.weight, seed=seed, num_samples=num_samples)


def u2a_weights(
    model: Any,
    processing_class: Any,
    negatives: Sequence[Record],
    pairs: Sequence[Pair],
    *,
    loss: str = "npo",
    options: Mapping[str, Any] | None = None,
    how: Literal["products", "forwards", "backward"] = "products",
    solve: Literal["identity", "neumann", "cg"] = "identity",
    damping: float = 1.0,
    steps: int = 10,
    retain: Sequence[Record] = (),
    gamma: float = 1.0,
    alpha: float = 1.0,
    keep: Keep = "positive",
    eta: float = 1.0,
    blocks: int = 8,
    seed: int = 0,
    reference: Any = None,
    weight: ArrayLike | None = None,
    batch_size: int = 16,
) -> U2AWeights:
    """Score negatives by what unlearning each does to preference pairs, and weigh them by it.

    No weight of the model is changed.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        In float32 or float64; the parameters that ask for a gradient are those that will be trained.
    processing_class : PreTrainedTokenizerBase
    negatives : sequence of Record, length N
        Of `upright.data.preferences.read_unpaired`, or of `upright.data.forget.read_records`. Copies share the weight
        of their record.
    pairs : sequence of Pair
        Of `upright.data.preferences.read_preferences`. They are measured, not trained on; rank other pairs to judge.
    loss, options
        Unlearning loss and its factors, see `upright.language.objectives.objective_of`.
    how : {"products", "forwards", "backward"}
        See `upright.language.directions`.
    solve : {"identity", "neumann", "cg"}
        What stands for ``(H + damping)^-1``, see `upright.maths.bilevel.solve`; `damping` and `steps` as there.
    retain, gamma, alpha
        Kept records and the factors of both losses, read for H alone.
    keep : {"positive", "all"} or int
        Which negatives are unlearnt: with a score above 0, all, or that many with the largest scores.
    eta : float
        At least 0, in standard deviations of the scores.
    blocks : int
        At least 2 blocks of whole prompts.
    seed : int
        Of the blocks, and of the 32 negatives that H is of.
    reference : PreTrainedModel, optional
        Start of J's margins and of ``npo``; by default the model itself.
    weight : array, shape (N,), optional
        Weights of an earlier round: they are moved, nothing is selected again, and what had none keeps none.
    batch_size : int

    Returns
    -------
    U2AWeights

    Raises
    ------
    InputError
        For fewer prompts than blocks, pairs of one prompt alone, a negative that is a chosen answer, records longer
        than the context, weights that are no weights, scores that are not finite, and what `directional` refuses.
    """
    if not len(negatives):
        raise InputError("no negatives", "one at least", "check the file")
    pool = merge_copies(negatives)
    n = len(pool.records)
    if isinstance(keep, int) and not 1 <= keep <= n:
        raise InputError(f"keep = {keep} of {n} negatives", f"1 to {n}", "change keep")
    before: Array | None = None
    if weight is not None:
        before = np.bincount(pool.place, mean_one(weight, len(negatives)), n).astype(np.float64)
    refuse_leaks(pairs, negatives=pool.records)
    split = prompt_blocks(pairs, blocks, seed=seed)
    plain = loss if retain else PAIRS.get(loss, (loss,))[0]
    task = objective_of(plain, has_retain=bool(retain), gamma=gamma, alpha=alpha, options=options)
    speaker = Speaker(model, processing_class, batch_size=batch_size)
    reading: dict[str, Any] = {"batch_size": batch_size, "pad": speaker.pad}
    encoded, names = speaker.encode(pool.records), [f"negative {record.id}" for record in pool.records]
    base = model if reference is None else reference
    started = read_pairs(base, processing_class, pairs, batch_size=batch_size)
    chosen, rejected = speaker.encode(records_of(pairs, "chosen")), speaker.encode(records_of(pairs, "rejected"))
    towards: Directions = block_gradients(model, chosen, rejected, started, blocks=split, **reading).directions
    sums: Array | None = None
    if task.needs("sums"):
        sums = np.array([one.sum() for one in read_answers(base, encoded, names=names, **reading)])
    residual = float("nan")
    if solve != "identity":
        fixed = np.random.default_rng(stream(seed, "hessian")).permutation(n)[:_FIXED]
        products = hessian_products(
            model,
            [encoded[i] for i in fixed],
            speaker.encode(retain) if retain else (),
            task,
            sums=None if sums is None else sums[fixed],
            weight=None if before is None else before[fixed],
            pad=speaker.pad,
        )
        towards, residual = _solved(towards, products, how=solve, damping=damping, steps=steps)
    own = {name: one for name, one in task.options.items() if name in LOSSES[task.forget].defaults}
    scored = directional(
        model, encoded, towards, loss=loss, options=own, how=how, reference=sums, names=names, **reading
    )
    skip = int(task.options.get("skip", 0))
    tokens = np.array([one.answer_length - skip if LOSSES[task.forget].batch == "token" else 1 for one in encoded])
    judged = jackknife(scored.score * (tokens / tokens.mean())[:, None], [len(own) for own in split])
    new, why = weigh_scores(judged.score, judged.certain, keep, eta, before)
    again = len(negatives) - n
    copies = f"{again} of {len(negatives)} negatives are copies and share the weight of their record"
    return U2AWeights(
        id=tuple(record.id for record in negatives),
        weight=mean_one(pool.shared(new), len(negatives)),
        score=judged.score[pool.place],
        interval=np.stack([judged.low, judged.high], axis=1)[pool.place],
        certain=judged.certain[pool.place],
        residual=residual,
        warnings=(*why, *([copies] if again else [])),
    )


def select_negatives(score: Array, keep: Keep) -> NDArray[np.bool_]:
    """Return which negatives are unlearnt, shape (n,): with a score above 0, all, or that many with the largest."""
    if keep == "all":
        return np.ones(len(score), dtype=bool)
    if keep == "positive":
        return score > 0
    return np.isin(np.arange(len(score)), np.argsort(-score, kind="stable")[: int(keep)])


def weigh_scores(
    score: Array, certain: NDArray[np.int8], keep: Keep = "positive", eta: float = 1.0, before: Array | None = None
) -> tuple[Array, tuple[str, ...]]:
    """``w_i exp(eta s_i / sd s)``, brought to mean 1, of what is selected; shape (n,), and why weights were not moved.

    Where all scores have one sign, or none is certain, weights are not moved: those before, or 1 each. With weights
    before, nothing is selected again.
    """
    why = ""
    if (score > 0).all() or (score <= 0).all():
        does = "lowers" if score[0] > 0 else "does not lower"
        why = f"unlearning any of the {len(score)} negatives {does} the objective"
    elif not certain.any():
        why = f"none of the {len(score)} scores can be told from 0"
    if why:
        own = np.ones(len(score)) if before is None else before
        kept = "uniform ones are returned" if before is None else "they stay as they were"
        return mean_one(own, len(score)), (f"{why}: weights would be noise, {kept}; give more pairs",)
    own = select_negatives(score, keep).astype(np.float64) if before is None else before
    return mean_one(exponentiated_gradient(own, -score / score.std(), eta), len(score)), ()


# -- curvature --------------------------------------------------------------------------------------------------------


def _solved(
    slopes: Directions, products: Callable[[Tensor], Tensor], **options: Any
) -> tuple[dict[str, Tensor], float]:
    """Return ``(H + damping)^-1`` times each direction, and the largest residual."""
    m = len(next(iter(slopes.values())))
    found = [solve(products, torch.cat([v[k].flatten() for v in slopes.values()]), **options) for k in range(m)]
    parts = torch.split(torch.stack([one.v for one in found]), [v[0].numel() for v in slopes.values()], dim=1)
    shaped = {name: part.reshape(v.shape) for (name, v), part in zip(slopes.items(), parts, strict=True)}
    return shaped, max(one.residual for one in found)


def hessian_products(
    model: Any,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    task: Objective,
    *,
    sums: Array | None = None,
    weight: Array | None = None,
    pad: int,
) -> Callable[[Tensor], Tensor]:
    """Return ``x -> H x``, H the Hessian of the training loss of some records, by central differences of its gradient.

    ``H x = (g(theta + h x) - g(theta - h x)) / 2 h``, with ``h |x|`` a thousandth of ``|theta|``; the weights of the
    model are put back from a copy.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        In evaluation mode meanwhile.
    forget : sequence of Encoded, length n
    retain : sequence of Encoded
        As many as there are of the others are used, in turn; none without a retain loss.
    task : Objective
    sums : ndarray, shape (n,), optional
        Of log-probabilities under the reference, for losses that take them.
    weight : ndarray, shape (n,), optional
    pad : int

    Returns
    -------
    callable
        Takes and returns a Tensor of shape (P,), the trainable parameters in order, flattened.
    """
    own, n = list(trainable(model).values()), len(forget)
    kept = [retain[i % len(retain)] for i in range(n)] if task.retain else []
    inputs: dict[str, Any] = {
        side: {name: one.to(own[0].device) for name, one in collate(records, pad).items()}
        for side, records in (("forget", forget), ("retain", kept))
        if records
    }
    inputs |= {"index": torch.arange(n), "counts": torch.ones(n, dtype=torch.int64)}
    if weight is not None:
        inputs["weights"] = torch.from_numpy(weight)
    inputs |= {name: one.to(own[0].device) for name, one in inputs.items() if isinstance(one, Tensor)}
    read = {} if sums is None else {"forget": torch.from_numpy(sums)}
    (w, v), totals = step_weights(task, inputs), step_totals(task, [inputs])

    def gradient() -> Tensor:
        with evaluating(model), torch.enable_grad():
            lost, held = record_losses(task, model, inputs, sums=read, speaking=contextlib.nullcontext)
            loss = task.gamma * (lost * w).sum() / totals[0]
            if held is not None:
                loss = loss + task.alpha * (held * v).sum() / totals[1]
            found = torch.autograd.grad(loss, own, materialize_grads=True)
        return torch.cat([one.flatten() for one in found])

    @torch.no_grad()
    def put(flat: Tensor) -> None:
        for p, part in zip(own, torch.split(flat, [p.numel() for p in own]), strict=True):
            p.copy_(part.view_as(p))

    def product(x: Tensor) -> Tensor:
        whole = torch.cat([p.detach().flatten() for p in own])
        step = _STEP * float(whole.norm() / x.norm().clamp(min=1e-30))
        ends = []
        try:
            for at in (whole + step * x, whole - step * x):
                put(at)
                ends.append(gradient())
        finally:
            put(whole)
        return (ends[0] - ends[1]) / (2 * step)

    return product
