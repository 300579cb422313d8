"""Audit of ranked lists: numbers against independent computations, gaps, words, and every kind of bad input."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from upright import api
from upright.contract import InputError
from upright.evidence.gate import fail_if
from upright.evidence.units import read_units
from upright.experiment.terminal import last_lines
from upright.metrics.ranking import evaluate_full
from upright.report.build import build_report
from upright.tasks.ranking import RankingConfig, popularity_bins, read_ranking

GOLDEN = Path(__file__).parents[1] / "golden"
METRICS = ("ndcg", "recall", "mrr", "hit")


def write(folder, name, columns, rows):
    lines = [columns, *(",".join(map(str, row)) for row in rows)]
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def audit(folder, **options):
    names = {"held_out": "held", "users": "users", "items": "items"}
    there = {key: folder / f"{name}.csv" for key, name in names.items() if (folder / f"{name}.csv").exists()}
    made = api.audit("ranking", folder / "lists.csv", out=folder / "runs", **({"draws": 20} | there | options)).folder
    scores = read_units(made / "units.parquet")[0].scores
    values = {m: dict(zip(scores.unit, np.asarray(v), strict=True)) for m, v in scores.values.items()}
    return json.loads((made / "summary.json").read_text()), values, made


def level(summary, statistic, group=None):
    (found,) = [x for x in summary["evidence"]["levels"] if (x["statistic"], x["group"]) == (statistic, group)]
    return found


def refused(folder, **options):
    with pytest.raises(InputError) as caught:
        audit(folder, **options)
    assert not (folder / "runs").exists()
    return caught.value


@pytest.fixture
def small(tmp_path):
    """Two users; a: hit at ranks 1 and 3 of 3 wanted; b: nothing found of 1."""
    write(tmp_path, "lists", "user,item,rank", [(u, i, p) for u in "ab" for p, i in enumerate("xyz", start=1)])
    write(tmp_path, "held", "user,item", [("a", "x"), ("a", "z"), ("a", "w"), ("b", "w")])
    return tmp_path


def random_files(folder, seed, kind="rank"):
    """Lists of 3 to 13 of 30 items for 40 users; scores have many ties."""
    rng = np.random.default_rng(seed)
    lists, held = [], []
    scores, want = np.full((40, 30), -np.inf), np.zeros((40, 30), dtype=bool)
    for u in range(40):
        listed = rng.permutation(30)[: rng.integers(3, 14)]
        value = np.arange(len(listed), 0, -1) if kind == "rank" else rng.integers(0, 4, len(listed))
        scores[u, listed] = value
        order = enumerate(zip(listed, value, strict=True), start=1)
        lists += [(f"u{u}", f"i{i}", place if kind == "rank" else v) for place, (i, v) in order]
        liked = rng.choice(30, size=rng.integers(0 if u else 1, 15), replace=False)
        want[u, liked] = True
        held += [(f"u{u}", f"i{i}") for i in liked]
    rng.shuffle(lists)
    write(folder, "lists", f"user,item,{kind}", lists)
    write(folder, "held", "user,item", held)
    return scores, want


# -- numbers ------------------------------------------------------------------------------------------------------


def test_metrics_by_hand(small):
    # catches: a wrong discount, an ideal that ignores k, a recall divided by k
    summary, values, _ = audit(small, k=3)
    assert values["ndcg@3"] == pytest.approx({"a": 1.5 / (1 + 1 / math.log2(3) + 1 / 2), "b": 0.0})
    assert values["recall@3"] == pytest.approx({"a": 2 / 3, "b": 0.0})
    assert values["mrr@3"] == values["hit@3"] == {"a": 1.0, "b": 0.0}
    assert level(summary, "mean:recall@3")["value"] == pytest.approx(1 / 3)
    _, values, _ = audit(small, k=1)
    assert values["ndcg@1"] == {"a": 1.0, "b": 0.0}  # min(k, n) = 1 place in the ideal list
    assert values["recall@1"] == pytest.approx({"a": 1 / 3, "b": 0.0})


@pytest.mark.parametrize("kind", ["rank", "score"])
@pytest.mark.parametrize("k", [1, 4, 10])
def test_equals_the_full_catalogue_evaluation(tmp_path, kind, k):
    # catches: any departure from metrics.ranking with unlisted items at -inf
    scores, want = random_files(tmp_path, 3, kind=kind)
    _, values, _ = audit(tmp_path, k=k)
    none = sparse.csr_array(want.shape, dtype=np.float32)
    full = evaluate_full(lambda u: scores[u], np.arange(len(want)), none, sparse.csr_array(want), ks=(k,))
    assert np.isnan(full[f"ndcg@{k}"]).any()
    for name in METRICS:
        mine = [values[f"{name}@{k}"][f"u{u}"] for u in range(len(want))]
        np.testing.assert_allclose(mine, full[f"{name}@{k}"], atol=1e-12)


def test_a_score_of_minus_infinity_is_never_recommended(tmp_path):
    # catches: a refusal of what masked models write, or a masked item that fills a place of a short list
    scores, _ = random_files(tmp_path, 3, "score")
    said, plain, _ = audit(tmp_path)
    rows = [(f"u{u}", f"i{i}", scores[u, i]) for u in range(40) for i in range(30)]
    write(tmp_path, "lists", "user,item,score", rows)
    more, values, _ = audit(tmp_path)
    for name, own in plain.items():
        assert values[name] == pytest.approx(own, nan_ok=True)
    masked = int(np.isneginf(scores).sum())
    assert set(more["warnings"]) - set(said["warnings"]) == {f"{masked} rows with a score of -inf: never recommended."}


def test_lists_that_hold_training_items_are_named(tmp_path):
    # catches: a model that was not masked, whose lists look bad for another reason than it says
    random_files(tmp_path, 4)
    listed = [line.split(",") for line in (tmp_path / "lists.csv").read_text().split()[1:]]
    mine = [item for user, item, _ in listed if user == "u1"][:2]
    train = [("u1", mine[0]), ("u1", mine[1]), ("u2", "i99"), ("stranger", mine[0])]
    write(tmp_path, "train", "user,item", train)
    said, *_ = audit(tmp_path, train=tmp_path / "train.csv")
    assert [text for text in said["warnings"] if "train.csv" in text] == [
        "1 list hold 2 items that the user had in train.csv: 'u1'. No held-out item can be there: mask them, or "
        "quality is understated."
    ]
    write(tmp_path, "train", "user,item", train[2:])
    assert not [text for text in audit(tmp_path, train=tmp_path / "train.csv")[0]["warnings"] if "train.csv" in text]


def test_tied_items_share_their_places(tmp_path):
    # catches: ties broken by the order of rows in exposure; those in metrics are compared with metrics.ranking above
    scores = {"p": 2, "q": 1, "r": 1, "s": 1, "t": 0}
    write(tmp_path, "lists", "user,item,score", [(u, i, s) for u in "ab" for i, s in scores.items()])
    write(tmp_path, "held", "user,item", [(u, i) for u in "ab" for i in "st"])
    write(tmp_path, "items", "item,bin", [(i, i) for i in "pqrst"])
    share = {row["bin"]: row["share_of_exposure"] for row in audit(tmp_path, k=3)[0]["audit"]["exposure"]}
    assert share == pytest.approx({"p": 1 / 3, "q": 2 / 9, "r": 2 / 9, "s": 2 / 9, "t": 0.0})


def test_order_of_rows_and_kind_of_file_change_nothing(tmp_path):
    # catches: numbers that depend on the file's order, ids that change with the kind of file
    random_files(tmp_path, 5, kind="score")
    first = audit(tmp_path)[0]["evidence"]
    frame = pl.read_csv(tmp_path / "lists.csv")
    frame.write_parquet(tmp_path / "lists.parquet")
    made = api.audit(
        "ranking", tmp_path / "lists.parquet", held_out=tmp_path / "held.csv", out=tmp_path / "r", draws=20
    ).folder
    assert json.loads((made / "summary.json").read_text())["evidence"] == first
    frame.sort("user", "item").write_csv(tmp_path / "lists.csv")
    assert audit(tmp_path)[0]["evidence"] == first


def test_relevant_column(tmp_path):
    # catches: a zero for what is unknown: without a relevant item NDCG is undefined, a miss is still a miss
    rows = [("a", "x", 1, 0), ("a", "y", 2, 1), ("b", "x", 1, 0), ("b", "y", 2, 0)]
    write(tmp_path, "lists", "user,item,rank,relevant", rows)
    summary, values, _ = audit(tmp_path, k=2)
    assert values["ndcg@2"]["a"] == pytest.approx(1 / math.log2(3))
    assert math.isnan(values["ndcg@2"]["b"])
    assert values["hit@2"] == {"a": 1.0, "b": 0.0}
    assert any("unknown" in w for w in summary["warnings"])
    assert level(summary, "mean:ndcg@2")["n_undefined"] == 1
    write(tmp_path, "lists", "user,item,rank,relevant", [row for row in rows if row[3] == 0])
    verdict = audit(tmp_path, k=2)[0]["evidence"]["verdict"]
    assert verdict["sentence"] == "NDCG@2 is undefined for every user."


def test_users_without_a_list(small):
    # catches: users who vanish because the recommender gave them nothing
    with (small / "held.csv").open("a") as f:
        f.write("d,x\n")
    assert refused(small, k=3).got == "1 of 3 users in held.csv have no list in lists.csv: 'd'"
    summary, values, _ = audit(small, k=3, missing="zero")
    assert values["ndcg@3"]["d"] == values["hit@3"]["d"] == 0.0
    assert level(summary, "mean:recall@3")["value"] == pytest.approx((2 / 3) / 3)
    assert summary["audit"]["users_without_list"] == 1


SAID = """
lists | user,item,rank;a,y,1;a,x,4;b,y,1 | mrr@5 | 0.25 | 1 list skip a rank; the places skipped count as misses.
lists | user,item,rank;a,x,1;b,y,1 | hit@5 | 1.0 | k = 5, but 2 of 2 lists are shorter (the shortest has 1 item)
lists | user,item,rank,score;a,x,1,.1;a,w,2,.9;b,y,1,1 | mrr@5 | 1.0 | lists.csv has rank and score; rank orders
lists | user,item,rank;a,y,1;b,x,1 | hit@5 | 0.0 | No list holds any held-out item of its user
held | user,item;a,x;b,x | hit@5 | 1.0 | 1 user of 3 without a held-out item: quality is not defined there.
items | item,count;x,3;y,2;z,1 | hit@5 | 1.0 | 2 held-out rows of items that the file of items lacks
"""


@pytest.mark.parametrize("row", SAID.strip().splitlines(), ids=lambda row: row.split(" | ")[4])
def test_what_is_odd_is_said(small, row):
    # catches: ranks that are closed up, the wrong one of two orders, ids written in two ways, zeros for the unknown
    name, text, metric, value, words = row.split(" | ")
    (small / f"{name}.csv").write_text(text.replace(";", "\n") + "\n")
    if "of 3" in words:
        with (small / "lists.csv").open("a") as f:
            f.write("c,x,1\n")
    summary, values, _ = audit(small, k=5)
    assert values[metric]["a"] == float(value)
    assert any(w.startswith(words) for w in summary["warnings"]), summary["warnings"]
    assert all(math.isnan(values[f"{m}@5"]["c"]) for m in METRICS if "c" in values[metric])


# -- items --------------------------------------------------------------------------------------------------------


def test_exposure_coverage_popularity_and_recall_by_bin(tmp_path):
    # catches: shares of items taken for shares of places, and recall over the wrong denominator
    write(tmp_path, "items", "item,count", [(f"i{i}", 100 - 10 * i) for i in range(10)])
    write(tmp_path, "lists", "user,item,rank", [("a", "i0", 1), ("a", "i1", 2), ("b", "i0", 1), ("b", "i9", 2)])
    write(tmp_path, "held", "user,item", [("a", "i0"), ("a", "i8"), ("b", "i9"), ("b", "i8")])
    summary, values, _ = audit(tmp_path, k=2)
    rows = {row["bin"]: row for row in summary["audit"]["exposure"]}
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
    assert fail_if(summary, 'gini["exposure@2"] > 0.5 and mean["recall@2/tail"] == 0.25')


def test_bins_by_count():
    # catches: wrong borders, and equal counts torn apart
    assert popularity_bins(np.arange(10.0, 0, -1)) == ["head"] * 2 + ["mid"] * 3 + ["tail"] * 5
    tied = popularity_bins(np.array([9.0, 9, 5, 5, 5, 1, 1, 1, 1, 1]))
    assert tied == ["head"] * 2 + ["mid"] * 3 + ["tail"] * 5
    assert set(popularity_bins(np.ones(10))) == {"tail"}


# -- groups -------------------------------------------------------------------------------------------------------


def people(folder, hits, label, popularity=None):
    """Lists of two items, a wanted one on top where there is a hit, else nowhere; a shown item's place is its count."""
    users = [f"u{j}" for j in range(len(hits))]
    shown = [("i0" if hit else "i1") if popularity is None else f"i{popularity[j]}" for j, hit in enumerate(hits)]
    rows = [(u, item, rank) for u, top in zip(users, shown, strict=True) for rank, item in ((1, top), (2, "i98"))]
    write(folder, "lists", "user,item,rank", rows)
    wanted = [top if hit else "i99" for top, hit in zip(shown, hits, strict=True)]
    write(folder, "held", "user,item", zip(users, wanted, strict=True))
    write(folder, "users", "user,group", zip(users, label, strict=True))
    if popularity is not None:
        write(folder, "items", "item,count", [(f"i{i}", i or 1_000) for i in range(100)])


def planted(folder, sizes, rates, popularity=None):
    """Groups a, b, c ... of which an exact share has a hit."""
    hits = np.concatenate([np.arange(n) < round(n * rate) for n, rate in zip(sizes, rates, strict=True)])
    people(folder, hits, np.repeat(list("abcdefgh")[: len(sizes)], sizes), popularity)


@pytest.mark.golden
@pytest.mark.parametrize(("source", "group"), [("audit-ranking", None), ("audit-ranking-plan", "plan")])
def test_levels_are_the_frozen_ones(tmp_path, source, group):
    # catches: a level that changed with the evidence; a gap against all others is the weighted mean of its pairs
    files = {name: GOLDEN / "audits" / f"ranking-{name}.csv" for name in ("lists", "held_out", "users", "items")}
    made = api.audit("ranking", **files, group=group, out=tmp_path, draws=2).folder
    found = json.loads((made / "summary.json").read_text())
    now = {(x["statistic"], x["group"]): x for x in found["evidence"]["levels"]}
    groups = found["audit"]["groups"]

    def against_others(statistic, one):
        parts = statistic.replace("gap", "mean", 1)
        others = {g: now[parts, g]["n_units"] for g in groups if g != one}
        pairs = [now.get((statistic, f"{one} minus {g}")) or now[statistic, f"{g} minus {one}"] for g in others]
        signed = [x["value"] if x["group"].startswith(f"{one} minus") else -x["value"] for x in pairs]
        return np.average(signed, weights=list(others.values()))

    frozen = pl.read_parquet(GOLDEN / "evidence.parquet").filter(pl.col("source").cast(str) == source)
    seen = set()
    for row in frozen.filter(pl.col("statistic").cast(str) != "verdict").iter_rows(named=True):
        name, _, rest = row["statistic"].partition(":")
        if name in ("gap", "abs_gap"):
            value = against_others(f"gap:{rest}", row["group"] or groups[0])
            assert (abs(value) if name == "abs_gap" else value) == pytest.approx(row["value"], abs=1e-9)
            continue
        seen.add((row["statistic"], row["group"]))
        assert now[row["statistic"], row["group"]]["value"] == pytest.approx(row["value"], abs=1e-9)
        assert all(now[row["statistic"], row["group"]][n] == row[n] for n in ("n_units", "n_undefined"))
    pairs = now.keys() - seen
    assert len(pairs) == 5 * len(groups) * (len(groups) - 1) / 2
    assert all(statistic.startswith("gap:") and now[statistic, pair]["value"] >= 0 for statistic, pair in pairs)


def test_two_groups(tmp_path):
    # catches: a wrong sign, a smallest detectable gap that is not adjusted, a banner, page or terminal of another row
    planted(tmp_path, (60, 60), (0.3, 0.8))
    users = (tmp_path / "users.csv").read_text().replace("user,group", "user,age")
    (tmp_path / "users.csv").write_text(f"{users}stranger,a\n")
    summary, _, made = audit(tmp_path, k=2, group="age")
    assert "users.csv names 1 user that the lists do not; ignored." in summary["warnings"]
    gap, verdict = level(summary, "gap:hit@2:age", "b minus a"), summary["evidence"]["verdict"]
    assert (gap["value"], gap["p"]) == (pytest.approx(0.5), 1 / 2_000)
    assert 0.2 < gap["low"] < 0.5 < gap["high"] < 0.7
    error = math.sqrt(0.55 * 0.45 * 2 / 60)  # when labels change places
    assert gap["smallest_detectable"] == pytest.approx(2.8 * error, rel=0.1)
    assert (verdict["word"], verdict["answer"], verdict["works"]) == ("gap shown", "mend it", None)
    assert (verdict["primary"], summary["evidence"]["headline"]["group"]) == ("gap:ndcg@2:age", "b minus a")
    assert verdict["sentence"].startswith("NDCG@2: b minus a is 0.500 [")
    assert last_lines(summary) == ["NDCG@2, a: 0.3000", "NDCG@2, b: 0.8000", "gap shown"]
    page = re.sub(r"<(script|style|svg).*?</\1>|<[^>]+>", " ", build_report(made).read_text(), flags=re.S)
    assert verdict["sentence"] in page
    assert not re.search(r"\b(nan|inf|None|undefined|null)\b", page)


def test_the_smallest_of_three_groups_hides_nothing(tmp_path):
    # catches: raw maxima, in which the noise of six users covers what eight hundred show
    planted(tmp_path, (400, 400, 6), (0.6, 0.45, 0.5))
    evidence = audit(tmp_path, k=2)[0]["evidence"]
    verdict = evidence["verdict"]
    assert (verdict["word"], evidence["headline"]["group"]) == ("gap shown", "a minus b")
    assert "c is too small to judge" in verdict["sentence"]
    assert verdict["next_steps"][-1] == "Collect more users for c."
    pairs = [x for x in evidence["levels"] if x["statistic"] == "gap:ndcg@2:group"]
    assert [x["group"] for x in pairs] == ["a minus b", "a minus c", "c minus b"]  # by T, and none is negative
    assert min(x["value"] for x in pairs) >= 0


def test_the_scale_of_popularity_hides_nothing(tmp_path):
    # catches: one margin, one largest gap and one number of digits for quality and for counts of interactions
    popularity = np.r_[10 + np.arange(400) % 30, 10 + np.arange(400) % 31, 20 + np.arange(6)]
    planted(tmp_path, (400, 400, 6), (0.6, 0.45, 0.5), popularity)
    verdict = audit(tmp_path, k=2)[0]["evidence"]["verdict"]
    assert (verdict["word"], verdict["margin"]) == ("gap shown", 0.01)
    assert "c is too small to judge" in verdict["sentence"]
    planted(tmp_path, (100, 100), (0.8, 0.3), np.repeat([10, 15], 100) + np.arange(200) % 2)
    evidence = audit(tmp_path, k=2)[0]["evidence"]
    assert level({"evidence": evidence}, "gap:popularity@2:group", "b minus a")["p"] == 1 / 2_000  # within its margin
    assert (evidence["verdict"]["word"], evidence["headline"]["metric"]) == ("gap shown", "ndcg@2")


def test_the_same_list_for_everybody(tmp_path):
    # catches: rounding of a metric that is equal for all, which would blow up the critical value of all others
    n = 200
    lists = [(f"u{u}", f"i{i}", i + 1) for u in range(n) for i in range(7)]
    write(tmp_path, "lists", "user,item,rank", lists)
    write(tmp_path, "items", "item,count", [(f"i{i}", 1_000 // (i + 3)) for i in range(60)])
    write(tmp_path, "users", "user,group", [(f"u{u}", "xy"[u % 2]) for u in range(n)])
    write(tmp_path, "held", "user,item", [(f"u{u}", "i0" if u % 20 in (0, 1, 2, 4, 6, 8) else "i50") for u in range(n)])
    summary = audit(tmp_path, k=7)[0]
    assert summary["evidence"]["verdict"]["word"] == "gap shown"
    equal = level(summary, "gap:popularity@7:group", "x minus y")
    assert (equal["value"], equal["low"], equal["high"], equal["p"]) == (0, 0, 0, 1)


def test_equal_users_fire_no_gate(tmp_path):
    # catches: a gap of 1e-14 that sums leave, and a group that is called favoured for it
    lists = [(f"u{u}", f"i{i}", i + 1) for u in range(2_000) for i in range(5)]
    write(tmp_path, "lists", "user,item,rank", lists)
    write(tmp_path, "held", "user,item", [(f"u{u}", f"i{i}") for u in range(2_000) for i in (2, 4, 9)])
    write(tmp_path, "users", "user,group", [(f"u{u}", "x" if u < 613 else "y") for u in range(2_000)])
    summary = audit(tmp_path, k=5)[0]
    verdict = summary["evidence"]["verdict"]
    assert (verdict["word"], verdict["answer"]) == ("none shown", "fine")
    assert "higher" not in verdict["sentence"]
    assert not any(fail_if(summary, text) for text in ("headline != 0", '"headline low" > 0', "shown"))
    assert fail_if(summary, '"headline high" < 0.01')


@pytest.mark.parametrize("seed", range(8))
def test_few_users_keep_their_word(tmp_path, seed):
    # catches: a word that p alone decides, beside an interval that holds 0; a headline that is not the one shown
    rng = np.random.default_rng(seed)
    label = np.repeat(["a", "b"], [5, 55])
    place = np.clip(np.round(10 - 2.5 * (rng.normal(size=60) + 1.5 * (label == "a"))), 1, 20).astype(int)
    lists = [(f"u{u}", "good" if p == place[u] else f"i{p}", p) for u in range(60) for p in range(1, 21)]
    write(tmp_path, "lists", "user,item,rank", lists)
    write(tmp_path, "held", "user,item", [(f"u{u}", "good") for u in range(60)])
    write(tmp_path, "users", "user,group", [(f"u{u}", g) for u, g in enumerate(label)])
    summary = audit(tmp_path, k=20)[0]
    low, word = summary["evidence"]["headline"]["low"], summary["evidence"]["verdict"]["word"]
    assert word == ("gap shown" if low > 0 else "none shown")
    assert fail_if(summary, "shown") == fail_if(summary, '"headline low" > 0') == (low > 0)


@pytest.mark.parametrize("groups", [2, 4])
def test_random_groups_show_nothing(tmp_path, groups):
    # catches: pairs and metrics that are not adjusted for; 40 named streams at 5 %, more than 6 have a chance of 0.3 %
    words = []
    for stream in range(40):
        rng = np.random.default_rng(stream)
        people(tmp_path, rng.random(60) < 0.4, rng.permutation(np.arange(60) % groups), rng.integers(0, 90, 60))
        words.append(audit(tmp_path, k=2, draws=2)[0]["evidence"]["verdict"]["word"])
    assert words.count("gap shown") <= 6
    assert words.count("none shown") >= 34


def test_the_sentence_names_few_pairs(tmp_path):
    # catches: a sentence of forty pairs
    planted(tmp_path, (60,) * 4, (0.9, 0.7, 0.4, 0.1))
    summary = audit(tmp_path, k=2)[0]
    verdict = summary["evidence"]["verdict"]
    shown = [x for x in summary["evidence"]["levels"] if x.get("p") is not None]
    beyond = sum(x["p"] < 0.05 and x["low"] > 0 for x in shown)
    assert beyond > 15
    assert verdict["sentence"].startswith("NDCG@2: a minus d is 0.800 [")
    assert verdict["sentence"].endswith(f" and {beyond - 4} more.")
    assert verdict["sentence"].count(" minus ") == 4
    assert verdict["next_steps"][0].count(" minus ") == 3


def test_gates(tmp_path):
    # catches: a gate that reads another row than the banner; the earlier spelling, where two groups leave one pair
    planted(tmp_path, (60, 60), (0.3, 0.8))
    summary = audit(tmp_path, k=2)[0]
    for text in (
        'headline > 0.05 AND "headline low" > 0.05 AND "headline p" < 0.05 AND shown',
        '"gap:ndcg@2:group=b minus a low" > 0.05 AND "gap:hit@2:group=b minus a detectable" < 0.3',
        'gap["ndcg@2", "b minus a"] == 0.5 and mean["ndcg@2", "a"] < 0.4',
        'gap_low["ndcg@2"] > 0.05 and gap_detectable["ndcg@2"] < 0.3 and abs(gap["ndcg@2"]) == 0.5',
    ):
        assert fail_if(summary, text), text


def test_margins(tmp_path):
    # catches: a margin that is not heeded, or that the command does not repeat
    planted(tmp_path, (60, 60), (0.3, 0.8))
    assert audit(tmp_path, k=2, margins={"": 0.9})[0]["evidence"]["verdict"]["word"] == "none that matters"
    summary, _, made = audit(tmp_path, k=2, margins={"": 0.9, "hit@2": 0.1})
    assert summary["evidence"]["headline"]["metric"] == "hit@2"
    command = json.loads((made / "run.json").read_text())["command"]
    assert command.endswith("--k 2 --margin 0.9 --margin hit@2=0.1 --seed 0")


def test_small_groups_are_left_out(tmp_path):
    # catches: a mean over four people; a fifth without a held-out item or a list does not make the group large enough
    label = np.repeat(["x", "five", "few", "gone"], [60, 5, 5, 5])
    people(tmp_path, np.arange(75) % 3 == 0, label, np.arange(75))
    for name, user in (("held", "u65"), ("lists", "u70")):
        lines = (tmp_path / f"{name}.csv").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.csv").write_text("".join(line for line in lines if not line.startswith(f"{user},")))
    summary = audit(tmp_path, k=2, missing="zero")[0]
    assert (summary["audit"]["groups"], summary["audit"]["suppressed_groups"]) == (["five", "x"], ["few", "gone"])
    groups = {g for x in summary["evidence"]["levels"] for g in (x["group"] or "").split(" minus ")}
    assert groups == {"", "five", "x"}
    assert any("fewer than 5 users" in w and "'few', 'gone'" in w for w in summary["warnings"])
    assert level(summary, "mean:ndcg@2")["n_units"] == 74  # still in the overall mean


def test_one_group_has_no_gap(tmp_path):
    # catches: a gap against nobody, advice on a gap that was never looked for
    planted(tmp_path, (60,), (0.3,))
    summary = audit(tmp_path, k=2)[0]
    assert "1 group to compare; a gap needs two." in summary["warnings"]
    assert summary["evidence"]["headline"] == level(summary, "mean:ndcg@2")
    assert not [x for x in summary["evidence"]["levels"] if x["grouping"]]
    verdict = summary["evidence"]["verdict"]
    assert (verdict["word"], verdict["lines"]["effect"]) == ("measured", verdict["sentence"])
    assert verdict["sentence"].endswith("so no gap is stated.")
    assert verdict["next_steps"] == ["Hand in at least two groups of 5 users to compare them."]


# -- head and tail of the data and of the prior ---------------------------------------------------------------------


def two_by_two(folder, data, prior, users=2000, items=200, seed=5):
    """Lists of ten that hold the wanted item in half of the cases, in fewer where it is tail of data or prior."""
    rng = np.random.default_rng(seed)
    count, known = np.sort(rng.zipf(1.6, items))[::-1] + rng.random(items), rng.normal(size=items)
    tails = [~(x > np.sort(x)[::-1][items // 5]) for x in (count, known)]
    wanted = rng.integers(0, items, users)
    found = rng.random(users) < 0.5 - data * tails[0][wanted] - prior * tails[1][wanted]
    rows = []
    for u, w in enumerate(wanted):
        shown = [i for i in rng.permutation(items)[:11] if i != w][:10]
        shown[0] = w if found[u] else shown[0]
        rows += [(u, i, p) for p, i in enumerate(shown, start=1)]
    write(folder, "lists", "user,item,rank", rows)
    write(folder, "held", "user,item", list(enumerate(wanted)))
    write(folder, "items", "item,count,prior", zip(range(items), count, known, strict=True))


@pytest.mark.parametrize(("data", "prior", "sign"), [(0.25, 0.0, 1), (0.0, 0.25, -1), (0.0, 0.0, 0)])
def test_effects_of_data_and_prior_are_told_apart(tmp_path, data, prior, sign):
    # catches: sides exchanged, cells by user, an effect that holds the other one, a gate without these names
    two_by_two(tmp_path, data, prior)
    summary, _, _ = audit(tmp_path, draws=400)
    effects = [level(summary, f"effect:pair_recall@10:{pair}") for pair in ("popularity~prior", "prior~popularity")]
    for row, true in zip(effects, (data, prior), strict=True):
        assert row["low"] < true < row["high"]
    dominance = level(summary, "dominance:pair_recall@10:popularity~prior")
    assert [dominance["low"] > 0, dominance["high"] < 0] == [sign > 0, sign < 0]
    assert fail_if(summary, '"dominance:pair_recall@10:popularity~prior low" > 0') is (sign > 0)
    assert not [w for w in summary["warnings"] if "model" in w]
    told = summary["evidence"]["verdict"]["lines"]["effects"]
    assert all(f"{row['value']:+.3f}" in told for row in (*effects, dominance))
    cells = summary["audit"]["cells"]
    assert sum(row["items"] for row in cells) == 200
    assert sum(row["share_of_exposure"] for row in cells) == pytest.approx(1.0)


def test_recall_of_a_cell_is_that_of_its_held_out_items(tmp_path):
    two_by_two(tmp_path, 0.2, 0.1, users=400)
    summary, _, _ = audit(tmp_path)
    lists, held, items = (pl.read_csv(tmp_path / f"{name}.csv") for name in ("lists", "held", "items"))
    top = {n: set(items.sort(n, descending=True)["item"][:40].to_list()) for n in ("count", "prior")}
    shown = set(lists.select("user", "item").rows())
    hits = [(u, i) in shown for u, i in held.rows() if i in top["count"] and i not in top["prior"]]
    row = level(summary, "mean:pair_recall@10:cell", "head of data, tail of prior")
    assert (row["value"], row["n_units"]) == (pytest.approx(np.mean(hits)), len(hits))


def test_a_cell_of_few_users_is_not_shown_and_no_effect_is_made_of_it(tmp_path):
    # catches: the value of four people
    two_by_two(tmp_path, 0.0, 0.0, users=40)
    summary, _, _ = audit(tmp_path)
    groups = {x["group"] for x in summary["evidence"]["levels"] if x["statistic"] == "mean:pair_recall@10:cell"}
    assert "head of data, head of prior" not in groups
    assert not [x for x in summary["evidence"]["levels"] if x["statistic"].startswith(("effect", "dominance"))]
    assert any("head of data, head of prior" in w for w in summary["warnings"])


def test_a_model_beside_a_prior_is_not_asked_and_it_is_said(tmp_path):
    two_by_two(tmp_path, 0.2, 0.0, users=400)
    assert [w for w in audit(tmp_path, model="nowhere")[0]["warnings"] if "the model was not asked" in w]


def test_titles_are_scored_by_a_model_which_stays_as_it_is(tmp_path, monkeypatch):
    # catches: a model that is trained, scores in another order, a table of templates that do not agree
    from upright.language import titles
    from upright.models.tiny import tiny_llama, tiny_tokenizer

    monkeypatch.setenv("UPRIGHT_CACHE", str(tmp_path / "cache"))
    two_by_two(tmp_path, 0.2, 0.0, users=400)
    items = pl.read_csv(tmp_path / "items.csv").drop("prior")
    names = [f"film {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(len(items))]
    items.with_columns(title=pl.Series(names)).write_csv(tmp_path / "items.csv")
    tokenizer = tiny_tokenizer([*names, *titles.TEMPLATES])
    model = tiny_llama(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    summary, _, _ = audit(tmp_path, model=str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    agreement = summary["audit"]["prior"]["templates"]
    table = [x for x in summary["evidence"]["levels"] if "pair_recall" in x["statistic"]]
    assert bool(table) is (agreement >= 0.6)
    assert bool(table) or any("rank correlation" in w for w in summary["warnings"])
    written = pl.read_csv(next(tmp_path.rglob("prior.csv")))
    again = dict(zip(names, titles.prior_table(model, tokenizer, names).scores.mean(axis=0), strict=True))
    given = dict(pl.read_csv(tmp_path / "items.csv").select("item", "title").rows())
    np.testing.assert_allclose(written["prior"], [again[given[item]] for item in written["item"]], atol=1e-5)


@pytest.mark.parametrize(
    ("items", "got"),
    [
        ("item,count,prior;x,2,0.5;y,1,inf;z,1,0", "'prior' is 'inf'"),
        ("item,count;x,2;y,1;z,1", "has neither 'prior' nor 'title'"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(small, items, got):
    (small / "items.csv").write_text(items.replace(";", "\n") + "\n")
    assert got in refused(small, model="nowhere").got


# -- folder -------------------------------------------------------------------------------------------------------


def test_folder(small):
    # catches: a folder that lacks a file, names a path, or is made although the input is wrong
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


# -- bad input ----------------------------------------------------------------------------------------------------

GOOD = {
    "lists": "user,item,rank\na,x,1\na,y,2\nb,x,1\n",
    "held": "user,item\na,x\nb,y\n",
    "users": "user,group\na,g\nb,h\n",
    "items": "item,count\nx,2\ny,1\n",
}
BAD = """
lists | usr,item,rank;a,x,1 | no column 'user' | its columns are 'usr', 'item', 'rank' | user='usr'
lists | user,item,rank;a,x,1;b,x,1;a,x,2 | lists.csv line 4: 1 rows repeat an earlier pair of user and item | \
    each pair once | keep one row of each pair
lists | user,item,rank;a,x,1;b,x,1;a,y,1 | lists.csv line 4: rank 1 of user 'a' is taken already | \
    each rank once in a list | number each list
lists | user,item,rank;a,x,-1;b,x,1 | lists.csv line 2: 'rank' is -1 | whole numbers from 1 | correct
lists | user,item,score;a,x,nan;b,x,1 | lists.csv line 2: 'score' is 'nan', not finite | \
    a finite number in every row | correct or delete
lists | user,item,rank;a,x,1;b,q,1 | lists.csv line 3: 1 item not in items.csv: 'q' | \
    listed items that are all in the file of items | with count 0
held | user,item;c,x | no user of held.csv is in lists.csv: 'c' | the same users | write ids alike
held | user,item;a,X;b,Y | no item of held.csv is in lists.csv: 'X', 'Y' against 'x', 'y' | alike in both | brackets
lists | user,item,rank;a,x,0;a,y,1;b,x,1;b,y,2 | lists.csv line 4: 1 lists begin with rank 1, 1 with 0 | alike | from 1
held | user,itm;a,x | held.csv line 1 has no column 'item' | its columns | name them: item='itm'
users | user,group;a,g | users.csv has no group for 1 of 2 users: 'b' | a group for every user | stays empty
users | user,group;a,g;b,h;a,h | users.csv line 4: user 'a' has two groups | one group a user | keep one
users | user,grp,x;a,g,1 | users.csv line 1 has no column 'group' | its columns | name them: group='grp'
users | user,group;a,;b,h | every group of users.csv has fewer than 5 users with a defined value: 'h' | \
    at least one group of 5 such users | join
items | item,cnt;x,1;y,1 | items.csv line 1 has neither 'count' nor 'bin' | besides item | add one of them
items | item,count;x,many;y,1 | items.csv line 2: 'count' is 'many', not a number | a finite number | correct
items | item,count;x,1;y,-1 | items.csv line 3: 'count' is -1 | a number of at least 0 | correct
items | item,count;x,1;y,1;x,2 | items.csv line 4: item 'x' again | each item once | keep one row
users | user,group;a,g;b,h | every group of users.csv has fewer than 5 users with a defined value: 'g', 'h' | \
    at least one group of 5 such users | without users=
held | user,item;a,x | 1 user with a held-out item in held.csv | at least 2 users | more users
lists | user,item,rank,relevant;a,x,1,1;b,y,2,3 | lists.csv line 3: 'relevant' is '3' | 0 or 1 | 
held | user,item,rating;a,x,4;b,y,3 | held.csv lines 2 and 3: relevance is 4 | 0 and 1 | relevant_from=X
"""


@pytest.mark.parametrize("row", BAD.strip().splitlines(), ids=lambda row: row.split(" | ")[2])
def test_bad_files(tmp_path, row):
    # catches: a message that lost its line, its offer or its advice
    name, text, got, accepted, todo = map(str.strip, row.split("|"))
    for one, good in GOOD.items():
        if one != "held" or "relevant" not in text:
            (tmp_path / f"{one}.csv").write_text(text.replace(";", "\n") + "\n" if one == name else good)
    error = refused(tmp_path, k=2)
    assert got in error.got
    assert accepted in error.accepted
    assert todo in error.todo


TREC = {"run": "q1 Q0 d1 1 3.2 t\nq2 Q0 d1 1 3.0 t\n", "qrels": "q1 0 d1 1\nq2 0 d2 1\n"}


@pytest.mark.parametrize(
    ("lists", "held", "words"),
    [
        ("qrels", "run", "{b} --held-out {a}"),
        ("qrels", "qrels", "RUN --held-out {a}"),
        ("run", "run", "{a} --held-out QRELS"),
        ("qrels", None, "RUN --held-out {a}"),
        ("run", "qrels", None),
    ],
)
def test_a_run_is_no_qrels(tmp_path, lists, held, words):
    # catches: judgements audited as lists, in the order of their rows
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text(TREC[lists])
    b.write_text(TREC[held or "run"])
    config = RankingConfig(lists=a, held_out=b if held else None)
    if words is None:
        assert read_ranking(config, seed=0, draws=2, margins={}).data["users"] == 2
        return
    with pytest.raises(InputError) as error:
        read_ranking(config, seed=0, draws=2, margins={})
    assert error.value.todo == "upright audit ranking " + words.format(a=a, b=b)


def test_numbers_are_cut_into_groups(tmp_path):
    # catches: an age a group; a bound on the wrong side
    ages = [20 + i % 60 for i in range(120)]
    write(tmp_path, "lists", "user,item,rank", [(u, i, 1 + (i != "x")) for u in range(120) for i in "xy"])
    write(tmp_path, "held", "user,item", [(u, "xy"[u % 2]) for u in range(120)])
    write(tmp_path, "users", "user,age", enumerate(ages))
    error = refused(tmp_path)
    assert (error.got, error.todo) == (
        "users.csv: 'age' has 60 different values",
        "cut it into ranges: group='age:25,45,65'",
    )
    summary, *_ = audit(tmp_path, group="age:25,45", k=2)
    assert summary["audit"]["groups"] == ["age 25 to 45", "age<25", "age>=45"]
    assert level(summary, "mean:hit@2:group", "age<25")["n_units"] == 10
    assert audit(tmp_path, group="age<25", k=2)[0]["audit"]["groups"] == ["age<25", "age>=25"]


def test_good_files_of_two_users(tmp_path):
    # catches: a table of bad files that are refused for another reason, a bound that is off by one
    for one, good in GOOD.items():
        (tmp_path / f"{one}.csv").write_text(good)
    audit(tmp_path, k=2, users=None)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"k": 0}, "RankingConfig.k = 0"),
        ({"k": True}, "RankingConfig.k = True"),
        ({"draws": 1}, "draws = 1"),
        ({"missing": "drop"}, "missing = 'drop'"),
        ({"group": "age"}, "group 'age' without a file of users"),
        ({"held_out": None}, "no column 'relevant', and no held-out file was given"),
        ({"margins": {"hits@2": 0.1}}, "margins of 'hits@2'"),
    ],
)
def test_bad_options(small, options, got):
    # catches: an option that is taken as it comes
    assert got in refused(small, **options).got


LONG = """
import tempfile
import numpy as np, polars as pl
import upright

rng, users, items = np.random.default_rng(0), 30_000, 40_000
user = np.r_[np.repeat(np.arange(users), 10), np.full(items, users)]
item = np.r_[rng.integers(0, items, (users, 10)).ravel(), np.arange(items)]
rank = np.r_[np.tile(np.arange(1, 11), users), np.arange(1, items + 1)]
lists = pl.DataFrame({"user": user, "item": item, "rank": rank}).unique(["user", "item"], keep="first")
held = lists.filter(pl.col("rank") == 3).select("user", "item")
with tempfile.TemporaryDirectory() as out:
    upright.audit("ranking", lists, held_out=held, out=out, draws=20)
# of this program alone: what getrusage says begins with what its parent held
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) / 2**20)
"""


def test_a_list_of_the_whole_catalogue_beside_short_ones_takes_little_memory():
    # catches: a table of users x the longest list, which took 6.7 GiB here
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1.0  # GiB
