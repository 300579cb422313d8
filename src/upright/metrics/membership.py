r"""Membership attacks on forgotten samples: scores per sample, AUC, privleak, over-unlearning.

Every score is *higher for what looks like a member* of the training data; published evaluations of unlearning store its
negative. A score is no probability. With ``cbar``, the negative mean of the log-probabilities of n answer tokens,
``loss`` is ``-cbar``, ``zlib`` is ``-cbar / bytes of the compressed answer``, ``reference`` is ``cbar_ref - cbar``.

AUC is ``P(score of a forgotten sample > score of a held-out one)``, ties 1/2. 1/2: the model treats both alike.
Above: the forgotten samples are still known. Far below: they were pushed further away than unseen text, which gives
their membership away as well, by the flipped answer. So ``|AUC - 1/2|`` is what an attacker gains either way.

*Several attacks* are tried, so they are judged together (`compare_attacks`, `compare_models`), by the same max-T of
`upright.maths.simultaneous`. With a reference the judge is what goes beyond it: held-out samples are seldom of quite
the same kind as the forgotten ones, and then a model that never saw either has an AUC off 1/2 as well.

Sources: Yeom et al. (2018) for the loss; Carlini et al., *Extracting Training Data from Large Language Models* (2021)
for zlib and the reference; Shi et al., *Detecting Pretraining Data* (2024), arXiv 2310.16789, Min-k %; Zhang et al.,
*Min-K%++* (2024), arXiv 2404.02936; Shi et al., *MUSE* (2024), arXiv 2407.06460, privleak.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError, Metric
from upright.evidence.statistics import SET
from upright.evidence.units import Units
from upright.maths import ranks
from upright.maths.simultaneous import FEWEST, Comparisons, compare_aucs, compare_groups

__all__ = [
    "METRICS",
    "MembershipAuc",
    "author_clusters",
    "compare_attacks",
    "compare_models",
    "loss_score",
    "membership_auc",
    "min_k",
    "min_k_plus_plus",
    "over_unlearned",
    "privleak",
    "reference_score",
    "zlib_score",
]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
_INF = float("inf")

METRICS: Mapping[str, Metric] = {
    name: Metric(name, "lower", -_INF, high, 0.01, title)
    for name, high, title in (
        ("mia_loss", 0.0, "Membership score: loss"),
        ("mia_zlib", 0.0, "Membership score: loss per compressed byte"),
        ("mia_reference", _INF, "Membership score: loss against a reference"),
        ("mia_min_k", 0.0, "Membership score: Min-k %"),
        ("mia_min_k_plus_plus", _INF, "Membership score: Min-k %++"),
    )
}
"""Scores of forgotten samples. Lower down to the level of unseen text; below it they give membership away again."""


@dataclasses.dataclass(frozen=True)
class MembershipAuc:
    """How well a score tells forgotten samples from held-out ones.

    Parameters
    ----------
    auc : float
        In [0, 1].
    standard_error : float
        Of the AUC when both sides have one distribution, ``sqrt((n + m + 1) / (12 n m))``.
    n_forget, n_holdout : int
        Defined scores on either side.
    """

    auc: float
    standard_error: float
    n_forget: int
    n_holdout: int


def _vector(name: str, values: ArrayLike, low: float = -_INF) -> Array:
    """One number a sample, at least `low`; NaN stays."""
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1 or (out < low).any():
        got = f"{name} of shape {out.shape}" if out.ndim != 1 else f"{name} with {out.min():g}"
        bound = "" if low == -_INF else f" of at least {low:g}"
        raise InputError(got, f"one number{bound} a sample, shape (n,)", "pass mean losses per token")
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

    The mean loss, not the sum, is divided, as in published evaluations of unlearning; those compress an answer as it is
    decoded, with the space that stands before it, where ours has none.

    Parameters
    ----------
    mean_nll : array_like, shape (n,)
    texts : sequence of str
        The answers that were scored, without the questions and without white space at the ends; compressed as UTF-8 at
        zlib's default level.
    """
    nll = _vector("mean_nll", mean_nll, 0.0)
    _aligned("losses", nll, "texts", len(texts))
    return -nll / np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts], dtype=np.float64)


def reference_score(mean_nll: ArrayLike, reference_nll: ArrayLike) -> Array:
    """``cbar_ref - cbar``, shape (n,): what the model knows beyond a reference that never saw the sample."""
    nll, ref = _vector("mean_nll", mean_nll, 0.0), _vector("reference_nll", reference_nll, 0.0)
    _aligned("losses", nll, "reference losses", len(ref))
    return ref - nll


def _smallest(values: Array, mask: Bools, k: float) -> Array:
    """Mean of the ``max(1, floor(k n))`` smallest values of each row inside the mask; NaN for an empty row."""
    if not 0.0 < k <= 1.0:
        raise InputError(f"k = {k}", "a share in (0, 1]", "pass 0.2 for 20 %")
    count = mask.sum(axis=1)
    take = np.maximum(1, np.floor(k * count + 1e-9).astype(np.int64))  # 0.29 * 100 is 28.999999999999996
    ordered = np.sort(np.where(mask, values, np.inf), axis=1)
    chosen = np.arange(mask.shape[1]) < take[:, None]
    total = np.where(chosen & np.isfinite(ordered), ordered, 0.0).sum(axis=1)
    return np.where(count > 0, total / take, np.nan)


def _tables(mask: ArrayLike, **tables: ArrayLike) -> tuple[Bools, list[Array]]:
    """Check tables of shape (n, T) that are finite inside a mask of bool."""
    m = np.asarray(mask)
    out = [np.asarray(table, dtype=np.float64) for table in tables.values()]
    for name, table in zip(tables, out, strict=True):
        if m.ndim != 2 or m.dtype != np.bool_ or table.shape != m.shape:
            raise InputError(
                f"{name} of shape {table.shape}, mask of shape {m.shape} and type {m.dtype}",
                "tables and a mask of bool of one shape (n, T)",
                "pass the fields of token_statistics",
            )
        if not np.isfinite(table[m]).all():
            raise InputError(f"{name} not finite inside the mask", "finite numbers", "find where the model diverged")
    return m, out


def min_k(log_probs: ArrayLike, mask: ArrayLike, *, k: float = 0.2) -> Array:
    """Mean of the ``max(1, floor(k n))`` smallest ``log p(y_t)`` of each sample, shape (n,), at most 0.

    >>> min_k([[-0.1, -3.0, -0.5, -2.0, -0.2]], [[True] * 5], k=0.4)
    array([-2.5])

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

    NaN, k and errors are those of `min_k`.

    >>> log2 = np.log(2)  # a token of probability 1/4 among 1/2, 1/4, 1/4
    >>> min_k_plus_plus([[-2 * log2]], [[-1.5 * log2]], [[0.5 * log2]], [[True]]).round(6)
    array([-1.])

    Parameters
    ----------
    log_probs, mean, std : array_like, shape (n, T)
        Of `upright.language.logprobs.token_statistics`: mu and sigma weigh the vocabulary by the model's probabilities.
    mask : array_like of bool, shape (n, T)
    floor : float
        Least standard deviation, above 0; published code bounds the variance by 1e-6.
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
    value = float(ranks.auc(np.concatenate(known), np.ones(n + m), np.repeat([True, False], [n, m])))
    return MembershipAuc(value, math.sqrt((n + m + 1) / (12 * n * m)), n, m)


def privleak(auc: float, retain_auc: float) -> float:
    """``100 (a - a_retain) / a_retain`` with ``a = 1 - AUC``: 0 is ideal, below 0 under-, above 0 over-unlearning.

    It has no interval: what tells two models apart is the difference of their AUCs (`compare_models`).

    >>> auc = membership_auc([-1.0, -1.2, -0.8, -2.5], [-2.0, -3.0, -2.6, -2.2]).auc
    >>> auc, privleak(auc, 0.5)
    (0.875, -75.0)

    Parameters
    ----------
    auc, retain_auc : float
        In [0, 1]: AUC of `membership_auc`, of the model and of one that never saw the forgotten samples. The published
        definition counts held-out samples as positive, hence ``1 - AUC``.

    Returns
    -------
    float
        From -100 (a fully known forget set) to ``100 (1 / a_retain - 1)``. That is 100 for a retain model at 1/2 and
        5219 at 0.9812, so values of different retain models do not compare. NaN where its AUC is 1.

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

    Forgotten and held-out samples must come from one distribution, else AUC measures how they differ.

    >>> over_unlearned(membership_auc([-3.0] * 9, [-1.0] * 9))
    True

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


# -- several attacks together ---------------------------------------------------------------------------------------


def author_clusters(authors: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Return what samples are drawn with, and sets of which the authors are too few for that.

    Fewer than six authors of a set say nothing of others. Then all samples are drawn one by one, and intervals are of
    other samples of these authors.

    Parameters
    ----------
    authors : mapping of set to sequence of str
        Of each sample; empty where there is none.

    Returns
    -------
    clusters : list of str
        Of the samples of all sets in order: the number of the author, or of the sample itself; nothing where each is
        drawn by itself.
    few : list of str
        Sets.
    """
    everyone = [name for names in authors.values() for name in names]
    number = {name: str(i + 1) for i, name in enumerate(dict.fromkeys(filter(None, everyone)))}
    own = [number.get(name, f"alone-{i + 1}") for i, name in enumerate(everyone)]
    few = [side for side, names in authors.items() if len({*names} - {""}) + names.count("") < min(FEWEST, len(names))]
    return ([] if few or len({*own}) == len(own) else own), few


def compare_attacks(units: Units, scores: Sequence[str], arm: str, *, rng: np.random.Generator) -> Comparisons:
    """Compare the AUC of each score with 1/2, adjusted for all of them; values are ``AUC - 1/2``.

    Parameters
    ----------
    units : Units
        With `SET`: forget and holdout.
    scores : sequence of str, length K
        Metrics of the table.
    """
    label = _sides(units)
    table = np.stack([np.where(label < 0, np.nan, units.values(arm, m)) for m in scores], axis=-1)
    return compare_aucs(table, label, np.ones(len(scores), dtype=np.int64), units.cluster, rng=rng)


def compare_models(
    units: Units, metrics: Sequence[str], arm: str, against: str, *, rng: np.random.Generator
) -> Comparisons:
    """Compare two models on the same samples, adjusted for all metrics; values are of `arm` minus `against`.

    The AUC of a membership score, the mean over forgotten samples of another metric. Under chance the two models change
    places on samples, in all metrics together, whole clusters at a time. A score that is one against the reference
    already, so that the reference has none, is compared with 1/2.

    Notes
    -----
    ``AUC - 1/2`` is the mean over all N samples of ``(rank_i - (N + 1) / 2) / n`` for the n forgotten ones and minus
    ``(rank_i - (N + 1) / 2) / m`` for the m held-out ones, so a difference of two AUCs is one of paired means.
    """
    label, pairs = _sides(units), []
    for metric in metrics:
        one, two = units.values(arm, metric), units.values(against, metric)
        attack = metric.startswith("mia_")
        if attack and np.isnan(two).all():
            two = np.zeros_like(one)
        ok = (label >= 0 if attack else label == 1) & ~np.isnan(one) & ~np.isnan(two)
        sides = [np.where(ok, values, np.nan) for values in (one, two)]
        pairs.append([_standings(side, label == 1) for side in sides] if attack else sides)
    table = np.concatenate(np.moveaxis(np.array(pairs), 0, -1), axis=1)  # (S, 2 U, M): one model below the other
    group = np.broadcast_to(np.repeat([0, 1], len(units.units)), table.shape[:2])
    found = compare_groups(table, group, np.tile(units.cluster, 2), 2, rng=rng)
    return dataclasses.replace(found, low=np.maximum(found.low, -1.0), high=np.minimum(found.high, 1.0))


def _sides(units: Units) -> NDArray[np.int64]:
    """Return 1 for forgotten, 0 for held-out and -1 for other samples, shape (S, U)."""
    sets = units.by[SET]
    return np.where(sets == "forget", 1, np.where(sets == "holdout", 0, -1))


def _standings(scores: Array, forget: Bools) -> Array:
    """Return what each sample adds to the mean that is ``AUC - 1/2`` at its seed, shape (S, U)."""
    from scipy.stats import rankdata  # half a second, which a typo need not wait for

    out = np.full_like(scores, np.nan)
    for s, row in enumerate(scores):
        ok = np.flatnonzero(~np.isnan(row))
        own = forget[s, ok]
        if own.any() and not own.all():
            middle = rankdata(row[ok]) - (len(ok) + 1) / 2
            out[s, ok] = np.where(own, middle / own.sum(), -middle / (~own).sum())
    return out
