r"""Titles of items in a language model: how well it knows them from its training texts, and generation of titles alone.

The *prior score* of a title y of n tokens, over templates k = 1 ... K such as ``My favourite film is``::

    score_k(y) = (1 / n) (log p(y | template_k) - log p(y | new line))
    score(y)   = mean_k score_k(y)

The second term takes away what makes a text likely whatever it is: short words, few tokens. Against the training counts
of MovieLens 100K the score of SmolLM2-135M has a rank correlation of 0.28. It is a stand-in for counts in a corpus that
nobody can read; compare the templates before you trust it (`prior_table`): their smallest correlation is 0.60 there.

Generation is held to the titles by a prefix tree: what may follow depends on everything written so far. A table of what
may stand at each place would let a title begin as one and end as another.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from upright.contract import InputError
from upright.language.adapters import quiet
from upright.language.encoding import refuse_mismatch
from upright.language.logprobs import IGNORE, sample_means, token_log_probs
from upright.language.references import cached_tensors, model_key
from upright.maths.ranks import rank_correlation

__all__ = [
    "TEMPLATES",
    "PriorTable",
    "TitleTrie",
    "natural_title",
    "prefix_ids",
    "prior_scores",
    "prior_table",
    "title_ids",
]

TEMPLATES = (
    "Here is a list of movies that people have watched:",
    "My favourite film is",
    "Films directed or released recently:",
)
"""For films; items of another kind need words of their own."""

_NOTHING = "\n"
"""What stands before a title where no template does: some token must."""
_BATCH_TOKENS = 256
"""Tokens of titles in one pass: a pass over SmolLM2 on a CPU costs as much as 60 tokens before it reads one."""
_YEAR = re.compile(r"\s*\(\d{4}\)$")
_ARTICLE = re.compile(r"(.+?), (The|An?|L'|L[aeo]s?|Il|El|Der|Die|Das|Den|Det)((?: \(.*\))?)")


def natural_title(title: str) -> str:
    """Write a title of a catalogue as people write it: ``Matrix, The (1999)`` becomes ``The Matrix``.

    An article behind a comma goes to the front, before another title in brackets too. A year in brackets at the end is
    left out: its digits are tokens that say nothing of how well a title is known. Films of one name become one title.
    """
    plain = _YEAR.sub("", title.strip())
    found = _ARTICLE.fullmatch(plain)
    if found is None:
        return plain
    rest, article, more = found.groups()
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{rest}{more}"


def title_ids(tokenizer: Any, titles: Sequence[str], limit: int) -> list[list[int]]:
    """Return the tokens of each title after a blank, after refusing empty and long ones."""
    texts = [title.strip() for title in titles]
    if not texts:
        raise InputError("no titles", "one title at least", "check the file of items")
    for row, text in enumerate(texts):
        if not text:
            raise InputError(
                f"an empty title of item {row} (the first is 0)", "a title for every item", "fill in or drop that item"
            )
    ids: list[list[int]] = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    for row, one in enumerate(ids):
        if len(one) > limit:
            raise InputError(
                f"a title of {len(one)} tokens of item {row} (the first is 0)",
                f"at most {limit} tokens",
                "shorten that title, or raise limit",
            )
    return ids


class PriorTable(NamedTuple):
    """Prior scores by template.

    Parameters
    ----------
    scores : ndarray of float64, shape (K, I)
        ``score_k`` of each title, in nats per token; higher is better known.
    tokens : ndarray of int64, shape (I,)
        Tokens of each title.
    """

    scores: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def agreement(self) -> float:
        """Return the smallest rank correlation of two templates; NaN with one template, or equal scores."""
        found = [rank_correlation(a, b) for a, b in itertools.combinations(self.scores, 2)]
        return float(np.min(found or math.nan))


def prior_table(
    model: Any,
    tokenizer: Any,
    titles: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    *,
    limit: int = 64,
    folder: Path | None = None,
) -> PriorTable:
    """Score titles under each template; see the module for the formula.

    Parameters
    ----------
    model : PreTrainedModel
        The base model, before any training on the items. Weights and modes stay as they are.
    tokenizer : PreTrainedTokenizerBase
    titles : sequence of str, length I
        Each is written by `natural_title` first; equal ones get equal scores.
    templates : sequence of str, length K
        What stands before a title, without a blank at the end.
    limit : int
        Most tokens of a title.
    folder : Path, optional
        Where scores are kept under the SHA-256 of model, titles and templates; None keeps nothing.

    Returns
    -------
    PriorTable

    Raises
    ------
    InputError
        For an empty title and one longer than the limit, with its row; without templates; for a tokenizer that does not
        fit the model.
    """
    if isinstance(templates, str) or not templates or not all(template.strip() for template in templates):
        raise InputError(
            f"templates = {templates!r}", "a sequence of texts, one at least", "leave it out, or give some"
        )
    refuse_mismatch(tokenizer, model)
    prefixes = [prefix_ids(tokenizer, text) for text in (_NOTHING, *templates)]
    longest = max(map(len, prefixes))
    context = getattr(model.config, "max_position_embeddings", None) or longest + limit
    natural = [natural_title(title) for title in titles]
    every = [*map(tuple, title_ids(tokenizer, natural, min(limit, context - longest)))]
    place = {ids: k for k, ids in enumerate(dict.fromkeys(every))}

    def make() -> dict[str, Tensor]:
        with quiet(model):
            nothing, *means = (_mean_log_probs(model, prefix, [*place]) for prefix in prefixes)
        return {"scores": torch.from_numpy((np.array(means) - nothing)[:, [place[ids] for ids in every]])}

    asked = [model_key(model) if folder is not None else "", prefixes, every]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    scores = cached_tensors(folder, "prior", key, make)["scores"].numpy()
    return PriorTable(scores, np.array([*map(len, every)]))


def prior_scores(
    model: Any, tokenizer: Any, titles: Sequence[str], templates: Sequence[str] = TEMPLATES, *, limit: int = 64
) -> NDArray[np.float64]:
    """Return the mean of `prior_table` over the templates, shape (I,); arguments and errors are its own."""
    mean: NDArray[np.float64] = prior_table(model, tokenizer, titles, templates, limit=limit).scores.mean(axis=0)
    return mean


def prefix_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text with what the tokenizer puts before texts, without what it puts after them."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def _mean_log_probs(model: Any, prefix: Sequence[int], titles: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
    """``(1 / n) log p(y | prefix)`` of each title, given as tokens, shape (U,).

    The prefix is read once, and its keys and values are lent to every batch. Titles of similar length stand together,
    padded at the right, where no token of a title looks.
    """
    device = next(model.parameters()).device
    begin = model(input_ids=torch.tensor([prefix], device=device), use_cache=True)
    first = begin.logits[:, -1:]  # (1, 1, V), predicts the first token of every title
    found = np.empty(len(titles))
    left = sorted(range(len(titles)), key=lambda row: -len(titles[row]))
    while left:
        size = max(1, _BATCH_TOKENS // len(titles[left[0]]))
        rows, left = left[:size], left[size:]
        ids = pad_sequence([torch.tensor(titles[row], device=device) for row in rows], True, IGNORE)  # (B, T)
        logits = [first.expand(len(rows), -1, -1)]
        if ids.shape[1] > 1:  # the last token of a title predicts nothing that is asked for
            cache = copy.deepcopy(begin.past_key_values)
            cache.batch_repeat_interleave(len(rows))
            logits.append(model(input_ids=ids[:, :-1].clamp_min(0), past_key_values=cache, use_cache=True).logits)
        labels = pad(ids, (1, 0), value=IGNORE)  # nothing predicts a token at place 0, so titles begin at 1
        values, mask = token_log_probs(torch.cat([*logits, logits[0]], dim=1), labels)
        found[rows] = sample_means(values, mask, dtype=torch.float64).cpu().numpy()
    return found


class TitleTrie:
    """A prefix tree of titles: what may be generated next, and the items of what was generated.

    Parameters
    ----------
    titles : sequence of str, length I
        As they shall be written: see `natural_title`.
    tokenizer : PreTrainedTokenizerBase
        With an end of sequence, which ends every title.
    limit : int
        Most tokens of a title.

    Attributes
    ----------
    longest : int
        Tokens of the longest title with its end: ``max_new_tokens``.
    n_titles, shared : int
        Distinct titles, and those that more than one item has.

    Raises
    ------
    InputError
        For an empty title and one longer than the limit, with its row; for a tokenizer without an end of sequence and a
        title that holds it.

    Guarantee
    ---------
    From every sequence that `allowed` lets through a title can be reached, so no beam ends in nothing.
    """

    def __init__(self, titles: Sequence[str], tokenizer: Any, *, limit: int = 64) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError("a tokenizer without an end of sequence", "one", "set eos_token")
        self._end = int(tokenizer.eos_token_id)
        self._items: dict[tuple[int, ...], tuple[int, ...]] = {}
        following: dict[tuple[int, ...], dict[int, None]] = {}
        for item, ids in enumerate(title_ids(tokenizer, titles, limit)):
            if self._end in ids:
                got = f"a title of item {item} (the first is 0) that holds {tokenizer.eos_token}"
                raise InputError(got, "titles without the end of sequence", "correct that title")
            for place, token in enumerate((*ids, self._end)):
                following.setdefault(tuple(ids[:place]), {})[token] = None
            self._items[tuple(ids)] = (*self._items.get(tuple(ids), ()), item)
        self._following = {written: list(tokens) for written, tokens in following.items()}
        self.longest = max(map(len, self._items)) + 1
        self.n_titles = len(self._items)
        self.shared = sum(len(items) > 1 for items in self._items.values())

    def allowed(self, prompt_length: int) -> Callable[[int, Tensor], list[int]]:
        """Return what `generate` takes as ``prefix_allowed_tokens_fn``.

        Parameters
        ----------
        prompt_length : int
            Width of the ``input_ids`` that are handed to `generate`, padding included.

        Returns
        -------
        callable
            ``(row, tokens so far) -> tokens that may follow``; the end of sequence after a title that has ended.
        """

        def following(_row: int, ids: Tensor) -> list[int]:
            return self._following.get(tuple(ids[prompt_length:].tolist()), [self._end])

        return following

    def items(self, tokens: Sequence[int] | Tensor) -> tuple[int, ...]:
        """Return the items of a generated title, all that share it.

        Parameters
        ----------
        tokens : sequence of int, or Tensor of shape (T,)
            What follows the prompt; what stands after the end of sequence is not read.

        Returns
        -------
        tuple of int
            Codes, rising; empty for what is no title, or none yet.
        """
        written = [int(token) for token in tokens]
        return self._items.get(tuple(written[: written.index(self._end)]), ()) if self._end in written else ()
