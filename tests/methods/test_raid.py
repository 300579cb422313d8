"""RAID as a method: neutral settings, controls, constraints, what may not matter, and what arms share."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from upright.contract import InputError, UnitScores, spec_of
from upright.data.interactions import synthetic
from upright.experiment.folders import ArmRun, RunFolder
from upright.methods import raid
from upright.methods.raid import RAIDConfig
from upright.recommendation import controls, defence
from upright.recommendation.controls import Adversary, WithUsers
from upright.recommendation.defence import BarycenterDefense
from upright.tasks.private_next_item import PrivateNextItem

SPEC = spec_of(raid.run)
TINY = dict(SPEC.tiny)
tiny = PrivateNextItem.tiny


def train(task=None, arm="raid", seed=0, folder=None, **settings):
    run = ArmRun(folder, seed, arm)
    return raid.run(task or tiny(), RAIDConfig(**(TINY | settings)), run), run


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def spy(monkeypatch, name, home=defence):
    """Count and keep what a function of the module returns."""
    found, real = [], getattr(home, name)

    def counting(*args, **options):
        found.append(real(*args, **options))
        return found[-1]

    monkeypatch.setattr(home, name, counting)
    return found


# -- neutral settings -----------------------------------------------------------------------------------------------

PULLS = [
    {"variant": "sliced"}, {"variant": "bures"}, {"variant": "free"}, {"variant": "mmd"}, {"defence": "mean"},
    {"defence": "reversal"}, {"labels": "random"}, {"weights": "proportional"}, {"constraint": "lagrange"},
    {"variant": "free", "constraint": "coupled"},
]  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    """The baseline: no defence."""
    return train(arm="none", alpha=0.0)[0]


@pytest.mark.parametrize("pull", PULLS, ids=lambda p: "-".join(p.values()))
def test_alpha_zero_is_one_model_bit_by_bit_and_a_positive_one_is_another(plain, pull):
    # catches a defence that acts on its way (random numbers, an optimiser step, the order of batches)
    assert same_weights(train(alpha=0.0, **pull)[0], plain)
    assert not same_weights(train(alpha=0.5, **pull)[0], plain)


@pytest.mark.parametrize("backbone", ["neumf", "lightgcn"])
def test_alpha_zero_is_the_plain_model_for_the_other_backbones(backbone):
    plain, transport, reversal = (
        train(tiny(backbone=backbone), alpha=alpha, defence=defence)[0]
        for alpha, defence in ((0.0, "mean"), (0.0, "transport"), (0.5, "reversal"))
    )
    assert same_weights(plain, transport)
    assert not same_weights(plain, reversal)


@pytest.mark.parametrize("defence", ["transport", "mean", "reversal"])
def test_a_constant_attribute_equals_the_plain_recommender_and_says_so(plain, defence):
    model, run = train(tiny(merge_below=10**6), alpha=1.0, defence=defence)
    assert same_weights(model, plain)
    assert run.warnings == ["the attribute has one class: there is nothing to hide, the defence is zero"]
    assert all(line["defence"] == 0.0 for line in run.metrics if "defence" in line)


def test_transport_afterwards_moves_by_the_share_alpha_and_never_beyond():
    # 0 serves the model of `none`, trained as long as the others; 5 is a whole step, not five
    tables = {a: train(defence="after", alpha=a)[0].tables()[0] for a in (0.0, 0.5, 1.0, 5.0)}
    assert torch.equal(tables[0.0], train(alpha=0.0)[0].tables()[0])
    np.testing.assert_allclose(tables[0.5].numpy(), 0.5 * (tables[0.0] + tables[1.0]).numpy(), atol=1e-12)
    assert torch.equal(tables[1.0], tables[5.0])
    assert not torch.equal(tables[0.0], tables[1.0])


# -- the defence acts -----------------------------------------------------------------------------------------------


def spread(model, task, users):
    """Squared distances of class means from their centre, in variances of the table."""
    table = model.tables()[0].detach()
    means = torch.stack([table[users & (task.labels == c)].mean(0) for c in task.classes])
    return float((means - means.mean(0)).square().sum() / table.var(0).sum())


@pytest.mark.parametrize(
    "settings", [{"variant": "sliced"}, {"variant": "bures"}, {"defence": "mean"}, {"labels": "random"}]
)
def test_class_means_come_together_except_under_random_labels(settings):
    # catches a flipped sign, and a placebo that uses the true classes
    task = tiny()
    fitted = ~task.held_out(ArmRun(None, 0, "x"))
    longer = {"epochs": 12, "defence_epochs": 12, "check_every": 6}
    before, after = (spread(train(task, alpha=a, **longer, **settings)[0], task, fitted) for a in (0.0, 3.0))
    assert before > 0.1
    assert (after < 0.2 * before) == ("labels" not in settings)


@pytest.mark.parametrize(("backbone", "width"), [("bprmf", 8), ("neumf", 16), ("lightgcn", 16)])
def test_the_defence_covers_all_that_is_held_of_a_user(monkeypatch, backbone, width):
    # D5: catches a defence of half of NeuMF's table, or of the propagated rows alone
    seen, real = [], BarycenterDefense.step
    monkeypatch.setattr(BarycenterDefense, "step", lambda self, t, u: seen.append(t.shape) or real(self, t, u))
    train(tiny(backbone=backbone))
    assert set(seen) == {(120, width)}


def test_one_term_a_factor_of_a_sum_and_one_for_a_product(monkeypatch):
    split = synthetic(seed=0)
    half = np.where(np.arange(120) % 2 == 0, "x", "y")
    split = dataclasses.replace(split, user_columns={**split.user_columns, "half": half})
    for attribute, count in (("half+community", 2), ("half*community", 1)):
        made = spy(monkeypatch, "BarycenterDefense")
        config = tiny(folds=2).config.replace(attribute=attribute)
        _, run = train(PrivateNextItem(split, config), defence_epochs=2)
        assert len(made) == count
        assert sorted(len(d.classes) for d in made) == ([2, 3] if count == 2 else [6])
        assert len(run.notes["barycenter"]) == math.ceil(2 * math.ceil(len(split.train.user) / 256) / 3)
        monkeypatch.undo()


def test_the_defence_is_not_fitted_on_held_out_users(monkeypatch):
    made = spy(monkeypatch, "BarycenterDefense")
    task = tiny()
    train(task)
    train(tiny(held_out_known=False))
    out = task.held_out(ArmRun(None, 0, "other arm"))
    for one, known in zip(made, (True, False), strict=True):
        assert ((one.fitted < 0) == out).all()
        assert ((one.codes >= 0) == (np.ones(120, dtype=bool) if known else ~out)).all()


def test_random_labels_move_among_known_users_and_keep_sizes(monkeypatch):
    # catches a placebo that gives unknown users a class, changes sizes, or is the same at every seed
    made = spy(monkeypatch, "BarycenterDefense")
    task = tiny(known=0.8)
    for seed, labels in ((0, "true"), (0, "random"), (0, "random"), (1, "random")):
        train(task, seed=seed, labels=labels)
    true, first, again, other = (d.codes for d in made)
    assert 0 < (true < 0).sum() == (task.labels == "").sum()
    for codes in (first, other):
        assert ((codes < 0) == (true < 0)).all()
        assert (np.bincount(codes[codes >= 0]) == np.bincount(true[true >= 0])).all()
        agree = (codes == true)[true >= 0].mean()
        assert agree == pytest.approx(1 / 3, abs=5 * (2 / 9 / 96) ** 0.5)
    assert (first == again).all()
    assert (first != other).any()


def test_mean_and_reversal_are_what_they_say(monkeypatch):
    made = spy(monkeypatch, "Adversary", controls)
    train(defence="reversal")
    assert isinstance(made[0], Adversary)
    guards = spy(monkeypatch, "BarycenterDefense")
    train(defence="mean", variant="free")
    assert guards[0].method == "mean"


def test_noise_costs_what_transport_costs():
    # catches noise matched to another strength, or to the reference
    task, longer = tiny(), {"alpha": 0.3, "epochs": 20, "defence_epochs": 12}
    transport = train(task, **longer)[1].notes["valid"]
    model, run = train(task, defence="noise", **longer)
    assert run.notes["valid_wanted"] == transport < 0.95 * run.notes["reference"]["valid"]
    assert run.notes["noise"] > 0
    reached = float(np.nanmean(task.score(model, "valid", run).values["ndcg@10"]))
    assert run.notes["valid"] == reached
    assert 0.99 * transport <= reached <= transport
    assert isinstance(model, WithUsers)


# -- constraints ----------------------------------------------------------------------------------------------------


class Scripted(PrivateNextItem):
    """A task whose validation NDCG is written down beforehand."""

    def score(self, result, split, run):
        """Return the next value of the script."""
        return UnitScores("user", [0], {"ndcg@10": np.array([self.script.pop(0)])})


def test_lagrange_raises_alpha_within_tau_and_lowers_it_otherwise():
    # reference 0.5 and tau 0.1: 0.45 is just within. Catches a flipped comparison and an absolute tau
    task = Scripted.tiny()
    task.script = [0.3, 0.5, 0.46, 0.44, 0.6, 0.449]
    _, run = train(task, alpha=1.0, constraint="lagrange", tau=0.1, defence_epochs=8)
    assert [line["alpha"] for line in run.metrics if "alpha" in line] == pytest.approx(
        [1, 1, 1.25, 1.25, 1.0, 1.0, 1.25, 1.25]
    )
    assert run.notes["alpha_end"] == pytest.approx(1.0)
    assert task.script == []


@pytest.mark.parametrize(
    ("second", "served"), [((0.6, 0.46), (8, 0.46)), ((0.6, 0.44), (6, 0.6)), ((0.43, 0.41), (6, 0.43))]
)
def test_lagrange_serves_the_last_check_within_tau_and_without_one_the_best(second, served):
    # the best NDCG would be that of the smallest alpha: catches a multiplier that is moved and then thrown away
    task = Scripted.tiny()
    task.script = [0.3, 0.5, 0.9, 0.1, *second]
    _, run = train(task, alpha=1.0, constraint="lagrange", tau=0.1, defence_epochs=8)
    assert (run.notes["best_epoch"], run.notes["valid"]) == served


def test_alpha_stays_without_lagrange_and_the_best_check_of_the_second_half_is_served():
    # 0.9 lies in the first half, 0.7 in the second; catches a choice before the defence had time, and on the last check
    task = Scripted.tiny()
    task.script = [0.3, 0.5, 0.9, 0.1, 0.7, 0.6]
    model, run = train(task, alpha=1.0, defence_epochs=8)
    assert (run.notes["best_epoch"], run.notes["valid"], run.notes["alpha_end"]) == (6, 0.7, 1.0)
    other = Scripted.tiny()
    other.script = [0.3, 0.5, 0.9, 0.1, 0.7, 0.6]
    _, kept = train(other, alpha=1.0, defence_epochs=8)
    assert same_weights(model, Served(kept.restore("best")["parts"]["model"]))


class Served:
    """A state that can be compared with a model."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        """Return the state."""
        return self.state


@pytest.mark.parametrize("variant", ["sliced", "bures", "mmd"])
def test_coupling_needs_free(variant):
    with pytest.raises(InputError, match=f"constraint='coupled' with variant '{variant}'"):
        train(variant=variant, constraint="coupled")


def test_coupling_pulls_the_support_by_the_recommendation_loss(monkeypatch):
    # once after each refresh, downhill; catches a coupling that is skipped or that runs every step
    pulled, real = [], BarycenterDefense.couple

    def couple(self, loss_of, rate=0.1):
        before = loss_of(self._state.shares @ self._state.support).item()
        real(self, loss_of, rate)
        pulled.append((before, loss_of(self._state.target).item()))

    monkeypatch.setattr(BarycenterDefense, "couple", couple)
    model, run = train(variant="free", constraint="coupled", alpha=0.5)
    assert len(pulled) == len(run.notes["barycenter"])
    assert sum(after < before for before, after in pulled) > 0.8 * len(pulled)
    assert not same_weights(model, train(variant="free", alpha=0.5)[0])


# -- what may not matter --------------------------------------------------------------------------------------------


def permuted_test(split, seed=0):
    """The same split with other test items: drawn among items outside each user's training and validation rows."""
    rng = np.random.default_rng(seed)
    taken = {(u, i) for part in (split.train, split.valid) for u, i in zip(part.user, part.item, strict=True)}
    item = split.test.item.copy()
    for row, u in enumerate(split.test.user):
        free = [i for i in range(split.train.n_items) if (u, i) not in taken]
        item[row] = rng.choice(free)
        taken.add((u, item[row]))
    return dataclasses.replace(split, test=dataclasses.replace(split.test, item=item))


@pytest.mark.parametrize("arm", [a.name for a in SPEC.arms])
def test_no_test_item_reaches_training_or_choice(arm):
    # D6: published code chooses its checkpoint on test
    split = synthetic(seed=0)
    settings = next(a.settings for a in SPEC.arms if a.name == arm)
    first, second = (
        train(PrivateNextItem(s, tiny().config), arm, **settings)[0] for s in (split, permuted_test(split))
    )
    assert (split.test.item != permuted_test(split).test.item).any()
    assert same_weights(first, second)


@pytest.mark.parametrize("settings", [{"alpha": -1.0}, {"tau": 1.0}, {"variant": "exact"}, {"reg": 0.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        RAIDConfig(**settings)


# -- the reference, and what arms share -----------------------------------------------------------------------------


def test_the_reference_stops_on_validation_and_keeps_its_best_state():
    task = Scripted.tiny()
    task.script = [0.2, 0.6, 0.5, 0.4, 0.9]
    config = RAIDConfig(**TINY | {"epochs": 50, "patience": 2})
    found = raid.reference(task, config, ArmRun(None, 0, "x"))
    assert (found["valid"], found["epoch"], found["converged"], len(found["curve"])) == (0.6, 4, True, 8)
    shorter = Scripted.tiny()
    shorter.script = [0.2, 0.6]
    other = raid.reference(shorter, config.replace(epochs=4), ArmRun(None, 0, "y"))
    assert not other["converged"]
    for name, value in other["model"].items():
        assert torch.equal(value, found["model"][name])


def test_arms_of_a_folder_share_the_reference_and_other_first_phases_do_not(tmp_path, monkeypatch):
    # catches a reference for each arm (seven times the work), and one that is shared although it was trained otherwise
    found = spy(monkeypatch, "reference", raid)
    folder = RunFolder(tmp_path / "run")
    for arm in SPEC.arms:
        train(arm=arm.name, folder=folder, **arm.settings)
    assert len(found) == 1
    train(arm="fast", folder=folder, learning_rate=0.02)
    assert len(found) == 2
    train(arm="later", folder=folder, defence_epochs=3, refresh_every=7)
    assert len(found) == 2


def test_arms_of_a_folder_equal_arms_in_memory(tmp_path):
    # catches a shared reference that is changed by the arm that trains on from it
    folder = RunFolder(tmp_path / "run")
    for arm in ("none", "raid", "mean", "noise"):
        settings = next(a.settings for a in SPEC.arms if a.name == arm)
        one, run = train(arm=arm, folder=folder, **settings)
        other, memory = train(arm=arm, **settings)
        assert same_weights(one, other)
        assert run.metrics == memory.metrics
        assert run.notes == memory.notes


def test_noise_takes_the_utility_that_transport_has_left(tmp_path, monkeypatch):
    made = spy(monkeypatch, "BarycenterDefense")
    folder = RunFolder(tmp_path / "run")
    train(arm="none", folder=folder, alpha=0.0)
    _, remedy = train(folder=folder)
    assert len(made) == 2
    _, noise = train(arm="noise", folder=folder, defence="noise")
    assert len(made) == 2  # neither the model of `none` nor transport was trained again
    assert noise.notes["valid_wanted"] == remedy.notes["valid"]
    train(arm="noise2", folder=folder, defence="noise", alpha=0.7)
    assert len(made) == 3  # another strength, another utility
    _, again = train(arm="remedy2", folder=folder, alpha=0.7)
    assert again.notes["valid"] != remedy.notes["valid"]


def test_shared_values_are_made_once_a_name_and_key(tmp_path):
    # catches a value under the wrong key, and one that is lost with the arm that made it
    calls = []

    def make():
        calls.append(1)
        return {"x": torch.arange(3), "n": len(calls)}

    folder = RunFolder(tmp_path / "run")
    first = ArmRun(folder, 0, "a").shared("one", {"rate": 0.1, "size": 3}, make)
    again = ArmRun(folder, 0, "b").shared("one", {"size": 3, "rate": 0.1}, make)
    assert (first["n"], again["n"]) == (1, 1)
    assert torch.equal(again["x"], torch.arange(3))
    again["x"] += 1
    assert ArmRun(folder, 0, "c").shared("one", {"size": 3, "rate": 0.1}, make)["x"].tolist() == [0, 1, 2]
    assert ArmRun(folder, 0, "a").shared("one", {"rate": 0.2, "size": 3}, make)["n"] == 2
    assert ArmRun(folder, 0, "a").shared("two", {"rate": 0.1, "size": 3}, make)["n"] == 3
    assert ArmRun(None, 0, "a").shared("one", {}, make)["n"] == 4
    assert ArmRun(None, 0, "a").shared("one", {}, make)["n"] == 5
    assert not list((tmp_path / "run").rglob("*.part"))


def test_the_log_holds_the_first_phase_and_then_the_defence():
    _, run = train()
    assert [line["step"] for line in run.metrics] == list(range(1, 9))
    assert ["defence" in line for line in run.metrics] == [False] * 4 + [True] * 4
    assert ["valid/ndcg@10" in line for line in run.metrics] == [False, True] * 4


@pytest.mark.parametrize("settings", [{}, {"constraint": "lagrange"}, {"variant": "free", "constraint": "coupled"},
                                      {"defence": "reversal"}])  # fmt: skip
def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path, settings, monkeypatch):
    # catches state of the defence, of alpha or of the choice that is not in the checkpoint
    whole, log = train(folder=RunFolder(tmp_path / "whole"), **settings)
    folder, saved, real = RunFolder(tmp_path / "cut"), [], ArmRun.save

    def save(self, step, state, *, best=False):
        real(self, step, state, best=best)
        if self.folder is None:
            return  # the reference, which is trained in memory
        saved.append(step)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ArmRun, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(folder=folder, **settings)
    again, rest = train(folder=folder, **settings)
    assert saved == [6, 8]
    assert same_weights(whole, again)
    assert rest.metrics == log.metrics
    assert rest.notes == log.notes


# -- nothing to hide, and what rivals note ---------------------------------------------------------------------------


def world_of(told, seed=0):
    """A world whose classes are the communities that histories follow, or are drawn by a coin."""
    split = synthetic(seed=seed, n_users=240, n_items=80, n_communities=2)
    coin = np.random.default_rng(7).choice(["a", "b"], 240)
    columns = split.user_columns if told else {"community": coin}
    config = tiny().config.replace(attackers=("logistic",))
    return PrivateNextItem(dataclasses.replace(split, user_columns=columns), config)


@pytest.mark.parametrize("told", [True, False])
def test_nothing_to_hide_is_said_before_the_defence_is_trained(told, monkeypatch):
    # catches: a defence that writes a label into vectors that did not tell it, without a word; a warning for everybody
    task, order = world_of(told), []
    real = controls.nothing_to_hide
    monkeypatch.setattr(controls, "nothing_to_hide", lambda *own: order.append("asked") or real(*own))
    monkeypatch.setattr(raid, "_defences", lambda *own, real=raid._defences: order.append("defence") or real(*own))
    _, run = train(task, epochs=30)
    assert order == ["asked", "defence"]
    said = [text for text in run.warnings if text.startswith("nothing shown to hide: the strongest attack reads 0.")]
    assert bool(said) != told
    _, none = train(task, arm="none", alpha=0.0)
    assert not none.warnings


def test_what_is_to_hide_is_asked_of_users_who_are_not_judged():
    # catches: a warning that is read off those on whom the defence is judged
    task, run = world_of(True), ArmRun(None, 0, "raid")
    model = task.model(run)
    first = controls.nothing_to_hide(task, model, run)
    held = task.held_out(run)
    real = task.held_out
    task.held_out = lambda run: held  # as it was drawn
    task.labels = np.where(held, np.roll(task.labels, 1), task.labels)
    assert controls.nothing_to_hide(task, model, run) == first
    task.held_out = real


def test_noise_says_its_epsilon_and_erasure_its_share():
    # catches: an epsilon for rows that were not clipped, a strength that erasure does not follow
    task = tiny(data="synthetic")
    _, run = train(task, arm="noise", defence="noise", alpha=3.0, epochs=20, defence_epochs=20)
    said = run.notes["epsilon"]
    assert (said["delta"], run.notes["noise"] > 0) == (1e-5, True)
    assert 0 < said["value"] < math.inf
    plain, _ = train(task, arm="none", alpha=0.0, epochs=20, defence_epochs=20)
    assert said["clip"] == pytest.approx(plain.tables()[0].detach().norm(dim=1).median().item())
    moved = {share: train(task, arm="leace", defence="leace", alpha=share)[0].tables()[0] for share in (0.5, 1.0, 9.0)}
    start = train(task, arm="none", alpha=0.0)[0].tables()[0]
    np.testing.assert_allclose(2 * (moved[0.5] - start).detach(), (moved[1.0] - start).detach(), atol=1e-10)
    assert torch.equal(moved[1.0], moved[9.0])
