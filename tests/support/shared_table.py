"""A federated algorithm small enough to read: devices pull a few rows of a shared table towards what they hold.

It samples, sends sparse replies, folds them, and keeps private memory in rows, as a recommender over devices does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from upright.contract import stream
from upright.federation.rounds import Free

ROWS, WIDTH, LARGEST = 12, 3, 100.0


@dataclass(frozen=True, eq=False)
class Device:
    name: str
    rows: np.ndarray


def devices(count):
    """Devices with one to five rows each."""
    out = {}
    for name in (f"u{i:03d}" for i in range(count)):
        rng = np.random.default_rng(stream(0, "device", name))
        out[name] = Device(name, np.sort(rng.choice(ROWS, rng.integers(1, 6), replace=False)))
    return out


class Table:
    """``table += sum_c values_c / |replies|``; ``fraction`` of the devices answers a round, drawn for each alone."""

    def __init__(self, rounds=4, fraction=0.5):
        self.rounds, self.fraction = rounds, fraction

    def start(self):
        return {"round": 0, "table": np.zeros((ROWS, WIDTH))}

    def message(self, state):
        return {"round": np.array(state["round"]), "table": state["table"]}

    def sample(self, state, names):
        return [n for n in names if stream(0, "sample", n, state["round"]) < self.fraction * 2**63]

    def template(self, state, name):
        return {"rows": Free("int64", (None,)), "values": Free("float64", (None, WIDTH)), "count": np.array(0.0)}

    def objection(self, state, name, reply):
        rows = reply["rows"]
        if len(rows) != len(reply["values"]) or (np.diff(rows) <= 0).any() or (rows < 0).any() or (rows >= ROWS).any():
            return "rows that are not in the table, or not each once"
        return "too large" if np.linalg.norm(reply["values"]) > LARGEST else ""

    def private_rows(self, names):
        return {"user": np.zeros((len(names), WIDTH)), "step": np.zeros(len(names))}

    def client(self, message, private, data):
        user = np.random.default_rng(stream(0, "user", data.name)).normal(size=WIDTH)
        user = private.get("user", user)
        values = user - message["table"][data.rows]
        reply = {"rows": data.rows, "values": values, "count": np.array(float(len(data.rows)))}
        return reply, {"user": user - 0.1 * values.mean(axis=0), "step": np.array(private.get("step", 0.0) + 1.0)}

    def begin(self, state):
        return {"sum": np.zeros((ROWS, WIDTH)), "replies": 0}

    def add(self, total, name, reply):
        total["sum"][reply["rows"]] += reply["values"]
        total["replies"] += 1
        return total

    def finish(self, state, total):
        table = state["table"] + total["sum"] / max(1, total["replies"])
        return {**state, "round": state["round"] + 1, "table": table}

    def done(self, state):
        return state["round"] >= self.rounds


class Kept:
    """The same algorithm without the fold: all replies of a round at once."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name in ("begin", "add", "finish"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def server(self, state, replies):
        total = self.inner.begin(state)
        for name in replies:  # in order of names, or the last bit differs
            total = self.inner.add(total, name, replies[name])
        return self.inner.finish(state, total)
