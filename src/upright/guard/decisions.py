"""What the guard decides about a request, and what of an answer it lets through.

    parts of the request -> text of each (pictures are read) -> works and notices -> rights -> one row of the policy
    last words of the user -> use                                                  -> one column

Each text is matched by itself, and all of them joined, so that a page split over messages is seen. What a registry says
of a work goes before what the page says of itself; a page that is in no registry is judged by its notices. Of several
rows the one with the strictest action decides. Text in a picture is data: it can only be a page or a notice.

Whatever was decided, an answer is bounded (`upright.guard.stream`) by every work, and every page with a notice, that
the policy does not let this tenant copy.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any, Literal

from upright.contract import InputError
from upright.guard.intent import Use, asked_of
from upright.guard.notices import claims, find_notices
from upright.guard.passages import Fingerprints, Index, fingerprints, matches, normalise
from upright.guard.policy import SEVERE, Action, Policy, Row
from upright.guard.registry import Registry
from upright.guard.rights import Work, rights_of
from upright.guard.stream import Stream

__all__ = ["Decision", "Guard", "Part", "parts_of", "put_instead"]

_PAGES = 1 << 23  # ids from here on: pages of the request that are bounded as works are
_TEXT = ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text")
_IDS = ("role", "type", "id", "name", "tool_call_id", "call_id", "status", "phase")
_PICTURE = ("image_url", "input_image")
_PACKED = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")  # may be base64
_ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\.")
_SHORT = 100  # letters below which a text with a notice is no page
_WORDS = 600  # letters up to which words of the user are no page where another text is shown
_ALIKE = 0.4  # of an answer's last hundred words, what may stand in a work in pieces
_COVERED = 0.75  # of a page, what a work covers that settles its rights
_NAME = 64  # most characters of an id or a name; more of them are read as text


@dataclass(frozen=True)
class Part:
    """One piece of a request.

    Parameters
    ----------
    role : str
        ``user``, ``assistant``, ``system``, ``tool`` or another, as the request says.
    text : str
        Empty where it could not be read.
    kind : {"text", "picture", "unread"}
    place : str
        Where it stands, for the record: ``messages[0].content[1]``.
    """

    role: str
    text: str
    kind: Literal["text", "picture", "unread"]
    place: str


@dataclass(frozen=True)
class Decision:
    """What is done about a request.

    Parameters
    ----------
    action : {"allow", "attribute", "transform", "refuse"}
    rule : str
        ``row/use`` of the policy, ``unread``, or ``allow`` where no page is of any work or has a notice.
    use : str
    work : int or None
        The registered work that decided.
    why : str
        A sentence for people.
    instead : str
        What the model is asked in place of the last user message, with ``transform``.
    unread : tuple of str
        Places of parts that could not be read.
    pages : tuple of str
        Normalised pages that no registry holds and that must not be copied.
    earlier : str
        What the assistant wrote before.
    """

    action: Action
    rule: str
    use: Use
    work: int | None
    why: str
    instead: str = ""
    unread: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    earlier: str = ""


Eyes = Callable[[str], str]
"""Returns the text of the picture at a ``data:`` URL, or raises `InputError`."""


def parts_of(messages: Sequence[Any], eyes: Eyes | None = None) -> list[Part]:
    """Return every piece of the messages of a chat in order, tool calls and earlier answers with them.

    What is neither text nor a picture that can be read becomes a part of kind ``unread``: nothing is passed over.
    """
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            got = f"messages[{i}] of type {type(message).__name__}"
            raise InputError(got, "a mapping with role and content", "send messages as of the OpenAI chat interface")
        role = str(message.get("role", message.get("type", "user")))
        for place, kind, value in _pieces(message, f"messages[{i}]"):
            if kind == "picture" and eyes is not None:
                try:
                    value = eyes(value)
                except InputError:
                    kind, value = "unread", ""
            elif kind == "picture":
                kind, value = "unread", ""
            found.append(Part(role, value, kind, place))  # type: ignore[arg-type]
    return found


def _pieces(message: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, kind and content of what one message holds."""
    for key, value in message.items():
        at = f"{place}.{key}"
        if value is None or (key in _IDS and isinstance(value, str) and len(value) <= _NAME):
            continue
        if key in ("content", "output", "summary") and isinstance(value, list):
            for j, one in enumerate(value):
                yield from _piece(one, f"{at}[{j}]")
        elif isinstance(value, str):
            yield at, "text", _plain(value) if key == "arguments" else value
        elif key == "tool_calls" and isinstance(value, list):
            for j, one in enumerate(value):
                told = one.get("function", one.get("custom")) if isinstance(one, dict) else None
                yield from _strings(told, f"{at}[{j}]") if isinstance(told, dict) else [(f"{at}[{j}]", "unread", "")]
        elif key == "function_call" and isinstance(value, dict):
            yield from _strings(value, at)
        elif value not in ([], {}):
            yield at, "unread", ""


def _strings(value: Mapping[str, Any], place: str) -> Iterator[tuple[str, str, str]]:
    for key, one in value.items():
        yield (f"{place}.{key}", "text", _plain(one)) if isinstance(one, str) else (f"{place}.{key}", "unread", "")


def _plain(arguments: str) -> str:
    """Return the arguments of a call with the letters that JSON escapes in them."""

    def letter(found: re.Match[str]) -> str:
        try:
            return str(json.loads(f'"{found[0]}"'))
        except ValueError:
            return found[0]

    return _ESCAPED.sub(letter, arguments) if "\\" in arguments else arguments


def _piece(one: Any, place: str) -> Iterator[tuple[str, str, str]]:
    """Yield one part of a list of content."""
    kind = one.get("type") if isinstance(one, dict) else None
    if isinstance(one, str):
        yield place, "text", one
    elif kind in _TEXT and isinstance(text := one.get("text", one.get("refusal")), str):
        yield place, "text", text
    elif kind in _PICTURE:
        url = one.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        yield (place, "picture", url) if isinstance(url, str) else (place, "unread", "")
    else:
        yield place, "unread", ""


def put_instead(messages: list[Any], instead: str) -> bool:
    """Put another question in place of the last text of the user, in the messages themselves; whether there was one."""
    for message in reversed(messages):
        content: Any = message.get("content") if message.get("role") == "user" else None
        if isinstance(content, str):
            message["content"] = instead
            return True
        for i, one in reversed(list(enumerate(content if isinstance(content, list) else ()))):
            if isinstance(one, str) or (isinstance(one, dict) and one.get("type") in ("text", "input_text")):
                content[i] = instead if isinstance(one, str) else one | {"text": instead}
                return True
    return False


def _uses(parts: Sequence[Part], pages: Mapping[int, Sequence[str]]) -> tuple[dict[int, Use], bool]:
    """Return what is asked, by the places of parts, and whether it was asked before the last answer.

    It is what the user says since the last answer, else before, else the system. Of a text by the place of its part in
    `pages`, what stands in these works word for word asks for nothing.
    """
    said = [(i, p) for i, p in enumerate(parts) if p.kind == "text" and p.text.strip()]
    last = max((i for i, p in said if p.role == "assistant"), default=-1)
    turns = [[(i, p) for i, p in said if p.role == "user" and (i > last) is now] for now in (True, False)]
    for number, turn in enumerate((*turns, [(i, p) for i, p in said if p.role in ("system", "developer")])):
        rest = {i: _beside_pages(p.text, pages[i]) if i in pages else p.text for i, p in turn}
        uses = {i: asked_of(one).use for i, one in rest.items() if one.strip()}
        if set(uses.values()) - {"other"}:
            return {i: use for i, use in uses.items() if use != "other"}, number == 1
    return {-1: "other"}, False


def _beside_pages(text: str, pages: Sequence[str]) -> str:
    """Return the sentences of a text that stand in none of some normalised pages."""
    pieces = re.split(r"(?<=[.!?])\s+|[\n\r]+", text)
    return " ".join(one for one in pieces if not any(normalise(one) in page for page in pages))


# -- the guard --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Held:
    """Works of one version of the registry."""

    version: int
    index: Index
    works: Mapping[int, Work]
    alone: Mapping[int, Fingerprints]  # of works without a text


class Guard:
    """Decides about requests and bounds answers, by a registry of works and a policy.

    Parameters
    ----------
    registry : Registry
        Asked for its version before a decision; works that were added or removed since are taken over.
    policy : Policy, optional
    eyes : callable, optional
        Reads pictures. Without it a picture is a part that cannot be read.
    today : callable, optional
        ``today() -> date``, the day on which rights are judged.
    """

    def __init__(
        self, registry: Registry, policy: Policy | None = None, *, eyes: Eyes | None = None, today: Any = date.today
    ) -> None:
        self.registry, self.policy, self.eyes, self.today = registry, policy or Policy(), eyes, today
        self._lock = threading.Lock()
        self._held = _Held(-1, Index.of([]), {}, {})
        self._text = lru_cache(4096)(lambda work: normalise(registry.text(work) or ""))
        self.refresh()

    def refresh(self) -> None:
        """Take over what changed in the registry; the index that answers now is left whole until another one is."""
        with self._lock:
            version, held = self.registry.version(), self._held
            if version == held.version:
                return
            ids, last = set(self.registry.ids()), max(held.works, default=-1)
            works = {one: work for one, work in held.works.items() if one in ids}
            alone = {one: own for one, own in held.alone.items() if one in ids}
            added: dict[int, Fingerprints] = {}
            for work, text, own in self.registry.works(after=last):
                works[work.id] = work
                if text is not None:
                    added[work.id] = fingerprints(normalise(text))
                elif own is not None:
                    added[work.id] = alone[work.id] = Fingerprints.from_bytes(own)
            index = held.index.changed(added, set(held.works) - ids)
            self._held = _Held(version, index, works, alone)

    def source(self, work: int) -> str | Fingerprints:
        """Return the normalised text of a work, or its fingerprints."""
        found = self._held.alone.get(work)
        return self._text(work) if found is None else found

    def row(self, work: Work, policy: Policy) -> Row:
        """Return the row of the policy that a work stands in, for this tenant, today."""
        if work.owner and work.owner == policy.tenant:
            return "own"
        return rights_of(work, jurisdiction=policy.jurisdiction, on=self.today()).status

    def decide(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Part],
        policy: Policy | None = None,
        *,
        refresh: bool = True,
    ) -> Decision:
        """Return what is done about the messages of a chat.

        Parameters
        ----------
        messages : sequence
            As of the OpenAI chat interface, or the parts of them.
        policy : Policy, optional
            Of the tenant; the guard's own by default.
        refresh : bool
            Whether the registry is asked for changes first; a server does so beside its requests.
        """
        if refresh:
            self.refresh()
        policy = policy or self.policy
        parts = [m if isinstance(m, Part) else None for m in messages]
        read = [p for p in parts if p] if all(parts) else parts_of(messages, self.eyes)
        asked = next((p for p in reversed(read) if p.role == "user" and p.kind == "text"), None)
        unread = tuple(p.place for p in read if p.kind == "unread")
        earlier = "\n".join(p.text for p in read if p.role == "assistant").replace(STOPPED, "")
        judged, pages, known = self._judged(read, asked, policy)
        uses, before = _uses(read, known)
        action, row, work, use = max(
            ((policy.action(row, use), row, work, use) for row, work in judged for use in reversed(uses.values())),
            key=lambda one: SEVERE.index(one[0]),
            default=("allow", None, None, [*uses.values()][-1]),
        )
        apart = [use for i, use in uses.items() if i < 0 or read[i] is not asked]
        if row and action == "transform" and not before and any(policy.action(row, use) == action for use in apart):
            action = "refuse"  # another text, which would stay, asks for it
        rule = f"{row}/{use}" if row else "allow"
        if unread and policy.unread == "refuse" and action != "refuse":
            why = f"This request has a part that cannot be read ({unread[0]}), and unread parts are refused here."
            return Decision("refuse", "unread", use, None, why, unread=unread)
        why = self._why(action, row, use, work)
        instead = _INSTEAD if action == "transform" else ""
        return Decision(action, rule, use, work, why, instead, unread, pages, earlier)  # type: ignore[arg-type]

    def _judged(
        self, parts: Sequence[Part], asked: Part | None, policy: Policy
    ) -> tuple[list[tuple[Row, int | None]], tuple[str, ...], dict[int, list[str]]]:
        """Return the rows that the texts of a request stand in, with their works, pages to bound, and known texts.

        A page is a longer text of the user or of a tool. What a free work holds too names no protected one,
        such as an edition of it. A notice outside of pages, as in the user's own words, is
        about those that no work covers.
        """
        held, rows, pages = self._held, list[tuple[Row, int | None]](), list[str]()
        whole = [(one.text, one, i) for i, one in enumerate(parts)]
        whole += [(_unpacked(one.text), one, i) for i, one in enumerate(parts)]
        whole = [one for one in whole if one[0]]
        letters = [normalise(text) for text, *_ in whole]
        known = [matches(one, held.index, self.source) for one in letters]
        joined = matches("".join(letters), held.index, self.source) if len(letters) > 1 else []
        for found in [*known, joined]:
            own = [(self.row(held.works[one.work], policy), one) for one in found]
            free = frozenset[int]().union(*(one.places for row, one in own if not self._bounded(row, policy)))
            rows += [(row, one.work) for row, one in own if not self._bounded(row, policy) or one.beyond(free)]
        settled = [
            any(one.cover >= _COVERED and self.row(held.works[one.work], policy) != "unknown" for one in found)
            for found in known
        ]
        shown = [
            i for i, (own, (_, one, _)) in enumerate(zip(letters, whole, strict=True))
            if len(own) > _SHORT and one.role in ("user", "tool")
        ]  # fmt: skip
        words = {i for i in shown if whole[i][1] is asked and len(letters[i]) <= _WORDS}
        pages_at = [i for i in shown if i not in words] or shown
        for i, (text, *_) in enumerate(whole):
            said = claims(find_notices(text), year=self.today().year)
            if said == "unknown" or settled[i]:
                continue
            about = [i] if i in pages_at else [one for one in pages_at if not settled[one]]
            if about:
                row: Row = "noticed" if said == "protected" else said
                rows.append((row, None))
                if self._bounded(row, policy):
                    pages += [letters[one] for one in (*about, *words)]
        texts = {
            place: [held_text for one in (*found, *joined) if isinstance(held_text := self.source(one.work), str)]
            for (_, _, place), found in zip(whole, known, strict=True)
            if found or joined
        }
        return rows, tuple(dict.fromkeys(pages)), texts

    @staticmethod
    def _bounded(row: Row, policy: Policy) -> bool:
        return policy.action(row, "copy") in ("transform", "refuse")

    def _why(self, action: str, row: Row | None, use: Use, work: int | None) -> str:
        if action in ("allow", "attribute") or row is None:
            return "Allowed." if action == "allow" else "Allowed; whoever shows the answer is to name the source."
        whose = "a registered work" if work is not None else "a page with a notice of its rights"
        known = self._held.works.get(work) if work is not None else None  # None too where it was removed just now
        title = known.title if known else ""
        named = f" ({title})" if title else ""
        return f"This is {whose}{named}: to {_VERBS[use]} is not permitted here. A summary or answers about it are."

    def stream(self, decision: Decision, policy: Policy | None = None) -> Stream:
        """Return what bounds one choice of the answer."""
        policy, held = policy or self.policy, self._held
        own = {_PAGES + i: page for i, page in enumerate(decision.pages)}
        index = _Beside(held.index, Index.of((i, fingerprints(page)) for i, page in own.items())) if own else held.index

        def source(work: int) -> str | Fingerprints:
            return own[work] if work in own else self.source(work)

        def protected(work: int) -> bool:
            return work in own or (work in held.works and self._bounded(self.row(held.works[work], policy), policy))

        return Stream(
            index,  # type: ignore[arg-type]
            source,
            policy.cap,
            protected=protected,
            before=decision.earlier,
            alike=_ALIKE,
            alone=held.alone.__contains__,
        )

    def filter(self, chunks: Iterable[str], decision: Decision, policy: Policy | None = None) -> Iterator[str]:
        """Yield what of an answer may leave, and a sentence of why where it was stopped."""
        stream = self.stream(decision, policy)
        for chunk in chunks:
            if out := stream.feed(chunk):
                yield out
            if stream.stopped:
                yield STOPPED
                return


STOPPED = "\n\n[Stopped here: more would copy a protected work. I can summarise it, or answer questions about it.]"
_INSTEAD = (
    "The page above must not be copied, translated or rewritten as a whole. Tell what it says in two or three "
    "sentences of your own instead, without a quotation, and offer to answer questions about it."
)
_VERBS: Mapping[Use, str] = {
    "copy": "copy it",
    "translate": "translate the whole of it",
    "paraphrase": "rewrite the whole of it",
    "quote": "quote it",
    "summary": "summarise it",
    "question": "answer questions about it",
    "metadata": "say what it is",
    "analysis": "analyse it",
    "other": "use it",
}


class _Beside:
    """Two indexes as one, for a stream."""

    def __init__(self, one: Index, other: Index) -> None:
        self._both = (one, other)

    def may_hold(self, value: int) -> bool:
        return any(one.may_hold(value) for one in self._both)

    def may_hold_each(self, values: Any) -> Any:
        return self._both[0].may_hold_each(values) | self._both[1].may_hold_each(values)

    def works_with(self, value: int) -> list[int]:
        return [work for one in self._both for work in one.works_with(value)]


def _unpacked(text: str) -> str:
    """Return what stands in base64 inside a text, if it is text itself."""
    out = []
    for packed in _PACKED.findall(text):
        try:
            data = base64.b64decode(
                packed.rstrip("=") + "=" * (-len(packed.rstrip("=")) % 4),
                altchars=b"-_" if set("-_") & set(packed) else None,
            )
            out.append(data.decode())
        except (binascii.Error, ValueError):
            continue
    return "\n".join(out)
