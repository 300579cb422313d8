"""Audit of rewards: what each sees, what a plug-in adds, and names that are none."""

from __future__ import annotations

import numpy as np
import pytest

from upright.contract import AuditSpec, InputError, spec_of
from upright.evidence.units import read_units
from upright.experiment.audit import run_audit
from upright.experiment.summary import read_summary
from upright.tasks.reward import RewardConfig, auc_by_violation, read_reward

SMALL = {"clips": 24, "pixels": 32, "frames": 16}


@pytest.fixture
def audited(bright, tmp_path, monkeypatch):
    monkeypatch.setattr("upright.experiment.audit.load_audit", lambda kind: spec_of(read_reward, AuditSpec))
    return run_audit("reward", {"names": ("fixed", "official", "bright"), **SMALL}, out=tmp_path / "out", draws=100)


def test_the_table_has_all_rewards_violations_and_cheats_and_a_gate_asks_the_worst(audited):
    # catches: a plug-in that is left out, areas of the wrong side, a cheat that is paid and not told
    summary = read_summary(audited)
    notes = summary.arms[0].notes
    assert {row["reward"] for row in notes["sizes"]} == {"fixed", "official", "bright"}
    assert len({row["violation"] for row in notes["sizes"]}) == 12
    assert {row["cheat"] for row in notes["cheats"]} == {"do_nothing", "copy_last", "vanish", "shake"}
    assert {row["edit"] for row in notes["edits"]} == {"codec", "blur", "brightness", "shift"}
    earns = {(row["reward"], row["cheat"]): row["earns"] for row in notes["cheats"]}
    assert all(earns["fixed", cheat] < -1.0 for cheat in ("do_nothing", "copy_last", "vanish", "shake"))
    verdict = summary.evidence.verdict
    assert "bright" in verdict["lines"]["cheats"]
    assert "fixed" not in verdict["lines"]["cheats"]
    (block,) = read_units(audited / "units.parquet")
    area = {name: np.nanmean(np.asarray(value)) for name, value in block.scores.values.items()}
    assert area["fixed"] > 0.95
    assert 0.3 < area["bright"] < 0.7
    by = np.asarray(block.scores.by["violation"])
    assert np.nanmean(np.asarray(block.scores.values["official"])[by == "vanish"]) < 0.8
    assert len(set(block.scores.cluster)) == 24


def test_clips_that_could_not_be_measured_take_no_part():
    # catches: undecided clips ranked as the worst, which halves the AUC of a reward that separates the others
    cost = np.concatenate([np.full(6, np.nan), np.zeros(6), np.ones(12)])
    found = auc_by_violation(cost, np.repeat([False, True], 12), np.zeros(24, np.int64))
    assert np.isnan(found).tolist() == np.isnan(cost).tolist()
    assert np.nanmean(found) == pytest.approx(1.0)


def test_names_that_are_no_rewards_are_refused():
    # catches: a bench of minutes before a typo is told
    with pytest.raises(InputError) as error:
        read_reward(RewardConfig(names=("fxed",)), seed=0, draws=10, margins={})
    assert error.value.args == (
        "'fxed' is no reward",
        "fixed, newton, official, paper, pixel_l1",
        "did you mean 'fixed'?",
    )
    with pytest.raises(InputError) as error:
        read_reward(RewardConfig(names=(3,)), seed=0, draws=10, margins={})
    assert error.value.args[:2] == ("a int", "names of rewards")
