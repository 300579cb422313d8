r"""What changes a model at the desk: unlearning at a rate that is chosen or given, and training without the records.

*Guards.* They are asked as each epoch ends, of 64 records a side, or as many as there are to forget. At the first end
where one fails after an end at which none did, training stops and the last weights that passed are put back.

*Rate.* With ``auto`` three rates are tried for two epochs, of four updates at least, on a quarter of the records, eight
at least, from the same weights, which are put back after each:

    c / 4, c, 4 c,   c = 1e-5 sqrt(1e9 / trainable weights), held in [1e-6, 5e-3]

A rate passes when no guard fails. Of those that pass the one is taken that brought the mean loss nearest to its level
from below, where none is given the one that raised it most; the smallest of all when none passes.

*Training anew.* `anew` is the fine-tuning stage on the kept records alone, by `transformers.Trainer`. It writes 20
checkpoints at most and goes on from the last whole one, to the same weights bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upright.contract import InputError
from upright.data.forget import Record
from upright.language.adapters import adapted, own_precision
from upright.language.encoding import Encoded, collate
from upright.language.evaluation import Speaker, score_records
from upright.language.intake import Inputs, Recipe, Settings
from upright.language.measures import LEAST, Look, guards

__all__ = ["NOT_A_NUMBER", "Watch", "anew", "choose_rate", "expectation", "train", "with_adapter"]

Array = NDArray[np.float64]
NOT_A_NUMBER = "not a number"
_TRIAL = 2  # epochs
_FEW = 8  # records of a trial at least
_WATCHED = 64  # records of a side that are asked as epochs end, at least


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


# -- unlearning -----------------------------------------------------------------------------------------------------


class Watch:
    """Asks the guards of some records while a model is trained, and keeps the last weights that passed them.

    Parameters
    ----------
    given : Inputs
    settings : Settings
    before, reference : Look
        Of all records.
    rows : sequence of three lists of int, optional
        Which records to forget, to keep and held out; by default 64 of each, or as many as there are to forget.

    Attributes
    ----------
    epochs, passed : int
        Epochs that ended, and the last of them after which no guard failed, 0 before there is one.
    failed : list of str
        The guards that failed when they were asked last.
    """

    def __init__(
        self,
        given: Inputs,
        settings: Settings,
        before: Look,
        reference: Look | None = None,
        rows: Sequence[list[int]] | None = None,
    ) -> None:
        sides = (given.forget, given.retain, given.holdout)
        rows = rows or [_spread(len(side), max(_WATCHED, len(given.forget))) for side in sides]
        self.forget, self.retain, self.holdout = ([side[i] for i in own] for side, own in zip(sides, rows, strict=True))
        self.before = replace(before, retain={name: x[rows[1]] for name, x in before.retain.items()})
        self.reference = reference
        self.speaker, self.settings = given.speaker, settings
        self.weights = {name: p.detach().clone() for name, p in _free(given.speaker.model).items()}
        self.epochs = self.passed = 0
        self.failed: list[str] = []

    def look(self) -> Look | None:
        """Measure what the guards ask for and note which of them fail; None where logits are not finite."""
        try:
            own = self.speaker.read(self.forget)
            other = {"mia_loss": -self.speaker.losses(self.holdout)} if self.holdout else {}
            found = Look({"mia_loss": -own.mean_nll}, own, self._kept(rouge=False), other)
            half = (1 + self.settings.utility_floor) / 2
            if self.settings.rouge and "utility floor" in self._ask(found, half):  # writing answers takes most time
                found = replace(found, retain=self._kept(rouge=True))
        except InputError as error:
            if "finite" not in error.accepted:
                raise
            self.failed = [NOT_A_NUMBER]
            return None
        self.failed = self._ask(found, self.settings.utility_floor)
        return found

    def _kept(self, *, rouge: bool) -> Mapping[str, Array]:
        return score_records(self.speaker, self.retain, side="retain", rouge=rouge)

    def _ask(self, found: Look, floor: float) -> list[str]:
        """Return the guards that fail, by the parts of utility that are measured."""
        before = replace(self.before, retain={n: x for n, x in self.before.retain.items() if n in found.retain})
        checks = guards(before, found, self.reference, utility_floor=floor)
        return [one.name for one in checks if one.state == "failed"]

    def __call__(self, model: Any) -> dict[str, float]:
        """Look after an epoch, and keep the weights where all is well: the check of a `UtilityFloor`."""
        with own_precision(model):
            self.look()
        self.epochs += 1
        if not self.failed:
            self.passed = self.epochs
            for name, p in _free(self.speaker.model).items():
                self.weights[name].copy_(p)
        return {"guards": float(not (self.failed and self.passed))}

    def put_back(self) -> None:
        """Give the model the weights that are kept: the last that passed, or those of the beginning."""
        with torch.no_grad():
            for name, p in _free(self.speaker.model).items():
                p.copy_(self.weights[name])
                p.grad = None


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
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Unlearn in place; a run that diverges is a reason to fail, not an error of the person.

    Parameters
    ----------
    folder : Path
        For what training writes.
    epochs : int, optional
        In place of those of the settings.
    levels : ndarray of float64, shape (n,), optional
        Loss per token from which a record is left alone.
    difficulty : Difficulty, optional
    watch : Watch, optional
        Where a guard fails as an epoch ends, and an earlier one passed, training stops and the weights are those of the
        last that passed. Where none passed they are those of the end.

    Returns
    -------
    dict
        ``reasons`` of a failure and ``facts`` for the receipt: after how many ``epochs`` and ``steps`` the weights are,
        why training ``stopped``, and why nothing moved.
    """
    from upright.language.trainer import UnlearnArguments, UnlearnTrainer, UtilityFloor, train_quietly

    arguments = UnlearnArguments(
        **_arguments(speaker, settings, folder),
        num_train_epochs=epochs or settings.epochs,
        learning_rate=rate,
        lr_scheduler_type="constant",
        save_strategy="no",
        loss=settings.loss,
        sampling="uniform" if difficulty is None else "mrd",
    )
    updates = -(-len(forget) // (settings.batch_size * settings.accumulate))  # an epoch
    trainer = UnlearnTrainer(
        speaker.model,
        speaker.encode(forget),
        speaker.encode(retain),
        args=arguments,
        processing_class=speaker.tokenizer,
        targets=levels,
        cache_dir=folder.parent,
        difficulty=difficulty,
        stop=None if watch is None else UtilityFloor(watch, {"guards": 1.0}, every=updates),
    )
    reasons = []
    try:
        train_quietly(trainer)  # what else is printed stands where a machine reads JSON; the guard of effect warns
    except InputError as error:
        if "finite" not in error.accepted:
            raise
        reasons.append(f"{NOT_A_NUMBER}: {error.got}")
    _given_back(trainer, speaker)
    done = trainer.schedule.prepared if trainer.schedule.finished else round(trainer.state.epoch or 0)
    facts = {"epochs": done, "steps": int(trainer.state.global_step), "stopped": trainer.stopped}
    if watch is not None and watch.failed and watch.passed:
        watch.put_back()
        why = f"{' and '.join(watch.failed)} failed after epoch {watch.epochs}"
        facts = {"epochs": watch.passed, "steps": watch.passed * updates, "stopped": why}
    reasons = reasons or _odd(speaker.model)
    return {"reasons": reasons, "facts": {**facts, "unmoved": trainer.unmoved}}


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


def _spread(n: int, most: int) -> list[int]:
    """Return at most so many of ``range(n)``, spread over it."""
    m = min(n, most)
    return [i * n // m for i in range(m)]


def _part(n: int) -> list[int]:
    """Return a quarter of ``range(n)``, eight at least."""
    return _spread(n, max(_FEW, -(-n // 4)))


def choose_rate(
    given: Inputs, settings: Settings, levels: Array | None, before: Look, folder: Path
) -> tuple[float, list[dict[str, Any]]]:
    """Try three rates on a part of the records and choose one; the model is left as it was, bit for bit.

    Returns
    -------
    rate : float
    tried : list of dict
        ``rate``, ``loss`` (mean per token on that part afterwards, None for fewer than `LEAST` records and where it is
        not a number), ``failed`` (the guards that failed, empty when none did).
    """
    rows = [_part(len(side)) for side in (given.forget, given.retain, given.holdout)]
    size = min(settings.batch_size, max(1, len(rows[0]) // 4))  # after one step all rates hurt
    few, aims = settings.replace(batch_size=size, rouge=False), None if levels is None else levels[rows[0]]
    watch = Watch(given, few, before, rows=rows)
    tried: list[dict[str, Any]] = []
    near: dict[float, float] = {}
    for rate in _rates(sum(p.numel() for p in watch.weights.values())):
        try:
            run = train(given.speaker, watch.forget, watch.retain, few, rate=rate, folder=folder, epochs=_TRIAL,
                        levels=aims)  # fmt: skip
            after = None if run["reasons"] else watch.look()
        finally:
            watch.put_back()
        failed = ", ".join(run["reasons"] or watch.failed)
        loss: float | None = None
        if after is not None:
            reached = after.reading.mean_nll
            loss = float(reached.mean()) if len(rows[0]) >= LEAST else None
            if not failed:
                near[rate] = float((reached if aims is None else np.minimum(reached, aims)).mean())
        tried.append({"rate": rate, "loss": loss, "failed": failed})
    return max(near, key=near.__getitem__, default=tried[0]["rate"]), tried


def _rates(weights: int) -> list[float]:
    """Return three learning rates for so many trainable weights, to two digits."""
    middle = min(max(1e-5 * math.sqrt(1e9 / weights), 1e-6), 5e-3)
    return [float(f"{middle * factor:.1e}") for factor in (0.25, 1.0, 4.0)]


# -- training anew --------------------------------------------------------------------------------------------------


def anew(speaker: Speaker, records: Sequence[Record], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train on the kept records in place, from the last whole checkpoint of `folder` where there is one.

    Parameters
    ----------
    speaker : Speaker
        With the base; an adapter on it is what is trained.
    folder : Path
        Of the checkpoints.

    Returns
    -------
    dict
        ``reasons`` of a failure and ``facts`` for the receipt, with the step from which it went on.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from upright.language.training import newest_whole

    def batch(rows: list[Encoded]) -> dict[str, torch.Tensor]:
        made = collate(rows, speaker.pad, scope=recipe.scope)
        return {name: made[name] for name in ("input_ids", "attention_mask", "labels")}

    last, _ = newest_whole(folder, ["trainer_state.json"])  # which Trainer writes last
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
        "epochs": recipe.epochs,
        "steps": int(trainer.state.global_step),
        "stopped": "",
        "resumed": 0 if last is None else int(last.name.partition("-")[2]),
    }
    return {"reasons": _odd(speaker.model), "facts": facts}


# -- dry run --------------------------------------------------------------------------------------------------------


def expectation(given: Inputs, settings: Settings) -> dict[str, Any]:
    """Say what a request would take, from the time of one small batch on this machine.

    Backward takes two forward passes; an epoch begins with one over the forget set and ends with a look. A scoring
    takes 13 to 133, 40 in the minutes. Memory: 4 bytes a weight, 12 more for gradient and moments of what is trained, 4
    more for the copy of the last weights that passed the guards.
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
    looks = 2 + (given.reference is not None)
    steps = settings.epochs * -(-n // (settings.batch_size * settings.accumulate))
    tried = 3 * _TRIAL * len(_part(n)) if settings.learning_rate == "auto" else 0
    false = max(len(r.perturbed) + len(r.paraphrases) for r in given.forget)
    texts = n * (1 + false) + m + len(given.holdout)
    watched = sum(min(k, max(_WATCHED, n)) for k in (n, m, len(given.holdout)))
    seconds = read * (scoring * n + (settings.epochs * n + tried) * 7 + settings.epochs * watched + looks * texts)
    seconds += write * looks * (n + m)
    seconds += read * looks * 2 * settings.relearn_steps * settings.batch_size * 3 if given.holdout else 0
    passes = {
        "scoring": f"13 to 133 over {n} records" if scoring else "none",
        "training": f"{steps} steps: {settings.epochs} times {n} records and as many kept ones, forward and backward",
        "guards": f"{settings.epochs} times {watched} records",
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
        "memory_mib": (4 * weights + 16 * free) / 2**20,
        "memory": f"weights in float32, gradients, two moments and a copy of the {free} that are trained; activations, "
        "a reference model and the copy that the relearning attack trains come on top",
    }
