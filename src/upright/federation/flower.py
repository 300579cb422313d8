"""The same rounds on Flower: a strategy and a client app for any algorithm of `upright.federation.rounds`.

The server half samples, writes messages and takes replies by the algorithm's methods, the client half calls
``client``; replies pass the same checks as in `drive` and are taken in the same order, so both give equal states, noise
and padding apart. Needs the package ``flwr`` (``pip install 'upright[federated]'``).

=================  =================================================================================================
message down       ``message`` (ArrayRecord), and the user's ``config`` (ConfigRecord)
message up         ``reply`` (ArrayRecord), and the client's name in ``client`` (ConfigRecord)
stays at the node  private memory, in ``context.state["private"]`` (ArrayRecord), or in a file (``keep=``)
=================  =================================================================================================

::

    app = ServerApp()

    @app.main()
    def main(grid, context):
        own = strategy(algorithm, min_nodes=5)
        own.start(grid, own.initial_arrays(), num_rounds=algorithm.config.rounds + 1)

    client = client_app(algorithm, lambda context: load_silo(context.node_config["partition-id"]))

A turn of Flower is an attempt at a round: repeated rounds need turns of their own, and turns after the end send
nothing. A turn in which no node is connected is no attempt. An error reply is asked for again in the same turn, with
waits that double, and refused if it stays one; a node that does not answer in time is absent; a late reply is refused
by its turn.

In Flower's simulation on Ray a worker that died stays among the workers and fails everybody it is given: let Ray start
it again with ``backend_config={"client_resources": {"num_cpus": 1, "max_restarts": -1}}``.

An algorithm that samples needs names before anybody is asked: then nodes that are new are sent a query first, a roll
call, which `client_app` answers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from logging import INFO, WARNING, getLogger
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from upright.contract import InputError
from upright.federation.rounds import Algorithm, Message, State, sampled, settle

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
    return fl.ArrayRecord({name: fl.Array(np.asarray(value, order="C")) for name, value in arrays.items()})


def from_record(record: fl.ArrayRecord) -> Message:
    """Return what `to_record` was given."""
    return {name: array.numpy() for name, array in record.items()}


def client_app(
    algorithm: Algorithm,
    load_data: Callable[[fl.Context], Any],
    *,
    name: str = "name",
    keep: str | Path | None = None,
) -> ClientApp:
    """Return the client half.

    Parameters
    ----------
    algorithm : Algorithm
        With the same settings as at the server.
    load_data : callable
        From Flower's context to the client's data, called once a message: cache what is slow to read.
    name : str
        Attribute of the data that names the client; data without it are named by their node.
    keep : path, optional
        Folder of the device for private memory, one file a client that its owner alone may read. A node of Flower holds
        it in memory only (flwr 1.41 does), and a run has its own: with a folder a node that was restarted goes on where
        it was, and so does the next run. Remove the file to begin anew.

    Raises
    ------
    InputError
        At a message, when the file that is kept is damaged: an error reply then, and the file stays as it is.
    """
    app = ClientApp()

    @app.train()
    def train(message: fl.Message, context: fl.Context) -> fl.Message:
        data = load_data(context)
        own, down = called(data, context), from_record(message.content.array_records["message"])
        file = None if keep is None else _file_of(Path(keep), own["name"])
        held = context.state.array_records.get("private")
        before = (from_record(held) if held else {}) if file is None else _remembered(file)
        reply, private = algorithm.client(down, before, data)
        if file is None:
            context.state["private"] = to_record(private)
        else:
            _remember(file, private)
        content = fl.RecordDict({"reply": to_record(reply), "client": own})
        return fl.Message(content=content, reply_to=message)

    @app.query()
    def query(message: fl.Message, context: fl.Context) -> fl.Message:
        own = called(load_data(context), context)
        return fl.Message(content=fl.RecordDict({"client": own}), reply_to=message)

    def called(data: Any, context: fl.Context) -> fl.ConfigRecord:
        return fl.ConfigRecord({"name": str(getattr(data, name, _node(context.node_id)))})

    return app


def _file_of(folder: Path, name: Any) -> Path:
    return folder / f"private-{quote(str(name), safe='')}.safetensors"  # no name leads out of the folder


def _remembered(file: Path) -> Message:
    """Return the private memory that a file keeps; nothing where there is none."""
    if not file.exists():
        return {}
    try:
        return load(file.read_bytes())
    except SafetensorError as error:
        raise InputError(
            f"{file}: no private memory can be read from it ({error})",
            "a safetensors file that a client wrote",
            "bring it back from a backup, or remove it: this client then begins anew",
        ) from None


def _remember(file: Path, private: Message) -> None:
    """Write private memory whole or not at all, for its owner's eyes."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, part = tempfile.mkstemp(dir=file.parent, prefix=".private-")  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(save({name: np.asarray(value, order="C") for name, value in private.items()}))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def strategy(
    algorithm: Algorithm,
    *,
    least: float = 0.5,
    repeats: int = 3,
    min_nodes: int = 1,
    wait_s: float = 60.0,
    backoff_s: float = 1.0,
    state: State | None = None,
    on_round: Callable[[State], None] | None = None,
) -> Rounds:
    """Return the server half.

    Parameters
    ----------
    algorithm : Algorithm
    least, repeats
        See `upright.federation.rounds.settle`; those asked are drawn from Flower's connected nodes.
    min_nodes : int
        How many nodes the first turn waits for; later ones wait for one.
    wait_s : float
        Seconds for which nodes, and answers to a roll call, are waited for. Then a turn goes on with those it has.
    backoff_s : float
        Seconds before a client that failed is asked again; doubled each time, `repeats` times at most. One that fails
        to the end of a turn is asked once a turn from then on, until it answers.
    state : dict, optional
        To go on from; the algorithm's first state by default.
    on_round : callable, optional
        Called with the state after each attempt.

    Raises
    ------
    InputError
        For ``least`` outside (0, 1], negative numbers, and ``min_nodes < 1``.
    """
    if not 0.0 < least <= 1.0 or min(repeats, wait_s, backoff_s) < 0 or min_nodes < 1:
        raise InputError(
            f"least = {least}, repeats = {repeats}, min_nodes = {min_nodes}, waits of {wait_s} and {backoff_s} seconds",
            "least in (0, 1], one node or more, and no number below 0",
            "correct the one outside its range",
        )
    own = Rounds(algorithm, least=least, repeats=repeats, state=state, on_round=on_round)
    own.min_nodes, own.wait_s, own.backoff_s = min_nodes, wait_s, backoff_s
    return own


def _node(node: int) -> str:
    return f"node {node}"


def _of(reply: fl.Message) -> int:
    return int(reply.metadata.src_node_id)


def _opened(found: Mapping[str, fl.Message | str]) -> Iterator[tuple[str, Message | str]]:
    """Yield replies in order of names, each read when its turn comes; where it cannot be read, why."""
    for name in sorted(found):
        reply = found[name]
        if isinstance(reply, str):
            yield name, reply
            continue
        try:
            yield name, from_record(reply.content.array_records["reply"])
        except (ValueError, TypeError, EOFError, OSError) as error:
            yield name, f"arrays that cannot be read ({error})"


class Rounds(Strategy):
    """A strategy of Flower that keeps the algorithm's state; made by `strategy`.

    Attributes
    ----------
    state : dict
        After the last turn; ``state["log"]`` names absent and quarantined clients of the last one.
    names : dict of node to client
        As each node called itself first. A node that is gone gives its name up to the next that has it.
    """

    min_nodes, wait_s, backoff_s = 1, 60.0, 1.0

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
        self.nodes: dict[str, int] = {}  # the same by name
        self.connected: set[int] = set()
        self.asked: list[int] | None = None  # None in a turn that is no attempt
        self.failed: set[int] = set()  # at the end of their last turn
        self.nameless: dict[str, str] = {}  # who could not be drawn, and why
        self.timeout: float | None = None
        self._again: Callable[[Sequence[int]], Iterable[fl.Message]] = lambda nodes: []

    def initial_arrays(self) -> fl.ArrayRecord:
        """Return the first message, as Flower's ``start`` asks for it."""
        return to_record(self.algorithm.message(self.state))

    def start(self, grid: Grid, *args: Any, **options: Any) -> Any:
        """Run Flower's own loop; whoever is asked again is waited for as long as the others."""
        self.timeout = options.get("timeout", args[2] if len(args) > 2 else 3600.0)  # as Flower has it
        result = super().start(grid, *args, **options)
        if not self.algorithm.done(self.state):
            log.log(WARNING, "The turns are over in round %d: give more, or go on with state=.", self.state["round"])
        return result

    def configure_train(
        self, server_round: int, arrays: fl.ArrayRecord, config: fl.ConfigRecord, grid: Grid
    ) -> Iterable[fl.Message]:
        """Write the algorithm's message to who is asked; `arrays` is what it was before and is not used."""
        self.asked = None
        if self.algorithm.done(self.state):
            return []
        nodes = self._wait(grid)
        self.nameless = {}
        if hasattr(self.algorithm, "sample"):
            self._call_roll(server_round, [node for node in nodes if node not in self.names], grid)
            there = {self.names[node]: node for node in nodes if node in self.names}
        else:
            there = {self._name(node): node for node in nodes}
        if not there:
            log.log(WARNING, "Turn %d: no node could be asked.", server_round)
            return []
        self.asked = [there[name] for name in sampled(self.algorithm, self.state, there)]
        content = fl.RecordDict({"message": to_record(self.algorithm.message(self.state)), "config": config})
        self._again = lambda some: grid.send_and_receive(self._to(some, server_round, content), timeout=self.timeout)
        return self._to(self.asked, server_round, content)

    def _wait(self, grid: Grid) -> list[int]:
        """Return the connected nodes: the first time when there are enough of them or the time is over."""
        needed, end = 1 if self.connected else self.min_nodes, time.monotonic() + self.wait_s
        while len(nodes := sorted(grid.get_node_ids())) < needed and time.monotonic() < end:
            time.sleep(0.2)
        self.connected = set(nodes)
        return nodes

    def _to(
        self, nodes: Sequence[int], turn: int, content: fl.RecordDict, kind: str = fl.MessageType.TRAIN
    ) -> list[fl.Message]:
        return [fl.Message(content=content, message_type=kind, dst_node_id=n, group_id=str(turn)) for n in nodes]

    def _call_roll(self, turn: int, nodes: Sequence[int], grid: Grid) -> None:
        """Ask nodes for their names; those of lower number first where two have one name."""
        self.nameless = {_node(node): "no answer to the question for its name" for node in nodes}
        if not nodes:
            return
        messages = self._to(nodes, turn, fl.RecordDict(), fl.MessageType.QUERY)
        for reply in sorted(grid.send_and_receive(messages, timeout=self.wait_s), key=_of):
            name, reason = self._who(turn, reply)
            self.nameless.pop(_node(_of(reply)), None)
            if reason:
                self.nameless[name] = reason

    def aggregate_train(
        self, server_round: int, replies: Iterable[fl.Message]
    ) -> tuple[fl.ArrayRecord | None, fl.MetricRecord | None]:
        """Check the replies and take the algorithm's next state."""
        if self.asked is None:
            return None, None
        found: dict[str, fl.Message | str] = dict(self.nameless)
        for reply in self._patient(replies):
            name, reason = self._who(server_round, reply)
            if not reason and "reply" not in reply.content.array_records:
                reason = f"records {sorted(reply.content)} in place of client and reply"
            found[name] = reason or ("two replies under one name" if name in found else reply)
        asked = [self._name(node) for node in self.asked]
        self.state = settle(self.algorithm, self.state, _opened(found), asked, least=self.least, repeats=self.repeats)
        if self.on_round is not None:
            self.on_round(self.state)
        return to_record(self.algorithm.message(self.state)), self._metrics()

    def _patient(self, replies: Iterable[fl.Message]) -> list[fl.Message]:
        """Return one reply a node, those that failed asked again after waits that double."""
        found = list(replies)
        for k in range(self.repeats):
            again = {_of(reply) for reply in found if reply.has_error()} - self.failed
            if not again:
                break
            time.sleep(self.backoff_s * 2**k)
            new = {_of(reply): reply for reply in self._again(sorted(again))}
            found = [reply for reply in found if _of(reply) not in new] + list(new.values())
        self.failed -= set(self.asked or ())
        self.failed |= {_of(reply) for reply in found if reply.has_error()}
        return sorted(found, key=_of)

    def _name(self, node: int) -> str:
        return self.names.get(node, _node(node))

    def _who(self, server_round: int, reply: fl.Message) -> tuple[str, str]:
        """Return who answered, and why the reply is refused (empty when it is not)."""
        node = _of(reply)
        if reply.has_error():
            return self._name(node), f"failed: {reply.error.reason}"
        if reply.metadata.group_id != str(server_round):
            return self._name(node), f"a late reply, to turn {reply.metadata.group_id}"
        content = reply.content
        if "name" not in content.config_records.get("client", {}):
            return self._name(node), f"records {sorted(content)} in place of client and reply"
        name = str(content.config_records["client"]["name"])
        if self.names.get(node, name) != name:
            return self.names[node], f"a node that called itself {name!r} now"
        before = self.nodes.get(name, node)
        if before != node and before in self.connected:
            return _node(node), f"a second node that calls itself {name!r}"
        self.names.pop(before, None)  # it is gone: its client came back as another node
        self.names[node], self.nodes[name] = name, node
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
