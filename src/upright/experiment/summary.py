"""``summary.json`` and ``comparison.json``: one typed record of what was found, written and read here, with a version.

No times and no paths stand in it, so that a resumed run can equal an uninterrupted one byte for byte.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from upright.contract import InputError
from upright.evidence.records import Difference, Level
from upright.experiment.folders import read_json, write_json

__all__ = [
    "SCHEMA",
    "ArmFacts",
    "Evidence",
    "Kind",
    "Summary",
    "again",
    "read_summary",
    "summary_file",
    "write_summary",
]

SCHEMA = 2
Kind = Literal["run", "comparison", "audit"]
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """One arm: what it is, and what it noted; of several seeds, merged notes and curves."""

    name: str
    role: str = ""
    title: str = ""
    settings: Json = dataclasses.field(default_factory=dict)
    notes: Json = dataclasses.field(default_factory=dict)
    totals: Json = dataclasses.field(default_factory=dict)
    curves: Sequence[Json] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """Levels, differences and the verdict; ``facts`` say over how many seeds, units and draws."""

    levels: tuple[Level, ...] = ()
    differences: tuple[Difference, ...] = ()
    alone: tuple[Difference, ...] = ()
    rivals: tuple[Difference, ...] = ()
    verdict: Json = dataclasses.field(default_factory=dict)
    headline: Level | None = None
    facts: Json = dataclasses.field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return plain values."""
        rows: dict[str, Any] = {"levels": _rows(self.levels), "differences": _rows(self.differences)}
        rows |= {name: _rows(getattr(self, name)) for name in ("alone", "rivals") if getattr(self, name)}
        rows |= {"headline": _rows([self.headline])[0]} if self.headline else {}
        return {**self.facts, **rows, "verdict": dict(self.verdict)}

    @classmethod
    def read(cls, row: Json, where: str = "evidence") -> Self:
        """Return the evidence of plain values; raise `InputError` for a row that is none."""
        lists: dict[str, Any] = {
            name: tuple(kind.read(x, f"{where}: {name}[{i}]") for i, x in enumerate(row.get(name) or ()))
            for name, kind in (
                ("levels", Level),
                ("differences", Difference),
                ("alone", Difference),
                ("rivals", Difference),
            )
        }
        headline = row.get("headline")
        names = {*lists, "verdict", "headline"}
        return cls(
            **lists,
            verdict=row.get("verdict") or {},
            headline=Level.read(headline, f"{where}: headline") if headline else None,
            facts={k: v for k, v in row.items() if k not in names},
        )


def _rows(records: Sequence[Level | Difference]) -> list[dict[str, Any]]:
    """Return records as plain values; what is undefined of a few fields is left out."""
    seldom = ("p", "smallest_detectable", "seed_share")
    return [{k: v for k, v in x.row().items() if k not in seldom or not math.isnan(v)} for x in records]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run, a comparison or an audit found.

    Parameters
    ----------
    kind : {"run", "comparison", "audit"}
    method, title, mends : str
        Of an audit ``audit_<kind>``, what was audited, and the question.
    data : mapping
        Name, sizes and fingerprint.
    seeds : tuple of int
    runs : tuple of str
        Names of the folders that were compared.
    arms : tuple of ArmFacts
    warnings, deviations, unfit : tuple of str
        Unfit are arms without a meaning for these data.
    evidence : Evidence
    audit : mapping
        Facts of an audit.
    """

    kind: Kind = "run"
    method: str = ""
    title: str = ""
    mends: str = ""
    data: Json = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    arms: tuple[ArmFacts, ...] = ()
    warnings: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()
    evidence: Evidence = Evidence()
    audit: Json = dataclasses.field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return plain values, what is empty left out of arms."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        arms = [{k: v for k, v in dataclasses.asdict(arm).items() if v or k != "curves"} for arm in self.arms]
        return {"schema": SCHEMA, **found, "arms": arms, "evidence": self.evidence.row()}

    @classmethod
    def read(cls, row: Json, where: str = "summary", again: Callable[[], str] = lambda: "make it again") -> Self:
        """Return the record of plain values.

        Raises
        ------
        InputError
            For another schema, whose error says what ``again`` returns, or a field that is none.
        """
        if row.get("schema") != SCHEMA:
            raise InputError(f"{where}: schema {row.get('schema')!r}", f"schema {SCHEMA}", again())
        evidence = row.get("evidence")
        if not isinstance(evidence, Mapping):
            todo = "run again, or repair the file"
            raise InputError(f"{where}: no evidence", "an object `evidence` with levels", todo)
        known = {f.name for f in dataclasses.fields(cls)}
        names = {f.name for f in dataclasses.fields(ArmFacts)}
        arms = tuple(ArmFacts(**{k: v for k, v in arm.items() if k in names}) for arm in row.get("arms") or ())
        own: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in known}
        return cls(**{**own, "arms": arms, "evidence": Evidence.read(evidence, where)})


def summary_file(folder: Path) -> Path:
    """Return the file that says what a folder found; it need not be there."""
    comparison = folder / "comparison.json"
    return comparison if comparison.is_file() else folder / "summary.json"


def read_summary(folder: Path) -> Summary:
    """Read the summary of a run, comparison or audit folder.

    Raises
    ------
    InputError
        When it is missing, broken or of another version, with the command that makes it again.
    """
    file = summary_file(folder)
    return Summary.read(read_json(file), f"{folder.name}/{file.name}", lambda: again(folder))


def again(folder: Path) -> str:
    """Say how a summary of an older version is made again."""
    file = summary_file(folder)
    if file.name == "comparison.json":
        runs = [word for name in read_json(file).get("runs", ()) for word in ("--resume", str(name))]
        return f"make its runs again, then: upright run {shlex.join(runs)}"
    status = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    command = status.get("command") or f"python benchmarks/republish.py {folder.name}"
    return f"make it again: {command}"


def write_summary(folder: Path, found: Summary, *, compact: bool = False) -> None:
    """Write ``summary.json``, of a comparison ``comparison.json``."""
    name = "comparison.json" if found.kind == "comparison" and not compact else "summary.json"
    write_json(folder / name, found.row(), compact=compact)
