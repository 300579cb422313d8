"""A registry with one protected and one free work, an upstream, and the guard between a client and it."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import date

import pytest

from upright.guard.decisions import Guard
from upright.guard.registry import Registry
from upright.guard.rights import Work


@pytest.fixture
def upstream():
    from fake_upstream import Upstream, running  # the other tests here need no server

    made = Upstream()
    with running(made.app) as made.address:
        yield made


@pytest.fixture
def start(tmp_path, upstream):
    """Start a guard; returns its address."""
    from fake_upstream import FREE, PAGE, running
    from upright.guard.server import Options, make_app

    with ExitStack() as stack:
        registry = Registry(tmp_path / "registry.sqlite")
        stack.callback(registry.close)
        registry.add_many(
            [
                (Work(0, "The Bell", declared="protected", owner="press"), PAGE),
                (Work(0, "The Ferry", declared="public domain"), FREE),
            ]
        )

        def begin(policy=None, *, eyes=lambda url: PAGE, to=None, options=None, **more):
            guard = Guard(registry, policy, eyes=eyes, today=lambda: date(2026, 11, 30))
            app = make_app(guard, to or upstream.address, options=options or Options(), **more)
            return stack.enter_context(running(app))

        begin.registry = registry
        yield begin
