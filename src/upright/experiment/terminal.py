"""What a terminal shows: text in aligned columns, colour for the verdict alone, no line wider than it has to be."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["last_lines", "levels_table", "paragraphs", "table"]

LINES = 15  # at most; the report holds the rest
GAP = "  "  # between columns
WIDEST = 48  # of a column of levels; a longer name ends in dots


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None = None) -> str:
    """Write rows under a header; with a width the last column is broken over lines below itself."""
    return "\n".join(_lines(columns, [[str(row[c]) for c in columns] for row in rows], width))


def _lines(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, *, numbers: bool = False
) -> list[str]:
    """Lay out cells by their width on a screen, where a letter of Chinese takes two columns; numbers stand right."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    *fixed, last = (max(map(cell_len, column)) for column in zip(header, *rows, strict=True))
    fixed = [min(one, WIDEST) if numbers else one for one in fixed]
    before = sum(fixed) + len(GAP) * len(fixed)
    room = last if width is None else min(last, max(width - before, 20))
    drawn = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), show_header=False)
    for one in fixed:
        drawn.add_column(width=one, no_wrap=True, overflow="ellipsis")
    drawn.add_column(width=room, overflow="fold", justify="right" if numbers else "left")
    for row in [header, *rows]:
        drawn.add_row(*map(Text, row))
    console = Console(width=before + room, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(drawn)
    return [line.rstrip() for line in captured.get().splitlines()]


def paragraphs(texts: Iterable[str], width: int | None = None) -> str:
    """Write sentences one under the other, broken at a width; a path is never broken."""
    if width is None:
        return "\n".join(texts)
    return "\n".join(
        textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if text else "" for text in texts
    )


def levels_table(summary: Mapping[str, Any], width: int = 80) -> str:
    """Return the levels that decide, as text of at most 15 lines, the last of which counts what is left out.

    Of an audit: the metric that decides, or else the first, over all units and in each group. Of a run or a
    comparison: for each arm the primary statistic and the cost, with n of the cost. Each value with its 95 % interval.

    Parameters
    ----------
    summary : mapping
        ``summary.json`` or ``comparison.json``.
    width : int
        A primary statistic of many groups is shown for as many as fit; names are never cut.

    Returns
    -------
    str
        Empty when there are no levels.
    """
    if not summary["evidence"]["levels"]:
        return ""
    audited = summary.get("kind") == "audit"
    shown = _audit_lines(summary["evidence"]) if audited else _arm_lines(summary, width)
    if len(shown) > LINES:
        shown = [*shown[: LINES - 1], f"and {len(shown) - LINES + 1} more in the report"]
    return "\n".join(shown)


def _audit_lines(evidence: Mapping[str, Any]) -> list[str]:
    levels, primary = evidence["levels"], str(evidence["verdict"].get("primary") or ":")
    means = [x for x in levels if x["statistic"].startswith("mean:")]
    metric = next((x for x in means if x["metric"] == primary.split(":")[1]), levels[0])["metric"]
    own = [x for x in means if x["metric"] == metric]
    several = len({x["arm"] for x in own}) > 1  # beside a reference each row says whose it is
    names = [
        ("all" if x["group"] is None else f"{x['grouping']} {x['group']}") + f" ({x['arm']})" * several for x in own
    ]
    if not own:  # an audit of something else than means
        own = [x for x in levels if x["statistic"] == primary]
        names, metric = [x["label"] for x in own], "value"
    rows = [[name, _value(x), str(x["n_units"])] for name, x in zip(names, own, strict=True)]
    what = f"mean {metric}" if means else metric
    return _lines([f"{evidence['unit_kind']}s", what, "n"], rows, None, numbers=True)


def _arm_lines(summary: Mapping[str, Any], width: int) -> list[str]:
    levels, verdict = summary["evidence"]["levels"], summary["evidence"]["verdict"]
    gaps = [x["statistic"] for x in levels if x["statistic"].startswith("abs_gap:")]
    primary = verdict.get("primary") or (gaps or [levels[0]["statistic"]])[0]
    cost = verdict.get("cost_statistic") or levels[0]["statistic"]
    found = {(x["arm"], x["statistic"], x["group"]): x for x in levels}
    keys = [(w, x["statistic"], x["group"]) for w in (primary, cost) for x in levels]
    cells = list(dict.fromkeys((name, group) for w, name, group in keys if w in (name, f"{name}={group}")))
    while True:
        rows = []
        for arm in summary["arms"]:
            own = [found.get((arm["name"], *cell)) for cell in cells]
            counts = dict.fromkeys(str(x["n_units"] if x else 0) for x in own)
            rows.append([arm["name"], *map(_value, own), "/".join(counts)])
        shown = _lines(["arm", *(_heading(*cell) for cell in cells), "n"], rows, None, numbers=True)
        if len(cells) < 3 or max(map(len, shown)) <= width:
            return shown
        cells.pop(-2)  # the last one is the cost


def _heading(statistic: str, group: str | None) -> str:
    name, metric = statistic.split(":")[:2]
    return f"{name} {metric}" + (f", {group}" if group else "")


def _value(level: Mapping[str, Any] | None) -> str:
    if level is None or level["value"] is None:
        return "undefined"
    return f"{_number(level['value'])} [{_number(level['low'])}, {_number(level['high'])}]"


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.5g}"


def last_lines(summary: Mapping[str, Any], *, colour: bool = False) -> list[str]:
    """Return what stays before the eyes: the means of the groups that are compared, and the verdict.

    Parameters
    ----------
    summary : mapping
        ``summary.json`` or ``comparison.json``.
    colour : bool
        Whether the verdict may carry codes of colour.
    """
    evidence, verdict = summary["evidence"], summary["evidence"]["verdict"]
    _, metric, grouping = [*str(verdict.get("primary") or "").partition("=")[0].split(":", 2), "", ""][:3]
    roles = {a["name"]: a["role"] for a in summary["arms"]}
    shown: dict[str, list[str]] = {}
    for x in evidence["levels"]:
        of = x["metric"] == metric or x["metric"].startswith(tuple(f"{m}/" for m in metric.split("+")))
        mean = x["group"] and x["statistic"].startswith("mean:") and x.get("grouping") == grouping
        if of and mean and roles.get(x["arm"]) in ("baseline", "remedy"):
            shown.setdefault(x["label"], []).append(_number(x["value"]))
    lines = [f"{label}: {' -> '.join(values)}" for label, values in shown.items()][:LINES]
    said = str(verdict.get("title") or verdict["word"])
    if colour:
        code = {"good": 32, "bad": 31, "open": 33}.get(verdict.get("colour"), 36)
        said = f"\x1b[1;{code}m{said}\x1b[0m"
    return [*lines, said]
