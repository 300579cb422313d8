"""An append-only log whose lines are chained by hashes: what was written once cannot be changed unseen.

    hash_n = SHA-256(canonical JSON of n, time, kind, body, previous),    previous_n = hash_(n-1),    previous_1 = 0...0

One JSON object a line. Canonical: keys sorted, no spaces, ASCII, no NaN; a line in the file must be canonical byte by
byte. What a check finds, and what it needs for that:

=======================================  =======================================
an edited, removed, added, moved line    the file alone
lines cut off at the end                 the hash of a later line, kept elsewhere
a whole chain written anew               that hash, or a signature
=======================================  =======================================

A signature is ``HMAC-SHA-256(key, hash_n)`` with a key file that does not lie beside the log. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from upright.contract import InputError

__all__ = ["GENESIS", "Ledger", "Verification", "canonical", "new_id", "open_desk", "sync_path"]

GENESIS = "0" * 64
"""``previous`` of the first line."""
_FIELDS = ("n", "time", "kind", "body", "previous", "hash")
_KEY_BYTES = 32  # an HMAC key shorter than the hash weakens it
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Verification:
    """What a check of the whole chain found.

    Parameters
    ----------
    intact : bool
        Nothing was found.
    lines : int
        Whole lines in the file.
    head : str
        Hash of the last line that holds, `GENESIS` of an empty log. Keep it elsewhere: it proves later truncation.
    broken : int or None
        Number of the first line that does not hold, from 1.
    reason : str
        Why, in words; empty when intact.
    torn : int
        Bytes after the last whole line: a write that a crash cut off.
    signed : bool
        Every line was checked against the key.
    """

    intact: bool
    lines: int
    head: str
    broken: int | None
    reason: str
    torn: int
    signed: bool


def canonical(value: Any) -> str:
    """Return JSON with one spelling: keys sorted, no spaces, ASCII.

    Raises
    ------
    InputError
        When a value is no JSON, a key is no text, or a number is not finite.
    """
    return _written(value, keys=True)


def _written(value: Any, *, keys: bool = False) -> str:
    """Return canonical JSON; what was read from JSON has texts as keys and is written without looking at them."""
    try:
        if keys:
            _refuse_keys(value)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        todo = "turn arrays into lists, write str(key), and None where a number is undefined"
        accepted = "texts, finite numbers, lists, mappings by texts"
        raise InputError(f"a ledger body that is no JSON: {error}", accepted, todo) from None


def _refuse_keys(value: Any) -> None:
    """Refuse keys that JSON would turn into text: they would sort in another order when read again."""
    if isinstance(value, Mapping):
        if odd := [k for k in value if not isinstance(k, str)]:
            raise TypeError(f"the key {odd[0]!r}")
        value = list(value.values())
    for one in value if isinstance(value, list | tuple) else ():
        _refuse_keys(one)


def _hash(line: Mapping[str, Any]) -> str:
    """SHA-256 of all fields but the hash itself and what is computed from it; 64 hex digits."""
    return hashlib.sha256(_written({k: line[k] for k in _FIELDS[:-1]}).encode()).hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Ledger:
    """An append-only log in one file.

    Parameters
    ----------
    path : str or Path
        JSON lines; made by the first `append`.
    key : str or Path, optional
        File with 32 bytes or more. Then every line is signed, and `verify` accepts signed lines only.
    wait : float
        Seconds to wait for another writer.
    clock : callable
        ``clock() -> str``, the time of a line; UTC by default.

    Raises
    ------
    InputError
        When the key file is missing or short, or the path is a folder.
    """

    def __init__(
        self, path: str | Path, *, key: str | Path | None = None, wait: float = 10.0, clock: Callable[[], str] = _now
    ) -> None:
        self.path, self.wait, self.clock = Path(path), wait, clock
        if self.path.is_dir():
            raise InputError(f"ledger {self.path.name} is a folder", "a file, new or there already", "name a file")
        self._key = None if key is None else _read_key(Path(key))

    def append(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Add one line, on disk when this returns, and return it.

        Parameters
        ----------
        kind : str
            What happened, one word.
        body : mapping
            Of JSON values; keys are texts, numbers finite.

        Raises
        ------
        InputError
            When the body is no JSON, another writer holds the file, the last line is torn or broken, signed and
            unsigned lines would mix, or the disk is full. The file then is as it was.
        """
        return self.append_many(kind, [body])[0]

    def append_many(self, kind: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Add a line for each body under one lock, in one write, and return them: all, or none where `append` raises.

        Cost: one fsync, however many bodies there are; none without any.
        """
        copies = [json.loads(canonical(body)) for body in bodies]
        if not copies:
            return []
        with self._locked() as file:
            return self._add(file, kind, copies)

    def lines(self) -> list[dict[str, Any]]:
        """Return the whole lines in order, unchecked: `verify` checks. What a crash tore off is not among them.

        Raises
        ------
        InputError
            When a line is no JSON object.
        """
        out = []
        for number, raw in enumerate(self._raw()[0], start=1):
            found = _parse(raw)
            if found is None:
                raise InputError(
                    f"{self.path.name}, line {number}: no line of a ledger", "lines as `append` wrote them",
                    "run verify, and take the file from a copy",
                )  # fmt: skip
            out.append(found)
        return out

    def verify(self, head: str | None = None) -> Verification:
        """Check every line, and that the chain still holds a line known from elsewhere.

        Parameters
        ----------
        head : str, optional
            Hash of a line that was seen before. Without it lines cut off at the end leave no trace.

        Guarantee
        ---------
        With a head that was kept elsewhere, every change to lines up to it is found, by the second-preimage resistance
        of SHA-256, of signatures with their key alone. With a key, every change by somebody without the key, but for
        lines cut off after the head.
        """
        raws, torn = self._raw()
        previous, seen = GENESIS, set()
        for number, raw in enumerate(raws, start=1):
            line = _parse(raw)
            if line is None or (reason := self._fault(line, raw, number, previous)):
                reason = "no line of a ledger" if line is None else reason
                return Verification(False, len(raws), previous, number, reason, len(torn), False)
            previous = line["hash"]
            seen.add(previous)
        reason, broken = "", None
        if head is not None and head not in seen and head != GENESIS:
            reason, broken = "a line known from elsewhere is missing: lines were cut off or written anew", len(raws) + 1
        elif torn:
            reason, broken = f"torn: {len(torn)} bytes without an end of line, by a crash or by hand", len(raws) + 1
        return Verification(not reason, len(raws), previous, broken, reason, len(torn), self._key is not None)

    def mend(self) -> dict[str, Any] | None:
        """Take a torn last line out, keep its bytes beside the log, and say so in a line of its own.

        Returns
        -------
        dict or None
            The line, of kind ``mended``; None when nothing was torn.
        """
        with self._locked() as file:
            whole, torn = _split(_contents(file))
            if not torn:
                return None
            if whole:
                self._checked(_parse(whole[-1]))  # nothing is taken out where no line could be added
            kept = self.path.with_name(f"{self.path.name}.torn-{len(whole) + 1}")
            kept.write_bytes(torn)
            file.truncate(sum(len(raw) + 1 for raw in whole))
            digest = hashlib.sha256(torn).hexdigest()
            return self._add(file, "mended", [{"bytes": len(torn), "sha256": digest, "kept": kept.name}])[0]

    # -- one line ---------------------------------------------------------------------------------------------------

    def _fault(self, line: Mapping[str, Any], raw: bytes, number: int, previous: str) -> str:
        """Say what is wrong with a line, or nothing."""
        if line["n"] != number:
            return f"numbered {line['n']}: lines were removed, added or moved"
        if line["previous"] != previous:
            return "does not follow the line before it: lines were removed, added or moved"
        try:
            whole = line["hash"] == _hash(line) and _written(line).encode() == raw
        except InputError:  # nested deeper than can be written
            whole = False
        if not whole:
            return "its content is not what its hash was taken of: it was edited"
        if self._key is not None:
            if "signature" not in line:
                return "not signed"
            if not self._is_own(line):
                return "signed with another key"
        return ""

    def _is_own(self, line: Mapping[str, Any]) -> bool:
        """Whether a line is signed with this key; compared as bytes, since a forger may write what is no ASCII."""
        return hmac.compare_digest(ascii(line["signature"]).encode(), ascii(self._sign(line["hash"])).encode())

    def _sign(self, digest: str) -> str:
        assert self._key is not None
        return hmac.new(self._key, digest.encode(), hashlib.sha256).hexdigest()

    def _add(self, file: IO[bytes], kind: str, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        last, lines = self._last(file), []
        for body in bodies:
            line: dict[str, Any] = {
                "n": 1 if last is None else last["n"] + 1, "time": self.clock(), "kind": kind, "body": body,
                "previous": GENESIS if last is None else last["hash"],
            }  # fmt: skip
            line["hash"] = _hash(line)
            if self._key is not None:
                line["signature"] = self._sign(line["hash"])
            lines.append(last := line)
        self._write(file, "".join(f"{_written(line)}\n" for line in lines).encode())
        return lines

    # -- the file ---------------------------------------------------------------------------------------------------

    def _raw(self) -> tuple[list[bytes], bytes]:
        """Return whole lines without their ends, and what stands after the last of them."""
        import fcntl

        if not self.path.exists():
            return [], b""
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # not in the middle of a write
            return _split(file.read())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """Open the file for reading and appending while nobody else writes."""
        import fcntl

        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as file:
            end = time.monotonic() + self.wait
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() >= end:
                        raise InputError(f"{self.path.name} is held by another writer", "one writer at a time",
                                         "wait for it, then run this again") from None  # fmt: skip
                    time.sleep(0.01)
            if new:
                sync_path(self.path.parent)
            yield file

    def _last(self, file: IO[bytes]) -> dict[str, Any] | None:
        """Return the last line, checked by itself; None of an empty file. Reads the end of the file only."""
        size, tail = file.seek(0, os.SEEK_END), b""
        at = size
        while at > 0 and tail[:-1].count(b"\n") < 1:
            step = min(_BLOCK, at)
            at -= step
            file.seek(at)
            tail = _read(file, step) + tail
        if not tail:
            return None
        if not tail.endswith(b"\n"):
            torn = len(tail) - tail.rfind(b"\n") - 1
            raise InputError(
                f"{self.path.name} ends in a torn line of {torn} bytes", "whole lines",
                "run verify --mend: it keeps the bytes beside the ledger and notes that in a line",
            )  # fmt: skip
        return self._checked(_parse(tail[:-1].rsplit(b"\n", 1)[-1]))

    def _checked(self, line: dict[str, Any] | None) -> dict[str, Any]:
        """Return a last line that another may follow."""
        if line is None or line["hash"] != _hash(line):
            raise InputError(f"{self.path.name} ends in a line that was edited", "lines as `append` wrote them",
                             "run verify, and take the file from a copy")  # fmt: skip
        if ("signature" in line) != (self._key is not None):
            got, todo = ("signed", "pass the key") if "signature" in line else ("unsigned", "leave the key out")
            raise InputError(f"{self.path.name} with {got} lines", "all lines signed, or none",
                             f"{todo}, or begin another ledger")  # fmt: skip
        if self._key is not None and not self._is_own(line):
            raise InputError(f"{self.path.name} ends in a line signed with another key", "lines signed with this key",
                             "pass the key of this ledger, or run verify: the line may be forged")  # fmt: skip
        return line

    def _write(self, file: IO[bytes], data: bytes) -> None:
        """Write whole lines or nothing."""
        size = file.seek(0, os.SEEK_END)
        try:
            done = 0
            while done < len(data):
                done += file.write(data[done:])
            os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(size)  # our own half lines, under our own lock; the error tells of it
            raise InputError(f"{self.path.name} cannot be written to ({error.strerror})", "a disk with room",
                             "free some space, then run this again") from None  # fmt: skip


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    *whole, torn = data.split(b"\n")
    return whole, torn


def _read(file: IO[bytes], size: int) -> bytes:
    """Read exactly so many bytes from an unbuffered file."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _contents(file: IO[bytes]) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _read(file, size)


def _finite(text: str) -> float:
    """Read a number, and refuse NaN and what overflows, which Python reads and JSON does not know."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


def _parse(raw: bytes) -> dict[str, Any] | None:
    """Return a line as a mapping with the right fields, None of anything else."""
    try:
        line = _JSON.decode(raw.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or set(line) - {"signature"} != set(_FIELDS) or type(line["n"]) is not int:
        return None
    return line


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except OSError as error:
        raise InputError(f"key file {path.name}: {error.strerror}", f"a file of {_KEY_BYTES} bytes or more",
                         f"make one: head -c {_KEY_BYTES} /dev/urandom > {path.name}") from None  # fmt: skip
    if len(key) < _KEY_BYTES:
        raise InputError(f"key file {path.name} of {len(key)} bytes", f"{_KEY_BYTES} bytes or more",
                         f"make one: head -c {_KEY_BYTES} /dev/urandom > {path.name}")  # fmt: skip
    return key


def new_id() -> str:
    """Return a name that sorts by time: date, time, six hex digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def open_desk(desk: Path, part: str) -> Path:
    """Return a folder of a desk with a ledger, made where it is not there, that only their owner may read.

    A desk that was there before keeps its own rights: it may hold other things.
    """
    folder = desk / part
    try:
        if not desk.exists():
            desk.mkdir(parents=True)
            desk.chmod(0o700)
        folder.mkdir(parents=True, exist_ok=True)
        for one in {folder.parent, folder} - {desk}:
            one.chmod(0o700)  # what is secret stays with its owner
        (desk / "ledger.jsonl").touch()
        (desk / "ledger.jsonl").chmod(0o600)
    except OSError as error:
        raise InputError(f"--desk {desk.name} cannot be written to ({error.strerror})", "a folder with room",
                         "name another place") from None  # fmt: skip
    return folder


def sync_path(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
