"""Audit clips: true ones and ones in which bodies pass into each other, from mp4 files; gate on what is broken."""

import tempfile
from pathlib import Path

import upright
from upright.video.files import write_clip
from upright.video.render import film
from upright.video.scenes import simulate
from upright.video.violations import VIOLATIONS

scenes = simulate("collision", 8, 0, size=(128, 128), frames=24)  # of your own: any folder of clips
penetration = VIOLATIONS["penetration"]
broken, rows = penetration.make(scenes, penetration.bench, seed=0)
with tempfile.TemporaryDirectory() as home:
    for name, clips in (("true", film(scenes)), ("broken", broken)):
        (folder := Path(home) / name).mkdir()
        for number, clip in enumerate(clips):
            write_clip(folder / f"{number}.mp4", (255 * clip).round().byte().numpy())
    for name in ("true", "broken"):
        result = upright.audit("video", Path(home) / name, out=Path(home) / "audits")
        level = next(row for row in result.evidence["levels"] if row["statistic"] == "mean:newton")
        print(f"{name}: laws broken by {level['value']:.2f} tolerances on the average, {level['n_units']} clips")
        print(f"  {result.evidence['verdict']['lines']['clips']}")
