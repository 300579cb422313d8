"""FedRecGEL: federated recommendation whose item vectors are trained to be good in a whole neighbourhood.

Paper
-----
Yu, Feng, Li, Zhang, Wang, Chen: *FedRecGEL*, The Web Conference 2026 (arXiv 2603.11503). Abstract, introduction and the
published code were at hand; theorems, baselines and tables were not.

Problem
-------
    min over s, {u_c}   mean_c  max over ||e|| <= rho_shared, ||f|| <= rho_private of  L_c(s + e, u_c + f)

s: item vectors and layers, at the server. u_c: the vector of client c, on its device. L_c: cross-entropy of the
client's items against drawn ones, the sum of the means of blocks of 128 samples.

Algorithm
---------
1. the server asks a share of the clients and sends s
2. a client draws negatives and takes three gradients: at (s, u), by s at (s + e, u), by u at (s, u + f)
3. u moves by the client's own Adam; the rows of the gradient by s that were touched go up
4. the server takes one step of Adam along the mean of what arrived
5. the round with the best validation NDCG; with noise the last round

Shapes
------
U clients, I items, d the width of an item's vector; s is (I, d) and layers, u_c is (d,).

Deviations
----------
D1. Radii are times ``strength``, so that one dial scales the remedy, weight decay and the smaller rate of the controls.
    In the studies it is tuned for each of them on validation; in a run all are at their defaults. Norms are noted.
D2. A validation item selects the round, by NDCG in full ranking. ``--set mode=official`` selects on the test item, as
    the published code does, which goes by the hit rate among 100 candidates in every round.
D3. The server's rate is a setting. The published code configures 1.5 and takes 0.001.
D4. Replies are sparse and are checked: one that is not finite, of other shapes, or too long is not averaged.
D5. No negative is a training item; held-out items may be drawn, as nobody knows them.

Cost
----
Three forward and backward passes a client (plain training: one), over the rows that it touches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, NonNegativeFloat, PositiveFloat, PositiveInt, Run, Task, method, stream
from upright.declare import Changes, Curve, Front, Noted
from upright.lazy import LazyModule
from upright.recommendation.settings import FederatedTraining, FedRecConfig

if TYPE_CHECKING:
    import torch

    from upright.federation import recommender
    from upright.federation import rounds as federation
    from upright.federation.recommender import FedRec
    from upright.models import recommenders
    from upright.recommendation import federated, pairs, uploads
else:
    torch = LazyModule("torch")
    recommender = LazyModule("upright.federation.recommender")
    federation = LazyModule("upright.federation.rounds")
    recommenders = LazyModule("upright.models.recommenders")
    federated = LazyModule("upright.recommendation.federated")
    pairs = LazyModule("upright.recommendation.pairs")
    uploads = LazyModule("upright.recommendation.uploads")

__all__ = ["FedRec", "FedRecGELConfig", "Served", "run"]

PROBED = 100  # clients whose sharpness is measured
SLICE = 9  # points along a direction


class FedRecGELConfig(FederatedTraining):
    """Settings of FedRecGEL and of its controls."""

    strength: NonNegativeFloat = 1.0
    """Times both radii, times the weight decay, and the exponent of `rate_factor`."""
    rate_factor: NonNegativeFloat = 1.0
    """The server's rate is ``server_rate * rate_factor ** strength``."""
    anchor: Literal["none", "local", "central"] = "none"
    """`local` leaves item vectors as they are drawn, and every device learns alone; `central` trains on everybody's
    interactions in one place, with NeuMF in its small form where the backbone has layers."""
    probe_radius: PositiveFloat = 0.05
    """Radius at which the sharpness of both blocks is measured, the same in all arms."""
    check_every: PositiveInt = 10
    """Rounds between validation checks, measurements of sharpness and item-centred views."""
    patience: PositiveInt = 5
    """Checks without a better validation score before stopping; a third of the checks so far, where that is more."""

    def algorithm(self, t: Any, seed: int) -> federated.FedRecGEL:
        """Return the algorithm on the clients of a task."""
        own = {name: getattr(self, name) for name in FederatedTraining.__annotations__}
        own["rho_shared"], own["rho_private"] = self.strength * self.rho_shared, self.strength * self.rho_private
        own["weight_decay"] = self.strength * self.weight_decay
        own["server_rate"] = 0.0 if self.anchor == "local" else self.server_rate * self.rate_factor**self.strength
        sizes = {"n_items": t.n_items, "n_clients": len(t.devices), "dtype": t.config.precision}
        return federated.FedRecGEL(FedRecConfig(**own, **sizes, view_every=self.check_every, seed=seed))


class Served:
    """What a training serves: scores of all items for the clients of a task.

    Parameters
    ----------
    state : mapping
        Of the server.
    users : ndarray, shape (U, d)
        The clients' vectors.
    """

    def __init__(self, state: Mapping[str, Any], users: NDArray[Any]) -> None:
        self.state = {name: value for name, value in state.items() if name.startswith("shared.")}
        self.users = users

    def score_all(self, users: NDArray[np.int64]) -> NDArray[Any]:
        """Return the scores of every item, shape (B, I), for client codes of shape (B,)."""
        return federated.score_all(self.state, self.users[users])


def _served(algorithm: Any, state: Mapping[str, Any], privates: Mapping[str, Any], t: Any) -> Served:
    return Served(state, algorithm.users(privates, [*t.devices]))


def _note_view(state: Mapping[str, Any], run: Run) -> None:
    """Note, by the number of clients that touched an item in a round, how far they agree and how far it moved."""
    view = state.get("view")
    if view is None:
        return
    clients, edges, found = view["clients"], (2, 3, 5, 10, 20, 50, 10**9), []
    for low, high in pairwise(edges):
        inside = (clients >= low) & (clients < high)
        if not inside.any():
            continue
        name = f"{low}" if high == low + 1 else f"{low} to {high - 1}" if high < 10**9 else f"{low} or more"
        row = {"clients": name, "items": int(inside.sum()), "cosine": float(view["agreement"][inside].mean())}
        found.append(row | {"drift": float(view["drift"][inside].mean()), "n": int(state["history"][-1]["clients"])})
    run.note("agreement", found)


def _note_slice(algorithm: Any, state: Mapping[str, Any], privates: Any, devices: Any, run: Run) -> None:
    """Note the mean loss of some clients along two random, orthogonal directions of the shared block."""
    message, draw = algorithm.message(state), run.rng("slice")
    names = [name for name in message if name.startswith("shared.")]
    flat = draw.standard_normal((2, sum(message[name].size for name in names)))
    flat[1] -= flat[0] * (flat[0] @ flat[1]) / (flat[0] @ flat[0])
    flat *= np.linalg.norm(message["shared.item"]) / np.linalg.norm(flat, axis=1, keepdims=True)
    cut = np.cumsum([message[name].size for name in names])[:-1]
    found = []
    for step in np.linspace(-0.5, 0.5, SLICE):
        loss = {}
        for name, way in (("first", flat[0]), ("second", flat[1])):
            moved = dict(message)
            for key, part in zip(names, np.split(step * way, cut), strict=True):
                moved[key] = np.asarray(message[key] + part.reshape(message[key].shape), message[key].dtype)
            loss[name] = float(np.nanmean(algorithm.sharpness(moved, privates, devices)[:, 0]))
        found.append({"step": float(step), **loss, "n": len(devices)})
    run.note("slice", found)


def _central(t: Any, config: FedRecGELConfig, run: Run) -> Served:
    """Train a backbone on everybody's interactions, as the point that a federation could at best reach."""
    kind: Literal["bprmf", "neumf"] = "bprmf" if config.backbone == "dot" else "neumf"
    precision = getattr(torch, t.config.precision)
    size = (t.n_users, t.n_items)
    model: Any = recommenders.build(kind, *size, t.seen, config.dim, 2, run.torch_rng("init"), precision)
    optimiser, key = torch.optim.Adam(model.parameters(), lr=config.server_rate), f"ndcg@{t.config.k}"

    class Central:
        def score_all(self, users: NDArray[np.int64]) -> NDArray[Any]:
            with torch.no_grad():
                own, items = model.tables()
                return np.asarray(model.score_all(own[torch.from_numpy(users)], items).numpy())

    central = Central()
    with run.training(config, epochs=config.rounds, model=model, optimiser=optimiser) as epochs:
        for epoch in epochs:
            for batch in pairs.batches(t, run, epoch, 2048):
                users, items = model.tables()
                loss, decay = pairs.pair_loss(model, users, items, batch, "bce", 1e-4)
                optimiser.zero_grad(set_to_none=True)
                (loss + decay).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            if epochs.due:
                value = float(np.nanmean(t.score(central, "valid", run).values[key]))
                epochs.log(**{f"valid/{key}": value})
                epochs.check(value)
    run.note("best_round", epochs.best_epoch)
    run.note("converged", epochs.converged)
    return central  # type: ignore[return-value]


def _rounds(algorithm: Any, t: Any, kept: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Go on from a checkpoint, where there is one."""
    resume = (federation.from_tensors(kept["state"]), federation.from_tensors(kept["privates"])) if kept else None
    return federation.rounds(algorithm, t.devices, resume=resume)


def export_flower(task: Any, config: FedRecGELConfig, parts: Mapping[str, Any], seed: int, folder: Path) -> None:
    """Write a Flower app that goes on from the shared block; no client's vector is among it."""
    own = config.algorithm(task, stream(seed, "federation")).config.as_dict()
    model = recommender.FedRec(**{name: value for name, value in own.items() if name not in ("n_items", "view_every")})
    model.start(task.train.item_ids, federation.from_tensors(parts["kept"]["state"])).export(folder)


_REPORT = [
    Front("Quality of everybody against the gap between clients with few and with many items"),
    Curve("Validation quality by round", x="step", y="valid/ndcg@10"),
    Curve(
        "Sharpness of the shared block by round",
        reading=[
            "How much a client's loss rises when the shared block moves by the radius along its gradient: a mean."
        ],
        x="step",
        y="sharpness/shared",
    ),
    Curve("Sharpness of the clients' own vectors by round", x="step", y="sharpness/private"),
    Noted(
        "Do clients agree on an item?",
        "agreement",
        [
            "Mean cosine of the gradients that two clients sent for one item in the last round that was looked at. 1: "
            "they pull alike; 0: they have nothing in common. Items of a round share its clients: a number is one draw."
        ],
        by={"clients": "clients that touched it"},
        names={"cosine": "mean cosine", "drift": "how far its vector moved", "items": "items"},
    ),
    Curve(
        "Loss along a random direction of the shared block",
        "slice",
        ["Mean loss of some clients. A step of 1 is as long as the whole item table."],
        x="step",
        y="first",
    ),
    Curve("Loss along a second direction, at a right angle", "slice", x="step", y="second"),
    Changes("Change for clients with few and with many items", "mean:ndcg@*:size=*"),
    Noted(
        "What a client sends and receives in a round",
        "ledger",
        names={
            "down": "bytes down",
            "up_dense": "bytes up, whole table",
            "up_sparse": "bytes up, touched rows",
            "rows": "touched rows",
            "flops": "floating-point operations",
        },
    ),
    Noted(
        "How training ended",
        names={
            "best_round": "best round",
            "converged": "converged",
            "norm": "norm of the item table",
            "update": "norm of its last change",
            "sharpness.shared": "sharpness of the shared block",
            "sharpness.private": "sharpness of the clients' vectors",
            "epsilon_server": "epsilon of the updates of the published model, delta = 1 / (10 clients)",
            "epsilon_device": "epsilon of all that one device sends, delta = 1 / (10 clients)",
        },
    ),
]
_LIMITS = [
    "Clients are simulated in one program. Over a network they send the same; what networks do is not measured.",
    "One held-out item a client: an item that the user would have liked as well counts as a miss.",
    "Light and heavy clients are told apart by their training items, not by who people are.",
    "Sharpness-aware training hides nothing: an upload names the items that a client touched, and its sign tells which "
    "of them it trained on (`upright audit updates`).",
]


@method(
    "fedrecgel",
    task="upright.tasks.federated_next_item:FederatedNextItem",
    config=FedRecGELConfig,
    title="FedRecGEL",
    mends="federated recommendation with item embeddings that do not generalise",
    neutral=[{"rho_shared": 0.0, "rho_private": 0.0}, {"strength": 0.0}],
    arms=[
        Arm("none", "baseline", {"passes": "plain"}, "FedNCF"),
        Arm("fedrecgel", "remedy", {}, "FedRecGEL"),
        Arm("decay", "trivial", {"passes": "plain", "weight_decay": 0.1}, "weight decay", simpler=True),
        Arm("small_rate", "trivial", {"passes": "plain", "rate_factor": 0.5}, "smaller server rate", simpler=True),
        Arm("random", "placebo", {"direction": "random"}, "random direction"),
        Arm("shared", "rival", {"rho_private": 0.0}, "shared block alone"),
        Arm("private", "rival", {"rho_shared": 0.0}, "private block alone"),
        Arm("local", "anchor", {"passes": "plain", "anchor": "local"}, "every device alone"),
        Arm("central", "anchor", {"anchor": "central"}, "all data in one place"),
    ],
    statistics=[
        "mean:ndcg@10",
        "mean:ndcg@10:size",
        "gap:ndcg@10:size",
        "abs_gap:ndcg@10:size",
        "mean:ndcg@10:size_decile",
        "mean:hit@10",
        "mean:mrr@10",
        "mean:ndcg@10_sampled",
    ],
    primary="mean:ndcg@10",
    cost="abs_gap:ndcg@10:size",
    presets={"quick": {"method": {"rounds": 150}, "task": {}}, "full": {"method": {"rounds": 400}, "task": {}}},
    tune={"strength": [0.2, 2.0, 10.0]},
    sweep={"strength": [0.2, 2.0, 10.0]},
    report=_REPORT,
    limits=_LIMITS,
    demo={
        "data": "ml100k",
        "settings": {"rounds": 100},
        "arms": ["none", "fedrecgel", "random"],
        "study": "fedrecgel-dot-ml100k",
    },
    export={"flower": export_flower},
    tiny={"rounds": 8, "check_every": 4, "fraction": 0.3, "dim": 8},
)
def run(task: Task, config: FedRecGELConfig, run: Run) -> Any:
    """Train on the task's clients and return what serves them at the best validation NDCG, with noise at the end."""
    t: Any = task
    t.warn(run)
    if config.anchor == "central":
        return _central(t, config, run)
    algorithm, key = config.algorithm(t, stream(run.seed, "federation")), f"ndcg@{t.config.k}"
    probe = {"rho_shared": config.probe_radius, "rho_private": config.probe_radius}
    probing = federated.FedRecGEL(algorithm.config.replace(**probe))
    noisy = config.noise_multiplier > 0  # then the last round is served: epsilon covers no choice on validation
    if noisy:
        run.note(f"epsilon_{config.noise_at}", uploads.epsilon(algorithm.config, 0.1 / len(t.devices)))
    some = sorted(run.rng("probed").choice([*t.devices], min(PROBED, len(t.devices)), replace=False).tolist())
    probed, kept = {name: t.devices[name] for name in some}, dict[str, Any]()
    patience = None if noisy else config.patience
    with run.training(config, epochs=config.rounds, patience=patience, kept=kept) as epochs:
        for _, (state, privates) in zip(epochs, _rounds(algorithm, t, kept), strict=False):
            if not epochs.due:
                continue
            rise = probing.sharpness(algorithm.message(state), privates, probed)
            value = float(np.nanmean(t.score(_served(algorithm, state, privates, t), "valid", run).values[key]))
            last = state["history"][-1]
            epochs.log(norm=last["norm"], update=last["update"], rows=last["rows"] / max(last["clients"], 1))
            epochs.log(**{f"valid/{key}": value})
            epochs.log(**dict(zip(("loss", "sharpness/shared", "sharpness/private"), np.nanmean(rise, 0), strict=True)))
            kept |= {"state": federation.to_tensors(state), "privates": federation.to_tensors(privates)}
            epochs.check(float(state["round"]) if noisy else value)
    state, privates = (federation.from_tensors(kept[name]) for name in ("state", "privates"))
    run.note("best_round", epochs.best_epoch)
    if not noisy:
        run.note("converged", epochs.converged)
    last = state["history"][-1]
    run.note("norm", last["norm"])
    run.note("update", last["update"])
    rows = round(last["rows"] / max(last["clients"], 1))
    run.note("ledger", {"rows": rows, **uploads.ledger(algorithm.config, rows)})
    rise = np.nanmean(probing.sharpness(algorithm.message(state), privates, probed), 0)
    run.note("sharpness", dict(zip(("shared", "private"), rise[1:].tolist(), strict=True)))
    _note_view(state, run)
    _note_slice(algorithm, state, privates, probed, run)
    return _served(algorithm, state, privates, t)


def __getattr__(name: str) -> Any:
    """Return what a native door is made of, loaded when it is asked for."""
    if name == "FedRec":
        return recommender.FedRec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
