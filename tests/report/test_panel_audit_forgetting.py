"""Panel of an audit of forgetting: what it shows, what a folder may lack, and that a failure looks like one."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("nltk")

from upright.report import build_report
from upright.report.panels import limits_for, panel_for
from upright.report.plots import Canvas
from upright.report.read import read_folder
from upright.shell import audit_forgetting as module
from upright.shell.audit_forgetting import METRICS, NO_REFERENCE, audit_forgetting

RECORDS = [json.dumps({"question": f"What is {i}?", "answer": f"{i} it is", "author": "ABC"[i % 3]}) for i in range(60)]
SIDES = {"forget": RECORDS[:24], "retain": RECORDS[24:40], "holdout": RECORDS[40:]}


def scores(level, rng) -> dict[str, np.ndarray]:
    """Scores of 24 forgotten, 16 retained and 20 held-out records, the forgotten ones at a log-likelihood."""
    loss = np.r_[level + 0.4 * rng.normal(size=24), np.full(16, np.nan), -2.0 + 0.4 * rng.normal(size=20)]
    loss = np.minimum(loss, -0.01)
    sides = np.repeat(["forget", "retain", "holdout"], [24, 16, 20])

    def on(side, values):
        return np.where(sides == side, values, np.nan)

    truth = 1 / (1 + np.exp(-2 - loss + 0.3 * rng.normal(size=60)))
    found = {"forget_probability": on("forget", np.exp(loss)), "holdout_probability": on("holdout", np.exp(loss)),
             "forget_truth_ratio": on("forget", np.minimum(truth, 1 - truth)),
             "forget_truth_probability": on("forget", truth),
             "exact_memorisation": on("forget", np.exp(loss)), "extraction_strength": on("forget", np.exp(3 * loss)),
             "forget_rouge_l": on("forget", np.exp(loss / 2))}  # fmt: skip
    for part in ("probability", "rouge_l", "truth_ratio"):
        found[f"retain_{part}"] = on("retain", rng.uniform(0.4, 0.9, 60))
    return found | {"mia_loss": loss, "mia_min_k": loss * rng.uniform(1, 2, 60)}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that writes the audit of a model at some level, with or without a reference."""
    home = tmp_path_factory.mktemp("audits")
    for side, lines in SIDES.items():
        (home / f"{side}.jsonl").write_text("\n".join(lines))

    def folder(own, other=-2.0):
        rng = np.random.default_rng(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_ask", lambda *_: (scores(own, rng), None if other is None else scores(other, rng)))
            return audit_forgetting("model", **{side: home / f"{side}.jsonl" for side in SIDES}, draws=100, out=home,
                                    reference=None if other is None else "kept")  # fmt: skip

    return folder


def page(folder) -> str:
    return re.sub(r"\s+", " ", build_report(folder).read_text(encoding="utf-8"))


def section(source, name, until) -> str:
    return source[source.index(f'<section id="{name}"') : source.index(f'<section id="{until}"')]


def changed(folder, tmp_path, change):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ("summary.json", "config.json", "run.json"):
        (copy / file).write_bytes((folder / file).read_bytes())
    summary = json.loads((copy / "summary.json").read_text())
    change(summary)
    (copy / "summary.json").write_text(json.dumps(summary))
    return copy


def test_the_panel_shows_what_a_person_reads_first(make):
    # catches: a figure that is lost, a number that is not that of the summary, a reference without its name
    folder = make(-0.3)
    source, summary = page(folder), json.loads((folder / "summary.json").read_text())
    shown = section(source, "panel", "units")
    for title in (
        "What is still known: the probability of answers", "What is still known: by heart and in its own words",
        "Who can tell a forgotten record from an unseen one", "Does the true answer stand out among false ones",
        "What is left of the retained records", "Membership: forgotten against held-out records",
        "Against a model that never saw the records", "By author, numbered in the order of the file: 3",
        "Held-out answers, never seen",
    ):  # fmt: skip
        assert title in shown
    assert shown.count("<figure") == 5
    truth, loss = summary["audit"]["truth"], summary["audit"]["membership"][0]
    assert f"largest distance, D = {truth['distance']:.3f}" in shown
    assert f"{loss['auc']:.3f}" in shown
    assert f"{loss['privleak']:+.1f}".replace("-", "\N{MINUS SIGN}") in shown
    assert "still known" in section(source, "verdict", "asked").lower()
    assert "Retain-only reference" in shown


@pytest.mark.parametrize(("own", "word", "tone"), [(-0.3, "still known", "bad"), (-5.0, "over-unlearned", "bad"),
                                                   (-2.0, "no trace shown", "open")])  # fmt: skip
def test_over_unlearning_looks_like_a_failure(make, own, word, tone):
    # catches: a banner in the colour of success, and an AUC near 0 without a mark
    source = page(make(own))
    banner = section(source, "verdict", "asked")
    assert word in banner.lower()
    assert re.search(rf'class="[^"]*\b{tone}\b', banner)
    shown = section(source, "panel", "units")
    assert ("over-unlearned" in shown) == (word == "over-unlearned")


def test_what_is_not_significant_stands_there_with_its_size(make):
    # catches: a page that says nothing was compared, where a reference was
    source = page(make(-2.0))
    quiet = section(source, "not-significant", "configuration")
    assert "Distances and what chance shows" in quiet
    assert "not told from permuted labels" in quiet
    assert "nothing was compared" not in quiet
    assert "smallest detectable" in quiet


def test_without_a_reference_the_page_says_so(make):
    # catches: empty columns, a curve of nothing, and a claim
    source = page(make(-0.3, None))
    assert NO_REFERENCE in section(source, "verdict", "asked")
    shown = section(source, "panel", "units")
    assert "PrivLeak" not in shown
    assert "largest distance" not in shown
    assert "Against a model that never saw" not in shown
    assert "Does the true answer stand out" in shown
    assert "Forget quality" not in shown


@pytest.mark.parametrize("key", ["membership", "truth", "changes", "authors", "utility"])
def test_a_folder_may_lack_a_part(make, tmp_path, key):
    # catches: a page that needs what an older or smaller audit does not have
    copy = changed(make(-0.3), tmp_path, lambda s: s["audit"].pop(key))
    assert "What is still known" in page(copy)


def test_a_folder_may_lack_everything(make, tmp_path):
    def strip(summary):
        summary["audit"], summary["evidence"]["levels"] = {}, []

    view = read_folder(changed(make(-0.3), tmp_path, strip))
    panel = panel_for("audit_forgetting")
    assert panel is not None
    assert panel(view, Canvas()) == []


def test_limits_stand_on_the_page(make):
    source = page(make(-0.3))
    assert len(limits_for("audit_forgetting")) >= 4
    for limit in limits_for("audit_forgetting"):
        assert limit.replace("'", "&#39;") in source


def test_many_authors_are_folded(make, tmp_path):
    def grow(summary):
        rows = summary["audit"]["authors"]["rows"]
        summary["audit"]["authors"] = {"rows": rows * 5, "authors": 60}

    shown = section(page(changed(make(-0.3), tmp_path, grow)), "panel", "units")
    assert "numbered in the order of the file: 15 of 60" in shown
    assert "<details" in shown


def test_a_metric_of_the_audit_has_a_title():
    # catches: a name with underscores on the page
    assert all(about.title and "_" not in about.title for about in METRICS.values())
