"""A model that was edited, by any tool: is the new answer given where it should be, and all else as it was before.

==========================  =========================================================================================
what is asked               how it is told
==========================  =========================================================================================
is the fact corrected       reliability; generality over other words, other pictures and both; portability
is all else as before       locality of text and of pictures, and its hard slices: the same picture with another
                            question, another picture with the same question, the question without a picture
both at once                the edit score, a harmonic mean, and the worst environment of each edit
==========================  =========================================================================================

Each teacher-forced and written out (`upright.metrics.editing`). Nothing is trained: the base says what was answered
before, the edited model what is answered now, to the held-out questions of each request (`upright.editing.measures`),
which are those of the desk. Perfect is 1 everywhere, so the *shortfall* of a metric is 1 minus its mean over edits. The
teacher-forced ones are judged together, in one max-T in which an edit and a perfect one change places.
`docs/audit-edit.md` has files, numbers and errors.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upright.contract import Config, File, InputError, UnitScores, audit, stream
from upright.declare import Intervals, Noted
from upright.evidence.compute import margins_of
from upright.evidence.records import Level
from upright.evidence.verdict import audit_verdict
from upright.maths.simultaneous import FEWEST, compare_groups
from upright.metrics.editing import ENVIRONMENTS, METRICS
from upright.tasks.answers import YOURS, Answer, levels_of, name_of, plural

__all__ = ["EditConfig", "read_editing"]

Values = dict[str, NDArray[np.float64]]  # by metric, one an edit
_JUDGED = tuple(metric for metric in ENVIRONMENTS.values() if metric != "portability")  # which no edit was asked for
_NEW = ("edit", "text", "image", "joint", "portability")  # where the answer before is not what is wanted
_WORST = 20  # edits that the report names


class EditConfig(Config):
    """An edited model, the model before, and the requests."""

    model: File
    """Folder of the edited model, or of an adapter of `peft` for the base; with `edit` of the model that these were
    made for. Nothing is downloaded."""
    edits: File
    """JSON lines: the requests, in the form of MMEdit and VLKEB; pictures lie below the folder of the file."""
    base: File | None = None
    """Folder of the model before any edit; with `edit` by default the model itself. Both are in memory at once."""
    edit: tuple[File, ...] = ()
    """Files of edits, as the desk keeps them, that go on the model in this order."""


@audit(
    "edit",
    config=EditConfig,
    report=[
        Intervals(
            "Is the new answer given where it should be",
            "mean:reliability* mean:*_generality* mean:portability*",
            ["Read it with the next block: a model that answers the target to everything is perfect here."],
            bars=True,
        ),
        Intervals(
            "Is every other answer as it was before",
            "mean:text_locality* mean:image_locality* mean:same_image* mean:other_image* mean:no_image*",
            ["An answer counts where each token is as before. The same picture with another question is the hardest."],
            bars=True,
        ),
        Intervals("Both at once", "mean:edit_score* mean:worst_environment*", bars=True),
        Intervals(
            "Short of a perfect edit, what decides first",
            "shortfall:*",
            ["0 is perfect. Ends of intervals hold for all of them together."],
        ),
        Noted(
            "Edits, the worst first, teacher-forced",
            "edits",
            by={"edit": "Edit", "environment": "Worst environment"},
            names={"worst": "there", "score": "edit score"},
        ),
        Noted("How many questions were asked", "questions", names={name: name for name in ENVIRONMENTS}),
    ],
    limits=[
        "Locality is of the questions that were asked. That no other answer changed, no audit shows.",
        "As before is as the base answered, right or wrong.",
        "Intervals are over edits like these, in models like this one: edits that one model holds share its fate.",
        "Of a long answer the first 16 tokens are compared, or as many as the longest target has.",
    ],
)
def read_editing(config: EditConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit what an edit of a model changed, where it should and where it should not.

    No text and no picture is kept: edits are called by their ids.

    Raises
    ------
    InputError
        For everything that is wrong with the files and the models.
    """
    for file in (config.model, config.base or "", config.edits, *config.edit):
        if not isinstance(file, str | Path):
            raise InputError(f"a {type(file).__name__}", "paths: pictures lie beside the requests", "save it as a file")
    path, base = Path(config.model), Path(config.base or config.model)
    if not config.edit and base.resolve() == path.resolve():
        got = f"{path.name} {'as its own base' if config.base else 'without a base'} and without an edit"
        raise InputError(got, "the model before and after", "pass --base FOLDER, or the edits as --edit FILE")
    judged = margins_of({metric: METRICS[metric].margin for metric in _JUDGED}, margins)
    found, notes = _ask(config, seed)

    ids, values = found.values()
    values = {m: values[m] for m in METRICS if m in values and not np.isnan(values[m]).all()}
    values = dict(sorted(values.items(), key=lambda one: not one[0].startswith("edit_score")))
    if len(ids) < FEWEST:
        notes.append(f"{plural(len(ids), 'edit')}: with fewer than {FEWEST} no shortfall is told from chance.")
    if "edit_score" not in values:
        notes.append("No edit score: the requests bring no unrelated question (loc, or m_loc with m_loc_q).")
    scores = UnitScores("edit", ids, values)
    held = levels_of(scores, [f"mean:{metric}" for metric in values], METRICS, draws=draws, seed=seed)
    _judge(held, values, seed, judged)
    counts = dict(Counter(found.environment))
    columns = {"edit": found.edit, "environment": found.environment, "equal": found.equal, "written": found.written}
    return Answer(
        title=f"Audit of what an edit changed in {path.name}",
        arm_title="your model",
        asks="whether new answers are given where they should be, and all others as before",
        data={
            "name": path.name,
            "edits": len(ids),
            "questions": len(found.edit),
            "base": base.name,
            "edit_files": [name_of(one) for one in config.edit],
        },
        scores=scores,
        metrics=METRICS,
        compared=list(judged),
        notes={YOURS: {"questions": counts, "edits": _worst(ids, values)}},
        warnings=notes,
        evidence=held,
        tables={"questions": columns},
    )


def _ask(config: EditConfig, seed: int) -> tuple[Any, list[str]]:
    """Return what the edited model answers to each held-out question, and what is to be said of requests and model."""
    from upright.editing.edits import applied, base_checksum, load_edit, refuse_other_base
    from upright.editing.environments import environments, read_requests
    from upright.editing.measures import before, measure, present
    from upright.models.hub import is_adapter, load_editable

    with warnings.catch_warnings(record=True) as odd:
        warnings.simplefilter("always", UserWarning)
        requests = read_requests(config.edits)
    notes, path = [f"{name_of(config.edits)}: {one.message}." for one in odd], Path(config.model)
    edits = [load_edit(file) for file in config.edit]  # damaged files are named before a model is loaded
    base, processor = load_editable(config.base or config.model)
    if not hasattr(processor, "image_processor") and any(r.edit.image or r.image_rephrase or r.m_loc for r in requests):
        read_requests(config.edits, text_only=True)  # names the line of the picture
    model = base
    if config.base is not None and Path(config.base).resolve() != path.resolve():
        model, words = load_editable(path, base=config.base)
        vocabularies = [getattr(one, "tokenizer", one).get_vocab() for one in (processor, words)]
        if vocabularies[0] != vocabularies[1]:
            got = f"{path.name} with another tokenizer than {Path(config.base).name}"
            raise InputError(got, "the same tokens before and after", "name the base that this model was edited from")
        if not edits and not is_adapter(path) and base_checksum(model) == base_checksum(base):
            got = f"{path.name} with the weights of {Path(config.base).name}: nothing is edited"
            raise InputError(got, "an edited model", "name the folder that the tool wrote, or the edits as --edit FILE")
    for edit in {one.facts.get("base"): one for one in edits}.values():  # one checksum, as a rule
        refuse_other_base(edit, model)
    given = {one.id: environments(one, seed=seed) for one in requests}
    was_said = present(base, processor, given)
    again = [name for name, one in given.items() if _alike(was_said[name], one.test["edit"][0].answer)]
    if len(again) < len(given):
        given = {name: one for name, one in given.items() if name not in again}
        notes += [f"{plural(len(again), 'request')} left out, which the base answers already."] if again else []
    was = before(base, processor, given)
    if was.left_out:
        notes.append(f"Not asked, since {type(base).__name__} needs a picture: {', '.join(was.left_out)}.")
    with applied(model, edits):
        found = measure(model, processor, was)
    rows = zip(found.edit, found.environment, found.answers, found.written, strict=True)
    same = [_alike(x, was_said[e]) if where == "edit" else ok or where in _NEW for e, where, x, ok in rows]
    if all(same):
        notes.append("No answer differs from that of the base: as far as these questions show, nothing is edited.")
    return found, notes


def _alike(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()


def _shortfalls(values: Values, seed: int) -> list[Level]:
    """Return by how much each metric falls short of 1, adjusted for all of them, the largest T first."""
    names = [metric for metric in _JUDGED if metric in values]
    own = np.stack([values[metric] for metric in names], axis=-1)  # (E, M)
    table = np.concatenate([np.where(np.isnan(own), np.nan, 1.0), own])[None]
    side, edit = np.repeat([0, 1], len(own))[None], np.tile(np.arange(len(own)), 2)
    found = compare_groups(table, side, edit, 2, rng=np.random.default_rng(stream(seed, "audit", "null")))
    levels = []
    for k in np.argsort(-found.score, kind="stable").tolist():
        about, numbers = METRICS[names[k]], found.numbers(k)
        numbers |= {"low": max(numbers["low"], 0.0), "high": min(numbers["high"], 1.0)}
        if not numbers["value"]:  # edits that are all perfect have no spread, which is no proof
            numbers["smallest_detectable"] = numbers["high"]
        elif math.isfinite(numbers["smallest_detectable"]):
            numbers["smallest_detectable"] = min(numbers["smallest_detectable"], 1.0)
        statistic, label, count = f"shortfall:{about.name}", f"{about.title}: shortfall", np.isfinite(own[:, k]).sum()
        levels.append(Level(statistic=statistic, label=label, metric=about.name, arm=YOURS, better="lower",
                            n_units=int(count), **numbers))  # fmt: skip
    return levels


def _judge(found: dict[str, Any], values: Values, seed: int, margins: Mapping[str, float]) -> None:
    """Add shortfalls and the verdict to evidence; fewer than six edits are measured and not judged."""
    means, pairs = list(map(Level.read, found["levels"])), _shortfalls(values, seed)
    enough = len(next(iter(values.values()))) >= FEWEST
    shown = ("edit_score", "edit_score_written", "reliability", "worst_environment")
    told = [x for name in shown for x in means if x.metric == name and math.isfinite(x.value)]
    ends = [f"[{x.low:.3f}, {x.high:.3f}]" if math.isfinite(x.low) else "(of one edit)" for x in told]
    text = "; ".join(f"{x.label} {x.value:.3f} {end}" for x, end in zip(told, ends, strict=True))
    said = audit_verdict("gap shown", pairs if enough else [], margin=margins, unit="edit")
    found["levels"] += [x.row() for x in pairs]
    found["headline"] = next(x for x in (*pairs, *means) if x.statistic == (said.primary or told[0].statistic)).row()
    found["verdict"] = said.row() | {"primary": found["headline"]["statistic"]}
    found["verdict"]["lines"] = {**said.lines, "edit": text}
    if not enough:
        steps = [f"Hand in {FEWEST} edits or more: fewer show no shortfall."]
        found["verdict"] |= {"sentence": f"{text}.", "lines": {"effect": text}, "next_steps": steps}


def _worst(ids: Sequence[str], values: Values) -> list[dict[str, Any]]:
    """Return the edits with the smallest values, each with the environment where it has it."""
    names = [metric for metric in _JUDGED if metric in values]
    table = np.stack([values[metric] for metric in names], axis=-1)  # (E, M)
    least, nothing = np.nanmin(table, axis=1), np.full(len(ids), np.nan)
    score = values.get("edit_score", nothing)
    order = np.lexsort((np.nan_to_num(score, nan=2.0), least))[:_WORST]
    where = np.nanargmin(table, axis=1)
    return [
        {"edit": ids[i], "environment": METRICS[names[where[i]]].title, "worst": float(least[i])}
        | ({"score": float(score[i])} if math.isfinite(score[i]) else {})
        for i in order.tolist()
    ]
