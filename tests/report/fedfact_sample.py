"""Tiny real runs of FedFACT, and how tests read and edit their folders and pages."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from upright.report import build_report
from upright.shell.runner import compare_runs, execute

SETTINGS = {
    "data": "synthetic", "clients": 3, "gamma": 5.0, "least": 5, "rounds": 6, "fair_rounds": 6, "local_steps": 5,
    "batch_size": 64, "global_tol": 0.03,
}  # fmt: skip
ARMS = ["none", "fedfact", "blend", "random", "train"]


def make(root: Path, seeds: int = 2) -> Path:
    """Run every arm at every tolerance: folders s0, s1 ..., and of several seeds their comparison xN."""
    for seed in range(seeds):
        execute("fedfact", settings=SETTINGS, seed=seed, arms=ARMS, sweep=True, folder=root / f"s{seed}")
    if seeds > 1:
        compare_runs([root / f"s{seed}" for seed in range(seeds)], root / f"x{seeds}")
    return root


def page(folder: Path) -> str:
    return re.sub(r"\s+", " ", html.unescape(build_report(folder).read_text(encoding="utf-8")))


def section(folder: Path) -> str:
    source = page(folder)
    return source[source.index('id="panel"') : source.index('id="units"')]


def titles(source: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", source)


def table(source: str, label: str) -> list[list[str]]:
    """Return the body of a table, each cell without its markup."""
    start = source.index(f'<table aria-label="{label}')
    rows = re.findall(r"<tr>(.*?)</tr>", source[start : source.index("</table>", start)])[1:]
    return [[re.sub(r"<[^>]*>", " ", c).split() for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def change(folder: Path, edit) -> None:
    """Edit a summary."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    edit(summary)
    path.write_text(json.dumps(summary))


def noting(arm: str, **notes):
    """Return an edit that replaces notes of an arm; None takes one away."""

    def edit(summary):
        own = next(a for a in summary["arms"] if a["name"] == arm)["notes"]
        own.update({k: v for k, v in notes.items() if v is not None})
        for key in [k for k, v in notes.items() if v is None]:
            own.pop(key)

    return edit


def note_of(folder: Path, arm: str, name: str):
    arms = json.loads((folder / "summary.json").read_text())["arms"]
    return next(a for a in arms if a["name"] == arm)["notes"][name]
