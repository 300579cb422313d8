r"""Bilevel problems: how an outer loss J moves with the weights of the terms of an inner loss.

    theta*(w) = argmin_theta  sum_i w_i l_i(theta) + R(theta)
    dJ / dw_i = -<v, grad l_i(theta*)>,   (H + damping) v = grad J(theta*),   H = hess_theta of the inner loss

`solve` finds v from products with H alone; weights move by `exponentiated_gradient` or by a gradient step and a
projection. Whatever lives with the parameters (v, grad J) is a torch tensor of one dimension and keeps its precision;
weights are NumPy arrays in float64.

References: Pedregosa, Hyperparameter optimization with approximate gradient, ICML 2016; Lorraine, Vicol, Duvenaud,
Optimizing millions of hyperparameters by implicit differentiation, AISTATS 2020; Kivinen and Warmuth, Exponentiated
gradient versus gradient descent, 1997; Duchi et al., Efficient projections onto the l1-ball, ICML 2008.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from upright.contract import InputError

__all__ = ["Solution", "exponentiated_gradient", "project_box", "project_l1", "project_simplex", "solve"]

Array = NDArray[np.float64]
How = Literal["identity", "diagonal", "neumann", "cg", "exact"]
CLOSE = 1e-6  # a relative residual below counts as solved
_POWER = 10  # products that look for the largest eigenvalue
_LARGEST = 4096  # of matrices that are written out, 128 MB


class Solution(NamedTuple):
    """An approximate solution of ``(H + damping) v = g``.

    Parameters
    ----------
    v : Tensor, shape (P,)
    residual : float
        ``||(H + damping) v - g|| / ||g||``, measured by one more product; NaN where no product was given.
    steps : int
        Products with H that v took, without the one for the residual.
    converged : bool
        Whether the residual is at most 1e-6.
    """

    v: Tensor
    residual: float
    steps: int
    converged: bool


def solve(
    hvp: Callable[[Tensor], Tensor] | None,
    g: Tensor,
    *,
    how: How = "identity",
    damping: float = 0.0,
    steps: int = 10,
    diagonal: Tensor | None = None,
) -> Solution:
    r"""Solve ``(H + damping) v = g`` for v by products with a symmetric H.

    ============  ==================================================================================  ===============
    ``identity``  ``v = g``, as if H were a multiple of 1                                             no product
    ``diagonal``  ``v = g / (diag H + damping)``                                                      none, or P
    ``neumann``   ``v = s sum_{k < steps} (1 - s (H + damping))^k g``, ``1 / s`` the largest           steps + 9
                  eigenvalue by 10 steps of power iteration from g
    ``cg``        conjugate gradients: the best v of the Krylov space of that dimension               steps
    ``exact``     H is written out and the system solved in float64, P at most 4,096                  P
    ============  ==================================================================================  ===============

    Parameters
    ----------
    hvp : callable or None
        ``hvp(x) -> H x``, shape (P,) each, of one fixed batch: a stochastic H has no Krylov space. None with
        ``identity`` alone.
    g : Tensor of float32 or float64, shape (P,)
    how : str
        A row of the table.
    damping : float
        Added to the diagonal, at least 0.
    steps : int
        At least 1; read by ``neumann`` and ``cg``.
    diagonal : Tensor, shape (P,), optional
        Diagonal of H, for example of a Fisher matrix; by default H is asked for it.

    Returns
    -------
    Solution

    Raises
    ------
    InputError
        For arguments that do not fit, a g that is not finite, a product of another shape or not finite, a diagonal
        with entries at or below ``-damping``, and a matrix that is singular.

    Guarantee
    ---------
    For H positive definite ``cg`` has in every step the smallest error ``<e, (H + damping) e>`` that its products can
    give, and ``neumann`` converges with the rate ``1 - 1 / cond`` where ``g`` has a share in the direction of the
    largest curvature, by which its step is found; `residual` tells when it has not. Where H has a direction of
    curvature at or below 0 ``cg`` stops before it, at ``v = g`` where that is the first; `converged` is then False.
    """
    _refuse(hvp, g, how, damping, steps, diagonal)
    size = float(torch.linalg.vector_norm(g, dtype=torch.float64))
    if hvp is None:
        return Solution(g.clone(), math.nan, 0, False)
    if size == 0.0:
        return Solution(torch.zeros_like(g), 0.0, 0, True)
    spent = 0

    def product(x: Tensor) -> Tensor:
        nonlocal spent
        spent += 1
        found = hvp(x)
        if found.shape != g.shape or not bool(torch.isfinite(found).all()):
            got = f"a product with H of shape {tuple(found.shape)}"
            raise InputError(f"{got}, or not finite", f"finite, shape {tuple(g.shape)}", "check hvp and the model")
        return found.detach() + damping * x

    if how == "diagonal":
        v = g / _positive(_columns(product, g, only_diagonal=True) if diagonal is None else diagonal + damping)
    elif how == "exact":
        matrix, info = torch.linalg.inv_ex(_columns(product, g))
        if int(info) or not bool(torch.isfinite(matrix).all()):
            raise InputError("a singular H", "one that can be inverted", "add damping")
        v = (matrix @ g.double()).to(g)
    else:
        v = {"identity": lambda *_: g.clone(), "neumann": _neumann, "cg": _conjugate}[how](product, g, steps)
    used = spent
    off = torch.linalg.vector_norm(product(v) - g, dtype=torch.float64)
    residual = float(off) / size
    return Solution(v, residual, used, residual <= CLOSE)


def _refuse(hvp: object, g: Tensor, how: str, damping: float, steps: int, diagonal: Tensor | None) -> None:
    known = ("identity", "diagonal", "neumann", "cg", "exact")
    if how not in known:
        raise InputError(f"how = {how!r}", ", ".join(known), "choose one of these")
    if hvp is None and how != "identity":
        raise InputError(f"how = {how!r} without hvp", "a function that multiplies with H", "pass hvp, or 'identity'")
    if g.ndim != 1 or g.dtype not in (torch.float32, torch.float64) or not bool(torch.isfinite(g).all()):
        got = f"g of shape {tuple(g.shape)} and type {g.dtype}, {int((~torch.isfinite(g)).sum())} not finite"
        raise InputError(got, "finite numbers in float32 or float64, shape (P,)", "check the gradient of J")
    if not 0.0 <= damping < math.inf:
        raise InputError(f"damping = {damping}", "a finite number of at least 0", "change damping")
    if steps < 1:
        raise InputError(f"steps = {steps}", "an integer of at least 1", "change steps")
    if diagonal is not None and diagonal.shape != g.shape:
        raise InputError(f"a diagonal of shape {tuple(diagonal.shape)}", f"shape {tuple(g.shape)}", "align it with g")
    if len(g) > _LARGEST and (how == "exact" or (how == "diagonal" and diagonal is None)):
        todo = "take 'cg', or 'diagonal' with diagonal="
        raise InputError(f"how = {how!r} for {len(g)} parameters", f"at most {_LARGEST}", todo)


def _columns(product: Callable[[Tensor], Tensor], g: Tensor, *, only_diagonal: bool = False) -> Tensor:
    """Return H + damping, shape (P, P) in float64, or its diagonal, shape (P,)."""
    units = (torch.nn.functional.one_hot(torch.tensor(i), len(g)).to(g) for i in range(len(g)))
    if only_diagonal:
        return torch.stack([product(unit)[i] for i, unit in enumerate(units)])
    return torch.stack([product(unit).double() for unit in units], dim=1)


def _positive(diagonal: Tensor) -> Tensor:
    if not bool((diagonal > 0).all()):
        got = f"a diagonal with {int((~(diagonal > 0)).sum())} entries that are not above 0"
        raise InputError(got, "entries above 0, damping included", "add damping")
    return diagonal


def _neumann(product: Callable[[Tensor], Tensor], g: Tensor, steps: int) -> Tensor:
    """Truncated Neumann series, by Horner's rule: ``v <- v + s (g - H v)``."""
    at, largest = g / torch.linalg.vector_norm(g), 0.0
    for _ in range(_POWER):
        at = product(at)
        largest = float(torch.linalg.vector_norm(at))
        if largest == 0.0:
            raise InputError("an H that maps g to nought", "curvature along g", "add damping")
        at = at / largest
    v = g / largest
    for _ in range(steps - 1):
        v = v + (g - product(v)) / largest
    return v


def _conjugate(product: Callable[[Tensor], Tensor], g: Tensor, steps: int) -> Tensor:
    """Conjugate gradients from 0; scalars in float64."""

    def dot(x: Tensor, y: Tensor) -> float:
        return float(torch.dot(x.double(), y.double()))

    v, rest, towards = torch.zeros_like(g), g.clone(), g.clone()
    left = whole = dot(g, g)
    for step in range(steps):
        bent = product(towards)
        curvature = dot(towards, bent)
        if curvature <= 0.0:
            return v if step else g.clone()
        v = v + (left / curvature) * towards
        rest = rest - (left / curvature) * bent
        before, left = left, dot(rest, rest)
        if left <= (0.1 * CLOSE) ** 2 * whole:
            break
        towards = rest + (left / before) * towards
    return v


# -- weights ----------------------------------------------------------------------------------------------------------


def _vector(values: ArrayLike, name: str) -> Array:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        got = f"{name} of shape {found.shape}, {int((~np.isfinite(found)).sum())} not finite"
        raise InputError(got, "finite numbers, shape (n,), n at least 1", f"check {name}")
    return found


def exponentiated_gradient(w: ArrayLike, gradient: ArrayLike, eta: float) -> Array:
    """``w_i exp(-eta dJ/dw_i)``, scaled to the sum of w: one step of mirror descent on the simplex.

    Parameters
    ----------
    w : array, shape (n,)
        At least 0, one above 0.
    gradient : array, shape (n,)
        ``dJ/dw``. Of scores ``s_i = <v, grad l_i>`` it is ``-s``: an example whose unlearning lowers J gains weight.
    eta : float
        At least 0; 0 leaves w as it is, bit for bit.

    Returns
    -------
    ndarray of float64, shape (n,)
        Of the sum of w. Zeros stay zeros, and a constant added to the gradient changes nothing.

    Raises
    ------
    InputError
        For weights below 0 or all 0, shapes that differ, numbers that are not finite, an eta below 0.

    Guarantee
    ---------
    A step with eta small enough does not raise a differentiable J.
    """
    own, slope = _vector(w, "w"), _vector(gradient, "gradient")
    if own.shape != slope.shape:
        got = f"{len(own)} weights and {len(slope)} derivatives"
        raise InputError(got, "one derivative a weight", "align the two")
    if own.min() < 0.0 or own.max() == 0.0:
        raise InputError(f"weights from {own.min():g} to {own.max():g}", "at least 0, one above 0", "correct w")
    if not 0.0 <= eta < math.inf:
        raise InputError(f"eta = {eta}", "a finite number of at least 0", "change eta")
    if eta == 0.0:
        return own.copy()
    power = -eta * slope
    moved = own * np.exp(np.minimum(power - power[own > 0].max(), 0.0))  # what has no weight may not overflow
    return np.asarray(moved * (own.sum() / moved.sum()))


def project_simplex(w: ArrayLike, total: float = 1.0) -> Array:
    """Return the nearest point of ``{x >= 0, sum x = total}``, shape (n,); `total` is above 0."""
    if not 0.0 < total < math.inf:
        raise InputError(f"total = {total}", "a finite number above 0", "change total")
    return project_box(w, 0.0, total, total)


def project_box(w: ArrayLike, low: float, high: float, total: float | None = None) -> Array:
    """Return the nearest point of ``{low <= x <= high}``, with ``sum x = total`` where a total is given, shape (n,).

    It is ``clip(w - t)`` for the t at which the sum is right; that sum is linear between the 2n places where an entry
    meets a bound.

    Raises
    ------
    InputError
        Where no point has these bounds and this total.
    """
    own = _vector(w, "w")
    n = len(own)
    if not -math.inf < low <= high < math.inf or (total is not None and not n * low <= total <= n * high):
        got = f"bounds {low} and {high} for {n} weights" + ("" if total is None else f" of sum {total}")
        raise InputError(got, "low <= high and n low <= total <= n high", "widen the bounds")
    if total is None:
        return np.asarray(np.clip(own, low, high))
    places = np.concatenate([own - high, own - low])  # an entry is free between the two
    order = np.argsort(places, kind="stable")
    free = np.cumsum(np.where(order < n, 1, -1))[:-1]
    sums = n * high - np.concatenate([[0.0], np.cumsum(free * np.diff(places[order]))])
    at = np.interp(-total, -sums, places[order])
    return np.asarray(np.clip(own - at, low, high))


def project_l1(w: ArrayLike, radius: float) -> Array:
    """Return the nearest point of ``{sum |x| <= radius}``, shape (n,); `radius` is above 0."""
    own = _vector(w, "w")
    if not 0.0 < radius < math.inf:
        raise InputError(f"radius = {radius}", "a finite number above 0", "change radius")
    if np.abs(own).sum() <= radius:
        return own.copy()
    return np.asarray(np.sign(own) * project_simplex(np.abs(own), radius))
