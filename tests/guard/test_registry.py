"""The registry in a file.

What PostgreSQL must do alike is checked in test_postgres.py.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

import pytest

from upright.contract import InputError
from upright.guard.registry import Registry
from upright.guard.rights import Work


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return path


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return caught.value


def test_what_is_kept_outlives_the_object(tmp_path):
    # catches: an id given again after a restart, a registry of made-up holders that passes for a real one
    with closing(Registry(tmp_path / "r.db", bundled=True)) as one:
        one.remove(one.add(Work(0), None))
        version = one.version()
    with closing(Registry(tmp_path / "r.db")) as one:
        assert (one.bundled, one.version(), one.add(Work(0), None)) == (True, version, 1)
        assert one._run("PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("user_version", [None, 0, 7])
def test_a_file_that_is_no_registry_is_refused_and_left_as_it_was(tmp_path, user_version):
    # catches: tables written into another program's file, a registry of tomorrow read as one of today
    path = written(tmp_path, "r.db", b"no database" * 99)
    if user_version is not None:
        path.unlink()
        with closing(sqlite3.connect(path)) as db:
            db.executescript(f"CREATE TABLE t (a); PRAGMA user_version = {user_version}")
    before = path.read_bytes()
    got = {None: " that cannot be used (file is not a database)", 0: ", which something else made", 7: ", of format 7"}
    assert refusal(Registry, path).got == f"registry r.db{got[user_version]}"
    assert path.read_bytes() == before
    assert refusal(Registry, tmp_path).got.endswith("that cannot be used (unable to open database file)")


@pytest.mark.parametrize("address", ["ann:secret@/x?host=/nowhere", "ann:secret@[/x", "ann:s/ecret@b/x"])
def test_a_database_that_cannot_be_reached_is_told_without_its_password(address):
    # catches: a password in a log
    pytest.importorskip("psycopg")
    told = refusal(Registry, f"postgresql://{address}")
    assert told.got.startswith("the PostgreSQL registry that cannot be used (")
    assert "ecret" not in str(told)


def test_a_database_without_its_package_names_the_extra(monkeypatch):
    # catches: a traceback where a package is missing
    monkeypatch.setitem(sys.modules, "psycopg", None)
    told = refusal(Registry, "postgresql://localhost/x")
    assert (told.accepted, told.todo) == ("the extra guard-postgres", "pip install 'upright[guard-postgres]'")


@pytest.mark.parametrize("work", [Work(0, holder="A\r\nx-header: b"), Work(0, "\x00"), Work(0, authors=("\ud800",))])
def test_names_that_would_break_a_header_are_refused(tmp_path, work):
    # catches: header injection by a holder's name, and what one of the two databases takes and the other does not
    with closing(Registry(tmp_path / "r.db")) as one:
        assert refusal(one.add, work, None).got.startswith("a work with the character U+")
        assert one.stats()["works"] == 0
