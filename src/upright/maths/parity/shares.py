"""A client's half of the program: the best local prices for given global adjustments.

    F_k(V) = min over nu  f_k( V + B_k nu ) + p_k sum_u tol_ku |nu_u|

By the envelope theorem ``-dF_k / dV`` are the sums of `upright.maths.parity.site` at the minimiser: one array of the
size of the table, whatever the number of samples. That is all a client has to send.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from upright.maths.parity.constraints import Level
from upright.maths.parity.newton import factored, smooth_abs, solved
from upright.maths.parity.site import Site

__all__ = ["best_local_prices"]

Array = NDArray[np.float64]


def best_local_prices(
    site: Site, level: Level, common: Array, shapes: Sequence[tuple[int, int, int]], nu: Array, beta: float, mu: float,
    *, tol: float = 1e-10, most: int = 60,
) -> tuple[Array, float, Array]:  # fmt: skip
    """Minimise over the local prices by damped Newton steps.

    Parameters
    ----------
    site : Site
    level : Level
        The client's own constraints.
    common : ndarray, shape (Q,)
        Adjustments that the global prices make.
    shapes : sequence of (S_c, G_c, m)
    nu : ndarray, shape (U_k,)
        Prices to start from.
    beta, mu : float
        Temperature, and smoothing of ``|nu|``.
    tol : float
        Largest gradient, in the unit of the gap.

    Returns
    -------
    nu : ndarray, shape (U_k,)
    value : float
        F_k.
    sums : ndarray, shape (Q,)
        Minus its gradient in the common adjustments.
    """
    cuts = np.cumsum([a * b * c for a, b, c in shapes])[:-1]
    t = level.share * level.tol
    pays = t > 0

    def at(x: Array) -> tuple[float, Array, Array, Array]:
        flat = common + level.matrix @ x
        table = [v.reshape(shape) for v, shape in zip(np.split(flat, cuts), shapes, strict=True)]
        value, sums, second = site.evaluate(table, beta)
        slope, bend = np.zeros_like(x), np.zeros_like(x)
        paid, slope[pays], bend[pays] = smooth_abs(x[pays], t[pays], mu * level.share)
        h = level.matrix.T @ second @ level.matrix + np.diag(bend)
        return value + float(paid.sum()), slope - level.matrix.T @ sums, h, sums

    x = nu.copy()
    value, gradient, h, sums = at(x)
    for _ in range(most if level.share > 0 else 0):
        size = float(np.abs(gradient).max(initial=0.0)) / level.share
        if size <= tol:
            break
        step = solved(factored(h), -gradient[:, None])[:, 0]
        slope, length = float(gradient @ step), 1.0
        for _ in range(40):
            found = at(x + length * step)
            flat = -slope < 1e-11 * max(1.0, abs(value))
            smaller = float(np.abs(found[1]).max()) / level.share < size
            if found[0] <= value + 1e-4 * length * slope or (flat and smaller):
                break
            length *= 0.5
        else:
            break
        x = x + length * step
        value, gradient, h, sums = found
    return x, value, sums
