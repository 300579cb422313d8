"""The rows of levels and differences that everything else reads, from tables whose effects are known."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.evidence import statistics
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.compute import (
    _beside_rivals,
    _simultaneous,
    difference_of,
    evidence,
    level_of,
    pair_levels,
    said_again,
)
from upright.evidence.records import Difference
from upright.evidence.statistics import parse
from upright.evidence.units import Block, Units
from upright.maths.simultaneous import compare_groups

GAP = "abs_gap:m:g"
TEXTS = [GAP, "mean:m", "mean:m:g", "mean:e", "gap:m:g", "worst_decile:m", "rank_correlation:m~e"]
ROLES = {"none": "baseline", "x": "remedy", "t": "trivial", "p": "placebo", "r": "rival", "aim": "anchor"}
ARMS = [*(Arm(*pair) for pair in ROLES.items()), Arm("x@2", "sweep"), Arm("hull", "trivial", mix=("none", "aim"))]
LIFT = {"x": 0.15, "x@2": 0.2, "t": 0.05, "r": 0.14, "aim": 0.18}  # of the second group, whose mean is 0.2 lower


def world(arms=(*ROLES, "x@2"), seeds=6, groups=("high", "low"), **more) -> list[Block]:
    rng, n, blocks = np.random.default_rng(1), 120, []
    group = np.array(groups)[np.arange(n) % len(groups)]
    level = 0.5 + 0.1 * rng.normal(size=n) + 0.1 * np.where(group == groups[0], 1, -1)
    for arm, seed in itertools.product(arms, range(seeds)):
        m = level + LIFT.get(arm, 0.0) * (group != groups[0]) + 0.02 * rng.normal(size=n)
        values = {"m": np.where(np.arange(n) < 7, np.nan, m), "e": 1 - level + 0.01 * rng.normal(size=n)}
        blocks.append(Block("r", arm, seed, UnitScores("user", range(n), values, {"g": group.tolist()}, **more)))
    return blocks


def judge(blocks, texts=TEXTS, **more):
    metrics = {"m": Metric("m", margin=0.02, title="M"), "e": Metric("e", "lower", margin=0.1)}
    given = {"arms": ARMS, "statistics": texts, "metrics": metrics, "primary": GAP, "cost": "mean:m", "draws": 300}
    return evidence(Units(blocks), **given | more)


def rows(found, kind="levels", **fields):
    return [r for r in found[kind] if all(r.get(k) == v for k, v in fields.items())]


def test_a_level_says_what_it_is_of():
    found = judge(world())
    (gap,) = rows(found, statistic="gap:m:g", arm="none")
    assert [gap[k] for k in ("label", "better", "metric", "grouping")] == ["M: high minus low", "none", "m", "g"]
    assert (gap["p"], gap["n_units"], gap["n_undefined"]) == (1 / 2_000, 113, 7)
    assert gap["null"]["low"] < 0 < gap["null"]["high"] < gap["smallest_detectable"] < gap["low"] < gap["value"]
    (mean,) = rows(found, statistic="mean:m:g", arm="none", group="low")
    assert [mean[k] for k in ("label", "better", "n_units", "n_undefined")] == ["M, low", "higher", 57, 3]
    assert (mean["null"], "n_clusters" in mean, np.isnan(mean["p"])) == (None, False, True)
    assert rows(found, statistic="mean:e", arm="none")[0]["better"] == "lower"
    found = judge(world(cluster=[str(i // 4) for i in range(120)]))
    assert rows(found, statistic="mean:m:g", arm="none", group="low")[0]["n_clusters"] == 29
    assert (found["n_seeds"], found["n_units"], found["n_clusters"], found["draws"]) == (6, 120, 30, 300)
    assert all(count in found["resampling"] for count in ("300 draws", "6 seeds", "120 users", "30 clusters"))


def test_a_difference_is_the_remedy_minus_another_arm_by_cell():
    # catches: unpaired intervals (units differ by 0.1, more than the effect that is sought), a sign, a lost cell
    found = judge(world())
    (one,) = rows(found, "differences", statistic="mean:m", against="none")
    levels = {r["arm"]: r["value"] for r in rows(found, statistic="mean:m")}
    assert one["value"] == pytest.approx(levels["x"] - levels["none"])
    assert 0.06 < one["low"] < 0.075 < one["high"] < 0.09
    assert [one[k] for k in ("label", "role", "margin", "verdict")] == ["M", "baseline", 0.02, "clear"]
    assert 0 <= one["smallest_detectable"] < 0.02
    assert 0 <= one["seed_share"] <= 1
    (low,) = rows(found, "differences", statistic="mean:m:g=low", against="none")
    assert low["value"] == pytest.approx(0.15, abs=0.01)
    (wide,) = rows(found, "rivals", statistic=GAP, against="r")  # holds for all rivals and both axes together
    (one,) = rows(found, "differences", statistic=GAP, against="r")
    assert (wide["value"], wide["direction"]) == (one["value"], "lower")
    assert wide["low"] < one["low"] < one["high"] < wide["high"]


def test_what_decides_nothing_has_no_difference():
    # catches: an aim, another strength or a signed gap that enters the comparisons; a correlation said of each arm
    found = judge(world())
    assert {r["arm"] for r in rows(found, statistic="mean:m")} == {a.name for a in ARMS}
    assert {r["against"] for r in rows(found, "differences", arm="x")} == {"none", "t", "p", "r", "hull"}
    cells = {"mean:m:g=high", "mean:m:g=low"}
    assert {r["statistic"] for r in found["differences"]} == {GAP, "mean:m", "mean:e", "worst_decile:m"} | cells
    assert [r["arm"] for r in rows(found, statistic="rank_correlation:m~e")] == ["x"]
    audit = judge(world(("none",)))
    assert (found["verdict"]["primary"], audit["differences"], audit["verdict"]["word"]) == (GAP, [], "measured")


def test_a_hull_reaches_the_remedys_primary_and_no_more_than_its_end():
    # catches: a share that is one number for all seeds, a hull beyond what it mixes, or one where nothing is compared
    for end, reached in (("aim", "x"), ("t", "t")):
        found = judge(world(seeds=3), [GAP], arms=[*ARMS[:-1], dataclasses.replace(ARMS[-1], mix=("none", end))])
        value = {r["arm"]: r["value"] for r in found["levels"]}
        assert value["hull"] == pytest.approx(value[reached], abs=1e-12)
    assert "hull" not in {r["arm"] for r in judge(world(("none", "x")))["levels"]}
    assert not [r for r in judge(world(groups=("all",)))["levels"] if "gap" in r["statistic"]]


def test_a_plugins_statistic_is_reported_without_more_code(monkeypatch):
    monkeypatch.setattr(statistics, "STATISTICS", dict(statistics.STATISTICS))

    @statistics.statistic("share_above", "higher", words="{title}, share above 0.5")
    class ShareAbove(statistics.Mean):
        """Share of units above 0.5."""

        def values(self, arm, cell=None):
            v = super().values(arm, cell)
            return np.where(np.isnan(v), np.nan, v > 0.5)

    found = judge(world(), ["mean:m:g", "share_above:m:g"])
    (row,) = rows(found, statistic="share_above:m:g", arm="x", group="low")
    v = np.concatenate([b.scores.values["m"][7::2] for b in world() if b.arm == "x"])
    assert (row["value"], row["label"]) == (pytest.approx(np.mean(v > 0.5)), "M, share above 0.5, low")
    assert rows(found, "differences", statistic="share_above:m:g=low", against="none")[0]["value"] > 0


def test_a_correlation_of_few_clusters_is_not_judged():
    # catches: a null that is centred on what is tested, p = 1/2000 where nothing can change places
    rng, found = np.random.default_rng(0), []
    for clusters in (5, 40):
        x, place = rng.normal(size=120), np.arange(120) % clusters
        scores = UnitScores("record", range(120), {"x": x, "y": x + rng.normal(size=120)}, cluster=place.astype(str))
        boot = Bootstrap(Units([Block("r", "none", 0, scores)]), 200)
        found.append(level_of(parse("rank_correlation:x~y", boot, {}), "none", None))
    assert np.isnan(found[0].p)
    assert not found[0].shown
    assert found[1].p < 0.01
    assert found[1].shown


def test_a_margin_of_the_run_leaves_the_budget_as_it_was():
    # catches: "gaps under 0.2 do not matter" read as "0.2 of the cost may be spent"
    said = judge(world(), margins={"m": 0.2})["verdict"]
    assert (said["margin"], said["budget"], said["declared_budget"]) == (0.2, 0.02, 0.02)
    with pytest.raises(InputError, match="METRIC=X of e, m"):
        judge(world(), margins={"n": 0.2})


def test_stored_evidence_is_judged_again_in_every_row():
    # catches: a verdict at one margin above rows at another
    stored = judge(world())
    found = said_again(stored, ARMS, primary=GAP, cost="mean:m", title="x", margins={"m": 5.0})
    assert {r["margin"] for r in found["differences"] if ":m" in r["statistic"]} == {5.0}
    assert {r["verdict"] for r in found["differences"] if ":m" in r["statistic"]} == {"none"}
    assert found["verdict"]["word"] == "nothing shown to mend"


def test_rivals_with_strengths_are_compared_together():
    # catches: an interval of each front by itself among several
    rng, fronts = np.random.default_rng(0), {}
    for name in "abcd":
        fronts[name, "cost"] = np.r_[0.0, 0.01 * rng.normal(size=4_000)]
    wide, one = _simultaneous(fronts), _simultaneous({("a", "cost"): fronts["a", "cost"]})
    assert one["a", "cost"][1] == pytest.approx(0.0196, abs=0.0007)
    assert wide["a", "cost"][1] == pytest.approx(0.0249, abs=0.0012)  # of the largest of four


def test_differences_are_of_units_with_a_value_in_both_arms():
    # catches: a baseline that fails on hard units, and looks better by that
    hard, base = np.arange(120) < 20, np.random.default_rng(0).normal(0.6, 0.05, 120)
    base = np.where(hard, 0.2, base)
    values = {"none": np.where(hard, np.nan, base), "x": base, "r": base}
    blocks = [Block("r", arm, 0, UnitScores("user", range(120), {"m": v}, {})) for arm, v in values.items()]
    arms = [Arm(name, ROLES[name]) for name in values]
    given = {"statistics": ["mean:m"], "metrics": {}, "primary": "mean:m", "draws": 200}
    found = evidence(Units(blocks), arms=arms, **given)
    changes = {r["against"]: r["value"] for r in found["differences"]}
    assert changes == {"none": 0.0, "r": 0.0}
    assert rows(found, statistic="mean:m", arm="x")[0]["value"] == pytest.approx(base.mean())  # a level is of all
    assert rows(found, statistic="mean:m", arm="none")[0]["n_undefined"] == 20


def test_no_interval_of_a_mean_leaves_the_metrics_range():
    few = UnitScores("user", range(6), {"m": [0.0, 0.0, 0.0, 0.0, 0.1, 0.9]}, {})
    for name, metric in (("free", Metric("m", low=-1.0)), ("rate", Metric("m"))):
        boot = Bootstrap(Units([Block("r", "none", 0, few)]), 500)
        level = level_of(parse("mean:m", boot, {"m": metric}), "none", None)
        assert (level.low < 0.0, level.low == 0.0) == ((True, False) if name == "free" else (False, True))


@pytest.mark.parametrize("seeds", [1, 6])
def test_no_interval_is_without_width_or_beyond_what_can_be(seeds: int) -> None:
    # catches: [1, 1] where every draw of a certain gap is the same, an AUC of [1, 1], a size below 0
    sure, weak = np.repeat([1.0, 0.0], 8), np.r_[np.ones(7), np.zeros(9)]
    by, sets = {"g": ["a"] * 8 + ["b"] * 8}, {"set": ["forget"] * 8 + ["holdout"] * 8}
    values = {"sure": sure, "weak": weak, "rank": np.arange(16.0), "some": np.r_[1.0, np.zeros(15)]}
    blocks = [Block("r", "none", s, UnitScores("user", range(16), values, by | sets)) for s in range(seeds)]
    texts = ["gap:sure:g", "gap:weak:g", "abs_gap:some:g", "gini:some", "membership:rank"]
    metrics = {name: Metric(name, high=16.0 if name == "rank" else 1.0) for name in values}
    found = evidence(Units(blocks), arms=[Arm("none", "baseline")], statistics=texts, metrics=metrics)
    rows = {row["statistic"]: row for row in found["levels"]}
    assert all(0 <= row["low"] < row["high"] <= 1 for row in rows.values())
    auc = rows["membership:rank"]
    assert auc["auc"] in (0.0, 1.0)
    assert auc["auc_high"] - auc["auc_low"] > 0.05


def test_rivals_with_fronts_share_one_family_with_the_others() -> None:
    # catches: a narrower interval for a rival that was swept
    rng = np.random.default_rng(0)
    pairs = {(name, axis): np.r_[0.0, rng.normal(size=2_000)] for name in "abc" for axis in ("gap", "cost")}
    by = {(n, x): Difference(statistic=x, arm="mine", against=n, value=0.0, direction="higher") for n, x in pairs}
    found = {(d.against, d.statistic): d for d in _beside_rivals(pairs, {"a": pairs["a", "cost"] + 1.0}, by, "cost")}
    assert (found["a", "gap"].low, found["a", "gap"].high) == (0.0, 0.0)
    assert found["a", "cost"].value == 1.0
    assert found["a", "cost"].high - 1.0 == pytest.approx(found["b", "cost"].high, rel=0.05)
    assert found["b", "cost"].high > 2.3  # one of five, where one by itself has 1.96


def test_no_end_of_a_gap_lies_beyond_what_its_metric_can_be():
    # catches: an interval of a gap of MRR from -0.2 to 1.2, from two groups of six
    value = np.array([0.0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0.5])[None, :, None]
    group = np.repeat([0, 1], 6)[None]
    found = compare_groups(value, group, np.arange(12), 2, rng=np.random.default_rng(0))
    wide = dataclasses.replace(found, low=found.low - 1.0, high=found.high + 1.0)
    about = {"arm": "yours", "groups": ["a", "b"], "metrics": [Metric("mrr")], "grouping": "g"}
    (level,) = pair_levels(wide, **about, sizes={("mrr", "a"): 6, ("mrr", "b"): 6})
    assert -1.0 <= level.low < level.high == 1.0


def test_no_end_of_a_difference_of_means_lies_beyond_what_can_be() -> None:
    # catches: "at best 1.006 better" of a score from 0 to 1
    blocks = [
        Block("r", arm, 0, UnitScores("user", range(4), {"m": values}))
        for arm, values in (("none", [0.0, 0, 0, 0.2]), ("mine", [1.0, 1, 1, 0.2]))
    ]
    boot = Bootstrap(Units(blocks), 500)
    found = difference_of(parse("mean:m", boot, {"m": Metric("m")}), "mine", Arm("none", "baseline"), None)
    assert found.value == pytest.approx(0.75)
    assert found.high == 1.0
    free = difference_of(parse("mean:m", boot, {"m": Metric("m", high=9.0)}), "mine", Arm("none", "baseline"), None)
    assert free.high > 1.0


def test_the_mean_of_one_group_can_decide():
    # catches: a primary that is looked up over all units, a rival or a lone arm that is judged on another number
    group = {"primary": "mean:m:g=low", "cost": "mean:m:g=high"}
    found = judge(world(), **group)
    (change,) = rows(found, "differences", statistic="mean:m:g=low", against="none")
    assert change["value"] == pytest.approx(0.15, abs=0.01)
    assert found["verdict"]["lines"]["effect"].startswith("clear: 0.393 -> 0.543")
    assert found["verdict"]["sentence"].startswith("M, low 0.393 ->")
    assert {(r["against"], r["statistic"]) for r in found["rivals"]} == {("r", text) for text in group.values()}
    alone = {r["arm"]: r["value"] for r in found["alone"] if r["arm"] != "hull"}
    assert {a: round(v, 2) for a, v in alone.items()} == {"t": 0.05, "p": 0.0, "r": 0.14}
    one = parse("mean:m:g=low", Bootstrap(Units(world()), 300), {})
    whole = parse("mean:m:g", Bootstrap(Units(world()), 300), {})
    assert (one.cells(), one.label(None)) == ([None], whole.label("low"))
    assert one.draws("x", None).interval() == whole.draws("x", "low").interval()
    assert not parse("mean:m:g=nobody", Bootstrap(Units(world()), 300), {}).comparable()
    assert judge(world(), primary="mean:m:g=nobody")["verdict"]["title"].startswith("incomplete (effect not measured)")


def test_a_gap_that_chance_explains_is_no_gap_closed():
    # catches: a gain of one group that is sold as a gap that was closed
    group = {"primary": "mean:m:g=low", "cost": "mean:m:g=high"}
    blocks = world()
    said = judge(blocks, **group)["verdict"]
    assert said["lines"]["gaps"].startswith("M: size of the gap between high and low: clear: 0.2")
    assert "not a gap closed" not in said["sentence"]
    level = {"high": 0.2, "low": 0.0}  # take the gap of 0.2 away: what is left is a gain of the low group
    for b in blocks:
        b.scores.values["m"][:] -= [level[g] for g in b.scores.by["g"]]
    said = judge(blocks, **group)["verdict"]
    assert "nothing shown to mend" in said["lines"]["gaps"]
    assert said["sentence"].endswith("what is gained is a better model for low, not a gap closed.")
    assert "gaps" not in judge(blocks)["verdict"]["lines"]  # where a gap decides, it is no line beside


def test_a_rival_with_controls_has_four_lines_of_its_own():
    # catches: a rival that is taken because it beats the remedy, whatever else would do as well
    arms = [dataclasses.replace(a, controls=("aim", "t") if a.name == "r" else ()) for a in ARMS if not a.mix]
    roles = {"t": "anchor", "x": "remedy"}
    arms = [dataclasses.replace(a, role=roles.get(a.name, a.role)) for a in arms]
    own = judge(world(), arms=arms)["own"]["r"]
    assert own["beside"] == {"aim": "loses to", "t": "beats"}
    assert own["word"] == "helps, but so does"
    without = [dataclasses.replace(a, controls=("t",) if a.name == "r" else ()) for a in arms]
    found = judge(world(), arms=without)
    assert found["own"]["r"]["title"] == "works"
    assert found["verdict"]["lines"]["own"].startswith("r: works (clear: 0.2")
    again = said_again(found, without, primary=GAP, cost="mean:m", title="")
    assert again["verdict"]["lines"]["own"] == found["verdict"]["lines"]["own"]
    missing = [*without[:-1], Arm("lost", "anchor")]
    missing = [dataclasses.replace(a, controls=("t", "lost") if a.name == "r" else ()) for a in missing]
    assert judge(world(), arms=missing)["own"]["r"]["title"] == "incomplete (lost not run), so far: works"
