"""FedFACT's section of RESULTS.md: every number is that of the study, and what is absent is left out or said."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from upright.report.results import results_page
from upright.report.results.fedfact import section
from upright.shell.runs import read_json
from upright.shell.study import publish_runs

PAPER = {
    "none": {"accuracy": 0.8452, "global": 0.1765, "local": 0.2310},
    "fairfed": {"accuracy": 0.8073, "global": 0.0983, "local": 0.1434},
}
GAPS = ["disparity:rate:group", "client_disparity:rate:group", "mean_client_disparity:rate:group"]
REMEDY = "FedFACT, post-processing"


def _load() -> ModuleType:
    # tests are no package under --import-mode=importlib, so the sibling is loaded by its path
    spec = importlib.util.spec_from_file_location("fedfact_sample", Path(__file__).with_name("fedfact_sample.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made_by = _load()
ARMS = made_by.ARMS


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    root = made_by.make(tmp_path_factory.mktemp("study"))
    about = {"published": PAPER, "command": "python benchmarks/study_fedfact.py WORK fedfact-tiny"}
    return publish_runs("fedfact-tiny", [root / "s0", root / "s1"], root / "x2", root / "results", about,
                        cells=("client", "group"))  # fmt: skip


@pytest.fixture
def parts(study) -> tuple[dict, dict]:
    return read_json(study / "summary.json"), read_json(study / "config.json")


def table(paragraphs: list[str], title: str) -> dict[str, list[str]]:
    """Return the table below a heading, by its first column."""
    return {row[0]: row[1:] for row in lines(paragraphs, title)}


def lines(paragraphs: list[str], title: str) -> list[list[str]]:
    at = next(i for i, p in enumerate(paragraphs) if p.startswith(title))
    text = next(p for p in paragraphs[at:] if p.startswith("|"))
    return [[c.strip() for c in line.strip("|").split(" | ")] for line in text.split("\n")[2:]]


def level(summary, statistic, arm, group=None):
    rows = summary["evidence"]["levels"]
    (row,) = [r for r in rows if (r["statistic"], r["arm"], r["group"]) == (statistic, arm, group)]
    return row


def test_the_page_takes_the_section_and_reads_the_same_twice(study):
    # catches: a method whose studies have no section; an order that depends on a dict or the clock
    page = results_page(study.parent)
    assert "## FedFACT on synthetic" in page
    assert page == results_page(study.parent)
    assert "`python benchmarks/study_fedfact.py WORK fedfact-tiny`" in page
    assert "None" not in page
    assert "nan" not in re.findall(r"\w+", page)
    for line in (line for line in page.split("\n\n") if line.startswith("|")):
        assert len({row.count(" | ") for row in line.split("\n") if "---" not in row}) == 1  # no ragged table


def test_levels_are_those_of_the_summary_with_interval_and_null(parts):
    # catches: the worst client's gap under the mean's head; the null of another arm
    summary, config = parts
    found = section("x", summary, config)
    names = {a["name"]: a["title"] for a in summary["arms"]}
    nulls = table(found, "What permuted groups")
    for arm in ARMS:
        row = table(found, "### Levels")[names[arm]]
        for text, statistic in zip(row[1:], [*GAPS, "mean:accuracy"], strict=True):
            want = level(summary, statistic, arm)
            assert text == f"{want['value']:.4f} [{want['low']:.4f}, {want['high']:.4f}]"
        want = level(summary, "client_disparity:rate:group", arm)
        assert nulls[names[arm]][1] == f"{want['null']['high']:.4f}"
    assert not any("@" in name for name in table(found, "### Levels"))
    for group in ("g0", "g1"):
        want = level(summary, "mean:accuracy:group", "fedfact", group)
        assert table(found, "### Accuracy by group")[group][1].startswith(f"{want['value']:.4f} [")


def test_calibration_gaps_take_the_largest_seed_and_judge_by_it(parts):
    # catches: the mean held against the tolerance; the first seed's notes for all; a placebo said to keep a promise
    summary, config = parts
    notes = next(a for a in summary["arms"] if a["name"] == "fedfact")["notes_per_seed"]
    assert len(notes) == 2
    notes[0]["calibration"].update({"global": 0.0, "local_max": 0.01})
    notes[1]["calibration"].update({"global": 0.05, "local_max": 0.02})
    rows = table(section("x", summary, config), "### Gaps on the calibration rows")
    assert rows[REMEDY] == ["0.03", "0.03", "0.0250, 0.0500", "0.0150, 0.0200", "no"]
    notes[1]["calibration"]["global"] = 0.03
    rows = table(section("x", summary, config), "### Gaps on the calibration rows")
    assert rows[REMEDY][-1] == "yes"
    assert rows["federated averaging"][:2] == ["none", "none"]
    assert [rows[name][-1] for name in ("federated averaging", "chance at matched accuracy", "shuffled groups")] == [
        ""
    ] * 3


def test_why_gaps_exceed_tolerances_is_said_as_far_as_it_applies(parts):
    # catches: a cause named that is none; labels and probabilities taken for one another
    summary, config = parts
    text = "\n".join(section("x", summary, config))
    assert "in a cell of n rows a rate moves in steps of 1/n" in text
    assert "count labels" not in text
    config["resolved"]["arms"]["fedfact"]["randomised"] = True
    summary["data"]["criterion"] = "equal_opportunity"
    text = "\n".join(section("x", summary, config))
    assert "steps of 1/n" not in text
    assert "the gaps above count labels" in text


@pytest.mark.parametrize(
    ("settings", "want"),
    [({"local_tol": 0.2}, ["0.03", "0.2"]), ({"local_tol": 1.0}, ["0.03", "none"]),
     ({"global_tol": 1.0, "local_tol": 0.1}, ["none", "0.1"]), ({"remedy": "reductions"}, ["0.03", "none"]),
     ({"remedy": "thresholds"}, ["none", "none"])],
)  # fmt: skip
def test_tolerances_are_those_that_the_arm_knows(parts, settings, want):
    # catches: a local tolerance of 0.01 said where the local constraint was removed, or of a remedy without clients
    summary, config = parts
    config["resolved"]["arms"]["fedfact"].update(settings)
    assert table(section("x", summary, config), "### Gaps on the calibration rows")[REMEDY][:2] == want


def test_differences_stand_against_each_arm(parts):
    # catches: the change of accuracy under the gap's head; a rival left out
    summary, config = parts
    rows = lines(section("x", summary, config), "### FedFACT against each arm")
    at = {(d["statistic"], d["against"]): d for d in summary["evidence"]["differences"]}
    titles = [a["title"] for a in summary["arms"] if a["name"] in ARMS and a["name"] != "fedfact"]
    assert [row[0] for row in rows] == titles
    for row, arm in zip(rows, [a for a in ARMS if a != "fedfact"], strict=True):
        assert row[2].startswith(f"{at['disparity:rate:group', arm]['value']:+.4f} [")
        assert row[5].startswith(f"{at['client_disparity:rate:group', arm]['value']:+.4f} [")
        assert row[7].startswith(f"{at['mean:accuracy', arm]['value']:+.4f} [")


def test_front_lists_every_tolerance_in_order_and_is_left_out_without_a_sweep(parts):
    # catches: strings sorted as text; another arm's tolerances; a heading above nothing
    summary, config = parts
    rows = [r for r in lines(section("x", summary, config), "### Front") if r[0] == REMEDY]
    assert [r[1] for r in rows] == ["0", "0.01", "0.02", "0.03", "0.04", "0.08"]
    assert rows[0][-1].startswith(f"{level(summary, 'mean:accuracy', 'fedfact@0')['value']:.4f} [")
    assert rows[3][2].startswith(f"{level(summary, 'disparity:rate:group', 'fedfact')['value']:.4f} [")
    bare = copy.deepcopy(summary)
    bare["arms"] = [a for a in bare["arms"] if a["role"] != "sweep"]
    assert not any(p.startswith("### Front") for p in section("x", bare, config))


def test_published_values_stand_beside_what_was_found(parts):
    # catches: the paper's numbers in the columns of ours; an arm that was not run given a number
    summary, config = parts
    rows = table(section("x", summary, config), "### Beside the published values")
    ours = [
        level(summary, s, "none")["value"]
        for s in ("mean:accuracy", "disparity:rate:group", "client_disparity:rate:group")
    ]
    row = rows["federated averaging"]
    assert row[::2] == ["0.8452", "0.1765", "0.2310"]
    assert [float(text.split(" ")[0]) for text in row[1::2]] == pytest.approx(ours, abs=6e-5)
    assert rows["fairfed"][1::2] == ["not run"] * 3
    for empty in ({}, None):
        assert not any("published values" in p for p in section("x", summary, {**config, "published": empty}))


def test_how_settings_were_chosen_is_said_with_and_without_a_choice(parts):
    # catches: a KeyError without a choice; the wrong row marked as chosen
    summary, config = parts
    assert "choice" not in config
    assert any(p.startswith("Nothing was chosen on these data") for p in section("x", summary, config))
    curves = {"fedfact": [{"global_tol": 0.01, "accuracy": 0.81}, {"global_tol": 0.05, "accuracy": 0.83}]}
    config["choice"] = {"seeds": [100, 101], "curves": curves, "chosen": {"fedfact": {"global_tol": 0.05}}}
    found = section("x", summary, config)
    assert lines(found, "On calibration rows, seeds 100, 101:") == [
        [REMEDY, "0.01", "0.81", ""], [REMEDY, "0.05", "0.83", "yes"],
    ]  # fmt: skip
    assert not any(p.startswith("Nothing was chosen") for p in found)


def test_clients_that_are_left_out_and_several_classes_are_said(parts):
    # catches: a mean over fewer clients than named; the class behind the largest gap not told
    summary, config = parts
    plain = section("x", summary, config)
    assert not any("have a single group" in p for p in plain)
    assert not any(p.startswith("Gap of all rows by what is decided") for p in plain)
    for row in summary["evidence"]["levels"]:
        if row["statistic"].startswith("client_disparity"):
            row.update(n_clients=6, n_clients_left_out=2)
    for arm, value in zip(ARMS, np.linspace(0.1, 0.5, 5), strict=True):
        own = level(summary, "disparity:rate:group", arm)
        summary["evidence"]["levels"].append({**own, "group": "Low", "value": float(value)})
    found = section("x", summary, config)
    assert any(p.startswith("Of 6 clients over all seeds, 2 have") for p in found)
    assert table(found, "Gap of all rows by what")["Low"][1].startswith("0.2000 [")
