"""What of a study is shared: nothing that tells a person's private attribute."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

import studies
from upright.evidence.units import Units, read_units
from upright.experiment.folders import read_json
from upright.experiment.runner import Ask, compare_runs, execute

publish_runs = studies.publish_runs


def test_a_published_study_keeps_no_class_of_a_person(tmp_path):
    # catches a class beside a user, an attacker's score, exact class means, and users in the order of the data
    settings = {"attribute": "community", "folds": 3, "epochs": 3, "defence_epochs": 2, "attackers": "logistic"}
    run = execute(
        Ask("raid", data="synthetic", preset="quick", settings=settings, arms=["none", "raid"]), folder=tmp_path / "s0"
    )
    whole = compare_runs([run], tmp_path / "comparison")
    target = publish_runs("study", [run], whole, tmp_path / "results", {"command": "x"}, ("attribute", "attack/"))
    kept, own = Units(read_units(target / "units.parquet")), Units(read_units(run / "units.parquet"))
    assert not kept.by
    assert not [m for m in kept.metrics if m.startswith("attack")]
    assert set(own.by) == {"attribute"}
    a, b = kept.values("none", "ndcg@10")[0], own.values("none", "ndcg@10")[0]
    assert not np.array_equal(a, b, equal_nan=True)  # another order
    np.testing.assert_array_equal(np.sort(a), np.sort(b))
    order = [np.lexsort([u.values(arm, "ndcg@10")[0] for arm in ("raid", "none")]) for u in (kept, own)]
    for arm in ("none", "raid"):  # arms stay paired
        first, second = (u.values(arm, "ndcg@10")[0][o] for u, o in zip((kept, own), order, strict=True))
        np.testing.assert_array_equal(first, second)
    exact = {
        (r["statistic"], r["group"], r["arm"]): r["value"]
        for r in read_json(whole / "comparison.json")["evidence"]["levels"]
    }
    rounded = 0
    for row in read_json(target / "summary.json")["evidence"]["levels"]:
        if row["grouping"] == "attribute" and row["value"] is not None:
            assert row["value"] == round(row["value"], 3)
            rounded += exact[row["statistic"], row["group"], row["arm"]] != row["value"]
    assert rounded > 3


def test_a_study_of_rows_is_published_as_cells_without_small_ones(tmp_path):
    # catches a row or a group of a person that is passed on, a small cell, counts of few people in a note, and a mean
    # that is not that of the units
    settings = {"clients": 3, "least": 6, "rounds": 4, "local_steps": 2, "global_tol": 0.1}
    run = execute(Ask("fedfact", data="synthetic", settings=settings, arms=["none", "fedfact"]), folder=tmp_path / "s0")
    whole = compare_runs([run], tmp_path / "comparison")
    target = publish_runs(
        "study", [run], whole, tmp_path / "results", {"command": "x"}, cells=("client", "group", "label")
    )
    assert {f.name for f in target.iterdir()} == {"summary.json", "config.json", "environment.json", "cells.parquet"}
    rows = pq.read_table(target / "cells.parquet").to_pylist()
    assert {r["n"] for r in rows if r["n"] is not None and r["n"] < 5} <= {0}
    units = Units(read_units(run / "units.parquet"))
    checked = 0
    for r in rows:
        mask = np.all([units.by[g][0] == r[g] for g in ("client", "group", "label")], axis=0)
        values = units.values(r["arm"], r["metric"])[0][mask]
        values = values[~np.isnan(values)]
        if r["n"]:
            assert len(values) == r["n"]
            assert r["mean"] == pytest.approx(values.mean(), abs=1e-12)
            checked += 1
        else:
            assert r["n"] == 0 or len(values) < 5
    assert checked > 20


def test_a_unit_has_one_number_at_all_seeds_though_seeds_have_other_units(tmp_path, monkeypatch):
    # catches: numbers by place, which make one unit of two records and pair them in the bootstrap
    pytest.importorskip("transformers")
    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path / "cache"))
    settings = {
        "authors": 4,
        "forget_authors": 1,
        "hidden": 16,
        "layers": 1,
        "vocabulary": 320,
        "context": 512,
        "task.epochs": 1,
        "scored_retain": 12,
        "scored_holdout": 4,
        "generate": False,
    }
    runs = [
        execute(
            Ask("mrd", settings=settings | {"most_probes": 1}, seed=s, arms=["original", "retrain"]),
            folder=tmp_path / f"s{s}",
        )
        for s in (0, 1)
    ]
    whole = compare_runs(runs, tmp_path / "comparison")
    target = publish_runs("study", runs, whole, tmp_path / "results", {"command": "x"})
    before = [b for r in runs for b in read_units(r / "units.parquet")]
    number: dict[str, str] = {}
    for shared, own in zip(read_units(target / "units.parquet"), before, strict=True):
        assert (shared.arm, shared.seed) == (own.arm, own.seed)
        for new, unit in zip(shared.scores.unit, own.scores.unit, strict=True):
            assert number.setdefault(str(unit), str(new)) == str(new)
    assert len(set(number.values())) == len(number)
    assert set(before[0].scores.unit) != set(before[-1].scores.unit)
    assert "\n " not in (target / "summary.json").read_text(encoding="utf-8")  # compact
