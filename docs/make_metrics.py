"""Write docs/metrics.md from docstrings: ``python docs/make_metrics.py``, or `make docs`.

Modules say what their metrics are; of their functions those with an example stand on the page.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

MODULES = {
    "Ranked lists": "upright.metrics.ranking",
    "Statistics of units and groups": "upright.evidence.statistics",
    "Weighted units": "upright.maths.intervals",
    "Rates that a criterion compares": "upright.maths.parity.rates",
    "Group fairness": "upright.metrics.fairness",
    "Leakage of an attribute": "upright.metrics.leakage",
    "Forgotten answers": "upright.metrics.forgetting",
    "Membership of forgotten samples": "upright.metrics.membership",
    "Preference pairs": "upright.metrics.alignment",
    "Edits": "upright.metrics.editing",
    "Copied pages": "upright.metrics.overlap",
    "Rigid bodies": "upright.metrics.physics",
}
HEAD = """# Metrics

Written by `make docs` from the docstrings; do not edit. `help(...)` of a function has its arguments and errors.
The tests run every example."""
LEFT_OUT = ("Parameters", "Raises")  # what help() is for


def table_of(lines: list[str]) -> list[str]:
    """Turn a table between rows of equals signs into Markdown; a row without a first cell goes on with the last."""
    columns = [match.span() for match in re.finditer("=+", lines[0])]
    ends = [start for start, _ in columns[1:]] + [None]
    rules = [i for i, line in enumerate(lines) if line.startswith("==")]
    rows: list[list[str]] = [] if len(rules) > 2 else [[""] * len(columns)]
    for i, line in enumerate(lines[1:-1], 1):
        cells = [line[start:end].strip() for (start, _), end in zip(columns, ends, strict=True)]
        if i in rules:
            continue
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    rows.insert(1, ["---"] * len(columns))
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def markdown_of(thing: object) -> Iterator[str]:
    """Yield the paragraphs of a docstring as Markdown."""
    section = ""
    for block in re.split(r"\n\s*\n", inspect.getdoc(thing) or ""):
        lines = block.splitlines()
        if len(lines) > 1 and set(lines[1]) == {"-"}:
            section, lines = lines[0], [f"*{lines[0]}* {lines[2]}:", *lines[3:]]
        if section in LEFT_OUT:
            continue
        if lines[0].startswith("=="):
            yield "\n".join(table_of(lines)).replace("``", "`")
        elif lines[0].startswith((">>>", "    ")):
            language = "pycon" if lines[0].startswith(">") else "text"
            yield "\n".join([f"```{language}", *inspect.cleandoc("\n".join(lines)).splitlines(), "```"])
        else:
            yield " ".join(line.strip() for line in lines).replace("``", "`")


def page() -> str:
    """Return the page."""
    parts, index = [], []
    for title, name in MODULES.items():
        module = importlib.import_module(name)
        shown = [f for n in module.__all__ if inspect.isfunction(f := getattr(module, n)) and ">>>" in str(f.__doc__)]
        links = ", ".join(f"[`{f.__name__}`](#{f.__name__})" for f in shown)
        index.append(f"* [{title}](#{title.lower().replace(' ', '-')}){': ' if links else ''}{links}")
        first, *rest = markdown_of(module)
        parts += [f"## {title}", f"`{name}`: {first}", *rest]
        for function in shown:
            parts += [f"### {function.__name__}", *markdown_of(function)]
    return "\n\n".join([HEAD, "\n".join(index), *parts]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("metrics.md").write_text(page(), encoding="utf-8")
