"""The loop's companion: what resumes, what is kept, when it ends."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from upright.contract import InputError, PositiveInt, Training
from upright.experiment.folders import ArmRun, RunFolder


class Sizes(Training):
    """Settings of a loop."""

    epochs: PositiveInt = 40
    check_every: PositiveInt = 2
    patience: PositiveInt = 3


class Killed(Exception):
    """Stands for a kill."""


def walk(run, config, scores, kill=None, **more):
    """Train one weight towards its epoch's number; scores by epoch; stop by a kill in the middle of an epoch."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    own = {"alpha": 1.0}
    with run.training(config, model=model, optimiser=optimiser, own=own, **more) as epochs:
        for epoch in epochs:
            optimiser.zero_grad()
            ((model.weight - epoch) ** 2).sum().backward()
            optimiser.step()
            own["alpha"] *= 1.5
            if epoch == kill:
                raise Killed
            epochs.log(loss=float(model.weight.detach()))
            if epochs.due:
                epochs.log(valid=scores(epoch))
                epochs.check(scores(epoch))
    return model, own, epochs


@pytest.mark.parametrize("kill", [0, 1, 5, 6, 11])
def test_a_killed_loop_goes_on_to_the_same_bits(tmp_path, kill):
    # catches: an epoch done twice, a lost optimiser state, stale counts that start anew, a log line twice
    def scores(epoch):
        return -abs(epoch - 9)

    whole = ArmRun(RunFolder(tmp_path / "whole"), 0, "a")
    expected = walk(whole, Sizes(), scores)
    place = RunFolder(tmp_path / "killed")
    with pytest.raises(Killed):
        walk(ArmRun(place, 0, "a"), Sizes(), scores, kill=kill)
    again = ArmRun(place, 0, "a")
    found = walk(again, Sizes(), scores)
    assert torch.equal(found[0].weight, expected[0].weight)
    assert found[1] == expected[1]
    assert again.metrics == whole.metrics
    assert (found[2].best, found[2].best_epoch, found[2].converged) == (0, 10, True)
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_leaving_the_loop_restores_the_best_and_an_error_does_not():
    # catches: the last weights served, a best that is a view of the weights
    model, own, epochs = walk(ArmRun(None, 0, "a"), Sizes(), lambda epoch: -abs(epoch - 9))
    weight = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(weight.weight)
    optimiser = torch.optim.Adam(weight.parameters(), lr=0.1)
    for epoch in range(10):
        optimiser.zero_grad()
        ((weight.weight - epoch) ** 2).sum().backward()
        optimiser.step()
    assert torch.equal(model.weight, weight.weight)
    assert own["alpha"] == pytest.approx(1.5**10)
    assert epochs.best_epoch == 10


@pytest.mark.parametrize(
    ("patience", "best_at", "ends"),
    [(3, 3, 10), (3, 23, 36), (1, 1, 4), (3, 39, 40)],  # by hand: 2 + 3 checks, 12 + 6, 1 + 1, never
)
def test_the_plateau_rule_waits_for_a_third_of_the_checks(patience, best_at, ends):
    # catches: a patience of three checks that ends a curve which creeps upwards after fifty
    run = ArmRun(None, 0, "a")
    config = Sizes().replace(patience=patience)
    _, _, epochs = walk(run, config, lambda epoch: -abs(epoch - best_at))
    assert len(run.metrics) == ends
    assert epochs.converged == (ends < 40)


@pytest.mark.parametrize(("slope", "more"), [(0.003, True), (0.0001, False), (-0.003, False)])
def test_a_curve_that_still_rises_is_not_converged(slope, more, tmp_path):
    # catches: one lucky check that ends a loop whose curve creeps upwards below it, and a kill that forgets the curve
    def scores(epoch):
        return 0.28 if epoch == 1 else 0.2 + slope * epoch / 2

    _, _, epochs = walk(ArmRun(None, 0, "a"), Sizes(epochs=30), scores)
    assert (epochs._done == 30, epochs.converged) == (more, not more)
    place = RunFolder(tmp_path / "killed")
    with pytest.raises(Killed):
        walk(ArmRun(place, 0, "a"), Sizes(epochs=30), scores, kill=7)
    assert walk(ArmRun(place, 0, "a"), Sizes(epochs=30), scores)[2]._done == epochs._done


def test_without_patience_a_loop_runs_to_its_end_and_ties_go_to_the_later():
    run = ArmRun(None, 0, "a")
    config = Sizes()
    with run.training(config, patience=None, epochs=8) as epochs:
        for _ in epochs:
            if epochs.due:
                epochs.check(0.5, ties=True)
    assert (len(run.metrics), epochs.best_epoch, epochs.converged) == (8, 8, False)
    with run.training(config, patience=None, epochs=8) as again:  # finished: nothing is done twice
        assert list(again) == []


def test_a_silent_run_inside_a_run_shares_its_streams_and_writes_nothing(tmp_path):
    run = ArmRun(RunFolder(tmp_path / "r"), 5, "a")
    inner = run.silent()
    assert inner.rng("x").integers(1 << 30) == run.rng("x").integers(1 << 30)
    inner.log(1, loss=1.0)
    inner.note("n", 1)
    inner.save(1, {"a": 1}, best=True)
    assert inner.restore("best") == {"a": 1}
    assert run.restore() is None
    assert not (tmp_path / "r" / "metrics.jsonl").exists()
    assert inner.shared("k", {}, lambda: {"v": 2}) == run.shared("k", {}, lambda: {"v": 3}) == {"v": 2}


def test_training_settings_are_refused_out_of_range():
    for field in dataclasses.fields(Training):
        with pytest.raises(ValueError, match=field.name):
            Training(**{field.name: 0})


def test_a_score_that_is_no_number_is_an_error_and_keeps_what_was_done(tmp_path):
    # catches: a loop that diverged, or validates on nobody, trained to its last epoch as if it were well
    run = ArmRun(RunFolder(tmp_path / "a"), 0, "a")
    with pytest.raises(InputError, match="validation score of epoch 4 is NaN"):
        walk(run, Sizes(), lambda epoch: float("nan") if epoch > 2 else 1.0)
    assert run.restore("best")["epoch"] == 2


def test_an_epoch_that_may_not_be_served_is_never_the_best(tmp_path):
    # catches: a tie with the score of nothing at all, which would serve a phase before the defence
    run = ArmRun(RunFolder(tmp_path / "a"), 0, "a")
    with run.training(Sizes(), epochs=2) as epochs:
        for _ in epochs:
            assert not epochs.check(-math.inf, ties=True)
    assert epochs.best_epoch == 0
