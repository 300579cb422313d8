"""Training pairs in batches, and the loss of one batch: what every method on a recommender shares.

``loss = mean_b l(s_ui - s_uj) + wd / 2 * (mean squared length of the batch's own user rows + of its item rows)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upright.contract import Run
from upright.models.recommenders import draw_negatives

__all__ = ["LOSSES", "batches", "loss_name", "pair_loss"]

Batch = tuple[Tensor, Tensor, Tensor]

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    # one value per positive pair, reduced where it is used
    "bpr": lambda positive, negative: nn.functional.softplus(negative - positive),
    "bce": lambda positive, negative: nn.functional.softplus(-positive) + nn.functional.softplus(negative),
}


def loss_name(task: Any) -> str:
    """Return the loss that a task's backbone is trained with: cross-entropy for NeuMF, BPR for the others."""
    return "bce" if task.config.backbone == "neumf" else "bpr"


def batches(task: Any, run: Run, epoch: int, size: int) -> Iterator[Batch]:
    """Yield users, positive and negative items of one epoch, each int64 of shape (B,).

    Order and negatives come from the streams ``order`` and ``negatives`` of the epoch, so that every arm of a run meets
    the same batches.
    """
    user, item = torch.from_numpy(task.train.user), torch.from_numpy(task.train.item)
    order = run.rng("order", epoch).permutation(len(user))
    negatives = torch.from_numpy(draw_negatives(task.train.user, task.seen, task.n_items, run.rng("negatives", epoch)))
    for start in range(0, len(order), size):
        rows = torch.from_numpy(order[start : start + size])
        yield user[rows], item[rows], negatives[rows, 0]


def pair_loss(
    model: Any, users: Tensor, items: Tensor, batch: Batch, kind: str, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch and its penalty, both of shape ().

    Parameters
    ----------
    model : backbone
    users, items : Tensor, shapes (U, d) and (I, d)
        Its tables, computed once a step.
    batch : see `batches`
    kind : {"bpr", "bce"}
    weight_decay : float
        Not multiplied in: the penalty is ``1/2 (mean |rows of users|^2 + mean |rows of items|^2)`` times it.
    """
    u, i, j = batch
    own = users.index_select(0, u)  # (B, d); index_select has a much cheaper backward than indexing
    positive = model.score(own, items.index_select(0, i))  # (B,)
    negative = model.score(own, items.index_select(0, j))  # (B,)
    decay = sum(row.square().sum(1).mean() for row in model.ego(u, torch.cat([i, j])))
    return LOSSES[kind](positive, negative).mean(), 0.5 * weight_decay * decay
