"""The table behind every number: one row per run, arm, seed, split, unit and metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        for b in blocks:
            own, first = [str(u) for u in b.scores.unit], have[self.arms[0], b.seed].unit
            if len(set(own)) < len(own) or set(own) != {str(u) for u in first}:
                raise InputError(
                    f"arm {b.arm!r} at seed {b.seed} scores other units than arm {self.arms[0]!r}, or one twice",
                    f"each {b.scores.unit_kind} once, the same ones in every arm, so that differences are paired",
                    "return NaN for a unit where a metric is not defined, instead of leaving it out",
                )
        self.unit_kind = blocks[0].scores.unit_kind
        self.units = sorted({str(u) for b in blocks for u in b.scores.unit}, key=lambda u: (len(u), u))
        place = {u: i for i, u in enumerate(self.units)}
        self.metrics = list(dict.fromkeys(m for b in blocks for m in b.scores.values))
        shape = (len(self.seeds), len(self.units))
        self._values = {(a, m): np.full(shape, np.nan) for a in self.arms for m in self.metrics}
        self.by: dict[str, NDArray[Any]] = {}
        for (arm, seed), scores in have.items():
            at = np.array([place[str(u)] for u in scores.unit], dtype=np.int64)
            row = self.seeds.index(seed)
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
        found = {str(g) for g in np.unique(self.by[grouping].astype(str))} - {""}
        return sorted(found)


def write_units(path: Path, blocks: Iterable[Block], split: str) -> None:
    """Write ``units.parquet`` (zstd, schema version in the metadata)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {
        k: [] for k in ("run", "arm", "seed", "split", "unit_kind", "unit", "metric", "value", "weight")
    }
    by: dict[str, list[str | None]] = {}
    for block in blocks:
        scores, n = block.scores, len(block.scores.unit)
        for metric, values in scores.values.items():
            before = len(columns["run"])
            fixed: Mapping[str, Any] = {
                "run": block.run, "arm": block.arm, "seed": block.seed, "split": split,
                "unit_kind": scores.unit_kind, "metric": metric, "weight": 1.0,
            }  # fmt: skip
            for key, value in fixed.items():
                columns[key].extend([value] * n)
            columns["unit"].extend(str(u) for u in scores.unit)
            columns["value"].extend(float(v) for v in values)
            for name, labels in scores.by.items():
                column = by.setdefault(f"by_{name}", [])
                column.extend([None] * (before - len(column)))  # rows of blocks without this grouping
                column.extend(str(label) for label in labels)
    for column in by.values():
        column.extend([None] * (len(columns["run"]) - len(column)))
    table = pa.table({**columns, **by})
    for name in ("run", "arm", "split", "unit_kind", "metric", *by):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].dictionary_encode())
    table = table.replace_schema_metadata({"upright.units": SCHEMA})
    pq.write_table(table, path, compression="zstd")


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
    data = {name: np.asarray(table[name].to_pylist(), dtype=object) for name in table.column_names}
    value = np.asarray(table["value"].to_numpy(), dtype=np.float64)
    groupings = [n for n in table.column_names if n.startswith("by_")]
    blocks = []
    keys = list(zip(data["run"], data["arm"], data["seed"], strict=True))
    for run, arm, seed in dict.fromkeys(keys):
        own = np.flatnonzero((data["run"] == run) & (data["arm"] == arm) & (data["seed"] == seed))
        metrics = list(dict.fromkeys(data["metric"][own]))
        first = own[data["metric"][own] == metrics[0]]
        scores = UnitScores(
            str(data["unit_kind"][own[0]]),
            [str(u) for u in data["unit"][first]],
            {m: value[own[data["metric"][own] == m]] for m in metrics},
            {g[3:]: [str(x) for x in data[g][first]] for g in groupings if data[g][first[0]] is not None},
        )
        blocks.append(Block(str(run), str(arm), int(seed), scores))
    return blocks
