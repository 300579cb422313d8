"""The guard's record: nothing is lost in silence, what was changed is found, and no text of anybody is in it."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import wait

import pytest

from upright.contract import InputError
from upright.guard.record import Full, Record, verify
from upright.ledger import Ledger

FAST = 0.001


def made(folder, *months, lines=1, **options):
    """Write a few decisions in each month, on its 5th day."""
    now = [f"{months[0]}-05T00:00:00Z"]
    with Record(folder, every=FAST, clock=lambda: now[0], **options) as record:
        for month in months:
            now[0] = f"{month}-05T00:00:00Z"
            wait([record.write({"number": i}) for i in range(lines)])
    return folder


def told(folder, kind=None):
    """Return kinds of all lines in order, or the bodies of one kind."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in Ledger(path).lines()]
    return [line["body"] for line in lines if line["kind"] == kind] if kind else [line["kind"] for line in lines]


def numbers(folder):
    return [body["number"] for body in told(folder, "decision")]


def test_lines_stand_in_the_order_in_which_they_were_queued_between_a_beginning_and_an_end(tmp_path):
    # catches a batch that is written twice, backwards or not at all, and a future that is done before its line stands
    with Record(tmp_path / "r", every=FAST) as record:
        for i in range(200):
            record.write({"number": i})
        record.write({"number": 200}).result(20)
        assert numbers(tmp_path / "r")[-1] == 200
    assert numbers(tmp_path / "r") == list(range(201))
    assert told(tmp_path / "r") == ["began", *["decision"] * 201, "closed"]
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o700


def test_an_edited_and_a_removed_line_are_found(tmp_path):
    # catches a file that is not looked at, and a line that is taken out of the middle; the last one is a cut tail
    folder = made(tmp_path, "2026-01", "2026-02", lines=3)
    for path in sorted(folder.glob("*.jsonl")):
        lines = (whole := path.read_bytes()).splitlines(keepends=True)
        for at, edited in itertools.product(range(len(lines) - 1), (True, False)):
            changed = [lines[at].replace(b'"time":"2026-0', b'"time":"2025-0')] * edited
            path.write_bytes(b"".join([*lines[:at], *changed, *lines[at + 1 :]]))
            assert [name for name, found in verify(folder) if not found.intact] == [path.name]
        path.write_bytes(whole)
    assert all(found.intact for _, found in verify(folder))


def test_a_cut_tail_is_found_with_the_head_and_without_it_the_result_says_that_it_was_not_looked_for(tmp_path):
    # catches a check that ignores the head, or promises what the files alone cannot show
    folder = made(tmp_path, "2026-01", "2026-02")
    cut = folder / "guard-2026-02.jsonl"
    heads = [line["hash"] for path in sorted(folder.glob("*.jsonl")) for line in Ledger(path).lines()]
    assert all(found.intact and not found.reason for head in heads for _, found in verify(folder, head))
    cut.write_bytes(b"".join(cut.read_bytes().splitlines(keepends=True)[:-1]))
    assert [(found.intact, found.reason) for _, found in verify(folder)] == [
        (True, ""),
        (True, "lines cut off at the end were not looked for: that takes the hash of a later line (--head)"),
    ]
    last = verify(folder, heads[-1])[-1][1]
    assert (last.intact, last.broken) == (False, 3)
    assert last.reason.startswith("a line known from elsewhere is missing")
    cut.unlink()
    assert not verify(folder, heads[-1])[-1][1].intact


@pytest.mark.parametrize("gone", [0, 1])
def test_a_month_follows_on_the_one_before_and_a_file_that_is_taken_away_by_hand_is_found(tmp_path, gone):
    # catches a chain that ends with each file, and a first file that may follow on anything
    folder = made(tmp_path, "2026-01", "2026-02", "2026-03")
    assert all(found.intact for _, found in verify(folder))
    (folder / f"guard-2026-0{gone + 1}.jsonl").unlink()
    ((name, found),) = [(name, found) for name, found in verify(folder) if not found.intact]
    assert name == f"guard-2026-0{gone + 2}.jsonl"
    assert found.reason.startswith(f"does not follow on guard-2026-0{gone + 1}.jsonl")


def test_retention_removes_whole_files_and_the_rest_still_verifies(tmp_path):
    # catches a month that goes while a day of it may stay, a file that goes unsaid, and a head that is no longer known
    folder = made(tmp_path, "2025-11", "2025-12", "2026-01")
    heads = [found.head for _, found in verify(folder)]
    made(folder, "2026-01", days=36)  # on the 5th, November ended 35 days ago
    assert len(verify(folder)) == 3
    made(folder, "2026-01", days=35)
    assert [(name[6:13], found.intact) for name, found in verify(folder, heads[0])] == [
        ("2025-12", True), ("2026-01", True),
    ]  # fmt: skip
    assert told(folder, "removed") == [{"file": "guard-2025-11.jsonl", "head": heads[0]}]
    path = folder / "guard-2026-01.jsonl"
    path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(Full, match="Extra data"):  # no hash can be told, so nothing is removed
        made(folder, "2026-01", days=1)
    assert (folder / "guard-2025-12.jsonl").exists()


@pytest.mark.parametrize("flushed", [True, False])
def test_an_unclean_stop_loses_at_most_what_was_not_flushed_and_is_a_line_at_the_next_start(tmp_path, flushed):
    # catches a loss in silence: also one where nothing at all had been flushed since the start
    script = (
        "import sys; from pathlib import Path; from upright.guard.record import Record\n"
        "record = Record(Path(sys.argv[1]), every=0.3)\n"
        "for i in range(20): done = record.write({'number': i, 'kind': 'closed'})\n"
        f"if {flushed}: done.result()\n"
        "for i in range(20, 40): record.write({'number': i})\n"
        "print('queued', flush=True); sys.stdin.read()\n"
    )
    made(tmp_path, "2026-01", lines=0)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=pipe, stdout=pipe) as run:
        assert run.stdout.readline() == b"queued\n"
        run.kill()
    found = numbers(tmp_path)
    assert found == list(range(len(found)))
    assert len(found) >= 20 * flushed
    for _ in range(2):
        made(tmp_path, "2026-01", lines=0)
    assert told(tmp_path)[-4:] == ["unclean", "closed", "opened", "closed"]
    assert all(found.intact for _, found in verify(tmp_path))


def test_a_line_that_a_kill_tore_is_taken_out_and_told(tmp_path):
    # catches a start that refuses for ever, and one that goes on behind half a line; a torn first line began nothing
    with (made(tmp_path, "2026-01") / "guard-2026-01.jsonl").open("ab") as file:
        file.write(b'{"body":{"numb')
    (tmp_path / "guard-2026-02.jsonl").write_bytes(b'{"body":{"aft')
    made(tmp_path, "2026-02")
    assert told(tmp_path) == ["began", "decision", "closed", "mended", "unclean", "began", "decision", "closed"]
    assert all(found.intact for _, found in verify(tmp_path))


@pytest.mark.parametrize("full", ["wait", "refuse"])
def test_a_full_queue_waits_or_is_refused_as_declared(tmp_path, monkeypatch, full):
    # catches a line that is dropped, a queue that grows, and a refusal that waits
    free, reached, real = threading.Event(), threading.Event(), Ledger.append_many

    def slow(self, kind, bodies):
        if kind == "decision":
            reached.set()
            assert free.wait(20)
        return real(self, kind, bodies)

    monkeypatch.setattr(Ledger, "append_many", slow)
    record = Record(tmp_path, full=full, most=2, every=FAST)
    queued = [record.write({"number": 0})]
    assert reached.wait(20)
    queued += [record.write({"number": i}) for i in (1, 2)]
    late = threading.Thread(target=record.write, args=({"number": 3},))
    if full == "refuse":
        with pytest.raises(Full, match="a record with 2 lines that wait for the disk"):
            record.write({"number": 3})
    else:
        late.start()
        late.join(0.05)
        assert late.is_alive()
    assert not any(one.done() for one in queued)
    free.set()
    if late.is_alive():
        late.join(20)
    record.close()
    assert numbers(tmp_path) == [0, 1, 2, *[3] * (full == "wait")]


def test_a_disk_error_reaches_whoever_waits_and_whoever_writes_until_a_line_says_what_was_lost(
    tmp_path, monkeypatch, caplog
):
    # catches a thread that dies, a future that is never done, and decisions that go on without a record
    real, full, tries = os.fsync, threading.Event(), threading.Semaphore(0)

    def failing(handle):
        if full.is_set():
            tries.release()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr("upright.ledger.os.fsync", failing)
    record = Record(tmp_path, most=9, every=20)  # nine lines are flushed at once
    wait([record.write({"number": i}) for i in range(9)])
    full.set()
    for lost in [record.write({"number": i}) for i in range(9, 18)]:
        with pytest.raises(Full, match=r"\.jsonl cannot be written to \(No space left on device\)"):
            lost.result(20)
    with pytest.raises(Full, match=r"No space left on device"):
        record.write({"number": 18})
    assert tries.acquire(timeout=20)
    assert tries.acquire(timeout=20)  # again, by itself
    assert len(caplog.records) == 1
    full.clear()
    with record._changed:
        assert record._changed.wait_for(lambda: record._error is None, 20)
    wait([record.write({"number": i}) for i in range(19, 28)])
    full.set()
    with pytest.raises(InputError, match="No space left on device"):
        record.close()
    assert told(tmp_path) == ["began", *["decision"] * 9, "lost", *["decision"] * 9]
    assert (told(tmp_path, "lost"), numbers(tmp_path)) == ([{"lines": 9}], [*range(9), *range(19, 28)])


def test_a_waiter_that_goes_away_and_a_body_that_is_none_stop_nobody_else(tmp_path):
    # catches a thread that ends at a cancelled future, or a batch that is lost for one of its lines
    with Record(tmp_path, every=0.02) as record:
        assert not record.write({"number": 0}).cancel()
        for body in ({"number": float("nan")}, {"text": "x" * (1 << 20)}, {1: 2}):
            with pytest.raises(InputError):
                record.write(body)
        record.write({"number": 1}).result(20)
    with pytest.raises(InputError, match="a line for a record that was closed"):
        record.write({"number": 2})
    assert numbers(tmp_path) == [0, 1]


def test_a_digest_is_the_tenants_own_and_erasing_its_key_leaves_the_chain_intact(tmp_path):
    # catches one key for all, a key that another process makes anew, one that others may read, and texts in the folder
    text = "nobody may read this sentence \ud800"
    with Record(tmp_path, every=FAST) as record:
        mine, other = record.digest("reading-room", text), record.digest("", text)
        record.write({"digest": mine}).result(20)
    assert re.fullmatch("[0-9a-f]{32}", mine)
    with Record(tmp_path, every=FAST) as record:
        assert record.digest("reading-room", text) == mine != other
        record.erase("reading-room")
        assert record.digest("reading-room", text) != mine
        assert record.digest("", text) == other
        with pytest.raises(InputError, match="the tenant 'nobody' without a key"):
            record.erase("nobody")
    assert told(tmp_path, "erased") == [{}]
    assert all(found.intact for _, found in verify(tmp_path))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}
    held = b"".join(path.name.encode() + path.read_bytes() for path in tmp_path.iterdir())
    assert not any(word in held for word in (b"nobody", b"sentence", b"reading-room"))


def test_what_is_asked_wrongly(tmp_path):
    # catches a bare traceback, two guards whose lines mix, and a chain that goes on behind an edited end
    for wrong in ({"most": 0}, {"every": float("nan")}, {"days": 0}):
        with pytest.raises(InputError, match="numbers above 0"):
            Record(tmp_path / "r", **wrong)
    with Record(tmp_path / "r"), pytest.raises(InputError, match=r"the record r cannot be .* \(another guard does\)"):
        Record(tmp_path / "r")
    with pytest.raises(InputError, match=r"accepted: a folder with guard-YYYY-MM\.jsonl"):
        verify(tmp_path)
    with pytest.raises(InputError, match="the head 'abc'\n  accepted: the hash of a line, 64 hex digits"):
        verify(tmp_path / "r", "abc")
    (path,) = (tmp_path / "r").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"kind":"closed"', b'"kind":"clos3d"'))
    with pytest.raises(InputError, match="ends in a line that was edited"):
        Record(tmp_path / "r")
    with pytest.raises(InputError, match=r"cannot be written to \(File exists\)"):
        Record(path)
