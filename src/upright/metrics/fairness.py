r"""Group fairness of decisions: rates by group, the largest gap of everybody and of each client, with intervals.

With ``N_kgyj`` the number of rows of client k, group g and label y that were decided as j (for a randomised decision
the sum of its probabilities), every rate is a ratio of sums of ``N``; `upright.maths.parity.rates` lists the criteria.

The pairwise gap is ``max_{s, j} (max_g R_sgj - min_g R_sgj)`` over strata s, classes j and groups g; the gap to the
average is the ``R_sgj - Rbar_sj`` of largest size, ``Rbar`` the rate of all groups of the level together. A *level* is
everybody (None) or one client. Small cells make both gaps large by chance: read intervals and the list of small cells.

*Interval*: percentile bootstrap over all rows, clients and groups not held fixed. The place of the maximum (stratum,
class, groups) is found on the data and kept in every draw, and the gap keeps its sign there. For decisions of 0 and 1
the resampled cells are multinomial draws, so the cost does not grow with n; probabilities are resampled row by row.
A cell whose rows all agree has an interval of no width: look at its count.

Source: Zhang et al., *FedFACT* (2025), arXiv 2506.03777: global and local fairness, lemma B.7.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upright.contract import InputError, stream
from upright.maths.parity.rates import Criterion, Gap, names_of_strata, needed, strata

__all__ = ["GroupFairness", "Table", "fairness_of", "gap_of", "group_fairness", "parts", "tabulate"]

Array = NDArray[np.float64]
Row = dict[str, Any]
KINDS: tuple[Gap, ...] = ("pairwise", "average")
_SUM = 1e-6  # by how much the probabilities of a row may miss 1


@dataclass(frozen=True, eq=False)
class Table:
    """``N_kgyj``, all that group fairness needs to know of the rows.

    Parameters
    ----------
    count : ndarray, shape (K, G, Y, m)
        Clients, groups, labels, decided classes; Y is m, or 1 without labels.
    clients, groups, classes : tuple
        Names along the axes; `clients` is empty when everybody is one client.
    labelled : bool
        Whether labels were given.
    h, cell : ndarray, shape (n, m) and (n,), optional
        Probabilities of a randomised decision, rows sorted by their ``cell = (k G + g) Y + y``.
    """

    count: Array
    clients: tuple[Any, ...]
    groups: tuple[Any, ...]
    classes: tuple[Any, ...]
    labelled: bool
    h: Array | None = None
    cell: NDArray[np.int64] | None = None


def _codes(what: str, values: Sequence[Any], names: Sequence[Any] | None = None) -> tuple[Any, tuple[Any, ...]]:
    """Return codes (n,) and names in order: as given, or sorted."""
    place: dict[Any, int] = {name: i for i, name in enumerate(names or ())}
    code = np.fromiter((place.setdefault(v, len(place)) for v in values), dtype=np.int64, count=len(values))
    if any(v is None or v != v for v in place):
        missing = [i for i, v in enumerate(values) if v is None or v != v]
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
    rank = np.argsort([place[name] for name in order])
    return rank[code], tuple(order)


def _probabilities(h: Array) -> Array:
    """Return rows that sum to 1 exactly enough to be counted."""
    total = h.sum(axis=1)
    wrong = np.flatnonzero(~(np.abs(total - 1.0) <= _SUM) | ~(h >= 0.0).all(axis=1))  # NaN is wrong too
    for i in wrong[:1].tolist():
        got = f"row {i} of decisions sums to {total[i]:.6g}, its smallest entry is {h[i].min():.6g}"
        wanted = "probabilities of at least 0 that sum to 1 in each row"
        raise InputError(got, wanted, "normalise each row, leave out what diverged, or pass the decided classes")
    return np.asarray(h / total[:, None])


def tabulate(
    decisions: ArrayLike | Sequence[Any], sensitive_features: ArrayLike | Sequence[Any], *,
    labels: ArrayLike | Sequence[Any] | None = None, clients: ArrayLike | Sequence[Any] | None = None,
    names: Sequence[Any] | None = None,
) -> Table:  # fmt: skip
    """Count rows by client, group, label and decided class; parameters and errors as in `group_fairness`."""
    given = {"decisions": decisions, "sensitive_features": sensitive_features, "labels": labels, "clients": clients}
    lists: dict[str, Any] = {k: v.tolist() if hasattr(v, "tolist") and np.ndim(v) == 1 else list(v)  # type: ignore
                             for k, v in given.items() if v is not None}  # fmt: skip
    n = len(lists["decisions"])
    for what, values in lists.items():
        if len(values) != n:
            got = f"{n} decisions and {len(values)} {what}"
            raise InputError(got, "arrays of one length", "build all of them from the same rows")
    random = n > 0 and (getattr(decisions, "ndim", 1) > 1 or isinstance(lists["decisions"][0], list))
    h = np.asarray(decisions, dtype=np.float64) if random else None
    if n == 0 or (h is not None and (h.ndim != 2 or h.shape[1] < 2 or len(names or h[0]) != h.shape[1])):
        got = f"decisions of shape {np.shape(lists['decisions'])}{f' and {len(names)} names' if names else ''}"
        wanted = "classes (n,) or probabilities (n, m), m of at least 2, with m names if any"
        raise InputError(got, wanted, "pass one decision a row and one name a column")
    group, groups = _codes("sensitive_features", lists["sensitive_features"])
    if len(groups) < 2:
        raise InputError(f"one group, {groups[0]!r}", "at least 2 sensitive_features", "pass one that divides the rows")
    label = np.zeros(n, dtype=np.int64)
    client, named = _codes("clients", lists["clients"]) if clients is not None else (label, ())
    if h is not None:
        h = _probabilities(h)
        classes = tuple(range(h.shape[1])) if names is None else tuple(names)
        if labels is not None:
            label, _ = _codes("labels", lists["labels"], classes)
    else:
        first, second = lists["decisions"], lists.get("labels", [])
        code, classes = _codes("decisions, then labels," if second else "decisions", first + second, names)
        decided, label = code[:n], code[n:] if second else label
        if second and {type(v) for v in first}.isdisjoint({type(v) for v in second}):
            got = f"decisions such as {first[0]!r} and labels such as {second[0]!r}"
            raise InputError(got, "classes written alike in both", "convert one of the two")
    m, y = len(classes), len(classes) if labels is not None else 1
    size = (max(1, len(named)), len(groups), y, m)
    cell = (client * size[1] + group) * y + label
    if h is None:
        count = np.bincount(cell * m + decided, minlength=math.prod(size)).astype(np.float64)
        return Table(count.reshape(size), named, groups, classes, labels is not None)  # (K, G, Y, m)
    order = np.lexsort((*h.T, cell))  # by value as well, so that the order of rows cannot change a result
    h, cell = h[order], cell[order]
    count = np.stack([np.bincount(cell, weights=one, minlength=math.prod(size[:3])) for one in h.T], axis=-1)
    return Table(count.reshape(size), named, groups, classes, labels is not None, h, cell)  # (K, G, Y, m)


def parts(criterion: Criterion, count: Array) -> tuple[Array, Array]:
    """Return numerators and denominators of the rates, (..., S, G, m) each, from cells (..., G, Y, m)."""
    column = count.sum(-2)  # (..., G, m)
    row = np.rint(count.sum(-1))  # (..., G, Y); whole rows, whatever their probabilities
    if criterion == "demographic_parity":
        return column[..., None, :, :], np.broadcast_to(row.sum(-1)[..., None, :, None], column[..., None, :, :].shape)
    if criterion == "equalized_odds_cells":
        up = np.moveaxis(count, -2, -3)  # (..., Y, G, m)
        return up, np.broadcast_to(np.moveaxis(row, -1, -2)[..., None], up.shape)
    hit = np.einsum("...gjj->...gj", count)
    if criterion == "equal_opportunity":
        return hit[..., None, :, :], row[..., None, :, :]
    down = np.stack([row, row.sum(-1, keepdims=True) - row], axis=-3)
    return np.stack([hit, column - hit], axis=-3), down


def _ratio(up: Any, down: Any) -> Array:
    return np.asarray(np.divide(up, down, out=np.full(np.shape(up), np.nan), where=down > 0))


def _sizes(up: Array, down: Array, gap: Gap) -> Array:
    """Return how far each group is from the lowest one, or from all together; -inf where nothing can be compared."""
    rate = _ratio(up, down)  # (..., S, G, m)
    there = ~np.isnan(rate)
    if gap == "pairwise":
        size = rate - np.where(there, rate, np.inf).min(-2, keepdims=True)
    else:
        size = np.abs(rate - _ratio(up.sum(-2, keepdims=True), down.sum(-2, keepdims=True)))
    return np.where(there & (there.sum(-2, keepdims=True) >= 2), size, -np.inf)


def gap_of(rates: ArrayLike, masses: ArrayLike | None = None, *, gap: Gap = "pairwise") -> Array:
    """Return the largest gap of plain rates, without an interval.

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
    if gap not in KINDS or (gap == "average" and masses is None):
        got = f"gap = {gap!r}{'' if gap not in KINDS else ' without masses'}"
        raise InputError(got, "'pairwise', or 'average' with the mass of each rate", "choose one of the two")
    p = np.where(np.isnan(r), 0.0, 1.0 if masses is None else np.asarray(masses, dtype=np.float64))
    top = _sizes(p * np.where(np.isnan(r), 0.0, r), p, gap).max((-3, -2, -1))
    return np.asarray(np.where(np.isfinite(top), top, np.nan))


@dataclass(frozen=True, order=True)
class _Place:
    """Stratum, class, group, and the other group (None for all together): where a gap is."""

    s: int
    j: int
    a: int
    b: int | None

    def of(self, up: Array, down: Array) -> Array:
        """Return the signed gap at this place, (...), from parts (..., S, G, m)."""
        top, bottom = up[..., self.s, :, self.j], down[..., self.s, :, self.j]
        rate = _ratio(top, bottom)
        rest = _ratio(top.sum(-1), bottom.sum(-1)) if self.b is None else rate[..., self.b]
        return np.asarray(rate[..., self.a] - rest)


def _largest(up: Array, down: Array, gap: Gap) -> _Place | None:
    """Find the largest gap of one level, parts (S, G, m)."""
    sizes = _sizes(up, down, gap)
    s, a, j = (int(i) for i in np.unravel_index(int(np.argmax(sizes)), sizes.shape))
    if gap == "average" or np.isneginf(sizes[s, a, j]):
        return None if np.isneginf(sizes[s, a, j]) else _Place(s, j, a, None)
    there = sizes[s, :, j] >= 0.0
    there[a] = False  # where all are alike, any other group shows the gap of 0
    return _Place(s, j, a, int(np.argmin(np.where(there, sizes[s, :, j], np.inf))))


def _ends(samples: Array, confidence: float) -> tuple[Array, Array]:
    """Return percentile intervals along the first axis, NaN left out, each of shape ``samples.shape[1:]``."""
    ordered = np.sort(samples, axis=0)  # NaN goes last
    last = np.maximum((~np.isnan(ordered)).sum(0) - 1, 0)

    def at(share: float) -> Array:
        below = np.floor(share * last).astype(np.int64)
        low, high = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in (below, np.minimum(below + 1, last)))
        return np.asarray(low + (share * last - below) * (high - low))

    return at(0.5 * (1.0 - confidence)), at(0.5 * (1.0 + confidence))


def _row(samples: Array, confidence: float) -> Row:
    """Return value (of entry 0, the data), interval and standard error."""
    (low, high), drawn = _ends(samples[1:], confidence), samples[1:][~np.isnan(samples[1:])]
    return {"value": float(samples[0]), "low": float(low), "high": float(high),
            "standard_error": float(drawn.std()) if len(drawn) else math.nan}  # fmt: skip


def _resampled(table: Table, draws: int, seed: int) -> Iterator[Array]:
    """Yield cells of one client after another, (draws, G, Y, m), when all rows are drawn with replacement."""
    rng = np.random.default_rng(stream(seed, "group_fairness"))
    k, *shape = table.count.shape
    each, width = np.rint(table.count.sum((1, 2, 3))), shape[0] * shape[1]
    # rows that each client gets: given them, clients are independent
    got = rng.multinomial(int(each.sum()), each / each.sum(), size=draws)  # (draws, K)
    for c in range(k):
        if table.h is None or table.cell is None:
            own = table.count[c].ravel()
            yield rng.multinomial(got[:, c], own / own.sum()).reshape(draws, *shape).astype(np.float64)
            continue
        begin, end = np.searchsorted(table.cell, [c * width, (c + 1) * width])
        h, cell = table.h[begin:end], table.cell[begin:end] - c * width
        start = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
        sums = np.zeros((draws, width, shape[2]))
        for d in range(draws):
            times = np.bincount(rng.integers(0, len(h), got[d, c]), minlength=len(h)).astype(np.float64)
            sums[d, cell[start]] = np.add.reduceat(h * times[:, None], start, axis=0)
        yield sums.reshape(draws, *shape)  # (draws, G, Y, m)


@dataclass(frozen=True, eq=False)
class GroupFairness:
    """Rates, gaps and what weakens them; rows are plain mappings with ``client`` None for everybody.

    Parameters
    ----------
    criterion : str
    groups, clients, classes, compared : tuple
        Names; `compared` are the classes whose rates are compared.
    by_group : tuple of mapping
        ``client, stratum, class, group, n, rate, low, high``; n is the mass of the cell, the rate NaN when it is 0.
    overall : tuple of mapping
        The same of all groups together (``group`` is None).
    gaps : tuple of mapping
        Two a level, ``gap`` pairwise and average: ``client, gap, value, low, high, standard_error, stratum, class,
        first, second`` (None for the average), ``smallest`` (rows of the smallest cell compared there). A pairwise
        gap is at least 0 on the data and its interval may reach below; a gap to the average keeps its sign.
    summary : mapping
        For each gap the sizes ``global``, ``max`` and ``mean`` over clients (None without clients), each with
        ``value, low, high, standard_error``, and ``client`` of the maximum.
    small : tuple of mapping
        Cells too small to certify: ``client, stratum, group, class, n`` (rows of the cell), ``have`` (rows of the
        level), ``need`` (rows by lemma B.7 for more than `observations` of the cell; None for an empty cell).
    conflicts : tuple of mapping
        Gaps that point the other way at a client than globally, intervals beyond 0, cells of at least `observations`
        rows: ``client, stratum, class, first, second``, and ``global`` and ``local`` with ``value, low, high``.
    """

    criterion: Criterion
    groups: tuple[Any, ...]
    clients: tuple[Any, ...]
    classes: tuple[Any, ...]
    compared: tuple[Any, ...]
    by_group: tuple[Row, ...]
    overall: tuple[Row, ...]
    gaps: tuple[Row, ...]
    summary: Mapping[Gap, Mapping[str, Row | None]]
    small: tuple[Row, ...]
    conflicts: tuple[Row, ...]


def fairness_of(
    table: Table, criterion: Criterion = "demographic_parity", *, classes: Sequence[Any] | None = None,
    draws: int = 2000, confidence: float = 0.95, seed: int = 0, observations: int = 30, delta: float = 0.05,
) -> GroupFairness:  # fmt: skip
    """Return the group fairness of counted rows; see `group_fairness`."""
    strata(criterion, np.ones((1, 1)))  # refuses what it does not know
    if criterion != "demographic_parity" and not table.labelled:
        todo = "pass labels, or take demographic_parity, which needs none"
        raise InputError(f"criterion {criterion!r} without labels", "labels, one for each decision", todo)
    chosen = dict.fromkeys(table.classes[-1 if len(table.classes) == 2 else 0 :] if classes is None else classes)
    unknown = [one for one in chosen if one not in table.classes]
    if unknown or not chosen:
        got = f"class {unknown[0]!r}" if unknown else "no class"
        raise InputError(got, ", ".join(map(repr, table.classes)), "name classes that occur")
    keep = [table.classes.index(one) for one in chosen]
    if draws < 2 or not 0.0 < confidence < 1.0:
        got = f"draws = {draws!r}, confidence = {confidence!r}"
        raise InputError(got, "draws of at least 2, confidence in (0, 1)", "correct the one outside its range")
    needed(1.0, observations, delta)  # refuses what it cannot take
    facts = _Facts(table, criterion, keep, confidence, observations, delta)
    everybody, total, local = table.count.sum(0), np.zeros(()), []
    for i, cells in enumerate(_resampled(table, draws, seed)):
        total = total + cells
        if table.clients:
            local.append(_Level(facts, table.clients[i], table.count[i], cells, facts.opposed(everybody, i)))
    whole = _Level(facts, None, everybody, total, sorted({place for one in local for place in one.pairs}))
    conflicts = [
        {"client": one.name, **facts.named(place), "global": whole.pairs[place], "local": own}
        for one in local
        for place, own in one.pairs.items()
        if all(row["low"] > 0.0 or row["high"] < 0.0 for row in (whole.pairs[place], own))
    ]
    levels = [whole, *local]
    rows = [row for one in levels for row in one.rates]
    return GroupFairness(
        criterion, table.groups, table.clients, table.classes, tuple(chosen),
        tuple(row for row in rows if row["group"] is not None), tuple(row for row in rows if row["group"] is None),
        tuple(row for one in levels for row in one.gaps), {kind: _summary(whole, local, kind) for kind in KINDS},
        tuple(row for one in levels for row in one.small()), tuple(conflicts),
    )  # fmt: skip


def group_fairness(
    decisions: ArrayLike | Sequence[Any], sensitive_features: ArrayLike | Sequence[Any], *,
    labels: ArrayLike | Sequence[Any] | None = None, clients: ArrayLike | Sequence[Any] | None = None,
    criterion: Criterion = "demographic_parity", classes: Sequence[Any] | None = None, draws: int = 2000,
    confidence: float = 0.95, seed: int = 0, observations: int = 30, delta: float = 0.05,
    names: Sequence[Any] | None = None,
) -> GroupFairness:  # fmt: skip
    """Compare groups in the rates of a criterion, over all rows and at every client.

    ``R_sgj = sum_i F_sij q_ig h_ij / sum_i F_sij q_ig`` with strata F of the criterion; a gap is the largest difference
    of two groups (pairwise), or of one group and all together (average).

    Parameters
    ----------
    decisions : sequence, shape (n,), or array, shape (n, m)
        Decided classes of any hashable kind, or probabilities of a randomised decision.
    sensitive_features : sequence, shape (n,)
        Group of each row.
    labels, clients : sequence, shape (n,), optional
        True classes, which demographic parity does not need, and where each row lies.
    criterion : str
        Of `upright.maths.parity.rates.CRITERIA`.
    classes : sequence, optional
        Classes that are compared; by default the last one of two, all of more. Of two classes the rates of one are 1
        minus those of the other, but for `equal_opportunity`, which asks about the last class alone.
    draws, confidence, seed : of the bootstrap
    observations, delta
        A cell is small when its level has too few rows for more than `observations` of it, with probability 1 - delta.
    names : sequence, optional
        All classes in order, and the columns of probabilities; by default those that occur, sorted, and ``0..m-1``.

    Raises
    ------
    InputError
        For arrays of different lengths, missing values, probabilities that are none, fewer than two groups, an
        unknown criterion or class, labels that a criterion needs and did not get.
    """
    table = tabulate(decisions, sensitive_features, labels=labels, clients=clients, names=names)
    return fairness_of(table, criterion, classes=classes, draws=draws, confidence=confidence, seed=seed,
                       observations=observations, delta=delta)  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Facts:
    """What every level is judged by."""

    table: Table
    criterion: Criterion
    keep: list[int]
    confidence: float
    observations: int
    delta: float

    def parts(self, cells: Array) -> tuple[Array, Array]:
        up, down = parts(self.criterion, cells)
        return up[..., self.keep], down[..., self.keep]

    def strata(self) -> list[str]:
        return names_of_strata(self.criterion, tuple(map(str, self.table.classes)))

    def named(self, at: _Place) -> Row:
        first, second = (None if g is None else self.table.groups[g] for g in (at.a, at.b))
        names = self.strata()[at.s], self.table.classes[self.keep[at.j]], first, second
        return dict(zip(("stratum", "class", "first", "second"), names, strict=True))

    def opposed(self, everybody: Array, client: int) -> list[_Place]:
        """Pairs of large enough cells whose gap at a client has the other sign than everybody's."""
        (up, down), found = self.parts(self.table.count[client]), []
        whole, own = _ratio(*self.parts(everybody)), np.where(down >= self.observations, _ratio(up, down), np.nan)
        for a, b in itertools.combinations(range(len(self.table.groups)), 2):
            other = (whole[:, a] - whole[:, b]) * (own[:, a] - own[:, b]) < 0.0  # (S, m); NaN is not
            found += [_Place(int(s), int(j), a, b) for s, j in zip(*np.nonzero(other), strict=True)]
        return found


class _Level:
    """Rates, gaps and wanted pairs of one level, from its cells (G, Y, m) and resampled cells (draws, G, Y, m)."""

    def __init__(self, facts: _Facts, name: Any, cells: Array, drawn: Array, wanted: Sequence[_Place]) -> None:
        self.facts, self.name, self.have = facts, name, int(np.rint(cells.sum()))
        self.data, self.drawn = facts.parts(cells), facts.parts(drawn)
        self.sized: dict[Gap, Array] = {}
        self.rates = self._rates()
        self.gaps = [self._gap(kind) for kind in KINDS]
        self.pairs = {place: _row(self._at(place), facts.confidence) for place in wanted}
        del self.drawn  # large, and used up

    def _rates(self) -> list[Row]:
        """One row a stratum, class and group, and one for all groups together, whose group is None."""
        facts = self.facts
        up, down, ups, downs = (np.concatenate([part, part.sum(-2, keepdims=True)], -2)
                                for part in (*self.data, *self.drawn))  # fmt: skip
        rate, (low, high) = _ratio(up, down), _ends(_ratio(ups, downs), facts.confidence)
        return [
            {"client": self.name, "stratum": stratum, "class": facts.table.classes[place], "group": group,
             "n": int(down[s, g, j]), "rate": float(rate[s, g, j]), "low": float(low[s, g, j]),
             "high": float(high[s, g, j])}
            for s, stratum in enumerate(facts.strata()) for j, place in enumerate(facts.keep)
            for g, group in enumerate((*facts.table.groups, None))
        ]  # fmt: skip

    def _at(self, place: _Place) -> Array:
        """Return the gap at a place on the data and on each draw, shape (1 + draws,)."""
        return np.concatenate([place.of(*self.data)[None], place.of(*self.drawn)])

    def _gap(self, kind: Gap) -> Row:
        place = _largest(*self.data, kind)
        if place is None:
            self.sized[kind] = np.full(1 + len(self.drawn[0]), np.nan)
            nowhere = dict.fromkeys(("stratum", "class", "first", "second")) | {"smallest": 0}
            return {"client": self.name, "gap": kind, **_row(self.sized[kind], 0.5), **nowhere}
        samples, mass = self._at(place), self.data[1][place.s, :, place.j]
        self.sized[kind] = samples * (-1.0 if samples[0] < 0 else 1.0)
        mass = mass[mass > 0] if place.b is None else mass[[place.a, place.b]]
        return {"client": self.name, "gap": kind, **_row(samples, self.facts.confidence), **self.facts.named(place),
                "smallest": int(mass.min())}  # fmt: skip

    def small(self) -> list[Row]:
        """Cells of which lemma B.7 promises too few; one row where the class does not change the cell."""
        facts, found = self.facts, []
        same = facts.criterion in ("demographic_parity", "equalized_odds_cells")
        for s, stratum in enumerate(facts.strata()):
            for j, place in enumerate(facts.keep[:1] if same else facts.keep):
                cls = None if same else facts.table.classes[place]
                for group, n in zip(facts.table.groups, self.data[1][s, :, j].tolist(), strict=True):
                    need = needed(n / self.have, facts.observations, facts.delta) if n else None
                    if need is None or need > self.have:
                        found.append({"client": self.name, "stratum": stratum, "group": group, "class": cls,
                                      "n": int(n), "have": self.have, "need": need})  # fmt: skip
        return found


def _summary(whole: _Level, local: Sequence[_Level], kind: Gap) -> dict[str, Row | None]:
    """Return sizes of the gaps: of everybody, the largest of a client, the mean over clients."""
    every = _row(whole.sized[kind], whole.facts.confidence)
    if not local:
        return {"global": every, "max": None, "mean": None}
    sized = np.stack([one.sized[kind] for one in local])  # (K, 1 + draws)
    there = ~np.isnan(sized)
    top = int(np.argmax(np.where(there[:, 0], sized[:, 0], -np.inf)))
    mean = _row(_ratio(np.where(there, sized, 0.0).sum(0), there.sum(0)), whole.facts.confidence)
    worst = {"client": local[top].name, **_row(sized[top], whole.facts.confidence)}
    return {"global": every, "max": worst, "mean": mean}
