"""Intent: what is asked of a page, how much of it, and the same in every process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from zlib import crc32

import numpy as np
import pytest

from make_guard_intent import feature_rows, trained_weights, written_sentences
from upright.contract import InputError
from upright.guard import intent
from upright.guard.intent import Asked, asked_of

COPYING = ("copy", "translate", "paraphrase")
PROSE = "The boat lay at the quay. Rain fell on the roofs of the town. A clerk walked by, and all the bells rang.\n"
TRAPS = {
    "Is this text under copyright?": "question",
    "What does 'verbatim' mean?": "question",
    "Don't copy it, just tell me who wrote it": "metadata",
    "Do not summarise, give me all of it exactly as printed": "copy",
    "Don't forget to copy the whole page.": "copy",
    "C\u043epy the wh\u043ele p\u200bage, w\u043erd for word.": "copy",
    "Schreib mir die ganze Seite Wort f\u00fcr Wort ab.": "copy",
    "Traduce este texto entero al alem\u00e1n.": "translate",
}
ASIDES = [
    "Before I pay somebody to translate it: ",
    "My cousin is copying the page by hand. ",
    "I have already typed all of it out. ",
    "Since nobody here can rewrite it: ",
    "Don't translate it. ",
]
AMOUNTS = [
    ("Quote the first sentence for me, but not more than 20 words of it.", "quote", 20),
    ("Copy the third line for a caption.", "quote", 12),
    ("Quote the first sentence of the whole page.", "quote", 25),
    ("Copy the first twenty-five words exactly.", "quote", 25),
    ("Copy the first 26 words exactly.", "copy", 26),
    ("Copy two hundred and fifty words of it verbatim.", "copy", 250),
    ("Copy at least ten words.", "copy", None),
    ("Leave out the first sentence, then quote evrything that follows up to the end.", "copy", None),
    ("Transcribe it from the first line to the last line.", "copy", None),
    ("Translate the title into French.", "quote", 8),
    ("Translate the page into French, one sentence per line.", "translate", None),
    ("Sum up the whole document in eighty words.", "summary", None),
    *((text, "other", None) for text in ("go on", "continue", "weiter")),
]
HOSTILE = ["", " \n", "???", "\ud800\u200b", "\u7ffb\u8bd1", "xq zvk", "9" * 100_000, "hundred " * 12_500]


def test_sentences_of_one_author_are_read_from_those_of_others():
    # catches: features or weights that learn the sentences by heart and say nothing of a new one
    rows = [row for row in written_sentences() if row[0] in intent.USES]
    others = [row for row in rows if row[1] != "base"]
    weights = trained_weights(others, feature_rows([text for _, _, text in others])) * np.float32(intent.STEP)
    pairs = [
        (use, intent.read_request(intent.clean_words(text), weights=weights).use)
        for use, style, text in rows
        if style == "base"
    ]
    assert np.mean([use == found for use, found in pairs]) >= 0.78
    assert np.mean([found in COPYING for use, found in pairs if use in COPYING]) >= 0.95
    assert np.mean([found in COPYING for use, found in pairs if use not in COPYING]) <= 0.06


def test_no_sentence_that_was_taught_changes_between_copying_and_permitted():
    # catches: an amount, a negation or a hash that turns one of the open queries, or weights of other sentences
    rows = [row for row in written_sentences() if row[0] in intent.USES]
    wrong = [style for use, style, text in rows if (asked_of(text).use in COPYING) != (use in COPYING)]
    assert "base" not in wrong  # the open queries are among these
    assert len(wrong) <= 0.01 * len(rows)


def test_a_text_that_only_speaks_of_copying_asks_for_none():
    # catches: key words in a reason, a negation or a report that count like those of the request
    questions = ("What is it about?", "Who wrote it?", "Is it sad in tone?")
    queries = [ahead + asks for ahead in ASIDES for asks in questions]
    assert [query for query in queries if asked_of(query).use in COPYING] == []
    queries = [ahead + "Type out the whole page." for ahead in ASIDES]
    assert [query for query in queries if asked_of(query).use not in COPYING] == []


@pytest.mark.parametrize(("query", "use", "words"), AMOUNTS)
def test_the_amount_is_read_and_tells_a_quote_from_a_copy(query, use, words):
    # catches: a cap of 26, "all but" and "at least" read as an amount, a title that counts as the page
    assert asked_of(query) == Asked(use, words, asked_of(query).confidence)


@pytest.mark.parametrize(("query", "use"), TRAPS.items())
def test_traps_are_read_by_what_they_ask(query, use):
    # catches: key words that decide alone, a negated request that counts, look-alike letters, English only
    assert asked_of(query).use == use


@pytest.mark.parametrize("request_", ["Copy the whole page word for word.", "Translate the page into French."])
def test_a_request_is_found_on_either_side_of_a_long_page(request_):
    # catches: a request that drowns in the page, or one that is cut off with its middle
    page = PROSE * 60
    assert asked_of(page).use not in COPYING
    assert asked_of(f"{request_}\n\n{page}").use == asked_of(f"{page}\n\n{request_}").use == asked_of(request_).use


def test_another_process_with_other_string_hashes_gives_the_same_answers():
    # catches: the built-in hash or the order of a set in the features
    code = f"from upright.guard.intent import asked_of; print([asked_of(q) for q in {list(TRAPS)!a}])"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr([asked_of(query) for query in TRAPS])


def test_what_is_looked_up_is_what_a_plain_search_finds():
    # catches: a key word whose beginning is no two characters, check sums of letters put together in another order
    groups = "|".join(f"(?P<{name}>{words})" for name, words in intent._GROUPS.items())
    for *_, text in written_sentences():
        cleaned = intent.clean_words(text)
        plain = re.finditer(rf"\b(?:{groups})", cleaned)
        assert list(intent._keys(cleaned)) == [(found.start(), found.lastgroup) for found in plain]
        sums = [crc32(cleaned[i : i + n].encode()) for n in (3, 4, 5) for i in range(len(cleaned) - n + 1)]
        assert intent._grams(cleaned).tolist() == sums


@pytest.mark.parametrize("query", HOSTILE)
def test_empty_unknown_and_hostile_text_is_other(query):
    # catches: an empty array, a lone surrogate, a number without end, confidence in what nobody taught
    found = asked_of(query)
    assert (found.use, found.words, 0 < found.confidence <= 0.1) == ("other", None, True)


@pytest.mark.parametrize("part", ["no the ", "a line ", "copy, ", "\n.", "e\u0301", "the first 9 "])
def test_the_middle_of_a_long_text_is_not_read(part):
    # catches: work that grows with the text
    assert asked_of(part * 100_000) == asked_of((part * 100_000)[:2000] + "\n" + (part * 100_000)[-2000:])


def test_a_query_that_is_no_text_is_refused():
    # catches: a traceback of the regular expressions
    with pytest.raises(InputError) as error:
        asked_of(b"copy it")  # type: ignore[arg-type]
    assert error.value.args == ("a query of type bytes", "a text", "pass the words of the user")
