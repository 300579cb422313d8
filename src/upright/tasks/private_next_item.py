"""Next-item recommendation with a private attribute: who gets good lists, and what an attacker reads off the model.

The unit is the user. Quality is that of `upright.tasks.next_item`, full ranking. Leakage is measured by attackers that
are trained after the fact on what the model exposes. Half of the users with a known attribute are *held out*, anew for
each seed: the defence is not fitted on them, though by default it knows their class and moves them by what it fitted on
others. Attackers are cross-fitted inside the held-out users (``cross``), trained on the fitted users and scored on the
held-out ones (``transfer``), and cross-fitted inside the fitted users (``aligned``), because in use all users are
fitted and a flipped answer reads those whom maps overshoot. Each score of each class is a metric
``attack/<surface>/<attacker>/<protocol>/<class>``, a rank in (0, 1) inside its fold.

=============  ========================================================================================================
``embedding``  the trained user rows; both halves of NeuMF's
``propagated`` user vectors after propagation, where that changes them (LightGCN)
``scores``     scores of every item
``lists``      the first k items, training items left out, as a 0/1 vector
=============  ========================================================================================================
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from upright.contract import InputError, Metric, NonNegativeInt, PositiveInt, Range, Run, UnitScores, stream
from upright.data.interactions import Split, read_user_columns, synthetic
from upright.lazy import LazyModule
from upright.metrics.attacks import attack
from upright.metrics.leakage import rank_values
from upright.tasks.next_item import QUALITY, NextItem, NextItemConfig

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

__all__ = ["GROUPING", "PrivateNextItem", "PrivateNextItemConfig", "classes_of"]

GROUPING = "attribute"
PROTOCOLS = ("cross", "transfer", "aligned")
Surface = Literal["embedding", "propagated", "scores", "lists"]


class PrivateNextItemConfig(NextItemConfig):
    """Data, backbone, attribute and attack."""

    attribute: str = "gender"
    """Column of the users. ``gender*age`` is their product; ``gender+age`` defends each for itself and measures the
    product, which a sum does not protect."""
    users_file: str | None = None
    """CSV, TSV or Parquet file of attributes, one row a user, for data that have none of their own."""
    users_id: str = "user"
    """Column of that file that holds the user's id as the interactions write it."""
    cuts: tuple[float, ...] = (25.0, 45.0)
    """Lower ends of the classes that a numeric attribute of more than ten values is cut into."""
    merge_below: NonNegativeInt = 0
    """Classes of fewer users are merged into one; 0 merges none."""
    known: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Share of the users with an attribute whose attribute anybody knows; the others are never scored."""
    holdout: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """Share of the known users that the defence is not fitted on, drawn anew for each seed; they alone are attacked."""
    held_out_known: bool = True
    """Whether the defence may know the class of held-out users, to move them by what it fitted on others. False asks
    how users fare who never told their class."""
    attacked: Literal["all", "tuning", "rest"] = "all"
    """Which users may be held out and attacked: all, a fixed quarter that strengths are tuned on, or the others."""
    surfaces: tuple[Surface, ...] = ("embedding", "propagated")
    """What is attacked."""
    attackers: tuple[Literal["logistic", "mlp", "gbdt"], ...] = ("logistic", "mlp", "gbdt")
    """Who attacks."""
    folds: Annotated[int, Range(ge=2)] = 5
    """Folds of the cross-fitting."""
    attack_threads: PositiveInt = 1
    """Threads of one attack."""

    def terms(self) -> list[list[str]]:
        """Return the columns of each term of the attribute.

        Raises
        ------
        InputError
            For a term without a column.
        """
        found = [[p.strip() for p in term.split("*") if p.strip()] for term in self.attribute.split("+")]
        if not all(found):
            got, accepted = f"attribute = {self.attribute!r}", "names of columns, joined by * or +"
            raise InputError(got, accepted, "name one attribute at least")
        return found


def classes_of(column: Any, cuts: tuple[float, ...] = (), merge_below: int = 0) -> NDArray[np.str_]:
    """Return the class of each user as text, "" where it is missing, shape (U,).

    Numbers with more than ten values are cut: ``<25``, ``25-45``, ``>=45``.
    """
    values = np.asarray(column)
    if cuts and np.issubdtype(values.dtype, np.number) and len(np.unique(values[values == values])) > 10:
        ends = [f"<{cuts[0]:g}", *(f"{a:g}-{b:g}" for a, b in itertools.pairwise(cuts)), f">={cuts[-1]:g}"]
        label = np.array(ends, dtype=object)[np.searchsorted(cuts, values, side="right")]
        label[values != values] = ""  # NaN
    else:
        written = ((v, f"{v:g}" if isinstance(v, float) else str(v)) for v in values.tolist())
        label = np.array(["" if v is None or v != v else text for v, text in written], dtype=object)
    names, size = np.unique(label[label != ""].astype(str), return_counts=True)
    for name in names[size < merge_below]:
        label[label == name] = "merged"
    plain = label.astype(str)
    return np.char.replace(plain, "/", " or ")  # a slash parts the names of attacks


class PrivateNextItem(NextItem):
    """A next-item task whose users have a private attribute.

    Parameters
    ----------
    split : Split
        With the attribute among ``user_columns``.
    config : PrivateNextItemConfig
    """

    Config = PrivateNextItemConfig
    config: PrivateNextItemConfig

    def __init__(self, split: Split, config: PrivateNextItemConfig) -> None:
        super().__init__(split, config)
        sums = config.terms()
        for name in (n for term in sums for n in term):
            if name not in split.user_columns:
                raise InputError(
                    f"attribute {name!r} of {split.name}",
                    ", ".join(sorted(split.user_columns)) or "data whose users have columns, or a file of them",
                    "name one of them, or several joined by * or +; or pass users_file=FILE with that column",
                )
        own = {n: classes_of(split.user_columns[n], config.cuts, config.merge_below) for term in sums for n in term}
        terms = [_product([own[n] for n in term]) for term in sums]
        hidden = np.random.default_rng(stream(config.split, "known")).random(self.n_users) >= config.known
        self.labels = np.where(hidden, "", _product(terms))  # (U,)
        self.terms = [np.where(hidden, "", term) for term in terms]
        self.classes = [str(c) for c in np.unique(self.labels[self.labels != ""])]
        size = {c: int((self.labels == c).sum()) for c in self.classes}
        for name, n in size.items() if len(self.classes) >= 2 else ():
            held = len(self._eligible(name))
            held = held if config.attacked == "tuning" else round(config.holdout * held)
            if min(held, n - held) < 2 * config.folds:
                raise InputError(
                    f"class {name!r} of {config.attribute} with {n} users, {held} of them held out",
                    f"{2 * config.folds} held-out users and {2 * config.folds} others of every class "
                    f"(holdout={config.holdout:g}, known={config.known:g}, attacked={config.attacked!r})",
                    "merge small classes (merge_below), lower folds, change holdout, or leave the class out",
                )
        if "propagated" in config.surfaces and config.backbone != "lightgcn" and len(config.surfaces) == 1:
            got = f"surfaces = propagated with {config.backbone}"
            raise InputError(got, "a surface that the backbone has", "take embedding: only lightgcn propagates")
        self.facts |= {"about": config.attribute, "attribute": config.attribute, "classes": size}
        self.metrics = self.metrics_of({**config.as_dict(), "classes": self.classes})

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the values mean; metrics of single attacks need ``classes``."""
        k = settings["k"]
        found = {f"{n}@{k}": Metric(f"{n}@{k}", title=f"{t}@{k}") for n, t in QUALITY.items()}
        found["attack"] = Metric("attack", "lower", 0.0, 0.5, 0.02, "Leakage")
        classes = list(settings.get("classes", ()))
        scored = classes[1:] if len(classes) == 2 else classes  # of two, the second one's scores say all
        attacks = settings.get("surfaces", ()), settings.get("attackers", ()), PROTOCOLS, scored
        for surface, attacker, protocol, c in itertools.product(*attacks):
            name = f"attack/{surface}/{attacker}/{protocol}/{c}"
            found[name] = Metric(name, "lower", title=f"rank for {c}")
        return found

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> PrivateNextItem:
        """Return a task on a small planted world whose communities are the attribute; float64."""
        settings: dict[str, Any] = {
            "data": "synthetic",
            "precision": "float64",
            "dim": 8,
            "group_share": 0.2,
            "attribute": "community",
            "attackers": ("logistic",),
            "folds": 3,
        } | changes
        return cls(synthetic(seed=seed, n_users=120, n_items=80), PrivateNextItemConfig(**settings))

    @classmethod
    def load(cls, config: Any, data_dir: str | None = None) -> PrivateNextItem:
        """Load the data and the attributes that a config names.

        Raises
        ------
        InputError
            For everything that `load_split` of the config and the reader of the users' file refuse, and a file in
            which no user of the data occurs.
        """
        split = config.load_split(data_dir)
        if config.users_file is not None:
            names = [name for term in config.terms() for name in term]
            read = read_user_columns(config.users_file, names, config.users_id)
            here = [u in next(iter(read.values())) for u in split.train.user_ids]
            if not any(here):
                got = f"{config.users_file}: none of its users is in {split.name}"
                todo = f"compare column {config.users_id!r} with the ids of the interactions"
                raise InputError(got, "ids written alike in both files", todo)
            columns = {n: _typed([read[n].get(u, "") for u in split.train.user_ids]) for n in names}
            split = dataclasses.replace(split, user_columns={**split.user_columns, **columns})
        return cls(split, config)

    def held_out(self, run: Run) -> NDArray[np.bool_]:
        """Return whom the defence is not fitted on at this seed, shape (U,); the same in every arm.

        Stratified: the share ``holdout`` of each class among the users that may be attacked, rounded; all of the users
        that strengths are tuned on.
        """
        rng, out = run.rng("holdout"), np.zeros(self.n_users, dtype=bool)
        for c in self.classes:
            own = self._eligible(c)
            if self.config.attacked != "tuning":
                own = rng.permutation(own)[: round(self.config.holdout * len(own))]
            out[own] = True
        return out

    def _eligible(self, c: str) -> NDArray[np.int64]:
        """Return the users of a class who may be held out: strengths are tuned on one quarter of all users."""
        quarter = np.random.default_rng(stream(self.config.split, "tuning users")).permutation(self.n_users) % 4 == 0
        may = {"tuning": quarter, "rest": ~quarter, "all": np.ones(self.n_users, dtype=bool)}[self.config.attacked]
        return np.flatnonzero(may & (self.labels == c))

    def known_labels(self, run: Run) -> list[NDArray[np.str_]]:
        """Return what the defence may know: one column of classes for each term, "" where it may not, (U,) each."""
        silent = int((self.labels == "").sum())
        if silent:
            run.warn(f"{silent} of {self.n_users} users have no known {self.config.attribute}; they are never attacked")
        if self.config.held_out_known:
            return [term.copy() for term in self.terms]
        hidden = self.held_out(run)
        return [np.where(hidden, "", term) for term in self.terms]

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score a model per user, and on test attack it.

        Raises
        ------
        InputError
            When the test split is asked for before the runner opened it.
        """
        quality = self.score_quality(result, split)
        if split == "valid":
            return quality
        return dataclasses.replace(quality, values={**quality.values, **self._attacked(result, run)})

    def _by(self) -> dict[str, list[str]]:
        return {GROUPING: self.labels.tolist()}

    def surfaces(self, result: Any) -> dict[str, Any]:
        """Return what the model exposes, one array of U rows a surface."""
        with torch.no_grad():
            served = result.tables()[0].detach()
            trained = result.ego(torch.arange(self.n_users), torch.arange(1))[0].detach()
        found: dict[str, Any] = {}
        for surface in self.config.surfaces:
            if surface == "embedding":
                found[surface] = trained.numpy()
            elif surface == "propagated" and (served.shape != trained.shape or not torch.equal(served, trained)):
                found[surface] = served.numpy()
            elif surface == "scores":
                found[surface] = self.scores_of(result)(np.arange(self.n_users))
            elif surface == "lists":
                found[surface] = self._lists(result)
        return found

    def _lists(self, result: Any) -> sparse.csr_array:
        scores = np.array(self.scores_of(result)(np.arange(self.n_users)), dtype=np.float64)
        row, col = self.seen.nonzero()
        scores[row, col] = -np.inf
        top = np.argsort(-scores, axis=1, kind="stable")[:, : self.config.k]  # (U, k)
        flat = (np.ones(top.size), (np.repeat(np.arange(self.n_users), top.shape[1]), top.ravel()))
        return sparse.csr_array(flat, shape=scores.shape)

    def _attacked(self, result: Any, run: Run) -> dict[str, NDArray[np.float64]]:
        if len(self.classes) < 2:
            return {}
        surfaces, held_out = self.surfaces(result), self.held_out(run)
        found = self.attack(surfaces, self.labels, run, held_out=held_out)
        fitted = self.attack(surfaces, np.where(held_out, "", self.labels), run)
        found += [dataclasses.replace(one, protocol="aligned") for one in fitted]
        stuck = [f"{a.attacker} on {a.surface} ({a.protocol})" for a in found if not a.converged]
        if stuck:
            run.warn(f"arm {run.arm}: attackers that did not converge, so leakage may be larger: {', '.join(stuck)}")
        return rank_values(found, self.classes)

    def attack(self, surfaces: Mapping[str, Any], labels: NDArray[np.str_], run: Run, **more: Any) -> list[Any]:
        """Attack what a model exposes of the users who have a label, shape (U,)."""
        c, seed = self.config, stream(run.seed, "attack")
        own = {"attackers": c.attackers, "folds": c.folds, "threads": c.attack_threads, **more}
        return attack(surfaces, labels.tolist(), seed=seed, **own)


def _typed(values: list[str]) -> NDArray[Any]:
    """Numbers where every value that is there is one (missing: NaN), text otherwise."""
    try:
        return np.array([float(v) if v else np.nan for v in values])
    except ValueError:
        return np.array(values, dtype=object)


def _product(columns: list[NDArray[np.str_]]) -> NDArray[np.str_]:
    missing = np.any([c == "" for c in columns], axis=0)
    joined = np.array([" & ".join(row) for row in zip(*columns, strict=True)], dtype=object)
    joined[missing] = ""
    return joined.astype(str)
