r"""Records as tokens: the user's tokenizer and template, answers marked, nothing cut off in silence.

``ids = prompt tokens + answer tokens + end of sequence``, with labels on the answer (``scope="answer"``) or on every
token but the first (``scope="sequence"``). Prompt and answer are tokenised apart, so the border between them never
moves with the answer. Tokenizers with a chat template use it; others get ``Question: ...\nAnswer: ...``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from upright.contract import InputError
from upright.data.forget import Record
from upright.language.logprobs import IGNORE

__all__ = ["Encoded", "Scope", "Template", "collate", "encode", "encode_all", "length_batches", "prompt_ids",
           "refuse_mismatch", "template_of"]  # fmt: skip

Scope = Literal["answer", "sequence"]
Template = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class Encoded:
    """Tokens of one record.

    Parameters
    ----------
    ids : tuple of int
        Prompt, answer, and end of sequence where the tokenizer has one.
    start : int
        Place of the first answer token, at least 1.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def answer_length(self) -> int:
        """Number of answer tokens, the end of sequence included."""
        return len(self.ids) - self.start


def template_of(tokenizer: Any, template: Template = "auto") -> Literal["chat", "plain"]:
    """Return which template is used; ``chat`` needs a tokenizer that has one.

    Raises
    ------
    InputError
        When ``chat`` is asked for and the tokenizer has no template.
    """
    has = bool(getattr(tokenizer, "chat_template", None))
    if template == "chat" and not has:
        raise InputError("template='chat' and a tokenizer without a chat template", "'plain' or 'auto'", "choose one")
    return "chat" if has and template != "plain" else "plain"


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: Any, record: Record, *, template: Template = "auto", prompt: str | None = None) -> list[int]:
    """Return the tokens that stand before an answer, one at least.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    record : Record
    template : {"auto", "chat", "plain"}
    prompt : str, optional
        Other words for the record's prompt.

    Raises
    ------
    InputError
        When there would be none: plain text and a tokenizer without a beginning of sequence.
    """
    asked = record.prompt if prompt is None else prompt
    if asked and template_of(tokenizer, template) == "chat":
        turns = [{"role": role, "content": text} for role, text in record.before]
        turns.append({"role": "user", "content": asked})
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return _plain(tokenizer, text)  # the template writes special tokens itself
    bos = tokenizer.bos_token_id
    start = [] if bos is None else [int(bos)]
    if asked:
        before = "".join(f"{role.capitalize()}: {text}\n" for role, text in record.before)
        return start + _plain(tokenizer, f"{before}Question: {asked}\nAnswer:")
    if not start and tokenizer.eos_token_id is not None:
        start = [int(tokenizer.eos_token_id)]  # what separates texts where nothing begins them
    if not start:
        raise InputError(
            f"record {record.id} without a prompt, and a tokenizer without a token for begin or end", "a prompt",
            "give the record a prompt: nothing predicts the first token of a text",
        )  # fmt: skip
    return start


def encode(
    tokenizer: Any, record: Record, *, answer: str | None = None, prompt: str | None = None,
    template: Template = "auto", context: int | None = None,
) -> Encoded:  # fmt: skip
    """Turn a record into tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    record : Record
    answer, prompt : str, optional
        Other words in the place of the record's own: a paraphrase, a false answer.
    template : {"auto", "chat", "plain"}
    context : int, optional
        Most tokens that the model takes.

    Raises
    ------
    InputError
        When the record is longer than the context: it is never cut, since what is cut off would not be forgotten.
    """
    before = prompt_ids(tokenizer, record, template=template, prompt=prompt)
    text = (record.answer if answer is None else answer).strip()
    spaced = bool(record.prompt) and template_of(tokenizer, template) == "plain"
    after = _plain(tokenizer, f" {text}" if spaced else text)
    if tokenizer.eos_token_id is not None:
        after = [*after, int(tokenizer.eos_token_id)]
    ids = (*before, *after)
    if context is not None and len(ids) > context:
        raise InputError(
            f"record {record.id} with {len(ids)} tokens", f"at most {context}, the context of the model",
            "split the record, or use a model with a longer context",
        )  # fmt: skip
    return Encoded(ids, len(before))


def encode_all(
    tokenizer: Any, records: Sequence[Record], *, template: Template = "auto", context: int | None = None
) -> list[Encoded]:
    """Encode records in order; raises as `encode`, and when there is none."""
    if not records:
        raise InputError("no records", "one record at least", "check the file")
    return [encode(tokenizer, record, template=template, context=context) for record in records]


def collate(
    batch: Sequence[Encoded], pad: int, *, scope: Scope = "answer", side: Literal["right", "left"] = "right",
    width: int | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Pad records to one length.

    Parameters
    ----------
    batch : sequence of Encoded, length B
    pad : int
        Token that fills up; it is masked, so any will do.
    scope : {"answer", "sequence"}
        Where labels stand.
    side : {"right", "left"}
    width : int, optional
        Length T, by default that of the longest record.

    Returns
    -------
    dict
        ``input_ids``, ``attention_mask``, ``position_ids`` and ``labels`` (-100 where ignored), each int64 of shape
        (B, T). Positions count from the first real token, so padding on the left changes nothing.
    """
    t = max(len(e.ids) for e in batch) if width is None else width
    ids = torch.full((len(batch), t), pad, dtype=torch.int64)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE)
    for row, one in enumerate(batch):
        n = len(one.ids)
        if n > t:
            raise InputError(f"a record of {n} tokens", f"at most {t}, the width of the batch", "raise width")
        at = t - n if side == "left" else 0
        ids[row, at : at + n] = torch.tensor(one.ids)
        attention[row, at : at + n] = 1
        first = one.start if scope == "answer" else 1
        labels[row, at + first : at + n] = torch.tensor(one.ids[first:])
    positions = (attention.cumsum(1) - 1).clamp_min(0)
    return {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "labels": labels}


def length_batches(encoded: Sequence[Encoded], size: int) -> list[list[int]]:
    """Return indices in batches of similar length, longest first; a permutation of ``range(len(encoded))``."""
    if size < 1:
        raise InputError(f"batch size {size}", "an integer of at least 1", "raise it")
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i].ids), i))
    return [order[i : i + size] for i in range(0, len(order), size)]


def refuse_mismatch(tokenizer: Any, model: Any, *, reference: Any | None = None) -> None:
    """Refuse a tokenizer that does not fit a model, or another tokenizer for the reference.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    model : PreTrainedModel
    reference : PreTrainedTokenizerBase, optional
        Tokenizer of a reference model: losses per token compare only over the same tokens.

    Raises
    ------
    InputError
        When the tokenizer can produce ids that the model has no embedding for, or the two tokenizers differ.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    top = max(tokenizer.get_vocab().values(), default=-1) + 1
    if top > rows:
        raise InputError(
            f"a tokenizer of {top} tokens and a model with embeddings for {rows}", "the tokenizer of the model",
            "copy the tokenizer files that belong to this model into its folder",
        )  # fmt: skip
    if reference is not None and reference.get_vocab() != tokenizer.get_vocab():
        raise InputError(
            "a reference model with another tokenizer", "a reference of the same family, with the same vocabulary",
            "use the base model, or a model retrained from it without the records",
        )  # fmt: skip
