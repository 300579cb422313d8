"""Parts of RESULTS.md that every method's section uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Found", "by_chance", "choices", "head", "not_significant", "number", "secondary", "signed", "table"]

Row = Mapping[str, Any]


class Found:
    """Evidence of a study, by statistic, group and arm.

    Parameters
    ----------
    summary : mapping
        ``summary.json`` of a published study.
    """

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self.summary, self.evidence = summary, summary["evidence"]
        self.arms: Sequence[Row] = [a for a in summary["arms"] if a["role"] != "sweep"]
        self.swept: Sequence[Row] = [a for a in summary["arms"] if a["role"] == "sweep"]
        self.title = {a["name"]: a["title"] for a in summary["arms"]}
        self._level = {(x["statistic"], x["group"], x["arm"]): x for x in self.evidence["levels"]}

    def level(self, statistic: str, arm: str, group: str | None = None) -> Row | None:
        """Return one level, None where there is none."""
        return self._level.get((statistic, group, arm))

    def differences(self, statistic: str) -> list[Row]:
        """Return the differences of one statistic, one against each control."""
        return [d for d in self.evidence["differences"] if d["statistic"] == statistic]

    def against(self, statistic: str, arm: str) -> Row | None:
        """Return the difference of one statistic against one arm."""
        return next((d for d in self.differences(statistic) if d["against"] == arm), None)

    @property
    def groups(self) -> list[str]:
        """Names of the groups whose means are given."""
        return sorted({x["group"] for x in self.evidence["levels"]
                       if x["group"] and x["statistic"].startswith("mean:")})  # fmt: skip


def number(row: Row | None) -> str:
    """Write a level with its interval."""
    if row is None or row["value"] is None:
        return "not defined"
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def signed(row: Row | None) -> str:
    """Write a difference or a signed level with its interval."""
    if row is None or row["value"] is None:
        return "not defined"
    return f"{row['value']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def head(found: Found, title: str, folder: str, command: str) -> list[str]:
    """Write the title of a study, its data and its verdict."""
    data, verdict = found.summary["data"], found.evidence["verdict"]
    return [
        f"## {title}",
        f"{data['users']:,} users, {data['items']:,} items, {data['train']:,} / {data['valid']:,} / {data['test']:,} "
        f"interactions for training, validation and test; seeds {', '.join(map(str, found.summary['seeds']))}; "
        f"folder `results/{folder}`; `{command}`.",
        f"**{verdict['sentence']}** {verdict['cost']}",
        *verdict["notes"],
    ]


def _floored(found: Found, row: Row) -> bool:
    """Whether both sides of a difference lie on the floor of their scale, so that equality says nothing."""
    statistic, _, group = row["statistic"].partition("=")
    both = [found.level(statistic, arm, group or None) for arm in (row["arm"], row["against"])]
    return all(x is not None and x["value"] == x["low"] == x["high"] == 0.0 for x in both)


def secondary(found: Found) -> str:
    """Write which differences beside the deciding one exclude zero, and which survive Holm's correction."""
    primary = found.evidence["verdict"].get("primary")
    rows = [
        d for d in found.evidence["differences"] if d["statistic"] != primary and d["verdict"] in ("helps", "harms")
    ]
    if not rows:
        return "No other difference excludes zero."
    lines = []
    for d in sorted(rows, key=lambda d: d["holm_p"]):
        kept = "holds after Holm's correction" if d["holm_p"] < 0.05 else "does not hold after Holm's correction"
        lines.append(f"* {d['label']} against {found.title[d['against']]}: {signed(d)}, {d['verdict']}; "
                     f"{kept} (p = {d['holm_p']:.3f})")  # fmt: skip
    return "\n".join(lines)


def not_significant(found: Found) -> str:
    """Write every difference that is inconclusive or equal."""
    lines = []
    for d in found.evidence["differences"]:
        if d["verdict"] in ("helps", "harms") or d["value"] is None:
            continue
        word = "both at the floor of 0, which says nothing" if _floored(found, d) else d["verdict"]
        lines.append(f"* {d['label']} against {found.title[d['against']]}: {signed(d)} ({word})")
    return "\n".join(lines) or "Nothing: every difference is decided."


def by_chance(row: Row | None) -> str:
    """Write what shuffled labels show."""
    null = row and row["null"]
    return f"{null['low']:+.4f} to {null['high']:+.4f}" if null else "not defined"


def choices(found: Found, choice: Mapping[str, Any]) -> list[str]:
    """Write how the settings of each arm were chosen: the optimiser on one seed, the strength on others."""
    select, tune = choice["select"], choice["tune"]
    keys, strengths = list(select["grid"]), list(tune["grid"])
    names = [a for a in found.title if a in select["curves"]]
    optimiser = [
        [found.title[a], *[f"{row[k]:g}" for k in keys], f"{row['mean']:.4f}",
         "yes" if all(row[k] == select["chosen"][a][k] for k in keys) else ""]
        for a in names for row in select["curves"][a]
    ]  # fmt: skip
    curves = [
        [found.title[a], *[f"{row[k]:g}" for k in strengths], f"{row['mean']:.4f}", f"{row['gap']:+.4f}",
         "yes" if all(row[k] == tune["chosen"][a][k] for k in strengths) else ""]
        for a, rows in tune["curves"].items() for row in rows
    ]  # fmt: skip
    edges = _edges(found, choice)
    return [
        "### How settings were chosen",
        f"Optimiser settings of every arm by its own validation score, seed {select['seed']}, pulled arms at the "
        "middle strength:",
        table(["arm", *keys, "validation", "chosen"], optimiser),
        f"Strength on validation, seeds {', '.join(map(str, tune['seeds']))} (no remedy: {tune['baseline']:.4f}): "
        "among values within 0.01 of no remedy, the smallest gap:",
        table(["arm", *strengths, "validation", "validation gap", "chosen"], curves),
        *([edges] if edges else []),
    ]


def _edges(found: Found, choice: Mapping[str, Any]) -> str:
    """Say which choices lie on the end of their grid."""
    said = []
    for part in ("select", "tune"):
        for arm, chosen in choice[part]["chosen"].items():
            for key, value in chosen.items():
                grid = choice[part]["grid"][key]
                if len(grid) > 1 and value in (min(grid), max(grid)):
                    said.append(f"{found.title[arm]} {key} {value:g}")
    return f"At an end of its grid, so that a better value outside is not ruled out: {'; '.join(said)}." if said else ""
