"""The pull of users towards weighted neighbours, for any table of user vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

__all__ = ["UserPullLoss"]


class UserPullLoss(nn.Module):
    """``lam * mean_{t in D cap batch} sum_v W_tv || e_t - sg(e_v) ||^2`` for any table of user vectors.

    With w_t = sum_v W_tv the inner sum is ``w_t ||e_t||^2 - 2 e_t' sum_v W_tv e_v + sum_v W_tv ||e_v||^2``: one
    product of the batch's rows of W with the neighbours' vectors.

    Parameters
    ----------
    weights : scipy.sparse CSR, shape (U, U)
        Non-negative; rows without entries belong to users that are not pulled.
    lam : float
        Weight of the pull.
    stop_grad : bool
        Hold the neighbours fixed (the published form).
    zero_targets : int array, optional
        Users pulled towards the origin instead (a control); ``weights`` is then ignored for them.
    zero_mass : float
        Weight of that pull, as the sum of a row of ``weights`` is of the other one.
    """

    def __init__(
        self,
        weights: sparse.csr_array,
        lam: float = 1.0,
        stop_grad: bool = True,
        zero_targets: Any = None,
        zero_mass: float = 1.0,
    ) -> None:
        super().__init__()
        self.lam, self.stop_grad = float(lam), stop_grad
        csr = sparse.csr_array(weights, copy=True)
        if zero_targets is not None:
            alone = np.ones(csr.shape[0])
            alone[np.asarray(zero_targets, dtype=np.int64)] = 0.0
            csr = sparse.csr_array(sparse.diags_array(alone) @ csr)
            csr.eliminate_zeros()
        columns = np.unique(csr.indices)  # the neighbours that occur at all
        self._columns = torch.from_numpy(columns.astype(np.int64))  # (n,)
        self._csr = sparse.csr_array(csr[:, columns]) if len(columns) else sparse.csr_array((csr.shape[0], 0))
        # a set that spreads over a small pool is nearly dense: one BLAS product then beats a sparse one
        dense = self._csr.nnz > 0.05 * np.prod(self._csr.shape) and np.prod(self._csr.shape) < 2e7
        self._dense = torch.from_numpy(self._csr.toarray()) if dense else None
        total = np.asarray(csr.sum(1), dtype=np.float64)
        if zero_targets is not None:
            total[np.asarray(zero_targets, dtype=np.int64)] = zero_mass
        self._total = total  # (U,)

    def _block(self, rows: Tensor) -> Tensor:
        """Weights of some users over the neighbours that occur, shape (b, n)."""
        if self._dense is not None:
            return self._dense.index_select(0, rows)
        own = self._csr[rows.numpy()].tocoo()
        return torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([own.row, own.col]).astype(np.int64)), torch.from_numpy(own.data), own.shape,
            is_coalesced=True, check_invariants=False,
        )  # fmt: skip

    def forward(self, table: Tensor, users: Tensor) -> Tensor:
        """Return the scalar pull.

        Parameters
        ----------
        table : Tensor, shape (U, d)
            User representations as the backbone scores with them.
        users : int64 Tensor, shape (B,)
            Users of the batch, repeats allowed; each counts once.

        Returns
        -------
        Tensor, shape ()
            Exactly 0, with a gradient of zeros, when nobody in the batch is a target.
        """
        own = np.unique(users.detach().cpu().numpy())
        own = own[self._total[own] > 0]  # (b,)
        if not len(own):
            return table.sum() * 0.0
        rows = torch.from_numpy(own)
        total = torch.from_numpy(self._total[own]).to(table)
        target = table.index_select(0, rows.to(table.device))  # (b, d)
        other = table.detach() if self.stop_grad else table
        other = other.index_select(0, self._columns.to(table.device))  # (n, d)
        other = torch.cat([other, other.square().sum(1, keepdim=True)], 1)  # (n, d + 1), last column ||e_v||^2
        sums = self._block(rows).to(table) @ other  # (b, d + 1) = sum_v W_tv (e_v, ||e_v||^2)
        toward, constant = sums[:, :-1], sums[:, -1]
        per_user = total * target.square().sum(1) - 2.0 * (target * toward).sum(1) + constant  # (b,)
        return self.lam * per_user.mean()
