"""Federated averaging over silos, what all trainings over silos share, and what they serve.

Round t of federated averaging: the server sends theta; each client takes R mini-batch steps from it on its own rows and
sends the change; the server adds ``sum_k n_k (theta_k - theta) / sum_k n_k`` over the replies that arrived.

An algorithm here has the methods of `upright.federation.rounds.Algorithm`.

Source: McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data* (2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.classification.exchange import Arrays, State
from upright.classification.inputs import Array
from upright.classification.silos import Silo, batches, initial, local_steps, logits, one_hot, weighted_log_loss
from upright.contract import Config, InputError, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, stream

__all__ = ["FedAvg", "Trained", "Training", "averaged", "fits", "last_of", "model_of", "scored", "settings_of",
           "tensors_of", "trained", "trained_by_clients"]  # fmt: skip


class Training(Config):
    """Settings of training over silos. `settings_of` reads the first four off the data."""

    features: PositiveInt
    """d."""
    classes: PositiveInt
    """m, at least 2."""
    groups: tuple[int, ...] = ()
    """G_c of each constraint."""
    dtype: Literal["float64", "float32"] = "float64"
    """Of features and models."""
    rounds: PositiveInt = 60
    """Rounds of training."""
    local_steps: PositiveInt = 20
    """R, mini-batch steps of a client in a round."""
    batch: PositiveInt = 256
    """B, rows of a step."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """States start fresh in each round."""
    learning_rate: PositiveFloat = 0.01
    """Of the optimiser."""
    weight_decay: NonNegativeFloat = 0.0
    """Added to the gradient, times the parameters."""
    hidden: NonNegativeInt = 0
    """Width of the hidden layer; 0 for the logistic model."""
    dual_step: PositiveFloat = 0.1
    """eta, step of the prices; 0.3 oscillates on Adult."""
    radius: PositiveFloat = 5.0
    """Bound of the sum of the sizes of prices, global and at each client."""
    expert_step: PositiveFloat = 0.3
    """Step of the weight of two models."""
    loss_bound: PositiveFloat = 5.0
    """At which losses are clipped for that weight."""
    average: PositiveInt = 1
    """How many of the last iterates' probabilities are averaged."""
    seed: int = 0
    """Of initial values and batches."""


def settings_of(data: Mapping[str, Silo], **settings: Any) -> Training:
    """Return settings for these silos: features, groups and dtype from them, classes too where not given.

    Raises
    ------
    InputError
        For no silos, and as `Training` does.
    """
    if not data:
        raise InputError("no silos", "one or more", "build them with silos_of")
    first = data[min(data)]
    own = {
        "features": first.x.shape[1], "classes": max(2, 1 + max(int(s.y.max()) for s in data.values())),
        "groups": tuple(q.shape[1] for q in first.members), "dtype": str(first.x.dtype),
    }  # fmt: skip
    config = Training(**{**own, **settings})
    for name, silo in data.items():
        fits(config, silo)
        if name != silo.name:
            raise InputError(f"silo {silo.name!r} under the name {name!r}", "one name", "key the silos by their names")
    return config


def fits(config: Training, silo: Silo) -> None:
    """Refuse a silo that does not have the columns, groups and classes of the settings."""
    own = (silo.x.shape[1], str(silo.x.dtype), tuple(q.shape[1] for q in silo.members))
    wanted = (config.features, config.dtype, tuple(config.groups))
    if own != wanted or int(silo.y.max()) >= config.classes:
        raise InputError(
            f"client {silo.name!r} with features, dtype, groups {own} and {int(silo.y.max()) + 1} classes",
            f"{wanted} and at most {config.classes} classes", "bring all clients to the same columns and groups",
        )  # fmt: skip


def model_of(arrays: Mapping[str, Any], prefix: str = "theta.") -> Arrays:
    """Return the arrays whose names start with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def tensors_of(model: Mapping[str, NDArray[Any]], times: int = 0) -> dict[str, Tensor]:
    """Return tensors, repeated along a leading axis of clients where `times` is not 0."""
    own = {name: torch.from_numpy(np.array(value)) for name, value in model.items()}
    return {name: v.expand(times, *v.shape) for name, v in own.items()} if times else own


def trained_by_clients(
    config: Training, turn: int, models: Mapping[str, Tensor], silos: Sequence[Silo], rows: Sequence[Array]
) -> list[Arrays]:
    """Return each client's model after its local steps (step 7); the batches are those of the client and round."""
    index = np.stack([
        batches(np.random.default_rng(stream(config.seed, "client", s.name, turn)), len(s.y), config.local_steps,
                config.batch) for s in silos
    ])  # fmt: skip
    kind = torch.float64 if config.dtype == "float64" else torch.float32
    after = local_steps(
        models, [torch.from_numpy(s.x) for s in silos], [torch.from_numpy(r).to(kind) for r in rows], index,
        optimiser=config.optimiser, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
    )  # fmt: skip
    return [{name: value[k].numpy() for name, value in after.items()} for k in range(len(silos))]


def averaged(config: Training, state: State, replies: Mapping[str, Arrays], weights: Mapping[str, float]) -> State:
    """Return theta after the weighted mean of changes (step 8), and the last few of them where asked for."""
    total, out = sum(weights.values()), {}
    for key, value in state.items():
        if key.startswith("theta."):
            change = sum(weights[name] * replies[name][f"delta.{key[6:]}"] for name in sorted(replies)) / total
            out[key] = np.asarray(value + change, dtype=config.dtype)
            if config.average > 1:
                out[f"past.{key}"] = last_of(state.get(f"past.{key}"), out[key], config.average)
    return out


def last_of(past: NDArray[Any] | None, now: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the last few values along a first axis, shape (up to count, ...)."""
    return now[None] if past is None else np.concatenate([past, now[None]])[-count:]


class FedAvg:
    """Federated averaging of one model: the algorithm without any constraint, and the frame of those that have one."""

    parts: tuple[str, ...] = ()
    """What a client reports beside its change and (rows, loss, accuracy): sums over its rows, of the shape `shape`."""
    shape: tuple[int, ...] = ()

    def __init__(self, config: Training) -> None:
        self.config = config

    def start(self) -> State:
        """Return the first state: the initial model."""
        own, rng = self.config, np.random.default_rng(stream(self.config.seed, "initial"))
        theta = initial(own.features, own.classes, own.hidden, rng, own.dtype)
        return {"round": 1, "history": [], **{f"theta.{name}": value for name, value in theta.items()}}

    def message(self, state: State) -> Arrays:
        """Return the round and the model."""
        return {"round": np.array([state["round"]]), **{k: v for k, v in state.items() if k.startswith("theta.")}}

    def template(self, state: State, name: str) -> Arrays:
        """Return a reply of the right shapes: the change of the model, the report and the parts."""
        own = {"report": np.zeros(3), **{part: np.zeros(self.shape) for part in self.parts}}
        return {**{f"delta.{k}": v for k, v in model_of(state).items()}, **own}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply."""
        n = float(reply["report"][0])
        if n < 1 or n != round(n):
            return f"report of {n:g} rows"
        slack = 1e-6 * (1.0 + n)
        for part in self.parts:
            if (reply[part] < -slack).any() or (reply[part] > n + slack).any():
                return f"{part} that does not fit {n:g} rows"
        return ""

    def rows_of(self, message: Arrays, silo: Silo, y: Array) -> Array:
        """Return the weights of the loss from one-hot labels, shape (n, m)."""
        return y

    def counted(self, silo: Silo, y: Array, h: Array) -> Arrays:
        """Return the parts from one-hot labels and decisions of the model that was sent, shape (n, m)."""
        return {}

    def client(self, message: Arrays, private: Arrays, data: Silo) -> tuple[Arrays, Arrays]:
        """Run one client."""
        return self.clients(message, {data.name: private}, {data.name: data})[data.name]

    def clients(
        self, message: Arrays, privates: Mapping[str, Arrays], datas: Mapping[str, Silo]
    ) -> dict[str, tuple[Arrays, Arrays]]:
        """Run several clients, their local steps in one tensor program."""
        names, theta, turn = sorted(datas), model_of(message), int(message["round"][0])
        silos = [datas[name] for name in names]
        for silo in silos:
            fits(self.config, silo)
        looked = (self.looked_at(message, theta, privates[s.name], s) for s in silos)
        rows, replies, memories = map(list, zip(*looked, strict=True))
        after = trained_by_clients(self.config, turn, tensors_of(theta, len(names)), silos, rows)
        self.trains_alone(turn, silos, rows, memories)
        replies = [{f"delta.{key}": own[key] - theta[key] for key in theta} | reply
                   for own, reply in zip(after, replies, strict=True)]  # fmt: skip
        return dict(zip(names, zip(replies, memories, strict=True), strict=True))

    def looked_at(self, message: Arrays, theta: Arrays, private: Arrays, silo: Silo) -> tuple[Array, Arrays, Arrays]:
        """Return weights of the loss (n, m), what is reported, and the client's new memory."""
        y = one_hot(silo.y, self.config.classes)
        rows = self.rows_of(message, silo, y)
        loss, p = scored(theta, silo, rows)
        h = one_hot(p.argmax(axis=1), self.config.classes)
        report = np.array([float(len(y)), loss, float((h * y).sum()) / len(y)])
        return rows, {"report": report, **self.counted(silo, y, h)}, private

    def trains_alone(self, turn: int, silos: list[Silo], rows: list[Array], memories: list[Arrays]) -> None:
        """Train what is in clients' memories alone: nothing."""

    def server(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Average over the replies by their numbers of rows."""
        return self.next_state(state, replies, {name: float(reply["report"][0]) for name, reply in replies.items()})

    def next_state(self, state: State, replies: Mapping[str, Arrays], by: Mapping[str, float], **entry: Any) -> State:
        """Return the state after averaging by weights, with an entry on loss and error of the model that was sent."""
        rows = np.array([float(replies[n]["report"][0]) for n in sorted(replies)])
        _, loss, accuracy = rows @ np.stack([replies[n]["report"] for n in sorted(replies)]) / rows.sum()
        entry = {"round": state["round"], "loss": float(loss), "error": 1.0 - float(accuracy), **entry}
        theta = averaged(self.config, state, replies, by)
        return {**state, **theta, "round": state["round"] + 1, "history": [*state["history"], entry]}

    def done(self, state: State) -> bool:
        """Return whether all rounds are over."""
        return bool(state["round"] > self.config.rounds)


def scored(model: Mapping[str, NDArray[Any]], silo: Silo, rows: Array) -> tuple[float, Array]:
    """Return the mean weighted loss of a model on all rows of a client, and its probabilities (n, m)."""
    scores = _scores(model, silo.x)
    loss = weighted_log_loss(scores, torch.from_numpy(rows)).mean()
    return float(loss), np.asarray(torch.softmax(scores, dim=-1).numpy())


def _scores(model: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> Tensor:
    with torch.no_grad():
        return logits(tensors_of(model), torch.from_numpy(np.ascontiguousarray(x))).double()


@dataclass(frozen=True, eq=False)
class Trained:
    """``mean over the last iterates of w_k softmax(theta) + (1 - w_k) softmax(phi_k)``, blind to attributes.

    Parameters
    ----------
    theta : dict of ndarray, shape (L, ...)
        The unified model, its last L iterates.
    phi : dict of client to dict of ndarray, shape (L_k, ...)
        Local models; a client without one is served by theta.
    mix : dict of client to ndarray, shape (L_k,)
        w_k, the weight of the unified model.
    """

    theta: Arrays
    phi: dict[str, Arrays]
    mix: Arrays

    def predict_proba(self, x: NDArray[Any], client: str | ArrayLike | None = None) -> Array:
        """Return probabilities, shape (n, m).

        Parameters
        ----------
        x : ndarray, shape (n, d)
        client : str, or array of str, shape (n,); optional
            Whose classifier, for all rows or for each; None is the unified model.

        Raises
        ------
        InputError
            For a client that did not take part, features of another width, and names that are not one a row.
        """
        width = next(iter(self.theta["hidden.weight" if "hidden.weight" in self.theta else "weight"])).shape[0]
        if x.ndim != 2 or x.shape[1] != width:
            raise InputError(f"features of shape {x.shape}", f"shape (n, {width})", "encode rows as in training")
        if client is None or isinstance(client, str):
            return self._of(x, client)
        owner = np.asarray(client)
        if owner.shape != (len(x),):
            raise InputError(f"clients of shape {owner.shape}", f"shape ({len(x)},)", "name the client of each row")
        out = np.zeros((len(x), self.theta["bias"].shape[-1]))
        for name in sorted({str(v) for v in owner.tolist()}):
            rows = owner.astype(str) == name
            out[rows] = self._of(x[rows], name)
        return out

    def _of(self, x: NDArray[Any], client: str | None) -> Array:
        if client is not None and self.mix and client not in self.mix:
            raise InputError(
                f"client {client!r}", ", ".join(sorted(self.mix)), "name one that took part, or None for all"
            )
        whole = len(self.theta["bias"])
        if client is None or client not in self.phi:
            parts = [self._soft(self.theta, i, x) for i in range(whole)]
        else:
            mix, local = self.mix[client], self.phi[client]
            parts = [
                float(mix[-i]) * self._soft(self.theta, -i, x) + (1.0 - float(mix[-i])) * self._soft(local, -i, x)
                for i in range(min(whole, len(mix)), 0, -1)
            ]
        return np.asarray(sum(parts, np.zeros(())) / len(parts))

    @staticmethod
    def _soft(model: Arrays, i: int, x: NDArray[Any]) -> Array:
        own = {name: value[i] for name, value in model.items()}
        return np.asarray(torch.softmax(_scores(own, x.astype(own["weight"].dtype)), dim=-1).numpy())

    def parameters(self) -> Arrays:
        """Return everything as one flat dict of arrays, for safetensors or ``numpy.savez``."""
        local = {f"phi/{name}/{key}": v for name, own in self.phi.items() for key, v in own.items()}
        return {**{f"theta/{key}": v for key, v in self.theta.items()}, **local,
                **{f"mix/{name}": v for name, v in self.mix.items()}}  # fmt: skip

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Trained:
        """Return the classifiers that `parameters` was read from."""
        phi: dict[str, Arrays] = {}
        for key, value in model_of(arrays, "phi/").items():
            name, _, part = key.rpartition("/")
            phi.setdefault(name, {})[part] = value
        return cls(model_of(arrays, "theta/"), phi, model_of(arrays, "mix/"))


def trained(state: Mapping[str, Any], privates: Mapping[str, Mapping[str, Any]]) -> Trained:
    """Return what a finished training serves, from the server's state and the clients' memories."""

    def held(arrays: Mapping[str, Any], prefix: str) -> Arrays:
        return model_of(arrays, f"past.{prefix}") or {k: v[None] for k, v in model_of(arrays, prefix).items()}

    phi = {name: held(own, "phi.") for name, own in privates.items() if any(k.startswith("phi.") for k in own)}
    mix = {name: np.ravel(own.get("past.mix", own["mix"])) for name, own in privates.items() if "mix" in own}
    return Trained(held(state, "theta."), phi, mix)
