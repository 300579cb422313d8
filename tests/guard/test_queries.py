"""Queries about a page and labelled answers: counts, distinct wording, slots and lengths."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from string import Formatter

from upright.guard.queries import COPYING, OPEN, PERMITTED

QUERIES = [query for uses in (COPYING, PERMITTED) for queries in uses.values() for query in queries]


def test_each_use_has_its_number_and_a_half_is_held_out():
    # catches: a query lost, a use of two names, nothing open or nothing held out
    assert [*map(len, COPYING.values()), *map(len, PERMITTED.values())] == [10] * 4 + [5] * 6
    assert len(OPEN) == 10
    assert dict(OPEN) == dict.fromkeys(COPYING, 5) | dict.fromkeys(PERMITTED, 3)


def test_no_query_is_another_one_in_disguise():
    # catches: a held-out query that differs from an open one by a comma or a capital
    grams = [{text[at : at + 8] for at in range(len(text) - 7)} for text in map(str.casefold, QUERIES)]
    assert max(len(one & other) / len(one | other) for one, other in combinations(grams, 2)) <= 0.5


def test_every_query_fits_any_page():
    # catches: a slot that nobody fills, a question without its slot, a query cut off or far too long
    for query in QUERIES:
        slots = {name for _, name, _, _ in Formatter().parse(query) if name is not None}
        assert (slots, 4 <= len(query.split()) <= 40) == ({"word"} if query in PERMITTED["question"] else set(), True)


def test_labelled_answers_are_two_hundred_and_both_labels_are_common():
    # catches: a line lost or labelled twice, a label that is no truth value, a rule measured on one label alone
    rows = [*map(json.loads, Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines())]
    assert len({row["id"] for row in rows}) == len({(row["query"], row["answer"]) for row in rows}) == len(rows) == 200
    assert all(type(row["refused"]) is bool and 3 <= len(row["answer"].split()) <= 120 for row in rows)
    assert 80 <= sum(row["refused"] for row in rows) <= 120
