"""Log-probabilities of answers against log_softmax, exact arithmetic, and what must not change them."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import log_softmax

from upright.contract import InputError
from upright.language import logprobs as lp

SEEDS = st.integers(0, 2**31 - 1)


def batch(seed, b=3, t=7, v=11, scale=3.0, dtype=torch.float64):
    """Random logits, and labels with a prompt of random length and holes in the answer."""
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(b, t, v, generator=g, dtype=dtype)
    labels = torch.randint(0, v, (b, t), generator=g)
    start = torch.randint(1, t, (b, 1), generator=g)
    ignored = (torch.arange(t) < start) | (torch.rand(b, t, generator=g) < 0.2)
    labels[ignored] = -100
    labels[:, -1] = torch.randint(0, v, (b,), generator=g)  # never empty
    return logits, labels


def slow(logits, labels):
    """Log-probabilities by log_softmax and loops, keyed by (sample, place)."""
    table = log_softmax(logits.double(), dim=-1)
    return {
        (i, t): float(table[i, t - 1, labels[i, t]])
        for i in range(labels.shape[0])
        for t in range(labels.shape[1])
        if labels[i, t] != -100
    }


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(2, 30), st.integers(2, 9), st.sampled_from([None, 1, 2, 5, 1000]))
def test_equals_log_softmax_in_float64(seed, v, t, chunk):
    # catches: logits not shifted, shifted twice, a value at the place of the prediction, rows mixed between chunks
    logits, labels = batch(seed, t=t, v=v)
    found, mask = lp.token_log_probs(logits, labels, dtype=torch.float64, chunk=chunk)
    assert found.shape == mask.shape == labels.shape
    expected = slow(logits, labels)
    assert {tuple(x) for x in mask.nonzero().tolist()} == set(expected)
    for (i, place), value in expected.items():
        assert float(found[i, place]) == pytest.approx(value, abs=1e-12)
    assert not found[~mask].any()
    assert (found <= 0).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(0, 4), st.integers(0, 4))
def test_padding_on_either_side_changes_nothing(seed, left, right):
    # catches: padding that is scored, a first real token predicted from padding, NaN of a padded row that spreads
    logits, labels = batch(seed)
    b, t, v = logits.shape
    wide = torch.full((b, left + t + right, v), float("nan"), dtype=torch.float64)
    wide[:, left : left + t] = logits
    ids = torch.full((b, left + t + right), -100)
    ids[:, left : left + t] = labels
    for one, other in zip(lp.token_log_probs(logits, labels), lp.token_log_probs(wide, ids), strict=True):
        torch.testing.assert_close(one, other[:, left : left + t], rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 25))
def test_chunks_change_neither_values_nor_gradients(seed, chunk):
    # catches: a chunk that is skipped or counted twice in the backward pass
    logits, labels = batch(seed)
    found = []
    for size in (None, chunk):
        leaf = logits.clone().requires_grad_()
        values, mask = lp.token_log_probs(leaf, labels, dtype=torch.float64, chunk=size)
        (gradient,) = torch.autograd.grad(lp.sample_means(values, mask).square().sum(), leaf)
        found.append((values.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-14)


def test_the_gradient_is_onehot_minus_softmax_and_zero_elsewhere():
    # catches: gradient into rows that predict a prompt or padding, a lost sign, gradients of the masked slot
    logits, labels = batch(1)
    leaf = logits.clone().requires_grad_()
    values, mask = lp.token_log_probs(leaf, labels, dtype=torch.float64, chunk=2)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    expected = torch.zeros_like(logits)
    for i, t in mask.nonzero().tolist():
        expected[i, t - 1] = -logits[i, t - 1].softmax(0)
        expected[i, t - 1, labels[i, t]] += 1
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda z: lp.token_log_probs(z, labels, chunk=2)[0], leaf)
    assert torch.autograd.gradgradcheck(lambda z: lp.token_log_probs(z, labels, chunk=2)[0], leaf)


def exact(logits, target):
    """Log-probability in decimal arithmetic with 200 digits."""
    with localcontext() as context:
        context.prec = 200
        z = [Decimal(float(x)) for x in logits]
        return float(z[target] - sum((x.exp() for x in z), Decimal(0)).ln())


@pytest.mark.parametrize("margin", [1.0, 20.0, 40.0, 80.0, 300.0, -40.0, -700.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_confident_tokens_keep_their_digits(margin, dtype, tolerance):
    # catches: z_y - logsumexp(z), which is 0 or a multiple of 6e-8 (float32) or 2e-16 (float64) for p near 1
    if dtype == torch.float32 and margin > 80:
        margin = 80.0  # exp(-300) is no float32
    logits = torch.zeros(1, 2, 5, dtype=dtype)
    logits[0, 0] = torch.tensor([0.3, margin, -0.2, 0.1, 0.0], dtype=dtype)
    found, _ = lp.token_log_probs(logits, torch.tensor([[-100, 1]]), dtype=dtype)
    expected = exact(logits[0, 0], 1)
    assert float(found[0, 1]) == pytest.approx(expected, rel=tolerance)
    if margin >= 40:
        assert float(log_softmax(logits[0, 0], 0)[1]) == 0.0  # what the plain formula gives
        assert float(found[0, 1]) < 0


def test_half_precision_logits_are_raised_and_double_ones_are_not_lowered():
    # catches: arithmetic in bfloat16; a float64 model scored in float32
    logits, labels = batch(2, dtype=torch.float32)
    low = logits.bfloat16()
    for dtype in (torch.float32, torch.float64):
        found, mask = lp.token_log_probs(low, labels, dtype=dtype)
        assert found.dtype == dtype
        expected = slow(low, labels)
        for i, t in mask.nonzero().tolist():
            assert float(found[i, t]) == pytest.approx(expected[i, t], rel=1e-5)
    assert lp.token_log_probs(logits.double(), labels)[0].dtype == torch.float64


def test_only_answer_rows_are_copied_and_only_one_chunk_is_in_float64():
    # catches: a full log_softmax; rows of a chunk kept for the backward pass in float64
    sizes = []

    def watch(rows, targets):
        sizes.append(tuple(rows.shape))
        return rows.gather(1, targets[:, None])[:, 0]

    logits = torch.randn(2, 50, 13).requires_grad_()
    labels = torch.full((2, 50), -100)
    labels[:, -7:] = 3
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        lp.over_answers(watch, labels, logits, dtype=torch.float64, chunk=4)
    assert sizes == [(4, 13)] * 3 + [(2, 13)]
    assert not [x for x in kept if x.dtype == torch.float64 and x.numel() >= 4 * 13]


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 20), st.sampled_from([0.1, 3.0, 30.0]))
def test_statistics_equal_their_definition(seed, v, scale):
    # catches: E[x^2] - E[x]^2, moments of the logits instead of log p, a uniform instead of the model's weighting
    logits, labels = batch(seed, v=v, scale=scale)
    found = lp.token_statistics(logits, labels, dtype=torch.float64, chunk=3)
    torch.testing.assert_close(found.log_probs, lp.token_log_probs(logits, labels)[0], rtol=0, atol=1e-14)
    for i, t in found.mask.nonzero().tolist():
        log_p = log_softmax(logits[i, t - 1], 0)
        p = log_p.exp()
        mean = float((p * log_p).sum())
        assert float(found.mean[i, t]) == pytest.approx(mean, rel=1e-10)
        assert float(found.std[i, t]) == pytest.approx(float((p * (log_p - mean) ** 2).sum()) ** 0.5, rel=1e-9)
        assert bool(found.best[i, t]) == (int(logits[i, t - 1].argmax()) == int(labels[i, t]))
    assert not found.best[~found.mask].any()


def test_statistics_of_extreme_distributions():
    # catches: NaN from 0 * -inf, a tie won by the later index, a variance lost to cancellation
    logits = torch.zeros(3, 2, 4, dtype=torch.float64)
    logits[0, 0] = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
    logits[1, 0] = torch.tensor([60.0, 0.0, 0.0, 0.0])
    found = lp.token_statistics(logits, torch.tensor([[-100, 0], [-100, 0], [-100, 1]]))
    assert found.best[:, 1].tolist() == [True, True, False]
    assert float(found.mean[0, 1]) == pytest.approx(-0.6931471805599453, rel=1e-14)
    assert float(found.mean[1, 1]) == pytest.approx(-3 * 60 * 8.75651076269652e-27, rel=1e-9, abs=0)
    assert float(found.mean[2, 1]) == pytest.approx(-1.3862943611198906, rel=1e-14)
    assert float(found.std[0, 1]) == 0.0
    # three tokens of log-probability -60 with weight exp(-60) each around a mean of nearly 0
    assert float(found.std[1, 1]) == pytest.approx((3 * 3600 * 8.75651076269652e-27) ** 0.5, rel=1e-9)
    assert not torch.isnan(found.log_probs).any()


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_sums_and_means_read_nothing_outside_the_mask(seed):
    # catches: NaN * 0, a mean over all places, a gradient into masked values
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 6, generator=g, dtype=torch.float64)
    mask = torch.rand(3, 6, generator=g) < 0.5
    mask[:, 2] = True
    dirty = torch.where(mask, values, torch.nan).requires_grad_()
    sums, means = lp.sample_sums(dirty, mask), lp.sample_means(dirty, mask)
    for i in range(3):
        own = values[i][mask[i]]
        assert float(sums[i].detach()) == pytest.approx(float(own.sum()), abs=1e-12)
        assert float(means[i].detach()) == pytest.approx(float(own.mean()), abs=1e-12)
    (gradient,) = torch.autograd.grad(sums.sum(), dirty)
    torch.testing.assert_close(gradient, mask.double())
    assert lp.sample_counts(mask).tolist() == [int(row.sum()) for row in mask]
    assert lp.sample_sums(values.float(), mask, dtype=torch.float64).dtype == torch.float64


def test_sums_in_float64_of_float32_values():
    # catches: the conversion after the sum
    values = torch.full((1, 100_001), 1e-8)
    values[0, 0] = 1.0
    exact_sum = float(values.double().sum())
    mask = torch.ones_like(values, dtype=torch.bool)
    assert float(lp.sample_sums(values, mask, dtype=torch.float64)[0]) == pytest.approx(exact_sum, abs=1e-14)


GOOD = torch.tensor([[-100, 1, 2]])


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), "a label at place 0 of sample 0"),
        (torch.zeros(2, 3, 4), torch.tensor([[-100, 1, 2], [-100] * 3]), "sample 1 without an answer token (1 such"),
        (torch.zeros(1, 3, 4), torch.tensor([[-100, 1, 4]]), "labels from 1 to 4"),
        (torch.zeros(1, 3, 4), torch.tensor([[-100, -1, 2]]), "labels from -1 to 2"),
        (torch.zeros(1, 3, 4), GOOD.float(), "type torch.float32"),
        (torch.zeros(1, 3, 4), GOOD != -100, "type torch.bool"),
        (torch.zeros(1, 3, 4), GOOD[0], "labels of shape (3,)"),
        (torch.zeros(1, 2, 4), GOOD, "logits of shape (1, 2, 4)"),
        (torch.zeros(1, 3, 1), GOOD * 0 - 100 * (GOOD < 0), "logits of shape (1, 3, 1)"),
        (torch.zeros(1, 3, 4, dtype=torch.int64), GOOD, "type torch.int64"),
    ],
)
def test_bad_input_is_refused_in_three_parts(logits, labels, says):
    for function in (lp.token_log_probs, lp.token_statistics):
        with pytest.raises(InputError) as caught:
            function(logits, labels)
        assert says in caught.value.got
        assert caught.value.accepted
        assert caught.value.todo


@pytest.mark.parametrize(("where", "value"), [((0, 1, 3), torch.nan), ((0, 1, 0), torch.inf), ((0, 1, 2), -torch.inf)])
def test_nan_logits_are_refused_where_they_count_and_only_there(where, value):
    # catches: a NaN that passes as a value, and a check that trips over padding
    logits = torch.zeros(1, 3, 4)
    logits[where] = value
    with pytest.raises(InputError, match="at sample 0, place 2"):
        lp.token_log_probs(logits, GOOD)
    logits = torch.zeros(1, 3, 4)
    logits[0, 2] = torch.nan  # predicts nothing
    assert torch.isfinite(lp.token_log_probs(logits, GOOD)[0]).all()


def test_tokens_that_cannot_be_said_are_fine_beside_the_label():
    # catches: a NaN gradient when everything but the label is -inf
    logits = torch.tensor([[[-torch.inf, 2.0, -torch.inf], [0.0, 0.0, 0.0]]], dtype=torch.float64).requires_grad_()
    found, _ = lp.token_log_probs(logits, torch.tensor([[-100, 1]]))
    assert float(found[0, 1].detach()) == 0.0
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert not gradient.any()
    assert not torch.isnan(gradient).any()


def test_other_misuse_is_refused():
    with pytest.raises(InputError, match="chunk = 0"):
        lp.token_log_probs(torch.zeros(1, 3, 4), GOOD, chunk=0)
    with pytest.raises(InputError, match="vocabularies of 4 and 5"):
        lp.over_answers(lambda a, b, y: a[:, 0], GOOD, torch.zeros(1, 3, 4), torch.zeros(1, 3, 5))
    with pytest.raises(InputError, match=r"mask of shape \(1, 3\) and type torch.int64"):
        lp.sample_sums(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="sample 1 without"):
        lp.sample_means(torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3]))
