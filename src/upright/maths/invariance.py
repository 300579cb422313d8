r"""Invariance over environments: penalties on how risks differ, and the distance of two sets of states.

An environment e has a risk R_e. A scalar omega = 1 multiplies what the last layer reads, and the penalties are built
from ``g_e = dR_e / d omega``, which is 0 where no rescaling would help environment e.

    IRMv1     sum_e g_e^2
    IRM-TV    l1: (mean_e |g_e|)^2,   l2: mean_e g_e^2
    V-REx     mean_e (R_e - mean R)^2
    MMD^2     mean k(z, z') + mean k(w, w') - 2 mean k(z, w),   k(a, b) = sum_q exp(-|a - b|^2 / (2 b_q))

With l the logits and p their softmax, the negative log-likelihood of y has ``g = E_p[l] - l_y`` and KL(p || q) has
``g = Cov_p(l, log p - log q)``: 0 where q = p, and 0 everywhere where all logits are 0. A penalty minimised alone
therefore ends in a model that tells no answer from another; it belongs beside the risks, never in their place.

References: Arjovsky et al., Invariant risk minimization, 2019; Krueger et al., Out-of-distribution generalization via
risk extrapolation, ICML 2021; Lai and Wang, Invariant risk minimization is a total variation model, ICML 2024;
Gretton et al., A kernel two-sample test, JMLR 2012; Su et al., Generalizable multimodal large language model editing
via invariant trajectory learning, arXiv 2601.19700.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from upright.contract import InputError

__all__ = ["irm_tv", "irm_v1", "kernel_bandwidths", "mmd2", "omega_gradients", "v_rex", "worst_case_lambda"]

_FLOOR = 1e-12  # of a bandwidth: its square, which the second derivative divides by, is still a float32


def _per_environment(name: str, values: Tensor) -> Tensor:
    """Refuse what is not one finite number an environment."""
    if values.ndim != 1 or not len(values) or not bool(torch.isfinite(values).all()):
        got = f"{name} of shape {tuple(values.shape)}, {int((~torch.isfinite(values)).sum())} not finite"
        raise InputError(got, "one finite number an environment, shape (E,)", "stack the environments; check the model")
    return values


def omega_gradients(risks: Tensor | Sequence[Tensor], omega: Tensor, *, create_graph: bool = True) -> Tensor:
    """``g_e = dR_e / d omega``, shape (E,).

    Parameters
    ----------
    risks : sequence of scalar Tensors, or one Tensor of shape (E,)
        As a sequence each backward pass stays in its own environment; stacked, each goes through all of them.
    omega : Tensor, shape ()
        The scale, 1, with ``requires_grad``; every risk must have passed through it.
    create_graph : bool
        Keep the graph, so that a penalty on the result can be differentiated.

    Raises
    ------
    InputError
        For risks that are not finite, and for one that does not depend on omega: it would count as invariant.
    """
    each = list(risks)
    _per_environment("risks", torch.stack(each) if each else torch.empty(0))
    if omega.ndim or not omega.requires_grad:
        got = f"omega of shape {tuple(omega.shape)} with requires_grad = {omega.requires_grad}"
        raise InputError(got, "a scalar that requires a gradient", "take torch.ones((), requires_grad=True)")
    found = []
    for e, risk in enumerate(each):
        g = None
        if risk.requires_grad:
            (g,) = torch.autograd.grad(risk, omega, create_graph=create_graph, retain_graph=True, allow_unused=True)
        if g is None:
            raise InputError(f"risk {e} without omega", "risks that depend on omega", "multiply its states with omega")
        found.append(g)
    return torch.stack(found)


def irm_v1(gradients: Tensor) -> Tensor:
    """``sum_e g_e^2``, shape (), from gradients of shape (E,): E times `irm_tv` of kind l2."""
    return _per_environment("gradients", gradients).square().sum()


def irm_tv(gradients: Tensor, *, kind: Literal["l1", "l2"] = "l1") -> Tensor:
    """Total variation over environments of equal weight: l1 ``(mean |g_e|)^2``, l2 ``mean g_e^2``, shape ().

    Guarantee
    ---------
    l1 is at most l2; they are equal where all ``|g_e|`` are.
    """
    _per_environment("gradients", gradients)
    if kind not in ("l1", "l2"):
        raise InputError(f"kind = {kind!r}", "l1, l2", "choose one of these")
    return gradients.abs().mean().square() if kind == "l1" else gradients.square().mean()


def v_rex(risks: Tensor) -> Tensor:
    """``mean_e (R_e - mean R)^2``, the population variance, shape ()."""
    return _per_environment("risks", risks).var(correction=0)


def worst_case_lambda(risks: Tensor, penalty: Tensor | float) -> float:
    """``(max R - mean R) / penalty``: the factor at which ``mean R + factor * penalty = max R``.

    It moves with the model, so no fixed factor will do. At a penalty of 0 it is 0 if all risks are equal, else inf.

    Parameters
    ----------
    risks : Tensor, shape (E,)
    penalty : Tensor of shape () or float
        At least 0, for example `irm_tv`.
    """
    values = _per_environment("risks", risks.detach()).double()
    weight = float(penalty.detach() if isinstance(penalty, Tensor) else penalty)
    if not 0.0 <= weight < math.inf:
        raise InputError(f"penalty = {weight}", "a finite number of at least 0", "pass irm_tv of the same risks")
    gap = max(float(values.max() - values.mean()), 0.0)  # the mean of equal numbers may round above them
    if weight:
        return gap / weight
    return math.inf if gap else 0.0


def _squared_distances(z: Tensor, w: Tensor) -> Tensor:
    """``|z_i - w_j|^2``, shape (n, m); `torch.cdist` has no second derivative."""
    return (z[:, None] - w[None]).square().sum(dim=-1)


def _states(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return states in float32, or float64 where they are; half precision under- and overflows in squares."""
    alike = z.ndim == w.ndim == 2 and z.shape[1] == w.shape[1] and len(z) and len(w)
    if not alike or not all(x.is_floating_point() and bool(torch.isfinite(x).all()) for x in (z, w)):
        got = f"states of shapes {tuple(z.shape)} and {tuple(w.shape)}, or not finite"
        raise InputError(got, "finite numbers, shapes (n, D) and (m, D)", "pass one state a prompt; check the model")
    dtype = torch.promote_types(torch.promote_types(z.dtype, w.dtype), torch.float32)
    return z.to(dtype), w.to(dtype)


def kernel_bandwidths(z: Tensor, w: Tensor, factors: Sequence[float] = (0.25, 0.5, 1, 2, 4)) -> Tensor:
    """``b_q = factor_q median |z_i - w_j|^2``, shape (Q,), without gradient; of an even number the lower median.

    Take them once, from the states before training: taken anew in every step they shrink with the distance, and the
    pull on the states grows without end. Sets that coincide get what the precision of the states can tell apart.

    Parameters
    ----------
    z, w : Tensor, shapes (n, D) and (m, D)
    factors : sequence of float
        Above 0.
    """
    if not len(factors) or not all(0.0 < factor < math.inf for factor in factors):
        raise InputError(f"factors = {tuple(factors)}", "finite numbers above 0", "change factors")
    z, w = _states(z.detach(), w.detach())
    floor = torch.finfo(z.dtype).eps * z.square().sum(dim=1).mean().clamp_min(_FLOOR)
    middle = _squared_distances(z, w).median().maximum(floor).clamp_min(_FLOOR)
    return middle * torch.tensor(factors, dtype=z.dtype, device=z.device)


def mmd2(z: Tensor, w: Tensor, bandwidths: Tensor) -> Tensor:
    """The biased squared maximum mean discrepancy of two sets of states, divided by 2Q: shape (), in [0, 1].

    Parameters
    ----------
    z, w : Tensor, shapes (n, D) and (m, D)
        Both may carry gradients, of second order too.
    bandwidths : Tensor, shape (Q,)
        From `kernel_bandwidths`; above 0.

    Guarantee
    ---------
    0 for equal sets, up to rounding; ``1 - k(z, w) / Q`` for one state against one. Undivided it would reach 2Q.
    """
    z, w = _states(z, w)
    if bandwidths.ndim != 1 or not bool(((bandwidths > 0) & torch.isfinite(bandwidths)).all()) or not len(bandwidths):
        got = f"bandwidths of shape {tuple(bandwidths.shape)}, or not above 0"
        raise InputError(got, "finite numbers above 0, shape (Q,)", "take kernel_bandwidths")
    b = bandwidths.detach().to(z)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (-_squared_distances(x, y)[..., None] / (2 * b)).exp().sum(dim=-1).mean()

    return (kernel(z, z) + kernel(w, w) - 2 * kernel(z, w)) / (2 * len(b))
