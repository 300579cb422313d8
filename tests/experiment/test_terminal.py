"""What the terminal shows of the evidence: the right numbers, aligned, short."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from upright.experiment.terminal import levels_table, paragraphs, table


def level(arm, statistic, value, group=None, n=30, grouping=None):
    return {
        "arm": arm,
        "statistic": statistic,
        "metric": statistic.split(":")[1],
        "group": group,
        "grouping": grouping,
        "value": value,
        "low": None if value is None else value - 0.01,
        "high": None if value is None else value + 0.02,
        "n_units": n,
    }


def run_summary(arms=("none", "remedy"), primary="abs_gap:m@10:g", cost="mean:m@10", **verdict):
    values = {"mean:m@10": 0.5, "abs_gap:m@10:g": 0.1, "mean:other": 0.9}
    levels = [level(a, s, v + 0.01 * i) for s, v in values.items() for i, a in enumerate(arms)]
    return {
        "arms": [{"name": a} for a in arms],
        "evidence": {
            "levels": levels,
            "unit_kind": "user",
            "verdict": {"primary": primary, "cost_statistic": cost} | verdict,
        },
    }


def audit_summary(groups):
    levels = [level("yours", "mean:ndcg@10", 0.3, n=100), level("yours", "mean:recall@10", 0.7, n=100)]
    levels += [level("yours", "mean:ndcg@10:age", 0.1 + i / 100, g, 7 + i, "age") for i, g in enumerate(groups)]
    levels += [level("yours", "gap:ndcg@10:age", 0.2, g, 7, "age") for g in groups]
    return {"kind": "audit", "evidence": {"levels": levels, "unit_kind": "user", "verdict": {}}}


def test_an_audit_shows_all_units_and_each_group():
    # catches another metric's numbers, a group's interval on the wrong line, and gaps mixed with levels
    assert levels_table(audit_summary(["old", "young"])).splitlines() == [
        "users      mean ndcg@10               n",
        "all        0.3000 [0.2900, 0.3200]  100",
        "age old    0.1000 [0.0900, 0.1200]    7",
        "age young  0.1100 [0.1000, 0.1300]    8",
    ]


def test_an_audit_shows_the_metric_that_decides():
    # catches a table of one metric above a sentence on another
    summary = audit_summary(["old", "young"])
    summary["evidence"]["verdict"]["primary"] = "gap:recall@10:age"
    assert levels_table(summary).splitlines() == [
        "users  mean recall@10             n",
        "all    0.7000 [0.6900, 0.7200]  100",
    ]


def test_names_of_any_script_stand_in_columns():
    # catches columns counted in letters (a letter of Chinese fills two), and a long name that breaks every row
    lines = levels_table(audit_summary(["old", "中文组", "w" * 300])).splitlines()
    assert len({cell_len(line) for line in lines}) == 1
    assert cell_len(lines[0]) < 100
    assert "…" in lines[-1]


def test_a_run_shows_arms_by_primary_and_cost():
    # catches columns in the wrong order, an arm's numbers on another's line, and metrics that do not decide
    assert levels_table(run_summary()).splitlines() == [
        "arm     abs_gap m@10             mean m@10                 n",
        "none    0.1000 [0.0900, 0.1200]  0.5000 [0.4900, 0.5200]  30",
        "remedy  0.1100 [0.1000, 0.1300]  0.5100 [0.5000, 0.5300]  30",
    ]


def test_columns_of_other_units_have_their_own_numbers():
    # catches: the number of retained answers beside the accuracy of pairs
    summary = run_summary()
    for row in summary["evidence"]["levels"]:
        row["n_units"] = 116 if row["statistic"].startswith("abs_gap") else 66
    assert [line.split()[-1] for line in levels_table(summary).splitlines()[1:]] == ["116/66", "116/66"]


def test_without_a_verdict_the_gap_and_the_first_level_are_shown():
    # catches a KeyError where there was nothing to compare
    summary = run_summary()
    summary["evidence"]["verdict"] = {"sentence": "nothing to compare"}
    assert levels_table(summary) == levels_table(run_summary())
    assert levels_table({"arms": [], "evidence": {"levels": [], "verdict": {}}}) == ""


def test_a_primary_statistic_of_one_group_is_found():
    # catches `name:metric:grouping=group`, the way a declaration names one group, taken for an unknown statistic
    summary = run_summary(primary="mean:m@10:g=b")
    summary["evidence"]["levels"] += [level(a, "mean:m@10:g", 0.7, g) for a in ("none", "remedy") for g in "ab"]
    assert "mean m@10, b" in levels_table(summary).splitlines()[0]
    assert "mean m@10, a" not in levels_table(summary).splitlines()[0]


def test_undefined_is_said():
    # catches "nan" or "None" among numbers, and an arm without a level that is passed over
    summary = run_summary(arms=("none", "remedy", "extra"))
    summary["evidence"]["levels"] = [
        x | {"value": None, "low": None, "high": None} if x["arm"] == "none" else x
        for x in summary["evidence"]["levels"]
        if x["arm"] != "extra"
    ]
    rows = {line.split()[0]: line.split()[1:] for line in levels_table(summary).splitlines()}
    assert rows["none"] == ["undefined", "undefined", "30"]
    assert rows["extra"] == ["undefined", "undefined", "0"]
    assert "nan" not in levels_table(summary).lower()


@pytest.mark.parametrize("n", [13, 14, 15, 60])
def test_no_table_has_more_than_fifteen_lines(n):
    # catches a screen full of groups, and lines left out in silence
    lines = levels_table(audit_summary([f"g{i:02}" for i in range(n)])).splitlines()
    assert len(lines) <= 15
    whole = n + 2
    shown = len(lines) if whole <= 15 else 14
    assert (lines[-1] == f"and {whole - shown} more in the report") == (whole > 15)


def test_many_groups_of_a_primary_statistic_fit_the_width_and_keep_the_cost():
    # catches rows that the terminal breaks, and a cost that gives way to the gain
    summary = run_summary(primary="mean:m@10:g")
    summary["evidence"]["levels"] += [level(a, "mean:m@10:g", 0.7, g) for a in ("none", "remedy") for g in "abcdef"]
    for width in (80, 120):
        lines = levels_table(summary, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert re.search(r"  mean m@10 +n$", lines[0])
        assert "mean m@10, a" in lines[0]
    assert len(levels_table(summary, width=120)) > len(levels_table(summary, width=80))


words = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(words, st.lists(words, max_size=20).map(" ".join)), max_size=5), st.integers(50, 120))
def test_a_table_keeps_its_words_and_its_width(rows, width):
    # catches a last column that is cut, and one that runs past the edge
    given_rows = [{"name": a.strip() or "x", "text": b.strip()} for a, b in rows]
    text = table(given_rows, ["name", "text"], width)
    assert max(map(len, text.splitlines())) <= width
    assert sorted(text.split()) == sorted(
        " ".join(["name text", *(f"{r['name']} {r['text']}" for r in given_rows)]).split()
    )


def test_a_table_for_a_file_breaks_no_line():
    # catches breaks in what another program reads line by line
    rows = [{"name": "a", "text": "word " * 60}]
    assert len(table(rows, ["name", "text"]).splitlines()) == 2
    assert len(table(rows, ["name", "text"], 80).splitlines()) > 2


def test_paragraphs_break_between_words_and_never_in_a_path():
    # catches a path that cannot be copied, and an empty line that vanishes
    path = "folder: " + "/".join(["a-long-name"] * 12)
    text = paragraphs(["one two three", "", path], 10)
    assert text.splitlines() == ["one two", "three", "", "folder:", path.removeprefix("folder: ")]
    assert paragraphs(["a" * 99, "b"]) == "a" * 99 + "\nb"
