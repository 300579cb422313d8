"""Alignment: does a model prefer the chosen answer of a pair, and what is left of the texts that it should keep.

With ``c = -sum_t log p(y_t | prompt, y_<t)`` of an answer of ``n`` tokens, ``c_0`` the same under the start model, and
``beta = 0.3``; a tie counts half:

=========================  ===========================================================================================
``ranking_accuracy``       1 where ``c(rejected) > c(chosen)``: sums, so that a longer answer has more to lose
``ranking_accuracy_mean``  1 where ``c(rejected) / n > c(chosen) / n``: the same per token
``implicit_margin``        ``m = beta ((c - c_0)(rejected) - (c - c_0)(chosen))``, the margin of DPO's implicit reward
``implicit_accuracy``      1 where ``m > 0``
``length_accuracy``        1 where the chosen answer has fewer tokens, or more: what is right more often on these pairs
``beyond_length``          ``ranking_accuracy - length_accuracy`` of the pair
=========================  ===========================================================================================

Source: Rafailov et al., *Direct Preference Optimization* (2023), arXiv 2305.18290, for the implicit reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import Metric

__all__ = ["METRICS", "length_accuracy"]

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        one.name: one
        for one in (
            Metric("ranking_accuracy", margin=0.02, title="Ranking accuracy"),
            Metric("ranking_accuracy_mean", margin=0.02, title="Ranking accuracy per token"),
            Metric("implicit_accuracy", margin=0.02, title="Accuracy of the implicit reward"),
            Metric("implicit_margin", low=-float("inf"), high=float("inf"), margin=0.05, title="Implicit margin"),
            Metric("length_accuracy", margin=0.02, title="Accuracy of length alone"),
            Metric("beyond_length", low=-1.0, margin=0.02, title="Ranking accuracy beyond length"),
            Metric("helps", title="Negatives certain to help"),
            Metric("hurts", "lower", title="Negatives certain to hurt"),
            Metric("undecided", "lower", title="Negatives that are undecided"),
            Metric("retain_probability", title="Probability of retained answers"),
        )
    }
)
"""What each value means: direction, bounds, margin and title; from ``helps`` to ``undecided`` of negatives."""


def length_accuracy(chosen_tokens: ArrayLike, rejected_tokens: ArrayLike) -> NDArray[np.float64]:
    """Return what length alone says of n pairs: 1 right, 0 wrong, 1/2 for equal lengths; shape (n,).

    It prefers shorter answers, or longer ones, whichever is right more often on these pairs, so its mean is at least
    1/2. Annotators like long answers and sums of log-probabilities short ones: what a model prefers may be no more.

    >>> length_accuracy([9, 7, 5, 4], [5, 7, 4, 8]).tolist()  # longer ones
    [1.0, 0.5, 1.0, 0.0]
    """
    longer = (1.0 + np.sign(np.subtract(chosen_tokens, rejected_tokens, dtype=np.float64))) / 2.0
    return longer if longer.mean() > 0.5 else 1.0 - longer
