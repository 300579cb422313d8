"""The unit table of a folder, as blocks read it: values of one arm, and means by two groupings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upright.evidence.units import FEWEST

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Means", "UnitTable"]

Means = dict[tuple[str, str], tuple[float, float] | None]  # (row, column) -> mean and size; None where they are few


@dataclasses.dataclass(frozen=True)
class UnitTable:
    """``units.parquet`` of a run, of a study or of the runs of a comparison; ``cells.parquet`` where units are private.

    Parameters
    ----------
    places : sequence of Path
        The folder, and the folders of its runs; the first that has a table counts, else all runs that have one.
    """

    places: Sequence[Path]

    def _scan(self, name: str = "units.parquet") -> pl.LazyFrame | None:
        import polars as pl

        files = [place / name for place in self.places if (place / name).is_file()]
        if files and files[0].parent == self.places[0]:
            files = files[:1]
        # a seed's file has its own enumerations, so texts are joined and compared as texts
        text = pl.col(pl.Enum, pl.Categorical).cast(pl.String)
        frames = [pl.scan_parquet(file).with_columns(text) for file in files]
        return pl.concat(frames, how="diagonal_relaxed") if frames else None

    def has(self, column: str) -> bool:
        """Whether the table has a column."""
        table = self._scan()
        return table is not None and column in table.collect_schema().names()

    def values(self, arm: str, *metrics: str) -> pl.DataFrame:
        """Return seed, unit and a column a metric, of those units of an arm where all of them are finite."""
        import polars as pl

        table, wide = self._scan(), pl.DataFrame()
        if table is not None:
            own = table.filter(pl.col("arm") == arm, pl.col("metric").is_in(metrics))
            rows = own.select("seed", "unit", "metric", "value").collect()
            wide = rows.pivot("metric", index=["seed", "unit"], values="value", aggregate_function="first")
        if not set(metrics) <= set(wide.columns):
            return pl.DataFrame(schema=["seed", "unit", *metrics])
        return wide.filter(pl.all_horizontal(pl.col(metrics).is_finite()))

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

        table, names = self._scan(), [f"by_{name}" for name in by]
        if counted := table is None:
            table, names = self._scan("cells.parquet"), list(by)
        if table is None or not set(names) <= set(table.collect_schema().names()):
            return {}
        metric = pl.col("metric")
        named = metric.str.starts_with(pattern[:-1]) if pattern.endswith("*") else metric == pattern
        table = table.filter(named, pl.col("arm").is_in(list(arms)), pl.col("seed") == pl.col("seed").min())
        if not counted:
            known = table.filter(pl.col("value").is_not_nan())
            table = known.group_by("arm", "metric", *names, maintain_order=True).agg(
                pl.col("value").mean().alias("mean"), pl.len().alias("n")
            )
        found: dict[tuple[str, str], Means] = {}
        for arm, title, row, column, mean, n in (
            table.select("arm", "metric", *names, "mean", "n").collect().iter_rows()
        ):
            if n != 0 and row not in (None, "") and column not in (None, ""):
                enough = n is not None and n >= FEWEST
                found.setdefault((arm, title), {})[str(row), str(column)] = (mean, float(n)) if enough else None
        return found

    def worst(self, arm: str, metric: str, *, lowest: bool, most: int) -> list[tuple[str, float]]:
        """Return units with the lowest or highest mean over seeds of a metric, and that mean."""
        import polars as pl

        values = self.values(arm, metric)
        means = values.group_by(pl.col("unit").cast(pl.String), maintain_order=True).agg(pl.col(metric).mean())
        if means[metric].n_unique() <= 2:
            return []  # right or wrong, decided or not: nobody is the worst
        return means.sort(metric, "unit", descending=[not lowest, False]).head(most).rows()
