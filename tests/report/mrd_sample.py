"""Folders of MRD with made-up values of records and the shell's own evidence, and how tests read and edit them.

No model was trained for these numbers: they test pages, not a method. Harder records have larger gaps, and the seeds
draw records of different difficulty.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np

from upright.contract import UnitScores
from upright.report import build_report
from upright.shell.evidence import evidence
from upright.shell.registry import load_method
from upright.shell.runner import compare_runs
from upright.shell.statistics import computable
from upright.shell.units import Block, Units, write_units
from upright.tasks.forget import Forget

ARMS = ("uniform", "mrd", "length", "hard_first", "original", "retrain")
FORGET, OTHERS = 24, 10
SHIFT = {"uniform": 0.10, "mrd": 0.07, "length": 0.09, "hard_first": 0.12, "original": 0.60, "retrain": 0.0}
DATA = {
    "name": "TOFU, bundled part", "licence": "MIT", "records": {"forget": 32, "retain": 128, "holdout": 200},
    "model": "tiny", "reference": "taught the kept records alone", "fingerprint": "c0ffee" * 10,
}  # fmt: skip
TASK = {"data": "tofu", "model": "tiny", "authors": 8, "forget_authors": 2}


def records(seed: int, *, effort: bool = True) -> dict[str, np.ndarray]:
    """Return what is known of the forgotten records of a seed before any arm trains."""
    rng = np.random.default_rng(100 + seed)
    tokens = rng.integers(5, 40, FORGET).astype(np.float64)
    mrd = np.exp(rng.normal(0.4 * seed, 0.8, FORGET)) * tokens / 20
    found = {"mrd": mrd, "mrd_per_token": mrd / tokens, "answer_tokens": tokens,
             "nll_before": rng.uniform(0.05, 0.6, FORGET)}  # fmt: skip
    if effort:
        found["effort"] = 12.0 / mrd**0.5 + rng.uniform(0, 2, FORGET)
        found["effort"][np.argsort(mrd)[:3]] = np.nan  # the hardest are not reached
        found["effort_sum"] = 3.0 * mrd**0.3 + rng.uniform(0, 2, FORGET)
    return found


def thirds(mrd: np.ndarray) -> list[str]:
    place = np.argsort(np.argsort(mrd, kind="stable"), kind="stable")
    return [("hard", "middle", "easy")[3 * p // len(mrd)] for p in place]


def scores(arm: str, seed: int, *, effort: bool = True) -> UnitScores:
    """Return the unit table of one arm: forgotten, retained and held-out records."""
    own = records(seed, effort=effort)
    rng = np.random.default_rng(7 * seed + ARMS.index(arm))
    n, lost = FORGET + 2 * OTHERS, np.full(2 * OTHERS, np.nan)
    gap = SHIFT[arm] * (0.5 + 1.0 / (1.0 + own["mrd"])) * rng.uniform(0.9, 1.1, FORGET)
    level = np.random.default_rng(50 + seed).uniform(0.1, 0.3, FORGET)  # of the reference
    values = {name: np.concatenate([v, lost]) for name, v in own.items()}
    truth = np.clip(level + gap + rng.normal(0, 0.02, FORGET), 0, 1) if arm != "retrain" else level
    values |= {
        "forget_gap": np.concatenate([gap, lost]),
        "forget_probability": np.concatenate([level + gap, lost]),
        "forget_truth_probability": np.concatenate([truth, lost]),
        "extraction_strength": np.concatenate([np.clip(gap, 0, 1), lost]),
    }
    for part in ("probability", "rouge_l", "truth_ratio"):
        kept = 0.8 - SHIFT[arm] / 4 + rng.uniform(-0.1, 0.1, OTHERS)
        values[f"retain_{part}"] = np.concatenate([np.full(FORGET, np.nan), kept, np.full(OTHERS, np.nan)])
    attack = np.concatenate([-1.0 + 2 * gap, np.full(OTHERS, np.nan), rng.normal(-1.0, 0.1, OTHERS)])
    values["mia_loss"] = attack
    by = {"set": ["forget"] * FORGET + ["retain"] * OTHERS + ["holdout"] * OTHERS,
          "difficulty": [*thirds(own["mrd"]), *[""] * (2 * OTHERS)]}  # fmt: skip
    return UnitScores("record", [f"{s}/{seed}-{i}" for i, s in enumerate(by["set"][:n])], values, by)


def notes(arm: str, seed: int) -> dict:
    found: dict = {
        "scores": {"estimator": "antithetic", "noise": "gaussian", "sigma": "rel:1e-2", "probes": 8 + 2 * seed,
                   "passes": 37 + 8 * seed, "reliability": 0.93 + 0.01 * seed, "scaling": 3.96, "clamped": 0.002,
                   "samples": 32, "warnings": []},
        "valid": {"forget_gap": 0.1, "retain_probability": 0.8},
    }  # fmt: skip
    if arm in ("original", "retrain"):
        return found
    ends = 0.25 + SHIFT[arm]
    found["path"] = [{"epoch": e, "updates": 4 * e, "forget": 0.8 + (ends - 0.8) * e / 4 + 0.01 * seed,
                      "retain": 0.85 - 0.02 * e} for e in range(1, 5)]  # fmt: skip
    epochs = (0, 2) if arm in ("mrd", "hard_first") else (0,)
    found["weights"] = [{"epoch": e, "effective_sample_size": 16.0 - 2 * e + seed, "records": 32,
                         "rank_correlation": 1.0 if e == 0 else 0.7 + 0.05 * seed} for e in epochs]  # fmt: skip
    return found


def write(path: Path, name: str, value) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(value), encoding="utf-8")


def run_folder(folder: Path, seed: int, *, arms: tuple[str, ...] = ARMS, effort: bool = True) -> Path:
    """Write one run with its table and the evidence of the shell."""
    spec = load_method("mrd")
    blocks = [Block("r", arm, seed, scores(arm, seed, effort=effort)) for arm in arms]
    facts = [{"name": a.name, "role": a.role, "title": a.title, "settings": dict(a.settings),
              "notes": notes(a.name, seed), "totals": {}} for a in spec.arms if a.name in arms]  # fmt: skip
    units = Units(blocks)
    metrics = Forget.metrics_of({})
    have = [s for s in spec.statistics if computable(s, units)]
    found = evidence(units, arms=spec.arms, statistics=have, metrics=metrics, primary=spec.primary, cost=spec.cost,
                     title=spec.title, draws=200)  # fmt: skip
    write(folder, "summary.json", json.loads(json.dumps({
        "schema": 1, "method": "mrd", "title": spec.title, "mends": spec.mends, "seed": seed, "data": DATA,
        "arms": facts, "warnings": [], "deviations": ["D1."], "evidence": found,
    }, default=float).replace("NaN", "null")))  # fmt: skip
    settings = spec.config(learning_rate=1e-3, epochs=4).as_dict()
    write(folder, "config.json", {"resolved": {"method": settings, "task": TASK}, "arm_settings": {},
                                  "preset": "full"})  # fmt: skip
    write(folder, "run.json", {"status": "done", "seed": seed, "method": "mrd", "command": "upright run mrd",
                               "cpu_s": 1.0, "wall_s": 1.0, "environment": {}})  # fmt: skip
    write_units(folder / "units.parquet", blocks, "test")
    return folder


def make(root: Path, seeds: int = 3) -> Path:
    """Write runs s0, s1 ... and their comparison x."""
    runs = [run_folder(root / f"s{seed}", seed) for seed in range(seeds)]
    compare_runs(runs, root / "x")
    return root


# -- reading and editing -----------------------------------------------------------------------------------------------


def page(folder: Path) -> str:
    return re.sub(r"\s+", " ", html.unescape(build_report(folder).read_text(encoding="utf-8")))


def section(folder: Path) -> str:
    source = page(folder)
    return source[source.index('id="panel"') : source.index('id="units"')]


def titles(source: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", source)


def table(source: str, label: str) -> dict[str, list[str]]:
    """Return the body of a table by its first column; a cell is its first line."""
    start = source.index(f'<table aria-label="{label}"')
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", source[start : source.index("</table>", start)])[1:]:
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)
        found[_text(cells[0])] = [_text(c) for c in cells[1:]]
    return found


def _text(cell: str) -> str:
    found = re.search(r'<span class="v">(.*?)</span>', cell)
    return found[1] if found else ""


def change(folder: Path, edit, name: str = "summary.json") -> None:
    path = folder / name
    summary = json.loads(path.read_text(encoding="utf-8"))
    edit(summary)
    path.write_text(json.dumps(summary), encoding="utf-8")
