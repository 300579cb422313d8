"""Adapters of `peft`, and reading a model without leaving a trace in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from upright.contract import InputError, stream
from upright.language.encoding import Encoded
from upright.language.reader import evaluating

__all__ = ["adapted", "adapter_is_neutral", "own_precision", "quiet", "recomputes"]


@contextlib.contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every module comes back, and all global generators."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def own_precision(model: Any) -> Iterator[None]:
    """Without the mixed precision that accelerate puts around the forward pass of a model that it prepared."""
    mixed = model.forward
    own = vars(model).get("_original_forward")
    if own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = mixed


def recomputes(args: Any) -> bool:
    """Whether activations are computed again in the backward pass, by either name that transformers 5 has for it."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return any(bool(getattr(args, name, False)) for name in names)


def adapted(model: Any, config: Any, *, seed: int, checkpointing: bool) -> Any:
    """Return the model with the adapter that was asked for.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
    config : PeftConfig or None
    seed : int
        Of the adapter's first weights; the global generator is left as it was.
    checkpointing : bool
        Whether activations are computed again in the backward pass: then the embeddings must ask for gradients, or
        nothing below the first adapter is recorded.
    """
    if config is not None:
        try:
            from peft import get_peft_model
        except ImportError:
            got = "peft_config without the package peft"
            raise InputError(got, "the extra llm", "pip install 'upright[llm]'") from None
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft 0.21 asks transformers by an old name
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
            torch.manual_seed(stream(seed, "adapter"))
            model = get_peft_model(model, config)
    if checkpointing and hasattr(model, "disable_adapter"):
        model.enable_input_require_grads()
    return model


def adapter_is_neutral(model: Any, record: Encoded) -> bool:
    """Whether a model has an adapter that changes nothing yet, judged by its logits on one record."""
    if not hasattr(model, "disable_adapter"):
        return False
    ids = torch.tensor([record.ids], device=next(model.parameters()).device)
    with quiet(model):
        own = model(input_ids=ids, use_cache=False)["logits"]
        with model.disable_adapter():
            base = model(input_ids=ids, use_cache=False)["logits"]
    return bool(torch.allclose(own, base, rtol=1e-5, atol=1e-5))
