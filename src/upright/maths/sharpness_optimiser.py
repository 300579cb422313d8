r"""EISAM: item-wise sharpness-aware minimisation as an optimiser around another, for recommenders with a long tail.

With l the loss of a sample, i its item, ``c_i = lam f(n_i)`` and means over the whole batch, a step follows

    g  = grad mean((1 - c_i) l)(w) + grad mean(c_i l)(w + e*),    e* = rho T^2 d / ||T d||,  T = 1 or |w| (adaptive)

============  ========================================================================================================
``lagged``    d is the second term of the last step that was made; 0 in the first step
``subset``    the same, with c_i = 0 save for the rarest items, which alone take the second pass
``shared``    d = grad mean(c_i l)(w)
``exact``     each item of the batch has its own e*, from its own gradient: a pass an item, for small models
============  ========================================================================================================

The loop of ``lagged`` and ``subset`` has no closure: micro-batches add up, and processes reduce in each pass::

    opt.zero_grad()
    opt.plain(losses(batch), batch.items).backward()         # shape (B,) each
    with opt.ascent():                                       # w + e*; w again on exit, also after an exception
        opt.penalty(losses(batch), batch.items).backward()
    opt.merge()                                              # before unscaling and clipping; step implies it
    clip_grad_norm_(parameters, 1.0)
    opt.step()

Known methods are settings: SAM is ``weight="constant", lam=1`` (``shared``), Focal-SAM is ``weight="focal"``, ImbSAM is
``weight="tail_only"`` with lam = the tail's share of the interactions, because weights have mean 1 over interactions.

References: arXiv 2603.12752 (its formulas are reconstructed here); those of `upright.maths.sharpness`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, distributed
from torch.optim import Optimizer

from upright.contract import InputError
from upright.maths.sharpness import ascent, ascent_scale, item_weights, kept_weights, rarest_items

__all__ = ["EISAM", "MODES", "SharpnessCheck", "check_sharpness"]

MODES = ("lagged", "subset", "shared", "exact")
FAITHFUL = 0.9  # of norm ratio and cosine: below it, rounding of weights has spoiled the perturbation
CPU = torch.device("cpu")
Losses = Callable[[], tuple[Tensor, Tensor]]
Grads = dict[Tensor, Tensor]


class EISAM(Optimizer):
    """An optimiser whose gradient is the sharpness-aware one; `base` makes the step.

    Parameters
    ----------
    base : torch.optim.Optimizer
        Its parameter groups and state are this optimiser's too: a scheduler on either moves both.
    item_count : array, shape (I,)
        Interactions of each item in the training data.
    rho, lam : float
        Radius and strength, at least 0. Where ``lam f > 1`` the plain pass weighs a rare item negatively; both passes
        together weigh it 1.
    weight, gamma
        f, see `item_weights`.
    mode : str
        One of `MODES`.
    adaptive : bool
        ``T = |w|`` instead of 1.
    direction : str
        ``own``, or ``random``: a placebo of the same length, drawn from `seed`.
    item_weight : array, shape (I,), optional
        f itself, at least 0, used as it is.
    share : float
        ``subset``: largest share of interactions that takes the second pass, in (0, 1].

    Attributes
    ----------
    realised : tuple of float, or None
        Length of the perturbation that the weights took over the length meant, and the cosine of both. Measured in the
        first ascent that moves, and in every one where a parameter has less than 32 bits.

    Notes
    -----
    Both passes draw the same dropout masks: torch's random state, on the CPU and the devices of the parameters, is kept
    at the end of `zero_grad` and of `ascent`, and `ascent` starts from it. Nothing else that is random may stand
    between, and every plain pass has its ascent, empty where no sample is selected. Statistics of batch normalisation
    see both passes.

    Beyond `base`, memory holds up to three copies of the trainable parameters: direction, penalty gradient, weights.

    Guarantee
    ---------
    At ``lam = 0`` a step is that of the base optimiser on the mean loss.
    """

    def __init__(
        self,
        base: Optimizer,
        item_count: ArrayLike,
        *,
        rho: float = 0.05,
        lam: float = 0.8,
        weight: str = "relative",
        gamma: float = 2.0,
        mode: str = "lagged",
        adaptive: bool = False,
        direction: str = "own",
        item_weight: ArrayLike | None = None,
        share: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not hasattr(base, "param_groups"):
            got = f"a base of type {type(base).__name__}"
            raise InputError(got, "a torch.optim.Optimizer", "EISAM(torch.optim.Adam(model.parameters()), item_count)")
        numbers = 0.0 <= rho < math.inf and 0.0 <= lam < math.inf and 0.0 < share <= 1.0
        if mode not in MODES or direction not in ("own", "random") or not numbers:
            raise InputError(
                f"mode = {mode!r}, direction = {direction!r}, rho = {rho}, lam = {lam}, share = {share}",
                f"a mode of {', '.join(MODES)}; direction own or random; rho, lam >= 0; share in (0, 1]",
                "take the defaults: lagged, own, 0.05, 0.8, 0.5",
            )
        count = np.asarray(item_count, dtype=np.float64)
        f = item_weights(count, weight, gamma) if item_weight is None else np.asarray(item_weight, dtype=np.float64)
        if f.shape != count.shape or not np.isfinite(f).all() or (f < 0).any():
            raise InputError(
                f"item weights of shape {f.shape}", f"{count.shape} finite weights >= 0", "align with counts"
            )
        on = rarest_items(f, count, share) if mode == "subset" else np.ones(len(f), dtype=np.bool_)
        self.base, self.rho, self.mode, self.adaptive, self.direction = base, rho, mode, adaptive, direction
        c = torch.from_numpy(np.where(on, lam * f, 0.0))
        self._c = {(CPU, torch.float64): torch.stack([c, 1.0 - c])}  # by device and type
        self._on = torch.from_numpy(on)
        self._sam = bool((c == 1.0).all())  # the plain pass weighs nothing
        self._draws = torch.Generator().manual_seed(seed)
        self.realised: tuple[float, float] | None = None
        self._direction: Grads = {}  # of the last step that was made
        self._next: Grads | None = None  # of the step that is not made yet
        self._penalty: Grads | None = None  # what the second passes have added up
        self._seen: Tensor | None = None  # norms of the plain gradients when the last ascent ended
        self._random: dict[torch.device, Tensor] | None = None
        self._total: int | None = None
        self._inside = self._open = False  # open: a plain pass that no ascent has followed
        super().__setstate__({})  # an Optimizer's hooks, without parameter groups of its own

    def __getattr__(self, name: str) -> Any:
        if name in ("state", "param_groups", "defaults") and "base" in self.__dict__:
            return getattr(self.base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _everything(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _trained(self) -> list[Tensor]:
        return [p for p in self._everything() if p.requires_grad]

    def _name_of(self, p: Tensor) -> str:
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        at = next(k for k, one in enumerate(self._everything()) if one is p)
        return str(names[at]) if len(names) == len(self._everything()) else f"parameter {at}"

    def _outside(self, what: str) -> None:
        if self._inside:
            raise InputError(f"{what} inside ascent", "one ascent at a time, with passes alone in it", "leave it first")

    def _weighted(self, losses: Tensor, items: Tensor, plain: bool) -> Tensor:
        """Return the sum of losses by c, or by 1 - c."""
        if losses.ndim == 0 or losses.shape != items.shape:
            raise InputError(
                f"losses of shape {tuple(losses.shape)} and items of shape {tuple(items.shape)}",
                "one loss and one item a sample, not a mean",
                "take the loss with reduction='none', and the mean over the tokens of a sample",
            )
        self._check_items(items)
        at = losses.device, torch.promote_types(losses.dtype, torch.float32)
        if at not in self._c:
            self._c[at] = self._c[CPU, torch.float64].to(at[1]).to(at[0])
        weights = self._c[at][int(plain)].take(items.to(losses.device))
        return torch.dot(weights.flatten(), losses.flatten().to(at[1]))

    def _check_items(self, items: Tensor) -> None:
        if items.is_floating_point() or items.is_complex():
            raise InputError(f"item codes of type {items.dtype}", "whole numbers, as torch.int64", "items.long()")
        low, high = torch.stack(torch.aminmax(items)).tolist() if items.numel() else (0, 0)
        if low < 0 or high >= len(self._on):
            raise InputError(
                f"an item code from {low} to {high}",
                f"codes from 0 to {len(self._on) - 1}, as in item_count",
                "leave padding out, and count every item of the catalogue",
            )

    def selected(self, items: Tensor) -> Tensor:
        """Return which samples take the second pass, bool of the shape of `items`: all, save in mode ``subset``."""
        self._check_items(items)
        return self._on.to(items.device)[items]

    def plain(self, losses: Tensor, items: Tensor) -> Tensor:
        """``mean((1 - c_i) l)``, shape (); of losses and items (int64) of one shape."""
        self._total, self._seen, self._open = losses.numel(), None, True
        return self._weighted(losses, items, True) / losses.numel()

    def penalty(self, losses: Tensor, items: Tensor, total: int | None = None) -> Tensor:
        """``sum(c_i l) / total``, shape (); total is the size of the batch.

        By default that is the number of losses, and in mode ``subset`` that of the last call of `plain`.
        """
        if total is None:
            total = self._total if self.mode == "subset" and self._total else losses.numel()
        return self._weighted(losses, items, False) / total

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Start a step: no gradients, and the random state that both passes share."""
        self._outside("zero_grad")
        self.base.zero_grad(set_to_none)
        self._penalty = self._next = self._seen = None
        self._open = False
        self._random = _random_states(self._trained())

    @contextmanager
    def _moved(self, direction: Grads) -> Iterator[dict[torch.device, Tensor]]:
        """Stand at w + e* with the random state of the plain pass; give the one to go on from."""
        if self._random is None:
            raise InputError("ascent before zero_grad", "a step that starts with opt.zero_grad()", "call it first")
        params = self._trained()
        after = _random_states(params)
        self._inside, self._open = True, False
        try:
            with kept_weights(params) as weights:
                self._add([(p, w, direction[p]) for p, w in zip(params, weights, strict=True) if p in direction])
                _set_random_states(self._random)
                yield after
        finally:
            self._inside = False
            _set_random_states(after)

    @torch.no_grad()
    def _add(self, some: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Add e* to parameters, in place; w and d stand beside each."""
        params, weights, along = ([one[k] for one in some] for k in range(3))
        scale = ascent_scale(along, weights if self.adaptive else None)
        if scale == 0.0:  # no direction: 0 times what is not finite would be NaN
            return
        scale *= self.rho
        if self.adaptive:
            for p, w, d in some:
                p.addcmul_(w * d, w, value=scale)
        else:
            torch._foreach_add_(params, along, alpha=scale)
        if self.realised is not None and all(p.element_size() >= 4 for p in params):
            return
        meant = real = both = 0.0
        for p, w, d in some:
            wide = torch.promote_types(w.dtype, torch.float32)
            e, moved = d.to(wide) * scale, p.to(wide) - w.to(wide)
            if self.adaptive:
                e.mul_(w).mul_(w)
            meant += float(e.square().sum(dtype=torch.float64))
            real += float(moved.square().sum(dtype=torch.float64))
            both += float(e.mul_(moved).sum(dtype=torch.float64))
        if meant:
            self.realised = length, cosine = math.sqrt(real / meant), both / math.sqrt(real * meant) if real else 0.0
            if min(self.realised) < FAITHFUL:
                said = (
                    f"weights take {length:.2f} of a perturbation's length, cosine {cosine:.2f}: keep them in float32"
                )
                warnings.warn(said, stacklevel=2)

    @contextmanager
    def ascent(self) -> Iterator[None]:
        """Stand at w + e*, with the penalty's gradients in ``.grad``; on exit all is as it was, bit for bit."""
        self._outside("ascent")
        plain = {p: p.grad for p in self._trained()}
        try:
            with self._moved(self._direction) as after:
                for p in plain:
                    p.grad = None if self._penalty is None else self._penalty.get(p)
                yield
                found = {p: p.grad for p in plain if p.grad is not None}
        finally:
            for p, grad in plain.items():
                p.grad = grad
        for p, grad in found.items():
            own = plain[p]
            if own is not None and own.numel() and own.data_ptr() == grad.data_ptr():
                raise InputError(
                    f"gradients of both passes in one place of memory ({self._name_of(p)})",
                    "gradients that belong to their parameter",
                    "wrap the model in DistributedDataParallel with gradient_as_bucket_view=False",
                )
        self._penalty, self._random, self._seen = found or None, after, self._plain_norms()

    def _plain_norms(self) -> Tensor:
        grads = [p.grad for p in self._trained() if p.grad is not None]
        return torch.stack([one.cpu() for one in torch._foreach_norm(grads)]).nan_to_num() if grads else torch.zeros(0)

    def merge(self) -> None:
        """Add the penalty's gradients to the plain ones in ``.grad``; nothing where there are none."""
        self._outside("merge")
        if self._open:
            got, accepted = "a plain pass without an ascent", "both passes in every step"
            raise InputError(
                got, accepted, "run the penalty inside `with opt.ascent():`, empty where nothing is selected"
            )
        if self._penalty is None:
            return
        if self._seen is not None and not torch.equal(self._seen, self._plain_norms()):
            got, accepted = "plain gradients that changed after the last pass", "merge before unscaling and clipping"
            raise InputError(got, accepted, "call opt.merge() straight after the last pass")
        for p in self._trained():
            if (p.grad is None) != (p not in self._penalty):
                raise InputError(
                    f"no gradient of the {'plain' if p.grad is None else 'second'} pass for {self._name_of(p)}",
                    "parameters that both passes reach, or neither",
                    "run the same model in both, or freeze what one does not use",
                )
        torch._foreach_add_([p.grad for p in self._penalty if p.grad is not None], list(self._penalty.values()))
        self._next, self._penalty, self._seen = self._penalty, None, None

    def step(self, closure: Losses | None = None) -> Any:  # type: ignore[override]
        """Make the step of the base optimiser; return the mean loss where a closure gives it.

        Parameters
        ----------
        closure : callable, optional
            Returns ``(losses, items)`` of one batch and draws the same masks from torch's random state in each call.
            All passes are then run here, from gradients of zero. Modes ``shared`` and ``exact`` need it, in a single
            process; gradients are clipped in ``base.register_step_pre_hook``.
        """
        self._outside("step")
        if closure is None and self.mode in ("shared", "exact"):
            raise InputError(f"step() in mode {self.mode!r}", "step(closure)", "pass a closure, or take mode 'lagged'")
        loss = None if closure is None else self._passes(closure)
        self.merge()
        self.base.step()
        if self._next is not None:
            self._direction, self._next = self._aimed(self._next), None
        return loss

    @torch.no_grad()
    def _aimed(self, grads: Grads) -> Grads:
        """Return gradients, or normal draws in their place where directions are random."""
        if self.direction == "random":
            for g in grads.values():
                g.copy_(torch.randn(g.shape, generator=self._draws))
        return grads

    def _parts(self, items: Tensor) -> list[Tensor]:
        """Return which samples share a direction: all of them, or in mode ``exact`` those of one item."""
        if self.mode != "exact":
            return [torch.ones_like(items, dtype=torch.bool)]
        return [items == i for i in torch.unique(items)]

    def _passes(self, closure: Losses) -> Tensor:
        """Run every pass of a step on one batch; what `merge` adds is left to it."""
        self.zero_grad()
        losses, items = closure()
        mean, total, params = losses.detach().mean(), losses.numel(), self._trained()
        if self.mode in ("lagged", "subset"):
            self.plain(losses, items).backward()  # type: ignore[no-untyped-call]
            with self.ascent():
                self.penalty(*closure()).backward()  # type: ignore[no-untyped-call]
            return mean
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise InputError(f"mode {self.mode!r} in several processes", "lagged or subset", "take mode 'lagged'")
        if not self._sam:
            self.plain(losses, items).backward(retain_graph=True)  # type: ignore[no-untyped-call]
        parts, directions = self._parts(items), []
        for k, on in enumerate(parts, 1):
            part = self.penalty(losses[on], items[on], total)
            found = torch.autograd.grad(part, params, retain_graph=k < len(parts), allow_unused=True)
            directions.append(self._aimed({p: g for p, g in zip(params, found, strict=True) if g is not None}))
        for on, direction in zip(parts, directions, strict=True):
            with self._moved(direction):
                losses, items = closure()
                self.penalty(losses[on], items[on], total).backward()  # type: ignore[no-untyped-call]
        return mean

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimiser; its parameters are moved from their second step on."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base optimiser, and the direction by place of the parameter."""
        places = {k: self._direction[p] for k, p in enumerate(self._everything()) if p in self._direction}
        own = {"direction": places, "draws": self._draws.get_state(), "realised": self.realised}
        return {**self.base.state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, or the state of a base optimiser: then the next step has e* = 0."""
        params, places = self._everything(), state_dict.get("direction", {})
        if any(k >= len(params) or params[k].shape != d.shape for k, d in places.items()):
            raise InputError("a direction of other parameters", "the state of the same model", "load the matching one")
        own = ("direction", "draws", "realised")
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k not in own})
        self.realised = state_dict.get("realised", self.realised)
        self._direction = {params[k]: d.to(params[k]) for k, d in places.items()}
        if "draws" in state_dict:
            self._draws.set_state(state_dict["draws"].cpu())


def _random_states(params: Sequence[Tensor]) -> dict[torch.device, Tensor]:
    """Return torch's random state on the CPU and the devices of parameters."""
    devices = {p.device for p in params} - {CPU}
    return {CPU: torch.get_rng_state(), **{d: torch.get_device_module(d).get_rng_state(d) for d in devices}}


def _set_random_states(states: dict[torch.device, Tensor]) -> None:
    for device, state in states.items():
        torch.set_rng_state(state) if device == CPU else torch.get_device_module(device).set_rng_state(state, device)


@dataclass(frozen=True)
class SharpnessCheck:
    """A step against its closed form, on a model of one's own.

    Parameters
    ----------
    loss_gap : float
        Largest difference of the losses of two plain passes, relative to the largest loss: 0 where dropout agrees.
    gradient_gap : float
        ``||g - hand-written g|| / ||hand-written g||``.
    norm_ratio, cosine : float
        `EISAM.realised`; NaN where nothing was to move.
    penalty : float
        ``mean(c_i l)(w + e*) - mean(c_i l)(w)``, in mode ``exact`` each item at its own e*.
    """

    loss_gap: float
    gradient_gap: float
    norm_ratio: float
    cosine: float
    penalty: float


def check_sharpness(opt: EISAM, losses: Losses) -> SharpnessCheck:
    """Compare a step with its closed form, written by hand, at the direction of the batch at hand.

    Weights, gradients, random state and optimiser stay as they were; statistics of batch normalisation do not.

    Parameters
    ----------
    opt : EISAM
    losses : callable
        As the closure of `EISAM.step`.

    Raises
    ------
    InputError
        Where two passes see other masks, the weights do not take the perturbation or are not restored, or the gradient
        is not that of the closed form; and for whatever a pass refuses.
    """
    params, before = opt._trained(), vars(opt).copy()
    own, random = [p.grad for p in params], _random_states(params)

    def again() -> tuple[Tensor, Tensor]:
        _set_random_states(random)
        return losses()

    def gradients(loss: Tensor) -> Grads:
        for p in params:
            p.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return {p: p.grad.clone() for p in params if p.grad is not None}

    try:
        with kept_weights(params) as weights, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is measured is raised below
            first, items = again()
            wanted, rise = gradients(opt.plain(first, items)), 0.0
            first, second = first.detach(), again()[0].detach()
            for on in opt._parts(items):
                low = opt.penalty(again()[0][on], items[on], items.numel())
                direction = gradients(low)
                at = [w for p, w in zip(params, weights, strict=True) if p in direction] if opt.adaptive else None
                with torch.no_grad():
                    torch._foreach_add_(list(direction), ascent(list(direction.values()), opt.rho, at))
                high = opt.penalty(again()[0][on], items[on], items.numel())
                rise += float(high.detach()) - float(low.detach())
                for p, g in gradients(high).items():
                    wanted[p] = wanted[p] + g if p in wanted else g
                with torch.no_grad():
                    torch._foreach_copy_(params, weights)
            opt.direction, opt._direction, opt.realised = "own", direction, None
            _set_random_states(random)
            opt._passes(losses)
            opt.merge()
            restored = all(torch.equal(p, w) for p, w in zip(params, weights, strict=True))
            off = [float((p.grad - g).double().norm()) for p, g in wanted.items() if p.grad is not None]
            length, cosine = opt.realised or (math.nan, math.nan)
    finally:
        vars(opt).update(before)
        for p, grad in zip(params, own, strict=True):
            p.grad = grad
        _set_random_states(random)
    size = math.hypot(*(float(g.double().norm()) for g in wanted.values()))
    loss_gap = float((second - first).abs().max() / first.abs().max().clamp(min=1e-30))
    found = SharpnessCheck(loss_gap, math.hypot(*off) / max(size, 1e-30), length, cosine, rise)
    tolerance = max(torch.finfo(p.dtype).eps for p in params) ** 0.5
    for wrong, accepted, todo in (
        (loss_gap > tolerance, "two calls of losses that agree", "draw dropout from torch's own random state"),
        (not restored, "weights that are restored bit for bit", "let nothing else write to them during a pass"),
        (min(length, cosine) < FAITHFUL, "weights that take the perturbation", "keep them in float32"),
        (found.gradient_gap > tolerance, "the gradient of the closed form", "look for hooks that change gradients"),
    ):
        if wrong:
            raise InputError(str(found), accepted, todo)
    return found
