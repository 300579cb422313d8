r"""FedRecGEL: federated recommendation, one user a client, with sharpness-aware gradients.

Problem, with s the item table and the layers at the server, and u_c the vector that never leaves client c::

    min over s, {u_c}   mean over c of   max over ||e|| <= rho_shared, ||f|| <= rho_private of   L_c(s + e, u_c + f)
    L_c = sum over blocks of 128 samples of the block's mean of   softplus(z) - y z,   z = logit(s, u_c; item)

A round::

    1  the server asks floor(fraction U) clients and sends s
    2  a client shuffles its items and draws, after each, 4 others that it has not met, without replacement
    3  g = gradient of L_c at (s, u),  e = rho_shared g_s / ||g_s||,  f = rho_private g_u / ||g_u||, one norm a block
    4  G_s = gradient by s at (s + e, u),  G_u = gradient by u at (s, u + f): the blocks are not moved together
    5  u moves by Adam with G_u and the client's own count of steps
    6  the client sends the rows of G_s that it touched, and the gradients of the layers
    7  s moves by Adam with the mean of the replies that arrived; rows that nobody touched move by their momentum

Samples of one item are merged first: with ``b`` the weight of an item's samples and ``a`` that of its positive ones,
``L_c = sum over items of b softplus(z) - a z``. So a client has one row an item, and norms are those of the table.

Shapes: C clients in one program, R rows of the one with the most, d the width of an item's row.

Deviations from the published code: (D1) no perturbation where a norm is 0, and nothing added to other norms; (D2)
the server's rate is a setting, there always 0.001; (D3) random directions, clip, noise and padding.

Cost: three forward and backward passes over R rows a client; see `ledger`. The algorithm has the methods of
`upright.federation.rounds.Algorithm`, over flat dicts of NumPy arrays.

Sources: *FedRecGEL* (The Web Conference 2026); He et al., *Neural Collaborative Filtering* (2017), for the layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from upright.contract import InputError, stream
from upright.recommendation.devices import Device, draw_samples, merge
from upright.recommendation.settings import FedRecConfig
from upright.recommendation.uploads import clipped, dense, length_of, noised, padded

__all__ = ["FedRecGEL", "score_all"]

Array = NDArray[Any]
Arrays = dict[str, NDArray[Any]]
State = dict[str, Any]
Tensors = Mapping[str, Tensor]
Privates = Mapping[str, Arrays]
Devices = Mapping[str, Device]
CAP = 1e6  # largest norm of a reply that is averaged
HELD = 1 << 21  # most numbers of a layer held at once while scoring


class Shape(NamedTuple):
    """What an array of a reply must be; a length of None is free."""

    dtype: str
    shape: tuple[int | None, ...]


# -- gradients (steps 3 and 4) ----------------------------------------------------------------------------------------


def logits(rows: Tensor, user: Tensor, net: Tensors) -> Tensor:
    """Return ``<u, row>``, or ``<out, [u_1 * row_1; MLP([u_2; row_2])]> + bias``, shape (C, R).

    Rows have shape (C, R, d), or (1, R, d) where all clients look at the same, users (C, d); layers have a leading axis
    of clients or not, and dot has none.
    """
    wide = net["w1"].shape[-2] // 2 if net else 0
    g = rows.shape[-1] - wide
    left = user[:, :g] * net["out"][..., :g] if net else user
    z = left @ rows[0, :, :g].T if len(rows) == 1 else (rows[..., :g] @ left[..., None]).squeeze(-1)
    if not net:
        return z
    of_user, of_row = torch.split(net["w1"], wide, dim=-2)  # linear in both halves: once a user and once a row
    h = rows[..., g:] @ of_row + (user[:, None, g:] @ of_user + net["b1"].unsqueeze(-2))
    for layer in ("2", "3"):
        h = torch.relu(h) @ net["w" + layer] + net["b" + layer].unsqueeze(-2)
    return z + (torch.relu(h) @ net["out"][..., g:, None]).squeeze(-1) + net["bias"].unsqueeze(-1)


def client_loss(rows: Tensor, user: Tensor, net: Tensors, a: Tensor, b: Tensor) -> Tensor:
    """``L_c = sum over rows of b softplus(z) - a z``, shape (C,); a, b of shape (C, R) are 0 where a row is filling."""
    z = logits(rows, user, net)
    return (b * softplus(z) - a * z).sum(1)


def gradients(blocks: Tensors, a: Tensor, b: Tensor, by: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return each client's loss, shape (C,), and its gradients by some of ``rows``, ``user`` and the layers."""
    leaf = dict(blocks) | {name: blocks[name].detach().requires_grad_() for name in by}
    net = {name: value for name, value in leaf.items() if name not in ("rows", "user")}
    loss = client_loss(leaf["rows"], leaf["user"], net, a, b)
    return loss.detach(), dict(zip(by, torch.autograd.grad(loss.sum(), [leaf[name] for name in by]), strict=True))


def ascent(along: Tensors, rho: float) -> dict[str, Tensor]:
    """``e = rho g / ||g||`` of each client, one norm over all tensors, each of shape (C, ...); 0 where g is 0."""
    norms = [torch.linalg.vector_norm(g[..., None], dim=tuple(range(1, g.dim() + 1))) for g in along.values()]
    norm = torch.stack(norms).norm(dim=0)
    scale = torch.where(norm > 0, rho / norm, 0.0)
    return {name: g * scale.view(-1, *[1] * (g.dim() - 1)) for name, g in along.items()}


def three_passes(
    config: FedRecConfig, rows: Tensor, user: Tensor, net: Tensors, a: Tensor, b: Tensor, along: Tensors | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return G_s and G_u of each client, its loss, and by how much either perturbation raised it, shape (C, 3).

    Rows, users, a and b have shapes (C, R, d), (C, d), (C, R) and (C, R); layers are the same for all; `along` is taken
    in place of the gradients in step 3.
    """
    own = {name: value.expand(len(rows), *value.shape) for name, value in net.items()}
    shared = {"rows": rows, **own}
    here, g = gradients({**shared, "user": user}, a, b, [*shared, "user"])
    if config.passes == "plain":
        return g, torch.stack([here, 0 * here, 0 * here], 1)
    along = g if along is None else along
    e = ascent({name: along[name] for name in shared}, config.rho_shared)
    there, up = gradients({name: shared[name] + e.pop(name) for name in shared} | {"user": user}, a, b, [*shared])
    f = ascent({"user": along["user"]}, config.rho_private)["user"]
    aside, private = gradients({"rows": rows, "user": user + f, **net}, a, b, ["user"])
    return up | private, torch.stack([here, there - here, aside - here], 1)


def adam(
    value: Array, gradient: Array, first: Array, second: Array, step: int | Array, rate: float
) -> tuple[Array, Array, Array]:
    """Return a value and both moments after a step of Adam; ``step`` counts from 1, one for all or one a row."""
    gradient = gradient.astype(value.dtype)
    first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    short, long = (np.asarray(1 - beta**step, dtype=value.dtype) for beta in (0.9, 0.999))
    value = np.asarray(value - rate * (first / short) / (np.sqrt(second / long) + 1e-8))  # one number stays an array
    return value, np.asarray(first), np.asarray(second)


# -- the algorithm ----------------------------------------------------------------------------------------------------


class FedRecGEL:
    """The algorithm of this file; FedNCF where ``passes="plain"``."""

    def __init__(self, config: FedRecConfig) -> None:
        self.config = config

    def _first(self, last: int, *name: str) -> Array:
        """Return N(0, 0.01^2) of shape (last, d) from a stream; a longer one starts with the same rows."""
        rng = np.random.default_rng(stream(self.config.seed, *name))
        return (0.01 * rng.standard_normal((last, self.config.widths()[0]))).astype(self.config.dtype)

    def _secret(self, *name: str | int) -> np.random.Generator:
        """Return a generator of the machine's entropy; of a name where `noise_seed` is given."""
        known = self.config.noise_seed
        return np.random.default_rng(None if known is None else stream(known, self.config.seed, *name))

    def start(self) -> State:
        """Return the first state: rows N(0, 0.01^2), layers Xavier-uniform, output Kaiming-uniform, biases 0."""
        rng = np.random.default_rng(stream(self.config.seed, "layers"))
        shared = {"item": self._first(self.config.n_items, "item")}
        for name, shape in self.config.layers().items():
            bound = {"w": 6.0, "o": 3.0}.get(name[0], 0.0) / max(1, sum(shape))
            shared[name] = np.asarray(rng.uniform(-math.sqrt(bound), math.sqrt(bound), shape), self.config.dtype)
        state: State = {"round": 1, "server_step": 0, "history": []}
        state |= {f"shared.{name}": value for name, value in shared.items()}
        return state | {f"{moment}.{name}": np.zeros_like(v) for moment in "mv" for name, v in shared.items()}

    def grown(self, state: State, n_items: int) -> State:
        """Return a state with more items, which start where they would have started; old clients go on."""
        old = len(state["shared.item"])
        if n_items < old:
            raise InputError(f"{n_items} items after {old}", "at least as many", "keep the codes of removed items")
        new = self._first(n_items, "item")[old:]
        more = {"shared.item": new, "m.item": np.zeros_like(new), "v.item": np.zeros_like(new)}
        return state | {name: np.concatenate([state[name], rows]) for name, rows in more.items()}

    def sample(self, state: State, names: Sequence[str]) -> list[str]:
        """Return who is asked (step 1), by a stream for each name: their order is nothing."""
        seed, turn, share = self.config.seed, int(state["round"]), self.config.fraction
        asked = self.config.count_asked(len(names))
        if self.config.noise_multiplier:  # epsilon counts on a draw that nobody can repeat
            drawn = self._secret("sample", turn).random(len(names)) < share
            return [name for name, own in zip(sorted(names), drawn, strict=True) if own]
        keys = {name: stream(seed, "sample", name, turn) for name in names}
        if not self.config.poisson:
            return sorted(sorted(keys, key=lambda name: (keys[name], name))[:asked])
        return sorted(name for name, key in keys.items() if key < share * 2.0**63)  # by chance it may be nobody

    def message(self, state: State) -> Arrays:
        """Return the round and the shared block."""
        return {"round": np.array([state["round"]]), **{k: v for k, v in state.items() if k.startswith("shared.")}}

    def template(self, state: State, name: str) -> dict[str, Shape]:
        """Return what a reply holds: row numbers, gradients of these rows, and of the layers."""
        kind, width = self.config.dtype, self.config.widths()[0]
        net = {f"net.{layer}": Shape(kind, shape) for layer, shape in self.config.layers().items()}
        return {"rows": Shape("int64", (None,)), "values": Shape(kind, (None, width)), **net}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply of the right shapes."""
        config, rows, n_items = self.config, reply["rows"], len(state["shared.item"])
        if not len(rows) or len(rows) != len(reply["values"]):
            return f"{len(rows)} row numbers for {len(reply['values'])} rows (a client without interactions has none)"
        if rows.min() < 0 or rows.max() >= n_items or (np.diff(rows) <= 0).any():
            return f"rows that do not increase within 0 to {n_items - 1}"
        limit = CAP if config.clip is None or config.noise("device") else 1.0001 * config.clip
        length = length_of(reply)
        return "" if length <= limit else f"norm {length:.3g} beyond {limit:.3g}"

    def client(self, message: Arrays, private: Arrays, data: Device) -> tuple[Arrays, Arrays]:
        """Answer as one client."""
        return self.clients(message, {data.name: private}, {data.name: data})[data.name]

    def clients(self, message: Arrays, privates: Privates, datas: Devices) -> dict[str, tuple[Arrays, Arrays]]:
        """Answer as several clients in one tensor program (steps 2 to 6)."""
        names, config, n_items = sorted(datas), self.config, len(message["shared.item"])
        none = {f"net.{k}": np.zeros(s, config.dtype) for k, s in config.layers().items()}
        none |= {"rows": np.zeros(0, np.int64), "values": np.zeros((0, config.widths()[0]), config.dtype)}
        out = {name: (none, dict(privates[name])) for name in names}
        if config.noise("device"):  # or silence would name who has no items
            for name in (name for name in names if not len(datas[name].items)):
                memory = self._memory(privates[name], name)
                out[name] = (self._noised(none, name, memory, message), memory | {"step": np.array(memory["step"] + 1)})
        for place, item, old, rngs, found, _ in self._passes(message, privates, datas, names):
            step = np.array([one["step"] for one in old]) + 1
            user, m, v = (np.stack([one[key] for one in old]) for key in ("user", "m", "v"))
            moved = adam(user, found["user"], m, v, step[:, None], config.client_rate)  # step 5
            for i, c in enumerate(place):
                reply = {"rows": item[i], "values": found["rows"][i, : len(item[i])]}
                reply |= {f"net.{key}": found[key][i, ...] for key in config.layers()}
                if config.pad_to is not None:
                    reply = padded(reply, datas[names[c]].items, config.pad_to, n_items, rngs[i])
                reply = self._noised(reply, names[c], old[i], message)
                memory = {key: one[i].copy() for key, one in zip(("user", "m", "v"), moved, strict=True)}
                out[names[c]] = (reply, memory | {"step": np.array(step[i])})
        return out

    def sharpness(self, message: Arrays, privates: Privates, datas: Devices) -> NDArray[np.float64]:
        """Return each client's loss, and by how much either perturbation along the gradient raises it, shape (C, 3).

        In order of names, at the config's radii whatever its `passes` and `direction`; NaN without interactions.
        """
        own, names = FedRecGEL(self.config.replace(passes="sharp", direction="own", pad_to=None)), sorted(datas)
        rise = np.full((len(names), 3), np.nan)
        for place, *_, found in own._passes(message, privates, datas, names):
            rise[place] = found
        return rise

    def private_rows(self, names: Sequence[str]) -> Arrays:
        """Return zeros for the memories of clients, arrays with a row a client."""
        shape, kind = (len(names), self.config.widths()[0]), self.config.dtype
        return {**{key: np.zeros(shape, kind) for key in ("user", "m", "v")}, "step": np.zeros(len(names), np.int64)}

    def users(self, privates: Privates, names: Sequence[str]) -> Array:
        """Return the vectors of clients, shape (C, d); who was never asked has its first one."""
        return np.stack([self._memory(privates.get(name, {}), name)["user"] for name in names])

    def _memory(self, private: Arrays, name: str) -> Arrays:
        if private:
            return private
        user = self._first(1, "user", name)[0]
        return {"user": user, "m": np.zeros_like(user), "v": np.zeros_like(user), "step": np.array(0)}

    def _passes(
        self, message: Arrays, privates: Privates, datas: Devices, names: Sequence[str]
    ) -> Iterator[tuple[Array, list[Array], list[Arrays], list[np.random.Generator], Arrays, Array]]:
        """Yield places among the names, items, old memories and streams of a chunk, and what `three_passes` returns."""
        config, table = self.config, message["shared.item"]
        items = [datas[name].items for name in names]
        for name, held in zip(names, items, strict=True):
            if len(held) and held[-1] >= len(table):
                got, accepted = f"client {name!r} with item {held[-1]}", f"codes below {len(table)}, as at the server"
                raise InputError(got, accepted, "grow the catalogue at the server first")
        turn = int(message["round"][0])
        if config.pad_to is None:
            rngs = [np.random.default_rng(stream(config.seed, "client", name, turn)) for name in names]
        else:  # who knows what was drawn finds the negatives among the rows, and between them the others
            rngs = [self._secret("client", name, turn, int(privates[name].get("step", 0))) for name in names]
        net = {k: torch.from_numpy(np.array(message[f"shared.{k}"])) for k in config.layers()}
        samples = draw_samples(items, rngs, len(table), config.negatives, config.block)
        owner, item, *weights = merge(*samples, len(table))
        count = np.bincount(owner, minlength=len(names))
        last = np.cumsum(count)
        for place in _chunks(count, config):
            there = np.arange(count[place].max()) < count[place][:, None]
            source = np.concatenate([np.arange(last[c] - count[c], last[c]) for c in place])
            padding = np.zeros((3, *there.shape))
            padding[:, there] = [item[source], *(w[source] for w in weights)]
            rows = torch.from_numpy(np.take(table, padding[0].astype(np.int64), 0))
            a, b = torch.from_numpy(padding[1:].astype(table.dtype))
            old = [self._memory(privates[names[c]], names[c]) for c in place]
            own, user = [rngs[c] for c in place], torch.from_numpy(np.stack([one["user"] for one in old]))
            along = _random(rows, net, count[place], own) if config.direction == "random" else None
            found, rise = three_passes(config, rows, user, net, a, b, along)
            touched = np.split(item[source], np.cumsum(count[place])[:-1])
            yield place, touched, old, own, {k: v.numpy() for k, v in found.items()}, rise.numpy()

    def _noised(self, reply: Arrays, name: str, memory: Arrays, message: Arrays) -> Arrays:
        """Return a reply as it leaves the device, clipped and noised; asked again, a client draws other noise."""
        config = self.config
        if config.clip is not None:
            reply = clipped(reply, config.clip)
        if config.noise("device"):
            rng = self._secret("noise", name, int(message["round"][0]), int(memory["step"]))
            reply = noised(dense(reply, len(message["shared.item"])), config.noise("device"), rng)
        return reply

    def begin(self, state: State) -> State:
        """Return empty sums."""
        sums = {k.removeprefix("shared."): np.zeros_like(v) for k, v in state.items() if k.startswith("shared.")}
        total: State = {"sum": sums, "clients": 0, "rows": 0}
        if self.config.view_every and state["round"] % self.config.view_every == 0:
            total |= {"touched": np.zeros(len(sums["item"]), np.int64), "direction": np.zeros(sums["item"].shape)}
        return total

    def add(self, total: State, name: str, reply: Arrays) -> State:
        """Add a checked reply to the sums, in place."""
        rows, values = reply["rows"], reply["values"]
        total["clients"] += 1
        total["rows"] += len(rows)
        total["sum"]["item"][rows] += values  # no row twice: `objection` has seen to it
        for key in self.config.layers():
            total["sum"][key] += reply[f"net.{key}"]
        if "touched" in total:
            length = np.linalg.norm(values.astype(np.float64), axis=1)
            there = length > 0
            total["touched"][rows[there]] += 1
            total["direction"][rows[there]] += values[there] / length[there, None]
        return total

    def finish(self, state: State, total: State) -> State:
        """Return the next state (step 7).

        ``history`` gains numbers of clients and of rows, and the norms of the item table and of its change. ``view``
        has, for each item, how many clients touched it, the mean cosine between two of their gradients (NaN below two
        clients) and by how much its row moved.
        """
        config, sums, count = self.config, total["sum"], float(max(total["clients"], 1))
        if config.noise("server") and config.n_clients:
            rng = self._secret("noise", int(state["round"]))
            sums, count = noised(sums, config.noise("server"), rng), config.fraction * config.n_clients
        new: State = {"round": state["round"] + 1, "server_step": state["server_step"] + 1}
        for key, value in sums.items():
            old = state[f"shared.{key}"] * np.asarray(1 - config.server_rate * config.weight_decay, config.dtype)
            m, v = state[f"m.{key}"], state[f"v.{key}"]
            moved = adam(old, value / count, m, v, new["server_step"], config.server_rate)
            new |= {f"{kind}.{key}": one for kind, one in zip(("shared", "m", "v"), moved, strict=True)}
        drift = np.linalg.norm(new["shared.item"].astype(np.float64) - state["shared.item"], axis=1)
        entry = {"round": int(state["round"]), "clients": total["clients"], "rows": total["rows"]}
        entry |= {"update": float(np.linalg.norm(drift)), "norm": float(np.linalg.norm(new["shared.item"]))}
        if "touched" in total:
            n = total["touched"]
            agreement = ((total["direction"] ** 2).sum(1) - n) / np.where(n > 1, n * (n - 1.0), np.nan)
            new["view"] = {"round": entry["round"], "clients": n, "agreement": agreement, "drift": drift}
        return {**state, **new, "history": [*state["history"], entry]}

    def done(self, state: State) -> bool:
        """Return whether all rounds are over."""
        return bool(state["round"] > self.config.rounds)


def _chunks(count: NDArray[np.int64], config: FedRecConfig) -> Iterator[NDArray[np.int64]]:
    """Yield places of clients with rows, of like numbers of them, as many as the memory holds."""
    width, _, hidden = config.widths()
    size = 4 * np.dtype(config.dtype).itemsize  # value, gradient, perturbation, and its sum with the value
    a_row, a_client = size * (width + sum(hidden)), size * sum(math.prod(s) for s in config.layers().values())
    order, first = np.argsort(count, kind="stable")[np.count_nonzero(count == 0) :], 0
    while first < len(order):
        needed = np.arange(1, len(order) - first + 1) * (count[order[first:]] * a_row + a_client)
        n = max(1, int(np.searchsorted(needed, config.memory, side="right")))
        yield order[first : first + n]
        first += n


def _random(rows: Tensor, net: Tensors, count: Array, rngs: Sequence[np.random.Generator]) -> dict[str, Tensor]:
    """Return standard normal directions over each client's rows, layers and vector."""
    out = {"rows": torch.zeros_like(rows), "user": rows.new_zeros(len(rows), rows.shape[2])}
    out |= {name: value.new_zeros(len(rows), *value.shape) for name, value in net.items()}
    for i, rng in enumerate(rngs):
        for name, value in out.items():
            own = value[i, : count[i]] if name == "rows" else value[i]
            own.copy_(torch.from_numpy(np.asarray(rng.standard_normal(own.shape))))
    return out


def score_all(state: Mapping[str, Any], users: Array) -> Array:
    """Return the score of every item, shape (B, I), for users of shape (B, d), from a state or a message."""
    table, net, vectors = _tensors(state, users)
    few = max(1, HELD // max(1, len(users) * len(net["b1"]))) if net else len(table)
    parts = [logits(table[None, i : i + few], vectors, net) for i in range(0, len(table), few)]
    return np.asarray(torch.cat(parts, 1).numpy())


def _tensors(state: Mapping[str, Any], users: Array) -> tuple[Tensor, Tensors, Tensor]:
    shared = {k.removeprefix("shared."): torch.from_numpy(np.array(v)) for k, v in state.items() if k[:7] == "shared."}
    return shared.pop("item"), shared, torch.from_numpy(np.array(users))
