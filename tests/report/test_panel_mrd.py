"""MRD's panel: every number is that of the evidence or of the table of records, and what is absent is said."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from upright.contract import InputError
from upright.report import build_report
from upright.report.panels import limits_for, panel_for
from upright.report.panels.mrd_matched import matched
from upright.report.panels.mrd_plots import bins_of, draw_scores, ranks_within
from upright.report.panels.mrd_units import (
    Forgotten,
    forgotten,
    pooled_cuts,
    standardise,
    standardised_mean,
    stratum_of,
    swapped,
)
from upright.report.plots import Canvas
from upright.report.read import read_folder
from upright.report.text import number
from upright.shell.study import publish_runs


def _load() -> ModuleType:
    # tests are no package under --import-mode=importlib, so the sibling is loaded by its path
    spec = importlib.util.spec_from_file_location("mrd_sample", Path(__file__).with_name("mrd_sample.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made_by = _load()
page, section, titles, table, change = made_by.page, made_by.section, made_by.titles, made_by.table, made_by.change
EFFORT = [
    f"{title}, ascending the loss {of}"
    for of in ("per token", "of the whole answer")
    for title in ("MRD against updates until forgotten", "Rank correlation with updates until forgotten")
]
SCORES = ["MRD of the forgotten records", "Rank correlation of MRD with what is at hand"]
DRIFT = ["Ranking over the scorings", "Concentration of the draws"]
PATH, THIRDS = (
    "What is forgotten against what is kept, by epoch",
    "Distance from the model that never saw them, by third",
)
MATCHED = ["Difficulty that a seed drew, and its gap: uniform draws", "Distance as drawn and standardised"]
ALL = [*EFFORT, *SCORES, *DRIFT, PATH, THIRDS, *MATCHED]
NAMES = {"uniform": "Uniform draws", "mrd": "Draws by MRD", "length": "Draws by length",
         "hard_first": "Draws by 1 / MRD", "original": "No unlearning",
         "retrain": "Taught the kept records alone"}  # fmt: skip
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three runs and their comparison."""
    return made_by.make(tmp_path_factory.mktemp("mrd"))


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the first run that a test may edit."""
    return Path(shutil.copytree(made / "s0", tmp_path / "s0"))


def levels(folder: Path) -> dict:
    name = "comparison.json" if (folder / "comparison.json").is_file() else "summary.json"
    found = json.loads((folder / name).read_text())
    return {(r["statistic"], r["group"], r["arm"]): r for r in found["evidence"]["levels"]}


# -- structure ----------------------------------------------------------------------------------------------------


def test_blocks_of_a_comparison_stand_in_their_order_with_words_and_tables(made):
    # catches: a block lost or moved; a plot without a text alternative, a table or a reading; a record named
    source = page(made / "x")
    found = source[source.index('id="panel"') : source.index('id="units"')]
    assert titles(found) == ALL
    for figure in re.findall(r"<figure>(.*?)</figure>", found):
        assert re.search(r'<div class="plot" role="img" aria-label="[^"]+"', figure)
        assert "Numbers behind this plot" in figure
        assert re.search(r"<p>[A-Z].{10,}?</p>", figure)
    words = re.sub(r"<[^>]*>", " ", found)
    assert "None" not in words
    assert "nan" not in words.split()
    assert not re.search(r"forget/\d", source)
    assert all(one in source for one in limits_for("mrd"))
    assert all(panel_for(f"mrd_{part}") is None for part in ("scores", "matched", "plots", "units"))


def test_one_run_has_no_range_over_seeds_and_nothing_to_match(made):
    # catches: "mean and range" of a single number; a standardisation that cannot do anything, drawn
    found = section(made / "s0")
    assert titles(found) == [t for t in ALL if t not in MATCHED]
    assert "there is nothing to match" in found
    assert "range over seeds" not in found
    assert "over 1 seed" not in found


def test_the_table_is_found_beside_the_comparison_inside_it_and_in_a_published_study(made, tmp_path):
    # catches: runs moved into the comparison lost; seeds counted twice; integers of a published study taken for no set
    want = {(one.arm, one.seed) for one in forgotten(read_folder(made / "x"))}
    assert want == {(arm, seed) for arm in made_by.ARMS for seed in range(3)}
    moved = Path(shutil.copytree(made / "x", tmp_path / "x"))
    for seed in range(3):
        shutil.copytree(made / f"s{seed}", moved / f"s{seed}")
    published = publish_runs("y", [made / f"s{s}" for s in range(3)], made / "x", tmp_path, {"command": "c"})
    for place in (moved, published):
        found = forgotten(read_folder(place))
        assert sorted((one.arm, one.seed) for one in found) == sorted(want)
        assert all(len(one.values["mrd"]) == made_by.FORGET for one in found)
    assert titles(section(published)) == ALL


@pytest.mark.parametrize(("note", "lost"), [("scores", []), ("weights", DRIFT), ("path", [PATH])])
def test_a_missing_note_drops_its_block_alone(folder, note, lost):
    # catches: a KeyError, an empty plot, a neighbour dropped as well
    change(folder, lambda s: [arm["notes"].pop(note, None) for arm in s["arms"]])
    found = section(folder)
    assert titles(found) == [t for t in ALL if t not in [*MATCHED, *lost]]
    assert ("How records were scored" in found) == (note != "scores")


@pytest.mark.parametrize("note", ["path", "weights"])
def test_a_note_that_is_no_list_of_records_is_refused_in_three_parts(folder, note):
    # catches: a traceback of the reader's, a block drawn from half a note
    change(folder, lambda s: [arm["notes"].update({note: [{"other": 1}]}) for arm in s["arms"]])
    with pytest.raises(InputError) as error:
        build_report(folder)
    assert note in error.value.got
    assert error.value.accepted
    assert error.value.todo


def test_without_the_table_of_records_the_evidence_is_still_shown(folder):
    # catches: a report that cannot be built from the summary alone; plots left out in silence
    (folder / "units.parquet").unlink()
    found = section(folder)
    assert titles(found) == [EFFORT[1], EFFORT[3], SCORES[1], *DRIFT, PATH, THIRDS]
    assert "no table of records" in found


@pytest.mark.parametrize("arms", [made_by.ARMS, ("uniform", "mrd", "length")])
def test_without_effort_it_is_said_what_is_missing(tmp_path, arms):
    # catches: a KeyError without effort or without the arm retrain; silence about what could not be checked
    found = section(made_by.run_folder(tmp_path / "s0", 0, arms=arms, effort=False))
    assert titles(found) == [t for t in ALL if t not in [*EFFORT, *MATCHED]]
    assert "Whether MRD predicts effort is not known here" in found
    assert ("this run has none" in found) == ("retrain" not in arms)


# -- effort ---------------------------------------------------------------------------------------------------------


def test_correlations_are_those_of_the_evidence_with_band_and_count(made):
    # catches: the band of another predictor, an arm's own column, a correlation computed anew
    at, source = levels(made / "x"), section(made / "x")
    rows = {"mrd": "MRD", "mrd_per_token": "MRD per token", "answer_tokens": "Answer tokens",
            "nll_before": "Loss per token before", "mrd|": "MRD, given answer tokens"}  # fmt: skip
    for (name, title), measure in itertools.product(rows.items(), ("effort", "effort_sum")):
        x, given, _ = name.partition("|")
        want = at[f"rank_correlation:{x}~{measure}" + ("|answer_tokens" if given else ""), None, "mrd"]
        cells = table(source, EFFORT[1 if measure == "effort" else 3])[title]
        null = want["null"]
        assert cells[:3] == [
            number(want["value"], sign=True), f"{number(want['low'], sign=True)} to {number(want['high'], sign=True)}",
            f"{number(null['low'], sign=True)} to {number(null['high'], sign=True)}",
        ]  # fmt: skip
        assert cells[3] == str(want["n_units"])
    assert "9 of 72 records, counted at each seed, did not reach" in source
    assert source.count("All 72 records") == 1  # the whole answer was forgotten by all


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [(-0.6, -0.8, -0.4, "as the score claims"), (0.6, 0.4, 0.8, "opposite of what the score claims"),
     (0.1, -0.2, 0.4, "does not predict effort"), (-0.5, -0.9, 0.1, "does not predict effort"),
     (-0.2, -0.25, -0.1, "does not predict effort")],
)  # fmt: skip
def test_words_follow_sign_band_and_interval(folder, value, low, high, said):
    # catches: a sign read the wrong way round; a claim on the interval or on the band alone
    def edit(summary):
        for row in summary["evidence"]["levels"]:
            if row["statistic"] == "rank_correlation:mrd~effort":
                row.update(value=value, low=low, high=high, null={"expected_abs": 0.1, "low": -0.3, "high": 0.3})

    change(folder, edit)
    found = section(folder)
    start = found.index("Ascending the loss per token, one record at a time:")
    words = found[start : found.index("<figure", start)]
    sayings = ("as the score claims", "opposite of what the score claims", "does not predict effort")
    assert [one for one in sayings if one in words] == [said]


def test_censored_records_are_counted_by_third(folder):
    # catches: a NaN taken for a number of updates; the censored dropped from the count
    rows = table(section(folder), EFFORT[0])
    assert list(rows) == ["Hard", "Middle", "Easy"]
    assert [row[-1] for row in rows.values()] == ["3", "0", "0"]  # the three hardest
    own = made_by.records(0)
    hard = np.array(made_by.thirds(own["mrd"])) == "hard"
    assert float(rows["Hard"][2]) == pytest.approx(np.nanmedian(own["effort"][hard]), abs=6e-4)
    assert float(rows["Hard"][1]) == pytest.approx(np.median(own["mrd"][hard]), abs=6e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 40), st.floats(0, 0.4))
def test_ranks_carry_the_rank_correlation(seed, n, lost):
    # catches: ranks taken over records that have one value alone; one axis turned; seeds ranked together
    rng = np.random.default_rng(seed)
    pairs = []
    for shift in (0.0, 100.0):
        x, y = rng.normal(shift, 1, n).round(1), rng.normal(-shift, 1, n).round(1)
        y[rng.random(n) < lost] = np.nan
        pairs.append((x, y))
    found = ranks_within(pairs)
    first = int((~np.isnan(pairs[0][1])).sum())
    assert len(found) == first + int((~np.isnan(pairs[1][1])).sum())
    for (x, y), own in zip(pairs, (found[:first], found[first:]), strict=True):
        ok = ~np.isnan(y)
        if ok.sum() > 2 and np.ptp(x[ok]) > 0 and np.ptp(y[ok]) > 0:
            assert np.corrcoef(own.T)[0, 1] == pytest.approx(spearmanr(x[ok], y[ok]).statistic, abs=1e-9)
            assert own.min() > 0
            assert own.max() < 1


# -- scores -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=60))
def test_every_score_stands_in_one_bin(scores):
    # catches: the largest score outside the last bin; a logarithm of 0; powers for scores that lie close together
    values = np.array(scores)
    edges, counts, powers = bins_of(values)
    assert counts.sum() == len(values)
    assert edges[0] <= values.min()
    assert edges[-1] >= values.max()
    assert (np.diff(edges) > 0).all()
    assert powers == (values.min() > 0 and values.max() > 20 * values.min())


def test_thirds_are_drawn_at_the_pooled_cuts_and_named_where_there_is_room():
    # catches: a line in plain numbers on an axis of powers; letters of two parts over one another
    scores = np.exp(np.random.default_rng(0).normal(0, 1.5, 90))
    edges, counts, powers = bins_of(scores)
    assert powers
    wide = draw_scores(edges, counts, powers, np.quantile(scores, [1 / 3, 2 / 3]), ("hard", "middle", "easy"), "x", "y",
                       Canvas())  # fmt: skip
    assert [name for name in ("hard", "middle", "easy") if f">{name}<" in wide] == ["hard", "middle", "easy"]
    narrow = draw_scores(edges, counts, powers, np.array([scores.min(), scores.min() * 1.01]),
                         ("hard", "middle", "easy"), "x", "y", Canvas())  # fmt: skip
    assert [name for name in ("hard", "middle", "easy") if f">{name}<" in narrow] == ["easy"]


def test_how_records_were_scored_is_said_over_seeds_and_doubted_where_due(made, folder):
    # catches: the first seed's facts for all; a ranking that is noise without a word; a ratio of 2 held against 4
    found = section(made / "x")
    for said in ("8 to 12", "37 to 53", "0.930 to 0.950", "3.96", "0.2"):
        assert f"<dd>{said}" in found
    assert "part of the ranking is noise" not in found
    assert "more than curvature" not in found

    def facts(**new):
        change(folder, lambda s: [arm["notes"]["scores"].update(new) for arm in s["arms"]])
        return section(folder)

    bad = facts(reliability=0.7, scaling=5.0)
    assert "part of the ranking is noise" in bad
    assert "more than curvature" in bad
    other = facts(estimator="mean_abs", scaling=2.0, reliability=None)
    assert "measures the size of the gradient" in other
    assert "more than curvature" not in other
    assert "Reliability" not in other


# -- drift and path ---------------------------------------------------------------------------------------------------


def test_drift_is_the_mean_over_seeds_with_its_range(made):
    # catches: the first seed for all; another arm's weights; the share of another number of records
    source = section(made / "x")
    rows = table(source, DRIFT[0])
    assert rows == {"0": ["1.000", "17.0", "0.531"], "2": ["0.750", "13.0", "0.406"]}
    assert "0.700 to 0.800" in source


def test_a_single_scoring_is_told_in_words(folder):
    # catches: a curve of one point
    change(folder, lambda s: [a["notes"].update(weights=a["notes"]["weights"][:1]) for a in s["arms"]
                              if "weights" in a["notes"]])  # fmt: skip
    found = section(folder)
    assert "Records were scored once" in found
    assert not set(DRIFT) & set(titles(found))


def test_a_ranking_without_a_correlation_leaves_its_plot_out(folder):
    # catches: null of constant scores drawn as 0
    def edit(summary):
        for arm in summary["arms"]:
            for row in arm["notes"].get("weights", []):
                row["rank_correlation"] = None

    change(folder, edit)
    assert [t for t in titles(section(folder)) if t in DRIFT] == DRIFT[1:]


def test_paths_are_means_over_seeds_and_ends_are_said(made):
    # catches: kept and forgotten answers exchanged; a model without unlearning given epochs
    source = section(made / "x")
    start = source.index(f'<table aria-label="{PATH}"')
    body = source[start : source.index("</table>", start)]
    rows = [[made_by._text(c) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
            for row in re.findall(r"<tr>(.*?)</tr>", body)[1:]]  # fmt: skip
    assert [r[0] for r in rows].count(NAMES["mrd"]) == 4
    last = next(r for r in rows if r[:2] == [NAMES["mrd"], "4"])
    assert float(last[2]) == pytest.approx(0.25 + made_by.SHIFT["mrd"] + 0.01, abs=6e-4)  # seeds 0, 1, 2
    assert float(last[3]) == pytest.approx(0.77, abs=6e-4)
    at = levels(made / "x")
    for arm in ("original", "retrain"):
        (row,) = [r for r in rows if r[0] == NAMES[arm]]
        want = [at[f"mean:{side}_probability", None, arm]["value"] for side in ("forget", "retain")]
        assert row[1:] == ["–", *map(number, want)]


# -- thirds and matching ----------------------------------------------------------------------------------------------


def test_thirds_are_those_of_the_evidence_for_every_arm(made):
    # catches: thirds in the order of the alphabet; arms that were not unlearned squeezing the plot of the others
    source, at = section(made / "x"), levels(made / "x")
    rows = table(source, THIRDS)
    for arm, title in NAMES.items():
        want = [at["mean:forget_gap:difficulty", third, arm]["value"] for third in ("hard", "middle", "easy")]
        assert rows[title] == [number(v) for v in want]
    figure = next(f for f in re.findall(r"<figure>(.*?)</figure>", source) if THIRDS in f)
    drawing = figure[figure.index("<svg viewBox") :]
    drawing = drawing[: drawing.index("</svg>")]
    assert f">{NAMES['uniform']}<" in drawing
    assert f">{NAMES['original']}<" not in drawing


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5))
def test_standardising_to_its_own_shares_changes_nothing(seed, n, times):
    # catches: shares of records confused with equal weights; a stratum weighed by its count once more
    rng = np.random.default_rng(seed)
    values, scores = rng.normal(size=n), rng.normal(size=n)
    stratum = stratum_of(scores, pooled_cuts([scores]))
    own = np.bincount(stratum, minlength=3) / n
    assert standardised_mean(values, stratum, own) == pytest.approx(values.mean(), abs=1e-9)
    # more records of a stratum that are like those it has already do not move it
    hard = stratum == 0
    more = np.concatenate([values, np.tile(values[hard], times)])
    grown = np.concatenate([stratum, np.tile(stratum[hard], times)])
    assert standardised_mean(more, grown, own) == pytest.approx(values.mean(), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 40))
def test_the_standardised_mean_is_a_mean_with_weights_share_over_count(seed, n):
    # catches: another formula; a NaN counted into a stratum; an empty stratum that is left out in silence
    rng = np.random.default_rng(seed)
    values, stratum, share = rng.normal(size=n), rng.integers(0, 3, n), rng.dirichlet(np.ones(3))
    values[rng.random(n) < 0.2] = np.nan
    ok = ~np.isnan(values)
    counts = [int((stratum[ok] == h).sum()) for h in range(3)]
    found = standardised_mean(values, stratum, share)
    if min(counts) == 0:
        assert math.isnan(found)
        return
    weights = np.array([share[h] / counts[h] for h in stratum[ok]])
    assert found == pytest.approx(np.average(values[ok], weights=weights), abs=1e-9)


def drawn(gaps: dict[str, tuple[float, float, float]], counts: list[tuple[int, int, int]]) -> list[Forgotten]:
    """Return arms whose gap is a function of the stratum alone, at seeds that drew other counts of strata."""
    found = []
    for arm, own in gaps.items():
        for seed, numbers in enumerate(counts):
            mrd = np.concatenate([np.linspace(h, h + 0.5, n) + 1 for h, n in enumerate(numbers)])
            gap = np.repeat(own, numbers).astype(np.float64)
            third = np.array(made_by.thirds(mrd))
            found.append(Forgotten(arm, seed, {"mrd": mrd, "forget_gap": gap, "effort": mrd * np.nan}, third))
    return found


COUNTS = [(8, 2, 2), (2, 8, 2), (2, 2, 8)]


def test_seeds_that_differ_in_their_records_alone_are_alike_once_standardised():
    # catches: cut points of each seed instead of pooled ones, which leave every seed as it was drawn
    found = standardise(drawn({"uniform": (0.5, 0.3, 0.1)}, COUNTS))
    assert np.ptp(found.raw["uniform"]) > 0.15
    assert found.standard["uniform"] == pytest.approx([0.3] * 3, abs=1e-12)
    assert found.share == pytest.approx([1 / 3] * 3)
    assert found.drawn[0] == pytest.approx([8 / 12, 2 / 12, 2 / 12])
    assert found.usable.all()


def test_a_seed_without_one_kind_of_record_is_left_out_and_counted(made):
    # catches: a mean over the strata that happen to be there, compared with one over all
    records = drawn({"uniform": (0.5, 0.3, 0.1), "mrd": (0.4, 0.2, 0.1)},
                    [(8, 2, 2), (2, 8, 4), (2, 2, 10), (4, 4, 0)])  # fmt: skip
    found = standardise(records)
    assert found.usable.tolist() == [True, True, True, False]
    view = read_folder(made / "x")
    figure = matched(view, Canvas(), records)[-1].figures[-1]
    assert any("1 seed without a record in one of these thirds is left out" in text for text in figure.reading)
    assert [row[2].text for row in figure.table.rows] == ["0.300", "0.233"]  # of the three seeds that have all


def test_whether_the_order_of_arms_changes_is_said(made):
    # catches: "does not change" when two arms change places; the pair named the wrong way round
    view = read_folder(made / "x")
    same = matched(view, Canvas(), drawn({"uniform": (0.5, 0.3, 0.1), "mrd": (0.4, 0.2, 0.05)}, COUNTS))
    assert "does not change the order of the arms" in same[1].paragraphs[0]
    # one seed drew few records, most of them easy: the mean over seeds favours whoever is good at easy ones
    records = drawn({"uniform": (0.1, 0.3, 0.3), "mrd": (0.5, 0.2, 0.05)}, [(2, 2, 14), (14, 14, 2)])
    found = standardise(records)
    standard = {a: float(v[found.usable].mean()) for a, v in found.standard.items()}
    raw = {a: float(v[found.usable].mean()) for a, v in found.raw.items()}
    said = matched(view, Canvas(), records)[1].paragraphs[0]
    pairs = swapped(raw, standard)
    assert ("changes the order of the arms" in said) == bool(pairs)
    assert pairs == [("uniform", "mrd")]
    assert "uniform draws and draws by MRD change places" in said


def test_swapped_pairs_are_all_and_only_those_in_another_order():
    # catches: ties counted; pairs of neighbours alone
    one = {"a": 1.0, "b": 2.0, "c": 3.0}
    assert swapped(one, one) == []
    assert swapped(one, {"a": 3.0, "b": 2.0, "c": 1.0}) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert swapped(one, {"a": 2.0, "b": 2.0, "c": 1.0}) == [("a", "c"), ("b", "c")]


def test_what_seeds_drew_stands_beside_their_gap(made):
    # catches: the gap of the remedy under the baseline's head; the mean of another seed's records
    rows = table(section(made / "x"), MATCHED[0])
    for seed in range(3):
        mrd = made_by.records(seed)["mrd"]
        gaps = [made_by.scores(arm, seed).values["forget_gap"][: made_by.FORGET].mean() for arm in ("uniform", "mrd")]
        assert rows[str(seed)][:2] == [number(float(mrd.mean())), number(float(np.median(mrd)))]
        assert rows[str(seed)][-2:] == [number(float(g)) for g in gaps]


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason=f"no browser at {CHROMIUM}")
def test_no_letter_is_cut_and_no_two_labels_meet(made, tmp_path):
    # catches: values of three thirds over a long title of an arm; names of thirds over one another; a wide page
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    target = build_report(made / "x", tmp_path / "x.html")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        for width in (400, 1200):
            visit = browser.new_page(viewport={"width": width, "height": 900})
            visit.goto(target.as_uri())
            seen, bad, wide = visit.evaluate(
                """() => {
                  const bad = []; let seen = 0;
                  for (const svg of document.querySelectorAll('#panel .plot svg')) {
                    const frame = svg.getBoundingClientRect();
                    const letters = [...svg.querySelectorAll('text')];
                    const boxes = letters.map(t => [t.textContent, t.getBoundingClientRect()]);
                    seen += boxes.length;
                    boxes.forEach(([a, p], i) => {
                      if (p.left < frame.left - 1 || p.right > frame.right + 1) bad.push('cut: ' + a);
                      for (const [b, q] of boxes.slice(i + 1))
                        if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
                            Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4) bad.push(a + ' | ' + b);
                    });
                  }
                  const terms = [...document.querySelectorAll('#panel dt')];
                  for (const t of terms) {
                    const p = document.createRange(); p.selectNodeContents(t);
                    const q = document.createRange(); q.selectNodeContents(t.nextElementSibling);
                    if (p.getBoundingClientRect().right > q.getBoundingClientRect().left) bad.push(t.textContent);
                  }
                  return [seen, bad, document.documentElement.scrollWidth];
                }"""
            )
            assert seen > 60
            assert bad == []
            assert wide <= width
        browser.close()
