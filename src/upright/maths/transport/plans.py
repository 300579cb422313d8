r"""Exact transport plans between two weighted point sets, and the costs that all plans are made from.

Symbols: points ``x`` (n, d) with masses ``a``, points ``z`` (m, d) with masses ``b`` of equal sum, costs ``C`` (n, m),
plan ``G`` (n, m) >= 0 with ``G 1 = a`` and ``G' 1 = b``. No gradient passes through a plan.

References
----------
Peyre and Cuturi, *Computational Optimal Transport*, Foundations and Trends in Machine Learning 11 (2019), sections 2 to
4; Flamary et al., *POT: Python Optimal Transport*, JMLR 22 (2021), for the exact solver.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from upright.contract import InputError
from upright.maths.transport.common import check_masses, pot

__all__ = ["emd", "relative_reg", "squared_distances"]


def squared_distances(x: Tensor, z: Tensor) -> Tensor:
    r"""Return ``D_ij = ||x_i - z_j||^2``.

    One matrix product on points moved to a common centre; entries that lie within its rounding error are computed
    again from the difference itself, so equal points are at distance exactly 0.

    Parameters
    ----------
    x, z : Tensor, shape (..., n, d) and (..., m, d)

    Returns
    -------
    Tensor, shape (..., n, m)
        At least 0; differentiable in both arguments.

    Raises
    ------
    InputError
        When the points live in spaces of different dimension or are no floating tensors.
    """
    if x.ndim < 2 or z.ndim < 2 or x.shape[-1] != z.shape[-1] or x.dtype != z.dtype or not x.is_floating_point():
        raise InputError(
            f"points of shapes {tuple(x.shape)} and {tuple(z.shape)}, types {x.dtype} and {z.dtype}",
            "two floating tensors of one type, shapes (..., n, d) and (..., m, d)",
            "bring both sets of points into the same space",
        )
    if x.numel() and z.numel():
        centre = z.detach().mean(-2, keepdim=True)
        x, z = x - centre, z - centre
    xx, zz = x.square().sum(-1).unsqueeze(-1), z.square().sum(-1).unsqueeze(-2)
    scale_ = xx + zz
    out = (scale_ - 2.0 * (x @ z.mT)).clamp(min=0.0)
    bound = 64.0 * torch.finfo(out.dtype).eps * scale_.detach()
    doubtful = (out.detach() <= bound) & (bound > 0)
    where = doubtful.nonzero(as_tuple=True)
    if where[0].numel() == 0:
        return out
    batch = out.shape[:-2]
    left = x.expand(*batch, *x.shape[-2:])[*where[:-1]]  # (k, d)
    right = z.expand(*batch, *z.shape[-2:])[*where[:-2], where[-1]]  # (k, d)
    return out.index_put(where, (left - right).square().sum(-1))


def relative_reg(cost: Tensor, eps: float) -> float:
    """Return ``eps * median of the positive costs``: a regularisation in units of the cost.

    Parameters
    ----------
    cost : Tensor, any shape
    eps : float
        Above 0; 0.005 to 0.05 is usual.

    Raises
    ------
    InputError
        When no cost is positive, a cost is not finite, or eps is not above 0.
    """
    if not 0.0 < eps < math.inf:
        raise InputError(f"eps = {eps!r}", "a finite number above 0", "take 0.01")
    if not bool(torch.isfinite(cost).all()):
        raise InputError("costs with NaN or infinite values", "finite costs", "check the points they come from")
    positive = cost.detach()[cost.detach() > 0]
    if positive.numel() == 0:
        raise InputError(
            "costs of which none is positive",
            "at least one positive cost",
            "pass reg as a number: all points are equal and any plan is optimal",
        )
    return eps * float(positive.to(torch.float64).median())


def _check_cost(cost: Tensor, a: Tensor, b: Tensor) -> None:
    ok = cost.ndim >= 2 and cost.is_floating_point() and min(cost.shape[-2:]) > 0
    if not ok or a.shape[-1:] != cost.shape[-2:-1] or b.shape[-1:] != cost.shape[-1:]:
        raise InputError(
            f"costs of shape {tuple(cost.shape)} and type {cost.dtype}, masses of shapes {tuple(a.shape)} and "
            f"{tuple(b.shape)}",
            "floating costs (..., n, m) with n, m >= 1 and masses (..., n) and (..., m)",
            "compute the costs from the points that carry the masses",
        )
    if not bool(torch.isfinite(cost).all()):
        raise InputError("costs with NaN or infinite values", "finite costs", "check the points they come from")


def emd(cost: Tensor, a: Tensor, b: Tensor, *, max_iter: int = 1_000_000) -> tuple[Tensor, float]:
    r"""Return an exact plan ``argmin_G sum_ij G_ij C_ij`` over plans with marginals a and b, and its cost.

    POT's network simplex, in float64. About O(n m (n + m)) in practice: a second for some thousands of points.

    Parameters
    ----------
    cost : Tensor, shape (n, m)
    a, b : Tensor, shape (n,) and (m,)
        Masses >= 0 of equal sum; zeros are allowed.
    max_iter : int
        Pivots of the simplex.

    Returns
    -------
    plan : Tensor, shape (n, m)
        In the type and on the device of `cost`; detached.
    cost : float
        ``sum_ij G_ij C_ij``.

    Raises
    ------
    InputError
        For costs or masses that are not finite, masses that are negative or of unequal sum, and empty sides.
    ImportError
        When POT is not installed.
    RuntimeError
        When the simplex stopped before the optimum.
    """
    ot = pot()
    if cost.ndim != 2 or a.ndim != 1 or b.ndim != 1:
        raise InputError(
            f"costs of shape {tuple(cost.shape)} and masses of shapes {tuple(a.shape)} and {tuple(b.shape)}",
            "one problem: costs (n, m), masses (n,) and (m,)",
            "loop over a batch",
        )
    _check_cost(cost, a, b)
    left, right = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
    total = check_masses(left, right)
    right = right * (left.sum() / right.sum())
    exact = cost.detach().to("cpu", torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT repeats its log entry as a warning; it is raised below
        plan, log = ot.emd(
            (left / total).numpy(), (right / total).numpy(), exact.numpy(), numItermax=max_iter, log=True
        )
    if log["warning"] is not None:
        raise RuntimeError(
            f"exact transport stopped before the optimum: {log['warning']}\n"
            f"  accepted: a problem solved within max_iter = {max_iter}\n"
            "  to do:    raise max_iter, or use the entropic solver"
        )
    plan_t = torch.from_numpy(plan) * total
    return plan_t.to(cost.device, cost.dtype), float((plan_t * exact).sum())
