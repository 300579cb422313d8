r"""Unlearning losses: pure functions of log-probabilities or logits, one value per sample.

Notation: ``c_i = -sum_t log p(y_it | y_i,<t)`` over the answer tokens of sample i, ``n_i`` their number and
``cbar_i = c_i / n_i``. A total loss is ``gamma * forget + alpha * retain``; the batch is reduced by the caller:

* ``values.mean()`` where the source averages samples (``batch="sample"`` in `LOSSES`),
* `token_mean` where the source averages the tokens of a batch (``batch="token"``), so long answers weigh more.

Log-probabilities and masks are those of `upright.language.logprobs`: shape (B, T), at the place of the token. Nothing
outside the mask is read. No gradient is sent to reference values. `dtype` and `chunk` are those of `over_answers`.

Departures from published code, each held by a test: UNDIAL and PDU train answer tokens only, not prompt and padding;
a label of -100 never indexes the vocabulary; the KL term averages answer tokens only; the last label counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from upright.contract import InputError
from upright.language.logprobs import IGNORE, answer_mask, over_answers, sample_means, sample_sums

__all__ = [
    "LOSSES", "PAIRS", "Loss", "ce_u", "control_vector", "dpo", "dual_step", "ga", "jensen_shannon", "jensun", "kl",
    "nll", "npo", "pdu", "rmu_forget", "rmu_retain", "satimp", "simnpo", "token_mean", "undial", "wga",
]  # fmt: skip

_NEVER = -1e9  # for the logarithm of 0: its product with 0 is a number, and so is its gradient
_TINY = 1e-12  # below, 2 / beta times a logarithm has no digits left


def _at_least(low: float, **values: float) -> None:
    """Refuse factors below `low`, that is 0 or `_TINY`."""
    for name, value in values.items():
        if not low <= value < float("inf"):
            accepted = "a finite number of at least 0" if low == 0 else "a finite number above 0"
            raise InputError(f"{name} = {value}", accepted, f"change {name}")


def _reference(reference: Tensor, own: Tensor) -> Tensor:
    """Return reference sums without gradient, after checking that there is one finite number a sample."""
    if reference.shape != own.shape or not bool(torch.isfinite(reference).all()):
        raise InputError(
            f"reference of shape {tuple(reference.shape)}, {int((~torch.isfinite(reference)).sum())} not finite",
            f"one finite sum of log-probabilities a sample, shape {tuple(own.shape)}",
            "score the same samples with the reference model, by read_answers",
        )  # fmt: skip
    return reference.detach()


def token_mean(values: Tensor, counts: Tensor) -> Tensor:
    """``sum_i n_i values_i / sum_i n_i``: the mean over the tokens of a batch, from means per sample.

    Parameters
    ----------
    values, counts : Tensor, shape (B,)
        Means over the tokens of each sample, and the number of these tokens.
    """
    return (values * counts).sum() / counts.sum()


# -- from log-probabilities of the tokens ---------------------------------------------------------------------------


def nll(log_probs: Tensor, mask: Tensor) -> Tensor:
    """``cbar_i``, the usual training loss and the usual retain term, shape (B,), at least 0.

    Raises
    ------
    InputError
        When shapes differ or a sample has no answer token; so do all losses below.
    """
    return -sample_means(log_probs, mask)


def ga(log_probs: Tensor, mask: Tensor) -> Tensor:
    """``-cbar_i``: gradient ascent, shape (B,), at most 0 and without lower bound.

    Source: Jang et al., *Knowledge Unlearning for Mitigating Privacy Risks in Language Models* (2023).
    """
    return sample_means(log_probs, mask)


def npo(log_probs: Tensor, mask: Tensor, reference: Tensor, *, beta: float = 0.1) -> Tensor:
    r"""``-(2 / beta) log sigmoid(beta (c_i - c_i^ref))``, shape (B,), above 0.

    Parameters
    ----------
    log_probs, mask : Tensor, shape (B, T)
    reference : Tensor, shape (B,)
        Sums of log-probabilities under the reference, ``-c_i^ref``. Sums, not means.
    beta : float
        Above 0; the smaller, the closer to gradient ascent.

    Guarantee
    ---------
    At ``c = c^ref`` the value is ``(2 / beta) log 2`` and the gradient is that of ``-c_i``. For ``beta -> 0``,
    ``npo - (2 / beta) log 2 -> -(c_i - c_i^ref)``: gradient ascent on sums. The weight of a sample's gradient is
    ``2 sigmoid(-beta (c_i - c_i^ref))``, in (0, 2), and vanishes once it is forgotten.

    Source: Zhang, Lin, Bai, Mei, *Negative Preference Optimization* (2024), arXiv 2404.05868.
    """
    _at_least(_TINY, beta=beta)
    sums = sample_sums(log_probs, mask)
    return -(2.0 / beta) * logsigmoid(beta * (_reference(reference, sums) - sums))


def simnpo(log_probs: Tensor, mask: Tensor, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    r"""``-(2 / beta) log sigmoid(beta (cbar_i - delta))``, shape (B,), above 0.

    The paper writes ``-(2 / beta) log sigmoid(-(beta / n_i) log p - gamma)``: its margin is ``gamma = beta delta``. The
    ``gamma`` of training recipes (0.125, 0.1375) is another number, the factor of the forget term in the total.

    Parameters
    ----------
    beta : float
        Above 0. 4.5 in OpenUnlearning, 2.5 in the authors' file for TOFU; `delta` is 0 in both.

    Guarantee
    ---------
    For ``beta -> 0`` and any delta, ``simnpo - (2 / beta) log 2 -> -(cbar_i - delta)``: gradient ascent on means.

    Source: Fan et al., *Simplicity Prevails* (2024), arXiv 2410.07163.
    """
    _at_least(_TINY, beta=beta)
    return -(2.0 / beta) * logsigmoid(beta * (-sample_means(log_probs, mask) - delta))


def dpo(
    log_probs: Tensor, mask: Tensor, reference: Tensor, win_log_probs: Tensor, win_mask: Tensor, win_reference: Tensor,
    *, beta: float = 0.1,
) -> Tensor:  # fmt: skip
    r"""``-(2 / beta) log sigmoid(beta [(c_i - c_i^ref) - (c_i^win - c_i^win,ref)])``, shape (B,), above 0.

    IdkDPO: the winner is a line such as "I don't know". AltPO: an alternative answer that the model wrote.

    Parameters
    ----------
    log_probs, mask, reference
        Of the answer to be forgotten, as for `npo`.
    win_log_probs, win_mask, win_reference
        Of the answer to be given instead, for the same questions; its length may differ.

    Source: Rafailov et al., *Direct Preference Optimization* (2023); Maini et al., *TOFU* (2024); Mekala et al.,
    *Alternate Preference Optimization* (2024), arXiv 2409.13474. The factor 2 is that of NPO's code base.
    """
    _at_least(_TINY, beta=beta)
    lose, win = sample_sums(log_probs, mask), sample_sums(win_log_probs, win_mask)
    if lose.shape != win.shape:
        got = f"{len(lose)} answers to forget and {len(win)} winners"
        raise InputError(got, "one winner a sample", "draw a replacement for every question")
    gain = (win - _reference(win_reference, win)) - (lose - _reference(reference, lose))
    return -(2.0 / beta) * logsigmoid(beta * gain)


def wga(log_probs: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """``mean_t p_it^beta log p_it`` with ``p^beta`` held constant, shape (B,): weighted gradient ascent.

    ``beta = 0`` is `ga`. Tokens that are already improbable stop counting.

    Source: Wang et al., *Rethinking LLM Unlearning Objectives* (2025), arXiv 2502.19301.
    """
    _at_least(0.0, beta=beta)
    weight = (beta * torch.where(mask, log_probs, 0.0).detach()).exp()
    return sample_means(weight * log_probs, mask)


def satimp(log_probs: Tensor, mask: Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """``mean_t p_it^beta1 (1 - p_it)^beta2 log p_it`` with both weights held constant, shape (B,).

    ``beta2 = 0`` is `wga`; both 0 are `ga`.

    Source: Yang et al., *Exploring Criteria of Loss Reweighting to Enhance LLM Unlearning* (2025), arXiv 2505.11953.
    """
    _at_least(0.0, beta1=beta1, beta2=beta2)
    held = torch.where(mask, log_probs, 0.0).detach()
    weight = (beta1 * held).exp() * (-torch.expm1(held)).pow(beta2)  # -expm1: 1 - p without cancellation
    return sample_means(weight * log_probs, mask)


# -- from full distributions ----------------------------------------------------------------------------------------


def _cross_entropy(target: Tensor, rows: Tensor) -> Tensor:
    """``-sum_v target_v log softmax(rows)_v``, shape (N,); tokens that cannot be said (-inf) weigh 0 in the target."""
    log_p = rows.log_softmax(dim=1)
    return -(target * log_p.masked_fill((log_p == -torch.inf) & (target == 0), 0.0)).sum(dim=1)


def _mean_over_answers(function: Callable[..., Tensor], labels: Tensor, *logits: Tensor, **options: Any) -> Tensor:
    """Mean of a function of vocabulary rows over the answer tokens of each sample, shape (B,)."""
    values, mask = over_answers(function, labels, *logits, **options)
    return sample_means(values, mask)


def kl(
    logits: Tensor, reference: Tensor, labels: Tensor, *, direction: Literal["forward", "reverse"] = "forward",
    dtype: torch.dtype = torch.float32, chunk: int | None = None,
) -> Tensor:  # fmt: skip
    r"""``mean_t KL(p_ref || p)`` (forward) or ``mean_t KL(p || p_ref)`` (reverse), shape (B,), at least 0.

    The distributions are those that predict the labelled tokens. To keep the model's words on prompts as well, label
    the prompt; padding never counts.

    Parameters
    ----------
    logits, reference : Tensor, shape (B, T, V)
        Of the model and of the frozen reference.
    labels : Tensor of int, shape (B, T)
        -100 where ignored; the ids themselves play no part.
    direction : {"forward", "reverse"}
        ``forward`` is the published retain term.

    Guarantee
    ---------
    0 if and only if the two agree; the gradient at ``p = p_ref`` is 0 in both directions.

    Source: Maini et al., *TOFU* (2024), "KL minimization".
    """
    if direction not in ("forward", "reverse"):
        raise InputError(f"direction = {direction!r}", "'forward' or 'reverse'", "choose one of the two")

    def divergence(rows: Tensor, other: Tensor, _: Tensor) -> Tensor:
        own, ref = rows.log_softmax(dim=1), other.log_softmax(dim=1)
        first, second = (ref, own) if direction == "forward" else (own, ref)
        gap = (first - second).masked_fill(first == -torch.inf, 0.0)
        return (first.exp() * gap).sum(dim=1)

    return _mean_over_answers(divergence, labels, logits, reference.detach(), dtype=dtype, chunk=chunk)


def undial(
    logits: Tensor, reference: Tensor, labels: Tensor, *, beta: float = 10.0, dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
) -> Tensor:  # fmt: skip
    r"""``mean_t CE(softmax(z_ref - beta onehot(y_t)), softmax(z))``, shape (B,): self-distillation without the answer.

    ``beta = 0`` is plain distillation, ``kl(..., "forward")`` plus the entropy of the reference.

    Parameters
    ----------
    logits, reference : Tensor, shape (B, T, V)
    labels : Tensor of int, shape (B, T)
    beta : float
        By how much the logit of the answer is lowered, at least 0.

    Source: Dong et al., *UNDIAL* (2024), arXiv 2402.10052.
    """
    _at_least(0.0, beta=beta)

    def distil(rows: Tensor, other: Tensor, targets: Tensor) -> Tensor:
        own = targets[:, None]
        lowered = other.scatter(1, own, other.gather(1, own) - beta)
        return _cross_entropy(lowered.softmax(dim=1), rows)

    return _mean_over_answers(distil, labels, logits, reference.detach(), dtype=dtype, chunk=chunk)


def ce_u(
    logits: Tensor, labels: Tensor, *, skip: int = 1, dtype: torch.dtype = torch.float32, chunk: int | None = None
) -> Tensor:
    r"""``mean_t CE(softmax(z with z_y = -inf), softmax(z))``, the target held constant, shape (B,).

    The model is taught its own distribution without the answer: ``-log(1 - p_y)`` plus the entropy of the target.

    `skip` answer tokens at the start are left alone, 1 in the paper; an answer with no token left is refused.

    Source: Yang, *CE-U: Cross Entropy Unlearning* (2025), arXiv 2503.01224.
    """
    _at_least(0.0, skip=skip)
    mask = answer_mask(labels)
    early = mask & (mask.cumsum(dim=1) <= skip)

    def forbid(rows: Tensor, targets: Tensor) -> Tensor:
        return _cross_entropy(rows.detach().scatter(1, targets[:, None], -torch.inf).softmax(dim=1), rows)

    return _mean_over_answers(forbid, labels.masked_fill(early, IGNORE), logits, dtype=dtype, chunk=chunk)


def jensen_shannon(
    logits: Tensor, reference: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, chunk: int | None = None
) -> Tensor:
    r"""``mean_t (KL(p || m) + KL(p_ref || m)) / 2`` with ``m = (p + p_ref) / 2``, shape (B,), in [0, log 2].

    The retain side of `jensun`; parameters as for `kl`.

    Guarantee
    ---------
    0 if and only if the two agree, and its gradient is 0 there; log 2 where no token can be said by both.

    Source: as `jensun`.
    """

    def divergence(rows: Tensor, other: Tensor, _: Tensor) -> Tensor:
        own, ref = (one.log_softmax(dim=1).clamp(min=_NEVER) for one in (rows, other))
        middle = torch.logaddexp(own, ref) - math.log(2.0)
        return 0.5 * (own.exp() * (own - middle) + ref.exp() * (ref - middle)).sum(dim=1)

    return _mean_over_answers(divergence, labels, logits, reference.detach(), dtype=dtype, chunk=chunk)


def jensun(
    logits: Tensor, labels: Tensor, *, refusal: Sequence[int] = (), dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
) -> Tensor:  # fmt: skip
    r"""``mean_t JS(p(. | y_<t), onehot(r_t)) = mean_t log 2 + (q log q - (1 + q) log(1 + q)) / 2``, q = p(r_t | y_<t).

    Shape (B,), in [0, log 2]: 0 where the refusal is certain, log 2 where it cannot be said. *Reconstructed* from the
    abstract and a summary. D1: the contexts ``y_<t`` are those of the answer to be forgotten, so that each of its
    tokens loses probability. D2: ``r_t`` is token t of the refusal and, after its end, its last one. D3: the mean over
    tokens, and the factor 1 of both sides, are ours.

    Parameters
    ----------
    logits : Tensor, shape (B, T, V)
    labels : Tensor of int, shape (B, T)
        Say where the answer stands; its ids play no part.
    refusal : sequence of int
        Tokens of the refusal, with the end of sequence; one at least.

    Source: Singh et al., *Unlearning That Lasts* (2025), arXiv 2509.02820.
    """
    if not len(refusal):
        raise InputError("jensun without a refusal", "one token at least", "pass refusal=")
    place = (labels != IGNORE).cumsum(dim=1).clamp(1, len(refusal)) - 1
    wanted = torch.tensor(list(refusal), device=labels.device)[place].masked_fill(labels == IGNORE, IGNORE)

    def divergence(rows: Tensor, targets: Tensor) -> Tensor:
        log_q = rows.log_softmax(dim=1).gather(1, targets[:, None])[:, 0].clamp(min=_NEVER)
        q = log_q.exp()
        return math.log(2.0) + 0.5 * (q * log_q - (1.0 + q) * torch.log1p(q))

    return _mean_over_answers(divergence, wanted, logits, dtype=dtype, chunk=chunk)


def pdu(logits: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, chunk: int | None = None) -> Tensor:
    """``mean_t (max_v z_v - mean_v z_v)^2``, shape (B,), at least 0: pushes towards equal logits.

    The retain side is a constraint ``retain <= epsilon`` whose factor follows `dual_step`. The published code takes
    all places, padding included; here answer tokens alone count.

    Source: Entesari et al., *Constrained Entropic Unlearning* (2025), arXiv 2506.05314.
    """

    def flat(rows: Tensor, _: Tensor) -> Tensor:
        return (rows.amax(dim=1) - rows.mean(dim=1)).square()

    return _mean_over_answers(flat, labels, logits, dtype=dtype, chunk=chunk)


def dual_step(alpha: float, retain: float, *, epsilon: float, step: float = 1.0) -> float:
    """``max(0, alpha + step (retain - epsilon))``: dual ascent on the factor of a retain constraint, for `pdu`."""
    _at_least(0.0, alpha=alpha, step=step)
    return max(0.0, alpha + step * (retain - epsilon))


# -- from hidden states ---------------------------------------------------------------------------------------------


def control_vector(
    dim: int, *, scale: float, generator: torch.Generator, law: Literal["sphere", "orthant"] = "sphere"
) -> Tensor:
    """``c u`` with a random unit vector u, float32 of shape (dim,); keep it in checkpoints.

    Parameters
    ----------
    scale : float
        c, above 0: 2 in the recipe for WMDP with zephyr-7b-beta, 20 in OpenUnlearning.
    law : {"sphere", "orthant"}
        ``sphere`` is uniform over directions. ``orthant`` normalises uniform numbers from [0, 1) as the authors do: all
        entries are positive, and any two draws have a cosine of about 3/4.
    """
    _at_least(_TINY, scale=scale, dim=dim)
    if law not in ("sphere", "orthant"):
        raise InputError(f"law = {law!r}", "'sphere' or 'orthant'", "choose one of the two")
    draw = torch.randn if law == "sphere" else torch.rand
    raw: Tensor = draw(dim, generator=generator)
    return raw * (scale / float(raw.norm()))


def _distance(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``mean_t ||h_t - target_t||^2 / d`` over the mask, shape (B,)."""
    if hidden.ndim != 3 or hidden.shape[:2] != mask.shape or target.shape[-1] != hidden.shape[2]:
        raise InputError(
            f"hidden of shape {tuple(hidden.shape)}, target of shape {tuple(target.shape)}, mask {tuple(mask.shape)}",
            "hidden states (B, T, d), a mask (B, T) and a target of width d", "take all from the same layer and batch",
        )  # fmt: skip
    clean = torch.where(mask[..., None], hidden - target.detach(), 0.0)  # before the square: no NaN from padding
    return sample_means(clean.square().mean(dim=2), mask)


def rmu_forget(hidden: Tensor, mask: Tensor, control: Tensor) -> Tensor:
    """``mean_t ||h_it - c u||^2 / d`` over answer tokens, shape (B,), at least 0.

    Parameters
    ----------
    hidden : Tensor, shape (B, T, d)
        Output of one layer. Hidden state t is the one *at* the answer token t, as in the published code, not the one
        that predicts it.
    mask : Tensor of bool, shape (B, T)
    control : Tensor, shape (d,)
        Of `control_vector`, one for the whole training.

    Source: Li et al., *The WMDP Benchmark* (2024), arXiv 2403.03218.
    """
    if control.ndim != 1:
        raise InputError(f"control of shape {tuple(control.shape)}", "shape (d,)", "pass the result of control_vector")
    return _distance(hidden, control.to(hidden), mask)


def rmu_retain(hidden: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """``mean_t ||h_it - h_it^ref||^2 / d``, shape (B,), at least 0; `reference` (B, T, d) from the frozen model.

    Source: as `rmu_forget`.
    """
    if reference.shape != hidden.shape:
        got = f"hidden of shape {tuple(hidden.shape)}, reference of shape {tuple(reference.shape)}"
        raise InputError(got, "two arrays of one shape (B, T, d)", "take both from the same layer and batch")
    return _distance(hidden, reference, mask)


# -- what each needs, as data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """What a loss reads and how its source reduces a batch.

    Parameters
    ----------
    function : callable
        Returns one value per sample.
    reads : {"log_probs", "logits", "hidden"}
        What of the trained model: log-probabilities of the tokens and a mask; logits and labels; hidden states and a
        mask.
    reference : {"none", "sums", "distributions", "hidden", "control"}
        What of the reference: nothing; the sum of log-probabilities of each sample, which can be stored once; all
        logits; hidden states; a fixed random vector and no model.
    batch : {"sample", "token"}
        Mean over samples, or over the tokens of the batch by `token_mean`.
    answers : int
        2 where a second answer is compared.
    side : {"forget", "retain"}
    defaults : mapping
        The function's own factors.
    """

    function: Callable[..., Tensor]
    reads: Literal["log_probs", "logits", "hidden"]
    reference: Literal["none", "sums", "distributions", "hidden", "control"]
    batch: Literal["sample", "token"]
    answers: int = 1
    side: Literal["forget", "retain"] = "forget"
    defaults: Mapping[str, Any] = field(default_factory=dict)


LOSSES: Mapping[str, Loss] = {
    "ga": Loss(ga, "log_probs", "none", "token"),
    "npo": Loss(npo, "log_probs", "sums", "sample", defaults={"beta": 0.1}),
    "simnpo": Loss(simnpo, "log_probs", "none", "sample", defaults={"beta": 4.5, "delta": 0.0}),
    "idk_dpo": Loss(dpo, "log_probs", "sums", "sample", answers=2, defaults={"beta": 0.1}),
    "alt_po": Loss(dpo, "log_probs", "sums", "sample", answers=2, defaults={"beta": 0.1}),
    "rmu": Loss(rmu_forget, "hidden", "control", "sample"),
    "wga": Loss(wga, "log_probs", "none", "token", defaults={"beta": 1.0}),
    "satimp": Loss(satimp, "log_probs", "none", "token", defaults={"beta1": 5.0, "beta2": 1.0}),
    "undial": Loss(undial, "logits", "distributions", "token", defaults={"beta": 10.0}),
    "ce_u": Loss(ce_u, "logits", "none", "token", defaults={"skip": 1}),
    "pdu": Loss(pdu, "logits", "none", "token"),
    "jensun": Loss(jensun, "logits", "none", "token", defaults={"refusal": ()}),
    "nll": Loss(nll, "log_probs", "none", "token", side="retain"),
    "kl": Loss(kl, "logits", "distributions", "token", side="retain", defaults={"direction": "forward"}),
    "jensen_shannon": Loss(jensen_shannon, "logits", "distributions", "token", side="retain"),
    "rmu_retain": Loss(rmu_retain, "hidden", "hidden", "sample", side="retain"),
}
"""Losses by name, one value a sample each."""

PAIRS: Mapping[str, tuple[str, str]] = {
    "grad_diff": ("ga", "nll"),
    "grad_diff_kl": ("ga", "kl"),
    "rmu": ("rmu", "rmu_retain"),
    "pdu": ("pdu", "nll"),
    "jensun": ("jensun", "jensen_shannon"),
}
"""Published sums of a forget and a retain loss; ``ga`` has no retain loss, other forget losses take ``nll`` or ``kl``.

Source of the first two: Liu, Liu, Stone, *Continual Learning and Private Unlearning* (2022); Maini et al., *TOFU*
(2024).
"""
