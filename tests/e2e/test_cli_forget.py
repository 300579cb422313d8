"""`upright forget` as a person meets it: exit status, words, JSON, files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import desk_world
from upright.data.forget import read_records
from upright.language import desk
from upright.language.disk import Request
from upright.language.evaluation import Speaker
from upright.models.hub import load_language_model

DESK = "forget"

QUICK = ["--learning-rate", "1e-3", "--epochs", "2", "--no-rouge", "--utility-floor", "0.5"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return desk_world.world_of(tmp_path_factory)


def test_the_whole_way_of_a_request(world, upright, tmp_path):
    # catches a verb that prints no JSON, a receipt that cannot be found, a purge after which nothing verifies
    given = [world.model, world.forget, world.retain]
    status, out, _ = upright("unlearn", *given, "--out", "new", "--holdout", world.holdout, *QUICK, "--json")
    assert status == 0
    found = json.loads(out)
    name = found["request"]
    assert (found["status"], found["model"]["output"]) == ("done", "new")
    assert (tmp_path / "new" / "model.safetensors").exists()
    status, out, _ = upright("list")
    assert status == 0
    assert f"{name}  done, forgetting not measured, model -> new, ledger line 2" in out
    assert json.loads(upright("list", "--json")[1])[0]["forgotten"] == "forgetting not measured"
    status, out, _ = upright("receipt", name)
    assert status == 0
    assert "approximate, empirical evidence only" in out
    assert json.loads(upright("receipt", name, "--json")[1])["hashes"] == found["hashes"]
    receipt = tmp_path / "forget-desk" / "requests" / name / "receipt.json"
    status, out, _ = upright("verify", "--receipt", receipt)
    assert (status, out.splitlines()[1]) == (0, f"  head {found['ledger']['head']}")
    status, out, _ = upright("eval", "new", world.forget, "--no-rouge", "--earlier", world.forget, "--out", "e.json")
    assert status == 0
    assert f"{name}: re-evaluated on 10 of 10 records" in out
    assert json.loads((tmp_path / "e.json").read_text())["records"]["forget"] == 10
    status, out, _ = upright("purge", name)
    assert status == 0
    assert "salt, cache" in out
    assert "SSD" in out
    assert json.loads(upright("verify", "--json", "--head", found["ledger"]["head"])[1])["intact"] is True


def test_what_the_defaults_wrote_is_known_again_and_nothing_else_is(world, upright, tmp_path):
    """The default rate hardly moves a tiny model, and verify looks at no model, page or process."""
    given = [world.model, world.forget, world.retain, "--holdout", world.holdout, "--out", "new", "--no-rouge"]
    status, out, err = upright("unlearn", *given, "--json")
    found = json.loads(out)
    level = float(re.search(r" training on cpu: .* level ([0-9.]+) a token", err)[1])
    assert (status, found["status"]) == (0, "done")
    assert Speaker(*load_language_model(tmp_path / "new")).losses(read_records(world.forget)).mean() >= level
    assert found["method"]["sampling"] == "uniform"
    assert found["method"]["tried"].count("loss") == 3
    assert f"{found['method']['learning_rate']:g} (" in found["method"]["tried"]

    def one_weight(folder):
        weights = load_file(folder / "model.safetensors")
        flat = weights["model.norm.weight"]
        flat[0] = torch.nextafter(flat[0], flat[0] + 1)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def config(folder):
        held = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**held, "rms_norm_eps": 2 * held["rms_norm_eps"]}))

    assert upright("verify", "--model", "new")[0] == 0
    for change, said in ((one_weight, "weights that no such line wrote"), (config, "other files were changed: config")):
        change(shutil.copytree(tmp_path / "new", tmp_path / change.__name__))
        status, out, _ = upright("verify", "--model", change.__name__)
        assert (status, said in out) == (1, True), out
    page = upright("receipt", found["request"])[1]
    assert found["method"]["tried"] in page
    for text, expected in ((page, 0), (page.replace("14 to keep", "15 to keep"), 1)):
        (tmp_path / "sent.txt").write_text(text)
        assert upright("verify", "--receipt", "sent.txt")[0] == expected
    dead = Request.new(tmp_path / "forget-desk")
    dead.note(status="started", started="1", model="model", out="one_weight")
    status, out, _ = upright("verify", "--model", "one_weight")
    assert (status, f"request {dead.id}, which was to write one_weight, is dead" in out) == (1, True), out
    assert upright("receipt", dead.id)[0] == 2
    assert f"{dead.id}  dead" in upright("list")[1]


def test_a_failed_guard_is_exit_status_1(world, upright, tmp_path):
    # catches a script that goes on with a model that was not written
    words = ["unlearn", world.model, world.forget, world.retain, "--out", "new", "--loss", "grad_diff", "--epochs", "1",
             "--learning-rate", "0.03", "--no-rouge", "--sampling", "uniform"]  # fmt: skip
    status, out, _ = upright(*words)
    assert status == 1
    assert re.search(r"Request \S+: failed\n  because utility floor: ", out)
    assert "not written: see --keep-failed" in out
    assert not (tmp_path / "new").exists()
    assert "failed, forgetting not measured, model -> no model" in upright("list")[1]


def test_forgotten_can_be_required(world, upright, tmp_path, monkeypatch):
    # catches a script that takes "done" for forgotten, a model that is gone then, and JSON with words after it
    words = ["unlearn", world.model, world.forget, world.retain, *QUICK, "--epochs", "1", "--sampling", "uniform"]
    adapter = ["--lora", "4", "--learning-rate", "1e-2", "--epochs", "6"]
    status, out, err = upright(*words, *adapter, "--out", "new", "--require-forgotten", "--json")
    found = json.loads(out)
    assert (status, found["status"]) == (1, "done")
    assert "the model is written and kept: new" in err
    assert (tmp_path / "new" / "adapter_model.safetensors").exists()
    own = ["--base", world.model, "--earlier", world.forget, "--no-rouge"]
    assert f"{found['request']}: re-evaluated on 10 of 10 records" in upright("eval", "new", world.forget, *own)[1]
    assert upright(*words, "--out", "other", "--require-forgotten", "--dry-run")[0] == 0
    for said, expected in (("forgotten: 4", 0), ("still known: 4", 1), ("not shown: no", 1), ("not measured: t", 1),
                           ("not measurable by membership: 1", 1)):  # fmt: skip
        monkeypatch.setattr(desk, "unlearn", lambda *_, said=said, **__: {**found, "forgotten": said})
        assert upright(*words, "--out", "x", "--require-forgotten")[0] == expected


def test_the_losses_of_the_help_are_those_that_the_desk_takes():
    """The help offers a loss that was taken away, or unbounded ascent before what is bounded."""
    from upright.cli.forget import LOSS
    from upright.language.intake import losses_taken

    assert re.sub("Bounded: |others: ", "", LOSS.removesuffix(".")).replace(";", ",").split(", ") == losses_taken()
    assert losses_taken()[0] == "npo"
    for name in losses_taken():
        desk.Settings(loss=name)


def test_score_and_dry_run(world, upright, tmp_path):
    # catches a rehearsal that leaves something behind, and a score that prints one number a record
    status, out, _ = upright("score", world.model, world.forget, "--probes", "4", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["difficulty"]["mrd"]["n"] == 10
    assert upright("score", world.model, world.forget, "--probes", "4", "--desk", "other")[1].startswith("Request ")
    status, out, _ = upright(
        "unlearn", world.model, world.forget, world.retain, "--out", "new", "--dry-run", "--no-rouge"
    )
    assert status == 0
    assert out.startswith("A dry run: nothing was changed")
    assert {p.name for p in tmp_path.iterdir()} == {"forget-desk", "other"}
    one = replace(
        read_records(world.forget)[3], id="loud", prompt="", answer=read_records(world.forget)[3].answer.upper()
    )
    near = desk_world.write_records(tmp_path / "near.jsonl", [one])
    words = ["unlearn", world.model, world.forget, near, "--out", "new", "--dry-run", "--no-rouge"]
    assert "is nearly record loud of retain" in upright(*words)[2]
    status, out, _ = upright(*words, "--allow-similar")
    assert (status, "is nearly record loud of retain" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["receipt", "20260101-000000-abcdef"], "upright forget list"),
        (["purge", "../.."], "one of its requests: none yet"),
        (["verify"], "no ledger at the desk forget-desk"),
        (["list"], "no ledger at the desk forget-desk"),
        (["verify", "--key", "missing"], "head -c 32 /dev/urandom"),
        (["unlearn", "m", "f.jsonl", "r.jsonl", "--out", "new"], "f.jsonl cannot be read"),
        (["unlearn", "m", "f", "r", "--out", "new", "--sampling", "mdr"], "'uniform' | 'difficulty'"),
        (
            ["unlearn", "m", "f", "r", "--out", "new", "--loss", "npoo"],
            "--loss npoo\n  accepted: npo, pdu, jensun, ce_u",
        ),
        (["unlearn", "m", "f", "r", "--out", "new", "--loss", "npoo"], "choose one of these"),
        (["unlearn", "m", "f", "r", "--out", "new", "--sampling", "mdr"], "error: --sampling mdr"),
        (["unlearn", "m", "f", "r", "--out", "new", "--sampling", "mdr"], "choose one of these"),
        (["unlearn", "m", "f", "r", "--out", "new", "--learning-rate", "-1"], "error: --learning-rate -1.0"),
        (["unlearn", "m", "f", "r", "--out", "new", "--utility-floor", "2"], "pass a value inside that range"),
        (["unlearn", "m", "f", "r", "--out", "new", "--learning-rate", "-1"], "float > 0"),
        (["unlearn", "m", "f", "r", "--out", "new", "--template", "odd"], "error: --template odd"),
        (["eval", "m", "f.jsonl", "--template", "odd"], "template = 'odd'"),
        (["retrain", "b", "r", "--model", "m", "--forget", "f", "--out", "new", "--epochs", "0"], "error: --epochs 0"),
        (["eval", "m", "f.jsonl", "--cluster", "person", "--allow-similar"], "f.jsonl cannot be read"),
        (["score", "m", "f.jsonl"], "f.jsonl cannot be read"),
    ],
)
def test_bad_input_is_exit_status_2_with_three_parts(upright, tmp_path, words, said):
    # catches a traceback, a status that a script takes for a failed guard, and an error without a remedy
    status, out, err = upright(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "\n  accepted: " in err
    assert "\n  to do:    " in err
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_tampered_ledger_is_exit_status_1(upright, tmp_path):
    # catches a check whose verdict only a person sees
    from upright.ledger import Ledger

    ledger = Ledger(tmp_path / "forget-desk" / "ledger.jsonl")
    for number in range(3):
        ledger.append("opened", {"request": str(number)})
    assert upright("verify")[0] == 0
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"request":"1"', b'"request":"7"'))
    status, out, _ = upright("verify")
    assert (status, out.splitlines()[0]) == (
        1,
        "broken at line 2: its content is not what its hash was taken of: it was edited",
    )
    assert json.loads(upright("verify", "--json")[1])["broken"] == 2


def test_a_torn_ledger_is_mended_by_word_only(upright, tmp_path):
    # catches a repair that happens by itself
    from upright.ledger import Ledger

    ledger = Ledger(tmp_path / "forget-desk" / "ledger.jsonl")
    ledger.append("opened", {"request": "a"})
    with ledger.path.open("ab") as file:
        file.write(b'{"body"')
    assert upright("verify")[0] == 1
    assert upright("verify", "--mend")[0] == 0
    assert [x["kind"] for x in ledger.lines()] == ["opened", "mended"]


def test_checks_do_not_wait_for_torch(tmp_path):
    # catches an import that makes every list and verify take seconds
    from upright.ledger import Ledger

    Ledger(tmp_path / "forget-desk" / "ledger.jsonl").append("opened", {"request": "a"})
    code = "import sys; sys.argv = ['upright', 'forget', 'list']\nfrom upright import cli\ntry:\n cli.main()\n"
    code += "except SystemExit:\n pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.stdout == "Requests\n  none yet\nFalse\n", done.stderr
