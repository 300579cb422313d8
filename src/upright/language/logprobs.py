r"""Log-probabilities of answer tokens from logits, without a second copy of the vocabulary in float32.

    log p(y_t | y_<t) = - log(1 + sum_{v != y_t} exp(z_v - z_{y_t}))

Conventions
-----------
*Shift.* ``labels[b, t]`` is the token at place t; ``logits[b, t - 1]`` predict it. Every result has the shape of the
labels (B, T) and stands at the place of the token, never at the place of the prediction.

*Mask.* A label of -100 is ignored: prompt, padding, and whatever else the caller leaves out. All other labels count,
the last one too: an end-of-sequence token is scored exactly when its label is given. Results are 0 where ignored.

*First place.* Nothing predicts the token at place 0, so a label there is refused. Dropping it in silence would let the
same text count one token less with right padding than with left padding.

*Empty answers.* A sample without a label is refused: its mean does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from upright.contract import InputError

__all__ = [
    "IGNORE",
    "TokenStatistics",
    "answer_mask",
    "over_answers",
    "sample_counts",
    "sample_means",
    "sample_sums",
    "token_log_probs",
    "token_statistics",
]

IGNORE = -100
_CHUNK_ELEMENTS = 1 << 22  # logits turned into `dtype` at once: 16 MB in float32


class TokenStatistics(NamedTuple):
    """What memorisation and membership scores read off the logits, all of shape (B, T), 0 where ignored.

    Parameters
    ----------
    log_probs : Tensor of float
        ``log p(y_t)``.
    mask : Tensor of bool
        Where a label is given.
    best : Tensor of bool
        Whether greedy decoding picks the label: of tied logits, the one with the smallest index.
    mean, std : Tensor of float
        ``mu_t = sum_v p_v log p_v`` and ``sigma_t = sqrt(sum_v p_v (log p_v - mu_t)^2)`` over the vocabulary.
    """

    log_probs: Tensor
    mask: Tensor
    best: Tensor
    mean: Tensor
    std: Tensor


def answer_mask(labels: Tensor) -> Tensor:
    """Return where labels count, ``labels != -100``, shape (B, T).

    Raises
    ------
    InputError
        When labels are not integers of shape (B, T), stand at place 0, or a sample has none.
    """
    if labels.ndim != 2 or labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype}", "token ids of shape (B, T)",
            "pass the ids of the tokens, -100 where they are ignored",
        )  # fmt: skip
    mask = labels != IGNORE
    if labels.shape[1] and bool(mask[:, 0].any()):
        raise InputError(
            f"a label at place 0 of sample {int(mask[:, 0].nonzero()[0])}", "labels from place 1 on",
            "set labels[:, 0] to -100, and with left padding the label of the first real token too",
        )  # fmt: skip
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise InputError(
            f"sample {int(empty[0])} without an answer token ({len(empty)} such samples)",
            "at least one label other than -100 in every sample", "leave these samples out and say how many",
        )  # fmt: skip
    return mask


def _checked(labels: Tensor, logits: tuple[Tensor, ...]) -> Tensor:
    """Return the mask after checking shapes, types and the range of labels."""
    mask = answer_mask(labels)
    for one in logits:
        if one.ndim != 3 or not one.dtype.is_floating_point or one.shape[:2] != labels.shape or one.shape[2] < 2:
            raise InputError(
                f"logits of shape {tuple(one.shape)} and type {one.dtype} with labels of shape {tuple(labels.shape)}",
                "floating point logits of shape (B, T, V), V >= 2", "pass the logits of the same tokens, not shifted",
            )  # fmt: skip
        if one.shape[2] != logits[0].shape[2]:
            got = f"vocabularies of {logits[0].shape[2]} and {one.shape[2]} tokens"
            raise InputError(got, "one vocabulary", "use a reference with the same tokenizer")
    given = labels[mask]
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= logits[0].shape[2]:
        raise InputError(
            f"labels from {low} to {high}", f"0 to {logits[0].shape[2] - 1}, or -100 to ignore a token",
            "use the tokenizer of the model",
        )  # fmt: skip
    return mask


def over_answers(
    function: Callable[..., Tensor],
    labels: Tensor,
    *logits: Tensor,
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply a function of vocabulary rows at the answer tokens alone, a chunk of them at a time.

    Only answer rows are copied, in their own type; `dtype` is given to one chunk at a time, and in training each chunk
    is computed again in the backward pass instead of being kept.

    Parameters
    ----------
    function : callable
        ``(rows, ..., targets) -> values``: one (N, V) per entry of `logits` and ids (N,) in, (N,) or (N, k) out.
    labels : Tensor of int, shape (B, T)
        -100 where ignored.
    *logits : Tensor of float, shape (B, T, V)
        Row t - 1 predicts label t.
    dtype : torch.dtype
        Least precision of the computation; logits of higher precision keep theirs.
    chunk : int, optional
        Answer tokens at once. Changes memory, not results.

    Returns
    -------
    values : Tensor, shape (B, T) or (B, T, k)
        0 where ignored.
    mask : Tensor of bool, shape (B, T)

    Raises
    ------
    InputError
        For shapes and labels that do not fit, an empty answer, and values that are not finite.
    """
    mask = _checked(labels, logits)
    vocabulary = logits[0].shape[2]
    size = max(1, _CHUNK_ELEMENTS // vocabulary) if chunk is None else chunk
    if size < 1:
        raise InputError(f"chunk = {chunk}", "an integer of at least 1", "leave it out or pass at least 1")
    sample, place = mask.nonzero(as_tuple=True)  # (N,) each
    targets = labels[sample, place].long()
    kind = torch.promote_types(logits[0].dtype, dtype)
    # One gather, then views: a gather per chunk would make one full gradient per chunk.
    row = sample * labels.shape[1] + place - 1
    parts = [torch.split(one.flatten(0, 1).index_select(0, row), size) for one in logits]  # of (N, V)

    def run(target: Tensor, *rows: Tensor) -> Tensor:
        return function(*(row.to(kind) for row in rows), target)

    again = torch.is_grad_enabled() and any(one.requires_grad for one in logits) and len(parts[0]) > 1
    found: list[Tensor] = []
    for target, *rows in zip(torch.split(targets, size), *parts, strict=True):
        value: Any = checkpoint(run, target, *rows, use_reentrant=False) if again else run(target, *rows)
        found.append(value)
    values = torch.cat(found)  # (N,) or (N, k)
    finite = torch.isfinite(values.detach())
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0, 0])
        raise InputError(
            f"{values.detach()[bad].tolist()} at sample {int(sample[bad])}, place {int(place[bad])}",
            "logits without NaN or +inf, and none of -inf at a label",
            "find where the model diverged, or whether its output was masked",
        )  # fmt: skip
    out = values.new_zeros((*labels.shape, *values.shape[1:]))
    return out.index_put((sample, place), values), mask


def _log_prob(rows: Tensor, targets: Tensor) -> Tensor:
    """``-log(1 + exp(logsumexp_{v != y} z_v - z_y))``: keeps its digits where p is near 1."""
    own = targets[:, None]
    # Not -inf: logsumexp of nothing but -inf has a gradient of NaN.
    others = rows.scatter(1, own, torch.finfo(rows.dtype).min).logsumexp(dim=1)
    odds = others - rows.gather(1, own)[:, 0]
    return -torch.logaddexp(odds, torch.zeros_like(odds))


def token_log_probs(
    logits: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """``log p(y_t | y_<t)`` of every answer token, differentiable.

    Relative precision holds at both ends: for p = 1 - 1e-12 the result is -1e-12, not 0 or a multiple of 1e-16.

    Parameters
    ----------
    logits : Tensor of float, shape (B, T, V)
    labels : Tensor of int, shape (B, T)
        -100 where ignored.
    dtype, chunk
        As for `over_answers`.

    Returns
    -------
    log_probs : Tensor, shape (B, T)
        At most 0; 0 where ignored.
    mask : Tensor of bool, shape (B, T)

    Raises
    ------
    InputError
        As for `over_answers`.
    """
    return over_answers(_log_prob, labels, logits, dtype=dtype, chunk=chunk)


def _statistics(rows: Tensor, targets: Tensor) -> Tensor:
    """Columns: log p of the target, whether it is the argmax, mean and standard deviation of log p, shape (N, 4)."""
    log_p = rows.log_softmax(dim=1)
    p = log_p.exp()
    finite = log_p.masked_fill(log_p == -torch.inf, 0.0)  # such tokens weigh 0
    mean = (p * finite).sum(dim=1)
    # Around the mean: E[x^2] - E[x]^2 loses every digit where the distribution is sharp.
    std = (p * (finite - mean[:, None]).square()).sum(dim=1).sqrt()
    best = (rows.argmax(dim=1) == targets).to(rows.dtype)
    return torch.stack([_log_prob(rows, targets), best, mean, std], dim=1)


@torch.no_grad()
def token_statistics(
    logits: Tensor, labels: Tensor, *, dtype: torch.dtype = torch.float32, chunk: int | None = None
) -> TokenStatistics:
    """Return what memorisation and membership metrics need of each answer token, without gradient.

    Parameters
    ----------
    logits, labels, dtype, chunk
        As for `token_log_probs`.

    Returns
    -------
    TokenStatistics

    Raises
    ------
    InputError
        As for `over_answers`.
    """
    values, mask = over_answers(_statistics, labels, logits, dtype=dtype, chunk=chunk)
    log_probs, best, mean, std = values.unbind(dim=2)
    return TokenStatistics(log_probs, mask, best > 0.5, mean, std)


def _of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Values with 0 where masked, whatever stood there, after checking shapes and empty samples."""
    if values.ndim != 2 or values.shape != mask.shape or mask.dtype != torch.bool:
        raise InputError(
            f"values of shape {tuple(values.shape)}, mask of shape {tuple(mask.shape)} and type {mask.dtype}",
            "values and a mask of bool, both of shape (B, T)", "pass both as token_log_probs returns them",
        )  # fmt: skip
    empty = (~mask.any(dim=1)).nonzero()
    if len(empty):
        raise InputError(
            f"sample {int(empty[0])} without an answer token ({len(empty)} such samples)",
            "a mask with at least one True in every row", "leave these samples out and say how many",
        )  # fmt: skip
    return torch.where(mask, values, 0.0)


def sample_counts(mask: Tensor) -> Tensor:
    """Answer tokens of each sample, ``n_i``, int64 of shape (B,)."""
    return mask.sum(dim=1)


def sample_sums(values: Tensor, mask: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """``sum_t values_it`` over the mask, shape (B,).

    Parameters
    ----------
    values : Tensor, shape (B, T)
        What stands outside the mask is not read, NaN included.
    mask : Tensor of bool, shape (B, T)
    dtype : torch.dtype, optional
        Of the sum; ``torch.float64`` for long answers.

    Raises
    ------
    InputError
        When shapes differ or a sample is empty.
    """
    return _of_tokens(values, mask).sum(dim=1, dtype=dtype)


def sample_means(values: Tensor, mask: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """``sum_t values_it / n_i`` over the mask, shape (B,); as `sample_sums`."""
    return sample_sums(values, mask, dtype=dtype) / sample_counts(mask)
