r"""Group fairness of decisions: rates by group, the largest gap of everybody and of each client, with intervals.

A *rate* ``R_sgj`` is how often rows of group g in stratum s are decided as class j (`upright.maths.parity.rates` lists
criteria and strata), a *level* everybody or one client. The pairwise gap of a level is
``max_{s, j} (max_g R_sgj - min_g R_sgj)``. Small cells make it large by chance: read intervals and the list of cells.

*Intervals.* Rates of 0/1 decisions have Wilson's, rates of randomised ones the normal one, from the variance of their
rows. Gaps are adjusted for all pairs and rates of everybody, inside clients for those of all clients
(`upright.maths.simultaneous`). Rows of one person count together.

Source: Zhang et al., *FedFACT* (2025), arXiv 2506.03777: global and local fairness, lemma B.7.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError, stream
from upright.maths.parity.rates import CRITERIA, Criterion, Gap, needed, strata
from upright.maths.simultaneous import Comparisons, compare_groups, rate_bounds

__all__ = ["GroupFairness", "Table", "fairness_of", "gap_of", "group_fairness", "rates_of"]

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Values = ArrayLike | Sequence[Any]
Row = dict[str, Any]
_SUM = 1e-6  # by how much the probabilities of a row may miss 1
_ZERO = 1e-12  # smaller gaps are 0


@dataclass(frozen=True, eq=False)
class Table:
    """Rows in codes.

    Parameters
    ----------
    values : ndarray, shape (n, M)
        Of `rates_of`: how far each row is decided so, NaN outside the stratum.
    rates : sequence of (stratum, class), length M
    group, client, person : ndarray of int, shape (n,)
        A group below 0 takes no part. Rows of a person are moved together.
    groups, clients : sequence
        Names; `clients` is empty when everybody is one client.
    """

    values: Array
    rates: Sequence[tuple[str, Any]]
    group: Codes
    client: Codes
    person: Codes
    groups: Sequence[Any]
    clients: Sequence[Any] = ()


def rates_of(
    criterion: Criterion, h: Array, classes: Sequence[Any], compared: Sequence[Any], label: Codes | None = None
) -> dict[tuple[str, Any], Array]:
    """Return values (n,) of each rate that a criterion compares, by stratum and class.

    Strata are ``predicted``, ``true_positive``, ``false_positive`` and ``label_<class>``.

    Parameters
    ----------
    h : ndarray, shape (n, m)
        Decisions: one-hot, or probabilities.
    classes, compared : sequence
        All, and those that are compared.
    label : ndarray of int, shape (n,), optional
        Places in `classes`.
    """
    odds = ["true_positive", "false_positive"]
    names = {"demographic_parity": ["predicted"], "equal_opportunity": odds[:1], "equalized_odds": odds}
    parts = strata(criterion, h if label is None else np.eye(len(classes))[label])
    masks = dict(zip(names.get(criterion, [f"label_{one}" for one in classes]), parts, strict=True))
    columns = [(stratum, one, f, classes.index(one)) for one in compared for stratum, f in masks.items()]
    return {(s, one): np.where(np.broadcast_to(f, h.shape)[:, j] > 0, h[:, j], np.nan) for s, one, f, j in columns}


def gap_of(rates: ArrayLike, masses: ArrayLike | None = None, *, gap: Gap = "pairwise") -> Array:
    """Return the largest gap of plain rates.

    >>> float(gap_of([[[0.8], [0.7]], [[0.1], [0.5]]]))  # equalized odds: 0.1 of true positives, 0.4 of false ones
    0.4

    ``pairwise``: ``max_{s, j} (max_g R_sgj - min_g R_sgj)``. ``average``: ``max_{s, g, j} |R_sgj - Rbar_sj|`` with
    ``Rbar_sj = sum_g P_sgj R_sgj / sum_g P_sgj`` over groups with a rate.

    Parameters
    ----------
    rates : array_like, shape (..., S, G, m)
        NaN for a group without mass, which takes no part.
    masses : array_like, shape (..., S, G, m), optional
        ``P``, needed for the average.
    gap : {"pairwise", "average"}

    Returns
    -------
    ndarray, shape (...)
        In [0, 1]; NaN where no stratum and class has two groups to compare.
    """
    r = np.asarray(rates, dtype=np.float64)
    if gap not in ("pairwise", "average") or (gap == "average" and masses is None):
        got = f"gap = {gap!r}{' without masses' if gap == 'average' else ''}"
        raise InputError(got, "'pairwise', or 'average' with the mass of each rate", "choose one of the two")
    there = ~np.isnan(r)
    if gap == "pairwise":
        size = r - np.where(there, r, np.inf).min(-2, keepdims=True)
    else:
        p = np.where(there, np.asarray(masses, dtype=np.float64), 0.0)
        size = np.abs(r - _ratio((p * np.where(there, r, 0.0)).sum(-2, keepdims=True), p.sum(-2, keepdims=True)))
    top = np.where(there & (there.sum(-2, keepdims=True) >= 2), size, -np.inf).max((-3, -2, -1))
    return np.asarray(np.where(np.isfinite(top), top, np.nan))


def _ratio(up: Any, down: Any) -> Array:
    return np.asarray(np.divide(up, down, out=np.full(np.shape(up), np.nan), where=down > 0))


@dataclass(frozen=True, eq=False)
class GroupFairness:
    """Rates and gaps, and what weakens them; rows are plain mappings with ``client`` None for everybody.

    Parameters
    ----------
    table : Table
    cells : ndarray, shape (4, M, L, G + 1)
        Rows, rate, low and high of rates, levels (everybody, then clients) and groups (then all together).
    pairs, inside : Comparisons
        Every pair of groups in every rate, of everybody and inside every client (None without clients).
    observations : int
        Rows that a cell should hold.
    """

    table: Table
    cells: Array
    pairs: Comparisons
    inside: Comparisons | None
    observations: int

    @property
    def by_group(self) -> list[Row]:
        """Rates: ``client, stratum, class, group, n, rate, low, high``; ``group`` is None for all groups together."""
        cells = itertools.product(self.table.rates, (None, *self.table.clients), (*self.table.groups, None))
        return [
            {"client": client, "stratum": rate[0], "class": rate[1], "group": group, "n": int(n)}
            | dict(zip(("rate", "low", "high"), numbers, strict=True))
            for (rate, client, group), (n, *numbers) in zip(cells, self.cells.reshape(4, -1).T.tolist(), strict=True)
        ]

    @property
    def gaps(self) -> list[Row]:
        """The largest pairwise gap of each level, with its adjusted interval and p.

        ``client, value, low, high, p, shown, stratum, class, first, second, smallest``: the group of the higher rate is
        first, a gap of 0 has no groups, and smallest counts the rows of the smaller cell.
        """
        rows, each = [], len(self.pairs.of)
        for found in filter(None, (self.pairs, self.inside)):
            for start in range(0, len(found.of), each):
                sizes = np.nan_to_num(np.abs(found.value[start : start + each]), nan=-1.0)
                rows.append(self.pair(found, start + int(sizes.argmax())))
        return rows

    @property
    def conflicts(self) -> list[Row]:
        """Pairs that are shown globally and the other way at a client: ``client``, ``global`` and ``local`` gap.

        Cells of fewer than `observations` rows at the client are left out.
        """
        if self.inside is None:
            return []
        rows, each = [], len(self.pairs.of)
        for k in np.flatnonzero(self.inside.shown).tolist():
            other = k % each
            if self.pairs.shown[other] and self.pairs.value[other] * self.inside.value[k] < 0:
                whole, own = self.pair(self.pairs, other), self.pair(self.inside, k)
                rows.append({"client": own["client"], "global": whole, "local": own})
        return [row for row in rows if row["local"]["smallest"] >= self.observations]

    @property
    def small(self) -> list[Row]:
        """Rows of `by_group` of which lemma B.7 promises too few; one where the class, then None, does not matter.

        Besides ``have``, the rows of the level, and ``need``: rows for more than `observations` of the cell in 95 % of
        samples, None for an empty cell.
        """
        rows, there = [], self.table.group >= 0
        have = {None: int(there.sum())}
        have |= dict(zip(self.table.clients, np.bincount(self.table.client[there]).tolist(), strict=False))
        first = self.table.rates[0][1]
        for row in self.by_group:
            same = not row["stratum"].endswith("positive")
            if row["group"] is None or (same and row["class"] != first):
                continue
            total = have.get(row["client"], 0)
            need = needed(row["n"] / total, self.observations) if row["n"] else None
            if need is None or need > total:
                rows.append(row | {"class": None if same else row["class"], "have": total, "need": need})
        return rows

    def pair(self, found: Comparisons, k: int) -> Row:
        """Return one of `pairs` or `inside` as a row of `gaps`."""
        home, m, *sides = found.of[k]
        turn, numbers = -1 if found.value[k] < 0 else 1, found.numbers(k)
        shown = numbers["value"] > _ZERO
        names = (*self.table.rates[m], *(self.table.groups[g] for g in sides[::turn])) if shown else (None,) * 4
        return {
            "client": self.table.clients[home] if home >= 0 else None,
            **{name: numbers[name] for name in ("value", "low", "high", "p")},
            "shown": bool(found.shown[k]),
            **dict(zip(("stratum", "class", "first", "second"), names, strict=True)),
            "smallest": int(self.cells[0, m, home + 1, sides].min()),
        }


def fairness_of(
    table: Table, *, observations: int = 30, seed: int = 0, known: Sequence[Comparisons] = ()
) -> GroupFairness:
    """Compare groups in every rate, over all rows and at every client; parameters as of `group_fairness`.

    `known` are the comparisons of the statistics ``disparity`` and, of clients, ``client_disparity``, if made already.
    """
    needed(1.0, observations)  # refuses what it cannot take
    groups, there = len(table.groups), table.group >= 0

    def bounds(home: Codes, homes: int) -> Array:  # (4, M, homes, G + 1)
        of_group, of_all = (np.where(there, code, -1) for code in (home * groups + table.group, home))
        apart = [rate_bounds(v, of_group, table.person, homes * groups) for v in table.values.T]
        whole = [rate_bounds(v, of_all, table.person, homes)[..., None] for v in table.values.T]
        return np.concatenate([np.stack(apart, 1).reshape(4, -1, homes, groups), np.stack(whole, 1)], axis=-1)

    def compare(place: Codes | None) -> Comparisons:
        rng = np.random.default_rng(stream(seed, "evidence", "null", "disparity"))  # as the statistic of that name
        return compare_groups(table.values[None], table.group[None], table.person, groups, rng=rng, place=place)

    everybody, places = bounds(np.zeros_like(table.client), 1), [None, table.client[None]][: 2 if table.clients else 1]
    pairs, *inside = known or map(compare, places)
    if not table.clients:
        return GroupFairness(table, everybody, pairs, None, observations)
    cells = np.concatenate([everybody, bounds(table.client, len(table.clients))], axis=2)
    return GroupFairness(table, cells, pairs, inside[0], observations)


def group_fairness(
    decisions: Values,
    sensitive_features: Values,
    *,
    labels: Values | None = None,
    clients: Values | None = None,
    persons: Values | None = None,
    criterion: Criterion = "demographic_parity",
    classes: Sequence[Any] | None = None,
    names: Sequence[Any] | None = None,
    observations: int = 30,
    seed: int = 0,
) -> GroupFairness:
    """Compare groups in the rates of a criterion, over all rows and at every client.

    Gaps lie in [0, 1], lower is fairer. Parity over all rows does not imply parity inside clients, nor the other way
    round. Where labels come from earlier decisions, criteria that take them as true do not see what was unfair in them.
    For two classes the gaps are `demographic_parity_difference` and `equalized_odds_difference` of Fairlearn.

    >>> granted = [6, 2, 1, 3]  # of 10 women and 10 men at the first client, then at the second
    >>> decisions = [int(i < k) for k in granted for i in range(10)]
    >>> groups, clients = (["women"] * 10 + ["men"] * 10) * 2, ["first"] * 20 + ["second"] * 20
    >>> found = group_fairness(decisions, groups, clients=clients)
    >>> [(gap["client"], round(gap["value"], 4), gap["first"], gap["shown"]) for gap in found.gaps]
    [(None, 0.1, 'women', False), ('first', 0.4, 'women', False), ('second', 0.2, 'men', False)]

    Parameters
    ----------
    decisions : sequence, shape (n,), or array, shape (n, m)
        Decided classes of any hashable kind, or probabilities of a randomised decision.
    sensitive_features : sequence, shape (n,)
        Group of each row.
    labels, clients, persons : sequence, shape (n,), optional
        True classes, which demographic parity does not need; where each row lies; whose it is, when persons have
        several.
    criterion : str
        Of `upright.maths.parity.rates.CRITERIA`.
    classes : sequence, optional
        Classes that are compared; by default the last one of two, all of more. Of two classes the rates of one are 1
        minus those of the other, but for `equal_opportunity`, which asks about the last class alone.
    names : sequence, optional
        All classes in order, and the columns of probabilities; by default those that occur, sorted, and ``0..m-1``.
    observations : int
        Rows that a cell should hold.
    seed : int
        Of the permutations behind p and the adjusted intervals.

    Raises
    ------
    InputError
        For arrays of different lengths, missing values, probabilities that are none, fewer than two groups, an
        unknown criterion or class, labels that a criterion needs and did not get.
    """
    given = {"sensitive_features": sensitive_features, "labels": labels, "clients": clients, "persons": persons}
    lists = {what: np.asarray(v, dtype=object).tolist() for what, v in given.items() if v is not None}
    table = np.asarray(decisions, dtype=object)
    n, random, true = len(table), table.ndim > 1, lists.get("labels")
    for what, values in lists.items():
        if len(values) != n:
            got = f"{n} decisions and {len(values)} {what}"
            raise InputError(got, "arrays of one length", "build all of them from the same rows")
    if n == 0 or (random and (table.ndim > 2 or table.shape[1] < 2 or len(names or table[0]) != table.shape[1])):
        got = f"decisions of shape {table.shape}{f' and {len(names)} names' if names else ''}"
        wanted = "classes (n,) or probabilities (n, m), m of at least 2, with m names if any"
        raise InputError(got, wanted, "pass one decision a row and one name a column")
    if criterion not in CRITERIA:
        raise InputError(f"criterion {criterion!r}", ", ".join(CRITERIA), "name one of them")
    if criterion != "demographic_parity" and true is None:
        todo = "pass labels, or take demographic_parity, which needs none"
        raise InputError(f"criterion {criterion!r} without labels", "labels, one for each decision", todo)
    group, groups = _codes("sensitive_features", lists["sensitive_features"])
    if len(groups) < 2:
        raise InputError(f"one group, {groups[0]!r}", "at least 2 sensitive_features", "pass one that divides the rows")
    client, homes = _codes("clients", lists["clients"]) if clients is not None else (np.zeros(n, dtype=np.int64), ())
    person = _codes("persons", lists["persons"])[0] if persons is not None else np.arange(n)
    if random:
        h, known = table.astype(np.float64), tuple(names or range(table.shape[1]))
        total, label = h.sum(axis=1), None if true is None else _codes("labels", true, known)[0]
        for i in np.flatnonzero(~(np.abs(total - 1.0) <= _SUM) | ~(h >= 0.0).all(axis=1))[:1].tolist():  # NaN too
            got = f"row {i} of decisions sums to {total[i]:.6g}, its smallest entry is {h[i].min():.6g}"
            wanted = "probabilities of at least 0 that sum to 1 in each row"
            raise InputError(got, wanted, "normalise each row, leave out what diverged, or pass the decided classes")
        h /= total[:, None]
    else:
        decided = table.tolist()
        if true is not None and {type(v) for v in decided}.isdisjoint({type(v) for v in true}):
            got = f"decisions such as {decided[0]!r} and labels such as {true[0]!r}"
            raise InputError(got, "classes written alike in both", "convert one of the two")
        code, known = _codes("decisions" if true is None else "decisions, then labels,", decided + (true or []), names)
        h, label = np.eye(len(known))[code[:n]], None if true is None else code[n:]
    chosen = list(dict.fromkeys(known[-1 if len(known) == 2 else 0 :] if classes is None else classes))
    unknown = [one for one in chosen if one not in known]
    if unknown or not chosen:
        got = f"class {unknown[0]!r}" if unknown else "no class"
        raise InputError(got, ", ".join(map(repr, known)), "name classes that occur")
    found = rates_of(criterion, h, known, chosen, label)
    coded = Table(np.stack([*found.values()], axis=-1), [*found], group, client, person, groups, homes)
    return fairness_of(coded, observations=observations, seed=seed)


def _codes(what: str, values: Sequence[Any], names: Sequence[Any] | None = None) -> tuple[Codes, tuple[Any, ...]]:
    """Return codes (n,) and names in order: as given, or sorted."""
    place: dict[Any, int] = {name: i for i, name in enumerate(names or ())}
    code = np.fromiter((place.setdefault(v, len(place)) for v in values), dtype=np.int64, count=len(values))
    missing = [i for i, v in enumerate(values) if v is None or v != v]
    if missing:
        got = f"{what} with {len(missing)} missing, the first in row {missing[0]}"
        raise InputError(got, "a value in every row", "leave these rows out of all arrays, or give them a value")
    if names is not None:
        if len(place) > len(names):
            wanted, got = ", ".join(map(repr, names)), f"{what} with {list(place)[len(names)]!r}"
            raise InputError(got, wanted, "correct it, or add it to names")
        return code, tuple(names)
    try:
        order = sorted(place)
    except TypeError:  # of several types
        order = sorted(place, key=lambda v: (type(v).__name__, str(v)))
    return np.argsort([place[name] for name in order])[code], tuple(order)
