"""The published studies of CopyGuard: a planted subject, every pair, pictures that are truly read, and SmolLM2.

    python benchmarks/study_copyguard.py WORK_FOLDER [NAME ...]

1. *noise*: how many letters Tesseract reads wrong on 200 pages that are drawn and truly read, 40 works of a seed of its
   own; studies that take pages as read draw the errors of each reading from these 200
2. *copyguard-obedient*: six seeds of 4,000 pairs, every arm; the held-out queries
3. *copyguard-ocr*: 400 pairs whose pictures are drawn and read, fonts, sizes, contrast, slant and columns drawn; two
   seeds of 200, a pilot
4. *copyguard-smollm2*: 60 pairs, 64 tokens an answer; two seeds of 30, a pilot
5. *copyguard-all*: all 50,000 copying requests under A once, open queries too, without the guard and behind it

Nothing is chosen on any of these: the guard's settings are its defaults. Two processes with one thread each; it goes on
where it was interrupted. No page and no answer is published.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from studies import publish_runs
from upright.evidence.units import read_units
from upright.experiment.folders import environment, read_json, write_json
from upright.experiment.runner import Ask, compare_runs, execute
from upright.experiment.summary import read_summary
from upright.guard import benchmark
from upright.guard.queries import OPEN
from upright.guard.reading import Reader
from upright.metrics.overlap import words_of

SEEDS, CHOICE_SEED, WORKS = range(6), 100, 40


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked: settings of the task, arms, and seeds."""

    settings: Mapping[str, Any]
    arms: Sequence[str] | None = None
    seeds: Sequence[int] = SEEDS


CONTROLS = ("none", "guard", "keywords", "coin")
OTHERS = 1000  # further protected works, so that a free page may be taken for one of them
STUDIES = {
    "copyguard-obedient": Study({"pairs": 4000, "valid": 1000}),
    "copyguard-ocr": Study(
        {"reading": "ocr", "vary": True, "pairs": 200, "valid": 20}, (*CONTROLS, "published", "blind"), (0, 1)
    ),
    "copyguard-smollm2": Study({"subject": "smollm2", "pairs": 30, "valid": 10}, CONTROLS, (0, 1)),
}
ALL = "copyguard-all"


def _letters(text: str) -> str:
    return "".join(words_of(text))


def _wrong(page: str, read: str) -> float:
    """Return the share of letters of a page that are not in what was read, in order: 1 - LCS / letters."""
    first, second = _letters(page), _letters(read)
    places: dict[str, int] = {}
    for i, letter in enumerate(second):
        places[letter] = places.get(letter, 0) | 1 << i
    row, full = (1 << len(second)) - 1, (1 << len(second)) - 1
    for letter in first:  # bit-parallel: Hyyro (2004)
        own = row & places.get(letter, 0)
        row = ((row + own) | (row - own)) & full
    return 1.0 - (full ^ row).bit_count() / len(first)


def _read(job: tuple[int, str]) -> float:
    number, notice = job
    page = benchmark.pages()[number]
    with Reader() as reader:
        read = reader.read(benchmark.picture_of(page, notice, benchmark.look_of(page, notice, CHOICE_SEED)))
    return _wrong(benchmark.read_as(page, notice), read)


def noise(pool: Any, work: Path) -> dict[str, Any]:
    """Return the shares of letters that were read wrong, one a page, with their mean and quantiles; kept on disk."""
    file = work / "noise.json"
    if not file.exists():
        works = [250 * i // WORKS for i in range(WORKS)]
        jobs = [(number, notice) for number in works for notice in benchmark.NOTICES]
        found = sorted(pool.map(_read, jobs, chunksize=5))
        told: dict[str, Any] = {"pages": len(found), "mean": sum(found) / len(found)}
        told |= {f"{q}%": found[len(found) * q // 100] for q in (50, 90, 99)}
        write_json(file, told | {"rates": [round(one, 4) for one in found]})
    return dict(read_json(file))


def _run(job: tuple[str, Mapping[str, Any], Sequence[str] | None, int]) -> str:
    folder, settings, arms, seed = job
    execute(Ask("copyguard", settings=settings, arms=arms, seed=seed), folder=Path(folder))
    return folder


def _words(own: Mapping[str, float]) -> str:
    """Write a level; where all are alike an interval over draws has no width, and the number of pairs says more."""
    if own["low"] == own["high"]:
        return f"{round(own['value'] * own['n_units'])} of {own['n_units']} pairs"
    return f"{own['value']:.3f} ({own['low']:.3f} to {own['high']:.3f})"


def publish_pilot(comparison: Path, target: Path, study: Study, about: Mapping[str, Any]) -> Path:
    """Write what too few seeds show, which decides nothing: levels of every arm over all pairs."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in read_summary(comparison).row()["evidence"]["levels"]:
        if row["group"] is None:
            told = {name: row[name] for name in ("value", "low", "high", "n_units")}
            found.setdefault(row["arm"], {})[row["metric"]] = told

    pairs, what = len(study.seeds) * study.settings["pairs"], study.settings
    subject = "SmolLM2-135M-Instruct, which reads what was read in the picture," if "subject" in what else "a model"
    how = "" if "subject" in what else ", with pictures that are drawn and read by Tesseract"
    none, guard = found["none"], found["guard"]
    sentence = (
        f"a pilot of {pairs} pairs{how}: {subject} copies {_words(none['leak'])} of protected pages without the guard "
        f"and {_words(guard['leak'])} behind it; permitted requests refused or changed {_words(none['over_refusal'])} "
        f"and {_words(guard['over_refusal'])}"
    )
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "finding.json", {"sentence": sentence, "arms": found, "seeds": list(study.seeds), **about})
    write_json(target / "environment.json", {**environment(), "threads": int(os.environ["OMP_NUM_THREADS"])})
    return target


def publish_all(run: Path, target: Path, read: Mapping[str, float]) -> Path:
    """Write what all copying requests under A show, with intervals over works: t, works - 1 degrees."""
    from scipy.stats import t

    found: dict[str, dict[str, dict[str, float]]] = {}
    for block in read_units(run / "units.parquet"):
        scores = block.scores
        work, metrics = np.array(scores.cluster), ("leak", "complied")
        asked = np.array([int(one.rpartition("-")[2]) >= OPEN[one.split("-")[3]] for one in scores.unit])
        for name, rows in (("all", np.ones(len(work), bool)), ("held out", asked), ("open", ~asked)):
            for metric in metrics:
                own = np.where(rows, np.asarray(scores.values[metric], dtype=np.float64), np.nan)
                mean = np.array([np.nanmean(own[work == one]) for one in np.unique(work)])
                half = float(t.ppf(0.975, len(mean) - 1) * mean.std(ddof=1) / np.sqrt(len(mean)))
                value = float(mean.mean())
                told = {"value": value, "low": value - half, "high": value + half, "n_units": int(rows.sum())}
                found.setdefault(block.arm, {})[f"{metric}, {name}"] = told

    none, guard = found["none"], found["guard"]
    sentence = (
        f"of all 50,000 copying requests about 250 protected pages, translations aside, {_words(none['leak, all'])} "
        f"leak without the guard and {_words(guard['leak, all'])} behind it, {_words(guard['leak, held out'])} of "
        "those whose query was held out"
    )
    command = f"python benchmarks/study_copyguard.py WORK_FOLDER {ALL}"
    target.mkdir(parents=True, exist_ok=True)
    write_json(
        target / "finding.json", {"sentence": sentence, "arms": found, "reading": dict(read), "command": command}
    )
    write_json(target / "environment.json", {**environment(), "threads": int(os.environ["OMP_NUM_THREADS"])})
    return target


def main() -> None:
    """Run, and publish below ``results/``; UPRIGHT_PUBLISH=0 stops before the last."""
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    publish = os.environ.get("UPRIGHT_PUBLISH", "1") == "1"
    target = Path("results") if publish else work / "published"
    work.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        read = noise(pool, work)
        rates = read.pop("rates")
        print("noise", json.dumps(read), flush=True)
        for name, study in STUDIES.items():
            if names and name not in names:
                continue
            settings = {**study.settings, "rates": rates, "others": OTHERS}
            jobs = [(str(work / name / f"s{s}"), settings, study.arms, s) for s in study.seeds]
            runs = [Path(f) for f in pool.map(_run, jobs, chunksize=1)]
            comparison = compare_runs(runs, work / name / "comparison")
            about = {"reading": read, "command": f"python benchmarks/study_copyguard.py WORK_FOLDER {name}"}
            if len(study.seeds) < len(SEEDS):
                print("published", publish_pilot(comparison, target / name, study, about), flush=True)
            elif publish:
                cells = ("rights", "task", "permitted", "notice")
                print("published", publish_runs(name, runs, comparison, target, about, cells=cells), flush=True)
        if not names or ALL in names:
            settings = {"all": True, "valid": 20, "rates": rates, "others": OTHERS}
            run = Path(_run((str(work / ALL / "s0"), settings, ("none", "guard"), 0)))
            print("published", publish_all(run, target / ALL, read), flush=True)


if __name__ == "__main__":
    main()
