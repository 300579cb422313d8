"""Flower's grid in one process: a client app is called with a context a node, without Ray and without a network.

Messages pass through Flower's records, so that what would be lost on the way (types, shapes, private memory) is lost
here too.
"""

from __future__ import annotations

import contextlib
import importlib
import math

import flwr.app as fl
from flwr.serverapp import Grid


@contextlib.contextmanager
def identity():
    """Let messages be made outside of a process that Flower started.

    Newer versions of Flower (1.41 and 1.42 do) read run, node and task of a message from a private object that belongs
    to the process; older ones leave them open. The object is set as it was before afterwards.
    """
    try:
        held = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    except ModuleNotFoundError:
        yield  # a version that asks for no identity
        return
    before = {name: getattr(held, name) for name in ("_run_id", "_node_id", "_task_id")}
    try:
        for name, value in before.items():
            setattr(held, name, 1 if value is None else value)
        yield
    finally:
        for name, value in before.items():
            setattr(held, name, value)


class InProcessGrid(Grid):
    """Nodes that answer at once; use it inside of `identity`.

    `nodes` maps a node to its ``node_config``, `present(turn, node)` says whether a reply arrives: a node that is
    absent does not run, turns count from 1. ``contexts`` live as long as the grid, with private memory in their state;
    ``sent`` holds turn, node, numbers down and numbers up of each exchange, ``queries`` turn and node of each question
    for a name. A client that raises answers with an error, as under Ray and on a real node.
    """

    def __init__(self, app, nodes, *, present=None):
        self.app, self.present, self._run = app, present, None
        self.sent, self.queries = [], []
        self.contexts = {
            node: fl.Context(run_id=1, node_id=node, node_config=dict(config), state=fl.RecordDict(), run_config={})
            for node, config in nodes.items()
        }

    def set_run(self, run):
        self._run = run

    @property
    def run(self):
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return fl.Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        """Call the app for each message of a node that is present, and return the replies."""
        replies = []
        for message in messages:
            node, turn = message.metadata.dst_node_id, int(message.metadata.group_id)
            if self.present is not None and not self.present(turn, node):
                continue
            down = _numbers(message.content)  # before the app, which may change what it was given
            try:
                reply = self.app(message, self.contexts[node])
            except Exception as error:
                reply = fl.Message(fl.Error(0, f"{type(error)}:<'{error}'>"), reply_to=message)
            if message.metadata.message_type == fl.MessageType.QUERY:
                self.queries.append((turn, node))
            else:
                self.sent.append((turn, node, down, _numbers(reply.content) if reply.has_content() else 0))
            replies.append(reply)
        return replies


def _numbers(content):
    return sum(math.prod(array.shape) for record in content.array_records.values() for array in record.values())
