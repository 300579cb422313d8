"""FedFACTClassifier in scikit-learn's grammar: its checks, its routing, and what it decides."""

from __future__ import annotations

import pickle

import matplotlib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from upright.classification.estimator import FedFACTClassifier, Front
from upright.classification.post import FairPost
from upright.contract import InputError
from upright.maths.parity.constraints import Constraint

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
    own = FedFACTClassifier(group_estimator=LogisticRegression(), random_state=0).fit(x, y, sensitive_features=g)
    assert own.predict(x).shape == (400,)
    for calibration in (0.2, 0.8):  # among training samples alone, among calibration samples alone
        own = FedFACTClassifier(group_estimator=GaussianNB(), calibration=calibration, random_state=0)
        assert np.isfinite(own.fit(x, y, sensitive_features=g).predict_proba(x)).all()


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


# -- fronts ----------------------------------------------------------------------------------------------------------


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
    x, y, g, k = world(11, n=3000)
    inside = Constraint(global_tol=0.1, local_tol=0.1)
    for settings in ({"local_tol": 0.1}, {"local_tol": {"0": 0.1}}, {"constraints": inside}):
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
    assert caught.value.args == ("calibration = 1.0", "a share in [0, 1)", "hold out for example 0.5")
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
    own = FedFACTClassifier().fit(x, y, sensitive_features=g, clients=k)
    with pytest.raises(InputError, match="no sensitive_features"):
        own.predict(x, clients=k)
    with pytest.raises(InputError, match="no clients, and the table has 2"):
        own.score(x, y, sensitive_features=g)
    with pytest.raises(InputError, match="for 100 samples"):
        FedFACTClassifier().fit(x, y, sensitive_features=g[1:])
