"""What the guard's verbs do beside serving: look at one file, keep a registry, check a record.

Each function returns what a machine reads as JSON; a page says it to a person at 80 columns.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.guard.decisions import Eyes, Guard
from upright.guard.imports import read_works
from upright.guard.passages import fingerprints, normalise
from upright.guard.policy import read_policy
from upright.guard.reading import Caps, Reader, decode_data_url, default_engine
from upright.guard.record import Record, verify
from upright.guard.registry import Registry
from upright.guard.rights import Work
from upright.ledger import Ledger

__all__ = [
    "add", "audit", "audit_page", "check", "check_page", "eyes_of", "import_page", "import_works", "open_registry",
    "opened", "remove", "search", "search_page", "stats", "stats_page",
]  # fmt: skip

_MOST = 32 << 20  # bytes of a file that is read whole


def open_registry(place: str) -> Registry:
    """Open a registry that is there; `InputError` for one that is not: made anew, it would know no work."""
    if "://" not in place and not Path(place).is_file():
        todo = "make one: upright guard registry add, or check the path"
        raise InputError(f"registry {Path(place).name}, which is not there", "a registry that was made", todo)
    return Registry(place)


@contextmanager
def opened(
    place: str, policy: Path | None, *, record: Path | None, days: int | None
) -> Iterator[tuple[Guard, Record | None, Reader | None]]:
    """Open a guard, its record, and what reads pictures where that is there; close them, also where SIGTERM ends it."""
    if days is not None and record is None:
        raise InputError("--days without --record", "both, or neither", "name the folder of the record")
    rules = read_policy(policy)
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)))
        registry = stack.enter_context(closing(open_registry(place)))
        reader = stack.enter_context(Reader(workers=os.cpu_count() or 1)) if default_engine() else None
        full: Any = rules.full
        kept = stack.enter_context(Record(record, full=full, days=days)) if record else None
        try:
            yield Guard(registry, rules), kept, reader
        except SystemExit as end:
            if not end.code:
                raise
            got, todo = "a server that did not start, as its lines above say", "pass another --host or --port"
            raise InputError(got, "an address that is here and free", todo) from None


def check(path: Path, asked: str, *, registry: str | None, policy: Path | None) -> dict[str, Any]:
    """Decide about a page, a text in UTF-8 or a picture, of which `asked` is asked, or about a request (``.json``).

    Without a registry, and without a ``registry.db`` here, no work is known, and notices alone decide. `InputError` for
    a file that is none of these.
    """
    data, rules, request = _bytes_of(path), read_policy(policy), path.suffix.lower() == ".json"
    registry = registry or ("registry.db" if Path("registry.db").is_file() else None)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    picture = "\0" in text
    with ExitStack() as stack:
        works = stack.enter_context(closing(open_registry(registry) if registry else Registry(":memory:")))
        eyes = None
        if default_engine() if request else picture:
            reader = stack.enter_context(Reader())
            eyes = eyes_of(reader)
        if request:
            messages = _messages(path.name, text)
        else:
            page = reader.read(data) if picture else text
            messages = [{"role": "user", "content": [{"type": "text", "text": one} for one in (page, asked)]}]
        found = Guard(works, rules, eyes=eyes).decide(messages)
        title = "" if found.work is None else works.work(found.work).title
    return {
        "decision": found.action, "rule": found.rule, "use": found.use, "work": found.work, "title": title,
        "why": found.why, "instead": found.instead, "unread": list(found.unread),
    }  # fmt: skip


def eyes_of(reader: Reader | None) -> Eyes | None:
    """Return what reads the picture at a ``data:`` URL, None without a reader."""
    return None if reader is None else lambda url: reader.read(decode_data_url(url, Caps()))


def check_page(found: Mapping[str, Any]) -> str:
    """Return a decision, a line a field; what is empty is left out."""
    told = {**found, "unread": ", ".join(found["unread"])}
    return _lines((f"{name:<10}{value}" for name, value in told.items() if value not in ("", None)), 10)


def add(place: str, values: Mapping[str, Any], text: Path | None, *, keep_text: bool = True) -> dict[str, Any]:
    """Register one work, of fields of `Work`; with `keep_text` false by the fingerprints of its text alone.

    `InputError` for a field out of its range, a text that is not UTF-8 or has no letters, and neither title nor text.
    """
    try:
        work = Work(0, **values)
    except InputError as error:
        raise InputError(error.got.replace("work 0", "a work", 1), error.accepted, error.todo) from None
    if not work.title and text is None:
        raise InputError("a work with neither a title nor a text", "one of them at least", "pass --title or --text")
    whole, letters = None, ""
    if text is not None:
        whole = _bytes_of(text).decode("utf-8-sig", "surrogateescape").strip()
        letters = normalise(whole)
        if not letters:
            raise InputError(f"{text.name}, a text without letters", "the text of the work", "check the file")
    own = None if keep_text or whole is None else fingerprints(letters).to_bytes()
    with closing(Registry(place)) as registry:
        id = registry.add(work, whole if keep_text else None, fingerprints=own)
        return {"work": id, "title": work.title, "letters": len(letters), "works": registry.stats()["works"]}


def import_works(place: str, path: Path, *, write: bool) -> dict[str, Any]:
    """Read works from a file, and register them where `write` is true: all that are not refused, or none."""
    rows, refused = read_works(path)
    ids: list[int] = []
    if write and rows:
        with closing(Registry(place)) as registry:
            ids = registry.add_many(rows)
    told = [{"place": where, "reason": reason} for where, reason in refused]
    return {"rows": len(rows), "refused": told, "written": bool(ids), "first": ids[0] if ids else None}


def import_page(found: Mapping[str, Any]) -> str:
    """Return every row that was refused and why, and at last how many go in."""
    lines = [f"refused: {one['place']}: {one['reason']}" for one in found["refused"]]
    rows, left = f"{found['rows']} works", f"{len(found['refused'])} rows refused"
    if found["written"]:
        last = f"{rows} went in, with ids from {found['first']}; {left}"
    else:
        last = f"{rows} would go in, {left}; nothing was written" + ": pass --yes to write" * bool(found["rows"])
    return _lines([*lines, last], 2)


def remove(place: str, id: int, ledger: Path | None) -> dict[str, Any]:
    """Take a work out, after a line of a ledger that says so: beside the registry where no other is named."""
    if ledger is None and "://" in place:
        raise InputError("a removal from a database without a ledger", "a file for its line", "pass --ledger FILE")
    with closing(open_registry(place)) as registry:
        work = registry.work(id)
        book = Ledger(ledger or Path(f"{place}.ledger.jsonl"))
        line = book.append("removed", {"work": id, "title": work.title, "version": registry.version()})
        registry.remove(id)
    return {"work": id, "title": work.title, "ledger": book.path.name, "line": line["n"], "hash": line["hash"]}


def search(place: str, words: str, limit: int) -> list[dict[str, Any]]:
    """Return the works in whose title, holder and authors all words stand."""
    with closing(open_registry(place)) as registry:
        return [{**asdict(work), "authors": list(work.authors)} for work in registry.search(words, limit)]


def search_page(found: Iterable[Mapping[str, Any]]) -> str:
    """Return a work a line: id, title, year, authors, holder and what the registry declares."""
    lines = []
    for one in found:
        year = f" ({one['published']})" if one["published"] is not None else ""
        more = [", ".join(one["authors"]), one["holder"], one["licence"], one["declared"]]
        lines.append("; ".join([f"{one['id']:>8}  {one['title']}{year}", *filter(None, more)]))
    return _lines(lines, 10) or "no work with these words"


def stats(place: str) -> dict[str, int]:
    """Count the works of a registry, with its version; bundled is 1 where a benchmark made up its rights."""
    with closing(open_registry(place)) as registry:
        return {**registry.stats(), "version": registry.version(), "bundled": int(registry.bundled)}


def stats_page(found: Mapping[str, int]) -> str:
    """Return a count a line."""
    return "\n".join(f"{name:<28}{value:>12,}" for name, value in found.items())


def audit(folder: Path, head: str | None) -> dict[str, Any]:
    """Check a record: every file, whether all hold, and the hash of the last line that does."""
    files = [{"file": name, **asdict(one)} for name, one in verify(folder, head)]
    return {"intact": all(one["intact"] for one in files), "files": files, "head": files[-1]["head"]}


def audit_page(found: Mapping[str, Any]) -> str:
    """Return a file a line, the hash to be kept elsewhere, and what was not looked for."""
    lines = []
    for one in found["files"]:
        said = "all hold" if one["intact"] else f"broken at line {one['broken']}: {one['reason']}"
        lines.append(f"{one['file']}: {one['lines']} lines, {said}")
    last = [f"head {found['head']}", found["files"][-1]["reason"]] if found["intact"] else ["the record is broken"]
    return _lines([*lines, *filter(None, last)], 2)


def _lines(lines: Iterable[str], indent: int) -> str:
    """Break lines at 80 columns; what does not print, of a key or a name in a file, is shown as a question mark."""
    shown = ("".join(one if one.isprintable() else "?" for one in line) for line in lines)
    return "\n".join(textwrap.fill(line, 80, subsequent_indent=" " * indent) for line in shown)


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST + 1)
    except OSError as error:
        raise InputError(f"{path.name} ({error.strerror})", "a file that can be read", "check the path") from None
    if len(data) > _MOST:
        raise InputError(f"{path.name} of more than {_MOST >> 20} MB", f"up to {_MOST >> 20} MB", "take a part of it")
    return data


def _messages(name: str, text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{name}, which is no JSON", "a request of chat messages", "check the file") from None
    found = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(found, list) or not found:
        raise InputError(f"{name} without messages", 'a list of them, or an object with "messages"', "check the file")
    return found
