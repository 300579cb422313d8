"""Pages that the report tests share; `report_sample` says what is in them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import report_sample as made_up


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
