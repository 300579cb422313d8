"""What a forgetting desk keeps on disk: whole model folders, and request folders with what is secret in them.

*Model folders.* None is ever written to. A new one is made beside its place under another name and renamed once it is
complete and on disk, so at any moment it is there as a whole or not at all. Room is looked for before hours of
training, and a disk that fills up all the same leaves nothing behind. Two checksums tell one from another: that of the
weights, and that of every other file that a model reads.

*Request folders.* ``DESK/requests/ID/`` with ``salt`` (32 secret bytes), ``scores.json`` (a number a record),
``cache/`` and ``plan.json``. `purge` destroys the first three and every ``*.part`` that a crash left; without the salt
no hash in the ledger can be tied to a record. The plan names the process that works on the request, by its number and
when it started, so that a list tells a running request from a dead one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.data.forget import Record, digest, fingerprint
from upright.ledger import new_id, open_desk, sync_path

__all__ = [
    "Request",
    "checksum",
    "is_full",
    "leftovers",
    "new_folder",
    "plain",
    "refuse_full",
    "request_of",
    "requests_of",
    "settings_checksum",
    "weight_bytes",
    "write_bytes",
    "write_json",
    "write_text",
]

_SPARE = 1.1  # of the weights: tokenizer, configuration, what else is written meanwhile
_PART = ".upright-part-"
_BLOCK = 1 << 20


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: undefined numbers become None, arrays lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any, *, private: bool = True) -> None:
    """Write JSON as a whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n", private=private)


def write_text(path: Path, text: str, *, private: bool = True) -> None:
    """Write a text in UTF-8 as a whole or not at all; the rest as in `write_bytes`."""
    write_bytes(path, text.encode(), private=private)


def write_bytes(path: Path, data: bytes, *, private: bool = True) -> None:
    """Write a file as a whole or not at all, and so that its owner alone may read it unless `private` is False.

    Raises
    ------
    InputError
        When the disk is full or the place cannot be written to.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if private:
                temporary.chmod(0o600)  # before there is anything to read
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path.name} cannot be written ({error.strerror})", "a place with room that may be written to",
            "free some space, or name another place",
        ) from None  # fmt: skip


# -- model folders --------------------------------------------------------------------------------------------------


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def weight_bytes(folder: Path) -> int:
    """Return how many bytes the weights of a model folder take."""
    return sum(file.stat().st_size for file in _weights(folder))


def checksum(folder: Path) -> str:
    """SHA-256 over ``name, SHA-256 of the content`` of every ``*.safetensors`` in a folder, by name; 64 hex digits."""
    return _checksum(folder, _weights(folder))


def settings_checksum(folder: Path) -> str:
    """SHA-256 over ``name, SHA-256 of the content`` of every other file below a folder, by name; 64 hex digits.

    Config, generation config, tokenizer, chat templates, the settings of adapters, and whatever else stands there: a
    file that is added counts too. Not in it: hidden files and documents (``*.md``), which no model reads.
    """
    files = {file for file in folder.rglob("*") if file.suffix != ".md" and (file.is_symlink() or not file.is_dir())}
    hidden = {file for file in files if any(part.startswith(".") for part in file.relative_to(folder).parts)}
    return _checksum(folder, files - hidden - set(_weights(folder)))


def _checksum(folder: Path, files: Iterable[Path]) -> str:
    outer = hashlib.sha256()
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        inner = hashlib.sha256(b"no file")  # a link to a folder, or to nothing
        if file.is_file():
            with file.open("rb") as stream:
                inner = hashlib.file_digest(stream, "sha256")
        outer.update(f"{name} {inner.hexdigest()}\n".encode())
    return outer.hexdigest()


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def refuse_full(out: Path, size: int) -> None:
    """Refuse a disk without room for weights of `size` bytes and a tenth more.

    Raises
    ------
    InputError
    """
    standing = next(part for part in out.absolute().parents if part.is_dir())
    need, free = math.ceil(size * _SPARE), shutil.disk_usage(standing).free
    if free < need:
        raise InputError(f"{_mebibytes(free)} free for --out {out.name}", f"{_mebibytes(need)}, the model and 10 %",
                         "free some space, or name a place on another disk")  # fmt: skip


def leftovers(out: Path) -> list[str]:
    """Return the names of half-written folders that killed runs left beside a place."""
    return sorted(p.name for p in out.parent.glob(f".{out.name}{_PART}*")) if out.parent.is_dir() else []


@contextlib.contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` when the body ends well, and vanishes when it does not.

    Parameters
    ----------
    out : Path
        Must not exist.
    size : int
        Bytes that will be written.

    Raises
    ------
    InputError
        When there is no room before, or no room left while writing, or `out` appeared meanwhile.
    """
    refuse_full(out, size)
    part = out.with_name(f".{out.name}{_PART}{secrets.token_hex(4)}")
    try:
        part.mkdir(parents=True)
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                sync_path(file)
        if out.exists():
            raise FileExistsError(errno.EEXIST, "it appeared meanwhile", str(out))
        os.rename(part, out)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        number = _errno(error)
        if is_full(error):
            raise InputError(
                f"a full disk while writing --out {out.name}", f"{_mebibytes(size * _SPARE)}, the model and 10 %",
                "free some space, or name a place on another disk; nothing was left behind",
            ) from None  # fmt: skip
        if number is not None:
            raise InputError(f"--out {out.name} cannot be written ({os.strerror(number)})", "a new folder",
                             "name another place; nothing was left behind") from None  # fmt: skip
        raise
    sync_path(out.parent)


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room: disk, quota, or the largest file that is allowed."""
    return _errno(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _errno(error: BaseException) -> int | None:
    """Return the number of an error of the operating system; safetensors gives it in words alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


# -- request folders ------------------------------------------------------------------------------------------------


class Request:
    """One request: its folder in a desk.

    Parameters
    ----------
    folder : Path
        ``DESK/requests/ID``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, folder.name

    @classmethod
    def new(cls, desk: Path) -> Request:
        """Make a folder with a salt, in a desk with a ledger, that only their owner may read."""
        folder = open_desk(desk, f"requests/{new_id()}")
        write_bytes(folder / "salt", secrets.token_bytes(32))
        request = cls(folder)
        request.begin()
        return request

    @property
    def salt(self) -> bytes | None:
        """None once purged."""
        file = self.folder / "salt"
        return file.read_bytes() if file.is_file() else None

    @property
    def cache(self) -> Path:
        """Folder for what may be thrown away; made when asked for."""
        folder = self.folder / "cache"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def lock(self) -> None:
        """Leave all that was written here to its owner: other parts of the library wrote the cache."""
        for one in (self.folder, *self.folder.rglob("*")):
            if not one.is_symlink():
                one.chmod(0o700 if one.is_dir() else 0o600)

    @property
    def plan(self) -> dict[str, Any]:
        """What was asked for and how far it got; no text and no score. A kill at the beginning leaves the id alone."""
        file = self.folder / "plan.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {"request": self.id}
        except (OSError, ValueError) as error:
            raise InputError(f"{file.name}: {error.__class__.__name__}", "a JSON file that this desk wrote",
                             "take the file from a copy") from None  # fmt: skip

    def note(self, **values: Any) -> None:
        """Add to the plan."""
        write_json(self.folder / "plan.json", {**self.plan, **values})

    def begin(self) -> None:
        """Note that this process works on the request: by `new`, and again when a request is resumed."""
        self.note(pid=os.getpid(), started=_started(os.getpid()), **_machine())

    def state(self) -> tuple[str, str]:
        """Return how far the request got, and why that is so or is not known.

        A process is known by its number and its start: what got the number later started later. Processes of another
        machine or container cannot be seen, so their requests are ``running or dead``.
        """
        plan, here = self.plan, _machine()
        if plan.get("status", "started") != "started":
            return plan["status"], ""
        if plan.get("started") is None:
            return "running or dead", "its process was not noted"
        if plan["machine"] != here["machine"]:
            return "running or dead", "begun on another machine"
        if plan["boot"] != here["boot"]:
            return "dead", "the machine was started again since"
        if plan["processes"] != here["processes"]:
            return "running or dead", "begun in another container"
        if _started(plan["pid"]) != plan["started"]:
            return "dead", f"its process {plan['pid']} is gone"
        return "running", f"process {plan['pid']}"

    def hashes(self, records: Iterable[Record]) -> list[str]:
        """``HMAC-SHA-256(salt, digest(record))`` of each record, 64 hex digits; raises once purged."""
        salt = self._secret()
        return [hmac.new(salt, digest(r).encode(), hashlib.sha256).hexdigest() for r in records]

    def hash_of_set(self, records: Sequence[Record]) -> str:
        """``HMAC-SHA-256(salt, fingerprint(records))``: guessing the records does not confirm them without the salt."""
        return hmac.new(self._secret(), fingerprint(records).encode(), hashlib.sha256).hexdigest()

    def _secret(self) -> bytes:
        if self.salt is None:
            raise InputError(f"request {self.id} without its salt", "a request that was not purged", "begin another")
        return self.salt

    def torn(self) -> list[str]:
        """Return the names of half-written files, which may hold scores: a kill left them."""
        return sorted(p.name for p in self.folder.glob("*.part") if p.is_file())

    def purge(self) -> list[str]:
        """Overwrite and delete salt, scores, cache and half-written files; returns what there was.

        Guarantee
        ---------
        None about the medium: an SSD, a copying file system or a backup may keep the old blocks.
        """
        gone = []
        for name in ("salt", "scores.json", *self.torn()):
            if (self.folder / name).is_file():
                _destroy(self.folder / name)
                gone.append(name)
        cache = self.folder / "cache"
        if cache.is_dir():
            for file in cache.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    _destroy(file)
            shutil.rmtree(cache)
            gone.append("cache")
        return gone


def _machine() -> dict[str, str]:
    """Tell a machine, its last start, and where its process numbers count, from others.

    The name of a machine may be that of a person, so it is hashed. A container has numbers of its own.
    """
    found = {}
    for name, file in (("id", "/etc/machine-id"), ("boot", "/proc/sys/kernel/random/boot_id")):
        with contextlib.suppress(OSError):
            found[name] = Path(file).read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        found["processes"] = os.readlink("/proc/self/ns/pid")
    machine = hashlib.sha256(f"{platform.node()} {found.get('id', '')}".encode()).hexdigest()
    return {"machine": machine, "boot": found.get("boot", ""), "processes": found.get("processes", "")}


def _started(pid: int) -> str | None:
    """Return when a process started, as the system counts it; None when it ended, or waits to be buried."""
    if not Path("/proc/self/stat").exists():  # macOS
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return shown.stdout.strip() or None
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]


def _destroy(file: Path) -> None:
    """Overwrite a file once, then delete it."""
    with file.open("r+b") as stream:
        left = file.stat().st_size
        while left > 0:
            left -= stream.write(secrets.token_bytes(min(left, _BLOCK)))
        stream.flush()
        os.fsync(stream.fileno())
    file.unlink()


def requests_of(desk: Path) -> list[Request]:
    """Return all requests of a desk, the oldest first."""
    return [Request(p) for p in sorted((desk / "requests").glob("*")) if p.is_dir()]


def request_of(desk: Path, name: str) -> Request:
    """Return one request.

    Raises
    ------
    InputError
        When there is none of this name.
    """
    if not re.fullmatch(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}", name) or not (desk / "requests" / name).is_dir():
        known = ", ".join(r.id for r in requests_of(desk)[-5:]) or "none yet"
        raise InputError(f"request {name!r} at the desk {desk.name}", f"one of its requests: {known}",
                         "see all of them with: upright forget list")  # fmt: skip
    return Request(desk / "requests" / name)
