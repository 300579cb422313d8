"""Sweeps: other strengths of every arm, scored beside them, kept out of differences and verdicts, and resumable."""

from __future__ import annotations

import numpy as np
import pytest

from upright.contract import Arm, InputError
from upright.evidence.units import read_units
from upright.experiment.folders import read_json
from upright.experiment.registry import load_method
from upright.experiment.runner import Ask, _swept, execute, resume_all
from upright.report import build_report
from upright.report.read import read_folder

SPEC = load_method("raid")
SMALL = {
    "attribute": "community",
    "dim": 4,
    "folds": 3,
    "attackers": ["logistic"],
    "epochs": 2,
    "defence_epochs": 2,
    "check_every": 1,
    "batch_size": 512,
}
ARMS = ["none", "raid", "mean"]
OWN, VALUES = SPEC.config().alpha, SPEC.sweep["alpha"]


def others(own=OWN, arm="raid"):
    """Strengths of the sweep other than an arm's own, as they are written."""
    declared = next(a.sweep for a in SPEC.arms if a.name == arm)
    return [f"{value:g}" for value in declared or VALUES if value != own]


def small(folder, **options):
    settings = SMALL | options.pop("settings", {})
    return execute(Ask("raid", data="synthetic", settings=settings, **{"arms": ARMS} | options), folder=folder)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    return small(tmp_path_factory.mktemp("sweep") / "a", sweep=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return small(tmp_path_factory.mktemp("alone") / "a")


def arms_of(folder):
    return {arm["name"]: arm for arm in read_json(folder / "summary.json")["arms"]}


def test_every_arm_but_the_baseline_has_its_other_strengths(swept):
    # the configured strength is the arm itself: catches an arm that is trained twice, and a swept baseline
    found = arms_of(swept)
    assert OWN in VALUES
    assert list(found) == [*ARMS, *(f"{a}@{s}" for a in ARMS[1:] for s in others(arm=a))]
    assert others(arm="mean") != others()  # an arm has a grid of its own where it declares one
    assert "raid@0.1" in found
    for name, arm in found.items():
        base, _, strength = name.partition("@")
        if strength:
            assert arm["role"] == "sweep"
            assert arm["settings"] == {**found[base]["settings"], "alpha": float(strength)}
            assert arm["title"] == f"{found[base]['title']}, alpha {strength}"
            assert arm["notes"]["alpha_end"] == float(strength)
    assert {b.arm for b in read_units(swept / "units.parquet")} == set(found)


def test_a_sweep_shows_levels_and_decides_nothing(swept, alone):
    # catches strengths that enter the paired comparisons: their number would widen every corrected interval
    evidence, plain = (read_json(f / "summary.json")["evidence"] for f in (swept, alone))
    leaks = {level["arm"] for level in evidence["levels"] if level["statistic"] == "leakage:attack:attribute"}
    assert leaks == set(arms_of(swept))
    assert {d["against"] for d in evidence["differences"]} == {"none", "mean"}
    assert {d["arm"] for d in evidence["differences"]} == {"raid"}
    assert evidence["differences"] == plain["differences"]
    assert evidence["verdict"] == plain["verdict"]


def test_arms_of_a_sweep_are_the_arms_without_it(swept, alone):
    # catches strengths that shift random streams or share state with the arm they come from
    first, second = ({b.arm: b.scores for b in read_units(f / "units.parquet")} for f in (swept, alone))
    for arm in ARMS:
        for name, values in second[arm].values.items():
            np.testing.assert_array_equal(first[arm].values[name], values)


def test_a_strength_of_a_sweep_is_the_arm_at_that_strength(swept, tmp_path):
    found = small(tmp_path / "a", settings={"alpha": 0.1}, arms=["none", "raid"])
    mine = {b.arm: b.scores for b in read_units(found / "units.parquet")}["raid"]
    other = {b.arm: b.scores for b in read_units(swept / "units.parquet")}["raid@0.1"]
    for name, values in mine.values.items():
        np.testing.assert_array_equal(other.values[name], values)


def test_the_report_of_a_sweep_builds_and_keeps_strengths_to_fronts(swept, alone, tmp_path):
    # catches a report that falls over arms it does not know, and one that lists every strength as an arm of its own
    view = read_folder(swept)
    assert [arm.name for arm in view.arms] == ARMS
    assert {arm.name for arm in view.swept} == {name for name in arms_of(swept) if "@" in name}
    pages = [build_report(f, tmp_path / f"{i}.html").read_text(encoding="utf-8") for i, f in enumerate((swept, alone))]
    assert len(pages[0]) > len(pages[1])


def test_a_sweep_is_part_of_what_was_asked(swept):
    # catches a sweep that a resumed run forgets, and a folder taken for a run without one
    assert "--sweep" in read_json(swept / "run.json")["command"]
    assert read_json(swept / "config.json")["sweep"] is True
    with pytest.raises(InputError, match="other settings"):
        small(swept)
    assert resume_all([swept]) == ([swept], None)


def test_a_stopped_sweep_is_resumed_to_the_same_summary(swept, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise RuntimeError("out of paper")

    with monkeypatch.context() as patch:
        patch.setattr("upright.experiment.runner.write_units", stop)
        with pytest.raises(RuntimeError):
            small(tmp_path / "a", sweep=True)
    resume_all([tmp_path / "a"])
    assert (tmp_path / "a" / "summary.json").read_bytes() == (swept / "summary.json").read_bytes()
    assert read_json(tmp_path / "a" / "run.json")["resumed"] == 1


def test_a_tuned_strength_is_not_swept_again_and_keeps_its_other_settings():
    # the tuned arm has its own strength; its strengths keep whatever else was tuned
    arms = [SPEC.arm("baseline"), SPEC.arm("remedy"), SPEC.arm("trivial")]
    found = _swept(SPEC, SPEC.config(), arms, {"raid": {"alpha": 1.0}})
    assert [a.name for a in found] == [f"raid@{v}" for v in others(1.0)] + [f"mean@{v}" for v in others(arm="mean")]
    wanted = Arm("mean@0.1", "sweep", {"defence": "mean", "alpha": 0.1}, "mean matching, alpha 0.1")
    assert wanted in found


def test_tuned_settings_reach_the_strengths_of_their_arm(tmp_path):
    found = arms_of(
        small(
            tmp_path / "a", arms=["none", "raid"], sweep=True, arm_settings={"raid": {"alpha": 1.0, "refresh_every": 7}}
        )
    )
    assert [n for n in found if "@" in n] == [f"raid@{v}" for v in others(1.0)]
    assert all(found[n]["settings"]["refresh_every"] == 7 for n in found if n != "none")


def test_a_method_without_a_sweep_adds_nothing():
    spec = load_method("in_ucds")
    assert _swept(spec, spec.config(), spec.arms, {}) == []
