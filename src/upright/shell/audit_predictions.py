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
``mean_client_disparity`` are its maximum and mean inside clients. `docs/audit-predictions.md` has files and errors.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upright.contract import Arm, InputError, Metric, UnitScores
from upright.maths.parity.rates import Criterion
from upright.metrics.fairness import GroupFairness, fairness_of, tabulate
from upright.shell.audit import DETECTABLE, MIN_GROUP, YOURS, Audit, suppress_small, write_audit
from upright.shell.audit_lists import plural, some
from upright.shell.evidence import DRAWS, evidence
from upright.shell.places import require_folder
from upright.shell.predictions import (
    MOST_ROWS,
    Cases,
    groupings_of,
    named_columns,
    read_cases,
    scores_of,
    unit_table,
)
from upright.shell.units import Block, Units

__all__ = ["CRITERIA_OF", "audit_predictions", "gaps_of"]

CRITERIA_OF: Mapping[Criterion, tuple[str, str]] = {
    "demographic_parity": ("predicted", "demographic parity"),
    "equal_opportunity": ("true_positive", "equal opportunity"),
    "equalized_odds": ("true_positive+false_positive", "equalized odds"),
}
MOST_CLIENTS = 50  # shown in tables of rates, those with the largest gaps
_METRIC_OF = {"decided": "predicted", "true positive": "true_positive", "false positive": "false_positive"}
_NAMES = ("disparity", "client_disparity", "mean_client_disparity")
Row = dict[str, Any]


def audit_predictions(
    file: Path | str, *,
    group: str | Sequence[str], client: str | None = None, label: str | None = None, prediction: str | None = None,
    proba: str | Sequence[str] | None = None, criterion: Criterion = "demographic_parity", positive: str | None = None,
    randomised: bool = False, least: int = 30, ids: str | None = None, out: Path | str, seed: int = 0,
    draws: int = DRAWS, command: str | None = None,
) -> Path:  # fmt: skip
    """Compare groups in how they are decided, and return the folder of the audit.

    Parameters
    ----------
    file : Path
        CSV, TSV or Parquet with a row a case.
    group : str or sequence of str
        Columns of groups: ``A,B`` each by itself, ``A*B`` their product and each by itself. The first one decides the
        verdict.
    client, label, ids : str, optional
        Columns of clients, of true classes and of ids.
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
    path = Path(file)
    columns = named_columns(proba) if proba is not None else []
    _check(criterion, label, prediction, columns, randomised, least, draws)
    require_folder(Path(out))
    groupings = groupings_of(group)
    cases = read_cases(path, groupings=groupings, client=client, label=label, prediction=prediction, proba=columns,
                       randomised=randomised, ids=ids)  # fmt: skip
    warnings = list(cases.warnings)
    by, left = _groups(cases, warnings, groupings)
    if positive is not None and positive not in cases.classes:
        raise InputError(f"--positive {positive!r}", ", ".join(map(repr, cases.classes)), "name one of the classes")
    last = [cases.classes[-1]] if len(cases.classes) == 2 else list(cases.classes)
    compared = [positive] if positive is not None else last
    values = scores_of(cases, [cases.classes.index(one) for one in compared])
    if cases.client is not None:
        by["client"] = cases.client
    if cases.label is not None:
        by["label"] = [cases.classes[c] for c in cases.label]
    computed = list(CRITERIA_OF) if cases.label is not None else [criterion]
    wanted = [criterion, *(c for c in computed if c != criterion)]
    scores = UnitScores("row", cases.ids, values, by)
    found = evidence(
        Units([Block("audit_predictions", YOURS, seed, scores)]), arms=[Arm(YOURS, "baseline", title="your decisions")],
        statistics=_statistics(list(left), wanted, values, cases.client is not None, compared),
        metrics=_metrics(values), draws=draws, seed=seed,
    )  # fmt: skip
    found["levels"] = [r for r in found["levels"] if not _rests_on_few(r)]
    tables = [_fairness(cases, by, name, c, compared, seed, draws, least) for name in left for c in wanted]
    for name, c, one in tables:
        _detectable(found["levels"], name, c, one)
    for level in found["levels"]:
        if level["grouping"] in groupings:  # one of one column is called group, which says little
            own = _named(groupings[level["grouping"]])
            level["label"] = level["label"].replace(f" groups of {level['grouping']}", f" groups of {own}")
    facts = [_same_ends(_facts(name, c, one), found["levels"]) for name, c, one in tables]
    name, _, top = tables[0]
    found["verdict"] |= _verdict(found["levels"], tables, groupings, criterion)
    if cases.client is not None:
        found["verdict"]["notes"] += _client_notes(top, least)
    n = len(cases.h)
    if n > MOST_ROWS:
        warnings.append(
            f"With more than {MOST_ROWS} rows, units.parquet holds one unit a cell with its number of rows."
        )
    given = {"group": group, "client": client, "label": label, "prediction": prediction, "proba": proba,
             "positive": positive, "id": ids}  # fmt: skip
    passed = {"file": path.name, **{k: v for k, v in given.items() if v is not None}}
    asks = f"whether groups of {_named(groupings[name])} are decided alike"
    return write_audit(
        Audit(
            kind="predictions", title=f"Audit of the decisions in {path.name}", arm_title="your decisions", asks=asks,
            data={"name": path.name, "rows": n, "classes": list(cases.classes),
                  "clients": len(set(cases.client)) if cases.client is not None else 0,
                  "groups": {g: len(set(by[g]) - {""}) for g in left}, "fingerprint": _fingerprint(path)},
            passed=passed,
            resolved={"groupings": {g: list(groupings[g]) for g in left}, "criterion": criterion,
                      "classes": list(cases.classes), "compared": compared, "randomised": randomised, "least": least,
                      "draws": draws},
            scores=unit_table(cases, by, values), metrics=_metrics(values), statistics=(), compared=(),
            facts={"criterion": criterion, "groupings": {g: list(groupings[g]) for g in left}, "least": least,
                   "classes": list(cases.classes), "compared": compared, "fairness": facts, "rows": n},
            warnings=warnings, command=command or _command(path, given, criterion, randomised, least, seed),
            evidence=found,
        ),
        Path(out), seed=seed, draws=draws,
    )  # fmt: skip


def _check(
    criterion: str, label: str | None, prediction: str | None, proba: Sequence[str], randomised: bool, least: int,
    draws: int,
) -> None:  # fmt: skip
    """Refuse options that do not fit together before a file is read."""
    for name, number, low in (("least", least, MIN_GROUP), ("draws", draws, 2)):
        if isinstance(number, bool) or not isinstance(number, int) or number < low:
            raise InputError(
                f"{name} = {number!r}", f"a whole number of at least {low}", f"set {name} to at least {low}"
            )
    if criterion not in CRITERIA_OF:
        raise InputError(f"criterion {criterion!r}", ", ".join(CRITERIA_OF), "name one of them")
    if (prediction is None) == (not proba):
        got = "both --prediction and --proba" if proba else "neither --prediction nor --proba"
        raise InputError(got, "decided classes, or probabilities of every class", "give one of the two")
    if randomised and not proba:
        raise InputError("--randomised with --prediction", "--randomised with --proba", "give the probabilities")
    if label is None and criterion != "demographic_parity":
        todo = "pass --label, or take demographic_parity, which needs none"
        raise InputError(f"criterion {criterion!r} without --label", "a column of true classes", todo)


def _groups(
    cases: Cases, warnings: list[str], groupings: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Sequence[str]], list[str]]:
    """Return groupings without groups of fewer than five rows, and the names of those that can be compared."""
    by: dict[str, Sequence[str]] = {}
    kept = []
    for name, labels in cases.groups.items():
        clean, small = suppress_small(labels, np.ones(len(labels), dtype=bool))
        if small:
            what = f"Groups of {_named(groupings[name])} with fewer than {MIN_GROUP} rows take no part: {some(small)}."
            warnings.append(what)
        groups = sorted(set(clean) - {""})
        if len(groups) > 1:
            by[name] = clean
            kept.append(name)
        elif not kept and not by and name == next(iter(cases.groups)):
            which = f"one group, {groups[0]!r}," if groups else "no group"
            raise InputError(
                f"{cases.path.name}: {_named(groupings[name])} has {which} of at least {MIN_GROUP} rows",
                f"at least 2 groups of {MIN_GROUP} rows", "name another column with --group, or merge small groups",
            )  # fmt: skip
        else:
            warnings.append(f"{_named(groupings[name])} has fewer than two groups, so nothing was compared there.")
    return by, kept


def _named(columns: Sequence[str]) -> str:
    return " and ".join(map(repr, columns))


def _statistics(
    groupings: Sequence[str], criteria: Sequence[Criterion], values: Mapping[str, Any], clients: bool,
    compared: Sequence[str],
) -> list[str]:  # fmt: skip
    """Return what the evidence holds: rates by group of the deciding criterion first, for that is drawn beside it."""
    names = _NAMES if clients else _NAMES[:1]
    prefixes = list(dict.fromkeys(p for c in criteria for p in CRITERIA_OF[c][0].split("+")))
    metrics = [f"{p}/{c}" for p in prefixes for c in compared] + (["accuracy"] if "accuracy" in values else [])
    found = [f"{name}:{CRITERIA_OF[c][0]}:{g}" for g in groupings for c in criteria for name in names]
    return found + [f"mean:{m}:{g}" for g in groupings for m in metrics] + [f"mean:{m}" for m in metrics]


def _metrics(values: Mapping[str, Any]) -> dict[str, Metric]:
    words = {"predicted": "Decided", "true_positive": "True positive rate,", "false_positive": "False positive rate,"}
    found = {"accuracy": Metric("accuracy", title="Accuracy")}
    for name in values:
        kind, slash, cls = name.partition("/")
        if slash:
            found[name] = Metric(name, title=f"{words[kind]} {cls!r}")
    for prefix, title in CRITERIA_OF.values():
        found[prefix] = Metric(prefix, "lower", title=title[:1].upper() + title[1:])
    return found


def _fairness(
    cases: Cases, by: Mapping[str, Sequence[str]], grouping: str, criterion: Criterion, compared: Sequence[str],
    seed: int, draws: int, least: int,
) -> tuple[str, Criterion, GroupFairness]:  # fmt: skip
    """Rates, gaps, small cells and conflicts of one grouping, over rows that have a group."""
    group = np.asarray(by[grouping], dtype=object)
    rows = np.flatnonzero(group != "")
    decided = cases.h[rows] if cases.randomised else [cases.classes[c] for c in cases.h[rows].argmax(axis=1)]
    label = None if cases.label is None else [cases.classes[c] for c in cases.label[rows]]
    client = None if cases.client is None else [cases.client[i] for i in rows.tolist()]
    table = tabulate(decided, group[rows], labels=label, clients=client, names=cases.classes)
    return (
        grouping,
        criterion,
        fairness_of(table, criterion, classes=compared, draws=draws, seed=seed, observations=least),
    )


def _detectable(levels: Sequence[Row], grouping: str, criterion: Criterion, found: GroupFairness) -> None:
    """Write the smallest gap that could have been shown beside each disparity: 2.8 standard errors at its place."""
    sizes = dict(zip(_NAMES, (found.summary["pairwise"][k] for k in ("global", "max", "mean")), strict=True))
    for level in levels:
        name, *rest = level["statistic"].split(":")
        size = sizes.get(name)
        if size is not None and rest == [CRITERIA_OF[criterion][0], grouping] and level["group"] is None:
            level["smallest_detectable"] = DETECTABLE * size["standard_error"]


def _facts(grouping: str, criterion: Criterion, found: GroupFairness) -> Row:
    """Return the tables of one grouping and criterion, numbers of cells under five rows left out."""
    wide = [r for r in found.gaps if r["client"] is not None and r["gap"] == "pairwise"]
    wide.sort(key=lambda r: (-r["value"] if math.isfinite(r["value"]) else math.inf, str(r["client"])))
    shown = {None, *(r["client"] for r in wide[:MOST_CLIENTS])}
    return {
        "grouping": grouping, "criterion": criterion, "groups": list(found.groups), "clients": len(found.clients),
        "summary": {kind: dict(sizes) for kind, sizes in found.summary.items()},
        "gaps": [_cut(r, r["smallest"], "value", "low", "high", "standard_error", "smallest") for r in found.gaps],
        "by_group": [_cut(r, r["n"], "n", "rate", "low", "high") for r in found.by_group if r["client"] in shown],
        "overall": [_cut(r, r["n"], "n", "rate", "low", "high") for r in found.overall if r["client"] in shown],
        "small": [_cut(r, r["n"], "n", "need") for r in found.small], "conflicts": list(found.conflicts),
        "clients_shown": min(len(wide), MOST_CLIENTS),
    }  # fmt: skip


def _same_ends(facts: Row, levels: Sequence[Row]) -> Row:
    """Give numbers that the evidence holds too the intervals of the evidence, so that a page says each once."""
    ends = {(r["statistic"], r["group"]): {k: r[k] for k in ("low", "high")} for r in levels}
    prefix, grouping = CRITERIA_OF[facts["criterion"]][0], facts["grouping"]
    for name, key in zip(_NAMES, ("global", "max", "mean"), strict=True):
        size = facts["summary"]["pairwise"][key]
        if size is not None:
            facts["summary"]["pairwise"][key] = size | ends.get((f"{name}:{prefix}:{grouping}", None), {})
    for row in facts["by_group"]:
        if row["client"] is None and not row["few"]:
            metric = f"{_METRIC_OF[row['stratum']]}/{row['class']}"
            row |= ends.get((f"mean:{metric}:{grouping}", row["group"]), {})
    return facts


def _cut(row: Mapping[str, Any], n: int, *keys: str) -> Row:
    """Return a row whose numbers are taken out when it rests on one to four rows."""
    few = 0 < n < MIN_GROUP
    return {**row, **dict.fromkeys(keys if few else ()), "few": few}


# -- words ----------------------------------------------------------------------------------------------------------


def _rests_on_few(row: Mapping[str, Any]) -> bool:
    """Whether a level is the mean of one to four rows, which says too much about each."""
    mean = row["statistic"].startswith("mean:") and row["group"] is not None
    return bool(mean and 0 < row["n_units"] < MIN_GROUP)


def _level(levels: Sequence[Row], name: str, criterion: Criterion, grouping: str) -> Row:
    text = f"{name}:{CRITERIA_OF[criterion][0]}:{grouping}"
    return next(r for r in levels if r["statistic"] == text and r["group"] is None)


def _ends(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"


def _side(row: Mapping[str, Any]) -> str:
    """Whether a disparity is more than permuted groups show."""
    null = row["null"]
    side = "outside" if row["value"] > null["high"] else "inside"
    return (f"{side} what random groups would show (on average {null['expected_abs']:.4f}, in 95 % of cases below "
            f"{null['high']:.4f})")  # fmt: skip


def _verdict(
    levels: Sequence[Row], tables: Sequence[tuple[str, Criterion, GroupFairness]],
    groupings: Mapping[str, Sequence[str]], criterion: Criterion,
) -> Row:  # fmt: skip
    """Return word, sentence and notes: the largest gap of the deciding criterion, where, and what chance would show."""
    grouping, _, top = tables[0]
    columns = groupings[grouping]
    title, main = CRITERIA_OF[criterion][1], _level(levels, "disparity", criterion, grouping)
    notes: list[str] = []
    primary = {"primary": f"disparity:{CRITERIA_OF[criterion][0]}:{grouping}", "cost_statistic": None}
    if not math.isfinite(main["value"]):
        sentence = f"No two groups of {_named(columns)} can be compared in {title}."
        return {"word": "measured", "sentence": sentence, "notes": notes, "not_significant": [], **primary}
    place = next(r for r in top.gaps if r["client"] is None and r["gap"] == "pairwise")
    where = {"decided": f"decided {place['class']!r}", "true positive": f"decided {place['class']!r} when that is the "
             "label", "false positive": f"decided {place['class']!r} when it is not the label"}  # fmt: skip
    sentence = (
        f"The largest gap in {title} between groups of {_named(columns)} is {_ends(main)}: {place['first']!r} is more "
        f"often {where[place['stratum']]} than {place['second']!r}. That is {_side(main)}; the smallest gap that this "
        f"table could have shown is {main['smallest_detectable']:.4f}."
    )
    if place["smallest"] < MIN_GROUP:
        notes.append(f"This gap rests on a cell of fewer than {MIN_GROUP} rows.")
    if any(r["statistic"].startswith("client_disparity:") for r in levels):
        worst, mean = (_level(levels, name, criterion, grouping) for name in _NAMES[1:])
        if math.isfinite(worst["value"]):
            notes.append(f"Inside clients the gap is at most {_ends(worst)}, {_side(worst)}. Its mean over clients is "
                         f"{_ends(mean)}, {_side(mean)}.")  # fmt: skip
    shown = main["value"] > main["null"]["high"] and main["low"] > 0.0
    quiet = [f"{r['label']}: {_ends(r)}, {_side(r)}" for r in levels if r["statistic"].split(":")[0] in _NAMES
             and r["group"] is None and r["null"] and not r["value"] > r["null"]["high"]]  # fmt: skip
    for name, c, one in tables:
        if one.conflicts:
            many = plural(len({r["client"] for r in one.conflicts}), "client")
            notes.append(
                f"In {CRITERIA_OF[c][1]} by {_named(groupings[name])}, gaps at {many} point the other way than overall."
            )
    return {"word": "gap shown" if shown else "no gap shown", "sentence": sentence, "notes": notes,
            "not_significant": quiet, **primary}  # fmt: skip


def _client_notes(found: GroupFairness, least: int) -> list[str]:
    worst = found.summary["pairwise"]["max"]
    place = next((r for r in found.gaps if worst and r["client"] == worst["client"] and r["gap"] == "pairwise"), None)
    notes = []
    if place is not None and 0 < place["smallest"] < MIN_GROUP:
        notes.append(f"The largest gap inside a client rests on a cell of fewer than {MIN_GROUP} rows.")
    elif place is not None and place["first"] is not None:
        cell = plural(place["smallest"], "row")
        notes.append(f"The client with the largest gap is {place['client']!r}; its smaller cell there has {cell}.")
    small = sum(r["client"] is not None for r in found.small)
    if small:
        notes.append(f"{plural(small, 'cell')} of clients and groups may hold no more than {least} rows: too few to "
                     "certify a gap there.")  # fmt: skip
    return notes


def gaps_of(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the disparities of a summary as a terminal shows them."""
    rows = []
    for level in summary["evidence"]["levels"]:
        name = level["statistic"].split(":")[0]
        if name in _NAMES and level["group"] is None:
            null = level["null"] or {}
            numbers = [level["value"], level["low"], level["high"], null.get("high")]
            shown = [f"{v:.4f}" if v is not None else "undefined" for v in numbers]
            rows.append({"gap": level["label"], "value": shown[0], "interval": f"{shown[1]} to {shown[2]}",
                         "by chance": f"up to {shown[3]}"})  # fmt: skip
    return rows


def _fingerprint(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _command(
    path: Path, given: Mapping[str, Any], criterion: str, randomised: bool, least: int, seed: int
) -> str:  # fmt: skip
    words = ["upright", "audit", "predictions", path.name]
    for option, value in given.items():
        if value is not None:
            words += [f"--{option}", value if isinstance(value, str) else ",".join(value)]
    words += ["--criterion", criterion, *(["--randomised"] if randomised else []), "--least", str(least)]
    return shlex.join([*words, "--seed", str(seed)])
