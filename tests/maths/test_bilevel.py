"""Hypergradients against solved inner problems, solvers against each other, weights on their sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths.bilevel import exponentiated_gradient, project_box, project_l1, project_simplex, solve

N, P = 12, 5


class Toy:
    """Weighted logistic regression with a ridge inside, logistic loss on other rows outside."""

    def __init__(self, seed=0, ridge=0.3):
        draw = np.random.default_rng(seed)
        self.x, self.z = draw.normal(size=(N, P)), draw.normal(size=(20, P))
        self.ridge = ridge

    def gradients(self, theta):
        """Of each row's log(1 + exp(-x theta)), shape (N, P)."""
        return -self.x / (1 + np.exp(self.x @ theta))[:, None]

    def hessian(self, theta, w):
        s = 1 / (1 + np.exp(-self.x @ theta))
        return (self.x * (w * s * (1 - s))[:, None]).T @ self.x + self.ridge * np.eye(P)

    def inner(self, w):
        theta = np.zeros(P)
        for _ in range(50):  # Newton
            theta = theta - np.linalg.solve(
                self.hessian(theta, w), w @ self.gradients(theta) + self.ridge * theta
            )  # fmt: skip
        return theta

    def outer(self, w):
        return np.log1p(np.exp(-self.z @ self.inner(w))).mean()

    def scores(self, w, **how):
        theta = self.inner(w)
        g = (-self.z / (1 + np.exp(self.z @ theta))[:, None]).mean(axis=0)
        h = torch.from_numpy(self.hessian(theta, w))
        found = solve(lambda x: h @ x, torch.from_numpy(g), **how)
        return self.gradients(theta) @ found.v.numpy()


def test_exact_scores_are_derivatives_through_the_solved_problem():
    # catches a wrong sign, a Hessian without the weights or the ridge, a transposed system
    toy, w = Toy(), np.random.default_rng(1).uniform(0.2, 2, N)
    slope = [(toy.outer(w + e) - toy.outer(w - e)) / 2e-4 for e in 1e-4 * np.eye(N)]
    np.testing.assert_allclose(-toy.scores(w, how="exact"), slope, rtol=1e-6, atol=1e-6 * np.abs(slope).max())


def angle(a, b):
    return float(torch.acos((torch.dot(a, b) / a.norm() / b.norm()).clamp(-1, 1)))


def spectrum(values, seed):
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed)).double()
    )
    return q @ torch.diag(values) @ q.T


@pytest.mark.parametrize("seed", range(8))
def test_more_products_come_closer(seed):
    # catches a series with the wrong step, a term too few, conjugate directions that are not
    h = spectrum(torch.logspace(0, 2, 40).double(), seed)
    g = torch.randn(40, generator=torch.Generator().manual_seed(100 + seed)).double()
    exact = solve(lambda x: h @ x, g, how="exact")
    torch.testing.assert_close(exact.v, torch.linalg.solve(h, g), rtol=1e-8, atol=1e-10)
    ways = [("identity", 1), ("neumann", 5), ("neumann", 50), ("cg", 10)]
    found = [solve(lambda x: h @ x, g, how=how, steps=steps) for how, steps in ways]
    off = [angle(one.v, exact.v) for one in found]
    assert off == sorted(off, reverse=True)
    assert off[0] > 2 * off[-1]
    assert exact.converged
    assert not any(one.converged for one in found)


@pytest.mark.parametrize("how", ["identity", "diagonal", "neumann", "cg", "exact"])
def test_a_multiple_of_one_leaves_the_direction(how):
    # catches a solver that turns g where there is nothing to turn for
    g = torch.randn(7, generator=torch.Generator().manual_seed(0)).double()
    found = solve(lambda x: 3.0 * x, g, how=how, damping=0.5)
    torch.testing.assert_close(found.v / found.v.norm(), g / g.norm())
    if how != "identity":
        torch.testing.assert_close(found.v, g / 3.5)
        assert found.converged


def test_series_is_the_one_that_is_written():
    # catches a Neumann series of one term more or less, or about another matrix than H + damping
    values = torch.tensor([4.0, 2.0, 1.0]).double()
    g = torch.tensor([1.0, 1e-9, 1e-9]).double()  # power iteration from here stays at 4 + 1
    scale = 1 / 5
    series = scale * sum((1 - scale * (values + 1)) ** k for k in range(3)) * g
    found = solve(lambda x: values * x, g, how="neumann", damping=1.0, steps=3)
    torch.testing.assert_close(found.v, series, rtol=1e-9, atol=1e-24)


def test_products_and_residuals_are_counted():
    # catches a residual of the recursion in place of the true one, and products that nobody counts
    h, calls = spectrum(torch.linspace(1, 9, 6).double(), 0), []
    g = torch.ones(6).double()

    def hvp(x):
        calls.append(1)
        return h @ x

    for how, steps in (("identity", 0), ("diagonal", 6), ("neumann", 13), ("cg", 4), ("exact", 6)):
        calls.clear()
        found = solve(hvp, g, how=how, steps=4)
        assert found.steps == steps == len(calls) - 1
        assert found.residual == pytest.approx(float((h @ found.v - g).norm() / g.norm()), rel=1e-9, abs=1e-15)
    assert solve(hvp, g, how="cg", steps=100).steps <= 7  # P steps are enough
    assert solve(hvp, g, how="diagonal", diagonal=h.diagonal()).steps == 0
    alone = solve(None, g)
    assert torch.equal(alone.v, g)
    assert math.isnan(alone.residual)


def test_curvature_below_nought_is_not_hidden():
    # catches conjugate gradients that walk uphill, and call it solved
    values = torch.tensor([1.0, -2.0]).double()
    first = solve(lambda x: values * x, torch.ones(2).double(), how="cg")
    assert torch.equal(first.v, torch.ones(2).double())
    assert not first.converged
    assert solve(lambda x: values * x, torch.ones(2).double(), how="cg", damping=3.0).converged
    none = solve(lambda x: x, torch.zeros(2).double(), how="cg")
    assert none[1:] == (0.0, 0, True)
    assert not none.v.any()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"how": "lissa"}, "how = 'lissa'"),
        ({"hvp": None, "how": "cg"}, "how = 'cg' without hvp"),
        ({"g": torch.tensor([1.0, float("nan")])}, "1 not finite"),
        ({"g": torch.ones(2, 2)}, "shape \\(2, 2\\)"),
        ({"damping": -1.0}, "damping = -1.0"),
        ({"steps": 0}, "steps = 0"),
        ({"how": "diagonal", "diagonal": torch.ones(3)}, "a diagonal of shape \\(3,\\)"),
        ({"how": "diagonal", "diagonal": torch.tensor([1.0, 0.0])}, "1 entries that are not above 0"),
        ({"how": "exact", "hvp": lambda x: 0 * x}, "a singular H"),
        ({"how": "neumann", "hvp": lambda x: 0 * x}, "maps g to nought"),
        ({"how": "exact", "g": torch.ones(5000)}, "how = 'exact' for 5000 parameters"),
        ({"hvp": lambda x: x[:1]}, "a product with H of shape \\(1,\\)"),
    ],
)
def test_what_cannot_be_solved_is_refused(changed, said):
    # catches a number in the place of an answer
    given = {"hvp": lambda x: x, "g": torch.ones(2), "how": "identity"} | changed
    with pytest.raises(InputError, match=said):
        solve(given.pop("hvp"), given.pop("g"), **given)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_small_step_does_not_raise_the_outer_loss(seed):
    # catches the published sign: weights times exp(-eta s) where s = -dJ/dw
    toy, w = Toy(seed), np.random.default_rng(seed).uniform(0.2, 2, N)
    score = toy.scores(w, how="exact")
    for eta in (1e-3, 1e-2, 1e-1):
        moved = exponentiated_gradient(w, -score, eta / np.abs(score).max())
        assert toy.outer(moved) < toy.outer(w)
        assert toy.outer(exponentiated_gradient(w, score, eta / np.abs(score).max())) > toy.outer(w)


numbers = st.lists(st.floats(-5, 5), min_size=2, max_size=12)


@given(numbers, st.floats(0.1, 3), st.floats(0.01, 100), st.floats(-3, 3))
def test_mirror_steps(gradient, eta, factor, shift):
    # catches a sum that is not kept, a zero that comes back, a step that depends on the unit of J
    slope = np.array(gradient)
    w = np.arange(len(slope), dtype=float)
    moved = exponentiated_gradient(w, slope, eta)
    assert moved.sum() == pytest.approx(w.sum())
    assert moved[0] == 0.0
    ratio = moved[1:] / moved[-1] * w[-1] / w[1:]
    np.testing.assert_allclose(ratio, np.exp(-eta * (slope[1:] - slope[-1])), rtol=1e-9)
    np.testing.assert_allclose(exponentiated_gradient(w, slope * factor, eta / factor), moved, rtol=1e-9)
    np.testing.assert_allclose(exponentiated_gradient(w, slope + shift, eta), moved, rtol=1e-9)
    assert np.array_equal(exponentiated_gradient(w, slope, 0.0), w)


def test_large_exponents():
    # catches an overflow, of a weight that is 0 too
    assert exponentiated_gradient([0.0, 1.0, 1.0], [-1e6, 0.0, 1e6], 1.0).tolist() == [0.0, 2.0, 0.0]


SETS = {
    "simplex": (lambda w: project_simplex(w, 2.0), lambda d, n: 2 * d.dirichlet(np.full(n, 0.3))),
    "box": (lambda w: project_box(w, -0.5, 1.5), lambda d, n: d.uniform(-0.5, 1.5, n)),
    "box with a sum": (
        lambda w: project_box(w, 0.2, 3.0, len(w)),
        lambda d, n: 0.2 + 0.8 * n * (lambda x: x / x.sum())(d.uniform(0.5, 1, n)),
    ),
    "l1": (lambda w: project_l1(w, 1.5), lambda d, n: 1.5 * d.dirichlet(np.ones(n)) * d.choice([-1, 0, 1], n)),
}


@pytest.mark.parametrize("name", SETS)
@given(numbers)
def test_projections_are_nearest_points(name, values):
    # the nearest point p of a convex set: <w - p, q - p> <= 0 for all q in it; catches every other point
    project, inside = SETS[name]
    w, draw = np.array(values), np.random.default_rng(0)
    p = project(w)
    for _ in range(20):
        assert (w - p) @ (inside(draw, len(w)) - p) <= 1e-9
    np.testing.assert_allclose(project(p), p, atol=1e-12)  # and p lies in the set
    total = {"simplex": 2.0, "box with a sum": len(w)}.get(name)
    assert total is None or p.sum() == pytest.approx(total)
    low, high = {"simplex": (0, 2), "box": (-0.5, 1.5), "box with a sum": (0.2, 3), "l1": (-1.5, 1.5)}[name]
    assert p.min() >= low - 1e-12
    assert p.max() <= high + 1e-12
    assert name != "l1" or np.abs(p).sum() <= 1.5 + 1e-9


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: exponentiated_gradient([-1, 1], [0, 0], 1), "weights from -1 to 1"),
        (lambda: exponentiated_gradient([0, 0], [0, 0], 1), "weights from 0 to 0"),
        (lambda: exponentiated_gradient([1, 1], [0], 1), "2 weights and 1 derivatives"),
        (lambda: exponentiated_gradient([1, 1], [0, math.nan], 1), "gradient of shape \\(2,\\), 1 not finite"),
        (lambda: exponentiated_gradient([1, 1], [0, 1], -1), "eta = -1"),
        (lambda: project_simplex([], 1), "w of shape \\(0,\\)"),
        (lambda: project_simplex([1], 0), "total = 0"),
        (lambda: project_box([1, 2], 1, 0), "bounds 1 and 0"),
        (lambda: project_box([1, 2], 0, 1, 3), "of sum 3"),
        (lambda: project_l1([1], -1), "radius = -1"),
    ],
)
def test_weights_that_cannot_be(call, said):
    # catches NaN, and a set without a point
    with pytest.raises(InputError, match=said):
        call()
