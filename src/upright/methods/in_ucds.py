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
D5. The pull is a mean over the batch's disadvantaged users, not a sum over all pairs at each batch, so that at
    a given batch size lam keeps its meaning when users are added. Rows of weights sum to ``neighbour_mass`` in every
    mode; the published code gives each of its three neighbours the weight 1.
D6. Negatives are drawn afresh every epoch and the model is trained until validation stops improving.
D7. BPR-MF and LightGCN are trained with the BPR loss and one negative, NeuMF with cross-entropy and one negative; the
    published code trains NeuMF, PMF, NGCF and VAECF with cross-entropy and four negatives drawn once.
D8. The checkpoint is the one with the best validation NDCG; the published code keeps one for each of eight criteria.

Cost
----
One factorisation of the pool (n^3 / 3) and two triangular solves a target; training costs one gather and one
reduction of (B, d) a step more than the backbone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from upright.contract import (
    Arm,
    InputError,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Range,
    Run,
    Task,
    Training,
    method,
)
from upright.declare import Front, Holds, Noted, Signed
from upright.lazy import LazyModule
from upright.recommendation.sets import (
    ConstrainedDominantSets,
    Similarity,
    keep_largest,
    official_neighbours,
    rows_to_one,
    similarities,
)

if TYPE_CHECKING:
    import torch

    from upright.models import linear
    from upright.recommendation import pairs, pull
    from upright.recommendation.pull import UserPullLoss
else:
    torch = LazyModule("torch")
    pairs = LazyModule("upright.recommendation.pairs")
    pull = LazyModule("upright.recommendation.pull")
    linear = LazyModule("upright.models.linear")

__all__ = ["ConstrainedDominantSets", "InUCDSConfig", "UserPullLoss", "official_neighbours", "run", "similarities"]

HARD = 3  # neighbours of the control `top_k`, as many as the published code takes


class InUCDSConfig(Training):
    """Settings of In-UCDS and of its controls."""

    lam: NonNegativeFloat = 0.003
    """Weight of the pull. 0 is the plain backbone."""
    neighbours: Literal["dominant_set", "top_k", "similarity", "random", "zero"] = "dominant_set"
    """Whom a disadvantaged user is pulled to: its dominant set; its most similar advantaged users, equal weights; all
    who resemble it, in proportion to similarity; random ones, with the weights of its own set; or the origin."""
    similarity: Similarity = "cosine"
    """User similarity from training interactions."""
    shrinkage: NonNegativeFloat = 10.0
    """Added to the denominator of cosine and Jaccard, in items: damps similarities of users with few items."""
    alpha: Literal["auto"] | Annotated[float, Range(gt=1)] = "auto"
    """`auto` is 1.05 x the largest row sum of the pool, a bound; a number is a multiple of the largest eigenvalue."""
    top_k: PositiveInt | None = None
    """Keep only so many neighbours of each dominant set, by weight; none keeps all. The arm `top_k` then takes 3."""
    neighbour_mass: PositiveFloat = 1.0
    """Sum of a target's weights after scaling."""
    mode: Literal["paper", "official"] = "paper"
    """`official` takes the published code's neighbours (D1, D3, D4)."""
    weight_decay: NonNegativeFloat = 1e-4
    """L2 penalty on the batch's own embeddings: mean squared norm of its user rows plus that of its item rows."""
    weights: Literal["equal", "inverse_root"] = "equal"
    """What a user counts in the recommendation loss; `inverse_root` is n^-1/2 for n training interactions."""
    second: Literal["none", "weighted", "plain", "item_knn", "stranger", "everybody"] = "none"
    """Serve disadvantaged users from another model beside the plain backbone, without a pull: EASE with users weighted
    n^-1/2, or not weighted; similar items; another such user's EASE lists. `everybody` serves all from EASE."""


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
    _refuse_ignored(config, run)
    if config.neighbours in ("top_k", "similarity"):
        near = similarities(seen[targets], seen[pool], config.similarity, config.shrinkage)
        if config.neighbours == "top_k":
            near = keep_largest(near, config.top_k or HARD)
            near.data[:] = 1.0
        return _scaled(near, targets, pool, task.n_users, config.neighbour_mass), None
    weights = _dominant_sets(seen, targets, pool, config, run)
    if config.neighbours == "zero":  # the same users are pulled in every arm
        return empty, targets[np.diff(weights.indptr) > 0]
    if config.neighbours == "random":
        weights = _handed_on(weights, run.rng("placebo", "neighbours"))
    return _scaled(weights, targets, pool, task.n_users, config.neighbour_mass), None


def _refuse_ignored(config: InUCDSConfig, run: Run) -> None:
    """Say what ``mode="official"`` makes of settings that the published code does not have."""
    if config.mode != "official":
        return
    if config.alpha != "auto":
        raise InputError(
            f"mode='official' with alpha = {config.alpha!r}",
            "alpha='auto': the published code sets 1.1e-3 itself",
            "leave alpha out, or take mode='paper'",
        )
    plain = InUCDSConfig()
    own = [k for k in ("similarity", "shrinkage", "top_k") if getattr(config, k) != getattr(plain, k)]
    if own:
        run.warn(
            f"mode='official' has counts and three neighbours of its own: {', '.join(own)} shape the controls alone"
        )


def _dominant_sets(seen: Any, targets: Any, pool: Any, config: InUCDSConfig, run: Run) -> sparse.csr_array:
    """Weights of each target over the pool, shape (T, n); notes diagnostics where they belong to the arm."""
    if config.mode == "official":
        count = similarities(seen[targets], seen[pool], "count").toarray()
        inside = similarities(seen[pool], seen[pool], "count").toarray()
        np.fill_diagonal(inside, 0.0)
        pick = official_neighbours(count, inside)  # (T, k)
        run.note("condition_holds", False)
        flat = (np.ones(pick.size), (np.repeat(np.arange(len(targets)), pick.shape[1]), pick.ravel()))
        return sparse.csr_array(flat, shape=count.shape)
    sets = ConstrainedDominantSets(config.similarity, config.alpha, config.top_k, None, config.shrinkage)
    sets.fit(seen, targets, pool)
    if config.neighbours == "dominant_set":
        for name, value in sets.diagnostics_.items():
            run.note(name, value)
    return sparse.csr_array(sets.weights_[targets][:, pool])


def _handed_on(weights: sparse.csr_array, rng: np.random.Generator) -> sparse.csr_array:
    """Give each target's own weights to random members of the pool: as soft as the remedy, as many, as heavy."""
    found = sparse.csr_array(weights, copy=True)
    for row in range(found.shape[0]):
        own = slice(found.indptr[row], found.indptr[row + 1])
        found.indices[own] = rng.choice(found.shape[1], own.stop - own.start, replace=False)
    found.has_sorted_indices = False
    return found


def _kept(trained: tuple[Any, Any, Any]) -> dict[str, Any]:
    return {"model": trained[0].state_dict(), "converged": trained[2].converged}


def _scaled(weights: Any, targets: Any, pool: Any, users: int, mass: float) -> sparse.csr_array:
    """Write weights over (targets, pool) as (U, U), rows that have any scaled to one mass."""
    coo = rows_to_one(sparse.csr_array(weights, copy=True)).tocoo()
    return sparse.csr_array((coo.data * mass, (targets[coo.row], pool[coo.col])), shape=(users, users))


# -- step 5: the method ---------------------------------------------------------------------------------------------


_ONLY = ("remedy",)
_REPORT = [
    Front("Inactive against active users"),
    Holds(
        "The theorem's condition α > λ_max holds: every set holds the user it was built for.",
        "condition_holds",
        arms=_ONLY,
        bad="The theorem's condition α > λ_max does not hold: a set need not hold the user it was built for, so these "
        "neighbours are no constrained dominant sets.",
    ),
    Signed(
        "The gap by protocol",
        "gap:ndcg@*:activity",
        [
            "Right of zero, advantaged users get the better lists. Users with more test items score higher under a "
            "full ranking; with the same number of test items a user, or one among sampled ones, they need not."
        ],
    ),
    Noted(
        "The program",
        names={
            "alpha": "α",
            "lambda_max": "λ_max",
            "row_sum_bound": "Largest row sum, an upper bound of λ_max",
            "x_t_min": "Smallest share of a set that its own user holds",
            "x_t_mean": "Mean share of a set that its own user holds",
            "kkt_residual": "Largest violation of the optimality conditions",
        },
        arms=_ONLY,
    ),
    Noted(
        "Whom the disadvantaged users are pulled to",
        names={
            "targets": "Users to be pulled",
            "targets_without_neighbours": "of them without any neighbour",
            "picks_gini": "Gini of picks (0: all picked alike, 1: one picked always)",
            "picks_top5_share": "Share of all picks on the five most picked users",
            "official_overlap": "Overlap with the neighbours that the published code picks",
            "cluster_size.p10": "Users in a set, 10th percentile",
            "cluster_size.median": "median",
            "cluster_size.p90": "90th percentile",
        },
        arms=_ONLY,
    ),
    Noted(
        "Mean length of the user embeddings: a pull that only shrinks shows here",
        "embedding_norm",
        names={"advantaged": "advantaged", "disadvantaged": "disadvantaged"},
    ),
]
_QUICK = ["none", "in_ucds", "top_k", "similarity", "random", "zero"]
_OF_SECOND = ("item_knn", "stranger", "ease", "ease_all")  # what it is compared with on its own
_LIMITS = [
    "Better lists for inactive users are a better model for them, not a gap closed. Advantaged users have more test "
    "items, so that the plain gap counts positives; read that at matched positives.",
    "Advantaged and disadvantaged are read off training activity, not off who people are. A gap in activity is no gap "
    "between protected groups.",
    "The sign of the gap depends on the protocol. No single one is the right one.",
]


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
        Arm("similarity", "trivial", {"neighbours": "similarity"}, "soft similarity"),
        Arm("random", "placebo", {"neighbours": "random"}, "random users"),
        Arm("zero", "placebo", {"neighbours": "zero"}, "pull to zero"),
        Arm("second_model", "rival", {"second": "weighted"}, "EASE for inactive users", controls=_OF_SECOND),
        Arm("user_weights", "rival", {"lam": 0.0, "weights": "inverse_root"}, "weighted users"),
        Arm("ease", "rival", {"second": "plain"}, "EASE for inactive users, not weighted", simpler=True),
        Arm("ease_all", "rival", {"second": "everybody"}, "EASE for everybody"),
        Arm("item_knn", "anchor", {"second": "item_knn"}, "similar items for inactive users"),
        Arm("stranger", "anchor", {"second": "stranger"}, "a stranger's EASE lists"),
    ],
    statistics=[
        "mean:ndcg@10",
        "mean:ndcg@10:activity",
        "gap:ndcg@10:activity",
        "abs_gap:ndcg@10:activity",
        "worst_decile:ndcg@10",
        "gini:ndcg@10",
        "mean:recall@10",
        "mean:mrr@10",
        "mean:hit@10",
        "mean:ndcg@10_matched5:activity",
        "gap:ndcg@10_matched5:activity",
        "abs_gap:ndcg@10_matched5:activity",
        "mean:ndcg@10_sampled:activity",
        "gap:ndcg@10_sampled:activity",
    ],
    primary="mean:ndcg@10:activity=disadvantaged",
    cost="mean:ndcg@10:activity=advantaged",
    presets={
        "quick": {"method": {"epochs": 60, "check_every": 5, "patience": 3}, "task": {"dim": 32}, "arms": _QUICK},
        "full": {"method": {}, "task": {}},
    },
    tune={"lam": [0.0003, 0.003, 0.03]},
    report=_REPORT,
    limits=_LIMITS,
    demo={"data": "ml100k", "settings": {"batch_size": 4096}, "study": "in_ucds-bprmf-ml100k"},
    tiny={"epochs": 6, "check_every": 2, "batch_size": 256, "learning_rate": 0.01, "lam": 0.1},
)
def run(task: Task, config: InUCDSConfig, run: Run) -> Any:
    """Train the task's backbone with the pull, and return it at its best validation NDCG; or add a second model."""
    t: Any = task
    base = {k: v for k, v in config.as_dict().items() if k in pairs.PLAIN}
    if config.second != "none":
        kept = run.shared("base", base, lambda: _kept(pairs.train_backbone(t, config, run.silent())))
        model = t.model(run)
        model.load_state_dict(kept["model"])
        run.note("converged", kept["converged"])
        return linear.second_model(t, model, config.second, run)
    weights, zero = neighbour_weights(t, config, run)  # steps 1 to 3
    loss = pull.UserPullLoss(weights, config.lam, zero_targets=zero, zero_mass=config.neighbour_mass)
    count = linear.inverse_root(t.seen.sum(1)) if config.weights == "inverse_root" else None
    own = None if count is None else torch.from_numpy(count).to(getattr(torch, t.config.precision))
    model, _, epochs = trained = pairs.train_backbone(t, config, run, pull=loss, weights=own)  # steps 4 and 5
    if config.lam == 0 and own is None:
        run.shared("base", base, lambda: _kept(trained))  # what a second model is added to
    run.note("best_epoch", epochs.best_epoch)
    run.note("converged", epochs.converged)
    with torch.no_grad():
        norm = model.tables()[0].norm(dim=1).numpy()
    run.note("embedding_norm", {str(g): float(norm[t.groups == g].mean()) for g in np.unique(t.groups)})
    return model


def __getattr__(name: str) -> Any:
    """Return what a native door is made of, loaded when it is asked for."""
    home = {"UserPullLoss": pull}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)
