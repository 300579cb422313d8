"""Disparities between groups: by hand, on draws, under permuted labels, and of tables too large for single units."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.maths import intervals
from upright.shell import disparities, statistics
from upright.shell.evidence import evidence
from upright.shell.statistics import Samples, computable, parse
from upright.shell.units import Block, Units

ARMS = [Arm("none", "baseline"), Arm("x", "remedy"), Arm("t", "trivial"), Arm("p", "placebo")]
POOLED = "true_positive+false_positive"


def scores(unit, label, predicted, group, client, classes) -> UnitScores:
    values = {"accuracy": (label == predicted).astype(float)}
    for c in classes:
        hit = (predicted == c).astype(float)
        values[f"predicted/{c}"] = hit
        values[f"true_positive/{c}"] = np.where(label == c, hit, np.nan)
        values[f"false_positive/{c}"] = np.where(label != c, hit, np.nan)
    by = {"group": [str(g) for g in group], "client": [str(k) for k in client], "label": [str(y) for y in label]}
    return UnitScores("row", unit, values, by)


def world(
    favour=None, *, rows=240, pool=400, seeds=3, classes=(0, 1, 2), groups=("a", "b", "c"), clients=3, arms=("none",),
    start=0, blank=0.0,
) -> list[Block]:  # fmt: skip
    """Rows, clients and split drawn anew at each seed; an arm predicts class 1 more often for the first group."""
    rng = np.random.default_rng(start)
    label, group = rng.integers(0, len(classes), pool), rng.choice(np.array([*groups], dtype=object), pool)
    group[rng.random(pool) < blank] = ""
    noise = rng.random(pool)
    blocks = []
    for s in range(seeds):
        unit = rng.choice(pool, rows, replace=False)
        client = rng.choice([f"s{s}k{i}" for i in range(clients)], rows)
        for arm in arms:
            own = np.where(noise[unit] < 0.7, label[unit], rng.integers(0, len(classes), rows))
            push = (favour or {}).get(arm, 0.0)
            own = np.where((group[unit] == groups[0]) & (rng.random(rows) < push), 1, own)
            blocks.append(Block("r", arm, s, scores(unit, label[unit], own, group[unit], client, classes)))
    return blocks


def by_hand(block: Block, name: str, prefixes: str, cls: str | None = None) -> float:
    """One seed's value with nothing but loops."""
    s = block.scores
    metrics = [m for m in s.values for p in prefixes.split("+") if m.startswith(p + "/")]
    metrics = [m for m in metrics if cls is None or m.endswith(f"/{cls}")]
    where = {"": range(len(s.unit))} if name == "disparity" else {
        k: [i for i, own in enumerate(s.by["client"]) if own == k] for k in sorted(set(s.by["client"]) - {""})
    }  # fmt: skip
    sizes = []
    for rows in where.values():
        best = []
        for m in metrics:
            v = s.values[m]
            means = []
            for g in sorted(set(s.by["group"]) - {""}):
                own = [v[i] for i in rows if s.by["group"][i] == g and not np.isnan(v[i])]
                means += [sum(own) / len(own)] if own else []
            best += [abs(x - y) for x, y in itertools.combinations(means, 2)]
        sizes += [max(best)] if best else []
    return float(np.mean(sizes) if name == "mean_client_disparity" else max(sizes))


def level(found, statistic, arm="none", group=None):
    (row,) = [r for r in found["levels"] if (r["statistic"], r["arm"], r["group"]) == (statistic, arm, group)]
    return row


def of(units: Units, text: str, arm="none", cell=None, draws=300):
    samples = Samples(units, draws, 0)
    return samples, samples.of(parse(text, units), arm, cell)


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("prefixes", ["predicted", "true_positive", "false_positive", POOLED])
@pytest.mark.parametrize("name", disparities.NAMES)
def test_values_are_those_of_loops_over_rows(name, prefixes, start):
    # catches: NaN counted as 0, a missing pair, prefixes not pooled, clients of all seeds thrown together, rows without
    # a group taken for a group, and a mean over seeds taken before the maximum
    blocks = world({"none": 0.1 * start}, start=start, rows=60, pool=90, blank=0.1, clients=4)
    units = Units(blocks)
    samples, found = of(units, f"{name}:{prefixes}:group", draws=2)
    assert found[0] == pytest.approx(np.mean([by_hand(b, name, prefixes) for b in blocks]), abs=1e-12)
    if name == "disparity":
        for c in ("0", "1", "2"):
            own = samples.of(parse(f"{name}:{prefixes}:group", units), "none", c)[0]
            assert own == pytest.approx(np.mean([by_hand(b, name, prefixes, c) for b in blocks]), abs=1e-12)


def test_values_are_those_of_fairlearn():
    # catches: a definition of demographic parity or equalised odds of our own
    metrics = pytest.importorskip("fairlearn.metrics")
    blocks = world({"none": 0.2}, classes=(0, 1), groups=("a", "b", "c"))
    parity, odds = [], []
    for b in blocks:
        group, label = b.scores.by["group"], [int(y) for y in b.scores.by["label"]]
        args = {"y_true": label, "y_pred": b.scores.values["predicted/1"].astype(int), "sensitive_features": group}
        parity.append(metrics.demographic_parity_difference(**args))
        odds.append(metrics.equalized_odds_difference(**args))
    assert of(Units(blocks), "disparity:predicted:group")[1][0] == pytest.approx(np.mean(parity), abs=1e-12)
    assert of(Units(blocks), f"disparity:{POOLED}:group")[1][0] == pytest.approx(np.mean(odds), abs=1e-12)


def test_a_client_with_one_group_is_left_out_and_counted():
    # catches: a client without a comparison that counts as 0 in the mean over clients
    group, client = np.array(["a", "b", "a", "b", "a", "a"]), np.array(["k", "k", "k", "k", "l", "l"])
    predicted = np.array([1, 0, 1, 1, 0, 1])
    block = Block("r", "none", 0, scores(range(6), np.ones(6, int), predicted, group, client, (1,)))
    found = evidence(
        Units([block]), arms=ARMS, metrics={}, draws=20,
        statistics=["mean_client_disparity:predicted:group", "client_disparity:false_positive:group"],
    )  # fmt: skip
    row = level(found, "mean_client_disparity:predicted:group")
    assert (row["value"], row["n_clients"], row["n_clients_left_out"]) == (0.5, 2, 1)
    nothing = level(found, "client_disparity:false_positive:group")  # every label is 1: no row has a value
    assert np.isnan(nothing["value"])
    assert np.isnan(nothing["null"]["high"])
    assert (nothing["n_units"], nothing["n_undefined"], nothing["n_clients_left_out"]) == (0, 6, 2)


def test_units_without_a_label_or_value_are_counted():
    blocks = world(blank=0.2, seeds=2)
    found = evidence(Units(blocks), arms=ARMS, metrics={}, draws=5, statistics=["disparity:true_positive:group"])
    labelled = {u for b in blocks for u, g in zip(b.scores.unit, b.scores.by["group"], strict=True) if g}
    assert level(found, "disparity:true_positive:group")["n_units"] == len(labelled)  # every label is some class
    own = {u for b in blocks for u, g, v in zip(b.scores.unit, b.scores.by["group"], b.scores.values["true_positive/0"],
                                                strict=True) if g and not np.isnan(v)}  # fmt: skip
    one = level(found, "disparity:true_positive:group", group="0")
    assert (one["n_units"], one["n_undefined"]) == (len(own), len(labelled) - len(own))


def test_clients_may_have_other_names_at_every_seed():
    # catches: a client taken for the same one because its name, or its place in a list, is the same
    plain = world(favour={"none": 0.2})
    renamed = []
    for b in plain:
        by = {**b.scores.by, "client": [f"{9 - int(k[3:])}" for k in b.scores.by["client"]]}
        renamed.append(Block("r", b.arm, b.seed, UnitScores("row", b.scores.unit, b.scores.values, by)))
    texts = [f"{name}:predicted:group" for name in disparities.NAMES]
    first, second = (evidence(Units(b), arms=ARMS, statistics=texts, metrics={}, draws=50) for b in (plain, renamed))
    for a, b in zip(first["levels"], second["levels"], strict=True):
        assert [a[k] for k in ("value", "low", "high")] == pytest.approx([b[k] for k in ("value", "low", "high")])
        assert a["null"] == pytest.approx(b["null"])


# -- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", disparities.NAMES)
def test_draws_keep_the_place_and_sign_of_the_maximum(name):
    # catches: a maximum or an absolute value taken anew in each draw, an average that ignores how often a seed is drawn
    blocks = world(favour={"none": 0.05}, groups=("a", "b"))
    units = Units(blocks)
    samples, found = of(units, f"{name}:predicted:group", draws=40)
    expected = []
    for draw in range(41):
        per_seed = []
        for block in blocks:
            w = samples.weight[draw, [units.units.index(str(u)) for u in block.scores.unit]].astype(float)
            group, client = np.array(block.scores.by["group"]), np.array(block.scores.by["client"])
            places = []
            for k in [None] if name == "disparity" else sorted(set(client)):
                own = np.ones(len(w), bool) if k is None else client == k
                for c in (0, 1, 2):
                    v = block.scores.values[f"predicted/{c}"]
                    a, b = own & (group == "a"), own & (group == "b")
                    plain = v[a].mean() - v[b].mean()
                    drawn = (w[a] @ v[a]) / w[a].sum() - (w[b] @ v[b]) / w[b].sum()
                    places.append((abs(plain), k, np.sign(plain) * drawn))
            if name == "mean_client_disparity":
                best = [max((p for p in places if p[1] == k), key=lambda p: p[0])[2] for k in sorted(set(client))]
                per_seed.append(np.mean(best))
            else:
                per_seed.append(max(places, key=lambda p: p[0])[2])
        expected.append(np.average(per_seed, weights=samples.seed_weight[draw]))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_interval_without_any_difference_reaches_below_zero_and_its_value_lies_inside_the_null():
    # catches: intervals of a maximum over draws, which exclude 0 always, and a null that is not of the maximum
    blocks = world(groups=("a", "b"), rows=300, pool=3000, seeds=1)
    found = evidence(Units(blocks), arms=ARMS, metrics={}, statistics=["disparity:predicted:group"], draws=500)
    row = level(found, "disparity:predicted:group")
    assert row["low"] < 0 < row["value"] < row["null"]["high"]
    planted = world({"none": 0.4}, groups=("a", "b"), rows=300, pool=3000, seeds=1)
    found = evidence(Units(planted), arms=ARMS, metrics={}, statistics=["disparity:predicted:group"], draws=500)
    row = level(found, "disparity:predicted:group")
    assert row["low"] > 0
    assert row["value"] > row["null"]["high"]


def test_equal_groups_still_vary():
    # catches: a tie that picks the same group as both ends, so that every draw is 0 and the interval has no width
    group = np.array(["a", "b"] * 40)
    predicted = np.repeat([0, 1], 40)
    block = Block("r", "none", 0, scores(range(80), predicted, predicted, group, ["k"] * 80, (1,)))
    _, found = of(Units([block]), "disparity:predicted:group")
    assert found[0] == 0
    # variance of a difference of two means of 40 coins
    assert found[1:].std() == pytest.approx(np.sqrt(2 * 0.25 / 40), rel=5 / np.sqrt(2 * 300))


def test_a_remedy_that_closes_a_disparity_works():
    # catches: a wrong direction, and arms that are not paired
    blocks = world({"none": 0.4, "t": 0.4, "p": 0.4}, arms=("none", "x", "t", "p"), seeds=6, rows=400, pool=900)
    text = "disparity:predicted:group"
    metrics = {"accuracy": Metric("accuracy", margin=0.05), "predicted": Metric("predicted", title="Parity")}
    found = evidence(Units(blocks), arms=ARMS, metrics=metrics, statistics=[text, "mean:accuracy"], primary=text,
                     cost="mean:accuracy", title="X", draws=300)  # fmt: skip
    assert found["verdict"]["works"] is True
    row = next(d for d in found["differences"] if d["statistic"] == text and d["against"] == "none")
    assert (row["direction"], row["verdict"]) == ("lower", "helps")
    assert row["label"] == "Parity: largest difference between groups"
    assert {d["statistic"] for d in found["differences"]} == {
        text,
        *(f"{text}={c}" for c in (0, 1, 2)),
        "mean:accuracy",
    }


# -- permuted labels ------------------------------------------------------------------------------------------------

STRATUM = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
GROUP = np.array([0, 1, 0, 2, 1, 1, 2, 2, 0])  # the second stratum has no row of the first group
INTO = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
VALUES = np.array([[1, 0, 0, 1, 1, 0, 0, np.nan, np.nan], [0, 1, 1, 1, np.nan, np.nan, np.nan, 1, 0]], float)


def all_permutations() -> dict[tuple[float, ...], float]:
    """Chance of every table of sums, by going through all permutations inside the strata."""
    parts = [np.flatnonzero(h == STRATUM) for h in range(3)]
    seen: Counter[tuple[float, ...]] = Counter()
    for orders in itertools.product(*(itertools.permutations(GROUP[p]) for p in parts)):
        label = np.concatenate(orders)
        sums = np.zeros((2, 3, 2))
        for i, g in enumerate(label):
            sums[INTO[i], g] += np.nan_to_num(VALUES[:, i])
        seen[tuple(sums.ravel())] += 1
    return {k: n / sum(seen.values()) for k, n in seen.items()}


@pytest.mark.parametrize("how", ["counts", "rows"])
def test_permuted_sums_have_the_law_of_all_permutations(how):
    # catches: metrics drawn on their own (sums of several would lose their dependence), labels that leave their
    # stratum, a group drawn with replacement, and a last group that gets what is not its own
    draws, rng = 20_000, np.random.default_rng(0)
    args = (STRATUM, INTO, GROUP, VALUES, 3)
    if how == "counts":
        found = intervals.null_counts(*args, draws, rng)
    else:
        shuffled = rng.permutation(9)  # rows in any order
        args = (STRATUM[shuffled], INTO[shuffled], GROUP[shuffled], VALUES[:, shuffled], 3)
        found = intervals.null_sums(*args, np.arange(9), intervals.unit_keys(9, draws, rng))
    seen = Counter(map(tuple, found.reshape(draws, -1).tolist()))  # (draws, K x groups x M)
    expected = all_permutations()
    assert set(seen) == set(expected)
    for table, chance in expected.items():
        assert abs(seen[table] / draws - chance) < 5 * np.sqrt(chance * (1 - chance) / draws)


@pytest.mark.parametrize("probability", [False, True])
def test_the_null_is_that_of_labels_permuted_inside_clients_by_brute_force(probability):
    # catches: a null of single metrics instead of the maximum over all, and labels that cross clients or true labels
    (block,) = world(rows=90, pool=90, seeds=1, groups=("a", "b"), clients=2)
    s, rng = block.scores, np.random.default_rng(1)
    if probability:
        blurred = {m: v * 0.8 + 0.1 * rng.random(90) for m, v in s.values.items()}
        s = UnitScores("row", s.unit, blurred, s.by)
    units = Units([Block("r", "none", 0, s)])
    samples = Samples(units, 2, 0)
    brute: dict[str, list[float]] = {}
    stratum = np.array([f"{k}/{y}" for k, y in zip(s.by["client"], s.by["label"], strict=True)])
    cases = [(name, p) for name in disparities.NAMES for p in (POOLED,)]
    for _ in range(500):
        group = np.array(s.by["group"])
        for h in np.unique(stratum):
            group[stratum == h] = rng.permutation(group[stratum == h])
        shuffled = Block("r", "none", 0, UnitScores("row", s.unit, s.values, {**s.by, "group": group.tolist()}))
        for name, p in cases:
            brute.setdefault(name, []).append(by_hand(shuffled, name, p))
    for name, p in cases:
        null = samples.disparities.null(name, p, "group", "none", None)
        assert len(null) == 500
        error = 5 * np.std(brute[name]) * np.sqrt(2 / 500)
        assert null.mean() == pytest.approx(np.mean(brute[name]), abs=error)
        # the standard error of a standard deviation is sd / sqrt(2 n) for a normal law, a little more here
        assert null.std() == pytest.approx(np.std(brute[name]), rel=5 * 1.5 * np.sqrt(1 / 500))


def test_seeds_with_the_same_rows_do_not_narrow_the_null():
    # catches: labels permuted anew at each seed; six equal seeds would have a null with a sixth of its variance
    (one,) = world(rows=200, pool=200, seeds=1, groups=("a", "b"))
    six = [Block("r", "none", s, one.scores) for s in range(6)]
    apart = [
        Block("r", "none", s, UnitScores("row", np.arange(200) + 200 * s, one.scores.values, one.scores.by))
        for s in range(6)
    ]
    spread = {}
    for key, blocks in (("one", [one]), ("six", six), ("apart", apart)):
        samples = Samples(Units(blocks), 2, 0)
        spread[key] = samples.disparities.null("disparity", "predicted", "group", "none", None).std()
    error = 5 * 1.5 * np.sqrt(1 / 500)  # of a ratio of two standard deviations
    assert spread["six"] / spread["one"] == pytest.approx(1.0, rel=error)
    assert spread["apart"] / spread["one"] == pytest.approx(6**-0.5, rel=error)


def test_the_null_of_an_arm_does_not_depend_on_the_others():
    # catches: random numbers that one arm uses up for the next
    blocks = world(arms=("none", "x"), favour={"x": 0.3})
    text = f"client_disparity:{POOLED}:group"
    both, alone = Units(blocks), Units([b for b in blocks if b.arm == "x"])
    nulls = [Samples(u, 2, 0).null(parse(text, u), "x", None) for u in (both, alone)]
    assert nulls[0] == nulls[1]


def test_the_null_of_a_gap_whose_groups_change_with_the_seed_permutes_every_seed():
    # catches: labels of the first seed taken for those of all, where the sizes of the groups differ from seed to seed
    rng = np.random.default_rng(0)
    clients = [["k"] * 3 + ["l"] * 9, ["l"] * 2 + ["k"] * 10]
    values = rng.random((2, 12))
    blocks = [Block("r", "none", s, UnitScores("row", range(12), {"m": values[s]}, {"client": clients[s]}))
              for s in range(2)]  # fmt: skip
    null = level(evidence(Units(blocks), arms=ARMS, statistics=["gap:m:client"], metrics={}, draws=20), "gap:m:client")[
        "null"
    ]
    gaps = []
    for _ in range(4_000):
        order = np.argsort(rng.random(12))  # of the keys: the first ones go to k at both seeds
        k = np.concatenate([values[0, order[:3]], values[1, order[:10]]])
        other = np.concatenate([values[0, order[3:]], values[1, order[10:]]])
        gaps.append(k.mean() - other.mean())
    error = np.abs(gaps).std() / np.sqrt(500)
    assert null["expected_abs"] == pytest.approx(np.abs(gaps).mean(), abs=5 * error)
    assert null["low"] < 0 < null["high"]


# -- what may be asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["disparity:predicted", "disparity:recall:group", "disparity:predicted+recall:group", "disparity:predicted:age",
     "client_disparity:predicted:client", "disparity:accuracy:group"],
)  # fmt: skip
def test_a_disparity_that_cannot_be_computed_is_refused(text):
    with pytest.raises(InputError, match="correct the part that is not in its list"):
        parse(text, Units(world()))


def test_what_a_table_lacks_is_known_beforehand():
    # catches: a published table without clients or groups that ends in an error instead of fewer statistics
    blocks = world()
    units = Units(blocks)
    assert computable("client_disparity:predicted:group", units)
    assert not computable("disparity:recall:group", units)
    bare = Units([
        Block(b.run, b.arm, b.seed, UnitScores("row", b.scores.unit, b.scores.values, {"group": b.scores.by["group"]}))
        for b in blocks
    ])  # fmt: skip
    assert computable("disparity:predicted:group", bare)
    assert not computable("client_disparity:predicted:group", bare)
    assert not computable("disparity:predicted:age", bare)
    with pytest.raises(InputError, match="a grouping 'client'"):
        parse("client_disparity:predicted:group", bare)


def test_one_group_gives_no_disparity_and_cells_are_classes():
    one = evidence(
        Units(world(groups=("a",))), arms=ARMS, metrics={}, statistics=["disparity:predicted:group"], draws=5
    )
    assert not one["levels"]
    samples = Samples(Units(world()), 2, 0)
    assert samples.cells(parse(f"disparity:{POOLED}:group", samples.units)) == [None, "0", "1", "2"]
    assert samples.cells(parse("client_disparity:predicted:group", samples.units)) == [None]
    single = Samples(Units(world(classes=(1,))), 2, 0)
    assert single.cells(parse("disparity:predicted:group", single.units)) == [None]


# -- many units -----------------------------------------------------------------------------------------------------


def many(metrics: int, n=6_000, seeds=3) -> Units:
    """Independent metrics that are the same at every seed."""
    rng = np.random.default_rng(0)
    group = np.where(rng.random(n) < 0.3, "a", "b").tolist()
    values = {f"predicted/{c}": (rng.random(n) < 0.3).astype(float) for c in range(metrics)}
    return Units([Block("r", "none", s, UnitScores("row", range(n), values, {"group": group})) for s in range(seeds)])


def test_buckets_give_the_standard_errors_of_rows(monkeypatch):
    # catches: units of a bucket that differ from seed to seed (a standard error too small by the root of three),
    # buckets by size or order, and a bucket that counts as one unit whatever it holds
    units = many(20)
    errors = {}
    for whole in (5_000, 10_000):
        monkeypatch.setattr(statistics, "WHOLE", whole)
        samples = Samples(units, 1_000, 0)
        assert samples.weight.shape == (1_001, 2_000 if whole == 5_000 else 6_000)
        texts = [("disparity:predicted:group", str(c)) for c in range(20)]
        texts += [(f"mean:predicted/{c}", None) for c in range(20)]
        errors[whole] = [samples.of(parse(t, units), "none", cell)[1:].std() for t, cell in texts]
    ratio = np.array(errors[5_000]) / errors[10_000]
    # each error has a relative error of sqrt(1 / 2,000), from draws, twice, and sqrt(1 / 4,000) from buckets
    assert ratio.mean() == pytest.approx(1.0, abs=5 * np.sqrt((2 / 2_000 + 1 / 4_000) / 40))
    rate = units.values("none", "predicted/0")[0].mean()
    assert errors[5_000][20] == pytest.approx(
        np.sqrt(rate * (1 - rate) / 6_000), rel=5 * np.sqrt(1 / 2_000 + 1 / 4_000)
    )


def test_buckets_are_equal_in_size_and_random():
    samples = Samples(many(1), 2, 0)
    size = np.bincount(samples.bucket)
    assert (len(size), size.min(), size.max()) == (2_000, 3, 3)
    assert abs(np.corrcoef(samples.bucket, np.arange(6_000))[0, 1]) < 5 / np.sqrt(6_000)
    assert (Samples(many(1), 2, 0).bucket == samples.bucket).all()


def test_statistics_of_single_units_still_work_on_many(monkeypatch):
    # catches: weights of buckets that are given to units, and arms that meet other draws
    units = many(1, seeds=1)
    rng = np.random.default_rng(0)
    value = rng.random(6_000)
    blocks = [Block("r", a, 0, UnitScores("user", range(6_000), {"m": value + d}, {}))
              for a, d in (("none", 0.0), ("x", 0.5))]  # fmt: skip
    units = Units(blocks)
    samples = Samples(units, 200, 0)
    first, second = (samples.of(parse("worst_decile:m", units), a, None) for a in ("none", "x"))
    assert first[0] == pytest.approx(np.sort(value)[:600].mean(), abs=1e-12)
    np.testing.assert_allclose(second - first, 0.5, atol=1e-12)
    # the mean of the lowest tenth of uniform values: variance (1/12 + 0.9 / 4) / (600 x 100), by its influence function
    assert first[1:].std() == pytest.approx(np.sqrt((1 / 12 + 0.9 / 4) / 600) / 10, rel=5 / np.sqrt(400))


def test_how_units_were_drawn_is_said():
    found = evidence(many(1), arms=ARMS, metrics={}, statistics=["mean:predicted/0"], draws=5)
    assert "6000 rows in 2000 random groups, each with all its seeds" in found["resampling"]
    few = evidence(many(1, n=50), arms=ARMS, metrics={}, statistics=["mean:predicted/0"], draws=5)
    assert "50 rows, each with all its seeds" in few["resampling"]


def test_a_gap_that_comes_from_who_lives_where_is_no_chance():
    # catches labels that are permuted inside clients for the gap of all rows: it then passes for chance
    group = np.repeat(["a", "b"], 200)
    client = np.where(np.arange(400) % 10 == 0, np.where(group == "a", "k1", "k0"), np.where(group == "a", "k0", "k1"))
    predicted = (client == "k1").astype(int)
    one = scores(list(range(400)), predicted, predicted, group, client, (1,))
    samples = Samples(Units([Block("r", "none", 0, one)]), 20, 0)
    whole = parse("disparity:predicted:group", samples.units)
    inside = parse("client_disparity:predicted:group", samples.units)
    assert samples.of(whole, "none", None)[0] == pytest.approx(0.8)
    assert 0.02 < samples.null(whole, "none", None)["high"] < 0.2
    assert samples.null(inside, "none", None)["high"] == 0.0  # at a client all are decided alike
