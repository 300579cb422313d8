"""Levels of the evidence computed once more, by hand, from the columns of the unit table: what a check compares with.

Written without the shell's arrays and in the plainest way, so that a mistake there is not made here too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.maths import intervals
from upright.shell.correlations import NAMES as CORRELATIONS
from upright.shell.disparities import NAMES as DISPARITIES
from upright.shell.forgetting import NAMES as FORGETTING
from upright.shell.statistics import LEAKS

__all__ = ["from_rows"]


def from_rows(columns: Mapping[str, NDArray[Any]], level: Mapping[str, Any]) -> float:
    """Compute one level by hand from the columns of the unit table."""
    if level["statistic"].split(":")[0] in LEAKS:
        return _leak_from_rows(columns, level)
    if level["statistic"].split(":")[0] in DISPARITIES:
        return _disparity_from_rows(columns, level)
    if level["statistic"].split(":")[0] in FORGETTING:
        return _forgetting_from_rows(columns, level)
    if level["statistic"].split(":")[0] in CORRELATIONS:
        return _correlation_from_rows(columns, level)
    own = (columns["arm"] == level["arm"]) & (columns["metric"] == level["metric"])
    values, name = columns["value"].astype(np.float64), level["statistic"].split(":")[0]

    def of(rows: NDArray[np.bool_], statistic: str) -> float:
        return float(intervals.STATISTICS[statistic](values[rows], np.ones(int(rows.sum()))))

    labels = None if level["grouping"] is None else columns["by_" + level["grouping"]]
    if labels is not None and name in ("gap", "abs_gap"):
        first, second = (of(own & (labels == g), "mean") for g in sorted(set(labels[own])))
        return first - second if name == "gap" else abs(first - second)
    return of(own if level["group"] is None else own & (labels == level["group"]), name)


def _leak_from_rows(columns: Mapping[str, NDArray[Any]], level: Mapping[str, Any]) -> float:
    """Compute one leakage by hand: every pair of a member and another user, at the one seed of the lab."""
    prefix = level["metric"] + ("" if level["group"] is None else f"/{level['group']}") + "/"
    sizes: dict[str, list[float]] = {}
    for metric in sorted({m for m in columns["metric"] if m.startswith(prefix)}):
        own = (
            (columns["arm"] == level["arm"])
            & (columns["metric"] == metric)
            & (columns["by_" + level["grouping"]] != "")
        )
        values, labels = columns["value"][own].astype(np.float64), columns["by_" + level["grouping"]][own]
        attack, _, cls = metric.rpartition("/")
        a, b = values[(labels == cls) & ~np.isnan(values)], values[(labels != cls) & ~np.isnan(values)]
        auc = float(np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)))
        sizes.setdefault(attack, []).append(abs(auc - 0.5))
    of_attack = [np.mean(v) if level["statistic"].startswith("leakage") else np.max(v) for v in sizes.values()]
    return float(max(of_attack))


def _disparity_from_rows(columns: Mapping[str, NDArray[Any]], level: Mapping[str, Any]) -> float:
    """Compute one disparity by hand, at the one seed of the lab: every metric, client and pair of groups."""
    name = level["statistic"].split(":")[0]
    prefixes = [p + "/" for p in level["metric"].split("+")]
    metrics = [m for m in sorted(set(columns["metric"])) if any(m.startswith(p) for p in prefixes)]
    if level["group"] is not None:
        metrics = [m for m in metrics if m in [p + level["group"] for p in prefixes]]
    groups, values = columns["by_" + level["grouping"]], columns["value"].astype(np.float64)
    sites = columns["by_client"] if name != "disparity" else np.full(len(values), "everybody", dtype=object)
    largest = []
    for site in sorted(set(sites)):
        gaps = []
        for metric in metrics:
            own = (columns["arm"] == level["arm"]) & (columns["metric"] == metric) & (sites == site)
            own &= ~np.isnan(values)
            means = [values[own & (groups == g)].mean() for g in sorted(set(groups[own])) if g]
            gaps += [abs(a - b) for a, b in itertools.combinations(means, 2)]
        largest += [max(gaps)] if gaps else []
    if not largest:
        return float("nan")
    return float(np.mean(largest) if name == "mean_client_disparity" else max(largest))


def _forgetting_from_rows(columns: Mapping[str, NDArray[Any]], level: Mapping[str, Any]) -> float:
    """Compute one statistic of forgetting by hand: dictionaries of records, one seed after the other."""
    from scipy.stats import hmean, ks_2samp

    name, metric = level["statistic"].split(":")[0], level["metric"]
    cell = None if level["group"] is None else columns["by_" + level["grouping"]] == level["group"]
    sets = columns.get("by_set")
    seeds = columns["seed"] if "seed" in columns else np.zeros(len(columns["value"]))

    def records(arm: str, of: str, side: str, seed: Any) -> dict[str, float]:
        rows = (columns["arm"] == arm) & (columns["metric"] == of) & (seeds == seed)
        if sets is not None and (side != "retain" or "retain" in set(sets)):
            rows &= sets == side
        if cell is not None and side != "holdout":
            rows &= cell
        pairs = zip(columns["unit"][rows], columns["value"][rows].astype(np.float64), strict=True)
        return {str(unit): float(v) for unit, v in pairs if not np.isnan(v)}

    per_seed = []
    for seed in sorted(set(seeds)):
        if name == "utility":
            parts = [f"{metric}_{p}" for p in ("probability", "rouge_l", "truth_ratio")]
            parts = [
                m for m in parts if not np.isnan(columns["value"][columns["metric"] == m].astype(np.float64)).all()
            ]
            own = [list(records(level["arm"], m, "retain", seed).values()) for m in parts]
            if all(own):
                per_seed.append(float(hmean([np.mean(v) for v in own])))
            continue
        mine = records(level["arm"], metric, "forget", seed)
        if name == "membership":
            other = records(level["arm"], metric, "holdout", seed)
            wins = [(a > b) + 0.5 * (a == b) for a in mine.values() for b in other.values()]
            per_seed += [float(np.mean(wins))] if wins else []
            continue
        other = records("retrain", metric, "forget", seed)
        both = sorted(set(mine) & set(other))
        if not both:
            continue
        v, u = np.array([mine[i] for i in both]), np.array([other[i] for i in both])
        test = ks_2samp(v, u)
        per_seed.append(float({"ks_distance": test.statistic, "memory_gap": np.mean(np.abs(v - u)),
                               "forget_quality": test.pvalue}[name]))  # fmt: skip
    if not per_seed:
        return float("nan")
    whole = float(np.median(per_seed) if name == "forget_quality" else np.mean(per_seed))
    return abs(whole - 0.5) if name == "membership" else whole


def _correlation_from_rows(columns: Mapping[str, NDArray[Any]], level: Mapping[str, Any]) -> float:
    """Compute one rank correlation by hand at the one seed of the lab."""
    from scipy.stats import rankdata, spearmanr

    sides = []
    for metric in level["metric"].replace("|", "~").split("~"):
        rows = (columns["arm"] == level["arm"]) & (columns["metric"] == metric)
        if level["group"] is not None:
            rows &= columns["by_" + level["grouping"]] == level["group"]
        pairs = zip(columns["unit"][rows], columns["value"][rows].astype(np.float64), strict=True)
        sides.append({str(unit): float(v) for unit, v in pairs if not np.isnan(v)})
    both = sorted(set.intersection(*map(set, sides)))
    x, y, *z = (np.array([side[u] for u in both]) for side in sides)
    if not z:
        return float(spearmanr(x, y).statistic)
    line = np.column_stack([np.ones(len(both)), rankdata(z[0])])
    left = [r - line @ np.linalg.lstsq(line, r, rcond=None)[0] for r in (rankdata(x), rankdata(y))]
    return float(np.corrcoef(*left)[0, 1])
