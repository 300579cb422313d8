"""Panel of an audit of decisions: what it shows, what a folder may lack, what must not be on the page, how it fits."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import polars as pl
import pytest

from upright.report import build_report
from upright.report.panels import limits_for
from upright.report.panels.audit_predictions import _hundredths, _two_lines
from upright.shell.audit_predictions import audit_predictions

CHROMIUM = "/usr/bin/chromium"
ARGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]
ARGS += ["--no-first-run", "--disable-component-update", "--disable-sync"]


def made(folder, n=3000, clients=15, classes=("denied", "granted"), **options):
    rng = np.random.default_rng(0)
    sex = rng.choice(["a rather long name of a group", "women", "men"], n, p=[0.1, 0.5, 0.4])
    site = rng.choice([f"hospital number {i:02d}" for i in range(clients)], n)
    truth = rng.choice(classes, n)
    decided = np.where(rng.random(n) < 0.4 + 0.4 * (sex == "men"), classes[-1], truth)
    decided = np.where((site == "hospital number 03") & (sex == "men"), classes[0], decided)
    five = site == "hospital number 05"
    sex = np.where(five & (sex == "men") & (np.cumsum(five) > 6), "women", sex)
    frame = {"sex": sex, "site": site, "truth": truth, "decided": decided, "who": [f"somebody{i}" for i in range(n)]}
    pl.DataFrame(frame).write_csv(folder / "cases.csv")
    given = {"client": "site", "label": "truth", "ids": "who", "group": "sex", "prediction": "decided"} | options
    return audit_predictions(folder / "cases.csv", out=folder / "audits", draws=100, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("audit"))


def page(folder) -> str:
    return re.sub(r"\s+", " ", build_report(folder).read_text(encoding="utf-8"))


def panel(folder) -> str:
    source = page(folder)
    return source[source.index('<section id="panel"') : source.index('<section id="units"')]


def test_rates_gaps_small_cells_and_conflicts_are_shown(folder):
    # catches a figure or a table that is left out, and a number that is not the folder's
    found, summary = panel(folder), json.loads((folder / "summary.json").read_text())
    fact = summary["audit"]["fairness"][0]
    assert found.count("<figure>") == 2
    words = (
        "Rates by sex|By client and sex: decided granted|all groups together|women|men|Demographic parity by sex: gaps|"
        "Clients against the whole, sex|Equalized odds by sex|Cells too small to certify, sex|Equal opportunity by sex|"
        "The 12 clients with the largest gaps, of 15.|Inside clients: gap shown at"
    )
    for word in words.split("|"):
        assert word in found, word
    for row in fact["by_group"]:
        if row["client"] is None:
            assert f"{row['rate']:.3f}" in found
    assert f"{fact['gaps'][0]['value']:.3f}" in found
    (conflict,) = fact["conflicts"]
    assert (conflict["client"], conflict["global"]["first"]) == ("hospital number 03", "men")
    assert re.search(r'class="verdict bad">.{0,400}gap shown', page(folder))


def test_nothing_of_a_small_cell_or_a_person_is_on_the_page(folder):
    # catches counts below five, rates of such cells, and ids
    found = panel(folder)
    fact = json.loads((folder / "summary.json").read_text())["audit"]["fairness"][0]
    few = [r for r in fact["by_group"] if r["few"]]
    assert few, "the sample holds a small cell"
    assert "fewer than 5" in found
    assert "somebody" not in page(folder)
    body = re.sub(r"<style>.*?</style>|<script>.*?</script>|<svg.*?</svg>", "", page(folder), flags=re.S)
    assert "nan" not in body.lower().split()
    assert "None" not in found


def test_a_map_for_every_class_but_four_at_most(tmp_path):
    # catches one map for all classes, and a page of dozens
    found = panel(made(tmp_path, n=600, classes=tuple("abcdef"), clients=3, label=None))
    assert [f"By client and sex: decided {c}" in found for c in "abcdef"] == [True] * 4 + [False] * 2
    assert found.count("<figure>") == 5


def test_without_clients_there_is_no_map(tmp_path):
    # catches an empty map, and a column of clients with nobody in it
    found = panel(made(tmp_path, client=None, label=None))
    assert found.count("<figure>") == 1
    assert "Clients against the whole" not in found
    assert "Inside clients" not in found


def test_missing_blocks_leave_out_their_part_only(folder, tmp_path):
    # catches a KeyError or "None" for what a folder of another version lacks
    for file in ("summary.json", "config.json", "run.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    summary = json.loads((tmp_path / "summary.json").read_text())
    for one in summary["audit"]["fairness"]:
        for key in ("gaps", "small", "conflicts", "overall"):
            one.pop(key)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    found = panel(tmp_path)
    assert "Rates by sex" in found
    assert "None" not in found
    assert "Cells too small" not in found
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"audit": {}}))
    assert 'id="panel"' not in page(tmp_path)


def test_limits_are_said(folder):
    # catches a page that sells equal rates as fairness
    for limit in ("Equal rates are no proof of fair treatment", "large by selection"):
        assert limit in page(folder)
        assert any(limit in line for line in limits_for("audit_predictions"))


def test_names_and_numbers_fit_into_a_cell():
    # catches heads that run into one another, and a tiny gap with more digits than a cell has room for
    assert _two_lines("men", 7) == ["men"]
    assert _two_lines("women and old", 9) == ["women", "and old"]
    assert _two_lines("averylongname", 7) == ["averyl…"]
    assert [_hundredths(v) for v in (0.123, -0.004, -0.126)] == ["+0.12", "0.00", "\N{MINUS SIGN}0.13"]


@pytest.mark.browser
@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no browser at {CHROMIUM}")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_and_its_map_is_readable(folder, width):
    # catches a map or table that widens the page, letters that leave their plot or run into one another
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        view = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        said = []
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.goto(build_report(folder).as_uri())
        view.wait_for_timeout(150)
        assert said == []
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        outside, overlaps, sizes = view.evaluate(
            """() => {
                 const svgs = [...document.querySelectorAll('#panel .plot svg')].filter(s => s.getClientRects().length);
                 let outside = 0, overlaps = 0; const sizes = [];
                 for (const svg of svgs) {
                   const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
                   const texts = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
                   svg.querySelectorAll('text').forEach(
                     t => sizes.push(parseFloat(getComputedStyle(t).fontSize) * scale));
                   for (const [i, a] of texts.entries()) {
                     if (a.left < frame.left - 1 || a.right > frame.right + 1) outside++;
                     for (const b of texts.slice(i + 1))
                       if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                           && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3) overlaps++;
                   }
                 }
                 return [outside, overlaps, sizes];
               }"""
        )
        browser.close()
    assert len(sizes) > 60
    assert (outside, overlaps) == (0, 0)
    assert min(sizes) >= 10.9
    assert max(sizes) <= 14
