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
_SINGLE = {"MRD and updates until forgotten, record by record", "MRD of the forgotten records"}
_SHORT = _SINGLE | {
    "Rank correlation with updates until forgotten, ascending the loss per token",
    "The same, ascending the loss of the whole answer",
    "Rank correlation of MRD with what is at hand",
    "How records were scored",
    "What is forgotten against what is kept, by epoch",
    "Distance from the model that never saw them, by third",
}
_PAIRS = {"Copying requests that leak, by task and by where the page stands", "Longest run of the page in an answer"}
_CLIPS = {"Offset of clips", "Three validation scenes: the truth, the start, and after"}  # counts, and no pictures
#: what cannot be drawn: single records where counts are published, and what the runs did not measure
LESS = {
    "mrd-tofu-grad_diff": _SINGLE,
    "mrd-tofu-npo": _SINGLE,
    "mrd-tofu-simnpo": _SINGLE,
    "mrd-forgetting-npo": _SHORT,
    "mrd-forgetting-jensun": _SHORT,
    "copyguard-obedient": _PAIRS,
    "u2a-smollm2-hh-rlhf-npo": {"Groups of 16 negatives unlearnt alone"},  # not asked for
    "odedit-flags-lora": {"Pictures of six edits"},  # pictures are not published
    "odedit-flags-gated": {"Pictures of six edits"},
    "odedit-smollm2": {"Pictures of six edits"},
    "physrvg-collision": _CLIPS,
    "physrvg-withheld": _CLIPS,
    "mrd-forgetting-smollm2-npo": _SHORT | {"Concentration of the draws", "Ranking over the scorings"},  # scored once
}


@pytest.mark.parametrize("study", STUDIES, ids=[path.name for path in STUDIES])
def test_every_declared_block_draws_on_every_published_study(study):
    # catches: a block that names a note or a statistic that no run has
    view = read_folder(study)
    missing = {block.title for block in declared_of(view.method).report if draw(block, view, Canvas()) is None}
    assert missing == LESS.get(study.name, set())


def test_results_are_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 7_800_000
    assert max(path.stat().st_size for path in files) < 1_000_000
