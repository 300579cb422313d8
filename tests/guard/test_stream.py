"""Streams against a search of all runs, letter by letter."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.guard.passages import Fingerprints, Index, fingerprints, normalise
from upright.guard.stream import Stream

WORDS = ["a", "the", "ship", "sea", "whale", "captain", "of", "and", "harbour", "night", "it", "x1", "salt", "Éire"]
NEW = ["lemon", "grey", "under", "7", "quick", "paper"]


def held_works(texts, alone=()):
    """Return index and source; of the works in `alone`, fingerprints."""
    letters = [normalise(text) for text in texts]
    own = [fingerprints(one) for one in letters]
    index = Index.of(enumerate(own))
    return index, lambda work: own[work] if work in alone else letters[work]


def longest_run(text, works):
    """Words of the longest run of 19 letters or more that a text shares with a work."""
    letters, words = "", []
    for number, found in enumerate(re.finditer(r"\w+", text)):
        letters += (some := normalise(found.group()))
        words += [number] * len(some)
    most = 0
    for work in map(normalise, works):
        before = [0] * (len(work) + 1)
        for i, one in enumerate(letters):
            now = [0] * (len(work) + 1)
            for j, other in enumerate(work):
                if one == other:
                    now[j + 1] = before[j] + 1
                    if now[j + 1] >= 19:
                        most = max(most, words[i] - words[i - now[j + 1] + 1] + 1)
            before = now
    return most


def fed(stream, text, sizes):
    """Feed a text in chunks of some sizes, over and over."""
    out, place, k = "", 0, 0
    while place < len(text):
        out += stream.feed(text[place : place + sizes[k % len(sizes)]])
        place, k = place + sizes[k % len(sizes)], k + 1
    return out


@st.composite
def cases(draw):
    """Works of a small vocabulary, and a text that repeats parts of them in another writing."""
    sizes = st.integers(20, 60)
    works = [
        " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=n, max_size=n))) for n in (draw(sizes), draw(sizes))
    ]
    text = []
    for _ in range(draw(st.integers(1, 4))):
        own = draw(st.sampled_from(works)).split()
        start = draw(st.integers(0, len(own) - 1))
        text += own[start : start + draw(st.integers(3, 25))]
        text += draw(st.lists(st.sampled_from(WORDS + NEW), max_size=6))
    joined = draw(st.sampled_from([" ", ", ", "  ", "-", "\n", ". \u201c"])).join(text)
    joined = joined.upper() if draw(st.booleans()) else joined
    return works, joined, draw(st.integers(4, 12)), draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_no_run_over_the_cap_leaves_and_no_stream_is_stopped_without_one(case):
    # catches: a window off by one, a run whose beginning is not found, one that a chunk cuts, a word counted twice
    works, text, cap, sizes = case
    index, source = held_works(works)
    stream = Stream(index, source, cap, protected=lambda work: True)
    out = fed(stream, text, sizes)
    assert text.startswith(out)
    assert longest_run(out, works) <= cap
    assert stream.stopped == (longest_run(text, works) > cap)
    whole = Stream(index, source, cap, protected=lambda work: True)
    assert whole.feed(text) == out
    if not stream.stopped:
        assert (stream.longest.words if stream.longest else 0) == longest_run(text, works)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_fingerprints_alone_stop_every_run_that_the_text_would(case):
    # catches: a run that is lost between fingerprints, a run that goes on over a work's end
    works, text, cap, sizes = case
    index, source = held_works(works, alone=(0, 1))
    stream = Stream(index, source, cap, protected=lambda work: True)
    out = fed(stream, text, sizes)
    assert longest_run(out, works) <= cap
    free = " ".join(NEW * 20)
    assert Stream(index, source, cap, protected=lambda work: True).feed(free) == free


def test_fingerprints_alone_end_a_run_where_the_letters_end():
    # catches: a run of a work without its text that never ends, so that whatever follows is stopped
    work = "one night the old captain looked over the grey harbour and counted seven ships that lay there in the rain"
    index, source = held_works([work], alone=(0,))
    for words in (6, 7, 8):
        text = " ".join([*work.split()[:words], *(NEW * 5)])
        stream = Stream(index, source, 12, protected=lambda work: True)
        assert stream.feed(text) == text
        assert stream.longest.words >= words


def test_the_first_letter_of_the_word_too_many_is_held():
    # catches: the whole word let through, or the word before it held too
    work = "one night the old captain looked over the grey harbour and counted seven ships"
    index, source = held_works([work])
    stream = Stream(index, source, 5, protected=lambda work: True)
    assert stream.feed(work) == "one night the old captain "
    assert stream.feed("anything") == ""
    assert stream.stopped
    assert stream.longest == (0, 6, 22)


def test_a_run_goes_on_behind_an_earlier_turn():
    # catches: "go on" buying a second run
    work = "one night the old captain looked over the grey harbour and counted seven ships"
    index, source = held_works([work])
    stream = Stream(index, source, 8, protected=lambda work: True, before="one night the old captain looked over")
    assert stream.feed(" the grey harbour") == " the "
    again = Stream(index, source, 8, protected=lambda work: True)
    assert again.feed(" the grey harbour") == " the grey harbour"


def test_only_protected_works_stop_a_stream():
    # catches: free and protected swapped
    works = ["the whale and the captain of the salt harbour saw it", "a night of sea and ship under the old lantern"]
    index, source = held_works(works)
    asked = []

    def protected(work):
        asked.append(work)
        return work == 1

    stream = Stream(index, source, 4, protected=protected)
    assert stream.feed(works[0]) == works[0]
    assert stream.feed(" " + works[1]) == " a night of sea and ship "  # 18 letters
    assert sorted(asked) == [0, 1]


@pytest.mark.parametrize(
    "written",
    [
        "o\u200bne ni\u00adght the old capt\u0430in looked over",
        "ONE NIGHT. THE O\u0301LD captain (looked) over",
        "\uff4fne night the old captain looked over",
    ],
)
def test_other_ways_of_writing_are_seen(written):
    # catches: zero-width letters, look-alikes, marks and full-width letters that hide a run
    index, source = held_works(["one night the old captain looked over the grey harbour"])
    stream = Stream(index, source, 6, protected=lambda work: True)
    stream.feed(written)
    assert stream.stopped


def test_four_letters_are_a_word_where_there_are_no_spaces():
    # catches: a page of Chinese that counts as one word
    work = "".join(chr(0x4E00 + (37 * i) % 500) for i in range(200))
    index, source = held_works([work])
    stream = Stream(index, source, 10, protected=lambda work: True)
    assert stream.feed(work) == work[:40]


def test_a_work_of_one_letter_is_bounded():
    # catches: all places of all places: minutes for a page of one letter
    index, source = held_works(["a" * 20_000])
    stream = Stream(index, source, 5, protected=lambda work: True)
    assert len(stream.feed("a " * 400)) < 60


def test_a_cap_of_nothing_is_refused():
    index, source = held_works(["a text"])
    with pytest.raises(InputError, match="a cap of 0 words"):
        Stream(index, source, 0, protected=lambda work: True)


def test_fingerprints_are_read_back():
    own = fingerprints(normalise("one night the old captain looked over the grey harbour"))
    again = Fingerprints.from_bytes(own.to_bytes())
    assert again.known == own.known
    with pytest.raises(InputError, match="fingerprints of 13 bytes"):
        Fingerprints.from_bytes(b"x" * 13)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([*WORDS, *NEW, "\n", ", ", "\u3042\u3044\u3046", "'", "-9-", "  "]), max_size=80),
    st.lists(st.integers(1, 90), min_size=1, max_size=6),
    st.integers(0, 60),
)
def test_what_is_taken_at_once_leaves_the_stream_as_letter_by_letter(parts, sizes, at):
    # catches: arrays that lose a letter, count another word, or forget the last twelve letters
    copied = "the captain of the salt harbour saw a whale at night and the ship went under"
    index, source = held_works([copied])
    text = " ".join([*parts[:at], copied[8:70], *parts[at:]])
    whole, single = (Stream(index, source, 9, protected=lambda work: True) for _ in range(2))
    assert fed(whole, text, sizes) == fed(single, text, [1])
    for name in ("_letters", "_words", "_sum", "_open", "_inside", "_dense", "stopped", "longest"):
        assert getattr(whole, name) == getattr(single, name), name


@pytest.mark.parametrize("between", ["", "\u200b"])
def test_words_that_are_run_together_count_by_their_letters(between):
    # catches: a page that leaves whole as one word of a thousand letters
    work = " ".join(f"{word}s under the moon" for word in WORDS * 4)
    index, source = held_works([work])
    stream = Stream(index, source, 25, protected=lambda work: True)
    out = stream.feed(between.join(work.split()))
    assert stream.stopped
    assert len(normalise(out)) <= 8 * 26


def test_a_copy_with_errors_ends_and_two_quotations_do_not():
    # catches: noise that hides a page, a permitted quotation that counts as one
    rng = np.random.default_rng(0)
    vocabulary = ["".join(map(chr, rng.integers(97, 123, rng.integers(3, 8)))) for _ in range(400)]
    work, other = (" ".join(rng.choice(vocabulary, 250)) for _ in range(2))
    index, source = held_works([work])

    def fed_to(text, **more):
        stream = Stream(index, source, 25, protected=lambda work: True, alike=0.4, **more)
        return stream, fed(stream, text, [1, 30, 7])

    noisy = "".join("x" if rng.random() < 0.05 else one for one in work)
    stream, out = fed_to(noisy)
    assert stream.stopped
    assert len(out.split()) <= 100
    single = Stream(index, source, 25, protected=lambda work: True, alike=0.4)
    assert fed(single, noisy, [1]) == out
    words, quiet = work.split(), other.split()
    quoted = " ".join([*words[:20], *quiet[:60], *words[100:120], *quiet[60:]])
    assert fed_to(quoted)[1] == quoted
    assert not fed_to(other)[0].stopped
    free = Stream(index, source, 25, protected=lambda work: False, alike=0.4)
    assert free.feed(noisy) == noisy


def test_a_short_run_is_known_too_where_the_cap_is_small():
    # catches: runs that are looked for only near the cap, so that none below it is told
    work = "a a a a captain captain whale the a a a a a a a a a a a a"
    index, source = held_works([work])
    for sizes in ([1], [30]):
        stream = Stream(index, source, 10, protected=lambda work: True)
        assert fed(stream, "captain captain whale", sizes) == "captain captain whale"
        assert (stream.longest.work, stream.longest.words) == (0, 3)


def test_a_run_of_fingerprints_alone_is_followed_from_its_beginning_under_any_cap():
    # catches: a run whose first words are lost, because it was looked for late and its letters are not held
    rng = np.random.default_rng(3)
    work = " ".join("".join(map(chr, rng.integers(97, 123, rng.integers(3, 8)))) for _ in range(120))
    index, source = held_works([work], alone=(0,))
    for cap in (13, 25, 40):
        stream = Stream(index, source, cap, protected=lambda work: True)
        out = fed(stream, " ".join(work.split()[11:]), [1])
        assert cap - 4 <= len(out.split()) <= cap, cap  # up to 8 letters before count as copied


def test_what_ends_for_its_likeness_alone_is_noted(tmp_path):
    # catches: an answer that was cut without a line in the record, since no run of it was long
    from upright.guard.shapes import Bound

    rng = np.random.default_rng(4)
    work = " ".join("".join(map(chr, rng.integers(97, 123, rng.integers(3, 8)))) for _ in range(250))
    letters = iter(range(10**6))
    broken = "".join("z" if one != " " and next(letters) % 17 == 16 else one for one in work)
    index, source = held_works([work])
    bound = Bound("chat", lambda: Stream(index, source, 25, protected=lambda work: True, alike=0.2))
    assert len(bound.cut(0, "text", broken)) < len(broken)
    assert bound.words >= 1
