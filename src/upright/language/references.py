r"""What the model said before unlearning: sums of log-probabilities kept on disk, or a frozen model.

NPO and preference losses need one number a record, ``log p_ref(y_i)``. It is computed once, stored under the SHA-256 of
(weights, records, scope), and read again by every run that asks for the same. Losses that need whole distributions or
hidden states take a model: the base under a disabled adapter, a given one, or a frozen copy.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.contract import InputError
from upright.language.adapters import adapter_is_neutral, quiet
from upright.language.encoding import Encoded, Scope
from upright.language.reader import read_answers

__all__ = [
    "Reference",
    "agree",
    "cached_tensors",
    "checksum",
    "digest_of",
    "frozen_copy",
    "model_key",
    "records_key",
    "sums_key",
    "write_tensors",
]


def _whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered where it is sharded over ranks."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather is not None else tensor


def checksum(model: Any) -> str:
    """SHA-256 over names, types, shapes and bytes of the state dict, 64 hex digits.

    Sharded tensors (DTensor) are gathered one at a time, so every rank must call it and all get one result.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        whole = _whole(tensor.detach()).cpu().contiguous()
        total.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        raw: Any = whole.reshape(-1).view(torch.uint8).numpy()  # bytes: bfloat16 has no NumPy type
        total.update(raw)
    return total.hexdigest()


def model_key(model: Any) -> str:
    """SHA-256 over weights and settings of a model, which decide all that it says; 64 hex digits."""
    told = {k: v for k, v in model.config.to_dict().items() if k[0] != "_" and k != "transformers_version"}
    text = json.dumps([checksum(model), told], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def records_key(encoded: Sequence[Encoded]) -> str:
    """SHA-256 over tokens and starts of records in order; 64 hex digits."""
    rows = [[one.start, *one.ids] for one in encoded]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def digest_of(values: Any) -> str:
    """SHA-256 over float64 numbers; empty for None."""
    return "" if values is None else hashlib.sha256(np.asarray(values, dtype=np.float64).tobytes()).hexdigest()


def sums_key(model: Any, encoded: Sequence[Encoded], scope: Scope, tag: str = "") -> str:
    """SHA-256 of (weights, records, scope, tag): what a stored reference belongs to."""
    return hashlib.sha256(json.dumps([checksum(model), records_key(encoded), scope, tag]).encode()).hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that it is there whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, part, metadata=metadata)
    os.replace(part, path)


def _stored(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return what was stored under a key, None where nothing is or the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            names: list[str] = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None


def cached_tensors(
    folder: Path | None, name: str, key: str, make: Callable[[], dict[str, Tensor]], *, write: bool = True
) -> dict[str, Tensor]:
    """Return what ``make()`` gives, kept as ``<name>-<key>.safetensors`` in a folder; a damaged file is made again.

    Parameters
    ----------
    folder : path, optional
        None keeps nothing.
    name, key : str
        What the tensors are, and the SHA-256 of all that they depend on.
    make : callable
    write : bool
        Whether this process stores what it made: one rank should.
    """
    path = None if folder is None else folder / f"{name}-{key[:32]}.safetensors"
    if path is not None and (stored := _stored(path, key)) is not None:
        return stored
    made = make()
    if path is not None and write:
        write_tensors(path, made, {"key": key})
    return made


def frozen_copy(model: Any) -> Any:
    """Return a copy in evaluation mode that no optimiser can change.

    Raises
    ------
    InputError
        When the model is sharded or quantised, where a copy in memory is not possible.
    """
    sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
    if sharded or getattr(model, "quantization_method", None) is not None:
        got = "a sharded or quantised model, and a loss that needs the reference's distributions"
        todo = "pass peft_config=, or load the reference apart"
        raise InputError(got, "an adapter (reference='adapter') or a second model", todo)
    other = copy.deepcopy(model).eval()
    for parameter in other.parameters():
        parameter.requires_grad_(False)
    return other


def agree(values: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Return the values of the first rank on all ranks: rounding may differ, the order of records may not."""
    own = np.array(values.numpy() if isinstance(values, Tensor) else values, dtype=np.float64)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    from accelerate import PartialState
    from accelerate.utils import broadcast

    sent: Any = broadcast(torch.as_tensor(own, device=PartialState().device))
    return np.asarray(sent.cpu().numpy(), dtype=np.float64)


class Reference:
    """What a run keeps of the model before unlearning: sums, and who speaks when distributions are asked for.

    Parameters
    ----------
    kind : None, "start", "adapter" or PreTrainedModel
        The model as it stands before the first step (None and ``start``), the base under its adapter, or another one.
    model : PreTrainedModel or PeftModel
        That is trained.
    sums, speaks : bool
        Whether losses ask for sums of log-probabilities, and for distributions or hidden states.

    Attributes
    ----------
    sums : dict of str to Tensor of float64, shape (n,)
        By side of the batch; empty until `prepare`.
    keys : list of str
        Which weights the sums are of, side by side, and which the model that speaks.
    """

    def __init__(self, kind: Any, model: Any, *, sums: bool, speaks: bool) -> None:
        if isinstance(kind, str) and kind not in ("start", "adapter"):
            got = f"reference = {kind!r}"
            raise InputError(got, "None, 'start', 'adapter' or a model", "choose one of these")
        if isinstance(kind, str) and kind == "adapter" and not hasattr(model, "disable_adapter"):
            got = "reference='adapter' and a model without one"
            raise InputError(got, "a model with an adapter", "pass peft_config=, or reference='start'")
        self.kind: str = kind if isinstance(kind, str) else "start" if kind is None else "model"
        self.given = None if kind is None or isinstance(kind, str) else kind.eval()
        self._wants_sums, self._wants_model = sums, speaks
        self.sums: dict[str, Tensor] = {}
        self._sums_keys: list[str] = []
        self._speaker_key = ""
        self._frozen: Any = None

    @property
    def keys(self) -> list[str]:
        """Return the SHA-256 of all that was prepared; ``adapter`` stands for the base under one."""
        return [*self._sums_keys, *([self._speaker_key] if self._speaker_key else [])]

    def prepare(
        self,
        model: Any,
        sides: dict[str, Sequence[Encoded]],
        *,
        reading: Mapping[str, Any],
        cache_dir: str | Path | None = None,
        write: bool = True,
        tag: str = "",
    ) -> None:
        """Compute what is missing, at the present weights of the model; does nothing the second time.

        Parameters
        ----------
        model : PreTrainedModel or PeftModel
        sides : mapping of str to sequence of Encoded
            Records whose sums are asked for; empty ones are left out.
        reading : mapping
            How records are read: ``pad``, ``scope`` and ``batch_size`` of `read_answers`. Prepare within the autocast
            of the run: the loss takes a difference, which would hold the rounding of bfloat16 otherwise.
        cache_dir, write
            Folder and whether this process writes there, see `cached_tensors`.
        tag : str
            What else the sums depend on: mixed precision.
        """
        if self.given is not None:
            self.given.to(next(model.parameters()).device)
        base = self.kind == "adapter"
        if self._wants_sums and not self.sums:
            folder, own = None if cache_dir is None else Path(cache_dir), model if self.given is None else self.given
            with model.disable_adapter() if base else contextlib.nullcontext():
                for side, records in sides.items():
                    if not records:
                        continue

                    def make(records: Sequence[Encoded] = records) -> dict[str, Tensor]:
                        found = read_answers(own, records, **reading)
                        return {"sums": torch.from_numpy(np.array([one.sum() for one in found]))}

                    key = sums_key(own, records, reading["scope"], tag + ("base" if base else ""))
                    sums = cached_tensors(folder, "reference", key, make, write=write)["sums"]
                    self.sums[side] = torch.from_numpy(agree(sums))
                    self._sums_keys.append(key)
        if self._wants_model and not self._speaker_key:
            self._frozen = self.given
            if self.kind == "start" and not adapter_is_neutral(model, sides["forget"][0]):
                self._frozen = frozen_copy(model)
            self._speaker_key = "adapter" if self._frozen is None else checksum(self._frozen)

    def load(self, sums: dict[str, Tensor], keys: list[str]) -> None:
        """Take sums over from a checkpoint, in place of computing them; the model that speaks is found by `prepare`."""
        self.sums, self._sums_keys, self._speaker_key = dict(sums), list(keys[: len(sums)]), ""

    @contextlib.contextmanager
    def speaking(self, model: Any) -> Iterator[Any]:
        """Yield who speaks for the reference, in evaluation mode without gradient.

        Parameters
        ----------
        model : PreTrainedModel or PeftModel
            That is trained, unwrapped; its adapter is off meanwhile when no other model speaks.
        """
        other = model if self._frozen is None else self._frozen
        with quiet(other), other.disable_adapter() if self._frozen is None else contextlib.nullcontext():
            yield other
