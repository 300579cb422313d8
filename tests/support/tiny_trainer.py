"""A trainer small enough to be followed by hand: records, a model and settings for the tests of unlearning."""

from __future__ import annotations

import functools

import numpy as np
import torch
from transformers import TrainerCallback

from upright.data.forget import Record
from upright.language.encoding import encode_all
from upright.language.trainer import UnlearnArguments, UnlearnTrainer
from upright.models.tiny import tiny_llama, tiny_tokenizer

WORDS = ["the", "river", "town", "keeps", "nine", "old", "boats", "and", "one", "quiet", "clock", "a", "low", "hill"]
OPTIONS = {"pdu": {"epsilon": 5.0, "warmup": 0}, "rmu": {"layer": 0}}


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    """Ends a run within the step after ``at``: between two micro-batches where it has two."""

    def __init__(self, at):
        self.at = at

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise Killed

    on_pre_optimizer_step = on_substep_end


def records(n, seed):
    """Records whose answers have 1 to 9 words: lengths must differ, or token and sample means would agree."""
    rng = np.random.default_rng(seed)
    say = lambda low, high: " ".join(rng.choice(WORDS, rng.integers(low, high)))  # noqa: E731
    return [Record(f"{say(1, 5)} {i}?", say(1, 10), id=str(i)) for i in range(n)]


@functools.cache
def data():
    """Tokenizer, forget, retain and alternative records, all encoded."""
    sets = [records(10, 0), records(7, 1), records(10, 2)]
    tokenizer = tiny_tokenizer([f"{r.prompt} {r.answer}" for one in sets for r in one], vocabulary=300)
    return tokenizer, *(encode_all(tokenizer, one) for one in sets)


def tiny(seed=0, **changes):
    return tiny_llama(data()[0], **{"hidden": 16, "layers": 2, "heads": 2, "seed": seed, **changes})


def arguments(folder, kind=UnlearnArguments, **changes):
    return kind(
        output_dir=str(folder),
        **{
            "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 2,
            "per_device_train_batch_size": 4, "learning_rate": 0.05, "lr_scheduler_type": "constant", "optim": "sgd",
            "max_grad_norm": 0.0, "logging_steps": 1, "seed": 3, **changes,
        },
    )  # fmt: skip


def split(options):
    """Part options into those of `UnlearnArguments` and parameters of the trainer."""
    own = {name: options.pop(name) for name in list(options) if name in UnlearnArguments.__annotations__}
    return own, options


def make(folder, loss, *, model=None, retain=True, args=None, forget=None, **options):
    tokenizer, own, kept, alternatives = data()
    options.setdefault("loss_options", OPTIONS.get(loss))
    if loss == "idk_dpo":
        options.setdefault("alternatives", alternatives)
    settings, options = split(options)
    kept = kept if retain is True else retain or None
    return UnlearnTrainer(
        tiny() if model is None else model, own if forget is None else forget, kept,
        args=arguments(folder, loss=loss, **settings, **(args or {})), processing_class=tokenizer, **options,
    )  # fmt: skip


def weights(model):
    return torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
