"""Fitting the table: calibration, the program, deterministic decisions, and what an auditor asks about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from upright.classification.inputs import Ints, one_hot, some
from upright.classification.table import FairTable
from upright.contract import InputError
from upright.maths.parity.program import Constraint, Level, Solution, solve
from upright.maths.parity.rates import needed
from upright.maths.parity.site import Site

__all__ = ["Fitted", "fit_table", "named_constraints"]

Array = NDArray[np.float64]
_TIGHTER = 5  # rounds in which tolerances of deterministic decisions are tightened
_OBSERVATIONS = 30  # below which a gap inside a cell says little


def named_constraints(
    given: Any, features: Sequence[str], global_tol: float, local_tol: Any, gap: str
) -> list[tuple[str, Constraint, Any]]:
    """Return (feature, constraint, local tolerance by client or number) of each constraint.

    Parameters
    ----------
    given : str, Constraint, sequence of them, or mapping of feature to any of these
        A plain constraint holds for every feature.
    """
    if local_tol is None:
        local_tol = global_tol
    if isinstance(given, Mapping):
        unknown = [f for f in given if f not in features]
        if unknown:
            raise InputError(
                f"constraints on {some(unknown)}", f"sensitive features {some(list(features))}", "name one of them"
            )
        return [row for f, one in given.items() for row in named_constraints(one, [f], global_tol, local_tol, gap)]
    if isinstance(given, str):
        one = Constraint(given, global_tol, float("inf"), gap)  # type: ignore[arg-type]
        return [(f, one, local_tol) for f in features]
    if isinstance(given, Constraint):
        return [(f, given, given.local_tol) for f in features]
    if isinstance(given, Sequence):
        return [row for one in given for row in named_constraints(one, features, global_tol, local_tol, gap)]
    raise InputError(
        f"constraints = {given!r}", "the name of a criterion, a Constraint, several, or a mapping of feature to them",
        "for example 'demographic_parity'",
    )  # fmt: skip


def _local(given: Any, clients: Sequence[str]) -> Any:
    """Tolerances by client: a number, one a client in their order, or a mapping of name to number."""
    if isinstance(given, Mapping):
        strangers = [k for k in given if str(k) not in clients]
        if strangers:
            raise InputError(
                f"local tolerances for {some(strangers)}", f"clients {some(list(clients))}", "name clients of the data"
            )
        own = {str(k): float(v) for k, v in given.items()}
        return tuple(own.get(k, float("inf")) for k in clients)
    return given


@dataclass(frozen=True, eq=False)
class Fitted:
    """A table, the optimum that it comes from, and what an auditor asks about it."""

    table: FairTable
    solution: Solution
    report: list[dict[str, Any]]
    small: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]
    risk: float
    constraints: tuple[Constraint, ...]

    def missed(self, slack: float = 0.005) -> float:
        """Return by how much deterministic decisions exceed a global tolerance on the calibration data.

        0 below `slack`. Where whole groups are indifferent between decisions, as equalized odds often asks for, or
        equal scores are many, only drawn decisions can meet a tolerance.
        """
        over = [abs(r["gap_deterministic"]) - r["tolerance"] for r in self.report
                if r["level"] == "global" and r["tolerance"] is not None]  # fmt: skip
        worst = max(over, default=0.0)
        return worst if worst > slack else 0.0


def _calibration(p: Array, y: Ints, code: Ints, groups: Sequence[str], weight: Array) -> dict[str, Any]:
    """Fit ``softmax(log p A + b)`` to the labels of each group; the identity where a group lacks a class."""
    m = p.shape[1]
    log = np.log(np.clip(p, 1e-12, None))
    found = {}
    for g, name in enumerate(groups):
        rows = np.flatnonzero((code == g) & (weight > 0))
        own = np.unique(y[rows])
        if len(own) < m or len(rows) < 5 * m:
            found[name] = (np.eye(m), np.zeros(m))
            continue
        if m == 2:  # one score and one bias
            model = LogisticRegression(C=1e4, max_iter=1000).fit(log[rows, 1:] - log[rows, :1], y[rows], weight[rows])
            slope = float(model.coef_[0, 0])
            found[name] = (np.array([[0.0, -slope], [0.0, slope]]), np.array([0.0, float(model.intercept_[0])]))
        else:
            model = LogisticRegression(C=1e4, max_iter=1000).fit(log[rows], y[rows], weight[rows])
            found[name] = (model.coef_.T.copy(), model.intercept_.copy())
    return found


def fit_table(
    p: Array, codes: Mapping[str, Ints], groups: Mapping[str, Sequence[str]], client: Ints, clients: Sequence[str],
    wanted: Sequence[tuple[str, Constraint, Any]], classes: Sequence[Any], *,
    y: Ints | None = None, members: Mapping[str, Array] | None = None, weight: Array | None = None,
    temperature: float = 0.002, randomised: bool = False, calibrate: bool = False, start: Fitted | None = None,
) -> Fitted:  # fmt: skip
    """Solve the program on calibration data and return its table; see `FairPost` for the meaning of the arguments."""
    weight = np.ones(len(p)) if weight is None else weight
    weight = weight / weight.sum()
    features = tuple(f for f, _, _ in wanted)
    used = {f: tuple(groups[f]) for f in dict.fromkeys(features)}
    shares = {f: np.array([weight[codes[f] == g].sum() for g in range(len(names))]) for f, names in used.items()}
    shares = {f: s / max(s.sum(), 1e-300) for f, s in shares.items()}
    first = next(iter(used), None)
    calibration = (_calibration(p, y, codes[first], used[first], weight)
                   if calibrate and y is not None and first is not None else {})  # fmt: skip
    blank = FairTable(
        tuple(map(str, classes)), features, used, tuple(c.criterion for _, c, _ in wanted), tuple(clients), (), (),
        temperature, calibration, shares,
    )  # fmt: skip
    hard = blank.members({f: codes[f] for f in used})
    members = {f: members[f] if members is not None and f in members else hard[f] for f in used}
    q = blank.calibrated(p, members)
    rows = [np.flatnonzero(client == k) for k in range(len(clients))]
    sites = [Site(q[r], tuple(members[f][r] for f in features), weight[r], blank.criteria) for r in rows]
    constraints = [replace(c, local_tol=_local(tol, clients)) for _, c, tol in wanted]
    solution = solve(sites, constraints, temperature, start=start.solution if start else None)
    if not randomised:
        solution = _tightened(sites, constraints, solution, temperature)
    common = _split(solution.levels[0].matrix @ solution.prices, solution.tables[0])
    table = replace(blank, tables=tuple(tuple(t) for t in solution.tables), common=common)
    counts = [[(hard[f][r] > 0).sum(0) for f in features] for r in rows]
    report = _report(sites, constraints, solution, table)
    risk = 1.0 - float(sum(
        (s.weight[:, None] * s.p * (s.decide(t, temperature) if randomised else _hard(s, t))).sum()
        for s, t in zip(sites, solution.tables, strict=True)
    ))  # fmt: skip
    return Fitted(table, solution, report, _small(table, counts, constraints), _conflicts(report), risk,
                  tuple(constraints))  # fmt: skip


def _split(flat: Array, like: Sequence[Array]) -> tuple[Array, ...]:
    cuts = np.cumsum([v.size for v in like])[:-1]
    return tuple(v.reshape(o.shape) for v, o in zip(np.split(flat, cuts), like, strict=True))


def _hard(site: Site, table: Sequence[Array]) -> Array:
    z = site.decide(table, 1.0)
    return one_hot(z.argmax(1), z.shape[1])


def _values(sites: Sequence[Site], solution: Solution, randomised: bool) -> list[Array]:
    """D of each level, of everybody first."""
    sums = [s.sums(s.decide(t, solution.beta) if randomised else _hard(s, t))
            for s, t in zip(sites, solution.tables, strict=True)]  # fmt: skip
    everybody, *own = solution.levels
    total = np.sum(sums, axis=0)
    return [everybody.matrix.T @ total, *(lv.matrix.T @ v / lv.share for lv, v in zip(own, sums, strict=True))]


def _excess(level: Level, value: Array, asked: Array, constraint: int) -> float:
    own = level.place[:, 0] == constraint
    return float((np.abs(value[own]) - asked[own]).max(initial=0.0))


def _tightened(
    sites: Sequence[Site], constraints: Sequence[Constraint], solution: Solution, temperature: float
) -> Solution:
    """Tighten tolerances by what deterministic decisions exceed them, and keep what exceeds least."""
    asked = [level.tol for level in solution.levels]
    limits = [[c.global_tol, *c.local(len(sites)).tolist()] for c in constraints]
    best, least = solution, np.inf
    for attempt in range(_TIGHTER + 1):
        values = _values(sites, solution, randomised=False)
        excess = np.array([[_excess(lv, v, a, c) for lv, v, a in zip(solution.levels, values, asked, strict=True)]
                           for c in range(len(constraints))]).reshape(len(constraints), len(asked))  # fmt: skip
        if excess.max(initial=0.0) < least - 1e-12:
            best, least = solution, float(excess.max(initial=0.0))
        if least <= 1e-9 or attempt == _TIGHTER:
            break
        limits = [[max(0.0, t - e) for t, e in zip(row, over, strict=True)]
                  for row, over in zip(limits, excess.tolist(), strict=True)]  # fmt: skip
        tighter = [replace(c, global_tol=row[0], local_tol=tuple(row[1:]))
                   for c, row in zip(constraints, limits, strict=True)]  # fmt: skip
        solution = solve(sites, tighter, temperature, start=solution)
    return replace(best, levels=[replace(lv, tol=a) for lv, a in zip(best.levels, asked, strict=True)])


def _report(
    sites: Sequence[Site], constraints: Sequence[Constraint], solution: Solution, table: FairTable
) -> list[dict[str, Any]]:
    """One row a constrained contrast: tolerance, gap of both kinds of decision on the calibration data, price."""
    soft, hard = _values(sites, solution, True), _values(sites, solution, False)
    prices = [solution.prices, *solution.local_prices]
    rows = []
    for n, level in enumerate(solution.levels):
        for u, (c, s, r, j) in enumerate(level.place.tolist()):
            names = table.groups[table.features[c]]
            rows.append({
                "level": "global" if n == 0 else "local", "client": None if n == 0 else table.clients[n - 1],
                "feature": table.features[c], "criterion": constraints[c].criterion, "stratum": s,
                "class": table.classes[j], "between": _between(names, r, constraints[c].gap),
                "tolerance": float(level.tol[u]), "gap_randomised": float(soft[n][u]),
                "gap_deterministic": float(hard[n][u]), "price": float(level.share * prices[n][u]),
            })  # fmt: skip
        for c, s, r, j in level.masked.tolist():
            names = table.groups[table.features[c]]
            rows.append({
                "level": "global" if n == 0 else "local", "client": None if n == 0 else table.clients[n - 1],
                "feature": table.features[c], "criterion": constraints[c].criterion, "stratum": s,
                "class": table.classes[j], "between": _between(names, r, constraints[c].gap), "tolerance": None,
                "gap_randomised": None, "gap_deterministic": None, "price": None,
            })  # fmt: skip
    return rows


def _between(names: Sequence[str], r: int, gap: str) -> str:
    if gap == "average":
        return f"{names[r]} - average"
    a, b = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))][r]
    return f"{names[a]} - {names[b]}"


def _small(
    table: FairTable, counts: Sequence[Sequence[Ints]], constraints: Sequence[Constraint]
) -> list[dict[str, Any]]:
    """Groups with fewer samples than lemma B.7 asks for, at clients that have a local tolerance.

    Under a criterion that conditions on the label, a group counts with its rarest label.
    """
    rows, seen = [], set()
    for k, own in enumerate(counts):
        for c, feature in enumerate(table.features):
            if not np.isfinite(constraints[c].local(len(counts))[k]):
                continue
            total = max(int(own[c].sum()), 1)
            for g, n in enumerate(own[c].tolist()):
                if (k, feature, g) in seen:
                    continue
                seen.add((k, feature, g))
                want = needed(n / total, _OBSERVATIONS) if n else None
                if want is None or total < want:
                    rows.append({"client": table.clients[k], "feature": feature, "group": table.groups[feature][g],
                                 "n": int(n), "of": total, "needed": want})  # fmt: skip
    return rows


def _conflicts(report: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return clients whose local price pulls against the global one of the same contrast."""
    key = ("feature", "criterion", "stratum", "class", "between")
    common = {tuple(r[k] for k in key): r["price"] for r in report if r["level"] == "global" and r["price"]}
    return [{"client": r["client"], **{k: r[k] for k in key}, "global_price": common[at], "local_price": r["price"]}
            for r in report if r["level"] == "local" and r["price"]
            and (at := tuple(r[k] for k in key)) in common and common[at] * r["price"] < 0]  # fmt: skip
