r"""Preference pairs and negative answers: reading, checking, and what may not stand in two places at once.

=====================================  ================================================================================
``prompt``, ``chosen``, ``rejected``   texts, or lists of chat messages (TRL); the answers may repeat the conversation
``chosen``, ``rejected``               both with the prompt in front: conversations, transcripts as those of HH-RLHF
                                       (``\n\nHuman: ... \n\nAssistant: ...``), or texts, where the prompt is what both
                                       begin with, up to the last white space
``prompt``, ``completion``, ``label``  unpaired: true is a good answer, false a bad one; without labels all are bad
=====================================  ================================================================================

``id``, ``prompt_id`` and a key for groups are optional in pairs, other keys are passed over. Unpaired answers may have
any shape of `upright.data.forget`. Files are those of `read_records`: JSON lines, one array, Parquet, CSV.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby, takewhile
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError, stream
from upright.data.forget import Kind, Record, conversation_of, digest, object_rows, record_of, refuse_overlap, text_of

__all__ = [
    "Pair",
    "Pool",
    "Unpaired",
    "merge_copies",
    "prompt_blocks",
    "read_preferences",
    "read_unpaired",
    "records_of",
    "refuse_leaks",
]

_SHAPES = "chosen and rejected, with or without prompt"
_ASKED = ("prompt", "question", "instruction", "query", "input")  # a key like these would be passed over in silence
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, one of which is preferred.

    Parameters
    ----------
    id : str
    prompt, chosen, rejected : str
        None is empty, and the answers differ.
    cluster : str
        Of pairs that share a cause; by default the first 12 digits of the SHA-256 of the prompt.
    group : str
        What accuracies are compared by; empty where there is none.
    kind : {"completion", "chat", "question"}
        In which form a model is asked, as for `Record`.
    before : tuple of (str, str)
        Role and text of chat messages before the prompt.

    Raises
    ------
    InputError
        For an empty prompt or answer, and for equal answers.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    cluster: str = ""
    group: str = ""
    kind: Kind = "completion"
    before: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "chosen", "rejected"):
            if not getattr(self, name).strip():
                got = f"pair {self.id} with an empty text under {name!r}"
                raise InputError(got, "a prompt and two answers with text", "leave the pair out or complete it")
        if self.chosen.strip() == self.rejected.strip():
            raise InputError(f"pair {self.id} with equal answers", "answers that differ", "leave the pair out")
        if not self.cluster:
            object.__setattr__(self, "cluster", self.prompt_digest[:12])

    @property
    def prompt_digest(self) -> str:
        """SHA-256 of what is asked, with the messages before it; 64 hex digits."""
        return digest(Record(self.prompt, "", before=self.before))


class Unpaired(NamedTuple):
    """Answers with a label: bad and good ones."""

    negatives: tuple[Record, ...]
    positives: tuple[Record, ...]


class Pool(NamedTuple):
    """Records of which each stands there once.

    Parameters
    ----------
    records : tuple of Record, length n
    place : ndarray of int64, shape (N,)
        Which of them each record that was given is.
    copies : ndarray of int64, shape (n,)
        How often each was given.
    """

    records: tuple[Record, ...]
    place: NDArray[np.int64]
    copies: NDArray[np.int64]

    def shared(self, weight: ArrayLike) -> NDArray[np.float64]:
        """Return the weight of each record that was given, shape (N,): copies share that of their record, (n,)."""
        return np.asarray(np.asarray(weight, dtype=np.float64)[self.place] / self.copies[self.place])


# -- reading --------------------------------------------------------------------------------------------------------


def read_preferences(path: Any, *, limit: int | None = None, group_key: str | None = None) -> tuple[Pair, ...]:
    """Read preference pairs, in order.

    Parameters
    ----------
    path : path or data frame
        As for `read_records`.
    limit : int, optional
        Most pairs that are taken, at least 1.
    group_key : str, optional
        Key of the group of a pair; each pair must have it.

    Raises
    ------
    InputError
        As `read_records`; for answers that are equal or empty, that belong to different prompts, or whose prompt cannot
        be told; for an id that comes twice. The line is named.

    Warns
    -----
    UserWarning
        With how many pairs came again and count once, and how many transcripts were left out because they are no pair
        (of the 2,312 of HH-RLHF's harmless test split, 4), each with the first of them.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit = {limit}", "an integer of at least 1", "raise it or leave it out")
    pairs: dict[tuple[str, str, str], Pair] = {}
    ids, again, out = set[str](), list[str](), list[str]()
    for i, (where, value) in enumerate(object_rows(path, _SHAPES)):
        told = {name: str(value[name]) for name in ("id", "prompt_id") if value.get(name) is not None}
        group = "" if group_key is None else value.get(group_key)
        if group is None:
            got = f"{where}: no {group_key!r}"
            raise InputError(got, "the key that says which group a pair belongs to", "add it to all")
        if told.get("id") in ids:
            raise InputError(f"{where}: id {told['id']!r} again", "an id of its own for each pair", "correct the ids")
        ids.add(told.get("id", ""))
        transcript = "prompt" not in value and all(_is_transcript(value.get(key)) for key in ("chosen", "rejected"))
        try:
            kind, before, prompt, chosen, rejected = _parts(value, where, transcript)
            cluster = told.get("prompt_id", "")
            pair = Pair(told.get("id", str(i)), prompt, chosen, rejected, cluster, str(group), kind, before)
        except InputError as error:
            named = error.got if error.got.startswith(where) else f"{where}: {error.got}"
            if not transcript:
                raise InputError(named, error.accepted, error.todo) from None
            out.append(named)
            continue
        key = (pair.prompt_digest, pair.chosen.strip(), pair.rejected.strip())
        if pairs.setdefault(key, pair) is not pair:
            again.append(where)
        if len(pairs) == limit:
            break
    if again:
        warnings.warn(f"{len(again)} pairs came before and count once: {again[0]} first", UserWarning, stacklevel=2)
    if out:
        warnings.warn(f"{len(out)} transcripts left out as no pair: {out[0]} first", UserWarning, stacklevel=2)
    if not pairs:
        raise InputError(f"{len(out)} transcripts and no pair", "one pair at least", "check the file")
    return tuple(pairs.values())


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


_Parts = tuple[Kind, tuple[tuple[str, str], ...], str, str, str]


def _parts(value: Mapping[str, Any], where: str, transcript: bool) -> _Parts:
    """Return kind, messages before the prompt, prompt, chosen and rejected answer."""
    sides = [value.get("chosen"), value.get("rejected")]
    prompt = value.get("prompt")
    near = [key for key in value if key != "prompt_id" and get_close_matches(key, _ASKED, n=1, cutoff=0.8)]
    if prompt is None and near:
        raise InputError(f"{where}: key {near[0]!r}", _SHAPES, "call the prompt 'prompt'")
    if transcript:
        sides = [_messages(text) for text in sides]
    if isinstance(prompt, list) or any(isinstance(side, list) for side in sides):
        return _conversation(prompt, sides, where)
    chosen, rejected = (text_of(value, key, where, _SHAPES) for key in ("chosen", "rejected"))
    if prompt is not None:
        return "completion", (), text_of(value, "prompt", where, _SHAPES), chosen, rejected
    both = takewhile(lambda pair: pair[0] == pair[1], zip(chosen.rstrip(), rejected.rstrip(), strict=False))
    begin = re.sub(r"\S+\Z", "", "".join(one for one, _ in both))  # cuts no word in two, and leaves both a last word
    if not begin.strip():
        got = f"{where}: answers without a common beginning, and no prompt"
        raise InputError(got, f"{_SHAPES}; without it both begin with it", "add the prompt under 'prompt'")
    return "completion", (), begin, chosen[len(begin) :], rejected[len(begin) :]


def _messages(text: Any) -> list[dict[str, str]]:
    """Return the messages of a transcript; turns of one speaker in a row are one."""
    _, *parts = _TURN.split(f"\n\n{text.lstrip()}")
    turns = groupby(zip(parts[::2], parts[1::2], strict=True), key=lambda turn: turn[0])
    return [{"role": _ROLES[who], "content": "\n\n".join(said.strip() for _, said in own)} for who, own in turns]


def _conversation(prompt: Any, sides: Sequence[Any], where: str) -> _Parts:
    """Take both sides apart; one message is an answer to the prompt, several are a conversation with it."""
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt or [])
    found = []
    for side in sides:
        told = side if isinstance(side, list) else [{"role": "assistant", "content": side}]
        found.append(conversation_of(told if len(told) > 1 else [*asked, *told], where))
    (before, text, chosen), (other, again, rejected) = found
    whole = conversation_of([*asked, {"role": "assistant", "content": ""}], where)[:2] if asked else (before, text)
    if not (before, text) == (other, again) == whole:
        raise InputError(f"{where}: different prompts", "two answers to one prompt", "correct the pair or leave it out")
    return "chat", before, text, chosen, rejected


def read_unpaired(path: Any) -> Unpaired:
    """Read answers with labels; a record has any shape of `read_records`, and ``label`` beside it.

    Raises
    ------
    InputError
        As `read_records`; for a label that is neither true nor false, or is there for some records alone; for a record
        under both labels, with both ids.
    """
    sides: dict[bool, list[Record]] = {False: [], True: []}
    labelled: bool | None = None
    for i, (where, value) in enumerate(object_rows(path)):
        rest = {key: one for key, one in value.items() if key != "label"}
        labelled = "label" in value if labelled is None else labelled
        label = _LABELS.get(str(value.get("label", "" if labelled else False)).strip().lower())
        if label is None or labelled != ("label" in value):
            got = f"{where}: 'label' is {value['label']!r}" if "label" in value else f"{where}: no 'label'"
            raise InputError(got, "true (a good answer) or false (a bad one), for all or none", "correct it")
        sides[label].append(record_of(rest, where, str(i)))
    refuse_overlap(positives=sides[True], negatives=sides[False])
    return Unpaired(tuple(sides[False]), tuple(sides[True]))


# -- sets of pairs and records --------------------------------------------------------------------------------------


def records_of(pairs: Sequence[Pair], which: Literal["chosen", "rejected"]) -> tuple[Record, ...]:
    """Return one side of pairs as records, with the pair's id, and its cluster as the author."""
    return tuple(Record(p.prompt, getattr(p, which), p.id, p.cluster, before=p.before, kind=p.kind) for p in pairs)


def merge_copies(records: Sequence[Record]) -> Pool:
    """Return each record once, in order, with how often it was given; white space at both ends makes no difference."""
    first: dict[str, int] = {}
    place = np.array([first.setdefault(digest(record), len(first)) for record in records], dtype=np.int64)
    _, at = np.unique(place, return_index=True)
    return Pool(tuple(records[i] for i in at.tolist()), place, np.bincount(place))


def refuse_leaks(objective: Sequence[Pair], *, held_out: Sequence[Pair] = (), negatives: Sequence[Record] = ()) -> None:
    """Refuse what stands in two places: a prompt in the objective and held out, a negative that is a chosen answer.

    What is steered by a prompt is not measured on it, and no answer can be unlearnt and preferred.

    Raises
    ------
    InputError
        With both ids of the first, and how many there are.
    """
    own = {pair.prompt_digest: pair.id for pair in objective}
    both = [(own[pair.prompt_digest], pair.id) for pair in held_out if pair.prompt_digest in own]
    if both:
        (one, other), n = both[0], len(both)
        got = f"pair {one} of the objective and pair {other} held out have one prompt ({n} such pairs)"
        raise InputError(got, "no prompt in both sets", "split the pairs by prompt")
    refuse_overlap(chosen=records_of([*objective, *held_out], "chosen"), negatives=negatives)


def prompt_blocks(pairs: Sequence[Pair], blocks: int = 8, *, seed: int = 0) -> list[NDArray[np.int64]]:
    """Part pairs into blocks of whole clusters, as even as they allow, by a seeded order of the clusters.

    Returns
    -------
    list of ndarray of int64
        Indices of the pairs of each block, in order; together a permutation of ``range(len(pairs))``.

    Raises
    ------
    InputError
        When all pairs have one prompt, or there are fewer clusters than blocks.
    """
    size = Counter(pair.cluster for pair in pairs)
    if len(size) < 2:
        got, todo = f"{len(pairs)} pairs of {len(size)} prompt", "add pairs of other prompts"
        raise InputError(got, "pairs of two prompts at least", todo)
    if len(size) < blocks:
        todo = f"add pairs of other prompts, or take blocks={len(size)}"
        raise InputError(f"{len(size)} prompts for {blocks} blocks", f"{blocks} prompts at least", todo)
    order = [sorted(size)[i] for i in np.random.default_rng(stream(seed, "blocks")).permutation(len(size))]
    order.sort(key=lambda cluster: -size[cluster])  # large ones first: the rest evens out
    place, filled = dict[str, int](), np.zeros(blocks, dtype=np.int64)
    for cluster in order:
        place[cluster] = int(filled.argmin())
        filled[place[cluster]] += size[cluster]
    block = np.array([place[pair.cluster] for pair in pairs])
    return [np.flatnonzero(block == k) for k in range(blocks)]
