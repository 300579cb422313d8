"""Constrained dominant sets of one target in a shared pool: exact solver and conditions.

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
of the mass. A maximiser of the program must hold the target, so the point found is the global one: without it the
value ``-y'Ky`` is negative, and the target alone has value 0.

References
----------
Zemene and Pelillo, *Interactive image segmentation using constrained dominant sets*, ECCV 2016, for the quadratic
program and the condition on alpha; Hintermueller, Ito and Kunisch, SIAM J. Optim. 13 (2002), for primal-dual active
sets on M-matrices.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, sparse

from upright.contract import InputError

__all__ = [
    "PoolFactor",
    "Solution",
    "kkt_residual",
    "largest_eigenvalue",
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
    return Solution(mass, v * mass[:, None], c * mass, rounds)


def _active_set(
    factor: PoolFactor,
    s: Array,
    u: Array,
    c: float,
    support: NDArray[np.bool_],
    tol: float,
    max_rounds: int,
    patience: int = 10,
) -> tuple[Array, float, int]:
    """Exchange drops and re-admissions until the conditions hold; returns v, c and the rounds used.

    With D the dropped indices, ``K^-1 (s - c 1 + E_D m)`` vanishes on D for ``m = -inv(Kinv_DD) (...)_D``, so a round
    costs |D|^3 / 3 and never touches the factor.

    Plain rounds move c and the support together: fast, but without a proof that they end. After ``patience`` rounds
    without fewer violations the iteration starts again from c = 0, where the support is that of u, and holds c until
    its own complementarity problem is solved before each Newton step. Both levels are finite: exchange at a fixed c
    is a primal-dual active set on an M-matrix, whose iterates rise from the second on, and Newton's c climbs while
    the support shrinks.
    """
    inverse, ones = factor.inverse, factor.ones
    nested = held = False
    fewest, left = np.inf, patience
    for used in range(2, max_rounds):
        us, ws = u, ones  # K_FF^-1 s and K_FF^-1 1 on the support F, 0 on D
        dropped = np.flatnonzero(~support)
        if dropped.size:
            block = linalg.cho_factor(inverse[np.ix_(dropped, dropped)])
            us = u - inverse[:, dropped] @ linalg.cho_solve(block, u[dropped])
            ws = ones - inverse[:, dropped] @ linalg.cho_solve(block, ones[dropped])
        if not held:
            c = float(s @ us) / (1.0 + float(s @ ws))
        v = np.where(support, us - c * ws, 0.0)
        excess = s - factor.matrix @ v - c  # payoff above the common one, 0 on F
        admit = ~support & (excess > tol)
        drop = support & (v * factor.alpha < -tol)
        wrong = int(admit.sum() + drop.sum())
        if wrong == 0 and not held:
            return v, c, used
        if wrong == 0:
            held = False  # solved at this c: Newton's step follows, from the same support
            continue
        support = (support & ~drop) | admit
        left = patience if wrong < fewest else left - 1
        fewest = min(fewest, wrong)
        if nested:
            held = True
        elif left <= 0:
            nested, held, c, support = True, True, 0.0, u > 0
    raise RuntimeError(f"the active set did not settle in {max_rounds} rounds; please report the pool that does this")


def solve_candidates(
    affinity: ArrayLike,
    candidates: ArrayLike,
    pool: sparse.csr_array,
    *,
    alpha_factor: float = 1.05,
    chunk: int = 128,
    tol: float = 1e-11,
    workers: int = 1,
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
        alpha of a target = factor x the largest row sum of its own candidate block; above 1.
    chunk : int
        Targets solved at once. A worker's memory grows with ``chunk * (P + m * m + m * stored entries a pool row)``;
        what fits the processor's cache is fastest.
    tol : float
        As in `solve_pool`.
    workers : int
        Threads; NumPy lets go of the interpreter during the work.

    Returns
    -------
    target_mass : array, shape (T,)
    weights : array, shape (T, m)

    Raises
    ------
    InputError
        When shapes disagree, a number is negative or not finite, a list repeats a member, or ``alpha_factor`` is not
        above 1.
    """
    cand = np.ascontiguousarray(candidates, dtype=np.int64)
    s_all = np.ascontiguousarray(affinity, dtype=np.float64)
    if cand.shape != s_all.shape or cand.ndim != 2 or cand.max(initial=-1) >= pool.shape[0] or cand.min(initial=0) < -1:
        raise InputError(
            f"candidates of shape {cand.shape}, affinities of shape {s_all.shape}, a pool of {pool.shape[0]}",
            "two arrays of one shape (targets, m) with pool indices below the pool's size, -1 as padding",
            "build both from the same candidate search",
        )
    _check_targets(s_all, s_all.shape[1])
    if not 1.0 < alpha_factor < np.inf or workers < 1 or chunk < 1:
        raise InputError(
            f"alpha_factor = {alpha_factor!r}, workers = {workers!r}, chunk = {chunk!r}",
            "a finite alpha_factor above 1, at least one worker, at least one target in a chunk",
            "take the defaults 1.05, 1 and 128",
        )
    count, m = cand.shape
    mass, weights = np.ones(count), np.zeros((count, m))

    def work(first: int) -> None:
        blocks = _CandidateBlocks(pool, chunk, m)
        for start in range(first * chunk, count, workers * chunk):
            rows = slice(start, min(start + chunk, count))
            s = np.where(cand[rows] >= 0, s_all[rows], 0.0)  # (b, m)
            mass[rows], weights[rows] = _solve_blocks(blocks(cand[rows]), s, alpha_factor, tol)

    if workers == 1:
        work(0)
    else:
        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(work, range(workers)))  # a list, so that an error of a thread is raised here
    return mass, weights


class _CandidateBlocks:
    """The dense pool similarity inside each candidate list of a chunk, shape (b, m, m)."""

    def __init__(self, pool: sparse.csr_array, chunk: int, m: int) -> None:
        self.indptr, self.indices, self.data = pool.indptr.astype(np.int64), pool.indices, pool.data
        self.width = pool.shape[0] + 1  # one slot more, where padding points
        # position of a pool member in each list of the chunk, -1 outside
        self.where = np.full(chunk * self.width, -1, dtype=np.int8 if m < 128 else np.int32)

    def __call__(self, cand: NDArray[np.int64]) -> Array:
        b, m = cand.shape
        base = np.arange(b)[:, None] * self.width
        own = (cand + base).ravel()
        real = np.flatnonzero(cand.ravel() >= 0)
        place = real % max(m, 1)
        self.where[own[real]] = place
        if (self.where[own[real]] != place).any():
            raise InputError(
                "a candidate list that names a pool member twice",
                "distinct pool indices in each row",
                "drop the repeats",
            )
        member = cand.ravel()[real]
        lo, length = self.indptr[member], self.indptr[member + 1] - self.indptr[member]
        before = np.cumsum(length) - length
        entry = np.arange(length.sum()) + np.repeat(lo - before, length)  # every stored entry of every candidate
        column = self.where[self.indices[entry] + np.repeat(base.ravel()[real // max(m, 1)], length)]
        hit = np.flatnonzero(column >= 0)
        blocks = np.zeros(b * m * m)
        blocks[np.repeat(real * m, length)[hit] + column[hit]] = self.data[entry[hit]]
        self.where[own[real]] = -1
        return blocks.reshape(b, m, m)


def _solve_blocks(block: Array, s: Array, factor: float, tol: float) -> tuple[Array, Array]:
    """Solve a batch exactly: guess each support by cheap sweeps, then exchange on systems of the support's size."""
    bound, scale = block.sum(2).max(1, initial=0.0), s.max(1, initial=0.0)  # (b,), (b,)
    alpha = np.where(bound > 0, factor * bound, np.maximum(scale, 1.0))
    v, todo = np.zeros_like(s), np.flatnonzero(scale > 0)
    support = _guess(block, s, alpha)
    for _ in range(_ROUNDS):
        if not todo.size:
            break
        some = slice(None) if todo.size == len(s) else todo
        own, near, on = s[some], block[some], support[some]
        part, c = _restricted(near, own, alpha[some], on)
        excess = own + np.matmul(near, part[:, :, None])[:, :, 0] - alpha[some, None] * part - c[:, None]
        limit = (tol * scale[some])[:, None]
        admit, drop = ~on & (excess > limit), on & (part * alpha[some, None] < -limit)
        v[some], support[some] = part, (on & ~drop) | admit
        todo = todo[(admit | drop).any(1)]
    for i in todo:  # the plain exchange has not settled: the solver that is proven to
        one = solve_pool(PoolFactor(block[i], float(alpha[i])), s[i : i + 1], tol=tol)
        v[i] = one.weights[0] / one.target_mass[0]
    v = np.maximum(v, 0.0)
    mass = 1.0 / (1.0 + v.sum(1))
    return mass, v * mass[:, None]


_ROUNDS, _SWEEPS = 40, 8


def _guess(block: Array, s: Array, alpha: Array) -> NDArray[np.bool_]:
    """Guess supports by projected Jacobi sweeps ``v <- max(s + A v - c, 0) / alpha``; a guess only costs rounds."""
    payoff, c = s, np.zeros(len(s))
    for _ in range(_SWEEPS):
        on = s * (payoff > c[:, None])
        c = (on * payoff).sum(1) / (alpha + on.sum(1))
        v = np.maximum(payoff - c[:, None], 0.0) / alpha[:, None]
        payoff = s + np.matmul(block, v[:, :, None])[:, :, 0]
    return np.asarray(payoff > c[:, None])


def _restricted(block: Array, s: Array, alpha: Array, on: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return v (b, m) and c (b,) on given supports, from systems as large as the largest support."""
    k = int(on.sum(1).max(initial=0))
    order = np.argsort(~on, axis=1, kind="stable")[:, :k]  # members of the support first
    live = np.take_along_axis(on, order, 1)
    matrix = -block[np.arange(len(s))[:, None, None], order[:, :, None], order[:, None, :]]
    matrix *= live[:, :, None] & live[:, None, :]
    matrix[:, np.arange(k), np.arange(k)] = alpha[:, None]  # rows that only fill up become alpha v = 0
    own = np.take_along_axis(s, order, 1) * live
    both = np.linalg.solve(matrix, np.stack([own, live.astype(np.float64)], 2))
    u, w = both[..., 0], both[..., 1]
    c = (own * u).sum(1) / (1.0 + (own * w).sum(1))
    v = np.zeros_like(s)
    np.put_along_axis(v, order, u - c[:, None] * w, 1)
    return v, c


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
