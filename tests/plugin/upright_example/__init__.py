"""Group-weighted line: a regression line whose smaller group counts more.

Paper
-----
None: the smallest complete plugin, made for tests.

Problem
-------
    min_(a, b)  sum_i w_i (y_i - a x_i - b)^2 / sum_i w_i,    w_i = 1 + strength * [row i is rare]

Algorithm
---------
1. weights of the rows from their groups
2. gradient steps on shuffled batches

Shapes
------
N rows, B rows a batch.

Deviations
----------
D1. No paper, so none.

Cost
----
One pass over N rows an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import (
    Arm,
    Config,
    InputError,
    Metric,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Run,
    UnitScores,
    method,
)

__all__ = ["ARMS", "DECLARED", "Line", "LineConfig", "LinesConfig", "TwoLines", "run"]

Array = NDArray[np.float64]


class LinesConfig(Config):
    """Data of `TwoLines`."""

    data: Literal["planted"] = "planted"
    """The only world there is: two groups on two lines."""
    rows: PositiveInt = 60
    """Rows in each split."""
    same: bool = False
    """Put both groups on one line, in one group."""


@dataclass(frozen=True)
class Part:
    """One split, arrays of shape (N,)."""

    x: Array
    y: Array
    rare: NDArray[np.bool_]


class TwoLines:
    """Rows on two lines; a quarter of them, the rare ones, on a steeper one."""

    unit_kind = "row"
    Config = LinesConfig

    def __init__(self, config: LinesConfig, seed: int) -> None:
        self.config = config
        self.metrics = self.metrics_of({})
        rng = np.random.default_rng(seed)
        self.train, self.valid, self._test = (self._draw(rng) for _ in range(3))
        self._open = False
        self.facts = {"name": "planted lines", "rows": config.rows}

    def _draw(self, rng: np.random.Generator) -> Part:
        x, noise = rng.normal(size=(2, self.config.rows))
        rare = (np.arange(self.config.rows) % 4 == 0) & (not self.config.same)
        return Part(x, np.where(rare, 3.0, 1.0) * x + 0.1 * noise, rare)

    @staticmethod
    def metrics_of(settings: Any) -> dict[str, Metric]:
        """Return what values mean: an absolute error has no upper bound."""
        return {"error": Metric("error", "lower", 0.0, float("inf"), 0.05, "absolute error")}

    @classmethod
    def load(cls, config: LinesConfig, data_dir: str | None = None) -> TwoLines:
        """Make the world; there are no files."""
        return cls(config, 0)

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> TwoLines:
        """Return a small world."""
        return cls(LinesConfig(**{"rows": 40, **changes}), seed)

    def open_test(self) -> None:
        """Let `score` see the test split."""
        self._open = True

    def score(self, result: Line, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Return one absolute error a row."""
        if split == "test" and not self._open:
            raise InputError("the test split inside a method", "split='valid'", "select on validation")
        part = self._test if split == "test" else self.valid
        error = np.abs(part.y - result.slope * part.x - result.offset)
        group = np.where(part.rare, "rare", "common").tolist()
        return UnitScores("row", range(len(error)), {"error": error}, {"group": group}, {"largest": float(error.max())})


@dataclass(frozen=True)
class Line:
    """The result: y = slope x + offset."""

    slope: float
    offset: float


class LineConfig(Config):
    """Settings of the group-weighted line."""

    strength: NonNegativeFloat = 4.0
    """Extra weight of a rare row. 0 is least squares."""
    weights: Literal["group", "all", "random"] = "group"
    """Whose weight grows: the rare rows', everybody's, or that of random rows."""
    steps: tuple[float, ...] = (0.1, 0.05, 0.02)
    """Step size of each epoch."""
    batch_size: PositiveInt = 10
    """Rows a step."""
    shrink: PositiveFloat = 1.0
    """Factor of the first step; 1 changes nothing."""


ARMS = (
    Arm("none", "baseline", {"strength": 0.0}),
    Arm("weighted", "remedy"),
    Arm("all", "trivial", {"weights": "all"}),
    Arm("random", "placebo", {"weights": "random"}),
)
DECLARED: dict[str, Any] = {
    "task": "upright_example:TwoLines", "config": LineConfig, "title": "Group-weighted line",
    "mends": "larger errors in a small group", "neutral": [{"strength": 0.0}, {"weights": "group", "task.same": True}],
    "arms": ARMS, "statistics": ["mean:error", "mean:error:group", "gap:error:group", "abs_gap:error:group"],
    "primary": "abs_gap:error:group", "cost": "mean:error", "presets": {"full": {}, "quick": {}},
    "tiny": {"steps": (0.1, 0.05)},
}  # fmt: skip


@method("upright_example", **DECLARED)
def run(task: TwoLines, config: LineConfig, run: Run) -> Line:
    """Fit the line."""
    part = task.train
    chosen = {"group": part.rare, "all": np.ones_like(part.rare)}.get(config.weights)
    if chosen is None:
        chosen = run.rng("placebo").permutation(part.rare)
    weight = 1.0 + config.strength * chosen  # step 1
    state = run.restore() or {"epoch": 0, "line": run.rng("init").normal(size=2).tolist()}
    line = np.array(state["line"])
    for epoch in range(state["epoch"], len(config.steps)):  # step 2
        order = run.rng("order", epoch).permutation(len(part.x))
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            x, w = np.stack([part.x[rows], np.ones(len(rows))], 1), weight[rows] / weight[rows].sum()
            line = line - config.steps[epoch] * config.shrink * 2.0 * x.T @ (w * (x @ line - part.y[rows]))
        fitted = Line(float(line[0]), float(line[1]))
        run.log(epoch + 1, **{"valid/error": float(np.mean(task.score(fitted, "valid", run).values["error"]))})
        run.save(epoch + 1, {"epoch": epoch + 1, "line": line.tolist()})
    run.note("slope", line[0])
    return Line(float(line[0]), float(line[1]))
