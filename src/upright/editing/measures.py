"""What an edit changed: each question asked before any edit exists and asked again, the same way for all who score.

Wanted is the target in ``edit``, ``text``, ``image`` and ``joint``, the answer that stands there in ``portability``,
and what the model *wrote before* in every other environment. Teacher-forced, that is its likeliest token at each place
of what it wrote: a model without an edit scores 1 there, cut-off answers included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.editing.environments import Environments
from upright.editing.prompts import EncodedQuestion, Question, answers, by_kind, encode, read
from upright.language.encoding import pad_of
from upright.metrics.editing import edit_values

__all__ = ["Asked", "Before", "Measured", "before", "measure", "present"]

Array = NDArray[np.float64]
_TARGET = ("edit", "text", "image", "joint", "portability")  # environments where the wanted answer is given


class Asked(NamedTuple):
    """One question: whose, where, its tokens with the wanted answer, the question, the tokens that are wanted."""

    edit: str
    environment: str
    encoded: EncodedQuestion
    question: Question
    wanted: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Before:
    """What a model says before any edit.

    ``left_out`` are environments that it cannot be asked, ``most`` the tokens of a written answer.
    """

    given: Mapping[str, Environments]
    questions: tuple[Asked, ...]
    left_out: tuple[str, ...]
    most: int


@dataclass(frozen=True, eq=False)
class Measured:
    """A row a question: 1 where the wanted answer is the likeliest (`equal`), and where it is written (`written`)."""

    edit: list[str]
    environment: list[str]
    equal: Array
    written: Array
    answers: list[str]

    def values(self) -> tuple[list[str], dict[str, Array]]:
        """Return the edits and their values, as `upright.metrics.editing.edit_values`."""
        return edit_values(self.edit, self.environment, self.equal, self.written)


def present(model: Any, processor: Any, given: Mapping[str, Environments]) -> dict[str, str]:
    """Return what a model answers now to the prompt of each edit."""
    encoded = [encode(processor, one.test["edit"][0]) for one in given.values()]
    return dict(zip(given, answers(model, processor, encoded, most=_most(encoded)), strict=True))


def before(model: Any, processor: Any, given: Mapping[str, Environments]) -> Before:
    """Ask a model all test questions before it is edited.

    Of a model that answers about images alone, environments without an image are left out and named.

    Raises
    ------
    InputError
        For a target that the model answers already, an edit without an image for such a model, and as `encode`.
    """
    flat = [(name, place, one) for name, own in given.items() for place, some in own.test.items() for one in some]
    plain = [one for one in flat if one[2].image is None]
    left = () if _able(model, processor, [one[2] for one in plain]) else tuple(dict.fromkeys(one[1] for one in plain))
    if left:
        flat = [one for one in flat if one[2].image is not None]
        for name in (name for name, own in given.items() if own.test["edit"][0].image is None):
            got = f"request {name} without an image, for a model that answers about images alone"
            raise InputError(got, "a request with an image", "add the image")
    for name, answer in present(model, processor, given).items():
        if _same(answer, target := given[name].test["edit"][0].answer):
            got = f"request {name} with the target {target!r}, which the model answers already"
            raise InputError(got, "an answer that it does not give yet", "leave the request out")
    known = [one if place in _TARGET else replace(one, answer="") for _, place, one in flat]
    encoded = [encode(processor, one) for one in known]
    most, open_ = _most(encoded), [i for i, one in enumerate(flat) if one[1] not in _TARGET]
    for i, said in zip(open_, answers(model, processor, [encoded[i] for i in open_], most=most), strict=True):
        known[i] = replace(known[i], answer=said)
        encoded[i] = encode(processor, known[i])
    best = _likeliest(model, processor, [encoded[i] for i in open_])
    wanted = dict(zip(open_, best, strict=True))
    found = [
        Asked(name, place, encoded[i], known[i], wanted.get(i, encoded[i].ids[encoded[i].prompt :]))
        for i, (name, place, _) in enumerate(flat)
    ]
    return Before(given, tuple(found), left, most)


def _able(model: Any, processor: Any, plain: Sequence[Question]) -> bool:
    """Whether a model answers questions without an image, tried on the first."""
    if not plain or not hasattr(processor, "image_processor"):
        return True
    try:
        answers(model, processor, [encode(processor, replace(plain[0], answer=""))], most=1)
    except Exception:  # whatever somebody else's processor or model raises
        return False
    return True


def _most(encoded: Sequence[EncodedQuestion]) -> int:
    """Return how many tokens are written: as many as the longest wanted answer has, at least 16."""
    return max([16, *(len(one.ids) - one.prompt for one in encoded)])


def measure(model: Any, processor: Any, was: Before, which: str | None = None) -> Measured:
    """Ask a model as it is now, edits that are applied included, all questions or those of one request."""
    asked = [one for one in was.questions if which in (None, one.edit)]
    if not asked:
        raise InputError(f"request {which!r}", ", ".join(was.given), "name one of these")
    encoded = [one.encoded for one in asked]
    said = answers(model, processor, encoded, most=was.most)
    best = _likeliest(model, processor, encoded)
    written = [_same(text, one.question.answer) for text, one in zip(said, asked, strict=True)]
    equal = [now == one.wanted if one.wanted else right for now, one, right in zip(best, asked, written, strict=True)]
    names, places = [one.edit for one in asked], [one.environment for one in asked]
    return Measured(names, places, np.array(equal, dtype=np.float64), np.array(written, dtype=np.float64), said)


def _likeliest(model: Any, processor: Any, encoded: Sequence[EncodedQuestion]) -> list[tuple[int, ...]]:
    """Return the likeliest token at each answer token."""
    found: list[tuple[int, ...]] = [()] * len(encoded)
    pad = pad_of(getattr(processor, "tokenizer", processor))
    for rows in by_kind(encoded, 32):  # rows over the vocabulary are dropped batch by batch
        for i, row in zip(rows, read(model, [encoded[i] for i in rows], pad=pad), strict=True):
            found[i] = tuple(row.argmax(-1).tolist())
    return found


def _same(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
