"""The house: nothing above the methods knows one by name, and no floor outgrows its budget."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from upright.experiment.registry import METHODS

SOURCE = Path(__file__).parents[1] / "src" / "upright"
ABOVE = ["cli", "api.py", "evidence", "experiment", "report"]
#: lines of source, docstrings included, and a tenth more; what is beyond its budget, or is not redone, may not grow
BUDGETS = {
    "contract.py": 475,  # aims at 400
    "declare.py": 200,
    "cli+api.py": 1_400,  # aims at 950; the desk of forgetting has nine verbs, that of editing seven, the guard's nine
    "experiment": 2_550,  # aims at 1,900; a trained model is exported
    "report": 2_770,  # aims at 2,400
    "evidence": 2_240,  # aims at 950
    "data": 4_220,  # aims at 2,600; FilmTrust is an entry; near-duplicates of records; preference pairs have 330
    "metrics": 2_720,  # docs/metrics.md is written from its docstrings; copied runs have 170, clips 110
    "classification": 2_860,
    "language": 9_750,  # aims at 5,800; desk of forgetting 2,900, EISAM 1,090, U2A 1,040
    "editing": 2_300,  # aims at 1,500; with the flags that a model is taught, 330
    "maths": 5_030,  # policy gradients of flow models have 240
    "federation": 1_160,  # with FedRec and its Flower app
    "recommendation": 2_100,
    "models": 1_300,
    "tasks": 7_570,  # aims at 3,400; alignment has 810, edits 560, pages 610, clips 880, with their audits
    "methods": 4_060,  # aims at 3,600; PhysRVG has 490 with its loop
    "ledger.py": 420,  # aims at 400; a forged line is judged, however deep it is nested
    "video": 3_395,  # aims at 2,300; files 360, tracks and verifiers 1,040, rewards with their doors 600
    "guard": 4_870,  # aims at 2,450; server and shapes of three interfaces 1,330, benchmark 360, record 280, desk 240
}


def files_of(name: str) -> list[Path]:
    place = SOURCE / name
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def test_nothing_above_the_methods_knows_one_by_name():
    # catches: a ladder of names in a report, a gate, a terminal or a demonstration
    name = re.compile(rf"\b({'|'.join(METHODS)})\b")
    found = {
        str(path.relative_to(SOURCE))
        for part in ABOVE
        for path in files_of(part)
        if name.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"experiment/registry.py"}


def test_what_was_replaced_is_gone():
    assert not [path for path in ("report/panels", "report/results", "shell") if (SOURCE / path).exists()]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_floor_keeps_its_budget(name):
    # catches: a method's own case in a shared floor, one purpose told several times
    lines = sum(
        len(path.read_text(encoding="utf-8").splitlines()) for part in name.split("+") for path in files_of(part)
    )
    assert lines <= 1.1 * BUDGETS[name]


@pytest.mark.parametrize("floor", ["methods", "tasks"])
def test_a_declaration_is_read_without_what_is_heavy(floor):
    # catches: a typo that is answered after torch or scikit-learn were loaded
    names = [f"upright.{floor}.{path.stem}" for path in files_of(floor)]
    code = f"import sys, {', '.join(names)}; print([m for m in ('torch._C', 'sklearn', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
