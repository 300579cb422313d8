r"""Questions as tokens: by the model's own processor, with and without an image, and where the answer begins.

The answer begins where the chat template with it leaves the template without it: after the longest common prefix of
their ids. Where a template ends in a space the prompt is no prefix: that space belongs to the first token of the
answer. So answers are written from the common prefix too. Without a template it is the text ``prompt answer<end>``.

No model is known by name. What a processor gives beside the ids goes to the model: one value a token is cut and padded
as the ids are, all else comes from the prompt alone, so that nothing looks at the answer (the Q-Former of InstructBLIP
reads the text).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad as pad_tensor

from upright.contract import InputError
from upright.language.encoding import pad_of
from upright.language.logprobs import IGNORE
from upright.language.reader import evaluating

__all__ = ["EncodedQuestion", "Question", "answers", "by_kind", "collate", "encode", "read"]

_ANY = "Yes"  # stands for an answer that is not known, to find where it would begin


@dataclass(frozen=True, eq=False)
class Question:
    """What a model is asked, and the answer that is wanted; empty where it is not known."""

    prompt: str
    answer: str
    image: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class EncodedQuestion:
    """Tokens of one question: prompt and answer, image tokens included, and how many belong to the prompt.

    ``image`` holds what else the processor gives: ``pixel_values``, ``image_grid_thw``; of some processors
    ``token_type_ids``, without an image too; of a tokenizer nothing.
    """

    ids: tuple[int, ...]
    prompt: int
    image: Mapping[str, Tensor] = field(default_factory=dict)


def encode(processor: Any, question: Question, *, longest: int | None = None) -> EncodedQuestion:
    """Turn a question into tokens, prompt and answer as one text.

    The answer ends with the last special token of the template, else with the end of sequence. An empty answer has no
    tokens: the ids end where an answer would begin. `longest` is the context, by default what the tokenizer says.

    An `InputError` for an image and a processor of text alone; an image token in the text; what the processor refuses,
    such as a question without the image that it needs; an answer with nothing before it, or with image tokens in it;
    and more than `longest` tokens, since nothing is cut off.
    """
    tokenizer, answer, shown = getattr(processor, "tokenizer", processor), question.answer.strip(), question.image
    name, token = f"question {question.prompt[:60]!r}", getattr(processor, "image_token", None)
    if shown is not None and not hasattr(processor, "image_processor"):
        got = f"{name} with an image, for a model of text alone"
        raise InputError(got, "a question without an image", "leave it out, or take a model that reads images")
    if isinstance(token, str) and token in question.prompt + answer:
        got = f"{name} with {token} in its text{'' if shown else ' and no image'}"
        todo = f"take {token} out of the text{'' if shown else ' and add the image'}"
        raise InputError(got, "text alone: the place of an image is added", todo)
    try:
        whole, asked = (_tokens(processor, question, said) for said in (answer or _ANY, ""))
    except Exception as error:  # whatever somebody else's processor or template raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        got = f"{name} {'with' if shown else 'without'} an image, which the processor refuses: {reason}"
        raise InputError(got, "what the model's own processor takes", "add or leave out the image") from None
    ids, alone = (one["input_ids"][0].tolist() for one in (whole, asked))
    start, count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, alone, strict=False))), len(ids)
    special, end = set(tokenizer.all_special_ids), tokenizer.eos_token_id
    while not answer and start > 1 and tokenizer.convert_ids_to_tokens(ids[start - 1]) in ("Ġ", "▁", " "):
        start -= 1  # the space belongs to the answer, whatever it is
    images = {getattr(one, "image_token_id", None) for one in (processor, tokenizer)}
    if start < 1 or images & set(ids[start:]):
        got = f"{name} with {'image tokens in' if start else 'nothing before'} its answer"
        raise InputError(got, "an answer after prompt and image", "write a prompt, or take the model's own template")
    last = max((i + 1 for i in range(start, count) if ids[i] in special), default=None)
    ids = [*ids[:last], *([] if last or end is None else [end])] if answer else ids[:start]
    longest = tokenizer.model_max_length if longest is None else longest
    if len(ids) > longest:
        todo = "shorten prompt or answer, or use a model with a longer context"
        raise InputError(f"{name} with {len(ids)} tokens", f"at most {longest}, the context of the model", todo)
    place = torch.arange(len(ids)).clamp_max(count - 1)  # an end that was added is as the token before it
    more = {
        key: part[:, place] if _by_token(part, count) else asked[key]
        for key, part in whole.items()
        if isinstance(part, Tensor) and key not in ("input_ids", "attention_mask", "labels")
    }
    return EncodedQuestion(tuple(ids), start, more)


def _tokens(processor: Any, question: Question, answer: str) -> Any:
    """Return what the processor makes of a prompt, with an answer unless it is empty: a batch of one."""
    tokenizer, image = getattr(processor, "tokenizer", processor), question.image
    own, inner = (getattr(one, "chat_template", None) for one in (processor, tokenizer))
    if own or inner:
        turns: list[dict[str, Any]] = [{"role": "user", "content": question.prompt}]
        turns += [{"role": "assistant", "content": answer}] if answer else []
        if processor is not tokenizer:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
            turns[0]["content"][:0] = [] if image is None else [{"type": "image", "image": image}]
        more = {"add_generation_prompt": not answer, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return processor.apply_chat_template(turns, **more, **({} if own else {"chat_template": inner}))
    token = getattr(processor, "image_token", None)  # where it is no text, the processor adds it by itself
    text = f"{token if image is not None and isinstance(token, str) else ''}{question.prompt}"
    given: dict[str, Any] = {} if image is None else {"images": [image]}
    if answer and "suffix" in inspect.signature(type(processor).__call__).parameters:  # else read as a prompt is
        given["suffix"] = [answer]
    elif answer:
        text += answer if text[-1:].isspace() else f" {answer}"
    return processor(text=[text], return_tensors="pt", **given)


def _by_token(part: Tensor, count: int) -> bool:
    return part.ndim > 1 and part.shape[:2] == (1, count)


def collate(encoded: Sequence[EncodedQuestion], *, pad: int, left: bool = False) -> dict[str, Tensor]:
    """Pad questions of one kind to one length T, on the right or the left, and concatenate their images.

    Returns ``input_ids``, ``attention_mask`` and ``labels`` (-100 on prompt and padding), int64 of shape (B, T), and
    what else the processor gave, with zeros where one question has less of it than another.
    """
    rows = [torch.tensor([one.ids]) for one in encoded]
    answer = _stacked([(torch.arange(len(one.ids)) >= one.prompt)[None] for one in encoded], left)
    attention = _stacked([torch.ones_like(row) for row in rows], left)
    ids = _stacked(rows, left).masked_fill(attention == 0, pad)
    out = {"input_ids": ids, "attention_mask": attention, "labels": ids.masked_fill(~answer, IGNORE)}
    for key, part in encoded[0].image.items():
        out[key] = _stacked([one.image[key] for one in encoded], left and _by_token(part, len(encoded[0].ids)))
    return out


def _stacked(parts: Sequence[Tensor], left: bool) -> Tensor:
    """Concatenate along the first axis, with zeros where a part is shorter along another one."""
    shape, out = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)], []
    for part in parts:
        gaps = [(0, size - have) for size, have in zip(shape, part.shape[1:], strict=True)]
        gaps = [gaps[0][::-1], *gaps[1:]] if left else gaps
        out.append(pad_tensor(part, [gap for pair in reversed(gaps) for gap in pair]))
    return torch.cat(out)


def by_kind(encoded: Sequence[EncodedQuestion], size: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length that never mix questions with and without an image."""
    order = sorted(range(len(encoded)), key=lambda i: (sorted(encoded[i].image), -len(encoded[i].ids), i))
    for _, kind in groupby(order, key=lambda i: sorted(encoded[i].image)):
        rows = list(kind)
        yield from (rows[i : i + size] for i in range(0, len(rows), size))


def _inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch where the embeddings of the model are, images in their type."""
    weight = model.get_input_embeddings().weight
    kept = {key: part.to(weight.device) for key, part in batch.items()}
    return {key: part.to(weight.dtype) if part.is_floating_point() else part for key, part in kept.items()}


def read(model: Any, encoded: Sequence[EncodedQuestion], *, pad: int, batch_size: int = 32) -> list[Tensor]:
    """Return ``log p(. | x_<t)`` at the answer tokens of each question: float32, (answer tokens, V), on the CPU.

    The model is read in evaluation mode and left as it was. Logits that are no numbers are an `InputError`.
    """
    found: list[Tensor] = [torch.empty(0)] * len(encoded)
    with torch.no_grad(), evaluating(model):
        for rows in by_kind(encoded, batch_size):
            batch = _inputs(model, collate([encoded[i] for i in rows], pad=pad))  # labels: where a gate's prompt ends
            for i, row in zip(rows, model(**batch, use_cache=False).logits, strict=True):  # (T, V)
                found[i] = row[encoded[i].prompt - 1 : len(encoded[i].ids) - 1].float().log_softmax(-1).cpu()
                if bool(found[i].isnan().any()):
                    got = f"logits that are no numbers at question {i}"
                    raise InputError(got, "finite logits", "find where the model diverged, or take the edit off")
    return found


def answers(model: Any, processor: Any, encoded: Sequence[EncodedQuestion], *, most: int = 16) -> list[str]:
    """Write an answer to each prompt, always the likeliest token, at most `most` of them, special tokens left out.

    Penalties and temperatures of the model's generation settings do not apply, its ends of sequence do.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    own = getattr(model.generation_config, "eos_token_id", None)
    last = {one.ids[-1] for one in encoded if len(one.ids) > one.prompt} & set(tokenizer.all_special_ids)
    stops = {tokenizer.eos_token_id, *last, *(own if isinstance(own, list) else [own])} - {None}
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    prompts, out, pad = [], [""] * len(encoded), pad_of(tokenizer)
    for one in encoded:
        cut = {k: part[:, : one.prompt] if _by_token(part, len(one.ids)) else part for k, part in one.image.items()}
        prompts.append(EncodedQuestion(one.ids[: one.prompt], one.prompt, cut))
    with torch.no_grad(), evaluating(model):
        for rows in by_kind(prompts, 32):
            inputs = _inputs(model, collate([prompts[i] for i in rows], pad=pad, left=True))
            width = inputs.pop("labels").shape[1]
            written = model.generate(
                **inputs, max_new_tokens=max(1, min(most, context - width)), do_sample=False, num_beams=1,
                repetition_penalty=1.0, no_repeat_ngram_size=0, eos_token_id=sorted(stops), pad_token_id=pad,
            )  # fmt: skip
            for i, row in zip(rows, written[:, width:].tolist(), strict=True):
                out[i] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return out
