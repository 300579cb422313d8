"""RESULTS.md and the studies' own pages: ``python -m upright.report.results [RESULTS_FOLDER] [OUT]``."""

from __future__ import annotations

import itertools
import math
import re
import sys
from pathlib import Path

from upright.contract import InputError
from upright.experiment.folders import read_json
from upright.experiment.notes import unfinished
from upright.report.read import View, read_folder
from upright.report.sections import LINES
from upright.report.text import NARROW, interval, number, plural

__all__ = ["results_page", "study_page"]

HEAD = """# Results

One row a study, written by `make results`; do not edit.

* **Verdict**: the word for the remedy; [evidence](docs/design/evidence.md) says what it means.
  *From stored intervals*: today's rules on published intervals.
* **What it mends**: the level without → with the remedy (in percent where the first is beyond the margin), and the
  change with its 95 % interval: seeds are drawn, then units, each with all its seeds.
* **Due to the method?** The same comparison with each trivial remedy and placebo; one that is made to be level with the
  remedy is compared on the price.
* **Price**: the level of what is paid for it, without → with the remedy, and the change.

A folder's `summary.json` holds every other arm, group and interval; `notes.md` how it was run;
`units.parquet` scores of units, or `cells.parquet` counts and means of cells; none tells a person's private attribute.
To repeat a study, run the `command` in its `config.json`, beside settings and their choice.

*Baseline not confirmed*: a loop that ended after `patience` checks could leave a baseline short, so part
of a gain may be training. Commands now train longer, those of FedFACT too."""
COLUMNS = ("study", "verdict", "seeds × units", "what it mends", "due to the method?", "price")


def results_page(results: Path) -> str:
    """Return RESULTS.md as text; the same folders give the same text.

    Parameters
    ----------
    results : Path
        Folder of published studies; each is a folder with a ``summary.json``, and stands in the table if that has a
        verdict, or one with a ``finding.json`` that has a ``sentence``, and stands below it.

    Raises
    ------
    InputError
        When a summary cannot be read, or its verdict is of an older version.
    """
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    views = [read_folder(path.parent) for path in sorted(results.glob("*/summary.json"))]
    rows += [_row(view) for view in views if view.verdict]
    table = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    beside = [(path.parent.name, read_json(path)["sentence"]) for path in sorted(results.glob("*/finding.json"))]
    lines = [f"* [{name}](results/{name}): {sentence}" for name, sentence in beside]
    if lines:
        lines = ["", "Without a run of arms; the numbers are in `finding.json`:", "", *lines]
    return "\n".join([HEAD, "", *table, *lines]) + "\n"


def study_page(folder: Path) -> str:
    """Return the README of a study as text, from its ``summary.json`` and ``config.json``."""
    view = read_folder(folder)
    said = view.verdict
    told = [f"* **{title}**: {said['lines'][key]}." for key, title in LINES.items() if said["lines"].get(key)]
    size = f"{len(view.seeds)} seeds, {plural(view.n_units or 0, view.unit_kind)}"
    parts = [
        f"# {view.title} on {view.data['name']}: {folder.name}",
        "Written by `make results`; do not edit.",
        f"**{said['title'][:1].upper()}{said['title'][1:]}.** {said['sentence'].replace('->', '→')}",
        "\n".join(told),
        f"What to do next: {' '.join(said['next_steps'])}",
        f"Mends {view.mends}; {size}; {view.evidence.facts['resampling']}.",
        f"`upright report results/{folder.name}` draws every number of this folder.",
    ]
    if said.get("from_stored_intervals"):
        parts.append("Given by today's rules from the intervals that were computed when the study was published.")
    if (folder / "notes.md").is_file():
        parts.append("How it was run: [notes.md](notes.md).")
    if (folder / "environment.json").is_file() and "stopping" in (env := read_json(folder / "environment.json")):
        parts.append(f"Trained when {env['stopping']}")
    parts += [f"Baseline not confirmed: {view.config['unconfirmed']}"] if view.config.get("unconfirmed") else []
    if view.config.get("command"):
        parts.append(f"To repeat it:\n\n```\n{view.config['command']}\n```")
    return "\n\n".join(filter(None, parts)) + "\n"


def _row(view: View) -> tuple[str, ...]:
    name, said = view.folder.name, view.verdict
    if "title" not in said:
        raise InputError(f"{name}: a verdict of an older version", "one with a title", "publish the study again")
    mark = " (from stored intervals)" if said.get("from_stored_intervals") else ""
    early = any(unfinished(arm.notes)[0] for arm in view.arms if arm.role in ("baseline", "remedy"))
    mark += ", not trained to convergence" * early + ", baseline not confirmed" * ("unconfirmed" in view.config)
    alone = view.evidence.facts.get("own") or {}
    mark += "".join(f"; {view.arm(arm).title} by itself: **{one['title']}**" for arm, one in alone.items())
    return (
        f"[{name}](results/{name})",
        f"**{said['title']}**{mark}",
        f"{len(view.seeds)} × {plural(view.n_units or 0, view.unit_kind)}",
        _change(view, view.primary, percent=True),
        _by_verb(said["lines"]["due"]),
        _change(view, view.cost_statistic),
    )


def _by_verb(line: str) -> str:
    """Say once what neighbouring clauses of a line say of several arms."""
    clauses = re.findall(r"(not told apart from |ties with |loses to |)(.*?)( not run|)(?:; |$)", line)
    groups = itertools.groupby(filter(any, clauses), key=lambda own: own[::2])
    return "; ".join(f"{verb}{', '.join(arm for _, arm, _ in own)}{end}" for (verb, end), own in groups)


def _change(view: View, statistic: str, percent: bool = False) -> str:
    """Write a statistic over all units: without and with the remedy, in percent, the change and its interval."""
    changes = (row for row in view.differences if row.statistic == statistic)
    change = next(row for row in changes if view.arm(row.against).role == "baseline")
    before, after = view.level(change.against, statistic), view.level(change.arm, statistic)
    if before is None or after is None:
        raise InputError(f"{view.folder.name}: no level of {statistic}", "one of each arm", "publish the study again")
    share = 100 * (after.value - before.value) / abs(before.value) if abs(before.value) > change.margin else math.nan
    share, digits = (math.trunc(10 * share) / 10, 1) if 99.5 <= abs(share) < 100 else (share, 0)  # it is not all of it
    return (
        f"{before.label}: {number(before.value)} → {number(after.value)}"
        + (f" ({number(share, digits, sign=True)}{NARROW}%)" if percent and math.isfinite(share) else "")
        + f", {number(change.value, sign=True)} ({interval(change.low, change.high, sign=True)})"
    )


if __name__ == "__main__":
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    for study in sorted(source.glob("*/summary.json")):
        (study.parent / "README.md").write_text(study_page(study.parent), encoding="utf-8")
    Path(sys.argv[2] if len(sys.argv) > 2 else "RESULTS.md").write_text(results_page(source), encoding="utf-8")
