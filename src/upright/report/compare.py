"""Several folders side by side: what differs between them, which is better by which line, then every number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upright import declare
from upright.contract import InputError
from upright.evidence.compute import said_again
from upright.evidence.records import Difference, Level
from upright.experiment.registry import load_method
from upright.experiment.summary import Evidence
from upright.report import sections
from upright.report.build import target_of, write_page
from upright.report.kinds import draw
from upright.report.parts import Block, Cell, Code, Column, Details, Grid, Notes, Page, Prose, Section, Table
from upright.report.plots import Canvas
from upright.report.read import ArmView, View, read_folder
from upright.report.text import flatten, number, plain, plural

__all__ = ["build_compare"]

MOST_OPEN = 12  # settings that differ; the rest is folded
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LIMITS = (
    "Two reports side by side are not one experiment: what else differs between them stands under “What differs”.",
)


def build_compare(
    folders: Sequence[Path], out: Path, *, margins: Mapping[str, float] | None = None, budget: float | None = None
) -> Path:
    """Write a page that sets folders side by side.

    Parameters
    ----------
    folders : sequence of Path
        Two to 26 run, comparison or audit folders about the same data and kind of unit.
    out : Path
        File, or existing folder in which to write ``compare.html``.
    margins, budget : optional
        Smallest changes that matter, by metric with '' for the statistic that decides, and what may be spent: verdicts
        are given again by these.

    Raises
    ------
    InputError
        When the folders are not comparable; the message names the field that differs.
    """
    if not 2 <= len(folders) <= len(LETTERS):
        raise InputError(
            f"{plural(len(folders), 'folder')} to compare",
            f"2 to {len(LETTERS)}",
            "name the folders to set side by side",
        )
    views = [read_folder(Path(folder)) for folder in folders]
    _comparable(views)
    if margins or budget is not None:
        views = [_judged(view, margins, budget) for view in views]
    canvas, joined = Canvas(), _joined(views)
    parts = [
        _differs(views),
        _verdicts(views, joined, canvas),
        *(dataclasses.replace(part, folded=True) for part in (sections.every_number(joined), _record(views))),
    ]
    on = dict.fromkeys(str(view.data.get("name", "the same data")) for view in views)
    kinds = f"{number(len(views))} reports on {' and '.join(on)}"
    names = list(dict.fromkeys(view.title for view in views))
    title = " and ".join(names) if len(names) > 1 else f"{names[0]}, side by side"
    page = Page("compare", title, kinds, parts)
    return write_page(page, target_of(out, Path("."), "compare.html"))


def _judged(view: View, margins: Mapping[str, float] | None, budget: float | None) -> View:
    """Return a run with the verdict of other margins; an audit is made again with --margin."""
    if view.kind == "audit":
        todo = "make the audit again with --margin"
        raise InputError(f"{view.folder.name} is an audit", "runs and comparisons", todo)
    spec = load_method(view.method).under(view.config.get("resolved", {}).get("task", {}))
    found = said_again(
        view.evidence.row(),
        spec.arms,
        primary=spec.primary,
        cost=spec.cost,
        title=spec.title,
        margins=margins,
        budget=budget,
    )
    return dataclasses.replace(view, evidence=Evidence.read(found))


def _comparable(views: Sequence[View]) -> None:
    first = views[0]
    for other in views[1:]:
        alike = (
            first.kind == other.kind == "audit" and first.method == other.method
        )  # of other files, such as a model's
        for field, a, b in (
            ("data.name", first.data.get("name"), other.data.get("name")),
            ("data.fingerprint", first.data.get("fingerprint"), other.data.get("fingerprint")),
            ("evidence.unit_kind", first.unit_kind, other.unit_kind),
            ("evidence.confidence", first.confidence, other.confidence),
        ):
            if a != b and not (alike and field.startswith("data")):
                raise InputError(
                    f"{field} differs: {a!r} in {first.folder.name}, {b!r} in {other.folder.name}",
                    f"folders with the same {field}",
                    "compare runs of the same data, split and kind of unit",
                )


def _joined(views: Sequence[View]) -> View:
    """Return one view of the remedies and baselines of all folders, a colour a folder and grey for baselines."""
    arms, levels, differences = list[ArmView](), list[Level](), list[Difference]()
    for i, view in enumerate(views):
        own = {arm.name: f"{LETTERS[i]}/{arm.name}" for arm in _shown(view)}
        for arm in _shown(view):
            index, title = 0 if arm.role == "baseline" else 1 + i, f"{LETTERS[i]}: {arm.title}"
            arms.append(ArmView(name=own[arm.name], title=title, role=arm.role, index=index))
        levels += [dataclasses.replace(row, arm=own[row.arm]) for row in view.levels if row.arm in own]
        differences += [
            dataclasses.replace(row, arm=own[row.arm], against=own[row.against])
            for row in view.differences
            if row.against in own and row.arm in own
        ]
    first = next((view for view in views if view.cost_statistic), views[0])
    evidence = dataclasses.replace(first.evidence, levels=tuple(levels), differences=tuple(differences))
    return dataclasses.replace(first, arms=tuple(arms), evidence=evidence, swept=())


def _shown(view: View) -> list[ArmView]:
    """Remedy and baseline; the other arms stand in each report."""
    some = [arm for arm in view.arms if arm.role in {"remedy", "baseline"}]
    return sorted(some or view.arms, key=lambda arm: arm.role != "remedy")


def _heads(views: Sequence[View]) -> list[Column]:
    return [Column(f"{LETTERS[i]}: {view.title}", numeric=True) for i, view in enumerate(views)]


# -- what differs, and which is better ------------------------------------------------------------------------------


def _differs(views: Sequence[View]) -> Section:
    sides = [
        flatten(view.config.get("resolved") or {})
        | flatten({"data": {k: v for k, v in view.data.items() if k != "fingerprint"}} if view.kind == "audit" else {})
        | {
            "preset": view.config.get("preset"),
            "seeds": ", ".join(map(str, view.seeds)),
            "draws": view.evidence.facts.get("draws"),
        }
        for view in views
    ]
    same = "Their settings, seeds and numbers of draws are the same."
    return Section("differs", "What differs", _diff("Settings and evidence that differ", views, sides, same))


def _diff(caption: str, views: Sequence[View], sides: Sequence[Mapping[str, Any]], same: str) -> list[Block]:
    keys = dict.fromkeys(key for side in sides for key in side)
    missing = object()
    body = []
    for key in keys:
        values = [side.get(key, missing) for side in sides]
        if any(value != values[0] for value in values):
            body.append([Cell(key, code=True), *(Cell("–" if v is missing else plain(v), code=True) for v in values)])
    if not body:
        return [Prose([same], muted=True)]
    columns = [Column("Setting"), *(dataclasses.replace(c, numeric=False) for c in _heads(views))]
    first, rest = (Table(caption, columns, rows, False) for rows in (body[:MOST_OPEN], body[MOST_OPEN:]))
    return [first, *([Details(f"{plural(len(rest.rows), 'more setting')} that differ", [rest])] if rest.rows else [])]


def _verdicts(views: Sequence[View], joined: View, canvas: Canvas) -> Section:
    blocks: list[Block] = [_better(views)]
    plane = draw(declare.Front("What is mended, and what is paid for it"), joined, canvas)
    blocks += [Grid((plane,))] if plane else []
    blocks += [
        sections.verdict_card(view, f"{LETTERS[i]}: {view.title} ({view.folder.name})") for i, view in enumerate(views)
    ]
    return Section("verdict", "Which is better", blocks)


def _better(views: Sequence[View]) -> Table:
    """Return word, effect and price of each folder, and which one's point is better on each line."""
    first = next((view for view in views if view.primary), views[0])
    body = [[Cell("Word"), *(Cell("", tag=sections.word_tag(view)) for view in views), Cell("–")]]
    lines = [("What decides", first.primary), ("What is paid", first.cost_statistic)]
    means = [row.statistic for row in first.levels if row.name == "mean" and row.group is None]
    heads = [view.evidence.headline for view in views]
    if first.kind == "audit" and any(heads):
        cells = [Cell(f"{row.value:.3f}", row.label) if row else Cell("–") for row in heads]
        body.append([Cell("What decides"), *cells, Cell("–")])
    # what decides in an audit is its own largest pair; levels over all units are what two audits share
    for word, statistic in [("Level", one) for one in means] if first.kind == "audit" else lines:
        rows = [view.level(view.remedy.name, statistic) if view.remedy else None for view in views]
        if not statistic or not any(rows):
            continue
        label = next(row.label for row in rows if row)
        body.append([Cell(word, label), *(sections.level_cell(row) for row in rows), Cell(*_ranked(rows))])
    if len(body) == 1:
        body.append([Cell("Level"), *(Cell("–") for _ in views), Cell("see the levels below")])
    reading = [
        "Two reports are not paired with each other: overlapping intervals settle nothing, and intervals that do not "
        "overlap are a hint, not a test."
    ]
    return Table("Side by side", [Column("Line"), *_heads(views), Column("Better by its point")], body, False, reading)


def _ranked(rows: Sequence[Level | None]) -> tuple[str, str]:
    """Say whose point is better, and whether the intervals of the best two overlap."""
    known = [(i, row) for i, row in enumerate(rows) if row and math.isfinite(row.value)]
    better = known[0][1].better if known else "none"
    if len(known) < 2 or better == "none":
        return "–", ""
    (i, best), (_, other) = sorted(known, key=lambda x: x[1].value, reverse=better == "higher")[:2]
    if best.value == other.value:
        return "equal", ""
    apart = best.high < other.low or best.low > other.high
    return LETTERS[i], "intervals do not overlap" if apart else "intervals overlap"


def _record(views: Sequence[View]) -> Section:
    """Return versions, deviations, cost and commands."""
    versions = [flatten(view.status.get("environment") or {}) for view in views]
    blocks = _diff("Versions that differ", views, versions, "All recorded versions are the same.")
    for i, view in enumerate(views):
        alike = i > 0 and (view.method, view.deviations) == (views[0].method, views[0].deviations)
        shown = ("The same as A.",) if alike else view.deviations or ("None in force.",)
        blocks.append(Notes(shown, title=f"Deviations in force, {LETTERS[i]}: {view.title}"))
    sides = [dict(sections.costs(view.folders)) for view in views]
    names = list(dict.fromkeys(name for side in sides for name in side))
    if names:
        body = [[Cell(name), *(Cell(side.get(name, "–")) for side in sides)] for name in names]
        blocks.append(Table("Cost of all arms and seeds", [Column("Cost"), *_heads(views)], body, False))
    lines = [f"# {LETTERS[i]}\n{v.status['command']}" for i, v in enumerate(views) if v.status.get("command")]
    blocks += [Code("\n".join(lines))] if lines else []
    return Section("auditor", "For the auditor", [*blocks, sections.limits(views[0], LIMITS)])
