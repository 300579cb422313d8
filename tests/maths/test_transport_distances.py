"""Sliced transport and kernel discrepancy: definitions, POT, gradients, and what a full transport leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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


# -- sliced distance ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 15), st.integers(1, 15), st.integers(1, 9))
def test_sliced_distance_is_that_of_pot(seed, n, m, k):
    # catches quantile levels that are off by one when n and m differ
    ot = pytest.importorskip("ot")
    x, y, theta = points(seed, n), points(seed + 1, m, shift=1.0), directions(seed % 1000, k, 3)
    found = float(tp.sliced_w2(x, y, theta))
    right = ot.sliced.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=theta.T.numpy()) ** 2
    assert found == pytest.approx(right, rel=1e-9)
    assert float(tp.sliced_w2(y, x, theta)) == pytest.approx(found, rel=1e-9)


def test_sliced_distance_of_equal_and_of_shifted_sets(monkeypatch):
    # property 1; a full orthonormal block sees ||t||^2 / d exactly; catches chunks that are averaged unevenly
    x, t, theta = points(0, 40, 4), points(1, 1, 4), directions(0, 4, 4)
    assert float(tp.sliced_w2(x, x.flip(0), theta)) <= 1e-28
    assert float(tp.sliced_w2(x, x + t, theta)) == pytest.approx(float(t.square().sum()) / 4, rel=1e-12)
    assert float(tp.sliced_w2(x, torch.cat([x, x]), theta)) <= 1e-28
    whole = tp.sliced_w2(x, points(2, 33, 4), directions(1, 7, 4))
    monkeypatch.setattr(tp.slices, "_CHUNK_ELEMENTS", 160)
    assert float(tp.sliced_w2(x, points(2, 33, 4), directions(1, 7, 4))) == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 4), (3, 8)])
def test_sliced_gradient_against_finite_differences(n, m):
    x, y, theta = points(0, n).requires_grad_(), points(1, m).requires_grad_(), directions(0, 5, 3)
    assert torch.autograd.gradcheck(lambda x, y: tp.sliced_w2(x, y, theta), (x, y))


# -- sliced barycenter ----------------------------------------------------------------------------------------------


def test_one_dimensional_barycenter_of_gaussians():
    # mean sum w mu and deviation sum w sigma, on exact quantiles; catches means of densities instead of quantiles
    sizes, mu, sigma, w = (999, 401, 200), (0.0, 3.0, -1.0), (1.0, 0.5, 2.0), (0.5, 0.3, 0.2)
    classes = [
        torch.from_numpy(m + s * stats.norm.ppf((np.random.default_rng(n).permutation(n) + 0.5) / n))[:, None]
        for n, m, s in zip(sizes, mu, sigma, strict=True)
    ]
    mean, deviation = np.dot(w, mu), np.dot(w, sigma)
    for x, target in zip(classes, tp.sliced_targets(classes, torch.ones(1, 1, dtype=F64), w), strict=True):
        right = mean + deviation * stats.norm.ppf((stats.rankdata(x[:, 0].numpy()) - 0.5) / len(x))
        inner = np.abs(right - mean) < 2 * deviation  # beyond, the straight lines between quantiles are coarse
        np.testing.assert_allclose(target[inner, 0].numpy(), right[inner], atol=0.02)
        assert float(target.mean()) == pytest.approx(mean, abs=0.01)
        assert float(target.std()) == pytest.approx(deviation, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 12))
def test_targets_keep_the_order_and_equal_sizes_share_them(seed, n, m):
    # catches targets that are scattered with the inverse of the right permutation
    classes, theta = [points(seed, n), points(seed + 1, n, shift=2.0), points(seed + 2, m)], directions(0, 4, 3)
    found = tp.sliced_targets(classes, theta, [0.2, 0.3, 0.5])
    for x, target in zip(classes, found, strict=True):
        assert target.shape == (len(x), 4)
        order = (x @ theta.T).argsort(0)
        assert (target.gather(0, order).diff(dim=0) >= -1e-12).all()
    torch.testing.assert_close(found[0].sort(0).values, found[1].sort(0).values)
    alone = tp.sliced_targets(classes, theta, [1.0, 0.0, 0.0])
    torch.testing.assert_close(alone[0], classes[0] @ theta.T)


def test_rows_and_classes_may_be_permuted():
    # property 7
    classes, theta = [points(0, 9), points(1, 6, shift=1.0)], directions(0, 5, 3)
    mixed = torch.from_numpy(np.random.default_rng(0).permutation(9))
    found = tp.sliced_step(classes, theta, [0.3, 0.7])
    other = tp.sliced_step([classes[1], classes[0][mixed]], theta, [0.7, 0.3])
    torch.testing.assert_close(other[1], found[0][mixed])
    torch.testing.assert_close(other[0], found[1])


def test_a_full_step_makes_the_classes_equal_along_its_directions():
    # catches directions applied by columns, and a step that is divided by k instead of by the number of blocks
    classes, theta = [points(0, 50, 4), 0.3 * points(1, 50, 4, shift=1.0)], directions(0, 4, 4)
    moved = tp.sliced_step(classes, theta)
    assert float(tp.sliced_w2(*moved, theta)) <= 1e-24
    unmoved = tp.sliced_step(classes, theta, step=0.0)
    assert all(torch.equal(x, y) for x, y in zip(classes, unmoved, strict=True))
    half = tp.sliced_step(classes, theta, step=0.5)
    torch.testing.assert_close(half[1], (classes[1] + moved[1]) / 2)
    two = [tp.sliced_step(classes, theta), tp.sliced_step(classes, directions(1, 4, 4))]
    both = tp.sliced_step(classes, torch.cat([theta, directions(1, 4, 4)]))
    torch.testing.assert_close(both[0], (two[0][0] + two[1][0]) / 2)


def test_translates_meet_at_the_mean_translate(monkeypatch):
    # property 2, in chunks of one direction: catches moves that are computed from points already moved
    monkeypatch.setattr(tp.slices, "_CHUNK_ELEMENTS", 1)
    x, t = points(0, 30), torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    left, right = tp.sliced_step([x, x + t], directions(0, 6, 3), [0.25, 0.75])
    torch.testing.assert_close(left, x + 0.75 * t)
    torch.testing.assert_close(right, x + 0.75 * t)


def test_full_transport_leaves_no_difference():
    # property 6: sliced steps and exact maps drive sliced W2 and MMD between the moved classes to 0
    classes = [points(0, 300), points(1, 200, shift=1.0) ** 3 * 0.3]
    theta, widths = directions(9, 30, 3), (0.5, 1.0, 2.0)
    before = float(tp.sliced_w2(*classes, theta)), float(tp.mmd2(*classes, widths))
    generator, moved = torch.Generator().manual_seed(0), classes
    for _ in range(40):
        moved = tp.sliced_step(moved, tp.random_directions(3, 3, generator, F64))
    assert float(tp.sliced_w2(*moved, theta)) < 0.01 * before[0]
    assert float(tp.mmd2(*moved, widths)) < 0.02 * before[1]
    mean = sum(x.mean(0) for x in classes) / 2  # the centre of the barycenter is the mean of the class means
    assert all(float((x.mean(0) - mean).norm()) < 0.05 for x in moved)


def test_types_are_kept_and_gradients_are_cut():
    x = points(0, 9, dtype=torch.float32).requires_grad_()
    moved = tp.sliced_step([x, points(1, 5, dtype=torch.float32)], directions(0, 3, 3))
    assert moved[0].dtype == torch.float32
    assert not moved[0].requires_grad
    assert tp.sliced_targets([x], directions(0, 3, 3))[0].dtype == torch.float32
    assert tp.sliced_w2(x, x.detach(), directions(0, 3, 3)).dtype == torch.float32
    assert tp.mmd2(x, x.detach() + 1).dtype == torch.float32


# -- kernel discrepancy ---------------------------------------------------------------------------------------------


def mmd_by_definition(x, y, widths, unbiased):
    """All pairs, all widths, by loops over widths and explicit differences."""

    def kernel(a, b):
        apart = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-apart / (2 * h * h)) for h in widths) / len(widths)

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    n, m = len(x), len(y)
    return (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1)) - 2 * xy.mean()


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 15), st.integers(2, 15), st.booleans(), st.sampled_from([1.0, 1e3]))
def test_mmd_is_its_definition(seed, n, m, unbiased, shift):
    # catches 2 h^2 against h^2, a diagonal that is left in, and cancellation far from the origin
    x, y, widths = points(seed, n, shift=shift), points(seed + 1, m, shift=shift + 1), (0.5, 2.0)
    found = float(tp.mmd2(x, y, widths, unbiased=unbiased))
    assert found == pytest.approx(float(mmd_by_definition(x, y, widths, unbiased)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_mmd_gradient_and_blocks(monkeypatch, unbiased):
    # finite differences, once with rows in several blocks; catches a gradient of the last block alone
    x, y = points(0, 9).requires_grad_(), points(1, 7, shift=0.5).requires_grad_()
    whole = tp.mmd2(x, y, unbiased=unbiased).item()
    monkeypatch.setattr(tp.kernels, "_CHUNK_ELEMENTS", 20)
    assert tp.mmd2(x, y, unbiased=unbiased).item() == pytest.approx(whole, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x, y: tp.mmd2(x, y, (0.5, 1.0, 3.0), unbiased=unbiased), (x, y))


def test_mmd_of_a_set_with_itself_and_of_one_point():
    # property 1; one point against one: 2 (1 - k)
    x = points(0, 20)
    assert float(tp.mmd2(x, x.flip(0))) <= 1e-14
    one, two = torch.zeros(1, 2, dtype=F64), torch.tensor([[3.0, 4.0]], dtype=F64)
    assert float(tp.mmd2(one, two, [5.0])) == pytest.approx(2 * (1 - math.exp(-0.5)))
    assert float(tp.mmd2(one, two)) > 0


def test_unbiased_mmd_has_mean_zero_under_equality_and_the_biased_one_does_not():
    # 5 standard errors over 200 draws; catches the diagonal counted into the unbiased mean
    values = np.array(
        [
            [float(tp.mmd2(points(2 * s, 12), points(2 * s + 1, 10), (1.0,), unbiased=u)) for u in (True, False)]
            for s in range(200)
        ]
    )
    error = values.std(0) / math.sqrt(len(values))
    assert abs(values[:, 0].mean()) < 5 * error[0]
    assert values[:, 1].mean() > 5 * error[1]


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

X, THETA = points(0, 5), directions(0, 3, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tp.random_directions(0, 3, torch.Generator()), "k = 0"),
        (lambda: tp.random_directions(3, 3, None), "generator = None"),
        (lambda: tp.sliced_w2(X, X[:0], THETA), "y with 0 point"),
        (lambda: tp.sliced_w2(X, X[:, :2], THETA), "y of shape"),
        (lambda: tp.sliced_w2(X * torch.inf, X, THETA), "x with NaN or infinite"),
        (lambda: tp.sliced_w2(X, X, 2 * THETA), "directions of lengths 2 to 2"),
        (lambda: tp.sliced_w2(X, X, THETA[:, :2]), "directions of shape"),
        (lambda: tp.sliced_targets([], THETA), "no class"),
        (lambda: tp.sliced_targets([X, X[:0]], THETA), "class 1 with 0 point"),
        (lambda: tp.sliced_targets([X, X], THETA, [1.0, -1.0]), "weights of shape"),
        (lambda: tp.sliced_step([X, X], THETA, step=2.0), "step = 2.0"),
        (lambda: tp.mmd2(X, X[:0]), "y with 0 point"),
        (lambda: tp.mmd2(X, X[:1], unbiased=True), "y with 1 point"),
        (lambda: tp.mmd2(X, X * torch.nan), "y with NaN"),
        (lambda: tp.mmd2(X, X, []), "bandwidths"),
        (lambda: tp.mmd2(X, X, [0.0]), "bandwidths"),
        (lambda: tp.mmd2(X[:1], X[:1]), "all equal"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
