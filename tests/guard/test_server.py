"""The server: bad input in exact words, tenants apart, decisions written down, streams that end as whole answers do."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from shutil import which

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_upstream import COPY, FREE, LET, PAGE, SUM, Upstream, pieces, post, running, sse
from upright.contract import InputError
from upright.guard import server
from upright.guard.decisions import STOPPED, Guard
from upright.guard.pages import draw_page, encode_page
from upright.guard.policy import Policy
from upright.guard.reading import Reader
from upright.guard.record import Full, Record, verify
from upright.guard.registry import Registry
from upright.guard.rights import Work
from upright.guard.server import Options, make_app, serve
from upright.ledger import Ledger

CHAT, HELLO = "/v1/chat/completions", {"model": "fake", "messages": [{"role": "user", "content": "Hello."}]}
LOAD = "load the picture yourself, and send it as a data: URL"


def asked(*texts, picture=None, **more):
    parts = [{"type": "text", "text": one} for one in texts]
    parts = [{"type": "image_url", "image_url": {"url": picture}}, *parts] if picture else parts
    return {"model": "fake", "messages": [{"role": "user", "content": parts}]} | more


def get(address, path, key=None):
    request = urllib.request.Request(address + path, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request) as found:
            return found.status, dict(found.headers), found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def message(found):
    error = json.loads(found[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return found[0], error["message"]


def said(found):
    """Return what a stream of a chat says, its reasons, and the words of its error."""
    text, reasons, errors = "", [], []
    for one in found[2].decode().split("\n\n"):
        if one.startswith("data: {"):
            event = json.loads(one[6:])
            errors += [event["error"]["message"]] if "error" in event else []
            for choice in event.get("choices", ()):
                text += choice["delta"].get("content") or ""
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    return text, reasons, errors


# -- bad input --------------------------------------------------------------------------------------------------------

OBJECT = "send one object as of the OpenAI interface"
BAD = {
    "over the cap": (b"x" * 5001, 413, "a body of more than 5,000 bytes; send less, or in parts"),
    "deep": (b"[" * 1500 + b"]" * 500, 400, f"JSON that is too deep; {OBJECT}"),
    "deep where it is written": (
        b'{"prompt": "Hello.", "messages": [{"role": "user", "content": "Hi."}], "a": '
        + b"[" * 500
        + b"]" * 500
        + b"}",
        400,
        f"JSON that is too deep; {OBJECT}",
    ),
    "no JSON": (b"{'a': 1}", 400, f"a body that is no JSON; {OBJECT}"),
    "no UTF-8": (b'{"a": "\xff"}', 400, f"a body that is no JSON; {OBJECT}"),
    "a list": (b"[]", 400, f"a body that is no JSON object; {OBJECT}"),
    "no messages": (
        {"model": "fake"},
        400,
        "a request without messages; accepted: messages as of the OpenAI interface; to do: see that the body has them",
    ),
    "no mapping": (
        {"messages": ["Hello."]},
        400,
        "messages[0] of type str; accepted: a mapping with role and content; "
        "to do: send messages as of the OpenAI chat interface",
    ),
    "too many choices": (HELLO | {"n": 1000}, 400, "n, which is no number from 1 to 128; send one"),
    "choices of no number": (HELLO | {"n": "2"}, 400, "n, which is no number from 1 to 128; send one"),
    "pictures": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}] * 101}]},
        400,
        "a request with more than 100 pictures; send it in parts",
    ),
    "remote picture": (
        asked(SUM, picture="https://example.org/a.png"),
        400,
        f"a picture at a https: address; accepted: data:image/...;base64,...: nothing is fetched; to do: {LOAD}",
    ),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Yield the address of a guard that takes little."""
    registry = Registry(tmp_path_factory.mktemp("small") / "registry.sqlite")
    options = Options(body=5000, timeout=0.5)
    with running(make_app(Guard(registry), "http://127.0.0.1:9/v1", options=options)) as address:
        yield address
    registry.close()


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_in_exact_words(small, name):
    # catches: a traceback, a status of our own fault for theirs
    body, status, words = BAD[name]
    assert message(post(small, CHAT, body)) == (status, words)


def test_a_body_without_a_length_is_counted_too(small):
    # catches: a cap that believes a header
    lines = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with closing(socket.create_connection(small.removeprefix("http://").split(":"))) as line:
        line.sendall(lines.encode() + b"3e8\r\n%b\r\n" % (b" " * 1000) * 6)
        assert b"413" in line.recv(100).split(b"\r\n")[0]


def test_compressed_and_slow_bodies(small):
    packed = post(small, CHAT, gzip.compress(b"{}"), {"content-encoding": "gzip"})
    assert message(packed) == (415, "a compressed body; send it as it is")
    lines = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{{"
    with closing(socket.create_connection(small.removeprefix("http://").split(":"))) as line:
        line.sendall(lines.encode())
        assert b"408" in line.recv(100).split(b"\r\n")[0]


def test_other_paths_and_methods(small):
    assert message(get(small, "/v1/embeddings")) == (404, "no such path or method here")
    assert message(get(small, CHAT)) == (405, "no such path or method here")
    assert message(post(small, CHAT, HELLO)) == (502, "the upstream cannot be reached, or broke off")


@pytest.mark.skipif(which("tesseract") is None, reason="the tesseract program is not installed")
def test_a_picture_that_cannot_be_read_is_refused_with_the_reason_or_passed(start, upstream):
    with Reader() as reader:
        body = asked(SUM, picture="data:image/png;base64,QUJDRA=")
        told = json.loads(post(start(eyes=None, reader=reader), CHAT, body)[2])
        assert told["choices"][0]["message"]["content"] == (
            "This request has a part that cannot be read (messages[0].content[0]), and unread parts are refused here. "
            "Found: a picture in malformed base64."
        )
        found = post(start(Policy(unread="pass"), eyes=None, reader=reader), CHAT, body)
        assert (found[1]["x-guard-decision"], upstream.seen) == ("allow", [body])


def test_an_upstream_is_an_http_address(tmp_path):
    with closing(Registry(tmp_path / "r.sqlite")) as registry:
        for given in ("ftp://a", "localhost:8000", "http://"):
            with pytest.raises(InputError) as error:
                make_app(Guard(registry), given)
            said = (f"the upstream {given!r}", "http://HOST or https://HOST", "name the server's address")
            assert error.value.args == said


def test_a_registry_of_a_benchmark_is_not_served(tmp_path):
    # catches: rights that were made up, in front of people
    with closing(Registry(tmp_path / "r.sqlite", bundled=True)) as registry:
        with pytest.raises(InputError) as error:
            serve(make_app(Guard(registry), "http://127.0.0.1:9"), Options())
        assert error.value.args[:2] == (
            "a registry of a benchmark, whose rights are made up",
            "a registry of your own",
        )


# -- the upstream -----------------------------------------------------------------------------------------------------


def test_answers_of_the_upstream_that_are_not_understood(start, upstream):
    # catches: a bad answer that is passed on, a redirect that is followed
    address, words = start(), "an answer of the upstream that is not understood"
    for body in (
        b"<html>",
        b"[]",
        {"choices": []},
        {"choices": [{"index": "0", "message": {"content": PAGE}}]},
        {"output": PAGE},
    ):
        upstream.body = body
        assert message(post(address, CHAT, HELLO)) == (502, words)
    for status in (500, 503, 302):
        upstream.status = status
        assert message(post(address, CHAT, HELLO)) == (502, f"the upstream answered {status}")
    upstream.status, upstream.kind = 200, "text/html"
    found = message(post(address, CHAT, HELLO | {"stream": True}))
    assert found == (502, "an answer of the upstream that is no stream of events")


def test_a_silent_upstream(start, upstream):
    options = Options(timeout=0.3)
    address, upstream.body = start(options=options), 5.0
    assert message(post(address, CHAT, HELLO)) == (504, "the upstream is silent")
    upstream.chunks = [*upstream.chunks[:3], 5.0]
    text, reasons, errors = said(post(address, CHAT, HELLO | {"stream": True}))
    assert (text, reasons, errors) == (FREE[:21], [], ["the upstream is silent"])
    assert upstream.closed.wait(5)


BROKEN = {
    "breaks off": ([], "the upstream broke off in the middle of its answer"),
    "no JSON": ([b"data: {\n\n"], "the upstream failed in the middle of its answer"),
    "an error": (sse([{"error": {"message": PAGE}}]), "the upstream failed in the middle of its answer"),
    "a list": (sse([[PAGE]]), "the upstream failed in the middle of its answer"),
    "no end of a line": ([b"x" * 100_000] * 100, "an answer of the upstream that is too long"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_goes_wrong_ends_in_an_error(start, upstream, name):
    # catches: a stream that ends as if it were whole
    more, words = BROKEN[name]
    upstream.chunks = [*upstream.chunks[:3], *more]
    text, reasons, errors = said(post(start(), CHAT, HELLO | {"stream": True}))
    assert (text, reasons, errors) == (FREE[:21], [], [words])


def test_lines_of_a_stream_may_be_cut_and_end_in_any_way(start, upstream):
    # catches: events that are taken for chunks of the network
    raw = b": wait\r\n\r\n" + b"".join(upstream.chunks).replace(b"\n", b"\r\n").replace(b"data: ", b"data:")
    upstream.chunks = [raw[i : i + 11] for i in range(0, len(raw), 11)]
    assert said(post(start(), CHAT, HELLO | {"stream": True})) == (FREE, ["stop"], [])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_unpacks_without_end_is_cut(start, upstream, stream):
    # catches: an answer of 40 kB that fills the memory
    packed = gzip.compress(b"data: " + b" " * (40 << 20))
    upstream.body, upstream.chunks, upstream.more = packed, [packed], {"content-encoding": "gzip"}
    address = start(options=Options(most_upstream=1 << 20))
    tracemalloc.start()
    found = post(address, CHAT, HELLO | {"stream": stream})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    words = said(found)[2] if stream else [message(found)[1]]
    assert words == ["an answer of the upstream that is too long"]
    assert most < 20 << 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_closes_the_upstream(start, upstream, stream):
    # catches: an answer that is paid for and read by nobody
    upstream.body, upstream.chunks = 30.0, [*upstream.chunks[:3], 30.0]
    address, body = start(), json.dumps(HELLO | {"stream": stream})
    lines = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    with closing(socket.create_connection(address.removeprefix("http://").split(":"))) as line:
        line.sendall(lines.encode())
        while not upstream.seen:
            time.sleep(0.01)
        if stream:
            assert line.recv(1000)
    assert upstream.closed.wait(10)


def test_a_client_that_reads_slowly_holds_up_itself_and_the_upstream_alone(start, upstream):
    # catches: an answer that is heaped up for whoever does not take it, one that is cut short, a guard that waits
    usage = {f"{'x' * 100}{i}": i for i in range(200)}
    many = sse([{"object": "chat.completion.chunk", "choices": [], "usage": usage}], done=False) * 1500  # 33 MB
    upstream.chunks, sent = [*upstream.chunks[:3], *many, *upstream.chunks[3:]], []
    upstream.stream = lambda stream=upstream.stream: counted(stream(), sent)
    address, body = start(), json.dumps(HELLO | {"stream": True})
    lines = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    with closing(socket.create_connection(address.removeprefix("http://").split(":"))) as line:
        line.sendall(lines.encode())
        assert line.recv(100).startswith(b"HTTP/1.1 200 ")
        before = -1
        while len(sent) > before:
            before = len(sent)
            time.sleep(0.3)
        assert len(sent) < len(many)
        assert get(address, "/healthz")[0] == 200
        raw = b""
        while not raw.endswith(b"0\r\n\r\n"):
            raw = raw[-(1 << 14) :] + line.recv(1 << 16)
    assert len(sent) == len(upstream.chunks)
    assert raw.endswith(b'"finish_reason":"stop"}]}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n')


async def counted(pieces, seen):
    async for one in pieces:
        seen.append(len(one))
        yield one


def test_a_stream_that_is_stopped_closes_the_upstream(start, upstream):
    upstream.says(PAGE)
    upstream.chunks = [*upstream.chunks[:-2], 30.0]
    assert said(post(start(), CHAT, HELLO | {"stream": True})) == (LET + STOPPED, ["content_filter"], [])
    assert upstream.closed.wait(10)


# -- pictures at addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [
    *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1", "::"),
    *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "2002:7f00:1::", "fc00::1", "fe80::1%eth0"),
])  # fmt: skip
def test_addresses_that_are_not_public(address):
    # catches: an inner address in the clothes of another kind
    assert not server._is_public(address)
    assert server._is_public("93.184.216.34")
    assert server._is_public("2606:2800:220:1::1")


def test_pictures_are_fetched_from_allowed_hosts_alone_and_sent_on_as_data(start, upstream, monkeypatch):
    # catches: a picture that is fetched twice, so that the model sees another one; a redirect to an inner address
    upstream.picture, port = b"\x89PNG", upstream.address.rpartition(":")[2]
    address = start(options=Options(allow=("localhost", "127.0.0.1")), eyes=lambda url: PAGE if "data:" in url else "")
    words = f"a picture that cannot be fetched; accepted: one at a public address of an allowed host; to do: {LOAD}"
    for host in ("localhost", "127.0.0.1"):
        body = asked(COPY, picture=f"http://{host}:{port}/page.png")
        assert message(post(address, CHAT, body)) == (400, words)
    monkeypatch.setattr(server, "_is_public", lambda address: True)
    assert post(address, CHAT, body)[1]["x-guard-decision"] == "transform"
    sent = upstream.seen[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert sent == f"data:image/png;base64,{base64.b64encode(upstream.picture).decode()}"
    for path in ("redirect.png", "nothing.png"):
        body = asked(COPY, picture=f"http://localhost:{port}/{path}")
        assert message(post(address, CHAT, body)) == (400, words)
    for url in (f"http://a@localhost:{port}/page.png", f"http://127.0.0.2:{port}/page.png", "ftp://localhost/a.png"):
        assert message(post(address, CHAT, asked(COPY, picture=url)))[1].startswith("a picture at a ")


# -- tenants ----------------------------------------------------------------------------------------------------------

KEYS = {hashlib.sha256(one.encode()).hexdigest(): Policy(tenant=one) for one in ("press", "school")}


def keyed(address, key, body=HELLO):
    return post(address, CHAT, body, {"authorization": f"Bearer {key}"})


def test_the_owner_may_copy_and_others_may_not(start, upstream):
    # catches: a tenant that is named by a header, keys that change places
    upstream.says(PAGE)
    address = start(Policy(tenants=KEYS))
    owner, other, nobody = (keyed(address, one, asked(PAGE, COPY)) for one in ("press", "school", "x"))
    assert [one[1]["x-guard-decision"] for one in (owner, other, nobody)] == ["allow", "transform", "refuse"]
    told = [json.loads(one[2])["choices"][0]["message"]["content"] for one in (owner, other)]
    assert told == [PAGE, LET + STOPPED]
    assert message(keyed(start(Policy(tenants=KEYS, unknown_key="refuse")), "x")) == (401, "a key that no tenant has")


def test_decisions_are_explained_to_whom_they_were_made(start, monkeypatch):
    # catches: ids that can be guessed, explanations of others, memory without end
    monkeypatch.setattr(server, "_KEPT", 3)
    address = start(Policy(tenants=KEYS))
    id = keyed(address, "school", asked(PAGE, COPY))[1]["x-guard-id"]
    assert re.fullmatch("[0-9a-f]{32}", id)
    status, _, body = get(address, f"/guard/explain/{id}", "school")
    why = "This is a registered work (The Bell): to copy it is not permitted here. A summary or answers about it are."
    assert (status, json.loads(body)) == (200, {
        **{"id": id, "endpoint": "chat/completions", "action": "transform", "rule": "protected/copy", "use": "copy"},
        **{"work": 0, "stopped": 0, "unread": [], "why": why},
    })  # fmt: skip
    for key in ("press", "x", None):
        found = message(get(address, f"/guard/explain/{id}", key))
        assert found == (404, "no decision of this id, or one of another key")
    for _ in range(3):
        keyed(address, "press")
    assert get(address, f"/guard/explain/{id}", "school")[0] == 404


class Counted:
    """A reader that counts."""

    def __init__(self):
        self.seen = []

    def read(self, data, whose=""):
        self.seen.append((data, whose))
        return PAGE


def test_readings_are_kept_by_key(start):
    # catches: a tenant that sees by the time it takes whether another has sent a picture
    reader, body = Counted(), asked(SUM, picture="data:image/png;base64,QUJD")
    address = start(Policy(tenants=KEYS), reader=reader)
    for key in ("press", "school", "a", "b"):
        keyed(address, key, body)
    assert len({whose for _, whose in reader.seen}) == 4


def test_metrics_count_and_name_nobody(start, upstream):
    upstream.says(PAGE)
    address = start(Policy(tenants=KEYS))
    keyed(address, "school", asked(PAGE, COPY))
    keyed(address, "x", asked(PAGE, COPY))
    assert get(address, "/metrics")[2].decode() == (
        'guard_decision_total{of="chat/completions refuse"} 1\n'
        'guard_decision_total{of="chat/completions transform"} 1\n'
        'guard_stopped_total{of="chat/completions transform"} 1\n'
    )


def test_names_of_works_reach_no_header(start):
    # catches: a title or a holder that writes headers, or events, of its own
    odd = "The Bell\r\nx-evil: 1\r\n\r\ndata: evil"
    for work in (Work(0, odd), Work(0, "", odd), Work(0, owner=odd), Work(0, licence=odd), Work(0, authors=(odd,))):
        with pytest.raises(InputError) as error:
            start.registry.add(work, None)
        assert error.value.args == ("a work with the character U+000D", "what prints", "take it out")
    start.registry._run("UPDATE guard_works SET title = ?, holder = ?", odd, odd)  # by another program
    address, copies = start(), f"{COPY}\n{PAGE}"
    why = f"This is a registered work ({odd}): to copy it is not permitted here. A summary or answers about it are."
    bodies = {
        CHAT: {"messages": [{"role": "user", "content": copies}]},
        "/v1/completions": {"prompt": copies},
        "/v1/responses": {"input": copies},
        "/beta/litellm_basic_guardrail_api": {"input_type": "request", "texts": [copies]},
    }
    plain = {"date", "server", "content-type", "content-length", "cache-control", "x-accel-buffering"}
    for (path, body), stream in itertools.product(bodies.items(), (False, True)):
        status, headers, raw = post(address, path, body | {"stream": stream})
        told = [headers.pop(f"x-guard-{one}") for one in ("decision", "rule", "work")]
        assert (status, told) == (200, ["refuse", "protected/copy", "0"])
        assert re.fullmatch("[0-9a-f]{32}", id := headers.pop("x-guard-id"))
        assert set(headers) <= plain
        assert json.dumps(why)[1:-1].encode() in raw
        assert not re.search(rb"^(x-evil|data: evil)", raw, re.MULTILINE)
        assert json.loads(get(address, f"/guard/explain/{id}")[2])["why"] == why


# -- the record -------------------------------------------------------------------------------------------------------


def lines(folder):
    return [json.loads(one) for path in sorted(folder.glob("guard-*.jsonl")) for one in path.read_text().splitlines()]


@pytest.mark.parametrize("audit", ["before", "behind"])
@pytest.mark.parametrize("stream", [False, True])
def test_decisions_and_stops_are_written_down_without_a_word_of_anybody(start, upstream, tmp_path, audit, stream):
    # catches: text, keys or names of fields in the record; a stop that is not told; an answer before the fsync
    upstream.says(PAGE)
    secret = {"type": "text", "text": SUM, "secretword": "x"}
    body = {"model": "fake", "stream": stream, "messages": [
        {"role": "user", "content": [{"type": "secretkind"}, secret], "secretfield": {"a": 1}}
    ]}  # fmt: skip
    with Record(tmp_path / "record", every=0.2) as record:
        keys = {one: Policy(tenant=own.tenant, unread="pass", audit=audit) for one, own in KEYS.items()}
        address = start(Policy(tenants=keys), record=record)
        headers = keyed(address, "school", body)[1]
        if audit == "before":
            assert len([one for one in lines(tmp_path / "record") if one["kind"] == "decision"]) == 2
        keyed(address, "press", body)
    assert all(one.intact for _, one in verify(tmp_path / "record"))
    told = [one["body"] for one in lines(tmp_path / "record") if one["kind"] == "decision"]
    assert told[0].pop("id") == told[1].pop("id") == headers["x-guard-id"]
    tenant, digest = told[0].pop("tenant"), told[0].pop("input")
    assert told[0] == {
        **{"endpoint": "chat/completions", "action": "allow", "rule": "allow", "use": "summary", "work": None},
        **{"stopped": 0, "unread": ["messages[0].content[0]", "messages[0]"]},
    }
    assert told[1] == {"tenant": tenant, "stopped": 26}
    assert told[2]["action"] == "allow"
    assert (told[2]["tenant"] != tenant, told[2]["input"] != digest) == (True, True)
    assert len(told) == 3  # the owner's is not stopped
    whole = "".join(path.read_text() for path in (tmp_path / "record").glob("*.jsonl"))
    for word in ("secret", "sentence", "school", "Harrow", "127.0.0.1"):
        assert word not in whole


def test_a_full_record_refuses(start):
    class Filled:
        def digest(self, tenant, text):
            return "0"

        def write(self, body, *, wait=True):
            raise Full("a record with 5 lines that wait for the disk", "fewer", "try again later")

    words = "a record with 5 lines that wait for the disk; accepted: fewer; to do: try again later"
    assert message(post(start(record=Filled()), CHAT, HELLO)) == (503, words)


def test_a_record_that_waits_for_its_disk_holds_up_only_those_it_writes_down(start, tmp_path, monkeypatch):
    # catches: a full queue that is waited for where every request is answered; a line that is lost on the way
    disk, written, put = threading.Event(), [], Ledger.append_many

    def slow(self, kind, bodies):
        disk.wait(10)
        written.append(kind)
        return put(self, kind, bodies)

    with Record(tmp_path / "record", most=1) as record, ThreadPoolExecutor(4) as pool:
        address = start(record=record)
        monkeypatch.setattr(Ledger, "append_many", slow)
        waiting = [pool.submit(post, address, CHAT, HELLO) for _ in range(4)]  # one on disk, one queued, two wait
        try:
            while b'guard_decision_total{of="chat/completions allow"} 4' not in get(address, "/metrics")[2]:
                time.sleep(0.01)
            assert get(address, "/healthz")[2] == b'{"status":"ok"}'
            assert written == []
            assert sum(one.done() for one in waiting) <= 2
        finally:
            disk.set()
        assert [one.result()[0] for one in waiting] == [200] * 4
    assert len([one for one in lines(tmp_path / "record") if one["kind"] == "decision"]) == 4


# -- what is let through ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Yield an upstream, and a call that asks the guard before it, streamed or not."""
    upstream, registry = Upstream(), Registry(tmp_path_factory.mktemp("both") / "registry.sqlite")
    registry.add(Work(0, declared="protected"), PAGE)
    with running(upstream.app) as to, running(make_app(Guard(registry), to)) as address:
        yield upstream, lambda **more: post(address, CHAT, HELLO | more)
    registry.close()


odd = ("Tür", "日本", "\u200b", "\n\n", "…")
words = st.lists(st.sampled_from([*FREE.split()[:12], *odd]), max_size=12).map(" ".join)
runs = st.tuples(st.integers(0, 60), st.integers(1, 40)).map(lambda at: " ".join(PAGE.split()[at[0] : at[0] + at[1]]))
texts = st.lists(st.one_of(words, runs), max_size=5).map(" - ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3), st.integers(1, 40))
def test_streams_decide_as_whole_answers_do_and_let_a_beginning_through(both, given, size):
    # catches: choices that share a stream, chunks that matter, a check after release
    upstream, ask = both
    upstream.says(*given, size=size)
    told = json.loads(ask(n=len(given))[2])["choices"]
    whole = {one["index"]: (one["message"]["content"], one["finish_reason"]) for one in told}
    streamed = {i: ["", None] for i in range(len(given))}
    for one in ask(n=len(given), stream=True)[2].decode().split("\n\n"):
        for choice in json.loads(one[6:])["choices"] if one.startswith("data: {") else ():
            streamed[choice["index"]][0] += choice["delta"].get("content") or ""
            streamed[choice["index"]][1] = choice["finish_reason"] or streamed[choice["index"]][1]
    assert {i: tuple(one) for i, one in streamed.items()} == whole
    for i, text in enumerate(given):
        out, reason = whole[i]
        assert (out == text and reason == "stop") or (
            reason == "content_filter" and out.endswith(STOPPED) and text.startswith(out.removesuffix(STOPPED))
        )


def test_earlier_turns_count(both):
    # catches: "go on" that buys a second run
    upstream, ask = both
    upstream.says(PAGE[len(LET) :])
    earlier = [{"role": "assistant", "content": LET}, {"role": "user", "content": "Go on."}]
    text, reasons, _ = said(ask(messages=HELLO["messages"] + earlier, stream=True))
    assert (text, reasons) == (STOPPED, ["content_filter"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_at_hand_answers_in_all_shapes(start, stream):
    # catches: an answer that goes out unbounded because no upstream was asked
    async def model(body):
        for one in pieces(PAGE if "tale" in str(body) else FREE):
            yield one

    address = start(to=model)
    bodies = {
        "chat/completions": {"messages": [{"role": "user", "content": "A tale."}], "n": 2},
        "completions": {"prompt": "A tale."},
        "responses": {"input": "A tale."},
    }
    for path, body in bodies.items():
        _, _, raw = post(address, f"/v1/{path}", body | {"model": "m", "stream": stream})
        assert raw.count(STOPPED.strip().encode()) >= (2 if path == "chat/completions" else 1)
        assert b"counted the strokes" not in raw.replace(b"\\n", b"")
        free = json.loads(json.dumps(body).replace("A tale.", "Hello."))
        _, _, raw = post(address, f"/v1/{path}", free | {"model": "m", "stream": stream})
        assert STOPPED.strip().encode() not in raw
        assert stream or FREE.encode() in raw
    assert json.loads(get(address, "/v1/models")[2])["data"][0]["id"] == "local"


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_a_work_that_is_added_is_taken_over_beside_the_requests(start, upstream):
    # catches: a registry that is read once
    address, text = start(), PAGE.replace("carts", "boats")[::-1]
    assert post(address, CHAT, asked(text, COPY))[1]["x-guard-decision"] == "allow"
    start.registry.add(Work(0, declared="protected"), text)
    end = time.monotonic() + 5
    while post(address, CHAT, asked(text, COPY))[1]["x-guard-decision"] == "allow":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_page_runs_its_own_script_alone_and_puts_text_in_as_text(start):
    # catches: a policy that its script does not fit, a foreign resource, an answer that becomes a page
    _, headers, body = get(start(), "/guard/")
    text, policy = body.decode(), headers["content-security-policy"]
    for tag in ("script", "style"):
        inner = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert text.count(f"<{tag}") == 1
    assert policy.startswith("default-src 'none'; connect-src 'self'; img-src data:;")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|innerHTML|insertAdjacent|document\.write|eval\(| on\w+=| style=", text)


CHROMIUM = "/usr/bin/chromium"


@pytest.mark.browser
@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"no browser at {CHROMIUM}")
def test_the_page_asks_about_a_picture_in_a_browser(start, upstream, tmp_path):
    # catches: a script that its own policy forbids, an answer that becomes part of the page
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    upstream.says(f"<b>Bold</b> {PAGE}")
    picture = tmp_path / "page.png"
    picture.write_bytes(encode_page(draw_page(PAGE)))
    wrong = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda one: wrong.append(one.text))
        page.on("pageerror", lambda one: wrong.append(str(one)))
        page.goto(f"{start()}/guard/")
        page.set_input_files("#file", picture)
        page.locator("#picture[src]").wait_for()
        page.click("#ask")
        page.locator("#why:not(:empty)").wait_for()
        answer, why = page.text_content("#answer"), page.text_content("#why")
        bold = page.locator("#answer b").count()
        browser.close()
    assert (answer, bold) == (f"<b>Bold</b> {LET}{STOPPED}", 0)
    assert why.startswith("Decision: transform by protected/copy, work 0.")
    assert not [one for one in wrong if "404" not in one and not one.startswith("[DOM]")]  # no icon; advice
    sent = upstream.seen[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert base64.b64decode(sent.partition(",")[2]) == picture.read_bytes()


START = """
import sys, threading, time, urllib.request
from pathlib import Path
import uvicorn
from upright.guard.decisions import Guard
from upright.guard.registry import Registry
from upright.guard.server import make_app
registry = Registry(Path(sys.argv[1]))
app = make_app(Guard(registry), "http://127.0.0.1:9")
server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_level="error"))
thread = threading.Thread(target=server.run)
thread.start()
while not server.started:
    time.sleep(0.01)
address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
print(urllib.request.urlopen(address + "/healthz").read().decode())
server.should_exit = True
thread.join()
print(sorted({"torch", "polars", "pyarrow", "scipy", "sklearn", "pandas", "matplotlib"} & set(sys.modules)))
"""


def test_the_server_starts_without_heavy_packages(tmp_path):
    # catches: an import that makes the start slow
    call = [sys.executable, "-c", START, str(tmp_path / "r")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ('{"status":"ok"}\n[]\n', "")


def test_an_answer_that_was_stopped_is_explained_by_its_stop(start, upstream):
    # catches: "Allowed." as the reason of an answer that ends in the middle
    upstream.says(PAGE)
    address = start()
    _, headers, body = post(address, CHAT, asked(PAGE, SUM))
    assert STOPPED.strip() in json.loads(body)["choices"][0]["message"]["content"]
    found = json.loads(get(address, f"/guard/explain/{headers['x-guard-id']}")[2])
    assert (found["action"], found["stopped"] > 25, found["why"]) == ("allow", True, STOPPED.strip())


def test_what_nobody_foresaw_is_logged_by_its_place_and_without_a_word_of_the_client(start, monkeypatch, caplog):
    # catches: a failure that leaves no trace, or one whose trace holds what a user wrote
    def broken(self, *args, **more):
        raise ValueError(f"about {SUM}")

    monkeypatch.setattr(Guard, "decide", broken)
    status, _, body = post(start(), CHAT, asked(PAGE, SUM))
    assert (status, json.loads(body)["error"]["message"]) == (500, "the guard failed")
    told = [one.getMessage() for one in caplog.records if one.name == "upright.guard.server"]
    assert len(told) == 1
    assert re.fullmatch(r"ValueError at test_server\.py:\d+", told[0])
    assert SUM not in caplog.text
