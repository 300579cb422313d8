"""Fingerprints, their index, and which work a page is of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.guard.passages import (
    INVERSE,
    LAST,
    MASK,
    SHORTEST,
    Fingerprints,
    Index,
    K,
    Match,
    fingerprints,
    matches,
    mix,
    normalise,
)

LETTERS = st.text(st.sampled_from("abcde7\u4e00"), max_size=120)


def generated(number, words=400):
    """Return a text of a vocabulary of 2,000 made-up words."""
    rng = np.random.default_rng([7, number])
    return " ".join("".join(chr(97 + int(c) % 26) for c in str(int(w) ** 5)[:7]) for w in rng.integers(3, 2003, words))


@given(st.text(max_size=40), st.text(max_size=40))
def test_letters_are_reduced_one_by_one(a, b):
    # catches: a chunk that ends inside a letter and changes what is seen
    assert normalise(a + b) == normalise(a) + normalise(b)
    assert normalise(normalise(a)) == normalise(a)


@pytest.mark.parametrize(
    ("written", "letters"),
    [
        ("Stra\u00dfe", "strasse"),
        ("O\u0301 \ufb01n", "ofin"),
        ("\uff21\u0430\u200b\u00ad-b", "aab"),
        ("3\u00bd", "312"),
        ("\u0130\u0131", "ii"),
    ],
)
def test_forms_of_a_letter_are_one(written, letters):
    assert normalise(written) == letters


@given(LETTERS)
def test_a_hash_that_is_moved_on_is_that_of_all_letters_at_once(letters):
    # catches: a stream that looks for other hashes than the index has
    own, value = fingerprints(letters), 0
    seen = {}
    for i, one in enumerate(letters):
        value = ((value - (ord(letters[i - K]) if i >= K else 0)) * INVERSE + ord(one) * LAST) & MASK
        seen[i - K + 1] = mix(value)
    assert own.known == {place: seen[place] for place in own.known}


@given(LETTERS, LETTERS, st.text(st.sampled_from("abcde7"), min_size=SHORTEST, max_size=40), LETTERS, LETTERS)
def test_nineteen_shared_letters_share_a_fingerprint(a, b, shared, c, d):
    # catches: a window off by one
    one, other = fingerprints(a + shared + b), fingerprints(c + shared + d)
    places = range(len(a), len(a) + len(shared) - K + 1)
    inside = {value for place, value in one.known.items() if place in places}
    assert inside & set(other.known.values())


def test_a_short_text_has_one_and_a_shorter_one_none():
    assert len(fingerprints("abcdefghijkl").hashes) == 1
    assert len(fingerprints("abcdefghijk").hashes) == 0
    assert Index.of([(0, fingerprints(""))]).counts(fingerprints(generated(1))) == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=8), LETTERS)
def test_the_index_is_a_table_of_sets(texts, asked):
    # catches: an entry that is searched for on the wrong side, a table of bits that misses one
    own = {i * 1000: fingerprints(text) for i, text in enumerate(texts)}
    index = Index.of(own.items())
    short = {i: {h >> 24 for h in one.hashes.tolist()} for i, one in own.items()}
    query = fingerprints(asked + texts[0])
    expected = {i: len(some & {h >> 24 for h in query.hashes.tolist()}) for i, some in short.items()}
    assert index.counts(query) == {i: n for i, n in expected.items() if n}
    for value in query.hashes.tolist():
        works = [i for i, some in short.items() if value >> 24 in some]
        assert index.works_with(value) == works
        assert index.may_hold(value) or not works


def test_an_index_is_changed_by_a_copy():
    own = {i: fingerprints(normalise(generated(i))) for i in range(6)}
    first = Index.of((i, own[i]) for i in range(4))
    second = first.changed({4: own[4], 1: own[5]}, removed=[2])
    wanted = Index.of([(0, own[0]), (1, own[5]), (3, own[3]), (4, own[4])])
    np.testing.assert_array_equal(second.entries, wanted.entries)
    assert 2 in first.counts(own[2])
    assert 2 not in second.counts(own[2])


def test_an_index_is_mapped_from_its_file(tmp_path):
    index = Index.of((i, fingerprints(normalise(generated(i)))) for i in range(50))
    index.save(file := tmp_path / "index")
    again = Index.load(file)
    np.testing.assert_array_equal(again.entries, index.entries)
    np.testing.assert_array_equal(again.bits, index.bits)
    assert again.width == index.width
    assert isinstance(again.entries.base, np.ndarray)
    (tmp_path / "cut").write_bytes(file.read_bytes()[:-1])
    for name in ("cut", "nothing"):
        with pytest.raises(InputError, match=f"{name}, which is no whole index"):
            Index.load(tmp_path / name)


def test_a_work_beyond_the_numbers_is_refused():
    with pytest.raises(InputError, match="work 16777216"):
        Index.of([(1 << 24, fingerprints("abcdefghijklmnop"))])


def test_a_page_with_misread_letters_finds_its_work():
    # catches: a threshold that noise undoes, or one that names other works
    letters = [normalise(generated(i)) for i in range(120)]
    index = Index.of((i, fingerprints(text)) for i, text in enumerate(letters) if i < 100)
    rng, right, wrong = np.random.default_rng(0), 0, 0
    for i in range(100):
        codes = np.frombuffer(letters[i][:1000].encode(), np.uint8).copy()
        bad = rng.random(len(codes)) < 0.1
        codes[bad] = rng.integers(97, 123, bad.sum())
        found = matches(codes.tobytes().decode(), index, letters.__getitem__)
        right += [one.work for one in found] == [i]
        wrong += bool(matches(letters[100 + i % 20][37 * i % 900 :], index, letters.__getitem__))
    assert right >= 98
    assert wrong == 0


def test_equal_hashes_are_no_match_where_letters_differ():
    # catches: a work that is named by its hashes alone though its text is there
    letters = normalise(generated(0))
    index = Index.of([(0, fingerprints(letters)), (1, fingerprints(letters))])
    assert matches(letters, index, lambda work: letters if work else "z" * 500) == [Match(1, 1.0, 1.0)]
    alone = matches(letters, index, lambda work: letters if work else Fingerprints(*np.zeros((2, 0), np.uint64)))
    assert [one.work for one in alone] == [0, 1]


@pytest.mark.skipif(not os.environ.get("UPRIGHT_DATA"), reason="UPRIGHT_DATA is not set")
def test_unrelated_english_pages_name_no_work():
    # catches: phrases that all writers use taken for copying
    folder = Path(os.environ["UPRIGHT_DATA"]) / "public-domain-texts" / "shield" / "shield" / "datasets"
    texts = [normalise(path.read_text(encoding="utf-8", errors="replace")) for path in sorted(folder.rglob("*.txt"))]
    known, others = texts[::2], texts[1::2]
    index = Index.of((i, fingerprints(text)) for i, text in enumerate(known))
    named = [
        len(matches(text[start : start + size], index, known.__getitem__)) > 0
        for text in others
        for start, size in ((0, 120), (200, 400), (300, 1000))
    ]
    assert len(named) > 250
    assert sum(named) <= 3


def test_an_epigraph_covers_little_of_a_text_and_a_badly_read_page_all_of_it():
    # catches: thirty words of a free work that settle the rights of the page below them
    work, other = generated(0), generated(1)
    letters = normalise(work)
    index = Index.of([(0, fingerprints(letters))])
    (epigraph,) = matches(normalise(work[:200] + other[:1000]), index, lambda _: letters)
    assert epigraph.cover <= 0.25
    rng = np.random.default_rng(0)
    noisy = "".join("x" if rng.random() < 0.08 else one for one in letters)
    (page,) = matches(noisy, index, lambda _: letters)
    assert page.cover == 1.0
