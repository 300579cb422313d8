"""Make the start that `upright demo` trains on: the small model of the quick preset at seed 0, in 16 bits.

    python benchmarks/make_video_start.py

It takes 25 CPU-seconds and writes ``src/upright/video/start.safetensors``, 260 kB.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from upright.experiment.folders import ArmRun
from upright.experiment.registry import load_method
from upright.experiment.runner import resolve
from upright.tasks.clips import Clips

TARGET = Path(__file__).parents[1] / "src" / "upright" / "video" / "start.safetensors"


def main() -> None:
    """Teach and write."""
    torch.set_num_threads(1)
    _, config = resolve(load_method("physrvg"), {}, "quick")
    policy = Clips(config).policy(ArmRun(None, 0, "start"))  # type: ignore[arg-type]
    save_file({name: x.half().contiguous() for name, x in policy.state_dict().items()}, TARGET)
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
