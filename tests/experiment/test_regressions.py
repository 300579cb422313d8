"""Small defects that were found once and may not come back."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from upright.contract import Config, InputError, stream


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


def test_a_plugin_cannot_take_the_name_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    # catches: the last entry point winning in silence
    from importlib.metadata import EntryPoint

    from upright.experiment import registry

    class Named(EntryPoint):
        """An entry point that says whose it is."""

        @property
        def dist(self) -> object:  # type: ignore[override]
            return type("Dist", (), {"name": self.value.partition(".")[0]})

    ours = Named("in_ucds", "upright.methods.in_ucds:run", "upright.methods")
    theirs = Named("in_ucds", "aardvark.thing:run", "upright.methods")
    monkeypatch.setattr("upright.lazy.entry_points", lambda group: [ours, theirs])
    with pytest.warns(UserWarning, match="aardvark registers 'in_ucds'"):
        assert registry.find()["in_ucds"] is ours
