"""Leakage as a statistic of the unit table: AUC per class and seed, the strongest attack, its null, its verdict."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.shell.evidence import evidence
from upright.shell.statistics import Samples, parse
from upright.shell.units import Block, Units

ARMS = [Arm("none", "baseline"), Arm("x", "remedy"), Arm("t", "trivial"), Arm("p", "placebo"), Arm("r", "rival")]
METRICS = {"attack": Metric("attack", "lower", 0.0, 0.5, 0.02, "Leakage"), "m": Metric("m", margin=0.05, title="M")}
CLASSES = ("a", "b", "c")


def world(strength: dict[str, float], *, users=300, seeds=6, classes=CLASSES, attackers=("log", "mlp")) -> list[Block]:
    """Scores of a class are noise plus ``strength`` for its members; half of the users is held out at a seed."""
    rng = np.random.default_rng(0)
    label = np.array([classes[i % len(classes)] for i in range(users)], dtype=object)
    label[:20] = ""  # nobody knows these
    blocks = []
    for seed in range(seeds):
        held = rng.random(users) < 0.5
        quality = rng.random(users)
        for arm in ("none", "x", "t", "p", "r"):
            values = {"m": quality + 0.001 * rng.normal(size=users)}
            for attacker in attackers:
                factor = strength.get(arm, 0.0) * (1.0 if attacker == "mlp" else 0.3)
                for c in classes:
                    score = rng.normal(size=users) + factor * (label == c)
                    values[f"attack/emb/{attacker}/cross/{c}"] = np.where(held & (label != ""), score, np.nan)
            blocks.append(Block("r", arm, seed, UnitScores("user", range(users), values, {"sex": label.tolist()})))
    return blocks


def judge(blocks: list[Block], statistic="leakage:attack:sex", **changes):
    settings = {"arms": ARMS, "statistics": [statistic, "mean:m"], "metrics": METRICS, "primary": statistic,
                "cost": "mean:m", "title": "X", "draws": 200}  # fmt: skip
    return evidence(Units(blocks), **settings | changes)


def rows(found, arm, kind="levels"):
    return {r["group"]: r for r in found[kind] if r["arm"] == arm and r["statistic"].startswith("leakage")}


LEAKY = {"none": 2.0, "t": 1.5, "p": 2.0, "r": 0.0, "x": 0.0}


@pytest.mark.parametrize("name", ["leakage", "worst_leakage"])
def test_leakage_is_the_distance_from_chance_of_the_auc_averaged_over_seeds(name):
    # catches an absolute value taken per seed, unlabelled users counted as a class, and pooling over seeds
    blocks = world(LEAKY)
    found = judge(blocks, f"{name}:attack:sex")
    for attacker in ("log", "mlp"):
        sizes = []
        for c in CLASSES:
            aucs = []
            for b in (b for b in blocks if b.arm == "none"):
                v, label = b.scores.values[f"attack/emb/{attacker}/cross/{c}"], np.array(b.scores.by["sex"])
                ok = ~np.isnan(v)
                aucs.append(roc_auc_score(label[ok] == c, v[ok]))
            sizes.append(abs(np.mean(aucs) - 0.5))
        expected = np.mean(sizes) if name == "leakage" else np.max(sizes)
        own = [r for r in found["levels"] if r["arm"] == "none" and r["group"] == f"emb/{attacker}/cross"]
        assert own[0]["value"] == pytest.approx(expected, abs=1e-12)
        assert own[0]["low"] < expected < own[0]["high"]


def test_the_strongest_attack_is_named_and_an_auc_below_one_half_leaks_as_much():
    # catches a maximum over signed AUC, under which a flipped attacker looks private
    plain, flipped = rows(judge(world(LEAKY)), "none"), rows(judge(world({**LEAKY, "none": -2.0})), "none")
    assert plain[None]["attack"] == flipped[None]["attack"] == "emb/mlp/cross"
    assert plain[None]["value"] == plain["emb/mlp/cross"]["value"] > 0.3
    assert flipped[None]["value"] > 0.3


def test_the_null_of_the_strongest_is_wider_than_that_of_one_and_noise_lies_inside():
    # catches a null that forgets the selection among attacks, and one that follows the data
    blocks = world(LEAKY)
    found = rows(judge(blocks), "x")
    assert found[None]["null"]["high"] > found["emb/log/cross"]["null"]["high"]
    assert found[None]["value"] < found[None]["null"]["high"]
    assert rows(judge(world(LEAKY)), "none")[None]["value"] > 5 * found[None]["null"]["high"]
    scored = np.stack([b.scores.values["attack/emb/log/cross/a"] for b in blocks if b.arm == "x"])
    assert found[None]["n_units"] == int((~np.isnan(scored)).any(0).sum()) < 280  # held out at one seed at least


def test_leakage_decides_a_verdict_and_a_rival_does_not():
    # catches a remedy that is refused because another remedy is as good, and a rival that counts as a control
    found = judge(world(LEAKY))
    assert found["verdict"]["works"] is True
    assert "r" not in [w.split()[-1].strip(".") for w in found["verdict"]["sentence"].split(",")]
    assert any("rival" in n for n in found["verdict"]["notes"])
    worse = judge(world({**LEAKY, "x": 2.0}))["verdict"]
    assert worse["works"] is False
    assert "closes the gap" not in worse["sentence"]


def test_two_classes_need_one_score():
    found = judge(world(LEAKY, classes=("f", "m"), attackers=("mlp",)))
    assert [r["group"] for r in found["levels"] if r["arm"] == "none" and r["statistic"].startswith("leak")] == [None]


def test_one_class_is_nothing_to_leak():
    found = judge(world(LEAKY, classes=("only",)))
    assert not [r for r in found["levels"] if r["statistic"].startswith("leak")]
    assert found["verdict"]["works"] is False


@pytest.mark.parametrize("statistic", ["leakage:attack", "leakage:m:sex", "leakage:attack:age", "mean:attack:sex"])
def test_a_leak_without_attacks_or_labels_is_refused(statistic):
    with pytest.raises(InputError, match="correct the part"):
        judge(world(LEAKY), statistic)


def samples_of(values_of_seed):
    """One attack by `transfer` on 300 users; ``values_of_seed(seed, label)`` gives scores, half of the users NaN."""
    label = np.array(["a", "b"])[np.arange(300) % 2]
    blocks = [
        Block("r", "none", s, UnitScores("user", range(300), {"attack/emb/mlp/transfer/b": values_of_seed(s, label)},
                                         {"sex": label.tolist()}))
        for s in range(6)
    ]  # fmt: skip
    return Samples(Units(blocks), 2, 0), Units(blocks)


def test_alternating_leaks_cancel_in_the_pooled_value_and_not_in_the_one_per_seed():
    # catches a report in which a model that leaks at every seed, now this way and now that, looks private
    samples, units = samples_of(lambda s, label: (-1.0) ** s * (label == "b") + 0.01 * np.arange(300) / 300)
    statistic = parse("leakage:attack:sex", units)
    assert samples.of(statistic, "none", None)[0] < 0.01
    assert samples.per_seed(statistic, "none") == pytest.approx(0.5)


def test_transfer_is_widened_over_seeds_with_changing_hold_outs_alone():
    # catches a null that rejects too often where users change sides between seeds: sqrt(1 + q / (q + 1)), q = 5 h (1-h)
    rng = np.random.default_rng(0)
    samples, _ = samples_of(lambda s, label: np.where(rng.random(300) < 0.5, rng.normal(size=300), np.nan))
    wide = samples._spread("none", "attack/emb/mlp/transfer")
    assert wide == pytest.approx((1 + 1.25 / 2.25) ** 0.5, abs=0.02)
    assert samples._spread("none", "attack/emb/mlp/cross") == pytest.approx(2**0.5)
    everybody, _ = samples_of(lambda s, label: rng.normal(size=300))
    assert everybody._spread("none", "attack/emb/mlp/transfer") == 1.0
