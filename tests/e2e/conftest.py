"""The command line in this process, in an empty folder: a module says which desk in ``DESK``."""

from __future__ import annotations

import sys

import pytest

from upright import cli


@pytest.fixture
def upright(request, tmp_path, monkeypatch, capfd):
    """Run a verb of the module's desk; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["upright", request.module.DESK, *map(str, words)])
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        else:
            status = 0
        return status, *capfd.readouterr()

    return run
