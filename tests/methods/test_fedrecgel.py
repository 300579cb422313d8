"""FedRecGEL as a method: what its arms are, what it notes, and what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from upright.contract import InputError, spec_of, stream
from upright.evidence.units import Units
from upright.experiment.folders import ArmRun
from upright.experiment.runner import Ask, evidence_of, run_task
from upright.federation import recommender
from upright.methods import fedrecgel
from upright.methods.fedrecgel import FedRecGELConfig
from upright.recommendation import uploads
from upright.tasks.federated_next_item import FederatedNextItem

SPEC = spec_of(fedrecgel.run)
TINY = dict(SPEC.tiny)
tiny = FederatedNextItem.tiny


def train(task=None, arm="fedrecgel", seed=0, **settings):
    run, own = ArmRun(None, seed, arm), next(a.settings for a in SPEC.arms if a.name == arm)
    return fedrecgel.run(task or tiny(), FedRecGELConfig(**(TINY | dict(own) | settings)), run), run


@pytest.fixture(scope="module")
def ran():
    task = tiny()
    config = FedRecGELConfig(**TINY)
    return task, *run_task(SPEC, task, config, None, Ask("fedrecgel"))


def test_every_arm_is_scored_and_noted(ran):
    task, blocks, facts, warnings = ran
    assert [block.arm for block in blocks] == [arm.name for arm in SPEC.arms]
    assert warnings == []
    for fact in facts:
        assert 1 <= fact.notes["best_round"] <= TINY["rounds"]
        assert isinstance(fact.notes["converged"], bool)
        if fact.name == "central":
            continue
        ledger = fact.notes["ledger"]
        assert ledger["up_sparse"] == ledger["rows"] * (8 + 8 * TINY["dim"])
        assert ledger["up_dense"] == ledger["down"] == 8 * task.n_items * TINY["dim"]
        assert len(fact.notes["slice"]) == fedrecgel.SLICE
        middle = fact.notes["slice"][fedrecgel.SLICE // 2]
        assert middle["step"] == 0.0
        assert middle["first"] == middle["second"]
        # measured at one radius, also where an arm moves neither block, or one alone
        assert min(fact.notes["sharpness"].values()) > 0
        shown = fact.notes["agreement"]
        assert shown
        assert all(-1 <= row["cosine"] <= 1 and row["n"] == int(0.3 * task.n_users) for row in shown)
        assert sum(row["items"] for row in shown) <= task.n_items


def test_a_baseline_that_still_improves_is_what_to_mend_first(ran):
    # catches: advice that rests on arms which were stopped, where people look
    task, blocks, facts, _ = ran
    for ended, first in ((False, True), (True, False), ({"held": 5, "of": 6}, True), ({"held": 6, "of": 6}, False)):
        told = [dataclasses.replace(fact, notes={"converged": ended}) for fact in facts]
        found = evidence_of(SPEC, Units(blocks), task.metrics, Ask("fedrecgel"), facts=told, draws=50)
        assert found.verdict["next_steps"][0].endswith("(FedNCF, FedRecGEL).") is first


def test_one_dial_scales_every_arm():
    # catches a strength that does nothing in an arm, which tuning would then choose at random
    made = FedRecGELConfig(strength=3.0, rho_shared=0.1, rho_private=0.2, weight_decay=0.3, rate_factor=0.5)
    own = made.algorithm(tiny(), 0).config
    found = [own.rho_shared, own.rho_private, own.weight_decay, own.server_rate]
    np.testing.assert_allclose(found, [0.3, 0.6, 0.9, made.server_rate / 8])


def test_slices_lie_at_right_angles():
    task, seen, run = tiny(), [], ArmRun(None, 0, "x")
    algorithm = FedRecGELConfig(**TINY).algorithm(task, 0)
    state, start = algorithm.start(), algorithm.start()["shared.item"]

    class Watched:
        message = staticmethod(algorithm.message)

        def sharpness(self, message, privates, devices):
            seen.append((message["shared.item"] - start).ravel())
            return np.zeros((1, 3))

    fedrecgel._note_slice(Watched(), state, {}, task.devices, run)
    first, second = seen[0], seen[1]  # of one step along each
    assert np.linalg.norm(first) == pytest.approx(np.linalg.norm(second)) == pytest.approx(np.linalg.norm(start) / 2)
    assert abs(first @ second) < 1e-9 * (first @ first)


def test_alone_the_item_vectors_stay_and_the_devices_learn():
    # catches an anchor that learns from others after all
    (alone, run), (first, _) = train(arm="local"), train(arm="local", rounds=4)
    np.testing.assert_array_equal(alone.state["shared.item"], first.state["shared.item"])
    assert run.notes["update"] == 0.0
    assert np.abs(alone.users - first.users).max() > 1e-3


@pytest.mark.parametrize("backbone", ["dot", "neumf"])
def test_in_one_place_the_data_of_all_are_learnt_from(backbone):
    # catches an anchor that is left untrained: it is better than lists by chance
    task = tiny()
    model, run = train(task, arm="central", backbone=backbone, rounds=30, check_every=10, server_rate=0.02)
    found = task.score(model, "valid", run).values["hit@10"]
    assert np.mean(found) > 10 / (task.n_items - task.size.max()) + 0.05
    assert run.notes["best_round"] in (10, 20, 30)


def test_the_round_that_is_served_is_the_best_on_validation():
    task = tiny()
    model, run = train(task, rounds=12, check_every=3)
    seen = {line["step"]: line["valid/ndcg@10"] for line in run.metrics if "valid/ndcg@10" in line}
    assert sorted(seen) == [3, 6, 9, 12]
    assert run.notes["best_round"] == max(seen, key=seen.get)
    assert np.mean(task.score(model, "valid", run).values["ndcg@10"]) == pytest.approx(max(seen.values()), abs=1e-12)
    assert all(line["sharpness/shared"] > 0 for line in run.metrics if "sharpness/shared" in line)


def test_what_selects_on_the_test_item_says_so():
    _, run = train(tiny(mode="official"), rounds=2, check_every=2)
    assert any("test item" in text for text in run.warnings)


def test_noise_has_its_price_noted_and_needs_a_clip():
    pytest.importorskip("dp_accounting")
    task = tiny()
    for noise_at in ("server", "device"):
        own = {"clip": 1.0, "noise_multiplier": 1.0, "rounds": 2, "check_every": 2, "noise_at": noise_at}
        _, run = train(task, **own)
        (name,) = (name for name in run.notes if name.startswith("epsilon"))
        assert name == f"epsilon_{noise_at}"
        config = FedRecGELConfig(**TINY | own).algorithm(task, 0).config
        assert run.notes[name] == pytest.approx(uploads.epsilon(config, 0.1 / len(task.devices)))
        assert 0 < run.notes[name] < np.inf
    with pytest.raises(InputError, match="clip"):
        train(task, noise_multiplier=1.0)


def test_with_noise_the_last_round_is_served():
    # catches a choice of the round on validation data, which epsilon does not cover, and an end by patience
    pytest.importorskip("dp_accounting")
    task, noise = tiny(), {"clip": 0.1, "noise_multiplier": 1.0, "noise_seed": 2}
    model, run = train(task, rounds=12, check_every=3, patience=1, **noise)
    seen = {line["step"]: line["valid/ndcg@10"] for line in run.metrics if "valid/ndcg@10" in line}
    assert max(seen, key=seen.get) != 12  # or the best would be the last anyway
    assert (max(seen), run.notes["best_round"]) == (12, 12)
    assert "converged" not in run.notes
    assert np.mean(task.score(model, "valid", run).values["ndcg@10"]) == pytest.approx(seen[12], abs=1e-12)


def test_the_native_door_trains_what_the_method_trains():
    # catches a door with settings, names or streams of its own: given the method's seed and names, the tables are equal
    task = tiny()
    model, run = train(task, rounds=4, check_every=4)
    config = FedRecGELConfig(**TINY | {"rounds": 4}).algorithm(task, 0).config
    log = task.train
    own = {k: v for k, v in config.as_dict().items() if k not in ("n_items", "n_clients", "seed")}
    native = fedrecgel.FedRec(**own, seed=stream(run.seed, "federation"))
    names = tuple(task.devices)
    native.fit(dataclasses.replace(log, user_ids=names))
    assert fedrecgel.FedRec is recommender.FedRec
    np.testing.assert_array_equal(native.state["shared.item"], model.state["shared.item"])
    scores = model.score_all(np.arange(1))[0]
    assert native.recommend(names[0], k=1)[0][1] == pytest.approx(
        max(s for i, s in enumerate(scores) if i not in set(task.devices[names[0]].items)), abs=1e-12
    )
