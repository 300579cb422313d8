"""A classifier whose groups differ by at most a stated gap: any scikit-learn estimator inside, its grammar outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from upright.classification.gaps import gaps
from upright.classification.inputs import as_codes, as_features, one_hot, require_one_index, some
from upright.classification.post import FairPost
from upright.contract import InputError
from upright.maths.parity.constraints import Constraint

__all__ = ["FedFACTClassifier", "Front"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Front:
    """Accuracy and gaps at each tolerance.

    Parameters
    ----------
    rows : list of dict
        ``global_tol``, ``local_tol``, and on the calibration and on the evaluation data ``accuracy``, ``global``,
        ``local_max``, ``local_mean``.
    """

    rows: list[dict[str, float]]

    def plot(self, ax: Any = None) -> Any:
        """Draw accuracy over the global gap, evaluation data filled and calibration data open; returns the axes."""
        import matplotlib.pyplot as plt

        ax = plt.gca() if ax is None else ax
        for key, style in (("evaluation", {"marker": "o"}), ("calibration", {"marker": "o", "fillstyle": "none"})):
            points = [(r[f"{key}_global"], r[f"{key}_accuracy"]) for r in self.rows if f"{key}_global" in r]
            if points:
                ax.plot(*zip(*points, strict=True), label=key, linestyle="-", **style)
        ax.set_xlabel("largest gap between groups, everybody")
        ax.set_ylabel("accuracy")
        ax.legend()
        return ax


class FedFACTClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """Any classifier with probabilities, its decisions adjusted so that groups differ by at most a stated gap.

    Parameters
    ----------
    estimator : estimator with ``predict_proba``, optional
        Default `sklearn.linear_model.LogisticRegression`.
    constraints, global_tol, local_tol, gap, temperature, randomised, calibrate, unknown
        As in `FairPost`.
    prefit : bool
        Whether `estimator` is fitted already; then all data of `fit` are calibration data.
    calibration : float
        Share of the samples, in each group and class alike, that the estimator is not trained on and the adjustments
        are fitted to, in [0, 1); 0 uses all samples for both.
    group_estimator : estimator with ``predict_proba``, optional
        When given, decisions are attribute-blind: it is trained to predict the group from X and the client, and
        `predict` needs no sensitive feature.
    random_state : int or None
        Of the split, and of draws of a randomised `predict`.

    Attributes
    ----------
    classes_ : ndarray
    estimator_ : fitted estimator
    post_ : FairPost
        With ``table_``, ``report_``, ``small_`` and ``conflicts_``.

    Guarantee
    ---------
    That of `FairPost`, on the calibration samples.

    Notes
    -----
    Without ``sensitive_features`` there is nobody to compare, and the decisions are those of the estimator.
    """

    def __init__(
        self, estimator: Any = None, *, constraints: Any = "demographic_parity", global_tol: float = 0.01,
        local_tol: Any = float("inf"), gap: str = "pairwise", temperature: float = 0.002, randomised: bool = False,
        calibrate: bool | str = "auto", prefit: bool = False, calibration: float = 0.5, group_estimator: Any = None,
        unknown: str = "error", random_state: int | None = None,
    ) -> None:  # fmt: skip
        self.estimator = estimator
        self.constraints = constraints
        self.global_tol = global_tol
        self.local_tol = local_tol
        self.gap = gap
        self.temperature = temperature
        self.randomised = randomised
        self.calibrate = calibrate
        self.prefit = prefit
        self.calibration = calibration
        self.group_estimator = group_estimator
        self.unknown = unknown
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, *, sensitive_features: Any = None, clients: Any = None, sample_weight: Any = None
    ) -> FedFACTClassifier:
        """Train the estimator and fit the adjustments.

        Parameters
        ----------
        X : array or data frame, shape (n, d)
        y : array, shape (n,)
        sensitive_features : array, series, data frame or mapping, optional
            Group of each sample; each column is a family of groups.
        clients : array, shape (n,), optional
            Site of each sample.
        sample_weight : array, shape (n,), optional

        Raises
        ------
        InputError
            For input that does not fit together.
        """
        require_one_index(X=X, y=y, sensitive_features=sensitive_features, clients=clients, sample_weight=sample_weight)
        checked, y = validate_data(self, X, y, dtype=None, ensure_all_finite=False, skip_check_array=False)
        check_classification_targets(y)
        y = np.asarray(y)
        n = len(y)
        self.classes_, code = np.unique(y, return_inverse=True)
        given = None if sample_weight is None else _check_sample_weight(sample_weight, checked)
        train, held = self._split(code, sensitive_features, n)
        frame = X if hasattr(X, "columns") else checked
        if self.prefit:
            if self.estimator is None:
                raise InputError("prefit=True without an estimator", "a fitted one", "pass estimator=, or prefit=False")
            check_is_fitted(self.estimator)
            self.estimator_ = self.estimator
        else:
            own = LogisticRegression(max_iter=1000) if self.estimator is None else clone(self.estimator)
            extra = {} if given is None else {"sample_weight": given[train]}
            self.estimator_ = own.fit(_rows(frame, train), y[train], **extra)
        self.post_: FairPost | None = None
        if sensitive_features is None:
            return self
        self._fit_post(frame, y, sensitive_features, clients, given, train, held)
        return self

    def _split(self, code: NDArray[Any], features: Any, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return rows to train on and rows to calibrate on, drawn inside each class and group."""
        everybody = np.arange(n)
        if not 0.0 <= self.calibration < 1.0:
            raise InputError(f"calibration = {self.calibration}", "a share in [0, 1)", "hold out for example 0.5")
        if self.prefit or self.calibration == 0 or features is None:
            return everybody, everybody
        keys = [code.astype(str), *as_features(features, n).values()]
        cell = np.unique(np.array(["|".join(v) for v in zip(*keys, strict=True)]), return_inverse=True)[1]
        rng = np.random.default_rng(self.random_state)
        held = np.zeros(n, dtype=bool)
        for c in np.unique(cell):
            rows = rng.permutation(np.flatnonzero(cell == c))
            held[rows[: round(self.calibration * len(rows))]] = True
        train = np.flatnonzero(~held)
        if len(np.unique(code[train])) < len(np.unique(code)):
            return everybody, everybody  # too few samples of a class to hold any out
        return train, np.flatnonzero(held)

    def _fit_post(
        self, X: Any, y: NDArray[Any], features: Any, clients: Any, weight: Any, train: Any, held: Any
    ) -> None:  # fmt: skip
        n = len(y)
        columns = as_features(features, n)
        post = FairPost(
            self.constraints, global_tol=self.global_tol, local_tol=self.local_tol, gap=self.gap,
            temperature=self.temperature, randomised=self.randomised, calibrate=self.calibrate, unknown=self.unknown,
            random_state=self.random_state,
        )  # fmt: skip
        self.client_names_ = as_codes(clients, n, None)[1]
        if self.group_estimator is not None:
            self.group_models_ = {}
            x = self._with_client(X, clients)
            self.group_names_ = {f: sorted(set(c[held].tolist())) for f, c in columns.items()}
            for f, column in columns.items():
                self.group_models_[f] = clone(self.group_estimator).fit(x[train], column[train])
        self.post_ = post.fit(
            self._proba(_rows(X, held)), y[held], sensitive_features={f: c[held] for f, c in columns.items()},
            clients=None if clients is None else np.asarray(clients)[held], group_proba=self._groups(X, clients, held),
            sample_weight=None if weight is None else weight[held], classes=self.classes_.tolist(),
        )  # fmt: skip

    def _proba(self, X: Any) -> Array:
        """Probabilities in the order of ``classes_``."""
        p = np.asarray(self.estimator_.predict_proba(X), dtype=np.float64)
        own = list(np.asarray(self.estimator_.classes_).tolist())
        if own == self.classes_.tolist():
            return p
        missing = [c for c in self.classes_.tolist() if c not in own]
        if missing or len(own) > len(self.classes_):
            raise InputError(
                f"an estimator of classes {some(own)} for labels {some(self.classes_.tolist())}", "the same classes",
                "fit the estimator on labels of every class",
            )  # fmt: skip
        return p[:, [own.index(c) for c in self.classes_.tolist()]]

    def _with_client(self, X: Any, clients: Any) -> Array:
        """X beside one-hot clients, for the model of the group."""
        x = np.asarray(X, dtype=np.float64)
        codes, _ = as_codes(clients, len(x), self.client_names_)
        return np.hstack([x, one_hot(codes, len(self.client_names_))])

    def _groups(self, X: Any, clients: Any, rows: Any = None) -> dict[str, Array] | None:
        if self.group_estimator is None:
            return None
        x = self._with_client(X, clients)
        x = x if rows is None else x[rows]
        return {f: _columns(model, x, self.group_names_[f]) for f, model in self.group_models_.items()}

    def _ready(self, X: Any) -> Any:
        check_is_fitted(self, "estimator_")
        checked = validate_data(self, X, dtype=None, ensure_all_finite=False, reset=False)
        return X if hasattr(X, "columns") else checked

    def predict_proba(self, X: Any, *, sensitive_features: Any = None, clients: Any = None) -> Array:
        """Return the probability of each decision, shape (n, m); without groups the estimator's own probabilities."""
        require_one_index(X=X, sensitive_features=sensitive_features, clients=clients)
        X = self._ready(X)
        p = self._proba(X)
        if self.post_ is None:
            return p
        return self.post_.decide(p, sensitive_features=sensitive_features, clients=clients,
                                 group_proba=self._groups(X, clients))  # fmt: skip

    def predict(self, X: Any, *, sensitive_features: Any = None, clients: Any = None) -> NDArray[Any]:
        """Return decisions, shape (n,)."""
        require_one_index(X=X, sensitive_features=sensitive_features, clients=clients)
        X = self._ready(X)
        if self.post_ is None:
            return np.asarray(self.classes_[self._proba(X).argmax(1)])
        return self.post_.predict(self._proba(X), sensitive_features=sensitive_features, clients=clients,
                                  group_proba=self._groups(X, clients))  # fmt: skip

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, *, sensitive_features: Any = None, clients: Any = None
    ) -> float:  # fmt: skip
        """Return the accuracy of `predict`: decisions need the group, so `score` must be given it."""
        found = self.predict(X, sensitive_features=sensitive_features, clients=clients)
        return float(accuracy_score(y, found, sample_weight=sample_weight))

    def frontier(
        self, X: Any, y: Any, *, sensitive_features: Any, clients: Any = None,
        tolerances: Sequence[float] = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, float("inf")),
        evaluate: tuple[Any, Any, Any, Any] | None = None,
    ) -> Front:  # fmt: skip
        """Solve the program at each tolerance on calibration data, and score each.

        Parameters
        ----------
        X, y, sensitive_features, clients
            Calibration data, not those that the estimator was trained on.
        tolerances : sequence of float
            Global tolerances; local ones that are finite are set to the same.
        evaluate : tuple (X, y, sensitive_features, clients), optional
            Other data that each point is scored on.

        Returns
        -------
        Front
            Gaps are those of the first sensitive feature and the first criterion.
        """
        check_is_fitted(self, "estimator_")
        data = {"calibration": (X, y, sensitive_features, clients)}
        if evaluate is not None:
            data["evaluation"] = evaluate
        proba = {k: self._proba(v[0]) for k, v in data.items()}
        rows = []
        limits = list(self.local_tol.values()) if isinstance(self.local_tol, Mapping) else self.local_tol
        inside = bool(np.isfinite(np.asarray(limits, dtype=np.float64)).any())
        post = FairPost(self.constraints, gap=self.gap, temperature=self.temperature, calibrate=self.calibrate,
                        unknown="common", warm_start=True)  # fmt: skip
        for tol in tolerances:
            local = tol if inside else float("inf")
            post.set_params(constraints=_at(self.constraints, tol), global_tol=tol, local_tol=local)
            post.fit(proba["calibration"], y, sensitive_features=sensitive_features, clients=clients,
                     classes=self.classes_.tolist(), group_proba=self._groups(X, clients))  # fmt: skip
            row: dict[str, float] = {"global_tol": float(tol), "local_tol": float(local)}
            for key, (x, labels, features, sites) in data.items():
                found = post.predict(proba[key], sensitive_features=features, clients=sites,
                                     group_proba=self._groups(x, sites))  # fmt: skip
                n = len(found)
                code = np.searchsorted(self.classes_, found)
                truth = np.searchsorted(self.classes_, np.asarray(labels))
                column = next(iter(as_features(features, n).values()))
                criterion = post.fitted_.constraints[0].criterion
                h = one_hot(code, len(self.classes_))
                own = gaps(h, column, as_codes(sites, n, None)[0], criterion, truth)
                row |= {f"{key}_accuracy": float((code == truth).mean()),
                        **{f"{key}_{name}": v for name, v in own.items()}}  # fmt: skip
            rows.append(row)
        return Front(rows)


def _at(given: Any, tol: float) -> Any:
    """Return constraints with a tolerance: those given as `Constraint` carry their own."""
    if isinstance(given, Mapping):
        return {name: _at(one, tol) for name, one in given.items()}
    if isinstance(given, Constraint):
        inside = bool(np.isfinite(given.local_tol).any())
        return replace(given, global_tol=tol, local_tol=tol if inside else float("inf"))
    return given if isinstance(given, str) else [_at(one, tol) for one in given]


def _columns(model: Any, x: Array, names: Sequence[str]) -> Array:
    """Return P(group | x) of the named groups: rare ones may be among training or calibration samples alone."""
    p, own = model.predict_proba(x), [str(c) for c in model.classes_]
    out = np.column_stack([p[:, own.index(name)] if name in own else np.zeros(len(p)) for name in names])
    out += 1e-12  # nobody is of a group that the table does not know
    return np.asarray(out / out.sum(1, keepdims=True))


def _rows(X: Any, rows: NDArray[Any]) -> Any:
    """Rows of an array or of a data frame of any library."""
    if hasattr(X, "iloc"):
        return X.iloc[rows]
    return X[rows]
