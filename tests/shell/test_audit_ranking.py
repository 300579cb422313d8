"""Audit of ranked lists: numbers against independent computations, every kind of bad input by its message."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from upright.contract import InputError
from upright.metrics.ranking import evaluate_full
from upright.shell.audit_ranking import audit_ranking
from upright.shell.gates import fail_if
from upright.shell.units import read_units

ROOT = Path(__file__).parents[2]


def write(path, columns, rows):
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def audit(folder, **options):
    options.setdefault("draws", 50)
    if (folder / "held.csv").exists():
        options.setdefault("held_out", folder / "held.csv")
    for name in ("users", "items"):
        if (folder / f"{name}.csv").exists():
            options.setdefault(name, folder / f"{name}.csv")
    made = audit_ranking(folder / "lists.csv", out=folder / "runs", **options)
    block = read_units(made / "units.parquet")[0]
    values = {m: dict(zip(block.scores.unit, np.asarray(v), strict=True)) for m, v in block.scores.values.items()}
    return json.loads((made / "summary.json").read_text()), values, made


def level(summary, statistic, group=None):
    (found,) = [x for x in summary["evidence"]["levels"] if x["statistic"] == statistic and x["group"] == group]
    return found


@pytest.fixture
def small(tmp_path):
    """Two users; a: hit at ranks 1 and 3 of 3 wanted; b: nothing found of 1."""
    write(tmp_path / "lists.csv", ["user", "item", "rank"],
          [("a", "x", 1), ("a", "y", 2), ("a", "z", 3), ("b", "x", 1), ("b", "y", 2), ("b", "z", 3)])  # fmt: skip
    write(tmp_path / "held.csv", ["user", "item"], [("a", "x"), ("a", "z"), ("a", "w"), ("b", "w")])
    return tmp_path


def random_files(folder, seed, n_users=40, n_items=30, kind="rank", per_group=None):
    rng = np.random.default_rng(seed)
    lists, held = [], []
    scores = np.full((n_users, n_items), -np.inf)
    want = np.zeros((n_users, n_items), dtype=bool)
    for u in range(n_users):
        listed = rng.permutation(n_items)[: rng.integers(3, 14)]
        value = np.arange(len(listed), 0, -1) if kind == "rank" else rng.integers(0, 4, len(listed))
        scores[u, listed] = value
        for place, (i, v) in enumerate(zip(listed, value, strict=True), start=1):
            lists.append((f"u{u}", f"i{i}", place if kind == "rank" else v))
        liked = rng.choice(n_items, size=rng.integers(0 if u else 1, 15), replace=False)
        want[u, liked] = True
        held += [(f"u{u}", f"i{i}") for i in liked]
    rng.shuffle(lists)
    write(folder / "lists.csv", ["user", "item", kind], lists)
    write(folder / "held.csv", ["user", "item"], held)
    return scores, want


# -- numbers ------------------------------------------------------------------------------------------------------


def test_metrics_by_hand(small):
    """Catches a wrong discount, an ideal that ignores k, a recall divided by k."""
    summary, values, _ = audit(small, k=3)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert values["ndcg@3"] == pytest.approx({"a": 1.5 / ideal, "b": 0.0})
    assert values["recall@3"] == pytest.approx({"a": 2 / 3, "b": 0.0})
    assert values["mrr@3"] == {"a": 1.0, "b": 0.0}
    assert values["hit@3"] == {"a": 1.0, "b": 0.0}
    _, values, _ = audit(small, k=1)
    assert values["ndcg@1"] == {"a": 1.0, "b": 0.0}  # min(k, n) = 1 place in the ideal list
    assert values["recall@1"] == pytest.approx({"a": 1 / 3, "b": 0.0})
    assert level(summary, "mean:recall@3")["value"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["rank", "score"])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_equals_the_full_catalogue_evaluation(tmp_path, kind, k):
    """Catches any departure from metrics.ranking with unlisted items at -inf; scores have many ties."""
    scores, want = random_files(tmp_path, 3, kind=kind)
    _, values, _ = audit(tmp_path, k=k)
    none = sparse.csr_array(want.shape, dtype=np.float32)
    full = evaluate_full(lambda u: scores[u], np.arange(len(want)), none, sparse.csr_array(want), ks=(k,))
    assert np.isnan(full[f"ndcg@{k}"]).any()
    for name in ("ndcg", "recall", "mrr", "hit"):
        mine = [values[f"{name}@{k}"][f"u{u}"] for u in range(len(want))]
        np.testing.assert_allclose(mine, full[f"{name}@{k}"], atol=1e-12)


def test_ties_are_the_mean_over_permutations(tmp_path):
    """Catches ties broken by the order of rows, in metrics and in exposure."""
    rows = [("a", i, s) for i, s in (("p", 2), ("q", 1), ("r", 1), ("s", 1), ("t", 0))]
    rows += [("b", *rest) for _, *rest in rows]
    write(tmp_path / "lists.csv", ["user", "item", "score"], rows)
    write(tmp_path / "held.csv", ["user", "item"], [(u, i) for u in "ab" for i in "st"])
    write(tmp_path / "items.csv", ["item", "bin"], [(i, i) for i in "pqrst"])
    summary, values, _ = audit(tmp_path, k=3)
    dcg, mrr, hits = [], [], []
    for order in itertools.permutations("qrs"):
        top = ["p", *order][:3]
        places = [p for p, i in enumerate(top, start=1) if i in "st"]
        dcg.append(sum(1 / math.log2(p + 1) for p in places))
        mrr.append(1 / places[0] if places else 0)
        hits.append(len(places))
    assert values["ndcg@3"]["a"] == pytest.approx(np.mean(dcg) / (1 + 1 / math.log2(3)))
    assert values["mrr@3"]["a"] == pytest.approx(np.mean(mrr))
    assert values["recall@3"]["a"] == pytest.approx(np.mean(hits) / 2)
    share = {row["bin"]: row["share_of_exposure"] for row in summary["exposure"]}
    assert share == pytest.approx({"p": 1 / 3, "q": 2 / 9, "r": 2 / 9, "s": 2 / 9, "t": 0.0})


def test_skipped_ranks_are_misses(small):
    """Catches ranks that are closed up, which would lift an item."""
    write(small / "lists.csv", ["user", "item", "rank"], [("a", "y", 1), ("a", "x", 4), ("b", "y", 1)])
    summary, values, _ = audit(small, k=5)
    assert values["mrr@5"]["a"] == 0.25
    assert "1 list skip a rank; the places skipped count as misses." in summary["warnings"]


def test_row_order_changes_nothing(tmp_path):
    """Catches numbers that depend on the file's order."""
    random_files(tmp_path, 5, kind="score")
    first = audit(tmp_path)[0]
    header, *rows = (tmp_path / "lists.csv").read_text().splitlines()
    (tmp_path / "lists.csv").write_text("\n".join([header, *sorted(rows)]) + "\n")
    second = audit(tmp_path)[0]
    for one in (first, second):
        one["data"].pop("fingerprint")
    assert first == second


def test_parquet_equals_csv(tmp_path):
    """Catches ids that change with the kind of file."""
    random_files(tmp_path, 6)
    first = audit(tmp_path)[0]
    pl.read_csv(tmp_path / "lists.csv").write_parquet(tmp_path / "lists.parquet")
    made = audit_ranking(tmp_path / "lists.parquet", held_out=tmp_path / "held.csv", out=tmp_path / "r", draws=50)
    second = json.loads((made / "summary.json").read_text())
    assert first["evidence"] == second["evidence"]


def test_relevant_column(tmp_path):
    """Catches a zero for what is unknown: without a relevant item NDCG is undefined, a miss is still a miss."""
    write(tmp_path / "lists.csv", ["user", "item", "rank", "relevant"],
          [("a", "x", 1, 0), ("a", "y", 2, 1), ("b", "x", 1, 0), ("b", "y", 2, 0)])  # fmt: skip
    summary, values, _ = audit(tmp_path, k=2)
    assert values["ndcg@2"]["a"] == pytest.approx(1 / math.log2(3))
    assert math.isnan(values["ndcg@2"]["b"])
    assert values["hit@2"] == {"a": 1.0, "b": 0.0}
    assert any("unknown" in w for w in summary["warnings"])
    assert level(summary, "mean:ndcg@2")["n_undefined"] == 1


def test_user_without_held_out_is_undefined_and_said(small):
    """Catches zeros for users about whom nothing is known."""
    with (small / "lists.csv").open("a") as f:
        f.write("c,x,1\n")
    summary, values, _ = audit(small, k=3)
    assert all(math.isnan(values[m]["c"]) for m in ("ndcg@3", "recall@3", "mrr@3", "hit@3"))
    assert "1 user of 3 without a held-out item: no metric is defined there." in summary["warnings"]
    assert summary["audit"]["users_without_held_out"] == 1


def test_users_without_a_list(small):
    """Catches users who vanish because the recommender gave them nothing."""
    with (small / "held.csv").open("a") as f:
        f.write("d,x\n")
    with pytest.raises(InputError) as caught:
        audit(small, k=3)
    assert caught.value.got == "1 of 3 users in held.csv have no list in lists.csv: 'd'"
    summary, values, _ = audit(small, k=3, missing="zero")
    assert values["ndcg@3"]["d"] == values["hit@3"]["d"] == 0.0
    assert level(summary, "mean:recall@3")["value"] == pytest.approx((2 / 3) / 3)
    assert summary["audit"]["users_without_list"] == 1


# -- items --------------------------------------------------------------------------------------------------------


def test_exposure_coverage_popularity_and_recall_by_bin(tmp_path):
    """Catches shares of items taken for shares of places, and recall over the wrong denominator."""
    write(tmp_path / "items.csv", ["item", "count"], [(f"i{i}", 100 - 10 * i) for i in range(10)])
    write(tmp_path / "lists.csv", ["user", "item", "rank"],
          [("a", "i0", 1), ("a", "i1", 2), ("b", "i0", 1), ("b", "i9", 2)])  # fmt: skip
    write(tmp_path / "held.csv", ["user", "item"], [("a", "i0"), ("a", "i8"), ("b", "i9"), ("b", "i8")])
    summary, values, _ = audit(tmp_path, k=2)
    rows = {row["bin"]: row for row in summary["exposure"]}
    assert list(rows) == ["head", "mid", "tail"]
    assert [rows[b]["items"] for b in rows] == [2, 3, 5]
    assert [rows[b]["share_of_exposure"] for b in rows] == [0.75, 0.0, 0.25]
    assert [rows[b]["coverage"] for b in rows] == pytest.approx([1.0, 0.0, 0.2])
    assert rows["head"]["gini"] == pytest.approx(1 / 6)  # appearances 2 and 1: |2 - 1| / (2 * 3)
    assert 0 <= rows["head"]["low"] <= 0.75 <= rows["head"]["high"] <= 1
    totals = summary["arms"][0]["totals"]
    assert totals["coverage@2"] == pytest.approx(0.3)
    assert totals["popularity@2"] == pytest.approx((100 + 90 + 100 + 10) / 4)
    assert values["recall@2/tail"] == {"a": 0.0, "b": 0.5}
    assert values["recall@2/head"]["a"] == 1.0
    assert math.isnan(values["recall@2/head"]["b"])
    assert values["popularity@2"] == {"a": 95.0, "b": 55.0}
    assert fail_if(summary, 'gini["exposure@2"] > 0.5')
    assert fail_if(summary, 'mean["recall@2/tail"] == 0.25')


def test_held_out_items_without_a_count_are_said(small):
    """Catches held-out items dropped in silence."""
    write(small / "items.csv", ["item", "count"], [("x", 3), ("y", 2), ("z", 1)])
    summary, _, _ = audit(small, k=3)
    assert any(w.startswith("2 held-out rows of items that the file of items lacks") for w in summary["warnings"])


# -- groups -------------------------------------------------------------------------------------------------------


def planted(folder, shift, groups=("x", "y"), n=60, seed=0):
    """Groups of n users; in the first a share `shift` more of the users has a hit on top."""
    rng = np.random.default_rng(seed)
    lists, held, users = [], [], []
    for g, name in enumerate(groups):
        for j in range(n):
            u = f"{name}{j}"
            hit = rng.random() < 0.3 + (shift if g == 0 else 0.0)
            lists += [(u, "good" if hit else "bad", 1), (u, "other", 2)]
            held.append((u, "good"))
            users.append((u, name))
    write(folder / "lists.csv", ["user", "item", "rank"], lists)
    write(folder / "held.csv", ["user", "item"], held)
    write(folder / "users.csv", ["user", "group"], users)


def test_two_groups_gap(tmp_path):
    """Catches a wrong sign, a null that contains the planted gap, a missing detectable effect."""
    planted(tmp_path, 0.5)
    summary, values, _ = audit(tmp_path, k=2, draws=400)
    hits = {g: np.mean([v for u, v in values["hit@2"].items() if u[0] == g]) for g in "xy"}
    gap = level(summary, "gap:hit@2:group")
    assert gap["value"] == pytest.approx(hits["x"] - hits["y"])
    assert gap["low"] > 0
    assert gap["null"]["high"] < gap["value"]
    error = math.sqrt(sum(h * (1 - h) / 60 for h in hits.values()))
    assert gap["smallest_detectable"] == pytest.approx(2.8 * error, rel=0.1)
    assert summary["audit"]["gaps"]["hit@2"]["rows"][0]["standard_error"] == pytest.approx(error, rel=0.1)
    assert "outside what random groups show" in summary["evidence"]["verdict"]["sentence"]
    assert summary["evidence"]["verdict"]["works"] is None
    assert fail_if(summary, 'gap_low["hit@2"] > 0 and gap_detectable["hit@2"] < 0.3')
    assert level(summary, "mean:hit@2:group", "y")["value"] == pytest.approx(hits["y"])


def test_many_groups(tmp_path):
    """Catches a largest gap judged by the null of one fixed pair, and groups compared with themselves."""
    planted(tmp_path, 0.5, groups=("x", "y", "z"))
    summary, values, _ = audit(tmp_path, k=2, draws=200)
    found = summary["audit"]["gaps"]["ndcg@2"]
    assert [row["first"] for row in found["rows"]] == ["x", "y", "z"]
    of = {g: [v for u, v in values["ndcg@2"].items() if u[0] == g] for g in "xyz"}
    assert found["rows"][1]["value"] == pytest.approx(np.mean(of["y"]) - np.mean(of["x"] + of["z"]))
    assert found["largest"]["first"] == "x"
    assert found["largest"]["value"] == pytest.approx(np.mean(of["x"]) - min(np.mean(of["y"]), np.mean(of["z"])))
    assert found["largest"]["null"]["expected"] > found["rows"][0]["null"]["expected_abs"]
    verdict = summary["evidence"]["verdict"]
    assert verdict["sentence"].startswith("Largest of the gaps in NDCG@2 among 3 groups: x minus ")
    assert "that is outside" in verdict["sentence"]
    assert level(summary, "gap:ndcg@2:group", "x")["low"] > 0
    assert fail_if(summary, 'gap["ndcg@2", "x"] > 0.1')


def test_largest_gap_of_random_groups_is_inside(tmp_path):
    """Catches a selection effect: among many random groups some pair always differs."""
    planted(tmp_path, 0.0, groups=tuple("pqrstuvw"), n=15, seed=4)
    summary, _, _ = audit(tmp_path, k=2, draws=100)
    largest = summary["audit"]["gaps"]["ndcg@2"]["largest"]
    assert largest["value"] > 0.1
    assert "that is inside" in summary["evidence"]["verdict"]["sentence"]


def test_small_group_is_suppressed(tmp_path):
    """Catches a mean over four people, and a null that counts them."""
    planted(tmp_path, 0.4)
    for name, rows in {
        "users": [f"s{j},few" for j in range(5)],
        "lists": [f"s{j},good,1" for j in range(5)],
        "held": [f"s{j},good" for j in range(1, 5)],  # the fifth has none and does not make the group large enough
    }.items():
        with (tmp_path / f"{name}.csv").open("a") as f:
            f.write("\n".join(rows) + "\n")
    summary, _, _ = audit(tmp_path, k=2)
    assert summary["audit"]["suppressed_groups"] == ["few"]
    assert not [x for x in summary["evidence"]["levels"] if x["group"] in ("few", "")]
    assert any("fewer than 5 users" in w and "'few'" in w for w in summary["warnings"])
    assert level(summary, "mean:ndcg@2")["n_units"] == 124  # still in the overall mean
    gap = level(summary, "gap:ndcg@2:group")
    assert gap["null"] == summary["audit"]["gaps"]["ndcg@2"]["rows"][0]["null"]


def test_one_group_has_no_gap(tmp_path):
    """Catches a gap against nobody."""
    planted(tmp_path, 0.0, groups=("x",))
    summary, _, _ = audit(tmp_path, k=2)
    assert "1 group to compare; a gap needs two." in summary["warnings"]
    assert not [x for x in summary["evidence"]["levels"] if "gap" in x["statistic"]]
    assert summary["evidence"]["verdict"]["sentence"].endswith("so no gap is stated.")


def test_undefined_for_everybody_is_said(tmp_path):
    """Catches a sentence about NaN."""
    write(tmp_path / "lists.csv", ["user", "item", "rank", "relevant"], [("a", "x", 1, 0), ("b", "x", 1, 0)])
    summary, values, _ = audit(tmp_path, k=2)
    assert summary["evidence"]["verdict"]["sentence"] == "NDCG@2 is undefined for every user."
    assert values["hit@2"] == {"a": 0.0, "b": 0.0}


def test_other_group_column_and_extra_users(tmp_path):
    """Catches a fixed column name, and users of the groups file dropped in silence."""
    planted(tmp_path, 0.0)
    rows = [line.split(",") for line in (tmp_path / "users.csv").read_text().splitlines()[1:]]
    write(tmp_path / "users.csv", ["user", "age"], [*rows, ("stranger", "x")])
    summary, _, _ = audit(tmp_path, k=2, group="age")
    assert "users.csv names 1 user that the lists do not; ignored." in summary["warnings"]
    assert level(summary, "gap:ndcg@2:age")


# -- folder -------------------------------------------------------------------------------------------------------


def test_folder(small):
    """Catches a folder that lacks a file, names a path, or is made although the input is wrong."""
    summary, _, made = audit(small, k=3)
    assert {p.name for p in made.iterdir()} >= {"summary.json", "units.parquet", "config.json", "run.json"}
    assert summary["kind"] == "audit"
    assert summary["evidence"]["differences"] == []
    assert str(small) not in (made / "summary.json").read_text() + (made / "run.json").read_text()
    run = json.loads((made / "run.json").read_text())
    assert run["status"] == "done"
    assert run["command"] == "upright audit ranking lists.csv --held-out held.csv --k 3 --seed 0"
    before = sorted(p.name for p in made.parent.iterdir())
    (small / "held.csv").write_text("user,item\nnobody,x\n")
    with pytest.raises(InputError):
        audit(small)
    assert sorted(p.name for p in made.parent.iterdir()) == before


def test_short_lists_are_said(small):
    """Catches a list that ends before k taken for a full one."""
    summary, _, _ = audit(small, k=10)
    assert any(
        w.startswith("k = 10, but 2 of 2 lists are shorter (the shortest has 3 items)") for w in summary["warnings"]
    )


def test_no_common_item_is_said(small):
    """Catches ids written in two ways, which look like a recommender that never hits."""
    write(small / "held.csv", ["user", "item"], [("a", "X"), ("b", "Y")])
    summary, _, _ = audit(small, k=3)
    assert any(w.startswith("No list holds any held-out item") for w in summary["warnings"])


def test_rank_before_score(small):
    """Catches the wrong one of two orders, taken in silence."""
    write(
        small / "lists.csv",
        ["user", "item", "rank", "score"],
        [("a", "x", 1, 0.1), ("a", "y", 2, 0.9), ("b", "y", 1, 1)],
    )
    summary, values, _ = audit(small, k=1)
    assert values["hit@1"]["a"] == 1.0
    assert "lists.csv has rank and score; rank orders the lists and score is not read." in summary["warnings"]


def test_example(capsys):
    """Catches an example that no longer runs."""
    runpy.run_path(str(ROOT / "examples" / "audit_ranking.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "outside what random groups show" in printed
    assert "head: " in printed


# -- bad input ----------------------------------------------------------------------------------------------------

GOOD = {
    "lists": "user,item,rank\na,x,1\na,y,2\nb,x,1\n",
    "held": "user,item\na,x\nb,y\n",
    "users": "user,group\na,g\nb,h\n",
    "items": "item,count\nx,2\ny,1\n",
}


@pytest.mark.parametrize(
    ("name", "text", "got", "accepted", "todo"),
    [
        ("lists", "", "lists.csv is empty", "a header line", "check how it was exported"),
        ("lists", "user,item,rank\n", "lists.csv has a header and no rows", "one interaction a row", "check how"),
        ("lists", "usr,item,rank\na,x,1\n", "no column 'user' (for 'user' the closest is 'usr')",
         "its columns are 'usr', 'item', 'rank'", "rename the columns of the file"),
        ("lists", "user,item,ranks\na,x,1\n", "line 1 has neither 'rank' nor 'score'", "rank (1 is the top) or score",
         "rename 'ranks' to 'rank'"),
        ("lists", "user,item,zzz\na,x,1\n", "line 1 has neither", "rank (1", "add a column 'rank' or 'score'"),
        ("lists", "user,item,rank\na,x,1\nb,x,1\na,x,2\n",
         "lists.csv line 4: 1 rows repeat an earlier pair of user and item", "each pair once",
         "keep one row of each pair"),
        ("lists", "user,item,rank\na,x,1\nb,x,1\na,y,1\n", "lists.csv line 4: rank 1 of user 'a' is taken already",
         "each rank once in a list", "number each list"),
        ("lists", "user,item,rank\na,x,0\nb,x,1\n", "lists.csv line 2: 'rank' is 0", "whole numbers from 1 on",
         "add 1 to every rank"),
        ("lists", "user,item,rank\na,x,-3\nb,x,1.5\n", "lists.csv lines 2 and 3: 'rank' is -3", "whole numbers",
         "correct those rows"),
        ("lists", "user,item,score\na,x,nan\nb,x,1\n", "lists.csv line 2: 'score' is 'nan', not finite",
         "a finite number in every row", "correct or delete"),
        ("lists", "user,item,score\na,x,\nb,x,1\n", "lists.csv line 2: 1 missing 'score'", "a finite number",
         "correct"),
        ("lists", "user,item,rank\n,x,1\nb,x,1\n", "lists.csv line 2: 1 missing 'user'", "an id in every row",
         "fill in"),
        ("lists", "user,item,rank\na,x,1\nb,q,1\n", "lists.csv line 3: 1 item not in items.csv: 'q'",
         "listed items that are all in the file of items", "with count 0"),
        ("held", "user,item\nc,x\n", "no user of held.csv is in lists.csv: 'c'", "the same users", "write ids alike"),
        ("held", "user,itm\na,x\n", "held.csv line 1 has no column 'item'", "its columns", "rename the columns"),
        ("held", "user,item\na,x\na,x\n", "held.csv line 3: 1 rows repeat", "each pair once", "keep one row"),
        ("users", "user,group\na,g\n", "users.csv has no group for 1 of 2 users: 'b'", "a group for every user",
         "'unknown'"),
        ("users", "user,group\na,g\nb,h\na,h\n", "users.csv line 4: user 'a' has two groups", "one group a user",
         "keep one"),
        ("users", "user,grp\na,g\n", "users.csv line 1 has no column 'group' (for 'group' the closest is 'grp')",
         "its columns", "rename the columns"),
        ("users", "user,group\na,\nb,h\n", "users.csv line 2: 1 missing 'group'", "in every row", "fill in"),
        ("items", "item,cnt\nx,1\ny,1\n", "items.csv line 1 has neither 'count' nor 'bin'", "besides item",
         "rename 'cnt' to 'count'"),
        ("items", "item,count\nx,many\ny,1\n", "items.csv line 2: 'count' is 'many'", "a number of at least 0",
         "correct those rows"),
        ("items", "item,count\nx,1\ny,-1\n", "items.csv line 3: 'count' is '-1'", "a number of at least 0", "correct"),
        ("items", "item,count\nx,1\ny,1\nx,2\n", "items.csv line 4: item 'x' again", "each item once", "keep one row"),
        ("items", "item,bin\nx,p\ny,p\nx,q\n", "items.csv line 4: item 'x' again", "each item once", "keep one row"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, name, text, got, accepted, todo):
    """Catches a message that lost its line, its offer or its advice."""
    for one, good in GOOD.items():
        (tmp_path / f"{one}.csv").write_text(text if one == name else good)
    with pytest.raises(InputError) as caught:
        audit(tmp_path, k=2)
    assert got in caught.value.got
    assert accepted in caught.value.accepted
    assert todo in caught.value.todo


def test_good_files_are_good(tmp_path):
    """Catches a table of bad files that are refused for another reason; groups of one user are refused last."""
    for one, good in GOOD.items():
        (tmp_path / f"{one}.csv").write_text(good)
    with pytest.raises(InputError, match="every group of users"):
        audit(tmp_path, k=2)
    audit(tmp_path, k=2, users=None)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": True}, "k = True"),
        ({"missing": "drop"}, "missing = 'drop'"),
        ({"group": "age"}, "group 'age' without a file of users"),
        ({"held_out": None}, "no column 'relevant', and no held-out file was given"),
    ],
)
def test_bad_options(small, options, got):
    """Catches an option that is taken as it comes."""
    with pytest.raises(InputError) as caught:
        audit(small, **options)
    assert got in caught.value.got


def test_bad_relevant(tmp_path):
    """Catches graded relevance read as yes."""
    write(tmp_path / "lists.csv", ["user", "item", "rank", "relevant"], [("a", "x", 1, 1), ("a", "y", 2, 3)])
    with pytest.raises(InputError) as caught:
        audit(tmp_path)
    assert caught.value.got == "lists.csv line 3: 'relevant' is 3"
