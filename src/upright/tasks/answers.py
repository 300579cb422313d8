"""A task whose answer lies in files: what every audit hands on, and how its groups and names are written."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import Arm, Config, InputError, Metric, UnitScores
from upright.data.columns import Column, read_columns
from upright.data.formats import Columns, number_of
from upright.data.tabular import cut_of
from upright.evidence.compute import evidence
from upright.evidence.units import FEWEST, Block, Units

__all__ = [
    "FEWEST",
    "MIN_AGREEMENT",
    "YOURS",
    "Answer",
    "in_python",
    "levels_of",
    "name_of",
    "plural",
    "read_groups",
    "suppress_small",
]

YOURS = "yours"
MIN_AGREEMENT = 0.6  # rank correlation of two templates; below it prior scores are of words, not of titles
MOST_GROUPS = 50  # more different numbers are a quantity


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was read from files, scored.

    Parameters
    ----------
    title, asks : str
        What was audited, and what it asks about.
    arm_title : str
        How a report writes the only arm.
    data : mapping
        Name and sizes of what was handed in.
    scores : UnitScores
        Values per unit. The first grouping is the one whose groups are compared.
    metrics : mapping of name to Metric
        Of every metric in `scores`, and of every statistic in `evidence`.
    statistics : sequence of str
        Besides those of the groups, as ``name:metric``.
    compared : sequence of str
        Metrics whose gaps between groups are judged together; the first is told where there are no groups.
    facts : mapping
        Stored as ``audit`` in ``summary.json``, after the groups.
    resolved : mapping
        Settings that the files decided, in place of those that were given.
    notes : mapping of arm to mapping
        What a report draws of each arm.
    warnings : sequence of str
    evidence : callable, optional
        ``evidence(margins) -> dict`` of an audit that compares otherwise; by default that of the unit table.
    others : sequence of (str, str, UnitScores)
        Name, title and scores of what is compared with, on the same units.
    beside : (UnitScores, sequence of str), optional
        Scores of units of another kind, and statistics of them that stand beside the others.
    steps : sequence of str
        What to do next of an audit that compares no groups by its nature; by default to hand in some.
    lines : mapping of name to sentence
        What the verdict says besides.
    pictures : mapping of name to bytes
        Kept in the folder, for blocks `Picture`: PNG or WebP, at most 300 kB each.
    tables : mapping of name to columns
        What was computed on the way and is of use elsewhere, written as ``NAME.csv`` beside the report.
    """

    title: str
    asks: str
    arm_title: str
    data: Mapping[str, Any]
    scores: UnitScores
    metrics: Mapping[str, Metric]
    statistics: Sequence[str] = ()
    compared: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    evidence: Any = None
    others: Sequence[tuple[str, str, UnitScores]] = ()
    beside: tuple[UnitScores, Sequence[str]] | None = None
    steps: Sequence[str] = ()
    lines: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def levels_of(
    scores: UnitScores, statistics: Sequence[str], metrics: Mapping[str, Metric], *, draws: int, seed: int
) -> dict[str, Any]:
    """Return the evidence of the only arm, to which an audit that compares otherwise adds its verdict."""
    units, arms = Units([Block("", YOURS, seed, scores)]), [Arm(YOURS, "baseline")]
    return evidence(units, arms=arms, statistics=statistics, metrics=metrics, draws=draws, seed=seed)


def plural(n: int, word: str) -> str:
    """Write a number with its noun."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def name_of(file: Any) -> str:
    """Return the name of a file, an address as it is, or what a data frame is called."""
    if isinstance(file, str) and file.startswith(("http://", "https://")):
        return file
    return Path(file).name if isinstance(file, str | Path) else "the data frame"


def in_python(error: InputError, config: type[Config]) -> InputError:
    """Return the error with options of the command line, ``--held-out FILE``, as keywords, ``held_out=FILE``."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(config)}  # type: ignore[arg-type]

    def keyword(found: re.Match[str]) -> str:
        name, value = found[1].replace("-", "_"), (found[2] or "").strip()
        if name not in kinds:
            return found[0].replace("--margin", "margins")
        if kinds[name] == "bool":
            return f"{name}=True{found[2] or ''}"
        return f"{name}=" + (value if re.fullmatch(r"('.*'|[A-Z]+|[-\d.]+)?", value) else repr(value))

    # a word is a value where the phrase, or the command, ends behind it
    value = r"( (?:'[^']*'|[A-Z]+\b|(?!and |nor |or |with )[^\s,;:()]+(?=$|[,;)]| --)))?"
    parts = [re.sub(rf"--([a-z][a-z-]*){value}", keyword, part) for part in error.args]
    return InputError(*(re.sub(r"(=(?:'[^']*'|\S+)) (?=\w+=)", r"\1, ", part) for part in parts))


def read_groups(table: Columns, group: str, *, missing: bool) -> pl.Series:
    """Return the group of each row, "" where it may be missing: classes, or numbers cut as `cut_of` says."""
    cut = None if group in table.header else cut_of(group)
    if cut is None:
        text = read_columns(table, {group: Column("text", missing=missing, option="--group")}, {group: group})[group]
        values = text.unique().to_list()
        if len(values) > MOST_GROUPS and not any(math.isnan(number_of(one)) for one in values if one):
            got = f"{table.name}: {group!r} has {len(values)} different values"
            todo = f"cut it into ranges: --group '{group}:25,45,65'"
            todo = "name another column, these are ids" if len(values) == len(text) else todo
            raise InputError(got, f"at most {MOST_GROUPS} groups", todo)
        return text
    wanted = {cut.column: Column("number", missing=missing, option="--group")}
    number = read_columns(table, wanted, {cut.column: cut.column}).array(cut.column)
    return pl.Series(group, np.where(np.isnan(number), "", cut.range_of(number)).tolist())


def opaque_codes(item: NDArray[np.int64]) -> list[str]:
    """Return names of items that say which are equal and nothing else: numbers by first appearance."""
    _, first, place = np.unique(item, return_index=True, return_inverse=True)
    return [f"i{code}" for code in np.argsort(np.argsort(first))[place].tolist()]


def suppress_small(labels: Sequence[str], counted: NDArray[np.bool_] | None = None) -> tuple[list[str], list[str]]:
    """Take the label from units of small groups.

    Parameters
    ----------
    labels : sequence of str, shape (U,)
    counted : ndarray of bool, shape (U,), optional
        Units with a defined value; the others do not make a group larger. All by default.

    Returns
    -------
    labels : list of str, shape (U,)
        Empty for units of a group with fewer than `FEWEST` counted units.
    suppressed : list of str
        Names of these groups.
    """
    size = Counter(labels if counted is None else itertools.compress(labels, counted))
    small = sorted(name for name in set(labels) if name and size[name] < FEWEST)
    return ["" if label in small else label for label in labels] if small else list(labels), small
