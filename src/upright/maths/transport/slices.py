"""Directions for transport along lines, where the optimal plan joins equal quantiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from upright.contract import InputError

__all__ = ["random_directions"]


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
