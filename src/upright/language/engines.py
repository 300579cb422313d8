r"""Two ways to run a model with noise on its weights, and one to move them along given directions.

    theta' = theta + scale * sigma_w * z_w(probe)      for every noisy tensor w

==========  ==========================================================================================================
``inplace`` Weights are changed in place, once a pass over the data, and put back from an untouched copy: never by
            subtracting, which leaves up to 1 % of them a bit off. Costs one copy of the noisy tensors. The second half
            of a pair is ``theta - (theta' - theta)``: it needs no noise of its own, and the rounding of the first half
            cancels in the mean of the two.
``hook``    Weights are never touched. Hooks add ``scale * sigma * x Z^T`` to the output of a linear layer and
            ``scale * sigma * Z[ids]`` to that of an embedding; all other tensors (norms, biases) are small and handed
            over for the length of a call by `torch.func.functional_call`. Costs one block of noise at a time, and
            draws it again for every batch.
==========  ==========================================================================================================

Both draw the same noise (`upright.language.noise`), so scores agree up to rounding. `DirectionEngine` is ``inplace``
with directions in the place of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from upright.contract import InputError
from upright.language.noise import Law, blocks, rows

__all__ = [
    "DirectionEngine",
    "Engine",
    "HookEngine",
    "InPlaceEngine",
    "LayerKind",
    "checksum",
    "layer_kind",
    "noisy_parameters",
    "removing",
]

_AT_ONCE = 1 << 18  # numbers of a tensor that a checksum turns into int64 at once


class Engine(Protocol):
    """What makes noise: a context manager that leaves every weight as it found it."""

    def __enter__(self) -> Engine: ...
    def __exit__(self, *error: object) -> None: ...
    def noisy(self, probe: int, scale: float) -> Any:
        """Return a context manager in which `forward` uses ``theta + scale * sigma * z(probe)``."""

    def forward(self, **inputs: Any) -> Any:
        """Call the model."""


def noisy_parameters(model: nn.Module, chosen: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Return the tensors that get noise, by name; a tied tensor once, under its first name.

    Parameters
    ----------
    model : Module
    chosen : callable, optional
        ``name -> bool``, for example the last blocks or an adapter alone; by default all.

    Raises
    ------
    InputError
        When weights are not float32 or float64 (half precision swallows the noise: at 1e-5 of noise 98 % of the
        weights of a model in bfloat16 do not change at all; quantised weights cannot take it), lie on the meta device
        or are sharded, and when none is chosen.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        wide = parameter.dtype in (torch.float32, torch.float64)
        if not wide or parameter.device.type == "meta" or hasattr(parameter, "device_mesh"):
            kind = str(parameter.dtype) if not wide else "not in this process's memory as a whole"
            raise InputError(
                f"weights {name!r} that are {kind}", "a whole model in float32 or float64",
                "load it with dtype=torch.float32 and without quantisation, score, and train as you like afterwards",
            )  # fmt: skip
        if chosen is None or chosen(name):
            found[name] = parameter
    if not found:
        raise InputError("no parameter to put noise on", "at least one", "check the names that `parameters` accepts")
    return found


def checksum(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, int, int], ...]:
    """Return name, sum of bits and sum of bits times place of each tensor, modulo 2^64: equal for equal bits."""
    found = []
    for name, tensor in tensors.items():
        # bytes of a float64 or of a mask fill no whole number of int32 alike, so the width follows the type
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.uint8)
        flat = tensor.detach().reshape(-1)
        plain, placed = 0, 0
        for part in torch.split(flat.view(kind), _AT_ONCE):
            wide = part.to(torch.int64)
            plain += int(wide.sum())
            placed = placed * 31 + int((wide * torch.arange(1, len(wide) + 1, device=wide.device)).sum())
        found.append((name, plain % (1 << 64), placed % (1 << 64)))
    return tuple(found)


@contextmanager
def removing(handle: Any) -> Iterator[None]:
    """Remove a hook when the context closes."""
    try:
        yield
    finally:
        handle.remove()


# -- in place ---------------------------------------------------------------------------------------------------------


def _table(tensor: Tensor) -> Tensor:
    """Return a tensor that shares its memory and has rows; a single number has one."""
    flat = tensor.detach()
    return flat.reshape(1) if flat.ndim == 0 else flat


class InPlaceEngine:
    """Noise on the weights themselves, put back from an untouched copy.

    Parameters
    ----------
    model : Module
    sigmas : mapping of parameter name to float
        Standard deviation of the noise on each tensor.
    seed : int
    law : {"gaussian", "rademacher"}

    Raises
    ------
    RuntimeError
        On exit, when a weight or buffer is not what it was.
    """

    def __init__(self, model: nn.Module, sigmas: Mapping[str, float], *, seed: int, law: Law) -> None:
        every = dict(model.named_parameters())
        self.model, self.sigmas, self.seed, self.law = model, dict(sigmas), seed, law
        self.noisy_tensors = {n: _table(every[n]) for n, s in sigmas.items() if s > 0 and every[n].numel()}
        self.at: tuple[int, float] | None = None

    def __enter__(self) -> InPlaceEngine:
        self.before = checksum(self._everything())
        self.buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        self.copies = {n: t.clone() for n, t in self.noisy_tensors.items()}
        return self

    def __exit__(self, *error: object) -> None:
        for name, tensor in self.noisy_tensors.items():
            tensor.copy_(self.copies[name])
        for name, buffer in self.model.named_buffers():
            if name in self.buffers and not _same_bits(buffer, self.buffers[name]):
                buffer.copy_(self.buffers[name])
        self.at, self.copies = None, {}
        if checksum(self._everything()) != self.before:
            raise RuntimeError(
                "weights or buffers of the model are not what they were before scoring: reload the model"
            )

    def _everything(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    @contextmanager
    def noisy(self, probe: int, scale: float) -> Iterator[None]:
        """Put ``theta + scale * sigma * z(probe)`` in place; it stays until the next call or the end."""
        mirrored = self.at == (probe, -scale)
        self.at = None
        for name, tensor in self.noisy_tensors.items():
            for first, last in blocks(tensor.shape):
                own, part = self.copies[name][first:last], tensor[first:last]
                if mirrored:
                    torch.sub(own, part - own, out=part)
                else:
                    z = self._change(probe, name, tensor, first, last)
                    torch.add(own, z, alpha=scale * self.sigmas[name], out=part)
        self.at = (probe, scale)
        yield

    def _change(self, probe: int, name: str, tensor: Tensor, first: int, last: int) -> Tensor:
        """Return rows of what is added to a tensor, before factors."""
        return rows(
            self.seed, probe, name, tensor.shape, first, last, law=self.law, dtype=tensor.dtype, device=tensor.device
        )

    def forward(self, **inputs: Any) -> Any:
        """Call the model."""
        return self.model(**inputs)


class DirectionEngine(InPlaceEngine):
    """Weights moved along given directions: ``theta + scale * v_probe``, put back from an untouched copy.

    An embedding still reads its padding row (`padding_idx`) where it was: no gradient of it reaches that row either.

    Parameters
    ----------
    model : Module
    directions : mapping of parameter name to Tensor of shape (m, *shape)
        What is not named stays; held as they are, and copied only to another type or device.

    Raises
    ------
    RuntimeError
        On exit, when a moved weight or a buffer is not what it was. Other weights are not looked at.
    """

    def __init__(self, model: nn.Module, directions: Mapping[str, Tensor]) -> None:
        super().__init__(model, dict.fromkeys(directions, 1.0), seed=0, law="gaussian")
        self.directions = {n: directions[n].to(t) for n, t in self.noisy_tensors.items()}
        names = {t.data_ptr(): n for n, t in self.noisy_tensors.items()}
        self.padded = {
            module: name
            for module in model.modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
            if (name := names.get(module.weight.data_ptr())) is not None
        }

    def _change(self, probe: int, name: str, tensor: Tensor, first: int, last: int) -> Tensor:
        return self.directions[name][probe].reshape(tensor.shape)[first:last]

    def _everything(self) -> dict[str, Tensor]:
        return {**self.noisy_tensors, **dict(self.model.named_buffers())}

    def forward(self, **inputs: Any) -> Any:
        """Call the model, with padding rows where they were."""

        def keep(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            own = self.copies[self.padded[module]]
            if module.weight is own:  # this very call, below
                return None
            before = torch.func.functional_call(module, {"weight": own}, args)
            return torch.where((args[0] == module.padding_idx)[..., None], before, output)

        with ExitStack() as stack:
            for module in self.padded:
                stack.enter_context(removing(module.register_forward_hook(keep)))
            return super().forward(**inputs)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and checksum({"": one}) == checksum({"": other})


# -- hooks ------------------------------------------------------------------------------------------------------------


class HookEngine:
    """Noise on outputs in place of weights: exact for linear layers and embeddings, weights never touched.

    Parameters
    ----------
    model, sigmas, seed, law
        As for `InPlaceEngine`.

    Raises
    ------
    InputError
        After a pass in which a layer was never called: a model that uses its weight directly would get no noise there.
    """

    def __init__(self, model: nn.Module, sigmas: Mapping[str, float], *, seed: int, law: Law) -> None:
        self.model, self.seed, self.law = model, seed, law
        every = dict(model.named_parameters())
        self.sigmas = {n: s for n, s in sigmas.items() if s > 0 and every[n].numel()}
        names = {id(every[n]): n for n in self.sigmas}
        self.layers: list[tuple[nn.Module, str, LayerKind]] = []
        by_hand = set()
        for module in model.modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                name = names.get(id(parameter))
                kind = layer_kind(module) if name is not None and leaf == "weight" else None
                if name is not None and kind is not None:
                    self.layers.append((module, name, kind))
                elif name is not None:
                    by_hand.add(name)
        # a tensor with one use that no hook covers goes the other way in all its uses
        self.layers = [layer for layer in self.layers if layer[1] not in by_hand]
        self.small = {n: every[n] for n in self.sigmas if n in by_hand}
        self.given: dict[str, Tensor] = {}

    def __enter__(self) -> HookEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.given = {}

    @contextmanager
    def noisy(self, probe: int, scale: float) -> Iterator[None]:
        """Let `forward` add the noise while the context is open."""
        called = [0] * len(self.layers)
        with ExitStack() as stack:
            for i, (module, name, kind) in enumerate(self.layers):
                hook = self._hook(called, i, name, kind, probe, scale)
                stack.enter_context(removing(module.register_forward_hook(hook)))
            self.given = {n: self._moved(n, p, probe, scale) for n, p in self.small.items()}
            stack.callback(self.given.clear)
            yield
        silent = [name for (_, name, _), times in zip(self.layers, called, strict=True) if not times]
        if silent:
            raise InputError(
                f"a layer with the weights {silent[0]!r} that was never called ({len(silent)} such layers)",
                "models that call their layers", "use engine='inplace', or leave these tensors out with `parameters`",
            )  # fmt: skip

    def _moved(self, name: str, parameter: Tensor, probe: int, scale: float) -> Tensor:
        shape = parameter.shape or (1,)
        z = self._rows(name, shape, probe, 0, shape[0], parameter)
        return torch.add(parameter.detach(), z.view(parameter.shape), alpha=scale * self.sigmas[name])

    def _rows(self, name: str, shape: Sequence[int], probe: int, first: int, last: int, like: Tensor) -> Tensor:
        return rows(
            self.seed, probe, name, shape, first, last, law=self.law, dtype=like.dtype, device=like.device
        )  # fmt: skip

    def _hook(self, called: list[int], i: int, name: str, kind: LayerKind, probe: int, scale: float) -> Any:
        alpha = scale * self.sigmas[name]

        def add(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            called[i] += 1
            weight, x, out = module.weight, args[0], output.contiguous()
            flat = out.view(-1, out.shape[-1])  # (N, k)
            for first, last in blocks(weight.shape):
                if kind == "embedding":
                    at = ((x.reshape(-1) >= first) & (x.reshape(-1) < last)).nonzero()[:, 0]
                    if len(at):
                        z = self._rows(name, weight.shape, probe, first, last, weight)
                        flat.index_add_(0, at, z.index_select(0, x.reshape(-1)[at] - first), alpha=alpha)
                    continue
                z = self._rows(name, weight.shape, probe, first, last, weight)
                if kind == "linear":
                    flat[:, first:last].addmm_(x.reshape(-1, x.shape[-1]), z.T, alpha=alpha)
                else:
                    flat.addmm_(x.reshape(-1, x.shape[-1])[:, first:last], z, alpha=alpha)
            return out

        return add

    def forward(self, **inputs: Any) -> Any:
        """Call the model, with the small tensors of the moment."""
        if not self.given:
            return self.model(**inputs)
        return torch.func.functional_call(self.model, self.given, args=(), kwargs=inputs)


LayerKind = Literal["linear", "embedding", "transposed"]


def layer_kind(module: nn.Module) -> LayerKind | None:
    """Return how a module uses its weight, None where that is not known for certain."""
    if "forward" in vars(module):  # replaced on the instance
        return None
    forward = type(module).forward
    if forward is nn.Linear.forward:
        return "linear"
    if forward is nn.Embedding.forward and isinstance(module, nn.Embedding) and module.max_norm is None:
        return "embedding"
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return "transposed"
    return None
