"""Random directions and kernel discrepancy: definitions and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths import transport as tp

SEEDS = st.integers(0, 2**32 - 1)
F64 = torch.float64


def points(seed, n, d=3, shift=0.0, dtype=F64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)) + shift).to(dtype)


def directions(seed, k, d, dtype=F64):
    return tp.random_directions(k, d, torch.Generator().manual_seed(seed), dtype)


# -- directions -----------------------------------------------------------------------------------------------------


def test_directions_are_orthonormal_blocks_from_the_generator_alone():
    # catches columns taken for rows (their last block would not be orthonormal) and a hidden global seed
    found = directions(0, 7, 3)
    assert found.shape == (7, 3)
    for block in (found[:3], found[3:6], found[6:]):
        torch.testing.assert_close(block @ block.T, torch.eye(len(block), dtype=F64))
    torch.manual_seed(5)
    assert torch.equal(found, directions(0, 7, 3))
    assert not torch.equal(found, directions(1, 7, 3))
    assert directions(0, 2, 3, torch.float32).dtype == torch.float32


def test_directions_are_uniform():
    # the first axis of a block: mean 0 and second moment I / d within 5 standard errors; catches unfixed signs of QR
    found = directions(0, 3 * 4_000, 3).reshape(4_000, 3, 3)
    for axis in range(3):
        rows = found[:, axis]
        assert (rows.mean(0).abs() < 5 * math.sqrt(1 / 3 / 4_000)).all()
        second = rows.mT @ rows / 4_000
        assert ((second - torch.eye(3, dtype=F64) / 3).abs() < 5 * math.sqrt(1 / 5 / 4_000)).all()


# -- kernel discrepancy ---------------------------------------------------------------------------------------------


def mmd_by_definition(x, y, widths):
    """All pairs, all widths, by loops over widths and explicit differences."""

    def kernel(a, b):
        apart = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-apart / (2 * h * h)) for h in widths) / len(widths)

    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 15), st.integers(1, 15), st.sampled_from([1.0, 1e3]))
def test_mmd_is_its_definition(seed, n, m, shift):
    # catches 2 h^2 against h^2, and cancellation far from the origin
    x, y, widths = points(seed, n, shift=shift), points(seed + 1, m, shift=shift + 1), (0.5, 2.0)
    assert float(tp.mmd2(x, y, widths)) == pytest.approx(float(mmd_by_definition(x, y, widths)), rel=1e-9, abs=1e-12)


def test_mmd_gradient_and_blocks(monkeypatch):
    # finite differences, once with rows in several blocks; catches a gradient of the last block alone
    x, y = points(0, 9).requires_grad_(), points(1, 7, shift=0.5).requires_grad_()
    whole = tp.mmd2(x, y).item()
    monkeypatch.setattr(tp.kernels, "_CHUNK_ELEMENTS", 20)
    assert tp.mmd2(x, y).item() == pytest.approx(whole, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x, y: tp.mmd2(x, y, (0.5, 1.0, 3.0)), (x, y))


def test_mmd_of_a_set_with_itself_and_of_one_point():
    # property 1; one point against one: 2 (1 - k)
    x = points(0, 20)
    assert float(tp.mmd2(x, x.flip(0))) <= 1e-14
    one, two = torch.zeros(1, 2, dtype=F64), torch.tensor([[3.0, 4.0]], dtype=F64)
    assert float(tp.mmd2(one, two, [5.0])) == pytest.approx(2 * (1 - math.exp(-0.5)))
    assert float(tp.mmd2(one, two)) > 0


def test_the_type_of_the_points_is_kept():
    x = points(0, 9, dtype=torch.float32)
    assert tp.mmd2(x, x + 1).dtype == torch.float32


def test_default_bandwidths_follow_the_units_and_carry_no_gradient():
    # catches a median over squares, and a bandwidth that the model can widen to lower its loss
    x, y = points(0, 30), points(1, 20, shift=1.0)
    pooled = torch.pdist(torch.cat([x, y]))
    assert tp.median_bandwidths(x, y)[2] == pytest.approx(float(pooled.median()))
    assert float(tp.mmd2(100 * x, 100 * y)) == pytest.approx(float(tp.mmd2(x, y)), rel=1e-9)
    x.requires_grad_()
    assert torch.autograd.grad(tp.mmd2(x, y), x)[0].equal(
        torch.autograd.grad(tp.mmd2(x, y, tp.median_bandwidths(x, y)), x)[0]
    )


# -- bad input ------------------------------------------------------------------------------------------------------

X = points(0, 5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tp.random_directions(0, 3, torch.Generator()), "k = 0"),
        (lambda: tp.random_directions(3, 3, None), "generator = None"),
        (lambda: tp.mmd2(X, X[:0]), "y with 0 point"),
        (lambda: tp.mmd2(X, X[:, :2]), "y of shape"),
        (lambda: tp.mmd2(X, X * torch.nan), "y with NaN"),
        (lambda: tp.mmd2(X, X, []), "bandwidths"),
        (lambda: tp.mmd2(X, X, [0.0]), "bandwidths"),
        (lambda: tp.mmd2(X[:1], X[:1]), "all equal"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
