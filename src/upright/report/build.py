"""Building pages: sections in their order, one template, one file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from upright.contract import InputError
from upright.report import evidence, record, verdict
from upright.report.panels import limits_for, panel_for, shows_front
from upright.report.parts import Block, Grid, Link, Page, Prose, Section, Verdict
from upright.report.plots import Canvas
from upright.report.read import View, read_folder
from upright.report.text import plural

__all__ = ["build_demo", "build_report", "over_line", "target_of", "write_page"]


def build_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run, a comparison or an audit.

    Parameters
    ----------
    folder : Path
        Holds ``summary.json`` (a run; an audit when its ``kind`` is ``audit``) or ``comparison.json``.
    out : Path, optional
        File or existing folder to write to; by default ``report.html`` inside the folder.

    Returns
    -------
    Path
        The file: one page that loads nothing.

    Raises
    ------
    InputError
        When the folder is no finished run, comparison or audit.
    """
    view = read_folder(Path(folder))
    return write_page(report_page(view), target_of(out, Path(folder), "report.html"))


def report_page(view: View) -> Page:
    """Return the page of one folder: verdict first, limits last."""
    canvas = Canvas()
    parts = [verdict.verdict(view, canvas), record.asked(view)]
    panel = panel_for(view.method)
    blocks = panel(view, canvas) if panel else []
    if blocks:
        named = "What is shown" if view.kind == "audit" else f"What {view.title} did"
        parts.append(Section("panel", named, blocks, named if view.kind == "audit" else view.title))
    parts.append(evidence.units(view, canvas, plane=not (blocks and shows_front(view.method))))
    curves = record.training(view, canvas)
    if curves:
        parts.append(curves)
    parts += [record.conditions(view), verdict.not_significant(view), record.configuration(view)]
    if view.kind != "audit" or view.deviations:
        parts.append(record.deviations(view))
    parts += [record.environment(view), record.repeat(view), record.limits(view, limits_for(view.method))]
    return Page(view.kind, page_title(view), over_line(view), parts)


def page_title(view: View) -> str:
    """Return method and data; an audit's title names what was audited already."""
    data = view.data.get("name")
    return f"{view.title} on {data}" if data and view.kind != "audit" else view.title


def over_line(view: View) -> str:
    """Return the line above the title: what kind of page, over how much evidence."""
    words = {"run": "Report of a run", "comparison": "Report of a comparison", "audit": "Audit"}[view.kind]
    bits = [words]
    if view.seeds and view.kind != "audit":
        bits.append(plural(len(view.seeds), "seed"))
    n = view.evidence.get("n_units")
    if isinstance(n, int):
        bits.append(plural(n, view.unit_kind))
    return " · ".join(bits)


def build_demo(folders: Sequence[Path], out: Path, title: str) -> Path:
    """Write an index of several reports: the verdict and the headline plot of each, with a link.

    Parameters
    ----------
    folders : sequence of Path
        Run, comparison or audit folders; a report that is missing is built.
    out : Path
        File, or existing folder in which to write ``index.html``.
    title : str
        Of the page.

    Raises
    ------
    InputError
        Without a folder, or when one is no finished run, comparison or audit.
    """
    if not folders:
        raise InputError("no folder", "at least one run, comparison or audit folder", "name the folders to show")
    target = target_of(out, Path("."), "index.html")
    canvas = Canvas()
    sections = []
    for i, folder in enumerate(map(Path, folders)):
        view = read_folder(folder)
        page = folder / "report.html"
        if not page.is_file():
            write_page(report_page(view), page)
        stored = verdict.verdict(view, canvas).blocks
        banner = next(block for block in stored if isinstance(block, Verdict))
        figures: list[Block] = [block for block in stored if isinstance(block, Grid)]
        href = quote(Path(os.path.relpath(page.resolve(), target.resolve().parent)).as_posix())
        word = "Question:" if view.kind == "audit" else "Mends"
        mends = [Prose([f"{over_line(view)}. {f'{word} {view.mends}.' if view.mends else ''}"], muted=True)]
        sections.append(
            Section(
                f"report-{i + 1}", page_title(view), [*mends, banner, *figures, Link(href, "Open the whole report")]
            )
        )
    count = plural(len(sections), "report")
    return write_page(Page("demo", title, count, sections), target)


def target_of(out: Path | None, folder: Path, name: str) -> Path:
    """Return the file that `out` means: itself, a name inside it when it is a folder, else a name inside `folder`."""
    if out is None:
        return folder / name
    out = Path(out)
    if out.is_dir():
        return out / name
    if not out.parent.is_dir():
        raise InputError(
            f"{out}: its folder does not exist", "a file in an existing folder, or that folder", "make the folder first"
        )
    return out


def write_page(page: Page, target: Path) -> Path:
    """Write a page atomically: a reader never meets half a file."""
    files = resources.files("upright.report")
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # our own files, so they are inlined as they are; a browser ends a script or a style at its closing tag
    style, script = (Markup(files.joinpath(name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    text = environment.get_template("template.html").render(page=page, style=style, script=script)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return target
