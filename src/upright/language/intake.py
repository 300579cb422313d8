"""What a person hands to the forgetting desk: settings and files, read and checked before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from upright.contract import Config, InputError, NonNegativeInt, PositiveFloat, PositiveInt, Range
from upright.data.forget import Record, refuse_overlap
from upright.language.encoding import refuse_mismatch
from upright.language.evaluation import Speaker
from upright.language.objectives import objective_of
from upright.language.receipts import records_of
from upright.models.hub import load_language_model

__all__ = ["Inputs", "Settings", "expectation", "inputs", "refuse_loss"]

_BEYOND = ("idk_dpo", "alt_po", "pdu", "rmu")  # alternative answers, a bound, a layer


class Settings(Config):
    """How records are unlearned."""

    loss: str = "npo"
    """Forget loss, or a pair of forget and retain loss."""
    sampling: Literal["mrd", "uniform"] = "mrd"
    """Which records are drawn more often: in proportion to difficulty, or all alike."""
    learning_rate: PositiveFloat = 1e-5
    """Of AdamW."""
    epochs: PositiveInt = 5
    """Most passes; a record that has reached its level is left alone from then on."""
    batch_size: PositiveInt = 8
    """Records to forget an update; as many kept ones beside them."""
    utility_floor: Annotated[float, Range(ge=0, le=1)] = 0.9
    """Share of the utility before that must be left."""
    rouge: bool = True
    """Whether answers are written out and compared, which takes most of the time of an evaluation."""
    seed: NonNegativeInt = 0
    """Of sampling, of the noise of the scores and of resampling."""


@dataclass
class Inputs:
    """What a person handed in, read and checked.

    Parameters
    ----------
    speaker : Speaker
        The model.
    forget, retain, holdout : list of Record
    reference : Speaker or None
        A model that never saw the records.
    notes : list of str
        What is correct but probably a mistake.
    """

    speaker: Speaker
    forget: list[Record]
    retain: list[Record]
    holdout: list[Record]
    reference: Speaker | None
    notes: list[str]


def refuse_loss(name: str) -> None:
    """Refuse an unknown loss, and one that asks for more than records: the desk takes no options of losses.

    Raises
    ------
    InputError
    """
    if name in _BEYOND:
        raise InputError(f"loss {name!r} at the desk", "a loss of records alone, such as npo, simnpo, ga or grad_diff",
                         "train with upright.language.trainer.UnlearnTrainer, which takes its options")  # fmt: skip
    objective_of(name)


def _fits(speaker: Speaker, name: str, records: Sequence[Record]) -> None:
    """Refuse a record that the model cannot take whole, naming its file."""
    try:
        if records:
            speaker.encode(records)
    except InputError as error:
        raise InputError(f"{name} file: {error.got}", error.accepted, error.todo) from None


def inputs(
    model_dir: Path, forget_file: Path, retain_file: Path | None = None, *, holdout: Path | None = None,
    reference: Path | None = None, batch_size: int = 8,
) -> Inputs:  # fmt: skip
    """Read everything, cheapest first, and refuse what cannot be right.

    Raises
    ------
    InputError
        For an empty or broken file, a record in two files, a tokenizer that is not the model's, a record longer than
        the context, a folder that is no model.
    """
    notes: list[str] = []
    forget = records_of("forget", forget_file, notes)
    retain, unseen = records_of("retain", retain_file, notes), records_of("holdout", holdout, notes)
    refuse_overlap(forget=forget, retain=retain, holdout=unseen)
    model, tokenizer = load_language_model(model_dir)
    speaker = Speaker(model, tokenizer, batch_size=batch_size)
    other = None
    if reference is not None:
        ref_model, ref_tokenizer = load_language_model(reference)
        refuse_mismatch(tokenizer, model, reference=ref_tokenizer)
        other = Speaker(ref_model, ref_tokenizer, batch_size=batch_size)
    for name, records in (("forget", forget), ("retain", retain), ("holdout", unseen)):
        for one in (speaker, other):
            if one is not None:
                _fits(one, name, records)
    return Inputs(speaker, forget, retain, unseen, other, notes)


# -- dry run --------------------------------------------------------------------------------------------------------


def expectation(given: Inputs, settings: Settings) -> dict[str, Any]:
    """Say what a request would take, from the time of one small batch on this machine.

    Backward takes two forward passes, and each epoch begins with one over the forget set. A scoring takes 13 to 133 of
    them, 40 in the minutes.
    """
    speaker, n, m = given.speaker, len(given.forget), len(given.retain)
    few = given.forget[: settings.batch_size]
    start = time.perf_counter()
    speaker.read(few)
    read = (time.perf_counter() - start) / len(few)
    start = time.perf_counter()
    if settings.rouge:
        speaker.write(few)
    write = (time.perf_counter() - start) / len(few)
    scoring = 40 if settings.sampling == "mrd" else 0
    looks, steps = 2 + (given.reference is not None), settings.epochs * -(-n // settings.batch_size)
    false = max(len(r.perturbed) + len(r.paraphrases) for r in given.forget)
    texts = n * (1 + false) + m + len(given.holdout)
    seconds = read * (scoring * n + settings.epochs * n * 7 + looks * texts) + write * looks * (n + m)
    passes = {
        "scoring": f"13 to 133 over {n} records" if scoring else "none",
        "training": f"{steps} steps: {settings.epochs} times {n} records and as many kept ones, forward and backward",
        "evaluation": f"{looks} times {texts} texts",
    }  # fmt: skip
    weights = sum(p.numel() for p in speaker.model.parameters())
    return {
        "passes": passes, "minutes": seconds / 60, "memory_mib": 16 * weights / 2**20,
        "memory": "weights, gradients and two moments in float32; activations and a reference model come on top",
        "weights": weights,
    }  # fmt: skip
