"""One client's share of the convex program: its value, its gradient and its curvature in the table of adjustments.

The adjusted score of sample i at client k and class j is

    z_ij = p_ij - sum_c sum_s F_csij sum_g q_cig V_kcsgj

with class probabilities p, strata F (`upright.maths.parity.rates`), memberships q and the client's table V. The
client's share of the objective is ``f_k(V) = sum_i w_i beta logsumexp(z_i / beta)``, convex in V, and

    -df_k / dV_csgj = sum_i w_i q_cig F_csij h_ij,     h_i = softmax(z_i / beta):

its gradient holds the rates of the randomised decision h and no sample.

Shapes: n samples of the client, m classes, G_c groups and S_c strata of constraint c, Q = sum_c S_c G_c m entries of
the table, in the order (c, s, g, j).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError
from upright.maths.parity.rates import Criterion, masses, strata

__all__ = ["Site", "adjusted", "table_size"]

Array = NDArray[np.float64]
_CHUNK_ELEMENTS = 1 << 22
_ALIKE = 100  # rows of the same groups, on average, from which on they are taken together


def table_size(criteria: Sequence[Criterion], groups: Sequence[int], m: int) -> list[tuple[int, int, int]]:
    """Return ``(S_c, G_c, m)`` of each constraint."""
    one = np.zeros((1, m))
    return [(len(strata(c, one)), g, m) for c, g in zip(criteria, groups, strict=True)]


def adjusted(p: Array, members: Sequence[Array], criteria: Sequence[Criterion], table: Sequence[Array]) -> Array:
    """Return the adjusted scores z, shape (n, m).

    Parameters
    ----------
    p : ndarray, shape (n, m)
        Class probabilities.
    members : sequence of ndarray, shape (n, G_c)
        Membership in the groups of each constraint.
    criteria : sequence of str
    table : sequence of ndarray, shape (S_c, G_c, m)
        The adjustments of the samples' client.
    """
    z = p.copy()
    for member, criterion, own in zip(members, criteria, table, strict=True):
        for f, v in zip(strata(criterion, p), own, strict=True):
            z -= f * (member @ v)
    return z


@dataclass(frozen=True, eq=False)
class Site:
    """The samples of one client.

    Parameters
    ----------
    p : ndarray, shape (n, m)
        Class probabilities.
    members : tuple of ndarray, shape (n, G_c)
        Membership in the groups of each constraint.
    weight : ndarray, shape (n,)
        Non-negative; over all clients they sum to 1.
    criteria : tuple of str

    Raises
    ------
    InputError
        For shapes that do not fit, fewer than two classes, numbers that are not finite, and negative ones.
    """

    p: Array
    members: tuple[Array, ...]
    weight: Array
    criteria: tuple[Criterion, ...]

    def __post_init__(self) -> None:
        arrays = {"p": self.p, "weight": self.weight, **{f"members[{c}]": q for c, q in enumerate(self.members)}}
        n = len(self.p)
        if (
            self.p.ndim != 2 or self.p.shape[1] < 2 or self.weight.shape != (n,)
            or len(self.members) != len(self.criteria) or any(q.ndim != 2 or len(q) != n for q in self.members)
        ):  # fmt: skip
            raise InputError(
                ", ".join(f"{name} of shape {v.shape}" for name, v in arrays.items()) + f", {self.criteria}",
                "p (n, m) with m of at least 2, weight (n,), and one (n, groups) a criterion", "make the shapes fit",
            )  # fmt: skip
        for name, v in arrays.items():
            if not bool(np.all((v >= 0) & np.isfinite(v))):  # a NaN would pass for convergence
                raise InputError(
                    f"{name} with {int((~(v >= 0) | ~np.isfinite(v)).sum())} entries that are negative or not finite",
                    "finite numbers of at least 0", "correct or leave out these rows",
                )  # fmt: skip

    def masses(self) -> list[Array]:
        """Return the mass of each stratum and group, shape (S_c, G_c, m) for each constraint; sums over clients add."""
        m = self.p.shape[1]
        return [masses(strata(c, self.p), q, self.weight, m) for c, q in zip(self.criteria, self.members, strict=True)]

    def decide(self, table: Sequence[Array], beta: float) -> Array:
        """Return the randomised decision ``softmax(z / beta)``, shape (n, m)."""
        z = adjusted(self.p, self.members, self.criteria, table) / beta
        e = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True))

    def sums(self, h: Array) -> Array:
        """Return ``sum_i w_i q_ig F_ij h_ij`` of any decision h (n, m), shape (Q,): what the rates are made of."""
        parts = [(q * self.weight[:, None]).T @ (f * h) for q, c in zip(self.members, self.criteria, strict=True)
                 for f in strata(c, self.p)]  # fmt: skip
        return np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0)

    @cached_property
    def _alike(self) -> list[tuple[Site, tuple[int, ...]]]:
        """Rows of the same groups as sites of one group each, and these groups; none where groups are estimates."""
        sizes = [q.shape[1] for q in self.members]
        known = all((q.max(1) == 1).all() and (q.sum(1) == 1).all() for q in self.members)
        if not known or not 1 < math.prod(sizes) < 1 << 62:  # more cannot be numbered
            return []
        kind = np.ravel_multi_index([q.argmax(1) for q in self.members], sizes)
        kinds = np.unique(kind)
        if len(kind) < _ALIKE * len(kinds):
            return []
        found = []
        for one in kinds:
            r = np.flatnonzero(kind == one)
            own = Site(self.p[r], tuple(np.ones((len(r), 1)) for _ in sizes), self.weight[r], self.criteria)
            found.append((own, tuple(map(int, np.unravel_index(one, sizes)))))
        return found

    def evaluate(self, table: Sequence[Array], beta: float, curvature: bool = True) -> tuple[float, Array, Array]:
        """Return ``f_k``, minus its gradient (Q,) and its second derivative (Q, Q), all zero where not asked for.

        No array is larger than a few million entries, or than p, whatever n is. Where groups are known the second
        derivative has a block for rows of the same groups, and nothing else is computed.
        """
        m = self.p.shape[1]
        width = sum(v.size for v in table)
        if self._alike:
            value, gradient, second = 0.0, np.zeros(width), np.zeros((width, width) if curvature else (0, 0))
            ends = np.cumsum([v.size for v in table])[:-1]
            places = [at.reshape(v.shape) for at, v in zip(np.split(np.arange(width), ends), table, strict=True)]
            for site, groups in self._alike:
                at = np.concatenate([place[:, g].ravel() for place, g in zip(places, groups, strict=True)])
                found = site.evaluate([v[:, [g]] for v, g in zip(table, groups, strict=True)], beta, curvature)
                value += found[0]
                gradient[at] += found[1]
                if curvature:
                    second[np.ix_(at, at)] += found[2]
            return value, gradient, second
        step = max(1, _CHUNK_ELEMENTS // max(width, 1))
        value, gradient, second = 0.0, np.zeros(width), np.zeros((width, width) if curvature else (0, 0))
        same = np.zeros((m, width // m, width // m))  # of one class with itself, (m, Q / m, Q / m)
        for start in range(0, len(self.p), step):
            rows = slice(start, start + step)
            p, w, members = self.p[rows], self.weight[rows], [q[rows] for q in self.members]
            z = adjusted(p, members, self.criteria, table)
            top = reduce(np.maximum, z.T)[:, None]  # of few columns several times as fast as a maximum along rows
            e = np.exp((z - top) / beta)
            total = reduce(np.add, e.T)[:, None]
            h = e / total
            value += float(w @ (top + beta * np.log(total))[:, 0])
            parts = [(q, np.broadcast_to(f, h.shape)) for q, c in zip(members, self.criteria, strict=True)
                     for f in strata(c, p)]  # fmt: skip
            if not curvature:
                gradient += np.concatenate([((q * w[:, None]).T @ (f * h)).ravel() for q, f in parts])
                continue
            y = np.concatenate(
                [(q[:, :, None] * (f * h)[:, None, :]).reshape(len(p), -1) for q, f in parts], axis=1
            )  # (n, Q)
            gradient += w @ y
            second -= y.T @ (w[:, None] * y)
            others = (e @ (1.0 - np.eye(m))) / total  # 1 - h without cancellation: h near 1 keeps its curvature
            for j in range(m):
                x = np.concatenate([q * f[:, j : j + 1] for q, f in parts], axis=1)  # (n, Q / m)
                same[j] += x.T @ ((w * h[:, j] * others[:, j])[:, None] * x)
        if curvature:
            for j in range(m):
                second[j::m, j::m] = same[j]
        return value, gradient, second / beta
