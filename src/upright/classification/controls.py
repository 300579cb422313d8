"""What FedFACT is compared with: Fairlearn's two remedies, and the linear program."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from upright.contract import InputError
from upright.maths.parity.oracle import linear_program
from upright.maths.parity.program import Constraint
from upright.maths.parity.rates import Criterion
from upright.maths.parity.site import Site

__all__ = ["average_bound", "exact_tables", "reductions", "thresholds"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


def exact_tables(sites: Sequence[Site], constraints: Sequence[Constraint]) -> list[list[Array]]:
    """Return the tables of adjustments that the linear program's prices give."""
    return linear_program(sites, constraints)[2]


def _fairlearn() -> Any:
    try:
        import fairlearn
    except ImportError:
        raise InputError(
            "fairlearn is not installed", "fairlearn for the arms 'thresholds' and 'reductions'",
            "pip install 'upright[fairness]', or leave these arms out with --arms",
        ) from None  # fmt: skip
    return fairlearn


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


def _two_classes(m: int, criterion: Criterion, what: str) -> tuple[str, str]:
    if m != 2 or criterion not in _NAMES:
        raise InputError(
            f"{what} for {m} classes and {criterion}", f"two classes, and one of {', '.join(_NAMES)}",
            "leave these arms out with --arms: Fairlearn has no such remedy",
        )  # fmt: skip
    return _NAMES[criterion]


class _Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Probabilities that are there already, as an estimator."""

    def __init__(self) -> None:
        self.classes_ = np.array([0, 1])
        self.fitted_ = True

    def fit(self, X: Any, y: Any) -> _Given:
        """Do nothing."""
        return self

    def predict_proba(self, X: Any) -> Array:
        """Return the columns of X."""
        return np.asarray(X, dtype=np.float64)

    def predict(self, X: Any) -> Ints:
        """Return the larger of two."""
        return np.asarray(np.asarray(X)[:, 1] > 0.5, dtype=np.int64)


def thresholds(p: Array, label: Ints, group: Ints, criterion: Criterion) -> Any:
    """Fit Fairlearn's ThresholdOptimizer to probabilities of all clients together.

    Returns
    -------
    callable
        ``decide(p, group) -> (n, 2)``: probabilities of its decisions, which it draws.
    """
    name, _ = _two_classes(p.shape[1], criterion, "Fairlearn's ThresholdOptimizer")
    _fairlearn()
    from fairlearn.postprocessing import ThresholdOptimizer

    model = ThresholdOptimizer(estimator=_Given(), constraints=name, objective="accuracy_score", prefit=True,
                               predict_method="predict_proba")  # fmt: skip
    with _their_deprecations():
        model.fit(p, label, sensitive_features=group)

    def decide(p: Array, group: Ints) -> Array:
        with _their_deprecations():
            return np.asarray(model._pmf_predict(p, sensitive_features=group), dtype=np.float64)

    return decide


def average_bound(group: Ints, label: Ints, criterion: Criterion, tol: float) -> float:
    """Return the bound on a group's gap to the average that keeps the gap between any two groups within `tol`.

    Of two groups with shares s the gap to the average is ``1 - s`` times the gap between them, so ``max(s) tol`` does;
    under a criterion that conditions on the label shares are those among rows of one label, and the smallest bound is
    taken. Of more groups ``tol / 2`` is enough.
    """
    rows = [np.ones(len(label), dtype=bool)] if criterion == "demographic_parity" else [
        label == c for c in np.unique(label)]  # fmt: skip
    if len(np.unique(group)) > 2:
        return 0.5 * tol
    return min(float((np.bincount(group[r]) / r.sum()).max()) * tol for r in rows)


def reductions(x: Array, label: Ints, group: Ints, criterion: Criterion, tol: float, estimator: Any) -> Any:
    """Fit Fairlearn's ExponentiatedGradient to the rows of all clients together, its bound that of `average_bound`.

    Returns
    -------
    callable
        ``decide(x) -> (n, 2)``: probabilities of its decisions, which it draws.
    """
    _, name = _two_classes(int(label.max()) + 1, criterion, "Fairlearn's ExponentiatedGradient")
    _fairlearn()
    import fairlearn.reductions as found

    bound = average_bound(group, label, criterion, min(tol, 1.0))
    model = found.ExponentiatedGradient(estimator, getattr(found, name)(difference_bound=max(bound, 1e-3)))
    with _their_deprecations():
        model.fit(x, label, sensitive_features=group)

    def decide(x: Array) -> Array:
        with _their_deprecations():
            return np.asarray(model._pmf_predict(x), dtype=np.float64)

    return decide
