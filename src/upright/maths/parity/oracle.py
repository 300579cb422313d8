"""The same program as a linear program over every sample's decision: exact, slow, and blind to other data.

    maximise   sum_i w_i <p_i, h_i>     subject to   h_i in the simplex,  |D_u(h)| <= tol_u

With n samples and m classes it has n m variables; `upright.maths.parity.program` has as many as there are constraints.
It is the oracle that the program is tested against, and its prices give a decision for other data as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from upright.contract import InputError
from upright.maths.parity.constraints import Constraint, levels_of
from upright.maths.parity.rates import strata
from upright.maths.parity.site import Site, table_size

__all__ = ["linear_program"]

Array = NDArray[np.float64]


def linear_program(
    sites: Sequence[Site], constraints: Sequence[Constraint]
) -> tuple[float, list[Array], list[list[Array]]]:
    """Solve the linear program with HiGHS.

    Returns
    -------
    accuracy : float
        Expected accuracy in terms of p, the largest possible.
    decisions : list of ndarray, shape (n_k, m)
        Randomised decisions of each client's samples.
    tables : list of list of ndarray, shape (S_c, G_c, m)
        Adjustments from the dual prices: ``argmax`` of the adjusted scores is optimal but for ties.

    Raises
    ------
    InputError
        When HiGHS finds no optimum.
    """
    m = sites[0].p.shape[1]
    shapes = table_size([c.criterion for c in constraints], [q.shape[1] for q in sites[0].members], m)
    mass = [site.masses() for site in sites]
    pooled = [np.sum([own[c] for own in mass], axis=0) for c in range(len(constraints))]
    limits = np.array([c.local(len(sites)) for c in constraints]).reshape(len(constraints), len(sites))
    common = levels_of(constraints, pooled, [c.global_tol for c in constraints], 1.0)
    rows, tol, levels = [], [], []
    features = [_features(site) for site in sites]  # each (n_k m, Q), sparse
    rows.append(sparse.vstack([sparse.csr_array(f @ common.matrix) for f in features]).T)
    tol.append(common.tol)
    for k, site in enumerate(sites):
        level = levels_of(constraints, mass[k], limits[:, k].tolist(), float(site.weight.sum()))
        levels.append(level)
        own = sparse.csr_array(features[k] @ level.matrix).T
        before, after = (sum(s.p.size for s in part) for part in (sites[:k], sites[k + 1 :]))
        rows.append(sparse.hstack([sparse.csr_array((own.shape[0], before)), own,
                                   sparse.csr_array((own.shape[0], after))]))  # fmt: skip
        tol.append(level.share * level.tol)
    gain = np.concatenate([(s.weight[:, None] * s.p).ravel() for s in sites])
    n = len(gain) // m
    a = sparse.csr_array(sparse.vstack(rows))
    bound = np.concatenate(tol)
    found = linprog(
        -gain, A_ub=sparse.vstack([a, -a]) if len(bound) else None,
        b_ub=np.concatenate([bound, bound]) if len(bound) else None,
        A_eq=sparse.kron(sparse.eye_array(n), np.ones((1, m)), format="csr"), b_eq=np.ones(n), bounds=(0, 1),
        method="highs",
    )  # fmt: skip
    if found.status != 0:
        raise InputError(
            f"HiGHS stopped without an optimum: {found.message}",
            "a feasible program",
            "check probabilities and weights",
        )
    price = np.zeros(len(bound))
    if len(bound):
        down = -np.asarray(found.ineqlin.marginals)
        price = down[: len(bound)] - down[len(bound) :]
    at = np.cumsum([len(t) for t in tol])[:-1]
    lam, *nu = np.split(price, at)
    cuts = np.cumsum([a * b * c for a, b, c in shapes])[:-1]
    tables = []
    for level, own in zip(levels, nu, strict=True):
        flat = common.matrix @ lam + level.matrix @ own
        tables.append([v.reshape(s) for v, s in zip(np.split(flat, cuts), shapes, strict=True)])
    ends = np.cumsum([s.p.size for s in sites])[:-1]
    return -float(found.fun), [h.reshape(-1, m) for h in np.split(np.asarray(found.x), ends)], tables


def _features(site: Site) -> sparse.csr_array:
    """Weighted contribution of each decision to each rate, shape (n m, Q) in the order (c, s, g, j)."""
    n, m = site.p.shape
    blocks = []
    for member, criterion in zip(site.members, site.criteria, strict=True):
        for f in strata(criterion, site.p):
            full = np.broadcast_to(f, (n, m))
            columns = []
            for g in range(member.shape[1]):
                own = (site.weight * member[:, g])[:, None] * full  # (n, m)
                columns.append(sparse.csr_array(
                    (own.ravel(), (np.arange(n * m), np.tile(np.arange(m), n))), shape=(n * m, m)
                ))  # fmt: skip
            blocks += columns
    if not blocks:
        return sparse.csr_array((n * m, 0))
    return sparse.csr_array(sparse.hstack(blocks))
