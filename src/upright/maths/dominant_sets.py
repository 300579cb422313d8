"""Constrained dominant sets of one target in a shared pool: exact solver, slow reference, conditions.

Problem
-------
For a target t with affinities ``s`` (n,) to a pool whose own affinity matrix is ``A`` (n, n), symmetric,
non-negative and with zero diagonal, maximise over the simplex

    x' (M - alpha I_C) x ,   M = [[0, s'], [s, A]] ,   I_C = diag(0, 1, ..., 1)

A point with ``x_t > 0`` is stationary when ``s x_t - K y <= c 1`` with equality where ``y > 0``, ``s'y = c``
and ``x_t + 1'y = 1``, with ``K = alpha I - A``.

Why the answer is unique
------------------------
Write ``v = y / x_t`` and ``c`` for ``c / x_t``. For fixed c the conditions are the linear complementarity
problem (K, c 1 - s). With ``alpha > lambda_max(A)`` K is a nonsingular M-matrix, so the problem has exactly one
solution v(c); it falls in every component as c rises. ``h(c) = s'v(c) - c`` is then strictly decreasing and, because
the support shrinks with c, convex: it has one root. Newton's method started at c = 0 climbs to that root from the
left in finitely many steps, and its first step is the closed form on full support:

    u = K^-1 s ,  w = K^-1 1 ,  q = s'u ,  p = s'w ,  r = 1'w :   c = q / (1 + p) ,  v = u - c w

From ``s'v = c`` and ``v'(s - K v - c 1) = 0`` follows ``c (1 - 1'v) = v'Kv >= 0``: the target holds at least half
of the mass.

References
----------
Zemene and Pelillo, *Interactive image segmentation using constrained dominant sets*, ECCV 2016, for the quadratic
program and the condition on alpha; Hintermueller, Ito and Kunisch, SIAM J. Optim. 13 (2002), for primal-dual active
sets on M-matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse

from upright.contract import InputError

__all__ = [
    "PoolFactor",
    "Solution",
    "kkt_residual",
    "largest_eigenvalue",
    "replicator",
    "row_sum_bound",
    "solve_candidates",
    "solve_pool",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """Weights of the pool for each target.

    Parameters
    ----------
    target_mass : array, shape (T,)
        x_t, at least 1/2; exactly 1 for a target without affinity to the pool.
    weights : array, shape (T, n)
        y, the mass of each pool member; ``target_mass + weights.sum(1) == 1``.
    payoff : array, shape (T,)
        The common payoff c of the support.
    rounds : int
        Largest number of active-set rounds that a target needed.
    """

    target_mass: Array
    weights: Array
    payoff: Array
    rounds: int


def largest_eigenvalue(pool: Array) -> float:
    """Return lambda_max of a symmetric non-negative matrix, 0 for an empty one."""
    if pool.shape[0] == 0:
        return 0.0
    return float(linalg.eigvalsh(pool, subset_by_index=(pool.shape[0] - 1, pool.shape[0] - 1))[0])


def row_sum_bound(pool: Array) -> float:
    """Return max_i sum_j A_ij >= lambda_max(A): a bound that needs no eigenvalue (Gershgorin)."""
    return float(pool.sum(1).max(initial=0.0))


class PoolFactor:
    """``K = alpha I - A``, factorised once and used for every target.

    Parameters
    ----------
    pool : array, shape (n, n)
        Symmetric, non-negative, zero diagonal.
    alpha : float
        Above lambda_max(pool).

    Raises
    ------
    InputError
        When the pool is not such a matrix, or alpha does not exceed its largest eigenvalue: the dominant set would
        then not be bound to hold its target.
    """

    def __init__(self, pool: Array, alpha: float) -> None:
        pool = np.asarray(pool, dtype=np.float64)
        _check_pool(pool)
        self.pool, self.alpha, self.size = pool, float(alpha), pool.shape[0]
        self.matrix = alpha * np.eye(self.size) - pool
        try:
            # a Cholesky factor exists exactly when alpha > lambda_max; the threshold also refuses a singular K
            factor = linalg.cho_factor(self.matrix)
            healthy = self.size == 0 or float(np.diag(factor[0]).min()) ** 2 > 1e-12 * max(abs(alpha), 1e-300)
        except linalg.LinAlgError:
            healthy = False
        if not healthy:
            raise InputError(
                f"alpha = {alpha:g} with largest eigenvalue {largest_eigenvalue(pool):g} of the pool",
                "alpha strictly above the largest eigenvalue, so that every dominant set holds its target",
                "raise alpha, or take alpha='auto' (the row-sum bound)",
            )
        self.inverse: Array = linalg.cho_solve(factor, np.eye(self.size))
        self.factor = factor
        self.ones: Array = self.inverse.sum(1)  # w = K^-1 1, shape (n,)


def _check_pool(pool: Array) -> None:
    ok = (
        pool.ndim == 2
        and pool.shape[0] == pool.shape[1]
        and np.isfinite(pool).all()
        and (pool >= 0).all()
        and not pool.diagonal().any()
        and np.allclose(pool, pool.T, rtol=1e-12, atol=0)
    )
    if not ok:
        raise InputError(
            f"a pool affinity of shape {pool.shape} that is not symmetric, finite, non-negative with zero diagonal",
            "a symmetric (n, n) array of finite values >= 0 with zeros on the diagonal",
            "symmetrise it, clip negative similarities at 0 and zero the diagonal",
        )


def _check_targets(affinity: Array, size: int) -> None:
    if affinity.ndim != 2 or affinity.shape[1] != size or not np.isfinite(affinity).all() or (affinity < 0).any():
        raise InputError(
            f"target affinities of shape {affinity.shape} with non-finite or negative values, or of another pool size",
            f"a finite, non-negative array of shape (targets, {size})",
            "compute the affinities against the same pool and clip negative similarities at 0",
        )


def solve_pool(factor: PoolFactor, affinity: Array, *, tol: float = 1e-12, max_rounds: int = 10_000) -> Solution:
    """Solve for every target against one shared, factorised pool.

    Parameters
    ----------
    factor : PoolFactor
        The pool.
    affinity : array, shape (T, n)
        s of each target, non-negative.
    tol : float
        Violation of the conditions, relative to the largest affinity of a target, that counts as zero.
    max_rounds : int
        Active-set rounds before giving up; the method is finite, so reaching it is an error.

    Returns
    -------
    Solution

    Raises
    ------
    InputError
        For affinities that are negative, not finite or of another pool size.
    RuntimeError
        When a target did not converge (not expected: the iteration is finite).

    Guarantee
    ---------
    The unique stationary point with the target in its support; ``target_mass >= 1/2``.
    """
    affinity = np.asarray(affinity, dtype=np.float64)
    _check_targets(affinity, factor.size)
    count = affinity.shape[0]
    scale = affinity.max(1, initial=0.0)  # (T,)
    u = linalg.cho_solve(factor.factor, affinity.T).T if factor.size else affinity  # (T, n), one solve for all
    p = affinity @ factor.ones  # (T,)
    c = np.einsum("tn,tn->t", affinity, u) / (1.0 + p)  # (T,)
    v = u - c[:, None] * factor.ones  # (T, n)
    rounds = 1
    for t in np.flatnonzero((v < -tol * np.maximum(scale, 1e-300)[:, None] / factor.alpha).any(1)):
        v[t], c[t], used = _active_set(factor, affinity[t], u[t], c[t], v[t] > 0, tol * scale[t], max_rounds)
        rounds = max(rounds, used)
    v = np.maximum(v, 0.0)
    v[scale == 0] = 0.0
    mass = 1.0 / (1.0 + v.sum(1))  # (T,)
    assert mass.shape == (count,)
    return Solution(mass, v * mass[:, None], c * mass, rounds)


def _active_set(
    factor: PoolFactor, s: Array, u: Array, c: float, support: NDArray[np.bool_], tol: float, max_rounds: int
) -> tuple[Array, float, int]:
    """Exchange drops and re-admissions until the conditions hold; returns v, c and the rounds used.

    With D the dropped indices, ``K^-1 (s - c 1 + E_D m)`` vanishes on D for ``m = -inv(Kinv_DD) (...)_D``, so a round
    costs |D|^3 / 3 and never touches the factor.
    """
    inverse, ones = factor.inverse, factor.ones
    best, patience = np.inf, 10
    fixed: float | None = None  # c held while the inner, monotone problem settles
    for used in range(2, max_rounds):
        dropped = np.flatnonzero(~support)
        block = linalg.cho_factor(inverse[np.ix_(dropped, dropped)])
        us = u - inverse[:, dropped] @ linalg.cho_solve(block, u[dropped])  # K_FF^-1 s on F, 0 on D
        ws = ones - inverse[:, dropped] @ linalg.cho_solve(block, ones[dropped])
        if fixed is None:
            c = float(s @ us) / (1.0 + float(s @ ws))
        v = us - c * ws
        v[dropped] = 0.0
        excess = s - factor.matrix @ v - c  # payoff above the common one, 0 on F
        admit = ~support & (excess > tol)
        drop = support & (v < 0) & (v * factor.alpha < -tol)
        wrong = int(admit.sum() + drop.sum())
        if wrong == 0:
            if fixed is None:
                return v, c, used
            fixed = None  # inner problem solved at this c: take the next Newton step
            continue
        if fixed is None:
            # plain exchange while it makes progress, the nested iteration (provably finite) once it does not
            patience = 10 if wrong < best else patience - 1
            best = min(best, wrong)
            if patience <= 0:
                c = fixed = 0.0
                support = np.ones_like(support)
                support[s == 0] &= u[s == 0] > 0
                patience = max_rounds
                continue
        support = (support & ~drop) | admit
    raise RuntimeError(f"the active set did not settle in {max_rounds} rounds; please report the pool that does this")


def solve_candidates(
    affinity: Array | torch.Tensor,
    candidates: NDArray[np.int64] | torch.Tensor,
    pool: sparse.csr_array,
    *,
    alpha_factor: float = 1.05,
    chunk: int = 2_048,
    tol: float = 1e-11,
    progress: object = None,
) -> tuple[Array, Array]:
    """Solve each target within its own candidate list, never forming the pool's matrix.

    Parameters
    ----------
    affinity : array, shape (T, m)
        Affinity of each target to its candidates; 0 pads short lists.
    candidates : int array, shape (T, m)
        Pool indices, distinct within a row; -1 pads.
    pool : scipy.sparse CSR, shape (P, P)
        Symmetric, non-negative pool similarity with zero diagonal.
    alpha_factor : float
        alpha of a target = factor x the largest row sum of its own candidate block; at least 1 + 1e-9.
    chunk : int
        Targets solved at once; memory grows with ``chunk * (m * m + m * nnz per pool row)``.
    tol : float
        As in `solve_pool`.
    progress : callable, optional
        Called with the number of targets done after each chunk.

    Returns
    -------
    target_mass : array, shape (T,)
    weights : array, shape (T, m)

    Raises
    ------
    InputError
        When shapes disagree or ``alpha_factor`` is not above 1.
    """
    cand = np.ascontiguousarray(candidates, dtype=np.int64)
    s_all = np.ascontiguousarray(affinity, dtype=np.float64)
    if cand.shape != s_all.shape or cand.ndim != 2 or cand.max(initial=-1) >= pool.shape[0]:
        raise InputError(
            f"candidates of shape {cand.shape}, affinities of shape {s_all.shape}, a pool of {pool.shape[0]}",
            "two arrays of one shape (targets, m) with pool indices below the pool's size, -1 as padding",
            "build both from the same candidate search",
        )
    if not alpha_factor > 1.0:
        raise InputError(f"alpha_factor = {alpha_factor!r}", "a number above 1", "take the default 1.05")
    count, m = cand.shape
    mass, weights = np.ones(count), np.zeros((count, m))
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        block = torch.from_numpy(_candidate_blocks(cand[rows], pool))  # (b, m, m)
        s = torch.from_numpy(np.where(cand[rows] >= 0, s_all[rows], 0.0))  # (b, m)
        x, y = _solve_blocks(block, s, alpha_factor, tol)
        mass[rows], weights[rows] = x.numpy(), y.numpy()
        if callable(progress):
            progress(rows.stop - rows.start)
    return mass, weights


def _candidate_blocks(cand: NDArray[np.int64], pool: sparse.csr_array) -> Array:
    """Return the dense pool similarity inside each candidate list, shape (b, m, m)."""
    b, m = cand.shape
    blocks = np.zeros((b, m, m))
    where = np.full(pool.shape[0] + 1, -1, dtype=np.int16)  # position of a pool member in the current list
    indptr, indices, data = pool.indptr, pool.indices, pool.data
    for i in range(b):
        own = cand[i]
        where[own] = np.arange(m)
        where[-1] = -1  # padding points at the extra slot
        lo, length = indptr[own], indptr[own + 1] - indptr[own]
        length = np.where(own >= 0, length, 0)
        ends = np.cumsum(length)
        flat = np.arange(ends[-1]) + np.repeat(lo - ends + length, length)  # entries of all rows in one run
        column = where[indices[flat]]
        hit = column >= 0
        blocks[i, np.repeat(np.arange(m), length)[hit], column[hit]] = data[flat[hit]]
        where[own] = -1
    return blocks


def _solve_blocks(block: torch.Tensor, s: torch.Tensor, factor: float, tol: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Batched exact solve: masked Cholesky systems, exchange of drops and re-admissions, only the unsettled again."""
    b, m, _ = block.shape
    alpha = factor * block.sum(2).amax(1).clamp(min=1e-300)  # (b,)
    alpha = torch.where(block.sum((1, 2)) > 0, alpha, s.amax(1).clamp(min=1.0))
    eye = torch.eye(m, dtype=block.dtype)
    matrix = alpha[:, None, None] * eye - block  # (b, m, m)
    support = torch.ones_like(s, dtype=torch.bool)
    v = torch.zeros_like(s)
    scale = s.amax(1)
    todo = torch.nonzero(scale > 0).squeeze(1)
    fallback: list[int] = []
    for attempt in range(60):
        if todo.numel() == 0:
            break
        on = support[todo].to(block.dtype)  # (a, m)
        masked = matrix[todo] * on[:, :, None] * on[:, None, :] + torch.diag_embed(1.0 - on)
        rhs = torch.stack([s[todo] * on, on], 2)  # (a, m, 2)
        both = torch.cholesky_solve(rhs, torch.linalg.cholesky(masked))
        u, w = both[..., 0], both[..., 1]
        c = (s[todo] * u).sum(1) / (1.0 + (s[todo] * w).sum(1))  # (a,)
        part = (u - c[:, None] * w) * on
        excess = s[todo] - torch.bmm(matrix[todo], part[:, :, None]).squeeze(2) - c[:, None]
        limit = tol * scale[todo][:, None]
        admit = ~support[todo] & (excess > limit)
        drop = support[todo] & (part * alpha[todo][:, None] < -limit)
        v[todo] = part
        support[todo] = (support[todo] & ~drop) | admit
        todo = todo[(admit | drop).any(1)]
        if attempt == 59:
            fallback = todo.tolist()
    for i in fallback:
        one = solve_pool(PoolFactor(block[i].numpy(), float(alpha[i])), s[i : i + 1].numpy(), tol=tol)
        v[i] = torch.from_numpy(one.weights[0] / one.target_mass[0])
    v = v.clamp(min=0.0)
    mass = 1.0 / (1.0 + v.sum(1))
    return mass, v * mass[:, None]


def replicator(
    pool: Array, s: Array, alpha: float, *, tol: float = 1e-13, max_iter: int = 200_000, start: Array | None = None
) -> tuple[float, Array, int]:
    """Run discrete replicator dynamics on the whole graph: the slow reference.

    ``x_i <- x_i (B x)_i / (x' B x)`` with ``B = M - alpha I_C + alpha 1 1'``; the constant keeps payoffs
    non-negative and changes neither the order of payoffs nor the maximiser.

    Parameters
    ----------
    pool, s, alpha
        As in `PoolFactor` and `solve_pool`, for one target: ``s`` has shape (n,).
    tol : float
        Stop when the L1 change of a step falls below it.
    start : array, shape (n + 1,), optional
        Starting point, target first; the barycenter by default.

    Returns
    -------
    target_mass : float
    weights : array, shape (n,)
    iterations : int
    """
    n = len(s)
    matrix = np.zeros((n + 1, n + 1))
    matrix[0, 1:] = matrix[1:, 0] = s
    matrix[1:, 1:] = pool - alpha * np.eye(n)
    matrix += alpha
    x = np.full(n + 1, 1.0 / (n + 1)) if start is None else np.asarray(start, dtype=np.float64)
    for iteration in range(1, max_iter + 1):
        payoff = matrix @ x
        new = x * payoff
        new /= new.sum()
        change = np.abs(new - x).sum()
        x = new
        if change < tol:
            break
    return float(x[0]), x[1:], iteration


def kkt_residual(pool: Array, alpha: float, affinity: Array, solution: Solution) -> Array:
    """Return the largest violation of the stationarity conditions per target, shape (T,), in units of affinity."""
    matrix = alpha * np.eye(pool.shape[0]) - pool
    payoff = affinity * solution.target_mass[:, None] - solution.weights @ matrix  # (T, n)
    over = payoff - solution.payoff[:, None]
    on = solution.weights > 0
    worst = np.maximum(np.where(on, np.abs(over), np.maximum(over, 0.0)).max(1, initial=0.0), 0.0)
    target = np.abs((affinity * solution.weights).sum(1) - solution.payoff)
    simplex = np.abs(solution.target_mass + solution.weights.sum(1) - 1.0)
    return np.asarray(np.maximum(np.maximum(worst, target), simplex), dtype=np.float64)
