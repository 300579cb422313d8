"""What the transport solvers share: the typed result of an iteration and the checks of points and masses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upright.contract import InputError

__all__ = [
    "Convergence",
    "check_classes",
    "check_iteration",
    "check_points",
    "rows",
    "simplex",
    "uniform",
]

_MASS_TOLERANCE = 1e-5  # sums of float32 masses over a million points are this far off at most


@dataclass(frozen=True)
class Convergence:
    """How an iterative solver ended.

    Parameters
    ----------
    converged : bool
        ``residual <= tolerance``.
    iterations : int
        Iterations done.
    residual : float
        What the solver drives to 0, at the returned point; its docstring says what that is.
    tolerance : float
        The bound that was asked for.
    """

    converged: bool
    iterations: int
    residual: float
    tolerance: float


def check_points(x: Tensor, name: str, least: int = 1, dim: int | None = None) -> None:
    """Refuse what is no finite floating array of shape (n, d) with n >= `least` and, where given, d = `dim`."""
    if x.ndim != 2 or not x.is_floating_point() or x.shape[1] == 0 or (dim is not None and x.shape[1] != dim):
        raise InputError(
            f"{name} of shape {tuple(x.shape)} and type {x.dtype}",
            f"a floating tensor of shape (n, {'d' if dim is None else dim}), one point a row",
            "pass every set of points in the same space, as float32 or float64",
        )
    if x.shape[0] < least:
        raise InputError(
            f"{name} with {x.shape[0]} point(s)",
            f"at least {least} point(s)",
            "drop the class, or merge it with another one",
        )
    if not bool(torch.isfinite(x.detach()).all()):
        raise InputError(f"{name} with NaN or infinite values", "finite points", "find the step that diverged")


def check_classes(points: Sequence[Tensor]) -> None:
    """Refuse an empty list of classes, and classes that `check_points` refuses or that live in other spaces."""
    if len(points) == 0:
        raise InputError("no class of points", "at least one tensor of shape (n, d)", "pass one tensor a class")
    for c, x in enumerate(points):
        dim = points[0].shape[-1] if points[0].ndim == 2 else None
        check_points(x, f"class {c}", dim=dim)


def check_iteration(reg: float, max_iter: int, tol: float) -> None:
    """Refuse a regularisation or tolerance that is not above 0, and a solver without iterations."""
    if not 0.0 < reg < math.inf or max_iter < 1 or not 0.0 < tol < math.inf:
        raise InputError(
            f"reg = {reg!r}, max_iter = {max_iter!r}, tol = {tol!r}",
            "a finite reg above 0, at least one iteration, a tolerance above 0",
            "take reg = relative_reg(cost, 0.01)",
        )


def rows(count: int, chunk: int) -> Iterator[slice]:
    """Yield slices of at most `chunk` rows that cover `count` rows."""
    for first in range(0, count, chunk):
        yield slice(first, min(first + chunk, count))


def uniform(count: int, like: Tensor) -> Tensor:
    """Return ``count`` equal masses that sum to 1, float64, on the device of `like`."""
    return torch.full((count,), 1.0 / count, dtype=torch.float64, device=like.device)


def simplex(values: Tensor | Sequence[float] | None, count: int, like: Tensor) -> Tensor:
    """Return weights as float64 masses of sum 1 on the device of `like`; equal masses for None.

    Raises
    ------
    InputError
        When they are not `count` finite numbers >= 0 that sum to 1.
    """
    if values is None:
        return uniform(count, like)
    mass = torch.as_tensor(values, dtype=torch.float64, device=like.device).detach()
    total = float(mass.sum()) if mass.numel() else 0.0
    ok = mass.shape == (count,) and bool(torch.isfinite(mass).all()) and bool((mass >= 0).all())
    if not ok or abs(total - 1.0) > _MASS_TOLERANCE:
        raise InputError(
            f"weights of shape {tuple(mass.shape)} with sum {total:g}",
            f"{count} finite numbers >= 0 that sum to 1",
            "divide the weights by their sum, or leave them out for equal ones",
        )
    return mass / total
