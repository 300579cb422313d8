"""Attribute inference: signals planted and absent, who is trained on, who is scored, what a user reads."""

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
from upright.metrics import leakage as stats
from upright.metrics import privacy
from upright.metrics.attacks import ATTACKERS, code_labels

ALL = ("logistic", "mlp", "gbdt")


def users(seed, n=300, d=8, shift=0.0, share=0.35):
    """Labels (n,) with a fixed share of ones and a Gaussian surface (n, d) whose first two columns carry them."""
    rng = np.random.default_rng(seed)
    y = (rng.permutation(n) < share * n).astype(int)
    x = rng.normal(size=(n, d))
    x[:, :2] += shift * y[:, None]
    return x, y


def quick(seed, n_train, **shape):
    """One logistic regression without inner folds, for simulations."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced"))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setitem(ATTACKERS, "fast", quick)
    return "fast"


# -- signals that are there, and signals that are not -----------------------------------------------------------------


def test_a_planted_attribute_is_found_by_all():
    # the attribute written into two dimensions: catches an attacker that does not learn, shuffled rows, a wrong class
    x, y = users(0, n=300, d=12, shift=3.0)
    found = privacy.attribute_inference(x, y, draws=200, permutations=200)
    assert found.worst().macro_auc > 0.98
    assert all(row.macro_auc > 0.93 for row in found.rows)
    assert all(row.p == pytest.approx(1 / 201) and row.converged for row in found.rows)
    assert found.p_max == pytest.approx(1 / 201)
    assert all(row.low <= row.macro_auc <= row.high for row in found.rows)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permuted_labels_stay_inside_the_band(seed):
    # the same surface without its labels: catches labels that leak into the scores
    x, y = users(seed, n=200, d=12, shift=3.0)
    placebo = np.random.default_rng([seed, 5]).permutation(y)
    found = privacy.attribute_inference(x, placebo, draws=50, permutations=400, seed=seed)
    low, high = found.chance_band()
    assert all(low < row.macro_auc < high for row in found.rows)
    assert found.p_max > 0.05


def test_mean_matching_fools_the_linear_attacker_alone():
    # one mean, other spreads: a suite that reports logistic regression, or an average, calls it private. The means are
    # matched on other users: matched on these, even logistic regression shows the artefact (AUC 0.33)
    rng = np.random.default_rng(4)
    y = (rng.permutation(1200) < 360).astype(int)

    def embeddings(labels):
        x = rng.normal(size=(labels.size, 8))
        x[labels == 1, :3] *= 2.5
        x[labels == 1] += 1.0
        return x

    x, other, theirs = embeddings(y), embeddings(np.arange(20_000) % 2), np.arange(20_000) % 2
    x[y == 1] += other[theirs == 0].mean(axis=0) - other[theirs == 1].mean(axis=0)
    found = privacy.attribute_inference(x, y, draws=50, permutations=100)
    by = {row.attacker: row for row in found.rows}
    assert by["logistic"].leakage < 0.125  # 5 standard errors of 0.025, measured over 40 seeds
    assert by["mlp"].macro_auc > 0.8
    assert by["gbdt"].macro_auc > 0.8
    assert found.worst().attacker != "logistic"
    assert found.worst().leakage > 0.3


def root(matrix, power):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**power) @ vectors.T


def align(x, y, fit):
    """Give both classes one mean and one covariance, estimated on the users in `fit`."""
    means = [x[fit & (y == c)].mean(axis=0) for c in (0, 1)]
    spreads = [np.cov(x[fit & (y == c)].T) for c in (0, 1)]
    out = x.copy()
    for c in (0, 1):
        move = root(spreads[c], -0.5) @ root((spreads[0] + spreads[1]) / 2, 0.5)
        out[y == c] = (means[0] + means[1]) / 2 + (x[y == c] - means[c]) @ move
    return out


def test_users_of_the_defence_show_an_artefact_and_others_the_leak():
    # catches a suite that evaluates on aligned users: AUC near 0 there, above 1/2 on users outside
    x, y = users(1, n=800, d=24, shift=0.8)
    x[y == 1, 4:8] *= 1.5
    fit = np.random.default_rng(2).random(800) < 0.5
    moved = align(x, y, fit)
    own = [label if used else None for label, used in zip(y.tolist(), fit.tolist(), strict=True)]
    options = {"attackers": ("logistic", "mlp"), "draws": 50, "permutations": 200}
    same = privacy.attribute_inference(moved, own, holdout="none", allow_same_users=True, **options)
    real = privacy.attribute_inference(moved, y, held_out=~fit, **options)
    for row in same.rows:
        assert row.macro_auc < 0.4
        assert row.leakage > 0.1
        assert row.note == "not evidence"
    held = {row.attacker: row for row in real.rows if row.protocol == "cross"}
    assert held["mlp"].macro_auc > 0.6
    assert all(row.macro_auc > 0.5 and row.note == "" for row in held.values())
    assert real.worst().protocol == "cross"


@pytest.mark.parametrize("protocol", ["cross", "transfer"])
def test_p_is_uniform_where_there_is_nothing(protocol, fast):
    # named seeds, 5 standard errors. Without the sqrt(2) of `cross` 39 % of p lie below 0.2 and 18 % below 0.05
    studies, values = 250, []
    for seed in range(studies):
        x, y = users([seed, 9], n=120 if protocol == "cross" else 180, d=6)
        held_out = None if protocol == "cross" else np.arange(180) < 120
        found = privacy.attack({"x": x}, y, attackers=[fast], held_out=held_out, seed=seed)[-1]
        assert found.protocol == protocol
        rows = np.flatnonzero(found.fold >= 0)
        null = stats.permuted([found], code_labels(y), rows, 199, seed)[0]
        values.append(stats.p_value(null, privacy.leakage(found, y)["macro"]))
    p = np.array(values)
    for level in (0.05, 0.2, 0.5):
        assert abs((p <= level).mean() - level) < 5 * (level * (1 - level) / studies) ** 0.5
    assert abs(p.mean() - 0.5) < 5 * (1 / 12 / studies) ** 0.5


# -- who is trained on, and who is scored ---------------------------------------------------------------------------


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
    held_out = np.arange(n) < 60
    labelled = {u for u in range(n) if u % 9}
    x = np.arange(n, dtype=float)[:, None]
    cross, transfer = privacy.attack({"x": x}, labels, attackers=[spy], held_out=held_out)
    assert len(Spy.seen) == 6
    inside = {u for u in labelled if u < 60}
    scored = []
    for trained, asked in Spy.seen[:5]:
        assert trained == inside - set(asked)
        scored += asked
    assert sorted(scored) == sorted(inside)
    trained, asked = Spy.seen[5]
    assert trained == labelled - inside
    assert set(asked) == inside
    for one in (cross, transfer):
        assert set(np.flatnonzero(one.fold >= 0).tolist()) == inside
        assert set(np.flatnonzero(~np.isnan(one.scores).any(axis=1)).tolist()) == inside
    np.testing.assert_array_equal(np.unique(cross.fold), [-1, 0, 1, 2, 3, 4])


def test_folds_are_stratified_and_shared(spy):
    # catches folds without a small class, and attacks that cannot be compared in pairs
    labels = np.array([0] * 70 + [1] * 23)
    found = privacy.attack({"a": np.arange(93.0)[:, None], "b": np.arange(93.0)[:, None]}, labels, attackers=[spy])
    np.testing.assert_array_equal(found[0].fold, found[1].fold)
    for c in (0, 1):
        count = np.bincount(found[0].fold[labels == c])
        assert count.max() - count.min() <= 1
    assert np.ptp(np.bincount(found[0].fold)) <= 1


@pytest.mark.parametrize("attacker", ALL)
@pytest.mark.parametrize("width", [6, 520])
def test_nothing_is_fitted_on_the_users_of_the_fold(attacker, width):
    # one user of a fold gets absurd values; the others of that fold are scored as before to the last digit. Catches a
    # scaler, a decomposition or a chosen penalty that saw all rows
    x, y = users(3, n=80, d=width, shift=1.0)
    plain = privacy.attack({"x": x}, y, attackers=[attacker], folds=2)[0]
    odd = int(np.flatnonzero(plain.fold == 0)[0])
    x[odd] = 1e4 * (1 + np.arange(width))
    moved = privacy.attack({"x": x}, y, attackers=[attacker], folds=2)[0]
    others = np.flatnonzero((plain.fold == 0) & (np.arange(80) != odd))
    np.testing.assert_allclose(moved.scores[others], plain.scores[others], rtol=1e-12, atol=1e-12)
    outside = plain.fold == 1  # their attacker was trained on the odd user
    assert np.abs(moved.scores[outside] - plain.scores[outside]).max() > 1e-6


def test_the_scaler_holds_the_means_of_the_training_rows(monkeypatch):
    # the same from the other side: catches surfaces scaled before they are split
    kept = []

    def keep(seed, n_train, **shape):
        kept.append(quick(seed, n_train))
        return kept[-1]

    monkeypatch.setitem(ATTACKERS, "keep", keep)
    x, y = users(3, n=60, d=3)
    found = privacy.attack({"x": x}, y, attackers=["keep"], folds=3)[0]
    for f, model in enumerate(kept):
        np.testing.assert_allclose(model[0].mean_, x[found.fold != f].mean(axis=0), atol=1e-12)


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
    privacy.attack({"x": x}, y, attackers=["weighed"], folds=2)
    assert all(mass == pytest.approx([50.0, 50.0]) for mass in seen)
    for attacker in ALL:
        x, y = users(7, n=400, d=2, shift=1.5, share=0.1)
        one = privacy.attack({"x": x}, y, attackers=[attacker], folds=2)[0]
        recall = (one.scores.argmax(axis=1) == 1)[y == 1].mean()
        assert recall > 0.6, attacker


def test_unlabelled_users_change_nothing():
    # None, "" and NaN: catches an unlabelled user who is a class of their own, or who shifts folds and scalers
    x, y = users(0, n=90, shift=1.0)
    rng = np.random.default_rng(0)
    where = np.sort(rng.permutation(120)[:90])
    wide, labels = 50.0 * rng.normal(size=(120, x.shape[1])), [None, "", float("nan")] * 40
    wide[where] = x
    for place, label in zip(where.tolist(), y.tolist(), strict=True):
        labels[place] = label
    found = privacy.attack({"x": wide}, labels, attackers=["gbdt"])[0]
    plain = privacy.attack({"x": x}, y, attackers=["gbdt"])[0]
    np.testing.assert_array_equal(found.scores[where], plain.scores)
    rest = np.setdiff1d(np.arange(120), where)
    assert np.isnan(found.scores[rest]).all()
    assert (found.fold[rest] == -1).all()


@pytest.mark.parametrize("attacker", ALL)
def test_names_of_classes_change_nothing(attacker):
    # catches folds, initial weights or a positive class that follow the alphabet
    x, y = users(5, n=90, shift=0.7)
    names = {0: "z", 1: "a"}
    plain = privacy.attack({"x": x}, y, attackers=[attacker], folds=2)[0]
    named = privacy.attack({"x": x}, [names[v] for v in y.tolist()], attackers=[attacker], folds=2)[0]
    np.testing.assert_array_equal(named.fold, plain.fold)
    np.testing.assert_array_equal(named.scores, plain.scores[:, ::-1])


def test_another_surface_or_attacker_changes_no_number():
    # catches random numbers that are drawn from one running stream
    x, y = users(6, n=90, shift=0.7)
    alone = privacy.attack({"x": x}, y, attackers=["mlp"], folds=2)[0]
    several = privacy.attack({"other": x[:, :3], "x": x}, y, attackers=["gbdt", "mlp"], folds=2)
    assert [(one.surface, one.attacker) for one in several[2:]] == [("x", "gbdt"), ("x", "mlp")]
    np.testing.assert_array_equal(several[3].scores, alone.scores)
    again = privacy.attack({"x": x}, y, attackers=["mlp"], folds=2, seed=1)[0]
    assert (again.fold != alone.fold).any()


# -- surfaces -------------------------------------------------------------------------------------------------------


def test_lists_leak_and_sparse_is_dense():
    # top-K lists as 0/1 rows: catches a sparse path with other numbers, and one that loses the signal
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    taste = np.where((np.arange(600) < 300) == y[:, None].astype(bool), 0.02, 0.005)
    lists = (rng.random((200, 600)) < taste).astype(float)
    for attacker in ALL:
        found = privacy.attack({"list": sparse.csr_array(lists)}, y, attackers=[attacker], folds=2)[0]
        assert privacy.leakage(found, y)["auc"][1] > 0.7, attacker
    narrow = sparse.coo_array(lists[:, 200:400])
    of_sparse = privacy.attack({"x": narrow}, y, attackers=["logistic"], folds=2)[0]
    of_dense = privacy.attack({"x": lists[:, 200:400]}, y, attackers=["logistic"], folds=2)[0]
    np.testing.assert_array_equal(of_sparse.scores, of_dense.scores)


@pytest.mark.parametrize("surface", [np.full((60, 3), 0.1), np.zeros((60, 700)), sparse.csr_array((60, 700))])
def test_a_constant_surface_is_worth_a_guess(surface):
    # catches rounding that breaks ties, and a decomposition of nothing
    found = privacy.attribute_inference(surface, np.arange(60) % 3, draws=20, permutations=20)
    for row in found.rows:
        assert row.auc == {0: 0.5, 1: 0.5, 2: 0.5}
        assert (row.leakage, row.worst, row.p) == (0.0, 0.0, 1.0)
        assert row.balanced_accuracy == pytest.approx(1 / 3)
    assert found.p_max == 1.0


def test_several_classes():
    # one class of three stands apart: catches a macro value that hides it, and a worst value that does not find it
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"])[rng.permutation(np.arange(180) % 3)]
    x = rng.normal(size=(180, 4))
    x[labels == "c", 0] += 6.0
    found = privacy.attribute_inference(x, labels, draws=20, permutations=50)
    for row in found.rows:
        assert row.auc["c"] > 0.97
        assert row.worst == pytest.approx(row.auc["c"] - 0.5)
        assert row.leakage == pytest.approx(np.mean([abs(v - 0.5) for v in row.auc.values()]))
        assert row.leakage < row.worst - 0.05


# -- what a user reads ----------------------------------------------------------------------------------------------


def test_the_result_says_who_was_counted(fast):
    # catches counts over aligned or unlabelled users
    x, y = users(0, n=110, shift=1.0)
    labels = [None if u < 4 else label for u, label in enumerate(y.tolist())]
    held_out = np.arange(110) < 64
    surfaces, options = {"x": x, "y": x[:, :1]}, {"draws": 30, "permutations": 30}
    found = privacy.attribute_inference(surfaces, labels, [fast], holdout=held_out, **options)
    wanted = np.bincount(y[4:64])
    assert found.counts == tuple(wanted.tolist())
    assert found.majority == pytest.approx(wanted.max() / 60)
    assert (found.n_held_out, found.n_aligned, found.classes) == (60, 46, (0, 1))
    assert [(r["surface"], r["protocol"]) for r in found.table()] == [
        ("x", "cross"), ("x", "transfer"), ("y", "cross"), ("y", "transfer"),
    ]  # fmt: skip
    assert found.table()[0]["auc[1]"] == found.rows[0].auc[1]
    assert found.worst().leakage == max(row.leakage for row in found.rows)
    low, high = found.chance_band()
    assert [0.5 - low, high - 0.5] == pytest.approx([found.null["high"]] * 2)
    assert 0 < found.null["expected"] < found.null["high"]
    assert found == privacy.attribute_inference(surfaces, labels, [fast], held_out=held_out, **options)


def test_an_attacker_that_stopped_early_is_marked(monkeypatch):
    # catches a warning that is printed, and a weak attacker that passes for evidence
    def short(seed, n_train, **shape):
        return make_pipeline(StandardScaler(), MLPClassifier((5,), max_iter=1, random_state=seed))

    monkeypatch.setitem(ATTACKERS, "short", short)
    x, y = users(0, n=60)
    found = privacy.attribute_inference(x, y, ["short", "gbdt"], folds=2, draws=10, permutations=10)
    assert [row.converged for row in found.rows] == [False, True]


def test_other_warnings_of_an_attacker_come_through(monkeypatch):
    # catches a filter that swallows everything while it looks for convergence
    class Loud(LogisticRegression):
        def fit(self, x, y):
            warnings.warn("look here", RuntimeWarning, stacklevel=1)
            return super().fit(x, y)

    monkeypatch.setitem(ATTACKERS, "loud", lambda seed, n_train, **shape: Loud())
    x, y = users(0, n=40)
    with pytest.warns(RuntimeWarning, match="look here"):
        privacy.attack({"x": x}, y, attackers=["loud"], folds=2)


def test_progress_counts_every_attacker(spy):
    # catches a bar that never ends: 2 surfaces x (3 folds + transfer)
    done: list[int] = []
    x, y = users(0, n=80)
    privacy.attack({"a": x, "b": x}, y, attackers=[spy], folds=3, held_out=np.arange(80) < 40, progress=done.append)
    assert done == [1] * 8


def test_the_curve_rises_with_what_the_attacker_knows(fast):
    # catches known users among the scored ones (flat and near 1) and sizes that are not obeyed
    x, y = users(0, n=400, d=20, shift=0.8)
    curve = privacy.attack_curve(x, y, attacker=fast, sizes=(10, 50, 200), repeats=6)
    assert [point["n"] for point in curve] == [10, 50, 200]
    assert curve[0]["auc"] + 0.05 < curve[2]["auc"]
    assert curve[2]["auc"] < 0.88  # the best possible one is Phi(0.8) = 0.79
    for point in curve:
        assert point["low"] <= point["auc"] <= point["high"]
        assert point["sd"] > 0
    assert privacy.attack_curve(x, y, attacker=fast, sizes=(200,), repeats=6)[0] == curve[2]
    assert [point["n"] for point in privacy.attack_curve(x, y, attacker=fast, repeats=2)] == [25, 50, 100, 200]


def test_the_curve_keeps_to_held_out_users_and_trains_on_the_number_it_says(spy):
    # catches aligned users in the curve, and known users that are scored too
    x = np.arange(100.0)[:, None]
    labels = ["a"] * 50 + ["b"] * 10 + ["a"] * 20 + ["b"] * 20
    privacy.attack_curve(x, labels, attacker=spy, sizes=(4, 20), repeats=3, held_out=np.arange(100) < 60)
    assert [len(trained) for trained, _ in Spy.seen] == [4, 20] * 3
    for trained, asked in Spy.seen:
        assert not trained & set(asked)
        assert max(trained | set(asked)) < 60
        assert sum(u >= 50 for u in trained) >= 2  # of the small class too


@pytest.mark.parametrize("attacker", ALL)
def test_the_curve_runs_with_four_known_users(attacker):
    # catches inner folds and tree settings that need more users than there are
    x, y = users(0, n=60, shift=2.0)
    (point,) = privacy.attack_curve(x, y, attacker=attacker, sizes=(4,), repeats=2)
    assert 0.0 <= point["low"] <= point["high"] <= 1.0


# -- bad input ------------------------------------------------------------------------------------------------------

GOOD = np.random.default_rng(0).normal(size=(40, 3))
HALF = (np.arange(40) % 2).tolist()


@pytest.mark.parametrize(
    ("surface", "labels", "options", "words"),
    [
        (GOOD, [1] * 40, {}, "one class only: 1"),
        (GOOD, [None] * 40, {}, "no labelled user among 40"),
        (GOOD, [], {}, "no labelled user among 0"),
        (GOOD, HALF[:39], {}, r"shape \(40, 3\) with 39 labels"),
        (GOOD, ["f"] * 39 + ["m"], {}, "'m' has 1; a class with one user"),
        (GOOD, ["f"] * 31 + ["m"] * 9, {}, "'m' has 9"),
        (GOOD, [0.5, 1.5] * 20, {}, "label 0.5 of type float"),
        (np.where(np.arange(40)[:, None] == 3, np.nan, GOOD), HALF, {}, "holds nan"),
        (np.where(np.arange(40)[:, None] == 3, -np.inf, GOOD), HALF, {}, "holds -inf"),
        (sparse.csr_array(np.where(np.eye(40)[:, :3] > 0, np.inf, 0.0)), HALF, {}, "holds inf"),
        (GOOD * 1e160, HALF, {}, "holds"),
        (GOOD[:, 0], HALF, {}, r"shape \(40,\)"),
        (GOOD[:, :0], HALF, {}, r"shape \(40, 0\)"),
        ([["x"] * 3] * 40, HALF, {}, "surface 'surface' of type list"),
        ({}, HALF, {}, "no surface"),
        (GOOD, HALF, {"attackers": ["logistik"]}, "did you mean 'logistic'"),
        (GOOD, HALF, {"attackers": []}, "attacker ''"),
        (GOOD, HALF, {"held_out": np.ones(40, dtype=bool)}, "no labelled user aligned"),
        (GOOD, HALF, {"held_out": np.arange(40)}, "held_out of shape"),
        (GOOD, HALF, {"held_out": np.arange(40) < 6}, "too few held-out users"),
        (GOOD, HALF, {"held_out": np.arange(40) < 36}, "too few aligned users"),
        (GOOD, HALF, {"holdout": "none"}, "users that the defence was fitted on"),
        (GOOD, HALF, {"holdout": "items"}, "holdout = 'items'"),
        (GOOD, HALF, {"holdout": np.arange(40) < 20, "held_out": np.arange(40) < 20}, "as holdout and as held_out"),
        (GOOD, HALF, {"holdout": "none", "held_out": np.arange(40) < 20, "allow_same_users": True}, "with a mask"),
        (GOOD, HALF, {"folds": 1}, "folds = 1"),
        (GOOD, HALF, {"threads": 0}, "threads = 0"),
        (GOOD, HALF, {"draws": 0}, "draws = 0"),
        (GOOD, HALF, {"permutations": 0}, "permutations = 0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(surface, labels, options, words):
    with pytest.raises(InputError, match=words):
        privacy.attribute_inference(surface, labels, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"sizes": (3,)}, "sizes"), ({"sizes": (21,)}, "sizes"), ({"sizes": ()}, "sizes"), ({"repeats": 1}, "repeats"),
     ({"attacker": "mpl"}, "did you mean 'mlp'"), ({"held_out": np.arange(40) < 10}, "too few held-out")],
)  # fmt: skip
def test_a_bad_curve_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        privacy.attack_curve(GOOD, HALF, **options)


def test_an_attacker_that_predicts_nan_is_refused(monkeypatch):
    class Broken(Spy):
        def predict_proba(self, x):
            return np.full((len(x), 2), np.nan)

    monkeypatch.setitem(ATTACKERS, "broken", lambda seed, n_train, **shape: Broken())
    with pytest.raises(InputError, match="predicts NaN"):
        privacy.attack({"x": GOOD}, HALF, attackers=["broken"])


def test_import_is_light():
    # catches scikit-learn or torch imported at the top: seconds for a user who only reads a report
    code = "import sys, upright.metrics.privacy; print(sorted({'sklearn', 'torch', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
