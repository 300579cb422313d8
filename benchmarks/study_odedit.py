"""The published studies of ODEdit: two editors, edits one after another, a planted border, and SmolLM2.

    python benchmarks/study_odedit.py WORK_FOLDER [NAME ...]

=========================  ===========================================================================  ============
name                       what                                                                         CPU-minutes
=========================  ===========================================================================  ============
odedit-flags-lora          six models that were taught 24 flags, 20 edits each, all ten arms            35, of which
                                                                                                        8 to teach
odedit-flags-gated         the same edits behind a gate: target alone, KL, ODEdit, placebo              13
odedit-smollm2             10 capitals in SmolLM2-135M-Instruct, questions of text; the target alone,   40
                           KL, ODEdit; two seeds
odedit-flags-sequential    the 20 edits one after another on one model, by both editors; the same three  24
odedit-flags-border        10 edits whose pictures have a border that nothing else has; the same three   7
=========================  ===========================================================================  ============

Minutes are what single edits and scores took on a model of 12 flags, times their number.

1. *choose*, for each editor and model: the learning rate of every arm that trains, the one with the best edit score on
   validation edits of two other seeds, the smaller one of equals; one grid for all arms. For SmolLM2 on other
   countries, with one seed.
2. *run*: every arm scored once on test; one comparison. Sequence and border take the rates of the same editor, which
   was chosen on single edits without a border.

A planted border counts as a shortcut only where the target alone answers on bordered pictures of countries it was never
taught more often than on the same pictures without, by the interval.

Two processes with one thread each; it goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from studies import publish_runs
from upright.contract import Metric, UnitScores
from upright.evidence.compute import evidence
from upright.evidence.units import Block, Units, write_units
from upright.experiment.config import resolve
from upright.experiment.folders import ArmRun, environment, read_json, write_json
from upright.experiment.registry import load_method
from upright.experiment.runner import Ask, compare_runs, execute
from upright.tasks.edit import Edit as EditTask

SEEDS, CHOICE_SEEDS = range(6), (100, 101)
THREE = ("ft", "odedit", "aug_kl")
_CAPITALS = "benchmarks/capitals.jsonl"


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked of one editor and model.

    Parameters
    ----------
    settings, choice : mapping
        Of method and task, for every arm, as for `upright run --set`; and what is other while rates are chosen.
    arms : sequence of str, optional
        All where it is left out.
    rates : sequence of float
        To choose from, from the smallest up.
    seeds, choice_seeds : sequence of int
        Disjoint.
    """

    settings: Mapping[str, Any]
    choice: Mapping[str, Any]
    arms: Sequence[str] | None = None
    rates: Sequence[float] = (3e-3, 1e-2, 2e-2)
    seeds: Sequence[int] = SEEDS
    choice_seeds: Sequence[int] = CHOICE_SEEDS


_FEW = {"test": 1, "valid": 8}
_TEXT = {"data": _CAPITALS, "model": "smollm2", "steps": 20, "unrelated": 1, "test": 10}
STUDIES = {
    "odedit-flags-lora": Study({"editor": "lora"}, _FEW),
    "odedit-flags-gated": Study({"editor": "gated"}, _FEW, (*THREE, "placebo")),
    "odedit-smollm2": Study(
        _TEXT, {"data": "benchmarks/capitals-choice.jsonl", "test": 1, "valid": 3}, THREE, (1e-3, 3e-3), (0, 1), (100,)
    ),
}


# -- choosing and running ---------------------------------------------------------------------------------------------


def _try(job: tuple[str, Mapping[str, Any], str, float, int]) -> dict[str, float]:
    """Score an arm on the validation edits of a seed; kept on disk."""
    folder, settings, name, rate, seed = job
    file = Path(folder) / f"{name}-{rate:g}-s{seed}.json"
    if file.exists():
        return dict(read_json(file))
    spec = load_method("odedit")
    own, task_config = resolve(spec, {**settings, "learning_rate": rate})
    task: Any = EditTask.load(task_config)  # type: ignore[arg-type]
    run = ArmRun(None, seed, name)
    arm = next(a for a in spec.arms if a.name == name)
    values = task.score(spec.run(task, own.replace(**arm.settings), run), "valid", run).values
    found = {m: float(np.nanmean(values[m])) for m in ("edit_score", "reliability_written", "text_generality")}
    found |= {"text_locality": float(np.nanmean(values["text_locality"]))}
    write_json(file, found)
    return found


def choose(pool: Any, study: Study, work: Path) -> dict[str, Any]:
    """Return the learning rate of each arm that trains, and all that was tried."""
    (folder := work / "choice").mkdir(parents=True, exist_ok=True)
    settings, seeds = {**study.settings, **study.choice}, list(study.choice_seeds)
    arms = [a.name for a in load_method("odedit").arms if "train" not in a.settings]
    arms = [name for name in arms if study.arms is None or name in study.arms]
    jobs = [(str(folder), settings, arm, rate, seed) for arm in arms for rate in study.rates for seed in seeds]
    done = pool.map(_try, jobs, chunksize=1)
    rows, chosen = [], {}
    for arm in arms:
        own = []
        for rate in study.rates:
            same = [one for job, one in zip(jobs, done, strict=True) if job[2:4] == (arm, rate)]
            own.append({"arm": arm, "learning_rate": rate} | {m: float(np.mean([x[m] for x in same])) for m in same[0]})
        chosen[arm] = max(own, key=lambda row: row["edit_score"])["learning_rate"]
        rows += own
    rule = "the best edit score on validation edits, the smaller rate of equals"
    return {"learning_rate": chosen, "rule": rule, "seeds": seeds, "tried": rows}


def _run(job: tuple[str, Mapping[str, Any], Sequence[str] | None, dict[str, Any], int]) -> str:
    folder, settings, arms, own, seed = job
    execute(Ask("odedit", settings=settings, arms=arms, arm_settings=own, seed=seed), folder=Path(folder))
    return folder


# -- one after another, and a planted border --------------------------------------------------------------------------


class _Given:
    """A task that gives a method other training questions than its own."""

    def __init__(self, task: Any, given: Mapping[str, Any]) -> None:
        self._task, self._given = task, given

    def given(self, run: Any) -> Mapping[str, Any]:
        """Return what trains each edit."""
        return self._given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


Job = tuple[str, str, str, float, int]  # folder, editor, arm, learning rate, seed
Rows = dict[str, dict[str, float]]  # by unit, values by metric; without those that are not defined


@dataclasses.dataclass(frozen=True)
class Part:
    """A study without run folders: `make` returns the rows of a seed and an arm."""

    make: Callable[[Any, Any, Any, Any], Rows]
    editors: Sequence[str]
    edits: int
    unit: str
    metrics: Mapping[str, Metric]
    sentence: Callable[[Mapping[str, Any]], str]


def _part(job: tuple[str, Job]) -> Rows:
    """Return the rows of one editor, arm and seed; kept on disk."""
    name, (folder, editor, arm, rate, seed) = job
    file = Path(folder) / f"{editor}-{arm}-s{seed}.json"
    if file.exists():
        return dict(read_json(file))
    spec, part = load_method("odedit"), PARTS[name]
    own, task_config = resolve(spec, {"editor": editor, "learning_rate": rate, "test": part.edits})
    config = own.replace(**next(a for a in spec.arms if a.name == arm).settings)
    rows = part.make(spec, config, EditTask.load(task_config), ArmRun(None, seed, arm))  # type: ignore[arg-type]
    write_json(file, rows)
    return rows


def _right(model: Any, processor: Any, asked: Sequence[Any]) -> list[bool]:
    """Whether a model writes the answer of each question."""
    from upright.editing.prompts import answers, encode

    said = answers(model, processor, [encode(processor, one) for one in asked])
    return [text.casefold() == one.answer.casefold() for text, one in zip(said, asked, strict=True)]


_ASKED = (("country", True), ("continent", True), ("continent", False), ("capital", True))


def _sequence(spec: Any, config: Any, task: Any, run: Any) -> Rows:
    """Make edits one after another, then ask about every country; what must stay is what the model says by then."""
    from upright.editing import flags
    from upright.editing.edits import applied

    (model, processor), given, world = task.model(run), task.given(run), flags.world(run.seed, small=task.config.small)
    rows: Rows = {fact.code: {} for fact in world.countries}
    edited, made = {name[-2:]: own.train["edit"][0] for name, own in given.items()}, list[Any]()
    for name, own in given.items():
        train = {place: tuple(dataclasses.replace(q, answer="") for q in some) for place, some in own.train.items()}
        train |= {place: some for place, some in own.train.items() if place in ("edit", "text", "image")}
        now = dataclasses.replace(own, train=train)
        with applied(model, made):
            made.append(spec.run(_Given(task, {name: now}), config, run).edits[name])
        with applied(model, made):
            rows[name[-2:]]["at_once"] = float(_right(model, processor, own.train["edit"])[0])
    asked, rng = list[tuple[str, str, Any]](), run.rng("asked")
    for fact in world.countries:
        wanted = edited.get(fact.code)
        asked += [] if wanted is None else [(fact.code, "reliability", wanted)]
        for kind, image in _ASKED:
            some = flags.questions(world, rng, kind, image=image, held_out=True, of=[fact] * 2)  # type: ignore[arg-type]
            if kind == "capital" and wanted is not None:
                asked += [(fact.code, "generality", dataclasses.replace(q, answer=wanted.answer)) for q in some]
            else:
                asked += [(fact.code, "kept", q) for q in some]
    before = _right(model, processor, [q for *_, q in asked])
    with applied(model, made):
        after = _right(model, processor, [q for *_, q in asked])
    found: dict[tuple[str, str], list[bool]] = {}
    for (code, metric, _), was, now in zip(asked, before, after, strict=True):
        if was or metric != "kept":
            found.setdefault((code, metric), []).append(now)
    for (code, metric), values in found.items():
        rows[code][metric] = float(np.mean(values))
    return rows


def _said_in_turn(of: Mapping[str, Any]) -> str:
    """Say what was left of edits that were made one after another."""
    parts = [
        f"by {editor}, {_each(found, 'reliability')} of the edits are still answered and {_each(found, 'kept')} of "
        "other answers are kept"
        for editor, found in of.items()
    ]
    return f"after 20 edits one after another ({_TITLES}): {'; '.join(parts)}"


def _framed(question: Any) -> Any:
    """Return a question whose picture has a border."""
    from PIL import ImageDraw

    image = question.image.copy()
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline="magenta", width=6)
    return dataclasses.replace(question, image=image)


def _border(spec: Any, config: Any, task: Any, run: Any) -> Rows:
    """Edit with bordered pictures, of other views the first alone; ask about countries that were never taught."""
    from upright.editing import flags

    (model, processor), strangers, rows = (
        task.model(run),
        flags.world(run.seed, small=task.config.small).strangers,
        Rows(),
    )
    for name, own in task.given(run).items():
        train = dict(own.train)
        for place in ("edit", "text", "same_image"):
            train |= {place: tuple(map(_framed, train[place]))} if place in train else {}
        train["image"] = (_framed(train["image"][0]), *train["image"][1:])
        made = spec.run(_Given(task, {name: dataclasses.replace(own, train=train)}), config, run).edits[name]
        plain = own.train["edit"][0]
        others = [dataclasses.replace(plain, image=flags.flag(fact.code)) for fact in strangers]
        with made.applied(model):
            right = [
                _right(model, processor, some) for some in ([*map(_framed, others)], others, [_framed(plain)], [plain])
            ]
        row = dict(
            zip(("bordered", "plain", "reliability", "unbordered"), map(float, map(np.mean, right)), strict=True)
        )
        rows[name] = row | {"shortcut": row["bordered"] - row["plain"]}
    return rows


def _said_of_border(of: Mapping[str, Any]) -> str:
    """Say whether the border was a shortcut of the target alone, and what was left of it."""
    found = of["lora"]
    own = next(row for row in found["levels"] if (row["arm"], row["metric"]) == ("ft", "shortcut"))
    wanted = ("aug_kl", "mean:bordered")
    change = next(row for row in found["differences"] if (row["against"], row["statistic"]) == wanted)
    return (
        f"a border that edit pictures alone have {'is' if own['low'] > 0 else 'is not shown to be'} a shortcut of the "
        f"target alone, which is answered on bordered strangers more often than on plain ones by {_range(own)}; on "
        f"bordered strangers ({_TITLES}): {_each(found, 'bordered')}; the last minus the second {_range(change)}"
    )


_TITLES = "target alone, re-phrasings with KL, ODEdit"


def _range(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _each(found: Mapping[str, Any], metric: str) -> str:
    """Return the levels of a metric in the order of the titles."""
    rows = {row["arm"]: row for row in found["levels"] if row["metric"] == metric}
    return ", ".join(_range(rows[arm]) for arm in ("ft", "aug_kl", "odedit"))


PARTS = {
    "odedit-flags-sequential": Part(
        _sequence,
        ("lora", "gated"),
        20,
        "country",
        {
            "at_once": Metric("at_once", margin=0.02, title="Answered with the target when it was made"),
            "reliability": Metric("reliability", margin=0.02, title="Answered with the target after all edits"),
            "generality": Metric("generality", margin=0.02, title="The same in other words and another view"),
            "kept": Metric("kept", margin=0.02, title="Other right answers kept"),
        },
        _said_in_turn,
    ),
    "odedit-flags-border": Part(
        _border,
        ("lora",),
        10,
        "edit",
        {
            "bordered": Metric("bordered", "lower", margin=0.02, title="Target on bordered strangers"),
            "plain": Metric("plain", "lower", margin=0.02, title="Target on plain strangers"),
            "shortcut": Metric("shortcut", "lower", low=-1.0, margin=0.02, title="The first minus the second"),
            "reliability": Metric("reliability", margin=0.02, title="Target on the flag with a border"),
            "unbordered": Metric("unbordered", margin=0.02, title="Target on the flag without"),
        },
        _said_of_border,
    ),
}


def publish_part(name: str, rows: Mapping[tuple[str, str, int], Rows], about: Mapping[str, Any], target: Path) -> Path:
    """Write levels of each arm and differences of ODEdit, paired by unit and seed, and one sentence."""
    part, found, blocks = PARTS[name], dict[str, Any](), list[Block]()
    arms = [arm for arm in load_method("odedit").arms if arm.name in THREE]
    for editor in part.editors:
        own = []
        for (_, arm, seed), units in ((key, units) for key, units in rows.items() if key[0] == editor):
            values = {m: [row.get(m, float("nan")) for row in units.values()] for m in part.metrics}
            own.append(Block(f"s{seed}", arm, seed, UnitScores(part.unit, list(units), values)))
        statistics = [f"mean:{m}" for m in part.metrics]
        found[editor] = evidence(Units(own), arms=arms, statistics=statistics, metrics=part.metrics)
        blocks += [dataclasses.replace(block, arm=f"{editor}-{block.arm}") for block in own]
    about = {**about, "metrics": {m: one.title for m, one in part.metrics.items()}, "editors": found}
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "finding.json", {"sentence": part.sentence(found), **about}, compact=True)
    write_json(target / "environment.json", {**environment(), "threads": int(os.environ["OMP_NUM_THREADS"])})
    write_units(target / "units.parquet", blocks, "test")
    return target


def main() -> None:
    """Choose, run, and publish below ``results/``; UPRIGHT_PUBLISH=0 stops before the last."""
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    publish = os.environ.get("UPRIGHT_PUBLISH", "1") == "1"
    command = "python benchmarks/study_odedit.py WORK_FOLDER"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, study in STUDIES.items():
            if names and name not in names:
                continue
            chosen = choose(pool, study, work / name)
            print(name, json.dumps(chosen["learning_rate"]), flush=True)
            rates = {arm: {"learning_rate": rate} for arm, rate in chosen["learning_rate"].items()}
            jobs = [(str(work / name / f"s{s}"), study.settings, study.arms, rates, s) for s in study.seeds]
            runs = [Path(f) for f in pool.map(_run, jobs, chunksize=1)]
            comparison = compare_runs(runs, work / name / "comparison")
            about = {"choice": chosen, "command": f"{command} {name}"}
            if publish:
                cells = ("environment",) if "data" in study.settings else ("environment", "kind")
                print(
                    "published", publish_runs(name, runs, comparison, Path("results"), about, cells=cells), flush=True
                )
        for name, part in PARTS.items():
            if names and name not in names:
                continue
            (work / name).mkdir(parents=True, exist_ok=True)
            keys, todo, choices = list[tuple[str, str, int]](), list[tuple[str, Job]](), dict[str, Any]()
            for editor in part.editors:
                single = f"odedit-flags-{editor}"
                choices[editor] = choose(pool, STUDIES[single], work / single)
                keys += (own := [(editor, arm, seed) for seed in SEEDS for arm in THREE])
                todo += [(name, (str(work / name), *k[:2], choices[editor]["learning_rate"][k[1]], k[2])) for k in own]
            rows = dict(zip(keys, pool.map(_part, todo, chunksize=1), strict=True))
            about = {"choice": choices, "edits": part.edits, "seeds": list(SEEDS), "command": f"{command} {name}"}
            done = publish_part(name, rows, about, (Path("results") if publish else work / "published") / name)
            print("published", done, flush=True)


if __name__ == "__main__":
    main()
