"""Reading a run, comparison or audit folder into typed rows.

Nothing is computed here: every number of a report was computed by the run and is stored in the folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.evidence.records import Difference, Level, Null
from upright.experiment.notes import merge_curves
from upright.experiment.summary import ArmFacts, Kind, Summary, again, summary_file
from upright.report.table import UnitTable
from upright.report.text import metric_title, printable, shorten

__all__ = ["ArmView", "Difference", "Level", "Null", "RunRecord", "View", "read_folder"]


@dataclasses.dataclass(frozen=True)
class ArmView:
    """One arm as a report draws it; ``index`` fixes colour and marker, 0 is the baseline and 1 the remedy."""

    name: str
    title: str
    role: str
    index: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    totals: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    curves: Sequence[Mapping[str, Any]] = ()


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What one run folder holds beside its evidence."""

    folder: Path
    seed: int | None
    status: Mapping[str, Any]
    config: Mapping[str, Any]
    log: tuple[Mapping[str, Any], ...]
    unread_lines: int


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
    stored: Summary
    swept_field: str
    sweep: Mapping[str, float]
    table: UnitTable

    def arm(self, name: str) -> ArmView | None:
        """Return an arm by name, None when the folder does not list it."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def arm_title(self, name: str) -> str:
        """Return how to write an arm; its name when the folder does not list it."""
        arm = self.arm(name)
        return arm.title if arm else name

    def index_of(self, name: str) -> int:
        """Return the colour of an arm; that of the baseline when the folder does not list it."""
        arm = self.arm(name)
        return arm.index if arm else 0

    def strength(self, arm: ArmView) -> float:
        """Return an arm's own value of the swept setting, else the configured one; NaN when neither is stored."""
        config: Any = next((run.config for run in self.runs if run.config), {})
        method = (config.get("resolved") or {}).get("method") or {}
        value = arm.settings.get(self.swept_field, method.get(self.swept_field))
        return float(value) if isinstance(value, int | float) else math.nan

    @property
    def places(self) -> tuple[Path, ...]:
        """The folder, and those of its runs."""
        return tuple(self.table.places)

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
    file = summary_file(folder)
    if file.is_file():
        row = _json(file)
        return _view(folder, Summary.read(row, f"{folder.name}/{file.name}", lambda: again(folder)))
    status = _json(folder / "run.json").get("status") if (folder / "run.json").is_file() else None
    raise InputError(
        f"{folder.name}: no summary.json" + (f"; its run is {status!r}" if status else ""),
        "a folder with summary.json (a finished run or an audit) or comparison.json",
        "resume the run until it is done" if status else "name the folder that a verb of upright wrote",
    )


def _view(folder: Path, found: Summary) -> View:
    runs, missing = _runs(folder, found)
    others = {arm.name: arm for arm in found.arms if arm.role == "sweep"}
    field, sweep = _swept(others.values())
    levels, e = found.evidence.levels, found.evidence
    return View(
        kind=found.kind,
        folder=folder,
        method=found.method,
        title=found.title or found.method or "audit",
        mends=found.mends,
        data=found.data,
        arms=_arms(found, runs),
        seeds=found.seeds or tuple(r.seed for r in runs if r.seed is not None),
        evidence={**e.facts, "verdict": e.verdict, "alone": e.alone, "headline": e.headline},
        levels=tuple(row for row in levels if row.arm not in others),
        differences=e.differences,
        swept=tuple(row for row in levels if row.arm in others),
        warnings=found.warnings,
        deviations=found.deviations,
        runs=runs,
        missing_runs=missing,
        stored=found,
        swept_field=field,
        sweep=sweep,
        table=UnitTable((folder, *(run.folder for run in runs if run.folder != folder))),
    )


def _swept(arms: Iterable[ArmFacts]) -> tuple[str, dict[str, float]]:
    """Return the setting that a sweep varies and its value in each sweep arm."""
    field, found = "", {}
    for arm in arms:
        for key, value in arm.settings.items():
            if isinstance(value, int | float) and f"{value:g}" == arm.name.partition("@")[2]:
                field, found[arm.name] = str(key), float(value)
    return field, found


def _arms(found: Summary, runs: Sequence[RunRecord]) -> tuple[ArmView, ...]:
    listed = [arm for arm in found.arms if arm.role != "sweep"]
    # the baseline is always grey and the remedy always blue, wherever they stand in the list
    rest = iter(range(2, 2 + len(listed)))
    taken: set[int] = set()
    logged = merge_curves([run.log for run in runs])
    views = list[ArmView]()
    for arm in listed:
        fixed = 1 if len(listed) == 1 else {"baseline": 0, "remedy": 1}.get(arm.role)
        index = fixed if fixed is not None and fixed not in taken else next(rest)
        taken.add(index)
        title, audited = arm.title or arm.name, found.kind == "audit"
        notes = {**arm.notes, **found.audit} if audited and not views else arm.notes  # facts of what was audited
        views.append(
            ArmView(
                arm.name,
                title[:1].upper() + title[1:],
                "" if audited else arm.role,
                index,
                arm.settings,
                notes,
                arm.totals,
                arm.curves or logged.get(arm.name, ()),
            )
        )
    return tuple(views)


def _runs(folder: Path, summary: Summary) -> tuple[tuple[RunRecord, ...], tuple[str, ...]]:
    if not summary.runs:
        return (_run(folder),), ()
    found, missing = [], []
    for name in summary.runs:
        # runs stand beside their comparison; inside it when somebody moved them together
        place = next((p for p in (folder.parent / name, folder / name) if p.is_dir()), None)
        if place is None:
            missing.append(Path(name).name)
        else:
            found.append(_run(place))
    return tuple(found), tuple(missing)


def _run(folder: Path) -> RunRecord:
    status, config = _optional(folder / "run.json"), _optional(folder / "config.json")
    log, unread = _lines(folder / "metrics.jsonl")
    seed = status.get("seed")
    return RunRecord(folder, seed if isinstance(seed, int) else None, status, config, log, unread)


def _lines(path: Path) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """Read a log whose last line a killed process may have left half written; count what cannot be read."""
    if not path.is_file():
        return (), 0
    rows, unread = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        try:
            row = printed(json.loads(line))
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unread += 1
    return tuple(rows), unread


def printed(value: Any, longest: int | None = None) -> Any:
    """Return a JSON value whose texts hold no control characters, or too long words: names may, a page may not."""
    if isinstance(value, str):
        text = printable(value)
        return text if longest is None else " ".join(shorten(word, longest) for word in text.split(" "))
    if isinstance(value, dict):
        return {printed(k, longest): printed(v, longest) for k, v in value.items()}
    return [printed(v, longest) for v in value] if isinstance(value, list) else value


def _optional(path: Path) -> Mapping[str, Any]:
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = printed(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(
            f"{path.name} is not JSON: {error}", "the file as upright wrote it", "restore it, or run again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path.name} holds {type(found).__name__}", "a JSON object", "restore it, or run again")
    return found
