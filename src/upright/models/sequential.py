r"""SASRec: causal self-attention over the items that a user met, with a loss at every place that has a target.

With items ``i_1, ..., i_T`` at the places of a history, tables ``E`` (I, d) and ``P`` (L, d), heads h and blocks::

    x_t   = drop(sqrt(d) E[i_t] + P[L - T + t])                             0 at padding
    a_t   = sum_{s <= t, s real} softmax_s(q_t . k_s / sqrt(d / h)) v_s     q, k, v of norm(x), each head by itself
    x_t   = x_t + drop(W_o a_t);    x_t = x_t + drop(W_2 relu(W_1 norm(x_t) + b_1) + b_2)
    score = norm(x_t) . E[i]                                                for every item i: the table is tied

Histories stand at the right: the newest item at the last place, padding of -1 before the oldest. Places are counted
from the newest too, so padding and the width of a batch change no score.

Dropout has a generator of its own. Two passes with the same `masks` draw the same masks, whatever else is random, which
a sharpness-aware step needs: otherwise it measures the noise of the masks. `score_all` never drops anything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from upright.contract import InputError

__all__ = ["SASRec", "SeededDropout", "refuse_histories"]

_STD = 0.02
"""Standard deviation of the initial embeddings: scores start near 0, whatever the item."""


class SeededDropout:
    """``x m / (1 - p)`` with masks m that a generator draws: 0 with probability p, else 1.

    Parameters
    ----------
    p : float
        In [0, 1).
    generator : torch.Generator or None
        On the device of x; None leaves x as it is.
    """

    def __init__(self, p: float, generator: torch.Generator | None) -> None:
        self.keep, self.generator = 1.0 - p, generator

    def __call__(self, x: Tensor) -> Tensor:
        """Return x, of any shape, with its mask."""
        if self.generator is None:
            return x
        # twice as fast as bernoulli_ on a CPU
        drawn = torch.rand(x.shape, generator=self.generator, dtype=x.dtype, device=x.device)
        return x * (drawn < self.keep).to(x.dtype).div_(self.keep)


def _linear(wide: int, narrow: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Linear:
    """Return a layer with weights of N(0, 1 / wide), drawn in float64 and cast, and biases of 0."""
    # skip_init: else the global generator draws
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, wide, narrow, dtype=dtype)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.weight.copy_(torch.randn(narrow, wide, generator=generator, dtype=torch.float64) * wide**-0.5)
        layer.bias.zero_()
    return layer


class _Block(nn.Module):
    """Attention, then a layer a place, each on normed input and added to it."""

    def __init__(self, dim: int, heads: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(dim, dtype=dtype)
        self.before_places = nn.LayerNorm(dim, dtype=dtype)
        self.query_key_value = _linear(dim, 3 * dim, generator, dtype)
        self.out = _linear(dim, dim, generator, dtype)
        self.first = _linear(dim, dim, generator, dtype)
        self.second = _linear(dim, dim, generator, dtype)

    def forward(self, x: Tensor, hidden: Tensor, drop: SeededDropout) -> Tensor:
        """Map x, shape (B, T, d); `hidden`, shape (B, 1, T, T), is True where a place may not look."""
        normed = self.before_attention(x)
        # (B, heads, T, d / heads) each. Written out: the fused kernels draw masks from the global generator and have no
        # second derivative, which the curvature of a loss needs.
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.query_key_value(normed).chunk(3, dim=2)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        seen = drop(scores.masked_fill(hidden, -torch.inf).softmax(dim=3)) @ value
        x = x + drop(self.out(seen.transpose(1, 2).flatten(2)))
        return x + drop(self.second(torch.relu(self.first(self.before_places(x)))))


def refuse_histories(history: Tensor, target: Tensor | None, n_items: int, length: int) -> None:
    """Refuse what is no batch of histories, with the next item at some places or to be scored.

    Parameters
    ----------
    history, target : Tensor of int64, shape (B, T)
        Without targets every history needs an item, else every target one before it.
    n_items, length : int
        I, and the largest T.

    Raises
    ------
    InputError
        For shapes and codes that do not fit, padding after an item, a row or a target without an item, no target.
    """
    if history.ndim != 2 or not 1 <= history.shape[1] <= length or history.dtype != torch.int64:
        raise InputError(
            f"a history of shape {tuple(history.shape)} and type {history.dtype}",
            f"int64 of shape (B, T), T from 1 to {length}",
            "cut histories with upright.data.sequences",
        )
    if target is not None and (target.shape != history.shape or target.dtype != torch.int64):
        raise InputError(
            f"targets of shape {tuple(target.shape)} and type {target.dtype}",
            f"int64 of the shape of the history, {tuple(history.shape)}",
            "give the next item at every place, -1 where there is none",
        )
    codes = history if target is None else torch.stack([history, target])
    if codes.numel() and not -1 <= int(codes.min()) <= int(codes.max()) < n_items:
        raise InputError(
            f"item codes from {int(codes.min())} to {int(codes.max())}",
            f"0 to {n_items - 1}, or -1 for padding",
            "use the codes of the log that the model was made for",
        )
    gap = ((history[:, :-1] >= 0) & (history[:, 1:] < 0)).any(dim=1).nonzero()
    if len(gap):
        raise InputError(
            f"a history with padding after an item, in row {int(gap[0])}",
            "items at the right, padding of -1 at the left",
            "cut histories with upright.data.sequences",
        )
    if target is None:
        empty = (history[:, -1] < 0).nonzero()
        if len(empty):
            raise InputError(f"a history without an item, in row {int(empty[0])}", "one item", "leave the row out")
    elif not bool((target >= 0).any()) or bool(((target >= 0) & (history < 0)).any()):
        got = "a target without an item before it" if bool((target >= 0).any()) else "no target"
        raise InputError(got, "a target where the history has an item, one at least", "leave such rows out")


class SASRec(nn.Module):
    r"""Self-attentive sequential recommendation with the full softmax; see the module for the formula.

    Parameters
    ----------
    n_items : int
        I, at least 1.
    dim : int
        d, a multiple of `heads`.
    layers, heads : int
        Blocks and heads of each, at least 1.
    length : int
        L, the most items of a history, at least 1.
    dropout : float
        p, in [0, 1).
    generator : torch.Generator
        Source of the initial values, on the CPU; the global one stays as it was.
    dtype : torch.dtype
        float32 or float64.

    Raises
    ------
    InputError
        When a size is out of range.

    Guarantee
    ---------
    A loss depends on the items up to its place, never on later ones. Rows of a batch do not touch one another.

    References
    ----------
    Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, which trains on one drawn negative a place.
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 32,
        layers: int = 2,
        heads: int = 2,
        length: int = 20,
        dropout: float = 0.2,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        sizes = {"n_items": n_items, "dim": dim, "layers": layers, "heads": heads, "length": length}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} = {size}", "an integer of at least 1", f"set {name} to at least 1")
        if dim % heads:
            raise InputError(f"dim = {dim} with heads = {heads}", "a multiple of heads", "change one of them")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout = {dropout}", "a number from 0 to below 1", "use for example 0.2")
        self.n_items, self.length, self.dropout = n_items, length, dropout
        drawn = torch.randn(n_items + length, dim, generator=generator, dtype=torch.float64) * _STD
        self.item, self.place = (nn.Parameter(part.to(dtype)) for part in torch.split(drawn, [n_items, length]))
        self.blocks = nn.ModuleList(_Block(dim, heads, generator, dtype) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, dtype=dtype)

    def _states(self, history: Tensor, drop: SeededDropout) -> Tensor:
        """Return what is compared with the item table at every place, shape (B, T, d); no meaning at padding."""
        width = history.shape[1]
        real = history >= 0
        x = embedding(history.clamp_min(0), self.item) * math.sqrt(self.item.shape[1]) + self.place[-width:]
        x = drop(x) * real[:, :, None]
        later = torch.ones(width, width, dtype=torch.bool, device=history.device).triu(1)
        own = torch.eye(width, dtype=torch.bool, device=history.device)  # padding looks at itself: no row is empty
        hidden = (later | (~real[:, None, :] & ~own))[:, None]
        for block in self.blocks:
            x = block(x, hidden, drop)
        states: Tensor = self.norm(x)
        return states

    def target_losses(
        self, history: Tensor, target: Tensor, *, masks: int, offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``-log softmax(score + offset)_target`` at every place that has a target.

        Parameters
        ----------
        history, target : Tensor of int64, shape (B, T)
            ``target[b, t]`` follows ``history[b, t]``; -1 where there is none.
        masks : int
            Seed of the dropout masks of this call; without meaning in evaluation mode.
        offset : Tensor, shape (I,), optional
            Added to the scores in training alone, such as ``log p(i)`` for logit adjustment.

        Returns
        -------
        losses, item : Tensor, shape (N,)
            One a target, by row and place, and the target.

        Raises
        ------
        InputError
            As `refuse_histories`.

        Guarantee
        ---------
        Equal arguments give equal bits; the global generators are neither read nor changed.
        """
        refuse_histories(history, target, self.n_items, self.length)
        there = target >= 0
        generator = None
        if self.training and self.dropout:
            generator = torch.Generator(device=history.device).manual_seed(masks)
        states = self._states(history, SeededDropout(self.dropout, generator))[there]
        item = target[there]
        scores = states @ self.item.T
        return cross_entropy(scores if offset is None else scores + offset, item, reduction="none"), item

    def score_all(self, history: Tensor) -> Tensor:
        """Return the score of every item as the next one, shape (B, I), without dropout in any mode.

        Parameters
        ----------
        history : Tensor of int64, shape (B, T)
            The newest item last, -1 at the left.

        Raises
        ------
        InputError
            As `refuse_histories`.
        """
        refuse_histories(history, None, self.n_items, self.length)
        return self._states(history, SeededDropout(self.dropout, None))[:, -1] @ self.item.T
