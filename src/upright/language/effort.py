"""How many updates a record needs until it is forgotten: what a difficulty score should predict.

    theta <- theta + lr * grad c,    one record at a time, always from the same theta

with c the loss per token, ``cbar``, or the loss of the whole answer, ``n cbar`` (``reduce``). The two rank records
differently: a long answer has the smaller gradient under the first and the larger one under the second. Gradient ascent
as it is usually coded is the first; NPO weighs sums.

The count is the first step at which the loss per token is at least the record's level, refined by linear interpolation
between the last two losses, so that ranks have few ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError
from upright.language.encoding import Encoded, collate
from upright.language.logprobs import token_log_probs
from upright.language.losses import nll
from upright.language.reader import evaluating

__all__ = ["updates_to_forget"]


def updates_to_forget(
    model: Any, encoded: Sequence[Encoded], levels: ArrayLike, *, learning_rate: float,
    reduce: Literal["mean", "sum"] = "mean", most: int = 60, advance: Callable[[int], object] | None = None,
) -> NDArray[np.float64]:  # fmt: skip
    """Count gradient ascent steps of each record alone until its loss per token reaches a level.

    Parameters
    ----------
    model : PreTrainedModel
        Its weights are put back bit for bit after each record.
    encoded : sequence of Encoded, length n
    levels : array_like, shape (n,)
        Loss per token at which a record counts as forgotten: that of a model which never saw it.
    learning_rate : float
        Of plain gradient steps: an adaptive optimiser would make the first steps equally long for every record.
    reduce : {"mean", "sum"}
        What is ascended: the loss per token, or that of the whole answer.
    most : int
        Steps at most.
    advance : callable, optional
        Called with 1 after each record.

    Returns
    -------
    ndarray of float64, shape (n,)
        From 0 (at the level already) to `most`; NaN where the level was not reached: censored, not easy.

    Raises
    ------
    InputError
        When there is not one finite level a record, or a loss stops being a number.
    """
    aims = np.asarray(levels, dtype=np.float64)
    if aims.shape != (len(encoded),) or not np.isfinite(aims).all():
        raise InputError(f"levels of shape {aims.shape}", f"{len(encoded)} finite losses", "one level a record")
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    out = np.full(len(encoded), np.nan)
    with evaluating(model):
        for i, (one, aim) in enumerate(zip(encoded, aims, strict=True)):
            rate = learning_rate * (one.answer_length if reduce == "sum" else 1)  # grad of n cbar = n grad of cbar
            batch = {name: row.to(parameters[0].device) for name, row in collate([one], 0).items()}
            try:
                out[i] = _steps(model, parameters, batch, float(aim), rate, most)
            finally:
                with torch.no_grad():
                    for p, old in zip(parameters, before, strict=True):
                        p.copy_(old)
            if advance is not None:
                advance(1)
    return out


def _steps(
    model: Any, parameters: list[torch.nn.Parameter], batch: dict[str, torch.Tensor], aim: float, rate: float, most: int
) -> float:
    """Count steps of one record; NaN when `most` are not enough."""
    labels, last = batch["labels"], float("nan")
    for step in range(most + 1):
        with torch.enable_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
            loss = nll(*token_log_probs(logits, labels)).sum()
        now = float(loss.detach())
        if now >= aim:
            return 0.0 if step == 0 else step - 1 + (aim - last) / (now - last)
        if step < most:
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p.add_(g, alpha=rate)
        last = now
    return float("nan")
