"""Largest gaps of decisions in plain numbers; `upright.metrics.fairness` has intervals and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.classification.inputs import Array, one_hot
from upright.contract import InputError
from upright.maths.parity.rates import Criterion, rates, strata
from upright.metrics.fairness import gap_of

__all__ = ["gaps"]


def gaps(
    h: Array, groups: NDArray[Any], clients: NDArray[Any], criterion: Criterion = "demographic_parity",
    labels: NDArray[np.int64] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return the largest pairwise gap: for everybody, and the maximum and mean over clients of their own.

    Parameters
    ----------
    h : ndarray, shape (n, m)
        Decisions: one-hot, or their probabilities.
    groups, clients : array, shape (n,)
    criterion : str
        Of `upright.maths.parity.rates.CRITERIA`; all but demographic parity are refused without labels.
    labels : int array, shape (n,), optional

    Returns
    -------
    dict
        ``global``, ``local_max``, ``local_mean``; a client with fewer than two groups is left out. NaN where no client
        has two groups.
    """
    if labels is None and criterion != "demographic_parity":
        raise InputError(f"{criterion} without labels", "the label of each sample", "pass labels=")
    m = h.shape[1]
    y = h if labels is None else one_hot(labels, m)
    names = np.unique(groups)
    member = (groups[:, None] == names[None, :]).astype(np.float64)

    def largest(rows: NDArray[np.bool_]) -> float:
        r = rates(strata(criterion, y[rows]), member[rows], np.ones(int(rows.sum())), h[rows])
        if criterion == "equal_opportunity" and m == 2:
            r[..., 0] = np.nan  # of two classes the positive one
        return float(gap_of(r))

    own = np.array([largest(clients == k) for k in np.unique(clients)])
    known = own[~np.isnan(own)]
    return {
        "global": largest(np.ones(len(h), dtype=bool)),
        "local_max": float(known.max()) if len(known) else float("nan"),
        "local_mean": float(known.mean()) if len(known) else float("nan"),
    }
