"""The page: what it loads (nothing), what it says, in which order, and what it refuses."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from upright.api import load
from upright.contract import InputError, UnitScores
from upright.evidence.units import Block, write_units
from upright.report import build_compare, build_demo, build_report
from upright.report.read import read_folder
from upright.report.text import number

KINDS = ["run", "comparison", "audit", "compare", "demo"]


class _Page(HTMLParser):
    """Ids, attributes and visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.sections: list[str] = []
        self.inside: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "style"}:
            self.inside.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
                if tag == "section":
                    self.sections.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))


def report(folder: Path) -> _Page:
    return _Page(build_report(folder))


# -- every page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_refers_to_nothing_outside_itself(pages, kind):
    # catches: a web font, a linked script, an SVG namespace that some readers fetch
    page = _Page(pages[kind])
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:" in page.source
    for tag, name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "srcset", "action", "poster", "data"}:
            assert not re.match(r"([a-z]+:)?//", value), (tag, name, value)
            assert tag in {"a", "use"} or value == "data:,", (tag, name, value)
    assert not re.search(r"url\(\s*['\"]?(?!#)", page.source)
    assert "@import" not in page.source
    assert not re.search(r"https?://", page.source)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_and_references_hit(pages, kind):
    # catches: two inline plots that share a clip path, so that one is cut to the frame of the other
    page = _Page(pages[kind])
    assert len(page.ids) == len(set(page.ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", page.source))
    wanted |= {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    assert wanted <= set(page.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_small_and_every_plot_has_words_and_a_table(pages, kind):
    # catches: plots stored point by point, a plot without a text alternative, a figure without its numbers
    page = _Page(pages[kind])
    assert len(page.source.encode()) < 1_500_000
    plots = [value for tag, name, value in page.attributes if tag == "div" and name == "role" and value == "img"]
    alternatives = [v for tag, name, v in page.attributes if tag == "div" and name == "aria-label" and ": " in v]
    assert plots
    assert len(alternatives) >= len(plots)
    assert page.source.count("Numbers behind this plot") == len(plots) == page.source.count("<figure>")


def test_building_twice_gives_the_same_bytes_in_little_time(sample, tmp_path):
    # catches: random ids, a date inside the SVG, set order; a page that takes longer than a reader waits
    folder = sample.comparison_folder(tmp_path)
    first = build_report(folder, tmp_path / "a.html").read_bytes()
    start = time.process_time()
    second = build_report(folder, tmp_path / "b.html").read_bytes()
    assert time.process_time() - start < 3
    assert first == second


def test_the_package_loads_no_plotting_until_a_page_is_built():
    # catches: a command line that takes a second to print its help
    code = "import sys, upright.report; print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


# -- the report of a run -----------------------------------------------------------------------------------------------


def test_sections_stand_in_the_order_of_the_house(pages):
    # catches: a verdict below the fold, limits before evidence, a section lost
    run = ["verdict", "units", "panel", "numbers", "training", "conditions", "auditor"]
    assert _Page(pages["run"]).sections == run
    assert _Page(pages["comparison"]).sections == run
    assert _Page(pages["audit"]).sections == [s for s in run if s not in {"training", "conditions"}]
    assert _Page(pages["compare"]).sections[:2] == ["differs", "verdict"]


@pytest.mark.parametrize("name", ["a\x1b[31mred", "x" * 10_000, "a\x00b"])
def test_a_group_may_have_any_name(sample, tmp_path, name):
    # catches: an escape character that no SVG may hold, ten thousand letters that nobody reads
    def change(summary):
        for row in summary["evidence"]["levels"]:
            if row["group"] == "advantaged":
                row |= {"group": name, "label": row["label"].replace("advantaged", name)}
        summary["evidence"]["verdict"]["next_steps"] = [f"Mend it: {name}."]

    page = report(sample.edit(sample.run_folder(tmp_path), change))
    shown = name.encode("unicode_escape").decode() if len(name) < 100 else "x" * 100
    assert shown in page.words
    assert max(map(len, page.text)) < 2_000
    if len(name) > 100:
        assert any(tag == "span" and at == "title" and name in value for tag, at, value in page.attributes)


def test_code_in_a_deviation_is_code_and_no_back_tick(sample, tmp_path):
    # catches: marks of another format on the page, and markup that comes in by a warning
    told = ["D1. ``mode=<b>`` is `official`."]
    source = report(sample.edit(sample.run_folder(tmp_path), lambda s: s.update(deviations=told))).source
    assert "D1. <code>mode=&lt;b&gt;</code> is <code>official</code>." in source


def test_titles_are_escaped_in_text_and_in_plots(sample, tmp_path):
    # catches: autoescape off, markup inside an SVG label, mathtext on a dollar sign, a label taken for an id or colour
    evil = '<script>alert(1)</script> $x_1$ id="m" #0a0b01 & 日本'
    page = report(sample.run_folder(tmp_path, titles={"top_k": evil}))
    assert "<script>alert" not in page.source
    assert page.source.count("<script>") == 1
    assert html.escape(evil[:25], quote=False) in page.source
    assert evil in page.words
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", page.source)
    assert any("alert(1)" in html.unescape(one) for one in drawn)


@pytest.mark.parametrize(("seeds", "works", "tone"), [(1, False, "open"), (6, False, "bad"), (6, True, "good")])
def test_the_banner_repeats_the_stored_verdict(sample, tmp_path, seeds, works, tone):
    # catches: a word, colour or line that the page finds by itself; a control or a next step left out
    stored = sample.evidence(seeds, works=works)
    folder = sample.edit(sample.run_folder(tmp_path), lambda s: s.update(evidence=stored))
    banner, said = sample.section(folder, "verdict", "units"), stored["verdict"]
    assert f'<div class="verdict {tone}">' in banner
    assert f"<strong>{said['title']}</strong>" in banner
    texts = (said["sentence"], *said["lines"].values(), *said["next_steps"])
    assert all(sample.shown(text) in banner for text in texts)
    arms = sample.table(banner, "Arms: what decides")
    titles = {arm.title: arm for arm in sample.ARMS}
    assert {row[0][0].lower() for row in arms} == {title.lower() for title in titles}
    tags = re.findall(r"</svg>([^<]*)</span></td></tr>", banner)
    word = ("incomplete, so far: " if said["incomplete"] else "") + said["word"]
    assert sorted(tags) == sorted([word, *said["beside"].values()])
    sample.edit(folder, lambda s: s["evidence"]["verdict"].pop("colour"))  # as older folders
    assert sample.section(folder, "verdict", "units") == banner


def test_every_level_and_difference_is_on_the_page(sample, tmp_path):
    # catches: a table that drops a statistic, an arm or a group in silence
    folder = sample.run_folder(tmp_path)
    view = read_folder(folder)
    source = report(folder).source
    levels = source[source.index('<table aria-label="Levels with') :]
    levels = levels[: levels.index("</table>")]
    assert levels.count("<tr>") == len({(row.statistic, row.group) for row in view.levels}) + 1
    assert levels.count('<td class="num"') == len(view.levels)
    pairs = source[source.index('<table aria-label="Paired differences') :]
    assert pairs[: pairs.index("</table>")].count('<td class="num"') == len(view.differences)
    undecided = [row for row in view.differences if row.verdict == "undecided"]
    assert f"Of {len(view.differences)} differences, {len(undecided)} are undecided" in source


def test_what_is_undefined_says_so_and_sorts_last(sample, tmp_path):
    # catches: "nan" in a table, a null that stops the page, a made-up zero
    def change(summary):
        row = next(r for r in summary["evidence"]["levels"] if r["statistic"] == "mean:mrr@10" and r["arm"] == "zero")
        row |= {"value": None, "low": None, "high": None}

    page = report(sample.edit(sample.run_folder(tmp_path), change))
    assert '<td class="num"><span class="v">undefined</span>' in page.source
    assert not re.search(r"\bnan\b", page.words, re.IGNORECASE)


def test_conditions_name_what_weakens_the_evidence(sample, tmp_path):
    # catches: an arm that did not converge, a half-written log, undefined users: all passed over
    folder = sample.edit(sample.run_folder(tmp_path), sample.noting("none", converged=False))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"arm": "zero", "st')
    words = report(folder).words
    assert "No remedy: training reached its last epoch while validation could still improve" in words
    assert "1 line of metrics.jsonl could not be read" in words
    assert "Undefined for 3 users" in words
    assert sample.WARNINGS[0] in words


def test_configuration_is_shown_as_passed_and_as_resolved(sample, tmp_path):
    # catches: showing the defaults as if somebody had set them
    source = report(sample.run_folder(tmp_path, lam=0.07)).source
    passed, resolved = source[source.index("Settings as passed") :].split("Settings as resolved", 1)
    assert "task.backbone" in passed
    assert "0.07" in passed
    assert "method.shrinkage" not in passed
    assert "method.shrinkage" in resolved


def test_the_record_names_seeds_cost_versions_fingerprint_and_command(sample, tmp_path):
    # catches: a page that cannot be repeated
    words = report(sample.comparison_folder(tmp_path)).words
    for text in ("0, 1, 2, 3, 4, 5", "over 6 runs", "2.13.0", sample.DATA["fingerprint"], "--seeds 6", "D1. alpha"):
        assert text in words


def test_a_comparison_without_its_runs_says_what_it_lacks(sample, tmp_path):
    # catches: an empty section, a crash, or curves of three seeds passed off as six
    folder = sample.comparison_folder(tmp_path, seeds=2)
    gone = tmp_path / "2026-01-31-in_ucds-ml100k-s1"
    for file in gone.iterdir():
        file.unlink()
    gone.rmdir()
    page = report(folder)
    assert "Not beside the comparison" in page.words
    assert gone.name in page.words


@pytest.mark.parametrize("gone", [False, True])
def test_the_worst_units_are_named_by_id_unless_published_or_to_forget(sample, tmp_path, gone):
    # catches: the best ten, ids of a published study, records that were to be forgotten
    folder = sample.run_folder(tmp_path)
    sets = {"set": ["forget"] * 20} if gone else {}
    values = {"ndcg@10": [i / 20 for i in range(20)]}
    blocks = [
        Block("r", arm.name, 0, UnitScores("user", [f"u{i}" for i in range(20)], values, sets)) for arm in sample.ARMS
    ]
    write_units(folder / "units.parquet", blocks, "test")
    words = report(folder).words
    assert ("The 10 users with the worst NDCG@10" in words) != gone
    if not gone:
        assert re.findall(r"<code>(u\d+)</code>", sample.page(folder)) == [f"u{i}" for i in range(10)]
        (folder / "run.json").unlink()  # as a published study
        assert "The 10 users with the worst" not in report(folder).words


# -- audits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "tone", "against"), [(0.001, "bad", "beyond chance"), (0.4, "open", "not told from")])
def test_an_audit_claims_no_difference_and_states_what_it_could_have_seen(sample, tmp_path, p, tone, against):
    # catches: an audit that speaks of controls, says its sentence twice or hides its power
    folder = sample.audit_folder(tmp_path, p)
    said, words = json.loads((folder / "summary.json").read_text())["evidence"]["verdict"], report(folder).words
    assert f'<div class="verdict {tone}">' in report(folder).source
    assert words.count(sample.shown(said["sentence"])) == 1
    assert all(sample.shown(text) in words for text in (said["title"], *said["next_steps"]))
    assert "Paired differences" not in words
    assert sample.titles(sample.page(folder))[0].startswith("Gaps between groups")
    (row,) = sample.table(sample.page(folder), "What was compared with chance")
    assert row[1][0] == "0.350"
    assert row[2] == [f"p = {number(p, 4)}" + ("" if p < 0.05 else "; smallest detectable 0.120")]
    assert against in words


# -- side by side, and the index ------------------------------------------------------------------------------------


def test_compare_shows_only_what_differs(pages):
    # catches: a dump of both configurations, or a difference left out
    source = pages["compare"].read_text(encoding="utf-8")
    section = source[source.index('id="differs"') : source.index('id="verdict"')]
    assert "method.lam" in section
    assert "method.shrinkage" not in section
    assert "All recorded versions are the same." in source


def test_compare_says_which_is_better_by_which_line(sample, tmp_path):
    # catches: the larger number called better where less is, and intervals that overlap called apart
    a, b = sample.run_folder(tmp_path / "a"), sample.run_folder(tmp_path / "b", works=True)
    rows = sample.table(sample.page_of(build_compare([a, b], tmp_path / "out.html")), "Side by side")
    said = {row[0][0]: row[3] for row in rows}
    assert said["What decides"] == ["B", "intervals overlap"]
    assert said["What is paid"] == ["B", "intervals do not overlap"]


def test_compare_judges_its_tables_by_the_margin_that_was_asked_for(sample, tmp_path):
    # catches: a verdict by the new margin above differences by the old one
    folders = [sample.run_folder(tmp_path / "a"), sample.run_folder(tmp_path / "b", works=True)]
    source = sample.page_of(build_compare(folders, tmp_path / "out.html", margins={"mrr@10": 0.05}))
    rows = sample.table(source, "Paired differences")
    small = {row[0][0]: row[0][1] for row in rows}
    assert small["MRR@10"] == "higher is better; margin 0.05"
    assert small["NDCG@10"] == "higher is better; margin 0.01"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("data.name", lambda s: s["data"].update(name="gowalla")),
        ("data.fingerprint", lambda s: s["data"].update(fingerprint="0" * 64)),
        ("evidence.unit_kind", lambda s: s["evidence"].update(unit_kind="item")),
        ("evidence.confidence", lambda s: s["evidence"].update(confidence=0.9)),
    ],
)
def test_compare_refuses_what_is_not_comparable_and_names_the_field(sample, tmp_path, field, change):
    # catches: two data sets side by side as if they were one
    a, b = sample.run_folder(tmp_path / "a"), sample.edit(sample.run_folder(tmp_path / "b"), change)
    with pytest.raises(InputError, match=re.escape(field)):
        build_compare([a, b], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("count", [0, 1])
def test_compare_needs_two(sample, tmp_path, count):
    # catches: a page that compares a run with nothing
    folders = [sample.run_folder(tmp_path)] * count
    with pytest.raises(InputError, match="2 to 26"):
        build_compare(folders, tmp_path / "out.html")


def test_compare_takes_an_audit_beside_a_run(sample, tmp_path):
    # catches: a crash where one side has no differences
    out = build_compare([sample.run_folder(tmp_path), sample.audit_folder(tmp_path)], tmp_path / "out.html")
    assert "B: Audit of the ranked lists" in _Page(out).words


def test_compare_takes_audits_of_one_kind_over_other_files_and_says_which(sample, tmp_path):
    # catches: lists of two models that cannot be set side by side, or whose levels are not

    def decides(found):
        found["evidence"]["headline"] = found["evidence"]["levels"][0]

    a = sample.edit(sample.audit_folder(tmp_path / "a"), decides)
    b = sample.edit(sample.audit_folder(tmp_path / "b"), lambda found: found["data"].update(fingerprint="x", name="b"))
    page = _Page(build_compare([a, b], tmp_path / "out.html"))
    assert "data.name" in page.words
    assert "equal" in page.words  # the same levels
    assert "What decides" in page.words
    other = sample.edit(sample.audit_folder(tmp_path / "c"), lambda found: found.update(method="audit_predictions"))
    with pytest.raises(InputError, match=r"data\.name"):
        build_compare([b, other], tmp_path / "no.html")


def test_demo_links_to_reports_that_exist_and_repeats_their_verdicts(sample, tmp_path):
    # catches: dead links, absolute paths, an index that says something else than its reports
    (tmp_path / "out").mkdir()
    run, audit = sample.run_folder(tmp_path / "a b"), sample.audit_folder(tmp_path)
    page = _Page(build_demo([run, audit], tmp_path / "out", "Title"))
    links = [value for tag, name, value in page.attributes if tag == "a" and name == "href" and value[0] != "#"]
    assert links == [f"../a%20b/{run.name}/report.html", f"../{audit.name}/report.html"]
    assert (run / "report.html").is_file()
    said = json.loads((run / "summary.json").read_text())["evidence"]["verdict"]
    assert sample.shown(said["sentence"]) in page.words
    with pytest.raises(InputError, match="at least one"):
        build_demo([], tmp_path, "Title")


# -- what is refused ---------------------------------------------------------------------------------------------------


def _only_failed(sample: ModuleType, folder: Path) -> None:
    (folder / "summary.json").unlink()
    sample.edit(folder, lambda s: s.update(status="running"), "run.json")
    with pytest.raises(InputError, match="interrupted"):
        read_folder(folder)  # nobody holds its lock
    sample.edit(folder, lambda s: s.update(status="failed"), "run.json")


def _with(change):
    return lambda sample, folder: sample.edit(folder, change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _, folder: (folder / "summary.json").write_text("{"), "summary.json: Expecting"),
        (_only_failed, "its run is 'failed'"),
        (lambda _, folder: (folder / "summary.json").write_text("[]"), "summary.json holds list"),
        (_with(lambda s: s.update(schema=1)), "schema 1"),
        (_with(lambda s: s.pop("evidence")), "no evidence"),
        (_with(lambda s: s["evidence"]["levels"][3].update(value="0.3")), r"levels\[3\]\.value = '0.3'"),
        (_with(lambda s: s["evidence"]["differences"][1].pop("arm")), r"differences\[1\]\.arm = None"),
    ],
)
def test_bad_folders_are_refused_with_what_is_wrong(sample, tmp_path, spoil, message):
    # catches: a KeyError for a person, a half-written report
    folder = sample.run_folder(tmp_path)
    spoil(sample, folder)
    with pytest.raises(InputError, match=message) as caught:
        build_report(folder)
    assert caught.value.accepted
    assert caught.value.todo
    assert not list(folder.glob("*.html"))


def test_a_missing_folder_or_target_is_refused(sample, tmp_path):
    # catches: a traceback from deep inside, a page written somewhere unexpected
    with pytest.raises(InputError, match="no such folder"):
        build_report(tmp_path / "nowhere")
    folder = sample.run_folder(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        build_report(folder, tmp_path / "nowhere" / "page.html")
    assert build_report(folder, tmp_path) == tmp_path / "report.html"


def test_a_notebook_shows_the_verdict_above_the_levels(sample, tmp_path):
    # catches: markup in a group's name, a verdict of other words than the page's, levels without their ends
    def change(summary):
        summary["evidence"]["levels"][0]["label"] = "<script>x"
        summary["evidence"]["verdict"]["sentence"] += " <b>&"

    result = load(sample.edit(sample.run_folder(tmp_path), change))
    html, levels = result._repr_html_(), result.evidence["levels"]
    assert result.verdict.endswith(" <b>&")
    assert " &lt;b&gt;&amp;</p>" in html
    assert "<script>" not in html
    assert [row["value"] for row in levels] == result.to_frame()["value"].to_list()
    assert {"low", "high", "n_units"} < set(result.to_frame().columns)
