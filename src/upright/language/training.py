"""What all trainers here stand on: settings that would be ignored are refused, guards, and checkpoints to resume from.

A checkpoint holds ``upright_state.safetensors`` beside what is Trainer's: tensors by name, and under ``upright`` in its
metadata the settings and the rest as JSON. Records stand in it as SHA-256 alone. It is written first, and
``trainer_state.json``, which Trainer writes last, says that the checkpoint is whole.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from upright.contract import InputError, accepted, reading
from upright.language.references import write_tensors

try:
    from transformers import TrainerCallback
except ImportError:
    raise InputError(
        "training without the package transformers", "the extra llm", "pip install 'upright[llm]'"
    ) from None

__all__ = [
    "STATE",
    "GradientGuard",
    "NumberGuard",
    "last_complete",
    "newest_whole",
    "read_state",
    "refuse_changed",
    "refuse_settings",
    "write_state",
]

STATE = "upright_state.safetensors"
_VERSION = 2


# -- settings -------------------------------------------------------------------------------------------------------


def refuse_settings(args: Any, kind: type) -> None:
    """Refuse settings that our trainers would ignore, and fields of a class of arguments outside their range.

    Raises
    ------
    InputError
    """
    if args.label_smoothing_factor:
        got = f"label_smoothing_factor = {args.label_smoothing_factor}"
        raise InputError(got, "0: the losses here are not smoothed", "leave it out")
    grouped = getattr(args, "group_by_length", False)  # its name before transformers 5
    order = "group_by_length" if grouped else getattr(args, "train_sampling_strategy", "random")
    if order != "random":
        got = f"train_sampling_strategy = {order!r}"
        raise InputError(got, "'random': the order is a function of seed and epoch", "leave it out")
    hints = get_type_hints(kind, include_extras=True)
    for name in kind.__annotations__:
        if not reading(value := getattr(args, name), hints[name]):
            raise InputError(f"{name} = {value!r}", accepted(hints[name]), f"set {name} to such a value")


# -- guards ---------------------------------------------------------------------------------------------------------


def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether no entry is NaN or infinite, with one transfer to the host."""
    local = [getattr(one, "to_local", lambda one=one: one)() for one in tensors]
    return not local or bool(torch.stack([torch.isfinite(one).all() for one in local]).all())


class NumberGuard(TrainerCallback):
    """Stops before an optimiser step whose gradients are not finite, and before weights that are not are written."""

    todo = "go on from the last checkpoint with a smaller learning rate or another loss"

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the gradients."""
        if not _all_finite([p.grad for p in kwargs["model"].parameters() if p.grad is not None]):
            got = f"a gradient that is not finite, at step {state.global_step + 1}"
            raise InputError(got, "finite gradients", self.todo)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the weights where a checkpoint follows."""
        if control.should_save and not _all_finite(list(kwargs["model"].parameters())):
            raise InputError(f"weights that are not finite, at step {state.global_step}", "finite weights", self.todo)


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
            )


# -- checkpoints ----------------------------------------------------------------------------------------------------


def _plain(value: Any) -> str:
    """Return a name for what JSON cannot hold, the same in every process."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def write_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able values of a checkpoint, atomically."""
    text = json.dumps({"version": _VERSION, **values}, sort_keys=True, default=_plain)
    write_tensors(folder / STATE, dict(tensors), {"upright": text})


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `write_state` wrote.

    Raises
    ------
    InputError
        When the file is missing, damaged or of another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(folder / STATE), framework="pt") as file:
            values = json.loads((file.metadata() or {})["upright"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        got = f"{folder.name} without a readable {STATE} ({type(error).__name__})"
        todo = "resume from an earlier checkpoint, or start again"
        raise InputError(got, "a checkpoint of the same trainer", todo) from None
    if values.get("version") != _VERSION:
        got = f"{folder.name} of version {values.get('version')}"
        raise InputError(got, f"version {_VERSION}", "resume with the version of upright that wrote it")
    return tensors, values


def refuse_changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with other records or settings.

    Raises
    ------
    InputError
        Which names the first that differs.
    """
    own = json.loads(json.dumps(dict(now), default=_plain))
    for name in [*own, *(name for name in saved if name not in own)]:
        if saved.get(name) != own.get(name):
            here, there = (f"{text[:77]}..." if len(text) > 80 else text
                           for text in (json.dumps(one.get(name)) for one in (own, saved)))  # fmt: skip
            raise InputError(
                f"{name} = {here}, and {there} in the checkpoint",
                "the records and settings of the checkpoint",
                "set them back, or start a new run in another folder",
            )


def _torn(folder: Path, needs: Sequence[str]) -> str:
    """Return the first file of a checkpoint that is missing or was not written to its end; empty when it is whole."""
    from safetensors import SafetensorError, safe_open

    for name in needs:
        if not (folder / name).is_file():
            return name
    for file in sorted(one for one in folder.iterdir() if one.is_file()):
        try:
            if file.suffix == ".safetensors":
                with safe_open(str(file), framework="pt"):  # compares the size with that of all tensors
                    continue
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file):
                return file.name
        except (OSError, SafetensorError, ValueError):
            return file.name
    return ""


def newest_whole(folder: Path, needs: Sequence[str] = (STATE, "trainer_state.json")) -> tuple[Path | None, list[str]]:
    """Return the checkpoint with the largest step that is whole, None where there is none, and what torn ones lack."""
    steps = {
        int(path.name.partition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit()
    }
    torn: list[str] = []
    for _, path in sorted(steps.items(), reverse=True):
        if not (why := _torn(path, needs)):
            return path, torn
        torn.append(f"{path.name} ({why})")
    return None, torn


def last_complete(folder: str | Path) -> str:
    """Return the checkpoint with the largest step that is whole; later ones, torn by a crash, are named in a warning.

    Raises
    ------
    InputError
        When there is none.
    """
    found, torn = newest_whole(Path(folder))
    lost = f"{', '.join(torn)} not whole"
    if found is None:
        got = f"no complete checkpoint in {Path(folder).name!r}" + (f": {lost}" if torn else "")
        raise InputError(got, "a folder with checkpoint-<step>", "start without resume_from_checkpoint")
    if torn:
        warnings.warn(f"resumed from {found.name}: {lost}", UserWarning, stacklevel=3)
    return str(found)
