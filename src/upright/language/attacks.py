r"""Does it stay forgotten? Three things that bring answers back: rounded weights, a few training steps, other words.

    recovered share = (attacked - f) / (before - f),   f = max(unlearned, level)

with means over the forget records of the probability of the answer: ``before`` unlearning, of the ``unlearned`` model,
of the same model ``attacked``, and the ``level`` of a model that never saw the records. A method that hides answers
scores well until it is attacked.

A share above 0 is no proof that something was hidden. Relearning trains on one half of the records and scores the
other; where both halves are about one author, or in one style, the first half teaches part of the second, even to a
model that never saw any. So a reference is attacked in the same way: what the model shows beyond it was brought back.

==================  =============================================================================================
``none``            the model as it is
``rounding``        weights rounded to few bits, as for cheap serving; small updates are lost first
``paraphrase``      the prompt in other words, where the record has them
``relearn``         a few steps on the other half of the forget records: no record is scored that was trained on
``relearn_retain``  a few steps on retained records
==================  =============================================================================================

`stronger` gives two of them as membership scores, which enter the verdict. Attacks work on copies. The model is left
as it was.

Sources: Zhang et al., *Catastrophic Failure of LLM Unlearning via Quantization* (2024), arXiv 2410.16454; Hu et al.,
*Jogging the Memory of Unlearned Models Through Targeted Relearning Attacks* (2024), arXiv 2406.13356.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upright.contract import InputError, stream
from upright.data.forget import Record
from upright.language.encoding import Encoded, collate
from upright.language.evaluation import Speaker, evaluating
from upright.language.logprobs import sample_counts, token_log_probs
from upright.language.losses import nll, token_mean
from upright.language.measures import LEAST, aggregate

__all__ = ["attacked", "halves", "hardened", "recovered_share", "relearn", "round_to_bits", "rounded", "stronger"]

Array = NDArray[np.float64]
STEPS, RATE = 10, 1e-4
"""Budget of relearning: more or larger steps bring back more of any model, so it is quoted with the numbers."""


def rounded(weights: Tensor, *, bits: int = 4, group: int = 64) -> Tensor:
    r"""``s round(w / s)`` with ``s = max |w| / (2^(bits - 1) - 1)`` over each group of neighbours in a row.

    Symmetric rounding to the nearest, ties to even. Computed in float64 and returned in the type of the weights.

    Parameters
    ----------
    weights : Tensor of float, shape (..., d)
        Groups are cut along the last axis; the last group of a row may be shorter.
    bits : int
        In 2..16; ``2^bits - 1`` values a group, 0 among them.
    group : int
        Weights that share a scale, at least 1.

    Guarantee
    ---------
    The error is at most ``s / 2``, the largest weight of a group is kept, and rounding twice is rounding once (up to
    the rounding of the type).

    Raises
    ------
    InputError
        When bits or group is outside its range, or weights are not finite floating point numbers.
    """
    if not 2 <= bits <= 16 or group < 1:
        raise InputError(f"bits = {bits}, group = {group}", "bits in 2..16, group of at least 1", "correct it")
    if not weights.dtype.is_floating_point or weights.ndim < 1 or not bool(torch.isfinite(weights).all()):
        got = f"weights of type {weights.dtype} and shape {tuple(weights.shape)}, or not finite"
        raise InputError(got, "finite floating point numbers", "load the model without quantisation")
    width = weights.shape[-1]
    padded = torch.nn.functional.pad(weights.detach().double(), (0, -width % group))
    parts = padded.reshape(*padded.shape[:-1], -1, group)  # (..., groups, group)
    scale = parts.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    whole = (parts / torch.where(scale > 0, scale, 1.0)).round()
    out: Tensor = (scale * whole).reshape(padded.shape)[..., :width].to(weights.dtype)  # (..., d)
    return out


def round_to_bits(model: Any, bits: int = 4, group: int = 64) -> Any:
    """Return a copy of a model whose matrices are `rounded`: linear layers, embeddings, experts.

    A simulation of storage in few bits: the copy computes in its own type and takes as much memory as before. Serving
    software uses other codes (NF4, GPTQ) and often leaves embeddings as they are. Vectors, norms and biases stay. Tied
    weights stay tied. Matrices of an adapter are rounded by themselves: merge it first.

    Parameters
    ----------
    model : Module
        Left as it was.
    bits, group : int
        As for `rounded`.

    Raises
    ------
    InputError
        As for `rounded`; also when the model has no matrix of floating point numbers.
    """
    out = _copied(model)
    matrices = [one for one in out.parameters() if one.ndim >= 2 and one.dtype.is_floating_point]
    if not matrices:
        raise InputError("a model without floating point matrices", "weights in float32, float16 or bfloat16",
                         "load the model without quantisation")  # fmt: skip
    with torch.no_grad():
        for one in matrices:
            for part in one.split(4096):  # float64 copies of a part alone
                part.copy_(rounded(part, bits=bits, group=group))
    return out


def relearn(
    model: Any, encoded: Sequence[Encoded], *, steps: int, learning_rate: float, batch_size: int = 8, seed: int = 0,
    pad: int = 0,
) -> Any:  # fmt: skip
    """Return a copy of a model after a few steps of AdamW on the mean loss per answer token.

    All weights are trained, the frozen ones too, without dropout or weight decay, at a constant rate, over permutations
    of the records. In bfloat16 small steps are lost to rounding: load the model in float32.

    Parameters
    ----------
    model : PreTrainedModel
        Left as it was, gradients included.
    encoded : sequence of Encoded, length n
        Of `Speaker.encode`: a part of the forget set, or related text.
    steps : int
        At least 0; 0 gives a plain copy.
    learning_rate : float
        Above 0. An attacker chooses it, so try some; the rate of the unlearning itself is a start.
    batch_size : int
    seed : int
        Of the order of records.
    pad : int
        Token that fills up.

    Raises
    ------
    InputError
        When an argument is outside its range, there is no record, or the training diverges.
    """
    if not encoded or steps < 0 or batch_size < 1 or not 0 < learning_rate < math.inf:
        raise InputError(
            f"{len(encoded)} records, steps = {steps}, batch_size = {batch_size}, learning_rate = {learning_rate}",
            "a record, steps of at least 0, batch_size of at least 1 and a finite learning_rate above 0", "correct it",
        )  # fmt: skip
    out = _copied(model)
    weights = [one for one in out.parameters() if one.dtype.is_floating_point]
    frozen = [one for one in weights if not one.requires_grad]
    for one in frozen:
        one.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    device = out.get_input_embeddings().weight.device
    with evaluating(out), torch.enable_grad():
        for rows in _batches(len(encoded), steps, batch_size, seed):
            batch = {k: v.to(device) for k, v in collate([encoded[i] for i in rows], pad).items()}
            labels = batch.pop("labels")
            logits = out(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            log_probs, mask = token_log_probs(logits, labels.to(logits.device))
            optimizer.zero_grad()
            loss = token_mean(nll(log_probs, mask), sample_counts(mask))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for one in weights:
        one.grad = None
    for one in frozen:
        one.requires_grad_(False)
    return out


def _copied(model: Any) -> Any:
    """Copy a model without its gradients."""
    out = copy.deepcopy(model)
    for one in out.parameters():
        one.grad = None
    return out


def _batches(n: int, steps: int, size: int, seed: int) -> list[list[int]]:
    """Return `steps` batches of indices: one permutation of range(n) after another, each cut into pieces."""
    out: list[list[int]] = []
    epoch = 0
    while len(out) < steps:
        order = np.random.default_rng(stream(seed, "relearn", epoch)).permutation(n).tolist()
        out.extend(order[i : i + size] for i in range(0, n, size))
        epoch += 1
    return out[:steps]


def halves(n: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Cut ``range(n)`` at random into two parts of ``ceil(n / 2)`` and ``floor(n / 2)``, each in order."""
    order = np.random.default_rng(stream(seed, "halves")).permutation(n).tolist()
    return sorted(order[: -(-n // 2)]), sorted(order[-(-n // 2) :])


def _after(model: Any, speaker: Speaker) -> Speaker:
    """Ask another model as a speaker asks its own."""
    return Speaker(model, speaker.tokenizer, template=speaker.template, batch_size=speaker.batch_size)


def _taught(speaker: Speaker, records: Sequence[Record], *, steps: int, learning_rate: float, seed: int) -> Speaker:
    budget = {"steps": steps, "batch_size": speaker.batch_size, "seed": seed, "pad": speaker.pad}
    return _after(relearn(speaker.model, speaker.encode(records), learning_rate=learning_rate, **budget), speaker)


def attacked(
    speaker: Speaker,
    records: Sequence[Record],
    *,
    retain: Sequence[Record] = (),
    steps: int = STEPS,
    learning_rate: float = RATE,
    seed: int = 0,
) -> dict[str, Array]:
    """Attack an unlearned model and return the probability of every forgotten answer after each attack.

    Parameters
    ----------
    speaker : Speaker
        With the unlearned model, left as it was. One copy at a time is made of it.
    records : sequence of Record, length n
        What was to be forgotten, in one order for all calls that are compared.
    retain : sequence of Record
        Adds ``relearn_retain``; shares no record with `records`.
    steps, learning_rate
        As for `relearn`.
    seed : int
        Of the halves and of the order of records.

    Returns
    -------
    dict of str to ndarray of float64, shape (n,)
        By attack, in [0, 1]. ``paraphrase`` is left out when no record has another prompt and NaN for those without;
        ``relearn`` needs two records.

    Raises
    ------
    InputError
        As for `relearn` and `rounded`.
    """
    budget: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
    out = {"none": np.exp(-speaker.losses(records))}
    out["rounding"] = np.exp(-_after(round_to_bits(speaker.model), speaker).losses(records))
    asked = [i for i, record in enumerate(records) if record.other_prompt.strip()]
    if asked:
        out["paraphrase"] = np.full(len(records), np.nan)
        out["paraphrase"][asked] = np.exp(-_otherwise(speaker, [records[i] for i in asked]))
    first, second = halves(len(records), seed)
    if second:
        out["relearn"] = np.full(len(records), np.nan)
        for own, rest in ((first, second), (second, first)):
            taught = _taught(speaker, [records[i] for i in own], **budget)
            out["relearn"][rest] = np.exp(-taught.losses([records[i] for i in rest]))
    if retain:
        out["relearn_retain"] = np.exp(-_taught(speaker, retain, **budget).losses(records))
    return out


def _otherwise(speaker: Speaker, records: Sequence[Record]) -> Array:
    """Return the loss per token of each answer to its prompt in other words, shape (n,)."""
    return speaker.read(records, prompts=[record.other_prompt.strip() for record in records]).mean_nll


def stronger(
    speaker: Speaker,
    forget: Sequence[Record],
    holdout: Sequence[Record],
    *,
    steps: int = STEPS,
    learning_rate: float = RATE,
    seed: int = 0,
) -> dict[str, dict[str, Array]]:
    """Return membership scores of two stronger attacks: other words, and a little training.

    ``mia_loss_paraphrased``: minus the loss per token of the answer after the prompt in other words, where every record
    of both sides has them. ``mia_loss_relearned``: minus the loss per token under a copy that was taught half of the
    forgotten *and* half of the held-out records, scored on the other halves. Both sides are treated alike, so a model
    that saw neither tells them apart no better than before.

    Parameters
    ----------
    speaker : Speaker
        Left as it was.
    forget, holdout : sequence of Record, length n and m
    steps, learning_rate
        The budget, as for `relearn`; without steps there is no such attack.
    seed : int

    Returns
    -------
    dict of side to dict of str to ndarray of float64, shape (n,) or (m,)
        For ``more`` of `upright.language.measures.look`; empty without held-out records.

    Raises
    ------
    InputError
        As for `relearn`.
    """
    sides = {"forget": list(forget), "holdout": list(holdout)}
    out: dict[str, dict[str, Array]] = {side: {} for side in sides}
    if not holdout:
        return out
    if all(record.other_prompt.strip() for records in sides.values() for record in records):
        for side, records in sides.items():
            out[side]["mia_loss_paraphrased"] = -_otherwise(speaker, records)
    if steps and min(map(len, sides.values())) > 1:
        cut = {side: halves(len(records), seed) for side, records in sides.items()}
        scores = {side: np.empty(len(records)) for side, records in sides.items()}
        for part in (0, 1):
            some = [records[i] for side, records in sides.items() for i in cut[side][part]]
            taught = _taught(speaker, some, steps=steps, learning_rate=learning_rate, seed=seed)
            for side, records in sides.items():
                rest = cut[side][1 - part]
                scores[side][rest] = -taught.losses([records[i] for i in rest])
        for side, values in scores.items():
            out[side]["mia_loss_relearned"] = values
    return out


def recovered_share(before: Array, unlearned: Array, after: Array, level: Array | None = None) -> float:
    """``(mean after - f) / (mean before - f)`` with ``f = max(mean unlearned, mean level)``.

    0: the attack brought nothing back. 1: all is back. Below 0: less is known than at f; above 1: more than before.

    Parameters
    ----------
    before, unlearned, after : ndarray of float64, shape (n,)
        One probability a record: of the model before unlearning, after it, and after the attack. Means are taken over
        the records for which all are defined.
    level : ndarray of float64, shape (n,), optional
        The same of a model that never saw the records. A model that was pushed below it and comes back to it has
        recovered nothing.

    Returns
    -------
    float
        NaN when nothing was removed, ``mean before <= f``, or no record has all scores.
    """
    table = np.stack([before, unlearned, after, unlearned if level is None else level])  # (4, n)
    known = table[:, ~np.isnan(table).any(axis=0)]
    if not known.shape[1]:
        return float("nan")
    old, new, now, base = (float(one) for one in known.mean(axis=1))
    floor = max(new, base)
    return (now - floor) / (old - floor) if old > floor else float("nan")


def hardened(
    speaker: Speaker,
    records: Sequence[Record],
    *,
    retain: Sequence[Record] = (),
    reference: Speaker | None = None,
    before: Speaker | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Attack a model and say what it knows after each attack.

    Parameters
    ----------
    speaker, records, retain, seed
        As for `attacked`.
    reference : Speaker, optional
        Attacked in the same way.
    before : Speaker, optional
        The model before unlearning: without it no share is stated.

    Returns
    -------
    dict
        ``settings``, and by attack ``probability`` (value, low, high, n; None with fewer than five records),
        ``recovered`` (None where it is not defined) and ``reference``, the probability of the reference after the same
        attack (None without one).
    """
    found = attacked(speaker, records, retain=retain, seed=seed)
    other = {} if reference is None else attacked(reference, records, retain=retain, seed=seed)
    original = None if before is None else np.exp(-before.losses(records))
    authors = [r.author for r in records]

    def mean(values: Array) -> Any:  # both models meet the same draws of records
        return aggregate({"": values}, seed=seed, authors=authors)[""]

    rows = {}
    for attack, own in found.items():
        share = float("nan")
        if original is not None and len(own) >= LEAST:
            share = recovered_share(original, found["none"], own, other.get("none"))
        rows[attack] = {
            "probability": mean(own),
            "recovered": None if np.isnan(share) else share,
            "reference": mean(other[attack]) if other else None,
        }
    return {"settings": {"relearning_steps": STEPS, "relearning_rate": RATE, "bits": 4}, "attacks": rows}
