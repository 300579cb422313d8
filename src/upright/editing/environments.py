r"""Edit requests, read from a file, and the environments in which an edit is trained and tested.

====================================  ==============================================================================
``prompt`` (or ``src``)               what is asked, with ``image`` beside it unless it is of text alone
``target`` (or ``alt``)               what must be answered
``rephrase``, ``image_rephrase``      the question in other words, other pictures of the same thing
``loc``, ``loc_ans``                  unrelated questions of text, with answers
``m_loc``, ``m_loc_q``, ``m_loc_a``   unrelated pictures, with questions and answers; other questions about the same
                                      picture where it is that of the request
``portability`` (or ``port_new``)     what follows: ``{"question", "answer"}``, alone or under VLKEB's ``"Q&A"``; about
                                      the picture, unless ``"image": null`` stands there too
====================================  ==============================================================================

These are the keys of MMEdit and VLKEB; each may hold a list. Others are passed over. An image is a path below the
folder of the file or a ``data:`` URL, and its size is read before its pixels.

What a request brings tests it; of several, the first ones train and the last never does. What is missing is made:
re-phrasings of other templates in training than in the test, views from other random streams.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from upright.contract import InputError, stream
from upright.data.forget import object_rows
from upright.editing.prompts import Question

__all__ = [
    "EditRequest",
    "Environments",
    "environments",
    "image_digest",
    "image_view",
    "question_key",
    "read_image",
    "read_requests",
]

T = TypeVar("T")
_TARGET, _BYTES, _PIXELS = 400, 20 << 20, 1 << 24  # most characters of a target; most bytes and pixels of an image
_KEYS = "prompt src target alt image rephrase image_rephrase loc loc_ans m_loc m_loc_q m_loc_a portability port_new id"
_TRAIN = ("Question: {}", "Please answer: {}", "Answer in a few words. {}", "I have a question. {}")
_TEST = ("Tell me: {}", "Can you say this? {}", "Here is what I ask: {}", "Let me know. {}")


@dataclass(frozen=True, eq=False)
class EditRequest:
    """One fact to correct, with what should change beside it and what should not.

    An `InputError` for an empty prompt, a target that is empty or has more than 400 characters, and a re-phrasing that
    comes again or holds the target where the prompt does not.
    """

    id: str
    edit: Question
    rephrase: tuple[str, ...] = ()
    image_rephrase: tuple[Image.Image, ...] = ()
    loc: tuple[Question, ...] = ()
    m_loc: tuple[Question, ...] = ()
    portability: tuple[Question, ...] = ()

    def __post_init__(self) -> None:
        name, prompt, target = f"request {self.id}", self.edit.prompt, self.edit.answer
        if not prompt.strip() or not 0 < len(target.strip()) <= _TARGET:
            got = f"{name} with a prompt of {len(prompt.strip())} and a target of {len(target.strip())} characters"
            raise InputError(got, f"a prompt, and a target of 1 to {_TARGET} characters", "correct the request")
        for i, one in enumerate(self.rephrase):
            if _spoilt(one, (prompt, *self.rephrase[:i]), target):
                got = f"{name} with a rephrase that comes again or holds the target: {one[:60]!r}"
                raise InputError(got, "other words for the prompt", "leave that rephrase out")


@dataclass(frozen=True, eq=False)
class Environments:
    """Questions by environment; no training question but the edit is a test."""

    train: Mapping[str, tuple[Question, ...]]
    test: Mapping[str, tuple[Question, ...]]


def _folded(text: str) -> str:
    """Return a text in folded case, without what ends a sentence and with single spaces, to compare texts by."""
    return " ".join(text.casefold().split()).rstrip(" .?!:")


def _spoilt(phrase: str, others: Sequence[str], target: str) -> bool:
    """Whether a re-phrasing is empty, one of the others, or holds the target where the first of them does not."""
    word = re.compile(rf"(?<!\w){re.escape(_folded(target))}(?!\w)")
    held = word.search(_folded(phrase)) and not word.search(_folded(others[0]))
    return not _folded(phrase) or _folded(phrase) in map(_folded, others) or bool(held)


def image_digest(image: Image.Image) -> str:
    """SHA-256 of size and pixels, 64 hex digits."""
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def question_key(question: Question) -> tuple[str, str]:
    """Return what is equal where two questions ask the same: the pixels, and the words in folded case."""
    return "" if question.image is None else image_digest(question.image), _folded(question.prompt)


def image_view(image: Image.Image, rng: np.random.Generator, strong: float = 1.0) -> Image.Image:
    """Turn a picture by up to 8 degrees, crop up to 10 % a side, change its light by up to 25 %, write it as JPEG."""
    (w, h), (a, b, c, d) = image.size, rng.uniform(0.0, 0.1 * strong, 4)
    angle, light = rng.uniform(-1.0, 1.0, 2) * strong
    view = image.convert("RGB").rotate(8 * angle, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127))
    view = view.resize((w, h), Image.Resampling.BILINEAR, (a * w, b * h, (1 - c) * w, (1 - d) * h))
    written = io.BytesIO()
    ImageEnhance.Brightness(view).enhance(1 + 0.25 * light).save(written, "JPEG", quality=int(rng.integers(70, 96)))
    return Image.open(written).convert("RGB")


def environments(
    request: EditRequest, *, seed: int = 0, paraphrases: int = 2, views: int = 2,
    unrelated: Sequence[Question] = (), same: Sequence[Question] = (),
) -> Environments:  # fmt: skip
    """Return the questions that train an edit and, apart from them, those that test it.

    So many `paraphrases` and `views` train, and as many are made for the test where the request brings none. Where it
    brings `unrelated` questions, half of its own and all of these train; else half of these, as of `same`, which are
    other questions about the picture. A training question that is a test as well is an `InputError`.
    """
    edit, image = request.edit, request.edit.image

    def made(part: str, templates: Sequence[str]) -> tuple[list[str], list[Image.Image]]:
        rng = np.random.default_rng(stream(seed, request.id, part))
        texts = [templates[i].format(edit.prompt) for i in rng.permutation(len(templates))]
        fit = [one for one in texts if not _spoilt(one, (edit.prompt, *request.rephrase), edit.answer)]
        return fit[:paraphrases], [] if image is None else [image_view(image, rng) for _ in range(views)]

    def split(given: Sequence[T], count: int, train: Sequence[T], test: Sequence[T] = ()) -> tuple[list[T], list[T]]:
        first = min(count, max(len(given) - 1, 0))
        return [*given[:first], *train[: max(0, len(train) - first)]], list(given[first:] or test)

    def apart(own: Sequence[Question], pool: Sequence[Question]) -> tuple[list[Question], list[Question]]:
        half = split(own or pool, len(own or pool) // 2, ())
        return [*half[0], *(pool if own else ())], half[1]

    (texts, looks), (other_texts, other_looks) = made("train", _TRAIN), made("test", _TEST)
    words = split(request.rephrase, paraphrases, texts, other_texts)
    pictures = split(request.image_rephrase, views, looks, other_looks)
    tested = {question_key(one) for one in (edit, *request.loc, *request.m_loc, *request.portability)}
    pool = [one for one in unrelated if question_key(one) not in tested]
    plain = apart(request.loc, [one for one in pool if one.image is None])
    own = None if image is None else image_digest(image)
    about = [one for one in request.m_loc if one.image is not None and image_digest(one.image) == own]
    others = [one for one in request.m_loc if one not in about]
    shown = apart(others, [one for one in pool if one.image is not None])
    beside = apart(about, [one for one in same if question_key(one) not in tested])
    sides: list[dict[str, Sequence[Question]]] = [
        {
            "edit": [edit],
            "text": [replace(edit, prompt=one) for one in words[side]],
            "image": [replace(edit, image=one) for one in pictures[side]],
            "unrelated_text": plain[side],
            "unrelated_image": shown[side],
            "same_image": beside[side],
        }
        for side in (0, 1)
    ]
    n = max(len(words[1]), len(pictures[1])) if words[1] and pictures[1] else 0
    both = [(words[1][i % len(words[1])], pictures[1][i % len(pictures[1])]) for i in range(n)]
    sides[1]["joint"] = [replace(edit, prompt=one, image=picture) for one, picture in both]
    sides[1]["portability"] = request.portability
    if image is not None:
        moved = [Question(edit.prompt, "", one.image) for one in shown[1]]
        sides[1]["other_image"] = list({question_key(one): one for one in moved}.values())
        sides[1]["no_image"] = [Question(edit.prompt, "")]
    used = {question_key(one): name for name, part in sides[0].items() for one in part}
    for name, one in ((name, one) for name, part in sides[1].items() if name != "edit" for one in part):
        if question_key(one) in used:
            got = f"request {request.id}: {one.prompt[:60]!r} in training ({used[question_key(one)]}) and test ({name})"
            raise InputError(got, "tests that no training has seen", "take it out of one of the two")
    return Environments(*({name: tuple(part) for name, part in side.items() if part} for side in sides))


# -- reading --------------------------------------------------------------------------------------------------------


def read_requests(path: Any, *, text_only: bool = False) -> list[EditRequest]:
    """Read edit requests from JSON lines or one array, with their images; `text_only` refuses images.

    An `InputError` names the line: as `EditRequest`; of what cannot be read, a key that looks misspelt, lists that do
    not fit, an id that comes twice, and two requests that want different answers to one question about one picture. A
    warning counts the re-phrasings that were left out because they come again or hold the target, as 45 of MMEdit do.
    """
    folder, known, left = Path(path).resolve().parent, _KEYS.split(), list[str]()
    found: dict[str, EditRequest] = {}
    asked: dict[tuple[str, str], EditRequest] = {}
    for i, (where, row) in enumerate(object_rows(path, _KEYS.replace(" ", ", "))):
        for key in (key for key in row if key not in known):
            if near := get_close_matches(key, [one for one in known if one not in row], 1, 0.85):
                raise InputError(f"{where}: key {key!r}", near[0], "rename the key")
        try:
            request = _request(row, str(row.get("id", i)), folder, text_only)
        except InputError as error:
            raise InputError(f"{where}: {error.got}", error.accepted, error.todo) from None
        other = asked.setdefault(question_key(request.edit), request)
        if request.id in found:
            raise InputError(f"{where}: id {request.id!r} again", "an id of its own for each", "correct the ids")
        if _folded(other.edit.answer) != _folded(request.edit.answer):
            got = f"{where}: request {request.id} wants another answer than request {other.id} to the same question"
            raise InputError(got, "one target for a question about a picture", "leave one of the two out")
        found[request.id] = request
        left += [where] * (len(_texts(row, "rephrase")) - len(request.rephrase))
    if left:
        warnings.warn(f"{len(left)} re-phrasings left out: {left[0]} first", UserWarning, stacklevel=2)
    return list(found.values())


def _request(row: Mapping[str, Any], name: str, folder: Path, text_only: bool) -> EditRequest:
    """Return the request of one object, without re-phrasings that may not stand."""
    keys = ("image", "image_rephrase", "m_loc")
    if text_only and (held := [key for key in keys if row.get(key)]):
        todo = "leave the key out, or take a model that reads images"
        raise InputError(f"key {held[0]!r}, for a model of text alone", "requests without images", todo)
    image, looks, seen = ([read_image(one, folder) for one in _texts(row, key)] for key in keys)
    prompt, target = _texts(row, "prompt", "src"), _texts(row, "target", "alt")
    if not prompt or not target or len(image) > 1:
        got = f"{len(prompt)} prompts, {len(target)} targets and {len(image)} images"
        raise InputError(got, "prompt (or src), target (or alt) and at most one image", "correct the request")
    edit = Question(prompt[0], target[0], image[0] if image else None)
    plain, shown = (_asked(row, *pair) for pair in (("loc", "loc_ans"), ("m_loc_q", "m_loc_a")))
    if len(shown) != len(seen):
        got = f"{len(seen)} m_loc and {len(shown)} m_loc_q"
        raise InputError(got, "a question for each picture", "complete the lists")
    hops, follows, phrases = row.get("portability") or row.get("port_new") or [], list[Question](), list[str]()
    for hop in hops if isinstance(hops, list) else [hops]:
        said = hop.get("Q&A", hop) if isinstance(hop, dict) else {}
        said = {key.lower(): value for key, value in said.items()}
        pairs = _asked(said, "question", "answer")
        if not pairs or not pairs[0].answer.strip():
            raise InputError("portability without question or answer", "both, as texts", "complete it")
        follows.append(replace(pairs[0], image=edit.image if said.get("image", "") is not None else None))
    for phrase in _texts(row, "rephrase"):
        phrases += [] if _spoilt(phrase, (edit.prompt, *phrases), edit.answer) else [phrase]
    pictured = tuple(replace(one, image=picture) for one, picture in zip(shown, seen, strict=True))
    return EditRequest(name, edit, tuple(phrases), tuple(looks), plain, pictured, tuple(follows))


def _asked(row: Mapping[str, Any], asked: str, said: str) -> tuple[Question, ...]:
    """Return the questions under one key with the answers under another, which may be missing."""
    questions, answers = _texts(row, asked), _texts(row, said)
    if len(answers) not in (0, len(questions)):
        got = f"{len(questions)} {asked} and {len(answers)} {said}"
        raise InputError(got, "an answer for each, or none", "complete the lists")
    return tuple(Question(q, a) for q, a in zip(questions, answers or [""] * len(questions), strict=True))


def _texts(row: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the texts under the first of some keys that is there; one text is a list of one."""
    given: Any = next((row[key] for key in keys if row.get(key) is not None), [])
    many = given if isinstance(given, list) else [given]
    if not all(isinstance(one, str) for one in many):
        raise InputError(f"{keys[0]!r} of type {type(given).__name__}", "a text or a list of texts", "correct it")
    return many


def read_image(address: str, folder: Path) -> Image.Image:
    """Return an image below a folder, or of a ``data:`` URL, in RGB; an `InputError` for any other address."""
    name, accepted = f"image {address[:60]!r}", "a path below the folder of the file, or a data: URL"
    try:
        if address.startswith("data:"):
            data = base64.b64decode(address.partition(";base64,")[2], validate=True)
        else:
            place = (folder / address).resolve()
            why = "a web address" if "://" in address else "" if place.is_relative_to(folder) else "outside the folder"
            if why or not place.is_file():
                raise InputError(
                    f"{name}, {why or 'which is no file there'}", accepted, "copy it there: nothing else is read"
                )
            with place.open("rb") as file:
                data = file.read(_BYTES + 1)
        if len(data) > _BYTES:
            raise InputError(f"{name} of more than {_BYTES >> 20} MB", "a smaller file", "save it smaller")
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP"))  # its header alone
        if image.width * image.height > _PIXELS:
            raise InputError(
                f"{name} of {image.width} x {image.height} pixels", f"at most {_PIXELS:,}", "save it smaller"
            )
        return ImageOps.exif_transpose(image).convert("RGB")
    except InputError:
        raise
    except Exception:  # whatever a decoder raises
        raise InputError(f"{name}, which cannot be read", "PNG, JPEG, WebP, GIF or BMP", "save it again") from None
