"""The chained log: every kind of tampering goes red at the right line, and a write is whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.ledger import GENESIS, Ledger, canonical

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8,
)  # fmt: skip
BODIES = st.dictionaries(st.text(), JSON, max_size=4)


def clock():
    return "2026-01-31T00:00:00Z"


def nested(depth):
    """Return lists in lists."""
    found = []
    for _ in range(depth):
        found = [found]
    return found


def filled(path: Path, n: int = 5, **options) -> Ledger:
    ledger = Ledger(path, clock=clock, **options)
    for i in range(n):
        ledger.append("event", {"number": i, "value": 0.1 * i})
    return ledger


def raw(ledger: Ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines(keepends=True)


def rechain(lines: list[dict]) -> bytes:
    """Write a chain anew as a forger would: numbers, links and hashes are right."""
    previous, out = GENESIS, b""
    for n, line in enumerate(lines, start=1):
        line = {**line, "n": n, "previous": previous}
        core = {k: line[k] for k in ("n", "time", "kind", "body", "previous")}
        spelled = json.dumps(core, sort_keys=True, separators=(",", ":")).encode()
        line["hash"] = previous = hashlib.sha256(spelled).hexdigest()
        out += json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return out


# -- what is written ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(BODIES, min_size=1, max_size=4))
def test_what_was_appended_is_read_back_and_holds(tmp_path_factory, bodies):
    # catches a body that hashes in one way when written and in another when read: order of keys, floats, escapes
    ledger = Ledger(tmp_path_factory.mktemp("l") / "ledger.jsonl")
    written = [ledger.append("event", body) for body in bodies]
    assert ledger.lines() == written
    assert [line["body"] for line in written] == bodies
    assert [line["n"] for line in written] == list(range(1, len(bodies) + 1))
    found = ledger.verify()
    assert (found.intact, found.lines, found.head) == (True, len(bodies), written[-1]["hash"])


@settings(max_examples=40, deadline=None)
@given(st.lists(BODIES, max_size=5), st.booleans())
def test_many_lines_at_once_are_those_that_one_at_a_time_would_be(tmp_path_factory, bodies, signed):
    # catches: a second chain within the first, lines that are not signed, a body shared between lines
    folder = tmp_path_factory.mktemp("l")
    (folder / "key").write_bytes(b"k" * 32)
    key = folder / "key" if signed else None
    single, many = filled(folder / "a.jsonl", 1, key=key), filled(folder / "b.jsonl", 1, key=key)
    assert many.append_many("event", bodies) == [single.append("event", body) for body in bodies]
    assert many.path.read_bytes() == single.path.read_bytes()
    assert many.verify().intact


def test_many_lines_cost_one_sync_and_none_costs_nothing(tmp_path, monkeypatch):
    # catches: an fsync a line, which is what the method is there to save; a file made for nothing
    ledger, synced = Ledger(tmp_path / "ledger.jsonl"), []
    monkeypatch.setattr("upright.ledger.os.fsync", synced.append)
    assert ledger.append_many("event", []) == []
    assert (synced, ledger.path.exists()) == ([], False)
    ledger.append("event", {})
    synced.clear()
    assert [line["n"] for line in ledger.append_many("event", [{"i": i} for i in range(50)])] == list(range(2, 52))
    assert len(synced) == 1


def test_one_body_that_is_no_json_keeps_all_of_them_out(tmp_path):
    # catches: the lines before a bad one written, while the caller is told that it failed
    ledger = filled(tmp_path / "ledger.jsonl", 1)
    before = ledger.path.read_bytes()
    with pytest.raises(InputError, match="no JSON"):
        ledger.append_many("event", [{"a": 1}, {"a": float("nan")}, {"a": 2}])
    assert ledger.path.read_bytes() == before


def test_the_hash_is_the_documented_one(tmp_path):
    # catches a chain that only this code can check: an independent computation must agree
    ledger = filled(tmp_path / "ledger.jsonl", 3)
    assert ledger.path.read_bytes() == rechain([{k: v for k, v in x.items() if k != "hash"} for x in ledger.lines()])
    assert ledger.lines()[0]["previous"] == "0" * 64
    assert set(ledger.lines()[0]) == {"n", "time", "kind", "body", "previous", "hash"}


def test_an_empty_ledger_is_intact_and_makes_no_file(tmp_path):
    # catches a check that fails before the first line, or that creates what it checks
    ledger = Ledger(tmp_path / "ledger.jsonl")
    found = ledger.verify()
    assert (found.intact, found.lines, found.head) == (True, 0, GENESIS)
    assert ledger.lines() == []
    assert not ledger.path.exists()


def test_long_lines_are_found_from_the_end(tmp_path):
    # catches a reader of the last line that stops at one block
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for size in (200_000, 3, 65_536, 70_000):
        ledger.append("event", {"text": "x" * size})
    assert ledger.verify().intact


@pytest.mark.parametrize(
    ("body", "got"),
    [({"a": float("nan")}, "no JSON"), ({"a": float("inf")}, "no JSON"), ({"a": {1: 2}}, "the key 1"),
     ({"a": [{None: 1}]}, "the key None"), ({"a": object()}, "no JSON"), ({"a": {1, 2}}, "no JSON"),
     ({"a": nested(2000)}, "no JSON")],
)  # fmt: skip
def test_what_is_no_json_is_refused_and_nothing_is_written(tmp_path, body, got):
    # catches NaN in the log, which other readers of JSON refuse, and keys that change when read back
    ledger = filled(tmp_path / "ledger.jsonl", 1)
    before = ledger.path.read_bytes()
    with pytest.raises(InputError, match=got):
        ledger.append("event", body)
    assert ledger.path.read_bytes() == before


def test_canonical_has_one_spelling():
    # catches a spelling that depends on the order in which keys were set
    assert canonical({"b": 1, "a": [1.5, "ü"]}) == '{"a":[1.5,"\\u00fc"],"b":1}' == canonical({"a": [1.5, "ü"], "b": 1})


# -- tampering ------------------------------------------------------------------------------------------------------


def deleted(lines):
    return lines[:2] + lines[3:]


def moved(lines):
    return [lines[0], lines[2], lines[1], *lines[3:]]


def doubled(lines):
    return [*lines[:3], lines[2], *lines[3:]]


def edited(lines):
    return [*lines[:2], lines[2].replace(b'"number":2', b'"number":7'), *lines[3:]]


def redated(lines):
    return [*lines[:2], lines[2].replace(b"2026-01-31", b"2025-01-31"), *lines[3:]]


def rehashed(lines):
    line = json.loads(lines[2])
    line["body"]["number"] = 7
    core = {k: line[k] for k in ("n", "time", "kind", "body", "previous")}
    line["hash"] = hashlib.sha256(json.dumps(core, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return [*lines[:2], json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n", *lines[3:]]


def spaced(lines):
    return [*lines[:2], lines[2].replace(b'"kind":', b'"kind": '), *lines[3:]]


def key_twice(lines):
    return [*lines[:2], lines[2].replace(b'"number":2', b'"number":9,"number":2'), *lines[3:]]


def garbage(lines):
    return [*lines[:2], b"\xff\xfe not json\n", *lines[2:]]


def blank(lines):
    return [*lines[:2], b"\n", *lines[2:]]


def first_deleted(lines):
    return lines[1:]


def deep(lines):
    return [*lines[:2], b"[" * 100_000 + b"\n", *lines[2:]]


@pytest.mark.parametrize(
    ("tamper", "line"),
    [(deleted, 3), (moved, 2), (doubled, 4), (edited, 3), (redated, 3), (rehashed, 4), (spaced, 3), (key_twice, 3),
     (garbage, 3), (blank, 3), (first_deleted, 1), (deep, 3)],
)  # fmt: skip
def test_tampering_is_named_by_its_first_line(tmp_path, tamper, line):
    # catches each kind of forgery by itself; a body that is edited and hashed again breaks the line after it
    ledger = filled(tmp_path / "ledger.jsonl")
    ledger.path.write_bytes(b"".join(tamper(raw(ledger))))
    found = ledger.verify()
    assert not found.intact
    assert found.broken == line
    assert found.reason


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed_unseen(tmp_path_factory, data):
    # catches a field that the hash leaves out, and spellings that parse to the same value
    ledger = filled(tmp_path_factory.mktemp("l") / "ledger.jsonl", 3)
    content = bytearray(ledger.path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    ledger.path.write_bytes(bytes(content))
    assert not ledger.verify().intact


def test_truncation_needs_the_head_from_elsewhere(tmp_path):
    # catches a check that ignores the head, and documents that the file alone cannot tell
    ledger = filled(tmp_path / "ledger.jsonl")
    head = ledger.verify().head
    ledger.path.write_bytes(b"".join(raw(ledger)[:3]))
    assert ledger.verify().intact
    found = ledger.verify(head=head)
    assert (found.intact, found.broken) == (False, 4)
    assert "cut off" in found.reason


def test_an_older_head_stays_valid(tmp_path):
    # catches a check that accepts the newest head only: every receipt would turn red with the next line
    ledger = filled(tmp_path / "ledger.jsonl", 2)
    old = ledger.verify().head
    ledger.append("event", {})
    assert ledger.verify(head=old).intact


def test_a_forged_line_that_is_nested_deep_is_a_line_that_does_not_hold(tmp_path):
    # catches a check that a forger can crash: there are depths that can be read and not written
    ledger = filled(tmp_path / "ledger.jsonl", 2)
    before, line = (
        ledger.path.read_bytes(),
        ledger.lines()[1] | {"n": 3, "previous": ledger.lines()[1]["hash"], "body": {"a": 0}},
    )
    raw, reasons = json.dumps(line, sort_keys=True, separators=(",", ":")), set()
    for depth in range(700, 1000):
        ledger.path.write_bytes(
            before + raw.replace('{"a":0}', '{"a":' + "[" * depth + "]" * depth + "}").encode() + b"\n"
        )
        found = ledger.verify()
        assert found.broken == 3
        reasons.add(found.reason)
    assert len(reasons) == 2  # no line, and one that was edited


def test_a_chain_written_anew_is_caught_by_a_head_or_a_key(tmp_path):
    # catches trust in the chain alone, which a forger can compute
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    ledger = filled(tmp_path / "ledger.jsonl", key=key)
    head, lines = ledger.verify().head, ledger.lines()
    assert ledger.verify().signed
    lines[1]["body"]["number"] = 99
    ledger.path.write_bytes(rechain([{k: v for k, v in x.items() if k not in ("hash", "signature")} for x in lines]))
    assert Ledger(ledger.path).verify().intact
    assert not Ledger(ledger.path).verify(head=head).intact
    assert Ledger(ledger.path, key=key).verify().reason == "not signed"


def test_another_key_is_noticed(tmp_path):
    # catches a signature that is never compared
    keys = tmp_path / "a", tmp_path / "b"
    for key in keys:
        key.write_bytes(os.urandom(40))
    ledger = filled(tmp_path / "ledger.jsonl", key=keys[0])
    found = Ledger(ledger.path, key=keys[1]).verify()
    assert (found.broken, found.reason) == (1, "signed with another key")


def test_signed_and_unsigned_lines_do_not_mix(tmp_path):
    # catches a log whose newest lines nobody can vouch for
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    signed = filled(tmp_path / "signed.jsonl", 1, key=key)
    with pytest.raises(InputError, match="with signed lines") as caught:
        Ledger(signed.path).append("event", {})
    assert caught.value.todo == "pass the key, or begin another ledger"
    plain = filled(tmp_path / "plain.jsonl", 1)
    with pytest.raises(InputError, match="with unsigned lines"):
        Ledger(plain.path, key=key).append("event", {})


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_bad_key_is_refused(tmp_path, content):
    # catches an empty key file that signs with nothing
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(InputError, match="key file key") as caught:
        Ledger(tmp_path / "ledger.jsonl", key=tmp_path / "key")
    assert caught.value.accepted.endswith("32 bytes or more")


# -- crashes and two writers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_torn_line_is_reported_and_never_rewritten_in_silence(tmp_path, cut):
    # catches an append that glues a line to half of another, and one that drops the half without a word
    ledger = filled(tmp_path / "ledger.jsonl", 3)
    content = ledger.path.read_bytes()[:-cut]
    ledger.path.write_bytes(content)
    found = ledger.verify()
    assert (found.intact, found.broken) == (False, 3)
    assert found.torn == len(content.split(b"\n")[-1]) > 0
    with pytest.raises(InputError, match="torn line") as caught:
        ledger.append("event", {})
    assert caught.value.todo.startswith("run verify --mend")
    assert ledger.path.read_bytes() == content
    assert len(ledger.lines()) == 2


def test_mending_keeps_the_torn_bytes_and_says_so(tmp_path):
    # catches a repair that destroys evidence or leaves no trace in the log
    ledger = filled(tmp_path / "ledger.jsonl", 3)
    content = ledger.path.read_bytes()[:-10]
    ledger.path.write_bytes(content)
    line = ledger.mend()
    torn = content.split(b"\n")[-1]
    assert line["kind"] == "mended"
    assert line["body"] == {
        "bytes": len(torn),
        "sha256": hashlib.sha256(torn).hexdigest(),
        "kept": "ledger.jsonl.torn-3",
    }
    assert (tmp_path / "ledger.jsonl.torn-3").read_bytes() == torn
    assert ledger.verify().intact
    assert ledger.mend() is None


def test_mending_a_signed_ledger_without_its_key_changes_nothing(tmp_path):
    # catches a repair that takes the torn line out and only then finds that it cannot note it
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    ledger = filled(tmp_path / "ledger.jsonl", 3, key=key)
    content = ledger.path.read_bytes()[:-10]
    ledger.path.write_bytes(content)
    with pytest.raises(InputError, match="signed lines"):
        Ledger(ledger.path).mend()
    assert ledger.path.read_bytes() == content


@pytest.mark.parametrize("lines", [1, 3])
def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, monkeypatch, lines):
    # catches half a line, or the first of several, left behind by a write that failed
    ledger = filled(tmp_path / "ledger.jsonl", 2)
    before = ledger.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("upright.ledger.os.fsync", full)
    with pytest.raises(InputError) as caught:
        ledger.append_many("event", [{"number": 9}] * lines)
    assert caught.value.args == (
        "ledger.jsonl cannot be written to (No space left on device)", "a disk with room",
        "free some space, then run this again",
    )  # fmt: skip
    assert ledger.path.read_bytes() == before


def test_a_held_ledger_is_waited_for_and_then_refused(tmp_path):
    # catches a writer that ignores the lock
    ledger = filled(tmp_path / "ledger.jsonl", 1)
    with ledger._locked(), pytest.raises(InputError, match="another writer"):
        Ledger(ledger.path, wait=0.05).append("event", {})
    assert ledger.verify().lines == 1


def _write_some(path: str, who: int) -> None:
    ledger = Ledger(path, wait=60.0)
    for i in range(25):
        ledger.append("event", {"who": who, "i": i})


def test_two_processes_write_one_chain(tmp_path):
    # catches a race: two lines with one number, or a line over another
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_some, args=(str(path), who)) for who in range(2)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    ledger = Ledger(path)
    assert [one.exitcode for one in writers] == [0, 0]
    assert ledger.verify().intact
    assert sorted((x["body"]["who"], x["body"]["i"]) for x in ledger.lines()) == [
        (w, i) for w in (0, 1) for i in range(25)
    ]


def test_an_edited_last_line_takes_no_other(tmp_path):
    # catches a chain that goes on from a forged line
    ledger = filled(tmp_path / "ledger.jsonl", 2)
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b'"number":1', b'"number":8'))
    with pytest.raises(InputError, match="ends in a line that was edited"):
        ledger.append("event", {})


@pytest.mark.parametrize("forge", [lambda _: "0" * 64, lambda s: s[:-1] + ("0" if s[-1] != "0" else "1"), lambda _: "ü",
                                   lambda _: "\ud800", lambda _: None, lambda _: 7])  # fmt: skip
def test_a_forged_signature_at_the_end_takes_no_other(tmp_path, forge):
    # catches a chain that goes on from a line that somebody without the key wrote, signed by us from then on
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    ledger = filled(tmp_path / "ledger.jsonl", 2, key=key)
    lines = ledger.lines()
    lines[-1]["signature"] = forge(lines[-1]["signature"])
    ledger.path.write_bytes(b"".join((canonical(line) + "\n").encode() for line in lines))
    before = ledger.path.read_bytes()
    with pytest.raises(InputError, match="ends in a line signed with another key") as caught:
        ledger.append("event", {})
    assert "verify" in caught.value.todo
    assert ledger.path.read_bytes() == before
    assert ledger.verify().reason == "signed with another key"


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_no_line(tmp_path, number):
    # catches a line that is handed on with NaN in it, before anybody verifies
    ledger = filled(tmp_path / "ledger.jsonl", 1)
    ledger.append("event", {"a": 0.5})
    ledger.path.write_bytes(ledger.path.read_bytes().replace(b"0.5", number.encode()))
    with pytest.raises(InputError, match="line 2: no line of a ledger"):
        ledger.lines()
    assert ledger.verify().reason == "no line of a ledger"


def test_lines_refuse_what_is_no_line(tmp_path):
    # catches a reader that skips what it does not understand
    path = tmp_path / "ledger.jsonl"
    path.write_text("{}\n")
    with pytest.raises(InputError, match="line 1: no line of a ledger"):
        Ledger(path).lines()


def test_a_folder_is_no_ledger(tmp_path):
    # catches a traceback of the operating system in the place of three parts
    with pytest.raises(InputError, match="is a folder"):
        Ledger(tmp_path)
