"""Declared blocks: the numbers that each kind takes from a folder, before they are a page."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from upright import declare
from upright.contract import InputError, UnitScores
from upright.evidence.units import Block, write_units
from upright.report.kinds import draw, panel
from upright.report.parts import Facts, Grid, Image, Notes
from upright.report.plots import Canvas
from upright.report.read import read_folder

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


@pytest.fixture
def folder(sample, tmp_path):
    """A run folder whose remedy notes what `notes` says, with a unit table of 60 users."""

    def make(notes=None, arm="in_ucds", units=True, **more):
        found = sample.run_folder(tmp_path)
        sample.edit(found, sample.noting(arm, **(notes or {}), **more))
        if units:
            rng = np.random.default_rng(0)
            mrd = rng.random(60)
            values = {"mrd": mrd, "effort": -mrd, "rate/yes": (np.arange(60) % 3 == 0).astype(float)}
            by = {"client": ["a"] * 30 + ["b"] * 30, "group": (["f"] * 4 + ["m"] * 26) * 2}
            scores = UnitScores("user", [f"u{i}" for i in range(60)], values, by)
            write_units(found / "units.parquet", [Block("r", a.name, 0, scores) for a in sample.ARMS], "test")
        return found

    return make


def drawn(block, place):
    return draw(block, read_folder(place), Canvas())


def rows(found):
    """Return the texts of a block's table, a line a row."""
    return [[cell.text for cell in row] for row in getattr(found, "table", found).rows]


def test_a_pattern_takes_groups_apart_from_the_whole(sample, folder):
    # catches: a whole among its groups, or the other way; several patterns taken for one
    place = folder()
    whole = drawn(declare.Intervals("t", "mean:ndcg@10"), place)
    cells = drawn(declare.Intervals("t", "mean:ndcg@10:activity=*"), place)
    both = drawn(declare.Intervals("t", "mean:ndcg@10 mean:ndcg@10:activity=*"), place)
    assert (len(whole.table.rows), len(cells.table.rows), len(both.table.rows)) == (5, 10, 15)
    view = read_folder(place)
    stored = {(r.group, view.arm(r.arm).title): r for r in view.levels if r.statistic == "mean:ndcg@10:activity"}
    for group, arm, value, *_ in cells.table.rows:
        row = stored[group.text, arm.text]
        assert float(value.text) == pytest.approx(row.value, abs=5e-4)
        assert [float(x) for x in value.small.split(" to ")] == pytest.approx([row.low, row.high], abs=5e-4)


def test_a_dumbbell_joins_groups_and_an_arm_join_joins_arms(folder):
    # catches: a row for each mark, marks on the row of another arm
    place = folder()
    canvas = Canvas()
    seen = []
    canvas.rows = lambda rows, *_, **__: seen.append([(r.label, len(r.marks)) for r in rows]) or ""
    view = read_folder(place)
    draw(declare.Dumbbell("t", "mean:ndcg@10:activity=*"), view, canvas)
    draw(declare.Intervals("t", "mean:ndcg@10:activity=*", join="arm", arms=("baseline", "remedy")), view, canvas)
    groups, arms = seen
    assert groups == [(arm.title, 2) for arm in view.arms]
    assert arms == [("advantaged", 2), ("disadvantaged", 2)]


def test_changes_carry_sign_margin_and_verdict(folder):
    # catches: arm and remedy swapped, a margin of another metric, verdicts lost
    place = folder()
    view = read_folder(place)
    found = drawn(declare.Changes("t", "mean:ndcg@10"), place)
    stored = {view.arm(r.against).title: r for r in view.differences if r.statistic == "mean:ndcg@10"}
    assert len(found.table.rows) == len(stored) == 4
    for arm, value, margin, _, verdict in found.table.rows:
        row = stored[arm.text]
        assert value.order == pytest.approx(row.value)
        assert float(margin.text) == row.margin
        assert verdict.order == row.verdict
    assert any("is the margin, 0.01" in text for text in found.reading)


def test_a_plot_that_would_be_too_long_keeps_baseline_and_remedy_and_the_table_keeps_all(sample, folder):
    # catches: a plot of ten screens, rows that vanish with it
    def many(summary):
        extra = [r for r in summary["evidence"]["levels"] if r["statistic"] == "mean:ndcg@10:activity"]
        for i in range(9):
            new = [{**r, "group": f"g{i}", "label": f"NDCG@10, g{i}"} for r in extra if r["group"] == "advantaged"]
            summary["evidence"]["levels"] += new

    place = sample.edit(folder(), many)
    canvas, seen = Canvas(), []
    canvas.rows = lambda rows, *_, **__: seen.append([r.label for r in rows if r.marks]) or ""
    found = draw(declare.Intervals("t", "mean:ndcg@10:activity=*"), read_folder(place), canvas)
    assert set(seen[0]) == {"No remedy", "In-UCDS"}
    assert len(found.table.rows) == 55
    assert any("not drawn" in text for text in found.reading)


def test_a_group_may_look_like_an_attack_and_no_heading_stands_twice(sample, folder):
    # catches: "Asian on White" for White/Asian; a heading for every row where two metrics take turns
    place = folder()

    def rename(summary):
        own = [x for x in summary["evidence"]["levels"] if x["arm"] == "in_ucds" and x["group"]]
        for row in own:
            for name, new in {"disadvantaged": "n/a", "advantaged": "White/Asian"}.items():
                row |= {"label": row["label"].replace(name, new)} if row["group"] == name else {}
                row["group"] = new if row["group"] == name else row["group"]
        others = [x for x in summary["evidence"]["levels"] if x not in own]
        summary["evidence"]["levels"] = [*others, *sorted(own, key=lambda x: x["group"])]

    sample.edit(place, rename)
    found = drawn(declare.Intervals("t", "mean:*:activity=*", arms=("remedy",)), place)
    groups = {row[1] for row in rows(found)}
    assert groups == {"n/a", "White/Asian"}
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", found.svg)
    heads = [text for text in texts if text in {row[0] for row in rows(found)}]
    assert len(set(heads)) > 1
    assert len(heads) == len(set(heads))


def test_a_front_has_every_arm_and_its_own_axes(folder):
    # catches: x and y swapped, an arm left out
    place = folder()
    view = read_folder(place)
    found = drawn(declare.Front("t"), place)
    at = {(r.statistic, view.arm(r.arm).title): r.value for r in view.levels if r.group is None}
    assert len(found.table.rows) == 5
    for arm, x, y in found.table.rows:
        assert x.order == at[view.cost_statistic, arm.text]
        assert y.order == at[view.primary, arm.text]
    other = drawn(declare.Front("t", "gap:ndcg@10:activity", cost="mean:recall@10"), place)
    assert other.table.columns[1].title == "Recall@10"


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({"alpha": 14.2, "cluster_size": {"median": 46}}, [("α", "14.200"), ("sets", "46")]),
        ({"alpha": {"median": 2.0, "low": 1.0, "high": 4.0}}, [("α", "2.000 (median; 1.000 to 4.000 over seeds)")]),
        ({"alpha": {"median": 7, "low": 6, "high": 24}}, [("α", "7 (median; 6 to 24 over seeds)")]),
        ({"alpha": None, "cluster_size": None}, None),
    ],
)
def test_notes_become_facts_with_their_range_over_seeds(folder, notes, expected):
    # catches: a record of one seed shown as that of all, whole numbers with decimals, an empty table
    names = {"alpha": "α", "cluster_size.median": "sets"}
    cleared = {"alpha": None, "cluster_size": None} | notes
    place = folder(dict(cleared))
    found = drawn(declare.Noted("t", names=names, arms=("remedy",)), place)
    assert (found.items if isinstance(found, Facts) else found) == expected


def test_records_become_a_table_with_an_arm_where_several_note_them(sample, folder):
    # catches: keys and numbers mixed, a column of dashes
    note = [
        {"group": "f", "to": "yes", "share": 0.25, "n": 40, "gone": None},
        {"group": "m", "to": "no", "share": 0.5, "n": 9},
    ]
    place = folder(flips=note)
    block = declare.Noted(
        "t", "flips", by={"group": "Group", "to": "To"}, names={"share": "share", "n": "rows", "gone": "x"}
    )
    found = drawn(block, place)
    assert [c.title for c in found.columns] == ["Group", "To", "Share", "Rows"]
    assert rows(found) == [["f", "yes", "0.250", "40"], ["m", "no", "0.500", "9"]]
    sample.edit(place, sample.noting("none", flips=note[:1]))
    assert drawn(block, place).columns[0].title == "Arm"
    bars = drawn(declare.Intervals("t", "flips", by=("group", "to"), value="share", bars=True, arms=("remedy",)), place)
    assert rows(bars) == [["f · yes", "In-UCDS", "0.250", "40"], ["m · no", "In-UCDS", "0.500", "9"]]


@pytest.mark.parametrize(
    ("value", "tone", "said"),
    [
        (True, "good", "fine"),
        (False, "bad", "broken"),
        ({"held": 6, "of": 6}, "good", "fine"),
        ({"held": 4, "of": 6}, "bad", "broken In 2 of 6 runs."),
    ],
)
def test_a_condition_is_good_only_where_every_run_held_it(folder, value, tone, said):
    # catches: a condition that held once called held, a count of the wrong side
    found = drawn(declare.Holds("fine", "ok", bad="broken", arms=("remedy",)), folder(ok=value))
    assert (found.tone, found.items[0]) == (tone, said)
    assert isinstance(found, Notes)


def test_a_curve_is_the_median_over_seeds_and_keeps_its_ends(folder):
    # catches: the last point cut off by thinning, a range drawn from one seed
    note = [{"epoch": i, "loss": {"median": 1 / i, "low": 0.9 / i, "high": 1.2 / i}} for i in range(1, 1001)]
    found = drawn(declare.Curve("t", "log", x="epoch", y="loss", arms=("remedy",)), folder(log=note))
    assert len(found.table.rows) <= 201
    assert [row[1].order for row in (found.table.rows[0], found.table.rows[-1])] == [1, 1000]
    assert found.table.rows[0][2].small == "0.900 to 1.200"
    assert any("range" in text for text in found.reading)
    assert drawn(declare.Curve("t", "log", y="absent"), folder(log=note)) is None


def test_a_logged_curve_comes_from_what_the_runs_logged(folder):
    # catches: a curve that only notes can draw
    found = drawn(declare.Curve("t", x="step", y="valid/ndcg@10"), folder())
    assert {row[0].text for row in found.table.rows} == {arm.title for arm in read_folder(folder()).arms}


def test_a_path_joins_epochs_in_order(folder):
    # catches: axes swapped, the end drawn small
    note = [{"epoch": i, "forget": 1 / i, "retain": 0.5 + 0.1 * i} for i in (1, 2, 3)]
    seen = []
    canvas = Canvas()
    canvas.front = lambda points, *_, **__: seen.extend(points) or ""
    draw(declare.Path("t", "path", x="retain", y="forget"), read_folder(folder(path=note)), canvas)
    assert [(p.x, p.y, p.small) for p in seen] == [
        (0.6, 1.0, True),
        (0.7, 0.5, True),
        (pytest.approx(0.8), 1 / 3, False),
    ]


def test_a_histogram_counts_a_note_or_a_metric(folder):
    # catches: shares that do not sum to 1, a metric of another arm
    place = folder(movement={"edges": [0.0, 0.5, 1.0], "counts": [30, 10]})
    noted = drawn(declare.Histogram("t", "movement", x="moved"), place)
    assert [row[1].text for row in noted.table.rows] == ["0.750", "0.250"]
    metric = drawn(declare.Histogram("t", "mrd"), place)
    assert sum(row[1].order for row in metric.table.rows if row[1].order) == pytest.approx(1.0)
    assert drawn(declare.Histogram("t", "absent"), place) is None


def test_a_scatter_ranks_within_seeds(folder):
    # catches: values instead of ranks, x and y of other units
    seen = []
    canvas = Canvas()
    canvas.dots = lambda points, *_, **__: seen.extend(points) or ""
    draw(declare.Scatter("t", names={"mrd": "MRD", "effort": "effort"}), read_folder(folder()), canvas)
    assert len(seen) == 60
    assert all(math.isclose(x + y, 1.0) for x, y in seen)  # the one is minus the other
    assert drawn(declare.Scatter("t", names={"mrd": "MRD", "absent": "none"}), folder()) is None


def test_a_heat_map_is_the_distance_from_the_row_and_hides_small_cells(folder):
    # catches: distances from the whole, a mean of four people, rows and columns swapped
    found = drawn(declare.Heat("t", "rate/*"), folder())
    assert isinstance(found, Grid)
    assert [figure.title for figure in found.figures] == ["t: yes: no remedy", "t: yes: In-UCDS"]
    body = found.figures[0].table.rows
    assert [row[0].text for row in body] == ["a", "a", "b", "b"]
    few = [row for row in body if row[1].text == "f"]
    assert all(row[2].text == "fewer than 5" and row[3].text == "–" for row in few)
    note = [
        {"client": c, "group": g, "rate": r, "n": n}
        for c, g, r, n in (("a", "f", 0.2, 10), ("a", "m", 0.4, 30), (None, "f", 0.9, 40))
    ]
    one = drawn(declare.Heat("t", "cells"), folder(cells=note)).figures[0].table.rows
    away = {row[1].text: row[4].order for row in one}
    assert away == {"f": pytest.approx(0.2 - 0.35), "m": pytest.approx(0.4 - 0.35)}
    apart = [{**row, "client": c} for row, c in zip(note, "ab", strict=False)]  # nobody is in the other two cells
    empty = drawn(declare.Heat("t", "cells"), folder(cells=apart)).figures[0].table.rows
    assert [row[2].text for row in empty] == ["none", "10", "30", "none"]


def test_a_picture_is_inside_the_page_and_no_larger_than_it_may_be(folder):
    # catches: a link to a file, a page of ten megabytes, a script with the name of a picture
    place = folder(clip="in_ucds.clip.png")
    (place / "artifacts").mkdir(exist_ok=True)
    (place / "artifacts" / "in_ucds.clip.png").write_bytes(PNG)
    block = declare.Picture("t", "clip")
    found = drawn(block, place)
    assert isinstance(found, Image)
    assert found.source.startswith("data:image/png;base64,")
    (place / "artifacts" / "in_ucds.clip.png").write_bytes(PNG + bytes(300_000))
    with pytest.raises(InputError, match="at most 300000"):
        drawn(block, place)
    assert drawn(declare.Picture("t", "absent"), place) is None


@pytest.mark.parametrize(
    ("block", "note"),
    [
        (declare.Curve("t", "log"), [1, 2]),
        (declare.Noted("t", "log", by={"group": "Group"}, names={"n": "n"}), [{"n": 3}]),
        (declare.Histogram("t", "log"), {"edges": [0, 1], "counts": [1, 2]}),
    ],
)
def test_a_note_of_another_shape_is_refused_by_name(folder, block, note):
    # catches: a traceback from inside a report
    with pytest.raises(InputError, match="note log"):
        drawn(block, folder(log=note))


def test_a_panel_leaves_out_what_the_folder_lacks_and_sets_figures_side_by_side(folder):
    # catches: an empty figure, a grid a figure
    view = read_folder(folder())
    declared = [declare.Front("a"), declare.Signed("b", "gap:*"), declare.Noted("c", "nothing", names={"x": "x"})]
    blocks = panel(view, Canvas(), declared)
    assert len(blocks) == 1
    assert [figure.title for figure in blocks[0].figures] == ["a", "b"]


def test_every_kind_of_block_is_drawn_by_something():
    # catches: a kind that is declared and not drawn
    kinds = [one for one in vars(declare).values() if dataclasses.is_dataclass(one) and one is not declare.Block]
    assert len(kinds) == 13
    assert all(draw.dispatch(kind) is not draw.dispatch(declare.Block) for kind in kinds)
