"""What a person hands to the forgetting desk: settings and files, read and checked before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from upright.contract import Config, InputError, NonNegativeInt, PositiveFloat, PositiveInt, Range
from upright.data.forget import Record, refuse_overlap
from upright.language.disk import checksum
from upright.language.encoding import refuse_mismatch
from upright.language.evaluation import Speaker
from upright.language.losses import LOSSES, PAIRS
from upright.language.objectives import objective_of
from upright.language.receipts import records_of
from upright.models.hub import load_language_model

__all__ = ["REPORT", "Inputs", "Settings", "expectation", "inputs", "losses_taken", "refuse_loss", "refuse_place",
           "refuse_report"]  # fmt: skip

REPORT = "upright forget eval"
"""By this first entry a file is recognised as one that an evaluation wrote."""
_BEYOND = ("idk_dpo", "alt_po", "pdu", "rmu")  # alternative answers, a bound, a layer


class Settings(Config):
    """How records are unlearned."""

    loss: str = "npo"
    """Forget loss, or a pair of forget and retain loss."""
    sampling: Literal["difficulty", "uniform"] = "difficulty"
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
    if name not in (known := losses_taken()):
        raise InputError(f"loss = {name!r}", ", ".join(known), "choose one of these")
    objective_of(name)


def losses_taken() -> list[str]:
    """Return the names of the losses that the desk takes."""
    known = {*PAIRS, *(name for name, one in LOSSES.items() if one.side == "forget")}
    return sorted(known - set(_BEYOND))


def _refuse_itself(reference: Path, *models: Path | None) -> None:
    """Refuse a reference with the weights of a model that it is to judge: every record would be at its level."""
    own = checksum(reference)
    for model in models:
        if model is not None and checksum(model) == own:
            raise InputError(
                f"--reference {reference.name} with the weights of {model.name} itself",
                "a model that was trained without the records",
                "name another reference, or leave --reference out",
            )


def _fits(speaker: Speaker, name: str, records: Sequence[Record]) -> None:
    """Refuse a record that the model cannot take whole, naming its file."""
    try:
        if records:
            speaker.encode(records)
    except InputError as error:
        raise InputError(f"{name} file: {error.got}", error.accepted, error.todo) from None


def inputs(
    model_dir: Path, forget_file: Path, retain_file: Path | None = None, *, holdout: Path | None = None,
    reference: Path | None = None, before: Path | None = None, batch_size: int = 8,
) -> Inputs:  # fmt: skip
    """Read everything, cheapest first, and refuse what cannot be right.

    Parameters
    ----------
    before : Path, optional
        The model before unlearning, which cannot be the reference either.

    Raises
    ------
    InputError
        For an empty or broken file, a record in two files, a tokenizer that is not the model's, a record longer than
        the context, a folder that is no model, a reference with the weights of the model itself.
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
        _refuse_itself(reference, model_dir, before)
        other = Speaker(ref_model, ref_tokenizer, batch_size=batch_size)
    for name, records in (("forget", forget), ("retain", retain), ("holdout", unseen)):
        for one in (speaker, other):
            if one is not None:
                _fits(one, name, records)
    return Inputs(speaker, forget, retain, unseen, other, notes)


# -- places ---------------------------------------------------------------------------------------------------------


def _inside(place: Path, whole: Path) -> bool:
    """Whether a place is a folder or lies in it; links are followed."""
    own, other = place.resolve(), whole.resolve()
    return own == other or other in own.parents


def refuse_place(desk: Path, models: Sequence[Path], out: Path | None = None) -> None:
    """Refuse to write inside a model folder, a new model where something stands, and desk and model in one another.

    Raises
    ------
    InputError
    """
    for place, option in ((desk, "--desk"), *([(out, "--out")] if out else [])):
        for model in models:
            if _inside(place, model):
                raise InputError(f"{option} {place.name} inside the model folder {model.name}", "a place outside of it",
                                 "name another place: a model folder is never written to")  # fmt: skip
    if out is None:
        return
    if _inside(desk, out) or _inside(out, desk):
        raise InputError(f"--desk {desk.name} and --out {out.name}, one inside the other", "two separate folders",
                         "name another --out: a model folder holds a model alone")  # fmt: skip
    if out.exists():
        raise InputError(f"--out {out.name}, which is there already", "a new folder", "name another one, or move it")
    first = next(part for part in out.absolute().parents if part.exists())
    if not first.is_dir():
        raise InputError(f"--out {out.name}: {first.name} above it is a file", "a folder", "name another one")


def refuse_report(out: Path, *, folders: Sequence[Path | None], files: Sequence[Path | None]) -> None:
    """Refuse to write an evaluation over anything but an earlier evaluation.

    Parameters
    ----------
    out : Path
        JSON file to write.
    folders : sequence of Path or None
        Models and the desk, with its ledger: nothing is written inside of them.
    files : sequence of Path or None
        What is read: records and keys.

    Raises
    ------
    InputError
    """
    for folder in folders:
        if folder is not None and _inside(out, folder):
            raise InputError(f"--out {out.name} inside the folder {folder.name}", "a place outside of models and desk",
                             "name another place: nothing else is written there")  # fmt: skip
    first = next(part for part in out.absolute().parents if part.exists())
    if not first.is_dir():
        raise InputError(f"--out {out.name}: {first.name} above it is a file", "a folder", "name another one")
    written = (out, out.with_name(out.name + ".part"))  # the second is renamed to the first
    for file in files:
        if file is not None and any(one.resolve() == file.resolve() or _same(one, file) for one in written):
            raise InputError(f"--out {out.name}, which is the input file {file.name}", "a file of its own",
                             "name another one: it would be written over")  # fmt: skip
    if (out.exists() or out.is_symlink()) and not _is_report(out):
        raise InputError(f"--out {out.name}, which is there and is no evaluation", "a new file, or one that eval wrote",
                         "name another one, or move it")  # fmt: skip


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _is_report(file: Path) -> bool:
    """Whether a file begins as `write_json` begins an evaluation."""
    if not file.is_file():
        return False
    begin = f'{{\n "kind": "{REPORT}",\n'.encode()
    with file.open("rb") as stream:
        return stream.read(len(begin)) == begin


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
    scoring = 40 if settings.sampling == "difficulty" else 0
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
