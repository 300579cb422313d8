"""MRD's section of RESULTS.md: every number is that of the study, and what is absent is left out or said."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from upright.report.results import results_page
from upright.report.results.mrd import section
from upright.shell.runs import read_json
from upright.shell.study import publish_runs


def _load() -> ModuleType:
    # tests are no package under --import-mode=importlib, so the sibling is loaded by its path
    spec = importlib.util.spec_from_file_location("mrd_sample", Path(__file__).with_name("mrd_sample.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made_by = _load()
CHOICE = {
    "learning_rate": 1e-3, "seeds": [100, 101], "least_utility": 0.61, "rule": "the smallest gap that is affordable",
    "tried": [{"learning_rate": rate, "gap": gap, "utility": utility} for rate, gap, utility in
              ((None, 0.9, 0.65), (1e-4, 0.5, 0.64), (1e-3, 0.2, 0.62), (3e-3, 0.1, 0.3))],
}  # fmt: skip
COMMAND = "python benchmarks/study_mrd.py WORK mrd-tiny"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    root = made_by.make(tmp_path_factory.mktemp("study"))
    about = {"choice": CHOICE, "command": COMMAND}
    return publish_runs("mrd-tiny", [root / f"s{s}" for s in range(3)], root / "x", root / "results", about)


@pytest.fixture
def parts(study) -> tuple[dict, dict]:
    return read_json(study / "summary.json"), read_json(study / "config.json")


def lines(paragraphs: list[str], title: str) -> list[list[str]]:
    at = next(i for i, p in enumerate(paragraphs) if p.startswith(title))
    text = next(p for p in paragraphs[at:] if p.startswith("|"))
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in text.split("\n")[2:]]


def table(paragraphs: list[str], title: str) -> dict[str, list[str]]:
    """Return the table below a heading, by its first column."""
    return {row[0]: row[1:] for row in lines(paragraphs, title)}


def level(summary, statistic, arm, group=None):
    rows = summary["evidence"]["levels"]
    (row,) = [r for r in rows if (r["statistic"], r["arm"], r["group"]) == (statistic, arm, group)]
    return row


def shown(row) -> str:
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def test_the_page_takes_the_section_and_reads_the_same_twice(study):
    # catches: a method whose studies have no section; an order that depends on a dict or the clock; a title with |
    page = results_page(study.parent)
    assert "## MRD with NPO on TOFU, bundled part" in page
    assert f"`{COMMAND}`" in page
    assert page == results_page(study.parent)
    assert not {"None", "nan"} & set(re.findall(r"\w+", page))
    for block in (part for part in page.split("\n\n") if part.startswith("|")):
        assert len({row.count(" | ") for row in block.strip().split("\n") if "---" not in row}) == 1  # no ragged table


def test_levels_are_those_of_the_summary(parts):
    # catches: a column under another head; an interval of a p-value, which has none
    summary, config = parts
    rows = table(section("x", summary, config), "### Levels")
    title = {a["name"]: a["title"] for a in summary["arms"]}
    for arm in made_by.ARMS:
        row = rows[title[arm]]
        for place, statistic in ((1, "mean:forget_gap"), (2, "ks_distance:forget_truth_probability"),
                                 (4, "utility:retain"), (5, "membership:mia_loss"), (6, "mean:forget_probability"),
                                 (7, "mean:extraction_strength")):  # fmt: skip
            assert row[place] == shown(level(summary, statistic, arm))
        assert "[" not in row[3]
        assert float(row[3]) == pytest.approx(
            level(summary, "forget_quality:forget_truth_probability", arm)["value"], abs=6e-5
        )
    assert [rows[title[a]][0] for a in ("original", "retrain", "mrd")] == ["where it starts", "the aim", "remedy"]


def test_what_chance_shows_is_the_largest_band(parts):
    # catches: the null of one arm for all; chance of one distance said of the other
    summary, config = parts
    text = next(p for p in section("x", summary, config) if p.startswith("In 95 % of cases"))
    for statistic in ("ks_distance:forget_truth_probability", "membership:mia_loss"):
        tops = [level(summary, statistic, arm)["null"]["high"] for arm in made_by.ARMS]
        assert f"up to {max(tops):.4f}" in text
    assert "below one half" not in text
    level(summary, "membership:mia_loss", "length").update(auc=0.2, auc_low=0.1, auc_high=0.3)
    text = next(p for p in section("x", summary, config) if p.startswith("In 95 % of cases"))
    assert text.endswith("less known than unseen ones, with draws by length.")


def test_differences_stand_against_each_arm_and_the_aim_is_no_rival(parts):
    # catches: a change of utility under the distance's head; falling short of the aim counted as a rival that wins
    summary, config = parts
    found = section("x", summary, config)
    rows = table(found, "### MRD against each arm")
    at = {(d["statistic"], d["against"]): d for d in summary["evidence"]["differences"]}
    title = {a["name"]: a["title"] for a in summary["arms"]}
    compared = [a for a in made_by.ARMS if a not in ("mrd", "original", "retrain")]
    assert list(rows) == [title[a] for a in compared]
    for arm in compared:
        assert rows[title[arm]][1].startswith(f"{at['mean:forget_gap', arm]['value']:+.4f} [")
        assert rows[title[arm]][4].startswith(f"{at['utility:retain', arm]['value']:+.4f} [")
    assert any("Against the rival draws by 1 / MRD:" in p for p in found)
    assert not any(word in p for p in found for word in ("rival taught the kept", "rival no unlearning"))


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [(-0.6, -0.8, -0.4, "as the score claims"), (0.6, 0.4, 0.8, "opposite of what the score claims"),
     (0.1, -0.2, 0.4, "is not shown to predict"), (-0.5, -0.9, 0.1, "is not shown to predict"),
     (-0.2, -0.25, -0.1, "is not shown to predict")],
)  # fmt: skip
def test_whether_mrd_predicts_effort_follows_sign_band_and_interval(parts, value, low, high, said):
    # catches: a sign read the wrong way round; a claim on the interval or on the band alone
    summary, config = parts
    level(summary, "rank_correlation:mrd~effort", "mrd").update(
        value=value, low=low, high=high, null={"expected_abs": 0.1, "low": -0.3, "high": 0.3}
    )
    found = section("x", summary, config)
    assert said in found[found.index("### Does MRD predict effort?") + 1]
    row = next(r for r in lines(found, "### Does MRD") if r[:2] == ["MRD", "effort, loss per token"])
    assert row[2:] == [f"{value:+.4f} [{low:+.4f}, {high:+.4f}]", "[-0.3000, +0.3000]", "63", "9"]


def test_a_study_without_effort_says_so(parts):
    # catches: an empty table; silence about the claim that was not checked
    summary, config = parts
    evidence = summary["evidence"]
    evidence["levels"] = [r for r in evidence["levels"] if "~effort" not in r["statistic"]]
    found = section("x", summary, config)
    assert any("is not known" in p for p in found)
    assert [r[:2] for r in lines(found, "### Does MRD")] == [["MRD", "answer tokens"], ["MRD", "loss per token before"]]
    evidence["levels"] = [r for r in evidence["levels"] if not r["statistic"].startswith("rank_correlation")]
    found = section("x", summary, config)
    assert found[found.index("### Does MRD predict effort?") + 2].startswith("### ")


def test_thirds_go_from_hard_to_easy(parts):
    # catches: the order of the alphabet, in which easy stands under hard
    summary, config = parts
    row = table(section("x", summary, config), "### Distance by difficulty")["draws by MRD"]
    assert row == [shown(level(summary, "mean:forget_gap:difficulty", "mrd", t)) for t in ("hard", "middle", "easy")]


def test_every_other_difference_is_in_one_line_of_its_statistic(parts):
    # catches: an undecided difference left out; a correction that failed and is not told; the aim counted as a rival
    summary, config = parts
    rows = summary["evidence"]["differences"]
    labels = {d["label"] for d in rows if d["statistic"] not in ("mean:forget_gap", "utility:retain")}
    one = next(d for d in rows if d["statistic"] == "mean:extraction_strength" and d["against"] == "length")
    one.update(verdict="harms", holm_p=0.2)
    found = section("x", summary, config)
    text = found[found.index("### Other differences, and what is not significant") + 1].split("\n")
    assert {line[2:].rpartition(": ")[0] for line in text} == labels
    line = next(row for row in text if row.startswith(f"* {one['label']}:"))
    assert "harms, but not after Holm's correction, against draws by length" in line
    assert not any("taught the kept records alone" in row for row in text)


def test_how_the_rate_was_chosen_is_said_with_and_without_a_choice(parts):
    # catches: a KeyError without a choice; the wrong row marked; an end of the grid not told
    summary, config = parts
    found = section("x", summary, config)
    assert lines(found, "### How the learning rate") == [
        ["no unlearning", "0.9000", "0.6500", ""], ["0.0001", "0.5000", "0.6400", ""],
        ["0.001", "0.2000", "0.6200", "yes"], ["0.003", "0.1000", "0.3000", ""],
    ]  # fmt: skip
    assert "end of its grid" not in found[-2]
    assert "the smallest gap that is affordable" in found[-2]
    edge = copy.deepcopy(config)
    edge["choice"]["learning_rate"] = 3e-3
    assert "end of its grid" in section("x", summary, edge)[-2]
    del config["choice"]
    assert section("x", summary, config)[-1].startswith("Nothing was chosen on these data")


def test_a_study_without_a_reference_leaves_out_what_needs_one(parts):
    # catches: a KeyError or an empty column where no arm has the statistic
    summary, config = parts
    evidence = summary["evidence"]
    gone = ("ks_distance", "forget_quality")
    evidence["levels"] = [r for r in evidence["levels"] if not r["statistic"].startswith(gone)]
    evidence["differences"] = [d for d in evidence["differences"] if not d["statistic"].startswith(gone)]
    found = section("x", summary, config)
    assert len(table(found, "### Levels")["draws by MRD"]) == 6
    assert any(p.startswith("In 95 % of cases permuted labels") for p in found)
