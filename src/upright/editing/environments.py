r"""Edit requests, read from a file, and the environments in which an edit is trained and tested.

=====================================  =============================================================================
``prompt`` (or ``src``)                what is asked, with ``image`` beside it unless it is of text alone
``target`` (or ``alt``)                what must be answered
``rephrase``, ``image_rephrase``       the question in other words, other pictures of the same thing
``loc``, ``loc_ans``                   unrelated questions of text, with answers
``m_loc``, ``m_loc_q``, ``m_loc_a``    unrelated pictures, with questions and answers
``portability`` (or ``port_new``)      what follows: ``{"question", "answer"}``, alone or under VLKEB's ``"Q&A"``; asked
                                       about the picture, unless ``"image": null`` stands beside them
=====================================  =============================================================================

These are the keys of MMEdit and VLKEB; each may be a list. Others are passed over. An image is a path below the folder
of the file or a ``data:`` URL, and its size is read before its pixels.

What a request brings is for the test; of several, the first train and the last is held out in any case. What is missing
is made: re-phrasings of other templates in training than in the test, views from other random streams.
"""

from __future__ import annotations

import base64
import hashlib
import io
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

__all__ = ["EditRequest", "Environments", "environments", "image_digest", "image_view", "question_key", "read_requests"]

T = TypeVar("T")
_TARGET, _BYTES, _PIXELS = 400, 20 << 20, 1 << 24  # most characters of a target; most bytes and pixels of an image
_KEYS = "prompt src target alt image rephrase image_rephrase loc loc_ans m_loc m_loc_q m_loc_a portability port_new id"
_TRAIN = ("Question: {}", "Please answer: {}", "Answer in a few words. {}", "I have a question. {}")
_TEST = ("Tell me: {}", "Can you say this? {}", "Here is what I ask: {}", "Let me know. {}")


@dataclass(frozen=True, eq=False)
class EditRequest:
    """One fact to correct, with what should change beside it and what should not.

    Raises
    ------
    InputError
        For an empty prompt; a target that is empty or has more than 400 characters; a re-phrasing that is the prompt or
        another one again, or holds the target where the prompt does not; a picture that comes twice.
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
        if not prompt.strip() or not target.strip():
            got = f"{name} with an empty {'target' if prompt.strip() else 'prompt'}"
            raise InputError(got, "a prompt and a target with text", "complete the request or leave it out")
        if len(target) > _TARGET:
            todo = "shorten it: an edit changes an answer, not a text"
            raise InputError(f"{name} with a target of {len(target)} characters", f"at most {_TARGET}", todo)
        for i, one in enumerate(self.rephrase):
            if _spoilt(one, (prompt, *self.rephrase[:i]), target):
                got = f"{name} with a rephrase that comes again or holds the target: {one[:60]!r}"
                raise InputError(got, "other words for the prompt", "leave that rephrase out")
        looks = [image_digest(one) for one in (self.edit.image, *self.image_rephrase)]
        if len(set(looks)) < len(looks):
            got, todo = f"{name} with a picture that comes twice", "take another picture: what was seen is no test"
            raise InputError(got, "other pixels in each image_rephrase", todo)


@dataclass(frozen=True, eq=False)
class Environments:
    """Questions by environment; no training question but the edit is a test."""

    train: Mapping[str, tuple[Question, ...]]
    test: Mapping[str, tuple[Question, ...]]


def _folded(text: str) -> str:
    """Return the words of a text in folded case, without marks, to compare texts by; of marks alone the marks."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split()) or text.strip()


def _spoilt(phrase: str, others: Sequence[str], target: str) -> bool:
    """Whether a re-phrasing is empty, one of the others, or holds the target where the first of them does not."""
    own, first, words = (f" {_folded(text)} " for text in (phrase, others[0], target))
    return not own.strip() or _folded(phrase) in map(_folded, others) or (words in own and words not in first)


def image_digest(image: Image.Image | None) -> str:
    """SHA-256 of size and pixels, 64 hex digits; empty without an image."""
    return (
        "" if image is None else hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()
    )


def question_key(question: Question) -> tuple[str, str]:
    """Return what is equal where two questions ask the same: the pixels, and the words in folded case."""
    return image_digest(question.image), _folded(question.prompt)


def image_view(image: Image.Image, rng: np.random.Generator, strong: float = 1.0) -> Image.Image:
    """Return another view of a picture, in its size: turned by up to 8 degrees, cropped by up to 10 % a side, up to
    25 % brighter or darker, each times `strong`, and written as JPEG.
    """  # fmt: skip
    (w, h), (a, b, c, d) = image.size, rng.uniform(0.0, 0.1 * strong, 4)
    angle, light = rng.uniform(-1.0, 1.0, 2) * strong
    view = image.convert("RGB").rotate(8 * angle, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127))
    view = view.resize((w, h), Image.Resampling.BILINEAR, (a * w, b * h, (1 - c) * w, (1 - d) * h))
    written = io.BytesIO()
    ImageEnhance.Brightness(view).enhance(1 + 0.25 * light).save(written, "JPEG", quality=int(rng.integers(70, 96)))
    return Image.open(written).convert("RGB")


def environments(
    request: EditRequest,
    *,
    seed: int = 0,
    paraphrases: int = 2,
    views: int = 2,
    unrelated: Sequence[Question] = (),
    same: Sequence[Question] = (),
) -> Environments:
    """Return the questions that train an edit and, apart from them, those that test it.

    Parameters
    ----------
    paraphrases, views : int
        How many re-phrasings and views train, and how many are made for the test where the request brings none.
    unrelated, same : sequence of Question
        Unrelated questions, with and without images, and other questions about the picture. They train; where the
        request brings no unrelated questions, and of `same`, every other one is for the test.

    Raises
    ------
    InputError
        For a training question that is a test as well.
    """
    edit, image = request.edit, request.edit.image

    def wordings(part: str, templates: Sequence[str]) -> list[str]:
        order = np.random.default_rng(stream(seed, request.id, part, "text")).permutation(len(templates))
        made = [templates[i].format(edit.prompt) for i in order]
        return [one for one in made if not _spoilt(one, (edit.prompt, *request.rephrase), edit.answer)]

    def looks(part: str) -> list[Image.Image]:
        rng = np.random.default_rng(stream(seed, request.id, part, "image"))
        return [] if image is None else [image_view(image, rng) for _ in range(views)]

    def split(given: Sequence[T], count: int, train: Sequence[T], test: Sequence[T]) -> tuple[list[T], list[T]]:
        first = min(count, max(len(given) - 1, 0))
        return [*given[:first], *train][:count], list(given[first:] or test[:count])

    def apart(own: Sequence[Question], pool: Sequence[Question]) -> tuple[list[Question], list[Question]]:
        both = list(own or pool)
        return (list(pool), both) if own and pool else (both[1::2], both[::2])

    texts = split(request.rephrase, paraphrases, wordings("train", _TRAIN), wordings("test", _TEST))
    pictures = split(request.image_rephrase, views, looks("train"), looks("test"))
    own = {question_key(one) for one in (edit, *request.loc, *request.m_loc, *request.portability)}
    pool = [one for one in unrelated if question_key(one) not in own]  # what is tested does not train
    plain = apart(request.loc, [one for one in pool if one.image is None])
    shown = apart(request.m_loc, [one for one in pool if one.image is not None])
    beside = apart((), [one for one in same if question_key(one) not in own])
    pairs = range(max(map(len, (texts[1], pictures[1])))) if texts[1] and pictures[1] else ()
    other = {question_key(one): one for one in (replace(q, prompt=edit.prompt, answer="") for q in shown[1])}
    sides = []
    for side in (0, 1):
        named = {
            "edit": [edit],
            "text": [replace(edit, prompt=one) for one in texts[side]],
            "image": [replace(edit, image=one) for one in pictures[side]],
            "unrelated_text": plain[side], "unrelated_image": shown[side], "same_image": beside[side],
        }  # fmt: skip
        if side:
            both = [(texts[1][i % len(texts[1])], pictures[1][i % len(pictures[1])]) for i in pairs]
            named["joint"] = [replace(edit, prompt=one, image=picture) for one, picture in both]
            named["portability"] = list(request.portability)
            named["other_image"] = list(other.values()) if image is not None else []
            named["no_image"] = [Question(edit.prompt, "")] if image is not None else []
        sides.append({name: tuple(part) for name, part in named.items() if part})
    used = {question_key(one): name for name, part in sides[0].items() if name != "edit" for one in part}
    for name, part in sides[1].items():
        for one in part:
            if (train := used.get(question_key(one))) is not None:
                got = f"request {request.id}: {one.prompt[:60]!r} in training ({train}) and in the test ({name})"
                raise InputError(got, "tests that no training has seen", "take it out of one of the two")
    return Environments(*sides)


# -- reading --------------------------------------------------------------------------------------------------------


def read_requests(path: Any, *, text_only: bool = False) -> list[EditRequest]:
    """Read edit requests from JSON lines or one array, with their images; `text_only` refuses images.

    Raises
    ------
    InputError
        As `EditRequest`, with the line; for a file or an image that cannot be read, a key that looks misspelt, lists
        that do not fit, an id that comes twice, and two requests that want different answers to the same question about
        the same picture: with both ids.

    Warns
    -----
    UserWarning
        With how many re-phrasings were left out because they come again or hold the target (in MMEdit 45 do).
    """
    folder, known, left = Path(path).resolve().parent, _KEYS.split(), list[str]()
    found: dict[str, EditRequest] = {}
    asked: dict[tuple[str, str], EditRequest] = {}
    for i, (where, row) in enumerate(object_rows(path, _KEYS.replace(" ", ", "))):
        try:
            request = _request(row, str(row.get("id", i)), folder, text_only)
        except InputError as error:
            raise InputError(f"{where}: {error.got}", error.accepted, error.todo) from None
        for key in (key for key in row if key not in known):
            if near := get_close_matches(key, [one for one in known if one not in row], 1, 0.85):
                raise InputError(f"{where}: key {key!r}", near[0], "rename the key")
        if request.id in found:
            raise InputError(
                f"{where}: id {request.id!r} again", "an id of its own for each request", "correct the ids"
            )
        other = asked.setdefault(question_key(request.edit), request)
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
    image, looks, seen = ([_image(one, folder) for one in _texts(row, key)] for key in keys)
    prompt, target = _texts(row, "prompt", "src"), _texts(row, "target", "alt")
    if not prompt or not target or len(image) > 1:
        got = f"{len(prompt)} prompts, {len(target)} targets and {len(image)} images"
        raise InputError(got, "prompt (or src), target (or alt) and at most one image", "correct the request")
    edit = Question(prompt[0], target[0], image[0] if image else None)
    loc, m_loc = ((_texts(row, one), _texts(row, other)) for one, other in (("loc", "loc_ans"), ("m_loc_q", "m_loc_a")))
    if any(len(a) not in (0, len(q)) for q, a in (loc, m_loc)) or len(seen) != len(m_loc[0]):
        got = f"{len(loc[0])} loc, {len(loc[1])} loc_ans, {len(seen)} m_loc, {len(m_loc[0])} m_loc_q, {len(m_loc[1])} m_loc_a"
        raise InputError(got, "as many answers as questions, and pictures as m_loc_q", "complete the lists")
    hops = row.get("portability") or row.get("port_new") or []
    follows, phrases = [], list[str]()
    for one in hops if isinstance(hops, list) else [hops]:
        said = one.get("Q&A", one) if isinstance(one, dict) else {}
        (q, *_), (a, *_) = (_texts(said, key, key.title()) or [""] for key in ("question", "answer"))
        if not q.strip() or not a.strip():
            raise InputError("portability without a text", "question and answer of each", "complete it")
        follows.append(Question(q, a, edit.image if said.get("image", 0) is not None else None))
    for phrase in _texts(row, "rephrase"):
        phrases += [] if _spoilt(phrase, (edit.prompt, *phrases), edit.answer) else [phrase]
    plain, shown = (list(zip(q, a or [""] * len(q), strict=True)) for q, a in (loc, m_loc))
    return EditRequest(
        name, edit, tuple(phrases), tuple(looks), tuple(Question(q, a) for q, a in plain),
        tuple(Question(q, a, picture) for (q, a), picture in zip(shown, seen, strict=True)), tuple(follows),
    )  # fmt: skip


def _texts(row: Mapping[str, Any], *keys: str) -> list[str]:
    """Return the texts under the first of some keys that is there; one text is a list of one."""
    given = next((row[key] for key in keys if row.get(key) is not None), [])
    many = given if isinstance(given, list) else [given]
    if not all(isinstance(one, str) for one in many):
        raise InputError(f"{keys[0]!r} of type {type(given).__name__}", "a text or a list of texts", "correct it")
    return many


def _image(address: str, folder: Path) -> Image.Image:
    """Return an image below a folder, or of a ``data:`` URL, in RGB."""
    name, accepted = f"image {address[:60]!r}", "a path below the folder of the file, or a data: URL"
    try:
        if address.startswith("data:"):
            data = base64.b64decode(address.partition(";base64,")[2], validate=True)
        else:
            place = (folder / address).resolve()
            if "://" in address or not place.is_relative_to(folder) or not place.is_file():
                raise InputError(f"{name}, which is no file there", accepted, "copy it there: nothing else is read")
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
