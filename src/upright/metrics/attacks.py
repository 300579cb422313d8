r"""Attackers that infer a private attribute of users from what a recommender exposes of them.

Problem
-------
Of U users the attacker sees a *surface* ``x`` (U, d): embeddings, propagated embeddings, item scores, or top-K lists as
0/1 rows. The attribute ``a_u in {1..C}`` is known for some of them. A classifier trained on known users gives

    scores_uc = P(a_u = c | x_u)        for users whose attribute it never saw

=============  ====================================================================================================
``cross``      Cross-fitting inside the held-out users: stratified folds, each user is scored by an attacker that was
               trained on the other folds. The headline.
``transfer``   One attacker trained on the aligned users (those a training-time defence has used), scored on the
               held-out ones.
=============  ====================================================================================================

Evaluating on users that the defence was fitted on is no evidence: AUC far below 1/2 there is an artefact that a
flipped answer exploits, and users outside look different. So nobody is scored in `transfer` who was aligned, and in
`cross` only held-out users take part.

Everything that is fitted (means and scales, the decomposition of wide surfaces, class weights, regularisation) is
fitted on the training rows of one fold.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import InputError, stream
from upright.maths.ranks import bin_edges

__all__ = [
    "ATTACKERS",
    "MOST_ROWS",
    "AttackScores",
    "Coded",
    "attack",
    "check_counts",
    "check_surface",
    "code_labels",
    "fit_score",
]

Surface = Any  # ndarray or scipy.sparse matrix, shape (U, d)
Array = NDArray[np.float64]
MOST_ROWS = 20_000  # that an attacker learns from, for its time

WIDE = 512  # columns from which the attackers that need dense, narrow input get a decomposition
COMPONENTS = 128
_GRID = (1e-3, 1e-2, 1e-1, 1.0)
_BINS = 64  # of the trees
_LARGEST = 1e150  # squares of larger values overflow


def _scaler(sparse: bool) -> Any:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler(with_mean=not sparse)  # centring would fill a sparse matrix


def _balanced(code: NDArray[np.int64]) -> Array:
    """Return weights under which all classes count alike, ``n / (C n_c)``, shape (n,)."""
    counts = np.bincount(code)
    return np.asarray((code.size / ((counts > 0).sum() * np.maximum(counts, 1)))[code])


def logistic(seed: int, n_train: int, *, smallest: int = 3, classes: int = 2, sparse: bool = False) -> Any:
    """Return a linear attacker: ``C`` in 0.001 .. 1 by inner 3-fold AUC, with balanced weights."""
    from sklearn.model_selection import StratifiedKFold

    return _Linear(StratifiedKFold(min(3, smallest), shuffle=True, random_state=seed), sparse)


@dataclass
class _Linear:
    """The search of scikit-learn's `GridSearchCV`, but rows are scaled once a fold and not once for every ``C``."""

    folds: Any
    sparse: bool

    def fit(self, rows: Surface, code: NDArray[np.int64]) -> _Linear:
        from sklearn import linear_model, metrics, pipeline

        def fit(x: Surface, y: NDArray[np.int64], *grid: float) -> tuple[Any, list[Any]]:
            scaler, weight = _scaler(self.sparse).fit(x), _balanced(y)
            models = [linear_model.LogisticRegression(C=c, max_iter=2000) for c in grid]
            return scaler, [one.fit(scaler.transform(x), y, sample_weight=weight) for one in models]

        areas = []
        for train, test in self.folds.split(code, code):
            scaler, models = fit(rows[train], code[train], *_GRID)
            x, y = scaler.transform(rows[test]), code[test]
            said = [one.decision_function(x) if code.max() == 1 else one.predict_proba(x) for one in models]
            areas.append([metrics.roc_auc_score(y, one, multi_class="ovr") for one in said])
        scaler, best = fit(rows, code, _GRID[int(np.mean(np.transpose(areas), axis=1).argmax())])
        self.predict_proba = pipeline.make_pipeline(scaler, *best).predict_proba
        return self


def mlp(seed: int, n_train: int, *, smallest: int = 3, classes: int = 2, sparse: bool = False) -> Any:
    """Return one hidden layer of 100 units, L2 of 3, balanced by sample weights.

    On shifted, rescaled and interacting Gaussian classes (300 to 3,000 users, 32 dimensions) this penalty without early
    stopping gave an AUC higher by 0.00 to 0.16 than early stopping with a penalty of 0.01, at a similar cost.
    """
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline

    model = MLPClassifier((100,), alpha=3.0, learning_rate_init=0.01, max_iter=500, random_state=seed)
    return make_pipeline(_scaler(sparse), model)


def gbdt(seed: int, n_train: int, *, smallest: int = 3, classes: int = 2, sparse: bool = False) -> Any:
    """Return 100 boosted trees of depth 4 over 64 bins, without early stopping, ``class_weight="balanced"``."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline

    model = HistGradientBoostingClassifier(
        max_iter=100, max_depth=4, max_bins=_BINS, min_samples_leaf=max(2, min(10, n_train // 20)),
        l2_regularization=10.0, early_stopping=False, class_weight="balanced", random_state=seed,
    )  # fmt: skip
    return make_pipeline(_scaler(sparse), _Binned(), model)


class _Binned:
    """The bins of scikit-learn's trees, quantiles under balanced weights, of a column sorted once and not for each."""

    def fit(self, rows: Array, code: NDArray[np.int64]) -> _Binned:
        self.edges = [bin_edges(column, _balanced(code), _BINS) for column in rows.T]
        return self

    def transform(self, rows: Array) -> Array:
        return np.stack([np.searchsorted(e, x) for e, x in zip(self.edges, rows.T, strict=True)], 1).astype(np.float64)


ATTACKERS: Mapping[str, Callable[..., Any]] = {"logistic": logistic, "mlp": mlp, "gbdt": gbdt}
"""Factories ``(seed, n_train, *, smallest, classes, sparse) -> classifier`` with ``fit`` and ``predict_proba``.

`smallest` is the size of the smallest class among the training rows, `classes` the number of classes. A pipeline whose
last step has no ``class_weight`` is given balanced sample weights, ``n / (C n_c)``.
"""

_DIRECT = ("logistic",)  # attackers that take wide and sparse surfaces as they are


@dataclass(frozen=True)
class AttackScores:
    """What one attacker says about every user, from one surface under one protocol.

    Parameters
    ----------
    surface, attacker, protocol : str
        What was attacked, by whom, and ``cross`` or ``transfer``.
    scores : ndarray of float64, shape (U, C)
        Predicted probability of each class, classes in sorted order; NaN for users that are not scored.
    fold : ndarray of int64, shape (U,)
        Which attacker scored a user; -1 where not scored. Scores of different folds are not comparable.
    converged : bool
        False when an optimiser of this attacker stopped at its limit: then a low score is no evidence.
    """

    surface: str
    attacker: str
    protocol: str
    scores: Array
    fold: NDArray[np.int64]
    converged: bool


@dataclass(frozen=True)
class Coded:
    """Labels as codes.

    Parameters
    ----------
    classes : tuple of str or int
        Sorted.
    code : ndarray of int64, shape (U,)
        Place in `classes`; -1 for an unlabelled user.
    """

    classes: tuple[Any, ...]
    code: NDArray[np.int64]


def _plain(value: Any) -> str | int | None:
    """Return a label as str or int, None for an unlabelled user."""
    one = value.item() if isinstance(value, np.generic) else value
    if one is None or one == "" or (isinstance(one, float) and math.isnan(one)):
        return None
    if isinstance(one, float) and one.is_integer():
        return int(one)  # a column of integers with holes arrives as floats
    if isinstance(one, str | int):
        return one
    raise InputError(
        f"label {one!r} of type {type(one).__name__}", "str or int; None, '' or NaN for unlabelled users",
        "name the classes; cut a continuous attribute into a few ranges",
    )  # fmt: skip


def code_labels(labels: Iterable[Any]) -> Coded:
    """Turn labels of shape (U,) into sorted classes and codes.

    Raises
    ------
    InputError
        When nobody is labelled, all labels are equal, or a label is neither str nor int.
    """
    plain = [_plain(value) for value in labels]
    classes = sorted({v for v in plain if v is not None}, key=lambda v: (isinstance(v, str), v))
    if len(classes) < 2:
        got = f"no labelled user among {len(plain)}" if not classes else f"one class only: {classes[0]!r}"
        raise InputError(got, "an attribute with at least two classes", "pass the attribute that is to stay private")
    place = {name: code for code, name in enumerate(classes)}
    code = [-1 if v is None else place[v] for v in plain]
    return Coded(tuple(classes), np.array(code, dtype=np.int64))


def check_counts(coded: Coded, users: NDArray[np.bool_], least: int, where: str) -> None:
    """Refuse classes with fewer than `least` labelled users among `users`, a mask of shape (U,)."""
    counts = np.bincount(coded.code[users & (coded.code >= 0)], minlength=len(coded.classes))
    small = [f"{name!r} has {n}" for name, n in zip(coded.classes, counts.tolist(), strict=True) if n < least]
    if small:
        alone = "; a class with one user would name that user" if (counts == 1).any() else ""
        raise InputError(
            f"too few {where} users in a class: {', '.join(small)}{alone}", f"at least {least} in every class",
            "merge small classes, leave their users unlabelled, or use fewer folds",
        )  # fmt: skip


def check_surface(name: str, surface: Surface, n_users: int) -> Surface:
    """Return a surface as float64, shape (U, d): an array, or a `scipy.sparse.csr_array` when sparse and wide.

    Raises
    ------
    InputError
        When it is not two-dimensional, has another number of rows, no column, or a value that is not finite.
    """
    from scipy import sparse

    is_sparse = sparse.issparse(surface)
    try:
        table: Any = sparse.csr_array(surface, dtype=np.float64) if is_sparse else np.asarray(surface, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"surface {name!r} of type {type(surface).__name__}", "a numeric array of shape (U, d), or scipy.sparse",
            "pass one row of numbers a user",
        ) from None  # fmt: skip
    if table.ndim != 2 or table.shape[0] != n_users or table.shape[1] < 1:
        raise InputError(
            f"surface {name!r} of shape {tuple(table.shape)} with {n_users} labels", f"shape ({n_users}, d), d >= 1",
            "give each user a row and a label, in one order; None where the attribute is not known",
        )  # fmt: skip
    values = table.data if is_sparse else table
    if not (np.abs(values) < _LARGEST).all():
        bad = values[~(np.abs(values) < _LARGEST)]
        raise InputError(
            f"surface {name!r} holds {bad[0]} ({bad.size} such values)", f"finite numbers below {_LARGEST:g}",
            "find where the model diverged; a score of -inf for seen items must be replaced before an attack",
        )  # fmt: skip
    return table.toarray() if is_sparse and table.shape[1] <= WIDE else table


def _constant(rows: Surface) -> bool:
    """Whether all rows are equal."""
    if isinstance(rows, np.ndarray):
        return bool((rows == rows[0]).all())
    # scipy counts absent entries as zeros
    return bool((rows.max(axis=0).toarray() == rows.min(axis=0).toarray()).all())


def _build(attacker: str, seed: int, table: Surface, train: NDArray[np.int64], code: NDArray[np.int64]) -> Any:
    """Return an unfitted attacker, behind a truncated SVD where the surface is too wide for it."""
    is_sparse = not isinstance(table, np.ndarray)
    counts = np.bincount(code[train])
    shape = {"smallest": int(counts[counts > 0].min()), "classes": int((counts > 0).sum())}
    if attacker in _DIRECT or table.shape[1] <= WIDE:
        return ATTACKERS[attacker](seed, train.size, **shape, sparse=is_sparse)
    from sklearn.decomposition import TruncatedSVD
    from sklearn.pipeline import make_pipeline

    narrow = TruncatedSVD(min(COMPONENTS, train.size - 1), random_state=seed)
    # the columns of a dense surface are centred first; 0/1 lists keep their zeros
    first = [narrow] if is_sparse else [_scaler(False), narrow]
    return make_pipeline(*first, *(step for _, step in ATTACKERS[attacker](seed, train.size, **shape).steps))


def _fit(model: Any, rows: Surface, code: NDArray[np.int64]) -> bool:
    """Fit with balanced classes and return whether the optimiser converged; other warnings are passed on."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import has_fit_parameter

    extra = {}
    if hasattr(model, "steps"):
        name, last = model.steps[-1]
        if "class_weight" not in last.get_params() and has_fit_parameter(last, "sample_weight"):
            extra = {f"{name}__sample_weight": _balanced(code)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, code, **extra)
    for one in caught:
        if not issubclass(one.category, ConvergenceWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return not any(issubclass(one.category, ConvergenceWarning) for one in caught)


def fit_score(
    attacker: str,
    seed: int,
    table: Surface,
    code: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    n_classes: int,
) -> tuple[Array, bool]:
    """Train on some rows and score others.

    Parameters
    ----------
    attacker : str
        A key of `ATTACKERS`.
    seed : int
        Of everything random in it.
    table : surface, shape (U, d)
        As `check_surface` returns it.
    code : ndarray of int64, shape (U,)
        Classes as codes.
    train, test : ndarray of int64
        Rows; codes of `test` are not read.
    n_classes : int
        C.

    Returns
    -------
    scores : ndarray, shape (len(test), C)
        Probabilities; 1/C everywhere when the training rows are all equal, because nothing can be learnt then.
    converged : bool

    Raises
    ------
    InputError
        When the attacker predicts NaN.
    """
    rows = table[train]
    if _constant(rows):
        return np.full((test.size, n_classes), 1.0 / n_classes), True
    # classes are numbered by first appearance, so that their names cannot change a result
    present, first = np.unique(code[train], return_index=True)
    present = present[np.argsort(first)]
    number = np.zeros(n_classes, dtype=np.int64)
    number[present] = np.arange(present.size)
    model = _build(attacker, seed % 2**32, table, train, code)
    converged = _fit(model, rows, number[code[train]])
    scores = np.zeros((test.size, n_classes))
    scores[:, present] = model.predict_proba(table[test])
    if np.isnan(scores).any():
        raise InputError(
            f"attacker {attacker!r} predicts NaN", "a surface on which it can be trained",
            "look for columns with huge values next to tiny ones",
        )  # fmt: skip
    return scores, converged


def stratified_folds(code: NDArray[np.int64], users: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each of `users`: each class is dealt out in random order, shape (len(users),)."""
    out = np.empty(users.size, dtype=np.int64)
    rng = np.random.default_rng(seed)
    begin = 0
    _, first = np.unique(code[users], return_index=True)
    for position in np.sort(first):  # by first appearance, so that names cannot change the folds
        members = np.flatnonzero(code[users] == code[users[position]])
        # the next class starts where the last one ended, so that folds differ by at most one user
        out[rng.permutation(members)] = (begin + np.arange(members.size)) % folds
        begin += members.size
    return out


def check_attackers(attackers: Sequence[str]) -> tuple[str, ...]:
    """Return attacker names that exist, or say which one was probably meant."""
    names = (attackers,) if isinstance(attackers, str) else tuple(attackers)
    for name in names or ("",):
        if name not in ATTACKERS:
            near = difflib.get_close_matches(str(name), list(ATTACKERS), n=1, cutoff=0.4)
            todo = f"did you mean {near[0]!r}?" if near else "choose from the list"
            raise InputError(f"attacker {name!r}", ", ".join(ATTACKERS), todo)
    return names


def check_mask(held_out: Any, n_users: int) -> NDArray[np.bool_]:
    """Return a mask of held-out users, shape (U,)."""
    mask = np.asarray(held_out)
    if mask.shape != (n_users,) or mask.dtype != np.bool_:
        raise InputError(
            f"held_out of shape {mask.shape} and type {mask.dtype}", f"a boolean mask of shape ({n_users},)",
            "mark with True every user that the defence was not fitted on",
        )  # fmt: skip
    return mask


def _at_most(rows: NDArray[np.int64], coded: Coded, seed: int, name: str | int) -> NDArray[np.int64]:
    """Return at most `MOST_ROWS` rows to learn from, those of rare classes among them."""
    if len(rows) <= MOST_ROWS:
        return rows
    mixed = np.random.default_rng(stream(seed, "attack", "rows", name)).permutation(rows)
    rare = np.bincount(coded.code[rows], minlength=len(coded.classes))[coded.code[mixed]] < MOST_ROWS // 100
    return np.sort(np.concatenate([mixed[rare], mixed[~rare]])[:MOST_ROWS])


def attack(
    surfaces: Mapping[str, Surface],
    labels: Iterable[Any],
    *,
    attackers: Sequence[str] = ("logistic", "mlp", "gbdt"),
    held_out: Any = None,
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
    threads: int = 1,
) -> list[AttackScores]:
    """Attack every surface with every attacker under every protocol that the mask allows.

    Logistic regression sees every surface as it is. The other attackers see sparse or dense surfaces wider than 512
    columns through a truncated SVD of 128 components, fitted on the training rows. An attacker learns from 20,000 rows
    at most, drawn at random with those of rare classes; all users are scored.

    Parameters
    ----------
    surfaces : mapping of name to array or scipy.sparse matrix, shape (U, d)
        What the attacker sees.
    labels : sequence of str or int, shape (U,)
        The attribute. None, "" or NaN marks an unlabelled user, who is never trained on or scored.
    attackers : sequence of str
        Keys of `ATTACKERS`.
    held_out : mask, shape (U,), optional
        Users that the defence was not fitted on. None: nobody was used by a defence; only `cross` runs.
    folds : int
        At least 2. The same folds for all surfaces and attackers.
    seed : int
        Names the random streams. A surface or attacker more changes nobody else's numbers.
    progress : callable, optional
        Called with 1 after each trained attacker: surfaces x attackers x (folds, plus 1 for transfer) times.
    threads : int
        Most threads of the linear algebra and of the trees.

    Returns
    -------
    list of AttackScores
        In order of surface, attacker, protocol.

    Raises
    ------
    InputError
        For labels with one class or with a class of fewer than ``2 folds`` held-out (or aligned) users, surfaces that
        do not fit, values that are not finite, a mask without aligned or held-out users, an unknown attacker.
    """
    from threadpoolctl import threadpool_limits

    names = check_attackers(attackers)
    for name, value, least in (("folds", folds, 2), ("threads", threads, 1)):
        if value < least:
            raise InputError(f"{name} = {value}", f"an integer of at least {least}", f"set {name} to {least} or more")
    if not surfaces:
        raise InputError("no surface", "a mapping of name to array of shape (U, d)", "pass what the attacker can see")
    coded = code_labels(labels)
    n, labelled = coded.code.size, coded.code >= 0
    tables = {name: check_surface(name, surface, n) for name, surface in surfaces.items()}
    mask = labelled if held_out is None else check_mask(held_out, n) & labelled
    if held_out is not None and not (labelled & ~mask).any():
        raise InputError(
            "held_out leaves no labelled user aligned", "a mask with users on both sides",
            "pass held_out=None when no user was used by a defence; then only the cross protocol runs",
        )  # fmt: skip
    check_counts(coded, mask, 2 * folds, "held-out" if held_out is not None else "labelled")
    scored, aligned = np.flatnonzero(mask), np.flatnonzero(labelled & ~mask)
    fold = np.full(n, -1, dtype=np.int64)
    fold[scored] = stratified_folds(coded.code, scored, folds, stream(seed, "attack", "folds"))
    plans = {
        "cross": [
            (_at_most(scored[fold[scored] != f], coded, seed, f), scored[fold[scored] == f]) for f in range(folds)
        ]
    }
    if aligned.size:
        check_counts(coded, labelled & ~mask, 2 * folds, "aligned")
        plans["transfer"] = [(_at_most(aligned, coded, seed, "aligned"), scored)]
    found = []
    with threadpool_limits(limits=threads):
        for surface, table in tables.items():
            for name in names:
                for protocol, plan in plans.items():
                    scores, parts, good = np.full((n, len(coded.classes)), np.nan), np.full(n, -1, np.int64), True
                    for f, (train, test) in enumerate(plan):
                        own = stream(seed, "attack", surface, name, protocol, f)
                        scores[test], fine = fit_score(name, own, table, coded.code, train, test, len(coded.classes))
                        parts[test] = f
                        good &= fine
                        if progress is not None:
                            progress(1)
                    found.append(AttackScores(surface, name, protocol, scores, parts, good))
    return found
