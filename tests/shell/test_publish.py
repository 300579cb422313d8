"""What of a study is shared: nothing that tells a person's private attribute."""

from __future__ import annotations

import numpy as np

from upright.shell.runner import compare_runs, execute
from upright.shell.runs import read_json
from upright.shell.study import publish_runs
from upright.shell.units import Units, read_units


def test_a_published_study_keeps_no_class_of_a_person(tmp_path):
    # catches a class beside a user, an attacker's score, exact class means, and users in the order of the data
    settings = {"attribute": "community", "folds": 3, "epochs": 3, "defence_epochs": 2, "attackers": "logistic"}
    run = execute("raid", data="synthetic", preset="quick", settings=settings, arms=["none", "raid"],
                  folder=tmp_path / "s0")  # fmt: skip
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
