"""Linear models of items, and a recommender that serves some of its users from one of them.

Nothing here is trained: EASE has a closed form, item neighbours are counts, and the one strength of each is the best of
five on validation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack

from upright.contract import InputError, Run

__all__ = ["MOST_ITEMS", "TwoModels", "ease", "inverse_root", "item_neighbours", "second_model"]

Csr = Any
"""A `scipy.sparse.csr_array`; scipy ships no types."""

MOST_ITEMS = 12_000
"""Items of a dense model: EASE holds 12 bytes a pair of items, 1.7 GB at this size, and needs ``I^3`` operations."""

Kind = Literal["weighted", "plain", "item_knn", "stranger", "everybody"]


def ease(seen: Csr, lam: float, weights: ArrayLike | None = None) -> NDArray[np.float32]:
    r"""Return the item weights B of EASE, whose scores for a user with the row x of interactions are ``x B``.

    ::

        min_B  sum_u w_u || x_u - x_u B ||^2 + lam || B ||^2    with diag(B) = 0
        P = (X' W X + lam I)^{-1},    B_ij = -P_ij / P_jj,  B_jj = 0

    Parameters
    ----------
    seen : scipy.sparse CSR, shape (U, I)
        X, 0 and 1.
    lam : float
        Above 0, in units of interactions: the same for weights w and for a user who is there w times.
    weights : array of float, shape (U,), optional
        w, not negative; 1 for all by default.

    Returns
    -------
    ndarray of float32, shape (I, I)

    Raises
    ------
    InputError
        For more than `MOST_ITEMS` items.

    References
    ----------
    Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
    """
    n_items = _require_few(seen.shape[1])
    root = np.ones(seen.shape[0]) if weights is None else np.sqrt(np.asarray(weights, dtype=np.float64))
    rows = seen.astype(np.float64).multiply(root[:, None]).tocsr()
    gram = np.asfortranarray((rows.T @ rows).toarray())
    gram[np.diag_indices(n_items)] += lam
    factor, bad = lapack.dpotrf(gram, lower=1, overwrite_a=1)
    if bad:
        raise ValueError("the Gram matrix is not positive definite: lam must be above 0")
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)  # the lower triangle, in place
    scale = -1.0 / np.diag(inverse)
    found: NDArray[np.float32] = inverse.astype(np.float32)
    for j in range(n_items):  # by columns, so that no third matrix is there
        found[j, j + 1 :] = found[j + 1 :, j]
    found *= scale.astype(np.float32)
    found[np.diag_indices(n_items)] = 0.0
    return found


def item_neighbours(seen: Csr, count: int, shrinkage: float = 10.0) -> NDArray[np.float32]:
    """Return the cosine of each item (columns) with its ``count`` most similar others, 0 elsewhere, shape (I, I).

    ``|i & j| / (sqrt(|i| |j|) + shrinkage)`` over users; equal ones at the border all stay.

    Raises
    ------
    InputError
        For more than `MOST_ITEMS` items.
    """
    _require_few(seen.shape[1])
    both: NDArray[np.float32] = (seen.T @ seen).toarray().astype(np.float32)
    size = np.sqrt(np.diag(both))
    both /= size[:, None] * size + np.float32(shrinkage)
    both[np.diag_indices(len(both))] = 0.0
    least = np.partition(both, -min(count, len(both)), axis=0)[-min(count, len(both))]
    both[both < least] = 0.0
    return both


def _require_few(n_items: int) -> int:
    if n_items > MOST_ITEMS:
        raise InputError(
            f"a dense model of {n_items} items, which takes {12e-9 * n_items**2:.1f} GB",
            f"at most {MOST_ITEMS} items",
            "leave rare items out (--set min_item=N), or the arms that serve users from EASE or similar items (--arms)",
        )
    return n_items


class TwoModels:
    """Scores of one model for some users and of another for the rest.

    Lists are ranked within a user, so the scales of the two need not agree.

    Parameters
    ----------
    base, second : callable
        User codes (B,) to the scores of every item (B, I).
    who : bool array, shape (U,)
        Whom the second serves.
    """

    def __init__(
        self, base: Callable[[NDArray[np.int64]], Any], second: Callable[[NDArray[np.int64]], Any], who: NDArray[Any]
    ) -> None:
        self.base, self.second, self.who = base, second, who

    def scores(self, users: NDArray[np.int64]) -> NDArray[Any]:
        """Return the scores of every item, shape (B, I)."""
        own = self.who[users]
        parts = [(rows, model) for rows, model in ((own, self.second), (~own, self.base)) if rows.any()]
        found = [(rows, np.asarray(model(users[rows]))) for rows, model in parts]
        scores = np.empty((len(users), found[0][1].shape[1]), np.result_type(*(values for _, values in found)))
        for rows, values in found:
            scores[rows] = values
        return scores


def inverse_root(count: NDArray[Any]) -> NDArray[np.float64]:
    """Return weights ``n_u^{-1/2}`` of users, scaled so that interactions weigh 1 on average; 0 without any, (U,)."""
    count = np.asarray(count, dtype=np.float64)
    weights = np.where(count > 0, 1.0 / np.sqrt(np.maximum(count, 1.0)), 0.0)
    found: NDArray[np.float64] = weights * count.sum() / max(float(weights @ count), 1e-300)
    return found


def _linear(seen: Csr, items: NDArray[np.float32], users: NDArray[np.int64]) -> Any:
    return seen[users] @ items


def second_model(task: Any, base: Any, kind: Kind, run: Run) -> TwoModels:
    """Serve the disadvantaged users of a task from a second model.

    Parameters
    ----------
    task : NextItem
    base : recommender
        Serves everybody else.
    kind : {"weighted", "plain", "item_knn", "stranger", "everybody"}
        EASE with users weighted n^-1/2, or not weighted; items by cosine similarity; the weighted EASE lists of
        another, random disadvantaged user; unweighted EASE for all users. The strength is that of five with the best
        validation NDCG of whom it serves.
    """
    who = np.ones(task.n_users, dtype=bool) if kind == "everybody" else task.groups != "advantaged"
    seen, key = task.seen.astype(np.float32), f"ndcg@{task.config.k}"
    weights = inverse_root(task.seen.sum(1)) if kind in ("weighted", "stranger") else None
    chosen, best, model = 0, -np.inf, None
    grid = (20, 50, 100, 200, 500) if kind == "item_knn" else (30, 100, 300, 1000, 3000)
    for strength in grid if (who & (task.valid.counts("user") > 0)).any() else ():
        items = item_neighbours(seen, strength) if kind == "item_knn" else ease(seen, strength, weights)
        tried = TwoModels(task.scores_of(base), functools.partial(_linear, seen, items), who)
        value = float(np.nanmean(np.asarray(task.score(tried, "valid", run).values[key])[who]))
        if value > best:
            chosen, best, model = strength, value, tried
    run.note("strength", chosen)
    if model is None:
        run.warn("no disadvantaged user has a validation item: the second model serves nobody")
        return TwoModels(task.scores_of(base), task.scores_of(base), who)
    if kind == "stranger":
        own, at = model.second, np.arange(task.n_users)
        place = run.rng("placebo", "stranger").permutation(np.flatnonzero(who))
        at[place] = np.roll(place, 1)  # nobody keeps the own list
        model.second = lambda users: own(at[users])
    return model
