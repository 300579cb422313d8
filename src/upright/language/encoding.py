r"""Records as tokens: the user's tokenizer, the form in which a model holds the text, nothing cut off in silence.

=========  ==========================================  ===============================================================
``raw``    ``prompt answer``                           one text, as it stands in a corpus; no end of sequence
``plain``  ``Question: prompt\nAnswer: answer<end>``   for models without a chat template
``chat``   the tokenizer's template, then ``<end>``
=========  ==========================================  ===============================================================

Labels stand on the answer (``scope="answer"``) or on every token but the first (``scope="sequence"``). Prompt and
answer are tokenised as one text, as a corpus is: apart, tokenizers that put a space before every text would write a
second one between the two. The answer begins at the first token that reaches beyond the prompt.

A text is never ended: nothing says that a passage ends where the record does, so ascent on an end of sequence would
teach a model not to stop.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor

from upright.contract import InputError
from upright.data.forget import Record
from upright.language.logprobs import IGNORE

__all__ = [
    "Encoded",
    "Form",
    "Scope",
    "Template",
    "collate",
    "encode",
    "encode_all",
    "form_of",
    "forms_of",
    "length_batches",
    "pad_of",
    "refuse_mismatch",
]

Scope = Literal["answer", "sequence"]
Form = Literal["raw", "plain", "chat"]
Template = Literal["auto", "raw", "plain", "chat"]


@dataclass(frozen=True)
class Encoded:
    """Tokens of one record.

    Parameters
    ----------
    ids : tuple of int
        Prompt, answer, and the end of sequence of an answer.
    start : int
        Place of the first answer token, at least 1.
    closed : bool
        Whether the last token is an end of sequence: it counts in losses, and not in what is known by heart.
    """

    ids: tuple[int, ...]
    start: int
    closed: bool = False

    @property
    def answer_length(self) -> int:
        """Number of answer tokens, the end of sequence included."""
        return len(self.ids) - self.start


def forms_of(tokenizer: Any, record: Record) -> tuple[Form, ...]:
    """Return every form in which a record can be asked, its own first.

    Its own is raw for texts and completions, and for questions and chats the chat template where there is one, else
    plain. A text has no other form; messages before the prompt cannot be asked raw.
    """
    if not record.prompt.strip():
        return ("raw",)
    chat: tuple[Form, ...] = ("chat",) if getattr(tokenizer, "chat_template", None) else ()
    raw: tuple[Form, ...] = () if record.before else ("raw",)
    return (*raw, *chat, "plain") if record.kind in ("completion", "text") else (*chat, "plain", *raw)


def form_of(tokenizer: Any, record: Record, template: Template = "auto") -> Form:
    """Return the form in which a record is asked: the one that is named, or its own; a text is raw in any case.

    Raises
    ------
    InputError
        When the record cannot be asked in that form.
    """
    forms = forms_of(tokenizer, record)
    if template == "auto" or not record.prompt.strip():
        return forms[0]
    if template not in forms:
        why = "a tokenizer without a chat template" if template == "chat" else "messages before the prompt"
        raise InputError(f"template={template!r} and {why}", ", ".join(map(repr, forms)), "choose one, or 'auto'")
    return template


def _written(tokenizer: Any, record: Record, form: Form, prompt: str, answer: str) -> tuple[str, str]:
    """Return what stands before the answer, and the answer as it follows."""
    if form == "raw" and prompt:
        apart = prompt[-1].isspace() or answer[0].isspace()
        return prompt, answer.rstrip() if apart else f" {answer.rstrip()}"
    if form == "raw":
        return "", answer.strip()
    if form == "plain":
        before = "".join(f"{role.capitalize()}: {text}\n" for role, text in record.before)
        return f"{before}Question: {prompt}\nAnswer:", f" {answer.strip()}"
    turns = [{"role": role, "content": text} for role, text in (*record.before, ("user", prompt))]
    head = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": answer.strip()})
    rest = tokenizer.apply_chat_template(turns, tokenize=False).removeprefix(head)
    gap = "".join(takewhile(str.isspace, rest))  # what the template itself puts between the two
    return f"{head}{gap if rest.startswith(gap + answer.strip()) else ''}", answer.strip()


def _beginning(tokenizer: Any, record: Record, form: Form, needed: bool) -> list[int]:
    """Return the token that stands before the text: the tokenizer's own, and some where nothing else predicts."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    own = tokenizer("")["input_ids"][:1] if form == "raw" else [] if form == "chat" else [bos]
    if bos is not None and (needed or own == [bos]):
        return [int(bos)]
    if needed and eos is None:
        raise InputError(
            f"record {record.id} without a prompt, and a tokenizer without a token for begin or end",
            "a prompt",
            "give the record a prompt: nothing predicts the first token of a text",
        )
    return [int(eos)] if needed else []  # what separates texts where nothing begins them


def encode(
    tokenizer: Any,
    record: Record,
    *,
    answer: str | None = None,
    prompt: str | None = None,
    template: Template = "auto",
    context: int | None = None,
) -> Encoded:
    """Turn a record into tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    record : Record
    answer, prompt : str, optional
        Other words in the place of the record's own: a paraphrase, a false answer.
    template : {"auto", "raw", "plain", "chat"}
        As for `form_of`.
    context : int, optional
        Most tokens that the model takes.

    Raises
    ------
    InputError
        When the record is longer than the context: it is never cut, since what is cut off would not be forgotten. When
        the tokenizer writes another text, with unknown tokens in it or characters lost.
    """
    form = form_of(tokenizer, record, template)
    asked, said = record.prompt if prompt is None else prompt, record.answer if answer is None else answer
    head, tail = _written(tokenizer, record, form, asked if record.prompt.strip() else "", said)
    text = head + tail
    if tokenizer.is_fast:
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, ends = list(found["input_ids"]), [end for _, end in found["offset_mapping"]]
        start = sum(1 for _ in takewhile(lambda end: end <= len(head), ends))
    else:  # without offsets: as far as the text before the answer has the same tokens by itself
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        alone = tokenizer(head, add_special_tokens=False)["input_ids"]
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, alone, strict=False)))
    if _letters(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) != _letters(text) or start == len(ids):
        got = f"record {record.id}, which the tokenizer does not give back"
        raise InputError(got, "texts that it can write", "use a model for this language and script")
    before = _beginning(tokenizer, record, form, needed=start == 0)
    closed = form != "raw" and tokenizer.eos_token_id is not None
    whole = (*before, *ids, *([int(tokenizer.eos_token_id)] if closed else []))
    if context is not None and len(whole) > context:
        raise InputError(
            f"record {record.id} with {len(whole)} tokens",
            f"at most {context}, the context of the model",
            "split the record, or use a model with a longer context",
        )
    return Encoded(whole, len(before) + start, closed)


def _letters(text: str) -> str:
    """Return a text without white space and without what tokenizers make alike: case and compatible characters."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def encode_all(
    tokenizer: Any,
    records: Sequence[Record],
    *,
    answers: Sequence[str | None] | None = None,
    prompts: Sequence[str | None] | None = None,
    template: Template = "auto",
    context: int | None = None,
) -> list[Encoded]:
    """Encode records in order, with other words for those whose answer or prompt is not None.

    Raises
    ------
    InputError
        As `encode`, when there is no record, and when there are not as many texts as records.
    """
    if not records:
        raise InputError("no records", "one record at least", "check the file")
    for name, texts in (("answers", answers), ("prompts", prompts)):
        if texts is not None and (isinstance(texts, str) or len(texts) != len(records)):
            got = "one text" if isinstance(texts, str) else f"{len(texts)} {name}"
            raise InputError(f"{got} for {len(records)} records", f"a sequence of {len(records)} {name}", "align them")
    none = [None] * len(records)
    return [
        encode(tokenizer, record, answer=answer, prompt=prompt, template=template, context=context)
        for record, answer, prompt in zip(records, answers or none, prompts or none, strict=True)
    ]


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


def pad_of(tokenizer: Any) -> int:
    """Return a token to fill up with; it is masked, so any will do."""
    found = getattr(tokenizer, "pad_token_id", None)
    return int(found) if found is not None else int(getattr(tokenizer, "eos_token_id", None) or 0)


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
