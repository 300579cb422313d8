"""What MRD's panel computes from the unit table: which records were drawn, and gaps as if all seeds drew alike.

With pooled cut points ``c_1 < c_2`` of the scores of all seeds, ``h`` one of the three strata between them, ``W_h`` its
share of all records, and ``m_ah(s)`` the mean value of arm a in stratum h at seed s, direct standardisation gives

    m_a(s) = sum_h W_h m_ah(s)

so that no seed looks good because the records it drew were easy.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from upright.report.read import View

__all__ = [
    "STRATA", "THIRDS", "Forgotten", "Standard", "forgotten", "pooled_cuts", "standardise", "standardised_mean",
    "stratum_of", "swapped",
]  # fmt: skip

Array = NDArray[np.float64]
STRATA = 3
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
    beside = [next((p for p in (view.folder.parent / run.name, view.folder / run.name) if (p / UNITS).is_file()), None)
              for run in view.runs]  # fmt: skip
    places = [view.folder] if (view.folder / UNITS).is_file() else [place for place in beside if place is not None]
    return [one for place in places for one in _read(place / UNITS)]


def _read(file: Path) -> list[Forgotten]:
    from upright.shell.units import read_units

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


# -- the same records for every seed -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Standard:
    """Mean values of arms as drawn, and as if every seed had drawn the pooled records.

    Parameters
    ----------
    seeds : tuple of int, length S
    cuts : ndarray, shape (STRATA - 1,)
        Of the scores, pooled over seeds.
    share : ndarray, shape (STRATA,)
        Of all records, by stratum; sums to 1.
    drawn : ndarray, shape (S, STRATA)
        Shares of the records of each seed.
    raw, standard : mapping of arm to ndarray of shape (S,)
        NaN in `standard` where a seed has no record in a stratum that others have.
    """

    seeds: tuple[int, ...]
    cuts: Array
    share: Array
    drawn: Array
    raw: Mapping[str, Array]
    standard: Mapping[str, Array]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which seeds are defined in every arm, shape (S,)."""
        both = [~np.isnan(own) for side in (self.raw, self.standard) for own in side.values()]
        return np.asarray(np.all(both, axis=0))


def pooled_cuts(scores: Sequence[Array], strata: int = STRATA) -> Array:
    """Return the values that part the pooled scores into equal strata, shape (strata - 1,); NaN is left out."""
    whole = np.concatenate([np.asarray(s, dtype=np.float64) for s in scores])
    return np.asarray(np.quantile(whole[~np.isnan(whole)], np.arange(1, strata) / strata))


def stratum_of(scores: Array, cuts: Array) -> NDArray[np.int64]:
    """Return the stratum of each score, 0 the lowest; a score on a cut is below it."""
    return np.searchsorted(cuts, scores, side="left").astype(np.int64)


def standardised_mean(values: Array, stratum: NDArray[np.int64], share: Array) -> float:
    """Return ``sum_h share_h mean(values in h)``; NaN where a stratum with a share has no value.

    Parameters
    ----------
    values : ndarray, shape (U,)
    stratum : ndarray of int, shape (U,)
    share : ndarray, shape (H,)
        Not negative, sums to 1.
    """
    ok = ~np.isnan(values)
    n = np.bincount(stratum[ok], minlength=len(share))
    total = np.bincount(stratum[ok], values[ok], minlength=len(share))
    need = share > 0
    if (n[need] == 0).any():
        return float("nan")
    return float((share[need] * total[need] / n[need]).sum())


def standardise(records: Sequence[Forgotten], metric: str = "forget_gap", by: str = "mrd") -> Standard | None:
    """Return means of a metric as drawn and standardised by a score; None where no record has both.

    Arms that are not at every seed are left out.
    """
    seeds = sorted({r.seed for r in records})
    at = {(r.arm, r.seed): r for r in records}
    arms = [a for a in dict.fromkeys(r.arm for r in records) if all((a, s) in at for s in seeds)]
    arms = [a for a in arms if any(np.isfinite(at[a, s].values[metric]).any() for s in seeds)]
    if not arms:
        return None
    scores = [at[arms[0], s].values[by] for s in seeds]  # made before any arm trains, so alike in all of them
    if not any(np.isfinite(s).any() for s in scores):
        return None
    cuts = pooled_cuts(scores)
    counts = np.stack([np.bincount(stratum_of(s[~np.isnan(s)], cuts), minlength=STRATA) for s in scores])
    share = counts.sum(0) / counts.sum()
    raw, standard = {}, {}
    for arm in arms:
        pairs = [(at[arm, s].values[metric], at[arm, s].values[by]) for s in seeds]
        raw[arm] = np.array([_mean(v[~np.isnan(x)]) for v, x in pairs])
        standard[arm] = np.array(
            [standardised_mean(v[~np.isnan(x)], stratum_of(x[~np.isnan(x)], cuts), share) for v, x in pairs]
        )
    drawn = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return Standard(tuple(seeds), cuts, share, drawn, raw, standard)


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def swapped(one: Mapping[str, float], two: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the pairs of arms whose order differs between two sets of values."""
    return [(a, b) for a, b in itertools.combinations(one, 2) if (one[a] - one[b]) * (two[a] - two[b]) < 0]
