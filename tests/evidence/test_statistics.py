"""Every statistic against an oracle that knows rows alone: on the data, on draws, and under chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import by_hand
from upright.contract import InputError, Metric, UnitScores
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.compute import level_of
from upright.evidence.statistics import STATISTICS, computable, parse
from upright.evidence.units import Block, Units
from upright.maths.simultaneous import newcombe

TRUTH, KNOWN, POOLED = "forget_truth_probability", "forget_probability", "true_positive+false_positive"
TEXTS = f"""mean:m mean:m:two worst_decile:m worst_decile:m:three gini:m gap:m:two abs_gap:m:two
    leakage:attack:three effect:m:two~half worst_leakage:attack:three utility:retain utility:retain:two
    memory_gap:{KNOWN} memory_gap:{KNOWN}:two membership:mia_loss membership:mia_loss:two rank_correlation:x~y
    rank_correlation:x~y|m:two""".split()
KEPT = f"""disparity:predicted:three disparity:{POOLED}:two client_disparity:{POOLED}:two ks_distance:{TRUTH}
    mean_client_disparity:{POOLED}:three ks_distance:{TRUTH}:two forget_quality:{TRUTH} dominance:m:two~half""".split()
NULLS = f"""gap:m:two effect:m:two~half disparity:predicted:two leakage:attack:three ks_distance:{TRUTH}
    membership:mia_loss rank_correlation:x~y""".split()


def world(start=0, n=150, seeds=3, arms=("none", "retrain"), clustered=True, copies=1) -> list[Block]:
    """Values that repeat, some undefined; other units at each seed; no unit of the group c at the second one."""
    rng = np.random.default_rng(start)
    side, two = rng.choice(["forget", "holdout", "retain"], n), rng.choice(["a", "b"], n)
    three, label, blocks = rng.choice(["a", "b", "c", ""], n), rng.integers(0, 2, n), []
    of_sets = {"forget": [TRUTH, KNOWN], "retain": [f"retain_{p}" for p in ("probability", "rouge_l", "truth_ratio")]}
    of_all = ["m", "x", "y", *(f"attack/emb/{a}/cross/{c}" for a in ("log", "mlp") for c in "abc")]
    for seed, arm in itertools.product(range(seeds), arms):
        unit = np.sort(np.random.default_rng(seed).choice(n, n - 30, replace=False))
        unit = unit[(three[unit] != "c") | (seed != 1)]
        of, first, y = side[unit], two[unit] == "b", label[unit]
        where = {m: of == one for one, own in of_sets.items() for m in own} | {"mia_loss": of != "retain"}
        where |= dict.fromkeys(of_all, of != "")
        draws = np.round(rng.integers(1, 9, (len(where), len(unit))) / 10 + 0.2 * first, 3)
        draws[rng.random(draws.shape) < 0.1] = np.nan
        values = {m: np.where(inside, v, np.nan) for (m, inside), v in zip(where.items(), draws, strict=True)}
        for c in (0, 1):
            values[f"predicted/{c}"] = hit = (rng.random(len(unit)) < 0.4 + 0.2 * first) * 1.0
            values[f"true_positive/{c}"] = np.where(y == c, hit, np.nan)
            values[f"false_positive/{c}"] = np.where(y != c, hit, np.nan)
        by = {"set": of, "two": two[unit], "three": three[unit], "fold_cross": unit % 3, "client": unit % 4 + 4 * seed}
        by["half"] = unit // 3 % 2
        names = [f"{u}.{i}" for u in unit for i in range(copies)]
        values, by = ({k: np.repeat(v, copies) for k, v in own.items()} for own in (values, by))
        cluster = np.repeat(unit // 3, copies).astype(str) if clustered else ()
        by = {name: own.astype(str).tolist() for name, own in by.items()}
        blocks.append(Block("r", arm, seed, UnitScores("record", names, values, by, cluster=cluster)))
    return blocks


def of(blocks, text, draws=20, metrics=()):
    return parse(text, Bootstrap(Units(blocks), draws), {one.name: one for one in metrics})


@pytest.mark.parametrize("start", range(3))
@pytest.mark.parametrize("text", TEXTS + KEPT)
def test_values_are_those_of_loops_over_rows(text, start):
    # catches: NaN counted as 0, a group or client of another seed, ties that count for one side, records of another
    # set, pairs of two folds, a maximum before the mean over seeds, seeds that are pooled, rows without a label
    one = of(blocks := world(start), text, 2)
    for arm, cell in itertools.product(("none", "retrain"), one.cells()):
        expected = by_hand.value(blocks, text, arm, cell)
        assert one.draws(arm, cell).value == pytest.approx(expected, abs=1e-9), (arm, cell)
    assert {t.partition(":")[0] for t in TEXTS + KEPT} == set(STATISTICS)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_draws_are_values_of_the_rows_that_were_drawn(text, seeds):
    # catches: a part of the crossed bootstrap that is lost, seeds or ranks without their weight, clusters that are torn
    one = of(blocks := world(1, seeds=seeds), text, 8)
    *_, cell = one.cells()
    for value, rows in zip(one.draws("none", cell).plain(), by_hand.rows_of_draws(blocks, one.boot), strict=True):
        expected = by_hand.value(rows, text, "none", cell)
        keeps = text.startswith("membership") and abs(value + expected) < 1e-9  # its sign
        assert value == pytest.approx(-expected if keeps else expected, abs=1e-9)


def test_what_is_a_maximum_keeps_its_sign_in_draws():
    # catches: a size that is taken anew in each draw, which grows with the noise and never reaches 0
    gap = of(blocks := world(2, seeds=1), "disparity:predicted:two")
    sign = np.sign(by_hand.value(blocks, "gap:predicted/0:two", "none"))
    again = [by_hand.value(rows, "gap:predicted/0:two", "none") for rows in by_hand.rows_of_draws(blocks, gap.boot)]
    assert gap.draws("none", "0").plain() == pytest.approx(sign * np.array(again), abs=1e-9)


@pytest.mark.parametrize("text", NULLS)
def test_seeds_with_the_same_values_and_copies_inside_clusters_do_not_narrow_a_null(text):
    # catches: labels, coins or values that move anew at each seed, or apart from those of their cluster
    one = world(3, seeds=1, clustered=False)
    six = [Block("r", b.arm, seed, b.scores) for seed in range(6) for b in one]
    tables = (one, six, world(3, seeds=1), world(3, seeds=1, copies=2))
    plain, same, once, twice = (of(blocks, text).chance("none", None) for blocks in tables)
    assert same["null"].high == pytest.approx(plain["null"].high, rel=0.2)  # not a sixth of the variance
    assert same["p"] == pytest.approx(plain["p"], abs=0.1)
    assert once["null"].high == pytest.approx(plain["null"].high, rel=0.25)  # values do not go by cluster
    assert (twice["p"], twice["null"].high) == (once["p"], pytest.approx(once["null"].high, rel=1e-5))


@pytest.mark.parametrize("text", NULLS)
def test_chance_is_of_one_arm_and_one_word(text):
    # catches: random numbers that one arm uses up for the next, an interval beyond 0 beside a p that shows nothing
    one = of(both := world(4, seeds=1, arms=("none", "x", "retrain")), text)
    found = one.chance("x", None)
    assert found == of([b for b in both if b.arm != "none"], text).chance("x", None)
    assert found["null"].low == (-found["null"].high if one.signed else 0)
    assert 0 < found["null"].expected_abs < found["null"].high
    for own in (of(world(start), text).chance("none", None) for start in range(5)):
        assert own["p"] < 0.05 or own["low"] <= 0 <= own["high"]


@pytest.mark.parametrize(("data", "prior"), [(0.20, 0.05), (0.05, 0.20)])
def test_planted_effects_are_found_and_the_larger_one_dominates(data, prior):
    # catches: an effect of the other grouping, labels of users that move apart from their item, a sign by size
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, 400), rng.integers(0, 2, 400)  # of items; 1 is tail
    item = rng.integers(0, 400, 3000)
    p = 0.5 - data * a[item] - prior * b[item] + rng.normal(size=400)[item] * 0.05
    by = {k: np.where(v[item], "tail", "head").tolist() for k, v in (("data", a), ("prior", b))}
    hits = (rng.random(3000) < p).astype(float)
    blocks = [
        Block("r", "none", 0, UnitScores("user", range(3000), {"m": hits}, by, cluster=item.astype(str).tolist()))
    ]
    for text, true in (("effect:m:data~prior", data), ("effect:m:prior~data", prior)):
        found = of(blocks, text, 400).chance("none", None)
        assert found["low"] < true < found["high"]
        assert found["p"] < 0.05
    found = of(blocks, "dominance:m:data~prior", 400).chance("none", None)
    assert found["low"] < data - prior < found["high"]
    assert found["low"] * found["high"] > 0


def rows(values, group, **more):
    by = {"g": list(group)} | {k: list(v) for k, v in more.items()}
    return [Block("r", "none", 0, UnitScores("row", range(len(values)), {"p/1": np.asarray(values, float)}, by))]


def test_rates_of_one_seed_have_newcombes_interval_and_an_exact_p():
    # catches: percentiles of draws, which have no width at a rate of 1; unlabelled units as a group; ties of rates lost
    for text in ("gap:p/1:g", "abs_gap:p/1:g", "disparity:p:g"):
        one = of(rows(np.r_[np.ones(30), np.arange(50) < 11, np.zeros(9)], ["a"] * 30 + ["b"] * 50 + [""] * 9), text)
        own, critical = one.chance("none", None), one.null("none", None)[1].critical
        assert (own["low"], own["high"], own["p"]) == pytest.approx((*newcombe(1.0, 30, 0.22, 50, critical), 0.0005))
    ties = rows(np.r_[np.arange(10) < 4, np.arange(12) < 10], "a" * 10 + "b" * 12, client="k" * 22)
    assert of(ties, "mean_client_disparity:p:g").chance("none", None)["p"] == pytest.approx(0.0743, abs=0.03)


def test_a_signed_value_that_is_zero_everywhere_is_no_rate():
    # catches: the width of a rate of 0 for margins of a model against itself
    zeros, signed = rows(np.zeros(30), "a" * 30), Metric("p/1", low=-1.0)
    assert of(zeros, "mean:p/1").chance("none", None)["high"] > 0.1
    assert of(zeros, "mean:p/1", metrics=[signed]).chance("none", None)["high"] == 0.0


@pytest.mark.parametrize(("text", "most"), [("membership:mia_loss", 0.5), ("utility:retain", 1.0)])
def test_intervals_end_where_their_quantity_does(text, most):
    # catches: a distance of an AUC below 0 or beyond 1/2 on a page, where two seeds stretch what is drawn
    for seeds in (2, 3):
        level = level_of(of(world(seeds=seeds, n=60), text), "none", None)
        assert 0 <= level.low <= level.value <= level.high <= most
    assert of(world(seeds=2, n=60), "membership:mia_loss").chance("none", None)["low"] < 0


@pytest.mark.parametrize(("share", "spread"), [(0.5, (1 + 1.25 / 2.25) ** 0.5), (1.0, 1.0)])
def test_a_null_is_wider_where_users_train_the_attackers_of_each_other(share, spread):
    # catches false leaks: 2^0.5 across folds; sqrt(1 + q / (q + 1)), q = 5 h (1 - h), where hold-outs change with seeds
    rng, by, scores = np.random.default_rng(0), {"g": ["a", "b"] * 200}, []
    tables = [np.where(rng.random(400) < share, rng.normal(size=400), np.nan) for _ in range(6)]
    for protocol in ("transfer", "cross"):
        own = [UnitScores("u", range(400), {f"a/{protocol}/b": v}, by) for v in tables]
        blocks = [Block("r", "none", s, x) for s, x in enumerate(own)]
        scores.append(of(blocks, "leakage:a:g").null("none", None)[1].score[0])
    assert scores[0] / scores[1] == pytest.approx(2**0.5 / spread, rel=0.01)


def test_units_without_a_value_are_counted_and_a_utility_is_zero_where_a_part_is():
    # catches: records of other sets named as undefined, a part without values that makes everything undefined
    side, nan = ["forget"] * 3 + ["holdout"] * 2 + ["retain"] * 2, np.nan
    values = {"loss": [1.0, 2.0, nan, 3.0, 1.0, nan, nan], "k_probability": [nan] * 5 + [0.0, 0.0]}
    values |= {"k_rouge_l": [nan] * 7, "k_truth_ratio": [nan] * 6 + [0.5]}
    scores = UnitScores("record", range(7), values, {"set": side})
    blocks = [Block("r", arm, s, scores) for arm in ("none", "retrain") for s in (0, 1)]
    counts = {"mean:loss": (4, 5), "membership:loss": (4, 5), "memory_gap:loss": (2, 3), "utility:k": (2, 2)}
    for text, expected in counts.items():
        one = of(blocks, text)
        assert tuple(int(x.any(0).sum()) for x in one.count("none", None)) == expected
    assert (one.draws("none", None).value, [*one.facts("none", None)["parts"].values()]) == (0, [0, 0.5])
    assert one.label(None) == "Utility on k, of probability and truth ratio, without ROUGE-L"


def test_what_a_level_says_besides():
    (first, _), blocks, text = world(6, seeds=1), world(6, seeds=2), "leakage:attack:three"
    sizes = {a: by_hand.value([first], text, "none", a) for a in ("emb/log/cross", "emb/mlp/cross")}
    assert of([first], text).facts("none", None)["attack"] == max(sizes, key=sizes.get)
    turned = UnitScores("record", first.scores.unit, {m: -v for m, v in first.scores.values.items()}, first.scores.by)
    both = of([first, Block("r", "none", 1, turned)], text)  # signs that alternate cancel in the value alone
    assert both.draws("none", None).value == pytest.approx(0)
    assert both.facts("none", None)["per_seed"] in [pytest.approx(v) for v in sizes.values()]
    own = of(blocks, "membership:mia_loss").facts("none", None)
    assert abs(own["auc"] - 0.5) == pytest.approx(by_hand.value(blocks, "membership:mia_loss", "none"))
    assert own["auc_low"] < own["auc"] < own["auc_high"]
    others = [Block("r", "none", 1 - b.seed, b.scores) for b in blocks[1::2]]  # the retain-only model of the other seed
    between = by_hand.value([*others, *blocks[1::2]], f"memory_gap:{KNOWN}", "none")
    assert of(blocks, f"memory_gap:{KNOWN}").facts("none", None)["between_retrains"] == pytest.approx(between)
    left = of(rows([1, 0, 1, 1, 0, 1], "ababaa", client="kkkkll"), "mean_client_disparity:p:g")
    assert left.draws("none", None).value == 0.5  # a client with one group does not count as 0
    assert left.facts("none", None) == {"n_clients": 2, "n_clients_left_out": 1}


@pytest.mark.parametrize(
    "pair",
    f"""mean:m/m mean:m:two/two client_disparity:predicted:two/client membership:mia_loss/set mean median:m
    mean:m:age memory_gap:{KNOWN}/retrain client_disparity:predicted:client disparity:m:two utility:authors
    effect:m:two~half/half effect:m:two~three effect:m:two disparity:predicted+recall:two leakage:m:two
    rank_correlation:x~z""".split(),
)
def test_what_a_table_lacks_is_known_beforehand(pair):
    # catches: a table without clients or held-out records that ends in an error instead of fewer statistics
    (text, _, lacks), units = pair.partition("/"), Units(world())
    assert computable(text, units) == bool(lacks)
    units.by.pop(lacks, None)
    units.arms, units.metrics = ([x for x in own if x != lacks] for own in (units.arms, units.metrics))
    assert not computable(text, units)
    with pytest.raises(InputError, match="correct the part that is not in its list"):
        parse(text, Bootstrap(units, 2), {})
