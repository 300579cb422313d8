"""Numbers and names as a report writes them."""

from __future__ import annotations

import math

import pytest

from upright.report.text import duration, flatten, interval, lower, metric_title, number, percent, plain, shorten


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.31249, {}, "0.312"),
        (-0.02, {"sign": True}, "−0.020"),
        (0.02, {"sign": True}, "+0.020"),
        (0.0, {"sign": True}, "0.000"),  # catches: "+0.000" for no change
        (-0.0, {}, "0.000"),  # catches: a minus before zero
        (0.0003, {}, "0.0003"),  # catches: a small effect printed as none
        (-0.00036, {"sign": True}, "−0.0004"),
        (3.1e-15, {}, "3.1e−15"),
        (math.nan, {}, "undefined"),
        (-math.inf, {}, "−∞"),
        (69500, {}, "69\N{NARROW NO-BREAK SPACE}500"),
        (12345.678, {}, "12\N{NARROW NO-BREAK SPACE}345.7"),
        (0.5, {"plain": True}, "0.5"),
        (2.0, {"plain": True}, "2"),
        (True, {}, "True"),
    ],
)
def test_numbers(value, options, text):
    assert number(value, **options) == text


def test_intervals_have_words_between_their_ends():
    # catches: "-0.1--0.2"
    assert interval(-0.1, 0.2) == "−0.100 to 0.200"
    assert interval(-0.1, 0.2, sign=True) == "−0.100 to +0.200"
    assert interval(math.nan, 0.2) == "undefined"


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("ndcg@10", "NDCG@10"),
        ("ndcg@20_matched5", "NDCG@20, 5 positives a user"),
        ("ndcg@10_sampled", "NDCG@10, sampled candidates"),
        ("recall@10", "Recall@10"),
        ("accuracy", "Accuracy"),
        ("gini_exposure@10", "Gini exposure@10"),
    ],
)
def test_metric_names(metric, title):
    assert metric_title(metric) == title


def test_small_words():
    # catches: a name that loses its capitals in a sentence, a unit that jumps
    titles = ("No remedy", "In-UCDS", "LLM judge", "Pull to zero")
    assert [lower(x) for x in titles] == ["no remedy", "In-UCDS", "LLM judge", "pull to zero"]
    assert [duration(x) for x in (3.24, 267.4, 7380.0, None)] == ["3.2 s", "4 min 27 s", "2 h 03 min", "not recorded"]
    assert percent(0.95) == "95\N{NARROW NO-BREAK SPACE}%"
    assert shorten("x" * 50, 10) == "x" * 9 + "…"
    assert [plain(x) for x in (None, True, 0.001, [1, 2], [])] == ["none", "yes", "0.001", "1, 2", "(empty)"]
    assert flatten({"a": {"b": 1, "c": {}}, "d": 2}) == {"a.b": 1, "a.c": {}, "d": 2}
