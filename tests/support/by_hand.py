"""Every statistic of the evidence once more, by hand, from the rows of a unit table: an oracle.

Written in the plainest way, one seed and one record after the other, so that a mistake there is not made here too.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import hmean, ks_2samp, rankdata

from upright.contract import UnitScores
from upright.evidence.bootstrap import Bootstrap
from upright.evidence.units import Block


def value(blocks: Sequence[Block], text: str, arm: str, cell: str | None = None) -> float:
    """Return a statistic of one arm; the cell is a group, an attack or a class."""
    name, metric, grouping = [*text.split(":"), ""][:3]
    seeds = [b.scores for b in blocks if b.arm == arm]
    kept = {b.seed: b.scores for b in blocks if b.arm == "retrain"}
    group = None if cell is None else (grouping, cell)
    if name == "mean":
        return _mean(v for s in seeds for v in _records(s, metric, group=group).values())
    if name in ("gap", "abs_gap"):
        first, second = (value(blocks, f"mean:{metric}:{grouping}", arm, g) for g in _groups(seeds, grouping))
        return first - second if name == "gap" else abs(first - second)
    if name in ("effect", "dominance"):
        a, b = grouping.split("~")
        if name == "dominance":
            return abs(value(blocks, f"effect:{metric}:{a}~{b}", arm)) - abs(
                value(blocks, f"effect:{metric}:{b}~{a}", arm)
            )
        first, second = _groups(seeds, a)
        return _mean(
            _both(seeds, metric, a, first, b, g) - _both(seeds, metric, a, second, b, g) for g in _groups(seeds, b)
        )
    if name in ("leakage", "worst_leakage"):
        return _leakage(seeds, name, metric, grouping, cell)
    found = []
    for seed, scores in [(b.seed, b.scores) for b in blocks if b.arm == arm]:
        if name == "worst_decile":
            own = list(_records(scores, metric, group=group).values())
            pieces = sorted(v for v in own for _ in range(10))  # each unit in ten pieces
            found.append(_mean(pieces[: len(own)]))
        elif name == "gini":
            own = list(_records(scores, metric, group=group).values())
            sizes = [abs(a - b) for a in own for b in own]
            found.append(_mean(sizes) / (2 * _mean(own)) if any(own) else (0.0 if own else math.nan))
        elif name.endswith("disparity"):
            found.append(_disparity(scores, name, metric, grouping, cell))
        elif name == "utility":
            parts = [f"{metric}_{p}" for p in ("probability", "rouge_l", "truth_ratio")]
            found.append(float(hmean([_mean(_records(scores, p, "retain", group).values()) for p in parts])))
        elif name == "membership":
            known, other = _records(scores, metric, "forget", group), _records(scores, metric, "holdout")
            found.append(_auc([(known.values(), other.values())]))
        elif name == "rank_correlation":
            found.append(_correlation([_records(scores, m, group=group) for m in metric.replace("|", "~").split("~")]))
        else:
            one, two = (_records(s, metric, "forget", group) for s in (scores, kept[seed]))
            both = sorted(set(one) & set(two))
            with warnings.catch_warnings():  # it goes over to the asymptotic p by itself
                warnings.simplefilter("ignore", RuntimeWarning)
                test = ks_2samp([one[u] for u in both], [two[u] for u in both])
            gap = _mean(abs(one[u] - two[u]) for u in both)
            found.append({"ks_distance": test.statistic, "forget_quality": test.pvalue, "memory_gap": gap}[name])
    if name == "forget_quality":
        return float(np.median(found))
    whole = _mean(v for v in found if not math.isnan(v))
    return abs(whole - 0.5) if name == "membership" else whole


def rows_of_draws(blocks: Sequence[Block], boot: Bootstrap) -> Iterator[list[Block]]:
    """Yield the table of each draw: units and seeds as often as they were drawn, each time under a name of its own."""
    names = boot.units.units
    times = boot.sums(np.eye(len(names))[:, None])[:, 1:, 0].T.astype(int)  # sums that are 1 for one unit alone
    for drawn, seeds in zip(times, boot.seed_weight.astype(int), strict=True):
        found, often = [], dict(zip(names, drawn, strict=True))
        for b in blocks:
            at = [i for i, u in enumerate(b.scores.unit) for _ in range(often[str(u)])]
            values = {m: [v[i] for i in at] for m, v in b.scores.values.items()}
            by = {g: [labels[i] for i in at] for g, labels in b.scores.by.items()}
            scores = UnitScores(b.scores.unit_kind, range(len(at)), values, by)
            copies = range(seeds[boot.units.seeds.index(b.seed)])
            found += [Block(b.run, b.arm, 1_000 * b.seed + i, scores) for i in copies]
        yield found


def _mean(values: Iterable[float]) -> float:
    own = list(values)
    return math.fsum(own) / len(own) if own else math.nan


def _groups(seeds: Sequence[UnitScores], grouping: str) -> list[str]:
    return sorted({str(g) for s in seeds for g in s.by[grouping]} - {""})


def _records(
    scores: UnitScores, metric: str, side: str | None = None, group: tuple[str, str] | None = None
) -> dict[Any, float]:
    """Return the defined values by unit, of one set and one group of a grouping."""
    own = {}
    for i, (unit, v) in enumerate(zip(scores.unit, scores.values[metric], strict=True)):
        there = group is None or scores.by[group[0]][i] == group[1]
        if there and not math.isnan(v) and side in (None, scores.by.get("set", [side] * (i + 1))[i]):
            own[unit] = float(v)
    return own


def _both(seeds: Sequence[UnitScores], metric: str, a: str, first: str, b: str, second: str) -> float:
    rows = [row for s in seeds for row in zip(s.by[a], s.by[b], s.values[metric], strict=True)]
    return _mean(v for one, two, v in rows if (one, two) == (first, second) and not math.isnan(v))


def _auc(strata: Iterable[Sequence[Iterable[float]]]) -> float:
    """Return the share of pairs, of all strata, in which the first is larger."""
    return _mean((a > b) + 0.5 * (a == b) for first, second in strata for a, b in itertools.product(first, second))


def _leakage(seeds: Sequence[UnitScores], name: str, prefix: str, grouping: str, attack: str | None) -> float:
    sizes: dict[str, list[float]] = {}
    for metric in (m for m in seeds[0].values if m.startswith(prefix + "/")):
        own, cls = metric.rpartition("/")[::2]
        if attack not in (None, own.removeprefix(prefix + "/")):
            continue
        aucs = []
        for s in seeds:
            folds = s.by.get(f"fold_{own.rpartition('/')[2]}", [""] * len(s.unit))
            rows = zip(folds, s.by[grouping], s.values[metric], strict=True)
            sides: dict[str, list[list[float]]] = {fold: [[], []] for fold in folds}
            for fold, label, v in rows:
                if label and not math.isnan(v):
                    sides[fold][label != cls].append(float(v))
            aucs.append(_auc(sides.values()))
        sizes.setdefault(own, []).append(abs(_mean(a for a in aucs if not math.isnan(a)) - 0.5))
    return max(_mean(own) if name == "leakage" else max(own) for own in sizes.values())


def _disparity(scores: UnitScores, name: str, prefixes: str, grouping: str, cls: str | None) -> float:
    metrics = [m for p in prefixes.split("+") for m in scores.values if m.startswith(p + "/")]
    homes = scores.by["client"] if name != "disparity" else ["all"] * len(scores.unit)
    largest = []
    for home in sorted(set(homes)):
        gaps = []
        for metric in (m for m in metrics if cls is None or m.endswith(f"/{cls}")):
            rows = zip(homes, scores.by[grouping], scores.values[metric], strict=True)
            own = [(g, v) for h, g, v in rows if h == home and g and not math.isnan(v)]
            means = [_mean(v for g, v in own if g == one) for one in {g for g, _ in own}]
            gaps += [abs(a - b) for a, b in itertools.combinations(means, 2)]
        largest += [max(gaps)] if gaps else []
    if not largest:
        return math.nan
    return _mean(largest) if name == "mean_client_disparity" else max(largest)


def _correlation(sides: Sequence[dict[Any, float]]) -> float:
    both = sorted(set.intersection(*map(set, sides)))
    x, y, *z = (rankdata([side[u] for u in both]) for side in sides)
    if z:
        line = np.column_stack([np.ones(len(both)), z[0]])
        x, y = (r - line @ np.linalg.lstsq(line, r, rcond=None)[0] for r in (x, y))
    return float(np.corrcoef(x, y)[0, 1])
