"""Post-processing of probabilities in scikit-learn's grammar: the best decisions under stated gaps between groups."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from upright.classification.draws import row_ids, uniforms
from upright.classification.fitting import fit_table, named_constraints
from upright.classification.inputs import (
    Array,
    Ints,
    as_codes,
    as_features,
    as_labels,
    as_probabilities,
    as_seed,
    classes_in,
    require_one_index,
    some,
)
from upright.contract import InputError

__all__ = ["FairPost", "ToleranceWarning"]


class ToleranceWarning(UserWarning):
    """A tolerance is missed, is smaller than chance, or cannot be asked for."""


class FairPost(BaseEstimator):  # type: ignore[misc]
    """Decide from class probabilities so that groups differ by at most a stated gap, at the least loss of accuracy.

    Problem
    -------
    ``max E <p, h>`` over decisions h with ``|D_u(h)| <= global_tol`` for everybody and ``<= local_tol`` inside each
    client, for any number of classes, groups and clients; see `upright.maths.parity.program`.

    Parameters
    ----------
    constraints : str, Constraint, sequence of them, or mapping of sensitive feature to any of these
        ``demographic_parity``, ``equal_opportunity``, ``equalized_odds`` (true and false positive rates) or
        ``equalized_odds_cells`` (every cell). A plain one holds for every sensitive feature that is passed.
    global_tol, local_tol : float
        For constraints given by name: largest gap for everybody, and inside each client (a number, one a client in the
        order of ``clients_``, or a mapping of client to number, in which other clients have no limit). Infinity removes
        the constraint; None takes `global_tol`.
    gap : {"pairwise", "average"}
        Between any two groups, or of each group to the average.
    temperature : float
        beta of the randomised decision, positive; costs at most ``beta log m`` of accuracy.
    randomised : bool
        Whether `predict` draws from the randomised decision, which meets the tolerances in expectation on the
        calibration data. False takes the most probable class, and tightens tolerances by what that exceeds them; where
        that does not help, `fit` warns.
    calibrate : bool or "auto"
        Whether probabilities are fitted to the labels of each group first (``softmax(log p A + b)``). ``auto`` does so
        for criteria that condition on the label.
    unknown : {"error", "common"}
        What `predict` does with a group or a client that the fit did not see: refuse, or treat it as the average group
        and as a client without adjustments of its own.
    random_state : int or None
        Of the draws of a randomised `predict`; None takes a seed that `fit` draws once and keeps.
    warm_start : bool
        Whether `fit` starts from the prices of the fit before it: for fronts over tolerances on the same data.

    Attributes
    ----------
    table_ : FairTable
        All that a prediction needs; ``table_.save("table.json")``.
    report_ : list of dict
        Each constrained contrast: tolerance, gap on the calibration data and its standard error, price (accuracy lost
        for a unit of tolerance); None where a group is empty, or without a label that the criterion conditions on: then
        the constraint is left out.
    left_out_, small_, conflicts_ : list of dict
        Which constraints those are, and why; groups at clients that are too small to certify (lemma B.7); clients whose
        local price pulls against the global one.
    missed_ : float
        By how much deterministic decisions exceed a tolerance at any level, on the calibration data; 0 below half a
        point. Groups can be indifferent between decisions, under equalized odds and where scores are few: then only
        ``randomised=True`` meets the tolerance.
    kkt_, duality_gap_, n_iter_, converged_
        Of the solver.

    Guarantee
    ---------
    ``decide(...)`` on the calibration data has every constrained gap within its tolerance plus ``kkt_`` (1e-6 when it
    converged). For equal opportunity and equalized odds, rates count samples by the (calibrated) probability of their
    label, not by the label. With ``group_proba`` gaps are those of the estimated memberships: how far the true groups
    lie apart depends on how good the estimate is. On other data gaps differ by sampling: see ``small_`` and the report
    of an audit.
    """

    def __init__(
        self, constraints: Any = "demographic_parity", *, global_tol: float = 0.01, local_tol: Any = float("inf"),
        gap: str = "pairwise", temperature: float = 0.002, randomised: bool = False, calibrate: bool | str = "auto",
        unknown: str = "error", random_state: int | None = None, warm_start: bool = False,
    ) -> None:  # fmt: skip
        self.constraints = constraints
        self.global_tol = global_tol
        self.local_tol = local_tol
        self.gap = gap
        self.temperature = temperature
        self.randomised = randomised
        self.calibrate = calibrate
        self.unknown = unknown
        self.random_state = random_state
        self.warm_start = warm_start

    def fit(
        self, proba: Any, y: Any = None, *, sensitive_features: Any, clients: Any = None, group_proba: Any = None,
        sample_weight: Any = None, classes: Sequence[Any] | None = None,
    ) -> FairPost:  # fmt: skip
        """Solve the program on calibration data.

        Parameters
        ----------
        proba : array, shape (n, m)
            Class probabilities of any model, on data it was not trained on.
        y : array, shape (n,), optional
            Labels: needed for `calibrate`, and by criteria that condition on the label.
        sensitive_features : array, series, data frame or mapping
            Group of each sample; each column is a family of groups.
        clients : array, shape (n,), optional
            Site of each sample; without it everybody is one client.
        group_proba : mapping of feature to array, shape (n, G), or one array, optional
            Estimates of P(group | x, client), columns in the order of ``groups_``: the decision then never sees a
            group (attribute-blind), and gaps are weighted by these estimates.
        sample_weight : array, shape (n,), optional
        classes : sequence, optional
            Names of the columns; by default the sorted labels, or 0 to m - 1.

        Raises
        ------
        InputError
            For everything that is wrong with the input.

        Warns
        -----
        ToleranceWarning
            For a default decision that misses its tolerance by more than 0.01 at a level, with the number; for a
            tolerance below the standard error of its gap; for constraints that are left out.
        """
        given = {"sensitive_features": sensitive_features, "clients": clients, "sample_weight": sample_weight}
        require_one_index(proba=proba, y=y, **given)
        p = as_probabilities(proba)
        n, m = p.shape
        found = list(range(m)) if y is None else classes_in(y, n)
        named: list[Any] = found if classes is None else list(classes)
        if len(named) != m:
            raise InputError(
                f"{m} columns of probabilities for classes {some(named)}", "one column a class",
                "pass classes= in the order of the columns",
            )  # fmt: skip
        columns = as_features(sensitive_features, n)
        client, names = as_codes(clients, n, None)
        if self.calibrate not in (True, False, "auto"):
            raise InputError(f"calibrate = {self.calibrate!r}", "True, False or 'auto'", "choose one of the three")
        wanted = named_constraints(self.constraints, list(columns), self.global_tol, self.local_tol, self.gap)
        if not wanted:
            raise InputError("no constraints", "one or more", "for example constraints='demographic_parity'")
        label = None if y is None else as_labels(y, n, named)
        by_label = [c.criterion for _, c, _ in wanted if c.criterion != "demographic_parity"]
        calibrate = bool(by_label) if self.calibrate == "auto" else bool(self.calibrate)
        if calibrate and label is None:
            raise InputError(
                f"{by_label[0] if by_label else 'calibrate=True'} without labels",
                "labels of the calibration data as y", "pass y, or set calibrate=False to trust the probabilities",
            )  # fmt: skip
        if self.unknown not in ("error", "common"):
            raise InputError(f"unknown = {self.unknown!r}", "'error' or 'common'", "choose one of the two")
        groups = {f: sorted(set(c.tolist())) for f, c in columns.items()}
        codes = {f: np.searchsorted(groups[f], c) for f, c in columns.items()}
        weight = _weight(sample_weight, n)
        soft = None if group_proba is None else _soft(group_proba, {f: groups[f] for f, _, _ in wanted}, n)
        fitted = fit_table(
            p, codes, groups, client, names, wanted, named, y=label, members=soft, weight=weight,
            temperature=self.temperature, randomised=self.randomised, calibrate=calibrate,
            start=getattr(self, "fitted_", None) if self.warm_start else None,
        )  # fmt: skip
        if not fitted.solution.converged:
            warnings.warn(
                f"the program stopped after {fitted.solution.iterations} steps with a violation of "
                f"{fitted.solution.kkt:.2g}; a higher temperature converges more easily",
                ConvergenceWarning, stacklevel=2,
            )  # fmt: skip
        for text in ("" if self.randomised else fitted.misses(), fitted.uncertain(), fitted.vanished()):
            if text:
                warnings.warn(text, ToleranceWarning, stacklevel=2)
        self.seed_ = secrets.randbits(63) if self.random_state is None else as_seed(self.random_state)
        self.classes_, self.blind_ = np.asarray(named), soft is not None
        self.fitted_, self.table_ = fitted, fitted.table
        self.groups_, self.clients_ = dict(fitted.table.groups), list(fitted.table.clients)
        self.report_, self.left_out_ = fitted.report, fitted.left_out
        self.small_, self.conflicts_, self.missed_ = fitted.small, fitted.conflicts, fitted.missed()
        self.kkt_, self.duality_gap_ = fitted.solution.kkt, fitted.solution.duality_gap
        self.n_iter_, self.converged_ = fitted.solution.iterations, fitted.solution.converged
        return self

    def scores(
        self, proba: Any, *, sensitive_features: Any = None, clients: Any = None, group_proba: Any = None
    ) -> Array:
        """Return the adjusted scores z, shape (n, m), the largest decided; what the fit did not see is refused."""
        return self.table_.scores(*self._read(proba, sensitive_features, clients, group_proba))

    def _read(self, proba: Any, sensitive_features: Any, clients: Any, group_proba: Any) -> tuple[Any, Any, Ints]:
        """Return probabilities, membership of each feature, and the place of each client."""
        if not hasattr(self, "table_"):
            raise NotFittedError("FairPost is not fitted: call fit with calibration data first")
        p = as_probabilities(proba, len(self.classes_))
        n = len(p)
        if self.blind_:
            if group_proba is None:
                raise InputError("no group_proba", "P(group | x) as in fit", "pass group_proba: this fit is blind")
            members = _soft(group_proba, self.groups_, n)
        else:
            if sensitive_features is None and self.groups_:
                raise InputError(
                    "no sensitive_features", f"the group of each sample: {some(list(self.groups_))}",
                    "pass them; to decide without, fit with group_proba (group_estimator of FedFACTClassifier)",
                )  # fmt: skip
            columns = as_features(sensitive_features, n) if sensitive_features is not None else {}
            if len(self.groups_) == 1 and len(columns) == 1:
                columns = {next(iter(self.groups_)): next(iter(columns.values()))}
            members = self.table_.members({f: self.table_.place(f, columns, self.unknown) for f in self.groups_})
        return p, members, self._client(clients, n)

    def _client(self, clients: Any, n: int) -> Ints:
        if clients is None:
            known = len(self.clients_)
            if known > 1 and self.unknown == "error":
                raise InputError(f"no clients, and the table has {known}", "the client of each sample", "pass clients=")
            return np.full(n, 0 if known == 1 else -1, dtype=np.int64)
        codes, _ = as_codes(clients, n, self.clients_)
        if (codes < 0).any() and self.unknown == "error":
            strangers = sorted(set(np.asarray(clients, dtype=object)[codes < 0].astype(str).tolist()))
            raise InputError(
                f"clients that the fit did not see: {some(strangers)}", some(self.clients_, 20),
                "fit with samples of these clients, or set unknown='common' to use the adjustments that all share",
            )  # fmt: skip
        return codes

    def decide(self, proba: Any, **features: Any) -> Array:
        """Return ``softmax(z / temperature)``, shape (n, m): what the guarantee speaks of.

        With ``randomised=True`` the probability with which `predict` decides each class; without, its largest is what
        `predict` decides. It is no probability of the label.
        """
        return self.table_.decide(self.scores(proba, **features))

    def predict(
        self, proba: Any, *, sensitive_features: Any = None, clients: Any = None, group_proba: Any = None,
        ids: Any = None, random_state: int | None = None,
    ) -> NDArray[Any]:  # fmt: skip
        """Return decisions, shape (n,): the largest score, or a draw from `decide` when randomised.

        Parameters
        ----------
        proba, sensitive_features, clients, group_proba
            As in `fit`.
        ids : array, shape (n,), optional
            Numbers or text that name who is decided about, for randomised decisions: a draw is a hash of the id under
            the seed, so that one row or a million, in any order, give the same decisions, and nobody draws again by
            changing a row. Without ids the row's values (probabilities to nine digits, group and client) and its number
            among equal rows of the call are hashed: equal rows that come one a call then share one draw.
        random_state : int, optional
            Seed of the draws; by default that of the constructor, and without one ``seed_``.
        """
        p, members, client = self._read(proba, sensitive_features, clients, group_proba)
        z = self.table_.scores(p, members, client)
        if not self.randomised:
            return np.asarray(self.classes_[z.argmax(1)])
        if ids is None:
            ids = row_ids(*(np.round(v, 9) for v in (p, *members.values())), client)
        seed = next(s for s in (random_state, self.random_state, self.seed_) if s is not None)
        h = np.cumsum(self.table_.decide(z), axis=1)
        draw = uniforms(ids, as_seed(seed), len(z))[:, None]
        return np.asarray(self.classes_[np.minimum((h < draw).sum(1), h.shape[1] - 1)])


def _weight(given: Any, n: int) -> Array:
    if given is None:
        return np.ones(n)
    try:
        weight = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("sample_weight that is not numbers", f"{n} numbers", "correct them") from None
    if weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.sum() > 0:
        raise InputError(
            f"sample_weight of shape {weight.shape}", f"{n} finite numbers of at least 0, not all 0", "correct them"
        )
    return weight


def _soft(given: Any, groups: Mapping[str, Sequence[str]], n: int) -> dict[str, Array]:
    given = given if isinstance(given, Mapping) else {next(iter(groups)): given}
    found = {}
    for f, names in groups.items():
        if f not in given:
            raise InputError(f"no group_proba of {f!r}", some(list(groups)), "give one array to each feature")
        found[f] = as_probabilities(given[f], len(names)) if len(names) > 1 else np.ones((n, 1))
        if len(found[f]) != n:
            raise InputError(f"{len(found[f])} rows of group_proba for {n} samples", f"{n} rows", "give one a sample")
    return found
