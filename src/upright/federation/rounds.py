"""Rounds of a federated algorithm: one description of it, driven in one process or by Flower.

An algorithm is a handful of pure functions of flat dicts of NumPy arrays.

1. the server chooses who is asked, and writes one message, the same to everybody
2. each client that is present turns message, private memory and data into a reply and new private memory
3. replies are checked in one place; one that fails is quarantined for the round, named in the log, never averaged
4. with enough replies the server makes its next state from them, in order of their names; else the round is repeated

Replies are taken in chunks of clients, in order of names. An algorithm that folds them (``begin``, ``add``, ``finish``)
holds one chunk at a time, so that a round of many clients needs no more memory than a round of few.

What is present in a round decides what is averaged: weights are those of the replies that arrived. A client that has
answered has moved on, whether or not its reply was used: it cannot know. Asked again, it answers again: noise that
protects it must be drawn anew, and both answers count.

States, messages and private memory are never changed in place. ``state["round"]`` is the round to come.
``state["log"]``, written here, holds the last settled attempt and those since; `drive` shows every entry to
``on_round``, which keeps what it needs. Each entry has ``round``, ``settled``, the counts ``asked``, ``used``,
``absent`` and ``quarantined``, and of the last two the first 20 names: ``absent_names`` (a list) and
``quarantined_names`` (name to reason).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = [
    "Algorithm",
    "Free",
    "Message",
    "Private",
    "Rows",
    "State",
    "checked",
    "drive",
    "from_tensors",
    "rounds",
    "sampled",
    "settle",
    "to_tensors",
]

Message = dict[str, NDArray[Any]]
Private = dict[str, NDArray[Any]]
State = dict[str, Any]
_SHOWN = 20  # names of an entry of the log


class Algorithm(Protocol):
    """What an algorithm has to offer, beside one of two ways to take replies.

    ``server(state, replies) -> State``
        The next state from checked replies by client; absent ones are absent.
    ``begin(state) -> total``, ``add(total, name, reply) -> total``, ``finish(state, total) -> State``
        The same as a fold over checked replies in order of names, each dropped after it was added. `add` may change
        its total, which is any object, and returns it. A total is dropped when its round is repeated.

    More methods are used where they exist.

    ``sample(state, names) -> sequence of str``
        Who is asked this round, of all names (sorted); everybody without it. It may depend on the round, the seed and
        each name, never on the order of names. A round for which nobody is drawn is settled without replies, so both
        ways to take replies have to bear none.
    ``template(state, name) -> mapping of name to ndarray or Free``
        A reply of the names, shapes and dtypes that the client's must have.
    ``objection(state, name, reply) -> str``
        What else is wrong with a reply (a value outside its feasible range), empty when nothing is.
    ``clients(message, privates, datas) -> mapping of name to (reply, private)``
        Several clients in one tensor program; equal to `client` for each.
    ``private_rows(names) -> mapping of name to ndarray, shape (U, ...)``
        Arrays with one row a client, for private memory to be kept in (`Rows`); a dict a client without it.
    """

    def start(self) -> State:
        """Return the server's first state: arrays, plain numbers and lists of them; ``round`` is among them."""

    def message(self, state: State) -> Message:
        """Return what goes down, the same to all clients."""

    def client(self, message: Message, private: Private, data: Any) -> tuple[Message, Private]:
        """Return one client's reply and its new private memory, which stays there; at first it is empty."""

    def done(self, state: State) -> bool:
        """Return whether there is no round to come."""


@dataclass(frozen=True)
class Free:
    """An array in a template whose first dimension is free: ``Free("float64", (None, 8))`` is any number of rows of 8.

    Instead of it any object with `dtype` and `shape` will do.
    """

    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        """Refuse a later dimension that is free."""
        if None in self.shape[1:]:
            raise ValueError(f"shape {self.shape}: only the first dimension may be free.")


class Rows(Mapping[str, Private]):
    """Private memory of many clients as a few arrays with one row a client: a checkpoint of them is a few tensors.

    Parameters
    ----------
    names : sequence of str
        U clients, each once.
    arrays : mapping of str to ndarray, shape (U, ...)
        What each client that is held remembers.
    held : ndarray of bool, shape (U,); optional
        Whose memory is not empty; nobody's by default.

    Raises
    ------
    ValueError
        For a name that occurs twice, and arrays of another length.
    """

    def __init__(
        self, names: Sequence[str], arrays: Mapping[str, NDArray[Any]], held: NDArray[np.bool_] | None = None
    ) -> None:
        self.names, self.arrays = list(names), dict(arrays)
        self.held = np.zeros(len(self.names), dtype=bool) if held is None else held
        self._at = {name: i for i, name in enumerate(self.names)}
        if len(self._at) < len(self.names) or any(len(v) != len(self._at) for v in (*arrays.values(), self.held)):
            raise ValueError("Rows need each name once, and arrays with one row a name.")

    def __getitem__(self, name: str) -> Private:
        """Return what a client remembers: views of its rows, or nothing at all."""
        i = self._at[name]
        return {key: value[i, ...] for key, value in self.arrays.items()} if self.held[i] else {}

    def __iter__(self) -> Iterator[str]:
        """Go through the names in their order."""
        return iter(self.names)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.names)

    def updated(self, answers: Mapping[str, Private]) -> Rows:
        """Return rows in which some clients' memories are new ones; these stay as they are.

        Raises
        ------
        ValueError
            For a memory of other names or shapes than the arrays have.
        """
        held, arrays = self.held.copy(), {key: value.copy() for key, value in self.arrays.items()}
        full = {name: own for name, own in answers.items() if own}
        if any(set(own) != set(arrays) for own in full.values()):
            raise ValueError(f"A memory kept in rows has the arrays {sorted(arrays)} and no others.")
        held[[self._at[name] for name in answers if name not in full]] = False
        at = [self._at[name] for name in full]
        held[at] = True
        for key, value in arrays.items():
            new = [np.asarray(own[key]) for own in full.values()]
            if any(one.shape != value.shape[1:] or one.dtype != value.dtype for one in new):
                raise ValueError(f"{key}: a row of a memory is {value.dtype} of shape {value.shape[1:]}.")
            if new:
                value[at] = np.stack(new)
        return Rows(self.names, arrays, held)


def checked(reply: Mapping[str, Any], template: Mapping[str, NDArray[Any] | Free] | None = None) -> Message:
    """Return a reply that may be averaged, its arrays in order of their names.

    Parameters
    ----------
    reply : mapping of str to ndarray
    template : mapping of str to ndarray or Free, optional
        Names, shapes and dtypes to be met; None where the algorithm has no template.

    Raises
    ------
    InputError
        For a name that is missing or unknown, another shape or dtype, a number that is not finite.
    """
    if template is not None and set(reply) != set(template):
        missing, more = sorted(set(template) - set(reply)), sorted(set(reply) - set(template))
        raise InputError(
            f"a reply without {missing} and with {more} besides", ", ".join(sorted(template)), "send what is asked for"
        )
    for name in sorted(reply):
        value = reply[name]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise InputError(f"{name} of {kind}", "an array of numbers", "send NumPy arrays")
        if template is not None and not _alike(value, template[name]):
            raise InputError(
                f"{name}: {value.dtype} of shape {value.shape}",
                f"{template[name].dtype} of {template[name].shape}",
                "update the client: it speaks of another model",
            )
        if not np.isfinite(value).all():
            bad = int((~np.isfinite(value)).sum())
            raise InputError(
                f"{name} with {bad} numbers that are not finite", "finite numbers", "lower the client's learning rate"
            )
    return {name: reply[name] for name in sorted(reply)}


def _alike(value: NDArray[Any], wanted: NDArray[Any] | Free) -> bool:
    free = wanted.shape[:1] == (None,) and value.ndim == len(wanted.shape)
    own = value.shape[1:] if free else value.shape
    return own == (wanted.shape[1:] if free else wanted.shape) and value.dtype == wanted.dtype


def sampled(algorithm: Algorithm, state: State, names: Iterable[str]) -> list[str]:
    """Return who is asked this round, sorted: the algorithm's ``sample`` of all names, or everybody."""
    everybody = sorted(names)
    sample = getattr(algorithm, "sample", None)
    if sample is None:
        return everybody
    asked = sorted(set(sample(state, everybody)))
    strange = set(asked) - set(everybody)
    if strange:
        raise ValueError(f"The sample names clients that are not there: {sorted(strange)[:_SHOWN]}.")
    return asked


def settle(
    algorithm: Algorithm,
    state: State,
    replies: Mapping[str, Mapping[str, Any] | str] | Iterable[tuple[str, Mapping[str, Any] | str]],
    asked: Sequence[str],
    *,
    least: float = 0.5,
    repeats: int = 3,
) -> State:
    """Check the replies of a round and return the next state, or the same round again when too few can be used.

    Parameters
    ----------
    replies : mapping of client to reply, or pairs of them in order of names
        As they arrived; pairs are taken one by one. A text in place of a reply is the reason why it was refused
        before it got here.
    asked : sequence of str
        All clients that could have answered.
    least : float
        Share of `asked` whose replies must be usable, in (0, 1]; at least one must, unless nobody was asked.
    repeats : int
        How often a round is asked again.

    Returns
    -------
    dict
        With the entry of this attempt at the end of ``log``.

    Raises
    ------
    InputError
        When the round has been asked ``1 + repeats`` times; it names who was absent.
    """
    template, objection, begin = (getattr(algorithm, name, None) for name in ("template", "objection", "begin"))
    total: Any = begin(state) if begin else {}
    used, bad = set(), {}
    for name, reply in sorted(replies.items()) if isinstance(replies, Mapping) else replies:
        wrong = reply if isinstance(reply, str) else ""
        if not isinstance(reply, str):
            try:
                good = checked(reply, template(state, name) if template else None)
                wrong = objection(state, name, good) if objection else ""
            except InputError as error:
                wrong = error.got
        if wrong:
            bad[name] = wrong
            continue
        used.add(name)
        if begin:
            total = algorithm.add(total, name, good)  # type: ignore[attr-defined]
        else:
            total[name] = good
    needed = max(1, math.ceil(least * len(asked) - 1e-9)) if asked else 0
    absent = sorted(set(asked) - used - set(bad))
    entry = {
        "round": int(state["round"]),
        "settled": len(used) >= needed,
        "asked": len(asked),
        "used": len(used),
        "absent": len(absent),
        "absent_names": absent[:_SHOWN],
        "quarantined": len(bad),
        "quarantined_names": dict(islice(sorted(bad.items()), _SHOWN)),
    }
    if entry["settled"]:
        take = algorithm.finish if begin else algorithm.server  # type: ignore[attr-defined]
        return {**take(state, total), "log": [entry]}
    before = list(state.get("log", []))
    tried = 1 + sum(not one["settled"] and one["round"] == entry["round"] for one in before)
    if tried > repeats:
        named = [_first(absent), _first([f"{k} ({v})" for k, v in sorted(bad.items())], "; ")]
        raise InputError(
            f"round {state['round']}: {len(used)} of {len(asked)} clients could be used after {tried} attempts; "
            f"absent: {named[0]}; quarantined: {named[1]}",
            f"at least {needed} replies",
            "wait for these clients, leave them out of the federation, or lower `least`",
        )
    return {**state, "log": [*before, entry]}


def _first(names: Sequence[str], mark: str = ", ") -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return mark.join([*names[:_SHOWN], *more]) or "nobody"


def rounds(
    algorithm: Algorithm,
    data: Mapping[str, Any],
    *,
    present: Callable[[int, str], bool] | None = None,
    resume: tuple[State, Mapping[str, Private]] | None = None,
    least: float = 0.5,
    repeats: int = 3,
    chunk: int = 1024,
) -> Iterator[tuple[State, Mapping[str, Private]]]:
    """Run an algorithm in one process, and yield state and private memories after each attempt at a round.

    Parameters
    ----------
    algorithm : Algorithm
        A chunk of clients runs in one tensor program where it has ``clients``.
    data : mapping of client to data
        The order of clients does not matter.
    present : callable, optional
        ``present(round, client)``, of those who are asked and again at each attempt; everybody by default.
    resume : tuple of state and private memories, optional
        As they were yielded, or as `from_tensors` gives them back.
    least, repeats
        See `settle`.
    chunk : int
        How many clients run, and hold their replies, at a time.

    Raises
    ------
    InputError
        For no clients, ``least`` outside (0, 1], negative `repeats`, ``chunk < 1``, and as `settle` does.
    """
    if not data or not 0.0 < least <= 1.0 or repeats < 0 or chunk < 1:
        raise InputError(
            f"{len(data)} clients, least = {least}, repeats = {repeats}, chunk = {chunk}",
            "one client or more, least in (0, 1], repeats of at least 0, chunk of at least 1",
            "correct the one outside its range",
        )
    names = sorted(data)
    state, privates = _start(algorithm, names, resume)
    while not algorithm.done(state):
        asked = sampled(algorithm, state, names)
        here = [name for name in asked if present is None or present(int(state["round"]), name)]
        moved: dict[str, Private] = {}
        replies = _replies(algorithm, algorithm.message(state), here, privates, data, chunk, moved)
        state = settle(algorithm, state, replies, asked, least=least, repeats=repeats)
        privates = privates.updated(moved) if isinstance(privates, Rows) else {**privates, **moved}
        yield state, privates


def drive(
    algorithm: Algorithm,
    data: Mapping[str, Any],
    *,
    on_round: Callable[[State, Mapping[str, Private]], None] | None = None,
    **options: Any,
) -> tuple[State, Mapping[str, Private]]:
    """Run an algorithm to its end; options and errors are those of `rounds`, `on_round` sees what it yields.

    Returns
    -------
    state : dict
    privates : mapping of client to private memory
    """
    state, privates = _start(algorithm, sorted(data), options.get("resume"))
    for state, privates in rounds(algorithm, data, **options):
        if on_round is not None:
            on_round(state, privates)
    return state, privates


def _start(
    algorithm: Algorithm, names: Sequence[str], resume: tuple[State, Mapping[str, Private]] | None
) -> tuple[State, Mapping[str, Private]]:
    """Return state and memories to begin with; clients that are new since a checkpoint remember nothing."""
    state, before = (algorithm.start(), {}) if resume is None else (dict(resume[0]), resume[1])
    everybody = sorted({*names, *before})
    make = getattr(algorithm, "private_rows", None)
    if make is None:
        return state, {name: dict(before.get(name, {})) for name in everybody}
    if isinstance(before, Rows) and before.names == everybody:
        return state, before
    return state, Rows(everybody, make(everybody)).updated(before)


def _replies(
    algorithm: Algorithm,
    message: Message,
    here: Sequence[str],
    privates: Mapping[str, Private],
    data: Mapping[str, Any],
    chunk: int,
    moved: dict[str, Private],
) -> Iterator[tuple[str, Message]]:
    """Run clients in chunks and yield their replies in order of names; what they remember then goes to `moved`."""
    together = getattr(algorithm, "clients", None)
    for first in range(0, len(here), chunk):
        part = here[first : first + chunk]
        answers = {}
        if together is not None:
            answers = together(message, {name: privates[name] for name in part}, {name: data[name] for name in part})
        for name in part:
            reply, moved[name] = answers[name] if together else algorithm.client(message, privates[name], data[name])
            yield name, reply
        del answers, reply  # before the next chunk is made


# -- checkpoints ----------------------------------------------------------------------------------------------------

_ROWS = "rows of"  # marks `Rows` among mappings


def to_tensors(tree: Any) -> Any:
    """Return a state or private memories with arrays as tensors, which ``torch.load(weights_only=True)`` reads back."""
    import torch

    if isinstance(tree, Rows):
        names = np.frombuffer(json.dumps(tree.names).encode(), dtype=np.uint8)
        return to_tensors({_ROWS: names, "held": tree.held, "arrays": tree.arrays})
    if isinstance(tree, Mapping):
        return {key: to_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_tensors(value) for value in tree]
    return torch.from_numpy(np.array(tree)) if isinstance(tree, np.ndarray) else tree


def from_tensors(tree: Any) -> Any:
    """Return what `to_tensors` was given."""
    import torch

    if isinstance(tree, Mapping) and _ROWS in tree:
        names = json.loads(tree[_ROWS].numpy().tobytes())
        return Rows(names, from_tensors(tree["arrays"]), tree["held"].numpy())
    if isinstance(tree, Mapping):
        return {key: from_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [from_tensors(value) for value in tree]
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree
