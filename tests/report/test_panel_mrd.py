"""MRD's panel: every number is that of the evidence or of the table of records, and what is absent is said.

Values of records are made up: harder ones have larger gaps, and seeds draw records of different difficulty.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from upright.contract import InputError, UnitScores
from upright.evidence.compute import evidence
from upright.evidence.statistics import computable
from upright.evidence.units import Block, Units, write_units
from upright.report import build_report
from upright.report.panels import limits_for, panel_for
from upright.report.panels.mrd_plots import bins_of, draw_scores, ranks_within
from upright.report.panels.mrd_units import (
    forgotten,
)
from upright.report.plots import Canvas
from upright.report.read import read_folder
from upright.report.text import number
from upright.shell.registry import load_method
from upright.shell.runner import compare_runs
from upright.shell.study import publish_runs
from upright.tasks.forget import Forget

spec = importlib.util.spec_from_file_location("report_sample", Path(__file__).with_name("sample.py"))
sample = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sample)
page, section, titles, edit = sample.page, sample.section, sample.titles, sample.edit

MEASURES = {"effort": "per token", "effort_sum": "of the whole answer"}
EFFORT = [
    f"{title}, ascending the loss {of}"
    for of in MEASURES.values()
    for title in ("MRD against updates until forgotten", "Rank correlation with updates until forgotten")
]
SCORES = ["MRD of the forgotten records", "Rank correlation of MRD with what is at hand"]
DRIFT = ["Ranking over the scorings", "Concentration of the draws"]
PATH, THIRDS = (
    "What is forgotten against what is kept, by epoch",
    "Distance from the model that never saw them, by third",
)
ALL = [*EFFORT, *SCORES, *DRIFT, PATH, THIRDS]
NAMES = {
    "uniform": "Uniform draws",
    "mrd": "Draws by MRD",
    "length": "Draws by length",
    "hard_first": "Draws by 1 / MRD",
    "original": "No unlearning",
    "retrain": "Taught the kept records alone",
}
SHIFT = {"uniform": 0.10, "mrd": 0.07, "length": 0.09, "hard_first": 0.12, "original": 0.60, "retrain": 0.0}
ARMS = tuple(SHIFT)
FORGET, OTHERS = 24, 10


# -- made-up folders ------------------------------------------------------------------------------------------------


def records(seed: int, *, effort: bool = True) -> dict[str, np.ndarray]:
    """Return what is known of the forgotten records of a seed before any arm trains."""
    rng = np.random.default_rng(100 + seed)
    tokens = rng.integers(5, 40, FORGET).astype(np.float64)
    mrd = np.exp(rng.normal(0.4 * seed, 0.8, FORGET)) * tokens / 20
    before = rng.uniform(0.05, 0.6, FORGET)
    found = {"mrd": mrd, "mrd_per_token": mrd / tokens, "answer_tokens": tokens, "nll_before": before}
    if effort:
        found["effort"] = 12.0 / mrd**0.5 + rng.uniform(0, 2, FORGET)
        found["effort"][np.argsort(mrd)[:3]] = np.nan  # the hardest are not reached
        found["effort_sum"] = 3.0 * mrd**0.3 + rng.uniform(0, 2, FORGET)
    return found


def thirds(mrd: np.ndarray) -> list[str]:
    place = np.argsort(np.argsort(mrd, kind="stable"), kind="stable")
    return [("hard", "middle", "easy")[3 * p // len(mrd)] for p in place]


def scores(arm: str, seed: int, *, effort: bool = True) -> UnitScores:
    """Return the unit table of one arm: forgotten, retained and held-out records."""
    own = records(seed, effort=effort)
    rng = np.random.default_rng(7 * seed + ARMS.index(arm))
    lost = np.full(2 * OTHERS, np.nan)
    gap = SHIFT[arm] * (0.5 + 1.0 / (1.0 + own["mrd"])) * rng.uniform(0.9, 1.1, FORGET)
    level = np.random.default_rng(50 + seed).uniform(0.1, 0.3, FORGET)  # of the reference
    values = {name: np.concatenate([v, lost]) for name, v in own.items()}
    truth = np.clip(level + gap + rng.normal(0, 0.02, FORGET), 0, 1) if arm != "retrain" else level
    values |= {
        "forget_gap": np.concatenate([gap, lost]),
        "forget_probability": np.concatenate([level + gap, lost]),
        "forget_truth_probability": np.concatenate([truth, lost]),
        "extraction_strength": np.concatenate([np.clip(gap, 0, 1), lost]),
    }
    for part in ("probability", "rouge_l", "truth_ratio"):
        kept = 0.8 - SHIFT[arm] / 4 + rng.uniform(-0.1, 0.1, OTHERS)
        values[f"retain_{part}"] = np.concatenate([np.full(FORGET, np.nan), kept, np.full(OTHERS, np.nan)])
    attack = np.concatenate([-1.0 + 2 * gap, np.full(OTHERS, np.nan), rng.normal(-1.0, 0.1, OTHERS)])
    values["mia_loss"] = attack
    sets = ["forget"] * FORGET + ["retain"] * OTHERS + ["holdout"] * OTHERS
    by = {"set": sets, "difficulty": [*thirds(own["mrd"]), *[""] * (2 * OTHERS)]}
    return UnitScores("record", [f"{name}/{seed}-{i}" for i, name in enumerate(sets)], values, by)


def notes(arm: str, seed: int) -> dict:
    scores = {
        "estimator": "antithetic",
        "noise": "gaussian",
        "sigma": "rel:1e-2",
        "probes": 8 + 2 * seed,
        "passes": 37 + 8 * seed,
        "reliability": 0.93 + 0.01 * seed,
        "scaling": 3.96,
        "clamped": 0.002,
    }
    if arm in ("original", "retrain"):
        return {"scores": scores}
    path, weights, ends = [], [], 0.25 + SHIFT[arm]
    for e in range(1, 5):
        path.append({"epoch": e, "forget": 0.8 + (ends - 0.8) * e / 4 + 0.01 * seed, "retain": 0.85 - 0.02 * e})
    for e in (0, 2) if arm in ("mrd", "hard_first") else (0,):
        rank = 1.0 if e == 0 else 0.7 + 0.05 * seed
        size = 16.0 - 2 * e + seed
        weights.append({"epoch": e, "effective_sample_size": size, "records": 32, "rank_correlation": rank})
    return {"scores": scores, "path": path, "weights": weights}


def run_folder(folder: Path, seed: int, *, arms: tuple[str, ...] = ARMS, effort: bool = True) -> Path:
    """Write one run with its table and its evidence."""
    mrd = load_method("mrd")
    blocks = [Block("r", arm, seed, scores(arm, seed, effort=effort)) for arm in arms]
    units, verdict = Units(blocks), {"primary": mrd.primary, "cost": mrd.cost, "title": mrd.title}
    have, metrics = [one for one in mrd.statistics if computable(one, units)], Forget.metrics_of({})
    rows = []
    for arm in (arm for arm in mrd.arms if arm.name in arms):
        row = {"name": arm.name, "role": arm.role, "title": arm.title, "settings": dict(arm.settings)}
        rows.append({**row, "notes": notes(arm.name, seed), "totals": {}})
    found = evidence(units, arms=mrd.arms, statistics=have, metrics=metrics, draws=200, **verdict)
    facts = {"schema": 1, "method": "mrd", "title": mrd.title, "mends": mrd.mends, "seed": seed}
    facts |= {"data": {"name": "TOFU, bundled part", "fingerprint": "c0ffee" * 10}, "deviations": ["D1."]}
    sample.write(folder, "summary.json", {**facts, "warnings": [], "arms": rows, "evidence": found})
    task = {"data": "tofu", "model": "tiny", "authors": 8, "forget_authors": 2}
    resolved = {"method": mrd.config(learning_rate=1e-3, epochs=4).as_dict(), "task": task}
    sample.write(folder, "config.json", {"resolved": resolved, "arm_settings": {}, "preset": "full"})
    status = {"status": "done", "seed": seed, "method": "mrd", "command": "upright run mrd", "environment": {}}
    sample.write(folder, "run.json", {**status, "cpu_s": 1.0, "wall_s": 1.0})
    write_units(folder / "units.parquet", blocks, "test")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Runs s0, s1 and s2, and their comparison x."""
    root = tmp_path_factory.mktemp("mrd")
    compare_runs([run_folder(root / f"s{seed}", seed) for seed in range(3)], root / "x")
    return root


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
    sample.assert_complete(found)
    assert not re.search(r"forget/\d", source)
    assert all(one in source for one in limits_for("mrd"))
    assert all(panel_for(f"mrd_{part}") is None for part in ("scores", "plots", "units"))


def test_one_run_has_no_range_over_seeds(made):
    # catches: "mean and range" of a single number
    found = section(made / "s0")
    assert titles(found) == ALL
    assert "range over seeds" not in found
    assert "over 1 seed" not in found


def test_the_table_is_found_beside_the_comparison_inside_it_and_in_a_published_study(made, tmp_path):
    # catches: runs moved into the comparison lost; seeds counted twice; integers of a published study taken for no set
    want = {(one.arm, one.seed) for one in forgotten(read_folder(made / "x"))}
    assert want == {(arm, seed) for arm in ARMS for seed in range(3)}
    moved = Path(shutil.copytree(made / "x", tmp_path / "x"))
    for seed in range(3):
        shutil.copytree(made / f"s{seed}", moved / f"s{seed}")
    published = publish_runs("y", [made / f"s{s}" for s in range(3)], made / "x", tmp_path, {"command": "c"})
    for place in (moved, published):
        found = forgotten(read_folder(place))
        assert sorted((one.arm, one.seed) for one in found) == sorted(want)
        assert all(len(one.values["mrd"]) == FORGET for one in found)
    assert titles(section(published)) == ALL


@pytest.mark.parametrize(("note", "lost"), [("scores", []), ("weights", DRIFT), ("path", [PATH])])
def test_a_missing_note_drops_its_block_alone(folder, note, lost):
    # catches: a KeyError, an empty plot, a neighbour dropped as well
    edit(folder, lambda s: [arm["notes"].pop(note, None) for arm in s["arms"]])
    found = section(folder)
    assert titles(found) == [t for t in ALL if t not in lost]
    assert ("How records were scored" in found) == (note != "scores")


@pytest.mark.parametrize("note", ["path", "weights"])
def test_a_note_that_is_no_list_of_records_is_refused_in_three_parts(folder, note):
    # catches: a traceback of the reader's, a block drawn from half a note
    edit(folder, lambda s: [arm["notes"].update({note: [{"other": 1}]}) for arm in s["arms"]])
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


@pytest.mark.parametrize("arms", [ARMS, ("uniform", "mrd", "length")])
def test_without_effort_it_is_said_what_is_missing(tmp_path, arms):
    # catches: a KeyError without effort or without the arm retrain; silence about what could not be checked
    found = section(run_folder(tmp_path / "s0", 0, arms=arms, effort=False))
    assert titles(found) == [t for t in ALL if t not in EFFORT]
    assert "Whether MRD predicts effort is not known here" in found
    assert ("this run has none" in found) == ("retrain" not in arms)


# -- effort ---------------------------------------------------------------------------------------------------------


def test_correlations_are_those_of_the_evidence_with_band_and_count(made):
    # catches: the band of another predictor, an arm's own column, a correlation computed anew
    at, source = levels(made / "x"), section(made / "x")
    rows = {
        "mrd": "MRD",
        "mrd_per_token": "MRD per token",
        "answer_tokens": "Answer tokens",
        "nll_before": "Loss per token before",
        "mrd|": "MRD, given answer tokens",
    }
    for (name, title), measure in itertools.product(rows.items(), ("effort", "effort_sum")):
        x, given, _ = name.partition("|")
        want = at[f"rank_correlation:{x}~{measure}" + ("|answer_tokens" if given else ""), None, "mrd"]
        cells = sample.by_name(source, EFFORT[1 if measure == "effort" else 3])[title]
        null = want["null"]
        shown = (f"{number(row['low'], sign=True)} to {number(row['high'], sign=True)}" for row in (want, null))
        assert cells[:3] == [number(want["value"], sign=True), *shown]
        assert cells[3] == str(want["n_units"])
    assert "9 of 72 records, counted at each seed, did not reach" in source
    assert source.count("All 72 records") == 1  # the whole answer was forgotten by all


@pytest.mark.parametrize(
    ("value", "p", "said"),
    [(-0.6, 0.001, "as the score claims"), (0.6, 0.001, "opposite of what"), (-0.6, 0.2, "does not predict effort")],
)
def test_words_follow_sign_and_what_is_shown(folder, value, p, said):
    # catches: a sign read the wrong way round; a claim on the interval or on the point alone
    def change(summary):
        for row in summary["evidence"]["levels"]:
            if row["statistic"] == "rank_correlation:mrd~effort":
                row.update(value=value, low=value - 0.1, high=value + 0.1, p=p)

    found = section(edit(folder, change))
    start = found.index("Ascending the loss per token, one record at a time:")
    words = found[start : found.index("<figure", start)]
    sayings = ("as the score claims", "opposite of what", "does not predict effort")
    assert [one for one in sayings if one in words] == [said]


def test_censored_records_are_counted_by_third(folder):
    # catches: a NaN taken for a number of updates; the censored dropped from the count
    rows = sample.by_name(section(folder), EFFORT[0])
    assert list(rows) == ["Hard", "Middle", "Easy"]
    assert [row[-1] for row in rows.values()] == ["3", "0", "0"]  # the three hardest
    own = records(0)
    hard = np.array(thirds(own["mrd"])) == "hard"
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
    names, cuts = ("hard", "middle", "easy"), np.quantile(scores, [1 / 3, 2 / 3])
    wide = draw_scores(edges, counts, powers, cuts, names, "x", "y", Canvas())
    assert [name for name in names if f">{name}<" in wide] == list(names)
    narrow = np.array([scores.min(), scores.min() * 1.01])
    drawing = draw_scores(edges, counts, powers, narrow, names, "x", "y", Canvas())
    assert [name for name in names if f">{name}<" in drawing] == ["easy"]


def test_how_records_were_scored_is_said_over_seeds_and_doubted_where_due(made, folder):
    # catches: the first seed's facts for all; a ranking that is noise without a word; a ratio of 2 held against 4
    found = section(made / "x")
    for said in ("8 to 12", "37 to 53", "0.930 to 0.950", "3.96", "0.2"):
        assert f"<dd>{said}" in found
    assert "part of the ranking is noise" not in found
    assert "more than curvature" not in found

    def facts(**new):
        edit(folder, lambda s: [arm["notes"]["scores"].update(new) for arm in s["arms"]])
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
    rows = sample.by_name(source, DRIFT[0])
    assert rows == {"0": ["1.000", "17.0", "0.531"], "2": ["0.750", "13.0", "0.406"]}
    assert "0.700 to 0.800" in source


def test_a_single_scoring_is_told_in_words(folder):
    # catches: a curve of one point
    edit(folder, lambda s: [a["notes"].get("weights", [])[1:] and a["notes"]["weights"].pop() for a in s["arms"]])
    found = section(folder)
    assert "Records were scored once" in found
    assert not set(DRIFT) & set(titles(found))


def test_a_ranking_without_a_correlation_leaves_its_plot_out(folder):
    # catches: null of constant scores drawn as 0
    def change(summary):
        for arm in summary["arms"]:
            for row in arm["notes"].get("weights", []):
                row["rank_correlation"] = None

    edit(folder, change)
    assert [t for t in titles(section(folder)) if t in DRIFT] == DRIFT[1:]


def test_paths_are_means_over_seeds_and_ends_are_said(made):
    # catches: kept and forgotten answers exchanged; a model without unlearning given epochs
    source = section(made / "x")
    rows = [[cell[0] for cell in row] for row in sample.table(source, PATH)]
    assert [r[0] for r in rows].count(NAMES["mrd"]) == 4
    last = next(r for r in rows if r[:2] == [NAMES["mrd"], "4"])
    assert float(last[2]) == pytest.approx(0.25 + SHIFT["mrd"] + 0.01, abs=6e-4)  # seeds 0, 1, 2
    assert float(last[3]) == pytest.approx(0.77, abs=6e-4)
    at = levels(made / "x")
    for arm in ("original", "retrain"):
        (row,) = [r for r in rows if r[0] == NAMES[arm]]
        want = [at[f"mean:{side}_probability", None, arm]["value"] for side in ("forget", "retain")]
        assert row[1:] == ["–", *map(number, want)]


# -- thirds -----------------------------------------------------------------------------------------------------------


def test_thirds_are_those_of_the_evidence_for_every_arm(made):
    # catches: thirds in the order of the alphabet; arms that were not unlearned squeezing the plot of the others
    source, at = section(made / "x"), levels(made / "x")
    rows = sample.by_name(source, THIRDS)
    for arm, title in NAMES.items():
        want = [at["mean:forget_gap:difficulty", third, arm]["value"] for third in ("hard", "middle", "easy")]
        assert rows[title] == [number(v) for v in want]
    drawing = re.search(r"<svg viewBox.*?</svg>", sample.figure(source, THIRDS))[0]
    assert f">{NAMES['uniform']}<" in drawing
    assert f">{NAMES['original']}<" not in drawing


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.skipif(not os.path.exists(sample.CHROMIUM), reason="no browser")
def test_no_letter_is_cut_and_no_two_labels_meet(made, tmp_path):
    # catches: values of three thirds over a long title of an arm; names of thirds over one another; a wide page
    sample.assert_readable(build_report(made / "x", tmp_path / "x.html"))
