"""The evidence of published tables, tiny runs and audits is what the first code said, but for what was changed.

It was written down at commit 7b76a5f, by a script that stands in the history of this folder. Levels, counts and the
plain bootstrap (value + s + u + i of each draw) are the same to 1e-9. Nulls come from other random moves of the same
labels, so they agree within Monte Carlo error. What is changed on purpose (stretched and adjusted intervals, words) is
tested in `tests/evidence`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from upright.evidence.bootstrap import Bootstrap
from upright.evidence.statistics import computable, parse
from upright.evidence.units import Units, read_units
from upright.experiment.folders import read_json
from upright.experiment.registry import load_method, load_object
from upright.maths.intervals import percentile

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results"
KEY = ("statistic", "group", "arm", "against")
EXACT = ("value", "low", "high", "n_units", "n_undefined")
FROZEN: dict[str, list[dict[str, Any]]] = {}
for _row in pq.read_table(HERE / "evidence.parquet").to_pylist():
    FROZEN.setdefault(_row["source"], []).append(_row)
SOURCES = [source for source in FROZEN if not source.startswith("audit-")]  # audits have statistics of their own


def compute(source: str) -> list[dict[str, Any]]:
    """Return a row of every level, and of every difference (``against`` is set), with plain bounds."""
    if source.startswith("tiny-"):
        spec = load_method(source.removeprefix("tiny-"))
        units, metrics = Units(read_units(HERE / f"{spec.name}.parquet")), load_object(spec.task).tiny(0).metrics
        frozen = {row["statistic"].partition("=")[0] for row in FROZEN[source]}
        statistics = [text for text in spec.statistics if text in frozen]  # others were declared since
    else:
        summary, config = (read_json(RESULTS / source / f"{name}.json") for name in ("summary", "config"))
        spec, units = load_method(summary["method"]), Units(read_units(RESULTS / source / "units.parquet"))
        metrics = load_object(spec.task).metrics_of(config["resolved"]["task"])
        statistics = dict.fromkeys(x["statistic"] for x in summary["evidence"]["levels"])
    units.cluster, units.n_clusters = np.arange(len(units.units)), len(units.units)  # the first code knew none
    boot, remedy, rows = Bootstrap(units), spec.arm("remedy").name, []
    compared = {row["against"] for row in FROZEN[source]} - {None}  # also arms that were declared then
    for text in statistics:
        one = parse(text, boot, metrics) if computable(text, units) else None
        for cell in one.cells() if one and one.comparable() else ():
            arms = [remedy] if one.name == "rank_correlation" else units.arms
            for arm in arms:
                have, should = one.count(arm, cell)
                n = int(have.any(0).sum())
                low, high = percentile(one.draws(arm, cell).plain(), 0.95)
                found = {"value": one.draws(arm, cell).value, "low": low, "high": high, "n_units": n}
                null = one.chance(arm, cell).get("null")
                found |= {"n_undefined": int(should.any(0).sum()) - n, "null_expected": null and null.expected_abs}
                rows.append({"statistic": text, "group": cell, "arm": arm, "against": None, **found})
            for other in compared if one.paired else ():
                change = one.draws(remedy, cell) - one.draws(other, cell)
                low, high = percentile(change.plain(), 0.95)
                found = {"value": change.value, "low": low, "high": high}
                name = text if cell is None else f"{text}={cell}"
                rows.append({"statistic": name, "group": None, "arm": remedy, "against": other, **found})
    return rows


def by_key(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = {tuple(row.get(k) for k in KEY): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.golden
@pytest.mark.parametrize("source", SOURCES)
def test_evidence_is_what_it_was(source: str) -> None:
    # catches: another stream or order of draws, a weighting of seeds, an interval or a null of another kind
    now, then = by_key(compute(source)), by_key([r for r in FROZEN[source] if r["statistic"] != "verdict"])
    assert now.keys() == then.keys()
    wrong, apart = [], []
    for key, was in then.items():
        for name in EXACT:
            one, two = now[key].get(name), was[name]
            same = one is two if one is None or two is None else np.isclose(one, two, rtol=0, atol=1e-9, equal_nan=True)
            wrong += [] if same else [f"{key} {name}: {one}, was {two}"]
        one, two = now[key].get("null_expected"), was["null_expected"]
        assert (one is None) == (two is None), key
        apart += [one / two - 1] if two else []
    assert not wrong, "\n".join(wrong)
    # the mean of 500 absolute normal deviates has a relative error of 3.4 %; a source's nulls move together
    assert np.abs(apart).max(initial=0.0) < 0.15
    assert abs(np.mean(apart or [0.0])) < 0.1


def test_every_source_is_frozen() -> None:
    # catches: a file that lost sources or rows, so that nothing would be compared
    # published after the engine was made: nothing older to be compared with
    later = ("eisam-", "fedrecgel-", "odedit-")
    tables = {p.parent.name for p in RESULTS.glob("*/units.parquet") if not p.parent.name.startswith(later)}
    methods = {f"tiny-{p.stem}" for p in HERE.glob("*.parquet") if p.stem != "evidence"}
    assert set(SOURCES) == tables | methods
    assert all(len(rows) > 40 for rows in (FROZEN[source] for source in SOURCES))
