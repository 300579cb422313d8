"""The one door of audits: kinds of other packages, data frames, files whose audit is proposed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from click.testing import CliRunner
from typer.main import get_command

from upright import api
from upright.cli.audit import propose
from upright.cli.verbs import app
from upright.contract import InputError
from upright.experiment.registry import find
from upright.tasks.answers import in_python
from upright.tasks.predictions import PredictionsConfig

PLUGIN = Path(__file__).parents[1] / "plugin"


def calls(n: int = 60) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame({"group": ["day", "night"] * n, "minutes": rng.gamma(2, 4, 2 * n) + [0, 9] * n})


def test_a_kind_of_another_package_needs_no_line_here(tmp_path, monkeypatch):
    # catches: a kind that the command line, the door or the report has to know by name
    monkeypatch.syspath_prepend(PLUGIN)
    assert list(find("audits")) == [
        "alignment",
        "copyright",
        "edit",
        "embeddings",
        "forgetting",
        "predictions",
        "ranking",
        "reward",
        "updates",
        "video",
        "waiting",
    ]
    calls().write_csv(tmp_path / "calls.csv")
    command = ["audit", "waiting", str(tmp_path / "calls.csv"), "--out", str(tmp_path), "--longest", "90", "--json"]
    done = CliRunner().invoke(get_command(app), [*command, "--fail-if", "headline > 5"])
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert found["evidence"]["headline"]["group"] == "night minus day"
    assert Path(found["report"]).is_file()
    shown = CliRunner().invoke(get_command(app), ["audit", "waiting", "--help"]).output
    assert "Minutes that nobody waits. [60.0]" in " ".join(shown.split())


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame, lambda d: pl.DataFrame(d).to_arrow()])
def test_data_frames_give_what_their_file_gives(tmp_path, monkeypatch, make):
    # catches: another path for frames, and a fingerprint or a command that needs a file
    monkeypatch.syspath_prepend(PLUGIN)
    calls().write_csv(tmp_path / "calls.csv")
    from_file = api.audit("waiting", tmp_path / "calls.csv", out=tmp_path, draws=50)
    from_frame = api.audit("waiting", make(calls().to_dict(as_series=False)), out=tmp_path, draws=50)
    assert from_frame.evidence == from_file.evidence
    assert from_frame.summary["data"]["name"] == "the data frame"
    assert len(from_frame.summary["data"]["fingerprint"]) == 64
    assert from_frame.verdict in from_frame._repr_html_().replace("</b></p><p>", ". ") or from_frame.to_frame().height


def test_python_values_are_taken_as_they_are(tmp_path):
    # catches: a list that only a comma-separated text may be, ids that must lie in a file, rows matched in silence
    rng = np.random.default_rng(0)
    people = pl.DataFrame({"sex": ["f", "m"] * 40, "age": rng.integers(20, 60, 80), "yes": rng.integers(0, 2, 80)})
    asked = {"prediction": "yes", "out": tmp_path, "draws": 20}
    one = api.audit("predictions", people, group=["sex", "age:30,45"], **asked)
    assert one.evidence == api.audit("predictions", people, group="sex,age:30,45", **asked).evidence
    who, x = [f"u{i}" for i in range(80)], rng.normal(size=(80, 3))
    known = {"attackers": ["logistic"], "out": tmp_path, "draws": 20, "repeats": 2}
    labels = pl.DataFrame({"user": who[::-1], "sex": people["sex"]})
    found = api.audit("embeddings", x, labels=labels, ids=who, **known)
    assert found.summary["data"]["users"] == 80
    bare = api.audit("embeddings", x, labels=labels.drop("user"), **known)
    assert any("matched to rows of labels (data frame) by position" in w for w in bare.summary["warnings"])
    with pytest.raises(InputError, match="2 files for 'file'"):
        api.audit("predictions", people, people, group="sex", **asked)
    with pytest.raises(InputError, match="without file"):
        api.audit("predictions", group="sex", **asked)


def test_python_is_answered_in_python(tmp_path):
    # catches: four frames of one name, advice that only a command line can follow
    lists = pl.DataFrame({"user": ["a", "b"], "item": ["x", "y"], "rank": [1, 1]})
    for held, got, todo in (
        (
            {"user": ["a", None], "item": ["x", "y"]},
            "held_out (data frame) row 1 (the first is 0): 1 missing",
            "fill in",
        ),
        (
            {"usr": ["a"], "itm": ["x"]},
            "held_out (data frame) has no column 'user'",
            "name them: user='usr', item='itm'",
        ),
        (None, "lists (data frame) has no column 'relevant'", "pass held_out=FILE, or add the column"),
    ):
        with pytest.raises(InputError) as error:
            api.audit("ranking", lists, held_out=held and pl.DataFrame(held), out=tmp_path)
        assert error.value.got.startswith(got)
        assert error.value.todo.startswith(todo)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("neither --prediction nor --proba nor --score", "neither prediction= nor proba= nor score="),
        ("name it: --group 'a b' --label x", "name it: group='a b', label='x'"),
        ("--randomised with --proba", "randomised=True with proba="),
        ("pass --label, or --missing drop", "pass label=, or missing='drop'"),
        ("--margin of 'x', --threshold 0.5, see --help", "margins of 'x', threshold=0.5, see --help"),
    ],
)
def test_options_are_spelled_as_keywords(text, spelled):
    # catches: a word of the sentence taken for a value, an option that Python does not have
    assert in_python(InputError(text, text, text), PredictionsConfig).args == (spelled, spelled, spelled)


def test_settings_are_refused_before_files_are_read(tmp_path):
    # catches: a typo that is found after hours, a kind that does not exist
    for kind, settings, got in (
        ("rankin", {}, "'rankin' is no audit"),
        ("ranking", {"k": 0}, "RankingConfig.k = 0"),
        ("ranking", {"kk": 5}, "unknown key 'kk' for RankingConfig"),
        ("ranking", {"draws": 1}, "draws = 1"),
    ):
        with pytest.raises(InputError) as error:
            api.audit(kind, tmp_path / "absent.csv", out=tmp_path, **settings)
        assert error.value.got == got


FILES = {
    "lists.csv": "user,item,rank\na,x,1\n",
    "held.csv": "user,item\na,x\n",
    "people.csv": "user,group\na,f\n",
    "goods.csv": "item,count\nx,3\n",
    "bm25.run": "q1 Q0 d1 1 3.2 t\n",
    "cases.csv": "sex,truth,prediction\nf,1,1\n",
    "forget.jsonl": '{"question": "q", "answer": "a"}\n',
    "sets.inter": "user_id:token\titem_id_list:token_seq\na\tx y\nb\tz x\n",
    "a.qrels": "q1 0 d1 1\n",
    "ids.csv": "user\na\nb\n",
    "shares.csv": "region,y_true,p_low,p_high\neast,low,0.4,0.6\n",
}
PROPOSED = [
    (["lists.csv"], "ranking lists.csv --held-out HELD_OUT.csv"),
    (["held.csv", "lists.csv", "people.csv", "goods.csv"],
     "ranking lists.csv --held-out held.csv --users people.csv --items goods.csv"),
    (["bm25.run"], "ranking bm25.run --held-out HELD_OUT.csv"),
    (["cases.csv"], "predictions cases.csv --group sex --prediction prediction"),
    (["v.npy", "people.csv"], "embeddings v.npy --labels people.csv"),
    (["forget.jsonl"], "forgetting MODEL --forget forget.jsonl --retain RETAIN.jsonl"),
    (["model", "forget.jsonl"], "forgetting model --forget forget.jsonl --retain RETAIN.jsonl"),
    (["sets.inter", "people.csv", "held.csv"], "ranking sets.inter --held-out held.csv --users people.csv"),
    (["a.qrels", "bm25.run"], "ranking bm25.run --held-out a.qrels"),
    (["v.npy", "people.csv", "ids.csv"], "embeddings v.npy --labels people.csv --ids ids.csv"),
    (["films"], "video films"),
    (["films", "more"], "video films --compare more"),
    (["shares.csv"], "predictions shares.csv --group region --proba p_low,p_high --label y_true"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "command"), PROPOSED)
def test_a_look_at_files_proposes_the_command(tmp_path, monkeypatch, files, command):
    # catches: an audit that is run unasked, or one that does not fit
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    np.save("v.npy", np.zeros((2, 2)))
    Path("model").mkdir()
    Path("model", "config.json").write_text("{}")
    for name in ("films/sub/a.MP4", "more/00/1.png"):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    command += " --label truth" * ("cases.csv" in files)
    assert (shlex.join(propose(files)[0]), propose(files)[1]) == (f"upright audit {command}", [])
    done = CliRunner().invoke(get_command(app), ["audit", *files])
    assert done.stdout.strip() == f"upright audit {command}"


def test_files_that_tell_nothing_are_not_guessed_at(tmp_path, monkeypatch):
    # catches: a command that cannot fit, and a file that vanishes from one
    monkeypatch.chdir(tmp_path)
    Path("odd.csv").write_text("a,b\n1,2\n")
    Path("lists.csv").write_text(FILES["lists.csv"])
    with pytest.raises(InputError, match="nothing that tells what it is"):
        propose(["odd.csv"])
    assert propose(["odd.csv", "lists.csv"])[1] == ["odd.csv"]
