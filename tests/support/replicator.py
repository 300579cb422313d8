"""Replicator dynamics: the slow reference of the constrained dominant set solver."""

from __future__ import annotations

import numpy as np


def replicator(pool, s, alpha, *, tol=1e-13, max_iter=200_000, start=None):
    """Return target mass and weights (n,) for one target, by ``x_i <- x_i (B x)_i / (x' B x)``.

    ``B = M - alpha I_C + alpha 1 1'``; the constant keeps payoffs non-negative and changes neither their order nor the
    maximiser. Starts at `start` (n + 1,), target first, or the barycenter; ends when a step changes x by less than tol.
    """
    n = len(s)
    matrix = np.zeros((n + 1, n + 1))
    matrix[0, 1:] = matrix[1:, 0] = s
    matrix[1:, 1:] = pool - alpha * np.eye(n)
    matrix += alpha
    x = np.full(n + 1, 1.0 / (n + 1)) if start is None else start
    for _ in range(max_iter):
        new = x * (matrix @ x)
        new /= new.sum()
        x, change = new, np.abs(new - x).sum()
        if change < tol:
            break
    return float(x[0]), x[1:]
