"""Attackers and protocols: who is trained on, who is scored, what is refused."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from upright.contract import InputError
from upright.metrics import attacks
from upright.metrics.attacks import ATTACKERS, attack
from upright.metrics.leakage import balanced_accuracy, leakage

ALL = ("logistic", "mlp", "gbdt")


def users(seed, n=300, d=8, shift=0.0, share=0.35):
    """Labels (n,) with a fixed share of ones and a Gaussian surface (n, d) whose first two columns carry them."""
    rng = np.random.default_rng(seed)
    y = (rng.permutation(n) < share * n).astype(int)
    x = rng.normal(size=(n, d))
    x[:, :2] += shift * y[:, None]
    return x, y


class Spy:
    """A classifier that remembers the first column of what it was trained and asked on."""

    seen: list = []  # noqa: RUF012

    def fit(self, x, y):
        self.trained = set(x[:, 0].tolist())
        return self

    def predict_proba(self, x):
        Spy.seen.append((self.trained, x[:, 0].tolist()))
        return np.full((len(x), 2), 0.5)


@pytest.fixture
def spy(monkeypatch):
    Spy.seen = []
    monkeypatch.setitem(ATTACKERS, "spy", lambda seed, n_train, **shape: Spy())
    return "spy"


def test_nobody_is_scored_by_an_attacker_that_knew_them(spy):
    # catches same-user evaluation, aligned users in `cross`, held-out users in the training rows of `transfer`
    n = 90
    labels = [None if u % 9 == 0 else "ab"[u % 2] for u in range(n)]
    labelled = {u for u in range(n) if u % 9}
    x, done = np.arange(n, dtype=float)[:, None], []
    found = attack({"x": x}, labels, attackers=[spy], held_out=np.arange(n) < 60, progress=done.append)
    assert done == [1] * len(Spy.seen) == [1] * 6
    inside = {u for u in labelled if u < 60}
    scored = []
    for trained, asked in Spy.seen[:5]:
        assert trained == inside - set(asked)
        scored += asked
    assert sorted(scored) == sorted(inside)
    trained, asked = Spy.seen[5]
    assert trained == labelled - inside
    assert set(asked) == inside
    assert [one.protocol for one in found] == ["cross", "transfer"]
    for one in found:
        assert set(np.flatnonzero(one.fold >= 0).tolist()) == inside
        assert set(np.flatnonzero(~np.isnan(one.scores).any(axis=1)).tolist()) == inside
    np.testing.assert_array_equal(np.unique(found[0].fold), [-1, 0, 1, 2, 3, 4])


def test_folds_are_stratified_and_shared(spy):
    # catches folds without a small class, and attacks that cannot be compared in pairs
    labels = np.array([0] * 70 + [1] * 23)
    found = attack({"a": np.arange(93.0)[:, None], "b": np.arange(93.0)[:, None]}, labels, attackers=[spy])
    np.testing.assert_array_equal(found[0].fold, found[1].fold)
    for c in (0, 1):
        assert np.ptp(np.bincount(found[0].fold[labels == c])) <= 1
    assert np.ptp(np.bincount(found[0].fold)) <= 1


@pytest.mark.parametrize("attacker", ALL)
@pytest.mark.parametrize("width", [6, 520])
def test_nothing_is_fitted_on_the_users_of_the_fold(attacker, width):
    # one user of a fold gets absurd values; the others of that fold are scored as before to the last digit. Catches a
    # scaler, a decomposition or a chosen penalty that saw all rows
    x, y = users(3, n=80, d=width, shift=1.0)
    plain = attack({"x": x}, y, attackers=[attacker], folds=2)[0]
    odd = int(np.flatnonzero(plain.fold == 0)[0])
    x[odd] = 1e4 * (1 + np.arange(width))
    moved = attack({"x": x}, y, attackers=[attacker], folds=2)[0]
    others = np.flatnonzero((plain.fold == 0) & (np.arange(80) != odd))
    np.testing.assert_allclose(moved.scores[others], plain.scores[others], rtol=1e-12, atol=1e-12)
    outside = plain.fold == 1  # their attacker was trained on the odd user
    assert np.abs(moved.scores[outside] - plain.scores[outside]).max() > 1e-6


def test_classes_are_balanced_in_training(monkeypatch):
    # catches weights that went to the wrong class or never arrived: a 10 % class is found half of the time
    seen = []

    class Weighed(MLPClassifier):
        def fit(self, x, y, sample_weight=None):
            seen.append(np.bincount(y, weights=sample_weight))
            return super().fit(x, y, sample_weight=sample_weight)

    model = Weighed((4,), max_iter=500, learning_rate_init=0.05)
    monkeypatch.setitem(ATTACKERS, "weighed", lambda seed, n_train, **shape: make_pipeline(StandardScaler(), model))
    x, y = users(0, n=200, share=0.1)
    attack({"x": x}, y, attackers=["weighed"], folds=2)
    assert all(mass == pytest.approx([50.0, 50.0]) for mass in seen)
    x, y = users(7, n=400, d=2, shift=1.5, share=0.1)
    for one in attack({"x": x}, y, attackers=ALL, folds=2):
        recall = (one.scores.argmax(axis=1) == 1)[y == 1].mean()
        assert recall > 0.6, one.attacker


def test_unlabelled_users_change_nothing():
    # None, "" and NaN: catches an unlabelled user who is a class of their own, or who shifts folds and scalers
    x, y = users(0, n=90, shift=1.0)
    rng = np.random.default_rng(0)
    where = np.sort(rng.permutation(120)[:90])
    wide, labels = 50.0 * rng.normal(size=(120, x.shape[1])), [None, "", float("nan")] * 40
    wide[where] = x
    for place, label in zip(where.tolist(), y.tolist(), strict=True):
        labels[place] = label
    found = attack({"x": wide}, labels, attackers=["gbdt"])[0]
    plain = attack({"x": x}, y, attackers=["gbdt"])[0]
    np.testing.assert_array_equal(found.scores[where], plain.scores)
    rest = np.setdiff1d(np.arange(120), where)
    assert np.isnan(found.scores[rest]).all()
    assert (found.fold[rest] == -1).all()


@pytest.mark.parametrize("attacker", ALL)
def test_names_of_classes_change_nothing(attacker):
    # catches folds, initial weights or a positive class that follow the alphabet
    x, y = users(5, n=90, shift=0.7)
    names = {0: "z", 1: "a"}
    plain = attack({"x": x}, y, attackers=[attacker], folds=2)[0]
    named = attack({"x": x}, [names[v] for v in y.tolist()], attackers=[attacker], folds=2)[0]
    np.testing.assert_array_equal(named.fold, plain.fold)
    np.testing.assert_array_equal(named.scores, plain.scores[:, ::-1])


def test_another_surface_or_attacker_changes_no_number():
    # catches random numbers that are drawn from one running stream
    x, y = users(6, n=90, shift=0.7)
    alone = attack({"x": x}, y, attackers=["mlp"], folds=2)[0]
    several = attack({"other": x[:, :3], "x": x}, y, attackers=["gbdt", "mlp"], folds=2)
    assert [(one.surface, one.attacker) for one in several[2:]] == [("x", "gbdt"), ("x", "mlp")]
    np.testing.assert_array_equal(several[3].scores, alone.scores)
    again = attack({"x": x}, y, attackers=["mlp"], folds=2, seed=1)[0]
    assert (again.fold != alone.fold).any()


def test_lists_leak_and_sparse_is_dense():
    # top-K lists as 0/1 rows: catches a sparse path with other numbers, and one that loses the signal
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    taste = np.where((np.arange(600) < 300) == y[:, None].astype(bool), 0.02, 0.005)
    lists = (rng.random((200, 600)) < taste).astype(float)
    for found in attack({"list": sparse.csr_array(lists)}, y, attackers=ALL, folds=2):
        assert leakage(found, y)["auc"][1] > 0.7, found.attacker
    narrow = {"sparse": sparse.coo_array(lists[:, 200:400]), "dense": lists[:, 200:400]}
    of_sparse, of_dense = (attack({"x": x}, y, attackers=["logistic"], folds=2)[0] for x in narrow.values())
    np.testing.assert_array_equal(of_sparse.scores, of_dense.scores)


@pytest.mark.parametrize("surface", [np.full((60, 3), 0.1), np.zeros((60, 700)), sparse.csr_array((60, 700))])
def test_a_constant_surface_is_worth_a_guess(surface):
    # catches rounding that breaks ties, and a decomposition of nothing
    labels = np.arange(60) % 3
    for one in attack({"x": surface}, labels):
        assert leakage(one, labels) == {"auc": {0: 0.5, 1: 0.5, 2: 0.5}, "macro": 0.0, "worst": 0.0}
        assert balanced_accuracy(one, labels) == pytest.approx(1 / 3)


def test_an_attacker_that_stopped_early_is_marked(monkeypatch):
    # catches a warning that is printed, and a weak attacker that passes for evidence
    def short(seed, n_train, **shape):
        return make_pipeline(StandardScaler(), MLPClassifier((5,), max_iter=1, random_state=seed))

    monkeypatch.setitem(ATTACKERS, "short", short)
    x, y = users(0, n=60)
    assert [one.converged for one in attack({"x": x}, y, attackers=["short", "gbdt"], folds=2)] == [False, True]


def test_other_warnings_of_an_attacker_come_through(monkeypatch):
    # catches a filter that swallows everything while it looks for convergence
    class Loud(LogisticRegression):
        def fit(self, x, y):
            warnings.warn("look here", RuntimeWarning, stacklevel=1)
            return super().fit(x, y)

    monkeypatch.setitem(ATTACKERS, "loud", lambda seed, n_train, **shape: Loud())
    x, y = users(0, n=40)
    with pytest.warns(RuntimeWarning, match="look here"):
        attack({"x": x}, y, attackers=["loud"], folds=2)


GOOD = np.random.default_rng(0).normal(size=(40, 3))
HALF = (np.arange(40) % 2).tolist()
ODD = np.arange(40)[:, None] == 3


@pytest.mark.parametrize(
    ("surface", "labels", "options", "words"),
    [
        (GOOD, [1] * 40, {}, "one class only: 1"),
        (GOOD, [None] * 40, {}, "no labelled user among 40"),
        (GOOD, HALF[:39], {}, r"shape \(40, 3\) with 39 labels"),
        (GOOD, ["f"] * 39 + ["m"], {}, "'m' has 1; a class with one user"),
        (GOOD, ["f"] * 31 + ["m"] * 9, {}, "'m' has 9"),
        (GOOD, [0.5, 1.5] * 20, {}, "label 0.5 of type float"),
        (np.where(ODD, np.nan, GOOD), HALF, {}, "holds nan"),
        (sparse.csr_array(np.where(np.eye(40)[:, :3] > 0, np.inf, 0.0)), HALF, {}, "holds inf"),
        (GOOD * 1e160, HALF, {}, "holds"),
        (GOOD[:, 0], HALF, {}, r"shape \(40,\)"),
        ([["x"] * 3] * 40, HALF, {}, "surface 'x' of type list"),
        (GOOD, HALF, {"attackers": ["logistik"]}, "did you mean 'logistic'"),
        (GOOD, HALF, {"attackers": []}, "attacker ''"),
        (GOOD, HALF, {"held_out": np.ones(40, dtype=bool)}, "no labelled user aligned"),
        (GOOD, HALF, {"held_out": np.arange(40)}, "held_out of shape"),
        (GOOD, HALF, {"held_out": np.arange(40) < 6}, "too few held-out users"),
        (GOOD, HALF, {"held_out": np.arange(40) < 36}, "too few aligned users"),
        (GOOD, HALF, {"folds": 1}, "folds = 1"),
        (GOOD, HALF, {"threads": 0}, "threads = 0"),
    ],
)
def test_bad_input_is_refused(surface, labels, options, words):
    with pytest.raises(InputError, match=words):
        attack({"x": surface}, labels, **options)


def test_an_attacker_that_predicts_nan_is_refused(monkeypatch):
    class Broken(Spy):
        def predict_proba(self, x):
            return np.full((len(x), 2), np.nan)

    monkeypatch.setitem(ATTACKERS, "broken", lambda seed, n_train, **shape: Broken())
    with pytest.raises(InputError, match="predicts NaN"):
        attack({"x": GOOD}, HALF, attackers=["broken"])


def test_import_is_light():
    # catches scikit-learn or torch imported at the top: seconds for a user who only reads a report
    code = "import sys, upright.metrics.leakage; print(sorted({'sklearn', 'torch', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_attacker_learns_from_some_rows_and_scores_all(monkeypatch):
    # catches: a limit that drops users from the score, or a rare class from what is learnt
    sizes, real = [], attacks.fit_score

    def counted(*args):
        sizes.append(args)
        return real(*args)

    monkeypatch.setattr(attacks, "fit_score", counted)
    monkeypatch.setattr(attacks, "MOST_ROWS", 3_000)
    rng = np.random.default_rng(0)
    label = np.where(np.arange(6_000) < 20, "rare", "usual")
    table = rng.normal(size=(6_000, 2)) + 3.0 * (label == "rare")[:, None]
    (found,) = attacks.attack({"x": table}, label, attackers=["logistic"], folds=5)
    assert np.isfinite(found.scores).all()
    trained = [args[4] for args in sizes]
    assert [len(rows) for rows in trained] == [3_000] * 5
    assert all((label[rows] == "rare").sum() == 16 for rows in trained)
