"""The Python door: the same verbs as the command line, returning objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["Result", "audit_forgetting", "audit_predictions", "check", "compare", "load", "run"]


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

    @property
    def frame(self) -> Any:
        """Levels as a data frame of polars, a row an arm and statistic, with the ends of each 95 % interval."""
        import polars as pl

        names = ("arm", "label", "value", "low", "high", "n_units", "statistic", "group")
        return pl.DataFrame([{name: row[name] for name in names} for row in self.evidence["levels"]])

    def _repr_html_(self) -> str:
        """The verdict above the levels, as a notebook shows it."""
        from upright.report.read import printed

        said = printed(self.evidence["verdict"])
        head = f"<p><b>{escape(said['title'])}</b></p><p>{escape(said['sentence'])}</p>"
        return head + str(self.frame._repr_html_())

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


def audit_predictions(file: str | Path, *, group: str | Sequence[str], out: str | Path, **options: Any) -> Result:
    """Audit anybody's decisions by group and return the audit.

    Parameters
    ----------
    file : path
        CSV, TSV or Parquet with a row a case.
    group : str or sequence of str
        Columns of groups.
    out : path
        Where the audit's folder goes.
    **options
        Of `upright.audits.predictions.audit_predictions`: client, label, prediction or proba, criterion ...

    Raises
    ------
    upright.contract.InputError
        For everything that is wrong with the file.
    """
    from upright.audits.predictions import audit_predictions as audit

    return Result(audit(file, group=group, out=out, **options))


def audit_forgetting(
    model: str | Path, *, forget: str | Path, retain: str | Path, out: str | Path, **options: Any
) -> Result:
    """Audit what a language model still knows of records that it should have forgotten, and return the audit.

    Parameters
    ----------
    model : path
        Folder of a causal language model with its tokenizer.
    forget, retain : path
        JSON lines: what should be forgotten, and what should be kept.
    out : path
        Where the audit's folder goes.
    **options
        Of `upright.audits.forgetting.audit_forgetting`: holdout, reference, template, generate ...

    Raises
    ------
    upright.contract.InputError
        For everything that is wrong with the files and the models.
    """
    from upright.audits.forgetting import audit_forgetting as audit

    return Result(audit(model, forget=forget, retain=retain, out=out, **options))


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
