"""Sampling: weights by hand, frequencies, named streams, states, and the union over ranks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch.utils.data import BatchSampler, DataLoader

from upright.contract import InputError
from upright.language import sampling as s

SEEDS = st.integers(0, 2**31 - 1)
SCORES = st.lists(st.floats(0.0, 1e6, allow_subnormal=False), min_size=1, max_size=40).map(np.array)


@settings(max_examples=150, deadline=None)
@given(SCORES, st.floats(-3.0, 3.0), st.floats(0.0, 1.0))
def test_weights_are_the_formula_in_exact_order(d, tau, floor):
    # catches a floor that is added and not mixed, a clamp that is absolute, weights that do not sum to 1
    p = s.sampling_weights(d, tau=tau, floor=floor)
    top = d.max()
    r = [max(x / top, 1e-12) if top > 0 else 1.0 for x in d]
    power = [math.fsum([tau * math.log(x)]) for x in r]
    raw = [math.exp(x - max(power)) for x in power]
    expected = [(1 - floor) * x / math.fsum(raw) + floor / len(d) for x in raw]
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    assert p.dtype == np.float64
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p >= floor / len(d) * (1 - 1e-12)).all()
    assert 1 - 1e-9 <= s.effective_sample_size(p) <= len(d) + 1e-9


def test_weights_by_hand():
    # catches hard first for easy first, and a temperature on the wrong side
    np.testing.assert_allclose(s.sampling_weights([1.0, 3.0]), [0.25, 0.75])
    np.testing.assert_allclose(s.sampling_weights([1.0, 3.0], tau=2.0), [0.1, 0.9])
    np.testing.assert_allclose(s.sampling_weights([1.0, 3.0], tau=-1.0), [0.75, 0.25])
    np.testing.assert_allclose(s.sampling_weights([1.0, 3.0], floor=0.5), [0.375, 0.625])
    np.testing.assert_allclose(s.sampling_weights([0.0, 1.0]), [1e-12, 1.0])
    assert s.sampling_weights([0.0, 0.0]).tolist() == [0.5, 0.5]
    assert s.effective_sample_size([0.5, 0.5, 0.0]) == pytest.approx(2.0)


@settings(max_examples=60, deadline=None)
@given(SCORES)
def test_tau_0_is_exactly_uniform(d):
    # the neutral setting: catches a score that leaks through the floor of 1e-12, and rounding that moves an index
    p = s.sampling_weights(d, tau=0.0)
    assert p.tolist() == [1.0 / len(d)] * len(d)
    uniform = s.draws(np.full(len(d), 1.0 / len(d)), 3, 1, 200)
    assert torch.equal(s.draws(p, 3, 1, 200), uniform)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.floats(1e-3, 1e3))
def test_weights_ignore_the_unit_of_difficulty(d, factor):
    # catches an absolute clamp: scores of 1e-9 would all be alike
    a, b = s.sampling_weights(d), s.sampling_weights(d * factor)
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("tau", [-300.0, 300.0])
def test_large_temperatures_overflow_nowhere(tau):
    # catches d ** tau: inf / inf is NaN
    p = s.sampling_weights([1e-8, 1.0, 1e8], tau=tau)
    assert np.isfinite(p).all()
    assert p.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [[], [[1.0]], [1.0, -0.1], [1.0, math.nan], [math.inf, 1.0]])
def test_bad_difficulty_is_refused(bad):
    # catches a NaN that becomes a weight
    with pytest.raises(InputError, match="one finite number of at least 0"):
        s.sampling_weights(bad)


def test_other_bad_input_is_refused():
    # each with its own words
    with pytest.raises(InputError, match="tau = nan"):
        s.sampling_weights([1.0], tau=math.nan)
    with pytest.raises(InputError, match="between 0 and 1"):
        s.sampling_weights([1.0], floor=1.5)
    with pytest.raises(InputError, match="sum to 0"):
        s.draws([0.0, 0.0], 0, 0, 1)
    with pytest.raises(InputError, match=r"epoch = 0\.5"):
        s.MRDSampler([1.0]).set_epoch(0.5)
    with pytest.raises(InputError, match="one full block"):
        s.PairSampler(3, 0, seed=0, block=4, drop_last=True)


@pytest.mark.parametrize("weights", [np.ones(12), np.arange(1, 13), np.array([0.0, 5, 1, 1, 1, 1, 1, 1, 1, 1, 20, 0])])
def test_frequencies_follow_the_weights(weights):
    # spec 1.7.8: chi-square over 40 epochs at a false-alarm rate of 2.9e-7 (5 standard errors, one-sided);
    # catches a cdf that is off by one and a stream that epochs share
    n, p = 40 * 500, weights / weights.sum()
    found = np.concatenate([s.draws(weights, 7, epoch, 500).numpy() for epoch in range(40)])
    count = np.bincount(found, minlength=len(p))
    assert not count[p == 0].any()
    on = p > 0
    statistic = (np.square(count[on] - n * p[on]) / (n * p[on])).sum()
    assert statistic < chi2.isf(2.9e-7, on.sum() - 1)
    assert statistic > chi2.ppf(2.9e-7, on.sum() - 1)  # too even is wrong as well


def test_draws_are_an_inverse_cdf_of_common_numbers():
    # catches draws that depend on the past, and weights that change the numbers under them
    w = np.random.default_rng(0).random(50)
    first = s.draws(w, 1, 2, 1000)
    assert torch.equal(first, s.draws(w, 1, 2, 1000))
    assert first.dtype == torch.int64
    assert torch.equal(first[:300], s.draws(w, 1, 2, 300))
    assert torch.equal(first, s.draws(w * 8.0, 1, 2, 1000))  # weights need not sum to 1
    near = s.draws(w * (1 + 1e-4 * np.random.default_rng(1).random(50)), 1, 2, 1000)
    assert (first != near).float().mean() < 0.02  # independent numbers would differ nearly everywhere
    assert (first != s.draws(w, 1, 3, 1000)).float().mean() > 0.5
    assert (first != s.draws(w, 2, 2, 1000)).float().mean() > 0.5


def weighted(n):
    return lambda epoch: s.draws(np.arange(1, n + 1), 5, epoch, n)


def test_no_global_generator_is_read_or_moved():
    # spec 4.1: catches torch.randint in the order of records, which depends on the number of workers
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    a = list(s.PairSampler(7, 3, seed=1, block=4, draw=weighted(7)))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    assert list(s.PairSampler(7, 3, seed=1, block=4, draw=weighted(7))) == a


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 5), st.integers(1, 30))
def test_shuffle_is_a_permutation(seed, epoch, n):
    # catches a record that is left out of an epoch
    order = s.shuffle_order(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert order.dtype == torch.int64
    assert torch.equal(order, s.shuffle_order(n, seed, epoch))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(0, 40))
def test_partners_come_in_rounds(seed, m, n):
    # catches a retain record that comes twice while another waits, and a partner that depends on what is asked for
    found = s.partners(m, seed, 2, n).tolist()
    for k in range(0, n - m + 1, m):
        assert sorted(found[k : k + m]) == list(range(m))
    assert len(set(found[n - n % m :])) == n % m
    assert s.partners(m, seed, 2, n + 11).tolist()[:n] == found


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(0, 12), st.integers(0, 3))
def test_state_continues_the_stream(seed, taken, epoch):
    # spec 1.7.8: catches a place that is lost, a seed that is not kept
    w = np.random.default_rng(seed).random(12) + 0.01
    one = s.MRDSampler(w, seed)
    one.set_epoch(epoch)
    whole, iterator = list(one), iter(one)
    head = list(itertools.islice(iterator, taken))
    state = one.state_dict()
    other = s.MRDSampler(np.ones(12), seed + 1)
    other.load_state_dict(state)
    rest = list(other)
    assert head + (rest if taken < 12 else []) == whole
    other.set_epoch(epoch + 1)
    one.set_epoch(epoch + 1)
    assert list(other) == list(one) == s.draws(w, seed, epoch + 1, 12).tolist()


def test_an_abandoned_iterator_leaves_no_trace():
    # catches a place that outlives its iterator: a second run would begin in the middle
    one = s.MRDSampler(np.ones(10), 0)
    whole = list(one)
    next(iter(one))
    assert list(one) == whole
    with pytest.raises(InputError, match="3 records for a sampler of 10"):
        one.load_state_dict(s.MRDSampler(np.ones(3)).state_dict())


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("by_weight", [False, True])
def test_union_over_ranks_is_the_stream_of_one_process(ranks, by_weight):
    # spec 1.7.8: catches a sampler that draws per rank, and a rank that repeats records to fill its last batch
    n, m, size = 10, 4, 2
    draw = weighted(n) if by_weight else None

    def batches(rank):
        order = s.PairSampler(n, m, seed=5, block=size * ranks, draw=draw)
        order.set_epoch(3)
        shard = BatchSamplerShard(BatchSampler(order, size, drop_last=False), ranks, rank)
        return list(DataLoader(_Keys(), batch_sampler=shard, collate_fn=lambda keys: keys))

    dealt = [batches(rank) for rank in range(ranks)]
    assert len({len(one) for one in dealt}) == 1  # DDP waits for nobody
    union = [key for turn in zip(*dealt, strict=True) for batch in turn for key in batch]
    alone = s.PairSampler(n, m, seed=5, block=1, draw=draw)
    alone.set_epoch(3)
    assert [key for key in union if key[2]] == list(alone)
    assert not any(key[2] for key in union[n:])
    assert len(union) == -(-n // (size * ranks)) * size * ranks


class _Keys:
    def __getitem__(self, key):
        return key

    def __len__(self):
        return 10


def test_drop_last_leaves_places_out_instead_of_filling_up():
    # catches a short block that survives
    order = s.PairSampler(10, 0, seed=0, block=4, drop_last=True)
    assert len(order) == 8 == len(list(order))
    assert all(counts for *_, counts in order)
