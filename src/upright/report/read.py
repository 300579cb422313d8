"""Reading a run, comparison or audit folder into typed rows.

Nothing is computed here: every number of a report was computed by the run and is stored in the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from upright import declare
from upright.contract import InputError
from upright.evidence.records import Difference, Level
from upright.experiment.folders import read_json, run_status
from upright.experiment.notes import merge_curves
from upright.experiment.registry import declared_of
from upright.experiment.summary import ArmFacts, Summary, again, summary_file
from upright.report.table import UnitTable
from upright.report.text import metric_title, printable, shorten

__all__ = ["ArmView", "RunRecord", "View", "printed", "read_folder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmView(ArmFacts):
    """One arm as a report draws it; ``index`` fixes colour and marker, 0 is the baseline and 1 the remedy."""

    index: int = 0


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What one run folder holds beside its evidence."""

    folder: Path
    status: Mapping[str, Any]
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    unread_lines: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class View(Summary):
    """A folder, read: its summary, and its run folders; arms of a sweep stand apart, so that only fronts show them."""

    folder: Path
    arms: tuple[ArmView, ...]
    swept: tuple[ArmFacts, ...]
    folders: tuple[RunRecord, ...]

    def arm(self, name: str) -> ArmView:
        """Return an arm by name; grey and without a title when the folder does not list it."""
        return next((arm for arm in self.arms if arm.name == name), ArmView(name=name, title=name))

    @property
    def remedy(self) -> ArmView | None:
        """The remedy, or the first arm where none is one."""
        return next((arm for arm in self.arms if arm.role == "remedy"), next(iter(self.arms), None))

    @property
    def config(self) -> Mapping[str, Any]:
        """``config.json`` of the first run that has one."""
        return next((run.config for run in self.folders if run.config), {})

    @property
    def status(self) -> Mapping[str, Any]:
        """``run.json`` of the first run that has one."""
        return next((run.status for run in self.folders if run.status), {})

    @property
    def places(self) -> tuple[Path, ...]:
        """The folder, and those of its runs."""
        return tuple(dict.fromkeys((self.folder, *(run.folder for run in self.folders))))

    @property
    def table(self) -> UnitTable:
        """Values of units."""
        return UnitTable(self.places)

    @cached_property
    def _by_text(self) -> dict[tuple[str, str], Level]:
        return {(row.arm, row.text): row for row in self.evidence.levels}

    def level(self, arm: str, text: str) -> Level | None:
        """Return a statistic (of ``=group`` alone) of an arm, or of a strength of one; None where it is not stored."""
        return self._by_text.get((arm, text))

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Levels of the arms that are no other strength of one."""
        swept = {arm.name for arm in self.swept}
        return tuple(row for row in self.evidence.levels if row.arm not in swept)

    @cached_property
    def declared(self) -> Sequence[declare.Block]:
        """What the method or audit declares to be shown; nothing where it is not installed."""
        spec = declared_of(self.method)
        return spec.report if spec else ()

    @property
    def limits(self) -> Sequence[str]:
        """What the method or audit says that it does not show."""
        spec = declared_of(self.method)
        return spec.limits if spec else ()

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The remedy minus every other arm."""
        return self.evidence.differences

    def metric_title(self, metric: str) -> str:
        """Return how the evidence's own labels write a metric, else what can be made of its name."""
        for row in self.levels:
            if row.metric == metric and row.name == "mean":
                return row.label if row.group is None else row.label.removesuffix(f", {row.group}")
        return metric_title(metric)

    @property
    def verdict(self) -> Mapping[str, Any]:
        """The stored verdict; empty when there is none."""
        return self.evidence.verdict

    @property
    def primary(self) -> str:
        """The statistic that decides; empty without a verdict."""
        return str(self.verdict.get("primary") or "")

    @property
    def cost_statistic(self) -> str:
        """The statistic that may not get worse; empty where nothing is paid."""
        return str(self.verdict.get("cost_statistic") or "")

    @property
    def n_units(self) -> int | None:
        """How many units were counted; None where that is not stored."""
        return self.evidence.facts.get("n_units")

    @property
    def unit_kind(self) -> str:
        """What is counted: ``user``, ``row`` ..."""
        return str(self.evidence.facts.get("unit_kind", "unit"))

    @property
    def confidence(self) -> float:
        """Coverage of every interval."""
        return float(self.evidence.facts.get("confidence", 0.95))


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
    if not file.is_file():
        status = run_status(folder)
        raise InputError(
            f"{folder.name}: no summary.json" + (f"; its run is {status!r}" if status else ""),
            "a folder with summary.json (a finished run or an audit) or comparison.json",
            "resume the run until it is done" if status else "name the folder that a verb of upright wrote",
        )
    found = Summary.read(_json(file), f"{folder.name}/{file.name}", lambda: again(folder))
    # runs stand beside their comparison; inside it when somebody moved them together
    beside = (next(filter(Path.is_dir, (folder.parent / name, folder / name)), None) for name in found.runs)
    runs = tuple(map(_run, filter(None, beside) if found.runs else [folder]))
    own = {
        "title": found.title or found.method or "audit",
        "arms": _arms(found, runs),
        "seeds": found.seeds or tuple(run.status["seed"] for run in runs if "seed" in run.status),
    }
    swept = tuple(arm for arm in found.arms if arm.role == "sweep")
    return View(**{**vars(found), **own}, folder=folder, swept=swept, folders=runs)


def _arms(found: Summary, runs: Sequence[RunRecord]) -> tuple[ArmView, ...]:
    listed = [arm for arm in found.arms if arm.role != "sweep"]
    # the baseline is always grey and the remedy always blue, wherever they stand in the list
    fixed, rest = {"baseline": 0, "remedy": 1}, itertools.count(2)
    logged = merge_curves([run.log for run in runs])
    views = list[ArmView]()
    for arm in listed:
        index = 1 if len(listed) == 1 else fixed.pop(arm.role, None)
        title, audited = arm.title or arm.name, found.kind == "audit"
        own = {
            "title": title[:1].upper() + title[1:],
            "role": "" if audited else arm.role,
            "notes": {**arm.notes, **found.audit} if audited and not views else arm.notes,  # facts of what was audited
            "curves": arm.curves or logged.get(arm.name, ()),
        }
        views.append(ArmView(**{**vars(arm), **own}, index=next(rest) if index is None else index))
    return tuple(views)


def _run(folder: Path) -> RunRecord:
    """Read a run; count the lines of its log that cannot be read: a killed process may have left one half written."""
    log = folder / "metrics.jsonl"
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()] if log.is_file() else []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):
            rows.append(printed(json.loads(line)))
    rows = [row for row in rows if isinstance(row, dict)]
    return RunRecord(folder, _json(folder / "run.json"), _json(folder / "config.json"), rows, len(lines) - len(rows))


def printed(value: Any, longest: int | None = None) -> Any:
    """Return a JSON value whose texts hold no control characters, or too long words: names may, a page may not."""
    if isinstance(value, str):
        text = printable(value)
        return text if longest is None else " ".join(shorten(word, longest) for word in text.split(" "))
    if isinstance(value, dict):
        return {printed(k, longest): printed(v, longest) for k, v in value.items()}
    return [printed(v, longest) for v in value] if isinstance(value, list) else value


def _json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; empty where there is none."""
    found = printed(read_json(path)) if path.is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path.name} holds {type(found).__name__}", "a JSON object", "restore it, or run again")
    return found
