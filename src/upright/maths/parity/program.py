"""The Bayes-optimal decision under group constraints, global and local: the convex dual program and its solver.

Problem
-------
Over decisions ``h_i`` in the simplex, with D as in `upright.maths.parity.rates` for the population (g) and inside each
client k whose weight is ``p_k``,

    maximise    sum_i w_i [ <p_i, h_i> + beta H(h_i) ]
    subject to  |D^g_u(h)| <= tol_u,   |D^k_u(h)| <= tol_ku

H is the entropy. Its dual is unconstrained and convex,

    minimise over lam, nu   sum_k f_k( A lam + B_k nu_k ) + sum_u tol_u |lam_u| + sum_k p_k sum_u tol_ku |nu_ku|

with f_k of `upright.maths.parity.site`; A and B_k turn dual prices into tables of adjustments.

Algorithm
---------
1. ``t |x|`` is replaced by ``min over s > |x| of t s - mu log(s^2 - x^2)``, whose derivative ``t x / s`` stays below t:
   every iterate that is stationary satisfies every constraint
2. damped Newton steps; the curvature has the shape of an arrow, so clients are eliminated one by one
3. beta, then mu, fall by stages, each started at the end of the one before
4. prices of constraints that do not bind are set to zero

Guarantee
---------
At the optimum the randomised decision ``h_i = softmax(z_i / beta)`` meets every constraint on the data that the program
was given, within ``kkt``; its expected accuracy (in terms of p) is within ``beta log m`` of the best that any
randomised decision of these samples can have. Nothing is guaranteed on other data.

Source: Zhang et al., *FedFACT* (2025), arXiv 2506.03777, section 4.2. They smooth the maximum by the softmax-weighted
mean, which is not convex; log-sum-exp is. With ``mu_k = p_k nu_k`` prices of small clients have the scale of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from upright.contract import InputError
from upright.maths.parity.rates import CRITERIA, Criterion, Gap, contrasts
from upright.maths.parity.site import Site, table_size

__all__ = ["Constraint", "Level", "Solution", "levels_of", "solve"]

Array = NDArray[np.float64]
_STAGES = 0.25  # by how much beta and mu fall from stage to stage
_MU_LAST = 1e-13
_RIDGE = 1e-10


@dataclass(frozen=True)
class Constraint:
    """What may differ between groups, and by how much.

    Parameters
    ----------
    criterion : str
        Of `upright.maths.parity.rates.CRITERIA`.
    global_tol : float
        Largest gap over the pooled population, at least 0; infinity removes the constraint.
    local_tol : float or sequence of float, shape (K,)
        Largest gap inside each client, for all or for each.
    gap : {"pairwise", "average"}
        Between any two groups, or of a group to the average over groups.
    classes : tuple of int or None
        Which decisions are constrained; None: all, and for ``equal_opportunity`` of two classes the last one.
    """

    criterion: Criterion = "demographic_parity"
    global_tol: float = float("inf")
    local_tol: float | Sequence[float] = float("inf")
    gap: Gap = "pairwise"
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise InputError(f"criterion {self.criterion!r}", ", ".join(CRITERIA), "name one of them")
        if self.gap not in ("pairwise", "average"):
            raise InputError(f"gap = {self.gap!r}", "'pairwise' or 'average'", "choose one of the two")
        for name in ("global_tol", "local_tol"):
            given = np.asarray(getattr(self, name), dtype=np.float64)
            if np.isnan(given).any() or (given < 0).any() or given.ndim > 1:
                raise InputError(
                    f"{name} = {getattr(self, name)!r}", "a number of at least 0; infinity removes the constraint",
                    "state the largest gap that is allowed, for example 0.01",
                )  # fmt: skip

    def chosen(self, m: int) -> tuple[int, ...]:
        """Return the constrained classes of m."""
        if self.classes is None:
            return (1,) if self.criterion == "equal_opportunity" and m == 2 else tuple(range(m))
        if not self.classes or not all(0 <= c < m for c in self.classes):
            raise InputError(
                f"classes = {self.classes!r}", f"some of 0 to {m - 1}", "name the classes by their place in order"
            )
        return self.classes

    def local(self, clients: int) -> Array:
        """Return the local tolerances, shape (K,)."""
        given = np.asarray(self.local_tol, dtype=np.float64)
        if given.ndim and len(given) != clients:
            raise InputError(
                f"{len(given)} local tolerances", f"one number, or {clients}: one a client", "give one to each client"
            )
        return np.broadcast_to(given, (clients,)).copy()


@dataclass(frozen=True, eq=False)
class Level:
    """The constraints of one population: everybody, or one client.

    Parameters
    ----------
    matrix : ndarray, shape (Q, U)
        From prices to the table of adjustments; its transpose, applied to minus the gradient, gives ``D`` times the
        level's weight.
    tol : ndarray, shape (U,)
        Tolerances.
    share : float
        Weight of the level: 1, or the client's share of the samples.
    place : tuple of int arrays
        Constraint, stratum, contrast and class of each price.
    masked : tuple of int arrays
        The same of contrasts left out because a group is empty in the stratum.
    """

    matrix: Array
    tol: Array
    share: float
    place: NDArray[np.int64]  # (U, 4)
    masked: NDArray[np.int64]  # (M, 4)


def levels_of(constraints: Sequence[Constraint], mass: Sequence[Array], tol: Sequence[float], share: float) -> Level:
    """Return the constraints of a population from the masses of its groups.

    Parameters
    ----------
    mass : sequence of ndarray, shape (S_c, G_c, m)
        Of all samples, or of one client's (`Site.masses`).
    tol : sequence of float
        Tolerance of each constraint at this level; infinite ones are left out.
    share : float
        Weight of the level's samples.
    """
    blocks, tols, places, masked = [], [], [], []
    width = sum(p.size for p in mass)
    at = 0
    for c, (one, p, limit) in enumerate(zip(constraints, mass, tol, strict=True)):
        g, m = p.shape[1:]
        allowed = np.zeros(m, dtype=bool)
        allowed[list(one.chosen(m))] = True
        there = p > 1e-15
        t = contrasts(one.gap, p, there & allowed)  # (S, R, G, m)
        full = contrasts(one.gap, p, np.broadcast_to(allowed, p.shape))
        live = np.abs(t).sum(2) > 0  # (S, R, m)
        lost = (np.abs(full).sum(2) > 0) & ~live
        if np.isfinite(limit):
            scaled = np.divide(t, (p / share)[:, None], out=np.zeros_like(t), where=there[:, None])
            index = np.argwhere(live)  # (U, 3)
            block = np.zeros((width, len(index)))
            for u, (a, r, j) in enumerate(index):
                block[at + a * g * m + np.arange(g) * m + j, u] = scaled[a, r, :, j]
            blocks.append(block)
            tols.append(np.full(len(index), float(limit)))
            places.append(np.column_stack([np.full(len(index), c), index]))
            lost_at = np.argwhere(lost)
            masked.append(np.column_stack([np.full(len(lost_at), c), lost_at]))
        at += p.size
    empty = np.zeros((0, 4), dtype=np.int64)
    return Level(
        np.concatenate(blocks, axis=1) if blocks else np.zeros((width, 0)),
        np.concatenate(tols) if tols else np.zeros(0),
        share,
        np.concatenate(places) if places else empty,
        np.concatenate(masked) if masked else empty,
    )


@dataclass(frozen=True, eq=False)
class Solution:
    """The optimum.

    Parameters
    ----------
    prices : ndarray, shape (U,)
        ``lam``: dual prices of the global constraints; the loss of accuracy that a unit of tolerance costs.
    local_prices : list of ndarray, shape (U_k,)
        ``nu_k``.
    tables : list of list of ndarray, shape (S_c, G_c, m)
        Adjustments of each client, all that a prediction needs.
    values, local_values : ndarray, list of ndarray
        D of the randomised decision.
    kkt : float
        The largest violation of a constraint, or of ``|D| = tol`` where a price is not zero.
    duality_gap : float
        Dual minus primal value.
    iterations : int
    converged : bool
    beta : float
    levels : list of Level
        Of everybody, then of each client.
    """

    prices: Array
    local_prices: list[Array]
    tables: list[list[Array]]
    values: Array
    local_values: list[Array]
    kkt: float
    duality_gap: float
    iterations: int
    converged: bool
    beta: float
    levels: list[Level] = field(repr=False)
    history: list[dict[str, float]] = field(default_factory=list, repr=False)


def smooth_abs(x: Array, t: Array, mu: float) -> tuple[Array, Array, Array]:
    """Return ``min over s of t s - mu log(s^2 - x^2)`` up to a constant, its slope and its curvature; t > 0.

    With ``r = sqrt(mu^2 / t^2 + x^2)`` and ``s = mu / t + r``: slope ``t x / s``, curvature ``mu / (r s)``.
    """
    m = mu / t
    r = np.sqrt(m * m + x * x)
    s = m + r
    return t * s - mu * np.log(2.0 * m * s), t * x / s, mu / (r * s)


class _Problem:
    """Value, gradient and arrow of curvature of the smoothed dual."""

    def __init__(self, sites: Sequence[Site], levels: Sequence[Level], shapes: Sequence[tuple[int, int, int]]) -> None:
        self.sites, self.levels, self.shapes = sites, levels, shapes
        self.cuts = np.cumsum([a * b * c for a, b, c in shapes])[:-1]

    def tables(self, x: Sequence[Array]) -> list[list[Array]]:
        common = self.levels[0].matrix @ x[0]
        return [self._split(common + level.matrix @ own) for level, own in zip(self.levels[1:], x[1:], strict=True)]

    def _split(self, flat: Array) -> list[Array]:
        return [v.reshape(shape) for v, shape in zip(np.split(flat, self.cuts), self.shapes, strict=True)]

    def penalty(self, x: Sequence[Array], mu: float) -> tuple[float, list[Array], list[Array]]:
        value, slope, bend = 0.0, [], []
        for level, own in zip(self.levels, x, strict=True):
            t = level.share * level.tol
            pays = t > 0
            a, b = np.zeros_like(own), np.zeros_like(own)
            v, a[pays], b[pays] = smooth_abs(own[pays], t[pays], mu * level.share)
            value += float(v.sum())
            slope.append(a)
            bend.append(b)
        return value, slope, bend

    def __call__(self, x: Sequence[Array], beta: float, mu: float, curvature: bool) -> tuple[Any, ...]:
        value, slope, bend = self.penalty(x, mu)
        a = self.levels[0].matrix
        total, minus, second = 0.0, np.zeros(a.shape[0]), []
        local = []
        for site, table, level in zip(self.sites, self.tables(x), self.levels[1:], strict=True):
            v, g, h = site.evaluate(table, beta, curvature)
            total += v
            minus += g
            local.append(level.matrix.T @ g)
            second.append(h)
        gradient = [slope[0] - a.T @ minus, *(s - g for s, g in zip(slope[1:], local, strict=True))]
        return value + total, gradient, second, bend, [a.T @ minus, *local]

    def direction(self, gradient: Sequence[Array], second: Sequence[Array], bend: Sequence[Array]) -> list[Array]:
        """Solve the arrow: eliminate each client, solve for the global prices, go back."""
        a = self.levels[0].matrix
        top = a.T @ sum(second, start=np.zeros((a.shape[0],) * 2)) @ a + np.diag(bend[0])
        right = -gradient[0]
        kept = []
        for h, level, b, g in zip(second, self.levels[1:], bend[1:], gradient[1:], strict=True):
            across = a.T @ h @ level.matrix  # (U, U_k)
            factor = _factor(level.matrix.T @ h @ level.matrix + np.diag(b))
            solved = _back(factor, np.column_stack([across.T, -g]))  # (U_k, U + 1)
            top = top - across @ solved[:, :-1]
            right = right - across @ solved[:, -1]
            kept.append(solved)
        step = _back(_factor(top), right[:, None])[:, 0]
        return [step, *(s[:, -1] - s[:, :-1] @ step for s in kept)]


def _factor(matrix: Array) -> Any:
    """Factor a matrix that may be singular: prices of classes, or of pairs of three groups, depend on each other."""
    size = len(matrix)
    if not size:
        return None
    matrix = 0.5 * (matrix + matrix.T)
    ridge = _RIDGE * max(float(np.diag(matrix).max()), 1e-30)
    for _ in range(12):
        try:
            return cho_factor(matrix + ridge * np.eye(size), check_finite=False)
        except LinAlgError:
            ridge *= 100.0
    raise LinAlgError("curvature of the dual is not positive semi-definite")


def _back(factor: Any, right: Array) -> Array:
    return right if factor is None else np.asarray(cho_solve(factor, right, check_finite=False))


def _size(gradient: Sequence[Array], levels: Sequence[Level]) -> float:
    """Largest entry, each level by its own weight: the violation in the unit of the gap."""
    return max((float(np.abs(g).max()) / level.share for g, level in zip(gradient, levels, strict=True) if len(g)),
               default=0.0)  # fmt: skip


def solve(
    sites: Sequence[Site],
    constraints: Sequence[Constraint],
    beta: float = 0.002,
    *,
    start: Solution | None = None,
    tol: float = 1e-8,
    most: int = 400,
) -> Solution:
    """Solve the program for all clients together.

    Parameters
    ----------
    sites : sequence of Site
        One a client; weights sum to 1 over all.
    constraints : sequence of Constraint
    beta : float
        Temperature of the decision, positive: expected accuracy is within ``beta log m`` of the best.
    start : Solution, optional
        Of the same clients and kinds of constraints with other tolerances: prices to start from.
    tol : float
        Largest violation, in the unit of the gap.
    most : int
        Most Newton steps.

    Returns
    -------
    Solution
        With ``converged`` false where `most` steps did not reach `tol`.

    Raises
    ------
    InputError
        For no clients, and beta, tol or most that are not positive.
    """
    if not sites or not beta > 0 or not tol > 0 or most < 1:
        raise InputError(
            f"{len(sites)} clients, beta = {beta}, tol = {tol}, most = {most}",
            "one client or more, and positive numbers", "correct the one that is not",
        )  # fmt: skip
    m = sites[0].p.shape[1]
    shapes = table_size([c.criterion for c in constraints], [q.shape[1] for q in sites[0].members], m)
    mass = [site.masses() for site in sites]
    share = [float(site.weight.sum()) for site in sites]
    pooled = [sum(own[c] for own in mass) for c in range(len(constraints))]
    levels = [levels_of(constraints, pooled, [c.global_tol for c in constraints], 1.0)]  # type: ignore[arg-type]
    limits = np.array([c.local(len(sites)) for c in constraints]).reshape(len(constraints), len(sites))
    levels += [levels_of(constraints, own, limits[:, k].tolist(), share[k]) for k, own in enumerate(mass)]
    problem = _Problem(sites, levels, shapes)
    x = _start(levels, start)
    fresh = start is None or not any(np.abs(v).any() for v in x)
    b, mu = (max(beta, 0.1), 1e-3) if fresh else (beta * 4.0, 1e-6)
    used, history = 0, []
    while True:
        last = b <= beta and mu <= _MU_LAST
        x, steps, found = _newton(problem, x, b, mu, tol if last else max(tol, min(1e-3, 0.1 * b)), most - used)
        used += steps
        history.append({"beta": b, "mu": mu, "steps": steps, "gradient": found})
        if last or used >= most:
            break
        b, mu = max(beta, b * _STAGES), max(_MU_LAST, mu * (_STAGES if b > beta else 3e-2))
    return _finish(problem, x, beta, tol, used, history)


def _start(levels: Sequence[Level], start: Solution | None) -> list[Array]:
    x = [np.zeros(len(level.tol)) for level in levels]
    if start is None or len(start.levels) != len(levels):
        return x
    for own, level, old, price in zip(
        x, levels, start.levels, [start.prices, *start.local_prices], strict=True
    ):  # prices of the same places; others start at zero
        at = {tuple(place): value for place, value in zip(old.place.tolist(), price, strict=True)}
        own[:] = [at.get(tuple(place), 0.0) for place in level.place.tolist()]
    return x


def _newton(problem: _Problem, x: list[Array], beta: float, mu: float, tol: float, most: int) -> tuple[Any, ...]:
    """Damped Newton steps at one temperature."""
    value, gradient, second, bend, *_ = problem(x, beta, mu, True)
    size = _size(gradient, problem.levels)
    steps = 0
    while size > tol and steps < most:
        step = problem.direction(gradient, second, bend)
        slope = sum(float(g @ s) for g, s in zip(gradient, step, strict=True))
        length = 1.0
        for _ in range(40):
            there = [a + length * s for a, s in zip(x, step, strict=True)]
            found = problem(there, beta, mu, True)
            flat = -slope < 1e-11 * max(1.0, abs(value))  # below rounding: judge by the gradient
            if found[0] <= value + 1e-4 * length * slope or (flat and _size(found[1], problem.levels) < size):
                break
            length *= 0.5
        else:
            break
        x, (value, gradient, second, bend, *_) = there, found
        size = _size(gradient, problem.levels)
        steps += 1
    return x, steps, size


def _finish(
    problem: _Problem, x: list[Array], beta: float, tol: float, used: int, history: list[dict[str, float]]
) -> Solution:
    """Set prices that do not bind to zero, and judge the optimum by the unsmoothed conditions."""
    levels = problem.levels
    found = problem(x, beta, _MU_LAST, False)[4]
    for own, level, d in zip(x, levels, found, strict=True):
        loose = level.tol - np.abs(d) / level.share > 1e-6  # step 4
        own[loose & (np.abs(own) < 1e-5)] = 0.0
    raw = problem(x, beta, _MU_LAST, False)[4]
    d = [r / level.share for r, level in zip(raw, levels, strict=True)]
    kkt, paid = 0.0, 0.0
    for own, level, v in zip(x, levels, d, strict=True):
        excess = np.abs(v) - level.tol
        bad = np.where(own != 0.0, np.abs(excess), np.maximum(excess, 0.0))
        kkt = max(kkt, float(bad.max(initial=0.0)))
        paid += level.share * float((level.tol * np.abs(own) - own * v).sum())
    return Solution(
        x[0], list(x[1:]), problem.tables(x), d[0], list(d[1:]), kkt, paid, used, kkt <= max(100.0 * tol, 1e-6), beta,
        list(levels), history,
    )  # fmt: skip
