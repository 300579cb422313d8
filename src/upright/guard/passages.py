r"""Which registered works a text repeats: winnowed fingerprints of letters, in one sorted array.

A text is reduced to letters and digits, letter by letter, so that spaces, chunks, accents and capitals cannot matter.
Every 12 of them have a hash; of 8 neighbours the smallest is a fingerprint of the work.

Guarantee
---------
Two texts that share 19 = 12 + 8 - 1 letters in a row share a fingerprint inside them. (Winnowing: S. Schleimer,
D. Wilkerson and A. Aiken, "Winnowing: local algorithms for document fingerprinting", SIGMOD 2003.)

The hash of letters ``c_0 .. c_11`` is ``mix(sum_j c_j B^j)`` modulo 2^64, ``mix`` the last steps of MurmurHash3: the
same in every process, and moved on by one letter with two products. Equal hashes are candidates; letters decide.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = ["LETTERS", "SHORTEST", "Fingerprints", "Index", "K", "Match", "fingerprints", "hashes", "matches", "mix"]
__all__ += ["normalise"]

K, WINDOW = 12, 8
SHORTEST = K + WINDOW - 1
"""Letters that two texts must share before a fingerprint must be shared."""
BITS = 24  # of the number of a work, below the 40 bits of a hash
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)
LAST = pow(BASE, K - 1, 1 << 64)
MASK = (1 << 64) - 1
_HEAD = b"upright-passages-1".ljust(32, b"\0")

Array = NDArray[np.uint64]

# letters that are printed like Latin ones: Cyrillic, Greek, and four others
_ALIKE = {
    **dict(
        zip(
            "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455"
            "\u0501\u051b\u051d\u04bb\u0432\u043a\u043c\u043d\u0442",
            "aeopcyxijsdqwhbkmht",
            strict=True,
        )
    ),
    **dict(zip("\u03b1\u03bf\u03c1\u03bd\u03b9\u03ba\u03c4\u03c5\u03c7\u03f2", "aopviktuxc", strict=True)),
    **dict(zip("\u0131\u0261\u0578\u057d", "ignu", strict=True)),
}


class _Letters(dict[int, str | None]):
    """What each character is reduced to, found once: nothing, a letter or digit, or several."""

    def __missing__(self, code: int) -> str | None:
        folded = unicodedata.normalize("NFKD", chr(code)).casefold()
        parts = unicodedata.normalize("NFKD", folded)  # folding may leave letters with marks again
        self[code] = found = "".join(_ALIKE.get(one, one) for one in parts if one.isalnum()) or None
        return found


LETTERS = _Letters()
"""For `str.translate`."""
_PIECES = re.compile("[\x00-\x7f]+|[^\x00-\x7f](?:[\x00-\x7f]{,20}+[^\x00-\x7f])*+")  # ASCII takes a tenth of the time


def normalise(text: str) -> str:
    """Return letters and digits alone: compatibility forms taken apart, case folded, marks dropped, look-alikes joined.

    Character by character: ``normalise(a + b) == normalise(a) + normalise(b)``.
    """
    return "".join([one.translate(LETTERS) for one in _PIECES.findall(text)])


def mix(value: int) -> int:
    """Spread the sum over 12 letters over 64 bits."""
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return value ^ (value >> 33)


def hashes(letters: str) -> Array:
    """Return the hash of every 12 letters, shape (len - 11,)."""
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    n = len(codes) - K + 1
    if n < 1:
        return np.zeros(0, dtype=np.uint64)
    four, size = codes, 1
    while size < 4:  # sums over 1, 2, 4 letters
        four = four[:-size] + four[size:] * np.uint64(pow(BASE, size, 1 << 64))
        size *= 2
    value = sum((four[j : j + n] * np.uint64(pow(BASE, j, 1 << 64)) for j in (4, 8)), start=four[:n].copy())
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):  # as `mix`
        value ^= value >> np.uint64(33)
        value *= np.uint64(factor)
    return np.asarray(value ^ (value >> np.uint64(33)))


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of one text: ``hashes`` (uint64) and the letter at which each begins, ``places`` (uint32), shape (n,) each."""

    hashes: Array
    places: NDArray[np.uint32]

    def to_bytes(self) -> bytes:
        """Return them in 12 bytes each, for a registry that may not hold the text."""
        return self.hashes.astype("<u8").tobytes() + self.places.astype("<u4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Fingerprints:
        """Read what `to_bytes` wrote; an `InputError` for another length."""
        n, left = divmod(len(data), 12)
        if left:
            raise InputError(f"fingerprints of {len(data)} bytes", "12 bytes each", "write them with to_bytes")
        return cls(np.frombuffer(data[: 8 * n], "<u8"), np.frombuffer(data[8 * n :], "<u4"))

    @cached_property
    def at(self) -> dict[int, list[int]]:
        """Places by hash."""
        found: dict[int, list[int]] = {}
        for one, place in zip(self.hashes.tolist(), self.places.tolist(), strict=True):
            found.setdefault(one, []).append(place)
        return found

    @cached_property
    def known(self) -> dict[int, int]:
        """Hashes by place."""
        return dict(zip(self.places.tolist(), self.hashes.tolist(), strict=True))


Source = Callable[[int], str | Fingerprints]
"""The normalised text of a work, or its fingerprints where the text is not held."""


def _sliding(values: Array, size: int, of: np.ufunc) -> Array:
    """Return the minimum or maximum of every `size` neighbours, shape (len - size + 1,), by doubling."""
    n, found, width = len(values) - size + 1, values, 1
    while 2 * width <= size:
        found, width = of(found[:-width], found[width:]), 2 * width
    return np.asarray(of(found[:n], found[size - width : size - width + n]))


def fingerprints(letters: str) -> Fingerprints:
    """Winnow a normalised text: every hash that is the smallest of some 8 neighbours.

    A text of 12 to 18 letters has one or a few, a shorter one none.
    """
    value = hashes(letters)
    if not len(value):
        return Fingerprints(value, np.zeros(0, dtype=np.uint32))
    window = min(WINDOW, len(value))
    least, none = _sliding(value, window, np.minimum), np.zeros(window - 1, np.uint64)
    least = np.concatenate([none, least, none])  # of the windows; 0 where there is none
    places = np.flatnonzero(_sliding(least, window, np.maximum) == value)
    return Fingerprints(value[places], places.astype(np.uint32))


class Index:
    """Fingerprints of many works, as ``hash (40 bits) | work (24 bits)`` in ascending order, and a table of bits.

    The table answers for most letters of a stream that no work has these 12, without a search.

    Parameters
    ----------
    entries : ndarray of uint64, shape (n,)
        Ascending.
    """

    def __init__(self, entries: Array, bits: NDArray[np.uint8] | None = None) -> None:
        self.entries = entries
        # 8 to 16 bits an entry, 32 MiB at most: at 94 million entries three letters in ten are searched for
        self.width = min(28, max(10, len(entries).bit_length() + 3)) if bits is None else len(bits).bit_length() + 2
        self.bits = self._table() if bits is None else bits
        # one of them is read three times as fast
        self._bytes, self._numbers = memoryview(self.bits), memoryview(self.entries)  # type: ignore[arg-type]

    @classmethod
    def of(cls, works: Iterable[tuple[int, Fingerprints]]) -> Index:
        """Return the index of numbered works."""
        parts = [_entries(number, own) for number, own in works]
        return cls(np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64))

    def changed(self, added: Mapping[int, Fingerprints], removed: Iterable[int] = ()) -> Index:
        """Return an index with works added and others taken out; this one stays as it is."""
        gone = np.array(sorted({*removed, *added}), dtype=np.uint64)
        kept = self.entries[~np.isin(self.entries & np.uint64((1 << BITS) - 1), gone)]
        new = Index.of(added.items()).entries
        return Index(np.insert(kept, np.searchsorted(kept, new), new))

    def _table(self) -> NDArray[np.uint8]:
        bits, step, shift = np.zeros(1 << (self.width - 3), dtype=np.uint8), 1 << 22, np.uint64(64 - self.width)
        for start in range(0, len(self.entries), step):
            places = (self.entries[start : start + step] >> shift).astype(np.int64)
            np.bitwise_or.at(bits, places >> 3, (1 << (places & 7)).astype(np.uint8))
        return bits

    def may_hold(self, value: int) -> bool:
        """Whether a work may have this hash; False is certain."""
        place = value >> (64 - self.width)
        return self._bytes[place >> 3] >> (place & 7) & 1 == 1

    def may_hold_each(self, values: Array) -> NDArray[np.bool_]:
        """Whether a work may have each of some hashes; shape (n,)."""
        places = (values >> np.uint64(64 - self.width)).astype(np.int64)
        return np.asarray(self.bits[places >> 3] >> (places & 7).astype(np.uint8) & 1, dtype=np.bool_)

    def works_with(self, value: int) -> list[int]:
        """Return the works that have a hash, to 40 bits."""
        at, last = bisect_left(self._numbers, value >> BITS << BITS), value | ((1 << BITS) - 1)
        return [one & ((1 << BITS) - 1) for one in takewhile(last.__ge__, self._numbers[at:])]

    def counts(self, own: Fingerprints, least: float = 1) -> dict[int, int]:
        """Return how many of some fingerprints each work has; works with fewer than `least` are left out."""
        low = np.unique(own.hashes[self.may_hold_each(own.hashes)] >> np.uint64(BITS)) << np.uint64(BITS)
        stop = np.searchsorted(self.entries, low | np.uint64((1 << BITS) - 1), side="right")
        size = stop - np.searchsorted(self.entries, low)
        found = self.entries[np.repeat(stop - np.cumsum(size), size) + np.arange(size.sum())]
        numbers, times = np.unique(found & np.uint64((1 << BITS) - 1), return_counts=True)
        return dict(zip(numbers[times >= least].tolist(), times[times >= least].tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write entries and table as one file that `load` maps into memory."""
        with path.open("wb") as file:
            file.write(_HEAD + np.array([len(self.entries), self.width], dtype="<u8").tobytes())
            for part in (self.entries, self.bits):
                part.tofile(file)

    @classmethod
    def load(cls, path: Path) -> Index:
        """Map a file of `save`; an `InputError` for another one."""
        data = np.fromfile(path, dtype=np.uint8, count=48).tobytes() if path.is_file() else b""
        size, width = np.frombuffer(data[32:].ljust(16, b"\0"), "<u8").tolist()
        if data[:32] != _HEAD or not 10 <= width <= 28 or path.stat().st_size != 48 + 8 * size + (1 << (width - 3)):
            raise InputError(f"{path.name}, which is no whole index", "a file that save wrote", "build it anew")
        whole = np.memmap(path, dtype=np.uint8, mode="r", offset=48)
        return cls(whole[: 8 * size].view("<u8"), whole[8 * size :])


def _entries(number: int, own: Fingerprints) -> Array:
    if not 0 <= number < 1 << BITS:
        raise InputError(f"work {number}", f"a number from 0 to {(1 << BITS) - 1}", "number works from 0")
    return np.unique(own.hashes >> np.uint64(BITS)) << np.uint64(BITS) | np.uint64(number)


# -- which work a page is of ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A work that a text repeats.

    Parameters
    ----------
    work : int
    share : float
        Of the fingerprints of the text, those that the work has, letter by letter where its text is held; in (0, 1].
    cover : float
        Of eight equal parts of the text, those in which such a fingerprint stands: an epigraph covers one or two,
        however well it is read, and a whole page all of them, however badly.
    places : frozenset of int
        Letters of the text at which those fingerprints begin.
    """

    work: int
    share: float
    cover: float
    places: frozenset[int] = field(default=frozenset(), compare=False, repr=False)

    def beyond(self, others: frozenset[int]) -> bool:
        """Whether a work would be named by what stands at no place of others."""
        n = len(self.places) / self.share
        return len(self.places - others) >= _least(n)


def _least(n: float) -> float:
    """Return how many of n fingerprints of a text a work must have to be named."""
    return 0.05 * n + 6


def matches(letters: str, index: Index, source: Source, *, most: int = 5) -> list[Match]:
    """Return the works that a normalised text repeats, the largest share first.

    A work is named where its share is at least ``0.05 + 6 / n`` of the text's n fingerprints: unrelated English texts
    share a few by chance (of 24, up to a quarter), and of a page of 250 words with one letter in ten misread about 0.25
    remain. A text with fewer than 8 fingerprints, some 9 words, names none.

    Parameters
    ----------
    letters : str
        As of `normalise`.
    index : Index
    source : callable
        ``source(work)``: its normalised text or fingerprints.
    most : int
        Works that are compared letter by letter.
    """
    own = fingerprints(letters)
    n = len(set(own.hashes.tolist()))
    if n < 8:
        return []
    least, found = _least(n), list[Match]()
    for work, count in sorted(index.counts(own, least).items(), key=lambda one: (-one[1], one[0]))[:most]:
        text, places, shift, grams = source(work), list[int](), 0, set[str]()
        for place, one in zip(own.places.tolist(), own.hashes.tolist(), strict=True):
            if isinstance(text, str):
                gram = letters[place : place + K]
                if not text.startswith(gram, place + shift):  # where the last one would go on
                    if (at := text.find(gram)) < 0:
                        continue
                    shift = at - place
                grams.add(gram)
            elif one not in text.at:
                continue
            places.append(place)
        count = len(grams) if isinstance(text, str) else count
        if count >= least:
            cover = len({8 * place // len(letters) for place in places}) / 8
            found.append(Match(work, min(1.0, count / n), cover, frozenset(places)))
    return sorted(found, key=lambda one: (-one.share, one.work))
