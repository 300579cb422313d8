"""Next-item recommendation: who gets good lists.

The unit is the user. Every metric is one value a user, under three protocols, because the sign of a gap between
groups depends on the protocol: full ranking of the catalogue, full ranking with a matched number of positives, and
the sampled one-against-ninety-nine protocol of older papers.

Groups are read off the training interactions only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from upright.contract import Config, InputError, Metric, NonNegativeInt, PositiveInt, Range, Run, UnitScores, stream
from upright.data.catalogue import CATALOGUE, load_split
from upright.data.interactions import Interactions, Split, synthetic
from upright.lazy import LazyModule
from upright.metrics import ranking
from upright.tasks.closed import Closed

if TYPE_CHECKING:
    import torch

    from upright.models import recommenders
else:
    torch = LazyModule("torch")
    recommenders = LazyModule("upright.models.recommenders")

__all__ = [
    "ADVANTAGED",
    "DISADVANTAGED",
    "InteractionsConfig",
    "NextItem",
    "NextItemConfig",
    "SplitTask",
    "activity_groups",
    "activity_score",
]

ADVANTAGED, DISADVANTAGED = "advantaged", "disadvantaged"
Rule = Literal["value_sum", "count", "spend", "recency"]
MIN_USERS = 2  # one alone cannot be resampled
MIN_GROUP = 5  # users with a test item; the mean of fewer says too much about each, and draws may miss them all

QUALITY: Mapping[str, str] = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR", "hit": "Hit rate"}

#: setting -> argument of `read_interactions`; they describe a file and mean nothing for a named data set
READER: Mapping[str, str] = {
    **{f"{name}_column": name for name in ("user", "item", "value", "time")},
    **{name: name for name in ("min_user", "min_item", "duplicates", "ids", "encoding")},
}


class InteractionsConfig(Config):
    """A named data set, or a file of interactions and its columns."""

    data: str = "ml100k"
    """Name in the catalogue, `synthetic`, or path of a file of interactions: CSV, TSV, Parquet, JSON, `.inter` ..."""
    user_column: str | None = None
    """Column of user ids in a file of your own, as the next eight settings; a named data set refuses them. By default
    one of the usual names, such as `user_id`."""
    item_column: str | None = None
    """Column of item ids."""
    value_column: str | None = "auto"
    """Column of ratings, counts or spend; `auto` takes one with a usual name, none gives every row the value 1."""
    time_column: str | None = None
    """Column of whole numbers or dates; none for a file without."""
    encoding: str = "utf-8"
    """Of a text file."""
    min_user: PositiveInt | None = None
    """Drop users with fewer rows; none drops nobody and refuses a user with one row, 1 keeps such a user in train."""
    min_item: PositiveInt | None = None
    """Drop items with fewer rows; none drops none."""
    duplicates: Literal["error", "last", "sum"] = "error"
    """What happens to rows with the same user and item: refuse them, keep the latest, or that with summed values."""
    ids: Literal["auto", "text"] = "auto"
    """`auto` refuses a column in which most ids are numbers and some are not; `text` accepts any mixture."""
    split_seed: NonNegativeInt | Literal["seed"] = 0
    """Seed of the random 70/10/20 split, which every run of a comparison shares; `seed` draws another split at each
    seed of the run, with the same users, so that intervals are of splits too. Published splits are not drawn."""

    def __post_init__(self) -> None:
        # the command line has only text: `--set value_column=none`
        for name in ("user_column", "item_column", "value_column", "time_column"):
            value = getattr(self, name)
            if isinstance(value, str) and value.lower() in ("", "none"):
                object.__setattr__(self, name, None)
        super().__post_init__()

    def at_seed(self, seed: int) -> Any:
        """Return the config with the split of a seed."""
        return self.replace(split_seed=seed) if self.split_seed == "seed" else self

    @property
    def split(self) -> int:
        """Seed of the split; 0 where one of a run is asked for and none is given."""
        return 0 if self.split_seed == "seed" else self.split_seed

    def reader_options(self) -> dict[str, Any]:
        """Return the arguments of `read_interactions` that differ from their defaults."""
        plain = {f.name: f.default for f in dataclasses.fields(self)}
        return {READER[name]: getattr(self, name) for name in READER if getattr(self, name) != plain[name]}

    def load_split(self, data_dir: str | None) -> Split:
        """Return the split that the settings name.

        Raises
        ------
        InputError
            For settings of a file together with a named data set, and everything that `load_split` refuses.
        """
        options = self.reader_options()
        if options and (self.data == "synthetic" or self.data in CATALOGUE):
            given = [name for name in READER if READER[name] in options]
            raise InputError(
                f"{', '.join(f'--set {name}' for name in given)} together with the data set {self.data!r}",
                f"{', '.join(READER)} with the path of a file only",
                "leave them out, or give the path of your own file with --data",
            )
        if self.data == "synthetic":
            return synthetic()
        return load_split(self.data, data_dir=data_dir, split_seed=self.split, **options)


class NextItemConfig(InteractionsConfig):
    """Data, backbone and groups of a next-item task."""

    backbone: Literal["bprmf", "neumf", "lightgcn"] = "bprmf"
    """Recommender whose user representations a method may shape."""
    dim: PositiveInt = 64
    """Embedding width; NeuMF has two such tables a side."""
    layers: PositiveInt = 2
    """Propagation layers of LightGCN."""
    group_rule: Rule = "value_sum"
    """What activity is: the sum of the value column, the number of interactions, spend (a value column of money), or
    the latest time stamp; all over training rows."""
    group_share: Annotated[float, Range(ge=0, le=1)] = 0.05
    """Share of users, the most active ones, that counts as advantaged."""
    k: PositiveInt = 10
    """Length of the lists."""
    matched: PositiveInt = 5
    """Test positives a user keeps under the matched protocol."""
    draws: PositiveInt = 20
    """Draws of those positives."""
    precision: Literal["float32", "float64"] = "float32"
    """Floating-point type of the model."""


def activity_score(log: Interactions, rule: Rule) -> NDArray[np.float64]:
    """Return how active each user is on a continuous scale, shape (U,).

    ``value_sum`` and ``spend`` add the value column, ``count`` counts rows, ``recency`` is the latest time stamp.

    Raises
    ------
    InputError
        For ``recency`` without time stamps.
    """
    if rule == "count":
        return np.bincount(log.user, minlength=log.n_users).astype(np.float64)
    if rule == "recency":
        if log.time is None:
            raise InputError(
                "group_rule='recency' on interactions without a time column",
                "value_sum, count or spend; recency where every row has a time",
                "name the time column of your file (--set time_column=NAME), or take another rule",
            )
        latest = np.full(log.n_users, -np.inf)
        np.maximum.at(latest, log.user, log.time.astype(np.float64))
        return latest
    return np.asarray(np.bincount(log.user, weights=log.value, minlength=log.n_users), dtype=np.float64)


def activity_groups(score: NDArray[np.float64], share: float) -> NDArray[np.str_]:
    """Label the ``round(share * U)`` highest scores advantaged, the others disadvantaged; ties go to the lower id.

    Returns
    -------
    array of str, shape (U,)
    """
    top = np.argsort(-score, kind="stable")[: round(share * len(score))]
    label = np.full(len(score), DISADVANTAGED, dtype=object)
    label[top] = ADVANTAGED
    return label.astype(str)


class SplitTask(Closed):
    """A split of interactions whose test part is kept out of reach until the runner opens it; the unit is the user."""

    unit_kind = "user"

    def __init__(self, split: Split) -> None:
        self.train, self.valid, self._test = split.train, split.valid, split.test
        self.n_users, self.n_items = split.n_users, split.n_items
        self.facts: dict[str, Any] = {
            "name": split.name,
            "licence": split.licence,
            "users": self.n_users,
            "items": self.n_items,
            "train": len(split.train),
            "valid": len(split.valid),
            "test": len(split.test),
            "fingerprint": split.fingerprint,
        }

    def scored_part(self, split: Literal["valid", "test"]) -> Interactions:
        """Return the validation part, or the test part once it is open."""
        self.refuse_closed(split, accepted="split='valid'")
        return self.valid if split == "valid" else self._test


class NextItem(SplitTask):
    """A split of interactions, a backbone, and the per-user scores of a trained model.

    Parameters
    ----------
    split : Split
        Interactions; the test part is kept out of reach until the runner opens it.
    config : NextItemConfig
    """

    Config = NextItemConfig

    def __init__(self, split: Split, config: NextItemConfig) -> None:
        super().__init__(split)
        self.config = config
        self.seen: sparse.csr_array = split.train.csr()
        self.groups = activity_groups(activity_score(split.train, config.group_rule), config.group_share)
        self.user_columns: Mapping[str, Any] = split.user_columns
        self.metrics = self.metrics_of({"k": config.k, "matched": config.matched})

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the task's values mean under some settings of the task."""
        k, matched = settings["k"], settings["matched"]
        titles = {f"{name}@{k}": f"{title}@{k}" for name, title in QUALITY.items()}
        titles[f"ndcg@{k}_matched{matched}"] = f"NDCG@{k}, {matched} positives a user"
        titles[f"ndcg@{k}_sampled"] = f"NDCG@{k}, one positive among 99 sampled negatives"
        return {name: Metric(name, title=title) for name, title in titles.items()}

    @classmethod
    def load(cls, config: NextItemConfig, data_dir: str | None = None) -> NextItem:
        """Load the data that a config names.

        Raises
        ------
        InputError
            For fewer than `MIN_USERS` users, a group with fewer than `MIN_GROUP` users to score, and everything that
            `InteractionsConfig.load_split` refuses.
        """
        split = config.load_split(data_dir)
        task = cls(split, config)
        _require_users(task, split.test.counts("user") > 0)
        return task

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> NextItem:
        """Return a task on a small planted world, for tests and `upright check`; float64.

        The most active user has 61 of its 160 items, so everybody has 99 others left for the sampled protocol.
        """
        settings: dict[str, Any] = {
            "data": "synthetic",
            "precision": "float64",
            "dim": 8,
            "group_share": 0.2,
            "draws": 3,
        } | changes
        return cls(synthetic(n_items=160, max_share=0.38, seed=seed), NextItemConfig(**settings))

    def model(self, run: Run) -> Any:
        """Return a fresh backbone, initialised from the stream ``init`` that all arms share."""
        c, size, precision = self.config, (self.n_users, self.n_items), getattr(torch, self.config.precision)
        return recommenders.build(c.backbone, *size, self.seen, c.dim, c.layers, run.torch_rng("init"), precision)

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score a model per user.

        Parameters
        ----------
        result : recommender with ``tables`` and ``score_all``
        split : {"valid", "test"}
            Validation gives the full-ranking metrics only. Candidates for test exclude training and validation items.

        Raises
        ------
        InputError
            When the test split is asked for before the runner opened it, or scores are NaN.
        """
        quality = self.score_quality(result, split)
        if split == "valid":
            return quality
        c, (relevant, seen) = self.config, self.opened(split)
        given = (self.scores_of(result), np.arange(self.n_users), seen, relevant)

        # the draws are named by the split alone: every arm and seed meets the same candidates
        def draws(protocol: str) -> np.random.Generator:
            return np.random.default_rng(stream(c.split, "protocol", protocol))

        matched = ranking.matched_positives(*given, n=c.matched, draws=c.draws, rng=draws("matched"), k=c.k)
        first: Any = {"positive": "first", "first_item": _first(self._test)}
        sampled = ranking.sampled_protocol(*given, negatives=99, rng=draws("sampled"), k=c.k, **first)
        values = {**quality.values, f"ndcg@{c.k}_matched{c.matched}": matched, f"ndcg@{c.k}_sampled": sampled}
        return dataclasses.replace(quality, values=values)

    def score_quality(self, result: Any, split: Literal["valid", "test"]) -> UnitScores:
        """Score the lists alone, full ranking; see `score`."""
        relevant, seen = self.opened(split)
        users, k = np.arange(self.n_users), self.config.k
        full = ranking.evaluate_full(self.scores_of(result), users, seen, relevant, ks=(k,))
        values = {name: full[name] for name in self.metrics if name in full}
        exposure = full[f"exposure@{k}"]
        totals = {f"coverage@{k}": ranking.coverage(exposure), f"gini_exposure@{k}": ranking.gini(exposure)}
        return UnitScores("user", users.tolist(), values, self._by(), totals)

    def _by(self) -> dict[str, list[str]]:
        """Return the groups of users."""
        return {"activity": self.groups.tolist()}

    def opened(self, split: Literal["valid", "test"]) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Return relevant and seen items of a split, (U, I) each; see `score` for what is refused."""
        seen = self.seen if split == "valid" else (self.seen + self.valid.csr()).sign()
        return self.scored_part(split).csr(), seen

    @staticmethod
    def scores_of(result: Any) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
        """Return the scores of every item as a function of user codes (B,), shape (B, I)."""
        if (own := getattr(result, "scores", None)) is not None:
            return own  # type: ignore[no-any-return]
        with torch.no_grad():
            user_table, item_table = (t.detach() for t in result.tables())

        def scores(some: NDArray[np.int64]) -> NDArray[Any]:
            with torch.no_grad():
                rows = user_table[torch.from_numpy(np.ascontiguousarray(some))]
                return np.asarray(result.score_all(rows, item_table).numpy())

        return scores


def _require_users(task: NextItem, scored: NDArray[np.bool_]) -> None:
    """Refuse data whose groups cannot be compared; `scored`, shape (U,), marks users with a test item."""
    share, name = task.config.group_share, task.facts["name"]
    if task.n_users < MIN_USERS:
        got, accepted = f"{task.n_users} user{'s' * (task.n_users != 1)} in {name}", f"at least {MIN_USERS} users"
        todo = "check the column of users (--set user_column=NAME) and min_user, or use data with more users"
        raise InputError(got, accepted, todo)
    size = {label: int((scored & (task.groups == label)).sum()) for label in (ADVANTAGED, DISADVANTAGED)}
    small = min(size, key=lambda label: size[label])
    if 0 < share < 1 and size[small] < MIN_GROUP:
        raise InputError(
            f"group_share = {share:g} of {task.n_users} users in {name}: {size[small]} {small} with a test item",
            f"at least {MIN_GROUP} users with a test item in each group",
            "set group_share nearer to 0.5 or use data with more users; --set group_share=0 runs without groups",
        )


def _first(part: Interactions) -> NDArray[np.int64]:
    """First item of each user in file order, -1 for a user without one, shape (U,)."""
    first = np.full(part.n_users, -1, dtype=np.int64)
    first[part.user[::-1]] = part.item[::-1]
    return first
