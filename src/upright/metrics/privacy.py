r"""Attribute inference: how much several attackers learn about a private attribute from any surface of a recommender.

`attribute_inference` attacks every surface under two protocols (`upright.metrics.attacks`) and reports AUC, flip-safe
leakage, intervals and the null of the strongest attack (`upright.metrics.leakage`). `attack_curve` shows how leakage
grows with the number of users that the attacker knows.

How to read it: the strongest attack counts, against the null of the strongest attack. An attack that has not converged
proves nothing when it is low. A low value is no guarantee either: another attacker may do better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, stream
from upright.maths.intervals import percentile
from upright.metrics.attacks import (
    ATTACKERS,
    AttackScores,
    Coded,
    Surface,
    attack,
    check_attackers,
    check_counts,
    check_mask,
    check_surface,
    code_labels,
    fit_score,
)
from upright.metrics.leakage import auc, balanced_accuracy, class_aucs, leakage, p_value, permuted, resampled

__all__ = [
    "ATTACKERS",
    "AttackRow",
    "AttackScores",
    "AttributeInference",
    "attack",
    "attack_curve",
    "attribute_inference",
    "auc",
    "leakage",
]

NOT_EVIDENCE = "not evidence"


@dataclass(frozen=True)
class AttackRow:
    """Result of one attacker on one surface under one protocol.

    Parameters
    ----------
    surface, attacker, protocol : str
        What was attacked, by whom, how.
    auc : mapping of class to float
        One against the rest, in [0, 1].
    macro_auc : float
        Mean of `auc` over classes.
    leakage, worst : float
        Mean and maximum over classes of ``|AUC - 1/2|``, in [0, 1/2].
    balanced_accuracy : float
        Mean recall over classes of the most probable class, in [0, 1]; 1/C for guessing.
    low, high : float
        Bootstrap interval of `macro_auc`, 95 %.
    leakage_low, leakage_high : float
        Bootstrap interval of `leakage`, 95 %; biased upwards near 0.
    p : float
        Chance that permuted labels leak as much, in (0, 1]; for this attack alone, see `AttributeInference.p_max`.
    converged : bool
        False when the attacker's optimiser stopped at its limit.
    n : int
        Users scored.
    note : str
        ``not evidence`` when the users may have been aligned, else empty.
    """

    surface: str
    attacker: str
    protocol: str
    auc: Mapping[Any, float]
    macro_auc: float
    leakage: float
    worst: float
    balanced_accuracy: float
    low: float
    high: float
    leakage_low: float
    leakage_high: float
    p: float
    converged: bool
    n: int
    note: str = ""


@dataclass(frozen=True)
class AttributeInference:
    """How much several attackers learn about an attribute; read `worst` first.

    Parameters
    ----------
    rows : tuple of AttackRow
        One per surface, attacker and protocol.
    majority : float
        Accuracy of always naming the largest class. Its balanced accuracy is 1/C and its AUC 1/2.
    classes : tuple
        Sorted.
    counts : tuple of int
        Scored users of each class.
    n_held_out, n_aligned : int
        Labelled users on either side of the mask.
    null : mapping
        Largest macro leakage over all rows when labels are permuted: ``expected`` (mean), ``high`` (95 % quantile).
    p_max : float
        Chance that the largest leakage over all rows is as high under permuted labels, in (0, 1].
    """

    rows: tuple[AttackRow, ...]
    majority: float
    classes: tuple[Any, ...]
    counts: tuple[int, ...]
    n_held_out: int
    n_aligned: int
    null: Mapping[str, float]
    p_max: float

    def worst(self) -> AttackRow:
        """Return the row with the largest macro leakage."""
        return max(self.rows, key=lambda row: row.leakage)

    def chance_band(self) -> tuple[float, float]:
        """Return the macro AUCs that the strongest of all attacks reaches in 95 % of permutations."""
        return 0.5 - self.null["high"], 0.5 + self.null["high"]

    def table(self) -> list[dict[str, Any]]:
        """Return the rows as dicts of plain values, AUCs under ``auc[class]``."""
        names = [name for name in AttackRow.__dataclass_fields__ if name != "auc"]
        return [
            {name: getattr(row, name) for name in names} | {f"auc[{name}]": value for name, value in row.auc.items()}
            for row in self.rows
        ]


def _who(holdout: Any, held_out: Any, allow_same_users: bool) -> tuple[Any, str]:
    """Return the mask of held-out users, or None, and the note of every row."""
    if not isinstance(holdout, str):
        if held_out is not None:
            raise InputError("a mask as holdout and as held_out", "one mask", "pass held_out alone")
        return holdout, ""
    if holdout == "users":
        return held_out, ""
    if holdout != "none":
        raise InputError(f"holdout = {holdout!r}", "'users', 'none' or a boolean mask", "pass the held-out users")
    if not allow_same_users:
        raise InputError(
            "holdout = 'none': attackers on the users that the defence was fitted on", "'users' or a boolean mask",
            "keep users out of the defence and pass their mask, or say allow_same_users=True for a row that is marked "
            f"{NOT_EVIDENCE!r}",
        )  # fmt: skip
    if held_out is not None:
        raise InputError("holdout = 'none' with a mask", "one of both", "drop holdout, keep held_out")
    return None, NOT_EVIDENCE


def attribute_inference(
    surfaces: Mapping[str, Surface] | Surface,
    labels: Iterable[Any],
    attackers: Sequence[str] = ("logistic", "mlp", "gbdt"),
    *,
    holdout: Any = "users",
    held_out: Any = None,
    folds: int = 5,
    draws: int = 2000,
    permutations: int = 1000,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[int], object] | None = None,
    allow_same_users: bool = False,
) -> AttributeInference:
    """Attack surfaces and report ``mean_c |AUC_c - 1/2|`` with intervals and the null of the strongest attack.

    Parameters
    ----------
    surfaces : array, sparse matrix, or mapping of name to them, shape (U, d)
        Everything that an attacker may see, each under its name; one array is called ``surface``.
    labels : sequence of str or int, shape (U,)
        None, "" or NaN marks an unlabelled user.
    attackers : sequence of str
        Keys of `ATTACKERS`. One family alone is no evidence of privacy.
    holdout : {"users", "none"} or mask of shape (U,)
        ``users``: users in `held_out`, or everybody when no defence used anybody. A mask is short for `held_out`.
        ``none``: the users that the defence was fitted on, refused without `allow_same_users`.
    held_out : mask, shape (U,), optional
        Users that the defence was not fitted on; then both protocols run.
    folds, seed, threads, progress
        As in `attack`.
    draws, permutations : int
        Bootstrap draws and permutations, at least 1.
    allow_same_users : bool
        Lets ``holdout="none"`` through and stamps every row ``not evidence``.

    Returns
    -------
    AttributeInference

    Raises
    ------
    InputError
        As `attack`; for ``holdout="none"`` alone; for draws or permutations below 1.
    """
    held_out, note = _who(holdout, held_out, allow_same_users)
    for name, value in (("draws", draws), ("permutations", permutations)):
        if value < 1:
            raise InputError(f"{name} = {value}", "an integer of at least 1", f"set {name} to at least 1")
    given = list(labels)
    tables = surfaces if isinstance(surfaces, Mapping) else {"surface": surfaces}
    found = attack(
        tables, given, attackers=attackers, held_out=held_out, folds=folds, seed=seed, threads=threads,
        progress=progress,
    )  # fmt: skip
    coded = code_labels(given)
    rows = np.flatnonzero(found[0].fold >= 0)
    aucs, leaks = resampled(found, coded, rows, draws, stream(seed, "attack", "bootstrap"))
    null = permuted(found, coded, rows, permutations, stream(seed, "attack", "permutations"))
    table = []
    for a, one in enumerate(found):
        each = class_aucs(one, coded, rows, np.ones((rows.size, 1)))[:, 0]
        gap = np.abs(each - 0.5)
        low, high = percentile(aucs[a], 0.95)
        leak_low, leak_high = percentile(leaks[a], 0.95)
        row = AttackRow(
            one.surface, one.attacker, one.protocol, dict(zip(coded.classes, each.tolist(), strict=True)),
            float(each.mean()), float(gap.mean()), float(gap.max()), balanced_accuracy(one, coded, rows),
            low, high, leak_low, leak_high, p_value(null[a], float(gap.mean())), one.converged, rows.size, note,
        )  # fmt: skip
        table.append(row)
    counts = np.bincount(coded.code[rows], minlength=len(coded.classes))
    highest = null.max(axis=0)
    return AttributeInference(
        tuple(table), float(counts.max() / counts.sum()), coded.classes, tuple(counts.tolist()), rows.size,
        int((coded.code >= 0).sum()) - rows.size,
        {"expected": float(highest.mean()), "high": float(np.quantile(highest, 0.95))},
        p_value(highest, max(row.leakage for row in table)),
    )  # fmt: skip


def _halves(
    code: NDArray[np.int64], users: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split each class at random; the larger half comes first."""
    mixed = [rng.permutation(users[code[users] == c]) for c in np.unique(code[users])]
    first = [members[: (members.size + 1) // 2] for members in mixed]
    second = [members[(members.size + 1) // 2 :] for members in mixed]
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _prefixes(code: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return places in an order whose every prefix is nearly stratified and begins with two of each class."""
    key = np.empty(code.size)
    for c in np.unique(code):
        members = rng.permutation(np.flatnonzero(code == c))
        key[members] = (np.arange(members.size) + 0.5) / members.size
        key[members[:2]] = -1.0
    return np.lexsort((rng.random(code.size), key))


def attack_curve(
    surface: Surface,
    labels: Iterable[Any],
    *,
    attacker: str = "logistic",
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    held_out: Any = None,
    seed: int = 0,
    threads: int = 1,
) -> list[dict[str, Any]]:
    """Leakage against the number of users whose attribute the attacker knows.

    Each repeat splits the labelled held-out users into a stratified half to score and a half to know, and trains on the
    first n of the latter: the users of a smaller n are among those of a larger one.

    Parameters
    ----------
    surface : array or sparse matrix, shape (U, d)
    labels : sequence, shape (U,)
    attacker : str
        A key of `ATTACKERS`.
    sizes : sequence of int, optional
        Numbers of known users, each from 2 C to half of the users. By default 25, 50, 100, ... and that half.
    repeats : int
        At least 2, for the spread.
    held_out : mask, shape (U,), optional
        Users that the defence was not fitted on; all by default.
    seed, threads : int
        As in `attack`.

    Returns
    -------
    list of dict
        ``n``, ``auc`` (mean macro AUC over repeats), ``sd`` and ``low``, ``high`` (smallest and largest repeat),
        ``leakage`` (mean over repeats of the mean of ``|AUC_c - 1/2|``), ``repeats``, ``converged``.

    Raises
    ------
    InputError
        For bad labels, surfaces and masks as in `attack`, a class of fewer than 8 users, sizes or repeats out of range.
    """
    from threadpoolctl import threadpool_limits

    (attacker,) = check_attackers(attacker)
    coded = code_labels(labels)
    n_classes = len(coded.classes)
    table = check_surface("surface", surface, coded.code.size)
    mask = coded.code >= 0
    if held_out is not None:
        mask = mask & check_mask(held_out, mask.size)
    check_counts(coded, mask, 8, "held-out" if held_out is not None else "labelled")
    users = np.flatnonzero(mask)
    most = users.size // 2
    if repeats < 2:
        raise InputError(f"repeats = {repeats}", "an integer of at least 2", "set repeats to 2 or more")
    if sizes is None:
        smaller = [25 * 2**i for i in range(20) if 2 * n_classes <= 25 * 2**i < most]
        sizes = [*smaller, most]
    bad = [size for size in sizes if not 2 * n_classes <= size <= most]
    if bad or not len(sizes):
        got = f"sizes = {list(sizes)}"
        raise InputError(got, f"numbers from {2 * n_classes} to {most}, half of the users", f"leave out {bad}")
    values: dict[int, list[tuple[float, float, bool]]] = {int(size): [] for size in sizes}
    with threadpool_limits(limits=threads):
        for repeat in range(repeats):
            rng = np.random.default_rng(stream(seed, "curve", repeat))
            known, scored = _halves(coded.code, users, rng)
            known = known[_prefixes(coded.code[known], rng)]
            for size in values:
                own = stream(seed, "curve", repeat, size)
                scores, fine = fit_score(attacker, own, table, coded.code, known[:size], scored, n_classes)
                part = AttackScores("surface", attacker, "curve", scores, np.zeros(scored.size, np.int64), fine)
                small = Coded(coded.classes, coded.code[scored])
                each = class_aucs(part, small, np.arange(scored.size), np.ones((scored.size, 1)))
                values[size].append((float(each.mean()), float(np.abs(each - 0.5).mean()), fine))
    out = []
    for size, found in values.items():
        aucs = np.array([value for value, _, _ in found])
        out.append({
            "n": size, "auc": float(aucs.mean()), "sd": float(aucs.std(ddof=1)), "low": float(aucs.min()),
            "high": float(aucs.max()), "leakage": float(np.mean([leak for _, leak, _ in found])), "repeats": repeats,
            "converged": all(fine for _, _, fine in found),
        })  # fmt: skip
    return out
