"""Where an edit goes: the linear map of each decoder layer that writes the output of its feed-forward part.

No table of model names: the decoder is asked for, and the map is known by its shape. With h the hidden size and k the
inner width, a feed-forward block holds ``h -> k, k -> h``, gated ``h -> k, h -> k, k -> h``, or gated in one matrix
``h -> 2k, k -> h``, and no other linear map; ``k -> h`` is the site. Attention and state-space blocks hold more, or
maps with the hidden state on neither side. What still looks alike (three square maps of attention, the adapter that
some families put last) is narrower: of two blocks of a layer the one with the larger k is taken, of two as wide the
later. Parts are read in the order in which they are declared, which is that of the forward pass: attention, across
too, before the feed-forward part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from upright.contract import InputError

__all__ = ["Site", "sites"]

_Map = tuple[int, int, nn.Module]  # what a linear map reads, what it writes, the map


@dataclass(frozen=True, eq=False)
class Site:
    """A linear map that an edit adds to.

    Parameters
    ----------
    name, module : str, nn.Linear or Conv1D
        Among ``model.named_modules()``. The weight has shape (outputs, inputs), in a ``Conv1D`` (inputs, outputs).
    layer : int
        Of the decoder, from 0.
    inputs, outputs : int
        Inner width k and hidden size h.
    """

    name: str
    module: nn.Module
    layer: int
    kind: Literal["linear", "conv1d"]
    inputs: int
    outputs: int


def sites(model: nn.Module) -> list[Site]:
    """Return the sites of a model, at most one a decoder layer, in the order of the layers.

    A shared expert is the feed-forward part of its layer, for every token passes it; a routed one is not. Layers of
    attention, state space or routed experts alone have no site.

    Raises
    ------
    InputError
        For a model that writes no text, and for one without a site; its routed experts are then named.
    """
    decoder, width = _decoder(model)
    names = {module: name for name, module in model.named_modules()}
    lists = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    outer.sort(key=lambda name: name.count("."))  # the layers lie nearest to the decoder, a tower inside it deeper
    for name in outer:
        found = []
        for layer, one in enumerate(lists[name]):
            if blocks := _blocks(one, width):
                k, h, module = max(reversed(blocks), key=lambda block: block[0])
                kind: Literal["linear", "conv1d"] = "conv1d" if isinstance(module, Conv1D) else "linear"
                found.append(Site(names[module], module, layer, kind, k, h))
        if found:
            return found
    for part in (part for name in outer for layer in lists[name] for part in layer.modules()):
        # tensors of experts have shape (experts, h, k) or (experts, k, h)
        tensors = [p for p in part.parameters(recurse=False) if p.ndim == 3 and len(p) > 1 and width in p.shape[1:]]
        if tensors or _are_experts(part):
            accepted = "a feed-forward part that every token passes: a dense layer or a shared expert"
            raise InputError(f"routed experts alone, such as {names[part]}", accepted, "take a dense model")
    got = f"{type(decoder).__name__} without a feed-forward part of width {width}"
    raise InputError(got, "layers with linear maps from that width and back", "unload adapters, or take another model")


def _decoder(model: nn.Module) -> tuple[Any, int]:
    """Return the innermost decoder, which some families wrap, and its hidden size."""
    decoder: Any = model
    if not (hasattr(model, "get_decoder") and decoder.can_generate()):
        got = f"{type(model).__name__}, which has no decoder that writes text"
        raise InputError(got, "a language or image-text model of transformers", "take one that has generate()")
    while (inner := decoder.get_decoder()) is not decoder and hasattr(inner, "get_decoder"):
        decoder = inner
    return decoder, decoder.config.get_text_config(decoder=True).hidden_size


def _are_experts(part: nn.Module) -> bool:
    """Whether a part of a layer is a list of modules of one class, of which a router takes some."""
    kinds = {type(one) for one in part.children()}
    return isinstance(part, nn.ModuleList | nn.ModuleDict) and len(part) > len(kinds) == 1 and nn.Linear not in kinds


def _maps(module: nn.Module) -> list[_Map]:
    """Return the linear maps below, in order, without those of routed experts."""
    if isinstance(module, nn.Linear):
        return [(module.in_features, module.out_features, module)]
    if isinstance(module, Conv1D):
        return [(module.nx, module.nf, module)]
    return [] if _are_experts(module) else [one for child in module.children() for one in _maps(child)]


def _output(maps: list[_Map], width: int) -> list[_Map]:
    """Return the output if the maps are those of one feed-forward block."""
    for site in reversed(maps):
        k, rest = site[0], [one[:2] for one in maps if one is not site]
        if site[1] == width and rest in ([(width, k)], [(width, k)] * 2, [(width, 2 * k)]):
            return [site]
    return []


def _blocks(module: nn.Module, width: int) -> list[_Map]:
    """Return the outputs of the feed-forward blocks of a layer, in order."""
    found, loose = list[_Map](), list[_Map]()
    for child in module.children():
        below = _maps(child)
        if any(a[0] == width == b[1] for a in below for b in below if a is not b):  # from h and back: a block by itself
            found += _blocks(child, width)
        else:
            loose += below
    return found + _output(loose, width)
