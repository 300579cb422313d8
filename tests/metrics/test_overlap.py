"""Runs, shares, refusals and French, against counting by hand and answers that people labelled."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.contract import InputError
from upright.metrics.overlap import copied, is_french, is_refusal, longest_run, words_of

ANSWERS = [json.loads(line) for line in (Path(__file__).parents[1] / "guard/answers.jsonl").read_text().splitlines()]
FRENCH = {f"a{n:03}" for n in (37, 63, 66, 72, 83, 88, 93, 100, 102, 109, 143, 153, 160, 171, 186, 192)}  # read by hand
TEXTS = st.lists(st.sampled_from(["the", "lamp", "was", "lit"]), max_size=25).map(" ".join)


def every_run(answer: list[str], page: list[str]) -> int:
    """Try every pair of starts."""
    return max(
        (
            next((n for n in range(25) if answer[i : i + n + 1] != page[j : j + n + 1] or i + n >= len(answer)), 25)
            for i in range(len(answer))
            for j in range(len(page))
        ),
        default=0,
    )


@given(TEXTS, TEXTS)
def test_the_longest_run_is_what_trying_every_pair_of_starts_finds(answer: str, page: str) -> None:
    # catches: a run that goes on over a word in between, or is cut where a word stands twice
    assert longest_run(answer, page) == longest_run(page, answer) == every_run(answer.split(), page.split())


@given(st.integers(1, 40), TEXTS)
def test_a_run_does_not_depend_on_case_accents_signs_or_what_stands_around_it(n: int, around: str) -> None:
    # catches: a longer run by one, an accent or a zero-width letter that hides a copy
    page = " ".join(f"mot{i}é" for i in range(60))
    copy = "; ".join(f"M\u200bOT{i}E\u0301" for i in range(10, 10 + n))
    assert longest_run(f"{around}. {copy}! {around}", page) == n


def test_words_of_a_script_without_spaces_are_four_letters_long() -> None:
    # catches: a page of Chinese that counts as one word, so that no run passes the cap
    assert words_of("春眠不觉晓处处 and ﬁre") == ["春眠不觉", "晓处处", "and", "fire"]


def test_the_share_is_in_order_and_undefined_without_words() -> None:
    # catches: an order that does not matter; 0 or 1 for a page that has no words
    assert copied("c b a", "a b c") == pytest.approx(1 / 3)
    assert copied("x a y b", "a b c d") == 0.5
    assert math.isnan(copied("a", "..."))


def test_what_is_no_text_is_refused_in_three_parts() -> None:
    # catches: a traceback from inside for an answer that is None
    with pytest.raises(InputError) as told:
        longest_run(None, "a page")  # type: ignore[arg-type]
    assert str(told.value) == "a text of type NoneType\n  accepted: a text\n  to do:    decode it first"


@pytest.mark.parametrize(("half", "least"), [(0, (1.0, 1.0)), (1, (0.86, 0.64))], ids=["written on", "held out"])
def test_the_rule_for_refusals_agrees_with_labels_as_its_docstring_says(half: int, least: tuple[float, float]) -> None:
    # catches: a rule that was changed and no longer measured; the docstring has the numbers of the half held out
    rows = [row for row in ANSWERS if int(row["id"][1:]) % 2 == half]
    found = [is_refusal(row["answer"]) for row in rows]
    right = sum(one and row["refused"] for one, row in zip(found, rows, strict=True))
    precision, recall = right / sum(found), right / sum(row["refused"] for row in rows)
    assert len(rows) == 100
    assert (math.floor(100 * precision) / 100, math.floor(100 * recall) / 100) == least
    if half:
        assert f"precision is {least[0]} and recall {least[1]}" in " ".join(str(is_refusal.__doc__).split())


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("This is a registered work: to copy it is not permitted here. A summary or answers about it are.", True),
        ("This request has a part that cannot be read (messages[0]), and unread parts are refused here.", True),
        ("I'm sorry, but I can\u2019t assist with that.", True),
        ("The sign said \u201cI cannot help you.\u201d", False),
        ("I cannot copy it, but here is a summary: a boy finds a lamp and sells it to his aunt.", False),
        ("", False),
    ],
)
def test_a_guard_that_declines_is_a_refusal_and_a_quotation_is_none(answer: str, refused: bool) -> None:
    # catches: our own guard counted as complying; a copied line of dialogue counted as a refusal
    assert is_refusal(answer) is refused


def test_the_french_answers_among_those_that_were_labelled_are_found() -> None:
    # catches: "a", "on" and "me", which both languages have, deciding for French; names, or four words, as a text
    assert {row["id"] for row in ANSWERS if is_french(row["answer"])} == FRENCH
    assert not is_french("Je ne sais pas")
    assert not is_french(
        "Lyon Bordeaux Paris Marseille Lille la Ciotat Nantes Brest Tours Nice Dijon Metz Pau Sens Foix"
    )


@pytest.mark.parametrize("between", ["", "-", "\u200b"])
def test_a_page_whose_spaces_were_left_out_is_a_run_of_its_letters(between: str) -> None:
    # catches: a page that is copied whole as one word, and counts as nothing
    page = " ".join(f"word{i}is said but once" for i in range(60))
    joined = between.join(page.split()) if between != "-" else "".join(page.split())
    letters = len("".join(words_of(page)))
    assert longest_run(f"Here: {joined}.", page) >= letters // 8 - 1
    assert longest_run(joined[:150], page) <= 150 // 8  # a short piece is not looked for
