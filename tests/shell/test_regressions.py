"""Small defects that were found once and may not come back."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from upright.contract import Arm, Config, InputError, Metric, UnitScores, stream
from upright.shell.evidence import evidence
from upright.shell.units import Block, Units


class Choice(Config):
    """Settings with a numeric choice."""

    layers: Literal[1, 2] = 1
    """A number."""


@pytest.mark.parametrize("value", [True, 1.0, 3])
def test_a_literal_takes_its_own_type_only(value: object) -> None:
    # catches: True and 1.0 equal 1, so membership alone lets them in
    with pytest.raises(InputError, match="layers"):
        Choice(layers=value)


def test_numpy_integers_name_the_same_stream() -> None:
    # catches: an array of clients giving other numbers than a range of clients, or a TypeError
    assert stream(0, "client", np.int64(3)) == stream(0, "client", 3)
    assert stream(0, "client", "3") != stream(0, "client", 3)


def test_a_unit_without_a_label_is_in_neither_group() -> None:
    # catches: unlabelled users counted as the second group of the null gap
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.01, 60)
    labels = np.array(["a"] * 20 + ["b"] * 20 + [""] * 20)
    values[labels == ""] = 50.0
    scores = UnitScores("user", list(range(60)), {"m": values}, {"g": labels.tolist()})
    found = evidence(
        Units([Block("r", "yours", 0, scores)]), arms=[Arm("yours", "baseline")], statistics=["gap:m:g"],
        metrics={"m": Metric("m")}, draws=200,
    )  # fmt: skip
    assert found["levels"][0]["null"]["high"] < 0.02


def test_the_verdict_names_its_statistics() -> None:
    rng = np.random.default_rng(1)
    blocks = [
        Block("r", arm, 0, UnitScores("user", list(range(30)), {"m": rng.random(30)}, {"g": ["a"] * 10 + ["b"] * 20}))
        for arm in ("none", "new")
    ]
    found = evidence(
        Units(blocks), arms=[Arm("none", "baseline"), Arm("new", "remedy")], statistics=["abs_gap:m:g", "mean:m"],
        metrics={"m": Metric("m")}, primary="abs_gap:m:g", cost="mean:m", draws=200,
    )  # fmt: skip
    assert found["verdict"]["primary"] == "abs_gap:m:g"
    assert found["verdict"]["cost_statistic"] == "mean:m"


def test_a_plugin_cannot_take_the_name_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    # catches: the last entry point winning in silence
    from importlib.metadata import EntryPoint

    from upright.shell import registry

    class Named(EntryPoint):
        """An entry point that says whose it is."""

        @property
        def dist(self) -> object:  # type: ignore[override]
            return type("Dist", (), {"name": self.value.partition(".")[0]})

    ours = Named("in_ucds", "upright.methods.in_ucds:run", "upright.methods")
    theirs = Named("in_ucds", "aardvark.thing:run", "upright.methods")
    monkeypatch.setattr(registry, "entry_points", lambda group: [ours, theirs])
    with pytest.warns(UserWarning, match="aardvark registers the method 'in_ucds'"):
        assert registry.find()["in_ucds"] is ours
