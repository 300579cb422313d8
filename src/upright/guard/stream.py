r"""A stream that stops at the first word too many of a protected work, and holds nothing back.

Each letter extends the runs that are open: places in works where the last letters of the stream stand too. Twelve
letters that a protected work has as a fingerprint open a run at every place where they stand in it; its true beginning
is found by going back, in the work and in the stream, as far as the letters agree.

Guarantee
---------
With a cap of L words, what was let through never holds more than L words of one run of 19 letters or more from a
protected work whose text is held, whatever the chunks were; and no stream is stopped without such a run. A shorter run
may be missed, so where L words have fewer than 19 letters it is the 19th that stops a stream. Of a work that is held by
fingerprints alone, letters are known by their hashes, and up to 8 more at either end of a run count as copied. Twelve
letters that stand more than 1,000 times in one work are followed at the first 1,000 places.

What a work holds that is not protected, in the same letters, is free, whoever else holds it. A word is letters without
a gap between them; in scripts without spaces, four letters; and eight letters are a word where gaps were left out.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from upright.contract import InputError
from upright.guard.passages import (
    BASE,
    INVERSE,
    LAST,
    LETTERS,
    MASK,
    SHORTEST,
    WINDOW,
    Fingerprints,
    Index,
    K,
    Source,
    hashes,
    mix,
)

__all__ = ["Run", "Stream"]

_PLACES = 1000  # of twelve letters in one work
_SMALL = 12  # words; up to this cap every run is followed from its first fingerprint
_MANY = 24  # characters from which arrays are faster than one by one
_ASCII = re.compile(f"[\x00-\x7f]{{{_MANY},}}")
_ALNUM = np.array([chr(code).isalnum() and code < 128 for code in range(256)])
_POWERS = [pow(BASE, K - 1 - j, 1 << 64) for j in range(K)]  # of the last letter, the one before it, ...
_DENSE = 4  # letters that count as a word where there are no spaces
_LETTERS = 8  # letters that count as a word where spaces were left out
# Thai to Tibetan, Burmese, Khmer, kana, CJK
_UNSPACED = ((0xE00, 0xFFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0x20000, 0x3FFFF))


class Run(NamedTuple):
    """What was copied in a row: the ``work``, and its length in ``words`` and ``letters``."""

    work: int
    words: int
    letters: int


class Stream:
    """Lets text through until it copies too much.

    Parameters
    ----------
    index : Index
    source : callable
        ``source(work)``: its normalised text, or its fingerprints.
    cap : int
        Most words of a run that are let through, at least 1.
    protected : callable
        ``protected(work) -> bool``, asked once a work.
    before : str
        What was written earlier in the same conversation: a run may go on behind it.
    alone : callable, optional
        Whether a work is held by fingerprints; by default its source is looked at, which may be slow.
    alike : float
        Share of the last 20 times `cap` letters, 200 at least, that may stand in a work in pieces: above it a copy with
        errors, or a few exchanged words, ends too. 0 leaves it at runs.

    Attributes
    ----------
    stopped : bool
        Whether a run became too long, or the text too like a work: nothing more is let through.
    longest : Run or None
        The most words of a run of 19 letters or more, the one that was cut included; with a cap above 12, runs far
        below it are not followed.
    """

    def __init__(
        self,
        index: Index,
        source: Source,
        cap: int,
        *,
        protected: Callable[[int], bool],
        before: str = "",
        alike: float = 0.0,
        alone: Callable[[int], bool] | None = None,
    ) -> None:
        if cap < 1:
            raise InputError(f"a cap of {cap} words", "1 or more", "to let nothing through, refuse the request")
        self.stopped = False
        self.longest: Run | None = None
        self._index, self._source, self._cap, self._protected = index, source, cap, protected
        self._held: dict[int, str | Fingerprints | None] = {}  # None: not protected
        self._letters: list[str] = []
        self._words: list[int] = []  # the number of the word of each letter
        self._open: dict[tuple[int, int], int] = {}  # (work, place there minus place here) -> first letter here
        self._inside, self._dense = False, 0  # in a word; letters in a row of a script without spaces
        self._sum = 0  # over the last twelve letters, as in passages
        self._alone = alone or (lambda work: isinstance(self._of(work), Fingerprints))
        self._chains: dict[int, tuple[int, int]] = {}  # the last letter of each work's chain of fingerprints, the first
        self._window = max(200, 20 * cap)
        self._most = alike * self._window / (0.5 * (WINDOW + 1)) if alike else math.inf  # fingerprints of that share
        self._hits: dict[int, deque[int]] = {}  # letters at which fingerprints of each work ended, within the window
        for _ in self._too_many(before):
            pass

    def feed(self, chunk: str) -> str:
        """Return what of a chunk may leave: all of it, or what stands before the first word too many."""
        if self.stopped:
            return ""
        for place in self._too_many(chunk):
            self.stopped = True
            return chunk[:place]
        return chunk

    def _too_many(self, text: str) -> Iterator[int]:
        """Take a text; yields the place of each character with which a run is too long, or the text too like a work."""
        letters, words, may_hold, start = self._letters, self._words, self._index.may_hold, 0
        while start < len(text):
            if not self._open and len(text) - start >= _MANY and (piece := _ASCII.match(text, start)):
                taken, over = self._until_open(piece[0])
                start += taken
                if over:
                    yield start - 1
            for place, one in enumerate(text[start : start + _MANY], start):
                found, most = LETTERS[ord(one)], 0
                # marks stand inside words
                if found is None and (one.isascii() or unicodedata.category(one) not in ("Mn", "Mc", "Me", "Cf")):
                    self._inside, self._dense = False, 0
                for letter in found or "":
                    code, end, begins = ord(letter), len(letters), not self._inside
                    if code >= 0xE00 and any(low <= code <= high for low, high in _UNSPACED):
                        begins = self._dense % _DENSE == 0
                        self._inside, self._dense = False, self._dense + 1
                    else:
                        self._inside, self._dense = True, 0
                    first = ord(letters[-K]) if end >= K else 0
                    self._sum = ((self._sum - first) * INVERSE + code * LAST) & MASK
                    letters.append(letter)
                    words.append((words[-1] if end else 0) + begins)
                    value = mix(self._sum)
                    if self._open:
                        self._open = {run: at for run, at in self._open.items() if self._goes_on(*run, end, value)}
                    if end >= K - 1 and may_hold(value) and self._is_alike(end, value):
                        most = self._cap + 1
                    elif self._open:
                        most = max(most, self._longest(end))
                if most > self._cap:
                    yield place
            start += _MANY

    def _until_open(self, text: str) -> tuple[int, bool]:
        """Take ASCII, where a letter is one character, on arrays up to the letter that opens a run; none may be open.

        Returns how much that is, and whether it is too much.
        """
        codes = np.frombuffer(text.lower().encode(), dtype=np.uint8)
        is_letter = _ALNUM[codes]
        at, n = np.flatnonzero(is_letter), len(self._letters)
        before, letters = "".join(self._letters[1 - K :]), codes[at].tobytes().decode()
        value = hashes(before + letters)
        begins = is_letter & ~np.concatenate([[self._inside], is_letter[:-1]])
        self._words += ((self._words[-1] if n else 0) + np.cumsum(begins)[at]).tolist()
        self._letters += letters
        taken, over = len(text), False
        for one in np.flatnonzero(self._index.may_hold_each(value)).tolist():
            end = n - len(before) + one + K - 1
            if (over := self._is_alike(end, int(value[one]))) or self._open:
                over = over or self._longest(end) > self._cap
                taken = int(at[end - n]) + 1
                del self._letters[end + 1 :], self._words[end + 1 :]
                break
        self._inside, self._dense = bool(is_letter[taken - 1]), 0
        last = zip(self._letters[: -K - 1 : -1], _POWERS, strict=False)
        self._sum = sum(ord(one) * power for one, power in last) & MASK
        return taken, over

    def _is_alike(self, end: int, value: int) -> bool:
        """Follow the works that have the last twelve letters; returns whether one has too many of those before them.

        A run has a fingerprint in every 19 of its letters, so its fingerprints follow one another within 8 letters.
        Until these come near the cap, with the 18 letters before the first and the 8 to come, no run is looked for:
        most works have such letters by chance, once, and are not counted.
        """
        many: list[int] = []
        for work in self._index.works_with(value):
            last, first = self._chains.get(work, (-self._window, end))
            first = first if end - last <= WINDOW else end
            self._chains[work] = (end, first)
            begun = max(0, first - SHORTEST + 1)
            words = max(self._words[end] - self._words[begun] + 1, (end - begun + 1) // _LETTERS + 1) + WINDOW
            # of works held by fingerprints the letters before are not known later
            if words > self._cap or self._cap <= _SMALL or self._alone(work):
                for shift, start in self._begun(work, end, value):
                    self._open.setdefault((work, shift), start)
            if end - last <= self._window // 4 and self._most < math.inf:
                own = self._hits.setdefault(work, deque())
                own.append(end)
                while own[0] <= end - self._window:
                    own.popleft()
                if len(own) > self._most and self._of(work) is not None:
                    many.append(work)
        if not many:
            return False
        free = max((len(own) for work, own in self._hits.items() if self._of(work) is None), default=0)
        return any(len(self._hits[work]) > free for work in many)

    def _of(self, work: int) -> str | Fingerprints | None:
        if work not in self._held:
            self._held[work] = self._source(work) if self._protected(work) else None
        return self._held[work]

    def _goes_on(self, work: int, shift: int, end: int, value: int) -> bool:
        """Whether the letter at `end` is the next one of a run, as far as it is known."""
        held, place = self._of(work), end + shift
        if isinstance(held, str):
            return place < len(held) and held[place] == self._letters[end]
        assert held is not None
        gram = place - K + 1
        return held.known.get(gram, value) == value and gram <= held.places[-1] + WINDOW

    def _begun(self, work: int, end: int, value: int) -> Iterator[tuple[int, int]]:
        """Yield shift and first letter of each run that the last twelve letters belong to."""
        held, here = self._of(work), end - K + 1
        if isinstance(held, str):
            gram, place = "".join(self._letters[here : end + 1]), -1
            for _ in range(_PLACES):
                if (place := held.find(gram, place + 1)) < 0:
                    return
                if (work, place - here) not in self._open:
                    back = 0
                    while back < min(here, place) and held[place - back - 1] == self._letters[here - back - 1]:
                        back += 1
                    yield place - here, here - back
        elif held is not None:
            for place in held.at.get(value, ())[:_PLACES]:
                before = next((place - j for j in range(1, WINDOW + 1) if place - j in held.known), -1)
                yield place - here, max(0, here - (place - before - 1))

    def _longest(self, end: int) -> int:
        """Return the words of the longest open run of 19 letters or more."""
        most = 0
        for (work, _), start in self._open.items():
            letters = end - start + 1
            words = max(self._words[end] - self._words[start] + 1, letters // _LETTERS)
            if letters >= SHORTEST and words > most and not (words > self._cap and self._is_free(start, end)):
                most = words
                if self.longest is None or words > self.longest.words:
                    self.longest = Run(work, words, letters)
        return most

    def _is_free(self, start: int, end: int) -> bool:
        """Whether a work that is not protected holds a run too: what is free stays free in an edition of it."""
        run = "".join(self._letters[start : end + 1])
        value = hashes(run)
        for one in value[self._index.may_hold_each(value)].tolist():
            for work in self._index.works_with(one):
                if self._of(work) is None and isinstance(text := self._source(work), str) and run in text:
                    return True
        return False
