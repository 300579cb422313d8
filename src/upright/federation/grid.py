"""Flower's grid in one process: a client app is called with a context a node, without Ray and without a network.

For tests and for looking at an app before it is deployed. Messages pass through Flower's records, so that what would be
lost on the way (types, shapes, private memory) is lost here too.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flwr
import flwr.app as fl
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from upright.contract import InputError

__all__ = ["InProcessGrid", "identity"]


@contextlib.contextmanager
def identity(run_id: int = 1, node_id: int = 1, task_id: int = 1) -> Iterator[None]:
    """Let messages be made outside of a process that Flower started.

    Newer versions of Flower (1.41 and 1.42 do) read run, node and task of a message from a private object that belongs
    to the process; older ones leave them open. The object is set as it was before afterwards.

    Raises
    ------
    InputError
        When this version of Flower keeps the identity in another way.
    """
    try:
        held: Any = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    except ModuleNotFoundError:
        yield  # a version that asks for no identity
        return
    fields = {"_run_id": run_id, "_node_id": node_id, "_task_id": task_id}
    if not all(hasattr(held, name) for name in fields):
        raise InputError(
            f"flwr {flwr.__version__}, whose task identity has no {', '.join(fields)}", "flwr 1.30 to 1.42",
            "install one of these, or run the app with `flwr run`",
        )  # fmt: skip
    before = {name: getattr(held, name) for name in fields}
    try:
        for name, value in fields.items():
            if before[name] is None:
                setattr(held, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(held, name, value)


def _at_once() -> InputError:
    return InputError("messages pushed to or pulled from a grid in one process", "send_and_receive, which is immediate",
                      "call send_and_receive")  # fmt: skip


class InProcessGrid(Grid):
    """Nodes that answer at once.

    Use it inside of `identity`.

    Parameters
    ----------
    app : ClientApp
    nodes : mapping of node to config
        What each node finds in ``context.node_config``.
    present : callable, optional
        ``present(turn, node)``: whether a reply arrives; a node that is absent does not run. Turns count from 1.

    Attributes
    ----------
    contexts : dict of node to Context
        They live as long as the grid: private memory is in their ``state``.
    sent : list of tuple of int
        Turn, node, numbers down and numbers up of each exchange.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, Mapping[str, Any]],
        *,
        present: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.app, self.present = app, present
        self.contexts = {
            node: fl.Context(run_id=1, node_id=node, node_config=dict(config), state=fl.RecordDict(), run_config={})
            for node, config in nodes.items()
        }
        self.sent: list[tuple[int, int, int, int]] = []
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Keep the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """What `set_run` was given."""
        return self._run

    def create_message(
        self, content: fl.RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> fl.Message:
        """Return a message to a node."""
        return fl.Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[fl.Message]) -> Iterable[str]:
        """Refuse: replies are not kept here."""
        raise _at_once()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[fl.Message]:
        """Refuse: replies are not kept here."""
        raise _at_once()

    def send_and_receive(self, messages: Iterable[fl.Message], *, timeout: float | None = None) -> Iterable[fl.Message]:
        """Call the app for each message of a node that is present, and return the replies."""
        replies = []
        for message in messages:
            node, turn = message.metadata.dst_node_id, int(message.metadata.group_id)
            if self.present is not None and not self.present(turn, node):
                continue
            down = _numbers(message.content)  # before the app, which may change what it was given
            reply = self.app(message, self.contexts[node])
            self.sent.append((turn, node, down, _numbers(reply.content) if reply.has_content() else 0))
            replies.append(reply)
        return replies


def _numbers(content: fl.RecordDict) -> int:
    return sum(math.prod(array.shape) for record in content.array_records.values() for array in record.values())
