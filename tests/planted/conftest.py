"""Each module has ``PAIRS`` of a check and a defect that turns it red."""

from __future__ import annotations

import pytest


def pytest_generate_tests(metafunc):
    if "pair" in metafunc.fixturenames:
        pairs = metafunc.module.PAIRS
        metafunc.parametrize("pair", pairs, ids=[defect.__name__ for _, defect in pairs])


@pytest.fixture
def turns_red(monkeypatch):
    """Return a test that a check holds, fails with the defect, and holds again."""

    def test(check, defect):
        check()
        with monkeypatch.context() as patch:
            defect(patch)
            with pytest.raises(AssertionError):
                check()
        check()

    return test
