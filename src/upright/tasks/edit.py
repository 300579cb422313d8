"""Editing: facts of a model that are to be corrected, each with questions that train its edit and others that test it.

The unit is the edit in one environment; its cluster is the edit. With ``data`` a file and ``model`` a folder both are
the user's; else each seed draws its own countries and teaches its own model of `upright.editing.flags`, where edits are
corrections (a capital as it once was, to the present one) and counterfactuals in turn. Validation edits are other edits
than those of the test. What the model says before is read before any edit is made.

=============  ======================================================================================================
trains         the edit, two re-phrasings and two views; questions to keep: those that the request brings, some about
               what it does not speak of, and other questions about its picture
tests          held-out re-phrasings, views and questions to keep; of flags, other countries than those that train
=============  ======================================================================================================

A value is one of `upright.metrics.editing` at its own environment; ``edit_score`` and ``worst_environment`` stand once
an edit, in the row of ``edit``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from upright.contract import Config, InputError, Metric, NonNegativeInt, PositiveInt, Run, UnitScores
from upright.lazy import LazyModule
from upright.metrics.editing import ENVIRONMENTS, METRICS
from upright.tasks.closed import Closed

if TYPE_CHECKING:
    import torch

    from upright.editing import edits, environments, flags, measures, prompts
    from upright.models import hub
else:
    torch = LazyModule("torch")
    edits = LazyModule("upright.editing.edits")
    environments = LazyModule("upright.editing.environments")
    flags = LazyModule("upright.editing.flags")
    measures = LazyModule("upright.editing.measures")
    prompts = LazyModule("upright.editing.prompts")
    hub = LazyModule("upright.models.hub")

__all__ = ["Edit", "EditConfig"]

Split = Literal["valid", "test"]
_MODELS: dict[tuple[Any, str], tuple[Any, Any]] = {}


class EditConfig(Config):
    """Edits and the model."""

    data: str = "flags"
    """`flags`, or a file of edit requests, one JSON object a line."""
    model: str = "taught"
    """`taught` with flags; with a file, the folder of a model of yours."""
    small: bool = True
    """Whether 12 flags are taught in place of 24, without continents."""
    test: PositiveInt = 6
    """Edits for the result; of a file, all but those for validation."""
    valid: NonNegativeInt = 2
    """Edits for validation."""
    paraphrases: NonNegativeInt = 2
    """Re-phrasings that train an edit."""
    views: NonNegativeInt = 2
    """Other pictures that train an edit."""
    unrelated: NonNegativeInt = 4
    """Questions to keep beside those of a request, as many with a picture as without."""
    same: NonNegativeInt = 2
    """Other questions about the picture that train an edit, of flags alone; as many test it."""
    teaching: NonNegativeInt = 0
    """Updates of teaching, if not as many as a world needs."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.data == "flags") != (self.model == "taught"):
            got = f"data = {Path(self.data).name!r} with model = {Path(self.model).name!r}"
            raise InputError(got, "flags with taught, or a file of requests with a folder", "set data and model")


@dataclasses.dataclass(frozen=True, eq=False)
class _Seed:
    """What one seed has: ``said`` are its model's answers to edits, ``known`` what it says to all test questions."""

    model: Any
    processor: Any
    base: str
    given: Mapping[str, environments.Environments]
    said: Mapping[str, str]
    known: Mapping[Split, measures.Before]


class Edit(Closed):
    """Edits of facts, and the model that holds these facts.

    Parameters
    ----------
    config : EditConfig
    data_dir : str, optional
        Of no use: flags are bundled, and other data are a path.
    """

    unit_kind = "environment"
    Config = EditConfig

    def __init__(self, config: EditConfig, data_dir: str | None = None) -> None:
        self.config = config
        self._seeds: dict[int, _Seed] = {}
        self._own: tuple[Any, Any] | None = None
        self._requests: list[environments.EditRequest] = []
        self.facts: dict[str, Any] = {"name": "flags, their countries and capitals", "model": "taught here"}
        self.facts["licence"] = "pictures MIT, (c) 2013 Panayiotis Lipiridis; facts of our own"
        known: Any = flags.FACTS if config.data == "flags" else None
        if known is None:
            self._own = hub.load_editable(config.model)
            text_only = not hasattr(self._own[1], "image_processor")
            self._requests = environments.read_requests(config.data, text_only=text_only)
            self.facts = {"name": Path(config.data).name, "licence": "yours", "model": Path(config.model).name}
            self.facts["edits"] = len(self._requests)
            known = [(environments.question_key(one.edit), one.edit.answer) for one in self._requests]
        self.facts["fingerprint"] = hashlib.sha256(repr(known).encode()).hexdigest()
        self.metrics = self.metrics_of(config.as_dict())

    @staticmethod
    def metrics_of(settings: Mapping[str, Any]) -> dict[str, Metric]:
        """Return what the values mean."""
        return dict(METRICS)

    @classmethod
    def load(cls, config: EditConfig, data_dir: str | None = None) -> Edit:
        """Read the requests and the model that a config names.

        Raises
        ------
        InputError
            As `read_requests` and `load_editable`.
        """
        return cls(config, data_dir)

    @classmethod
    def tiny(cls, seed: int = 0, **changes: Any) -> Edit:
        """Return a task of two edits of a model that was hardly taught, for tests and `upright check`."""
        sizes = {"test": 2, "valid": 1, "paraphrases": 1, "views": 1, "unrelated": 1, "same": 1}
        return cls(EditConfig(**{**sizes, "teaching": 3, "precision": "float64", **changes}))

    # -- what a method may see ------------------------------------------------------------------------------------

    def model(self, run: Run) -> tuple[Any, Any]:
        """Return the model of a run's seed, to be read and hooked alone, and its processor."""
        held = self._of(run)
        return held.model, held.processor

    def base(self, run: Run) -> str:
        """Return the checksum of that model."""
        return self._of(run).base

    def given(self, run: Run) -> dict[str, environments.Environments]:
        """Return what trains each edit, those for validation as well, without the questions that test it."""
        return {name: dataclasses.replace(own, test={}) for name, own in self._of(run).given.items()}

    def _of(self, run: Run) -> _Seed:
        if run.seed not in self._seeds:
            self._seeds[run.seed] = self._make(run)
        return self._seeds[run.seed]

    def _make(self, run: Run) -> _Seed:
        c = self.config
        if self._own:
            model, processor = self._own
            every = [self._requests[i] for i in run.rng("edits").permutation(len(self._requests))]
            pools = {r.id: [o.edit for o in every if o is not r][: 2 * c.unrelated] for r in every}
            given = {r.id: self._environments(r, run, pools[r.id], ()) for r in every}
            valid = min(c.valid, len(every) - 1)
        else:
            world = flags.world(run.seed, small=c.small)
            world = dataclasses.replace(world, steps=c.teaching or world.steps)
            with run.progress(world.steps, "teaching flags") as advance:
                model, processor = _taught(world, c.precision, advance)
            given, valid = self._drawn(run, world, model, processor), c.valid
        names = list(given)
        splits: dict[Split, list[str]] = {"valid": names[:valid], "test": names[valid:]}
        known = {
            split: measures.before(model, processor, {name: given[name] for name in own})
            for split, own in splits.items()
            if own
        }
        said = measures.present(model, processor, given)
        return _Seed(model, processor, edits.base_checksum(model), given, said, known)

    def _drawn(self, run: Run, world: Any, model: Any, processor: Any) -> dict[str, environments.Environments]:
        """Draw corrections and counterfactuals in turn, without those that the model answers already."""
        c, rng = self.config, run.rng("edits")
        most = [sum(bool(fact.once) == once for fact in world.countries) for once in (True, False)]
        kinds: tuple[Literal["correction", "counterfactual"], ...] = ("correction", "counterfactual")
        turns = zip(*(flags.requests(world, rng, n, kind=k) for n, k in zip(most, kinds, strict=True)), strict=False)
        found = {}
        for request in itertools.chain.from_iterable(turns):
            found[request.id] = self._environments(request, run, *_beside(world, request, rng, c.unrelated, c.same))
        said = measures.present(model, processor, found)
        fit = [name for name, own in found.items() if said[name] != own.test["edit"][0].answer]
        if len(fit) < c.valid + c.test:
            got = f"{c.valid + c.test} edits of {len(fit)} that the model does not answer already"
            raise InputError(got, "as many or fewer", "lower test or valid, or set small to false")
        return {name: found[name] for name in fit[: c.valid + c.test]}

    def _environments(self, request: Any, run: Run, unrelated: Any, same: Any) -> environments.Environments:
        c = self.config
        sizes = {"paraphrases": c.paraphrases, "views": c.views}
        return environments.environments(request, seed=run.seed, **sizes, unrelated=unrelated, same=same)

    # -- scoring --------------------------------------------------------------------------------------------------

    def score(self, result: Any, split: Split, run: Run) -> UnitScores:
        """Score edits one by one, each on the model without the others.

        Parameters
        ----------
        result : object with ``edits`` and ``before``
            By request, an `Edit` or None; and a text that is written before each of its questions, or "".
        split : {"valid", "test"}

        Raises
        ------
        InputError
            When the test is asked for before the runner opened it, and for validation without edits.
        """
        held = self._of(run)
        self.refuse_closed(split, "questions")
        if split not in held.known:
            raise InputError("no edits for validation", "at least one", "raise valid")
        rows, shown = list[tuple[str, str, dict[str, float]]](), list[dict[str, str]]()
        for name in held.known[split].given:
            was, edit = held.known[split], result.edits.get(name)
            if text := result.before.get(name):
                was = _told(was, held.processor, name, text)
            with contextlib.nullcontext() if edit is None else edit.applied(held.model):
                measured = measures.measure(held.model, held.processor, was, name)
            found = {metric: float(value[0]) for metric, value in measured.values()[1].items()}
            wrote = dict(zip(measured.environment, measured.answers, strict=True))
            asked = held.given[name].train["edit"][0]
            told = {"prompt": asked.prompt, "target": asked.answer, "before": held.said[name], "now": wrote["edit"]}
            shown.append({"edit": name, **told, "beside": wrote.get("same_image", "")})
            for place in wrote:
                own = (ENVIRONMENTS[place], *(("edit_score", "worst_environment") if place == "edit" else ()))
                rows.append((name, place, {m + end: found[m + end] for m in own for end in ("", "_written")}))
        run.note("examples", shown[:6])
        values = {m: np.array([row.get(m, np.nan) for _, _, row in rows]) for m in self.metrics}
        by = {"environment": [place for _, place, _ in rows]}
        if self._own is None:
            by["kind"] = [name.split("-")[0] for name, _, _ in rows]
        unit, cluster = [f"{name}/{place}" for name, place, _ in rows], [name for name, _, _ in rows]
        return UnitScores("environment", unit, values, by, cluster=cluster)


def _taught(world: Any, precision: str, advance: Any) -> tuple[Any, Any]:
    """Return the model and the processor of a world, made once in a process: who takes them changes nothing."""
    if (world, precision) not in _MODELS:
        model, processor, _ = flags.teach(world, advance=advance)
        _MODELS[world, precision] = model.to(getattr(torch, precision)), processor
    return _MODELS[world, precision]


def _beside(
    world: Any, request: Any, rng: np.random.Generator, unrelated: int, same: int
) -> tuple[list[Any], list[Any]]:
    """Return questions to keep about countries that a request does not speak of, and about its own picture."""
    said = " ".join(f"{q.prompt} {q.answer}" for q in (*request.loc, *request.m_loc, *request.portability))
    free = [f for f in world.countries if f.country not in said and f.taught("capital") not in said]
    pool, beside = list[Any](), list[Any]()
    for i in range(unrelated if free else 0):
        of, kind = [free[i % len(free)]], world.kinds[i % len(world.kinds)]
        pool += flags.questions(world, rng, kind, image=True, held_out=False, of=of)
        pool += flags.questions(world, rng, "capital", image=False, held_out=False, of=of)
    (own,) = [f for f in world.countries if request.id.endswith(f"-{f.code}")]
    others = [kind for kind in world.kinds if kind != "capital"]
    for held_out in (False, True):
        asked = {k: rng.permutation(flags.wordings(k, held_out=held_out, image=True)).tolist() for k in others}
        for i in range(same):
            kind = others[i % len(others)]
            beside.append(prompts.Question(asked[kind].pop(), own.taught(kind), request.edit.image))
    return pool, beside


def _told(was: measures.Before, processor: Any, name: str, text: str) -> measures.Before:
    """Return the questions of one edit with a text before each."""
    asked = [one for one in was.questions if one.edit == name]
    told = [dataclasses.replace(one.question, prompt=f"{text} {one.question.prompt}") for one in asked]
    asked = [one._replace(encoded=prompts.encode(processor, q)) for one, q in zip(asked, told, strict=True)]
    return dataclasses.replace(was, questions=tuple(asked))
