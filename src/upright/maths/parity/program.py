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
2. damped Newton steps (`upright.maths.parity.newton`)
3. beta, then mu, fall by stages, each started at the end of the one before
4. prices of constraints that do not bind are set to zero, and the others solved for once more

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
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.maths.parity.constraints import Constraint, Level, levels_of
from upright.maths.parity.newton import Dual, newton, slopes
from upright.maths.parity.site import Site, table_size

__all__ = ["Constraint", "Level", "Solution", "levels_of", "solve"]

Array = NDArray[np.float64]
_BETA_FIRST, _BETA_STAGE = 0.1, 0.25
_MU_FIRST, _MU_STAGE, _MU_LAST = 1e-4, 1e-4, 1e-13
_MU_WARM = 1e-7


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
        Largest ``|D - clip(D + price, -tol, tol)|``: a violation, or the smaller of a price and the room it leaves.
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


def solve(
    sites: Sequence[Site],
    constraints: Sequence[Constraint],
    beta: float = 0.002,
    *,
    start: Solution | None = None,
    seen: Sequence[Sequence[Array]] | None = None,
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
    seen : sequence of sequence of ndarray, shape (S_c, G_c, m), optional
        Masses of each client by which a group is empty, as in `levels_of`.
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
        For no clients, for beta, tol or most that are not positive, and for weights that do not sum to 1.
    """
    if not sites or not beta > 0 or not tol > 0 or most < 1:
        raise InputError(
            f"{len(sites)} clients, beta = {beta}, tol = {tol}, most = {most}",
            "one client or more, and positive numbers", "correct the one that is not",
        )  # fmt: skip
    m = sites[0].p.shape[1]
    shapes = table_size([c.criterion for c in constraints], [q.shape[1] for q in sites[0].members], m)
    share = [float(site.weight.sum()) for site in sites]
    if not abs(sum(share) - 1.0) < 1e-6:
        raise InputError(
            f"weights that sum to {sum(share):.9g}",
            "weights that sum to 1 over all clients",
            "divide them by their sum",
        )
    mass = [site.masses() for site in sites]
    seen = mass if seen is None else seen
    pooled, met = ([np.sum(own, axis=0) for own in zip(*kind, strict=True)] for kind in (mass, seen))
    levels = [levels_of(constraints, pooled, [c.global_tol for c in constraints], 1.0, met)]
    limits = np.array([c.local(len(sites)) for c in constraints]).reshape(len(constraints), len(sites))
    levels += [levels_of(constraints, own, limits[:, k].tolist(), share[k], met)
               for k, (own, met) in enumerate(zip(mass, seen, strict=True))]  # fmt: skip
    dual = Dual(sites, levels, shapes)
    x = _start(levels, start)
    warm = any(np.abs(v).any() for v in x)
    found = _stages(dual, x, beta, tol, most, warm)
    if warm and not found.converged:  # a start too far off for its temperature
        found = _stages(dual, _start(levels, None), beta, tol, most, False)
    return found


def _stages(dual: Dual, x: list[Array], beta: float, tol: float, most: int, warm: bool) -> Solution:
    b, mu = (beta, _MU_WARM) if warm else (max(beta, _BETA_FIRST), _MU_FIRST)
    d = slopes(dual.levels, x)
    used, history = 0, []
    while True:
        last = b <= beta and mu <= _MU_LAST
        near = tol if last else max(tol, min(1e-3, 0.1 * b) if b <= beta else 1e-3)
        x, d, steps, found = newton(dual, x, d, b, mu, near, most - used)
        used += steps
        history.append({"beta": b, "mu": mu, "steps": steps, "gradient": found})
        if last or used >= most:
            break
        b, mu = max(beta, b * _BETA_STAGE), max(_MU_LAST, mu * (_BETA_STAGE if b > beta else _MU_STAGE))
    return _finish(dual, x, d, beta, tol, used, history)


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


def _without(
    dual: Dual, x: list[Array], d: list[Array], keep: list[NDArray[np.bool_]], beta: float, tol: float
) -> tuple[list[Array], list[Array], int]:
    """Solve for the kept prices with the others at zero; return all prices, the sums of all gaps, and the steps."""
    fewer = [replace(level, matrix=level.matrix[:, on], tol=level.tol[on], place=level.place[on])
             for level, on in zip(dual.levels, keep, strict=True)]  # fmt: skip
    own, slope = ([v[on] for v, on in zip(part, keep, strict=True)] for part in (x, d))
    found, _, steps, _ = newton(Dual(dual.sites, fewer, dual.shapes), own, slope, beta, _MU_LAST, tol, 20)
    full = [np.zeros(len(on)) for on in keep]
    for price, on, v in zip(full, keep, found, strict=True):
        price[on] = v
    return full, dual.evaluate(full, beta, _MU_LAST, False)[3], steps


def _finish(
    dual: Dual, x: list[Array], d: list[Array], beta: float, tol: float, used: int, history: list[dict[str, float]]
) -> Solution:
    """Set prices that do not bind to zero, and judge the optimum by the unsmoothed conditions."""
    levels = dual.levels
    gaps = dual.evaluate(x, beta, _MU_LAST, False)[3]
    room = [level.tol * level.share - np.abs(v) for v, level in zip(gaps, levels, strict=True)]
    keep = [(r <= 1e-6 * level.share) | (np.abs(price) >= 1e-5)
            for r, level, price in zip(room, levels, x, strict=True)]  # fmt: skip
    for _ in range(5):  # step 4: at a small beta even a price of 1e-8 moves the others
        if all(on.all() for on in keep):
            break
        found, moved, steps = _without(dual, x, d, keep, beta, tol)
        used += steps
        again = [~on & (np.abs(v) > level.share * (level.tol + 1e-7))
                 for on, v, level in zip(keep, moved, levels, strict=True)]  # fmt: skip
        if not any(back.any() for back in again):
            x, gaps = found, moved
            break
        keep = [on | back for on, back in zip(keep, again, strict=True)]
    values = [v / level.share if len(v) else v for v, level in zip(gaps, levels, strict=True)]
    kkt, paid = 0.0, 0.0
    for price, level, v in zip(x, levels, values, strict=True):
        bad = np.abs(v - np.clip(v + price, -level.tol, level.tol))
        kkt = max(kkt, float(bad.max(initial=0.0)))
        paid += level.share * float((level.tol * np.abs(price) - price * v).sum())
    return Solution(
        x[0], list(x[1:]), dual.tables(x), values[0], list(values[1:]), kkt, paid, used, kkt <= max(100.0 * tol, 1e-6),
        beta, list(levels), history,
    )  # fmt: skip
