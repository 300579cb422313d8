"""Several folders side by side: verdicts, levels, differences, what differs in their settings, what each cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from upright.contract import InputError
from upright.evidence.compute import said_again
from upright.report import record
from upright.report.build import target_of, write_page
from upright.report.evidence import FRONT, Part, draw_plane, forest, spots_of
from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Code,
    Column,
    Details,
    Figure,
    Grid,
    Key,
    Notes,
    Page,
    Prose,
    Section,
    Table,
    cell,
    numeric,
)
from upright.report.plots import Canvas, Point
from upright.report.read import ArmView, Difference, Level, View, read_folder
from upright.report.text import ROLES, flatten, interval, number, percent, plain, plural
from upright.report.verdict import banner
from upright.shell.registry import load_method

__all__ = ["build_compare"]

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
    canvas = Canvas()
    sections = [
        _verdicts(views, canvas),
        _levels(views, canvas),
        _differences(views),
        _settings(views),
        _deviations(views),
        _costs(views),
        record.limits(views[0], LIMITS),
    ]
    kinds = f"{number(len(views))} reports on {views[0].data.get('name', 'the same data')}"
    names = list(dict.fromkeys(view.title for view in views))
    title = " and ".join(names) if len(names) > 1 else f"{names[0]}, side by side"
    page = Page("compare", title, kinds, sections)
    return write_page(page, target_of(out, Path("."), "compare.html"))


def _judged(view: View, margins: Mapping[str, float] | None, budget: float | None) -> View:
    """Return a run with the verdict of other margins; an audit is made again with --margin."""
    if view.kind == "audit":
        todo = "make the audit again with --margin"
        raise InputError(f"{view.folder.name} is an audit", "runs and comparisons", todo)
    spec = load_method(view.method)
    found = said_again(view.evidence, spec.arms, primary=spec.primary, cost=spec.cost, title=spec.title,
                       margins=margins, budget=budget)  # fmt: skip
    return dataclasses.replace(view, evidence=found)


def _comparable(views: Sequence[View]) -> None:
    first = views[0]
    for other in views[1:]:
        for field, a, b in (
            ("data.name", first.data.get("name"), other.data.get("name")),
            ("data.fingerprint", first.data.get("fingerprint"), other.data.get("fingerprint")),
            ("evidence.unit_kind", first.unit_kind, other.unit_kind),
            ("evidence.confidence", first.confidence, other.confidence),
        ):
            if a != b:
                raise InputError(
                    f"{field} differs: {a!r} in {first.folder.name}, {b!r} in {other.folder.name}",
                    f"folders with the same {field}",
                    "compare runs of the same data, split and kind of unit",
                )


def _shown(view: View) -> list[ArmView]:
    """Remedy and baseline; the other arms stand in each report."""
    some = [arm for arm in view.arms if arm.role in {"remedy", "baseline"}]
    return sorted(some or view.arms, key=lambda arm: arm.role != "remedy")


def _key(i: int, arm: ArmView) -> Key:
    """One colour a folder; baselines are grey."""
    return Key(f"{LETTERS[i]}: {arm.title}", 0 if arm.role == "baseline" else 1 + i)


def _verdicts(views: Sequence[View], canvas: Canvas) -> Section:
    blocks: list[Block] = [
        banner(view, name=f"{LETTERS[i]}: {view.title} ({view.folder.name})") for i, view in enumerate(views)
    ]
    primary = next((view.primary for view in views if view.differences), "")
    parts: list[Part] = []
    for i, view in enumerate(views):
        rows = [row for row in view.differences if row.statistic == primary and math.isfinite(row.value)]
        parts.append((f"{LETTERS[i]}: {view.title}", view, rows, i + 1))
    if any(rows for _, _, rows, _ in parts):
        label = next(rows[0].label for _, _, rows, _ in parts if rows)
        reading = (
            f"Each remedy minus each of its own arms, with paired {percent(views[0].confidence)} intervals.",
            "Remedies of two reports are not paired with each other: overlapping intervals settle nothing, and "
            "intervals that do not overlap are a hint, not a test.",
        )
        blocks.append(Grid((forest(canvas, label, parts, reading, named=True),)))
    return Section("verdict", "Verdicts", blocks)


def _levels(views: Sequence[View], canvas: Canvas) -> Section:
    keyed: dict[tuple[str, str | None], dict[tuple[int, str], Level]] = {}
    for i, view in enumerate(views):
        for row in view.levels:
            keyed.setdefault((row.statistic, row.group), {})[(i, row.arm)] = row
    arms = [(i, arm) for i, view in enumerate(views) for arm in _shown(view)]
    columns = [
        Column("Statistic"),
        *(Column(f"{LETTERS[i]}: {arm.title}", numeric=True, key=_key(i, arm)) for i, arm in arms),
    ]
    body = []
    for found in keyed.values():
        line = [Cell(next(iter(found.values())).label)]
        for i, arm in arms:
            there = found.get((i, arm.name))
            line.append(cell(there.value, interval(there.low, there.high)) if there else DASH)
        body.append(line)
    blocks: list[Block] = []
    plane = _front(views, canvas)
    if plane:
        blocks.append(Grid((plane,)))
    blocks.append(Table(f"Levels with {percent(views[0].confidence)} intervals", columns, body))
    return Section("levels", "Levels", blocks)


def _front(views: Sequence[View], canvas: Canvas) -> Figure | None:
    first = next((view for view in views if view.cost_statistic), views[0])
    found = [
        (i, spot)
        for i, view in enumerate(views)
        for spot in spots_of(view, first.cost_statistic, first.primary)
        if spot.arm in _shown(view) and not spot.swept
    ]
    if len(found) < 2:
        return None
    x, y = found[0][1].x, found[0][1].y
    points, body, keys = [], [], []
    at: dict[tuple[float, float], list[str]] = {}
    for i, spot in found:
        at.setdefault((round(spot.x.value, 4), round(spot.y.value, 4)), []).append(LETTERS[i])
    for i, spot in found:
        key = _key(i, spot.arm)
        # where points coincide one label names them all
        text = ", ".join(dict.fromkeys(at.pop((round(spot.x.value, 4), round(spot.y.value, 4)), [])))
        across, up = ((row.low, row.high) for row in (spot.x, spot.y))
        points.append(Point(spot.x.value, spot.y.value, across, up, key.index, text=text))
        keys.append(key)
        body.append((Cell(key.title), *(cell(row.value, interval(row.low, row.high)) for row in (spot.x, spot.y))))
    svg = draw_plane(canvas, points, x, y)
    alt = f"{FRONT}. " + "; ".join(f"{r[0].text}: {x.label} {r[1].text}, {y.label} {r[2].text}" for r in body)
    table = Table(FRONT, [Column("Arm"), *numeric(x.label, y.label)], body)
    return Figure(FRONT, svg, alt, table, keys, ("Where crosses overlap, the order is not established.",))


def _differences(views: Sequence[View]) -> Section:
    names = {row.statistic for view in views for row in view.differences}
    deciding = {name for view in views for name in (view.primary, view.cost_statistic) if name}
    first, rest = _difference_table(views, names & deciding), _difference_table(views, names - deciding)
    if not first.rows:
        text = "These folders hold levels only; nothing was compared inside them."
        return Section("differences", "Differences", [Prose([text], muted=True)])
    blocks: list[Block] = [first]
    if rest.rows:
        blocks.append(Details(f"The other {len(rest.rows)} differences", [rest]))
    return Section("differences", "Differences", blocks)


def _difference_table(views: Sequence[View], names: Set[str]) -> Table:
    keyed: dict[tuple[str, str, str], dict[int, Difference]] = {}
    for i, view in enumerate(views):
        for row in view.differences:
            if row.statistic in names:
                keyed.setdefault((row.label, row.role, view.arm_title(row.against)), {})[i] = row
    body = []
    for (label, role, title), found in keyed.items():
        line = [Cell(label), Cell(title, ROLES.get(role, role))]
        for i in range(len(views)):
            there = found.get(i)
            line.append(
                cell(there.value, interval(there.low, there.high, sign=True), sign=True, verdict=there.verdict)
                if there
                else DASH
            )
        body.append(line)
    columns = [Column("Statistic"), Column("Minus")]
    columns += [Column(f"{LETTERS[i]}: {view.title}", numeric=True) for i, view in enumerate(views)]
    return Table("Each remedy minus its own controls", columns, body)


# -- what differs --------------------------------------------------------------------------------------------------


def _settings(views: Sequence[View]) -> Section:
    configs = [_first(view, "config") for view in views]
    resolved = [flatten(config.get("resolved") or {}) | {"preset": config.get("preset")} for config in configs]
    blocks: list[Block] = []
    if any(configs):
        blocks.append(_diff("Settings that differ", views, resolved, "All settings are the same."))
    versions = []
    for view in views:
        env = _first(view, "status").get("environment")
        env = env if isinstance(env, Mapping) else {}
        packages = env.get("packages")
        versions.append(
            {
                "python": env.get("python"),
                "platform": env.get("platform"),
                **(packages if isinstance(packages, Mapping) else {}),
            }
        )
    blocks.append(_diff("Versions that differ", views, versions, "All recorded versions are the same."))
    seeds = [{"seeds": ", ".join(map(str, view.seeds)), "draws": view.evidence.get("draws")} for view in views]
    blocks.append(_diff("Evidence that differs", views, seeds, "Same seeds, same number of bootstrap draws."))
    return Section("differs", "What differs", blocks)


def _first(view: View, name: str) -> Mapping[str, Any]:
    return next((getattr(run, name) for run in view.runs if getattr(run, name)), {})


def _diff(caption: str, views: Sequence[View], sides: Sequence[Mapping[str, Any]], same: str) -> Block:
    keys = dict.fromkeys(key for side in sides for key in side)
    missing = object()
    body = []
    for key in keys:
        values = [side.get(key, missing) for side in sides]
        if any(value != values[0] for value in values):
            body.append([Cell(key, code=True), *(Cell("–" if v is missing else plain(v), code=True) for v in values)])
    if not body:
        return Prose([same], muted=True)
    columns = [Column(""), *(Column(f"{LETTERS[i]}: {view.title}") for i, view in enumerate(views))]
    return Table(caption, columns, body, False)


def _deviations(views: Sequence[View]) -> Section:
    blocks: list[Block] = []
    for i, view in enumerate(views):
        items = view.deviations or ("None in force.",)
        if i and tuple(items) == tuple(views[0].deviations or ("None in force.",)) and view.method == views[0].method:
            blocks.append(Prose([f"{LETTERS[i]}: the same as A."], muted=True))
        else:
            blocks.append(Notes(items, title=f"{LETTERS[i]}: {view.title}"))
    return Section("deviations", "Deviations in force", blocks)


def _costs(views: Sequence[View]) -> Section:
    sides = [dict(record.costs(view.runs)) for view in views]
    names = list(dict.fromkeys(name for side in sides for name in side))
    blocks: list[Block] = []
    if names:
        body = [[Cell(name), *(Cell(side.get(name, "–")) for side in sides)] for name in names]
        columns = [Column("Cost"), *(Column(f"{LETTERS[i]}: {view.title}") for i, view in enumerate(views))]
        blocks.append(Table("Cost of all arms and seeds", columns, body, False))
    else:
        blocks.append(Prose(["No cost is recorded in these folders."], muted=True))
    commands = [str(_first(view, "status").get("command") or "") for view in views]
    lines = [f"# {LETTERS[i]}\n{command}" for i, command in enumerate(commands) if command]
    if lines:
        blocks.append(Code("\n".join(lines)))
    return Section("costs", "Cost, and how to repeat it", blocks, "Cost")
