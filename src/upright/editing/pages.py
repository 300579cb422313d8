"""What the editing desk shows to a person, at 80 columns: plain text from the values that a machine reads as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upright.language import pages

__all__ = ["apply_page", "diff_page", "dry_page", "list_page", "show_page", "verify_page"]


def _short(text: str, most: int = 68) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _change(one: str, other: str) -> str:
    return f"    {_short(one, 35)} -> {_short(other, 35)}"


def _why(found: Mapping[str, Any]) -> list[str]:
    lost = found["settings"]["editor"] != "gated" and any(one.startswith("locality 0") for one in found["reasons"])
    gate = ["  try --editor gated, which is on only where the prompt is like this one"] * lost
    return [*(f"  because {reason}" for reason in found["reasons"]), *gate]


def _scores(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    then, now = ({name[:-8]: value for name, value in scores[when].items() if name.endswith("_written")}
                 for when in ("before", "after"))  # fmt: skip
    return [f"  {name:<21} {then.get(name, 0):.2f} -> {value:.2f}" for name, value in now.items()]


def dry_page(found: Mapping[str, Any]) -> str:
    """Return what would be done with each request."""
    lines, counts = ["A dry run: nothing was trained or written"], [0, 0, 0]
    said = {"edit": "would be edited", "replace": "another target than an edit in force: needs --replace"}
    for one in found["requests"]:
        lines.append(f"  {_short(one['request'], 20)}: {said.get(one['to_do'], one['to_do'])}")
        lines += [f"    {_short(one['prompt'])}", _change(one["present"], one["target"])]
        counts[[*said, one["to_do"]].index(one["to_do"])] += 1
    return "\n".join([*lines, "{} to edit, {} in conflict, {} with nothing to do".format(*counts)])


def apply_page(found: Mapping[str, Any]) -> str:
    """Return what each edit changed, as written out, and the verdicts."""
    made, lines = found["edits"], list[str]()
    if found["of"]:
        then, now = found["right"]
        lines.append(
            f"Of {found['of']} answers, written out, {then} are as wanted without edits, {now} with all in force"
        )
    for one in made:
        lines += [f"Edit {one['edit']}: {one['verdict']}", *_why(one), f"    {_short(one['prompt'])}"]
        lines += [_change(one["present"], one["target"]), *_scores(one["scores"])]
        held = [row["reliability_written"] for row in one["retention"].values()]
        lines += [f"  {'earlier edits':<21} {sum(held):.0f} of {len(held)} still hold"] * bool(held)
    lines += [f"Edit {one['old']}: in force already" for one in found["requests"] if one["to_do"].startswith("nothing")]
    lines += [f"not asked, since the model answers about images alone: {name}" for name in found["left_out"]]
    said = [f"{sum(one['verdict'] == word for one in made)} {word}" for word in ("accepted", "warning", "rejected")]
    undo = ", undo: upright edit revert ID" if found["in_force"] else ""
    return "\n".join([*lines, f"{', '.join(said)}; {found['in_force']} in force{undo}"])


def list_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one or two lines an edit."""
    lines = ["Edits"]
    for one in rows:
        lines.append(f"  {one['edit']}  {one['verdict']}, {one['state']}{', FILE DAMAGED' if one['damaged'] else ''}")
        lines += [f"    {_short(one['prompt'], 44)} -> {_short(one['target'], 26)}"] if one["prompt"] else []
    return "\n".join(lines if rows else [*lines, "  none yet"])


def show_page(found: Mapping[str, Any]) -> str:
    """Return texts, numbers and state of an edit."""
    facts = found["facts"] or {"prompt": "not kept", "target": "not kept"}
    lines = [f"Edit {found['edit']}, line {found['line']} of {found['time']}"]
    lines.append(f"    {_short(facts['prompt'], 44)} -> {_short(facts['target'], 26)}")
    return "\n".join([*lines, *_scores(found["scores"]), *_why(found), f"{found['verdict']}, {found['state']}"])


def diff_page(found: Mapping[str, Any]) -> str:
    """Return answers without and with edits."""
    n = len(found["edits"])
    lines = [f"Answers of {_short(found['model'], 40)} without and with {n} edit{'s' * (n != 1)}"]
    for one in found["answers"]:
        where = " (about a picture)" if one["pictured"] else ""
        lines += [f"  {_short(one['prompt'], 58)}{where}", _change(one["before"], one["after"])]
    return "\n".join([*lines, f"{found['changed']} of {len(found['answers'])} answers changed"])


def verify_page(found: Mapping[str, Any]) -> str:
    """Return what a check of the desk found."""
    reason = found["broken"] and found["reason"]
    lines = [pages.verify_page({**found, "receipt": None, "model": None, "reason": reason})]
    lines += [f"  left by a kill, removed by the next command that writes: {name}" for name in found["left"]]
    if found["intact"]:
        beside = f", {found['model']} is their model" if found["model"] else ""
        lines.append(f"{found['files']} files are what their lines say, {found['in_force']} in force{beside}")
    elif not found["broken"]:
        lines.append(f"refused: {found['reason']}")
    return "\n".join(lines)
