"""What FedFACT is compared with: Fairlearn's two remedies, fitted to all clients' rows together.

Both return a function that gives the probabilities of their decisions, which they draw.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.preprocessing import FunctionTransformer

from upright.classification.inputs import Array, Ints
from upright.contract import InputError
from upright.maths.parity.rates import Criterion

__all__ = ["average_bound", "reductions", "thresholds"]


@contextlib.contextmanager
def _their_deprecations() -> Iterator[None]:
    """Keep what Fairlearn's own code is warned of from people who can do nothing about it."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=kind, module=r"fairlearn\.")
        yield


_NAMES = {
    "demographic_parity": ("demographic_parity", "DemographicParity"),
    "equal_opportunity": ("true_positive_rate_parity", "TruePositiveRateParity"),
    "equalized_odds": ("equalized_odds", "EqualizedOdds"),
}


def _named(m: int, criterion: Criterion, what: str) -> tuple[str, str]:
    """Return what Fairlearn calls a criterion, as an option and as a class, where it has the remedy and is there."""
    if m != 2 or criterion not in _NAMES:
        raise InputError(
            f"Fairlearn's {what} for {m} classes and {criterion}", f"two classes, and one of {', '.join(_NAMES)}",
            "leave these arms out with --arms: Fairlearn has no such remedy",
        )  # fmt: skip
    try:
        import fairlearn  # noqa: F401
    except ImportError:
        raise InputError(
            "fairlearn is not installed", "fairlearn for the arms 'thresholds' and 'reductions'",
            "pip install 'upright[fairness]', or leave these arms out with --arms",
        ) from None  # fmt: skip
    return _NAMES[criterion]


def _fitted(model: Any, x: Array, label: Ints, group: Ints) -> Callable[..., Array]:
    """Fit one of Fairlearn's remedies, and return the probabilities of the decisions that it draws."""
    with _their_deprecations():
        model.fit(x, label, sensitive_features=group)

    def decide(x: Array, **groups: Ints) -> Array:
        with _their_deprecations():
            return np.asarray(model._pmf_predict(x, **groups), dtype=np.float64)

    return decide


def thresholds(p: Array, label: Ints, group: Ints, criterion: Criterion) -> Any:
    """Fit Fairlearn's ThresholdOptimizer to probabilities; returns ``decide(p, group) -> (n, 2)``."""
    name, _ = _named(p.shape[1], criterion, "ThresholdOptimizer")
    from fairlearn.postprocessing import ThresholdOptimizer

    given = FunctionTransformer(lambda p: p[:, 1]).fit(p)  # probabilities that are there already, as an estimator
    model = ThresholdOptimizer(estimator=given, constraints=name, objective="accuracy_score", prefit=True,
                               predict_method="transform")  # fmt: skip
    decide = _fitted(model, p, label, group)
    return lambda p, group: decide(p, sensitive_features=group)


def average_bound(group: Ints, label: Ints, criterion: Criterion, tol: float) -> float:
    """Return the bound on a group's gap to the average that keeps the gap between any two groups within `tol`.

    Of two groups with shares s the gap to the average is ``1 - s`` times the gap between them, so ``max(s) tol`` does;
    shares are those among rows of one label where the criterion conditions on it, the smallest bound is taken. Of more
    groups ``tol / 2`` is enough.
    """
    rows = [np.ones(len(label), dtype=bool)] if criterion == "demographic_parity" else [
        label == c for c in np.unique(label)]  # fmt: skip
    if len(np.unique(group)) > 2:
        return 0.5 * tol
    return min(float((np.bincount(group[r]) / r.sum()).max()) * tol for r in rows)


def reductions(x: Array, label: Ints, group: Ints, criterion: Criterion, tol: float, estimator: Any) -> Any:
    """Fit Fairlearn's ExponentiatedGradient, its bound that of `average_bound`; returns ``decide(x) -> (n, 2)``."""
    _, name = _named(int(label.max()) + 1, criterion, "ExponentiatedGradient")
    import fairlearn.reductions as found

    bound = average_bound(group, label, criterion, min(tol, 1.0))
    model = found.ExponentiatedGradient(estimator, getattr(found, name)(difference_bound=max(bound, 1e-3)))
    return _fitted(model, x, label, group)
