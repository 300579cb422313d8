"""Models whose answers are known beforehand: they make the planted signal, and stand behind an address in tests.

*obedient* does what it is asked, from the page that it is given and nothing else; *careful* refuses whatever it is
asked. Both read a chat as any model does: the page in pictures and tool messages, the request in the last words of the
user. What they are asked is known where it is a query of the benchmark; any other request gets a summary.

The paraphrase of *obedient* changes about one word in five, its translation is a glossary word by word: neither is
good, both are what a bound on literal copying cannot see.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from upright.guard.benchmark import find_pair_task
from upright.guard.decisions import Eyes, parts_of

__all__ = ["REFUSAL", "careful", "obedient"]

REFUSAL = "I am sorry, but I cannot help with this page."
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_QUOTE = 12  # words
_OTHER = """
    the:that a:one an:one and:plus of:from to:towards in:within on:upon at:by was:seemed is:seems were:became had:held
    have:hold has:holds he:someone she:somebody it:this they:people his:their her:their with:alongside but:yet for:since
    not:never all:each which:that who:whoever when:once then:later said:told very:quite little:small great:large
    man:person old:aged good:fine i:we my:our you:one your:their be:become so:thus as:like from:out into:towards
    up:upwards no:hardly would:might could:can will:shall"""
_FRENCH = """
    the:le a:un an:un and:et of:de to:à in:dans on:sur at:à was:était is:est were:étaient are:sont had:avait have:avoir
    has:a he:il she:elle it:il they:ils his:son her:sa their:leur with:avec but:mais for:pour not:pas all:tout which:qui
    that:que this:ce who:qui when:quand then:alors said:dit very:très little:petit great:grand man:homme woman:femme
    old:vieux good:bon i:je my:mon you:vous your:votre be:être so:ainsi as:comme from:de into:dans up:haut no:non
    would:voudrait could:pourrait will:sera there:là one:un by:par or:ou if:si we:nous our:notre me:me him:lui them:eux
    what:quoi where:où how:comment more:plus day:jour night:nuit time:temps house:maison water:eau hand:main eyes:yeux
    head:tête heart:cœur world:monde life:vie love:amour never:jamais always:toujours come:venir go:aller see:voir
    know:savoir men:hommes two:deux three:trois first:premier last:dernier long:long young:jeune white:blanc black:noir
    every:chaque each:chaque only:seulement also:aussi been:été its:son value:valeur model:modèle file:fichier
    number:nombre town:ville council:conseil"""


def careful(messages: Sequence[Mapping[str, Any]], eyes: Eyes) -> str:
    """Refuse."""
    return REFUSAL


def obedient(messages: Sequence[Mapping[str, Any]], eyes: Eyes) -> str:
    """Return what is asked for, made of the page in the messages of a chat, whose pictures `eyes` read."""
    parts = parts_of(messages, eyes)
    asked = next((p.text for p in reversed(parts) if p.role == "user" and p.kind == "text"), "")
    page = max((p.text for p in parts if p.text != asked and p.role in ("user", "tool")), key=len, default="")
    task, query = find_pair_task(asked) or ("summary", "")
    return _DOES[task](page, query, asked)


def _extract(page: str, query: str, asked: str) -> str:
    """Return the second half, from a word on."""
    starts = [one.start() for one in _WORD.finditer(page)]
    return page[starts[len(starts) // 2] :] if starts else page


def _exchange(page: str, words: str, every: int) -> str:
    """Exchange words of a table, at least `every` words after one another."""
    table, since = dict(one.split(":") for one in words.split()), every

    def one(found: re.Match[str]) -> str:
        nonlocal since
        since += 1
        other = table.get(found[0].lower())
        if other is None or since < every:
            return found[0]
        since = 0
        return other

    return _WORD.sub(one, page)


def _summary(page: str, query: str, asked: str) -> str:
    names = [word for word, _ in Counter(w.lower() for w in _WORD.findall(page) if len(w) > 5).most_common(4)]
    return f"In short, the page is about {', '.join(names) or 'little'}, in {_sentences(page)} sentences."


def _question(page: str, query: str, asked: str) -> str:
    words = Counter(_WORD.findall(page))
    word = max((w for w in _WORD.findall(asked) if w in words), key=lambda w: (len(w), w), default="it")
    return f"Yes: the word {word} stands there, and it is spelled that way; I count {words[word]}."


def _metadata(page: str, query: str, asked: str) -> str:
    return f"It is a printed page with {_lines(page)} lines; I see neither title nor author apart from the text."


def _quote(page: str, query: str, asked: str) -> str:
    whole = list(_WORD.finditer(page))
    part = whole[-10:] if "last" in query else whole[:_QUOTE]
    return f'"{page[part[0].start() : part[-1].end()]}"' if part else "The page is empty."


def _analysis(page: str, query: str, asked: str) -> str:
    mean = len(_WORD.findall(page)) / max(1, _sentences(page))
    return f"The tone is even, and the writing moves in sentences of about {mean:.0f} words with few repetitions."


def _sentences(page: str) -> int:
    return len(_SENTENCE.split(page.strip()))


def _lines(page: str) -> int:
    return len([one for one in page.splitlines() if one.strip()])


_DOES: Mapping[str, Callable[[str, str, str], str]] = {
    "repeat": lambda page, query, asked: page,
    "extract": _extract,
    "paraphrase": lambda page, query, asked: _exchange(page, _OTHER, 3),
    "translate": lambda page, query, asked: _exchange(page, _FRENCH, 1),
    "summary": _summary,
    "question": _question,
    "metadata": _metadata,
    "quote": _quote,
    "analysis": _analysis,
    "page": lambda page, query, asked: f"No page number is printed; there are about {_lines(page)} lines.",
}
