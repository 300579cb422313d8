r"""Edits: what changes some answers of a model, as values that are added by hooks and kept in one small file each.

    y = W x + b + sum_e g_e D_e x,     D_e = B_e A_e (low rank) or dense,     g_e in {0, 1} a sequence

at the sites of each edit e, in the order given. Weights are never written, so leaving a context gives the old outputs
bit for bit; adding to weights and subtracting again rounds.

*Gates.* g_e = 1 where the cosine of a key and the input of a site at the *last prompt token* reaches a threshold. That
token has read the whole prompt, image included, and the answer starts from it; a mean over the prompt is for the most
part one of image and template tokens, which all prompts share. What is answered must not decide: where the call has
``labels``, the prompt ends before the first that is not -100, else with the last token that is not masked, as in
generation. The decision holds for all that is read with the same cache afterwards; written without a cache, each token
would be taken for the end of the prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear
from transformers.pytorch_utils import Conv1D

from upright.contract import InputError, stream
from upright.language.adapters import quiet
from upright.language.disk import new_folder, plain, write_bytes, write_json
from upright.language.engines import removing
from upright.language.logprobs import IGNORE

if TYPE_CHECKING:
    from upright.editing.layers import Site

__all__ = [
    "Edit",
    "Editable",
    "Gate",
    "applied",
    "base_checksum",
    "fit_gate",
    "load_edit",
    "merged_copy",
    "prompt_states",
    "refuse_other_base",
]

Editor = Literal["lora", "dense", "gated"]
_HEADER = "upright-edit"  # the only entry: safetensors writes several in any order
_SAVED, _AGAIN = "a file that Edit.save wrote", "take the model that the edit was made for"


@dataclass(frozen=True, eq=False)
class Gate:
    """Lets an edit through where the largest cosine with a row of `key`, shape (K, inputs), is at least `threshold`.

    `site` is the first of the edit's sites that is called; the others follow its decision.
    """

    site: str
    key: Tensor
    threshold: float

    def similarity(self, states: Tensor) -> Tensor:
        """Return ``max_k cos(key_k, state)`` of states of shape (n, inputs), shape (n,)."""
        return cosine_similarity(states[:, None].to(self.key.dtype), self.key.to(states.device), dim=-1).amax(1)


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a model.

    Parameters
    ----------
    factors : mapping of site name to (A, B) or Tensor
        Low rank, of shapes (r, inputs) and (outputs, r), r the same at all sites; or dense, of shape (outputs, inputs).
    facts : mapping
        What JSON can hold. ``base`` is the `base_checksum` of the model that the edit was made for.
    gate : Gate, optional

    Raises
    ------
    InputError
        For shapes that do not belong together, numbers that are not finite, and a gate at no site of the edit.
    """

    factors: Mapping[str, tuple[Tensor, Tensor] | Tensor]
    facts: Mapping[str, Any]
    gate: Gate | None = None

    def __post_init__(self) -> None:
        ranks = {len(some[0]) if len(some) == 2 else None for some in map(_tensors, self.factors.values())}
        for name, some in self.factors.items():
            first, *second = (tuple(t.shape) for t in _tensors(some))
            if len(first) != 2 or any(s[1:] != first[:1] for s in second) or len(ranks) > 1:
                accepted = "(r, inputs) and (outputs, r) with one r for all sites, or one dense"
                raise InputError(f"an edit of {name!r} in shapes {[first, *second]}", accepted, "see Editable")
            if not all(bool(torch.isfinite(t).all()) for t in _tensors(some)):
                raise InputError(f"an edit of {name!r} that is not finite", "finite numbers", "lower the learning rate")
        if not self.factors or (self.gate is not None and self.gate.site not in self.factors):
            got = "an edit of nothing" if self.gate is None else f"a gate at {self.gate.site!r}"
            raise InputError(got, "at least one site, the gate at the first", "name the sites of the edit")

    def applied(self, model: Any) -> AbstractContextManager[None]:
        """Add the edit to what a model computes while the context is open."""
        return applied(model, [self])

    def save(self, path: str | Path) -> str:
        """Write one private safetensors file as a whole or not at all; returns its SHA-256, 64 hex digits."""
        tensors = {f"{name} {i}": t for name, some in self.factors.items() for i, t in enumerate(_tensors(some))}
        gate = None if self.gate is None else {"site": self.gate.site, "threshold": self.gate.threshold}
        if self.gate is not None:
            tensors["key"] = self.gate.key
        tensors = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
        sites = {name: len(_tensors(some)) for name, some in self.factors.items()}
        try:
            body = json.dumps({"sites": sites, "gate": gate, "facts": plain(self.facts)}, allow_nan=False)
        except TypeError as error:
            todo = "turn images and paths into texts"
            raise InputError(f"facts that are no JSON: {error}", "texts, numbers, lists, mappings", todo) from None
        header = json.dumps({"body": body, "digest": _digest(tensors, body)})
        data: bytes = safetensors.torch.save(tensors, {_HEADER: header})
        write_bytes(Path(path), data)
        return hashlib.sha256(data).hexdigest()

    def to_peft(self, folder: str | Path, model: Any) -> None:
        """Write a new folder that `peft.PeftModel.from_pretrained` reads; refuses gated and dense edits."""
        if self.gate is not None or any(isinstance(some, Tensor) for some in self.factors.values()):
            got = "a dense edit" if self.gate is None else "a gated edit"
            todo = "write a merged copy" if self.gate is None else "apply it with upright"
            raise InputError(f"{got} for peft", "low rank without a gate: an adapter of peft holds no more", todo)
        refuse_other_base(self, model)
        names = [(f"base_model.model.{name}.lora_{end}.weight", name) for end in "AB" for name in self.factors]
        pairs = {name: list(_tensors(some)) for name, some in self.factors.items()}
        data = safetensors.torch.save({long: pairs[name].pop(0).detach().cpu().clone() for long, name in names})
        rank = len(_tensors(next(iter(self.factors.values())))[0])
        settings = {
            "peft_type": "LORA", "task_type": None, "target_modules": list(pairs), "r": rank, "lora_alpha": rank,
            "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
            "fan_in_fan_out": isinstance(model.get_submodule(next(iter(pairs))), Conv1D),
        }  # fmt: skip
        with new_folder(Path(folder), len(data)) as part:
            write_bytes(part / "adapter_model.safetensors", data)
            write_json(part / "adapter_config.json", settings)


def _tensors(some: Any) -> tuple[Tensor, ...]:
    return (some,) if isinstance(some, Tensor) else tuple(some)


def _digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_edit(path: str | Path) -> Edit:
    """Read what `Edit.save` wrote.

    Raises
    ------
    InputError
        For a file that is missing, pickled, cut off, something else, or changed since. Who changes it on purpose can
        write the digest anew: keep what `save` returned elsewhere.
    """
    place = Path(path)
    try:
        with safe_open(place, "pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if _digest(tensors, header["body"]) != header["digest"]:
            raise InputError(f"{place.name}, which changed since it was saved", _SAVED, "take it from a copy")
        body = json.loads(header["body"])
        some = {name: tuple(tensors[f"{name} {i}"] for i in range(n)) for name, n in body["sites"].items()}
        gate = None if body["gate"] is None else Gate(key=tensors["key"], **body["gate"])
        return Edit(_factors(some), body["facts"], gate)
    except OSError as error:
        got = f"{place.name}, which cannot be read ({type(error).__name__})"
        raise InputError(got, _SAVED, "check the path") from None
    except (SafetensorError, AttributeError, KeyError, TypeError, json.JSONDecodeError):
        with place.open("rb") as opened:
            pickled = opened.read(2).startswith((b"PK", b"\x80"))
        got = "which is pickled: no such file is opened" if pickled else "which is damaged or no edit"
        raise InputError(f"{place.name}, {got}", _SAVED, "take it from a copy") from None


def _factors(some: Mapping[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, Tensor] | Tensor]:
    return {name: (one[0], one[1]) if len(one) == 2 else one[0] for name, one in some.items()}


# -- applied --------------------------------------------------------------------------------------------------------


@contextmanager
def applied(model: Any, edits: Sequence[Edit]) -> Iterator[None]:
    """Add edits to what a model computes while the context is open, in their order, by one hook a site.

    Raises
    ------
    InputError
        As `refuse_other_base`, except for the checksum, which takes longer than a forward pass.
    """
    parts: dict[str, list[tuple[list[Tensor], _Switch | None]]] = {}
    with ExitStack() as stack:
        for edit in edits:
            switch = None if edit.gate is None else _Switch(edit.gate)
            if switch is not None:
                stack.enter_context(removing(model.register_forward_pre_hook(switch.begin, with_kwargs=True)))
                stack.enter_context(removing(model.register_forward_hook(switch.end)))
            for name, module in _fitting(edit, model).items():
                here, kind = module.weight.device, module.weight.dtype
                some = [t.to(here, torch.promote_types(t.dtype, kind)) for t in _tensors(edit.factors[name])]
                parts.setdefault(name, []).append((some, switch))
        for name, added in parts.items():
            stack.enter_context(removing(model.get_submodule(name).register_forward_hook(_adding(name, added))))
        yield


def _adding(name: str, parts: Sequence[tuple[Sequence[Tensor], _Switch | None]]) -> Any:
    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        for some, switch in parts:
            on = None if switch is None else switch.decide(name, args[0])
            x = args[0]
            for factor in some:  # B (A x): the product of both is never made
                x = linear(x.to(factor.dtype), factor)
            changed = output + x.to(output.dtype)
            if on is not None:  # not multiplied by nought: the other sequences keep every bit
                tokens = output.shape[:-1].numel() // len(on)
                on = on.to(output.device).repeat_interleave(tokens).view(*output.shape[:-1], 1)
                changed = torch.where(on, changed, output)
            output = changed
        return output

    return add


class _Switch:
    """Whether a gated edit is on, a sequence at a time: found on the prompt, kept for what is read with its cache."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.ends: Tensor | None = None
        self.on: Tensor | None = None
        self.kept: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

    def begin(self, module: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        cache, self.ends, self.on = inputs.get("past_key_values"), None, None
        if cache is None or int(cache.get_seq_length()) == 0:
            self.ends = _prompt_ends({**dict(zip(("input_ids",), args, strict=False)), **inputs})
        elif (kept := self.kept.get(cache)) is not None:
            self.on = kept
        else:
            raise InputError("a cache that a gated edit has not seen from its beginning", "one begun in its context",
                             "read the prompt again while the edit is applied")  # fmt: skip

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None and self.on is not None:
            self.kept[cache] = self.on
        self.ends = self.on = None

    def decide(self, name: str, x: Tensor) -> Tensor:
        if self.ends is not None and name == self.gate.site:
            self.on = self.gate.similarity(_at(x, self.ends)) >= self.gate.threshold
        if self.on is None:
            raise InputError(f"{name!r} called before the gate at {self.gate.site!r} decided",
                             "the gate at the first site, the model called as a whole",
                             "call the model that the edit is applied to")  # fmt: skip
        return self.on


def _at(x: Tensor, ends: Tensor) -> Tensor:
    """Return the row at one place of each sequence, shape (B, inputs); some models drop the batch: (B T, inputs)."""
    rows = x.detach().reshape(len(ends), -1, x.shape[-1])
    return rows[torch.arange(len(ends), device=x.device), ends.to(x.device)]


def _prompt_ends(inputs: Mapping[str, Any]) -> Tensor:
    """Return the place of the last prompt token of each sequence, int64 of shape (B,)."""
    ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    ids = inputs["inputs_embeds"][..., 0] if ids is None else ids
    real = mask != 0 if isinstance(mask, Tensor) and mask.shape == ids.shape else torch.ones_like(ids)
    ends = (real * torch.arange(ids.shape[1], device=ids.device)).amax(1)
    if labels is None:
        return ends
    answer = labels != IGNORE
    return torch.where(answer.any(1), answer.int().argmax(1) - 1, ends).clamp_min(0)


# -- models ---------------------------------------------------------------------------------------------------------


def base_checksum(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of the state dict; 64 hex digits."""
    return _digest(model.state_dict())


def refuse_other_base(edit: Edit, model: Any) -> None:
    """Refuse a model that an edit was not made for.

    Raises
    ------
    InputError
        For a missing site, another shape, weights that cannot take an edit, and another checksum than ``base``.
    """
    _fitting(edit, model)
    base, own = edit.facts.get("base"), base_checksum(model)
    if base != own:
        raise InputError(f"an edit of the weights {str(base)[:12]}", f"the weights at hand, {own[:12]}", _AGAIN)


def _fitting(edit: Edit, model: Any) -> dict[str, Any]:
    """Return the modules of an edit's sites; refuses those that it does not fit."""
    modules = dict(model.named_modules())
    found = {name: modules.get(name) for name in edit.factors}
    for name, module in found.items():
        if not isinstance(module, nn.Linear | Conv1D):
            raise InputError(f"{type(model).__name__} without a linear map {name!r}", "a model with it", _AGAIN)
        kind, cpu = module.weight.dtype, module.weight.device.type == "cpu"
        if (cpu and kind.itemsize < 4) or not kind.is_floating_point or getattr(model, "is_quantized", False):
            raise InputError(f"{name!r} with weights in {kind} or quantised", "float32 or float64",
                             "load the model with dtype=torch.float32 and without quantisation")  # fmt: skip
        first, *second = _tensors(edit.factors[name])
        shape = (len((second or [first])[0]), first.shape[1])
        own = tuple(module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape)
        if shape != own:
            raise InputError(f"an edit of {name!r} in shape {shape}", f"{own}, that of the model", _AGAIN)
    return found


def merged_copy(model: Any, edits: Sequence[Edit], out: str | Path, processor: Any) -> None:
    """Write a new folder with the model as the edits make it; the weights of the model itself are never written to.

    Raises
    ------
    InputError
        For a gated edit, a weight that other modules share, a folder that exists, and as `refuse_other_base`.
    """
    place, state = Path(out), model.state_dict()
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    if place.exists():
        raise InputError(f"--out {place.name}, which exists", "a new folder", "name another place")
    for edit in {edit.facts.get("base"): edit for edit in edits}.values():  # one checksum, as a rule
        refuse_other_base(edit, model)
    for edit in edits:
        if edit.gate is not None:
            raise InputError("a gated edit for a merged copy", "edits that hold for every prompt", "leave it out")
        for name, module in _fitting(edit, model).items():
            if uses[id(module.weight)] > 1:
                raise InputError(f"{name!r} with a weight that other modules share", "a weight of its own",
                                 "apply the edit in place of merging it")  # fmt: skip
            first, *second = (t.to(module.weight.device, torch.float64) for t in _tensors(edit.factors[name]))
            change = second[0] @ first if second else first
            whole = state[f"{name}.weight"].double() + (change.T if isinstance(module, Conv1D) else change)
            state[f"{name}.weight"] = whole.to(module.weight.dtype).contiguous()
    with new_folder(place, sum(t.numel() * t.element_size() for t in state.values())) as part:
        model.save_pretrained(part, state_dict=state)
        processor.save_pretrained(part)


# -- training -------------------------------------------------------------------------------------------------------


class Editable:
    """The trainable factors of an edit while it is made; at first they change nothing.

    Parameters
    ----------
    sites : sequence of Site
        In the order in which they are called.
    editor : {"lora", "dense", "gated"}
        ``gated`` is low rank with a gate. A gate reads what its edit has not touched, so it is fitted first and
        training sees what it lets through.
    rank : int
    seed : int
        Of A; B and dense changes start at nought.
    gate : Gate, optional
        As `fit_gate` makes it, for ``gated`` alone.
    """

    def __init__(
        self, sites: Sequence[Site], *, editor: Editor = "lora", rank: int = 8, seed: int = 0, gate: Gate | None = None
    ) -> None:
        most = min((min(site.inputs, site.outputs) for site in sites), default=0)
        if editor not in ("lora", "dense", "gated") or not 1 <= rank <= most or (editor == "gated") != bool(gate):
            got = f"editor={editor!r}, rank={rank}, {len(sites)} sites, {'a' if gate else 'no'} gate"
            accepted = f"lora, dense or gated; a rank from 1 to {most}; a gate with gated alone"
            raise InputError(got, accepted, "change these settings")
        self.gate = gate
        self.factors: dict[str, tuple[nn.Parameter, ...]] = {}  # (A, B) or (dense,) by site name
        for site in sites:
            draw = torch.Generator().manual_seed(stream(seed, "edit", site.name))
            a = (2 * torch.rand(rank, site.inputs, generator=draw) - 1) / site.inputs**0.5
            last = torch.zeros(site.outputs, site.inputs if editor == "dense" else rank)
            some = [last] if editor == "dense" else [a, last]
            weight: Any = site.module.weight
            kind = torch.promote_types(weight.dtype, torch.float32)
            self.factors[site.name] = tuple(nn.Parameter(t.to(weight.device, kind)) for t in some)

    def parameters(self) -> list[nn.Parameter]:
        """Return all that is trained."""
        return [p for some in self.factors.values() for p in some]

    def hooked(self, model: Any) -> AbstractContextManager[None]:
        """Add the factors to what a model computes while the context is open, with gradients."""
        return Edit(_factors(self.factors), {}, self.gate).applied(model)

    def edit(self, facts: Mapping[str, Any]) -> Edit:
        """Return the edit as it is now; training on does not change it."""
        now = {name: tuple(p.detach().cpu().clone() for p in some) for name, some in self.factors.items()}
        return Edit(_factors(now), facts, self.gate)


def prompt_states(model: Any, site: str, batches: Iterable[Mapping[str, Any]]) -> Tensor:
    """Return the inputs of a site at the last prompt token of each sequence, float32 of shape (n, inputs)."""
    found: list[Tensor] = []
    device = next(model.parameters()).device
    for batch in batches:
        ends = _prompt_ends(batch)

        def keep(module: nn.Module, args: tuple[Any, ...], ends: Tensor = ends) -> None:
            found.append(_at(args[0], ends))

        hook = model.get_submodule(site).register_forward_pre_hook(keep)
        with quiet(model), removing(hook):
            model(**{name: value.to(device) for name, value in batch.items() if name != "labels"}, use_cache=False)
    return torch.cat(found).to("cpu", torch.float32)


def fit_gate(site: str, positives: Tensor, negatives: Tensor) -> Gate:
    """Return the gate whose key is the mean of the positives and whose threshold splits best.

    The threshold is the cut with the largest sum of the shares of positives above and of negatives below; among equal
    ones the middle of the widest gap.

    Parameters
    ----------
    site : str
    positives, negatives : Tensor, shapes (n, inputs) and (m, inputs)
        `prompt_states` of the edit with its re-phrasings, and of prompts whose answers must stay.

    Raises
    ------
    InputError
        Without either, and where no cut is better than none.
    """
    gate = Gate(site, positives.mean(0, keepdim=True), 0.0)
    own, other = gate.similarity(positives), gate.similarity(negatives)
    values = own.new_tensor(sorted({*own.tolist(), *other.tolist()}))
    low, high = values[:-1], values[1:]
    shares = (own >= high[:, None]).double().mean(1) + (other <= low[:, None]).double().mean(1)
    if not bool((shares > 1).any()):
        got = f"{len(own)} prompts of the edit that no gate at {site!r} tells from {len(other)} others"
        raise InputError(got, "prompts of both kinds that differ there", "add others, or take an editor without a gate")
    best = torch.where(shares == shares.max(), high - low, -1).argmax()
    return Gate(site, gate.key, float((low[best] + high[best]) / 2))
