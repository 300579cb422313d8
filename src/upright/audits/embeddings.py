r"""Audit of user vectors: how much of a private attribute an attacker reads off them. Nothing is trained but attackers.

Each table of vectors (*surface*) is attacked by every attacker under every protocol. An attack's scores become ranks of
the unit table; from there on it is the statistic ``leakage``, and every attack on every class is a comparison of an AUC
with 1/2 (`upright.maths.simultaneous.compare_aucs`), adjusted for all of them. The verdict is that of the comparison
that stands out most against chance, whichever protocol it has. `upright.metrics.attacks` holds attackers and protocols,
`docs/audit-embeddings.md` files, columns and errors.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.audits.folder import MIN_GROUP, YOURS, Audit, write_audit
from upright.audits.lists import plural, some
from upright.audits.tables import (
    FRAMES,
    Labels,
    Tables,
    Vectors,
    name_tables,
    parts_of,
    read_ids,
    read_labels,
    read_vectors,
)
from upright.contract import Arm, InputError, Metric, UnitScores, audit
from upright.declare import Intervals, Noted
from upright.evidence.bootstrap import DRAWS, Bootstrap
from upright.evidence.compute import evidence, margins_of
from upright.evidence.records import Level
from upright.evidence.statistics import parse
from upright.evidence.units import Block, Units
from upright.evidence.verdict import audit_verdict
from upright.experiment.places import require_folder
from upright.maths.simultaneous import Comparisons
from upright.metrics.attacks import AttackScores, Coded, attack, check_attackers, check_counts, code_labels
from upright.metrics.leakage import attack_curve, balanced_accuracy, rank_values

__all__ = ["Judged", "attacks_of", "audit_embeddings", "judge_attacks"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
GROUPING = "attribute"
LEAKAGE = f"leakage:attack:{GROUPING}"
METRIC = Metric("attack", "lower", 0.0, 0.5, 0.01, "Leakage")
WHO = {"logistic": "logistic regression", "mlp": "a neural network", "gbdt": "boosted trees"}
HOW = {"cross": "cross-fitted", "transfer": "trained on aligned users"}
_CURVE_LEAST = 8  # users of a class, below which no learning curve is drawn


# -- who is who -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Users:
    """Surfaces and labels in one order of users."""

    ids: list[str]
    surfaces: dict[str, Array]
    label: list[str]
    aligned: Bools | None
    unknown: list[str]  # labelled or aligned, and in no table


def _differ(a: str, one: Sequence[str], b: str, other: Sequence[str]) -> InputError:
    sides = [(a, sorted(set(one) - set(other))), (b, sorted(set(other) - set(one)))]
    got = "; ".join(f"{plural(len(ids), 'user')} only in {name}: {some(ids)}" for name, ids in sides if ids)
    return InputError(got, "the same users in every table", "leave out users that one of the tables lacks")


def _join(tables: Mapping[str, Vectors], labels: Labels, aligned: Sequence[str], by_id: bool, missing: str) -> _Users:
    """Put surfaces, labels and aligned users in one order, that of the ids."""
    rows = len(labels.label)
    own = labels.users or tuple(str(i) for i in range(rows))
    who: dict[str, tuple[str, ...]] = {}
    for surface, table in tables.items():
        if table.users is None and len(table.values) != rows:
            raise InputError(
                f"{table.path.name} has {plural(len(table.values), 'row')}, {labels.path.name} has {rows}",
                "one row of labels for each vector, in the same order",
                "pass --ids FILE with the user of each vector",
            )
        if table.users is not None and labels.users is None:
            raise InputError(
                f"{labels.path.name} has no column 'user', {table.path.name} names its users",
                "a column 'user' in both",
                "add the column to the labels",
            )
        who[surface] = table.users or own
    first = next(iter(tables))
    file = tables[first].path.name
    for surface, ids in who.items():
        if set(ids) != set(who[first]):
            raise _differ(file, who[first], tables[surface].path.name, ids)
    there = set(who[first])
    if not there & set(own):
        raise InputError(
            f"no user of {labels.path.name} is in {file}: {some(own)}",
            "the same users in both files",
            "write ids alike in both files (text is compared, so '1' is not '01')",
        )
    unknown = [one for one in own if one not in there]
    strangers = [one for one in aligned if one not in there]
    for what, found in ((f"users of {labels.path.name}", unknown), ("aligned users", strangers)):
        if found and missing == "error":
            raise InputError(
                f"{len(found)} {what} are not in {file}: {some(found)}",
                f"users that {file} holds",
                "correct the ids, or leave them out with --missing ignore (missing='ignore')",
            )
    # sorted, so that the order of rows cannot change a result; rows without ids have only their order
    order = sorted(there, key=lambda one: (len(one), one)) if by_id else list(who[first])
    place = {surface: {one: i for i, one in enumerate(users)} for surface, users in who.items()}
    known = dict(zip(own, labels.label, strict=True))
    mask: Bools | None = None
    if labels.aligned is not None:
        flag = dict(zip(own, labels.aligned.tolist(), strict=True))
        mask = np.array([flag.get(one, False) for one in order], dtype=bool)
    elif aligned:
        mask = np.isin(np.array(order, dtype=object), list(aligned))
    return _Users(
        order,
        {s: table.values[[place[s][one] for one in order]] for s, table in tables.items()},
        [known.get(one, "") for one in order],
        mask,
        list(dict.fromkeys([*unknown, *strangers])),
    )


# -- what attacks say -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """What attacks say.

    Parameters
    ----------
    scores : UnitScores
        Of the scored users: ranks, class, and the fold of each protocol that has several attackers.
    evidence : dict
        Levels, verdict and headline, as in ``summary.json``.
    rows : list of dict
        One an attack: leakage with interval and adjusted p; AUC of the class that stands out most, with interval; AUC
        of every class; balanced accuracy.
    """

    scores: UnitScores
    evidence: dict[str, Any]
    rows: list[dict[str, Any]]


def judge_attacks(
    found: Sequence[AttackScores],
    users: Sequence[Any],
    labels: Sequence[Any],
    attribute: str,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    margins: Mapping[str, float] | None = None,
) -> Judged:
    """Say what attacks read: intervals, p-values, words.

    Parameters
    ----------
    found : sequence of AttackScores
        From `upright.metrics.attacks.attack`.
    users, labels : sequence, shape (U,)
        Who was attacked, and the labels that were.
    attribute : str
        What the labels say, in words.
    draws, seed : int
        Of the bootstrap and of the null.
    margins : mapping of metric to float, optional
        Smallest leakage that matters, as ``attack`` or ''; 0.01 when not given.

    Raises
    ------
    InputError
        When the labels are not those of the attacks, or a class has a slash in its name.
    """
    right = [balanced_accuracy(one, labels) for one in found]
    coded, scored = code_labels(labels), np.flatnonzero(found[0].fold >= 0)
    classes, folds = [str(c) for c in coded.classes], {one.protocol: one.fold[scored] for one in found}
    if any("/" in name for name in classes):
        raise InputError(f"classes {classes}", "names without a slash, which parts the names of attacks", "rename them")
    values = {name: ranks[scored] for name, ranks in rank_values(found, classes).items()}
    by = {GROUPING: [classes[c] for c in coded.code[scored]]}
    by |= {f"fold_{protocol}": [str(f) for f in fold] for protocol, fold in folds.items() if fold.any()}
    scores = UnitScores("user", [users[u] for u in scored.tolist()], values, by)

    units, metrics = Units([Block("audit_embeddings", YOURS, seed, scores)]), {METRIC.name: METRIC}
    told = evidence(
        units,
        arms=[Arm(YOURS, "baseline")],
        statistics=[LEAKAGE, f"worst_{LEAKAGE}"],
        metrics=metrics,
        draws=draws,
        seed=seed,
    )
    for row in told["levels"]:
        row["label"] = row["label"].replace(f"of {GROUPING}", f"of {attribute}", 1)
    null: Any = parse(LEAKAGE, Bootstrap(units, 2, seed), metrics).null(YOURS, None)  # the comparisons of the levels
    seen: Comparisons = null[1]
    columns = [(one, c) for one in found for c in classes[len(classes) == 2 :]]
    pairs = _pairs(seen, columns, len(classes), attribute, len(scored))
    margin = margins_of({METRIC.name: METRIC.margin}, margins)[METRIC.name]
    said = audit_verdict("leak shown", pairs, margin=margin, unit="user")
    told["verdict"] = {**said.row(), "works": None, "primary": LEAKAGE}
    told["headline"] = said.headline.row() if said.headline else None
    levels = {row["group"]: row for row in told["levels"] if row["statistic"] == LEAKAGE}
    rows = []
    for one, accuracy in zip(found, right, strict=True):
        own = [k for k, (other, _) in enumerate(columns) if other is one]
        level = levels.get(cell_of(one), levels[None])  # of one attack alone
        rows.append(_row(one, level, seen, {k: columns[k][1] for k in own}, classes, accuracy))
    return Judged(scores, told, rows)


def _pairs(
    seen: Comparisons, columns: Sequence[tuple[AttackScores, str]], classes: int, attribute: str, n: int
) -> list[Level]:
    """Return what every attack reads of every class (of two classes one), adjusted, the largest T first."""
    pairs: list[Level] = []
    for k in np.argsort(-seen.score, kind="stable").tolist():
        one, name = columns[k]
        numbers = seen.numbers(k)
        label = words(one) if pairs else f"Leakage of {attribute} to {words(one)}"  # a sentence begins with the first
        cell = f"{cell_of(one)}/{name}" if classes > 2 else cell_of(one) if len(columns) > 1 else None
        pairs.append(
            Level(
                statistic=LEAKAGE,
                label=label if classes == 2 else f"{label}, class {name}",
                metric=METRIC.name,
                grouping=GROUPING,
                group=cell,  # of two classes that of the attack's level
                arm=YOURS,
                better="lower",
                n_units=n,
                **numbers | {"low": max(numbers["low"], 0.0)},
            )
        )
    return pairs


def _row(
    one: AttackScores,
    level: Mapping[str, Any],
    seen: Comparisons,
    of: Mapping[int, str],
    classes: Sequence[str],
    accuracy: float,
) -> dict[str, Any]:
    """Return the numbers of one attack: those of its level, and of its comparisons `of` classes."""
    best = max(of, key=lambda k: seen.score[k])
    aucs = np.resize(0.5 + seen.value[[*of]], len(classes)).tolist()  # of two classes both have the same
    return {
        "surface": one.surface,
        "attacker": one.attacker,
        "protocol": one.protocol,
        "leakage": level["value"],
        "leakage_low": level["low"],
        "leakage_high": level["high"],
        "p": level["p"],
        "class": of[best],
        "auc": 0.5 + float(seen.value[best]),
        "auc_low": 0.5 + float(seen.low[best]),
        "auc_high": 0.5 + float(seen.high[best]),
        "balanced_accuracy": accuracy,
        "converged": one.converged,
        "n": level["n_units"],
        **{f"auc[{name}]": value for name, value in zip(classes, aucs, strict=True)},
    }


def cell_of(one: AttackScores) -> str:
    """Return the name of an attack in statistics and metrics."""
    return f"{one.surface}/{one.attacker}/{one.protocol}"


def words(one: AttackScores) -> str:
    """Return the name of an attack in sentences."""
    return f"{WHO.get(one.attacker, one.attacker)} on {one.surface} ({HOW[one.protocol]})"


def attacks_of(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the attacks of a summary as a terminal shows them, the strongest first."""
    rows = sorted(summary["audit"]["rows"], key=lambda row: -row["leakage"])
    return [
        {
            "surface": row["surface"],
            "attacker": row["attacker"],
            "protocol": row["protocol"],
            "leakage": f"{row['leakage']:.3f} [{row['leakage_low']:.3f}, {row['leakage_high']:.3f}]",
            "AUC": f"{row['auc']:.3f}",
            "p": f"{row['p']:.3f}",
            "n": str(row["n"]),
        }
        for row in rows
    ]


# -- the audit ------------------------------------------------------------------------------------------------------


@audit(
    "embeddings",
    report=[
        Intervals(
            "Leakage by attacker and surface",
            "leakage:*",
            [
                "Leakage is the distance of an attacker's AUC from guessing: 0 is guessing, 0.5 is certainty. A "
                "cross-fitted attacker learns from other attacked users, a transfer attacker from those whom the "
                "defence knew."
            ],
        ),
        Intervals(
            "AUC of the strongest attacker by the number of users whose label it knows",
            "curve",
            [
                "Half of the users are scored. Mark: mean of some splits; line: the smallest and the largest of them. "
                "A curve that still rises says that an attacker with more known users would read more."
            ],
            by=("n",),
            value="auc",
        ),
        Noted(
            "Every attack",
            "rows",
            by={"surface": "Surface", "attacker": "Attacker", "protocol": "Protocol"},
            names={
                "leakage": "leakage",
                "auc": "AUC",
                "balanced_accuracy": "balanced accuracy",
                "p": "p, adjusted",
                "n": "users",
                "converged": "converged",
            },
        ),
        Noted(
            "Classes: users, and how well one class is told from the others",
            "classes",
            ["AUC is that of the strongest attack."],
            by={"class": "Class"},
            names={"n": "scored", "aligned": "aligned", "auc": "AUC"},
        ),
        Noted("Always naming the largest class", names={"majority": "Right for this share of the scored users"}),
    ],
    limits=[
        "There is no formal guarantee, such as differential privacy gives. Leakage is a lower bound: what the "
        "attackers named here read. An attacker that was not tried may do better.",
        "Intervals are those of these attackers: trained again on other users, they would read a little more or less.",
        "If a defence was fitted on the users that are scored, a low value is no evidence of privacy.",
        "It judges the vectors that were handed in, not the lists or scores made from them.",
    ],
)
def audit_embeddings(
    tables: Tables,
    labels: Path | str,
    *,
    attribute: str | None = None,
    aligned: Path | str | None = None,
    ids: Path | str | None = None,
    attackers: Sequence[str] = ("logistic", "mlp", "gbdt"),
    folds: int = 5,
    name: str | None = None,
    out: Path,
    seed: int = 0,
    missing: Literal["error", "ignore"] = "error",
    draws: int = DRAWS,
    repeats: int = 5,
    threads: int = 1,
    command: str | None = None,
    margins: Mapping[str, float] | None = None,
) -> Path:
    """Attack user vectors and return the folder of the audit.

    Parameters
    ----------
    tables : path, ``name=path``, sequence of them, or mapping of name to path
        One surface each: .npy, .safetensors, .parquet, .csv or .tsv, one row a user.
    labels : Path
        CSV, TSV or Parquet with ``user`` and the attribute; an empty cell is an unlabelled user.
    attribute : str, optional
        Column of `labels`; by default the only other one.
    aligned : Path or str, optional
        Users that a defence was fitted on: a file of ids, or a column of 0 and 1 in `labels`. They are never scored;
        attackers trained on them give a second row. Without it every labelled user counts as held out.
    ids : Path or str, optional
        Column of ids in tables that have columns (``user``), or a file of ids for those that have none.
    attackers : sequence of str
        Of `upright.metrics.attacks.ATTACKERS`.
    folds : int
        Of the cross-fitting, at least 2.
    name : str, optional
        Of the surface, when there is one table.
    out : Path
        Folder in which the audit's folder is made.
    seed : int
        Of folds, attackers, bootstrap and null.
    missing : {"error", "ignore"}
        What a label of a user without a vector is.
    draws : int
        Of the bootstrap, at least 2.
    repeats : int
        Of the learning curve, at least 2.
    threads : int
        Most threads of the attackers.
    command : str, optional
        What the report says to repeat it.
    margins : mapping of metric to float, optional
        Smallest leakage that matters, as ``attack`` or ''; 0.01 when not given.

    Returns
    -------
    Path
        ``summary.json`` (``kind`` is ``audit``), ``units.parquet``, ``config.json``, ``run.json``.

    Raises
    ------
    InputError
        For everything that is wrong with the files; no folder is made then.
    """
    for option, number, least in (
        ("folds", folds, 2),
        ("draws", draws, 2),
        ("repeats", repeats, 2),
        ("threads", threads, 1),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            got = f"{option} = {number!r}"
            raise InputError(got, f"a whole number of at least {least}", f"set {option} to at least {least}")
    if missing not in ("error", "ignore"):
        raise InputError(f"missing = {missing!r}", "'error' or 'ignore'", "choose one of the two")
    chosen = tuple(dict.fromkeys(check_attackers(attackers)))
    require_folder(Path(out))
    files = name_tables(tables, name)
    labels = Path(labels)
    id_file, id_column = _file_or_column(files, ids)
    aligned_file = Path(aligned) if aligned is not None and Path(aligned).is_file() else None
    column = str(aligned) if aligned is not None and aligned_file is None else None
    vectors = {s: read_vectors(path, user=id_column, ids=id_file) for s, path in files.items()}
    known = read_labels(labels, attribute, column)
    adapted = read_ids(aligned_file) if aligned_file else ()
    by_id = known.users is not None or any(table.users for table in vectors.values())
    users = _join(vectors, known, adapted, by_id, missing)

    coded = code_labels(users.label)
    labelled = coded.code >= 0
    held_out = None if users.aligned is None else ~users.aligned
    if users.aligned is not None:
        _both_sides(labelled, users.aligned)
        check_counts(coded, labelled & users.aligned, max(2 * folds, MIN_GROUP), "aligned")
    scored = labelled if held_out is None else labelled & held_out
    check_counts(coded, scored, max(2 * folds, MIN_GROUP), "labelled" if held_out is None else "held-out")

    settings: dict[str, Any] = {"held_out": held_out, "seed": seed, "threads": threads}
    found = attack(users.surfaces, users.label, attackers=chosen, folds=folds, **settings)
    judged = judge_attacks(found, users.ids, users.label, known.attribute, draws=draws, seed=seed, margins=margins)
    strongest = next(x for x in judged.evidence["levels"] if x["statistic"] == LEAKAGE and x["group"] is None)
    top = next(one for one in found if cell_of(one) == strongest["attack"])
    curve: list[dict[str, Any]] = []
    if np.bincount(coded.code[scored]).min() >= _CURVE_LEAST:
        surface = users.surfaces[top.surface]
        curve = attack_curve(surface, users.label, attacker=top.attacker, repeats=repeats, **settings)

    warnings = _warnings(users, found, labels.name, missing, held_out is None, bool(curve))
    unnamed = [table.path.name for table in vectors.values() if not table.users]
    if unnamed and known.users is not None:
        warnings.append(
            f"Rows of {', '.join(unnamed)} were matched to rows of {labels.name} by position. If they stand in another "
            "order every number is wrong: pass --ids with the user of each row."
        )
    counts = _counts(coded, scored, labelled & ~scored)
    named = parts_of(next(iter(files.values())))[0].name
    name_of_data = named if len(files) == 1 else f"{named} and {len(files) - 1} more"
    paths = [*(parts_of(path)[0] for path in files.values()), labels, *filter(None, (aligned_file, id_file))]
    passed = {"tables": {s: path.name for s, path in files.items()}, "labels": labels.name}
    passed |= {"attribute": attribute} if attribute else {}
    passed |= {"aligned": Path(aligned).name} if aligned is not None else {}
    passed |= {"ids": Path(ids).name} if ids is not None else {}
    return write_audit(
        Audit(
            kind="embeddings",
            title=f"Audit of the user vectors in {name_of_data}",
            arm_title="your vectors",
            asks=f"how much of {known.attribute} an attacker reads off the vectors",
            data={
                "name": name_of_data,
                "users": len(users.ids),
                "labelled_users": int(labelled.sum()),
                "scored_users": int(scored.sum()),
                "aligned_users": int((labelled & ~scored).sum()),
                "attribute": known.attribute,
                "fingerprint": _fingerprint(paths),
            },
            passed=passed,
            resolved={
                "attribute": known.attribute,
                "attackers": list(chosen),
                "folds": folds,
                "missing": missing,
                "draws": draws,
                "repeats": repeats,
                "surfaces": {s: table.shape[1] for s, table in users.surfaces.items()},
            },
            scores=judged.scores,
            metrics={METRIC.name: METRIC},
            statistics=(),
            compared=(),
            evidence=judged.evidence,
            facts={
                "attribute": known.attribute,
                "protocols": sorted({one.protocol for one in found}),
                "rows": judged.rows,
                "strongest": strongest["attack"],
                "p_max": judged.evidence["headline"]["p"],
                "majority": max(sides["scored"] for sides in counts.values()) / int(scored.sum()),
                "classes": [
                    {
                        "class": name,
                        "n": sides["scored"],
                        "aligned": sides["aligned"],
                        "auc": strongest.get(f"auc[{name}]"),
                    }
                    for name, sides in counts.items()
                ],
                "curve": curve,
                "curve_of": f"{top.attacker} on {top.surface}" if curve else None,
                "surfaces": {s: table.shape[1] for s, table in users.surfaces.items()},
                "unlabelled_users": int((~labelled).sum()),
                "unknown_users": len(users.unknown),
                "folds": folds,
            },
            warnings=warnings,
            command=command or _command(files, labels, attribute, aligned, ids, chosen, folds, missing, seed),
        ),
        Path(out),
        seed=seed,
        draws=draws,
    )


def _file_or_column(files: Mapping[str, Path], ids: Path | str | None) -> tuple[Path | None, str]:
    """Take ``ids`` as a file when it is one; tables without columns can take nothing else."""
    if ids is None:
        return None, "user"
    if Path(ids).is_file():
        return Path(ids), "user"
    bare = [path.name for path in files.values() if parts_of(path)[0].suffix.lower() not in FRAMES]
    if bare:
        got = f"no file {ids}, and {bare[0]} has no columns"
        raise InputError(got, "a file with the user of each row", "check the path")
    return None, str(ids)


def _both_sides(labelled: Bools, aligned: Bools) -> None:
    for side, word in ((labelled & aligned, "aligned"), (labelled & ~aligned, "held out")):
        if not side.any():
            raise InputError(
                f"no labelled user is {word}",
                "labelled users on both sides, aligned and held out",
                "give labels of both, or leave out --aligned when no defence was fitted on anybody",
            )


def _counts(coded: Coded, scored: Bools, aligned: Bools) -> dict[str, dict[str, int]]:
    """Users of each class; a class of fewer than five on either side was refused before."""
    return {
        str(name): {"scored": int((coded.code[scored] == c).sum()), "aligned": int((coded.code[aligned] == c).sum())}
        for c, name in enumerate(coded.classes)
    }


def _warnings(
    users: _Users, found: Sequence[AttackScores], labels: str, missing: str, everybody: bool, curve: bool
) -> list[str]:
    """Return what weakens the audit."""
    warnings = []
    if everybody:
        warnings.append(
            "Every labelled user counts as held out. If a defence was fitted on these users, this is no evidence of "
            "privacy: name them with --aligned."
        )
    unlabelled = sum(not label for label in users.label)
    if unlabelled:
        warnings.append(f"{plural(unlabelled, 'user')} without a label took no part.")
    if users.unknown:
        count = plural(len(users.unknown), "user")
        warnings.append(f"{count} of {labels} or of the aligned users without a vector left out (missing={missing!r}).")
    stuck = [words(one) for one in found if not one.converged]
    if stuck:
        warnings.append(f"Attackers that did not converge, so leakage may be larger: {', '.join(stuck)}.")
    if not curve:
        warnings.append(f"No learning curve: a class has fewer than {_CURVE_LEAST} scored users.")
    if len({one.attacker for one in found}) == 1:
        warnings.append("One family of attackers: another may read what this one does not.")
    return warnings


def _fingerprint(paths: Sequence[Path]) -> str:
    """SHA-256 over the files in a fixed order of purpose."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _command(
    files: Mapping[str, Path],
    labels: Path,
    attribute: str | None,
    aligned: Path | str | None,
    ids: Path | str | None,
    attackers: Sequence[str],
    folds: int,
    missing: str,
    seed: int,
) -> str:
    words = ["upright", "audit", "embeddings", *(f"{s}={path.name}" for s, path in files.items())]
    words += ["--labels", labels.name, *(["--attribute", attribute] if attribute else [])]
    for option, value in (("--aligned", aligned), ("--ids", ids)):
        words += [option, Path(value).name] if value is not None else []
    words += ["--attackers", ",".join(attackers), "--folds", str(folds)]
    return shlex.join([*words, *(["--missing", missing] if missing == "ignore" else []), "--seed", str(seed)])
