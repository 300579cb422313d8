"""Next item on devices: one user a client, the last item of each held out; are clients with few items served too.

The unit, and the cluster, is the client. Candidates are all items that the client has not met. A log without times has
no last item: the held-out ones are drawn then, and said to be.

===============  ===================================================================================================
grouping         of the client, by its training items
===============  ===================================================================================================
``size``         ``light``: fewer than the median client, or as many where nobody has fewer; else ``heavy``
``size_decile``  01 (fewest) to 10; clients with equally many stand together, so that some may be missing
===============  ===================================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from upright.contract import InputError, Metric, PositiveInt, Run, UnitScores, stream
from upright.data.interactions import Split, synthetic
from upright.data.sequences import joined, leave_last
from upright.lazy import LazyModule
from upright.metrics import ranking
from upright.tasks.next_item import InteractionsConfig, SplitTask

if TYPE_CHECKING:
    from upright.recommendation import devices
else:
    devices = LazyModule("upright.recommendation.devices")

__all__ = ["FederatedNextItem", "FederatedNextItemConfig"]

MIN_CLIENTS = 10
QUALITY: Mapping[str, str] = {"ndcg": "NDCG", "hit": "Hit rate", "mrr": "MRR"}


class FederatedNextItemConfig(InteractionsConfig):
    """Data and lists of a next-item task on devices."""

    k: PositiveInt = 10
    """Length of the lists."""
    checked_clients: PositiveInt = 1000
    """Most clients that validation ranks, a fixed sample; the test ranks everybody."""
    mode: Literal["held_out", "official"] = "held_out"
    """`official` has no validation item: rounds are chosen on the test item."""
    precision: Literal["float32", "float64"] = "float32"
    """Floating-point type of the model."""


class FederatedNextItem(SplitTask):
    """A log with its last items held out, a device for each user, and the scores of each client.

    Parameters
    ----------
    split : Split
        As `leave_last` returns it; the test part is kept out of reach until the runner opens it.
    config : FederatedNextItemConfig
    """

    unit_kind = "client"
    Config = FederatedNextItemConfig

    def __init__(self, split: Split, config: FederatedNextItemConfig) -> None:
        if config.mode == "official":
            split = dataclasses.replace(split, train=joined(split.train, split.valid), valid=split.test)
        super().__init__(split)
        self.config, self.seen = config, split.train.csr()
        #: data of each client by name, in the order of users
        self.devices = devices.devices_of(split.train.user, split.train.item, self.n_users)
        self.size = split.train.counts("user")
        self.metrics = self.metrics_of({"k": config.k})

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the task's values mean under some settings of the task."""
        k = settings["k"]
        found = {f"{name}@{k}": Metric(f"{name}@{k}", title=f"{title}@{k}") for name, title in QUALITY.items()}
        sampled = f"ndcg@{k}_sampled"
        return found | {sampled: Metric(sampled, title=f"NDCG@{k}, one positive among 99 sampled negatives")}

    @classmethod
    def load(cls, config: FederatedNextItemConfig, data_dir: str | None = None) -> FederatedNextItem:
        """Load the data that a config names, and hold out the last items.

        Raises
        ------
        InputError
            For fewer than `MIN_CLIENTS` users, a user with fewer than three interactions, and everything that the
            readers refuse.
        """
        split = leave_last(config.load_split(data_dir), seed=config.split, without_times="draw")
        task = cls(split, config)
        if len(task.devices) < MIN_CLIENTS or len(set(task._groups()["size"])) < 2:
            got = f"{len(task.devices)} users in {split.name}, with {len(set(task.size.tolist()))} numbers of items"
            raise InputError(
                got,
                f"at least {MIN_CLIENTS}, some with more items than others: light and heavy clients are compared",
                "take data with more users, and with histories of different lengths",
            )
        return task

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> FederatedNextItem:
        """Return a task on the world of `NextItem.tiny`; float64."""
        config = FederatedNextItemConfig(**({"data": "synthetic", "precision": "float64"} | changes))
        return cls(leave_last(synthetic(n_items=160, max_share=0.38, seed=seed), seed=config.split), config)

    def warn(self, run: Run) -> None:
        """Say what of the data a result rests on."""
        if self.train.time is None:
            run.warn("the log has no times: held-out items are drawn, not the last ones")
        if self.config.mode == "official":
            run.warn("mode=official: rounds are chosen on the test item, so levels are too high")

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score a model per client.

        Parameters
        ----------
        result : model with ``score_all(users)``, shape (B,) to (B, I)
        split : {"valid", "test"}
            Validation ranks the item before the last one, full ranking only, of `checked_clients`.

        Raises
        ------
        InputError
            When the test split is asked for before the runner opened it, or scores are NaN.
        """
        relevant, seen = self.opened(split)
        users, k = np.arange(self.n_users), self.config.k
        if split == "valid" and self.n_users > self.config.checked_clients:
            draw = np.random.default_rng(stream(self.config.split, "checked clients"))
            users = np.sort(draw.choice(self.n_users, self.config.checked_clients, replace=False))
        full = ranking.evaluate_full(result.score_all, users, seen, relevant, ks=(k,))
        values = {name: full[name] for name in self.metrics if name in full}
        if split == "test":
            rng = np.random.default_rng(stream(self.config.split, "protocol", "sampled"))
            values[f"ndcg@{k}_sampled"] = ranking.sampled_protocol(
                result.score_all, users, seen, relevant, negatives=99, rng=rng, k=k
            )
        exposure = full[f"exposure@{k}"]
        totals = {f"coverage@{k}": ranking.coverage(exposure), f"gini_exposure@{k}": ranking.gini(exposure)}
        by = {name: np.array(labels)[users].tolist() for name, labels in self._groups().items()}
        return UnitScores("client", users.tolist(), values, by, totals)

    def opened(self, split: Literal["valid", "test"]) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Return held-out and met items of a split, (U, I) each; see `score` for what is refused."""
        known = split == "valid" or self.config.mode == "official"
        return self.scored_part(split).csr(), self.seen if known else (self.seen + self.valid.csr()).sign()

    def _groups(self) -> dict[str, list[str]]:
        """Return the groups of all clients."""
        middle = np.median(self.size)
        light = self.size < middle if self.size.min() < middle else self.size <= middle
        decile = np.ceil(rankdata(self.size) / self.n_users * 10).astype(int)
        return {"size": np.where(light, "light", "heavy").tolist(), "size_decile": [f"{n:02d}" for n in decile]}
