"""Fitting the table: calibration, the program, deterministic decisions, and what an auditor asks about them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from upright.classification.inputs import Array, Ints, as_text, one_hot, some
from upright.classification.table import FairTable, cut
from upright.contract import InputError
from upright.maths.parity.constraints import EMPTY, Constraint
from upright.maths.parity.program import Solution, solve
from upright.maths.parity.rates import needed
from upright.maths.parity.site import Site

__all__ = ["Fitted", "fit_table", "named_constraints"]

_MISSED = 0.01  # above which a tolerance that deterministic decisions miss is announced
_TIGHTER = 5  # rounds in which tolerances of deterministic decisions are tightened
_OBSERVATIONS = 30  # below which a gap inside a cell says little


def named_constraints(
    given: Any, features: Sequence[str], global_tol: float, local_tol: Any, gap: str
) -> list[tuple[str, Constraint, Any]]:
    """Return (feature, constraint, local tolerance by client or number) of each constraint; see `FairPost`."""
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
        own = dict(zip(as_text(np.array([*given], dtype=object)).tolist(), given.values(), strict=True))
        strangers = [k for k in own if k not in clients]
        if strangers:
            raise InputError(
                f"local tolerances for {some(strangers)}", f"clients {some(list(clients))}", "name clients of the data"
            )
        return tuple(own.get(k, float("inf")) for k in clients)
    return given


@dataclass(frozen=True, eq=False)
class Fitted:
    """A table, the optimum that it comes from, and what an auditor asks about it."""

    table: FairTable
    solution: Solution
    report: list[dict[str, Any]]
    left_out: list[dict[str, Any]]
    small: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]
    constraints: tuple[Constraint, ...]

    def missed(self, slack: float = 0.005) -> float:
        """Return by how much deterministic decisions exceed a tolerance at any level; 0 below `slack`."""
        worst = max(map(_excess, self._asked()), default=0.0)
        return worst if worst > slack else 0.0

    def misses(self) -> str:
        """Return a sentence on the tolerances that deterministic decisions exceed by more than 0.01, or nothing."""
        found = [f"{_title(r)} by {_excess(r):.3f} (gap {abs(r['gap_deterministic']):.3f}, tolerance {r['tolerance']})"
                 for r in _largest(self._asked(), _excess, _MISSED)]  # fmt: skip
        return _sentence("the default decision, without a draw, misses its tolerance", found,
                         "; randomised=True meets it in expectation on the calibration rows")  # fmt: skip

    def uncertain(self) -> str:
        """Return a sentence on the tolerances that are below the standard error of their gap, or nothing."""
        found = [f"{_title(r)}, {r['tolerance']} against {r['standard_error']:.3f}"
                 for r in _largest(self._asked(), lambda r: r["standard_error"] - r["tolerance"], 0.0)]  # fmt: skip
        return _sentence("a tolerance is below the standard error of its gap on the calibration rows", found,
                         "; on other rows gaps differ by that much, and one that was smaller can grow")  # fmt: skip

    def vanished(self) -> str:
        """Return a sentence on constraints that are left out because somebody is missing, or nothing."""
        found = [f"{_title(r)} ({r['why']})" for r in self.left_out]
        return _sentence("constraints are left out and cost nothing", found)

    def _asked(self) -> list[dict[str, Any]]:
        return [r for r in self.report if r["tolerance"] is not None]


def _title(row: Mapping[str, Any]) -> str:
    who = "global" if row["level"] == "global" else f"client {row['client']!r}"
    return f"{who} {row['criterion']} of {row['feature']!r}"


def _excess(row: Mapping[str, Any]) -> float:
    return float(abs(row["gap_deterministic"]) - row["tolerance"])


def _largest(rows: Sequence[Any], of: Callable[[Any], float], least: float) -> list[Any]:
    """Return the row with the largest number of each level and constraint, where it is above `least`."""
    found: dict[str, Any] = {}
    for row in sorted(rows, key=of, reverse=True):
        if of(row) > least:
            found.setdefault(_title(row), row)
    return list(found.values())


def _sentence(head: str, found: Sequence[str], tail: str = "", most: int = 20) -> str:
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return f"{head}: {'; '.join([*found[:most], *more])}{tail}" if found else ""


def _calibration(p: Array, y: Ints, code: Ints, groups: Sequence[str], weight: Array) -> dict[str, Any]:
    """Fit ``softmax(log p A + b)`` to the labels of each group; the identity where a group lacks a class."""
    m = p.shape[1]
    log = np.log(np.clip(p, 1e-12, None))
    x = log[:, 1:] - log[:, :1] if m == 2 else log  # of two classes one score and one bias
    found = {}
    for g, name in enumerate(groups):
        rows = np.flatnonzero((code == g) & (weight > 0))
        found[name] = (np.eye(m), np.zeros(m))
        if len(np.unique(y[rows])) < m or len(rows) < 5 * m:
            continue
        model = LogisticRegression(C=1e4, max_iter=1000).fit(x[rows], y[rows], weight[rows])
        a, b = model.coef_.T, model.intercept_
        found[name] = (np.array([[0.0, -a[0, 0]], [0.0, a[0, 0]]]), np.r_[0.0, b]) if m == 2 else (a.copy(), b.copy())
    return found


def fit_table(
    p: Array, codes: Mapping[str, Ints], groups: Mapping[str, Sequence[str]], client: Ints, clients: Sequence[str],
    wanted: Sequence[tuple[str, Constraint, Any]], classes: Sequence[Any], *,
    y: Ints | None = None, members: Mapping[str, Array] | None = None, weight: Array | None = None,
    temperature: float = 0.002, randomised: bool = False, calibrate: bool | Mapping[str, Any] = False,
    start: Fitted | None = None, solver: Callable[..., Solution] | None = None,
) -> Fitted:  # fmt: skip
    """Solve the program on calibration data and return its table; see `FairPost` for the meaning of the arguments.

    Another solver than `solve` takes its arguments, such as `in_rounds`; `calibrate` may be what was fitted elsewhere.
    """
    weight = np.ones(len(p)) if weight is None else weight
    weight = weight / weight.sum()
    features = tuple(f for f, _, _ in wanted)
    used = {f: tuple(groups[f]) for f in dict.fromkeys(features)}
    shares = {f: np.array([weight[codes[f] == g].sum() for g in range(len(names))]) for f, names in used.items()}
    first = features[0]
    calibration = calibrate if isinstance(calibrate, Mapping) else {}
    if calibrate is True and y is not None:
        calibration = _calibration(p, y, codes[first], used[first], weight)
    blank = FairTable(
        tuple(map(str, classes)), features, used, tuple(c.criterion for _, c, _ in wanted), tuple(clients), (), (),
        temperature, calibration, shares,
    )  # fmt: skip
    hard = blank.members({f: codes[f] for f in used})
    members = {**hard, **(members or {})}
    q = blank.calibrated(p, members)
    rows = [np.flatnonzero(client == k) for k in range(len(clients))]
    sites = [Site(q[r], tuple(members[f][r] for f in features), weight[r], blank.criteria) for r in rows]
    constraints = [replace(c, local_tol=_local(tol, clients)) for _, c, tol in wanted]
    mass = [s.masses() for s in sites]
    if y is not None:  # a group without a label has no rate of it, whatever its probabilities say
        labels = one_hot(y, p.shape[1])
        seen = [replace(s, p=labels[r]).masses() for s, r in zip(sites, rows, strict=True)]
        mass = [[np.minimum(a, b) for a, b in zip(*own, strict=True)] for own in zip(mass, seen, strict=True)]
    again = functools.partial(solver or solve, sites, beta=temperature, seen=mass)
    solution = again(constraints, start=start.solution if start else None)
    if not randomised:
        solution = _tightened(sites, constraints, solution, again)
    common = cut(solution.levels[0].matrix @ solution.prices, [t.shape for t in solution.tables[0]])
    table = replace(blank, tables=tuple(tuple(t) for t in solution.tables), common=tuple(common))
    counts = [[(hard[f][r] > 0).sum(0) for f in features] for r in rows]
    report = _report(sites, constraints, solution, table, randomised)
    return Fitted(table, solution, report, _left_out(mass, solution, constraints, table),
                  _small(table, counts, constraints), _conflicts(report), tuple(constraints))  # fmt: skip


def _hard(site: Site, table: Sequence[Array]) -> Array:
    z = site.decide(table, 1.0)
    return one_hot(z.argmax(1), z.shape[1])


def _values(sites: Sequence[Site], solution: Solution, randomised: bool) -> tuple[list[Array], list[Array]]:
    """D of each level and its standard error, of everybody first.

    Of rates R of n_g rows of a group in the stratum, T their contrast: ``sqrt(sum_g T_g^2 R_g (1 - R_g) / n_g)``, with
    half a row added to both sides of R, so that a group of one row is not certain.
    """
    kinds = [
        [s.sums(s.decide(t, solution.beta) if randomised else _hard(s, t))
         for s, t in zip(sites, solution.tables, strict=True)],
        [s.sums(np.ones_like(s.p)) for s in sites],
        [replace(s, weight=s.weight**2).sums(np.ones_like(s.p)) for s in sites],
    ]  # fmt: skip
    found, errors = [], []
    everybody = tuple(np.sum(kind, axis=0) for kind in kinds)
    for lv, (up, mass, square) in zip(solution.levels, [everybody, *zip(*kinds, strict=True)], strict=True):
        n = np.divide(mass**2, square, out=np.zeros_like(mass), where=square > 0)
        rate = (np.divide(up, mass, out=np.zeros_like(up), where=mass > 0) * n + 0.5) / (n + 1.0)
        found.append(lv.matrix.T @ up / (lv.share or 1.0))
        errors.append(np.sqrt((lv.matrix**2).T @ (rate * (1.0 - rate) * square)) / (lv.share or 1.0))
    return found, errors


def _tightened(
    sites: Sequence[Site], constraints: Sequence[Constraint], solution: Solution, again: Callable[..., Solution]
) -> Solution:
    """Tighten tolerances by what deterministic decisions exceed them, and keep what exceeds least."""
    asked = [level.tol for level in solution.levels]
    limits = [[c.global_tol, *c.local(len(sites)).tolist()] for c in constraints]
    best, least = solution, np.inf
    for attempt in range(_TIGHTER + 1):
        values, _ = _values(sites, solution, randomised=False)
        excess = np.zeros((len(constraints), len(asked)))
        for n, (level, value) in enumerate(zip(solution.levels, values, strict=True)):
            np.maximum.at(excess[:, n], level.place[:, 0], np.abs(value) - asked[n])
        if excess.max() < least - 1e-12:
            best, least = solution, float(excess.max())
        if least <= 1e-9 or attempt == _TIGHTER:
            break
        limits = [[max(0.0, t - e) for t, e in zip(row, over, strict=True)]
                  for row, over in zip(limits, excess.tolist(), strict=True)]  # fmt: skip
        tighter = [replace(c, global_tol=row[0], local_tol=tuple(row[1:]))
                   for c, row in zip(constraints, limits, strict=True)]  # fmt: skip
        solution = again(tighter, start=solution)
    return replace(best, levels=[replace(lv, tol=a) for lv, a in zip(best.levels, asked, strict=True)])


def _report(
    sites: Sequence[Site], constraints: Sequence[Constraint], solution: Solution, table: FairTable, randomised: bool
) -> list[dict[str, Any]]:
    """One row a constrained contrast: tolerance, gap of both kinds of decision on the calibration data, price.

    The standard error is that of the decision that is served. Contrasts that touch an empty group have None.
    """
    soft, hard = _values(sites, solution, True), _values(sites, solution, False)
    served = soft if randomised else hard
    prices = [solution.prices, *solution.local_prices]
    rows = []
    for n, level in enumerate(solution.levels):
        numbers = {"tolerance": level.tol, "gap_randomised": soft[0][n], "gap_deterministic": hard[0][n],
                   "standard_error": served[1][n], "price": level.share * prices[n]}  # fmt: skip
        for u, (c, s, r, j) in enumerate([*level.place.tolist(), *level.masked.tolist()]):
            rows.append({
                **_of(table, n, c), "stratum": s, "class": table.classes[j],
                "between": _between(table.groups[table.features[c]], r, constraints[c].gap),
                **{name: float(v[u]) if u < len(level.tol) else None for name, v in numbers.items()},
            })  # fmt: skip
    return rows


def _of(table: FairTable, n: int, c: int) -> dict[str, Any]:
    """Name a constraint at a level; the first is that of everybody."""
    return {"level": "local" if n else "global", "client": table.clients[n - 1] if n else None,
            "feature": table.features[c], "criterion": table.criteria[c]}  # fmt: skip


def _left_out(
    mass: Sequence[Sequence[Array]], solution: Solution, constraints: Sequence[Constraint], table: FairTable
) -> list[dict[str, Any]]:
    """One row a level and constraint that a group takes no part in, since it has no weight or no row of a label."""
    rows = []
    pooled = [np.sum(own, axis=0) for own in zip(*mass, strict=True)]
    for n, (level, own) in enumerate(zip(solution.levels, [pooled, *mass], strict=True)):
        for c, (one, p) in enumerate(zip(constraints, own, strict=True)):
            if not np.isfinite(one.global_tol if n == 0 else one.local(len(mass))[n - 1]):
                continue
            names = table.groups[table.features[c]]
            there = p[:, :, list(one.chosen(p.shape[2]))] > EMPTY * level.share
            gone = [name for name, met in zip(names, there.all((0, 2)), strict=True) if not met]
            what = "weight" if one.criterion == "demographic_parity" else "a row of every label that counts"
            why = f"group {some(gone)} without {what}" if gone else f"nobody but group {names[0]!r}"
            if gone or len(names) < 2:
                rows.append({**_of(table, n, c), "why": why})
    return rows


def _between(names: Sequence[str], r: int, gap: str) -> str:
    if gap == "average":
        return f"{names[r]} - average"
    return " - ".join(list(itertools.combinations(names, 2))[r])


def _small(
    table: FairTable, counts: Sequence[Sequence[Ints]], constraints: Sequence[Constraint]
) -> list[dict[str, Any]]:
    """Groups with fewer samples than lemma B.7 asks for, at clients that have a local tolerance."""
    rows = {}
    for k, own in enumerate(counts):
        for c, feature in enumerate(table.features):
            if not np.isfinite(constraints[c].local(len(counts))[k]):
                continue
            total = max(int(own[c].sum()), 1)
            for g, n in enumerate(own[c].tolist()):
                want = needed(n / total, _OBSERVATIONS) if n else None
                if want is None or total < want:
                    rows[k, feature, g] = {"client": table.clients[k], "feature": feature,
                                           "group": table.groups[feature][g], "n": n, "of": total,
                                           "needed": want}  # fmt: skip
    return list(rows.values())


def _conflicts(report: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return clients whose local price pulls against the global one of the same contrast."""
    key = ("feature", "criterion", "stratum", "class", "between")
    common = {tuple(r[k] for k in key): r["price"] for r in report if r["level"] == "global" and r["price"]}
    return [{"client": r["client"], **{k: r[k] for k in key}, "global_price": common[at], "local_price": r["price"]}
            for r in report if r["level"] == "local" and r["price"]
            and (at := tuple(r[k] for k in key)) in common and common[at] * r["price"] < 0]  # fmt: skip
