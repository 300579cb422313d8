"""What a query asks of a page, and how much of it: a linear classifier, and a grammar of amounts.

A query is read clause by clause: what is negated, what gives a reason or tells of something else ("before I translate
it", "my teacher has copied it") and what is a question is marked, and counts otherwise than a request. Its features are
letters in threes to fives outside the first two, words and pairs of them with their marks, and the groups of its key
words (`_KEY`), alone, in pairs and in threes. Each of these kinds is hashed into `SIZES` buckets, the same in every
process, and has a norm of its own. Weights are those of logistic regression, ``p = softmax(W' x + b)``, learnt by
``benchmarks/make_guard_intent.py`` from 2,800 sentences written for it, 5,000 drawn from templates and 5,700 of prose,
and rounded to multiples of `STEP`. The last of their classes is prose: what a pasted page says.

Copy, translation and paraphrase decide by the sum of their probabilities; then a stated amount tells a quote from a
copy. A part of at most `QUOTE` words, a title too, that is to be translated or reworded is a quote: no more of the text
can be in the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Literal, get_args
from zlib import crc32, decompress

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.guard.passages import LETTERS

__all__ = ["Asked", "Use", "asked_of"]

Use = Literal["copy", "translate", "paraphrase", "quote", "summary", "question", "metadata", "analysis", "other"]
USES: tuple[Use, ...] = get_args(Use)  # the first three take more of the text than a quote
SIZES, NORMS, STEP = (1 << 12, 1 << 13, 1 << 12), (1.0, 1.0, 1.2), 0.25
LIKELY = 0.5  # probability from which a copy, a translation and a paraphrase together decide
SURE = 0.85  # probability from which a part without a number is no amount
FLIP = 0.2  # probability from which a quotation of the whole is a copy
QUOTE = 25  # words
READ, SHORT, PIECES = 2000, 300, 64  # letters read at either end; letters judged as one; sentences judged at most
INNER = 0.8  # probability that a request amid other sentences needs

_BUNDLED = Path(__file__).parent / "bundled"
_GROUPS, _CLAUSES = (
    dict(zip(parts[1::2], (one.replace("\n", "") for one in parts[2::2]), strict=True))
    for parts in (
        re.split(r"(?:^|\n)(\w+)=", one) for one in (_BUNDLED / "intent.txt").read_text().strip().split("\n\n")[1:]
    )
)
_BRACKETS = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"  # with others inside them
_BEGINS = re.compile(r"(?:\(\?<![^)]*\)|\^)?(?:\(\?:([^()]*)\)(\??))?(.*)")
_KEYS = [  # group, expression, and with what it may begin: each word of a first bracket, or none of them
    (name, one, tuple(part + rest for part in f"{parts}{maybe and '|'}".split("|")))
    for name, words in _GROUPS.items()
    for one in re.findall(f"(?:[^|()]|{_BRACKETS})+", words)
    for parts, maybe, rest in _BEGINS.findall(one)[:1]
]
_LETTER = np.array(  # of a letter with 0 to 4 behind it
    [[crc32(bytes([one, *bytes(n)])) ^ crc32(bytes(n)) for one in range(128)] for n in range(5)], np.uint32
)
_WORDS = re.compile(r"\b[a-z][a-z ]")
_MARKS = list(zip(map(re.compile, _CLAUSES.values()), "?~~-", strict=True))  # question, told, reason, negated
_ASIDE = {"keep", "skip", "bit", "obj", "short", "part", "fact", "judge", "ask"}  # groups that no copying needs
_TOKEN = re.compile(r"[,.;:!?\n()]+|[^\s,.;:!?()\"#-&*+\-/<=>@\[-`{-~«»“”„–—…¿¡]+")
_TO_DO = re.compile(
    r"\b(?:(?:do not|dont|never) (?:forget|fail|hesitate|mind)(?: to)?|why (?:do not|dont) (?:you|we))\b"
)
_COUNT = "and one two three four five six seven eight nine ten eleven twelve dozen fifteen twenty thirty fifty hundred"
_NUMBERS = dict(zip(_COUNT.split(), map(str, [*range(13), 12, 15, 20, 30, 50, 100]), strict=True))
_UNITS = {
    **dict.fromkeys(("word", "wort", "worter", "mot", "palabra", "parola", "parole", "palavra"), 1),
    **dict.fromkeys(("phrase", "title", "titel", "titre", "titulo", "titolo", "heading", "subtitle"), 8),
    **dict.fromkeys(("uberschrift", "slogan", "motto", "dedication"), 8),
    **dict.fromkeys(("line", "verse", "zeile", "ligne", "linea", "riga", "linha"), 12),
    **dict.fromkeys(("sentence", "satz", "frase"), 25),
    "paragraph": 100,
}
_SOME = re.compile(
    "the|this|an?|any|your|its|just|only|single|very|all|whole|entire|full|of|first|opening|last|final|closing|second"
    r"|third|d(?:er|ie|as|en)|nur|erste\w*|letzte\w*|l[aeo]|el|il|l|seule\w*|premiere?|derniere?|prim[ae]\w*|ultim[ao]"
)
_NO_KIND = {"each", "every", "per", "another", "to", "through"}  # what is no adjective before a unit
_NO_PART = re.compile("per |break|number|at a |(?:for|by|after) (?:each|every|another|word|line|sent|para|verse)")
_LEAST = r"\b(?:at least|over|(?:no|not) (?:fewer|less) than|(?<!not )(?<!no )more than)"
_LEFT = re.compile(rf"{_LEAST}$|\b(?:after|but|except|skip|omit|leav\w+ out|without|keep|with)(?: only)?$")
_BOUND = re.compile("(?:at most|(?:not|no) (?:more|longer) than|up to) #")
_WHOLE = re.compile(
    rf"{_LEAST} #|# to #|\b(?:lines?|sentences?|verses?|page) \d+ (?:to|through) "
    r"|\b(?:type|copy|print|quote|translate|render|turn|put|rewrite|reword|rephrase|paraphrase|send)"
    r"(?: out| down| me)? (?:it|(?:the|this|my) (?:page|text|document|poem|article|story|chapter|passage))\b"
)


@dataclass(frozen=True)
class Asked:
    """What a query asks of a page."""

    use: Use
    words: int | None  # most words of the text itself that the answer would repeat, where the query says so
    confidence: float  # in (0, 1), how far the probability of copying is from where it decides; low for other


def clean_words(text: str) -> str:
    """Return folded words (`passages.LETTERS`), and ``, . ?`` between clauses."""
    tokens = _TOKEN.findall(re.sub(r"[,.](?<=\d.)(?=\d{3})", "", text))
    words = (
        one.translate(LETTERS) or ("?" if "?" in one else "." if re.search("[.!\n]", one) else ",") for one in tokens
    )
    return _TO_DO.sub("", " ".join(words))


def clause_marks(cleaned: str) -> str:
    """Return a mark for each letter: ``-`` negated, ``~`` a reason or told, ``?`` a question, or a space."""
    marks = " " * len(cleaned)
    for pattern, mark in _MARKS:
        for found in pattern.finditer(cleaned):
            start, stop = found.span()
            marks = marks[:start] + mark * (stop - start) + marks[stop:]
    return marks


@lru_cache(1 << 10)
def _key(head: str) -> Callable[[str, int], re.Match[str] | None] | None:
    """Return what finds the key words that begin with two characters, None where none does."""
    own = [(name, one) for name, one, starts in _KEYS if any(start.startswith(head) for start in starts)]
    groups = (f"(?P<{name}>{'|'.join(one for _, one in same)})" for name, same in groupby(own, key=itemgetter(0)))
    return re.compile("|".join(groups)).match if own else None


def _keys(cleaned: str) -> Iterator[tuple[int, str]]:
    """Yield where each key word begins, and its group."""
    end = 0
    for word in _WORDS.finditer(cleaned):
        if (key := _key(word[0])) and (at := word.start()) >= end and (found := key(cleaned, at)):
            end = found.end()
            yield at, found.lastgroup or ""


def _crc(texts: Iterable[str]) -> NDArray[np.uint32]:
    return np.array([crc32(one.encode("utf-8", "replace")) for one in texts], np.uint32)


def _grams(letters: str) -> NDArray[np.uint32]:
    """Return the CRC-32 of threes to fives of letters; it is linear: that of ASCII is put together from letters'."""
    if not letters.isascii():
        return _crc(letters[i : i + n] for n in (3, 4, 5) for i in range(len(letters) - n + 1))
    parts, found = _LETTER[:, np.frombuffer(letters.encode(), np.uint8)], list[NDArray[np.uint32]]()
    for part in parts:
        found.append(part[: max(0, len(part) - len(found))] ^ found[-1][1:] if found else part)
    return np.concatenate(found[2:])


Amount = tuple[int | None, bool, bool]
Features = tuple[NDArray[np.int64], NDArray[np.float64], Amount]


def request_features(cleaned: str) -> Features:
    """Return the buckets of a query and their values, each of shape (n,), and its `stated_words`."""
    marks = clause_marks(cleaned)
    kept = (one for one, mark in zip(cleaned, marks, strict=True) if mark != "-" or one == " ")
    amount = stated_words("".join(kept) if "-" in marks else cleaned)
    row, main, at = ["^"], [" "], 0
    for word in cleaned.split(" "):
        mark, at = marks[at : at + 1].strip(), at + len(word) + 1
        if not word:
            continue
        main += [word] if mark in "?" and word not in ",.?" else []
        row.append("^" if word in ",." else word if word == "?" else mark + word)
    letters = " ".join([*main, " "])
    asked = [one.lstrip("?") if len(one) > 1 else one for one in row]
    keys = [marks[at].strip() + name for at, name in _keys(cleaned)]
    groups, ends = sorted(set(keys)), ["^", *keys, "$"]
    size = "=none" if amount[0] is None else "=small" if amount[0] <= QUOTE else "=big"
    sizes = [size, "=whole"] if amount[1] else [size]
    words = [*row, *asked, *map(" ".join, pairwise([*row, "^"])), *map(" ".join, pairwise([*asked, "^"]))]
    keyed = [*ends, *map(" ".join, pairwise(ends)), *map(" ".join, zip(ends, ends[1:], ends[2:], strict=False))]
    keyed += [*map("&".join, combinations(groups, 2)), *(one + other for one in sizes for other in ["", *groups])]
    has, values, start = np.zeros(sum(SIZES), np.bool_), list[NDArray[np.float64]](), 0
    for kind, width, norm in zip((_grams(letters), _crc(words), _crc(keyed)), SIZES, NORMS, strict=True):
        has[start + kind % width] = True
        n = int(np.count_nonzero(has[start : (start := start + width)]))
        values.append(np.full(n, norm / max(n, 1) ** 0.5))
    return np.flatnonzero(has), np.concatenate(values), amount


@lru_cache(1)
def _weights() -> NDArray[np.float32]:
    packed = decompress((_BUNDLED / "intent.bin").read_bytes())
    return np.frombuffer(packed, np.int8).reshape(sum(SIZES) + 1, -1) * np.float32(STEP)  # the last is b


def stated_words(cleaned: str) -> Amount:
    """Return the words that stated amounts come to, whether the whole is asked for beside them, whether by number."""
    words = [_NUMBERS.get(one, one) for one in cleaned.replace(".", ",").split()]
    sums, counted = [0, 0], False  # of parts, of words that are counted
    for i, word in enumerate(words):
        unit = _UNITS.get(word.removesuffix("s"))
        if unit is None or _NO_PART.match(" ".join(words[i + 1 : i + 3])):
            continue
        before = words[i - 1] if i else "each"
        end = i - (not (before.isdecimal() or before in _NO_KIND or _SOME.fullmatch(before)))  # before an adjective
        first, number = end, 0
        while first and words[first - 1].isdecimal():
            first -= 1
        for one in words[first:end]:
            number = min(max(number, 1) * 100 if one == "100" else number + int(one[:6]), 10**6)
        start = first
        while start and _SOME.fullmatch(words[start - 1]):
            start -= 1
        if number or (start < first and word in _UNITS):
            if not _LEFT.search(" ".join(words[max(start - 4, 0) : start])):
                sums[unit == 1 and number > 0] += max(number, 1) * unit
                counted |= number > 0
            words[start : i + 1] = ["#"] * (i + 1 - start)
    rest = re.sub("(?:# )+(?:of (?:the|this) (?:whole|entire|full|complete))?", "# ", " ".join([*words, ""]))
    whole = _WHOLE.search(rest) or any(name == "whole" for _, name in _keys(rest))
    return sums[1] or sums[0] or None, bool(whole and not _BOUND.search(rest)), counted


def decide_use(amount: Amount, chances: NDArray[np.float64], likely: float = LIKELY) -> Asked:
    """Return the likeliest use, and let the amount tell a quote from more."""
    taken, (words, whole, counted) = float(chances[:3].sum()), amount
    use = (*USES, "other")[int(chances[:3].argmax() if taken > likely else 3 + chances[3:].argmax())]
    sure = min(max(abs(taken - likely), 0.001), 0.999)
    if use not in USES[:4]:
        return Asked(use, None, min(sure, 0.1) if use == "other" else sure)
    whole |= taken > SURE and not counted  # a part that is only named, beside a plain request for more
    if words and not whole and (words <= QUOTE or use in ("copy", "quote")):
        return Asked("quote" if words <= QUOTE else "copy", words, sure)
    return Asked("copy" if whole and use == "quote" and taken > FLIP else use, None if whole else words, sure)


def read_request(
    cleaned: str, *, alone: bool = True, likely: float = LIKELY, weights: NDArray[np.float32] | None = None
) -> Asked:
    """Return what one query, or one sentence of a longer text, asks."""
    weights = _weights() if weights is None else weights
    places, values, amount = request_features(cleaned)
    scores = values @ weights[places] + weights[-1]
    chances = np.exp(scores - scores.max()) * ([1.0] * len(USES) + [not alone])
    return decide_use(amount, chances / chances.sum(), likely)


def asked_of(query: str) -> Asked:
    """Return what a query asks of a page.

    A query of more than `SHORT` letters, such as one that stands beside a pasted page, is judged sentence by sentence,
    its first and last `READ` letters alone. A copy, a translation or a paraphrase decides, wherever it stands; amid
    other sentences it must be plain. "Go on" is other, without words: the memory of the stream deals with it. An
    `InputError` for what is no text.
    """
    if not isinstance(query, str):
        raise InputError(f"a query of type {type(query).__name__}", "a text", "pass the words of the user")
    pieces = [query]
    if len(query) > SHORT:
        read = query if len(query) <= 2 * READ else f"{query[:READ]}\n{query[-READ:]}"
        pieces = [one for one in re.split(r"(?<=[.!?])\s+|[\n\r]+", read) if one.strip()] or [""]
        pieces = pieces if len(pieces) <= PIECES else pieces[: PIECES // 2] + pieces[-PIECES // 2 :]
    alone, found = len(pieces) == 1, [Asked("other", None, 0.001)]
    for place, cleaned in enumerate(map(clean_words, pieces)):
        inside = 0 < place < len(pieces) - 1
        needed = 2 if inside else 1
        if cleaned.strip(" ,.?") and (alone or len({name for _, name in _keys(cleaned)} - _ASIDE) >= needed):
            found.append(read_request(cleaned, alone=alone, likely=INNER if inside else LIKELY))
    return max(found, key=lambda one: (one.use in USES[:3], one.use != "other", one.confidence))
