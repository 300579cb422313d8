"""The table behind every number: one row per run, arm, seed, split, unit and metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, UnitScores

__all__ = ["SCHEMA", "Block", "Units", "read_units", "write_units"]

SCHEMA = "1"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Scores of one arm at one seed."""

    run: str
    arm: str
    seed: int
    scores: UnitScores


class Units:
    """Values of every arm as arrays of shape (seeds, units), for statistics.

    Parameters
    ----------
    blocks : iterable of Block
        One for each arm and seed; every arm must have every seed, and units are matched by identifier.

    Raises
    ------
    InputError
        When an arm lacks a seed, so that arms would not be paired.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        blocks = list(blocks)
        if not blocks:
            raise InputError("no scores at all", "at least one arm at one seed", "run at least one arm")
        self.arms = list(dict.fromkeys(b.arm for b in blocks))
        self.seeds = sorted({b.seed for b in blocks})
        have = {(b.arm, b.seed): b.scores for b in blocks}
        missing = [(a, s) for a in self.arms for s in self.seeds if (a, s) not in have]
        if missing or len(have) != len(blocks):
            raise InputError(
                f"arms without a seed: {missing}" if missing else "an arm with the same seed twice",
                "every arm once at every seed, so that differences are paired",
                "run the missing arms with the same --seeds, or leave them out with --arms",
            )
        leading = {seed: _names(have[self.arms[0], seed]) for seed in self.seeds}
        names: dict[tuple[str, int], list[str]] = {}
        for b in blocks:
            own, first = _names(b.scores), leading[b.seed]
            if len(set(own)) < len(own) or (own != first and set(own) != set(first)):
                raise InputError(
                    f"arm {b.arm!r} at seed {b.seed} scores other units than arm {self.arms[0]!r}, or one twice",
                    f"each {b.scores.unit_kind} once, the same ones in every arm, so that differences are paired",
                    "return NaN for a unit where a metric is not defined, instead of leaving it out",
                )
            names[b.arm, b.seed] = first if own == first else own  # one list a seed is kept where all are alike
        self.unit_kind = blocks[0].scores.unit_kind
        self.units = sorted(set().union(*leading.values()), key=lambda u: (len(u), u))
        place = {u: i for i, u in enumerate(self.units)}
        self.metrics = list(dict.fromkeys(m for b in blocks for m in b.scores.values))
        shape = (len(self.seeds), len(self.units))
        self._values = {(a, m): np.full(shape, np.nan) for a in self.arms for m in self.metrics}
        self.by: dict[str, NDArray[Any]] = {}
        self._codes: dict[str, tuple[list[str], NDArray[np.int64]]] = {}
        usual = {seed: np.array([place[u] for u in own], dtype=np.int64) for seed, own in leading.items()}
        for (arm, seed), scores in have.items():
            own, row = names[arm, seed], self.seeds.index(seed)
            at = usual[seed] if own is leading[seed] else np.array([place[u] for u in own], dtype=np.int64)
            for metric, values in scores.values.items():
                self._values[arm, metric][row, at] = np.asarray(values, dtype=np.float64)
            for name, labels in scores.by.items():
                group = self.by.setdefault(name, np.full(shape, "", dtype=object))
                group[row, at] = np.asarray(labels, dtype=object)

    def values(self, arm: str, metric: str) -> Array:
        """Return values of shape (seeds, units), NaN where undefined."""
        return self._values[arm, metric]

    def groups(self, grouping: str) -> list[str]:
        """Return group names: those of the disadvantaged last, else by name."""
        return self.codes(grouping)[0]

    def codes(self, grouping: str) -> tuple[list[str], NDArray[np.int64]]:
        """Return group names and each unit's place among them, shape (seeds, units); -1 where it has no label."""
        if grouping not in self._codes:
            labels = [str(g) for g in self.by[grouping].ravel()]
            found = sorted(set(labels) - {""})
            place = {"": -1} | {g: i for i, g in enumerate(found)}
            flat = np.fromiter((place[g] for g in labels), dtype=np.int64, count=len(labels))
            self._codes[grouping] = found, flat.reshape(self.by[grouping].shape)  # (seeds, units)
        return self._codes[grouping]


def _names(scores: UnitScores) -> list[str]:
    return [str(u) for u in scores.unit]


def write_units(path: Path, blocks: Iterable[Block], split: str) -> None:
    """Write ``units.parquet`` (zstd, schema version in the metadata)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    blocks = list(blocks)
    metrics = [list(b.scores.values) for b in blocks]
    units = [_names(b.scores) for b in blocks]
    _check_lengths(blocks)
    count = [len(m) * len(u) for m, u in zip(metrics, units, strict=True)]  # rows of each block
    groupings = list(dict.fromkeys(g for b in blocks for g in b.scores.by))

    def constant(values: list[str]) -> pa.Array:
        """A dictionary column with one value a block."""
        return _dictionary([[v] for v in values], count)

    value = [np.asarray(b.scores.values[m], dtype=np.float64) for b, own in zip(blocks, metrics, strict=True)
             for m in own]  # fmt: skip
    each = [[m] for own in metrics for m in own]
    rows = [len(u) for own, u in zip(metrics, units, strict=True) for _ in own]
    columns = {
        "run": constant([b.run for b in blocks]),
        "arm": constant([b.arm for b in blocks]),
        "seed": pa.array(np.repeat(np.array([b.seed for b in blocks], dtype=np.int64), count)),
        "split": constant([split] * len(blocks)),
        "unit_kind": constant([b.scores.unit_kind for b in blocks]),
        "unit": _dictionary(units, count).cast(pa.string()),
        "metric": _dictionary(each, rows),
        "value": pa.array(np.concatenate(value) if value else np.zeros(0)),
        "weight": pa.array(np.ones(sum(count))),
        **{f"by_{g}": _dictionary([_labels(b, g) for b in blocks], count) for g in groupings},
    }
    table = pa.table(columns).replace_schema_metadata({"upright.units": SCHEMA})
    # a dictionary of 16 MB: beyond pyarrow's 1 MB identifiers would be written out again for every metric
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 24)


def _labels(block: Block, grouping: str) -> list[str]:
    return [str(x) for x in block.scores.by.get(grouping, ())]


def _check_lengths(blocks: list[Block]) -> None:
    for b in blocks:
        n = len(b.scores.unit)
        odd = [m for part in (b.scores.values, b.scores.by) for m, own in part.items() if len(own) != n]
        if odd:
            raise InputError(
                f"{odd} of arm {b.arm!r} at seed {b.seed} has another length than its {n} units",
                "one value and one label a unit",
                "return NaN for a unit where a metric is not defined, instead of leaving it out",
            )


def _dictionary(parts: list[list[str]], count: list[int]) -> Any:
    """Return a dictionary column: each part repeated until it fills its number of rows; null for an empty part."""
    import pyarrow as pa

    place: dict[str, int] = {}
    codes = [np.zeros(0, dtype=np.int32)]
    for part, n in zip(parts, count, strict=True):
        own = np.array([place.setdefault(x, len(place)) for x in part], dtype=np.int32)
        codes.append(np.tile(own, n // len(own)) if len(own) else np.full(n, -1, dtype=np.int32))
    flat = np.concatenate(codes)
    return pa.DictionaryArray.from_arrays(pa.array(flat, mask=flat < 0), pa.array(list(place), type=pa.string()))


def read_units(path: Path) -> list[Block]:
    """Read blocks back.

    Raises
    ------
    InputError
        For a file that is missing or not of this schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{path.name}: {error}", "the units.parquet of a finished run", "finish the run first"
        ) from None
    version = (table.schema.metadata or {}).get(b"upright.units", b"?").decode()
    if version != SCHEMA:
        raise InputError(f"units schema {version}", f"schema {SCHEMA}", "read it with the version that wrote it")
    table = table.unify_dictionaries().combine_chunks()
    groupings = [n for n in table.column_names if n.startswith("by_")]
    data = {name: _factors(table[name]) for name in ("run", "arm", "seed", "unit_kind", "unit", "metric", *groupings)}
    value = np.asarray(table["value"].to_numpy(), dtype=np.float64)
    key = np.zeros(len(value), dtype=np.int64)
    for name in ("run", "arm", "seed"):
        key = key * len(data[name][0]) + data[name][1]
    blocks = []
    for own in _split(key):
        parts = _split(data["metric"][1][own])
        first = own[parts[0]]

        def at(name: str, rows: NDArray[np.int64]) -> list[Any]:
            return list(data[name][0][data[name][1][rows]])

        scores = UnitScores(
            str(at("unit_kind", own[:1])[0]),
            [str(u) for u in at("unit", first)],
            {str(at("metric", own[part[:1]])[0]): value[own[part]] for part in parts},
            {g[3:]: [str(x) for x in at(g, first)] for g in groupings if at(g, first[:1])[0] is not None},
        )
        run, arm, seed = (at(name, own[:1])[0] for name in ("run", "arm", "seed"))
        blocks.append(Block(str(run), str(arm), int(seed), scores))
    return blocks


def _factors(column: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct values of a column, None as the last, and the place of each row among them."""
    import pyarrow as pa

    found = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = [c.indices.fill_null(len(c.dictionary)).to_numpy(zero_copy_only=False) for c in found.chunks]
    names = found.chunks[0].dictionary.to_pylist() if found.chunks else []  # unified: the same in every chunk
    return np.array([*names, None], dtype=object), np.concatenate([np.zeros(0, np.int64), *codes]).astype(np.int64)


def _split(codes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the places of each code, codes in the order of their first appearance, places in their own order."""
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(codes) else []
    return sorted(parts, key=lambda part: int(part[0]))
