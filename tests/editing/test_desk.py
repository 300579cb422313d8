"""The editing desk: what it writes, what it takes back, kills at every write, bad input in three parts."""

from __future__ import annotations

import base64
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys

import pytest
import torch

from upright.contract import InputError

pytest.importorskip("transformers")

import edit_world as w
from upright.editing import desk, edits, pages
from upright.editing.prompts import Question, encode, read
from upright.ledger import Ledger
from upright.models.hub import load_editable


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of text alone, and a desk with two edits in force."""
    home = tmp_path_factory.mktemp("edits")
    w.text_folder(home / "model")
    w.write(home / "one.jsonl", w.MALI)
    w.write(home / "two.jsonl", w.MALI, w.TOGO)
    start(home / "desk", home, "two.jsonl")
    return home


@pytest.fixture
def own(world, tmp_path):
    """A desk with two edits that a test may spoil; the model folder is as it was afterwards."""
    shutil.copytree(world / "desk", tmp_path / "desk")
    before = w.sums(world / "model")
    yield tmp_path / "desk"
    assert w.sums(world / "model") == before


def start(place, home, requests="one.jsonl", settings=w.FAST, **more):
    return desk.apply(desk.Opened(place, home / "model"), home / requests, settings=settings, **more)


def names(place):
    return [row["edit"] for row in desk.listing(place)]


def digest(model, processor, some=()):
    """Hash the log-probabilities of 120 probes with edits applied."""
    probes = [Question(f"{asked} {i}", "Lima") for i in range(30) for asked in w.ASKED]
    with edits.applied(model, list(some)):
        rows = read(model, [encode(processor, one) for one in probes], pad=0)
    return hashlib.sha256(torch.cat(rows).numpy().tobytes()).hexdigest()


def refused(call, got, accepted, todo):
    with pytest.raises(InputError) as caught:
        call()
    assert (caught.value.got, caught.value.accepted, caught.value.todo) == (got, accepted, todo)


def test_the_headline_is_of_the_model_that_one_ends_up_with(world, tmp_path):
    """Catches counts of the turn of each edit, before the next one took its answer away."""
    from upright.editing import environments, measures

    found = start(tmp_path / "desk", world, "two.jsonl")
    at = desk.Opened(tmp_path / "desk", world / "model")
    given = {
        one.id: environments.environments(one)
        for one in environments.read_requests(world / "two.jsonl", text_only=True)
    }
    was = measures.before(at.model, at.processor, given)
    seen = [measures.measure(at.model, at.processor, was)]
    with edits.applied(at.model, list(at.some(None).values())):
        seen.append(measures.measure(at.model, at.processor, was))
    assert (found["right"], found["of"]) == ([int(one.written.sum()) for one in seen], len(seen[0].edit))
    assert found["right"][0] < found["right"][1]
    lines = pages.apply_page(found).splitlines()
    assert lines[0].startswith(
        f"Of {found['of']} answers, written out, {found['right'][0]} are as wanted without edits"
    )
    again = start(tmp_path / "desk", world, "two.jsonl")
    assert not pages.apply_page(again).startswith("Of ")  # nothing was to do, and nothing is counted


def test_a_target_that_the_model_gave_without_the_edit_names_the_undo(world, own, monkeypatch):
    """Catches "leave the request out" while an edit is in force, by which the model answers another thing."""
    at, back, first = desk.Opened(own, world / "model"), own.parent / "back.jsonl", names(own)[0]
    w.write(back, {**w.MALI, "target": "Rome"})
    monkeypatch.setattr("upright.editing.measures.present", lambda *_: {"mali": "Rome"})
    got = f"request mali with the target 'Rome', which the model answers already without edit {first}"
    call = functools.partial(desk.apply, at, back, settings=w.FAST, replaces=True)
    refused(call, got, "an answer that it does not give yet", f"upright edit revert {first}")


@pytest.mark.parametrize(("editor", "reason", "said"), [
    ("lora", "locality 0.00, the budget is 0.70", True), ("gated", "locality 0.00, the budget is 0.70", False),
    ("lora", "reliability 0.00, the budget is 1.00", False), ("lora", "locality not measured", False)])  # fmt: skip
def test_an_edit_that_answers_everything_is_told_of_the_gate(editor, reason, said):
    """Catches a rejection without a way on, and the same advice for what it does not mend."""
    row = {
        "edit": "a",
        "line": 1,
        "time": "t",
        "facts": {"prompt": "p", "target": "t"},
        "scores": {"before": {}, "after": {}},
    }
    shown = pages.show_page(
        row | {"verdict": "rejected", "state": "rejected", "reasons": [reason], "settings": {"editor": editor}}
    )
    assert ("try --editor gated" in shown) is said


# -- the whole way --------------------------------------------------------------------------------------------------


def test_an_edit_changes_the_answer_and_its_undo_restores_every_bit(world, own):
    """Catches weights that are written and put back, and a revert that leaves a hook."""
    model, processor = load_editable(world / "model")
    before, (first, second) = digest(model, processor), names(own)
    at = desk.Opened(own, world / "model")
    assert digest(model, processor, at.some(None).values()) != before
    asked = desk.diff(at)["answers"][0]
    assert (asked["prompt"], asked["after"]) == (w.MALI["prompt"], "Dakar")
    assert asked["before"] != "Dakar"
    assert desk.revert(own, first)["later"] == [second]
    one = desk.Opened(own, world / "model")
    assert list(one.some(None)) == [second]
    alone = desk.diff(one, first)["answers"][0]  # of one that was reverted too: what it would do
    assert (alone["before"] != "Dakar", alone["after"]) == (True, "Dakar")
    desk.revert(own, second)
    assert digest(model, processor) == before
    assert [row["state"] for row in desk.listing(own)] == ["reverted", "reverted"]
    assert desk.verify(own, model=world / "model")["intact"]


def test_the_ledger_holds_no_text_and_no_hash_that_can_be_guessed(world):
    """Catches a target in the clear, or hashed without the salt, in what is handed to others."""
    found = (world / "desk" / "ledger.jsonl").read_text()
    for row in (w.MALI, w.TOGO):
        for text in (row["prompt"], row["target"], row["id"], *row["rephrase"]):
            assert text not in found
            for one in {text, text.casefold(), text.casefold().rstrip("?")}:
                assert hashlib.sha256(one.encode()).hexdigest() not in found
    body = Ledger(world / "desk" / "ledger.jsonl").lines()[1]["body"]
    assert list(body["retention"]) == [body["parent"]] == names(world / "desk")[:1]
    assert body["retention"][body["parent"]]["reliability_written"] == 1.0
    kept = [*(world / "desk" / "edits").iterdir(), world / "desk" / "salt", world / "desk" / "ledger.jsonl"]
    assert {one.stat().st_mode & 0o777 for one in kept} == {0o600}
    assert {one.stat().st_mode & 0o777 for one in (world / "desk", world / "desk" / "edits")} == {0o700}


def test_two_desks_do_not_share_their_hashes_nor_files_that_could_be_made_again(world, tmp_path):
    """Catches a hash under a fixed key, and a file whose SHA-256 confirms a guess by training it again."""
    start(tmp_path / "other", world)
    first, other = (Ledger(place / "ledger.jsonl").lines()[0]["body"] for place in (world / "desk", tmp_path / "other"))
    assert first["base"] == other["base"]
    assert all(first[key] != other[key] for key in ("file", "question", "target"))


def test_what_is_in_force_is_passed_over_and_another_target_is_a_conflict(world, own, tmp_path):
    """Catches an edit trained twice by a second run, and one that silently works against an earlier one."""
    first, second = names(own)
    assert [row["to_do"] for row in start(own, world, "two.jsonl")["requests"]] == ["nothing: in force already"] * 2
    w.write(tmp_path / "other.jsonl", {**w.MALI, "id": "new", "prompt": w.MALI["prompt"].upper(), "target": "Abuja"})
    before = (own / "ledger.jsonl").read_bytes()
    dry = start(own, world, tmp_path / "other.jsonl", dry_run=True)["requests"]
    assert [(row["to_do"], row["old"]) for row in dry] == [("replace", first)]
    refused(lambda: start(own, world, tmp_path / "other.jsonl"),
            f"request new with another target than edit {first} for the same question",
            "one target for a question about a picture", "pass --replace, or leave it out")  # fmt: skip
    assert (own / "ledger.jsonl").read_bytes() == before
    new = start(own, world, tmp_path / "other.jsonl", replaces=True)["edits"][0]["edit"]
    assert {row["edit"]: row["state"] for row in desk.listing(own)} == {
        first: f"replaced by {new}", second: "in force", new: "in force",
    }  # fmt: skip
    refused(lambda: desk.revert(own, first), f"edit {first}, which is replaced by {new}", "an edit in force",
            "see all of them with: upright edit list")  # fmt: skip


def test_a_dry_run_makes_no_desk(world, tmp_path, monkeypatch):
    monkeypatch.setattr(desk, "invariant", None)  # nothing is trained
    found = start(tmp_path / "desk", world, "two.jsonl", dry_run=True)
    assert [row["to_do"] for row in found["requests"]] == ["edit", "edit"]
    assert not list(tmp_path.iterdir())


def test_a_rejected_edit_is_a_line_and_no_file(world, tmp_path):
    """Catches an edit that misses its budget and is in force all the same."""
    strict = w.FAST.replace(steps=1, learning_rate=1e-6, reliability=1.0)
    made = start(tmp_path / "desk", world, settings=strict)["edits"][0]
    assert (made["verdict"], made["reasons"]) == ("rejected", ["reliability 0.00, the budget is 1.00"])
    assert not list((tmp_path / "desk" / "edits").iterdir())
    assert desk.listing(tmp_path / "desk")[0]["state"] == "rejected"
    refused(lambda: desk.diff(desk.Opened(tmp_path / "desk", world / "model"), made["edit"]),
            f"edit {made['edit']}, which was rejected and not kept", "an edit that was applied",
            "see all of them with: upright edit list")  # fmt: skip


VALUES = {"reliability_written": 1.0, "text_generality_written": 0.8, "image_generality_written": 0.6,
          "joint_generality_written": float("nan"), "text_locality_written": 0.7}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "verdict", "reasons"),
    [
        ({}, "accepted", []),
        ({"reliability_written": 0.99}, "rejected", ["reliability 0.99, the budget is 1.00"]),
        ({"text_generality_written": 0.7}, "warning", ["generality 0.65, the budget is 0.70"]),
        ({"text_locality_written": 0.34}, "rejected", ["locality 0.34, the budget is 0.70"]),
        ({"text_locality_written": 0.36}, "warning", ["locality 0.36, the budget is 0.70"]),
        ({"text_locality_written": float("nan")}, "warning", ["locality not measured"]),
        ({"retention_written": 0.5}, "warning", ["retention 0.50, the budget is 1.00"]),
        ({"retention_written": 0.4}, "rejected", ["retention 0.40, the budget is 1.00"]),
        ({"image_locality_written": 0.0}, "warning", ["locality 0.35, the budget is 0.70"]),
    ],
)
def test_verdicts(change, verdict, reasons):
    """Catches a mean that takes what was not measured for 0 or 1, and generality alone deciding."""
    assert desk.judge({**VALUES, **change}, desk.Settings()) == (verdict, reasons)


def test_an_edit_is_warned_of_and_not_rejected_for_what_earlier_ones_moved():
    """Catches "accepted" over a model that keeps nothing, and an edit that is blamed for what others did."""
    now, worse = {**VALUES, "text_locality_written": 0.2}, {"text_locality_written": 0.2 + 1e-9}
    told = ("warning", ["locality 0.20 as before this edit, the budget is 0.70"])
    assert desk.judge(now, desk.Settings(), {"text_locality_written": 0.2}) == told
    assert desk.judge(now, desk.Settings(), worse)[0] == "rejected"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_edit_of_a_picture_is_kept_with_it_and_exported(small_world, tmp_path):
    """Catches a picture that is lost after a restart: retention would ask the question without it."""
    _, model, processor = small_world
    from upright.editing import flags

    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    rows = []
    for code in ("it", "fi"):
        flags.flag(code).save(written := io.BytesIO(), "PNG")
        address = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
        rows.append({"id": code, "prompt": "What is the capital?", "target": "Rio", "image": address, "loc": ["Who?"]})
    settings = w.FAST.replace(rank=2)
    (tmp_path / "first.jsonl").write_text(json.dumps(rows[0]))
    start(tmp_path / "desk", tmp_path, "first.jsonl", settings=settings)
    (tmp_path / "second.jsonl").write_text(json.dumps({**rows[1], "target": "Oslo"}))
    made = start(tmp_path / "desk", tmp_path, "second.jsonl", settings=settings)["edits"][0]
    at = desk.Opened(tmp_path / "desk", tmp_path / "model")
    first, second = at.some(None).values()
    kept = desk._asked(first).test["edit"][0]
    assert kept.image.tobytes() == flags.flag("it").tobytes()
    assert list(made["retention"]) == [names(tmp_path / "desk")[0]]
    asked = [encode(processor, Question("What is the capital?", "Rio", flags.flag(code))) for code in ("it", "fi")]
    with edits.applied(at.model, [first, second]):
        wanted = torch.cat(read(at.model, asked, pad=0))
    (tmp_path / "probes.jsonl").write_text(json.dumps({"prompt": rows[0]["prompt"], "image": rows[0]["image"]}))
    probe = desk.diff(at, probes=tmp_path / "probes.jsonl")["answers"]
    assert [(row["prompt"], row["pictured"]) for row in probe] == [("What is the capital?", True)]
    desk.export(at, tmp_path / "merged", merged=True)
    merged, _ = load_editable(tmp_path / "merged")
    torch.testing.assert_close(torch.cat(read(merged, asked, pad=0)), wanted, atol=1e-4, rtol=1e-4)
    peft = pytest.importorskip("peft")
    desk.export(desk.Opened(tmp_path / "desk", tmp_path / "model"), tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(load_editable(tmp_path / "model")[0], str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(torch.cat(read(loaded, asked, pad=0)), wanted, atol=1e-4, rtol=1e-4)


def test_earlier_edits_and_other_requests_are_kept_in_training_and_no_test_is(world):
    """Catches an edit that nothing tells to leave earlier ones alone, and a test question that trains."""
    at = desk.Opened(world / "desk", world / "model")
    first, second = desk.environments.read_requests(world / "two.jsonl")
    own = desk.environments.environments(second)
    more = desk._keeping(own, [first], {name: at.edit(name) for name in names(world / "desk")[:1]})
    added = [one.prompt for one in more.train["unrelated_text"] if one not in own.train["unrelated_text"]]
    assert added == [w.MALI["prompt"]]  # what the first asks to keep is a test or trains already
    assert more.test is own.test


# -- kills ----------------------------------------------------------------------------------------------------------


def _until(count, place, call):
    """Run a call in a child that kills itself before its write number `count`; True when it ended before that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL
    left = [count]

    def one_more():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event, args):
        written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (written or event in ("os.rename", "os.remove", "os.mkdir", "os.chmod")) and str(place) in str(args[0]):
            one_more()

    def fsync(handle, own=os.fsync):
        own(handle)
        one_more()

    try:
        sys.addaudithook(watch)
        os.fsync = fsync
        call()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)


def _apply(place, world):
    return start(place, world)


def _revert(place, world):
    lines = Ledger(place / "ledger.jsonl").lines()
    if lines[-1]["kind"] != "reverted":
        desk.revert(place, lines[-1]["body"]["edit"])


@pytest.mark.parametrize(("call", "least", "force"), [(_apply, 15, 1), (_revert, 3, 1)])
def test_a_kill_between_any_two_writes_leaves_what_the_next_command_completes(world, tmp_path, call, least, force):
    """Catches a line before its file, a file under its final name before it is whole, and leftovers that stay."""
    before, points = w.sums(world / "model"), 0
    for point in range(100):
        place = tmp_path / str(point)
        if call is _revert:
            shutil.copytree(world / "desk", place)
        ended = _until(point, place, lambda place=place: call(place, world))
        if (place / "ledger.jsonl").exists():
            found = desk.verify(place, model=world / "model")
            assert found["intact"], (point, found["reason"])
            assert found["files"] == found["in_force"] or call is _revert
        call(place, world)
        found = desk.verify(place, model=world / "model")
        assert (found["intact"], found["in_force"], found["left"]) == (True, force, []), point
        assert sorted(one.name for one in place.iterdir()) == ["edits", "ledger.jsonl", "salt"]
        points = point
        if ended:
            break
    assert least <= points < 99
    assert w.sums(world / "model") == before


# -- bad input ------------------------------------------------------------------------------------------------------


def test_another_base_is_refused(world, own, tmp_path):
    w.text_folder(tmp_path / "model", seed=4)
    theirs, here = (edits.base_checksum(load_editable(place / "model")[0])[:12] for place in (world, tmp_path))
    refused(lambda: start(own, tmp_path), f"model with the weights {here}",
            f"those that the edits of the desk desk were made for, {theirs}",
            "take that model, or begin another desk: --desk")  # fmt: skip
    assert (
        desk.verify(own, model=tmp_path / "model")["reason"] == "model is not the folder that the edits were made for"
    )


class _Trap:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("how", ["cut", "pickled", "gone", "other"])
def test_a_damaged_or_pickled_file_is_not_opened(world, own, how):
    """Catches an unpickled file, and a file of another edit under this name."""
    first, second = (own / "edits" / f"{name}.safetensors" for name in names(own))
    if how == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    elif how == "pickled":
        first.write_bytes(pickle.dumps(_Trap()))
    elif how == "other":
        shutil.copy(second, first)
    else:
        first.unlink()
    got = f"edit {first.stem} " + (
        "without its file" if how == "gone" else "whose file is damaged: line 1 tells of another"
    )
    expected = (got, "the file that apply wrote", f"take it from a copy, or: upright edit revert {first.stem}")
    refused(lambda: start(own, world), *expected)
    refused(lambda: desk.show(own, first.stem), *expected)
    found = desk.verify(own)
    assert (found["intact"], found["reason"]) == (False, got)
    assert [row["damaged"] for row in desk.listing(own)] == [True, False]
    desk.revert(own, first.stem)  # and what is left works again
    assert list(desk.Opened(own, world / "model").some(None)) == [second.stem]


def _no_rooms(monkeypatch, after):
    calls, own = [], os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        own(handle)

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize(("after", "got"), [
    (0, "{edit}.safetensors cannot be written (No space left on device)"),
    (1, "ledger.jsonl cannot be written to (No space left on device)"),
])  # fmt: skip
def test_a_full_disk_leaves_the_desk_as_it_was(world, own, tmp_path, monkeypatch, after, got):
    """Catches half a file, a file without its line, and a line without its file."""
    before = {one.name: one.read_bytes() for one in own.rglob("*") if one.is_file()}
    w.write(tmp_path / "new.jsonl", {**w.TOGO, "id": "peru", "prompt": w.ASKED[2], "loc": [w.ASKED[0]]})
    monkeypatch.setattr(desk, "new_id", lambda: "20260101-000000-abcdef")
    with monkeypatch.context() as patch:
        _no_rooms(patch, after)
        with pytest.raises(InputError) as caught:
            start(own, world, tmp_path / "new.jsonl")
    assert caught.value.got == got.format(edit="20260101-000000-abcdef")
    assert {one.name: one.read_bytes() for one in own.rglob("*") if one.is_file()} == before
    assert desk.verify(own)["intact"]


def test_another_command_at_the_same_desk_is_waited_for(world, own):
    handle = os.open(own, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    refused(lambda: desk.revert(own, names(own)[0]), "the desk desk, at which another command writes", "one at a time",
            "wait for it, then run this again")  # fmt: skip
    os.close(handle)
    at = desk.Opened(own, world / "model")
    desk.revert(own, names(own)[0])  # meanwhile
    refused(lambda: desk.apply(at, world / "two.jsonl", settings=w.FAST),
            "the desk desk, at which another command writes", "one at a time",
            "wait for it, then run this again")  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{**w.MALI, "target": None}], ("bad.jsonl line 1: 1 prompts, 0 targets and 0 images",
         "prompt (or src), target (or alt) and at most one image", "correct the request")),
        ([{**w.MALI, "image": "flag.png"}], ("bad.jsonl line 1: key 'image', for a model of text alone",
         "requests without images", "leave the key out, or take a model that reads images")),
        ([w.MALI, {**w.MALI, "id": "b", "target": "Lima"}],
         ("bad.jsonl line 2: request b wants another answer than request mali to the same question",
          "one target for a question about a picture", "leave one of the two out")),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_right(world, tmp_path, rows, expected):
    w.write(tmp_path / "bad.jsonl", *rows)
    refused(lambda: start(tmp_path / "desk", world, tmp_path / "bad.jsonl"), *expected)
    assert not (tmp_path / "desk").exists()


@pytest.mark.parametrize(("address", "got"), [
    ("no.png", "bad.jsonl line 1: image 'no.png', which is no file there"),
    ("https://example.org/a.png", "bad.jsonl line 1: image 'https://example.org/a.png', a web address"),
    ("../a.png", "bad.jsonl line 1: image '../a.png', outside the folder"),
])  # fmt: skip
def test_images_from_elsewhere(small_world, tmp_path, monkeypatch, address, got):
    """Catches a request that reads the network or somebody else's files."""
    w.text_folder(tmp_path / "model")
    monkeypatch.setattr(desk, "hub", type("", (), {"load_editable": lambda folder: small_world[1:]}))
    w.write(tmp_path / "bad.jsonl", {**w.MALI, "image": address})
    refused(lambda: start(tmp_path / "desk", tmp_path, "bad.jsonl"), got,
            "a path below the folder of the file, or a data: URL", "copy it there: nothing else is read")  # fmt: skip


def test_a_target_that_is_answered_already(world, own, tmp_path):
    """Of the edited model, too: catches an edit of what another edit has changed already."""
    w.write(tmp_path / "same.jsonl", {**w.MALI, "id": "same", "prompt": w.MALI["rephrase"][0], "rephrase": []})
    refused(lambda: start(own, world, tmp_path / "same.jsonl"),
            "request same with the target 'Dakar', which the model answers already",
            "an answer that it does not give yet", "leave the request out")  # fmt: skip


def test_an_empty_file_an_unknown_edit_a_lost_salt_and_nothing_in_force(world, own, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError):
        start(own, world, tmp_path / "empty.jsonl")
    first, second = names(own)
    refused(lambda: desk.show(own, "x"), "edit 'x' at the desk desk", f"one of its edits: {first}, {second}",
            "see all of them with: upright edit list")  # fmt: skip
    for name in (first, second):
        desk.revert(own, name)
    refused(lambda: desk.export(desk.Opened(own, world / "model"), tmp_path / "out"),
            "no edit in force at the desk desk", "at least one", "name an edit")  # fmt: skip
    (own / "salt").unlink()
    refused(lambda: start(own, world), "the desk desk without its salt", "the file salt that it wrote",
            "take it from a copy")  # fmt: skip
    refused(lambda: desk.listing(tmp_path / "nowhere"), "no ledger at the desk nowhere",
            "a folder that upright edit apply wrote", "check --desk")  # fmt: skip
    refused(lambda: start(world / "model" / "desk", world), "--desk desk inside the model folder model",
            "a place outside of it", "name another place: a model folder is never written to")  # fmt: skip


def test_the_command_line_has_the_defaults_of_the_settings():
    """Catches a budget that a person reads in the help and the desk does not keep."""
    import inspect

    from upright.cli.edit import apply as verb

    options = {name: one.default.default for name, one in inspect.signature(verb).parameters.items()
               if hasattr(one.default, "default")}  # fmt: skip
    own = desk.Settings().as_dict()
    assert {name: options[name] for name in own} == own
