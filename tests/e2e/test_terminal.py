"""The command line in a real terminal: tmux draws it, and the screen is read back."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: apt-get install tmux")

DONE = "finished with status"
BAR = "━"


class Terminal:
    """One tmux server with one pane of a fixed size.

    Parameters
    ----------
    folder : Path
        Where the shell stands.
    columns, lines : int
        Size of the pane.
    """

    def __init__(self, folder: Path, columns: int, lines: int) -> None:
        self.columns, self.server = columns, f"upright-{uuid.uuid4().hex[:8]}"
        self.words = shlex.quote(sys.executable) + " -m upright.cli"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "LC_ALL": "C.UTF-8"}
        for name in ("TMUX", "NO_COLOR", "COLUMNS", "LINES", "CI", "GITHUB_ACTIONS"):
            environment.pop(name, None)
        self._tmux("-f", os.devnull, "new-session", "-d", "-x", str(columns), "-y", str(lines), "-c", str(folder),
                   "env", "PS1=", "sh", env=environment)  # fmt: skip
        self.record = folder / "typescript"
        self._tmux("pipe-pane", f"cat >> {shlex.quote(str(self.record))}")

    def _tmux(self, *words: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(["tmux", "-L", self.server, *words], capture_output=True, text=True, env=env, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def screen(self, *options: str) -> list[str]:
        """Return what stands in the pane; ``-J`` joins what the terminal broke, ``-S -`` adds what scrolled away."""
        return self._tmux("capture-pane", "-p", *options).splitlines()

    def run(self, words: str, seconds: float = 120.0) -> str:
        """Type a command, wait for its end, return what it wrote to the terminal, escape codes included."""
        self._tmux("send-keys", "-l", f"clear; {self.words} {words}; echo; echo {DONE} $?")
        self._tmux("send-keys", "Enter")
        deadline = time.monotonic() + seconds
        while not re.search(rf"^{DONE} \d+$", "\n".join(self.screen()), re.M):
            assert time.monotonic() < deadline, self.screen()
            time.sleep(0.05)
        return self.record.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture(params=[(80, 24), (120, 40)], ids=["80x24", "120x40"])
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    one = Terminal(tmp_path, *request.param)
    yield one
    one.close()


def final(terminal: Terminal) -> list[str]:
    """Return all lines since the screen was cleared, each as the program wrote it."""
    lines = terminal.screen("-J", "-S", "-")
    assert f"{DONE} 0" in lines, lines
    return [line.rstrip() for line in lines]


def test_a_run_fits_the_terminal_and_shows_a_bar(terminal: Terminal) -> None:
    # catches: rows that the terminal breaks, progress that only a pipe does without, escape codes written as text
    written = terminal.run("run in_ucds --data synthetic --preset quick --set epochs=5")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    for arm in ("none", "in_ucds", "zero"):
        assert re.search(rf"{arm} {BAR}+.*\d/5", plain), f"no progress bar of {arm} was seen"
    lines = final(terminal)
    assert BAR not in "".join(lines), "the bars go away when they are done"
    first = next(i for i, line in enumerate(lines) if line.startswith("arm "))
    own = lines[first:]
    assert max(map(len, own)) <= terminal.columns
    assert own[1].split()[0] == "none"
    written_lines = [line for line in own if line and not line.startswith(DONE)]
    assert written_lines[-1].startswith("incomplete (1 of 6 seeds)")  # the last word
    garbage = re.compile(r"\x1b|\[\?25|\[\d*(;\d+)*[A-Za-z]\b|\^\[")
    assert not [line for line in lines if garbage.search(line)]
    # the numbers carry no colour, so that they can be copied and searched
    assert "\x1b" not in written[written.index("arm  ") : written.index("folder: ", written.index("arm  "))]


def test_a_list_fits_the_terminal_and_loses_no_word(terminal: Terminal) -> None:
    # catches: a last column that runs past the edge, and one that is cut
    terminal.run("list")
    lines = final(terminal)
    first = next(i for i, line in enumerate(lines) if line.startswith("name "))
    own = lines[first:]
    assert max(map(len, own)) <= terminal.columns
    words = " ".join(" ".join(own).split())
    assert "in_ucds works worse lists for inactive users" in words
    assert "federated recommendation with item embeddings that do not generalise" in words
    broken = [line for line in own if line.startswith(" " * 10)]
    assert bool(broken) == (terminal.columns < 88)  # the longest row has 88 characters


def test_the_command_is_plain_where_it_is_no_terminal(tmp_path: Path) -> None:
    # catches: a bar, a colour or a broken line in a log file
    words = [sys.executable, "-m", "upright.cli", "list"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "40"})
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) > 40
