"""Constraints between groups, and the linear map from their dual prices to a table of adjustments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.maths.parity.rates import CRITERIA, Criterion, Gap, contrasts

__all__ = ["EMPTY", "Constraint", "Level", "levels_of"]

Array = NDArray[np.float64]
EMPTY = 1e-9
"""Share of a level's weight below which a group is empty in a stratum: less than one sample of any feasible number, and
below what the objective resolves in double precision."""


@dataclass(frozen=True)
class Constraint:
    """What may differ between groups, and by how much.

    Parameters
    ----------
    criterion : str
        Of `upright.maths.parity.rates.CRITERIA`.
    global_tol : float
        Largest gap over the pooled population, at least 0; infinity removes the constraint.
    local_tol : float or sequence of float, shape (K,)
        Largest gap inside each client, for all or for each.
    gap : {"pairwise", "average"}
        Between any two groups, or of a group to the average over groups.
    classes : tuple of int or None
        Which decisions are constrained; None: all, of two classes the last one.
    """

    criterion: Criterion = "demographic_parity"
    global_tol: float = float("inf")
    local_tol: float | Sequence[float] = float("inf")
    gap: Gap = "pairwise"
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise InputError(f"criterion {self.criterion!r}", ", ".join(CRITERIA), "name one of them")
        if self.gap not in ("pairwise", "average"):
            raise InputError(f"gap = {self.gap!r}", "'pairwise' or 'average'", "choose one of the two")
        for name in ("global_tol", "local_tol"):
            given = np.asarray(getattr(self, name))
            if given.dtype.kind not in "iuf" or not (given >= 0).all() or given.ndim > 1:
                raise InputError(
                    f"{name} = {getattr(self, name)!r}", "a number of at least 0; infinity removes the constraint",
                    "state the largest gap that is allowed, for example 0.01",
                )  # fmt: skip

    def chosen(self, m: int) -> tuple[int, ...]:
        """Return the constrained classes of m."""
        if self.classes is None:
            return (1,) if m == 2 else tuple(range(m))  # the other of two says the same, and would share the price
        if not self.classes or not all(0 <= c < m for c in self.classes):
            raise InputError(
                f"classes = {self.classes!r}", f"some of 0 to {m - 1}", "name the classes by their place in order"
            )
        return self.classes

    def local(self, clients: int) -> Array:
        """Return the local tolerances, shape (K,)."""
        given = np.asarray(self.local_tol, dtype=np.float64)
        if given.ndim and len(given) != clients:
            raise InputError(
                f"{len(given)} local tolerances", f"one number, or {clients}: one a client", "give one to each client"
            )
        return np.broadcast_to(given, (clients,)).copy()


@dataclass(frozen=True, eq=False)
class Level:
    """The constraints of one population: everybody, or one client.

    Parameters
    ----------
    matrix : ndarray, shape (Q, U)
        From prices to the table of adjustments; its transpose, applied to minus the gradient, gives ``D`` times the
        level's weight.
    tol : ndarray, shape (U,)
        Tolerances.
    share : float
        Weight of the level: 1, or the client's share of the samples.
    place : tuple of int arrays
        Constraint, stratum, contrast and class of each price.
    masked : tuple of int arrays
        The same of contrasts left out because a group is empty in the stratum.
    """

    matrix: Array
    tol: Array
    share: float
    place: NDArray[np.int64]  # (U, 4)
    masked: NDArray[np.int64]  # (M, 4)


def levels_of(
    constraints: Sequence[Constraint], mass: Sequence[Array], tol: Sequence[float], share: float,
    seen: Sequence[Array] | None = None,
) -> Level:  # fmt: skip
    """Return the constraints of a population from the masses of its groups.

    Parameters
    ----------
    mass : sequence of ndarray, shape (S_c, G_c, m)
        Of all samples, or of one client's (`Site.masses`).
    tol : sequence of float
        Tolerance of each constraint at this level; infinite ones are left out.
    share : float
        Weight of the level's samples.
    seen : sequence of ndarray, shape (S_c, G_c, m), optional
        Other masses without which a group is empty as well: by labels, where rates count labels by their probability.
    """
    width = sum(p.size for p in mass)
    empty = np.zeros((0, 4), dtype=np.int64)
    blocks, tols, places, masked = [np.zeros((width, 0))], [np.zeros(0)], [empty], [empty]
    at = 0
    for c, (one, p, limit) in enumerate(zip(constraints, mass, tol, strict=True)):
        g, m = p.shape[1:]
        allowed = np.zeros(m, dtype=bool)
        allowed[list(one.chosen(m))] = True
        there = np.minimum(p, p if seen is None else seen[c]) > EMPTY * share
        t = contrasts(one.gap, p, there & allowed)  # (S, R, G, m)
        full = contrasts(one.gap, p, np.broadcast_to(allowed, p.shape))
        live = np.abs(t).sum(2) > 0  # (S, R, m)
        lost = (np.abs(full).sum(2) > 0) & ~live
        if np.isfinite(limit):
            own = p / share if share > 0 else p  # a client without samples has no mass to divide
            scaled = np.divide(t, own[:, None], out=np.zeros_like(t), where=there[:, None])
            index = np.argwhere(live)  # (U, 3)
            block = np.zeros((width, len(index)))
            for u, (a, r, j) in enumerate(index):
                block[at + a * g * m + np.arange(g) * m + j, u] = scaled[a, r, :, j]
            blocks.append(block)
            tols.append(np.full(len(index), float(limit)))
            places.append(np.column_stack([np.full(len(index), c), index]))
            lost_at = np.argwhere(lost)
            masked.append(np.column_stack([np.full(len(lost_at), c), lost_at]))
        at += p.size
    return Level(
        np.concatenate(blocks, axis=1), np.concatenate(tols), share, np.concatenate(places), np.concatenate(masked)
    )
