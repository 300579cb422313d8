"""MRD as a method: what each arm draws by, what is scored, and what a run notes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from upright.contract import InputError
from upright.experiment.folders import ArmRun
from upright.experiment.registry import load_method
from upright.methods.mrd import THIRDS, MRDConfig, Unlearned, run, scoring, sizes, thirds
from upright.tasks.forget import Forget

MRD, NLL = np.array([4.0, 1.0, 2.0, 8.0, 0.5]), np.array([0.1, 0.4, 0.2, 0.3, 0.5])
TOKENS = np.array([10, 4, 20, 8, 5])


def _sizes(**settings):
    return sizes(MRDConfig(**settings), ArmRun(None, 0, "x"), MRD, NLL, TOKENS)


def test_each_arm_draws_by_what_it_says():
    # a control that is fed MRD by mistake would be no control
    arms = {a.name: a for a in load_method("mrd").arms}
    config = {name: MRDConfig(**arm.settings) for name, arm in arms.items()}
    np.testing.assert_array_equal(_sizes(sampling=config["mrd"].sampling), MRD)
    np.testing.assert_array_equal(_sizes(sampling=config["loss"].sampling), NLL)
    np.testing.assert_array_equal(_sizes(sampling=config["length"].sampling), TOKENS)
    np.testing.assert_array_equal(_sizes(per_token=True), MRD / TOKENS)
    assert [config[a].tau for a in ("uniform", "mrd", "squared", "hard_first")] == [0.0, 1.0, 2.0, -1.0]
    assert config["shuffle"].sampling == "shuffle"


def test_the_placebo_has_the_same_concentration_on_other_records_at_every_scoring():
    # a permutation drawn anew at each refresh would average out to uniform draws
    first, second = _sizes(sampling="random"), _sizes(sampling="random")
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first), np.sort(MRD))
    assert (first != MRD).any()


def test_thirds_are_of_equal_size_and_low_scores_are_hard():
    found = thirds(np.arange(9.0)[::-1])
    assert found == ["easy"] * 3 + ["middle"] * 3 + ["hard"] * 3
    assert [thirds(np.ones(7)).count(t) for t in THIRDS] == [3, 2, 2]


@pytest.mark.parametrize(
    "settings", [{"tau": float("nan")}, {"tau": float("inf")}, {"loss": "ga", "beta": 0.1}, {"lora": 2}]
)
def test_what_would_fail_after_teaching_is_refused_before(settings):
    with pytest.raises(InputError):
        MRDConfig(**settings)


def test_modes_are_other_estimators():
    modes = {m: scoring(MRDConfig(mode=m), 0) for m in ("recommended", "paper", "official")}
    assert [modes[m]["estimator"] for m in modes] == ["antithetic", "plain", "mean_abs"]
    assert (modes["official"]["sigma"], modes["official"]["probes"]) == (1e-5, 8)


@pytest.fixture(scope="module")
def task() -> Forget:
    return Forget.tiny(epochs=15, hidden=32)


def _unlearned(task: Forget, arm: str, **settings) -> tuple[Unlearned, ArmRun]:
    spec = load_method("mrd")
    own = next(a for a in spec.arms if a.name == arm)
    config = MRDConfig(**{**spec.tiny, "epochs": 4, **settings, **own.settings})
    held = ArmRun(None, 0, arm)
    return run(task, config, held), held


@pytest.fixture(scope="module")
def remedy(task):
    return _unlearned(task, "mrd")


def test_unlearning_brings_forgotten_records_closer_to_the_reference(task, remedy):
    # the whole way: a flipped sign of the loss would raise their probability
    before = task.score(_unlearned(task, "original")[0], "valid", ArmRun(None, 0, "x")).values
    after = task.score(remedy[0], "valid", ArmRun(None, 0, "x")).values
    assert np.nanmean(after["forget_probability"]) < 0.7 * np.nanmean(before["forget_probability"])
    assert np.nanmean(after["forget_gap"]) < np.nanmean(before["forget_gap"])
    assert np.nanmean(after["retain_probability"]) > 0.8 * np.nanmean(before["retain_probability"])


def test_every_arm_carries_the_same_scores_of_its_records(task, remedy):
    # scores taken after unlearning would sort records into other thirds in every arm
    found, _ = remedy
    other, _ = _unlearned(task, "uniform")
    assert found.values == other.values
    assert found.difficulty == other.difficulty
    assert set(found.values) == {"mrd", "mrd_per_token", "answer_tokens", "nll_before", "effort", "effort_sum"}
    ids = [r.id for r in task.sets(ArmRun(None, 0, "x")).forget]
    assert all(list(column) == ids for column in found.values.values())
    by_score = sorted(ids, key=found.values["mrd"].__getitem__)
    assert [found.difficulty[i] for i in by_score] == thirds(np.arange(20.0))


def test_answer_tokens_are_of_the_answer_whatever_is_scored(task):
    # catches: the length of prompt and answer under the name of the answer's
    found, held = _unlearned(task, "original", scope="sequence", effort=False)
    wanted = [float(one.answer_length) for one in task.encoded(held, "forget")]
    assert list(found.values["answer_tokens"].values()) == wanted
    whole = np.array(list(found.values["mrd"].values())) / np.array(list(found.values["mrd_per_token"].values()))
    assert (whole > wanted).all()


def test_a_run_notes_scores_weights_and_path(remedy):
    _, held = remedy
    assert [row["epoch"] for row in held.notes["weights"]] == [0, 1, 2, 3]  # refresh = 1
    assert all(1 <= row["effective_sample_size"] <= 20 for row in held.notes["weights"])
    assert held.notes["weights"][0]["rank_correlation"] == pytest.approx(1.0)
    assert [row["epoch"] for row in held.notes["path"]] == [1, 2, 3, 4]
    assert held.notes["scores"]["estimator"] == "antithetic"
    assert "mrd" not in held.notes["scores"]  # aggregates alone


def test_the_arm_retrain_is_the_reference(task):
    found, held = _unlearned(task, "retrain")
    assert np.nanmax(task.score(found, "valid", held).values["forget_gap"]) < 1e-12


def test_an_adapter_is_trained_in_the_place_of_the_weights_and_joined_with_them(task):
    # catches: weights that are trained as well, a change that the adapter's rank cannot hold, an adapter that is lost
    found, held = _unlearned(task, "uniform", lora=1, epochs=1, effort=False)
    original = task.model(held, "original")[0]
    assert type(found.model) is type(original)
    moved = {n: p - dict(original.named_parameters())[n] for n, p in found.model.named_parameters()}
    ranks = {n: int(torch.linalg.matrix_rank(d, rtol=1e-6)) for n, d in moved.items() if d.ndim == 2 and d.any()}
    assert ranks
    assert set(ranks.values()) == {1}
    assert all("proj" in n for n in ranks)
    assert not any(d.any() for n, d in moved.items() if n not in ranks)
