"""Run a method with its arms, score once at the end, compare seeds."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upright.contract import Arm, Config, InputError, MethodSpec, UnitScores
from upright.evidence.bootstrap import DRAWS
from upright.evidence.compute import evidence, require_margins
from upright.evidence.statistics import computable
from upright.evidence.units import Block, Units, read_units, write_units
from upright.experiment.config import resolve, suggest
from upright.experiment.folders import ArmRun, RunFolder, read_json, write_json
from upright.experiment.notes import merge_notes, unfinished
from upright.experiment.places import require_folder
from upright.experiment.registry import load_method, load_object
from upright.experiment.summary import ArmFacts, Evidence, Summary, read_summary, write_summary

__all__ = [
    "Ask",
    "Stopped",
    "compare_runs",
    "deviations",
    "evidence_of",
    "execute",
    "new_folder",
    "resume_all",
    "run_seeds",
    "run_task",
]


class Stopped(KeyboardInterrupt):
    """Ctrl-C while run folders were open: ``folders``, finished or not, with which `resume_all` goes on."""

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__()
        self.folders = list(folders)


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked of a method at one seed; ``config.json`` keeps it, with what it was resolved to.

    Parameters
    ----------
    method : str
        Registered name.
    data : str, optional
        Name in the catalogue or path of a file; the task's default otherwise.
    settings : mapping
        Fields of the method's or the task's config, as they were passed.
    preset : str
        Size.
    seed : int
    arms : sequence of str, optional
        Some of the arms; all by default.
    arm_settings : mapping of arm to settings
        Beside those that the arm declares.
    sweep : bool
        Every arm at every strength that the method declares.
    margins, budget : optional
        In place of the declared ones; '' is the metric that decides.
    """

    method: str
    _: dataclasses.KW_ONLY
    data: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preset: str = "full"
    seed: int = 0
    arms: Sequence[str] | None = None
    arm_settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    sweep: bool = False
    margins: Mapping[str, float] = dataclasses.field(default_factory=dict)
    budget: float | None = None

    def row(self, config: Config, task_config: Config) -> dict[str, Any]:
        """Return ``config.json``."""
        row = dataclasses.asdict(self)
        row["passed"] = row.pop("settings")
        row["resolved"] = {"method": config.as_dict(), "task": task_config.as_dict()}
        # as it will be read: JSON has no infinity, a setting may be one
        return dict(json.loads(json.dumps(row), parse_constant=lambda word: word.replace("Infinity", "inf")))

    @classmethod
    def read(cls, folder: Path) -> Ask:
        """Return what a run was asked for; audits and comparisons were asked otherwise."""
        row = dict(read_json(folder / "config.json"))
        needed = ("arm_settings", "arms", "data", "method", "passed", "preset", "resolved", "seed")
        if missing := [x for x in needed if x not in row or (row[x] is None and x not in ("arms", "data"))]:
            got = f"{folder.name}/config.json has no {', '.join(missing)}"
            raise InputError(got, "the folder of a run", "check the path; an audit is made again, not resumed")
        own = {field.name for field in dataclasses.fields(cls)}
        return cls(settings=row["passed"], **{name: value for name, value in row.items() if name in own})


def run_task(
    spec: MethodSpec,
    task: Any,
    config: Config,
    folder: RunFolder | None,
    ask: Ask,
    *,
    quiet: bool = True,
    later: int = 0,
) -> tuple[list[Block], list[ArmFacts], list[str]]:
    """Train every arm, with a sweep at every strength that the method declares, then score each once on test.

    Away from a terminal each arm is a line with the time that is left, also for as many `later` runs.

    Returns
    -------
    blocks : list of Block
        Scores per unit of each arm.
    facts : list of ArmFacts
    warnings : list of str
    """
    _require_arms(spec, ask.arms)
    own = spec.presets[ask.preset].get("arms") if ask.arms is None else None
    chosen, left = _fitting(spec, task, ask.arms)
    chosen = [arm for arm in chosen if own is None or arm.name in own]
    trained, start = [], time.monotonic()
    arms = [*chosen, *(_swept(spec, config, chosen, ask.arm_settings) if ask.sweep else [])]
    for i, arm in enumerate(arms, start=1):
        settings = {**ask.arm_settings.get(arm.name.partition("@")[0], {}), **arm.settings}
        arm_run = ArmRun(folder, ask.seed, arm.name, quiet=quiet)
        result = spec.run(task, config.replace(**settings), arm_run)
        trained.append((arm, settings, arm_run, result))
        if not quiet and not sys.stderr.isatty():
            spent = time.monotonic() - start
            rest = spent / i * (len(arms) - i + later * len(arms))
            words = f"{spec.name} · seed {ask.seed} · arm {i}/{len(arms)} {arm.name} · {spent / 60:.1f} min"
            print(f"{words} · about {rest / 60:.1f} min left", file=sys.stderr, flush=True)
    task.open_test()
    blocks, facts, warnings = [], [], left
    name = folder.path.name if folder is not None else "memory"
    for arm, settings, arm_run, result in trained:
        scores: UnitScores = task.score(result, "test", arm_run)
        blocks.append(Block(name, arm.name, ask.seed, scores))
        facts.append(
            ArmFacts(
                name=arm.name,
                role=arm.role,
                title=arm.title or arm.name,
                settings=settings,
                notes=arm_run.notes,
                totals=dict(scores.totals),
            )
        )
        warnings += [w for w in arm_run.warnings if w not in warnings]
    return blocks, facts, warnings


def _fitting(spec: MethodSpec, task: Any, arms: Sequence[str] | None) -> tuple[list[Arm], list[str]]:
    """Return the arms to train, and a warning for each that the task has no use for.

    Raises
    ------
    InputError
        When such an arm was asked for by name; before anything is trained.
    """
    chosen, left = [], []
    for arm in spec.arms:
        if arm.mix or (arms is not None and arm.name not in arms):
            continue  # a mix is made of other arms when they are compared
        why = arm.unfit(task) if arm.unfit else ""
        if why and arms is not None:
            raise InputError(f"arm {arm.name!r}: {why}", "arms that fit the data", "leave it out of --arms")
        if why:
            left.append(f"arm {arm.name} is left out: {why}")
        else:
            chosen.append(arm)
    return chosen, left


def _swept(
    spec: MethodSpec, config: Config, arms: Sequence[Arm], arm_settings: Mapping[str, Mapping[str, Any]]
) -> list[Arm]:
    """Return the other strengths of every arm but the baseline, named ``arm@strength``."""
    return [
        Arm(
            f"{arm.name}@{value:g}",
            "sweep",
            {**arm.settings, field: value},
            f"{arm.title or arm.name}, {field} {value:g}",
        )
        for field, values in spec.sweep.items()
        for arm in arms
        if arm.role not in ("baseline", "anchor")
        for value in (values if arm.sweep is None else arm.sweep)
        if value != arm_settings.get(arm.name, {}).get(field, getattr(config, field))
    ]


def _require_arms(spec: MethodSpec, arms: Sequence[str] | None) -> None:
    if unknown := sorted(set(arms or ()) - {arm.name for arm in spec.arms}):
        known = [arm.name for arm in spec.arms]
        raise InputError(f"arm {unknown[0]!r}", ", ".join(known), suggest(unknown[0], known))


def execute(
    ask: Ask,
    *,
    out: Path = Path("runs"),
    folder: Path | None = None,
    data_dir: str | None = None,
    quiet: bool = True,
    later: int = 0,
) -> Path:
    """Run one method at one seed and return its folder; a folder with a checkpoint is resumed.

    Data are read before a folder is made, and a new folder in which bad input left nothing but its settings is taken
    away again. A folder that was there before, or that holds a checkpoint or a log, stays.

    Raises
    ------
    InputError
        For bad settings or data, or a folder that was made with other settings.
    Stopped
        For Ctrl-C after the folder was made.
    """
    spec = load_method(ask.method)
    config, task_config = resolve(spec, ask.settings, ask.preset, ask.data)
    spec = spec.under(task_config.as_dict())
    _require_arms(spec, ask.arms)
    require_margins(ask.margins, spec.statistics, spec.primary)
    require_folder(out if folder is None else folder)
    path = folder or new_folder(out, ask.method, str(getattr(task_config, "data", "task")), ask.seed)
    asked, file, new = ask.row(config, task_config), path / "config.json", not path.exists()
    if file.exists() and (other := _differing(path, asked)):
        raise InputError(
            f"folder {path.name} holds a run with other settings: {other}",
            "the same settings and defaults, to resume it",
            "resume with `upright run --resume` and the version that began it, or choose another folder",
        )
    if (path / "run.json").exists() and read_json(path / "run.json")["status"] == "done":
        return path
    task = load_object(spec.task).load(task_config.at_seed(ask.seed), data_dir)
    try:
        run_folder = RunFolder(path)
        write_json(file, asked)
        with run_folder.running(method=ask.method, seed=ask.seed, command=_command(ask, task_config)):
            blocks, facts, warnings = run_task(spec, task, config, run_folder, ask, quiet=quiet, later=later)
            write_units(path / "units.parquet", blocks, "test")
            unfit = [arm.name for arm in spec.arms if arm.unfit and arm.unfit(task)]
            found = Summary(
                method=ask.method,
                title=spec.title,
                mends=spec.mends,
                data=task.facts,
                seeds=(ask.seed,),
                arms=tuple(facts),
                warnings=tuple(warnings),
                deviations=tuple(deviations(spec)),
                unfit=tuple(unfit),
                evidence=evidence_of(spec, Units(blocks), task.metrics, ask, facts=facts, unfit=unfit),
            )
            write_summary(path, found)
    except InputError:
        bare = {"config.json", "run.json", ".lock"}  # settings and status alone: nothing was trained
        if new and {p.name for p in path.rglob("*") if not p.is_dir()} <= bare:
            shutil.rmtree(path)
        raise
    except KeyboardInterrupt as stop:
        raise Stopped([path]) from stop
    return path


def _differing(path: Path, asked: Mapping[str, Any]) -> str:
    """Name the settings of a run folder that are not those that are asked, as `--set` calls them."""
    Ask.read(path)
    rows = [(row, row["resolved"]) for row in (read_json(path / "config.json"), asked)]
    old, new = (row | own["method"] | {f"task.{k}": v for k, v in own["task"].items()} for row, own in rows)
    return ", ".join(k for k, v in old.items() if k not in ("passed", "resolved") and v != new.get(k))


def resume_all(
    folders: Sequence[Path], *, data_dir: str | None = None, quiet: bool = True
) -> tuple[list[Path], Path | None]:
    """Finish runs that were killed or failed, in turn, and compare them; returns what `run_seeds` does.

    Each goes on with its own settings, and one that is done is taken as it is: a set of seeds that was stopped is
    completed by naming its folders. The comparison is made beside the first run.

    Raises
    ------
    InputError
        Before anything is trained, when a folder holds no run, or runs differ in more than the seed or have the same.
    """
    asked = [Ask.read(f) for f in folders]
    _require_alike(folders, asked)
    pairs = list(zip(folders, asked, strict=True))
    for (folder, one), (other, again) in itertools.combinations(pairs, 2):
        if one.seed == again.seed:
            got = f"{folder.name} and {other.name} both have seed {one.seed}"
            raise InputError(got, "runs of different seeds", "name each run once")
    try:
        done = [execute(one, folder=folder, data_dir=data_dir, quiet=quiet) for folder, one in pairs]
        return done, _compared(done, done[0].parent)
    except KeyboardInterrupt as stop:
        raise Stopped(folders) from stop


def evidence_of(
    spec: MethodSpec,
    units: Units,
    metrics: Mapping[str, Any],
    ask: Ask,
    *,
    facts: Sequence[ArmFacts] = (),
    unfit: Sequence[str] = (),
    draws: int = DRAWS,
) -> Evidence:
    """Return what the units of a method show of the statistics that it declares; of a sweep, what ``facts`` name."""
    swept = [Arm(f.name, "sweep", title=f.title) for f in facts if f.role == "sweep"]
    found = evidence(
        units,
        arms=[*spec.arms, *swept],
        statistics=[s for s in spec.statistics if computable(s, units)],
        metrics=metrics,
        primary=spec.primary,
        cost=spec.cost,
        title=spec.title,
        draws=draws,
        margins=ask.margins,
        budget=ask.budget,
        unfit=unfit,
    )
    early = [f.title for f in facts if f.role in ("baseline", "remedy") and unfinished(f.notes)[0]]
    if early and "next_steps" in found["verdict"]:
        first = f"Train longer: validation could still improve at the last epoch ({', '.join(early)})."
        found["verdict"]["next_steps"] = [first, *found["verdict"]["next_steps"]][:3]
    return Evidence.read(found)


def _command(ask: Ask, task_config: Config) -> str:
    words = [f"upright run {ask.method}", f"--preset {ask.preset}"]
    data = getattr(task_config, "data", None)
    words += [f"--data {shlex.quote(str(data))}"] if data else []
    typed = ((k, ",".join(map(str, v)) if isinstance(v, list | tuple) else v) for k, v in ask.settings.items())
    words += [f"--set {shlex.quote(f'{k}={v}')}" for k, v in typed if k != "data"]
    words += [f"--arms {','.join(ask.arms)}"] if ask.arms else []
    words += ["--sweep"] if ask.sweep else []
    words += [f"--margin {shlex.quote(f'{k}={v:g}' if k else f'{v:g}')}" for k, v in ask.margins.items()]
    words += [f"--budget {ask.budget:g}"] if ask.budget is not None else []
    return " ".join([*words, f"--seed {ask.seed}"])


def new_folder(out: Path, name: str, data: str, seed: int) -> Path:
    """Return a folder that is not there yet: date, name, data and seed, and a number where that is taken."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).stem if "/" in data else data)
    return _not_there(out / f"{datetime.date.today().isoformat()}-{name}-{stem}-s{seed}")


def _not_there(path: Path) -> Path:
    found, number = path, 2
    while found.exists():
        found, number = path.with_name(f"{path.name}-{number}"), number + 1
    return found


def deviations(spec: MethodSpec) -> list[str]:
    """Return the numbered deviations of a method's docstring."""
    doc = sys.modules[spec.run.__module__].__doc__ or ""
    section = re.search(r"Deviations\n-+\n(.*?)(?:\n\n[A-Z]|\Z)", doc, re.S)
    parts = re.split(r"^(?=D\d+\.)", section[1] if section else "", flags=re.M)
    return [" ".join(part.split()) for part in parts if part.strip()]


def run_seeds(
    ask: Ask, seeds: Sequence[int], *, out: Path = Path("runs"), data_dir: str | None = None, quiet: bool = True
) -> tuple[list[Path], Path | None]:
    """Run seeds and compare them; returns the run folders and, for more than one, the comparison's folder."""
    folders: list[Path] = []
    try:
        for i, seed in enumerate(seeds, start=1):
            own, later = dataclasses.replace(ask, seed=seed), len(seeds) - i
            folders.append(execute(own, out=out, data_dir=data_dir, quiet=quiet, later=later))
        return folders, _compared(folders, out)
    except KeyboardInterrupt as stop:
        raise Stopped([*folders, *getattr(stop, "folders", [])]) from stop


def _compared(folders: Sequence[Path], out: Path) -> Path | None:
    """Compare runs in a new folder of `out`; one run alone has nothing to be compared with."""
    if len(folders) == 1:
        return None
    stem = folders[0].name.rsplit("-s", 1)[0]
    return compare_runs(folders, _not_there(out / f"{stem}-x{len(folders)}"))


def _require_alike(folders: Sequence[Path], asked: Sequence[Ask], more: Sequence[Mapping[str, Any]] = ()) -> None:
    """Refuse runs that differ in what was asked but for the seed, or in more facts; the first such field is named."""
    facts = [
        {
            "method": one.method,
            "settings": read_json(folder / "config.json")["resolved"],
            **{name: getattr(one, name) for name in ("arm_settings", "arms", "sweep", "margins", "budget")},
            **found,
        }
        for folder, one, found in zip(folders, asked, more or [{}] * len(folders), strict=True)
    ]
    for folder, own in zip(folders, facts, strict=True):
        for field, value in own.items():
            if value != facts[0][field]:
                raise InputError(
                    f"{folder.name} differs from {folders[0].name} in {field}",
                    "runs that differ in their seed alone",
                    "compare different configurations with `upright compare`",
                )


def compare_runs(folders: Sequence[Path], out: Path) -> Path:
    """Join runs that differ in their seed alone into one comparison with intervals over seeds and units.

    Raises
    ------
    InputError
        When the runs differ in anything but the seed; the field is named.
    """
    summaries = [read_summary(f) for f in folders]
    asked = [Ask.read(f) for f in folders]
    first = summaries[0]
    resolved = read_json(folders[0] / "config.json")["resolved"]["task"]
    drawn = {"fingerprint": ""} if resolved.get("split_seed") == "seed" else {}  # another split at each seed
    facts = [{"data": {**x.data, **drawn}, "arms": [arm.name for arm in x.arms]} for x in summaries]
    _require_alike(folders, asked, facts)
    blocks = [b for f in folders for b in read_units(f / "units.parquet")]
    spec = load_method(first.method).under(resolved)
    metrics: Mapping[str, Any] = getattr(load_object(spec.task), "metrics_of", lambda c: {})(resolved)
    out.mkdir(parents=True, exist_ok=True)
    arms = [
        dataclasses.replace(
            arm,
            totals=merge_notes([found.arms[i].totals for found in summaries]),
            notes=merge_notes([found.arms[i].notes for found in summaries]),
        )
        for i, arm in enumerate(first.arms)
    ]
    found = dataclasses.replace(
        first,
        kind="comparison",
        runs=tuple(f.name for f in folders),
        seeds=tuple(seed for one in summaries for seed in one.seeds),
        arms=tuple(arms),
        warnings=tuple(dict.fromkeys(w for one in summaries for w in one.warnings)),
        evidence=evidence_of(spec, Units(blocks), metrics, asked[0], facts=arms, unfit=first.unfit),
    )
    write_summary(out, found)
    return out
