"""RESULTS.md says what the published studies say, and their numbers come out of their unit tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from upright.report.results import results_page
from upright.shell.registry import load_method
from upright.shell.runs import read_json
from upright.shell.units import Units, read_units

ROOT = Path(__file__).parent.parent
PUBLISHED = sorted(p.parent for p in (ROOT / "results").glob("*/summary.json"))
COUNTED = [p for p in PUBLISHED if (p / "cells.parquet").exists()]  # cells of people, not people
STUDIES = [p for p in PUBLISHED if p not in COUNTED]


def test_results_md_is_generated_from_the_studies() -> None:
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == results_page(ROOT / "results"), "run `make results`"


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_published_means_and_gaps_are_those_of_the_units(folder: Path) -> None:
    summary = read_json(folder / "summary.json")
    units = Units(read_units(folder / "units.parquet"))
    assert len(units.seeds) >= 6
    known = {arm.name for arm in load_method(summary["method"]).arms}
    assert {arm.partition("@")[0] for arm in units.arms} <= known
    checked = 0
    for row in summary["evidence"]["levels"]:
        if row["metric"] not in units.metrics or (row["grouping"] or "activity") not in units.by | {"activity": None}:
            continue  # left out of what is published; the next test says what may be
        values = units.values(row["arm"], row["metric"])
        name, _, grouping = row["statistic"].split(":")[0], None, row["grouping"]
        if name == "mean":
            mask = np.ones_like(values, dtype=bool) if row["group"] is None else units.by[grouping] == row["group"]
            assert row["value"] == pytest.approx(np.nanmean(values[mask]), abs=1e-12)
        elif name == "gap":
            first, second = (np.nanmean(values[units.by[grouping] == g]) for g in units.groups(grouping))
            assert row["value"] == pytest.approx(first - second, abs=1e-12)
        else:
            continue
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("folder", STUDIES, ids=lambda p: p.name)
def test_a_published_study_names_no_private_attribute_of_a_person(folder: Path) -> None:
    # catches: a class beside a user, or the score of an attacker that gives it away; ids are run-local numbers
    units = Units(read_units(folder / "units.parquet"))
    assert set(units.by) <= {"activity", "set", "difficulty"}  # the last two of fictitious authors
    assert not [m for m in units.metrics if m.startswith("attack")]
    assert units.units == [str(i) for i in range(len(units.units))]


@pytest.mark.parametrize("folder", COUNTED, ids=lambda p: p.name)
def test_published_rates_are_those_of_the_cells(folder: Path) -> None:
    summary = read_json(folder / "summary.json")
    rows = pq.read_table(folder / "cells.parquet").to_pylist()
    assert len({r["seed"] for r in rows}) >= 6
    assert all(r["n"] is None or r["n"] == 0 or r["n"] >= 5 for r in rows)
    lost = {r["metric"] for r in rows if r["n"] is None}  # a suppressed cell leaves a total unknown
    checked = 0
    for level in summary["evidence"]["levels"]:
        name, prefix, *_ = level["statistic"].split(":")
        mine = [r for r in rows if r["arm"] == level["arm"] and r["n"]]
        if name == "mean" and level["metric"] not in lost:
            own = [r for r in mine if r["metric"] == level["metric"] and level["group"] in (None, r["group"])]
            total = sum(r["n"] * r["mean"] for r in own) / sum(r["n"] for r in own)
            assert level["value"] == pytest.approx(total, abs=1e-9)
        elif name == "disparity" and level["group"] is None and not any(m.startswith(prefix) for m in lost):
            assert level["value"] == pytest.approx(_disparity(mine, prefix), abs=1e-9)
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
