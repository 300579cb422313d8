"""An audit of one column of numbers, as a package of its own would add it."""

from __future__ import annotations

from collections.abc import Mapping

from upright.contract import Config, File, Metric, UnitScores, audit
from upright.data.columns import Column, read_columns
from upright.tasks.answers import Answer


class WaitingConfig(Config):
    """A table of calls."""

    calls: File
    """A row a call: group and minutes."""
    longest: float = 60.0
    """Minutes that nobody waits."""


@audit("waiting", config=WaitingConfig, limits=["Calls that were given up are not in the table."])
def read_waiting(config: WaitingConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit how long groups wait."""
    table = read_columns(config.calls, {"group": Column("text"), "minutes": Column("number")})
    metric = Metric("minutes", "lower", 0.0, config.longest, 1.0, "Minutes of waiting")
    scores = UnitScores(
        "call", range(len(table)), {"minutes": table.array("minutes")}, {"group": table["group"].to_list()}
    )
    about = {"title": "Audit of waiting", "asks": "whether groups wait alike", "arm_title": "your calls"}
    data = {"name": table.name, "calls": len(table)}
    return Answer(**about, data=data, scores=scores, metrics={"minutes": metric}, compared=["minutes"])
