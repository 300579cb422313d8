"""Spreading the rows of a table over clients.

Kinds
-----
With K clients, groups a, classes y and ``n_a``, ``n_ay`` rows in a group and in a cell:

``dirichlet``
    ``p_a ~ Dir(gamma, ..., gamma)`` of length K for each group; client k gets ``n_a p_ak`` of its rows. gamma is the
    parameter of the distribution itself. Small gamma: a group sits at few clients; large gamma: every client has the
    same mixture.
``correlation``
    ``gamma_k ~ U(0.2, 0.8)``; a cell weighs ``gamma_k`` at client k on the diagonal (a and y both even or both odd, in
    the order of their values) and ``1 - gamma_k`` off it. Clients are of one size n / K, so the share of diagonal rows
    at client k is ``gamma_k c / (gamma_k c + 1 - gamma_k)``, with the one c for which the diagonal rows are used up:
    the odds ratios between clients are those of the weights.
``column``
    The clients are the values of a column.
``iid``
    At random, in equal sizes.

Fractions become counts by largest remainder, and chance alone decides which rows of a cell go where. Every row is used
exactly once.

References
----------
Ezzeldin et al., *FairFed*, AAAI 2023, for the Dirichlet partition by sensitive group; Zhang et al., *FedFACT*, NeurIPS
2025, for both. The formula of the second is missing from the text at hand; the one above is a reconstruction. Published
code of the first authors draws from Dir(2 gamma) and gives a client that is full no more: neither is done here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from upright.contract import InputError

__all__ = ["Kind", "counts_of", "partition"]

Kind = Literal["dirichlet", "correlation", "column", "iid"]
MOST_DRAWS = 1_000
LOW, HIGH = 0.2, 0.8

Codes = NDArray[np.int64]


def partition(
    kind: Kind,
    *,
    group: ArrayLike,
    label: ArrayLike,
    n_clients: int | None,
    rng: np.random.Generator,
    gamma: float = 0.5,
    least: int = 20,
    column: ArrayLike | None = None,
) -> Codes:
    """Return the client of each row; the module says what each kind does.

    Parameters
    ----------
    kind : {"dirichlet", "correlation", "column", "iid"}
    group, label : array, shape (n,)
        Group and class of each row, of any type that sorts.
    n_clients : int or None
        K, from 1 to n; for ``column`` None, or the number of its values.
    rng : numpy.random.Generator
        Source of chance; ``column`` uses none.
    gamma : float
        Positive; for ``dirichlet``.
    least : int
        Fewest rows of each group at each client, at least 0; for ``dirichlet``. The shares of a group are drawn again
        until they meet it.
    column : array, shape (n,), or None
        For ``column``: client k is the k-th of its sorted values.

    Returns
    -------
    ndarray of int64, shape (n,)
        From 0 to K - 1.

    Raises
    ------
    InputError
        For arguments outside their ranges, a column that is not asked for or has an empty value, and a (client, group)
        cell that stays below `least` in 1,000 draws.

    Guarantee
    ---------
    A pure function of its arguments and the state of `rng`. For ``dirichlet``, a group's shares follow the Dirichlet
    law given that they meet `least`. For ``iid``, sizes differ by at most 1; for ``correlation``, each lies within the
    number of cells of n / K.
    """
    groups, labels = _codes(group, "group"), _codes(label, "label")
    n = len(groups)
    if kind not in get_args(Kind):
        raise InputError(f"kind = {kind!r}", " | ".join(map(repr, get_args(Kind))), "pass one of them")
    if not n or len(labels) != n:
        raise InputError(
            f"{n} groups and {len(labels)} labels", "one of each a row, at least one row", "check the table"
        )
    if (column is not None) != (kind == "column"):
        todo = "pass the values of the column" if column is None else "leave the column out, or pass kind='column'"
        got = f"kind = {kind!r} {'without' if column is None else 'with'} a column"
        raise InputError(got, "a column with kind='column' alone", todo)
    if column is not None:
        return _by_column(column, n, n_clients)
    if n_clients is None or not 1 <= n_clients <= n:
        raise InputError(f"n_clients = {n_clients}", f"from 1 to {n}, the number of rows", "change n_clients")
    if kind == "dirichlet":
        return _dirichlet(groups, [str(value) for value in np.unique(np.asarray(group))], n_clients, rng, gamma, least)
    if kind == "correlation":
        return _correlation(groups, labels, n_clients, rng)
    client = np.empty(n, dtype=np.int64)
    client[rng.permutation(n)] = np.arange(n) % n_clients
    return client


def _codes(values: ArrayLike, name: str) -> Codes:
    """Return the place of each value in sorted order."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"{name} of shape {array.shape}", "shape (n,)", "give one value a row")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"{name} with {int((~np.isfinite(array)).sum())} missing values", "none", "fill in or drop them"
        )
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _by_column(column: ArrayLike, n: int, n_clients: int | None) -> Codes:
    client = _codes(column, "column")
    if len(client) != n:
        raise InputError(f"a column of {len(client)} values for {n} rows", "one value a row", "check the table")
    empty = int((np.asarray(column) == "").sum()) if np.asarray(column).dtype.kind in "OU" else 0
    if empty:
        raise InputError(f"a column with {empty} empty values", "a client in every row", "fill in or drop those rows")
    found = int(client.max()) + 1
    if n_clients not in (None, found):
        raise InputError(
            f"n_clients = {n_clients} and a column with {found} values", f"None or {found}", "leave n_clients out"
        )
    return client


def _largest_remainder(shares: NDArray[np.float64], total: int) -> Codes:
    """Return whole numbers of a sum: the floor of each ``share * total``, and 1 more for the largest remainders.

    `shares` sum to 1; ties go to the first.
    """
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    left = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return counts


def _deal(rows: Codes, counts: Codes, rng: np.random.Generator, client: Codes) -> None:
    """Give rows to clients at random, `counts` of them to each."""
    client[rng.permutation(rows)] = np.repeat(np.arange(len(counts)), counts)


def _dirichlet(
    group: Codes, names: Sequence[str], n_clients: int, rng: np.random.Generator, gamma: float, least: int
) -> Codes:
    if not (0 < gamma < np.inf):
        raise InputError(f"gamma = {gamma}", "a positive number", "use 0.5, or 5 for milder differences")
    if least < 0:
        raise InputError(f"least = {least}", "a whole number from 0", "raise it")
    client = np.empty(len(group), dtype=np.int64)
    for code, name in enumerate(names):
        rows = np.flatnonzero(group == code)
        if len(rows) < least * n_clients:
            raise InputError(
                f"group {name!r} has {len(rows)} rows for {n_clients} clients",
                f"at least {least * n_clients}: {least} at each client",
                f"take at most {len(rows) // least} clients, lower least, or merge small groups",
            )
        # Groups are independent, and so is the condition on each: redrawing one group alone gives the same law as
        # redrawing all until every cell is large enough, with far fewer draws.
        for _ in range(MOST_DRAWS):
            # Above 1e12 a share differs from 1 / K by less than 1e-6 / K, and the sum of gammas could overflow.
            counts = _largest_remainder(rng.dirichlet(np.full(n_clients, min(gamma, 1e12))), len(rows))
            if counts.min() >= least:
                break
        else:
            raise InputError(
                f"client {int(counts.argmin())} has {int(counts.min())} of the {len(rows)} rows of group {name!r} in "
                f"the last of {MOST_DRAWS} draws; no draw gave every client {least}",
                f"a draw with at least {least} rows of each group at each of {n_clients} clients",
                f"raise gamma (now {gamma:g}), lower least, take fewer clients, or merge small groups",
            )
        _deal(rows, counts, rng, client)
    return client


def _correlation(group: Codes, label: Codes, n_clients: int, rng: np.random.Generator) -> Codes:
    gammas = rng.uniform(LOW, HIGH, n_clients)
    diagonal = group % 2 == label % 2
    shares = {True: np.zeros(n_clients), False: np.zeros(n_clients)}
    at_client = _diagonal_share(gammas, float(diagonal.mean()))
    for side, part in ((True, at_client), (False, 1 - at_client)):
        shares[side] = part / part.sum() if part.sum() else part  # a side without rows deals none
    client = np.empty(len(group), dtype=np.int64)
    cell = group * (int(label.max()) + 1) + label
    for code in np.unique(cell):
        rows = np.flatnonzero(cell == code)
        _deal(rows, _largest_remainder(shares[bool(diagonal[rows[0]])], len(rows)), rng, client)
    return client


def _diagonal_share(gammas: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Return ``gamma c / (gamma c + 1 - gamma)``, with c such that the mean over clients is the share of all rows."""
    if share in (0.0, 1.0):
        return np.full(len(gammas), share)
    logit = np.log(gammas) - np.log1p(-gammas)

    def at(log_c: float) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = 1 / (1 + np.exp(-(logit + log_c)))
        return shares

    centre, reach = float(np.log(share) - np.log1p(-share)), float(np.abs(logit).max()) + 1.0
    # At the ends every client lies on one side of the share, and the mean rises with c.
    return at(float(brentq(lambda log_c: float(at(log_c).mean()) - share, centre - reach, centre + reach, xtol=1e-13)))


def counts_of(
    client: ArrayLike,
    group: ArrayLike,
    label: ArrayLike,
    *,
    clients: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Count rows per client, group and class: what a person looks at before a run.

    Parameters
    ----------
    client : array of int, shape (n,)
        From `partition`.
    group : array, shape (n,)
    label : array of int, shape (n,)
        Index of the class.
    clients, classes : sequence of str, or None
        Names by index; the numbers themselves when None.

    Returns
    -------
    list of dict
        One for each client, group and class, empty ones too: ``client``, ``group``, ``label``, ``n``.

    Raises
    ------
    InputError
        When the lengths differ, or an index has no name.
    """
    which, labels = np.asarray(client), np.asarray(label)
    codes = _codes(group, "group")
    if not len(which) == len(labels) == len(codes) or not len(codes):
        raise InputError(
            f"{len(which)} clients, {len(codes)} groups and {len(labels)} labels",
            "one of each a row",
            "check the table",
        )
    shape = []
    for values, names, word in ((which, clients, "client"), (labels, classes, "class")):
        size = int(values.max()) + 1 if names is None else len(names)
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= size:
            raise InputError(
                f"{word} from {values.min()} to {values.max()}", f"0 to {size - 1}", f"name each {word}, in order"
            )
        shape.append(size)
    known = [str(value) for value in np.unique(np.asarray(group))]
    table = np.zeros((shape[0], len(known), shape[1]), dtype=np.int64)  # (clients, groups, classes)
    np.add.at(table, (which, codes, labels), 1)
    axes = (clients or [*map(str, range(shape[0]))], known, classes or [*map(str, range(shape[1]))])
    cells = zip(itertools.product(*axes), table.ravel().tolist(), strict=True)
    return [{"client": one, "group": name, "label": decided, "n": n} for (one, name, decided), n in cells]
