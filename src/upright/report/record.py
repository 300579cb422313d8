"""Sections that say what was done: the question, training, conditions, configuration, environment, how to repeat."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from upright.report.evidence import arm_key
from upright.report.parts import (
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
    cell,
    count,
    numeric,
)
from upright.report.plots import Canvas, Series
from upright.report.read import RunRecord, View
from upright.report.text import ROLES, duration, flatten, number, plain, plural

__all__ = [
    "asked",
    "conditions",
    "configuration",
    "costs",
    "deviations",
    "environment",
    "limits",
    "repeat",
    "thin",
    "training",
]

T = TypeVar("T")
MOST_STEPS = 200
DATA_WORDS = {"name": "Data", "train": "Training rows", "valid": "Validation rows", "test": "Test rows"}


def asked(view: View) -> Section:
    """Return method, data and arms."""
    facts = []
    if view.kind != "audit":
        facts.append(("Method", view.title))
    if view.mends:
        facts.append(("Mends" if view.kind != "audit" else "Question", view.mends))
    for key, value in view.data.items():
        if key != "fingerprint" and not isinstance(value, Mapping | list):
            words = DATA_WORDS.get(key, key.replace("_", " ").capitalize())
            facts.append((words, number(value, plain=True) if not isinstance(value, str) else value))
    facts.append(("Counted", f"one value for each {view.unit_kind}"))
    if view.seeds and view.kind != "audit":
        facts.append(("Seeds", ", ".join(map(str, view.seeds))))
    blocks: list[Block] = [Facts(facts)]
    if len(view.arms) > 1 and view.kind != "audit":
        body = [
            (
                Cell(arm.title, arm.name, key=arm_key(arm)),
                Cell(ROLES.get(arm.role, arm.role)),
                Cell(_settings(arm.settings), code=True),
            )
            for arm in view.arms
        ]
        blocks.append(
            Table(
                "Arms of the experiment",
                (Column("Arm"), Column("Role"), Column("Settings")),
                body,
                False,
            )
        )
        text = "The arms are paired: same data in the same order, same initialisation, same named random streams."
        blocks.append(Prose([text], muted=True))
    else:
        blocks.append(Prose(["What was handed in was scored as it is; nothing of it was trained."], muted=True))
    return Section("asked", "What was asked", blocks)


def _settings(settings: Mapping[str, Any]) -> str:
    return (
        "  ".join(f"{key}={plain(value)}" for key, value in flatten(settings).items()) if settings else "as configured"
    )


# -- training ------------------------------------------------------------------------------------------------------


def training(view: View, canvas: Canvas) -> Section | None:
    """Return validation and loss by step for each arm; one thin line a seed when there are several."""
    rows = [row for run in view.runs for row in run.curves]
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith("valid/")))[:2]
    if any("loss" in row for row in rows):
        names.append("loss")
    figures = [figure for name in names if (figure := _curve(view, canvas, name))]
    if not figures:
        return None
    text = "A gain over a baseline that was still improving would say nothing, so the curves are kept."
    if len(view.runs) > 1:
        text += " Each thin line is one seed."
    return Section("training", "Training curves", [Prose([text]), Grid(figures)])


def _curve(view: View, canvas: Canvas, name: str) -> Figure | None:
    series, body, keys = [], [], {}
    several = len(view.runs) > 1
    for arm in view.arms:
        for run in view.runs:
            points = [(row["step"], row[name]) for row in run.curves if row.get("arm") == arm.name and _both(row, name)]
            if not points:
                continue
            x, y = [p[0] for p in points], [float(p[1]) for p in points]
            series.append(Series(thin(x), thin(y), arm.index, several))
            keys[arm.name] = arm_key(arm)
            best = y.index(min(y) if name == "loss" else max(y))
            seed = Cell(str(run.seed if run.seed is not None else ""))
            body.append((Cell(arm.title), seed, cell(y[best]), count(x[best]), cell(y[-1]), count(x[-1])))
    if not series:
        return None
    title = "Training loss" if name == "loss" else f"Validation {view.metric_title(name.removeprefix('valid/'))}"
    word = "Lowest" if name == "loss" else "Best"
    columns = [Column("Arm"), Column("Seed"), *numeric(word, "at step", "Last", "at step")]
    alt = f"{title} by step. " + "; ".join(
        f"{r[0].text} seed {r[1].text}: {word.lower()} {r[2].text} at step {r[3].text}" for r in body
    )
    svg = canvas.curves(series, "step", title)
    return Figure(title, svg, alt, Table(title, columns, body), tuple(keys.values()))


def _both(row: Mapping[str, Any], name: str) -> bool:
    return all(isinstance(row.get(k), int | float) and math.isfinite(row[k]) for k in ("step", name))


def thin(points: Sequence[T]) -> list[T]:
    """Keep at most so many, the last one always: more are not seen and make the file large."""
    every = max(1, math.ceil(len(points) / MOST_STEPS))
    return [point for i, point in enumerate(points) if i % every == 0 or i == len(points) - 1]


# -- conditions and warnings ----------------------------------------------------------------------------------------


def conditions(view: View) -> Section:
    """Return what the run warned of and what weakens its evidence."""
    found = list(dict.fromkeys([*view.warnings, *_weaknesses(view)]))
    blocks: list[Block] = [Notes(found, "warn")] if found else [Prose(["Nothing was warned of."], muted=True)]
    return Section("conditions", "Conditions and warnings", blocks)


def _weaknesses(view: View) -> list[str]:
    found = []
    for arm in view.arms:
        stopped = [run for run in view.runs if run.notes.get(arm.name, {}).get("converged") is False]
        if stopped:
            at = f" in {len(stopped)} of {len(view.runs)} runs" if len(view.runs) > 1 else ""
            found.append(
                f"{arm.title}: training reached its last epoch{at} while validation could still improve; not converged."
            )
    lost: dict[int, list[str]] = {}
    for row in view.levels if view.kind != "audit" else ():  # an audit warns of them itself
        if (
            row.name == "mean"
            and row.n_undefined
            and view.metric_title(row.metric) not in lost.get(row.n_undefined, [])
        ):
            lost.setdefault(row.n_undefined, []).append(view.metric_title(row.metric))
    for n, metrics in lost.items():
        found.append(
            f"Undefined for {plural(n, view.unit_kind)}, who are left out of the means and counted here: "
            f"{'; '.join(metrics)}."
        )
    if unread := sum(run.unread_lines for run in view.runs):
        found.append(f"{plural(unread, 'line')} of metrics.jsonl could not be read; the curves lack them.")
    if view.missing_runs:
        found.append(
            f"Not beside the comparison, so without curves, cost and settings here: {', '.join(view.missing_runs)}."
        )
    return found


# -- configuration, deviations --------------------------------------------------------------------------------------


def configuration(view: View) -> Section:
    """Return the settings as passed and as resolved."""
    run = next((run for run in view.runs if run.config), None)
    if run is None:
        return Section(
            "configuration", "Configuration", [Prose(["No configuration is stored in this folder."], muted=True)]
        )
    passed = flatten(run.config.get("passed") or {})
    resolved = flatten(run.config.get("resolved") or {})
    blocks: list[Block] = []
    preset = run.config.get("preset")
    if preset:
        blocks.append(Prose([f"Preset: {plain(preset)}."]))
    if passed:
        blocks.append(Table("As passed", (Column("Setting"), Column("Value")), _pairs(passed), False))
    else:
        blocks.append(Prose(["As passed: nothing; every setting is the preset's or the default."]))
    if resolved:
        table = Table("As resolved", (Column("Setting"), Column("Value")), _pairs(resolved))
        blocks.append(Details(f"As resolved: all {len(resolved)} settings", [table]))
    return Section("configuration", "Configuration", blocks)


def _pairs(settings: Mapping[str, Any]) -> list[tuple[Cell, Cell]]:
    return [(Cell(key, code=True), Cell(plain(value), code=True)) for key, value in settings.items() if key]


def deviations(view: View) -> Section:
    """Return where the method departs from its paper or the paper's code."""
    items: list[Block] = [Notes(view.deviations)] if view.deviations else [Prose(["None in force."], muted=True)]
    return Section("deviations", "Deviations in force", items)


# -- environment, repeat, limits --------------------------------------------------------------------------------------


def environment(view: View) -> Section:
    """Return where and when it ran, what it cost, and the fingerprint of the data."""
    first = next((run.status for run in view.runs if run.status), {})
    env = first.get("environment") if isinstance(first.get("environment"), Mapping) else {}
    facts = [
        (word, _moment(first[key]))
        for word, key in (("Started", "started"), ("Finished", "finished"))
        if first.get(key)
    ]
    if len(view.runs) > 1:
        ends = [_moment(run.status["finished"]) for run in view.runs if run.status.get("finished")]
        facts = [*facts[:1], *([("Finished", max(ends))] if ends else [])]
    facts += costs(view.runs)
    for key in ("python", "platform"):
        if env and env.get(key):
            facts.append((key.capitalize(), str(env[key])))
    word = "Seed of the resampling" if view.kind == "audit" else "Seeds"
    facts.append((word, ", ".join(map(str, view.seeds)) or "none"))
    if view.data.get("fingerprint"):
        facts.append(("Data, SHA-256", str(view.data["fingerprint"])))
    blocks: list[Block] = [Facts(facts)]
    packages = env.get("packages") if env else None
    if isinstance(packages, Mapping) and packages:
        body = [(Cell(name, code=True), Cell(str(version), code=True)) for name, version in sorted(packages.items())]
        blocks.append(
            Details(
                f"Versions of {len(body)} packages", [Table("Packages", (Column("Package"), Column("Version")), body)]
            )
        )
    return Section("environment", "Environment and cost", blocks, "Environment")


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


def repeat(view: View) -> Section:
    """Return the command that repeats it."""
    given = view.summary.get("command")
    commands = (
        [str(given)]
        if given
        else list(dict.fromkeys(str(r.status["command"]) for r in view.runs if r.status.get("command")))
    )
    if not commands:
        return Section("repeat", "How to repeat it", [Prose(["The command is not recorded."], muted=True)])
    words = "Run this with the versions above and data of the same fingerprint."
    if view.kind != "audit":
        words += (
            " The random streams are named, so equal seeds give equal numbers on the same processor and thread count."
        )
    return Section("repeat", "How to repeat it", [Code("\n".join(commands)), Prose([words], muted=True)])


def limits(view: View, more: Sequence[str] = ()) -> Section:
    """Return what this page may be used for."""
    kind = view.unit_kind
    name = view.data.get("name")
    where = f"these data ({name})" if name else "these data"
    items = [
        f"It holds for {where}, this split, this kind of model and these settings. The intervals cover other {kind}s "
        "like these and other seeds, not other data, other settings or a changed population.",
        *more,
        "Means by group describe groups. They say nothing about any one person, and no value here belongs to one.",
        "Use it to decide whether a remedy is worth a trial with your own data, and to document what was measured. It "
        "is no legal assessment and no certificate.",
    ]
    return Section("limits", "Limits and intended use", [Notes(items)], "Limits")
