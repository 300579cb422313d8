"""A language model in a folder: what it still knows of records that it should have forgotten, and what it kept.

====================  ===============================================================================================
what is asked         how it is told
====================  ===============================================================================================
are they still known  probability, ROUGE-L, memorisation of forgotten answers, beside held-out answers
who can tell          AUC of membership scores, forgotten against held-out records
as if never seen      with a retain-only reference: the same numbers of a model that never saw the records, the
                      distance of the truth ratios, and the mean distance record by record
what it cost          probability, ROUGE-L, truth ratio of retained records, and their harmonic mean
====================  ===============================================================================================

Good is the level of a model that never saw the records, not the lowest number: a model that was pushed below it gives
the records away as well. So over-unlearning is reported as a failure. `docs/audit-forgetting.md` has files, numbers and
errors.

Records are asked in the form in which they were given and in every other one in which all of a set can be asked (raw,
plain, chat): names of the others end in the form. What decides is judged together over all forms, in one max-T: with a
reference what the probability of forgotten answers, the AUC of every membership score and the truth ratios show beyond
it when the two models change places on records; without one the AUCs, when forgotten and held-out records change
labels. So the worst form decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from upright.contract import Arm, Config, File, InputError, Metric, PositiveInt, UnitScores, audit
from upright.data.forget import (
    Record,
    fingerprint,
    read_records,
    refuse_overlap,
    refuse_similar,
    unique_records,
)
from upright.declare import Curve, Intervals, Noted, Signed
from upright.evidence.bootstrap import DRAWS, Bootstrap
from upright.evidence.compute import evidence, margins_of
from upright.evidence.records import Level, Null
from upright.evidence.statistics import RETRAIN, SET, computable, parse
from upright.evidence.units import FEWEST, Block, Units
from upright.evidence.verdict import Verdict, audit_verdict
from upright.maths.simultaneous import LEVEL, POWER, Comparisons, Z, reach_zero, wilson
from upright.metrics import forgetting as metrics_of
from upright.metrics import membership
from upright.tasks.answers import YOURS, Answer, name_of, plural, suppress_small
from upright.tasks.forget import side_by_side

__all__ = ["NO_REFERENCE", "ForgettingConfig", "forgetting_evidence", "read_forgetting"]

Array = NDArray[np.float64]
Row = dict[str, Any]
Levels = dict[tuple[str, str], Level]  # by statistic and arm
Sets = Mapping[str, Sequence[Record]]  # by side: forget, retain, holdout
Readings = Mapping[str, Any]  # what a model makes of the records of each side
NO_REFERENCE = "No retain-only reference: how a model answers that never saw the records is not known."
METRICS: dict[str, Metric] = {
    **metrics_of.METRICS,
    **membership.METRICS,
    "holdout_probability": Metric("holdout_probability", "higher", 0.0, 1.0, 0.01, "Probability of held-out answers"),
}
METRICS |= {
    f"{name}_{form}": dataclasses.replace(one, name=f"{name}_{form}", title=f"{one.title}, asked {how}")
    for name, one in METRICS.items()
    for form, how in (("raw", "as running text"), ("plain", "as a question"), ("chat", "by the chat template"))
}
KNOWN, TRUTH = "forget_probability", "forget_truth_probability"
MARGIN = METRICS[KNOWN].margin
FAR = 0.1  # an AUC so far below that of the reference, or below 1/2, is over-unlearning
_LEVEL = "the level of a model that never saw the records"
_OWN = ("memory_gap", "ks_distance", "forget_quality")  # distances from the reference
MOST_AUTHORS = 50  # shown, those that are known best
TITLES = {YOURS: "your model", RETRAIN: "retain-only reference"}
_GRID = 101  # places of a distribution function that a report draws: no value of a single record


class ForgettingConfig(Config):
    """A model, the records, and a reference."""

    model: File
    """Folder of a causal language model with its tokenizer, as `save_pretrained` writes it. Nothing is downloaded."""
    forget: File
    """JSON lines: what should be forgotten."""
    retain: File
    """JSON lines: what should be kept."""
    holdout: File | None = None
    """JSON lines of the same kind that the model never saw, for membership."""
    reference: File | None = None
    """Folder of a model trained without the forgotten records: the level at which nothing is left of them. Both models
    are in memory at once."""
    template: Literal["auto", "raw", "plain", "chat"] = "auto"
    """Form in which records are asked first; by default the one in which they were given."""
    cluster: str = "author"
    """Key of the records that says which of them share a cause, such as a person: those are drawn together."""
    allow_similar: bool = False
    """Go on where two files hold nearly the same record."""
    generate: bool = True
    """Write answers, for ROUGE-L; takes most of the time."""
    batch_size: PositiveInt = 16
    """Records at once; changes no result."""


@audit(
    "forgetting",
    config=ForgettingConfig,
    report=[
        Intervals(
            "What is still known: the probability of answers",
            "mean:forget_probability* mean:holdout_probability mean:retain_probability*",
            bars=True,
        ),
        Signed(
            "Beyond the reference, or beyond guessing",
            "beyond:forget_probability* beyond:mia_*",
            [
                "Above 0 records are still known; below, they were pushed under the level of unseen ones, which gives "
                "them away as well."
            ],
        ),
        Intervals(
            "Who can tell a forgotten record from an unseen one",
            "membership:*",
            ["Distance of the attack's AUC from 1/2, which is guessing."],
        ),
        Intervals(
            "What is still known: by heart and in its own words",
            "mean:forget_rouge_l mean:exact_memorisation* mean:extraction_strength*",
            bars=True,
        ),
        Intervals("Distances from the reference", "memory_gap:* ks_distance:*"),
        Curve(
            "Does the true answer stand out among false ones",
            "truth",
            [
                "How many records have at most this share of the true answer: left of one half the false answers are "
                "the likelier ones."
            ],
            x="share of the true answer",
            y="share of forgotten records",
        ),
        Intervals(
            "What is left of the retained records",
            "utility:retain mean:retain_probability mean:retain_rouge_l mean:retain_truth_ratio",
            ["A utility of 0 is a model of no use."],
            bars=True,
        ),
        Noted(
            "By author, numbered in the order of the file",
            "authors.rows",
            by={"author": "Author"},
            names={
                "n": "records",
                "forget_probability.yours.value": "probability",
                "forget_probability.retrain.value": "of the reference",
                "extraction_strength.yours.value": "extraction strength",
                "extraction_strength.retrain.value": "of the reference ",
            },
        ),
    ],
    limits=[
        "The aim is the level of a model that never saw the records. A lower number is not better: what is pushed "
        "below that level stands out as well.",
        "No audit proves that a model has forgotten. Knowledge that these questions do not reach may come back with a "
        "few steps of training, other words or rounded weights.",
        "Intervals resample records with the models as they are. Two models trained alike differ too; how much, one "
        "pair does not tell.",
        "Membership compares forgotten with held-out records. Where the two kinds differ in what they say, the AUC of "
        "a model that saw neither is not one half: that of the reference tells.",
        "Values of single records say which ones were to be forgotten. This page has means alone; keep units.parquet "
        "as you keep the records.",
    ],
)
def read_forgetting(config: ForgettingConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit what a language model still knows of records that it should have forgotten.

    No text and no id of a record is kept: records and authors are numbered in the order of the files.

    Raises
    ------
    InputError
        For everything that is wrong with the files and the models.
    """
    margin = margins_of({KNOWN: MARGIN}, margins)[KNOWN]
    warnings: list[str] = []
    files = {side: getattr(config, side) for side in ("forget", "retain", "holdout")}
    files = {side: path for side, path in files.items() if path is not None}
    sets = {side: _records(path, side, warnings, config.cluster) for side, path in files.items()}
    refuse_overlap(**sets)
    warnings += refuse_similar(allow=config.allow_similar, **sets)
    if config.generate:
        metrics_of.rouge_l_recall(["a"], ["a"])  # says now, not after an hour, that a package is missing
    for name, folder in (("model", config.model), ("reference", config.reference)):
        if folder is not None and not isinstance(folder, str | Path):
            raise InputError(f"{name} of type {type(folder).__name__}", "a folder", "save it with save_pretrained")
    model, reference = Path(config.model), config.reference
    if reference is not None and Path(reference).resolve() == model.resolve():
        todo = "name a model that was trained without the forgotten records"
        raise InputError(f"{model.name} as its own reference", "another model", todo)
    arms = _ask(config, sets)
    lost = [m for m in arms[YOURS] if all(np.isnan(own.get(m, math.nan)).all() for own in arms.values())]
    kept = {name: {m: v for m, v in own.items() if m not in lost} for name, own in arms.items()}
    warnings += _remarks(sets, lost, reference is not None, "holdout" in files)

    by, cluster = _groupings(sets, warnings)
    ids = [f"{side}-{i + 1}" for side, records in sets.items() for i in range(len(records))]
    scores = {name: UnitScores("record", ids, own, by, cluster=cluster) for name, own in kept.items()}
    blocks = [Block("audit_forgetting", name, seed, one) for name, one in scores.items()]
    found, facts, notes = forgetting_evidence(blocks, draws=draws, seed=seed, margin=margin)
    counts = {side: len(records) for side, records in sets.items()}
    return Answer(
        title=f"Audit of what {model.name} has forgotten",
        arm_title=TITLES[YOURS],
        asks="what is left of records that should be forgotten, and of those that should stay",
        data={
            "name": model.name,
            **{f"{side}_records": n for side, n in counts.items()},
            "reference": Path(reference).name if reference is not None else "none",
            "fingerprint": fingerprint(r for records in sets.values() for r in records),
        },
        scores=scores[YOURS],
        metrics=METRICS,
        facts={"records": counts, **facts},
        notes=notes,
        warnings=warnings,
        evidence=found,
        others=[(name, TITLES[name], scores[name]) for name in scores if name != YOURS],
    )


# -- files and models -----------------------------------------------------------------------------------------------


def _records(path: Any, side: str, warnings: list[str], cluster: str) -> list[Record]:
    """Read one set without repetitions."""
    records, again = unique_records(read_records(path, cluster=cluster))
    if again:
        warnings.append(f"{name_of(path)}: {plural(again, 'repeated record')} left out.")
    if len(records) < FEWEST:
        raise InputError(
            f"{name_of(path)} with {plural(len(records), 'record')}",
            f"{FEWEST} different records or more",
            f"audit the {side} sets of several requests together: fewer records show nothing",
        )
    return records


def _ask(config: ForgettingConfig, sets: Sets) -> dict[str, dict[str, Array]]:
    """Return scores of the model and, if there is one, of the reference, shape (U,) each, forgotten records first."""
    from upright.language.encoding import refuse_mismatch
    from upright.language.evaluation import Speaker
    from upright.models.hub import load_language_model

    options: dict[str, Any] = {"template": config.template, "batch_size": config.batch_size}
    own = load_language_model(Path(config.model))
    speaker = Speaker(*own, **options)
    for records in sets.values():
        speaker.encode(records)  # a record that is too long is named before the first one is scored
    other, readings = {}, {}
    if config.reference is not None:
        beside = load_language_model(config.reference)
        refuse_mismatch(own[1], own[0], reference=beside[1])
        second = Speaker(*beside, **options)
        readings = {side: second.read(records) for side, records in sets.items()}
        other = {RETRAIN: _scores(second, sets, readings, {}, config.generate)}
        del second, beside
    found = {side: speaker.read(records) for side, records in sets.items()}
    return {YOURS: _scores(speaker, sets, found, readings, config.generate), **other}


def _scores(speaker: Any, sets: Sets, own: Readings, reference: Readings, generate: bool) -> dict[str, Array]:
    """Score every set."""
    from upright.language.evaluation import score_records

    found = []
    for side, records in sets.items():
        beside = None if side == "retain" else reference.get(side)
        options: Any = {"side": side, "reading": own[side], "rouge": generate, "reference": beside, "forms": True}
        one = score_records(speaker, records, **options)
        if side == "holdout":
            one["holdout_probability"] = metrics_of.probability(own[side].mean_nll)
        found.append(one)
    return side_by_side(found, [len(records) for records in sets.values()])


def _remarks(sets: Sets, lost: Sequence[str], reference: bool, holdout: bool) -> list[str]:
    found = [] if reference else [NO_REFERENCE]
    if not holdout:
        found.append("No held-out records: whether forgotten records stand out from unseen ones is not measured.")
    for side in ("forget", "retain"):
        few = sum(not (r.paraphrases and r.perturbed) for r in sets[side])
        if few:
            what = "has no truth ratio" if f"{side}_truth_ratio" in lost else f"has none for {plural(few, 'record')}"
            found.append(f"The {side} set {what}: records need paraphrased_answer and perturbed_answer.")
    return found


def _groupings(sets: Sets, warnings: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return groupings and what records are drawn with, authors as numbers in the order of the files.

    Groupings are the set of each record and the author of forgotten ones.
    """
    by = {SET: [side for side, records in sets.items() for _ in records]}
    cluster, few = membership.author_clusters({side: [r.author for r in records] for side, records in sets.items()})
    if few:
        warnings.append(
            f"The {' and '.join(few)} records are of fewer than 6 authors: intervals are of other records of these "
            "authors, not of other authors."
        )
    names = [r.author for r in sets["forget"]]
    place = {name: str(i + 1) for i, name in enumerate(dict.fromkeys(n for n in names if n))}
    labels, small = suppress_small([place.get(n, "") for n in names])
    if small:
        warnings.append(f"{plural(len(small), 'author')} with fewer than {FEWEST} forgotten records not shown.")
    if any(labels):
        by["author"] = labels + [""] * (len(by[SET]) - len(labels))
    return by, cluster


# -- numbers --------------------------------------------------------------------------------------------------------


def forgetting_evidence(
    blocks: Sequence[Block], *, draws: int = DRAWS, seed: int = 0, margin: float = MARGIN
) -> tuple[Row, Row, dict[str, Row]]:
    """Return levels with the verdict, facts of the audit, and notes of each model.

    Parameters
    ----------
    blocks : sequence of Block
        Of the arm `YOURS` and, where there is a reference, of `RETRAIN`.
    margin : float
        Smallest difference that matters.
    """
    units = Units(blocks)
    boot, reference = Bootstrap(units, draws, seed), RETRAIN in units.arms
    roles = [Arm(YOURS, "baseline", title=TITLES[YOURS]), Arm(RETRAIN, "rival", title=TITLES[RETRAIN])]
    means = [m for m in METRICS if m in units.metrics and not m.startswith("mia_")]
    asked = [f"mean:{m}" for m in sorted(means, key=lambda m: m != KNOWN)]  # what a person asks for first
    asked += ["utility:retain", f"memory_gap:{KNOWN}", f"ks_distance:{TRUTH}", f"forget_quality:{TRUTH}"]
    texts = [text for text in asked if computable(text, units)]
    found = evidence(units, arms=roles, statistics=texts, metrics=METRICS, draws=draws, seed=seed, boot=boot)
    rows = [Level.read(row) for row in found["levels"]]
    # no reference is compared with itself
    levels = {(x.statistic, x.arm): x for x in rows if x.arm == YOURS or not (math.isnan(x.value) or x.name in _OWN)}
    pairs: list[tuple[float, Level]] = []
    for arm in units.arms:
        scores = _scored(units, arm)
        if scores:
            judged = membership.compare_attacks(units, scores, arm, rng=boot.null_rng("membership"))
            levels |= {(f"membership:{m}", arm): _distance(boot, m, arm, judged, k) for k, m in enumerate(scores)}
            pairs += [] if reference else _pairs(judged, dict.fromkeys(scores, "1/2"), levels)
    pairs += _beyond_reference(boot, levels) if reference else []
    shown = [level for _, level in sorted(pairs, key=lambda pair: -pair[0])]
    levels |= {(x.statistic, x.arm): x for x in (*(_changes(boot, texts) if reference else ()), *shown)}
    said = _verdict(shown or [levels[f"mean:{KNOWN}", YOURS]], levels, reference, margin)
    found["verdict"] = said.row()
    found["headline"] = levels[said.primary, YOURS].row()
    found["levels"] = [x.row() for x in levels.values()]
    facts = {"reference": reference, "authors": _authors(blocks, roles, draws, seed)}
    return found, facts, {arm: {"truth": _truth(units, arm)} for arm in units.arms}


def _scored(units: Units, arm: str) -> list[str]:
    """Return the membership scores that an arm has of forgotten and of held-out records."""
    known = {m: np.isfinite(units.values(arm, m)) for m in METRICS if m.startswith("mia_") and m in units.metrics}
    sides = [units.by[SET] == side for side in ("forget", "holdout")]
    return [m for m, have in known.items() if all((have & side).any() for side in sides)]


def _null_errors(found: Comparisons) -> Array:
    """Return the standard error of each comparison under chance, shape (K,)."""
    deviations = np.sqrt((found.averaged.astype(np.float64) ** 2).mean(0))
    return np.asarray(np.divide(np.abs(found.value), found.score, out=deviations, where=found.score > 0))


def _distance(boot: Bootstrap, metric: str, arm: str, found: Comparisons, k: int) -> Level:
    """Return the level ``|AUC - 1/2|`` of a score, adjusted for all scores; its p is that of what it decides by."""
    one = parse(f"membership:{metric}", boot, METRICS)
    have, should = (int(x.any(0).sum()) for x in one.count(arm, None))
    value, low, high = (float(x[k]) for x in (found.value, found.low, found.high))
    return Level(
        statistic=one.text,
        label=one.label(None),
        metric=metric,
        arm=arm,
        value=abs(value),
        low=max(min(low, high) if value >= 0 else min(-low, -high), 0.0),
        high=max(abs(low), abs(high)),
        better=one.better,
        n_units=have,
        n_undefined=should - have,
        null=Null(float(found.averaged[:, k].mean()), 0.0, float(found.critical * _null_errors(found)[k])),
        smallest_detectable=float(found.detectable[k]),
        more={"auc": 0.5 + value, "auc_low": 0.5 + low, "auc_high": 0.5 + high},
    )


def _pairs(found: Comparisons, metrics: Mapping[str, str], levels: Levels) -> list[tuple[float, Level]]:
    """Return what a model shows of metrics beyond something, signed, each with its T."""
    pairs = []
    for k, (m, beyond) in enumerate(metrics.items()):
        numbers = found.numbers(k, turn=False)
        if beyond == "1/2":  # an AUC is at most 1
            numbers |= {end: float(np.clip(numbers[end], -0.5, 0.5)) for end in ("low", "high")}
        own, other = (levels.get((f"membership:{m}", arm)) for arm in (YOURS, RETRAIN))
        level = Level(
            statistic=f"beyond:{m}",
            label=f"{METRICS[m].title.replace('Membership score:', 'AUC by')}, minus {beyond}",
            metric=m,
            arm=YOURS,
            n_units=(own or levels[f"mean:{m}", YOURS]).n_units,
            **numbers,
        )
        if own is not None:
            state = ("over-unlearned" if _is_over(level) else "told apart") if level.shown else "not told apart"
            level = dataclasses.replace(level, more={"state": state} | (_leak(own, other) if other else {}))
        pairs.append((float(found.score[k]), level))
    return pairs


def _leak(own: Level, other: Level) -> Row:
    return {"privleak": membership.privleak(*(float(np.clip(x.more["auc"], 0.0, 1.0)) for x in (own, other)))}


def _beyond_reference(boot: Bootstrap, levels: Levels) -> list[tuple[float, Level]]:
    """Return every comparison with the reference, adjusted for all of them, each with its T.

    The distance D of the truth ratios has another law than a difference. So its place among the permutations, which
    are the same, is written as a normal score and joins the others in the maximum.
    """
    from scipy.stats import rankdata  # half a second, which a typo need not wait for

    metrics = {m: "the reference" for m in boot.units.metrics if m.startswith(KNOWN)}
    metrics |= {
        m: "the reference" if (f"membership:{m}", RETRAIN) in levels else "1/2" for m in _scored(boot.units, YOURS)
    }
    found = membership.compare_models(boot.units, [*metrics], YOURS, RETRAIN, rng=boot.null_rng("ks_distance"))
    score, top = found.score, (found.averaged / np.maximum(_null_errors(found), 1e-300)).max(1)
    truth = levels.get((f"ks_distance:{TRUTH}", YOURS))
    size: NDArray[Any] = np.zeros(0)
    if truth is not None and math.isfinite(truth.value):
        distance = parse(truth.statistic, boot, METRICS)
        size, *_ = distance.null(YOURS, None) or (size,)
        n = len(size)
        score = np.append(score, -ndtri((1 + (size >= truth.value - 1e-12).sum()) / (1 + n) / 2))
        top = np.maximum(top, -ndtri((n + 1 - rankdata(size, "min")) / n / 2))
    critical = max(float(np.quantile(top, 1 - LEVEL, method="higher")), Z)
    p = (1 + (top[:, None] >= score - 1e-9).sum(0)) / (1 + len(top))
    own, error = slice(len(metrics)), found.detectable / (found.critical + POWER)
    low, high = found.value - critical * error, found.value + critical * error
    low, high = np.clip(reach_zero(low, high, p[own]), -1.0, 1.0)
    least = (critical + POWER) * error
    pairs = _pairs(dataclasses.replace(found, low=low, high=high, p=p[own], detectable=least), metrics, levels)
    if truth is not None and len(size):
        drawn, far = distance.draws(YOURS, None), float(np.quantile(size, 1 - 2 * ndtr(-critical)))
        near, top_end = drawn.interval(critical)
        if truth.value > 1 - 1e-9:  # no draw differs
            near = float(wilson(1.0, truth.n_clusters or truth.n_units, critical)[0])
        low, high = np.clip(reach_zero(near, top_end, p[-1]), -1.0, 1.0).tolist()
        null, least_d = Null(float(size.mean()), 0.0, far), far + POWER * drawn.standard_error()
        ends: Row = {"low": low, "high": high, "p": float(p[-1]), "smallest_detectable": least_d}
        pairs.append((float(score[-1]), dataclasses.replace(truth, null=null, **ends)))
    return pairs


def _changes(boot: Bootstrap, texts: Sequence[str]) -> list[Level]:
    """Return every mean and the utility minus that of the reference; they decide nothing, so they have no p."""
    found = []
    for one in (parse(text, boot, METRICS) for text in texts):
        if one.name not in ("mean", "utility"):
            continue
        change = one.draws(YOURS, None) - one.draws(RETRAIN, None)
        low, high = change.interval()
        level = Level(
            statistic=f"beyond:{one.metric}",
            label=f"{one.label(None)}, minus the reference",
            metric=one.metric,
            arm=YOURS,
            value=change.value,
            low=low,
            high=high,
            n_units=int(one.count(YOURS, None)[0].any(0).sum()),
            smallest_detectable=(Z + POWER) * change.standard_error(),
        )
        found.append(level)
    return found


def _truth(units: Units, arm: str) -> list[Row]:
    """Return the distribution function of the share of the true answer on a grid; nothing where no record has it."""
    values = units.values(arm, TRUTH)[0] if TRUTH in units.metrics else np.array([math.nan])
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return []
    grid = np.linspace(0.0, 1.0, _GRID)
    shares = np.searchsorted(known, grid, side="right") / len(known)
    return [
        {"share of the true answer": x, "share of forgotten records": y}
        for x, y in zip(grid.tolist(), shares.tolist(), strict=True)
    ]


def _authors(blocks: Sequence[Block], roles: Sequence[Arm], draws: int, seed: int) -> Row | None:
    """Return means by author of the forgotten records, those that are known best first, with records drawn singly."""
    if "author" not in blocks[0].scores.by:
        return None
    units = Units([dataclasses.replace(b, scores=dataclasses.replace(b.scores, cluster=())) for b in blocks])
    texts = [f"mean:{m}:author" for m in (KNOWN, "extraction_strength") if m in units.metrics]
    levels = evidence(units, arms=roles, statistics=texts, metrics=METRICS, draws=draws, seed=seed)["levels"]
    rows: dict[str, Row] = {}
    for x in levels:
        row = rows.setdefault(x["group"], {"author": x["group"], "n": x["n_units"]})
        row.setdefault(x["metric"], {})[x["arm"]] = {k: x[k] for k in ("value", "low", "high")}
    order = sorted(rows.values(), key=lambda r: -r[KNOWN][YOURS]["value"])
    return {"rows": order[:MOST_AUTHORS], "authors": len(order)}


# -- words ----------------------------------------------------------------------------------------------------------


def _is_over(pair: Level) -> bool:
    """Whether forgotten records are pushed below the level of unseen ones."""
    return pair.high < 0 and (pair.metric.startswith(KNOWN) or pair.value <= -FAR)


def _verdict(pairs: Sequence[Level], levels: Levels, reference: bool, margin: float) -> Verdict:
    """Return the verdict, whose word is still known or over-unlearned where the side is shown, else told apart."""
    seen = [x for x in pairs if x.shown and max(-x.low, x.high) > margin]
    kind = "over-unlearned" if any(map(_is_over, seen)) else "told apart"
    kind = "still known" if any(x.metric.startswith(KNOWN) and x.low > 0 for x in seen) else kind
    lacking = [] if reference else [_LEVEL]
    said = audit_verdict(kind, pairs, margin=margin, unit="record", unmeasured=lacking)
    steps = said.next_steps
    if not reference:  # what is lacking is no record
        hand_in = "Hand in a model that never saw the records, as reference."
        steps = (*steps[:-1], hand_in) if math.isfinite(pairs[0].p) else (hand_in,)
    useful, beside = (levels.get(("utility:retain", arm)) for arm in (YOURS, RETRAIN))
    if useful is None:
        return dataclasses.replace(said, next_steps=steps)
    kept = f"{useful.label}: {useful.value:.3f} [{useful.low:.3f}, {useful.high:.3f}]"
    lines = {**said.lines, "kept": kept + (f"; of the reference {beside.value:.3f}" if beside else "")}
    return dataclasses.replace(said, next_steps=steps, lines=lines, cost_statistic=useful.statistic)
