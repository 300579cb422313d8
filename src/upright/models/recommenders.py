r"""Backbones that score every item for every user: matrix factorisation, NeuMF and LightGCN.

All three answer the same five questions, so that a training loop need not know which one it trains:

==================================  ==============================================================
``tables()``                        user side ``(U, d)`` and item side ``(I, d)``, after propagation
``score(user_rows, item_rows)``     one score per pair of rows, shape ``(B,)``
``score_all(user_rows, items)``     every item for every user row, shape ``(B, I)``
``ego(users, items)``               the trained rows behind some users and items, for an L2 penalty
``build(...)``                      any of the three by name
==================================  ==============================================================

A training step calls ``tables()`` once, gathers the rows of its batch with `torch.nn.functional.embedding` and
calls ``score``. Scores are logits: no sigmoid is applied.

Initial values are drawn in float64 from the generator that is handed in and then cast, so a float32 and a
float64 model made from equal generators start at the same point up to rounding. Torch's global generator stays as it
was.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from upright.contract import InputError

__all__ = ["BPRMF", "Backbone", "LightGCN", "NeuMF", "build", "draw_negatives", "unseen_items"]

Csr = Any
"""A `scipy.sparse.csr_array`; scipy ships no types."""

_CHUNK_ELEMENTS = 1 << 21
"""Most numbers of NeuMF's first hidden layer held at once: 16 MB in float64, small enough to stay near the cache."""


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} = {size}", "an integer of at least 1", f"set {name} to at least 1")


def _normal(shape: tuple[int, ...], std: float, generator: torch.Generator, dtype: torch.dtype) -> nn.Parameter:
    """Draw ``std * N(0, 1)`` in float64, then cast."""
    return nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * std).to(dtype))


class BPRMF(nn.Module):
    r"""Matrix factorisation: ``score(u, i) = <p_u, q_i>``.

    Parameters
    ----------
    n_users, n_items : int
        U and I, at least 1.
    dim : int
        d, at least 1.
    init_std : float
        Standard deviation of the initial values.
    generator : torch.Generator
        Source of the initial values, on the CPU.
    dtype : torch.dtype
        float32 or float64.

    Raises
    ------
    InputError
        When a size is below 1.

    References
    ----------
    Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from Implicit Feedback",
    UAI 2009.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int = 64,
        *,
        init_std: float = 0.01,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check_sizes(n_users=n_users, n_items=n_items, dim=dim)
        self.user = _normal((n_users, dim), init_std, generator, dtype)
        self.item = _normal((n_items, dim), init_std, generator, dtype)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return the user table, shape (U, d), and the item table, shape (I, d)."""
        return self.user, self.item

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        """``<p_u, q_i>`` of paired rows, each of shape (B, d); returns shape (B,)."""
        return (user_rows * item_rows).sum(-1)

    def score_all(self, user_rows: Tensor, item_table: Tensor) -> Tensor:
        """``<p_u, q_i>`` of rows of shape (B, d) and a table of shape (I, d); returns shape (B, I)."""
        return user_rows @ item_table.T

    def ego(self, users: Tensor, items: Tensor) -> list[Tensor]:
        """Return the trained rows behind users, shape (B,), and items, shape (C,)."""
        return [embedding(users, self.user), embedding(items, self.item)]


class NeuMF(nn.Module):
    r"""Neural matrix factorisation: a generalised product and a perceptron, added.

    ::

        score(u, i) = <w, p_u * q_i> + v . MLP([r_u ; s_i]) + b
        MLP = ReLU(W_n ... ReLU(W_1 [r_u ; s_i] + b_1) ... + b_n)

    A user row is ``[p_u ; r_u]`` and an item row is ``[q_i ; s_i]``, 2 * dim numbers each. The first layer is linear in
    both halves, ``W_1 [r ; s] = W_r r + W_s s``, so it is computed once per user and once per item and added.

    Parameters
    ----------
    n_users, n_items : int
        U and I, at least 1.
    dim : int
        Width of each of the four embeddings; tables are 2 * dim wide.
    hidden : sequence of int
        Widths of the layers after the 2 * dim wide input. The default with ``dim=32`` is the network
        usually written "64-32-16-8", which counts its input.
    init_std : float
        Standard deviation of the initial embeddings. Weights of layers use He's uniform law, biases start at 0.
    generator : torch.Generator
        Source of the initial values, on the CPU.
    dtype : torch.dtype
        float32 or float64.

    Raises
    ------
    InputError
        When a size is below 1 or `hidden` is empty.

    References
    ----------
    He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", WWW 2017.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int = 32,
        hidden: Sequence[int] = (32, 16, 8),
        *,
        init_std: float = 0.01,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not hidden:
            raise InputError("hidden = ()", "at least one layer width", "pass for example hidden=(32, 16, 8)")
        _check_sizes(n_users=n_users, n_items=n_items, dim=dim, smallest_hidden_layer=min(hidden))
        self.dim = dim
        self.user = _normal((n_users, 2 * dim), init_std, generator, dtype)
        self.item = _normal((n_items, 2 * dim), init_std, generator, dtype)
        widths = [2 * dim, *hidden]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for wide, narrow in pairwise(widths):
            self.weights.append(_uniform((narrow, wide), (6.0 / wide) ** 0.5, generator, dtype))
            self.biases.append(nn.Parameter(torch.zeros(narrow, dtype=dtype)))
        fan = dim + widths[-1]
        self.product_weight = _uniform((dim,), fan**-0.5, generator, dtype)
        self.out_weight = _uniform((widths[-1],), fan**-0.5, generator, dtype)
        self.out_bias = nn.Parameter(torch.zeros((), dtype=dtype))

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return ``[p ; r]``, shape (U, 2 dim), and ``[q ; s]``, shape (I, 2 dim)."""
        return self.user, self.item

    def _first(self, user_rows: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor]:
        """First layer before its ReLU, split in its user half and its item half with the bias."""
        of_user, of_item = self.weights[0].split(self.dim, dim=1)
        return linear(user_rows[:, self.dim :], of_user), linear(item_rows[:, self.dim :], of_item, self.biases[0])

    def _rest(self, first: Tensor) -> Tensor:
        """Everything after the first layer's sum; shape (..., hidden[0]) to (...)."""
        layer = torch.relu(first)
        for weight, bias in zip(list(self.weights)[1:], list(self.biases)[1:], strict=True):
            layer = torch.relu(linear(layer, weight, bias))
        return layer @ self.out_weight + self.out_bias

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        """Score paired rows, each of shape (B, 2 dim); returns logits of shape (B,)."""
        of_user, of_item = self._first(user_rows, item_rows)
        product = (user_rows[:, : self.dim] * item_rows[:, : self.dim]) @ self.product_weight
        return product + self._rest(of_user + of_item)

    def score_all(self, user_rows: Tensor, item_table: Tensor) -> Tensor:
        """Score rows of shape (B, 2 dim) against a table of shape (I, 2 dim); returns logits of shape (B, I).

        Items go in chunks, so that no more than about two million numbers of the first layer exist at once.
        """
        of_user, of_item = self._first(user_rows, item_table)
        width = max(1, _CHUNK_ELEMENTS // max(1, of_user.numel()))
        parts = [self._rest(of_user[:, None] + chunk[None]) for chunk in torch.split(of_item, width)]  # (B, width) each
        product = (user_rows[:, : self.dim] * self.product_weight) @ item_table[:, : self.dim].T
        return product + torch.cat(parts, dim=1)

    def ego(self, users: Tensor, items: Tensor) -> list[Tensor]:
        """Return the trained rows behind users, shape (B,), and items, shape (C,)."""
        return [embedding(users, self.user), embedding(items, self.item)]


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator, dtype: torch.dtype) -> nn.Parameter:
    """Draw from the uniform law on [-bound, bound] in float64, then cast."""
    unit = torch.rand(shape, generator=generator, dtype=torch.float64)
    return nn.Parameter(((2 * unit - 1) * bound).to(dtype))


class _Smooth(torch.autograd.Function):
    r"""``P x`` with ``P = (1 / (K + 1)) sum_{k=0..K} A^k`` and A symmetric.

    A polynomial of a symmetric matrix is symmetric, so the backward pass is the same function of the incoming
    gradient: no transpose, no activations kept, and derivatives of any order for free.
    """

    @staticmethod
    def forward(table: Tensor, crow: Tensor, col: Tensor, value: Tensor, layers: int) -> Tensor:
        size = table.shape[0]
        adjacency = torch.sparse_csr_tensor(crow, col, value, (size, size), check_invariants=False)
        out = table
        for _ in range(layers):  # Horner: x + A (x + A (x + ...)), K products and no list of layers
            out = torch.addmm(table, adjacency, out)
        return out / (layers + 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, crow, col, value, layers = inputs
        ctx.save_for_backward(crow, col, value)
        ctx.layers = layers

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        smooth: Tensor = _Smooth.apply(grad, *ctx.saved_tensors, ctx.layers)  # type: ignore[no-untyped-call]
        return smooth, None, None, None, None


class LightGCN(nn.Module):
    r"""Light graph convolution on the user-item graph of the training interactions.

    ::

        A       = D^{-1/2} [[0, R], [R', 0]] D^{-1/2}        R (U, I) of 0 and 1, D the degrees
        E       = (1 / (K + 1)) sum_{k=0..K} A^k E_0          E_0 (U + I, d) trained
        score   = <E_u, E_i>

    A user or an item without an interaction has degree 0; its row of A is zero and its row of E is
    ``E_0 / (K + 1)``.

    Parameters
    ----------
    n_users, n_items : int
        U and I, at least 1.
    interactions : scipy.sparse.csr_array, shape (U, I)
        Training interactions. Every stored entry counts as one edge whatever its value; duplicates collapse.
    dim : int
        d, at least 1.
    layers : int
        K, at least 0; ``layers=0`` is `BPRMF`.
    init_std : float
        Standard deviation of the initial values.
    generator : torch.Generator
        Source of the initial values, on the CPU.
    dtype : torch.dtype
        float32 or float64.

    Raises
    ------
    InputError
        When a size is out of range or the interactions have another shape.

    References
    ----------
    He, Deng, Wang, Li, Zhang, Wang, "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation",
    SIGIR 2020.
    """

    crow: Tensor
    col: Tensor
    value: Tensor

    def __init__(
        self,
        n_users: int,
        n_items: int,
        interactions: Csr,
        dim: int = 64,
        layers: int = 3,
        *,
        init_std: float = 0.1,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check_sizes(n_users=n_users, n_items=n_items, dim=dim)
        if layers < 0:
            raise InputError(f"layers = {layers}", "an integer of at least 0", "set layers to at least 0")
        self.n_users, self.n_items, self.layers = n_users, n_items, layers
        # One table for both sides: propagation reads it as it is, without a concatenation per step.
        self.table = _normal((n_users + n_items, dim), init_std, generator, dtype)
        graph = _adjacency(interactions, n_users, n_items)
        # Plain arrays and 32-bit indices: modules copy and move them, and the product is 1.5 to 2 times as fast as with
        # 64 bits on one core.
        for name, array in (("crow", graph.indptr), ("col", graph.indices)):
            self.register_buffer(name, torch.from_numpy(array.astype(np.int32)), persistent=False)
        self.register_buffer("value", torch.from_numpy(graph.data).to(dtype), persistent=False)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return the propagated user table, shape (U, d), and item table, shape (I, d)."""
        smooth: Tensor = _Smooth.apply(self.table, self.crow, self.col, self.value, self.layers)  # type: ignore[no-untyped-call]
        users, items = torch.split(smooth, [self.n_users, self.n_items])
        return users, items

    def score(self, user_rows: Tensor, item_rows: Tensor) -> Tensor:
        """``<E_u, E_i>`` of paired rows, each of shape (B, d); returns shape (B,)."""
        return (user_rows * item_rows).sum(-1)

    def score_all(self, user_rows: Tensor, item_table: Tensor) -> Tensor:
        """``<E_u, E_i>`` of rows of shape (B, d) and a table of shape (I, d); returns shape (B, I)."""
        return user_rows @ item_table.T

    def ego(self, users: Tensor, items: Tensor) -> list[Tensor]:
        """Return the rows of E_0 behind users, shape (B,), and items, shape (C,): not the propagated ones."""
        return [embedding(users, self.table), embedding(items + self.n_users, self.table)]


def _adjacency(interactions: Csr, n_users: int, n_items: int) -> Csr:
    """Symmetrically normalised adjacency, shape (U + I, U + I), float64, sorted indices, exactly symmetric."""
    from scipy import sparse

    pattern = _pattern(interactions, n_users, n_items).astype(np.float64)
    whole = sparse.block_array([[None, pattern], [pattern.T, None]], format="csr")
    degree = np.diff(whole.indptr)
    scale = np.where(degree > 0, 1.0 / np.sqrt(np.maximum(degree, 1)), 0.0)
    whole.data = np.repeat(scale, degree) * scale[whole.indices]
    whole.sort_indices()
    return whole


def _pattern(matrix: Csr, n_users: int, n_items: int) -> Csr:
    """Return a (U, I) CSR matrix with sorted indices and no duplicates; the input is left as it was."""
    from scipy import sparse

    if tuple(matrix.shape) != (n_users, n_items):
        raise InputError(
            f"interactions of shape {tuple(matrix.shape)}",
            f"shape ({n_users}, {n_items}), users by items",
            "build the interactions and the model from the same log",
        )
    csr = sparse.csr_array(matrix)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr


Backbone = BPRMF | NeuMF | LightGCN
"""Any of the three."""


def build(
    backbone: Literal["bprmf", "neumf", "lightgcn"],
    n_users: int,
    n_items: int,
    train_csr: Csr,
    dim: int,
    layers: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    *,
    init_std: float | None = None,
) -> Backbone:
    """Make a backbone by name.

    Parameters
    ----------
    backbone : {"bprmf", "neumf", "lightgcn"}
        Which one.
    n_users, n_items : int
        U and I.
    train_csr : scipy.sparse.csr_array, shape (U, I)
        Training interactions; only LightGCN reads them.
    dim : int
        Embedding width; NeuMF's tables are twice as wide, and its layers are dim, dim / 2 and dim / 4 wide.
    layers : int
        Propagation layers of LightGCN; the others ignore it.
    generator : torch.Generator
        Source of the initial values.
    dtype : torch.dtype
        float32 or float64.
    init_std : float, optional
        Standard deviation of the initial embeddings; by default each class's own.

    Returns
    -------
    BPRMF or NeuMF or LightGCN

    Raises
    ------
    InputError
        When the name is unknown or a size is out of range.
    """
    std = {} if init_std is None else {"init_std": init_std}
    if backbone == "bprmf":
        return BPRMF(n_users, n_items, dim, generator=generator, dtype=dtype, **std)
    if backbone == "neumf":
        hidden = tuple(max(1, dim // divisor) for divisor in (1, 2, 4))
        return NeuMF(n_users, n_items, dim, hidden, generator=generator, dtype=dtype, **std)
    if backbone == "lightgcn":
        return LightGCN(n_users, n_items, train_csr, dim, layers, generator=generator, dtype=dtype, **std)
    raise InputError(f"backbone = {backbone!r}", "'bprmf', 'neumf' or 'lightgcn'", "choose one of the three")


def draw_negatives(
    users: NDArray[np.int64], seen: Csr, n_items: int, rng: np.random.Generator, k: int = 1
) -> NDArray[np.int64]:
    r"""Draw items that each user has not seen, uniformly and with replacement.

    With the seen items of a user sorted, ``s_0 < s_1 < ...``, the r-th unseen item is ``r + #{j : s_j - j <= r}``.
    So one rank r per draw and one binary search give the exact law: nothing is rejected, and a user who has seen
    nearly everything costs no more than another.

    Parameters
    ----------
    users : ndarray of int64, shape (B,)
        User of each row; repeats are fine.
    seen : scipy.sparse.csr_array, shape (U, I)
        Every stored entry counts as seen.
    n_items : int
        I.
    rng : numpy.random.Generator
        Source of randomness. Call once per epoch, so that negatives are fresh.
    k : int
        Draws per row, at least 1.

    Returns
    -------
    ndarray of int64, shape (B, k)

    Raises
    ------
    InputError
        When a user has seen every item, a user is unknown, k is below 1 or `seen` has another number of items.
    """
    users = np.asarray(users, dtype=np.int64)
    _check_sizes(k=k)
    n_users = seen.shape[0]
    seen = _pattern(seen, n_users, n_items)
    if users.size and not 0 <= users.min() <= users.max() < n_users:
        raise InputError(
            f"user codes from {users.min()} to {users.max()}", f"0 to {n_users - 1}", "use the codes of the same log"
        )
    start = seen.indptr.astype(np.int64)
    held = np.diff(start)
    free = (n_items - held)[users]
    if (free == 0).any():
        full = np.unique(users[free == 0])
        raise InputError(
            f"{full.size} user(s) who have seen all {n_items} items, the first is user {full[0]}",
            "users with at least one unseen item",
            "leave these users out of training, or add items",
        )
    return unseen_items(users, rng.integers(0, free[:, None], size=(users.size, k)), start, seen.indices, n_items)


def unseen_items(
    users: NDArray[np.int64], rank: NDArray[np.int64], start: NDArray[np.int64], seen: NDArray[Any], n_items: int
) -> NDArray[np.int64]:
    """Return the items of some ranks among those that each user has not seen, shape (B, k).

    Parameters
    ----------
    users : ndarray of int64, shape (B,)
        User of each row.
    rank : ndarray of int64, shape (B, k)
        From 0 up to the number of unseen items of the row's user, less one.
    start : ndarray of int64, shape (U + 1,)
        The seen items of user u are ``seen[start[u]:start[u + 1]]``.
    seen : ndarray of integers, shape (N,)
        Sorted and without duplicates within each user.
    n_items : int
        I.
    """
    held = np.diff(start)
    place = np.arange(start[-1]) - np.repeat(start[:-1], held)
    # n_items + 1 slots a user: s_j - j reaches n_items - held, never more, so users cannot overlap.
    keys = np.repeat(np.arange(len(held)) * (n_items + 1), held) + seen - place
    below = np.searchsorted(keys, (users * (n_items + 1))[:, None] + rank, side="right") - start[users][:, None]
    found: NDArray[np.int64] = rank + below
    return found
