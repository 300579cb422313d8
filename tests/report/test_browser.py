"""The page in a real browser: it asks for nothing, says nothing on the console, fits a phone, and sorts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

CHROMIUM = "/usr/bin/chromium"
ARGS = ["--headless=new", "--no-sandbox", "--disable-background-networking", "--no-first-run", "--disable-sync"]
KINDS = ["run", "comparison", "audit", "compare", "demo"]
SCREENS = {"desktop": (1400, 900, "light"), "phone": (390, 844, "light"), "dark": (1400, 900, "dark")}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no browser at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield found
        found.close()


class _Visit:
    def __init__(self, browser, path: Path, screen: str) -> None:
        width, height, scheme = SCREENS[screen]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri())
        # a request or a message that comes late would be missed without a moment's wait
        self.page.wait_for_timeout(150)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("kind", KINDS)
def test_page_is_silent_and_fits(browser, pages, kind, screen):
    # catches: a request that the text search missed, a script error, a policy violation, a table that widens the page
    with _Visit(browser, pages[kind], screen) as visit:
        assert [url for url in visit.requests if not url.startswith("data:")] == [pages[kind].as_uri()]
        assert visit.said == []
        width = SCREENS[screen][0]
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.evaluate("document.body.scrollWidth") <= width


@pytest.mark.parametrize("screen", ["phone", "desktop"])
def test_letters_in_plots_are_readable(browser, pages, screen):
    # catches: a plot shrunk below 11 pixels on a phone of 390, or blown up on a wide page
    with _Visit(browser, pages["run"], screen) as visit:
        heights = visit.page.evaluate(
            """() => [...document.querySelectorAll('.plot svg')].filter(s => s.getClientRects().length).flatMap(s => {
                 const scale = s.getBoundingClientRect().width / s.viewBox.baseVal.width;
                 return [...s.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize) * scale);
               })"""
        )
        assert len(heights) > 50
        assert min(heights) >= 10.9
        assert max(heights) <= 14


@pytest.mark.parametrize(("screen", "dark"), [("desktop", False), ("dark", True)])
def test_plots_follow_the_colour_scheme(browser, pages, screen, dark):
    # catches: CSS variables that the SVG does not resolve, black on black
    with _Visit(browser, pages["run"], screen) as visit:
        ink, paper, fills = visit.page.evaluate(
            """() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,
                      [...document.querySelectorAll('.plot text')].map(t => getComputedStyle(t).fill)]"""
        )

        def light(colour: str) -> float:
            return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765

        assert ink in fills
        assert (light(paper) < 0.2) == dark
        assert min(abs(light(fill) - light(paper)) for fill in fills) > 0.35


def test_tables_sort_both_ways_and_keep_undefined_last(browser, sample, tmp_path):
    # catches: sorting numbers as text, minus signs lost, undefined first
    import json

    from upright.report import build_report

    folder = sample.run_folder(tmp_path)
    file = folder / "summary.json"
    summary = json.loads(file.read_text())
    row = next(r for r in summary["evidence"]["levels"] if r["statistic"] == "mean:mrr@10" and r["arm"] == "none")
    row |= {"value": None, "low": None, "high": None}
    file.write_text(json.dumps(summary))
    column = (
        "[...document.querySelectorAll('table[aria-label^=\"Levels with\"] tbody tr')].map(r => r.cells[1].dataset.v)"
    )
    with _Visit(browser, build_report(folder), "desktop") as visit:
        visit.page.locator("#numbers summary").first.click()
        before = visit.page.evaluate(column)
        button = visit.page.locator('table[aria-label^="Levels with"] thead th').nth(1).locator("button")
        orders = []
        for direction in ("ascending", "descending"):
            button.click()
            head = visit.page.locator('table[aria-label^="Levels with"] thead th').nth(1)
            assert head.get_attribute("aria-sort") == direction
            orders.append(visit.page.evaluate(column))
        for order, reverse in zip(orders, (False, True), strict=True):
            assert order[-1] is None
            numbers = [float(v) for v in order[:-1]]
            assert numbers == sorted((float(v) for v in before if v is not None), reverse=reverse)
        assert numbers[-1] < 0  # the sampled protocol's gap is negative, so a lost sign would show


def test_a_summary_is_printed_without_folds_and_everything_with_them(browser, pages):
    # catches: twenty pages where one was asked for, a full print without its settings, buttons and cut tables on paper
    with _Visit(browser, pages["run"], "desktop") as visit:
        visit.page.evaluate(
            "window.print = () => { window.printed = document.querySelectorAll('.fold[open]').length; }"
        )
        folds = visit.page.locator(".fold").count()
        for name, opened in (("Print this summary", 0), ("Print everything", folds)):
            visit.page.get_by_text(name).click()
            assert visit.page.evaluate("window.printed") == opened
        assert visit.page.locator(".fold[open]").count() == 0
        visit.page.emulate_media(media="print")
        assert visit.page.locator("nav").is_hidden()
        assert visit.page.get_by_text("method.shrinkage").is_hidden()
        assert visit.page.locator(".verdict").first.is_visible()
        visit.page.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
        assert visit.page.locator(".copy").first.is_hidden()
        assert visit.page.get_by_text("method.shrinkage").is_visible()
        overflow = "[...document.querySelectorAll('.scroll')].map(s => getComputedStyle(s).overflowX)"
        assert set(visit.page.evaluate(overflow)) == {"visible"}


@pytest.mark.parametrize("kind", ["run", "comparison", "audit"])
def test_what_is_open_fits_three_and_a_half_screens_and_the_answer_fits_the_first(browser, pages, kind):
    # catches: a table that pushes the verdict, its next step or the folds out of sight
    with _Visit(browser, pages[kind], "desktop") as visit:
        visit.page.set_viewport_size({"width": 1280, "height": 900})
        top, card = visit.page.evaluate(
            """() => [document.querySelector('.fold').getBoundingClientRect().top,
                      document.querySelector('.verdict').getBoundingClientRect().bottom]"""
        )
        assert top <= 3.5 * 900
        assert card <= 900


def test_links_of_the_demo_lead_to_the_reports(browser, pages):
    # catches: a link that only works from another folder
    with _Visit(browser, pages["demo"], "desktop") as visit:
        visit.page.get_by_text("Open the whole report").first.click()
        assert "In-UCDS on ml100k" in visit.page.title()
        assert visit.page.url == pages["comparison"].as_uri()
