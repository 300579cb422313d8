"""A taught model for all files of tests: about 13 CPU-seconds where no cache holds it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def small_world():
    """Return the small world of seed 0, its model and its processor; no test changes the model."""
    pytest.importorskip("transformers")
    from upright.editing import flags

    world = flags.world(0, small=True)
    model, processor, _ = flags.teach(world)
    return world, model, processor
