r"""Does it stay forgotten? Three things that bring answers back: rounded weights, a few training steps, other words.

    recovered share = (attacked - f) / (before - f),   f = max(unlearned, level)

with means over the forget records of a score that is higher for what is known, such as the probability of the answer:
``before`` unlearning, of the ``unlearned`` model, of the same model ``attacked``, and the ``level`` of a model that
never saw the records. A method that hides answers scores well until it is attacked.

==================  =============================================================================================
``none``            the model as it is
``rounding``        weights rounded to few bits, as for cheap serving; small updates are lost first
``paraphrase``      the prompt in other words, where the record has them
``relearn``         a few steps on the other half of the forget records: no record is scored that was trained on
``relearn_retain``  a few steps on retained records
==================  =============================================================================================

Attacks work on copies. The model is left as it was.

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
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.contract import InputError, stream
from upright.data.forget import Record, refuse_overlap
from upright.language.encoding import Encoded, collate
from upright.language.evaluation import Speaker, evaluating
from upright.language.logprobs import sample_counts, token_log_probs
from upright.language.losses import nll, token_mean
from upright.metrics import forgetting

__all__ = ["halves", "paraphrased", "recovered_share", "relearn", "robustness", "round_to_bits", "rounded"]

Array = NDArray[np.float64]


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


def paraphrased(records: Sequence[Record]) -> list[str | None]:
    """Return the prompts in other words, None for a record that has none."""
    return [record.other_prompt.strip() or None for record in records]


def _scores(
    speaker: Speaker, records: Sequence[Record], prompts: Sequence[str | None] | None, rouge: bool
) -> dict[str, Array]:
    """Score what is known of each answer, shape (n,) by name; higher is better known."""
    reading = speaker.read(records, prompts=prompts)
    out = {"forget_probability": forgetting.probability(reading.mean_nll)}
    if rouge:
        outputs = speaker.write(records, prompts=prompts)
        out["forget_rouge_l"] = forgetting.rouge_l_recall([r.answer for r in records], outputs)
    out["exact_memorisation"] = forgetting.exact_memorisation(reading.best, reading.mask)
    out["extraction_strength"] = forgetting.extraction_strength(reading.best, reading.mask)
    return out


def _placed(n: int, parts: Sequence[tuple[Sequence[int], dict[str, Array]]]) -> dict[str, Array]:
    """Put scores of some records into arrays of shape (n,), NaN elsewhere."""
    names = parts[0][1] if parts else {}
    out = {name: np.full(n, np.nan) for name in names}
    for rows, values in parts:
        for name in names:
            out[name][list(rows)] = values[name]
    return out


def robustness(
    speaker: Speaker, records: Sequence[Record], *, retain: Sequence[Record] | None = None, steps: int = 10,
    learning_rate: float = 1e-4, batch_size: int = 8, bits: int = 4, group: int = 64, rouge: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, Array]]:  # fmt: skip
    """Attack an unlearned model and score every forget record after each attack.

    Parameters
    ----------
    speaker : Speaker
        With the unlearned model, left as it was. One copy at a time is made of it.
    records : sequence of Record, length n
        What was to be forgotten, in one order for all calls that are compared.
    retain : sequence of Record, optional
        Adds ``relearn_retain``; shares no record with `records`.
    steps, learning_rate, batch_size
        As for `relearn`.
    bits, group : int
        As for `rounded`.
    rouge : bool
        Whether outputs are written, which takes most of the time and needs the package nltk.
    seed : int
        Of the halves and of the order of records.

    Returns
    -------
    dict
        By attack, then by name, arrays of float64 of shape (n,): ``forget_probability``, ``forget_rouge_l``,
        ``exact_memorisation``, ``extraction_strength``, all higher for what is better known. ``paraphrase`` is left out
        when no record has another prompt and NaN for those without; ``relearn`` needs two records.

    Raises
    ------
    InputError
        As for `relearn` and `rounded`, and when `retain` shares a record with `records`.
    """
    if not records:
        raise InputError("no records", "one record at least", "check the file")
    if retain is not None:
        refuse_overlap(forget=records, retain=retain)

    def attacked(model: Any, rows: Sequence[int], prompts: Sequence[str | None] | None = None) -> dict[str, Array]:
        other = Speaker(model, speaker.tokenizer, template=speaker.template, batch_size=speaker.batch_size)
        return _scores(other, [records[i] for i in rows], prompts, rouge)

    def taught(some: Sequence[Record]) -> Any:
        return relearn(
            speaker.model, speaker.encode(some), steps=steps, learning_rate=learning_rate, batch_size=batch_size,
            seed=seed, pad=speaker.pad,
        )  # fmt: skip

    n, everyone = len(records), range(len(records))
    out = {"none": attacked(speaker.model, everyone)}
    out["rounding"] = attacked(round_to_bits(speaker.model, bits, group), everyone)
    prompts = paraphrased(records)
    if rows := [i for i in everyone if prompts[i] is not None]:
        out["paraphrase"] = _placed(n, [(rows, attacked(speaker.model, rows, [prompts[i] for i in rows]))])
    first, second = halves(n, seed)
    if second:
        pairs = ((first, second), (second, first))
        out["relearn"] = _placed(n, [(b, attacked(taught([records[i] for i in a]), b)) for a, b in pairs])
    if retain is not None:
        out["relearn_retain"] = attacked(taught(retain), everyone)
    return out


def recovered_share(
    before: ArrayLike, unlearned: ArrayLike, attacked: ArrayLike, level: ArrayLike | None = None
) -> float:
    """``(mean attacked - f) / (mean before - f)`` with ``f = max(mean unlearned, mean level)``.

    0: the attack brought nothing back. 1: all is back. Below 0: less is known than at f; above 1: more than before.

    Relearning on one half of the records also teaches the other half where both are about one author, so a model that
    never saw any of them shows a share above 0 too. Attack such a model in the same way and compare.

    Parameters
    ----------
    before, unlearned, attacked : array_like, shape (n,)
        One score per record, higher for what is better known: of the model before unlearning, after it, and after the
        attack. Means are taken over the records for which all are defined.
    level : array_like, shape (n,), optional
        The same of a model that never saw the records. What such a model knows counts as no recovery, so a model that
        was pushed below it and comes back to it has recovered nothing.

    Returns
    -------
    float
        NaN when nothing was removed, ``mean before <= f``, or no record has all scores.

    Raises
    ------
    InputError
        When shapes differ or a score is infinite.
    """
    given = [before, unlearned, attacked, unlearned if level is None else level]
    arrays = [np.asarray(one, dtype=np.float64) for one in given]
    if any(one.ndim != 1 or one.shape != arrays[0].shape or np.isinf(one).any() for one in arrays):
        shapes = ", ".join(str(one.shape) for one in arrays)
        raise InputError(f"scores of shapes {shapes}, or infinite", "finite scores of one shape (n,), NaN if undefined",
                         "pass the same records in the same order")  # fmt: skip
    table = np.stack(arrays)  # (4, n)
    known = table[:, ~np.isnan(table).any(axis=0)]
    if not known.shape[1]:
        return float("nan")
    old, new, now, base = (float(one) for one in known.mean(axis=1))
    floor = max(new, base)
    return (now - floor) / (old - floor) if old > floor else float("nan")
