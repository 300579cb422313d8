"""A server of OpenAI's shapes that says what a test tells it to, and apps that run in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

PAGE = (
    "Seven carts stood before the mill at Harrow Ford when the miller's niece came down with her lantern, and six of "
    "them were empty. In the seventh a clock was ticking. She counted the strokes, as her aunt had taught her, put the "
    "lantern on the wheel and lifted the cloth. Nobody had told her that the new bell for the chapel would arrive by "
    "night, nor that it would be wrapped like a child in wool, with a letter for the priest pinned to its rim."
)
LET = PAGE[: PAGE.index("In the seventh")]  # its first 25 words, and the space behind
FREE = (
    "The ferry to Oldness leaves at noon and takes eleven minutes when the tide is with it. Its engine was built for a "
    "tram in a town that has no water, and the ferryman oils it with butter on feast days because his father did so."
)
COPY, SUM = "Copy the whole page for me, word for word.", "What is this about, in one sentence?"


def pieces(text, size=7):
    return [text[i : i + size] for i in range(0, len(text), size)]


def sse(events, done=True):
    return [b"data: " + orjson.dumps(one) + b"\n\n" for one in events] + [b"data: [DONE]\n\n"] * done


def post(address, path, body, headers=None):
    """Return status, headers and body of an answer."""
    with closing(HTTPConnection(address.removeprefix("http://"), timeout=30)) as line:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        line.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
        found = line.getresponse()
        return found.status, dict(found.headers), found.read()


@contextmanager
def running(app):
    """Run an app on a free port, and yield its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.005)
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class Upstream:
    """Answers with what `chunks` (streamed) or `body` hold; keeps what it was sent.

    A float among the chunks is a silence of so many seconds.
    """

    def __init__(self):
        self.seen, self.headers, self.closed = [], [], threading.Event()
        self.status, self.kind, self.more = 200, None, {}
        self.says(FREE)
        routes = [
            Route("/v1/models", self.models),
            Route("/redirect.png", lambda request: Response("", 302, {"location": "/page.png"})),
            Route("/page.png", lambda request: Response(self.picture)),
            Route("/v1/{path:path}", self.answer, methods=["POST"]),
        ]
        self.app, self.picture = Starlette(routes=routes), b""

    def says(self, *texts, size=7):
        """Say these texts, one a choice, in chats and completions; the first one in responses."""
        head = {"id": "chatcmpl-1", "created": 1, "model": "fake"}
        whole = [
            {"index": i, "message": {"role": "assistant", "content": one}, "text": one, "finish_reason": "stop"}
            for i, one in enumerate(texts)
        ]
        self.body = head | {"object": "chat.completion", "choices": whole}
        head = head | {"object": "chat.completion.chunk"}
        events = [
            head | {"choices": [{"index": i, "delta": {"content": piece}, "text": piece, "finish_reason": None}]}
            for i, one in enumerate(texts)
            for piece in pieces(one, size)
        ]
        ends = [
            head | {"choices": [{"index": i, "delta": {}, "text": "", "finish_reason": "stop"}]}
            for i in range(len(texts))
        ]
        self.chunks = sse(events + ends)

    def models(self, request):
        return Response(orjson.dumps({"object": "list", "data": [{"id": "fake", "object": "model", "secret": PAGE}]}))

    async def answer(self, request):
        self.seen.append(orjson.loads(await request.body()))
        self.headers.append(dict(request.headers))
        if self.seen[-1].get("stream") and self.status == 200:
            return StreamingResponse(self.stream(), media_type=self.kind or "text/event-stream", headers=self.more)
        if isinstance(self.body, float):
            end = time.monotonic() + self.body
            while time.monotonic() < end and not self.closed.is_set():
                await asyncio.sleep(0.02)
                if await request.is_disconnected():
                    self.closed.set()
        body = self.body if isinstance(self.body, bytes) else orjson.dumps(self.body)
        return Response(body, self.status, self.more, self.kind or "application/json")

    async def stream(self):
        try:
            for one in self.chunks:
                if isinstance(one, float):
                    await asyncio.sleep(one)
                else:
                    yield one
        finally:
            self.closed.set()
