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

from upright.contract import InputError
from upright.metrics.leakage import auc
from upright.metrics.privacy import attribute_inference
from upright.shell.audit_embeddings import audit_embeddings
from upright.shell.gates import fail_if
from upright.shell.units import read_units

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
    options = {"attackers": ("logistic",), "draws": 50, "permutations": 99, "folds": 3, "repeats": 2} | options
    made = audit_embeddings(given, folder / labels, out=folder / "runs", **options)
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
    leak = level(summary, "leakage")
    assert leak["value"] > 0.45
    assert leak["value"] > 2 * leak["null"]["high"]
    verdict = summary["evidence"]["verdict"]
    assert verdict["word"] == "leak shown"
    assert "outside what permuted labels show" in verdict["sentence"]
    assert leak["attack"] == summary["audit"]["strongest"]
    assert {row["attacker"] for row in summary["audit"]["rows"]} == {"logistic", "mlp", "gbdt"}
    assert all(row["leakage"] > 0.35 for row in summary["audit"]["rows"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_permuted_labels_are_inside_the_null(tmp_path, seed):
    # catches an attacker that sees the users it is scored on; three fixed seeds, each at a level of 5 %
    x, y = world(shift=6.0, seed=seed)
    write(tmp_path, x, list(np.random.default_rng(100 + seed).permutation(y)))
    summary, _ = audit(tmp_path, seed=seed)
    assert level(summary, "leakage")["value"] <= summary["audit"]["null"]["high"]
    verdict = summary["evidence"]["verdict"]
    assert verdict["word"] == "no leak shown"
    assert "inside what permuted labels show" in verdict["sentence"]
    assert "no proof of privacy" in verdict["sentence"]
    assert summary["audit"]["p_max"] > 0.05
    assert len(verdict["not_significant"]) == 1


@pytest.mark.parametrize("classes", [("f", "m"), ("a", "b", "c")])
def test_the_rows_are_those_of_the_attack_suite(tmp_path, classes):
    # catches a departure from attribute_inference in any field: other folds, draws, permutations, another order
    x, y = world(shift=1.0, n=96, classes=classes)
    users = [f"p{i:02d}" for i in range(96)]  # in sorted order, so that both see the same rows
    write(tmp_path, x, y, users)
    summary, _ = audit(tmp_path, attackers=("logistic", "gbdt"), folds=4, seed=7)
    suite = attribute_inference(
        {"emb": x}, y, ("logistic", "gbdt"), folds=4, draws=50, permutations=99, seed=7,
    )  # fmt: skip
    audited = summary["audit"]
    for mine, theirs in zip(audited["rows"], suite.table(), strict=True):
        assert mine == pytest.approx(theirs)
    assert audited["p_max"] == suite.p_max
    assert audited["null"] == pytest.approx(dict(suite.null))
    assert audited["majority"] == suite.majority


def test_more_than_two_classes_report_the_mean_and_the_worst(tmp_path):
    # catches the worst class lost in the mean: one class of three is written into the vectors, two are alike
    x, y = world(shift=0.0, n=120, classes=("a", "b", "c"))
    x[np.array(y) == "c", 0] += 6.0
    write(tmp_path, x, y)
    summary, _ = audit(tmp_path)
    leak, worst = level(summary, "leakage"), level(summary, "worst_leakage")
    assert worst["value"] > 0.45
    assert leak["value"] < 0.4
    assert worst["low"] <= worst["value"] <= worst["high"]
    assert "The worst class is 'c'" in summary["evidence"]["verdict"]["sentence"]
    (row,) = summary["audit"]["rows"]
    assert row["leakage"] == pytest.approx(np.mean([abs(row[f"auc[{c}]"] - 0.5) for c in "abc"]))
    assert fail_if(summary, "worst_leakage > leakage + 0.05")


@pytest.mark.parametrize("n", [60, 240])
def test_the_smallest_detectable_leakage_is_the_threshold_and_its_error(tmp_path, n):
    # catches a constant, a variance in place of its root, folds or the doubled pairs of cross forgotten: ranks of m
    # users among n without signal have an AUC of variance (n + 1) / (12 m (n - m)) in each of three folds
    write(tmp_path, *world(shift=0.0, n=n))
    summary, _ = audit(tmp_path, permutations=1000)
    fold, half = n // 3, n // 6
    error = np.sqrt(2 * (fold + 1) / (12 * half * half) / 3)
    audited = summary["audit"]
    found = (audited["smallest_detectable"] - audited["null"]["high"]) / 0.84
    assert found == pytest.approx(error, rel=5 / np.sqrt(2 * 1000))  # five standard errors of a root mean square
    assert audited["null"]["high"] == pytest.approx(1.96 * error, rel=0.15)


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
    place = {u: i for i, u in enumerate(scores.unit)}
    mask = np.array([aligned[ids(120).index(u)] for u in place])
    for values in scores.values.values():
        assert np.isnan(np.asarray(values)[mask]).all()
        assert not np.isnan(np.asarray(values)[~mask]).any()
    assert not any("no evidence of privacy" in note for note in summary["evidence"]["verdict"]["notes"])


def test_without_aligned_users_a_note_says_what_that_means(tmp_path):
    # catches a defence judged on its own users without a word
    write(tmp_path, *world())
    summary, _ = audit(tmp_path)
    assert [row["protocol"] for row in summary["audit"]["rows"]] == ["cross"]
    assert any("no evidence of privacy: name them with --aligned" in n for n in summary["evidence"]["verdict"]["notes"])


def test_units_hold_ranks_that_repeat_the_auc(tmp_path):
    # catches values of another class, labels of other users, probabilities of several attackers pooled
    write(tmp_path, *world(shift=1.5))
    summary, made = audit(tmp_path)
    scores = read_units(made / "units.parquet")[0].scores
    (values,) = scores.values.values()
    assert list(scores.values) == ["attack/emb/logistic/cross/m"]
    assert (np.asarray(values) > 0).all()
    assert (np.asarray(values) < 1).all()
    pooled = auc(np.asarray(values), np.array(scores.by["attribute"]) == "m")
    # pairs of users of different folds count here and not there
    assert pooled == pytest.approx(summary["audit"]["rows"][0]["auc[m]"], abs=0.02)


def test_the_order_of_rows_changes_nothing(tmp_path):
    # catches rows of the two files matched by position although both name their users
    x, y = world(shift=1.0)
    for name, order in (("one", np.arange(N)), ("two", np.random.default_rng(3).permutation(N))):
        frame = pl.DataFrame({"user": np.array(ids())[order], **{f"d{i}": x[order, i] for i in range(x.shape[1])}})
        frame.write_csv(tmp_path / f"{name}.csv")
    pl.DataFrame({"user": ids(), "gender": y}).write_csv(tmp_path / "labels.csv")
    rows = [audit(tmp_path, f"{name}.csv", name="v")[0]["audit"]["rows"] for name in ("one", "two")]
    assert rows[0] == rows[1]


def test_labels_are_matched_by_user_not_by_position(tmp_path):
    # catches ids that are read and not used: labels in another order than the vectors
    x, y = world(shift=6.0)
    write(tmp_path, x, y)
    pl.DataFrame({"user": ids(), "gender": y}).sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "l.csv")
    (tmp_path / "ids.csv").write_text("user\n" + "\n".join(ids()) + "\n")
    summary, _ = audit(tmp_path, labels="l.csv", ids=tmp_path / "ids.csv")
    assert level(summary, "leakage")["value"] > 0.45


def test_unlabelled_users_take_no_part_and_are_said(tmp_path):
    # catches an empty cell that becomes a class of its own
    x, y = world()
    write(tmp_path, x, [None if i < 6 else c for i, c in enumerate(y)])
    summary, _ = audit(tmp_path)
    assert summary["audit"]["rows"][0]["n"] == N - 6
    assert sorted(summary["audit"]["counts"]) == ["f", "m"]
    assert "6 users without a label took no part." in summary["warnings"]


def test_several_surfaces(tmp_path):
    # catches surfaces mixed up: one carries the class, the other does not
    x, y = world(shift=6.0)
    write(tmp_path, x, y)
    np.save(tmp_path / "noise.npy", np.random.default_rng(5).normal(size=x.shape))
    given = [tmp_path / "emb.npy", f"other={tmp_path / 'noise.npy'}"]
    summary, made = audit(tmp_path, given=given)
    rows = {row["surface"]: row["leakage"] for row in summary["audit"]["rows"]}
    assert rows["emb"] > 0.45 > 0.2 > rows["other"]
    assert summary["audit"]["strongest"] == "emb/logistic/cross"
    assert made.name.endswith("audit-embeddings-emb-s0")
    assert summary["data"]["name"] == "emb.npy and 1 more"
    assert fail_if(summary, 'leakage["attack", "other/logistic/cross"] < 0.2')
    for row in summary["audit"]["rows"]:  # catches levels of another attack, or an end of another interval
        own = level(summary, "leakage", f"{row['surface']}/{row['attacker']}/{row['protocol']}")
        assert [own[k] for k in ("value", "low", "high", "n_units")] == [
            row[k] for k in ("leakage", "leakage_low", "leakage_high", "n")
        ]
        assert own["null"]["high"] <= summary["audit"]["null"]["high"]


def test_the_learning_curve_uses_the_strongest_attack(tmp_path):
    # catches a curve of another surface: with all known users the strongest attack reads the planted class
    x, y = world(shift=6.0, n=120)
    write(tmp_path, x, y)
    np.save(tmp_path / "noise.npy", np.random.default_rng(5).normal(size=x.shape))
    summary, _ = audit(tmp_path, given=[tmp_path / "noise.npy", tmp_path / "emb.npy"])
    curve = summary["audit"]["curve"]
    assert [row["n"] for row in curve] == [25, 50, 60]
    assert all(row["low"] <= row["auc"] <= row["high"] for row in curve)
    assert curve[-1]["leakage"] > 0.45
    assert summary["audit"]["curve_of"] == "logistic on emb"


def test_too_few_users_for_a_curve_are_said(tmp_path):
    # catches an audit that fails where only its curve cannot be drawn
    write(tmp_path, *world(n=14))
    summary, _ = audit(tmp_path)
    assert summary["audit"]["curve"] == []
    assert "No learning curve: a class has fewer than 8 scored users." in summary["warnings"]


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
        "upright audit embeddings emb=emb.npy --labels labels.csv --attackers logistic --folds 3 --seed 0"
    )
    before = sorted(made.parent.iterdir())
    (tmp_path / "labels.csv").write_text("user,gender\nx,f\n")
    with pytest.raises(InputError):
        audit(tmp_path)
    assert sorted(made.parent.iterdir()) == before


# -- bad input --------------------------------------------------------------------------------------------------------


def three(call):
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.got, caught.value.accepted, caught.value.todo


def frame(path, users, x):
    pl.DataFrame({"user": users, "d": x}).write_csv(path)


def test_users_of_different_files_are_refused(tmp_path):
    # catches users left out in silence, matched by position, or of one table alone
    x, y = world(n=12)
    write(tmp_path, x, y)
    np.save(tmp_path / "emb.npy", x[:10])
    assert three(lambda: audit(tmp_path)) == (
        "emb.npy has 10 rows, labels.csv has 12", "one row of labels for each vector, in the same order",
        "pass --ids FILE with the user of each vector",
    )  # fmt: skip
    (tmp_path / "ids.csv").write_text("user\na\nb\n")
    assert three(lambda: audit(tmp_path, ids=tmp_path / "ids.csv")) == (
        "ids.csv has 2 ids, emb.npy has 10 rows", "one id for each row, in the same order",
        "export both from the same table",
    )  # fmt: skip
    assert three(lambda: audit(tmp_path, ids="nowhere")) == (
        "no file nowhere, and emb.npy has no columns",
        "a file with the user of each row",
        "check the path",
    )
    frame(tmp_path / "a.csv", ["x", "y"], x[:2, 0])
    assert three(lambda: audit(tmp_path, "a.csv")) == (
        "no user of labels.csv is in a.csv: 'person000', 'person001', 'person002', 'person003', 'person004' and 7 more",
        "the same users in both files", "write ids alike in both files (text is compared, so '1' is not '01')",
    )  # fmt: skip
    frame(tmp_path / "a.csv", ids(11), x[:11, 0])
    assert three(lambda: audit(tmp_path, "a.csv")) == (
        "1 users of labels.csv are not in a.csv: 'person011'", "users that a.csv holds",
        "correct the ids, or leave them out with --missing ignore (missing='ignore')",
    )  # fmt: skip
    frame(tmp_path / "b.csv", ids(12)[1:], x[1:, 0])
    assert three(lambda: audit(tmp_path, given=[tmp_path / "a.csv", tmp_path / "b.csv"])) == (
        "1 user only in a.csv: 'person000'; 1 user only in b.csv: 'person011'", "the same users in every table",
        "leave out users that one of the tables lacks",
    )  # fmt: skip
    (tmp_path / "bare.csv").write_text("gender\n" + "\n".join(y) + "\n")
    assert three(lambda: audit(tmp_path, "a.csv", labels="bare.csv")) == (
        "bare.csv has no column 'user', a.csv names its users",
        "a column 'user' in both",
        "add the column to the labels",
    )


def test_missing_ignore_leaves_unknown_users_out_and_says_so(tmp_path):
    # catches an option that is read and not used
    x, y = world(n=30)
    write(tmp_path, x, y)
    frame(tmp_path / "a.csv", ids(26), x[:26, 0])
    summary, _ = audit(tmp_path, "a.csv", missing="ignore")
    assert summary["audit"]["rows"][0]["n"] == 26
    assert any(w.startswith("4 users of labels.csv") for w in summary["warnings"])


def test_classes_and_options_are_refused(tmp_path):
    # catches one class, a class that folds cannot hold, attackers and options that do not exist
    x, y = world(n=30)
    write(tmp_path, x, ["f"] * 30)
    assert three(lambda: audit(tmp_path))[:2] == ("one class only: 'f'", "an attribute with at least two classes")
    write(tmp_path, x, ["f"] * 25 + ["m"] * 5)
    assert three(lambda: audit(tmp_path))[:2] == (
        "too few labelled users in a class: 'm' has 5", "at least 6 in every class")  # fmt: skip
    write(tmp_path, x, ["f"] * 26 + ["m"] * 4)
    assert three(lambda: audit(tmp_path, folds=2))[1] == "at least 5 in every class"  # a cell of four would be shown
    write(tmp_path, x, y, fitted=[1] * 30)
    assert three(lambda: audit(tmp_path, attribute="gender", aligned="fitted")) == (
        "no labelled user is held out", "labelled users on both sides, aligned and held out",
        "give labels of both, or leave out --aligned when no defence was fitted on anybody",
    )  # fmt: skip
    write(tmp_path, x, y, fitted=[1] * 2 + [0] * 28)
    assert three(lambda: audit(tmp_path, attribute="gender", aligned="fitted"))[0].startswith("too few aligned users")
    write(tmp_path, x, y)
    assert three(lambda: audit(tmp_path, attackers=("logistc",))) == (
        "attacker 'logistc'", "logistic, mlp, gbdt", "did you mean 'logistic'?")  # fmt: skip
    assert three(lambda: audit(tmp_path, folds=1)) == (
        "folds = 1", "a whole number of at least 2", "set folds to at least 2")  # fmt: skip
    assert three(lambda: audit(tmp_path, missing="drop")) == (
        "missing = 'drop'", "'error' or 'ignore'", "choose one of the two")  # fmt: skip
    assert three(lambda: audit(tmp_path, given=[tmp_path / "emb.npy"] * 2)) == (
        "surface 'emb' twice", "names without a slash, each once", "write name=path for each table")  # fmt: skip
    assert three(lambda: audit(tmp_path, given=["a.npy", "b.npy"], name="x")) == (
        "one name 'x' for 2 tables", "a name for one table", "write name=path for each table")  # fmt: skip
    assert three(lambda: audit(tmp_path, "none.npy"))[0] == f"no file {tmp_path / 'none.npy'}"
    assert not (tmp_path / "runs").exists()


# -- gates and the command line -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    write(folder, *world(shift=6.0))
    return audit(folder)[0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("leakage > 0.1", True), ("leakage_low > 0.1", True), ("leakage_high < 0.1", False),
        ("worst_leakage == leakage", True),
        ("p_max < 0.05", True), ('leakage["attack"] == leakage', True), ("leakage > leakage_detectable", True),
        ("leakage > leakage_null", True), ("p_max > 0.05 and leakage > 0.1", False),
    ],
)  # fmt: skip
def test_gates(planted, expression, expected):
    # catches a name that reads another row, or an end of the interval for the value
    assert fail_if(planted, expression) is expected


@pytest.mark.parametrize("expression", ["p_max > 0", "leakage > 0", 'p_max["attack"] > 0', "change_leakage > 0"])
def test_gates_on_what_is_not_there_are_refused(expression):
    # catches a gate that passes because a lists audit has no leakage
    with pytest.raises(InputError):
        fail_if({"arms": [], "evidence": {"levels": []}, "audit": {}}, expression)


def upright(*words, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "upright.cli", "audit", "embeddings", *words], capture_output=True, text=True, env=env,
        cwd=cwd, timeout=300, check=False,
    )  # fmt: skip


def test_command_line(tmp_path):
    # catches a verb that ignores an option, prints what is no JSON, or ends with the wrong status
    write(tmp_path, *world(shift=6.0))
    words = ["emb.npy", "--labels", "labels.csv", "--attackers", "logistic", "--folds", "3"]
    done = upright(*words, "--json", "--fail-if", "leakage > 0.1", "--name", "users", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "gate failed: leakage > 0.1" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["audit"]["strongest"] == "users/logistic/cross"
    assert Path(tmp_path, summary["report"]).is_file()
    done = upright(*words, "--fail-if", "p_max > 0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "surface  attacker  protocol  leakage" in done.stdout
    assert "The strongest attack on gender" in done.stdout


def test_command_line_refuses_bad_input(tmp_path):
    # catches a traceback, and a gate that is read after the work
    write(tmp_path, np.zeros(5), ["f"] * 5)
    done = upright("emb.npy", "--labels", "labels.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: emb.npy holds float64 of shape (5,)\n  accepted: real numbers of shape")
    done = upright("nothing.npy", "--labels", "labels.csv", "--fail-if", "leakage >", cwd=tmp_path)
    assert done.returncode == 2
    assert "--fail-if" in done.stderr
    assert not (tmp_path / "audits").exists()
