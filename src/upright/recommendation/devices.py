"""Devices of a federated recommender, each with one user's items, and the samples that they train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.models.recommenders import unseen_items

__all__ = ["Device", "devices_of", "draw_samples", "merge"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Device:
    """One client's training items, shape (n,), sorted, each once.

    Without any, its replies are objected to; with noise at the device it sends noise alone, like everybody.
    """

    name: str
    items: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.items.ndim != 1 or (np.diff(self.items) <= 0).any() or (self.items < 0).any():
            got = f"client {self.name!r} with items that do not increase"
            raise InputError(got, "codes of at least 0, sorted, each once", "pass numpy.unique of them")


def devices_of(user: NDArray[np.int64], item: NDArray[np.int64], n_users: int) -> dict[str, Device]:
    """Return the device of each user with interactions (codes, shape (N,)), named ``u`` and its code, of one length."""
    span, width = int(item.max(initial=0)) + 1, len(str(n_users - 1))
    user, item = np.divmod(np.unique(user.astype(np.int64) * span + item), span)
    code, first = np.unique(user, return_index=True)
    names = [f"u{one:0{width}d}" for one in code]
    return {name: Device(name, own) for name, own in zip(names, np.split(item, first[1:]), strict=False)}


def draw_samples(
    items: Sequence[NDArray[np.int64]], rngs: Sequence[np.random.Generator], n_items: int, negatives: int, block: int
) -> tuple[Array, Array, Array, Array]:
    """Return client, item, label and weight of each sample, shape (N,) each.

    A client's samples are its items in random order, each followed by its negatives: distinct and uniform over all
    items that are not the client's, from its own generator: the other clients change nothing.
    """
    size, k = np.array([len(own) for own in items]), negatives
    owner, start, seen = np.repeat(np.arange(len(items)), size), np.r_[0, np.cumsum(size)], np.concatenate(items)
    draws = np.concatenate([rng.random((n, 1 + k)) for rng, n in zip(rngs, size, strict=True)])
    positive, free = seen[np.lexsort((draws[:, 0], owner))], (n_items - size)[owner]
    rank = np.zeros((len(owner), k), dtype=np.int64)
    for j in range(k):  # the j-th is drawn among what earlier ones left, and steps over them
        rank[:, j] = draws[:, 1 + j] * np.maximum(free - j, 0)
        for earlier in np.sort(rank[:, :j], axis=1).T:
            rank[:, j] += rank[:, j] >= earlier
    item = np.concatenate([positive[:, None], unseen_items(owner, rank, start, seen, n_items)], axis=1)
    column, each = np.arange(1 + k), 1 + np.minimum(free, k)[:, None]
    place = (np.arange(len(owner)) - start[owner])[:, None] * each + column
    weight = 1.0 / np.minimum(block, size[owner][:, None] * each - place // block * block)
    there = column < each
    whole = (np.broadcast_to(owner[:, None], item.shape), item, np.broadcast_to(column == 0, item.shape), weight)
    return whole[0][there], whole[1][there], whole[2][there], whole[3][there]


def merge(owner: Array, item: Array, label: Array, weight: Array, n_items: int) -> tuple[Array, Array, Array, Array]:
    """Return client, item, a and b of each row, in order of client and item."""
    key, inverse = np.unique(owner * n_items + item, return_inverse=True)
    a, b = (np.bincount(inverse, w, len(key)) for w in (weight * label, weight))
    return key // n_items, key % n_items, a, b
