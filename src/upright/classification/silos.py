"""Silos, their models with a leading axis of clients, and local training of all clients in one tensor program.

A silo is a site that holds rows and never shows them: a hospital, a bank, a country's census. Few sites with many rows
each, all of which hold the same columns.

A model is a flat dict of tensors, ``x W + b`` of ``weight`` (d, m) and ``bias`` (m,), for ``hidden = h`` with
``relu(x V + c)`` in the place of x, of ``hidden.weight`` (d, h) and ``hidden.bias`` (h,). Without a client axis it is
one model; with one (K, ...) it is K models side by side, and every product becomes a batched one.

Each client draws its batches from a generator of its own: a client that is left out changes nobody else's numbers, and
a client trained alone has the numbers that it has among others, up to rounding.

Source: McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data* (2017).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.classification.inputs import Array, Ints, one_hot, places
from upright.contract import InputError

__all__ = ["Params", "Silo", "batches", "initial", "local_steps", "logits", "one_hot", "silos_of", "weighted_log_loss"]

Params = dict[str, Tensor]
Optimiser = Literal["adam", "sgd"]


@dataclass(frozen=True, eq=False)
class Silo:
    """The rows of one client.

    Parameters
    ----------
    name : str
        Names the client's random streams as well: the same everywhere it is spoken of.
    x : ndarray of float64 or float32, shape (n, d)
    y : ndarray of int64, shape (n,)
        Classes, from 0.
    members : tuple of ndarray, shape (n, G_c)
        One-hot membership in the groups of each constraint; columns are the groups of everybody, also of absent ones.

    Raises
    ------
    InputError
        For shapes that disagree, features that are not finite, negative classes, members that are not one-hot.
    """

    name: str
    x: NDArray[Any]
    y: Ints
    members: tuple[Array, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.y)
        if self.x.ndim != 2 or self.y.ndim != 1 or len(self.x) != n or n == 0 or self.x.dtype.kind != "f":
            raise InputError(
                f"client {self.name!r} with features {self.x.dtype} of shape {self.x.shape} and labels of shape "
                f"{self.y.shape}", "features (n, d) of float64 or float32 and labels (n,), n at least 1",
                "give one row of features to each label, or leave the client out",
            )  # fmt: skip
        if not np.isfinite(self.x).all():
            bad = np.flatnonzero(~np.isfinite(self.x).all(axis=1))
            raise InputError(
                f"client {self.name!r} with {len(bad)} rows of features that are not finite, the first is {bad[0]}",
                "finite numbers", "fill or drop these rows before training",
            )  # fmt: skip
        if self.y.dtype.kind not in "iu" or self.y.min() < 0:
            raise InputError(
                f"client {self.name!r} with labels of {self.y.dtype}, the smallest {self.y.min()}",
                "whole numbers from 0", "number the classes in order",
            )  # fmt: skip
        for place, member in enumerate(self.members):
            one = member.ndim == 2 and len(member) == n and np.isin(member, (0.0, 1.0)).all()
            if not one or not (member.sum(axis=1) == 1.0).all():
                raise InputError(
                    f"client {self.name!r}, members {place}: not one-hot, or of shape {member.shape}",
                    f"shape ({n}, groups), each row one 1 and zeros", "build them with silos_of",
                )  # fmt: skip


def silos_of(
    x: NDArray[Any], y: Ints, client: ArrayLike, groups: Sequence[ArrayLike] = (), names: Sequence[Sequence[Any]] = ()
) -> dict[str, Silo]:
    """Cut pooled rows into silos, by name.

    Parameters
    ----------
    x, y, client : array, shape (n, d), (n,) of int64, (n,)
        Names of clients are made strings.
    groups : sequence of array, shape (n,)
        The sensitive feature of each constraint.
    names : sequence of sequence, optional
        The groups of each, in order; sorted by default.

    Raises
    ------
    InputError
        For lengths that differ, and a group that is not among `names`.
    """
    owner = np.asarray([str(c) for c in np.asarray(client).tolist()])
    columns = [np.asarray(g) for g in groups]
    if {len(x), len(y), len(owner), *(len(g) for g in columns)} != {len(y)}:
        raise InputError(
            f"{len(x)} rows, {len(y)} labels, {len(owner)} clients, groups of {[len(g) for g in columns]}",
            "one of each a row", "cut them to the same rows",
        )  # fmt: skip
    members = []
    for place, column in enumerate(columns):
        order = list(names[place]) if names else sorted(set(column.tolist()))
        codes, strangers = places(column, order)
        if strangers:
            raise InputError(
                f"groups {place} with {strangers[0]!r}", ", ".join(map(repr, order)), "correct it, or add it to names"
            )
        members.append(one_hot(codes, len(order)))
    out = {}
    for name in sorted(set(owner.tolist())):
        rows = np.flatnonzero(owner == name)
        out[name] = Silo(name, x[rows], y[rows], tuple(q[rows] for q in members))
    return out


def initial(d: int, m: int, hidden: int, rng: np.random.Generator, dtype: str = "float64") -> dict[str, NDArray[Any]]:
    """Return one model to start from: zeros for ``hidden = 0``, uniform in ``+-1 / sqrt(inputs)`` for a hidden layer.

    Of d features and m classes; the logistic model draws nothing.
    """
    if not hidden:
        return {"weight": np.zeros((d, m), dtype), "bias": np.zeros(m, dtype)}
    first, second = 1.0 / math.sqrt(d), 1.0 / math.sqrt(hidden)
    return {
        "hidden.weight": rng.uniform(-first, first, (d, hidden)).astype(dtype),
        "hidden.bias": rng.uniform(-first, first, hidden).astype(dtype),
        "weight": rng.uniform(-second, second, (hidden, m)).astype(dtype),
        "bias": rng.uniform(-second, second, m).astype(dtype),
    }


def logits(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits of one model (n, m) for x (n, d), or of K models (K, n, m) for x (K, n, d)."""
    if "hidden.weight" in params:
        x = torch.relu(_affine(x, params["hidden.weight"], params["hidden.bias"]))
    return _affine(x, params["weight"], params["bias"])


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias.unsqueeze(-2), x, weight) if weight.ndim == 3 else torch.addmm(bias, x, weight)


def weighted_log_loss(scores: Tensor, rows: Tensor) -> Tensor:
    """Return ``-sum_i rows_i log softmax(scores)_i`` per sample, shape (...,) for scores and rows of shape (..., m).

    With one-hot rows it is the cross-entropy.
    """
    return -(rows * torch.log_softmax(scores, dim=-1)).sum(dim=-1)


def batches(rng: np.random.Generator, n: int, steps: int, size: int) -> Ints:
    """Return the rows of each step, shape (steps, size): permutations of n rows, one after the other.

    A row appears again only when all others have appeared; a batch may span two permutations.
    """
    count = steps * size
    order = np.concatenate([rng.permutation(n) for _ in range(-(-count // n))])
    return np.asarray(order[:count].reshape(steps, size), dtype=np.int64)  # (steps, size)


def local_steps(
    params: Mapping[str, Tensor], xs: Sequence[Tensor], rows: Sequence[Tensor], index: Ints, *,
    optimiser: Optimiser = "adam", learning_rate: float = 0.01, weight_decay: float = 0.0,
) -> Params:  # fmt: skip
    """Return the K models after R mini-batch steps each, all clients in one tensor program.

    Step r of client k descends ``mean over b of weighted_log_loss(logits(x_b), rows_b)`` on its rows ``index[k, r]``.
    States of the optimiser start fresh, as is usual for federated averaging. Shapes: params (K, ...), which stay as
    they are, xs (n_k, d), rows (n_k, m): one-hot labels or rows of a matrix of costs; index (K, R, B), of `batches`.
    """
    own = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    kind = torch.optim.Adam if optimiser == "adam" else torch.optim.SGD
    steps = kind(list(own.values()), lr=learning_rate, weight_decay=weight_decay)
    places = torch.from_numpy(index)
    for r in range(index.shape[1]):
        x = torch.stack([rows_of[places[k, r]] for k, rows_of in enumerate(xs)])  # (K, B, d)
        target = torch.stack([rows_of[places[k, r]] for k, rows_of in enumerate(rows)])  # (K, B, m)
        # a client's mean holds its own parameters alone: the sum over clients leaves gradients apart
        loss = weighted_log_loss(logits(own, x), target).mean(dim=1).sum()
        steps.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        steps.step()
    return {name: value.detach() for name, value in own.items()}
