"""The forgetting desk meets bad input, full disks and kills: three parts, and everything is as it was."""

from __future__ import annotations

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

import desk_world as w
from upright.contract import InputError
from upright.data.forget import read_records, tofu_records
from upright.language import desk, disk, pages, receipts
from upright.ledger import Ledger
from upright.models.tiny import tiny_tokenizer

# -- bad input: three parts, nothing changed ------------------------------------------------------------------------


def _empty(user, p):
    (p / "f.jsonl").write_text("\n")
    return {"forget": p / "f.jsonl"}


def _overlap(user, p):
    records = read_records(user.retain)
    return {"retain": w.write_records(p / "r.jsonl", [*records[:3], replace(read_records(user.forget)[4], id="x7")])}


def _nearly(user, p):
    one = read_records(user.forget)[4]
    loud = replace(one, prompt=one.prompt.upper(), answer=one.answer.upper(), id="x7")
    return {"retain": w.write_records(p / "r.jsonl", [*read_records(user.retain)[:3], loud])}


def _held_out_is_retained(user, p):
    return {"holdout": user.retain}


def _tokenizer(user, p):
    shutil.copytree(user.model, p / "odd")
    tiny_tokenizer([r.answer for r in tofu_records()[:60]], vocabulary=500).save_pretrained(p / "odd")
    return {"model": p / "odd"}


def _other_reference(user, p):
    shutil.copytree(user.model, p / "other")
    tiny_tokenizer([r.answer for r in tofu_records()[40:60]], vocabulary=400).save_pretrained(p / "other")
    return {"reference": p / "other"}


def _itself(user, p):
    shutil.copytree(user.model, p / "copy")
    return {"reference": p / "copy"}


def _itself_rehearsed(user, p):
    return {**_itself(user, p), "dry_run": True}


def _long(user, p):
    one = read_records(user.forget)[0]
    return {"forget": w.write_records(p / "f.jsonl", [replace(one, answer="again and " * 200, id="long")])}


def _long_retained(user, p):
    one = read_records(user.retain)[0]
    return {"retain": w.write_records(p / "r.jsonl", [replace(one, answer="again and " * 200, id="long")])}


def _no_model(user, p):
    (p / "empty").mkdir()
    return {"model": p / "empty"}


def _taken(user, p):
    (p / "new").mkdir()
    return {}


def _inside(user, p):
    return {"out": user.model / "new"}


def _desk_inside(user, p):
    return {"desk": user.model / "desk"}


def _desk_in_out(user, p):
    return {"desk": p / "new" / "desk"}


def _out_in_desk(user, p):
    return {"out": p / "desk" / "new"}


def _below_a_file(user, p):
    (p / "file").write_text("")
    return {"out": p / "file" / "new"}


def _broken_line(user, p):
    (p / "f.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question"\n')
    return {"forget": p / "f.jsonl"}


BAD = [
    (_empty, "f.jsonl without a record",
     "JSON lines with question and answer, prompt and completion, instruction and output, messages, or text",
     "check the file"),
    (_overlap, "record 4 of forget is record x7 of retain (1 shared)", "forget and retain without a common record",
     "take the shared records out of retain"),
    (_nearly, "record 4 of forget is nearly record x7 of retain (1 such pairs)",
     "forget and retain without near-duplicates", "take these records out of retain, or pass --allow-similar"),
    (_held_out_is_retained, "record 20 of retain is record 20 of holdout (14 shared)",
     "retain and holdout without a common record", "take the shared records out of holdout"),
    (_tokenizer, "a tokenizer of 500 tokens and a model with embeddings for 400", "the tokenizer of the model",
     "copy the tokenizer files that belong to this model into its folder"),
    (_other_reference, "a reference model with another tokenizer",
     "a reference of the same family, with the same vocabulary",
     "use the base model, or a model retrained from it without the records"),
    (_itself, "--reference copy with the weights of model itself", "a model that was trained without the records",
     "name another reference, or leave --reference out"),
    (_itself_rehearsed, "--reference copy with the weights of model itself",
     "a model that was trained without the records", "name another reference, or leave --reference out"),
    (_long, r"forget file: record long with \d+ tokens", "at most 256, the context of the model",
     "split the record, or use a model with a longer context"),
    (_long_retained, r"retain file: record long with \d+ tokens", "at most 256, the context of the model",
     "split the record, or use a model with a longer context"),
    (_no_model, "empty without config.json", "the folder of a model as save_pretrained writes it", "check the path"),
    (_taken, "--out new, which is there already", "a new folder", "name another one, or move it"),
    (_inside, "--out new inside the model folder model", "a place outside of it",
     "name another place: a model folder is never written to"),
    (_desk_inside, "--desk desk inside the model folder model", "a place outside of it",
     "name another place: a model folder is never written to"),
    (_desk_in_out, "--desk desk and --out new, one inside the other", "two separate folders",
     "name another --out: a model folder holds a model alone"),
    (_out_in_desk, "--desk desk and --out new, one inside the other", "two separate folders",
     "name another --out: a model folder holds a model alone"),
    (_below_a_file, "--out new: file above it is a file", "a folder", "name another one"),
    (_broken_line, r"f.jsonl line 2: .*", "one JSON object a line, or one array of objects", "correct that line"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "got", "accepted", "todo"), BAD, ids=lambda x: getattr(x, "__name__", None))
def test_bad_input_has_three_parts_and_changes_nothing(world, tmp_path, make, got, accepted, todo):
    # catches a check that comes after work, a folder left behind, and errors that name neither file nor remedy
    changes = make(world, tmp_path)
    before, place = w.contents(world.root), w.contents(tmp_path)
    with pytest.raises(InputError) as caught:
        w.start(world, tmp_path, **changes)
    assert re.fullmatch(got if r"\d" in got or ".*" in got else re.escape(got), caught.value.got)
    assert caught.value.accepted == accepted
    assert caught.value.todo == todo
    assert w.contents(world.root) == before
    assert w.contents(tmp_path) == place
    assert not (tmp_path / "desk").exists()


def call(verb, world, place, cluster="author", **changes):
    """Call a verb of the desk with files that may be changed."""
    files = {name: changes.get(name, getattr(world, name)) for name in ("forget", "retain")}
    forget, retain = files.values()
    if verb == "unlearn":
        return w.start(world, place, **files, settings=w.FAST.replace(cluster=cluster))
    if verb == "retrain":
        more = {"model_dir": world.model, "forget_file": forget, "recipe": desk.Recipe(cluster=cluster)}
        return desk.retrain(world.reference, retain, out=place / "new", desk=place / "desk", **more)
    if verb == "evaluate":
        return desk.evaluate(world.model, forget, retain, cluster=cluster)
    if verb == "score":
        return desk.score(world.model, forget, desk=place / "desk", cluster=cluster)
    return desk.reevaluate(place / "desk", world.model, [forget], cluster=cluster)


@pytest.mark.parametrize("verb", ["evaluate", "retrain"])
def test_near_duplicates_are_refused_by_the_other_verbs(world, tmp_path, verb):
    """Records to forget that stand in the retain file in capitals are trained to be kept, and judged as kept."""
    with pytest.raises(InputError, match="record 4 of forget is nearly record x7 of retain"):
        call(verb, world, tmp_path, **_nearly(world, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_near_duplicates_that_are_allowed_stand_in_the_receipt(world, tmp_path, monkeypatch):
    """Whoever reads the receipt does not learn that some of what was to go was kept in other letters."""
    monkeypatch.setattr(desk, "_train", w.no_training)
    found = w.start(world, tmp_path, **_nearly(world, tmp_path), settings=w.FAST.replace(allow_similar=True))
    assert "record 4 of forget is nearly record x7 of retain (1 such pairs)" in pages.page(found)
    assert found["method"]["allow_similar"] is True


@pytest.mark.parametrize("verb", ["score", "unlearn", "retrain", "evaluate", "reevaluate"])
def test_what_records_have_in_common_is_asked_of_every_file(world, tmp_path, verb):
    """Records of one person are drawn apart, because the desk takes no key but the author."""
    with pytest.raises(InputError, match=r"forget\.jsonl line 1: no 'person'"):
        call(verb, world, tmp_path, cluster="person")


def test_records_of_one_person_are_drawn_together(world, tmp_path):
    """Intervals of a desk are too narrow where a key says which records belong together."""
    records = [r for r in read_records(world.forget) for _ in range(2)]
    twice = [replace(r, id=str(i), prompt=f"{r.prompt} {'So?' * (i % 2)}") for i, r in enumerate(records)]
    rows = [json.loads(line) for line in w.write_records(tmp_path / "f.jsonl", twice).read_text().splitlines()]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps({**r, "person": i // 2}) + "\n" for i, r in enumerate(rows)))
    rows = [{k: v for k, v in row.items() if k != "person"} for row in rows]
    (tmp_path / "g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = (
        desk.evaluate(world.model, tmp_path / file, rouge=False, cluster=key)["metrics"]["forget"]["forget_probability"]
        for file, key in (("f.jsonl", "person"), ("g.jsonl", "author"))
    )
    assert one["model"]["value"] == pytest.approx(other["model"]["value"], rel=1e-14)  # in another order
    assert one["model"]["high"] - one["model"]["low"] > 1.2 * (other["model"]["high"] - other["model"]["low"])


def test_a_desk_inside_the_place_of_the_model_is_refused_through_a_link(world, tmp_path):
    # catches a comparison of names: after training the rename would fail, or the model would hold the ledger
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InputError, match="one inside the other"):
        w.start(world, tmp_path, out=tmp_path / "link" / "desk" / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


OVER = ["forget", "retain", "holdout", "earlier", "key", "desk/ledger.jsonl", "desk/new.json", "model/new.json",
        "before/new.json", "notes.txt", "almost.json", "folder", "link", "file/new.json"]  # fmt: skip


@pytest.mark.parametrize("name", OVER)
def test_an_evaluation_is_written_over_nothing_but_an_evaluation(world, tmp_path, monkeypatch, name):
    # catches records, keys, ledgers and a person's own files that --out replaced, and a refusal after hours of work
    own = {n: shutil.copyfile(getattr(world, n), tmp_path / n) for n in ("forget", "retain", "holdout")}
    for extra in ("earlier", "key", "notes.txt"):
        (tmp_path / extra).write_text("precious")
    (tmp_path / "almost.json").write_text('{"metrics": {}, "kind": "upright forget eval"}')
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").hardlink_to(tmp_path / "forget")
    for place in ("desk", "model", "before"):
        (tmp_path / place).mkdir()
    (tmp_path / "desk" / "ledger.jsonl").write_text("precious")
    monkeypatch.setattr(desk, "inputs", lambda *_, **__: pytest.fail("work began"))
    before = w.contents(tmp_path)
    with pytest.raises(InputError) as caught:
        desk.evaluate(tmp_path / "model", own["forget"], own["retain"], holdout=own["holdout"], out=tmp_path / name,
                      before=tmp_path / "before", desk=tmp_path / "desk",
                      other=[tmp_path / "earlier", tmp_path / "key", None])  # fmt: skip
    assert caught.value.got.startswith("--out ")
    assert caught.value.todo
    assert w.contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "got"),
    [({"learning_rate": 0.0}, "learning_rate = 0.0"), ({"epochs": 0}, "epochs = 0"), ({"sampling": "mdr"}, "'mdr'"),
     ({"utility_floor": 1.5}, "utility_floor = 1.5"), ({"batch_size": -1}, "batch_size = -1"),
     ({"loss": "npoo"}, "loss = 'npoo'.*choose one of these"),
     ({"loss": "idk_dpo"}, "loss 'idk_dpo' at the desk.*such as npo.*UnlearnTrainer, which takes its options")],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(change, got):
    # catches a typo that trains for hours with a default
    with pytest.raises(InputError, match=f"(?s){got}"):
        desk.Settings(**change)


def test_a_disk_without_room_is_noticed_before_training(world, tmp_path, monkeypatch):
    # catches a check of the wrong disk or after the work: training itself must not begin
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 2000, 2000))
    monkeypatch.setattr(desk, "_train", lambda *_: pytest.fail("training began"))
    before = w.contents(world.root)
    with pytest.raises(InputError) as caught:
        w.start(world, tmp_path)
    size = disk.weight_bytes(world.model)
    assert caught.value.got == "0.0 MiB free for --out new"
    assert caught.value.accepted == f"{1.1 * size / 2**20:,.1f} MiB, the model and 10 %"
    assert caught.value.todo == "free some space, or name a place on another disk"
    assert w.contents(world.root) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"),
     SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")],
)  # fmt: skip
def test_a_disk_that_fills_up_while_writing_leaves_nothing_behind(world, tmp_path, monkeypatch, error):
    # catches half a model under the final name, a temporary left there, and safetensors' own error type
    import safetensors.torch
    import transformers.modeling_utils

    def full(tensors, filename, **_):
        Path(filename).write_bytes(b"half")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", full)
    monkeypatch.setattr(desk, "_train", w.no_training)
    before = w.contents(world.root)
    with pytest.raises(InputError) as caught:
        w.start(world, tmp_path)
    assert caught.value.got == "a full disk while writing --out new"
    assert caught.value.accepted.endswith("MiB, the model and 10 %")
    assert caught.value.todo == "free some space, or name a place on another disk; nothing was left behind"
    assert w.contents(world.root) == before
    assert [p.name for p in tmp_path.iterdir()] == ["desk"]
    assert [r["status"] for r in desk.listing(tmp_path / "desk")] == ["interrupted"]
    assert desk.verify(tmp_path / "desk")["intact"]


def test_a_full_disk_at_the_desk_is_no_fault_of_ours(world, tmp_path, monkeypatch):
    # catches a traceback where the cache of the request, not the model, filled the disk
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(desk, "_train", full)
    with pytest.raises(InputError, match="a full disk while keeping request") as caught:
        w.start(world, tmp_path)
    assert caught.value.todo == "free some space, then run this again; no model was written"


REAL = """
import resource, signal, sys
from pathlib import Path
from upright.contract import InputError
from upright.language import disk
from safetensors.torch import save_file
import torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with disk.new_folder(Path(sys.argv[1]), 10) as part:
        save_file({"a": torch.zeros(100_000)}, part / "model.safetensors")
except InputError as error:
    print(error.got)
"""


def test_safetensors_really_fails_in_the_way_that_is_understood(tmp_path):
    # catches a change of safetensors' wording: here the operating system itself refuses the write
    out = tmp_path / "new"
    done = subprocess.run([sys.executable, "-c", REAL, str(out)], capture_output=True, text=True)
    assert done.stdout.strip() == "a full disk while writing --out new", done.stderr
    assert not list(tmp_path.iterdir())


def test_a_torn_ledger_stops_a_request_before_anything_is_computed(world, tmp_path):
    # catches hours of training whose line could not be added
    Ledger(tmp_path / "desk" / "ledger.jsonl").append("opened", {"request": "a"})
    with (tmp_path / "desk" / "ledger.jsonl").open("ab") as file:
        file.write(b'{"half')
    with pytest.raises(InputError, match="a ledger that is broken at line 2: torn") as caught:
        w.start(world, tmp_path)
    assert "--mend" in caught.value.todo
    assert desk.verify(tmp_path / "desk", mend=True)["intact"]


# -- kills ----------------------------------------------------------------------------------------------------------


def test_an_interrupt_at_the_rename_leaves_source_and_place_as_they_were(world, tmp_path, monkeypatch):
    # catches a temporary that stays after Ctrl-C, and a final name that appears too early
    def stop(part, out):
        assert (Path(part) / "model.safetensors").exists()
        assert not Path(out).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(desk, "_train", w.no_training)
    monkeypatch.setattr(disk.os, "rename", stop)
    before = w.contents(world.root)
    with pytest.raises(KeyboardInterrupt):
        w.start(world, tmp_path)
    assert w.contents(world.root) == before
    assert [p.name for p in tmp_path.iterdir()] == ["desk"]
    with pytest.raises(InputError, match="that did not end"):
        desk.receipt(tmp_path / "desk", disk.requests_of(tmp_path / "desk")[0].id)


KILLED = """
import os, signal, sys
from pathlib import Path
from upright.language import disk
when, source, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
rename = os.rename
def dying(part, place):
    if when == "after":
        rename(part, place)
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = dying
with disk.new_folder(out, 10) as part:
    for file in source.iterdir():
        (part / file.name).write_bytes(file.read_bytes())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_rename_leaves_a_whole_folder_or_none(world, tmp_path, when):
    # catches a folder that is filled under its final name: after SIGKILL it would be half a model
    before, out = w.contents(world.model), tmp_path / "new"
    done = subprocess.run([sys.executable, "-c", KILLED, when, str(world.model), str(out)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert w.contents(world.model) == before
    if when == "after":
        assert w.contents(out) == before
        assert disk.leftovers(out) == []
    else:
        assert not out.exists()
        assert len(disk.leftovers(out)) == 1


def test_what_a_killed_run_left_is_named_in_the_next_one(world, tmp_path, monkeypatch):
    # catches half-written folders of gigabytes that nobody hears of
    (tmp_path / ".new.upright-part-0123").mkdir()
    monkeypatch.setattr(desk, "_train", w.no_training)
    found = w.start(world, tmp_path)
    assert any(".new.upright-part-0123" in said for said in found["warnings"])


def test_a_ledger_that_cannot_be_written_takes_the_model_back(world, tmp_path, monkeypatch):
    # catches a model that no line of the ledger tells of
    append = Ledger.append

    def full(self, kind, body):
        if kind == "unlearned":
            raise InputError("ledger.jsonl cannot be written to", "a disk with room", "free some space")
        return append(self, kind, body)

    monkeypatch.setattr(desk, "_train", w.no_training)
    monkeypatch.setattr(Ledger, "append", full)
    with pytest.raises(InputError, match="cannot be written to"):
        w.start(world, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["desk"]


def test_a_list_of_a_desk_that_is_not_there_is_an_error(tmp_path):
    # catches "none yet" for a mistyped --desk
    with pytest.raises(InputError, match="no ledger at the desk nowhere"):
        desk.listing(tmp_path / "nowhere")
    Ledger(tmp_path / "desk" / "ledger.jsonl").append("opened", {"request": "a"})
    assert desk.listing(tmp_path / "desk") == []


@pytest.mark.parametrize(
    ("verdict", "short", "forgotten"),
    [("still known: 4 of 4 attacks find the records", "still known", False),
     ("forgotten: 4 of 4 attacks found the records before; now", "forgotten", True),
     ("not shown: no attack found the records before, the margin is 0.1; about 65", "not shown", False),
     ("none of 4 attacks finds the records; the smallest", "none of 4 attacks finds the records", False),
     ("not measurable by membership: 1 of at least 5 records", "not measurable by membership", False),
     ("not measured: too few records, 10", "forgetting not measured", False),
     (receipts.DESTROYED, receipts.DESTROYED, False)],
)  # fmt: skip
def test_a_verdict_in_short_says_the_same(verdict, short, forgotten):
    # catches a list, or --require-forgotten, that takes "not measured" or a wreck for forgotten
    assert pages.in_short(verdict) == short
    assert pages.is_forgotten(verdict) is forgotten


@pytest.mark.parametrize("name", ["model", "copy", "before"])
def test_an_evaluation_against_the_model_itself_is_refused(world, tmp_path, name):
    # catches a reference that agrees with whatever it judges, under another name too, or that still knows everything
    reference = world.model
    if name == "copy":
        reference = shutil.copytree(world.model, tmp_path / "copy")
    own = (world.reference, {"before": world.model}) if name == "before" else (world.model, {})
    with pytest.raises(InputError, match=r"--reference .* with the weights of model itself"):
        desk.evaluate(own[0], world.forget, reference=reference, rouge=False, **own[1])
