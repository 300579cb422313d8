"""What scenes, tracks, verifiers, rollouts, iterations and the audit of files cost.

    python benchmarks/physrvg.py [--rounds N] [--clips N]

==============  =======================================================================================  ============
name            what                                                                                     bar
==============  =======================================================================================  ============
``scenes 32``   clips of 32 px and 16 frames, simulated and drawn, a CPU second                          at least 300
``scenes 64``   the same of 64 px and 24 frames                                                          at least 100
``tracking``    CPU time to track these clips over that of the released reward's loop over ready masks   at most 1.5
``verifiers``   CPU time of all verifiers over that of tracking                                          at most 0.2
``batch``       CPU time to track 64 clips at once over one by one                                       at most 1
``audit``       CPU time to read, track and verify clips of 256 px at 64 px over that of decoding alone  at most 2.5
``memory``      resident memory after all clips of the audit over that after a fifth of them             at most 1.05
``cycle``       CPU time of an iteration with an open gate over one of discovery alone                   at most 1.5
``step``        CPU time of a stochastic step over that of an ODE step                                   at most 1.1
``iteration``   CPU seconds of an iteration of 4 x 12 rollouts                                           none
==============  =======================================================================================  ============

Kinds are interleaved and medians compared. Exit status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from u2a import timed
from upright.experiment.folders import ArmRun
from upright.methods.physrvg import PhysRVGConfig, _Cycle
from upright.tasks.clips import Clips, ClipsConfig
from upright.tasks.motion import MotionConfig, _measure
from upright.video.files import read_clip, write_clip
from upright.video.model import Trajectory, rollout
from upright.video.render import film, masks
from upright.video.scenes import simulate
from upright.video.tracks import meta_of, track_colours
from upright.video.verifiers import verify

AT_LEAST = {"scenes 32": 300.0, "scenes 64": 100.0}
AT_MOST = {
    "tracking": 1.5, "verifiers": 0.2, "batch": 1.0, "audit": 2.5, "memory": 1.05, "cycle": 1.5, "step": 1.1,
}  # fmt: skip
PRINTED = ("iteration",)
Ways = dict[str, Callable[[], Any]]


def measure_scenes(rounds: int) -> dict[str, float]:
    """Return clips a CPU second."""
    ways: Ways = {
        "scenes 32": lambda: film(simulate("collision", 128, 0)),
        "scenes 64": lambda: film(simulate("collision", 128, 0, size=(64, 64), frames=24)),
    }
    return {name: 128 / spent for name, spent in timed(ways, rounds, time.process_time).items()}


def released_loop(ready: Any) -> list[Any]:
    """Find the truncated mean of the pixels of each ready mask, frame by frame, as the released reward does."""
    found = []
    for clip in ready:
        for thing in clip:
            for mask in thing:
                rows, columns = np.where(mask > 127)
                found.append((int(columns.mean()), int(rows.mean())) if len(rows) >= 10 else (-1, -1))
    return found


def measure_tracks(rounds: int) -> dict[str, float]:
    """Return what tracking, verifying and batches cost, as ratios."""
    scenes = simulate("collision", 64, 1)
    clips, meta = film(scenes), meta_of(scenes)
    position, radius = torch.from_numpy(scenes.position).float(), torch.from_numpy(scenes.radius).float()
    ready = (255 * masks(position, radius, scenes.size)).byte().movedim(2, 1).numpy()  # (B, K, T, H, W)
    tracks = track_colours(clips, meta)
    ways: Ways = {
        "tracking": lambda: track_colours(clips, meta),
        "released": lambda: released_loop(ready),
        "verifiers": lambda: verify(tracks, meta),
        "one by one": lambda: [track_colours(clips[[i]], meta[[i]]) for i in range(len(clips))],
    }
    spent = timed(ways, 3 * rounds, time.process_time)
    return {
        "tracking": spent["tracking"] / spent["released"],
        "verifiers": spent["verifiers"] / spent["tracking"],
        "batch": spent["tracking"] / spent["one by one"],
    }


def resident() -> float:
    """Return resident memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_files(clips: int) -> dict[str, float]:
    """Return what the audit of files costs beside decoding, and whether memory stays as it is."""
    made = film(simulate("collision", 20, 2, size=(256, 256)))
    spent, held = {"decode": 0.0, "audit": 0.0}, list[float]()
    with tempfile.TemporaryDirectory() as folder:
        for i, clip in enumerate(made):
            write_clip(Path(folder) / f"{i}.mp4", (255 * clip).byte().numpy())
        for _ in range(max(2, clips // len(made))):
            start = time.process_time()
            for path in Path(folder).iterdir():
                read_clip(path)
            middle = time.process_time()
            _measure(Path(folder), MotionConfig(folder=folder))
            spent["decode"] += middle - start
            spent["audit"] += time.process_time() - middle
            held.append(resident())
    return {"audit": spent["audit"] / spent["decode"], "memory": held[-1] / held[len(held) // 5]}


def measure_iterations(rounds: int) -> dict[str, float]:
    """Return what an open gate and a stochastic step cost."""
    task, run = (
        Clips(ClipsConfig(model="small", pretrain=64, updates=2, post=64, valid=8, test=8)),
        ArmRun(None, 0, "x"),
    )
    cycles = {
        "discovery": _Cycle(task, PhysRVGConfig(mimicry=0.0), run, task.policy(run)),
        "cycle": _Cycle(task, PhysRVGConfig(gate=False), run, task.policy(run)),
    }
    turn = iter(range(10_000))
    ways: Ways = {name: lambda one=one: one.iteration(next(turn), 0.0) for name, one in cycles.items()}  # type: ignore[misc]
    spent = timed(ways, 3 * rounds, time.process_time)
    policy, noise = Trajectory("small"), torch.randn(48, 16, 4)
    radius, generator = torch.full((48, 2), 3.0), torch.Generator().manual_seed(0)
    common: dict[str, Any] = {"steps": 8, "eta": 0.7, "generator": generator}
    steps: Ways = {
        "ode": lambda: [rollout(policy, noise, radius, noise, window=(), **common) for _ in range(4)],
        "sde": lambda: [rollout(policy, noise, radius, noise, window=tuple(range(7)), **common) for _ in range(4)],
    }
    walked = timed(steps, 5 * rounds, time.process_time)
    per_step = 1.0 + (walked["sde"] / walked["ode"] - 1.0) * 8 / 7  # seven of eight are stochastic
    return {"cycle": spent["cycle"] / spent["discovery"], "iteration": spent["cycle"], "step": per_step}


def main() -> int:
    """Measure, print, and say whether a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=500, help="files of the audit")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure_scenes(given.rounds) | measure_tracks(given.rounds) | measure_iterations(given.rounds)
    found |= measure_files(given.clips)
    for name in (*AT_LEAST, *AT_MOST, *PRINTED):
        bar = f"  (at least {AT_LEAST[name]:g})" if name in AT_LEAST else ""
        bar = f"  (at most {AT_MOST[name]:g})" if name in AT_MOST else bar
        print(f"{name:12} {found[name]:9.3g}{bar}")
    missed = [n for n, bar in AT_LEAST.items() if found[n] < bar] + [n for n, bar in AT_MOST.items() if found[n] > bar]
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
