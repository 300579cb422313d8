"""What every method must do, derived from its declaration: `upright check NAME`, for ours and for plugins alike.

A check is a plain function of a `_Lab`: it returns what it found in words, or raises `_Failed`. Methods run on the
tiny world of their task, in float64, with the settings of `MethodSpec.tiny`. Results that theory makes equal are
compared within 1e-9; results that the same numbers make equal (same seed, resume) are compared exactly.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, Config, InputError, MethodSpec, Metric, UnitScores
from upright.evidence.statistics import computable
from upright.evidence.units import Units, read_units, write_units
from upright.experiment.config import describe, to_config
from upright.experiment.fingerprint import digest, gap_of
from upright.experiment.folders import ArmRun, RunFolder, plain, read_log
from upright.experiment.registry import load_method, load_object
from upright.experiment.runner import Ask, evidence_of, run_task

__all__ = ["CHECKS", "PARTS", "Check", "conformance"]

#: sections of a method's module docstring, in order
PARTS = ("Paper", "Problem", "Algorithm", "Shapes", "Deviations", "Cost")
TOLERANCE = 1e-9
DRAWS = 40
Arrays = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Check:
    """Outcome of one check.

    Parameters
    ----------
    name : str
        What is checked, the same words for every method.
    passed : bool
    detail : str
        What was found.
    """

    name: str
    passed: bool
    detail: str


class _Failed(Exception):
    """A check that did not pass; the text says what was found."""


class _Killed(BaseException):
    """Stands for SIGKILL; no method catches it by `except Exception`."""


class _CutRun(ArmRun):
    """An arm's run that dies right after its first checkpoint."""

    def save(self, step: int, state: Mapping[str, Any], *, best: bool = False) -> None:
        super().save(step, state, best=best)
        raise _Killed


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """One trained arm, what it scores on test, and how it behaved on the way."""

    scores: UnitScores
    state: Arrays | None
    mutated: tuple[str, ...]
    peeked: tuple[str, ...]


def conformance(name: str, *, seed: int = 0) -> list[Check]:
    """Check one registered method against what its declaration promises.

    Parameters
    ----------
    name : str
        Registered method, ours or a plugin's.
    seed : int
        Seed of the tiny world and of the runs.

    Returns
    -------
    list of Check
        One for each entry of `CHECKS`, in order. A check that raises has failed, with the error as its detail.

    Raises
    ------
    InputError
        For a name that is not registered, or a plugin that does not load.
    """
    lab = _Lab(load_method(name), seed)
    done = []
    for title, check in CHECKS.items():
        try:
            done.append(Check(title, True, check(lab)))
        except _Failed as failure:
            done.append(Check(title, False, str(failure)))
        except Exception as error:
            done.append(Check(title, False, f"{type(error).__name__}: {error}"))
    return done


class _Lab:
    """Runs a method on its task's tiny world and remembers the outcomes."""

    def __init__(self, spec: MethodSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed
        self._known: dict[str, _Outcome] = {}

    @property
    def task_type(self) -> Any:
        return load_object(self.spec.task)

    @property
    def config(self) -> Config:
        return to_config(self.spec.config, self.spec.tiny)

    @property
    def trained(self) -> list[Arm]:
        """Every arm that is trained; a mix is made of others."""
        return [arm for arm in self.spec.arms if not arm.mix]

    def arm(self, role: str, **options: Any) -> _Outcome:
        """Return the outcome of the first arm with a role."""
        return self.outcome(self.spec.arm(role), **options)

    def outcome(
        self, arm: Arm, *, seed: int | None = None, changes: Mapping[str, Any] | None = None, again: bool = False
    ) -> _Outcome:
        """Train and score one arm in memory, once unless it is asked for again."""
        key = json.dumps([arm.name, plain(arm.settings), seed, plain(changes or {})], sort_keys=True, default=repr)
        if key in self._known and not again:
            return self._known[key]
        self._known[key] = self.train(arm, ArmRun(None, self.seed if seed is None else seed, arm.name), changes)
        return self._known[key]

    def train(self, arm: Arm, run: ArmRun, changes: Mapping[str, Any] | None = None) -> _Outcome:
        """Train and score one arm on a fresh tiny task, watching what it does to what it was given."""
        task, config = self.task_type.tiny(self.seed, **(changes or {})), self.config.replace(**arm.settings)
        before, peeked = _digests(task, config), []
        score, open_test = task.score, task.open_test

        def watched_score(result: Any, split: Any, run: Any) -> Any:
            if split == "test":
                peeked.append("score(..., 'test')")
            return score(result, split, run)

        def watched_open() -> None:
            peeked.append("open_test()")
            open_test()

        for attribute, spy in (("score", watched_score), ("open_test", watched_open)):
            object.__setattr__(task, attribute, spy)
        result = self.spec.run(task, config, run)
        for attribute in ("score", "open_test"):
            object.__delattr__(task, attribute)
        after = _digests(task, config)
        mutated = tuple(sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)))
        task.open_test()
        return _Outcome(task.score(result, "test", run), _state(result), mutated, tuple(dict.fromkeys(peeked)))


# -- outcomes ------------------------------------------------------------------------------------------------------


def _state(result: Any) -> Arrays | None:
    """Parameters and buffers of a result that is an `nn.Module`, as dense arrays."""
    from torch import nn

    if not isinstance(result, nn.Module):
        return None
    return {k: v.detach().cpu().to_dense().clone().numpy() for k, v in result.state_dict().items()}


def _distance(a: _Outcome, b: _Outcome) -> tuple[float, str]:
    """Return the largest absolute difference of scores and parameters, and where it is."""
    if [str(u) for u in a.scores.unit] != [str(u) for u in b.scores.unit]:
        return float("inf"), "the units"
    pairs: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {"metric": (a.scores.values, b.scores.values)}
    if a.state is not None and b.state is not None:
        pairs["parameter"] = (a.state, b.state)
    gaps = {f"{what} {k}": gap_of(x.get(k), y.get(k)) for what, (x, y) in pairs.items() for k in {**x, **y}}
    where = max(gaps, key=gaps.__getitem__, default="nothing")
    return gaps.get(where, 0.0), where


def _digests(task: Any, config: Config) -> dict[str, str]:
    """Fingerprint of the config and of each public attribute of a task; private ones are the task's own business."""
    public = {k: v for k, v in vars(task).items() if not k.startswith("_") and k not in ("score", "open_test")}
    return {k: digest(v) for k, v in {**public, "config": config}.items()}


# -- the declaration ---------------------------------------------------------------------------------------------


def _round_trip(lab: _Lab) -> str:
    for config in (lab.spec.config(), lab.config):
        values = config.as_dict()
        for form, back in (("as_dict", values), ("config.json", json.loads(json.dumps(plain(values))))):
            again = to_config(lab.spec.config, back)
            if again != config:
                raise _Failed(f"{again} made from {form} is not {config}")
    return f"{len(lab.config.as_dict())} fields, by value and by JSON"


def _unknown_key(lab: _Lab) -> str:
    field = next(iter(lab.config.as_dict()))
    wrong = field + "_"
    try:
        to_config(lab.spec.config, {wrong: 0})
    except InputError as error:
        if repr(field) not in error.todo:
            raise _Failed(f"{wrong!r} is refused without naming {field!r}: {error.todo}") from None
        return f"{wrong!r}: {error.todo}"
    raise _Failed(f"{wrong!r} is accepted")


def _fields_documented(lab: _Lab) -> str:
    rows = describe(lab.spec.config)
    bare = [row["name"] for row in rows if not row["doc"]]
    if bare:
        raise _Failed(f"{lab.spec.config.__name__}: no docstring after {', '.join(bare)}")
    return f"{len(rows)} fields"


def _docstring(lab: _Lab) -> str:
    module = lab.spec.run.__module__
    doc = sys.modules[module].__doc__ or ""
    missing = [part for part in PARTS if not re.search(rf"^{part}\n-{{3,}}\n\s*(?!\w+\n-{{3,}}\n)\S", doc, re.M)]
    if missing:
        raise _Failed(f"docstring of {module} lacks {', '.join(missing)}")
    return ", ".join(PARTS)


def _arms(lab: _Lab) -> str:
    spec, names = lab.spec, [a.name for a in lab.spec.arms]
    if len(set(names)) < len(names):
        raise _Failed(f"two arms with one name: {', '.join(names)}")
    fields = set(lab.config.as_dict())
    task_fields = {f"task.{f.name}" for f in dataclasses.fields(lab.task_type.Config)}
    sets = [*((f"arm {a.name}", a.settings) for a in spec.arms), *(("neutral", n) for n in spec.neutral)]
    for where, settings in sets:
        unknown = set(settings) - fields - (task_fields if where == "neutral" else set())
        if unknown:
            raise _Failed(f"{where} sets {', '.join(sorted(unknown))}, not a field of {spec.config.__name__}")
        lab.config.replace(**{k: v for k, v in settings.items() if k in fields})
    for wanted in (spec.primary, spec.cost):
        if wanted.partition("=")[0] not in spec.statistics:
            raise _Failed(f"{wanted} decides the verdict but is not among the statistics")
    return ", ".join(f"{a.name} ({a.role})" for a in spec.arms)


# -- what runs show ----------------------------------------------------------------------------------------------


def _same_seed(lab: _Lab) -> str:
    gap, where = _distance(lab.arm("remedy"), lab.arm("remedy", again=True))
    if gap > 0:  # exactly: the same numbers in the same order
        raise _Failed(f"two runs with seed {lab.seed} differ by {gap:.3g} in {where}")
    return f"two runs with seed {lab.seed} are equal"


def _other_seed(lab: _Lab) -> str:
    gap, where = _distance(lab.arm("remedy"), lab.arm("remedy", seed=lab.seed + 1))
    if gap == 0:
        raise _Failed(f"seeds {lab.seed} and {lab.seed + 1} give the same result: the seed is not used")
    return f"seeds {lab.seed} and {lab.seed + 1} differ by {gap:.3g} in {where}"


def _neutral(lab: _Lab) -> str:
    found = []
    for setting in lab.spec.neutral:
        changes = {k.removeprefix("task."): v for k, v in setting.items() if k.startswith("task.")}
        own = {k: v for k, v in setting.items() if not k.startswith("task.")}
        remedy = lab.spec.arm("remedy")
        neutral = dataclasses.replace(remedy, settings={**remedy.settings, **own})
        gap, where = _distance(lab.outcome(neutral, changes=changes), lab.arm("baseline", changes=changes))
        if not gap <= TOLERANCE:
            raise _Failed(f"at {setting} the remedy differs from its baseline by {gap:.3g} in {where}")
        found.append(f"{setting}: {gap:.1g}")
    return "; ".join(found)


def _acts(lab: _Lab) -> str:
    gap, where = _distance(lab.arm("remedy"), lab.arm("baseline"))
    if not gap > TOLERANCE:
        raise _Failed("the remedy at its tiny settings gives the baseline's result: a setting is ignored")
    return f"differs from the baseline by {gap:.3g} in {where}"


def _finite(lab: _Lab) -> str:
    metrics: Mapping[str, Metric] = lab.task_type.tiny(lab.seed).metrics
    nowhere = _undefined(lab.arm("baseline"))
    for arm in lab.trained:
        found = lab.outcome(arm)
        _require_finite(f"arm {arm.name}", found, metrics)
        if lost := _undefined(found) - nowhere:
            raise _Failed(f"arm {arm.name}: {', '.join(sorted(lost))} is undefined for every unit")
    note = f"; not defined on the tiny world: {', '.join(sorted(nowhere))}" if nowhere else ""
    return f"{len(lab.trained)} arms, inside the bounds of each metric{note}"


def _undefined(found: _Outcome) -> set[str]:
    return {m for m, v in found.scores.values.items() if np.isnan(np.asarray(v, dtype=np.float64)).all()}


def _require_finite(where: str, found: _Outcome, metrics: Mapping[str, Metric]) -> None:
    for name, values in found.scores.values.items():
        if name not in metrics:
            raise _Failed(f"{where}: metric {name} is not declared by the task")
        defined = np.asarray(values, dtype=np.float64)
        defined = defined[~np.isnan(defined)]
        low, high = metrics[name].low - TOLERANCE, metrics[name].high + TOLERANCE
        if np.isinf(defined).any() or (defined < low).any() or (defined > high).any():
            raise _Failed(f"{where}: {name} spans [{defined.min():g}, {defined.max():g}], declared [{low:g}, {high:g}]")
    for name, value in (found.state or {}).items():
        if not np.isfinite(value).all():
            raise _Failed(f"{where}: parameter {name} is not finite")


def _unmutated(lab: _Lab) -> str:
    for arm in lab.trained:
        mutated = lab.outcome(arm).mutated
        if mutated:
            raise _Failed(f"arm {arm.name} changes {', '.join(mutated)} of what it was given")
    return "task and config are as before in every arm"


def _test_refused(lab: _Lab) -> str:
    for arm in lab.trained:
        peeked = lab.outcome(arm).peeked
        if peeked:
            raise _Failed(f"arm {arm.name} calls {', '.join(peeked)} while it trains")
    task, arm = lab.task_type.tiny(lab.seed), lab.spec.arm("baseline")
    run = ArmRun(None, lab.seed, arm.name)
    result = lab.spec.run(task, lab.config.replace(**arm.settings), run)
    try:
        task.score(result, "test", run)
    except InputError:
        return "the task refuses, and no arm asks"
    raise _Failed(f"{lab.spec.task} scores the test split before the runner opened it")


def _precisions(lab: _Lab) -> str:
    has_field = "precision" in {f.name for f in dataclasses.fields(lab.task_type.Config)}
    for name in ("float64", "float32") if has_field else ("float64",):
        found = lab.arm("remedy", changes={"precision": name} if has_field else None)
        _require_finite(name, found, lab.task_type.tiny(lab.seed).metrics)
        for key, value in (found.state or {}).items():
            if np.issubdtype(value.dtype, np.floating) and value.dtype != np.dtype(name):
                raise _Failed(f"{name}: parameter {key} is {value.dtype}")
    return "both" if has_field else f"float64; {lab.task_type.Config.__name__} has no field `precision`"


# -- what a folder keeps -----------------------------------------------------------------------------------------


def _resume(lab: _Lab) -> str:
    first, second = lab.spec.arm("baseline"), lab.spec.arm("remedy")
    with tempfile.TemporaryDirectory() as temporary:
        whole, cut = RunFolder(Path(temporary) / "whole"), RunFolder(Path(temporary) / "cut")
        expected = [_in_folder(lab, arm, whole, ArmRun) for arm in (first, second)]
        _in_folder(lab, first, cut, ArmRun)
        how = "writes no checkpoint; run again in its folder"
        try:
            _in_folder(lab, second, cut, _CutRun)
        except _Killed:
            how = "killed after its first checkpoint and resumed"
        found = [_in_folder(lab, arm, cut, ArmRun) for arm in (first, second)]
        for (a, notes), (b, wanted) in zip(found, expected, strict=True):
            gap, where = _distance(a, b)
            if gap > 0:
                raise _Failed(f"{how}: differs from the uninterrupted run by {gap:.3g} in {where}")
            if notes != wanted:
                raise _Failed(f"{how}: notes {notes} instead of {wanted}")
        lines = [read_log(folder.path) for folder in (cut, whole)]
        if lines[0] != lines[1]:
            raise _Failed(f"{how}: metrics.jsonl differs, {len(lines[0])} lines instead of {len(lines[1])}")
    return f"{how}: equal scores, parameters, notes and metrics.jsonl"


def _in_folder(lab: _Lab, arm: Arm, folder: RunFolder, kind: type[ArmRun]) -> tuple[_Outcome, str]:
    run = kind(folder, lab.seed, arm.name)
    return lab.train(arm, run), json.dumps(plain(run.notes))


def _recomputable(lab: _Lab) -> str:
    import polars as pl

    spec, task, ask = lab.spec, lab.task_type.tiny(lab.seed), Ask(lab.spec.name, seed=lab.seed)
    blocks, _, _ = run_task(spec, task, lab.config, None, ask)
    lost = [s for s in spec.statistics if not computable(s, Units(blocks))]
    if lost:
        raise _Failed(f"the task scores no metric for {', '.join(lost)}")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "units.parquet"
        write_units(path, blocks, "test")
        rows, kept = pl.read_parquet(path), read_units(path)
    before, after = (
        plain(evidence_of(spec, Units(units), task.metrics, ask, draws=DRAWS).row()) for units in (blocks, kept)
    )
    if before != after:
        raise _Failed("evidence from the written and read unit table is not the evidence of the run")
    means = [x for x in after["levels"] if x["statistic"].startswith("mean:") and x["arm"] in set(rows["arm"])]
    for level in means:
        own = rows.filter(arm=level["arm"], metric=level["metric"])
        if level["group"] is not None:
            own = own.filter(pl.col(f"by_{level['grouping']}") == level["group"])
        value = float(np.mean(own["value"].drop_nans().to_list() or [np.nan]))
        said = np.nan if level["value"] is None else level["value"]
        if gap_of(value, said) > TOLERANCE:
            raise _Failed(f"{level['statistic']} of arm {level['arm']} is {said}, its rows give {value}")
    return f"{len(after['levels'])} levels, {len(means)} of them by hand, from {len(rows)} rows"


#: name of each check and the function that makes it
CHECKS: Mapping[str, Callable[[_Lab], str]] = {
    "config round trip": _round_trip,
    "unknown key refused": _unknown_key,
    "config fields documented": _fields_documented,
    "module docstring": _docstring,
    "arms": _arms,
    "same seed, same result": _same_seed,
    "other seed, other result": _other_seed,
    "neutral = baseline": _neutral,
    "remedy acts": _acts,
    "arms finite": _finite,
    "nothing mutated": _unmutated,
    "test split refused": _test_refused,
    "float32 and float64": _precisions,
    "kill and resume": _resume,
    "evidence recomputable": _recomputable,
}
