"""What a defence did to the users, in counts that tell nothing about any one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["movement", "projection"]

LEAST = 5  # cells with fewer users are shown as empty


def movement(before: Tensor, after: Tensor, bins: int = 20) -> dict[str, Any]:
    """Return a histogram of ``|e_u' - e_u| / sqrt(mean_u |e_u - mean|^2)``: edges (bins + 1,) and counts (bins,)."""
    spread = (before - before.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-30)
    size = ((after - before).norm(dim=1) / spread).double().numpy()
    counts, edges = np.histogram(size, bins=bins, range=(0.0, max(float(size.max()), 1e-12)))
    return {"edges": edges.tolist(), "counts": _suppressed(counts).tolist(), "mean": float(size.mean())}


def projection(before: Tensor, after: Tensor, labels: NDArray[np.str_], bins: int = 8) -> dict[str, Any]:
    """Return the users in two dimensions, binned, before and after: the line between class means, and the widest other.

    The first axis runs along the difference of the two most distant class means (of the table itself), the second along
    the largest variance that is orthogonal to it. Cells with fewer than five users are empty.
    """
    names = sorted(set(labels.tolist()) - {""})
    if len(names) < 2:
        return {}
    found = {}
    for name, table in (("before", before), ("after", after)):
        x = (table - table.mean(0)).double().numpy()
        means = np.stack([x[labels == n].mean(0) for n in names])
        pairs = means[:, None] - means[None]
        first = pairs[np.unravel_index(np.square(pairs).sum(-1).argmax(), pairs.shape[:2])]
        first = first / max(float(np.linalg.norm(first)), 1e-30)
        rest = x - np.outer(x @ first, first)
        _, vectors = torch.linalg.eigh(torch.from_numpy(rest.T @ rest))
        points = np.stack([x @ first, rest @ vectors[:, -1].numpy()], axis=1)  # (U, 2)
        low, high = np.percentile(points, [1, 99], axis=0)
        xe, ye = (np.linspace(float(low[i]), float(high[i]), bins + 1) for i in range(2))
        classes = {}
        for n in names:
            own = points[labels == n]
            counts, _, _ = np.histogram2d(own[:, 0], own[:, 1], bins=[xe, ye])
            classes[n] = _suppressed(counts.astype(int)).tolist()
        found[name] = {"x": xe.tolist(), "y": ye.tolist(), "classes": classes}
    return found


def _suppressed(counts: NDArray[Any]) -> NDArray[Any]:
    return np.where(counts < LEAST, 0, counts)
