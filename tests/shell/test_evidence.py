"""Intervals and verdicts: right on what is known by construction, and unchanged by what must not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.maths import intervals
from upright.shell.evidence import evidence, verdict_of
from upright.shell.units import Block, Units

ARMS = [Arm("none", "baseline"), Arm("x", "remedy"), Arm("t", "trivial"), Arm("p", "placebo")]
METRICS = {"m": Metric("m", margin=0.02, title="M")}
STATISTICS = ["mean:m", "mean:m:g", "gap:m:g", "abs_gap:m:g", "worst_decile:m", "gini:m"]


def world(
    shift: dict[str, tuple[float, float]], *, seeds: int = 6, users: int = 120, noise: float = 0.02,
    groups=("high", "low"), arms=("none", "x", "t", "p"), same_seeds: bool = False,
) -> list[Block]:  # fmt: skip
    """Users of two groups (0.6 and 0.4 on average); an arm adds (to the first, to the second)."""
    rng = np.random.default_rng(1)
    label = np.array([groups[i % len(groups)] for i in range(users)])
    first = label == groups[0]
    level = np.where(first, 0.6, 0.4) + 0.1 * rng.normal(size=users)
    jitter = {(a, s): noise * rng.normal(size=users) for a in arms for s in range(seeds)}
    blocks = []
    for arm in arms:
        add = np.where(first, *shift.get(arm, (0.0, 0.0)))
        for seed in range(seeds):
            own = np.clip(level + add + jitter[arm, 0 if same_seeds else seed], 0, None)
            blocks.append(Block("r", arm, seed, UnitScores("user", range(users), {"m": own}, {"g": label.tolist()})))
    return blocks


def judge(blocks: list[Block], **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "arms": ARMS, "statistics": STATISTICS, "metrics": METRICS, "primary": "abs_gap:m:g", "cost": "mean:m",
        "title": "X", "draws": 400,
    }  # fmt: skip
    return evidence(Units(blocks), **settings | changes)


def level(found: dict, statistic: str, arm: str, group: str | None = None) -> dict:
    (row,) = [r for r in found["levels"] if (r["statistic"], r["arm"], r["group"]) == (statistic, arm, group)]
    return row


def change(found: dict, statistic: str, against: str) -> dict:
    (row,) = [r for r in found["differences"] if (r["statistic"], r["against"]) == (statistic, against)]
    return row


CLOSES = {"x": (0.0, 0.15)}  # the remedy lifts the second group


def test_levels_are_what_a_person_computes_by_hand():
    # catches a gap with the wrong sign or group, and a mean over the wrong cells
    blocks = world(CLOSES)
    blocks[0].scores.values["m"][:5] = np.nan
    found = judge(blocks)
    for arm in ("none", "x"):
        own = [b.scores for b in blocks if b.arm == arm]
        label = np.array(own[0].by["g"])
        values = np.stack([s.values["m"] for s in own])
        high, low = np.nanmean(values[:, label == "high"]), np.nanmean(values[:, label == "low"])
        assert level(found, "mean:m", arm)["value"] == pytest.approx(np.nanmean(values), abs=1e-12)
        assert level(found, "mean:m:g", arm, "high")["value"] == pytest.approx(high, abs=1e-12)
        assert level(found, "gap:m:g", arm)["value"] == pytest.approx(high - low, abs=1e-12)
        assert level(found, "abs_gap:m:g", arm)["value"] == pytest.approx(abs(high - low), abs=1e-12)
        tenths, ginis = [], []  # each seed is a result of its own: pooling them would mix the spread between seeds in
        for one in values:
            flat = np.sort(one[~np.isnan(one)])
            share = np.clip(0.1 * len(flat) - np.arange(len(flat)), 0, 1)
            tenths.append((flat * share).sum() / share.sum())
            ginis.append(np.abs(flat[:, None] - flat[None, :]).mean() / (2 * flat.mean()))
        assert level(found, "worst_decile:m", arm)["value"] == pytest.approx(np.mean(tenths), abs=1e-12)
        assert level(found, "gini:m", arm)["value"] == pytest.approx(np.mean(ginis), abs=1e-12)
    label = np.array(blocks[0].scores.by["g"])
    assert level(found, "mean:m:g", "x", "high")["n_units"] == (label == "high").sum()
    assert change(found, "mean:m", "none")["value"] == pytest.approx(
        level(found, "mean:m", "x")["value"] - level(found, "mean:m", "none")["value"]
    )


def test_units_undefined_at_every_seed_are_counted_not_dropped_in_silence():
    blocks = world({})
    for b in blocks:
        b.scores.values["m"][:7] = np.nan
    found = judge(blocks)
    row = level(found, "mean:m", "none")
    assert (row["n_units"], row["n_undefined"]) == (113, 7)
    assert level(found, "mean:m:g", "none", "high")["n_undefined"] == 4


def test_a_planted_effect_is_found_and_no_effect_is_not():
    # catches unpaired intervals: the spread between users (0.1) is larger than the effect that pairing must find
    found = judge(world({"x": (0.02, 0.02)}))
    planted = change(found, "mean:m", "none")
    assert 0 < planted["low"] < 0.02 < planted["high"] < 0.03
    assert planted["holm_p"] < 0.05
    nothing = change(judge(world({})), "mean:m", "none")
    assert nothing["low"] < 0 < nothing["high"]
    assert nothing["verdict"] == "equal"
    assert nothing["smallest_detectable"] < 0.02


def test_intervals_cover_as_often_as_they_say():
    # catches an interval that is too narrow: 95 % nominal, 200 worlds without an effect, 5 standard errors below
    covered = 0
    for world_seed in range(200):
        rng = np.random.default_rng(world_seed)
        values = {a: rng.normal(size=(6, 40)) for a in ("none", "x")}
        blocks = [
            Block("r", a, s, UnitScores("user", range(40), {"m": v[s]})) for a, v in values.items() for s in range(6)
        ]
        row = change(judge(blocks, statistics=["mean:m"], draws=200), "mean:m", "none")
        covered += row["low"] <= 0 <= row["high"]
    assert covered / 200 > 0.95 - 5 * np.sqrt(0.95 * 0.05 / 200)


def test_repeating_the_same_users_does_not_narrow_an_interval():
    # catches resampling of (seed, user) cells: six identical seeds are one seed's worth of users
    one = level(judge(world({}, seeds=1), draws=2000), "mean:m", "none")
    six = level(judge(world({}, seeds=6, same_seeds=True), draws=2000), "mean:m", "none")
    assert six["value"] == pytest.approx(one["value"])
    assert (six["high"] - six["low"]) / (one["high"] - one["low"]) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("low", "high", "direction", "word"),
    [
        (0.01, 0.03, "higher", "helps"), (0.01, 0.03, "lower", "harms"), (-0.03, -0.01, "lower", "helps"),
        (-0.03, -0.01, "higher", "harms"), (-0.01, 0.02, "higher", "equal"), (-0.01, 0.021, "higher", "inconclusive"),
        (-0.05, 0.001, "lower", "inconclusive"), (float("nan"), 0.1, "higher", "inconclusive"),
        (0.0, 0.0, "higher", "equal"),
    ],
)  # fmt: skip
def test_words_of_a_verdict(low, high, direction, word):
    # catches a swapped direction, and a borderline interval that counts as a finding
    assert verdict_of(low, high, direction, 0.02) == word


def test_a_remedy_that_beats_every_control_at_no_cost_works():
    verdict = judge(world(CLOSES))["verdict"]
    assert (verdict["works"], verdict["word"]) == (True, "works")
    assert verdict["sentence"].startswith("X works here: ")
    assert not verdict["notes"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 5}, "not shown to work with 5 seeds"),
        ({"arms": ("none", "x", "p")}, "not shown to work with a missing control"),
        ({"arms": ("none", "x", "t")}, "not shown to work with a missing control"),
        ({"shift": {"x": (0.0, 0.15), "p": (0.0, 0.15)}}, "it is not shown to be better than p"),
        ({"shift": {"x": (0.0, 0.15), "t": (0.0, 0.16)}}, "it is not shown to be better than t"),
        ({"shift": {"x": (0.0, 0.0)}}, "is not shown to work"),
        ({"shift": {"x": (-0.15, 0.0)}}, "closes the gap but costs more than its margin"),
    ],
)
def test_each_condition_of_works_is_needed(changes, says):
    # catches a verdict that forgets one of: six seeds, trivial remedy, placebo, effect, cost
    settings = {"shift": CLOSES} | changes
    verdict = judge(world(settings.pop("shift"), **settings))["verdict"]
    assert verdict["works"] is False
    assert verdict["word"] != "works"
    assert says in verdict["sentence"]


def test_five_seeds_are_said_to_be_too_few():
    assert any("at least 6 paired seeds" in n for n in judge(world(CLOSES, seeds=5))["verdict"]["notes"])


def test_a_cost_whose_metric_is_better_when_lower_is_read_the_right_way():
    # catches a rise of an error that passes as a gain
    error = {"m": Metric("m", "lower", margin=0.02, title="error")}
    dear = judge(world({"x": (0.0, 0.15)}), metrics=error)["verdict"]
    assert dear["works"] is False
    assert "closes the gap but costs more than its margin" in dear["sentence"]
    assert dear["notes"] == ["Levelling down: the gap is smaller although no group's mean rose."]
    cheap = judge(world({"x": (-0.15, 0.0)}), metrics=error)["verdict"]
    assert cheap["works"] is True
    assert not cheap["notes"]


def test_levelling_down_is_noted():
    # catches a gap that closes because the better-off lose, told as a success
    assert any("Levelling down" in n for n in judge(world({"x": (-0.15, 0.0)}))["verdict"]["notes"])
    assert not any("Levelling down" in n for n in judge(world({"x": (-0.05, 0.1)}))["verdict"]["notes"])


def test_one_group_gives_a_sentence_and_no_gap():
    found = judge(world({}, groups=("everybody",)))
    assert "there are not two groups" in found["verdict"]["sentence"]
    assert not [r for r in found["levels"] if "gap" in r["statistic"]]
    assert level(found, "mean:m:g", "none", "everybody")["value"] == level(found, "mean:m", "none")["value"]


def test_a_remedy_alone_is_told_that_it_has_nothing_to_be_compared_with():
    found = judge(world(CLOSES, arms=("x",)))
    assert "the run has no other arm to compare with" in found["verdict"]["sentence"]


def test_without_a_remedy_the_verdict_is_an_audit():
    found = judge(world({}, arms=("none",)))
    assert (found["verdict"]["works"], found["verdict"]["word"]) == (None, "audit")
    assert "outside what random groups show" in found["verdict"]["sentence"]
    null = level(found, "gap:m:g", "none")["null"]
    assert null["low"] < 0 < null["high"]
    assert 0 < null["expected_abs"] < 0.05


def test_the_order_of_blocks_and_units_changes_nothing():
    # catches pairing by position instead of by name
    blocks = world(CLOSES)
    rng = np.random.default_rng(3)
    shuffled = []
    for i in rng.permutation(len(blocks)):
        b, order = blocks[i], rng.permutation(120)
        scores = UnitScores("user", np.arange(120)[order], {"m": b.scores.values["m"][order]},
                            {"g": np.array(b.scores.by["g"])[order]})  # fmt: skip
        shuffled.append(Block(b.run, b.arm, b.seed, scores))
    assert judge(shuffled) == judge(blocks)


def test_evidence_is_a_function_of_its_seed():
    blocks = world(CLOSES)
    assert judge(blocks) == judge(blocks)
    assert judge(blocks, seed=1)["levels"][0]["low"] != judge(blocks)["levels"][0]["low"]
    assert judge(blocks, seed=1)["levels"][0]["value"] == judge(blocks)["levels"][0]["value"]


@pytest.mark.parametrize("statistic", ["median:m", "mean:other", "mean:m:age", "mean"])
def test_a_statistic_that_cannot_be_computed_is_refused(statistic):
    with pytest.raises(InputError, match="correct the part that is not in its list"):
        judge(world({}), statistics=[statistic])


def test_holm_multiplies_the_smallest_first():
    np.testing.assert_allclose(intervals.holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
