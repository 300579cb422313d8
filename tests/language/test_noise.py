"""Noise by name: cuts, laws, streams, and the words for its size."""

from __future__ import annotations

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.language import noise
from upright.language.noise import LAWS, blocks, parse_sigma, rms, rows

N = 1 << 17


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 40), st.lists(st.integers(1, 5), max_size=2), st.sampled_from(LAWS))
def test_any_cut_gives_the_rows_of_the_whole(data, r, rest, law):
    # catches noise that depends on who asks: a generator per call, a block counted from the caller's first row
    shape = (r, *rest)
    with mock.patch.object(noise, "_BLOCK", 12):
        whole = rows(3, 1, "w", shape, law=law)
        cuts = sorted({0, r, *data.draw(st.lists(st.integers(0, r), max_size=4))})
        parts = [rows(3, 1, "w", shape, a, b, law=law) for a, b in itertools.pairwise(cuts)]
        own = [rows(3, 1, "w", shape, a, b, law=law) for a, b in blocks(shape)]
    assert whole.shape == shape
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.cat(own), whole)


@pytest.mark.parametrize("law", LAWS)
def test_moments(law):
    # catches a law of another variance (a uniform one, a bit counted twice), five standard errors
    z = rows(0, 0, "w", (N,), law=law).double().numpy()
    fourth, eighth = (3.0, 105.0) if law == "gaussian" else (1.0, 1.0)
    assert abs(z.mean()) < 5 / math.sqrt(N)
    assert abs((z**2).mean() - 1) <= 5 * math.sqrt((fourth - 1) / N)
    assert abs((z**4).mean() - fourth) <= 5 * math.sqrt((eighth - fourth**2) / N)
    assert law == "gaussian" or set(np.unique(z)) == {-1.0, 1.0}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("other", [(1, 0, "w"), (0, 1, "w"), (0, 0, "v")], ids=["seed", "probe", "name"])
def test_streams_are_apart(law, other):
    # catches one generator for two names: the noise of two layers, or of two probes, would be the same
    a, b = rows(0, 0, "w", (N,), law=law), rows(*other, (N,), law=law)
    assert abs(float((a * b).mean())) < 5 / math.sqrt(N)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("lag", [1, 8, 63, 64, 1024])
def test_neighbours_are_independent(law, lag):
    # catches bits of one word, or of one block, that come twice
    with mock.patch.object(noise, "_BLOCK", 1024):
        z = rows(0, 0, "w", (N,), law=law)
    assert abs(float((z[lag:] * z[:-lag]).mean())) < 5 / math.sqrt(N - lag)


def test_precision_changes_no_number():
    # catches a float64 model that meets other noise than its float32 copy
    assert torch.equal(rows(0, 0, "w", (70, 3), dtype=torch.float64).float(), rows(0, 0, "w", (70, 3)))


def test_numbers_stay_what_they_were():
    # catches another key or another order of bits: scores of an earlier version could not be repeated
    signs = rows(7, 2, "model.norm.weight", (16,), law="rademacher").int().tolist()
    assert signs == GOLDEN


GOLDEN = [-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1, -1]


def test_the_global_generator_is_left_alone():
    # catches a manual_seed for everybody: the user's training would draw other batches
    before = torch.get_rng_state()
    rows(0, 0, "w", (100,), law="gaussian")
    rows(0, 0, "w", (100,), law="rademacher")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_rows_and_rows_that_are_not_there():
    # catches a crash on an empty shard, and a shard that reads past the end
    assert rows(0, 0, "w", (5, 2), 3, 3).shape == (0, 2)
    for first, last in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(InputError, match="rows of a tensor of 5"):
            rows(0, 0, "w", (5, 2), first, last)
    with pytest.raises(InputError, match="gaussian"):
        rows(0, 0, "w", (5,), law="cauchy")


@pytest.mark.parametrize(("sigma", "out"), [(0.5, (False, 0.5)), (0, (False, 0.0)), ("rel:1e-2", (True, 0.01))])
def test_sigma_is_read(sigma, out):
    # catches a relative scale that is taken for an absolute one
    assert parse_sigma(sigma) == out


@pytest.mark.parametrize("sigma", ["0.5", "rel:", "rel:x", "rel:-1", "rel:nan", -1.0, math.nan, math.inf, True, None])
def test_other_sigmas_are_refused(sigma):
    # catches a text that passes for an absolute scale, and noise of no size at all
    with pytest.raises(InputError, match="rel:c"):
        parse_sigma(sigma)


@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=50))
def test_rms_against_numpy(values):
    # catches a standard deviation in its place, and a NaN for an empty tensor
    x = np.array(values, dtype=np.float32)
    with mock.patch.object(noise, "_BLOCK", 7):
        found = rms(torch.from_numpy(x))
    assert found == pytest.approx(np.sqrt(np.mean(x.astype(np.float64) ** 2)) if len(x) else 0.0, rel=1e-12)
