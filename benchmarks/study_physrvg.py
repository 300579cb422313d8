"""The published studies of PhysRVG: collisions with known and with withheld futures, and a bench of rewards.

    python benchmarks/study_physrvg.py WORK_FOLDER [NAME ...]

====================  ==============================================================================================
physrvg-collision     six starts, half of whose clips were wrong; 256 right collisions, all nine arms; pendulums and
                      falls that post-training did not see
physrvg-withheld      the same starts and contexts, no future: discovery by mechanics alone
physrvg-rewards       five rewards on violations, harmless edits and cheats
physrvg-pixels        a pixel model on four clips: that it learns, and no more
====================  ==============================================================================================

1. *choose*, on seeds 100 and 101 and validation: the learning rate of every arm that trains, of one grid, by what it
   is rewarded for, the offset or clips that penetrate; the smaller one of equals. A placebo takes that of its remedy.
2. *run*: six seeds, every arm scored once on 256 test scenes of two futures; one comparison

Two processes with one thread each, about an hour of CPU time; it goes on where it was interrupted.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from studies import publish_runs
from upright.experiment.config import resolve
from upright.experiment.folders import ArmRun, environment, read_json, write_json
from upright.experiment.registry import load_method, load_object
from upright.experiment.runner import Ask, compare_runs, execute
from upright.video.model import PixelDiT, flow_matching_loss, rollout
from upright.video.rewards import load_reward
from upright.video.scenes import simulate
from upright.video.tracks import meta_of, track_colours
from upright.video.violations import bench_rewards

SEEDS, CHOICE_SEEDS, RATES = range(6), (100, 101), (2e-5, 5e-5, 2e-4)
STUDIES: dict[str, dict[str, Any]] = {
    "physrvg-collision": {"unseen": 64},
    "physrvg-withheld": {"future": "withheld", "unseen": 64},
}
SAME = {"shuffled": {"known": "cycle", "withheld": "verifiers"}}  # a placebo and whose rate it takes
PIXEL_UPDATES = 1500


def _try(job: tuple[str, Mapping[str, Any], str, float, int]) -> dict[str, float]:
    """Train an arm on a seed and score it on validation; kept on disk."""
    folder, settings, name, rate, seed = job
    file = Path(folder) / f"{name}-{rate:g}-s{seed}.json"
    if file.exists():
        return dict(read_json(file))
    spec = load_method("physrvg")
    own, task_config = resolve(spec, {**settings, "learning_rate": rate})
    spec = spec.under(task_config.as_dict())
    task, run = load_object(spec.task).load(task_config), ArmRun(None, seed, name)
    arm = next(a for a in spec.arms if a.name == name)
    values = task.score(spec.run(task, own.replace(**arm.settings), run), "valid", run).values
    found = {m: float(np.nanmean(values[m])) for m in ("offset", "penetrates", "newton", "spread")}
    write_json(file, found)
    return found


def choose(pool: Any, settings: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Return the learning rate of each arm that trains, and all that was tried."""
    (folder := work / "choice").mkdir(parents=True, exist_ok=True)
    future = settings.get("future", "known")
    every = load_method("physrvg").under({"future": future}).arms
    arms = [a for a in every if a.settings.get("train", "cycle") in ("cycle", "mimicry") and a.name not in SAME]
    jobs = [(str(folder), settings, a.name, rate, seed) for a in arms for rate in RATES for seed in CHOICE_SEEDS]
    done = dict(zip([job[2:] for job in jobs], pool.map(_try, jobs, chunksize=1), strict=True))
    chosen, rows = dict[str, float](), []
    for arm in arms:
        decides = "penetrates" if arm.settings.get("reward") == "newton" else "offset"
        own = []
        for rate in RATES:
            same = [done[arm.name, rate, seed] for seed in CHOICE_SEEDS]
            means = {m: float(np.mean([one[m] for one in same])) for m in same[0]}
            own.append({"arm": arm.name, "learning_rate": rate, **means})
        chosen[arm.name] = min(own, key=lambda row: row[decides])["learning_rate"]
        rows += own
    chosen |= {name: chosen[like[future]] for name, like in SAME.items()}
    rule = "the best validation value of what an arm is rewarded for, the smaller rate of equals"
    return {"learning_rate": chosen, "rule": rule, "seeds": list(CHOICE_SEEDS), "tried": rows}


def _run(job: tuple[str, Mapping[str, Any], dict[str, Any], int]) -> str:
    folder, settings, own, seed = job
    execute(Ask("physrvg", settings=settings, arm_settings=own, seed=seed), folder=Path(folder))
    return folder


def bench(target: Path, command: str) -> None:
    """Publish what five rewards make of violations, harmless edits and cheats."""
    names = ["fixed", "newton", "paper", "official", "pixel_l1"]
    rows = bench_rewards([load_reward(name) for name in names], clips=300, seed=7).rows
    said, sees = [], []
    for name in names:
        own = [row for row in rows if row["reward"] == name]
        least = min((row for row in own if row.get("bench")), key=lambda row: row["auc"])
        paid = ", ".join(row["name"] for row in own if row["what"] == "cheat" and row["earns"] >= -1.0)
        sees += [name] * (least["auc"] >= 0.95)
        said += [f"{name} sees {least['name']} least (AUC {least['auc']:.2f})"] * (least["auc"] < 0.95)
        said += [f"{name} pays {paid}"] * bool(paid)
    said.insert(0, f"{' and '.join(sees) or 'no reward'} tell every violation from the truth (AUC of 0.95 and more)")
    _publish(target, {"sentence": "; ".join(said) + ".", "command": command, "clips": 300, "rows": rows})


def over_fit(target: Path, command: str) -> None:
    """Publish that a pixel model learns four clips, and that four clips teach it no other."""
    clips, others = simulate("collision", 4, 1), simulate("collision", 32, 2)
    known, new = (load_object("upright.video.render:film")(one) for one in (clips, others))
    policy, generator = PixelDiT(seed=0), torch.Generator().manual_seed(0)
    optimiser, latents = torch.optim.AdamW(policy.parameters(), 1e-3), policy.encode(known)
    for _ in range(PIXEL_UPDATES):
        loss = flow_matching_loss(policy, latents, None, generator).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
    values = {}
    for name, film, scenes in (("four_clips", known, clips), ("others", new, others)):
        meta, x0 = meta_of(scenes), policy.encode(film)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        made = policy.decode(rollout(policy, x0, None, noise, steps=16)[0], None)
        truth = track_colours(film, meta)
        values[name] = {
            "offset": float(load_reward("fixed").score(made, truth, meta).value.mean()),
            "pixel_l1": float((made - film)[:, scenes.context :].abs().mean()),
        }
    few, rest = values["four_clips"], values["others"]
    sentence = (
        f"A pixel model that saw four clips {PIXEL_UPDATES:,} times repeats them to {few['offset']:.2f} px and misses "
        f"others by {rest['offset']:.2f}, of 32: a check of the mechanics, no result on video models."
    )
    _publish(target, {"sentence": sentence, "command": command, "updates": PIXEL_UPDATES, "values": values})


def _publish(target: Path, finding: dict[str, Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "finding.json", finding, compact=True)
    write_json(target / "environment.json", {**environment(), "threads": int(os.environ["OMP_NUM_THREADS"])})
    print("published", target, flush=True)


def run_study(pool: Any, name: str, settings: Mapping[str, Any], work: Path, command: str) -> None:
    """Choose, run and publish one of the studies with arms."""
    chosen = choose(pool, settings, work)
    print(name, json.dumps(chosen["learning_rate"]), flush=True)
    rates = {arm: {"learning_rate": rate} for arm, rate in chosen["learning_rate"].items()}
    jobs = [(str(work / f"s{seed}"), settings, rates, seed) for seed in SEEDS]
    runs = [Path(f) for f in pool.map(_run, jobs, chunksize=1)]
    comparison = compare_runs(runs, work / "comparison")
    if os.environ.get("UPRIGHT_PUBLISH", "1") == "1":
        about = {"choice": chosen, "command": command}
        print("published", publish_runs(name, runs, comparison, Path("results"), about, cells=("motion",)), flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run the studies that are named, or all; UPRIGHT_PUBLISH=0 writes findings below the work folder."""
    work, names = Path(arguments[0]), set(arguments[1:])
    results = Path("results") if os.environ.get("UPRIGHT_PUBLISH", "1") == "1" else work / "published"
    command = "python benchmarks/study_physrvg.py WORK_FOLDER"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, settings in STUDIES.items():
            if not names or name in names:
                run_study(pool, name, settings, work / name, f"{command} {name}")
    for name, make in (("physrvg-rewards", bench), ("physrvg-pixels", over_fit)):
        if not names or name in names:
            make(results / name, f"{command} {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
