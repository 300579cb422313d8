"""Audit of anybody's predictions: are groups decided alike, over all rows and at every client.

===================  =============================  ================================================================
criterion            statistics of                  the groups' rates that are compared
===================  =============================  ================================================================
demographic parity   ``predicted``                  ``P(decided c | g)``
equal opportunity    ``true_positive``              ``P(decided c | g, label c)``
equalized odds       ``true_positive+false_         the same, and ``P(decided c | g, label not c)``
                     positive``
===================  =============================  ================================================================

``disparity`` is the largest difference between two groups, over classes; ``client_disparity`` and
``mean_client_disparity`` are its maximum and mean inside clients. ``gap`` is one pair of groups in one rate, adjusted
for all pairs and rates: the largest beyond chance decides. `docs/audit-predictions.md` has files and errors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upright.audits.cases import (
    MOST_ROWS,
    Cases,
    groupings_of,
    named_columns,
    read_cases,
    scores_of,
    unit_table,
)
from upright.audits.folder import MIN_GROUP, YOURS, Audit, suppress_small, write_audit
from upright.audits.lists import plural, some
from upright.contract import Arm, InputError, Metric, UnitScores, audit
from upright.declare import Heat, Intervals, Noted, Signed
from upright.evidence.bootstrap import DRAWS
from upright.evidence.compute import evidence, margins_of, pair_levels
from upright.evidence.records import Level
from upright.evidence.units import Block, Units
from upright.evidence.verdict import Verdict, audit_verdict
from upright.experiment.places import require_folder
from upright.maths.parity.rates import Criterion
from upright.metrics.fairness import GroupFairness, Table, fairness_of

__all__ = ["CRITERIA_OF", "audit_predictions", "gaps_of", "metrics_of", "pairs_and_verdict"]

CRITERIA_OF: Mapping[Criterion, tuple[str, str]] = {
    "demographic_parity": ("predicted", "Demographic parity"),
    "equal_opportunity": ("true_positive", "Equal opportunity"),
    "equalized_odds": ("true_positive+false_positive", "Equalized odds"),
}
MOST_CLIENTS = 50  # in tables of rates, those with the largest gaps
_TITLES = {"predicted": "Decided", "true_positive": "True positive rate of", "false_positive": "False positive rate of"}
_NAMES = ("disparity", "client_disparity", "mean_client_disparity")
Row = dict[str, Any]


@audit(
    "predictions",
    report=[
        Intervals(
            "Rates by group",
            "mean:*/*:*=*",
            [
                "Share of a group's rows that are decided so; the rates of the criterion that decides stand first. The "
                "criterion asks that they are equal."
            ],
        ),
        Signed("Gaps between groups, the one that decides first", "gap:*=*"),
        Heat("Share decided so", "fairness.0.by_group", split=("stratum", "class")),
        Noted(
            "Largest gap over all rows, and inside clients",
            "fairness.0.gaps",
            by={"client": "Client", "stratum": "Rate", "class": "Decided", "first": "Higher", "second": "Lower"},
            names={"value": "gap", "low": "from", "high": "to", "smallest": "smaller cell", "shown": "beyond chance"},
        ),
        Noted(
            "Clients whose gap goes the other way than that over all rows",
            "fairness.0.conflicts",
            by={"client": "Client"},
            names={
                "global.first": "higher over all rows",
                "global.value": "gap",
                "local.first": "higher inside",
                "local.value": "gap inside",
            },
        ),
        Noted(
            "Cells that may hold too few rows",
            "fairness.0.small",
            by={"client": "Client", "group": "Group"},
            names={"n": "rows", "need": "rows of the client needed"},
        ),
    ],
    limits=[
        "Equal rates are no proof of fair treatment: the labels themselves may be unfair, and groups may differ in "
        "what decisions cost them.",
        "Only the groups in the file are compared. A group that is not named, or a mixture, may be worse off.",
        "The largest of many gaps is large by selection, most of all among small clients: read its adjusted interval, "
        "and whether it is beyond chance. The interval of a single rate is not adjusted.",
        "Intervals describe other rows of the same kind, with the classifier as it is.",
    ],
)
def audit_predictions(
    file: Path | str,
    *,
    group: str | Sequence[str],
    client: str | None = None,
    label: str | None = None,
    person: str | None = None,
    prediction: str | None = None,
    proba: str | Sequence[str] | None = None,
    criterion: Criterion = "demographic_parity",
    positive: str | None = None,
    randomised: bool = False,
    least: int = 30,
    ids: str | None = None,
    out: Path | str,
    seed: int = 0,
    draws: int = DRAWS,
    margins: Mapping[str, float] | None = None,
    command: str | None = None,
) -> Path:
    """Compare groups in how they are decided, and return the folder of the audit.

    Parameters
    ----------
    file : Path
        CSV, TSV or Parquet with a row a case.
    group : str or sequence of str
        Columns of groups: ``A,B`` each by itself, ``A*B`` their product and each by itself. The first one decides the
        verdict.
    client, label, person, ids : str, optional
        Columns of clients, of true classes, of whose rows they are, and of ids. Rows of one person count together.
    prediction, proba : str, or sequence of str
        Column of decided classes, or columns of probabilities in the order of classes (``no=a,yes=b`` names them).
    criterion : str
        Of `CRITERIA_OF`: the one that decides the verdict. The others are computed when there are labels.
    positive : str, optional
        Class that is compared; by default the last of two, all of more.
    randomised : bool
        Take the probabilities as a randomised decision instead of deciding for the most probable class.
    least : int
        Rows that a cell should hold, at least 5: cells of which lemma B.7 promises fewer are listed.
    out : Path
        Folder in which the audit's folder is made.
    seed, draws : int
        Of the bootstrap and the permutations.
    margins : mapping of metric to float, optional
        Smallest gap that matters, '' for any.
    command : str, optional
        What the report says to repeat it.

    Returns
    -------
    Path
        ``summary.json`` (``kind`` is ``audit``), ``units.parquet``, ``config.json``, ``run.json``.

    Raises
    ------
    InputError
        For everything that is wrong with the file; no folder is made then.
    """
    path, columns = Path(file), named_columns(proba) if proba is not None else []
    named = {"client": client, "label": label, "person": person, "prediction": prediction, "ids": ids}
    _check(criterion, named, columns, randomised, least, draws)
    require_folder(Path(out))
    groupings = groupings_of(group)
    cases = read_cases(path, groupings=groupings, proba=columns, randomised=randomised, **named)
    warnings = list(cases.warnings)
    by = _groups(cases, warnings, groupings)
    left = {name: list(groupings[name]) for name in by}
    if positive is not None and positive not in cases.classes:
        raise InputError(f"--positive {positive!r}", ", ".join(map(repr, cases.classes)), "name one of the classes")
    last = [cases.classes[-1]] if len(cases.classes) == 2 else list(cases.classes)
    compared = [positive] if positive is not None else last
    values = scores_of(cases, compared)
    if cases.client is not None:
        by["client"] = cases.client
    if cases.label is not None:
        by["label"] = [cases.classes[c] for c in cases.label]
    criteria = list(dict.fromkeys([criterion, *(CRITERIA_OF if cases.label is not None else ())]))
    scores, metrics = UnitScores("row", cases.ids, values, by, cluster=cases.person), metrics_of([*values])
    units = Units([Block("", YOURS, seed, scores)])
    statistics = _statistics([*left], criteria, compared, units)
    arms = [Arm(YOURS, "baseline", title="your decisions")]
    found = evidence(units, arms=arms, statistics=statistics, metrics=metrics, draws=draws, seed=seed)
    tables = {
        (name, c): fairness_of(_table(units, name, c, compared), observations=least, seed=seed)
        for name in left
        for c in criteria
    }
    few = {
        f"disparity:{CRITERIA_OF[c][0]}:{name}" for (name, c), one in tables.items() if _is_few(one.gaps[0]["smallest"])
    }
    found["levels"] = [
        row for row in found["levels"] if row["statistic"] not in few and not (row["group"] and _is_few(row["n_units"]))
    ]
    grouping = next(iter(left))
    pairs, said = pairs_and_verdict(tables[grouping, criterion], grouping, metrics, margins or {})
    beside = {key: pairs_and_verdict(one, key[0], metrics, {})[1] for key, one in tables.items()}
    others = []
    for (name, c), one in beside.items():
        top = one.headline
        if (name, c) != (grouping, criterion) and top:
            asked = f"{c.replace('_', ' ')} of {_named(groupings[name])}"
            others.append(f"{asked}: {one.title}, {top.label} {top.value:.3f}")
    said = dataclasses.replace(said, lines={**said.lines, **({"also asked": "; ".join(others)} if others else {})})
    found["levels"] += [level.row() for level in pairs]
    found["headline"] = said.headline.row() if pairs and said.headline else None
    found["verdict"] = said.row() | ({} if pairs else {"primary": statistics[0]})
    if len(cases.h) > MOST_ROWS:
        warnings.append(
            f"With more than {MOST_ROWS} rows, units.parquet holds one unit a cell with its number of rows."
        )
    data = {"name": path.name, "rows": len(cases.h), "classes": list(cases.classes)}
    data |= {"clients": len(set(cases.client or ())), "persons": len(set(cases.person))}
    data |= {"groups": {name: len(set(by[name]) - {""}) for name in left}, "fingerprint": _fingerprint(path)}
    passed = {"file": path.name, "group": group, **named, "proba": proba, "positive": positive}
    passed = {option: value for option, value in passed.items() if value is not None}
    shared = {"groupings": left, "criterion": criterion, "compared": compared, "least": least}
    about = Audit(
        kind="predictions",
        title=f"Audit of the decisions in {path.name}",
        arm_title="your decisions",
        asks=f"whether groups of {_named(groupings[grouping])} are decided alike",
        data=data,
        passed=passed,
        resolved={**shared, "classes": list(cases.classes), "randomised": randomised, "draws": draws},
        scores=unit_table(cases, by, values),
        metrics=metrics,
        statistics=(),
        compared=(),
        facts={**shared, "fairness": [_facts(*names, one) for names, one in tables.items()]},
        warnings=warnings,
        command=command or _command(passed, criterion, randomised, least, seed),
        evidence=found,
    )
    return write_audit(about, Path(out), seed=seed, draws=draws)


def _check(
    criterion: str, named: Mapping[str, str | None], proba: Sequence[str], randomised: bool, least: int, draws: int
) -> None:
    """Refuse options that do not fit together before a file is read."""
    for name, number, low in (("least", least, MIN_GROUP), ("draws", draws, 2)):
        if isinstance(number, bool) or not isinstance(number, int) or number < low:
            raise InputError(
                f"{name} = {number!r}", f"a whole number of at least {low}", f"set {name} to at least {low}"
            )
    if criterion not in CRITERIA_OF:
        raise InputError(f"criterion {criterion!r}", ", ".join(CRITERIA_OF), "name one of them")
    if (named["prediction"] is None) == (not proba):
        got = "both --prediction and --proba" if proba else "neither --prediction nor --proba"
        raise InputError(got, "decided classes, or probabilities of every class", "give one of the two")
    if randomised and not proba:
        raise InputError("--randomised with --prediction", "--randomised with --proba", "give the probabilities")
    if named["label"] is None and criterion != "demographic_parity":
        todo = "pass --label, or take demographic_parity, which needs none"
        raise InputError(f"criterion {criterion!r} without --label", "a column of true classes", todo)


def _groups(cases: Cases, warnings: list[str], groupings: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return groupings that can be compared, without groups of fewer than five rows."""
    by: dict[str, Sequence[str]] = {}
    for name, labels in cases.groups.items():
        clean, small = suppress_small(labels, np.ones(len(labels), dtype=bool))
        if small:
            what = f"Groups of {_named(groupings[name])} with fewer than {MIN_GROUP} rows take no part: {some(small)}."
            warnings.append(what)
        groups = sorted(set(clean) - {""})
        if len(groups) > 1:
            by[name] = clean
        elif name == next(iter(cases.groups)):
            which = f"one group, {groups[0]!r}," if groups else "no group"
            raise InputError(
                f"{cases.path.name}: {_named(groupings[name])} has {which} of at least {MIN_GROUP} rows",
                f"at least 2 groups of {MIN_GROUP} rows",
                "name another column with --group, or merge small groups",
            )
        else:
            warnings.append(f"{_named(groupings[name])} has fewer than two groups, so nothing was compared there.")
    return by


def _named(columns: Sequence[str]) -> str:
    return " and ".join(map(repr, columns))


def _statistics(left: Sequence[str], criteria: Sequence[Criterion], compared: Sequence[str], units: Units) -> list[str]:
    """Return what the evidence holds: rates by group of the deciding criterion first, for that is drawn beside it."""
    names = _NAMES if "client" in units.by else _NAMES[:1]
    kinds = dict.fromkeys(kind for c in criteria for kind in CRITERIA_OF[c][0].split("+"))
    rates = [f"{kind}/{one}" for kind in kinds for one in compared] + ["accuracy"] * ("accuracy" in units.metrics)
    found = [f"{name}:{CRITERIA_OF[c][0]}:{g}" for g in left for c in criteria for name in names]
    return found + [f"mean:{m}:{g}" for g in left for m in rates] + [f"mean:{m}" for m in rates]


def metrics_of(names: Sequence[str]) -> dict[str, Metric]:
    """Return titles of rates, accuracy and criteria."""
    found = {prefix: Metric(prefix, "lower", title=title) for prefix, title in CRITERIA_OF.values()}
    for name in names:
        kind, _, one = name.partition("/")
        found[name] = Metric(name, title=f"{_TITLES[kind]} {one!r}" if one else "Accuracy")
    return found


def _table(units: Units, grouping: str, criterion: Criterion, compared: Sequence[str]) -> Table:
    rates = [(kind, one) for one in compared for kind in CRITERIA_OF[criterion][0].split("+")]
    values = np.stack([units.values(YOURS, f"{kind}/{one}")[0] for kind, one in rates], axis=-1)
    groups, group = units.codes(grouping)
    clients, client = units.codes("client") if "client" in units.by else ([], np.zeros_like(group))
    return Table(values, rates, group[0], client[0], units.cluster, groups, clients)


# -- what is shown --------------------------------------------------------------------------------------------------


def pairs_and_verdict(
    found: GroupFairness, grouping: str, metrics: Mapping[str, Metric], margins: Mapping[str, float]
) -> tuple[list[Level], Verdict]:
    """Return every pair of groups over all rows, the largest T first, and the verdict.

    Rates of a group in fewer than `MIN_GROUP` rows are not measured. Who is too small to judge takes no part in the
    ratio of rates.
    """
    groups, n = found.table.groups, found.cells[0, :, 0, :-1].astype(np.int64)  # (M, G)
    names = [f"{kind}/{one}" for kind, one in found.table.rates]
    few = [n[m, [a, b]].min() < MIN_GROUP for _, m, a, b in found.pairs.of]
    pairs = dataclasses.replace(found.pairs, value=np.where(few, np.nan, found.pairs.value))
    levels = pair_levels(
        pairs,
        arm=YOURS,
        groups=groups,
        metrics=[metrics[name] for name in names],
        grouping=grouping,
        sizes={(name, g): int(n[m, k]) for m, name in enumerate(names) for k, g in enumerate(groups)},
    )
    small, metric = pairs.small_groups(), levels[0].metric if levels else names[0]
    m = names.index(metric)
    judged = [g for g in range(len(groups)) if n[m, g] >= MIN_GROUP and g not in small]
    rates = {groups[g]: float(found.cells[1, m, 0, g]) for g in judged}
    said = audit_verdict(
        "gap shown",
        levels,
        margin=margins_of({name: metrics[name].margin for name in names}, margins),
        ratio=_ratio(rates),
        too_small=[(groups[g], least) for g, least in small.items()],
        unit="row",
        unmeasured=[f"{metrics[names[m]].title} for {groups[g]}" for m, g in np.argwhere(n < MIN_GROUP)],
    )
    clients = {"clients": _inside(found)} if found.inside else {}
    return levels, dataclasses.replace(said, lines={**said.lines, **clients})


def _ratio(rates: Mapping[str, float]) -> tuple[float, str] | None:
    """Return the smallest over the largest rate, and whose they are: two groups, also where all are equal."""
    if len(rates) < 2 or max(rates.values()) <= 0:
        return None
    low, high = min(rates, key=rates.__getitem__), max(reversed([*rates]), key=rates.__getitem__)
    return rates[low] / rates[high], f"{low} over {high}"


def _inside(found: GroupFairness) -> str:
    """Say at which clients a gap is shown, adjusted for all of them, and how many of their cells are small."""
    inside: Any = found.inside
    shown = [one for one, shown in zip(inside.of, inside.shown, strict=True) if shown]
    homes = dict.fromkeys(h for h, m, *pair in shown if found.cells[0, m, h + 1, pair].min() >= MIN_GROUP)
    words = [f"gap shown at {some([found.table.clients[h] for h in homes])}" if homes else "no gap shown"]
    against = len({row["client"] for row in found.conflicts})
    words += [f"at {plural(against, 'client')} the other way than over all rows"] * bool(against)
    small = sum(row["client"] is not None for row in found.small)
    words += [f"{plural(small, 'cell')} may be too small to judge ({found.observations} rows are asked for)"] * bool(
        small
    )
    return "; ".join(words)


def _facts(grouping: str, criterion: Criterion, found: GroupFairness) -> Row:
    """Return the tables of one grouping and criterion, numbers of cells under five rows left out."""
    gaps, rates = found.gaps, found.by_group
    wide = sorted(gaps[1:], key=lambda r: -r["value"] if math.isfinite(r["value"]) else math.inf)
    shown = {None, *(row["client"] for row in wide[:MOST_CLIENTS])}
    rates = [_cut(row, row["n"], "n", "rate", "low", "high") for row in rates if row["client"] in shown]
    return {
        "grouping": grouping,
        "criterion": criterion,
        "groups": found.table.groups,
        "clients": len(found.table.clients),
        "gaps": [_cut(row, row["smallest"], "value", "low", "high", "p", "smallest") for row in gaps],
        "by_group": [row for row in rates if row["group"] is not None],
        "overall": [row for row in rates if row["group"] is None],
        "small": [_cut(row, row["n"], "n", "rate", "low", "high", "need") for row in found.small],
        "conflicts": found.conflicts,
    }


def _is_few(n: int) -> bool:
    """Whether a number rests on one to four rows, which says too much about each."""
    return 0 < n < MIN_GROUP


def _cut(row: Row, n: int, *keys: str) -> Row:
    """Return a row without the numbers that rest on few rows."""
    return {**row, **dict.fromkeys(keys if _is_few(n) else ()), "few": _is_few(n)}


def gaps_of(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the gaps of a summary as a terminal shows them."""
    rows = []
    for level in map(Level.read, summary["evidence"]["levels"]):
        if level.name == "gap" or (level.name in _NAMES and level.group is None):
            numbers = (level.value, level.low, level.high, level.p)
            value, low, high, p = (f"{number:.4f}" if math.isfinite(number) else "undefined" for number in numbers)
            rows.append({"gap": level.label, "value": value, "interval": f"{low} to {high}", "by chance": f"p = {p}"})
    return rows


def _fingerprint(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _command(passed: Mapping[str, Any], criterion: str, randomised: bool, least: int, seed: int) -> str:
    words = ["upright", "audit", "predictions", passed["file"]]
    for option, value in list(passed.items())[1:]:
        words += [f"--{'id' if option == 'ids' else option}", value if isinstance(value, str) else ",".join(value)]
    words += ["--criterion", criterion, *(["--randomised"] if randomised else []), "--least", str(least)]
    return shlex.join([*words, "--seed", str(seed)])
