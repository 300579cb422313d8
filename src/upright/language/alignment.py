r"""Alignment of a language model by preference pairs: margins, accuracies, and an objective with its gradients.

    margin_i = beta ((c_rej - c_rej^ref) - (c_cho - c_cho^ref)),   c = -sum_t log p(y_t | prompt, y_<t)
    J = mean_i -log sigmoid(margin_i)

J is the loss of DPO (Rafailov et al., *Direct Preference Optimization*, 2023) without the factor ``2 / beta`` that
`losses.dpo` has. It falls as alignment rises, and is log 2 where the model is its own reference. J alone shows no
alignment: it falls when the rejected answers become improbable faster than the chosen ones, whatever is said instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.contract import InputError
from upright.data.preferences import Pair, records_of
from upright.language.directions import trainable
from upright.language.encoding import Encoded, Template, collate, length_batches
from upright.language.evaluation import Speaker
from upright.language.objectives import objective_of, record_losses
from upright.language.reader import Array, evaluating, read_answers

__all__ = [
    "BETA",
    "BlockGradients",
    "PairReading",
    "accuracies",
    "block_gradients",
    "margins",
    "objective",
    "read_pairs",
]

BETA = 0.3  # of U2A


@dataclass(frozen=True)
class PairReading:
    """What a model makes of n pairs.

    Parameters
    ----------
    chosen, rejected : ndarray of float64, shape (n,)
        ``log p = -c`` of the two answers, summed over their tokens, at most 0.
    chosen_tokens, rejected_tokens : ndarray of int64, shape (n,)
        Their number, the end of sequence included where the form of the pair has one.
    """

    chosen: Array
    rejected: Array
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]


def read_pairs(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], *, batch_size: int = 16, template: Template = "auto"
) -> PairReading:
    """Read both answers of each pair, in evaluation mode and without gradients.

    Parameters
    ----------
    model, tokenizer, batch_size, template
        As for `Speaker`.
    pairs : sequence of Pair, length n

    Raises
    ------
    InputError
        As `Speaker`; for an answer that is longer with its prompt than the context of the model, or whose
        log-probabilities are not finite: the pair is named.
    """
    speaker = Speaker(model, tokenizer, template=template, batch_size=batch_size)
    encoded = speaker.encode([*records_of(pairs, "chosen"), *records_of(pairs, "rejected")])
    names = [f"pair {pair.id}, {side}" for side in ("chosen", "rejected") for pair in pairs]
    found = read_answers(model, encoded, pad=speaker.pad, batch_size=batch_size, names=names)
    sums, tokens = (np.array([of(one) for one in found]).reshape(2, -1) for of in (np.sum, len))
    return PairReading(*sums, *tokens)


# -- values per pair ------------------------------------------------------------------------------------------------


def margins(own: PairReading, reference: PairReading, beta: float = BETA) -> Array:
    """``beta ((c_rej - c_rej^ref) - (c_cho - c_cho^ref))``, the implicit reward of DPO as a difference, shape (n,).

    Above 0 where the model prefers the chosen answer more than the reference does. Swapped answers change its sign.
    """
    return beta * ((own.chosen - reference.chosen) - (own.rejected - reference.rejected))


def objective(own: PairReading, reference: PairReading, beta: float = BETA) -> float:
    """``J = mean_i -log sigmoid(margin_i)``, above 0; log 2 where `own` is the reference."""
    return float(np.logaddexp(0.0, -margins(own, reference, beta)).mean())


def accuracies(own: PairReading, reference: PairReading | None = None) -> dict[str, Array]:
    """Return 1 where the chosen answer is ahead, 0 where the other one is, 1/2 in a tie; each of shape (n,).

    Returns
    -------
    dict
        ``ranking``: by log-probability, which favours short answers. ``ranking_per_token``: by its mean over tokens,
        which does not. ``implicit``: by the margin, with a reference alone. ``length``: by the number of tokens and
        nothing else, the control for all of them; where its mean is below 1/2, chosen answers are the shorter ones.
    """
    gains = {
        "ranking": own.chosen - own.rejected,
        "ranking_per_token": own.chosen / own.chosen_tokens - own.rejected / own.rejected_tokens,
        "length": own.chosen_tokens - own.rejected_tokens,
    }
    if reference is not None:
        gains["implicit"] = margins(own, reference)
    return {name: (1.0 + np.sign(gain)) / 2.0 for name, gain in gains.items()}


# -- gradients ------------------------------------------------------------------------------------------------------


class BlockGradients(NamedTuple):
    """Gradients of J over blocks of pairs.

    Parameters
    ----------
    directions : dict of parameter name to Tensor of shape (m, *shape)
        Of the trainable parameters, in their precision.
    values : ndarray of float64, shape (m,)
        J over each block.
    """

    directions: dict[str, Tensor]
    values: Array


def block_gradients(
    model: Any,
    chosen: Sequence[Encoded],
    rejected: Sequence[Encoded],
    reference: PairReading,
    *,
    blocks: Sequence[ArrayLike],
    beta: float = BETA,
    batch_size: int = 8,
    pad: int,
) -> BlockGradients:
    """``grad J_k``, ``J_k = (1 / |B_k|) sum_{i in B_k} -log sigmoid(margin_i)``, for m blocks of pairs.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Read in evaluation mode; neither it nor its ``grad`` changes.
    chosen, rejected : sequence of Encoded, length n
    reference : PairReading
        Of the same pairs by the reference model.
    blocks : sequence of array of int
        Indices of the pairs of each block, see `prompt_blocks`; none is empty.
    beta : float
        Above 0.
    batch_size : int
        Pairs at once. Changes time and memory, not results.
    pad : int

    Returns
    -------
    BlockGradients
        Holds m copies of the trainable parameters.

    Raises
    ------
    InputError
        For sides and sums of different length, an empty block, and as `trainable`: a model without a trainable
        parameter, or in half precision.

    Guarantee
    ---------
    Where blocks part all pairs, ``sum_k |B_k| grad J_k / n`` is the gradient of J.
    """
    sizes = (len(chosen), len(rejected), len(reference.chosen))
    parts = [np.asarray(block, dtype=np.int64).tolist() for block in blocks]
    if len(set(sizes)) > 1 or not all(parts):
        got = (
            f"{sizes[0]} chosen and {sizes[1]} rejected answers, {sizes[2]} sums, blocks of {[*map(len, parts)]} pairs"
        )
        raise InputError(got, "as many of each, and no empty block", "read and encode the same pairs, in one order")
    own = trainable(model)
    task = objective_of("idk_dpo", has_retain=False, options={"beta": beta})
    sums = {"forget": torch.from_numpy(reference.rejected), "alternative": torch.from_numpy(reference.chosen)}
    longer = [max(pair, key=lambda one: len(one.ids)) for pair in zip(chosen, rejected, strict=True)]
    device = next(iter(own.values())).device
    directions = {name: p.new_zeros((len(parts), *p.shape)) for name, p in own.items()}
    values = np.zeros(len(parts))
    with evaluating(model), torch.enable_grad():
        for k, part in enumerate(parts):
            for batch in length_batches([longer[i] for i in part], batch_size):
                rows = [part[j] for j in batch]
                sides = {"forget": rejected, "alternative": chosen}
                inputs: dict[str, Any] = {
                    side: {key: one.to(device) for key, one in collate([encoded[i] for i in rows], pad).items()}
                    for side, encoded in sides.items()
                }
                inputs["index"] = torch.tensor(rows, device=device)
                losses, _ = record_losses(task, model, inputs, sums=sums, speaking=contextlib.nullcontext)
                value = losses.sum() * beta / (2 * len(part))  # dpo has the factor 2 / beta
                found = torch.autograd.grad(value, list(own.values()), allow_unused=True)
                for total, gradient in zip(directions.values(), found, strict=True):
                    if gradient is not None:
                        total[k] += gradient
                values[k] += float(value.detach())
    return BlockGradients(directions, values)
