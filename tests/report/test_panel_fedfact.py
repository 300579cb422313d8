"""The panel of FedFACT: fronts, maps and curves of tiny real runs, what may not be shown, and the page in a browser."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError, UnitScores
from upright.report import build_report
from upright.report.panels import limits_for, panel_for, shows_front
from upright.report.panels.fedfact_maps import Count, draw_map, groups_of, rates_of
from upright.report.plots import Canvas
from upright.report.read import read_folder
from upright.shell.study import publish_runs
from upright.shell.units import Block, read_units, write_units


def _load() -> ModuleType:
    # tests are no package under --import-mode=importlib, so the sibling is loaded by its path
    spec = importlib.util.spec_from_file_location("fedfact_sample", Path(__file__).with_name("fedfact_sample.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made_by = _load()
page, section, titles, table = made_by.page, made_by.section, made_by.titles, made_by.table
change, noting, note_of = made_by.change, made_by.noting, made_by.note_of
FRONTS = ["Accuracy against the gap of all rows", "Accuracy against the gap of the worst client"]
MAPS = [
    "Decided c1, by client and group: federated averaging",
    "Decided c1, by client and group: FedFACT, post-processing",
]
PRICES, FLIPS = "Prices of the constraints", "Decisions that changed, by group"
CURVES = ["Gap of all rows by round", "Gap of the worst client by round", "Objective by round"]
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs with a sweep, and their comparison."""
    return made_by.make(tmp_path_factory.mktemp("fedfact"))


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the first run that a test may edit."""
    return Path(shutil.copytree(made / "s0", tmp_path / "s0"))


# -- structure ----------------------------------------------------------------------------------------------------


def test_blocks_stand_in_their_order_with_words_and_tables(folder):
    # catches: a block lost or moved; a plot without a text alternative, a table or a reading; the front drawn twice
    source = page(folder)
    found = source[source.index('id="panel"') : source.index('id="units"')]
    assert titles(found) == [*FRONTS, *MAPS, PRICES, FLIPS, *CURVES]
    for figure in re.findall(r"<figure>(.*?)</figure>", found):
        assert re.search(r'<div class="plot" role="img" aria-label="[^"]+: [^"]+"', figure)
        assert "Numbers behind this plot" in figure
        assert re.search(r"<p>[A-Z].{20,}?</p>", figure)
    assert shows_front("fedfact")
    assert not any("Quality against gap" in one for one in titles(source))
    assert "How rows are spread over 3 clients" in found
    assert "None" not in found
    assert "nan" not in re.sub(r"<[^>]*>", " ", found).split()
    for one in limits_for("fedfact"):
        assert one in source
    assert panel_for("fedfact_maps") is None


@pytest.mark.parametrize(
    ("arm", "note", "lost"),
    [("fedfact", "prices", [PRICES]), ("fedfact", "flips", [FLIPS]), ("train", "history", CURVES),
     ("fedfact", "calibration", []), ("fedfact", "solver", []), ("none", "counts", [])],
)  # fmt: skip
def test_a_missing_note_drops_its_block_alone(folder, arm, note, lost):
    # catches: a KeyError, an empty plot, a neighbour dropped as well
    change(folder, noting(arm, **{note: None}))
    found = section(folder)
    assert titles(found) == [t for t in [*FRONTS, *MAPS, PRICES, FLIPS, *CURVES] if t not in lost]
    assert ("The program ended" in found) == (note != "solver")
    assert ("How rows are spread" in found) == (note != "counts")
    assert ("the largest gap on calibration rows" in found) == (note != "calibration")


@pytest.mark.parametrize("note", ["prices", "flips", "small", "conflicts"])
def test_a_note_that_is_no_list_of_records_is_refused_in_three_parts(folder, note):
    # catches: a traceback of the reader's, a block drawn from half a note
    change(folder, noting("fedfact", **{note: [{"client": "0"}]}))
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
        rows = [row for row in table(source, title) if row[0] == ["FedFACT,", "post-processing"]]
        rows += [
            row for row in table(source, title) if row[0][:2] == ["FedFACT,", "post-processing"] and len(row[0]) > 2
        ]
        tolerances = [float(row[1][0]) for row in rows]
        assert tolerances == sorted({0.0, 0.01, 0.02, 0.03, 0.04, 0.08})
        for tolerance, row in zip(tolerances, rows, strict=True):
            note = arms["fedfact" if tolerance == 0.03 else f"fedfact@{tolerance:g}"]
            assert float(row[-2][0]) == pytest.approx(note["accuracy"], abs=6e-4)
            assert float(row[-1][0]) == pytest.approx(note[key], abs=6e-4)


def test_without_a_sweep_the_arms_are_points_and_the_tolerance_a_line(folder):
    # catches: a sweep's words where there is none; the tolerance of the baseline, which is 1, drawn as the remedy's
    swept = section(folder)
    assert "A line joins the tolerances of an arm" in swept
    assert "The dashed line" not in swept

    def edit(summary):
        summary["arms"] = [a for a in summary["arms"] if a["role"] != "sweep"]
        for part in ("levels", "differences"):
            summary["evidence"][part] = [r for r in summary["evidence"][part] if "@" not in r["arm"]]

    change(folder, edit)
    found = section(folder)
    assert "A line joins" not in found
    assert found.count("The dashed line is the tolerance, 0.03.") == 2
    assert [row[0][0] for row in table(found, FRONTS[0])] == ["Federated", "FedFACT,", "Chance", "Shuffled", "FedFACT,"]


@pytest.mark.parametrize(
    ("gaps", "tone", "said"),
    [({"global": 0.03, "local_max": 0.03}, "good", "0.0300 for everybody (tolerance 0.03)"),
     ({"global": 0.029, "local_max": 0.031}, "warn", "0.0310 inside a client (tolerance 0.03)"),
     ({"global": 0.031, "local_max": 0.029}, "warn", "0.0310 for everybody (tolerance 0.03)")],
)  # fmt: skip
def test_whether_tolerances_hold_on_calibration_rows_is_said(folder, gaps, tone, said):
    # catches: a broken promise with a tick; a kept one with a warning; one of the two levels not looked at
    change(folder, noting("fedfact", calibration={"accuracy": 0.8, "local_mean": 0.0, **gaps}))
    found = section(folder)
    item = re.search(r'<li class="(\w+)">(?:(?!</li>).)*?the largest gap on calibration rows(.*?)</li>', found)
    assert item[1] == tone
    assert said in item[2]


def test_a_broken_tolerance_names_the_size_of_the_cell(folder):
    # catches: the smallest cell of another client blamed; a count below five told
    change(
        folder, noting("fedfact", calibration={"accuracy": 0.8, "global": 0.01, "local_max": 0.2, "local_mean": 0.1})
    )

    def excess(summary, samples):
        notes = next(a for a in summary["arms"] if a["name"] == "fedfact")["notes"]
        row = {"feature": "group", "group": "a", "of": 90, "needed": 4321}
        notes["small"] = [{**row, "client": "1", "samples": samples}, {**row, "client": "0", "samples": 6}]
        for price in notes["prices"]:
            price["gap_deterministic"] = 0.2 if price["client"] == "1" else 0.0

    change(folder, lambda summary: excess(summary, 8))
    assert "inside a client where a group has 8 rows, so that its rate moves in steps of 1/8." in section(folder)
    change(folder, lambda summary: excess(summary, 3))
    found = section(folder)
    assert "where a group has fewer than 5 rows." in found
    assert "4321" not in re.sub(r"\D", "", "".join("".join(c) for r in table(found, "Cells too small")[:1] for c in r))


def test_why_a_tolerance_is_exceeded_is_said_as_far_as_it_applies(folder):
    # catches: rounding blamed for what labels or another kind of gap explain; a cause named that is none
    change(folder, noting("fedfact", calibration={"accuracy": 0.8, "global": 0.2, "local_max": 0.2, "local_mean": 0.1}))
    sentences = ["from the model's probabilities; these gaps count labels", "bounds a group's gap to the average",
                 "Decisions without chance need not meet"]  # fmt: skip

    def said() -> list[bool]:
        found = section(folder)
        return [one in found for one in sentences]

    assert said() == [False, False, True]
    change(folder, lambda s: s["data"].update(criterion="equalized_odds"))
    assert said() == [True, False, True]
    change(folder, lambda s: next(a for a in s["arms"] if a["name"] == "fedfact")["settings"].update(randomised=True))
    assert said() == [True, False, False]
    change(folder, lambda s: next(a for a in s["arms"] if a["name"] == "fedfact")["settings"].update(gap="average"))
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
    rows = {(row[0][-1] if row[0][0] == "Client" else "", row[1][0]): row for row in table(section(folder), title)}
    assert len(rows) == len(cells) + len({g for _, g in cells})
    for (client, group), row in rows.items():
        own = [v for (c, g), vs in cells.items() if (c == client or not client) and g == group for v in vs]
        whole = [v for (c, _), vs in cells.items() if c == client or not client for v in vs]
        assert int("".join(row[2])) == len(own)
        assert float(row[3][0]) == pytest.approx(np.mean(own), abs=6e-4)
        assert float(row[4][0].replace("−", "-")) == pytest.approx(np.mean(own) - np.mean(whole), abs=6e-4)


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
    rows = {(" ".join(row[0]), row[1][0]): row for row in table(source, MAPS[1])}
    assert rows["Client 1", first][2:] == [["fewer", "than", "5"], ["–"], ["–"]]
    others = sum(one.n for (client, group), one in rates.items() if group == first and client != "1")
    assert int("".join(rows["All rows", first][2])) == others
    second = next(g for c, g in rows if c == "Client 1" and g != first)
    assert float(rows["Client 1", second][4][0]) == 0.0  # alone among what is shown
    assert "Cells of fewer than 5 rows are not shown, and count in no other cell." in source


def test_published_cells_draw_the_same_maps(made, tmp_path):
    # catches: a study that is published without units losing its maps, or showing another seed's
    target = publish_runs("study", [made / "s0", made / "s1"], made / "x2", tmp_path,
                          {"command": "none", "published": {}}, cells=("client", "group"))  # fmt: skip
    assert not (target / "units.parquet").exists()
    for arm in ("none", "fedfact"):
        want = rates_of(read_folder(made / "x2"), [arm], 0)[arm, "rate/c1"]
        have = rates_of(read_folder(target), [arm], 0)[arm, "rate/c1"]
        assert want.keys() == have.keys()
        assert all(a.n == b.n and a.total == pytest.approx(b.total) for k in want for a, b in [(want[k], have[k])])
    assert titles(section(target)) == titles(section(made / "x2"))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")),
                       st.none() | st.integers(5, 60).map(lambda n: Count(n, n / 2)), min_size=1))  # fmt: skip
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


# -- several seeds --------------------------------------------------------------------------------------------------


def test_of_several_seeds_the_first_is_drawn_and_means_are_means(made):
    # catches: the first seed passed off as all; a mean of one seed; the maps of another seed
    found = section(made / "x2")
    assert found.count("Seed 0 of 2: each seed draws its own clients.") >= 3
    assert table(found, MAPS[1]) == table(section(made / "s0"), MAPS[1])
    notes = [note_of(made / f"s{seed}", "fedfact", "calibration") for seed in range(2)]
    assert notes[0]["global"] != notes[1]["global"]
    for title, key in zip(FRONTS, ("global", "local_max"), strict=True):
        (row,) = [r for r in table(found, title) if r[0] == ["FedFACT,", "post-processing"] and r[1] == ["0.03"]]
        assert float(row[-1][0]) == pytest.approx(np.mean([n[key] for n in notes]), abs=6e-4)
    most = max(n["global"] for n in notes)
    assert f"calibration rows of 2 seeds is {most:.4f} for everybody" in found
    shares = [{(f["group"], f["to"]): f["share"] for f in note_of(made / f"s{s}", "fedfact", "flips")} for s in (0, 1)]
    for row in table(found, FLIPS):
        if row[0] == ["FedFACT,", "post-processing"]:
            own = [one[row[1][0], row[2][0]] for one in shares]
            assert float(row[3][0]) == pytest.approx(np.mean(own), abs=6e-4)
    prices = [sum(abs(r["price"]) for r in note_of(made / f"s{s}", "fedfact", "prices") if r["level"] == "global")
              for s in (0, 1)]  # fmt: skip
    (row,) = table(found, "Prices of the constraints on everybody")
    assert float(row[2][0]) == pytest.approx(np.mean(prices), abs=6e-4)


def test_curves_are_means_over_seeds_of_the_arm_that_trains(made):
    # catches: one seed's curve under the words of all; the local gap under the title of the global one
    found = section(made / "x2")
    for title, key in zip(CURVES, ("global_gap", "local_gap", "objective"), strict=True):
        (row,) = table(found, title)
        last = [note_of(made / f"s{s}", "train", "history")[-1][key] for s in (0, 1)]
        assert " ".join(row[0]) == "FedFACT, in training"
        assert row[1] == ["6"]
        assert float(row[4][0]) == pytest.approx(np.mean(last), abs=6e-4)
    assert found.count("Mean over 2 seeds; the shaded range holds all of them.") == 3


# -- in a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no browser at {CHROMIUM}")
@pytest.mark.parametrize("width", [400, 1200])
def test_no_letter_is_cut_and_no_two_labels_meet(folder, width):
    # catches: long names of groups that run over their numbers or out of the picture
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    source = (folder / "summary.json").read_text()
    for name in json.loads(source)["data"]["groups"]:
        source = source.replace(json.dumps(name), json.dumps(f"African-American or Other {name}"))
        source = re.sub(rf"\b{name} - ", f"African-American or Other {name} - ", source)
        source = re.sub(rf' - {name}"', f' - African-American or Other {name}"', source)
    (folder / "summary.json").write_text(source)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        visit = browser.new_page(viewport={"width": width, "height": 900})
        visit.goto(build_report(folder).as_uri())
        seen, bad, wide = visit.evaluate(
            """() => {
              const bad = []; let seen = 0;
              for (const svg of document.querySelectorAll('#panel svg')) {
                const frame = svg.getBoundingClientRect();
                if (!frame.width) continue;
                const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
                seen += boxes.length;
                boxes.forEach(([a, p], i) => {
                  if (p.left < frame.left - 1 || p.right > frame.right + 1) bad.push('cut: ' + a);
                  for (const [b, q] of boxes.slice(i + 1))
                    if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
                        Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4) bad.push(a + ' | ' + b);
                });
              }
              return [seen, bad, document.documentElement.scrollWidth];
            }"""
        )
        browser.close()
    assert seen > 60
    assert bad == []
    assert wide <= width
