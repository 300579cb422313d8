"""Methods with one planted defect each; the check that is named for it must fail, and no other.

Paper
-----
None.

Problem
-------
That of `upright_example`.

Algorithm
---------
That of `upright_example`, with one defect.

Shapes
------
Those of `upright_example`.

Deviations
----------
D1. Each has a defect on purpose.

Cost
----
That of `upright_example`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from upright.contract import Run, method
from upright_example import DECLARED, Line, LineConfig, TwoLines
from upright_example import run as honest


class _Fixed:
    """A run whose streams are replaced; everything else is the real one's."""

    def __init__(self, run: Run, rng: Any) -> None:
        self._run, self.rng = run, rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


@method("upright_example_shifted", **DECLARED)
def shifted(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Is a little stronger than it was told, so that strength 0 is not least squares."""
    return honest(task, config if run.arm == "none" else config.replace(strength=config.strength + 1e-4), run)


@method("upright_example_mutating", **DECLARED)
def mutating(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Leaves the last training row changed."""
    line = honest(task, config, run)
    task.train.y[-1] += 1e-12
    return line


@method("upright_example_seedless", **DECLARED)
def seedless(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Draws from a seed of its own."""
    return honest(task, config, _Fixed(run, lambda *name: np.random.default_rng(len(name))))


@method("upright_example_random", **DECLARED)
def random(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Adds noise that nobody can repeat, too small for any tolerance but an exact one."""
    line = honest(task, config, run)
    return dataclasses.replace(line, slope=line.slope + 1e-11 * float(np.random.default_rng().normal()))


@method("upright_example_idle", **DECLARED)
def idle(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Ignores its strength."""
    return honest(task, config.replace(strength=0.0), run)


@method("upright_example_leaking", **DECLARED)
def leaking(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Looks at the test split."""
    line = honest(task, config, run)
    task.open_test()
    task.score(line, "test", run)
    return line


@method("upright_example_forgetful", **DECLARED)
def forgetful(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Starts with fresh streams after a resume, as code does that seeds once and draws in order."""
    rng = np.random.default_rng(run.seed)
    return honest(task, config, _Fixed(run, lambda *name: rng))


@method("upright_example_undefined", **DECLARED)
def undefined(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Diverges in its placebo."""
    line = honest(task, config, run)
    return dataclasses.replace(line, offset=float("nan")) if run.arm == "random" else line
