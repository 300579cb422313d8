r"""Two other trainings under group fairness over silos, to compare with: FairFed and FedFB.

Both train one unified model, look at gaps over everybody alone, and offer no tolerance.

**FairFed** moves weight of the average to clients whose gap is close to that of everybody:

    Delta_k = |F_k - F|                    |accuracy_k - accuracy| where client k lacks a group
    omega_k <- max(0, omega_k - beta (Delta_k - mean of Delta)),    omega_k = n_k / n at first

F is the gap of the model that the round starts from, over everybody and at the client. Clients train on reweighted rows
(``P(a) P(y) / P(a, y)`` within the client), as in the paper's experiments; without that only weights change.

**FedFB** moves weight in the loss between labels of a group. With ``lam_ya`` the weight of the mean loss of label y in
group a, and F the gap of a group's rate to that of everybody,

    lam_a <- project(lam_a - (alpha / sqrt(t)) F_a)         lam_ya = n_ya / n at first

onto non-negative weights that sum to the group's share: a group that is decided as j too often has its label j count
for less.

Departures from the papers, FairFed: (1) weights are clipped at 0, without which an average could turn round; (2) F of
more than two groups or classes is the largest difference of any contrast; (3) clients that are absent keep their weight
and are left out of the mean. FedFB: (4) F is measured by decisions; the paper puts the loss in their place; (5) steps
are proportional to F, not of one length; (6) the weights of a group sum to its share, so that the first round is
federated averaging; (7) more than two classes, by projection onto the simplex; (8) absent clients count with what they
sent last.

Source: Ezzeldin et al., *FairFed: Enabling Group Fairness in Federated Learning* (2023), arXiv 2110.00857; Zeng et al.,
*Improving Fairness via Federated Learning* (2021), arXiv 2110.15545; Kamiran and Calders, *Data preprocessing
techniques for classification without discrimination* (2012), for the reweighting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.classification.averaging import (
    Training,
    averaged,
    changes,
    first_state,
    fits,
    model_of,
    scored,
    tensors_of,
    trained_by_clients,
)
from upright.classification.silos import Silo, one_hot
from upright.contract import InputError
from upright.maths.parity.rates import Criterion, contrasts, masses, strata

__all__ = ["FairFed", "FedFB", "reweighted", "simplex"]

Array = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
State = dict[str, Any]


def simplex(x: Array, total: float) -> Array:
    """Return the point of ``v >= 0, sum v = total`` that is nearest to x, shape (m,).

    Source: Duchi et al., *Efficient Projections onto the l1-Ball for Learning in High Dimensions* (2008).
    """
    down = np.sort(x)[::-1]
    over = (np.cumsum(down) - total) / np.arange(1, len(x) + 1)
    held = np.flatnonzero(down > over)
    return np.asarray(np.maximum(x - over[held[-1] if len(held) else 0], 0.0))


def reweighted(y: Array, member: Array) -> Array:
    """Return ``P(a_i) P(y_i) / P(a_i, y_i)`` for each row of one client, shape (n,).

    Label and group are independent under these weights, which sum to n when no cell is empty.

    Parameters
    ----------
    y : ndarray, shape (n, m)
        One-hot labels.
    member : ndarray, shape (n, G)
        One-hot groups.
    """
    cell = member.T @ y  # (G, m), counts
    free = np.outer(cell.sum(axis=1), cell.sum(axis=0)) / len(y)
    weight = np.divide(free, cell, out=np.zeros_like(cell), where=cell > 0)
    return np.asarray(weight[member.argmax(axis=1), y.argmax(axis=1)])


def _needs_groups(config: Training) -> None:
    if not config.groups:
        raise InputError("silos without groups", "one family of groups", "give the silos a `members` array")


def _round(
    config: Training, message: Arrays, datas: Mapping[str, Silo], rows_of: Callable[[Silo, Array], Array]
) -> dict[str, tuple[Arrays, Array, Array]]:
    """Return each client's reply so far (change of the model, rows, loss, accuracy), labels and decisions."""
    names, theta = sorted(datas), model_of(message)
    for name in names:
        fits(config, datas[name])
    silos = [datas[name] for name in names]
    labels = [one_hot(s.y, config.classes) for s in silos]
    rows = [rows_of(s, y) for s, y in zip(silos, labels, strict=True)]
    after = trained_by_clients(config, int(message["round"][0]), tensors_of(theta, len(names)), silos, rows)
    out = {}
    for name, silo, y, row, own in zip(names, silos, labels, rows, after, strict=True):
        loss, p = scored(theta, silo, row)
        h = one_hot(p.argmax(axis=1), config.classes)
        report = np.array([float(len(silo.y)), loss, float((h * y).sum()) / len(y)])
        out[name] = ({**changes(theta, own), "report": report}, y, h)
    return out


def _rows_fit(reply: Arrays, parts: Sequence[str]) -> str:
    n = float(reply["report"][0])
    if n < 1 or n != round(n):
        return f"report of {n:g} rows"
    slack = 1e-6 * (1.0 + n)
    for name in parts:
        if (reply[name] < -slack).any() or (reply[name] > n + slack).any():
            return f"{name} that does not fit {n:g} rows"
    return ""


def _mean(replies: Mapping[str, Arrays], place: int) -> float:
    total = sum(float(r["report"][0]) for r in replies.values())
    return sum(float(replies[n]["report"][0]) * float(replies[n]["report"][place]) for n in sorted(replies)) / total


# -- FairFed --------------------------------------------------------------------------------------------------------


class FairFed:
    """Average with weights that follow how close a client's gap is to that of everybody.

    Parameters
    ----------
    config : Training
    criterion : str
        Of `upright.maths.parity.rates.CRITERIA`.
    beta : float
        Step of the weights, at least 0; with 0 and without reweighting it is federated averaging.
    reweight : bool
        Whether clients reweight their rows.

    Raises
    ------
    InputError
        For a negative `beta`, an unknown criterion, silos without groups.
    """

    def __init__(
        self,
        config: Training,
        criterion: Criterion = "demographic_parity",
        *,
        beta: float = 1.0,
        reweight: bool = True,
    ) -> None:
        _needs_groups(config)
        if not beta >= 0:
            raise InputError(f"beta = {beta}", "a number of at least 0", "take 1")
        self.shape = (len(strata(criterion, np.zeros((1, config.classes)))), config.groups[0], config.classes)
        self.config, self.criterion, self.beta, self.reweight = config, criterion, beta, reweight

    def start(self) -> State:
        """Return the first state: the initial model."""
        return first_state(self.config)

    def message(self, state: State) -> Arrays:
        """Return the round and the model."""
        return {"round": np.array([state["round"]]), **{k: v for k, v in state.items() if k.startswith("theta.")}}

    def template(self, state: State, name: str) -> Arrays:
        """Return a reply of the right shapes."""
        own = {"report": np.zeros(3), "mass": np.zeros(self.shape), "decided": np.zeros(self.shape)}
        return {**{f"delta.{k}": v for k, v in model_of(state).items()}, **own}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply."""
        more = (reply["decided"] > reply["mass"] + 1e-6 * (1.0 + reply["report"][0])).any()
        return _rows_fit(reply, ("mass", "decided")) or ("more decided than there are rows" if more else "")

    def client(self, message: Arrays, private: Arrays, data: Silo) -> tuple[Arrays, Arrays]:
        """Run one client."""
        return self.clients(message, {data.name: private}, {data.name: data})[data.name]

    def clients(
        self, message: Arrays, privates: Mapping[str, Arrays], datas: Mapping[str, Silo]
    ) -> dict[str, tuple[Arrays, Arrays]]:
        """Run several clients, their local steps in one tensor program."""

        def rows_of(silo: Silo, y: Array) -> Array:
            return y * reweighted(y, silo.members[0])[:, None] if self.reweight else y

        out = {}
        for name, (reply, y, h) in _round(self.config, message, datas, rows_of).items():
            member, f = datas[name].members[0], strata(self.criterion, y)
            mass = masses(f, member, np.ones(len(y)), self.config.classes)
            decided = np.stack([member.T @ (one * h) for one in f])
            out[name] = ({**reply, "mass": mass, "decided": decided}, privates[name])
        return out

    def gaps(self, mass: Array, decided: Array) -> Array:
        """Return all contrasts between groups, shape (S, R, m); NaN where a group is missing."""
        t = contrasts("pairwise", mass, mass > 0)
        rate = np.divide(decided, mass, out=np.zeros_like(mass), where=mass > 0)
        return np.asarray(np.where(np.abs(t).sum(axis=2) > 0, np.einsum("srgj,sgj->srj", t, rate), np.nan))

    def server(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Move the weights by the gaps of the model that was sent, and average by them."""
        names = sorted(replies)
        none = np.zeros(self.shape)
        everybody = self.gaps(
            sum((replies[n]["mass"] for n in names), start=none),
            sum((replies[n]["decided"] for n in names), start=none),
        )
        rows, accuracy = sum(float(replies[n]["report"][0]) for n in names), _mean(replies, 2)
        delta = {}
        for n in names:
            apart = np.abs(self.gaps(replies[n]["mass"], replies[n]["decided"]) - everybody)
            seen = apart[np.isfinite(apart)]
            delta[n] = float(seen.max()) if seen.size else abs(float(replies[n]["report"][2]) - accuracy)
        mean = sum(delta.values()) / len(names)
        before = {n: state.get(f"omega/{n}", float(replies[n]["report"][0]) / rows) for n in names}
        omega = {n: max(0.0, before[n] - self.beta * (delta[n] - mean)) for n in names}
        if not sum(omega.values()) > 0:
            omega = before  # all clipped at once: only rounding can do that
        weights = {n: v / sum(omega.values()) for n, v in omega.items()}
        known = np.abs(everybody[np.isfinite(everybody)])
        entry = {"round": state["round"], "loss": _mean(replies, 1), "error": 1.0 - accuracy,
                 "global_gap": float(known.max(initial=0.0)), "weights": weights}  # fmt: skip
        return {
            **state, **averaged(self.config, state, replies, weights), **{f"omega/{n}": v for n, v in omega.items()},
            "round": state["round"] + 1, "history": [*state["history"], entry],
        }  # fmt: skip

    def done(self, state: State) -> bool:
        """Return whether all rounds are over."""
        return bool(state["round"] > self.config.rounds)


# -- FedFB ----------------------------------------------------------------------------------------------------------


class FedFB:
    """Weights of (group, label) in the loss that follow how often each group is decided as each class.

    Parameters
    ----------
    config : Training
    alpha : float
        Step of the weights, at least 0; with 0 it is federated averaging.

    Raises
    ------
    InputError
        For a negative `alpha` and silos without groups.
    """

    def __init__(self, config: Training, *, alpha: float = 0.3) -> None:
        _needs_groups(config)
        if not alpha >= 0:
            raise InputError(f"alpha = {alpha}", "a number of at least 0", "take 0.3")
        self.config, self.alpha = config, alpha
        self.shape = (config.groups[0], config.classes)

    def start(self) -> State:
        """Return the first state: the initial model, every row of weight 1."""
        return {**first_state(self.config), "weights": np.ones(self.shape)}

    def message(self, state: State) -> Arrays:
        """Return round, model, and the weight of a row of each group and label, shape (G, m)."""
        theta = {k: v for k, v in state.items() if k.startswith("theta.")}
        return {"round": np.array([state["round"]]), "weights": state["weights"], **theta}

    def template(self, state: State, name: str) -> Arrays:
        """Return a reply of the right shapes."""
        own = {"report": np.zeros(3), "labelled": np.zeros(self.shape), "decided": np.zeros(self.shape)}
        return {**{f"delta.{k}": v for k, v in model_of(state).items()}, **own}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply."""
        apart = np.abs(reply["decided"].sum(axis=1) - reply["labelled"].sum(axis=1)).max(initial=0.0)
        wrong = "decided does not sum to the rows of its groups" if apart > 1e-6 * (1.0 + reply["report"][0]) else ""
        return _rows_fit(reply, ("labelled", "decided")) or wrong

    def client(self, message: Arrays, private: Arrays, data: Silo) -> tuple[Arrays, Arrays]:
        """Run one client."""
        return self.clients(message, {data.name: private}, {data.name: data})[data.name]

    def clients(
        self, message: Arrays, privates: Mapping[str, Arrays], datas: Mapping[str, Silo]
    ) -> dict[str, tuple[Arrays, Arrays]]:
        """Run several clients, their local steps in one tensor program."""

        def rows_of(silo: Silo, y: Array) -> Array:
            return np.asarray(y * message["weights"][silo.members[0].argmax(axis=1)])

        out = {}
        for name, (reply, y, h) in _round(self.config, message, datas, rows_of).items():
            member = datas[name].members[0]
            out[name] = ({**reply, "labelled": member.T @ y, "decided": member.T @ h}, privates[name])
        return out

    def server(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Average by rows, and move the weights by the gaps of the model that was sent."""
        new = {**state}
        for n in sorted(replies):
            new |= {f"{part}/{n}": replies[n][part] for part in ("labelled", "decided")}
        names = [key.removeprefix("labelled/") for key in sorted(new) if key.startswith("labelled/")]
        label = sum((new[f"labelled/{n}"] for n in names), start=np.zeros(self.shape))  # (G, m)
        decided = sum((new[f"decided/{n}"] for n in names), start=np.zeros(self.shape))
        size = label.sum(axis=1)  # (G,)
        there = size > 0
        rate = np.divide(decided, size[:, None], out=np.zeros_like(decided), where=there[:, None])
        gap = np.where(there[:, None], rate - decided.sum(axis=0) / size.sum(), 0.0)  # (G, m)
        lam = state["weights"] * label / size.sum() - self.alpha / np.sqrt(state["round"]) * gap
        lam = np.stack([simplex(np.where(c > 0, own, -np.inf), s) if s > 0 else np.zeros_like(own)
                        for own, c, s in zip(lam, label, size / size.sum(), strict=True)])  # fmt: skip
        weights = np.divide(lam * size.sum(), label, out=np.ones_like(lam), where=label > 0)
        by_rows = {n: float(r["report"][0]) for n, r in replies.items()}
        widest = [rate[there, j].max() - rate[there, j].min() for j in range(self.shape[1])]
        entry = {"round": state["round"], "loss": _mean(replies, 1), "error": 1.0 - _mean(replies, 2),
                 "global_gap": float(max(widest))}  # fmt: skip
        return {
            **new, **averaged(self.config, state, replies, by_rows), "weights": weights, "round": state["round"] + 1,
            "history": [*state["history"], entry],
        }  # fmt: skip

    def done(self, state: State) -> bool:
        """Return whether all rounds are over."""
        return bool(state["round"] > self.config.rounds)
