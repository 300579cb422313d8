"""The unit table of a folder, as blocks read it: values of one arm, and means by two groupings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from upright.evidence.units import FEWEST

if TYPE_CHECKING:
    import polars as pl

__all__ = ["UnitTable"]

Means = dict[tuple[str, str], tuple[float, float] | None]


@dataclasses.dataclass(frozen=True, eq=False)
class UnitTable:
    """``units.parquet`` of a run, of a study or of the runs of a comparison; ``cells.parquet`` where units are private.

    Parameters
    ----------
    places : sequence of Path
        The folder, and the folders of its runs; the first that has a table counts, else all runs that have one.
    """

    places: Sequence[Path]

    def _files(self, name: str) -> list[Path]:
        own = [place / name for place in self.places if (place / name).is_file()]
        return own[:1] if own and own[0].parent == self.places[0] else own

    @cached_property
    def _units(self) -> pl.LazyFrame | None:
        import polars as pl

        frames = [pl.scan_parquet(file) for file in self._files("units.parquet")]
        # a seed's file has its own enumerations, so texts are joined and compared as texts
        frames = [
            f.with_columns(pl.col(c).cast(pl.String) for c, kind in f.collect_schema().items() if kind == pl.Enum)
            for f in frames
        ]
        return pl.concat(frames, how="diagonal_relaxed") if frames else None

    def has(self, column: str) -> bool:
        """Whether the table has a column."""
        return self._units is not None and column in self._units.collect_schema().names()

    def columns(self, arm: str, metric: str) -> list[tuple[int, NDArray[np.float64]]]:
        """Return seed and values (U,) of a metric of an arm, in the order of the units."""
        import polars as pl

        if self._units is None:
            return []
        text = pl.col("arm").cast(pl.String) == arm, pl.col("metric").cast(pl.String) == metric
        rows = self._units.filter(*text).select("seed", "value").collect()
        parts = rows.partition_by("seed", maintain_order=True, as_dict=True)
        return [(int(seed), part["value"].to_numpy().astype(np.float64)) for (seed,), part in parts.items()]

    def means(self, arms: Sequence[str], pattern: str, by: tuple[str, str]) -> dict[tuple[str, str], Means]:
        """Return mean and number of units by two groupings at the first seed, of each (arm, metric).

        Parameters
        ----------
        arms : sequence of str
        pattern : str
            Of metrics: a name, or ``rate/*``.
        by : (str, str)
            Groupings.
        """
        import polars as pl

        files = self._files("cells.parquet")
        if self._units is None and not files:
            return {}
        if self._units is None:
            names, table = list(by), pl.scan_parquet(files[0])
        else:
            names, table = [f"by_{name}" for name in by], self._units
        if not set(names) <= set(table.collect_schema().names()):
            return {}
        metric = pl.col("metric").cast(pl.String)
        prefix = pattern.removesuffix("*")
        table = table.filter(
            metric.str.starts_with(prefix) if pattern.endswith("*") else metric == pattern,
            pl.col("arm").cast(pl.String).is_in(list(arms)),
            pl.col("seed") == pl.col("seed").min(),
        )
        if self._units is not None:
            value = pl.col("value")
            table = table.filter(value.is_not_nan() & value.is_not_null())
            table = table.group_by("arm", "metric", *names, maintain_order=True).agg(
                value.mean().alias("mean"), pl.len().alias("n")
            )
        found: dict[tuple[str, str], Means] = {}
        for row in table.collect().iter_rows(named=True):
            where, n = (str(row[names[0]]), str(row[names[1]])), row["n"]
            if n != 0 and where[0] and where[1]:
                known = (float(row["mean"]), float(n)) if n is not None and n >= FEWEST else None
                found.setdefault((str(row["arm"]), str(row["metric"])), {})[where] = known
        return found

    def worst(self, arm: str, metric: str, *, lowest: bool, most: int) -> list[tuple[str, float]]:
        """Return units with the lowest or highest mean over seeds of a metric, and that mean."""
        import polars as pl

        if self._units is None:
            return []
        value: Any = pl.col("value")
        text = pl.col("arm").cast(pl.String) == arm, pl.col("metric").cast(pl.String) == metric
        rows = self._units.filter(*text, value.is_not_nan()).group_by(pl.col("unit").cast(pl.String)).agg(value.mean())
        if rows.select(pl.col("value").n_unique()).collect().item() <= 2:
            return []  # right or wrong, decided or not: nobody is the worst
        kept = rows.sort("value", "unit", descending=[not lowest, False]).head(most).collect()
        return [(str(unit), float(mean)) for unit, mean in kept.iter_rows()]
