"""Statistics of forgetting: by hand, on draws, under chance, and in tables that lack what they need."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.metrics.forgetting import forget_quality, model_utility
from upright.metrics.membership import membership_auc
from upright.shell import forgetting, recompute, statistics
from upright.shell.evidence import evidence
from upright.shell.gates import fail_if
from upright.shell.statistics import Samples, computable, parse
from upright.shell.units import Block, Units

ARMS = [Arm("none", "baseline"), Arm("x", "remedy"), Arm("t", "trivial"), Arm("p", "placebo"), Arm("retrain", "rival")]
SETS = ("forget", "holdout", "retain")
KS = "ks_distance:forget_truth_probability"
GAP = "memory_gap:forget_probability"
QUALITY = "forget_quality:forget_truth_probability"
MIA = "membership:mia_loss"
ALL = ("utility:retain", KS, GAP, QUALITY, MIA)


def world(
    *, n=(40, 25, 30), seeds=3, arms=("retrain", "none"), known=None, start=0, blank=0.1, digits=1, sets=True,
) -> list[Block]:  # fmt: skip
    """Records with values that repeat (rounded), some undefined; ``known`` moves an arm's forgotten values up."""
    rng = np.random.default_rng(start)
    side = np.repeat(SETS, n)
    level = rng.normal(0, 1, len(side))
    third = np.where(side == "forget", np.array(["easy", "hard"])[np.arange(len(side)) % 2], "")
    blocks = []
    for s in range(seeds):
        for arm in arms:
            up = (known or {}).get(arm, 0.0)

            def some(where, lift=up):
                raw = level + rng.normal(0, 0.5, len(side)) + lift * (side == "forget")
                v = np.round(1 / (1 + np.exp(-raw)), digits)
                return np.where(np.isin(side, where) & (rng.random(len(side)) >= blank), v, np.nan)

            values = {
                "forget_probability": some(["forget"]), "forget_truth_probability": some(["forget"]),
                "mia_loss": some(["forget", "holdout"]), "retain_probability": some(["retain"]),
                "retain_rouge_l": some(["retain"]), "retain_truth_ratio": some(["retain"]),
            }  # fmt: skip
            by = {"difficulty": third.tolist()} | ({"set": side.tolist()} if sets else {})
            blocks.append(Block("r", arm, s, UnitScores("record", range(len(side)), values, by)))
    return blocks


def ecdf_distance(v, u) -> float:
    """The KS distance by counting at every value."""
    return max(abs(np.mean(v <= x) - np.mean(u <= x)) for x in [*v, *u])


def weighted(block: Block, weight, metric, rows, statistic):
    v = block.scores.values[metric]
    ok = rows & ~np.isnan(v)
    return statistic(v[ok], weight[ok])


def columns_of(blocks: list[Block]) -> dict[str, np.ndarray]:
    """The unit table in long form."""
    rows: dict[str, list] = {k: [] for k in ("arm", "seed", "unit", "metric", "value", "by_difficulty")}
    if "set" in blocks[0].scores.by:
        rows["by_set"] = []
    for b in blocks:
        for metric, values in b.scores.values.items():
            n = len(values)
            rows["arm"] += [b.arm] * n
            rows["seed"] += [b.seed] * n
            rows["unit"] += [str(u) for u in b.scores.unit]
            rows["metric"] += [metric] * n
            rows["value"] += list(values)
            for g, labels in b.scores.by.items():
                rows[f"by_{g}"] += list(labels)
    return {k: np.asarray(v, dtype=object) for k, v in rows.items()}


def level(found, statistic, arm="none", group=None):
    (row,) = [r for r in found["levels"] if (r["statistic"], r["arm"], r["group"]) == (statistic, arm, group)]
    return row


def of(blocks, text, arm="none", cell=None, draws=60):
    samples = Samples(Units(blocks), draws, 0)
    return samples, samples.of(parse(text, samples.units), arm, cell)


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(3))
@pytest.mark.parametrize("text", [*ALL, *(f"{t}:difficulty" for t in ALL[1:])])
@pytest.mark.parametrize("sets", [True, False])
def test_values_are_those_of_plain_loops_over_rows(text, start, sets):
    # catches: NaN counted as 0, records of other sets let in, values that are not paired, ties in a distribution
    # function, a mean over seeds taken of the wrong thing, and a cell that is not applied
    blocks = world(start=start, known={"none": 0.6 * start}, sets=sets)
    if not sets and text.startswith("membership"):
        assert not computable(text, Units(blocks))
        return
    found = evidence(Units(blocks), arms=ARMS, metrics={}, statistics=[text], draws=3)
    assert len(found["levels"]) == (4 if text.endswith("difficulty") else 2)
    for row in found["levels"]:
        assert row["value"] == pytest.approx(recompute.from_rows(columns_of(blocks), row), abs=1e-12)


def test_values_agree_with_the_metrics_of_one_model():
    # catches: a definition of utility, forget quality or AUC of our own in the shell
    (kept, model) = world(seeds=1, blank=0.0, digits=6, known={"none": 1.0})
    units, v = Units([kept, model]), model.scores.values
    side = np.array(model.scores.by["set"])
    truth = [b.scores.values["forget_truth_probability"][side == "forget"] for b in (model, kept)]
    quality = forget_quality(1 / truth[0] - 1, 1 / truth[1] - 1)  # of ratios: a monotone map changes nothing
    auc = membership_auc(v["mia_loss"][side == "forget"], v["mia_loss"][side == "holdout"])
    parts = {m: float(np.nanmean(v[m])) for m in forgetting.parts_of(units, "retain")}
    samples = Samples(units, 2, 0)
    expected = {"utility:retain": model_utility(parts, tuple(parts)), KS: quality.distance, QUALITY: quality.p,
                MIA: auc.distance}  # fmt: skip
    assert len(parts) == 3
    for text, value in expected.items():
        assert samples.of(parse(text, units), "none", None)[0] == pytest.approx(value, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_distance_is_the_largest_gap_of_the_distribution_functions(pairs):
    # catches: a supremum looked for between equal values, a lost last value, a sign that makes the mean negative
    v, u = np.array(pairs, dtype=float).T
    contrast = forgetting._contrast(v, u)
    assert contrast.mean() == pytest.approx(ecdf_distance(v, u), abs=1e-12)
    assert set(contrast) <= {-1.0, 0.0, 1.0}
    flips = np.ones((1, len(v)))
    assert forgetting._Steps(v, u).distance(flips)[0] == pytest.approx(ecdf_distance(v, u), abs=1e-12)
    assert forgetting._Steps(v, u).distance(-flips)[0] == pytest.approx(ecdf_distance(v, u), abs=1e-12)


def test_a_utility_is_zero_when_a_part_is_and_says_what_it_lacks():
    # catches: a division by zero, a part without values that makes everything undefined, and one lost in silence
    blocks = world(seeds=2)
    for b in blocks:
        b.scores.values["retain_rouge_l"] = np.full(95, np.nan)
        if b.arm == "none":
            b.scores.values["retain_probability"] = np.where(
                np.isnan(b.scores.values["retain_probability"]), np.nan, 0.0
            )
    found = evidence(Units(blocks), arms=ARMS, metrics={}, statistics=["utility:retain"], draws=20)
    row = level(found, "utility:retain")
    assert (row["value"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
    assert row["label"] == "Utility on retained records, of probability and truth ratio, without ROUGE-L"
    assert set(row["parts"]) == {"probability", "truth_ratio"}
    other = level(found, "utility:retain", "retrain")
    assert other["value"] > 0
    means = [[np.nanmean(b.scores.values[f"retain_{part}"]) for part in ("probability", "truth_ratio")]
             for b in blocks if b.arm == "retrain"]  # fmt: skip
    assert other["value"] == pytest.approx(np.mean([2 / (1 / p + 1 / t) for p, t in means]), abs=1e-12)


def test_a_model_is_at_no_distance_from_itself():
    # catches: a null or an interval with width where every pair is equal
    found = evidence(Units(world()), arms=ARMS, metrics={}, statistics=[KS, GAP, QUALITY], draws=20)
    for text in (KS, GAP):
        row = level(found, text, "retrain")
        assert (row["value"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
    assert level(found, KS, "retrain")["null"] == {"expected_abs": 0.0, "low": 0.0, "high": 0.0}
    assert level(found, QUALITY, "retrain")["value"] == 1.0


def test_the_gap_grows_on_both_sides_and_the_auc_tells_them_apart():
    # catches: over-unlearning that passes for success, and an AUC of the held-out against the forgotten records
    blocks = world(arms=("retrain", "none", "x"), known={"none": 2.5, "x": -2.5}, seeds=2, blank=0.0)
    found = evidence(Units(blocks), arms=ARMS, metrics={}, statistics=[GAP, MIA, KS], draws=200)
    for arm in ("none", "x"):
        assert level(found, GAP, arm)["low"] > 0.2
        assert level(found, MIA, arm)["low"] > 0.1
        assert level(found, KS, arm)["value"] > level(found, KS, arm)["null"]["high"]
    assert level(found, MIA)["auc_low"] > 0.5
    assert level(found, MIA, "x")["auc_high"] < 0.5
    kept = level(found, MIA, "retrain")
    assert kept["value"] == abs(kept["auc"] - 0.5) <= kept["null"]["high"]


def test_records_without_a_value_in_both_arms_are_counted():
    blocks = world()
    samples = Samples(Units(blocks), 2, 0)
    side = np.array(blocks[0].scores.by["set"])
    ok = {a: np.array([~np.isnan(b.scores.values["forget_probability"]) for b in blocks if b.arm == a])
          for a in ("none", "retrain")}  # fmt: skip
    both = (ok["none"] & ok["retrain"]).any(0)[side == "forget"]
    assert samples.defined(parse(GAP, samples.units), "none", None) == (both.sum(), (~both).sum())
    have, lost = samples.defined(parse(MIA, samples.units), "none", None)
    assert have + lost == 65
    have, lost = samples.defined(parse("utility:retain", samples.units), "none", None)
    assert have + lost == 30


# -- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["utility:retain", KS, GAP, MIA])
def test_draws_weigh_records_and_seeds_and_keep_place_and_sign(text):
    # catches: arms that meet other draws, a seed's weight lost, a supremum or a size taken anew in each draw
    blocks = world(known={"none": 0.4})
    units = Units(blocks)
    samples, found = of(blocks, text, draws=30)
    order = [units.units.index(str(u)) for u in blocks[0].scores.unit]
    side = np.array(blocks[0].scores.by["set"])
    pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
    expected = []
    for draw in range(31):
        w = samples.weight[draw, order].astype(float)
        per_seed = []
        for kept, model in pairs:
            v = {m: (model.scores.values[m], kept.scores.values[m]) for m in model.scores.values}
            if text == "utility:retain":
                own = [(a, ~np.isnan(a)) for m, (a, _) in v.items() if m.startswith("retain")]
                means = [np.average(a[ok], weights=w[ok]) for a, ok in own]
                per_seed.append(3 / sum(1 / m for m in means))
            elif text == MIA:
                a = v["mia_loss"][0]
                f, h = (side == "forget") & ~np.isnan(a), (side == "holdout") & ~np.isnan(a)
                wins = (a[f][:, None] > a[h]) + 0.5 * (a[f][:, None] == a[h])
                per_seed.append(w[f] @ wins @ w[h] / (w[f].sum() * w[h].sum()))
            else:
                a, b = v[text.partition(":")[2]]
                ok = ~np.isnan(a) & ~np.isnan(b)
                if text == GAP:
                    per_seed.append(np.average(np.abs(a - b)[ok], weights=w[ok]))
                    continue
                xs = np.unique(np.concatenate([a[ok], b[ok]]))
                gaps = [np.mean(a[ok] <= x) - np.mean(b[ok] <= x) for x in xs]
                best = int(np.argmax(np.round(np.abs(gaps), 12)))
                drawn = np.average((a[ok] <= xs[best]) * 1.0 - (b[ok] <= xs[best]), weights=w[ok])
                per_seed.append(np.sign(gaps[best]) * drawn)
        expected.append(np.average(per_seed, weights=samples.seed_weight[draw]))
    if text == MIA:
        expected = (np.array(expected) - 0.5) * np.sign(expected[0] - 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_intervals_of_distances_cover():
    # catches: an interval of a supremum taken anew in each draw, which at this size lies above the truth too often
    rng, n, covered = np.random.default_rng(0), 200, {KS: [], GAP: [], MIA: []}
    truth = {KS: 2 * norm.cdf(0.5 / np.sqrt(1.09)) - 1, GAP: 1.0, MIA: norm.cdf(1 / np.sqrt(2)) - 0.5}
    side = ["forget"] * n + ["holdout"] * n
    for _ in range(200):
        u = rng.normal(0, 1, n)
        blocks = []
        for arm, shift in (("retrain", 0.0), ("none", 1.0)):
            own = u + shift + 0.3 * rng.normal(0, 1, n)  # standard deviation of one model: the root of 1.09
            values = {"forget_truth_probability": np.r_[own, np.full(n, np.nan)],
                      "forget_probability": np.r_[u + shift, np.full(n, np.nan)] + 0.1 * rng.normal(0, 1, 2 * n),
                      "mia_loss": np.r_[rng.normal(shift, 1, n), rng.normal(0, 1, n)]}  # fmt: skip
            blocks.append(Block("r", arm, 0, UnitScores("record", range(2 * n), values, {"set": side})))
        found = evidence(Units(blocks), arms=[Arm("none", "baseline")], metrics={}, statistics=list(truth), draws=200)
        for text in truth:
            row = level(found, text)
            covered[text].append(row["low"] <= truth[text] <= row["high"])
    rates = {t: np.mean(c) for t, c in covered.items()}
    error = 5 * np.sqrt(0.95 * 0.05 / 200)
    assert rates[GAP] > 0.95 - error
    assert rates[MIA] > 0.95 - error
    assert rates[KS] > 0.79  # 0.90 as documented, less 5 standard errors; 0.66 for a supremum of each draw


# -- chance ---------------------------------------------------------------------------------------------------------


def test_the_null_of_the_distance_is_that_of_coins_by_brute_force():
    # catches: values permuted over records instead of between the two arms of a record, coins thrown at each seed anew,
    # and seeds averaged after the mean instead of before
    blocks = world(seeds=2, n=(30, 5, 5), known={"none": 0.5})
    side, rng, brute = np.array(blocks[0].scores.by["set"]) == "forget", np.random.default_rng(1), []
    for _ in range(1_500):
        coin = rng.random(40) < 0.5
        sizes = []
        for kept, model in zip(blocks[::2], blocks[1::2], strict=True):
            a, b = (x.scores.values["forget_truth_probability"] for x in (model, kept))
            ok = side & ~np.isnan(a) & ~np.isnan(b)
            sizes.append(ecdf_distance(np.where(coin, b, a)[ok], np.where(coin, a, b)[ok]))
        brute.append(np.mean(sizes))
    samples = Samples(Units(blocks), 2, 0)
    null = samples.forgetting.null("ks_distance", "forget_truth_probability", None, "none", None)
    assert len(null) == forgetting.PERMUTATIONS
    assert null.mean() == pytest.approx(np.mean(brute), abs=5 * np.std(brute) * np.sqrt(1 / 500 + 1 / 1_500))
    assert null.std() == pytest.approx(np.std(brute), rel=5 * 1.5 * np.sqrt(1 / 1_000 + 1 / 3_000))


def test_the_null_of_membership_is_that_of_permuted_labels_by_brute_force():
    # catches: labels permuted over retained records too, at each seed anew, or with other set sizes
    blocks = [b for b in world(seeds=2, n=(20, 12, 9), known={"none": 0.5}) if b.arm == "none"]
    side, rng, brute = np.array(blocks[0].scores.by["set"]), np.random.default_rng(1), []
    samples = Samples(Units(blocks), 2, 0)
    place = [samples.units.units.index(str(u)) for u in blocks[0].scores.unit]
    for _ in range(1_500):
        keys, aucs = rng.random(41), []
        for b in blocks:
            v = b.scores.values["mia_loss"]
            ok = np.flatnonzero(~np.isnan(v) & (side != "retain"))
            first = ok[np.argsort(keys[ok])][: int((side[ok] == "forget").sum())]
            aucs.append(membership_auc(v[first], v[np.setdiff1d(ok, first)]).auc)
        brute.append(abs(np.mean(aucs) - 0.5))
    null = samples.forgetting.null("membership", "mia_loss", None, "none", None)
    assert sorted(place) == list(range(41))
    assert null.mean() == pytest.approx(np.mean(brute), abs=5 * np.std(brute) * np.sqrt(1 / 500 + 1 / 1_500))
    assert null.std() == pytest.approx(np.std(brute), rel=5 * 1.5 * np.sqrt(1 / 1_000 + 1 / 3_000))


def test_seeds_with_the_same_values_do_not_narrow_a_null():
    # catches: coins and labels drawn anew at each seed; six equal seeds would have a null with a sixth of its variance
    (kept, model) = world(seeds=1, n=(60, 60, 1))
    six = [Block("r", b.arm, s, b.scores) for s in range(6) for b in (kept, model)]
    for name, metric in (("ks_distance", "forget_truth_probability"), ("membership", "mia_loss")):
        units = [Units(b) for b in ([kept, model], six)]
        one, many = (Samples(u, 2, 0).forgetting.null(name, metric, None, "none", None) for u in units)
        np.testing.assert_allclose(one, many, atol=1e-12)


def test_a_record_keeps_its_permuted_label_where_others_are_undefined():
    # catches: labels dealt to the defined records of a seed by their place, which one missing record moves by one
    (kept, model) = world(seeds=1, n=(60, 60, 1), blank=0.0, digits=6)
    loss = model.scores.values["mia_loss"].copy()
    loss[0] = np.nan
    less = UnitScores("record", model.scores.unit, {**model.scores.values, "mia_loss": loss}, model.scores.by)
    six = [Block("r", arm, i, own) for i in range(6)
           for arm, own in (("retrain", kept.scores), ("none", less if i % 2 else model.scores))]  # fmt: skip
    blocks = [kept, model], six
    one, many = (Samples(Units(b), 2, 0).forgetting.null("membership", "mia_loss", None, "none", None) for b in blocks)
    # of two independent halves the mean would vary by the root of one half
    assert many.std() / one.std() == pytest.approx(1.0, abs=0.1)


def test_the_null_of_an_arm_does_not_depend_on_the_others():
    # catches: random numbers that one arm uses up for the next
    blocks = world(arms=("retrain", "none", "x"))
    both, alone = Units(blocks), Units([b for b in blocks if b.arm != "none"])
    for text in (KS, MIA):
        nulls = [Samples(u, 2, 0).null(parse(text, u), "x", None) for u in (both, alone)]
        assert nulls[0] == nulls[1]


def test_equal_models_lie_inside_the_null_as_often_as_they_should():
    # catches: a null that is too narrow (a two-sample one is too wide for pairs that go together, one of sizes too low)
    rng, above = np.random.default_rng(0), []
    for _ in range(300):
        u = np.round(rng.normal(0, 1, 60), 2)
        blocks = [Block("r", a, 0, UnitScores("record", range(60), {"m": u + 0.3 * rng.normal(0, 1, 60)}, {}))
                  for a in ("retrain", "none")]  # fmt: skip
        samples = Samples(Units(blocks), 2, len(above))
        statistic = parse("ks_distance:m", samples.units)
        above.append(samples.of(statistic, "none", None)[0] > samples.null(statistic, "none", None)["high"])
    # a false-alarm rate of 5 % at most, since D takes few values; and not much less, or nothing would be found
    assert np.mean(above) < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(above) > 0.005


def test_two_runs_of_the_retain_only_model_are_measured_against_each_other():
    # catches: a distance of a model from itself at the same seed, which is 0
    blocks = world(seeds=3)
    found = evidence(Units(blocks), arms=ARMS, metrics={}, statistics=[GAP], draws=2)
    kept = [b.scores.values["forget_probability"] for b in blocks if b.arm == "retrain"]
    by_hand = np.mean([np.nanmean(np.abs(a - b)) for a, b in itertools.combinations(kept, 2)])
    assert level(found, GAP)["between_retrains"] == pytest.approx(by_hand, abs=1e-12)
    one = evidence(Units(world(seeds=1)), arms=ARMS, metrics={}, statistics=[GAP], draws=2)
    assert level(one, GAP)["between_retrains"] is None


# -- evidence and gates ---------------------------------------------------------------------------------------------


def test_a_remedy_that_reaches_the_level_of_the_retain_only_model_helps():
    # catches: a wrong direction, a p-value that enters Holm's family, and a primary statistic that decides nothing
    blocks = world(arms=("retrain", "none", "t", "p", "x"), known={"none": 2.0, "t": 2.0, "p": 2.0}, seeds=6,
                   n=(150, 100, 80), blank=0.0)  # fmt: skip
    metrics = {"forget_probability": Metric("forget_probability", "lower", 0, 1, 0.01, "Probability"),
               "retain": Metric("retain", "higher", 0, 1, 0.05)}  # fmt: skip
    found = evidence(Units(blocks), arms=ARMS, metrics=metrics, statistics=ALL, primary=GAP, cost="utility:retain",
                     title="X", draws=300)  # fmt: skip
    assert found["verdict"]["works"] is True
    assert level(found, GAP)["label"] == "Probability: mean distance to the retain-only model"
    directions = {d["statistic"]: d["direction"] for d in found["differences"]}
    assert directions == {"utility:retain": "higher", KS: "lower", GAP: "lower", MIA: "lower"}
    quality = level(found, QUALITY)
    assert (np.isnan(quality["low"]), len(quality["p_values"])) == (True, 6)
    assert quality["value"] == np.median(quality["p_values"]) < 0.05 < level(found, QUALITY, "x")["value"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [('membership["mia_loss"] > 0.1', True), ('utility["retain"] < 0.1', False),
     (f'ks_distance["{KS[12:]}"] > 0.2', True),
     (f'ks_distance_null["{KS[12:]}"] > 0.2', False), ('memory_gap_low["forget_probability"] > 0.05', True),
     (f'forget_quality["{KS[12:]}"] < 0.05', True), ('membership["mia_loss", "hard"] > 0.1', True)],
)  # fmt: skip
def test_gates_read_the_model_and_not_the_retain_only_one(expression, expected):
    # catches: a gate that takes the reference's level, on which it would never fail, or finds two arms and gives up
    arms = [Arm("none", "baseline"), Arm("retrain", "rival")]
    found = evidence(Units(world(known={"none": 2.0}, seeds=1)), arms=arms, metrics={}, draws=50,
                     statistics=[*ALL, f"{MIA}:difficulty"])  # fmt: skip
    summary = {"arms": [{"name": "none", "role": "baseline"}, {"name": "retrain", "role": "rival"}], "evidence": found}
    assert fail_if(summary, expression) is expected


def test_what_a_table_lacks_is_known_beforehand():
    # catches: a run without a retain-only model or held-out records that ends in an error instead of fewer statistics
    whole, alone = Units(world()), Units(world(arms=("none",)))
    assert all(computable(text, whole) for text in ALL)
    assert [computable(text, alone) for text in ALL] == [True, False, False, False, True]
    few = Units(world(n=(40, 0, 30)))
    assert [computable(text, few) for text in ALL] == [True, True, True, True, False]
    assert not computable("utility:authors", whole)
    assert not computable("memory_gap:forget_rouge_l", whole)
    for text, units in ((KS, alone), (MIA, few), ("utility:authors", whole), (f"{GAP}:age", whole)):
        with pytest.raises(InputError, match="correct the part that is not in its list"):
            parse(text, units)


def test_many_records_are_drawn_in_groups(monkeypatch):
    # catches: weights of groups that are given to single records
    monkeypatch.setattr(statistics, "WHOLE", 50)
    monkeypatch.setattr(statistics, "BUCKETS", 95)
    samples, found = of(world(), KS, draws=20)
    monkeypatch.setattr(statistics, "BUCKETS", 40)
    few, other = of(world(), KS, draws=20)
    assert found[0] == pytest.approx(other[0], abs=1e-12)
    assert (samples.weight.shape, few.weight.shape) == ((21, 95), (21, 40))
    assert np.isfinite(other).all()
    assert other[1:].std() > 0


def shown(blocks, text):
    arms = [Arm("none", "baseline"), Arm("retrain", "anchor")]
    return level(evidence(Units(blocks), arms=arms, statistics=[text], metrics={}, draws=20), text)


def test_records_of_sets_that_a_metric_is_not_of_are_not_counted_as_undefined():
    # catches: kept and held-out records named as undefined values of a metric of forgotten ones
    blocks = world(n=(40, 25, 30), blank=0.0)
    own, both = shown(blocks, "mean:forget_probability"), shown(blocks, "mean:mia_loss")
    assert (own["n_units"], own["n_undefined"]) == (40, 0)
    assert (both["n_units"], both["n_undefined"]) == (40 + 25, 0)
    for block in blocks:
        block.scores.values["forget_probability"][:3] = np.nan  # these are undefined, and said to be
    lost = shown(blocks, "mean:forget_probability")
    assert (lost["n_units"], lost["n_undefined"]) == (37, 3)


def test_nothing_is_compared_with_an_anchor():
    # catches: falling short of the aim counted as a rival that is better, or beating no unlearning as a gain
    arms = [Arm("none", "baseline"), Arm("mrd", "remedy"), Arm("retrain", "anchor")]
    text = "mean:forget_probability"
    units = Units(world(arms=("none", "mrd", "retrain")))
    found = evidence(units, arms=arms, statistics=[text], metrics={}, primary=text, cost=text, draws=20)
    assert {d["against"] for d in found["differences"]} == {"none"}
    assert {x["arm"] for x in found["levels"]} == {"none", "mrd", "retrain"}
