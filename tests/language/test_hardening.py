"""Robustness of an unlearned model as the desk reports it."""

from __future__ import annotations

import numpy as np
import pytest

from upright.data.forget import read_records
from upright.language import desk, disk, pages
from upright.language.evaluation import Speaker
from upright.language.robustness import robustness
from upright.models.hub import load_language_model


def test_attacks_are_reported_with_the_share_that_came_back(world, finished, tmp_path):
    # catches: shares against the wrong model, relearning on the records that are scored, a folder that was written to
    place, _ = finished
    new = place / "new"
    before = disk.checksum(new)
    found = desk.evaluate(new, world.forget, world.retain, reference=world.reference, rouge=False, robust=True,
                          before=world.model, out=tmp_path / "e.json")  # fmt: skip
    assert disk.checksum(new) == before
    attacks = found["robustness"]["attacks"]
    assert {"none", "rounding", "relearn", "relearn_retain"} <= set(attacks)
    assert attacks["none"]["recovered"] == pytest.approx(0.0, abs=1e-9)
    records = read_records(world.forget)
    levels = {
        name: float(np.exp(-Speaker(*load_language_model(folder)).read(records).mean_nll).mean())
        for name, folder in (("before", world.model), ("new", new), ("reference", world.reference))
    }
    assert attacks["none"]["probability"]["value"] == pytest.approx(levels["new"])
    floor = max(levels["new"], levels["reference"])
    for row in attacks.values():
        share = (row["probability"]["value"] - floor) / (levels["before"] - floor)
        assert row["recovered"] == pytest.approx(share, abs=1e-9)
    other = robustness(Speaker(*load_language_model(world.reference)), records, retain=read_records(world.retain),
                       rouge=False)  # fmt: skip
    for name, row in attacks.items():
        assert row["reference"]["value"] == pytest.approx(np.nanmean(other[name]["forget_probability"]), rel=1e-4)
    text = "\n".join(pages.robustness_lines(found["robustness"]))
    assert "; the reference " in text
    assert "relearn" in text
    assert "10 steps" in text


def test_without_the_model_before_no_share_is_stated(world, finished):
    found = desk.evaluate(finished[0] / "new", world.forget, rouge=False, robust=True)
    assert all(row["reference"] is None for row in found["robustness"]["attacks"].values())
    assert all(row["recovered"] is None for row in found["robustness"]["attacks"].values())
    assert "relearn_retain" not in found["robustness"]["attacks"]
    assert pages.robustness_lines(None) == []
