"""AUC, leakage, bootstrap and permutations against independent counts and known distributions."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from upright.contract import InputError
from upright.maths.intervals import percentile
from upright.metrics import leakage as stats
from upright.metrics import privacy
from upright.metrics.attacks import code_labels

SEEDS = st.integers(0, 2**32 - 1)


def made(scores, labels, fold=None, protocol="cross"):
    """An attack on two classes from the scores of the second."""
    s = np.asarray(scores, dtype=float)
    fold = np.zeros(len(s), dtype=np.int64) if fold is None else np.asarray(fold)
    return privacy.AttackScores("made", "made", protocol, np.stack([-s, s], axis=1), fold, True)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(2, 60), st.sampled_from([2, 5, 1000]))
def test_auc_is_scikit_learns_with_weights_and_ties(seed, n, levels):
    # catches a tie counted 0 or 1, weights used on one side only, and weights left in the old order after sorting
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=n) / 7.0
    positive = rng.random(n) < 0.4
    positive[:2] = [True, False]
    weights = rng.random(n) + 0.01
    assert privacy.auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    wanted = roc_auc_score(positive, scores, sample_weight=weights)
    assert privacy.auc(scores, positive, weights) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(12, 40))
def test_leakage_counts_pairs_inside_folds_and_nowhere_else(seed, n):
    # catches pairs across folds, folds averaged without weights, and classes mixed up in one against the rest
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3)
    fold = rng.integers(3, size=n)
    scores = rng.integers(6, size=(n, 3)) + 100.0 * fold[:, None]
    weights = rng.integers(1, 4, size=n).astype(float)
    one = privacy.AttackScores("s", "a", "cross", scores, fold, True)
    wanted = {}
    for c in range(3):
        won = pairs = 0.0
        for i, j in itertools.product(np.flatnonzero(labels == c), np.flatnonzero(labels != c)):
            if fold[i] == fold[j]:
                worth = 1.0 if scores[i, c] > scores[j, c] else 0.5 if scores[i, c] == scores[j, c] else 0.0
                won, pairs = won + weights[i] * weights[j] * worth, pairs + weights[i] * weights[j]
        wanted[c] = won / pairs if pairs else None
    if None in wanted.values():
        with pytest.raises(InputError, match="no pair with weight"):
            privacy.leakage(one, labels, weights)
        return
    found = privacy.leakage(one, labels, weights)
    assert found["auc"] == pytest.approx(wanted, abs=1e-12)
    gaps = [abs(value - 0.5) for value in wanted.values()]
    assert found["macro"] == pytest.approx(np.mean(gaps), abs=1e-12)
    assert found["worst"] == pytest.approx(max(gaps), abs=1e-12)


def test_three_classes_agree_with_scikit_learn():
    # catches the score of one class compared with the users of another
    rng = np.random.default_rng(0)
    labels = np.array(["old", "young", "middle"])[rng.permutation(np.arange(90) % 3)]
    scores = rng.dirichlet(np.ones(3), size=90)
    one = privacy.AttackScores("s", "a", "cross", scores, np.zeros(90, dtype=np.int64), True)
    found = privacy.leakage(one, labels)["auc"]
    for c, name in enumerate(sorted(set(labels.tolist()))):
        assert found[name] == pytest.approx(roc_auc_score(labels == name, scores[:, c]), abs=1e-12)


def test_leakage_survives_a_flip():
    # an attacker with AUC 0.2 has 0.8 after a flip: catches max(AUC - 1/2, 0) and a sign that matters
    positive = np.array([True, False, False, False, False, False])
    scores = np.array([1.0, 0.0, 2.0, 3.0, 4.0, 5.0])
    assert privacy.auc(scores, positive) == pytest.approx(0.2)
    for sign in (1.0, -1.0):
        found = privacy.leakage(made(sign * scores, positive), positive.astype(int))
        assert found["macro"] == pytest.approx(0.3)
        assert found["worst"] == pytest.approx(0.3)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_order_of_users_does_not_change_a_statistic(seed):
    # catches a result that depends on row order: ties broken by place, folds read from positions
    rng = np.random.default_rng(seed)
    labels, fold = rng.permutation(np.arange(60) % 2), np.arange(60) // 20
    scores, order = rng.integers(5, size=60), rng.permutation(60)
    plain = privacy.leakage(made(scores, labels, fold), labels)
    moved = privacy.leakage(made(scores[order], labels[order], fold[order]), labels[order])
    assert moved["auc"] == pytest.approx(plain["auc"], abs=1e-12)


def test_bootstrap_draws_are_weighted_leakage():
    # catches draws that are not shared between attacks, and weights that meet the wrong user
    rng = np.random.default_rng(1)
    labels, fold = rng.permutation(np.arange(50) % 2), np.arange(50) % 5
    found = [made(rng.normal(size=50), labels, fold) for _ in range(2)]
    rows = np.arange(50)
    aucs, leaks = stats.resampled(found, code_labels(labels), rows, 20, seed=3)
    weights = stats.draw_weights(1, 50, 20, np.random.default_rng(3))[1]
    for a, one in enumerate(found):
        for d in range(20):
            wanted = privacy.leakage(one, labels, weights[d])
            assert aucs[a, d] == pytest.approx(wanted["auc"][0], abs=1e-12)
            assert leaks[a, d] == pytest.approx(wanted["macro"], abs=1e-12)


def test_bootstrap_chunks_do_not_change_draws(monkeypatch):
    # catches a random stream that starts again in each chunk, which would repeat the same draws
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(40) % 2)
    one, coded, rows = made(rng.normal(size=40), labels), code_labels(labels), np.arange(40)
    whole = stats.resampled([one], coded, rows, 30, seed=0)[0]
    null = stats.permuted([one], coded, rows, 30, seed=0)
    monkeypatch.setattr(stats, "_CHUNK", 40 * 7)
    np.testing.assert_allclose(stats.resampled([one], coded, rows, 30, seed=0)[0], whole, atol=1e-14)
    np.testing.assert_allclose(stats.permuted([one], coded, rows, 30, seed=0), null, atol=1e-14)


def test_bootstrap_interval_covers_and_is_not_too_wide():
    # a fixed attacker with known AUC = Phi(delta / sqrt 2); catches an interval of half width or one that never fails
    delta, covered, widths, aucs = 0.8, 0, [], []
    truth = NormalDist().cdf(delta / 2**0.5)
    studies = 300
    for seed in range(studies):
        rng = np.random.default_rng([seed, 77])
        labels = np.arange(120) % 2
        scores = rng.normal(size=120) + delta * labels
        one = made(scores, labels)
        low, high = percentile(stats.resampled([one], code_labels(labels), np.arange(120), 400, seed)[0][0], 0.95)
        covered += low <= truth <= high
        widths.append(high - low)
        aucs.append(privacy.auc(scores, labels == 1))
    assert covered / studies > 0.95 - 5 * (0.95 * 0.05 / studies) ** 0.5
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(aucs), rel=5 / (2 * studies) ** 0.5)


def test_permutations_have_the_mean_of_all_splits():
    # seven users, ties, all 35 splits enumerated: catches a wrong rank sum and permutations that favour an order
    scores, labels = np.array([0.0, 1.0, 1.0, 2.0, 5.0, 5.0, 9.0]), np.array([0, 0, 0, 0, 1, 1, 1])
    every = [
        abs(privacy.auc(scores, np.isin(np.arange(7), some)) - 0.5) for some in itertools.combinations(range(7), 3)
    ]
    null = stats.permuted([made(scores, labels, protocol="transfer")], code_labels(labels), np.arange(7), 20_000, 0)[0]
    assert null.mean() == pytest.approx(np.mean(every), abs=5 * np.std(every) / 20_000**0.5)
    assert set(np.round(null, 9)) == set(np.round(every, 9))


def test_permutations_stay_inside_folds():
    # one fold holds class 1 alone but for one user: catches labels that move between folds
    labels = np.array([0, 1, 1, 1, 0, 0, 0, 1])
    fold = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    null = stats.permuted([made(np.arange(8.0), labels, fold)], code_labels(labels), np.arange(8), 2000, 0)[0]
    # in each fold a single user stands against three: 0, 1, 2 or 3 of 3 pairs, so sums of 0..6 of 6 pairs
    assert set(np.round(null / stats.SPREAD["cross"] * 6, 9)) <= {0.0, 1.0, 2.0, 3.0}
    assert null.max() == pytest.approx(0.5 * stats.SPREAD["cross"])


def test_balanced_accuracy_is_scikit_learns():
    # catches plain accuracy, which a constant guess of the large class drives up
    rng = np.random.default_rng(0)
    labels = (rng.random(200) < 0.2).astype(int)
    scores = rng.random((200, 2))
    one = privacy.AttackScores("s", "a", "cross", scores, np.zeros(200, dtype=np.int64), True)
    wanted = balanced_accuracy_score(labels, scores.argmax(axis=1))
    assert stats.balanced_accuracy(one, code_labels(labels), np.arange(200)) == pytest.approx(wanted, abs=1e-12)


def test_the_null_of_the_strongest_is_above_the_null_of_one():
    # twelve attackers find more by chance than one: catches a null that forgets the maximum
    rng = np.random.default_rng(0)
    labels, fold = rng.permutation(np.arange(100) % 2), np.arange(100) % 5
    found = [made(rng.normal(size=100), labels, fold) for _ in range(12)]
    null = stats.permuted(found, code_labels(labels), np.arange(100), 1000, 0)
    one, most = null[0], null.max(axis=0)
    assert most.mean() > 1.5 * one.mean()
    assert np.quantile(most, 0.95) > 1.15 * np.quantile(one, 0.95)
    assert (most >= one).all()


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "positive", "weights", "words"),
    [
        ([0.1, np.nan], [True, False], None, "1 NaN scores"),
        ([0.1, 0.2], [True, True], None, "some of both"),
        ([0.1, 0.2], [True, False], [1.0, 0.0], "some of both"),
        ([0.1, 0.2], [True, False], [1.0, -1.0], "negative"),
        ([0.1, 0.2], [True], None, "one shape"),
        ([], [], None, "some of both"),
    ],
)
def test_an_auc_that_is_not_defined_is_refused(scores, positive, weights, words):
    with pytest.raises(InputError, match=words):
        privacy.auc(scores, positive, weights)


def test_labels_of_another_study_are_refused():
    one = made([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1])
    for labels, words in (([0, 1, 2, 0], "scores of shape"), ([0, 1], "scores of shape"), ([0, 1, None, 0], "without")):
        with pytest.raises(InputError, match=words):
            privacy.leakage(one, labels)
    with pytest.raises(InputError, match="weights of shape"):
        privacy.leakage(one, [0, 1, 0, 1], [1.0])
