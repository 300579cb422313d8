"""Training pairs in batches, and the loss of one batch: what every method on a recommender shares.

``loss = mean_b l(s_ui - s_uj) + wd / 2 * (mean squared length of the batch's own user rows + of its item rows)``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upright.contract import Run
from upright.models.recommenders import draw_negatives

__all__ = ["LOSSES", "PLAIN", "batches", "loss_name", "pair_loss", "train_backbone"]

Batch = tuple[Tensor, Tensor, Tensor]
#: settings of the plain backbone; arms that agree in them share it
PLAIN = ("learning_rate", "weight_decay", "batch_size", "epochs", "check_every", "patience")

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
    model: Any,
    users: Tensor,
    items: Tensor,
    batch: Batch,
    kind: str,
    weight_decay: float,
    weights: Tensor | None = None,
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
    weights : Tensor, shape (U,), optional
        What a user's pairs count in the loss; 1 by default.
    """
    u, i, j = batch
    own = users.index_select(0, u)  # (B, d); index_select has a much cheaper backward than indexing
    positive = model.score(own, items.index_select(0, i))  # (B,)
    negative = model.score(own, items.index_select(0, j))  # (B,)
    decay = sum(row.square().sum(1).mean() for row in model.ego(u, torch.cat([i, j])))
    loss = LOSSES[kind](positive, negative) if weights is None else LOSSES[kind](positive, negative) * weights[u]
    return loss.mean(), 0.5 * weight_decay * decay


def train_backbone(
    task: Any, config: Any, run: Run, pull: nn.Module | None = None, weights: Tensor | None = None
) -> tuple[Any, Any, Any]:
    """Train a task's backbone, perhaps with a pull of its users, and return it at its best validation NDCG.

    Parameters
    ----------
    task : NextItem
    config : Training, with ``weight_decay``
    pull : module, optional
        The user table and the batch's users to a loss that is added.
    weights : see `pair_loss`

    Returns
    -------
    model, optimiser, epochs
        At that epoch; the last is the companion of the loop.
    """
    model, key = task.model(run), f"ndcg@{task.config.k}"
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    with run.training(config, model=model, optimiser=optimiser) as epochs:
        for epoch in epochs:
            seen = {"loss": 0.0} | ({"pull": 0.0} if pull else {})
            for batch in batches(task, run, epoch, config.batch_size):
                users, items = model.tables()  # (U, d), (I, d)
                rec, decay = pair_loss(
                    model, users, items, batch, loss_name(task), config.weight_decay, weights=weights
                )
                parts = {"loss": rec} | ({"pull": pull(users, batch[0])} if pull else {})
                optimiser.zero_grad(set_to_none=True)
                (sum(parts.values()) + decay).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                for name, part in parts.items():
                    seen[name] += part.item() * len(batch[0]) / len(task.train)
            epochs.log(**seen)
            if epochs.due:
                value = float(np.nanmean(task.score(model, "valid", run).values[key]))
                epochs.log(**{f"valid/{key}": value})
                epochs.check(value)
    return model, optimiser, epochs
