"""Post-processing as rounds between a server and clients that never show a row.

Algorithm
---------
1. each client sends the masses of its groups, once, and its number of rows
2. the server sends the adjustments that its prices make, one table of the size strata x groups x classes
3. each client minimises over its own prices and returns the value and the sums of its rates, of the same size
   (`upright.maths.parity.shares`)
4. the server moves its prices by a quasi-Newton step (BFGS on the clients' part, exact on the tolerances) with step
   halving; when the gradient is small, temperature and smoothing fall, as in `upright.maths.parity.program`

The answer is that of the program on all rows together. Rows, labels, attributes, probabilities and local prices stay.

Absence: a plane through the last reply of a client stands in its place, ``F_k + <gradient, move>``, which at one
temperature is never above the client's own value: an absent client goes on asking for what it last asked for, and is
never counted as fair. Whoever leaves or comes back makes another objective, and the search a new step from where it is.
At the end, and before the first step, those who are away are waited for, three rounds at most. A client that sent no
masses, or never an answer, takes no part until it does (``state["who"]``): its rows divide no rate. A search that ends
by the number of rounds warns, and so does one that ends while somebody is away.

Source: Zhang et al., *FedFACT* (2025), arXiv 2506.03777, section 4.2, with Newton steps at the clients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.classification.inputs import Array
from upright.classification.table import cut
from upright.contract import InputError, stream
from upright.maths.parity.constraints import Constraint, Level, levels_of
from upright.maths.parity.newton import Dual, smooth_abs
from upright.maths.parity.program import Solution
from upright.maths.parity.rates import masses_fit
from upright.maths.parity.shares import best_local_prices
from upright.maths.parity.site import Site, table_size

__all__ = ["Counted", "FedFACTPost", "Scores", "in_rounds", "named"]

Arrays = dict[str, NDArray[Any]]
State = dict[str, Any]
_FALL, _MU_LAST = 0.25, 1e-10
_WAIT = 3  # rounds in which prices that are found are asked again while somebody is away
_SEARCH = ("point", "step", "length", "total", "descent", "slope")


@dataclass(frozen=True, eq=False)
class Scores:
    """What a client holds: class probabilities of its rows, shape (n, m), and their groups, shape (n, G_c) each."""

    name: str
    p: Array
    members: tuple[Array, ...]


class Counted:
    """Constraints over clients that send the masses of their groups once, before their first round.

    Masses give the share of each client, which contrasts there are, and what replies are feasible. Tolerances are cut
    to `most`.
    """

    def __init__(
        self, constraints: Sequence[Constraint], groups: Sequence[int], classes: int, clients: Sequence[str],
        most: float = math.inf,
    ) -> None:  # fmt: skip
        self.constraints, self.names, self.most = tuple(constraints), tuple(clients), most
        self.criteria = tuple(c.criterion for c in constraints)
        self.shapes = table_size(self.criteria, groups, classes)
        self.width = sum(map(math.prod, self.shapes))
        many = any(np.ndim(c.local_tol) for c in constraints)
        self.local = np.array([c.local(len(self.names) if many else 1) for c in constraints])  # (C, K) or (C, 1)
        self.local = self.local.reshape(len(self.constraints), -1)

    def _inside(self, name: str) -> list[float]:
        """Return a client's tolerance of each constraint."""
        own = self.local[:, self.names.index(name) if self.local.shape[1] > 1 else 0]
        return [min(t, self.most) for t in own.tolist()]

    def _everybody(self, state: State, names: Sequence[str] = ()) -> tuple[Level, float]:
        """Return the constraints of some clients together, of all that take part by default, and their rows."""
        names = names or state.get("who") or named(state, "mass/")
        rows = sum(state[f"count/{n}"] for n in names)
        mass = sum((state[f"mass/{n}"] for n in names), start=np.zeros(self.width)) / rows
        tolerances = [min(c.global_tol, self.most) for c in self.constraints]
        return levels_of(self.constraints, cut(mass, self.shapes), tolerances, 1.0), rows

    def _known(self, state: State) -> NDArray[np.int64]:
        """Return one number for each client that need not send masses."""
        return np.array([stream(0, n) for n in named(state, "mass/")], dtype=np.int64)

    def _counts(self, message: Arrays, site: Site, name: str) -> Arrays:
        """Return the masses of a client's rows of weight 1 where the server does not know them, else nothing."""
        if stream(0, name) in set(message["known"].tolist()):
            return {}
        return {"mass": site.sums(np.ones_like(site.p)), "count": np.array([float(len(site.p))])}

    def _unfit(self, reply: Arrays) -> str:
        n = float(reply["count"][0])
        fit = masses_fit(self.criteria, cut(reply["mass"], self.shapes), n)
        return "" if fit else f"masses that do not fit {n:g} rows"

    def _taken(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Return the state of the next round with the masses that came."""
        new = {**state, "round": state["round"] + 1}
        for name in sorted(replies):
            if "mass" in replies[name]:
                new |= {f"mass/{name}": replies[name]["mass"], f"count/{name}": float(replies[name]["count"][0])}
        return new


def warn_of_old_replies(names: Sequence[str]) -> None:
    """Warn that a result rests on replies of an earlier round."""
    text = f"the prices rest on an old reply of clients without one in the last round: {', '.join(names)}"
    warnings.warn(text, RuntimeWarning, stacklevel=3)


class FedFACTPost(Counted):
    """Prices of global and local constraints, found in rounds.

    Parameters
    ----------
    constraints : sequence of Constraint
    groups, classes : sequence of int, int
        G_c of each constraint, and m.
    clients : sequence of str
        Needed where local tolerances differ: their order.
    beta : float
        Temperature.
    rounds : int
        Most rounds.
    tol : float
        Largest gradient of the server's problem, in the unit of the gap.
    """

    def __init__(
        self, constraints: Sequence[Constraint], groups: Sequence[int], classes: int, *, clients: Sequence[str] = (),
        beta: float = 0.002, rounds: int = 400, tol: float = 1e-7,
    ) -> None:  # fmt: skip
        if len(constraints) != len(groups) or classes < 2 or not beta > 0 or rounds < 1:
            raise InputError(
                f"{len(constraints)} constraints, groups {tuple(groups)}, {classes} classes, beta = {beta}",
                "one number of groups for each constraint, two classes or more, positive beta", "correct what differs",
            )  # fmt: skip
        super().__init__(constraints, groups, classes, clients)
        self.beta, self.rounds, self.tol = beta, rounds, tol

    def start(self) -> State:
        """Return the first state: no prices, and a round in which masses are sent."""
        return {"round": 0, "beta": max(self.beta, 0.1), "mu": 1e-3, "over": False, "history": []}

    def message(self, state: State) -> Arrays:
        """Return round, temperature, smoothing, number of rows, one number a known client, and Q adjustments."""
        table, rows, known = np.zeros(self.width), 0.0, self._known(state)
        if known.size:
            level, rows = self._everybody(state)
            table = level.matrix @ state["trial"]
        setting = np.array([state["beta"], state["mu"], rows])
        return {"round": np.array([state["round"]]), "known": known, "setting": setting, "table": table}

    def template(self, state: State, name: str) -> Arrays:
        """Return a reply of the right shapes."""
        if f"mass/{name}" not in state:
            return {"mass": np.zeros(self.width), "count": np.zeros(1)}
        return {"sums": np.zeros(self.width), "value": np.zeros(1)}

    def objection(self, state: State, name: str, reply: Arrays) -> str:
        """Return what is wrong with a reply: rates outside what the client's masses allow."""
        if "mass" in reply:
            return self._unfit(reply)
        rows = self._everybody(state)[1]
        most = state[f"mass/{name}"] / rows
        bad = (reply["sums"] < -1e-9).any() or (reply["sums"] > most + 1e-9).any()
        return "sums outside their range: more decisions than rows, or fewer than none" if bad else ""

    def client(self, message: Arrays, private: Arrays, data: Scores) -> tuple[Arrays, Arrays]:
        """Send masses, or minimise over the client's own prices (step 3)."""
        site = Site(data.p, data.members, np.ones(len(data.p)), self.criteria)
        if counts := self._counts(message, site, data.name):
            return counts, private
        beta, mu, rows = (float(v) for v in message["setting"])
        site = replace(site, weight=site.weight / rows)
        level = levels_of(self.constraints, site.masses(), self._inside(data.name), len(data.p) / rows)
        nu = np.array(private["prices"]) if "prices" in private else np.zeros(len(level.tol))
        nu, value, sums = best_local_prices(site, level, message["table"], self.shapes, nu, beta, mu)
        own = message["table"] + level.matrix @ nu
        return {"sums": sums, "value": np.array([value])}, {"prices": nu, "table": own}

    def server(self, state: State, replies: Mapping[str, Arrays]) -> State:
        """Take masses, or one quasi-Newton step (step 4), and warn where the last round leaves something open."""
        new = self._next(state, replies)
        if self.done(new) and not new["over"]:
            text = f"prices were not found in {self.rounds} rounds: raise rounds, or see who was away or refused"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        elif self.done(new) and new["away"]:
            warn_of_old_replies(new["away"])
        return new

    def _next(self, state: State, replies: Mapping[str, Arrays]) -> State:
        new = self._taken(state, replies)
        if any("mass" in r for r in replies.values()) or "trial" not in state:
            return self._restarted({**new, "who": named(new, "mass/")})
        silent = [n for n in state["who"] if n not in replies and f"sums/{n}" not in state]
        back = [n for n in replies if n not in state["who"]]
        if back or (silent and state.get("waited", 0) >= _WAIT):  # who never answered has no plane to stand for it
            return self._restarted({**new, "who": sorted({*state["who"], *back} - set(silent))})
        level, _ = self._everybody(new)
        table = level.matrix @ state["trial"]
        for name in sorted(replies):
            new |= {f"sums/{name}": replies[name]["sums"], f"value/{name}": float(replies[name]["value"][0]),
                    f"where/{name}": table}  # fmt: skip
        if silent:  # the same prices, asked again
            return {**new, "waited": state.get("waited", 0) + 1, "away": silent}
        names = named(new, "sums/")  # absent ones with the plane through what they sent last
        value = sum(new[f"value/{n}"] - float(new[f"sums/{n}"] @ (table - new[f"where/{n}"])) for n in names)
        gradient = -level.matrix.T @ sum((new[f"sums/{n}"] for n in names), start=np.zeros(self.width))
        return self._step(new, level, float(value), gradient, [n for n in names if n not in replies])

    def _restarted(self, new: State) -> State:
        """Start the search at no prices: the clients that are known have changed."""
        level, _ = self._everybody(new)
        u = len(level.tol)
        kept = _without(new, *_SEARCH, "bend", "size", "away", "waited")
        kept = {k: v for k, v in kept.items() if not k.startswith(("sums/", "value/", "where/"))}
        return {**kept, "trial": np.zeros(u), "bend": np.eye(u), "beta": max(self.beta, 0.1), "mu": 1e-3}

    def _step(self, new: State, level: Level, value: float, gradient: Array, away: list[str]) -> State:
        x, mu = new["trial"], new["mu"]
        slope, bend, pays = np.zeros_like(x), np.zeros_like(x), level.tol > 0
        paid, slope[pays], bend[pays] = smooth_abs(x[pays], level.tol[pays], mu)
        total, full = value + float(paid.sum()), gradient + slope
        size = float(np.abs(full).max(initial=0.0))
        history = [*new["history"], {"round": new["round"] - 1, "beta": new["beta"], "mu": mu, "value": total,
                                     "gradient": size}]  # fmt: skip
        if away != new.get("away", []):  # another objective: what was measured before is no measure of it
            new = _without(new, *_SEARCH)
        new = {**new, "history": history, "away": away}
        if "point" in new:
            wanted = new["total"] + 1e-4 * new["length"] * new["descent"]
            rounding = -new["descent"] < 1e-10 * max(1.0, abs(total)) and size < new["size"]
            if total > wanted and not rounding and new["length"] > 1e-9:  # halve the step
                length = 0.5 * new["length"]
                return {**new, "length": length, "trial": new["point"] + length * new["step"]}
            move, turn = x - new["point"], gradient - new["slope"]
            b = new["bend"]
            along, own = float(move @ turn), b @ move
            if along > 1e-14 and float(move @ own) > 0:
                b = b + np.outer(turn, turn) / along - np.outer(own, own) / float(move @ own)
            new = {**new, "bend": b}
        last = new["beta"] <= self.beta and mu <= _MU_LAST
        if size <= (self.tol if last else max(self.tol, min(1e-4, 0.01 * new["beta"]))):
            if last and away and new.get("waited", 0) < _WAIT:
                return {**_without(new, *_SEARCH), "waited": new.get("waited", 0) + 1}  # the same prices, asked again
            if last:
                return {**new, "over": True, "prices": x}
            fall = _FALL if new["beta"] > self.beta else 0.03
            beta = max(self.beta, new["beta"] * _FALL)  # the same prices, asked again
            return {**_without(new, *_SEARCH), "beta": beta, "mu": max(_MU_LAST, mu * fall)}
        h = new["bend"] + np.diag(bend)
        step = np.linalg.solve(h + 1e-10 * max(float(np.diag(h).max(initial=0.0)), 1e-30) * np.eye(len(x)), -full)
        return {
            **new, "point": x, "slope": gradient, "total": total, "size": size, "step": step, "length": 1.0,
            "descent": float(full @ step), "trial": x + step,
        }  # fmt: skip

    def done(self, state: State) -> bool:
        """Return whether the prices are found, or the rounds over."""
        return bool(state["over"]) or state["round"] > self.rounds

    def tables(self, privates: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Array]]:
        """Return each client's adjustments from what it remembers; in use each client has its own alone."""
        return {name: cut(np.asarray(own["table"]), self.shapes) for name, own in privates.items() if "table" in own}


def in_rounds(drive: Callable[..., Any], clients: Sequence[str], told: list[dict[str, int]]) -> Callable[..., Solution]:
    """Return what solves the program of all clients as `upright.maths.parity.program.solve` does, in rounds.

    `told` takes, of each time, the rounds, and the bytes that a client receives and sends in one.
    """

    def solved(
        sites: Sequence[Site], constraints: Sequence[Constraint], beta: float, *, start: Any = None, seen: Any = None
    ) -> Solution:
        groups, m = [q.shape[1] for q in sites[0].members], sites[0].p.shape[1]
        own = FedFACTPost(constraints, groups, m, clients=clients, beta=beta)
        state, privates = drive(own, {k: Scores(k, s.p, s.members) for k, s in zip(clients, sites, strict=True)})
        sent = own.message(state), own.template(state, clients[0])
        down, up = (sum(v.nbytes for v in each.values()) for each in sent)
        told.append({"rounds": state["round"], "down": down, "up": up})
        # what follows judges the answer on all rows, as only one process can
        levels, prices = [own._everybody(state)[0]], [state["trial"]]
        for name, site in zip(clients, sites, strict=True):
            levels.append(levels_of(constraints, site.masses(), own._inside(name), float(site.weight.sum())))
            prices.append(np.asarray(privates[name].get("prices", np.zeros(len(levels[-1].tol)))))
        dual = Dual(sites, levels, own.shapes)
        sums = dual.evaluate(prices, beta, _MU_LAST, False)[3]
        gaps = [v / (level.share or 1.0) for v, level in zip(sums, levels, strict=True)]
        found = list(zip(levels, prices, gaps, strict=True))
        paid = sum(v.share * float(v.tol @ np.abs(x) - x @ d) for v, x, d in found)
        kkt = max(float(np.abs(d - np.clip(d + x, -v.tol, v.tol)).max(initial=0.0)) for v, x, d in found)
        return Solution(prices[0], prices[1:], dual.tables(prices), gaps[0], gaps[1:], kkt, paid, state["round"],
                        bool(state["over"]), beta, levels)  # fmt: skip

    return solved


def named(state: Mapping[str, Any], prefix: str) -> list[str]:
    """Return the clients of whom a state keeps something under a prefix."""
    return sorted(key.removeprefix(prefix) for key in state if key.startswith(prefix))


def _without(state: Mapping[str, Any], *names: str) -> State:
    return {key: value for key, value in state.items() if key not in names}
