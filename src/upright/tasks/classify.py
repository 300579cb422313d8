"""Classification over sites, and how far groups differ in what is decided about them.

The unit is the row. Each seed draws its own clients, its own test rows and its own calibration rows, all from streams
that name the seed, so every arm of a run meets the same ones:

1. rows are spread over clients (`upright.data.partition`)
2. ``test_share`` of each client and group becomes test; of the rest ``calibration_share`` is kept from training
3. features are encoded as the training rows say

Values of a row are ``accuracy`` and, for each rate of the criterion and each class that it looks at, ``rate/<name>``:
the decision (0, 1, or its probability) where the rate counts the row, NaN elsewhere.

========================  ==========================================================================
``demographic_parity``    ``rate/<class>``, every row
``equal_opportunity``     ``rate/<class>``, rows of that class
``equalized_odds``        ``rate/<class>, true positive`` and ``rate/<class>, false positive``
``equalized_odds_cells``  ``rate/<class>, label <class>``
========================  ==========================================================================

Of two classes only decisions for the last one are kept: the other says the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from upright.contract import (
    Config,
    InputError,
    Metric,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Run,
    UnitScores,
    stream,
)
from upright.data.partition import counts_of, partition
from upright.data.tabular import Table, encode, groups_of, load_table, synthetic_table
from upright.maths.parity.rates import Criterion, names_of_strata
from upright.metrics.fairness import rates_of
from upright.tasks.closed import Closed

__all__ = ["Classify", "ClassifyConfig", "Layout"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class ClassifyConfig(Config):
    """Data, groups, clients and criterion."""

    data: str = "adult"
    """Name of a table in the catalogue, `synthetic`, or path of a CSV, TSV or Parquet file."""
    label: str | None = None
    """Column to predict; none takes the one of a named table."""
    positive: str | None = None
    """Which of two classes is the positive one."""
    group: str = ""
    """Sensitive column; `sex*race` is their product, `age<25` and `age:25,45,65` cut numbers. Empty takes the first one
    of a named table."""
    drop: tuple[str, ...] = ()
    """Columns of the table that are no features."""
    missing: Literal["error", "drop"] = "error"
    """What becomes of rows of a file with an empty label, group or number."""
    criterion: Criterion = "demographic_parity"
    """What may not differ between groups."""
    clients: PositiveInt = 5
    """Number of sites; 1 is ordinary central classification."""
    partition: Literal["dirichlet", "correlation", "iid", "column"] = "dirichlet"
    """How rows are spread over sites: each group by a Dirichlet law, by the correlation of group and label, evenly, or
    by the values of `client_column`."""
    client_column: str | None = None
    """Column whose values are the sites, for `column`."""
    person: str | None = None
    """Column that tells whose row it is: rows of one person are drawn together when intervals are made. Rows are still
    spread over clients and parts one by one."""
    gamma: PositiveFloat = 0.5
    """Parameter of the Dirichlet law; the smaller, the more uneven."""
    least: NonNegativeInt = 20
    """Fewest rows of each group at each site that `dirichlet` accepts."""
    test_share: Annotated[float, Range(gt=0, lt=1)] = 0.4
    """Share of each site's groups that is test."""
    calibration_share: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """Share of the rest that is kept from training: remedies are calibrated and settings chosen on it."""
    most_rows: NonNegativeInt = 0
    """Rows to draw from the table, for tables too large for the machine; 0 takes all."""
    split_seed: NonNegativeInt = 0
    """Seed of that draw."""

    def __post_init__(self) -> None:
        # the command line has only text: `--set label=none`
        for name in ("label", "positive", "client_column", "person"):
            value = getattr(self, name)
            if isinstance(value, str) and value.lower() in ("", "none"):
                object.__setattr__(self, name, None)
        super().__post_init__()
        if (self.client_column is not None) != (self.partition == "column"):
            got = f"partition = {self.partition!r} with client_column = {self.client_column!r}"
            raise InputError(got, "a client_column with partition='column' alone", "set both or neither")


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What one seed makes of the table.

    Parameters
    ----------
    x : ndarray, shape (n, d)
        Features, encoded as the training rows say.
    client : int array, shape (n,)
    rows : mapping of part to int array
    names : tuple of str
        Features.
    """

    x: Array
    client: Ints
    rows: Mapping[str, Ints]
    names: tuple[str, ...]


class Classify(Closed):
    """A table of rows with groups, spread over clients anew at each seed.

    Parameters
    ----------
    table : Table
    config : ClassifyConfig
    """

    unit_kind = "row"
    Config = ClassifyConfig

    def __init__(self, table: Table, config: ClassifyConfig) -> None:
        self.config = config
        names = [p.strip() for p in (config.group or table.sensitive[0]).split("*")]
        groups = groups_of(table, names)
        rows = np.arange(len(groups))
        if 0 < config.most_rows < len(rows):
            rng = np.random.default_rng(stream(config.split_seed, "rows"))
            rows = np.sort(rng.permutation(len(rows))[: config.most_rows])
        self.table, self._table_rows = table, rows
        self.label: Ints = table.label[rows]
        self.classes: tuple[str, ...] = table.classes
        self.groups, code = np.unique(groups[rows], return_inverse=True)
        self.group: Ints = code.astype(np.int64)
        self.n = len(rows)
        if config.partition == "column":
            column = groups_of(table, [str(config.client_column)])[rows]
            self._column: NDArray[Any] | None = column
            self.clients = [str(v) for v in np.unique(column)]
        else:
            self._column, self.clients = None, [str(k) for k in range(config.clients)]
        if config.person is not None and config.person not in table.columns:
            raise InputError(f"person = {config.person!r}", ", ".join(table.columns), "name the column of persons")
        self._person = table.columns[config.person][rows] if config.person else np.zeros(0)
        if len(self.groups) < 1 or self.n < 10:
            raise InputError(f"{self.n} rows", "10 rows or more", "use a larger table")
        self._layouts: dict[int, Layout] = {}
        size = {str(g): int((self.group == i).sum()) for i, g in enumerate(self.groups)}
        self.facts = {
            "name": table.name,
            "about": f"{config.group}, {config.criterion.replace('_', ' ')}",
            "licence": table.facts.get("licence", ""),
            "rows": self.n,
            "features": len(table.features),
            "group": " & ".join(names),
            "groups": size,
            "classes": list(self.classes),
            "clients": len(self.clients),
            "criterion": config.criterion,
            "fingerprint": table.fingerprint,
        }
        self.metrics = self.metrics_of({**config.as_dict(), "classes": self.classes})

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the values mean; single rates need ``classes``."""
        title = str(settings["criterion"]).replace("_cells", ", every cell").replace("_", " ")
        rate = Metric("rate", "lower", margin=0.01, title=title.capitalize())
        found = {"accuracy": Metric("accuracy", title="Accuracy"), "rate": rate}
        for name in _rate_names(settings["criterion"], tuple(settings.get("classes", ()))):
            found[f"rate/{name}"] = Metric(f"rate/{name}", title=f"share decided {name}")
        return found

    @classmethod
    def load(cls, config: ClassifyConfig, data_dir: str | None = None) -> Classify:
        """Load the table that a config names.

        Raises
        ------
        InputError
            For everything that `load_table` and `groups_of` refuse.
        """
        if config.data == "synthetic":
            return cls(synthetic_table(4000, clients=config.clients, seed=config.split_seed), config)
        table = load_table(
            config.data,
            data_dir=data_dir,
            label=config.label,
            sensitive=[part.strip() for part in config.group.split("*")] if config.group else (),
            drop=config.drop,
            positive=config.positive,
            missing=config.missing,
        )
        kept = tuple(f for f in table.features if f not in (config.client_column, config.person))
        return cls(dataclasses.replace(table, features=kept) if len(kept) < len(table.features) else table, config)

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> Classify:
        """Return a task on a small planted table, for tests and `upright check`."""
        settings: dict[str, Any] = {"data": "synthetic", "clients": 3, "least": 5, "gamma": 5.0} | changes
        classes = int(settings.pop("n_classes", 2))
        table = synthetic_table(900, clients=3, classes=classes, seed=seed)
        return cls(table, ClassifyConfig(**settings))

    def layout(self, run: Run) -> Layout:
        """Return clients, parts and features of a run's seed; the same for every arm."""
        if run.seed not in self._layouts:
            self._layouts[run.seed] = self._laid_out(run)
        return self._layouts[run.seed]

    def _laid_out(self, run: Run) -> Layout:
        c = self.config
        client = partition(
            c.partition,
            group=self.group,
            label=self.label,
            n_clients=None if c.partition == "column" else c.clients,
            rng=run.rng("partition"),
            gamma=c.gamma,
            least=c.least,
            column=self._column,
        )
        part = np.empty(self.n, dtype=object)
        rng = run.rng("split")
        for k in range(len(self.clients)):
            for g in range(len(self.groups)):
                own = rng.permutation(np.flatnonzero((client == k) & (self.group == g)))
                test = round(c.test_share * len(own))
                valid = round(c.calibration_share * (len(own) - test))
                part[own[:test]], part[own[test : test + valid]], part[own[test + valid :]] = "test", "valid", "train"
        rows = {p: np.flatnonzero(part == p) for p in ("train", "valid", "test")}
        lost = [p for p, r in rows.items() if len(np.unique(self.label[r])) < len(self.classes)]
        if lost:
            got = f"{lost[0]} rows without one of the classes {', '.join(self.classes)}"
            raise InputError(got, "every class in every part", "use more rows, or merge rare classes")
        x, names = encode(self.table, self._table_rows[rows["train"]])
        return Layout(x[self._table_rows], client, rows, tuple(names))

    def counts(self, run: Run) -> list[dict[str, Any]]:
        """Return the number of rows of every client, group and class."""
        group = np.array(self.groups)[self.group]
        return counts_of(self.layout(run).client, group, self.label, clients=self.clients, classes=self.classes)

    def part(self, run: Run, which: Literal["train", "valid"]) -> tuple[Array, Ints, Ints, Ints]:
        """Return features (n, d), labels, groups and clients of the training or the calibration rows."""
        laid = self.layout(run)
        rows = laid.rows[which]
        return laid.x[rows], self.label[rows], self.group[rows], laid.client[rows]

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score decisions row by row.

        Parameters
        ----------
        result : object with ``decide(x, group, client) -> (n, m)``
            Probabilities of each decision.
        split : {"valid", "test"}

        Raises
        ------
        InputError
            When the test rows are asked for before the runner opened them, or decisions are no distribution.
        """
        self.refuse_closed(split, accepted="split='valid'")
        laid = self.layout(run)
        rows = laid.rows[split]
        h = np.asarray(result.decide(laid.x[rows], self.group[rows], laid.client[rows]), dtype=np.float64)
        if h.shape != (len(rows), len(self.classes)) or not np.isfinite(h).all() or np.abs(h.sum(1) - 1).max() > 1e-6:
            accepted = f"one distribution over {len(self.classes)} classes a row"
            raise InputError(f"decisions of shape {h.shape}", accepted, "return the probability of each decision")
        label = self.label[rows]
        values = {"accuracy": h[np.arange(len(rows)), label]}
        values |= rate_values(self.config.criterion, h, label, self.classes)
        by = {
            "group": np.array(self.groups)[self.group[rows]].tolist(),
            "client": np.array(self.clients)[laid.client[rows]].tolist(),
            "label": np.array(self.classes)[label].tolist(),
        }
        person = [str(p) for p in self._person[rows]] if len(self._person) else ()
        return UnitScores("row", self._table_rows[rows].tolist(), values, by, cluster=person)


def _compared(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes whose decisions are kept: of two, the last one says all."""
    return classes[1:] if len(classes) == 2 else classes


def _rate_names(criterion: Criterion, classes: tuple[str, ...]) -> list[str]:
    """Names of the rates of a criterion, in the order of strata and classes."""
    kept, names = _compared(classes), names_of_strata(criterion, classes)
    return list(kept) if len(names) == 1 else [f"{c}, {s}" for s in names for c in kept]


def rate_values(criterion: Criterion, h: Array, label: Ints, classes: tuple[str, ...]) -> dict[str, Array]:
    """Return each rate's value by row, shape (n,): the decision where the rate counts the row, NaN elsewhere.

    Parameters
    ----------
    h : ndarray, shape (n, m)
        Decisions.
    label : int array, shape (n,)
    """
    found = rates_of(criterion, h, classes, _compared(classes), label)
    kinds = dict.fromkeys(stratum for stratum, _ in found)
    values = [found[stratum, one] for stratum in kinds for one in _compared(classes)]
    return dict(zip([f"rate/{n}" for n in _rate_names(criterion, classes)], values, strict=True))
