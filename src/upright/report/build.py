"""Building pages: sections in their order, one template, one file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2

from upright.contract import InputError
from upright.experiment.registry import declared_of
from upright.report import sections
from upright.report.parts import Grid, Image, Link, Page, Prose, Section
from upright.report.plots import Canvas
from upright.report.read import View, read_folder
from upright.report.text import MINUS, NARROW, plural, shorten

MOST_PICTURES = 3_000_000  # bytes
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
    """Return the page of one folder; refuse one whose pictures would make it too large to send."""
    page = Page(view.kind, page_title(view), over_line(view), sections.report_sections(view, Canvas()))
    size = sum(block.size for section in page.sections for block in section.blocks if isinstance(block, Image))
    if size > MOST_PICTURES:
        got = f"pictures of {size:,} bytes in one page"
        raise InputError(got, f"at most {MOST_PICTURES:,}", "declare fewer, or make them smaller")
    return page


def page_title(view: View) -> str:
    """Return method and data; an audit's title names what was audited already."""
    data, about = view.data.get("name"), view.data.get("about")
    on = f"{data}, {about}" if about else data
    return f"{view.title} on {on}" if data and view.kind != "audit" else view.title


def over_line(view: View) -> str:
    """Return the line above the title: what kind of page, over how much evidence."""
    words = {"run": "Report of a run", "comparison": "Report of a comparison", "audit": "Audit"}[view.kind]
    bits = [words]
    if view.seeds and view.kind != "audit":
        bits.append(plural(len(view.seeds), "seed"))
    if view.n_units is not None:
        bits.append(plural(view.n_units, view.unit_kind))
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
    parts = []
    for i, folder in enumerate(map(Path, folders)):
        view = read_folder(folder)
        page = folder / "report.html"
        if not page.is_file():
            write_page(report_page(view), page)
        _, figure = sections.headline(view, canvas)
        figures = [Grid((figure,))] if figure else []
        href = quote(Path(os.path.relpath(page.resolve(), target.resolve().parent)).as_posix())
        word = "Question:" if view.kind == "audit" else "Mends"
        about = [f"{over_line(view)}. {f'{word} {view.mends}.' if view.mends else ''}"]
        study = getattr(declared_of(view.method), "demo", {}).get("study")
        about += (
            [f"The published study has six seeds or more: results/{study}."] if study and len(view.seeds) < 6 else []
        )
        mends = Prose(about, muted=True)
        card, link = sections.verdict_card(view), Link(href, "Open the whole report")
        parts.append(Section(f"report-{i + 1}", page_title(view), [mends, card, *figures, link]))
    count = plural(len(parts), "report")
    return write_page(Page("demo", title, count, parts), target)


def target_of(out: Path | None, folder: Path, name: str) -> Path:
    """Return the file that `out` means: itself, a name inside it when it is a folder, else a name inside `folder`."""
    if out is None:
        return folder / name
    out = Path(out)
    if out.is_dir():
        return out / name
    if not out.parent.is_dir():
        accepted = "a file in an existing folder, or that folder"
        raise InputError(f"{out}: its folder does not exist", accepted, "make the folder first")
    if out.is_file() and b"<!doctype html" not in out.read_bytes()[:1_000].lower():
        raise InputError(f"{out} is there, and no page", "a page, or a new file", "name another file: nothing was lost")
    return out


def typeset(text: str) -> str:
    """Write a stored sentence with arrows, minus signs, and no line end inside a percentage."""
    text = text.replace("->", "→").replace(" %", f"{NARROW}%")
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text)


def write_page(page: Page, target: Path) -> Path:
    """Write a page atomically: a reader never meets half a file."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "arrows": typeset,
        "shorten": shorten,
        "by_ticks": re.compile(r"``?([^`]+)``?").split,
        "kind": lambda block: type(block).__name__,
    }
    files = resources.files("upright.report")
    template, style, script = (
        files.joinpath(name).read_text(encoding="utf-8") for name in ("template.html", "style.css", "script.js")
    )
    part = target.with_name(target.name + ".part")
    text = environment.from_string(template).render(page=page, style=style, script=script).lstrip()
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(target)
    return target
