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
WHOLE = [path for path in STUDIES if (path / "units.parquet").exists()]


def _not_drawn(study):
    view = read_folder(study)
    return view.method, {
        block.title for block in declared_of(view.method).report if draw(block, view, Canvas()) is None
    }


@pytest.mark.parametrize("study", WHOLE, ids=[path.name for path in WHOLE])
def test_every_declared_block_draws_on_every_study_with_its_units(study):
    # catches: a block that names a note or a statistic that no run has
    assert _not_drawn(study)[1] == set()


def test_every_declared_block_draws_on_a_study_of_its_method():
    # catches: the same where all studies are published as counts, which have no single units and may have fewer notes
    missing = {}
    for method, titles in map(_not_drawn, STUDIES):
        missing[method] = missing.get(method, titles) & titles
    assert not {method: titles for method, titles in missing.items() if titles}


def test_results_are_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7_800_000
    assert max(path.stat().st_size for path in files) < 1_000_000
