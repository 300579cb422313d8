"""The Python door: the same verbs as the command line, returning objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from upright.contract import InputError

__all__ = ["Result", "audit", "check", "compare", "load", "run"]


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run, comparison or audit on disk.

    Parameters
    ----------
    folder : Path
        Its folder.
    """

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` or ``comparison.json`` says."""
        from upright.experiment.folders import plain
        from upright.experiment.summary import read_summary

        return dict(plain(read_summary(self.folder).row()))

    @property
    def evidence(self) -> dict[str, Any]:
        """Levels, paired differences and the verdict."""
        return dict(self.summary["evidence"])

    @property
    def verdict(self) -> str:
        """The verdict: what it is called, and one sentence."""
        said = self.evidence["verdict"]
        return f"{said['title'][:1].upper()}{said['title'][1:]}. {said['sentence']}"

    def to_frame(self) -> Any:
        """Return levels as a data frame of polars, a row an arm and statistic, with the ends of each 95 % interval."""
        import polars as pl

        names = ("arm", "label", "value", "low", "high", "p", "n_units", "statistic", "group")
        return pl.DataFrame({name: [row.get(name) for row in self.evidence["levels"]] for name in names}, strict=False)

    def _repr_html_(self) -> str:
        """The verdict above the levels, as a notebook shows it."""
        from upright.report.read import printed

        said = printed(self.evidence["verdict"])
        head = f"<p><b>{escape(said['title'])}</b></p><p>{escape(said['sentence'])}</p>"
        return head + str(self.to_frame()._repr_html_())

    def report(self, out: Path | None = None) -> Path:
        """Write the HTML report and return its path."""
        from upright.report import build_report

        return build_report(self.folder, out)


def run(
    method: str,
    *,
    data: str | None = None,
    data_dir: str | None = None,
    settings: Mapping[str, Any] | None = None,
    preset: str = "full",
    seeds: int | Sequence[int] = 1,
    arms: Sequence[str] | None = None,
    out: str | Path = "runs",
    quiet: bool = True,
    sweep: bool = False,
    margins: Mapping[str, float] | None = None,
    budget: float | None = None,
) -> Result:
    """Run a method with its controls and return the run, or the comparison when there are several seeds.

    Parameters
    ----------
    method : str
        Registered name, as `upright list` shows it.
    data : str, optional
        Name in the catalogue or path of a file; the task's default otherwise.
    settings : mapping, optional
        Fields of the method's or the task's config.
    preset : {"quick", "full"}
        Size.
    seeds : int or sequence of int
        How many (0, 1, ...), or which. Six is the least that can show anything.
    arms : sequence of str, optional
        Some of the arms; all by default.
    out : path
        Where run folders go.
    sweep : bool
        Every arm at every strength that the method declares, so that the report draws fronts.
    margins, budget : optional
        Smallest changes that matter by metric, '' for the statistic that decides; how much of the cost may be spent.

    Raises
    ------
    upright.contract.InputError
        For bad settings or data.
    """
    from upright.experiment.runner import Ask, run_seeds

    wanted = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    judged: dict[str, Any] = {"margins": margins or {}, "budget": budget}
    ask = Ask(method, data=data, settings=settings or {}, preset=preset, arms=arms, sweep=sweep, **judged)
    folders, comparison = run_seeds(ask, wanted, out=Path(out), data_dir=data_dir, quiet=quiet)
    return Result(comparison if comparison is not None else folders[0])


def audit(
    kind: str,
    *files: Any,
    out: str | Path = "audits",
    seed: int = 0,
    margins: Mapping[str, float] | None = None,
    draws: int = 2000,
    command: str | None = None,
    **settings: Any,
) -> Result:
    """Audit what is there already, and return the audit; nothing of yours is trained.

    Parameters
    ----------
    kind : str
        ``ranking``, ``embeddings``, ``predictions``, ``forgetting``, or that of a plugin.
    *files : path, data frame of polars, pandas or Arrow, or array
        What is audited; several where the audit takes several.
    out : path
        Where the audit's folder goes.
    seed, draws : int
        Of everything that is drawn; draws of the bootstrap.
    margins : mapping of metric to float, optional
        Smallest that matters, '' for what decides.
    command : str, optional
        What the report says to repeat it.
    **settings
        Fields of the audit's config, as ``upright audit KIND --help`` lists them: ``held_out``, ``labels`` ...

    Raises
    ------
    upright.contract.InputError
        For everything that is wrong with files and settings; no folder is made then.
    """
    from upright.experiment.audit import file_fields, run_audit
    from upright.experiment.registry import load_audit
    from upright.tasks.answers import in_python

    config = load_audit(kind).config
    first = file_fields(config)[0]
    if len(files) > 1 and "tuple" not in str(config.__annotations__[first]):
        got = f"{len(files)} files for {first!r}"
        raise InputError(got, "one; the others by name", f"upright audit {kind} --help lists them")
    given = {first: files[0] if len(files) == 1 else files} if files else {}
    options: dict[str, Any] = {"seed": seed, "margins": margins, "draws": draws, "command": command}
    try:
        return Result(run_audit(kind, {**given, **settings}, out=Path(out), **options))
    except InputError as error:  # which speaks the command line
        raise error if command else in_python(error, config) from None


def load(folder: str | Path) -> Result:
    """Return a run, comparison or audit that is on disk.

    Raises
    ------
    upright.contract.InputError
        When the folder holds none.
    """
    result = Result(Path(folder))
    _ = result.summary
    return result


def compare(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write a page that sets runs side by side and return its path."""
    from upright.report import build_compare

    return build_compare([Path(f) for f in folders], Path(out))


def check(method: str) -> list[Any]:
    """Run the conformance suite on a method and return its checks."""
    from upright.experiment.checks import conformance

    return list(conformance(method))
