"""FairFed and FedFB against their formulas worked out here, and against federated averaging on a planted gap."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from upright.classification import rivals
from upright.classification.averaging import FedAvg, settings_of, trained
from upright.classification.silos import Silo, one_hot, silos_of
from upright.contract import InputError
from upright.federation.rounds import drive
from upright.maths.parity.rates import CRITERIA


def world(seed=0, n=2400, k=4, groups=2, m=2):
    rng = np.random.default_rng(seed)
    a, who = rng.integers(0, groups, n), rng.integers(0, k, n)
    x = rng.normal(size=(n, 3))
    x[:, 0] += 1.5 * a
    score = x[:, 0] + x[:, 1] - 0.7 + rng.logistic(size=n)
    y = np.digitize(score, [0.0, 2.0][: m - 1]).astype(np.int64)
    return silos_of(x, y, [f"c{i}" for i in who], [a])


def pooled(algorithm, data):
    """Accuracy, and the largest difference between groups of any class's share of decisions."""
    served = trained(*drive(algorithm, data))
    h = np.concatenate([served.predict_proba(s.x).argmax(1) for s in data.values()])
    a = np.concatenate([s.members[0].argmax(1) for s in data.values()])
    y = np.concatenate([s.y for s in data.values()])
    share = np.array([[(h[a == g] == j).mean() for j in range(h.max() + 1)] for g in range(a.max() + 1)])
    return (h == y).mean(), np.ptp(share, axis=0).max()


# -- parts ----------------------------------------------------------------------------------------------------------


def test_reweighted_rows_have_label_and_group_independent():
    # catches P(a, y) upside down
    rng = np.random.default_rng(1)
    a = rng.integers(0, 3, 500)
    y = (rng.random(500) < 0.2 + 0.2 * a).astype(np.int64)
    member, label = one_hot(a, 3), one_hot(y, 2)
    w = rivals.reweighted(label, member)
    cell = member.T @ (label * w[:, None])
    np.testing.assert_allclose(cell / 500, np.outer(member.mean(0), label.mean(0)), atol=1e-12)
    np.testing.assert_allclose(w.sum(), 500, atol=1e-9)


# -- against federated averaging ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("groups", "m"), [(2, 2), (3, 3)])
def test_both_shrink_a_planted_gap_against_federated_averaging(seed, groups, m):
    # catches weights that move the wrong way
    data = world(seed, groups=groups, m=m)
    own = settings_of(data, rounds=40, batch=128)
    accuracy, base = pooled(FedAvg(own), data)
    assert base > 0.3
    assert pooled(rivals.FairFed(own), data)[1] < base - 0.02
    fairer, gap = pooled(rivals.FedFB(own), data)
    assert gap < 0.3 * base
    assert fairer < accuracy  # it has its price


def test_a_flipped_sign_makes_the_gap_larger(monkeypatch):
    # catches a step uphill in FedFB that a small alpha would hide
    data = world(3)
    own = settings_of(data, rounds=20)
    base = pooled(FedAvg(own), data)[1]
    flipped = rivals.FedFB(own)
    flipped.alpha = -flipped.alpha
    assert pooled(flipped, data)[1] > base + 0.05


def test_without_steps_both_are_federated_averaging():
    # catches weights that do not start at those of the rows
    data = world(4, n=700)
    own = settings_of(data, rounds=6)
    want, _ = drive(FedAvg(own), data)
    for algorithm in (rivals.FairFed(own, beta=0.0, reweight=False), rivals.FedFB(own, alpha=0.0)):
        got, _ = drive(algorithm, data)
        for key in ("theta.weight", "theta.bias"):
            np.testing.assert_allclose(got[key], want[key], rtol=0, atol=1e-9)


# -- formulas -------------------------------------------------------------------------------------------------------


def test_weights_of_fairfed_are_those_of_the_papers_formula():
    # catches an absolute value or a mean in the wrong place, and weights that are forgotten between rounds
    data, kept = world(5, n=900), []
    data["c9"] = Silo("c9", data["c0"].x[:40], data["c0"].y[:40], (one_hot(np.zeros(40, int), 2),))  # one group only
    own = settings_of(data, rounds=4)
    algorithm = rivals.FairFed(own, "equal_opportunity", beta=2.0)
    drive(algorithm, data, on_round=lambda s, p: kept.append((s, p)))
    sizes = {n: len(s.y) for n, s in data.items()}
    omega = {n: size / sum(sizes.values()) for n, size in sizes.items()}
    for t in range(2, 5):
        before = trained(*kept[t - 2])  # the model that round t starts from
        h = {n: before.predict_proba(s.x).argmax(1) for n, s in data.items()}

        def gap(names, h=h):
            a = np.concatenate([data[n].members[0].argmax(1) for n in names])
            y, own = np.concatenate([data[n].y for n in names]), np.concatenate([h[n] for n in names])
            return np.array([np.diff([(own[(a == g) & (y == j)] == j).mean() for g in (0, 1)])[0] for j in (0, 1)])

        accuracy = {n: (h[n] == s.y).mean() for n, s in data.items()}
        mean = sum(sizes[n] * accuracy[n] for n in data) / sum(sizes.values())
        if t == 2:  # the first round's model decides everything as class 0
            first = {n: (s.y == 0).mean() for n, s in data.items()}
            middle = sum(sizes[n] * first[n] for n in data) / sum(sizes.values())
            delta = {n: 0.0 if n != "c9" else abs(first[n] - middle) for n in data}
            omega = {n: max(0.0, omega[n] - 2.0 * (delta[n] - sum(delta.values()) / 5)) for n in data}
        delta = {n: np.abs(gap([n]) - gap(list(data))).max() if n != "c9" else abs(accuracy[n] - mean) for n in data}
        omega = {n: max(0.0, omega[n] - 2.0 * (delta[n] - sum(delta.values()) / 5)) for n in data}
        for n in data:
            assert kept[t - 1][0][f"omega/{n}"] == pytest.approx(omega[n], abs=1e-12)
            assert kept[t - 1][0]["history"][-1]["weights"][n] == pytest.approx(omega[n] / sum(omega.values()))


def test_weights_of_fedfb_follow_the_gap_and_keep_each_groups_share():
    # catches a step in the wrong direction or of the wrong length, and groups that lose weight to each other
    data, kept = world(6, n=900), []
    own = settings_of(data, rounds=4)
    drive(rivals.FedFB(own, alpha=0.02), data, on_round=lambda s, p: kept.append((s, p)))
    a = np.concatenate([s.members[0].argmax(1) for s in data.values()])
    y = np.concatenate([s.y for s in data.values()])
    count = np.array([[((a == g) & (y == j)).sum() for j in (0, 1)] for g in (0, 1)])
    lam = count / len(y)
    for t in range(1, 5):
        h = np.zeros(len(y), int)
        if t > 1:
            before = trained(*kept[t - 2])
            h = np.concatenate([before.predict_proba(s.x).argmax(1) for s in data.values()])
        rate = np.array([[(h[a == g] == j).mean() - (h == j).mean() for j in (0, 1)] for g in (0, 1)])
        lam = lam - 0.02 / np.sqrt(t) * rate
        assert (lam > 0).all()  # no projection needed in this world: a step along the gap keeps the sum
        weights = kept[t - 1][0]["weights"]
        np.testing.assert_allclose(weights, lam * len(y) / count, atol=1e-12)
        np.testing.assert_allclose((weights * count).sum(1), count.sum(1), atol=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_fairfed_measures_every_criterion_and_missing_groups_are_no_gap(criterion):
    # catches a division by the rows of a group that a client lacks
    data = world(7, n=600, groups=3, m=3)
    data["c9"] = Silo("c9", data["c0"].x[:20], data["c0"].y[:20], (one_hot(np.ones(20, int), 3),))
    state, _ = drive(rivals.FairFed(settings_of(data, rounds=3), criterion), data)
    weights = state["history"][-1]["weights"]
    assert all(np.isfinite(v) and v >= 0 for v in weights.values())
    assert sum(weights.values()) == pytest.approx(1.0)


# -- rounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [rivals.FairFed, rivals.FedFB])
def test_clients_alone_together_in_any_order_and_with_gaps_in_attendance(kind):
    # catches what depends on the others, on order, or on everybody being there
    data = world(8, n=700)
    algorithm = kind(settings_of(data, rounds=5, hidden=3))
    want, _ = drive(algorithm, data)
    turned, _ = drive(algorithm, dict(reversed(data.items())))
    np.testing.assert_allclose(turned["theta.weight"], want["theta.weight"], rtol=0, atol=1e-12)
    message = algorithm.message(want)
    together = algorithm.clients(message, {n: {} for n in data}, data)
    for name, silo in data.items():
        alone, _ = algorithm.client(message, {}, silo)
        for key, value in together[name][0].items():
            np.testing.assert_allclose(alone[key], value, rtol=0, atol=1e-12)
    log = []
    state, _ = drive(algorithm, data, present=lambda t, n: n != "c1" or t == 2,
                     on_round=lambda s, p: log.append(s["log"][-1]))  # fmt: skip
    assert [e["absent_names"] for e in log] == [["c1"], [], ["c1"], ["c1"], ["c1"]]
    assert all(np.isfinite(v).all() for v in state.values() if isinstance(v, np.ndarray))


@pytest.mark.parametrize(
    ("kind", "name", "value", "reason"),
    [
        (rivals.FairFed, "report", [0.5, 0.1, 0.5], "report of 0.5 rows"),
        (rivals.FairFed, "mass", -1.0, "mass that does not fit"),
        (rivals.FairFed, "decided", 200.0, "decided that does not fit"),
        (rivals.FairFed, "mass", 0.0, "more decided than there are rows"),
        (rivals.FedFB, "decided", 0.0, "decided does not sum to the rows of its groups"),
        (rivals.FedFB, "labelled", 1e6, "labelled that does not fit"),
    ],
)
def test_counts_that_cannot_be_are_refused(kind, name, value, reason):
    # catches a client that claims more people than it has, or none
    data = world(9, n=400)
    algorithm = kind(settings_of(data, rounds=1))
    state = algorithm.start()
    reply, _ = algorithm.client(algorithm.message(state), {}, data["c0"])
    assert algorithm.objection(state, "c0", reply) == ""
    broken = reply | {name: np.broadcast_to(np.array(value, dtype=float), reply[name].shape)}
    assert algorithm.objection(state, "c0", broken).startswith(reason)


def test_settings_that_make_no_sense_are_refused():
    # catches a negative step, which would reward the gap, and silos without groups
    data = world(10, n=200)
    own = settings_of(data)
    with pytest.raises(InputError, match="beta = -1"):
        rivals.FairFed(own, beta=-1)
    with pytest.raises(InputError, match="alpha = nan"):
        rivals.FedFB(own, alpha=float("nan"))
    with pytest.raises(InputError, match="silos without groups"):
        rivals.FedFB(dataclasses.replace(own, groups=()))
    with pytest.raises(InputError, match="criterion 'nothing'"):
        rivals.FairFed(own, "nothing")
