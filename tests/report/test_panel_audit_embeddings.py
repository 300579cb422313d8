"""Panel of an audit of user vectors: what it shows, what a folder may lack, and that it names nobody."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from upright.report import build_report
from upright.report.panels import limits_for
from upright.shell.audit_embeddings import audit_embeddings

CLASSES = ("woman", "man", "neither")


def made(folder, n=120, classes=CLASSES):
    rng = np.random.default_rng(0)
    code = rng.permutation(np.arange(n) % len(classes))
    x = rng.normal(size=(n, 4))
    x[:, 0] += 2.0 * code
    np.save(folder / "emb.npy", x)
    rows = [f"somebody{i:04d},{classes[c]},{i % 2}" for i, c in enumerate(code)]
    (folder / "labels.csv").write_text("\n".join(["user,gender,fitted", *rows]) + "\n")
    return audit_embeddings(
        folder / "emb.npy",
        folder / "labels.csv",
        attribute="gender",
        aligned="fitted",
        out=folder / "audits",
        attackers=("logistic", "gbdt"),
        folds=3,
        draws=50,
        repeats=2,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made(tmp_path_factory.mktemp("audit"))


def page(folder) -> str:
    return re.sub(r"\s+", " ", build_report(folder).read_text(encoding="utf-8"))


def panel(folder) -> str:
    source = page(folder)
    return source[source.index('<section id="panel"') : source.index('<section id="units"')]


def changed(folder, tmp_path, change):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ("summary.json", "config.json", "run.json"):
        (copy / file).write_bytes((folder / file).read_bytes())
    summary = json.loads((copy / "summary.json").read_text())
    change(summary)
    (copy / "summary.json").write_text(json.dumps(summary))
    return copy


class _Tags(HTMLParser):
    """Elements that are open when the page ends, or closed without having been opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass


def test_the_page_opens(folder):
    # catches a page that is cut off or whose elements do not close, and one that loads something
    source = build_report(folder).read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(re.sub(r"<script>.*?</script>|<style>.*?</style>", "", source, flags=re.S))
    assert tags.open == []
    assert tags.wrong == []
    assert not re.search(r"(src|href)=\"(?!#|data:)", source)
    assert "nan" not in re.sub(r"<style>.*?</style>|<script>.*?</script>", "", source, flags=re.S).lower().split()


def test_attacks_protocols_curve_and_classes_are_shown(folder):
    # catches a protocol that is hidden, a curve that is not drawn, a class that is left out
    found = panel(folder)
    audit = json.loads((folder / "summary.json").read_text())["audit"]
    assert found.count("<svg") == 1
    for words in ("cross-fitted", "transfer", "known users", "Every attack", "p, adjusted", *CLASSES):
        assert words in found, words
    for row in audit["rows"]:
        assert f"{row['auc']:.3f}" in found
        assert f"{row['leakage']:.3f}" in found
        assert f"AUC of class {row['class']}" in found
    assert [line["n"] for line in audit["curve"]] == [25, 30]
    assert f"{audit['curve'][-1]['auc']:.3f}" in found


def test_nobody_is_named(folder, tmp_path_factory):
    # catches ids or labels per person on the page: a class has 40 or 120 users
    larger = made(tmp_path_factory.mktemp("larger"), n=360)
    for one in (folder, larger):
        build_report(one)
        for file in ("report.html", "summary.json", "run.json", "config.json"):
            assert "somebody" not in (one / file).read_text(encoding="utf-8")
        assert page(one).count("neither") < 40


def test_two_classes_without_aligned_users_and_without_a_leak(folder, tmp_path):
    # catches a column of aligned users with nobody in it, a banner without colour or word, an open result shown as good
    rng = np.random.default_rng(1)
    np.save(tmp_path / "emb.npy", rng.normal(size=(60, 3)))
    (tmp_path / "l.csv").write_text("user,g\n" + "".join(f"u{i},{'fm'[i % 2]}\n" for i in range(60)))
    done = audit_embeddings(
        tmp_path / "emb.npy",
        tmp_path / "l.csv",
        out=tmp_path / "a",
        attackers=("logistic",),
        folds=3,
        draws=50,
        repeats=2,
    )
    found = panel(done)
    assert "Aligned" not in found
    assert "AUC of class" not in found
    assert re.search(r'class="verdict open">.{0,400}none shown', page(done))
    assert re.search(r'class="verdict bad">.{0,400}leak shown', page(folder))


def test_missing_blocks_leave_out_their_part_only(folder, tmp_path):
    # catches a KeyError, "None" or "nan" for what a folder of another version lacks
    copy = changed(folder, tmp_path, lambda s: [s["audit"].pop(k) for k in ("curve", "counts", "p_max")])
    found = panel(copy)
    assert "known users" not in found
    assert "Every attack" in found
    assert "None" not in found


def test_an_audit_without_rows_has_no_panel(folder, tmp_path):
    # catches an empty section
    copy = changed(folder, tmp_path, lambda s: s.update(audit={}))
    assert 'id="panel"' not in page(copy)


def test_small_classes_are_not_counted(folder, tmp_path):
    # catches a count below five, which another tool may have written, on the page
    copy = changed(folder, tmp_path, lambda s: s["audit"]["counts"]["man"].update(scored=3))
    assert "fewer than 5" in panel(copy)


def test_limits_are_those_of_attacks(folder):
    # catches a page that promises privacy
    words = page(folder)
    for limit in ("no formal guarantee", "not tried may do better", "no evidence of privacy"):
        assert limit in words
        assert any(limit in line for line in limits_for("audit_embeddings"))
