"""Tables of rows with a label and groups: loading, groups, features, and a planted table whose Bayes scores are known.

A table keeps every column that was read. `Table.features` names the ones that may enter a model: not the label, not
what gives the label away, not the sensitive columns. Nothing is fitted when a table is loaded; `encode` fits its
categories and ranges on the rows that it is told to.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, stream

if TYPE_CHECKING:
    from upright.data.tables import Raw

__all__ = ["Cut", "Table", "cut_of", "encode", "groups_of", "load_table", "synthetic_table"]

MOST_VALUES = 10
_CUT = re.compile(r"\s*(.*?[^\s<>])\s*(<=|>=|<|>)\s*([-+]?[0-9]+(?:\.[0-9]*)?)\s*")
_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows with a label and sensitive columns.

    Parameters
    ----------
    name : str
        Name in the catalogue, or of the file.
    columns : mapping of column name to ndarray, shape (n,)
        Every column, float64 or str objects. NaN only in numbers that are neither features nor sensitive.
    features : tuple of str
        Columns that may be features.
    sensitive : tuple of str
        Names of the sensitive columns, the first is the default.
    label : ndarray of int64, shape (n,)
        Index into `classes`.
    classes : tuple of str
        In order; of two, the last is the positive one.
    facts : mapping
        Rows read, rows dropped and why, columns left out of the features and why, licence; JSON-able.

    Attributes
    ----------
    fingerprint : str
        SHA-256 over everything but name and facts; computed, not passed.

    Raises
    ------
    InputError
        When a column has another length than the label, a named column is absent, or a label is no class.
    """

    name: str
    columns: Mapping[str, NDArray[Any]]
    features: tuple[str, ...]
    sensitive: tuple[str, ...]
    label: NDArray[np.int64]
    classes: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if np.shape(column) != (len(self.label),):
                got, fits = f"column {name!r} of shape {np.shape(column)}", f"shape ({len(self.label)},) as the label"
                raise InputError(got, fits, "give one value a row")
        for name in (*self.features, *self.sensitive):
            _known(self.columns, name)
        if len(self.label) and not 0 <= self.label.min() <= self.label.max() < len(self.classes):
            got = f"labels from {self.label.min()} to {self.label.max()}"
            raise InputError(got, f"0 to {len(self.classes) - 1}", "give the index of a class in each row")
        object.__setattr__(self, "fingerprint", _fingerprint(self))

    def __len__(self) -> int:
        return len(self.label)


def _fingerprint(table: Table) -> str:
    """SHA-256 of columns, choice of features, labels and classes, in their order."""
    digest = hashlib.sha256(repr((table.features, table.sensitive, table.classes)).encode())
    digest.update(np.ascontiguousarray(table.label, dtype="<i8").tobytes())
    for name, column in table.columns.items():
        digest.update(f";{name}:{len(column)}:{column.dtype.kind};".encode())
        if column.dtype.kind == "f":
            digest.update(np.ascontiguousarray(column, dtype="<f8").tobytes())
        else:
            texts = column.tolist()
            # lengths too, so that ("ab", "c") and ("a", "bc") differ
            digest.update(np.fromiter(map(len, texts), dtype="<i8", count=len(texts)).tobytes())
            digest.update("".join(texts).encode())
    return digest.hexdigest()


def _known(columns: Mapping[str, Any], name: str) -> str:
    """Return the name of a column that is there."""
    if name not in columns:
        close = difflib.get_close_matches(name, list(columns), n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise InputError(f"no column {name!r}{hint}", ", ".join(map(repr, columns)), "name one of these columns")
    return name


@dataclass(frozen=True)
class Cut:
    """Ranges of a column of numbers.

    Parameters
    ----------
    column : str
    bounds : tuple of float
        Ascending.
    ranges : tuple of str
        Names, one more than bounds.
    side : {"left", "right"}
        Of which range a bound is the end: it belongs to the one below (left) or above (right).
    name : str
        As it was written, without blanks.
    """

    column: str
    bounds: tuple[float, ...]
    ranges: tuple[str, ...]
    side: Literal["left", "right"]
    name: str

    def range_of(self, numbers: NDArray[np.float64]) -> NDArray[Any]:
        """Return the name of the range of each number, as str objects; that of NaN means nothing."""
        ranges: NDArray[Any] = np.array(self.ranges, dtype=object)
        return np.asarray(ranges[np.searchsorted(self.bounds, numbers, self.side)])


def cut_of(name: str) -> Cut | None:
    """Read ``age<25`` (also ``<=``, ``>``, ``>=``), which gives two ranges, or ``age:25,45,65``, which gives four.

    Returns
    -------
    Cut or None
        None for a plain name.
    """
    if found := _CUT.fullmatch(name):
        column, sign, at = found[1], found[2], float(found[3])
        lower = sign if sign[0] == "<" else _OPPOSITE[sign]
        pair = (f"{column}{lower}{at:.12g}", f"{column}{_OPPOSITE[lower]}{at:.12g}")
        return Cut(column, (at,), pair, "right" if lower == "<" else "left", f"{column}{sign}{at:.12g}")
    column, _, numbers = name.partition(":")
    try:
        bounds = tuple(sorted(float(bound) for bound in numbers.split(",")))
    except ValueError:
        return None
    column = column.strip()
    words = [f"{bound:.12g}" for bound in bounds]
    inner = (f"{column} {low} to {high}" for low, high in itertools.pairwise(words))
    ranges = (f"{column}<{words[0]}", *inner, f"{column}>={words[-1]}")
    return Cut(column, bounds, ranges, "right", f"{column}:{','.join(words)}")


# -- loading --------------------------------------------------------------------------------------------------------


def load_table(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    label: str | None = None,
    sensitive: Sequence[str] = (),
    drop: Sequence[str] = (),
    positive: str | None = None,
    missing: Literal["error", "drop"] = "error",
    text: Sequence[str] = (),
    numbers: Sequence[str] = (),
) -> Table:
    """Load a table of the catalogue, or a person's CSV, TSV or Parquet file.

    ==============  =================================================  =========================  ===================
    name            rows                                               label                      sensitive
    ==============  =================================================  =========================  ===================
    ``adult``       both files, none with a missing value: 45,222      income                     sex, race
    ``compas``      the filter of ProPublica: 6,172                    two_year_recid, score_text race (of three), sex
    ``german``      1,000                                              credit                     sex, age<25
    ``census-kdd``  both files: 299,285                                income                     sex, race
    ==============  =================================================  =========================  ===================

    Parameters
    ----------
    name_or_path : str or Path
        A catalogue name wins over a file of the same name; write ``./name`` for the file.
    data_dir : str, Path or None
        See `upright.data.catalogue.locate`.
    label : str or None
        Column of the label, needed for a file. Its classes stand in the order of their numbers, else of their text.
    sensitive : sequence of str
        Sensitive columns, needed for a file; ``age<25`` cuts a column of numbers, as `cut_of` says, and takes the
        column itself out of the features. Named ones replace the defaults, which are features again then.
    drop : sequence of str
        Columns to leave out altogether, default sensitive ones among them.
    positive : str or None
        Which of two classes is the positive one, and so the last.
    missing : {"error", "drop"}
        For a file: what becomes of rows with an empty label, sensitive value or number. An empty cell of a category is
        a category of its own.
    text, numbers : sequence of str
        For a file: columns that hold categories although they look like numbers, and columns that hold numbers
        although they never repeat.

    Returns
    -------
    Table

    Raises
    ------
    InputError
        For an unknown name or column, the name of a data set of interactions, missing or corrupt files, options of a
        file together with a name, and, with their lines, all cells that do not fit. In a file, a feature that names
        rows is refused: whole numbers without a repeat, or text with more values than half of the rows.
    """
    from upright.data import catalogue, tables

    sensitive, drop, text, numbers = map(_names, (sensitive, drop, text, numbers))
    of_files = {"missing": missing != "error", "text": bool(text), "numbers": bool(numbers)}
    given = [option for option, used in of_files.items() if used]
    entry, path = catalogue.entry_or_path(name_or_path, "table", data_dir, given)
    if entry is not None:
        return _table(entry.name, tables.READERS[entry.reader](path, label), sensitive, drop, positive, entry.licence)
    if label is None or not sensitive:
        raise InputError(
            f"{path.name} without {'label' if label is None else 'sensitive columns'}",
            "label= the column to predict, and sensitive= the columns whose groups are compared",
            "name them",
        )
    if missing not in ("error", "drop"):
        raise InputError(f"missing = {missing!r}", "'error' | 'drop'", "pass one of them")
    raw = tables.read_table(
        path, label=label, sensitive=sensitive, drop=drop, missing=missing, text=text, numbers=numbers
    )
    return _table(path.name, raw, sensitive, (), positive, "the file's own")


def _names(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _table(
    name: str, raw: Raw, sensitive: Sequence[str], drop: Sequence[str], positive: str | None, licence: str
) -> Table:
    """Choose the features and the order of classes."""
    for one in drop:
        if _known(raw.columns, one) == raw.label_name:
            raise InputError(f"drop names the label {one!r}", "columns other than the label", "leave it out of drop")
    columns = {column: values for column, values in raw.columns.items() if column not in drop}
    spelled, hidden = [], {raw.label_name: "the label"}
    bases = {one: cut.column if (cut := cut_of(one)) else one for one in raw.sensitive}
    usual = [one for one, base in bases.items() if one not in drop and base not in drop]
    if not sensitive and not usual:
        raise InputError(f"{name} has no sensitive column", "one or more", "name them, or drop fewer columns")
    for one in sensitive or usual:
        column, base, values = _resolve(columns, one)
        if base == raw.label_name:
            raise InputError(f"the label {base!r} as a sensitive column", "another column", "name another")
        columns[column] = values
        spelled.append(column)
        hidden |= {base: "sensitive", column: "sensitive"}
    hidden = {column: why for column, why in (dict(raw.aside) | hidden).items() if column in columns}
    features = tuple(column for column in columns if column not in hidden)
    if not features:
        raise InputError(f"{name} has no features", "a column beside label and sensitive ones", "drop fewer columns")
    label, classes = raw.label, raw.classes
    if positive is not None:
        if len(classes) != 2 or positive not in classes:
            got = f"positive = {positive!r} for the classes {', '.join(map(repr, classes))}"
            raise InputError(got, "one of two classes", "name one of the two, or leave positive out")
        if positive == classes[0]:
            label, classes = 1 - label, classes[::-1]
    facts = dict(raw.facts) | {"rows": len(label), "left_out_of_features": hidden, "licence": licence}
    return Table(name, columns, features, tuple(dict.fromkeys(spelled)), label, classes, facts)


# -- groups ---------------------------------------------------------------------------------------------------------


def _resolve(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[str, str, NDArray[Any]]:
    """Return the name, the underlying column and the values of a column or of a cut through one."""
    cut = None if name in columns else cut_of(name)
    if cut is None:
        values = columns[_known(columns, name)]
        empty = int((np.isnan(values) if values.dtype.kind == "f" else values == "").sum())
        if empty:
            todo = "name it as sensitive when the file is loaded, with missing='drop'"
            raise InputError(f"{name!r} is empty in {empty} rows", "a value in every row", todo)
        return name, name, values
    numbers = columns[_known(columns, cut.column)]
    if numbers.dtype.kind != "f" or not np.isfinite(numbers).all():
        what = "text" if numbers.dtype.kind != "f" else "missing in some rows"
        got = f"{name!r} cuts {cut.column!r}, which is {what}"
        raise InputError(got, "a column of numbers without gaps", "name the column itself, or another")
    return cut.name, cut.column, cut.range_of(numbers)


def groups_of(table: Table, names: Sequence[str]) -> NDArray[np.str_]:
    """Return the group of each row: the values of one column, or ``a & b`` of several.

    Parameters
    ----------
    table : Table
        n rows.
    names : sequence of str
        Columns; ``age<25`` gives the groups ``age<25`` and ``age>=25``.

    Returns
    -------
    ndarray of str, shape (n,)

    Raises
    ------
    InputError
        For no or unknown names, an empty cell, and a column of numbers with more than 10 values, which is to be cut.
    """
    if not _names(names):
        raise InputError(
            "no column to group by", f"for example {', '.join(table.sensitive)}", "name one column or more"
        )
    parts = []
    for name in _names(names):
        column, _, values = _resolve(table.columns, name)
        if values.dtype.kind == "f":
            distinct = np.unique(values)
            if len(distinct) > MOST_VALUES:
                raise InputError(
                    f"{column!r} is a column of numbers with {len(distinct)} values",
                    f"text, or numbers with at most {MOST_VALUES} values",
                    f"cut it in two: {column}<{np.median(values):.12g}",
                )
            values = np.array([f"{value:.12g}" for value in distinct])[np.searchsorted(distinct, values)]
        parts.append(values.astype(str).tolist())
    rows = list(zip(*parts, strict=True))
    words = {row: " & ".join(row) for row in set(rows)}
    if len(set(words.values())) < len(words):
        raise InputError(
            "two different groups with one name", "values without ' & '", "rename the values that hold ' & '"
        )
    return np.array([words[row] for row in rows], dtype=np.str_)


# -- features -------------------------------------------------------------------------------------------------------


def encode(table: Table, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], list[str]]:
    """Encode all rows, fitted on some: ``(x - min) / (max - min)`` of numbers, ``[x = c]`` for each category c of text.

    Parameters
    ----------
    table : Table
        n rows.
    rows : ndarray of int, shape (r,)
        Rows that decide ranges, categories and what is constant: the training rows.

    Returns
    -------
    features : ndarray of float64, shape (n, d)
        Numbers are in [0, 1] on `rows` and may lie outside elsewhere. A category that `rows` do not hold gives zeros.
    names : list of str, length d
        ``column`` or ``column=category``, columns in the order of the table, categories sorted. A column that is
        constant on `rows` has no feature.

    Raises
    ------
    InputError
        For rows that are not row numbers, numbers with gaps, and when every column is constant.

    Guarantee
    ---------
    No value of a row outside `rows` changes a name, or the features of another row.
    """
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows) or rows.min() < 0 or rows.max() >= len(table):
        got, accepted = f"rows of type {rows.dtype} and shape {rows.shape}", f"row numbers from 0 to {len(table) - 1}"
        todo = "pass the numbers of the training rows (np.flatnonzero of a mask)"
        raise InputError(got, f"{accepted}, at least one", todo)
    plans: list[tuple[str, NDArray[Any], Any]] = []
    for name in table.features:
        values = table.columns[name]
        if values.dtype.kind == "f":
            if not np.isfinite(values).all():
                got = f"{name!r} is missing or infinite in {int((~np.isfinite(values)).sum())} rows"
                raise InputError(got, "finite numbers", "fill the gaps, or leave the column out by drop")
            low, high = values[rows].min(), values[rows].max()
            if low < high:
                plans.append((name, values, (low, high)))
        else:
            categories = sorted(set(values[rows].tolist()))
            if len(categories) > 1:
                plans.append((name, values, categories))
    width = sum(len(plan) if isinstance(plan, list) else 1 for _, _, plan in plans)
    if not width:
        raise InputError(f"every feature is constant on {len(rows)} rows", "features that vary", "pass more rows")
    features, names = np.zeros((len(table), width)), list[str]()
    for name, values, plan in plans:
        if isinstance(plan, list):
            code = _codes(values, plan)
            known = np.flatnonzero(code >= 0)
            features[known, len(names) + code[known]] = 1.0
            names += [f"{name}={category}" for category in plan]
        else:
            low, high = plan
            features[:, len(names)] = _scaled(name, values, low, high, len(rows))
            names.append(name)
    return features, names


def _scaled(name: str, values: NDArray[np.float64], low: float, high: float, n_rows: int) -> NDArray[np.float64]:
    """Return ``(x - low) / (high - low)``."""
    shrink = 0.25 if np.abs(values).max() > 1e300 else 1.0  # a difference of two huge numbers may exceed float64
    with np.errstate(over="ignore"):
        scaled: NDArray[np.float64] = (values * shrink - low * shrink) / (high * shrink - low * shrink)
    if not np.isfinite(scaled).all():
        got = f"{name!r} spreads over {high - low:g} on {n_rows} rows, and other rows lie beyond all bounds"
        raise InputError(got, "numbers of one scale", "correct the column, or leave it out by drop")
    return scaled


def _codes(values: NDArray[Any], categories: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each text among the categories, -1 for one that is not among them."""
    place = {category: code for code, category in enumerate(categories)}
    return np.fromiter((place.get(value, -1) for value in values.tolist()), dtype=np.int64, count=len(values))


# -- a planted table ------------------------------------------------------------------------------------------------


def _spread(count: int) -> NDArray[np.float64]:
    """Return count numbers from -1 to 1 at equal distances; 0 for one."""
    return np.linspace(-1.0, 1.0, count) if count > 1 else np.zeros(1)


def synthetic_table(n: int, *, groups: int = 2, classes: int = 2, clients: int = 1, seed: int) -> Table:
    """Draw a table whose class probabilities are known: base rates differ by group and by client.

    With ``u_a``, ``t_k``, ``v_j`` evenly spaced in [-1, 1] over groups, clients and classes::

        k ~ uniform        P(a | k) proportional to exp(0.6 u_a t_k)
        x1, noise ~ N(0, 1)    x2 ~ N(0.75 u_a, 1)    kind ~ uniform{a, b, c}
        P(y = j | x, a, k) proportional to exp(1.5 (x1 cos(2 pi j / m) + x2 sin(2 pi j / m))
                                               + v_j (0.5 [kind = c] - 0.5 [kind = a] + 0.5 u_a + 0.4 t_k))

    Of two classes x2 says nothing once the group is known, and much about the group: it is a proxy.

    Parameters
    ----------
    n : int
        Rows, at least 1.
    groups, classes, clients : int
        At least 1, 2 and 1.
    seed : int
        Seed of the stream ``table``.

    Returns
    -------
    Table
        Features ``x1``, ``x2``, ``noise``, ``kind``; sensitive ``group`` (``g0`` ...); ``site`` (``s0`` ...) and
        ``label`` are columns too.

    Raises
    ------
    InputError
        For sizes below their bounds.
    """
    for name, value, least in (("n", n, 1), ("groups", groups, 1), ("classes", classes, 2), ("clients", clients, 1)):
        if value < least:
            raise InputError(f"{name} = {value}", f"a whole number from {least}", f"raise {name}")
    rng = np.random.default_rng(stream(seed, "table"))
    site = rng.integers(clients, size=n)
    weight = np.exp(0.6 * np.outer(_spread(clients), _spread(groups)))
    share = weight / weight.sum(1, keepdims=True)  # P(a | k), shape (clients, groups)
    # inverse of the cumulative distribution, row by row
    group = (rng.random(n)[:, None] > share.cumsum(1)[site][:, :-1]).sum(1)
    columns: dict[str, NDArray[Any]] = {
        "x1": rng.standard_normal(n),
        "x2": rng.standard_normal(n) + 0.75 * _spread(groups)[group],
        "noise": rng.standard_normal(n),
        "kind": np.array(["a", "b", "c"], dtype=object)[rng.integers(3, size=n)],
        "group": np.array([f"g{code}" for code in range(groups)], dtype=object)[group],
        "site": np.array([f"s{code}" for code in range(clients)], dtype=object)[site],
    }
    facts: dict[str, Any] = {
        "rows": n,
        "planted": {"groups": groups, "classes": classes, "clients": clients},
        "left_out_of_features": {"group": "sensitive", "site": "the client", "label": "the label"},
        "licence": "none needed: drawn from a seed",
    }
    scores = _scores(columns, facts["planted"])
    label = (rng.random(n)[:, None] > scores.cumsum(1)[:, :-1]).sum(1).astype(np.int64)
    names = tuple(f"c{code}" for code in range(classes))
    columns["label"] = np.array(names, dtype=object)[label]
    return Table("synthetic", columns, ("x1", "x2", "noise", "kind"), ("group",), label, names, facts)


def _code_of(column: NDArray[Any]) -> NDArray[np.int64]:
    return np.array([int(value[1:]) for value in column], dtype=np.int64)


def _scores(columns: Mapping[str, NDArray[Any]], planted: Mapping[str, int]) -> NDArray[np.float64]:
    m = planted["classes"]
    group, site = _code_of(columns["group"]), _code_of(columns["site"])
    kind = np.select([columns["kind"] == "a", columns["kind"] == "c"], [-0.5, 0.5], 0.0)
    offset = kind + 0.5 * _spread(planted["groups"])[group] + 0.4 * _spread(planted["clients"])[site]
    angle = 2 * np.pi * np.arange(m) / m
    logits = 1.5 * (np.outer(columns["x1"], np.cos(angle)) + np.outer(columns["x2"], np.sin(angle)))
    logits += np.outer(offset, _spread(m))
    weight = np.exp(logits - logits.max(1, keepdims=True))
    scores: NDArray[np.float64] = weight / weight.sum(1, keepdims=True)
    return scores
