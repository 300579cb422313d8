"""User similarities and the constrained dominant set of every disadvantaged user.

The mathematics stands in `upright.maths.dominant_sets`; here are the sparse products around it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from upright.contract import InputError
from upright.maths import dominant_sets as ds
from upright.metrics.ranking import gini

__all__ = [
    "ConstrainedDominantSets",
    "Similarity",
    "keep_largest",
    "official_neighbours",
    "rows_to_one",
    "similarities",
]

Similarity = Literal["cosine", "jaccard", "count"]
Array = NDArray[np.float64]


def similarities(
    rows: sparse.csr_array, others: sparse.csr_array, kind: Similarity = "cosine", shrinkage: float = 10.0
) -> sparse.csr_array:
    """Return similarities between two sets of users as a sparse product.

    ``count: |a & b|``, ``cosine: |a & b| / (sqrt(|a| |b|) + shrinkage)``,
    ``jaccard: |a & b| / (|a | b| + shrinkage)``.

    Parameters
    ----------
    rows, others : sparse, shapes (T, I) and (n, I)
        Binary interactions.

    Returns
    -------
    sparse CSR, shape (T, n)
        Non-negative, float64.
    """
    common = (rows.astype(np.float64) @ others.astype(np.float64).T).tocoo()
    if kind == "count":
        return sparse.csr_array(common)
    a, b = rows.sum(1).astype(np.float64)[common.row], others.sum(1).astype(np.float64)[common.col]
    size = np.sqrt(a * b) if kind == "cosine" else a + b - common.data
    return sparse.csr_array((common.data / (size + shrinkage), (common.row, common.col)), shape=common.shape)


def official_neighbours(to_pool: Array, pool: Array, *, count: int = 3, iterations: int = 5) -> NDArray[np.int64]:
    """Return the neighbours that the published code picks (D1), shape (T, count).

    Each target's block is scaled to [0, 1], alpha is ``1.1 * max(mean diagonal, 1e-3)`` = 1.1e-3, and at most five
    iterations ``x <- x * (B x) / ||x * (B x)||_2`` run from the target. For comparison only: the theorem's condition
    does not hold.
    """
    n = pool.shape[0]
    picks = np.empty((len(to_pool), min(count, n)), dtype=np.int64)
    for t, s in enumerate(to_pool):
        b = np.zeros((n + 1, n + 1))
        b[0, 1:] = b[1:, 0] = s
        b[1:, 1:] = pool
        b = (b - b.min()) / max(float(np.ptp(b)), 1e-300)
        np.fill_diagonal(b, [0.0, *([-1.1e-3] * n)])
        x = np.full(n + 1, 1e-6)
        x[0] = 1.0
        for _ in range(iterations):
            x = x * (b @ x)
            x /= max(float(np.linalg.norm(x)), 1e-300)
        picks[t] = np.argsort(-x[1:], kind="stable")[:count]
    return picks


class ConstrainedDominantSets:
    """Weights of advantaged users for every disadvantaged user.

    Parameters
    ----------
    similarity : {"cosine", "jaccard", "count"}
        From training interactions.
    alpha : "auto" or float
        ``auto``: 1.05 x the largest row sum of the pool's affinity. A number: that multiple of its largest
        eigenvalue (with ``candidates``: of the largest row sum of the target's own block, which bounds it); must
        exceed 1. Near 1 a set follows the pool's own hubs, from about 5 on it is plain similarity.
    k : int, optional
        Keep the k largest weights of each target.
    candidates : int, optional
        Cap each target to its so many most similar pool users and solve there; nothing of size pool x pool is made
        dense. Without it the pool is solved whole, with one factorisation.
    shrinkage : float
        See `similarities`.

    Attributes
    ----------
    weights_ : scipy.sparse CSR, shape (U, U)
        Row t sums to 1 for a target with neighbours, to 0 for anybody else.
    diagnostics_ : dict
        ``alpha``, ``lambda_max``, ``condition_holds``, ``kkt_residual``, target mass, cluster sizes, concentration.

    Guarantee
    ---------
    Every set is the unique stationary point that holds its target, and the target holds at least half of its mass.
    """

    def __init__(
        self,
        similarity: Similarity = "cosine",
        alpha: Literal["auto"] | float = "auto",
        k: int | None = None,
        candidates: int | None = None,
        shrinkage: float = 10.0,
    ) -> None:
        self.similarity, self.alpha, self.k, self.candidates = similarity, alpha, k, candidates
        self.shrinkage = shrinkage

    def fit(
        self, interactions: sparse.csr_array, targets: NDArray[np.int64], pool: NDArray[np.int64]
    ) -> ConstrainedDominantSets:
        """Find the sets.

        Parameters
        ----------
        interactions : sparse, shape (U, I)
            Training interactions; anything non-zero counts as 1.
        targets, pool : int arrays, shapes (T,) and (n,)
            Disadvantaged and advantaged users, disjoint.

        Raises
        ------
        InputError
            For users out of range or in both groups, or an alpha that is not above the largest eigenvalue.
        """
        binary = sparse.csr_array(interactions, dtype=np.float64, copy=True)
        binary.data[:] = 1.0
        targets, pool = np.asarray(targets, dtype=np.int64), np.asarray(pool, dtype=np.int64)
        users = binary.shape[0]
        both = np.concatenate([targets, pool])
        if len(both) and (both.min() < 0 or both.max() >= users or len(np.unique(both)) < len(both)):
            raise InputError(
                f"{len(targets)} targets and {len(pool)} pool users over {users} rows, some repeated or out of range",
                f"two disjoint sets of row numbers below {users}",
                "pass each user once, on one side",
            )
        to_pool = similarities(binary[targets], binary[pool], self.similarity, self.shrinkage)  # (T, n)
        inside = similarities(binary[pool], binary[pool], self.similarity, self.shrinkage)  # (n, n)
        inside.setdiag(0.0)
        inside.eliminate_zeros()
        solve = self._shared if self.candidates is None else self._capped
        weights = rows_to_one(keep_largest(solve(to_pool, inside), self.k))  # (T, n)
        coo = weights.tocoo()
        self.weights_ = sparse.csr_array((coo.data, (targets[coo.row], pool[coo.col])), shape=(users, users))
        self.diagnostics_ |= _concentration(weights)
        return self

    def _shared(self, to_pool: sparse.csr_array, inside: sparse.csr_array) -> sparse.csr_array:
        block = inside.toarray()
        block = (block + block.T) / 2.0
        top, bound = ds.largest_eigenvalue(block), ds.row_sum_bound(block)
        alpha = self._alpha(top, bound)
        s = to_pool.toarray()
        solution = ds.solve_pool(ds.PoolFactor(block, alpha), s)
        linked = solution.weights.any(1)
        self.diagnostics_: dict[str, Any] = {
            "alpha": alpha, "lambda_max": top, "row_sum_bound": bound, "condition_holds": bool(alpha > top),
            "kkt_residual": float(ds.kkt_residual(block, alpha, s, solution).max(initial=0.0)),
        }  # fmt: skip
        if linked.any():
            mass = solution.target_mass[linked]
            self.diagnostics_ |= {"x_t_min": float(mass.min()), "x_t_mean": float(mass.mean())}
        return rows_to_one(sparse.csr_array(solution.weights))

    def _alpha(self, top: float, bound: float) -> float:
        if self.alpha != "auto" and not float(self.alpha) > 1.0:
            raise InputError(
                f"alpha = {self.alpha!r} x the largest eigenvalue",
                "'auto' or a number above 1: below, a dominant set need not hold its target",
                "raise alpha, or take 'auto'",
            )
        alpha = 1.05 * bound if self.alpha == "auto" else float(self.alpha) * top
        return alpha if alpha > 0 else 1.0  # a pool without links: any positive alpha meets the condition

    def _capped(self, to_pool: sparse.csr_array, inside: sparse.csr_array) -> sparse.csr_array:
        factor = self._alpha(1.0, 1.0)  # refuses a multiple that is not above 1
        best = keep_largest(to_pool, self.candidates)
        width = int(np.diff(best.indptr).max(initial=0))
        cand = np.full((best.shape[0], width), -1, dtype=np.int64)
        s = np.zeros(cand.shape)
        row = np.repeat(np.arange(best.shape[0]), np.diff(best.indptr))
        place = np.arange(len(best.indices)) - best.indptr[row]
        cand[row, place], s[row, place] = best.indices, best.data
        mass, weights = ds.solve_candidates(s, cand, inside, alpha_factor=factor)
        self.diagnostics_ = {"condition_holds": True, "candidates": width}
        if width:
            self.diagnostics_ |= {"x_t_min": float(mass.min()), "x_t_mean": float(mass.mean())}
        flat = (weights[row, place], (row, best.indices))
        return rows_to_one(sparse.csr_array(flat, shape=to_pool.shape))


def rows_to_one(weights: sparse.csr_array) -> sparse.csr_array:
    """Scale each row with entries to sum to 1, in place."""
    weights.eliminate_zeros()
    total = weights.sum(1)
    weights.data /= np.repeat(total, np.diff(weights.indptr))
    return weights


def keep_largest(weights: sparse.csr_array, k: int | None) -> sparse.csr_array:
    """Keep the k largest entries of each row (ties to the lower column), rescaled to the row's own sum if trimmed."""
    if k is None or not weights.nnz:
        return weights
    row = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    order = np.lexsort((weights.indices, -weights.data, row))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - weights.indptr[row[order]]
    keep = rank < k
    return sparse.csr_array((weights.data[keep], (row[keep], weights.indices[keep])), shape=weights.shape)


def _concentration(weights: sparse.csr_array) -> dict[str, Any]:
    """Who is picked how often: cluster sizes, Gini of picks, share of the five most picked, unreached targets."""
    size = np.diff(weights.indptr)
    picked = np.sort(weights.sum(0))[::-1]
    linked = size[size > 0]
    facts: dict[str, Any] = {"targets": len(size), "targets_without_neighbours": int((size == 0).sum())}
    if len(linked):
        low, middle, high = np.percentile(linked, [10, 50, 90])
        facts["cluster_size"] = {"p10": float(low), "median": float(middle), "p90": float(high)}
        facts["picks_gini"] = float(gini(picked))
        facts["picks_top5_share"] = float(picked[:5].sum() / picked.sum())
    return facts
