"""Sections of a page: the verdict with its arms and one plot, who gets what, and what is folded below them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upright import declare
from upright.evidence.records import Difference, Level
from upright.experiment.notes import unfinished
from upright.report.kinds import (
    arm_cell,
    arm_key,
    changes_of,
    draw,
    intervals_figure,
    levels_of,
    panel,
    spread,
    spread_cell,
)
from upright.report.parts import (
    DASH,
    Block,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Figure,
    Grid,
    Notes,
    Prose,
    Section,
    Table,
    Tag,
    Verdict,
    cell,
    numeric,
    tag,
)
from upright.report.plots import Canvas
from upright.report.read import ArmView, RunRecord, View
from upright.report.text import (
    ROLES,
    attack_title,
    duration,
    flatten,
    lower,
    metric_title,
    number,
    percent,
    plain,
    plural,
    shorten,
)

__all__ = ["costs", "every_number", "headline", "level_cell", "limits", "report_sections", "verdict_card", "word_tag"]

LEAKS = ("leakage", "worst_leakage")
MOST_COMPARED = 6  # rows of an audit's first table
WORST = 10
DATA_WORDS = {"name": "Data", "train": "Training rows", "valid": "Validation rows", "test": "Test rows"}
LINES = {
    "effect": "Effect",
    "due": "Due to the method",
    "price": "Price",
    "rivals": "Rivals",
    "own": "Rivals by themselves",
    "gaps": "The gap itself",
    "clients": "Inside clients",
    "kept": "What is kept",
}


def report_sections(view: View, canvas: Canvas) -> list[Section]:
    """Return the sections of a report: the verdict and who gets what are open, the rest is folded."""
    first, figure = headline(view, canvas)
    table = _arms_table(view) if view.differences else _compared(view, MOST_COMPARED)
    beside: list[Block] = [block for block in (table, figure) if block]
    card: list[Block] = [verdict_card(view), *([Grid(beside, beside=True)] if beside else [])]
    shown = [Section("verdict", "Verdict", card), _who(view, canvas)]
    blocks = panel(view, canvas, [block for block in view.declared if block is not first])
    named = "What is shown" if view.kind == "audit" else f"What {view.title} did"
    folds = [Section("panel", named, blocks, named) if blocks else None, every_number(view), _training(view, canvas)]
    folds += [_conditions(view), _worst(view), _auditor(view)]
    return [*filter(None, shown), *(dataclasses.replace(fold, folded=True) for fold in folds if fold)]


# -- the verdict ------------------------------------------------------------------------------------------------------


def verdict_tag(view: View) -> Tag:
    """Return what the verdict is called, in its colour."""
    said = view.verdict
    word = str(said.get("word") or "measured")
    colour = str(said.get("colour") or ("open" if said.get("answer") == "not known yet" else ""))
    return dataclasses.replace(tag(word, colour), word=str(said.get("title") or word))


def verdict_card(view: View, name: str = "") -> Verdict:
    """Return the stored verdict as it is; nothing is judged here."""
    said = view.verdict
    lines: Mapping[str, Any] = said.get("lines") or {}
    sentence = str(said.get("sentence") or "This folder stores no verdict.")
    facts = [
        (title, str(lines[key]))
        for key, title in LINES.items()
        if lines.get(key) and str(lines[key]).rstrip(".") not in sentence
    ]
    facts += [(key.capitalize(), str(text)) for key, text in lines.items() if key not in LINES and key != "shown"]
    if view.warnings:
        facts.append(("Warnings", f"{len(view.warnings)}, see below"))
    return Verdict(verdict_tag(view), sentence, facts, [str(step) for step in said.get("next_steps") or ()], name)


def headline(view: View, canvas: Canvas) -> tuple[declare.Block | None, Figure | None]:
    """Return the first declared block that draws a figure, with it; else what decides."""
    for block in view.declared:
        found = draw(block, view, canvas)
        if isinstance(found, Figure):
            return block, found
    grouped = (levels_of(view, f"{name}=*") for name in _means_by_group(view))
    lines = changes_of(view, view.primary) or levels_of(view, view.primary) or next(grouped, [])
    return None, intervals_figure(view, canvas, lines, declare.Signed(lines[0].of)) if lines else None


def _means_by_group(view: View) -> list[str]:
    """Return the statistics that are means by group, those of what decides first."""
    names = dict.fromkeys(row.statistic for row in view.levels if row.name == "mean" and row.group is not None)
    deciding = f"mean:{view.primary.partition('=')[0].partition(':')[2]}"
    return sorted(names, key=lambda name: name != deciding)


def _arms_table(view: View) -> Table:
    """Return what decides and what it costs for each arm, and how it stands beside no remedy and beside the remedy."""
    alone = {row.arm: row for row in view.evidence.alone}
    own = {row.against: row for row in view.differences if row.statistic == view.primary}
    remedy = next((row.arm for row in own.values()), "")
    none = next((row for row in own.values() if row.role == "baseline"), None)
    beside, body = view.verdict.get("beside") or {}, []
    primary, cost = (
        next((row.label for row in view.levels if row.text == s), s) for s in (view.primary, view.cost_statistic)
    )
    for arm in view.arms:
        effect, paid = view.level(arm.name, view.primary), view.level(arm.name, view.cost_statistic)
        change = none if arm.name == remedy else alone.get(arm.name)
        gained = tag(change.verdict) if change else None
        word = tag(str(beside[arm.name])) if arm.name in beside else None
        word = word_tag(view) if arm.name == remedy else word
        body.append(
            (
                arm_cell(arm, role=True),
                dataclasses.replace(level_cell(effect), tag=gained),
                level_cell(paid),
                Cell("", tag=word) if word else Cell("–"),
            )
        )
    title = view.arm(remedy).title
    columns = [Column("Arm"), Column(shorten(primary, 30), "tag: against no remedy", True)]
    columns += [Column(shorten(cost, 30), numeric=True), Column(f"{title} against it")]
    size = f"{plural(len(view.seeds), 'seed')} and {plural(view.n_units or 0, view.unit_kind)}"
    reading = [f"{percent(view.confidence)} intervals over {size}."]
    return Table("Arms: what decides, and what it costs", columns, body, reading=reading)


def word_tag(view: View) -> Tag:
    """Return the bare word, in the colour of the answer."""
    word = str(view.verdict.get("word"))
    lacking = "incomplete, so far: " if view.verdict.get("incomplete") else ""
    return dataclasses.replace(verdict_tag(view), word=lacking + word)


def level_cell(row: Level | None) -> Cell:
    """Return a level with its interval; a dash where there is none."""
    return cell(row.value, row.low, row.high) if row else DASH


def _compared(view: View, most: int | None = None) -> Table | None:
    """Return what an audit compared with chance, shown or not; what decides first."""
    headline = view.evidence.headline
    deciding = headline.name if headline else ""
    rows = sorted((row for row in view.levels if math.isfinite(row.p)), key=lambda row: row.name != deciding)
    if not rows:
        return None
    body = [
        (
            Cell(label_of(row)),
            level_cell(row),
            Cell(
                "",
                f"p = {number(row.p, 4)}"
                + (f"; smallest detectable {number(row.smallest_detectable)}" * (not row.shown)),
                tag=Tag("beyond chance", "bad") if row.shown else Tag("not told from chance", "open"),
            ),
        )
        for row in rows[:most]
    ]
    columns = [Column("Compared"), *numeric("Value"), Column("Against chance", "p is adjusted for all")]
    rest = [f"The first {most} of {len(rows)}; all stand under “Every number”."] if most and len(rows) > most else []
    reading = [f"{percent(view.confidence)} intervals, adjusted for everything that was compared.", *rest]
    return Table("What was compared with chance", columns, body, reading=reading)


# -- who gets what ----------------------------------------------------------------------------------------------------


def _who(view: View, canvas: Canvas) -> Section | None:
    """Return means by group and of the worst tenth, whatever decides."""
    beside_the_verdict = any(block.of.startswith("mean:*") for block in view.declared[:1])
    figures = []
    for name in [] if beside_the_verdict else _means_by_group(view)[:2]:
        lines = levels_of(view, f"{name}=*")
        groups = {line.group for line in lines}
        kind = declare.Dumbbell if len(groups) <= 3 and len(view.arms) > 1 else declare.Intervals
        title = f"{lines[0].of} by {name.rpartition(':')[2].replace('_', ' ')}"
        figures.append(intervals_figure(view, canvas, lines, kind(title)))
    for name in list(dict.fromkeys(row.statistic for row in view.levels if row.name == "worst_decile"))[:1]:
        lines = levels_of(view, name)
        reading = [f"The tenth of {view.unit_kind}s with the lowest values, whatever their group."]
        figures.append(intervals_figure(view, canvas, lines, declare.Intervals(lines[0].of, reading=reading)))
    size = f": {number(view.n_units)} {view.unit_kind}s" if view.n_units is not None else ""
    title = f"Who gets what{size}"
    return Section("units", title, [Grid(figures)], "Who gets what") if figures else None


# -- folds ------------------------------------------------------------------------------------------------------------


def label_of(row: Level | Difference) -> str:
    """Return a row's label with an attack in words."""
    attack = (row.group or "") if isinstance(row, Level) else row.statistic.partition("=")[2]
    plain_ = row.label.removesuffix(attack)
    return plain_ + attack_title(attack) if _is_single(row) and plain_ != row.label else row.label


def _is_single(row: Level | Difference) -> bool:
    """Return whether a row is one attack of several, not the strongest of them."""
    cell_of_it = row.group is not None if isinstance(row, Level) else "=" in row.statistic
    return row.statistic.split(":", 1)[0] in LEAKS and cell_of_it


def every_number(view: View) -> Section:
    """Return every level, difference and total, and in one line what is undefined for every arm."""
    blocks: list[Block] = [Prose([_resampling(view)])]
    lost = [row.label for row in view.levels if math.isnan(row.value)]
    known = {row.label for row in view.levels if math.isfinite(row.value)}
    if nowhere := [label for label in dict.fromkeys(lost) if label not in known]:
        blocks.append(Prose([f"Undefined for every arm: {'; '.join(nowhere)}."], muted=True))
    if not view.differences and (found := _compared(view)):
        blocks.append(found)
    deciding, singles = (
        [table for table in (_level_table(view, single), _difference_table(view, single)) if table]
        for single in (False, True)
    )
    blocks += deciding
    if view.differences:
        words = [row.verdict for row in view.differences]
        counted = f"{number(words.count('undecided'))} are undecided and {number(words.count('none'))} are none that"
        text = f"Of {plural(len(words), 'difference')}, {counted} matters."
        blocks.append(Prose([f"{text} An undecided difference is not evidence of equality."]))
    if singles:  # a dozen attacks of two statistics would bury the handful of rows that decide
        blocks.append(Details("Every attack by itself", singles))
    if totals := _totals(view):
        blocks.append(totals)
    return Section("numbers", "Every number", blocks)


def _resampling(view: View) -> str:
    e, text = view.evidence.facts, f"Every interval covers {percent(view.confidence)}."
    if view.kind == "audit":
        return f"{text} Those of what was compared are adjusted for all of it; docs/design/evidence.md says how."
    how = str(e.get("resampling") or "").strip().rstrip(".")
    drawn = f" It comes from {number(e['draws'])} bootstrap draws." if e.get("draws") else ""
    return f"{text} {how[:1].upper()}{how[1:]}." if how else text + drawn


def _table_by_arm(
    view: View,
    caption: str,
    head: str,
    rows: Sequence[tuple[Cell, Mapping[str, Cell]]],
    column: Callable[[ArmView], Column] = lambda arm: Column(arm.title, numeric=True, key=arm_key(arm)),
) -> Table | None:
    """Return a table of rows, each a head and a cell by arm, with a column for each arm that has any."""
    arms = [arm for arm in view.arms if any(arm.name in cells for _, cells in rows)]
    body = [[first, *(cells.get(arm.name, Cell("", numeric=True)) for arm in arms)] for first, cells in rows]
    return Table(caption, [Column(head), *map(column, arms)], body) if body else None


def _level_table(view: View, single: bool) -> Table | None:
    """Return a row for each statistic and group, a column for each arm."""
    keyed: dict[tuple[str, str | None], list[Level]] = {}
    for row in view.levels:
        if _is_single(row) == single:
            keyed.setdefault((row.statistic, row.group), []).append(row)
    rows = [
        (Cell(label_of(found[0]), _counted(found)), {row.arm: level_cell(row) for row in found})
        for found in keyed.values()
        if any(math.isfinite(row.value) for row in found)
    ]
    which = " of single attacks" if single else ""
    return _table_by_arm(view, f"Levels{which} with {percent(view.confidence)} intervals", "Statistic", rows)


def _counted(rows: Sequence[Level]) -> str:
    n, clusters, lost = (
        max((getattr(row, key) or 0 for row in rows), default=0) for key in ("n_units", "n_clusters", "n_undefined")
    )
    said = [f"n = {number(n)}"] * bool(n) + [f"{number(clusters)} clusters"] * bool(clusters)
    # who is not attacked has no score by design, so nothing is undefined
    said += [f"undefined for {number(lost)}"] * (lost > 0 and rows[0].name not in LEAKS)
    tops = [row.null.high for row in rows if row.null]
    return ", ".join(said) + (f"; up to {number(max(tops))} by chance" if tops else "")


def _difference_table(view: View, single: bool) -> Table | None:
    """Return a row for each statistic, a column for each control."""
    keyed: dict[tuple[str, str], list[Difference]] = {}
    for row in view.differences:
        if _is_single(row) == single and row.verdict != "undefined":
            keyed.setdefault((row.statistic, row.label), []).append(row)
    rows = []
    for found in keyed.values():
        first = found[0]
        small = f"{first.direction} is better; margin {number(first.margin, plain=True)}"
        cells = {x.against: cell(x.value, x.low, x.high, sign=True, verdict=x.verdict) for x in found}
        rows.append((Cell(label_of(first), small), cells))

    def column(arm: ArmView) -> Column:
        return Column(f"minus {lower(arm.title)}", ROLES.get(arm.role, arm.role), True, arm_key(arm))

    which = " of single attacks" if single else ""
    name = view.arm(view.differences[0].arm).title if rows else ""
    caption = f"Paired differences{which}: {name} minus each other arm"
    return _table_by_arm(view, caption, "Statistic", rows, column)


def _totals(view: View) -> Table | None:
    arms, rows = [arm for arm in view.arms if arm.totals], []
    for name in dict.fromkeys(name for arm in arms for name in arm.totals):
        rows.append((Cell(metric_title(name)), {arm.name: spread_cell(spread(arm.totals.get(name))) for arm in arms}))
    seeds = " (median and range over seeds)" if len(view.seeds) > 1 else ""
    return _table_by_arm(view, f"Quantities of the whole result, without interval{seeds}", "Quantity", rows)


def _training(view: View, canvas: Canvas) -> Section | None:
    """Return validation and loss by step for each arm."""
    keys = dict.fromkeys(key for arm in view.arms for row in arm.curves for key in row)
    names = [key for key in keys if key.startswith("valid/")][:2] + [key for key in keys if key == "loss"]
    figures = []
    for name in names:
        title = "Training loss" if name == "loss" else f"Validation {view.metric_title(name.removeprefix('valid/'))}"
        drawn = draw(declare.Curve(title, x="step", y=name), view, canvas)
        figures += [drawn] if isinstance(drawn, Figure) else []
    text = "A gain over a baseline that was still improving would say nothing, so the curves are kept."
    return Section("training", "Training curves", [Prose([text]), Grid(figures)]) if figures else None


def _conditions(view: View) -> Section | None:
    found = list(dict.fromkeys([*view.warnings, *_weaknesses(view)]))
    title = f"Conditions and warnings ({len(found)})"
    return Section("conditions", title, [Notes(found, "warn")], "Warnings") if found else None


def _weaknesses(view: View) -> list[str]:
    found = []
    for arm in view.arms:
        stopped, runs = unfinished(arm.notes)
        if stopped:
            at = f" in {stopped} of {runs} runs" if runs > 1 else ""
            found.append(
                f"{arm.title}: training reached its last epoch{at} while validation could still improve; not converged."
            )
    lost: dict[int, dict[str, None]] = {}
    for row in view.levels if view.kind != "audit" else ():  # an audit warns of them itself
        if row.name == "mean" and row.n_undefined and math.isfinite(row.value):
            lost.setdefault(row.n_undefined, {})[view.metric_title(row.metric)] = None
    for n, metrics in lost.items():
        found.append(
            f"Undefined for {plural(n, view.unit_kind)}, who are left out of the means and counted here: "
            f"{'; '.join(metrics)}."
        )
    if unread := sum(run.unread_lines for run in view.folders):
        found.append(f"{plural(unread, 'line')} of metrics.jsonl could not be read; the curves lack them.")
    read = {run.folder.name for run in view.folders}
    if missing := [place.name for place in map(Path, view.runs) if place.name not in read]:
        found.append(f"Not beside the comparison, so without curves, cost and settings here: {', '.join(missing)}.")
    return found


def _worst(view: View) -> Section | None:
    """Return the units that are served worst, by id; never of a study that was published, nor of records to forget."""
    metrics = [text.split(":")[1] for text in (view.primary, view.cost_statistic) if text.startswith("mean:")]
    metrics += [row.metric for row in view.levels if row.name == "mean" and row.group is None]
    arm = view.remedy
    published = view.kind != "audit" and not any(run.status for run in view.folders)
    if published or arm is None or view.table.has("by_set"):
        return None
    for metric in metrics:
        better = next((row.better for row in view.levels if row.metric == metric and row.name == "mean"), "higher")
        found = view.table.worst(arm.name, metric, lowest=better != "lower", most=WORST)
        if found:
            body = [(Cell(unit, code=True), cell(value)) for unit, value in found]
            title = f"The {len(found)} {view.unit_kind}s with the worst {view.metric_title(metric)}"
            columns = [Column(view.unit_kind.capitalize()), *numeric(view.metric_title(metric))]
            table = Table(title, columns, body, reading=[f"{arm.title}; means over seeds. Ids only."])
            return Section("worst", title, [table], "Worst units")
    return None


# -- for the auditor --------------------------------------------------------------------------------------------------


def _auditor(view: View) -> Section:
    """Return question, settings, environment, deviations, how to repeat it, and limits."""
    blocks: list[Block] = [Facts(_asked(view))]
    if len(view.arms) > 1 and view.kind != "audit":
        body = [
            (
                arm_cell(arm, arm.name),
                Cell(ROLES.get(arm.role, arm.role)),
                Cell("  ".join(f"{k}={plain(v)}" for k, v in flatten(arm.settings).items() if k), code=True),
            )
            for arm in view.arms
        ]
        text = "The arms are paired: same data in the same order, same initialisation, same named random streams."
        columns = (Column("Arm"), Column("Role"), Column("Settings"))
        blocks.append(Table("Arms of the experiment", columns, body, False, reading=[text]))
    blocks += [*_configuration(view), *_environment(view)]
    if view.deviations or view.kind != "audit":
        blocks.append(Notes(view.deviations or ["None in force."], title="Deviations from the paper in force"))
    return Section("auditor", "For the auditor", [*blocks, *_repeat(view), limits(view, view.limits)])


def _asked(view: View) -> list[tuple[str, str]]:
    facts = [("Method", view.title)] if view.kind != "audit" else []
    if view.mends:
        facts.append(("Mends" if view.kind != "audit" else "Question", view.mends))
    for key, value in view.data.items():
        if key not in ("fingerprint", "about") and value != 0 and not isinstance(value, Mapping | list):
            words = DATA_WORDS.get(key, key.replace("_", " ").capitalize())
            facts.append((words, number(value, plain=True) if not isinstance(value, str) else value))
    facts.append(("Counted", f"one value for each {view.unit_kind}"))
    word = "Seed of the resampling" if view.kind == "audit" else "Seeds"
    return [*facts, (word, ", ".join(map(str, view.seeds)) or "none")]


def _configuration(view: View) -> list[Block]:
    blocks: list[Block] = []
    preset = f", preset {plain(view.config['preset'])}" if view.config.get("preset") else ""
    for kind in ("passed", "resolved"):
        settings = flatten(view.config.get(kind) or {})
        rows = [(Cell(key, code=True), Cell(plain(value), code=True)) for key, value in settings.items() if key]
        if rows:
            blocks.append(Table(f"Settings as {kind}{preset}", (Column("Setting"), Column("Value")), rows, False))
    return blocks


def _environment(view: View) -> list[Block]:
    env = view.status.get("environment") or {}
    packages = sorted((env.get("packages") or {}).items())
    facts = [
        ("Started", _moment(view.status.get("started") or "")),
        ("Finished", max((_moment(run.status.get("finished") or "") for run in view.folders), default="")),
        *costs(view.folders),
        ("Python", env.get("python")),
        ("Platform", env.get("platform")),
        ("Data, SHA-256", view.data.get("fingerprint")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages)),
    ]
    known = [(term, str(value)) for term, value in facts if value]
    return [Facts(known, title="Environment and cost")] if known else []


def _moment(text: Any) -> str:
    return str(text).replace("T", " ").replace("+00:00", " UTC")


def costs(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return wall and processor time over runs; what is not recorded is left out."""
    facts = []
    for key, word in (("wall_s", "Time"), ("cpu_s", "Processor time")):
        spent = [float(run.status[key]) for run in runs if isinstance(run.status.get(key), int | float)]
        if spent:
            each = f" over {len(spent)} runs, median {duration(statistics.median(spent))}" if len(spent) > 1 else ""
            facts.append((word, duration(sum(spent)) + each))
    return facts


def _repeat(view: View) -> list[Block]:
    stored = [str(run.status["command"]) for run in view.folders if run.status.get("command")]
    commands = list(dict.fromkeys(stored))
    if not commands:
        return []
    words = "Run this with the versions above and data of the same fingerprint."
    if view.kind != "audit":
        words += " Random streams are named: equal seeds give equal numbers on the same processor and thread count."
    return [Prose(["How to repeat it"], lead=True), Code("\n".join(commands)), Prose([words], muted=True)]


def limits(view: View, more: Sequence[str] = ()) -> Notes:
    """Return what this page may be used for."""
    kind, name = view.unit_kind, view.data.get("name")
    where = f"these data ({name})" if name else "these data"
    items = [
        f"It holds for {where}, this split, this kind of model and these settings. The intervals cover other {kind}s "
        "like these and other seeds, not other data, other settings or a changed population.",
        *more,
        "Means by group describe groups. They say nothing about any one person, and no value here belongs to one.",
        "Use it to decide whether a remedy is worth a trial with your own data, and to document what was measured. It "
        "is no legal assessment and no certificate.",
    ]
    return Notes(items, title="Limits and intended use")
