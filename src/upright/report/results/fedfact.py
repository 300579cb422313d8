"""Section of RESULTS.md on FedFACT."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from upright.report.results.common import Found, choices, not_significant, number, secondary, signed, table

__all__ = ["section"]

GLOBAL = "disparity:rate:group"
WORST, MEAN = f"client_{GLOBAL}", f"mean_client_{GLOBAL}"
GAPS = {GLOBAL: "gap, all rows", WORST: "gap, worst client", MEAN: "gap, mean over clients"}
ACCURACY = "mean:accuracy"
#: remedies that have no tolerance, so that none is kept or broken
UNBOUND = ("blend", "thresholds", "fairfed", "fedfb")


def section(name: str, summary: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the paragraphs of one study.

    Parameters
    ----------
    name : str
        Folder below ``results``.
    summary, config : mapping
        ``summary.json`` and ``config.json`` of the folder. ``config["choice"]`` and ``config["published"]`` (arm to
        ``accuracy``, ``global`` and ``local``) may be absent.
    """
    found, arms = Found(summary), config["resolved"]["arms"]
    return [
        *_head(found, name, config),
        "### Levels",
        table(
            ["arm", "role", *GAPS.values(), "accuracy"],
            [[found.title[a["name"]], a["role"], *[number(found.level(s, a["name"])) for s in (*GAPS, ACCURACY)]]
             for a in found.arms],
        ),
        "What permuted groups show, 95th percentile: permuted over all rows for the first gap, inside each client for the others:",
        table(
            ["arm", *GAPS.values()],
            [[found.title[a["name"]], *[_null(found.level(s, a["name"])) for s in GAPS]] for a in found.arms],
        ),
        *_rates(found),
        "### Gaps on the calibration rows, and the tolerance",
        table(
            ["arm", "tolerance", "tolerance inside clients", "gap, all rows: mean, largest over seeds",
             "gap, worst client: mean, largest over seeds", "within the tolerances"],
            [_calibration(found.title[a["name"]], a, arms[a["name"]]) for a in found.arms],
        ),
        *_why(found, arms),
        f"### {summary['title']} against each arm",
        table(
            ["against", "role", "change of the gap of all rows", "verdict", "smallest detectable",
             "change of the worst client's", "change of the mean over clients", "change of accuracy"],
            [[found.title[d["against"]], d["role"], signed(d), d["verdict"], _plain(d["smallest_detectable"]),
              *[signed(found.against(s, d["against"])) for s in (WORST, MEAN, ACCURACY)]]
             for d in found.differences(GLOBAL)],
        ),
        *(["### Front: every arm at every tolerance", _front(found, arms)] if found.swept else []),
        "### Accuracy by group",
        table(
            ["group", *[found.title[a["name"]] for a in found.arms]],
            [[g, *[number(found.level(f"{ACCURACY}:group", a["name"], g)) for a in found.arms]]
             for g in _groups(found)],
        ),
        *_published(found, config.get("published") or {}),
        "### Other differences that exclude zero",
        secondary(found),
        "### What is not significant",
        not_significant(found),
        *_choice(found, config),
    ]  # fmt: skip


def _head(found: Found, folder: str, config: Mapping[str, Any]) -> list[str]:
    """Write title, data, clients, verdict and how to repeat it."""
    data, verdict, task = found.summary["data"], found.evidence["verdict"], config["resolved"]["task"]
    criterion = str(data["criterion"]).replace("_", " ")
    groups = ", ".join(f"{g} {n:,}" for g, n in data["groups"].items())
    spread = {
        "dirichlet": f"each group spread by a Dirichlet law of {task.get('gamma')}",
        "correlation": "with different correlations of group and label",
        "iid": "evenly",
        "column": f"by {task.get('client_column')}",
    }
    anew = "" if task.get("partition") == "column" else ", drawn anew at each seed"
    where = spread.get(str(task.get("partition")), str(task.get("partition")))
    return [
        f"## {found.summary['title']} on {data['name']}, {data['group']}, {criterion}",
        f"{data['rows']:,} rows ({groups}), {data['features']} columns, classes {', '.join(data['classes'])}; "
        f"{data['clients']} clients, {where}{anew}; seeds "
        f"{', '.join(map(str, found.summary['seeds']))}; folder `results/{folder}`; `{config['command']}`.",
        f"**{verdict['sentence']}** {verdict['cost']}",
        *verdict["notes"],
        *_left_out(found),
    ]


def _left_out(found: Found) -> list[str]:
    """Say how many clients had nobody to compare."""
    row = next((x for a in found.arms if (x := found.level(WORST, a["name"]))), None)
    if not row or not row.get("n_clients_left_out"):
        return []
    return [f"Of {row['n_clients']} clients over all seeds, {row['n_clients_left_out']} have a single group in a rate "
            "and stand in no gap inside clients."]  # fmt: skip


def _plain(value: Any) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _null(row: Mapping[str, Any] | None) -> str:
    null = row and row.get("null")
    return _plain(null["high"]) if null else "not defined"


def _groups(found: Found) -> list[str]:
    return sorted({x["group"] for x in found.evidence["levels"] if x["statistic"] == f"{ACCURACY}:group"})


def _rates(found: Found) -> list[str]:
    """Write the gap of each class where there are several."""
    names = list(dict.fromkeys(x["group"] for x in found.evidence["levels"]
                               if x["statistic"] == GLOBAL and x["group"] is not None))  # fmt: skip
    if not names:
        return []
    rows = [[c, *[number(found.level(GLOBAL, a["name"], c)) for a in found.arms]] for c in names]
    return ["Gap of all rows by what is decided:", table(["decided", *[found.title[a["name"]] for a in found.arms]],
                                                         rows)]  # fmt: skip


# -- calibration rows ------------------------------------------------------------------------------------------------


def _tolerances(settings: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the tolerances of an arm, global and local; None where it has none."""
    if settings.get("remedy") in UNBOUND:
        return None, None
    everybody, inside = settings["global_tol"], settings["local_tol"]
    pair = (everybody, everybody if inside is None else inside)
    if settings.get("remedy") == "reductions":  # it knows no clients
        pair = (everybody, 1.0)
    return tuple(None if t >= 1.0 else float(t) for t in pair)  # type: ignore[return-value]


def _calibration(title: str, arm: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    noted = [n["calibration"] for n in arm.get("notes_per_seed") or [arm.get("notes") or {}] if "calibration" in n]
    asked = _tolerances(settings)
    cells, kept = [], []
    for key, tolerance in zip(("global", "local_max"), asked, strict=True):
        gaps = [float(n[key]) for n in noted if n.get(key) is not None and not math.isnan(n[key])]
        cells.append(f"{sum(gaps) / len(gaps):.4f}, {max(gaps):.4f}" if gaps else "not defined")
        if tolerance is not None and gaps:
            kept.append(max(gaps) <= tolerance + 1e-6)
    if settings.get("groups") == "random":
        kept = []  # it keeps the tolerances for groups that are none
    within = "" if not kept else "yes" if all(kept) else "no"
    return [title, *["none" if t is None else f"{t:g}" for t in asked], *cells, within]


def _why(found: Found, arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what lets gaps on calibration rows exceed the tolerances that were given for them."""
    settings = next(arms[a["name"]] for a in found.arms if a["role"] == "remedy")
    said = []
    if not settings.get("randomised"):
        said.append("Decisions without chance need not meet a tolerance: in a cell of n rows a rate moves in steps of "
                    "1/n, and groups that are indifferent between decisions cannot be split by a threshold.")  # fmt: skip
    if found.summary["data"]["criterion"] != "demographic_parity":
        said.append("The program takes rates from the model's probabilities; the gaps above count labels.")
    if settings.get("gap") == "average":
        said.append("Tolerances bound a group's gap to the average; the gaps above are between two groups.")
    return [" ".join(said)] if said else []


# -- front, published values, settings -------------------------------------------------------------------------------


def _front(found: Found, arms: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for arm in found.arms:
        others = [a for a in found.swept if a["name"].partition("@")[0] == arm["name"]]
        for a in sorted([arm, *others], key=lambda a: arms[a["name"]]["global_tol"]):
            own = arms[a["name"]]
            # chance has no tolerance of its own; it matches the accuracy of the remedy at this one
            asked = own["global_tol"] if own.get("remedy") == "blend" else _tolerances(own)[0]
            rows.append([found.title[arm["name"]], "none" if asked is None else f"{asked:g}",
                         *[number(found.level(s, a["name"])) for s in (*GAPS, ACCURACY)]])  # fmt: skip
    return table(["arm", "tolerance", *GAPS.values(), "accuracy"], rows)


def _published(found: Found, published: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Write what the paper prints beside what was found here."""
    rows = []
    for arm, own in published.items():
        line = [found.title.get(arm, arm)]
        for key, statistic in (("accuracy", ACCURACY), ("global", GLOBAL), ("local", WORST)):
            here = number(found.level(statistic, arm)) if arm in found.title else "not run"
            line += [_plain(own.get(key)), here]
        rows.append(line)
    if not rows:
        return []
    heads = [f"{what}, {whose}" for what in ("accuracy", "gap, all rows", "gap, worst client")
             for whose in ("published", "here")]  # fmt: skip
    return [
        "### Beside the published values",
        "The paper prints no interval, and its splits, clients and settings are not known in full. The two sides are "
        "not paired: a difference between them is no test.",
        table(["arm", *heads], rows),
    ]


def _choice(found: Found, config: Mapping[str, Any]) -> list[str]:
    """Write how settings were chosen; that nothing was, where the study has no choice."""
    choice = config.get("choice")
    if not choice:
        return [
            "### How settings were chosen",
            "Nothing was chosen on these data: tolerances are stated, and all other settings are the defaults.",
        ]
    if "select" in choice and "tune" in choice:
        return choices(found, choice)
    rows, keys = [], list(dict.fromkeys(k for own in choice["curves"].values() for row in own for k in row))
    for arm, own in choice["curves"].items():
        chosen = choice["chosen"].get(arm, {})
        for row in own:
            taken = bool(chosen) and all(row.get(k) == v for k, v in chosen.items())
            rows.append([found.title.get(arm, arm), *[_cell(row.get(k)) for k in keys], "yes" if taken else ""])
    seeds = f", seeds {', '.join(map(str, choice['seeds']))}" if choice.get("seeds") else ""
    return [
        "### How settings were chosen",
        f"On calibration rows{seeds}:",
        table(["arm", *_words(keys), "chosen"], rows),
    ]


def _words(keys: Sequence[str]) -> list[str]:
    return [key.replace("_", " ") for key in keys]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
