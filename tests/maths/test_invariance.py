"""Omega gradients against closed forms, penalties against each other, and kernels at the distances of real states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from upright.contract import InputError
from upright.maths.invariance import (
    irm_tv,
    irm_v1,
    kernel_bandwidths,
    mmd2,
    omega_gradients,
    v_rex,
    worst_case_lambda,
)

FLOATS = st.floats(-1e3, 1e3, allow_subnormal=False)
PER_ENVIRONMENT = st.lists(FLOATS, min_size=1, max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))


def logits(seed, rows=1, vocabulary=7):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def one():
    return torch.ones((), dtype=torch.float64, requires_grad=True)


def kl(p, q):
    return (p.exp() * (p - q)).sum(dim=-1)


def slope(risk):
    """Derivative of one risk at omega = 1, by the function that methods call."""
    omega = one()
    return float(omega_gradients([risk(omega)], omega, create_graph=False)[0])


# -- gradients of omega ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_omega_have_closed_forms(seed):
    # catches a KL of the other direction, a scale that misses the softmax, a mean for a sum (T1, T2, T4)
    own, other = logits(seed)[0], logits(seed + 100)[0].log_softmax(-1)
    p, log_p, q = own.softmax(-1), own.log_softmax(-1), other.exp()
    assert slope(lambda w: -(own * w).log_softmax(-1)[3]) == pytest.approx(float(p @ own - own[3]), abs=1e-12)
    ratio = log_p - other
    covariance = float(p @ (own * ratio) - (p @ own) * (p @ ratio))
    assert slope(lambda w: kl((own * w).log_softmax(-1), other)) == pytest.approx(covariance, abs=1e-12)
    assert slope(lambda w: kl(other, (own * w).log_softmax(-1))) == pytest.approx(float((p - q) @ own), abs=1e-12)
    assert abs(covariance - float((p - q) @ own)) > 1e-2


def test_an_unedited_model_has_no_locality_gradient():
    # T3: the first step of an edit must not be driven by KL(p || p)
    own = logits(0)[0]
    assert slope(lambda w: kl((own * w).log_softmax(-1), own.log_softmax(-1))) == pytest.approx(0, abs=1e-14)


def test_a_model_of_zero_logits_has_no_penalty_at_all():
    """T10: the penalty alone is least where the model answers everything alike, and descent goes there."""
    start, other = logits(1, rows=3), logits(2)[0].log_softmax(-1)

    def risks(at, omega):
        said = (at * omega).log_softmax(-1)
        return [-said[0, 1], -said[1, 4], kl(said[2], other)]

    def penalty(at):
        omega = one()
        return irm_tv(omega_gradients(risks(at, omega), omega))

    flat = torch.zeros_like(start, requires_grad=True)
    assert float(penalty(flat).detach()) == 0.0
    assert float(torch.autograd.grad(penalty(flat), flat)[0].abs().max()) == 0.0
    sizes = [float(penalty(start * scale).detach()) for scale in (1, 0.3, 0.1, 0.01)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-3 * sizes[0]
    assert float(risks(flat.detach(), 1.0)[0]) == pytest.approx(math.log(7))  # and the answers are guesses


def test_the_penalty_moves_the_weights_behind_omega():
    # create_graph: a penalty from detached gradients would train nothing
    own = logits(3, rows=2).requires_grad_()

    def tv(at, omega, **how):
        said = (at * omega).log_softmax(-1)
        return irm_tv(omega_gradients([-said[0, 0], -said[1, 1]], omega, **how))

    (found,) = torch.autograd.grad(tv(own, one()), own)
    step = torch.zeros_like(own)
    step[0, 2] = 1e-6
    numeric = float((tv(own.detach() + step, one()) - tv(own.detach() - step, one())).detach()) / 2e-6
    assert float(found[0, 2]) == pytest.approx(numeric, rel=1e-6)
    assert abs(numeric) > 1e-3
    assert not tv(own, one(), create_graph=False).requires_grad


# -- penalties ---------------------------------------------------------------------------------------------------------


@given(PER_ENVIRONMENT)
def test_l1_is_at_most_l2_and_equal_where_the_sizes_are(g):
    # T5, and T9 for a uniform measure
    l1, l2 = float(irm_tv(g)), float(irm_tv(g, kind="l2"))
    assert l1 <= l2 * (1 + 1e-12)
    assert float(irm_v1(g)) == pytest.approx(len(g) * l2, rel=1e-12)
    level = torch.sign(g) * 3.0
    level[level == 0] = 3.0
    assert float(irm_tv(level)) == pytest.approx(9.0)
    assert float(irm_tv(level, kind="l2")) == pytest.approx(9.0)


@given(PER_ENVIRONMENT, st.floats(1e-3, 1e3))
def test_lambda_lifts_the_mean_to_the_worst_case(risks, penalty):
    # T6, Proposition 4.2
    found = worst_case_lambda(risks, penalty)
    assert found >= 0
    assert float(risks.mean()) + found * penalty == pytest.approx(float(risks.max()), rel=1e-9, abs=1e-9)


def test_lambda_without_a_penalty():
    equal, unequal = torch.full((3,), 0.1), torch.tensor([0.1, 0.3])
    assert worst_case_lambda(equal, 0.0) == 0.0
    assert worst_case_lambda(unequal, 0.0) == math.inf
    assert worst_case_lambda(unequal, irm_tv(torch.tensor([2.0, -2.0]))) == pytest.approx(0.025)


@pytest.mark.parametrize("g", [(0.5, -2.0), (1e-3, 1e-3)])
def test_dual_ascent_only_pushes_lambda_up(g):
    # T8: why a learned factor needs a cap
    weight, delta = irm_tv(torch.tensor(g, dtype=torch.float64)), torch.zeros((), dtype=torch.float64)
    delta.requires_grad_()
    (up,) = torch.autograd.grad(1.0 + torch.nn.functional.softplus(delta) * weight, delta)
    assert float(up) == pytest.approx(0.5 * float(weight))
    assert float(up) > 0


def test_on_a_linear_problem_the_penalties_see_what_they_should():
    """T9: y = x + noise; z = y + noise of the environment. Only weights on x alone leave omega nothing to gain."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 1000))
    y = x + 0.5 * draw.normal(size=x.shape)
    z = y + np.array([[0.2], [2.0]]) * draw.normal(size=x.shape)
    x, y, z = map(torch.from_numpy, (x, y, z))

    def at(a, b):
        omega = one()
        risks = ((omega * (a * x + b * z) - y) ** 2).mean(dim=1)
        f = a * x + b * z
        g = omega_gradients(risks, omega)
        assert g.tolist() == pytest.approx((2 * f * (f - y)).mean(dim=1).tolist())
        return risks.detach(), g.detach()

    causal, shortcut = at(1.0, 0.0), at(0.0, 0.6)
    assert float(irm_v1(causal[1])) < 0.01 < 1.0 < float(irm_v1(shortcut[1]))
    assert float(v_rex(causal[0])) < 0.001 < 0.1 < float(v_rex(shortcut[0]))
    assert float(v_rex(shortcut[0])) == pytest.approx(np.var(shortcut[0].numpy()))


# -- distances of states -----------------------------------------------------------------------------------------------

STATES = st.integers(0, 2**31).map(lambda seed: torch.Generator().manual_seed(seed))


@given(STATES, st.integers(1, 4), st.integers(1, 4), st.floats(1e-3, 1e3))
def test_the_discrepancy_lies_between_0_and_1(generator, n, m, scale):
    # T7, whatever the scale of the states
    z, w = (torch.randn(k, 5, generator=generator, dtype=torch.float64) * scale for k in (n, m))
    b = kernel_bandwidths(z, w)
    value = float(mmd2(z, w, b))
    assert -1e-15 <= value <= 1.0
    assert value == pytest.approx(float(mmd2(w, z, b)))
    assert float(mmd2(z, z.flip(0), b)) == pytest.approx(0, abs=1e-15)
    assert value == pytest.approx(float(mmd2(3 * z, 3 * w, kernel_bandwidths(3 * z, 3 * w))), abs=1e-12)


def test_one_state_against_one():
    # T7: a single edit has one state; every kernel counts alike
    z, w = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    b = kernel_bandwidths(z, w)
    assert b.tolist() == [6.25, 12.5, 25.0, 50.0, 100.0]
    k = sum(math.exp(-1 / (2 * f)) for f in (0.25, 0.5, 1, 2, 4))
    assert float(mmd2(z, w, b)) == pytest.approx(1 - k / 5)


def test_the_discrepancy_averages_over_pairs():
    z, w = logits(5, 3, 4), logits(6, 2, 4)
    b = kernel_bandwidths(z, w, (0.5, 2))

    def mean(x, y):
        return np.mean([np.exp(-(((a - c) ** 2).sum()) / (2 * b.numpy())).sum() for a in x.numpy() for c in y.numpy()])

    assert float(mmd2(z, w, b)) == pytest.approx((mean(z, z) + mean(w, w) - 2 * mean(z, w)) / 4)


def force(distance, bandwidths=None):
    """Size of the gradient of 2Q mmd2 of two states in 4,096 dimensions."""
    z = torch.zeros(1, 4096, dtype=torch.float64, requires_grad=True)
    w = torch.full((1, 4096), distance / 64, dtype=torch.float64)
    b = kernel_bandwidths(z, w) if bandwidths is None else bandwidths
    return float(torch.autograd.grad(2 * len(b) * mmd2(z, w, b), z)[0].norm())


def test_fixed_bandwidths_die_at_the_distances_of_large_models():
    fixed = torch.tensor([1.0, 2, 4, 8, 16]).square()
    assert force(64, fixed) == pytest.approx(1.7e-4, rel=0.02)
    assert 1e-77 < force(300, fixed) < 1e-75
    z, w = torch.zeros(1, 4096, requires_grad=True), torch.full((1, 4096), 300 / 64)
    assert float(torch.autograd.grad(mmd2(z, w, fixed), z)[0].abs().max()) == 0.0  # float32 cannot even hold it
    closed = sum(2 / f * math.exp(-1 / (2 * f)) for f in (0.25, 0.5, 1, 2, 4))
    assert force(64) == pytest.approx(closed / 64)
    assert force(300) == pytest.approx(closed / 300)
    assert force(300) > 1e-2


def test_bandwidths_taken_anew_never_let_the_states_meet():
    # frozen, the discrepancy vanishes as the states approach; anew, it stays and its force grows
    far, near = (torch.full((1, 4), d, dtype=torch.float64) for d in (1.0, 1e-3))
    zero = torch.zeros(1, 4, dtype=torch.float64)
    frozen = kernel_bandwidths(zero, far)
    assert float(mmd2(zero, near, frozen)) < 1e-5
    assert float(mmd2(zero, near, kernel_bandwidths(zero, near))) == pytest.approx(float(mmd2(zero, far, frozen)))


def test_the_discrepancy_has_second_derivatives():
    # what torch.cdist has not, and what the penalty needs as soon as omega scales the states; equal rows included
    z, w = logits(7, 2, 3), logits(8, 3, 3)
    z[1] = z[0]
    b = kernel_bandwidths(z, w)
    at = (z.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: mmd2(x, y, b), at)
    assert torch.autograd.gradgradcheck(lambda x, y: mmd2(x, y, b), at)
    omega = one()
    (g,) = omega_gradients(mmd2(omega * z, omega * w, b)[None], omega)
    assert bool(torch.isfinite(torch.autograd.grad(g, z)[0]).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_half_precision_and_equal_states_give_numbers(dtype, scale):
    # the square of a distance of 6,400 is not a float16; the median distance of equal states is 0
    z = torch.full((2, 4096), scale, dtype=dtype, requires_grad=True)
    w = -z.detach()[:1]
    for other, least in ((w, 0.1 if scale else 0.0), (z.detach(), 0.0)):
        value = mmd2(z, other, kernel_bandwidths(z, other))
        assert value.dtype == torch.float32
        assert bool(value >= least)
        assert bool(torch.isfinite(torch.autograd.grad(value, z)[0]).all())


# -- doors -------------------------------------------------------------------------------------------------------------

NAN, ONE, TWO, Z = torch.tensor([0.0, math.nan]), one(), torch.ones(2), torch.ones(2, 3)
PER = "one finite number an environment, shape (E,)"
STACK = "stack the environments; check the model"
FINITE = "finite numbers, shapes (n, D) and (m, D)"
PASS = "pass one state a prompt; check the model"
ABOVE = "finite numbers above 0, shape (Q,)"
SCALAR = ("a scalar that requires a gradient", "take torch.ones((), requires_grad=True)")
WITHOUT = ("risks that depend on omega", "multiply its states with omega")
BAD = [
    (lambda: irm_v1(NAN), "gradients of shape (2,), 1 not finite", PER, STACK),
    (lambda: v_rex(torch.ones(())), "risks of shape (), 0 not finite", PER, STACK),
    (lambda: irm_tv(torch.ones(0)), "gradients of shape (0,), 0 not finite", PER, STACK),
    (lambda: irm_tv(TWO, kind="l3"), "kind = 'l3'", "l1, l2", "choose one of these"),
    (lambda: omega_gradients([], one()), "risks of shape (0,), 0 not finite", PER, STACK),
    (lambda: omega_gradients(TWO, ONE.detach()), "omega of shape () with requires_grad = False", *SCALAR),
    (lambda: omega_gradients(TWO * ONE, ONE * TWO), "omega of shape (2,) with requires_grad = True", *SCALAR),
    (lambda: omega_gradients(TWO, ONE), "risk 0 without omega", *WITHOUT),
    (lambda: omega_gradients([2 * ONE, one()], ONE), "risk 1 without omega", *WITHOUT),
    (
        lambda: worst_case_lambda(TWO, -1.0),
        "penalty = -1.0",
        "a finite number of at least 0",
        "pass irm_tv of the same risks",
    ),
    (lambda: kernel_bandwidths(Z, Z, (1, 0)), "factors = (1, 0)", "finite numbers above 0", "change factors"),
    (lambda: mmd2(Z, TWO, TWO), "states of shapes (2, 3) and (2,), or not finite", FINITE, PASS),
    (lambda: mmd2(Z, Z * math.inf, TWO), "states of shapes (2, 3) and (2, 3), or not finite", FINITE, PASS),
    (lambda: mmd2(Z, Z, -TWO), "bandwidths of shape (2,), or not above 0", ABOVE, "take kernel_bandwidths"),
]


@pytest.mark.parametrize(("call", "got", "accepted", "todo"), BAD)
def test_what_has_no_answer_is_refused(call, got, accepted, todo):
    with pytest.raises(InputError) as caught:
        call()
    assert (caught.value.got, caught.value.accepted, caught.value.todo) == (got, accepted, todo)
