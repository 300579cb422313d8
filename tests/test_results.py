"""RESULTS.md says what the published studies say, and their numbers come out of their unit tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_1samp

from study_u2a import publish_scores
from upright.contract import Arm, InputError
from upright.evidence.records import Difference, Level
from upright.evidence.units import Units, read_units
from upright.evidence.verdict import verdict
from upright.experiment.folders import read_json, write_json
from upright.experiment.registry import load_method
from upright.experiment.summary import SCHEMA
from upright.report.results import results_page, study_page
from upright.report.text import NARROW

ROOT = Path(__file__).parent.parent
PUBLISHED = sorted(p.parent for p in (ROOT / "results").glob("*/summary.json"))
COUNTED = [p for p in PUBLISHED if (p / "cells.parquet").exists()]  # cells of people, not people
STUDIES = [p for p in PUBLISHED if p not in COUNTED]


def publish(
    folder: Path,
    before: float = 0.255,
    say: Callable[[dict[str, Any]], Any] = dict,
    notes: Any = None,
    own: Any = None,
) -> dict[str, Any]:
    """Write a summary of an arm that mends a gap at a price, among rows that look like the ones to tell."""
    arms = [Arm("m", "remedy", title="M"), Arm("p", "placebo", title="p | q"), Arm("n", "baseline", title="none")]
    gap, accuracy = {"p": 0.25, "m": 0.123, "n": before}, {"p": 0.9, "m": 0.829, "n": 0.845}
    levels, differences = [], []
    for statistic, label, at in (("gap", "Gap |a - b|", gap), ("mean:acc", "Accuracy", accuracy)):
        for arm, value in at.items():
            levels.append(Level(statistic=statistic, arm=arm, label=f"{label}, F", value=0.7, group="F"))
            levels.append(Level(statistic=statistic, arm=arm, label=label, value=value))
        differences += [
            Difference(
                statistic=statistic,
                arm="m",
                against=arm,
                value=at["m"] - at[arm],
                low=-0.203,
                high=-0.0031,
                direction="lower" if at is gap else "higher",
                margin=0.02,
            )
            for arm in ("p", "n")
        ]
    said = verdict(levels, differences, arms, primary="gap", cost="mean:acc", title="M", seeds=6).row()
    evidence = {
        "n_seeds": 6,
        "n_units": 943,
        "unit_kind": "user",
        "levels": [row.row() for row in levels],
        "differences": [row.row() for row in differences],
        "verdict": say(said),
    }
    folder.mkdir()
    roles = [{"name": arm.name, "role": arm.role, "notes": dict(notes or {})} for arm in arms]
    evidence |= {"own": own} if own else {}
    own = {"schema": SCHEMA, "seeds": list(range(6)), "arms": roles, "evidence": evidence}
    write_json(folder / "summary.json", own)
    return said


def cells(page: str) -> list[list[str]]:
    rows = [re.split(r"(?<!\\)\|", line) for line in page.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in row[1:-1]] for row in rows]


def test_a_row_says_what_the_summary_of_its_folder_holds(tmp_path: Path) -> None:
    # catches: the level of a group, or of a placebo for the remedy's; effect and price exchanged; a label with |;
    # a percentage of next to nothing; the mark of old intervals, of training cut short or of a baseline, lost; a
    # rival's own word; a row of a folder that says nothing
    said = publish(tmp_path / "a")
    publish(tmp_path / "b", say=lambda said: said | {"from_stored_intervals": True})
    publish(tmp_path / "c", before=0.015)
    publish(tmp_path / "d", say=lambda _: None)
    publish(tmp_path / "e", notes={"converged": {"held": 5, "of": 6}})
    publish(tmp_path / "f", own={"p": {"title": "works"}})
    write_json(tmp_path / "f" / "config.json", {"unconfirmed": "it was short."})
    _, _, first, marked, small, early, short = cells(results_page(tmp_path))
    assert first == [
        "[a](results/a)",
        f"**{said['title']}**",
        "6 × 943 users",
        f"Gap \\|a - b\\|: 0.255 → 0.123 (−52{NARROW}%), −0.132 (−0.203 to −0.003)",
        said["lines"]["due"],
        "Accuracy: 0.845 → 0.829, −0.016 (−0.203 to −0.003)",
    ]
    assert marked == ["[b](results/b)", f"{first[1]} (from stored intervals)", *first[2:]]
    assert early[1] == f"{first[1]}, not trained to convergence"
    assert short[1] == f"{first[1]}, baseline not confirmed; P by itself: **works**"
    assert small[3] == "Gap \\|a - b\\|: 0.015 → 0.123, +0.108 (−0.203 to −0.003)"


def test_what_was_measured_without_arms_stands_below_the_table(tmp_path: Path) -> None:
    # catches: a finding that is left out, or one whose interval is not of its splits
    publish(tmp_path / "a")
    before = results_page(tmp_path)
    rows = [{"split": k, "score": s, "loss": 0.5, "length": 0.4 + s / 10} for k, s in enumerate((0.7, 0.5, 0.6))]
    publish_scores(rows, tmp_path / "b")
    found = read_json(tmp_path / "b" / "finding.json")
    low, high = ttest_1samp([0.7, 0.5, 0.6], 0.0).confidence_interval(0.95)
    assert found["mean"]["score"] == pytest.approx({"value": 0.6, "low": low, "high": high})
    assert found["mean"]["score - loss"]["value"] == pytest.approx(0.1)
    assert "not shown" in found["sentence"]
    added = results_page(tmp_path).removeprefix(before)
    assert added.endswith(f"* [b](results/b): {found['sentence']}\n")


def test_what_holds_of_several_controls_is_said_once(tmp_path: Path) -> None:
    due = "beats 0 of 4 controls that ran; ties with A; not told apart from B; not told apart from C, D; "
    due += "E not run; F not run"
    publish(tmp_path / "a", say=lambda said: said | {"lines": {**said["lines"], "due": due}})
    wanted = "beats 0 of 4 controls that ran; ties with A; not told apart from B, C, D; E, F not run"
    assert cells(results_page(tmp_path))[2][4] == wanted


def test_a_verdict_of_an_older_version_is_refused_by_its_folder(tmp_path: Path) -> None:
    publish(tmp_path / "old", say=lambda said: {"word": said["word"]})
    with pytest.raises(InputError, match="old: a verdict of an older version"):
        results_page(tmp_path)


def test_results_md_is_generated_from_the_studies() -> None:
    page = results_page(ROOT / "results")
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == page, "run `make results`"
    assert len(page.encode()) < 2_000 + 450 * len(PUBLISHED), "one row a study, and nothing else that its folder says"
    assert len(cells(page)) == 2 + len(PUBLISHED)


@pytest.mark.parametrize("folder", PUBLISHED, ids=[p.name for p in PUBLISHED])
def test_the_readme_of_a_study_is_generated_from_its_summary(folder: Path) -> None:
    page = study_page(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == page, "run `make results`"
    assert len(page.encode()) < 3_000
    assert read_json(folder / "summary.json")["evidence"]["verdict"]["sentence"].replace("->", "→") in page


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_published_means_and_gaps_are_those_of_the_units(folder: Path) -> None:
    summary = read_json(folder / "summary.json")
    units = Units(read_units(folder / "units.parquet"))
    assert len(units.seeds) >= 6
    known = {arm.name for arm in load_method(summary["method"]).arms}
    swept = {arm["name"] for arm in summary["arms"] if arm["role"] == "sweep"}
    assert set(units.arms) == {arm["name"] for arm in summary["arms"]} - swept
    assert set(units.arms) <= known
    checked = 0
    for row in map(Level.read, summary["evidence"]["levels"]):
        if row.arm in swept or row.metric not in units.metrics or row.grouping not in {None, *units.by}:
            continue  # left out of what is published; the next test says what may be
        values = units.values(row.arm, row.metric)
        if row.name == "mean":
            mask = np.ones_like(values, dtype=bool) if row.group is None else units.by[row.grouping] == row.group
            assert row.value == pytest.approx(np.nanmean(values[mask]), rel=1e-8)
        elif row.name == "gap":
            first, second = (np.nanmean(values[units.by[row.grouping] == g]) for g in units.groups(row.grouping))
            assert row.value == pytest.approx(first - second, rel=1e-8)
        else:
            continue
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_a_published_study_names_no_private_attribute_of_a_person(folder: Path) -> None:
    # catches: a class beside a user, or the score of an attacker that gives it away; ids are run-local numbers
    units = Units(read_units(folder / "units.parquet"))
    of_items, of_counts = {"popularity", "prior", "cell"}, {"activity", "size", "size_decile"}
    assert set(units.by) <= of_items | of_counts | {"set", "difficulty"}  # the last two of fictitious authors
    assert not [m for m in units.metrics if m.startswith("attack")]
    assert units.units == [str(i) for i in range(len(units.units))]


@pytest.mark.parametrize("folder", COUNTED, ids=lambda p: p.name)
def test_published_rates_are_those_of_the_cells(folder: Path) -> None:
    summary = read_json(folder / "summary.json")
    rows = pq.read_table(folder / "cells.parquet").to_pylist()
    groupings = sorted(set(rows[0]) - {"seed", "arm", "metric", "n", "mean"})
    pilot = summary["evidence"]["verdict"]["title"].startswith("incomplete")
    assert len({r["seed"] for r in rows}) >= (2 if pilot else 6)
    assert all(r["n"] is None or r["n"] == 0 or r["n"] >= 5 for r in rows)
    lost = {r["metric"] for r in rows if r["n"] is None}  # a suppressed cell leaves a total unknown
    checked = 0
    for level in map(Level.read, summary["evidence"]["levels"]):
        prefix = level.statistic.split(":")[1]
        mine = [r for r in rows if r["arm"] == level.arm and r["n"]]
        told = level.grouping is None or level.grouping in groupings
        if level.name == "mean" and told and level.metric not in lost:
            own = [r for r in mine if r["metric"] == level.metric and level.group in (None, *(r[g] for g in groupings))]
            if own:
                total = sum(r["n"] * r["mean"] for r in own) / sum(r["n"] for r in own)
                assert level.value == pytest.approx(total, rel=1e-8, abs=1e-9)
            else:  # questions without a picture have no value of those with one
                assert level.n_units == 0
        elif level.name == "disparity" and level.group is None and not any(m.startswith(prefix) for m in lost):
            assert level.value == pytest.approx(_disparity(mine, prefix), rel=1e-8, abs=1e-9)
        else:
            continue
        checked += 1
    assert checked >= 4


def _disparity(rows: list[dict[str, Any]], prefix: str) -> float:
    sizes = []
    for seed in sorted({r["seed"] for r in rows}):
        largest = 0.0
        for metric in {r["metric"] for r in rows if r["metric"].startswith(prefix + "/")}:
            own = [r for r in rows if r["seed"] == seed and r["metric"] == metric]
            means = []
            for g in {r["group"] for r in own}:
                cell = [r for r in own if r["group"] == g]
                means.append(sum(r["n"] * r["mean"] for r in cell) / sum(r["n"] for r in cell))
            largest = max(largest, max(means) - min(means))
        sizes.append(largest)
    return float(np.mean(sizes))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda p: p.name)
def test_a_published_study_is_small(folder: Path) -> None:
    assert sum(f.stat().st_size for f in folder.iterdir()) < 5 * 2**20
