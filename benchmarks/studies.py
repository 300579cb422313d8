"""A published study: settings chosen on validation with a stated budget, seeds run, results kept small.

1. *select*: optimiser settings of every arm by its own validation score, on one grid and one seed; arms with a strength
   are selected at the middle of its grid
2. *tune*: the strength of every such arm, on other seeds: among values whose mean validation score is within the margin
   of the baseline's, the one with the smallest gap on validation, or with the best mean of the group to be raised
3. *run*: every arm at every seed, scored once on test; one comparison

Every job writes its own file, so a study that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upright.evidence.units import Block, read_units, write_units
from upright.experiment.folders import ArmRun, environment, plain, read_json, read_log, write_json
from upright.experiment.notes import merge_curves
from upright.experiment.registry import load_method, load_object
from upright.experiment.runner import Ask, compare_runs, execute, resolve
from upright.experiment.summary import read_summary

__all__ = ["Study", "main", "publish", "publish_runs", "run_study"]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked of one method on one data set.

    Parameters
    ----------
    name : str
        Folder below ``results/``.
    method : str
        Registered method.
    settings : mapping
        Settings of method and task, as for `upright run --set`.
    select : mapping of field to values
        Grid of step 1.
    tune : mapping of field to values
        Grid of step 2 (one field).
    arms : sequence of str
        Arms to run.
    seeds, tune_seeds, select_seed : int
        Disjoint.
    score, grouping : str
        Metric that is selected on, and the groups whose gap in it tuning shrinks.
    raised : str
        Group whose mean tuning raises, in place of the gap; ``mean`` for everybody's.
    margin : float
        How far below the baseline's validation score a tuned arm may lie.
    preset : str
        Size.
    plain : sequence of str
        Arms that take the settings of the baseline, to which they add what has none of these.
    cells : sequence of str
        Groupings by which units are published as counts and means, where there are thousands of them; none lists units.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    select: Mapping[str, Sequence[Any]]
    tune: Mapping[str, Sequence[Any]]
    arms: Sequence[str]
    seeds: Sequence[int] = (0, 1, 2, 3, 4, 5)
    tune_seeds: Sequence[int] = (100, 101)
    select_seed: int = 102
    score: str = "ndcg@10"
    grouping: str = "activity"
    raised: str = ""
    margin: float = 0.01
    preset: str = "full"
    plain: Sequence[str] = ()
    cells: Sequence[str] = ()


def _grid(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(values, combo, strict=True)) for combo in itertools.product(*values.values())]


def _job_file(work: Path, job: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
    return work / "jobs" / f"{digest}.json"


def _validate(job: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Train one arm and return its validation mean and gap; kept on disk."""
    file = _job_file(Path(job[0]), job[1])
    if file.exists():
        return dict(read_json(file))
    about = job[1]
    spec = load_method(about["method"])
    config, task_config = resolve(spec, about["settings"], about["preset"])
    arm = next(a for a in spec.arms if a.name == about["arm"])
    task = load_object(spec.task).load(task_config.at_seed(about["seed"]))
    run = ArmRun(None, about["seed"], arm.name)
    result = spec.run(task, config.replace(**{**about["extra"], **arm.settings}), run)
    scores = task.score(result, "valid", run)
    values = np.asarray(scores.values[about["score"]])
    groups = np.asarray(scores.by[about["grouping"]])
    means = {g: float(np.nanmean(values[groups == g])) for g in sorted(set(groups.tolist()))}
    first, *_, last = means.values()
    found = {"job": about, "mean": float(np.nanmean(values)), "gap": first - last, "means": means, "notes": run.notes}
    write_json(file, found)
    return found


def _run_seed(job: tuple[str, Study, int, Mapping[str, Any]]) -> str:
    work, study, seed, arm_settings = job
    out = Path(work) / f"s{seed}"
    ask = Ask(study.method, settings=study.settings, preset=study.preset, seed=seed, arms=list(study.arms),
              arm_settings=arm_settings)  # fmt: skip
    execute(ask, folder=out)
    return str(out)


Map = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def run_study(study: Study, work: Path, run_all: Map) -> Path:
    """Run what is missing and return the comparison's folder.

    Parameters
    ----------
    study : Study
    work : Path
        Scratch folder of the study.
    run_all : callable
        ``map`` over jobs, for example of a process pool.
    """
    (work / "jobs").mkdir(parents=True, exist_ok=True)
    spec = load_method(study.method)
    base = {
        "method": study.method, "score": study.score, "grouping": study.grouping, "preset": study.preset,
        "settings": dict(study.settings),
    }  # fmt: skip

    def job(arm: str, seed: int, extra: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return str(work), {**base, "arm": arm, "seed": seed, "extra": dict(extra)}

    baseline = spec.arm("baseline").name
    anchors = [a.name for a in spec.arms if a.role == "anchor" and a.name in study.arms]  # of the baseline's settings
    tuned = [a for a in study.arms if a != baseline and a not in (*anchors, *study.plain)]
    grid, points = _grid(study.select), _grid(study.tune)
    middle = points[len(points) // 2]
    found = run_all(_validate, [job(a, study.select_seed, {**g, **middle}) for a in (baseline, *tuned) for g in grid])
    selected = {}
    for arm in (baseline, *tuned):
        best = max((r for r in found if r["job"]["arm"] == arm), key=lambda r: r["mean"])
        selected[arm] = {k: best["job"]["extra"][k] for k in study.select}
    floor = [job(baseline, s, selected[baseline]) for s in study.tune_seeds]
    done = run_all(
        _validate, floor + [job(a, s, {**selected[a], **p}) for a in tuned for p in points for s in study.tune_seeds]
    )
    reference = float(np.mean([r["mean"] for r in done[: len(floor)]]))
    strength, curves = _choose(done[len(floor) :], tuned, points, reference - study.margin, study.raised)
    chosen = {a: {**selected.get(a, selected[baseline]), **strength.get(a, {})} for a in study.arms}
    folders = [Path(p) for p in run_all(_run_seed, [(str(work), study, s, chosen) for s in study.seeds])]
    scores = {a: [{**{k: r["job"]["extra"][k] for k in study.select}, "mean": r["mean"]}
                  for r in found if r["job"]["arm"] == a] for a in selected}  # fmt: skip
    write_json(
        work / "choice.json",
        {"select": {"grid": study.select, "seed": study.select_seed, "chosen": selected, "curves": scores},
         "tune": {"grid": study.tune, "seeds": list(study.tune_seeds), "baseline": reference, "curves": curves,
                  "chosen": strength}},
    )  # fmt: skip
    return compare_runs(folders, work / "comparison")


def _choose(
    done: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    points: Sequence[Mapping[str, Any]],
    floor: float,
    raised: str = "",
) -> tuple[dict[str, Any], dict[str, Any]]:
    chosen: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    for arm in arms:
        rows = []
        for point in points:
            own = [r for r in done if r["job"]["arm"] == arm and point.items() <= r["job"]["extra"].items()]
            mean, gap = float(np.mean([r["mean"] for r in own])), float(np.mean([r["gap"] for r in own]))
            best_of = {raised: float(np.mean([r["means"].get(raised, mean) for r in own]))} if raised else {}
            rows.append({**point, "mean": mean, "gap": gap, **best_of})
        affordable = [r for r in rows if r["mean"] >= floor]
        best = (
            min(affordable, key=lambda r: -r[raised] if raised else abs(r["gap"]))
            if affordable
            else max(rows, key=lambda r: r["mean"])
        )
        chosen[arm] = {k: best[k] for k in points[0]}
        curves[arm] = rows
    return chosen, curves


def main(doc: str, file: str, studies: Callable[[argparse.Namespace], Sequence[Study]], *options: str) -> None:
    """Run the studies that are named on the command line, or all, in two processes, and publish them.

    Parameters
    ----------
    doc, file : str
        Of the script.
    studies : callable
        From the parsed command line to what there is.
    options : str
        Further options, each with a value.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*")
    for option in options:
        parser.add_argument(option)
    given = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for study in studies(given):
            if given.names and study.name not in given.names:
                continue
            run_study(study, given.work / study.name, lambda f, jobs: pool.map(f, jobs, chunksize=1))
            command = f"python benchmarks/{Path(file).name} WORK_FOLDER {study.name}"
            print("published", publish(study, given.work / study.name, Path("results"), command))


def publish(study: Study, work: Path, results: Path, command: str) -> Path:
    """Write the small, shareable part of a study of `run_study`."""
    return publish_runs(
        study.name, [work / f"s{s}" for s in study.seeds], work / "comparison", results,
        {"study": dataclasses.asdict(study), "choice": read_json(work / "choice.json"), "command": command},
        cells=study.cells,
    )  # fmt: skip


def publish_runs(
    name: str, runs: Sequence[Path], comparison: Path, results: Path, about: Mapping[str, Any],
    private: Sequence[str] = (), cells: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Write what of some runs may be shared: identifiers become run-local integers, no paths, no times.

    Parameters
    ----------
    name : str
        Folder below `results`.
    runs : sequence of Path
        Run folders, one a seed.
    comparison : Path
        Folder of their comparison.
    results : Path
    about : mapping
        Joined into ``config.json``, beside what every arm was trained with.
    private : sequence of str
        Groupings, and metrics by the beginning of their name, that would tell something about a person; left out of
        ``units.parquet``. Means of their groups are rounded to three digits and users stand in random order: exact
        means beside the scores of every user would give the groups away.
    cells : sequence of str
        Groupings by which units are counted instead of listed: ``cells.parquet`` has number and mean of every metric in
        every cell of seed, arm and groups, none where a cell has fewer than five units, and no unit is published.
    """
    target = results / name
    target.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = plain({**read_summary(comparison).row(), "runs": []})
    if private:
        for row in (*found["evidence"]["levels"], *found["evidence"]["differences"]):
            if row.get("grouping") in private or ":" + private[0] in row["statistic"]:
                for key in ("value", "low", "high", "smallest_detectable"):
                    row[key] = None if row.get(key) is None else round(row[key], 3)
    curves = merge_curves([read_log(run) for run in runs])
    for arm in found["arms"]:
        # an arm of a sweep stands in fronts alone
        own = {k: _short(v) for k, v in arm["notes"].items() if arm["role"] != "sweep" or k == "calibration"}
        own = {k: v for k, v in own.items() if arm["role"] != "rival" or k != "trace"}
        arm |= {"notes": {k: v for k, v in own.items() if not (isinstance(v, dict) and "schema" in v)}}
        if arm["role"] != "sweep" and arm["name"] in curves:
            steps = curves[arm["name"]]  # of long curves those at which validation was looked at, which have all values
            looked = [row for row in steps if any(name.startswith("valid/") for name in row)]
            kept = looked if len(steps) > 50 and looked else steps
            arm["curves"] = _short(kept[:: 1 + len(kept) // 50], steps=0)
    write_json(target / "summary.json", found, compact=True)
    resolved = read_json(runs[0] / "config.json")["resolved"]
    own = {a["name"]: {**resolved["method"], **a["settings"]} for a in found["arms"]}
    about = {**about, "resolved": {"task": resolved["task"], "arms": own}}
    write_json(target / "config.json", about, compact=True)
    cost = [read_json(run / "run.json")["cpu_s"] for run in runs]
    threads = int(os.environ.get("OMP_NUM_THREADS", 0))
    write_json(target / "environment.json", {**environment(), "cpu_s": sum(cost), "threads": threads})
    if cells:
        _write_cells(target / "cells.parquet", [b for run in runs for b in read_units(run / "units.parquet")], cells)
        return target
    drawn = {arm["name"] for arm in found["arms"] if arm["role"] == "sweep"}  # in fronts alone, which need no units
    blocks = [b for run in runs for b in read_units(run / "units.parquet") if b.arm not in drawn]
    seen = list(dict.fromkeys(str(u) for b in blocks for u in b.scores.unit))  # seeds may have other units
    order = np.random.default_rng().permutation(len(seen)) if private else np.arange(len(seen))
    number = dict(zip(seen, order.tolist(), strict=True))
    shared = []
    for block in blocks:
        kept = block.scores
        scores = dataclasses.replace(
            kept, unit=[number[str(u)] for u in kept.unit],
            by={k: v for k, v in kept.by.items() if k not in private},
            values={k: v for k, v in kept.values.items() if not k.startswith(tuple(private) or ("\0",))},
        )  # fmt: skip
        shared.append(Block(f"s{block.seed}", block.arm, block.seed, scores))
    write_units(target / "units.parquet", shared, "test")
    return target


def _short(value: Any, steps: int = 10) -> Any:
    """Return what is drawn and never tested with four digits in place of nine, and of long traces some steps."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _short(v, steps) for k, v in value.items()}
    if isinstance(value, list):
        long = steps and len(value) > 2 * steps and isinstance(value[0], dict) and "step" in value[0]
        return [_short(v, steps) for v in value[:: len(value) // steps if long else 1]]
    return value


SMALL_CELL = 5


def _write_cells(path: Path, blocks: Sequence[Block], groupings: Sequence[str]) -> None:
    """Write number and mean of every metric by cell; small cells have neither."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for block in blocks:
        labels = list(zip(*[map(str, block.scores.by[g]) for g in groupings], strict=True))
        labels = labels or [()] * len(block.scores.unit)
        names = sorted(set(labels))
        place = {name: i for i, name in enumerate(names)}
        at = np.array([place[v] for v in labels], dtype=np.int64)
        for metric, given in block.scores.values.items():
            values = np.asarray(given, dtype=np.float64)
            ok = ~np.isnan(values)
            count = np.bincount(at[ok], minlength=len(names))
            total = np.bincount(at[ok], weights=values[ok], minlength=len(names))
            for i, name in enumerate(names):
                shown = count[i] >= SMALL_CELL or count[i] == 0
                where = {
                    "seed": block.seed,
                    "arm": block.arm,
                    "metric": metric,
                    **dict(zip(groupings, name, strict=True)),
                }
                rows.append({**where, "n": int(count[i]) if shown else None,
                             "mean": float(total[i] / count[i]) if shown and count[i] else None})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
