"""The registry of works, in an SQLite file or a PostgreSQL database.

A change moves the registry's version in its own transaction: what was read after a version holds while that stands.
An id is never given again, also not after a removal. Threads share one connection behind one lock; each process opens
its own `Registry`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sqlite3
import threading
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.guard.rights import Work

__all__ = ["FLAGS", "LONE", "NAMES", "YEARS", "Registry", "refuse_odd"]

_FORMAT, _IDS, _WAIT, _PAGE = 1, 1 << 24, 10, 256  # of the tables; beside 40 bits of a hash; seconds; works at once
NAMES = tuple(one.name for one in fields(Work))
YEARS, FLAGS = ("died", "published", "until"), ("corporate", "renewed", "noticed", "government")
_COLUMNS = ", ".join(NAMES)
_TYPES = ", ".join(f"{n} {'INTEGER' if n in YEARS + FLAGS else 'TEXT'}" for n in NAMES[1:])
_SCHEMA = (  # SQLite keeps bytes as they are in a column of any type
    "CREATE TABLE guard_meta (format INTEGER, version BIGINT, next_id INTEGER, bundled INTEGER)",
    f"CREATE TABLE guard_works (id INTEGER PRIMARY KEY, {_TYPES}, words TEXT, text BYTEA, fingerprints BYTEA)",
)
_INSERT = f"INSERT INTO guard_works VALUES ({', '.join('?' * (len(NAMES) + 3))})"
LONE = re.compile("[\ud800-\udfff]")  # half of a pair, or a byte that is no UTF-8
_ODD = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029]|{LONE.pattern}")  # would break a line or a header


class Registry:
    """Registered works, shared by threads and, through the same place, by processes.

    Parameters
    ----------
    place : str or Path
        A file, or ``postgresql://...``; made where it is not there.
    bundled : bool
        Mark what is made as a benchmark's: its holders and dates are made up. What was there keeps its own mark.

    Raises
    ------
    InputError
        Here and in each method, when the place cannot be read or written, or holds no registry of this format.
    """

    def __init__(self, place: str | Path, *, bundled: bool = False) -> None:
        self._place, self._lock = str(place), threading.RLock()
        self._remote = self._place.startswith(("postgresql://", "postgres://"))
        self.name = "the PostgreSQL registry" if self._remote else f"registry {Path(place).name}"  # no password
        self._errors: type[Exception] = sqlite3.Error
        self._db: Any = None
        try:
            self.bundled = self._set_up(bundled)
        except BaseException:
            self.close()
            raise

    def add(self, work: Work, text: str | None, *, fingerprints: bytes | None = None) -> int:
        """Register a work by its text, its fingerprints or its dates alone; return its id, whatever id it brings.

        Raises
        ------
        InputError
            When a name holds a control character, or all 2^24 ids were given.
        """
        return self._insert([_row(work, text, fingerprints)])[0]

    def add_many(self, rows: Iterable[tuple[Work, str | None]]) -> list[int]:
        """Register works in one transaction, all or none, and return their ids."""
        return self._insert([_row(work, text) for work, text in rows])

    def remove(self, id: int) -> Work:
        """Take a work out and return it; `InputError` where there is none."""
        with self._changing():
            work = self.work(id)
            self._run("DELETE FROM guard_works WHERE id = ?", id)
        return work

    def work(self, id: int) -> Work:
        """Return a work; `InputError` where there is none."""
        return _work(self._found(id, _COLUMNS))

    def text(self, id: int) -> str | None:
        """Return the text of a work, None where it has none; `InputError` where there is no such work."""
        return _unpack(self._found(id, "text")[0])

    def search(self, words: str, limit: int = 20) -> list[Work]:
        """Return the first works in whose title, holder and authors all words stand, in any case, also as parts."""
        like = [f"%{word}%" for word in re.sub("([%_!])", r"!\1", _folded(words)).split()]
        where = " AND ".join(["TRUE", *["words LIKE ? ESCAPE '!'"] * len(like)])
        query = f"SELECT {_COLUMNS} FROM guard_works WHERE {where} ORDER BY id LIMIT ?"
        return [_work(row) for row in self._run(query, *like, max(0, limit))]

    def ids(self) -> list[int]:
        """Return the ids of all works, ascending."""
        return [row[0] for row in self._run("SELECT id FROM guard_works ORDER BY id")]

    def works(self, after: int = -1) -> Iterator[tuple[Work, str | None, bytes | None]]:
        """Yield works with a larger id, texts and fingerprints, in order of ids; a change meanwhile may be seen."""
        query = f"SELECT {_COLUMNS}, text, fingerprints FROM guard_works WHERE id > ? ORDER BY id LIMIT {_PAGE}"
        while page := self._run(query, after):
            yield from ((_work(row[:-2]), _unpack(row[-2]), row[-1]) for row in page)
            after = page[-1][0]

    def version(self) -> int:
        """Return a number that moves with every change, by whomever: one row is read."""
        return int(self._run("SELECT version FROM guard_meta")[0][0])

    def stats(self) -> dict[str, int]:
        """Count works, those with text, those with fingerprints alone, and those of each status that is declared."""
        count = "SELECT COUNT(*), COUNT(text), COUNT(CASE WHEN text IS NULL THEN fingerprints END) FROM guard_works"
        told = dict(zip(("works", "with text", "with fingerprints alone"), self._run(count)[0], strict=True))
        declared = self._run("SELECT declared, COUNT(declared) FROM guard_works GROUP BY declared ORDER BY declared")
        return told | {f"declared {status}": number for status, number in declared if number}

    def close(self) -> None:
        """Close the connection."""
        if self._db is not None:
            self._db.close()

    # -- the database -----------------------------------------------------------------------------------------------

    def _connect(self) -> Any:
        if not self._remote:
            return sqlite3.connect(self._place, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        try:
            psycopg = importlib.import_module("psycopg")
        except ModuleNotFoundError:
            todo = "pip install 'upright[guard-postgres]'"
            raise InputError("PostgreSQL without the package psycopg", "the extra guard-postgres", todo) from None
        self._errors = psycopg.Error
        return psycopg.connect(self._place, autocommit=True, connect_timeout=_WAIT)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the connection, made anew where it broke; what the database refuses is told in three parts."""
        with self._lock:
            try:
                if self._db is None or getattr(self._db, "broken", False):
                    self._db = self._connect()
                yield
            except self._errors as error:
                why = str(error).strip().split("\n")[0]
                if self._remote and self._db is None:  # the text before may hold a piece of a password
                    why = why.partition(" failed: ")[2] or "the address is not understood"
                got, todo = f"{self.name} that cannot be used ({why})", "check the place, and who may write there"
                raise InputError(got, "a registry that is there and free", todo) from None

    def _spelled(self, statement: str) -> str:
        return statement.replace("?", "%s") if self._remote else statement

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._held():
            cursor = self._db.execute(self._spelled(statement), values)
            return list(cursor.fetchall()) if cursor.description else []

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Change and move the version, or neither. One writer at a time: in PostgreSQL by a lock of our own."""
        with self._held():
            for one in ("BEGIN", "SELECT pg_advisory_xact_lock(1971)") if self._remote else ("BEGIN IMMEDIATE",):
                self._run(one)
            try:
                yield
                self._run("UPDATE guard_meta SET version = version + 1")
                self._run("COMMIT")
            except BaseException:
                with contextlib.suppress(InputError):
                    self._run("ROLLBACK")
                raise

    def _insert(self, rows: list[tuple[Any, ...]]) -> list[int]:
        if not rows:
            return []
        with self._changing():
            first = self._run("SELECT next_id FROM guard_meta")[0][0]
            if (after := first + len(rows)) > _IDS:
                raise InputError(f"{self.name} with {after} ids", f"at most {_IDS}", "begin another registry")
            self._run("UPDATE guard_meta SET next_id = ?", after)
            values = [(first + i, *row) for i, row in enumerate(rows)]
            self._db.cursor().executemany(self._spelled(_INSERT), values)
        return list(range(first, after))

    def _found(self, id: int, columns: str) -> tuple[Any, ...]:
        rows = self._run(f"SELECT {columns} FROM guard_works WHERE id = ?", id) if 0 <= id < _IDS else []
        if not rows:
            raise InputError(f"work {id}, which is not in {self.name}", "the id of a registered work", "search for it")
        return rows[0]

    def _format(self) -> int:
        """Return the format of what is there: 0 of nothing, -1 of what something else made."""
        if not self._remote:
            tables = self._run("SELECT COUNT(*) FROM sqlite_master")[0][0]
            return int(self._run("PRAGMA user_version")[0][0]) or -bool(tables)
        there = self._run("SELECT 1 FROM pg_tables WHERE tablename = 'guard_meta' AND schemaname = current_schema()")
        return int(self._run("SELECT format FROM guard_meta")[0][0]) if there else 0

    def _set_up(self, bundled: bool) -> bool:
        """Make what is not there, refuse what is another's, and return whether it is bundled."""
        if not self._format():
            with self._changing():
                if not self._format():  # nobody else was first
                    for one in _SCHEMA if self._remote else (*_SCHEMA, f"PRAGMA user_version = {_FORMAT}"):
                        self._run(one)
                    self._run("INSERT INTO guard_meta VALUES (?, 0, 0, ?)", _FORMAT, int(bundled))
        if (found := self._format()) != _FORMAT:
            what = f"of format {found}" if found > 0 else "which something else made"
            raise InputError(f"{self.name}, {what}", f"a registry of format {_FORMAT}", "name another place")
        if not self._remote:
            self._run("PRAGMA journal_mode = WAL")
        return bool(self._run("SELECT bundled FROM guard_meta")[0][0])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def refuse_odd(work: Work, text: str | None) -> None:
    """Refuse what neither database nor header takes."""
    told = "".join((work.title, work.holder, *work.authors, work.licence, work.owner))
    if found := _ODD.search(told) or LONE.search(text or ""):
        raise InputError(f"a work with the character U+{ord(found[0]):04X}", "what prints", "take it out")


def _row(work: Work, text: str | None, fingerprints: bytes | None = None) -> tuple[Any, ...]:
    """Return the columns of a work but its id."""
    refuse_odd(work, text)
    values = {name: getattr(work, name) for name in NAMES[1:]} | {"authors": json.dumps(work.authors)}
    told = (int(one) if isinstance(one, bool) else one for one in values.values())
    packed = None if text is None else zlib.compress(text.encode())
    return (*told, _folded("\n".join((work.title, work.holder, *work.authors))), packed, fingerprints)


def _work(row: tuple[Any, ...]) -> Work:
    values = dict(zip(NAMES, row, strict=True))
    values |= {name: bool(values[name]) for name in FLAGS if values[name] is not None}
    return Work(**values | {"authors": tuple(json.loads(values["authors"]))})


def _unpack(packed: bytes | None) -> str | None:
    return None if packed is None else zlib.decompress(packed).decode()
