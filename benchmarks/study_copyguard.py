"""The published studies of CopyGuard: a planted subject, every pair, pictures that are truly read, and SmolLM2.

    python benchmarks/study_copyguard.py WORK_FOLDER [NAME ...]

1. *noise*: how many letters Tesseract reads wrong on 200 pages that are drawn and truly read, 40 works of a seed of its
   own; all studies that take pages as read have these errors
2. *copyguard-obedient*: six seeds of 10,000 pairs, every arm; the held-out queries
3. *copyguard-all*: all 50,000 copying requests under A once, open queries too, without the guard and behind it
4. *copyguard-ocr*: 400 pairs whose pictures are drawn and read, fonts, sizes, contrast, slant and columns drawn
5. *copyguard-smollm2*: 60 pairs, three arms, 64 tokens an answer, one seed: a pilot

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

from studies import publish_runs
from upright.experiment.folders import read_json, write_json
from upright.experiment.runner import Ask, compare_runs, execute
from upright.guard import benchmark
from upright.guard.reading import Reader
from upright.metrics.overlap import words_of

SEEDS, CHOICE_SEED, WORKS = range(6), 100, 40
_ABLATIONS = ("blind", "no_notices", "no_registry", "no_intent", "no_output")


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked: settings of the task, arms, and seeds."""

    settings: Mapping[str, Any]
    arms: Sequence[str] | None = None
    seeds: Sequence[int] = SEEDS


STUDIES = {
    "copyguard-obedient": Study({"pairs": 10_000, "valid": 1000}),
    "copyguard-all": Study({"all": True, "valid": 100}, ("none", "guard", "keywords", "coin"), (0,)),
    "copyguard-ocr": Study(
        {"reading": "ocr", "vary": True, "pairs": 400, "valid": 20},
        ("none", "guard", "keywords", "coin", *_ABLATIONS),
        (0,),
    ),
    "copyguard-smollm2": Study(
        {"subject": "smollm2", "pairs": 60, "valid": 10}, ("none", "guard", "keywords", "coin"), (0,)
    ),
}


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


def noise(pool: Any, work: Path) -> dict[str, float]:
    """Return the mean share of letters that are read wrong, and quantiles; kept on disk."""
    file = work / "noise.json"
    if not file.exists():
        works = [250 * i // WORKS for i in range(WORKS)]
        jobs = [(number, notice) for number in works for notice in benchmark.NOTICES]
        found = sorted(pool.map(_read, jobs, chunksize=5))
        told = {"pages": len(found), "mean": sum(found) / len(found)}
        write_json(file, told | {f"{q}%": found[len(found) * q // 100] for q in (50, 90, 99)})
    return dict(read_json(file))


def _run(job: tuple[str, Mapping[str, Any], Sequence[str] | None, int]) -> str:
    folder, settings, arms, seed = job
    execute(Ask("copyguard", settings=settings, arms=arms, seed=seed), folder=Path(folder))
    return folder


def main() -> None:
    """Run, and publish below ``results/``; UPRIGHT_PUBLISH=0 stops before the last."""
    work, names = Path(sys.argv[1]), set(sys.argv[2:])
    publish = os.environ.get("UPRIGHT_PUBLISH", "1") == "1"
    work.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        read = noise(pool, work)
        print("noise", json.dumps(read), flush=True)
        for name, study in STUDIES.items():
            if names and name not in names:
                continue
            settings = {**study.settings, "noise": round(read["mean"], 4)}
            jobs = [(str(work / name / f"s{s}"), settings, study.arms, s) for s in study.seeds]
            runs = [Path(f) for f in pool.map(_run, jobs, chunksize=1)]
            comparison = compare_runs(runs, work / name / "comparison")
            about = {"reading": read, "command": f"python benchmarks/study_copyguard.py WORK_FOLDER {name}"}
            if publish:
                cells = ("rights", "task", "permitted", "notice")
                print(
                    "published", publish_runs(name, runs, comparison, Path("results"), about, cells=cells), flush=True
                )


if __name__ == "__main__":
    main()
