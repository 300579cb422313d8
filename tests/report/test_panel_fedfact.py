"""The panel of FedFACT: blocks of tiny real runs, what may not be shown, and the page in a browser."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.classification.fitting import fit_table, named_constraints
from upright.contract import InputError, UnitScores
from upright.evidence.units import Block, read_units, write_units
from upright.report import build_report
from upright.report.evidence import FRONT
from upright.report.panels import limits_for, panel_for, shows_front
from upright.report.panels.fedfact_maps import Count, draw_map, groups_of, rates_of
from upright.report.panels.fedfact_prices import bars_of
from upright.report.plots import Canvas
from upright.report.read import read_folder
from upright.shell.runner import compare_runs, execute
from upright.shell.study import publish_runs

spec = importlib.util.spec_from_file_location("report_sample", Path(__file__).with_name("sample.py"))
sample = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sample)
section, titles, table, edit, noting = sample.section, sample.titles, sample.table, sample.edit, sample.noting

SETTINGS = {
    "data": "synthetic",
    "clients": 3,
    "gamma": 5.0,
    "least": 5,
    "rounds": 6,
    "fair_rounds": 6,
    "local_steps": 5,
    "batch_size": 64,
    "global_tol": 0.03,
}
ARMS = ["none", "fedfact", "majority", "random", "train"]
MINE = "FedFACT, post-processing"
FRONTS = ["Accuracy against the gap of all rows", "Accuracy against the gap of the worst client"]
MAPS = [f"Decided c1, by client and group: {arm}" for arm in ("federated averaging", MINE)]
PRICES, FLIPS = "Prices of the constraints", "Decisions that changed, by group"
CURVES = ["Gap of all rows by round", "Gap of the worst client by round", "Objective by round"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs with a sweep of every tolerance, s0 and s1, and their comparison x2."""
    root = tmp_path_factory.mktemp("fedfact")
    folders = [root / f"s{seed}" for seed in range(2)]
    for seed, one in enumerate(folders):
        execute("fedfact", settings=SETTINGS, seed=seed, arms=ARMS, sweep=True, folder=one)
    compare_runs(folders, root / "x2")
    return root


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the first run that a test may edit."""
    return Path(shutil.copytree(made / "s0", tmp_path / "s0"))


def note_of(folder: Path, arm: str, name: str):
    arms = json.loads((folder / "summary.json").read_text())["arms"]
    return next(a for a in arms if a["name"] == arm)["notes"][name]


def number_of(cell: list[str]) -> float:
    """Read a number of a page."""
    return float("".join(cell[0].split()).replace("−", "-"))


# -- structure ----------------------------------------------------------------------------------------------------


def test_blocks_stand_in_their_order_with_words_and_tables(folder):
    # catches: a block lost or moved; a plot without a text alternative, a table or a reading; the front drawn twice
    source = sample.page(folder)
    found = source[source.index('id="panel"') : source.index('id="units"')]
    assert titles(found) == [*FRONTS, *MAPS, PRICES, FLIPS, *CURVES]
    sample.assert_complete(found)
    assert shows_front("fedfact")
    assert FRONT not in titles(source)
    assert "How rows are spread over 3 clients" in found
    assert all(one in source for one in limits_for("fedfact"))
    assert panel_for("fedfact_maps") is None


@pytest.mark.parametrize(
    ("arm", "note", "lost"),
    [
        ("fedfact", "prices", [PRICES]),
        ("fedfact", "flips", [FLIPS]),
        ("train", "history", CURVES),
        ("fedfact", "calibration", []),
        ("fedfact", "solver", []),
        ("none", "counts", []),
    ],
)
def test_a_missing_note_drops_its_block_alone(folder, arm, note, lost):
    # catches: a KeyError, an empty plot, a neighbour dropped as well
    edit(folder, noting(arm, **{note: None}))
    found = section(folder)
    assert titles(found) == [t for t in [*FRONTS, *MAPS, PRICES, FLIPS, *CURVES] if t not in lost]
    assert ("The program ended" in found) == (note != "solver")
    assert ("How rows are spread" in found) == (note != "counts")
    assert ("the largest gap on calibration rows" in found) == (note != "calibration")


@pytest.mark.parametrize("note", ["prices", "flips", "small", "conflicts"])
def test_a_note_that_is_no_list_of_records_is_refused_in_three_parts(folder, note):
    # catches: a traceback of the reader's, a block drawn from half a note
    edit(folder, noting("fedfact", **{note: [{"client": "0"}]}))
    with pytest.raises(InputError) as error:
        build_report(folder)
    assert f"note {note}" in error.value.got
    assert error.value.accepted
    assert error.value.todo


def test_without_the_unit_table_the_maps_are_left_out(folder):
    # catches: a report that cannot be built from the summary alone
    (folder / "units.parquet").unlink()
    assert titles(section(folder)) == [*FRONTS, PRICES, FLIPS, *CURVES]


# -- fronts ---------------------------------------------------------------------------------------------------------


def test_front_joins_each_tolerance_with_its_own_calibration_rows(folder):
    # catches: notes of the arm taken for those of its sweep; global and local gaps exchanged; tolerances out of order
    arms = {a["name"]: a["notes"]["calibration"] for a in json.loads((folder / "summary.json").read_text())["arms"]}
    source = section(folder)
    for title, key in zip(FRONTS, ("global", "local_max"), strict=True):
        rows = [row for row in table(source, title) if row[0] == [MINE]]
        tolerances = [number_of(row[1]) for row in rows]
        assert tolerances == sorted({0.0, 0.01, 0.02, 0.03, 0.04, 0.08})
        for tolerance, row in zip(tolerances, rows, strict=True):
            note = arms["fedfact" if tolerance == 0.03 else f"fedfact@{tolerance:g}"]
            assert number_of(row[-2]) == pytest.approx(note["accuracy"], abs=6e-4)
            assert number_of(row[-1]) == pytest.approx(note[key], abs=6e-4)


def test_without_a_sweep_the_arms_are_points_and_the_tolerance_a_line(folder):
    # catches: a sweep's words where there is none; the tolerance of the baseline, which is 1, drawn as the remedy's
    swept = section(folder)
    assert "A line joins the tolerances of an arm" in swept
    assert "The dashed line" not in swept

    def one_strength(summary):
        summary["arms"] = [a for a in summary["arms"] if a["role"] != "sweep"]
        for part in ("levels", "differences"):
            summary["evidence"][part] = [r for r in summary["evidence"][part] if "@" not in r["arm"]]

    edit(folder, one_strength)
    found = section(folder)
    assert "A line joins" not in found
    assert found.count("The dashed line is the tolerance, 0.03.") == 2
    arms = json.loads((folder / "summary.json").read_text())["arms"]
    assert [row[0][0].lower() for row in table(found, FRONTS[0])] == [arm["title"].lower() for arm in arms]


@pytest.mark.parametrize(
    ("gaps", "tone", "said"),
    [
        ({"global": 0.03, "local_max": 0.03}, "good", "0.0300 for everybody (tolerance 0.03)"),
        ({"global": 0.029, "local_max": 0.031}, "warn", "0.0310 inside a client (tolerance 0.03)"),
        ({"global": 0.031, "local_max": 0.029}, "warn", "0.0310 for everybody (tolerance 0.03)"),
    ],
)
def test_whether_tolerances_hold_on_calibration_rows_is_said(folder, gaps, tone, said):
    # catches: a broken promise with a tick; a kept one with a warning; one of the two levels not looked at
    edit(folder, noting("fedfact", calibration={"accuracy": 0.8, "local_mean": 0.0, **gaps}))
    found = section(folder)
    item = re.search(r'<li class="(\w+)">(?:(?!</li>).)*?the largest gap on calibration rows(.*?)</li>', found)
    assert item[1] == tone
    assert said in item[2]


def test_a_broken_tolerance_names_the_size_of_the_cell(folder):
    # catches: the smallest cell of another client blamed; a count below five told
    edit(folder, noting("fedfact", calibration={"accuracy": 0.8, "global": 0.01, "local_max": 0.2, "local_mean": 0.1}))

    def excess(summary, samples):
        notes = next(a for a in summary["arms"] if a["name"] == "fedfact")["notes"]
        row = {"feature": "group", "group": "a", "of": 90, "needed": 4321}
        notes["small"] = [{**row, "client": "1", "samples": samples}, {**row, "client": "0", "samples": 6}]
        for price in notes["prices"]:
            price["gap_deterministic"] = 0.2 if price["client"] == "1" else 0.0

    edit(folder, lambda summary: excess(summary, 8))
    assert "inside a client where a group has 8 rows, so that its rate moves in steps of 1/8." in section(folder)
    edit(folder, lambda summary: excess(summary, 3))
    found = section(folder)
    assert "where a group has fewer than 5 rows." in found
    assert "4321" not in re.sub(r"\D", "", str(table(found, "Cells too small")[0]))


def test_why_a_tolerance_is_exceeded_is_said_as_far_as_it_applies(folder):
    # catches: rounding blamed for what labels or another kind of gap explain; a cause named that is none
    edit(folder, noting("fedfact", calibration={"accuracy": 0.8, "global": 0.2, "local_max": 0.2, "local_mean": 0.1}))
    sentences = [
        "from the model's probabilities; these gaps count labels",
        "bounds a group's gap to the average",
        "Decisions without chance need not meet",
    ]

    def said() -> list[bool]:
        found = section(folder)
        return [one in found for one in sentences]

    assert said() == [False, False, True]
    edit(folder, lambda s: s["data"].update(criterion="equalized_odds"))
    assert said() == [True, False, True]
    edit(folder, lambda s: next(a for a in s["arms"] if a["name"] == "fedfact")["settings"].update(randomised=True))
    assert said() == [True, False, False]
    edit(folder, lambda s: next(a for a in s["arms"] if a["name"] == "fedfact")["settings"].update(gap="average"))
    assert said() == [True, True, False]


# -- heat maps ------------------------------------------------------------------------------------------------------


def naive(path: Path, arm: str) -> dict[tuple[str, str], list[float]]:
    """Collect decisions of each client and group by plain loops."""
    found = defaultdict(list)
    for block in read_units(path):
        if block.arm == arm:
            by, values = block.scores.by, block.scores.values["rate/c1"]
            for client, group, value in zip(by["client"], by["group"], values, strict=True):
                found[client, group].append(float(value))
    return found


@pytest.mark.parametrize(("arm", "title"), list(zip(("none", "fedfact"), MAPS, strict=True)))
def test_map_holds_the_gaps_of_the_unit_table(folder, arm, title):
    # catches: before and after exchanged; a rate minus that of another client; groups or clients transposed
    cells = naive(folder / "units.parquet", arm)
    rows = {(row[0][0].partition("Client ")[2], row[1][0]): row for row in table(section(folder), title)}
    assert len(rows) == len(cells) + len({g for _, g in cells})
    for (client, group), row in rows.items():
        own = [v for (c, g), vs in cells.items() if (c == client or not client) and g == group for v in vs]
        whole = [v for (c, _), vs in cells.items() if c == client or not client for v in vs]
        assert number_of(row[2]) == len(own)
        assert number_of(row[3]) == pytest.approx(np.mean(own), abs=6e-4)
        assert number_of(row[4]) == pytest.approx(np.mean(own) - np.mean(whole), abs=6e-4)


def test_cells_of_fewer_than_five_rows_are_not_shown_and_cannot_be_reckoned(folder):
    # catches: a small cell's rate or count, or either of them left over as a total minus what is shown
    kept = []
    for block in read_units(folder / "units.parquet"):
        by = {k: np.array(v) for k, v in block.scores.by.items()}
        first = sorted(set(by["group"]))[0]
        small = np.flatnonzero((by["client"] == "1") & (by["group"] == first))
        keep = np.setdiff1d(np.arange(len(by["client"])), small[4:])
        values = {m: np.asarray(v)[keep] for m, v in block.scores.values.items()}
        by = {k: v[keep].tolist() for k, v in by.items()}
        scores = UnitScores("row", [block.scores.unit[i] for i in keep], values, by)
        kept.append(Block(block.run, block.arm, block.seed, scores))
    write_units(folder / "units.parquet", kept, "test")
    rates = rates_of(read_folder(folder), ["fedfact"], 0)["fedfact", "rate/c1"]
    assert rates["1", first] is None
    source = section(folder)
    rows = {(row[0][0], row[1][0]): row for row in table(source, MAPS[1])}
    assert rows["Client 1", first][2:] == [["fewer than 5"], ["–"], ["–"]]
    others = sum(one.n for (client, group), one in rates.items() if group == first and client != "1")
    assert number_of(rows["All rows", first][2]) == others
    second = next(g for c, g in rows if c == "Client 1" and g != first)
    assert number_of(rows["Client 1", second][4]) == 0.0  # alone among what is shown
    assert "Cells of fewer than 5 rows are not shown, and count in no other cell." in source


def test_published_cells_draw_the_same_maps(made, tmp_path):
    # catches: a study that is published without units losing its maps, or showing another seed's
    runs, facts = [made / "s0", made / "s1"], {"command": "none", "published": {}}
    target = publish_runs("study", runs, made / "x2", tmp_path, facts, cells=("client", "group"))
    assert not (target / "units.parquet").exists()
    for arm in ("none", "fedfact"):
        want = rates_of(read_folder(made / "x2"), [arm], 0)[arm, "rate/c1"]
        have = rates_of(read_folder(target), [arm], 0)[arm, "rate/c1"]
        assert want.keys() == have.keys()
        assert all(a.n == b.n and a.total == pytest.approx(b.total) for k in want for a, b in [(want[k], have[k])])
    assert titles(section(target)) == titles(section(made / "x2"))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")),
        st.none() | st.integers(5, 60).map(lambda n: Count(n, n / 2)),
        min_size=1,
    )
)
def test_groups_are_all_there_once_by_falling_size(cells):
    # catches: a group that has no shown cell lost from the table; the largest group cut from a map
    size = defaultdict(int)
    for (_, group), one in cells.items():
        size[group] += one.n if one else 0
    found = groups_of(cells)
    assert sorted(found) == sorted(size)
    assert [size[g] for g in found] == sorted(size.values(), reverse=True)


def test_a_map_draws_a_shade_for_each_cell_beyond_the_first_step():
    # catches: every cell shaded, or the sign not told
    def fills(gap: float) -> int:
        return draw_map([("All rows", [(gap, "9")])], ["g"], Canvas()).count("fill: var(--arm-")

    assert [fills(g) for g in (0.0, 0.0199, 0.02, 0.5, math.nan)] == [0, 0, 1, 1, 0]
    assert "var(--arm-1)" in draw_map([("All rows", [(0.1, "9")])], ["g"], Canvas())
    assert "var(--arm-2)" in draw_map([("All rows", [(-0.1, "9")])], ["g"], Canvas())


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
    of, groups, clients, classes = {"group": group}, {"group": ["a", "b"]}, ["0", "1"], ["no", "yes"]
    return fit_table(p, of, groups, client, clients, wanted, classes, y=y, temperature=1e-3, randomised=True)


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
        (row,) = [b for b in bars if b[0] == [where]]
        assert number_of(row[3]) == pytest.approx(sum(abs(r["price"]) for r in own), abs=6e-4)
        assert number_of(row[4]) == pytest.approx(abs(own[0]["gap_deterministic"]), abs=6e-5)
        assert row[5] == ["0.03"]


@pytest.mark.parametrize(
    ("converged", "tone", "said"), [(True, "good", "It converged."), (False, "bad", "did not conv")]
)
def test_the_solver_is_put_in_words(folder, converged, tone, said):
    # catches: an unsolved program that looks solved; the two numbers exchanged
    edit(folder, noting("fedfact", solver={"kkt": 2.5e-7, "duality_gap": -3e-9, "steps": 17, "converged": converged}))
    item = re.search(r'<li class="(\w+)">(?:(?!</li>).)*?(The program ended.*?)</li>', section(folder))
    assert item[1] == tone
    assert "duality gap of 3.0e−9 and a largest violation of the optimality (KKT) conditions of 2.5e−7" in item[2]
    assert "after 17 Newton steps" in item[2]
    assert said in item[2]


# -- flips and warnings ---------------------------------------------------------------------------------------------


def test_flips_are_shares_of_the_group_and_small_groups_are_not_shown(folder):
    # catches: a share of all rows; the decisions of three people told
    groups = (("many", 400, (0.125, 0.0)), ("three", 3, (1 / 3, 0.0)))
    rows = [{"group": g, "to": str(i), "share": s, "rows": n} for g, n, own in groups for i, s in enumerate(own)]
    edit(folder, noting("fedfact", flips=rows))
    found = section(folder)
    plot = re.search(r'<div class="plot".*?</svg>', sample.figure(found, FLIPS))[0]
    assert "12.5" in plot
    assert "many" in plot
    assert "three" not in plot
    own = [row for row in table(found, FLIPS) if row[0] == [MINE]]
    few = ("three", "–", "fewer than 5")
    shown = [("many", "0.125", "400"), ("many", "0.000", "400"), few, few]
    assert [(row[1][0], row[3][0], row[4][0]) for row in own] == shown


def test_cells_too_small_hide_counts_below_five(folder):
    # catches: a count below five, or the number needed, from which it follows; the list of the placebo shown instead
    row = {"feature": "group", "group": "a", "of": 731}
    sizes = [("0", 58, 10045), ("1", 3, 98765), ("2", 0, None)]
    small = [{**row, "client": client, "samples": n, "needed": need} for client, n, need in sizes]
    edit(folder, noting("fedfact", small=small))
    edit(folder, noting("random", small=[{**row, "client": "9", "samples": 7, "needed": 1}]))
    found = section(folder)
    assert "Cells too small to certify: 3 cells" in found
    rows = table(found, "Cells too small to certify")
    assert [r[2] for r in rows] == [["58"], ["fewer than 5"], ["no row"]]
    assert [r[4] for r in rows] == [["10 045"], ["–"], ["–"]]
    assert "98765" not in build_report(folder).read_text(encoding="utf-8").replace(" ", "").replace(" ", "")


def test_conflicts_stand_once_for_two_classes_with_both_prices(folder):
    # catches: each conflict of a binary task counted twice; the two prices exchanged
    row = {"client": "2", "feature": "group", "criterion": "demographic_parity", "stratum": 0, "between": "a - b"}
    two = [("0", 0.21, -0.04), ("1", -0.22, 0.05)]
    conflicts = [{**row, "class": name, "global_price": a, "local_price": b} for name, a, b in two]
    found = section(edit(folder, noting("fedfact", conflicts=conflicts)))
    assert "Local constraints against global ones: 1<" in found
    assert table(found, "Local constraints")[0] == [["Client 2"], ["a − b"], ["1"], ["−0.220"], ["+0.050"]]


def test_constraints_left_out_are_counted_and_placed(folder):
    # catches: a masked constraint taken for one that is met; None written where a number should be
    report = note_of(folder, "fedfact", "prices")
    for row in report:
        if row["client"] == "1":
            row.update(tolerance=None, gap_randomised=None, gap_deterministic=None, price=None)
    edit(folder, noting("fedfact", prices=report))
    found = section(folder)
    masked = [r for r in report if r["client"] == "1"]
    assert len(masked) == 1
    assert "1 constraint could not be stated, since a group is empty there." in found
    assert [r[0] for r in table(found, "Constraints left out")] == [["Client 1"]]
    assert ["Client 1"] not in [r[0] for r in table(found, PRICES)]
    assert "None" not in found


def test_partition_hides_classes_of_fewer_than_five_rows(folder):
    # catches: a count of three people, or one that is left over from the total
    counts = [
        {"client": "0", "group": "a", "n": 300, "y=0": 200, "y=1": 100},
        {"client": "0", "group": "b", "n": 90, "y=0": 87, "y=1": 3},
        {"client": "1", "group": "b", "n": 2, "y=0": 2, "y=1": 0},
    ]
    edit(folder, noting("none", counts=counts))
    found = section(folder)
    rows = [[c[0] for c in row[2:]] for row in table(found, "Rows by client, group and label")]
    assert rows == [["300", "200", "100"], ["90", "–", "–"], ["fewer than 5", "–", "–"]]
    assert "How rows are spread over 2 clients" in found


# -- several seeds --------------------------------------------------------------------------------------------------


def test_of_several_seeds_the_first_is_drawn_and_means_are_means(made):
    # catches: the first seed passed off as all; a mean of one seed; the maps of another seed
    found = section(made / "x2")
    assert found.count("Seed 0 of 2: each seed draws its own clients.") >= 3
    assert table(found, MAPS[1]) == table(section(made / "s0"), MAPS[1])
    notes = [note_of(made / f"s{seed}", "fedfact", "calibration") for seed in range(2)]
    assert notes[0]["global"] != notes[1]["global"]
    for title, key in zip(FRONTS, ("global", "local_max"), strict=True):
        (row,) = [r for r in table(found, title) if r[:2] == [[MINE], ["0.03"]]]
        assert number_of(row[-1]) == pytest.approx(np.mean([n[key] for n in notes]), abs=6e-4)
    most = max(n["global"] for n in notes)
    assert f"calibration rows of 2 seeds is {most:.4f} for everybody" in found
    shares = [{(f["group"], f["to"]): f["share"] for f in note_of(made / f"s{s}", "fedfact", "flips")} for s in (0, 1)]
    for row in table(found, FLIPS):
        if row[0] == [MINE]:
            own = [one[row[1][0], row[2][0]] for one in shares]
            assert number_of(row[3]) == pytest.approx(np.mean(own), abs=6e-4)
    reports = [note_of(made / f"s{s}", "fedfact", "prices") for s in (0, 1)]
    prices = [sum(abs(r["price"]) for r in report if r["level"] == "global") for report in reports]
    (row,) = table(found, "Prices of the constraints on everybody")
    assert number_of(row[2]) == pytest.approx(np.mean(prices), abs=6e-4)


def test_curves_are_means_over_seeds_of_the_arm_that_trains(made):
    # catches: one seed's curve under the words of all; the local gap under the title of the global one
    found = section(made / "x2")
    for title, key in zip(CURVES, ("global_gap", "local_gap", "objective"), strict=True):
        (row,) = table(found, title)
        last = [note_of(made / f"s{s}", "train", "history")[-1][key] for s in (0, 1)]
        assert row[0] == ["FedFACT, in training"]
        assert row[1] == ["6"]
        assert number_of(row[4]) == pytest.approx(np.mean(last), abs=6e-4)
    assert found.count("Mean over 2 seeds; the shaded range holds all of them.") == 3


# -- in a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.skipif(not os.path.exists(sample.CHROMIUM), reason="no browser")
def test_no_letter_is_cut_and_no_two_labels_meet(folder):
    # catches: long names of groups that run over their numbers or out of the picture
    source = (folder / "summary.json").read_text()
    for name in json.loads(source)["data"]["groups"]:
        source = source.replace(json.dumps(name), json.dumps(f"African-American or Other {name}"))
        source = re.sub(rf"\b{name} - ", f"African-American or Other {name} - ", source)
        source = re.sub(rf' - {name}"', f' - African-American or Other {name}"', source)
    (folder / "summary.json").write_text(source)
    sample.assert_readable(build_report(folder))
