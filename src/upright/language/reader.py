r"""Log-probabilities of the scored tokens of a set of samples, with few logits in memory at once.

Logits are taken only where a token is scored: a hook on the output head drops all other rows before the vocabulary is
multiplied in, and hands over the rest in chunks. That holds for every model whose `get_output_embeddings` is a module.
A model that changes the logits afterwards (soft caps, scales) is noticed, and its own output is used, in one piece.
Results are float64, from logits in the precision of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upright.contract import InputError
from upright.language.encoding import Encoded, Scope, collate, length_batches
from upright.language.engines import Engine, removing
from upright.language.logprobs import IGNORE, token_log_probs

__all__ = ["Array", "Reader", "scored_places"]

Array = NDArray[np.float64]
_LOGITS = 1 << 22  # logits at once, 16 MB in float32; more where the model itself is larger
_DOUBLE = 1 << 18  # of these, turned into float64 at once


def scored_places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of logits that predict a scored token, in the flat order (B * T,), and these tokens.

    Row t - 1 predicts the token at place t.
    """
    sample, place = (labels != IGNORE).nonzero(as_tuple=True)
    return sample * labels.shape[1] + place - 1, labels[sample, place]


class Reader:
    """Log-probabilities of the scored tokens of all samples, in the order of the samples.

    Parameters
    ----------
    model : Module
        Called with ``input_ids``, ``attention_mask`` and, where it takes them, ``position_ids``; returns ``.logits``.
    encoded : sequence of Encoded, length n
    scope : {"answer", "sequence"}
    batch_size : int
    pad : int

    Attributes
    ----------
    passes : int
        How often all samples were read.
    tokens : ndarray of int64, shape (n,)
    """

    def __init__(
        self, model: nn.Module, encoded: Sequence[Encoded], *, scope: Scope, batch_size: int, pad: int
    ) -> None:  # fmt: skip
        for i, one in enumerate(encoded):
            if one.start < 1 or one.answer_length < 1:
                raise InputError(
                    f"sample {i} with {len(one.ids)} tokens and an answer that starts at {one.start}",
                    "an answer of at least one token after at least one token", "leave the sample out or complete it",
                )  # fmt: skip
        self.encoded, self.scope, self.pad = encoded, scope, pad
        self.batches = length_batches(encoded, batch_size)
        self.tokens = np.array([e.answer_length if scope == "answer" else len(e.ids) - 1 for e in encoded])
        self.starts = np.concatenate([[0], np.cumsum(self.tokens)])
        self.passes = 0
        self.plain = True  # until the model is seen to change what its output head gives
        self.device = next(model.parameters()).device
        finder = getattr(model, "get_output_embeddings", None)
        head = finder() if callable(finder) else None
        self.head = head if isinstance(head, nn.Module) else None
        self.vocabulary = _vocabulary(model, self.head)
        inner = getattr(model, "get_base_model", None)  # what an adapter wraps
        base: Any = inner() if callable(inner) else model
        self.takes = {*inspect.signature(model.forward).parameters, *inspect.signature(base.forward).parameters}
        self.budget = max(_LOGITS, sum(p.numel() for p in model.parameters()) // 50)

    def read(self, engine: Engine) -> Array:
        """Return ``P_t`` of every scored token, float64 of shape (sum of tokens,): one pass over the data."""
        out = np.empty(self.starts[-1])
        for batch in self.batches:
            found = self.read_batch(engine, batch)
            at = 0
            for i in batch:
                out[self.starts[i] : self.starts[i + 1]] = found[at : at + self.tokens[i]]
                at += int(self.tokens[i])
        self.passes += 1
        return out

    def read_batch(self, engine: Engine, batch: Sequence[int]) -> Array:
        """Return ``P_t`` of the scored tokens of some samples, one after the other."""
        full = collate([self.encoded[i] for i in batch], self.pad, scope=self.scope)
        labels = full.pop("labels").to(self.device)
        if "position_ids" not in self.takes:  # padding stands on the right, so a model's own count is the same
            full.pop("position_ids")
        inputs: dict[str, Any] = {k: v.to(self.device) for k, v in full.items()}
        if "use_cache" in self.takes:
            inputs["use_cache"] = False
        place, target = scored_places(labels)
        if self.vocabulary is not None and int(target.max()) >= self.vocabulary:
            raise InputError(
                f"token {int(target.max())}", f"tokens below {self.vocabulary}", "use the tokenizer of the model"
            )
        try:
            found = self._rows(engine, inputs, place, target)
        except _NotFinite as error:
            places = np.repeat(batch, self.tokens[list(batch)])
            raise InputError(
                f"logits that are not finite at sample {int(places[error.row])}", "finite logits",
                "find where the model diverged; if it is finite without noise, lower sigma",
            ) from None  # fmt: skip
        return np.asarray(found.cpu().numpy(), dtype=np.float64)

    def _rows(self, engine: Engine, inputs: Mapping[str, Any], place: Tensor, target: Tensor) -> Tensor:
        """Return the log-probabilities of the targets, shape (N,), with as few logits in memory as the model allows."""
        shape, extra = inputs["input_ids"].shape, torch.cat([place, place[-1:]])
        picked: list[Tensor] = []
        seen: list[Tensor] = []
        first: list[Tensor] = []
        step = max(1, self.budget // (self.vocabulary or self.budget))

        def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if first or not args or not isinstance(args[0], Tensor) or args[0].shape[:2] != shape:
                return None
            picked.append(args[0].flatten(0, 1).index_select(0, extra))  # (N + 1, d)
            return (picked[0][None, : step + 1] if self.plain else picked[0][None], *args[1:])  # (1, <= N + 1, d)

        def read(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if first or not picked or not self.plain:
                return
            if output.dtype not in (torch.float32, torch.float64):  # autocast inside the model's own forward
                raise InputError(
                    f"logits in {output.dtype} from weights in full precision", "a model that computes in float32",
                    "take it out of mixed precision: accelerator.unwrap_model(model, keep_fp32_wrapper=False)",
                )  # fmt: skip
            first.append(output)  # from here on `pick` lets everything through
            if output.ndim != 3 or int(target.max()) >= output.shape[2]:
                return  # no logits
            hidden = picked[0]
            for at in range(0, len(target), step):
                logits = output if at == 0 else module(hidden[None, at : at + step + 1])
                seen.append(_log_probs(logits, target[at : at + step], at))

        with ExitStack() as stack:
            if self.head is not None:
                stack.enter_context(removing(self.head.register_forward_pre_hook(pick)))
                stack.enter_context(removing(self.head.register_forward_hook(read)))
            logits = engine.forward(**inputs).logits
        if first:
            if seen and logits.dtype == first[0].dtype and torch.equal(logits, first[0]):
                return torch.cat(seen)
            self.plain = False  # the model changes what the head gives: take its own output, from now on
            return self._rows(engine, inputs, place, target)
        if not picked:
            logits = logits.flatten(0, 1).index_select(0, extra)[None]
        return _log_probs(logits, target, 0)


class _NotFinite(Exception):
    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def _log_probs(logits: Tensor, target: Tensor, at: int) -> Tensor:
    """Log-probabilities in float64 from rows (1, N + 1, V), the last of which is not used, shape (N,)."""
    labels = torch.cat([target.new_full((1,), IGNORE), target])[None]  # (1, N + 1)
    try:
        chunk = max(1, _DOUBLE // logits.shape[2])
        return token_log_probs(logits, labels, dtype=torch.float64, chunk=chunk)[0][0, 1:]
    except InputError:
        if int(target.max()) >= logits.shape[2]:
            raise
        own = logits[0, :-1].gather(1, target[:, None])[:, 0]
        bad = ~torch.isfinite(logits[0, :-1].amax(dim=1)) | ~torch.isfinite(own)
        if not bool(bad.any()):
            raise
        raise _NotFinite(at + int(bad.nonzero()[0, 0])) from None


def _vocabulary(model: nn.Module, head: nn.Module | None) -> int | None:
    """Return the number of logits, None where it cannot be known without a call."""
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        return int(weight.shape[0])
    found = getattr(getattr(model, "config", None), "vocab_size", None)
    return int(found) if isinstance(found, int) else None
