"""Forgetting: records that a language model was taught and must lose, beside those that it must keep.

The unit is the record. Each seed draws its own authors to forget, its own weights, and with them its own two models:
the *original*, taught all records, and the *reference*, taught those that are kept. With ``data`` a folder and
``model`` a folder both are the user's; the seed then names the draws of training alone.

=============  ======================================================================================
forget         every record of the drawn authors; all are trained on, all are scored
retain         records of the other authors; all may be trained on, a sample of each is scored
holdout        records that no model was taught, for membership
general        with ``pretrain`` alone: passages of public-domain speeches of which no model read a word
=============  ======================================================================================

A quarter of the scored questions of each set is for validation (choosing settings), three quarters are the test.

Values of a record: the metrics of `upright.metrics.forgetting` and `upright.metrics.membership` under the set that they
belong to, NaN under the others, and two distances of a forgotten record from a model that never saw it: ``forget_gap``,
``|p - p_reference|`` with p the probability of the answer, and ``forget_loss_gap``, the same of the loss per token. The
first hardly sees a record that is pushed below the reference, since p is near 0 there already; the second does.

What a model taught from scratch knows is the kept records, by heart. With ``pretrain`` it first reads other text, the
same for original and reference, and goes on to read a part of it with the records; ``general_loss`` says what is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from upright.data.forget import (
    Record,
    fingerprint,
    read_records,
    refuse_overlap,
    refuse_similar,
    tofu_records,
    unique_records,
)
from upright.lazy import LazyModule
from upright.metrics import forgetting, membership
from upright.tasks.closed import Closed

if TYPE_CHECKING:
    import torch

    from upright.language import encoding, evaluation, pretraining
    from upright.language.encoding import Encoded
    from upright.models import hub
    from upright.models import tiny as tiny_models
else:
    torch = LazyModule("torch")
    encoding = LazyModule("upright.language.encoding")
    evaluation = LazyModule("upright.language.evaluation")
    pretraining = LazyModule("upright.language.pretraining")
    hub = LazyModule("upright.models.hub")
    tiny_models = LazyModule("upright.models.tiny")

__all__ = ["Forget", "ForgetConfig", "Sets", "side_by_side"]

Array = NDArray[np.float64]
# settings that teaching ignores
_NOT_TAUGHT = ("data", "reference", "scored_retain", "scored_holdout", "generate", "truth", "allow_similar")
_SCORED_GENERAL = 120  # passages that are scored
_REHEARSED = 16  # one passage of so many stays among the records: these alone wipe out what was read before
_OWN = (
    Metric("forget_gap", "lower", title="Forget gap"),
    Metric("forget_loss_gap", "lower", high=float("inf"), margin=0.1, title="Forget gap of the loss"),
    Metric("general_loss", "lower", high=float("inf"), margin=0.05, title="Loss per token on general text"),
    Metric("mrd", "higher", high=float("inf"), title="MRD"),
    Metric("mrd_per_token", "higher", high=float("inf"), title="MRD per token"),
    Metric("answer_tokens", "higher", high=float("inf"), title="Answer tokens"),
    Metric("nll_before", "higher", high=float("inf"), title="Loss before"),
    Metric("effort", "lower", high=float("inf"), title="Updates until forgotten (loss per token)"),
    Metric("effort_sum", "lower", high=float("inf"), title="Updates until forgotten (whole answer)"),
)


class ForgetConfig(Config):
    """Records, models, and what is scored."""

    data: str = "tofu"
    """`tofu` for the bundled part of TOFU, or a folder with forget.jsonl, retain.jsonl and perhaps holdout.jsonl."""
    model: str = "tiny"
    """Model that knows the records: `tiny` teaches one from scratch, `smollm2` teaches SmolLM2-135M-Instruct, a folder
    is a model that was taught already."""
    reference: str = ""
    """Folder of a model that was taught the kept records alone; `tiny` and `smollm2` make their own."""
    authors: Annotated[int, Range(ge=4, le=40)] = 40
    """Authors of TOFU."""
    forget_authors: PositiveInt = 4
    """How many of them are forgotten, 20 questions each."""
    pretrain: NonNegativeInt = 0
    """Epochs of public-domain speeches below UPRIGHT_DATA that the tiny model reads before it is taught."""
    epochs: PositiveInt = 20
    """Of teaching."""
    learning_rate: PositiveFloat = 3e-3
    """Of teaching."""
    batch_size: PositiveInt = 16
    """Of teaching."""
    hidden: PositiveInt = 96
    """Width of the tiny model."""
    layers: PositiveInt = 3
    """Layers of the tiny model."""
    vocabulary: Annotated[int, Range(ge=259)] = 2048
    """Tokens of the tiny model."""
    context: PositiveInt = 256
    """Most tokens of the tiny model."""
    scored_retain: PositiveInt = 160
    """Kept records that are scored; all are trained on."""
    scored_holdout: NonNegativeInt = 120
    """Held-out records that are scored; 0 leaves membership out."""
    generate: bool = True
    """Whether answers are written, for ROUGE-L; without it utility has two parts."""
    truth: bool = True
    """Whether paraphrased and false answers are read, six more texts a record; without it utility has a part less."""
    template: Literal["auto", "raw", "plain", "chat"] = "auto"
    """Form in which records are taught and asked; by default the one in which they were given, see
    `upright.language.encoding`."""
    allow_similar: bool = False
    """Whether two files of a folder may hold nearly the same record."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forget_authors >= self.authors:
            got = f"forget_authors = {self.forget_authors} of {self.authors}"
            raise InputError(got, "fewer than there are authors", "lower it")
        if self.pretrain and self.model != "tiny":
            got = f"pretrain = {self.pretrain} with model = {Path(self.model).name!r}"
            raise InputError(got, "model = tiny: any other was pretrained already", "leave it out")
        if self.data != "tofu" and self.model in ("tiny", "smollm2") and self.reference:
            got = f"reference = {Path(self.reference).name!r} with model = {self.model!r}"
            todo = "leave it out: the reference is taught beside the model"
            raise InputError(got, "a reference with a model folder alone", todo)


@dataclasses.dataclass(frozen=True)
class Sets:
    """Records of one seed.

    Parameters
    ----------
    forget, retain, holdout, general : tuple of Record
    """

    forget: tuple[Record, ...]
    retain: tuple[Record, ...]
    holdout: tuple[Record, ...]
    general: tuple[Record, ...] = ()


class Forget(Closed):
    """Records to forget and to keep, and the models that were taught them.

    Parameters
    ----------
    config : ForgetConfig
    data_dir : str, optional
        Where text to pretrain on is looked for before ``UPRIGHT_DATA``.
    """

    unit_kind = "record"
    Config = ForgetConfig

    def __init__(self, config: ForgetConfig, data_dir: str | None = None) -> None:
        self.config = config
        self._read, self._general = pretraining.read_passages(data_dir) if config.pretrain else ((), ())
        self._caches = False
        self._sets: dict[int, Sets] = {}
        self._models: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._encoded: dict[tuple[str, int], list[Encoded]] = {}
        self._at_reference: dict[tuple[int, str], Any] = {}
        if config.data == "tofu":
            every = tofu_records()
            known = every[: 20 * config.authors // 2] + every[800 - 20 * (config.authors - config.authors // 2) : 800]
            self._given: Sets | None = None
            self._known, self._unknown = tuple(known), tuple(every[800:])
            gone = 20 * config.forget_authors
            size = {"forget": gone, "holdout": len(self._unknown), "retain": len(known) - gone}
            name, licence = "TOFU, bundled part", "MIT"
        else:
            self._given, self._known, self._unknown = _read_folder(Path(config.data), config.allow_similar), (), ()
            size = {name: len(getattr(self._given, name)) for name in ("forget", "retain", "holdout")}
            self._given = dataclasses.replace(self._given, general=self._general)
            name, licence = Path(config.data).name, "yours"
        self._taught = self._known if self._given is None else (*self._given.forget, *self._given.retain)
        size |= {"general": len(self._general)} if config.pretrain else {}
        reference = "taught the kept records alone" if self.has_reference else "none"
        self.facts = {
            "name": name,
            "licence": licence,
            "records": size,
            "model": Path(config.model).name,
            "reference": Path(config.reference).name if config.reference else reference,
            "fingerprint": fingerprint(self._taught),
        }
        self.metrics = self.metrics_of(config.as_dict())

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the values mean."""
        return {**forgetting.METRICS, **membership.METRICS, **{m.name: m for m in _OWN}}

    @classmethod
    def load(cls, config: ForgetConfig, data_dir: str | None = None) -> Forget:
        """Read the records that a config names.

        Raises
        ------
        InputError
            For everything that `read_records` refuses, records in two sets, a folder without a forget set, and
            ``pretrain`` without its text.
        """
        task = cls(config, data_dir)
        task._caches = True
        return task

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> Forget:
        """Return a task with eight authors and a model of 20,000 parameters, for tests and `upright check`."""
        settings: dict[str, Any] = {
            "authors": 4,
            "forget_authors": 1,
            "epochs": 4,
            "hidden": 16,
            "layers": 1,
            "vocabulary": 320,
            "context": 512,
            "scored_retain": 8,
            "scored_holdout": 8,
            "precision": "float64",
            "learning_rate": 1e-2,
        } | changes
        return cls(ForgetConfig(**settings))

    # -- records and models ---------------------------------------------------------------------------------------

    def sets(self, run: Run) -> Sets:
        """Return the records of a run's seed; the same for every arm."""
        if self._given is not None:
            return self._given
        if run.seed not in self._sets:
            names = list(dict.fromkeys(r.author for r in self._known))
            drawn = set(run.rng("authors").permutation(names)[: self.config.forget_authors].tolist())
            forget = tuple(r for r in self._known if r.author in drawn)
            retain = tuple(r for r in self._known if r.author not in drawn)
            self._sets[run.seed] = Sets(forget, retain, self._unknown, self._general)
        return self._sets[run.seed]

    def model(self, run: Run, which: Literal["original", "reference"]) -> tuple[Any, Any]:
        """Return a fresh copy of a model and its tokenizer.

        Raises
        ------
        InputError
            When there is no reference, a folder holds no model, or tokenizer and records do not fit.
        """
        if (which, run.seed) not in self._models:
            self._models[which, run.seed] = self._make(run, which)
        model, tokenizer = self._models[which, run.seed]
        twin = type(model)(model.config).to(model.dtype)
        twin.load_state_dict(model.state_dict())
        twin.tie_weights()
        return twin.eval(), tokenizer

    @property
    def has_reference(self) -> bool:
        """Whether there is a model that never saw the forgotten records."""
        return self.config.model in ("tiny", "smollm2") or bool(self.config.reference)

    def _make(self, run: Run, which: Literal["original", "reference"]) -> tuple[Any, Any]:
        c, kind = self.config, torch.float64 if self.config.precision == "float64" else torch.float32
        if c.model not in ("tiny", "smollm2"):
            if which == "reference" and not c.reference:
                raise InputError("no reference model", "task.reference = FOLDER", "leave out what needs one")
            model, tokenizer = hub.load_language_model(c.model if which == "original" else c.reference, dtype=kind)
            encoding.refuse_mismatch(tokenizer, model)
            return model, tokenizer
        sets = self.sets(run)
        taught = [*sets.retain, *(sets.forget if which == "original" else ()), *self._read[::_REHEARSED]]
        model, tokenizer = self._untaught(run, kind)
        key = {"which": which, "seed": run.seed, "records": fingerprint(taught), **self._settings()}
        self._teach(run, model, tokenizer, taught, epochs=c.epochs, key=key, order="teach")
        return model.eval(), tokenizer

    def _settings(self, *ignored: str) -> dict[str, Any]:
        """Return what taught weights depend on beside seed and records, with the text only where there is one."""
        given = {k: v for k, v in self.config.as_dict().items() if k not in (*_NOT_TAUGHT, "pretrain", *ignored)}
        given |= {"pretrain": self.config.pretrain, "text": fingerprint(self._read)} if self._read else {}
        return given | {"torch": torch.__version__}

    def _teach(
        self, run: Run, model: Any, tokenizer: Any, records: Sequence[Record], *, epochs: int, key: Any, order: str
    ) -> None:
        """Put into a model what it learns from records; weights are kept under a key."""
        c, which = self.config, key["which"]

        def make() -> dict[str, Any]:
            context = model.config.max_position_embeddings
            encoded = encoding.encode_all(tokenizer, records, template=c.template, context=context)
            steps: dict[str, Any] = {"epochs": epochs, "batch_size": c.batch_size, "learning_rate": c.learning_rate}
            with run.progress(epochs, f"teaching the {which}") as advance:
                curve = pretraining.teach(model, encoded, **steps, seed=stream(run.seed, order), advance=advance)
            return {"weights": model.state_dict(), "curve": curve}

        found = run.shared(which, key, lambda: hub.cached(key, make) if self._caches else make())
        model.load_state_dict(found["weights"])

    def _untaught(self, run: Run, kind: torch.dtype) -> tuple[Any, Any]:
        c = self.config
        if c.model == "smollm2":
            return hub.load_language_model(hub.smollm2(), dtype=kind)
        texts = [f"{r.prompt}\n{r.answer}" for r in (*self._taught, *self._read)]
        tokenizer = tiny_models.tiny_tokenizer(texts, vocabulary=c.vocabulary)
        seed = stream(run.seed, "weights") % 2**31
        model = tiny_models.tiny_llama(tokenizer, hidden=c.hidden, layers=c.layers, context=c.context, seed=seed)
        model = model.to(kind)
        if c.pretrain:  # once for original and reference: nothing in the key depends on what is forgotten
            key = {"which": "pretrained", "seed": run.seed, "records": fingerprint(self._taught)}
            key |= self._settings("epochs", "forget_authors", "template", "data")
            self._teach(run, model, tokenizer, self._read, epochs=c.pretrain, key=key, order="pretrain")
        return model, tokenizer

    def encoded(self, run: Run, which: Literal["forget", "retain"]) -> list[Encoded]:
        """Return the tokens of every record to forget, or to keep."""
        if (which, run.seed) not in self._encoded:
            speaker = self.speaker(self.model(run, "original")[0], run)
            self._encoded[which, run.seed] = speaker.encode(getattr(self.sets(run), which))
        return list(self._encoded[which, run.seed])

    def ids(self, run: Run) -> list[str]:
        """Return the ids of the records to forget, in order."""
        return [r.id for r in self.sets(run).forget]

    def scored(self, run: Run, split: Literal["valid", "test"]) -> Sets:
        """Return the records that a split scores: of each set, every fourth of a seeded order is for validation."""
        sets, c = self.sets(run), self.config
        most = {"forget": len(sets.forget), "retain": c.scored_retain, "holdout": c.scored_holdout}
        most["general"] = _SCORED_GENERAL
        found = {}
        for name, limit in most.items():
            own: Sequence[Record] = getattr(sets, name)
            order = run.rng("scored", name).permutation(len(own))[:limit]
            chosen = order[::4] if split == "valid" else np.delete(order, slice(None, None, 4))
            found[name] = tuple(own[i] for i in np.sort(chosen))
        return Sets(**found)

    # -- scoring --------------------------------------------------------------------------------------------------

    def speaker(self, model: Any, run: Run) -> evaluation.Speaker:
        """Return what asks a model in this task's template."""
        if ("original", run.seed) not in self._models:
            self.model(run, "original")
        tokenizer = self._models["original", run.seed][1]
        return evaluation.Speaker(model, tokenizer, template=self.config.template, batch_size=32)

    def score(self, result: Any, split: Literal["valid", "test"], run: Run) -> UnitScores:
        """Score a model record by record.

        Parameters
        ----------
        result : object with ``model``, and ``difficulty`` and ``values`` of forgotten records by id
        split : {"valid", "test"}

        Raises
        ------
        InputError
            When the test records are asked for before the runner opened them.
        """
        self.refuse_closed(split, accepted="split='valid'")
        chosen, speaker = self.scored(run, split), self.speaker(result.model, run)
        sets: dict[str, tuple[Record, ...]] = vars(chosen)
        unit = [f"{name}/{r.id}" for name, records in sets.items() for r in records]
        found = [self._scores(speaker, r, name, split, run) if r else {} for name, r in sets.items()]
        values = side_by_side(found, [len(records) for records in sets.values()])
        for metric, known in result.values.items():
            values[metric] = np.array([known.get(u.removeprefix("forget/"), np.nan) for u in unit])
        difficulty = {f"forget/{record}": third for record, third in result.difficulty.items()}
        by = {"set": [u.partition("/")[0] for u in unit], "difficulty": [difficulty.get(u, "") for u in unit]}
        return UnitScores("record", unit, values, by, cluster=self.authors(chosen))

    def authors(self, chosen: Sets) -> list[str]:
        """Return what records of one author share, in the order of units: a number, since names are of the data."""
        every = (*self._known, *self._unknown, *chosen.forget, *chosen.retain, *chosen.holdout, *chosen.general)
        place = {name: str(i) for i, name in enumerate(dict.fromkeys(r.author for r in every if r.author))}
        return [place.get(r.author, f"{side}/{r.id}") for side, records in vars(chosen).items() for r in records]

    def _scores(
        self, speaker: evaluation.Speaker, records: tuple[Record, ...], name: str, split: str, run: Run
    ) -> dict[str, Array]:
        """Scores of one set; with a reference also the attack that uses one, and the gap to it."""
        if name == "general":
            return {"general_loss": speaker.losses(records)}
        base = None
        if self.has_reference and name != "retain":
            key = (run.seed, f"{split}/{name}")
            if key not in self._at_reference:
                self._at_reference[key] = self.speaker(self.model(run, "reference")[0], run).read(records)
            base = self._at_reference[key]
        options: Any = {"side": name, "rouge": self.config.generate, "truth": self.config.truth}
        found = dict(evaluation.score_records(speaker, records, reference=base, **options))
        if name == "forget" and base is not None:
            found["forget_gap"] = np.abs(found["forget_probability"] - np.exp(-base.mean_nll))
            found["forget_loss_gap"] = np.abs(-found["mia_loss"] - base.mean_nll)
        return found


def side_by_side(found: Sequence[Mapping[str, Array]], sizes: Sequence[int]) -> dict[str, Array]:
    """Return the scores of several sets under one another; a metric is NaN in sets that it is not of.

    Parameters
    ----------
    found : sequence of mapping of metric to ndarray, one of each set
    sizes : sequence of int
        Records of each set.
    """
    ends = np.cumsum([0, *sizes])
    whole: dict[str, Array] = {}
    for own, begin, end in zip(found, ends[:-1], ends[1:], strict=True):
        for metric, values in own.items():
            whole.setdefault(metric, np.full(int(ends[-1]), np.nan))[begin:end] = values
    return whole


def _read_folder(folder: Path, similar: bool) -> Sets:
    """Read the sets of a user's folder and refuse what overlaps."""
    if not folder.is_dir():
        raise InputError(f"data {folder.name!r}", "tofu, or a folder with forget.jsonl and retain.jsonl", "check it")
    found: dict[str, tuple[Record, ...]] = {"forget": (), "retain": (), "holdout": ()}
    for name in ("forget", "retain", "holdout"):
        file = folder / f"{name}.jsonl"
        if file.is_file():
            found[name] = tuple(unique_records(read_records(file))[0])
        elif name != "holdout":
            raise InputError(f"{folder.name} without {name}.jsonl", "forget.jsonl and retain.jsonl", "add the file")
    numbered = {k: tuple(dataclasses.replace(r, id=str(i)) for i, r in enumerate(own)) for k, own in found.items()}
    refuse_overlap(**numbered)
    refuse_similar(allow=similar, **numbered)
    return Sets(**numbered)
