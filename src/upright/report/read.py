"""Reading a run, comparison or audit folder into typed rows.

Nothing is computed here: every number of a report was computed by the shell and is stored in the folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from upright.contract import InputError
from upright.evidence.records import Difference, Level, Null
from upright.report.text import metric_title

__all__ = ["ArmView", "Difference", "Level", "Null", "RunRecord", "View", "read_folder"]

SCHEMA = 1
Kind = Literal["run", "comparison", "audit"]


@dataclasses.dataclass(frozen=True)
class ArmView:
    """One arm as a report draws it; ``index`` fixes colour and marker, 0 is the baseline and 1 the remedy."""

    name: str
    title: str
    role: str
    index: int
    settings: Mapping[str, Any]
    notes: Mapping[str, Any]
    totals: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What one run folder holds beside its evidence."""

    name: str
    seed: int | None
    status: Mapping[str, Any]
    config: Mapping[str, Any]
    curves: tuple[Mapping[str, Any], ...]
    unread_lines: int
    notes: Mapping[str, Mapping[str, Any]]
    totals: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class View:
    """A folder, read; arms of a sweep stand in ``swept`` alone, so that only fronts show them."""

    kind: Kind
    folder: Path
    method: str
    title: str
    mends: str
    data: Mapping[str, Any]
    arms: tuple[ArmView, ...]
    seeds: tuple[int, ...]
    evidence: Mapping[str, Any]
    levels: tuple[Level, ...]
    differences: tuple[Difference, ...]
    swept: tuple[Level, ...]
    warnings: tuple[str, ...]
    deviations: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    missing_runs: tuple[str, ...]
    summary: Mapping[str, Any]

    def arm(self, name: str) -> ArmView | None:
        """Return an arm by name, None when the folder does not list it."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def arm_title(self, name: str) -> str:
        """Return how to write an arm; its name when the folder does not list it."""
        arm = self.arm(name)
        return arm.title if arm else name

    def find(self, statistic: str, group: str | None = None) -> list[Level]:
        """Return the levels of one statistic and group in the order of the arms."""
        order = {arm.name: i for i, arm in enumerate(self.arms)}
        rows = [row for row in self.levels if row.statistic == statistic and row.group == group]
        return sorted(rows, key=lambda row: order.get(row.arm, len(order)))

    def metric_title(self, metric: str) -> str:
        """Return how the evidence's own labels write a metric, else what can be made of its name."""
        for row in self.levels:
            if row.metric == metric and row.name == "mean":
                return row.label if row.group is None else row.label.removesuffix(f", {row.group}")
        return metric_title(metric)

    @property
    def verdict(self) -> Mapping[str, Any]:
        """The stored verdict; empty when there is none."""
        found = self.evidence.get("verdict")
        return found if isinstance(found, Mapping) else {}

    @property
    def primary(self) -> str:
        """The statistic that decides; empty without a verdict."""
        return str(self.verdict.get("primary") or "")

    @property
    def cost_statistic(self) -> str:
        """The statistic that may not get worse; empty where nothing is paid."""
        return str(self.verdict.get("cost_statistic") or "")

    @property
    def unit_kind(self) -> str:
        """What is counted: ``user``, ``row`` ..."""
        return str(self.evidence.get("unit_kind", "unit"))

    @property
    def confidence(self) -> float:
        """Coverage of every interval."""
        return float(self.evidence.get("confidence", 0.95))


def read_folder(folder: Path) -> View:
    """Read a run, comparison or audit folder.

    Raises
    ------
    InputError
        When the folder, its summary or a field of it is missing or of another schema.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder",
            "a run, comparison or audit folder",
            "name the folder that `upright run` or `upright audit` printed",
        )
    if (folder / "comparison.json").is_file():
        return _view("comparison", folder, _json(folder / "comparison.json"))
    if (folder / "summary.json").is_file():
        summary = _json(folder / "summary.json")
        return _view("audit" if summary.get("kind") == "audit" else "run", folder, summary)
    status = _json(folder / "run.json").get("status") if (folder / "run.json").is_file() else None
    raise InputError(
        f"{folder.name}: no summary.json" + (f"; its run is {status!r}" if status else ""),
        "a folder with summary.json (a finished run or an audit) or comparison.json",
        "resume the run until it is done" if status else "name the folder that a verb of upright wrote",
    )


def _view(kind: Kind, folder: Path, summary: Mapping[str, Any]) -> View:
    where = f"{folder.name}/{'comparison' if kind == 'comparison' else 'summary'}.json"
    if summary.get("schema") != SCHEMA:
        raise InputError(
            f"{where}: schema {summary.get('schema')!r}",
            f"schema {SCHEMA}",
            "use the version of upright that wrote it, or run again",
        )
    evidence = summary.get("evidence")
    if not isinstance(evidence, Mapping):
        raise InputError(f"{where}: no evidence", "an object `evidence` with levels", "run again, or repair the file")
    runs, missing = _runs(kind, folder, summary)
    arms = _arms(summary, runs)
    listed = [row for row in summary.get("arms", []) if isinstance(row, Mapping)]
    others = {str(row.get("name")) for row in listed if row.get("role") == "sweep"}
    differences = [
        Difference.read(row, f"{where}: differences[{i}]") for i, row in enumerate(evidence.get("differences", []))
    ]
    # levels of older folders have no better side of their own
    better = {row.statistic: row.direction for row in differences}
    levels = [Level.read(row, f"{where}: levels[{i}]") for i, row in enumerate(evidence.get("levels", []))]
    levels = [
        dataclasses.replace(row, better=better.get(row.statistic, "none")) if row.better == "none" else row
        for row in levels
    ]
    seeds = summary.get("seeds", [summary["seed"]] if isinstance(summary.get("seed"), int) else [])
    first = next((run for run in runs), None)
    return View(
        kind=kind,
        folder=folder,
        method=str(summary.get("method", "")),
        title=str(summary.get("title") or summary.get("method") or "audit"),
        mends=str(summary.get("mends", "")),
        data=_object(summary.get("data")),
        arms=arms,
        seeds=tuple(int(seed) for seed in seeds) or tuple(r.seed for r in runs if r.seed is not None),
        evidence=evidence,
        levels=tuple(row for row in levels if row.arm not in others),
        differences=tuple(differences),
        swept=tuple(row for row in levels if row.arm in others),
        warnings=tuple(map(str, summary.get("warnings", []))),
        deviations=tuple(map(str, summary.get("deviations") or _deviations_of(folder, first))),
        runs=runs,
        missing_runs=missing,
        summary=summary,
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _arms(summary: Mapping[str, Any], runs: Sequence[RunRecord]) -> tuple[ArmView, ...]:
    listed = [{"name": row} if isinstance(row, str) else dict(row) for row in summary.get("arms", [])]
    listed = [row for row in listed if row.get("role") != "sweep"]
    # the baseline is always grey and the remedy always blue, wherever they stand in the list
    rest = iter(range(2, 2 + len(listed)))
    taken: set[int] = set()
    views = []
    for row in listed:
        role = str(row.get("role") or "")
        fixed = 1 if len(listed) == 1 else {"baseline": 0, "remedy": 1}.get(role)
        index = fixed if fixed is not None and fixed not in taken else next(rest)
        taken.add(index)
        name = str(row.get("name", ""))
        notes = _object(row.get("notes")) or next((r.notes[name] for r in runs if name in r.notes), {})
        totals = _object(row.get("totals")) or next((r.totals[name] for r in runs if name in r.totals), {})
        title = str(row.get("title") or name)
        views.append(
            ArmView(name, title[:1].upper() + title[1:], role, index, _object(row.get("settings")), notes, totals)
        )
    return tuple(views)


def _runs(kind: Kind, folder: Path, summary: Mapping[str, Any]) -> tuple[tuple[RunRecord, ...], tuple[str, ...]]:
    if kind != "comparison":
        return (_run(folder),), ()
    found, missing = [], []
    for name in map(str, summary.get("runs", [])):
        # runs stand beside their comparison; inside it when somebody moved them together
        place = next((p for p in (folder.parent / name, folder / name) if p.is_dir()), None)
        if place is None:
            missing.append(Path(name).name)
        else:
            found.append(_run(place))
    return tuple(found), tuple(missing)


def _run(folder: Path) -> RunRecord:
    status, config = _optional(folder / "run.json"), _optional(folder / "config.json")
    summary = _optional(folder / "summary.json")
    curves, unread = _lines(folder / "metrics.jsonl")
    seed = summary.get("seed", status.get("seed"))
    arms = [arm for arm in summary.get("arms", []) if isinstance(arm, Mapping)]
    return RunRecord(
        name=folder.name,
        seed=seed if isinstance(seed, int) else None,
        status=status,
        config=config,
        curves=curves,
        unread_lines=unread,
        notes={str(arm.get("name")): _object(arm.get("notes")) for arm in arms},
        totals={str(arm.get("name")): _object(arm.get("totals")) for arm in arms},
    )


def _deviations_of(folder: Path, run: RunRecord | None) -> Sequence[str]:
    """Deviations of a comparison are those of its runs."""
    if run is None or run.name == folder.name:
        return []
    place = next((p for p in (folder.parent / run.name, folder / run.name) if p.is_dir()), None)
    return list(_optional(place / "summary.json").get("deviations", [])) if place else []


def _lines(path: Path) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """Read a log whose last line a killed process may have left half written; count what cannot be read."""
    if not path.is_file():
        return (), 0
    rows, unread = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unread += 1
    return tuple(rows), unread


def _optional(path: Path) -> Mapping[str, Any]:
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path.name} is not JSON: {error}", "the file as upright wrote it", "restore it, or run again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path.name} holds {type(found).__name__}", "a JSON object", "restore it, or run again")
    return found
