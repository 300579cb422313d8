"""AUC, leakage and balanced accuracy of an attack against independent counts, its ranks, its learning curve."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from upright.contract import InputError
from upright.metrics.attacks import ATTACKERS, AttackScores
from upright.metrics.leakage import attack_curve, balanced_accuracy, leakage, rank_values

SEEDS = st.integers(0, 2**32 - 1)


def made(scores, fold=None):
    """An attack: on two classes from the scores of the second, or from a column for each class."""
    s = np.asarray(scores, dtype=float)
    fold = np.zeros(len(s), dtype=np.int64) if fold is None else np.asarray(fold)
    return AttackScores("s", "a", "cross", s if s.ndim == 2 else np.stack([-s, s], axis=1), fold, True)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(12, 40))
def test_leakage_counts_pairs_inside_folds_and_nowhere_else(seed, n):
    # catches pairs across folds, folds averaged without weights, and classes mixed up in one against the rest
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3)
    fold = rng.integers(3, size=n)
    scores = rng.integers(6, size=(n, 3)) + 100.0 * fold[:, None]
    wanted = {}
    for c in range(3):
        won = []
        for i, j in itertools.product(np.flatnonzero(labels == c), np.flatnonzero(labels != c)):
            if fold[i] == fold[j]:
                won.append(1.0 if scores[i, c] > scores[j, c] else 0.5 if scores[i, c] == scores[j, c] else 0.0)
        wanted[c] = np.mean(won) if won else None
    if None in wanted.values():
        with pytest.raises(InputError, match="no fold with users of class"):
            leakage(made(scores, fold), labels)
        return
    found = leakage(made(scores, fold), labels)
    assert found["auc"] == pytest.approx(wanted, abs=1e-12)
    gaps = [abs(value - 0.5) for value in wanted.values()]
    assert [found["macro"], found["worst"]] == pytest.approx([np.mean(gaps), max(gaps)], abs=1e-12)


def test_classes_agree_with_scikit_learn():
    # catches the score of one class compared with the users of another, and plain accuracy under unequal classes
    rng = np.random.default_rng(0)
    names = ["middle", "old", "young"]
    labels, one = rng.choice(names, size=90, p=[0.6, 0.3, 0.1]), made(rng.dirichlet(np.ones(3), size=90))
    for c, name in enumerate(names):
        assert leakage(one, labels)["auc"][name] == pytest.approx(roc_auc_score(labels == name, one.scores[:, c]))
    wanted = balanced_accuracy_score(labels, np.array(names)[one.scores.argmax(axis=1)])
    assert balanced_accuracy(one, labels) == pytest.approx(wanted, abs=1e-12)


def test_leakage_survives_a_flip():
    # an attacker with AUC 0.2 has 0.8 after a flip: catches max(AUC - 1/2, 0) and a sign that matters
    for sign, auc in ((1.0, 0.2), (-1.0, 0.8)):
        found = leakage(made(sign * np.array([1.0, 0.0, 2.0, 3.0, 4.0, 5.0])), [1, 0, 0, 0, 0, 0])
        assert found["auc"] == pytest.approx({0: auc, 1: auc})
        assert [found["macro"], found["worst"]] == pytest.approx([0.3, 0.3])


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([2, 3]))
def test_ranks_say_what_scores_say_in_any_order_of_users(seed, classes):
    # catches ranks over all folds, of another class, of users that nobody scored, and ties broken by place
    rng = np.random.default_rng(seed)
    labels, fold = np.arange(66) % classes, np.arange(66) // 20 - 1
    scores = rng.integers(5, size=(66, classes)).astype(float)
    scores = np.stack([-scores[:, 1], scores[:, 1]], axis=1) if classes == 2 else scores
    order = rng.permutation(66)
    for o in (np.arange(66), order):
        table = rank_values([made(scores[o], fold[o])], "abc"[:classes])
        assert list(table) == [f"attack/s/a/cross/{c}" for c in "abc"[classes == 2 : classes]]
        kept = np.stack([*table.values()], axis=1)
        assert (np.isnan(kept).all(axis=1) == (fold[o] < 0)).all()
        assert np.nanmin(kept) > 0
        assert np.nanmax(kept) < 1
        both = kept[:, [0, 0]] * [-1, 1] if classes == 2 else kept
        again = leakage(made(np.nan_to_num(both), fold[o]), labels[o])
        assert again["auc"] == pytest.approx(leakage(made(scores, fold), labels)["auc"], abs=1e-12)


def test_labels_of_another_study_are_refused():
    one = made([0.1, 0.2, 0.3, 0.4])
    for labels, words in (([0, 1, 2, 0], "scores of shape"), ([0, 1], "scores of shape"), ([0, 1, None, 0], "without")):
        for number in (leakage, balanced_accuracy):
            with pytest.raises(InputError, match=words):
                number(one, labels)


# -- the learning curve ---------------------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch):
    def model(seed, n_train, **shape):
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced"))

    monkeypatch.setitem(ATTACKERS, "fast", model)
    return "fast"


def users(n, d, shift):
    rng = np.random.default_rng(0)
    y = (rng.permutation(n) < 0.35 * n).astype(int)
    x = rng.normal(size=(n, d))
    x[:, :2] += shift * y[:, None]
    return x, y


def test_the_curve_rises_with_what_the_attacker_knows(fast):
    # catches known users among the scored ones (flat and near 1) and sizes that are not obeyed
    x, y = users(400, 20, 0.8)
    curve = attack_curve(x, y, attacker=fast, sizes=(10, 50, 200), repeats=6)
    assert [point["n"] for point in curve] == [10, 50, 200]
    assert curve[0]["auc"] + 0.05 < curve[2]["auc"] < 0.88  # the best possible one is Phi(0.8) = 0.79
    assert all(point["low"] <= point["auc"] <= point["high"] and point["sd"] > 0 for point in curve)
    assert attack_curve(x, y, attacker=fast, sizes=(200,), repeats=6)[0] == curve[2]
    assert [point["n"] for point in attack_curve(x, y, attacker=fast, repeats=2)] == [25, 50, 100, 200]


def test_the_curve_keeps_to_held_out_users_and_trains_on_the_number_it_says(monkeypatch):
    # catches aligned users in the curve, and known users that are scored too
    seen = []

    class Spy:
        def fit(self, x, y):
            self.trained = set(x[:, 0].tolist())
            return self

        def predict_proba(self, x):
            seen.append((self.trained, set(x[:, 0].tolist())))
            return np.full((len(x), 2), 0.5)

    monkeypatch.setitem(ATTACKERS, "spy", lambda seed, n_train, **shape: Spy())
    labels = ["a"] * 50 + ["b"] * 10 + ["a"] * 20 + ["b"] * 20
    held_out = np.arange(100) < 60
    attack_curve(np.arange(100.0)[:, None], labels, attacker="spy", sizes=(4, 20), repeats=3, held_out=held_out)
    assert [len(trained) for trained, _ in seen] == [4, 20] * 3
    for trained, asked in seen:
        assert not trained & asked
        assert max(trained | asked) < 60
        assert sum(u >= 50 for u in trained) >= 2  # of the small class too


@pytest.mark.parametrize("attacker", ["logistic", "mlp", "gbdt"])
def test_the_curve_runs_with_four_known_users(attacker):
    # catches inner folds and tree settings that need more users than there are
    (point,) = attack_curve(*users(60, 8, 2.0), attacker=attacker, sizes=(4,), repeats=2)
    assert 0.0 <= point["low"] <= point["high"] <= 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": (3,)}, "sizes"),
        ({"sizes": (21,)}, "sizes"),
        ({"sizes": ()}, "sizes"),
        ({"repeats": 1}, "repeats"),
        ({"attacker": "mpl"}, "did you mean 'mlp'"),
        ({"held_out": np.arange(40) < 10}, "too few held-out"),
    ],
)
def test_a_bad_curve_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        attack_curve(np.zeros((40, 3)), (np.arange(40) % 2).tolist(), **options)
