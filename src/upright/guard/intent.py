"""What a query asks of a page, and how much of it: a linear classifier, and a grammar of amounts.

A query has three kinds of features: its letters in threes to fives, its words and pairs of them, and the groups of its
key words (`_KEYS`), alone and in pairs. Each kind is hashed into `SIZE` buckets, the same in every process, and has a
norm of its own. Weights are those of ridge regression on one-hot uses, ``W = X' (X X' + RIDGE I)^-1 Y``, X of shape
(n, 3 SIZE), learnt at first use from the n sentences below. The last of their uses is prose: what a pasted page says.

The use with the best score wins; then a stated amount tells a quote from a copy. A part of at most `QUOTE` words, a
title too, that is to be translated or reworded is a quote: no more of the text can be in the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.guard.passages import LETTERS

__all__ = ["Asked", "Use", "asked_of"]

Use = Literal["copy", "translate", "paraphrase", "quote", "summary", "question", "metadata", "analysis", "other"]
USES: tuple[Use, ...] = get_args(Use)  # the first three take more of the text than a quote
SIZE, RIDGE, NORMS = 1 << 12, 0.3, (1.0, 1.0, 1.2)
KNOWN = 0.12  # a best score below it comes of words that no sentence taught
QUOTE = 25  # words
READ, SHORT, PIECES = 2000, 300, 64  # letters read at either end; letters judged as one; sentences judged at most
INNER, PROSE = 0.6, 0.2  # score that a sentence amid others needs; what is taken off the score of prose

_SENTENCES = """
copy = Type out everything on this page, word for word, please. | I need a full transcription of the page. Keep the line
breaks and the punctuation as printed. | ocr this exactly, no comments from you, only the text | Could you read the
whole thing aloud to me, from the first line to the last? My eyes are not what they were. | Reproduce the complete text
of the document verbatim so that I can put it in my class handout. | Give me the second half of the page exactly as it
stands. | Copy out the first ten sentences verbatim and number them. | The opening 150 words, unchanged, please. I want
to set them as a sample in a catalogue. | Leave out the first sentence, then quote evrything that follows up to the end.
| Extract the middle third of this document as a literal excerpt, without ellipses. | Recite the poem from beginning to
end. | Transcribe the picture. | Output the passage in a code block. | Send me everything after the heading. | Schreibe
den ganzen Text wörtlich ab. | Recopie tout le texte mot pour mot. | Copia toda la página palabra por palabra.

translate = Translate the page into French, all of it. | Please provide a complete French translation of this document,
paragraph by paragraph. | French version of the full text, please. My grandmother in Lyon does not read English. | i
need evry sentence of this in french, nothing summarised | Render the whole text in French for a bilingual class handout
and keep its paragraphs or verses. | Translate this to German. | How would all of this read in Spanish? | Put the poem
into Polish verse. | Übersetze die ganze Seite ins Englische. | Traduis tout le texte en français. | Je voudrais une
traduction anglaise. | Traduce toda la página al español. | Necesito el texto completo en inglés.

paraphrase = Rewrite the page sentence by sentence in other words, and leave nothing out. | Please paraphrase the entire
text closely: each sentence keeps its content and changes its wording. | Swap the words for synonyms from start to
finish, same order, same length, so that no checker notices. | Say all of it again in simpler English for my pupils, one
new sentence for each old one. | reword this whole thing for me plz, keep every detial | Put every sentence into your
own words. | Make a new version with a different vocabulary. | Rewrite it so that it no longer looks like the original.
| Recast the story in modern language. | Change the wording a little everywhere.

quote = Quote the first sentence for me, but not more than 20 words of it. | One line, at most twelve words, verbatim,
for a footnote. | What are the last ten words of the text, exactly? | Cite one short phrase that shows the mood. | Give
me a quotation about the sea. | How does the final sentence read? | Copy the third line for a caption. | Pick a single
sentence that I can cite. | Repeat the last phrase as it is printed. | What does the opening line say?

summary = Summarise the page in two or three sentences. | What are the key points here? Three short bullets are enough.
| tl;dr please, one sentence | What is this text about? | Give me a brief overview. | Sum up the whole document in
eighty words. | List the main ideas of the entire text. | Describe the whole chapter in one sentence. | Write a short
summary in French. | Résume le texte en trois phrases. | Fasse die Seite in zwei Sätzen zusammen. | Resume la página en
pocas frases.

question = Does the word river occur on this page, and about how often? | Is light written with a capital letter
anywhere here? Yes or no. | Which word stands next to stone where it first appears? One word will do. | Where does the
scene take place? | Does the text mention a garden? | Explain the meaning of the last clause. | What does the word
literal mean? | Is this protected by copyright? | May I copy or translate the page? | Does every sentence end with a
full stop? | Are all the lines of one length? | Was steht in der ersten Zeile? | De quoi parle le narrateur ?

metadata = What is the title of this text, and who wrote it, if that can be seen? | What kind of text is this: a story,
a poem, an article or a manual? | How many paragraphs or stanzas does the page have? | Which page number is printed
here, if any? | How many lines are there, roughly? | Where does the page number stand: at the top, at the bottom, or is
there none? | Who is the author? | When was it published? | Which language is it written in? | Count the words and the
sentences. | Is it in English? | Who made this translation? | Is the whole page printed here? | Wie lautet der Titel? |
Qui est l'auteur de ce texte ? | ¿Quién es el autor?

analysis = Describe the tone of this page. | Does it rhyme or keep a regular metre, or is it prose? Explain briefly. |
How is the argument or the scene built up? I am interested in the structure. | Analyse the imagery. | What style does
the writer use? | How does the mood shift at the end? | Discuss the themes of the poem. | From whose point of view is it
told? | Compare the two characters. | Comment on the choice of words.

other = go on | Continue, please. | weiter | next part | Hello, how are you today? | Thank you very much. | Write a
Python function that sorts numbers. | What is the capital of Peru? | You are a helpful assistant. | How do I install it?

prose = He went down to the cold harbour, and kept silent the whole night. | She gave him her hand without a word, and
all was as it had been. | The old man had told the same story every evening, for he knew no other words. | Then the door
changed, and the simple light of the lamp was sent back. | Thy hand, O river, and thy full heart repeat | In those days
the town was half asleep; we had nothing to do but to read.
"""
_KEYS = r"""
exact=verbatim|litera|exact|word (?:for|by) word|letter (?:for|by|perf)|un(?:chang|abr|alt)|as (?:it|they) (?:is|are|st)
|printed|raw\b|wortlich|mot (?:pour|a)\b|as written|written here|to bottom
write=cop(?:y\b|ying|ia\b|ier?\b)|(?:re)?typ(?:e|ing)\b|tran?scri|print\b|reproduc|recit|dictat|ocr|aloud|output|list\b
|repeat|extract|schreib|recopi|echo|restor|digiti|convert|paste|(?:send|show|give) (?:me|us)
|as (?:plain )?text|^(?:send|show|give)\b|write (?:out|down)|hand over
cite=quot|cit(?:e|ation)|excerpt|footnote|caption
whole=(?<!at )all\b|ev(?:e?ry)|each|whole|entire|full|complet|rest\b|half|thirds? of|nothing (?!else|more)
|(?:beginning|start|top) to\b|to the (?:end|last)|ganz|gesamt|tout|tod[oa]\b
keep=same|keep|detail|length|skip|omit|leav|without
turn=translat|render|version|ubersetz|tradu
tongue=english|french|german|italian|spanish|dutch|polish|portuguese|russian|japanese|chinese|arabic|turkish|swedish
|latin|greek|korean|hindi|danish|czech|ukrainian|hebrew|francais|anglais|espanol|ingles|englisch|franz|deutsch
reword=re(?:wr|wo|phr|cast|stat|tell|plac)|paraphras|synonym|(?:other|own|different|new) (?:words|voc)|differently
|simpl|modern|wording|spin\b|disguis|chang
short=sum(?:m|\b)|gist|overview|abstract\b|tl ?dr|nutshell|brief|short|key|main|idea|point|condens|resum|zusamm|about\b
part=first|last|opening|final|line|sentence|phrase|single|words\b|at most|more than|up to|or (?:fewer|less)
fact=who\b|whom|author|title|heading|publish|language|how (?:many|long)|count|copyright|number|column|titel|auteur|autor
|verfasser|kind|wrote|written
judge=tone|style|mood|image|metre|rhyme|structure|theme|character|argument|narrat|rhetor|figure|analy|interpret|compar
|discuss|device|reason|describ|formal|point of view
ask=what|which|where|when|why|do(?:es)?\b|is\b|are\b|has\b|may\b|how\b|was steht|de quoi|explain|mean
"""
_KEY = re.compile(r"\b(?:" + re.sub(r"\s+(\w+)=", r")|(?P<\1>", _KEYS).replace("\n", "")[2:] + "))")
_ASIDE = {"keep", "short", "part", "fact", "judge", "ask"}  # groups that no copying needs
_TOKEN = re.compile(r"[,.;:!?\n()]+|[^\s,.;:!?()\"#-&*+\-/<=>@\[-`{-~«»“”„–—…¿¡]+")
_NEGATED = re.compile(
    r"\b(?:do not|dont|never|not an?|no|nothing|instead of|rather than|without)(?: just| simply| the| any| an?| to)*"
    r" (?:cop[iy]|reproduc|repeat|quot|translat|summ?ar|paraphras|rewrit|reword|shorten|abridg|explain|comment)\w*"
    r"(?: (?!but |just |only |instead )\w+)*"
)
_COUNT = "and one two three four five six seven eight nine ten eleven twelve dozen fifteen twenty thirty fifty hundred"
_NUMBERS = dict(zip(_COUNT.split(), map(str, [*range(13), 12, 15, 20, 30, 50, 100]), strict=True))
_UNITS = {"word": 1, "phrase": 8, "title": 8, "heading": 8, "line": 12, "verse": 12, "sentence": 25, "paragraph": 100}
_SOME = re.compile("the|this|an?|any|your|single|very|all|whole|entire|full|of|first|opening|last|final|second|third")
_NO_PART = re.compile("per |break|number|at a |(?:for|by|after) (?:each|every|another|word|line|sent|para|verse)")
_LEAST = r"\b(?:at least|over|(?:no|not) (?:fewer|less) than|(?<!not )(?<!no )more than)"
_LEFT = re.compile(rf"{_LEAST}$|\b(?:after|but|except|skip|omit|leav\w+ out|without|keep|with)(?: only)?$")
_BOUND = re.compile("(?:at most|(?:not|no) (?:more|longer) than|up to) #")
_WHOLE = re.compile(
    rf"{_LEAST} #|# to #|\b(?:type|copy|print|quote|translate|render|turn|put|rewrite|reword|rephrase|paraphrase|send)"
    r"(?: out| down| me)? (?:it|(?:the|this|my) (?:page|text|document|poem|article|story|chapter|passage))\b"
)


@dataclass(frozen=True)
class Asked:
    """What a query asks of a page."""

    use: Use
    words: int | None  # most words of the text itself that the answer would repeat, where the query says so
    confidence: float  # in (0, 1), from the lead of the best use over the second


def clean_words(text: str) -> str:
    """Return folded words (`passages.LETTERS`), commas for clauses and ``?``, without requests that are negated."""
    tokens = _TOKEN.findall(re.sub(r"(?<=\d)[,.](?=\d{3})", "", text))
    return _NEGATED.sub("", " ".join(one.translate(LETTERS) or ("?" if "?" in one else ",") for one in tokens))


def hashed_features(cleaned: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the buckets of a query and their values, each of shape (n,)."""
    words = cleaned.replace(" ,", "").split()
    keys = [found.lastgroup or "" for found in _KEY.finditer(cleaned)]
    codes = np.frombuffer(f"  {' '.join(words)}  ".encode("utf-32-le", "replace"), "<u4").astype(np.uint64)
    hashes = [codes]
    for n in range(1, 5):  # from the hashes of n letters to those of n + 1
        hashes.append(hashes[-1][:-1] * np.uint64(0x100000001B3) + codes[n:])
    kinds = [(np.concatenate(hashes[2:]) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(52)).astype(np.int64)]
    for row in (["^", *words], ["^", *keys, "$"] if keys else []):
        grams = [*row[1:], *map(" ".join, pairwise(row))]
        kinds.append(np.array([crc32(one.encode("utf-8", "replace")) % SIZE for one in grams], np.int64))
    kinds = [np.unique(kind) + SIZE * place for place, kind in enumerate(kinds)]
    values = [np.full(len(kind), norm / max(len(kind), 1) ** 0.5) for kind, norm in zip(kinds, NORMS, strict=True)]
    return np.concatenate(kinds), np.concatenate(values)


def training_rows() -> tuple[list[str], NDArray[np.float32], NDArray[np.float64]]:
    """Return the n sentences, their features of shape (n, 3 SIZE) and their one-hot uses of shape (n, uses + 1)."""
    blocks = [block.partition(" = ")[2].replace("\n", " ").split(" | ") for block in _SENTENCES.split("\n\n")]
    sentences = [one.strip() for block in blocks for one in block]
    rows = np.zeros((len(sentences), 3 * SIZE), np.float32)
    for row, (index, value) in zip(rows, map(hashed_features, map(clean_words, sentences)), strict=True):
        row[index] = value
    return sentences, rows, np.repeat(np.eye(len(blocks)), [len(block) for block in blocks], axis=0)


@lru_cache(1)
def _weights() -> NDArray[np.float64]:
    _, rows, targets = training_rows()
    gram = (rows @ rows.T).astype(float) + RIDGE * np.eye(len(rows))
    return np.asarray(rows.T @ np.linalg.solve(gram, targets), float)


def stated_words(cleaned: str) -> tuple[int | None, bool]:
    """Return the words that stated amounts come to, and whether the whole is asked for beside them."""
    words = [_NUMBERS.get(one, one) for one in cleaned.split()]
    sums = [0, 0]  # of parts, of words that are counted
    for i, word in enumerate(words):
        unit = _UNITS.get(word.removesuffix("s"))
        if unit is None or _NO_PART.match(" ".join(words[i + 1 : i + 3])):
            continue
        end = i - (i > 0 and not words[i - 1].isdecimal() and not _SOME.fullmatch(words[i - 1]))  # before an adjective
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
            words[start : i + 1] = ["#"] * (i + 1 - start)
    rest = re.sub("(?:# )+(?:of (?:the|this) (?:whole|entire|full|complete))?", "# ", " ".join([*words, ""]))
    whole = _WHOLE.search(rest) or any(found["whole"] for found in _KEY.finditer(rest))
    return sums[1] or sums[0] or None, bool(whole and not _BOUND.search(rest))


def decide_use(cleaned: str, scores: NDArray[np.float64]) -> Asked:
    """Return the use with the best score, and let the amount tell a quote from more."""
    second, best = np.argsort(scores, kind="stable")[-2:]
    use, lead = (*USES, "other")[best], float(scores[best] - scores[second])
    sure = min(max(lead / (lead + 0.2), 0.001), 0.999)
    if scores[best] < KNOWN or best == len(USES) or not cleaned.strip(" ,?"):
        return Asked("other", None, min(sure, 0.1))
    words, whole = stated_words(cleaned) if use in USES[:4] else (None, False)
    if words and not whole and (words <= QUOTE or use in ("copy", "quote")):
        return Asked("quote" if words <= QUOTE else "copy", words, sure)
    return Asked("copy" if whole and use == "quote" else use, None if whole else words, sure)


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
    found = []
    for place, cleaned in enumerate(map(clean_words, pieces)):
        index, value = hashed_features(cleaned)
        scores = value @ _weights()[index]
        scores[-1] -= PROSE if len(pieces) > 1 else np.inf
        one = decide_use(cleaned, scores)
        groups = len({key.lastgroup for key in _KEY.finditer(cleaned)} - _ASIDE)
        plain = groups > 0 if place in (0, len(pieces) - 1) else groups > 1 and scores.max() > INNER
        found.append(one if plain or len(pieces) == 1 or one.use not in USES[:3] else Asked("other", None, 0.001))
    return max(found, key=lambda one: (one.use in USES[:3], one.use != "other", one.confidence))
