r"""Gaussian transport: Bures-Wasserstein distance, barycenter and affine maps.

For Gaussians ``N(m_p, P)`` and ``N(m_q, Q)``

    W_2^2 = ||m_p - m_q||^2 + tr P + tr Q - 2 tr (P^1/2 Q P^1/2)^1/2
    T(x)  = m_q + A (x - m_p) ,   A = P^-1/2 (P^1/2 Q P^1/2)^1/2 P^-1/2

T is the optimal map, A is symmetric positive definite, ``A P A = Q``. For other distributions of the same moments W_2^2
is a lower bound and T the best affine map. All is solved in float64; results are in the type of the inputs.

References
----------
Bhatia, Jain and Lim, *On the Bures-Wasserstein distance between positive definite matrices*, Expo. Math. 37 (2019);
Alvarez-Esteban et al., *A fixed-point approach to barycenters in Wasserstein space*, J. Math. Anal. Appl. 441 (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from upright.contract import InputError
from upright.maths.transport.common import Convergence, check_points, rows, simplex

__all__ = ["AffineMap", "Gaussian", "GaussianBarycenter", "affine_map", "bures_barycenter", "gaussian_w2"]

_CHUNK = 1 << 16  # rows that are centred and widened to float64 at once
_SINGULAR = 1e-12  # eigenvalues below this share of the largest one count as zero


@dataclass(frozen=True)
class Gaussian:
    """A mean and a covariance.

    Parameters
    ----------
    mean : Tensor, shape (d,)
    cov : Tensor, shape (d, d)
        Symmetric positive semi-definite.

    Raises
    ------
    InputError
        When the shapes do not fit, a value is not finite, or cov is not symmetric positive semi-definite.
    """

    mean: Tensor
    cov: Tensor

    def __post_init__(self) -> None:
        mean, cov = self.mean.detach(), self.cov.detach().to(torch.float64)
        shape_ok = mean.ndim == 1 and cov.shape == (mean.shape[0], mean.shape[0]) and mean.shape[0] > 0
        ok = shape_ok and bool(torch.isfinite(mean).all()) and bool(torch.isfinite(cov).all())
        if ok:
            slack = 1e-5 * float(cov.abs().max())  # float32 moments are this far from symmetric and from >= 0
            ok = float((cov - cov.T).abs().max()) <= slack and float(torch.linalg.eigvalsh(cov)[0]) >= -slack
        if not ok:
            raise InputError(
                f"a mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(cov.shape)} that do not fit, "
                "are not finite, or are not positive semi-definite",
                "a finite mean (d,) and a symmetric positive semi-definite covariance (d, d)",
                "build it with Gaussian.of(points)",
            )

    @classmethod
    def of(cls, x: Tensor, shrinkage: float = 1e-3) -> Gaussian:
        r"""Return the moments ``m = (1/n) sum_u x_u`` and ``cov = (1 - s) S + s (tr S / d) I`` of points.

        ``S = (1/n) sum_u (x_u - m)(x_u - m)'``.

        The ridge keeps the trace, makes cov invertible with fewer points than dimensions, and bounds its condition
        number by ``1 + d (1 - s) / s``.

        Parameters
        ----------
        x : Tensor, shape (n, d)
            At least two points. The result is differentiable in x.
        shrinkage : float
            s in [0, 1].

        Raises
        ------
        InputError
            For fewer than two points, points that are not finite, and s outside [0, 1].
        """
        check_points(x, "points", 2)
        if not 0.0 <= shrinkage <= 1.0:
            raise InputError(f"shrinkage = {shrinkage!r}", "a number in [0, 1]", "take 1e-3")
        n, d = x.shape
        mean = x.new_zeros(d, dtype=torch.float64)
        for some in rows(n, _CHUNK):
            mean = mean + x[some].to(torch.float64).sum(0) / n
        cov = x.new_zeros(d, d, dtype=torch.float64)
        for some in rows(n, _CHUNK):
            centred = x[some].to(torch.float64) - mean
            cov = cov + centred.T @ centred / n
        eye = torch.eye(d, dtype=torch.float64, device=x.device)
        cov = (1.0 - shrinkage) * cov + shrinkage * cov.trace() / d * eye
        return cls(mean.to(x.dtype), cov.to(x.dtype))


def _power(matrix: Tensor, *exponents: float) -> list[Tensor]:
    """Return powers of a symmetric positive semi-definite matrix; negative ones are of its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    floor = _SINGULAR * values[-1].clamp(min=0.0)
    held = values > floor
    safe = torch.where(held, values, 1.0)
    return [(vectors * torch.where(held, safe**e, 0.0)) @ vectors.mT for e in exponents]


def _check_pair(p: Gaussian, q: Gaussian) -> None:
    if p.mean.shape != q.mean.shape:
        raise InputError(
            f"Gaussians in {p.mean.shape[0]} and {q.mean.shape[0]} dimensions",
            "Gaussians of one dimension",
            "take both from the same embedding table",
        )


@torch.no_grad()
def gaussian_w2(p: Gaussian, q: Gaussian) -> Tensor:
    r"""Return ``W_2^2 = ||m_p - m_q||^2 + tr P + tr Q - 2 tr (P^1/2 Q P^1/2)^1/2``, the squared distance.

    Parameters
    ----------
    p, q : Gaussian

    Returns
    -------
    Tensor, shape ()
        At least 0, in the type of ``p.mean``.

    Raises
    ------
    InputError
        When the dimensions differ.
    """
    _check_pair(p, q)
    wide = torch.float64
    cov_p, cov_q = p.cov.to(wide), q.cov.to(wide)
    (root,) = _power(cov_q, 0.5)
    overlap = _power(root @ cov_p @ root, 0.5)[0].trace()
    apart = (p.mean.to(wide) - q.mean.to(wide)).square().sum()
    return (apart + (cov_p.trace() + cov_q.trace() - 2.0 * overlap).clamp(min=0.0)).to(p.mean.dtype)


@dataclass(frozen=True)
class GaussianBarycenter:
    """A Gaussian and how its fixed point was reached; the residual is ``||S - sum_c w_c (..)^1/2||_F / ||S||_F``."""

    gaussian: Gaussian
    convergence: Convergence


@torch.no_grad()
def bures_barycenter(
    gaussians: Sequence[Gaussian],
    weights: Tensor | Sequence[float] | None = None,
    *,
    max_iter: int = 200,
    tol: float = 1e-8,
) -> GaussianBarycenter:
    r"""Return the Gaussian with ``m = sum_c w_c m_c`` and ``S = sum_c w_c (S^1/2 S_c S^1/2)^1/2``.

    Iterates ``S <- S^-1/2 (sum_c w_c (S^1/2 S_c S^1/2)^1/2)^2 S^-1/2``, O(C d^3) each, from the weighted mean of the
    covariances.

    Parameters
    ----------
    gaussians : sequence of Gaussian
        One a class.
    weights : Tensor or sequence, shape (C,), optional
        w, >= 0, of sum 1; equal ones by default.
    max_iter : int
    tol : float
        Bound of the residual; 1e-8 is reached in about 10 iterations for well conditioned covariances.

    Returns
    -------
    GaussianBarycenter

    Raises
    ------
    InputError
        For an empty list, different dimensions, weights that do not sum to 1, max_iter or tol not above 0.

    Guarantee
    ---------
    The barycenter of Gaussians is this Gaussian, and it is unique when one covariance is positive definite; the
    iteration converges to it from any positive definite start.
    """
    if len(gaussians) == 0:
        raise InputError("no Gaussian", "at least one", "pass one a class")
    if max_iter < 1 or not tol > 0:
        raise InputError(f"max_iter = {max_iter}, tol = {tol}", "both above 0", "take the defaults")
    first = gaussians[0]
    for other in gaussians[1:]:
        _check_pair(first, other)
    w = simplex(weights, len(gaussians), first.mean)
    covs = torch.stack([g.cov.detach().to(first.cov.device, torch.float64) for g in gaussians])  # (C, d, d)
    means = torch.stack([g.mean.detach().to(first.mean.device, torch.float64) for g in gaussians])  # (C, d)
    s = torch.einsum("c,cij->ij", w, covs)
    residual, used = 0.0, 0
    for used in range(1, max_iter + 1):
        root, inverse = _power(s, 0.5, -0.5)
        image = torch.zeros_like(s)
        for c in range(len(gaussians)):
            image += w[c] * _power(root @ covs[c] @ root, 0.5)[0]
        size = float(s.norm())
        residual = float((s - image).norm()) / size if size > 0 else 0.0
        if residual <= tol or used == max_iter:
            break
        s = inverse @ image @ image @ inverse
        s = 0.5 * (s + s.T)
    gaussian = Gaussian((w @ means).to(first.mean.dtype), s.to(first.cov.dtype))
    return GaussianBarycenter(gaussian, Convergence(residual <= tol, used, residual, tol))


@dataclass(frozen=True)
class AffineMap:
    """``T(x) = m_q + A (x - m_p)``, defined for every x: users without a label or seen later can be moved too.

    Parameters
    ----------
    matrix : Tensor, shape (d, d)
        A, symmetric positive definite.
    source_mean, target_mean : Tensor, shape (d,)
    """

    matrix: Tensor
    source_mean: Tensor
    target_mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return T(x), shape (..., d), in the type of x; differentiable in x."""
        if x.shape[-1:] != self.source_mean.shape:
            raise InputError(
                f"points of shape {tuple(x.shape)}",
                f"points of shape (..., {self.source_mean.shape[0]})",
                "pass points of the space that the map was fitted in",
            )
        # T(x) = A x + (m_q - A m_p): one array of the size of x, not three
        offset = self.target_mean.to(torch.float64) - self.matrix.to(torch.float64) @ self.source_mean.to(torch.float64)
        flat = torch.addmm(offset.to(x.dtype), x.reshape(-1, x.shape[-1]), self.matrix.to(x.dtype))
        return flat.reshape(x.shape)


@torch.no_grad()
def affine_map(source: Gaussian, target: Gaussian) -> AffineMap:
    r"""Return the optimal map ``A = P^-1/2 (P^1/2 Q P^1/2)^1/2 P^-1/2`` from N(m_p, P) to N(m_q, Q).

    Parameters
    ----------
    source, target : Gaussian
        The covariances must be positive definite.

    Returns
    -------
    AffineMap

    Raises
    ------
    InputError
        When the dimensions differ or a covariance is singular.

    Guarantee
    ---------
    ``A P A = Q``: the image of the source has the moments of the target.
    """
    _check_pair(source, target)
    p, q = source.cov.to(torch.float64), target.cov.to(torch.float64)
    for name, cov in (("source", p), ("target", q)):
        values = torch.linalg.eigvalsh(cov)
        if not float(values[0]) > _SINGULAR * float(values[-1]):
            raise InputError(
                f"a {name} covariance with eigenvalues from {float(values[0]):.3g} to {float(values[-1]):.3g}",
                "a positive definite covariance",
                "raise the shrinkage of Gaussian.of, and check that the points are not all equal",
            )
    root, inverse = _power(p, 0.5, -0.5)
    matrix = inverse @ _power(root @ q @ root, 0.5)[0] @ inverse
    matrix = 0.5 * (matrix + matrix.T)
    return AffineMap(matrix.to(source.cov.dtype), source.mean.detach(), target.mean.detach())
