"""Audit of user vectors: planted and absent attributes, who is scored, what is refused, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from upright import api
from upright.contract import InputError
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.gate import fail_if
from upright.evidence.statistics import parse
from upright.evidence.units import Units, read_units
from upright.metrics.attacks import ATTACKERS, AttackScores, attack
from upright.metrics.leakage import leakage
from upright.tasks.embeddings import LEAKAGE, EmbeddingsConfig, _classes, _read_labels, judge_attacks

N = 90


def world(shift=3.0, n=N, d=4, classes=("f", "m"), seed=0):
    """Vectors (n, d) whose first column carries the class, and the class of each user."""
    rng = np.random.default_rng(seed)
    code = rng.permutation(np.arange(n) % len(classes))
    x = rng.normal(size=(n, d))
    x[:, 0] += shift * code
    return x, [classes[c] for c in code]


def ids(n=N):
    return [f"person{i:03d}" for i in range(n)]


def write(folder, x, y, users=None, **columns):
    np.save(folder / "emb.npy", x)
    frame = pl.DataFrame({"user": users or ids(len(y)), "gender": y, **columns})
    frame.write_csv(folder / "labels.csv")
    return folder / "emb.npy", folder / "labels.csv"


def audit(folder, tables="emb.npy", labels="labels.csv", **options):
    given = options.pop("given", None) or folder / tables
    options = {"attackers": ("logistic",), "draws": 50, "folds": 3, "repeats": 2} | options
    options = {"labels": folder / labels, "out": folder / "runs", "by_position": True} | options
    made = api.audit("embeddings", given, **options).folder
    return json.loads((made / "summary.json").read_text()), made


def level(summary, statistic, group=None):
    (found,) = [
        x for x in summary["evidence"]["levels"] if x["statistic"].split(":")[0] == statistic and x["group"] == group
    ]
    return found


# -- signals ------------------------------------------------------------------------------------------------------


def test_a_planted_attribute_is_found_by_all(tmp_path):
    # catches labels joined to the wrong rows, an attacker that does not learn, a verdict that reads another number
    write(tmp_path, *world(shift=6.0))
    summary, _ = audit(tmp_path, attackers=("logistic", "mlp", "gbdt"))
    found, verdict = summary["evidence"], summary["evidence"]["verdict"]
    leak, rows = level(summary, "leakage"), summary["audit"]["rows"]
    assert leak["value"] > 0.45
    assert leak["attack"] == summary["audit"]["strongest"]
    assert {row["attacker"] for row in rows} == {"logistic", "mlp", "gbdt"}
    assert all(row["leakage"] > 0.35 and row["leakage_low"] > 0 and row["p"] < 0.05 for row in rows)
    assert (verdict["word"], verdict["answer"], verdict["primary"]) == ("leak shown", "mend it", LEAKAGE)
    assert verdict["sentence"].startswith(found["headline"]["label"])
    assert verdict["sentence"].count("also shown") == 1
    for expression, expected in {
        "leakage_low > 0.1 and leakage_high >= leakage": True,
        "shown AND headline > 0.4 AND p_max < 0.05": True,
        "leakage > leakage_detectable and leakage > leakage_null": True,
        "p_max > 0.05 and leakage > 0.1": False,
    }.items():
        assert fail_if(summary, expression) is expected, expression
    quiet, _ = audit(tmp_path, margins={"attack": 0.5})
    assert (quiet["evidence"]["verdict"]["word"], quiet["evidence"]["verdict"]["answer"]) == (
        "none that matters",
        "fine",
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permuted_labels_are_not_shown(tmp_path, seed):
    # catches an attacker that sees the users it is scored on; three fixed seeds, each at a level of 5 %
    x, y = world(shift=6.0, seed=seed)
    write(tmp_path, x, list(np.random.default_rng(100 + seed).permutation(y)))
    summary, _ = audit(tmp_path, seed=seed)
    assert summary["evidence"]["verdict"]["word"] == "none shown"
    assert summary["audit"]["p_max"] > 0.05
    assert level(summary, "leakage")["low"] == 0.0


@pytest.mark.parametrize("classes", [("f", "m"), ("a", "b", "c")])
def test_every_number_is_that_of_the_attacks_and_said_once(tmp_path, classes):
    # catches folds that are lost on the way, a class under another's name, a row that reads another attack, one number
    # in two versions: levels, comparisons and rows must agree to the last digit
    x, y = world(shift=1.0, n=96, classes=classes)
    users = [f"p{i:02d}" for i in range(96)]  # in sorted order, so that both see the same rows
    write(tmp_path, x, y, users)
    summary, made = audit(tmp_path, attackers=("logistic", "gbdt"), folds=4, seed=7)
    rows, found = summary["audit"]["rows"], attack({"emb": x}, y, attackers=("logistic", "gbdt"), folds=4, seed=7)
    for row, one in zip(rows, found, strict=True):
        wanted, own = leakage(one, y), level(summary, "leakage", f"emb/{one.attacker}/cross")
        assert {c: row[f"auc[{c}]"] for c in classes} == pytest.approx(wanted["auc"], abs=1e-12)
        assert row["leakage"] == pytest.approx(wanted["macro"], abs=1e-12)
        assert [own[k] for k in ("value", "low", "high", "p", "n_units")] == [
            row[k] for k in ("leakage", "leakage_low", "leakage_high", "p", "n")
        ]
        assert row["auc"] == row[f"auc[{row['class']}]"]
        assert row["auc_low"] < row["auc"] < row["auc_high"]
        if len(classes) == 2:
            assert row["auc_low"] - 0.5 == pytest.approx(max(own["low"], 0.0) or row["auc_low"] - 0.5, abs=1e-12)
    top = max(rows, key=lambda row: row["leakage"])
    strongest, headline = level(summary, "leakage"), summary["evidence"]["headline"]
    assert strongest["value"] == top["leakage"]
    assert headline["group"].split("/")[:3] in [[r["surface"], r["attacker"], r["protocol"]] for r in rows]
    assert headline["p"] == summary["audit"]["p_max"] == min(row["p"] for row in rows)
    assert strongest["p"] == top["p"]  # the p of the attack whose value is shown
    again = parse(LEAKAGE, Bootstrap(Units(read_units(made / "units.parquet")), 50, 7), {})
    assert again.draws("yours", None).value == strongest["value"]  # the stored table says it all


def test_more_than_two_classes_report_the_mean_and_the_worst(tmp_path):
    # catches the worst class lost in the mean: one class of three is written into the vectors, two are alike
    x, y = world(shift=0.0, n=120, classes=("a", "b", "c"))
    x[np.array(y) == "c", 0] += 6.0
    write(tmp_path, x, y)
    summary, _ = audit(tmp_path)
    leak, worst = level(summary, "leakage"), level(summary, "worst_leakage")
    assert worst["value"] > 0.45 > 0.4 > leak["value"]
    assert worst["low"] <= worst["value"] <= worst["high"]
    assert "class c" in summary["evidence"]["headline"]["label"]
    (row,) = summary["audit"]["rows"]
    assert row["class"] == "c"
    assert fail_if(summary, "worst_leakage > leakage + 0.05")


@pytest.mark.parametrize("n", [60, 240])
def test_the_smallest_detectable_leakage_is_that_of_the_exact_error(tmp_path, n):
    # catches a constant, folds or the doubled pairs of cross forgotten: ranks of m users among n without signal have an
    # AUC of variance (n + 1) / (12 m (n - m)) in each of three folds
    write(tmp_path, *world(shift=0.0, n=n))
    summary, _ = audit(tmp_path)
    fold, half = n // 3, n // 6
    error = np.sqrt(2 * (fold + 1) / (12 * half * half) / 3)
    assert level(summary, "leakage")["smallest_detectable"] == pytest.approx(2.8 * error, rel=0.1)


def test_users_of_one_fold_alone_are_compared():
    # catches folds that are pooled, and folds of an attacker that is one for all: the second half is scored higher, and
    # has more of one class
    rng = np.random.default_rng(0)
    fold = np.arange(80) // 40
    label = (rng.random(80) < 0.3 + 0.4 * fold).astype(int)
    score = rng.normal(size=80) + 0.5 * label + 5.0 * fold
    columns = np.stack([-score, score], axis=1)
    cross = AttackScores("x", "mlp", "cross", columns, fold, True)
    transfer = AttackScores("x", "mlp", "transfer", columns, np.zeros(80, dtype=int), True)
    rows = judge_attacks([cross, transfer], range(80), label, "a", draws=50).rows
    wanted = [leakage(one, label)["auc"][1] for one in (cross, transfer)]
    assert [row["auc"] for row in rows] == pytest.approx(wanted, abs=1e-12)
    assert wanted[0] < wanted[1] - 0.05


# -- error rates: named seeds -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Logistic regression without inner folds."""

    def model(seed, n_train, **shape):
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced"))

    monkeypatch.setitem(ATTACKERS, "quick", model)


def share_shown(trials, n, shift, attacker="logistic", protocol="cross"):
    """In how many of some audits of n x 8 vectors a leak is shown; the classes differ by `shift` in one column."""
    shown = 0
    for seed in range(trials):
        x, y = world(shift, n, 8, seed=[seed, 11])
        held_out = None if protocol == "cross" else np.arange(n) < 2 * n // 3
        found = attack({"x": x}, y, attackers=[attacker], held_out=held_out, seed=seed)
        found = [one for one in found if one.protocol == protocol]
        shown += judge_attacks(found, range(n), y, "a", draws=2, seed=seed).evidence["verdict"]["word"] == "leak shown"
    return shown / trials


def test_a_leak_is_shown_in_most_audits_and_none_in_most(quick):
    # catches a test without power, and one that shows whatever it sees; measured at length below
    assert share_shown(5, 200, 0.8, "quick") >= 0.8
    assert share_shown(10, 120, 0.0, "quick") <= 0.2


@pytest.mark.slow
def test_a_leak_of_four_fifths_of_a_deviation_is_shown():
    assert share_shown(60, 200, 0.8) >= 0.8


@pytest.mark.slow
def test_random_labels_are_hardly_ever_shown():
    assert share_shown(200, 120, 0.0) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["cross", "transfer"])
def test_the_false_alarm_rate_is_the_stated_one(quick, protocol):
    # named seeds, 5 standard errors around 5 %; without the square root of 2 of `cross` it is 18 %
    assert abs(share_shown(250, 180 if protocol == "transfer" else 120, 0.0, "quick", protocol) - 0.05) < 0.069


# -- who is scored, what is stored --------------------------------------------------------------------------------


def artefact(n=120):
    """Means matched between the classes on half of the users, on columns as many as these users can hide."""
    x, y = world(shift=2.0, n=n, d=3)
    aligned = np.arange(n) % 2 == 0
    for c in "fm":
        own = aligned & (np.array(y) == c)
        x[own] -= x[own].mean(axis=0)  # nothing left for a linear attacker among the aligned users
    return x, y, aligned


@pytest.mark.parametrize("how", ["column", "file"])
def test_aligned_users_are_never_scored_and_give_a_second_row(tmp_path, how):
    # catches attackers scored on the users that a defence was fitted on, which would show nothing here
    x, y, aligned = artefact()
    write(tmp_path, x, y, fitted=aligned.astype(int))
    fitted = [one for one, mine in zip(ids(120), aligned, strict=True) if mine]
    (tmp_path / "aligned.csv").write_text("\n".join(["user", *fitted, ""]))
    given = "fitted" if how == "column" else tmp_path / "aligned.csv"
    summary, made = audit(tmp_path, attribute="gender", aligned=given)
    rows = {row["protocol"]: row for row in summary["audit"]["rows"]}
    assert set(rows) == {"cross", "transfer"}
    assert {row["n"] for row in rows.values()} == {60}
    assert rows["cross"]["leakage"] > 0.3  # attackers who were fitted on held-out users see it
    assert level(summary, "leakage")["value"] == max(row["leakage"] for row in rows.values())
    assert summary["data"]["aligned_users"] == 60
    scores = read_units(made / "units.parquet")[0].scores
    assert set(scores.unit) == {one for one, mine in zip(ids(120), aligned, strict=True) if not mine}
    assert not any(np.isnan(np.asarray(values)).any() for values in scores.values.values())
    assert not any("no evidence of privacy" in warning for warning in summary["warnings"])


def test_users_are_matched_by_name_not_by_place(tmp_path):
    # catches ids that are read and not used, in tables with a column and in a file beside
    x, y = world(shift=6.0)
    write(tmp_path, x, y)
    pl.DataFrame({"user": ids(), "gender": y}).sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "l.csv")
    order = np.random.default_rng(3).permutation(N)
    table = pl.DataFrame({"user": np.array(ids())[order], **{f"d{i}": x[order, i] for i in range(x.shape[1])}})
    table.write_csv(tmp_path / "t.csv")
    (tmp_path / "ids.csv").write_text("user\n" + "\n".join(ids()) + "\n")
    one, _ = audit(tmp_path, labels="l.csv", ids=tmp_path / "ids.csv", name="v")
    two, _ = audit(tmp_path, "t.csv", labels="l.csv", name="v")
    assert one["audit"]["rows"] == two["audit"]["rows"]
    assert level(one, "leakage")["value"] > 0.45


def test_who_takes_no_part_is_said(tmp_path):
    # catches an empty cell that becomes a class, a defence judged on its own users without a word, users who are left
    # out in silence, and an audit that fails where only its curve cannot be drawn
    x, y = world(n=20)
    write(tmp_path, x, [None if i < 4 else c for i, c in enumerate(y)])
    frame(tmp_path / "a.csv", ids(18), x[:18, 0])
    summary, _ = audit(tmp_path, "a.csv", missing="ignore", folds=2)
    assert [(row["protocol"], row["n"]) for row in summary["audit"]["rows"]] == [("cross", 14)]
    assert [row["class"] for row in summary["audit"]["classes"]] == ["f", "m"]
    assert summary["audit"]["curve"] == []
    for said in (
        "no evidence of privacy: name them with --aligned",
        "4 users without a label took no part.",
        "2 users of labels.csv",
        "No learning curve: a class has fewer than 8 scored users.",
        "One family of attackers",
    ):
        assert any(said in warning for warning in summary["warnings"]), said


def test_several_surfaces_and_the_curve_of_the_strongest(tmp_path):
    # catches surfaces mixed up, and a curve of another one: one carries the class, the other does not
    x, y = world(shift=6.0, n=120)
    write(tmp_path, x, y)
    np.save(tmp_path / "noise.npy", np.random.default_rng(5).normal(size=x.shape))
    summary, made = audit(tmp_path, given=[f"other={tmp_path / 'noise.npy'}", tmp_path / "emb.npy"])
    rows, curve = {row["surface"]: row["leakage"] for row in summary["audit"]["rows"]}, summary["audit"]["curve"]
    assert rows["emb"] > 0.45 > 0.2 > rows["other"]
    assert summary["audit"]["strongest"] == "emb/logistic/cross"
    assert [row["n"] for row in curve] == [25, 50, 60]
    assert all(row["low"] <= row["auc"] <= row["high"] for row in curve)
    assert curve[-1]["leakage"] > 0.45
    assert summary["audit"]["curve_of"] == "logistic on emb"
    assert made.name.endswith("audit-embeddings-noise-s0")
    assert summary["data"]["name"] == "noise.npy and 1 more"
    assert fail_if(summary, 'leakage["attack", "other/logistic/cross"] < 0.2')


def test_folder_names_nobody(tmp_path):
    # catches an id, a path or a label per person outside the unit table; a folder made for bad input
    write(tmp_path, *world())
    summary, made = audit(tmp_path)
    for file in ("summary.json", "run.json", "config.json"):
        said = (made / file).read_text()
        assert "person0" not in said
        assert str(tmp_path) not in said
    assert summary["kind"] == "audit"
    assert summary["evidence"]["differences"] == []
    assert json.loads((made / "run.json").read_text())["command"] == (
        "upright audit embeddings emb.npy --labels labels.csv --by-position --attackers logistic --folds 3 --repeats 2 "
        "--seed 0"
    )
    before = sorted(made.parent.iterdir())
    (tmp_path / "labels.csv").write_text("user,gender\nx,f\n")
    with pytest.raises(InputError):
        audit(tmp_path)
    assert sorted(made.parent.iterdir()) == before


# -- bad input and the command line -------------------------------------------------------------------------------


def refused(folder, *args, **options):
    with pytest.raises(InputError) as caught:
        audit(folder, *args, **options)
    return caught.value.got, caught.value.accepted, caught.value.todo


def frame(path, users, x):
    pl.DataFrame({"user": users, "d": x}).write_csv(path)


LABELS = [
    # text, options, got, accepted, to do
    ("user,gender,age\na,f,1\n", {}, "labels.csv has 'gender', 'age' besides 'user'", "one attribute, or its name",
     "name the column: attribute='gender'"),
    ("user\na\n", {}, "labels.csv has no column besides 'user'", "one attribute, or its name",
     "name the column: attribute=COLUMN"),
    ("user,gender\na,f\n", {"attribute": "gendr"}, "labels.csv line 1 has no column 'gendr'",
     "its columns are 'user', 'gender'", "name them: attribute='gender'"),
    ("user,gender\na,f\n", {"attribute": "user"}, "column 'user' as the attribute", "a column of its own",
     "name another column with attribute="),
    ("user,gender\na,f\n", {"aligned": "fitted"}, "labels.csv line 1 has no column 'fitted'",
     "its columns are 'user', 'gender'", "name them: aligned=COLUMN"),
    ("user,gender,al\na,f,1\nb,m,2\n", {"aligned": "al"}, "labels.csv line 3: 'al' is '2'",
     "0 or 1 in every row (or false, true)", "correct those rows"),
    ("user,gender\na,f\nb,m\na,f\n", {}, "labels.csv line 4: user 'a' again", "each user once",
     "keep one row of each user"),
    ("user,age\n" + "".join(f"u{i},{i + 0.5}\n" for i in range(11)), {},
     "labels.csv: 'age' has 11 different numbers", "classes; numbers of at most 10 values",
     "cut them into ranges, such as <25, 25-45, >=45"),
    ("user,gender\na,m/f\n", {}, "labels.csv: 'gender' has the class 'm/f'",
     "classes without a slash, which parts the names of attacks", "rename those classes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", *["got", "accepted", "todo"]), LABELS, ids=[v[2] for v in LABELS])
def test_labels_are_refused(tmp_path, text, options, got, accepted, todo):
    # catches a wrong column taken, a quantity taken for classes, a name that would part the name of an attack
    write(tmp_path, *world(n=12))
    (tmp_path / "labels.csv").write_text(text)
    assert refused(tmp_path, **({"attribute": None} | options)) == (got, accepted, todo)


def test_numbers_as_classes(tmp_path):
    # catches one class written in two ways; whole floats of Parquet
    assert _classes(pl.Series(["1", "1", "2", "", ""]), "l.csv", "band") == ("1", "1", "2", "", "")
    frame = pl.DataFrame({"user": ["a", "b", "c"], "band": [1.0, 2.5, None]})
    config = EmbeddingsConfig(tables=(), labels=frame)
    assert _read_labels(config, None).label == ("1", "2.5", "")
    (tmp_path / "l.csv").write_text("user,band\na,1\nb,1.0\nc,2\nd,\ne, nan\n")
    assert _read_labels(config.replace(labels=tmp_path / "l.csv"), None).label == ("1", "1", "2", "", "")


def test_rows_are_matched_by_position_only_when_asked(tmp_path):
    # catches a shuffled file of labels that turns a leak into none
    write(tmp_path, *world(n=12))
    assert refused(tmp_path, by_position=False) == (
        "emb.npy has no ids, labels.csv has: their rows may stand in another order",
        "the user of each row",
        "pass ids=FILE with one user a row, or by_position=True when you are sure of the order",
    )


def test_users_of_different_files_are_refused(tmp_path):
    # catches users left out in silence, matched by position, or of one table alone
    x, y = world(n=12)
    write(tmp_path, x, y)
    np.save(tmp_path / "emb.npy", x[:10])
    assert refused(tmp_path) == (
        "emb.npy has 10 rows, labels.csv has 12",
        "one row of labels for each vector, in the same order",
        "pass ids=FILE with the user of each vector",
    )
    (tmp_path / "ids.csv").write_text("user\na\nb\n")
    assert refused(tmp_path, ids=tmp_path / "ids.csv")[0] == "ids.csv has 2 ids, emb.npy has 10 rows"
    assert refused(tmp_path, ids="nowhere")[0] == "no file nowhere, and emb.npy has no columns"
    frame(tmp_path / "a.csv", ["x", "y"], x[:2, 0])
    assert refused(tmp_path, "a.csv")[0].startswith("no user of labels.csv is in a.csv: 'person000', 'person001'")
    frame(tmp_path / "a.csv", ids(11), x[:11, 0])
    assert refused(tmp_path, "a.csv") == (
        "1 users of labels.csv are not in a.csv: 'person011'",
        "users that a.csv holds",
        "correct the ids, or leave them out with missing='ignore'",
    )
    frame(tmp_path / "b.csv", ids(12)[1:], x[1:, 0])
    got = refused(tmp_path, given=[tmp_path / "a.csv", tmp_path / "b.csv"])[0]
    assert got == "1 user only in a.csv: 'person000'; 1 user only in b.csv: 'person011'"
    (tmp_path / "bare.csv").write_text("gender\n" + "\n".join(y) + "\n")
    got = refused(tmp_path, "a.csv", labels="bare.csv")[0]
    assert got == "bare.csv has no column 'user', a.csv names its users"


def test_classes_and_options_are_refused(tmp_path):
    # catches one class, a class that folds cannot hold, attackers and options that do not exist
    x, y = world(n=30)
    write(tmp_path, x, ["f"] * 30)
    assert refused(tmp_path)[0] == "one class only: 'f'"
    write(tmp_path, x, ["f"] * 25 + ["m"] * 5)
    assert refused(tmp_path)[:2] == ("too few labelled users in a class: 'm' has 5", "at least 6 in every class")
    write(tmp_path, x, ["f"] * 26 + ["m"] * 4)
    assert refused(tmp_path, folds=2)[1] == "at least 5 in every class"  # a cell of four would be shown
    write(tmp_path, x, y, fitted=[1] * 30)
    assert refused(tmp_path, attribute="gender", aligned="fitted")[0] == "no labelled user is held out"
    write(tmp_path, x, y, fitted=[1] * 2 + [0] * 28)
    assert refused(tmp_path, attribute="gender", aligned="fitted")[0].startswith("too few aligned users in a class")
    write(tmp_path, x, y)
    for options, got in (
        ({"attackers": ("logistc",)}, "attacker 'logistc'"),
        ({"folds": 1}, "EmbeddingsConfig.folds = 1"),
        ({"draws": 1}, "draws = 1"),
        ({"missing": "drop"}, "EmbeddingsConfig.missing = 'drop'"),
        ({"given": [tmp_path / "emb.npy"] * 2}, "surface 'emb' twice"),
        ({"given": ["a.npy", "b.npy"], "name": "x"}, "one name 'x' for 2 tables"),
        ({"tables": "none.npy"}, f"no file {tmp_path / 'none.npy'}"),
    ):
        assert refused(tmp_path, **options)[0] == got
    assert not (tmp_path / "runs").exists()
    one = attack({"x": x}, [f"{c}/" for c in y], attackers=["logistic"])
    with pytest.raises(InputError, match="without a slash"):
        judge_attacks(one, range(30), [f"{c}/" for c in y], "a")


def upright(*words, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "upright.cli", "audit", "embeddings", *words],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=300,
        check=False,
    )


def test_command_line(tmp_path):
    # catches a verb that ignores an option, prints what is no JSON, or ends with the wrong status
    write(tmp_path, *world(shift=6.0))
    words = ["emb.npy", "--labels", "labels.csv", "--by-position", "--attackers", "logistic", "--folds", "3"]
    done = upright(*words, "--json", "--fail-if", "leakage > 0.1", "--name", "users", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "gate failed: leakage > 0.1" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["audit"]["strongest"] == "users/logistic/cross"
    assert Path(tmp_path, summary["report"]).is_file()
    done = upright(*words, "--fail-if", "p_max > 0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Leakage of gender to logistic regression on emb (cross-fitted)" in " ".join(done.stdout.split())
    done = upright("nothing.npy", "--labels", "labels.csv", "--fail-if", "leakage >", cwd=tmp_path)
    assert done.returncode == 2  # the gate is read before the work
    assert "--fail-if" in done.stderr
