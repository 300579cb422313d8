r"""Transport plans between two weighted point sets: exact, entropic, and what is read off them.

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
from dataclasses import dataclass, field

import torch
from torch import Tensor

from upright.contract import InputError
from upright.maths.transport.common import Convergence, check_iteration, check_masses, pot
from upright.maths.transport.scaling import log_rows, scale

__all__ = [
    "Sinkhorn",
    "alignment_loss",
    "barycentric_map",
    "emd",
    "relative_reg",
    "sinkhorn",
    "squared_distances",
]


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
            "loop over a batch; only `sinkhorn` solves batches",
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


@dataclass(frozen=True)
class Sinkhorn:
    """An entropic plan, kept as its potentials.

    Parameters
    ----------
    f, g : Tensor, shape (..., n) and (..., m)
        ``G_ij = a_i b_j / sum(a) * exp((f_i + g_j - C_ij) / reg)``, float64. Points without mass carry the potential
        that a point of vanishing mass would have.
    cost : Tensor, shape (...)
        ``sum_ij G_ij C_ij``, without the entropy.
    reg : float
        In units of the costs.
    convergence : Convergence
        The residual is ``sum_j |sum_i G_ij - b_j| / sum(b)`` of the worst problem of a batch.
    """

    f: Tensor
    g: Tensor
    cost: Tensor
    reg: float
    convergence: Convergence
    _cost_matrix: Tensor = field(repr=False)
    _a: Tensor = field(repr=False)
    _b: Tensor = field(repr=False)

    def plan(self) -> Tensor:
        """Return G, shape (..., n, m), in the type of the costs, computed anew: rows without mass are zero."""
        exponent = (self.f.unsqueeze(-1) + self.g.unsqueeze(-2) - self._cost_matrix.to(torch.float64)) / self.reg
        share = self._b / self._b.sum(-1, keepdim=True)
        # a zero mass times an overflow would be NaN, so the masses join in the logarithm
        exponent = exponent + self._a.log().unsqueeze(-1) + share.log().unsqueeze(-2)
        return exponent.exp().to(self._cost_matrix.dtype)


@torch.no_grad()
def sinkhorn(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    reg: float,
    max_iter: int = 5_000,
    tol: float = 1e-6,
    start: Sinkhorn | tuple[Tensor, Tensor] | None = None,
) -> Sinkhorn:
    r"""Return ``argmin_G sum_ij G_ij C_ij + reg * sum_ij G_ij (log(G_ij / (a_i b_j)) - 1)`` with marginals a and b.

    Stabilised scaling in float64 with Anderson's acceleration, see `upright.maths.transport.scaling`.

    Parameters
    ----------
    cost : Tensor, shape (..., n, m)
        Any finite values; a batch of problems of one size.
    a, b : Tensor, shape (..., n) and (..., m)
        Masses >= 0 of equal sum; the batch dimensions broadcast. Zeros are allowed.
    reg : float
        Above 0, in units of the cost: see `relative_reg`.
    max_iter : int
        Iterations, annealing included.
    tol : float
        Bound of the residual, the share of mass in the wrong column.
    start : Sinkhorn or (f, g), optional
        Potentials of an earlier, similar call (only g is used). Without it reg is annealed.

    Returns
    -------
    Sinkhorn

    Raises
    ------
    InputError
        For costs or masses that are not finite, masses that are negative or of unequal sum, reg or tol not above 0,
        empty sides, and a start of another shape.

    Guarantee
    ---------
    Row sums are a to rounding. When converged, column sums are b within tol. As reg falls the plan tends to an exact
    one, as it grows to ``a b'``: then every point is sent to the mean, and an alignment to it collapses.
    """
    a, b = (t.detach().to(cost.device, torch.float64) for t in (a, b))
    _check_cost(cost, a, b)
    check_masses(a, b)
    check_iteration(reg, max_iter, tol)
    batch = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
        cost.shape[:-2], a.shape[:-1], b.shape[:-1]
    )
    n, m = cost.shape[-2:]
    wide = cost.detach().to(torch.float64).expand(*batch, n, m).reshape(-1, n, m)  # (B, n, m)
    mass = a.expand(*batch, n), b.expand(*batch, m)
    left, right = (t.reshape(-1, t.shape[-1]) for t in mass)
    left, right = left / left.sum(-1, keepdim=True), right / right.sum(-1, keepdim=True)
    found = scale(wide, left, right, float(reg), _start(start, batch, m, wide), max_iter, tol)
    worst = float(found.residual.max())
    convergence = Convergence(worst <= tol, found.iterations, worst, tol)
    f, g = _extend(wide, left, right, found.g, float(reg))
    moved = (found.plan() * wide).sum((-2, -1)) * mass[0].sum(-1).reshape(-1)
    return Sinkhorn(
        f.reshape(*batch, n),
        g.reshape(*batch, m),
        moved.reshape(batch).to(cost.dtype),
        float(reg),
        convergence,
        cost.detach().expand(*batch, n, m),
        mass[0],
        mass[1],
    )


def _start(
    start: Sinkhorn | tuple[Tensor, Tensor] | None, batch: torch.Size | tuple[int, ...], m: int, like: Tensor
) -> Tensor | None:
    if start is None:
        return None
    g = start.g if isinstance(start, Sinkhorn) else start[1]
    if g.shape != (*batch, m) or not bool(torch.isfinite(g).all()):
        raise InputError(
            f"a start whose g has shape {tuple(g.shape)}, or that is not finite",
            f"finite potentials of shape {(*batch, m)}",
            "pass the result of a call with the same number of target points, or none",
        )
    return g.detach().to(like).reshape(-1, m)


def _extend(cost: Tensor, a: Tensor, b: Tensor, g: Tensor, reg: float) -> tuple[Tensor, Tensor]:
    """Return f from g, and g with the entries of massless columns filled in from f."""
    f = -reg * torch.logsumexp(log_rows(cost, b.log(), g, reg), -1)
    if bool((b == 0).any()):
        columns = (f.unsqueeze(-1) - cost) / reg + a.log().unsqueeze(-1)
        g = torch.where(b > 0, g, -reg * torch.logsumexp(columns, -2))
    return f, g


def barycentric_map(plan: Tensor, z: Tensor) -> Tensor:
    r"""Return ``T_u = sum_j G_uj z_j / sum_j G_uj``, where each point is sent on average.

    Parameters
    ----------
    plan : Tensor, shape (n, m)
        At least 0.
    z : Tensor, shape (m, d)

    Returns
    -------
    Tensor, shape (n, d)
        In the type of z. A row without mass gets ``sum_uj G_uj z_j / sum_uj G_uj``, the mean of what all others get;
        a plan without any mass sends everything to the mean of z.
    """
    _check_plan(plan, z)
    plan = plan.to(z.dtype)
    mass = plan.sum(1, keepdim=True)  # (n, 1)
    whole = plan.sum(0)  # (m,)
    total = whole.sum()
    share = whole / total if float(total) > 0 else torch.full_like(whole, 1.0 / len(whole))
    return torch.where(mass > 0, plan @ z / torch.where(mass > 0, mass, 1.0), share @ z)


def alignment_loss(x: Tensor, plan: Tensor, z: Tensor) -> Tensor:
    r"""Return ``l_u = sum_j G_uj ||x_u - z_j||^2 / sum_j G_uj``, the mean squared way of each point along its plan.

    Equal to ``||x_u - T_u||^2`` plus the spread of the targets of u, which has no gradient in x.

    Parameters
    ----------
    x : Tensor, shape (n, d)
        The gradient flows into x alone; plan and z are detached.
    plan : Tensor, shape (n, m)
        Rows of a mini-batch may be picked from a larger plan: each is divided by its own mass.
    z : Tensor, shape (m, d)

    Returns
    -------
    Tensor, shape (n,)
        At least 0; 0 for rows without mass.
    """
    _check_plan(plan, z)
    plan, z = plan.detach().to(x.dtype), z.detach().to(x.dtype)
    mass = plan.sum(1)  # (n,)
    image = barycentric_map(plan, z)
    centred = z - z.mean(0)  # the spread is a difference of squares: keep them small
    middle = barycentric_map(plan, centred)
    spread = barycentric_map(plan, centred.square().sum(1, keepdim=True)).squeeze(1) - middle.square().sum(1)
    return torch.where(mass > 0, (x - image).square().sum(1) + spread.clamp(min=0.0), 0.0)


def _check_plan(plan: Tensor, z: Tensor) -> None:
    if plan.ndim != 2 or z.ndim != 2 or plan.shape[1] != z.shape[0] or z.shape[0] == 0:
        raise InputError(
            f"a plan of shape {tuple(plan.shape)} and targets of shape {tuple(z.shape)}",
            "a plan (n, m) and targets (m, d) with m >= 1",
            "pass the plan that was computed for these targets",
        )
    if not bool(torch.isfinite(plan).all()) or bool((plan < 0).any()):
        raise InputError("a plan with negative or non-finite entries", "finite entries >= 0", "solve it again")
