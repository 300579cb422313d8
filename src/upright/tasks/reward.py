"""Rewards of video generators: which violations of mechanics each sees, what it minds besides, and what cheating earns.

Nothing is trained, and no file is needed: clips of two rigid bodies are simulated, broken on purpose, edited without
harm, and cheated (`upright.video.violations`), the same for all rewards that are named. A unit is a clip, true or
violated, and its value for a reward such that the mean over the clips of a violation is the area under the ROC curve:
how often a true clip is preferred to a violated one, 0.5 by chance. Clips of one scene hang together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from upright.contract import Config, File, InputError, Metric, Range, UnitScores, audit
from upright.declare import Intervals, Noted
from upright.evidence.verdict import audit_verdict
from upright.lazy import LazyModule
from upright.maths.ranks import auc_values
from upright.tasks.answers import YOURS, Answer, levels_of, plural

if TYPE_CHECKING:
    from upright.video import rewards, violations
else:
    rewards = LazyModule("upright.video.rewards")
    violations = LazyModule("upright.video.violations")

__all__ = ["RewardConfig", "auc_by_violation", "read_reward"]

_SIZES = {
    "size": "size",
    "auc": "AUC",
    "harm": "cost, noise floors",
    "monotone": "rank correlation with size",
    "clips": "clips",
}


class RewardConfig(Config):
    """Which rewards, and on how many clips."""

    names: tuple[File, ...]
    """Rewards by name: fixed, newton, official, paper, pixel_l1, and those of installed packages."""
    clips: Annotated[int, Range(ge=24, le=5000)] = 40
    """True clips, a quarter of each kind of scene."""
    pixels: Annotated[int, Range(ge=32, le=256)] = 64
    """Height and width."""
    frames: Annotated[int, Range(ge=16, le=120)] = 24
    """Frames of a clip; the first 5 are its context."""


@audit(
    "reward",
    config=RewardConfig,
    report=[
        Intervals(
            "How often a true clip is preferred to a violated one, by violation",
            "mean:*:violation=*",
            ["0.5 is chance, 1 always. Each violation at the size of the bench."],
            join="arm",
        ),
        Noted("Violations by size", "sizes", by={"reward": "Reward", "violation": "Violation"}, names=_SIZES),
        Noted(
            "Edits that break no mechanics, by how many noise floors they cost",
            "edits",
            ["Near 0 is blind to the edit. A shift moves all things, which a reward with a true clip has to mind."],
            by={"reward": "Reward", "edit": "Edit"},
            names={"shift": "noise floors"},
        ),
        Noted(
            "What cheats earn beyond a true clip, in noise floors",
            "cheats",
            ["Above -1 the cheat earns what a true clip does, or more: a policy will find it."],
            by={"reward": "Reward", "cheat": "Cheat"},
            names={"earns": "noise floors"},
        ),
        Noted(
            "Noise and time",
            "rewards",
            by={"reward": "Reward"},
            names={"floor": "noise floor", "honest": "mean cost of a true clip", "ms": "CPU ms a clip"},
        ),
    ],
    limits=[
        "Clips are drawn: two discs, known colours, a camera that stands. What a reward sees in films it may not see.",
        "Violations are those of the list, at sizes that were named before; a model may find others.",
        "A reward that needs the true clip punishes every other future, right or wrong.",
    ],
)
def read_reward(config: RewardConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit which violations of mechanics rewards of video generators see, and what cheats would earn.

    Raises
    ------
    InputError
        For a name that is no reward, and whatever a reward refuses.
    """
    for name in config.names:
        if not isinstance(name, str):
            raise InputError(f"a {type(name).__name__}", "names of rewards", "register it, see docs/audit-reward.md")
    names = list(dict.fromkeys(config.names))
    chosen = [rewards.load_reward(name) for name in names]
    size = (config.pixels, config.pixels)
    bench = violations.bench_rewards(chosen, clips=config.clips, seed=seed, size=size, frames=config.frames)
    violated, kinds = np.array(bench.violated), list(violations.VIOLATIONS)
    group = np.array([kinds.index(name) for name in bench.violation])
    values = {name: auc_by_violation(np.array(cost), violated, group) for name, cost in bench.cost.items()}
    state = np.where(violated, "violated", "true")
    unit = [f"{scene} {name} {how}" for scene, name, how in zip(bench.scene, bench.violation, state, strict=True)]
    scores = UnitScores("clip", unit, values, {"violation": bench.violation}, cluster=bench.scene)
    metrics = {name: Metric(name, "higher", margin=0.05, low=-1.0, high=2.0, title=f"{name}, AUC") for name in values}
    notes = _notes(bench.rows)
    told = {name: _told(name, notes) for name in names}
    paid = [f"{row['reward']}: {row['cheat']}" for row in notes["cheats"] if not row["earns"] < -1.0]
    texts = [one for name in values for one in (f"mean:{name}", f"mean:{name}:violation")]
    held = levels_of(scores, texts, metrics, draws=draws, seed=seed)
    first = names[0]
    own = [row for row in held["levels"] if row["metric"] == first and row.get("group")]
    held["headline"] = min(own, key=lambda row: row["value"])
    lines = {"effect": "; ".join(f"{name} sees {least}" for name, (least, _) in told.items())}
    lines["cheats"] = f"paid as much as a true clip: {', '.join(paid)}" if paid else "none earns what a true clip does"
    lines |= {name: text for name, (_, text) in told.items()}
    steps = ["Train on none that pays a cheat." if paid else "Train on one that sees what matters to you."]
    said = audit_verdict("gap shown", [], unit="clip").row()
    held["verdict"] = said | {"primary": f"mean:{first}", "lines": lines, "next_steps": steps}
    held["verdict"]["sentence"] = f"{lines['effect']}; cheats: {lines['cheats']}."
    return Answer(
        title=f"Audit of {plural(len(names), 'reward')} of video generators",
        arm_title="your rewards" if len(names) > 1 else names[0],
        asks="whether a reward prefers clips that keep the laws of mechanics, and what else it pays for",
        data={"name": "simulated clips", "clips": config.clips, "violations": len(kinds), "rewards": names},
        scores=scores,
        metrics=metrics,
        compared=[first],
        evidence=held,
        notes={YOURS: notes},
    )


def auc_by_violation(cost: Any, violated: Any, group: Any) -> Any:
    """Return one value a clip, whose mean over a violation is its AUC; NaN for a clip that could not be measured."""
    return auc_values(cost, violated, np.where(np.isnan(cost), -1, group))


def _told(name: str, notes: Mapping[str, list[dict[str, Any]]]) -> tuple[str, str]:
    """Say which violation a reward sees least, and in a line what cheats earn and what it costs."""
    seen = [row for row in notes["sizes"] if row["reward"] == name and row["bench"] and row["clips"]]
    least = min(seen, key=lambda row: (row["harm"] >= 1.0, row["auc"]))  # what costs less than noise is not seen
    (facts,) = [row for row in notes["rewards"] if row["reward"] == name]
    earned = ", ".join(f"{row['cheat']} {row['earns']:+.1f}" for row in notes["cheats"] if row["reward"] == name)
    share = sum(row["auc"] >= 0.95 and row["harm"] >= 1.0 for row in seen)
    text = f"AUC of 0.95 and a cost above noise on {share} of {len(seen)} violations; "
    text += f"cheats earn, in noise floors: {earned}; {facts['ms']:.1f} CPU ms a clip"
    told = f"{least['violation']} least (AUC {least['auc']:.2f}, at {least['harm']:.1f} noise floors)"
    return "every violation" if least["auc"] > 0.995 and least["harm"] >= 1.0 else told, text


def _notes(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a bench by what they are about."""
    of = {"violation": "sizes", "edit": "edits", "cheat": "cheats", "reward": "rewards"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in of.values()}
    for row in rows:
        found[of[row["what"]]].append({row["what"]: row["name"], **{k: v for k, v in row.items() if k != "name"}})
    return found
