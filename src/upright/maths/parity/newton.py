"""Minimise the smoothed dual of the convex program: Newton steps on curvature that has the shape of an arrow.

    minimise over x     f(x) + sum_u min over s > |x_u| of  t_u s - mu log(s^2 - x_u^2)

x holds the global prices and those of each client, f is the sum of `upright.maths.parity.site.Site.evaluate`, and
``t_u`` is the tolerance times the weight of its level.

Algorithm
---------
1. the slope d of the smoothed ``t |x|`` is a variable beside x: both are linearised together, so that prices which do
   not bind reach zero in one step whatever mu is; d follows x (Chan, Golub and Mulet, 1999)
2. clients are eliminated one by one, then the global prices solved for
3. the length of the step minimises the quadratic of f plus the exact penalty along it, and is halved until the
   objective falls
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from upright.maths.parity.constraints import Level
from upright.maths.parity.site import Site

__all__ = ["Dual", "factored", "newton", "slopes", "smooth_abs", "solved"]

Array = NDArray[np.float64]
_RIDGE = 1e-12
_FLAT = 1e-12  # a gap that a unit of price moves less than this is taken not to move: prices stay put on rounding
_LARGEST_MOVE = 1e8  # of an entry of a table in one step: keeps scores finite where there is no curvature


def smooth_abs(x: Array, t: Array, mu: float | Array) -> tuple[Array, Array, Array]:
    """Return ``min over s of t s - mu log(s^2 - x^2)`` up to a constant, its slope and its curvature; t > 0.

    With ``r = sqrt(mu^2 / t^2 + x^2)`` and ``s = mu / t + r``: slope ``t x / s``, curvature ``mu / (r s)``.
    """
    m = mu / t
    r = np.sqrt(m * m + x * x)
    s = m + r
    return t * s - mu * np.log(2.0 * m * s), t * x / s, mu / (r * s)


class Dual:
    """Value, gradient and arrow of curvature of the smoothed dual."""

    def __init__(self, sites: Sequence[Site], levels: Sequence[Level], shapes: Sequence[tuple[int, int, int]]) -> None:
        self.sites, self.levels, self.shapes = sites, levels, shapes
        self.cuts = np.cumsum([a * b * c for a, b, c in shapes])[:-1]
        self.ends = np.cumsum([len(level.tol) for level in levels])[:-1]
        share = np.concatenate([np.full(len(level.tol), level.share) for level in levels])
        self.t = share * np.concatenate([level.tol for level in levels])
        self.pays = self.t > 0
        self.share = share[self.pays]

    def tables(self, x: Sequence[Array]) -> list[list[Array]]:
        """Return the adjustments of each client."""
        return [self._split(flat) for flat in self.flat(x)]

    def flat(self, x: Sequence[Array]) -> list[Array]:
        """Return the adjustments of each client, shape (Q,)."""
        common = self.levels[0].matrix @ x[0]
        return [common + level.matrix @ own for level, own in zip(self.levels[1:], x[1:], strict=True)]

    def _split(self, flat: Array) -> list[Array]:
        return [v.reshape(shape) for v, shape in zip(np.split(flat, self.cuts), self.shapes, strict=True)]

    def penalty(self, x: Sequence[Array], mu: float) -> tuple[float, list[Array]]:
        """Return the smoothed ``sum_u t_u |x_u|`` and its slope."""
        slope = np.zeros(len(self.t))
        v, slope[self.pays], _ = smooth_abs(np.concatenate(x)[self.pays], self.t[self.pays], mu * self.share)
        return float(v.sum()), np.split(slope, self.ends)

    def bend(self, x: Sequence[Array], d: Sequence[Array], mu: float) -> list[Array]:
        """Return ``(t - d x / r) / s``, the curvature of the penalty once d s(x) = t x is linearised in both."""
        out, t = np.zeros(len(self.t)), self.t[self.pays]
        own, m = np.concatenate(x)[self.pays], mu * self.share / t
        r = np.sqrt(m * m + own * own)
        out[self.pays] = (t - np.concatenate(d)[self.pays] * own / r) / (m + r)
        return np.split(out, self.ends)

    def evaluate(self, x: Sequence[Array], beta: float, mu: float, curvature: bool) -> tuple[Any, ...]:
        """Return the value, the gradient, each client's (Q, Q) curvature, and D times each level's weight."""
        total, slope = self.penalty(x, mu)
        a = self.levels[0].matrix
        minus, second, local = np.zeros(a.shape[0]), [], []
        for site, table, level in zip(self.sites, self.tables(x), self.levels[1:], strict=True):
            v, g, h = site.evaluate(table, beta, curvature)
            total += v
            minus += g
            local.append(level.matrix.T @ g)
            second.append(h)
        gaps = [a.T @ minus, *local]
        return total, [s - g for s, g in zip(slope, gaps, strict=True)], second, gaps

    def direction(self, gradient: Sequence[Array], second: Sequence[Array], bend: Sequence[Array]) -> list[Array]:
        """Solve the arrow: eliminate each client, solve for the global prices, go back."""
        a = self.levels[0].matrix
        top = a.T @ sum(second, start=np.zeros((a.shape[0],) * 2)) @ a + np.diag(bend[0])
        right = -gradient[0]
        kept = []
        for h, level, b, g in zip(second, self.levels[1:], bend[1:], gradient[1:], strict=True):
            across = a.T @ h @ level.matrix  # (U, U_k)
            factor = factored(level.matrix.T @ h @ level.matrix + np.diag(b))
            back = solved(factor, np.column_stack([across.T, -g]))  # (U_k, U + 1)
            top = top - across @ back[:, :-1]
            right = right - across @ back[:, -1]
            kept.append(back)
        step = solved(factored(top), right[:, None])[:, 0]
        return [step, *(s[:, -1] - s[:, :-1] @ step for s in kept)]

    def length(self, x: Sequence[Array], step: Sequence[Array], gaps: Sequence[Array], second: Sequence[Array],
               mu: float) -> float:  # fmt: skip
        """Return where in (0, 1] the quadratic of f plus the exact penalty is least: costs no pass over the data."""
        flat = self.flat(step)
        curve = sum(float(v @ h @ v) for v, h in zip(flat, second, strict=True))
        slope = -sum(float(d @ s) for d, s in zip(gaps, step, strict=True))
        t, own, by = self.t[self.pays], np.concatenate(x)[self.pays], np.concatenate(step)[self.pays]
        limit = min(1.0, _LARGEST_MOVE / max([float(np.abs(v).max(initial=0.0)) for v in flat] + [1e-300]))

        def rising(u: float) -> bool:
            return slope + u * curve + float(smooth_abs(own + u * by, t, mu * self.share)[1] @ by) > 0

        if not rising(limit):
            return limit
        low, high = 0.0, limit
        for _ in range(12):
            mid = 0.5 * (low + high)
            low, high = (low, mid) if rising(mid) else (mid, high)
        return low or high

    def size(self, parts: Sequence[Array]) -> float:
        """Return the largest entry, each level's by its own weight: the violation in the unit of the gap."""
        return max(
            (float(np.abs(g).max()) / level.share for g, level in zip(parts, self.levels, strict=True) if len(g)),
            default=0.0,
        )


def factored(matrix: Array) -> Any:
    """Factor a matrix that may be singular: prices of classes, or of pairs of three groups, depend on each other.

    The ridge is relative to each diagonal entry. Those of prices that do not bind are ``t^2 / (2 mu)``, up to 1e15
    times the others: a ridge relative to the largest would stop the others from moving.
    """
    size = len(matrix)
    if not size:
        return None
    diagonal = np.diag(matrix) + _FLAT
    scale = 1.0 / np.sqrt(np.maximum(diagonal, 1e-18 * float(diagonal.max())))
    matrix = (0.5 * (matrix + matrix.T) + _FLAT * np.eye(size)) * scale[:, None] * scale
    ridge = _RIDGE
    for _ in range(20):
        try:
            return cho_factor(matrix + ridge * np.eye(size), check_finite=False), scale
        except LinAlgError:
            ridge *= 100.0
    raise LinAlgError("curvature of the dual is not positive semi-definite")


def solved(factor: Any, right: Array) -> Array:
    """Solve with what `factored` returned, shape of right (U, R)."""
    if factor is None:
        return right
    lower, scale = factor
    return np.asarray(scale[:, None] * cho_solve(lower, scale[:, None] * right, check_finite=False))


def slopes(levels: Sequence[Level], x: Sequence[Array]) -> list[Array]:
    """Return slopes to start from: near the tolerance where there is a price, 0 where not."""
    return [0.9 * level.share * level.tol * np.sign(own) for level, own in zip(levels, x, strict=True)]


def newton(
    dual: Dual, x: list[Array], d: list[Array], beta: float, mu: float, tol: float, most: int
) -> tuple[list[Array], list[Array], int, float]:
    """Minimise at one temperature; return x, d, the number of steps and the size of the gradient.

    Parameters
    ----------
    x, d : list of ndarray
        Prices and slopes of each level, ``|d| <= t``.
    tol : float
        Of `Dual.size` of the gradient.
    most : int
        Most steps.
    """
    value, gradient, second, gaps = dual.evaluate(x, beta, mu, True)
    size, steps = dual.size(gradient), 0
    while size > tol and steps < most:
        bend = dual.bend(x, d, mu)
        step = dual.direction(gradient, second, bend)
        fall = sum(float(g @ s) for g, s in zip(gradient, step, strict=True))
        flat = -fall < 1e-11 * max(1.0, abs(value))  # below rounding: judge by the gradient
        length = dual.length(x, step, gaps, second, mu)
        for trial in range(60):
            there = [a + length * s for a, s in zip(x, step, strict=True)]
            found = dual.evaluate(there, beta, mu, trial == 0)
            if found[0] <= value + 1e-4 * length * fall or (flat and dual.size(found[1]) < size):
                break
            length *= 0.5
        else:
            break
        if trial:  # curvature is paid for where the search ends
            found = dual.evaluate(there, beta, mu, True)
        d = [np.clip(g + own + b * s, -level.share * level.tol, level.share * level.tol)
             for g, own, b, s, level in zip(gradient, gaps, bend, step, dual.levels, strict=True)]  # fmt: skip
        x, (value, gradient, second, gaps) = there, found
        size = dual.size(gradient)
        steps += 1
    return x, d, steps, size
