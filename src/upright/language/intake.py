"""What a person hands to the forgetting desk: settings, files and places, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch

from upright.contract import Config, InputError, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from upright.data.forget import Record, refuse_overlap, refuse_similar
from upright.language.disk import checksum
from upright.language.encoding import Scope, Template, refuse_mismatch
from upright.language.evaluation import Speaker
from upright.language.losses import LOSSES, PAIRS
from upright.language.receipts import records_of
from upright.models.hub import is_adapter, load_language_model

__all__ = ["REPORT", "Inputs", "Recipe", "Settings", "device_of", "inputs", "losses_taken", "refuse_place",
           "refuse_report"]  # fmt: skip

REPORT = "upright forget eval"
"""By this first entry a file is recognised as one that an evaluation wrote."""
_FIRST = ("npo", "pdu", "jensun")  # bounded
_BEYOND = ("idk_dpo", "alt_po", "rmu")  # alternative answers, a layer


# -- settings -------------------------------------------------------------------------------------------------------


class _Common(Config):
    """What every training at the desk is told."""

    batch_size: PositiveInt = 8
    """Records at once; unlearning takes as many kept ones beside them."""
    accumulate: PositiveInt = 1
    """Batches an update."""
    bf16: bool = False
    """Whether training computes in bfloat16; weights and measures stay in float32."""
    lora: NonNegativeInt = 0
    """Rank of a new adapter on every linear layer, twice as large in effect; 0 trains all weights, or the adapter that
    was given."""
    template: Template = "auto"
    """How prompt and answer become one text."""
    cluster: str = "author"
    """Key of what records have in common, such as a person; they are drawn, and change, together."""
    allow_similar: bool = False
    """Whether records that are nearly the same may stand in two files; the receipt then names them."""
    utility_floor: Annotated[float, Range(ge=0, le=1)] = 0.9
    """Share of the utility before that must be left."""
    relearn_steps: NonNegativeInt = 10
    """Budget of the relearning attack that enters the verdict, in steps at a rate of 1e-4; 0 leaves it out."""
    rouge: bool = True
    """Whether answers are written out and compared, which takes most of the time of an evaluation."""
    seed: NonNegativeInt = 0
    """Of sampling, of the noise of the scores and of resampling."""


class Settings(_Common):
    """How records are unlearned."""

    loss: str = "npo"
    """Forget loss, or a pair of forget and retain loss."""
    sampling: Literal["uniform", "difficulty"] = "uniform"
    """Which records are drawn more often: all alike, or in proportion to difficulty."""
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    """Of AdamW; auto tries three."""
    epochs: PositiveInt = 40
    """Most passes; a record that has reached its level is left alone from then on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_loss(self.loss)


class Recipe(_Common):
    """How a stage of fine-tuning was done, and is done again."""

    learning_rate: PositiveFloat = 2e-5
    """Of AdamW, the highest."""
    epochs: PositiveInt = 3
    """Passes over the kept records."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the rate falls."""
    warmup: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """Share of the steps in which the rate rises."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    scope: Scope = "answer"
    """Which tokens are learnt: those of the answer, or all."""


def _refuse_loss(name: str) -> None:
    """Refuse an unknown loss, and one that asks for more than records: the desk takes no options of losses."""
    if name in _BEYOND:
        raise InputError(
            f"loss {name!r} at the desk",
            "a loss of records alone, such as npo, simnpo or grad_diff",
            "train with upright.language.trainer.UnlearnTrainer, which takes its options",
        )
    if name not in (known := losses_taken()):
        raise InputError(f"loss = {name!r}", ", ".join(known), "choose one of these")


def losses_taken() -> list[str]:
    """Return the names of the losses that the desk takes, bounded ones first."""
    known = {*PAIRS, *(name for name, one in LOSSES.items() if one.side == "forget")} - set(_BEYOND)
    return [*(name for name in _FIRST if name in known), *sorted(known - set(_FIRST))]


def device_of(name: str) -> torch.device:
    """Return where all phases of a call run: an accelerator where there is one, or what was asked for.

    Raises
    ------
    InputError
        For a device that this machine does not have.
    """
    here = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("auto", "cpu", here):
        raise InputError(f"--device {name}", "auto, cpu" + (", cuda" if here == "cuda" else ""), "choose one of these")
    return torch.device(here if name == "auto" else name)


# -- what a person hands in -----------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """What a person handed in, read and checked.

    Parameters
    ----------
    speaker, reference : Speaker
        The model, and one that never saw the records or None.
    notes : list of str
        What is correct but probably a mistake.
    """

    speaker: Speaker
    forget: list[Record]
    retain: list[Record]
    holdout: list[Record]
    reference: Speaker | None
    notes: list[str] = field(default_factory=list)


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
    reference: Path | None = None, before: Path | None = None, base: Path | None = None, batch_size: int = 8,
    template: Template = "auto", device: str = "auto", cluster: str = "author", allow_similar: bool = False,
) -> Inputs:  # fmt: skip
    """Read everything, cheapest first, and refuse what cannot be right.

    Parameters
    ----------
    before : Path, optional
        The model before unlearning, which cannot be the reference either.
    base : Path, optional
        The model under every adapter among `model_dir` and `reference`.
    device : str
        Of `device_of`: where both models are put.
    cluster : str
        Of `read_records`, for every file.
    allow_similar : bool
        Of `refuse_similar`; what it finds then goes to the notes.

    Raises
    ------
    InputError
        For an empty or broken file, a record that stands in two files or nearly does, a tokenizer that is not the
        model's, a record longer than the context, a folder that is no model, a reference with the weights of the
        model itself.
    """
    notes: list[str] = []
    place = device_of(device)
    if template not in get_args(Template):
        raise InputError(f"template = {template!r}", ", ".join(map(repr, get_args(Template))), "choose one of these")
    if base is not None and not any(is_adapter(one) for one in (model_dir, reference, before) if one is not None):
        raise InputError(f"--base {base.name} with whole models", "an adapter as MODEL", "leave --base out")
    files = {"forget": forget_file, "retain": retain_file, "holdout": holdout}
    sides = {side: records_of(side, file, notes, cluster=cluster) for side, file in files.items()}
    refuse_overlap(**sides)
    notes += refuse_similar(**sides, allow=allow_similar)
    options: dict[str, Any] = {"template": template, "batch_size": batch_size}
    model, tokenizer = load_language_model(model_dir, base=base)
    speaker = Speaker(model.to(place), tokenizer, **options)
    other = None
    if reference is not None:
        ref_model, ref_tokenizer = load_language_model(reference, base=base)
        refuse_mismatch(tokenizer, model, reference=ref_tokenizer)
        _refuse_itself(reference, model_dir, before)
        other = Speaker(ref_model.to(place), ref_tokenizer, **options)
    for name, records in sides.items():
        for one in (speaker, other):
            if one is not None:
                _fits(one, name, records)
    return Inputs(speaker, **sides, reference=other, notes=notes)


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
    _refuse_below_file(out)


def _refuse_below_file(out: Path) -> None:
    first = next(part for part in out.absolute().parents if part.exists())
    if not first.is_dir():
        raise InputError(f"--out {out.name}: {first.name} above it is a file", "a folder", "name another one")


def refuse_report(out: Path, *, folders: Sequence[Path | None], files: Sequence[Path | None]) -> None:
    """Refuse to write an evaluation over anything but an earlier evaluation.

    Parameters
    ----------
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
    _refuse_below_file(out)
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
