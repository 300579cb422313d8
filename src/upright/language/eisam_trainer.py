r"""EISAM by `transformers.Trainer`: a language model learns to name the next item, rare ones with a sharpness penalty.

    l = -(1 / |y|) sum_t log p(y_t | prompt, y_<t),   g = grad mean((1 - c_i) l)(w) + grad mean(c_i l)(w + e*)

l is the loss of a record, y the tokens of its title, i its item; c and e* are those of `maths.sharpness_optimiser`.
Means run over all records of an optimiser step, over micro-batches and ranks, so that a run depends on the effective
batch alone; epochs are filled up with places that do not count.

Both passes of a micro-batch draw the same dropout masks, save in mode ``subset``, whose second pass reads some rows
alone. No callback may draw random numbers between the micro-batches of a step. A checkpoint holds the direction of e*:
a resumed run is bit-equal to one that was never stopped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from upright.contract import InputError, NonNegativeInt, PositiveInt, Range
from upright.language.adapters import adapted, recomputes
from upright.language.encoding import Encoded, collate, pad_of
from upright.language.logprobs import sample_means, token_log_probs
from upright.language.references import digest_of, records_key
from upright.language.sampling import PairSampler
from upright.language.training import (
    GradientGuard,
    NumberGuard,
    last_complete,
    read_state,
    refuse_changed,
    refuse_settings,
    write_state,
)
from upright.maths.sharpness import item_weights
from upright.maths.sharpness_optimiser import EISAM

try:
    from transformers import Trainer, TrainerCallback, TrainingArguments
except ImportError:
    raise InputError(
        "training without the package transformers", "the extra llm", "pip install 'upright[llm]'"
    ) from None

__all__ = ["EISAMArguments", "EISAMTrainer"]

_Number = Annotated[float, Range(ge=0.0, lt=math.inf)]
_Share = Annotated[float, Range(gt=0.0, le=1.0)]


@dataclass
class EISAMArguments(TrainingArguments):
    """`TrainingArguments`, which choose the base optimiser, and settings of EISAM, each refused outside its range."""

    rho: _Number = field(default=0.05, metadata={"help": "radius of the perturbation"})
    lam: _Number = field(default=0.8, metadata={"help": "strength of the penalty"})
    weight: str = field(default="relative", metadata={"help": "weight of an item by its count, see item_weights"})
    gamma: _Number = field(default=2.0, metadata={"help": "how steeply that weight falls"})
    mode: Literal["lagged", "subset"] = field(default="lagged", metadata={"help": "all take the second pass, or some"})
    share: _Share = field(default=0.5, metadata={"help": "subset: largest share of interactions in the second pass"})
    adaptive: bool = field(default=False, metadata={"help": "scale the perturbation by the size of each weight"})
    plain_steps: NonNegativeInt = field(default=0, metadata={"help": "steps of plain fine-tuning to begin with"})
    title_limit: PositiveInt = field(default=64, metadata={"help": "most tokens of a title, without its end"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.remove_unused_columns = False  # items are no argument of a model
        refuse_settings(self, EISAMArguments)

    def sharpness_settings(self) -> dict[str, Any]:
        """Return the settings of EISAM alone."""
        return {name: getattr(self, name) for name in EISAMArguments.__annotations__}


class EISAMTrainer(Trainer):
    """Fine-tunes a causal language model as a recommender with an item-wise sharpness penalty.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Changed in place. Adapters are kept in float32; other weights that are trained must have 32 bits.
    records : sequence of Encoded, length n
        A history as prompt, the title of the next item as answer.
    items : array of int, shape (n,)
        Code of that item.
    args : EISAMArguments
    processing_class : PreTrainedTokenizerBase
    item_count : array, shape (I,), optional
        Interactions of each item in the training data; counted from `items` when left out.
    peft_config : PeftConfig, optional
        Train an adapter of `peft` instead of the weights.
    callbacks, **trainer
        As for `Trainer`. An ``eval_dataset`` is a sequence of pairs (Encoded, item); its loss is the plain mean.

    Raises
    ------
    InputError
        For an item code outside the counts, an empty title and one longer than the limit, each with its row; for
        weights of fewer than 32 bits, DeepSpeed, FSDP, and a checkpoint of other records or settings.

    Warns
    -----
    UserWarning
        Where weights take less than 0.9 of the perturbation, and where item weights hardly differ.

    Attributes
    ----------
    sharpness : EISAM
        The optimiser, from the beginning of training on.

    Notes
    -----
    The log holds the plain mean of l as ``loss``; ``penalty = mean(c_i l)(w + e*) - mean(c_i l)(w)``; and of one e* a
    line, the length that the weights took over the length meant (``realised_perturbation``) and ``realised_cosine``.

    Guarantee
    ---------
    At ``lam = 0`` the run is plain fine-tuning on the mean of l.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the records of the whole step
    args: EISAMArguments
    sharpness: EISAM

    def __init__(
        self,
        model: Any,
        records: Sequence[Encoded],
        items: ArrayLike,
        *,
        args: EISAMArguments,
        processing_class: Any,
        item_count: ArrayLike | None = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] | None = None,
        **trainer: Any,
    ) -> None:
        if not isinstance(args, EISAMArguments):
            raise InputError(f"args of type {type(args).__name__}", "EISAMArguments", "pass its fields to that class")
        self.item_codes, self.item_count = _codes_and_counts(items, len(records), item_count)
        _refuse_titles(records, args.title_limit, getattr(processing_class, "eos_token_id", None))
        self.item_weight = item_weights(self.item_count, args.weight, args.gamma)
        self._keys = {"records": records_key(records), "items": digest_of(self.item_codes)}
        self._keys["item counts"] = digest_of(self.item_count)
        self._seed = int(args.seed if args.data_seed is None else args.data_seed)
        use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        model = adapted(model, peft_config, seed=self._seed, checkpointing=recomputes(args))
        _train_in_float32(model)
        # In float16 a scaler skips steps whose gradients are not finite; elsewhere they end the run.
        watch = [_Epoch(self), GradientGuard(), *([] if args.fp16 else [NumberGuard()])]
        super().__init__(
            model=model,
            args=args,
            train_dataset=_Titles(records, self.item_codes.tolist()),
            processing_class=processing_class,
            data_collator=functools.partial(_collate, pad=pad_of(processing_class)),
            callbacks=[*(callbacks or ()), *watch],
            **trainer,
        )
        if use_cache is not None:  # Trainer turns it off, and a saved model would stay without
            model.config.use_cache = use_cache
        fused = any(word in args.optim for word in ("lomo", "layerwise"))  # they step inside the backward pass
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or args.n_gpu > 1 or fused:
            raise InputError(
                "DeepSpeed, FSDP, several devices in one process, or an optimiser that steps inside the backward pass",
                "one device a process, alone or under DistributedDataParallel",
                "use torchrun and optim='adamw_torch'",
            )
        self.model_accepts_loss_kwargs = False  # the model computes no loss
        self.order: PairSampler | None = None
        self._begins = True  # with the next micro-batch, a step
        self._pass: Literal["mean", "plain", "penalty"] = "mean"
        self._mean = self._rise = torch.zeros((), device=args.device)
        self._steps = 0  # whose penalties `_rise` adds up

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        block, drop = self._train_batch_size * self.args.world_size, self.args.dataloader_drop_last
        self.order = PairSampler(len(self.item_codes), 0, seed=self._seed, block=block, drop_last=drop)
        return self.order

    def create_optimizer(self, model: Any = None) -> Any:
        """Return `EISAM` around the optimiser that ``args`` choose or the caller gave."""
        base: Any = super().create_optimizer(model)
        base = getattr(base, "optimizer", base)  # accelerate has wrapped it when training begins a second time
        if not isinstance(base, EISAM):
            own = {name: getattr(self.args, name) for name in ("rho", "lam", "mode", "adaptive", "share")}
            self.optimizer = base = EISAM(base, self.item_count, item_weight=self.item_weight, **own)
        self.sharpness = base
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step and its number of records over all ranks, int64 of shape ()."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        self._begins, items = True, torch.cat([batch["items"] for batch in batches])
        return batches, self.accelerator.reduce((items >= 0).sum().to(device), "sum")

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run both passes of a micro-batch, and merge them after the last, before clipping; return the plain loss."""
        opt, last = self.sharpness, self.accelerator.sync_gradients
        if self._begins:
            opt.zero_grad()
        self._begins = False
        if self.state.global_step < self.args.plain_steps:
            return super().training_step(model, inputs, num_items_in_batch)
        again = inputs
        if self.args.mode == "subset":
            on = opt.selected(inputs["items"].clamp(min=0)) & (inputs["items"] >= 0)
            on[0] |= last and not bool(on.any())  # at weight 0: ranks meet in both passes of the last micro-batch
            again = {name: one[on] for name, one in inputs.items()}
        try:
            self._pass = "plain"
            both = super().training_step(model, inputs, num_items_in_batch)
            with opt.ascent():
                self._pass = "penalty"
                if len(again["items"]):
                    both = both + super().training_step(model, again, num_items_in_batch)
        finally:
            self._pass = "mean"
        self._rise = self._rise + both - self._mean
        if last:
            opt.merge()
            self._steps += 1
        return self._mean

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's part of the loss of the step, times the number of ranks that will average it."""
        names = ("input_ids", "attention_mask", "position_ids")
        outputs = model(**{name: inputs[name] for name in names}, use_cache=False)
        items, counts = inputs["items"].clamp(min=0), inputs["items"] >= 0
        losses = -sample_means(*token_log_probs(outputs["logits"], inputs["labels"])) * counts  # (B,)
        total = counts.sum() if num_items_in_batch is None else num_items_in_batch / self.args.world_size
        if self._pass == "mean":
            loss = losses.sum() / total
        elif self._pass == "plain":
            self._mean = losses.detach().sum() / total
            loss = self.sharpness.plain(losses, items) * len(items) / total
        else:
            loss = self.sharpness.penalty(losses, items, 1) / total
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the penalty and the realised perturbation to a line of the log."""
        if "loss" in logs and self._steps:
            logs["penalty"] = float(self.accelerator.reduce(self._rise, "mean")) / self._steps
            self._rise, self._steps = torch.zeros_like(self._rise), 0
            if self.sharpness.realised is not None:
                logs["realised_perturbation"], logs["realised_cosine"] = self.sharpness.realised
                self.sharpness.realised = None  # measured again in the next ascent
        super().log(logs, start_time)

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must share with the one that wrote its checkpoint; records as SHA-256."""
        block = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return {**self.args.sharpness_settings(), **self._keys, "effective batch": block, "seed": self._seed}

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint; True takes the last one that is complete."""
        found = last_complete(str(self.args.output_dir)) if resume_from_checkpoint is True else resume_from_checkpoint
        if found:
            refuse_changed(read_state(Path(found))[1]["settings"], self.settings())
        self._rise, self._steps = torch.zeros_like(self._rise), 0
        return super().train(str(found) if found else None, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First ours: trainer_state.json, which Trainer writes last, then says that the checkpoint is complete.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            write_state(folder, {}, {"settings": self.settings()})
        super()._save_checkpoint(model, trial)


class _Titles(Dataset[tuple[Encoded, int]]):
    """Records with their items by the keys of a `PairSampler`; the item of a place that does not count is -1."""

    def __init__(self, records: Sequence[Encoded], items: Sequence[int]) -> None:
        self.records, self.items = records, items

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[Encoded, int]:
        return self.records[key[0]], self.items[key[0]] if key[2] else -1


class _Epoch(TrainerCallback):
    """Tells the sampler which epoch begins; after a resume that of a skipping loader is out of Trainer's reach."""

    def __init__(self, trainer: EISAMTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        if self.trainer.order is not None:
            self.trainer.order.set_epoch(int(state.epoch or 0))


def _collate(batch: Sequence[tuple[Encoded, int]], pad: int) -> dict[str, Tensor]:
    records, items = zip(*batch, strict=True)
    return {**collate(records, pad), "items": torch.tensor(items)}


def _codes_and_counts(items: ArrayLike, n: int, count: ArrayLike | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return item codes, shape (n,), and counts, shape (I,)."""
    codes = np.asarray(items)
    if codes.shape != (n,) or not np.issubdtype(codes.dtype, np.integer):
        got = f"items of shape {codes.shape} and type {codes.dtype} for {n} records"
        raise InputError(got, "an integer a record", "number the items of the catalogue from 0")
    counts = np.bincount(codes.clip(0)) if count is None else np.asarray(count)
    for row in np.flatnonzero((codes < 0) | (codes >= len(counts)))[:1]:
        got = f"item code {codes[row]} of record {row} (the first is 0)"
        raise InputError(got, f"0 to {len(counts) - 1}", "count every item of the catalogue in item_count")
    return codes, counts


def _refuse_titles(records: Sequence[Encoded], limit: int, end: int | None) -> None:
    for row, one in enumerate(records):
        tokens = sum(token != end for token in one.ids[one.start :])
        if not 1 <= tokens <= limit:
            got = f"a title of {tokens} tokens of record {row} (the first is 0)"
            raise InputError(got, f"1 to {limit} tokens", "correct that title, or raise title_limit")


def _train_in_float32(model: Any) -> None:
    """Cast adapters to float32, in which a small perturbation survives; refuse other narrow trained weights."""
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)  # of a PeftModel: in the names of its adapter
    for name, p in model.named_parameters():
        if not p.requires_grad or p.element_size() >= 4:
            continue
        if prefix is None or prefix not in name:
            got = f"trained weights of type {p.dtype} ({name}), which would round the perturbation away"
            todo = "load the model with dtype=torch.float32 and set bf16=True in args, or train an adapter alone"
            raise InputError(got, "32 bits", todo)
        p.data = p.data.float()
