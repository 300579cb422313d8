"""Steps of the primal-dual training: dual updates, projections, and the weight of two experts.

Source: Zhang et al., *FedFACT* (2025), arXiv 2506.03777, algorithm 1; Duchi et al., *Efficient Projections onto the
l1-Ball* (2008); Freund and Schapire, *A decision-theoretic generalization of on-line learning* (1997).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["dual_step", "l1_ball", "soft_threshold", "two_experts"]

Array = NDArray[np.float64]
_LEAST = 1e-15


def soft_threshold(x: Array, by: Array | float) -> Array:
    """Return ``argmin_v (v - x)^2 / 2 + by |v| = sign(x) max(|x| - by, 0)``, shape of x."""
    return np.asarray(np.sign(x) * np.maximum(np.abs(x) - by, 0.0))


def l1_ball(x: Array, radius: float) -> Array:
    """Return the point of ``sum |v| <= radius`` that is nearest to x, shape of x.

    Raises
    ------
    InputError
        For a radius that is not positive, and for numbers that are not finite.
    """
    if not radius > 0:
        raise InputError(f"radius = {radius}", "a positive number", "set the bound of the dual prices, for example 5")
    size = np.abs(x).ravel()
    if not np.isfinite(size).all():
        raise InputError("prices that are not finite", "finite prices", "take smaller dual steps")
    if size.sum() <= radius:
        return np.array(x, dtype=np.float64)
    down = np.sort(size)[::-1]
    over = (np.cumsum(down) - radius) / np.arange(1, len(down) + 1)
    inside = np.flatnonzero(down > over)  # the first always is, but for rounding where it dwarfs the radius
    cut = over[inside[-1] if len(inside) else 0]
    return soft_threshold(np.asarray(x, dtype=np.float64), float(cut))


def dual_step(price: Array, gap: Array, tol: Array | float, step: float, radius: float) -> Array:
    """Return the prices after one ascent step: ``l1_ball(soft_threshold(price + step D, step tol))``, shape (U,).

    Signed prices in place of a pair for the two signs of each constraint: of such a pair one is zero.

    Parameters
    ----------
    price : ndarray, shape (U,)
    gap : ndarray, shape (U,)
        D at the present decisions; NaN leaves a price as it is.
    tol : ndarray or float
        Tolerances.
    step : float
        Positive.
    radius : float
        Bound of the sum of the sizes of all prices.
    """
    known = np.isfinite(gap)
    moved = soft_threshold(price + step * np.where(known, gap, 0.0), np.where(known, step * np.asarray(tol), 0.0))
    return l1_ball(moved, radius)


def two_experts(weight: float, first: float, second: float, eta: float) -> float:
    """Return ``w e^(-eta a) / (w e^(-eta a) + (1 - w) e^(-eta b))``: the first expert's weight after losses a and b.

    Guarantee
    ---------
    For losses in [0, B], the sum over T rounds of the mixed loss exceeds that of the better expert by at most
    ``ln 2 / eta + eta T B^2 / 8``, started at 1/2. A weight that rounds to 0 or 1 would never leave it and void this:
    the result lies in [1e-15, 1 - 1e-15], which costs the better expert at most ``1e-15 T / eta`` more. Weights of
    exactly 0 and 1 stay.

    Raises
    ------
    InputError
        For a weight outside [0, 1], and for losses or eta that are not finite.
    """
    if not 0.0 <= weight <= 1.0 or not math.isfinite(eta * (first - second)):
        raise InputError(
            f"weight = {weight}, losses {first} and {second}, eta = {eta}", "a weight in [0, 1] and finite numbers",
            "look for a loss that diverged",
        )  # fmt: skip
    if weight in (0.0, 1.0):
        return weight
    odds = (1.0 - weight) / weight * math.exp(min(max(eta * (first - second), -300.0), 300.0))
    return min(max(1.0 / (1.0 + odds), _LEAST), 1.0 - _LEAST)
