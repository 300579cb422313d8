r"""What one optimiser step minimises: batches of forget and retain records, and losses summed over all of a step.

    L = gamma sum_i w_i n_i forget_i / sum_i n_i + alpha sum_j m_j retain_j / sum_j m_j

Sums run over every record of the step: all micro-batches of an accumulation and all ranks. ``n_i`` is the number of
tokens that the loss reads where its source averages tokens, and 1 where it averages records (`Loss.batch`); so is
``m_j`` of the retain loss. So 1 x 8, 2 x 4 and 8 x 1 records give one gradient, and so do one and two processes.
``w_i`` is the weight of a record, 1 without weights. It stands in no denominator: there, the same record would count
more beside records of small weight than beside large ones, and alone in a step its weight would cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from upright.contract import InputError
from upright.language.logprobs import IGNORE, token_log_probs
from upright.language.losses import LOSSES, PAIRS, Loss

__all__ = ["Objective", "objective_of", "record_losses", "step_totals", "step_weights"]

_EXTRA: Mapping[str, Mapping[str, Any]] = {
    "rmu": {"layer": 7, "scale": 2.0, "law": "sphere"},
    "pdu": {"epsilon": None, "dual_step": 1.0, "warmup": 5},
    "jensun": {"refusal": "I don't know."},
}
"""Options of a loss that are no arguments of its function."""


@dataclass(frozen=True)
class Objective:
    """A forget loss, a retain loss and their factors.

    Parameters
    ----------
    name : str
        As it was asked for.
    forget : str
        Name in `LOSSES`.
    retain : str or None
        Name in `LOSSES`; None without a retain term.
    gamma, alpha : float
        Factors, at least 0. With ``pdu``, alpha is where dual ascent starts.
    options : mapping
        Of both losses, complete.
    """

    name: str
    forget: str
    retain: str | None
    gamma: float = 1.0
    alpha: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def needs(self, what: str) -> bool:
        """Whether one of the losses takes this kind of reference."""
        return any(LOSSES[name].reference == what for name in (self.forget, self.retain) if name)

    @property
    def layer(self) -> int | None:
        """The layer whose hidden states are read, None for losses of logits."""
        return int(self.options["layer"]) if LOSSES[self.forget].reads == "hidden" else None

    def arguments(self, name: str) -> dict[str, Any]:
        """Return the factors of a loss function."""
        return {key: self.options[key] for key in LOSSES[name].defaults}


def _partner(loss: str, retain_loss: str | None, has_retain: bool) -> tuple[str, str | None]:
    """Return the names of forget and retain loss."""
    forget, retain = PAIRS.get(loss, (loss, "nll"))
    if loss == "ga":
        if retain_loss not in ("auto", None):
            got = f"'ga' with retain_loss = {retain_loss!r}"
            raise InputError(got, "ga without a retain loss", "take 'grad_diff': gradient ascent with a retain loss")
        return forget, None
    if not has_retain:
        if loss not in LOSSES:
            raise InputError(f"loss {loss!r} without retain records", "retain records", "pass retain=, or take 'ga'")
        return forget, None
    return forget, retain if retain_loss == "auto" else retain_loss


def objective_of(
    loss: str,
    *,
    retain_loss: str | None = "auto",
    has_retain: bool = True,
    gamma: float = 1.0,
    alpha: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> Objective:
    """Return a checked objective.

    Parameters
    ----------
    loss : str
        A forget loss of `LOSSES` or a pair of `PAIRS`.
    retain_loss : str or None
        ``"auto"``: that of the pair, none for ``ga``, ``nll`` for others. None leaves the term out.
    has_retain : bool
        Without retain records there is no retain term.
    gamma, alpha : float
    options : mapping, optional
        Factors of either loss, for example ``{"beta": 0.1}``. ``rmu`` also takes ``layer``, ``scale``, ``law``;
        ``pdu`` ``epsilon`` (largest retain loss that is allowed; None: 1.1 times that before training), ``dual_step``,
        ``warmup`` (epochs); ``jensun`` ``refusal``, a text or token ids.

    Raises
    ------
    InputError
        For unknown names and options, and factors below 0.
    """
    known = sorted({*PAIRS, *(name for name, one in LOSSES.items() if one.side == "forget")})
    if loss not in known:
        raise InputError(f"loss = {loss!r}", ", ".join(known), "choose one of these")
    forget, retain = _partner(loss, retain_loss, has_retain)
    kept = sorted(name for name, one in LOSSES.items() if one.side == "retain")
    if retain is not None and retain not in kept:
        raise InputError(f"retain_loss = {retain!r}", f"'auto', {', '.join(kept)} or None", "choose one of these")
    if (retain == "rmu_retain" and forget != "rmu") or (forget == "rmu" and retain not in (None, "rmu_retain")):
        got = f"{forget!r} with {retain!r}"
        raise InputError(
            got, "rmu with rmu_retain, other losses with nll, kl or jensen_shannon", "leave retain_loss='auto'"
        )
    for name, value in (("gamma", gamma), ("alpha", alpha)):
        if not 0 <= value < float("inf"):
            raise InputError(f"{name} = {value}", "a finite number of at least 0", f"change {name}")
    full = {**LOSSES[forget].defaults, **(LOSSES[retain].defaults if retain else {}), **_EXTRA.get(forget, {})}
    if odd := sorted(set(options or {}) - set(full)):
        accepted = ", ".join(full) or "no options"
        raise InputError(f"option {odd[0]!r} of loss {loss!r}", accepted, "correct its name or leave it out")
    full |= dict(options or {})
    if forget == "pdu" and retain not in (None, "nll") and full["epsilon"] is None:
        got = f"pdu with retain_loss = {retain!r} and without epsilon"
        raise InputError(got, "a bound above 0", "pass loss_options={'epsilon': ...}: it is measured for nll alone")
    return Objective(loss, forget, retain, gamma, alpha, full)


# -- values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """What a model says about one side of a batch: logits (B, T, V) or the output of one layer, (B, T, d)."""

    labels: Tensor
    said: Tensor


def _forward(model: Any, sides: Sequence[Mapping[str, Tensor]], layer: int | None, width: int) -> list[_View]:
    """Run all sides of a batch as one, so that sharded weights are gathered once and DDP sees one forward pass.

    With a layer, counted from 0, its hidden states are read; not those of the last one, which a model gives behind the
    final norm. All sides are filled up to a width.
    """

    def wide(one: Tensor, name: str) -> Tensor:
        return torch.nn.functional.pad(one, (0, width - one.shape[1]), value=IGNORE if name == "labels" else 0)

    names = ("input_ids", "attention_mask", "position_ids", "labels")
    inputs = {name: torch.cat([wide(one[name], name) for one in sides]) for name in names}
    sizes = [len(one["labels"]) for one in sides]
    labels = inputs.pop("labels")
    if layer is None:
        said = model(**inputs, use_cache=False)["logits"]
    else:
        states = model(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=1)["hidden_states"]
        layers = len(states) - 1  # the first state is the embedding
        if not 0 <= layer < layers - 1:
            raise InputError(
                f"layer {layer} of a model with {layers}",
                f"0 to {layers - 2}" if layers > 1 else "a model with two layers or more",
                "pass loss_options={'layer': ...}; the state after the last layer is read behind the final norm",
            )
        said = states[layer + 1]
    return [_View(*one) for one in zip(torch.split(labels, sizes), torch.split(said, sizes), strict=True)]


def _values(
    name: str,
    view: _View,
    options: Mapping[str, Any],
    reference: Any = None,
    win: _View | None = None,
    win_reference: Tensor | None = None,
) -> Tensor:
    """Return the values of a loss, one a record, shape (B,), from what its entry in `LOSSES` reads.

    The reference is sums of log-probabilities (B,), a control vector (d,), or a view of the frozen model on the batch;
    `win` is the answer to be given instead, with its own sums.
    """
    loss: Loss = LOSSES[name]
    other = [reference.said if isinstance(reference, _View) else reference] * (loss.reference != "none")
    if loss.reads == "hidden":
        mask = view.labels != IGNORE
        order = [mask, *other] if loss.reference == "control" else [*other, mask]
        return loss.function(view.said, *order, **options)
    if loss.reads == "logits":
        return loss.function(view.said, *other, view.labels, **options)
    arguments: list[Any] = [*token_log_probs(view.said, view.labels), *other]
    if loss.answers == 2 and win is not None:
        arguments += [*token_log_probs(win.said, win.labels), win_reference]
    return loss.function(*arguments, **options)


def record_losses(
    objective: Objective,
    model: Any,
    inputs: Mapping[str, Any],
    *,
    sums: Mapping[str, Tensor],
    speaking: Callable[[], AbstractContextManager[Any]],
    control: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the losses of the forget and the retain records of a batch, shape (B,) each; None without a retain term.

    Parameters
    ----------
    objective : Objective
    model : callable
        That is trained, wrapped or not.
    inputs : mapping
        Of a `PairCollator`.
    sums : mapping of str to Tensor, shape (n,)
        Reference sums of all forget records, by side.
    speaking : callable
        Returns a context whose value speaks for the reference.
    control : Tensor, shape (d,), optional
    """
    sides = [side for side in ("forget", "alternative", "retain") if side in inputs]
    width = max(inputs[side]["input_ids"].shape[1] for side in sides)
    named = {"forget": objective.forget, "retain": objective.retain}
    asked = [side for side, name in named.items() if name and LOSSES[name].reference in ("distributions", "hidden")]
    held: dict[str, _View] = {}
    if asked:  # before the model's own pass: switching its adapter must not touch what is recorded there
        with speaking() as other:
            found = _forward(other, [inputs[side] for side in asked], objective.layer, width)
        held = dict(zip(asked, found, strict=True))
    views = dict(zip(sides, _forward(model, [inputs[side] for side in sides], objective.layer, width), strict=True))
    index = inputs["index"]
    mine = {side: one[index.to(one.device)].to(index.device) for side, one in sums.items()}
    forget = _values(
        objective.forget,
        views["forget"],
        objective.arguments(objective.forget),
        held.get("forget", mine.get("forget", control)),
        win=views.get("alternative"),
        win_reference=mine.get("alternative"),
    )
    if objective.retain is None:
        return forget, None
    options = objective.arguments(objective.retain)
    return forget, _values(objective.retain, views["retain"], options, held.get("retain"))


def _counts(objective: Objective, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return ``n`` and ``m`` of one batch, int64 of shape (B,) each; ``m`` is 0 without a retain term.

    A count is 0 where a place does not count, else the number of tokens that the loss reads, or 1 (`Loss.batch`).
    """
    counts: Tensor = batch["counts"].long()

    def of(side: str, name: str | None, skip: int) -> Tensor:
        if name is None:
            return torch.zeros_like(counts)
        if LOSSES[name].batch == "sample":
            return counts
        labels: Tensor = batch[side]["labels"]
        return ((labels != IGNORE).sum(1) - skip) * counts

    skip = int(objective.options.get("skip", 0))  # answer tokens at the start that the forget loss leaves alone
    return of("forget", objective.forget, skip), of("retain", objective.retain, 0)


def step_weights(objective: Objective, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return ``w n`` and ``m`` of one batch, shape (B,): int64, and ``w n`` float64 where the batch has weights."""
    n, m = _counts(objective, batch)
    return n * batch["weights"] if "weights" in batch else n, m


def step_totals(objective: Objective, batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return ``sum_i n_i`` and ``sum_j m_j`` over the micro-batches of a step, int64 of shape (2,)."""
    pairs = [_counts(objective, batch) for batch in batches]
    return torch.stack([torch.stack([one.sum() for one in pair]) for pair in pairs]).sum(dim=0)  # (2,)
