"""Ascent, weights of items, curvature and the bound, against closed forms, dense Hessians and brute force."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quadratic_items import QuadraticItems
from upright.contract import InputError
from upright.maths import sharpness as sh

SEEDS = st.integers(0, 2**32 - 1)
ZIPF = np.floor(2_000 / np.arange(1, 61))


def tensors(seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in ((3, 4), (5,))]


def flat(parts):
    return torch.cat([x.detach().flatten() for x in parts])


# ascent


@given(SEEDS, st.floats(0.0, 10.0), st.booleans())
@settings(max_examples=30, deadline=None)
def test_ascent_is_the_highest_point_of_the_linear_loss_in_the_ball(seed, rho, adaptive):
    grads, weights = tensors(seed), tensors(seed + 1)
    e, g, w = flat(sh.ascent(grads, rho, weights if adaptive else None)), flat(grads), flat(weights)
    t = w.abs() if adaptive else torch.ones_like(w)
    assert float((e / t).norm()) == pytest.approx(rho, rel=1e-12)
    other = torch.randn(100, len(g), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    other = rho * other / other.norm(dim=1, keepdim=True) * t
    assert float((other @ g).max()) <= float(e @ g) + 1e-12
    assert float(e @ g) == pytest.approx(rho * float((t * g).norm()), rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_ascent_without_a_direction_is_zero(bad):
    grads = [g * bad for g in tensors(0)]
    assert not flat(sh.ascent(grads, 0.1)).any()
    assert not flat(sh.ascent(grads, 0.1, tensors(1))).any()


def test_the_norm_of_half_precision_is_summed_in_double():
    # catches: a sum of squares that overflows, or stands still, in the type of the gradients
    e = sh.ascent([torch.full((70_000,), 300.0, dtype=torch.float16)], 1.0)[0]
    assert float(e.double().norm()) == pytest.approx(1.0, rel=1e-3)
    e = sh.ascent([torch.full((70_000,), 300.0, dtype=torch.float16)], 1.0, [torch.full((70_000,), 300.0).half()])[0]
    assert float((e.double() / 300).norm()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_a_radius_that_is_none_is_refused(rho):
    with pytest.raises(InputError, match="rho"):
        sh.ascent(tensors(0), rho)


# weights of items


@pytest.mark.parametrize("kind", sh.WEIGHTS)
@given(
    st.lists(st.integers(0, 10_000), min_size=3, max_size=40).filter(lambda n: len({x for x in n if x}) > 1),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
@settings(max_examples=25, deadline=None)
def test_weights_have_mean_one_over_interactions_and_fall_with_the_count(kind, count, gamma):
    n = np.array(count, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        f = sh.item_weights(n, kind, gamma)
    assert f @ n / n.sum() == pytest.approx(1.0, rel=1e-12)
    assert (f >= 0).all()
    assert (np.diff(f[np.argsort(n, kind="stable")]) <= 1e-12 * f.max()).all()


def test_weights_follow_their_formulas():
    n = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
    wanted = {
        "focal": (1 - n / 16) ** 2,
        "relative": (1 - n / 8) ** 2,
        "power": (n / 2) ** -2,
        "effective": 0.01 / (1 - 0.99**n),
        "rank": np.array([0, 1, 2, 3.5, 3.5]) ** 2,
        "tail_only": np.array([0, 1, 1, 1, 1]),
    }
    for kind, f in wanted.items():
        np.testing.assert_allclose(sh.item_weights(n, kind, 2.0), f * n.sum() / (f @ n), rtol=1e-12)


def test_equal_counts_are_plain_sam_and_a_catalogue_is_nearly():
    with pytest.warns(UserWarning, match="plain SAM"):
        assert (sh.item_weights([3, 3, 0, 3], "relative", 2.0) == 1.0).all()
    with pytest.warns(UserWarning, match="nearly"):
        sh.item_weights(np.linspace(10, 600, 1_300), "focal", 3.0)
    sh.item_weights(np.linspace(10, 600, 1_300), "relative", 3.0)  # no warning
    assert (sh.item_weights([3, 3, 3], "constant") == 1.0).all()


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_shuffled_weights_are_those_of_others_with_mean_one(seed):
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 50, 20).astype(float)
    f = sh.item_weights(n, "power", 1.0)
    g = sh.shuffled_weights(f, n, np.random.default_rng(seed))
    assert g @ n / n.sum() == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(np.sort(g / g.sum()), np.sort(f / f.sum()), rtol=1e-12)
    assert not np.array_equal(g / g.sum(), f / f.sum())


NO_COUNTS = [[1, -1], [1, math.nan], [0, 0], [[1, 2]]]


@pytest.mark.parametrize(
    ("count", "kind"), [*((one, "rank") for one in NO_COUNTS), ([1, 2], "focus"), ([5, 4, *[0] * 8], "tail_only")]
)
def test_counts_that_are_none_and_weights_of_nothing_are_refused(count, kind):
    with pytest.raises(InputError):
        sh.item_weights(count, kind, 1.0)
    with pytest.raises(InputError, match=r"weights of shape \(3,\)"):
        sh.shuffled_weights([1, 2, 3], [1, 2], np.random.default_rng(0))


# slices, curvature, sharpness of items


def test_a_slice_of_a_quadratic_is_a_parabola_and_weights_return():
    model, at = QuadraticItems([1.0], dim=6), torch.zeros(2, dtype=torch.int64)
    before, d, steps = model.w.detach().clone(), torch.arange(6.0, dtype=torch.float64), [-1.0, 0.0, 0.3, 2.0]
    found, gap = sh.slice_losses(lambda: model(at), [model.w], [d], steps), before - model.centre[0]
    wanted = [float(0.5 * (gap + t * d) @ model.hessian[0] @ (gap + t * d)) for t in steps]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64)[:, None].expand(-1, 2))
    assert torch.equal(model.w, before)
    w = torch.tensor([1 / 3, 1e20], requires_grad=True)
    before = w.detach().clone()
    with pytest.raises(ZeroDivisionError):
        sh.slice_losses(lambda: w.sum() / (1 // 0), [w], [torch.ones(2)], [0.7])
    assert torch.equal(w, before)


@given(SEEDS, st.floats(0.0, 1.0))
@settings(max_examples=15, deadline=None)
def test_item_sharpness_is_the_closed_form_of_quadratics(seed, rho):
    model, items = QuadraticItems([1.0] * 5, 4, seed), torch.from_numpy(np.random.default_rng(seed).integers(0, 5, 12))
    before = model.w.detach().clone()
    which, found = sh.item_sharpness(lambda rows: model(items[rows]), [model.w], items, rho)
    assert which.tolist() == sorted(set(items.tolist()))
    for i, s in zip(which.tolist(), found.tolist(), strict=True):
        slope = model.hessian[i] @ (before - model.centre[i])
        bend = float(slope @ model.hessian[i] @ slope / (slope @ slope))
        assert s == pytest.approx(rho * float(slope.norm()) + 0.5 * rho**2 * bend, rel=1e-9, abs=1e-12)
    assert torch.equal(model.w, before)
    assert model.w.grad is None


def test_the_bound_adds_up_and_falls_with_count_and_radius():
    n, k, norm, rho, delta = np.array([50.0, 1_000.0]), 20, 2.0, 0.5, 0.1
    found = sh.bound([0.3, 0.3], n, k, norm, rho, delta)
    for b, m in zip(found, n, strict=True):
        volume = k * math.log(1 + norm**2 / rho**2 * (1 + math.sqrt(math.log(m) / k)) ** 2)
        inner = volume + 4 * math.log(m / (delta / 2)) + 8 * math.log(6 * m + 3 * k)
        assert b == pytest.approx(0.3 + math.sqrt(inner / (m - 1)), rel=1e-12)
    assert found[0] > found[1]
    assert (sh.bound([0.3, 0.3], n, k, norm, 2 * rho, delta) < found).all()
    assert np.isinf(sh.bound([0.0, 0.0], [1, 5], k, norm, rho)).tolist() == [True, False]
    with pytest.raises(InputError, match="rho"):
        sh.bound([0.3], [5], k, norm, 0.0)
