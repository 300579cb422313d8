"""Section of RESULTS.md on In-UCDS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upright.report.results.common import (
    Found,
    by_chance,
    choices,
    head,
    not_significant,
    number,
    secondary,
    signed,
    table,
)

__all__ = ["section"]

GAPS = {"ndcg@10": "full ranking", "ndcg@10_matched5": "matched, 5 positives", "ndcg@10_sampled": "sampled, 1 + 99"}


def section(name: str, summary: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the paragraphs of one study."""
    found = Found(summary)
    task = config["resolved"]["task"]
    preset = "" if config["study"]["preset"] == "full" else f", preset {config['study']['preset']}"
    title = f"{summary['title']} with {task['backbone']} on {summary['data']['name']}{preset}"
    null = [found.level(f"gap:{m}:activity", found.arms[0]["name"]) for m in GAPS]
    undefined = null[1]["n_undefined"] if null[1] else 0
    return [
        *head(found, title, name, config["command"]),
        "### Levels (NDCG@10, full ranking)",
        table(
            ["arm", "role", "overall", *found.groups, "worst tenth"],
            [[a["title"], a["role"], number(found.level("mean:ndcg@10", a["name"])),
              *[number(found.level("mean:ndcg@10:activity", a["name"], g)) for g in found.groups],
              number(found.level("worst_decile:ndcg@10", a["name"]))] for a in found.arms],
        ),
        f"### Signed gap, {' minus '.join(found.groups)}, under three protocols",
        table(
            ["arm", *GAPS.values()],
            [*[[a["title"], *[signed(found.level(f"gap:{m}:activity", a["name"])) for m in GAPS]] for a in found.arms],
             ["random groups of these sizes, 95 % band", *[by_chance(row) for row in null]]],
        ),
        f"{undefined} users have fewer than 5 test positives and are not in the matched column.",
        f"### {summary['title']} against each control",
        table(
            ["against", "role", "change of the gap's size", "verdict", "smallest detectable", "change overall"],
            [[found.title[d["against"]], d["role"], signed(d), d["verdict"], f"{d['smallest_detectable']:.4f}",
              signed(found.against("mean:ndcg@10", d["against"]))]
             for d in found.differences("abs_gap:ndcg@10:activity")],
        ),
        "### Other differences that exclude zero",
        secondary(found),
        "### What is not significant",
        not_significant(found),
        *choices(found, config["choice"]),
    ]  # fmt: skip
