"""Maps of user vectors: onto a barycenter for each class, and to where a classifier cannot tell."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upright.maths import transport as ot

__all__ = ["EntropicMap", "Eraser", "SlicedMap", "pooled_gaussians", "pooling_share", "quantiles"]


@dataclasses.dataclass
class Eraser:
    r"""Move everybody to where a logistic classifier gives the shares of the classes, whatever their class is.

    ``x' = x - S W' (W S W')^+ (W x + b - p)``, S the covariance of the known vectors, W and b the centred weights and
    biases of the classifier, p the centred logarithms of the shares: of all points at which the classifier cannot tell,
    the nearest by Mahalanobis distance. What is correlated with the classifier's reading goes with it, as in linear
    concept erasure (Belrose et al., *LEACE: Perfect linear concept erasure in closed form*, NeurIPS 2023). Needs no
    label of who is moved.

    Parameters
    ----------
    weight : Tensor, shape (C, d)
    bias : Tensor, shape (C,)
        Minus p.
    gain : Tensor, shape (d, C)
        ``S W' (W S W')^+``.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor

    @classmethod
    def fit(cls, table: Tensor, codes: NDArray[np.int64], classes: int, *, strength: float = 10.0) -> Eraser:
        """Fit the classifier to the users of known class.

        ``min_W mean_u -log softmax(W z_u + b)_{a_u} + strength / (2 n) ||W||^2`` on standardised vectors z, by L-BFGS
        from zero.

        Parameters
        ----------
        table : Tensor, shape (U, d), float64
        codes : int array, shape (U,)
            Class, negative where it is not known.
        classes : int
            C.
        strength : float
            Ridge in units of one observation.
        """
        known = torch.from_numpy(np.flatnonzero(codes >= 0))
        y = torch.from_numpy(codes[codes >= 0])
        centre, scale = table[known].mean(0), table[known].std(0).clamp_min(1e-12)
        z = (table - centre) / scale
        weight = torch.zeros(classes, z.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            fit = torch.nn.functional.cross_entropy(z[known] @ weight.T + bias, y)
            total = fit + 0.5 * strength / len(known) * weight.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        solver.step(loss)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            shares = torch.bincount(y, minlength=classes).double().log()
            own = (weight - weight.mean(0)) / scale
            offset = (bias - bias.mean()) - own @ centre - (shares - shares.mean())
            cov = torch.cov(table[known].T)
            gain = cov @ own.T @ torch.linalg.pinv(own @ cov @ own.T, rtol=1e-10)
        return cls(own, offset, gain)

    def logits(self, x: Tensor) -> Tensor:
        """Centred logits less those of the classes' shares, shape (n, C); zero where the classifier cannot tell."""
        return x @ self.weight.T + self.bias

    def __call__(self, x: Tensor) -> Tensor:
        """Return the moved vectors, shape (n, d)."""
        return x - self.logits(x) @ self.gain.T


def pooled_gaussians(parts: list[Tensor], share: float | None = None) -> list[ot.Gaussian]:
    """Fit a Gaussian to each class: its own mean, its covariance drawn to the pooled one.

    ``S_c <- (1 - s) S_c + s S``, S the mean covariance within classes. With few users a dimension a map that is fitted
    to the class alone does not carry over to anybody else.

    Parameters
    ----------
    parts : list of Tensor, shape (n_c, d) each
    share : float, optional
        s in [0, 1]; by default `pooling_share`.
    """
    s = pooling_share(parts) if share is None else share
    means, covs, pooled = _moments(parts)
    return [ot.Gaussian(m, (1 - s) * c + s * pooled) for m, c in zip(means, covs, strict=True)]


def pooling_share(parts: list[Tensor], folds: int = 5) -> float:
    """Return the s of {0, 0.1, ..., 1} under which users left out of the fit are likeliest, averaged over classes.

    Friedman, *Regularized discriminant analysis*, JASA 84 (1989). 1 when a class has fewer than four users.
    """
    least = min(len(p) for p in parts)
    if least < 4:
        return 1.0
    grid = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    score, folds = torch.zeros(len(grid), dtype=torch.float64), min(folds, least)
    for f in range(folds):
        means, covs, pooled = _moments([p[torch.arange(len(p)) % folds != f] for p in parts])
        for p, mean, cov in zip(parts, means, covs, strict=True):
            left = p[torch.arange(len(p)) % folds == f] - mean
            for i, s in enumerate(grid):
                root, failed = torch.linalg.cholesky_ex((1 - s) * cov + s * pooled)
                if int(failed):
                    score[i] = -torch.inf  # a class without spread of its own needs some of the others'
                    continue
                z = torch.linalg.solve_triangular(root, left.T, upper=False)
                score[i] -= (0.5 * z.square().sum() + len(left) * root.diagonal().log().sum()) / len(p)
    return float(grid[int(score.argmax())])


def _moments(parts: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Means, covariances and the pooled covariance."""
    fits = [ot.Gaussian.of(p) for p in parts]
    n = torch.tensor([float(len(p)) for p in parts], dtype=torch.float64)
    pooled = sum(k * f.cov for k, f in zip(n, fits, strict=True)) / n.sum()
    return [f.mean for f in fits], [f.cov for f in fits], torch.as_tensor(pooled)


def quantiles(line: Tensor, grid: Tensor) -> Tensor:
    """Quantile functions of sorted columns (n, k) at the grid (q,), linear between mid-ranks; shape (q, k)."""
    n = len(line)
    place = (grid * n - 0.5).clamp(0, n - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=n - 1)
    return line[low] + (place - low)[:, None] * (line[high] - line[low])


class EntropicMap:
    """``sum_j s_j(x) z_j`` with ``s(x) = softmax_j((g_j - |x - z_j|^2) / reg)``; its own members by their plan."""

    def __init__(self, support: Tensor, g: Tensor, reg: float, members: Tensor, plan: Tensor) -> None:
        self.support, self.g, self.reg, self.members, self.plan = support, g, reg, members, plan

    def shares(self, x: Tensor) -> Tensor:
        """Shares of the support points of each vector, shape (n, s), rows of sum 1."""
        if x is self.members:
            return self.plan / self.plan.sum(1, keepdim=True).clamp_min(1e-300)
        return torch.softmax((self.g - ot.squared_distances(x, self.support)) / self.reg, 1)


class SlicedMap:
    """``x + sum_k theta_k (Q*(F_c(theta_k x)) - theta_k x)`` over an orthonormal basis, outside the range by shift."""

    def __init__(self, own: Tensor, centre: Tensor, directions: Tensor) -> None:
        self.own, self.centre, self.directions = own.numpy(), centre.numpy(), directions

    def __call__(self, x: Tensor) -> Tensor:
        """Return the moved vectors, shape (n, d)."""
        line = (x @ self.directions.T).numpy()
        out = np.empty_like(line)
        for k in range(line.shape[1]):
            a, b, v = self.own[:, k], self.centre[:, k], line[:, k]
            low, high = np.searchsorted(a, v, "left"), np.searchsorted(a, v, "right")
            left, right = np.clip(low - 1, 0, len(a) - 1), np.clip(low, 0, len(a) - 1)
            step = a[right] - a[left]
            between = left + np.divide(v - a[left], step, out=np.zeros_like(v), where=step > 0)
            place = np.where(high > low, 0.5 * (low + high - 1), between)  # equal quantiles: the middle of their places
            out[:, k] = np.interp(place, np.arange(len(b)), b)
            below, above = v < a[0], v > a[-1]
            out[below, k] = v[below] - a[0] + b[0]
            out[above, k] = v[above] - a[-1] + b[-1]
        return x + torch.from_numpy(out - line) @ self.directions
