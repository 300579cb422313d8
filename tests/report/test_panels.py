"""Panels: found by method name, and what In-UCDS' panel says."""

from __future__ import annotations

import pytest

from upright.report.evidence import FRONT
from upright.report.panels import limits_for, panel_for, shows_front


@pytest.mark.parametrize("method", ["", "no_such", "../in_ucds", "os.path", "In_UCDS", "__init__"])
def test_a_method_without_a_panel_is_fine(method):
    # catches: a folder's content deciding what is imported; a plugin that cannot have a report
    assert panel_for(method) is None
    assert limits_for(method) == ()
    assert shows_front(method) is False


def test_a_plugin_gets_a_report(sample, tmp_path):
    # catches: a report that needs a panel; a front that knows the names of statistics
    folder = sample.edit(sample.run_folder(tmp_path), lambda s: s.update(method="somebodys_own"))
    source = sample.page(folder)
    assert 'id="panel"' not in source
    assert sample.titles(source).count(FRONT) == 1


def test_condition_held_or_not_is_said(sample, tmp_path):
    # catches: alpha below the largest eigenvalue unreported
    folder = sample.run_folder(tmp_path)
    assert "condition α > λ_max holds." in sample.section(folder)
    found = sample.section(sample.edit(folder, sample.noting("in_ucds", condition_holds=False, alpha=0.0011)))
    assert "does not hold." in found
    assert "α = 0.0011, λ_max = 9.338" in found
    assert '<li class="bad">' in found


def test_missing_notes_leave_out_their_rows_only(sample, tmp_path):
    # catches: a KeyError, "None" in a table, float(None)
    folder = sample.run_folder(tmp_path)
    gone = dict.fromkeys(("picks_gini", "cluster_size", "lambda_max", "x_t_min"))
    found = sample.section(sample.edit(folder, sample.noting("in_ucds", **gone)))
    assert not any(words in found for words in ("Gini of picks", "10th percentile", "Smallest share", "None"))
    assert "five most picked" in found
    sample.edit(folder, lambda s: s["arms"][1]["notes"].update(official_overlap=None))
    assert "published code" not in sample.section(folder)
    sample.edit(folder, lambda s: s["arms"][1]["notes"].clear())
    assert "theorem" not in sample.section(folder)


def test_three_protocols_with_null_bands_and_both_levels(sample, tmp_path):
    # catches: one protocol shown as the truth; a gap without the levels behind it
    found = sample.section(sample.run_folder(tmp_path))
    gaps = sample.table(found, "The gap under three protocols")
    kinds = ("Full ranking, all test items", "Full ranking, 5 test items a user", "One test item among sampled ones")
    for kind in kinds:
        assert [row[0][0] for row in gaps].count(kind) == len(sample.ARMS)
    assert {row[3][0] for row in gaps} == {"−0.059 to 0.061"}  # with random groups
    assert sample.titles(found) == ["Levels of both groups: NDCG@10", FRONT, "The gap under three protocols"]


def test_several_seeds_give_median_and_range(sample, tmp_path):
    # catches: the first seed's diagnostics passed off as all
    folder = sample.comparison_folder(tmp_path, seeds=3)
    for seed, alpha in enumerate((12.0, 15.0, 13.0)):
        sample.edit(tmp_path / f"2026-01-31-in_ucds-ml100k-s{seed}", sample.noting("in_ucds", alpha=alpha))
    found = sample.section(folder)
    assert "holds in every run." in found
    assert "13 (median; 12 to 15 over seeds)" in found
