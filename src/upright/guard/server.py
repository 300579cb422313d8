"""The guard as a server: in front of any OpenAI-compatible upstream, or of a model at hand.

    body under a cap -> tenant of the key -> parts, pictures read in a thread -> decision, recorded
    refuse: a sentence, at once        transform: another question goes upstream        allow: the request goes upstream
    answer -> written anew without what may not leave (`upright.guard.shapes`)

===========================================  =======================================================================
POST /v1/chat/completions, /v1/completions,  streamed or not; with headers ``x-guard-id``, ``-decision``, ``-rule`` and
/v1/responses                                ``-work``
GET /v1/models                               of the upstream
POST /beta/litellm_basic_guardrail_api       LiteLLM's ``generic_guardrail_api``
GET /guard/explain/{id}                      why, for the key that asked
GET /guard/, /healthz, /metrics              a page to try it, whether it runs, counts for Prometheus
===========================================  =======================================================================

What goes upstream is written from what was judged, so that nobody reads the same bytes in another way. Of a request
everything is read, fields beside the messages too; what cannot be is refused or passed, as the policy says.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import logging
import re
import secrets
import socket
import sys
import traceback
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import aiohttp
import orjson
import uvicorn
from aiohttp.abc import ResolveResult
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send
from yarl import URL

from upright.contract import Config, InputError, PositiveFloat, PositiveInt, Range
from upright.guard.decisions import STOPPED, Decision, Guard, Part, parts_of, put_instead
from upright.guard.intent import asked_of
from upright.guard.policy import Policy
from upright.guard.reading import Caps, decode_data_url
from upright.guard.record import Full
from upright.guard.shapes import KINDS, Bound, Kind, Made, known

if TYPE_CHECKING:
    from upright.guard.reading import Reader
    from upright.guard.record import Record

__all__ = ["Answer", "Options", "make_app", "serve"]

_log = logging.getLogger(__name__)
Answer = Callable[[Mapping[str, Any]], AsyncIterator[str]]
"""A model at hand: gets the body of a request, yields pieces of text."""

Events = AsyncGenerator[list[dict[str, Any]], None]
T = TypeVar("T")
_ASKED: Mapping[Kind, str] = {"chat": "messages", "completion": "prompt", "response": "input"}
_UNSEEN = ("previous_response_id", "conversation", "audio", "web_search_options", "prompt_embeds")
_LONG = 100  # characters of a text in which a page may stand
_AT_ONCE = 1 << 16  # bytes of a request or an answer that is judged without a thread
_CHOICES, _SEEN, _KEPT = 128, 100, 10_000  # most choices of an answer, pictures of a request, explanations
_EVENT, _POLL = 8 << 20, 0.5  # most bytes of an event; seconds between looks at the registry
_FORWARDED = ("authorization", "openai-organization", "openai-project")
_PLACE = re.compile(r"[a-z_]+(\[\d+\](\.(content|output|summary|tool_calls)(\[\d+\])?)?)?")
_OBJECT = "send one object as of the OpenAI interface"
_GONE = 499  # told to nobody
_SSE, _DONE, _END = "text/event-stream", b"data: [DONE]\n\n", {"type": "[DONE]"}
_FAILED = {"type": "failed"}
_LIVE = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_STOPPED = STOPPED.strip("\n[]")
_ALLOWED = Decision("allow", "allow", "other", None, "Allowed.")


class Options(Config):
    """Of the server."""

    host: str = "127.0.0.1"
    """Address to listen at."""
    port: Annotated[int, Range(ge=0, le=65535)] = 8800
    """0 takes a free one."""
    body: PositiveInt = 32 << 20
    """Most bytes of a request."""
    timeout: PositiveFloat = 60.0
    """Seconds that the upstream, or a client that sends, may be silent."""
    most_upstream: PositiveInt = 64 << 20
    """Most bytes of an answer, unpacked."""
    allow: tuple[str, ...] = ()
    """Hosts from which pictures are fetched."""


def _words(error: InputError) -> str:
    return f"{error.got}; accepted: {error.accepted}; to do: {error.todo}"


class _Refused(Exception):
    """An answer with an error, of OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def _shaped(error: Exception, status: int) -> _Refused:
    """Return an error as it is told; of one that nobody foresaw its place alone: it may hold what the client wrote."""
    if isinstance(error, InputError):
        return _Refused(status, _words(error))
    if isinstance(error, _Refused):
        return error
    place = traceback.extract_tb(error.__traceback__)[-1]
    _log.error("%s at %s:%s", type(error).__name__, Path(place.filename).name, place.lineno)
    return _Refused(500, "the guard failed")


@dataclass
class _Case:
    """One request on its way."""

    endpoint: str
    policy: Policy
    whose: str  # hash of the key
    body: dict[str, Any]
    size: int  # bytes
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    decision: Decision = _ALLOWED
    parts: list[Part] = field(default_factory=list)
    stopped: int = 0  # words of a run

    def told(self) -> dict[str, Any]:
        """Return what is written down: of places no name that the client made up."""
        found = self.decision
        unread = [one[0] if (one := _PLACE.match(place)) else "elsewhere" for place in found.unread[:20]]
        return {
            **{"id": self.id, "endpoint": self.endpoint, "action": found.action, "rule": found.rule, "use": found.use},
            **{"work": found.work, "stopped": self.stopped, "unread": unread},
        }

    def headers(self) -> dict[str, str]:
        found = {"x-guard-id": self.id, "x-guard-decision": self.decision.action, "x-guard-rule": self.decision.rule}
        return found if self.decision.work is None else found | {"x-guard-work": str(self.decision.work)}


# -- requests ---------------------------------------------------------------------------------------------------------


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a value, in order."""
    held = [value]
    while held:
        one = held.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            held += reversed([*one, *one.values()])
        elif isinstance(one, list):
            held += reversed(one)


def _messages(kind: Kind, body: Mapping[str, Any]) -> list[Any]:
    """Return what is asked as messages of a chat."""
    name = _ASKED[kind]
    given = body.get(name)
    if kind != "chat" and isinstance(given, str):
        given = [{"role": "user", "content": given}]
    elif kind == "completion" and isinstance(given, list):
        given = [{"role": "user", "content": one} for one in given]
    if not isinstance(given, list) or not given:
        got, accepted = f"a request without {name}", f"{name} as of the OpenAI interface"
        raise InputError(got, accepted, "see that the body has them")
    mine = ("function_call", "custom_tool_call", "reasoning")
    return [one | {"role": "assistant"} if isinstance(one, dict) and one.get("type") in mine else one for one in given]


def _is_packed(text: str) -> bool:
    """Whether a text may be a picture or a sound: an address of data, or a thousand letters without a space."""
    start = text[:1000]
    return start[:5].lower() == "data:" or (len(start) == 1000 and start.isascii() and " " not in start)


def _beside(kind: Kind, body: Mapping[str, Any]) -> Iterator[Part]:
    """Yield what stands in other fields, and what the model would be given without it standing there."""
    for name, value in body.items():
        if name in (_ASKED[kind], "model") or not value or isinstance(value, int | float):
            continue
        texts = list(_strings(value))
        unseen = name in _UNSEEN or (name == "prompt" and kind == "response")
        if unseen or (name == "modalities" and value != ["text"]) or any(map(_is_packed, texts)):
            yield Part("system", "", "unread", name)
        elif len(text := "\n".join(texts)) > _LONG:
            yield Part("system", text, "text", name)
        if name == "tools" and isinstance(value, list):
            for i, one in enumerate(value):
                if not isinstance(one, dict) or one.get("type") not in ("function", "custom"):
                    yield Part("system", "", "unread", f"tools[{i}]")
    for i, one in enumerate(body.get("input") or () if kind == "response" else ()):
        if isinstance(one, dict) and (one.get("type") == "item_reference" or one.get("encrypted_content")):
            yield Part("system", "", "unread", f"input[{i}]")


def _pictures(messages: list[Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the mapping and the key under which each address of a picture stands."""
    for message in messages:
        for value in message.values() if isinstance(message, dict) else ():
            for one in value if isinstance(value, list) else ():
                if isinstance(one, dict) and one.get("type") in ("image_url", "input_image"):
                    held, name = one, "image_url"
                    if isinstance(one.get(name), dict):
                        held, name = one[name], "url"
                    if isinstance(held.get(name), str):
                        yield held, name


def _asked(parts: list[Part]) -> Part | None:
    """Return the last question, None where the page would go with it if it were put in another way."""
    asked = next((one for one in reversed(parts) if one.role == "user" and one.kind == "text"), None)
    others = [one for one in parts if one is not asked]
    stays = any(one.kind == "picture" for one in others) or sum(len(one.text) for one in others) > _LONG
    return asked if stays else None


def _is_public(address: str) -> bool:
    """Whether an address, and any that is wrapped in it, is out on the internet; True of a name."""
    try:
        one = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True  # a name: its addresses are looked at
    if isinstance(one, ipaddress.IPv6Address):
        inner = one.ipv4_mapped or one.sixtofour or (one.teredo and one.teredo[1])
        if inner is None and one in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.ip_address(int(one) & 0xFFFFFFFF)  # type: ignore[assignment]
        if inner:
            return _is_public(str(inner))
    return one.is_global and not one.is_multicast


class _Public(aiohttp.ThreadedResolver):
    """Finds public addresses alone: what it returns is what is dialled."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        if not found or not all(_is_public(one["host"]) for one in found):
            raise OSError("an address that is not public")
        return found


# -- the server -------------------------------------------------------------------------------------------------------


class _Server:
    def __init__(
        self, guard: Guard, upstream: str | Answer, record: Record | None, reader: Reader | None, options: Options
    ) -> None:
        self.guard, self.upstream, self.record, self.reader, self.options = guard, upstream, record, reader, options
        self.base = upstream.rstrip("/").removesuffix("/v1") + "/v1/" if isinstance(upstream, str) else ""
        self.counts: Counter[tuple[str, str]] = Counter()
        self.told: OrderedDict[str, tuple[str, dict[str, Any]]] = OrderedDict()
        self.shown = _page()
        self.pool = ThreadPoolExecutor(32, "guard")
        self.client: aiohttp.ClientSession
        self.fetcher: aiohttp.ClientSession

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        wait = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self.options.timeout)
        jar, most = aiohttp.DummyCookieJar(), aiohttp.TCPConnector(limit=1000)
        self.client = aiohttp.ClientSession(connector=most, timeout=wait, cookie_jar=jar)
        public = aiohttp.TCPConnector(resolver=_Public(), use_dns_cache=False)
        wait = aiohttp.ClientTimeout(total=10)
        self.fetcher = aiohttp.ClientSession(connector=public, timeout=wait, cookie_jar=jar)
        asyncio.get_running_loop().run_in_executor(self.pool, asked_of, "")  # learnt before it is asked for
        poll = asyncio.create_task(self.poll())
        async with self.client, self.fetcher:
            yield
            poll.cancel()
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def poll(self) -> None:
        """Take over changes of the registry: it is never in the way of a request."""
        while True:
            await asyncio.sleep(_POLL)
            try:
                await asyncio.to_thread(self.guard.refresh)  # not behind pictures that are read
            except Exception as error:  # the works that are known stay; it is tried again, and told now and then
                if self.counts["registry", "unreachable"] % 1000 == 0:
                    _log.warning("the registry cannot be asked for changes: %s", error)
                self.counts["registry", "unreachable"] += 1

    def caught(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Answer every error in OpenAI's shape."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as error:
                shaped = _shaped(error, 400)
                self.counts["error", str(shaped.status)] += 1
                return _json(shaped.body(), shaped.status)

        return answer

    # -- admission ----------------------------------------------------------------------------------------------------

    def tenant(self, request: Request) -> tuple[Policy, str]:
        """Return the policy of a client's key, and the key's hash."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        policy = self.guard.policy.for_key(key)
        if policy is None:
            raise _Refused(401, "a key that no tenant has", "invalid_api_key")
        return policy, hashlib.sha256(key.encode()).hexdigest()

    async def admit(self, request: Request, endpoint: str) -> _Case:
        """Return a request whose key is known and whose body is read."""
        policy, whose = self.tenant(request)
        if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise _Refused(415, "a compressed body; send it as it is")
        most, size = self.options.body, request.headers.get("content-length", "0")
        large = _Refused(413, f"a body of more than {most:,} bytes; send less, or in parts")
        if not size.isdigit() or int(size) > most:
            raise large
        raw, loop = bytearray(), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.options.timeout) as wait:
                async for piece in request.stream():
                    raw += piece
                    if len(raw) > most:
                        raise large
                    wait.reschedule(loop.time() + self.options.timeout)
        except TimeoutError:
            raise _Refused(408, "a body that did not come in time") from None
        try:
            body = orjson.loads(raw)
        except ValueError as error:
            deep = "JSON that is too deep" if "depth" in str(error) else "a body that is no JSON"
            raise _Refused(400, f"{deep}; {_OBJECT}") from None
        if not isinstance(body, dict):
            raise _Refused(400, f"a body that is no JSON object; {_OBJECT}")
        return _Case(endpoint, policy, whose, body, len(raw))

    def read(self, case: _Case, messages: list[Any], more: list[Part]) -> None:
        """Read and judge; may wait for an engine."""
        reasons: list[str] = []

        def eyes(url: str) -> str:
            try:
                if self.reader is not None:
                    return self.reader.read(decode_data_url(url, Caps()), case.whose)
                if self.guard.eyes is not None:
                    return self.guard.eyes(url)
                raise InputError("a picture where nothing reads pictures", "text", "install an engine")
            except InputError as error:
                reasons.append(error.got)
                raise

        case.parts = [*more, *parts_of(messages, eyes)]
        try:
            case.decision = self.guard.decide(case.parts, case.policy, refresh=False)
        except InputError as error:  # of the registry
            raise _Refused(503, _words(error)) from None
        if case.decision.rule == "unread" and reasons:
            case.decision = replace(case.decision, why=f"{case.decision.why} Found: {reasons[0]}.")

    async def judge(self, case: _Case, messages: list[Any], more: list[Part]) -> None:
        """Decide about a request; pictures are fetched and read without holding up others."""
        pictures = list(_pictures(messages))
        if len(pictures) > _SEEN:
            raise _Refused(400, f"a request with more than {_SEEN} pictures; send it in parts")
        for held, name in pictures:
            if not held[name].lower().startswith("data:"):
                held[name] = await self.fetch(held[name])
        await self.aside(bool(pictures) or case.size > _AT_ONCE, self.read, case, messages, more)

    async def aside(self, long: bool, call: Callable[..., T], *given: Any) -> T:
        """Make a call, in a thread where it takes long."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, call, *given) if long else call(*given)

    async def note(self, case: _Case, bound: Bound | None = None) -> None:
        """Write a decision down, or that its answer was stopped, and keep it for whoever asks why."""
        if bound is not None and bound.words <= case.stopped:
            return
        case.stopped = bound.words if bound else case.stopped
        self.counts["stopped" if bound else "decision", f"{case.endpoint} {case.decision.action}"] += 1
        self.told[case.id] = (case.whose, case.told() | {"why": STOPPED.strip() if bound else case.decision.why})
        if len(self.told) > _KEPT:
            self.told.popitem(last=False)
        if self.record is None:
            return
        try:
            line: dict[str, Any] = {"id": case.id, "tenant": self.record.digest(case.policy.tenant, "")}
            if bound:
                line |= {"stopped": case.stopped}
            else:
                text = "\n".join(one.text for one in case.parts)
                line |= case.told() | {"input": self.record.digest(case.policy.tenant, text)}
            try:
                done = self.record.write(line, wait=False)
            except Full:  # it waits, or says again that it does not, in a thread: others are answered meanwhile
                done = await self.aside(True, self.record.write, line)
            if case.policy.audit == "before":
                await asyncio.wrap_future(done)
        except InputError as error:
            raise _Refused(503, _words(error)) from None

    async def fetch(self, address: str) -> str:
        """Return a picture at an allowed address as a ``data:`` URL; no redirect is followed."""
        todo = "load the picture yourself, and send it as a data: URL"
        refused = InputError("a picture that cannot be fetched", "one at a public address of an allowed host", todo)
        try:
            url = URL(address)
            if url.scheme not in ("http", "https") or url.host not in self.options.allow or url.user or url.password:
                decode_data_url(address, Caps())  # says so
            if not url.host or not _is_public(url.host):
                raise refused
            data = bytearray()
            async with self.fetcher.get(url, allow_redirects=False) as response:
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > Caps().bytes:
                        raise refused
                if response.status != 200:
                    raise refused
        except InputError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            raise refused from None
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"  # its kind is found by its first bytes

    # -- the three endpoints ------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        path = request.url.path.removeprefix("/v1/")
        kind, case = KINDS[path], await self.admit(request, path)
        body, messages = case.body, _messages(kind, case.body)
        n = body.get("n") or 1
        each = {"chat": 1, "completion": len(messages), "response": 0}[kind]
        if type(n) is not int or not 1 <= n <= _CHOICES or n * each > _CHOICES:
            raise _Refused(400, f"n, which is no number from 1 to {_CHOICES}; send one")
        choices = n * each or 1
        await self.judge(case, messages, list(_beside(kind, body)))
        if case.decision.action == "transform":
            if kind == "completion" or not _asked(case.parts) or not put_instead(messages, case.decision.instead):
                case.decision = replace(case.decision, action="refuse")
            elif isinstance(body[_ASKED[kind]], str):
                body[_ASKED[kind]] = messages
        await self.note(case)
        made, streamed = Made(kind, body.get("model")), body.get("stream") is True
        if case.decision.action == "refuse":
            return _refusal(kind, made, streamed, case, choices)
        bound = Bound(kind, lambda: self.guard.stream(case.decision, case.policy), choices)
        if streamed:
            events = self.said(made, body, choices) if callable(self.upstream) else await self.sent(request, case)
            pieces = self.pump(kind, events, bound, case)
            return _Streamed(pieces, headers=case.headers() | _LIVE, media_type=_SSE)
        answer = await _until_gone(request, self.whole(request, case, made, bound, choices))
        if answer is None:
            raise _Refused(502, "an answer of the upstream that is not understood")
        await self.note(case, bound)
        return _json(answer, headers=case.headers())

    async def whole(
        self, request: Request, case: _Case, made: Made, bound: Bound, choices: int
    ) -> dict[str, Any] | None:
        """Return an answer that is not streamed, bounded."""
        if callable(self.upstream):
            texts = ["".join([one async for one in self.pieces(case.body)]) for _ in range(choices)]
            return bound.whole(made.whole(texts))
        async with await self.send(request, case.endpoint, case.body) as response:
            found = await self.load(response)
            return await self.aside(response.content.total_bytes > _AT_ONCE, bound.whole, found)

    async def pieces(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        """Yield what the model at hand says."""
        assert callable(self.upstream)
        said = self.upstream(body)
        try:
            while (piece := await asyncio.wait_for(anext(said, None), self.options.timeout)) is not None:
                yield piece
        except TimeoutError:
            raise _Refused(504, "the model is silent") from None

    async def said(self, made: Made, body: Mapping[str, Any], choices: int) -> Events:
        """Yield events of what the model at hand says."""
        for i in range(choices):
            yield made.begin(i)
            text = []
            async for piece in self.pieces(body):
                text.append(piece)
                yield [made.piece(i, piece)]
            yield made.end(i, "".join(text))

    async def send(
        self, request: Request, path: str, body: Mapping[str, Any] | None, method: str = "POST"
    ) -> aiohttp.ClientResponse:
        """Ask the upstream; its errors become ours."""
        headers = {one: request.headers[one] for one in _FORWARDED if one in request.headers}
        headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        try:
            data = None if body is None else orjson.dumps(body)
        except TypeError:  # what is written may be less deep than what is read
            raise _Refused(400, f"JSON that is too deep; {_OBJECT}") from None
        with self.failing():
            response = await self.client.request(
                method, self.base + path, data=data, headers=headers, allow_redirects=False
            )
        if response.status == 200:
            return response
        async with response:
            told = await self.load(response) if 400 <= response.status < 500 else {}
            error = told.get("error")
            why = error.get("message") if isinstance(error, dict) else None
            why = Bound("chat", lambda: self.guard.stream(_ALLOWED)).cut(0, "text", why)[:500]
            status = response.status if 400 <= response.status < 500 else 502
            raise _Refused(status, f"the upstream answered {response.status}{f': {why}' if why else ''}")

    async def load(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """Return the object of a whole answer."""
        raw = bytearray()
        with self.failing():
            async for piece in response.content.iter_any():
                raw += piece
                if len(raw) > self.options.most_upstream:
                    raise _Refused(502, "an answer of the upstream that is too long")
            found = orjson.loads(raw)
        if not isinstance(found, dict):
            raise _Refused(502, "an answer of the upstream that is not understood")
        return found

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn what goes wrong with the upstream into an error of ours."""
        try:
            yield
        except TimeoutError:  # aiohttp's too
            raise _Refused(504, "the upstream is silent") from None
        except (aiohttp.ClientError, OSError):
            raise _Refused(502, "the upstream cannot be reached, or broke off") from None
        except ValueError:
            raise _Refused(502, "an answer of the upstream that is not understood") from None

    async def sent(self, request: Request, case: _Case) -> Events:
        """Ask for a stream; return its events once it has begun."""
        response: aiohttp.ClientResponse = await _until_gone(request, self.send(request, case.endpoint, case.body))
        if response.content_type != "text/event-stream":
            response.close()
            raise _Refused(502, "an answer of the upstream that is no stream of events")
        return self.events(response)

    async def events(self, response: aiohttp.ClientResponse) -> Events:
        """Yield the events of each piece that is read; none at the end of one that breaks off."""
        rest, size, data = b"", 0, list[bytes]()
        try:
            with self.failing():
                async for piece in response.content.iter_any():
                    size += len(piece)
                    *lines, rest = (rest + piece).split(b"\n")
                    if size > self.options.most_upstream or len(rest) > _EVENT:
                        raise _Refused(502, "an answer of the upstream that is too long")
                    found: list[dict[str, Any]] = []
                    for line in lines:
                        line = line.removesuffix(b"\r")
                        if line.startswith(b"data:"):
                            data.append(line[5:])
                        elif not line and data:
                            text, data = b"\n".join(data).strip(), []
                            found.append(_END if text == b"[DONE]" else _event(text))
                    if lines:
                        yield found
        finally:
            response.close()

    async def pump(self, kind: Kind, events: Events, bound: Bound, case: _Case) -> AsyncIterator[bytes]:
        """Yield a stream for the client."""
        try:
            last: Any = None
            async for batch in events:
                out = []
                for event in batch:
                    if bound.ended or (last := event) is _END or event is _FAILED:
                        break
                    out += [_encoded(kind, one) for one in bound.event(event)]
                if bound.words > case.stopped:
                    await self.note(case, bound)
                yield b"".join(out) or b":\n\n"  # a comment keeps the line open
                if bound.ended or last is _END or last is _FAILED:
                    break
            if last is _FAILED and not bound.ended:
                raise _Refused(502, "the upstream failed in the middle of its answer")
            if not (last is _END or bound.ended or bound.finished):
                raise _Refused(502, "the upstream broke off in the middle of its answer")
        except Exception as error:
            shaped = _shaped(error, 503)
            self.counts["error", str(shaped.status)] += 1
            told = shaped.body()
            yield _encoded(kind, told if kind != "response" else {"type": "error", **told["error"]})
        finally:
            await events.aclose()
        if kind != "response":
            yield _DONE

    # -- other doors --------------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        self.tenant(request)
        if callable(self.upstream):
            return _json({"object": "list", "data": [{"id": "local", "object": "model", "owned_by": "guard"}]})
        async with await self.send(request, "models", None, "GET") as response:
            found = (await self.load(response)).get("data")
        names = ("id", "object", "created", "owned_by")
        return _json({"object": "list", "data": [known(one, names) for one in found or () if isinstance(one, dict)]})

    async def litellm(self, request: Request) -> Response:
        """Answer LiteLLM's ``generic_guardrail_api`` as its documentation of October 2026 has it."""
        case = await self.admit(request, "litellm")
        body = case.body
        texts, images = body.get("texts") or [], body.get("images") or []
        calls, told = body.get("tool_calls") or [], body.get("structured_messages") or []
        lists = (texts, images, calls, told)
        if not all(isinstance(one, list) for one in lists) or not all(isinstance(one, str) for one in texts + images):
            raise _Refused(400, "texts, images, tool_calls or structured_messages that are no lists; send lists")
        if body.get("input_type") not in ("request", "response"):
            raise _Refused(400, "an input_type that is neither request nor response; send one of them")
        if body["input_type"] == "response":
            return await self.litellm_answer(case, texts, calls)
        known_texts = set(_strings(told))
        shown = [one if ":" in one[:9] else f"data:image/png;base64,{one}" for one in images if one not in known_texts]
        first: list[Any] = [{"type": "image_url", "image_url": {"url": one}} for one in shown]
        first += [{"type": "text", "text": one} for one in texts if one not in known_texts]
        messages = [{"role": "user", "content": first}, {"role": "assistant", "tool_calls": calls}, *told]
        more = [Part("system", "\n".join(_strings(body.get("tools"))), "text", "tools")]
        try:
            await self.judge(case, messages, more)
        except InputError as error:
            return _json(_guarded("BLOCKED", f"{error.got}: {error.todo}"))
        decision, out = case.decision, _guarded("NONE")
        if decision.action in ("refuse", "transform"):
            asked = _asked(case.parts) if decision.action == "transform" else None
            if asked and asked.text in texts:
                place = len(texts) - 1 - texts[::-1].index(asked.text)
                out = _guarded("GUARDRAIL_INTERVENED", None, [*texts[:place], decision.instead, *texts[place + 1 :]])
            else:
                out = _guarded("BLOCKED", decision.why)
                case.decision = replace(decision, action="refuse")
        await self.note(case)
        return _json(out, headers=case.headers())

    async def litellm_answer(self, case: _Case, texts: list[str], calls: list[Any]) -> Response:
        bound = Bound("chat", lambda: self.guard.stream(_ALLOWED, case.policy), len(texts) + 1)
        for i, text in enumerate(texts):
            bound.cut(i, "text", text)
        for one in _strings(calls):
            bound.cut(len(texts), "call", one)
        if bound.words:
            case.stopped, case.decision = bound.words, replace(_ALLOWED, action="refuse", rule="answer", why=_STOPPED)
        await self.note(case)
        return _json(_guarded("BLOCKED", _STOPPED) if bound.words else _guarded("NONE"), headers=case.headers())

    async def explain(self, request: Request) -> Response:
        _, whose = self.tenant(request)
        key, told = self.told.get(request.path_params["id"], ("", {}))
        if key != whose:
            raise _Refused(404, "no decision of this id, or one of another key")
        return _json(told)

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        lines = [f'guard_{name}_total{{of="{of}"}} {count}\n' for (name, of), count in sorted(self.counts.items())]
        return Response("".join(lines), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        text, headers = self.shown
        return Response(text, headers=headers, media_type="text/html")


# -- what is sent -----------------------------------------------------------------------------------------------------


class _Streamed(StreamingResponse):
    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:  # also of a client that has gone
            await self.body_iterator.aclose()  # type: ignore[attr-defined]


def _json(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def _encoded(kind: Kind, event: Mapping[str, Any]) -> bytes:
    name = b"event: %b\n" % event["type"].encode() if kind == "response" else b""
    return b"%bdata: %b\n\n" % (name, orjson.dumps(event))


def _event(text: bytes) -> dict[str, Any]:
    """Return an event of the upstream; what is none becomes a failure, told behind what came before."""
    try:
        event = orjson.loads(text)
    except ValueError:
        return _FAILED
    good = isinstance(event, dict) and not event.get("error") and event.get("type") != "error"
    return event if good else _FAILED


def _guarded(action: str, reason: str | None = None, texts: list[str] | None = None) -> dict[str, Any]:
    return {"action": action, "blocked_reason": reason, "texts": texts, "stream_holdback_chars": 0}


def _refusal(kind: Kind, made: Made, streamed: bool, case: _Case, choices: int) -> Response:
    """Answer with a sentence of why, without the upstream."""
    why, reason = case.decision.why, "content_filter"
    if not streamed:
        return _json(made.whole([why] * choices, reason), headers=case.headers())
    events = [one for i in range(choices) for one in (*made.begin(i), made.piece(i, why), *made.end(i, why, reason))]
    text = b"".join(_encoded(kind, one) for one in events) + (b"" if kind == "response" else _DONE)
    return Response(text, headers=case.headers() | _LIVE, media_type=_SSE)


async def _until_gone(request: Request, call: Coroutine[Any, Any, T]) -> T:
    """Wait for a call while the client does: what it opened is closed when that goes away."""
    task, gone = asyncio.create_task(call), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Refused(_GONE, "the client has gone")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def _page() -> tuple[bytes, dict[str, str]]:
    """Return the page and its policy: what it runs stands in it, and its hash in the policy."""
    page = Path(__file__).with_name("page.html").read_bytes()

    def own(tag: bytes) -> str:
        inner = page.partition(b"<%b>" % tag)[2].partition(b"</%b>" % tag)[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(inner).digest()).decode()}'"

    rules = [
        *("default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'"),
        *("frame-ancestors 'none'", f"script-src {own(b'script')}", f"style-src {own(b'style')}"),
    ]
    return page, {"content-security-policy": "; ".join(rules), "x-content-type-options": "nosniff"}


def make_app(
    guard: Guard,
    upstream: str | Answer,
    *,
    record: Record | None = None,
    reader: Reader | None = None,
    options: Options = Options(),  # noqa: B008 - it is frozen
) -> Starlette:
    """Return the server.

    Parameters
    ----------
    guard : Guard
    upstream : str or callable
        The address of an OpenAI-compatible server, with or without ``/v1``, or a model at hand.
    record : Record, optional
        Where decisions are written down; closed by whoever opened it.
    reader : Reader, optional
        Reads pictures, each tenant's by themselves; without it those that the guard has.
    options : Options

    Raises
    ------
    InputError
        For an upstream that is no http address.
    """
    if isinstance(upstream, str) and not re.match(r"https?://[^\s/?#]+[^\s?#]*$", upstream):
        raise InputError(f"the upstream {upstream!r}", "http://HOST or https://HOST", "name the server's address")
    server = _Server(guard, upstream, record, reader, options)
    routes = [Route(f"/v1/{path}", server.caught(server.answer), methods=["POST"]) for path in KINDS]
    routes += [
        Route("/beta/litellm_basic_guardrail_api", server.caught(server.litellm), methods=["POST"]),
        Route("/v1/models", server.caught(server.models)),
        Route("/guard/explain/{id}", server.caught(server.explain)),
        Route("/guard/", server.page),
        Route("/healthz", server.health),
        Route("/metrics", server.metrics),
    ]

    async def other(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return _json(_Refused(status, "no such path or method here").body(), status)

    app = Starlette(routes=routes, lifespan=server.lifespan, exception_handlers={HTTPException: other})
    app.state.guard, app.state.reads = guard, bool(reader or guard.eyes)
    return app


def serve(app: Starlette, options: Options, *, allow_bundled: bool = False) -> None:
    """Say which works, tenants and pictures the server knows, and run it until it is stopped.

    Raises
    ------
    InputError
        For a registry of a benchmark: its holders and dates are made up.
    """
    guard = app.state.guard
    if guard.registry.bundled and not allow_bundled:
        todo = "name another registry, or allow it to try the guard"
        raise InputError("a registry of a benchmark, whose rights are made up", "a registry of your own", todo)
    works, tenants = guard.registry.stats()["works"], len(guard.policy.tenants)
    print(f"{guard.registry.name}: works {works:,}; tenants of the policy {tenants}", file=sys.stderr)
    if not app.state.reads:
        print("no program that reads pictures is here: they are parts that cannot be read", file=sys.stderr)
    how: dict[str, Any] = {"loop": "uvloop", "http": "httptools", "ws": "none", "access_log": False}
    uvicorn.run(app, host=options.host, port=options.port, server_header=False, **how)
