"""Items with quadratic losses, whose sharpness, penalty and step have closed forms."""

from __future__ import annotations

import torch
from torch import nn


class QuadraticItems(nn.Module):
    """``l_i = 0.5 (w - m_i)' H_i (w - m_i)`` in float64, with H_i random but for the curvature of item i."""

    def __init__(self, curvature, dim=5, seed=4):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.centre = torch.randn(len(curvature), dim, generator=g, dtype=torch.float64)
        root = torch.randn(len(curvature), dim, dim, generator=g, dtype=torch.float64)
        ball = root @ root.mT / dim + torch.eye(dim, dtype=torch.float64)
        self.hessian = torch.tensor(curvature, dtype=torch.float64)[:, None, None] * ball
        self.w = nn.Parameter(torch.linspace(-1, 1, dim, dtype=torch.float64))

    def forward(self, items):
        gap = self.w - self.centre[items]
        return 0.5 * torch.einsum("bd,bde,be->b", gap, self.hessian[items], gap)
