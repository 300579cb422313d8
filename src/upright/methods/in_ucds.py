"""In-UCDS: in-processing user constrained dominant sets.

Paper
-----
Han, Chen, Zheng, Liu, Wang, Cheng, Li: *In-processing User Constrained Dominant Sets for User-Oriented Fairness in
Recommender Systems*, ACM Multimedia 2023 (arXiv 2309.01335).

Problem
-------
    min_theta  L_rec(theta) + lam * mean_{t in D cap batch} sum_v W_tv || e_t - sg(e_v) ||^2

over backbone parameters theta. D are the disadvantaged users, e the user representations that the backbone scores
with, sg stops the gradient, and row t of W holds the weights of the constrained dominant set of t among the
advantaged users, scaled to sum to ``neighbour_mass``.

Algorithm
---------
1. affinities between D and A and inside A from training interactions (sparse products)
2. alpha above the largest eigenvalue of A's block
3. the dominant set of every target (`upright.maths.dominant_sets`)
4. each mini-batch: recommendation loss plus the pull on the batch's disadvantaged users
5. the checkpoint with the best validation NDCG

Shapes
------
U users, I items, T targets, n pool, B batch, d width of the user representation.

Deviations
----------
D1. alpha exceeds the largest eigenvalue, as the theory asks. The published code floors it at 1.1e-3;
    ``mode="official"`` does the same.
D2. Similarities see training interactions only; the published code adds validation and test. Kept in every mode.
D3. Cosine similarity with shrinkage instead of co-counts (``similarity="count"`` is the published one).
D4. Soft weights over the whole set (``top_k=None``) instead of three hard neighbours; ``mode="official"`` takes three.
D5. The pull is a mean over the batch's disadvantaged users, not a sum over all pairs at each batch, so that lam
    does not change with the number of users or batches.
D6. Negatives are drawn afresh every epoch and the model is trained until validation stops improving.

Cost
----
One factorisation of the pool (n^3 / 3) and two triangular solves a target; training costs one gather and one
reduction of (B, d) a step more than the backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from upright.contract import (
    Arm,
    Config,
    InputError,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    Run,
    Task,
    method,
)
from upright.maths import dominant_sets as ds
from upright.metrics.ranking import gini
from upright.models.recommenders import draw_negatives

__all__ = ["ConstrainedDominantSets", "InUCDSConfig", "UserPullLoss", "official_neighbours", "run", "similarities"]

Similarity = Literal["cosine", "jaccard", "count"]
Array = NDArray[np.float64]


class InUCDSConfig(Config):
    """Settings of In-UCDS and of its controls."""

    lam: NonNegativeFloat = 0.03
    """Weight of the pull. 0 is the plain backbone."""
    neighbours: Literal["dominant_set", "top_k", "random", "zero"] = "dominant_set"
    """Whom a disadvantaged user is pulled to: its dominant set, its most similar advantaged users, random advantaged
    users, or the origin."""
    similarity: Similarity = "cosine"
    """User similarity from training interactions."""
    shrinkage: NonNegativeFloat = 10.0
    """Added to the denominator of cosine and Jaccard, in items: damps similarities of users with few items."""
    alpha: Literal["auto"] | Annotated[float, Range(gt=1)] = "auto"
    """`auto` is 1.05 x the largest row sum of the pool, a bound; a number is a multiple of the largest eigenvalue."""
    top_k: PositiveInt | None = None
    """Keep only so many neighbours of each dominant set, by weight; none keeps all. Controls use 3 when it is none."""
    neighbour_mass: PositiveFloat = 1.0
    """Sum of a target's weights after scaling."""
    mode: Literal["paper", "official"] = "paper"
    """`official` takes the published code's neighbours (D1, D3, D4)."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's step size."""
    weight_decay: NonNegativeFloat = 1e-4
    """L2 penalty on the batch's own embeddings, per example."""
    batch_size: PositiveInt = 2048
    """Positive pairs a step."""
    epochs: PositiveInt = 400
    """Most epochs; validation stops earlier."""
    check_every: PositiveInt = 5
    """Epochs between validation checks."""
    patience: PositiveInt = 5
    """Checks without a better validation NDCG before stopping."""


# -- step 1: similarities -----------------------------------------------------------------------------------------


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


# -- steps 2 and 3: the sets ---------------------------------------------------------------------------------------


class ConstrainedDominantSets:
    """Weights of advantaged users for every disadvantaged user.

    Parameters
    ----------
    similarity : {"cosine", "jaccard", "count"}
        From training interactions.
    alpha : "auto" or float
        ``auto``: 1.05 x the largest row sum of the pool's affinity. A number: that multiple of its largest
        eigenvalue; must exceed 1. Near 1 a set follows the pool's own hubs, from about 5 on it is plain similarity.
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
        weights = _keep_largest(solve(to_pool, inside), self.k)  # (T, n)
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
        return _rows_to_one(sparse.csr_array(solution.weights))

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
        factor = 1.05 if self.alpha == "auto" else float(self.alpha)
        best = _keep_largest(to_pool, self.candidates)
        width = int(np.diff(best.indptr).max(initial=0))
        cand = np.full((best.shape[0], width), -1, dtype=np.int64)
        s = np.zeros(cand.shape)
        row = np.repeat(np.arange(best.shape[0]), np.diff(best.indptr))
        place = np.arange(len(best.indices)) - best.indptr[row]
        cand[row, place], s[row, place] = best.indices, best.data
        mass, weights = ds.solve_candidates(s, cand, inside, alpha_factor=max(factor, 1.0 + 1e-9))
        self.diagnostics_ = {"condition_holds": True, "candidates": width}
        if width:
            self.diagnostics_ |= {"x_t_min": float(mass.min()), "x_t_mean": float(mass.mean())}
        flat = (weights[row, place], (row, best.indices))
        return _rows_to_one(sparse.csr_array(flat, shape=to_pool.shape))


def _rows_to_one(weights: sparse.csr_array) -> sparse.csr_array:
    weights.eliminate_zeros()
    total = weights.sum(1)
    weights.data /= np.repeat(total, np.diff(weights.indptr))
    return weights


def _keep_largest(weights: sparse.csr_array, k: int | None) -> sparse.csr_array:
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


# -- step 4: the pull -----------------------------------------------------------------------------------------------


class UserPullLoss(nn.Module):
    """``lam * mean_{t in D cap batch} sum_v W_tv || e_t - sg(e_v) ||^2`` for any table of user vectors.

    With w_t = sum_v W_tv the inner sum is ``w_t ||e_t||^2 - 2 e_t' sum_v W_tv e_v + sum_v W_tv ||e_v||^2``: one
    product of the batch's rows of W with the neighbours' vectors.

    Parameters
    ----------
    weights : scipy.sparse CSR, shape (U, U)
        Non-negative; rows without entries belong to users that are not pulled.
    lam : float
        Weight of the pull.
    stop_grad : bool
        Hold the neighbours fixed (the published form).
    zero_targets : int array, optional
        Users pulled towards the origin instead (a control); ``weights`` is then ignored for them.
    """

    def __init__(
        self, weights: sparse.csr_array, lam: float = 1.0, stop_grad: bool = True, zero_targets: Any = None
    ) -> None:
        super().__init__()
        self.lam, self.stop_grad = float(lam), stop_grad
        csr = sparse.csr_array(weights)
        columns = np.unique(csr.indices)  # the neighbours that occur at all
        self._columns = torch.from_numpy(columns.astype(np.int64))  # (n,)
        self._csr = sparse.csr_array(csr[:, columns]) if len(columns) else sparse.csr_array((csr.shape[0], 0))
        # a set that spreads over a small pool is nearly dense: one BLAS product then beats a sparse one
        dense = self._csr.nnz > 0.05 * np.prod(self._csr.shape) and np.prod(self._csr.shape) < 2e7
        self._dense = torch.from_numpy(self._csr.toarray()) if dense else None
        total = np.asarray(csr.sum(1), dtype=np.float64)
        if zero_targets is not None:
            total[np.asarray(zero_targets, dtype=np.int64)] = 1.0
        self._total = total  # (U,)

    def _block(self, rows: Tensor) -> Tensor:
        """Weights of some users over the neighbours that occur, shape (b, n)."""
        if self._dense is not None:
            return self._dense.index_select(0, rows)
        own = self._csr[rows.numpy()].tocoo()
        return torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([own.row, own.col]).astype(np.int64)), torch.from_numpy(own.data), own.shape, is_coalesced=True,
            check_invariants=False,
        )  # fmt: skip

    def forward(self, table: Tensor, users: Tensor) -> Tensor:
        """Return the scalar pull.

        Parameters
        ----------
        table : Tensor, shape (U, d)
            User representations as the backbone scores with them.
        users : int64 Tensor, shape (B,)
            Users of the batch, repeats allowed; each counts once.

        Returns
        -------
        Tensor, shape ()
            Exactly 0, with a gradient of zeros, when nobody in the batch is a target.
        """
        own = np.unique(users.detach().cpu().numpy())
        own = own[self._total[own] > 0]  # (b,)
        if not len(own):
            return table.sum() * 0.0
        rows = torch.from_numpy(own)
        total = torch.from_numpy(self._total[own]).to(table)
        target = table.index_select(0, rows.to(table.device))  # (b, d)
        other = table.detach() if self.stop_grad else table
        other = other.index_select(0, self._columns.to(table.device))  # (n, d)
        other = torch.cat([other, other.square().sum(1, keepdim=True)], 1)  # (n, d + 1), last column ||e_v||^2
        sums = self._block(rows).to(table) @ other  # (b, d + 1) = sum_v W_tv (e_v, ||e_v||^2)
        toward, constant = sums[:, :-1], sums[:, -1]
        per_user = total * target.square().sum(1) - 2.0 * (target * toward).sum(1) + constant  # (b,)
        return self.lam * per_user.mean()


def neighbour_weights(task: Any, config: InUCDSConfig, run: Run) -> tuple[sparse.csr_array, NDArray[np.int64] | None]:
    """Return W of the chosen arm, and the targets pulled to zero if that is the arm; notes diagnostics."""
    seen = task.seen
    pool = np.flatnonzero(task.groups == "advantaged")
    targets = np.flatnonzero(task.groups != "advantaged")
    empty = sparse.csr_array((task.n_users, task.n_users), dtype=np.float64)
    if not len(pool) or not len(targets):
        run.warn(
            "every user is in one group: there is nobody to pull, the fairness loss is zero "
            "(set group_share between 0 and 1 to make two groups)"
        )
        return empty, None
    if config.neighbours == "zero":
        return empty, targets
    k = config.top_k or 3
    if config.neighbours == "random":
        rng = run.rng("placebo", "neighbours")
        k = min(k, len(pool))
        pick = np.argsort(rng.random((len(targets), len(pool))), axis=1)[:, :k]  # (T, k)
        return _hard(targets, pool[pick], task.n_users, config.neighbour_mass), None
    if config.mode == "official" and config.neighbours == "dominant_set":
        count = similarities(seen[targets], seen[pool], "count").toarray()
        inside = similarities(seen[pool], seen[pool], "count").toarray()
        np.fill_diagonal(inside, 0.0)
        pick = official_neighbours(count, inside)
        run.note("condition_holds", False)
        return _hard(targets, pool[pick], task.n_users, config.neighbour_mass), None
    if config.neighbours == "top_k":
        near = _keep_largest(similarities(seen[targets], seen[pool], config.similarity, config.shrinkage), k)
        row = np.repeat(np.arange(len(targets)), np.diff(near.indptr))
        flat = (np.ones(near.nnz), (targets[row], pool[near.indices]))
        weights = _rows_to_one(sparse.csr_array(flat, shape=empty.shape))
        return weights * config.neighbour_mass, None
    sets = ConstrainedDominantSets(config.similarity, config.alpha, config.top_k, None, config.shrinkage)
    sets.fit(seen, targets, pool)
    for name, value in sets.diagnostics_.items():
        run.note(name, value)
    return _rows_to_one(sets.weights_) * config.neighbour_mass, None


def _hard(targets: Any, picks: Any, users: int, mass: float) -> sparse.csr_array:
    k = picks.shape[1]
    flat = (np.full(picks.size, mass / k), (np.repeat(targets, k), picks.ravel()))
    return sparse.csr_array(flat, shape=(users, users))


# -- step 5: the method ---------------------------------------------------------------------------------------------

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    # one value per positive pair, reduced where it is used
    "bpr": lambda positive, negative: nn.functional.softplus(negative - positive),
    "bce": lambda positive, negative: nn.functional.softplus(-positive) + nn.functional.softplus(negative),
}


@method(
    "in_ucds",
    task="upright.tasks.next_item:NextItem",
    config=InUCDSConfig,
    title="In-UCDS",
    mends="worse lists for inactive users",
    neutral=[{"lam": 0.0}, {"neighbours": "dominant_set", "task.group_share": 0.0}],
    arms=[
        Arm("none", "baseline", {"lam": 0.0}, "no remedy"),
        Arm("in_ucds", "remedy", {}, "In-UCDS"),
        Arm("top_k", "trivial", {"neighbours": "top_k"}, "most similar users"),
        Arm("random", "placebo", {"neighbours": "random"}, "random users"),
        Arm("zero", "placebo", {"neighbours": "zero"}, "pull to zero"),
    ],
    statistics=[
        "mean:ndcg@10", "mean:ndcg@10:activity", "gap:ndcg@10:activity", "abs_gap:ndcg@10:activity",
        "worst_decile:ndcg@10", "gini:ndcg@10", "mean:recall@10", "mean:mrr@10", "mean:hit@10",
        "mean:ndcg@10_matched5:activity", "gap:ndcg@10_matched5:activity", "mean:ndcg@10_sampled:activity",
        "gap:ndcg@10_sampled:activity",
    ],
    primary="abs_gap:ndcg@10:activity",
    cost="mean:ndcg@10",
    presets={
        "quick": {"method": {"epochs": 60, "check_every": 5, "patience": 3}, "task": {"dim": 32}},
        "full": {"method": {}, "task": {}},
    },
    tune={"lam": [0.003, 0.03, 0.3]},
    tiny={"epochs": 6, "check_every": 2, "batch_size": 256, "learning_rate": 0.01, "lam": 0.1},
)  # fmt: skip
def run(task: Task, config: InUCDSConfig, run: Run) -> nn.Module:
    """Train the task's backbone with the pull, and return it at its best validation NDCG."""
    t: Any = task
    model: Any = t.model(run)
    loss_of = LOSSES["bce" if t.config.backbone == "neumf" else "bpr"]
    weights, zero = neighbour_weights(t, config, run)  # steps 1 to 3
    pull = UserPullLoss(weights, config.lam, zero_targets=zero)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    state = run.restore() or {"epoch": 0, "best": -1.0, "stale": 0}
    if "model" in state:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    best, stale, key = state["best"], state["stale"], f"ndcg@{t.config.k}"
    user, item = torch.from_numpy(t.train.user), torch.from_numpy(t.train.item)
    with run.progress(config.epochs - state["epoch"], f"{run.arm}") as advance:
        for epoch in range(state["epoch"], config.epochs):
            if stale >= config.patience:
                break
            order = run.rng("order", epoch).permutation(len(user))
            negatives = torch.from_numpy(draw_negatives(t.train.user, t.seen, t.n_items, run.rng("negatives", epoch)))
            total = pulled = 0.0
            for start in range(0, len(order), config.batch_size):
                rows = torch.from_numpy(order[start : start + config.batch_size])
                u, i, j = user[rows], item[rows], negatives[rows, 0]
                users, items = model.tables()  # (U, d), (I, d)
                own = users.index_select(0, u)  # (B, d); index_select has a much cheaper backward than indexing
                positive = model.score(own, items.index_select(0, i))  # (B,)
                negative = model.score(own, items.index_select(0, j))  # (B,)
                decay = sum(row.square().sum(1).mean() for row in model.ego(u, torch.cat([i, j])))
                rec, fair = loss_of(positive, negative).mean(), pull(users, u)  # step 4
                optimiser.zero_grad(set_to_none=True)
                (rec + 0.5 * config.weight_decay * decay + fair).backward()
                optimiser.step()
                total, pulled = total + rec.item() * len(rows), pulled + fair.item() * len(rows)
            values = {"loss": total / len(order), "pull": pulled / len(order)}
            if (epoch + 1) % config.check_every == 0 or epoch + 1 == config.epochs:  # step 5
                value = float(np.nanmean(t.score(model, "valid", run).values[key]))
                stale, improved = (0, True) if value > best else (stale + 1, False)
                best = max(best, value)
                run.log(epoch + 1, **values, **{f"valid/{key}": value})
                run.save(epoch + 1, {"epoch": epoch + 1, "best": best, "stale": stale, "model": model.state_dict(),
                                     "optimiser": optimiser.state_dict()}, best=improved)  # fmt: skip
            else:
                run.log(epoch + 1, **values)
            advance()
    chosen = run.restore("best")
    if chosen is not None:
        model.load_state_dict(chosen["model"])
        run.note("best_epoch", chosen["epoch"])
        run.note("converged", stale >= config.patience)
    with torch.no_grad():
        norm = model.tables()[0].norm(dim=1).numpy()
    groups = {str(g): float(norm[t.groups == g].mean()) for g in np.unique(t.groups)}
    run.note("embedding_norm", groups)
    return model  # type: ignore[no-any-return]
