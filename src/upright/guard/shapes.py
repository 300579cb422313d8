r"""What requests and answers of the OpenAI interfaces look like, and how an answer is bounded.

==========================  ============  =============================================================
path                        kind          what is asked
==========================  ============  =============================================================
``/v1/chat/completions``    `chat`        ``messages``
``/v1/completions``         `completion`  ``prompt``
``/v1/responses``           `response`    ``input``
==========================  ============  =============================================================

An answer is written anew from what is understood: texts go through a stream (`upright.guard.stream`), numbers and
short names pass, and every other field or event is left out. One stream each bounds the text of a choice, the
arguments of its tool calls (their JSON escapes are read), its reasoning and each rank of its logprobs. Text and
arguments that copy too much end the choice; reasoning and logprobs are cut from there on. Streamed and whole answers
go through the same lines.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from upright.guard.decisions import STOPPED
from upright.guard.stream import Stream

__all__ = ["KINDS", "Bound", "Kind", "Made", "known"]

Kind = Literal["chat", "completion", "response"]
KINDS: Mapping[str, Kind] = {"chat/completions": "chat", "completions": "completion", "responses": "response"}
_HEAD = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
_RESPONSE = (
    *("id", "object", "created_at", "completed_at", "status", "model", "service_tier", "previous_response_id"),
    *("parallel_tool_calls", "temperature", "top_p", "max_output_tokens", "truncation", "store", "background"),
)
_ITEM, _PLACE = ("id", "type", "role", "status", "call_id"), ("item_id", "output_index", "content_index")
_SAID = {  # events of /v1/responses by their beginning: the field that repeats the text at the end, and the stream
    "response.output_text": ("text", "text"),
    "response.refusal": ("refusal", "text"),
    "response.function_call_arguments": ("arguments", "call"),
    "response.custom_tool_call_input": ("input", "call"),
    "response.reasoning_text": ("text", "reasoning"),
    "response.reasoning_summary_text": ("text", "reasoning"),
}
_PARTS = {  # parts of items: the event that writes them
    "output_text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning_text": "response.reasoning_text",
    "summary_text": "response.reasoning_summary_text",
}
_PLAIN = (int, float, bool, type(None))
_SHORT = 128  # most characters of an id or the name of a model
_PAIR = re.compile(r"\\u[dD][89abAB]")


def known(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields that are numbers, truth values, nothing, or short texts."""
    return {
        name: one
        for name in (names if isinstance(source, dict) else ())
        if name in source and (type(one := source[name]) in _PLAIN or (isinstance(one, str) and len(one) <= _SHORT))
    }


def _numbers(value: Any, deep: int = 3) -> Any:
    """Return the numbers of a usage, and of the tables in it."""
    if not isinstance(value, dict) or not deep:
        return value if isinstance(value, int | float) else None
    names = (name for name in value if name.isidentifier() and len(name) <= _SHORT and value[name] is not None)
    return {name: _numbers(value[name], deep - 1) for name in names}


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


class Bound:
    """Writes the answer to one request anew, without what may not leave.

    Parameters
    ----------
    kind : {"chat", "completion", "response"}
    stream : callable
        ``stream()``: a new stream for one text.
    choices : int
        How many were asked for; others are left out.

    Attributes
    ----------
    words : int
        Words of the longest run that stopped something, 0 where nothing was.
    """

    def __init__(self, kind: Kind, stream: Callable[[], Stream], choices: int = 1) -> None:
        self.kind, self.words, self._new, self._choices = kind, 0, stream, choices
        self._streams: dict[tuple[int, str], Stream] = {}
        self._held: dict[tuple[int, str], str] = {}  # a JSON escape whose end is yet to come
        self._over: set[int] = set()
        self._begun: dict[int, bool] = {}  # choice -> whether it has ended
        self._said: dict[tuple[Any, ...], list[str]] = {}  # /v1/responses: what was let through, by place
        self._items: dict[int, dict[str, Any]] = {}
        self._response: dict[str, Any] = {}
        self._streamed, self._sequence = False, 0

    @property
    def ended(self) -> bool:
        """Whether every choice was stopped."""
        return len(self._over) >= self._choices

    @property
    def finished(self) -> bool:
        """Whether every choice that began has come to its end."""
        return bool(self._begun) and all(done or one in self._over for one, done in self._begun.items())

    def cut(self, choice: int, lane: str, text: Any) -> str:
        """Return what of the next piece of a text may leave."""
        over = choice in self._over and not lane.startswith("rank")  # those are bounded by themselves
        if over or not isinstance(text, str) or not text:
            return ""
        stream = self._streams.get((choice, lane))
        if stream is None:
            stream = self._streams[choice, lane] = self._new()
        elif stream.stopped:
            return ""
        out = self._cut_json(stream, (choice, lane), text) if lane == "call" else stream.feed(text)
        if stream.stopped:
            self.words = max(self.words, stream.longest.words if stream.longest else 1)
            if lane in ("text", "call"):
                self._over.add(choice)
        return out

    def _cut_json(self, stream: Stream, lane: tuple[int, str], text: str) -> str:
        held = self._held.get(lane, "")
        if not held and "\\" not in text:
            return stream.feed(text)
        for place, one in enumerate(text):
            held += one
            long = 2 if held[1:2] != "u" else 12 if _PAIR.match(held) else 6
            if held[0] == "\\" and len(held) < long:
                continue
            try:
                plain = str(json.loads(f'"{held}"', strict=False)) if held[0] == "\\" else held
            except ValueError:
                plain = held
            if stream.feed(plain) != plain:
                return text[: max(0, place + 1 - len(held))]
            held = ""
        self._held[lane] = held
        return text

    # -- chats and completions --------------------------------------------------------------------------------------

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a whole answer as it may leave, None for one of another shape."""
        if self.kind == "response":
            return self._whole_response(answer)
        choices = [one for one in _dicts(answer.get("choices")) if self._is_choice(one)]
        if not choices:
            return None
        made: list[dict[str, Any]] = []
        for one in choices:
            choice = self._choice(one, "message")
            if choice["index"] in self._over:
                spoken = choice if self.kind == "completion" else choice["message"]
                name = "text" if self.kind == "completion" else "content"
                spoken[name] = (spoken.get(name) or "") + STOPPED
                choice["finish_reason"] = "content_filter"
            made.append(choice)
        return self._chat_head(answer) | {"choices": made}

    def event(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the events of a stream that may leave for one that came."""
        self._streamed = True
        if self.kind == "response":
            return self._response_event(event)
        head, out = self._chat_head(event), []
        kept = []
        for one in _dicts(event.get("choices")):
            if not self._is_choice(one) or one.get("index", 0) in self._over:
                continue
            choice = self._choice(one, "delta")
            kept.append(choice)
            if (index := choice["index"]) in self._over:
                choice["finish_reason"] = None
                for spoken, why in (({"content": STOPPED}, None), ({}, "content_filter")):
                    told = {"text": spoken.get("content", "")} if self.kind == "completion" else {"delta": spoken}
                    last = {"index": index, **told, "logprobs": None, "finish_reason": why}
                    out.append(head | {"usage": None, "choices": [last]})
        if kept or head.get("usage"):
            out.insert(0, head | {"choices": kept})
        return out

    def _is_choice(self, one: Mapping[str, Any]) -> bool:
        index = one.get("index", 0)
        return type(index) is int and 0 <= index < self._choices

    @staticmethod
    def _chat_head(answer: Mapping[str, Any]) -> dict[str, Any]:
        usage = {"usage": _numbers(answer["usage"])} if isinstance(answer.get("usage"), dict) else {}
        return known(answer, _HEAD) | usage

    def _choice(self, one: Mapping[str, Any], name: str) -> dict[str, Any]:
        index, reason = one.get("index", 0), one.get("finish_reason")
        reason = reason if isinstance(reason, str) and len(reason) <= _SHORT else None
        told: dict[str, Any] = {name: self._spoken(index, one.get(name))} if self.kind == "chat" else {}
        if self.kind == "completion":
            told["text"] = self.cut(index, "text", one.get("text"))
        self._begun[index] = self._begun.get(index, False) or reason is not None
        return {"index": index, **told, "logprobs": self._logprobs(index, one.get("logprobs")), "finish_reason": reason}

    def _spoken(self, choice: int, message: Any) -> dict[str, Any]:
        """Return what a message, or a piece of one, says."""
        if not isinstance(message, dict):
            return {}
        out = known(message, ("role",))
        for name in ("reasoning_content", "reasoning"):
            if isinstance(message.get(name), str):  # two names of one text, of different servers
                out[name] = self.cut(choice, name, message[name])
        for name in ("content", "refusal"):
            if name in message:
                out[name] = self.cut(choice, "text", message[name]) if isinstance(message[name], str) else None
        calls = []
        for call in _dicts(message.get("tool_calls")):
            held = "custom" if isinstance(call.get("custom"), dict) else "function"
            if choice not in self._over:
                said: dict[str, Any] = {held: self._call(choice, call.get(held))}
                calls.append(known(call, ("index", "id", "type")) | said)
        if calls:
            out["tool_calls"] = calls
        if isinstance(message.get("function_call"), dict):
            out["function_call"] = self._call(choice, message["function_call"])
        return out

    def _call(self, choice: int, call: Any) -> dict[str, str]:
        call = call if isinstance(call, dict) else {}
        return {one: self.cut(choice, "call", call[one]) for one in ("name", "arguments", "input") if one in call}

    def _logprobs(self, choice: int, found: Any) -> Any:
        """Return logprobs up to where their tokens, or those of one rank beside them, copy too much."""
        if isinstance(found, list):
            return list(self._tokens(choice, found))
        if not isinstance(found, dict):
            return None
        if self.kind == "chat":
            return {name: list(self._tokens(choice, found[name])) for name in ("content", "refusal") if found.get(name)}
        tokens, beside = found.get("tokens"), found.get("top_logprobs")
        beside = beside if isinstance(beside, list) else []
        rows = [
            {"token": one, "top_logprobs": [{"token": name} for name in (beside[i : i + 1] or [None])[0] or ()]}
            for i, one in enumerate(tokens if isinstance(tokens, list) else [])
        ]
        kept = [[one["token"] for one in row["top_logprobs"]] for row in self._tokens(choice, rows)]
        out: dict[str, Any] = {"tokens": [row["token"] for row in rows[: len(kept)]]}
        for name in ("token_logprobs", "text_offset"):
            told = found[name][: len(kept)] if isinstance(found.get(name), list) else []
            out[name] = [one if isinstance(one, int | float) else None for one in told]
        return out | {"top_logprobs": [{name: _numbers(beside[i][name]) for name in row} for i, row in enumerate(kept)]}

    def _tokens(self, choice: int, rows: Any) -> Iterator[dict[str, Any]]:
        for row in _dicts(rows):
            ranks = []
            for rank, one in enumerate([row, *_dicts(row.get("top_logprobs"))]):
                token = one.get("token")
                if not isinstance(token, str) or self.cut(choice, f"rank {rank}", token) != token:
                    if not rank:
                        return
                    continue
                letters = list(token.encode())
                same = letters if one.get("bytes") == letters else None
                ranks.append({"token": token, **known(one, ("logprob",)), "bytes": same})
            yield ranks[0] | {"top_logprobs": ranks[1:]}

    # -- responses --------------------------------------------------------------------------------------------------

    def _at(self, place: tuple[Any, ...], lane: str, full: Any) -> str:
        """Return what was let through at a place, and what `full` adds to it."""
        said = "".join(self._said.get(place, ()))
        if isinstance(full, str) and full.startswith(said) and len(full) > len(said):
            return said + self._more(place, lane, full[len(said) :])
        return said

    def _more(self, place: tuple[Any, ...], lane: str, text: Any) -> str:
        out = self.cut(0, lane, text)
        self._said.setdefault(place, []).append(out)
        return out

    def _item(self, place: int, item: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return an item of the output, None for one that is not understood."""
        kind, out = item.get("type"), known(item, _ITEM)
        if kind == "message":
            out["content"] = self._parts(place, item.get("content"), ("output_text", "refusal"))
        elif kind == "reasoning":
            out["summary"] = self._parts(place, item.get("summary"), ("summary_text",))
            if item.get("content"):
                out["content"] = self._parts(place, item["content"], ("reasoning_text",))
        elif kind in ("function_call", "custom_tool_call"):
            base = "response.function_call_arguments" if kind == "function_call" else "response.custom_tool_call_input"
            out["name"] = self._at((place, "name"), "call", item.get("name"))
            out[_SAID[base][0]] = self._at((place, 0, base), "call", item.get(_SAID[base][0]))
        else:
            return None
        return out

    def _parts(self, place: int, parts: Any, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
        found = (self._part(place, i, one, kinds) for i, one in enumerate(_dicts(parts)) if 0 not in self._over)
        return [one for one in found if one]

    def _part(self, place: int, i: int, part: Any, kinds: tuple[str, ...] = tuple(_PARTS)) -> dict[str, Any] | None:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in kinds:
            return None
        name, lane = _SAID[_PARTS[kind]]
        out = {"type": kind, name: self._at((place, i, _PARTS[kind]), lane, part.get(name))}
        if kind == "output_text":
            out["annotations"] = []
            if part.get("logprobs") and not self._streamed:
                out["logprobs"] = self._logprobs(0, part["logprobs"])
        return out

    def _whole_response(self, answer: Any, last: bool = True) -> dict[str, Any] | None:
        if not isinstance(answer, dict) or not isinstance(answer.get("output"), list):
            return None
        out = known(answer, _RESPONSE) | {"output": [], "tools": [], "error": None, "incomplete_details": None}
        for name, inner in (("incomplete_details", ("reason",)), ("error", ("code",))):
            if isinstance(answer.get(name), dict):
                told = {"message": "the upstream failed"} if name == "error" else {}
                out[name] = known(answer[name], inner) | told
        for i, item in enumerate(answer["output"]):
            made = self._item(i, item) if isinstance(item, dict) and 0 not in self._over else None
            out["output"] += [made] if made else []
        if isinstance(answer.get("usage"), dict):
            out["usage"] = _numbers(answer["usage"])
        if last and 0 in self._over:
            self._stop(out)
        return out

    @staticmethod
    def _stop(out: dict[str, Any]) -> dict[str, Any]:
        item = Made("response", "").item(STOPPED, "incomplete")
        why = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}
        out |= why | {"output": [*out.get("output", ()), item]}
        return item

    def _response_event(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        kind = event.get("type")
        at = [event.get(name) for name in ("output_index", "content_index", "summary_index")]
        if not isinstance(kind, str) or self.ended or any(type(one) not in (int, type(None)) for one in at):
            return []
        place, inner = at[0] or 0, at[1] or at[2] or 0
        base, _, step = kind.rpartition(".")
        out: dict[str, Any] = {"type": kind, **known(event, (*_PLACE, "summary_index"))}
        good = True
        if base in _SAID and step in ("delta", "done"):
            name, lane = _SAID[base]
            key = (place, inner, base)
            out["delta" if step == "delta" else name] = (
                self._more(key, lane, event.get("delta")) if step == "delta" else self._at(key, lane, event.get(name))
            )
            if base == "response.output_text":
                out["logprobs"] = self._logprobs(0, event.get("logprobs") or []) if step == "delta" else []
        elif base == "response.output_item" and step in ("added", "done"):
            made = self._item(place, event["item"]) if isinstance(event.get("item"), dict) else None
            out["item"], good = made, made is not None
            if made:
                self._items[place] = made
        elif base in ("response.content_part", "response.reasoning_summary_part") and step in ("added", "done"):
            out["part"] = self._part(place, inner, event.get("part"))
            good = out["part"] is not None
        elif base == "response" and step in ("created", "in_progress", "queued", "completed", "incomplete", "failed"):
            out["response"] = made = self._whole_response(event.get("response"), last=False)
            good = made is not None
            self._response = made or self._response
            self._begun[0] = self._begun.get(0, False) or (good and step in ("completed", "incomplete", "failed"))
        else:
            good = False
        good = good and not (base == "response" and self.ended)
        return [self._numbered(one) for one in [out] * good + (self._last() if self.ended else [])]

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        self._sequence += 1
        return event | {"sequence_number": self._sequence - 1}

    def _last(self) -> list[dict[str, Any]]:
        """Return the last events of a stream that was stopped."""
        out = []
        items = [self._let_through(place, item) for place, item in sorted(self._items.items())]
        for place, item in zip(sorted(self._items), items, strict=True):
            out.append({"type": "response.output_item.done", "output_index": place, "item": item})
        made = self._response | {"output": items}
        item = self._stop(made)
        place = max(self._items, default=-1) + 1
        out += Made("response", "").item_events(item, place)
        return [*out, {"type": "response.incomplete", "response": made}]

    def _let_through(self, place: int, item: dict[str, Any]) -> dict[str, Any]:
        """Return an item with what was let through of it."""
        said = {key[1:]: "".join(one) for key, one in self._said.items() if key[0] == place and len(key) == 3}
        parts: dict[str, list[dict[str, Any]]] = {"content": [], "summary": []}
        out = item | {"status": "incomplete"}
        for (_, base), text in sorted(said.items()):
            kind = next((one for one, event in _PARTS.items() if event == base), None)
            if kind is None:
                out[_SAID[base][0]] = text
                continue
            part: dict[str, Any] = {"type": kind, _SAID[base][0]: text}
            part |= {"annotations": []} if kind == "output_text" else {}
            parts["summary" if kind == "summary_text" else "content"].append(part)
        return out | {name: one for name, one in parts.items() if one}


class Made:
    """An answer that is made here: of a local model, or a sentence in place of one."""

    def __init__(self, kind: Kind, model: Any) -> None:
        self.kind, made = kind, secrets.token_hex(12)
        self._id = {"chat": "chatcmpl-", "completion": "cmpl-", "response": "resp_"}[kind] + made
        self._model = model if isinstance(model, str) and len(model) <= _SHORT else "unknown"
        self._time = int(time.time())

    def item(self, text: str, status: str = "completed") -> dict[str, Any]:
        """Return a message of /v1/responses."""
        part = {"type": "output_text", "text": text, "annotations": []}
        name = f"msg_{secrets.token_hex(12)}"
        return {"type": "message", "id": name, "role": "assistant", "status": status, "content": [part]}

    def _response_of(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        out = {"id": self._id, "object": "response", "created_at": self._time, "status": status, "model": self._model}
        return out | {"output": output, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}

    def whole(self, texts: list[str], reason: str = "stop") -> dict[str, Any]:
        """Return a whole answer with a text each choice."""
        if self.kind == "response":
            out = self._response_of("completed" if reason == "stop" else "incomplete", [self.item(texts[0])])
            return out | ({} if reason == "stop" else {"incomplete_details": {"reason": reason}})
        choices = []
        for i, text in enumerate(texts):
            said = {"text": text} if self.kind == "completion" else {"message": {"role": "assistant", "content": text}}
            choices.append({"index": i, **said, "logprobs": None, "finish_reason": reason})
        usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0)
        return self._chunk("chat.completion", choices) | {"usage": usage}

    def _chunk(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = name if self.kind == "chat" else "text_completion"
        return {"id": self._id, "object": name, "created": self._time, "model": self._model, "choices": choices}

    def begin(self, choice: int) -> list[dict[str, Any]]:
        """Return the events before the first piece of a choice."""
        if self.kind == "response":
            self._item = self.item("", "in_progress")
            head = {"type": "response.created", "response": self._response_of("in_progress", [])}
            return [head, *self.item_events(self._item, 0)[:2]]
        return [self.piece(choice, "")] if self.kind == "chat" else []

    def piece(self, choice: int, text: str, reason: str | None = None) -> dict[str, Any]:
        """Return the event of one piece."""
        if self.kind == "response":
            name = {"item_id": self._item["id"], "output_index": 0, "content_index": 0}
            return {"type": "response.output_text.delta", **name, "delta": text}
        said = {"text": text} if self.kind == "completion" else {"delta": {"role": "assistant", "content": text}}
        return self._chunk("chat.completion.chunk", [{"index": choice, **said, "finish_reason": reason}])

    def end(self, choice: int, text: str, reason: str = "stop") -> list[dict[str, Any]]:
        """Return the events after the last piece of a choice that said `text`."""
        if self.kind != "response":
            return [self.piece(choice, "", reason)]
        item = self.item(text) | {"id": self._item["id"]}
        status = "completed" if reason == "stop" else "incomplete"
        why = {} if reason == "stop" else {"incomplete_details": {"reason": reason}}
        last = {"type": f"response.{status}", "response": self._response_of(status, [item]) | why}
        return [*self.item_events(item, 0)[3:], last]

    @staticmethod
    def item_events(item: dict[str, Any], place: int) -> list[dict[str, Any]]:
        """Return the events that write a message: two before its text, the text, three behind."""
        part = item["content"][0]
        at = {"item_id": item["id"], "output_index": place, "content_index": 0}
        empty = item | {"status": "in_progress", "content": []}
        return [
            {"type": "response.output_item.added", "output_index": place, "item": empty},
            {"type": "response.content_part.added", **at, "part": part | {"text": ""}},
            {"type": "response.output_text.delta", **at, "delta": part["text"], "logprobs": []},
            {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
            {"type": "response.content_part.done", **at, "part": part},
            {"type": "response.output_item.done", "output_index": place, "item": item},
        ]
