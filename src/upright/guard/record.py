"""What the guard writes down: a line a decision, chained by hashes, and no text of anybody.

    write(body) -> bounded queue -> one thread -> every 50 ms one write and one fsync -> guard-YYYY-MM.jsonl

Each month has a file (`upright.ledger`). Kinds of line: ``began``, the first of a file, names the file before it and
its last hash; ``opened``, a start after a stop that was told (``closed``); ``unclean``, a start after any other stop,
by which at most what was not yet flushed is lost; ``decision``; ``lost``, how many lines a failing disk did not take;
``erased``, a tenant's key is gone, whose is not said; ``removed``, a file that was too old, and its last hash.

While the disk fails, the futures of lines that were not written raise, each `Record.write` raises until a line ``lost``
is on disk, `Record.close` raises, and the log tells it once. What must be comparable is written as a digest under its
tenant's key; erasing deletes the key file, and reaches no copy of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import date, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

from upright.contract import InputError
from upright.ledger import GENESIS, Ledger, Verification, canonical, sync_path

__all__ = ["Full", "Record", "verify"]

_FILES, _BODY, _IDLE = "guard-[0-9][0-9][0-9][0-9]-[0-9][0-9].jsonl", 1 << 20, 1.0  # most bytes of a body; seconds
_UNSEEN = "lines cut off at the end were not looked for: that takes the hash of a later line (--head)"
_MISSING = "a line known from elsewhere is missing: lines were cut off, written anew, or removed with their file"
_log = logging.getLogger(__name__)


class Full(InputError):
    """The record takes no line now: its queue is full and ``full`` is "refuse", or its disk is, or fails."""


class Record(AbstractContextManager["Record"]):
    """The record of one guard, in a folder to which one process writes at a time; made for its owner alone.

    `full` says what `write` does while `most` lines wait for the disk, `every` how many seconds lie between flushes; a
    file is removed `days` after the end of its month; ``clock()`` is a time such as 2026-01-31T00:00:00Z. `InputError`
    for numbers not above 0, and a folder that cannot be written to, is held by another, or ends in an edited line.
    """

    def __init__(
        self, folder: Path, *, full: Literal["wait", "refuse"] = "wait", most: int = 10_000, every: float = 0.05,
        days: int | None = None, clock: Callable[[], str] | None = None,
    ) -> None:  # fmt: skip
        if not all(number is None or number > 0 for number in (most, every, days)):
            raise InputError(f"most={most}, every={every}, days={days}", "numbers above 0", "correct them")
        self._folder, self._full, self._most, self._every, self._days = folder, full, most, every, days
        self._clock = clock or (lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self._lines: deque[tuple[str, Mapping[str, Any], Future[None]]] = deque()
        self._changed, self._key_lock, self._keys = threading.Condition(), threading.Lock(), dict[Path, bytes]()
        self._closing, self._lost, self._day, self._head = False, 0, "", GENESIS
        self._error: InputError | None = None
        self._path: Path | None = None
        with _told(folder), ExitStack() as stack:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((folder / "lock").open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._start()
            self._held = stack.pop_all()
        self._thread = threading.Thread(target=self._work, name="guard-record", daemon=True)
        self._thread.start()

    def write(self, body: Mapping[str, Any], *, wait: bool = True) -> Future[None]:
        """Queue a decision; the future is done after the fsync that holds its line.

        Without `wait` a full queue is told at once, whatever `full` says: for whoever must not stand still.
        `InputError` for a body that is no JSON or over 1 MiB, and after `close`; `Full`, also of the future.
        """
        return self._queue("decision", body, wait and self._full == "wait")

    def digest(self, tenant: str, text: str) -> str:
        """Return the first 32 hex digits of HMAC-SHA-256(key of the tenant, text): nothing to guess at without it."""
        path = self._key_path(tenant)
        with self._key_lock, _told(self._folder):
            key = self._keys.get(path) or (path.read_bytes() if path.exists() else b"")
            if len(key) != 32:  # none, or one whose writing a kill cut off
                key = secrets.token_bytes(32)
                path.touch(0o600)
                path.write_bytes(key)
                sync_path(path)
                sync_path(self._folder)
            self._keys[path] = key
        return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def erase(self, tenant: str) -> None:
        """Forget a tenant's key for good, and say so in a line; `InputError` for a tenant without one."""
        path = self._key_path(tenant)
        with self._key_lock, _told(self._folder):
            if not path.exists():
                raise InputError(f"the tenant {tenant!r} without a key", "a tenant with one", "nothing is to be erased")
            path.unlink()
            self._keys.pop(path, None)
            sync_path(self._folder)
        self._queue("erased", {}, True).result()

    def close(self, *_: object) -> None:
        """Flush, write the line ``closed``, let the folder go; `InputError` where the disk did not take it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._held.close()
        if self._error:
            raise self._error

    __exit__ = close

    def _key_path(self, tenant: str) -> Path:
        return self._folder / f"{hashlib.sha256(tenant.encode()).hexdigest()[:32]}.key"

    # -- the queue and its thread -----------------------------------------------------------------------------------

    def _queue(self, kind: str, body: Mapping[str, Any], wait: bool) -> Future[None]:
        text, done = canonical(body), Future[None]()  # refused here: in the thread it would take others with it
        if len(text) > _BODY:
            raise InputError(f"a line of {len(text):,} bytes", f"at most {_BODY:,}", "write less of it down")
        done.set_running_or_notify_cancel()  # whoever goes away while it waits cancels nothing
        with self._changed:
            if not wait and len(self._lines) >= self._most:
                raise Full(f"a record with {self._most:,} lines that wait for the disk", "fewer", "try again later")
            self._changed.wait_for(lambda: self._closing or self._error or len(self._lines) < self._most)
            if self._closing:
                raise InputError("a line for a record that was closed", "an open one", "make another")
            if self._error:
                raise Full(*self._error.args)
            self._lines.append((kind, json.loads(text), done))
            if len(self._lines) in (1, self._most):  # the thread waits for a line, then for many or its time
                self._changed.notify_all()
        return done

    def _work(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                if self._changed.wait_for(lambda: self._lines or self._closing, _IDLE):
                    self._changed.wait_for(lambda: self._closing or len(self._lines) >= self._most, self._every)
                batch, closing = list(self._lines), self._closing
                self._lines.clear()
                self._changed.notify_all()
            for kind, same in groupby(batch, key=lambda line: line[0]):
                lines = list(same)
                error = self._put(kind, [body for _, body, _ in lines])
                for *_, done in lines:
                    done.set_exception(error) if error else done.set_result(None)
            if closing or not batch:
                self._put("closed", [{}] * closing)  # else no line: a look at the calendar, and at a disk that failed

    def _put(self, kind: str, bodies: Sequence[Mapping[str, Any]]) -> InputError | None:
        """Put lines on disk, before them how many were lost, and return what went wrong."""
        error: InputError | None = None
        try:
            with _told(self._folder):
                self._turn()
                self._append("lost", [{"lines": self._lost}] * bool(self._lost))
                self._lost = 0
                self._append(kind, bodies)
        except InputError as found:
            error, self._lost = Full(*found.args), self._lost + len(bodies)
            if not self._error:
                _log.error("%s", error)
        with self._changed:
            self._error = error
            self._changed.notify_all()
        return error

    # -- the files --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Say in a line how the last stop was, and begin the file of this month."""
        files = _files(self._folder)
        if files and b"\n" not in _read(files[-1]):
            files.pop().unlink()  # a stop inside its first line: nothing was queued for it yet
        if files:
            self._path = files[-1]
            Ledger(self._path).mend()
            last = _read(self._path, self._path.stat().st_size - 2 * _BODY).splitlines()[-1]
            clean = last.startswith(b'{"body":{},') and b'"kind":"closed"' in last
            self._append("opened" if clean else "unclean", [{}])
        self._turn()

    def _append(self, kind: str, bodies: Sequence[Mapping[str, Any]], path: Path | None = None) -> None:
        path = path or self._path
        assert path is not None
        if lines := Ledger(path, clock=self._clock).append_many(kind, bodies):
            self._path, self._head = path, lines[-1]["hash"]

    def _turn(self) -> None:
        """Begin the file of a new month and, once a day, remove those too old; a clock that goes back does neither."""
        today = self._clock()[:10]
        path = self._folder / f"guard-{today[:7]}.jsonl"
        if self._path is None or path.name > self._path.name:
            self._append("began", [{"after": self._path and self._path.name, "head": self._head}], path)
        if self._days is None or today <= self._day:
            return
        self._day = today
        for old, after in pairwise(_files(self._folder)):
            ended = (date.fromisoformat(f"{old.name[6:13]}-28") + timedelta(4)).replace(day=1)
            if date.fromisoformat(today) < ended + timedelta(self._days):
                break
            head = json.loads(_read(after).splitlines()[0])["body"]["head"]
            self._append("removed", [{"file": old.name, "head": head}])
            for one in (*self._folder.glob(f"{old.name}.torn-*"), old):
                one.unlink()
            sync_path(self._folder)


def verify(folder: Path, head: str | None = None) -> list[tuple[str, Verification]]:
    """Check every file in order, and that each begins with the last hash of the one before, there or told as removed.

    `head` is the hash of a line that was seen before, 64 hex digits. Without it lines cut off at the end leave no
    trace, and the last reason says so though nothing is broken. `InputError` for no record, and a head that is none.
    """
    if head is not None and (len(head) != 64 or set(head) - set("0123456789abcdef")):
        raise InputError(f"the head {head!r}", "the hash of a line, 64 hex digits", "copy the whole of it")
    found = [(path.name, Ledger(path).verify()) for path in _files(folder)]
    if not found:
        got = f"{folder.resolve().name} without a record"
        raise InputError(got, "a folder with guard-YYYY-MM.jsonl", "check the path")
    if not all(check.intact for _, check in found):
        return found
    gone: set[tuple[Any, Any]] = {(None, GENESIS)}
    known = False
    for i in reversed(range(len(found))):  # which files were removed is told by later ones
        name, check = found[i]
        began = (None, None)
        with (folder / name).open("rb") as file:
            for line in map(json.loads, file):
                if line["n"] == 1:
                    began = line["body"].get("after"), line["body"].get("head")
                if line["kind"] == "removed":
                    gone.add((line["body"]["file"], line["body"]["head"]))
                known = known or line["hash"] == head
        if began not in ({(found[i - 1][0], found[i - 1][1].head)} if i else gone):
            reason = f"does not follow on {began[0]}: a file was removed, cut off or written anew"
            found[i] = (name, replace(check, intact=False, broken=1, reason=reason))
    known = known or head in {one for _, one in gone}
    name, last = found[-1]
    if head is None and last.intact:
        found[-1] = (name, replace(last, reason=_UNSEEN))
    elif not known and last.intact:
        found[-1] = (name, replace(last, intact=False, broken=last.lines + 1, reason=_MISSING))
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(_FILES))


def _read(path: Path, start: int = 0) -> bytes:
    """Return so much of a file that it holds a whole line."""
    with path.open("rb") as file:
        file.seek(max(0, start))
        return file.read(2 * _BODY)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Tell what the system refuses in three parts."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of whatever kind: in the thread it must reach somebody
        why = "another guard does" if isinstance(error, BlockingIOError) else getattr(error, "strerror", None) or error
        got, todo = (
            f"the record {folder.resolve().name} cannot be written to ({why})",
            "free some space, see to its rights",
        )
        raise Full(got, "a folder of its own, with room", f"{todo}, or name another folder") from None
