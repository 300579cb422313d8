r"""User vectors in files: how much of a private attribute an attacker reads off them. Only attackers are trained.

Each table of vectors (*surface*) is attacked by every attacker under every protocol. An attack's scores become ranks of
the unit table; from there on it is the statistic ``leakage``, and every attack on every class is a comparison of an AUC
with 1/2 (`upright.maths.simultaneous.compare_aucs`), adjusted for all of them. The verdict is that of the comparison
that stands out most against chance, whichever protocol it has. `upright.metrics.attacks` holds attackers and protocols,
`docs/audit-embeddings.md` files, columns and errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from upright.contract import Arm, Config, File, InputError, Metric, PositiveInt, Range, UnitScores, audit
from upright.data.arrays import ARRAYS, file_and_name, read_ids, read_vectors
from upright.data.columns import Column, read_columns
from upright.data.formats import number_of, open_columns, some
from upright.declare import Intervals, Noted
from upright.evidence.bootstrap import DRAWS, Bootstrap
from upright.evidence.compute import evidence, margins_of
from upright.evidence.records import Level
from upright.evidence.statistics import parse
from upright.evidence.units import FEWEST, Block, Units
from upright.evidence.verdict import audit_verdict
from upright.maths.simultaneous import Comparisons
from upright.metrics.attacks import MOST_ROWS, AttackScores, attack, check_attackers, check_counts, code_labels
from upright.metrics.leakage import attack_curve, balanced_accuracy, rank_values
from upright.tasks.answers import YOURS, Answer, name_of, plural

__all__ = ["EmbeddingsConfig", "Judged", "judge_attacks", "read_embeddings"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
GROUPING = "attribute"
LEAKAGE = f"leakage:attack:{GROUPING}"
METRIC = Metric("attack", "lower", 0.0, 0.5, 0.01, "Leakage")
WHO = {"logistic": "logistic regression", "mlp": "a neural network", "gbdt": "boosted trees"}
HOW = {"cross": "cross-fitted", "transfer": "trained on aligned users"}
MOST_VALUES = 10  # of a numeric attribute; more is a quantity, not classes
_CURVE_LEAST = 8  # users of a class, below which no learning curve is drawn


class EmbeddingsConfig(Config):
    """Vectors, labels, and who was known to a defence."""

    tables: tuple[File, ...] | dict[str, File]
    """Vectors, one row a user: .npy, .npz, .safetensors, .pt or a table; several as `name=path`, tensors as
    `path::name`."""
    labels: File
    """A table with user and attribute; an empty cell is an unlabelled user."""
    attribute: str | None = None
    """Column of the labels; the only other one otherwise."""
    aligned: File | None = None
    """Users that a defence was fitted on: a file of ids, or a column of 0 and 1 in the labels. They are never scored;
    attackers trained on them give a second row. Without it every labelled user counts as held out."""
    ids: File | None = None
    """A file with the user of each row, for vectors without ids; or the column of users in tables."""
    by_position: bool = False
    """Take the rows of vectors without ids for those of the labels, in the same order."""
    attackers: tuple[str, ...] = ("logistic", "mlp", "gbdt")
    """Which attackers are tried."""
    folds: Annotated[int, Range(ge=2)] = 5
    """Of the cross-fitting."""
    name: str | None = None
    """What the vectors are called, when there is one table."""
    missing: Literal["error", "ignore"] = "error"
    """What a label of a user without a vector is."""
    repeats: Annotated[int, Range(ge=2)] = 5
    """Of the learning curve."""
    threads: PositiveInt = 1
    """Most threads of the attackers."""
    user: str | None = None
    """Column of users in the labels; one of the usual names otherwise."""
    encoding: str = "utf-8"
    """Of text files."""


# -- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Labels:
    """Attribute of each row, "" where it is not known; `users` is None in a file without ids."""

    file: str
    attribute: str
    label: tuple[str, ...]
    users: tuple[str, ...] | None
    aligned: Bools | None


def name_tables(given: Any, name: str | None = None) -> dict[str, Any]:
    """Return the file of each surface: the name before ``=``, else that after ``::``, else the stem of the file.

    Raises
    ------
    InputError
        Without a table, for a name given twice, with a slash, or for several tables.
    """
    named = list(given.items()) if isinstance(given, Mapping) else [_name_table(one) for one in given]
    if not named:
        raise InputError("no table of vectors", "at least one", "name a .npy, .safetensors, .parquet or .csv file")
    if name is not None:
        if len(named) > 1:
            got = f"one name {name!r} for {len(named)} tables"
            raise InputError(got, "a name for one table", "write name=path for each table")
        named = [(name, named[0][1])]
    names = [surface for surface, _ in named]
    for surface in names:
        if not surface or "/" in surface or names.count(surface) > 1:
            got = f"surface {surface!r}" + (" twice" if names.count(surface) > 1 else "")
            raise InputError(got, "names without a slash, each once", "write name=path for each table")
    return dict(named)


def _name_table(one: Any) -> tuple[str, Any]:
    if not isinstance(one, str | Path):
        return "vectors", one
    name, equals, path = str(one).partition("=")
    if equals and not Path(str(one)).exists() and "/" not in name:
        return name, path
    file, tensor = file_and_name(one)
    return tensor or file.stem, str(one)


def _read_labels(config: EmbeddingsConfig, aligned: str | None) -> _Labels:
    """Read the attribute of each user, and who was aligned when that is a column."""
    table = open_columns(config.labels, config.encoding, argument="labels")
    names = {} if config.user is None else {"user": config.user}
    user = Column("id", unique=True, optional=config.user is None)
    known = read_columns(table, {"user": user}, names)
    own = known.names.get("user", "user")
    rest = [name for name in table.header if name not in (own, aligned)]
    attribute = config.attribute
    if attribute is None:
        if len(rest) != 1:
            columns = ", ".join(map(repr, rest)) or "no column"
            todo = f"name the column: --attribute {rest[0] if rest else 'COLUMN'}"
            raise InputError(f"{table.name} has {columns} besides {own!r}", "one attribute, or its name", todo)
        attribute = rest[0]
    elif attribute in table.header and attribute not in rest:
        got = f"column {attribute!r} as the attribute"
        raise InputError(got, "a column of its own", "name another column with --attribute")
    wanted = {"attribute": Column("text", missing=True)}
    wanted |= {"aligned": Column("flag")} if aligned is not None else {}
    found = read_columns(table, wanted, {"attribute": attribute, "aligned": aligned})
    mask = found.array("aligned").astype(bool) if aligned is not None else None
    users = tuple(known["user"].to_list()) if "user" in known else None
    return _Labels(table.name, attribute, _classes(found["attribute"], table.name, attribute), users, mask)


def _classes(text: pl.Series, file: str, attribute: str) -> tuple[str, ...]:
    """Return classes as text; whole numbers lose ``.0``, numbers of many values are refused."""
    known = [one for one in text.unique().to_list() if one]
    numbers = {one: number_of(one) for one in known}
    if known and all(map(math.isfinite, numbers.values())):
        if len(set(numbers.values())) > MOST_VALUES:
            raise InputError(
                f"{file}: {attribute!r} has {len(set(numbers.values()))} different numbers",
                f"classes; numbers of at most {MOST_VALUES} values",
                "cut them into ranges, such as <25, 25-45, >=45",
            )
        shown = {one: str(int(value)) if value.is_integer() else repr(value) for one, value in numbers.items()}
        text = text.replace(shown)
    slash = sorted(one for one in known if "/" in one)
    if slash:
        got = f"{file}: {attribute!r} has the class {some(slash)}"
        raise InputError(got, "classes without a slash, which parts the names of attacks", "rename those classes")
    return tuple(text.to_list())


@dataclass(frozen=True, eq=False)
class _Users:
    """Surfaces and labels in one order of users."""

    ids: list[str]
    surfaces: dict[str, Array]
    label: list[str]
    aligned: Bools | None
    unknown: list[str]  # labelled or aligned, and in no table


def _join(
    config: EmbeddingsConfig,
    tables: Mapping[str, tuple[str, Array, tuple[str, ...] | None]],
    labels: _Labels,
    aligned: Sequence[str] | None,
) -> _Users:
    """Put surfaces, labels and aligned users in one order, that of the ids."""
    rows = len(labels.label)
    own = labels.users or tuple(str(i) for i in range(rows))
    who: dict[str, tuple[str, ...]] = {}
    for surface, (name, values, users) in tables.items():
        if users is None and labels.users is not None and not config.by_position:
            raise InputError(
                f"{name} has no ids, {labels.file} has: their rows may stand in another order",
                "the user of each row",
                "pass --ids FILE with one user a row, or --by-position when you are sure of the order",
            )
        if users is None and len(values) != rows:
            raise InputError(
                f"{name} has {plural(len(values), 'row')}, {labels.file} has {rows}",
                "one row of labels for each vector, in the same order",
                "pass --ids FILE with the user of each vector",
            )
        if users is not None and labels.users is None:
            got = f"{labels.file} has no column 'user', {name} names its users"
            raise InputError(got, "a column 'user' in both", "add the column to the labels")
        who[surface] = users or own
    first = next(iter(tables))
    file, there = tables[first][0], set(who[first])
    for surface, ids in who.items():
        if set(ids) != there:
            apart = ((file, sorted(there - set(ids))), (tables[surface][0], sorted(set(ids) - there)))
            got = "; ".join(f"{plural(len(one), 'user')} only in {name}: {some(one)}" for name, one in apart if one)
            raise InputError(got, "the same users in every table", "leave out users that one of the tables lacks")
    if not there & set(own):
        raise InputError(
            f"no user of {labels.file} is in {file}: {some(own)}",
            "the same users in both files",
            "write ids alike in both files (text is compared, so '1' is not '01')",
        )
    unknown = [one for one in own if one not in there]
    if labels.aligned is not None:
        aligned = list(itertools.compress(own, labels.aligned))
    strangers = [one for one in aligned or () if one not in there]
    for what, found in ((f"users of {labels.file}", unknown), ("aligned users", strangers)):
        if found and config.missing == "error":
            raise InputError(
                f"{len(found)} {what} are not in {file}: {some(found)}",
                f"users that {file} holds",
                "correct the ids, or leave them out with --missing ignore",
            )
    # sorted, so that the order of rows cannot change a result; rows without ids have only their order
    by_id = labels.users is not None or any(users for _, _, users in tables.values())
    order = sorted(there, key=lambda one: (len(one), one)) if by_id else list(who[first])
    place = {surface: {one: i for i, one in enumerate(users)} for surface, users in who.items()}
    known = dict(zip(own, labels.label, strict=True))
    return _Users(
        order,
        {s: values[[place[s][one] for one in order]] for s, (_, values, _) in tables.items()},
        [known.get(one, "") for one in order],
        None if aligned is None else np.isin(np.array(order, dtype=object), list(aligned)),
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
    boot = Bootstrap(units, draws, seed)
    arms, texts = [Arm(YOURS, "baseline")], [LEAKAGE, f"worst_{LEAKAGE}"]
    told = evidence(units, arms=arms, statistics=texts, metrics=metrics, draws=draws, boot=boot)
    for row in told["levels"]:
        row["label"] = row["label"].replace(f"of {GROUPING}", f"of {attribute}", 1)
    null: Any = parse(LEAKAGE, boot, metrics).null(YOURS, None)  # the comparisons of the levels
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
        best = max(own, key=lambda k: seen.score[k])
        aucs = np.resize(0.5 + seen.value[own], len(classes)).tolist()  # of two classes both have the same
        level = levels.get(cell_of(one), levels[None])  # of one attack alone
        rows.append(
            {
                "surface": one.surface,
                "attacker": one.attacker,
                "protocol": one.protocol,
                "leakage": level["value"],
                "leakage_low": level["low"],
                "leakage_high": level["high"],
                "p": level["p"],
                "class": columns[best][1],
                "auc": 0.5 + float(seen.value[best]),
                "auc_low": 0.5 + float(seen.low[best]),
                "auc_high": 0.5 + float(seen.high[best]),
                "balanced_accuracy": accuracy,
                "converged": one.converged,
                "n": level["n_units"],
                **{f"auc[{name}]": value for name, value in zip(classes, aucs, strict=True)},
            }
        )
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


def cell_of(one: AttackScores) -> str:
    """Return the name of an attack in statistics and metrics."""
    return f"{one.surface}/{one.attacker}/{one.protocol}"


def words(one: AttackScores) -> str:
    """Return the name of an attack in sentences."""
    return f"{WHO.get(one.attacker, one.attacker)} on {one.surface} ({HOW[one.protocol]})"


# -- the audit ------------------------------------------------------------------------------------------------------


@audit(
    "embeddings",
    config=EmbeddingsConfig,
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
def read_embeddings(config: EmbeddingsConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit user vectors: how much of a private attribute an attacker reads off them.

    Raises
    ------
    InputError
        For everything that is wrong with the files.
    """
    margins_of({METRIC.name: METRIC.margin}, margins)  # before anything is trained
    chosen = tuple(dict.fromkeys(check_attackers(config.attackers)))
    files = name_tables(config.tables, config.name)
    aligned_file, column = _file_or_column(config.aligned)
    id_file, id_column = _file_or_column(config.ids)
    known = _read_labels(config, column)
    owners, said = read_ids(id_file, config.encoding, argument="ids") if id_file is not None else (None, [])
    tables = {s: _read_table(s, source, id_column, id_file, owners, config.encoding) for s, source in files.items()}
    given = read_ids(aligned_file, config.encoding, argument="aligned") if aligned_file is not None else (None, [])
    users = _join(config, tables, known, given[0])

    coded, least = code_labels(users.label), max(2 * config.folds, FEWEST)
    labelled = coded.code >= 0
    held_out = None if users.aligned is None else ~users.aligned
    if users.aligned is not None:
        for side, word in ((users.aligned, "aligned"), (~users.aligned, "held out")):
            if not (labelled & side).any():
                raise InputError(
                    f"no labelled user is {word}",
                    "labelled users on both sides, aligned and held out",
                    "give labels of both, or leave out --aligned when no defence was fitted on anybody",
                )
        check_counts(coded, labelled & users.aligned, least, "aligned")
    scored = labelled if held_out is None else labelled & held_out
    check_counts(coded, scored, least, "labelled" if held_out is None else "held-out")

    settings: dict[str, Any] = {"held_out": held_out, "seed": seed, "threads": config.threads}
    found = attack(users.surfaces, users.label, attackers=chosen, folds=config.folds, **settings)
    judged = judge_attacks(found, users.ids, users.label, known.attribute, draws=draws, seed=seed, margins=margins)
    strongest = next(x for x in judged.evidence["levels"] if x["statistic"] == LEAKAGE and x["group"] is None)
    top = next(one for one in found if cell_of(one) == strongest["attack"])
    curve: list[dict[str, Any]] = []
    if np.bincount(coded.code[scored]).min() >= _CURVE_LEAST:
        surface = users.surfaces[top.surface]
        curve = attack_curve(surface, users.label, attacker=top.attacker, repeats=config.repeats, **settings)

    warnings = _warnings(users, found, known.file, config.missing, held_out is None, bool(curve))
    warnings += [*said, *given[1]]
    unnamed = [name for name, _, ids in tables.values() if not ids]
    if unnamed:
        warnings.append(
            f"Rows of {', '.join(unnamed)} were matched to rows of {known.file} by position. If they stand in another "
            "order every number is wrong: pass --ids with the user of each row."
        )
    most = int(scored.sum()) - int(scored.sum()) // config.folds
    if most > MOST_ROWS:
        warnings.append(f"Attackers learned from {MOST_ROWS} rows each, drawn of {most}; all users are scored.")
    sizes = [np.bincount(coded.code[mask], minlength=len(coded.classes)) for mask in (scored, labelled & ~scored)]
    classes = [
        {"class": str(name), "n": n, "aligned": aligned, "auc": strongest.get(f"auc[{name}]")}
        for name, n, aligned in zip(coded.classes, *(size.tolist() for size in sizes), strict=True)
    ]
    named = next(iter(tables.values()))[0]
    name_of_data = named if len(files) == 1 else f"{named} and {len(files) - 1} more"
    dimensions = {s: table.shape[1] for s, table in users.surfaces.items()}
    return Answer(
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
        },
        resolved={"attribute": known.attribute, "attackers": list(chosen), "surfaces": dimensions},
        scores=judged.scores,
        metrics={METRIC.name: METRIC},
        evidence=judged.evidence,
        facts={
            "rows": judged.rows,
            "strongest": strongest["attack"],
            "p_max": judged.evidence["headline"]["p"],
            "majority": max(row["n"] for row in classes) / int(scored.sum()),
            "classes": classes,
            "curve": curve,
            "curve_of": f"{top.attacker} on {top.surface}" if curve else None,
        },
        warnings=warnings,
    )


def _file_or_column(given: Any) -> tuple[Any, str | None]:
    """Return the file or data frame that was given, or the name of a column; None for the other."""
    named = isinstance(given, str | Path) and not Path(given).is_file()
    return (None, str(given)) if named else (given, None)


def _read_table(
    surface: str, source: Any, column: str | None, id_file: Any, owners: tuple[str, ...] | None, encoding: str
) -> tuple[str, Array, tuple[str, ...] | None]:
    """Return name, vectors and ids of one surface."""
    bare = isinstance(source, str | Path) and file_and_name(source)[0].suffix.lower() in ARRAYS
    name = name_of(file_and_name(source)[0]) if isinstance(source, str | Path) else "the vectors"
    if bare and column is not None:
        got = f"no file {column}, and {name} has no columns"
        raise InputError(got, "a file with the user of each row", "check the path")
    values, users = read_vectors(source, user=column, encoding=encoding, argument=surface)
    if owners is not None and (users is None or bare):
        if len(owners) != len(values):
            raise InputError(
                f"{name_of(id_file)} has {plural(len(owners), 'id')}, {name} has {plural(len(values), 'row')}",
                "one id for each row, in the same order",
                "export both from the same table",
            )
        users = owners
    return name, values, users


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
