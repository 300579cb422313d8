"""Section of RESULTS.md on RAID."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upright.report.results.common import Found, head, not_significant, number, secondary, signed, table

__all__ = ["section"]

LEAK, WORST, COST = "leakage:attack:attribute", "worst_leakage:attack:attribute", "mean:ndcg@10"


def section(name: str, summary: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the paragraphs of one study."""
    found, task, data = Found(summary), config["resolved"]["task"], summary["data"]
    who = "" if task["held_out_known"] else ", held-out users never told their class"
    title = f"{summary['title']} with {task['backbone']} on {data['name']}, {data['attribute']}{who}"
    classes = ", ".join(f"{c} {n}" for c, n in data["classes"].items())
    worst = any(found.level(WORST, a["name"]) for a in found.arms)  # with two classes there is none
    alpha = {a["name"]: config["resolved"]["arms"][a["name"]]["alpha"] for a in summary["arms"]}
    return [
        *head(found, title, name, config["command"]),
        f"Classes: {classes}. Surfaces: {', '.join(task['surfaces'])}. At each seed half of the users of each class, "
        "but for the quarter that strengths were tuned on, are held out from the defence and attacked.",
        "### Leakage of the strongest attack, and quality",
        table(
            ["arm", "role", "alpha", "strongest attack", "leakage", "permuted labels, 95th percentile",
             *(["worst class"] if worst else []), "NDCG@10"],
            [[a["title"], a["role"], f"{alpha[a['name']]:g}", str(_of(found, a["name"]).get("attack", "")),
              number(found.level(LEAK, a["name"])), _null(found, a["name"]),
              *([number(found.level(WORST, a["name"]))] if worst else []), number(found.level(COST, a["name"]))]
             for a in found.arms],
        ),
        _reached(found),
        f"### {summary['title']} against each arm",
        table(
            ["against", "role", "change of leakage", "verdict", "smallest detectable", "change of NDCG@10"],
            [[found.title[d["against"]], d["role"], signed(d), d["verdict"], f"{d['smallest_detectable']:.4f}",
              signed(found.against(COST, d["against"]))] for d in found.differences(LEAK)],
        ),
        "### Every attack",
        _attacks(found),
        *(["### Front: every arm at every alpha", _front(found, config)] if found.swept else []),
        "### Quality by class",
        table(
            ["class", *[a["title"] for a in found.arms]],
            [[g, *[number(found.level(f"{COST}:attribute", a["name"], g)) for a in found.arms]] for g in found.groups],
        ),
        "### Other differences that exclude zero",
        secondary(found),
        "### What is not significant",
        not_significant(found),
        *_choice(found, config["choice"]),
    ]  # fmt: skip


def _of(found: Found, arm: str) -> Mapping[str, Any]:
    return found.level(LEAK, arm) or {}


def _null(found: Found, arm: str) -> str:
    null = _of(found, arm).get("null")
    return f"{null['high']:.4f}" if null else "not defined"


def _reached(found: Found) -> str:
    remedy = next(a["name"] for a in found.arms if a["role"] == "remedy")
    own = _of(found, remedy)
    inside = own["value"] <= own["null"]["high"]
    where = "inside" if inside else f"{own['value'] - own['null']['high']:.4f} above"
    return (
        f"The strongest attack on {found.title[remedy]} leaks {own['value']:.4f}, {where} what permuted labels show in "
        f"95 % of cases ({own['null']['high']:.4f}, the maximum over all attacks)."
    )


def _attacks(found: Found) -> str:
    cells = [x["group"] for x in found.evidence["levels"]
             if x["statistic"] == LEAK and x["arm"] == found.arms[0]["name"] and x["group"]]  # fmt: skip
    rows = [[c, *[number(found.level(LEAK, a["name"], c)) for a in found.arms]] for c in cells]
    return table(["surface/attacker/protocol", *[a["title"] for a in found.arms]], rows)


def _front(found: Found, config: Mapping[str, Any]) -> str:
    rows = []
    for arm in found.arms:
        own = [arm, *[a for a in found.swept if a["name"].partition("@")[0] == arm["name"]]]
        for a in sorted(own, key=lambda a: config["resolved"]["arms"][a["name"]]["alpha"]):
            alpha = config["resolved"]["arms"][a["name"]]["alpha"]
            rows.append([arm["title"], f"{alpha:g}", number(found.level(LEAK, a["name"])),
                         number(found.level(COST, a["name"]))])  # fmt: skip
    return table(["arm", "alpha", "leakage", "NDCG@10"], rows)


def _choice(found: Found, choice: Mapping[str, Any]) -> list[str]:
    rows = [
        [found.title.get(arm, arm), f"{r['alpha']:g}", f"{r['leakage']:.4f}", f"{r['valid']:.4f}",
         "yes" if choice["chosen"][arm]["alpha"] == r["alpha"] else ""]
        for arm, own in choice["curves"].items() for r in sorted(own, key=lambda r: r["alpha"])
    ]  # fmt: skip
    return [
        "### How alpha was chosen",
        f"On gender and BPR-MF, seeds {', '.join(map(str, choice['seeds']))}, attacking a quarter of the users who are "
        f"attacked in no reported run: the smallest leakage among alphas whose validation NDCG@10 lies within "
        f"{100 * choice['tolerated']:g} % of no defence ({choice['reference']:.4f}). The placebo and the noise take "
        "the alpha of the remedy.",
        table(["arm", "alpha", "leakage", "validation NDCG@10", "chosen"], rows),
    ]
