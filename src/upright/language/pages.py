"""What the forgetting desk shows to a person: plain text from the same values that a machine reads as JSON."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "EXACT",
    "LEAST",
    "UNMEASURABLE",
    "dry_page",
    "eval_page",
    "in_short",
    "is_forgotten",
    "list_page",
    "page",
    "place_on",
    "purge_page",
    "score_page",
    "unlearn_page",
    "verify_page",
]

EXACT = "exact retrain of this stage"
"""Level of a request that ran the stage anew without the records."""
LEAST = 5  # as in measures, which loads torch
UNMEASURABLE = "not measurable by membership"
"""The verdict on fewer records than `LEAST`."""
_HASH = "SHA-256 of all lines above: "
_TITLE = "Receipt of request "
_OTHERS = "            config, tokenizer and what else it reads, SHA-256 "
_ATTACKS = "forgotten against held-out records (AUC, 0.5 finds nothing; 95 % intervals of all attacks together)"
_ORDER = {"before": 0, "after": 1, "model": 1, "reference": 2}


def number(value: Any) -> str:
    """Write an estimate as ``0.1234 [0.1000, 0.1500], n = 40``, what is not reported as a dash."""
    if not isinstance(value, Mapping):
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    low, high = (f"{value[k]:.4g}" if value[k] is not None else "?" for k in ("low", "high"))
    return f"{value['value']:.4g} [{low}, {high}], n = {value['n']}"


def metric_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return the aggregates as lines of text; what had too few records is left out and counted."""
    lines, hidden = [], 0
    for side in ("forget", "retain"):
        for name, row in (metrics.get(side) or {}).items():
            shown = {k: row[k] for k in _ordered(row) if row[k] is not None}
            hidden += not shown
            lines += [f"  {name}"] * bool(shown) + [f"    {k:<22} {number(v)}" for k, v in shown.items()]
    if metrics.get("utility"):
        rows = {k: v for k, v in metrics["utility"].items() if k != "parts"}
        lines.append(f"  utility: harmonic mean of {', '.join(metrics['utility']['parts'])}")
        lines += [f"    {k:<22} {number(rows[k])}" for k in _ordered(rows)]
    if metrics.get("forget_quality"):
        q = metrics["forget_quality"]
        lines.append(f"  forget quality against the reference: p = {q['p']:.4g}, D = {q['distance']:.4g}, n = {q['n']}")
    if hidden:
        lines.append(f"  {hidden} metrics not reported: fewer than 5 records with a value")
    return lines


def _ordered(names: Iterable[str]) -> list[str]:
    """Put models before differences, in the order of time: canonical JSON has sorted them by letter."""
    return sorted(names, key=lambda k: (" " in k, _ORDER.get(k, 0), k))


def attack_lines(attacks: Mapping[str, Any] | None) -> list[str]:
    """Return attacks as lines: AUC of forgotten against held-out records by model."""
    lines = []
    for model in _ordered(attacks or {}):
        for name, row in ((attacks or {})[model] or {}).items():
            leak = f", privleak {row['privleak']:.1f}" if row.get("privleak") is not None else ""
            gap = f", against the reference {number(row['gap'])}" if row.get("gap") else ""
            lines.append(f"  {name}, {model}: AUC {number(row)}, {row['n_holdout']} held out{gap}{leak}")
    return lines or ["  none available: no held-out records, or fewer than 5"]


def page(receipt: Mapping[str, Any]) -> str:
    """Return a receipt as plain text, whose last line is the SHA-256 of what stands above it.

    The hash shows what an accident changed; whoever may edit the page can write it anew. Only the ledger shows that.
    """
    r = receipt
    model, ledger, forgotten = r["model"], r["ledger"], r["forgotten"]
    if r["records"]["forget"] < LEAST and forgotten.startswith("not measured"):
        forgotten = UNMEASURABLE
    exact = r["level"] == EXACT
    lines = [
        f"{_TITLE}{r['request']}", "", *_remedy(r),
        f"status      {r['status']}" + (f": {'; '.join(r['reasons'])}" if r["reasons"] else ""),
        f"forgotten   {forgotten}",
        f"level       {r['level']}",
        "            " + ("what the model it began from had seen before is not known here" if exact else
                          "no certificate: other tests than those below may still find the records"),
        f"records     {r['records']['forget']} to forget, {r['records']['retain']} to keep, "
        f"{r['records']['holdout']} held out",
        f"model       {model['source']}, SHA-256 {model['before']}", *_told(_OTHERS, model.get("before_settings")),
        f"became      {model['output'] or 'not written'}" + (f", SHA-256 {model['after']}" if model["after"] else ""),
        *_told(_OTHERS, model.get("after_settings")),
        *([f"base        {model['base']}, SHA-256 {model['base_sum']}"] if "base_sum" in model else []),
        f"reference   {r['reference']}",
        f"early stop  {r['early_stop']}" + ("" if r["at_level"] is None else
                                            f"; {r['at_level']} of {r['records']['forget']} records reached it"),
        *_told("training    ", _training(r)),
        f"method      {', '.join(f'{k} = {v}' for k, v in r['method'].items())}",
        f"code        {', '.join(f'{k} {v}' for k, v in r['code'].items())}",
        *_told("devices     ", ", ".join(f"{phase} on {device}" for phase, device in r.get("devices", {}).items())),
        f"ledger      line {ledger['line']} of {ledger['time']}, hash {ledger['hash']}",
        f"            head {ledger['head']}{', signed' if ledger['signed'] else ''}",
    ]  # fmt: skip
    purged = f"Purged in line {r['purged']}: the hashes below can no longer be tied to records."
    sections = _sections(
        {
            "Guards": [f"  {g['name']}: {g['state']}: {g['detail']}" for g in r["guards"]],
            "Measured, with 95 % intervals over records": metric_lines(r["metrics"]),
            f"Attacks tried, {_ATTACKS}": attack_lines(r["metrics"]["membership"]),
            "What still holds the data": [f"  {a['what']}: {a['name']}: {a['holds']}" for a in r["artefacts"]],
            "What the numbers are no evidence of": [f"  {n}" for n in r["notes"]],
            "Warnings": [f"  {w}" for w in r["warnings"]],
            "Since": [f"  {x['time']}, line {x['line']}: {said(x)}" for x in r["since"]],
            f"Records, {r['hashing']}": [f"  {purged}"] * bool(r["purged"]) + [f"  {h}" for h in r["hashes"]],
        }
    )
    return _closed("\n".join([*lines, "", sections]))


def _remedy(receipt: Mapping[str, Any]) -> list[str]:
    """Return what would have been better than what was done, and an empty line; most receipts have none."""
    return [receipt["remedy"], ""] if receipt.get("remedy") else []


def _told(title: str, text: str | None) -> list[str]:
    """Return a line, and none where there is nothing to tell: receipts of earlier versions say less."""
    return [title + text] if text else []


def _training(receipt: Mapping[str, Any]) -> str:
    """Say after how much training the weights are, and why it stopped."""
    found = receipt.get("training") or {}
    why = f"; stopped: {found['stopped']}" if found.get("stopped") else ""
    return f"weights after {found['epochs']} epochs, {found['steps']} steps{why}" if "epochs" in found else ""


def _closed(text: str) -> str:
    above = f"{text}\n\n"
    return f"{above}{_HASH}{hashlib.sha256(above.encode()).hexdigest()}\n"


def place_on(text: str) -> dict[str, str] | None:
    """Return the ``hash`` of the line of a page and its ``head``; None when its last line is not the hash of the rest.

    Raises
    ------
    ValueError
        When it is no page of a receipt.
    """
    if not text.startswith(_TITLE):
        raise ValueError("no page of a receipt")
    if f"{text.strip()}\n" != _closed(text.strip().rpartition("\n")[0].rstrip()):
        return None
    return dict(re.findall(r"^(?:ledger .*, | +)(hash|head) ([0-9a-f]{64})", text, re.MULTILINE))


def is_forgotten(verdict: str) -> bool:
    """Whether a verdict is *forgotten*; what was not shown, not measured, or is meaningless, is not."""
    return verdict.startswith("forgotten: ")


def in_short(verdict: str) -> str:
    """Return a verdict in a few words, for one line of a list."""
    if verdict.startswith("not measured"):
        return "forgetting not measured"
    words = verdict.partition(";")[0]
    if words.startswith("no: "):  # as ledgers of earlier versions say it
        return f"not forgotten: {words.removeprefix('no: ')}"
    first = words.partition(":")[0]
    return first if first in ("forgotten", "still known", "not shown", UNMEASURABLE) else words


def said(row: Mapping[str, Any]) -> str:
    """Say in words what a re-evaluation found about one request."""
    again = row.get("kept_again", 0)
    taught = "fewer than 5" if again is None else str(again)
    taught = "" if again == 0 else f"; {taught} of them stood in the retain file: they were taught again"
    if row["state"] == "not comparable":
        return f"{row['why']}: not comparable"
    if row["state"] != "re-evaluated":
        return f"not re-evaluable: {row['why']}{taught}"
    back = f"; it came back{taught}" if row["came_back"] else taught
    return f"re-evaluated on {row['matched']} of {row['of']} records: probability {number(row['probability'])}{back}"


# -- the verbs ------------------------------------------------------------------------------------------------------


def _sections(parts: Mapping[str, Sequence[str]]) -> str:
    """Join titled sections; empty ones are left out."""
    return "\n\n".join("\n".join([title, *lines]) for title, lines in parts.items() if lines)


def _again(found: Mapping[str, Any] | None) -> list[str]:
    return [f"  {row['request']}: {said(row)}" for row in (found or {"requests": []})["requests"]]


def score_page(found: Mapping[str, Any]) -> str:
    """Return the aggregates of a scoring."""
    d = found["difficulty"]
    rows = {
        k: d[k]
        for k in ("mrd", "mrd_per_token", "nll", "tokens", "reliability", "scaling", "clamped", "probes", "passes")
    }
    return _sections({
        f"Request {found['request']}, {d['records']} records, ledger line {found['ledger']}":
            [f"  {k:<14} {number(v)}" for k, v in rows.items()],
        "Warnings": [f"  {w}" for w in [*found["notes"], *(d["warnings"] or [])]],
    })  # fmt: skip


def dry_page(found: Mapping[str, Any]) -> str:
    """Return what a request would take."""
    lines = [f"  {k:<11} {v}" for k, v in found["passes"].items()]
    lines.append(f"  {'minutes':<11} {found['minutes']:.1f}, from one small batch on this machine")
    lines.append(f"  {'memory':<11} {found['memory_mib']:.1f} MiB: {found['memory']}")
    return _sections({"A dry run: nothing was changed": lines, "Warnings": [f"  {w}" for w in found["notes"]]})


def unlearn_page(found: Mapping[str, Any]) -> str:
    """Return how a request ended; the receipt holds the rest."""
    model, utility = found["model"], found["metrics"]["utility"] or {}
    probability = found["metrics"]["forget"].get("forget_probability") or {}
    lines = [f"  forgotten  {found['forgotten']}",
             f"  level      {found['level']}",
             f"  model      {model['output'] or 'not written: see --keep-failed'}",
             f"  early stop {found['early_stop']}",
             *_told("  training   ", _training(found))]  # fmt: skip
    lines += [f"  {g['name']}: {g['state']}: {g['detail']}" for g in found["guards"]]
    lines += [f"  probability of the forgotten answers, {k}: {number(probability[k])}" for k in _ordered(probability)
              if probability[k] is not None and " " not in k]  # fmt: skip
    lines += [f"  utility, {k}: {number(utility[k])}" for k in _ordered(utility) if " " not in k and k != "parts"]
    lines.append(f"  receipt    upright forget receipt {found['request']}")
    lines.append(f"  ledger     line {found['ledger']['line']}, head {found['ledger']['head']}: keep it elsewhere")
    sections = _sections({
        f"Request {found['request']}: {found['status']}": [*[f"  because {r}" for r in found["reasons"]], *lines],
        "Warnings": [f"  {w}" for w in found["warnings"]],
        "Earlier requests": _again(found["reevaluated"]),
    })  # fmt: skip
    return "\n".join([*_remedy(found), sections])


def eval_page(found: Mapping[str, Any], again: Mapping[str, Any] | None, out: Path) -> str:
    """Return the measures of a model."""
    title = f"{found['model']['name']}, reference: {found['reference']}; written to {out.name}"
    return _sections({
        title: metric_lines(found["metrics"]),
        f"Attacks, {_ATTACKS}":
            attack_lines(found["metrics"]["membership"]),
        "Robustness, probability of the forgotten answers": robustness_lines(found.get("robustness")),
        "Warnings": [f"  {w}" for w in found["notes"]],
        "Earlier requests": _again(again),
    })  # fmt: skip


def robustness_lines(found: Mapping[str, Any] | None) -> list[str]:
    """Return one line an attack, and what the relearning was."""
    if not found:
        return []
    lines = []
    for attack, row in found["attacks"].items():
        share = "" if row["recovered"] is None else f", share brought back {row['recovered']:.3f}"
        shown = "fewer than 5 records" if row["probability"] is None else number(row["probability"])
        other = f"; the reference {number(row['reference'])}" if row["reference"] else ""
        lines.append(f"  {attack:<16} {shown}{share}{other}")
    s = found["settings"]
    return [*lines, f"  relearning: {s['relearning_steps']} steps at {s['relearning_rate']:g}, scored on the half it "
            "was not trained on; more steps bring back more, also of what was never known"]  # fmt: skip


def purge_page(found: Mapping[str, Any]) -> str:
    """Return what was destroyed."""
    gone = ", ".join(found["destroyed"]) or "nothing was left to destroy"
    return f"Request {found['request']}: {gone}; ledger line {found['ledger']}\n  {found['note']}"


def list_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a request."""
    lines = []
    for r in rows:
        parts = [
            r["status"] + (f" ({r['why']})" if r["why"] else ""),
            r["forgotten"],
            f"{r['model']} -> {r['out'] or 'no model'}",
            "purged" if r["purged"] else None,
            None if r["line"] is None else f"ledger line {r['line']}",
        ]
        lines.append(f"  {r['request']}  {', '.join(part for part in parts if part)}")
    return "\n".join(["Requests", *(lines or ["  none yet"])])


def verify_page(found: Mapping[str, Any]) -> str:
    """Return what a check of the ledger found."""
    model = found["model"]
    if found["broken"]:
        return f"broken at line {found['broken']}: {found['reason']}\n  {found['lines']} lines"
    kept = "signed" if found["signed"] else "unsigned: whoever may write the file can write the whole chain anew"
    lines = [f"{found['lines']} lines, all hold; {kept}", f"  head {found['head']}"]
    if found["receipt"]:
        lines.append(f"  the receipt says what line {found['receipt']} and what followed say")
    if model:
        other = "and all other files" if model["settings"] else "(its line is older and tells of no other files)"
        lines.append(
            f"  {model['name']} is what line {model['line']} wrote, weights {other}: request "
            f"{model['request']}, {model['status']}, {in_short(model['forgotten'])}"
        )
    return "\n".join([f"refused: {found['reason']}"] * bool(found["reason"]) + lines)
