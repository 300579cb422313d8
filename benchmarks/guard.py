"""What the guard costs beside a server that passes all through, and what its index and its benchmark cost.

    python benchmarks/guard.py [--only PART ...] [--repeats N] [--small] [--litellm PROGRAM]

=====================  ==================================================================  =======  =========
name                   what                                                                bar      before
=====================  ==================================================================  =======  =========
``text``               a question of 50 words, an answer of 50: CPU over pass-through's    <= 1.5   1.11
``text ms``            CPU ms a request that it costs more                                 <= 1     0.15
``text bare ms``       ``text ms`` without a record of the decisions
``page ms``            ``text ms`` of a question and an answer of 250 words
``flight``             requests a second, 50 in flight, over pass-through's                >= 0.6
``stream``             answers of 100 chunks, 10,000 works: CPU over pass-through's        <= 2.5
``stream ms``          CPU ms a chunk that it costs more                                   <= 0.06
``stream large``       ``stream`` with 100,000 works
``stream large ms``    ``stream ms`` with 100,000 works
``picture ms``         CPU ms more of a request with a picture that was read before        <= 3
``memory``             resident after 20,000 requests over that after 2,000                <= 1.05
``memory MB``          the latter
``lookup ms``          CPU ms to find the work of a page of 250 words among 100,000 works  <= 1.5   0.6
``build s``            CPU seconds to make that index, from texts to its file              <= 60
``file MB``            the file                                                            <= 800   752
``sqlite``             an indexed SQLite table of the same rows over it, 10,000 works      >= 5     8
``sqlite key``         the same, the rows in order of their key
``canonical s``        CPU seconds to write the benchmark                                  <= 60    15
``canonical MB``       resident                                                            <= 400
``canonical disk MB``  on disk                                                             <= 40    18
``litellm ms``         CPU ms of a ``text`` request in LiteLLM's proxy, without a guard
``llm guard ms``       the same in a pass-through that asks LLM Guard's cheapest scanners
=====================  ==================================================================  =======  =========

Servers are processes of their own under uvicorn, before one upstream with fixed answers; a chunk of a stream comes 2 ms
after the one before. Their CPU is that of all their threads. The guard holds 10,000 works, keeps a record, and asks its
registry for changes, as when it is served. What is compared is interleaved, and medians of pairs are printed.

Works have 1,000 words, drawn one by one, each as often as in the poems of the benchmark, whose words have 4.2 letters:
94 million fingerprints in 100,000 works. Chains of words, as `more_works` draws them, would repeat the phrases of a few
pages thousands of times, as no library does. Questions and answers are poems. A lookup goes from a page to its work and
compares letters; SQLite gives the candidates alone, for given fingerprints, and is asked for them all at once or one by
one, whichever is faster. Lines without their program are named as not measured. Exit status 1 where a bar is missed;
with ``--small`` all parts run at a tenth of their size, without bars.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib.util
import itertools
import json
import os
import resource
import secrets
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from upright.contract import stream
from upright.guard import benchmark, server
from upright.guard.decisions import Guard
from upright.guard.passages import BITS, Fingerprints, Index, fingerprints, matches, normalise
from upright.guard.reading import Reader, default_engine
from upright.guard.record import Record
from upright.guard.registry import Registry
from upright.guard.rights import Work

AT_MOST = {
    "text": 1.5, "text ms": 1.0, "stream": 2.5, "stream ms": 0.06, "picture ms": 3.0, "memory": 1.05, "lookup ms": 1.5,
    "build s": 60.0, "file MB": 800.0, "canonical s": 60.0, "canonical MB": 400.0, "canonical disk MB": 40.0,
}  # fmt: skip
AT_LEAST = {"flight": 0.6, "sqlite": 5.0}
PRINTED = (
    "text bare ms", "page ms", "stream large", "stream large ms", "memory MB", "sqlite key", "litellm ms",
    "llm guard ms",
)  # fmt: skip
PATH, CHUNKS = "/v1/chat/completions", 100
TYPE = {"content-type": "application/json"}


def poems() -> list[str]:
    """Return the words of the poems of the benchmark."""
    return [word for page in benchmark.pages() if page.material == "poem" for word in page.text.split()]


def texts(n: int) -> Iterator[str]:
    """Yield works of 1,000 words."""
    words, draw = poems(), np.random.default_rng(stream(0, "works of words"))
    for _ in range(n):
        yield " ".join([words[i] for i in draw.integers(len(words), size=1000).tolist()])


def numbered(n: int, kept: dict[int, str], drawn: list[float]) -> Iterator[tuple[int, Fingerprints]]:
    """Yield works with their fingerprints; keep some texts, and the CPU seconds it took to draw them all."""
    made = texts(n)
    for i in range(n):
        start = time.process_time()
        text = next(made)
        drawn.append(time.process_time() - start)
        if i % max(1, n // 200) == 0:
            kept[i] = text
        yield i, fingerprints(normalise(text))


def page_of(text: str, i: int) -> str:
    start = 37 * i % 750
    return " ".join(text.split()[start : start + 250])


# -- servers, each a process of its own -------------------------------------------------------------------------------


def upstream_app() -> Starlette:
    """Return a server that answers with the beginning of a poem: 50 words, or 250 to the model "long"."""
    words = poems()

    def said(kind: str, name: str, what: dict[str, str], reason: str | None, **more: Any) -> bytes:
        choice = {"index": 0, name: what, "logprobs": None, "finish_reason": reason}
        head = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "fake"}
        return orjson.dumps({**head, "choices": [choice], **more})

    def whole(n: int) -> bytes:
        usage, message = dict.fromkeys(("prompt_tokens", "completion_tokens"), n), {"content": " ".join(words[:n])}
        return said("chat.completion", "message", {"role": "assistant"} | message, "stop", usage=usage)

    def event(delta: dict[str, str], reason: str | None = None) -> bytes:
        return b"data: %b\n\n" % said("chat.completion.chunk", "delta", delta, reason)

    answers = {"short": whole(50), "long": whole(250)}
    events = [event({"content": f"{word} "}) for word in words[:CHUNKS]]

    async def chunks() -> AsyncIterator[bytes]:
        for one in events:
            yield one
            await asyncio.sleep(0.002)
        yield event({}, "stop") + b"data: [DONE]\n\n"

    async def chat(request: Request) -> Response:
        body = orjson.loads(await request.body())
        if body.get("stream"):
            return StreamingResponse(chunks(), media_type="text/event-stream")
        return Response(answers[body["model"]], media_type="application/json")

    return with_health(chat)


def with_health(chat: Any) -> Starlette:
    return Starlette(routes=[Route(PATH, chat, methods=["POST"]), Route("/healthz", lambda request: Response(b""))])


def plain_app(upstream: str, look: Callable[[bytes], Any] = len) -> Starlette:
    """Return a server that passes all through; `look` is shown each request and each whole answer."""
    held: list[aiohttp.ClientSession] = []

    async def passed(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async with answer:
            async for piece in answer.content.iter_any():
                yield piece

    async def chat(request: Request) -> Response:
        if not held:
            held.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1000)))
        body = await request.body()
        look(body)
        answer = await held[0].post(upstream + PATH, data=body, headers=TYPE)
        if answer.content_type == "text/event-stream":
            return StreamingResponse(passed(answer), media_type="text/event-stream")
        async with answer:
            data = await answer.read()
        look(data)
        return Response(data, answer.status, media_type="application/json")

    return with_health(chat)


def scanning() -> Callable[[bytes], Any]:
    """Return LLM Guard's look at a text; of its scanners one that needs no model."""
    from llm_guard import input_scanners, scan_prompt

    scanners = [input_scanners.BanSubstrings(["All rights reserved", "Copyright"])]
    return lambda data: scan_prompt(scanners, data.decode())


def run_server(role: str, port: int, upstream: str, folder: Path) -> None:
    if role.startswith("guard"):
        options = server.Options(port=port)
        with ExitStack() as stack:
            record = stack.enter_context(Record(folder / "record")) if role == "guard" else None
            reader = stack.enter_context(Reader()) if default_engine() else None
            guard = Guard(Registry(folder / "registry.db"))
            server.serve(server.make_app(guard, upstream, record=record, reader=reader, options=options), options)
        return
    app = upstream_app() if role == "upstream" else plain_app(upstream, scanning() if role == "llm guard" else len)
    how: dict[str, Any] = {"loop": "uvloop", "http": "httptools", "ws": "none", "access_log": False}
    uvicorn.run(app, host="127.0.0.1", port=port, server_header=False, **how)


class Running(NamedTuple):
    """A server: its address, the number of its process, and what stands at the head of a request."""

    url: str
    pid: int
    head: dict[str, str]

    def cpu(self) -> float:
        """Return CPU seconds, by the clock that Linux keeps of another process."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def resident(self) -> float:
        """Return MB."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def running(role: str, folder: Path, upstream: str = "", program: str = "") -> Iterator[Running]:
    """Start a server, wait until it answers, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words, path = [sys.executable, __file__, "--role", role, port, upstream, str(folder)], "/healthz"
    head, keys = TYPE, dict[str, str]()
    if program:
        keys = {"OPENAI_API_KEY": "none", "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(16)}"}  # it insists on one
        head = TYPE | {"authorization": f"Bearer {keys['LITELLM_MASTER_KEY']}"}
        words, path = [program, "--host", "127.0.0.1", "--port", port, "--num_workers", "1"], "/health/liveliness"
        words += ["--model", "openai/short", "--api_base", f"{upstream}/v1"]
    log, url = folder / f"{role}.log", f"http://127.0.0.1:{port}"
    with log.open("wb") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, env=os.environ | keys)
    try:
        while True:
            with suppress(OSError):
                urllib.request.urlopen(url + path, timeout=5).close()
                break
            if process.poll() is not None:
                raise RuntimeError(f"{role} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield Running(url, process.pid, head)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def served(size: int, *roles: str, litellm: str | None = None) -> Iterator[dict[str, Running]]:
    """Start an upstream and servers before it; those that guard hold so many works."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder, made = Path(place), texts(size)
        with closing(Registry(folder / "registry.db")) as registry:
            while some := list(itertools.islice(made, 2000)):
                registry.add_many((Work(0, "Made work", "Example Holder", declared="protected"), one) for one in some)
        upstream = stack.enter_context(running("upstream", folder)).url
        held = {role: stack.enter_context(running(role, folder, upstream)) for role in roles}
        if litellm:
            held["litellm"] = stack.enter_context(running("litellm", folder, upstream, litellm))
        yield held


# -- load -------------------------------------------------------------------------------------------------------------


def bodies(n: int, words: int, model: str = "short", picture: str = "", **more: Any) -> Iterator[bytes]:
    """Yield n requests, no two alike but for their picture."""
    page = " ".join(poems()[1000 : 996 + words])
    for i in range(n):
        text: Any = f"What of number {i}? {page}"
        if picture:
            text = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
        yield orjson.dumps({"model": model, "messages": [{"role": "user", "content": text}]} | more)


def load(target: Running, asked: Iterator[bytes], flight: int) -> tuple[float, float]:
    """Send requests, some at once, and see that each is answered whole; return the server's CPU and the time, s."""

    async def some(client: aiohttp.ClientSession) -> None:
        for body in asked:
            async with client.post(target.url + PATH, data=body, headers=target.head) as answer:
                data = await answer.read()
                decided = answer.headers.get("x-guard-decision", "allow")
                if answer.status != 200 or decided != "allow" or b'"stop"' not in data:
                    raise RuntimeError(f"an answer with status {answer.status}: {data[:500]!r}")

    async def every() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            await asyncio.gather(*(some(client) for _ in range(flight)))

    cpu, start = target.cpu(), time.perf_counter()
    asyncio.run(every())
    return target.cpu() - cpu, time.perf_counter() - start


class Spent(dict[str, Any]):
    """CPU and time a request of each server in each round, shape (rounds, 2)."""

    def over(self, name: str, what: int = 0) -> float:
        """Return the median of ratios of a server and the plain one."""
        return float(np.median(self[name][:, what] / self["plain"][:, what]))

    def more(self, name: str) -> float:
        """Return the median of the CPU ms that a server takes more."""
        return 1e3 * float(np.median(self[name][:, 0] - self["plain"][:, 0]))


def paired(targets: dict[str, Running], n: int, repeats: int, flight: int = 1, **asked: Any) -> Spent:
    """Send n requests to each server in turns; a first round warms up."""
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
    for _ in range(repeats + 1):
        for name, target in targets.items():
            rows[name].append(load(target, bodies(n, **asked), flight))
    return Spent({name: np.array(own[1:]) / n for name, own in rows.items()})


# -- parts ------------------------------------------------------------------------------------------------------------


def measure_server(repeats: int, part: int, litellm: str) -> dict[str, float]:
    scans, found = ("llm guard",) * bool(importlib.util.find_spec("llm_guard")), dict[str, float]()
    with served(10_000 // part, "plain", "guard", "guard bare", *scans, litellm=shutil.which(litellm)) as held:
        guard, two = held["guard"], {name: held[name] for name in ("plain", "guard")}
        load(guard, bodies(2_000 // part, 50), 50)
        found["memory MB"] = guard.resident()
        load(guard, bodies(18_000 // part, 50), 50)
        found["memory"] = guard.resident() / found["memory MB"]
        spent = paired(held, 500 // part, repeats, words=50)
        found |= {"text": spent.over("guard"), "text ms": spent.more("guard"), "text bare ms": spent.more("guard bare")}
        for name in ("litellm", "llm guard"):
            if name in held:
                found[f"{name} ms"] = 1e3 * float(np.median(spent[name][:, 0]))
            else:
                print(f"{name}: not installed here", file=sys.stderr)
        found["page ms"] = paired(two, 200 // part, repeats, words=250, model="long").more("guard")
        found["flight"] = 1 / paired(two, 2_000 // part, repeats, 50, words=50).over("guard", 1)
        found |= streams(two, repeats, part, "stream")
        if default_engine():
            page = benchmark.pages()[0]
            png = base64.b64encode(benchmark.picture_of(page, "none", benchmark.look_of(page, "none"))).decode()
            shown = paired(two, 200 // part, repeats, words=20, picture=f"data:image/png;base64,{png}")
            found["picture ms"] = shown.more("guard")
    return found


def streams(two: dict[str, Running], repeats: int, part: int, name: str) -> dict[str, float]:
    spent = paired(two, 100 // part, repeats, 4, words=50, stream=True)
    return {name: spent.over("guard"), f"{name} ms": spent.more("guard") / CHUNKS}


def measure_large(repeats: int, part: int, _: str) -> dict[str, float]:
    with served(100_000 // part, "plain", "guard") as held:
        return streams(held, repeats, part, "stream large")


def timed(call: Callable[[], Any], spent: list[float]) -> Any:
    start = time.process_time()
    found = call()
    spent.append(time.process_time() - start)
    return found


def measure_lookup(repeats: int, part: int, _: str) -> dict[str, float]:
    kept, drawn, built, spent = dict[int, str](), list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        timed(lambda: Index.of(numbered(100_000 // part, kept, drawn)).save(path), built)
        index, letters = Index.load(path), {i: normalise(text) for i, text in kept.items()}
        for _turn in range(repeats + 1):
            for i, text in kept.items():
                page = page_of(text, i)
                found = timed(lambda: matches(normalise(page), index, lambda work: letters.get(work, "")), spent)  # noqa: B023
                if [one.work for one in found[:1]] != [i]:
                    raise RuntimeError(f"a page of work {i} that is not found")
        lookup = 1e3 * statistics.median(spent[len(kept) :])  # without the first turn: it reads the file
        return {"lookup ms": lookup, "build s": built[0] - sum(drawn), "file MB": path.stat().st_size / 1e6}


def measure_sqlite(repeats: int, part: int, _: str) -> dict[str, float]:
    kept = dict[int, str]()
    index = Index.of(numbered(10_000 // part, kept, []))
    hashes, works = index.entries >> np.uint64(BITS), index.entries & np.uint64((1 << BITS) - 1)
    rows = "CREATE TABLE rows (hash INTEGER, work INTEGER"
    made = {"sqlite": f"{rows}); CREATE INDEX by_hash ON rows (hash)"}
    made["sqlite key"] = f"{rows}, PRIMARY KEY (hash, work)) WITHOUT ROWID"
    ratios: dict[str, list[float]] = {name: [] for name in made}
    tables = {name: sqlite3.connect(":memory:") for name in made}
    for name, table in tables.items():
        table.executescript(made[name])
        for at in range(0, len(hashes), 1 << 20):
            some = (column[at : at + (1 << 20)].tolist() for column in (hashes, works))
            table.executemany("INSERT INTO rows VALUES (?, ?)", zip(*some, strict=True))
        table.commit()

    def one_by_one(table: sqlite3.Connection, own: list[int]) -> dict[int, int]:
        found = Counter[int]()
        for value in own:
            found.update(work for (work,) in table.execute("SELECT work FROM rows WHERE hash = ?", (value,)))
        return dict(found)

    def at_once(table: sqlite3.Connection, own: list[int]) -> dict[int, int]:
        marks = ", ".join("?" * len(own))
        return dict(table.execute(f"SELECT work, COUNT(*) FROM rows WHERE hash IN ({marks}) GROUP BY work", own))

    for i, text in [*kept.items()] * repeats:
        own = fingerprints(normalise(page_of(text, i)))
        values, ours = np.unique(own.hashes >> np.uint64(BITS)).tolist(), list[float]()
        candidates = timed(lambda: index.counts(own), ours)  # noqa: B023
        for name, table in tables.items():
            theirs = list[float]()
            for ask in (one_by_one, at_once):
                if timed(lambda: ask(table, values), theirs) != candidates:  # noqa: B023
                    raise RuntimeError(f"other candidates for a page of work {i}")
            ratios[name].append(min(theirs) / ours[0])
    return {name: statistics.median(own) for name, own in ratios.items()}


def measure_canonical(_: int, part: int, __: str) -> dict[str, float]:
    pages, spent = benchmark.pages()[::part], list[float]()
    benchmark.pages = lambda: pages  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        timed(lambda: benchmark.write_benchmark(Path(folder)), spent)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"canonical s": spent[0], "canonical MB": resident, "canonical disk MB": size}


PARTS: dict[str, Callable[[int, int, str], dict[str, float]]] = {
    "server": measure_server,
    "large": measure_large,
    "lookup": measure_lookup,
    "sqlite": measure_sqlite,
    "canonical": measure_canonical,
}


def main() -> int:
    if sys.argv[1:2] == ["--role"]:
        role, port, upstream, folder = sys.argv[2:]
        run_server(role, int(port), upstream, Path(folder))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tenth of the size, and no bars")
    parser.add_argument("--litellm", default="litellm", help="program of LiteLLM's proxy, in an environment of its own")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given.repeats, 10 if given.small else 1, given.litellm)))
        return 0
    found: dict[str, float] = {}
    more = ["--repeats", str(given.repeats), "--litellm", given.litellm, *["--small"] * given.small]
    single = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    for part in given.only:
        words = [sys.executable, __file__, "--part", part, *more]
        found |= json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True, env=single).stdout)
    if given.small:
        print("small, no bars")
    for name in (*AT_MOST, *AT_LEAST, *PRINTED):
        said = f"{found[name]:9.3f}" if name in found else "not measured"
        bar = f"  (at most {AT_MOST[name]:g})" if name in AT_MOST else ""
        print(f"{name:18} {said}{bar or (f'  (at least {AT_LEAST[name]:g})' if name in AT_LEAST else '')}")
    missed = [name for name, bar in AT_MOST.items() if not found.get(name, bar) <= bar]
    missed += [name for name, bar in AT_LEAST.items() if not found.get(name, bar) >= bar]
    return int(bool(missed) and not given.small)


if __name__ == "__main__":
    sys.exit(main())
