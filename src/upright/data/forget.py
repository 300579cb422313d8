"""Records that a language model must forget or keep: reading, checking, and the bundled part of TOFU.

A record is a prompt with its answer. Five shapes of JSON, in lines or in one array, are told apart by their keys:

==========================  =======================================================================
``question``, ``answer``    TOFU; also ``paraphrased_answer``, ``perturbed_answer``, ``paraphrased_question``
``prompt``, ``completion``  both texts, or both lists of chat messages with one message in the completion
``messages``                chat: the last message is the answer of the assistant, what stands before the prompt
``instruction``             Alpaca: with ``output``, and perhaps ``input``, which follows the instruction
``text``                    plain text without a prompt
==========================  =======================================================================

The content of a message is a text, or a list of parts of type ``text``. ``id`` and ``author`` are optional in each.
Other keys are an error: a misspelt one would be lost in silence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from upright.contract import InputError

__all__ = [
    "Kind",
    "Record",
    "conversation_of",
    "digest",
    "fingerprint",
    "object_rows",
    "read_records",
    "record_of",
    "refuse_overlap",
    "refuse_similar",
    "text_of",
    "tofu_records",
    "unique_records",
]

Kind = Literal["question", "completion", "text", "chat"]

_BUNDLED = Path(__file__).parent / "bundled" / "tofu-50-authors.jsonl.gz"
_SHAPES = "question and answer, prompt and completion, instruction and output, messages, or text"
_KEYS = (
    "question, answer, prompt, completion, messages, instruction, input, output, text, id, author, "
    "paraphrased_answer, perturbed_answer, paraphrased_question"
)
_GRAM, _ALIKE, _WORDS = 8, 0.8, 8  # letters of a piece, share of pieces in common, words of an answer by itself


@dataclass(frozen=True)
class Record:
    """One thing that a model was taught.

    Parameters
    ----------
    prompt, answer : str
        The prompt is empty for plain text; the answer never is.
    id : str
        Of the source, else the number of the line.
    author : str
        Whom it is about; empty when unknown.
    paraphrases : tuple of str
        The answer in other words.
    perturbed : tuple of str
        False answers of the same form.
    other_prompt : str
        The prompt in other words; empty when there is none.
    before : tuple of (str, str)
        Role and text of chat messages before the prompt.
    kind : {"question", "completion", "text", "chat"}
        In what form it was given, and with it in what form a model is asked for it.
    """

    prompt: str
    answer: str
    id: str = ""
    author: str = ""
    paraphrases: tuple[str, ...] = ()
    perturbed: tuple[str, ...] = ()
    other_prompt: str = ""
    before: tuple[tuple[str, str], ...] = ()
    kind: Kind = "question"


def digest(record: Record) -> str:
    """SHA-256 of what is to be forgotten: prompt and answer, white space at both ends left out; 64 hex digits."""
    parts = [*[list(pair) for pair in record.before], record.prompt.strip(), record.answer.strip()]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 over the digests of records, whatever their order; two sets are the same exactly when it is."""
    return hashlib.sha256("\n".join(sorted(digest(r) for r in records)).encode()).hexdigest()


def read_records(path: Any, *, cluster: str = "author") -> list[Record]:
    """Read records from JSON lines or one JSON array, plain or compressed; from another table or a data frame as well.

    Parameters
    ----------
    path : path or data frame
    cluster : str
        Key of what records have in common, such as a person; it becomes their author, and they are drawn together.

    Raises
    ------
    InputError
        When the file is missing, empty, no UTF-8 or no JSON, or a record has unknown keys, no known shape, an empty
        answer, or lacks the key that was asked for. The line is named.
    """
    return [record_of(value, where, str(i), cluster) for i, (where, value) in enumerate(object_rows(path))]


def object_rows(path: Any, shapes: str = _SHAPES) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each object of a file stands (``r.jsonl line 3``) and the object; empty cells of a table are no keys.

    Parameters
    ----------
    path : path or data frame
        As for `read_records`.
    shapes : str
        Keys of the objects, in words for errors.

    Raises
    ------
    InputError
        As `read_records`, for what makes the whole file unreadable, and for a row that is no object.
    """
    from upright.data.formats import json_rows, open_columns

    if isinstance(path, str | Path) and not re.search(r"\.(csv|tsv|parquet|pq)(\.\w+)?$", str(path), re.IGNORECASE):
        name, found = Path(path).name, json_rows(Path(path))
    else:
        table = open_columns(path)
        cells = ({k: v for k, v in row.items() if v is not None} for row in table.frame.to_dicts())
        name, found = table.name, (("row", i, row) for i, row in enumerate(cells, start=1))
    empty = True
    for word, number, value in found:
        if not isinstance(value, dict):
            got = f"{name} {word} {number}: {type(value).__name__}"
            raise InputError(got, "one JSON object a line", "correct that line")
        empty = False
        yield f"{name} {word} {number}", value
    if empty:
        raise InputError(f"{name} without a record", f"JSON lines with {shapes}", "check the file")


def record_of(value: Mapping[str, Any], where: str, number: str, cluster: str = "author") -> Record:
    """Return one record, whatever shape it has; ``where`` stands in errors, ``number`` is its id where it has none."""
    if odd := [k for k in value if k not in [*_KEYS.split(", "), cluster]]:
        raise InputError(f"{where}: key {odd[0]!r}", _KEYS, "rename the key or leave it out")
    if cluster != "author" and value.get(cluster) is None:
        raise InputError(f"{where}: no {cluster!r}", "the key that says which records belong together", "add it to all")
    before: tuple[tuple[str, str], ...] = ()
    kind: Kind = "question"
    if "messages" in value:
        kind, (before, prompt, answer) = "chat", conversation_of(value["messages"], where)
    elif "prompt" in value and isinstance(value["prompt"], list):
        completion = value.get("completion")
        messages = [*value["prompt"], *(completion if isinstance(completion, list) else [])]
        kind, (before, prompt, answer) = "chat", conversation_of(messages, where)
    elif "text" in value:
        kind, prompt, answer = "text", "", text_of(value, "text", where)
    elif "instruction" in value:
        prompt, answer = text_of(value, "instruction", where), text_of(value, "output", where)
        more = text_of(value, "input", where) if value.get("input") is not None else ""
        prompt = f"{prompt}\n\n{more}" if more else prompt
    elif "question" in value:
        prompt, answer = (text_of(value, key, where) for key in ("question", "answer"))
    else:
        kind, (prompt, answer) = "completion", (text_of(value, key, where) for key in ("prompt", "completion"))
    if not answer.strip():
        raise InputError(f"{where}: an empty answer", "an answer with text", "leave the record out or complete it")
    return Record(
        prompt,
        answer,
        id=str(value.get("id", number)),
        author=str(value.get(cluster, "")),
        paraphrases=_texts(value, "paraphrased_answer", where),
        perturbed=_texts(value, "perturbed_answer", where),
        other_prompt=text_of(value, "paraphrased_question", where) if "paraphrased_question" in value else "",
        before=before,
        kind=kind,
    )


def text_of(value: Mapping[str, Any], key: str, where: str, shapes: str = _SHAPES) -> str:
    """Return the text under a key; refuse what is none, or not there."""
    found = value.get(key)
    if not isinstance(found, str):
        got = f"no {key!r}" if found is None else f"{key!r} of type {type(found).__name__}"
        raise InputError(f"{where}: {got}", f"texts under {shapes}", "complete the record")
    return found


def _texts(value: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    found = value.get(key, [])
    many = [found] if isinstance(found, str) else found
    if not isinstance(many, list) or not all(isinstance(one, str) and one.strip() for one in many):
        raise InputError(f"{where}: {key!r} is no text", "a text or a list of texts, none empty", "correct it")
    return tuple(many)


def conversation_of(messages: Any, where: str) -> tuple[tuple[tuple[str, str], ...], str, str]:
    """Take a conversation apart: what stands before, the last prompt, the answer of the assistant."""
    given = messages if isinstance(messages, list) and all(isinstance(m, dict) for m in messages) else []
    pairs = [(m.get("role"), _content(m.get("content"), where)) for m in given]
    whole = len(pairs) >= 2 and all(isinstance(text, str) for pair in pairs for text in pair)
    if not whole or pairs[-1][0] != "assistant":
        accepted = "two or more messages with role and content, the last one by the assistant"
        todo = "end the conversation with the answer"
        raise InputError(f"{where}: messages that do not end with an answer", accepted, todo)
    return tuple(pairs[:-2]), pairs[-2][1], pairs[-1][1]


def _content(content: Any, where: str) -> Any:
    """Return the text of a message; of a list of parts all of them, joined."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            todo = "leave the record out: images and sounds are not read"
            raise InputError(f"{where}: a part of type {kind!r} in a message", "parts of type 'text'", todo)
    return "".join(part["text"] for part in content)


def unique_records(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Return records without repetitions, in order, and how many were left out."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(digest(record), record)
    return list(first.values()), len(records) - len(first)


def refuse_overlap(**sets: Sequence[Record]) -> None:
    """Refuse sets that share a record: what must be forgotten cannot be kept, nor can what was trained on be held out.

    Raises
    ------
    InputError
        With the ids of the first shared record in both sets, and how many there are.
    """
    names = list(sets)
    for i, one in enumerate(names):
        own = {digest(r): r.id for r in sets[one]}
        for other in names[i + 1 :]:
            both = [(own[digest(r)], r.id) for r in sets[other] if digest(r) in own]
            if both:
                got = f"record {both[0][0]} of {one} is record {both[0][1]} of {other} ({len(both)} shared)"
                todo = f"take the shared records out of {other}"
                raise InputError(got, f"{one} and {other} without a common record", todo)


def refuse_similar(*, allow: bool = False, **sets: Sequence[Record]) -> list[str]:
    """Refuse sets with records that are nearly the same: what is kept in other letters is not forgotten.

    Two texts are alike when the Jaccard similarity of their runs of 8 letters and digits, in folded case, is above 0.8.
    Whole records are compared, and answers of eight words or more by themselves: such an answer given as a text is the
    same record.

    Parameters
    ----------
    allow : bool
        Return what was found in place of refusing it.
    **sets : sequence of Record

    Returns
    -------
    list of str
        One sentence for each two sets with similar records.

    Raises
    ------
    InputError
        With the ids of the first similar records in both sets, and how many there are.
    """
    names, notes = list(sets), []
    pieces = {name: [_grams(r) for r in sets[name]] for name in names}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            both = _alike(pieces[one], pieces[other])
            if both:
                first, second = sets[one][both[0][0]].id, sets[other][both[0][1]].id
                got = f"record {first} of {one} is nearly record {second} of {other} ({len(both)} such pairs)"
                if not allow:
                    todo = f"take these records out of {other}, or pass --allow-similar"
                    raise InputError(got, f"{one} and {other} without near-duplicates", todo)
                notes.append(got)
    return notes


def _grams(record: Record) -> tuple[frozenset[str], frozenset[str]]:
    """Return the pieces of a whole record, and those of its answer where that is long enough to stand by itself."""
    texts = (*(text for _, text in record.before), record.prompt, record.answer)
    parts = (" ".join(texts), record.answer if len(record.answer.split()) >= _WORDS else "")
    plain = ("".join(c for c in text.casefold() if c.isalnum()) for text in parts)
    whole, answer = (frozenset(p[i : i + _GRAM] for i in range(max(1, len(p) - _GRAM + 1))) - {""} for p in plain)
    return whole, answer


def _alike(
    one: Sequence[tuple[frozenset[str], ...]], other: Sequence[tuple[frozenset[str], ...]]
) -> list[tuple[int, int]]:
    """Return which records of two sets are alike, by their places; only records that share a piece are compared."""
    found = set()
    for part in range(2):
        holders: dict[str, list[int]] = {}
        for j, grams in enumerate(pair[part] for pair in other):
            for gram in grams:
                holders.setdefault(gram, []).append(j)
        for i, grams in enumerate(pair[part] for pair in one):
            shared = Counter(j for gram in grams for j in holders.get(gram, ()))
            sizes = ((j, n, len(grams) + len(other[j][part]) - n) for j, n in shared.items())
            found |= {(i, j) for j, n, union in sizes if n > _ALIKE * union}
    return sorted(found)


def tofu_records() -> list[Record]:
    """Return the bundled part of TOFU: 50 fictitious authors with 20 questions each.

    The first 40, the first and the last 20 of TOFU's 200, have paraphrased and perturbed answers; the last 10 are for
    membership, and their records are given to no model.
    Source: Maini et al., *TOFU* (2024), arXiv 2401.06121; MIT licence, see ``bundled/LICENSE-tofu``.
    """
    return read_records(_BUNDLED)
