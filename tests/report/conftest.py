"""Pages that the report tests share; `sample.py` says what is in them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

# tests are no package under --import-mode=importlib, so the sibling is loaded by its path
spec = importlib.util.spec_from_file_location("report_sample", Path(__file__).with_name("sample.py"))
made_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made_up)


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    return made_up


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One built page of each kind."""
    from upright.report import build_compare, build_demo, build_report

    root = tmp_path_factory.mktemp("pages")
    run = made_up.run_folder(root / "one")
    six, good = made_up.comparison_folder(root / "six"), made_up.comparison_folder(root / "good", works=True, lam=0.1)
    audit = made_up.audit_folder(root)
    return {
        "run": build_report(run),
        "comparison": build_report(six),
        "audit": build_report(audit),
        "compare": build_compare([six, good], root / "compare.html"),
        "demo": build_demo([six, good, audit], root / "index.html", "What upright shows"),
    }
