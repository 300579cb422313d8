"""Trust in the desk: whose model a folder is, whether a page was edited, which request is dead; ledgers of old too."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from upright import cli
from upright.contract import InputError
from upright.data.forget import Record
from upright.language import disk, measures, pages, receipts
from upright.ledger import Ledger

FILES = {
    "model.safetensors": "weights",
    "config.json": "{}",
    "generation_config.json": "{}",
    "tokenizer.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "adapter_config.json": "{}",
    "README.md": "# A model",
    "additional_chat_templates/tool.jinja": "{{ tools }}",
}
RECORDS = [Record(prompt=f"Who wrote book {n}?", answer="Nobody.", id=str(n)) for n in range(6)]


def make_model(folder: Path, **changes: str) -> Path:
    for name, text in {**FILES, **changes}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def body_of(request: disk.Request, before: Path, after: Path, *, old: bool = False, **changes) -> dict:
    """Return the body of a finished request; an old one has a checksum over weights alone."""
    model = {
        "source": before.name,
        "before": disk.checksum(before),
        "output": after.name,
        "after": disk.checksum(after),
    }
    if not old:
        model |= {
            f"{when}_settings": disk.settings_checksum(one) for when, one in (("before", before), ("after", after))
        }
    row = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 6}
    return {
        "schema": 1,
        "request": request.id,
        "status": "done",
        "reasons": [],
        "forgotten": "not measured: too few records",
        "level": receipts.APPROXIMATE,
        "records": {"forget": 6, "retain": 8, "holdout": 0},
        "hashing": "HMAC-SHA-256 under a secret salt",
        "hashes": sorted(request.hashes(RECORDS)),
        "dataset": {"before": "a", "after": "b"},
        "model": model,
        "method": {"loss": "npo"},
        "code": receipts.code(),
        "seeds": {"all": 0},
        "early_stop": "none available",
        "at_level": 3,
        "training": {"steps": 5, "stopped": "every record at its target before epoch 2"},
        "difficulty": None,
        "notes": ["a note"],
        "guards": [{"name": "utility floor", "state": "passed", "detail": "x"}],
        "metrics": {
            "forget": {"forget_probability": {"before": row, "after": row}},
            "membership": {"after": None},
            "retain": {"retain_probability": {"after": row}},
            "utility": None,
            "forget_quality": None,
        },
        "warnings": [],
        "reference": "none available",
        "artefacts": receipts.artefacts(request, request.plan),
        **changes,
    }


def make_desk(root: Path, **more) -> disk.Request:
    """Make a desk ``forget-desk`` with one finished request that made ``new`` of ``old``, and its receipts."""
    before, after = make_model(root / "old"), make_model(root / "new", **{"model.safetensors": "other weights"})
    request, ledger = disk.Request.new(root / "forget-desk"), Ledger(root / "forget-desk" / "ledger.jsonl")
    request.note(status="done", model="old", forget="forget.jsonl", out="new")
    ledger.append("opened", {"request": request.id, "model": "old", "records": 6})
    ledger.append("unlearned", body_of(request, before, after, **more))
    receipts.receipt_of(root / "forget-desk", request.id, ledger=ledger)
    return request


@pytest.fixture
def forget(tmp_path, monkeypatch, capfd):
    """Run `upright forget` in a folder of its own; returns status and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["upright", "forget", *map(str, words)])
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    return run


# -- the model ------------------------------------------------------------------------------------------------------


def edit(name: str, text: str = "edited"):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lambda folder: None, 0, "new is what line 2 wrote, weights and all other files: request "),
        (edit("README.md"), 0, "new is what line 2 wrote"),
        (edit("model.safetensors", "other weight5"), 1, "has weights that no such line wrote"),
        (edit("more.safetensors"), 1, "has weights that no such line wrote"),
        (edit("model.safetensors", "weights"), 1, "has the weights from before request "),
        *(
            (edit(name), 1, "but other files were changed: config, tokenizer")
            for name in FILES
            if name[-2:] != "md" and name != "model.safetensors"
        ),
        (edit("pytorch_model.bin"), 1, "but other files were changed"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), 1, "but other files were changed"),
        (lambda folder: (folder / "code").symlink_to(folder.parent), 1, "but other files were changed"),
        (lambda folder: (folder / "model.safetensors").unlink(), 2, "--model new without weights"),
        (lambda folder: (folder / "a.safetensors").symlink_to("nowhere"), 2, "--model new: No such file"),
        (shutil.rmtree, 2, "--model new without weights"),
    ],
)
def test_verify_tells_whose_model_a_folder_is(forget, tmp_path, change, status, said):
    """Wrong: a changed weight, a changed chat template or the model from before passed: no model was looked at."""
    make_desk(tmp_path)
    change(tmp_path / "new")
    found, out = forget("verify", "--model", "new")
    assert (found, said in out) == (status, True), out
    assert forget("verify")[0] == 0, "the ledger itself holds"


def test_the_model_is_that_of_the_receipt_where_one_is_given(forget, tmp_path):
    """Wrong: the model of one request passed beside the receipt of another."""
    request = make_desk(tmp_path)
    other = make_model(tmp_path / "other", **{"model.safetensors": "a third"})
    Ledger(tmp_path / "forget-desk" / "ledger.jsonl").append("unlearned", body_of(request, tmp_path / "new", other))
    words = ["verify", "--receipt", request.folder / "receipt.txt", "--model"]
    assert [forget(*words, name)[0] for name in ("new", "other")] == [0, 1]
    assert forget("verify", "--model", "other")[0] == 0


def test_the_second_checksum_is_over_every_other_file(tmp_path):
    """Wrong: no checksum changed with the tokenizer; compared with a computation by hand."""
    folder = make_model(tmp_path / "m")
    rows = [
        f"{name} {hashlib.sha256(text.encode()).hexdigest()}\n"
        for name, text in sorted(FILES.items())
        if name not in ("README.md", "model.safetensors")
    ]
    assert disk.settings_checksum(folder) == hashlib.sha256("".join(rows).encode()).hexdigest()
    make_model(folder, **{"model.safetensors": "x", ".cache": "x", ".git/config": "x"})
    assert disk.settings_checksum(folder) == hashlib.sha256("".join(rows).encode()).hexdigest()


# -- the page -------------------------------------------------------------------------------------------------------


def rehashed(text: str) -> str:
    above = text.rsplit("SHA-256 of all lines above", 1)[0]
    return f"{above}SHA-256 of all lines above: {hashlib.sha256(above.encode()).hexdigest()}\n"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        (lambda text: text, 0, "the receipt says what line 2 and what followed say"),
        (lambda text: "\ufeff" + text.replace("\n", "\r\n") + "\r\n", 0, "the receipt says what line 2"),
        (
            lambda text: text.replace("SHA-256 of all lines above", "  none\nSHA-256 of all lines above"),
            1,
            "was edited",
        ),
        (lambda text: text.replace("not measured", "forgotten", 1), 1, "the page was edited"),
        (lambda text: text.rsplit("SHA", 1)[0], 1, "the page was edited"),
        (lambda text: rehashed(text.replace("not measured", "forgotten", 1)), 1, "says something else than line 2"),
        (lambda text: rehashed(text.replace("  head ", "  head 0")), 1, "known from elsewhere is missing"),
        (lambda text: rehashed(text.replace("hash ", "hash 0")), 2, "a receipt of line 0"),
        (lambda text: rehashed(text.replace("  head ", "  heads ")), 2, "without its place in the ledger"),
        (lambda text: text[1:], 2, "receipt.json or receipt.txt of a desk"),
    ],
)
def test_the_page_of_a_receipt_is_checked(forget, tmp_path, change, status, said):
    """Wrong: receipt.txt, the page that is sent on, was no JSON for `verify --receipt`, and nothing noticed an edit."""
    request = make_desk(tmp_path)
    text = (request.folder / "receipt.txt").read_text()
    assert rehashed(text) == text, "whoever has no ledger checks the last line with sha256sum"
    (tmp_path / "sent.txt").write_text(change(text), newline="")
    found, out = forget("verify", "--receipt", "sent.txt")
    assert (found, said in out) == (status, True), out


def test_what_the_receipt_verb_prints_is_a_page_that_verifies(forget, tmp_path):
    """Wrong: a page that was redirected into a file could not be checked."""
    request = make_desk(tmp_path)
    (tmp_path / "mine.txt").write_text(forget("receipt", request.id)[1])
    assert forget("verify", "--receipt", "mine.txt", "--model", "new")[0] == 0


def test_a_retrain_has_a_receipt_of_its_level(tmp_path):
    """Wrong: the page of a retrain denied what it is, and named the base as trained on the records."""
    request = make_desk(tmp_path, level=receipts.EXACT)
    text = (request.folder / "receipt.txt").read_text()
    assert "level       exact retrain of this stage" in text
    assert "no certificate" not in text
    rows = receipts.artefacts(request, {"level": receipts.EXACT, "model": "old"})
    assert [row["name"] for row in rows if row["holds"].startswith("a model trained on")] == ["not known"]


# -- ledgers of earlier versions ------------------------------------------------------------------------------------


def test_a_page_says_the_remedy_first_and_where_each_phase_ran(tmp_path):
    """Wrong: the page that is sent on had neither; receipts of earlier versions, without them, had no page at all."""
    request = disk.Request.new(tmp_path)
    request.note(model="a")
    body = body_of(request, *(make_model(tmp_path / name) for name in ("a", "b")))
    place = {"line": 1, "time": "t", "hash": "h", "head": "h", "signed": False}
    body |= {"since": [], "purged": None, "ledger": place}
    old = pages.page(body).splitlines()
    new = pages.page({**body, "remedy": "A sentence.", "devices": {"after": "cpu", "rates": "cuda:0"}}).splitlines()
    assert new[2:5] == ["A sentence.", "", old[2]]
    assert "devices     after on cpu, rates on cuda:0" in new


def test_a_ledger_of_an_earlier_version_still_verifies(forget, tmp_path):
    """Wrong: a line without checksums of other files was refused, or they counted as compared."""
    request = make_desk(tmp_path, old=True)
    for name in ("receipt.json", "receipt.txt"):
        status, out = forget("verify", "--receipt", request.folder / name, "--model", "new")
        assert (status, "weights (its line is older and tells of no other files)" in out) == (0, True), out
    assert json.loads(forget("verify", "--model", "new", "--json")[1])["model"]["settings"] is False
    edit("model.safetensors")(tmp_path / "new")
    assert forget("verify", "--model", "new")[0] == 1


# -- one to four records --------------------------------------------------------------------------------------------


def test_few_records_are_sealed_and_the_rest_is_as_ever(tmp_path):
    """Wrong: of one record the steps of training said when its loss reached the level, and its measures were it."""
    assert pages.LEAST == measures.LEAST
    request = make_desk(tmp_path)
    body = body_of(request, tmp_path / "old", tmp_path / "new")
    assert receipts.sealed(body) == body
    few = receipts.sealed({**body, "records": {**body["records"], "forget": 1}})
    assert few["forgotten"].startswith("not measurable by membership: 1 ")
    changed = {k for k in body if few[k] != body[k]}
    assert changed == {"records", "forgotten", "metrics", "training", "at_level"}
    assert few["metrics"]["forget"] == {"forget_probability": {"before": None, "after": None}}
    assert few["metrics"]["retain"] == body["metrics"]["retain"]
    ledger = Ledger(tmp_path / "forget-desk" / "ledger.jsonl")
    ledger.append("unlearned", few)
    text = pages.page(receipts.receipt_of(tmp_path / "forget-desk", request.id, ledger=ledger))
    assert "forgotten   not measurable by membership" in text
    assert receipts.listing(tmp_path / "forget-desk")[0]["forgotten"] == "not measurable by membership"


# -- running or dead ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "state"),
    [
        ({}, "running"),
        ({"started": "1"}, "dead"),  # another process has the number now
        ({"boot": "another"}, "dead"),
        ({"machine": "another", "boot": "another"}, "running or dead"),
        ({"processes": "pid:[1]"}, "running or dead"),
        ({"started": None}, "running or dead"),
        ({"status": "interrupted"}, "interrupted"),
        ({"status": "done", "started": "1"}, "done"),
    ],
)
def test_the_state_of_a_request_is_that_of_its_process(tmp_path, plan, state):
    """Wrong: a list said "running or interrupted" of each; a number that another process got later looks alive."""
    request = disk.Request.new(tmp_path)
    request.note(**{"status": "started", **plan})
    assert request.state()[0] == state
    assert receipts.listing(tmp_path)[0]["status"] == state


KILLED = """
import os, signal, sys
from pathlib import Path
from upright.language import disk
request = disk.Request.new(Path("forget-desk"))
request.note(status="started", model="old", out="new")
print(request.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_request_is_dead_and_its_folder_vouched_for_by_nothing(forget, tmp_path):
    """Wrong: the list could not tell it from one that runs, also while its process waits to be buried."""
    make_model(tmp_path / "new")
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as child:
        name = child.stdout.read().strip()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert receipts.listing(tmp_path / "forget-desk")[0]["status"] == "dead"
    assert child.returncode == -signal.SIGKILL
    status, out = forget("list")
    assert (status, f"{name}  dead (its process {child.pid} is gone), old -> no model" in out) == (0, True), out
    status, out = forget("verify", "--model", "new")
    assert (status, f"request {name}, which was to write new, is dead" in out) == (1, True), out
    status, out = forget("receipt", name)
    assert (status, "that did not end: dead" in out) == (2, True), out


def test_a_request_that_was_killed_at_once_is_listed(tmp_path):
    """Wrong: one folder without a plan, and the list of the whole desk was an error."""
    request = disk.Request.new(tmp_path)
    (request.folder / "plan.json").unlink()
    assert receipts.listing(tmp_path)[0]["status"] == "running or dead"


def test_a_request_with_a_line_is_as_its_line_says(tmp_path):
    """Wrong: a kill between the line and the note of it, and a finished model was listed as one of a dead request."""
    request = make_desk(tmp_path)
    request.note(status="started", started="1")
    row = receipts.listing(tmp_path / "forget-desk")[0]
    assert (row["status"], row["out"], row["line"]) == ("done", "new", 2)


def test_a_running_request_is_not_purged(tmp_path):
    """Wrong: hours of training that end without the salt that their receipt needs."""
    request = disk.Request.new(tmp_path)
    request.note(status="started")
    with pytest.raises(InputError, match="which is running"):
        receipts.purge(tmp_path, request.id)
    assert request.salt
    request.note(status="interrupted")
    assert receipts.purge(tmp_path, request.id)["destroyed"] == ["salt"]
