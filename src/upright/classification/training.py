r"""Training classifiers over silos: federated averaging, and FedFACT's personalised cost-sensitive learning.

Problem
-------
Client k holds rows (x, a, y); ``p_k`` is its share of all rows. Minimise the error of classifiers ``h_k(x)`` that do
not see the attribute a, such that gaps between groups stay within ``global_tol`` over everybody and ``local_tol`` at
each client (`upright.maths.parity.rates`, `upright.maths.parity.program.Constraint`).

Loss
----
Prices lam of the global and nu_k of the local constraints make a table V(k), and with it a matrix M(a, k), whose row y
is ``adjusted(one-hot(y))``. With kappa the smallest shift that leaves no negative entry,

    Mbar = (M + kappa) / scale        l(y, s, a) = - sum_i Mbar_yi log softmax(s)_i

``scale`` is the mean of the row sums of ``M + kappa``, so that step sizes keep their meaning. Without prices M is the
identity, kappa 0 and scale 1: the loss is the cross-entropy.

Guarantee: that of `cost_sensitive_loss`, so that its best scores decide best under the prices.

Algorithm (round t at client k)
-------------------------------
1. the server sends the unified model theta and the global part of the table
2. Mbar from the table and nu_k; weighted losses of theta and of the local model phi_k on all rows
3. decisions ``argmax of w_k softmax(theta) + (1 - w_k) softmax(phi_k)``
4. ``w_k`` by the rule of two experts, losses clipped to ``[0, loss_bound]``
5. ``nu_k <- l1_ball(soft_threshold(nu_k + eta s D^k, eta s local_tol))``; ``s = min(1, 4 / sum_g T_g^2 / P_g)`` for
   each price, T the contrast, P the masses of its groups; of two classes one has a price, and s is twice that
6. counts of the decisions by stratum, group and class go up
7. R mini-batch steps on theta and on phi_k; the change of theta goes up
8. server: ``theta += sum p_k (theta_k - theta)``, and lam as nu_k with D and ``global_tol`` of everybody

Masses go up once (`upright.classification.exchange`). An absent client stays in D with its last counts; one that
never sent any is left out of D, masses and all. It is never counted as fair, and a warning names for whom an old reply
stands at the end.

What leaves a client: changes of theta, masses and counts by stratum, group and class, which are sums over rows, seven
numbers about the round and one flag a constraint. Rows, attributes, labels, phi_k and nu_k stay.

Deviations
----------
1. local prices enter with the sign of the global ones, and both take a step from where they are: the printed form drops
   ``mu +`` and has the other sign
2. the tolerance is subtracted once, at the server; the printed form subtracts it in every client's message
3. signed prices and a soft threshold in place of a pair of prices for each constraint
4. local prices are scaled by the client's share (``mu_k = p_k nu_k``): those of small clients would diverge
5. steps of prices are shorter where groups are small (s above): of one length they swing, under equalized odds on
   Adult between gaps of 0 and 0.8; with s the gap stays near 0.04
6. kappa and scale are a client's own; the unified model therefore weighs clients with high prices less
7. the last iterate is served by default, as in the paper's experiments; ``average`` serves the last few
8. without any finite tolerance the weight of the unified model is 1 and phi_k is not trained: this is `FedAvg`

Nothing is guaranteed for the models that come out: a model class may not reach a tolerance. Then prices end at their
bound and ``state["unreached"]`` names the constraint.

Source: Zhang et al., *FedFACT* (2025), arXiv 2506.03777, algorithm 1, proposition 2; `FedAvg` for its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upright.classification.averaging import (
    FedAvg,
    Trained,
    Training,
    averaged,
    fits,
    last_of,
    model_of,
    scored,
    settings_of,
    trained,
    trained_by_clients,
)  # fmt: skip
from upright.classification.exchange import Arrays, Counted, State, named, warn_of_old_replies
from upright.classification.inputs import Array
from upright.classification.silos import Silo, one_hot, weighted_log_loss
from upright.classification.table import cut
from upright.contract import InputError
from upright.maths.parity.program import Constraint, Level, levels_of
from upright.maths.parity.site import Site, adjusted
from upright.maths.parity.steps import dual_step, l1_ball, two_experts

__all__ = ["FedAvg", "FedFACTTraining", "Trained", "Training", "cost_sensitive_loss", "normalised", "settings_of",
           "trained"]  # fmt: skip

_REPORT = ("loss", "own_loss", "error", "gap", "pull", "paid", "weight")  # of one client and round, in this order


def normalised(rows: Array) -> Array:
    """Return ``(M + kappa) / scale`` for rows of M, shape (n, m): no negative entry, row sums of mean 1."""
    shifted = rows + max(0.0, -float(rows.min()))
    total = float(shifted.sum(axis=1).mean())
    return shifted / total if total > 0 else np.full(rows.shape, 1.0 / rows.shape[1])  # all classes cost alike


def cost_sensitive_loss(scores: Tensor, y: Tensor, costs: Tensor, group: Tensor | None = None) -> Tensor:
    """Return ``- sum_i costs[y, i] log softmax(scores)_i`` per sample, shape (n,).

    Parameters
    ----------
    scores : tensor, shape (n, m)
        Logits.
    y : tensor of int64, shape (n,)
        Classes.
    costs : tensor, shape (m, m) or (C, m, m)
        Row y: what each decision is worth when the label is y, none negative; one matrix, or one a group.
    group : tensor of int64, shape (n,)
        Which of C matrices; needed when there are several.

    Raises
    ------
    InputError
        For costs that are negative or of another shape, and several matrices without groups.

    Guarantee
    ---------
    Calibrated: the minimiser over all scores has ``softmax(s(x)) ~ sum_y P(y | x) costs[y]`` (summed over groups by
    ``P(a | x)``), so its argmax is the decision of most worth. Adding one number to all entries changes no decision.
    """
    m = scores.shape[-1]
    if costs.shape[-2:] != (m, m) or costs.ndim != (2 if group is None else 3) or bool((costs < 0).any()):
        raise InputError(
            f"costs of shape {tuple(costs.shape)}, the smallest {float(costs.min()):g}, "
            f"{'without' if group is None else 'with'} groups",
            f"shape ({m}, {m}), or (groups, {m}, {m}) with a group a sample; no negative entry",
            "subtract the smallest entry from all",
        )  # fmt: skip
    return weighted_log_loss(scores, costs[y] if group is None else costs[group, y])


class FedFACTTraining(Counted, FedAvg):
    """Personalised cost-sensitive learning under global and local constraints.

    Parameters
    ----------
    constraints : sequence of Constraint
        One for each family of groups of the silos.
    config : Training
    clients : sequence of str
        In the order of local tolerances that differ; not needed for one tolerance for all.

    Raises
    ------
    InputError
        When constraints and groups differ in number, or local tolerances have no names.
    """

    def __init__(self, constraints: Sequence[Constraint], config: Training, clients: Sequence[str] = ()) -> None:
        if len(constraints) != len(config.groups) or config.classes < 2:
            raise InputError(
                f"{len(constraints)} constraints, groups {config.groups}, {config.classes} classes",
                "one number of groups for each constraint, and two classes or more",
                "give the silos one `members` array for each constraint",
            )  # fmt: skip
        FedAvg.__init__(self, config)
        # an infinite tolerance becomes a large one: its gaps are logged, its prices stay exactly 0
        Counted.__init__(self, constraints, config.groups, config.classes, clients, most=1e9)
        contrasts = [g * (g - 1) // 2 if c.gap == "pairwise" else g
                     for c, g in zip(self.constraints, config.groups, strict=True)]  # fmt: skip
        self.prices = [(s, r, m) for (s, _, m), r in zip(self.shapes, contrasts, strict=True)]
        self.priced = sum(map(math.prod, self.prices))
        tolerances = [*(c.global_tol for c in self.constraints), *self.local.ravel().tolist()]
        self.neutral = not np.isfinite(tolerances).any()

    def _at(self, level: Level) -> NDArray[np.int64]:
        """Return where the prices of a level are among those of all contrasts, shape (U,)."""
        start = np.cumsum([0, *map(math.prod, self.prices)])
        sizes = np.array(self.prices).reshape(-1, 3)
        c, s, r, j = level.place.T
        return np.asarray(start[c] + (s * sizes[c, 1] + r) * sizes[c, 2] + j, dtype=np.int64)

    def start(self) -> State:
        """Return the first state: the initial model, prices of zero, and a round in which masses are sent."""
        return {**super().start(), "round": 0, "prices": np.zeros(self.priced), "unreached": []}

    def message(self, state: State) -> Arrays:
        """Return round, model, the global part of the table, and who need not send masses."""
        known, table = self._known(state), np.zeros(self.width)
        if known.size:
            level, _ = self._everybody(state)
            table = level.matrix @ state["prices"][self._at(level)]
        return {**super().message(state), "known": known, "table": table}

    def template(self, state: State, name: str) -> Arrays:
        """Return a reply of the right shapes: masses from a client that is not known, else a round's reply."""
        if f"mass/{name}" not in state:
            return {"mass": np.zeros(self.width), "count": np.zeros(1)}
        report = np.zeros(len(_REPORT) + len(self.constraints))
        return {**super().template(state, name), "decided": np.zeros(self.width), "report": report}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply: counts outside what the client's masses allow."""
        if "mass" in reply:
            return self._unfit(reply)
        slack = 1e-6 * (1.0 + float(state[f"count/{name}"]))
        mass, decided = cut(state[f"mass/{name}"], self.shapes), cut(reply["decided"], self.shapes)
        for criterion, p, d in zip(self.criteria, mass, decided, strict=True):
            if (d < -slack).any() or (d > p + slack).any():
                return "decided outside its range: more decisions than rows, or fewer than none"
            # strata that do not depend on the decision: each row is decided once
            once = criterion in ("demographic_parity", "equalized_odds_cells")
            if once and (np.abs(d.sum(axis=2) - p[:, :, 0]) > slack).any():
                return "decided does not sum to the rows of its groups"
        return ""

    def clients(
        self, message: Arrays, privates: Mapping[str, Arrays], datas: Mapping[str, Silo]
    ) -> dict[str, tuple[Arrays, Arrays]]:
        """Take masses of those that are new, and run the others, their local steps in one tensor program."""
        new = {name: self._counts(message, self._site(silo), name) for name, silo in sorted(datas.items())}
        out = {name: (counts, privates[name]) for name, counts in new.items() if counts}
        known = {name: silo for name, silo in datas.items() if name not in out}
        return {**out, **super().clients(message, privates, known)} if known else out

    def trains_alone(self, turn: int, silos: list[Silo], rows: list[Array], memories: list[Arrays]) -> None:
        """Train local models, and keep the last few of what is averaged."""
        if not self.neutral:
            stacked = {key: torch.from_numpy(np.stack([m[f"phi.{key}"] for m in memories]))
                       for key in model_of(memories[0], "phi.")}  # fmt: skip
            for memory, own in zip(memories, trained_by_clients(self.config, turn, stacked, silos, rows), strict=True):
                memory |= {f"phi.{key}": value for key, value in own.items()}
        for memory in memories if self.config.average > 1 else []:
            for key in [key for key in memory if key == "mix" or key.startswith("phi.")]:
                memory[f"past.{key}"] = last_of(memory.get(f"past.{key}"), memory[key], self.config.average)

    def _site(self, silo: Silo) -> Site:
        fits(self.config, silo)
        y = one_hot(silo.y, self.config.classes)
        return Site(y, silo.members, np.ones(len(y)), self.criteria)

    def looked_at(self, message: Arrays, theta: Arrays, private: Arrays, silo: Silo) -> tuple[Array, Arrays, Arrays]:
        """Return weights of the loss (n, m), what is reported, and the client's new memory: steps 2 to 6."""
        config, n, site = self.config, len(silo.y), self._site(silo)
        weight = float(private["mix"][0]) if private else (1.0 if self.neutral else 0.5)
        phi = model_of(private, "phi.") or ({} if self.neutral else theta)  # starts where the unified model is
        nu = np.array(private["prices"]) if private else np.zeros(self.priced)
        mass = site.sums(np.ones_like(site.p)) / n
        level = levels_of(self.constraints, cut(mass, self.shapes), self._inside(silo.name), 1.0)
        at = self._at(level)
        table = cut(message["table"] + level.matrix @ nu[at], self.shapes)
        rows = normalised(adjusted(site.p, silo.members, self.criteria, table))  # step 2
        loss, p = scored(theta, silo, rows)
        own_loss, q = scored(phi, silo, rows) if phi else (loss, p)
        p = weight * p + (1.0 - weight) * q if phi else p
        h = one_hot(p.argmax(axis=1), config.classes)  # step 3
        decided = site.sums(h)
        d = level.matrix.T @ decided / n
        after = two_experts(weight, min(loss, config.loss_bound), min(own_loss, config.loss_bound), config.expert_step)
        moved = nu.copy()
        moved[at] = _moved(nu[at], d, level, mass, config)  # step 5
        pull, paid = _judged(nu[at], d, level.tol, config.radius)
        report = [loss, own_loss, float((p.argmax(axis=1) != silo.y).mean()), float(np.abs(d).max(initial=0.0)),
                  pull, paid, after, *_at_bound(moved[at], d, level, config.radius, len(self.constraints))]  # fmt: skip
        memory = {**private, "mix": np.array([after]), "prices": moved, **{f"phi.{k}": v for k, v in phi.items()}}
        return rows, {"decided": decided, "report": np.array(report)}, memory

    def server(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Take masses of new clients, average changes of the model, and move the global prices (step 8)."""
        new = self._taken(state, replies)
        some = {name: replies[name] for name in sorted(replies) if "report" in replies[name]}
        if not some:
            return new
        weights = {name: new[f"count/{name}"] for name in some}
        new |= averaged(self.config, state, some, weights)
        for name, reply in some.items():
            new |= {f"decided/{name}": reply["decided"], f"report/{name}": reply["report"]}
        names = named(new, "decided/")  # absent ones count with what they sent last
        old = [name for name in names if name not in some]
        if old and self.done(new):
            warn_of_old_replies(old)
        level, rows = self._everybody(new, names)
        at = self._at(level)
        d = level.matrix.T @ sum((new[f"decided/{name}"] for name in names), start=np.zeros(self.width)) / rows
        pull, paid = _judged(state["prices"][at], d, level.tol, self.config.radius)
        moved = state["prices"].copy()
        mass = sum((new[f"mass/{name}"] for name in names), start=np.zeros(self.width)) / rows
        moved[at] = _moved(moved[at], d, level, mass, self.config)
        total = sum(weights.values())
        mean = {k: sum(weights[n] * float(r["report"][i]) for n, r in some.items()) / total
                for i, k in enumerate(_REPORT)}  # fmt: skip
        entry = {
            "round": state["round"], "loss": mean["loss"], "error": mean["error"],
            "objective": mean["error"] + paid + mean["paid"],
            "global_gap": float(np.abs(d).max(initial=0.0)),
            "local_gap": max(float(r["report"][_REPORT.index("gap")]) for r in some.values()),
            "duality_gap": pull + mean["pull"],
            "weights": {n: float(r["report"][_REPORT.index("weight")]) for n, r in some.items()},
        }  # fmt: skip
        where = [("everybody", _at_bound(moved[at], d, level, self.config.radius, len(self.constraints)))]
        where += [(f"client {n}", new[f"report/{n}"][len(_REPORT) :].tolist()) for n in named(new, "report/")]
        unreached = [f"{criterion} (constraint {i}) of {who}: tolerance not reached with this model"
                     for who, flags in where for i, criterion in enumerate(self.criteria) if flags[i]]  # fmt: skip
        return {**new, "prices": moved, "history": [*state["history"], entry], "unreached": unreached}


def _moved(price: Array, d: Array, level: Level, mass: Array, config: Training) -> Array:
    """Return the prices after a step of length ``eta s``, shape (U,): deviation 5.

    Decisions of a group react to a price by ``T_g / P_g``, and the gap to them by ``T_g``. The sum of both is 4 for two
    groups of half of the rows each, and s is 1.
    """
    # of two classes one has a price, which moves the margin between them half as far as a pair of prices would
    twice = 2.0 if config.classes == 2 and len(set(level.place[:, 3].tolist())) < 2 else 1.0
    scale = twice * 4.0 / np.maximum((level.matrix**2 * mass[:, None]).sum(axis=0), 4.0)
    free = scale * dual_step(price / scale, d, level.tol, config.dual_step, np.inf)
    return l1_ball(free, config.radius)


def _judged(price: Array, d: Array, tol: Array, radius: float) -> tuple[float, float]:
    """Return by how much the best prices within the radius would raise the Lagrangian, and what the present ones add.

    ``paid = <price, D> - <tol, |price|>``; ``pull = radius max(0, max |D| - tol) - paid``, at least 0: the prices' half
    of the duality gap, the models' half is not known.
    """
    paid = float(price @ d - tol @ np.abs(price))
    return radius * float(np.maximum(np.abs(d) - tol, 0.0).max(initial=0.0)) - paid, paid


def _at_bound(price: Array, d: Array, level: Level, radius: float, count: int) -> list[float]:
    """Return for each constraint whether it is violated while the prices stand at their bound."""
    out = np.zeros(count)
    if np.abs(price).sum() >= radius * (1.0 - 1e-9):
        out[level.place[(np.abs(d) > level.tol) & (price != 0.0), 0]] = 1.0
    return [float(v) for v in out]
