r"""Unlearning by `transformers.Trainer`: any loss of `losses`, any order of records, the same result on every machine.

    theta <- theta - lr * step(grad L),   L = gamma forget + alpha retain   (`objectives`)

*Accumulation and ranks.* L is normalised over all records of an optimiser step, over micro-batches and ranks, so a run
depends on the effective batch alone. Epochs are filled up with places that do not count.

*Order.* A record, its retain partner and every control vector are functions of the seed and of names (epoch, place).

*Weights.* Records may count differently: their losses are weighted, whatever the loss and however a step is split.

*Resume.* Checkpoints hold what is ours beside what is Trainer's: scores, weights, sampler, reference sums, control
vector, dual factor and bound, and the fingerprints of the records. A resumed run is bit-equal to one that was never
stopped; other records or settings are refused.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from upright.contract import InputError, NonNegativeInt, Range, stream
from upright.language.adapters import adapted, own_precision, quiet, recomputes
from upright.language.encoding import Encoded, Scope, collate, pad_of
from upright.language.losses import LOSSES, control_vector, dual_step
from upright.language.objectives import Objective, objective_of, record_losses, step_totals, step_weights
from upright.language.reader import Array, read_answers, refuse_encoder
from upright.language.references import Reference, agree, digest_of, records_key
from upright.language.sampling import PairSampler, Schedule, mean_one, partners
from upright.language.training import (
    GradientGuard,
    NumberGuard,
    last_complete,
    read_state,
    refuse_changed,
    refuse_settings,
    write_state,
)

try:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
except ImportError:
    raise InputError(
        "training without the package transformers", "the extra llm", "pip install 'upright[llm]'"
    ) from None

__all__ = [
    "PairCollator",
    "UnlearnArguments",
    "UnlearnTrainer",
    "UtilityFloor",
    "quiet_arguments",
    "train_quietly",
]

_STILL = 0.01  # change of the loss per token, in nats, below which nothing moved
_LOOKED_AT = 64  # records whose loss is measured before and after
_SIDES = ("forget", "alternative")  # whose reference sums are kept


@dataclass
class UnlearnArguments(TrainingArguments):
    """`TrainingArguments` and how records are forgotten; an epoch is as many draws as there are records to forget.

    ``sampling`` takes every record once an epoch (``shuffle``) or draws with replacement: uniformly, or by
    `sampling_weights` of the difficulty (``mrd``).

    Raises
    ------
    InputError
        For values outside their range, and for settings of Trainer that would be ignored: label smoothing, grouping by
        length, evaluation between steps, the best model at the end.
    """

    loss: str = field(default="npo", metadata={"help": "a forget loss of losses.LOSSES, or a pair of losses.PAIRS"})
    retain_loss: str | None = field(default="auto", metadata={"help": "auto: that of the pair; none leaves it out"})
    gamma: float = field(default=1.0, metadata={"help": "factor of the forget loss, at least 0"})
    alpha: float = field(default=1.0, metadata={"help": "factor of the retain loss, at least 0"})
    loss_options: dict[str, Any] | None = field(default=None, metadata={"help": "see objectives.objective_of"})
    sampling: Literal["shuffle", "uniform", "mrd"] = field(default="shuffle", metadata={"help": "order of records"})
    tau: float = field(default=1.0, metadata={"help": "power of the difficulty in sampling_weights"})
    floor: Annotated[float, Range(ge=0, le=1)] = field(default=0.0, metadata={"help": "share of uniform draws"})
    refresh: NonNegativeInt = field(default=0, metadata={"help": "epochs between two scorings; 0 scores once"})
    scope: Literal["answer", "sequence"] = field(default="answer", metadata={"help": "tokens forgotten and kept"})
    check_gradients: bool = field(default=True, metadata={"help": "refuse a trainable tensor without gradient"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.remove_unused_columns = False  # True strips the nested batch
        refuse_settings(self, UnlearnArguments)
        if self.load_best_model_at_end or self.eval_strategy != "no":
            raise InputError(
                f"eval_strategy = {str(self.eval_strategy)!r}, load_best_model_at_end = {self.load_best_model_at_end}",
                "no evaluation between steps",
                "pass stop=UtilityFloor(...) to the trainer, or read the model in a callback",
            )


def quiet_arguments(folder: str | Path, *, seed: int, **fields: Any) -> UnlearnArguments:
    """Return arguments of a run inside a run: nothing saved or logged, gradients clipped at 1, a linear schedule."""
    return UnlearnArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=32,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=seed % 2**31,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **fields,
    )


def train_quietly(trainer: UnlearnTrainer) -> None:
    """Train without a line of output, and without a warning where nothing moved: `unmoved` has it."""
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing is forgotten", UserWarning)
        trainer.train()


@dataclass(frozen=True)
class UtilityFloor:
    """Stop a run when what must be kept gets worse than a floor.

    Parameters
    ----------
    check : callable
        ``check(model) -> {name: value}``, called in evaluation mode without gradients.
    floor : mapping of name to float
        Smallest value of each name that is allowed.
    every : int
        Steps between two checks, at least 1.
    """

    check: Callable[[Any], Mapping[str, float]]
    floor: Mapping[str, float] = field(default_factory=dict)
    every: int = 10

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every = {self.every}", "an integer of at least 1", "raise it")

    def below(self, values: Mapping[str, float]) -> list[str]:
        """Return the names that are below their floor; a value that is missing or NaN is."""
        return [name for name, low in self.floor.items() if not values.get(name, float("nan")) >= low]


class UnlearnTrainer(Trainer):
    """Trains a causal language model to forget some records and to keep others.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Changed in place.
    forget : sequence of Encoded, length n
        Of `encoding.encode_all`.
    retain : sequence of Encoded, optional
        Without them there is no retain loss; with ``ga`` they play no part.
    args : UnlearnArguments
    processing_class : PreTrainedTokenizerBase
    weights : array of float, shape (n,), optional
        How much the loss of each record counts, at least 0; brought to mean 1 by `sampling.mean_one`. The forget term
        of a step is ``sum_i w_i n_i l_i / sum_i n_i``, see `objectives`: the denominator has no weights, so a step of
        records that count little is a small step. Retain records are not weighted, and all weights 1 are no weights,
        bit for bit.
    difficulty : Difficulty or array of float, shape (n,), optional
        For ``mrd``; scored before the first step when left out.
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
    stop : UtilityFloor, optional
    peft_config : PeftConfig, optional
        Train an adapter of `peft` instead of the weights.
    callbacks, **trainer
        As for `Trainer`: ``optimizers``, ``optimizer_cls_and_kwargs``.

    Raises
    ------
    InputError
        For a model that sees the tokens that it should predict, settings that contradict each other, a loss or gradient
        that is not finite (with the step), a trainable tensor without gradient, and a checkpoint of other records or
        settings.

    Warns
    -----
    UserWarning
        Where nothing moved, and whether that is because both losses cancel; where a torn checkpoint is passed over.

    Attributes
    ----------
    moved : float
        ``mean_i |cbar_i(after) - cbar_i(before)|`` over the first 64 records to forget that count, in nats a token;
        NaN before the end of training.
    unmoved : str
        Why nothing moved, where `moved` is below 0.01 and records were left to forget; empty elsewhere.
    devices : dict of str to str
        On which device each phase ran: ``measuring``, ``reference``, ``scoring``, ``training``.
    schedule : Schedule
        Weights, scores of every scoring, and whether every record is at its target.
    reference : Reference
    guard_history : list of dict
        What the utility floor saw.
    stopped : str
        Why training ended early; empty when it did not.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the weights of the whole step
    args: UnlearnArguments

    def __init__(
        self,
        model: Any,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded] | None = None,
        *,
        args: UnlearnArguments,
        processing_class: Any,
        weights: ArrayLike | None = None,
        difficulty: Any = None,
        scoring: Any = None,
        targets: ArrayLike | None = None,
        reference: Any = None,
        cache_dir: str | Path | None = None,
        alternatives: Sequence[Encoded] | None = None,
        stop: UtilityFloor | None = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] | None = None,
        **trainer: Any,
    ) -> None:
        if not isinstance(args, UnlearnArguments):
            raise InputError(f"args of type {type(args).__name__}", "UnlearnArguments", "pass its fields to that class")
        if odd := sorted(set(trainer) - {"optimizers", "optimizer_cls_and_kwargs"}):
            todo = "leave it out; stop=UtilityFloor(...) and callbacks see the model"
            raise InputError(f"{odd[0]} for UnlearnTrainer", "optimizers, optimizer_cls_and_kwargs", todo)
        refuse_encoder(model)
        self.objective: Objective = _objective(args, processing_class, bool(retain))
        self.forget, self.retain, self.alternatives = list(forget), list(retain or ()), list(alternatives or ())
        self._refuse_records()
        self._keys = [records_key(side) for side in (self.forget, self.retain, self.alternatives)]
        self._use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        self._seed = int(args.seed if args.data_seed is None else args.data_seed)
        self.cache_dir, pad = cache_dir, pad_of(processing_class)
        self.reading: dict[str, Any] = {"pad": pad, "scope": args.scope, "batch_size": args.per_device_eval_batch_size}
        self.weights = None if weights is None else mean_one(weights, len(self.forget))
        self.schedule = Schedule(
            self.forget,
            args,
            difficulty=difficulty,
            scoring=scoring,
            targets=targets,
            seed=self._seed,
            reading=self.reading,
        )
        kept = self.retain if self.objective.retain else ()
        watch: list[Any] = [NumberGuard(), _Epochs(self, stop)]
        if args.check_gradients:
            some = self.objective.layer is not None
            watch.append(GradientGuard(idle=lambda: self.schedule.finished, some=some))
        super().__init__(
            model=adapted(model, peft_config, seed=self._seed, checkpointing=recomputes(args)),
            args=args,
            data_collator=PairCollator(self.forget, kept, self.alternatives, pad, args.scope, self.weights),
            train_dataset=_Keys(len(self.forget)),
            processing_class=processing_class,
            callbacks=[*(callbacks or ()), *watch],
            **trainer,
        )
        if args.n_gpu > 1:
            todo = "start with torchrun or accelerate launch, or show one device with CUDA_VISIBLE_DEVICES"
            raise InputError(f"{args.n_gpu} devices in one process", "one device a process", todo)
        self.model_accepts_loss_kwargs = False  # the model computes no loss
        ask = self.objective.needs
        self.reference = Reference(
            reference, self.model, sums=ask("sums"), speaks=ask("distributions") or ask("hidden")
        )
        self.guard_history: list[dict[str, float]] = []
        self.devices: dict[str, str] = {}
        self.stopped, self.unmoved, self.moved = "", "", float("nan")
        self.alpha, self.epsilon = float(args.alpha), self.objective.options.get("epsilon")
        self.control_vector: Tensor | None = None
        self._before: Array | None = None  # loss of the records that are looked at, when the run began
        # Sums of both terms and the number of steps: of one step on this rank, since the last log line, of the run.
        self._of_step, self._logged, self._of_run = (torch.zeros(k, dtype=torch.float64) for k in (2, 3, 3))
        self._size = 0

    def _refuse_records(self) -> None:
        """Refuse an empty forget set, and alternatives that do not go with the loss."""
        n, wanted = len(self.forget), 2 * (LOSSES[self.objective.forget].answers == 2)
        if not n:
            raise InputError("no forget records", "one record at least", "check the file")
        if len(self.alternatives) != (n if wanted else 0):
            raise InputError(
                f"{len(self.alternatives)} alternative answers for {n} records and loss {self.objective.name!r}",
                "one a record with idk_dpo and alt_po, none with other losses",
                "pass alternatives=, or leave them out",
            )

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must share with the one that wrote its checkpoint; records as SHA-256."""
        one = self.objective
        return {
            **dict(zip(("forget records", "retain records", "alternatives"), self._keys, strict=True)),
            **{"loss": one.name, "retain_loss": one.retain, "gamma": one.gamma, "alpha": one.alpha},
            "loss_options": dict(one.options),
            "effective batch": self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            "reference": self.reference.kind,
            "weights": digest_of(self.weights),
            **self.schedule.settings(),
        }

    # -- order of records -------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        return self.schedule.make_order(len(self.retain), block=self._train_batch_size * self.args.world_size)

    def prepare_epoch(self, epoch: int) -> None:
        """Score what is due before an epoch, in the precision of the weights: bfloat16 would round the noise away."""
        with own_precision(self.model):
            self.schedule.prepare(epoch, self.model)
        if self.schedule.history or self.schedule.targets is not None:
            self._at("scoring")

    def _at(self, phase: str) -> None:
        model: Any = self.model
        self.devices[phase] = str(next(model.parameters()).device)

    # -- one step ---------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step and the totals of its two sides over all ranks, int64 of shape (2,)."""
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
                self.objective,
                model,
                inputs,
                sums=self.reference.sums,
                control=self.control_vector,
                speaking=lambda: self.reference.speaking(self.accelerator.unwrap_model(model)),
            )
        except InputError as error:
            raise InputError(f"{error.got}, at step {step}", error.accepted, error.todo) from error
        if num_items_in_batch is None:
            num_items_in_batch = step_totals(self.objective, [inputs])
        w, v = step_weights(self.objective, inputs)
        parts = [(forget * w.to(forget.dtype)).sum() / num_items_in_batch[0]]
        if retain is not None:
            parts.append((retain * v).sum() / num_items_in_batch[1])
        held = torch.stack([one.detach() for one in parts]).double().cpu()
        if not bool(torch.isfinite(held).all()):
            got = f"a loss of {held.tolist()} at step {step}"
            raise InputError(got, "a finite loss", NumberGuard.todo)
        self._of_step[: len(held)] += held
        loss = self.objective.gamma * parts[0] + (self.alpha * parts[1] if retain is not None else 0.0)
        if model.training and torch.is_grad_enabled() and not loss.requires_grad:
            raise InputError(
                f"a loss without gradient at step {step}",
                "trainable weights that the loss depends on",
                "with an adapter and activation checkpointing call model.enable_input_require_grads()",
            )
        self.devices["training"] = str(loss.device)
        loss = loss * self.args.world_size
        return (loss, {"forget": forget, "retain": retain}) if return_outputs else loss

    def after_step(self, epoch: float) -> None:
        """Add up the parts of the loss over ranks and take the dual step of ``pdu``."""
        of_step = self.accelerator.reduce(self._of_step.to(self.args.device), "sum").cpu()
        for total in (self._logged, self._of_run):
            total += torch.cat([of_step, torch.ones(1, dtype=torch.float64)])
        self._of_step.zero_()
        options = self.objective.options
        if self.objective.forget == "pdu" and self.epsilon is not None and epoch >= options["warmup"]:
            self.alpha = dual_step(self.alpha, float(of_step[1]), epsilon=self.epsilon, step=options["dual_step"])

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
        """Train, or go on from a checkpoint; True takes the last one that is whole."""
        model: Any = self.model
        found = last_complete(str(self.args.output_dir)) if resume_from_checkpoint is True else resume_from_checkpoint
        folder = str(found) if found else None
        self._size = sum(int(p.numel()) for p in model.parameters())
        self.stopped = self.unmoved = ""
        for total in (self._of_step, self._logged, self._of_run):
            total.zero_()
        if folder:
            self._restore(Path(folder))
        self._prepare_reference()
        if self.objective.needs("control") and self.control_vector is None:
            self.control_vector = control_vector(
                int(model.config.get_text_config().hidden_size),
                scale=self.objective.options["scale"],
                law=self.objective.options["law"],
                generator=torch.Generator().manual_seed(stream(self._seed, "control")),
            )
        if not folder:
            self.alpha = float(self.objective.alpha)
            self._before = self._losses()
            self._measure_bound()
            self.schedule.start(model)
        try:
            done = super().train(folder, *args, **kwargs)
        finally:
            if self._use_cache is not None:  # Trainer turns it off, and a saved model would stay without
                model.config.use_cache = self._use_cache
        self._look_whether_it_moved()
        return done

    @property
    def _looked_at(self) -> list[Encoded]:
        """The first records that count."""
        counting = range(len(self.forget)) if self.weights is None else np.flatnonzero(self.weights).tolist()
        return [self.forget[i] for i in counting[:_LOOKED_AT]]

    def _losses(self) -> Array:
        """Return the loss per token of the records that are looked at, shape (at most 64,)."""
        self._at("measuring")
        with own_precision(self.model):
            found = read_answers(self.model, self._looked_at, **self.reading)
        return np.array([-one.mean() for one in found])

    def _look_whether_it_moved(self) -> None:
        """Measure `moved`, and warn where it is nothing although records were left to forget."""
        if self._before is None:
            return
        self.moved = float(np.abs(self._losses() - self._before).mean())
        if self.moved >= _STILL or self.schedule.finished:
            return
        forget, retain, steps = self._of_run.tolist()
        terms = [self.objective.gamma * forget / max(steps, 1.0), self.objective.alpha * retain / max(steps, 1.0)]
        why = "raise the learning rate or train longer"
        if terms[1] and abs(sum(terms)) < 0.05 * sum(map(abs, terms)):
            why = (
                f"forget and retain loss cancel ({terms[0]:.3g} and {terms[1]:.3g} a step); take a bounded loss such as"
            )
            why += " npo, and look whether the retain records are those to forget"
        self.unmoved = f"nothing is forgotten, the loss moved by {self.moved:.2g} nats a token: {why}"
        warnings.warn(self.unmoved, UserWarning, stacklevel=3)

    def _measure_bound(self) -> None:
        """Set the bound of ``pdu``, if none is given: 1.1 times the retain loss of the first epoch's partners."""
        if self.objective.forget != "pdu" or not self.objective.retain or self.epsilon is not None:
            return
        first = [self.retain[j] for j in partners(len(self.retain), self._seed, 0, len(self.forget)).tolist()]
        with self.accelerator.autocast():
            found = np.concatenate(read_answers(self.model, first, **self.reading))
        self.epsilon = float(agree([-1.1 * found.mean()])[0])

    def _prepare_reference(self) -> None:
        with self.accelerator.autocast():
            self.reference.prepare(
                self.model,
                dict(zip(_SIDES, (self.forget, self.alternatives), strict=True)),
                reading=self.reading,
                cache_dir=self.cache_dir,
                write=self.args.should_save,
                tag=f"{self.accelerator.mixed_precision} ",
            )
        if self.reference.keys:
            self._at("reference")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            tensors, values = self.schedule.state()
            tensors |= {f"sums.{side}": sums for side, sums in self.reference.sums.items()}
            before = None if self._before is None else torch.from_numpy(self._before)
            of_losses = None if self.weights is None else torch.from_numpy(self.weights)
            own = {"control": self.control_vector, "before": before, "loss weights": of_losses}
            tensors |= {name: one for name, one in own.items() if one is not None}
            values |= {"settings": self.settings(), "alpha": self.alpha, "epsilon": self.epsilon}
            values |= {"reference": self.reference.keys, "guard_history": self.guard_history}
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            write_state(folder, tensors, values)
        super()._save_checkpoint(model, trial)

    def _restore(self, folder: Path) -> None:
        """Take over what `_save_checkpoint` wrote; weights and optimiser are Trainer's."""
        tensors, values = read_state(folder)
        refuse_changed(values["settings"], self.settings())
        self.schedule.load(tensors, values)
        self.control_vector, before = tensors.get("control"), tensors.get("before")
        self._before = None if before is None else before.numpy()
        self.alpha, self.epsilon = float(values["alpha"]), values["epsilon"]
        self.guard_history = values["guard_history"]
        sums = {side: tensors[f"sums.{side}"] for side in _SIDES if f"sums.{side}" in tensors}
        self.reference.load(sums, values["reference"])
        self._prepare_reference()
        if self.reference.keys != values["reference"]:
            raise InputError(
                "a model that is not the reference of the checkpoint",
                "the model as it stood before the first step",
                "load the start model, or pass it as reference=",
            )


def _objective(args: UnlearnArguments, tokenizer: Any, has_retain: bool) -> Objective:
    """Return what is minimised; a refusal in words becomes tokens, the end of sequence after them."""
    found = objective_of(
        args.loss,
        retain_loss=args.retain_loss,
        has_retain=has_retain,
        gamma=args.gamma,
        alpha=args.alpha,
        options=args.loss_options,
    )
    if isinstance(text := found.options.get("refusal"), str):
        end = getattr(tokenizer, "eos_token_id", None)
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *([] if end is None else [int(end)])]
        found = dataclasses.replace(found, options={**found.options, "refusal": ids})
    return found


# -- batches --------------------------------------------------------------------------------------------------------


class _Keys(Dataset[tuple[int, int, bool]]):
    """Hands the keys of a `PairSampler` through: what stands at a place is decided there, nothing is drawn here."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, key: tuple[int, int, bool]) -> tuple[int, int, bool]:
        return key


@dataclass(frozen=True)
class PairCollator:
    """Makes the nested batch ``{forget, retain, alternative, index, retain_index, counts, weights}`` out of keys.

    Parameters
    ----------
    forget, retain, alternatives : sequence of Encoded
        ``alternatives`` holds the answer to be given instead, one a forget record; empty where there is none.
    pad : int
    scope : {"answer", "sequence"}
        Where labels of all sides stand.
    weights : ndarray of float64, shape (n,), optional
        Of the losses of the forget records; without them the batch has none.
    """

    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    alternatives: Sequence[Encoded]
    pad: int
    scope: Scope = "answer"
    weights: Array | None = None

    def __call__(self, keys: Sequence[tuple[int, int, bool]]) -> dict[str, Any]:
        """Return the batch; ``index``, ``retain_index``, ``counts`` and ``weights`` have shape (B,)."""
        i, j, counts = zip(*keys, strict=True)
        sides = {"forget": (self.forget, i), "retain": (self.retain, j), "alternative": (self.alternatives, i)}
        batch: dict[str, Any] = {
            name: collate([records[k] for k in rows], self.pad, scope=self.scope)
            for name, (records, rows) in sides.items()
            if records
        }
        if self.weights is not None:
            batch["weights"] = torch.from_numpy(self.weights[list(i)])
        return batch | {name: torch.tensor(x) for name, x in (("index", i), ("retain_index", j), ("counts", counts))}


# -- what is done between steps -------------------------------------------------------------------------------------


class _Epochs(TrainerCallback):
    """Tells the trainer where an epoch begins and ends and where the optimiser has stepped; checks a utility floor."""

    def __init__(self, trainer: UnlearnTrainer, floor: UtilityFloor | None) -> None:
        self.trainer, self.floor = trainer, floor

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score what is due; also after a resume, where the sampler of a skipping loader is out of Trainer's reach."""
        epoch = int(state.epoch or 0)
        self.trainer.prepare_epoch(epoch)
        if self.trainer.schedule.order is not None:
            self.trainer.schedule.order.set_epoch(epoch)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the dual factor follow the retain loss of this step."""
        self.trainer.after_step(float(state.epoch or 0.0))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when nothing is left to forget, or utility is below its floor."""
        if self.floor is not None and state.global_step % self.floor.every == 0:
            with quiet(kwargs["model"]):
                values = {name: float(value) for name, value in self.floor.check(kwargs["model"]).items()}
            below = self.floor.below(values)
            self.trainer.guard_history.append({"step": int(state.global_step), **values})
            if agree([float(bool(below))])[0]:
                low = ", ".join(f"{name} = {values.get(name, float('nan')):g}" for name in below)
                self.trainer.stopped = f"{low} below its floor at step {state.global_step}"
                control.should_training_stop = True
        self._stop(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score for the next epoch, before a checkpoint of this one is written."""
        schedule = self.trainer.schedule
        if state.global_step < state.max_steps and not schedule.finished and schedule.order is not None:
            self.trainer.prepare_epoch(schedule.order.epoch + 1)
        self._stop(control)

    def _stop(self, control: Any) -> None:
        if self.trainer.schedule.finished:
            self.trainer.stopped = f"every record at its target before epoch {self.trainer.schedule.prepared}"
            control.should_training_stop = True
