"""What MRD's panel reads of the unit table: which records were drawn, and how hard they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upright.report.read import View

__all__ = ["THIRDS", "Forgotten", "forgotten", "pooled_cuts"]

Array = NDArray[np.float64]
THIRDS = ("hard", "middle", "easy")
METRICS = ("mrd", "effort", "effort_sum", "forget_gap")
UNITS = "units.parquet"


@dataclasses.dataclass(frozen=True, eq=False)
class Forgotten:
    """Values of the forgotten records that were scored, of one arm at one seed.

    Parameters
    ----------
    arm : str
    seed : int
    values : mapping of metric to ndarray of shape (U,)
        ``mrd``, ``effort``, ``effort_sum`` and ``forget_gap``; all NaN where the table lacks one.
    third : ndarray of str, shape (U,)
        ``hard``, ``middle`` or ``easy`` within the seed, empty where not given.
    """

    arm: str
    seed: int
    values: Mapping[str, Array]
    third: NDArray[np.str_]


def forgotten(view: View) -> list[Forgotten]:
    """Return the forgotten records of every arm and seed that the folder, or the runs beside it, have a table of."""
    # a run and a published study hold their table; a comparison has those of its runs
    places = [view.folder] if (view.folder / UNITS).is_file() else []
    for run in view.runs if not places else ():
        beside = (parent / run.name for parent in (view.folder.parent, view.folder))
        places += [place for place in beside if (place / UNITS).is_file()][:1]
    return [one for place in places for one in _read(place / UNITS)]


def _read(file: Path) -> list[Forgotten]:
    from upright.evidence.units import read_units

    found = []
    for block in read_units(file):
        n, by = len(block.scores.unit), block.scores.by
        keep = np.asarray(by["set"], dtype=str) == "forget" if "set" in by else np.ones(n, dtype=bool)
        values = {
            m: np.asarray(block.scores.values.get(m, np.full(n, np.nan)), dtype=np.float64)[keep] for m in METRICS
        }
        third = np.asarray(by.get("difficulty", [""] * n), dtype=str)[keep]
        found.append(Forgotten(block.arm, block.seed, values, third))
    return found


def pooled_cuts(scores: Array) -> Array:
    """Return the values that part scores (n,) into thirds, shape (2,); NaN is left out."""
    return np.asarray(np.quantile(scores[~np.isnan(scores)], [1 / 3, 2 / 3]))
