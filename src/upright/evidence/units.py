"""The table behind every number: one row per run, arm, seed, split, unit and metric.

On disk it is long (Parquet, zstd): ``run, arm, seed, split, unit_kind, unit, cluster, metric, value, weight`` and one
``by_<grouping>`` column each. In memory an arm's metric is an array of shape (seeds, units).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, UnitScores

__all__ = ["FEWEST", "SCHEMA", "Block", "Units", "read_units", "write_units"]

FEWEST = 5  # people; a number about fewer says too much about each
SCHEMA = "2"
_READABLE = ("1", SCHEMA)  # without clusters: each unit by itself
Array = NDArray[np.float64]
Codes = NDArray[np.int64]


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
        When an arm lacks a seed or scores other units, so that arms would not be paired, or a unit changes its cluster.
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
        names = {key: [str(u) for u in scores.unit] for key, scores in have.items()}
        leading = {seed: names[self.arms[0], seed] for seed in self.seeds}
        self.unit_kind = blocks[0].scores.unit_kind
        self.units = sorted(sorted(set(itertools.chain.from_iterable(leading.values()))), key=len)  # 2 before 10
        self.metrics = list(dict.fromkeys(m for b in blocks for m in b.scores.values))
        usual = {seed: self._places(own) for seed, own in leading.items()}
        shape = (len(self.seeds), len(self.units))
        self._values = {(a, m): np.full(shape, np.nan) for a in self.arms for m in self.metrics}
        self.by: dict[str, NDArray[Any]] = {}
        self._codes: dict[str, tuple[list[str], Codes]] = {}
        self._shared: dict[tuple[str, str], Units] = {}
        cluster = np.full(len(self.units), None, dtype=object)
        for (arm, seed), scores in have.items():
            own, first, row = names[arm, seed], leading[seed], self.seeds.index(seed)
            if len(set(own)) < len(own) or (own != first and set(own) != set(first)):
                raise InputError(
                    f"arm {arm!r} at seed {seed} scores other units than arm {self.arms[0]!r}, or one twice",
                    f"each {scores.unit_kind} once, the same ones in every arm, so that differences are paired",
                    "return NaN for a unit where a metric is not defined, instead of leaving it out",
                )
            at = usual[seed] if own == first else self._places(own)
            for metric, values in scores.values.items():
                self._values[arm, metric][row, at] = np.asarray(values, dtype=np.float64)
            for name, labels in scores.by.items():
                group = self.by.setdefault(name, np.full(shape, "", dtype=object))
                group[row, at] = np.asarray(labels, dtype=object)
            if len(scores.cluster):
                named = np.array([str(x) or None for x in scores.cluster], dtype=object)  # '' is a cluster of its own
                moved = np.flatnonzero((cluster[at] != None) & (cluster[at] != named))  # noqa: E711
                if len(moved):
                    raise InputError(
                        f"{scores.unit_kind} {own[moved[0]]!r} in the clusters {cluster[at][moved[0]]!r} and "
                        f"{named[moved[0]]!r}",
                        "one cluster a unit, the same at every seed",
                        "name it alike",
                    )
                cluster[at] = named
        #: what each unit is drawn with: its cluster, or itself; shape (units,)
        self.cluster: Codes = np.arange(len(self.units))
        if any(x is not None for x in cluster):
            alone = [f"\0{u}" if x is None else x for u, x in zip(self.units, cluster, strict=True)]
            self.cluster = np.unique(np.array(alone, dtype=str), return_inverse=True)[1].astype(np.int64)
        self.n_clusters = int(self.cluster.max(initial=-1)) + 1

    def _places(self, own: list[str]) -> Codes:
        if own == self.units:
            return np.arange(len(own))
        place = {unit: i for i, unit in enumerate(self.units)}
        return np.array([place[u] for u in own], dtype=np.int64)

    @property
    def clustered(self) -> bool:
        """Whether some units share a cluster."""
        return self.n_clusters < len(self.units)

    def values(self, arm: str, metric: str) -> Array:
        """Return values of shape (seeds, units), NaN where undefined."""
        return self._values[arm, metric]

    def shared(self, first: str, second: str) -> Units:
        """Return the table in which two arms are defined for the same units, at the seeds where both have values."""
        if (first, second) not in self._shared:
            found, values = copy.copy(self), dict(self._values)
            for m in self.metrics:
                one, two = (~np.isnan(self._values[arm, m]) for arm in (first, second))
                apart = (one != two) & (one.any(1) & two.any(1))[:, None]
                if apart.any():
                    values |= {(arm, m): np.where(apart, np.nan, values[arm, m]) for arm in (first, second)}
                    found._values = values
            self._shared[first, second] = self if found._values is self._values else found
        return self._shared[first, second]

    def mix(self, arm: str, first: str, second: str, share: Array) -> None:
        """Add an arm whose values are those of `first` with probability ``share`` (seeds,), else those of `second`."""
        w = share[:, None]
        for m in self.metrics:
            one, two = self._values[first, m], self._values[second, m]
            self._values[arm, m] = w * one + (1.0 - w) * two
        self.arms = [*self.arms, *([] if arm in self.arms else [arm])]

    def groups(self, grouping: str) -> list[str]:
        """Return group names in order."""
        return self.codes(grouping)[0]

    def codes(self, grouping: str) -> tuple[list[str], Codes]:
        """Return group names and each unit's place among them, shape (seeds, units); -1 where it has no label."""
        if grouping not in self._codes:
            labels = [str(g) for g in self.by[grouping].ravel()]
            found = sorted(set(labels) - {""})
            place = {"": -1} | {g: i for i, g in enumerate(found)}
            flat = np.fromiter(map(place.__getitem__, labels), dtype=np.int64, count=len(labels))
            self._codes[grouping] = found, flat.reshape(self.by[grouping].shape)  # (seeds, units)
        return self._codes[grouping]


def write_units(path: Path, blocks: Iterable[Block], split: str) -> None:
    """Write ``units.parquet``.

    Raises
    ------
    InputError
        When a metric, grouping or cluster has another length than the units.
    """
    import polars as pl
    import pyarrow.parquet as pq

    blocks = list(blocks)
    groupings = list(dict.fromkeys(f"by_{g}" for b in blocks for g in b.scores.by))
    words = {c: dict.fromkeys([""]) for c in ("unit", "cluster", "metric", *groupings)}
    wide = []
    for b in blocks:
        labels = {"unit": b.scores.unit, "cluster": b.scores.cluster, **{f"by_{g}": v for g, v in b.scores.by.items()}}
        labels = {c: [str(x) for x in v] for c, v in labels.items() if len(v) or c == "unit"}
        odd = [c for c, v in (*labels.items(), *b.scores.values.items()) if len(v) != len(b.scores.unit)]
        if odd:
            raise InputError(
                f"{odd} of arm {b.arm!r} at seed {b.seed} has another length than its {len(b.scores.unit)} units",
                "one value and one label a unit",
                "return NaN for a unit where a metric is not defined, instead of leaving it out",
            )
        for c, v in (*labels.items(), ("metric", [*b.scores.values])):
            words[c].update(dict.fromkeys(v))
        wide.append((b, labels))
    kinds = {c: pl.Enum(list(v)) for c, v in words.items()}
    same = [{"run": b.run, "arm": b.arm, "split": split, "unit_kind": b.scores.unit_kind} for b in blocks]
    constant = {c: pl.Enum(list(dict.fromkeys(fixed[c] for fixed in same))) for c in same[0]}
    parts = []
    for (b, labels), fixed in zip(wide, same, strict=True):
        frame = pl.DataFrame({c: pl.Series(v, dtype=kinds[c]) for c, v in labels.items()})
        frame = frame.with_columns(**{m: np.asarray(v, dtype=np.float64) for m, v in b.scores.values.items()})
        long = frame.unpivot(index=list(labels), variable_name="metric", value_name="value")
        parts.append(
            long.with_columns(
                pl.col("metric").cast(kinds["metric"]),
                pl.lit(b.seed, dtype=pl.Int64).alias("seed"),
                weight=pl.lit(1.0),
                **{c: pl.lit(v).cast(constant[c]) for c, v in fixed.items()},
            )
        )
    order = ["run", "arm", "seed", "split", "unit_kind", "unit", "cluster", "metric", "value", "weight", *groupings]
    table = pl.concat(parts, how="diagonal")
    table = table.select(c for c in order if c in table.columns).to_arrow()
    # a dictionary of 16 MB: beyond pyarrow's 1 MB identifiers would be written out again for every metric
    table = table.replace_schema_metadata({"upright.units": SCHEMA})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 24)


def read_units(path: Path) -> list[Block]:
    """Read blocks back.

    Raises
    ------
    InputError
        For a file that is missing or not of this schema.
    """
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        version = (pq.read_schema(path).metadata or {}).get(b"upright.units", b"?").decode()
        if version not in _READABLE:
            raise InputError(f"units schema {version}", f"schema {SCHEMA}", "read it with the version that wrote it")
        frame = pl.read_parquet(path)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        todo = "finish the run first"
        raise InputError(f"{path.name}: {error}", "the units.parquet of a finished run", todo) from None
    texts = [c for c in frame.columns if frame[c].dtype not in (pl.Float64, pl.Int64)]
    frame = frame.with_columns(pl.col(texts).cast(pl.String))
    groupings = [c for c in frame.columns if c.startswith("by_")]
    blocks = []
    for (run, arm, seed), rows in frame.partition_by("run", "arm", "seed", maintain_order=True, as_dict=True).items():
        own = rows.partition_by("metric", maintain_order=True, as_dict=True)
        first = next(iter(own.values()))
        values = {str(metric): part["value"].to_numpy() for (metric,), part in own.items()}
        by = {g[3:]: first[g].to_list() for g in groupings if first[g][0] is not None}
        cluster = first["cluster"].to_list() if "cluster" in frame.columns and first["cluster"][0] is not None else ()
        scores = UnitScores(first["unit_kind"][0], first["unit"].to_list(), values, by, cluster=cluster)
        blocks.append(Block(str(run), str(arm), int(seed), scores))
    return blocks
