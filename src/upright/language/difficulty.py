r"""MRD, memory removal difficulty: how much of a sample's log-likelihood survives small noise on the weights.

Definition
----------
With ``P_t(theta) = log p(x_t | x_<t)`` and ``f_x(theta') = sum_t P_t(theta') / P_t(theta)``, so ``f_x(theta) = n``,

    MRD(x) = | E_delta [ n - f_x(theta + delta) ] |,      delta ~ N(0, diag(sigma^2))
           = | sum_w (sigma_w^2 / 2) Tr_w Hess f_x(theta) | + O(sigma^4)

Small is stable under noise, which the paper reads as hard to unlearn; large is easy. Whether it predicts the effort of
unlearning is for each model to be checked: in a small test of ours it did not.

Estimators
----------
==============  ================================================  =====================================================
``antithetic``  ``| mean_k [(n - f(+z_k)) + (n - f(-z_k))]/2 |``  our default: the first-order term cancels in each pair
``plain``       ``| mean_k (n - f(+z_k)) |``                      the definition as it stands (reconstructed)
``mean_abs``    ``mean_k | n - f(+z_k) |``                        a public re-implementation: it measures the gradient
                                                                  norm ``sqrt(2/pi) sigma ||grad f||``, no curvature
==============  ================================================  =====================================================

All samples meet the same noise, so differences between samples are not noise of the draws, and neither the order of
samples nor the batch size changes a score beyond rounding.

Source: Feng et al., *A Neuro-inspired Interpretation of Unlearning in LLMs through Sample-level Unlearning Difficulty*
(2025), arXiv 2504.06658. The paper gives neither sigma nor the number of draws where it could be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import rankdata
from torch import nn

from upright.contract import InputError
from upright.data.forget import Record
from upright.language.encoding import Encoded, Scope, Template
from upright.language.engines import Engine, HookEngine, InPlaceEngine, noisy_parameters
from upright.language.evaluation import Speaker
from upright.language.noise import LAWS, Law, Sigma, parse_sigma, rms
from upright.language.reader import Array, Reader, evaluating

__all__ = ["DEFAULT_SIGMA", "ESTIMATORS", "Difficulty", "Estimator", "mrd", "reliability", "score_difficulty"]

Estimator = Literal["antithetic", "plain", "mean_abs"]
ESTIMATORS: tuple[Estimator, ...] = ("antithetic", "plain", "mean_abs")
DEFAULT_SIGMA = "rel:1e-2"
"""Largest of 0.005, 0.01, 0.015, 0.02, 0.03 at which twice the noise gives 4 times the score within 10 % on all of six
tiny Llamas. Five, which ``benchmarks/mrd.py`` trains anew (untrained, half, fully and unevenly trained, eight layers
deep), allow 0.02: ratios 3.91 to 4.26. The sixth, the model that `upright.tasks.forget` teaches 800 records at seed 100
(probability of an answer 0.93), gives 5.02 there and 4.24 at 0.01. Below 0.0003 rounding in float32 spoils the law."""
_FLOOR = 1e-30
_FIRST, _MORE = 4, 2  # probes before the first look at the ranking, and between looks
_SPLITS = 16
_CHECKED = 2  # probes that are drawn again at twice the noise


@dataclass(frozen=True, eq=False)
class Difficulty:
    """MRD of n samples, with what is needed to judge it.

    Parameters
    ----------
    mrd : ndarray, shape (n,)
        At least 0; small is stable.
    signed : ndarray, shape (n,)
        Before the absolute value: ``mean_k (n - f)``. Positive where noise makes the sample more likely on average.
    standard_error : ndarray, shape (n,)
        Over probes; infinite with one. `interval` has the quantile that so few probes take.
    tokens : ndarray of int64, shape (n,)
        Scored tokens of each sample.
    nll : ndarray, shape (n,)
        ``-(1/n) sum_t P_t`` without noise.
    clamped : float
        Share of tokens with a log-probability too near 0 to divide by.
    reliability : float
        Split-half Spearman correlation of the ranking, corrected by Spearman and Brown to the full number of probes;
        NaN where there is no ranking: one probe, fewer than three samples, or all scores alike.
    scaling : float
        Median over samples of estimate(2 sigma) / estimate(sigma): 4 where the second-order law holds, 2 for
        ``mean_abs``. NaN where it was not checked.
    probes, passes : int
        Probes (pairs for ``antithetic``), and forward passes over the data in all.
    sigma, estimator, noise, scope, engine, seed
        As used.
    warnings : tuple of str
        What makes the scores doubtful.
    """

    mrd: Array
    signed: Array
    standard_error: Array
    tokens: NDArray[np.int64]
    nll: Array
    clamped: float
    reliability: float
    scaling: float
    probes: int
    passes: int
    sigma: Sigma
    estimator: Estimator
    noise: Law
    scope: Scope
    engine: Literal["hook", "inplace"]
    seed: int
    warnings: tuple[str, ...] = ()

    @property
    def per_token(self) -> Array:
        """``MRD / n``, shape (n,): MRD is a sum over tokens and grows with length."""
        return self.mrd / self.tokens

    @property
    def interval(self) -> tuple[Array, Array]:
        """95 % interval of each score, ``mrd -+ t(K - 1) standard_error`` and not below 0, shape (n,) each."""
        half = stdtrit(max(self.probes - 1, 1), 0.975) * self.standard_error
        return np.maximum(self.mrd - half, 0.0), self.mrd + half

    def as_dict(self) -> dict[str, Any]:
        """Return settings and aggregates as plain values; no value of a single sample, None for NaN."""
        low, middle, high = (float(q) for q in np.quantile(self.mrd, [0.25, 0.5, 0.75]))
        numbers = {"clamped": self.clamped, "reliability": self.reliability, "scaling": self.scaling}
        return {
            "samples": len(self.mrd), "tokens": int(self.tokens.sum()), "mean": float(self.mrd.mean()),
            "lower_quartile": low, "median": middle, "upper_quartile": high, "mean_nll": float(self.nll.mean()),
            **{k: None if math.isnan(v) else v for k, v in numbers.items()}, "probes": self.probes,
            "passes": self.passes, "sigma": self.sigma, "estimator": self.estimator, "noise": self.noise,
            "scope": self.scope, "engine": self.engine, "seed": self.seed, "warnings": list(self.warnings),
        }  # fmt: skip


def score_difficulty(
    model: nn.Module, encoded: Sequence[Encoded], *, sigma: Sigma = DEFAULT_SIGMA,
    probes: int | Literal["auto"] = "auto", most_probes: int = 64, target: float = 0.9,
    estimator: Estimator = "antithetic", noise: Law = "gaussian", scope: Scope = "answer",
    engine: Literal["auto", "hook", "inplace"] = "auto", batch_size: int = 8,
    parameters: Callable[[str], bool] | None = None, seed: int = 0, pad: int = 0, check_scaling: bool = True,
) -> Difficulty:  # fmt: skip
    """Score samples: ``| mean_k [ (n - f(theta + sigma z_k)) + (n - f(theta - sigma z_k)) ] / 2 |``.

    Parameters
    ----------
    model : Module
        A causal language model in float32 or float64, on one device. Models in half precision or quantised are
        refused: their weights swallow the noise.
    encoded : sequence of Encoded, length n
    sigma : float or str
        Standard deviation of the noise, or ``"rel:c"`` for c times the root mean square of each tensor.
    probes : int or "auto"
        Draws of the noise, pairs for ``antithetic``. ``"auto"`` adds some until `reliability` reaches `target` or
        there are `most_probes`; stopping at a good look flatters the reliability a little.
    estimator : {"antithetic", "plain", "mean_abs"}
        See the module.
    noise : {"gaussian", "rademacher"}
        Law of the noise; the second changes terms of fourth order alone.
    scope : {"answer", "sequence"}
        Tokens that are summed: the answer, or all but the first.
    engine : {"auto", "hook", "inplace"}
        See `upright.language.engines`. ``"auto"`` changes weights in place unless a copy of them does not fit.
    batch_size : int
    parameters : callable, optional
        ``name -> bool``: which tensors get noise, all by default.
    seed : int
        Of the noise. The same seed gives the same bits on the same machine.
    pad : int
        Any token of the vocabulary; padding is masked.
    check_scaling : bool
        Whether two probes are repeated at twice the noise.

    Returns
    -------
    Difficulty

    Raises
    ------
    InputError
        For options outside their range, an empty sample, weights in another precision, logits that are not finite.

    Guarantee
    ---------
    Weights, buffers and modes (training or evaluation) are afterwards what they were, bit for bit, also when the model
    raises.
    """
    _check(encoded, probes, most_probes, target, estimator, noise, scope, engine, batch_size)
    found = noisy_parameters(model, parameters)
    relative, c = parse_sigma(sigma)
    sigmas = {name: c * rms(tensor) if relative else c for name, tensor in found.items()}
    reader = Reader(model, encoded, scope=scope, batch_size=batch_size, pad=pad)
    used = _engine_for(found) if engine == "auto" else engine
    machine: Engine = (HookEngine if used == "hook" else InPlaceEngine)(model, sigmas, seed=seed, law=noise)
    with torch.no_grad(), evaluating(model), torch.autocast(reader.device.type, enabled=False), machine:
        base = reader.read(machine.forward)
        if reader.half:  # autocast inside the model's own forward
            raise InputError(
                "logits in half precision from weights in full precision",
                "a model that computes in float32",
                "take it out of mixed precision: accelerator.unwrap_model(model, keep_fp32_wrapper=False)",
            )
        ask = _Asking(reader, machine, base, estimator)
        values = _probed(ask, probes, most_probes, target, estimator)
        twice = (
            [ask(k, 2.0) for k in range(min(_CHECKED, len(values)))] if check_scaling and any(sigmas.values()) else []
        )
    scores, signed, error = reduce_probes(values, estimator)
    scaling = _scaling(np.array(twice), values, estimator) if twice else math.nan
    clamped = float(np.mean(np.abs(base) < _FLOOR))
    agreed = reliability(values, estimator)
    return Difficulty(
        scores, signed, error, reader.tokens, -np.add.reduceat(base, reader.starts[:-1]) / reader.tokens, clamped,
        agreed, scaling, len(values), reader.passes, sigma, estimator, noise, scope, used, seed,
        _warnings(scores, agreed, scaling, clamped, target, estimator, any(sigmas.values())),
    )  # fmt: skip


def mrd(
    model: Any, tokenizer: Any, records: Sequence[Record], *, template: Template = "auto", **options: Any
) -> Difficulty:
    """Encode records as a `Speaker` does, and score them.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase
    records : sequence of Record, length n
    template : {"auto", "raw", "plain", "chat"}
    **options
        As for `score_difficulty`.

    Raises
    ------
    InputError
        As `score_difficulty`, and when the tokenizer does not belong to the model.
    """
    return score_difficulty(model, Speaker(model, tokenizer, template=template).encode(records), **options)


# -- probes -----------------------------------------------------------------------------------------------------------


class _Asking:
    """Asks the model for the change of every sample under one probe, shape (n,)."""

    def __init__(self, reader: Reader, engine: Engine, base: Array, estimator: Estimator) -> None:
        self.reader, self.engine, self.base = reader, engine, base
        self.below = np.minimum(base, -_FLOOR)  # P_t is at most 0, and is held away from it
        self.signs = (1.0, -1.0) if estimator == "antithetic" else (1.0,)

    def change(self, probe: int, scale: float) -> Array:
        """``n - f(theta + scale sigma z) = sum_t (P_t - P'_t) / P_t``, shape (n,): one pass over the data."""
        with self.engine.noisy(probe, scale):
            moved = self.reader.read(self.engine.forward)
        lost = (self.base - moved) / self.below
        return np.asarray(np.add.reduceat(lost, self.reader.starts[:-1]))

    def __call__(self, probe: int, scale: float = 1.0) -> Array:
        return np.asarray(np.mean([self.change(probe, sign * scale) for sign in self.signs], axis=0))


def _probed(ask: _Asking, probes: int | str, most: int, target: float, estimator: Estimator) -> Array:
    """Return the changes under all probes, shape (K, n)."""
    if isinstance(probes, int):
        return np.array([ask(k) for k in range(probes)])
    values = [ask(k) for k in range(min(_FIRST, most))]
    while len(values) < most:
        agreed = reliability(np.array(values), estimator)
        if math.isnan(agreed) or agreed >= target:  # NaN: there is no ranking that more probes could settle
            break
        values += [ask(k) for k in range(len(values), min(len(values) + _MORE, most))]
    return np.array(values)


def reduce_probes(values: Array, estimator: Estimator) -> tuple[Array, Array, Array]:
    """Return score, signed mean and standard error over probes, each of shape (n,), from values (K, n)."""
    signed = values.mean(axis=0)
    used = np.abs(values) if estimator == "mean_abs" else values
    k = len(values)
    error = used.std(axis=0, ddof=1) / math.sqrt(k) if k > 1 else np.full(values.shape[1], np.inf)
    return np.abs(used.mean(axis=0)), signed, error


def spearman(x: Array, y: Array) -> float:
    """Spearman correlation of two arrays, NaN where one has no order."""
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else math.nan


def reliability(values: Array, estimator: Estimator = "antithetic") -> float:
    """``2 r / (1 + r)``: Spearman r between two halves of the probes, carried to all of them (Spearman and Brown).

    r is the mean over 16 random halvings, fixed by a seed of their own. At r of at most 0 the result is r itself.

    Parameters
    ----------
    values : ndarray, shape (K, n)
        Change of each sample under each probe.
    estimator : {"antithetic", "plain", "mean_abs"}

    Returns
    -------
    float
        In [-1, 1]; NaN with fewer than two probes or three samples, or when all scores are alike.
    """
    k, n = values.shape
    if k < 2 or n < 3:
        return math.nan
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_SPLITS):
        order = rng.permutation(k)
        halves = [reduce_probes(values[part], estimator)[0] for part in (order[: k // 2], order[k // 2 :])]
        found.append(spearman(*halves))
    r = float(np.mean(found))
    return r if math.isnan(r) or r <= 0 else 2 * r / (1 + r)


def _scaling(twice: Array, values: Array, estimator: Estimator) -> float:
    """Median over samples of estimate(2 sigma) / estimate(sigma) over the same probes, NaN where all are 0."""
    one, two = (reduce_probes(v, estimator)[0] for v in (values[: len(twice)], twice))
    known = one > 0
    return float(np.median(two[known] / one[known])) if known.any() else math.nan


def _warnings(
    scores: Array, agreed: float, scaling: float, clamped: float, target: float, estimator: Estimator, noisy: bool
) -> tuple[str, ...]:
    """Say what makes the scores doubtful."""
    found = []
    law = 2.0 if estimator == "mean_abs" else 4.0
    if not noisy:
        found.append("sigma is 0: every score is 0")
    if len(scores) < 3:
        found.append(f"{len(scores)} samples: fewer than three cannot be ranked")
    elif math.isnan(agreed):
        found.append("no ranking: one probe, or all scores are alike")
    elif agreed < target:
        found.append(f"the ranking is noise in part: reliability {agreed:.2f} is below {target:g}; raise most_probes")
    if abs(scaling / law - 1) > 0.1:
        todo = "lower sigma" if scaling < law else "change sigma"
        found.append(f"twice the noise gives {scaling:.2f} times the score where {law:g} is expected: {todo}")
    if clamped > 0.01:
        found.append(f"{clamped:.1%} of the tokens have a probability of 1 within rounding and were clamped")
    return tuple(found)


# -- surroundings -----------------------------------------------------------------------------------------------------


def _engine_for(found: Mapping[str, torch.Tensor]) -> Literal["hook", "inplace"]:
    """Return ``inplace`` where a copy of the noisy tensors takes at most half of the free memory."""
    need = sum(t.numel() * t.element_size() for t in found.values())
    return "inplace" if 2 * need <= _free_memory(next(iter(found.values())).device) else "hook"


def _free_memory(device: torch.device) -> int:
    """Return the free bytes of a device, of the machine for the CPU; what is not known counts as plenty."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 1 << 62


def _check(
    encoded: Sequence[Encoded], probes: Any, most: int, target: float, estimator: str, noise: str, scope: str,
    engine: str, batch_size: int,
) -> None:  # fmt: skip
    if not encoded:
        raise InputError("no samples", "one sample at least", "check the forget set")
    if probes != "auto" and (not isinstance(probes, int) or isinstance(probes, bool) or probes < 1):
        raise InputError(f"probes = {probes!r}", "'auto' or an integer of at least 1", "set probes to one of these")
    for name, number in (("most_probes", most), ("batch_size", batch_size)):
        if number < 1:
            raise InputError(f"{name} = {number}", "an integer of at least 1", f"raise {name}")
    if not 0 < target < 1:
        raise InputError(f"target = {target}", "a reliability between 0 and 1", "pass for example 0.9")
    for name, value, good in (
        ("estimator", estimator, ESTIMATORS), ("noise", noise, LAWS), ("scope", scope, ("answer", "sequence")),
        ("engine", engine, ("auto", "hook", "inplace")),
    ):  # fmt: skip
        if value not in good:
            raise InputError(f"{name} = {value!r}", ", ".join(map(repr, good)), "choose one of these")
