"""A taught model for all files of tests, about 13 CPU-seconds where no cache holds it, and packages of strangers."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(scope="session")
def small_world():
    """Return the small world of seed 0, its model and its processor; no test changes the model."""
    pytest.importorskip("transformers")
    from upright.editing import flags

    world = flags.world(0, small=True)
    model, processor, _ = flags.teach(world)
    return world, model, processor


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package for a test: its entry points of one group, and modules by name."""
    modules = {}

    def installed(name, group, points, **files):
        modules.update(files)
        for module, text in files.items():
            (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join([f"[upright.{group}]", *points]))
        monkeypatch.syspath_prepend(str(tmp_path))

    yield installed
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def bright(install):
    """A package with a reward of ten lines that likes light clips, one that is not there, and one that is none."""
    text = """
from upright.video.rewards import Scores

class Bright:
    name, needs_truth, lower_is_better = "bright", False, False

    def score(self, clips, truth=None, meta=None):
        each = clips.mean((2, 3, 4))
        return Scores(each.mean(1), each, {}, each[..., None] < 0)
"""
    points = ["bright = bright_things:Bright", "gone = no_such_module:Reward", "empty = builtins:dict"]
    install("bright-things", "rewards", points, bright_things=text)
