r"""Maximum mean discrepancy with Gaussian kernels of several widths, in little memory.

    MMD^2(p, q) = E k(x, x') + E k(y, y') - 2 E k(x, y) ,   k(x, y) = (1/S) sum_s exp(-||x - y||^2 / (2 h_s^2))

References
----------
Gretton et al., *A kernel two-sample test*, JMLR 13 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upright.contract import InputError
from upright.maths.transport.common import check_points

__all__ = ["median_bandwidths", "mmd2"]

_CHUNK_ELEMENTS = 1 << 21  # entries of a kernel block held at once: 16 MB in float64
_SAMPLE = 1_000  # points that the median heuristic looks at
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@torch.no_grad()
def median_bandwidths(x: Tensor, y: Tensor) -> tuple[float, ...]:
    """Return `FACTORS` times the median positive distance within the pooled points.

    At most 1,000 points of each side, evenly picked, are looked at.

    Raises
    ------
    InputError
        When all points are equal.
    """
    some = torch.cat([t.detach()[:: -(-len(t) // _SAMPLE)].to(torch.float64) for t in (x, y)])
    apart = torch.pdist(some)
    apart = apart[apart > 0]
    if apart.numel() == 0:
        raise InputError(
            "points that are all equal",
            "points of which two differ, or explicit bandwidths",
            "pass bandwidths=[1.0], or check for collapsed embeddings",
        )
    median = float(apart.median())
    return tuple(f * median for f in FACTORS)


class _KernelSum(torch.autograd.Function):
    """``sum_ij k(x_i, y_j)`` in blocks; the gradients are summed in the same pass, so no block is kept.

    With ``W_ij = (1/S) sum_s k_s / h_s^2`` the gradient in x_i is ``sum_j W_ij (y_j - x_i)``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bandwidths: tuple[float, ...]) -> Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        total = x.new_zeros(())
        grad_x, grad_y = (torch.zeros_like(x), torch.zeros_like(y)) if wanted else (None, None)
        yy = y.square().sum(1)
        rows = max(1, _CHUNK_ELEMENTS // len(y))
        for first in range(0, len(x), rows):
            part = x[first : first + rows]
            apart = torch.addmm(yy, part, y.T, alpha=-2.0).add_(part.square().sum(1, keepdim=True)).clamp_(min=0.0)
            pull = torch.zeros_like(apart) if wanted else None
            for h in bandwidths:
                kernel = (apart * (-0.5 / h**2)).exp_()
                total += kernel.sum()
                if pull is not None:
                    pull.add_(kernel, alpha=h**-2)
            if pull is not None and grad_x is not None and grad_y is not None:
                grad_x[first : first + rows] = pull @ y - pull.sum(1, keepdim=True) * part
                grad_y += pull.T @ part - pull.sum(0).unsqueeze(1) * y
        if grad_x is not None and grad_y is not None:
            ctx.save_for_backward(grad_x / len(bandwidths), grad_y / len(bandwidths))
        return total / len(bandwidths)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_x, grad_y = ctx.saved_tensors
        return grad * grad_x, grad * grad_y, None


def mmd2(x: Tensor, y: Tensor, bandwidths: Sequence[float] | None = None) -> Tensor:
    r"""Return the squared discrepancy ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``.

    Parameters
    ----------
    x, y : Tensor, shape (n, d) and (m, d)
        Differentiable in both, once. Memory grows with n and m alone: kernels are summed in blocks of 16 MB.
    bandwidths : sequence of float, optional
        h of each kernel, above 0, in units of distance. By default the median distance of the pooled points times
        1/4, 1/2, 1, 2 and 4, without gradient. A constant set keeps the values of different steps comparable.

    Returns
    -------
    Tensor, shape ()
        In [0, 2], 0 for equal sets.

    Raises
    ------
    InputError
        For empty, non-finite or misshapen points, bandwidths not above 0, and equal points without bandwidths.
    """
    check_points(x, "x")
    check_points(y, "y", dim=x.shape[1])
    widths = median_bandwidths(x, y) if bandwidths is None else tuple(float(h) for h in bandwidths)
    if len(widths) == 0 or not all(0.0 < h < math.inf for h in widths):
        raise InputError(f"bandwidths = {widths}", "at least one finite number above 0", "leave them out")
    n, m = len(x), len(y)
    # distances do not change under a common shift, and small numbers keep their squares exact
    centre = torch.cat([x.detach().mean(0, keepdim=True), y.detach().mean(0, keepdim=True).to(x)]).mean(0)
    wide_x, wide_y = (x - centre).to(torch.float64), (y.to(x) - centre).to(torch.float64)
    xx, yy, xy = (
        _KernelSum.apply(left, right, widths)  # type: ignore[no-untyped-call]
        for left, right in ((wide_x, wide_x), (wide_y, wide_y), (wide_x, wide_y))
    )
    value = (xx / n**2 + yy / m**2 - 2.0 * xy / (n * m)).clamp(min=0.0)
    return torch.as_tensor(value).to(x.dtype)
