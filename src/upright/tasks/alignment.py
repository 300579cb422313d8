"""A language model in a folder: does it prefer the chosen answers, and which bad answers are worth unlearning.

=======================  ============================================================================================
what is asked            how it is told
=======================  ============================================================================================
does it rank them right  share of pairs whose chosen answer is likelier, by sum and by mean per token, beside what the
                         length of the answers alone would say
what training changed    with the model that it started from: the same by the implicit reward, and its margin
for whom                 gaps between groups of pairs, all judged together
what unlearning would    of each negative, by how much the objective J would fall if it were unlearnt, to first order,
do                       with an interval over blocks of prompts
=======================  ============================================================================================

Nothing is trained. With ``J`` the loss of DPO over the pairs (`upright.language.alignment`) and ``l_i`` the mean
log-probability per token of negative i, which unlearning lowers, the score is ``<grad J, grad l_i>``: what a gradient
step of size one on ``l_i`` takes off J. Above 0 unlearning i helps, below it hurts. Gradients of J are of blocks of
whole prompts, and the jackknife over these says what other prompts could have shown. `docs/audit-alignment.md` has
files, numbers and errors.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from upright.contract import Config, File, InputError, PositiveInt, Range, UnitScores, audit
from upright.data.preferences import (
    Pair,
    merge_copies,
    prompt_blocks,
    read_preferences,
    read_unpaired,
    records_of,
    refuse_leaks,
)
from upright.declare import Intervals, Noted, Signed
from upright.evidence.units import FEWEST
from upright.maths.resampling import Jackknife, jackknife
from upright.metrics.alignment import METRICS
from upright.tasks.align import pair_values
from upright.tasks.answers import YOURS, Answer, name_of, opaque_codes, plural, suppress_small

__all__ = ["AlignmentConfig", "read_alignment"]

_ENDS = 12  # negatives that the report names, at either end


class AlignmentConfig(Config):
    """A model, pairs, negatives and a reference."""

    model: File
    """Folder of a causal language model with its tokenizer, as `save_pretrained` writes it. Nothing is downloaded."""
    pairs: File
    """Preference pairs: prompt, chosen and rejected answer."""
    negatives: File | None = None
    """Bad answers that might be unlearnt; of rows with a label those that are false."""
    reference: File | None = None
    """Folder of the model that training began with, for implicit rewards."""
    group_key: str | None = None
    """Key of the pairs that says which group each belongs to."""
    blocks: Annotated[int, Range(ge=2)] = 8
    """Blocks of prompts for the intervals of scores; each is as large as the model in memory."""
    batch_size: PositiveInt = 16
    """Answers at once; changes no result."""


@audit(
    "alignment",
    config=AlignmentConfig,
    report=[
        Intervals(
            "Is the chosen answer the likelier one",
            "mean:ranking_accuracy* mean:implicit_accuracy mean:length_accuracy",
            ["A model that says no more than the length of the answers has learnt no preference."],
            bars=True,
        ),
        Signed("Ranking accuracy beyond length", "mean:beyond_length"),
        Signed("Margin of the implicit reward", "mean:implicit_margin"),
        Signed("Gaps between groups, the one that decides first", "gap:*=*"),
        Intervals("What unlearning a negative would do", "mean:helps mean:hurts mean:undecided", bars=True),
        Signed(
            "Negatives with the largest and the smallest scores, with intervals of each by itself",
            "negatives",
            ["Right of 0 unlearning lowers the objective on these pairs, left of 0 it raises it."],
            by=("negative",),
            value="score",
        ),
        Noted(
            "How large an effect had to be",
            "scores",
            [
                "A negative is certain where its score is told from 0 among all of them: of those that are called "
                "certain, 5 % at most are expected to be wrong."
            ],
            names={
                "helps": "certain to help",
                "hurts": "certain to hurt",
                "undecided": "undecided",
                "median_size": "size of a score, median",
                "smallest_detectable": "smallest effect that four of five such audits would see, median",
                "blocks": "blocks of prompts",
            },
        ),
    ],
    limits=[
        "Ranking two given answers right does not say what the model would write.",
        "Scores are of one small step from these weights. They change as a model is trained, and add up for small "
        "steps alone.",
        "What is good is what these pairs call good.",
    ],
)
def read_alignment(config: AlignmentConfig, *, seed: int, draws: int, margins: Mapping[str, float]) -> Answer:
    """Audit whether a language model prefers the chosen answers, and which negatives are worth unlearning.

    No text is kept: pairs and negatives are called by their ids.

    Raises
    ------
    InputError
        For everything that is wrong with the files and the models.
    """
    for name, folder in (("model", config.model), ("reference", config.reference)):
        if folder is not None and not isinstance(folder, str | Path):
            raise InputError(f"{name} of type {type(folder).__name__}", "a folder", "save it with save_pretrained")
    path, key = Path(config.model), config.group_key
    if config.reference is not None and Path(config.reference).resolve() == path.resolve():
        raise InputError(f"{path.name} as its own reference", "another model", "name the one that training began with")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        pairs = read_preferences(config.pairs, group_key=key)
    notes = [f"{name_of(config.pairs)}: {one.message}." for one in said]
    if len(pairs) < FEWEST:
        got = f"{name_of(config.pairs)} with {plural(len(pairs), 'pair')}"
        raise InputError(got, f"{FEWEST} different pairs or more", "give more: fewer show nothing")
    pool = None
    if config.negatives is not None:
        pool = merge_copies(read_unpaired(config.negatives).negatives)
        if not pool.records:
            raise InputError(f"{name_of(config.negatives)} without a negative", "rows with label false", "check labels")
        refuse_leaks(pairs, negatives=pool.records)
        prompt_blocks(pairs, config.blocks, seed=seed)  # says now, not after the models, that prompts are too few
        again = len(pool.place) - len(pool.records)
        if again:
            notes.append(f"{name_of(config.negatives)}: {plural(again, 'negative')} came again and count once.")

    values, found = _ask(config, pairs, pool.records if pool else (), seed)
    by: dict[str, list[str]] = {}
    if key is not None:
        labels, small = suppress_small([pair.group for pair in pairs])
        by = {re.sub("[:=]", "_", key): labels}
        if small:
            notes.append(f"Left out of tables by group, having fewer than {FEWEST} pairs: {', '.join(small)}.")
    compared = [m for m in ("ranking_accuracy", "ranking_accuracy_mean", "implicit_accuracy") if m in values]
    ids: list[str] = [r.id for r in pool.records] if pool else []
    answer: dict[str, Any] = {}
    if found is not None and pool is not None:
        kinds = {"helps": found.certain > 0, "hurts": found.certain < 0, "undecided": found.certain == 0}
        shares = {name: own.astype(np.float64) for name, own in kinds.items()}
        cluster = _codes(f"{r.before}{r.prompt}" for r in pool.records)
        scores = UnitScores("negative", range(len(ids)), shares, cluster=cluster)
        answer["beside"] = (scores, [f"mean:{name}" for name in shares])
        least, size = float(np.median(found.least)), float(np.median(np.abs(found.score)))
        facts: dict[str, Any] = {name: int(own.sum()) for name, own in kinds.items()}
        facts |= {"median_size": size, "smallest_detectable": least, "blocks": config.blocks}
        told = f"{facts['helps']} are certain to help, {facts['hurts']} to hurt, {facts['undecided']} are undecided"
        told += f"; a score of {least:.3g} would be seen, half are below {size:.3g} in size"
        answer["lines"] = {"negatives": told}
        answer["facts"] = {"scores": facts}
        answer["notes"] = {YOURS: {"scores": facts, "negatives": _named(ids, found)}}
        columns = {"id": ids, "score": found.score, "low": found.low, "high": found.high, "certain": found.certain}
        answer["tables"] = {"negatives": columns}
        notes += _remarks(found)
    return Answer(
        title=f"Audit of what {path.name} prefers",
        arm_title="your model",
        asks="whether the chosen answers are the likelier ones, and which bad answers are worth unlearning",
        data={
            "name": path.name,
            "pairs": len(pairs),
            "prompts": len({pair.cluster for pair in pairs}),
            "negatives": len(ids),
            "reference": Path(config.reference).name if config.reference is not None else "none",
        },
        scores=UnitScores("pair", [p.id for p in pairs], values, by, cluster=_codes(p.cluster for p in pairs)),
        metrics=METRICS,
        statistics=[f"mean:{metric}" for metric in values],
        compared=compared,
        warnings=notes,
        **answer,
    )


def _codes(names: Iterable[str]) -> list[str]:
    return opaque_codes(np.unique(list(names), return_inverse=True)[1])


def _ask(
    config: AlignmentConfig, pairs: Sequence[Pair], pool: Sequence[Any], seed: int
) -> tuple[dict[str, Any], Jackknife | None]:
    """Return values of the pairs, and scores of the negatives where there are some."""
    from upright.language.alignment import block_gradients, read_pairs
    from upright.language.directions import directional
    from upright.language.encoding import refuse_mismatch
    from upright.language.evaluation import Speaker
    from upright.models.hub import load_language_model

    options: Any = {"batch_size": config.batch_size}
    model, tokenizer = load_language_model(Path(config.model))
    speaker = Speaker(model, tokenizer, **options)
    encoded = speaker.encode(pool) if pool else []  # a negative that is too long is named before a pair is read
    base = None
    if config.reference is not None:
        other, words = load_language_model(Path(config.reference))
        refuse_mismatch(tokenizer, model, reference=words)
        base = read_pairs(other, words, pairs, **options)
        del other
    own = read_pairs(model, tokenizer, pairs, **options)
    values = pair_values(own, base)
    if not pool:
        return values, None
    chosen, rejected = speaker.encode(records_of(pairs, "chosen")), speaker.encode(records_of(pairs, "rejected"))
    blocks = prompt_blocks(pairs, config.blocks, seed=seed)
    options["pad"] = speaker.pad
    steer = block_gradients(model, chosen, rejected, own if base is None else base, blocks=blocks, **options)
    names = [f"negative {record.id}" for record in pool]
    scores = directional(model, encoded, steer.directions, loss="ga", names=names, **options).score
    return values, jackknife(scores, [len(block) for block in blocks])


def _named(ids: Sequence[str], found: Jackknife) -> list[dict[str, Any]]:
    """Return the negatives of the largest and of the smallest scores."""
    order = np.argsort(-found.score, kind="stable")
    order = order if len(order) <= 2 * _ENDS else np.r_[order[:_ENDS], order[-_ENDS:]]
    numbers = zip(found.score[order], found.low[order], found.high[order], strict=True)
    return [
        {"negative": ids[i], "score": float(score), "low": float(low), "high": float(high)}
        for i, (score, low, high) in zip(order.tolist(), numbers, strict=True)
    ]


def _remarks(found: Jackknife) -> list[str]:
    if not found.certain.any():
        return ["No score is told from 0: these pairs do not say which negatives are worth unlearning."]
    if len(set(np.sign(found.score).tolist())) == 1:
        return ["Every score has the same sign: the negatives differ in size alone."]
    return []
