r"""The one reader of log-probabilities: of the scored tokens of a set of samples, with few logits in memory at once.

Logits are taken only where a token is scored: a hook on the output head drops all other rows before the vocabulary is
multiplied in, and hands over the rest in chunks. That holds for every model whose `get_output_embeddings` is a module.
A model that changes the logits afterwards (soft caps, scales) is noticed, and its own output is used, in one piece.
Results are float64, from logits in the precision of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from upright.contract import InputError
from upright.language.encoding import Encoded, Scope, collate, length_batches
from upright.language.engines import removing
from upright.language.logprobs import IGNORE, token_log_probs, token_statistics

__all__ = ["Array", "Reader", "evaluating", "read_answers", "refuse_encoder"]

Array = NDArray[np.float64]
_LOGITS = 1 << 22  # logits at once, 16 MB in float32; more where the model itself is larger
_DOUBLE = 1 << 18  # of these, turned into float64 at once


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into the mode that it had."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def refuse_encoder(model: Any) -> None:
    """Refuse a model that does not predict each token from those before it alone: its numbers would be no forecast.

    Raises
    ------
    InputError
        For encoder-decoders, and for models whose logits at a place change with a later token (BERT).
    """
    accepted, todo = "a causal language model", "use a model that writes text, such as GPT, Llama, Qwen or Mamba"
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{name}, an encoder-decoder", accepted, todo)
    device = model.get_input_embeddings().weight.device
    with torch.no_grad(), evaluating(model):
        one, other = (model(input_ids=torch.tensor([[1, 2, 3, last]], device=device)).logits[:, :3] for last in (4, 5))
    if float((one - other).abs().max()) > 1e-3 * float(one.std()):
        raise InputError(f"{name}, which reads the tokens that it should predict", accepted, todo)


def read_answers(
    model: Any,
    encoded: Sequence[Encoded],
    *,
    pad: int,
    scope: Scope = "answer",
    batch_size: int = 8,
    names: Sequence[str] | None = None,
    moments: bool = False,
) -> list[Array]:
    """Return ``log p(x_t | x_<t)`` of the scored tokens of each sample, in evaluation mode and without gradients.

    Parameters
    ----------
    model, encoded, pad, scope, batch_size, names
        As for `Reader`.
    moments : bool
        Whether the columns of `Reader.read` are returned, not the log-probabilities alone.

    Returns
    -------
    list of ndarray of float64, length n
        Of shape (n_i,), or (n_i, 4) with moments.

    Raises
    ------
    InputError
        As for `Reader`, and for logits that are not finite: the sample is named.
    """
    reader = Reader(model, encoded, scope=scope, batch_size=batch_size, pad=pad, names=names)
    with torch.no_grad(), evaluating(model):
        return np.split(reader.read(model, moments=moments), reader.starts[1:-1])


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
        Any token of the vocabulary; padding is masked.
    names : sequence of str, length n, optional
        What samples are called in errors; by default ``sample 0`` and so on.

    Attributes
    ----------
    passes : int
        How often all samples were read.
    tokens : ndarray of int64, shape (n,)
    half : bool
        Whether logits came in half precision.

    Raises
    ------
    InputError
        For a sample without an answer token, or without a token before it.
    """

    def __init__(
        self,
        model: nn.Module,
        encoded: Sequence[Encoded],
        *,
        scope: Scope,
        batch_size: int,
        pad: int,
        names: Sequence[str] | None = None,
    ) -> None:
        self.names = [f"sample {i}" for i in range(len(encoded))] if names is None else names
        for name, one in zip(self.names, encoded, strict=True):
            if one.start < 1 or one.answer_length < 1:
                raise InputError(
                    f"{name} with {len(one.ids)} tokens and an answer that starts at {one.start}",
                    "an answer of at least one token after at least one token",
                    "leave the sample out or complete it",
                )
        self.encoded, self.scope, self.pad = encoded, scope, pad
        self.batches = length_batches(encoded, batch_size)
        self.tokens = np.array([e.answer_length if scope == "answer" else len(e.ids) - 1 for e in encoded])
        self.starts = np.concatenate([[0], np.cumsum(self.tokens)])
        self.passes = 0
        self.half = False
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

    def read(self, forward: Callable[..., Any], *, moments: bool = False) -> Array:
        """Read every scored token, one sample after the other: one pass over the data.

        Parameters
        ----------
        forward : callable
            The model, or what stands for it with noise on the weights.
        moments : bool

        Returns
        -------
        ndarray of float64, shape (sum of tokens,) or (sum of tokens, 4)
            ``P_t``; with moments also whether it is the argmax, and mean and standard deviation of log p over the
            vocabulary, as `token_statistics` has them.
        """
        out = np.empty((self.starts[-1], 4) if moments else self.starts[-1])
        for batch in self.batches:
            found = self.read_batch(forward, batch, moments)
            for i, part in zip(batch, np.split(found, np.cumsum(self.tokens[batch])[:-1]), strict=True):
                out[self.starts[i] : self.starts[i + 1]] = part
        self.passes += 1
        return out

    def read_batch(self, forward: Callable[..., Any], batch: Sequence[int], moments: bool = False) -> Array:
        """Return what `read` does, of some samples."""
        inputs, labels = self.inputs(batch)
        sample, column = (labels != IGNORE).nonzero(as_tuple=True)
        target, place = labels[sample, column], sample * labels.shape[1] + column - 1  # the row that predicts it
        if self.vocabulary is not None and int(target.max()) >= self.vocabulary:
            raise InputError(
                f"token {int(target.max())}", f"tokens below {self.vocabulary}", "use the tokenizer of the model"
            )
        try:
            found = self._rows(forward, inputs, place, target, moments)
        except _NotFinite as error:
            places = np.repeat(batch, self.tokens[list(batch)])
            raise InputError(
                f"logits that are not finite at {self.names[int(places[error.row])]}",
                "finite logits",
                "find where the model diverged; if it is finite without noise, lower sigma",
            ) from None
        return np.asarray(found.cpu().numpy(), dtype=np.float64)

    def inputs(self, batch: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
        """Return what the model is called with for some samples, and their labels, int64 of shape (B, T)."""
        full = collate([self.encoded[i] for i in batch], self.pad, scope=self.scope)
        labels = full.pop("labels").to(self.device)
        if "position_ids" not in self.takes:  # padding stands on the right, so a model's own count is the same
            full.pop("position_ids")
        inputs: dict[str, Any] = {k: v.to(self.device) for k, v in full.items()}
        if "use_cache" in self.takes:
            inputs["use_cache"] = False
        return inputs, labels

    def _rows(
        self, forward: Callable[..., Any], inputs: Mapping[str, Any], place: Tensor, target: Tensor, moments: bool
    ) -> Tensor:
        """Return the values of the targets, shape (N,) or (N, 4), with as few logits in memory as the model allows."""
        shape, extra = inputs["input_ids"].shape, torch.cat([place, place[-1:]])
        picked: list[Tensor] = []
        seen: list[Tensor] = []
        first: list[Tensor] = []
        step = max(1, self.budget // (self.vocabulary or self.budget))

        def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if first or not args or not isinstance(args[0], Tensor) or args[0].shape[:2] != shape:
                return None
            picked.append(args[0].flatten(0, 1).index_select(0, extra.to(args[0].device)))  # (N + 1, d)
            return (picked[0][None, : step + 1] if self.plain else picked[0][None], *args[1:])  # (1, <= N + 1, d)

        def read(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if first or not picked or not self.plain:
                return
            first.append(output)  # from here on `pick` lets everything through
            if output.ndim != 3 or int(target.max()) >= output.shape[2]:
                return  # no logits
            hidden = picked[0]
            for at in range(0, len(target), step):
                logits = output if at == 0 else module(hidden[None, at : at + step + 1])
                seen.append(_values(logits, target[at : at + step], at, moments))

        with ExitStack() as stack:
            if self.head is not None:
                stack.enter_context(removing(self.head.register_forward_pre_hook(pick)))
                stack.enter_context(removing(self.head.register_forward_hook(read)))
            logits = forward(**inputs).logits
        self.half |= (first[0] if first else logits).dtype not in (torch.float32, torch.float64)
        if first:
            if seen and logits.dtype == first[0].dtype and torch.equal(logits, first[0]):
                return torch.cat(seen)
            self.plain = False  # the model changes what the head gives: take its own output, from now on
            return self._rows(forward, inputs, place, target, moments)
        if not picked:
            logits = logits.flatten(0, 1).index_select(0, extra.to(logits.device))[None]
        return _values(logits, target, 0, moments)


class _NotFinite(Exception):
    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def _values(logits: Tensor, target: Tensor, at: int, moments: bool) -> Tensor:
    """Values in float64 from rows (1, N + 1, V), the last of which is not used, shape (N,) or (N, 4)."""
    target = target.to(logits.device)
    labels = torch.cat([target.new_full((1,), IGNORE), target])[None]  # (1, N + 1)
    try:
        chunk = max(1, _DOUBLE // logits.shape[2])
        if not moments:
            return token_log_probs(logits, labels, dtype=torch.float64, chunk=chunk)[0][0, 1:]
        found = token_statistics(logits, labels, dtype=torch.float64, chunk=chunk)
        return torch.stack([found.log_probs, found.best.double(), found.mean, found.std], dim=-1)[0, 1:]
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
