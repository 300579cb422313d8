r"""ODEdit: one fact edited so that the answer holds in every environment and nothing else moves.

    L = w1 R_rel + w2 R_loc + w3 R_gen + lambda TV^2,     TV = mean_e |g_e|,     g_e = d(R_e + w3 R_gen) / d omega_e

R_e is the risk of environment e: the mean loss per answer token where the target is wanted (``edit``, ``text``,
``image``), and ``KL(edited || base)`` where the answer must stay (``unrelated_text``, ``unrelated_image``,
``same_image``). R_rel and R_loc are the means of each kind. R_gen is the maximum mean discrepancy between the states of
the edit's prompts and those of its re-phrasings, each at the last prompt token. omega is 1 and multiplies the states
before the head; with one omega an environment, one backward pass gives all g_e.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from upright.contract import InputError
from upright.editing.edits import Edit, Editable, Editor, Gate, base_checksum, fit_gate, prompt_states
from upright.editing.environments import Environments, image_digest
from upright.editing.layers import sites
from upright.editing.prompts import EncodedQuestion, Question, answers, by_kind, collate, encode
from upright.language.encoding import pad_of
from upright.language.engines import removing
from upright.language.logprobs import IGNORE
from upright.language.reader import evaluating
from upright.maths.invariance import irm_tv, kernel_bandwidths, mmd2

__all__ = ["Edited", "odedit"]

_TARGET, _KEPT = ("edit", "text", "image"), ("unrelated_text", "unrelated_image", "same_image")


@dataclass(frozen=True, eq=False)
class Edited:
    """An edit, how its training went, and why it ended: at the target, after all steps, or over the locality budget.

    A row of ``trace`` is what a state was found to be before a step; with ``within`` 0 it was over budget, and the edit
    is the last that was not.
    """

    edit: Edit
    trace: list[dict[str, float]]
    stopped: Literal["target", "steps", "locality"]


def odedit(
    model: Any,
    processor: Any,
    given: Environments,
    *,
    editor: Editor = "lora",
    rank: int = 8,
    weights: Sequence[float] = (1.0, 1.0, 1.0),
    tv: float = 0.1,
    multiplier: Literal["fixed", "learned"] = "fixed",
    mode: Literal["recommended", "paper"] = "recommended",
    steps: int = 40,
    learning_rate: float = 1e-2,
    target: float = 0.9,
    budget: float = 0.5,
    warmup: int | None = None,
    cap: float = 0.3,
    ascent: float = 1e-2,
    seed: int = 0,
    id: str = "edit",
    facts: Mapping[str, Any] | None = None,
) -> Edited:
    """Make an edit: a low-rank, dense or gated change at every site of a model, by Adam; the weights stay as they are.

    Parameters
    ----------
    given : Environments
        Its training part is all that is read. A question to keep without an answer has the one that the model writes.
    weights : three numbers of at least 0
        Of reliability, locality and generality. With the last two and `tv` at 0, questions to keep are read by a gate
        alone.
    tv : float
        lambda, at least 0. A learned one starts there and rises by `ascent` times its gradient, to at most `cap`.
    mode : {"recommended", "paper"}
        ``paper``: reliability over the edit alone, no ``same_image``, R_gen not divided by 2Q, lambda learned from
        log 2 on, without warm-up and cap.
    target, budget : float
        It ends where every target has at least this probability, as a whole, and R_loc is at most `budget`, in nats.
        Over budget at the end, it goes back to the last state that was not.
    warmup : int, optional
        Steps before lambda counts; by default a third of all.
    facts : mapping, optional
        Added to the edit's own; with ``base`` the checksum of the model is not taken again.

    Raises
    ------
    InputError
        For settings out of range, a model without a head, a loss that is no number, and as `sites`, `encode` and
        `fit_gate`.
    """
    numbers = {"tv": tv, "budget": budget, "cap": cap, "ascent": ascent, "learning_rate": learning_rate}
    for name, value in (numbers | {f"weights[{i}]": one for i, one in enumerate(weights)}).items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} = {value}", "a finite number of at least 0", f"change {name}")
    if len(weights) != 3 or steps < 1 or not 0 < target <= 1:
        got = f"{len(weights)} weights, steps = {steps}, target = {target}"
        raise InputError(got, "three weights, one step or more, a probability above 0", "change these settings")
    settings: dict[str, Any] = {
        "editor": editor,
        "rank": rank,
        "weights": list(weights),
        "multiplier": multiplier,
        "mode": mode,
    }
    settings |= {"steps": steps, "target": target, "warmup": warmup, "seed": seed, **numbers}
    if paper := mode == "paper":
        multiplier, warmup, cap = "learned", 0, math.inf
    warmup = steps // 3 if warmup is None else warmup
    known, places = _encoded(model, processor, given.train), sites(model)
    pad = pad_of(getattr(processor, "tokenizer", processor))
    gate = _gate(model, places[0].name, known, pad) if editor == "gated" else None
    editable = Editable(places, editor=editor, rank=rank, seed=seed, gate=gate)
    optimizer = torch.optim.Adam(parameters := editable.parameters(), lr=learning_rate)
    names = [name for name in known if name in _TARGET or weights[1] or tv]
    names = [name for name in names if not (paper and name == "same_image")]
    wanted = [i for i, name in enumerate(names) if name in (_TARGET[:1] if paper else _TARGET)]
    kept = [i for i, name in enumerate(names) if name in _KEPT]
    trace, good, bandwidths = list[dict[str, float]](), list[Tensor](), None
    delta = 0.0 if paper else tv + math.log(-math.expm1(-tv)) if tv else -math.inf  # a learned lambda: softplus(delta)
    with _frozen(model), evaluating(model), _pictures_once(model):
        risks = _Risks(model, {name: known[name] for name in names}, pad)
        with editable.hooked(model):
            for step in range(steps + 1):
                omega = risks.one.clone().requires_grad_(bool(tv))
                risk, chance, edit, others = risks.read(omega)
                rel, loc = risk[wanted].mean(), risk[kept].sum() / max(len(kept), 1)
                gen = risk.new_zeros(())
                if weights[2] and len(others):
                    bandwidths = kernel_bandwidths(edit, others) if bandwidths is None else bandwidths
                    gen = mmd2(edit, others, bandwidths) * (2 * len(bandwidths) if paper else 1)
                loss, factor = weights[0] * rel + weights[1] * loc + weights[2] * gen, 0.0
                row = {"step": float(step), "reliability": rel, "locality": loc, "generality": gen}
                row |= {f"risk_{name}": one for name, one in zip(names, risk, strict=True)}
                if tv:
                    (slope,) = torch.autograd.grad(risk.sum() + weights[2] * gen, omega, create_graph=True)
                    penalty = irm_tv(slope)
                    if step >= warmup:
                        factor = tv
                        if multiplier == "learned":
                            factor = min(math.log1p(math.exp(-abs(delta))) + max(delta, 0.0), cap)
                            delta += ascent * float(penalty.detach()) / (1 + math.exp(-delta))
                        loss = loss + factor * penalty
                    row |= {"tv": penalty.sqrt(), "lambda": factor}
                    row |= {f"slope_{name}": one for name, one in zip(names, slope, strict=True)}
                if not bool(torch.isfinite(loss)):
                    got = f"request {id}: a loss that is no number at step {step}"
                    raise InputError(got, "a finite loss", "lower learning_rate, or check the model")
                within, reached = bool(loc <= budget), bool(chance[wanted].min() >= target)
                row |= {"probability": chance[wanted].min(), "within": within}
                trace.append(
                    {name: float(torch.as_tensor(value, dtype=torch.float64).detach()) for name, value in row.items()}
                )
                if within:
                    good = [p.detach().clone() for p in parameters]
                if step == steps or (within and reached):
                    break
                for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    p.grad = g
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
    with torch.no_grad():
        for p, last in zip(parameters, good, strict=True):
            p.copy_(last)
    asked = given.train["edit"][0]
    own = {"id": id, "prompt": asked.prompt, "target": asked.answer, "settings": settings, "scores": {}, "parent": None}
    own |= {"image": None if asked.image is None else image_digest(asked.image), "author": "", "time": ""}
    own |= {"base": facts["base"] if facts and "base" in facts else base_checksum(model)} | dict(facts or {})
    stopped: Literal["target", "steps", "locality"] = "target" if reached else "steps"
    return Edited(editable.edit(own), trace, stopped if within else "locality")


# -- questions --------------------------------------------------------------------------------------------------------


def _encoded(model: Any, processor: Any, train: Mapping[str, Sequence[Question]]) -> dict[str, list[EncodedQuestion]]:
    """Return the tokens of training questions; where the answer is not known, the model's own, if it writes one."""
    found = {}
    for name in (name for name in (*_TARGET, *_KEPT) if name in train):
        some = [encode(processor, one) for one in train[name]]
        bare = [i for i, one in enumerate(some) if len(one.ids) == one.prompt]
        said = answers(model, processor, [some[i] for i in bare])
        for i, text in zip(bare, said, strict=True):
            some[i] = encode(processor, replace(train[name][i], answer=text))
        found[name] = [one for one in some if len(one.ids) > one.prompt]
    return {name: some for name, some in found.items() if some}


def _gate(model: Any, site: str, known: Mapping[str, Sequence[EncodedQuestion]], pad: int) -> Gate:
    sides = [[one for name in kind for one in known.get(name, ())] for kind in (_TARGET, _KEPT)]
    if not sides[1]:
        raise InputError("a gated edit without questions to keep", "some of them", "add loc or m_loc to the request")
    batches = [[collate([side[i] for i in rows], pad=pad) for rows in by_kind(side, 32)] for side in sides]
    return fit_gate(site, *(prompt_states(model, site, some) for some in batches))


# -- risks ------------------------------------------------------------------------------------------------------------


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Without gradients for the weights of a model; each asks for them afterwards as before."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


@contextmanager
def _pictures_once(model: Any) -> Iterator[None]:
    """Keep what a model sees in the same pictures: an edit changes no layer before the decoder."""
    inner, seen = getattr(model, "model", model), list[tuple[Any, Any]]()
    if (look := getattr(inner, "get_image_features", None)) is None:
        yield
        return

    def features(*args: Any, **more: Any) -> Any:
        pictures = args[0] if args else more.get("pixel_values")
        for one, found in seen:
            if one is pictures:  # the same tensor, as of the step before
                return found
        found = look(*args, **more)
        if len(seen) < 2:
            seen.append((pictures, found))
        return found

    inner.get_image_features = features
    try:
        yield
    finally:
        del inner.get_image_features


@dataclass(frozen=True, eq=False)
class _Part:
    """Questions that are read at once, by their N answer tokens.

    Of each, (N,): its question, the place before it, the token itself, its environment, its share in the risk of that,
    and whether its question is to be kept. ``first`` are the first tokens of answers, (B,); ``base`` is what the base
    says at tokens to keep, log-probabilities of shape (n, V).
    """

    inputs: dict[str, Tensor]
    row: Tensor
    at: Tensor
    token: Tensor
    place: Tensor
    share: Tensor
    kept: Tensor
    first: Tensor
    base: Tensor


class _Risks:
    """Reads all environments of an edit, by one forward pass with images and one without, at answer tokens alone."""

    def __init__(self, model: Any, known: Mapping[str, Sequence[EncodedQuestion]], pad: int) -> None:
        self.model, self.names, self.parts = model, list(known), list[_Part]()
        weight = model.get_input_embeddings().weight
        self.one = torch.ones(len(known), dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
        flat = [(i, one) for i, own in enumerate(known.values()) for one in own]
        for rows in by_kind([one for _, one in flat], len(flat)):
            batch = collate([flat[i][1] for i in rows], pad=pad)
            of = torch.tensor([flat[i][0] for i in rows])
            row, token = (batch["labels"] != IGNORE).nonzero(as_tuple=True)
            size = torch.bincount(row) * torch.tensor([len(own) for own in known.values()])[of]
            first = torch.searchsorted(row, torch.arange(len(rows)))
            kept = torch.tensor([name in _KEPT for name in self.names])[of[row]]
            wanted = batch["labels"][row, token]
            inputs = {
                k: x.to(weight.device, weight.dtype if x.is_floating_point() else x.dtype) for k, x in batch.items()
            }
            found = {"row": row, "at": token - 1, "token": wanted, "place": of[row], "share": 1.0 / size[row]}
            found |= {"kept": kept, "first": first}
            found = {name: x.to(weight.device) for name, x in found.items()}
            part = _Part(inputs=inputs, base=torch.empty(0), **found)
            if bool(kept.any()):
                with torch.no_grad():
                    part = replace(part, base=self._said(part, self.one)[0][part.kept])
            self.parts.append(part)

    def read(self, omega: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return risk and least probability of each environment, (E,), and states of the edit and its re-phrasings."""
        risk, chance = torch.zeros_like(self.one), self.one.clone()
        edit, others = list[Tensor](), list[Tensor]()
        for part in self.parts:
            said, states = self._said(part, omega)
            loss, kept = -said.gather(1, part.token[:, None])[:, 0], part.kept
            own = loss.detach()
            if bool(kept.any()):
                moved = (said[kept].exp() * (said[kept] - part.base)).sum(1)
                loss = loss.masked_scatter(kept, moved)
            risk = risk.index_add(0, part.place, loss * part.share.to(loss))
            whole = torch.zeros(len(part.first)).to(own).index_add(0, part.row, own).neg().exp()
            place, z = part.place[part.first], states[part.first]
            chance = chance.scatter_reduce(0, place, whole, "amin")
            edit.append(z[place == 0])
            others.append(z[~kept[part.first] & (place > 0)])
        return risk, chance, torch.cat(edit), torch.cat(others)

    def _said(self, part: _Part, omega: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities, (N, V), and the states before the head, (N, D), multiplied by omega."""
        held = list[Tensor]()

        def pick(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            held.append(args[0][part.row, part.at] * omega[part.place, None].to(args[0].dtype))
            return (held[0][None], *args[1:])

        def no_labels(module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**inputs, "labels": None}  # they told a gate where the prompt ends

        head = self.model.get_output_embeddings()
        hooks = head.register_forward_pre_hook(pick), self.model.register_forward_pre_hook(no_labels, with_kwargs=True)
        with removing(hooks[0]), removing(hooks[1]):
            logits = self.model(**part.inputs, use_cache=False).logits
        return logits[0].to(self.one.dtype).log_softmax(1), held[0]
