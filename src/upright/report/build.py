"""Building pages: sections in their order, one template, one file."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from upright.contract import InputError
from upright.experiment.registry import declared_of
from upright.report import sections
from upright.report.parts import Block, Figure, Grid, Image, Link, Page, Prose, Section
from upright.report.plots import Canvas
from upright.report.read import View, read_folder
from upright.report.text import MINUS, NARROW, plural, shorten

DEFINITIONS = {
    "Effect": "the remedy minus no remedy on what decides: the whole 95 % interval counts, not the point",
    "Due to the method": "the same comparison with each trivial remedy and placebo",
    "Price": "the remedy minus no remedy on what may not get worse, beside the budget",
    "Rivals": "other remedies, compared on effect and price at once",
    "Word": "the verdict; docs/design/evidence.md says how it is found",
    "Margin": "the smallest change that matters",
    "p, adjusted": "chance of as much without any effect, adjusted for everything that was compared",
    "Smallest detectable": "what four of five such tables would have shown",
    "By chance": "95 % of what permuted labels show",
}
MOST_LETTERS, LONGEST = 160, 60  # of a name, of a word in a sentence
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
    """Return the page of one folder: the verdict and who gets what are open, the rest is folded."""
    canvas, declared = Canvas(), declared_for(view)
    shown = [sections.first_screen(view, canvas, declared), sections.who(view, canvas, declared)]
    parts = [part for part in shown if part] + sections.folds(view, canvas, declared)
    page = Page(view.kind, page_title(view), over_line(view), parts)
    size = sum(picture.size for picture in pictures_of(page))
    if size > MOST_PICTURES:
        got = f"pictures of {size:,} bytes in one page"
        raise InputError(got, f"at most {MOST_PICTURES:,}", "declare fewer, or make them smaller")
    return page


def pictures_of(page: Page) -> list[Image]:
    """Return the pictures of a page."""
    return [block for section in page.sections for block in section.blocks if isinstance(block, Image)]


def declared_for(view: View) -> sections.Declared:
    """Return what the folder's method or audit declares; nothing where it is not installed."""
    spec = declared_of(view.method)
    return sections.Declared(spec.report, spec.limits) if spec else sections.Declared()


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
    parts = []
    for i, folder in enumerate(map(Path, folders)):
        view = read_folder(folder)
        page = folder / "report.html"
        if not page.is_file():
            write_page(report_page(view), page)
        figure = sections.headline(view, canvas, declared_for(view))
        figures: list[Block] = [Grid((figure,))] if isinstance(figure, Figure) else []
        href = quote(Path(os.path.relpath(page.resolve(), target.resolve().parent)).as_posix())
        word = "Question:" if view.kind == "audit" else "Mends"
        mends = Prose([f"{over_line(view)}. {f'{word} {view.mends}.' if view.mends else ''}"], muted=True)
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


def typeset(text: str) -> Markup | str:
    """Write a stored sentence with arrows, minus signs, and no line end inside a percentage."""
    text = text.replace("->", "→").replace(" %", f"{NARROW}%")
    return cut_words(re.sub(r"(?<![\w-])-(?=\d)", MINUS, text))


def cut(text: str, most: int = MOST_LETTERS) -> Markup | str:
    """Shorten a long name, with the whole in the hover text."""
    return text if len(text) <= most else Markup('<span title="{}">{}</span>').format(text, shorten(text, most))


def cut_words(text: str) -> Markup | str:
    """Shorten the long words of a sentence, with the whole in the hover text; what stands in back-ticks is code."""
    if "`" in text:
        parts = re.split(r"``?([^`]+)``?", text)
        return Markup("").join(Markup("<code>{}</code>").format(x) if i % 2 else x for i, x in enumerate(parts))
    if all(len(word) <= LONGEST for word in text.split()):
        return text
    return Markup(" ").join(cut(word, LONGEST) for word in text.split())


def define(term: str) -> Markup | str:
    """Give a term its definition as hover text."""
    if term not in DEFINITIONS:
        return cut(term)
    return Markup('<abbr title="{}">{}</abbr>').format(DEFINITIONS[term], term)


def write_page(page: Page, target: Path) -> Path:
    """Write a page atomically: a reader never meets half a file."""
    files = resources.files("upright.report")
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"arrows": typeset, "cut": cut, "words": cut_words, "define": define}
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
