r"""FedRecGEL: federated recommendation, one user a client, with sharpness-aware gradients.

Problem::

    min over s, {u_c}   mean over c of   max_{||e|| <= rho_shared} L_c(s + e, u_c) + max_{||e|| <= rho_private} L_c(s, u_c + e)
    L_c = sum over blocks of 128 samples of the block's mean of   softplus(z) - y z,   z = f(s, u_c; item)

s, the item table and the layers, lies at the server; u_c never leaves the client.

A round::

    1  the server asks floor(fraction U) clients and sends s
    2  a client shuffles its items and draws, for each, 4 others that it has not met, without replacement
    3  g = gradient of L_c at (s, u);  e_s = rho_shared g_s / ||g_s||,  e_u = rho_private g_u / ||g_u||, one norm a block
    4  G_s = gradient by s at (s + e_s, u);  G_u = gradient by u at (s, u + e_u): the blocks are never moved together
    5  u moves by Adam with G_u and the client's own count of steps
    6  the client sends the rows of G_s that are not zero, and the gradients of the layers
    7  s moves by Adam with the mean of the replies that arrived; rows that nobody touched move by their momentum

Samples of one item are merged before anything is computed: with ``b`` the weight of an item's samples and ``a`` that of
its positive ones, ``L_c = sum over items of b softplus(z) - a z``. So the table's leaf is ``(C, R, d)``, a row for each
item that a client touches, and the norm of step 3 is that of the table's true gradient.

Shapes: C clients in one program, R rows of the client with the most, d the width of an item's row.

Deviations from the published code: (D1) a norm of exactly 0 gives no perturbation, and nothing is added to another
norm; (D2) the server's rate is a setting (there it is fixed at 0.001); (D3) radii of both blocks may be random
directions, replies may be clipped, noised and padded.

Cost: three forward and backward passes over R rows a client; `traffic` and `flops` count them.

An algorithm here has the methods of `upright.federation.rounds.Algorithm`; this wing does not import it.

Source: *FedRecGEL* (The Web Conference 2026), for the paper's step; He et al., *Neural Collaborative Filtering* (2017),
for the layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from upright.contract import (
    Config,
    InputError,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    stream,
)
from upright.models.recommenders import unseen_items

__all__ = [
    "Device",
    "FedRecConfig",
    "FedRecGEL",
    "Shape",
    "adam",
    "ascent",
    "client_loss",
    "devices_of",
    "draw_samples",
    "epsilon",
    "flops",
    "gradients",
    "logits",
    "merge",
    "score_all",
    "scores_on",
    "three_passes",
    "traffic",
]

Array = NDArray[Any]
Arrays = dict[str, NDArray[Any]]
State = dict[str, Any]
Radius = Annotated[float, Range(ge=0, lt=math.inf)]
CAP = 1e6
"""Largest norm of a reply that is averaged."""
PAIRS = 1 << 21
"""Most numbers of the first hidden layer held at once while scoring."""


class FedRecConfig(Config):
    """Settings of the algorithm and of its clients; both ends must have the same."""

    n_items: PositiveInt
    """I at the start; a catalogue grows by `FedRecGEL.grown`."""
    n_clients: PositiveInt | None = None
    """U, known beforehand; needed with noise, whose denominator is fixed."""
    backbone: Literal["dot", "neumf", "neumf-paper"] = "dot"
    """``dot``: inner product; ``neumf``: two tables of width dim; ``neumf-paper``: the second four times as wide."""
    dim: PositiveInt = 32
    """Width of the product."""
    rho_shared: Radius = 0.05
    """Radius of the perturbation of the shared block."""
    rho_private: Radius = 0.05
    """Radius of the perturbation of the user's vector."""
    direction: Literal["own", "random"] = "own"
    """Of both perturbations: along the gradient, or random over the rows that the client touches and all layers."""
    passes: Literal["sharp", "plain"] = "sharp"
    """``plain``: one pass and its gradient (FedNCF)."""
    fraction: Annotated[float, Range(gt=0, le=1)] = 0.1
    """Share of the clients asked in a round."""
    poisson: bool = False
    """Ask each client independently with probability `fraction`; always so with noise."""
    rounds: PositiveInt = 100
    """Rounds of training."""
    server_rate: PositiveFloat = 0.01
    """Adam's rate at the server."""
    client_rate: PositiveFloat = 0.1
    """Adam's rate at the client."""
    weight_decay: NonNegativeFloat = 0.0
    """The shared block shrinks by the factor ``1 - server_rate weight_decay`` a round, apart from Adam."""
    negatives: NonNegativeInt = 4
    """Items drawn for each positive; fewer where a user has not so many left."""
    block: PositiveInt = 128
    """Samples of a block: each counts by one over the size of its block."""
    clip: PositiveFloat | None = None
    """Largest norm of a whole reply; a longer one is scaled down to it."""
    noise_multiplier: NonNegativeFloat = 0.0
    """Standard deviation of the noise on each number, over `clip`."""
    noise_at: Literal["server", "device"] = "server"
    """``server``: on the sum of replies; ``device``: on each reply, all rows of the table, before it is sent."""
    pad_to: PositiveInt | None = None
    """The number of rows of a reply is brought to a multiple of this; see `padded`."""
    view_every: NonNegativeInt = 0
    """Rounds between item-centred views in ``state["view"]``; 0 for none."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of everything that is sent and kept."""
    memory: PositiveInt = 1 << 22
    """Bytes of a tensor program's arrays, about; clients are run in chunks of this size."""
    seed: NonNegativeInt = 0
    """Of all streams. With noise it is a secret: who knows it can subtract the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_clients is not None:
            self.count_asked(self.n_clients)
        if self.noise_multiplier and (self.clip is None or (self.noise_at == "server" and self.n_clients is None)):
            raise InputError(
                f"noise_multiplier = {self.noise_multiplier}, clip = {self.clip}, n_clients = {self.n_clients}",
                "noise with a clip, and with n_clients where the server adds it",
                "set clip and n_clients: noise is measured by the clip, and the sum is divided by a fixed number",
            )

    def count_asked(self, clients: int) -> int:
        """Return ``floor(fraction U)``.

        Raises
        ------
        InputError
            Where that is nobody.
        """
        asked = math.floor(self.fraction * clients + 1e-9)
        if not asked:
            raise InputError(
                f"fraction = {self.fraction} of {clients} clients asks nobody",
                f"a fraction of at least {1 / max(clients, 1):.3g}" if clients else "one client or more",
                "raise fraction or register more clients",
            )
        return asked

    def widths(self) -> tuple[int, int, tuple[int, ...]]:
        """Return the width of the product, of the layers' half of a row, and of the hidden layers."""
        if self.backbone == "dot":
            return self.dim, 0, ()
        wide = 4 * self.dim if self.backbone == "neumf-paper" else self.dim
        return self.dim, wide, (wide, max(1, wide // 2), max(1, wide // 4))


class Shape(NamedTuple):
    """What an array of a reply must be; a first length of None is free."""

    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Device:
    """One client's data.

    Parameters
    ----------
    name : str
    items : ndarray of int64, shape (n,)
        Training items, sorted, each once. A device without one sends no rows, and its reply is not averaged.

    Raises
    ------
    InputError
        For items out of order, repeated or negative.
    """

    name: str
    items: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.items.ndim != 1 or (np.diff(self.items) <= 0).any() or (self.items < 0).any():
            raise InputError(
                f"client {self.name!r} with items that are not increasing",
                "codes of at least 0, sorted, each once",
                "pass numpy.unique of the items",
            )


def devices_of(user: NDArray[np.int64], item: NDArray[np.int64], n_users: int) -> dict[str, Device]:
    """Return the device of each user with an interaction, by name: ``u`` and the code, of one length for all.

    Parameters
    ----------
    user, item : ndarray of int64, shape (N,)
        Codes of the training interactions; repeats count once.
    n_users : int
        U.
    """
    order = np.lexsort((item, user))
    user, item = user[order], item[order]
    new = np.r_[True, (np.diff(user) != 0) | (np.diff(item) != 0)][: len(user)]
    user, item = user[new], item[new].astype(np.int64)
    first = np.flatnonzero(np.r_[True, np.diff(user) != 0][: len(user)])
    width = len(str(n_users - 1))
    names = [f"u{code:0{width}d}" for code in user[first]]
    return {n: Device(n, own) for n, own in zip(names, np.split(item, first[1:]), strict=True)} if names else {}


# -- samples (step 2) -------------------------------------------------------------------------------------------------


def draw_samples(
    items: Sequence[NDArray[np.int64]], rngs: Sequence[np.random.Generator], n_items: int, config: FedRecConfig
) -> tuple[Array, Array, Array, Array]:
    """Return client, item, label and weight of each sample of some clients, shape (N,) each.

    A client's samples are its items in random order, each followed by its negatives: distinct, uniform over what is not
    among the client's items, fewer where fewer are left. The weight is one over the size of the sample's block.

    Parameters
    ----------
    items : sequence of ndarray of int64
        Each client's, sorted.
    rngs : sequence of numpy.random.Generator
        Each client's: what is drawn for one does not depend on the others.
    """
    size, k = np.array([len(own) for own in items]), config.negatives
    owner, start = np.repeat(np.arange(len(items)), size), np.r_[0, np.cumsum(size)]
    draws = np.concatenate([rng.random((n, 1 + k)) for rng, n in zip(rngs, size, strict=True)])
    seen = np.concatenate(items)
    positive = seen[np.lexsort((draws[:, 0], owner))]
    free = (n_items - size)[owner]
    rank = np.zeros((len(owner), k), dtype=np.int64)
    for j in range(k):  # the j-th is drawn among what j earlier ones left, and steps over them
        own = np.floor(draws[:, 1 + j] * np.maximum(free - j, 0)).astype(np.int64)
        for earlier in np.sort(rank[:, :j], axis=1).T:
            own += own >= earlier
        rank[:, j] = own
    item = np.concatenate([positive[:, None], unseen_items(owner, rank, start, seen, n_items)], axis=1)
    there = np.arange(1 + k) <= np.minimum(free, k)[:, None]
    each = 1 + np.minimum(n_items - size, k)  # samples a positive
    place = (np.arange(len(owner)) - start[owner])[:, None] * each[owner][:, None] + np.arange(1 + k)
    left = (size * each)[owner][:, None] - place // config.block * config.block
    weight = 1.0 / np.minimum(config.block, left)
    label = np.broadcast_to(np.arange(1 + k) == 0, item.shape)
    return np.broadcast_to(owner[:, None], item.shape)[there], item[there], label[there], weight[there]


def merge(
    owner: Array, item: Array, label: Array, weight: Array, n_items: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
    """Return client and item of each row, and the weights a (positive) and b (all) of its samples, shape (M,) each.

    A client's rows follow each other, by item.
    """
    key, inverse = np.unique(owner * n_items + item, return_inverse=True)
    b = np.bincount(inverse, weight, len(key))
    return key // n_items, key % n_items, np.bincount(inverse, weight * label, len(key)), b


# -- gradients (steps 3 and 4) ----------------------------------------------------------------------------------------


def logits(rows: Tensor, user: Tensor, net: Mapping[str, Tensor]) -> Tensor:
    """Return z of each row, shape (C, R).

    ::

        z = <u, row>                                                        dot
        z = <o_1, u_1 * row_1> + <o_2, MLP([u_2; row_2])> + bias            neumf

    Parameters
    ----------
    rows : Tensor, shape (C, R, d), or (1, R, d) where all clients look at the same
    user : Tensor, shape (C, d)
    net : mapping of str to Tensor
        Layers, with a leading axis of clients or without; empty for dot.
    """
    wide = net["w1"].shape[-1] // 2 if net else 0
    g = rows.shape[-1] - wide
    left = user[:, :g] * net["out"][..., :g] if net else user
    z = left @ rows[0, :, :g].T if len(rows) == 1 else (rows[..., :g] @ left[..., None]).squeeze(-1)
    if not net:
        return z
    first = net["w1"].mT
    h = rows[..., g:] @ first[..., wide:, :] + (user[:, None, g:] @ first[..., :wide, :] + net["b1"].unsqueeze(-2))
    for layer in range(2, len(net) // 2):
        h = torch.relu(h) @ net[f"w{layer}"].mT + net[f"b{layer}"].unsqueeze(-2)
    return z + (torch.relu(h) @ net["out"][..., g:, None]).squeeze(-1) + net["bias"].unsqueeze(-1)


def client_loss(rows: Tensor, user: Tensor, net: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """``L_c = sum over rows of b softplus(z) - a z``, shape (C,); a, b of shape (C, R), 0 where a row is filling."""
    z = logits(rows, user, net)
    return (b * softplus(z) - a * z).sum(1)


def gradients(block: Mapping[str, Tensor], a: Tensor, b: Tensor, by: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return each client's loss, shape (C,), and its gradients by some of ``rows``, ``user`` and the layers."""
    leaf = dict(block) | {name: block[name].detach().requires_grad_() for name in by}
    net = {name: value for name, value in leaf.items() if name not in ("rows", "user")}
    loss = client_loss(leaf["rows"], leaf["user"], net, a, b)
    found = torch.autograd.grad(loss.sum(), [leaf[name] for name in by])
    return loss.detach(), dict(zip(by, found, strict=True))


def ascent(along: Mapping[str, Tensor], rho: float) -> dict[str, Tensor]:
    """``e = rho g / ||g||`` of each client, with one norm over all tensors, each of shape (C, ...); 0 where g is 0.

    Guarantee
    ---------
    ``||e|| = rho`` up to rounding, wherever g is not 0.
    """
    norm = sum(g.reshape(len(g), -1).square().sum(1) for g in along.values()).sqrt()  # type: ignore[union-attr]
    scale = torch.where(norm > 0, rho / norm, 0.0)
    return {name: g * scale.view(-1, *[1] * (g.dim() - 1)) for name, g in along.items()}


def three_passes(
    config: FedRecConfig,
    rows: Tensor,
    user: Tensor,
    net: Mapping[str, Tensor],
    a: Tensor,
    b: Tensor,
    directions: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return G_s and G_u of each client, and by how much either perturbation raised its loss, shape (C, 2).

    Parameters
    ----------
    rows, user, a, b : Tensor, shapes (C, R, d), (C, d), (C, R), (C, R)
    net : mapping of str to Tensor
        Layers, the same for all.
    directions : mapping of str to Tensor, optional
        Taken in place of the gradients in step 3.
    """
    own = {name: value.expand(len(rows), *value.shape) for name, value in net.items()}
    shared = ["rows", *net]
    here, g = gradients({"rows": rows, "user": user, **own}, a, b, [*shared, "user"])
    if config.passes == "plain":
        return g, torch.zeros(len(rows), 2)
    along = g if directions is None else directions
    e = ascent({name: along[name] for name in shared}, config.rho_shared)
    moved = {"rows": rows + e.pop("rows"), "user": user, **{name: own[name] + e.pop(name) for name in net}}
    up, found = gradients(moved, a, b, shared)
    e = ascent({"user": along["user"]}, config.rho_private)
    side, private = gradients({"rows": rows, "user": user + e["user"], **net}, a, b, ["user"])
    return found | private, torch.stack([up - here, side - here], 1)


def adam(
    value: Array, gradient: Array, first: Array, second: Array, step: Any, rate: float
) -> tuple[Array, Array, Array]:
    """Return a value and both moments after a step of Adam, ``step`` counted from 1, a number or one a row."""
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    change = rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    kind = value.dtype
    return (value - change).astype(kind), first.astype(kind), second.astype(kind)


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some clients side by side: places among the asked, rows of each, and arrays for `three_passes`."""

    place: NDArray[np.int64]
    count: NDArray[np.int64]
    item: NDArray[np.int64]
    weights: tuple[Tensor, Tensor]


def _chunks(owner: Array, item: Array, a: Array, b: Array, clients: int, config: FedRecConfig) -> Iterator[_Chunk]:
    """Yield clients with rows in chunks of like size, from the fewest rows on."""
    count = np.bincount(owner, minlength=clients)
    start = np.r_[0, np.cumsum(count)]
    g, wide, hidden = config.widths()
    size = np.dtype(config.dtype).itemsize
    a_row, a_net = 4 * (g + wide + sum(hidden)), 4 * sum(math.prod(s) for s in _layers(config).values())
    kind = getattr(torch, config.dtype)
    order = [int(c) for c in np.argsort(count, kind="stable") if count[c]]
    while order:
        n = 1
        while n < len(order) and (n + 1) * (count[order[n]] * a_row + a_net) * size <= config.memory:
            n += 1
        place, order = np.array(order[:n]), order[n:]
        shape = (n, int(count[place[-1]]))
        there = np.arange(shape[1]) < count[place][:, None]
        source = (start[place][:, None] + np.arange(shape[1]))[there]
        items, weights = np.zeros(shape, dtype=np.int64), np.zeros((2, *shape))
        items[there], weights[:, there] = item[source], (a[source], b[source])
        filled = torch.from_numpy(weights).to(kind)
        yield _Chunk(place, count[place], items, (filled[0], filled[1]))


def _layers(config: FedRecConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer by name."""
    g, wide, hidden = config.widths()
    if not hidden:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (narrow, broad) in enumerate(pairwise((2 * wide, *hidden)), start=1):
        shapes |= {f"w{number}": (broad, narrow), f"b{number}": (broad,)}
    return shapes | {"out": (g + hidden[-1],), "bias": ()}


# -- the algorithm ----------------------------------------------------------------------------------------------------


class FedRecGEL:
    """The algorithm of this module's page; FedNCF with ``passes="plain"``.

    Parameters
    ----------
    config : FedRecConfig
    """

    def __init__(self, config: FedRecConfig) -> None:
        self.config = config

    def _rows(self, first: int, last: int) -> Array:
        """Return initial rows of some items: a longer catalogue starts with the same ones."""
        g, wide, _ = self.config.widths()
        rng = np.random.default_rng(stream(self.config.seed, "item"))
        return (0.01 * rng.standard_normal((last, g + wide))[first:]).astype(self.config.dtype)

    def start(self) -> State:
        """Return the first state: rows N(0, 0.01^2), layers Xavier-uniform, output Kaiming-uniform, biases 0."""
        kind, rng = self.config.dtype, np.random.default_rng(stream(self.config.seed, "layers"))
        shared = {"item": self._rows(0, self.config.n_items)}
        for name, shape in _layers(self.config).items():
            bound = 0.0
            if name == "out":
                bound = math.sqrt(3.0 / shape[0])
            elif name.startswith("w"):
                bound = math.sqrt(6.0 / sum(shape))
            shared[name] = np.asarray(rng.uniform(-bound, bound, shape), dtype=kind)
        state: State = {"round": 1, "server_step": 0, "history": []}
        state |= {f"shared.{name}": value for name, value in shared.items()}
        return state | {f"{moment}.{name}": np.zeros_like(v) for moment in "mv" for name, v in shared.items()}

    def grown(self, state: State, n_items: int) -> State:
        """Return a state with more items, which start where they would have started; old clients go on.

        Raises
        ------
        InputError
            For fewer items than there are.
        """
        old = len(state["shared.item"])
        if n_items < old:
            raise InputError(
                f"{n_items} items after {old}", "at least as many as before", "keep codes of removed items"
            )
        new = self._rows(old, n_items)
        more = {"shared.item": new, "m.item": np.zeros_like(new), "v.item": np.zeros_like(new)}
        return state | {name: np.concatenate([state[name], rows]) for name, rows in more.items()}

    def sample(self, state: State, names: Sequence[str]) -> list[str]:
        """Return who is asked in a round (step 1): each client has a stream of its own, so their order is nothing.

        Raises
        ------
        InputError
            Where nobody is asked.
        """
        seed, turn = self.config.seed, int(state["round"])
        keys = {name: stream(seed, "sample", name, turn) for name in names}
        asked = self.config.count_asked(len(keys))
        if not (self.config.poisson or self.config.noise_multiplier):
            return sorted(sorted(keys, key=lambda name: (keys[name], name))[:asked])
        found = sorted(name for name, key in keys.items() if key < self.config.fraction * 2.0**63)
        if not found:
            raise InputError(
                f"round {turn}: fraction = {self.config.fraction} of {len(keys)} clients asked nobody by chance",
                "a fraction that asks several clients on average",
                "raise fraction or register more clients",
            )
        return found

    def message(self, state: State) -> Arrays:
        """Return the round and the shared block."""
        shared = {name: value for name, value in state.items() if name.startswith("shared.")}
        return {"round": np.array([state["round"]]), **shared}

    def template(self, state: State, name: str) -> dict[str, Shape]:
        """Return what a reply holds: row numbers, their gradients, the layers' gradients."""
        kind, width = self.config.dtype, state["shared.item"].shape[1]
        net = {f"net.{layer}": Shape(kind, shape) for layer, shape in _layers(self.config).items()}
        return {"rows": Shape("int64", (None,)), "values": Shape(kind, (None, width)), **net}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply of the right shapes."""
        rows, n_items = reply["rows"], len(state["shared.item"])
        if not len(rows):
            return "no rows: a client without interactions"
        if len(rows) != len(reply["values"]):
            return f"{len(rows)} row numbers for {len(reply['values'])} rows"
        if rows.min() < 0 or rows.max() >= n_items:
            return f"rows from {rows.min()} to {rows.max()} of a table of {n_items}"
        if (np.diff(rows) <= 0).any():
            return "row numbers that do not increase"
        limit = CAP
        if self.config.clip is not None and not (self.config.noise_multiplier and self.config.noise_at == "device"):
            limit = 1.0001 * self.config.clip
        length = _length(reply)
        return "" if length <= limit else f"norm {length:.3g} beyond {limit:.3g}"

    def client(self, message: Arrays, private: Arrays, data: Device) -> tuple[Arrays, Arrays]:
        """Answer as one client."""
        return self.clients(message, {data.name: private}, {data.name: data})[data.name]

    def clients(
        self, message: Arrays, privates: Mapping[str, Arrays], datas: Mapping[str, Device]
    ) -> dict[str, tuple[Arrays, Arrays]]:
        """Answer as several clients in one tensor program (steps 2 to 6).

        Raises
        ------
        InputError
            For an item that the message's table does not have.
        """
        names, turn = sorted(datas), int(message["round"][0])
        zeros = {f"net.{k}": np.zeros(s, dtype=self.config.dtype) for k, s in _layers(self.config).items()}
        width = message["shared.item"].shape[1]
        none = {"rows": np.zeros(0, dtype=np.int64), "values": np.zeros((0, width), dtype=self.config.dtype), **zeros}
        out = {name: (none, dict(privates[name])) for name in names}
        for chunk, rngs, user, found, _ in self._passes(message, privates, datas, names):
            own = [self._memory(privates[names[c]], names[c]) for c in chunk.place]
            first, second, step = (np.stack([one[key] for one in own]) for key in ("m", "v", "step"))
            step = step + 1
            moved = adam(user, found.pop("user"), first, second, step[:, None], self.config.client_rate)  # step 5
            values = found.pop("rows")
            for i, c in enumerate(chunk.place):
                n = chunk.count[i]
                reply = {"rows": chunk.item[i, :n], "values": values[i, :n]}
                reply |= {f"net.{name}": v[i] for name, v in found.items()}
                memory = {key: v[i].copy() for key, v in zip(("user", "m", "v"), moved, strict=True)}
                out[names[c]] = (
                    self._protected(reply, rngs[i], names[c], turn, len(message["shared.item"])),
                    memory | {"step": np.array(step[i])},
                )
        return out

    def sharpness(
        self, message: Arrays, privates: Mapping[str, Arrays], datas: Mapping[str, Device]
    ) -> tuple[list[str], NDArray[np.float64]]:
        """Return names and by how much the perturbations of both blocks raise each client's loss, shape (C, 2).

        Taken along the gradient at the config's radii, whatever its `passes` and `direction`; nothing else is computed
        or changed. A client without interactions has NaN.
        """
        own = FedRecGEL(self.config.replace(passes="sharp", direction="own"))
        names = sorted(datas)
        rise = np.full((len(names), 2), np.nan)
        for chunk, _, _, _, found in own._passes(message, privates, datas, names):
            rise[chunk.place] = found
        return names, rise

    def _memory(self, private: Arrays, name: str) -> Arrays:
        """Return a client's memory, the first one where it has none."""
        if private:
            return private
        g, wide, _ = self.config.widths()
        rng = np.random.default_rng(stream(self.config.seed, "user", name))
        user = (0.01 * rng.standard_normal(g + wide)).astype(self.config.dtype)
        return {"user": user, "m": np.zeros_like(user), "v": np.zeros_like(user), "step": np.array(0)}

    def users(self, privates: Mapping[str, Arrays], names: Sequence[str]) -> Array:
        """Return the vectors of some clients, shape (C, d); who was never asked has the first one."""
        return np.stack([self._memory(privates.get(name, {}), name)["user"] for name in names])

    def private_rows(self, names: Sequence[str]) -> Arrays:
        """Return room for the memories of clients: arrays of zeros with a row a client."""
        g, wide, _ = self.config.widths()
        vectors = {key: np.zeros((len(names), g + wide), dtype=self.config.dtype) for key in ("user", "m", "v")}
        return {**vectors, "step": np.zeros(len(names), dtype=np.int64)}

    def _passes(
        self, message: Arrays, privates: Mapping[str, Arrays], datas: Mapping[str, Device], names: Sequence[str]
    ) -> Iterator[tuple[_Chunk, list[np.random.Generator], Array, Arrays, Array]]:
        """Yield chunks with their streams, user vectors, gradients and rises of the loss."""
        config, turn, table = self.config, int(message["round"][0]), message["shared.item"]
        for name in names:
            if len(datas[name].items) and datas[name].items[-1] >= len(table):
                raise InputError(
                    f"client {name!r} with item {datas[name].items[-1]}",
                    f"codes below {len(table)}, the server's catalogue",
                    "grow the catalogue at the server first",
                )
        rngs = [np.random.default_rng(stream(config.seed, "client", name, turn)) for name in names]
        net = {k: torch.from_numpy(np.array(message[f"shared.{k}"])) for k in _layers(config)}
        merged = merge(*draw_samples([datas[name].items for name in names], rngs, len(table), config), len(table))
        for chunk in _chunks(*merged, len(names), config):
            user = np.stack([self._memory(privates[names[c]], names[c])["user"] for c in chunk.place])
            rows, own = torch.from_numpy(np.take(table, chunk.item, 0)), [rngs[c] for c in chunk.place]
            along = _random(rows, net, chunk.count, own) if config.direction == "random" else None
            found, rise = three_passes(config, rows, torch.from_numpy(user), net, *chunk.weights, along)
            yield chunk, own, user, {name: v.numpy() for name, v in found.items()}, rise.numpy()

    def _protected(self, reply: Arrays, rng: np.random.Generator, name: str, turn: int, n_items: int) -> Arrays:
        """Return a reply as it is sent: padded, then clipped, then noised."""
        config = self.config
        if config.pad_to is not None:
            reply = padded(reply, config.pad_to, n_items, rng)
        if config.clip is not None:
            length = _length(reply)
            scale = np.array(min(1.0, config.clip / length) if length else 1.0, dtype=config.dtype)
            reply = {k: v if k == "rows" else v * scale for k, v in reply.items()}
        if config.noise_multiplier and config.noise_at == "device":
            dense = np.zeros((n_items, reply["values"].shape[1]), dtype=config.dtype)
            dense[reply["rows"]] = reply["values"]
            whole = {**reply, "rows": np.arange(n_items), "values": dense}
            reply = self._noised(whole, np.random.default_rng(stream(config.seed, "noise", name, turn)))
        return reply

    def _noised(self, arrays: Arrays, rng: np.random.Generator) -> Arrays:
        scale = self.config.noise_multiplier * (self.config.clip or 0.0)
        return {
            k: v if k == "rows" else (v + scale * rng.standard_normal(v.shape)).astype(v.dtype)
            for k, v in arrays.items()
        }

    def begin(self, state: State) -> State:
        """Return empty sums."""
        total: State = {"clients": 0, "rows": 0}
        shared = [name[7:] for name in state if name.startswith("shared.")]
        total["sum"] = {name: np.zeros(state[f"shared.{name}"].shape) for name in shared}
        if self.config.view_every and state["round"] % self.config.view_every == 0:
            total["view"] = (np.zeros(len(state["shared.item"]), dtype=np.int64), np.zeros_like(total["sum"]["item"]))
        return total

    def add(self, total: State, name: str, reply: Arrays) -> State:
        """Add a checked reply to the sums, in place."""
        rows, values = reply["rows"], reply["values"]
        total["clients"] += 1
        total["rows"] += len(rows)
        total["sum"]["item"][rows] += values  # no row twice: `objection` has seen to it
        for key, value in reply.items():
            if key.startswith("net."):
                total["sum"][key[4:]] += value
        if "view" in total:
            touched, direction = total["view"]
            length = np.linalg.norm(values.astype(np.float64), axis=1)
            there = length > 0
            touched[rows[there]] += 1
            direction[rows[there]] += values[there] / length[there, None]
        return total

    def finish(self, state: State, total: State) -> State:
        """Return the next state (step 7).

        ``history`` gains clients, rows, and the norms of the item table and of its change. ``view`` has, for each item,
        the number of clients that touched it, the mean cosine between two of their gradients (NaN below two clients)
        and by how much its row moved.
        """
        config, sums, count = self.config, total["sum"], total["clients"]
        if config.noise_multiplier and config.noise_at == "server":
            sums = self._noised(sums, np.random.default_rng(stream(config.seed, "noise", int(state["round"]))))
            count = config.fraction * int(config.n_clients or 0)
        new: State = {"round": state["round"] + 1, "server_step": state["server_step"] + 1}
        for name, value in sums.items():
            old = state[f"shared.{name}"] * np.array(1 - config.server_rate * config.weight_decay, dtype=config.dtype)
            moments = state[f"m.{name}"], state[f"v.{name}"]
            moved = adam(old, value / count, *moments, new["server_step"], config.server_rate)
            new |= {f"{kind}.{name}": one for kind, one in zip(("shared", "m", "v"), moved, strict=True)}
        change = new["shared.item"].astype(np.float64) - state["shared.item"]
        entry = {"round": int(state["round"]), "clients": total["clients"], "rows": total["rows"],
                 "update": float(np.linalg.norm(change)), "norm": float(np.linalg.norm(new["shared.item"]))}  # fmt: skip
        if "view" in total:
            touched, direction = total["view"]
            pairs = np.where(touched > 1, touched * (touched - 1.0), np.nan)
            agreement = ((direction**2).sum(1) - touched) / pairs
            drift = np.linalg.norm(change, axis=1)
            new["view"] = {"round": entry["round"], "clients": touched, "agreement": agreement, "drift": drift}
        return {**state, **new, "history": [*state["history"], entry]}

    def done(self, state: State) -> bool:
        """Return whether all rounds are over."""
        return bool(state["round"] > self.config.rounds)


def _length(reply: Arrays) -> float:
    """Return the norm over all gradients of a reply."""
    return math.hypot(*(float(np.linalg.norm(v.astype(np.float64))) for k, v in reply.items() if k != "rows"))


def _random(
    rows: Tensor, net: Mapping[str, Tensor], count: NDArray[np.int64], rngs: Sequence[np.random.Generator]
) -> dict[str, Tensor]:
    """Return a standard normal direction over each client's rows, layers and vector, 0 where a row is filling."""
    out = {"rows": torch.zeros_like(rows), "user": rows.new_zeros(len(rows), rows.shape[2])}
    out |= {name: value.new_zeros(len(rows), *value.shape) for name, value in net.items()}
    for i, (rng, n) in enumerate(zip(rngs, count, strict=True)):
        out["rows"][i, :n] = torch.from_numpy(rng.standard_normal((int(n), rows.shape[2])))
        for name in ("user", *net):
            out[name][i] = torch.from_numpy(np.asarray(rng.standard_normal(out[name].shape[1:])))
    return out


def padded(reply: Arrays, pad_to: int, n_items: int, rng: np.random.Generator) -> Arrays:
    """Return a reply with rows of other items, so that their number is a multiple of `pad_to` (or all items).

    A padding row is a random mixture of two true rows with a random sign: it has their direction (with ``dot`` all rows
    of a client have one up to sign), equals none of them, and is 0 on average, so that no item is pushed. What is left:
    half the padding has the sign of a positive item and so have all positive items, so the sign still says more than
    nothing; and positive items come back in each round while padding does not, so who sees several rounds of a client
    can intersect them.
    """
    rows, values = reply["rows"], reply["values"]
    n = len(rows)
    more = min(-n % pad_to, n_items - n)
    if not n or not more:
        return reply
    item = np.setdiff1d(np.arange(n_items), rows, assume_unique=True)
    item = rng.choice(item, more, replace=False)
    one = rng.integers(0, n, more)
    other = (one + 1 + rng.integers(0, max(n - 1, 1), more)) % n
    mix = rng.random((more, 1))
    fill = rng.choice([-1.0, 1.0], (more, 1)) * (mix * values[one] + (1 - mix) * values[other])
    order = np.argsort(np.r_[rows, item])
    whole = np.concatenate([values, fill.astype(values.dtype)])[order]
    return {**reply, "rows": np.r_[rows, item][order], "values": whole}


# -- scores, ledger, privacy ------------------------------------------------------------------------------------------


def _shared(state: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    own = {k[7:]: torch.from_numpy(np.array(v)) for k, v in state.items() if k.startswith("shared.")}
    return own.pop("item"), own


def score_all(state: Mapping[str, Any], users: Array) -> Array:
    """Return the score of every item for some users, shape (B, I).

    Parameters
    ----------
    state : mapping
        With the shared block: a state or a message.
    users : ndarray, shape (B, d)
        `FedRecGEL.users`.
    """
    table, net = _shared(state)
    vectors = torch.from_numpy(np.array(users)).to(table.dtype)
    if not net:
        return np.asarray((vectors @ table.T).numpy())
    width = max(1, PAIRS // max(1, len(users) * len(net["b1"])))
    parts = [logits(rows[None], vectors, net) for rows in table.split(width)]
    return np.asarray(torch.cat(parts, 1).numpy())


def scores_on(state: Mapping[str, Any], users: Array, candidates: NDArray[np.int64]) -> Array:
    """Return the scores of each user's own candidates, shape (B, K) as `candidates`; users of shape (B, d)."""
    table, net = _shared(state)
    vectors, items = torch.from_numpy(np.array(users)).to(table.dtype), torch.from_numpy(np.array(candidates))
    width = max(1, PAIRS // max(1, items.shape[1] * (len(net["b1"]) if net else table.shape[1])))
    parts = [logits(table[i], u, net) for i, u in zip(items.split(width), vectors.split(width), strict=True)]
    return np.asarray(torch.cat(parts).numpy())


def traffic(config: FedRecConfig, rows: int, n_items: int | None = None) -> dict[str, int]:
    """Return bytes of a client in a round: ``down``, ``up_dense`` and, for so many rows, ``up_sparse``.

    Parameters
    ----------
    config : FedRecConfig
    rows : int
        R, rows of the reply.
    n_items : int, optional
        I, where the catalogue has grown.
    """
    g, wide, _ = config.widths()
    size, net = np.dtype(config.dtype).itemsize, sum(math.prod(s) for s in _layers(config).values())
    dense = ((n_items or config.n_items) * (g + wide) + net) * size
    return {"down": dense, "up_dense": dense, "up_sparse": (rows * (g + wide) + net) * size + 8 * rows}


def flops(config: FedRecConfig, rows: int) -> int:
    """Return floating-point operations of a client with so many rows in a round.

    Two for each multiplication with a weight, twice as many backward as forward, in each pass.
    """
    g, wide, hidden = config.widths()
    weights = sum(math.prod(s) for k, s in _layers(config).items() if k[0] == "w") - wide * (hidden or (0,))[0]
    forward = 2 * (weights + g + (hidden or (0,))[-1]) * rows
    return 3 * forward * (1 if config.passes == "plain" else 3)


def epsilon(config: FedRecConfig, delta: float) -> float:
    """Return epsilon of a whole training at some delta, by Renyi accounting at orders 2 to 256.

    ``noise_at="server"``: of the published model, where one client more or less is a neighbour. Clients are sampled by
    Poisson with probability `fraction`, `rounds` times. The server sees uploads before the noise: they have no epsilon.

    ``noise_at="device"``: of all that one client sends, where a neighbour sends noise alone. Who reads uploads knows who
    was asked, so sampling gives nothing, and a client may be asked in each round.

    Neither covers ``history``, ``view``, or who was asked; and it holds against those who do not know the seed.

    Raises
    ------
    InputError
        Without noise, for delta outside (0, 1), or without dp-accounting.
    """
    if not config.noise_multiplier or not 0 < delta < 1:
        raise InputError(
            f"noise_multiplier = {config.noise_multiplier}, delta = {delta}",
            "noise above 0 and delta in (0, 1)",
            "set noise_multiplier and clip, and delta below one over the number of clients",
        )
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise InputError(
            "dp-accounting is not installed", "the package dp-accounting", "pip install 'upright[federated]'"
        ) from None
    event = dp_accounting.GaussianDpEvent(config.noise_multiplier)
    if config.noise_at == "server":
        event = dp_accounting.PoissonSampledDpEvent(config.fraction, event)
    accountant = rdp.RdpAccountant(list(range(2, 257)))
    return float(accountant.compose(event, config.rounds).get_epsilon(delta))
