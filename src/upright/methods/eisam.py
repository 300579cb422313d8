"""EISAM: item-wise sharpness-aware minimisation, so that recommenders serve the tail.

Paper
-----
*EISAM: Efficient Item-wise Sharpness-Aware Minimization for LLM-based recommenders*, arXiv 2603.12752. No official code
exists and nothing beyond the abstract was at hand: every formula here is a reconstruction, and no number of the paper
is claimed.

Problem
-------
    min_w  mean((1 - c_i) l)(w) + mean(c_i l)(w + e*),    e* = rho d / ||d||,    c_i = lam f(n_i)

over the parameters w of a sequential recommender, with l the loss of a target, i its item, n_i its training targets, f
falling with n and of interaction-weighted mean 1, and d the gradient of the second term
(`upright.maths.sharpness_optimiser`).

Algorithm
---------
1. count the training targets of each item; f, normalised
2. each mini-batch: a plain pass at w, a second pass at w + e* with the same dropout masks, w restored
3. the base optimiser steps along the sum of both gradients
4. the checkpoint with the best validation NDCG

Shapes
------
U users, I items, B windows of a batch, T places of a window.

Deviations
----------
D1. One perturbation for all items of a batch, along the weighted loss: the maximum of a sum is at most the sum of the
    maxima, so this is a lower bound of the item-wise penalty. ``mode="exact"`` of the optimiser keeps them apart.
D2. ``mode="lagged"`` takes the direction of the last step's second pass, which saves a backward pass; ``shared`` takes
    the present one, as SAM and its relatives among the arms do. On MovieLens 100K the lagged direction had a cosine of
    0.05 to 0.15 with the batch's own gradient, and the loss rose a tenth as much along it: it sees what batches share.
D3. f is ``relative``, ``(1 - n / n_max)^gamma``. The form ``(1 - n / N)^gamma`` of Focal-SAM is nearly constant where
    no item holds a tenth of the interactions.
D4. Loss at every place of a history, not at the last one alone. With a language model as backbone it is the last one
    of each user; counts, weights and frequencies are those of all targets.

Cost
----
Two forward and two backward passes a step (``lagged``), and three copies of the trainable parameters.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, InputError, NonNegativeFloat, Range, Run, Task, Training, method, stream
from upright.declare import Changes, Curve, Front, Intervals, Noted, Signed
from upright.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from upright.maths import sharpness, sharpness_optimiser
    from upright.maths.sharpness_optimiser import EISAM, check_sharpness
else:
    torch = LazyModule("torch")
    sharpness = LazyModule("upright.maths.sharpness")
    sharpness_optimiser = LazyModule("upright.maths.sharpness_optimiser")

__all__ = ["EISAM", "EISAMConfig", "check_sharpness", "run"]

PROBED = 20  # items of head and tail whose sharpness is measured
TARGETS = 16  # of each


class EISAMConfig(Training):
    """Settings of EISAM and of its controls."""

    remedy: Literal["eisam", "reweight", "logit_adjust", "resample", "none"] = "eisam"
    """Sharpness-aware steps; the same item weights on the loss; log frequencies added to the scores in training;
    windows drawn by the weights of their targets; or the base optimiser alone."""
    rho: NonNegativeFloat = 0.05
    """Radius of the perturbation."""
    lam: Literal["tail_share"] | Annotated[float, Range(ge=0)] = 0.8
    """Strength: of the weighted pass, of reweighting and resampling (0 plain, 1 the weights themselves), factor of the
    log frequencies; `tail_share` is the tail's share of the targets, at which `tail_only` is ImbSAM."""
    weight: Literal["relative", "focal", "power", "effective", "rank", "tail_only", "constant"] = "relative"
    """How an item's weight falls with its targets."""
    gamma: NonNegativeFloat = 2.0
    """How steeply."""
    weights: Literal["own", "shuffled"] = "own"
    """`shuffled` hands each item the weight of another one: a placebo."""
    direction: Literal["own", "random"] = "own"
    """`random` perturbs as far in a random direction: a placebo."""
    mode: Literal["lagged", "subset", "shared"] = "lagged"
    """Direction of the last step; the same with the rarest items alone in the second pass; of this step."""
    batch_size: Annotated[int, Range(ge=1)] = 64
    """Windows of a step."""
    weight_decay: NonNegativeFloat = 0.0
    """Adam's L2 penalty."""


def weights_of(t: Any, config: EISAMConfig, run: Run) -> tuple[NDArray[np.float64], float]:
    """Return f of each item, shape (I,), and lam (step 1)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        f = sharpness.item_weights(t.item_count, config.weight, config.gamma)
    for one in said:
        run.warn(str(one.message))
    if config.weights == "shuffled":
        f = sharpness.shuffled_weights(f, t.item_count, run.rng("placebo", "weights"))
    tail = ~sharpness.head_items(t.item_count)
    share = float(t.item_count[tail].sum() / t.item_count.sum())
    return f, share if config.lam == "tail_share" else float(config.lam)


def _optimiser(model: nn.Module, t: Any, config: EISAMConfig, run: Run) -> tuple[Any, Tensor | None, Any]:
    """Return the optimiser, what changes losses or scores (I,), and what windows are drawn by (I,); notes weights."""
    base = torch.optim.Adam(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    f, lam = weights_of(t, config, run)
    if config.remedy == "none":
        return base, None, None
    head = sharpness.head_items(t.item_count)
    run.note("weights", {"head": float(f[head].mean()), "tail": float(f[~head].mean()), "largest": float(f.max())})
    if config.remedy == "eisam":
        made = sharpness_optimiser.EISAM(
            base,
            t.item_count,
            item_weight=f,
            rho=config.rho,
            lam=lam,
            mode=config.mode,
            direction=config.direction,
            seed=stream(run.seed, "random direction"),
        )
        return made, None, None
    dtype = next(model.parameters()).dtype
    if config.remedy == "logit_adjust":
        share = np.maximum(t.item_count, 0.5) / t.item_count.sum()
        return base, lam * torch.from_numpy(np.log(share)).to(dtype), None
    mixed = (1.0 - lam) + lam * f
    if (mixed < 0).any():
        raise InputError(f"lam = {lam:g} for {config.remedy}", "0 to 1", "weights of the loss must not be negative")
    return (base, None, mixed) if config.remedy == "resample" else (base, torch.from_numpy(mixed).to(dtype), None)


def _step(model: Any, optimiser: Any, config: EISAMConfig, batch: Any, extra: Any) -> float:
    """Make one step on a batch and return its mean loss (steps 2 and 3)."""
    history, target, masks = batch
    if config.remedy == "eisam":
        if config.mode == "shared":
            return float(optimiser.step(lambda: model.target_losses(history, target, masks=masks)))
        optimiser.zero_grad()
        losses, items = model.target_losses(history, target, masks=masks)
        optimiser.plain(losses, items).backward()
        if config.mode == "subset":
            rarest = optimiser.selected(target.clamp_min(0)) & (target >= 0)
            target = torch.where(rarest, target, -1)
        with optimiser.ascent():
            if bool((target >= 0).any()):
                optimiser.penalty(*model.target_losses(history, target, masks=masks)).backward()
    else:
        offset = extra if config.remedy == "logit_adjust" else None
        losses, items = model.target_losses(history, target, masks=masks, offset=offset)
        optimiser.zero_grad(set_to_none=True)
        weighted = losses if config.remedy != "reweight" else losses * extra[items]
        weighted.mean().backward()
    optimiser.step()
    return float(losses.detach().mean())


def item_sharpness(model: Any, t: Any, rho: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return the mean sharpness of `PROBED` items of head and of tail on training targets, with 95 % intervals.

    Every item is measured on as many targets, at most `TARGETS`: a mean over few has the longer gradient by chance.
    """
    from scipy.stats import t as student

    places = np.argwhere(t.target >= 0)
    rows, columns = places[rng.permutation(len(places))].T
    item = t.target[rows, columns]
    count = np.bincount(item, minlength=t.n_items)
    head, found = sharpness.head_items(t.item_count), list[dict[str, Any]]()
    common = max(1, min(TARGETS, *(int(np.median(count[own & (count > 0)])) for own in (head, ~head))))
    params = [p for p in model.parameters() if p.requires_grad]
    for name, inside in (("head", head), ("tail", ~head)):
        known = np.flatnonzero(inside & (count >= common))
        chosen = rng.choice(known, min(PROBED, len(known)), replace=False)
        at = np.concatenate([np.flatnonzero(item == one)[:common] for one in chosen])
        history = torch.from_numpy(t.history[rows[at]])
        target = torch.full_like(history, -1)
        target[torch.arange(len(at)), torch.from_numpy(columns[at])] = torch.from_numpy(item[at])

        def losses(some: Tensor, h: Tensor = history, y: Tensor = target) -> Tensor:
            return model.target_losses(h[some], y[some], masks=0)[0]  # type: ignore[no-any-return]

        _, size = sharpness.item_sharpness(losses, params, torch.from_numpy(item[at]), rho)
        value, n = float(size.mean()), len(size)
        wide = float(size.std() * student.ppf(0.975, n - 1) / n**0.5) if n > 1 else float("nan")
        found.append({"items": name, "value": value, "low": value - wide, "high": value + wide, "n": n})
    return found


def _no_softmax(task: Any) -> str:
    """Say why the scores of a task's model cannot be shifted item by item, where they cannot."""
    return "titles that are written token by token have no softmax over items" if task.config.head == "title" else ""


_REPORT = [
    Front("Quality of everybody against that of the tail"),
    Signed(
        "Effect of being head, of the data and of the prior, and which is larger",
        "effect:* dominance:*",
        ["An effect is the mean over the groups of the other side. Dominance is the first size minus the second."],
    ),
    Intervals(
        "Quality of the last item by how often it is a target in training",
        "frequency",
        by=("targets",),
        arms=("baseline", "remedy"),
    ),
    Curve(
        "Lorenz curve of places in the lists",
        "lorenz",
        ["The least shown items stand left. The further below the diagonal, the fewer items have most places."],
        x="items",
        y="places",
    ),
    Changes("Change for head and tail", "mean:ndcg@*_tail mean:ndcg@*_head mean:ndcg@*:cell=*"),
    Intervals(
        "Sharpness of items of head and tail, one by one",
        "sharpness",
        [
            "How much the mean loss of one item's targets rises when all weights move by rho along its own gradient. "
            "The premise of the method is that it is larger for the tail."
        ],
        by=("items",),
    ),
    Noted(
        "Weights of items",
        names={
            "weights.head": "mean weight of a head item",
            "weights.tail": "of a tail item",
            "weights.largest": "largest",
        },
    ),
    Noted(
        "How training ended",
        names={
            "best_epoch": "best epoch",
            "converged": "converged",
            "realised.0": "length of the perturbation, realised over meant",
            "realised.1": "cosine of the two",
        },
    ),
]
_LIMITS = [
    "No official code exists. What is measured is a reconstruction of an abstract.",
    "Head and tail are read off training targets. An item that nobody was shown counts as tail, whatever it is worth.",
    "The last item of a user is often one of many with the same time: next is then half display order.",
    "One held-out item a user: an item that the user would have liked as well counts as a miss.",
]


@method(
    "eisam",
    task="upright.tasks.sequence:NextInSequence",
    config=EISAMConfig,
    title="EISAM",
    mends="tail items ignored by LLM-based recommenders",
    neutral=[{"rho": 0.0}, {"lam": 0.0}],
    arms=[
        Arm("none", "baseline", {"remedy": "none"}, "no remedy"),
        Arm("eisam", "remedy", {}, "EISAM"),
        Arm("reweight", "trivial", {"remedy": "reweight"}, "reweighted loss", simpler=True),
        Arm("logit_adjust", "trivial", {"remedy": "logit_adjust"}, "logit adjustment", unfit=_no_softmax, simpler=True),
        Arm("resample", "trivial", {"remedy": "resample"}, "resampling", simpler=True),
        Arm("shuffled", "placebo", {"weights": "shuffled"}, "weights of other items"),
        Arm("random", "placebo", {"direction": "random"}, "random direction"),
        Arm("sam", "rival", {"weight": "constant", "lam": 1.0, "mode": "shared"}, "SAM"),
        Arm("tail_only", "rival", {"weight": "tail_only", "lam": "tail_share", "mode": "shared"}, "ImbSAM"),
        Arm("focal", "rival", {"weight": "focal", "mode": "shared"}, "Focal-SAM"),
    ],
    statistics=[
        "mean:ndcg@10_tail",
        "mean:ndcg@10_head",
        "mean:ndcg@10",
        "gap:ndcg@10:popularity",
        "mean:ndcg@10:cell",
        "effect:ndcg@10:popularity~prior",
        "effect:ndcg@10:prior~popularity",
        "dominance:ndcg@10:popularity~prior",
        "mean:hit@10",
        "mean:hit@10:popularity",
        "mean:mrr@10",
    ],
    primary="mean:ndcg@10_tail",
    cost="mean:ndcg@10",
    presets={
        "quick": {"method": {"epochs": 20, "check_every": 2, "patience": 3, "learning_rate": 3e-3}, "task": {}},
        "full": {"method": {}, "task": {}},
    },
    tune={"lam": [0.2, 0.5, 0.8, 1.0]},
    sweep={"lam": [0.2, 0.5, 0.8, 1.0]},
    report=_REPORT,
    limits=_LIMITS,
    demo={
        "data": "ml100k",
        "settings": {"epochs": 6},
        "arms": ["none", "eisam", "reweight"],
        "study": "eisam-sasrec-ml100k",
    },
    tiny={"epochs": 4, "check_every": 2, "batch_size": 32, "learning_rate": 0.01},
)
def run(task: Task, config: EISAMConfig, run: Run) -> nn.Module:
    """Train the task's backbone, and return it at its best validation NDCG."""
    t: Any = task
    if t.prior is None:
        run.warn(t.without_prior)
    model: Any = t.model(run)
    optimiser, extra, drawn = _optimiser(model, t, config, run)
    key = f"ndcg@{t.config.k}"
    with run.training(config, model=model, optimiser=optimiser) as epochs:
        for epoch in epochs:
            model.train()
            batches = list(t.batches(run, epoch, config.batch_size, drawn))
            total = sum(_step(model, optimiser, config, batch, extra) for batch in batches)
            epochs.log(loss=total / len(batches))
            if epochs.due:  # step 4
                model.eval()
                found = t.score(model, "valid", run)
                value, tail = (float(np.nanmean(found.values[name])) for name in (key, f"{key}_tail"))
                epochs.log(**{f"valid/{key}": value, f"valid/{key}_tail": tail})
                epochs.check(value)
    model.eval()
    run.note("best_epoch", epochs.best_epoch)
    run.note("converged", epochs.converged)
    if getattr(optimiser, "realised", None):
        run.note("realised", [round(one, 3) for one in optimiser.realised])  # of one step, and which depends on stops
    run.note("sharpness", item_sharpness(model, t, config.rho or 0.05, run.rng("sharpness")))
    return model  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    """Return what the native door is made of, loaded when it is asked for."""
    if name in ("EISAM", "check_sharpness"):
        return getattr(sharpness_optimiser, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
