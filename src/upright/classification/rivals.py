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

Departures from the papers, FairFed: (1) weights are clipped at 0; (2) F of more than two groups or classes is the
largest difference of any contrast; (3) absent clients keep their weight and are left out of the mean. FedFB: (4) F is
measured by decisions, not by the loss; (5) steps are proportional to F; (6) the weights of a group sum to its share, so
that the first round is federated averaging; (7) more than two classes, by projection onto the simplex; (8) absent
clients count with what they sent last.

Source: Ezzeldin et al., *FairFed: Enabling Group Fairness in Federated Learning* (2023), arXiv 2110.00857; Zeng et al.,
*Improving Fairness via Federated Learning* (2021), arXiv 2110.15545; Kamiran and Calders, *Data preprocessing
techniques for classification without discrimination* (2012), for the reweighting.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from upright.classification.averaging import FedAvg, Training
from upright.classification.exchange import Arrays, State, named
from upright.classification.inputs import Array
from upright.classification.silos import Silo
from upright.contract import InputError
from upright.maths.bilevel import project_simplex
from upright.maths.parity.rates import Criterion, contrasts, masses, strata

__all__ = ["FairFed", "FedFB", "reweighted"]


def reweighted(y: Array, member: Array) -> Array:
    """Return ``P(a_i) P(y_i) / P(a_i, y_i)`` for rows of one client, shape (n,), of one-hot y (n, m), member (n, G).

    Label and group are independent under these weights, which sum to n when no cell is empty.
    """
    cell = member.T @ y  # (G, m), counts
    free = np.outer(cell.sum(axis=1), cell.sum(axis=0)) / len(y)
    weight = np.divide(free, cell, out=np.zeros_like(cell), where=cell > 0)
    return np.asarray(weight[member.argmax(axis=1), y.argmax(axis=1)])


def _refuse(config: Training, name: str, step: float, usual: float) -> None:
    if not config.groups:
        raise InputError("silos without groups", "one family of groups", "give the silos a `members` array")
    if not step >= 0:
        raise InputError(f"{name} = {step}", "a number of at least 0", f"take {usual:g}")


class FairFed(FedAvg):
    """Average with weights that follow how close a client's gap is to that of everybody.

    Parameters
    ----------
    config : Training
    criterion : str
        Of `upright.maths.parity.rates.CRITERIA`.
    beta, reweight : float, bool
        Step of the weights, at least 0, and whether clients reweight their rows; without both: averaging.

    Raises
    ------
    InputError
        For a negative `beta`, an unknown criterion, silos without groups.
    """

    parts = ("mass", "decided")

    def __init__(
        self, config: Training, criterion: Criterion = "demographic_parity", *, beta: float = 1.0, reweight: bool = True
    ) -> None:
        _refuse(config, "beta", beta, 1)
        super().__init__(config)
        self.shape = (len(strata(criterion, np.zeros((1, config.classes)))), config.groups[0], config.classes)
        self.criterion, self.beta, self.reweight = criterion, beta, reweight

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply."""
        more = (reply["decided"] > reply["mass"] + 1e-6 * (1.0 + reply["report"][0])).any()
        return super().objection(state, name, reply) or ("more decided than there are rows" if more else "")

    def rows_of(self, message: Arrays, silo: Silo, y: Array) -> Array:
        """Return labels, reweighted where that is on."""
        return y * reweighted(y, silo.members[0])[:, None] if self.reweight else y

    def counted(self, silo: Silo, y: Array, h: Array) -> Arrays:
        """Return masses of strata and groups, and what was decided in them."""
        f, member = strata(self.criterion, y), silo.members[0]
        decided = np.stack([member.T @ (one * h) for one in f])
        return {"mass": masses(f, member, np.ones(len(y)), self.config.classes), "decided": decided}

    def gaps(self, mass: Array, decided: Array) -> Array:
        """Return all contrasts between groups, shape (S, R, m); NaN where a group is missing."""
        t = contrasts("pairwise", mass, mass > 0)
        rate = np.divide(decided, mass, out=np.zeros_like(mass), where=mass > 0)
        return np.asarray(np.where(np.abs(t).sum(axis=2) > 0, np.einsum("srgj,sgj->srj", t, rate), np.nan))

    def server(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Move the weights by the gaps of the model that was sent, and average by them."""
        names = sorted(replies)
        everybody = self.gaps(*(np.sum([replies[n][part] for n in names], axis=0) for part in self.parts))
        rows = sum(float(replies[n]["report"][0]) for n in names)
        accuracy = sum(float(replies[n]["report"][0]) * float(replies[n]["report"][2]) for n in names) / rows
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
        gap = float(np.abs(everybody[np.isfinite(everybody)]).max(initial=0.0))
        new = self.next_state(state, replies, weights, global_gap=gap, weights=weights)
        return {**new, **{f"omega/{n}": v for n, v in omega.items()}}


class FedFB(FedAvg):
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

    parts = ("labelled", "decided")

    def __init__(self, config: Training, *, alpha: float = 0.3) -> None:
        _refuse(config, "alpha", alpha, 0.3)
        super().__init__(config)
        self.alpha = alpha
        self.shape = (config.groups[0], config.classes)

    def start(self) -> State:
        """Return the first state: the initial model, every row of weight 1."""
        return {**super().start(), "weights": np.ones(self.shape)}

    def message(self, state: State) -> Arrays:
        """Return round, model, and the weight of a row of each group and label, shape (G, m)."""
        return {**super().message(state), "weights": state["weights"]}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply."""
        apart = np.abs(reply["decided"].sum(axis=1) - reply["labelled"].sum(axis=1)).max(initial=0.0)
        wrong = "decided does not sum to the rows of its groups" if apart > 1e-6 * (1.0 + reply["report"][0]) else ""
        return super().objection(state, name, reply) or wrong

    def rows_of(self, message: Arrays, silo: Silo, y: Array) -> Array:
        """Return labels by the weight of their group and label."""
        return np.asarray(y * message["weights"][silo.members[0].argmax(axis=1)])

    def counted(self, silo: Silo, y: Array, h: Array) -> Arrays:
        """Return labels and decisions of each group."""
        return {"labelled": silo.members[0].T @ y, "decided": silo.members[0].T @ h}

    def server(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Average by rows, and move the weights by the gaps of the model that was sent."""
        new = {**state, **{f"{part}/{n}": reply[part] for n, reply in replies.items() for part in self.parts}}
        names = named(new, "labelled/")
        label, decided = (np.sum([new[f"{part}/{n}"] for n in names], axis=0) for part in self.parts)  # (G, m)
        size = label.sum(axis=1)  # (G,)
        there = size > 0
        rate = np.divide(decided, size[:, None], out=np.zeros_like(decided), where=there[:, None])
        gap = np.where(there[:, None], rate - decided.sum(axis=0) / size.sum(), 0.0)  # (G, m)
        lam = state["weights"] * label / size.sum() - self.alpha / np.sqrt(state["round"]) * gap
        lam[label == 0] = 0.0  # a label that is not there has none
        for own, seen, total in zip(lam, label > 0, size / size.sum(), strict=True):
            if seen.any():
                own[seen] = project_simplex(own[seen], total)
        weights = np.divide(lam * size.sum(), label, out=np.ones_like(lam), where=label > 0)
        by_rows = {n: float(r["report"][0]) for n, r in replies.items()}
        widest = max(float(np.ptp(rate[there, j])) for j in range(self.shape[1]))
        return {**self.next_state(new, replies, by_rows, global_gap=widest), "weights": weights}
