"""Audit of decisions: known gaps, agreement with the metric, who takes part, what is refused, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from upright import api
from upright.contract import InputError
from upright.metrics.fairness import group_fairness
from upright.shell import predictions
from upright.shell.audit_predictions import audit_predictions
from upright.shell.gates import fail_if
from upright.shell.units import read_units


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
    options = {"group": "sex", "prediction": "decided", "draws": 100} | options
    if "proba" in options:
        options.pop("prediction")
    made = audit_predictions(path, out=path.parent / "audits", **options)
    return json.loads((made / "summary.json").read_text()), made


def level(summary, statistic, group=None):
    (found,) = [x for x in summary["evidence"]["levels"] if x["statistic"] == statistic and x["group"] == group]
    return found


def tables(summary, criterion, grouping="group"):
    (found,) = [x for x in summary["audit"]["fairness"] if (x["grouping"], x["criterion"]) == (grouping, criterion)]
    return found


FULL = {"client": "site", "label": "truth"}


# -- numbers ------------------------------------------------------------------------------------------------------


def test_a_planted_gap_is_shown_and_named(tmp_path):
    # catches groups joined to other rows, a sentence that reads another number, a sign that is lost
    summary, _ = audit(write(tmp_path, world()), **FULL)
    gap = level(summary, "disparity:predicted:group")
    assert gap["value"] == pytest.approx(0.3, abs=5 * np.sqrt(2 * 0.24 / 300))
    assert gap["low"] > gap["null"]["high"]
    verdict = summary["evidence"]["verdict"]
    assert verdict["word"] == "gap shown"
    said = verdict["sentence"]
    assert "groups of 'sex'" in said
    assert "'f' is more often decided 'yes' than 'm'" in said
    for number in (gap["value"], gap["low"], gap["high"], gap["null"]["expected_abs"], gap["null"]["high"],
                   gap["smallest_detectable"]):  # fmt: skip
        assert f"{number:.4f}" in said
    assert "outside what random groups would show" in said
    assert verdict["notes"][0].startswith("Inside clients the gap is at most ")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_gap_is_inside_what_random_groups_show(tmp_path, seed):
    # catches a null that is too narrow or a word that ignores it; three fixed seeds, each at a level of 5 %
    summary, _ = audit(write(tmp_path, world(signal=0.0, seed=seed)))
    assert summary["evidence"]["verdict"]["word"] == "no gap shown"
    assert "inside what random groups would show" in summary["evidence"]["verdict"]["sentence"]
    assert len(summary["evidence"]["verdict"]["not_significant"]) == 1


@pytest.mark.parametrize("criterion", ["demographic_parity", "equal_opportunity", "equalized_odds"])
@pytest.mark.parametrize("random", [False, True])
def test_statistics_and_tables_are_those_of_the_metric(tmp_path, criterion, random):
    # catches two definitions of one gap: the statistics of the unit table and the metric must agree everywhere
    data = world()
    options = {"proba": "p_no,p_yes", "randomised": True} if random else {}
    summary, _ = audit(write(tmp_path, data), criterion=criterion, **FULL, **options)
    h = np.stack([data["p_no"], data["p_yes"]], 1)
    found = group_fairness(h if random else data["decided"], data["sex"], labels=data["truth"], clients=data["site"],
                           criterion=criterion, draws=2, names=["no", "yes"])  # fmt: skip
    prefix = {"demographic_parity": "predicted", "equal_opportunity": "true_positive",
              "equalized_odds": "true_positive+false_positive"}[criterion]  # fmt: skip
    sizes, facts = found.summary["pairwise"], tables(summary, criterion)
    for name, key in (("disparity", "global"), ("client_disparity", "max"), ("mean_client_disparity", "mean")):
        row = level(summary, f"{name}:{prefix}:group")
        assert row["value"] == pytest.approx(sizes[key]["value"])
        stored = facts["summary"]["pairwise"][key]
        assert [stored[k] for k in ("value", "low", "high")] == pytest.approx(
            [row[k] for k in ("value", "low", "high")]
        )
        assert row["smallest_detectable"] == pytest.approx(2.8 * stored["standard_error"])
    assert [r["rate"] for r in facts["by_group"]] == pytest.approx([r["rate"] for r in found.by_group])
    assert summary["evidence"]["verdict"]["primary"] == f"disparity:{prefix}:group"


def test_accuracy_and_rates_by_group(tmp_path):
    # catches a metric of the wrong rows, a group's mean over other rows
    data = world()
    summary, made = audit(write(tmp_path, data), **FULL)
    f, right = data["sex"] == "f", data["decided"] == data["truth"]
    assert level(summary, "mean:accuracy:group", "f")["value"] == pytest.approx(right[f].mean())
    assert level(summary, "mean:accuracy")["value"] == pytest.approx(right.mean())
    yes, of = data["decided"] == "yes", f & (data["truth"] == "no")
    assert level(summary, "mean:false_positive/yes:group", "f")["value"] == pytest.approx(yes[of].mean())
    (block,) = read_units(made / "units.parquet")
    assert block.scores.unit_kind == "row"
    assert list(block.scores.values) == ["predicted/yes", "accuracy", "true_positive/yes", "false_positive/yes"]
    assert {k: list(v) for k, v in block.scores.by.items()} == {
        "group": data["sex"].tolist(), "client": data["site"].tolist(), "label": data["truth"].tolist(),
    }  # fmt: skip
    assert np.isnan(np.asarray(block.scores.values["true_positive/yes"]))[data["truth"] == "no"].all()


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
    assert tables(summary, "demographic_parity", "sex*age")["groups"] == [
        "f and old", "f and young", "m and old", "m and young",
    ]  # fmt: skip
    own = (data["sex"] == "f") & (data["age"] == "old")
    rate = (data["decided"] == "yes")[own].mean()
    assert level(summary, "mean:predicted/yes:sex*age", "f and old")["value"] == pytest.approx(rate)
    assert summary["evidence"]["verdict"]["primary"] == "disparity:predicted:sex*age"
    both, _ = audit(write(tmp_path, data), group="age,sex")
    assert list(both["audit"]["groupings"]) == ["age", "sex"]
    assert level(both, "disparity:predicted:sex")["value"] == level(summary, "disparity:predicted:sex")["value"]


def test_without_labels_only_demographic_parity(tmp_path):
    # catches labels made up where there are none
    summary, made = audit(write(tmp_path, world()))
    assert [x["criterion"] for x in summary["audit"]["fairness"]] == ["demographic_parity"]
    assert list(read_units(made / "units.parquet")[0].scores.values) == ["predicted/yes"]
    assert not any("client" in x["statistic"] for x in summary["evidence"]["levels"])


def test_more_than_two_classes_and_a_chosen_one(tmp_path):
    # catches classes beyond two that are left out, and --positive that is ignored
    data = world()
    data["decided"] = np.random.default_rng(3).choice(["a", "b", "c"], 600)
    path = write(tmp_path, data)
    summary, _ = audit(path)
    assert {x["metric"] for x in summary["evidence"]["levels"]} >= {f"predicted/{c}" for c in "abc"}
    summary, _ = audit(path, positive="b")
    assert summary["audit"]["compared"] == ["b"]
    assert {r["class"] for r in tables(summary, "demographic_parity")["by_group"]} == {"b"}


def test_numbers_and_texts_name_the_same_classes(tmp_path):
    # catches 1 and 1.0 as two classes, which Parquet makes of whole numbers
    data = world()
    data["truth"] = (data["truth"] == "yes").astype(float)
    data["decided"] = (data["decided"] == "yes").astype(int)
    summary, _ = audit(write(tmp_path, data, "cases.parquet"), label="truth")
    assert summary["data"]["classes"] == ["0", "1"]
    assert summary["audit"]["compared"] == ["1"]


def test_the_order_of_rows_changes_no_value(tmp_path):
    # catches columns that are read apart from one another
    data = world()
    order = np.random.default_rng(4).permutation(600)
    one, _ = audit(write(tmp_path, data), **FULL)
    two, _ = audit(write(tmp_path, {k: v[order] for k, v in data.items()}, "other.csv"), **FULL)
    for a, b in zip(one["evidence"]["levels"], two["evidence"]["levels"], strict=True):
        assert a["value"] == pytest.approx(b["value"])
        assert a["statistic"] == b["statistic"]


# -- who takes part, what is kept -----------------------------------------------------------------------------------


def test_small_groups_and_missing_groups_take_no_part_and_are_said(tmp_path):
    # catches a group of four people in a table, and an empty cell that becomes a group of its own
    data = world()
    sex = data["sex"].astype(object)
    sex[:4], sex[4:10] = "x", None
    summary, made = audit(write(tmp_path, data | {"sex": sex.tolist()}), **FULL)
    assert tables(summary, "demographic_parity")["groups"] == ["f", "m"]
    assert "6 rows without a group of 'sex' took no part in its comparisons." in summary["warnings"]
    assert "Groups of 'sex' with fewer than 5 rows take no part: 'x'." in summary["warnings"]
    assert level(summary, "mean:predicted/yes")["n_units"] == 600
    assert sum(r["n"] for r in tables(summary, "demographic_parity")["overall"] if r["client"] is None) == 590
    assert list(read_units(made / "units.parquet")[0].scores.by["group"][:10]) == [""] * 10


def test_cells_under_five_rows_are_not_in_tables(tmp_path):
    # catches counts or rates of three people at a client, and their gap
    data = world()
    site = np.where(np.arange(600) < 40, "tiny", "big").astype(object)
    sex = data["sex"].astype(object)
    sex[:40] = ["f"] * 3 + ["m"] * 37
    summary, _ = audit(write(tmp_path, data | {"site": site, "sex": sex}), **FULL)
    facts = tables(summary, "demographic_parity")
    (row,) = [r for r in facts["by_group"] if r["client"] == "tiny" and r["group"] == "f"]
    assert row["few"]
    assert [row[k] for k in ("n", "rate", "low", "high")] == [None] * 4
    (gap,) = [r for r in facts["gaps"] if r["client"] == "tiny" and r["gap"] == "pairwise"]
    assert gap["value"] is None
    notes = summary["evidence"]["verdict"]["notes"]
    assert "The largest gap inside a client rests on a cell of fewer than 5 rows." in notes
    assert not any("'tiny'" in note for note in notes)
    assert [(r["client"], r["group"], r["n"]) for r in facts["small"]] == [("tiny", "f", None), ("tiny", "m", 37)]


def test_rates_of_under_five_rows_are_no_levels(tmp_path):
    # catches a true positive rate of three people of a larger group
    data = world()
    f = np.flatnonzero(data["sex"] == "f")
    data["truth"][f] = "no"
    data["truth"][f[:3]] = "yes"
    summary, _ = audit(write(tmp_path, data), label="truth", criterion="equal_opportunity")
    rates = [x["group"] for x in summary["evidence"]["levels"] if x["statistic"] == "mean:true_positive/yes:group"]
    assert rates == ["m"]
    assert "This gap rests on a cell of fewer than 5 rows." in summary["evidence"]["verdict"]["notes"]


def test_empty_cells_are_masked_and_listed(tmp_path):
    # catches a division by zero, and a client that is left out in silence
    data = world()
    data["site"] = np.where((data["site"] == "site0") & (data["sex"] == "m"), "site1", data["site"])
    summary, _ = audit(write(tmp_path, data), **FULL)
    (empty,) = [r for r in tables(summary, "demographic_parity")["small"] if r["client"] == "site0"]
    assert (empty["group"], empty["n"], empty["need"]) == ("m", 0, None)
    assert level(summary, "client_disparity:predicted:group")["n_clients_left_out"] == 1


def test_conflicts_between_clients_and_the_whole_are_said(tmp_path):
    # catches a note without its table
    data = world(n=3000)
    flip = data["site"] == "site2"
    data["decided"] = np.where(flip, np.where(data["sex"] == "m", "yes", "no"), data["decided"])
    data["decided"] = np.where(~flip & (np.random.default_rng(1).random(3000) < 0.6) & (data["sex"] == "f"), "yes",
                               data["decided"])  # fmt: skip
    data["decided"] = np.where(~flip & (data["sex"] == "m"), "no", data["decided"])
    summary, _ = audit(write(tmp_path, data), **FULL)
    rows = tables(summary, "demographic_parity")["conflicts"]
    assert [r["client"] for r in rows] == ["site2"]
    assert rows[0]["global"]["low"] > 0 > rows[0]["local"]["high"]
    notes = summary["evidence"]["verdict"]["notes"]
    assert "In demographic parity by 'sex', gaps at 1 client point the other way than overall." in notes


def test_many_rows_are_stored_as_cells_that_hold_the_same_rates(tmp_path, monkeypatch):
    # catches a table of cells from which a rate can no longer be computed
    data = world()
    small, _ = audit(write(tmp_path, data), **FULL)
    monkeypatch.setattr(predictions, "MOST_ROWS", 100)
    monkeypatch.setattr("upright.shell.audit_predictions.MOST_ROWS", 100)
    large, folder = audit(write(tmp_path, data), **FULL)
    assert large["evidence"] == small["evidence"]  # computed from rows in both
    (block,) = read_units(folder / "units.parquet")
    assert block.scores.unit_kind == "cell"
    rows = np.asarray(block.scores.values["rows"])
    assert rows.sum() == 600
    assert len(rows) == 2 * 3 * 2
    for metric in ("predicted/yes", "true_positive/yes", "accuracy"):
        own = np.asarray(block.scores.values[metric])
        there = ~np.isnan(own) & (np.array(block.scores.by["group"]) == "f")
        value = (rows * own)[there].sum() / rows[there].sum()
        assert value == pytest.approx(level(small, f"mean:{metric}:group", "f")["value"])
    assert any("one unit a cell" in w for w in large["warnings"])


def test_the_folder_holds_no_features_and_no_path(tmp_path):
    # catches columns that were not asked for, ids outside the unit table, a path of this machine
    data = world() | {"case": [f"somebody{i}" for i in range(600)], "income": np.arange(600) + 77_000}
    _, made = audit(write(tmp_path, data), ids="case", **FULL)
    for file in ("summary.json", "run.json", "config.json"):
        said = (made / file).read_text()
        assert "somebody" not in said
        assert str(tmp_path) not in said
    assert "77123" not in str(pl.read_parquet(made / "units.parquet").to_dict(as_series=False))
    assert read_units(made / "units.parquet")[0].scores.unit[0] == "somebody0"
    assert json.loads((made / "run.json").read_text())["command"] == (
        "upright audit predictions cases.csv --group sex --client site --label truth --prediction decided --id case "
        "--criterion demographic_parity --least 30 --seed 0"
    )


# -- bad input ------------------------------------------------------------------------------------------------------


def three(call):
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.got, caught.value.accepted, caught.value.todo


def test_options_that_do_not_fit_are_refused(tmp_path):
    # catches an option that is ignored in silence
    path = write(tmp_path, world())
    assert three(lambda: audit(path, prediction=None)) == (
        "neither --prediction nor --proba", "decided classes, or probabilities of every class", "give one of the two",
    )  # fmt: skip
    both = {"group": "sex", "prediction": "decided", "proba": "p_no,p_yes", "out": tmp_path}
    assert three(lambda: audit_predictions(path, **both))[0] == "both --prediction and --proba"
    assert three(lambda: audit(path, randomised=True)) == (
        "--randomised with --prediction", "--randomised with --proba", "give the probabilities",
    )  # fmt: skip
    assert three(lambda: audit(path, criterion="equalized_odds")) == (
        "criterion 'equalized_odds' without --label", "a column of true classes",
        "pass --label, or take demographic_parity, which needs none",
    )  # fmt: skip
    assert three(lambda: audit(path, criterion="parity"))[2] == "name one of them"
    assert three(lambda: audit(path, least=4)) == (
        "least = 4", "a whole number of at least 5", "set least to at least 5",
    )  # fmt: skip
    assert three(lambda: audit(path, positive="maybe")) == (
        "--positive 'maybe'", "'no', 'yes'", "name one of the classes",
    )  # fmt: skip
    assert three(lambda: audit(path, group=","))[1] == "one column or several: A, 'A,B' or 'A*B'"


def test_bad_files_are_refused_with_their_lines_and_no_folder_is_made(tmp_path):
    # catches bad cells that become a class, and messages that do not say where
    data = world(n=60)

    def refused(change, **options):
        return three(lambda: audit(write(tmp_path, data | change), **FULL, **options))

    text = data["decided"].astype(object)
    assert refused({"truth": [None, *data["truth"][1:]]}) == (
        "cases.csv line 2: 1 missing 'truth'", "a label in every row",
        "fill in those rows, or leave them out of the file and say so",
    )  # fmt: skip
    assert refused({"decided": ["", *text[1:]]})[0] == "cases.csv line 2: 1 missing 'decided'"
    assert refused({"site": [*data["site"][:-1], None]})[1] == "a client in every row"
    assert refused({"p_yes": data["p_yes"] + np.eye(60)[3]}, proba="p_no,p_yes")[:2] == (
        f"cases.csv line 5: probabilities {data['p_no'][3]:g}, {data['p_yes'][3] + 1:g} sum to 2",
        "numbers of at least 0 that sum to 1",
    )  # fmt: skip
    assert refused({}, proba="p_yes") == (
        "--proba with 1 column", "one column a class, such as p_no,p_yes", "name the columns of all classes",
    )  # fmt: skip
    assert refused({}, proba="a=p_no,b=p_yes") == (
        "--proba names the classes 'a', 'b', the labels hold 'no', 'yes'", "a column for every class of the labels",
        "write CLASS=COLUMN, such as yes=p1",
    )  # fmt: skip
    assert refused({"decided": np.where(text == "yes", "1", "0")})[0] == (
        f"cases.csv: predictions such as {'1' if text[0] == 'yes' else '0'!r} and labels such as 'no' share no class"
    )
    assert refused({"sex": ["f"] * 60}) == (
        "cases.csv: 'sex' has one group, 'f', of at least 5 rows", "at least 2 groups of 5 rows",
        "name another column with --group, or merge small groups",
    )  # fmt: skip
    assert refused({"sex": np.arange(60)}) == (
        "cases.csv: 'sex' has 60 different values", "at most 50", "cut it into ranges, such as <25, 25-45, >=45",
    )  # fmt: skip
    assert refused({}, group="gender")[2].startswith("name the column with --group")
    assert refused({"truth": ["no"] * 60, "decided": ["no"] * 60})[0] == "cases.csv: one class, 'no'"
    assert refused({"case": ["a"] * 2 + [f"c{i}" for i in range(58)]}, ids="case") == (
        "cases.csv line 3: id 'a' again or missing", "each id once", "keep one row of each, or leave out --id",
    )  # fmt: skip
    assert not (tmp_path / "audits").exists()


# -- doors ------------------------------------------------------------------------------------------------------------


def test_gates_read_the_audit(tmp_path):
    # catches levels that a gate cannot name
    summary, _ = audit(write(tmp_path, world()), **FULL)
    rate = level(summary, "mean:predicted/yes:group", "f")["value"]
    assert fail_if(summary, f'mean["predicted/yes", "f"] > {rate - 0.01} and mean["accuracy"] < 0.9')
    assert not fail_if(summary, f'mean["predicted/yes", "f"] > {rate + 0.01}')
    assert fail_if(summary, 'abs(mean["predicted/yes", "f"] - mean["predicted/yes", "m"]) > 0.1')
    assert fail_if(summary, 'mean_low["accuracy", "group", "f"] < 0.9')


def test_the_python_door_returns_the_audit(tmp_path):
    # catches a door that loses an option
    path = write(tmp_path, world())
    result = api.audit_predictions(path, group="sex", prediction="decided", client="site", out=tmp_path / "a", draws=50)
    assert result.verdict.startswith("The largest gap in demographic parity between groups of 'sex' is ")
    assert result.evidence["draws"] == 50
    assert result.report().is_file()


def test_the_command_line(tmp_path: Path):
    # catches a verb whose options do not arrive, a gate that does not decide the exit status
    write(tmp_path, world())

    def upright(*words):
        return subprocess.run(
            [sys.executable, "-m", "upright.cli", "audit", "predictions", "cases.csv", *words], cwd=tmp_path,
            check=False, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    words = ("--group", "sex", "--client", "site", "--label", "truth")
    done = upright(*words, "--proba", "p_no,p_yes", "--criterion", "equal_opportunity", "--least", "40",
                   "--fail-if", 'mean["accuracy"] < 0.9')  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "gate failed" in done.stderr
    assert "The largest gap in equal opportunity between groups of 'sex' is " in done.stdout
    (page,) = tmp_path.glob("audits/*/report.html")
    assert json.loads((page.parent / "summary.json").read_text())["audit"]["least"] == 40
    done = upright(*words)
    assert done.returncode == 2
    assert done.stderr == (
        "error: neither --prediction nor --proba\n  accepted: decided classes, or probabilities of every class\n"
        "  to do:    give one of the two\n"
    )
