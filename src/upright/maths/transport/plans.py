"""The costs that all plans are made from, and a regularisation in their units."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upright.contract import InputError

__all__ = ["relative_reg", "squared_distances"]


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
