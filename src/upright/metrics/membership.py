r"""Membership attacks on forgotten samples: scores per sample, AUC, privleak, over-unlearning.

Every score is *higher for what looks like a member* of the training data. With token log-probabilities ``l_t``, n of
them, ``cbar`` their negative mean, and mean and standard deviation ``mu_t, sigma_t`` of log p over the vocabulary:

===================  ============================================================================================
``loss``             ``-cbar``
``zlib``             ``-cbar / bytes of the compressed answer``
``reference``        ``cbar_ref - cbar``
``min_k``            mean of the ``max(1, floor(k n))`` smallest ``l_t``
``min_k_plus_plus``  the same of ``(l_t - mu_t) / max(sigma_t, floor)``
``gradient_norm``    ``- ||gradient of cbar||``
===================  ============================================================================================

AUC is ``P(score of a forgotten sample > score of a held-out one)``, ties 1/2. 1/2: the model treats both alike.
Above: the forgotten samples are still known. Far below: they were pushed further away than unseen text, which gives
their membership away as well, by the flipped answer. So ``|AUC - 1/2|`` is what an attacker gains either way.

Sources: Yeom et al. (2018) for the loss; Carlini et al., *Extracting Training Data from Large Language Models* (2021)
for zlib and the reference; Shi et al., *Detecting Pretraining Data* (2024), arXiv 2310.16789, Min-k %; Zhang et al.,
*Min-K%++* (2024), arXiv 2404.02936; Shi et al., *MUSE* (2024), arXiv 2407.06460, privleak.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError, Metric
from upright.metrics.leakage import auc

__all__ = [
    "METRICS", "STATISTICS", "MembershipAuc", "gradient_norm_score", "loss_score", "membership_auc", "min_k",
    "min_k_plus_plus", "over_unlearned", "privleak", "reference_score", "zlib_score",
]  # fmt: skip

Array = NDArray[np.float64]
_INF = float("inf")

METRICS: Mapping[str, Metric] = {
    name: Metric(name, "lower", -_INF, high, 0.01, title)
    for name, high, title in (
        ("mia_loss", 0.0, "Membership score: loss"),
        ("mia_zlib", 0.0, "Membership score: loss per compressed byte"),
        ("mia_reference", _INF, "Membership score: loss against a reference"),
        ("mia_min_k", 0.0, "Membership score: Min-k %"),
        ("mia_min_k_plus_plus", _INF, "Membership score: Min-k %++"),
        ("mia_gradient_norm", 0.0, "Membership score: gradient norm"),
    )
}
"""Scores of forgotten samples. Lower down to the level of unseen text; below it they give membership away again."""

STATISTICS: Mapping[str, Metric] = {
    "mia_distance": Metric("mia_distance", "lower", 0.0, 0.5, 0.01, "Membership: |AUC - 1/2|"),
    "abs_privleak": Metric("abs_privleak", "lower", 0.0, _INF, 1.0, "|PrivLeak|"),
}
"""Numbers of a whole model."""


@dataclass(frozen=True)
class MembershipAuc:
    """How well a score tells forgotten samples from held-out ones.

    Parameters
    ----------
    auc : float
        In [0, 1].
    distance : float
        ``|AUC - 1/2|`` in [0, 1/2].
    standard_error : float
        Of the AUC when both sides have one distribution, ``sqrt((n + m + 1) / (12 n m))``.
    n_forget, n_holdout, undefined : int
        Defined scores on either side, and how many were NaN.
    """

    auc: float
    distance: float
    standard_error: float
    n_forget: int
    n_holdout: int
    undefined: int


def _vector(name: str, values: ArrayLike, low: float = -_INF) -> Array:
    """One number a sample, at least `low`; NaN stays."""
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1 or (out < low).any():
        got = f"{name} of shape {out.shape}" if out.ndim != 1 else f"{name} with {out.min():g}"
        bound = "" if low == -_INF else f" of at least {low:g}"
        raise InputError(got, f"one number{bound} a sample, shape (n,)", "pass mean losses per token, or norms")
    return out


def _aligned(first: str, one: Array, second: str, n: int) -> None:
    """Refuse two lists of samples with another length."""
    if len(one) != n:
        raise InputError(f"{len(one)} {first} and {n} {second}", "one of each a sample", "align the two")


def loss_score(mean_nll: ArrayLike) -> Array:
    """``-cbar``, shape (n,), at most 0.

    Parameters
    ----------
    mean_nll : array_like, shape (n,)
        At least 0.
    """
    return -_vector("mean_nll", mean_nll, 0.0)


def zlib_score(mean_nll: ArrayLike, texts: Sequence[str]) -> Array:
    """``-cbar / len(zlib.compress(text))``, shape (n,): a low loss counts more where the text is not repetitive.

    The mean loss, not the sum, is divided, as in published evaluations of unlearning.

    Parameters
    ----------
    mean_nll : array_like, shape (n,)
    texts : sequence of str
        The answers that were scored, without the questions; compressed as UTF-8 at zlib's default level.
    """
    nll = _vector("mean_nll", mean_nll, 0.0)
    _aligned("losses", nll, "texts", len(texts))
    return -nll / np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts], dtype=np.float64)


def reference_score(mean_nll: ArrayLike, reference_nll: ArrayLike) -> Array:
    """``cbar_ref - cbar``, shape (n,): what the model knows beyond a reference that never saw the sample."""
    nll, ref = _vector("mean_nll", mean_nll, 0.0), _vector("reference_nll", reference_nll, 0.0)
    _aligned("losses", nll, "reference losses", len(ref))
    return ref - nll


def gradient_norm_score(norms: ArrayLike) -> Array:
    """``-||gradient||`` of each sample's loss, shape (n,): training leaves small gradients on what it saw."""
    return -_vector("norms", norms, 0.0)


def _smallest(values: Array, mask: NDArray[np.bool_], k: float) -> Array:
    """Mean of the ``max(1, floor(k n))`` smallest values of each row inside the mask; NaN for an empty row."""
    if not 0.0 < k <= 1.0:
        raise InputError(f"k = {k}", "a share in (0, 1]", "pass 0.2 for 20 %")
    count = mask.sum(axis=1)
    take = np.maximum(1, np.floor(k * count + 1e-9).astype(np.int64))  # 0.29 * 100 is 28.999999999999996
    ordered = np.sort(np.where(mask, values, np.inf), axis=1)
    chosen = np.arange(mask.shape[1]) < take[:, None]
    total = np.where(chosen & np.isfinite(ordered), ordered, 0.0).sum(axis=1)
    return np.where(count > 0, total / take, np.nan)


def _tables(mask: ArrayLike, **tables: ArrayLike) -> tuple[NDArray[np.bool_], list[Array]]:
    """Check tables of shape (n, T) that are finite inside a mask of bool."""
    m = np.asarray(mask)
    out = [np.asarray(table, dtype=np.float64) for table in tables.values()]
    for name, table in zip(tables, out, strict=True):
        if m.ndim != 2 or m.dtype != np.bool_ or table.shape != m.shape:
            raise InputError(
                f"{name} of shape {table.shape}, mask of shape {m.shape} and type {m.dtype}",
                "tables and a mask of bool of one shape (n, T)", "pass the fields of token_statistics",
            )  # fmt: skip
        if not np.isfinite(table[m]).all():
            raise InputError(f"{name} not finite inside the mask", "finite numbers", "find where the model diverged")
    return m, out


def min_k(log_probs: ArrayLike, mask: ArrayLike, *, k: float = 0.2) -> Array:
    """Mean of the ``max(1, floor(k n))`` smallest ``log p(y_t)`` of each sample, shape (n,), at most 0.

    Parameters
    ----------
    log_probs : array_like, shape (n, T)
    mask : array_like of bool, shape (n, T)
    k : float
        Share of the tokens, in (0, 1]; 1 is `loss_score`.

    Returns
    -------
    ndarray of float64
        NaN for a sample without a token.

    Raises
    ------
    InputError
        When shapes differ, a value inside the mask is not finite, or k is outside its range.
    """
    m, (table,) = _tables(mask, log_probs=log_probs)
    return _smallest(table, m, k)


def min_k_plus_plus(
    log_probs: ArrayLike, mean: ArrayLike, std: ArrayLike, mask: ArrayLike, *, k: float = 0.2, floor: float = 1e-3
) -> Array:
    """Mean of the ``max(1, floor(k n))`` smallest ``(log p(y_t) - mu_t) / max(sigma_t, floor)``, shape (n,).

    Parameters
    ----------
    log_probs, mean, std : array_like, shape (n, T)
        Of `upright.language.logprobs.token_statistics`: mu and sigma weigh the vocabulary by the model's probabilities.
    mask : array_like of bool, shape (n, T)
    k : float
        As for `min_k`.
    floor : float
        Least standard deviation, above 0; published code bounds the variance by 1e-6.

    Returns
    -------
    ndarray of float64
        NaN for a sample without a token.

    Raises
    ------
    InputError
        As for `min_k`; also when floor is not above 0.
    """
    if not floor > 0:
        raise InputError(f"floor = {floor}", "a number above 0", "leave it at 1e-3")
    m, (table, mu, sigma) = _tables(mask, log_probs=log_probs, mean=mean, std=std)
    inside = np.where(m, sigma, 1.0)
    return _smallest(np.where(m, table - mu, 0.0) / np.maximum(inside, floor), m, k)


def membership_auc(forget: ArrayLike, holdout: ArrayLike) -> MembershipAuc:
    """``P(s_forget > s_holdout) + P(s_forget = s_holdout) / 2`` over scores of this module.

    Parameters
    ----------
    forget, holdout : array_like, shape (n,) and (m,)
        Scores of samples to be forgotten and of samples that no model saw, from one distribution.

    Raises
    ------
    InputError
        When a side has no defined score.
    """
    sides = [_vector(name, side) for name, side in (("forget", forget), ("holdout", holdout))]
    known = [side[~np.isnan(side)] for side in sides]
    n, m = known[0].size, known[1].size
    if not n or not m:
        raise InputError(f"{n} and {m} defined scores", "at least one on either side", "find out why they are NaN")
    value = auc(np.concatenate(known), np.repeat([True, False], [n, m]))
    undefined = sum(side.size for side in sides) - n - m
    return MembershipAuc(value, abs(value - 0.5), math.sqrt((n + m + 1) / (12 * n * m)), n, m, undefined)


def privleak(auc: float, retain_auc: float) -> float:
    """``100 (a - a_retain) / a_retain`` with ``a = 1 - AUC``: 0 is ideal, below 0 under-, above 0 over-unlearning.

    Parameters
    ----------
    auc, retain_auc : float
        In [0, 1]: AUC of `membership_auc`, of the model and of one that never saw the forgotten samples. The published
        definition counts held-out samples as positive, hence ``1 - AUC``.

    Returns
    -------
    float
        From -100 (a fully known forget set) to ``100 (1 / a_retain - 1)``. That is 100 for a retain model at 1/2 and
        without bound as its AUC nears 1, so values of different retain models do not compare. NaN where its AUC is 1.

    Raises
    ------
    InputError
        When an AUC is outside [0, 1].
    """
    for name, value in (("auc", auc), ("retain_auc", retain_auc)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name} = {value}", "a number in [0, 1]", "pass the auc of membership_auc")
    a, base = 1.0 - auc, 1.0 - retain_auc
    return 100.0 * (a - base) / base if base > 0 else float("nan")


def over_unlearned(found: MembershipAuc, *, margin: float = 0.1, z: float = 3.0) -> bool:
    """``AUC < 1/2 - max(margin, z * standard_error)``: forgotten samples stand out as *less* likely than unseen ones.

    Parameters
    ----------
    found : MembershipAuc
    margin : float
        By how much AUC may fall below 1/2 in any case, in [0, 1/2].
    z : float
        And in standard errors, so that small samples raise no flag by chance.

    Raises
    ------
    InputError
        When margin or z is outside its range.
    """
    if not 0.0 <= margin <= 0.5 or not z >= 0:
        raise InputError(f"margin = {margin}, z = {z}", "margin in [0, 1/2] and z of at least 0", "correct it")
    return found.auc < 0.5 - max(margin, z * found.standard_error)
