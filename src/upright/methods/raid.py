"""RAID: training a recommender whose user vectors do not give away a private attribute.

Paper
-----
Feng, Li, Yu, Xiong, Fang, Zhang, Du, Chen: *RAID: An In-Training Defense against Attribute Inference Attacks in
Recommender Systems*, arXiv 2504.11510 (2025). Its formulas beyond the abstract were not at hand: this is the idea of
the abstract in a documented form, and no number of the paper is claimed.

Problem
-------
    min_theta  L_rec(theta) + alpha * mean_{(u, i) in batch} || e_u - sg(T(e_u)) ||^2 / sg(mean_u || e_u - mean ||^2)

over backbone parameters theta, with e_u all that the model holds of user u, and T the transport of the classes'
distributions onto their Wasserstein barycenter (`upright.recommendation.defence`); a user of unknown class moves to
where a classifier that was fitted to the known ones cannot tell.

Algorithm
---------
1. train the backbone alone until validation stops improving: the reference
2. every ``refresh_every`` steps: the barycenter, and where each user moves
3. each mini-batch: recommendation loss plus alpha times the distance of the batch's users to where they move
4. ``constraint="lagrange"``: after each check alpha grows while validation NDCG is within tau of the reference, and
   shrinks otherwise
5. the best validation NDCG in the second half of the defence; under ``lagrange`` the last check there whose NDCG is
   within tau, if there is one

Shapes
------
U users, I items, B batch, d width of what is held of a user, C classes.

Deviations
----------
D1. The transport is chosen by ``variant``. ``free`` is the reading closest to the abstract; ``sliced`` is the default,
    because its maps need the fewest users: in trials at seeds of their own plans between points did not carry over to
    users whom they were not fitted on, and with few users a dimension ``bures`` falls back to matching means.
D2. Users of unknown class move to where a linear classifier, fitted before the defence began, gives everybody the
    shares of the classes. Aligning known users alone leaves the others as they were.
D3. "Constrained" has two readings. ``constraint="lagrange"`` holds utility within tau by moving alpha;
    ``constraint="coupled"`` also lets the recommendation loss of the moved users pull the targets (one gradient step on
    them after each refresh). ``constraint="none"`` keeps alpha fixed and draws the frontier.
D4. Class weights of the barycenter are uniform: proportional ones put the whole move on the minority.
D5. The defence covers everything that the model holds of a user: both tables of NeuMF, and the trained and the
    propagated vectors of LightGCN. Public code of the same group defends and attacks one half of NeuMF's.
D6. Checkpoints are chosen on validation; that code chooses them on test. There is no stop when an attack is at chance.
D7. BPR-MF and LightGCN are trained with the BPR loss, NeuMF with cross-entropy; the paper writes cross-entropy.
D8. The pull is a mean over the pairs of a batch, divided by the spread of the vectors, not a sum weighted by class.

Cost
----
One refresh is O(C d^3 + U d^2) (``bures``), O(U d^2 + U d log U) (``sliced``) or O(U s d) an iteration (``free``, s
support points); a step costs one gather of the batch's users more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from upright.contract import Arm, NonNegativeFloat, PositiveFloat, PositiveInt, Range, Run, Task, Training, method
from upright.declare import Changes, Curve, Front, Histogram, Holds, Intervals, Noted
from upright.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from upright.recommendation import controls, defence, pairs
    from upright.recommendation.defence import BarycenterDefense
else:
    torch = LazyModule("torch")
    pairs = LazyModule("upright.recommendation.pairs")
    controls = LazyModule("upright.recommendation.controls")
    defence = LazyModule("upright.recommendation.defence")

__all__ = ["BarycenterDefense", "RAIDConfig", "run"]


class RAIDConfig(Training):
    """Settings of RAID and of its controls."""

    alpha: NonNegativeFloat = 0.3
    """Strength of the defence; 0 is the plain backbone."""
    defence: Literal["transport", "mean", "reversal", "noise", "after", "leace"] = "transport"
    """Transport to the barycenter in training; matching of class means; gradient reversal against an adversary;
    clipping and Gaussian noise that costs as much validation NDCG as transport at the same alpha; of the finished table
    by the share alpha, at most all the way: transport, or linear erasure (LEACE)."""
    variant: Literal["free", "bures", "sliced", "mean", "mmd"] = "sliced"
    """Transport: `sliced`, `bures`, `free`, or `mmd` (no transport, a kernel distance between classes)."""
    constraint: Literal["none", "lagrange", "coupled"] = "none"
    """`none` keeps alpha; `lagrange` moves it so that utility stays within `tau` of the reference; `coupled` lets the
    recommendation loss pull the targets as well."""
    tau: Annotated[float, Range(ge=0, lt=1)] = 0.02
    """Largest relative loss of validation NDCG under `lagrange`."""
    labels: Literal["true", "random"] = "true"
    """`random` permutes the known classes among the known users: the placebo."""
    weights: Literal["uniform", "proportional"] = "uniform"
    """Weights of the classes in the barycenter."""
    support: PositiveInt = 512
    """Most support points of `free`."""
    reg: PositiveFloat = 0.02
    """Entropic regularisation of `free`, as a share of the median cost."""
    refresh_every: PositiveInt = 50
    """Steps between refreshes of the barycenter."""
    weight_decay: NonNegativeFloat = 0.03
    """L2 penalty on the batch's own embeddings."""
    defence_epochs: PositiveInt = 80
    """Epochs of the second phase; `epochs` and `patience` are those of the first."""


def reference(t: Any, config: RAIDConfig, run: Run) -> dict[str, Any]:
    """Train the backbone alone (step 1) and return its best state, its validation NDCG and its curve."""
    alone = run.silent()
    model, optimiser, epochs = pairs.train_backbone(t, config, alone)
    return {
        "valid": epochs.best,
        "epoch": epochs.best_epoch,
        "converged": epochs.converged,
        "curve": [{k: v for k, v in line.items() if k not in ("arm", "step")} for line in alone.metrics],
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
    }


def _defences(t: Any, config: RAIDConfig, run: Run) -> list[defence.BarycenterDefense]:
    """One defence a term of the attribute."""
    found = []
    for number, labels in enumerate(t.known_labels(run)):
        if config.labels == "random":
            known = np.flatnonzero(labels != "")
            labels = labels.copy()
            labels[known] = labels[run.rng("placebo", "labels", number).permutation(known)]
        variant = "mean" if config.defence == "mean" else config.variant
        found.append(
            defence.BarycenterDefense(
                labels,
                fit=~t.held_out(run),
                method=variant,
                weights=config.weights,
                support=config.support,
                reg=config.reg,
                refresh_every=config.refresh_every,
                seed=run.seed,
            )
        )
    if not any(d.active for d in found):
        run.warn("the attribute has one class: there is nothing to hide, the defence is zero")
    return found


def _plain(t: Any, config: RAIDConfig, run: Run) -> dict[str, Any]:
    """Train without a defence, as long as the other arms."""
    return {"model": globals()["run"](t, config.replace(alpha=0.0, defence="transport"), run.silent()).state_dict()}


def movement(before: Tensor, after: Tensor, bins: int = 20) -> dict[str, Any]:
    """Return a histogram of ``|e_u' - e_u| / sqrt(mean_u |e_u - mean|^2)``: edges (bins + 1,) and counts (bins,)."""
    spread = (before - before.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-30)
    size = ((after - before).norm(dim=1) / spread).double().numpy()
    counts, edges = np.histogram(size, bins=bins, range=(0.0, max(float(size.max()), 1e-12)))
    return {"edges": edges.tolist(), "counts": counts.tolist(), "mean": float(size.mean())}


def _note_refreshes(guards: list[Any], run: Run) -> None:
    """Note the objective of the barycenters by refresh."""
    histories = [guard.history for guard in guards if getattr(guard, "history", None)]
    refreshes = [
        {
            "refresh": i + 1,
            "objective": sum(h["objective"] for h in own if "objective" in h),
            "converged": all(h.get("converged", True) for h in own),
        }
        for i, own in enumerate(zip(*histories, strict=False))
    ]
    run.note("barycenter", refreshes)
    if refreshes:
        run.note("barycenter_converged", all(row["converged"] for row in refreshes))
        run.note("stuck", sum(not row["converged"] for row in refreshes))


def _couple(guards: list[Any], model: Any, users: Tensor, items: Tensor, batch: Any, kind: str) -> None:
    """Let the recommendation loss of the moved users pull the support, once after each refresh."""
    for guard in guards:
        if getattr(guard, "fresh", False):
            served, fixed = users.shape[1], items.detach()
            guard.couple(
                lambda target, w=served, i=fixed: pairs.pair_loss(
                    model, target[:, -w:].to(i.dtype), i, batch, kind, 0.0
                )[0]
            )


def _afterwards(t: Any, model: Any, config: RAIDConfig, run: Run) -> nn.Module:
    """Leave training alone and change the finished user table: transport, or noise at matched utility."""
    key = f"ndcg@{t.config.k}"
    with torch.no_grad():
        table = model.tables()[0].detach()
    if config.defence in ("after", "leace"):
        guards, share = _defences(t, config, run), min(1.0, config.alpha)
        if config.defence == "leace":
            table = controls.erased(table, [(g.fitted, len(g.classes)) for g in guards if g.active], share)
        for guard in guards if config.defence == "after" else ():
            table = guard.transport(table, step=share)
        moved = controls.WithUsers(model, table)
        run.note("valid", float(np.nanmean(t.score(moved, "valid", run).values[key])))
        run.note("movement", movement(model.tables()[0].detach(), moved.tables()[0].detach()))
        return moved
    twin = config.replace(defence="transport")

    def utility_of_twin() -> dict[str, Any]:
        inner = run.silent()
        globals()["run"](t, twin, inner)
        return {"valid": inner.notes["valid"]}

    target = run.shared("utility", twin.as_dict(), utility_of_twin)["valid"]

    def utility(moved: Tensor) -> float:
        return float(np.nanmean(t.score(controls.WithUsers(model, moved), "valid", run).values[key]))

    table, length = controls.clipped(table)
    sigma = float(table.std(0).mean())
    table, size = controls.matched_noise(table, utility, target, run.torch_rng("noise"))
    run.note("noise", size)
    run.note("epsilon", {"value": controls.gaussian_epsilon(size * sigma, 2 * length), "delta": 1e-5, "clip": length})
    run.note("valid", utility(table))
    run.note("valid_wanted", target)
    return controls.WithUsers(model, table)


_ONLY = ("remedy",)
_REPORT = [
    Front("Utility against leakage"),
    Intervals(
        "Leakage by attacker and surface",
        "leakage:attack:attribute=*",
        [
            "Leakage is the distance of an attacker's AUC from guessing: 0 is guessing, 0.5 is certainty. A "
            "cross-fitted attacker learns from other attacked users, a transfer attacker from those the defence knew."
        ],
        join="arm",
        arms=("baseline", "remedy"),
    ),
    Changes(
        "Quality by class", "mean:ndcg@10:attribute=*", ["Left of zero a class gets worse lists than under the arm."]
    ),
    Histogram(
        "How far users moved",
        "movement",
        [
            "A distance of 1 is the spread of all users around their centre. A long way means that much of what told "
            "them apart, taste included, was changed."
        ],
        x="distance moved, in spreads of the table",
    ),
    Curve(
        "Objective of the barycenter by refresh",
        "barycenter",
        [
            "How far the classes are from their common centre, in squared distance. It should fall while users are "
            "pulled and then level off."
        ],
        x="refresh",
        y="objective",
        arms=_ONLY,
    ),
    Holds(
        "The barycenter converged at every refresh.",
        "barycenter_converged",
        arms=_ONLY,
        bad="The barycenter did not converge at every refresh: users were moved to an approximate centre there.",
    ),
    Holds(
        "The backbone that every arm starts from had converged.",
        "reference.converged",
        arms=("baseline",),
        bad="The backbone reached its last epoch while validation could still improve: the arms start from a reference "
        "that is not converged.",
    ),
    Noted(
        "How training ended",
        names={
            "valid": "validation quality",
            "reference.valid": "of the reference",
            "alpha_end": "strength at the end",
            "noise": "noise added",
            "epsilon.value": "epsilon of one release of a user's clipped vector, at delta 1e-5",
            "stuck": "refreshes that did not converge",
        },
    ),
]
_LIMITS = [
    "There is no formal guarantee, such as differential privacy gives. Leakage is what the attackers named here read.",
    "An attacker that was not tried may do better.",
    "The attribute can still be inferred from behaviour. Hiding a user's vector does not hide what the user clicked.",
    "Where classes go with taste, hiding the class takes taste away, and those classes lose recommendation quality.",
    "Users whose class the platform does not know are not protected by maps of known classes. They are moved by a "
    "guess of their class.",
    "Intervals are those of these attackers: trained again on other users, they would read a little more or less.",
]


@method(
    "raid",
    task="upright.tasks.private_next_item:PrivateNextItem",
    config=RAIDConfig,
    title="RAID",
    mends="private attributes readable from user embeddings",
    neutral=[{"alpha": 0.0}, {"defence": "transport", "task.merge_below": 10**6}],
    arms=[
        Arm("none", "baseline", {"alpha": 0.0}, "no defence"),
        Arm("raid", "remedy", {}, "RAID"),
        Arm("mean", "trivial", {"defence": "mean"}, "mean matching", sweep=[0.01, 0.03, 0.1, 0.3]),
        Arm("random", "placebo", {"labels": "random"}, "random labels"),
        Arm("reversal", "rival", {"defence": "reversal"}, "gradient reversal"),
        Arm("noise", "rival", {"defence": "noise"}, "clipping and noise at matched utility"),
        Arm("after", "rival", {"defence": "after"}, "transport after training", sweep=[0.1, 0.3, 0.5, 1.0]),
        Arm("leace", "rival", {"defence": "leace"}, "linear erasure", sweep=[0.25, 0.5, 0.75, 1.0]),
    ],
    statistics=[
        "leakage:attack:attribute",
        "worst_leakage:attack:attribute",
        "mean:ndcg@10",
        "mean:ndcg@10:attribute",
        "worst_decile:ndcg@10",
        "mean:recall@10",
        "mean:mrr@10",
        "mean:hit@10",
    ],
    primary="leakage:attack:attribute",
    cost="mean:ndcg@10",
    presets={
        "quick": {"method": {"epochs": 150, "defence_epochs": 30, "patience": 3}, "task": {"dim": 32}},
        "full": {"method": {}, "task": {}},
    },
    tune={"alpha": [0.1, 0.3, 1.0, 3.0]},
    sweep={"alpha": [0.1, 0.3, 1.0, 3.0]},
    report=_REPORT,
    limits=_LIMITS,
    demo={
        "data": "ml100k",
        "settings": {"batch_size": 4096, "attribute": "gender"},
        "arms": ["none", "raid", "mean", "random"],
        "study": "raid-bprmf-gender",
    },
    tiny={
        "epochs": 4,
        "defence_epochs": 4,
        "check_every": 2,
        "batch_size": 256,
        "learning_rate": 0.01,
        "refresh_every": 3,
    },
)
def run(task: Task, config: RAIDConfig, run: Run) -> nn.Module:
    """Train the reference, then the defence, and return the model that is served."""
    t: Any = task
    plain = {k: v for k, v in config.as_dict().items() if k in (*pairs.PLAIN, "defence_epochs")}
    key_of_first = {k: plain[k] for k in pairs.PLAIN}
    first = run.shared("reference", key_of_first, lambda: reference(t, config, run))  # step 1
    model: Any = t.model(run)
    model.load_state_dict(first["model"])
    with torch.no_grad():
        before = model.tables()[0].detach().clone()
    for epoch, values in enumerate(first["curve"] if run.restore() is None else ()):
        run.log(epoch + 1, **values)
    run.note("reference", {k: first[k] for k in ("valid", "epoch", "converged")})
    if config.alpha > 0 and (
        nothing := run.shared("hide", key_of_first, lambda: {"text": controls.nothing_to_hide(t, model, run)})["text"]
    ):
        run.warn(nothing)
    if config.defence in ("noise", "after", "leace"):
        model.load_state_dict(run.shared("plain", plain, lambda: _plain(t, config, run))["model"])
        return _afterwards(t, model, config, run)
    key, start = f"ndcg@{t.config.k}", len(first["curve"])
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    optimiser.load_state_dict(first["optimiser"])
    guards: list[Any] = _defences(t, config, run)
    if config.defence == "reversal":
        guards = [
            controls.Adversary(d.fitted, len(d.classes), controls.exposed(model), run.torch_rng("adversary", n))
            for n, d in enumerate(guards)
        ]
    own = {"alpha": config.alpha, "valid": -1.0}
    floor = (1.0 - config.tau) * first["valid"]
    enough = floor if config.constraint == "lagrange" else float("inf")
    parts = {"model": model, "optimiser": optimiser, "guards": guards, "own": own}
    with run.training(config, epochs=config.defence_epochs, patience=None, first=start, **parts) as epochs:
        alpha_end = own["alpha"]
        for epoch in epochs:
            total = moved = 0.0
            for batch in pairs.batches(t, run, start + epoch, config.batch_size):
                users, items = model.tables()
                rec, decay = pairs.pair_loss(model, users, items, batch, pairs.loss_name(t), config.weight_decay)
                held = controls.exposed(model, users)  # (U, d)
                guard_loss: Tensor = sum((g.step(held, batch[0]) for g in guards), start=held.sum() * 0.0)  # steps 2, 3
                if config.constraint == "coupled" and config.defence == "transport":
                    _couple(guards, model, users, items, batch, pairs.loss_name(t))
                optimiser.zero_grad(set_to_none=True)
                (rec + decay + own["alpha"] * guard_loss).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                share = len(batch[0]) / len(t.train)
                total, moved = total + rec.item() * share, moved + guard_loss.item() * share
            epochs.log(loss=total, defence=moved, alpha=own["alpha"])
            if epochs.due:
                valid = float(np.nanmean(t.score(model, "valid", run).values[key]))
                epochs.log(**{f"valid/{key}": valid})
                second = 2 * (epoch + 1) > config.defence_epochs
                if epochs.check(min(valid, enough) if second else -np.inf, ties=True):  # step 5
                    own["valid"] = valid
                if config.constraint == "lagrange":  # step 4
                    own["alpha"] *= 1.25 if valid >= floor else 0.8
            alpha_end = own["alpha"]
        _note_refreshes(guards, run)
    served = own["valid"]
    run.note("best_epoch", epochs.best_epoch)
    run.note("alpha_end", alpha_end)
    run.note("valid", served)
    if config.alpha == 0:
        run.shared("plain", plain, lambda: {"model": model.state_dict()})  # what `noise` and `after` start from
    if config.defence == "transport" and config.labels == "true":
        run.shared("utility", config.as_dict(), lambda: {"valid": served})  # what `noise` is matched to
    with torch.no_grad():
        run.note("movement", movement(before, model.tables()[0].detach()))
    return model  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    """Return what a native door is made of, loaded when it is asked for."""
    home = {"BarycenterDefense": defence}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(home, name)
