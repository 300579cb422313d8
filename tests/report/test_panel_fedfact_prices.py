"""The panel of FedFACT: what constraints cost, whose decision changed, and the cells and counts that deserve care."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from upright.classification.fitting import fit_table, named_constraints
from upright.report import build_report
from upright.report.panels.fedfact_prices import bars_of


def _load() -> ModuleType:
    # tests are no package under --import-mode=importlib, so the sibling is loaded by its path
    spec = importlib.util.spec_from_file_location("fedfact_sample", Path(__file__).with_name("fedfact_sample.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made_by = _load()
section, table = made_by.section, made_by.table
change, noting, note_of = made_by.change, made_by.noting, made_by.note_of
PRICES, FLIPS = "Prices of the constraints", "Decisions that changed, by group"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One run."""
    return made_by.make(tmp_path_factory.mktemp("fedfact"), seeds=1)


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the run that a test may edit."""
    return Path(shutil.copytree(made / "s0", tmp_path / "s0"))


# -- prices ---------------------------------------------------------------------------------------------------------


def problem(n: int = 3000):
    rng = np.random.default_rng(5)
    group, client = rng.integers(0, 2, n), rng.integers(0, 2, n)
    score = 1 / (1 + np.exp(-(rng.normal(0, 1.5, n) + 1.2 * group - 0.8)))
    y = (rng.random(n) < score).astype(np.int64)
    return np.column_stack([1 - score, score]), y, group, client


def solved(criterion: str, tolerance: float):
    p, y, group, client = problem()
    wanted = named_constraints(criterion, ["group"], tolerance, math.inf, "pairwise")
    return fit_table(p, {"group": group}, {"group": ["a", "b"]}, client, ["0", "1"], wanted, ["no", "yes"], y=y,
                     temperature=1e-3, randomised=True)  # fmt: skip


TWO = SimpleNamespace(data={"classes": ["no", "yes"]})


def test_a_price_is_the_accuracy_lost_per_unit_of_tolerance():
    # catches: the price of one of two classes shown as the whole; a sign lost so that two prices cancel
    at, step = 0.05, 0.004
    found = solved("demographic_parity", at)
    (bar,) = [b for b in bars_of(TWO, found.report, True) if not b[0]]
    slope = (solved("demographic_parity", at - step).risk - solved("demographic_parity", at + step).risk) / (2 * step)
    assert bar[1:3] == ("a − b", "yes")
    assert slope > 0.05  # the constraint binds
    assert bar[3] == pytest.approx(slope, rel=0.1)
    assert bar[4] == pytest.approx(at, abs=1e-6)


def test_two_classes_under_equalized_odds_have_one_constraint_a_rate():
    # catches: a true positive of one class counted beside the false positive of the other, which is one minus it
    report = [r for r in solved("equalized_odds", 0.03).report if r["level"] == "global"]
    assert [(r["stratum"], r["class"]) for r in report] == [(0, "yes"), (1, "yes")]
    gap = {(r["stratum"], r["class"]): r["gap_randomised"] for r in report}
    bars = bars_of(TWO, report, True)
    assert {b[2] for b in bars} == {"yes, true positive", "yes, false positive"}
    for bar in bars:
        stratum = 0 if bar[2].endswith("true positive") else 1
        assert bar[4] == pytest.approx(abs(gap[stratum, "yes"]), abs=1e-12)
    assert math.fsum(b[3] for b in bars) == pytest.approx(math.fsum(abs(r["price"]) for r in report))


def test_prices_of_the_run_stand_in_the_table_with_tolerance_and_gap(folder):
    # catches: a global price under a client; the randomised gap shown for decisions without chance
    bars = table(section(folder), PRICES)
    report = note_of(folder, "fedfact", "prices")
    for where, client in (("Everybody", None), ("Client 0", "0"), ("Client 2", "2")):
        own = [r for r in report if r["client"] == client]
        (row,) = [b for b in bars if " ".join(b[0]) == where]
        assert float(row[3][0]) == pytest.approx(sum(abs(r["price"]) for r in own), abs=6e-4)
        assert float(row[4][0]) == pytest.approx(abs(own[0]["gap_deterministic"]), abs=6e-5)
        assert row[5] == ["0.03"]


@pytest.mark.parametrize(
    ("converged", "tone", "said"), [(True, "good", "It converged."), (False, "bad", "did not conv")]
)
def test_the_solver_is_put_in_words(folder, converged, tone, said):
    # catches: an unsolved program that looks solved; the two numbers exchanged
    change(folder, noting("fedfact", solver={"kkt": 2.5e-7, "duality_gap": -3e-9, "steps": 17, "converged": converged}))
    item = re.search(r'<li class="(\w+)">(?:(?!</li>).)*?(The program ended.*?)</li>', section(folder))
    assert item[1] == tone
    assert "duality gap of 3.0e−9 and a largest violation of the optimality (KKT) conditions of 2.5e−7" in item[2]
    assert "after 17 Newton steps" in item[2]
    assert said in item[2]


# -- flips and warnings ---------------------------------------------------------------------------------------------


def test_flips_are_shares_of_the_group_and_small_groups_are_not_shown(folder):
    # catches: a share of all rows; the decisions of three people told
    rows = [{"group": g, "to": to, "share": s, "rows": n}
            for g, n, shares in (("many", 400, (0.125, 0.0)), ("three", 3, (1 / 3, 0.0)))
            for to, s in zip(("0", "1"), shares, strict=True)]  # fmt: skip
    change(folder, noting("fedfact", flips=rows))
    found = section(folder)
    figure = next(f for f in re.findall(r"<figure>(.*?)</figure>", found) if FLIPS in f)
    plot = re.search(r'<div class="plot".*?</svg>', figure)[0]
    assert "12.5" in plot
    assert "many" in plot
    assert "three" not in plot
    own = [row for row in table(found, FLIPS) if row[0][:2] == ["FedFACT,", "post-processing"]]
    assert [(row[1][0], row[3][0], row[4][0]) for row in own] == [
        ("many", "0.125", "400"), ("many", "0.000", "400"), ("three", "–", "fewer"), ("three", "–", "fewer"),
    ]  # fmt: skip


def test_cells_too_small_hide_counts_below_five(folder):
    # catches: a count below five, or the number needed, from which it follows; the list of the placebo shown instead
    row = {"feature": "group", "group": "a", "of": 731}
    change(folder, noting("fedfact", small=[
        {**row, "client": "0", "samples": 58, "needed": 10045}, {**row, "client": "1", "samples": 3, "needed": 98765},
        {**row, "client": "2", "samples": 0, "needed": None}]))  # fmt: skip
    change(folder, noting("random", small=[{**row, "client": "9", "samples": 7, "needed": 1}]))
    found = section(folder)
    assert "Cells too small to certify: 3 cells" in found
    rows = table(found, "Cells too small to certify")
    assert [" ".join(r[2]) for r in rows] == ["58", "fewer than 5", "no row"]
    assert ["".join(r[4]) for r in rows] == ["10045", "–", "–"]
    assert "98765" not in build_report(folder).read_text(encoding="utf-8").replace(" ", "").replace(" ", "")


def test_conflicts_stand_once_for_two_classes_with_both_prices(folder):
    # catches: each conflict of a binary task counted twice; the two prices exchanged
    row = {"client": "2", "feature": "group", "criterion": "demographic_parity", "stratum": 0, "between": "a - b"}
    change(folder, noting("fedfact", conflicts=[
        {**row, "class": "0", "global_price": 0.21, "local_price": -0.04},
        {**row, "class": "1", "global_price": -0.22, "local_price": 0.05}]))  # fmt: skip
    found = section(folder)
    assert "Local constraints against global ones: 1<" in found
    assert table(found, "Local constraints")[0] == [["Client", "2"], ["a", "−", "b"], ["1"], ["−0.220"], ["+0.050"]]


def test_constraints_left_out_are_counted_and_placed(folder):
    # catches: a masked constraint taken for one that is met; None written where a number should be
    report = note_of(folder, "fedfact", "prices")
    for row in report:
        if row["client"] == "1":
            row.update(tolerance=None, gap_randomised=None, gap_deterministic=None, price=None)
    change(folder, noting("fedfact", prices=report))
    found = section(folder)
    masked = [r for r in report if r["client"] == "1"]
    assert len(masked) == 1
    assert "1 constraint could not be stated, since a group is empty there." in found
    assert [" ".join(r[0]) for r in table(found, "Constraints left out")] == ["Client 1"]
    assert not [r for r in table(found, PRICES) if " ".join(r[0]) == "Client 1"]
    assert "None" not in found


def test_partition_hides_classes_of_fewer_than_five_rows(folder):
    # catches: a count of three people, or one that is left over from the total
    counts = [{"client": "0", "group": "a", "n": 300, "y=0": 200, "y=1": 100},
              {"client": "0", "group": "b", "n": 90, "y=0": 87, "y=1": 3},
              {"client": "1", "group": "b", "n": 2, "y=0": 2, "y=1": 0}]  # fmt: skip
    change(folder, noting("none", counts=counts))
    found = section(folder)
    rows = [[" ".join(c) for c in row[2:]] for row in table(found, "Rows by client, group and label")]
    assert rows == [["300", "200", "100"], ["90", "–", "–"], ["fewer than 5", "–", "–"]]
    assert "How rows are spread over 2 clients" in found
