"""A method that says too little about itself.

Paper
-----
None.

Problem
-------
That of `upright_example`.

Algorithm
---------
That of `upright_example`.

Shapes
------

Deviations
----------
D1. Two sections are missing.
"""

from __future__ import annotations

from upright.contract import Config, Run, method
from upright_example import DECLARED, Line, LineConfig, TwoLines
from upright_example import run as honest


class BareConfig(Config):
    """`LineConfig` with one field that has no docstring."""

    strength: float = 4.0
    """Extra weight of a rare row."""
    weights: str = "group"


@method("upright_example_bare", **{**DECLARED, "config": BareConfig, "tiny": {}})
def run(task: TwoLines, config: BareConfig, run: Run) -> Line:
    """Fit the line."""
    return honest(task, LineConfig(strength=config.strength, weights=config.weights), run)
