"""What a checkpoint of our trainers holds beside Trainer's: one file, whole or not there, bound to its records.

``upright_state.safetensors`` in each ``checkpoint-<step>``: tensors by name, and under ``upright`` in its metadata the
settings, the epoch, the dual factor and the history as JSON. Records stand in it as SHA-256 alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from upright.contract import InputError
from upright.language.references import write_tensors

__all__ = ["STATE", "digest_of", "last_complete", "read_state", "refuse_changed", "write_state"]

STATE = "upright_state.safetensors"
_VERSION = 1


def digest_of(values: Any) -> str:
    """SHA-256 over float64 numbers; empty for None."""
    return "" if values is None else hashlib.sha256(np.asarray(values, dtype=np.float64).tobytes()).hexdigest()


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
        raise InputError(
            f"{folder.name} without a readable {STATE} ({type(error).__name__})", "a checkpoint of the same trainer",
            "resume from an earlier checkpoint, or start again",
        ) from None  # fmt: skip
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
            raise InputError(
                f"{name} = {_short(own.get(name))}, and {_short(saved.get(name))} in the checkpoint",
                "the records and settings of the checkpoint", "set them back, or start a new run in another folder",
            )  # fmt: skip


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def last_complete(folder: str | Path) -> str:
    """Return the checkpoint with the largest step that was written to its end.

    Raises
    ------
    InputError
        When there is none.
    """
    whole = {
        int(path.name.partition("-")[2]): path
        for path in Path(folder).glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit()
        and (path / STATE).is_file()
        and (path / "trainer_state.json").is_file()
    }
    if not whole:
        got = f"no complete checkpoint in {Path(folder).name!r}"
        raise InputError(got, "a folder with checkpoint-<step>", "start without resume_from_checkpoint")
    return str(whole[max(whole)])
