"""What a terminal shows: text in aligned columns, colour for the verdict alone, no line wider than it has to be."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["LINES", "last_lines", "levels_table", "paragraphs", "table"]

LINES = 15  # of a table of levels; the report holds the rest
GAP = "  "  # between columns


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int | None = None) -> str:
    """Write rows under a header; with a width the last column is broken over lines below itself."""
    widths = {c: max([len(c), *(len(str(row[c])) for row in rows)]) for c in columns}
    *fixed, last = columns
    before = sum(widths[c] + len(GAP) for c in fixed)
    room = None if width is None or width - before < 20 else width - before
    lines = []
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        start = "".join(str(row[c]).ljust(widths[c]) + GAP for c in fixed)
        text = str(row[last])
        parts = [text] if room is None else textwrap.wrap(text, room, break_on_hyphens=False) or [""]
        leads = [start, *[" " * before] * (len(parts) - 1)]
        lines += [(lead + part).rstrip() for lead, part in zip(leads, parts, strict=True)]
    return "\n".join(lines)


def paragraphs(texts: Iterable[str], width: int | None = None) -> str:
    """Write sentences one under the other, broken at a width; a path is never broken."""
    if width is None:
        return "\n".join(texts)
    return "\n".join(
        textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) if text else "" for text in texts
    )


def levels_table(summary: Mapping[str, Any], lines: int = LINES, width: int = 80) -> str:
    """Return the levels that decide, as text.

    Of an audit: the first metric over all units and in each group. Of a run or a comparison: for each arm the primary
    statistic and the cost, with n of the cost. Each value with its 95 % interval.

    Parameters
    ----------
    summary : mapping
        ``summary.json`` or ``comparison.json``.
    lines : int
        At most so many, header and a line on what was left out included.
    width : int
        A primary statistic of many groups is shown for as many as fit; names are never cut.

    Returns
    -------
    str
        Empty when there are no levels.
    """
    levels = summary["evidence"]["levels"]
    if not levels:
        return ""
    if summary.get("kind") == "audit":
        return _cut(_audit_rows(levels, f"{summary['evidence']['unit_kind']}s"), lines)
    return _cut(_arm_rows(summary, levels, width), lines)


def _audit_rows(levels: Sequence[Mapping[str, Any]], kind: str) -> list[list[str]]:
    metric = levels[0]["metric"]
    own = [x for x in levels if x["metric"] == metric and x["statistic"].startswith("mean:")]
    names = ["all" if x["group"] is None else f"{x['grouping']} {x['group']}" for x in own]
    rows = [[name, _value(x), str(x["n_units"])] for name, x in zip(names, own, strict=True)]
    return [[kind, f"mean {metric}", "n"], *rows]


def _arm_rows(summary: Mapping[str, Any], levels: Sequence[Mapping[str, Any]], width: int) -> list[list[str]]:
    verdict = summary["evidence"]["verdict"]
    gaps = [x["statistic"] for x in levels if x["statistic"].startswith("abs_gap:")]
    primary = verdict.get("primary") or (gaps or [levels[0]["statistic"]])[0]
    cost = verdict.get("cost_statistic") or levels[0]["statistic"]
    found = {(x["arm"], x["statistic"], x["group"]): x for x in levels}
    cells = list(
        dict.fromkeys(
            (x["statistic"], x["group"])
            for w in (primary, cost)
            for x in levels
            if f"{x['statistic']}={x['group']}" == w or x["statistic"] == w
        )
    )
    while True:
        rows = [["arm", *(_heading(*cell) for cell in cells), "n"]]
        for arm in summary["arms"]:
            own = [found.get((arm["name"], *cell)) for cell in cells]
            n = 0 if own[-1] is None else own[-1]["n_units"]
            rows.append([arm["name"], *(_value(x) for x in own), str(n)])
        if len(cells) < 3 or max(map(len, _aligned(rows))) <= width:
            return rows
        cells.pop(-2)  # the last one is the cost


def _heading(statistic: str, group: str | None) -> str:
    name, metric = statistic.split(":")[:2]
    return f"{name} {metric}" + (f", {group}" if group else "")


def _value(level: Mapping[str, Any] | None) -> str:
    if level is None or level["value"] is None or level["value"] != level["value"]:
        return "undefined"
    return f"{_number(level['value'])} [{_number(level['low'])}, {_number(level['high'])}]"


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "?"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.5g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns, numbers of units to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        GAP.join([*(text.ljust(w) for text, w in zip(row[:-1], widths, strict=False)), row[-1].rjust(widths[-1])])
        for row in rows
    ]


def _cut(rows: Sequence[Sequence[str]], lines: int) -> str:
    shown = _aligned(rows)
    if len(shown) > lines:
        shown = [*shown[: lines - 1], f"and {len(shown) - lines + 1} more in the report"]
    return "\n".join(shown)


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
    _, metric, grouping = [*str(verdict.get("primary") or "").split(":", 2), "", ""][:3]
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
