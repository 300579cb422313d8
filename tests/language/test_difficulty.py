"""MRD against exact Hessians and closed forms; invariances, reliability, warnings, refusals."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaForCausalLM

from mrd_sample import Toy, V, close, exact, llama, samples, sigmas_of, token_log_likelihoods, toy
from upright.contract import InputError
from upright.data.forget import tofu_records
from upright.language import difficulty, engines, reader
from upright.language.difficulty import mrd, reliability, score_difficulty
from upright.language.encoding import Encoded, collate, encode_all
from upright.language.noise import rows
from upright.models.tiny import tiny_llama, tiny_tokenizer

# -- theory (spec 1.7) ----------------------------------------------------------------------------------------------


def gradients(model, one):
    """Gradients of f_x = sum_t P_t / P_t(theta), once more differentiable, one for each tensor."""
    with sdpa_kernel(SDPBackend.MATH):  # the one with second derivatives
        p = token_log_likelihoods(model, one)
    return torch.autograd.grad((p / p.detach()).sum(), list(model.parameters()), create_graph=True)


def exact_traces(model, one):
    """Tr of the Hessian of f_x by one Hessian-vector product a weight, for each tensor; and the gradient's norm."""
    parameters, grads = dict(model.named_parameters()), gradients(model, one)
    found = {}
    for (name, weight), grad in zip(parameters.items(), grads, strict=True):
        flat = grad.reshape(-1)
        found[name] = sum(
            float(torch.autograd.grad(flat[i], weight, retain_graph=True)[0].reshape(-1)[i]) for i in range(len(flat))
        )
    return found, math.sqrt(sum(float(g.detach().square().sum()) for g in grads))


@pytest.fixture(scope="module")
def trusted():
    model = exact(llama())
    assert sum(p.numel() for p in model.parameters()) <= 5000
    one = samples(3, 1)[0]
    return model, one, *exact_traces(model, one)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("sigma", [1e-3, "rel:1e-3"])
def test_antithetic_tends_to_the_trace_of_the_hessian(trusted, noise, sigma):
    # property 1: catches a wrong factor, a sign, a tensor without noise, noise of one size for all under "rel:"
    model, one, traces, _ = trusted
    size = sigmas_of(model, 1e-3) if isinstance(sigma, str) else dict.fromkeys(traces, sigma)
    theory = -sum(size[n] ** 2 / 2 * t for n, t in traces.items())
    found = score_difficulty(model, [one], sigma=sigma, probes=600, noise=noise, check_scaling=False)
    error = found.standard_error[0]
    assert error < 0.2 * abs(theory)  # otherwise this could not fail
    assert abs(found.signed[0] - theory) < 4 * error + 1e-3 * abs(theory)
    assert found.mrd[0] == abs(found.signed[0])


@pytest.mark.parametrize("engine", ["inplace", "hook"])
def test_each_pair_is_a_second_difference_along_its_noise(trusted, engine):
    # property 1 without chance: -(1/2) d' Hess f d for d = sigma z; catches two halves of a pair with different noise
    model, one, _, _ = trusted
    size = sigmas_of(model, 1e-3)
    for seed in range(3):
        d = [size[n] * rows(seed, 0, n, p.shape, dtype=torch.float64) for n, p in model.named_parameters()]
        along = sum((g * each).sum() for g, each in zip(gradients(model, one), d, strict=True))
        bent = torch.autograd.grad(along, list(model.parameters()))
        theory = -0.5 * sum(float((b * each).sum()) for b, each in zip(bent, d, strict=True))
        found = score_difficulty(model, [one], sigma="rel:1e-3", probes=1, seed=seed, engine=engine)
        assert found.signed[0] == pytest.approx(theory, rel=1e-3)


def test_doubling_the_noise_multiplies_by_four_and_mean_abs_by_two(trusted):
    # property 2: catches an estimator that measures another order of the expansion than it says
    model, one, _, _ = trusted
    encoded = [one, *samples(4, 4)]
    assert score_difficulty(model, encoded, sigma=1e-4, probes=3).scaling == pytest.approx(4, rel=1e-4)
    assert score_difficulty(model, encoded, sigma=1e-6, probes=3, estimator="mean_abs").scaling == pytest.approx(
        2, rel=1e-3
    )


def test_mean_abs_is_the_norm_of_the_gradient(trusted):
    # property 2: catches a "mean of absolute values" that is anything else; sqrt(2 / pi) sigma |grad f|
    model, one, _, norm = trusted
    found = score_difficulty(
        model, [one], sigma=1e-6, probes=400, estimator="mean_abs", noise="gaussian", check_scaling=False
    )
    theory = math.sqrt(2 / math.pi) * 1e-6 * norm
    assert found.standard_error[0] < 0.06 * theory
    assert abs(found.mrd[0] - theory) < 5 * found.standard_error[0]


def test_one_rademacher_pair_is_exact_on_a_diagonal_quadratic():
    # property 3: catches a first-order term that does not cancel, and a factor of two
    model, encoded = toy()
    theory = -(0.05**2 / 2) * (model.h.sum(1) / model.c).cumsum(0).numpy()[[len(e.ids) - 2 for e in encoded]]
    one = score_difficulty(model, encoded, sigma=0.05, probes=1, noise="rademacher")
    np.testing.assert_allclose(one.signed, theory, rtol=1e-9)
    gauss = score_difficulty(model, encoded, sigma=0.05, probes=1, noise="gaussian").signed
    assert (np.abs(gauss / theory - 1) > 1e-3).all()  # only the signs square to one
    assert np.isinf(one.standard_error).all()


def test_plain_mean_keeps_the_first_order_term():
    # catches "plain" that is antithetic in secret, or draws its noise twice
    model, encoded = toy()
    values = by_hand_toy(model, encoded, 0.05, probes=4)
    found = score_difficulty(model, encoded, sigma=0.05, probes=4, estimator="plain", seed=5)
    np.testing.assert_allclose(found.signed, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.mrd, np.abs(values.mean(0)), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, values.std(0, ddof=1) / 2, rtol=1e-9)
    found = score_difficulty(model, encoded, sigma=0.05, probes=4, estimator="mean_abs", seed=5)
    np.testing.assert_allclose(found.mrd, np.abs(values).mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, np.abs(values).std(0, ddof=1) / 2, rtol=1e-9)


def by_hand_toy(model, encoded, sigma, probes):
    out = []
    for k in range(probes):
        d = sigma * rows(5, k, "w", model.w.shape, dtype=torch.float64)
        lost = -(model.b @ d + model.h @ d.square() / 2) / model.c
        out.append(lost.cumsum(0).numpy()[[len(e.ids) - 2 for e in encoded]])
    return np.array(out)


def test_no_noise_no_difficulty_and_one_seed_one_result():
    # property 4: catches rounding that passes for a score, and noise out of a generator that somebody else used
    model, encoded = llama(), samples()
    none = score_difficulty(model, encoded, sigma=0.0, probes=2)
    assert (none.mrd == 0).all()
    assert any("sigma is 0" in w for w in none.warnings)
    one, again, other = (score_difficulty(model, encoded, probes=3, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.mrd, again.mrd)
    assert not np.allclose(one.mrd, other.mrd)


@pytest.mark.parametrize("engine", ["inplace", "hook"])
def test_order_and_batch_size_change_nothing(engine):
    # property 4: catches noise per batch, padding that leaks, a result given to the neighbour
    model, encoded = exact(llama(2)), samples()
    base = score_difficulty(model, encoded, probes=2, batch_size=8, engine=engine)
    order = np.random.default_rng(0).permutation(len(encoded))
    for size in (1, 2, 5):
        moved = score_difficulty(model, [encoded[i] for i in order], probes=2, batch_size=size, engine=engine)
        close(moved.signed, base.signed[order])
        np.testing.assert_allclose(moved.nll, base.nll[order], rtol=1e-9)
        assert np.array_equal(moved.tokens, base.tokens[order])


@pytest.mark.parametrize(("side", "extra"), [("left", 0), ("left", 3), ("right", 5)])
def test_padding_changes_nothing(side, extra, monkeypatch):
    # property 5: catches positions that count padding, and padding that is scored
    model, encoded = exact(llama(2)), samples()
    base = score_difficulty(model, encoded, probes=2)

    def padded(batch, pad, scope):
        return collate(batch, pad, scope=scope, side=side, width=max(len(e.ids) for e in batch) + extra)

    monkeypatch.setattr(reader, "collate", padded)
    close(score_difficulty(model, encoded, probes=2, pad=7).signed, base.signed)


def test_fisher_identity_by_enumeration(trusted):
    # property 6: E_y Tr Hess log p(y) = -E_y |grad log p(y)|^2; catches a trace of the wrong sign or of another model
    model, one, _, _ = trusted
    prompt, sigma = one.ids[:5], 1e-3
    encoded = [Encoded((*prompt, y), 5) for y in range(V)]
    found = score_difficulty(model, encoded, sigma=sigma, probes=200, batch_size=V, check_scaling=False)
    squares, p = np.zeros(V), np.exp(-found.nll)
    for y, each in enumerate(encoded):
        grads = torch.autograd.grad(token_log_likelihoods(model, each).sum(), list(model.parameters()))
        squares[y] = sum(float(g.square().sum()) for g in grads)
    assert p.sum() == pytest.approx(1, abs=1e-9)
    # one token: signed = (P - P') / P, so signed * P = -(sigma^2 / 2) Tr Hess P
    left = float(p @ (-found.nll * found.signed)) * 2 / sigma**2
    right = float(p @ squares)
    error = float(p @ (found.nll * found.standard_error)) * 2 / sigma**2  # at most: the noise is common
    assert error < 0.2 * right
    assert abs(left - right) < 4 * error


class Blocked(nn.Module):
    """A model that reads a sample of two parts, the second of which cannot see the first."""

    def __init__(self, model, cut):
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, input_ids, attention_mask):
        t = input_ids.shape[1]
        part = (torch.arange(t) >= self.cut).long()
        sees = (part[:, None] == part[None, :]) & torch.ones(t, t, dtype=torch.bool).tril()
        positions = torch.arange(t) - self.cut * part
        return self.model(input_ids=input_ids, attention_mask=sees[None, None], position_ids=positions[None])


def test_two_samples_in_one_add():
    # property 9: catches a mean over tokens in place of the sum, and an absolute value before the sum
    model = exact(llama(2))
    a, b = (1, 5, 9, 3, 7, 2), (4, 8, 8, 1, 6)
    # the first token of b stands at the end of a too: there it is predicted, in b it is only read
    apart = score_difficulty(model, [Encoded((*a, b[0]), 1), Encoded(b, 1)], probes=3, scope="sequence")
    own = {f"model.{n}": n for n, _ in model.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "rows", lambda seed, k, name, *a, **o: rows(seed, k, own[name], *a, **o))
        joined = score_difficulty(Blocked(model, len(a)), [Encoded((*a, *b), 1)], probes=3, scope="sequence")
    close(joined.signed, [apart.signed.sum()])
    assert joined.tokens[0] == apart.tokens.sum()


# -- reliability and warnings ---------------------------------------------------------------------------------------


def test_reliability_of_two_probes_against_scipy():
    # catches a Pearson correlation, ties without mean ranks, a missing Spearman-Brown correction
    values = np.random.default_rng(0).normal(size=(2, 30)).round(1) + np.linspace(0, 3, 30)
    r = spearmanr(np.abs(values[0]), np.abs(values[1])).statistic
    assert reliability(values) == pytest.approx(2 * r / (1 + r), abs=1e-12)
    assert reliability(-values) == pytest.approx(2 * r / (1 + r), abs=1e-12)


def test_reliability_is_the_square_of_the_correlation_with_the_truth():
    # catches a reliability that promises more than the scores hold: r(mean, truth)^2 in normal theory
    rng = np.random.default_rng(1)
    truth = rng.normal(size=4000) + 10
    values = truth + 2 * rng.normal(size=(8, 4000))
    assert reliability(values) == pytest.approx(spearmanr(values.mean(0), truth).statistic ** 2, abs=0.03)


def test_where_there_is_no_ranking_there_is_no_reliability():
    # catches a division by nought, and pure noise that passes for a ranking
    assert all(math.isnan(reliability(v)) for v in (np.ones((1, 9)), np.ones((4, 2)), np.ones((4, 9))))
    assert abs(reliability(np.random.default_rng(0).normal(size=(8, 2000)))) < 0.2


def test_probes_are_added_until_the_ranking_holds():
    # catches a loop that stops too early, never, or beyond the most
    model, encoded = exact(llama()), samples(5, 12)
    few = score_difficulty(model, encoded, target=0.3)
    many = score_difficulty(model, encoded, target=0.99999, most_probes=9)
    assert few.reliability >= 0.3
    assert few.probes < many.probes == 9
    assert any("reliability" in w for w in many.warnings)
    assert not any("reliability" in w for w in few.warnings)
    fixed = score_difficulty(model, encoded, probes=9)
    assert np.array_equal(many.mrd, fixed.mrd)  # the same probes in the same order


def test_standard_error_shrinks_with_probes():
    # catches a spread of the draws that is called the error of their mean
    model, encoded = exact(llama()), samples()
    four, many = (score_difficulty(model, encoded, probes=k, check_scaling=False) for k in (16, 144))
    assert np.median(many.standard_error / four.standard_error) == pytest.approx(1 / 3, rel=0.3)


def test_the_interval_of_few_probes_covers():
    """1.96 standard errors covered a score in 85 % of cases at four pairs, not in 95 %."""
    rng = np.random.default_rng(0)
    values = 5.0 + rng.normal(size=(4, 4000))  # four probes of 4,000 samples
    score, signed, error = difficulty.reduce_probes(values, "antithetic")
    blank = dict.fromkeys(f.name for f in dataclasses.fields(difficulty.Difficulty))
    found = difficulty.Difficulty(**{**blank, "mrd": score, "signed": signed, "standard_error": error, "probes": 4})
    low, high = found.interval
    assert np.mean((low <= 5.0) & (high >= 5.0)) == pytest.approx(0.95, abs=0.015)
    assert np.mean(np.abs(score - 5.0) <= 1.96 * error) < 0.88


def test_noise_beyond_the_second_order_is_flagged():
    # catches a sigma that is far too large without a word
    model, encoded = exact(llama()), samples()
    assert not any(
        "twice the noise" in w for w in score_difficulty(model, encoded, sigma="rel:1e-3", probes=2).warnings
    )
    assert any("twice the noise" in w for w in score_difficulty(model, encoded, sigma="rel:0.1", probes=2).warnings)
    plain = score_difficulty(model, encoded, sigma=1e-6, probes=2, estimator="plain")
    assert any("twice the noise" in w for w in plain.warnings)  # what it measures there is the gradient
    assert math.isnan(score_difficulty(model, encoded, probes=2, check_scaling=False).scaling)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_samples_work(n):
    # catches a ranking of one, and a NaN among the scores
    found = score_difficulty(llama(), samples(n=n))
    assert np.isfinite(found.mrd).all()
    assert np.isfinite(found.standard_error).all()
    assert any("fewer than three" in w for w in found.warnings)
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_constant_set_works():
    # catches an endless search for a ranking that is not there
    found = score_difficulty(exact(llama()), [samples()[0]] * 5, batch_size=5, most_probes=8)
    assert np.ptp(found.mrd) < 1e-9 * found.mrd.max()
    assert found.warnings


def test_certain_tokens_are_clamped_and_counted():
    # catches 0 / 0, and a share of clamped tokens that is not reported
    model, encoded = toy(t=6)
    forward = model.forward

    def certain(input_ids, attention_mask):
        out = forward(input_ids, attention_mask)
        out.logits = out.logits.clone()
        out.logits[:, 2, 1] = -1e6 * (1 + model.w[0] ** 2)  # log p of the token at place 3 is 0 in any precision
        return out

    model.forward = certain
    found = score_difficulty(model, encoded, sigma=0.05, probes=2)
    assert found.clamped == pytest.approx(3 / 15)  # places 1..5 of five samples: three of them reach place 3
    assert np.isfinite(found.mrd).all()
    assert any("clamped" in w for w in found.warnings)


def test_small_probabilities_of_error_keep_their_digits():
    # spec 1.3: a token with a margin of 60 counts 1 - exp(-change), where float32 would give 0 / 0
    model = Toy(torch.full((3,), 1e-26, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64),
                torch.full((3, 1), 1e-26, dtype=torch.float64))  # fmt: skip
    found = score_difficulty(model, [Encoded((0, 0, 0), 1)], sigma=0.1, probes=1, noise="rademacher")
    assert found.clamped == 0
    assert found.signed[0] == pytest.approx(-(0.1**2 / 2) * 2, rel=1e-6)


# -- the door and its refusals --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tofu():
    records = tofu_records()[:5]
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for r in records], vocabulary=300)
    return tiny_llama(tokenizer, hidden=16, layers=1), tokenizer, records


def test_the_door_encodes_and_scores(tofu):
    # catches options that get lost on the way
    model, tokenizer, records = tofu
    one = mrd(model, tokenizer, records, probes=2, scope="sequence", seed=3)
    other = score_difficulty(model, encode_all(tokenizer, records), probes=2, scope="sequence", seed=3)
    assert np.array_equal(one.mrd, other.mrd)
    np.testing.assert_allclose(one.per_token * one.tokens, one.mrd)
    assert (one.scope, one.seed, one.probes) == ("sequence", 3, 2)
    with pytest.raises(InputError, match="at most 8"):
        mrd(tiny_llama(tokenizer, hidden=16, layers=1, context=8), tokenizer, records)


def test_the_summary_tells_nothing_of_one_sample(tofu):
    # catches a receipt from which the forget set could be told
    model, tokenizer, records = tofu
    found = mrd(model, tokenizer, records, probes=2)
    text = json.dumps(found.as_dict(), allow_nan=False)
    singles = [v for a in (found.mrd, found.nll, found.signed, found.standard_error) for v in a]
    inner = [v for v in singles if v not in np.quantile(found.mrd, [0.25, 0.5, 0.75])]
    assert not any(repr(float(v)) in text for v in inner)
    assert found.as_dict()["samples"] == 5


def test_nan_logits_name_their_sample():
    # catches a NaN that becomes a score, and the number of a place in a sorted batch in place of the sample
    model, encoded = llama(), samples()
    inner = model.forward
    bad = 3
    first = encoded[bad].ids

    def broken(*args, **kwargs):
        out = inner(*args, **kwargs)
        ids = kwargs["input_ids"]
        hit = (
            (ids[:, : len(first)] == torch.tensor(first[: ids.shape[1]])).all(1) if ids.shape[1] >= len(first) else None
        )
        if hit is not None and hit.any():
            out.logits = torch.full_like(out.logits, math.nan)
        return out

    model.forward = broken
    with pytest.raises(InputError, match=f"sample {bad}"):
        score_difficulty(model, encoded, batch_size=1)


def test_noise_that_breaks_the_model_is_named():
    # catches an infinity under noise that becomes a score
    model, encoded = toy()
    model.h = -model.h  # log-probabilities leave their range and turn into NaN
    with pytest.raises(InputError, match="lower sigma"):
        score_difficulty(model, encoded, sigma=10.0, probes=1)
    assert torch.equal(model.w, model.start)


@pytest.mark.parametrize(("options", "match"), [
    ({"probes": 0}, "probes"), ({"probes": True}, "probes"), ({"probes": "many"}, "probes"),
    ({"most_probes": 0}, "most_probes"), ({"batch_size": 0}, "batch_size"), ({"target": 1.0}, "target"),
    ({"estimator": "median"}, "estimator"), ({"noise": "cauchy"}, "noise"), ({"scope": "prompt"}, "scope"),
    ({"engine": "fast"}, "engine"), ({"sigma": "1e-2"}, "sigma"), ({"parameters": lambda n: False}, "no parameter"),
])  # fmt: skip
def test_options_outside_their_range_are_refused(options, match):
    # catches an option that is taken for another one in silence
    with pytest.raises(InputError, match=match):
        score_difficulty(llama(), samples(), **options)


def test_samples_that_cannot_be_scored_are_named():
    # catches an empty mean, and a token that reads past the embeddings
    for encoded, match in (([], "no samples"), ([Encoded((1, 2, 3), 1), Encoded((1, 2), 2)], "sample 1"),
                           ([Encoded((1,), 0)], "sample 0"), ([Encoded((1, V), 1)], f"token {V}")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            score_difficulty(llama(), encoded, probes=1)


@pytest.mark.parametrize("engine", ["inplace", "hook"])
def test_half_precision_and_meta_weights_are_refused(engine):
    # catches noise that half of the weights swallow
    with pytest.raises(InputError, match="bfloat16"):
        score_difficulty(llama().to(torch.bfloat16), samples(), engine=engine)
    with torch.device("meta"):
        model = LlamaForCausalLM(llama().config)
    with pytest.raises(InputError, match="memory"):
        score_difficulty(model, samples(), engine=engine)


def test_autocast_around_the_scoring_is_switched_off():
    # catches bfloat16 products inside a trainer that runs under autocast
    model, encoded = llama(), samples()
    base = score_difficulty(model, encoded, probes=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(score_difficulty(model, encoded, probes=2).mrd, base.mrd)
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)  # as accelerate prepares a model
    with pytest.raises(InputError, match="mixed precision"):
        score_difficulty(model, encoded, probes=2)
