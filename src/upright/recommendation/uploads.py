"""What leaves a device in a federated recommender, and what it costs: padding, clip, noise, accountant, ledger.

A reply is ``rows``, shape (R,), ``values``, shape (R, d), and layers. It is padded, then clipped, then noised: the clip
bounds what one client can change, whatever was done before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError

if TYPE_CHECKING:
    from upright.recommendation.settings import FedRecConfig

__all__ = ["clipped", "dense", "epsilon", "ledger", "length_of", "noised", "padded"]

Arrays = dict[str, NDArray[Any]]


def length_of(reply: Arrays) -> float:
    """Return the norm over rows and layers together; infinite where it is beyond what a float holds."""
    with np.errstate(over="ignore"):
        return math.hypot(*(float(np.linalg.norm(v.astype(np.float64))) for k, v in reply.items() if k != "rows"))


def clipped(reply: Arrays, limit: float) -> Arrays:
    """Return ``reply min(1, limit / ||reply||)``."""
    scale = min(1.0, limit / max(length_of(reply), 1e-300))
    return {k: v if k == "rows" else np.asarray(v * scale, v.dtype) for k, v in reply.items()}


def dense(reply: Arrays, n_items: int) -> Arrays:
    """Return a reply with all rows of the table."""
    values = np.zeros((n_items, reply["values"].shape[1]), reply["values"].dtype)
    values[reply["rows"]] = reply["values"]
    return {**reply, "rows": np.arange(n_items), "values": values}


def noised(arrays: Arrays, scale: float, rng: np.random.Generator) -> Arrays:
    """Return arrays with N(0, scale^2) on each number."""
    return {
        k: v if k == "rows" else np.asarray(v + scale * rng.standard_normal(v.shape), v.dtype)
        for k, v in arrays.items()
    }


def padded(reply: Arrays, items: NDArray[np.int64], pad_to: int, n_items: int, rng: np.random.Generator) -> Arrays:
    """Return a reply with rows of other items, so that their number is a multiple of `pad_to`, or all items.

    A padding row is a random mixture of two rows of the client's own `items`, with a random sign and a length drawn
    from theirs: with ``dot`` it is a multiple of the user's vector as they are, it equals none of them, and its mean
    is 0, so that no item is pushed. What is left: own items have one sign, and half the padding has it. With p the
    share of padding among all other rows, sign and length tell own items with an AUC of about ``1 - p / 4``. And they
    come back in each round: who sees several rounds of a client can intersect them.
    """
    rows, values = reply["rows"], reply["values"]
    own, more = values[np.isin(rows, items)], min(-len(rows) % pad_to, n_items - len(rows))
    item = rng.choice(np.setdiff1d(np.arange(n_items), rows, assume_unique=True), more, replace=False)
    one, mix = rng.integers(0, len(own), more), rng.random((more, 1))
    other = (one + 1 + rng.integers(0, max(len(own) - 1, 1), more)) % len(own)
    alike = np.where((own[one] * own[other]).sum(1, keepdims=True) < 0, -1.0, 1.0)  # or they cancel each other
    fill = rng.choice([-1.0, 1.0], (more, 1)) * (mix * own[one] + (1 - mix) * alike * own[other])
    length = np.quantile(np.linalg.norm(own, axis=1), rng.random((more, 1)))
    fill *= length / np.maximum(np.linalg.norm(fill, axis=1, keepdims=True), 1e-300)
    rows, values = np.r_[rows, item], np.concatenate([values, fill.astype(values.dtype)])
    order = np.argsort(rows)
    return {**reply, "rows": rows[order], "values": values[order]}


def epsilon(config: FedRecConfig, delta: float, rounds: int | None = None) -> float:
    """Return epsilon of the updates of a whole training at some delta, by Renyi accounting at orders 2 to 256.

    ``noise_at="server"``: of the published model, where one client more or less is a neighbour; clients are asked by
    Poisson sampling. The server sees uploads before the noise: they have no epsilon.

    ``noise_at="device"``: of all that one client sends, where a neighbour sends noise alone. Who reads uploads knows
    who was asked, so sampling gives nothing, and a client may be asked in each round.

    `rounds` counts attempts, ``config.rounds`` by default: a round that was asked again counts each time. Covered is
    every shared block of every round. Not covered are a round chosen on validation data, ``history``, ``log``,
    ``view``, and other numbers that were taken from the clients.
    """
    if not config.noise_multiplier or not 0 < delta < 1:
        raise InputError(
            f"noise_multiplier = {config.noise_multiplier}, delta = {delta}",
            "noise above 0 and delta in (0, 1)",
            "set noise_multiplier and clip, and delta below one over the number of clients",
        )
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        todo = "pip install 'upright[federated]'"
        raise InputError("no dp-accounting here", "the package dp-accounting", todo) from None
    event = dp_accounting.GaussianDpEvent(config.noise_multiplier)
    if config.noise_at == "server":
        event = dp_accounting.PoissonSampledDpEvent(config.fraction, event)
    times = config.rounds if rounds is None else rounds
    return float(rdp.RdpAccountant(list(range(2, 257))).compose(event, times).get_epsilon(delta))


def ledger(config: FedRecConfig, rows: int, n_items: int | None = None) -> dict[str, int]:
    """Return bytes ``down``, ``up_dense`` and ``up_sparse``, and ``flops``, of a client with so many rows in a round.

    Two operations a multiplication with a weight, twice as many backward as forward, in each pass; `n_items` is the
    present size of a catalogue that has grown.
    """
    (width, wide, hidden), size = config.widths(), np.dtype(config.dtype).itemsize
    net = sum(math.prod(shape) for shape in config.layers().values())
    dense = ((n_items or config.n_items) * width + net) * size
    weights = net - sum(hidden) - wide * (hidden or (0,))[0] if hidden else width
    operations = 6 * weights * rows * (1 if config.passes == "plain" else 3)
    return {"down": dense, "up_dense": dense, "up_sparse": (rows * width + net) * size + 8 * rows, "flops": operations}
