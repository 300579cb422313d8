"""What watches a run: numbers that stop being numbers, weights without gradient, utility below a floor.

The first two end the run with an error that names the step; checkpoints written before stay as they are, and none is
written from weights that are not finite. The third ends the run in good order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from upright.contract import InputError
from upright.language.adapters import quiet
from upright.language.references import agree

try:
    from transformers import TrainerCallback
except ImportError:
    raise InputError(
        "training without the package transformers", "the extra llm", "pip install 'upright[llm]'"
    ) from None

__all__ = ["Epochs", "GradientGuard", "NumberGuard", "UtilityFloor", "UtilityGuard"]


def _all_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether no entry is NaN or infinite, with one transfer to the host."""
    local = [getattr(one, "to_local", lambda one=one: one)() for one in tensors]
    return not local or bool(torch.stack([torch.isfinite(one).all() for one in local]).all())


class NumberGuard(TrainerCallback):
    """Stops before an optimiser step whose gradients are not finite, and before weights that are not are written."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients."""
        grads = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not _all_finite(grads):
            raise InputError(
                f"a gradient that is not finite, at step {state.global_step + 1}", "finite gradients",
                "go on from the last checkpoint with a smaller learning rate or another loss",
            )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the weights where a checkpoint follows."""
        if control.should_save and not _all_finite(list(kwargs["model"].parameters())):
            raise InputError(
                f"weights that are not finite, at step {state.global_step}", "finite weights",
                "go on from the last checkpoint with a smaller learning rate",
            )  # fmt: skip


class GradientGuard(TrainerCallback):
    """Refuses a run in which a trainable tensor got no gradient in its first step.

    A gradient of zeros is a gradient: that of lora_A is zero as long as lora_B is.

    Parameters
    ----------
    idle : callable
        Whether a step has no loss, asked before each look.
    some : bool
        One tensor with a gradient will do: losses that read a layer leave what is above it alone.
    """

    def __init__(self, *, idle: Callable[[], bool] = lambda: False, some: bool = False) -> None:
        self.idle, self.some = idle, some
        self.done = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look again in the first step of each run."""
        self.done = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look once."""
        if self.done or self.idle():
            return
        self.done = True
        trained = [(name, p) for name, p in kwargs["model"].named_parameters() if p.requires_grad]
        without = [name for name, p in trained if p.grad is None]
        if without and not (self.some and len(without) < len(trained)):
            raise InputError(
                f"no gradient for {without[0]} in the first step ({len(without)} of {len(trained)} trainable tensors)",
                "a gradient for every trainable tensor",
                "with an adapter and activation checkpointing call model.enable_input_require_grads(); else freeze it",
            )  # fmt: skip


@dataclass(frozen=True)
class UtilityFloor:
    """Stop a run when what must be kept gets worse than a floor.

    Parameters
    ----------
    check : callable
        ``check(model) -> {name: value}``, called in evaluation mode without gradients.
    floor : mapping of name to float
        Smallest value of each name that is allowed.
    every : int
        Steps between two checks, at least 1.
    """

    check: Callable[[Any], Mapping[str, float]]
    floor: Mapping[str, float] = field(default_factory=dict)
    every: int = 10

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every = {self.every}", "an integer of at least 1", "raise it")

    def below(self, values: Mapping[str, float]) -> list[str]:
        """Return the names that are below their floor; a value that is missing or NaN is."""
        return [name for name, low in self.floor.items() if not values.get(name, float("nan")) >= low]


class UtilityGuard(TrainerCallback):
    """Runs a `UtilityFloor` and keeps what it saw in ``trainer.guard_history``."""

    def __init__(self, trainer: Any, floor: UtilityFloor) -> None:
        self.trainer, self.floor = trainer, floor

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check where it is due."""
        if state.global_step % self.floor.every:
            return
        with quiet(kwargs["model"]):
            values = {name: float(value) for name, value in self.floor.check(kwargs["model"]).items()}
        below = self.floor.below(values)
        self.trainer.guard_history.append({"step": int(state.global_step), **values})
        if agree([float(bool(below))])[0]:
            low = ", ".join(f"{name} = {values.get(name, float('nan')):g}" for name in below)
            self.trainer.stopped = f"{low} below its floor at step {state.global_step}"
            control.should_training_stop = True


class Epochs(TrainerCallback):
    """Tells the trainer where an epoch begins and ends and where the optimiser has stepped."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score what is due; also after a resume, where the sampler of a skipping loader is out of Trainer's reach."""
        epoch = int(state.epoch or 0)
        self.trainer.prepare_epoch(epoch)
        self.trainer.schedule.order.set_epoch(epoch)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the dual factor follow the retain loss of this step."""
        self.trainer.after_step(float(state.epoch or 0.0))

    def _stop(self, control: Any) -> None:
        schedule = self.trainer.schedule
        if schedule.finished:
            self.trainer.stopped = f"every record at its target before epoch {schedule.prepared}"
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when nothing is left to forget."""
        self._stop(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score for the next epoch, before a checkpoint of this one is written."""
        if state.global_step < state.max_steps and not self.trainer.schedule.finished:
            self.trainer.prepare_epoch(self.trainer.schedule.order.epoch + 1)
        self._stop(control)
