r"""Free-support Wasserstein barycenters: one set of points that all classes are equally willing to move to.

    min_z  sum_c w_c W_2^2(P_c, Q_z) ,   Q_z = (1/m) sum_j delta(z_j)

Algorithm
---------
One sweep solves a plan ``G^c`` from every class to the support, then moves each support point to the mean of what
it receives:

    z_j <- sum_c w_c (1/b_j) sum_u G^c_uj x_u ,   b_j = 1/m

Both steps can only lower ``sum_c w_c <G^c, C^c>``, the second one by exactly ``sum_j b_j ||z_j' - z_j||^2``.

References
----------
Cuturi and Doucet, *Fast computation of Wasserstein barycenters*, ICML 2014, algorithm 2; Alvarez-Esteban et al., *A
fixed-point approach to barycenters in Wasserstein space*, J. Math. Anal. Appl. 441 (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upright.contract import InputError
from upright.maths.transport.common import Convergence, check_classes, check_iteration, check_points, simplex, uniform
from upright.maths.transport.plans import relative_reg
from upright.maths.transport.scaling import scale

__all__ = ["FreeBarycenter", "free_barycenter"]

DEFAULT_EPS = 0.005  # reg in units of the median cost where none is given
_SAMPLE = 256  # points of a class that the default reg looks at


@dataclass(frozen=True)
class FreeBarycenter:
    """A common target of several classes and the plans to it.

    Parameters
    ----------
    support : Tensor, shape (m, d)
        Each point has the mass 1/m.
    plans : tuple of Tensor, shape (n_c, m) each
        The plans of the last sweep; the support is their weighted mean.
    objective : tuple of float
        ``sum_c w_c <plan_c, C_c>`` after each sweep, with the costs to the support that the sweep arrived at: the
        last entry belongs to `plans` and `support`. An upper bound of the barycenter objective for exact plans.
    convergence : Convergence
        Of the sweeps. The residual is the share of the objective that the last move of the support took away. Not
        converged either when a plan of the last sweep was not.
    potentials : tuple of Tensor, shape (m,) each
        g of each plan, for a warm start.
    reg : float
        The regularisation that was used.
    inner : Convergence
        The worst plan of the last sweep; iterations are summed over all sweeps and classes.
    """

    support: Tensor
    plans: tuple[Tensor, ...]
    objective: tuple[float, ...]
    convergence: Convergence
    potentials: tuple[Tensor, ...]
    reg: float
    inner: Convergence


@torch.no_grad()
def free_barycenter(
    points: Sequence[Tensor],
    support: Tensor,
    *,
    weights: Tensor | Sequence[float] | None = None,
    reg: float | None = None,
    sweeps: int = 20,
    tol: float = 1e-4,
    inner_iter: int = 1_000,
    inner_tol: float = 1e-3,
    start: FreeBarycenter | None = None,
) -> FreeBarycenter:
    r"""Return the fixed point ``z_j = sum_c w_c (1/b_j) sum_u G^c_uj x_u`` reached from `support`.

    Parameters
    ----------
    points : sequence of Tensor, shape (n_c, d) each
        One tensor a class; one point is enough.
    support : Tensor, shape (m, d)
        Where z starts. Points of the classes themselves are a good choice.
    weights : Tensor or sequence, shape (C,), optional
        w, >= 0, of sum 1. Equal ones by default: weights by class size leave the whole move to the small classes.
    reg : float, optional
        Of the entropic plans, in units of the squared distance; by default 0.005 times the median cost.
    sweeps : int
        Most sweeps.
    tol : float
        Sweeps end when the move of the support takes away less than this share of the objective.
    inner_iter, inner_tol : int, float
        `max_iter` and `tol` of each entropic plan.
    start : FreeBarycenter, optional
        An earlier result for similar points: its potentials start the first sweep. Pass its support as `support`.

    Returns
    -------
    FreeBarycenter

    Raises
    ------
    InputError
        For empty classes or supports, points that are not finite or of different dimension, weights that do not sum to
        1, reg, tol or sweeps not above 0, and a start of another shape.

    Guarantee
    ---------
    With exact plans `objective` does not increase. The fixed point is a local optimum: it depends on `support`.
    """
    check_classes(points)
    check_points(support, "the support", dim=points[0].shape[1])
    if sweeps < 1 or not tol > 0:
        raise InputError(f"sweeps = {sweeps}, tol = {tol}", "at least one sweep and tol > 0", "take the defaults")
    w = simplex(weights, len(points), support)
    a = [uniform(len(x), support) for x in points]
    xs = [x.detach().to(support.device, torch.float64) for x in points]
    z, m = support.detach().to(torch.float64), support.shape[0]
    b = uniform(m, z)
    level = _default_reg(xs, z) if reg is None else float(reg)
    check_iteration(level, inner_iter, inner_tol)
    g = _potentials(start, len(xs), m, z)
    squares = [x.square().sum(1, keepdim=True) for x in xs]

    plans: list[Tensor] = []
    objective: list[float] = []
    steps, worst, residual = 0, 0.0, float("inf")
    while len(objective) < sweeps and residual > tol:
        plans, spent, worst = [], 0.0, 0.0
        received = torch.zeros_like(z)
        mass = torch.zeros_like(b)
        for c, x in enumerate(xs):
            # a common centre would be more exact and is not needed: z lies among the points
            cost = torch.addmm(squares[c], x, z.T, alpha=-2.0).add_(z.square().sum(1)).clamp_(min=0.0)
            found = scale(cost[None], a[c][None], b[None], level, g[c], inner_iter, inner_tol)
            plan, g[c] = found.plan()[0], found.g
            steps, worst = steps + found.iterations, max(worst, float(found.residual))
            plans.append(plan)
            spent += float(w[c]) * float(torch.dot(plan.reshape(-1), cost.reshape(-1)))
            received += w[c] * (plan.T @ x)
            mass += w[c] * plan.sum(0)
        new = torch.where(mass[:, None] > 0, received / mass[:, None].clamp(min=torch.finfo(mass.dtype).tiny), z)
        gain = float((mass[:, None] * (new - z).square()).sum())
        z, residual = new, gain / spent if spent > 0 else 0.0
        objective.append(max(spent - gain, 0.0))
    inner = Convergence(worst <= inner_tol, steps, worst, inner_tol)
    return FreeBarycenter(
        z.to(support.dtype),
        tuple(p.to(support.dtype) for p in plans),
        tuple(objective),
        Convergence(residual <= tol and inner.converged, len(objective), residual, tol),
        tuple(p[0] for p in g if p is not None),
        level,
        inner,
    )


def _default_reg(xs: Sequence[Tensor], z: Tensor) -> float:
    """Return `DEFAULT_EPS` times the median cost between evenly picked points of all classes and of the support."""
    some = torch.cat([x[:: -(-len(x) // _SAMPLE)] for x in xs])
    return relative_reg(torch.cdist(some, z[:: -(-len(z) // _SAMPLE)]).square(), DEFAULT_EPS)


def _potentials(start: FreeBarycenter | None, classes: int, m: int, like: Tensor) -> list[Tensor | None]:
    if start is None or not start.potentials:
        return [None] * classes
    if len(start.potentials) != classes or any(p.shape != (m,) for p in start.potentials):
        raise InputError(
            f"a start with {len(start.potentials)} classes and {start.support.shape[0]} support points",
            f"{classes} classes and {m} support points",
            "start without it when the classes or the support changed in number",
        )
    return [p.to(like)[None] for p in start.potentials]
