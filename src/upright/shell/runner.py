"""Run a method with its arms, score once at the end, compare seeds."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upright.contract import Config, InputError, MethodSpec, UnitScores
from upright.shell.config import suggest, to_config
from upright.shell.evidence import evidence
from upright.shell.registry import load_method, load_object
from upright.shell.runs import ArmRun, RunFolder, read_json, write_json
from upright.shell.units import Block, Units, read_units, write_units

__all__ = ["compare_runs", "deviations", "execute", "resolve", "resume", "run_seeds", "run_task"]


def resolve(
    spec: MethodSpec, passed: Mapping[str, Any], preset: str = "full", data: str | None = None
) -> tuple[Config, Config]:
    """Return the method's and the task's config from a preset and the settings that were passed.

    A key belongs to the method or to the task; ``task.key`` says which.

    Raises
    ------
    InputError
        For an unknown preset, key or value.
    """
    if preset not in spec.presets:
        raise InputError(f"preset {preset!r}", ", ".join(spec.presets), suggest(preset, list(spec.presets)))
    task_type = load_object(spec.task).Config
    own, other = set(spec.config.__dataclass_fields__), set(task_type.__dataclass_fields__)  # type: ignore[attr-defined]
    method_settings = dict(spec.presets[preset].get("method", {}))
    task_settings = dict(spec.presets[preset].get("task", {})) | ({"data": data} if data else {})
    for key, value in passed.items():
        name = key.removeprefix("task.")
        if key.startswith("task.") or (key not in own and key in other):
            if name not in other:
                raise InputError(f"unknown key {key!r}", ", ".join(sorted(other)), suggest(name, sorted(other)))
            task_settings[name] = value
        elif key in own:
            method_settings[key] = value
        else:
            known = sorted(own | other)
            raise InputError(f"unknown key {key!r}", ", ".join(known), suggest(key, known))
    return to_config(spec.config, method_settings), to_config(task_type, task_settings)


def run_task(
    spec: MethodSpec, task: Any, config: Config, folder: RunFolder | None, *, seed: int,
    arms: Sequence[str] | None = None, quiet: bool = True, arm_settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Block], list[dict[str, Any]], list[str]]:  # fmt: skip
    """Train every arm, then score each once on the test split.

    Returns
    -------
    blocks : list of Block
        Scores per unit of each arm.
    facts : list of dict
        Name, role, title, settings, diagnostics and totals of each arm.
    warnings : list of str
    """
    chosen = [arm for arm in spec.arms if arms is None or arm.name in arms]
    unknown = set(arms or ()) - {arm.name for arm in spec.arms}
    if unknown:
        known = [arm.name for arm in spec.arms]
        raise InputError(f"arm {sorted(unknown)[0]!r}", ", ".join(known), suggest(sorted(unknown)[0], known))
    trained = []
    for arm in chosen:
        settings = {**(arm_settings or {}).get(arm.name, {}), **arm.settings}
        arm_run = ArmRun(folder, seed, arm.name, quiet=quiet)
        result = spec.run(task, config.replace(**settings), arm_run)
        trained.append((arm, settings, arm_run, result))
    task.open_test()
    blocks, facts, warnings = [], [], []
    name = folder.path.name if folder is not None else "memory"
    for arm, settings, arm_run, result in trained:
        scores: UnitScores = task.score(result, "test", arm_run)
        blocks.append(Block(name, arm.name, seed, scores))
        facts.append({"name": arm.name, "role": arm.role, "title": arm.title or arm.name, "settings": settings,
                      "notes": arm_run.notes, "totals": dict(scores.totals)})  # fmt: skip
        warnings += [w for w in arm_run.warnings if w not in warnings]
    return blocks, facts, warnings


def execute(
    name: str, *, data: str | None = None, data_dir: str | None = None, settings: Mapping[str, Any] | None = None,
    preset: str = "full", seed: int = 0, arms: Sequence[str] | None = None, out: Path = Path("runs"),
    folder: Path | None = None, quiet: bool = True, command: str = "",
    arm_settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:  # fmt: skip
    """Run one method at one seed and return its folder; a folder with a checkpoint is resumed.

    Raises
    ------
    InputError
        For bad settings, or a folder that was made with other settings.
    """
    spec = load_method(name)
    passed = dict(settings or {})
    config, task_config = resolve(spec, passed, preset, data)
    path = folder or _new_folder(out, name, str(getattr(task_config, "data", "task")), seed)
    asked = {
        "passed": passed, "preset": preset, "arms": list(arms) if arms else None, "seed": seed, "method": name,
        "data": data,
        "arm_settings": {k: dict(v) for k, v in (arm_settings or {}).items()},
        "resolved": {"method": config.as_dict(), "task": task_config.as_dict()},
    }  # fmt: skip
    run_folder = RunFolder(path)
    file = path / "config.json"
    if file.exists() and read_json(file) != _json_equal(asked):
        raise InputError(
            f"folder {path.name} holds a run with other settings", "the same settings, to resume it",
            "resume with `upright run --resume`, or choose another folder",
        )  # fmt: skip
    if run_folder.status == "done":
        return path
    write_json(file, asked)
    with run_folder.running(method=name, seed=seed, command=command or _command(name, asked)):
        task = load_object(spec.task).load(task_config, data_dir)
        blocks, facts, warnings = run_task(
            spec, task, config, run_folder, seed=seed, arms=arms, quiet=quiet, arm_settings=arm_settings
        )
        write_units(path / "units.parquet", blocks, "test")
        summary = {
            "schema": 1, "method": name, "title": spec.title, "mends": spec.mends, "seed": seed, "data": task.facts,
            "arms": facts, "warnings": warnings, "deviations": deviations(spec),
            "evidence": _evidence(spec, Units(blocks), task.metrics),
        }  # fmt: skip
        write_json(path / "summary.json", summary)
    return path


def resume(folder: Path, *, data_dir: str | None = None, quiet: bool = True) -> Path:
    """Go on with a run that was killed or failed; a finished one is returned as it is.

    Raises
    ------
    InputError
        When the folder holds no run.
    """
    asked = read_json(folder / "config.json")
    return execute(
        asked["method"], data_dir=data_dir, settings=asked["passed"], preset=asked["preset"], seed=asked["seed"],
        arms=asked["arms"], folder=folder, quiet=quiet, arm_settings=asked["arm_settings"], data=asked["data"],
    )  # fmt: skip


def _json_equal(value: Any) -> Any:
    import json

    return json.loads(json.dumps(value))


def _evidence(spec: MethodSpec, units: Units, metrics: Mapping[str, Any]) -> dict[str, Any]:
    have = [s for s in spec.statistics if s.split(":")[1] in units.metrics]
    return evidence(units, arms=spec.arms, statistics=have, metrics=metrics, primary=spec.primary, cost=spec.cost,
                    title=spec.title)  # fmt: skip


def _command(name: str, asked: Mapping[str, Any]) -> str:
    words = [f"upright run {name}", f"--preset {asked['preset']}"]
    data = asked["resolved"]["task"].get("data")
    words += [f"--data {data}"] if data else []
    words += [f"--set {k}={v}" for k, v in asked["passed"].items()]
    words += [f"--arms {','.join(asked['arms'])}"] if asked["arms"] else []
    return " ".join([*words, f"--seed {asked['seed']}"])


def _new_folder(out: Path, name: str, data: str, seed: int) -> Path:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).stem if "/" in data else data)
    base = f"{datetime.date.today().isoformat()}-{name}-{stem}-s{seed}"
    path, number = out / base, 2
    while path.exists():
        path, number = out / f"{base}-{number}", number + 1
    return path


def deviations(spec: MethodSpec) -> list[str]:
    """Return the numbered deviations of a method's docstring."""
    import sys

    doc = sys.modules[spec.run.__module__].__doc__ or ""
    section = re.search(r"Deviations\n-+\n(.*?)(?:\n\n[A-Z]|\Z)", doc, re.S)
    if section is None:
        return []
    parts = re.split(r"^(?=D\d+\.)", section.group(1), flags=re.M)
    return [" ".join(part.split()) for part in parts if part.strip()]


def run_seeds(
    seeds: Sequence[int], name: str, *, out: Path = Path("runs"), **options: Any
) -> tuple[list[Path], Path | None]:
    """Run seeds and compare them; returns the run folders and, for more than one, the comparison's folder."""
    folders = [execute(name, seed=seed, out=out, **options) for seed in seeds]
    if len(folders) == 1:
        return folders, None
    stem = folders[0].name.rsplit("-s", 1)[0]
    target, number = out / f"{stem}-x{len(folders)}", 2
    while target.exists():
        target, number = out / f"{stem}-x{len(folders)}-{number}", number + 1
    return folders, compare_runs(folders, target)


def compare_runs(folders: Sequence[Path], out: Path) -> Path:
    """Join runs that differ in their seed alone into one comparison with intervals over seeds and units.

    Raises
    ------
    InputError
        When the runs differ in anything but the seed; the field is named.
    """
    summaries = [read_json(f / "summary.json") for f in folders]
    configs = [read_json(f / "config.json") for f in folders]
    first = summaries[0]
    for folder, summary, config in zip(folders, summaries, configs, strict=True):
        for field, a, b in (
            ("method", first["method"], summary["method"]),
            ("data", first["data"], summary["data"]),
            ("settings", configs[0]["resolved"], config["resolved"]),
            ("arm_settings", configs[0]["arm_settings"], config["arm_settings"]),
            ("arms", [x["name"] for x in first["arms"]], [x["name"] for x in summary["arms"]]),
        ):
            if a != b:
                raise InputError(
                    f"{folder.name} differs from {folders[0].name} in {field}", "runs that differ in their seed alone",
                    "compare different configurations with `upright compare`",
                )  # fmt: skip
    spec = load_method(first["method"])
    blocks = [b for f in folders for b in read_units(f / "units.parquet")]
    task_type = load_object(spec.task)
    metrics: Mapping[str, Any] = getattr(task_type, "metrics_of", lambda c: {})(configs[0]["resolved"]["task"])
    out.mkdir(parents=True, exist_ok=True)
    comparison = {
        "schema": 1, "runs": [f.name for f in folders], "method": first["method"], "title": first["title"],
        "mends": first["mends"], "data": first["data"], "seeds": [s["seed"] for s in summaries],
        "arms": [{**a, "per_seed": [s["arms"][i]["totals"] for s in summaries]} for i, a in enumerate(first["arms"])],
        "warnings": list(dict.fromkeys(w for s in summaries for w in s["warnings"])),
        "deviations": first["deviations"], "evidence": _evidence(spec, Units(blocks), metrics),
    }  # fmt: skip
    write_json(out / "comparison.json", comparison)
    return out
