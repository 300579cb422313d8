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
from upright.evidence.compute import evidence
from upright.evidence.statistics import computable
from upright.evidence.units import Units, read_units, write_units
from upright.experiment.config import describe, to_config
from upright.experiment.fingerprint import digest, gap_of
from upright.experiment.folders import ArmRun, RunFolder, plain
from upright.experiment.registry import load_method, load_object
from upright.experiment.runner import Ask, run_task

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


def conformance(name: str, *, seed: int = 0, progress: Callable[[Check], None] | None = None) -> list[Check]:
    """Check one registered method against what its declaration promises.

    Parameters
    ----------
    name : str
        Registered method, ours or a plugin's.
    seed : int
        Seed of the tiny world and of the runs.
    progress : callable, optional
        Called with each check as it ends.

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
            found = Check(title, True, check(lab))
        except _Failed as failure:
            found = Check(title, False, str(failure))
        except Exception as error:
            found = Check(title, False, f"{type(error).__name__}: {error}")
        done.append(found)
        if progress is not None:
            progress(found)
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
        arm = self.spec.arm(role)
        return self.outcome(arm.name, arm.settings, **options)

    def outcome(
        self,
        arm: str,
        settings: Mapping[str, Any],
        *,
        seed: int | None = None,
        changes: Mapping[str, Any] | None = None,
        again: bool = False,
    ) -> _Outcome:
        """Train and score one arm on a fresh tiny task, watching what it does to what it was given."""
        key = json.dumps([arm, plain(settings), seed, plain(changes or {})], sort_keys=True, default=repr)
        if key in self._known and not again:
            return self._known[key]
        run = ArmRun(None, self.seed if seed is None else seed, arm)
        task, config = self.task_type.tiny(self.seed, **(changes or {})), self.config.replace(**settings)
        before, peeked = {**_digests(vars(task)), "config": digest(config)}, []
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
        after = {**_digests(vars(task)), "config": digest(config)}
        mutated = tuple(sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)))
        task.open_test()
        found = _Outcome(task.score(result, "test", run), _state(result), mutated, tuple(dict.fromkeys(peeked)))
        return self._known.setdefault(key, found) if not again else found


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
    pairs = {
        f"metric {k}": (a.scores.values.get(k), b.scores.values.get(k)) for k in {**a.scores.values, **b.scores.values}
    }
    if a.state is not None and b.state is not None:
        pairs |= {f"parameter {k}": (a.state.get(k), b.state.get(k)) for k in {**a.state, **b.state}}
    worst, where = 0.0, "nothing"
    for name, (x, y) in pairs.items():
        gap = gap_of(x, y)
        if gap > worst:
            worst, where = gap, name
    return worst, where


def _digests(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprint of each public attribute; private ones are the task's own business."""
    return {k: digest(v) for k, v in attributes.items() if not k.startswith("_") and k not in ("score", "open_test")}


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
    if lacking := {"baseline", "remedy", "trivial", "placebo"} - {a.role for a in spec.arms}:
        raise _Failed(f"no arm for {', '.join(sorted(lacking))}")
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
        at_neutral = lab.outcome(remedy.name, {**remedy.settings, **own}, changes=changes)
        gap, where = _distance(at_neutral, lab.arm("baseline", changes=changes))
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
        found = lab.outcome(arm.name, arm.settings)
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
        mutated = lab.outcome(arm.name, arm.settings).mutated
        if mutated:
            raise _Failed(f"arm {arm.name} changes {', '.join(mutated)} of what it was given")
    return "task and config are as before in every arm"


def _test_refused(lab: _Lab) -> str:
    for arm in lab.trained:
        peeked = lab.outcome(arm.name, arm.settings).peeked
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
    asked: dict[str, type] = {"float64": np.float64}
    if "precision" in {f.name for f in dataclasses.fields(lab.task_type.Config)}:
        asked["float32"] = np.float32
    for name, wanted in asked.items():
        found = lab.arm("remedy", changes={"precision": name} if len(asked) > 1 else None)
        _require_finite(name, found, lab.task_type.tiny(lab.seed).metrics)
        for key, value in (found.state or {}).items():
            if np.issubdtype(value.dtype, np.floating) and value.dtype != wanted:
                raise _Failed(f"{name}: parameter {key} is {value.dtype}")
    return "both" if len(asked) > 1 else f"float64; {lab.task_type.Config.__name__} has no field `precision`"


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
        logs = [f.path / "metrics.jsonl" for f in (cut, whole)]
        lines = [log.read_text(encoding="utf-8").splitlines() if log.exists() else [] for log in logs]
        if lines[0] != lines[1]:
            raise _Failed(f"{how}: metrics.jsonl differs, {len(lines[0])} lines instead of {len(lines[1])}")
    return f"{how}: equal scores, parameters, notes and metrics.jsonl"


def _in_folder(lab: _Lab, arm: Any, folder: RunFolder, kind: type[ArmRun]) -> tuple[_Outcome, str]:
    task, run = lab.task_type.tiny(lab.seed), kind(folder, lab.seed, arm.name)
    result = lab.spec.run(task, lab.config.replace(**arm.settings), run)
    task.open_test()
    return _Outcome(task.score(result, "test", run), _state(result), (), ()), json.dumps(plain(run.notes))


def _recomputable(lab: _Lab) -> str:
    import pyarrow.parquet as pq

    spec, task = lab.spec, lab.task_type.tiny(lab.seed)
    blocks, _, _ = run_task(spec, task, lab.config, None, Ask(spec.name, seed=lab.seed))
    lost = [s for s in spec.statistics if not computable(s, Units(blocks))]
    if lost:
        raise _Failed(f"the task scores no metric for {', '.join(lost)}")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "units.parquet"
        write_units(path, blocks, "test")
        rows, kept = pq.read_table(path).to_pydict(), read_units(path)

    def compute(units: Units) -> Any:
        return plain(
            evidence(
                units,
                arms=spec.arms,
                statistics=spec.statistics,
                metrics=task.metrics,
                primary=spec.primary,
                cost=spec.cost,
                title=spec.title,
                draws=DRAWS,
            )
        )

    before, after = compute(Units(blocks)), compute(Units(kept))
    if before != after:
        raise _Failed("evidence from the written and read unit table is not the evidence of the run")
    columns = {k: np.asarray(v, dtype=object) for k, v in rows.items()}
    means = [x for x in after["levels"] if x["statistic"].startswith("mean:") and x["arm"] in set(rows["arm"])]
    for level in means:
        own = (columns["arm"] == level["arm"]) & (columns["metric"] == level["metric"])
        if level["group"] is not None:
            own &= columns[f"by_{level['grouping']}"] == level["group"]
        value = float(np.mean([v for v in columns["value"][own] if v == v] or [np.nan]))
        if gap_of(value, np.nan if level["value"] is None else level["value"]) > TOLERANCE:
            raise _Failed(f"{level['statistic']} of arm {level['arm']} is {level['value']}, its rows give {value}")
    return f"{len(after['levels'])} levels, {len(means)} of them by hand, from {len(rows['value'])} rows"


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
