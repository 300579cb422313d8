"""A classifier whose groups differ by at most a stated gap: any scikit-learn estimator inside, its grammar outside."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch, _safe_indexing, get_tags
from sklearn.utils.metadata_routing import UNUSED, MetadataRouter, MethodMapping, process_routing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_method_params,
    _check_sample_weight,
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)

from upright.classification.draws import row_ids
from upright.classification.gaps import gaps
from upright.classification.inputs import as_codes, as_features, one_hot, require_one_index, some
from upright.classification.post import FairPost, ToleranceWarning
from upright.contract import InputError
from upright.maths.parity.constraints import Constraint

__all__ = ["FairScorer", "FedFACTClassifier", "Front"]

Array = NDArray[np.float64]
_FOLDS = 5  # of calibration="cross"


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
        Default `sklearn.linear_model.LogisticRegression`. X goes to it as it came: a data frame with text for a
        pipeline that encodes it, or a sparse matrix.
    constraints, global_tol, local_tol, gap, temperature, randomised, calibrate, unknown
        As in `FairPost`.
    prefit : bool
        Whether `estimator` is fitted already; then all data of `fit` are calibration data.
    calibration : float or "cross"
        Share of the samples, in each group and class alike, that the estimator is not trained on and the adjustments
        are fitted to, in [0, 1); 0 uses all samples for both. Of each group, client and class one sample at least.
        ``cross`` trains on all samples and adjusts to all: to the probabilities that each gets from one of five more
        estimators, trained on the others. That is for many or small groups, whose rates a share of the samples tells
        less well, and costs six trainings.
    group_estimator : estimator with ``predict_proba``, optional
        When given, decisions are attribute-blind: it is trained to predict the group from X and the client, and
        `predict` needs no sensitive feature. Several clients are a column each, of a data frame ``client=NAME``.
    random_state : int or None
        Of the split, and of draws of a randomised `predict`.

    Attributes
    ----------
    classes_ : ndarray
    estimator_ : fitted estimator
    post_ : FairPost
        With ``table_``, ``report_``, ``missed_``, ``left_out_``, ``small_`` and ``conflicts_``.

    Guarantee
    ---------
    That of `FairPost`, on the calibration samples.

    Notes
    -----
    Without ``sensitive_features`` there is nobody to compare, and the decisions are those of the estimator.

    Metadata of `fit` is routed to both estimators where scikit-learn's routing is on. Where it is off, weights reach an
    estimator, or the last step of a pipeline, that takes them.
    """

    def __init__(
        self, estimator: Any = None, *, constraints: Any = "demographic_parity", global_tol: float = 0.01,
        local_tol: Any = float("inf"), gap: str = "pairwise", temperature: float = 0.002, randomised: bool = False,
        calibrate: bool | str = "auto", prefit: bool = False, calibration: Any = 0.5, group_estimator: Any = None,
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.estimator is None or get_tags(self.estimator).input_tags.sparse
        return tags

    def get_metadata_routing(self) -> MetadataRouter:
        """Return what goes where: `fit` of this object passes on to `fit` of both estimators."""
        router = MetadataRouter(owner=self).add_self_request(self)
        for name, model in self._models().items():
            router.add(method_mapping=MethodMapping().add(caller="fit", callee="fit"), **{name: model})
        return router

    def _models(self) -> dict[str, Any]:
        plain = LogisticRegression(max_iter=1000)
        if get_config()["enable_metadata_routing"]:
            plain.set_fit_request(sample_weight=True)
        found = {"estimator": plain if self.estimator is None else self.estimator}
        return found if self.group_estimator is None else {**found, "group_estimator": self.group_estimator}

    def fit(
        self, X: Any, y: Any, *, sensitive_features: Any = None, clients: Any = None, sample_weight: Any = None,
        **params: Any,
    ) -> FedFACTClassifier:  # fmt: skip
        """Train the estimator and fit the adjustments.

        Parameters
        ----------
        X : array, sparse matrix or data frame, shape (n, d)
        y : array, shape (n,)
        sensitive_features : array, series, data frame or mapping, optional
            Group of each sample; each column is a family of groups.
        clients : array, shape (n,), optional
            Site of each sample.
        sample_weight : array, shape (n,), optional
        **params
            For `fit` of the estimator; one value a sample is cut to the samples that it is trained on.

        Raises
        ------
        InputError
            For input that does not fit together, and an estimator without probabilities.

        Warns
        -----
        UserWarning
            For a group, client or class that has too few samples to be held out, and weights that the estimator does
            not take; ToleranceWarning as in `FairPost`.
        """
        require_one_index(X=X, y=y, sensitive_features=sensitive_features, clients=clients, sample_weight=sample_weight)
        checked, y = validate_data(self, X, y, accept_sparse="csr", dtype=None, ensure_all_finite=False)
        check_classification_targets(y)
        y = np.asarray(y)
        n = len(y)
        self.classes_, code = np.unique(y, return_inverse=True)
        given = None if sample_weight is None else _check_sample_weight(sample_weight, checked)
        columns = None if sensitive_features is None else as_features(sensitive_features, n)
        train, held = self._split(code, columns, n, clients)
        frame = X if hasattr(X, "columns") else checked
        models = self._models()
        routed = self._routed(models, given, params)
        if self.prefit:
            if self.estimator is None:
                raise InputError("prefit=True without an estimator", "a fitted one", "pass estimator=, or prefit=False")
            check_is_fitted(self.estimator)
            _has_probabilities(self.estimator)
            self.estimator_ = self.estimator
        else:
            self.estimator_ = _trained(models["estimator"], frame, y, train, routed.estimator.fit)
        self.post_: FairPost | None = None
        if columns is None:
            return self
        if self.group_estimator is not None:
            x, extra = self._with_client(frame, clients), routed.group_estimator.fit
            self.group_names_ = {f: sorted(set(c[held].tolist())) for f, c in columns.items()}
            self.group_models_ = {f: _trained(self.group_estimator, x, c, train, extra) for f, c in columns.items()}
        own, sites = _safe_indexing(frame, held), None if clients is None else np.asarray(clients)[held]
        p, soft = self._proba(own), self._groups(own, sites)
        if self.calibration == "cross" and not self.prefit:  # nobody's rate is judged by a model that saw the row
            fold, names = _folds(code, columns, self.random_state), [str(c) for c in self.classes_.tolist()]
            p = _by_others(models["estimator"], frame, y, names, fold, routed.estimator.fit)
            soft = soft and {f: _by_others(self.group_estimator, x, c, self.group_names_[f], fold, extra)
                             for f, c in columns.items()}  # fmt: skip
        self.post_ = self._post().fit(
            p, y[held], sensitive_features={f: c[held] for f, c in columns.items()}, clients=sites,
            group_proba=soft, sample_weight=None if given is None else given[held],
            classes=self.classes_.tolist(),
        )  # fmt: skip
        return self

    def _routed(self, models: dict[str, Any], weight: Any, params: dict[str, Any]) -> Bunch:
        """Return what `fit` of each estimator is passed."""
        if get_config()["enable_metadata_routing"]:
            extra = {} if weight is None else {"sample_weight": weight}
            return process_routing(self, "fit", **params, **extra)
        name = _weight_name(models["estimator"])
        if weight is not None and not name and not self.prefit:
            kind = type(models["estimator"]).__name__
            text = f"fit of {kind} takes no sample_weight: weights count in rates and adjustments, not in its training"
            warnings.warn(text, UserWarning, stacklevel=3)
        own = params if weight is None or not name else {**params, name: weight}
        return Bunch(estimator=Bunch(fit=own), group_estimator=Bunch(fit={}))

    def _post(self, **other: Any) -> FairPost:
        shared = FairPost().get_params().keys() & self.get_params(deep=False).keys()
        return FairPost(**{**{name: getattr(self, name) for name in shared}, **other})

    def _split(
        self, code: NDArray[Any], features: Any, n: int, clients: Any = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:  # fmt: skip
        """Return rows to train on and rows to calibrate on, drawn inside each class and group.

        A group or client that no row was drawn of gives one of those it is trained on; so does a class, which keeps it.
        """
        everybody = np.arange(n)
        share = 0.0 if self.calibration == "cross" else self.calibration
        if isinstance(share, str) or not 0.0 <= share < 1.0:
            got = f"calibration = {self.calibration!r}"
            raise InputError(got, "a share in [0, 1), or 'cross'", "hold out for example 0.5")
        site, self.client_names_ = as_codes(clients, n, None)
        if self.prefit or share == 0 or features is None:
            return everybody, everybody
        keys = [("class", code), *as_features(features, n).items()]
        cell = np.unique([np.unique(key, return_inverse=True)[1] for _, key in keys], axis=1, return_inverse=True)[1]
        rng = np.random.default_rng(self.random_state)
        held = np.zeros(n, dtype=bool)
        for c in np.unique(cell):
            rows = rng.permutation(np.flatnonzero(cell == c))
            held[rows[: round(share * len(rows))]] = True
        train, few = ~held, []
        for what, key in (*keys, ("client", np.array(self.client_names_)[site])):
            for name in sorted(set(key.tolist()) - set(key[held].tolist())):
                row = rng.choice(np.flatnonzero(key == name))
                held[row] = True
                train[row] = key is code or (train & (code == code[row])).sum() == 1
                few.append(f"{what} {str(self.classes_[name] if key is code else name)!r}")
        for c in sorted(set(code.tolist()) - set(code[train].tolist())):
            train[rng.choice(np.flatnonzero(code == c))] = True
            few.append(f"class {str(self.classes_[c])!r}")
        if few:
            also = f"; {int((train & held).sum())} of them trained on as well" if (train & held).any() else ""
            named = ", ".join(few[:20]) + (f" and {len(few) - 20} more" if len(few) > 20 else "")
            text = f"too few rows to hold out a share, so that one is taken for calibration: {named}{also}"
            warnings.warn(text, UserWarning, stacklevel=3)
        return np.flatnonzero(train), np.flatnonzero(held)

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

    def _with_client(self, X: Any, clients: Any) -> Any:
        """X beside one-hot clients where there are several, for the model of the group."""
        if len(self.client_names_) < 2:
            return X
        own = one_hot(as_codes(clients, X.shape[0], self.client_names_)[0], len(self.client_names_))
        if sparse.issparse(X):
            return sparse.hstack([X, own], format="csr")
        if not hasattr(X, "columns"):
            return np.hstack([X, own])
        new = {f"client={name}": own[:, k] for k, name in enumerate(self.client_names_)}
        if hasattr(X, "assign"):
            return X.assign(**new)
        import polars

        return X.with_columns(**{name: polars.Series(v) for name, v in new.items()})

    def _groups(self, X: Any, clients: Any) -> dict[str, Array] | None:
        if self.group_estimator is None:
            return None
        x = self._with_client(X, clients)
        return {f: _columns(model, x, self.group_names_[f]) for f, model in self.group_models_.items()}

    def _ready(self, X: Any) -> Any:
        check_is_fitted(self, "estimator_")
        checked = validate_data(self, X, accept_sparse="csr", dtype=None, ensure_all_finite=False, reset=False)
        return X if hasattr(X, "columns") else checked

    def predict_proba(self, X: Any, *, sensitive_features: Any = None, clients: Any = None) -> Array:
        """Return the probability of each decision, shape (n, m); without groups the estimator's own probabilities.

        With ``randomised=True`` it is the probability with which `predict` decides each class. Without, it is
        ``softmax(z / temperature)`` of the adjusted scores: its largest is what `predict` decides, and its size says
        only how far the row is from another decision. Neither is a probability of the label: ``estimator_`` has those.
        """
        require_one_index(X=X, sensitive_features=sensitive_features, clients=clients)
        X = self._ready(X)
        p = self._proba(X)
        if self.post_ is None:
            return p
        return self.post_.decide(p, sensitive_features=sensitive_features, clients=clients,
                                 group_proba=self._groups(X, clients))  # fmt: skip

    def predict(
        self, X: Any, *, sensitive_features: Any = None, clients: Any = None, ids: Any = None,
        random_state: int | None = None,
    ) -> NDArray[Any]:  # fmt: skip
        """Return decisions, shape (n,).

        `ids` and `random_state` are those of `FairPost.predict`. Without ids, rows of X are hashed with group and
        client.
        """
        require_one_index(X=X, sensitive_features=sensitive_features, clients=clients, ids=ids)
        X = self._ready(X)
        if self.post_ is None:
            return np.asarray(self.classes_[self._proba(X).argmax(1)])
        if self.randomised and ids is None:
            blind = self.group_estimator is not None or sensitive_features is None
            named = {} if blind else as_features(sensitive_features, X.shape[0])
            ids = row_ids(X, *named.values(), as_codes(clients, X.shape[0], self.client_names_)[0])
        return self.post_.predict(
            self._proba(X), sensitive_features=sensitive_features, clients=clients,
            group_proba=self._groups(X, clients), ids=ids,
            random_state=self.random_state if random_state is None else random_state,
        )  # fmt: skip

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
            Gaps are those of the first sensitive feature and the first criterion; with ``randomised=True`` they and
            accuracy are expectations over draws. Tolerances that are missed are in it, and not warned of.
        """
        data = {"calibration": (X, y, sensitive_features, clients)}
        if evaluate is not None:
            data["evaluation"] = evaluate
        read = {k: (self._ready(x), *rest) for k, (x, *rest) in data.items()}
        known = {k: (self._proba(x), self._groups(x, sites)) for k, (x, _, _, sites) in read.items()}
        rows = []
        limits = list(self.local_tol.values()) if isinstance(self.local_tol, Mapping) else self.local_tol
        inside = self.local_tol is None or bool(np.isfinite(np.asarray(limits, dtype=np.float64)).any())
        post = self._post(unknown="common", warm_start=True)
        for tol in tolerances:
            local = tol if inside else float("inf")
            post.set_params(constraints=_at(self.constraints, tol), global_tol=tol, local_tol=local)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ToleranceWarning)
                post.fit(known["calibration"][0], y, sensitive_features=sensitive_features, clients=clients,
                         classes=self.classes_.tolist(), group_proba=known["calibration"][1])  # fmt: skip
            row: dict[str, float] = {"global_tol": float(tol), "local_tol": float(local)}
            for key, (_, labels, features, sites) in read.items():
                p, soft = known[key]
                h = post.decide(p, sensitive_features=features, clients=sites, group_proba=soft)
                own = _scored(post, h, self.classes_, labels, features, sites)
                row |= {f"{key}_{name}": v for name, v in own.items()}
            rows.append(row)
        return Front(rows)


class FairScorer(BaseEstimator):  # type: ignore[misc]
    """Score a `FedFACTClassifier`, or a pipeline that ends in one, on both axes: what fairness costs, and what is left.

        score = accuracy - weight max(0, gap - tol)

    For ``GridSearchCV(model, grid, scoring=FairScorer(0.02), refit="score")`` and `cross_validate`; all numbers are
    better when larger. Groups reach it by scikit-learn's metadata routing, which has to be on.

    Parameters
    ----------
    tol : float
        Gap that costs nothing.
    weight : float
        Accuracy that a unit of gap above it is worth.

    Returns
    -------
    dict
        ``score``; ``accuracy``; ``neg_price``, the accuracy beyond that of the estimator without adjustments, mostly
        negative; ``neg_gap`` and ``neg_local_gap``, minus the largest gap of everybody and inside a client. Of
        randomised decisions expectations.
    """

    __metadata_request__score = {"estimator": UNUSED, "sensitive_features": True, "clients": True}  # noqa: RUF012

    def __init__(self, tol: float = 0.01, weight: float = 1.0) -> None:
        self.tol = tol
        self.weight = weight

    def score(
        self, estimator: Any, X: Any, y: Any, *, sensitive_features: Any = None, clients: Any = None
    ) -> dict[str, float]:  # fmt: skip
        """Return the numbers of one fitted classifier on one set of rows."""
        if isinstance(estimator, Pipeline):
            X, estimator = (estimator[:-1].transform(X) if len(estimator) > 1 else X), estimator[-1]
        post = getattr(estimator, "post_", None)
        if post is None or sensitive_features is None:
            raise InputError(
                f"{type(estimator).__name__} to score, groups {'not ' if sensitive_features is None else ''}given",
                "a FedFACTClassifier fitted with sensitive_features, and the groups of the rows to score",
                "set_config(enable_metadata_routing=True), ask for groups by set_fit_request, pass them to the search",
            )  # fmt: skip
        h = estimator.predict_proba(X, sensitive_features=sensitive_features, clients=clients)
        found = _scored(post, h, estimator.classes_, y, sensitive_features, clients)
        plain = estimator.estimator_.classes_[estimator.estimator_.predict_proba(X).argmax(1)]
        return {
            "score": found["accuracy"] - self.weight * max(0.0, found["global"] - self.tol),
            "accuracy": found["accuracy"], "neg_price": found["accuracy"] - float(np.mean(plain == np.asarray(y))),
            "neg_gap": -found["global"], "neg_local_gap": -found["local_max"],
        }  # fmt: skip

    __call__ = score


def _scored(post: FairPost, h: Array, classes: Any, labels: Any, features: Any, sites: Any) -> dict[str, float]:
    """Return accuracy and gaps of the first feature and criterion, in expectation where decisions are drawn."""
    n = len(h)
    if not post.randomised:
        h = one_hot(h.argmax(1), h.shape[1])
    truth = np.searchsorted(classes, np.asarray(labels))
    column = next(iter(as_features(features, n).values()))
    own = gaps(h, column, as_codes(sites, n, None)[0], post.fitted_.constraints[0].criterion, truth)
    return {"accuracy": float(h[np.arange(n), truth].mean()), **own}


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


def _has_probabilities(model: Any) -> None:
    if not hasattr(model, "predict_proba"):
        raise InputError(
            f"{type(model).__name__}, which has no predict_proba", "an estimator with class probabilities",
            "wrap it: sklearn.calibration.CalibratedClassifierCV(...)",
        )  # fmt: skip


def _trained(model: Any, X: Any, y: NDArray[Any], rows: NDArray[Any], params: dict[str, Any]) -> Any:
    _has_probabilities(model)
    own = _check_method_params(X, params, indices=rows)
    return clone(model).fit(_safe_indexing(X, rows), y[rows], **own)


def _folds(code: NDArray[Any], columns: Mapping[str, Any], seed: int | None) -> NDArray[Any]:
    """Return the fold of each row, even in each class and group; -1 for the only row of a class."""
    order = np.lexsort([np.random.default_rng(seed).random(len(code)), *columns.values(), code])
    fold = np.empty(len(code), dtype=np.int64)
    fold[order] = np.arange(len(code)) % _FOLDS
    return np.where(np.bincount(code)[code] > 1, fold, -1)


def _by_others(
    model: Any, X: Any, y: NDArray[Any], names: Sequence[str], fold: NDArray[Any], params: dict[str, Any]
) -> Array:  # fmt: skip
    """Return P(name | x) of each row by a model trained on the other folds, of fold -1 by one trained on all."""
    out = np.empty((len(y), len(names)))
    for k in np.unique(fold):
        away = np.flatnonzero(fold == k)
        one = _trained(model, X, y, np.flatnonzero((fold != k) | (k < 0)), params)
        out[away] = _columns(one, _safe_indexing(X, away), names)
    return out


def _weight_name(model: Any) -> str:
    """Return the argument of `fit` that takes weights, of a pipeline that of its last step; nothing where none does."""
    if isinstance(model, Pipeline):
        name, last = model.steps[-1]
        inner = _weight_name(last)
        return f"{name}__{inner}" if inner else ""
    return "sample_weight" if has_fit_parameter(model, "sample_weight") else ""
