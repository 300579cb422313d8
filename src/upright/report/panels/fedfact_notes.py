"""What FedFACT's arms note, read from a run, a comparison or a published study."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from upright.contract import InputError
from upright.report.parts import DASH, Cell, cell
from upright.report.read import ArmView, View
from upright.report.text import interval

__all__ = [
    "classes_of",
    "client_title",
    "mean",
    "noted",
    "one_seed",
    "over",
    "records",
    "setting",
    "tolerance_of",
    "value",
]


def noted(view: View, arm: str, name: str) -> list[Any]:
    """Return one note of an arm, by its name, at every seed that has it."""
    rows = [row for row in view.summary.get("arms", []) if isinstance(row, Mapping) and row.get("name") == arm]
    sources: list[Any] = [run.notes[arm] for run in view.runs if arm in run.notes]
    for row in rows:
        sources = list(row.get("notes_per_seed") or ()) or sources or [row.get("notes")]
    return [source[name] for source in sources if isinstance(source, Mapping) and source.get(name) is not None]


def records(note: Any, what: str, *keys: str) -> list[Mapping[str, Any]]:
    """Return a note's list of records.

    Raises
    ------
    InputError
        When it is no list of objects, or one lacks a key.
    """
    if not isinstance(note, list) or not all(isinstance(r, Mapping) and set(keys) <= set(r) for r in note):
        raise InputError(
            f"note {what}", f"a list of objects with {', '.join(keys) or 'names'}", "run again, or repair the file"
        )
    return list(note)


def value(row: Any, key: str) -> float:
    """Return a number of a record; NaN where there is none."""
    found = row.get(key) if isinstance(row, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan


def mean(values: Sequence[float]) -> float:
    """Return the mean of what is known; NaN where nothing is."""
    known = [v for v in values if math.isfinite(v)]
    return statistics.fmean(known) if known else math.nan


def over(values: Sequence[float], *, digits: int = 3) -> Cell:
    """Return the mean of the seeds with their range below it."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return DASH
    ends = interval(min(known), max(known)) if min(known) < max(known) else ""
    return cell(statistics.fmean(known), ends, digits=digits)


def setting(view: View, arm: ArmView, name: str) -> Any:
    """Return a setting of an arm: its own, else the configured one."""
    config: Any = next((run.config for run in view.runs if run.config), {})
    resolved = config.get("resolved") or {}
    own = (resolved.get("arms") or {}).get(arm.name) or {}
    return arm.settings.get(name, own.get(name, (resolved.get("method") or {}).get(name)))


def tolerance_of(view: View, arm: ArmView, local: bool) -> float:
    """Return a tolerance; NaN where the constraint is removed or not stored."""
    found = setting(view, arm, "local_tol") if local else None
    found = setting(view, arm, "global_tol") if found is None else found
    return float(found) if isinstance(found, int | float) and found < 1 else math.nan


def classes_of(view: View) -> list[str]:
    """Return the classes that the data name, in their order."""
    found = view.data.get("classes")
    return list(map(str, found)) if isinstance(found, list) else []


def one_seed(view: View) -> str:
    """Say which seed is drawn where clients differ from seed to seed."""
    return (
        f"Seed {view.seeds[0]} of {len(view.seeds)}: each seed draws its own clients. " if len(view.seeds) > 1 else ""
    )


def client_title(name: str, everybody: str = "All rows") -> str:
    """Return how to write a client; the empty name is everybody."""
    return f"Client {name}" if name else everybody
