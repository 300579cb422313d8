"""Measure what true clips show of each check of `upright.video.verifiers`, and print the tolerances that follow.

``python benchmarks/physics_floors.py [clips of each kind]``: 60 of each kind, seed 7301, at 32 px x 16 and 64 px x 24
frames, as drawn and after H.264 at crf 28 at 256 px, averaged to that size. The floor of a check is the 90th
percentile of its value over the clips for which it is decided, in units of its tolerance's scale, in the worst of the
four; the tolerance is three times that; found bodies have their own, from 40 collisions and 40 falls through H.264.
Those in the module are these, rounded up; permanence, whose floor is 0, has 0.05 things. About 150 CPU-s.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upright.video.files import read_clip, write_clip
from upright.video.render import film
from upright.video.scenes import KINDS, Scenes, join, simulate
from upright.video.tracks import Meta, find_objects, meta_of, track_colours
from upright.video.verifiers import FOUND, TOLERANCES, verify

SEED = 7301


def enlarged(scenes: Scenes, times: int) -> Scenes:
    """Return the same scenes on a picture whose pixels are so many times smaller."""
    ground = scenes.ground.copy()
    half = ground[:, :2].sum(1) / 2  # pixel centres lie half a pixel from the corner of the picture
    ground[:, 2] = (ground[:, 2] + half) * times - half
    size = (scenes.size[0] * times, scenes.size[1] * times)
    place = (scenes.position + 0.5) * times - 0.5
    return replace(scenes, size=size, position=place, radius=scenes.radius * times, ground=ground)


def through_codec(scenes: Scenes, *, side: int = 256, crf: int = 28) -> Tensor:
    """Film scenes at a larger size, write and read them as H.264, averaged to their own size."""
    large, clips = enlarged(scenes, side // min(scenes.size)), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for i in range(len(scenes)):
            write_clip(path, (film(large, [i])[0] * 255).round().to(torch.uint8).numpy(), scenes.fps, crf=crf)
            clips.append(read_clip(path, size=scenes.size).frames)
    return torch.as_tensor(np.stack(clips))


def floors(n: int) -> dict[str, list[float]]:
    """Return the floor of each check in each of the four conditions."""
    out: dict[str, list[float]] = {name: [] for name in TOLERANCES}
    for side, frames in ((32, 16), (64, 24)):
        scenes = join([simulate(kind, n, SEED, size=(side, side), frames=frames) for kind in KINDS])
        meta = meta_of(scenes)
        for clips in (film(scenes), through_codec(scenes)):
            for name, check in verify(track_colours(clips, meta), meta).items():
                value = check.value / check.tolerance * TOLERANCES[name]
                worst = [value[i * n : (i + 1) * n] for i in range(len(KINDS))]
                levels = [float(one[~one.isnan()].quantile(0.9)) for one in worst if not one.isnan().all()]
                out[name].append(max(levels, default=0.0))
    return out


def found_floors(n: int) -> dict[str, float]:
    """Return the floor of each check where bodies are found, in tolerances of known ones: the worse of two kinds."""
    out: dict[str, float] = {}
    for kind in ("collision", "fall"):
        each: dict[str, list[float]] = {}
        for clip in through_codec(simulate(kind, n, SEED, size=(64, 64), frames=24)):
            for name, check in verify(find_objects(clip), Meta()).items():
                if bool(check.decided[0]):
                    known = float(check.tolerance[0]) / FOUND.get(name, 1.0)
                    each.setdefault(name, []).append(float(check.value[0]) / known)
        for name, values in each.items():
            out[name] = max(out.get(name, 0.0), float(np.quantile(values, 0.9)))
    return out


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'check':14}{'32 px':>9}{'H.264':>9}{'64 px':>9}{'H.264':>9}{'3 x floor':>11}{'tolerance':>11}")
    for name, levels in floors(int(sys.argv[1]) if len(sys.argv) > 1 else 60).items():
        row = "".join(f"{level:9.4f}" for level in levels)
        print(f"{name:14}{row}{3 * max(levels):11.4f}{TOLERANCES[name]:11.4f}")
    print(f"\n{'found bodies':14}{'3 x floor':>11}{'times':>11}")
    for name, level in found_floors(40).items():
        print(f"{name:14}{3 * level:11.2f}{FOUND.get(name, 1.0):11.2f}")


if __name__ == "__main__":
    main()
