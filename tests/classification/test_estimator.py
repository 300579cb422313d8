"""FedFACTClassifier in scikit-learn's grammar: its checks, its routing, and what it decides."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import urllib.request
import warnings

import matplotlib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict, cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from upright.classification.estimator import FairScorer, FedFACTClassifier, Front, _folds
from upright.classification.post import FairPost
from upright.contract import InputError
from upright.maths.parity.constraints import Constraint

# small worlds have tolerances below the standard error of their gaps; what is said of that is tested by FairPost
pytestmark = pytest.mark.filterwarnings("ignore::upright.classification.post.ToleranceWarning")
INF = float("inf")


def world(seed=0, n=1200, m=2, groups=2, clients=2):
    """Features of which the first follows the group, and labels that follow the features."""
    rng = np.random.default_rng(seed)
    g, k = rng.integers(0, groups, n), rng.integers(0, clients, n)
    x = rng.normal(size=(n, 4))
    x[:, 0] += 1.2 * g
    score = x[:, 0] + x[:, 1] + rng.logistic(size=n)
    return x, np.searchsorted(np.quantile(score, np.arange(1, m) / m), score), np.array([f"g{i}" for i in g]), k


def spread(decisions, g, of):
    """Largest difference between groups of the share decided as a class."""
    return np.ptp([(decisions[g == a] == of).mean() for a in np.unique(g)])


def test_every_check_of_scikit_learn_passes():
    # catches any departure from its grammar; nothing is exempt
    found = check_estimator(FedFACTClassifier(), on_skip=None, on_fail=None)
    assert [r["check_name"] for r in found if r["status"] not in ("passed", "skipped")] == []
    assert {r["check_name"] for r in found if r["status"] == "skipped"} <= {"check_array_api_input"}
    assert len(found) > 40


# -- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3])
def test_groups_are_decided_alike_on_other_data(m):
    # catches adjustments that are fitted and not served
    x, y, g, k = world(0, n=6000, m=m, groups=3)
    new, _, g_new, k_new = world(1, n=6000, m=m, groups=3)
    own = FedFACTClassifier(global_tol=0.0, random_state=0).fit(x, y, sensitive_features=g, clients=k)
    plain = FedFACTClassifier(global_tol=INF, random_state=0).fit(x, y, sensitive_features=g, clients=k)
    se = np.sqrt(0.25 * (1 / 1000 + 1 / 2000) * 2)  # 1,000 calibration and 2,000 new samples in a group
    for j in range(m):
        assert spread(own.predict(new, sensitive_features=g_new, clients=k_new), g_new, j) < 5 * se
    assert spread(plain.predict(new, sensitive_features=g_new, clients=k_new), g_new, m - 1) > 5 * se


def test_without_groups_the_decisions_are_the_estimators():
    # catches a split or an adjustment made for nobody
    x, y, g, k = world(2)
    for features in ({}, {"clients": k}):
        own = FedFACTClassifier(GaussianNB()).fit(x, y, **features)
        np.testing.assert_array_equal(own.predict(x), GaussianNB().fit(x, y).predict(x))
        np.testing.assert_array_equal(own.predict_proba(x), GaussianNB().fit(x, y).predict_proba(x))
    removed = FedFACTClassifier(GaussianNB(), global_tol=INF, calibration=0).fit(x, y, sensitive_features=g)
    np.testing.assert_array_equal(removed.predict(x, sensitive_features=g), GaussianNB().fit(x, y).predict(x))


def test_calibration_samples_are_not_trained_on_and_hold_every_cell():
    # catches a held-out part that leaks into training: a tree that saw them would be certain of every one
    x, y, g, _ = world(3)
    own = FedFACTClassifier(DecisionTreeClassifier(random_state=0), random_state=0, calibration=0.25)
    train, held = own._split(y, g, len(y))
    assert sorted([*train, *held]) == list(range(len(y)))
    for a in np.unique(g):
        for j in (0, 1):
            cell = np.flatnonzero((g == a) & (y == j))
            assert len(np.intersect1d(cell, held)) == round(0.25 * len(cell))
    own.fit(x, y, sensitive_features=g)
    accuracy = lambda rows: own.estimator_.score(x[rows], y[rows])  # noqa: E731
    assert accuracy(train) == 1.0
    assert accuracy(held) < 0.9


@pytest.mark.parametrize("constraints", ["demographic_parity", "equalized_odds"])
def test_adjustments_are_those_of_fairpost_on_the_held_out_samples(constraints):
    # catches labels, groups, clients or probabilities of other rows, and a setting that is not handed on
    x, y, g, k = world(16, m=3, groups=3)
    settings = {"global_tol": 0.03, "local_tol": 0.06, "gap": "average", "temperature": 0.01, "randomised": True}
    own = FedFACTClassifier(constraints=constraints, random_state=0, **settings)
    own.fit(x, y, sensitive_features=g, clients=k)
    _, held = own._split(y, g, len(y))
    p = own.estimator_.predict_proba(x[held])
    post = FairPost(constraints, **settings).fit(p, y[held], sensitive_features=g[held], clients=k[held])
    assert own.post_.table_.as_dict() == post.table_.as_dict()
    assert {k: v for k, v in own.post_.get_params().items() if k != "random_state"} == {
        k: v for k, v in post.get_params().items() if k != "random_state"
    }


def test_crossed_adjustments_are_those_of_fairpost_on_predictions_of_other_folds():
    # catches: a row judged by a model that saw it (a tree would be certain of it), rows of another order, a fold that
    # is left out, and an estimator that is trained on a part
    x, y, g, k = world(20, m=3, groups=3)
    y = np.array(["a", "b", "c"])[y]
    own = FedFACTClassifier(DecisionTreeClassifier(random_state=0, min_samples_leaf=5), calibration="cross",
                            random_state=0, constraints="equalized_odds")  # fmt: skip
    own.fit(x, y, sensitive_features=g, clients=k)
    fold = _folds(np.unique(y, return_inverse=True)[1], {"group": g}, 0)
    for a in np.unique(g):
        for c in "abc":
            assert np.ptp(np.bincount(fold[(g == a) & (y == c)], minlength=5)) <= 1
    p = cross_val_predict(own.estimator, x, y, cv=PredefinedSplit(fold), method="predict_proba")
    post = FairPost("equalized_odds").fit(p, y, sensitive_features=g, clients=k)
    np.testing.assert_allclose(own.post_.table_.tables[0][0], post.table_.tables[0][0], atol=1e-6)
    np.testing.assert_array_equal(own.estimator_.predict_proba(x), clone(own.estimator).fit(x, y).predict_proba(x))


def test_crossed_adjustments_leave_a_smaller_gap_of_many_groups():
    # catches: adjustments to a share of the rows under the name of all; twice the rows have 0.71 of the noise
    gap = {0.5: [], "cross": []}
    for seed in range(8):
        x, y, g, _ = world(seed, n=2000, groups=10)
        new, _, g_new, _ = world(100 + seed, n=40_000, groups=10)
        for calibration, found in gap.items():
            own = FedFACTClassifier(GaussianNB(), calibration=calibration, global_tol=0.0, random_state=seed)
            own.fit(x, y, sensitive_features=g)
            found.append(spread(own.predict(new, sensitive_features=g_new), g_new, 1))
    assert np.mean(gap["cross"]) < 0.85 * np.mean(gap[0.5])  # 0.75 here


def test_crossed_folds_of_rare_classes_and_groups_train_on_every_class():
    # catches: a fold whose training rows lack a class, a group that a blind fit has no column for
    x, y, g, _ = world(21, n=300)
    g[:2], y[2:5], y[5] = "rare", 2, 3
    for model in (None, LogisticRegression()):
        own = FedFACTClassifier(GaussianNB(), calibration="cross", group_estimator=model, random_state=0)
        own.fit(x, y, sensitive_features=g)
        found = own.predict_proba(x, **({} if model else {"sensitive_features": g}))
        assert found.shape == (300, 4)
        assert np.isfinite(found).all()


def test_a_fitted_estimator_is_used_as_it_is():
    # catches prefit that clones or trains again, and columns of another order of classes
    x, y, g, k = world(4)
    base = LogisticRegression().fit(x, y)
    weights = base.coef_.copy()
    own = FedFACTClassifier(base, prefit=True, global_tol=0.0).fit(x, y, sensitive_features=g, clients=k)
    assert own.estimator_ is base
    np.testing.assert_array_equal(base.coef_, weights)
    assert spread(own.predict(x, sensitive_features=g, clients=k), g, 1) < 4 / 500

    class Reversed(BaseEstimator):
        def __init__(self):
            self.classes_ = np.array([1, 0])

        def fit(self, x, y):
            return self

        def predict_proba(self, x):
            return base.predict_proba(x)[:, ::-1]

        def __sklearn_is_fitted__(self):
            return True

    other = FedFACTClassifier(Reversed(), prefit=True, global_tol=0.0).fit(x, y, sensitive_features=g, clients=k)
    np.testing.assert_array_equal(
        other.predict(x, sensitive_features=g, clients=k), own.predict(x, sensitive_features=g, clients=k)
    )


def test_blind_decisions_need_no_group():
    # catches a blind fit that looks at the group after all, and one that mends nothing
    x, y, g, k = world(5, n=6000)
    options = {"global_tol": 0.0, "random_state": 0}
    own = FedFACTClassifier(group_estimator=LogisticRegression(), **options)
    own.fit(x, y, sensitive_features={"sex": g}, clients=k)
    found = own.predict(x, clients=k)
    np.testing.assert_array_equal(found, own.predict(x, sensitive_features=g[::-1], clients=k))
    plain = FedFACTClassifier(**options).fit(x, y).predict(x)
    assert spread(found, g, 1) < 0.5 * spread(plain, g, 1)
    assert (found == y).mean() > 0.6


def test_a_group_too_rare_to_calibrate_on_does_not_break_a_blind_fit():
    # catches columns of the group's model that do not fit the table: one has a group that the other lacks
    x, y, g, _ = world(6, n=400)
    g[0] = "rare"
    for model, calibration in ((LogisticRegression(), 0.5), (GaussianNB(), 0.2), (GaussianNB(), 0.8)):
        own = FedFACTClassifier(group_estimator=model, calibration=calibration, random_state=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "too few rows to hold out a share")
            own.fit(x, y, sensitive_features=g)  # the rare one among calibration samples alone
        assert own.predict(x).shape == (400,)
        assert np.isfinite(own.predict_proba(x)).all()


def test_rows_of_a_fit_are_never_strangers_to_predict():
    # catches: small groups and clients that no row is held out of, so that rows that were in `fit` are refused
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(12, 80))
        x, g, k = rng.normal(size=(n, 2)), rng.zipf(1.7, n).clip(0, 9), rng.zipf(1.7, n).clip(0, 9)
        y = np.where(np.arange(n) < 2, 2, np.arange(n) % 2)
        own = FedFACTClassifier(GaussianNB(), calibration=float(rng.choice([0.1, 0.5, 0.9])), random_state=seed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            own.fit(x, y, sensitive_features=g, clients=k)
        assert own.predict(x, sensitive_features=g, clients=k).shape == (n,)
        assert set(own.post_.groups_["group"]) == {str(v) for v in g}
        assert set(own.post_.clients_) == {str(v) for v in k}
        assert own.estimator_.classes_.tolist() == [0, 1, 2]
        train, held = own._split(y, g, n, k) if not any("too few" in str(w.message) for w in said) else (None, None)
        assert train is None or {*g[held]} == {*g}


def test_groups_clients_and_classes_of_few_rows_are_named():
    # catches: a split that moves or shares a row and tells nobody
    x, y, g, k = world(17, n=200)
    g, k, y = g.astype(object), k.copy(), y.copy()
    g[3], k[4], y[5] = "rare", 7, 2
    own = FedFACTClassifier(random_state=1)
    with pytest.warns(
        UserWarning, match="one is taken for calibration: class '2', group 'rare', client '7'; 1 of them"
    ):
        train, held = own.fit(x, y, sensitive_features=g, clients=k)._split(y, g, 200, k)
    assert {3, 4, 5} <= {*held}
    assert {3, 4, 5} & {*train} == {5}  # the estimator has to know every class


def test_probabilities_are_those_of_the_decision():
    # catches probabilities of the label under the name of the decision's
    x, y, g, _ = world(7)
    own = FedFACTClassifier(random_state=0).fit(x, y, sensitive_features=g)
    h = own.predict_proba(x, sensitive_features=g)
    np.testing.assert_allclose(h.sum(1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(own.classes_[h.argmax(1)], own.predict(x, sensitive_features=g))


def test_weights_reach_the_estimator_and_the_adjustments():
    # catches weights that are lost on the way: samples without weight change nothing
    x, y, g, _ = world(8)
    weight = (np.arange(len(y)) % 3 > 0).astype(float)
    rows = weight > 0
    own = FedFACTClassifier(GaussianNB(), calibration=0, randomised=True)
    own.fit(x, y, sensitive_features=g, sample_weight=weight)
    fewer = clone(own).fit(x[rows], y[rows], sensitive_features=g[rows])
    np.testing.assert_allclose(
        own.predict_proba(x, sensitive_features=g), fewer.predict_proba(x, sensitive_features=g), atol=1e-4
    )


def test_probabilities_of_a_randomised_decision_are_how_often_it_is_drawn():
    # catches: probabilities of another decision than the one that is served
    x, y, g, _ = world(18, n=3000, m=3)
    own = FedFACTClassifier(global_tol=0.0, randomised=True, temperature=0.1, random_state=0)
    own.fit(x, y, sensitive_features=g)
    h = own.predict_proba(x, sensitive_features=g)
    drawn = np.stack([own.predict(x, sensitive_features=g, ids=np.arange(3000) + 3000 * t) for t in range(40)])
    for j in range(3):
        se = np.sqrt((h[:, j] * (1 - h[:, j])).mean() / drawn.size)
        assert abs((drawn == j).mean() - h[:, j].mean()) < 5 * se
        often = ((drawn == j).mean(0) - h[:, j]) / np.sqrt(np.maximum(h[:, j] * (1 - h[:, j]), 0.01) / 40)
        assert np.abs(often).max() < 6


# -- kinds of input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blind", [False, True])
def test_sparse_features_are_dense_ones_with_fewer_words(blind):
    # catches: a sparse matrix that is refused, or whose rows are cut, joined with clients or hashed in another way
    x, y, g, k = world(19, n=600)
    x[np.abs(x) < 0.3] = 0.0
    group = LogisticRegression() if blind else None
    own = FedFACTClassifier(group_estimator=group, randomised=True, temperature=0.1, random_state=0)
    found = []
    for kind in (np.asarray, sparse.csr_matrix, sparse.coo_array):
        fitted = clone(own).fit(kind(x), y, sensitive_features=g, clients=k)
        found.append(fitted.predict(kind(x), sensitive_features=g, clients=k))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("library", [pd, pl])
def test_pipelines_on_text_see_the_data_frame(library):
    # catches: a group estimator that is handed an array of numbers, and clients that do not reach it
    x, y, g, k = world(20, n=2000)
    frame = library.DataFrame({"a": x[:, 0], "b": x[:, 1], "colour": np.where(g == "g0", "red", "blue")})
    text = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
    own = FedFACTClassifier(make_pipeline(text, LogisticRegression()), random_state=0,
                            group_estimator=make_pipeline(clone(text), LogisticRegression()))  # fmt: skip
    own.fit(frame, y, sensitive_features=g, clients=k)
    assert own.group_models_["group"].feature_names_in_.tolist() == ["a", "b", "colour", "client=0", "client=1"]
    assert own._groups(frame, k)["group"][np.arange(2000), (g == "g1").astype(int)].mean() > 0.95
    assert spread(own.predict(frame, clients=k), g, 1) < 0.1
    alone = clone(own).fit(frame, y, sensitive_features=g)
    assert alone.group_models_["group"].feature_names_in_.tolist() == ["a", "b", "colour"]


def test_weights_reach_the_last_step_of_a_pipeline_and_the_adjustments_where_it_takes_none():
    # catches: an error of scikit-learn's grammar, and weights that are lost in silence
    x, y, g, _ = world(21)
    weight = (np.arange(len(y)) % 3 > 0).astype(float)
    rows = weight > 0
    own = FedFACTClassifier(make_pipeline(StandardScaler(with_std=False), GaussianNB()), calibration=0, randomised=True)
    fitted = own.fit(x - x.mean(0), y, sensitive_features=g, sample_weight=weight)
    bare = FedFACTClassifier(GaussianNB(), calibration=0, randomised=True)
    bare.fit((x - x.mean(0))[rows], y[rows], sensitive_features=g[rows])
    a, b = (v.predict_proba(x - x.mean(0), sensitive_features=g) for v in (fitted, bare))
    np.testing.assert_allclose(a, b, atol=1e-4)
    near = FedFACTClassifier(KNeighborsClassifier(), calibration=0, randomised=True)
    weight = np.where((x[:, 0] > 0) & (g == "g0"), 9.0, 1.0)
    with pytest.warns(UserWarning, match="fit of KNeighborsClassifier takes no sample_weight: weights count in rates"):
        near.fit(x, y, sensitive_features=g, sample_weight=weight)
    h = near.predict_proba(x, sensitive_features=g)
    rates = [np.average(h[g == a, 1], weights=weight[g == a]) for a in ("g0", "g1")]
    assert abs(rates[0] - rates[1]) <= 0.01 + 1e-6
    assert abs(h[g == "g0", 1].mean() - h[g == "g1", 1].mean()) > 0.0101


def test_a_whole_number_names_one_group_and_one_client():
    # catches: groups 1 of a fit that are strangers as 1.0, as a column of numbers becomes when one is missing elsewhere
    x, y, g, k = world(22)
    code = (g == "g1").astype(int)
    own = FedFACTClassifier(random_state=0, local_tol={1.0: 0.2}).fit(x, y, sensitive_features=code, clients=k)
    found = own.predict(x, sensitive_features=code, clients=k)
    for kind in (float, np.float32, object):
        again = own.predict(x, sensitive_features=code.astype(float).astype(kind), clients=k.astype(float).astype(kind))
        np.testing.assert_array_equal(again, found)
    assert own.post_.groups_ == {"group": ("0", "1")}
    assert own.post_.clients_ == ["0", "1"]


# -- fronts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("randomised", [False, True])
def test_the_front_scores_the_classifier_it_belongs_to(randomised):
    # catches: a front of deterministic decisions for a randomised classifier
    x, y, g, k = world(23, n=800)
    own = FedFACTClassifier(GaussianNB(), prefit=False, calibration=0, global_tol=0.02, temperature=0.1,
                            randomised=randomised).fit(x, y, sensitive_features=g, clients=k)  # fmt: skip
    (row,) = own.frontier(x, y, sensitive_features=g, clients=k, tolerances=(0.02,)).rows
    h = own.predict_proba(x, sensitive_features=g, clients=k)
    h = h if randomised else np.eye(2)[h.argmax(1)]
    assert row["calibration_accuracy"] == pytest.approx(h[np.arange(800), y].mean(), abs=1e-6)
    gap = abs(h[g == "g0", 1].mean() - h[g == "g1", 1].mean())
    assert row["calibration_global"] == pytest.approx(gap, abs=1e-6)
    assert (gap <= 0.02 + 1e-6) == randomised


@pytest.mark.parametrize("constraints", ["demographic_parity", Constraint(global_tol=0.3), [Constraint()]])
def test_the_front_gives_up_gap_for_accuracy(constraints):
    # catches tolerances that do not reach constraints which carry their own: the front is one point
    x, y, g, k = world(9, n=4000)
    own = FedFACTClassifier(constraints=constraints, random_state=0).fit(x, y, sensitive_features=g, clients=k)
    new, labels, g_new, k_new = world(10, n=2000)
    tolerances = (0.0, 0.05, 0.1, 0.2, INF)
    front = own.frontier(x, y, sensitive_features=g, clients=k, tolerances=tolerances,
                         evaluate=(new, labels, g_new, k_new))  # fmt: skip
    rows = front.rows
    assert [r["global_tol"] for r in rows] == list(tolerances)
    gap, accuracy = ([r[f"calibration_{what}"] for r in rows] for what in ("global", "accuracy"))
    for tol, found in zip(tolerances, gap, strict=True):
        assert found <= tol + 4 / 1900
    assert gap[-1] > 0.25
    assert accuracy[-1] - accuracy[0] > 0.01
    assert (np.diff(accuracy) > -0.01).all()  # the program counts by probabilities, the front by labels
    chosen = own.estimator_.predict(new)
    assert rows[-1]["evaluation_accuracy"] == pytest.approx((chosen == labels).mean())
    assert rows[-1]["evaluation_global"] == pytest.approx(spread(chosen, g_new, 1))
    local = [spread(chosen[k_new == i], g_new[k_new == i], 1) for i in (0, 1)]
    assert rows[-1]["evaluation_local_max"] == pytest.approx(max(local))
    assert rows[-1]["evaluation_local_mean"] == pytest.approx(np.mean(local))


def test_local_tolerances_go_along_where_there_are_any():
    # catches: a front without limits inside clients for a classifier that has them, None among them: that of everybody
    x, y, g, k = world(11, n=3000)
    inside = Constraint(global_tol=0.1, local_tol=0.1)
    for settings in ({"local_tol": 0.1}, {"local_tol": {"0": 0.1}}, {"constraints": inside}, {"local_tol": None}):
        own = FedFACTClassifier(random_state=0, **settings).fit(x, y, sensitive_features=g, clients=k)
        (row,) = own.frontier(x, y, sensitive_features=g, clients=k, tolerances=(0.0,)).rows
        assert row["calibration_local_max"] < 4 / 700


def test_the_front_is_drawn():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [{"global_tol": t, "calibration_global": t, "calibration_accuracy": 0.8 + t} for t in (0.0, 0.1)]
    ax = Front(rows).plot()
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[0.0, 0.8], [0.1, 0.9]])
    assert ax.get_legend() is not None
    plt.close(ax.figure)


# -- scikit-learn ----------------------------------------------------------------------------------------------------


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def test_groups_are_routed_through_pipelines_and_folds(routing):
    # catches a signature that routing does not see: the groups of other rows, or none, arrive
    x, y, g, k = world(12)
    own = FedFACTClassifier(random_state=0)
    for ask in (own.set_fit_request, own.set_predict_request, own.set_score_request):
        ask(sensitive_features=True, clients=True)
    line = make_pipeline(StandardScaler(), own)
    line.fit(x, y, sensitive_features=g, clients=k)
    found = line.predict(x, sensitive_features=g, clients=k)
    scaled = StandardScaler().fit_transform(x)
    alone = clone(own).fit(scaled, y, sensitive_features=g, clients=k)
    np.testing.assert_array_equal(found, alone.predict(scaled, sensitive_features=g, clients=k))
    assert line.score(x, y, sensitive_features=g, clients=k) == (found == y).mean()
    folds = cross_validate(line, x, y, params={"sensitive_features": g, "clients": k}, cv=3, return_estimator=True,
                           return_indices=True)  # fmt: skip
    for model, test, score in zip(folds["estimator"], folds["indices"]["test"], folds["test_score"], strict=True):
        decided = model.predict(x[test], sensitive_features=g[test], clients=k[test])
        assert score == (decided == y[test]).mean()


def test_blind_classifiers_are_scored_by_any_scorer(routing):
    # catches a blind classifier that asks for groups when it predicts
    x, y, g, _ = world(13)
    own = FedFACTClassifier(group_estimator=LogisticRegression(), random_state=0)
    own.set_fit_request(sensitive_features=True)
    found = cross_validate(own, x, y, params={"sensitive_features": g}, cv=3, scoring=["accuracy", "f1"])
    assert (found["test_accuracy"] > 0.6).all()


def test_metadata_reaches_the_inner_estimator(routing):
    # catches: weights that stop at the door, and values of samples that the estimator is not trained on
    x, y, g, _ = world(24)

    class Seen(LogisticRegression):
        def fit(self, X, y, sample_weight=None, mark=None):
            self.mark_, self.weight_, self.x_ = mark, sample_weight, X
            return super().fit(X, y, sample_weight)

    weight = np.random.default_rng(0).random(len(y))
    scale = StandardScaler().set_fit_request(sample_weight=False)
    inner = make_pipeline(scale, Seen().set_fit_request(sample_weight=True, mark=True))
    own = FedFACTClassifier(
        inner, random_state=0, group_estimator=Seen().set_fit_request(sample_weight=False, mark=True)
    )
    own.set_fit_request(sensitive_features=True, sample_weight=True)
    outer = make_pipeline(clone(scale), own)
    outer.fit(x, y, sensitive_features=g, sample_weight=weight, mark=np.arange(len(y)))
    fitted = outer[-1]
    train, _ = fitted._split(y, g, len(y))
    np.testing.assert_array_equal(fitted.estimator_[-1].mark_, train)
    np.testing.assert_array_equal(fitted.estimator_[-1].weight_, weight[train])
    np.testing.assert_array_equal(fitted.group_models_["group"].mark_, train)
    assert fitted.group_models_["group"].weight_ is None
    plain = FedFACTClassifier(random_state=0).fit(x, y, sensitive_features=g, sample_weight=weight)
    wanted = LogisticRegression(max_iter=1000).fit(x[train], y[train], weight[train])
    np.testing.assert_allclose(plain.estimator_.coef_, wanted.coef_)


def test_a_search_knows_both_axes(routing):
    # catches: a score that knows the price alone, or reads groups of other rows
    x, y, g, k = world(25, n=3000)
    own = FedFACTClassifier(random_state=0)
    for ask in (own.set_fit_request, own.set_predict_request, own.set_score_request):
        ask(sensitive_features=True, clients=True)
    line = make_pipeline(StandardScaler(), own)
    grid = {"fedfactclassifier__global_tol": [0.0, 0.1, INF]}
    best = {}
    for weight in (0.0, 10.0):
        search = GridSearchCV(line, grid, scoring=FairScorer(0.02, weight), refit="score", cv=3)
        search.fit(x, y, sensitive_features=g, clients=k)
        best[weight] = search.best_params_["fedfactclassifier__global_tol"]
    assert best == {0.0: INF, 10.0: 0.0}
    found = search.cv_results_
    assert found["mean_test_neg_gap"][0] > found["mean_test_neg_gap"][2] + 0.1
    assert found["mean_test_neg_price"][0] < -0.01
    assert found["mean_test_neg_price"][2] == pytest.approx(0.0, abs=1e-12)  # nothing is adjusted
    model = search.best_estimator_
    h, scaled = model.predict(x, sensitive_features=g, clients=k), model[:-1].transform(x)
    gap = spread(h, g, 1)
    wanted = {
        "score": (h == y).mean() - 10.0 * max(0.0, gap - 0.02), "accuracy": (h == y).mean(), "neg_gap": -gap,
        "neg_price": (h == y).mean() - model[-1].estimator_.score(scaled, y),
        "neg_local_gap": -max(spread(h[k == i], g[k == i], 1) for i in (0, 1)),
    }  # fmt: skip
    assert FairScorer(0.02, 10.0)(model, x, y, sensitive_features=g, clients=k) == pytest.approx(wanted)
    with pytest.raises(InputError, match="enable_metadata_routing=True"):
        FairScorer()(model, x, y)


SERVER = """
import http.server, json, pickle, sys
import numpy as np
model = pickle.loads(open(sys.argv[1], "rb").read())
class Door(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = model.predict(np.array(asked["x"]), sensitive_features=asked["group"], clients=asked["client"],
                              ids=asked["ids"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found.tolist()).encode())
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Door)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_a_pickled_classifier_served_over_http_decides_by_id(tmp_path):
    # catches: a hash that differs between processes, ids that change on their way through JSON, and one draw for all
    # requests of one row
    x, y, g, k = world(26, n=1500)
    x = np.eye(3)[np.arange(1500) % 3] + 0.0 * x[:, :3]  # three distinct rows
    own = FedFACTClassifier(GaussianNB(), global_tol=0.0, randomised=True, temperature=0.05)
    own.fit(x, y, sensitive_features=g, clients=k)
    ids = np.arange(1500) + 10**15
    here = own.predict(x, sensitive_features=g, clients=k, ids=ids)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(own))
    with subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True) as served:
        try:
            port = int(served.stdout.readline())

            def ask(rows, ids):
                body = {"x": x[rows].tolist(), "group": g[rows].tolist(), "client": k[rows].tolist(), "ids": ids}
                request = urllib.request.Request(f"http://127.0.0.1:{port}", json.dumps(body).encode())
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)

            order = np.random.default_rng(0).permutation(1500)
            assert ask(order, ids[order].tolist()) == here[order].tolist()
            single = [ask([i], [str(ids[i])])[0] for i in range(150)]
        finally:
            served.terminate()
    assert single == here[:150].tolist()
    same = (np.arange(150) % 3 == 0) & (g[:150] == "g0") & (k[:150] == 0)
    h = own.predict_proba(x[:150], sensitive_features=g[:150], clients=k[:150])
    assert len({*here[:150][same]}) == 2 or np.ptp(h[same][:, 1]) == 0.0


def test_clones_pickles_and_names_of_features():
    x, y, g, k = world(14)
    own = FedFACTClassifier(GaussianNB(), constraints="equalized_odds", local_tol={"0": 0.1}, random_state=1)
    own.fit(pd.DataFrame(x, columns=list("abcd")), y, sensitive_features=pd.Series(g, name="sex"), clients=k)
    assert own.feature_names_in_.tolist() == list("abcd")
    frame = pd.DataFrame(x, columns=list("abcd"))
    found = own.predict(frame, sensitive_features=g, clients=k)
    again = pickle.loads(pickle.dumps(own))
    np.testing.assert_array_equal(again.predict(frame, sensitive_features=g, clients=k), found)
    assert repr(clone(own).get_params()) == repr(own.get_params())
    with pytest.raises(ValueError, match="feature names"):
        own.predict(frame[["b", "a", "c", "d"]], sensitive_features=g, clients=k)
    polar = clone(own).fit(pl.DataFrame(frame), y, sensitive_features=pl.Series("sex", g), clients=pl.Series(k))
    np.testing.assert_array_equal(polar.predict(pl.DataFrame(frame), sensitive_features=g, clients=k), found)


def test_bad_input_is_told_in_three_parts():
    x, y, g, k = world(15, n=100)
    with pytest.raises(InputError) as caught:
        FedFACTClassifier(calibration=1.0).fit(x, y, sensitive_features=g)
    assert caught.value.args == ("calibration = 1.0", "a share in [0, 1), or 'cross'", "hold out for example 0.5")
    with pytest.raises(InputError, match="or 'cross'"):
        FedFACTClassifier(calibration="all").fit(x, y, sensitive_features=g)
    with pytest.raises(InputError) as caught:
        FedFACTClassifier(prefit=True).fit(x, y, sensitive_features=g)
    assert caught.value.args == (
        "prefit=True without an estimator", "a fitted one", "pass estimator=, or prefit=False"
    )  # fmt: skip
    with pytest.raises(NotFittedError):
        FedFACTClassifier(LogisticRegression(), prefit=True).fit(x, y, sensitive_features=g)
    with pytest.raises(NotFittedError):
        FedFACTClassifier().predict(x)
    few = LogisticRegression().fit(x, y)
    with pytest.raises(InputError) as caught:
        FedFACTClassifier(few, prefit=True).fit(x, np.arange(100) % 3, sensitive_features=g)
    assert caught.value.args == (
        "an estimator of classes 0, 1 for labels 0, 1, 2", "the same classes",
        "fit the estimator on labels of every class",
    )  # fmt: skip
    for options in ({"estimator": LinearSVC()}, {"group_estimator": make_pipeline(StandardScaler(), LinearSVC())},
                    {"estimator": LinearSVC().fit(x, y), "prefit": True}):  # fmt: skip
        with pytest.raises(InputError) as caught:
            FedFACTClassifier(**options).fit(x, y, sensitive_features=g)
        assert caught.value.args[0].endswith(", which has no predict_proba")
        assert caught.value.args[1:] == (
            "an estimator with class probabilities", "wrap it: sklearn.calibration.CalibratedClassifierCV(...)"
        )  # fmt: skip
    with pytest.raises(InputError, match="global_tol = '0"):
        FedFACTClassifier(global_tol="0.1").fit(x, y, sensitive_features=g)
    own = FedFACTClassifier().fit(x, y, sensitive_features=g, clients=k)
    with pytest.raises(InputError, match="no sensitive_features"):
        own.predict(x, clients=k)
    with pytest.raises(InputError, match="no clients, and the table has 2"):
        own.score(x, y, sensitive_features=g)
    with pytest.raises(InputError, match="for 100 samples"):
        FedFACTClassifier().fit(x, y, sensitive_features=g[1:])
