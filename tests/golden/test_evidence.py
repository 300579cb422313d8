"""The evidence of published unit tables and of tiny runs is what commit 7b76a5f said; `freeze.py` wrote it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results"
KEY = ("statistic", "group", "arm", "against")
NUMBERS = ("value", "low", "high", "null_expected", "null_low", "null_high")
COUNTS = ("n_units", "n_undefined")
FROZEN: dict[str, list[dict[str, Any]]] = {}
for _row in pq.read_table(HERE / "evidence.parquet").to_pylist():
    FROZEN.setdefault(_row["source"], []).append(_row)
SOURCES = [source for source in FROZEN if not source.startswith("audit-")]  # audits have statistics of their own


def compute(source: str) -> list[dict[str, Any]]:
    """Return one row a level, one a difference (``against`` is set) and one with the verdict's word.

    Nothing else here touches upright.
    """
    from upright.contract import Arm
    from upright.shell.evidence import evidence
    from upright.shell.registry import load_method, load_object
    from upright.shell.runs import read_json
    from upright.shell.statistics import computable
    from upright.shell.units import Units, read_units

    swept: list[Arm] = []
    if source.startswith("tiny-"):
        spec = load_method(source.removeprefix("tiny-"))
        units = Units(read_units(HERE / f"{spec.name}.parquet"))
        statistics = [s for s in spec.statistics if computable(s, units)]
        metrics = load_object(spec.task).tiny(0).metrics
    else:
        summary, config = (read_json(RESULTS / source / f"{name}.json") for name in ("summary", "config"))
        spec, units = load_method(summary["method"]), Units(read_units(RESULTS / source / "units.parquet"))
        statistics = list(dict.fromkeys(x["statistic"] for x in summary["evidence"]["levels"]))
        statistics = [s for s in statistics if computable(s, units) and set(s.split(":")[2:]) <= set(units.by)]
        metrics = load_object(spec.task).metrics_of(config["resolved"]["task"])
        swept = [Arm(a["name"], "sweep", title=a["title"]) for a in summary["arms"] if a["role"] == "sweep"]
    found = evidence(units, arms=[*spec.arms, *swept], statistics=statistics, metrics=metrics, primary=spec.primary,
                     cost=spec.cost, title=spec.title, draws=2_000, seed=0)  # fmt: skip
    rows = [{**{k: x.get(k) for k in (*KEY, *NUMBERS, *COUNTS)}} for x in [*found["levels"], *found["differences"]]]
    for row, level in zip(rows, found["levels"], strict=False):
        if level["null"]:
            expected, low, high = (level["null"][k] for k in ("expected_abs", "low", "high"))
            row |= {"null_expected": expected, "null_low": low, "null_high": high}
    return [*rows, {"statistic": "verdict", "word": found["verdict"]["word"]}]


def by_key(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = {tuple(row.get(k) for k in KEY): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.golden
@pytest.mark.parametrize("source", SOURCES)
def test_evidence_is_what_it_was(source: str) -> None:
    # catches: another stream or order of draws, a weighting of seeds, an interval or a null of another kind
    now, then = by_key(compute(source)), by_key(FROZEN[source])
    assert now.keys() == then.keys()
    wrong = []
    for key, was in then.items():
        row = now[key]
        for name in NUMBERS:
            one, two = row.get(name), was[name]
            same = one is two if one is None or two is None else np.isclose(one, two, rtol=0, atol=1e-9, equal_nan=True)
            if not same:
                wrong.append(f"{key} {name}: {one}, was {two}")
        wrong += [f"{key} {k}: {row.get(k)}, was {was[k]}" for k in (*COUNTS, "word") if row.get(k) != was[k]]
    assert not wrong, "\n".join(wrong)


def test_every_source_is_frozen() -> None:
    # catches: a file that lost sources or rows, so that nothing would be compared
    tables = {p.parent.name for p in RESULTS.glob("*/units.parquet")}
    methods = {f"tiny-{p.stem}" for p in HERE.glob("*.parquet") if p.stem != "evidence"}
    assert set(SOURCES) == tables | methods
    assert all(len(rows) > 40 for rows in (FROZEN[source] for source in SOURCES))
