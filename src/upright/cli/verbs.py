"""The command line: verbs only. Exit status: 0 fine, 1 a gate failed, 2 bad input, 3 our fault."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer
import typer.core

from upright import __version__
from upright.cli.audit import AuditGroup
from upright.cli.edit import edit_app
from upright.cli.forget import forget_app
from upright.cli.guard import guard_app
from upright.cli.options import RunCommand, explain, read_settings, settings_text
from upright.contract import InputError
from upright.evidence.gate import check_syntax, example
from upright.experiment.terminal import last_lines, levels_table, paragraphs, table

__all__ = ["app", "finish", "main", "read_margins"]

typer.core.HAS_RICH = False  # else it escapes brackets for rich, which does not print the help
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure how a trained model breaks trust, mend it, show the gain and the cost.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: list, describe, fetch, verify.")
audit_app = typer.Typer(
    cls=AuditGroup, no_args_is_help=True, help="Score what you already have, or propose how: upright audit FILE..."
)
runs_app = typer.Typer(no_args_is_help=True, help="Keep run folders small.")
app.add_typer(data_app, name="data")
app.add_typer(audit_app, name="audit")
app.add_typer(runs_app, name="runs")
app.add_typer(forget_app, name="forget")
app.add_typer(edit_app, name="edit")
app.add_typer(guard_app, name="guard")

LONGEST = 60  # letters of a word in a sentence on the terminal; JSON and the page hold it whole
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir = Annotated[str | None, typer.Option(help="Folder that holds data sets; UPRIGHT_DATA otherwise.")]
Out = Annotated[Path, typer.Option(help="Where run folders go.")]


def _gate_option(verb: str) -> Any:
    return typer.Option(help=f"Exit with 1 when this holds, in SQL, e.g. '{example(verb)}'.")


FailRun = Annotated[str | None, _gate_option("run")]
Margin = Annotated[list[str] | None, typer.Option(help="Smallest change that matters: X, or METRIC=X.")]


def _print(value: Any, as_json: bool, text: str) -> None:
    if not as_json:
        typer.echo(text)
        return
    from upright.experiment.folders import plain

    typer.echo(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def _width() -> int | None:
    """Columns of the terminal; None where output goes to a file or a pipe, which breaks no line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    return table(rows, columns, _width())


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"upright {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure how a trained model breaks trust, mend it, show the gain and the cost."""


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the ten methods and installed plugins with their state."""
    from upright.experiment.registry import names

    rows = names()
    _print(rows, as_json, _table(rows, ["name", "state", "mends"]))


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Describe a method: what it mends, its settings, arms and presets."""
    from upright.experiment.config import describe
    from upright.experiment.registry import load_method, load_object
    from upright.experiment.runner import deviations

    spec = load_method(name)
    tables = {"method": describe(spec.config), "task": describe(load_object(spec.task).Config)}
    arms = [{"name": a.name, "role": a.role, "title": a.title} for a in spec.arms]
    lines = [
        f"{spec.title}: mends {spec.mends}",
        "",
        _table(arms, ["name", "role", "title"]),
        "",
        settings_text(tables),
    ]
    lines += ["", "deviations from the paper", *[f"  {d}" for d in deviations(spec)]]
    found = {
        "name": name,
        "title": spec.title,
        "mends": spec.mends,
        "arms": arms,
        "settings": tables,
        "presets": {k: dict(v) for k, v in spec.presets.items()},
        "deviations": deviations(spec),
    }
    _print(found, as_json, "\n".join(lines))


@contextlib.contextmanager
def _stoppable(again: str | None = None) -> Iterator[list[Path]]:
    """Answer Ctrl-C with the command that goes on; the list takes folders that need no `Stopped` to be known."""
    known: list[Path] = []
    try:
        yield known
    except KeyboardInterrupt as stop:
        folders = getattr(stop, "folders", known)
        if again is None and folders:
            again = shlex.join(["upright", "run", *(word for f in folders for word in ("--resume", str(f)))])
        typer.echo(f"stopped; go on with `{again}`" if again else "stopped; nothing was begun", err=True)
        raise typer.Exit(130) from None


@app.command(cls=RunCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Method.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Name in the catalogue, or a file of yours; --user COLUMN, --item, --value, --time name its columns."
        ),
    ] = None,
    data_dir: DataDir = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, repeatable.")] = None,
    preset: Annotated[str, typer.Option(help="quick or full.")] = "full",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from --seed on.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="First seed.")] = 0,
    arms: Annotated[str | None, typer.Option(help="Some arms, comma-separated.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Every arm at every strength, for fronts.")] = False,
    resume: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run folder to go on with, with its own settings. Repeat it for the runs of several seeds: "
            "they are finished in turn, finished ones are taken as they are, and all are compared."
        ),
    ] = None,
    out: Out = Path("runs"),
    margin: Margin = None,
    budget: Annotated[float | None, typer.Option(min=0.0, help="How much of the cost may be spent.")] = None,
    fail_if: FailRun = None,
    as_json: Json = False,
) -> None:
    """Train a method with its controls, score it once, and write the report.

    Every setting of the method and of its task is an option too: upright run METHOD --help lists them.
    """
    if fail_if is not None:
        check_syntax(fail_if)  # before hours of training, not after
    if (name is None) == (not resume):
        given = " ".join(f"--resume {folder}" for folder in resume or [])
        raise InputError(
            f"method {name!r} and {given or 'no --resume'}", "a method, or --resume FOLDER", "give one of the two"
        )
    judged = _judged(margin, budget)
    asked = (
        settings,
        ctx.args,
        data,
        arms,
        sweep,
        margin,
        budget is not None,
        preset != "full",
        (seeds, seed) != (1, 0),
    )
    if resume and any(asked):
        raise InputError(
            "--resume together with settings of a run",
            "--resume alone: a run goes on with its own settings",
            "leave the other options out, or start a new run",
        )
    with _stoppable() as known:
        from upright.experiment.config import parse_assignments, resolve
        from upright.experiment.registry import load_method

        passed: dict[str, Any] = dict(parse_assignments(settings or []))
        if name is not None:
            spec = load_method(name)
            passed |= read_settings(spec, ctx)
            resolve(spec, passed, preset, data)  # a typo is answered before anything heavy is loaded
        from upright.api import Result
        from upright.experiment.runner import Ask, resume_all, run_seeds

        if resume:
            folders, comparison = resume_all(resume, data_dir=data_dir, quiet=False)
        else:
            some = arms.split(",") if arms else None
            ask = Ask(str(name), data=data, settings=passed, preset=preset, arms=some, sweep=sweep, **judged)
            folders, comparison = run_seeds(ask, range(seed, seed + seeds), out=out, data_dir=data_dir, quiet=False)
        known += folders
        target = comparison or folders[0]
        from upright.report import build_report

        finish(Result(target).summary, target, build_report(target), as_json, fail_if)


def read_margins(given: Sequence[str] | None) -> dict[str, float]:
    """Return margins by metric, '' for the statistic that decides."""
    found = {}
    for text in given or ():
        metric, _, number = text.rpartition("=")
        try:
            found[metric.strip()] = float(number)
        except ValueError:
            found[metric.strip()] = -1.0
        if not 0.0 <= found[metric.strip()] < float("inf"):
            raise InputError(f"--margin {text}", "X or METRIC=X with X at least 0", "write for example --margin 0.01")
    return found


def _judged(margin: list[str] | None, budget: float | None) -> dict[str, Any]:
    if budget is not None and not budget < float("inf"):
        raise InputError(f"--budget {budget}", "a number of at least 0", "write for example --budget 0.02")
    return {"margins": read_margins(margin), "budget": budget}


def finish(summary: dict[str, Any], folder: Path, report: Path, as_json: bool, fail_if: str | None) -> None:
    """Print levels, sentence, advice and word, or JSON; exit with 1 where the gate holds."""
    from upright.report.read import printed

    shown = printed(summary, LONGEST)
    verdict = shown["evidence"]["verdict"]
    lines = verdict["lines"].items()
    words = [verdict["sentence"], *(f"{name}: {text}" for name, text in lines if text != verdict["sentence"])]
    words += [*(f"next: {step}" for step in verdict["next_steps"]), *(f"warning: {w}" for w in shown["warnings"])]
    said = paragraphs([*filter(None, words), "", f"folder: {folder}", f"report: {report}"], _width())
    last = "\n".join(last_lines(shown, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    _print(
        {**summary, "folder": str(folder), "report": str(report)},
        as_json,
        "\n\n".join(filter(None, [levels_table(shown, width=_width() or 80), said, last])),
    )
    if fail_if is not None:
        from upright.evidence.gate import fail_if as gate

        if gate(summary, fail_if):
            typer.echo(f"gate failed: {fail_if}", err=True)
            raise typer.Exit(1)


def _page(out: Path) -> Path:
    """Refuse a place in which no page can be written; an existing folder takes one."""
    from upright.experiment.places import require_file

    return out if out.is_dir() else require_file(out)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Two or more runs or comparisons.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("compare.html"),
    margin: Margin = None,
    budget: Annotated[float | None, typer.Option(min=0.0, help="How much of the cost may be spent.")] = None,
) -> None:
    """Set runs side by side in one page."""
    from upright.report import build_compare

    typer.echo(str(build_compare(folders, _page(out), **_judged(margin, budget))))


@app.command()
def report(folder: Path, out: Annotated[Path | None, typer.Option(help="Page to write.")] = None) -> None:
    """Write the HTML report of a run, comparison or audit again."""
    from upright.report import build_report

    typer.echo(str(build_report(folder, out and _page(out))))


@app.command()
def check(name: str, as_json: Json = False) -> None:
    """Run the conformance suite on a method, ours or a plugin's."""
    from upright.experiment.checks import conformance

    rows = [{"check": c.name, "passed": c.passed, "detail": c.detail} for c in conformance(name)]
    shown = [{**r, "passed": "ok" if r["passed"] else "FAILED"} for r in rows]
    _print(rows, as_json, _table(shown, ["passed", "check", "detail"]))
    if not all(r["passed"] for r in rows):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demonstration.")] = Path("demo"),
    data_dir: DataDir = None,
    full: Annotated[bool, typer.Option("--full", help="Six seeds, which can show that a remedy works.")] = False,
) -> None:
    """Run every built method in its quick preset on real data and write one page."""
    typer.echo(f"On two cores this takes about {14 if full else 2} minutes; a second call computes nothing.", err=True)
    from upright.experiment.demo import run_demo
    from upright.report import build_demo, build_report

    with _stoppable(shlex.join(["upright", "demo", "--out", str(out), *["--full"] * full])):
        folders = run_demo(out, data_dir, 6 if full else 1)
        for folder in folders:
            build_report(folder)
        page = build_demo(folders, out / "index.html", "What upright shows")
    typer.echo(f"open {page}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is here and what is missing."""
    from upright.experiment.doctor import examine

    rows = examine()
    _print(rows, as_json, _table(rows, ["what", "state", "note"]))


@app.command()
def export(
    folder: Path,
    kind: Annotated[str, typer.Argument(help="card, parquet, tensorboard, mlflow, or what the method declares.")],
    out: Annotated[Path | None, typer.Option(help="File or folder to write.")] = None,
) -> None:
    """Take a run elsewhere: a model card, the unit table, a tracker's own format, or the trained model."""
    if kind in ("tensorboard", "mlflow"):
        from upright.experiment.sinks import replay

        typer.echo(str(replay(folder, kind, out)))
        return
    from upright.experiment.export import export_run

    typer.echo(str(export_run(folder, kind, out)))


@runs_app.command("prune")
def runs_prune(folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs")) -> None:
    """Delete the checkpoints of finished runs; results stay."""
    from upright.experiment.folders import prune

    freed = prune(folder)
    typer.echo(f"{len(freed)} runs, {sum(freed.values()) / 2**20:.1f} MiB freed")


@data_app.command("list")
def data_list(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the catalogue and what of it is here."""
    from upright.data.catalogue import overview

    rows = overview(data_dir)
    _print(rows, as_json, _table(rows, ["name", "state", "MB", "licence"]))


@data_app.command("info")
def data_info(name: str, as_json: Json = False) -> None:
    """Describe one data set: source, licence, size, checksums."""
    from upright.data.catalogue import facts_of

    facts = facts_of(name)
    _print(facts, as_json, "\n".join(f"{key}: {value}" for key, value in facts.items()))


@data_app.command("fetch")
def data_fetch(name: str, data_dir: DataDir = None) -> None:
    """Put a data set into the cache, checked by its checksums."""
    from upright.data.catalogue import fetch

    typer.echo(str(fetch(name, data_dir)))


@data_app.command("verify")
def data_verify(name: str, data_dir: DataDir = None) -> None:
    """Compare the files that are here with the catalogue's checksums."""
    from upright.data.catalogue import verify

    problems = verify(name, data_dir)
    typer.echo("\n".join(problems) or f"{name}: every file matches")
    if problems:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; a person never sees a bare traceback."""
    understood = logging.getLogger("upright.data")  # a line of each table that is read
    understood.addHandler(logging.StreamHandler())
    understood.setLevel(logging.INFO)
    try:
        sys.exit(app(standalone_mode=False))
    except (click.ClickException, InputError) as error:
        sys.exit(explain(error))
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("UPRIGHT_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename:
            got, todo = f"{error.filename}: {error.strerror}", "name another place, or see to its rights and room"
            typer.echo(f"error: {InputError(got, 'what can be read and written', todo)}", err=True)
            sys.exit(2)
        typer.echo(
            f"internal error: {type(error).__name__}: {error}\n"
            "  this is a defect of upright, not of your input; a run folder keeps the traceback\n"
            "  to do:    set UPRIGHT_DEBUG=1 to see it, and report it",
            err=True,
        )
        sys.exit(3)
