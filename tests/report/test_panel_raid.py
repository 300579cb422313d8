"""The panel of RAID: its blocks and when they are left out, leakage words, sweeps in the front alone, nobody named."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET

import pytest

from upright.contract import InputError
from upright.report import build_compare, build_report
from upright.report.evidence import LEAKS, front
from upright.report.panels import limits_for, shows_front
from upright.report.plots import Bars, Canvas, Map, Point, Series
from upright.report.read import read_folder
from upright.report.text import attack_title

BLOCKS = [
    "Utility against leakage: NDCG@10",
    "Leakage by attacker and surface",
    "NDCG@10 by class: RAID minus every arm",
    "How far users moved",
    "Illustration: user vectors in two dimensions, before and after",
    "Objective of the barycenter by refresh",
]


def page(folder) -> str:
    return re.sub(r"\s+", " ", html.unescape(build_report(folder).read_text(encoding="utf-8")))


def section(folder, first: str = "panel", last: str = "units") -> str:
    source = page(folder)
    return source[source.index(f'id="{first}"') : source.index(f'id="{last}"')]


def titles(source: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", source)


def change(folder, edit) -> None:
    """Edit the summaries of a comparison and of its runs."""
    for path in [*folder.parent.glob("*/summary.json"), folder / "comparison.json"]:
        summary = json.loads(path.read_text())
        edit(summary)
        path.write_text(json.dumps(summary))


def notes_of(name: str, edit):
    """Return an edit of one arm's notes."""
    return lambda summary: [edit(arm["notes"], summary) for arm in summary["arms"] if arm["name"] == name]


def table(source: str, label: str) -> str:
    start = source.index(f'<table aria-label="{label}')
    return source[start : source.index("</table>", start)]


# -- structure ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory) -> str:
    return page(sample.raid_folder(tmp_path_factory.mktemp("raid")))


def test_blocks_stand_in_their_order_with_words_and_tables(whole):
    # catches: a block lost or moved, a plot without a text alternative, a table or a reading line
    found = whole[whole.index('id="panel"') : whole.index('id="units"')]
    assert titles(found) == BLOCKS
    figures = re.findall(r"<figure>(.*?)</figure>", found)
    for figure in figures:
        words = re.search(r'<div class="plot" role="img" aria-label="([^"]+)"', figure)
        assert words
        assert ": " in words[1]
        assert "Numbers behind this plot" in figure
        assert re.search(r'<div class="beside"> <p>[A-Z].{20,}?</p>', figure)
    assert shows_front("raid")


@pytest.mark.parametrize(
    ("note", "title"), list(zip(["movement", "projection", "barycenter"], BLOCKS[3:], strict=True))
)
def test_a_missing_note_drops_its_block_alone(sample, tmp_path, note, title):
    # catches: a KeyError, an empty plot, a neighbour dropped as well
    folder = sample.raid_folder(tmp_path)
    change(folder, notes_of("raid", lambda notes, _: notes.pop(note)))
    assert titles(section(folder)) == [one for one in BLOCKS if one != title]


def test_without_any_note_the_front_and_the_attacks_remain(sample, tmp_path):
    # catches: a panel that needs diagnostics
    folder = sample.raid_folder(tmp_path, sweep=False)
    change(folder, lambda summary: [arm.update(notes={}) for arm in summary["arms"]])
    found = section(folder)
    assert titles(found) == BLOCKS[:3]
    assert "How training ended" not in found
    assert "None" not in found


def test_a_refresh_that_did_not_converge_is_counted_in_a_bad_note(sample, tmp_path):
    # catches: an approximate centre in silence; the count of one seed passed off as all; the baseline accused
    folder = sample.raid_folder(tmp_path, seeds=3)
    assert '<li class="bad">' not in section(folder)

    def spoil(notes, summary):
        for i in range(summary.get("seed", 0) * 2):  # 0, 2 and 4 of 20
            notes["barycenter"][i]["converged"] = False

    change(folder, notes_of("raid", spoil))
    change(folder, notes_of("none", lambda notes, _: notes.update(barycenter=[{"objective": 1.0, "converged": False}])))
    found = section(folder)
    assert found.count('<li class="bad">') == 1
    assert "RAID: 6 of 60 refreshes of the barycenter did not converge, in 2 of 3 runs." in found


def test_a_reference_that_was_still_improving_is_said(sample, tmp_path):
    # catches: a utility that is compared with a baseline stopped early
    folder = sample.raid_folder(tmp_path)
    change(folder, notes_of("raid", lambda notes, _: notes["reference"].update(converged=False)))
    assert "reached its last epoch in 2 of 2 runs" in section(folder)


def test_the_objective_is_the_median_with_its_range_over_seeds(sample, tmp_path):
    # catches: the mean, the first seed alone, or the refreshes of two attributes drawn as one history
    folder = sample.raid_folder(tmp_path, seeds=3)
    values = {0: 0.2, 1: 0.9, 2: 0.3}

    def set_first(notes, summary):
        notes["barycenter"][0]["objective"] = values[summary.get("seed", 0)]

    change(folder, notes_of("raid", set_first))
    row = re.search(r"<tbody> <tr>(.*?)</tr>", table(section(folder), BLOCKS[5]))
    assert row
    assert ">0.300<" in row[1]
    assert "0.200 to 0.900" in row[1]

    def two_terms(summary):
        summary["data"]["attribute"] = "gender+age"

    change(folder, two_terms)
    body = table(section(folder), BLOCKS[5])
    assert (body.count(">gender<"), body.count(">age<")) == (10, 10)


def test_limits_are_on_the_page(whole):
    # catches: a report that may be read as a guarantee
    assert len(limits_for("raid")) == 6
    assert all(text in whole for text in limits_for("raid"))
    for word in ("differential privacy", "not tried", "behaviour", "taste", "does not know", "permutation band"):
        assert word in " ".join(limits_for("raid"))


# -- the front, and sweeps ------------------------------------------------------------------------------------------


class _Spy(Canvas):
    """Keeps what a front was drawn of."""

    def front(self, points, *words, **more):
        self.points, self.more = points, more
        return super().front(points, *words, **more)


def test_the_front_draws_each_strength_once_from_weak_to_strong(sample, tmp_path):
    # catches: an arm's own strength drawn twice or out of its place, a sweep of one arm joined to another's, no band
    view = read_folder(sample.raid_folder(tmp_path))
    spy = _Spy()
    figure = front(view, spy)
    small, large = ([p for p in spy.points if p.small == small] for small in (True, False))
    assert (len(small), len(large)) == (6 * len(sample.RAID_STRENGTHS), 7)
    assert len(spy.more["lines"]) == 6  # the baseline has one strength
    at = {(row.arm, row.statistic): row.value for row in (*view.levels, *view.swept) if row.group is None}
    remedy = next(line for line in spy.more["lines"] if line.index == 1)
    order = ("raid@0.1", "raid@0.3", "raid", "raid@3")
    assert remedy.x == [at[name, "mean:ndcg@10"] for name in order]
    assert remedy.y == [at[name, sample.RAID_PRIMARY] for name in order]
    assert spy.more["strip"] == sample.RAID_BAND
    strengths = [row[1].text for row in figure.table.rows if row[0].text == "RAID"]
    assert strengths == ["0.1", "0.3", "1", "3"]
    assert [row[1].text for row in figure.table.rows if row[0].text == "No defence"] == ["0"]


def test_the_arms_own_strength_is_the_tuned_one_where_arms_were_tuned(sample, tmp_path):
    # catches: a curve that runs back and forth because the configured strength was taken for the arm's
    folder = sample.raid_folder(tmp_path)

    def tuned(summary):
        next(arm for arm in summary["arms"] if arm["name"] == "raid")["settings"] = {"alpha": 10.0}

    change(folder, tuned)
    figure = front(read_folder(folder), Canvas())
    assert [row[1].text for row in figure.table.rows if row[0].text == "RAID"] == ["0.1", "0.3", "3", "10"]


def test_sweep_arms_are_in_the_front_and_nowhere_else(sample, tmp_path, whole):
    # catches: 18 more columns in every table, a legend of 25 arms, a verdict over strengths
    assert not re.search(r"@0\.1\b|@0\.3\b|, alpha \d", whole)
    assert whole.count("another strength") == 18 == table(whole, BLOCKS[0]).count("another strength")
    folder = sample.raid_folder(tmp_path, sweep=False)
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


def test_leak_words_are_the_shells():
    # catches: a leakage statistic that the shell knows and the report takes for a mean
    from upright.shell import statistics

    assert LEAKS == statistics.LEAKS


def test_the_page_speaks_of_leakage_where_leakage_decides(whole):
    # catches: "gap" and "random groups" in sentences about attackers
    start = whole[whole.index('id="verdict"') : whole.index('id="asked"')]
    assert "With permuted labels the strongest attack would stay below 0.070" in start
    assert "0.040 is not above that" in start
    body = whole[whole.index("<body") :]
    assert not re.search(r"\bgaps?\b|random groups", body)


def test_rivals_are_shown_apart_and_said_not_to_decide(whole):
    # catches: "only if all of these intervals" over remedies that decide nothing; a role without a word
    start = whole[whole.index('id="verdict"') : whole.index('id="asked"')]
    assert "Controls, which decide" in start
    assert (
        start.index("minus random labels")
        < start.index("Rivals, which do not")
        < start.index("minus gradient reversal")
    )
    assert "all of these intervals against controls" in start
    assert "rival remedy" in start


def test_attacks_have_a_heading_a_surface_and_the_band_of_the_remedy(sample, whole):
    # catches: an attack left out, protocols merged, a band of the baseline
    rows = table(whole, BLOCKS[1])
    assert rows.count("<tr>") == 1 + len(sample.RAID_ATTACKS)
    figure = next(f for f in re.findall(r"<figure>(.*?)</figure>", whole) if BLOCKS[1] in f)
    for heading in ("On user embeddings", "On propagated user vectors"):
        assert figure.count(f">{heading}<") == 1
    for attacker in ("Logistic regression", "Neural network", "Boosted trees"):
        for protocol in ("cross-fitted", "transfer"):
            assert figure.count(f">{attacker}, {protocol}<") == 4  # on two surfaces, in the plot and in the table
    assert figure.count("fill: var(--band)") == len(sample.RAID_ATTACKS)
    chance = re.findall(r'<span class="v">([0-9.]+)</span></td></tr>', rows)
    assert chance == ["0.070"] * len(sample.RAID_ATTACKS)  # the baseline's is 0.060
    assert "neural network on user embeddings, cross-fitted" in figure
    assert attack_title("own") == "own"


def test_single_attacks_are_folded_away_from_the_rows_that_decide(sample, whole):
    # catches: fifty rows before NDCG; a row in neither table
    main, single = table(whole, "Levels with"), table(whole, "Levels of single attacks")
    assert main.count("<tr>") == 1 + 5  # two leakages, NDCG, two classes
    assert single.count("<tr>") == 1 + 2 * len(sample.RAID_ATTACKS)
    pairs, others = table(whole, "Paired differences:"), table(whole, "Paired differences of single attacks")
    assert (pairs.count("<tr>"), others.count("<tr>")) == (main.count("<tr>"), single.count("<tr>"))
    assert "up to 0.070 by chance" in main
    for rows in (single, others):  # in words: a path has no place where a phone may break it
        assert "Leakage of attribute, worst class, boosted trees on propagated user vectors, transfer" in rows
        assert "propagated/gbdt" not in rows


@pytest.mark.parametrize(("leak", "word"), [(0.2, "leak shown"), (0.05, "no leak shown")])
def test_an_audit_of_leakage_is_judged_by_permuted_labels(sample, tmp_path, leak, word):
    # catches: an interval that cannot reach below zero taken as proof of a leak
    rows = [
        row for row in sample.raid_levels(sweep=False) if row["arm"] == "none" and row["statistic"].startswith("leak")
    ]
    rows[0] |= {"value": leak, "low": leak - 0.01, "high": leak + 0.01}
    rows[0]["null"]["high"] = sample.RAID_BAND
    evidence = {"n_seeds": 1, "n_units": 800, "unit_kind": "user", "confidence": 0.95, "levels": rows, "verdict": {}}
    sample.write(tmp_path, "summary.json", {
        "schema": 1, "kind": "audit", "method": "audit_embeddings", "title": "Audit", "seed": 0, "data": {},
        "arms": [{"name": "none", "role": "baseline", "title": "your vectors"}], "evidence": evidence,
    })  # fmt: skip
    found = page(tmp_path)
    assert f"<strong>{word}</strong>" in found
    assert titles(found)[0] == BLOCKS[1]
    assert "With permuted labels the strongest attack would stay below 0.070" in found
    assert "Leakage and what permuted labels show" in found
    assert not re.search(r"\bgaps?\b|random groups", found[found.index("<body") :])


# -- classes ----------------------------------------------------------------------------------------------------------


def test_every_class_is_set_against_every_arm(sample, whole):
    # catches: a class that pays for the others' privacy and is not shown
    body = table(whole, "NDCG@10 by class")
    assert body.count("<tr>") == 1 + 2 * 6
    figure = next(f for f in re.findall(r"<figure>(.*?)</figure>", whole) if BLOCKS[2] in f)
    assert "F (400 users)" in figure
    assert "M (400 users)" in figure
    assert figure.count(">minus no defence<") == figure.count(">minus mean matching<") == 2


def test_many_classes_are_drawn_against_the_baseline_alone(sample, tmp_path):
    # catches: a plot of three thousand pixels; a table that drops the other arms as well
    folder = sample.raid_folder(tmp_path, sweep=False)

    def more(summary):
        rows = summary["evidence"]["differences"]
        own = [row for row in rows if row["statistic"].endswith("=F")]
        rows += [{**row, "statistic": row["statistic"][:-1] + name, "label": f"NDCG@10, {name}"}
                 for name in "ABCDE" for row in own if "mean:" in row["statistic"]]  # fmt: skip

    change(folder, more)
    found = section(folder)
    figure = next(f for f in re.findall(r"<figure>(.*?)</figure>", found) if BLOCKS[2] in f)
    assert figure.count(">minus no defence<") == 7
    assert ">minus mean matching<" not in figure
    assert "the baseline alone" in figure
    assert table(found, "NDCG@10 by class").count("<tr>") == 1 + 7 * 6


# -- people ---------------------------------------------------------------------------------------------------------


def test_bins_of_few_users_are_not_shown(sample, tmp_path):
    # catches: three users who stand alone in a bin and can be told
    folder = sample.raid_folder(tmp_path, seeds=1)
    change(folder, notes_of("raid", lambda notes, _: notes["movement"].update(counts=[411, 300, 4, 5])))
    body = table(section(folder), BLOCKS[3])
    rows = re.findall(r"RAID</span></th>.*?</tr>", body)
    assert len(rows) == 4
    assert ["fewer than 5" in row for row in rows] == [False, False, True, False]
    assert "4 users" not in body


def test_few_users_of_several_seeds_do_not_add_up_to_many(sample, tmp_path):
    # catches: three users at each of six seeds, the same three, shown as eighteen
    found = section(sample.raid_folder(tmp_path, seeds=6))
    rows = re.findall(r"RAID</span></th>.*?</tr>", table(found, BLOCKS[3]))
    assert "fewer than 5" in rows[3]
    assert "2 466 users" in rows[0]  # 411 at each of six


def test_sparse_bins_of_the_plane_are_empty():
    # catches: a lone user drawn as a square
    from upright.report.panels.raid import _plane

    side = {"x": [0, 1, 2], "y": [0, 1], "classes": {"F": [[4], [5]]}}
    assert _plane({"before": side}, "before")[2] == {"F": [[0], [5]]}


def test_nothing_is_loaded_and_nobody_is_listed(sample, tmp_path, whole):
    # catches: a network reference, an identifier or an attribute value of one person
    assert not re.search(r"https?://|@import|url\(\s*['\"]?(?!#)", whole)
    assert "default-src 'none'" in whole
    folder = sample.raid_folder(tmp_path)
    change(folder, notes_of("raid", lambda notes, _: notes.update(users=["person-17"], labels={"person-17": "F"})))
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
def test_a_note_of_another_shape_is_refused(sample, tmp_path, note, value, message):
    # catches: bars beside their edges, a transposed plane, a traceback from inside a plot
    folder = sample.raid_folder(tmp_path)
    change(folder, notes_of("raid", lambda notes, _: notes.update({note: value})))
    with pytest.raises(InputError, match=message):
        build_report(folder)


def test_without_its_runs_a_comparison_draws_the_notes_it_kept(sample, tmp_path):
    # catches: a published folder, which has no runs beside it, without a panel
    folder = sample.raid_folder(tmp_path)
    for path in tmp_path.glob("*-s?/*"):
        path.unlink()
    change(folder, lambda summary: [arm.update(notes_per_seed=[arm["notes"], sample.raid_notes(5)])
                                    for arm in summary["arms"] if arm["name"] == "raid"])  # fmt: skip
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


def test_two_reports_stand_side_by_side(sample, tmp_path):
    # catches: a page of two reports that trips over attacks or sweeps
    folders = [sample.raid_folder(tmp_path / name) for name in "ab"]
    out = build_compare(folders, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "raid@" not in out
    assert "Leakage of attribute, strongest attack" in out
