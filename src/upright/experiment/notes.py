"""What arms note: small numbers of people are taken out at once, seeds are merged when they are compared."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from upright.evidence.units import FEWEST

__all__ = ["MOST_POINTS", "merge_curves", "merge_notes", "suppress_few", "unfinished"]

MOST_POINTS = 200  # of a curve
_COUNTS = "counts"  # of a histogram
_SIZE = "n"  # of the people that a record is about
_CLIENT = "client"  # told apart at each seed alone


def suppress_few(value: Any) -> Any:
    """Return a note without what rests on one to four people.

    A record (an object) whose ``n`` is 1 to 4 keeps what it is called by and loses its numbers; bins of ``counts``
    with 1 to 4 become empty.
    """
    if isinstance(value, Mapping):
        if _few(value.get(_SIZE)):
            return {k: v if isinstance(v, str) or k == _CLIENT else None for k, v in value.items()}
        return {k: _emptied(v) if k == _COUNTS else suppress_few(v) for k, v in value.items()}
    return [suppress_few(v) for v in value] if isinstance(value, list) else value


def unfinished(notes: Mapping[str, Any]) -> tuple[int, int]:
    """Return in how many runs an arm reached its last epoch while validation could still improve, and of how many."""
    ended = notes.get("converged")
    if isinstance(ended, Mapping):
        return int(ended["of"]) - int(ended["held"]), int(ended["of"])
    return int(ended is False), 1


def _few(n: Any) -> bool:
    return isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < FEWEST


def _emptied(counts: Any) -> Any:
    if isinstance(counts, list):
        return [_emptied(n) for n in counts]
    return 0 if _few(counts) else suppress_few(counts)


def merge_notes(seeds: Sequence[Any]) -> Any:
    """Return one note for all seeds.

    Numbers that differ become ``{"median", "low", "high"}``, conditions ``{"held", "of"}``. Records of a list are the
    same where all their texts are, and stand in the same place among those; of clients, which differ from seed to seed,
    and of lists of numbers, the first seed's stand.
    """
    known = [one for one in seeds if one is not None]
    first = known[0] if known else None
    if all(isinstance(one, bool) for one in known) and known:
        return first if len(known) == 1 else {"held": sum(known), "of": len(known)}
    if all(isinstance(one, int | float) for one in known) and known:
        if min(known) == max(known):
            return first
        return {"median": statistics.median(known), "low": min(known), "high": max(known)}
    if isinstance(first, Mapping) and all(isinstance(one, Mapping) for one in known):
        if _COUNTS in first or "schema" in first:  # a histogram, or a document
            return first
        keys = dict.fromkeys(key for one in known for key in one)
        return {key: merge_notes([one.get(key) for one in known]) for key in keys}
    if isinstance(first, list) and first and all(isinstance(row, Mapping) for one in known for row in one):
        return first if any(row.get(_CLIENT) is not None for row in first) else _merge_records(known)
    return first


def _merge_records(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[Any]:
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for rows in seeds:
        times: dict[tuple[Any, ...], int] = {}
        for row in rows:
            name = tuple((k, v) for k, v in row.items() if isinstance(v, str))  # a number may be undefined at a seed
            times[name] = times.get(name, 0) + 1
            found.setdefault((name, times[name]), []).append(row)
    return [merge_notes(rows) for rows in found.values()]


def merge_curves(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return, for each arm, what was logged by step, merged over seeds; at most 200 steps, the last one always."""
    arms: dict[str, dict[Any, list[Mapping[str, Any]]]] = {}
    for row in itertools.chain.from_iterable(seeds):
        at = arms.setdefault(str(row.get("arm")), {}).setdefault(row.get("step"), [])
        at.append({k: v for k, v in row.items() if k != "arm"})
    found = {}
    for arm, at_step in arms.items():
        every = max(1, -(-len(at_step) // MOST_POINTS))
        kept = sorted(at_step)[::-every][::-1]  # from the last one backwards
        found[arm] = [merge_notes(at_step[step]) for step in kept]
    return found
