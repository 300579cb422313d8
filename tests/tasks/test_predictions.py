"""Audit of decisions: known gaps, its rate of errors, who takes part, what is refused, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from upright import api
from upright.contract import InputError, stream
from upright.evidence.gate import fail_if
from upright.evidence.units import read_units
from upright.maths.ranks import auc_values
from upright.maths.simultaneous import compare_groups
from upright.metrics.fairness import Table, fairness_of, group_fairness
from upright.tasks import predictions
from upright.tasks.predictions import CRITERIA_OF, _ratio, metrics_of, pairs_and_verdict

GOLDEN = Path(__file__).parents[1] / "golden"
FULL = {"client": "site", "label": "truth"}


def world(n=600, signal=0.3, seed=0, groups=("f", "m"), clients=3):
    """Cases whose first group is decided "yes" more often by `signal`."""
    rng = np.random.default_rng(seed)
    g, k = rng.choice(groups, n), rng.choice([f"site{i}" for i in range(clients)], n)
    y = np.where(rng.random(n) < 0.5, "yes", "no")
    d = np.where(rng.random(n) < 0.3 + signal * (g == groups[0]), "yes", "no")
    p = np.round(rng.beta(2, 2, n), 3)
    return {"sex": g, "site": k, "truth": y, "decided": d, "p_no": 1 - p, "p_yes": p}


def write(folder, columns, name="cases.csv"):
    frame = pl.DataFrame(columns)
    frame.write_parquet(folder / name) if name.endswith("parquet") else frame.write_csv(folder / name)
    return folder / name


def audit(path, **options):
    options = {"group": "sex", "prediction": "decided", "draws": 100, "out": path.parent / "audits"} | options
    if "proba" in options:
        options.pop("prediction")
    made = api.audit("predictions", path, **options).folder
    return json.loads((made / "summary.json").read_text()), made


def level(summary, statistic, group=None):
    (found,) = [x for x in summary["evidence"]["levels"] if (x["statistic"], x.get("group")) == (statistic, group)]
    return found


def tables(summary, criterion="demographic_parity", grouping="group"):
    (found,) = [x for x in summary["audit"]["fairness"] if (x["grouping"], x["criterion"]) == (grouping, criterion)]
    return found


# -- numbers ------------------------------------------------------------------------------------------------------


def scored(n=3000, signal=0.0, seed=0):
    """Scores that rank group f less well by `signal`, and are calibrated for nobody in particular."""
    rng = np.random.default_rng(seed)
    g, y = rng.choice(["f", "m"], n), rng.integers(0, 2, n)
    z = rng.normal(size=n) + y * np.where(g == "f", 1.2 - signal, 1.2)
    return {"sex": g, "truth": y, "score": np.round(stats.norm.cdf(z - 0.6), 4)}


@pytest.mark.parametrize("signal", [0.0, 0.8])
def test_scores_are_compared_by_group_beside_the_decisions(tmp_path, signal):
    # catches scores that are read and then only thresholded
    data = scored(signal=signal)
    summary, _ = audit(write(tmp_path, data), label="truth", score="score", prediction=None)
    gaps = {x["metric"]: x for x in summary["evidence"]["levels"] if x["statistic"].startswith("gap:")}
    assert (gaps["roc_auc"]["low"] > 0) is (signal > 0)
    for g in "fm":
        own = data["sex"] == g
        y, p = data["truth"][own], data["score"][own]
        assert level(summary, "mean:roc_auc:group", g)["value"] == pytest.approx(roc_auc_score(y, p), abs=1e-9)
        assert level(summary, "mean:brier:group", g)["value"] == pytest.approx(((p - y) ** 2).mean(), abs=1e-9)
        assert level(summary, "mean:calibration:group", g)["value"] == pytest.approx((p - y).mean(), abs=1e-9)
    assert fail_if(summary, 'gap_low["roc_auc"] > 0.02') is (signal > 0)


def test_scores_outside_0_to_1_are_ranked_but_no_probabilities(tmp_path):
    # catches a calibration of points on another scale
    data = scored() | {"score": 300 + 550 * scored()["score"]}
    summary, _ = audit(write(tmp_path, data), label="truth", score="score", threshold=600.0, prediction=None)
    found = {x["metric"] for x in summary["evidence"]["levels"]}
    assert "roc_auc" in found
    assert not found & {"calibration", "brier"}


@pytest.mark.slow
def test_equal_areas_of_unlike_groups_are_called_unequal_in_about_5_percent():
    # catches an error of areas that forgets that a group has few positives, or a permutation that mixes the classes
    shown = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        g = (rng.random(900) < 0.25).astype(int)
        y = rng.random(900) < np.where(g, 0.1, 0.5)
        score = np.where(g, 3.0, 1.0) * (rng.normal(size=900) + y)
        values = auc_values(score, y, g)[None, :, None]
        seen = compare_groups(values, g[None], np.arange(900), 2, rng=rng, draws=499)
        shown += int(seen.shown.any())
    assert shown <= 300 * 0.05 + 2 * np.sqrt(300 * 0.05 * 0.95)


def test_levels_are_what_they_were(tmp_path):
    # catches a level of other rows: values of commit 7b76a5f, which `tests/golden/freeze.py` wrote down
    frozen = [r for r in pq.read_table(GOLDEN / "evidence.parquet").to_pylist() if r["source"] == "audit-predictions"]
    summary, _ = audit(
        GOLDEN / "audits" / "predictions.csv", group="sex,age", client="site", label="truth", out=tmp_path
    )
    assert len(frozen) == 39
    for row in frozen:
        if row["statistic"] != "verdict":
            now = level(summary, row["statistic"], row["group"])
            assert now["value"] == pytest.approx(row["value"], abs=1e-9)
            assert (now["n_units"], now["n_undefined"]) == (row["n_units"], row["n_undefined"])


@pytest.mark.parametrize("criterion", CRITERIA_OF)
@pytest.mark.parametrize("random", [False, True])
def test_levels_tables_and_pairs_say_one_thing(tmp_path, criterion, random):
    # catches two definitions of one gap, and two permutations of one table whose p could disagree
    data = world()
    options = {"proba": "p_no,p_yes", "randomised": True} if random else {}
    summary, _ = audit(write(tmp_path, data), criterion=criterion, **FULL, **options)
    h = np.stack([data["p_no"], data["p_yes"]], 1) if random else data["decided"]
    rows = {"labels": data["truth"], "clients": data["site"], "names": ["no", "yes"]}
    metric, facts = group_fairness(h, data["sex"], criterion=criterion, **rows), tables(summary, criterion)
    assert [r["rate"] for r in facts["by_group"]] == pytest.approx([r["rate"] for r in metric.by_group if r["group"]])
    assert facts["gaps"] == [pytest.approx(r | {"few": False}) for r in metric.gaps]
    found, local = level(summary, f"disparity:{CRITERIA_OF[criterion][0]}:group"), facts["gaps"][1:]
    assert found["value"] == pytest.approx(facts["gaps"][0]["value"])
    assert found["p"] == summary["evidence"]["headline"]["p"]
    found = level(summary, f"client_disparity:{CRITERIA_OF[criterion][0]}:group")
    assert found["value"] == pytest.approx(max(r["value"] for r in local))
    for row in (r for r in facts["by_group"] if r["client"] is None):
        mean = level(summary, f"mean:{row['stratum']}/{row['class']}:group", row["group"])
        near = 0.01 if random else 1e-9  # a level of what is no plain rate is bootstrapped
        both = [mean[k] for k in ("value", "low", "high")], [row[k] for k in ("rate", "low", "high")]
        assert both[0] == pytest.approx(both[1], abs=near)


def test_rates_of_0_and_1_have_an_interval_with_width(tmp_path):
    # catches a bootstrap of equal rows
    data = world()
    data["decided"] = np.where(data["sex"] == "f", "yes", "no")
    summary, _ = audit(write(tmp_path, data), label="truth")
    for group, rate in (("f", 1.0), ("m", 0.0)):
        row = level(summary, "mean:predicted/yes:group", group)
        assert row["value"] == rate
        assert 0.001 < row["high"] - row["low"] < 0.1
    top = summary["evidence"]["headline"]
    assert 0.9 < top["low"] < top["value"] == pytest.approx(1.0)


def test_the_most_probable_class_is_decided_unless_randomised(tmp_path):
    # catches probabilities averaged where decisions were asked for, columns in the wrong order
    data = world()
    path = write(tmp_path, data)
    summary, _ = audit(path, proba="p_no,p_yes", label="truth")
    assert level(summary, "mean:predicted/yes")["value"] == pytest.approx((data["p_yes"] > 0.5).mean())
    summary, _ = audit(path, proba="yes=p_yes,no=p_no", randomised=True, positive="yes")
    assert level(summary, "mean:predicted/yes")["value"] == pytest.approx(data["p_yes"].mean())
    assert summary["data"]["classes"] == ["yes", "no"]


def test_several_columns_and_their_product(tmp_path):
    # catches a product that is one of its factors, columns that lose each other, a verdict about another grouping
    data = world(n=900) | {"age": np.random.default_rng(9).choice(["old", "young"], 900)}
    summary, _ = audit(write(tmp_path, data), group="sex*age")
    assert list(summary["audit"]["groupings"]) == ["sex*age", "sex", "age"]
    groups = ["f and old", "f and young", "m and old", "m and young"]
    assert tables(summary, grouping="sex*age")["groups"] == groups
    own = (data["sex"] == "f") & (data["age"] == "old")
    rate = (data["decided"] == "yes")[own].mean()
    assert level(summary, "mean:predicted/yes:sex*age", "f and old")["value"] == pytest.approx(rate)
    pairs = [x for x in summary["evidence"]["levels"] if x["statistic"].startswith("gap:")]
    assert {x["statistic"] for x in pairs} == {"gap:predicted/yes:sex*age"}
    assert len(pairs) == 6
    assert summary["evidence"]["headline"] == pairs[0]


def test_numbers_are_cut_and_missing_ones_have_no_group(tmp_path):
    # catches a bound on the wrong side, a number rounded in a name, and a missing number that becomes the largest
    pay = [10.0, 1_234_567.0, 2_000_000.0, None] * 150
    path = write(tmp_path, world() | {"pay": pay}, "cases.parquet")
    summary, _ = audit(path, group="pay<=1234567,pay:1234567,2000000")
    assert tables(summary, grouping="pay<_1234567")["groups"] == ["pay<=1234567", "pay>1234567"]
    groups = ["pay 1234567 to 2000000", "pay<1234567", "pay>=2000000"]
    assert tables(summary, grouping="pay_1234567,2000000")["groups"] == groups
    assert level(summary, "mean:predicted/yes:pay<_1234567", "pay<=1234567")["n_units"] == 300


def test_copies_of_rows_are_said_unless_persons_are_named(tmp_path):
    # catches rows that were joined twice, which halve every interval; a table of few values called one of copies
    data = world(n=300)
    twice = {name: np.append(values, values[:50]) for name, values in data.items()} | {"who": [*range(300), *range(50)]}
    warned = [w for w in audit(write(tmp_path, twice))[0]["warnings"] if "exact copies" in w]
    assert len(warned) == 1
    assert warned[0].startswith("50 of 350 rows")
    few, whole = {n: data[n] for n in ("sex", "decided")}, data | {"case": range(300)}
    for columns, options in ((twice, {"person": "who"}), (whole, {}), (few, {})):
        assert not any("exact copies" in w for w in audit(write(tmp_path, columns), **options)[0]["warnings"])


def test_more_than_two_classes_and_a_chosen_one(tmp_path):
    # catches classes beyond two that are left out, and --positive that is ignored
    data = world()
    data["decided"] = np.random.default_rng(3).choice(["a", "b", "c"], 600)
    path = write(tmp_path, data)
    summary, _ = audit(path)
    assert {x["metric"] for x in summary["evidence"]["levels"]} >= {f"predicted/{c}" for c in "abc"}
    summary, _ = audit(path, positive="b")
    assert summary["audit"]["compared"] == ["b"]
    assert {r["class"] for r in tables(summary)["by_group"]} == {"b"}


def test_numbers_and_texts_name_the_same_classes(tmp_path):
    # catches 1 and 1.0 as two classes, which Parquet makes of whole numbers
    data = world()
    data["truth"] = (data["truth"] == "yes").astype(float)
    data["decided"] = (data["decided"] == "yes").astype(int)
    summary, _ = audit(write(tmp_path, data, "cases.parquet"), label="truth")
    assert summary["data"]["classes"] == ["0", "1"]


# -- words ------------------------------------------------------------------------------------------------------------


def judged(sizes, rates, k):
    """Return pairs and verdict of one table of decisions."""
    rng = np.random.default_rng(stream(k, "audit", "predictions", str(len(sizes))))
    group, names = np.repeat(range(len(sizes)), sizes), "abcdefgh"[: len(sizes)]
    yes = (rng.random(len(group)) < np.asarray(rates)[group]).astype(float)[:, None]
    table = Table(yes, [("predicted", "yes")], group, 0 * group, np.arange(len(group)), names)
    return pairs_and_verdict(fairness_of(table, seed=k), "group", metrics_of(["predicted/yes"]), {"": 0.0})


both = pytest.mark.parametrize("trials", [40, pytest.param(400, marks=pytest.mark.slow)])


@both
@pytest.mark.parametrize("sizes", [(200, 200), (150, 130, 120), (100, 80, 60, 40, 30, 20, 10, 6)])
def test_equal_groups_show_no_gap(sizes, trials):
    # catches a word that is said of chance: 5 % of tables, streams 0 to 399, at 99.9 % of such counts
    words = [judged(sizes, [0.3] * len(sizes), k)[1].word for k in range(trials)]
    assert words.count("gap shown") <= (6 if trials == 40 else 28)
    assert set(words) <= {"gap shown", "none shown"}


@both
def test_a_small_third_group_hides_no_gap_of_two_large_ones(trials):
    # catches the largest raw gap of permuted groups, which 25 rows make: men 40 %, women 32 %
    tables = [judged((2000, 2000, 25), (0.4, 0.32, 0.36), k) for k in range(trials // 4)]
    shown = [said.word == "gap shown" and pairs[0].group == "a minus b" for pairs, said in tables]
    assert sum(shown) >= 0.95 * len(shown)


def test_the_verdict_names_sides_ratio_and_who_is_too_small(tmp_path):
    # catches a gap hidden by a third group, a small group in the ratio or passed over
    groups = {"men": (2000, 800), "women": (2000, 640), "other": (25, 9)}
    sex, yes = zip(*((g, i < hits) for g, (n, hits) in groups.items() for i in range(n)), strict=True)
    summary, _ = audit(write(tmp_path, {"sex": sex, "decided": yes}))
    verdict, top = summary["evidence"]["verdict"], summary["evidence"]["headline"]
    assert (verdict["word"], top["group"]) == ("gap shown", "men minus women")
    for words in ("higher for men", "smallest over largest rate 0.80", "other is too small to judge"):
        assert words in verdict["sentence"]
    assert fail_if(summary, '"headline low" > 0.04 AND shown')


@pytest.mark.parametrize("positives", [0, 3])
def test_a_half_that_cannot_be_measured_is_named(tmp_path, positives):
    # catches a clean word where a group has no positive label, and the rate of three people
    data = world(n=2000, signal=0.0)
    f = np.flatnonzero(data["sex"] == "f")
    data["truth"][f] = "no"
    data["truth"][f[:positives]] = "yes"
    summary, _ = audit(write(tmp_path, data), label="truth", criterion="equalized_odds")
    verdict, levels = summary["evidence"]["verdict"], summary["evidence"]["levels"]
    assert verdict["word"] == "measured"
    assert verdict["incomplete"] == ["True positive rate of 'yes' for f not measured"]
    assert [x["metric"] for x in levels if x["statistic"].startswith("gap:")] == ["false_positive/yes"]
    if positives:
        shown = {(x["statistic"], x["group"]) for x in levels}
        assert not shown & {("mean:true_positive/yes:group", "f"), ("disparity:true_positive:group", None)}


def test_a_gap_of_exactly_0_favours_nobody(tmp_path):
    # catches a group that is named as favoured
    summary, _ = audit(write(tmp_path, {"sex": ["f", "m"] * 40, "decided": ["no", "no", "yes", "yes"] * 20}))
    assert summary["evidence"]["headline"]["value"] == 0.0
    assert "higher" not in summary["evidence"]["verdict"]["sentence"]
    assert tables(summary)["gaps"][0]["first"] is None


# -- who takes part, what is kept -----------------------------------------------------------------------------------


def test_rows_of_a_person_count_together(tmp_path):
    # catches copies taken for evidence: pairs of rows doubled inside their person leave interval and p as they were
    person, rng = np.repeat(np.arange(200), 2), np.random.default_rng(2)
    data = {"sex": rng.choice(["f", "m"], 200)[person], "who": person, "decided": rng.random(400) < 0.4}
    (one, _), (two, made), (alone, _) = (
        audit(write(tmp_path, {k: np.repeat(v, times) for k, v in data.items()}), person=column)
        for times, column in ((1, "who"), (2, "who"), (1, None))
    )
    for a, b, c in zip(*(x["evidence"]["levels"] for x in (one, two, alone)), strict=True):
        assert [a.get(k) for k in ("value", "low", "high", "p")] == [b.get(k) for k in ("value", "low", "high", "p")]
        assert (a["value"], a["group"]) == (c["value"], c["group"])
        assert a["low"] != c["low"]
    assert two["evidence"]["n_clusters"] == two["data"]["persons"] == 200
    assert len(set(read_units(made / "units.parquet")[0].scores.cluster)) == 200


def test_small_groups_and_missing_groups_take_no_part_and_are_said(tmp_path):
    # catches a group of four people in a table, and an empty cell that becomes a group of its own
    data = world()
    sex = data["sex"].astype(object)
    sex[:4], sex[4:10] = "x", None
    summary, made = audit(write(tmp_path, data | {"sex": sex.tolist()}), **FULL)
    assert tables(summary)["groups"] == ["f", "m"]
    assert "6 rows without a group of 'sex' took no part in its comparisons." in summary["warnings"]
    assert "Groups of 'sex' with fewer than 5 rows take no part: 'x'." in summary["warnings"]
    assert level(summary, "mean:predicted/yes")["n_units"] == 600
    assert sum(r["n"] for r in tables(summary)["overall"] if r["client"] is None) == 590
    assert list(read_units(made / "units.parquet")[0].scores.by["group"][:10]) == [""] * 10


def test_cells_under_five_rows_are_not_in_tables(tmp_path):
    # catches counts or rates of three people at a client, their gap, and a client that is named for it
    data = world()
    data["site"] = np.where(np.arange(600) < 40, "tiny", "big")
    data["sex"][:40] = ["f"] * 3 + ["m"] * 37
    data["decided"][:40] = ["yes"] * 3 + ["no"] * 37
    summary, _ = audit(write(tmp_path, data), **FULL)
    facts = tables(summary)
    (row,) = [r for r in facts["by_group"] if r["client"] == "tiny" and r["group"] == "f"]
    (gap,) = [r for r in facts["gaps"] if r["client"] == "tiny"]
    for found, keys in ((row, ("n", "rate", "low", "high")), (gap, ("value", "low", "high", "p", "smallest"))):
        assert found["few"]
        assert [found[k] for k in keys] == [None] * len(keys)
    assert "'tiny'" not in summary["evidence"]["verdict"]["lines"]["clients"]
    assert "'big'" in summary["evidence"]["verdict"]["lines"]["clients"]
    assert [(r["client"], r["group"], r["n"]) for r in facts["small"]] == [("tiny", "f", None), ("tiny", "m", 37)]


def test_many_rows_are_stored_as_cells_that_hold_the_same_rates(tmp_path, monkeypatch):
    # catches a table of cells from which a rate can no longer be computed
    path = write(tmp_path, world())
    small, _ = audit(path, **FULL)
    monkeypatch.setattr(predictions, "MOST_ROWS", 100)
    monkeypatch.setattr("upright.tasks.predictions.MOST_ROWS", 100)
    large, folder = audit(path, **FULL)
    assert large["evidence"] == small["evidence"]  # computed from rows in both
    (block,) = read_units(folder / "units.parquet")
    assert block.scores.unit_kind == "cell"
    rows = np.asarray(block.scores.values["rows"])
    assert (rows.sum(), len(rows)) == (600, 2 * 3 * 2)
    for metric in ("predicted/yes", "true_positive/yes", "accuracy"):
        own = np.asarray(block.scores.values[metric])
        there = ~np.isnan(own) & (np.array(block.scores.by["group"]) == "f")
        value = (rows * own)[there].sum() / rows[there].sum()
        assert value == pytest.approx(level(small, f"mean:{metric}:group", "f")["value"])
    assert any("one unit a cell" in w for w in large["warnings"])


def test_the_folder_holds_no_features_and_no_path(tmp_path):
    # catches columns that were not asked for, ids outside the unit table, a path of this machine
    data = world() | {"case": [f"somebody{i}" for i in range(600)], "income": np.arange(600) + 77_000}
    _, made = audit(write(tmp_path, data), id="case", person="case", **FULL)
    for file in ("summary.json", "run.json", "config.json"):
        said = (made / file).read_text()
        assert "somebody" not in said
        assert str(tmp_path) not in said
    assert "77123" not in str(pl.read_parquet(made / "units.parquet").to_dict(as_series=False))
    assert read_units(made / "units.parquet")[0].scores.unit[0] == "somebody0"
    options = "--group sex --client site --label truth --person case --prediction decided --id case"
    command = f"upright audit predictions cases.csv {options} --seed 0"
    assert json.loads((made / "run.json").read_text())["command"] == command


# -- bad input ------------------------------------------------------------------------------------------------------


def three(call):
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.got, caught.value.accepted, caught.value.todo


def test_options_that_do_not_fit_are_refused(tmp_path):
    # catches an option that is ignored in silence
    path = write(tmp_path, world())
    both = {"group": "sex", "prediction": "decided", "proba": "p_no,p_yes", "out": tmp_path}
    assert three(lambda: api.audit("predictions", path, **both))[0] == "prediction= and proba="
    for options, got in (
        ({"prediction": None}, "neither prediction= nor proba= nor score="),
        ({"randomised": True}, "randomised=True with prediction="),
        ({"criterion": "equalized_odds"}, "criterion 'equalized_odds' without label="),
        ({"criterion": "parity"}, "PredictionsConfig.criterion = 'parity'"),
        ({"least": 4}, "PredictionsConfig.least = 4"),
        ({"positive": "maybe"}, "positive='maybe'"),
        ({"group": ","}, "group ','"),
    ):
        assert three(lambda options=options: audit(path, **options))[0] == got


def test_bad_files_are_refused_with_their_lines_and_no_folder_is_made(tmp_path):
    # catches bad cells that become a class, and messages that do not say where
    data, line = world(n=60), "cases.csv line 2: "
    for change, options, got in (
        ({"truth": [None, *data["truth"][1:]]}, {}, line + "1 missing 'truth'"),
        ({"decided": ["", *data["decided"][1:]]}, {}, line + "1 missing 'decided'"),
        ({"site": [None, *data["site"][1:]]}, {}, line + "1 missing 'site'"),
        ({"who": [None, *range(59)]}, {"person": "who"}, line + "1 missing 'who'"),
        ({"p_no": [1, *data["p_no"][1:]]}, {"proba": "p_no,p_yes"}, line + "probabilities 1, "),
        ({}, {"proba": "p_yes"}, "proba= with 1 column"),
        ({}, {"proba": "a=p_no,b=p_yes"}, "proba= names the classes 'a', 'b', the labels hold 'no', 'yes'"),
        ({"decided": ["0", "1"] * 30}, {}, "cases.csv: predictions such as '0' and labels such as 'no' share no class"),
        ({"sex": ["f"] * 60}, {}, "cases.csv: 'sex' has one group, 'f', of at least 5 rows"),
        ({"sex": np.arange(60)}, {}, "cases.csv: 'sex' has 60 different values"),
        ({"truth": ["no"] * 60, "decided": ["no"] * 60}, {}, "cases.csv: one class, 'no'"),
        ({"case": ["a", *range(58), "a"]}, {"id": "case"}, "cases.csv line 61: case 'a' again"),
    ):
        given = data | {k: [None if x is None else str(x) for x in v] for k, v in change.items()}
        assert three(lambda g=given, o=options: audit(write(tmp_path, g), **FULL, **o))[0].startswith(got)
    assert not (tmp_path / "audits").exists()


# -- doors ------------------------------------------------------------------------------------------------------------


def test_the_python_door_and_gates_read_the_audit(tmp_path):
    # catches a door that loses an option, levels that a gate cannot name
    path = write(tmp_path, world())
    result = api.audit(
        "predictions", path, group="sex", prediction="decided", client="site", out=tmp_path / "a", draws=50
    )
    assert result.verdict.startswith("Gap shown. Decided 'yes': f minus m is ")
    assert result.evidence["draws"] == 50
    rate = level(result.summary, "mean:predicted/yes:group", "f")["value"]
    assert fail_if(result.summary, f'"mean:predicted/yes:group=f" > {rate - 0.01} AND "headline low" > 0.1')
    assert not fail_if(result.summary, f'"gap:predicted/yes:group=f minus m" > {rate + 0.01}')


def test_the_command_line(tmp_path: Path):
    # catches a verb whose options do not arrive, a gate that does not decide the exit status
    write(tmp_path, world() | {"who": np.arange(600) // 2})

    def upright(words=""):
        command = [sys.executable, "-m", "upright.cli", "audit", "predictions", "cases.csv", "--group", "sex"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command + words.split(), cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env
        )

    done = upright(
        "--client site --label truth --person who --proba p_no,p_yes --criterion equal_opportunity --least 40 "
        "--fail-if headline>=0"
    )
    assert done.returncode == 1, done.stderr
    assert "gate failed" in done.stderr
    assert "True positive rate of 'yes': " in done.stdout
    (page,) = tmp_path.glob("audits/*/report.html")
    summary = json.loads((page.parent / "summary.json").read_text())
    assert (summary["audit"]["least"], summary["data"]["persons"]) == (40, 300)
    done = upright()
    assert done.returncode == 2
    assert done.stderr == (
        "error: neither --prediction nor --proba nor --score\n"
        "  accepted: decided classes, probabilities of every class, or scores\n  to do:    give one of them\n"
    )


def test_equal_rates_are_those_of_two_groups():
    # catches: "F over F" beside a ratio of 1
    assert _ratio({"F": 0.4, "M": 0.4}) == (1.0, "F over M")
    assert _ratio({"F": 0.4, "M": 0.5}) == (0.8, "F over M")


def test_high_scores_decide_for_the_class_that_is_named(tmp_path):
    # catches: scores of repayment that decide for default, because its name comes later in the alphabet
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    data = {"sex": ["f", "m"] * 200, "score": 0.3 + 0.4 * truth + rng.normal(0, 0.05, 400)}
    options = {"group": "sex", "score": "score", "label": "truth", "out": tmp_path / "audits", "draws": 50}
    path = write(tmp_path, data | {"truth": np.where(truth, "ja", "nein")})
    assert three(lambda: api.audit("predictions", path, **options))[2] == "write positive='nein', or positive='ja'"
    told = api.audit("predictions", path, **options, positive="ja")
    accuracy = {x["statistic"]: x["value"] for x in told.evidence["levels"]}["mean:accuracy"]
    assert accuracy > 0.99
    none = api.audit("predictions", path, **options, positive="ja", threshold=60)
    assert any(w.startswith("No score reaches the threshold") for w in none.summary["warnings"])
    plain = api.audit("predictions", write(tmp_path, data | {"truth": np.where(truth, "yes", "no")}), **options)
    assert {x["statistic"]: x["value"] for x in plain.evidence["levels"]}["mean:accuracy"] == accuracy


def test_rows_without_a_decision_are_dropped_and_counted_by_group(tmp_path):
    # catches: rows that vanish, most of them of one group
    data = {"age": [20, 30] * 30, "decided": ["", "", *["a", "b", "b"] * 19, "a"]}
    path = write(tmp_path, data)
    options = {"group": "age<25", "prediction": "decided", "out": tmp_path / "audits", "draws": 50}
    assert three(lambda: api.audit("predictions", path, **options))[0].startswith("cases.csv lines 2 and 3: 2 missing")
    found = api.audit("predictions", path, **options, missing="drop").summary
    assert (found["data"]["rows"], found["evidence"]["headline"]["group"]) == (58, "age<25 minus age>=25")
    assert "2 rows without 'decided' dropped: 1 of age<25, 1 of age>=25." in found["warnings"]


def test_labels_of_1_and_2_do_not_say_which_class_is_scored(tmp_path):
    # catches: 1 taken for the positive class because 0 is usual beside it; a silent audit of scores of the other class
    data = scored(n=400)
    data["truth"] = data["truth"] + 1
    path = write(tmp_path, data)
    with pytest.raises(InputError, match="classes '1', '2'"):
        audit(path, label="truth", score="score", prediction=None)
    fine, _ = audit(path, label="truth", score="score", prediction=None, positive="2")
    turned, _ = audit(path, label="truth", score="score", prediction=None, positive="1")
    said = [any("worse than chance" in w for w in found["warnings"]) for found in (fine, turned)]
    assert said == [False, True]


def test_a_gap_in_scores_alone_is_in_what_to_do_next(tmp_path):
    # catches: equal shares of decisions that hide unequal areas
    summary, _ = audit(write(tmp_path, scored(signal=0.8)), label="truth", score="score", prediction=None)
    verdict = summary["evidence"]["verdict"]
    assert verdict["word"] == "gap shown" or "errors and scores" in verdict["next_steps"][0]
    assert "ROC AUC" in verdict["lines"]["also asked"]


def test_sides_of_levels_are_those_of_the_rates(tmp_path):
    # catches: fewer false alarms that count as worse, a share of decisions or a leaning of scores with a better side
    summary, _ = audit(write(tmp_path, scored(n=400)), label="truth", score="score", prediction=None)
    sides = {x["metric"]: x["better"] for x in summary["evidence"]["levels"] if x["statistic"].startswith("mean:")}
    assert {name: sides[name] for name in ("predicted/1", "calibration")} == {
        "predicted/1": "none",
        "calibration": "none",
    }
    assert (sides["true_positive/1"], sides["false_positive/1"]) == ("higher", "lower")
    assert (sides["accuracy"], sides["roc_auc"], sides["brier"]) == ("higher", "higher", "lower")
