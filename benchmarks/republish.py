"""Make the evidence of published studies anew, by the rules of today and without training.

    python benchmarks/republish.py [NAME ...]

Where ``units.parquet`` holds what the verdict rests on, levels, differences and verdict are computed from it. Else
(private attacks, cells instead of rows) the verdict is given from the stored intervals, which are neither stretched nor
adjusted, and marked so. Tables of TOFU gain the author of each record, from the same draw of records as the run's.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upright.contract import MethodSpec
from upright.evidence.compute import evidence, said_again
from upright.evidence.records import Level
from upright.evidence.statistics import computable
from upright.evidence.units import Block, Units, read_units, write_units
from upright.experiment.config import to_config
from upright.experiment.folders import ArmRun, read_json
from upright.experiment.registry import load_method, load_object
from upright.experiment.summary import Evidence, Summary, read_summary, write_summary

RESULTS = Path(__file__).parents[1] / "results"


def with_authors(blocks: list[Block], task: Any) -> list[Block]:
    """Return blocks of TOFU whose records say their author; units are numbered as the runs first met them."""
    place: dict[str, int] = {}
    author: dict[int, str] = {}
    for seed in sorted({b.seed for b in blocks}):
        chosen = task.scored(ArmRun(None, seed, "none"), "test")
        units = [f"{side}/{r.id}" for side in ("forget", "retain", "holdout") for r in getattr(chosen, side)]
        for unit, name in zip(units, task.authors(chosen), strict=True):
            author[place.setdefault(unit, len(place))] = name
        one = next(b for b in blocks if b.seed == seed).scores
        if [place[u] for u in units] != [int(u) for u in one.unit] or [u.partition("/")[0] for u in units] != one.by[
            "set"
        ]:
            raise SystemExit(f"seed {seed}: the records that the task draws are not those of the table")
    return [
        dataclasses.replace(b, scores=dataclasses.replace(b.scores, cluster=[author[int(u)] for u in b.scores.unit]))
        for b in blocks
    ]


def with_sizes(levels: Sequence[Level], statistics: Sequence[str]) -> list[Level]:
    """Return levels with the declared size of every gap of which the signed one alone was stored."""
    found, lacking = list(levels), {*statistics} - {row.statistic for row in levels}
    for row in levels:
        if row.name == "gap" and (text := f"abs_{row.statistic}") in lacking and row.null:
            title, _, sides = row.label.rpartition(": ")
            label = f"{title}: size of the gap between {sides.replace(' minus ', ' and ')}"
            low, high = sorted((abs(row.low), abs(row.high)))
            own = {"value": abs(row.value), "low": 0.0 if row.low <= 0 <= row.high else low, "high": high}
            null = dataclasses.replace(row.null, low=0.0)
            found.append(dataclasses.replace(row, statistic=text, label=label, better="lower", null=null, **own))
    return found


def computed(folder: Path, summary: Summary, spec: MethodSpec) -> dict[str, Any] | None:
    """Return evidence from the unit table, None where it lacks the statistic that decides."""
    path, settings = folder / "units.parquet", read_json(folder / "config.json")["resolved"]["task"]
    if not path.exists():
        return None
    blocks, task_type = read_units(path), load_object(spec.task)
    if spec.name == "mrd" and not any(len(b.scores.cluster) for b in blocks):
        blocks = with_authors(blocks, task_type.load(to_config(task_type.Config, settings)))
        write_units(path, blocks, "test")
    units = Units(blocks)
    texts = list(dict.fromkeys(row.statistic for row in summary.evidence.levels))
    if not all(computable(text, units) for text in texts):
        return None
    found = evidence(units, arms=spec.arms, statistics=texts, metrics=task_type.metrics_of(settings),
                     primary=spec.primary, cost=spec.cost, title=spec.title, unfit=summary.unfit)  # fmt: skip
    swept = {arm.name for arm in summary.arms if arm.role == "sweep"}  # their units are not published
    found["levels"] += [row for row in summary.evidence.row()["levels"] if row["arm"] in swept]
    return found


def main() -> None:
    for folder in sorted(p.parent for p in RESULTS.glob("*/summary.json")):
        if sys.argv[1:] and folder.name not in sys.argv[1:]:
            continue
        summary = read_summary(folder)
        spec = load_method(summary.method)
        found = computed(folder, summary, spec)
        if found is None:
            fit = [arm for arm in spec.arms if arm.name not in summary.unfit]
            kept = summary.evidence
            alone = tuple(row for row in kept.alone if row.statistic == spec.primary)
            own = dataclasses.replace(kept, levels=tuple(with_sizes(kept.levels, spec.statistics)), alone=alone).row()
            found = said_again(own, fit, primary=spec.primary, cost=spec.cost, title=spec.title)
            found["verdict"]["from_stored_intervals"] = True
        again = dataclasses.replace(summary, evidence=Evidence.read(found))
        write_summary(folder, again, compact=True)
        print(f"{folder.name}: {again.evidence.verdict['title']}", flush=True)


if __name__ == "__main__":
    main()
