r"""Transport along lines: sliced Wasserstein distances and barycenter steps, O(n log n) a direction.

In one dimension the optimal plan joins equal quantiles, so with quantile functions ``F_p^-1``

    W_2^2(p, q) = int_0^1 (F_p^-1(t) - F_q^-1(t))^2 dt
    barycenter:  F^-1(t) = sum_c w_c F_c^-1(t)

References
----------
Bonneel, Rabin, Peyre and Pfister, *Sliced and Radon Wasserstein barycenters of measures*, J. Math. Imaging Vis. 51
(2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from upright.contract import InputError
from upright.maths.transport.common import check_classes, check_points, rows, simplex

__all__ = ["random_directions", "sliced_step", "sliced_targets", "sliced_w2"]

_CHUNK_ELEMENTS = 1 << 23  # projections that are sorted at once: 64 MB in float64


def random_directions(
    k: int, d: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return k directions in blocks of d orthonormal rows, each block uniform over the rotations.

    Parameters
    ----------
    k, d : int
        At least 1. The last block holds ``k mod d`` rows when d does not divide k.
    generator : torch.Generator
        The only source of randomness; the directions are made on its device.
    dtype : torch.dtype

    Returns
    -------
    Tensor, shape (k, d)

    Raises
    ------
    InputError
        When k or d is below 1 or no generator is given.
    """
    if k < 1 or d < 1 or generator is None:
        raise InputError(
            f"k = {k}, d = {d}, generator = {generator}",
            "k >= 1, d >= 1 and a torch.Generator",
            "pass torch.Generator().manual_seed(0)",
        )
    blocks = math.ceil(k / d)
    normal = torch.randn(blocks, d, d, generator=generator, dtype=torch.float64, device=generator.device)
    q, r = torch.linalg.qr(normal)
    # the signs of R's diagonal make Q uniform instead of tied to the convention of the factorisation
    q = q * r.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-2)
    found: Tensor = q.mT.reshape(blocks * d, d)[:k]  # (k, d)
    return found.to(dtype)


def _check_directions(directions: Tensor, dim: int) -> None:
    check_points(directions, "directions", 1, dim)
    lengths = directions.detach().to(torch.float64).norm(dim=1)
    if bool(((lengths - 1.0).abs() > 1e-4).any()):
        raise InputError(
            f"directions of lengths {float(lengths.min()):g} to {float(lengths.max()):g}",
            "rows of length 1",
            "divide each row by its norm, or take random_directions",
        )


def _chunks(directions: Tensor, points: int) -> Iterator[Tensor]:
    for some in rows(len(directions), max(1, _CHUNK_ELEMENTS // points)):
        yield directions[some]


def sliced_w2(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    r"""Return ``(1/k) sum_k W_2^2(<theta_k, x>, <theta_k, y>)``, the squared sliced distance.

    Parameters
    ----------
    x, y : Tensor, shape (n, d) and (m, d)
        Differentiable in both. n and m may differ: the step quantile functions are compared exactly.
    directions : Tensor, shape (k, d)
        Rows of length 1.

    Returns
    -------
    Tensor, shape ()
        At least 0. For uniformly drawn directions at most ``W_2^2(x, y) / d`` on average.

    Raises
    ------
    InputError
        For empty, non-finite or misshapen points and for directions that are not of length 1.
    """
    check_points(x, "x")
    check_points(y, "y", dim=x.shape[1])
    _check_directions(directions, x.shape[1])
    directions = directions.detach().to(x)
    n, m = x.shape[0], y.shape[0]
    total = x.new_zeros(())
    left, right, width = _merged_levels(n, m, x)
    for theta in _chunks(directions, n + m):
        p = (theta @ x.T).sort(-1).values  # (k, n)
        q = (theta @ y.to(x).T).sort(-1).values  # (k, m)
        gap = p - q if n == m else p[:, left] - q[:, right]
        total = total + (gap.square() / n if n == m else gap.square() * width).sum()
    return total / directions.shape[0]


def _merged_levels(n: int, m: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each interval between levels i/n and j/m, the order statistics that hold there and its width."""
    # levels in units of 1 / (n m), so that equal ones are equal integers
    ends = torch.unique(
        torch.cat(
            [
                torch.arange(1, n + 1, device=like.device) * m,
                torch.arange(1, m + 1, device=like.device) * n,
            ]
        )
    )
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    return begins // m, begins // n, ((ends - begins).to(torch.float64) / (n * m)).to(like.dtype)


def sliced_targets(
    points: Sequence[Tensor], directions: Tensor, weights: Tensor | Sequence[float] | None = None
) -> list[Tensor]:
    r"""Return the one-dimensional barycenter's quantile at the rank of each point, along each direction.

    The point of rank r (from 0) among n_c stands at level ``t = (r + 1/2) / n_c``. Its target is
    ``sum_c w_c F_c^-1(t)``, where ``F_c^-1`` joins the order statistics at their own levels by straight lines, so the
    own class contributes the point itself. Equal projections are ranked in the order of the rows.

    Parameters
    ----------
    points : sequence of Tensor, shape (n_c, d) each
    directions : Tensor, shape (k, d)
        Rows of length 1.
    weights : Tensor or sequence, shape (C,), optional
        w, >= 0, of sum 1; equal ones by default.

    Returns
    -------
    list of Tensor, shape (n_c, k) each
        Targets of the projections ``x theta_k``; detached.

    Raises
    ------
    InputError
        For empty, non-finite or misshapen points, directions not of length 1, and weights that do not sum to 1.

    Guarantee
    ---------
    Classes of one size share the same set of targets; targets are ordered as the projections are.
    """
    w = _check_sliced(points, directions, weights)
    found: list[list[Tensor]] = [[] for _ in points]
    with torch.no_grad():
        for theta in _chunks(directions.detach(), sum(len(x) for x in points)):
            for c, (target, _) in enumerate(_targets(points, theta, w)):
                found[c].append(target)
    return [torch.cat(parts).T.contiguous() for parts in found]  # (n_c, k)


def _check_sliced(
    points: Sequence[Tensor], directions: Tensor, weights: Tensor | Sequence[float] | None
) -> list[float]:
    check_classes(points)
    _check_directions(directions, points[0].shape[1])
    return [float(w) for w in simplex(weights, len(points), "weights", points[0])]


def _targets(points: Sequence[Tensor], theta: Tensor, w: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Return targets and projections of each class, both of shape (k, n_c)."""
    projections = [theta.to(x) @ x.detach().T for x in points]
    ordered = [p.sort(stable=True, dim=-1) for p in projections]
    found = []
    for c, (values, order) in enumerate(ordered):
        mixed = w[c] * values
        for other, (theirs, _) in enumerate(ordered):
            if other != c and w[other] > 0:
                mixed += w[other] * _quantiles(theirs, values.shape[-1]).to(mixed)
        found.append((torch.empty_like(mixed).scatter_(-1, order, mixed), projections[c]))
    return found


def _quantiles(ordered: Tensor, count: int) -> Tensor:
    """Return the quantiles of sorted rows (k, n) at the levels ``(r + 1/2) / count``, shape (k, count)."""
    n = ordered.shape[-1]
    if n == count:
        return ordered
    place = (torch.arange(count, dtype=torch.float64, device=ordered.device) + 0.5) * (n / count) - 0.5
    place = place.clamp(0.0, n - 1.0)
    low = place.floor().to(torch.int64).clamp(max=max(n - 2, 0))
    share = (place - low).to(ordered.dtype)
    high = (low + 1).clamp(max=n - 1)
    return torch.lerp(ordered[:, low], ordered[:, high], share)


@torch.no_grad()
def sliced_step(
    points: Sequence[Tensor],
    directions: Tensor,
    weights: Tensor | Sequence[float] | None = None,
    step: float = 1.0,
) -> list[Tensor]:
    r"""Return ``x + step * sum_k theta_k (target_k - <theta_k, x>)``, averaged over blocks of d directions.

    Within a block of orthonormal directions the moves do not disturb each other, so a step of 1 makes the classes
    equal along each of them (for classes of one size). Repeated steps with new directions tend to a sliced barycenter.

    Parameters
    ----------
    points : sequence of Tensor, shape (n_c, d) each
    directions : Tensor, shape (k, d)
        Blocks of d orthonormal rows, as `random_directions` makes them; the last one may be shorter.
    weights : Tensor or sequence, shape (C,), optional
        w, >= 0, of sum 1; equal ones by default.
    step : float
        In [0, 1]: 0 moves nothing.

    Returns
    -------
    list of Tensor, shape (n_c, d) each
        Detached, in the type of the points.

    Raises
    ------
    InputError
        As `sliced_targets`, and for a step outside [0, 1].
    """
    w = _check_sliced(points, directions, weights)
    if not 0.0 <= step <= 1.0:
        raise InputError(f"step = {step!r}", "a number in [0, 1]", "take 1")
    moved = [x.detach().clone() for x in points]
    scale = step / math.ceil(directions.shape[0] / directions.shape[1])
    for theta in _chunks(directions.detach(), sum(len(x) for x in points)):
        for x, (target, projection) in zip(moved, _targets(points, theta, w), strict=True):
            x.addmm_(target.sub_(projection).T, theta.to(x), alpha=scale)
    return moved
