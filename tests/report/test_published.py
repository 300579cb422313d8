"""Every block that a method declares draws on every published study, and the tables of results are what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from upright.experiment.registry import declared_of
from upright.report.kinds import draw
from upright.report.plots import Canvas
from upright.report.read import read_folder

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("*/summary.json"))


@pytest.mark.parametrize("study", STUDIES, ids=[path.name for path in STUDIES])
def test_every_declared_block_draws_on_every_published_study(study):
    # catches: a block that names a note or a statistic that no run has
    view = read_folder(study)
    declared = declared_of(view.method).report
    assert [block.title for block in declared if draw(block, view, Canvas()) is None] == []


def test_results_are_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7_800_000
    assert max(path.stat().st_size for path in files) < 1_000_000
