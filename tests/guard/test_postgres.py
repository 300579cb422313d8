"""One behaviour in two databases: a registry in an SQLite file, and in a PostgreSQL server that is started here."""

from __future__ import annotations

import itertools
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fake_upstream import LET, PAGE, Upstream, post, running
from upright.contract import InputError
from upright.guard.decisions import STOPPED, Guard
from upright.guard.registry import Registry
from upright.guard.rights import Work
from upright.guard.server import make_app

DATES = {"died": 1900, "published": 1890, "corporate": True, "noticed": False, "government": True, "until": 2030}
WORK = Work(0, "Grey Ärmel", "Cy & Co", ("Ann Ö", "Bo"), country="GB", declared="protected", owner="tenant", **DATES)


@pytest.fixture(scope="module")
def new_database():
    """Start a server of the Debian package as a user who is not root, and make databases in it."""
    psycopg = pytest.importorskip("psycopg")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        pytest.skip("no Debian package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user: list[str] = []
    if os.getuid() == 0:
        owner = next(one for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody"))
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = ["runuser", "-u", owner.pw_name, "--"]

    def run(program, *arguments):
        command = [*user, str(binaries[-1].parent / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)

    def make():
        name = f"works{next(numbers)}"
        with psycopg.connect(f"postgresql://guard@/postgres?host={folder}", autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
        return f"postgresql://guard@/{name}?host={folder}"

    numbers, options = itertools.count(), f"-c unix_socket_directories={folder} -c listen_addresses='' -c fsync=off"
    run("initdb", "--auth=trust", "--username=guard", "--no-sync", "--locale=C", "--encoding=UTF8")
    run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
    yield make
    run("pg_ctl", "stop", "-m", "immediate")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    return tmp_path / "works.db" if request.param == "sqlite" else request.getfixturevalue("new_database")()


@pytest.fixture
def registry(place):
    with closing(Registry(place)) as one:
        yield one


def test_a_work_comes_back_as_it_was(registry):
    # catches: a flag that comes back as a number, unknown that becomes false, bytes or letters that a column changes
    text, prints = "Ünder\r\n\x00 the 100% arch\n", bytes(range(256)) * 9
    assert [registry.add(WORK, text), registry.add(Work(7), None, fingerprints=prints)] == [0, 1]
    assert repr(registry.work(0)) == repr(WORK)  # True is equal to 1
    assert (registry.text(0), registry.text(1)) == (text, None)
    assert list(registry.works()) == [(WORK, text, None), (Work(1), None, prints)]
    assert registry.stats() == {"works": 2, "with text": 1, "with fingerprints alone": 1, "declared protected": 1}


TITLES = st.lists(st.text(st.characters(exclude_categories=["C", "Z"])), max_size=3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TITLES | st.integers(0, 9)))
def test_any_changes_leave_what_a_mapping_would_hold(registry, steps):
    # catches: an id given twice, a change that leaves the version, a version that moves without one
    for work, _, _ in list(registry.works()):
        registry.remove(work.id)
    held, after, version = {}, registry.remove(registry.add(WORK, None)).id + 1, registry.version()
    for step in steps:
        if isinstance(step, list):
            ids = registry.add_many([(Work(0, title), title) for title in step])
            assert ids == list(range(after, after + len(step)))
            held |= dict(zip(ids, step, strict=True))
            after, version = after + len(step), version + bool(step)
        elif held:
            gone = sorted(held)[step % len(held)]
            assert registry.remove(gone) == Work(gone, held.pop(gone))
            version += 1
            with pytest.raises(InputError, match=rf"work {gone}, which is not in"):
                registry.remove(gone)
        assert registry.version() == version
    assert [(work.id, work.title, text) for work, text, _ in registry.works()] == [(i, t, t) for i, t in held.items()]


def test_all_words_are_found_in_any_case_and_none_is_a_pattern(registry):
    # catches: capitals with marks, signs of LIKE that match everything, one word of two
    registry.add_many([(WORK, None), (Work(0, "50% of_it!"), None)])
    found = {"ärmel GREY": [0], "grey bo": [0], "ann Ö cy": [0], "ärm": [0], "": [0, 1], "%": [1], "_": [1], "!": [1]}
    found |= {words: [] for words in ("grey nobody", "gr_y", "g%y", "tenant", "'; --", "\\", "?")}
    assert {words: [work.id for work in registry.search(words)] for words in found} == found
    assert [len(registry.search("", limit)) for limit in (-1, 0, 1, 9)] == [0, 0, 1, 2]


def test_a_change_through_one_replica_is_seen_by_another(registry, place):
    # catches: a version that is cached, and a snapshot that an open transaction keeps
    with closing(Registry(place)) as other:
        before = other.version()
        added = registry.add(WORK, "some text")
        assert (other.version(), other.text(added)) == (before + 1, "some text")
        other.remove(added)
        assert (registry.version(), list(registry.works())) == (before + 2, [])


def test_what_fails_is_not_half_done(registry):
    # catches: an id that runs into the hash beside it, and rows of a change that failed
    registry.remove(registry.add_many([(Work(0), None)] * 2)[0])
    for next_id, why in ((2**24 - 2, "with 16777217 ids"), (0, "that cannot be used")):  # the row 1 is there
        registry._run("UPDATE guard_meta SET next_id = ?", next_id)
        with pytest.raises(InputError, match=why):
            registry.add_many([(WORK, None)] * 3)
        assert (registry.version(), list(registry.works())) == (3, [(Work(1), None, None)])
    registry._run("UPDATE guard_meta SET next_id = ?", 2**24 - 2)
    assert registry.add_many([(Work(0), None)] * 2) == [2**24 - 2, 2**24 - 1]


def test_replicas_that_start_and_write_at_once_give_different_ids(place, monkeypatch):
    # catches: tables made twice, two works under one id, a writer that does not wait, a work between two pages
    def start(number):
        with closing(Registry(place)) as one:
            return [one.add(Work(0, str(number)), None) for _ in range(8)]

    with ThreadPoolExecutor(4) as pool:
        assert sorted(itertools.chain(*pool.map(start, range(4)))) == list(range(32))
    monkeypatch.setattr("upright.guard.registry._PAGE", 5)
    with closing(Registry(place)) as one:
        assert [work.id for work, _, _ in one.works()] == list(range(32))
        assert one.ids() == [*range(14), *(work.id for work, _, _ in one.works(after=13))]


def test_a_connection_that_broke_is_made_anew(new_database):
    # catches: a guard that must be started again whenever its database was
    with closing(Registry(new_database())) as registry, closing(Registry(registry._place)) as other:
        other._run("SELECT pg_terminate_backend(?)", registry._db.info.backend_pid)
        with pytest.raises(InputError, match="the PostgreSQL registry that cannot be used"):
            registry.version()
        assert registry.version() == 1


def test_a_work_added_through_one_replica_stops_a_copy_through_another_and_a_removed_one_lets_it_pass(place):
    # catches: a replica that reads the registry at its start alone, one that keeps a work that is gone
    upstream, hello = Upstream(), {"model": "fake", "messages": [{"role": "user", "content": "Hello."}]}
    upstream.says(PAGE)

    def said(address):
        return json.loads(post(address, "/v1/chat/completions", hello)[2])["choices"][0]["message"]["content"]

    def both_say(text):
        end = time.monotonic() + 2  # what the guard promises, four times what it waits between looks
        while [said(other), said(one)] != [text, text]:
            assert time.monotonic() < end
            time.sleep(0.05)

    with ExitStack() as stack:
        to = stack.enter_context(running(upstream.app))
        here, there = (stack.enter_context(closing(Registry(place))) for _ in range(2))
        one, other = (stack.enter_context(running(make_app(Guard(registry), to))) for registry in (here, there))
        assert [said(one), said(other)] == [PAGE, PAGE]
        work = here.add(Work(0, declared="protected"), PAGE)
        both_say(LET + STOPPED)
        there.remove(work)
        both_say(PAGE)
