"""Panels: found by method name, and what In-UCDS' panel says."""

from __future__ import annotations

import json
import re

import pytest

from upright.report import build_report
from upright.report.panels import limits_for, panel_for, shows_front


def section(folder) -> str:
    source = build_report(folder).read_text(encoding="utf-8")
    found = source[source.index('id="panel"') : source.index('id="units"')]
    return re.sub(r"\s+", " ", found)


def change_notes(folder, change) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    change(next(arm for arm in summary["arms"] if arm["name"] == "in_ucds")["notes"])
    path.write_text(json.dumps(summary))


@pytest.mark.parametrize("method", ["", "no_such", "../in_ucds", "os.path", "In_UCDS", "__init__"])
def test_a_method_without_a_panel_is_fine(method):
    # catches: a folder's content deciding what is imported; a plugin that cannot have a report
    assert panel_for(method) is None
    assert limits_for(method) == ()
    assert shows_front(method) is False


def test_a_plugin_gets_a_report(sample, tmp_path):
    # catches: a report that needs a panel
    folder = sample.run_folder(tmp_path)
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"method": "in_ucds"', '"method": "somebodys_own"'))
    source = build_report(folder).read_text(encoding="utf-8")
    assert 'id="panel"' not in source
    assert source.count("Quality against gap: NDCG@10</figcaption>") == 1


def test_condition_held_or_not_is_said(sample, tmp_path):
    # catches: alpha below the largest eigenvalue unreported
    folder = sample.run_folder(tmp_path)
    assert "condition α &gt; λ_max holds." in section(folder)
    change_notes(folder, lambda notes: notes.update(condition_holds=False, alpha=0.0011))
    found = section(folder)
    assert "does not hold." in found
    assert "α = 0.0011, λ_max = 9.338" in found
    assert '<li class="bad">' in found


def test_missing_notes_leave_out_their_rows_only(sample, tmp_path):
    # catches: a KeyError, "None" in a table
    folder = sample.run_folder(tmp_path)
    change_notes(folder, lambda notes: [notes.pop(k) for k in ("picks_gini", "cluster_size", "lambda_max", "x_t_min")])
    found = section(folder)
    assert "Gini of picks" not in found
    assert "10th percentile" not in found
    assert "Smallest share" not in found
    assert "five most picked" in found
    assert "None" not in found
    change_notes(folder, dict.clear)
    assert "theorem" not in section(folder)


def test_official_overlap_may_be_null(sample, tmp_path):
    # catches: float(None)
    folder = sample.run_folder(tmp_path)
    change_notes(folder, lambda notes: notes.update(official_overlap=None))
    assert "published code" not in section(folder)


def test_three_protocols_with_null_bands_and_both_levels(sample, tmp_path):
    # catches: one protocol shown as the truth; a gap without the levels behind it
    found = section(sample.run_folder(tmp_path))
    for words in (
        "Full ranking, all test items",
        "Full ranking, 5 test items a user",
        "One test item among sampled ones",
    ):
        assert found.count(words) >= 6  # a heading, and a row for each of five arms
    assert "The gap under three protocols" in found
    assert "With random groups" in found
    assert "Levels of both groups: NDCG@10" in found
    assert found.count("Quality against gap") >= 1


def test_several_seeds_give_median_and_range(sample, tmp_path):
    # catches: the first seed's diagnostics passed off as all
    folder = sample.comparison_folder(tmp_path, seeds=3)
    for seed, alpha in enumerate((12.0, 15.0, 13.0)):
        change_notes(tmp_path / f"2026-01-31-in_ucds-ml100k-s{seed}", lambda notes, a=alpha: notes.update(alpha=a))
    found = section(folder)
    assert "holds in every run." in found
    assert "13 (median; 12 to 15 over seeds)" in found
