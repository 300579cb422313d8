"""The same rounds on Flower: a strategy and a client app for any algorithm of `upright.federation.rounds`.

The server half calls ``message`` and ``server`` of the algorithm, the client half ``client``; replies pass the same
checks as in `drive`, so both give equal states. Needs the package ``flwr`` (``pip install 'upright[federated]'``).

=================  =================================================================================================
message down       ``message`` (ArrayRecord), and the user's ``config`` (ConfigRecord)
message up         ``reply`` (ArrayRecord), and the client's name in ``client`` (ConfigRecord)
stays at the node  private memory, in ``context.state["private"]`` (ArrayRecord)
=================  =================================================================================================

::

    app = ServerApp()

    @app.main()
    def main(grid, context):
        own = strategy(algorithm)
        own.start(grid, own.initial_arrays(), num_rounds=algorithm.config.rounds + 1)

    client = client_app(algorithm, lambda context: load_silo(context.node_config["partition-id"]))

A turn of Flower is an attempt at a round: repeated rounds need turns of their own, and turns after the end send
nothing. An error reply is a refused one; a node that does not answer in time is absent; a late reply is refused by
its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import INFO, getLogger
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.federation.rounds import Algorithm, Message, State, settle

try:
    import flwr.app as fl
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy
except ImportError as error:
    raise ImportError(
        f"rounds on Flower were asked for and the package flwr cannot be imported ({error})\n"
        "  accepted: flwr >= 1.30, or upright.federation.rounds.drive, which needs no package\n"
        "  to do:    pip install 'upright[federated]'",
        name="flwr",
    ) from error

__all__ = ["Rounds", "client_app", "from_record", "strategy", "to_record"]

log = getLogger("flwr")


def to_record(arrays: Mapping[str, NDArray[Any]]) -> fl.ArrayRecord:
    """Return a flat dict of arrays as Flower sends it."""
    return fl.ArrayRecord({name: fl.Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def from_record(record: fl.ArrayRecord) -> Message:
    """Return what `to_record` was given."""
    return {name: array.numpy() for name, array in record.items()}


def client_app(algorithm: Algorithm, load_data: Callable[[fl.Context], Any], *, name: str = "name") -> ClientApp:
    """Return the client half.

    Parameters
    ----------
    algorithm : Algorithm
        With the same settings as at the server.
    load_data : callable
        From Flower's context to the client's data, called once a message: cache what is slow to read.
    name : str
        Attribute of the data that names the client; data without it are named by their node.
    """
    app = ClientApp()

    @app.train()
    def train(message: fl.Message, context: fl.Context) -> fl.Message:
        data = load_data(context)
        down, held = message.content.array_records["message"], context.state.array_records.get("private")
        reply, private = algorithm.client(from_record(down), from_record(held) if held else {}, data)
        context.state["private"] = to_record(private)
        own = fl.ConfigRecord({"name": str(getattr(data, name, _node(context.node_id)))})
        return fl.Message(content=fl.RecordDict({"reply": to_record(reply), "client": own}), reply_to=message)

    return app


def strategy(
    algorithm: Algorithm,
    *,
    least: float = 0.5,
    repeats: int = 3,
    state: State | None = None,
    on_round: Callable[[State], None] | None = None,
) -> Rounds:
    """Return the server half.

    Parameters
    ----------
    algorithm : Algorithm
    least, repeats
        See `upright.federation.rounds.settle`; the share is of Flower's connected nodes.
    state : dict, optional
        To go on from; the algorithm's first state by default.
    on_round : callable, optional
        Called with the state after each attempt.
    """
    return Rounds(algorithm, least=least, repeats=repeats, state=state, on_round=on_round)


def _node(node: int) -> str:
    return f"node {node}"


class Rounds(Strategy):
    """A strategy of Flower that keeps the algorithm's state; made by `strategy`.

    Attributes
    ----------
    state : dict
        After the last turn; ``state["log"]`` names absent and quarantined clients.
    names : dict of node to client
        As each node called itself first.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        least: float,
        repeats: int,
        state: State | None,
        on_round: Callable[[State], None] | None,
    ) -> None:
        self.algorithm, self.least, self.repeats, self.on_round = algorithm, least, repeats, on_round
        self.state: State = algorithm.start() if state is None else state
        self.names: dict[int, str] = {}
        self.asked: list[int] = []

    def initial_arrays(self) -> fl.ArrayRecord:
        """Return the first message, as Flower's ``start`` asks for it."""
        return to_record(self.algorithm.message(self.state))

    def configure_train(
        self, server_round: int, arrays: fl.ArrayRecord, config: fl.ConfigRecord, grid: Grid
    ) -> Iterable[fl.Message]:
        """Write the algorithm's message to every node; `arrays` is what it was before and is not used."""
        self.asked = [] if self.algorithm.done(self.state) else sorted(grid.get_node_ids())
        if not self.asked:
            return []
        content = fl.RecordDict({"message": to_record(self.algorithm.message(self.state)), "config": config})
        return [
            fl.Message(content=content, message_type=fl.MessageType.TRAIN, dst_node_id=node, group_id=str(server_round))
            for node in self.asked
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[fl.Message]
    ) -> tuple[fl.ArrayRecord | None, fl.MetricRecord | None]:
        """Check the replies and take the algorithm's next state."""
        if self.algorithm.done(self.state):
            return None, None
        good: dict[str, Message] = {}
        refused: dict[str, str] = {}
        for reply in replies:
            name, reason = self._who(server_round, reply)
            if not reason and name in good:
                reason = "two replies under one name"
            if not reason:
                try:
                    good[name] = from_record(reply.content.array_records["reply"])
                    continue
                except (ValueError, TypeError, EOFError, OSError) as error:
                    reason = f"arrays that cannot be read ({error})"
            refused[name] = reason
        asked = [self.names.get(node, _node(node)) for node in self.asked]
        self.state = settle(
            self.algorithm, self.state, {**good, **refused}, asked, least=self.least, repeats=self.repeats
        )
        if self.on_round is not None:
            self.on_round(self.state)
        return to_record(self.algorithm.message(self.state)), self._metrics()

    def _who(self, server_round: int, reply: fl.Message) -> tuple[str, str]:
        """Return who answered, and why the reply is refused (empty when it is not)."""
        node = reply.metadata.src_node_id
        known = self.names.get(node, _node(node))
        if reply.has_error():
            return known, f"failed: {reply.error.reason}"
        if reply.metadata.group_id != str(server_round):
            return known, f"a late reply, to turn {reply.metadata.group_id}"
        content = reply.content
        if "reply" not in content.array_records or "name" not in content.config_records.get("client", {}):
            return known, f"records {sorted(content)} in place of client and reply"
        name = str(content.config_records["client"]["name"])
        if self.names.setdefault(node, name) != name:
            return known, f"a node that called itself {name!r} now"
        if any(other != node and own == name for other, own in self.names.items()):
            del self.names[node]
            return _node(node), f"a second node that calls itself {name!r}"
        return name, ""

    def _metrics(self) -> fl.MetricRecord:
        entry = self.state["log"][-1]
        out: dict[str, Any] = {"round": int(entry["round"]), "used": int(entry["used"])}
        out |= {"absent": int(entry["absent"]), "quarantined": int(entry["quarantined"])}
        past = self.state.get("history") or [{}]
        return fl.MetricRecord(out | {k: float(v) for k, v in past[-1].items() if isinstance(v, int | float)})

    def configure_evaluate(
        self, server_round: int, arrays: fl.ArrayRecord, config: fl.ConfigRecord, grid: Grid
    ) -> Iterable[fl.Message]:
        """Ask nobody: clients look at the models in their rounds of training."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[fl.Message]) -> fl.MetricRecord | None:
        """Return nothing."""
        return None

    def summary(self) -> None:
        """Write the settings to Flower's log."""
        log.log(INFO, "\t└──> %s: least %.2f, repeats %d", type(self.algorithm).__name__, self.least, self.repeats)
