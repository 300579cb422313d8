"""What every audit shares: groups, gaps among them, and the folder that a report reads.

An audit scores what a user already has. It has one arm, trains nothing and gives levels, gaps with intervals and with
what random groups would show, and the smallest gap that it could have detected.

Groups are compared in every metric and pair at once: intervals and p-values are adjusted for all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, InputError, Metric, UnitScores, stream
from upright.evidence.bootstrap import DRAWS
from upright.evidence.compute import evidence, margins_of, pair_levels
from upright.evidence.records import Level
from upright.evidence.units import Block, Units, write_units
from upright.evidence.verdict import audit_verdict
from upright.experiment.folders import RunFolder, write_json
from upright.experiment.notes import FEWEST as MIN_GROUP
from upright.experiment.places import require_folder
from upright.experiment.runner import new_folder
from upright.experiment.summary import ArmFacts, Evidence, Summary, write_summary
from upright.maths.simultaneous import compare_groups

__all__ = ["MIN_GROUP", "YOURS", "Audit", "suppress_small", "write_audit"]

YOURS = "yours"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything about one audit but its evidence.

    Parameters
    ----------
    kind : str
        Key of `AUDITS`.
    title, asks : str
        What was audited, and what it asks about.
    arm_title : str
        How a report writes the only arm.
    data : mapping
        Name, sizes and fingerprint of what was handed in.
    passed, resolved : mapping
        Settings as given and with defaults.
    scores : UnitScores
        Values per unit. The first grouping is the one whose groups are compared.
    metrics : mapping of name to Metric
        Of every metric in `scores`.
    statistics : sequence of str
        Besides those of the groups, as ``name:metric``.
    compared : sequence of str
        Metrics whose groups are compared. The mean of the first is told where there are no groups.
    facts : mapping
        Stored as ``audit`` in ``summary.json``, after the groups.
    notes : mapping of arm to mapping
        What a report draws of each arm.
    warnings : sequence of str
    command : str
        Repeats the audit.
    evidence : mapping, optional
        Of an audit that compares otherwise; by default that of the unit table.
    others : sequence of (str, str, UnitScores)
        Name, title and scores of what is compared with, on the same units.
    margins : mapping of metric to float
        Smallest gap that matters, in place of the metric's own; '' for those with the margin of the first.
    """

    kind: str
    title: str
    asks: str
    arm_title: str
    data: Mapping[str, Any]
    passed: Mapping[str, Any]
    resolved: Mapping[str, Any]
    scores: UnitScores
    metrics: Mapping[str, Metric]
    statistics: Sequence[str]
    compared: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    command: str = ""
    evidence: Mapping[str, Any] | None = None
    others: Sequence[tuple[str, str, UnitScores]] = ()
    margins: Mapping[str, float] = field(default_factory=dict)


def suppress_small(labels: Sequence[str], counted: NDArray[np.bool_]) -> tuple[list[str], list[str]]:
    """Take the label from units of small groups.

    Parameters
    ----------
    labels : sequence of str, shape (U,)
    counted : ndarray of bool, shape (U,)
        Units with a defined value; the others do not make a group larger.

    Returns
    -------
    labels : list of str, shape (U,)
        Empty for units of a group with fewer than `MIN_GROUP` counted units.
    suppressed : list of str
        Names of these groups.
    """
    all_labels = np.asarray(labels, dtype=str)
    names, place = np.unique(all_labels, return_inverse=True)
    size = np.bincount(place, weights=counted, minlength=len(names))
    small = [str(name) for name in names[size < MIN_GROUP] if name]
    return ["" if label in small else str(label) for label in all_labels], small


def write_audit(audit: Audit, out: Path, *, seed: int = 0, draws: int = DRAWS, folder: Path | None = None) -> Path:
    """Compute the evidence of an audit and write its folder.

    Parameters
    ----------
    audit : Audit
    out : Path
        Where the folder is made, as ``<date>-audit-<kind>-<data>-s<seed>``.
    seed, draws : int
        Of the bootstrap.
    folder : Path, optional
        The folder itself, instead of a new one in `out`.

    Returns
    -------
    Path
        Holds ``run.json``, ``config.json``, ``units.parquet`` and ``summary.json`` with ``kind`` ``audit``.

    Raises
    ------
    InputError
        When `folder` holds something already, or for a margin of a metric that is not compared.
    """
    margins = margins_of({metric: audit.metrics[metric].margin for metric in audit.compared}, audit.margins)
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder.name} is not empty", "a new folder for an audit", "choose another folder")
    require_folder(out if folder is None else folder)
    stem = Path(str(audit.data["name"])).stem
    path = folder or new_folder(out, f"audit-{audit.kind}", stem, seed)
    run = RunFolder(path)
    method = f"audit_{audit.kind}"
    with run.running(method=method, seed=seed, command=audit.command):
        names = [YOURS, *(name for name, _, _ in audit.others)]
        config = {"passed": audit.passed, "resolved": {"audit": audit.resolved}, "method": method, "seed": seed}
        write_json(path / "config.json", config | {"arms": names})
        block = Block(method, YOURS, seed, audit.scores)
        others = [Block(method, name, seed, scores) for name, _, scores in audit.others]
        write_units(path / "units.parquet", [block, *others], "test")
        found, groups = _evidence(audit, Units([block]), margins, draws, seed)
        all_scores = [
            (YOURS, "baseline", audit.arm_title, audit.scores),
            *((name, "reference", title, scores) for name, title, scores in audit.others),
        ]
        arms = tuple(
            ArmFacts(name=name, role=role, title=title, notes=audit.notes.get(name, {}), totals=dict(scores.totals))
            for name, role, title, scores in all_scores
        )
        summary = Summary(
            kind="audit",
            method=method,
            title=audit.title,
            mends=audit.asks,
            data=audit.data,
            seeds=(seed,),
            arms=arms,
            warnings=tuple(audit.warnings),
            evidence=Evidence.read(found),
            audit={**groups, **audit.facts},
        )
        write_summary(path, summary)
    return path


def _evidence(
    audit: Audit, units: Units, margins: Mapping[str, float], draws: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return levels with gaps and the verdict, and which groups there are."""
    grouping = next(iter(audit.scores.by), "")
    groups = units.groups(grouping) if grouping else []
    facts: dict[str, Any] = {"grouping": grouping or None, "groups": groups}
    if audit.evidence is not None:
        return dict(audit.evidence), facts
    compared = list(audit.compared) if len(groups) > 1 else []
    statistics = [*audit.statistics, *(f"mean:{metric}:{grouping}" for metric in compared)]
    arms = [Arm(YOURS, "baseline", title=audit.arm_title)]
    found = evidence(units, arms=arms, statistics=statistics, metrics=audit.metrics, draws=draws, seed=seed)
    pairs: list[Level] = []
    small: dict[int, float] = {}
    if compared:
        table = np.stack([units.values(YOURS, m) for m in compared], axis=-1)
        rng = np.random.default_rng(stream(seed, "audit", "null"))
        seen = compare_groups(table, units.codes(grouping)[1], units.cluster, len(groups), rng=rng)
        size = {(x["metric"], x["group"]): x["n_units"] for x in found["levels"]}
        about = [audit.metrics[m] for m in compared]
        pairs = pair_levels(seen, arm=YOURS, groups=groups, metrics=about, grouping=grouping, sizes=size)
        # what decides stands first: the largest T of those that are shown and matter, else of those that are shown
        pairs.sort(key=lambda x: (not (x.shown and max(-x.low, x.high) > margins[x.metric]), not x.shown))
        found["levels"] += [x.row() for x in pairs]
    if pairs:
        own = [compared[m] == pairs[0].metric for _, m, *_ in seen.of]  # sizes of other metrics are no measure
        small = dataclasses.replace(seen, value=np.where(own, seen.value, np.nan)).small_groups()
    mean = next((x for x in found["levels"] if x["statistic"] == f"mean:{audit.compared[0]}"), None)
    found["headline"] = pairs[0].row() if pairs else mean
    primary = pairs[0].statistic if pairs else f"mean:{audit.compared[0]}"
    said = audit_verdict(
        "gap shown",
        pairs,
        margin=margins,
        too_small=[(groups[g], least) for g, least in small.items()],
        unit=audit.scores.unit_kind,
    )
    found["verdict"] = {**said.row(), "primary": primary}
    found["verdict"] |= {} if pairs or not mean else _without_groups(audit, mean)
    return found, facts


def _without_groups(audit: Audit, mean: Mapping[str, Any]) -> dict[str, Any]:
    """Say what an audit without two groups to compare measured."""
    level, kind = Level.read(mean), audit.scores.unit_kind
    what = "Fewer than two groups can be compared" if audit.scores.by else "No groups were given"
    text = f"{level.label} is {level.value:.3f} [{level.low:.3f}, {level.high:.3f}]. {what}, so no gap is stated."
    if math.isnan(level.value):
        text = f"{level.label} is undefined for every {kind}."
    steps = [f"Hand in at least two groups of {MIN_GROUP} {kind}s to compare them."]
    return {"sentence": text, "lines": {"effect": text}, "next_steps": steps}
