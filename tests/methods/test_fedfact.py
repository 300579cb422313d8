"""FedFACT as a method: what each arm does, what it notes, and the promises of `upright check`."""

from __future__ import annotations

import functools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from upright.classification.fitting import _calibration
from upright.classification.inputs import one_hot
from upright.classification.table import FairTable
from upright.classification.training import Trained
from upright.contract import InputError, spec_of
from upright.data.tabular import Table, synthetic_table
from upright.evidence.compute import evidence
from upright.evidence.units import Block, Units
from upright.experiment.checks import CHECKS, conformance
from upright.experiment.folders import ArmRun
from upright.experiment.notes import suppress_few
from upright.experiment.registry import load_method
from upright.experiment.runner import _fitting
from upright.federation.rounds import drive, from_tensors
from upright.maths.parity.rates import CRITERIA
from upright.methods import fedfact
from upright.methods.fedfact import FedFACTConfig
from upright.tasks.classify import Classify, ClassifyConfig

ARMS = {arm.name: dict(arm.settings) for arm in spec_of(fedfact.run).arms}
SMALL = {"rounds": 30, "local_steps": 10, "fair_rounds": 10, "global_tol": 0.02, "local_tol": 0.05}
BINARY, MULTI = (2, 2), (3, 3)


@functools.cache
def world(criterion="demographic_parity", shape=BINARY):
    """A task of 3,000 planted rows at three clients; groups and classes as in `shape`."""
    table = synthetic_table(3000, groups=shape[0], classes=shape[1], clients=3, seed=0)
    return Classify(table, ClassifyConfig(data="synthetic", clients=3, gamma=5.0, criterion=criterion))


def arm(name, task, **changes):
    """Train one arm; returns what it decides on calibration rows, its run and itself."""
    run = ArmRun(None, 0, name)
    config = FedFACTConfig(**SMALL).replace(**ARMS[name]).replace(**changes)
    found = fedfact.run(task, config, run)
    x, _, group, client = task.part(run, "valid")
    return found.decide(x, group, client), run, found


def plain(task, run):
    """Decisions of federated averaging, without a remedy."""
    base = fedfact.base_model(task, FedFACTConfig(**SMALL), run)
    p = Trained.of(from_tensors(base["parameters"])).predict_proba(task.part(run, "valid")[0])
    return p, one_hot(p.argmax(1), p.shape[1])


def gap(h, group):
    """The largest difference between groups of the share decided as any class."""
    return np.ptp([h[group == g].mean(0) for g in np.unique(group)], axis=0).max()


def test_fedfact_passes_every_check():
    # catches any broken promise of the method; the list is that of `upright check`
    checks = conformance("fedfact")
    assert {c.name: c.detail for c in checks if not c.passed} == {}
    assert [c.name for c in checks] == list(CHECKS)


# -- arms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [BINARY, MULTI])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_baseline_is_federated_averaging(criterion, shape):
    # catches a baseline that already looks at groups: probabilities fitted to the labels of each
    task = world(criterion, shape)
    h, run, _ = arm("none", task)
    np.testing.assert_array_equal(h, plain(task, run)[1])
    assert all(flip["share"] == 0.0 for flip in run.notes["flips"])


@pytest.mark.parametrize("shape", [BINARY, MULTI])
def test_the_remedy_meets_both_tolerances_on_calibration_rows(shape):
    # catches a tolerance of everybody handed to clients, or the reverse
    task = world(shape=shape)
    h, run, _ = arm("fedfact", task, randomised=True)
    _, _, group, client = task.part(run, "valid")
    assert gap(h, group) <= 0.02 + 1e-6
    local = [gap(h[client == k], group[client == k]) for k in range(3)]
    assert max(local) <= 0.05 + 1e-6
    hard, other, _ = arm("fedfact", task)
    cells = [np.bincount(group[client == k]).min() for k in range(3)]
    assert gap(hard, group) <= 0.02 + 3 / np.bincount(group).min()
    for k in range(3):
        assert gap(hard[client == k], group[client == k]) <= 0.05 + 3 / cells[k]
    noted = other.notes["calibration"]
    assert noted["global"] == pytest.approx(gap(hard, group))
    assert noted["local_max"] == pytest.approx(max(gap(hard[client == k], group[client == k]) for k in range(3)))
    assert gap(plain(task, run)[1], group) > 0.1


def test_a_local_tolerance_left_out_is_the_global_one():
    assert FedFACTConfig(global_tol=0.03).tolerances() == (0.03, 0.03)
    assert FedFACTConfig(global_tol=0.03, local_tol=1.0).tolerances() == (0.03, np.inf)
    assert FedFACTConfig(global_tol=1.0, local_tol=0.2).tolerances() == (np.inf, 0.2)


def test_the_placebo_permutes_groups_inside_clients():
    # catches a permutation over all rows: clients would be mixed, and the placebo would break local rates too
    task = world(shape=MULTI)
    run = ArmRun(None, 0, "random")
    _, _, group, client = task.part(run, "valid")
    config = FedFACTConfig(groups="random")
    found = fedfact._shuffled(config, run, group, client)
    for k in range(3):
        np.testing.assert_array_equal(np.sort(found[client == k]), np.sort(group[client == k]))
        assert (found[client == k] != group[client == k]).mean() > 0.4
        share = (found[client == k] == group[client == k]).mean()  # of agreement, that of chance
        p = np.bincount(group[client == k]) / (client == k).sum()
        assert abs(share - (p**2).sum()) < 5 * np.sqrt(0.25 / (client == k).sum())
    np.testing.assert_array_equal(fedfact._shuffled(config, run, group, client), found)
    np.testing.assert_array_equal(fedfact._shuffled(FedFACTConfig(), run, group, client), group)
    assert (fedfact._shuffled(config, ArmRun(None, 1, "random"), group, client) != found).any()


def test_the_placebo_mends_nothing():
    task = world()
    h, run, _ = arm("random", task)
    group = task.part(run, "valid")[2]
    assert gap(h, group) > 0.7 * gap(plain(task, run)[1], group)


@pytest.mark.parametrize("shape", [BINARY, MULTI])
def test_the_hull_has_the_gap_of_the_remedy_on_the_rows_that_are_scored(shape):
    # catches a control that is matched on other rows, or whose second arm has a gap of its own
    task = world(shape=shape)
    task.open_test()
    scored = {}
    for name in ("none", "fedfact", "majority"):
        _, run, found = arm(name, task)
        scored[name] = task.score(found, "test", run)
    units = Units([Block("r", name, 0, scores) for name, scores in scored.items()])
    spec = load_method("fedfact")
    found = evidence(units, arms=spec.arms, statistics=[spec.primary, spec.cost], metrics=task.metrics,
                     primary=spec.primary, cost=spec.cost, title="FedFACT", draws=20)  # fmt: skip
    value = {(x["statistic"], x["arm"]): x["value"] for x in found["levels"] if x["group"] is None}
    gaps = [value[spec.primary, name] for name in ("none", "fedfact", "hull", "majority")]
    assert gaps[0] > gaps[1] > 0
    assert gaps[3] == 0
    assert gaps[2] == pytest.approx(gaps[1], abs=1e-12)
    share = gaps[1] / gaps[0]
    best, least = value[spec.cost, "none"], value[spec.cost, "majority"]
    assert value[spec.cost, "hull"] == pytest.approx(share * best + (1 - share) * least, abs=1e-12)


@pytest.mark.parametrize("shape", [BINARY, MULTI])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_linear_program_agrees_within_the_temperature(criterion, shape):
    # catches a linear program over other probabilities than those of `post`, and its ties decided at random: for
    # criteria of the label it is indifferent about whole groups
    task = world(criterion, shape)
    fair, _, _ = arm("fedfact", task)
    exact, run, _ = arm("oracle", task)
    assert (fair != exact).any(1).mean() < 0.01
    assert run.notes["share tied"] < (0.03 if criterion == "demographic_parity" else 0.6)


def test_equal_groups_are_left_alone():
    # catches a remedy that moves people although no gap exceeds the tolerance
    table = synthetic_table(3000, clients=3, seed=0)
    shuffled = np.random.default_rng(0).permutation(table.columns["group"])
    columns = {**table.columns, "group": shuffled}
    equal = Table(table.name, columns, table.features, table.sensitive, table.label, table.classes, table.facts)
    task = Classify(equal, ClassifyConfig(data="synthetic", clients=3, gamma=5.0))
    h, run, _ = arm("fedfact", task, global_tol=0.1, local_tol=0.2)
    assert gap(h, task.part(run, "valid")[2]) < 0.1
    np.testing.assert_array_equal(h, plain(task, run)[1])
    assert {flip["share"] for flip in run.notes["flips"]} == {0.0}
    assert {row["price"] for row in run.notes["prices"]} == {0.0}


def test_blind_decisions_do_not_look_at_the_group():
    # catches a blind arm that is handed the group of test rows
    task = world()
    h, run, found = arm("fedfact", task, blind=True)
    x, _, group, client = task.part(run, "valid")
    np.testing.assert_array_equal(found.decide(x, 1 - group, client), h)
    assert gap(h, group) < 0.7 * gap(plain(task, run)[1], group)


@pytest.mark.parametrize("name", ["train", "fairfed"])
def test_arms_that_train_decide_by_their_own_model(name):
    task = world(shape=MULTI)
    h, run, found = arm(name, task)
    np.testing.assert_array_equal(np.sort(h, axis=1), np.tile([0.0, 0.0, 1.0], (len(h), 1)))
    x, _, group, client = task.part(run, "valid")
    np.testing.assert_array_equal(found.decide(x, (group + 1) % 3, client), h)  # blind
    assert len(run.metrics) >= 10
    assert (h != plain(task, run)[1]).any()


def test_fairlearns_arms_mend_the_global_gap_of_two_classes():
    task = world()
    for name in ("thresholds", "reductions"):
        h, run, _ = arm(name, task)
        group = task.part(run, "valid")[2]
        assert gap(h, group) < 0.02 + 5 * np.sqrt(0.25 / np.bincount(group).min() * 2)
        again, *_ = arm(name, task)
        np.testing.assert_array_equal(h, again)
    with pytest.raises(InputError, match="Fairlearn's ThresholdOptimizer for 3 classes"):
        arm("thresholds", world(shape=MULTI))


def test_a_missing_fairlearn_is_told_before_anything_is_decided(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairlearn", None)
    for name in ("thresholds", "reductions"):
        with pytest.raises(InputError) as caught:
            arm(name, world())
        assert caught.value.args == (
            "fairlearn is not installed", "fairlearn for the arms 'thresholds' and 'reductions'",
            "pip install 'upright[fairness]', or leave these arms out with --arms",
        )  # fmt: skip


# -- what is noted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["demographic_parity", "equalized_odds"])
def test_the_noted_table_decides_as_the_arm_does(criterion, tmp_path):
    # catches a table in the report that is not the one in use
    task = world(criterion, MULTI)
    _, run, found = arm("fedfact", task)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(run.notes["table"], allow_nan=False))
    table = FairTable.load(path)
    task.open_test()
    rows = task.layout(run).rows["test"]
    x, group, client = task.layout(run).x[rows], task.group[rows], task.layout(run).client[rows]
    base = fedfact.base_model(task, FedFACTConfig(**SMALL), run)
    p = Trained.of(from_tensors(base["parameters"])).predict_proba(x)
    z = table.scores(p, table.members({"group": group}), client)
    np.testing.assert_array_equal(z.argmax(1), found.decide(x, group, client).argmax(1))


def test_notes_say_what_was_solved_and_for_whom():
    task = world(shape=MULTI)
    h, run, _ = arm("fedfact", task)
    notes = run.notes
    assert notes["solver"]["converged"]
    assert notes["solver"]["kkt"] < 1e-6
    assert {(r["level"], r["client"]) for r in notes["prices"]} == {
        ("global", None), *(("local", str(k)) for k in range(3)),
    }  # fmt: skip
    _, before = plain(task, run)
    _, y, group, _ = task.part(run, "valid")
    for flip in notes["flips"]:
        own, j = group == task.groups.tolist().index(flip["group"]), task.classes.index(flip["to"])
        assert flip["share"] == pytest.approx(((h[own, j] == 1) & (before[own, j] == 0)).mean())
        assert flip["n"] == own.sum()
    assert notes["valid"] == pytest.approx(h[np.arange(len(y)), y].mean())
    assert "counts" not in notes
    assert arm("none", task)[1].notes["counts"] == suppress_few(task.counts(run))


def test_warnings_name_one_group_and_too_few_rounds():
    table = synthetic_table(900, groups=1, clients=3, seed=0)
    task = Classify(table, ClassifyConfig(data="synthetic", clients=3, gamma=5.0))
    h, run, _ = arm("fedfact", task, rounds=2)
    assert "there is one group: nobody to compare, and nothing is constrained" in run.warnings
    assert any("still improving after 2 rounds" in text for text in run.warnings)
    np.testing.assert_array_equal(h, arm("none", task, rounds=2)[0])


def test_averaging_keeps_the_round_with_the_least_loss_on_calibration_rows():
    # catches the last round being served, and calibration rows that are trained on
    task, run = world(), ArmRun(None, 0, "none")
    config = FedFACTConfig(rounds=200, local_steps=20, learning_rate=0.05, patience=3)
    base = fedfact.base_model(task, config, run)
    losses = [entry["valid/loss"] for entry in base["curve"]]
    assert base["converged"]
    assert len(losses) - 1 - int(np.argmin(losses)) <= 4
    x, y, _, _ = task.part(run, "valid")
    p = Trained.of(from_tensors(base["parameters"])).predict_proba(x)
    assert -np.log(p[np.arange(len(y)), y]).mean() == pytest.approx(min(losses), abs=1e-5)


def test_the_placebo_of_a_blind_decision_does_not_know_the_groups_either():
    # catches a model of groups that is fitted to the true ones: the placebo was then the remedy
    task = world()
    remedy, _, _ = arm("fedfact", task, blind=True)
    placebo, _, _ = arm("random", task, blind=True)
    group = task.part(ArmRun(None, 0, "x"), "valid")[2]
    assert (remedy != placebo).any()
    assert gap(remedy, group) < gap(placebo, group)


def test_arms_without_a_meaning_for_the_data_are_left_out_and_refused_by_name():
    # catches a run that fails after an hour because its last arm knows two classes alone
    task = world("equalized_odds")
    chosen, left = _fitting(spec_of(fedfact.run), task, None)
    assert {a.name for a in chosen} == set(ARMS) - {"fedfb", "oracle", "hull"}
    assert [text.split(":")[0] for text in left] == ["arm oracle is left out", "arm fedfb is left out"]
    assert {a.name for a in _fitting(spec_of(fedfact.run), world(shape=MULTI), None)[0]} == set(ARMS) - {
        "thresholds", "reductions", "hull"}  # fmt: skip
    with pytest.raises(InputError, match="FedFB knows demographic parity alone"):
        _fitting(spec_of(fedfact.run), task, ["none", "fedfb"])


# -- rounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "randomised", "shape"),
    [("demographic_parity", False, MULTI), ("equalized_odds", True, BINARY), ("demographic_parity", True, BINARY)],
)
def test_a_fit_in_rounds_is_that_on_pooled_rows(criterion, randomised, shape, monkeypatch):
    # catches tolerances, prices or shares of clients that are lost on the way, and rounds that nobody counts
    task = world(criterion, shape)

    def pooled(task, p, y, group, client):  # what is compared are the programs
        return _calibration(p, y, group, [str(g) for g in task.groups], np.full(len(p), 1.0 / len(p)))

    monkeypatch.setattr(fedfact, "_calibrated_in_rounds", pooled)
    (wanted, central, _), (h, run, _) = (
        arm("fedfact", task, fit=fit, randomised=randomised) for fit in ("central", "rounds")
    )
    np.testing.assert_allclose(h, wanted, atol=0.0 if not randomised else 1e-4)
    for key in ("gap_randomised", "gap_deterministic", "price"):
        numbers = [[r[key] for r in notes["prices"] if r[key] is not None] for notes in (run.notes, central.notes)]
        np.testing.assert_allclose(*numbers, atol=1e-6)
    assert run.notes["calibration"] == pytest.approx(central.notes["calibration"], abs=1e-6)
    assert "exchange" not in central.notes
    table = (2 if criterion == "equalized_odds" else 1) * shape[0] * shape[1]
    assert run.notes["exchange"]["up"] == 8 * (table + 1)  # sums of a table and one value
    assert run.notes["exchange"]["down"] == 8 * (table + 3 + 3 + 1)  # a table, three settings, three names, the round
    assert run.notes["exchange"]["rounds"] >= run.notes["solver"]["steps"] > 10
    assert run.notes["exchange"]["calibrating"] == (300 if criterion == "equalized_odds" else 0)
    assert run.notes["solver"]["kkt"] < 1e-6


@pytest.mark.parametrize("m", [2, 3])
def test_probabilities_are_calibrated_at_clients_as_on_pooled_rows(m, monkeypatch):
    # catches raw scores in equalized odds, gradients of one client alone, and rows that are sent
    rng = np.random.default_rng(m)
    n = 1500
    group, client = rng.integers(0, 2, n), rng.choice(3, n, p=[0.6, 0.3, 0.1])
    true = softmax(1.5 * rng.normal(size=(n, m)) + 0.5 * np.eye(m)[group] + 0.4 * np.eye(m)[client % m], axis=1)
    y = (true.cumsum(1) < rng.random(n)[:, None]).sum(1)
    sharp = np.where(group == 1, 2.5, 0.5)[:, None]  # sure of one group, shy of the other, and fond of the first class
    p = softmax(sharp * np.log(true) + 0.7 * np.eye(m)[0], axis=1)
    task = SimpleNamespace(groups=[0, 1], clients=["a", "b", "c"])
    sent = []

    def watched(algorithm, data, **options):
        state, privates = drive(algorithm, data, **options)
        sent.append(sum(v.size for v in algorithm.template(state, "a").values()))
        return state, privates

    monkeypatch.setattr(fedfact, "drive", watched)
    found = fedfact._calibrated_in_rounds(task, p, y, group, client)
    assert sent == [m * (m + 1) + 3] * 2  # a model and (rows, loss, accuracy)
    for g in (0, 1):
        own, label = np.log(p[group == g]), y[group == g]
        x = own - own.mean(1, keepdims=True)
        pooled = LogisticRegression(C=1e6, max_iter=1000).fit(x, label).predict_proba(x)
        (a, b), some = found[str(g)], np.arange(len(label))
        wanted, now, raw = (
            -np.log(q[some, label]).mean() for q in (pooled, softmax(own @ a + b, axis=1), p[group == g])
        )
        assert wanted - 1e-6 < now < wanted + 1e-4
        assert raw > now + 0.02
