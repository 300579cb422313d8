r"""Forgetting and what is left: probability, ROUGE-L, truth ratio, utility, forget quality, memorisation.

Notation: ``cbar = -(1 / n) sum_t log p(y_t | y_<t)`` of an answer, ``exp(-cbar)`` its probability.

Everything per question comes first, as an array of shape (n,); the caller names the reduction. A value that is not
defined is NaN and stays in its place; `mean_of`, `forget_quality` and the like count these.

A good score on the forget side is the level of a model that never saw the data, not the best number possible: see the
over-unlearning flag of `upright.metrics.membership`.

Sources: Maini et al., *TOFU* (2024), arXiv 2401.06121; for memorisation Tirumala et al., *Memorization Without
Overfitting* (2022), and for extraction strength Carlini et al., *Extracting Training Data from Large Language
Models* (2021).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError, Metric

__all__ = [
    "METRICS", "UTILITY", "ForgetQuality", "Mean", "exact_memorisation", "extraction_strength", "forget_quality",
    "mean_of", "model_utility", "probability", "rouge_l_recall", "truth_ratio",
]  # fmt: skip

Array = NDArray[np.float64]
Form = Literal["ratio", "forget", "retain", "probability"]

METRICS: Mapping[str, Metric] = {
    name: Metric(name, direction, 0.0, 1.0, 0.01, title)  # type: ignore[arg-type]
    for name, direction, title in (
        ("forget_probability", "lower", "Probability of forgotten answers"),
        ("retain_probability", "higher", "Probability of retained answers"),
        ("forget_rouge_l", "lower", "ROUGE-L recall of forgotten answers"),
        ("retain_rouge_l", "higher", "ROUGE-L recall of retained answers"),
        ("forget_truth_ratio", "higher", "Truth ratio, forget side"),
        ("retain_truth_ratio", "higher", "Truth ratio, retain side"),
        ("forget_truth_probability", "lower", "Share of the true answer, forget side"),
        ("retain_truth_probability", "higher", "Share of the true answer, retain side"),
        ("exact_memorisation", "lower", "Exact memorisation"),
        ("extraction_strength", "lower", "Extraction strength"),
    )
}
"""What each value per question means: direction, bounds, margin and title. The last two are of forgotten answers."""

UTILITY = tuple(
    f"{data}_{what}" for data in ("retain", "authors", "facts") for what in ("probability", "rouge_l", "truth_ratio")
)
"""The nine parts of TOFU's utility: retained, real-author and world-fact questions, three scores each."""


@dataclass(frozen=True)
class Mean:
    """A mean and what it is a mean of.

    Parameters
    ----------
    value : float
        Over the defined values; NaN where there is none.
    n, undefined : int
        Defined values, and values that were NaN.
    """

    value: float
    n: int
    undefined: int


@dataclass(frozen=True)
class ForgetQuality:
    """How well truth ratios of a model match those of a model that never saw the forgotten data.

    Parameters
    ----------
    p : float
        In [0, 1], higher is better: small when the two can be told apart.
    distance : float
        D, the largest distance of the two distribution functions, in [0, 1].
    n_model, n_retain, undefined : int
        Defined truth ratios on either side, and how many were NaN.
    method : str
    """

    p: float
    distance: float
    n_model: int
    n_retain: int
    undefined: int
    method: str


def _losses(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> Array:
    """Mean losses as float64, after checking the number of axes and the sign; NaN stays."""
    out = np.asarray(values, dtype=np.float64)
    if out.ndim not in ndims or (out.ndim == 2 and out.shape[1] < 1):
        wanted = " or ".join({1: "(n,)", 2: "(n, k)"}[d] for d in ndims)
        raise InputError(f"{name} of shape {out.shape}", f"shape {wanted}, k >= 1", "pass one row a question")
    if (out < 0).any():
        raise InputError(
            f"{name} with {out[out < 0][0]:g}", "mean losses per token, at least 0",
            "pass -log p divided by the number of tokens, not log p and not a probability",
        )  # fmt: skip
    return out


def mean_of(values: ArrayLike) -> Mean:
    """Mean over the defined values of shape (n,), with the number of those and of the undefined ones."""
    array = np.asarray(values, dtype=np.float64).ravel()
    known = array[~np.isnan(array)]
    return Mean(float(known.mean()) if known.size else float("nan"), int(known.size), int(array.size - known.size))


def probability(mean_nll: ArrayLike) -> Array:
    """``exp(-cbar)``: the geometric mean of the token probabilities, shape (n,), in [0, 1].

    Parameters
    ----------
    mean_nll : array_like, shape (n,)
        ``cbar`` of each answer, at least 0; ``inf`` gives 0.

    Raises
    ------
    InputError
        When a loss is negative or the shape is another.
    """
    return np.exp(-_losses("mean_nll", mean_nll, (1,)))


def _same_length(first: NDArray[Any], second: NDArray[Any]) -> None:
    """Refuse two tables with another number of questions."""
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} questions", "one row a question in both", "align the two")


# -- ROUGE-L --------------------------------------------------------------------------------------------------------


def _stemmer() -> Callable[[str], str]:
    """Return the Porter stemmer of nltk."""
    try:
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise InputError(
            "stem=True without the package nltk", "nltk installed, or stem=False",
            "pip install nltk; stem=False gives values that published ones are not comparable with",
        ) from None  # fmt: skip
    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


def _words(text: str, stem: Callable[[str], str] | None) -> list[str]:
    """Lower-case runs of a-z and 0-9; those longer than 3 are stemmed."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return words if stem is None else [stem(w) if len(w) > 3 else w for w in words]


def _lcs(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bits: one integer operation a word of `second`.

    Source: Hyyrö, *Bit-Parallel LCS-Length Computation Revisited* (2004).
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & full
    return len(first) - row.bit_count()


def rouge_l_recall(references: Sequence[str], outputs: Sequence[str], *, stem: bool = True) -> Array:
    """``LCS(reference, output) / len(reference)`` in words: how much of the answer appears, in order; shape (n,).

    Words are runs of a-z and 0-9 in lower case, so accents split words and other alphabets have none. With `stem` words
    of more than three letters are cut to their Porter stem, as in the published logs; without, 16 % of the answers of a
    retain-only model score lower there, by 0.007 in the mean and up to 0.10 (and by 0.5 where the reference is short).
    Long outputs are not penalised, and a broken model scores 0 too: 0 alone is no evidence of forgetting.

    >>> rouge_l_recall(["the author was born in Baku"], ["Born in Baku, the author writes"], stem=False)
    array([0.5])

    Parameters
    ----------
    references, outputs : sequence of str, length n
        Right answers, and what the model wrote (greedy decoding in TOFU).
    stem : bool
        Needs the package nltk.

    Returns
    -------
    ndarray of float64
        In [0, 1]; NaN for a reference without words.

    Raises
    ------
    InputError
        When lengths differ, an entry is no text, or nltk is missing. It never goes on without stems in silence.

    Source: Lin, *ROUGE* (2004).
    """
    if isinstance(references, str) or isinstance(outputs, str) or len(references) != len(outputs):
        got = "one text" if isinstance(references, str) or isinstance(outputs, str) else "sequences of two lengths"
        raise InputError(got, "two sequences of texts of one length", "pass one reference an output")
    cut = _stemmer() if stem else None
    out = np.full(len(references), np.nan)
    pairs: Any = zip(references, outputs, strict=True)
    for i, (reference, output) in enumerate(pairs):
        if not isinstance(reference, str) or not isinstance(output, str):
            kind = type(output if isinstance(reference, str) else reference).__name__
            raise InputError(f"entry {i} of type {kind}", "texts", "decode the tokens first")
        words = _words(reference, cut)
        if words:
            out[i] = _lcs(words, _words(output, cut)) / len(words)
    return out


# -- truth ratio, forget quality, utility ---------------------------------------------------------------------------


def truth_ratio(paraphrased: ArrayLike, perturbed: ArrayLike, form: Form = "ratio") -> Array:
    """``r = exp(cbar_paraphrased - mean_k cbar_perturbed,k)``: false answers against the true one, shape (n,).

    =================  ==========================  ============================================================
    ``ratio``          ``r`` in [0, inf]           what forget quality compares
    ``forget``         ``min(r, 1 / r)`` in [0, 1] 1 when true and false answers are equally likely
    ``retain``         ``max(0, 1 - r)`` in [0, 1] 1 when false answers are impossible beside the true one
    ``probability``    ``1 / (1 + r)`` in [0, 1]   the newer form, ``p / (p + p_false)``; 1/2 when equally likely
    =================  ==========================  ============================================================

    The false probability is ``exp(-mean_k cbar_k)``, the geometric mean over false answers, as in the published code;
    an arithmetic mean of probabilities would be another number. Other code has r upside down, which changes ``retain``.

    >>> log2, log8 = np.log(2), np.log(8)
    >>> [float(truth_ratio([log2], [[log2, log8]], form)[0].round(4)) for form in ("ratio", "retain", "probability")]
    [0.5, 0.5, 0.6667]

    Parameters
    ----------
    paraphrased : array_like, shape (n,) or (n, m)
        Mean loss per token of the paraphrased true answer; of several, their mean is taken.
    perturbed : array_like, shape (n, k)
        Of k false answers.
    form : {"ratio", "forget", "retain", "probability"}

    Returns
    -------
    ndarray of float64
        NaN where both sides are impossible.

    Raises
    ------
    InputError
        When a loss is negative, shapes do not fit, or the form is unknown.
    """
    true, false = _losses("paraphrased", paraphrased, (1, 2)), _losses("perturbed", perturbed, (2,))
    _same_length(true, false)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is undefined; a huge ratio is inf
        log_r = (true if true.ndim == 1 else true.mean(axis=1)) - false.mean(axis=1)
        out: Array
        if form == "ratio":
            out = np.exp(log_r)
        elif form == "forget":
            out = np.exp(-np.abs(log_r))
        elif form == "retain":
            out = np.maximum(0.0, -np.expm1(log_r))
        elif form == "probability":
            out = 1.0 / (1.0 + np.exp(log_r))
        else:
            raise InputError(f"form = {form!r}", "'ratio', 'forget', 'retain' or 'probability'", "choose one of them")
    return out


def forget_quality(
    model: ArrayLike, retain: ArrayLike, *, method: Literal["exact", "asymptotic"] = "exact"
) -> ForgetQuality:
    """P-value of ``D = sup_x |F_model(x) - F_retain(x)|`` for truth ratios of two models, two-sided.

    Published values are exact ones: 1.83e-21 where the asymptotic p is 8.50e-22 (llama2-7b trained on all of TOFU
    against `retain90`, D = 0.397, 300 questions each). Ratios may be given as r or as 1 / r, the same way on both
    sides. With n = 40 questions p can take few values, and D moves in steps of 1/40: read D and n beside it. p is no
    measure of size, and a collapsed model has a small one too. The test compares distributions, not questions; both
    models must still be asked the same ones. In the published logs the full model was asked questions 0 to 299 of
    `forget10`, `retain95` 200 to 399 and `retain99` 360 to 399: only `retain90` compares row by row.

    >>> found = forget_quality([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])  # as far apart in 2 of the 20 ways to deal six values
    >>> found.distance, round(found.p, 4)
    (1.0, 0.1)

    Parameters
    ----------
    model, retain : array_like, shape (n,) and (m,)
        ``truth_ratio(..., "ratio")`` of the two models.
    method : {"exact", "asymptotic"}
        ``asymptotic`` for samples so large that the exact computation fails.

    Raises
    ------
    InputError
        When a side has no defined value, or the exact computation fails.
    """
    from scipy.stats import ks_2samp

    if method not in ("exact", "asymptotic"):
        raise InputError(f"method = {method!r}", "'exact' or 'asymptotic'", "choose one of the two")
    sides = [np.asarray(side, dtype=np.float64).ravel() for side in (model, retain)]
    known = [side[~np.isnan(side)] for side in sides]
    if not known[0].size or not known[1].size:
        got = f"{known[0].size} and {known[1].size} defined truth ratios"
        raise InputError(got, "at least one on either side", "find out why they are NaN")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        test = ks_2samp(*known, method="exact" if method == "exact" else "asymp")
    if caught and test.pvalue < 0.99:  # scipy goes over to the asymptotic p by itself, for 1 + 1e-16 as well
        raise InputError(f"no exact p for {known[0].size} and {known[1].size} values", "smaller samples",
                         "pass method='asymptotic'")  # fmt: skip
    undefined = sum(side.size - one.size for side, one in zip(sides, known, strict=True))
    return ForgetQuality(
        float(test.pvalue), float(test.statistic), known[0].size, known[1].size, int(undefined), method
    )


def model_utility(parts: Mapping[str, float], of: Sequence[str] = UTILITY) -> float:
    """``len(of) / sum_j 1 / part_j``: harmonic mean of named means, in [0, 1]; 0 when one is 0, NaN when one is.

    TOFU's parts are probability, ROUGE-L recall and truth ratio of retained, real-author and world-fact questions; of
    the last two, the probability is that of the right answer among the given choices. The weakest part rules it, so a
    model may lose much of one and gain elsewhere: show the parts.

    >>> round(model_utility({"a": 0.5, "b": 0.25}, of=["a", "b"]), 4)
    0.3333

    Parameters
    ----------
    parts : mapping of str to float
        Means in [0, 1], such as ``mean_of(values).value``; more than are asked for is fine.
    of : sequence of str
        Which of them enter. Nine by default; any subset is another metric: name it where it is reported.

    Raises
    ------
    InputError
        When a part is missing, repeated or outside [0, 1], or none is named.
    """
    missing = [name for name in of if name not in parts]
    if missing or not of or len(set(of)) != len(of):
        got = f"no part {missing[0]!r}" if missing else f"of = {tuple(of)}"
        raise InputError(
            got, "different names of given parts, one at least", "pass the parts, or name a subset in `of`"
        )
    values = np.array([float(parts[name]) for name in of])
    outside = (values < 0) | (values > 1)
    if outside.any():
        name = of[int(outside.argmax())]
        raise InputError(f"{name} = {parts[name]}", "means in [0, 1]", "pass probabilities, recalls and truth ratios")
    if np.isnan(values).any():
        return float("nan")
    return float(len(values) / (1.0 / values).sum()) if values.all() else 0.0


# -- memorisation under teacher forcing -----------------------------------------------------------------------------


def _tokens(best: ArrayLike, mask: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Check two tables of bool of one shape (n, T)."""
    a, m = np.asarray(best), np.asarray(mask)
    if a.ndim != 2 or a.shape != m.shape or a.dtype != np.bool_ or m.dtype != np.bool_:
        raise InputError(
            f"best of shape {a.shape} and type {a.dtype}, mask of shape {m.shape} and type {m.dtype}",
            "two arrays of bool of one shape (n, T)", "pass best and mask of token_statistics",
        )  # fmt: skip
    return a & m, m


def exact_memorisation(best: ArrayLike, mask: ArrayLike) -> Array:
    """``#{t : y_t = argmax p(. | y_<t)} / n`` over the answer tokens, shape (n,), in [0, 1]; NaN for an empty answer.

    Many tokens follow from the words before, so a model that never saw an answer is above 0: compare with one.

    >>> exact_memorisation([[False, True, False, True, True]], [[True] * 5])
    array([0.6])

    Parameters
    ----------
    best, mask : array_like of bool, shape (n, T)
        Whether the argmax is the label, and where the answer stands. Every token inside the mask counts: leave the end
        of sequence out, as `upright.language.evaluation` and published evaluations do.

    Raises
    ------
    InputError
        When shapes or types differ.
    """
    right, m = _tokens(best, mask)
    count = m.sum(axis=1)
    return np.where(count > 0, right.sum(axis=1) / np.maximum(count, 1), np.nan)


def extraction_strength(best: ArrayLike, mask: ArrayLike) -> Array:
    """``1 - k / n`` with the smallest k in 0..n so that all answer tokens from k on are argmax; shape (n,).

    1 when the whole answer follows from the question, 0 when the last token is wrong. Published code stops at n - 1 and
    gives 1 / n in that case, by construction. At most `exact_memorisation`, whose parameters, undefined values and
    errors it has.

    >>> extraction_strength([[False, True, False, True, True]], [[True] * 5])
    array([0.4])
    """
    right, m = _tokens(best, mask)
    # From the end: answer tokens until the first wrong one. What is no answer breaks nothing and counts nothing.
    unbroken = np.cumprod((right | ~m)[:, ::-1], axis=1, dtype=np.int64).astype(bool)
    count = m.sum(axis=1)
    suffix = (unbroken & m[:, ::-1]).sum(axis=1)
    return np.where(count > 0, suffix / np.maximum(count, 1), np.nan)
