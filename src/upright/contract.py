"""The lowest floor: what a method, a task and a run promise each other.

Standard library only, so that a method's native door runs on a bare accelerator image.

* `Config` is a frozen dataclass whose fields carry ranges; every method, task and audit is configured by one.
* `method` marks a function as a method and records what `upright check` derives its tests from.
* `Run` and `Task` are the two protocols a method meets: where randomness, logging and checkpoints come
  from, and what data it may see.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = [
    "Arm",
    "AuditSpec",
    "Config",
    "File",
    "InputError",
    "MethodSpec",
    "Metric",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "Range",
    "Run",
    "Task",
    "Training",
    "UnitScores",
    "accepted",
    "audit",
    "method",
    "reading",
    "spec_of",
    "stream",
]


class InputError(ValueError):
    """Bad input from a person, in three parts: what was got, what is accepted, what to do."""

    def __init__(self, got: str, accepted: str, todo: str) -> None:
        super().__init__(got, accepted, todo)
        self.got, self.accepted, self.todo = got, accepted, todo

    def __str__(self) -> str:
        return f"{self.got}\n  accepted: {self.accepted}\n  to do:    {self.todo}"


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, carried in `Annotated[float, Range(ge=0)]`."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        signs = ((self.gt, ">"), (self.ge, ">="), (self.lt, "<"), (self.le, "<="))
        return " and ".join(f"{sign} {bound:g}" for bound, sign in signs if bound is not None)


File = Annotated[Any, "a path, or a data frame"]
PositiveInt = Annotated[int, Range(gt=0)]
NonNegativeInt = Annotated[int, Range(ge=0)]
PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Config:
    """Settings that may not lie: a frozen, keyword-only dataclass checked when it is made.

    Subclasses declare annotated fields with defaults, each followed by a docstring. Numbers carry their
    bounds as `Annotated[float, Range(...)]`, choices are `Literal`.

    Raises
    ------
    InputError
        When a value lies outside its range or choices.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, field.name), hints[field.name]
            if not reading(value, hint):
                got = f"{type(self).__name__}.{field.name} = {value!r}"
                raise InputError(got, accepted(hint), f"set {field.name} to a value inside that range")

    def replace(self, **changes: Any) -> Any:
        """Return a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def at_seed(self, seed: int) -> Any:
        """Return the config of one seed of a run: this one, unless something of it is drawn anew."""
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values, in order of declaration."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


class Training(Config):
    """Settings that training loops share; a method's config inherits them."""

    learning_rate: PositiveFloat = 1e-3
    """Step size of the optimiser."""
    epochs: PositiveInt = 400
    """Most epochs; validation stops earlier."""
    batch_size: PositiveInt = 2048
    """Training examples a step."""
    check_every: PositiveInt = 5
    """Epochs between validation checks."""
    patience: PositiveInt = 5
    """Checks without a better validation score before stopping; a third of the checks so far, where that is more."""


def reading(value: Any, hint: Any) -> tuple[Any, ...]:
    """Return a value as a field's type holds it, in a tuple, or nothing; a whole number may be a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return next(filter(None, (reading(value, one) for one in inner)), ())
    if origin is Annotated:
        found = reading(value, inner[0])
        return found if found and all(value in mark for mark in inner[1:] if isinstance(mark, Range)) else ()
    if origin is Literal:
        fits = any(type(value) is type(one) and value == one for one in inner)
    elif origin in (tuple, list):
        fits = isinstance(value, tuple | list) and all(reading(one, inner[0]) for one in value)
    elif hint in (int, float):
        fits = isinstance(value, int | hint) and not isinstance(value, bool)
    else:
        fits = hint is Any or isinstance(value, origin or hint)
    return (float(value) if hint is float else value,) if fits else ()


def accepted(hint: Any) -> str:
    """Say in words what a field's type accepts."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(accepted, inner))
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin is Annotated:
        marks = " and ".join(map(str, inner[1:]))
        return marks if inner[0] is Any else f"{accepted(inner[0])} {marks}"
    if origin is not None:
        return str(hint).replace("typing.", "")
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def stream(seed: int, *name: str | int) -> int:
    """Derive the seed of a named random stream.

    ``stream(seed, *name) = first 8 bytes of SHA-256(json([seed, *name]))``: a function of the name alone, so
    that skipping one client or arm changes nobody else's numbers.

    Returns
    -------
    int
        Unsigned, below 2**63.
    """
    # NumPy integers name the same stream as Python's
    words = [part if isinstance(part, str) else int(part) for part in (seed, *name)]
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a metric's values mean, as data.

    Parameters
    ----------
    name : str
        Field vocabulary, for example ``ndcg@10``.
    direction : {"higher", "lower"}
        Which way is better.
    low, high : float
        Range of one unit's value.
    margin : float
        Largest change of the mean that counts as equal, in the metric's own unit.
    title : str
        How a report writes it.
    """

    name: str
    direction: Literal["higher", "lower"] = "higher"
    low: float = 0.0
    high: float = 1.0
    margin: float = 0.01
    title: str = ""


@dataclasses.dataclass(frozen=True)
class UnitScores:
    """Scores of one result on one split, one value per unit.

    Parameters
    ----------
    unit_kind : str
        What is counted: ``user``, ``item``, ``client``, ``row`` ...
    unit : sequence of int or str, shape (U,)
        Identifier of each unit.
    values : mapping of metric name to sequence of float, shape (U,)
        NaN where a metric is not defined for a unit.
    by : mapping of grouping name to sequence of str, shape (U,)
        Group of each unit under each grouping.
    totals : mapping of name to float
        Quantities of the whole result that are no mean over units (catalogue coverage, Gini of exposure).
    cluster : sequence of str, shape (U,)
        What units share a cause with: the author of a question, the person behind rows. Units of a cluster are drawn
        together and move together under chance. Empty: each unit by itself.
    """

    unit_kind: str
    unit: Sequence[Any]
    values: Mapping[str, Any]
    by: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    totals: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cluster: Sequence[str] = ()


class Run(Protocol):
    """What a method may ask of the run it is part of."""

    seed: int
    arm: str

    def rng(self, *name: str | int) -> Any:
        """Return a NumPy generator for a named stream; the same name gives the same numbers in every arm."""

    def torch_rng(self, *name: str | int) -> Any:
        """Return a CPU `torch.Generator` for a named stream."""

    def log(self, step: int, **values: float) -> None:
        """Append one line to ``metrics.jsonl``."""

    def save(self, step: int, state: Mapping[str, Any], *, best: bool = False) -> None:
        """Checkpoint a state; ``best`` keeps it beside the last one."""

    def restore(self, which: Literal["last", "best"] = "last") -> dict[str, Any] | None:
        """Return the last (or best) checkpoint of this arm, None when there is none."""

    def training(
        self, config: Any, *, epochs: int | None = None, patience: int | None = -1, first: int = 0, **parts: Any
    ) -> Any:
        """Return the companion of a training loop, a context manager.

        ``with run.training(config, model=model, optimiser=optimiser) as epochs:`` and ``for epoch in epochs:`` give the
        epochs that are left; ``epochs.log(loss=...)`` writes a line an epoch, ``epochs.check(score)``, where
        ``epochs.due``, keeps a checkpoint of all parts and counts patience. Leaving it restores the best. A loop that
        was killed goes on to the same bits.

        Parameters
        ----------
        config : Training
            ``epochs``, ``check_every`` and ``patience``; the first and the last may be given in their place, a patience
            of None lets a loop run to its end, -1 is the config's.
        first : int
            Epochs logged before this loop.
        **parts
            Anything with ``state_dict`` and ``load_state_dict``, lists of such, or dicts that the loop changes.
        """

    def silent(self) -> Any:
        """Return a run inside this run: the same seed, streams and shared values, kept in memory, nothing written."""

    def shared(self, name: str, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what ``make()`` gives, made once for all arms of this run that ask with the same name and key."""

    def note(self, name: str, value: Any) -> None:
        """Record a diagnostic or a condition (JSON-able) under this arm in ``summary.json``.

        A record about people carries their number as ``n``, a histogram as ``counts``: what rests on one to four of
        them is taken out.
        """

    def picture(self, name: str, data: bytes) -> None:
        """Keep a picture (PNG, animated PNG or WebP, at most 300 kB) and note it, for a report's `Picture`."""

    def warn(self, text: str) -> None:
        """Say what is correct but probably a mistake; the report repeats it."""

    def progress(self, total: int, label: str) -> Any:
        """Return a context manager whose value is a callable ``advance(n=1)``."""


class Task(Protocol):
    """Data and how an answer to it is scored per unit. Methods see train and validation only."""

    unit_kind: str
    metrics: Mapping[str, Metric]
    train: Any
    valid: Any

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score a result per unit; the runner alone asks for ``test``, once, at the end."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the paired results of a run.

    Parameters
    ----------
    name : str
        As stored in ``units.parquet``.
    role : {"baseline", "remedy", "trivial", "placebo", "rival", "anchor", "sweep"}
        What the arm controls for; a rival is another remedy that decides no verdict, an anchor a point for the eye
        that nothing is compared with, a sweep another strength of an arm, for fronts alone.
    settings : mapping
        Config fields that make this arm out of the user's config.
    title : str
        How a report writes it.
    sweep : sequence, optional
        Strengths of this arm in a sweep, in place of the method's: losses of another scale want another grid.
    unfit : callable, optional
        ``unfit(task) -> str``: why this arm has no meaning for a task, empty where it has. Unless it was asked for by
        name, such an arm is left out with a warning.
    simpler : bool
        Whether it is simpler than the remedy: a verdict names it where the two are not told apart.
    mix : (str, str), optional
        Not trained: ``(baseline, other)``, the first with probability w, at each seed such that the primary statistic
        is the remedy's: solved on the rows that are scored, which favours this control. It is compared on the cost.
    controls : sequence of str
        Of a rival: anchors that control for it alone; it gets four lines of its own, as if it were the remedy.
    """

    name: str
    role: Literal["baseline", "remedy", "trivial", "placebo", "rival", "anchor", "sweep"]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    title: str = ""
    sweep: Sequence[Any] | None = None
    unfit: Callable[[Any], str] | None = None
    simpler: bool = False
    mix: tuple[str, str] | None = None
    controls: Sequence[str] = ()


F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """What a method declares; as a decorator, `method`, it marks ``run(task, config, run) -> result``.

    Parameters
    ----------
    name : str
        Registered name.
    task : str
        ``module:Class`` of the task; the class has ``Config``, ``load(config, ...)`` and ``tiny(seed)``.
    config : type of Config
        The method's settings.
    title, mends : str
        Full name, and in a few words what it mends.
    neutral : sequence of settings
        Settings at which the remedy must equal the baseline within 1e-9 in float64.
    arms : sequence of Arm
        Exactly one baseline and one remedy, at least one trivial remedy and one placebo.
    statistics : sequence of str
        Statistics of `units.parquet` that a report shows, as ``name:metric[:grouping]``.
    primary, cost : str
        The statistic that decides whether the remedy works, and the one that may not get worse.
    presets : mapping of preset name to mapping with the keys ``method``, ``task`` and perhaps ``arms``
        Sizes: ``quick`` and ``full``, and the arms where they are not all.
    tune : mapping of field name to candidate values
        Grid on which every arm but the baseline is tuned on validation.
    tiny : mapping
        Settings under which `upright check` runs the method in seconds.
    sweep : mapping of one field to values
        Strengths that ``--sweep`` adds to every arm but the baseline, so that a report draws fronts.
    report : sequence of upright.declare.Block, the first that draws a plot standing beside the verdict
    limits : sequence of str
        What a result does not say, in sentences.
    demo : mapping
        ``data``, ``settings``, ``arms`` and published ``study`` of its part in `upright demo`; none: not shown.
    export : mapping of kind to ``write(task, config, parts, seed, folder)``
        For `upright export RUN kind`: takes the parts that training kept of the remedy elsewhere.
    variants : mapping of ``setting=value`` of the task to what is declared instead where it holds
    run : callable
        The marked function.

    Raises
    ------
    TypeError
        When the declaration is incomplete.
    """

    name: str
    _: dataclasses.KW_ONLY
    task: str
    config: type[Config]
    title: str
    mends: str
    neutral: Sequence[Mapping[str, Any]]
    arms: Sequence[Arm]
    statistics: Sequence[str]
    primary: str
    cost: str
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sweep: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    report: Sequence[Any] = ()
    limits: Sequence[str] = ()
    demo: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    export: Mapping[str, Callable[..., None]] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    run: Callable[..., Any] = lambda task, config, run: None

    def __post_init__(self) -> None:
        roles = [arm.role for arm in self.arms]
        if roles.count("baseline") != 1 or roles.count("remedy") != 1 or not {"trivial", "placebo"} <= set(roles):
            raise TypeError(
                f"method {self.name!r} declares arms with roles {roles}; accepted: one baseline, one remedy, at least "
                "one trivial and one placebo; add the missing arm"
            )
        if not self.neutral:
            raise TypeError(f"method {self.name!r} declares no neutral setting; declare where it equals its baseline")

    def __call__(self, f: F) -> F:
        """Mark a function."""
        f.__upright__ = dataclasses.replace(self, run=f)  # type: ignore[attr-defined]
        return f

    def under(self, task: Mapping[str, Any]) -> MethodSpec:
        """Return what is declared under settings of the task."""
        own = next((self.variants[x] for x in (f"{k}={v}" for k, v in task.items()) if x in self.variants), {})
        return dataclasses.replace(self, **own)

    def arm(self, role: str) -> Arm:
        """Return the first arm with a role."""
        return next(arm for arm in self.arms if arm.role == role)


@dataclasses.dataclass(frozen=True)
class AuditSpec:
    """What an audit declares; as a decorator, `audit`, it marks ``read(config, *, seed, draws, margins) -> Answer``.

    Parameters
    ----------
    kind : str
        Registered name: ``ranking``.
    config : type of Config
        Files, as `File`, and settings; the command line is made of it. The first file stands without an option.
    report, limits : sequence
        As of `MethodSpec`.
    read : callable
        The marked function.
    """

    kind: str
    _: dataclasses.KW_ONLY
    config: type[Config] = Config
    report: Sequence[Any] = ()
    limits: Sequence[str] = ()
    read: Callable[..., Any] = lambda config, **options: None

    def __call__(self, f: F) -> F:
        """Mark a function."""
        f.__upright__ = dataclasses.replace(self, read=f)  # type: ignore[attr-defined]
        return f


method, audit = MethodSpec, AuditSpec


S = TypeVar("S", MethodSpec, AuditSpec)


def spec_of(f: Callable[..., Any], kind: type[S] = MethodSpec) -> S:  # type: ignore[assignment]
    """Return the declaration of a marked function.

    Raises
    ------
    TypeError
        When the function carries no such mark.
    """
    spec = getattr(f, "__upright__", None)
    if not isinstance(spec, kind):
        mark, word = ("method", "a method") if kind is MethodSpec else ("audit", "an audit")
        raise TypeError(f"{f!r} is not {word}; accepted: a function marked with @upright.contract.{mark}; mark it")
    return spec
