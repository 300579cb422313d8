r"""Unlearning by `transformers.Trainer`: any loss of `losses`, any order of records, the same result on every machine.

    theta <- theta - lr * step(grad L),   L = gamma forget + alpha retain   (`objectives`)

*Accumulation and ranks.* L is normalised over all records of an optimiser step, over micro-batches and ranks, so a run
depends on the effective batch alone. Epochs are filled up with places that do not count.

*Order.* A record, its retain partner and every control vector are functions of the seed and of names (epoch, place).

*Resume.* Checkpoints hold what is ours beside what is Trainer's, in ``upright_state.safetensors``: scores, weights,
sampler, reference sums, control vector, dual factor, and the fingerprints of the records. A resumed run is bit-equal to
one that was never stopped; other records or settings are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from upright.contract import InputError, stream
from upright.language.adapters import adapted, recomputes
from upright.language.callbacks import Epochs, GradientGuard, NumberGuard, UtilityFloor, UtilityGuard
from upright.language.encoding import Encoded, Scope
from upright.language.losses import control_vector, dual_step
from upright.language.objectives import Objective, objective_of, record_losses, step_totals, step_weights
from upright.language.pairs import PairCollator, PairDataset, pad_of, refuse_records
from upright.language.references import Reference, records_key
from upright.language.resume import last_complete, read_state, refuse_changed, write_state
from upright.language.sampling import PairSampler
from upright.language.schedule import Sampling, Schedule

try:
    from transformers import Trainer, TrainingArguments
except ImportError:
    raise InputError(
        "training without the package transformers", "the extra llm", "pip install 'upright[llm]'"
    ) from None

__all__ = ["UnlearnTrainer"]

_SIDES = ("forget", "alternative")  # whose reference sums are kept


class UnlearnTrainer(Trainer):
    """Trains a causal language model to forget some records and to keep others.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Changed in place.
    forget : sequence of Encoded, length n
        Of `encoding.encode_all`.
    retain : sequence of Encoded, optional
        Without them there is no retain term.
    args : TrainingArguments
        As for `Trainer`; ``remove_unused_columns`` is always False. An epoch is n draws.
    processing_class : PreTrainedTokenizerBase
    loss : str
        A forget loss of `losses.LOSSES` or a pair of `losses.PAIRS`, for example ``npo`` or ``grad_diff``.
    retain_loss : {"auto", "nll", "kl", "rmu_retain"} or None
        ``auto`` is that of the pair, ``nll`` for other losses.
    gamma, alpha : float
        Factors of the forget and of the retain term, at least 0.
    loss_options : mapping, optional
        Factors of the losses, see `objectives.objective_of`.
    sampling : {"shuffle", "uniform", "mrd"} or array of float, shape (n,)
        ``shuffle`` takes every record once an epoch; the others draw n with replacement: uniformly, by
        `sampling_weights` of the difficulty, or by given weights.
    tau, floor : float
        Of `sampling_weights`.
    difficulty : Difficulty or array of float, shape (n,), optional
        For ``mrd``; scored before the first step when left out.
    refresh : int
        Score again before every epoch that is a multiple of this; 0 never does.
    scoring : mapping or callable, optional
        Options of `difficulty.score_difficulty`, or a function of the model that returns another quantity, shape (n,).
    targets : array of float, shape (n,), optional
        Mean loss per token from which a record counts as forgotten. Measured before every epoch; such a record has
        weight 0 in it. When all are forgotten, training ends. Needs sampling by weights.
    reference : None, "start", "adapter" or PreTrainedModel
        Who says what the model said before, for losses that ask: the model as it stands when training starts (None and
        ``start``), the base under the adapter, or another model. Sums are computed once; a loss that needs
        distributions takes the base under an adapter that is still neutral, or else a frozen copy.
    cache_dir : path, optional
        Keeps reference sums for other runs.
    alternatives : sequence of Encoded, length n, optional
        Answers to be given instead, for ``idk_dpo`` and ``alt_po``.
    scope : {"answer", "sequence"}
        Which tokens are forgotten and kept.
    stop : UtilityFloor, optional
    peft_config : PeftConfig, optional
        Train an adapter of `peft` instead of the weights.
    check_gradients : bool
        Refuse a run whose first step leaves a trainable tensor without gradient; False for experts that are routed to
        now and then.
    callbacks, **trainer
        As for `Trainer`: ``optimizers``, ``optimizer_cls_and_kwargs``.

    Raises
    ------
    InputError
        For settings that contradict each other, a loss or gradient that is not finite (with the step), a trainable
        tensor without gradient, and a checkpoint of other records or settings.

    Attributes
    ----------
    difficulty_history : list of (int, ndarray of shape (n,))
        Epoch and MRD of every scoring.
    schedule : Schedule
        Weights, sampler, and whether every record is at its target.
    reference : Reference
    guard_history : list of dict
        What the utility floor saw.
    stopped : str
        Why training ended early; empty when it did not.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the weights of the whole step

    def __init__(
        self, model: Any, forget: Sequence[Encoded], retain: Sequence[Encoded] | None = None, *,
        args: TrainingArguments, processing_class: Any, loss: str = "npo", retain_loss: str | None = "auto",
        gamma: float = 1.0, alpha: float = 1.0, loss_options: Mapping[str, Any] | None = None,
        sampling: Sampling | ArrayLike = "shuffle", tau: float = 1.0, floor: float = 0.0, difficulty: Any = None,
        refresh: int = 0, scoring: Any = None, targets: ArrayLike | None = None,
        reference: Any = None, cache_dir: str | Path | None = None, alternatives: Sequence[Encoded] | None = None,
        scope: Scope = "answer", stop: UtilityFloor | None = None, peft_config: Any = None,
        check_gradients: bool = True, callbacks: Sequence[Any] | None = None, **trainer: Any,
    ) -> None:  # fmt: skip
        self.objective: Objective = objective_of(
            loss, retain_loss=retain_loss, has_retain=bool(retain), gamma=gamma, alpha=alpha, options=loss_options
        )
        self.forget, self.retain, self.alternatives = list(forget), list(retain or ()), list(alternatives or ())
        refuse_records(self.objective, self.forget, self.alternatives)
        self._keys = [records_key(side) for side in (self.forget, self.retain, self.alternatives)]
        args = copy.copy(args)
        args.remove_unused_columns = False  # True strips the nested batch
        self._use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        self._seed = int(args.seed if args.data_seed is None else args.data_seed)
        self.scope, self.cache_dir, self.pad = scope, cache_dir, pad_of(processing_class)
        self.schedule = Schedule(
            self.forget, sampling, tau=tau, floor=floor, difficulty=difficulty, refresh=refresh, scoring=scoring,
            targets=targets, scope=scope, seed=self._seed, pad=self.pad,
        )  # fmt: skip
        kept = self.retain if self.objective.retain else ()
        watch: list[Any] = [NumberGuard(), Epochs(self)]
        guard = GradientGuard(idle=lambda: self.schedule.finished, some=self.objective.layer is not None)
        watch += [guard] if check_gradients else []
        watch += [UtilityGuard(self, stop)] if stop is not None else []
        super().__init__(
            model=adapted(model, peft_config, seed=self._seed, checkpointing=recomputes(args)),
            args=args, data_collator=PairCollator(self.forget, kept, self.alternatives, self.pad, scope),
            train_dataset=PairDataset(len(self.forget)), processing_class=processing_class,
            callbacks=[*(callbacks or ()), *watch], **trainer,
        )  # fmt: skip
        if args.n_gpu > 1:
            raise InputError(
                f"{args.n_gpu} devices in one process", "one device a process",
                "start with torchrun or accelerate launch, or show one device with CUDA_VISIBLE_DEVICES",
            )  # fmt: skip
        self.model_accepts_loss_kwargs = False  # the model computes no loss
        ask = self.objective.needs
        self.reference = Reference(
            reference, self.model, sums=ask("sums"), speaks=ask("distributions") or ask("hidden")
        )
        self.guard_history: list[dict[str, float]] = []
        self.stopped = ""
        self.alpha = float(alpha)
        self.control_vector: Tensor | None = None
        self._of_step = torch.zeros(2, dtype=torch.float64)  # forget and retain, this rank
        self._logged = torch.zeros(3, dtype=torch.float64)  # forget, retain and steps since the last line of the log
        self._size = 0

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must share with the one that wrote its checkpoint; records as SHA-256."""
        one = self.objective
        block = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return {
            "forget records": self._keys[0], "retain records": self._keys[1], "alternatives": self._keys[2],
            "loss": one.name, "retain_loss": one.retain, "gamma": one.gamma, "alpha": one.alpha,
            "loss_options": dict(one.options), "effective batch": block, "reference": self.reference.kind,
            **self.schedule.settings(),
        }  # fmt: skip

    # -- order of records -------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        block = self._train_batch_size * self.args.world_size
        return self.schedule.make_order(len(self.retain), block=block, drop_last=self.args.dataloader_drop_last)

    def prepare_epoch(self, epoch: int) -> None:
        """Score what is due before an epoch, in the precision of training."""
        with self.accelerator.autocast():
            self.schedule.prepare(epoch, self.model, self.args.per_device_eval_batch_size)

    @property
    def difficulty_history(self) -> list[tuple[int, Any]]:
        """Epoch and MRD, ndarray of shape (n,), of every scoring."""
        return self.schedule.history

    # -- one step ---------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step and the weights of its two sides over all ranks, int64 of shape (2,)."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        totals = step_totals(self.objective, batches).to(device)
        return batches, self.accelerator.reduce(totals, "sum")

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As in `Trainer`; leaves the weights alone when nothing is left to forget."""
        if self.schedule.finished:
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's part of the loss of the step, times the number of ranks that will average it."""
        step = self.state.global_step + 1
        try:
            forget, retain = record_losses(
                self.objective, model, inputs, sums=self.reference.sums, control=self.control_vector,
                speaking=lambda: self.reference.speaking(self.accelerator.unwrap_model(model)),
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"{error.got}, at step {step}", error.accepted, error.todo) from error
        if num_items_in_batch is None:
            num_items_in_batch = step_totals(self.objective, [inputs])
        w, v = step_weights(self.objective, inputs)
        parts = [(forget * w).sum() / num_items_in_batch[0]]
        if retain is not None:
            parts.append((retain * v).sum() / num_items_in_batch[1])
        held = torch.stack([one.detach() for one in parts]).double().cpu()
        if not bool(torch.isfinite(held).all()):
            raise InputError(
                f"a loss of {held.tolist()} at step {step}", "a finite loss",
                "go on from the last checkpoint with a smaller learning rate or another loss",
            )  # fmt: skip
        self._of_step[: len(held)] += held
        loss = self.objective.gamma * parts[0] + (self.alpha * parts[1] if retain is not None else 0.0)
        if model.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise InputError(
                f"a loss without gradient at step {step}", "trainable weights that the loss depends on",
                "with an adapter and activation checkpointing call model.enable_input_require_grads()",
            )  # fmt: skip
        loss = loss * self.args.world_size
        return (loss, {"forget": forget, "retain": retain}) if return_outputs else loss

    def after_step(self, epoch: float) -> None:
        """Add up the parts of the loss over ranks and take the dual step of ``pdu``."""
        of_step = self.accelerator.reduce(self._of_step.to(self.args.device), "sum").cpu()
        self._logged += torch.cat([of_step, torch.ones(1, dtype=torch.float64)])
        self._of_step.zero_()
        options = self.objective.options
        if self.objective.forget == "pdu" and self.objective.retain and epoch >= options["warmup"]:
            self.alpha = dual_step(self.alpha, float(of_step[1]), epsilon=options["epsilon"], step=options["dual_step"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add both terms of the loss, and what else changes, to a line of the log."""
        if "loss" in logs:
            forget, retain, steps = self._logged.tolist()
            logs["forget_loss"] = forget / max(steps, 1.0)
            if self.objective.retain:
                logs["retain_loss"] = retain / max(steps, 1.0)
            if self.objective.forget == "pdu":
                logs["alpha"] = self.alpha
            self._logged.zero_()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """``6 tokens weights``, the count of a dense model."""
        tokens = sum(int(side["input_ids"].numel()) for side in inputs.values() if isinstance(side, Mapping))
        return 6 * self._size * tokens

    # -- start, save, resume ----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint; True takes the last one that is complete."""
        model: Any = self.model
        found = last_complete(str(self.args.output_dir)) if resume_from_checkpoint is True else resume_from_checkpoint
        folder = str(found) if found else None
        self._size = sum(int(p.numel()) for p in model.parameters())
        self.stopped = ""
        self._of_step.zero_()
        self._logged.zero_()
        if folder:
            self._restore(Path(folder))
        self._prepare_reference()
        if self.objective.needs("control") and self.control_vector is None:
            self.control_vector = control_vector(
                int(model.config.get_text_config().hidden_size), scale=self.objective.options["scale"],
                law=self.objective.options["law"],
                generator=torch.Generator().manual_seed(stream(self._seed, "control")),
            )  # fmt: skip
        if not folder:
            self.alpha = float(self.objective.alpha)
            with self.accelerator.autocast():
                self.schedule.start(model, self.args.per_device_eval_batch_size)
        try:
            return super().train(folder, *args, **kwargs)
        finally:
            if self._use_cache is not None:  # Trainer turns it off, and a saved model would stay without
                model.config.use_cache = self._use_cache

    def _prepare_reference(self) -> None:
        with self.accelerator.autocast():
            self.reference.prepare(
                self.model, dict(zip(_SIDES, (self.forget, self.alternatives), strict=True)), pad=self.pad,
                scope=self.scope, batch_size=self.args.per_device_eval_batch_size, cache_dir=self.cache_dir,
                write=self.args.should_save, tag=f"{self.accelerator.mixed_precision} ",
            )  # fmt: skip

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First ours: trainer_state.json, which Trainer writes last, then says that the checkpoint is complete.
        if self.args.should_save:
            tensors, values = self.schedule.state()
            tensors |= {f"sums.{side}": sums for side, sums in self.reference.sums.items()}
            if self.control_vector is not None:
                tensors["control"] = self.control_vector
            values |= {
                "settings": self.settings(), "alpha": self.alpha, "reference": self.reference.keys,
                "guard_history": self.guard_history,
            }  # fmt: skip
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            write_state(folder, tensors, values)
        super()._save_checkpoint(model, trial)

    def _restore(self, folder: Path) -> None:
        """Take over what `_save_checkpoint` wrote; weights and optimiser are Trainer's."""
        tensors, values = read_state(folder)
        refuse_changed(values["settings"], self.settings())
        self.schedule.load(tensors, values)
        self.control_vector, self.alpha = tensors.get("control"), float(values["alpha"])
        self.guard_history = values["guard_history"]
        self.reference.load({side: tensors[f"sums.{side}"] for side in _SIDES if f"sums.{side}" in tensors},
                            values["reference"])  # fmt: skip
        self._prepare_reference()
        if self.reference.keys != values["reference"]:
            raise InputError(
                "a model that is not the reference of the checkpoint", "the model as it stood before the first step",
                "load the start model, or pass it as reference=",
            )  # fmt: skip
