"""Section of RESULTS.md on MRD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from upright.report.results.common import Found, signed, table

__all__ = ["section"]

GAP, UTILITY, KS = "mean:forget_gap", "utility:retain", "ks_distance:forget_truth_probability"
QUALITY, ATTACK = "forget_quality:forget_truth_probability", "membership:mia_loss"
LEVELS = {
    GAP: "distance from the reference", "mean:forget_loss_gap": "of the loss", KS: "KS distance", QUALITY: "forget quality, median p",
    UTILITY: "utility", ATTACK: "membership by loss, abs(AUC - 1/2)",
    "mean:forget_probability": "probability of forgotten answers", "mean:extraction_strength": "extraction strength",
}  # fmt: skip
EFFORT = {
    **{f"{x}~{y}{z}": (f"{said}{', given answer tokens' * bool(z)}", measure)
       for y, measure in (("effort", "effort, loss per token"), ("effort_sum", "effort, whole answer"))
       for x, said, z in (("mrd", "MRD", ""), ("mrd", "MRD", "|answer_tokens"), ("mrd_per_token", "MRD per token", ""),
                          ("answer_tokens", "answer tokens", ""), ("nll_before", "loss per token before", ""),
                          ("nll_before", "loss per token before", "|answer_tokens"))},
    "mrd~answer_tokens": ("MRD", "answer tokens"), "mrd~nll_before": ("MRD", "loss per token before"),
}  # fmt: skip
ASCENDED = {"mrd~effort": "Ascending the loss per token", "mrd~effort_sum": "Ascending the loss of the whole answer"}
THIRDS = ("hard", "middle", "easy")
SERVED = ("original", "reference")


def section(name: str, summary: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the paragraphs of one study.

    Parameters
    ----------
    name : str
        Folder below ``results``.
    summary, config : mapping
        ``summary.json`` and ``config.json`` of the folder. ``config["choice"]`` may be absent.
    """
    found, arms = Found(summary), config["resolved"]["arms"]
    shown = {s: title for s, title in LEVELS.items() if any(found.level(s, a["name"]) for a in found.arms)}
    return [
        *_head(found, name, config),
        "### Levels",
        table(
            ["arm", "role", *shown.values()],
            [[a["title"], _role(a, arms), *[_number(found.level(s, a["name"])) for s in shown]] for a in found.arms],
        ),
        *_by_chance(found),
        f"### {summary['title']} against each arm",
        table(
            ["against", "role", "change of the distance", "verdict", "smallest detectable", "change of utility",
             "verdict on utility"],
            [[found.title[d["against"]], _role(_arm(found, d["against"]), arms), signed(d), d["verdict"],
              _plain(d["smallest_detectable"]), signed(found.against(UTILITY, d["against"])),
              (found.against(UTILITY, d["against"]) or {"verdict": "not defined"})["verdict"]]
             for d in found.differences(GAP)],
        ),
        *_effort(found),
        *_thirds(found),
        "### Other differences, and what is not significant",
        _others(found, arms),
        *_choice(config),
    ]  # fmt: skip


def _head(found: Found, folder: str, config: Mapping[str, Any]) -> list[str]:
    """Write title, records, model, verdict and how to repeat it."""
    data, verdict, task = found.summary["data"], found.evidence["verdict"], config["resolved"]["task"]
    own: Mapping[str, Any] = next(
        (config["resolved"]["arms"][a["name"]] for a in found.arms if a["role"] == "remedy"), {}
    )
    sizes, anew = data["records"], ", drawn anew at each seed" if task.get("data") == "tofu" else ""
    loss = str(own.get("loss", "")).upper().replace("SIMNPO", "SimNPO").replace("SATIMP", "SatImp").replace("_", "-")
    words = {"learning_rate": "learning rate", "epochs": "epochs", "gamma": "forget weight", "alpha": "retain weight"}
    settings = [f"{said} {own[key]:g}" for key, said in words.items() if key in own]
    return [
        f"## {found.summary['title']} with {loss or 'its default loss'} on {data['name']}",
        f"{sizes['forget']:,} records to forget{anew}, {sizes['retain']:,} kept, {sizes['holdout']:,} held out; model "
        f"{data['model']}, reference {data['reference']}; {', '.join(settings)}; seeds "
        f"{', '.join(map(str, found.summary['seeds']))}; folder `results/{folder}`; `{config['command']}`.",
        f"**{verdict['sentence']}** {verdict['cost']}",
        *verdict["notes"],
    ]


def _arm(found: Found, name: str) -> Mapping[str, Any]:
    return next((a for a in found.arms if a["name"] == name), {"name": name, "role": ""})


def _role(arm: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the role; of models that were not unlearned, what they are for."""
    serve = arms.get(arm["name"], {}).get("serve")
    return {"original": "where it starts", "reference": "the aim"}.get(str(serve), str(arm["role"]))


def _plain(value: Any) -> str:
    return "not defined" if value is None or math.isnan(value) else f"{value:.4f}"


def _ends(low: Any, high: Any, sign: str = "") -> str:
    """Return an interval in brackets, empty where there is none."""
    if any(v is None or math.isnan(v) for v in (low, high)):
        return ""
    return f" [{low:{sign}.4f}, {high:{sign}.4f}]"


def _number(row: Mapping[str, Any] | None) -> str:
    """Write a level with its interval, where it has one."""
    if row is None or _plain(row["value"]) == "not defined":
        return "not defined"
    small = 0 < abs(row["value"]) < 5e-5
    return (f"{row['value']:.1e}" if small else f"{row['value']:.4f}") + _ends(row["low"], row["high"])


def _by_chance(found: Found) -> list[str]:
    """Say what chance shows of the two distances, and who is below the level of unseen records."""
    said = []
    for statistic, words in ((KS, "two models that are alike on every record show a KS distance"),
                             (ATTACK, "permuted labels show a membership distance")):  # fmt: skip
        tops = [x["null"]["high"] for a in found.arms if (x := found.level(statistic, a["name"])) and x.get("null")]
        if tops:
            said.append(f"{words} of up to {max(tops):.4f}")
    text = "In 95 % of cases " + " and ".join(said) + "." if said else ""
    below = [a["title"] for a in found.arms
             if (x := found.level(ATTACK, a["name"])) and x.get("auc") is not None
             and x.get("auc_high") is not None and x["auc_high"] < 0.5]  # fmt: skip
    if below:
        text += " The AUC is below one half, so that forgotten records stand out as less known than unseen ones, with "
        text += f"{', '.join(below)}."
    return [text.strip()] if text else []


def _effort(found: Found) -> list[str]:
    """Write correlations of scores with effort, with what permuted values show."""
    remedy = next((a["name"] for a in found.arms if a["role"] == "remedy"), found.arms[0]["name"])
    rows, words = [], []
    for metric, (x, y) in EFFORT.items():
        row = found.level(f"rank_correlation:{metric}", remedy)
        if row is None or row["value"] is None:
            continue
        null = row.get("null")
        band = _ends(null["low"], null["high"], "+").strip() if null else "not defined"
        rows.append([x, y, signed(row), band, str(row["n_units"]), str(row["n_undefined"])])
        if metric in ASCENDED:
            words.append(f"{ASCENDED[metric]}: {_predicts(row)}")
    if not any(row[1].startswith("effort") for row in rows):
        words.append("Updates until forgotten were not counted, so whether MRD predicts effort is not known.")
    if not rows:
        return ["### Does MRD predict effort?", *words]
    return [
        "### Does MRD predict effort?",
        *words,
        "Rank correlation within each seed, averaged; effort is how many updates a record alone takes to be forgotten. Given "
        "answer tokens, the correlation is partial: what length explains is taken out of both.",
        table(["score", "with", "rank correlation", "permuted, 95 % band", "records", "left out"], rows),
    ]


def _predicts(row: Mapping[str, Any]) -> str:
    null = row.get("null")
    outside = null is not None and not null["low"] <= row["value"] <= null["high"]
    if not outside or row["low"] <= 0 <= row["high"]:
        return "MRD is not shown to predict how many updates a record needs."
    if row["value"] < 0:
        return "records with a small MRD needed more updates, as the score claims."
    return (
        "the sign is the opposite of what the score claims: records with a small MRD, read as hard, needed fewer "
        "updates."
    )


def _thirds(found: Found) -> list[str]:
    """Write the distance in each third of the scores."""
    own = [t for t in THIRDS if any(found.level(f"{GAP}:difficulty", a["name"], t) for a in found.arms)]
    if not own:
        return []
    rows = [[a["title"], *[_number(found.level(f"{GAP}:difficulty", a["name"], t)) for t in own]] for a in found.arms]
    return ["### Distance by difficulty third, within each seed", table(["arm", *own], rows)]


def _others(found: Found, arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Write one line a statistic: against whom it helps, harms, is equal, and is not decided."""
    controls = [a["name"] for a in found.arms if arms[a["name"]].get("serve") not in SERVED]
    by_label: dict[str, dict[str, list[str]]] = {}
    for d in found.evidence["differences"]:
        if d["value"] is None or d["against"] not in controls or d["statistic"] in (GAP, UTILITY):
            continue
        word = d["verdict"]
        if word in ("helps", "harms"):
            word += ", after Holm's correction too," if d["holm_p"] < 0.05 else ", but not after Holm's correction,"
        by_label.setdefault(d["label"], {}).setdefault(word, []).append(found.title[d["against"]])
    # titles of arms hold commas
    lines = [f"* {label}: " + "; ".join(f"{word} against {' / '.join(who)}" for word, who in sorted(own.items()))
             for label, own in by_label.items()]  # fmt: skip
    return "\n".join(lines) or "Nothing else was compared."


def _choice(config: Mapping[str, Any]) -> list[str]:
    """Write how the learning rate was chosen; that it was not, where the study has no choice."""
    choice, title = config.get("choice"), "### How the learning rate was chosen"
    if not choice:
        return [title, "Nothing was chosen on these data: all settings are those of the command or the defaults."]
    chosen, least = choice["learning_rate"], choice.get("least_utility")
    rows = [
        ["no unlearning" if r["learning_rate"] is None else f"{r['learning_rate']:g}", _plain(r["gap"]),
         _plain(r["utility"]), "yes" if r["learning_rate"] == chosen else ""]
        for r in choice["tried"]
    ]  # fmt: skip
    rates = [r["learning_rate"] for r in choice["tried"] if r["learning_rate"] is not None]
    edge = len(rates) > 1 and chosen in (min(rates), max(rates))
    return [
        title,
        f"On validation, seeds {', '.join(map(str, choice['seeds']))}: {choice['rule']}."
        + (f" The least utility was {least:.4f}." if least is not None else "")
        + (" The chosen rate lies at an end of its grid, so a better one outside is not ruled out." if edge else ""),
        table(["learning rate", "distance from the reference", "utility", "chosen"], rows),
    ]
