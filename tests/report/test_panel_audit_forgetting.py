"""Panel of an audit of forgetting: what it shows, what a folder may lack, and that a failure looks like one."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest

pytest.importorskip("nltk")

from upright.report.panels import limits_for, panel_for
from upright.report.parts import Details, Facts, Figure, Grid, Table
from upright.report.plots import Canvas
from upright.report.read import read_folder
from upright.report.text import number
from upright.report.verdict import verdict_tag
from upright.shell import audit_forgetting as module
from upright.shell.audit_forgetting import METRICS, audit_forgetting

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
    found = {
        "forget_probability": on("forget", np.exp(loss)),
        "holdout_probability": on("holdout", np.exp(loss)),
        "forget_truth_ratio": on("forget", np.minimum(truth, 1 - truth)),
        "forget_truth_probability": on("forget", truth),
        "exact_memorisation": on("forget", np.exp(loss)),
        "extraction_strength": on("forget", np.exp(3 * loss)),
        "forget_rouge_l": on("forget", np.exp(loss / 2)),
    }
    for part in ("probability", "rouge_l", "truth_ratio"):
        found[f"retain_{part}"] = on("retain", rng.uniform(0.4, 0.9, 60))
    return found | {"mia_loss": loss, "mia_min_k": loss * rng.uniform(1, 2, 60)}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that audits a model at some level, with or without a reference, and reads the folder."""
    home = tmp_path_factory.mktemp("audits")
    for side, lines in SIDES.items():
        (home / f"{side}.jsonl").write_text("\n".join(lines))

    @functools.cache
    def read(own, other=-2.0):
        rng = np.random.default_rng(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_ask", lambda *_: (scores(own, rng), None if other is None else scores(other, rng)))
            files, reference = {side: home / f"{side}.jsonl" for side in SIDES}, None if other is None else "kept"
            return read_folder(audit_forgetting("model", **files, draws=100, out=home, reference=reference))

    return read


def blocks(view, **audit):
    """Return what the panel made, and its figures and tables by title, with some of the audit changed."""
    summary = {**view.summary, "audit": {**view.summary["audit"], **audit}}
    made = panel_for("audit_forgetting")(dataclasses.replace(view, summary=summary), Canvas())
    inside = [x for b in made for x in (b.figures if isinstance(b, Grid) else [b])]
    return made, {getattr(x, "caption", getattr(x, "title", "")): x for x in inside}


AUC, WHO = "Who can tell a forgotten record from an unseen one", "Membership: forgotten against held-out records"
TRUE, BESIDE = "Does the true answer stand out among false ones", "Against a model that never saw the records"


def test_the_panel_shows_what_a_person_reads_first(make):
    # catches: a figure that is lost, a number that is not that of a level, a reference without its name
    view = make(-0.3)
    made, found = blocks(view)
    assert [x.title for x in found.values() if isinstance(x, Figure)] == [
        "What is still known: the probability of answers",
        AUC,
        "What is still known: by heart and in its own words",
        TRUE,
        "What is left of the retained records",
    ]
    (own,) = (x for x in view.find("membership:mia_loss") if x.arm == "yours")
    (beyond,) = view.find("beyond:mia_loss")
    row = next(r for r in found[WHO].rows if r[0].text == "Loss")
    assert [c.text for c in row[2:]] == [
        number(own.more["auc"]),
        row[3].text,
        number(view.find("membership:mia_loss")[1].more["auc"]),
        number(beyond.value, sign=True),
        number(beyond.more["privleak"], 1, sign=True),
    ]
    assert row[1].tag.word == beyond.more["state"] == "told apart"
    (distance,) = view.find("ks_distance:forget_truth_probability")
    assert any(f"D = {number(distance.value)}" in key.title for key in found[TRUE].keys)
    assert len(found[BESIDE].rows) == sum(x.name == "beyond" and "mia" not in x.metric for x in view.levels)
    assert [len(x.items) for x in made if isinstance(x, Facts)] == [3]


@pytest.mark.parametrize(
    ("own", "word", "tone"),
    [(-0.3, "still known", "bad"), (-5.0, "over-unlearned", "bad"), (-2.0, "none shown", "open")],
)
def test_over_unlearning_looks_like_a_failure(make, own, word, tone):
    # catches: a banner in the colour of success, and an AUC near 0 without a mark
    view = make(own)
    assert (verdict_tag(view).word, verdict_tag(view).tone) == (word, tone)
    tags = {row[1].tag.word for row in blocks(view)[1][WHO].rows}
    assert ("over-unlearned" in tags) == (word == "over-unlearned")


def test_without_a_reference_the_page_claims_nothing_about_it(make):
    # catches: empty columns, a curve of nothing, and a claim
    made, found = blocks(make(-0.3, None))
    assert [c.title for c in found[WHO].columns] == ["Membership score", "Verdict", "ROC-AUC", "By chance"]
    assert len(found[TRUE].keys) == 1
    assert BESIDE not in found
    assert not [x for x in made if isinstance(x, Facts)]


def test_a_folder_may_lack_parts(make):
    # catches: a page that needs what an older or smaller audit does not have
    view = make(-0.3)
    for key in ("truth", "authors"):
        assert AUC in blocks(view, **{key: None})[1]
    assert blocks(dataclasses.replace(view, levels=()), truth=None, authors=None)[0] == []


def test_limits_and_many_authors(make):
    # catches: a table of authors that buries the rest
    assert len(limits_for("audit_forgetting")) >= 4
    view = make(-0.3)
    rows = view.summary["audit"]["authors"]["rows"]
    assert {r["author"] for r in rows} == {"1", "2", "3"}
    made, _ = blocks(view, authors={"rows": rows * 5, "authors": 60})
    assert isinstance(made[-1], Details)
    assert isinstance(blocks(view)[0][-1], Table)


def test_a_metric_of_the_audit_has_a_title():
    # catches: a name with underscores on the page
    assert all(about.title and "_" not in about.title for about in METRICS.values())
