"""Next item in a sequence: the last item of each user is ranked against all others; is the tail served too.

The unit is a user with one held-out item, the cluster that item: head and tail are properties of items, and users with
one target share it. Candidates are all items that the user has not met; equal scores stand in random order and every
value is its expectation.

==============  ====================================================================================================
grouping        of the held-out item
==============  ====================================================================================================
``popularity``  ``head``: the fifth of the items with most training targets, but for ties at its end; else ``tail``
``prior``       the same by a prior score: how well a language model knows the title, before it saw any interaction
``cell``        both together
==============  ====================================================================================================

Prior scores come from a file, or a language model gives them to titles. What one template says of a title another one
must say too: where they agree too little, the last two groupings are left out.

With ``backbone="llm"`` that model is the recommender: training has one target a user, the last one, and head and tail
are still told apart by all targets.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from upright.contract import File, InputError, Metric, PositiveInt, Range, Run, UnitScores, stream
from upright.data.catalogue import cache_dir
from upright.data.columns import RENAME, Column, read_columns
from upright.data.interactions import Split, synthetic
from upright.data.sequences import joined, last_histories, leave_last, tie_shares, windows
from upright.lazy import LazyModule
from upright.maths.ranks import head_items, rank_correlation
from upright.maths.simultaneous import rate_bounds
from upright.metrics import ranking
from upright.tasks.answers import FEWEST, MIN_AGREEMENT, opaque_codes, suppress_small
from upright.tasks.next_item import InteractionsConfig, SplitTask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from upright.language import item_head, titles
    from upright.models import hub, sequential
else:
    torch = LazyModule("torch")
    item_head = LazyModule("upright.language.item_head")
    titles = LazyModule("upright.language.titles")
    hub = LazyModule("upright.models.hub")
    sequential = LazyModule("upright.models.sequential")

__all__ = ["NextInSequence", "NextInSequenceConfig"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
QUALITY: Mapping[str, str] = {"ndcg": "NDCG", "hit": "Hit rate", "mrr": "MRR"}
POINTS = 41  # of a Lorenz curve


class NextInSequenceConfig(InteractionsConfig):
    """Data, backbone and groups of items of a next-in-sequence task."""

    backbone: Literal["sasrec", "llm"] = "sasrec"
    """Self-attention over item codes, or the language model of `model_folder` over titles."""
    model_folder: str | None = None
    """Folder of a language model with its tokenizer, as `save_pretrained` writes it, or `smollm2`; nothing is
    downloaded. Without `prior` it scores the titles (two minutes for 1,349 of them, kept in the cache)."""
    prompt_titles: PositiveInt = 10
    """`llm`: most titles of a history in a prompt."""
    prompt_tokens: PositiveInt = 64
    """`llm`: most tokens of a prompt; older titles are left out."""
    kept_layers: PositiveInt = 2
    """`llm`: layers that are trained, the last ones; what lies below is computed once and kept in the cache."""
    rank: PositiveInt = 8
    """`llm`: rank of the adapters."""
    head: Literal["items", "title"] = "items"
    """`llm`: scores of all items by the last hidden state, or titles that the model writes, held to the catalogue by a
    prefix tree; the latter takes whole passes and beams, so a small model."""
    beams: PositiveInt = 20
    """`llm` with titles: titles that are found for a user, those that were seen among them."""
    dim: PositiveInt = 32
    """`sasrec`: width of the item vectors."""
    layers: PositiveInt = 2
    """`sasrec`: blocks of attention."""
    heads: PositiveInt = 2
    """`sasrec`: attention heads of a block; they divide `dim`."""
    length: PositiveInt = 20
    """`sasrec`: items of a history that the model sees."""
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.2
    """Share of activations that training drops."""
    k: PositiveInt = 10
    """Length of the lists."""
    prior: File | None = None
    """File with `item` and `prior`, a score of how well each item is known beforehand; without it items are told apart
    by their interactions alone."""
    precision: Literal["float32", "float64"] = "float32"
    """Floating-point type of the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone == "llm" and (self.model_folder is None or self.precision != "float32"):
            got = "no model_folder" if self.model_folder is None else f"precision = {self.precision!r}"
            todo = "--set model_folder=FOLDER" if self.model_folder is None else "leave precision out"
            raise InputError(f"{got} with backbone = 'llm'", "the folder of a language model, in float32", todo)
        if self.backbone != "llm" and self.head == "title":
            raise InputError("head = 'title' with item codes", "backbone = 'llm'", "--set backbone=llm")
        if self.backbone != "llm" and self.model_folder is not None and self.prior is not None:
            got = "both prior and model_folder"
            raise InputError(got, "one source of prior scores", "leave one of them out, or set backbone=llm")

    @property
    def seen_items(self) -> int:
        """Return how many items of a history the backbone sees."""
        return self.prompt_titles if self.backbone == "llm" else self.length


class NextInSequence(SplitTask):
    """A log with its last items held out, a sequential backbone, and the per-user scores of a trained model.

    Parameters
    ----------
    split : Split
        As `leave_last` returns it; the test part is kept out of reach until the runner opens it.
    config : NextInSequenceConfig
    prior : ndarray of float64, shape (I,), optional
        Prior score of each item.

    Raises
    ------
    InputError
        For a language model and a log without titles.
    """

    Config = NextInSequenceConfig

    def __init__(self, split: Split, config: NextInSequenceConfig, prior: Array | None = None) -> None:
        super().__init__(split)
        self.config, self.prior = config, prior
        self._titles, self._loaded, self._kept = split.item_titles, list[Any](), list[Any]()
        if config.model_folder is not None and self._titles is None:
            got = f"{split.name}, whose items have no titles here, and a language model"
            todo = (
                "take ml100k or ml-latest-small; or score the titles of your items with `upright audit ranking --model "
            )
            todo += "FOLDER`, and hand in its prior.csv: --set prior=FILE"
            raise InputError(got, "a named data set with titles: a language model knows no codes", todo)
        #: why there is no prior score, where there is none
        self.without_prior = (
            "without prior scores (--set prior=FILE, or model_folder=FOLDER where items have titles) items are told "
            "apart by their interactions alone"
        )
        user, self.history, self.target = windows(split.train, config.seen_items)  # (W, T) each
        #: targets of each item in training, shape (I,)
        self.item_count = np.bincount(self.target[self.target >= 0], minlength=self.n_items)
        if config.backbone == "llm":  # a prompt for each target would be too dear
            last = np.r_[user[1:] != user[:-1], True]
            self.history, self.target = self.history[last], self.target[last]
            self.target[:, :-1] = -1
        #: whether each item is head or tail by them, length I
        self.popularity = _head_or_tail(self.item_count.astype(np.float64))
        ties = tie_shares(joined(split.train, split.valid, split.test))
        self.facts |= dict(zip(("tied_neighbours", "tied_last"), ties, strict=True))
        if config.model_folder is not None:
            self.facts["model"] = Path(config.model_folder).name
            shared = [n for n in Counter(self._written()).values() if n > 1]
            self.facts["items_with_the_title_of_another"] = sum(shared)  # they tie where titles are written
        if prior is not None:
            self.facts["prior_count_correlation"] = rank_correlation(prior, self.item_count)
        self.metrics = self.metrics_of({"k": config.k})

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the task's values mean under some settings of the task."""
        k = settings["k"]
        titles = {f"{name}@{k}": f"{title}@{k}" for name, title in QUALITY.items()}
        titles |= {f"ndcg@{k}_{group}": f"NDCG@{k} of users with a {group} item" for group in ("tail", "head")}
        return {name: Metric(name, title=title) for name, title in titles.items()}

    @classmethod
    def load(cls, config: NextInSequenceConfig, data_dir: str | None = None) -> NextInSequence:
        """Load the data that a config names, and hold out the last items.

        Raises
        ------
        InputError
            For a log without times, a user with fewer than three interactions, head or tail that is the last item of
            fewer than `FEWEST` users, and everything that the readers refuse, that of models among them.
        """
        split = leave_last(config.load_split(data_dir), seed=config.split)
        prior = _read_prior(config.prior, config.encoding, split) if config.prior is not None else None
        task = cls(split, config, prior)
        names = np.array(task.popularity)[split.test.item]
        for name in ("head", "tail"):
            if (n := int((names == name).sum())) < FEWEST:
                got = f"{n} users of {split.name} whose last item is {name}"
                raise InputError(got, f"at least {FEWEST}", "take data with more users")
        if config.model_folder is not None:
            task.language()
            if prior is None:
                task.score_titles()
        return task

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> NextInSequence:
        """Return a task on a small world with drawn prior scores, for tests and `upright check`; float64."""
        settings: dict[str, Any] = {"precision": "float64", "dim": 8, "length": 8, "dropout": 0.1} | changes
        config = NextInSequenceConfig(data="synthetic", **settings)
        split = leave_last(synthetic(seed=seed), seed=config.split)
        return cls(split, config, np.random.default_rng(stream(seed, "prior")).normal(size=split.train.n_items))

    def language(self) -> tuple[Any, Any]:
        """Return the language model of `model_folder` and its tokenizer, loaded once."""
        if not self._loaded:
            folder = self.config.model_folder
            self._loaded += hub.load_language_model(str(folder))
        model, tokenizer = self._loaded
        return model, tokenizer

    def score_titles(self) -> None:
        """Let the language model give prior scores, kept in the cache; withheld where its templates do not agree."""
        print(f"Prior scores of {self.n_items} titles, kept in the cache", file=sys.stderr)
        table = titles.prior_table(*self.language(), self._titles or (), folder=cache_dir() / "sequences")
        prior, agreement = table.scores.mean(axis=0), table.agreement()
        self.facts |= {
            "prior_agreement": agreement,
            "prior_count_correlation": rank_correlation(prior, self.item_count),
            "prior_count_correlation_given_length": rank_correlation(prior, self.item_count, table.tokens),
        }
        if agreement >= MIN_AGREEMENT:
            self.prior = prior
        else:
            self.without_prior = (
                f"prior scores of two templates have a rank correlation of {agreement:.2f}, below {MIN_AGREEMENT}: the "
                "groupings prior and cell are withheld"
            )

    def _keep_states(self, run: Run) -> Any:
        """Return the kept states of every prompt; the item that a split holds out is in none of its own."""
        if not self._kept:
            c, before = self.config, (self.train, self.valid)
            kept = item_head.KeptStates(
                *self.language(),
                self._written(),
                layers=c.kept_layers,
                prompt_titles=c.prompt_titles,
                prompt_tokens=c.prompt_tokens,
                folder=cache_dir() / "sequences",
            )
            prompts = {"training": self.history}
            prompts |= {
                name: last_histories(*before[:n], length=c.seen_items) for name, n in (("validation", 1), ("test", 2))
            }
            for name, history in prompts.items() if c.head == "items" else ():
                with run.progress(len(history), f"states of {name} prompts") as advance:
                    kept.prepare(torch.from_numpy(history), advance)
            self._kept.append(kept)
        return self._kept[0]

    def _written(self) -> list[str]:
        return [titles.natural_title(one) for one in self._titles or ()]

    def model(self, run: Run) -> Any:
        """Return a fresh backbone, initialised from the stream ``init`` that all arms share."""
        c = self.config
        if c.backbone == "llm":
            kept, generator = self._keep_states(run), run.torch_rng("init")
            more = {"rank": c.rank, "dropout": c.dropout, "generator": generator}
            if c.head == "items":
                return item_head.ItemHead(kept, **more)
            trie = titles.TitleTrie(self._written(), self.language()[1])
            return item_head.TitleHead(kept, trie, beams=c.beams, **more)
        sizes = (self.n_items, c.dim, c.layers, c.heads, c.length, c.dropout)
        precision = getattr(torch, c.precision)
        return sequential.SASRec(*sizes, generator=run.torch_rng("init"), dtype=precision)

    def batches(
        self, run: Run, epoch: int, size: int, weight: Array | None = None
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield histories and targets, shape (B, T) each, and a number that seeds the masks of the batch.

        Parameters
        ----------
        size : int
            B, windows of a batch.
        weight : ndarray, shape (I,), optional
            Windows are drawn with replacement, in proportion to the mean weight of their targets; without it each is
            taken once.
        """
        rng = run.rng("batches", epoch)
        order = rng.permutation(len(self.target))
        if weight is not None:
            there = self.target >= 0
            mass = np.where(there, weight[np.where(there, self.target, 0)], 0.0).sum(1) / there.sum(1)
            order = rng.choice(len(mass), len(mass), p=mass / mass.sum())
        for number, start in enumerate(range(0, len(order), size)):
            rows = order[start : start + size]
            pair = (torch.from_numpy(x[rows]) for x in (self.history, self.target))
            yield *pair, stream(run.seed, "masks", epoch, number)  # type: ignore[misc]

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score a model per user.

        Parameters
        ----------
        result : model with ``score_all(history)``
        split : {"valid", "test"}
            Validation ranks the item before the last one. Items that the user met before are no candidates.

        Raises
        ------
        InputError
            When the test split is asked for before the runner opened it, or scores are NaN.
        """
        wanted, before = self.scored_part(split), [self.train] if split == "valid" else [self.train, self.valid]
        history, k = torch.from_numpy(last_histories(*before, length=self.config.seen_items)), self.config.k
        seen = sparse.csr_array(sum((part.csr() for part in before[1:]), before[0].csr()).sign())

        def scores(users: Ints) -> Any:
            with torch.no_grad():
                return result.score_all(history[torch.from_numpy(np.ascontiguousarray(users))]).numpy()

        full = ranking.evaluate_full(scores, wanted.user, seen, wanted.csr(), ks=(k,))
        exposure = full[f"exposure@{k}"]
        totals = {
            f"coverage@{k}": ranking.coverage(exposure),
            f"gini_exposure@{k}": ranking.gini(exposure),
            f"popularity@{k}": float(exposure @ self.item_count / exposure.sum()),
        }
        values, by = {name: full[name] for name in self.metrics if name in full}, self._by(wanted.item, run)
        for group in ("tail", "head"):
            values[f"ndcg@{k}_{group}"] = np.where(np.array(by["popularity"]) == group, values[f"ndcg@{k}"], np.nan)
        if split == "test":
            run.note("frequency", self._by_frequency(values[f"ndcg@{k}"], wanted.item))
            places = np.append(0.0, np.cumsum(np.sort(exposure))) / exposure.sum()
            at = np.linspace(0, self.n_items, POINTS).round().astype(np.int64)
            run.note("lorenz", [{"items": i / self.n_items, "places": float(places[i])} for i in at.tolist()])
        return UnitScores("user", wanted.user.tolist(), values, by, totals, opaque_codes(wanted.item))

    def _by_frequency(self, value: Array, item: Ints) -> list[dict[str, Any]]:
        """Return means of values by tenths of the training targets of held-out items, with intervals over items."""
        count = self.item_count[item]
        edges = np.unique(np.quantile(count, np.linspace(0.0, 1.0, 11)[1:-1]))
        place = np.searchsorted(edges, count, side="left")
        table = rate_bounds(value, place, np.unique(item, return_inverse=True)[1], len(edges) + 1).T
        return [
            {"targets": f"{count[place == b].min()} to {count[place == b].max()}", "n": int(n)}
            | dict(zip(("value", "low", "high"), map(float, numbers), strict=True))
            for b, (n, *numbers) in enumerate(table)
            if n
        ]

    def _by(self, item: Ints, run: Run) -> dict[str, list[str]]:
        """Return the groups of held-out items; those of the prior where no cell has one to four users."""
        names = {"popularity": self.popularity}
        if self.prior is not None:
            names["prior"] = _head_or_tail(self.prior)
            names["cell"] = [f"{a} of data, {b} of prior" for a, b in zip(*names.values(), strict=True)]
        found = {name: np.array(own)[item].tolist() for name, own in names.items()}
        if small := suppress_small(found.get("cell", []))[1]:
            run.warn(f"under {FEWEST} users have a last item that is {' or '.join(small)}: no table of two by two")
            found = {"popularity": found["popularity"]}
        return found


def _head_or_tail(size: Array) -> list[str]:
    return [*map(str, np.where(head_items(size), "head", "tail"))]


def _read_prior(file: Any, encoding: str, split: Split) -> Array:
    """Return the prior score of each item of a log."""
    wanted = {"item": Column("id", unique=True, option=RENAME), "prior": Column("number", option=RENAME)}
    table = read_columns(file, wanted, encoding=encoding)
    score = dict(zip(table["item"].to_list(), table.array("prior").tolist(), strict=True))
    lacking = [one for one in split.train.item_ids if str(one) not in score]
    if lacking:
        raise InputError(
            f"{table.name} has no prior for {len(lacking)} of {split.train.n_items} items, such as {lacking[0]}",
            "a prior score for every item of the data",
            "add them, or leave prior out",
        )
    return np.array([score[str(one)] for one in split.train.item_ids])
