"""One function for every interval, table, front and verdict: statistics of the unit table, resampled."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Arm, InputError, Metric
from upright.evidence.bootstrap import DRAWS, Bootstrap
from upright.evidence.records import Difference, Level
from upright.evidence.statistics import Statistic, parse
from upright.evidence.units import Units
from upright.evidence.verdict import audit_verdict, effect_of, verdict
from upright.maths.intervals import percentile
from upright.maths.resampling import Draws, front_distance
from upright.maths.simultaneous import LEVEL, POWER, ROUNDING, Comparisons, Z, dense_codes

__all__ = ["difference_of", "evidence", "level_of", "margins_of", "pair_levels", "said_again"]

Array = NDArray[np.float64]
Key = tuple[str, str]  # of a difference from a rival: arm, statistic


def evidence(
    units: Units,
    *,
    arms: Sequence[Arm],
    statistics: Sequence[str],
    metrics: Mapping[str, Metric],
    primary: str = "",
    cost: str = "",
    title: str = "",
    draws: int = DRAWS,
    seed: int = 0,
    margins: Mapping[str, float] | None = None,
    budget: float | None = None,
    unfit: Sequence[str] = (),
    boot: Bootstrap | None = None,
) -> dict[str, Any]:
    """Return levels, paired differences and the verdict, as plain values.

    Parameters
    ----------
    units : Units
        Values of every arm, seed and unit.
    arms : sequence of Arm
        Roles; those that are not in the table count as not run, but for those with `Arm.mix`, which are made here.
    statistics : sequence of str
        What to compute.
    metrics : mapping of name to Metric
        Direction, margin and title.
    primary, cost : str, optional
        Statistics of the verdict, which takes a remedy.
    title : str
        The remedy's name in sentences.
    margins, budget : optional
        Smallest changes that matter, by metric, with '' for that of the primary statistic, and what may be spent:
        declared for this run, in place of what the metrics say.
    unfit : sequence of str
        Arms that have no meaning for these data, so that nobody misses them.
    boot : Bootstrap, optional
        Draws of these units that exist already.

    Returns
    -------
    dict
        See `docs/design/evidence.md`.
    """
    boot, own = boot or Bootstrap(units, draws, seed), require_margins(margins, statistics, primary)
    if budget is None and cost:  # a margin of the run does not change what may be spent
        budget = metrics.get(cost.split(":")[1], Metric(cost)).margin
    metrics = {**metrics, **{m: dataclasses.replace(metrics.get(m, Metric(m)), margin=x) for m, x in own.items()}}
    remedy = next((a.name for a in arms if a.role == "remedy" and a.name in units.arms), None)
    _mix(boot, arms, remedy, primary, metrics)
    declared, arms = [a for a in arms if a.name not in unfit], [a for a in arms if a.name in units.arms]
    levels, differences = [], []
    for text in statistics:
        one = parse(text, boot, metrics)
        if not one.comparable():
            continue  # a gap needs two groups; with one there is nothing to compare
        # a correlation of scores is one of records, not of what an arm made of them: one arm says it
        shown = arms if one.name != "rank_correlation" else [next((a for a in arms if a.name == remedy), arms[0])]
        for cell in one.cells():
            levels += [level_of(one, arm.name, cell) for arm in shown]
            if remedy is None or not one.paired:
                continue
            for arm in arms:
                if arm.name != remedy and arm.role not in ("anchor", "sweep"):
                    differences.append(difference_of(one, remedy, arm, cell))
    grouped = f" in {boot.bucket.max() + 1} random groups" if boot.bucket.max(initial=-1) + 1 < units.n_clusters else ""
    n, clusters = len(units.seeds), units.n_clusters
    whole = f", in {clusters} clusters drawn whole" if units.clustered else ""
    found: dict[str, Any] = {
        "n_seeds": n,
        "n_units": len(units.units),
        "n_clusters": clusters,
        "unit_kind": units.unit_kind,
        "draws": draws,
        "confidence": 1 - LEVEL,
        "resampling": f"paired bootstrap, {draws} draws, percentile, stretched where there are few: "
        + (f"{n} seeds, then " if n > 1 else "")
        + f"{len(units.units)} {units.unit_kind}s{whole}{grouped}",
        "levels": levels,
        "differences": differences,
    }
    if remedy is not None and primary:
        by = {(d.against, d.statistic): d for d in differences}
        one, none = parse(primary, boot, metrics), [a for a in arms if a.role == "baseline"]
        fronts = _fronts(boot, arms, remedy, metrics, primary, cost) if one.comparable() else {}
        others = [a.name for a in arms if a.role in ("trivial", "placebo", "rival") and none and one.comparable()]
        found["alone"] = [difference_of(one, name, none[0], None).row() for name in others]
        keys = itertools.product([a.name for a in arms if a.role == "rival"], (primary, cost))
        apart = {key: _change(parse(key[1], boot, metrics), remedy, key[0], None) for key in keys if key in by}
        pairs = {key: np.r_[x.value, x.samples()] for key, x in apart.items()}
        found["rivals"] = [row.row() for row in _beside_rivals(pairs, fronts, by, cost)]
        texts = {text.partition("=")[0]: 0 for text in (primary, cost) if text}
        given: Any = {"statistics": [*texts], "metrics": metrics, "primary": primary, "cost": cost, "budget": budget}
        for rival in (a for a in arms if a.controls):
            said = evidence(units, arms=_as_remedy(rival, declared), title=rival.title, boot=boot, **given)
            found.setdefault("own", {})[rival.name] = said["verdict"]
        found["verdict"] = _said(found, declared, primary, cost, title, {}, budget, budget)
    else:
        found["verdict"] = audit_verdict("measured", []).row()
    return {**found, "levels": [x.row() for x in levels], "differences": [x.row() for x in differences]}


def _as_remedy(rival: Arm, arms: Sequence[Arm]) -> list[Arm]:
    """Return a rival as the remedy, among the baseline and its own controls, of which anchors become placebos."""
    own = [a for a in arms if a.role == "baseline" or a.name in (rival.name, *rival.controls)]
    roles: Any = {a.name: "placebo" for a in own if a.role == "anchor"} | {rival.name: "remedy"}
    return [dataclasses.replace(a, role=roles.get(a.name, a.role), controls=()) for a in own]


def margins_of(own: Mapping[str, float], given: Mapping[str, float] | None) -> dict[str, float]:
    """Return margins by metric: `own`, but those that are given, '' for all metrics with the margin of the first.

    Raises
    ------
    InputError
        For a metric that is not among them.
    """
    given = given or {}
    if lost := sorted({*given} - {"", *own}):
        accepted = f"a number for what decides, or METRIC=X of {', '.join(own)}"
        raise InputError(f"--margin of {lost[0]!r}", accepted, "name one of these metrics")
    first, every = next(iter(own.values()), 0.0), given.get("")
    return {m: given.get(m, every if every is not None and x == first else x) for m, x in own.items()}


def require_margins(given: Mapping[str, float] | None, statistics: Sequence[str], primary: str) -> dict[str, float]:
    """Return the margins that are given, '' as that of the primary statistic; raise for a metric no statistic has."""
    found = {metric or primary.split(":")[1]: value for metric, value in (given or {}).items()}
    margins_of(dict.fromkeys(sorted({text.split(":")[1] for text in statistics}), 0.0), found)
    return found


def _said(
    found: Mapping[str, Any],
    arms: Sequence[Arm],
    primary: str,
    cost: str,
    title: str,
    margins: Mapping[str, float],
    budget: float | None,
    declared: float | None,
) -> dict[str, Any]:
    differences = [*found["differences"], *map(Difference.read, found.get("alone", []))]
    plain = [d.row() for d in differences if d.role == "rival" and d.statistic in (primary, cost)]
    wide = {(r["against"], r["statistic"]): Difference.read(r) for r in found.get("rivals", plain)}
    rivals = {a: (wide[a, primary], wide.get((a, cost))) for a, s in wide if s == primary}
    texts, titles = {d.statistic.partition("=")[0] for d in differences}, {a.name: a.title for a in arms}
    said = verdict(
        found["levels"],
        differences,
        arms,
        primary=primary,
        cost=cost,
        title=title,
        seeds=found["n_seeds"],
        rivals=rivals,
        budget=budget,
        declared_budget=declared,
        margins_given={text: margins[m] for text in texts if (m := text.split(":")[1]) in margins},
    ).row()
    own = [f"{titles.get(a) or a}: {v['title']} ({v['lines']['effect']})" for a, v in found.get("own", {}).items()]
    return said | {"lines": said["lines"] | {"own": "; ".join(own)}} if own else said


def said_again(
    stored: Mapping[str, Any],
    arms: Sequence[Arm],
    *,
    primary: str,
    cost: str,
    title: str,
    margins: Mapping[str, float] | None = None,
    budget: float | None = None,
) -> dict[str, Any]:
    """Return stored evidence judged anew: with margins or a budget given afterwards, or by the rules of today."""
    levels, changes = map(Level.read, stored["levels"]), [*map(Difference.read, stored["differences"])]
    own = require_margins(margins, [d.statistic.partition("=")[0] for d in changes], primary)
    declared = stored.get("verdict", {}).get("declared_budget")
    spent = stored.get("verdict", {}).get("budget") if budget is None else budget
    found = {**stored, "levels": [*levels], "differences": changes}
    said = _said(found, arms, primary, cost, title, own, spent, declared)

    def judged(d: Difference) -> Difference:
        margin = own.get(d.statistic.partition("=")[0].split(":")[1], d.margin)
        return _with_ends(dataclasses.replace(d, margin=margin), d.low, d.high)

    return {**stored, "differences": [judged(d).row() for d in changes], "verdict": said}


def level_of(one: Statistic, arm: str, cell: str | None) -> Level:
    """Return a cell of a statistic of one arm."""
    have, should = one.count(arm, cell)
    n = int(have.any(0).sum())
    clusters = len(dense_codes(one.units.cluster[have.any(0)])[0]) if one.units.clustered else n
    chance, more, value = one.chance(arm, cell), one.facts(arm, cell), one.draws(arm, cell).value
    span, inside = one.about.high - one.about.low, (one.about.low, one.about.high)
    ranges = {"mean": inside, "worst_decile": inside, "gini": (0.0, 1.0), "gap": (-span, span), "abs_gap": (0.0, span)}
    ranges |= {"membership": (0.0, 0.5), "utility": (0.0, 1.0)}
    least, most = ranges.get(one.name, (-math.inf, math.inf))
    if least <= value <= most:  # what lies beyond cannot be
        chance |= {"low": max(chance["low"], least), "high": min(chance["high"], most)}
    return Level(
        statistic=one.text,
        label=one.label(cell),
        metric=one.metric,
        grouping=one.grouping,
        group=cell,
        arm=arm,
        value=value,
        better=one.better,
        n_units=n,
        n_clusters=clusters if clusters < n else None,
        n_undefined=int(should.any(0).sum()) - n,
        more=more,
        **chance,
    )


def _change(one: Statistic, first: str, second: str, cell: str | None) -> Draws:
    """Return the draws of a difference, which is paired: of units with a value in both arms."""
    units = one.units.shared(first, second)
    if units is not one.units:
        one = type(one)(one.boot.of(units), one.text, one.metrics)
    return one.draws(first, cell) - one.draws(second, cell)


def difference_of(one: Statistic, remedy: str, arm: Arm, cell: str | None) -> Difference:
    """Return a cell of a statistic of the remedy minus that of another arm."""
    change = _change(one, remedy, arm.name, cell)
    low, high = change.interval()
    if one.name == "mean":  # no two means are further apart than their metric is wide
        span = one.about.high - one.about.low
        low, high = (float(np.clip(end, -span, span)) for end in (low, high))
    found = Difference(
        statistic=one.text if cell is None else f"{one.text}={cell}",
        label=one.label(cell),
        arm=remedy,
        against=arm.name,
        role=arm.role,
        value=change.value,
        low=low,
        high=high,
        direction=one.better,
        margin=one.about.margin,
        seed_share=change.seed_share(),
        n_seeds=change.n_seeds,
        smallest_detectable=(Z + POWER) * change.standard_error(),
    )
    return _with_ends(found, low, high)


def _with_ends(row: Difference, low: float, high: float) -> Difference:
    found = dataclasses.replace(row, low=low, high=high)
    return dataclasses.replace(found, verdict=effect_of(found))


def pair_levels(
    found: Comparisons,
    *,
    arm: str,
    groups: Sequence[str],
    metrics: Sequence[Metric],
    grouping: str,
    sizes: Mapping[tuple[str, str], int],
) -> list[Level]:
    """Return every pair of groups as a gap that is not negative, adjusted, the largest T first.

    Parameters
    ----------
    found : Comparisons
        Of groups, over all rows.
    groups : sequence of str
    metrics : sequence of Metric
        In the order of their columns.
    sizes : mapping of (metric, group) to int
        Units with a value.
    """
    levels = []
    for k in np.argsort(-found.score, kind="stable").tolist():
        if not np.isfinite(found.value[k]):
            continue
        _, m, *pair = found.of[k]
        first, second = (groups[g] for g in (reversed(pair) if found.value[k] < 0 else pair))
        about, cell = metrics[m], f"{first} minus {second}"
        numbers, span = found.numbers(k), about.high - about.low  # no gap is larger than its metric is wide
        numbers |= {end: float(np.clip(numbers[end], -span, span)) for end in ("low", "high")}
        levels.append(
            Level(
                statistic=f"gap:{about.name}:{grouping}",
                label=f"{about.title or about.name}: {cell}",
                metric=about.name,
                grouping=grouping,
                group=cell,
                arm=arm,
                better="none",
                n_units=sum(sizes[about.name, g] for g in (first, second)),
                **numbers,
            )
        )
    return levels


def _simultaneous(drawn: Mapping[Key, Array]) -> dict[Key, tuple[float, float]]:
    """Return intervals that hold for some differences together: c is the 95 % quantile of the largest of them.

    Of each its value, then its draws, shape (1 + D,).
    """
    moved = [x for x in drawn.values() if np.isfinite(x[1:]).any() and np.nanstd(x[1:]) > ROUNDING]
    sizes = [np.abs(x[1:] - x[0]) / np.nanstd(x[1:]) for x in moved]
    critical = max(float(np.nanquantile(np.fmax.reduce(sizes), 1 - LEVEL)), Z) if sizes else Z
    ends = {key: np.array(percentile(x[1:], 1 - LEVEL)) - x[0] for key, x in drawn.items()}
    return {key: tuple((x[0] + critical / Z * ends[key]).tolist()) for key, x in drawn.items()}


def _fronts(
    boot: Bootstrap, arms: Sequence[Arm], remedy: str, metrics: Mapping[str, Metric], primary: str, cost: str
) -> dict[str, Array]:
    """Return by how much the remedy costs more than rivals that have strengths too, over the harms that both reach."""
    own = {a.name: [a.name, *(b.name for b in arms if b.name.startswith(f"{a.name}@"))] for a in arms}
    axes = [parse(text, boot, metrics) for text in (primary, cost)] if cost else []

    def front(arm: str) -> list[Any]:
        drawn = [[axis.draws(name, None) for name in own[arm]] for axis in axes]
        return [np.stack([np.r_[d.value, d.samples()] for d in line]) for line in drawn]

    rivals = [a.name for a in arms if a.role == "rival" and own[a.name][2:]] if axes and own[remedy][2:] else []
    apart = {name: front_distance(front(remedy), front(name)) for name in rivals}
    return {name: x for name, x in apart.items() if x is not None}


def _beside_rivals(
    pairs: Mapping[Key, Array], fronts: Mapping[str, Array], by: Mapping[Key, Difference], cost: str
) -> Iterator[Difference]:
    """Yield differences from rivals with ends that hold for all together; along fronts the harms are equal."""
    drawn = {key: fronts.get(key[0], x) for key, x in pairs.items() if key[0] not in fronts or key[1] == cost}
    ends = _simultaneous(drawn)
    for key in pairs:
        value, end = (float(drawn[key][0]), ends[key]) if key in ends else (0.0, (0.0, 0.0))
        yield _with_ends(dataclasses.replace(by[key], value=value), *end)


def _mix(boot: Bootstrap, arms: Sequence[Arm], remedy: str | None, primary: str, metrics: Mapping[str, Metric]) -> None:
    """Add arms that are the baseline with a probability, chosen at each seed so that the primary is the remedy's."""
    units = boot.units
    for arm in arms:
        if arm.mix and remedy and {*arm.mix, remedy} <= set(units.arms) and arm.name not in units.arms:
            one = parse(primary, boot, metrics)
            if not one.comparable():
                continue
            first, least, own = (one.draws(name, None).each for name in (*arm.mix, remedy))
            room = first - least
            share = np.divide(own - least, room, out=np.ones_like(room), where=room > 0)
            units.mix(arm.name, *arm.mix, np.clip(share, 0.0, 1.0))
