"""The panel of RAID: its blocks and when they are left out, leakage words, sweeps in the front alone, nobody named."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upright.contract import InputError
from upright.evidence.records import Level, Null
from upright.evidence.statistics import STATISTICS, Leakage
from upright.evidence.verdict import audit_verdict, verdict
from upright.report import build_compare, build_report
from upright.report.evidence import FRONT, LEAKS, front
from upright.report.panels import limits_for, shows_front
from upright.report.panels.raid import _plane
from upright.report.plots import Bars, Canvas, Map, Point, Series
from upright.report.read import read_folder
from upright.report.text import attack_title
from upright.shell.registry import load_method

spec = importlib.util.spec_from_file_location("report_sample", Path(__file__).with_name("sample.py"))
sample = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sample)
page, section, titles, table, noting = sample.page, sample.section, sample.titles, sample.table, sample.noting

BLOCKS = [
    FRONT,
    "Leakage by attacker and surface",
    "NDCG@10 by class: RAID minus every arm",
    "How far users moved",
    "Illustration: user vectors in two dimensions, before and after",
    "Objective of the barycenter by refresh",
]
ARMS = list(load_method("raid").arms)
LEVELS = {
    "none": (0.31, 0.22),
    "raid": (0.30, 0.04),
    "mean": (0.30, 0.17),
    "random": (0.305, 0.21),
    "reversal": (0.28, 0.12),
    "noise": (0.30, 0.2),
    "after": (0.26, 0.05),
}  # NDCG, leakage
ATTACKS = [
    f"{surface}/{attacker}/{protocol}"
    for surface in ("embedding", "propagated")
    for attacker in ("logistic", "mlp", "gbdt")
    for protocol in ("cross", "transfer")
]
STRENGTHS = (0.1, 0.3, 3.0)
PRIMARY = "leakage:attack:attribute"
BAND = 0.07


# -- a made-up folder -----------------------------------------------------------------------------------------------


def notes_of(seed: int) -> dict[str, Any]:
    """Diagnostics of one transport arm; counts below 5 stand in it so that a page may not show them."""
    rng, edges = np.random.default_rng(seed), np.linspace(-3, 3, 9)

    def plane(apart: float) -> dict[str, Any]:
        classes = {}
        for name, side in (("F", -1), ("M", 1)):
            x, y = rng.normal(side * apart, 1, 400), rng.normal(0, 1, 400)
            classes[name] = np.histogram2d(x, y, bins=[edges, edges])[0].astype(int).tolist()
        return {"x": edges.tolist(), "y": edges.tolist(), "classes": classes}

    return {
        "barycenter": [{"objective": 0.1 + math.exp(-i / 5) + 0.01 * seed, "converged": True} for i in range(20)],
        "movement": {"edges": [0.0, 0.5, 1.0, 1.5, 2.0], "counts": [411, 300, 29, 3]},
        "projection": {"before": plane(1.5), "after": plane(0.0)},
        "reference": {"valid": 0.33, "converged": True},
        "valid": 0.31 + 0.001 * seed,
        "alpha_end": 1.0,
    }


def levels_of(name: str, ndcg: float, leak: float) -> list[Level]:
    """Leakage of twelve attacks, and quality by class."""
    band = BAND - 0.01 * (name == "none")  # what permuted labels show differs a little between arms
    chance = {"null": Null(0.03, 0.0, band), "p": 0.001 if leak > band else 0.4, "smallest_detectable": 0.08}
    found = []
    for kind, of in (("leakage", ""), ("worst_leakage", ", worst class")):
        label, statistic = f"Leakage of attribute{of}", f"{kind}:attack:attribute"
        top = {"more": {"attack": "embedding/mlp/cross"}, **chance}
        found.append(sample.level(statistic, f"{label}, strongest attack", name, leak, 0.02, **top))
        for i, attack in enumerate(ATTACKS):
            value = leak * (1 - i / 20)
            found.append(sample.level(statistic, f"{label}, {attack}", name, value, 0.02, group=attack, **chance))
    found.append(sample.level("mean:ndcg@10", "NDCG@10", name, ndcg, 0.01))
    for group, shift in (("F", -0.01), ("M", 0.01)):
        own = {"group": group, "n_units": 400}
        statistic = "mean:ndcg@10:attribute"
        found.append(sample.level(statistic, f"NDCG@10, {group}", name, ndcg + shift, 0.02, **own))
    return found


def raid_folder(parent: Path, *, seeds: int = 2, sweep: bool = True) -> Path:
    """A comparison of RAID at several seeds, its runs beside it."""
    rows = [row for arm in ARMS for row in levels_of(arm.name, *LEVELS[arm.name])]
    changes = sample.differences(rows, ARMS, lambda row: 0.02)
    said = verdict(rows, changes, ARMS, primary=PRIMARY, cost="mean:ndcg@10", title="RAID", seeds=seeds)
    swept = [(arm, s) for arm in ARMS[1:] for s in STRENGTHS] if sweep else []
    for arm, s in swept:
        ndcg, leak = LEVELS[arm.name]
        rows += levels_of(f"{arm.name}@{s:g}", ndcg - 0.01 * s, leak / (1 + s))

    def arms_of(seed: int) -> list[dict[str, Any]]:
        found = []
        for arm in ARMS:
            notes = notes_of(seed) if arm.name in ("raid", "mean", "random") else {"valid": 0.3}
            row = {"name": arm.name, "role": arm.role, "title": arm.title}
            found.append({**row, "settings": dict(arm.settings), "notes": notes})
        for arm, s in swept:
            row = {"name": f"{arm.name}@{s:g}", "role": "sweep", "title": f"{arm.title}, alpha {s:g}"}
            found.append({**row, "settings": {**arm.settings, "alpha": s}})
        return found

    common = {
        "schema": 1,
        "method": "raid",
        "title": "RAID",
        "mends": "private attributes readable from user embeddings",
        "data": {"name": "ml100k", "users": 943, "attribute": "gender", "classes": {"F": 273, "M": 670}},
        "deviations": ["D1. None."],
        "evidence": sample.stored(rows, changes, said.row(), seeds, 800),
    }
    names = [f"2026-01-31-raid-ml100k-s{seed}" for seed in range(seeds)]
    for seed, name in enumerate(names):
        sample.write(parent / name, "summary.json", {**common, "seed": seed, "arms": arms_of(seed)})
        sample.write(parent / name, "config.json", {"passed": {}, "resolved": {"method": {"alpha": 1.0}}})
        sample.write(parent / name, "run.json", {"status": "done", "seed": seed, "command": "upright run raid"})
    folder = parent / f"2026-01-31-raid-ml100k-x{seeds}"
    own = {"runs": names, "seeds": list(range(seeds)), "arms": arms_of(0)}
    sample.write(folder, "comparison.json", {**common, **own})
    return folder


def change(folder: Path, edit) -> None:
    """Edit the summaries of a comparison and of its runs."""
    for path in folder.parent.glob("*/summary.json"):
        sample.edit(path.parent, edit)
    sample.edit(folder, edit, "comparison.json")


def noted(name: str, edit):
    """Return an edit of one arm's notes, which also gets the summary."""
    return lambda summary: [edit(arm["notes"], summary) for arm in summary["arms"] if arm["name"] == name]


# -- structure ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    return page(raid_folder(tmp_path_factory.mktemp("raid")))


def test_blocks_stand_in_their_order_with_words_and_tables(whole):
    # catches: a block lost or moved, a plot without a text alternative, a table or a reading line
    found = whole[whole.index('id="panel"') : whole.index('id="units"')]
    assert titles(found) == BLOCKS
    sample.assert_complete(found)
    assert shows_front("raid")
    assert all(text in whole for text in limits_for("raid"))


@pytest.mark.parametrize(
    ("note", "title"), list(zip(["movement", "projection", "barycenter"], BLOCKS[3:], strict=True))
)
def test_a_missing_note_drops_its_block_alone(tmp_path, note, title):
    # catches: a KeyError, an empty plot, a neighbour dropped as well
    folder = raid_folder(tmp_path)
    change(folder, noted("raid", lambda notes, _: notes.pop(note)))
    assert titles(section(folder)) == [one for one in BLOCKS if one != title]


def test_without_any_note_the_front_and_the_attacks_remain(tmp_path):
    # catches: a panel that needs diagnostics
    folder = raid_folder(tmp_path, sweep=False)
    change(folder, lambda summary: [arm.update(notes={}) for arm in summary["arms"]])
    found = section(folder)
    assert titles(found) == BLOCKS[:3]
    assert "How training ended" not in found
    assert "None" not in found


def test_a_refresh_that_did_not_converge_is_counted_in_a_bad_note(tmp_path):
    # catches: an approximate centre in silence; the count of one seed passed off as all; the baseline accused
    folder = raid_folder(tmp_path, seeds=3)
    assert '<li class="bad">' not in section(folder)

    def spoil(notes, summary):
        for i in range(summary.get("seed", 0) * 2):  # 0, 2 and 4 of 20
            notes["barycenter"][i]["converged"] = False

    change(folder, noted("raid", spoil))
    change(folder, noted("none", lambda notes, _: notes.update(barycenter=[{"objective": 1.0, "converged": False}])))
    found = section(folder)
    assert found.count('<li class="bad">') == 1
    assert "RAID: 6 of 60 refreshes of the barycenter did not converge, in 2 of 3 runs." in found


def test_a_reference_that_was_still_improving_is_said(tmp_path):
    # catches: a utility that is compared with a baseline stopped early
    folder = raid_folder(tmp_path)
    change(folder, noted("raid", lambda notes, _: notes["reference"].update(converged=False)))
    assert "reached its last epoch in 2 of 2 runs" in section(folder)


def test_the_objective_is_the_median_with_its_range_over_seeds(tmp_path):
    # catches: the mean, the first seed alone, or the refreshes of two attributes drawn as one history
    folder = raid_folder(tmp_path, seeds=3)
    values = {0: 0.2, 1: 0.9, 2: 0.3}
    change(folder, noted("raid", lambda n, s: n["barycenter"][0].update(objective=values[s.get("seed", 0)])))
    assert table(section(folder), BLOCKS[5])[0] == [["1"], ["0.300", "0.200 to 0.900"]]
    change(folder, lambda summary: summary["data"].update(attribute="gender+age"))
    terms = [row[0][0] for row in table(section(folder), BLOCKS[5])]
    assert (terms.count("gender"), terms.count("age")) == (10, 10)


# -- the front, and sweeps ------------------------------------------------------------------------------------------


class _Spy(Canvas):
    """Keeps what a front was drawn of."""

    def front(self, points, *words, **more):
        self.points, self.more = points, more
        return super().front(points, *words, **more)


def test_the_front_draws_each_strength_once_from_weak_to_strong(tmp_path):
    # catches: an arm's own strength drawn twice or out of its place, a sweep of one arm joined to another's, no band
    # where an older folder does not say which side of a level is better
    folder = raid_folder(tmp_path)
    change(folder, lambda summary: [row.pop("better") for row in summary["evidence"]["levels"]])
    view = read_folder(folder)
    spy = _Spy()
    figure = front(view, spy)
    small, large = ([p for p in spy.points if p.small == small] for small in (True, False))
    assert (len(small), len(large)) == (6 * len(STRENGTHS), 7)
    assert len(spy.more["lines"]) == 6  # the baseline has one strength
    at = {(row.arm, row.statistic): row.value for row in (*view.levels, *view.swept) if row.group is None}
    remedy = next(line for line in spy.more["lines"] if line.index == 1)
    order = ("raid@0.1", "raid@0.3", "raid", "raid@3")
    assert remedy.x == [at[name, "mean:ndcg@10"] for name in order]
    assert remedy.y == [at[name, PRIMARY] for name in order]
    assert spy.more["strip"] == BAND
    strengths = [row[1].text for row in figure.table.rows if row[0].text == "RAID"]
    assert strengths == ["0.1", "0.3", "1", "3"]
    assert [row[1].text for row in figure.table.rows if row[0].text == "No defence"] == ["0"]


def test_the_arms_own_strength_is_the_tuned_one_where_arms_were_tuned(tmp_path):
    # catches: a curve that runs back and forth because the configured strength was taken for the arm's
    folder = raid_folder(tmp_path)
    change(folder, lambda summary: summary["arms"][1].update(settings={"alpha": 10.0}))
    figure = front(read_folder(folder), Canvas())
    assert [row[1].text for row in figure.table.rows if row[0].text == "RAID"] == ["0.1", "0.3", "3", "10"]


def test_sweep_arms_are_in_the_front_and_nowhere_else(tmp_path, whole):
    # catches: 18 more columns in every table, a legend of 25 arms, a verdict over strengths
    assert not re.search(r"@0\.1\b|@0\.3\b|, alpha \d", whole)
    assert whole.count("another strength") == 18 == str(table(whole, BLOCKS[0])).count("another strength")
    folder = raid_folder(tmp_path, sweep=False)
    plain = page(folder)
    for start, end in (("units", "conditions"), ("verdict", "asked")):
        part = [p[p.index(f'id="{start}"') : p.index(f'id="{end}"')] for p in (whole, plain)]
        # ids of figures count on, so only words and rows are compared
        assert len({re.sub(r"<svg.*?</svg>", "", text) for text in part}) == 1
    assert "another strength" not in plain
    assert "Thin lines" not in plain


def test_the_strip_and_small_points_are_drawn():
    # catches: a strip that hides the axis, a cross on every point of a sweep, an axis below zero
    points = [Point(0.3, 0.2, (0.2, 0.4), (0.1, 0.3), 1), Point(0.25, 0.1, (0.2, 0.3), (0.0, 0.2), 1, small=True)]
    bare = Canvas().front(points[:1], "x", "y")
    full = Canvas().front(points, "x", "y", lines=[Series([0.3, 0.25], [0.2, 0.1], 1)], strip=0.07)
    assert "fill: var(--band)" in full
    assert "fill: var(--band)" not in bare
    assert full.count("stroke-width: 1.4") == bare.count("stroke-width: 1.4") == 2
    assert [t.text for t in ET.fromstring(full).iter("text") if (t.text or "").startswith("−")] == []


# -- leakage is no gap ------------------------------------------------------------------------------------------------


def test_leaks_are_the_leaks_of_the_evidence():
    # catches: a leakage statistic that the report takes for a mean
    assert set(LEAKS) == {name for name, kind in STATISTICS.items() if issubclass(kind, Leakage)}


def test_the_page_speaks_of_leakage_where_leakage_decides(whole):
    # catches: "gap" and "random groups" in sentences about attackers; rivals among those that decide
    start = whole[whole.index('id="verdict"') : whole.index('id="asked"')]
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", start)
    order = ("Controls", "minus random labels", "Rivals", "minus gradient reversal")
    assert [one for one in drawn if one in order] == list(order)
    assert "against gradient reversal" not in start
    assert not re.search(r"\bgaps?\b|random groups", whole[whole.index("<body") :])


def test_attacks_have_a_heading_a_surface_and_the_band_of_the_remedy(whole):
    # catches: an attack left out, protocols merged, a band of the baseline
    rows, figure = table(whole, BLOCKS[1]), sample.figure(whole, BLOCKS[1])
    for heading in ("On user embeddings", "On propagated user vectors"):
        assert figure.count(f">{heading}<") == 1
    for attacker in ("Logistic regression", "Neural network", "Boosted trees"):
        for protocol in ("cross-fitted", "transfer"):
            assert figure.count(f">{attacker}, {protocol}<") == 4  # on two surfaces, in the plot and in the table
    assert figure.count("fill: var(--band)") == len(ATTACKS)
    assert [row[-1] for row in rows] == [["0.070"]] * len(ATTACKS)  # the baseline's is 0.060
    assert "neural network on user embeddings, cross-fitted" in figure
    assert attack_title("own") == "own"


def test_single_attacks_are_folded_away_from_the_rows_that_decide(whole):
    # catches: fifty rows before NDCG; a row in neither table
    main, single = table(whole, "Levels with"), table(whole, "Levels of single attacks")
    assert (len(main), len(single)) == (5, 2 * len(ATTACKS))  # two leakages, NDCG, two classes
    pairs, others = table(whole, "Paired differences:"), table(whole, "Paired differences of single attacks")
    assert (len(pairs), len(others)) == (len(main), len(single))
    assert any("up to 0.070 by chance" in row[0][1] for row in main)
    for rows in (single, others):  # in words: a path has no place where a phone may break it
        names = [row[0][0] for row in rows]
        assert "Leakage of attribute, worst class, boosted trees on propagated user vectors, transfer" in names
        assert not any("propagated/gbdt" in name for name in names)


def test_an_audit_of_leakage_shows_its_attacks_beside_the_verdict(tmp_path):
    # catches: words of gaps in an audit of leakage, a leak that is drawn and not compared
    rows = [dataclasses.replace(row, arm="yours") for row in levels_of("none", 0.3, 0.2) if row.name == "leakage"]
    said = audit_verdict("leak shown", rows[1:], unit="user").row() | {"primary": PRIMARY}
    names = {"schema": 1, "kind": "audit", "method": "audit_embeddings", "title": "Audit", "seed": 0}
    own = {"arms": [{"name": "yours", "role": "baseline"}], "evidence": sample.stored(rows, [], said, 1, 800)}
    sample.write(tmp_path, "summary.json", {**names, **own})
    found = page(tmp_path)
    assert "<strong>leak shown</strong>" in found
    assert titles(found)[0] == BLOCKS[1]
    assert len(table(found, "What was compared with chance")) == 1 + len(ATTACKS)
    assert not re.search(r"\bgaps?\b|random groups", found[found.index("<body") :])


# -- classes ----------------------------------------------------------------------------------------------------------


def test_every_class_is_set_against_every_arm(whole):
    # catches: a class that pays for the others' privacy and is not shown
    assert len(table(whole, "NDCG@10 by class")) == 2 * 6
    figure = sample.figure(whole, BLOCKS[2])
    assert "F (400 users)" in figure
    assert "M (400 users)" in figure
    assert figure.count(">minus no defence<") == figure.count(">minus mean matching<") == 2


def test_many_classes_are_drawn_against_the_baseline_alone(tmp_path):
    # catches: a plot of three thousand pixels; a table that drops the other arms as well
    folder = raid_folder(tmp_path, sweep=False)

    def more(summary):
        rows = summary["evidence"]["differences"]
        own = [row for row in rows if row["statistic"].endswith("=F")]
        for name in "ABCDE":
            named = {"statistic": f"mean:ndcg@10:attribute={name}", "label": f"NDCG@10, {name}"}
            rows += [{**row, **named} for row in own if "mean:" in row["statistic"]]

    change(folder, more)
    found = section(folder)
    figure = sample.figure(found, BLOCKS[2])
    assert figure.count(">minus no defence<") == 7
    assert ">minus mean matching<" not in figure
    assert "the baseline alone" in figure
    assert len(table(found, "NDCG@10 by class")) == 7 * 6


# -- people ---------------------------------------------------------------------------------------------------------


def test_bins_of_few_users_are_not_shown(tmp_path):
    # catches: three users who stand alone in a bin and can be told
    folder = raid_folder(tmp_path, seeds=1)
    change(folder, noted("raid", lambda notes, _: notes["movement"].update(counts=[411, 300, 4, 5])))
    rows = [row[2] for row in table(section(folder), BLOCKS[3]) if row[0] == ["RAID"]]
    assert [row == ["fewer than 5"] for row in rows] == [False, False, True, False]
    assert not any("4 users" in row for row in rows)


def test_few_users_of_several_seeds_do_not_add_up_to_many(tmp_path):
    # catches: three users at each of six seeds, the same three, shown as eighteen
    found = section(raid_folder(tmp_path, seeds=6))
    rows = [row[2] for row in table(found, BLOCKS[3]) if row[0] == ["RAID"]]
    assert rows[3] == ["fewer than 5"]
    assert rows[0][1] == "2 466 users"  # 411 at each of six


def test_sparse_bins_of_the_plane_are_empty():
    # catches: a lone user drawn as a square
    side = {"x": [0, 1, 2], "y": [0, 1], "classes": {"F": [[4], [5]]}}
    assert _plane({"before": side}, "before")[2] == {"F": [[0], [5]]}


def test_nothing_is_loaded_and_nobody_is_listed(tmp_path, whole):
    # catches: a network reference, an identifier or an attribute value of one person
    assert not re.search(r"https?://|@import|url\(\s*['\"]?(?!#)", whole)
    assert "default-src 'none'" in whole
    folder = raid_folder(tmp_path)
    change(folder, noted("raid", lambda notes, _: notes.update(users=["person-17"], labels={"person-17": "F"})))
    assert "person-17" not in page(folder)
    assert len(build_report(folder).read_bytes()) < 1_500_000


# -- odd input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("note", "value", "message"),
    [
        ("movement", {"edges": [0, 1], "counts": [1, 2]}, "n counts"),
        ("movement", [1, 2], "n counts"),
        ("projection", {"before": {}}, r"projection\.before"),
        ("projection", {"before": {"x": [0, 1], "y": [0, 1], "classes": {"F": [[1, 2]]}}}, r"projection\.before"),
    ],
)
def test_a_note_of_another_shape_is_refused(tmp_path, note, value, message):
    # catches: bars beside their edges, a transposed plane, a traceback from inside a plot
    folder = raid_folder(tmp_path)
    change(folder, noted("raid", lambda notes, _: notes.update({note: value})))
    with pytest.raises(InputError, match=message):
        build_report(folder)


def test_without_its_runs_a_comparison_draws_the_notes_it_kept(tmp_path):
    # catches: a published folder, which has no runs beside it, without a panel
    folder = raid_folder(tmp_path)
    for path in tmp_path.glob("*-s?/*"):
        path.unlink()
    kept = {"notes_per_seed": [notes_of(0), notes_of(5)]}
    sample.edit(folder, lambda s: s["arms"][1].update(kept), "comparison.json")
    found = section(folder)
    assert titles(found) == BLOCKS
    assert "median over seeds" in found


def test_histograms_and_maps_follow_the_page():
    # catches: a fixed colour, a font, an outline that colour alone tells apart, a map without its lightest shade
    bars = Canvas().histogram([Bars([0, 1, 2], [0.4, 0.6], 1), Bars([0, 1, 2], [0.7, 0.3], 2, True)], "x", "y")
    maps = Canvas().maps([[Map("a", [0, 1, 2], [0, 1], [[1], [8]]), Map("b", [0, 1, 2], [0, 1], [[0], [0]])]])
    for svg in (bars, maps):
        assert not re.search(r"#[0-9a-f]{6}|font-family|xmlns", svg)
        assert min(map(float, re.findall(r"(?:font-size|font): ([0-9.]+)px", svg))) >= 11
    assert "var(--arm-2)" in bars
    shades = re.findall(r"fill: var\(--arm-1\); opacity: ([0-9.]+)", maps)
    assert shades == ["0.25"]  # of 1 and 8; the full one has no opacity, and an empty map no path
    assert maps.count("fill: var(--arm-1)") == 2


def test_two_reports_stand_side_by_side(tmp_path):
    # catches: a page of two reports that trips over attacks or sweeps
    folders = [raid_folder(tmp_path / name) for name in "ab"]
    out = build_compare(folders, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "raid@" not in out
    assert "Leakage of attribute, strongest attack" in out
