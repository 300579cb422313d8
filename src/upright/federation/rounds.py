"""Rounds of a federated algorithm: one description of it, driven in one process or by Flower.

An algorithm is a handful of pure functions of flat dicts of NumPy arrays.

1. the server writes one message, the same to everybody
2. each client that is present turns message, private memory and data into a reply and new private memory
3. replies are checked in one place; one that fails is quarantined for the round, named in the log, never averaged
4. with enough replies the server makes its next state from them, in order of their names; else the round is repeated

What is present in a round decides what is averaged: weights are those of the replies that arrived. A client that has
answered has moved on, whether or not its reply was used: it cannot know.

States, messages and private memory are never changed in place. ``state["round"]`` is the round to come, and
``state["log"]``, written here, has one entry an attempt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

__all__ = [
    "Algorithm",
    "Message",
    "Private",
    "State",
    "checked",
    "drive",
    "from_tensors",
    "rounds",
    "settle",
    "to_tensors",
]

Message = dict[str, NDArray[Any]]
Private = dict[str, NDArray[Any]]
State = dict[str, Any]


class Algorithm(Protocol):
    """What an algorithm has to offer. Three more methods are used where they exist.

    ``template(state, name) -> Message``
        A reply of the names, shapes and dtypes that the client's must have.
    ``objection(state, name, reply) -> str``
        What else is wrong with a reply (a value outside its feasible range), empty when nothing is.
    ``clients(message, privates, datas) -> mapping of name to (reply, private)``
        All clients in one tensor program; equal to `client` for each.
    """

    def start(self) -> State:
        """Return the server's first state: arrays, plain numbers and lists of them; ``round`` is among them."""

    def message(self, state: State) -> Message:
        """Return what goes down, the same to all clients."""

    def client(self, message: Message, private: Private, data: Any) -> tuple[Message, Private]:
        """Return one client's reply and its new private memory, which stays there; at first it is empty."""

    def server(self, state: State, replies: Mapping[str, Message]) -> State:
        """Return the next state from checked replies by client; absent ones are absent."""

    def done(self, state: State) -> bool:
        """Return whether there is no round to come."""


def checked(reply: Mapping[str, Any], template: Mapping[str, NDArray[Any]] | None = None) -> Message:
    """Return a reply that may be averaged, its arrays in order of their names.

    Parameters
    ----------
    reply : mapping of str to ndarray
    template : mapping of str to ndarray, optional
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
        if template is not None and (value.shape != template[name].shape or value.dtype != template[name].dtype):
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


def settle(
    algorithm: Algorithm,
    state: State,
    replies: Mapping[str, Mapping[str, Any]],
    asked: Sequence[str],
    *,
    least: float = 0.5,
    repeats: int = 3,
    refused: Mapping[str, str] | None = None,
) -> State:
    """Check the replies of a round and return the next state, or the same round again when too few can be used.

    Parameters
    ----------
    replies : mapping of client to reply
        As they arrived.
    asked : sequence of str
        All clients that could have answered.
    least : float
        Share of `asked` whose replies must be usable, in (0, 1]; at least one must.
    repeats : int
        How often a round is asked again.
    refused : mapping of client to reason, optional
        Replies that were refused before they got here.

    Returns
    -------
    dict
        With one entry more in ``log``: ``round``, ``used`` (a count), ``settled``, ``absent`` (names), ``quarantined``
        (name to reason).

    Raises
    ------
    InputError
        When the round has been asked ``1 + repeats`` times; it names who was absent.
    """
    template, objection = getattr(algorithm, "template", None), getattr(algorithm, "objection", None)
    good: dict[str, Message] = {}
    bad = dict(refused or {})
    for name in sorted(set(replies) - set(bad)):
        try:
            reply = checked(replies[name], template(state, name) if template else None)
        except InputError as error:
            bad[name] = error.got
            continue
        wrong = objection(state, name, reply) if objection else ""
        if wrong:
            bad[name] = wrong
        else:
            good[name] = reply
    needed = max(1, math.ceil(least * len(asked) - 1e-9))
    enough = len(good) >= needed
    absent = sorted(set(asked) - set(good) - set(bad))
    entry = {
        "round": int(state["round"]),
        "used": len(good),
        "settled": enough,
        "absent": absent,
        "quarantined": dict(sorted(bad.items())),
    }
    before = list(state.get("log", []))
    if enough:
        return {**algorithm.server(state, good), "log": [*before, entry]}
    tried = 1
    while tried <= len(before) and not before[-tried]["settled"]:
        tried += 1
    if tried > repeats:
        named = [", ".join(absent) or "nobody", "; ".join(f"{k} ({v})" for k, v in sorted(bad.items())) or "nobody"]
        raise InputError(
            f"round {state['round']}: {len(good)} of {len(asked)} clients could be used after {tried} attempts; "
            f"absent: {named[0]}; quarantined: {named[1]}",
            f"at least {needed} replies",
            "wait for these clients, leave them out of the federation, or lower `least`",
        )
    return {**state, "log": [*before, entry]}


def rounds(
    algorithm: Algorithm,
    data: Mapping[str, Any],
    *,
    present: Callable[[int, str], bool] | None = None,
    resume: tuple[State, Mapping[str, Private]] | None = None,
    least: float = 0.5,
    repeats: int = 3,
) -> Iterator[tuple[State, dict[str, Private]]]:
    """Run an algorithm in one process, and yield state and private memories after each attempt at a round.

    Parameters
    ----------
    algorithm : Algorithm
        All clients of a round run in one tensor program where it has ``clients``.
    data : mapping of client to data
        The order of clients does not matter.
    present : callable, optional
        ``present(round, client)``, asked again at each attempt; everybody by default.
    resume : tuple of state and private memories, optional
        As they were yielded, or as `from_tensors` gives them back.
    least, repeats
        See `settle`.

    Raises
    ------
    InputError
        For no clients, ``least`` outside (0, 1], negative `repeats`, and as `settle` does.
    """
    if not data or not 0.0 < least <= 1.0 or repeats < 0:
        raise InputError(
            f"{len(data)} clients, least = {least}, repeats = {repeats}",
            "one client or more, least in (0, 1], repeats of at least 0",
            "correct the one outside its range",
        )
    names = sorted(data)
    state: State = algorithm.start() if resume is None else dict(resume[0])
    privates: dict[str, Private] = {name: {} for name in names}
    if resume is not None:
        privates |= {name: dict(own) for name, own in resume[1].items()}
    while not algorithm.done(state):
        here = [name for name in names if present is None or present(int(state["round"]), name)]
        answers = _ask(algorithm, algorithm.message(state), here, privates, data)
        privates = privates | {name: own for name, (_, own) in answers.items()}
        replies = {name: reply for name, (reply, _) in answers.items()}
        state = settle(algorithm, state, replies, names, least=least, repeats=repeats)
        yield state, privates


def drive(
    algorithm: Algorithm,
    data: Mapping[str, Any],
    *,
    on_round: Callable[[State, dict[str, Private]], None] | None = None,
    **options: Any,
) -> tuple[State, dict[str, Private]]:
    """Run an algorithm to its end; options and errors are those of `rounds`, `on_round` sees what it yields.

    Returns
    -------
    state : dict
    privates : dict of client to private memory
    """
    resume = options.get("resume")
    state, privates = (algorithm.start(), {name: {} for name in data}) if resume is None else resume
    for state, privates in rounds(algorithm, data, **options):
        if on_round is not None:
            on_round(state, privates)
    return state, dict(privates)


def _ask(
    algorithm: Algorithm,
    message: Message,
    here: Sequence[str],
    privates: Mapping[str, Private],
    data: Mapping[str, Any],
) -> Mapping[str, tuple[Message, Private]]:
    together = getattr(algorithm, "clients", None)
    if together is None or not here:
        return {name: algorithm.client(message, privates[name], data[name]) for name in here}
    answers: Mapping[str, tuple[Message, Private]] = together(
        message, {name: privates[name] for name in here}, {name: data[name] for name in here}
    )
    return answers


# -- checkpoints ----------------------------------------------------------------------------------------------------


def to_tensors(tree: Any) -> Any:
    """Return a state or private memories with arrays as tensors, which ``torch.load(weights_only=True)`` reads back."""
    import torch

    if isinstance(tree, Mapping):
        return {key: to_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [to_tensors(value) for value in tree]
    return torch.from_numpy(np.array(tree)) if isinstance(tree, np.ndarray) else tree


def from_tensors(tree: Any) -> Any:
    """Return what `to_tensors` was given."""
    import torch

    if isinstance(tree, Mapping):
        return {key: from_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [from_tensors(value) for value in tree]
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree
