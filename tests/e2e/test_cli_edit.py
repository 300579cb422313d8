"""`upright edit` as a person meets it: exit status, words at 80 columns, JSON, files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("transformers")

import edit_world as w
from upright.ledger import Ledger

DESK = "edit"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    home = tmp_path_factory.mktemp("edits")
    w.text_folder(home / "model")
    w.write(home / "two.jsonl", w.MALI, {**w.TOGO, "prompt": "Name the capital of Togo, please, the one of today"})
    return home


def test_the_whole_way_of_an_edit(world, upright, tmp_path):
    """Catches a verb without JSON, a page wider than a terminal, and a verdict that is not the last line."""
    model, before = world / "model", w.sums(world / "model")
    status, out, _ = upright("apply", model, world / "two.jsonl", *w.FAST_WORDS, "--dry-run")
    assert (status, out.splitlines()[-1]) == (0, "2 to edit, 0 in conflict, 0 with nothing to do")
    assert not list(tmp_path.iterdir())
    status, out, err = upright("apply", model, world / "two.jsonl", *w.FAST_WORDS)
    lines = out.splitlines()
    assert status == 0
    assert re.fullmatch(
        r"Of \d+ answers, written out, \d+ are as wanted without edits, \d+ with all in force", lines[0]
    )
    assert lines[-1] == "2 accepted, 0 warning, 0 rejected; 2 in force, undo: upright edit revert ID"
    assert err.splitlines() == ["request mali: 1 of 2", "request togo: 2 of 2"]
    rows = json.loads(upright("list", "--json")[1])
    first, second = (row["edit"] for row in rows)
    assert [row["target"] for row in rows] == ["Dakar", "Lima"]
    shown = json.loads(upright("show", first, "--json")[1])
    assert (shown["facts"]["request"]["prompt"], shown["state"]) == (w.MALI["prompt"], "in force")
    (tmp_path / "probes.jsonl").write_text(json.dumps({"prompt": w.MALI["prompt"]}))
    changed = json.loads(upright("diff", model, "--probes", "probes.jsonl", "--json")[1])
    assert [row["after"] for row in changed["answers"]] == ["Dakar"]
    asked = (["list"], ["show", first], ["diff", model], ["diff", model, "--edit", second], ["revert", first])
    pages = [out, *(upright(*words)[1] for words in asked)]
    assert max(len(line) for page in pages for line in page.splitlines()) <= 80
    assert pages[2].splitlines()[-1] == "accepted, in force"
    assert pages[5].splitlines()[-1] == f"Edit {first}: reverted in line 3; 1 in force"
    assert upright("export", model, second, "--out", "one")[1] == "one: an adapter of peft, 1 edits, ledger line 4\n"
    found = json.loads(upright("export", model, "--all", "--out", "copy", "--merged", "--json")[1])
    assert (found["edits"], (tmp_path / "copy" / "model.safetensors").exists()) == ([second], True)
    status, out, _ = upright("verify", "--model", model)
    assert (status, out.splitlines()[-1]) == (0, "2 files are what their lines say, 1 in force, model is their model")
    assert json.loads(upright("verify", "--json")[1])["intact"]
    assert w.sums(model) == before
    status, out, _ = upright("verify", "--model", "copy")
    assert (status, out.splitlines()[-1]) == (1, "refused: copy is not the folder that the edits were made for")


def test_a_rejected_edit_is_exit_status_1(world, upright):
    words = [*w.FAST_WORDS, "--steps", "1", "--learning-rate", "1e-6", "--reliability", "1"]
    status, out, _ = upright("apply", world / "model", world / "two.jsonl", *words)
    assert (status, out.splitlines()[-1]) == (1, "0 accepted, 0 warning, 2 rejected; 0 in force")
    assert "  because reliability 0.00, the budget is 1.00" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list"], "no ledger at the desk edit-desk"),
        (["show", "x"], "no ledger at the desk edit-desk"),
        (["revert", "x"], "no ledger at the desk edit-desk"),
        (["verify"], "a folder that upright edit apply wrote"),
        (["apply", "m", "r.jsonl"], "error: no folder m"),
        (
            ["apply", "m", "r.jsonl", "--editor", "lorra"],
            "error: --editor lorra\n  accepted: 'lora' | 'dense' | 'gated'",
        ),
        (["apply", "m", "r.jsonl", "--reliability", "2"], "error: --reliability 2.0"),
        (["apply", "m", "r.jsonl", "--key", "k"], "head -c 32 /dev/urandom"),
        (["export", "m", "--out", "o"], "error: export without an edit\n  accepted: one of the two"),
        (["export", "m", "x", "--all", "--out", "o"], "error: export with --all and an edit"),
        (["diff", "m", "--edit", "x"], "error: no folder m"),
    ],
)
def test_bad_input_is_exit_status_2_with_three_parts(upright, tmp_path, words, said):
    status, out, err = upright(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "\n  accepted: " in err
    assert "\n  to do:    " in err
    assert said in err
    assert not list(tmp_path.iterdir())


def test_a_tampered_or_torn_ledger(upright, tmp_path):
    ledger = Ledger(tmp_path / "edit-desk" / "ledger.jsonl")
    for _ in range(2):
        ledger.append("exported", {"edits": []})
    with ledger.path.open("ab") as file:
        file.write(b'{"body"')
    status, _, err = upright("revert", "x")
    assert (status, "see upright edit verify: a torn end is mended by --mend" in err) == (2, True)
    assert upright("verify")[0] == 1
    assert upright("verify", "--mend")[0] == 0
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"edits":[]', b'"edits":[1]', 1))
    assert upright("verify")[0] == 1


def test_lists_do_not_wait_for_torch(world, tmp_path):
    from upright.editing import desk

    desk.apply(desk.Opened(tmp_path / "edit-desk", world / "model"), world / "two.jsonl", settings=w.FAST)
    code = "import sys; sys.argv = ['upright', 'edit', 'list']\nfrom upright import cli\ntry:\n cli.main()\n"
    code += "except SystemExit:\n pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert "-> Dakar" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
