r"""What changes a model at the desk: unlearning at a rate that is chosen or given, and training without the records.

*Rate.* With ``auto`` three rates are tried for two epochs, of four updates at least, on a quarter of the records, eight
at least, from the same weights, which are put back after each:

    c / 4, c, 4 c,   c = 1e-5 sqrt(1e9 / trainable weights), held in [1e-6, 5e-3]

A rate passes when no guard fails. Of those that pass the one is taken that brought the mean loss nearest to its level
from below, where none is given the one that raised it most; the smallest of all when none passes.

*Training anew.* `anew` is the fine-tuning stage on the kept records alone, by `transformers.Trainer`. It writes 20
checkpoints at most and goes on from the last whole one, to the same weights bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.forget import Record
from upright.language.adapters import adapted
from upright.language.encoding import Encoded, collate
from upright.language.evaluation import Speaker, score_records
from upright.language.intake import Inputs, Recipe, Settings
from upright.language.measures import LEAST, Look, guards

__all__ = ["NOT_A_NUMBER", "anew", "choose_rate", "expectation", "fingerprint", "last_whole", "train", "with_adapter"]

Array = NDArray[np.float64]
NOT_A_NUMBER = "not a number"
_TRIAL = 2  # epochs
_FEW = 8  # records of a trial at least


def with_adapter(model: Any, rank: int, seed: int) -> Any:
    """Return a model with a new adapter of this rank on its linear layers; the model itself with rank 0.

    Raises
    ------
    InputError
        When it has an adapter already.
    """
    if not rank:
        return model
    if hasattr(model, "disable_adapter"):
        raise InputError(f"--lora {rank} on a model with an adapter", "one adapter", "leave --lora out")
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("--lora without the package peft", "the extra llm", "pip install 'upright[llm]'") from None
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return adapted(model, settings, seed=seed, checkpointing=False).to(model.device)


def _free(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def fingerprint(model: Any) -> str:
    """SHA-256 over the trainable weights, 64 hex digits."""
    total = hashlib.sha256()
    for name, p in _free(model).items():
        raw: Any = p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total.update(name.encode())
        total.update(raw)
    return total.hexdigest()


# -- unlearning -----------------------------------------------------------------------------------------------------


def train(
    speaker: Speaker,
    forget: Sequence[Record],
    retain: Sequence[Record],
    settings: Settings,
    *,
    rate: float,
    folder: Path,
    epochs: int | None = None,
    levels: Array | None = None,
    difficulty: Any = None,
) -> dict[str, Any]:
    """Unlearn in place; a run that diverges is a reason to fail, not an error of the person.

    Parameters
    ----------
    speaker : Speaker
        Its model is changed, on the device where it is.
    rate : float
    folder : Path
        For what training writes.
    epochs : int, optional
        In place of those of the settings.
    levels : ndarray of float64, shape (n,), optional
        Loss per token from which a record is left alone.
    difficulty : Difficulty, optional
        Records are drawn by it.

    Returns
    -------
    dict
        ``reasons`` of a failure and ``facts`` for the receipt.
    """
    from upright.language.trainer import UnlearnArguments, UnlearnTrainer, train_quietly

    arguments = UnlearnArguments(
        **_arguments(speaker, settings, folder),
        num_train_epochs=epochs or settings.epochs,
        learning_rate=rate,
        lr_scheduler_type="constant",
        save_strategy="no",
        loss=settings.loss,
        sampling="uniform" if difficulty is None else "mrd",
    )
    trainer = UnlearnTrainer(
        speaker.model,
        speaker.encode(forget),
        speaker.encode(retain),
        args=arguments,
        processing_class=speaker.tokenizer,
        targets=levels,
        cache_dir=folder.parent,
        difficulty=difficulty,
    )
    reasons = []
    try:
        train_quietly(trainer)  # what else is printed stands where a machine reads JSON; the guard of effect warns
    except InputError as error:
        if "finite" not in error.accepted:
            raise
        reasons.append(f"{NOT_A_NUMBER}: {error.got}")
    _given_back(trainer, speaker)
    if not reasons:
        reasons = _odd(speaker.model)
    facts = {"steps": int(trainer.state.global_step), "stopped": trainer.stopped, "unmoved": trainer.unmoved}
    return {"reasons": reasons, "facts": facts}


def _given_back(trainer: Any, speaker: Speaker) -> None:
    """Take the model out of mixed precision and out of training mode."""
    trainer.accelerator.unwrap_model(speaker.model, keep_fp32_wrapper=False)
    speaker.model.eval()


def _odd(model: Any) -> list[str]:
    finite = all(bool(torch.isfinite(p).all()) for p in _free(model).values())
    return [] if finite else [f"{NOT_A_NUMBER}: weights that are not finite"]


def _arguments(speaker: Speaker, settings: Settings | Recipe, folder: Path) -> dict[str, Any]:
    """Return what both kinds of training share; they run where the model is."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "bf16": settings.bf16,
        "use_cpu": speaker.model.device.type == "cpu",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
        "dataloader_pin_memory": False,
    }


def _part(n: int) -> list[int]:
    """Return a quarter of ``range(n)``, eight at least, spread over it."""
    m = min(n, max(_FEW, -(-n // 4)))
    return [i * n // m for i in range(m)]


def choose_rate(
    given: Inputs, settings: Settings, levels: Array | None, folder: Path
) -> tuple[float, list[dict[str, Any]]]:
    """Try three rates on a part of the records and choose one; the model is left as it was, bit for bit.

    Returns
    -------
    rate : float
    tried : list of dict
        ``rate``, ``loss`` (mean per token on that part afterwards, None for fewer than `LEAST` records), ``failed``
        (the guard that failed, empty when none did).
    """
    speaker, sides = given.speaker, (given.forget, given.retain, given.holdout)
    some, kept, unseen = ([side[i] for i in _part(len(side))] for side in sides)
    free = _free(speaker.model)
    start = {name: p.detach().clone() for name, p in free.items()}
    aims = None if levels is None else levels[_part(len(given.forget))]

    def now() -> Look:
        own = speaker.read(some)
        other = {"mia_loss": -speaker.losses(unseen)} if unseen else {}
        return Look({"mia_loss": -own.mean_nll}, own, score_records(speaker, kept, side="retain", rouge=False), other)

    before = now()
    found: list[dict[str, Any]] = []
    few = settings.replace(batch_size=min(settings.batch_size, max(1, len(some) // 4)))  # after one step all rates hurt
    for rate in _rates(sum(p.numel() for p in free.values())):
        try:
            run = train(speaker, some, kept, few, rate=rate, folder=folder, epochs=_TRIAL, levels=aims)
            failed, after = list(run["reasons"]), before
            if not failed:
                after = now()
                checks = guards(before, after, None, utility_floor=settings.utility_floor)
                failed = [one.name for one in checks if one.state == "failed"]
        finally:
            with torch.no_grad():
                for name, p in free.items():
                    p.copy_(start[name])
                    p.grad = None
        loss = after.reading.mean_nll
        near = float(loss.mean() if aims is None else np.minimum(loss, aims).mean())
        found.append({"rate": rate, "loss": float(loss.mean()), "failed": ", ".join(failed), "near": near})
    passed = [row for row in found if not row["failed"]]
    best = max(passed, key=lambda row: row["near"]) if passed else found[0]
    tried = [
        {"rate": r["rate"], "loss": r["loss"] if len(some) >= LEAST else None, "failed": r["failed"]} for r in found
    ]
    return float(best["rate"]), tried


def _rates(weights: int) -> list[float]:
    """Return three learning rates for so many trainable weights, to two digits."""
    middle = min(max(1e-5 * math.sqrt(1e9 / weights), 1e-6), 5e-3)
    return [float(f"{middle * factor:.1e}") for factor in (0.25, 1.0, 4.0)]


# -- training anew --------------------------------------------------------------------------------------------------


def last_whole(folder: Path) -> Path | None:
    """Return the checkpoint with the largest step that was written to its end; Trainer writes its state last."""
    places = [
        (int(one.name.partition("-")[2]), one)
        for one in folder.glob("checkpoint-*")
        if one.name.partition("-")[2].isdigit()
    ]
    for _, place in sorted(places, reverse=True):
        try:
            json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return place
    return None


def anew(speaker: Speaker, records: Sequence[Record], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train on the kept records in place, from the last whole checkpoint of `folder` where there is one.

    Parameters
    ----------
    speaker : Speaker
        With the base; an adapter on it is what is trained.
    records : sequence of Record
    recipe : Recipe
    folder : Path
        Of the checkpoints.

    Returns
    -------
    dict
        ``reasons`` of a failure and ``facts`` for the receipt, with the step from which it went on.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    pad = speaker.pad

    def batch(rows: list[Encoded]) -> dict[str, torch.Tensor]:
        made = collate(rows, pad, scope=recipe.scope)
        return {name: made[name] for name in ("input_ids", "attention_mask", "labels")}

    last = last_whole(folder)
    updates = recipe.epochs * math.ceil(len(records) / (recipe.batch_size * recipe.accumulate))
    trainer = Trainer(
        model=speaker.model,
        train_dataset=speaker.encode(records),
        data_collator=batch,
        args=TrainingArguments(
            **_arguments(speaker, recipe, folder),
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=recipe.schedule,
            warmup_steps=math.ceil(recipe.warmup * updates),
            weight_decay=recipe.weight_decay,
            save_strategy="steps",
            save_steps=max(1, math.ceil(updates / 20)),
            save_total_limit=2,
            remove_unused_columns=False,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    held = speaker.model.config.use_cache  # Trainer turns it off, and a saved model would stay without
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        speaker.model.config.use_cache = held
    _given_back(trainer, speaker)
    facts = {
        "steps": int(trainer.state.global_step),
        "stopped": "",
        "resumed": 0 if last is None else int(last.name.partition("-")[2]),
    }
    return {"reasons": _odd(speaker.model), "facts": facts}


# -- dry run --------------------------------------------------------------------------------------------------------


def expectation(given: Inputs, settings: Settings) -> dict[str, Any]:
    """Say what a request would take, from the time of one small batch on this machine.

    Backward takes two forward passes, and each epoch begins with one over the forget set. A scoring takes 13 to 133 of
    them, 40 in the minutes. Memory: 4 bytes a weight, 12 more for gradient and moments of what is trained, and 4 more
    for its copy while rates are tried.
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
    tried = 3 * _TRIAL * len(_part(n)) if settings.learning_rate == "auto" else 0
    false = max(len(r.perturbed) + len(r.paraphrases) for r in given.forget)
    texts = n * (1 + false) + m + len(given.holdout)
    seconds = read * (scoring * n + (settings.epochs * n + tried) * 7 + looks * texts) + write * looks * (n + m)
    seconds += read * looks * 2 * settings.relearn_steps * settings.batch_size * 3 if given.holdout else 0
    passes = {
        "scoring": f"13 to 133 over {n} records" if scoring else "none",
        "training": f"{steps} steps: {settings.epochs} times {n} records and as many kept ones, forward and backward",
        "evaluation": f"{looks} times {texts} texts",
    }
    if tried:
        passes["rates"] = f"3 times {_TRIAL} epochs of {len(_part(n))} records"
    weights = sum(p.numel() for p in speaker.model.parameters())
    free = sum(p.numel() for p in _free(speaker.model).values())
    return {
        "passes": passes,
        "minutes": seconds / 60,
        "weights": weights,
        "trained": free,
        "memory_mib": (4 * weights + (16 if tried else 12) * free) / 2**20,
        "memory": f"weights in float32, gradients and two moments of the {free} that are trained"
        f"{', and their copy while rates are tried' if tried else ''}; activations, a reference model and the "
        "copy that the relearning attack trains come on top",
    }
